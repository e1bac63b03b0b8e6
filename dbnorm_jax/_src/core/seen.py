"""What a row sees of the gallery: the arguments `exclude`, `where` and `gates`, checked.

A length that is None is not known yet: what is given then speaks for it, until the rows are read.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dbnorm_jax._src.core import checks


def exclusions(
    exclude: Any, num_rows: int | None, num_gallery: int | None, *, rows: str = "bank rows"
) -> jax.Array | None:
    """The argument `exclude` as [num_rows, most]: gallery rows that a row leaves out."""
    if exclude is None:
        return None
    most = checks.MOST_ROWS if num_gallery is None else num_gallery
    array: Any = checks.on_host(checks.numeric("exclude", exclude))
    given, array = array.shape, array[:, None] if array.ndim == 1 else array
    array = checks.indices("exclude", array, low=-1, high=most)
    length = array.shape[:1] if num_rows is None else (num_rows,)
    if array.ndim != 2 or array.shape[:1] != length or 0 in array.shape:
        shapes = f"{length} or {(*length, 'most')}"
        raise checks.BadValueError("exclude", f" must have shape {shapes} ({rows}), got {given}")
    return array


def items(where: Any, num_gallery: int | None) -> jax.Array | None:
    """The argument `where` of a streamed search, [num_gallery] bool; None keeps all items."""
    if where is None:
        return None
    where = mask("where", where)
    expected = where.shape[:1] if num_gallery is None else (num_gallery,)
    if where.ndim != 1 or where.shape != expected:
        raise checks.BadValueError(
            "where",
            f" must have one entry per gallery item here, expected shape {expected}, "
            f"got {where.shape}; pairs are masked by `exclude`",
        )
    return where


def by_query(where: Any, exclude: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """Both arguments as a mask of the pairs [..., num_queries, num_gallery] of a matrix."""
    seen = None
    if where is not None:
        seen = mask("where", where)
        if seen.shape not in (shape, shape[-2:]):
            raise checks.BadValueError(
                "where", f" must have the shape of the matrix {shape}, got {seen.shape}"
            )
    rows = exclusions(exclude, *shape[-2:], rows="queries")
    return None if seen is None and rows is None else _by_query(seen, rows, shape)


# One program for a shape of matrices, where each operation alone would be one.
@partial(jax.jit, static_argnums=2)
def _by_query(seen: Any, rows: Any, shape: tuple[int, ...]) -> jax.Array:
    if rows is not None:
        apart = ~named(rows, shape[-2:])
        seen = apart if seen is None else seen & jnp.broadcast_to(apart, seen.shape)
    return jnp.broadcast_to(seen, shape)


@partial(jax.jit, static_argnums=1)
def named(rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A bool matrix of this shape, True in the columns that rows [num_queries, most] name."""
    places = jnp.where(rows < 0, shape[1], rows)  # out of bounds: dropped
    queries = jnp.arange(shape[0])[:, None]
    return jnp.zeros(shape, bool).at[queries, places].set(True, mode="drop")


def gates(value: Any, correction: Any, num_queries: int | None) -> jax.Array | None:
    """The argument `gates`, which ends in [num_queries, num_terms]; None leaves it to the raw."""
    if value is None:
        return None
    if correction is None:
        raise checks.BadValueError(
            "gates", " must come with a correction, got ", "correction", " None"
        )
    gates = checks.floating("gates", value, min_ndim=2)
    expected = (gates.shape[-2] if num_queries is None else num_queries, correction.num_terms)
    if gates.shape[-2:] != expected:
        raise checks.BadValueError(
            "gates", f" must end in [num_queries, num_terms] = {expected}, got {gates.shape}"
        )
    return gates


def mask(name: str, value: Any) -> jax.Array:
    """A bool array."""
    array = checks.as_array(name, value)
    if array.dtype != bool:
        raise checks.BadTypeError(
            name, f" must be a bool mask (True = valid), got dtype {array.dtype}"
        )
    return array


def pairs(where: Any, shape: tuple[int, ...]) -> jax.Array:
    """A mask of rows or pairs as a mask of pairs that broadcasts against `shape`."""
    where = mask("where", where)
    given = where.shape
    if where.ndim == 1 or (where.shape == shape[:-1] and where.shape != shape[-2:]):
        where = where[..., None]
    try:
        fits = jnp.broadcast_shapes(where.shape, shape)[-2:] == tuple(shape[-2:])
    except ValueError:
        fits = False
    if not fits:
        raise checks.BadValueError(
            "where", f" must mask bank rows {shape[:-1]} or pairs {shape}, got {given}"
        )
    return jnp.broadcast_to(where, (*where.shape[:-2], *shape[-2:]))
