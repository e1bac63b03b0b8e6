"""A second look at the rows that a first one has not settled, a block of them at a time."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics

Found = TypeVar("Found")

# Rows looked at at once while few are left: a block that is not full costs what a full one does.
FEW = 64


def looked_at_again(
    found: Found,
    done: jax.Array,
    look: Callable[[jax.Array, jax.Array], Found],
    *,
    chunk_size: int = 0,
) -> Found:
    """What is found of all rows, of those that are not `done` by another look.

    With a `chunk_size` a loop takes whole chunks while there are so many, and another one the few
    that are left.

    Args:
      found: pytree of [num_rows, ...].
      done: [num_rows] bool.
      look: (rows [size], there [size]) -> pytree of [size, ...], as `found`. `rows` are places of
        rows. Where `there` is False any row fills the block, and what is returned is dropped.
      chunk_size: rows of a chunk, if more than FEW.
    """
    num_rows = len(done)
    failing = (~done).sum(dtype=jnp.int32)
    order = jnp.argsort(done, stable=True).astype(jnp.int32)  # those first

    def blocks(size: int, fewest: int, state: Any) -> Any:
        def more(state: Any) -> jax.Array:
            return failing - state[0] >= fewest

        def block(state: Any) -> Any:
            start, found = state
            places = start + lax.iota(jnp.int32, size)
            rows, there = order[jnp.minimum(places, num_rows - 1)], places < failing
            into = jnp.where(there, rows, num_rows)  # beyond the last: dropped
            found = jax.tree.map(
                lambda old, new: old.at[into].set(new, mode="drop"), found, look(rows, there)
            )
            return start + size, found

        return lax.while_loop(more, block, state)

    state: Any = (numerics.varying_like(jnp.int32(0), found, done), found)
    if num_rows > FEW < chunk_size:
        size = min(num_rows, chunk_size)
        state = blocks(size, size // 2, state)
    result: Found = blocks(min(num_rows, FEW), 1, state)[1]
    return result
