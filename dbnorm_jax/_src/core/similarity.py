"""Similarity functions: rows [m, dim] against columns [n, dim] -> [m, n]; higher is closer.

Any function of this form can stand in for them in the streamed functions. It is a static argument
of compiled code: pass a named function, since every new lambda compiles anew.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dbnorm_jax._src.core import checks, elementary, numerics
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities

SimilarityFn = Callable[[jax.Array, jax.Array], jax.Array]
State = TypeVar("State", BankStatistics, LargestSimilarities, Correction)


def dot_product(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Inner products `s(r, c) = <r, c>`, in [unit of rows] x [unit of columns].

    Args:
      rows: [num_rows, dim] floating point.
      columns: [num_columns, dim] floating point.

    Returns:
      [num_rows, num_columns] in at least float32, in full float32 precision on every backend unless
      `jax.default_matmul_precision` is set.

    Raises:
      ValueError: shapes that do not fit, empty or non-finite arrays.
      TypeError: arrays that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> print(dbn.dot_product(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])))
      [[11.  2.]]
    """
    return _dot_product(*checks.checked_embeddings(rows=rows, columns=columns).values())


def cosine_similarity(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Cosines `s(r, c) = <r, c> / (|r| |c|)`, between -1 and 1 up to rounding.

    Args:
      rows: [num_rows, dim] floating point, no zero row.
      columns: [num_columns, dim] floating point, no zero row.

    Returns:
      [num_rows, num_columns] in at least float32; inside a caller's jit, where values cannot be
      checked, the similarities of a zero row are 0.

    Raises:
      ValueError: a zero row, shapes that do not fit, empty or non-finite arrays.
      TypeError: arrays that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> print(dbn.cosine_similarity(jnp.array([[0.0, 2.0]]), jnp.array([[3.0, 4.0]])).round(3))
      [[0.8]]
    """
    return _cosine_similarity(*checked_rows(cosine_similarity, rows=rows, columns=columns))


def negative_squared_euclidean(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Negative squared distances `s(r, c) = -|r - c|^2`, at most 0.

    Expanded as `2 <r, c> - |r|^2 - |c|^2` of vectors less one shift that lies among the columns, so
    the absolute error is a few float32 roundings of the squared spread of rows and columns, however
    far from the origin they lie. What most columns have on both sides of zero is not moved. Squared
    norms must stay within the range of the dtype (float32: norms up to 1e19).

    Args:
      rows: [num_rows, dim] floating point.
      columns: [num_columns, dim] floating point.

    Returns:
      [num_rows, num_columns] in at least float32, in [unit of the embeddings]^2.

    Raises:
      ValueError: shapes that do not fit, empty or non-finite arrays.
      TypeError: arrays that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> rows, columns = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 2.0], [0.0, 0.0]])
      >>> print(dbn.negative_squared_euclidean(rows, columns))
      [[-4. -1.]]
    """
    checked = checks.checked_embeddings(rows=rows, columns=columns)
    return _negative_squared_euclidean(*checked.values())


def name_of(similarity_fn: SimilarityFn) -> str | None:
    """What states call a similarity of this module; None for any other."""
    return similarity_fn.__name__ if similarity_fn in _ALIKE else None


def named(name: str) -> SimilarityFn:
    """The similarity that states call so."""
    return _NAMED[name]


def known_by(state: State, similarity_fn: SimilarityFn) -> State:
    """The state, knowing its similarity."""
    return dataclasses.replace(state, similarity=name_of(similarity_fn))


def agreed(first: tuple[str, Any], second: tuple[str, Any]) -> str | None:
    """The similarity of two states, each with its argument's name; raises for two of them."""
    (first_name, one), (second_name, other) = first, second
    names = one.similarity, other.similarity
    if None not in names and names[0] != names[1]:
        raise checks.BadValueError(
            first_name,
            f" is of {names[0]} but ",
            second_name,
            f" of {names[1]}; make both under one similarity, or give "
            f"dataclasses.replace({second_name}, similarity=None)",
        )
    return names[0] or names[1]


def check_similarity(name: str, state: Any, similarity_fn: SimilarityFn, *embeddings: Any) -> None:
    """Raises where a state was made under another named similarity.

    Inner products of unit rows are their cosines: there either name will do.
    """
    made, asked = state.similarity, name_of(similarity_fn)
    if made is None or asked is None or made == asked:
        return
    products = {made, asked} == {dot_product.__name__, cosine_similarity.__name__}
    if products and not any(checks.found(_not_unit, rows) for rows in embeddings):
        return
    but = " and not all rows have norm 1" if products else ""
    raise checks.BadValueError(
        name,
        f" was made under {made}, got similarity_fn {asked}{but}; fit it anew under {asked}, or, "
        f"where this is meant, give dataclasses.replace({name}, similarity=None)",
    )


def check_streamed(correction: Correction, num_gallery: int, of: str = "gallery") -> None:
    """Raises unless `correction` is an unbatched one for this many items, those of `of`."""
    checks.correction(correction, Correction)
    checks.matching_gallery("correction", correction.num_gallery, of, (num_gallery,))
    checks.unbatched(correction)


def _not_unit(rows: Any) -> Any:
    # Twice what rounding the entries changes of a norm, and more than float32 does.
    few = max(1e-3, 2 * float(jnp.finfo(rows.dtype).eps))  # type: ignore[no-untyped-call]
    rows = rows.astype(np.float32)
    return ~(abs((rows * rows).sum(axis=1) - 1) <= few).all()


def check_rows(similarity_fn: SimilarityFn, **embeddings: jax.Array) -> None:
    """Raises for concrete embeddings on which the similarity is undefined: zero rows and cosine.

    And for what is no function, before anything is computed.
    """
    _check_function(similarity_fn)
    if similarity_fn is not cosine_similarity:
        return
    for name, rows in embeddings.items():
        if checks.found(_has_zero_row, rows):
            with jax.ensure_compile_time_eval():  # numbers, which every process can read
                zero = _is_zero(rows)
                first = jnp.where(zero, jnp.arange(len(zero)), len(zero)).min()
                raise checks.BadValueError(
                    name,
                    f" must have no zero row under cosine similarity, found "
                    f"{int(zero.sum())}, the first at row {int(first)}; remove them",
                )


def _check_function(similarity_fn: Any) -> None:
    if not callable(similarity_fn):
        names = ", ".join(SIMILARITIES)
        raise checks.BadTypeError(
            "similarity_fn",
            f" must be a function of rows and columns, as {names} are, got {similarity_fn!r}",
        )


def checked_rows(similarity_fn: SimilarityFn, **embeddings: Any) -> list[jax.Array]:
    """Rows, and those that are compared with them: checked, of one dimension."""
    arrays = checks.checked_embeddings(**embeddings)
    check_rows(similarity_fn, **arrays)
    return list(arrays.values())


def _is_zero(rows: Any) -> Any:
    """[num_rows], where a row is zero to devices, some of which take subnormal numbers for it."""
    smallest = float(jnp.finfo(rows.dtype).tiny)  # type: ignore[no-untyped-call]
    return ~(abs(rows) >= smallest).any(axis=1)


def _has_zero_row(rows: Any) -> Any:
    return _is_zero(rows).any()


def tile(similarity_fn: SimilarityFn, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`similarity_fn(rows, columns)` in at least float32, its shape checked.

    Written, so that all its readers agree in each number.
    """
    similarities = similarity_fn(rows, columns)
    expected = (rows.shape[0], columns.shape[0])
    if similarities.shape != expected:
        raise checks.BadValueError(
            "similarity_fn",
            f" must map {rows.shape} and {columns.shape} to {expected}, got {similarities.shape}",
        )
    similarities = similarities.astype(numerics.accumulation_dtype(similarities.dtype))
    if similarity_fn in _ALIKE and rows.shape[1] > 1:
        return similarities
    return elementary.written(similarities)


def rounding(
    similarity_fn: SimilarityFn, row_norms: jax.Array, columns: jax.Array, similarities: jax.Array
) -> jax.Array:
    """[num_rows], how far two roundings of a similarity of a row and one of the columns differ.

    A product of `dim` entries is rounded `dim` times, in an order that depends on its place in a
    tile. Each partial sum is at most `|r| |c|`, by Cauchy and Schwarz; half an `eps` of it is lost
    at most, to either side. Such errors grow like a random walk, with `sqrt(dim)` (Higham and Mary,
    2019); the most that two products were seen to differ by is 0.4 `sqrt(dim)` from 64 dimensions
    on and 2.5 below. Of a similarity that is not of this module the largest that it gives stands
    for what it sums. `row_norms` are the `norms` of the rows, [num_rows], `similarities` those of
    rows and columns.
    """
    dtype = similarities.dtype
    if similarity_fn is cosine_similarity:
        sizes = jnp.ones_like(row_norms)
    elif similarity_fn is dot_product:
        sizes = row_norms * norms(columns).max()
    elif similarity_fn is negative_squared_euclidean:
        # Another tile has another shift m. To round `r - m` and `c - m` changes a distance by
        # `eps |r - c| (|r - m| + |c - m|)` at most; one of a pair is taken from the difference.
        near = norms(_less(_shift(row_norms, columns), columns))
        # By the triangle: no farther than the first column, and that one's distance.
        far = jnp.sqrt(-similarities[:, 0]) + near[0]
        sizes = (far + near.max()) ** 2
    else:
        dtype = jax.eval_shape(similarity_fn, columns[:1], columns[:1]).dtype
        sizes = jnp.where(jnp.isfinite(similarities), jnp.abs(similarities), 0).max(axis=1)
    eps = jnp.finfo(dtype).eps  # type: ignore[no-untyped-call]
    return eps * (4 + columns.shape[1] ** 0.5 / 2) * sizes.astype(similarities.dtype)


def alone(similarity_fn: SimilarityFn) -> SimilarityFn:
    """A similarity of this module, of each pair by itself: no product of matrices, no shift.

    So copies of an item are level. For few pairs; a distance has all its digits.
    """

    def compared(rows: jax.Array, columns: jax.Array) -> jax.Array:
        dtype = numerics.accumulation_dtype(rows.dtype, columns.dtype)
        rows, columns = rows.astype(dtype), columns.astype(dtype)
        if similarity_fn is negative_squared_euclidean:
            return -jnp.square(rows[:, None] - columns[None]).sum(axis=-1)
        if similarity_fn is cosine_similarity:
            rows, columns = numerics.normalize_rows(rows), numerics.normalize_rows(columns)
        return (rows[:, None] * columns[None]).sum(axis=-1)

    return compared


def norms(rows: jax.Array) -> jax.Array:
    """[num_rows] Euclidean norms in at least float32."""
    rows = rows.astype(numerics.accumulation_dtype(rows.dtype))
    return jnp.sqrt(jnp.square(rows).sum(axis=1))


# XLA fuses no product of matrices with its readers, and twice a product has no rounding of its own.
_ALIKE = (dot_product, cosine_similarity, negative_squared_euclidean)
# The names that states know them by.
SIMILARITIES = tuple(function.__name__ for function in _ALIKE)
_NAMED = dict(zip(SIMILARITIES, _ALIKE, strict=True))
# The names that the command and provenances know them by.
SIMILARITY_FUNCTIONS: dict[str, SimilarityFn] = {
    "cosine": cosine_similarity,
    "dot": dot_product,
    "euclidean": negative_squared_euclidean,
}


_dot_product = jax.jit(numerics.product_transposed)


@jax.jit
def _cosine_similarity(rows: jax.Array, columns: jax.Array) -> jax.Array:
    dtype = numerics.accumulation_dtype(rows.dtype, columns.dtype)
    return numerics.product_transposed(
        numerics.normalize_rows(rows.astype(dtype)), numerics.normalize_rows(columns.astype(dtype))
    )


@jax.jit
def _negative_squared_euclidean(rows: jax.Array, columns: jax.Array) -> jax.Array:
    # Marked alike: `jax.vmap` of a branch that would mark them fails inside `jax.shard_map`.
    rows, columns = numerics.varying_like((rows, columns), rows, columns)
    shift = _shift(rows, columns)

    def parts(rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, ...]:
        squares = (jnp.square(side.astype(shift.dtype)).sum(axis=1) for side in (rows, columns))
        return numerics.product_transposed(rows, columns), *squares

    # Most data lie around zero: they are not copied, and narrow numbers stay narrow.
    products, row_squares, column_squares = lax.cond(
        (shift == 0).all(),
        lambda: parts(rows, columns),
        lambda: parts(_less(shift, rows), _less(shift, columns)),
    )
    return jnp.minimum(2 * products - row_squares[:, None] - column_squares[None, :], 0)


# Columns that say where all of them lie: so many that of data around zero no coordinate has one
# sign in all of them by chance.
_FEW = 32


def _shift(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """[1, dim], a vector among the columns to compute distances from, in the dtype of those.

    Any would do, since distances do not change with it, and each tile may have its own. In each
    coordinate it is 0 where a few columns lie on both sides of zero. Else take a step, the power of
    two from a quarter of their range to half of it, and of its multiples the one nearest to their
    middle, so that none of them is farther than three quarters of their range. Of whole numbers, or
    others of few bits, it has few bits too, so that none is lost. One column alone is its own
    shift.
    """
    dtype = numerics.accumulation_dtype(rows.dtype, columns.dtype)
    # The shift cancels in the differences, so its gradient is left out.
    few = lax.stop_gradient(columns[:: -(-len(columns) // _FEW)]).astype(dtype)
    low, high = few.min(axis=0), few.max(axis=0)
    half = high / 2 - low / 2  # the range itself may overflow
    step = jnp.ldexp(jnp.ones_like(half), jnp.frexp(half)[1] - 1)
    shift = jnp.where(half > 0, jnp.round((low + half) / step) * step, low)
    return jnp.where((low <= 0) & (high >= 0), 0, shift)[None]


def _less(shift: jax.Array, vectors: jax.Array) -> jax.Array:
    return vectors.astype(shift.dtype) - shift
