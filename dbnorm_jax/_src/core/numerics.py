"""Numerics shared by the matrix and the streamed path, each trick with its reason."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


def accumulation_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """The dtype of results: at least float32, float64 where one input is."""
    return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32)


def matmul_precision() -> lax.Precision | None:
    """float32 means float32 on every backend, unless the caller has set JAX's own default.

    GPUs may round to tf32 and TPUs to bf16 by default.
    """
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined, unused-ignore]
    return lax.Precision.HIGHEST if chosen is None else None


def product_transposed(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`rows @ columns.T`, accumulated in at least float32."""
    dtype = accumulation_dtype(rows.dtype, columns.dtype)
    if rows.dtype != columns.dtype:
        rows, columns = rows.astype(dtype), columns.astype(dtype)
    return lax.dot_general(
        rows,
        columns,
        (((1,), (1,)), ((), ())),
        precision=matmul_precision(),
        preferred_element_type=dtype,
    )


def over(values: jax.Array, largest: jax.Array) -> jax.Array:
    """`values / largest`, of values up to the largest, which may be near the end of its dtype.

    XLA may multiply by the reciprocal, which of numbers above 8e37 is subnormal in float32 and
    counts as 0. Of a sixteenth it is not, and that is exact.
    """
    part = jnp.where(largest > 1, 1 / 16, 1).astype(values.dtype)
    return values * part / (largest * part)


def normalize_rows(rows: jax.Array) -> jax.Array:
    """Rows of unit Euclidean length in at least float32; a zero row stays zero.

    Rows are scaled by their largest entry first: the square of 1e30 overflows float32 and the
    square of 1e-30 vanishes.
    """
    rows = rows.astype(accumulation_dtype(rows.dtype))
    largest = lax.stop_gradient(jnp.abs(rows).max(axis=-1, keepdims=True))
    filled = largest > 0
    scaled = over(rows, jnp.where(filled, largest, 1))
    # Double where: sqrt has an infinite slope at 0.
    squares = jnp.where(filled, (scaled * scaled).sum(axis=-1, keepdims=True), 1)
    return scaled / jnp.sqrt(squares)


def lowest(dtype: jnp.dtype) -> float:
    """A finite start for running maxima: -inf - -inf would be NaN."""
    return float(jnp.finfo(dtype).min) / 2  # type: ignore[no-untyped-call]


def below_every_number(values: jax.Array) -> jax.Array:
    """NaN and -inf as the lowest finite number: `lax.top_k` would rank NaN first.

    -inf stays free to mean that there is no item at all.
    """
    least = _lowest(values)
    return jnp.where(values >= least, values, least)


def is_number(values: jax.Array) -> jax.Array:
    """Where `below_every_number` found a number."""
    return values > _lowest(values)


def _lowest(values: jax.Array) -> jax.Array:
    return jnp.asarray(jnp.finfo(values.dtype).min, values.dtype)  # type: ignore[no-untyped-call]


def varying_like(tree: Tree, *others: Any) -> Tree:
    """`tree`, marked as different on each device wherever `others` are, inside `jax.shard_map`.

    A loop there must start from a carry of the type it ends with. Elsewhere nothing happens.
    """
    axes = frozenset[Any]().union(*map(_varying_axes, jax.tree.leaves(others)))

    def marked(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - _varying_axes(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(marked, tree)


def _varying_axes(array: jax.Array) -> frozenset[Any]:
    """The mesh axes along which devices hold different values, inside `jax.shard_map`."""
    kind = jax.typeof(array)
    found = kind.vma if hasattr(kind, "vma") else kind.mat.varying  # renamed in JAX 0.10
    return frozenset(found)


def vectorize(function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    """`jnp.vectorize` that also works where a caller forbids implicit rank promotion."""
    vectorized = jnp.vectorize(function, signature=signature)

    def call(*arrays: jax.Array) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return vectorized(*arrays)

    return call
