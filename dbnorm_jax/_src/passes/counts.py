"""Streamed ranks: how many wrong items are ahead of each query's best right one.

The score of the right item comes first, from its own vector; then one pass over the gallery counts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.passes.nearest import Scoring, by_list, count_lists, scoring
from dbnorm_jax._src.passes.selection import Nearest, Offsets, add_tile, start_nearest
from dbnorm_jax._src.passes.streaming import COLUMNS, Block, both, scan_chunks
from dbnorm_jax._src.passes.sweep import Items

# Share of the level items that count as above.
_TIES = {"average": 0.5, "min": 0.0, "max": 1.0}
# Queries scored against their own right items at once.
_DIAGONAL = 128


def count_ahead(
    queries: jax.Array,
    gallery: jax.Array,
    relevant: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    *,
    share: float,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    valid: jax.Array | None = None,
    merge_best: Callable[[jax.Array], jax.Array] = lambda best: best,
) -> tuple[jax.Array, Nearest]:
    """Counts the wrong items ahead of each query's best right item, in one pass.

    Args:
      queries: [num_queries, dim].
      gallery: [num_gallery, dim].
      relevant: [num_queries, num_right] int32 gallery rows, -1 for none.
      offsets: as in `nearest_items`.
      mixtures: as in `nearest_items`.
      share: 0, 1/2 or 1, what an item counts that is level with the best right one.
      similarity_fn: the similarity.
      chunk_size: queries held at once.
      valid: optional [num_gallery] bool, False on padding.
      merge_best: what becomes of the scores [size, num_lists] of the best right items of some
        queries before others are compared with them.

    Returns:
      [num_queries, num_lists] int32, twice the number ahead, and Nearest of [num_queries], the best
      item of the first list.
    """
    num_lists = count_lists(offsets, mixtures)
    score = scoring(queries, gallery, offsets, similarity_fn)

    def pick(column: jax.Array) -> tuple[jax.Array, Offsets]:
        return gallery[column], by_list(None if offsets is None else offsets[column])

    def best_right(rows: jax.Array, right: jax.Array, mixture: jax.Array | None) -> jax.Array:
        """[size, num_lists] scores of the best right items of a chunk."""

        def add_right(best: jax.Array, column: jax.Array) -> tuple[jax.Array, None]:
            scores = _paired_scores(score, rows, column, mixture, pick)
            return jnp.where((column >= 0)[:, None], jnp.maximum(best, scores), best), None

        start = jnp.full((rows.shape[0], num_lists), -jnp.inf, score.dtype)
        start = numerics.varying_like(start, rows, right, mixture, gallery, offsets)
        return lax.scan(jax.checkpoint(add_right), start, right.T)[0]

    def count_chunk(carry: None, chunk: Block) -> tuple[None, tuple[jax.Array, Nearest]]:
        rows, right, mixture = chunk.rows
        best = merge_best(best_right(rows, right, mixture))
        counted = _add_counts(
            start_counts(rows.shape[0], num_lists, score.dtype),
            Asked(rows, right, best, mixture),
            Items(gallery, valid=valid),
            offsets,
            score=score,
            share=share,
        )
        return carry, (counted.ahead, Nearest(*(part[:, 0, 0] for part in counted.nearest)))

    return scan_chunks(count_chunk, None, (queries, relevant, mixtures), chunk_size)[1]


class Counts(NamedTuple):
    """Items counted ahead of the best right ones so far."""

    ahead: jax.Array  # [num_queries, num_lists] int32, twice their number
    nearest: Nearest  # [num_queries, 1, 1] of the first list


class Asked(NamedTuple):
    """Queries with their right items."""

    queries: jax.Array  # [num_queries, dim]
    right: jax.Array  # [num_queries, num_right] int32 gallery rows, -1 for none
    best: jax.Array  # [num_queries, num_lists] scores of the best right items
    mixtures: jax.Array | None


def start_counts(num_queries: int, num_lists: int, dtype: jnp.dtype) -> Counts:
    """Nothing counted yet."""
    ahead = jnp.zeros((num_queries, num_lists), jnp.int32)
    return Counts(ahead, start_nearest((num_queries, 1, 1), dtype))


def paired_scores(
    queries: jax.Array,
    items: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    *,
    similarity_fn: SimilarityFn,
) -> jax.Array:
    """[num_queries, num_lists] scores of one item for each query, with that item's offsets."""
    score = scoring(queries, items, offsets, similarity_fn)
    return _paired_scores(score, queries, (items, by_list(offsets)), mixtures, lambda pair: pair)


def _paired_scores(
    score: Scoring, queries: jax.Array, picked: Any, mixtures: Any, pick: Callable[[Any], Any]
) -> jax.Array:
    """Scored as tiles of queries against their own items, of which the diagonal is kept.

    A product of single rows may round differently, and break ties between equal items.
    """

    def block_scores(carry: None, block: Block) -> tuple[None, jax.Array]:
        rows, places, mixture = block.rows
        scores, own = score(rows, mixture, *pick(places))
        scores = jnp.diagonal(scores)[:, None]
        return carry, numerics.below_every_number(
            scores if own is None else scores - jnp.stack(own, axis=1)
        )

    return scan_chunks(block_scores, None, (queries, picked, mixtures), _DIAGONAL)[1]


def add_counts(
    counts: Counts,
    asked: Asked,
    items: Items,
    offsets: jax.Array | None,
    *,
    share: float,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> Counts:
    """Adds a block of gallery items, those after the ones before; arguments as `count_ahead`."""
    score = scoring(asked.queries, items.vectors, offsets, similarity_fn)

    def count_chunk(carry: None, chunk: Block) -> tuple[None, Counts]:
        counts, asked = chunk.rows
        return carry, _add_counts(counts, asked, items, offsets, score=score, share=share)

    return scan_chunks(count_chunk, None, (counts, asked), chunk_size)[1]


def _add_counts(
    counts: Counts,
    asked: Asked,
    items: Items,
    offsets: jax.Array | None,
    *,
    score: Scoring,
    share: float,
) -> Counts:
    """Adds gallery items to the counts of one chunk of queries."""
    rows, right, best, mixture = asked
    num_lists = counts.ahead.shape[1]
    # Counted from the same tile as the others, each right item is taken out again exactly.
    right = jnp.sort(right, axis=1)
    again = jnp.pad(right[:, 1:] == right[:, :-1], ((0, 0), (1, 0)))
    right = jnp.where(again, -1, right)

    def add_gallery_tile(counts: Counts, block: Block) -> tuple[Counts, None]:
        tile_items, tile_offsets, valid = block.rows
        valid = both(block.fresh, valid)
        start = items.start + block.start
        similarities, tile_offsets = score(rows, mixture, tile_items, tile_offsets)
        nearest = add_tile(
            counts.nearest,
            similarities,
            None if tile_offsets is None else tile_offsets[:1],
            start,
            valid=valid,
        )
        column = right - start
        inside = (right >= 0) & (column >= 0) & (column < tile_items.shape[0])
        column = jnp.where(inside, column, 0)
        if valid is not None:
            inside &= valid[column]
        own = jnp.take_along_axis(similarities, column, axis=1)
        added = []
        for place in range(num_lists):
            offset = None if tile_offsets is None else tile_offsets[place]
            level = best[:, place, None]
            of_right = own if offset is None else own - offset[column]
            of_right = _ahead(numerics.below_every_number(of_right), level, share)
            added.append(
                _count_ahead(similarities, offset, level, share, valid)
                - jnp.where(inside, of_right, 0).sum(axis=1).astype(jnp.int32)
            )
        return Counts(counts.ahead + jnp.stack(added, axis=1), nearest), None

    arrays = (items.vectors, by_list(offsets), items.valid)
    counts = numerics.varying_like(counts, asked, arrays)
    return scan_chunks(add_gallery_tile, counts, arrays, COLUMNS)[0]


def _ahead(scores: jax.Array, best: jax.Array, share: float) -> jax.Array:
    """float32, 2 where a score is above the best right one, 2 share where it is level."""
    above, at_least = ((array).astype(jnp.float32) for array in (scores > best, scores >= best))
    return (2 - 2 * share) * above + 2 * share * at_least


def _count_ahead(
    similarities: jax.Array,
    offset: jax.Array | None,
    best: jax.Array,
    share: float,
    valid: jax.Array | None,
) -> jax.Array:
    """[num_queries] int32 sums of `_ahead` over a tile, NaN below every number."""
    counted = jnp.ones(similarities.shape[1], jnp.float32)
    if valid is not None:
        counted = jnp.where(valid, counted, 0)

    def count(similarities: jax.Array, *, careful: bool) -> jax.Array:
        scores = similarities if offset is None else similarities - offset[None]
        if careful:
            scores = numerics.below_every_number(scores)
        # A product with ones sums faster than a sum does, and exactly: a tile is small.
        ahead = _ahead(scores, best, share)
        return jnp.matmul(ahead, counted, precision=lax.Precision.HIGHEST).astype(jnp.int32)

    # NaN is ahead of nothing, and level with NaN only.
    return lax.cond(
        numerics.is_number(best).all(),
        partial(count, careful=False),
        partial(count, careful=True),
        similarities,
    )


def rank(twice_ahead: jax.Array, answered: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1 + the items ahead, NaN where there is no right one."""
    rank = 1 + twice_ahead.astype(numerics.accumulation_dtype(dtype)) / 2
    return jnp.where(answered, rank, jnp.nan)


def share_of_ties(ties: str) -> float:
    """What `ties` says, checked."""
    if ties not in _TIES:
        raise ValueError(f"`ties` must be one of {sorted(_TIES)}, got {ties!r}")
    return _TIES[ties]
