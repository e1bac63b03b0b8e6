"""Where a streamed pass runs fused: never, unless asked for.

The environment variable DBNORM_KERNELS is

    never      (default) plain JAX everywhere
    auto       the kernels of `kernels` where `choose` finds a backend and a JAX version they are
               made for, products of low precision, and a small problem that compiles and comes out
               right; plain JAX elsewhere
    interpret  the kernels in Pallas' interpreter, on any backend: for tests, very slow

NOT MEASURED ON HARDWARE: the kernels are tested in the interpreter and lowered for CUDA and TPU,
but no accelerator has run them; hence the default. `python -m benchmarks.speed.kernels` measures
them. On paper they pay for bfloat16 and tf32 products only: in float32 the products themselves take
most of the time.

Derivatives, of any order and mode, are those of plain JAX, which then computes the value too.
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dbnorm_jax._src.core import similarity
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.passes import banks, kernels, nearest
from dbnorm_jax._src.passes.banks import BankSums
from dbnorm_jax._src.passes.selection import BLOCK, Nearest

SWITCH = "DBNORM_KERNELS"
NEVER, AUTO, INTERPRET = "never", "auto", "interpret"
# JAX versions [from, to) with which the tests lower the kernels. From 0.11 on Triton is deprecated.
_TESTED_JAX = ((0, 10), (0, 11))
# Settings of `jax_default_matmul_precision` under which float32 products are faster than float32.
_FAST_PRECISIONS = ("default", "bfloat16", "tensorfloat32", "high")

_logger = logging.getLogger("dbnorm_jax")


def choose(rows: jax.Array, columns: jax.Array, similarity_fn: SimilarityFn) -> str:
    """Where to run fused: "never", "interpret", or the platform, "cuda" or "tpu".

    The answer is a static argument of the compiled functions, so that a later change of the switch
    is seen.
    """
    switch = os.environ.get(SWITCH) or NEVER
    if switch not in (NEVER, AUTO, INTERPRET):
        raise ValueError(f"{SWITCH} must be never, auto or interpret, got {switch!r}")
    half, single = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    dtypes = {rows.dtype, columns.dtype}
    known = similarity_fn in (similarity.dot_product, similarity.cosine_similarity)
    # Inside `jax.shard_map` a kernel would have to name the axes over which its outputs vary.
    sharded = bool(jax.sharding.get_abstract_mesh().manual_axes)
    if switch == NEVER or not known or not dtypes <= {half, single} or sharded:
        return NEVER
    if switch == INTERPRET:
        return INTERPRET
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in kernels.PLANS or rows.shape[1] > kernels.PLANS[platform].most_dimensions:
        return NEVER
    products = half if similarity_fn is similarity.dot_product and dtypes == {half} else single
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined, unused-ignore]
    tested = _TESTED_JAX[0] <= jax.__version_info__ < _TESTED_JAX[1]
    pays = products == half or precision in _FAST_PRECISIONS
    return platform if tested and pays and _works(platform, products.name, precision) else NEVER


@functools.cache
def _works(platform: str, dtype: str, precision: str | None) -> bool:
    """Whether a small problem compiles and gives the result of plain JAX; if not, logs why."""
    del precision  # only a part of the cache's key: the products read it from JAX's configuration
    try:
        # Small integers: exact in any precision and order. Compiled ahead of time, and on NumPy
        # arrays, so that it also runs while a caller's function is traced.
        rows = (np.arange(300 * 8) * 7 % 5 - 2).reshape(300, 8).astype(jnp.dtype(dtype))
        beta, offsets = np.float32(0.5), np.zeros((300, 1), np.float32)
        problems: dict[Callable[..., Any], tuple[Any, ...]] = {
            bank_sums: (rows, rows, beta, None, None),
            nearest_items: (rows, rows, offsets, None),
        }
        options = {"k": 1, "similarity_fn": similarity.dot_product, "chunk_size": 1024}
        for function, arrays in problems.items():
            fused, plain = (
                jax.jit(functools.partial(function, **options, kernel=kernel))
                .lower(*arrays)
                .compile()(*arrays)
                for kernel in (platform, NEVER)
            )
            for found, expected in zip(fused, plain, strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-4)
    except Exception:
        _logger.warning("no fused kernels on %s in %s", platform, dtype, exc_info=True)
        return False
    return True


def bank_sums(
    bank: jax.Array,
    gallery: jax.Array,
    beta: jax.Array,
    weights: jax.Array | None,
    exclude: jax.Array | None,
    *,
    k: int,
    kernel: str,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    valid: jax.Array | None = None,
    merge_nearest: Callable[[Nearest], Nearest] = lambda nearest: nearest,
) -> BankSums:
    """`banks.bank_sums`, fused where `kernel`, an answer of `choose`, says so and it can be."""
    plain: Callable[..., Any] = functools.partial(
        banks.bank_sums,
        exclude=exclude,
        k=k,
        similarity_fn=similarity_fn,
        chunk_size=chunk_size,
        valid=valid,
        merge_nearest=merge_nearest,
    )
    if kernel == NEVER or k > 1 or exclude is not None:
        return plain(bank, gallery, beta, weights)
    one = functools.partial(kernels.bank_sums, k=k, similarity_fn=similarity_fn)

    def fused(bank: Any, gallery: Any, beta: Any, weights: Any, **plan: Any) -> BankSums:
        if not beta.ndim:
            return one(bank, gallery, beta, weights, **plan)
        sums = [one(bank, gallery, beta[place], weights, **plan) for place in range(len(beta))]
        log_normalizer = jnp.stack([part.log_normalizer for part in sums])
        return sums[0]._replace(log_normalizer=log_normalizer)

    return _either(kernel, fused, plain)(bank, gallery, beta, weights)


def nearest_items(
    queries: jax.Array,
    gallery: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    *,
    k: int,
    kernel: str,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    unseen: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> Nearest:
    """`nearest.nearest_items`, fused where `kernel` (see `choose`) says so and it can be."""
    plain: Callable[..., Any] = functools.partial(
        nearest.nearest_items,
        mixtures=mixtures,
        k=k,
        similarity_fn=similarity_fn,
        chunk_size=chunk_size,
        unseen=unseen,
        valid=valid,
    )
    # The blocks scored anew must be few; for a test it is enough that there are as many as k.
    most = gallery.shape[0] // (1 if kernel == INTERPRET else 4)
    single = offsets is None or offsets.dtype == jnp.float32
    masked = unseen is not None or valid is not None
    if kernel == NEVER or masked or mixtures is not None or not single or k * BLOCK > most:
        return plain(queries, gallery, offsets)
    fused = functools.partial(kernels.search, k=k, similarity_fn=similarity_fn)
    if offsets is None:
        offsets = jnp.zeros((gallery.shape[0], 1), jnp.float32)
    return _either(kernel, fused, plain)(queries, gallery, offsets)


def _either(
    kernel: str, fused: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    """`fused` on its platform, `plain` on others; the derivatives are those of `plain`."""
    fused = functools.partial(fused, plan=kernels.PLANS[kernel])

    @jax.custom_jvp
    def function(*arrays: Any) -> Any:
        if kernel == INTERPRET:
            return fused(*arrays)
        # Chosen when lowered: what runs on the CPU of a machine with a GPU takes the plain path.
        # JAX 0.10 cannot lower this for several platforms at once: export such programs with the
        # switch off, or one platform at a time.
        return lax.platform_dependent(*arrays, **{kernel: fused}, default=plain)

    @function.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
        return jax.jvp(plain, primals, tangents)

    return function
