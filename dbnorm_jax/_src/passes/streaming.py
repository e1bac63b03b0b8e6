"""The only chunk loop of the library: `scan_chunks` walks over the leading axis in blocks.

Nested by `sweep`, the outer one over rows and the inner one over items, it holds one tile of
similarities at a time and nothing larger.

Lengths need not divide: the last block is moved back to end where the array ends, so that nothing
is padded or copied, and `fresh` marks the rows that no earlier block has held.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.passes.selection import BLOCK

# Bank items or queries held at once. Results do not depend on it beyond rounding.
DEFAULT_CHUNK_SIZE = 1024
# Gallery items per tile: with 1024 rows a float32 tile stays within a CPU's last-level cache.
COLUMNS = 1024


class Block(NamedTuple):
    """One block of the leading axis."""

    rows: Any  # pytree of [size, ...], the arrays' rows start..start+size-1
    start: jax.Array  # scalar int32
    fresh: jax.Array | None  # [size] bool, False on rows of an earlier block; None = all fresh


def scan_chunks(
    step: Callable[[Any, Block], tuple[Any, Any]], carry: Any, arrays: Any, chunk_size: int
) -> tuple[Any, Any]:
    """`lax.scan` of `step(carry, block) -> (carry, outputs)` over blocks of the leading axis.

    `arrays` is a pytree of [length, ...], outputs one of [size, ...] with an entry per row of the
    block, or None; those of all blocks come back as [length, ...]. `chunk_size` is a hint.
    """
    length = jax.tree.leaves(arrays)[0].shape[0]
    size = even_size(length, chunk_size)
    num_blocks = -(-length // size)
    overlap = num_blocks * size - length

    # Rematerialised: a backward pass stores carries, never tiles.
    @jax.checkpoint
    def body(carry: Any, index: jax.Array) -> tuple[Any, Any]:
        start, fresh = _place(index, size, length)
        rows = jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, start, size), arrays)
        return step(carry, Block(rows, start, fresh if overlap else None))

    carry, stacked = lax.scan(body, carry, jnp.arange(num_blocks, dtype=jnp.int32))

    def unstack(blocks: jax.Array) -> jax.Array:
        flat = blocks.reshape(num_blocks * size, *blocks.shape[2:])
        if not overlap:
            return flat
        last = (num_blocks - 1) * size
        return jnp.concatenate([flat[:last], flat[last + overlap :]])

    return carry, jax.tree.map(unstack, stacked)


def _place(index: jax.Array, size: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Where a block begins, and which of its rows the one before did not have.

    Nothing here exceeds `length`, so that int32 suffices for as many rows as it can number.
    """
    start = jnp.minimum(index * size, length - size)
    return start, start + lax.iota(jnp.int32, size) >= index * size


def even_size(length: int, largest: int, multiple: int = BLOCK) -> int:
    """Even blocks: full ones would leave the last to repeat up to a whole block of work."""
    if length <= largest:
        return length
    even = -(-length // -(-length // largest))
    return min(largest, -(-even // multiple) * multiple)


def both(first: jax.Array | None, second: jax.Array | None) -> jax.Array | None:
    """Where both masks hold; None masks nothing."""
    if first is None or second is None:
        return second if first is None else first
    return first & second
