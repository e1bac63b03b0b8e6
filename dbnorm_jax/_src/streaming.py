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
from dbnorm_jax._src.selection import BLOCK, Nearest, add_columns, add_tile, start_nearest
from dbnorm_jax._src.similarity import SimilarityFn, tile

# Bank items or queries held at once. Results do not depend on it beyond rounding.
DEFAULT_CHUNK_SIZE = 1024
# Gallery items per tile: with 1024 rows a float32 tile stays within a CPU's last-level cache.
# A log-sum reads its tile several times, a top-k amortises its merge over a wide one.
_FIT_COLUMNS = 1024
_SEARCH_COLUMNS = 4096


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

    log_normalizer: jax.Array  # [num_gallery]
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
      beta: scalar.
      weights: optional [num_bank].
      exclude: optional [num_bank] int32, the gallery index of the item's own copy, -1 for none.
      k: neighbourhood size of the activation set, 0 for none.
      similarity_fn: the similarity.
      chunk_size: bank rows held at once.
    """
    num_bank, num_gallery = bank.shape[0], gallery.shape[0]
    dtype = beta.dtype
    columns = min(_FIT_COLUMNS, num_gallery)

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
                    jnp.zeros((items.shape[0], 1), dtype),
                    None,
                    block.start,
                    _both(valid, block.fresh),
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
        numerics.start_log_sum(num_gallery, dtype),
        jnp.zeros(num_gallery, dtype),
        jnp.zeros(num_gallery, jnp.int32),
    )
    arrays = (bank, weights, exclude)
    (log_sum, mass, k_occurrence), _ = scan_chunks(
        add_bank_chunk, start, arrays, min(chunk_size, num_bank)
    )
    return BankSums(numerics.finish_log_sum(log_sum, beta), mass, k_occurrence)


def _both(valid: jax.Array | None, fresh: jax.Array | None) -> jax.Array | None:
    """Both masks, [num_rows, num_columns] and [num_columns], where there are any."""
    if valid is None or fresh is None:
        return fresh if valid is None else valid
    return valid & fresh[None]


def search(
    queries: jax.Array,
    gallery: jax.Array,
    offsets: jax.Array,
    mixtures: jax.Array | None,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    exclude: jax.Array | None = None,
) -> Nearest:
    """The k nearest gallery items of each query under several offsets at once, one matmul for all.

    Args:
      queries: [num_queries, dim].
      gallery: [num_gallery, dim].
      offsets: [num_gallery, num_offsets], each subtracted from the similarities for a list of its
        own.
      mixtures: optional [num_queries, num_offsets]; one list then, under the query's own sum of
        offsets.
      k: neighbours per list.
      similarity_fn: the similarity.
      chunk_size: queries held at once.
      exclude: optional [num_gallery] int32, the row of the one query that never sees the item.

    Returns:
      Nearest of [num_queries, num_lists, k], best first; with k above the number of items, -inf.
    """
    num_lists = offsets.shape[1] if mixtures is None else 1

    def search_chunk(carry: None, chunk: Block) -> tuple[None, Nearest]:
        rows, chunk_mixtures = chunk.rows
        places = chunk.start + lax.iota(jnp.int32, rows.shape[0])

        def add_gallery_tile(nearest: Nearest, block: Block) -> tuple[Nearest, None]:
            items, tile_offsets, excluded = block.rows
            similarities = tile(similarity_fn, rows, items).astype(offsets.dtype)
            seen = None if excluded is None else excluded[None] != places[:, None]
            valid = _both(seen, block.fresh)
            nearest = add_tile(
                nearest, similarities, tile_offsets, chunk_mixtures, block.start, valid
            )
            return nearest, None

        start = start_nearest((rows.shape[0], num_lists, k), offsets.dtype)
        arrays = (gallery, offsets, exclude)
        return carry, scan_chunks(add_gallery_tile, start, arrays, _SEARCH_COLUMNS)[0]

    nearest = scan_chunks(search_chunk, None, (queries, mixtures), chunk_size)[1]
    return nearest._replace(
        values=jnp.where(numerics.is_number(nearest.values), nearest.values, -jnp.inf)
    )


def _scores(
    query: jax.Array,
    mixture: jax.Array | None,
    items: jax.Array,
    offsets: jax.Array,
    similarity_fn: SimilarityFn,
) -> jax.Array:
    """[num_lists, num_columns]: one query's similarities to a gallery tile, less each offset."""
    offsets = offsets.T
    if mixture is not None:
        offsets = (mixture[:, None] * offsets).sum(axis=0, keepdims=True)
    row = tile(similarity_fn, query[None], items)[0].astype(offsets.dtype)
    return row[None] - offsets


class Standing(NamedTuple):
    """How many wrong items stand above, and level with, the best right item."""

    above: jax.Array  # [..., num_lists] int32
    level: jax.Array  # [..., num_lists] int32


def count_above(
    queries: jax.Array,
    gallery: jax.Array,
    relevant: jax.Array,
    offsets: jax.Array,
    mixtures: jax.Array | None,
    *,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> tuple[Standing, jax.Array]:
    """Counts the wrong items above each query's best right item, in one pass.

    Args:
      queries: [num_queries, dim].
      gallery: [num_gallery, dim].
      relevant: [num_queries, num_right] int32 gallery rows, -1 for none.
      offsets: as in `search`.
      mixtures: as in `search`.
      similarity_fn: the similarity.
      chunk_size: queries held at once.

    Returns:
      Standing of [num_queries, num_lists], and [num_queries] the best item of the first list.
    """
    dtype = offsets.dtype
    num_lists = offsets.shape[1] if mixtures is None else 1

    def best_right(rows: jax.Array, right: jax.Array, mixture: jax.Array | None) -> jax.Array:
        """[size, num_lists] scores of the best right items of a chunk."""

        # Scored as tiles of the chunk against its own right items, of which the diagonal is kept:
        # a product of single rows may round differently, and break ties between equal items.
        def add_right(best: jax.Array, column: jax.Array) -> tuple[jax.Array, None]:
            items = gallery[column]
            own = jnp.diagonal(tile(similarity_fn, rows, items)).astype(dtype)
            own_offsets = offsets[column]
            if mixture is not None:
                own_offsets = (mixture * own_offsets).sum(axis=1, keepdims=True)
            scores = numerics.below_every_number(own[:, None] - own_offsets)
            return jnp.where((column >= 0)[:, None], jnp.maximum(best, scores), best), None

        start = jnp.full((rows.shape[0], num_lists), -jnp.inf, dtype)
        return lax.scan(jax.checkpoint(add_right), start, right.T)[0]

    def count_one(
        query: jax.Array, right: jax.Array, mixture: jax.Array | None, best: jax.Array
    ) -> tuple[Standing, jax.Array]:
        def add_gallery_tile(carry: Any, block: Block) -> tuple[Any, None]:
            standing, best_item = carry
            items, tile_offsets = block.rows
            scores = _scores(query, mixture, items, tile_offsets, similarity_fn)
            best_item = add_columns(best_item, scores[0], block.start, block.fresh)
            places = block.start + lax.iota(jnp.int32, scores.shape[1])
            wrong = (places[:, None] != right[None]).all(axis=1)
            if block.fresh is not None:
                wrong &= block.fresh
            above, level = compare(numerics.below_every_number(scores), best[:, None], wrong[None])
            return (Standing(standing.above + above, standing.level + level), best_item), None

        zeros = jnp.zeros(num_lists, jnp.int32)
        start = (Standing(zeros, zeros), start_nearest((1,), dtype))
        (standing, best_item), _ = scan_chunks(
            add_gallery_tile, start, (gallery, offsets), _SEARCH_COLUMNS
        )
        return standing, best_item.indices[0]

    def count_chunk(carry: None, chunk: Block) -> tuple[None, tuple[Standing, jax.Array]]:
        rows, right, mixture = chunk.rows
        best = best_right(rows, right, mixture)
        return carry, jax.vmap(count_one)(rows, right, mixture, best)

    return scan_chunks(count_chunk, None, (queries, relevant, mixtures), chunk_size)[1]


def compare(scores: jax.Array, best: jax.Array, wrong: jax.Array) -> Standing:
    """Standing of `best` [..., 1] among the wrong items of `scores` [..., num_gallery]."""
    return Standing(
        ((scores > best) & wrong).sum(axis=-1, dtype=jnp.int32),
        ((scores == best) & wrong).sum(axis=-1, dtype=jnp.int32),
    )
