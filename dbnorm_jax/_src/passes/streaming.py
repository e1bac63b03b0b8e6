"""The only chunk loop of the library: `scan_chunks` walks over the leading axis in blocks.

Nested by `sweep`, the outer one over rows and the inner one over items, it holds one tile of
similarities at a time and nothing larger, but for passes that look at their tiles again.

Lengths need not divide: the last block is moved back to end where the array ends, so that nothing
is padded or copied, and `fresh` marks the rows that no earlier block has held.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.passes.selection import BLOCK

# Bank items or queries held at once. Results do not depend on it beyond rounding.
DEFAULT_CHUNK_SIZE = 1024
# Gallery items per tile: with 1024 rows a float32 tile stays within a CPU's last-level cache.
COLUMNS = 1024


class Columns(NamedTuple):
    """Gallery items per tile, hints by the platform that a program is lowered for."""

    cpu: int
    tpu: int
    gpu: int

    @classmethod
    def everywhere(cls, columns: int) -> "Columns":
        """As many on all platforms."""
        return cls(columns, columns, columns)

    def at_most(self, length: int) -> "Columns":
        """No more than there are items."""
        return Columns(*(min(columns, length) for columns in self))

    def choose(self, run: Callable[..., Any], *arrays: Any) -> Any:
        """`run(*arrays, columns=...)` with those of the platform, where they differ.

        A program may be lowered for another platform than the one that traces it.
        """
        cpu, tpu, gpu = (partial(run, columns=columns) for columns in self)
        if self.cpu == self.tpu == self.gpu:
            return cpu(*arrays)
        if self.tpu == self.gpu:
            return lax.platform_dependent(*arrays, cpu=cpu, default=tpu)
        # Each that is named is traced: the processor's serves where it is that of TPUs.
        others = {} if self.tpu == self.cpu else {"tpu": tpu}
        return lax.platform_dependent(*arrays, cuda=gpu, rocm=gpu, default=cpu, **others)


class Block(NamedTuple):
    """One block of the leading axis."""

    rows: Any  # pytree of [size, ...], the arrays' rows start..start+size-1
    start: jax.Array  # scalar int32
    fresh: jax.Array | None  # [size] bool, False on rows of an earlier block; None = all fresh
    kept: Any = None  # pytree, what a walk over the same blocks before has kept of this one


def scan_chunks(
    step: Callable[[Any, Block], tuple[Any, Any]], carry: Any, arrays: Any, chunk_size: int
) -> tuple[Any, Any]:
    """`lax.scan` of `step(carry, block) -> (carry, outputs)` over blocks of the leading axis.

    `arrays` is a pytree of [length, ...], outputs one of [size, ...] with an entry per row of the
    block, or None; those of all blocks come back as [length, ...]. `chunk_size` is a hint.
    """
    carry, stacked = scan_blocks(step, carry, arrays, chunk_size)
    return carry, in_order(stacked, _length(arrays))


def scan_blocks(
    step: Callable[[Any, Block], tuple[Any, Any]],
    carry: Any,
    arrays: Any,
    chunk_size: int,
    kept: Any = None,
) -> tuple[Any, Any]:
    """As `scan_chunks`, but of outputs of any shape, which stay one for each block.

    They come back as [num_blocks, ...], and a second walk is given them as `kept`, without a copy.
    """
    length = _length(arrays)
    size = even_size(length, chunk_size)
    num_blocks = -(-length // size)
    divides = num_blocks * size == length

    # Rematerialised: a backward pass stores carries, never tiles.
    @jax.checkpoint
    def body(carry: Any, numbered: tuple[jax.Array, Any]) -> tuple[Any, Any]:
        index, kept = numbered
        start, fresh = _place(index, size, length)
        rows = jax.tree.map(lambda array: _slice(array, start, size), arrays)
        return step(carry, Block(rows, start, None if divides else fresh, kept))

    return lax.scan(body, carry, (jnp.arange(num_blocks, dtype=jnp.int32), kept))


def _slice(array: jax.Array, start: jax.Array, size: int) -> jax.Array:
    narrow = array.dtype in (jnp.bfloat16, jnp.float16)
    return (_slice_bits if narrow else lax.dynamic_slice_in_dim)(array, start, size)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _slice_bits(array: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """A slice, taken of the bits.

    XLA for processors slices no numbers of 16 bits but as float32, and moves that conversion out of
    the loop: each call would make a copy of the whole array, twice as large.
    """
    bits = lax.bitcast_convert_type(array, jnp.uint16)
    return lax.bitcast_convert_type(lax.dynamic_slice_in_dim(bits, start, size), array.dtype)


@_slice_bits.defjvp
def _(size: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    array, start = primals
    return _slice_bits(array, start, size), lax.dynamic_slice_in_dim(tangents[0], start, size)


def in_order(stacked: Any, length: int) -> Any:
    """Outputs of blocks, a pytree of [num_blocks, size, ...], as [length, ...]."""

    def unstack(blocks: jax.Array) -> jax.Array:
        num_blocks, size = blocks.shape[:2]
        flat = blocks.reshape(num_blocks * size, *blocks.shape[2:])
        overlap = num_blocks * size - length
        if not overlap:
            return flat
        last = (num_blocks - 1) * size
        return jnp.concatenate([flat[:last], flat[last + overlap :]])

    return jax.tree.map(unstack, stacked)


def _length(arrays: Any) -> int:
    return int(jax.tree.leaves(arrays)[0].shape[0])


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
