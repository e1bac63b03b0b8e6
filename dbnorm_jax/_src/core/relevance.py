"""Which gallery items are right for a query, and how much, in the forms that `metrics` takes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, filling, seen

# Rows of right items, a bool matrix, or CSR as (indptr, indices).
Relevant = ArrayLike | tuple[ArrayLike, ArrayLike]
# A matrix of grades, lists as (indices, grades), or CSR as (indptr, indices, grades).
Grades = ArrayLike | tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]


def as_matrix(relevant: Any, shape: tuple[int, ...]) -> jax.Array:
    """The right items as a bool matrix [num_queries, num_gallery]."""
    if isinstance(relevant, tuple):
        return _named_by_csr(*_csr(relevant, shape), shape)
    array = _array(relevant, shape)
    return checks.converted(array, bool) if array.dtype == bool else seen.named(array, shape)


def as_rows(relevant: Any, shape: tuple[int, ...]) -> jax.Array:
    """The right items as int32 [num_queries, most], padded with -1."""
    remedy = "inside jit, pass an int array [num_queries, most] padded with -1"
    if isinstance(relevant, tuple):
        if not checks.is_concrete(relevant):
            raise checks.BadTypeError("relevant", f" as a CSR pair must be concrete; {remedy}")
        indptr, indices = (np.asarray(part) for part in _csr(relevant, shape))
    else:
        array = _array(relevant, shape)
        if array.dtype != bool:
            return array
        if not checks.is_concrete(array):
            raise checks.BadTypeError("relevant", f" as a bool matrix must be concrete; {remedy}")
        matrix = np.asarray(array)
        indptr = np.concatenate([[0], matrix.sum(axis=1).cumsum()])
        indices = np.nonzero(matrix)[1]
    return _padded(np.diff(indptr), indices.astype(np.int32), -1)


def graded_matrix(grades: Any, shape: tuple[int, ...]) -> jax.Array:
    """The grades as a matrix [..., num_queries, num_gallery], 0 where none is given."""
    if not isinstance(grades, tuple):
        values = _grades("grades", grades)
        if values.shape not in (shape, shape[-2:]):
            raise checks.BadValueError(
                "grades",
                f" must have the shape of the scores {shape}, got {values.shape}; grades of some "
                f"items: (indices, grades) or CSR (indptr, indices, grades)",
            )
        return jnp.broadcast_to(values, shape)
    if len(grades) == 3 and not checks.is_concrete(grades):
        indptr, indices, values = _graded_csr(grades, shape[-2:])
        places = _rows_of(indptr, indices), indices
    else:
        rows, values = graded_rows(grades, (shape[-2], shape[-1]))
        places = jnp.arange(shape[-2])[:, None], jnp.where(rows < 0, shape[-1], rows)
    matrix = jnp.zeros(shape[-2:], values.dtype).at[places].set(values, mode="drop")
    return jnp.broadcast_to(matrix, shape)


def graded_rows(grades: Any, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The items of a grade: int32 rows [num_queries, most], padded with -1, and their grades."""
    indices: Any
    query: Any
    if isinstance(grades, tuple) and len(grades) == 2:
        rows = checks.indices("grades[0] (indices)", grades[0], low=-1, high=shape[1], ndim=2)
        values = _grades("grades[1]", grades[1])
        if rows.shape != values.shape or rows.shape[0] != shape[0]:
            raise checks.BadValueError(
                "grades",
                f" as (indices, grades) must be two arrays [num_queries, most] of {shape[0]} "
                f"queries, got shapes {rows.shape} and {values.shape}",
            )
        if not checks.is_concrete(rows, values):
            return rows, jnp.where(rows < 0, 0, values)
        there = np.asarray(rows) >= 0
        query, indices, given = (
            np.nonzero(there)[0],
            np.asarray(rows)[there],
            np.asarray(values)[there],
        )
    else:
        if not checks.is_concrete(grades):
            raise checks.BadTypeError(
                "grades",
                " as CSR or as a matrix must be concrete here; inside jit, pass (indices, grades), "
                "two arrays [num_queries, most], indices padded with -1",
            )
        if isinstance(grades, tuple):
            indptr, indices, given = (np.asarray(part) for part in _graded_csr(grades, shape))
            query = np.repeat(np.arange(shape[0]), np.diff(indptr))
        else:
            matrix = np.asarray(graded_matrix(grades, shape))
            query, indices = np.nonzero(matrix)
            given = matrix[query, indices]
    _check_distinct(query, indices)
    # A grade of 0 changes nothing.
    query, indices, given = (part[given > 0] for part in (query, indices, given))
    counts = np.bincount(query, minlength=shape[0])
    return _padded(counts, indices.astype(np.int32), -1), _padded(counts, given, 0)


@partial(jax.jit, static_argnums=2)
def _named_by_csr(indptr: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, bool).at[_rows_of(indptr, indices), indices].set(True)


def check_matrix(array: Any, shape: tuple[int, ...]) -> None:
    """Raises unless what is bool has the shape of the scores, and what has that shape is bool.

    Numbers of that shape may be 0 and 1, which would name the first two gallery rows.
    """
    if array.dtype == bool and array.shape != shape:
        raise checks.BadValueError(
            "relevant", f" as a bool matrix must have shape {shape}, got {array.shape}"
        )
    if array.dtype != bool and array.shape == shape:
        raise checks.BadTypeError(
            "relevant",
            f" of the shape of the scores, {shape}, must be bool, got dtype "
            f"{array.dtype}; make 0 and 1 bool with .astype(bool); give lists of gallery rows one "
            f"more column of -1",
        )


def _array(relevant: Any, shape: tuple[int, ...]) -> Any:
    """A bool matrix as it is, rows as int32 [num_queries, most]."""
    array: Any = checks.on_host(checks.numeric("relevant", relevant))
    check_matrix(array, shape)
    if array.dtype == bool:
        return array
    given, array = array.shape, array[:, None] if array.ndim == 1 else array
    array = checks.indices("relevant", array, low=-1, high=shape[1])
    if array.ndim != 2 or array.shape[0] != shape[0]:
        raise checks.BadValueError(
            "relevant",
            f" must have one entry (or row) per query, expected {shape[0]}, "
            f"got shape {given}; several right items: a CSR pair or a bool matrix",
        )
    return array


def _grades(name: str, value: Any) -> jax.Array:
    """Finite numbers >= 0, a bool 0 or 1; inside a caller's jit, 0 for what is none of them."""
    array = checks.numeric(name, value)
    values = checks.real(
        name, checks.converted(array, jnp.float32) if array.dtype == bool else array
    )
    checks.check_none_vanishes(name, array, values.dtype)
    checks.check_finite(name, values, "leave it out, or give it grade 0")
    if checks.found(checks.is_negative, values):
        with jax.ensure_compile_time_eval():
            raise checks.BadValueError(
                name, f" must not be negative, got a minimum of {values.min()}; no gain is grade 0"
            )
    return values if checks.is_concrete(values) else jnp.where(values < jnp.inf, values, 0).clip(0)


def _graded_csr(grades: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, Any, jax.Array]:
    if len(grades) != 3:
        raise checks.BadValueError(
            "grades",
            f" must be a matrix, (indices, grades) or CSR (indptr, indices, grades), got "
            f"{len(grades)} parts",
        )
    indptr, indices = _csr(grades[:2], shape, "grades")
    values = _grades("grades[2]", grades[2])
    if values.shape != indices.shape:
        raise checks.BadValueError(
            "grades[2]",
            f" must have one grade per entry of grades[1] (indices), expected shape "
            f"{indices.shape}, got {values.shape}",
        )
    return indptr, indices, values


def _check_distinct(query: Any, indices: Any) -> None:
    """Raises where an item is named twice for a query: which of its grades holds is not said."""
    order = np.lexsort((indices, query))
    query, indices = query[order], indices[order]
    again = (query[1:] == query[:-1]) & (indices[1:] == indices[:-1])
    if again.any():
        place = int(again.argmax())
        raise checks.BadValueError(
            "grades",
            f" must name a gallery row once per query, got row {indices[place]} repeated for "
            f"query {query[place]}",
        )


def _rows_of(indptr: jax.Array, indices: jax.Array) -> jax.Array:
    """[num_entries] which row of CSR an entry stands in."""
    places = jnp.arange(indices.shape[0], dtype=jnp.int32)
    return jnp.searchsorted(indptr, places, side="right") - 1


def _padded(counts: Any, entries: Any, fill: int) -> jax.Array:
    """[num_rows, most] of entries that follow each other, so many per row; most has few values."""
    most = int(counts.max(initial=1))
    shape = len(counts), filling.length(most, 4) if most > 1 else 1
    padded = np.full(shape, fill, entries.dtype)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = entries
    return checks.converted(padded, entries.dtype)


def _csr(
    relevant: tuple[Any, ...], shape: tuple[int, ...], name: str = "relevant"
) -> tuple[jax.Array, jax.Array]:
    num_queries, num_gallery = shape
    if len(relevant) != 2:
        raise checks.BadValueError(
            name, f" as CSR must be (indptr, indices), got {len(relevant)} parts"
        )
    indices = checks.indices(f"{name}[1] (indices)", relevant[1], low=0, high=num_gallery, ndim=1)
    length = indices.shape[0]
    indptr = checks.indices(
        f"{name}[0] (indptr)", relevant[0], low=0, high=length + 1, ndim=1, of="offsets"
    )
    if indptr.shape[0] != num_queries + 1:
        raise checks.BadValueError(
            f"{name}[0]",
            f" (indptr) must have num_queries + 1 = {num_queries + 1} entries, "
            f"got {indptr.shape[0]}",
        )
    if checks.is_concrete(indptr):
        host = np.asarray(indptr)
        if host[0] != 0 or host[-1] != length or (np.diff(host) < 0).any():
            raise checks.BadValueError(
                f"{name}[0]",
                f" (indptr) must rise from 0 to the number of indices {length}, "
                f"got {host[0]} to {host[-1]}",
            )
    return indptr, indices
