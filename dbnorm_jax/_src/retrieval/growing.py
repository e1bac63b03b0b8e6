"""Bank items and gallery items that come and go, without a new fit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, elementary, numerics
from dbnorm_jax._src.core.log_mean_exp import Means, scaled_by
from dbnorm_jax._src.core.similarity import SimilarityFn, check_similarity, dot_product
from dbnorm_jax._src.core.types import BankStatistics, SearchResult
from dbnorm_jax._src.passes.streaming import DEFAULT_CHUNK_SIZE
from dbnorm_jax._src.retrieval.search import stream_top_k
from dbnorm_jax._src.statistics.bank import stream_bank_statistics

_REMEDY = "make them with bank_statistics"
_COLUMNS = Means._fields


def decay(statistics: BankStatistics, factor: ArrayLike) -> BankStatistics:
    """Statistics of the same bank with all weights multiplied by `factor`.

    Only the mass changes, at once: the bias does when other rows are merged, among
    which old ones weigh less. `merge(decay(old, 0.9), new)` each day is a bank that forgets with a
    half-life of 6.6 days. An item stays active until its rows are subtracted.

    Args:
      statistics: BankStatistics, fields [..., num_gallery].
      factor: scalar > 0.

    Returns:
      BankStatistics of the same shape.

    Raises:
      ValueError: a factor that is not positive.
      TypeError: other types.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> old = dbn.bank_statistics([[0.5, 0.25]], beta=1.0)
      >>> print(dbn.growing.decay(old, 0.5).mass, dbn.growing.decay(old, 0.5).bias.round(4))
      [0.5 0.5] [0.5  0.25]
    """
    checks.instance("statistics", statistics, BankStatistics, _REMEDY)
    return _decay(statistics, checks.positive("factor", factor, statistics.bias.dtype))


@jax.jit
def _decay(statistics: BankStatistics, factor: jax.Array) -> BankStatistics:
    return dataclasses.replace(statistics, **scaled_by(statistics.means, factor)._asdict())


def add_gallery_items(
    statistics: BankStatistics,
    neighbors: SearchResult | None,
    bank: ArrayLike,
    items: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> tuple[BankStatistics, SearchResult | None]:
    """Statistics of a gallery with new items at its end; costs two passes of bank x new items.

    Args:
      statistics: of the whole bank on the gallery so far, fields [..., num_gallery].
      neighbors: `stream_top_k(bank, gallery, statistics.k)`; None where k is 0.
      bank: [num_bank, dim] all bank items behind the statistics.
      items: [num_new, dim] the new gallery items.
      weights: optional [num_bank] weights the bank rows have entered with, decay included.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: bank rows held at once (static).

    Returns:
      (BankStatistics of [..., num_gallery + num_new], the neighbors to keep): those made anew, up
      to rounding; the activation set exactly.

    Raises:
      ValueError: a bank or neighbors not behind the statistics; as `stream_bank_statistics`.
      TypeError: other types.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> bank, gallery, items = [[1.0, 0.0]], [[0.5, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
      >>> statistics = dbn.stream_bank_statistics(bank, gallery, beta=1.0)
      >>> neighbors = dbn.stream_top_k(bank, gallery, 1)
      >>> grown, _ = dbn.growing.add_gallery_items(statistics, neighbors, bank, items)
      >>> print(grown.k_occurrence, grown.bias)
      [0 1 0] [0.5 1.  0. ]
    """
    statistics, neighbors = checks.unsplit((statistics, neighbors))
    counted = _check_known(statistics, neighbors, bank, weights)
    check_similarity("statistics", statistics, similarity_fn, checks.embeddings("bank", bank))
    options: Any = {"similarity_fn": similarity_fn, "chunk_size": chunk_size}
    beta, k = statistics.beta, statistics.k
    added = stream_bank_statistics(bank, items, beta=beta, k=0, weights=weights, **options)
    columns = {
        name: jnp.concatenate([getattr(state, name) for state in (statistics, added)], axis=-1)
        for name in _COLUMNS
    }
    if neighbors is not None:
        found = stream_top_k(bank, items, min(k, added.num_gallery), **options)
        later = found._replace(indices=found.indices + statistics.num_gallery)
        neighbors = _nearest_of_both(neighbors, later)
    return _changed(statistics, columns, neighbors, counted)


def remove_gallery_items(
    statistics: BankStatistics,
    neighbors: SearchResult | None,
    bank: ArrayLike,
    gallery: ArrayLike,
    *,
    removed: ArrayLike,
    weights: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> tuple[BankStatistics, SearchResult | None]:
    """Statistics of a gallery without some of its items; the others close up.

    It costs a search of the bank rows that lose a neighbor, among the items that stay.

    Args:
      statistics: of the whole bank on the gallery so far, fields [..., num_gallery].
      neighbors: `stream_top_k(bank, gallery, statistics.k)`; None where k is 0.
      bank: [num_bank, dim] all bank items behind the statistics.
      gallery: [num_gallery, dim] the gallery so far.
      removed: int [num_removed] gallery rows that go.
      weights: optional [num_bank] weights the bank rows have entered with, decay included.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: bank rows held at once (static).

    Returns:
      (BankStatistics of the items that stay, the neighbors to keep). The columns that stay are bit
      by bit as they were, and the activation set is exact.

    Raises:
      ValueError: as `add_gallery_items`; rows out of range; fewer than k items left.
      TypeError: other types.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> bank, gallery = [[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
      >>> statistics = dbn.stream_bank_statistics(bank, gallery, beta=1.0)
      >>> neighbors = dbn.stream_top_k(bank, gallery, 1)
      >>> left, _ = dbn.growing.remove_gallery_items(
      ...     statistics, neighbors, bank, gallery, removed=[0])
      >>> print(left.k_occurrence, left.bias)
      [1] [0.]
    """
    statistics, neighbors = checks.unsplit((statistics, neighbors))
    counted = _check_known(statistics, neighbors, bank, weights)
    num_gallery, k = statistics.num_gallery, statistics.k
    gallery = checks.embeddings("gallery", gallery)
    check_similarity("statistics", statistics, similarity_fn, gallery)
    gallery = np.asarray(gallery)
    if len(gallery) != num_gallery:
        raise checks.BadValueError(
            "gallery", f" must be the {num_gallery} items behind the statistics, got {len(gallery)}"
        )
    gone = np.zeros(num_gallery, bool)
    gone[np.asarray(checks.indices("removed", removed, low=0, high=num_gallery, ndim=1))] = True
    if num_gallery - gone.sum() < max(k, 1):
        raise checks.BadValueError(
            "removed",
            f" must leave at least {max(k, 1)} gallery items, got {gone.sum()} of {num_gallery}",
        )
    stays = np.flatnonzero(~gone)
    columns = {
        name: jnp.asarray(np.asarray(getattr(statistics, name))[..., stays]) for name in _COLUMNS
    }
    if neighbors is None:
        return _changed(statistics, columns, None, counted)
    scores, indices = (np.array(part) for part in neighbors)
    lost = np.flatnonzero(gone[indices].any(axis=1))
    indices = (np.cumsum(~gone) - 1)[indices].astype(np.int32)
    if len(lost):
        losers = np.asarray(checks.as_array("bank", bank))[lost]
        options: Any = {"similarity_fn": similarity_fn, "chunk_size": chunk_size}
        found = stream_top_k(losers, gallery[stays], k, **options)
        scores[lost], indices[lost] = (np.asarray(part) for part in found)
    neighbors = SearchResult(jnp.asarray(scores), jnp.asarray(indices))
    return _changed(statistics, columns, neighbors, counted)


def _changed(
    statistics: BankStatistics, columns: dict[str, Any], neighbors: Any, counted: Any
) -> tuple[BankStatistics, Any]:
    if neighbors is not None:
        columns["k_occurrence"] = _counts(neighbors, counted, columns["bias"].shape)
    return dataclasses.replace(statistics, **columns), neighbors


def _check_known(
    statistics: BankStatistics, neighbors: SearchResult | None, bank: Any, weights: Any
) -> Any:
    """[num_bank] bool, which bank rows count; raises where what was kept does not fit."""
    checks.instance("statistics", statistics, BankStatistics, _REMEDY)
    if not checks.is_concrete(statistics, neighbors, bank):
        raise checks.BadTypeError(
            "statistics", ", `neighbors` and `bank` must be concrete, got traced values"
        )
    num_bank = len(checks.embeddings("bank", bank))
    counted = np.ones(num_bank, bool)
    if weights is not None:
        counted = np.asarray(checks.bank_weights("weights", weights, (num_bank,))) > 0
    if (neighbors is None) != (statistics.k == 0):
        actual = "none" if neighbors is None else "neighbors"
        raise checks.BadValueError(
            "neighbors",
            f" must be stream_top_k(bank, gallery, {statistics.k}), or None for k=0, got {actual}",
        )
    if neighbors is None:
        return counted
    if neighbors.indices.shape != (num_bank, statistics.k):
        raise checks.BadValueError(
            "neighbors",
            f" must have shape {(num_bank, statistics.k)} (bank rows, k), got "
            f"{neighbors.indices.shape}",
        )
    checks.indices("neighbors.indices", neighbors.indices, low=0, high=statistics.num_gallery)
    known = statistics.k_occurrence
    assert known is not None
    if not np.array_equal(known, _counts(neighbors, counted, known.shape)):
        raise checks.BadValueError(
            "neighbors",
            " must be those of the bank behind the statistics: their k-occurrences "
            "differ; make both from the same bank and gallery",
        )
    return counted


def _counts(neighbors: SearchResult, counted: Any, shape: tuple[int, ...]) -> jax.Array:
    found = np.asarray(neighbors.indices)[counted].reshape(-1)
    counts = np.bincount(found, minlength=shape[-1])[: shape[-1]].astype(np.int32)
    return jnp.broadcast_to(jnp.asarray(counts), shape)


@jax.jit
def _nearest_of_both(first: SearchResult, second: SearchResult) -> SearchResult:
    """The k nearest of both lists, k of the first; its items come first among equals."""
    dtype = numerics.accumulation_dtype(first.scores.dtype, second.scores.dtype)
    scores = jnp.concatenate([part.scores.astype(dtype) for part in (first, second)], axis=1)
    indices = jnp.concatenate([first.indices, second.indices], axis=1)
    values, places = elementary.top_k(scores, first.scores.shape[1])
    return SearchResult(values, jnp.take_along_axis(indices, places, axis=1))
