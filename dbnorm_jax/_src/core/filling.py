"""Queries come in any number, and few programs serve them all.

A program is compiled for one number of rows. Queries are filled up with copies of the last one to a
number that many share, and what is found for the copies is cut off again. Copies hold nothing that
a check has not seen: no zero row for a cosine, no item level with all others. On the host NumPy
fills up and cuts, because JAX would compile that for every number of queries.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.core import checks

# Queries that a processor answers about as soon as one.
_FEW = 8


def length(num_rows: int, fewest: int = 32) -> int:
    """So many rows are filled up to so many: the next multiple of `fewest`, or of an eighth."""
    step = max(fewest, 2 ** (num_rows.bit_length() - 4))
    return -(-num_rows // step) * step


def checked_queries(queries: Any, *, few: bool = False, **others: Any) -> tuple[Any, ...]:
    """How many queries there are; they, filled up; and other embeddings, all of fitting shapes.

    `few` of them are filled up to fewer, where one alone is to be answered soon.
    """
    queries = checks.numeric("queries", queries)
    checks.check_embeddings("queries", queries)
    for name, value in others.items():
        others[name] = checks.numeric(name, value)
        checks.check_embeddings(name, others[name])
        checks.same_dimension("queries", queries, name, others[name])
    num_rows = _FEW if few and len(queries) <= _FEW and checks.is_concrete(queries) else None
    return len(queries), filled_up(queries, num_rows), *others.values()


def filled_up(array: Any, num_rows: int | None = None, fill: Any = None) -> Any:
    """[num_rows, ...] of an array [fewer, ...] or None: copies of its last entry follow, or `fill`.

    By default as many rows as `length` says; inside a caller's jit the caller's shapes rule.
    """
    if array is None:
        return None
    if num_rows is None:
        num_rows = length(array.shape[0]) if checks.is_concrete(array) else array.shape[0]
    given = array.shape[0]
    if given in (0, num_rows):
        return array
    array = checks.on_host(checks.unsplit(array))
    if not isinstance(array, np.ndarray):
        how: Any = {"mode": "edge"} if fill is None else {"constant_values": fill}
        return jnp.pad(array, [(0, num_rows - given)] + [(0, 0)] * (array.ndim - 1), **how)
    filled = np.empty((num_rows, *array.shape[1:]), array.dtype)
    filled[:given], filled[given:] = array, array[-1] if fill is None else fill
    return filled


def cut(tree: Any, num_rows: int) -> Any:
    """The first entries of the arrays of a pytree."""

    def first(array: jax.Array) -> jax.Array:
        if array.shape[0] == num_rows:
            return array
        host = checks.on_host(array)
        return jax.device_put(host[:num_rows]) if host is not array else array[:num_rows]

    return jax.tree.map(first, tree)
