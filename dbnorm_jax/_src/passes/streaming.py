"""The only chunk loop of the library: blocks of rows, tiles of similarities, nothing larger.

`scan_chunks` walks over the leading axis of arrays in blocks. Nested, the outer one over bank items
or queries and the inner one over the gallery, it holds one tile of similarities at a time; the
computation inside is written for one row and `vmap`ped over the rows of a chunk.

Lengths need not divide: the last block is moved back to end where the array ends, so that nothing
is padded or copied, and `fresh` marks the rows that no earlier block has held.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn, tile
from dbnorm_jax._src.passes.selection import BLOCK, Nearest, add_tile, start_nearest

# Bank items or queries held at once. Results do not depend on it beyond rounding.
DEFAULT_CHUNK_SIZE = 1024
# Gallery items per tile: with 1024 rows a float32 tile stays within a CPU's last-level cache.
COLUMNS = 1024
# Excluded places compared one by one: a reduction over so short an axis would be a loop of its own.
_COMPARED = 8


class Block(NamedTuple):
    """One block of the leading axis."""

    rows: Any  # pytree of [size, ...], the arrays' rows start..start+size-1
    start: jax.Array  # scalar int32
    fresh: jax.Array | None  # [size] bool, False on rows of an earlier block; None = all fresh


def scan_chunks(
    step: Callable[[Any, Block], tuple[Any, Any]], carry: Any, arrays: Any, chunk_size: int
) -> tuple[Any, Any]:
    """`lax.scan` of `step(carry, block) -> (carry, outputs)` over blocks of the leading axis.

    Args:
      step: outputs is a pytree of [size, ...], one entry per row of the block, or None.
      carry: first value of the carry.
      arrays: pytree of [length, ...].
      chunk_size: rows per block, a hint.

    Returns:
      (last carry, outputs as a pytree of [length, ...]).
    """
    length = jax.tree.leaves(arrays)[0].shape[0]
    size = _block_size(length, chunk_size)
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


def _block_size(length: int, largest: int) -> int:
    """Even blocks: full ones would leave the last to repeat up to a whole block of work."""
    if length <= largest:
        return length
    even = -(-length // -(-length // largest))
    return min(largest, -(-even // BLOCK) * BLOCK)


def is_apart(excluded: jax.Array, place: jax.Array) -> jax.Array:
    """[...] bool, whether a place [...] is none of those excluded [..., most]."""
    num_entries = excluded.shape[-1]
    if num_entries > _COMPARED:
        shape = (*jnp.broadcast_shapes(excluded.shape[:-1], place.shape), num_entries)
        different = jnp.broadcast_to(excluded, shape) != jnp.broadcast_to(place[..., None], shape)
        return different.all(axis=-1)
    apart = [excluded[..., entry] != place for entry in range(num_entries)]
    return functools.reduce(operator.and_, apart)


def both(first: jax.Array | None, second: jax.Array | None) -> jax.Array | None:
    """Where both masks hold; None masks nothing."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


class BankSums(NamedTuple):
    """Streamed bank statistics, before they are named."""

    log_normalizer: jax.Array  # [num_gallery], or [num_betas, num_gallery]
    mass: jax.Array  # [num_gallery]
    k_occurrence: jax.Array  # [num_gallery] int32


def bank_sums(
    bank: jax.Array,
    gallery: jax.Array,
    beta: jax.Array,
    weights: jax.Array | None,
    exclude: jax.Array | None,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    valid: jax.Array | None = None,
    merge_nearest: Callable[[Nearest], Nearest] = lambda nearest: nearest,
) -> BankSums:
    """Log-normalizers and k-occurrence of a bank in one pass over its similarities.

    Args:
      bank: [num_bank, dim].
      gallery: [num_gallery, dim].
      beta: scalar or [num_betas]; the similarities are computed once for all.
      weights: optional [num_bank].
      exclude: optional [num_bank, most] int32, gallery rows that the item does not enter, -1 for
        none.
      k: neighbourhood size of the activation set, 0 for none.
      similarity_fn: the similarity.
      chunk_size: bank rows held at once.
      valid: optional [num_gallery] bool, False on padding: never among the nearest.
      merge_nearest: what becomes of the nearest items [size, 1, k] of some bank rows before they
        are counted; an index beyond the gallery is not.
    """
    num_bank, num_gallery = bank.shape[0], gallery.shape[0]
    dtype, items = beta.dtype, Items(gallery, valid)

    def add_bank_chunk(carry: Any, chunk: Block) -> tuple[Any, None]:
        sums, k_occurrence = carry
        rows, row_weights, row_exclude = chunk.rows
        size = rows.shape[0]
        entering = jnp.ones(size, dtype) if row_weights is None else row_weights
        if chunk.fresh is not None:
            entering = jnp.where(chunk.fresh, entering, 0)
        nearest, sums = _add_rows(
            numerics.varying_like(
                start_nearest((size, 1, k), dtype), rows, row_exclude, gallery, valid
            ),
            sums,
            BankRows(rows, entering, row_exclude),
            items,
            beta,
            similarity_fn=similarity_fn,
        )
        if k:
            nearest = merge_nearest(nearest)
        counted = counted_places(nearest, entering)
        k_occurrence = k_occurrence.at[nearest.indices[:, 0]].add(
            counted.astype(jnp.int32), mode="drop"
        )
        return (sums, k_occurrence), None

    start = (start_sums(num_gallery, beta), jnp.zeros(num_gallery, jnp.int32))
    arrays = (bank, weights, exclude)
    start = numerics.varying_like(start, gallery, valid, arrays, beta)
    ((log_sum, mass), k_occurrence), _ = scan_chunks(
        add_bank_chunk, start, arrays, min(chunk_size, num_bank)
    )
    return BankSums(numerics.finish_log_sum(log_sum, beta), mass, k_occurrence)


class RunningSums(NamedTuple):
    """Bank statistics of some gallery items while bank rows are added."""

    log_sum: numerics.RunningLogSum
    mass: jax.Array  # [num_items]


def start_sums(num_items: int, beta: jax.Array) -> RunningSums:
    """Those of no bank rows."""
    return RunningSums(numerics.start_log_sum(num_items, beta), jnp.zeros(num_items, beta.dtype))


class BankRows(NamedTuple):
    """Bank rows on their way into the sums."""

    rows: jax.Array  # [num_rows, dim]
    entering: jax.Array  # [num_rows], weights; 0 on rows that do not enter
    exclude: jax.Array | None  # [num_rows, most] int32


class Items(NamedTuple):
    """Gallery items, whole or a block of them."""

    rows: jax.Array  # [num_items, dim]
    valid: jax.Array | None = None  # [num_items] bool, False on padding
    start: jax.Array | int = 0  # gallery index of the first


def add_block(
    nearest: Nearest,
    sums: RunningSums,
    bank: BankRows,
    items: Items,
    beta: jax.Array,
    *,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> tuple[Nearest, RunningSums]:
    """Adds a block of bank rows to the sums of a block of gallery items, in one matmul.

    Args:
      nearest: [num_rows, 1, k] the rows' nearest items in the blocks before, which hold lower
        gallery indices.
      sums: of the items; those of padding mean nothing.
      bank: the rows.
      items: the items. Padding repeats one of them.
      beta: scalar or [num_betas].
      similarity_fn: the similarity.
      chunk_size: bank rows held at once.
    """

    def add_chunk(sums: RunningSums, chunk: Block) -> tuple[RunningSums, Nearest]:
        rows, nearest = chunk.rows
        if chunk.fresh is not None:
            rows = rows._replace(entering=jnp.where(chunk.fresh, rows.entering, 0))
        nearest, sums = _add_rows(nearest, sums, rows, items, beta, similarity_fn=similarity_fn)
        return sums, nearest

    sums, nearest = scan_chunks(add_chunk, sums, (bank, nearest), chunk_size)
    return nearest, sums


def counted_places(nearest: Nearest, entering: jax.Array) -> jax.Array:
    """[num_rows, k] bool, the places of [num_rows, 1, k] neighbours that enter the k-occurrence."""
    return numerics.is_number(nearest.values[:, 0]) & (entering > 0)[:, None]


def _add_rows(
    nearest: Nearest,
    sums: RunningSums,
    bank: BankRows,
    items: Items,
    beta: jax.Array,
    *,
    similarity_fn: SimilarityFn,
) -> tuple[Nearest, RunningSums]:
    """Adds one chunk of bank rows, gallery tile by tile."""
    rows, entering, exclude = bank
    num_items, k = items.rows.shape[0], nearest.values.shape[-1]
    dtype = beta.dtype

    def add_gallery_tile(nearest: Nearest, block: Block) -> tuple[Nearest, Any]:
        tile_items, known, (tile_log_sum, tile_mass) = block.rows
        similarities = tile(similarity_fn, rows, tile_items).astype(dtype)
        start = items.start + block.start
        places = start + lax.iota(jnp.int32, tile_items.shape[0])
        valid = None if exclude is None else is_apart(exclude[:, None], places[None])
        tile_log_sum = numerics.add_rows(tile_log_sum, similarities, beta, entering, valid=valid)
        added = entering.sum() if valid is None else jnp.where(valid, entering[:, None], 0).sum(0)
        if k:
            nearest = add_tile(
                nearest,
                lax.stop_gradient(similarities),
                None,
                start,
                valid=both(block.fresh, known),
                seen=None
                if exclude is None
                else lambda row, columns: is_apart(exclude[row], start + columns),
            )
        return nearest, RunningSums(tile_log_sum, tile_mass + added)

    arrays = (items.rows, items.valid, sums)
    return scan_chunks(add_gallery_tile, nearest, arrays, min(COLUMNS, num_items))
