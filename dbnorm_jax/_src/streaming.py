"""The only chunk loop of the library: blocks of rows, tiles of similarities, nothing larger.

`scan_chunks` walks over the leading axis of arrays in blocks. Nested, the outer one over bank items
or queries and the inner one over the gallery, it holds one tile of similarities at a time; the
computation inside is written for one row and `vmap`ped over the rows of a chunk.

Lengths need not divide: the last block is moved back to end where the array ends, so that nothing
is padded or copied, and `fresh` marks the rows that no earlier block has held.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src import numerics
from dbnorm_jax._src.selection import BLOCK, Nearest, add_tile, start_nearest
from dbnorm_jax._src.similarity import SimilarityFn, tile

# Bank items or queries held at once. Results do not depend on it beyond rounding.
DEFAULT_CHUNK_SIZE = 1024
# Gallery items per tile: with 1024 rows a float32 tile stays within a CPU's last-level cache.
_COLUMNS = 1024


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
        start = jnp.minimum(index * size, length - size)
        rows = jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, start, size), arrays)
        fresh = start + lax.iota(jnp.int32, size) >= index * size if overlap else None
        return step(carry, Block(rows, start, fresh))

    carry, stacked = lax.scan(body, carry, jnp.arange(num_blocks, dtype=jnp.int32))

    def unstack(blocks: jax.Array) -> jax.Array:
        flat = blocks.reshape(num_blocks * size, *blocks.shape[2:])
        if not overlap:
            return flat
        last = (num_blocks - 1) * size
        return jnp.concatenate([flat[:last], flat[last + overlap :]])

    return carry, jax.tree.map(unstack, stacked)


def _block_size(length: int, largest: int) -> int:
    """Even blocks: full ones would leave the last to repeat up to a whole block of work."""
    if length <= largest:
        return length
    even = -(-length // -(-length // largest))
    return min(largest, -(-even // BLOCK) * BLOCK)


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
) -> BankSums:
    """Log-normalizers and k-occurrence of a bank in one pass over its similarities.

    Args:
      bank: [num_bank, dim].
      gallery: [num_gallery, dim].
      beta: scalar or [num_betas]; the similarities are computed once for all.
      weights: optional [num_bank].
      exclude: optional [num_bank] int32, the gallery index of the item's own copy, -1 for none.
      k: neighbourhood size of the activation set, 0 for none.
      similarity_fn: the similarity.
      chunk_size: bank rows held at once.
    """
    num_bank, num_gallery = bank.shape[0], gallery.shape[0]
    dtype = beta.dtype
    columns = min(_COLUMNS, num_gallery)

    def add_bank_chunk(carry: Any, chunk: Block) -> tuple[Any, None]:
        log_sum, mass, k_occurrence = carry
        rows, row_weights, row_exclude = chunk.rows
        size = rows.shape[0]
        entering = jnp.ones(size, dtype) if row_weights is None else row_weights
        if chunk.fresh is not None:
            entering = jnp.where(chunk.fresh, entering, 0)

        def add_gallery_tile(nearest: Nearest, block: Block) -> tuple[Nearest, Any]:
            items, tile_log_sum, tile_mass = block.rows
            similarities = tile(similarity_fn, rows, items).astype(dtype)
            places = block.start + lax.iota(jnp.int32, items.shape[0])
            valid = None if row_exclude is None else row_exclude[:, None] != places[None]
            tile_log_sum = numerics.add_rows(
                tile_log_sum,
                similarities,
                beta,
                entering,
                valid=valid,
                weighted=row_weights is not None,
            )
            added = (
                entering.sum() if valid is None else jnp.where(valid, entering[:, None], 0).sum(0)
            )
            if k:
                nearest = add_tile(
                    nearest,
                    lax.stop_gradient(similarities),
                    None,
                    block.start,
                    valid=block.fresh,
                    seen=None
                    if row_exclude is None
                    else lambda row, columns: row_exclude[row] != block.start + columns,
                )
            return nearest, (tile_log_sum, tile_mass + added)

        start = start_nearest((size, 1, k), dtype)
        nearest, (log_sum, mass) = scan_chunks(
            add_gallery_tile, start, (gallery, log_sum, mass), columns
        )
        counted = numerics.is_number(nearest.values[:, 0]) & (entering > 0)[:, None]
        k_occurrence = k_occurrence.at[nearest.indices[:, 0]].add(counted.astype(jnp.int32))
        return (log_sum, mass, k_occurrence), None

    start = (
        numerics.start_log_sum(num_gallery, beta),
        jnp.zeros(num_gallery, dtype),
        jnp.zeros(num_gallery, jnp.int32),
    )
    arrays = (bank, weights, exclude)
    (log_sum, mass, k_occurrence), _ = scan_chunks(
        add_bank_chunk, start, arrays, min(chunk_size, num_bank)
    )
    return BankSums(numerics.finish_log_sum(log_sum, beta), mass, k_occurrence)
