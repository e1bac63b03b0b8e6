"""Streamed ranks: how many wrong items are ahead of each query's best right one.

The score of the right item comes first, from its own vector; then one pass over the gallery counts.

A tile rounds the score of an item by its place in the tile, so a copy of the right item may score a
rounding higher or lower than it. Whatever a tile leaves within rounding of the right item is scored
again by the function that scored the right item, pair by pair: copies are level.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import checks, numerics, similarity
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.passes.nearest import PAIRS, Scoring, by_list, count_lists, scoring
from dbnorm_jax._src.passes.selection import Nearest, Offsets, add_tile, start_nearest
from dbnorm_jax._src.passes.streaming import COLUMNS, Block, Items, both, scan_chunks

# Share of the level items that count as above.
_TIES = {"average": 0.5, "min": 0.0, "max": 1.0}
# Above and at least are counted in one float32 sum, above as units and at least as multiples of
# this: exact, as a tile has fewer columns and their product is below 2^24.
_UNIT = 4096
assert COLUMNS < _UNIT <= 2**24 // COLUMNS


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
    # Counts are steps: they have no slope.
    queries, gallery, offsets, mixtures = lax.stop_gradient((queries, gallery, offsets, mixtures))
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
        return lax.scan(add_right, start, right.T)[0]

    def count_chunk(carry: None, chunk: Block) -> tuple[None, tuple[jax.Array, Nearest]]:
        rows, right, mixture = chunk.rows
        best = merge_best(best_right(rows, right, mixture))
        counted = _add_counts(
            start_counts(rows.shape[0], num_lists, score.dtype),
            Asked(rows, right, best, mixture),
            Items(gallery, valid),
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
    """As `paired_scores`, of items that `pick` finds."""

    def block_scores(carry: None, block: Block) -> tuple[None, jax.Array]:
        rows, places, mixture = block.rows
        return carry, score.pairs(rows, mixture, *pick(places))

    return scan_chunks(block_scores, None, (queries, picked, mixtures), PAIRS)[1]


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
    score = scoring(asked.queries, items.rows, offsets, similarity_fn)

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
    # Counted from the same tile as the others, each right item is taken out again exactly.
    right = jnp.sort(right, axis=1)
    again = jnp.pad(right[:, 1:] == right[:, :-1], ((0, 0), (1, 0)))
    right = jnp.where(again, -1, right)
    norms = similarity.norms(rows)

    def add_gallery_tile(counts: Counts, block: Block) -> tuple[Counts, None]:
        tile_items, tile_offsets, valid = block.rows
        valid = both(block.fresh, valid)
        start = items.start + block.start
        similarities, left = score(rows, mixture, tile_items, tile_offsets)
        nearest = add_tile(
            counts.nearest,
            similarities,
            None if left is None else left[:1],
            start,
            valid=valid,
        )
        column = right - start
        inside = (right >= 0) & (column >= 0) & (column < tile_items.shape[0])
        if valid is not None:
            inside &= valid[jnp.where(inside, column, 0)]
        scored = _Scored(
            similarities,
            left,
            jnp.where(inside, column, tile_items.shape[0]),
            valid,
            best,
            score.rounding(norms, mixture, tile_items, tile_offsets, similarities, best),
        )
        pairs = partial(_tile_pairs, score, rows, mixture, tile_items, tile_offsets)
        return Counts(counts.ahead + _ahead_in_tile(scored, share, pairs), nearest), None

    arrays = (items.rows, by_list(offsets), items.valid)
    counts = numerics.varying_like(counts, asked, arrays)
    return scan_chunks(add_gallery_tile, counts, arrays, COLUMNS)[0]


def _tile_pairs(
    score: Scoring,
    rows: jax.Array,
    mixtures: jax.Array | None,
    items: jax.Array,
    offsets: Offsets,
    row: jax.Array,
    column: jax.Array,
) -> jax.Array:
    """[num_pairs, num_lists] scores of rows [num_pairs] and columns [num_pairs] of a tile."""
    own = None if offsets is None else tuple(offset[column] for offset in offsets)
    mixtures = None if mixtures is None else mixtures[row]
    return score.pairs(rows[row], mixtures, items[column], own)


class _Scored(NamedTuple):
    """A tile of scores, and what is asked of it."""

    similarities: jax.Array  # [num_rows, num_columns]
    offsets: Offsets  # num_lists of [num_columns]
    right: jax.Array  # [num_rows, num_right] columns, num_columns where there is none
    valid: jax.Array | None  # [num_columns] bool
    best: jax.Array  # [num_rows, num_lists]
    rounding: jax.Array  # [num_rows, num_lists], how far scores of the tile may be off


def _ahead_in_tile(
    scored: _Scored, share: float, pairs: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """[num_rows, num_lists] int32, twice the number of wrong items ahead of the best right one.

    Args:
      scored: the tile.
      share: what counts an item that is level.
      pairs: (row [num_pairs], column [num_pairs]) -> [num_pairs, num_lists] scores of their own.
    """
    counted = [_count(scored, place) for place in range(scored.best.shape[1])]
    above, near = (jnp.stack(part, axis=1) for part in zip(*counted, strict=True))
    return 2 * above + _rescored(scored, near, share, pairs)


def _count(scored: _Scored, place: int) -> tuple[jax.Array, jax.Array]:
    """[num_rows] int32 wrong items surely above the best right one, and those near it."""
    best, rounding = scored.best[:, place, None], scored.rounding[:, place, None]
    num_columns = scored.similarities.shape[1]
    counted = jnp.ones(num_columns, jnp.float32)
    if scored.valid is not None:
        counted = jnp.where(scored.valid, counted, 0)
    offset = None if scored.offsets is None else scored.offsets[place]

    def compared(scores: jax.Array) -> jax.Array:
        above, at_least = scores > best + rounding, scores >= best - rounding
        return above.astype(jnp.float32) + _UNIT * at_least.astype(jnp.float32)

    def count(similarities: jax.Array, *, careful: bool) -> jax.Array:
        scores = similarities if offset is None else similarities - offset[None]
        if careful:
            scores = numerics.below_every_number(scores)
        # A product with ones sums faster than a sum does.
        return jnp.matmul(compared(scores), counted, precision=lax.Precision.HIGHEST)

    # NaN is ahead of nothing, and level with NaN only.
    total = lax.cond(
        numerics.is_number(best).all(),
        partial(count, careful=False),
        partial(count, careful=True),
        scored.similarities,
    )
    inside = scored.right < num_columns
    column = jnp.where(inside, scored.right, 0)
    own = jnp.take_along_axis(scored.similarities, column, axis=1)
    own = compared(numerics.below_every_number(own if offset is None else own - offset[column]))
    total = (total - jnp.where(inside, own, 0).sum(axis=1)).astype(jnp.int32)
    above = total % _UNIT
    return above, total // _UNIT - above


def _rescored(
    scored: _Scored,
    near: jax.Array,
    share: float,
    pairs: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """[num_rows, num_lists] int32, twice what the near items count by scores of their own.

    Args:
      scored: the tile.
      near: [num_rows, num_lists] int32, how many wrong items are near the best right one.
      share: what counts an item that is level.
      pairs: as in `_ahead_in_tile`.
    """
    num_lists = near.shape[1]
    num_columns = scored.similarities.shape[1]
    columns = lax.iota(jnp.int32, num_columns)
    offsets = None if scored.offsets is None else jnp.stack(scored.offsets)
    slots = min(PAIRS, near.size)
    slot = lax.iota(jnp.int32, slots)

    def rescore_next(state: jax.Array) -> jax.Array:
        """The next near item of some rows, each under one of its lists."""
        number, asked = lax.top_k(state[:, 0], slots)
        row, place = jnp.divmod(asked, num_lists)
        scores = scored.similarities[row]
        if offsets is not None:
            scores -= offsets[place]
        scores = numerics.below_every_number(scores)
        best, rounding = scored.best[row, place], scored.rounding[row, place]
        is_near = (scores >= (best - rounding)[:, None]) & ~(scores > (best + rounding)[:, None])
        is_near &= columns[None] > state[asked, 1, None]
        if scored.valid is not None:
            is_near &= scored.valid[None]
        is_near = is_near.at[slot[:, None], scored.right[row]].set(False, mode="drop")
        column = jnp.argmax(is_near, axis=1).astype(jnp.int32)
        halves = _ahead(pairs(row, column)[slot, place], best, share)
        after = jnp.stack([number - 1, column, state[asked, 2] + halves], axis=1)
        return state.at[jnp.where(number > 0, asked, near.size)].set(after, mode="drop")

    # Of each row under each list: near items left, the last column looked at, twice those ahead.
    nothing = jnp.zeros_like(near).reshape(-1)
    start = jnp.stack([near.reshape(-1), nothing - 1, nothing], axis=1)
    start = numerics.varying_like(start, scored)
    state = lax.while_loop(lambda state: (state[:, 0] > 0).any(), rescore_next, start)
    return state[:, 2].reshape(near.shape)


def _ahead(scores: jax.Array, best: jax.Array, share: float) -> jax.Array:
    """int32, 2 where a score is above the best right one, 2 share where it is level."""
    above, at_least = ((array).astype(jnp.int32) for array in (scores > best, scores >= best))
    return round(2 - 2 * share) * above + round(2 * share) * at_least


def rank(twice_ahead: jax.Array, answered: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1 + the items ahead, NaN where there is no right one."""
    rank = 1 + twice_ahead.astype(numerics.accumulation_dtype(dtype)) / 2
    return jnp.where(answered, rank, jnp.nan)


def share_of_ties(ties: str) -> float:
    """What `ties` says, checked."""
    if ties not in _TIES:
        raise checks.BadValueError("ties", f" must be one of {sorted(_TIES)}, got {ties!r}")
    return _TIES[ties]
