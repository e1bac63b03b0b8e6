"""Streamed ranks: how many wrong items are ahead of each query's best right one.

The score of the right item comes first, from its own vector; then one pass over the gallery counts.
`count_ahead_of_each` counts all items, for each right one alone.

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
from dbnorm_jax._src.passes import selection
from dbnorm_jax._src.passes.nearest import PAIRS, Scoring, count_lists, less_mixtures, scores_dtype
from dbnorm_jax._src.passes.selection import Nearest, Offsets
from dbnorm_jax._src.passes.streaming import COLUMNS, Block, scan_chunks
from dbnorm_jax._src.passes.sweep import Chunk, Items, Pass, Rows, Tile, Tiling, sweep

TIES = ("average", "harmonic", "min", "max")
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
    similarity_fn: SimilarityFn,
    chunk_size: int,
    unseen: jax.Array | None = None,
    valid: jax.Array | None = None,
    merge_best: Callable[[jax.Array], jax.Array] = lambda best: best,
) -> tuple["Ahead", Nearest]:
    """Counts the wrong items ahead of each query's best right item, in one pass.

    `relevant` [num_queries, num_right] are gallery rows, -1 for none; none of them is `unseen`, all
    are `valid`, and all else is as in `nearest_items`. `merge_best` is what becomes of the scores
    [size, num_lists] of the best right items of some queries before others are compared with them.

    Returns:
      Ahead of [num_queries, num_lists], and Nearest of [num_queries] of the first list.
    """
    fixed, score, best, add = _scored_alone(queries, gallery, offsets, mixtures, similarity_fn)
    right = distinct(relevant)
    best = numerics.varying_like(best, fixed, right)
    best = lax.scan(lambda best, column: (add(best, column), None), best, right.T)[0]
    merged = merge_best(best.scores)
    best = Best(merged, jnp.where(best.scores == merged, best.level, 0))
    asked = ask(fixed[0], right, best, fixed[3], unseen)
    return _swept(counts_pass(score, best.scores.shape[1]), asked, fixed, score, chunk_size, valid)


def count_ahead_of_each(
    queries: jax.Array,
    gallery: jax.Array,
    relevant: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    *,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    unseen: jax.Array | None = None,
    valid: jax.Array | None = None,
    merge_best: Callable[[jax.Array], jax.Array] = lambda best: best,
) -> tuple[tuple[jax.Array, jax.Array], Nearest]:
    """Counts the other items above each right item alone, and level with it, in one pass.

    As `count_ahead`, but of `relevant` none is repeated, and the right items count as well.

    Returns:
      Two of [num_queries, num_lists, num_right] int32, and Nearest of [num_queries].
    """
    fixed, score, none, add = _scored_alone(queries, gallery, offsets, mixtures, similarity_fn)
    scores = lax.scan(lambda _, column: (None, add(none, column).scores), None, relevant.T)[1]
    scores = merge_best(jnp.moveaxis(scores, 0, 2))
    best = Best(scores, jnp.zeros(scores.shape, jnp.int32))
    unseen = None if unseen is None else distinct(unseen)
    asked = Asked(relevant, best, similarity.norms(fixed[0]), fixed[3], unseen)
    return _swept(_each_pass(score, *scores.shape[1:]), asked, fixed, score, chunk_size, valid)


def _scored_alone(
    queries: Any, gallery: Any, offsets: Any, mixtures: Any, similarity_fn: SimilarityFn
) -> tuple[tuple[Any, ...], Scoring, "Best", Callable[["Best", jax.Array], "Best"]]:
    """What is counted with, and what adds a right item [num_queries] of each query to the best.

    Returns:
      Queries, gallery, offsets and mixtures, how pairs are scored, the best of none, and `add`.
    """
    # Counts are steps: they have no slope.
    fixed = lax.stop_gradient((queries, gallery, offsets, mixtures))
    queries, gallery, offsets, mixtures = fixed
    score = Scoring(similarity_fn, scores_dtype(queries, gallery, offsets))

    def pick(column: jax.Array) -> tuple[jax.Array, Offsets]:
        return gallery[column], selection.by_list(None if offsets is None else offsets[column])

    def add(best: Best, column: jax.Array) -> Best:
        return add_right(best, column >= 0, score, queries, mixtures, column, pick)

    num_lists = count_lists(offsets, mixtures)
    return fixed, score, start_best((queries.shape[0], num_lists), score.dtype), add


def _swept(
    kept: Pass, asked: "Asked", fixed: tuple[Any, ...], score: Scoring, chunk_size: int, valid: Any
) -> Any:
    queries, gallery, offsets, _ = fixed
    items = Items(gallery, selection.by_list(offsets), valid)
    tiling = Tiling(score.similarity_fn, score.dtype, chunk_size)
    return sweep(kept, Rows(queries, asked), items, tiling).outputs


class Ahead(NamedTuple):
    """Numbers of items [...] int32 ahead of the best right one, and level with it."""

    above: jax.Array  # wrong items
    level: jax.Array  # wrong items
    right: jax.Array  # right items that are level, the best one included


def pack(first: jax.Array, second: jax.Array) -> jax.Array:
    """Two of bool as one of float32, for one sum; of fewer than _UNIT of them it is exact."""
    return first.astype(jnp.float32) + _UNIT * second.astype(jnp.float32)


def packed_sum(packed: jax.Array, counted: jax.Array) -> jax.Array:
    """[...] of [..., columns]; those count whose `counted` [columns] is 1."""
    # A product with ones sums faster than a sum does.
    return jnp.matmul(packed, counted, precision=lax.Precision.HIGHEST)


def unpack(total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The int32 counts of a sum."""
    total = total.astype(jnp.int32)
    return total % _UNIT, total // _UNIT


def count_both(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[...] int32, how many of each [..., columns] bool are True: one pass finds both."""
    total = jnp.zeros((2, *first.shape[:-1]), jnp.int32)
    for start in range(0, first.shape[-1], _UNIT - 1):
        part = slice(start, start + _UNIT - 1)
        both = pack(first[..., part], second[..., part])
        total += jnp.stack(unpack(packed_sum(both, jnp.ones(both.shape[-1:], both.dtype))))
    return total[0], total[1]


class Best(NamedTuple):
    """The best right items so far."""

    scores: jax.Array  # [num_queries, num_lists], -inf where there is none
    level: jax.Array  # [num_queries, num_lists] int32, how many right items have this score


def start_best(shape: tuple[int, ...], dtype: jnp.dtype) -> Best:
    return Best(jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, jnp.int32))


def add_right(
    best: Best,
    there: jax.Array,
    score: Scoring,
    queries: jax.Array,
    mixtures: jax.Array | None,
    right: Any,
    pick: Callable[[Any], tuple[jax.Array, Offsets]] = lambda right: right,
) -> Best:
    """Adds one right item of each query that has one; `pick(right)` are items and their offsets."""

    def block_scores(carry: None, block: Block) -> tuple[None, jax.Array]:
        rows, places, mixture = block.rows
        return carry, score.pairs(rows, mixture, *pick(places))

    scores = scan_chunks(block_scores, None, (queries, right, mixtures), PAIRS)[1]
    scores = jnp.where(there[:, None], scores, -jnp.inf)
    level = best.level + (scores == best.scores).astype(jnp.int32)
    higher = scores > best.scores
    return Best(jnp.where(higher, scores, best.scores), jnp.where(higher, 1, level))


def distinct(right: jax.Array) -> jax.Array:
    """[num_queries, num_right] int32 gallery rows, each once, -1 in place of what repeats one."""
    right = jnp.sort(right, axis=1)
    again = jnp.pad(right[:, 1:] == right[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(again, -1, right)


class Counts(NamedTuple):
    """Items counted so far."""

    above: jax.Array  # [num_queries, num_lists, ...] int32
    level: jax.Array  # likewise
    nearest: Nearest  # [num_queries, 1, 1] of the first list


class Asked(NamedTuple):
    """What goes with queries."""

    passed: jax.Array  # [num_queries, most] int32 gallery rows that do not count, -1 for none
    best: Best
    norms: jax.Array  # [num_queries]
    mixtures: jax.Array | None
    unseen: jax.Array | None  # [num_queries, most] int32, those of them that are not seen


def ask(queries: jax.Array, right: jax.Array, best: Best, mixtures: Any, unseen: Any) -> Asked:
    """What goes with queries of these right items, none of them repeated."""
    passed = right if unseen is None else distinct(jnp.concatenate([right, unseen], axis=1))
    return Asked(passed, best, similarity.norms(queries), mixtures, unseen)


def seen_right(right: jax.Array, unseen: jax.Array | None, valid: Any) -> jax.Array:
    """Right items [num_queries, num_right] that their query sees; -1 in place of others."""
    if valid is not None:
        right = jnp.where(jnp.asarray(valid)[jnp.maximum(right, 0)], right, -1)
    if unseen is not None:
        right = jnp.where(selection.is_apart(unseen[:, None], right), right, -1)
    return right


def counts_pass(score: Scoring, num_lists: int) -> Pass:
    """Outputs (Ahead, Nearest); rows own what they ask, items their offsets."""

    def count(tile: Tile, similarities: jax.Array, left: Offsets) -> Any:
        asked: Asked = tile.rows.own
        return _count_tile(score, tile, similarities, left, asked.passed, asked.best.scores)

    def ahead(counts: Counts, rows: Chunk) -> Ahead:
        return Ahead(counts.above, counts.level, rows.own.best.level)

    return _counting(score, (num_lists,), count, ahead)


def _each_pass(score: Scoring, num_lists: int, num_right: int) -> Pass:
    """As `counts_pass`, but outputs (above, level) are of each right item, against all others."""

    def count(tile: Tile, similarities: jax.Array, left: Offsets) -> Any:
        right, best, _, _, unseen = tile.rows.own

        def of_one(_: None, asked: tuple[jax.Array, jax.Array]) -> tuple[None, Any]:
            item, best = asked
            passed = item[:, None]
            if unseen is not None:
                passed = jnp.concatenate([passed, unseen], axis=1)
            return None, _count_tile(score, tile, similarities, left, passed, best)

        asked = right.T, jnp.moveaxis(best.scores, 2, 0)
        return (jnp.moveaxis(part, 0, 2) for part in lax.scan(of_one, None, asked)[1])

    shape = num_lists, num_right
    return _counting(score, shape, count, lambda counts, _: (counts.above, counts.level))


def _counting(
    score: Scoring,
    shape: tuple[int, ...],
    count: Callable[[Tile, jax.Array, Offsets], Any],
    outputs: Callable[[Counts, Chunk], Any],
) -> Pass:
    """Counts above and level, each [num_rows, *shape], that `count` finds tile by tile.

    It takes a tile, its similarities less the mixtures, and the offsets that are left.
    """

    def start(rows: Chunk) -> Counts:
        none = jnp.zeros((rows.size, *shape), jnp.int32)
        return Counts(none, none, selection.start_nearest((rows.size, 1, 1), score.dtype))

    def add(counts: Counts, _: None, tile: Tile) -> tuple[Counts, None]:
        asked: Asked = tile.rows.own
        similarities, left = less_mixtures(tile.similarities, asked.mixtures, tile.own)
        first = None if left is None else left[:1]
        seen = selection.seen_by(asked.unseen, tile.start)
        nearest = selection.add_tile(
            counts.nearest, similarities, first, tile.start, valid=tile.valid, seen=seen
        )
        above, level = count(tile, similarities, left)
        return Counts(counts.above + above, counts.level + level, nearest), None

    def finish(total: None, counts: Counts, rows: Chunk) -> tuple[None, Any]:
        first = Nearest(*(part[:, 0, 0] for part in counts.nearest))
        return total, (outputs(counts, rows), first)

    return Pass(add, start, finish)


def _count_tile(
    score: Scoring,
    tile: Tile,
    similarities: jax.Array,
    left: Offsets,
    passed: jax.Array,
    best: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """[num_rows, num_lists] int32 items of a tile above `best` of this shape, and level with it.

    `similarities` are those of the tile less the mixtures, `left` the offsets that are left. Of
    the items, `passed` [num_rows, most] gallery rows, none of them repeated, do not count.
    """
    _, _, norms, mixtures, _ = tile.rows.own
    vectors, items, own = tile.rows.vectors, tile.items, tile.own
    # Counted from the same tile as the others, they are taken out again exactly.
    column, num_items = passed - tile.start, len(items)
    inside = (passed >= 0) & (column >= 0) & (column < num_items)
    if tile.valid is not None:
        inside &= tile.valid[jnp.where(inside, column, 0)]
    scored = _Scored(
        similarities,
        left,
        jnp.where(inside, column, num_items),
        tile.valid,
        best,
        score.rounding(norms, mixtures, items, own, tile.similarities, best),
    )

    def pairs(row: jax.Array, column: jax.Array) -> jax.Array:
        offsets = None if own is None else tuple(offset[column] for offset in own)
        mixed = None if mixtures is None else mixtures[row]
        return score.pairs(vectors[row], mixed, items[column], offsets)

    counted = [_count(scored, place) for place in range(best.shape[1])]
    above, near = (jnp.stack(part, axis=1) for part in zip(*counted, strict=True))
    of_near, level = _rescored(scored, near, pairs)
    return above + of_near, level


class _Scored(NamedTuple):
    """A tile of scores, and what is asked of it."""

    similarities: jax.Array  # [num_rows, num_columns]
    offsets: Offsets  # num_lists of [num_columns]
    passed: jax.Array  # [num_rows, most] columns that do not count, num_columns for none
    valid: jax.Array | None  # [num_columns] bool
    best: jax.Array  # [num_rows, num_lists]
    rounding: jax.Array  # [num_rows, num_lists], how far scores of the tile may be off


def _count(scored: _Scored, place: int) -> tuple[jax.Array, jax.Array]:
    """[num_rows] int32 wrong items surely above the best right one, and those near it."""
    best, rounding = scored.best[:, place, None], scored.rounding[:, place, None]
    num_columns = scored.similarities.shape[1]
    counted = jnp.ones(num_columns, jnp.float32)
    if scored.valid is not None:
        counted = jnp.where(scored.valid, counted, 0)
    offset = None if scored.offsets is None else scored.offsets[place]

    def compared(scores: jax.Array) -> jax.Array:
        return pack(scores > best + rounding, scores >= best - rounding)

    def count(similarities: jax.Array, *, careful: bool) -> jax.Array:
        scores = similarities if offset is None else similarities - offset[None]
        if careful:
            scores = numerics.below_every_number(scores)
        return packed_sum(compared(scores), counted)

    # NaN is ahead of nothing, and level with NaN only.
    total = lax.cond(
        numerics.is_number(best).all(),
        partial(count, careful=False),
        partial(count, careful=True),
        scored.similarities,
    )
    inside = scored.passed < num_columns
    column = jnp.where(inside, scored.passed, 0)
    own = jnp.take_along_axis(scored.similarities, column, axis=1)
    own = compared(numerics.below_every_number(own if offset is None else own - offset[column]))
    above, at_least = unpack(total - jnp.where(inside, own, 0).sum(axis=1))
    return above, at_least - above


def _rescored(
    scored: _Scored, near: jax.Array, pairs: Callable[[jax.Array, jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """[num_rows, num_lists] int32 items above the best right one, and level with it.

    Of `near` [num_rows, num_lists] wrong items near it, by scores of their own: `pairs` takes rows
    [num_pairs] and columns [num_pairs], and gives [num_pairs, num_lists].
    """
    num_lists = near.shape[1]
    num_columns = scored.similarities.shape[1]
    columns = lax.iota(jnp.int32, num_columns)
    offsets = None if scored.offsets is None else jnp.stack(scored.offsets)
    slots = min(PAIRS, near.size)
    slot = lax.iota(jnp.int32, slots)

    def rescore_next(state: jax.Array) -> jax.Array:
        """The next near item of some rows, each under one of its lists."""
        (asked,) = jnp.nonzero(state[:, 0], size=slots, fill_value=near.size)
        left, last, above, level = state[asked].T
        row, place = jnp.divmod(asked, num_lists)  # of what fills, the last
        scores = scored.similarities[row]
        if offsets is not None:
            scores -= offsets[place]
        scores = numerics.below_every_number(scores)
        best, rounding = scored.best[row, place], scored.rounding[row, place]
        is_near = (scores >= (best - rounding)[:, None]) & ~(scores > (best + rounding)[:, None])
        is_near &= columns[None] > last[:, None]
        if scored.valid is not None:
            is_near &= scored.valid[None]
        column = jnp.where(is_near, columns[None], num_columns).min(axis=1)
        score = pairs(row, column)[slot, place]
        # Those that do not count are near as well, but are none of those that are left.
        counts = (column < num_columns) & selection.is_apart(scored.passed[row], column)
        found = [counts & relation for relation in (True, score > best, score == best)]
        one, is_above, is_level = (part.astype(jnp.int32) for part in found)
        left = jnp.where(column < num_columns, left - one, 0)
        after = jnp.stack([left, column, above + is_above, level + is_level], axis=1)
        return state.at[asked].set(after, mode="drop")

    # Of each row under each list: near items left, the last column looked at, above, level.
    nothing = jnp.zeros_like(near).reshape(-1)
    start = jnp.stack([near.reshape(-1), nothing - 1, nothing, nothing], axis=1)
    start = numerics.varying_like(start, scored)
    state = lax.while_loop(lambda state: (state[:, 0] > 0).any(), rescore_next, start)
    return state[:, 2].reshape(near.shape), state[:, 3].reshape(near.shape)


def rank(ahead: Ahead, answered: jax.Array, dtype: jnp.dtype, ties: str) -> jax.Array:
    """1 + the wrong items ahead, +inf where nothing is right.

    In a random order of w wrong and r right items that are level, each wrong one stands before all
    right ones with probability 1 / (r + 1): it is the first of r + 1.
    """
    dtype = numerics.accumulation_dtype(dtype)
    above, level, right = (part.astype(dtype) for part in ahead)
    if ties == "harmonic":
        reciprocal = _reciprocal(1 + above, level, right)
        first = 1 / jnp.where(answered, reciprocal, 1)
    else:
        before = {"average": level / (right + 1), "min": jnp.zeros_like(level), "max": level}
        first = 1 + above + before[ties]
    return jnp.where(answered, first, jnp.inf)


def success(ahead: Ahead, k: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """[...] the probability that a right item is among the first k, in a random order of the tied.

    Of n level items, r of them right, m fill the first k places. None of these is right with
    probability C(n - m, r) / C(n, r), the product over i < r of (n - m - i) / (n - i). It is
    symmetric in m and r, so the shorter product is taken.
    """
    dtype = numerics.accumulation_dtype(dtype)
    above, level, right = ahead
    total = level + right
    filled = jnp.clip(k - above, 0, total)
    fewer, more = jnp.minimum(filled, right), jnp.maximum(filled, right)

    def times(step: jax.Array, missed: jax.Array) -> jax.Array:
        rest, of = jnp.maximum(total - more - step, 0), jnp.maximum(total - step, 1)
        share = rest.astype(dtype) / of.astype(dtype)
        return jnp.where(step < fewer, missed * share, missed)

    most = fewer.max(initial=0)
    return 1 - lax.fori_loop(0, most, times, jnp.ones(total.shape, dtype))


def _reciprocal(best: jax.Array, wrong: jax.Array, right: jax.Array) -> jax.Array:
    """Expectation of 1 / place of the first right one of those that are level, from `best` on.

    It has j wrong ones before it with probability p_j, where p_0 = r / (w + r), and of those that
    are left after j wrong ones each is next alike: p_{j+1} = p_j (w - j) / (w + r - 1 - j).
    """

    def add(state: Any) -> Any:
        place, share, total = state
        left = jnp.maximum(wrong + right - 1 - place, 1)
        return place + 1, share * (wrong - place) / left, total + share / (best + place)

    share = right / jnp.maximum(wrong + right, 1)
    start = jnp.zeros((), wrong.dtype), share, numerics.varying_like(jnp.zeros_like(share), share)
    total: jax.Array = lax.while_loop(lambda state: (state[0] <= wrong).any(), add, start)[2]
    return total


def check_ties(ties: str) -> str:
    """What `ties` says, checked."""
    if ties not in TIES:
        raise checks.BadValueError("ties", f" must be one of {sorted(TIES)}, got {ties!r}")
    return ties
