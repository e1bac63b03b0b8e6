"""What the banks alone show of themselves: equal rows, and items of another domain or modality."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dbnorm_jax._src.core import elementary
from dbnorm_jax._src.core.similarity import SimilarityFn, tile

# Rows compared with each other.
_SAMPLE = 512
_NEIGHBORS = 10
_COPIES = 8
_DIGEST = 16  # bytes: no two rows are known to share one

Rows = npt.NDArray[Any]


def num_equal(first: Rows, second: Rows) -> int:
    """How many rows of the first array equal some row of the second, value for value."""
    known = set(_keys(second))
    return sum(key in known for key in _keys(first))


def equal_columns(rows: Rows, columns: Iterable[Rows]) -> npt.NDArray[np.int32]:
    """The columns that equal each row, value for value, as [num_rows, most], -1 for none.

    Of more than `_COPIES` equal columns the first ones stand for all: an item that a gallery holds
    so often is level with itself under every correction. The blocks of columns are in order.
    """
    keys = list(_keys(rows))
    members: dict[bytes, list[int]] = {key: [] for key in keys}
    start = 0
    for block in columns:
        for column, key in enumerate(_keys(block), start):
            if key in members and len(members[key]) < _COPIES:
                members[key].append(column)
        start += len(block)
    most = max(1, *map(len, members.values()))
    places = [members[key] + [-1] * (most - len(members[key])) for key in keys]
    return np.array(places, np.int32)


def first_equal(rows: Rows) -> npt.NDArray[np.int64]:
    """The first row that equals each row, value for value; its own place where none is before."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(key, place) for place, key in enumerate(_keys(rows))])


def num_distinct(rows: Rows) -> int:
    """How many different rows there are."""
    return len(set(_keys(rows)))


def _keys(rows: Rows) -> Iterator[bytes]:
    # As float64 the same value is the same in every dtype. Plus 0: both zeros become one. A digest
    # stands for its row, so that the keys of a gallery are far smaller than it.
    for row in rows:
        yield hashlib.blake2b(row.astype(np.float64) + 0, digest_size=_DIGEST).digest()


def own_share(
    bank: Rows, gallery: Rows, rng: np.random.Generator, similarity_fn: SimilarityFn
) -> float:
    """Share of bank rows among the nearest neighbors of bank rows, among equally many of both.

    The nearest-neighbor test of two samples (Schilling, 1986; Henze, 1988): one half where both are
    of one distribution, 1 where they lie apart. Rows are not their own neighbors.
    """
    size = min(_SAMPLE, len(bank), len(gallery))
    if size < 2:
        return 0.5
    own, other = (
        jnp.asarray(rows[np.sort(rng.choice(len(rows), size, replace=False))])
        for rows in (bank, gallery)
    )
    return float(_own_share(own, other, similarity_fn=similarity_fn))


@partial(jax.jit, static_argnames="similarity_fn")
def _own_share(own: jax.Array, other: jax.Array, *, similarity_fn: SimilarityFn) -> jax.Array:
    size = own.shape[0]
    inside = jnp.where(jnp.eye(size, dtype=bool), -jnp.inf, tile(similarity_fn, own, own))
    both = jnp.concatenate([inside, tile(similarity_fn, own, other)], axis=1)
    nearest = elementary.top_k(both, min(_NEIGHBORS, size - 1))[1]
    return (nearest < size).mean()


@partial(jax.jit, static_argnames="similarity_fn")
def spread(
    bank: jax.Array, columns: jax.Array, excluded: jax.Array, *, similarity_fn: SimilarityFn
) -> jax.Array:
    """Standard deviation of similarities within a row, its excluded columns (-1: none) left out."""
    similarities = tile(similarity_fn, bank, columns)
    places = jnp.arange(columns.shape[0], dtype=jnp.int32)
    valid: jax.Array = (excluded[:, :, None] != places[None, None]).all(axis=1)
    count = jnp.maximum(valid.sum(axis=1), 1).astype(similarities.dtype)
    mean = jnp.where(valid, similarities, 0).sum(axis=1) / count
    squares = jnp.where(valid, (similarities - mean[:, None]) ** 2, 0)
    return jnp.sqrt(squares.sum() / count.sum())
