"""Which gallery items are right for a query, in the forms that `metrics` takes, checked."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, seen

# Rows of right items, a bool matrix, or CSR as (indptr, indices).
Relevant = ArrayLike | tuple[ArrayLike, ArrayLike]


def as_matrix(relevant: Any, shape: tuple[int, ...]) -> jax.Array:
    """The right items as a bool matrix [num_queries, num_gallery]."""
    if isinstance(relevant, tuple):
        indptr, indices = _csr(relevant, shape)
        places = jnp.arange(indices.shape[0], dtype=jnp.int32)
        rows = jnp.searchsorted(indptr, places, side="right") - 1
        return jnp.zeros(shape, bool).at[rows, indices].set(True)
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
    counts = np.diff(indptr)
    padded = np.full((shape[0], max(int(counts.max(initial=0)), 1)), -1, np.int32)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = indices
    return jnp.asarray(padded)


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
    array: Any = checks.numeric("relevant", relevant)
    check_matrix(array, shape)
    if array.dtype == bool:
        return array
    array = checks.indices("relevant", array, low=-1, high=shape[1])
    if array.ndim not in (1, 2) or array.shape[0] != shape[0]:
        raise checks.BadValueError(
            "relevant",
            f" must have one entry (or row) per query, expected {shape[0]}, "
            f"got shape {array.shape}; several right items: a CSR pair or a bool matrix",
        )
    return array[:, None] if array.ndim == 1 else array


def _csr(relevant: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    num_queries, num_gallery = shape
    if len(relevant) != 2:
        raise checks.BadValueError(
            "relevant", f" as CSR must be (indptr, indices), got {len(relevant)} parts"
        )
    indices = checks.indices("relevant[1] (indices)", relevant[1], low=0, high=num_gallery, ndim=1)
    length = indices.shape[0]
    indptr = checks.indices(
        "relevant[0] (indptr)", relevant[0], low=0, high=length + 1, ndim=1, of="offsets"
    )
    if indptr.shape[0] != num_queries + 1:
        raise checks.BadValueError(
            "relevant[0]",
            f" (indptr) must have num_queries + 1 = {num_queries + 1} entries, "
            f"got {indptr.shape[0]}",
        )
    if checks.is_concrete(indptr):
        host = np.asarray(indptr)
        if host[0] != 0 or host[-1] != length or (np.diff(host) < 0).any():
            raise checks.BadValueError(
                "relevant[0]",
                f" (indptr) must rise from 0 to the number of indices {length}, "
                f"got {host[0]} to {host[-1]}",
            )
    return indptr, indices
