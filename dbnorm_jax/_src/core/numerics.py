"""Numerics shared by the matrix and the streamed path, each trick with its reason.

The running log-sum holds, per gallery column, the maximum similarity `m` seen so far and the sum
`z = sum_b w_b exp(beta (s(b, g) - m(g)))`. It starts at `(LOWEST, 0)`, takes any number of blocks
of bank rows in any order, and ends as `log Z = beta m + log z`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import elementary

# A finite start for the running maximum: -inf - -inf would be NaN.
LOWEST = -1e30
# Bounds 2^ of the excess over the maximum of the rows that count: only others reach it.
_LARGEST_EXPONENT = 115.0

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


def normalize_rows(rows: jax.Array) -> jax.Array:
    """Rows of unit Euclidean length in at least float32; a zero row stays zero.

    Rows are scaled by their largest entry first: the square of 1e30 overflows float32 and the
    square of 1e-30 vanishes.
    """
    rows = rows.astype(accumulation_dtype(rows.dtype))
    largest = lax.stop_gradient(jnp.abs(rows).max(axis=-1, keepdims=True))
    filled = largest > 0
    scaled = rows / jnp.where(filled, largest, 1)
    # Double where: sqrt has an infinite slope at 0.
    squares = jnp.where(filled, (scaled * scaled).sum(axis=-1, keepdims=True), 1)
    return scaled / jnp.sqrt(squares)


class RunningLogSum(NamedTuple):
    """Per gallery column: the largest similarity so far, and the shifted sum of exponentials."""

    maximum: jax.Array  # [num_gallery]
    total: jax.Array  # [num_gallery], or [num_gallery, num_betas]


def start_log_sum(num_gallery: int, beta: jax.Array) -> RunningLogSum:
    """The running log-sum of no rows, under a scalar `beta` or several."""
    return RunningLogSum(
        jnp.full(num_gallery, LOWEST, beta.dtype), jnp.zeros((num_gallery, *beta.shape), beta.dtype)
    )


def add_rows(
    state: RunningLogSum,
    similarities: jax.Array,
    beta: jax.Array,
    weights: jax.Array,
    *,
    valid: jax.Array | None = None,
) -> RunningLogSum:
    """Adds rows of similarities [num_rows, num_gallery], written or given: read twice, they agree.

    `beta` is a scalar or [num_betas], `weights` [num_rows] is 0 on rows that do not enter, `valid`
    [num_rows, num_gallery] bool.
    """
    # A row of weight 0 must not move the maximum: exp of all the others could vanish. Nor may one
    # that has entered before, as a tile of another shape may round it otherwise.
    counted = (weights > 0)[:, None]
    if valid is not None:
        counted = counted & valid
    top = jnp.where(counted, similarities, LOWEST)
    # The shift cancels in log Z, so its gradient is left out.
    largest = elementary.largest_first(lax.stop_gradient(top))
    maximum = jnp.maximum(lax.stop_gradient(state.maximum), largest)

    def sums(beta: jax.Array) -> jax.Array:
        excess = (beta / math.log(2)) * (similarities - maximum[None])
        powers = elementary.exp2(jnp.minimum(excess, _LARGEST_EXPONENT))
        if valid is not None:
            powers = jnp.where(valid, powers, 0)
        # A product with the weights sums the rows and drops the padding in one fast operation.
        return jnp.matmul(weights, powers, precision=matmul_precision())

    moved = lax.stop_gradient(state.maximum - maximum)
    if not beta.ndim:
        return RunningLogSum(maximum, state.total * jnp.exp(beta * moved) + sums(beta))
    # One after the other: the powers under all betas together would not stay in the cache.
    added = lax.map(jax.checkpoint(sums), beta).T
    return RunningLogSum(maximum, state.total * jnp.exp(moved[:, None] * beta[None]) + added)


def finish_log_sum(state: RunningLogSum, beta: jax.Array) -> jax.Array:
    """`log Z = beta m + log z` [num_gallery], or [num_betas, num_gallery] under several betas.

    -inf where nothing entered; NaN stays NaN.
    """
    total, maximum = state.total.T, jnp.expand_dims(state.maximum, range(beta.ndim))
    filled = total != 0
    log_total = jnp.log(jnp.where(filled, total, 1))
    return jnp.where(filled, beta[..., None] * maximum + log_total, -jnp.inf)


def log_add(first: jax.Array, second: jax.Array) -> jax.Array:
    """`log(exp(first) + exp(second))` with finite gradients also where both are -inf."""
    maximum = lax.stop_gradient(jnp.maximum(jnp.maximum(first, second), LOWEST))
    total = jnp.exp(first - maximum) + jnp.exp(second - maximum)
    filled = total != 0  # true of NaN, which must not pass for an empty part
    return jnp.where(filled, maximum + jnp.log(jnp.where(filled, total, 1)), -jnp.inf)


def below_every_number(values: jax.Array) -> jax.Array:
    """NaN and -inf as the lowest finite number: `lax.top_k` would rank NaN first.

    -inf stays free to mean that there is no item at all.
    """
    lowest = _lowest(values)
    return jnp.where(values >= lowest, values, lowest)


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
