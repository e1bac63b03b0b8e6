"""Attribution: what made an item a hub, moved a query or looks planted; a bank item's worth."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, filling, numerics, seen, similarity
from dbnorm_jax._src.core.log_mean_exp import shares
from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.core.similarity import SimilarityFn, check_streamed, dot_product
from dbnorm_jax._src.core.types import BankStatistics, Correction
from dbnorm_jax._src.insight.influence import check_statistics, handicaps_of
from dbnorm_jax._src.passes import streaming
from dbnorm_jax._src.passes.selection import add_tile, is_apart, start_nearest
from dbnorm_jax._src.passes.sweep import Chunk, Items, Pass, Rows, Tile, Tiling, Transposed, sweep
from dbnorm_jax._src.retrieval.search import stream_top_k
from dbnorm_jax._src.statistics.bank import row_weights

# Gallery items held at once.
_ITEMS = 1024


class Contributors(NamedTuple):
    """The bank items behind the bias of some gallery items.

    Attributes:
      indices: [num_items, k] int32 bank rows, most responsible first.
      responsibilities: [num_items, k], their shares of `Z`, in [0, 1].
      effective_number: [num_items], `1 / sum_b p_b^2` over the whole bank (inverse Simpson index):
        1 where one bank item makes the bias, num_bank where all do alike, 0 for an empty column.
    """

    indices: jax.Array
    responsibilities: jax.Array
    effective_number: jax.Array


class Top1Changes(NamedTuple):
    """What a correction did to the top-1 of each query.

    Attributes:
      changed: [num_queries] bool.
      old: [num_queries] int32, the gallery row of the raw top-1.
      new: [num_queries] int32, that of the corrected top-1.
      similarity_lost: [num_queries], `s(q, old) - s(q, new)`, at least 0 up to rounding.
      bias_removed: [num_queries, num_terms], `gate_t(q) (bias_t(old) - bias_t(new))`; in sum at
        least what is lost. The largest term moved the query.
    """

    changed: jax.Array
    old: jax.Array
    new: jax.Array
    similarity_lost: jax.Array
    bias_removed: jax.Array


publish("dbnorm_jax.attribution", Contributors, Top1Changes)


def bias_contributors(
    bank: ArrayLike,
    gallery: ArrayLike,
    statistics: BankStatistics,
    items: ArrayLike,
    *,
    k: int | None = None,
    weights: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> Contributors:
    """The bank items most responsible for the bias of given gallery items.

    The responsibility `w_b exp(beta s(b, g)) / Z(g)` is the derivative of the bias of g, that of
    Wang, Jian and Xue, EMNLP 2023, with respect to `s(b, g)`.

    Args:
      bank: [num_bank, dim] embeddings.
      gallery: [num_gallery, dim] embeddings.
      statistics: of this bank and gallery, fields [num_gallery].
      items: int [num_items], the gallery rows to explain.
      k: contributors per item, at most num_bank; by default 10, or all of fewer (static).
      weights: optional [num_bank], those that the statistics were made with.
      exclude: optional int [num_bank] or [num_bank, most], likewise.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: bank rows held at once (static).

    Returns:
      Contributors of [num_items, k] and [num_items]; places that no bank item fills have share 0.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, statistics of another gallery or with
        leading axes, items or k out of range.
      TypeError: embeddings that are not floating point, items that are not integers.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> bank, gallery = [[0.1], [0.9], [0.9]], [[1.0]]
      >>> statistics = dbn.stream_bank_statistics(bank, gallery, beta=20.0)
      >>> found = dbn.attribution.bias_contributors(bank, gallery, statistics, [0], k=2)
      >>> print(found.indices, found.responsibilities.round(2), found.effective_number.round(2))
      [[1 2]] [[0.5 0.5]] [2.]
    """
    bank, gallery = similarity.checked_rows(similarity_fn, bank=bank, gallery=gallery)
    num_bank, num_gallery = bank.shape[0], gallery.shape[0]
    statistics = check_statistics(statistics, gallery)
    similarity.check_similarity("statistics", statistics, similarity_fn, bank, gallery)
    items = checks.indices("items", items, low=0, high=num_gallery, ndim=1)
    k = checks.neighbors("k", k, 10, high=num_bank, of=" (bank items)")
    chunk_size = checks.integer("chunk_size", chunk_size, low=1)
    dtype = statistics.bias.dtype
    weights = row_weights(weights, num_bank, dtype)
    exclude = seen.exclusions(exclude, num_bank, num_gallery)
    tiling = Tiling(similarity_fn, dtype, _ITEMS, streaming.Columns.everywhere(chunk_size))
    return _bias_contributors(
        bank, gallery, statistics, items, weights, exclude, k=k, tiling=tiling
    )


@partial(jax.jit, static_argnames=("k", "tiling"))
def _bias_contributors(
    bank: jax.Array,
    gallery: jax.Array,
    statistics: BankStatistics,
    items: jax.Array,
    weights: jax.Array | None,
    exclude: jax.Array | None,
    *,
    k: int,
    tiling: Tiling,
) -> Contributors:
    beta = statistics.beta
    # Ordered by s + log w / beta: the order of the responsibilities, and never underflows.
    weights = jnp.ones(bank.shape[0], tiling.dtype) if weights is None else weights
    handicaps = handicaps_of(weights, beta)

    def share(similarities: jax.Array, weights: jax.Array, present: Any, chunk: Chunk) -> jax.Array:
        means = jax.tree.map(lambda field: field[:, None], chunk.own[1])
        safe = jnp.where(present, similarities, 0)
        return jnp.where(present, shares(means, safe, weights, beta), 0)

    def start(chunk: Chunk) -> tuple[Any, ...]:
        none = jnp.zeros(chunk.size, tiling.dtype)
        return start_nearest((chunk.size, 1, k), tiling.dtype), none, none

    def add(state: Any, _: None, tile: Tile) -> tuple[Any, None]:
        nearest, total, squares = state
        (items, _), (weights, handicaps, excluded) = tile.rows.own, tile.own
        scores = tile.similarities - handicaps[None]
        present = jnp.broadcast_to(weights[None] > 0, scores.shape)
        if excluded is not None:
            present &= is_apart(excluded[None], items[:, None])
        scores = jnp.where(present, scores, -jnp.inf)
        if tile.valid is not None:
            present &= tile.valid[None]
        found = share(tile.similarities, weights[None], present, tile.rows)
        nearest = add_tile(nearest, scores, None, tile.start, valid=tile.valid)
        return (nearest, total + found.sum(axis=1), squares + (found**2).sum(axis=1)), None

    def finish(_: None, state: Any, chunk: Chunk) -> tuple[None, Contributors]:
        nearest, total, squares = state
        values, indices = (part[:, 0] for part in nearest)
        present, rows = numerics.is_number(values), jnp.maximum(indices, 0)
        found = share(values + handicaps[rows], weights[rows], present, chunk)
        # The shares sum to 1 but for the rounding of beta s, which this leaves out.
        effective = jnp.where(squares > 0, total**2 / jnp.where(squares > 0, squares, 1), 0)
        return None, Contributors(indices, found, effective)

    # Vectors are gathered chunk by chunk: the items may be the whole gallery.
    of_items = Transposed(lambda rows, items: tiling.similarity_fn(rows, gallery[items]))
    rows = Rows(items, (items, jax.tree.map(lambda field: field[items], statistics.means)))
    columns, kept = Items(bank, (weights, handicaps, exclude)), Pass(add, start, finish)
    return sweep(kept, rows, columns, tiling._replace(similarity_fn=of_items)).outputs


def top_1_changes(
    queries: ArrayLike,
    gallery: ArrayLike,
    correction: Correction,
    *,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> Top1Changes:
    """Which queries a correction gives another top-1, and which of its terms did.

    The bank items behind either bias are those of `bias_contributors(..., items=changes.old)`, or
    `new`.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim] embeddings.
      correction: fields [num_terms, num_gallery].
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: queries held at once (static).

    Returns:
      Top1Changes of [num_queries]; differences are 0 where nothing changed.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, a correction of another gallery.
      TypeError: embeddings that are not floating point, or no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> correction = dbn.Correction(bias=jnp.array([[0.5, 0.0], [0.0, 0.25]]))
      >>> changes = dbn.attribution.top_1_changes(jnp.eye(2) + 0.8, jnp.eye(2), correction)
      >>> print(changes.changed, changes.bias_removed[0])
      [False False] [0. 0.]
    """
    num_queries, queries, gallery = filling.checked_queries(queries, gallery=gallery)
    gallery = checks.embeddings("gallery", gallery)
    check_streamed(correction, gallery.shape[0])
    correction = checks.unsplit(correction)
    similarity.check_similarity("correction", correction, similarity_fn, gallery)
    options: dict[str, Any] = {"similarity_fn": similarity_fn, "chunk_size": chunk_size}
    raw = stream_top_k(queries, gallery, 1, **options)
    corrected = stream_top_k(queries, gallery, 1, correction, **options)
    return filling.cut(_top_1_changes(raw, corrected, correction), num_queries)


@jax.jit
def _top_1_changes(raw: Any, corrected: Any, correction: Correction) -> Top1Changes:
    old, new = raw.indices[:, 0], corrected.indices[:, 0]
    changed = old != new
    bias = correction.bias.T.astype(corrected.scores.dtype)
    removed = bias[old] - bias[new]
    offset = bias[new]
    if correction.active is not None:
        gates = correction.active[:, old].T.astype(bias.dtype)
        removed, offset = gates * removed, gates * offset
    # The corrected score is s(q, new) less the bias of new.
    similarity = corrected.scores[:, 0] + offset.sum(axis=1)
    lost = jnp.where(changed, raw.scores[:, 0].astype(similarity.dtype) - similarity, 0)
    return Top1Changes(changed, old, new, lost, jnp.where(changed[:, None], removed, 0))
