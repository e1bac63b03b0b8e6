"""Which bank items decide a top-1: what becomes of it when one of them goes or moves, streamed."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, log_mean_exp, similarity
from dbnorm_jax._src.core.log_mean_exp import Means
from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.core.similarity import SimilarityFn, check_streamed, dot_product
from dbnorm_jax._src.core.types import BankStatistics, Correction, SearchResult
from dbnorm_jax._src.insight.influence import (
    check_statistics,
    means_of_each,
    occurrence_of_each,
    without_each,
    without_the_first,
)
from dbnorm_jax._src.passes import streaming
from dbnorm_jax._src.passes.streaming import Block, scan_chunks
from dbnorm_jax._src.passes.sweep import Tiling
from dbnorm_jax._src.retrieval.search import stream_top_k
from dbnorm_jax._src.statistics.bank import row_weights

# Bank items left out or moved side by side, each with its own bias of the whole gallery.
_AT_ONCE = 8
# The weight of a term is read off its bias; the two may differ by rounding.
_ROUNDING = 1e-4
# Roundings behind a score.
_ROUNDED = 8


class Top1Flips(NamedTuple):
    """What becomes of each query's top-1 when one bank item goes or moves.

    Attributes:
      num_flips: [num_items] int32, the queries whose top-1 is another one without the item.
      num_undecided: [num_items] int32, those that an item beyond the rivals may win besides.
      top_1: [num_queries] int32, the gallery row of the top-1 with the whole bank.
      margin: [num_queries], its lead over the best other item; infinite where there is none.
      item: [num_queries] int32, the bank row without which the least of that lead is left.
      margin_left: [num_queries], the lead without that row, negative where another item wins.
      new_top_1: [num_queries] int32, the top-1 without that row.
    """

    num_flips: jax.Array
    num_undecided: jax.Array
    top_1: jax.Array
    margin: jax.Array
    item: jax.Array
    margin_left: jax.Array
    new_top_1: jax.Array


publish("dbnorm_jax.attribution", Top1Flips)


def top_1_flips(
    *,
    queries: ArrayLike,
    gallery: ArrayLike,
    correction: Correction,
    bank: ArrayLike,
    statistics: BankStatistics,
    term: int = 0,
    items: ArrayLike | None = None,
    moved: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    k: int | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> Top1Flips:
    """Which bank items, if they go or move, flip which top-1.

    Removal is the closed form that the derivative begins: with the responsibility `p_b(g)`, of the
    bias of Wang, Jian and Xue, EMNLP 2023, and the share a_b of b in the weights,

        bias without b = bias + (log(1 - p_b(g)) - log(1 - a_b)) / beta
                       = bias - (p_b(g) - a_b) / beta - (p_b(g)^2 - a_b^2) / (2 beta) - ...,

    and where b moves, so that its similarities change by d(g), it is
    `bias + log(1 + p_b(g) (exp(beta d(g)) - 1)) / beta = bias + p_b(g) d(g) + ...`. Gates are those
    of the bank's activation set without the item, or with it where it is now.

    Of each query, the top-1 and its `k` next items are looked at, its rivals. What is counted is a
    flip. Items that are level up to rounding, such as copies, do not flip. Where an item beyond the
    rivals may rise to the top, the query is undecided.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim] embeddings.
      correction: fields [num_terms, num_gallery]; one term is a multiple of the bank's bias, as in
        IS, DIS, DualIS and DualDIS.
      bank: [num_bank, dim] embeddings.
      statistics: of this bank and gallery, fields [num_gallery]; with `k >= 1` for a gated term.
      term: number of the bank's term in the correction (static).
      items: optional int [num_items], the bank rows to leave out, one at a time; all when None.
      moved: optional [num_items, dim], where each of them moves to; None = it goes.
      weights: optional [num_bank], those that the statistics were made with.
      k: rivals of a top-1, between 1 and num_gallery; by default 15, or all of fewer (static).
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: queries or bank rows held at once (static).

    Returns:
      Top1Flips of [num_items] and [num_queries]. It costs two passes of bank x gallery, a search,
      and `k` looks for each pair of a bank row and a query.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, statistics of another gallery or not
        behind the term, items, term or k out of range, soft gates.
      TypeError: embeddings that are not floating point, items that are not integers.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> known = {"bank": [[1.0, 0.0], [0.6, 0.8]], "gallery": [[1.0, 0.0], [0.0, 1.0]]}
      >>> known["statistics"] = dbn.stream_bank_statistics(**known, beta=10.0)
      >>> known["correction"] = dbn.inverted_softmax(known["statistics"])
      >>> found = dbn.attribution.top_1_flips(queries=[[0.75, 0.7]], **known)
      >>> print(found.num_flips, found.top_1, found.item, found.new_top_1)
      [1 0] [1] [0] [0]
    """
    queries = checks.embeddings("queries", queries)
    bank, gallery = similarity.checked_rows(similarity_fn, bank=bank, gallery=gallery)
    checks.same_dimension("queries", queries, "gallery", gallery)
    similarity.check_rows(similarity_fn, queries=queries)
    num_bank, num_gallery = bank.shape[0], gallery.shape[0]
    check_streamed(correction, num_gallery)
    correction = checks.unsplit(correction)
    statistics = check_statistics(statistics, gallery)
    for name, state in {"correction": correction, "statistics": statistics}.items():
        similarity.check_similarity(name, state, similarity_fn, queries, bank, gallery)
    term = checks.integer("term", term, low=0, high=correction.num_terms - 1, of=" (terms)")
    weight = _weight_of(term, correction, statistics)
    if items is None:
        items = jnp.arange(num_bank, dtype=jnp.int32)
    items = checks.indices("items", items, low=0, high=num_bank, ndim=1, of="bank rows")
    if not len(items):
        raise checks.BadValueError("items", " must name at least one bank row, got none")
    if moved is not None:
        moved = checks.embeddings("moved", moved)
        checks.same_dimension("moved", moved, "gallery", gallery)
        similarity.check_rows(similarity_fn, moved=moved)
        if len(moved) != len(items):
            raise checks.BadValueError(
                "moved", f" must have one row per item, expected {len(items)}, got {len(moved)}"
            )
    k = checks.neighbors("k", k, 15, high=num_gallery, of=" (gallery items)")
    dtype = statistics.bias.dtype
    weights = row_weights(weights, num_bank, dtype)
    tiling = Tiling(similarity_fn, dtype, checks.integer("chunk_size", chunk_size, low=1))
    weights = jnp.ones(num_bank, dtype) if weights is None else weights
    # Programs of their own, which other functions share.
    raw, lists = _searched(queries, gallery, correction, term, min(k + 1, num_gallery), tiling)
    rest = without_the_first(bank, gallery, weights, statistics.beta, tiling)
    known = _Known(bank, gallery, weights, statistics, rest, weight)
    return _top_1_flips(raw, lists, correction, known, (items, moved), term=term, tiling=tiling)


def _searched(
    queries: jax.Array,
    gallery: jax.Array,
    correction: Correction,
    term: int,
    k: int,
    tiling: Tiling,
) -> tuple[SearchResult | None, list[SearchResult]]:
    """(the raw search that gates read, the searches where the term acts and where it does not)."""
    how: dict[str, Any] = {
        "similarity_fn": tiling.similarity_fn,
        "chunk_size": tiling.chunk_size,
    }
    if correction.active is None:
        return None, [stream_top_k(queries, gallery, k, correction, **how)]
    raw = stream_top_k(queries, gallery, 1, **how)
    gates = _gates_of(correction, raw)
    each = (gates.at[:, term].set(gate) for gate in (1, 0))
    return raw, [stream_top_k(queries, gallery, k, correction, gates=one, **how) for one in each]


@jax.jit
def _gates_of(correction: Correction, raw: SearchResult) -> jax.Array:
    """[num_queries, num_terms] as `search.gates` has them."""
    assert correction.active is not None
    return correction.active[:, raw.indices[:, 0]].T.astype(correction.bias.dtype)


def _weight_of(term: int, correction: Correction, statistics: BankStatistics) -> jax.Array:
    """The number of times the bias of the statistics that a term of the correction is."""
    if correction.active is not None:
        if correction.active.dtype != bool:
            raise checks.BadValueError(
                "correction",
                f" must have gates of bool here, got soft ones of dtype {correction.active.dtype}",
            )
        if statistics.active is None:
            raise checks.BadValueError(
                "statistics",
                " must have an activation set for a gated term, got k=0; make them with k >= 1",
            )
    weight, error, same_gates = _read_off(correction, statistics, term=term)
    if checks.is_concrete(weight):
        for known, wrong in {"bias": error > _ROUNDING, "activation set": ~same_gates}.items():
            if wrong:
                raise checks.BadValueError(
                    "statistics",
                    f" must be those behind term {term} of `correction`, got another {known}; "
                    f"name the bank's `term`, and fit both to the same bank and gallery",
                )
    return weight


@partial(jax.jit, static_argnames="term")
def _read_off(
    correction: Correction, statistics: BankStatistics, *, term: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The weight, the largest error of the bias under it, and whether the gates are the same."""
    own, whole = correction.bias[term].astype(statistics.bias.dtype), statistics.bias
    sizes = [jnp.where(part == 0, 1, part) for part in (abs(own).max(), abs(whole).max())]
    own, whole = own / sizes[0], whole / sizes[1]
    squares = (whole**2).sum()
    weight = (own * whole).sum() / jnp.where(squares > 0, squares, 1)
    same = jnp.array(True)
    if correction.active is not None:
        same = jnp.all(correction.active[term] == statistics.active)
    return weight * sizes[0] / sizes[1], abs(own - weight * whole).max(), same


class _Contest(NamedTuple):
    """The items that may be a query's top-1, where the term acts or where it does not."""

    own: jax.Array  # [num_queries], score of the present top-1
    rivals: jax.Array  # [num_queries, k], scores of the others
    places: jax.Array  # [num_queries, k] int32, their gallery rows
    edge: jax.Array  # [num_queries], no item beyond the rivals scores more
    level: jax.Array  # [num_queries], what rounding may make of two equal scores


class _State(NamedTuple):
    """What is known of each query before any bank item is touched."""

    top_1: jax.Array
    first: jax.Array | None  # raw top-1, which the gate reads
    open: _Contest
    closed: _Contest | None  # None: the term always acts


class _Verdict(NamedTuple):
    """[...] what a query's top-1 has left, and who wins."""

    margin: jax.Array
    winner: jax.Array
    flips: jax.Array


class _Known(NamedTuple):
    """What a bank says, and of how much of it the scores are less."""

    bank: jax.Array
    gallery: jax.Array
    weights: jax.Array  # [num_bank]
    statistics: BankStatistics
    rest: tuple[jax.Array, Means]  # `without_the_first`
    weight: jax.Array  # scalar


@partial(jax.jit, static_argnames=("term", "tiling"))
def _top_1_flips(
    raw: SearchResult | None,
    lists: list[SearchResult],
    correction: Correction,
    known: _Known,
    change: tuple[jax.Array, jax.Array | None],
    *,
    term: int,
    tiling: Tiling,
) -> Top1Flips:
    state, present = _before(raw, lists, correction, term)

    def add(so_far: _Worst, block: Block) -> tuple[_Worst, jax.Array]:
        rise, active = _changed(known, *block.rows, gated=raw is not None, tiling=tiling)
        counts, found = _asked(state, rise, active, block.rows[0], tiling.chunk_size)
        less = found.margin < so_far.margin
        return jax.tree.map(partial(jnp.where, less), found, so_far), counts.T

    items, _ = change
    first = jnp.broadcast_to(items[0], state.top_1.shape)
    start = _Worst(jnp.full_like(present, jnp.inf), first, state.top_1)
    worst, counts = scan_chunks(add, start, change, _AT_ONCE)
    flips, undecided = counts.T
    return Top1Flips(flips, undecided, state.top_1, present, worst.item, worst.margin, worst.winner)


class _Worst(NamedTuple):
    """[num_queries] the bank row that leaves the least of a lead, and what comes of it."""

    margin: jax.Array
    item: jax.Array
    winner: jax.Array


def _changed(
    known: _Known, items: jax.Array, moved: jax.Array | None, *, gated: bool, tiling: Tiling
) -> tuple[jax.Array, jax.Array | None]:
    """[size, num_gallery] by how much the scores rise where the term acts, and its activation set.

    Of bank rows [size] that go, or move to [size, dim].
    """
    _, gallery, weights, statistics, rest, weight = known
    weights = weights[items]

    def similarities(rows: jax.Array) -> jax.Array:
        return similarity.tile(tiling.similarity_fn, rows, gallery).astype(tiling.dtype)

    before, after = similarities(known.bank[items]), None
    means = without_each(items, before, weights, statistics, rest)
    if moved is not None:
        after = similarities(moved)
        parts = means, means_of_each(after, weights)
        both = jax.tree.map(lambda *fields: jnp.stack(fields), *parts)
        means = log_mean_exp.merged(both, statistics.beta[None, None])
    rise = weight * (statistics.bias[None] - means.bias)
    if not gated:
        return rise, None
    assert statistics.k_occurrence is not None
    counts = statistics.k_occurrence[None]
    counts = counts - occurrence_of_each(before, weights, statistics.k)
    if after is not None:
        counts = counts + occurrence_of_each(after, weights, statistics.k)
    return rise, counts > 0


def _asked(
    state: _State,
    rise: jax.Array,
    active: jax.Array | None,
    items: jax.Array,
    chunk_size: int,
) -> tuple[jax.Array, _Worst]:
    """[2, num_items] flips and undecided queries of some changes, and the worst for each query."""
    highest = rise.max(axis=1)

    def ask(counts: jax.Array, block: Block) -> tuple[jax.Array, _Worst]:
        asked: _State = block.rows
        verdict = _verdict(asked.open, asked.top_1, rise)
        beyond = asked.open.edge[None] + highest[:, None]
        undecided = (beyond >= _own(asked.open, asked.top_1, rise)) & ~verdict.flips
        if active is not None:
            assert asked.closed is not None
            closed = _verdict(asked.closed, asked.top_1, jnp.zeros_like(rise))
            acts = active[:, asked.first]
            verdict = jax.tree.map(partial(jnp.where, acts), verdict, closed)
            undecided &= acts
        each = jnp.stack([verdict.flips, undecided])
        if block.fresh is not None:
            each &= block.fresh[None, None]
        worst, places = jnp.argmin(verdict.margin, axis=0), jnp.arange(asked.top_1.shape[0])
        margin, winner = (of[worst, places] for of in (verdict.margin, verdict.winner))
        return counts + each.sum(axis=2, dtype=jnp.int32), _Worst(margin, items[worst], winner)

    none = jnp.zeros((2, items.shape[0]), jnp.int32)
    return scan_chunks(ask, none, state, chunk_size)


def _before(
    raw: SearchResult | None, lists: list[SearchResult], correction: Correction, term: int
) -> tuple[_State, jax.Array]:
    """The state of the queries with the whole bank, and the lead of their top-1."""
    still = jnp.zeros((1, correction.num_gallery), lists[0].scores.dtype)
    top_1, best = lists[0].indices[:, 0], lists[0].scores[:, 0]
    if raw is None:
        contest = _contest(lists[0], best, top_1, correction)
        return _State(top_1, None, contest, None), _verdict(contest, top_1, still).margin[0]
    acts = _gates_of(correction, raw)[:, term] > 0
    top_1 = jnp.where(acts, top_1, lists[1].indices[:, 0])
    best = jnp.where(acts, best, lists[1].scores[:, 0])
    bias = correction.bias[term, top_1].astype(best.dtype)
    own = jnp.where(acts, best, best - bias), jnp.where(acts, best + bias, best)
    contests = [
        _contest(found, score, top_1, correction) for found, score in zip(lists, own, strict=True)
    ]
    opened, closed = (_verdict(contest, top_1, still).margin[0] for contest in contests)
    return _State(top_1, raw.indices[:, 0], *contests), jnp.where(acts, opened, closed)


def _contest(
    found: SearchResult, own: jax.Array, top_1: jax.Array, correction: Correction
) -> _Contest:
    mine = found.indices == top_1[:, None]
    # As it was searched, if it is in the list: what is level then stays level.
    searched = jnp.where(mine, found.scores, 0).sum(axis=1)
    own = jnp.where(mine.any(axis=1), searched, own)
    edge = found.scores[:, -1]
    if found.scores.shape[1] == correction.num_gallery:
        edge = jnp.full_like(own, -jnp.inf)
    # A score is a similarity less its biases, each rounded at its own size.
    size = abs(own) + 2 * abs(correction.bias).max(axis=1).sum().astype(own.dtype)
    eps = jnp.finfo(own.dtype).eps  # type: ignore[no-untyped-call]
    level = _ROUNDED * eps * size
    return _Contest(own, jnp.where(mine, -jnp.inf, found.scores), found.indices, edge, level)


def _own(contest: _Contest, top_1: jax.Array, rise: jax.Array) -> jax.Array:
    """[num_changes, num_queries] scores of the present top-1 where each score rises so much."""
    return contest.own[None] + rise[:, top_1]


def _verdict(contest: _Contest, top_1: jax.Array, rise: jax.Array) -> _Verdict:
    """[num_changes, num_queries] where the scores rise by [num_changes, num_gallery]."""
    own, rivals = _own(contest, top_1, rise), contest.rivals[None] + rise[:, contest.places]
    best = rivals.max(axis=-1)
    first, none = rivals == best[..., None], jnp.int32(checks.MOST_ROWS)
    # Ties go to the lowest gallery index, as in every search.
    winner = jnp.where(first, contest.places[None], none).min(axis=-1)
    flips = best > own + contest.level[None]
    return _Verdict(own - best, jnp.where(flips, winner, top_1[None]), flips)
