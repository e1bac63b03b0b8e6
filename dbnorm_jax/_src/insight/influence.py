"""What each bank item is worth: the change of R@1 when it is left out, exact and streamed."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, log_mean_exp, relevance, similarity
from dbnorm_jax._src.core.log_mean_exp import Means
from dbnorm_jax._src.core.relevance import Relevant
from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product
from dbnorm_jax._src.core.types import BankStatistics
from dbnorm_jax._src.passes import counts, selection, streaming
from dbnorm_jax._src.passes.selection import Nearest, add_tile, start_nearest
from dbnorm_jax._src.passes.streaming import Block, scan_chunks
from dbnorm_jax._src.passes.sweep import Items, Pass, Rows, Tile, Tiling, sweep
from dbnorm_jax._src.statistics.bank import row_weights

# Bank items left out side by side: one matmul for all of them.
_LEFT_OUT = 8


def influence(
    *,
    queries: ArrayLike,
    gallery: ArrayLike,
    relevant: Relevant,
    bank: ArrayLike,
    statistics: BankStatistics,
    items: ArrayLike | None = None,
    gated: bool = False,
    weight: ArrayLike = 1.0,
    offsets: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> jax.Array:
    """What each bank item is worth: R@1 with the whole bank less R@1 without the item.

    Leave-one-out influence, exact where Koh and Liang, ICML 2017, linearize: `bias` without b is
    that of `Z(g) - w_b exp(beta s(b, g))`, and all queries are ranked anew under it. The score is
    `s - weight bias - offsets`: IS as it stands, DIS when `gated`, and either bank of DualIS with
    the other one's term in `offsets`.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim] embeddings.
      relevant: the right items, in one of the forms of `metrics`.
      bank: [num_bank, dim] embeddings.
      statistics: of this bank and gallery, fields [num_gallery]; with `k >= 1` when `gated`.
      items: optional int [num_items], the bank rows to leave out, one at a time; all when None.
      gated: whether the bank's activation set, without the item, gates the term (static).
      weight: scalar, of the term.
      offsets: optional [num_gallery], subtracted from every score besides.
      weights: optional [num_bank], those that the statistics were made with.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: queries or bank rows held at once (static).

    Returns:
      [num_items] float in [-1, 1], positive where the item helps. 8 items cost a search of all
      queries.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, statistics of another gallery, right
        items or items out of range, `gated` with statistics of `k = 0`.
      TypeError: embeddings that are not floating point, items that are not integers.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> known = {"bank": [[1.0, 0.0], [0.6, 0.8]], "gallery": [[1.0, 0.0], [0.0, 1.0]]}
      >>> known["statistics"] = dbn.stream_bank_statistics(**known, beta=10.0)
      >>> print(dbn.attribution.influence(queries=[[0.75, 0.7]], relevant=[1], **known))
      [1. 0.]
    """
    queries = checks.embeddings("queries", queries)
    bank, gallery = similarity.checked_rows(similarity_fn, bank=bank, gallery=gallery)
    checks.same_dimension("queries", queries, "gallery", gallery)
    similarity.check_rows(similarity_fn, queries=queries)
    num_bank, num_gallery = bank.shape[0], gallery.shape[0]
    statistics = check_statistics(statistics, gallery)
    similarity.check_similarity("statistics", statistics, similarity_fn, queries, bank, gallery)
    gated = checks.flag("gated", gated)
    if gated and statistics.k_occurrence is None:
        raise checks.BadValueError(
            "statistics",
            " must have an activation set when `gated`, got k=0; make them with k >= 1",
        )
    dtype = statistics.bias.dtype
    right = relevance.as_rows(relevant, (queries.shape[0], num_gallery))
    if items is None:
        items = jnp.arange(num_bank, dtype=jnp.int32)
    items = checks.indices("items", items, low=0, high=num_bank, ndim=1, of="bank rows")
    if offsets is None:
        offsets = jnp.zeros(num_gallery, dtype)
    offsets = checks.floating("offsets", offsets, ndim=1).astype(dtype)
    checks.matching_gallery("offsets", offsets.shape[0], "gallery", gallery.shape[:1])
    weight = checks.floating("weight", checks.real("weight", weight, dtype), ndim=0)
    term = weight, offsets, row_weights(weights, num_bank, dtype)
    tiling = Tiling(similarity_fn, dtype, checks.integer("chunk_size", chunk_size, low=1))
    test = queries, gallery, right
    return _influence(test, bank, statistics, items, term, gated=gated, tiling=tiling)


@partial(jax.jit, static_argnames=("gated", "tiling"))
def _influence(
    test: tuple[jax.Array, jax.Array, jax.Array],
    bank: jax.Array,
    statistics: BankStatistics,
    items: jax.Array,
    term: tuple[jax.Array, jax.Array, jax.Array | None],
    *,
    gated: bool,
    tiling: Tiling,
) -> jax.Array:
    queries, gallery, right = test
    weight, offsets, weights = term
    similarity_fn, dtype, chunk_size, _ = tiling
    beta = statistics.beta
    weights = jnp.ones(bank.shape[0], dtype) if weights is None else weights
    answered = (right >= 0).any(axis=1)
    most_responsible = without_the_first(bank, gallery, weights, beta, tiling)

    def hits(biases: jax.Array, active: Any) -> jax.Array:
        """[num_lists] R@1 under biases [num_lists, num_gallery] and their activation sets."""
        lists = weight * biases + offsets[None]
        if gated:  # read from the first list; the second is that of closed gates
            lists = jnp.concatenate([jnp.zeros_like(lists[:1]), offsets[None], lists])
        options: Any = {"similarity_fn": similarity_fn, "chunk_size": chunk_size}
        ahead, top_1 = counts.count_ahead(queries, gallery, right, lists.T, None, **options)
        hit = ahead.above + ahead.level == 0
        if gated:
            hit = jnp.where(active[:, top_1.indices].T, hit[:, 2:], hit[:, 1:2])
        count = jnp.maximum(answered.sum(), 1).astype(dtype)
        return (hit & answered[:, None]).sum(axis=0).astype(dtype) / count

    def left_out(carry: None, block: Block) -> tuple[None, jax.Array]:
        rows = block.rows
        similarities = similarity.tile(similarity_fn, bank[rows], gallery).astype(dtype)
        others = without_each(rows, similarities, weights[rows], statistics, most_responsible)
        active = None
        if gated:
            assert statistics.k_occurrence is not None
            own = occurrence_of_each(similarities, weights[rows], statistics.k)
            active = statistics.k_occurrence[None] - own > 0
        return carry, hits(others.bias, active)

    active = None if statistics.active is None else statistics.active[None]
    whole = hits(statistics.bias[None], active)
    return whole[0] - scan_chunks(left_out, None, items, _LEFT_OUT)[1]


@partial(jax.jit, static_argnames="tiling")
def without_the_first(
    bank: jax.Array, gallery: jax.Array, weights: jax.Array, beta: jax.Array, tiling: Tiling
) -> tuple[jax.Array, Means]:
    """([num_gallery] int32 the most responsible bank row, the means of all others)."""
    num_gallery, dtype = gallery.shape[0], tiling.dtype

    def find(_: None, nearest: Nearest, tile: Tile) -> tuple[None, Nearest]:
        scores = tile.similarities - tile.rows.own[:, None]
        return None, add_tile(nearest, scores.T, None, tile.rows.start, valid=tile.rows.fresh)

    def add(_: None, mean: log_mean_exp.RunningMean, tile: Tile) -> tuple[None, Any]:
        entering, others = tile.rows.entering, tile.rows.places[:, None] != tile.own[None]
        return None, log_mean_exp.add_rows(mean, tile.similarities, beta, entering, valid=others)

    rows, none = Rows(bank, handicaps_of(weights, beta)), start_nearest((num_gallery, 1, 1), dtype)
    first = sweep(Pass(find), rows, Items(gallery), tiling, state=none).items.indices[:, 0, 0]
    rows, start = Rows(bank, None, weights), log_mean_exp.start_mean(num_gallery, beta)
    mean = sweep(Pass(add), rows, Items(gallery, first), tiling, state=start).items
    return first, log_mean_exp.finish_mean(mean, beta)


def without_each(
    rows: jax.Array,
    similarities: jax.Array,
    weights: jax.Array,
    statistics: BankStatistics,
    most_responsible: tuple[jax.Array, Means],
) -> Means:
    """Means [num_rows, num_gallery] of the bank without one row at a time.

    `rows` [num_rows] are places in the bank, with their weights and similarities [num_rows,
    num_gallery]. A column that the row alone has filled is empty.
    """
    alone = means_of_each(similarities, weights)
    whole = jax.tree.map(lambda field: field[None], statistics.means)
    others, share, mass = log_mean_exp.without(whole, alone, statistics.beta)
    # The largest share is not subtracted, which would cancel: the mean of the others is known.
    first, rest = most_responsible
    mine = first[None] == rows[:, None]
    there = (mass > 0) & (mine | (share > 0))
    others = jax.tree.map(lambda one, known: jnp.where(mine, known[None], one), others, rest)
    return jax.tree.map(lambda field: jnp.where(there, field, jnp.zeros_like(field)), others)


def means_of_each(similarities: jax.Array, weights: jax.Array) -> Means:
    """Means of banks of one row each, from similarities [num_rows, num_gallery]."""
    weights = jnp.broadcast_to(weights[:, None], similarities.shape)
    none = jnp.zeros_like(weights)
    return Means(similarities, none, weights, none, none.astype(jnp.int32))


def occurrence_of_each(similarities: jax.Array, weights: jax.Array, k: int) -> jax.Array:
    """[num_rows, num_gallery] int32, 1 in the k nearest of each row that counts."""

    def one(row: jax.Array, weight: jax.Array) -> jax.Array:
        nothing, own = jnp.zeros(row.shape, jnp.int32), (weight > 0).astype(jnp.int32)
        return nothing.at[selection.largest(row, k)[1]].add(own)

    return jax.vmap(one)(similarities, weights)


def handicaps_of(weights: jax.Array, beta: jax.Array) -> jax.Array:
    """[num_bank] `-log w / beta`, infinite for what is absent."""
    return jnp.where(weights > 0, -jnp.log(jnp.where(weights > 0, weights, 1)) / beta, jnp.inf)


def check_statistics(statistics: Any, gallery: jax.Array) -> BankStatistics:
    checks.instance(
        "statistics", statistics, BankStatistics, "make them with stream_bank_statistics"
    )
    checks.matching_gallery("statistics", statistics.num_gallery, "gallery", gallery.shape[:1])
    if statistics.bias.ndim != 1:
        raise checks.BadValueError(
            "statistics",
            f" must have fields [num_gallery] here, got shape "
            f"{statistics.bias.shape}; use jax.vmap over its leading axes",
        )
    return checks.unsplit(statistics)
