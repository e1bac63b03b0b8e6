"""Screening for planted hubs: gallery items retrieved for more of the bank than clean items are."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.core.similarity import SimilarityFn, checked_rows, dot_product
from dbnorm_jax._src.core.types import Correction, SearchResult
from dbnorm_jax._src.passes import streaming
from dbnorm_jax._src.passes.sweep import Items, Pass, Rows, Tile, Tiling, sweep
from dbnorm_jax._src.retrieval import hubness
from dbnorm_jax._src.retrieval.search import stream_top_k


class HubScreening(NamedTuple):
    """How often each gallery item is retrieved by the query bank, against items known to be clean.

    Attributes:
      k_occurrence: [num_gallery] int32, the query-bank items that would have the item among their k
        nearest, did it join the gallery bank; without one, among the gallery.
      p_value: [num_gallery] in (0, 1], the share of clean items retrieved as often.
      flagged: [num_gallery] bool, `k_occurrence >= threshold`.
      threshold: scalar int32, the smallest k-occurrence that is flagged.
    """

    k_occurrence: jax.Array
    p_value: jax.Array
    flagged: jax.Array
    threshold: jax.Array


publish("dbnorm_jax.attribution", HubScreening)


def hub_screening(
    *,
    gallery: ArrayLike,
    query_bank: ArrayLike,
    gallery_bank: ArrayLike | None = None,
    k: int | None = None,
    false_alarm_rate: float = 0.002,
    bias: ArrayLike | None = None,
    gallery_bank_bias: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> HubScreening:
    """Flags gallery items that are retrieved more often than clean items are: maybe planted hubs.

    `N(g) = #{b: s(b, g) > the k-th largest s(b, h) over the gallery bank}`, where b is of the query
    bank, and `p(g) = (1 + #{h: N(h) >= N(g)}) / (1 + num_gallery_bank)`, where `N(h)` is the
    k-occurrence of h (Radovanovic et al., JMLR 2010) in the gallery bank itself. Flagged is
    `p <= false_alarm_rate`: a conformal test (Laxhammar and Falkman, 2010). An item alike to the
    gallery bank is flagged with at most that probability, whatever the distribution, and the rest
    of the gallery changes nothing of it.

    With `bias`, the similarities are those corrected, `s(b, g) - bias(g)`: who knows the correction
    can plant items that only corrected scores retrieve, so screen under what is served too.

    An item planted for a few queries, or for queries that the bank has none of, passes; so does
    everything where the gallery bank holds planted items. Natural hubs beyond all others are
    flagged as well.

    Args:
      gallery: [num_gallery, dim] embeddings of the items to judge.
      query_bank: [num_query_bank, dim] embeddings of queries that no attacker has chosen.
      gallery_bank: [num_gallery_bank, dim] embeddings of items known to be clean, not those of the
        gallery. Without one the gallery is compared with itself, and its most retrieved items are
        flagged, `false_alarm_rate` of them, planted or not.
      k: neighbors of each query-bank item; by default 10, at most all but one of the items that are
        compared (static).
      false_alarm_rate: share of clean items that may be flagged, in (0, 1); a gallery bank that is
        too small for it makes the rate `1 / (1 + num_gallery_bank)` (static).
      bias: optional [num_gallery], of a correction without gates (IS, DualIS, CSLS, NNN).
      gallery_bank_bias: with both, [num_gallery_bank], each item left out of its own sum.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: query-bank rows held at once (static).

    Returns:
      HubScreening of [num_gallery].

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, k out of range, a rate out of (0, 1),
        one bias without the other, or of another length.
      TypeError: embeddings that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> clean, planted = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [[0.0, 1.0], [1.0, 1.0]]
      >>> found = dbn.attribution.hub_screening(
      ...     gallery=planted, query_bank=[[1.9, 0.9], [0.9, 1.9]], gallery_bank=clean, k=1)
      >>> print(found.k_occurrence, found.p_value, found.flagged)
      [0 2] [1.   0.25] [False  True]
    """
    own = gallery_bank is None
    galleries = {"gallery": gallery} if own else {"gallery": gallery, "gallery_bank": gallery_bank}
    query_bank, gallery, *banks = checked_rows(similarity_fn, query_bank=query_bank, **galleries)
    clean = gallery if own else banks[0]
    num_clean = clean.shape[0]
    if num_clean < 2:
        raise checks.BadValueError(
            "gallery" if own else "gallery_bank",
            f" must have at least 2 items to compare with, got {num_clean}",
        )
    few = " (fewer than the items to compare)"
    k = checks.neighbors("k", k, 10, high=num_clean - 1, of=few)
    chunk_size = checks.integer("chunk_size", chunk_size, low=1)
    false_alarm_rate = checks.rate("false_alarm_rate", false_alarm_rate)

    bias = _bias("bias", bias, "gallery", gallery)
    if own:
        if gallery_bank_bias is not None:
            raise checks.BadValueError(
                "gallery_bank_bias", " needs a `gallery_bank`, got None; give `bias` alone"
            )
        clean_bias = bias
    else:
        clean_bias = _bias("gallery_bank_bias", gallery_bank_bias, "gallery_bank", clean)
        if (bias is None) != (clean_bias is None):
            given = "gallery_bank_bias" if bias is None else "bias"
            raise checks.BadValueError(
                "bias",
                f" and `gallery_bank_bias` must be given together, got only `{given}`; fit "
                f"the same correction to both",
            )

    how: dict[str, Any] = {"similarity_fn": similarity_fn, "chunk_size": chunk_size}
    return screened(
        None if own else [(gallery, bias)],
        (clean, clean_bias),
        query_bank,
        k=k,
        false_alarm_rate=false_alarm_rate,
        top_k=partial(stream_top_k, **how),
        **how,
    )


def screened(
    joining: Iterable[tuple[Any, Any]] | None,
    clean: tuple[Any, Any],
    query_bank: Any,
    *,
    k: int,
    false_alarm_rate: float,
    top_k: Callable[..., SearchResult],
    similarity_fn: SimilarityFn,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> HubScreening:
    """As `hub_screening`, unchecked, of items with their bias or None.

    The items to judge come in blocks, None where the clean ones are judged themselves; `top_k`
    searches these, wherever they are.
    """
    items, bias = clean
    size = len(items)
    correction = None if bias is None else Correction(bias[None], None)
    found = top_k(query_bank, items, k, correction)
    counts = clean_counts = hubness.k_occurrence(found.indices, size)
    own = joining is None
    if joining is not None:
        tiling = Tiling(similarity_fn, found.scores.dtype, chunk_size)
        thresholds = jnp.asarray(found.scores[:, -1])
        above = [_num_above(query_bank, *block, thresholds, tiling=tiling) for block in joining]
        counts = jnp.concatenate(above)
        size += 1  # an item takes part in the comparison itself: here it is the one joining
    # A count is flagged where at most so many items, itself among them, are retrieved as often.
    most = min(max(1, int(false_alarm_rate * size + 1e-6)), size - 1)
    return _screened(counts, clean_counts, size - 1 - most, own=own)


def _bias(name: str, bias: Any, of: str, items: jax.Array) -> jax.Array | None:
    if bias is None:
        return None
    bias = checks.floating(name, bias, ndim=1)
    checks.matching_gallery(name, bias.shape[0], of, items.shape[:1])
    return bias


@partial(jax.jit, static_argnames="tiling")
def _num_above(
    bank: jax.Array, gallery: jax.Array, bias: Any, thresholds: jax.Array, *, tiling: Tiling
) -> jax.Array:
    """[num_gallery] how many bank items score the item above their threshold."""

    def add(_: None, total: jax.Array, tile: Tile) -> tuple[None, jax.Array]:
        scores = tile.similarities
        if tile.own is not None:
            scores = scores - tile.own[None].astype(tiling.dtype)
        above = (scores > tile.rows.own[:, None]) & (tile.rows.entering > 0)[:, None]
        return None, total + above.sum(axis=0, dtype=jnp.int32)

    none = jnp.zeros(gallery.shape[0], jnp.int32)
    return sweep(Pass(add), Rows(bank, thresholds), Items(gallery, bias), tiling, state=none).items


@partial(jax.jit, static_argnames="own")
def _screened(
    counts: jax.Array, clean_counts: jax.Array, highest_passing: int, *, own: bool
) -> HubScreening:
    ordered = jnp.sort(clean_counts)
    size = ordered.shape[0] + (not own)
    as_often = size - jnp.searchsorted(ordered, counts, side="left").astype(jnp.int32)
    threshold = jnp.maximum(ordered[highest_passing] + 1, 1)
    p_value = as_often.astype(jnp.float32) / size
    return HubScreening(counts, p_value, counts >= threshold, threshold)
