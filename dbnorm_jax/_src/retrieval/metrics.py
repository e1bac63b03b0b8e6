"""Retrieval metrics: the rank of each query's best right item, and numbers made from ranks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.core import checks, numerics, relevance
from dbnorm_jax._src.core.similarity import SimilarityFn, check_rows, dot_product
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.passes import counts, streaming
from dbnorm_jax._src.passes.gating import check_streamed, over_gates, raw_first


def ranks(scores: Any, relevant: Any, *, ties: str = "average", where: Any = None) -> jax.Array:
    """Rank of each query's best right item.

    Args:
      scores: [num_queries, num_gallery], higher is better; may hold infinities, not NaN.
      relevant: the right items, in one of the forms of this module.
      ties: "average", "min" (ties broken in favour of the right item) or "max" (static).
      where: optional bool mask [num_queries, num_gallery] of valid pairs; others do not exist,
        also right ones.

    Returns:
      [num_queries] float, 1 = best; NaN for queries without a right item. Other right items never
      count. Inside a caller's jit, where values cannot be checked, NaN ranks below every number.

    Raises:
      ValueError: NaN scores, right items out of range, shapes that do not fit, an unknown `ties`.
      TypeError: scores that are not floating point, right items that are not integers or bools, or
        integers of the shape of the scores.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> import jax.numpy as jnp
      >>> scores = jnp.array([[0.3, 0.7, 0.7, 0.1]])
      >>> print(metrics.ranks(scores, jnp.array([1])), metrics.ranks(scores, jnp.array([0])))
      [1.5] [3.]
    """
    scores = _check_scores(scores)
    share = counts.share_of_ties(ties)
    right = relevance.as_matrix(relevant, scores.shape)
    if where is not None:
        where = checks.mask("where", where)
        if where.shape != scores.shape:
            raise checks.BadValueError(
                "where", f" must have the shape of `scores` {scores.shape}, got {where.shape}"
            )
    return _ranks(scores, right, where, share=share)


@partial(jax.jit, static_argnames="share")
def _ranks(
    scores: jax.Array, right: jax.Array, where: jax.Array | None, *, share: float
) -> jax.Array:
    scores = numerics.below_every_number(scores)
    wrong = ~right
    if where is not None:
        right, wrong = right & where, wrong & where
    best = jnp.where(right, scores, -jnp.inf).max(axis=-1, keepdims=True)
    above = ((scores > best) & wrong).sum(axis=-1, dtype=jnp.int32)
    level = ((scores == best) & wrong).sum(axis=-1, dtype=jnp.int32)
    return counts.rank(2 * above + round(2 * share) * level, right.any(axis=-1), scores.dtype)


def stream_ranks(
    queries: Any,
    gallery: Any,
    relevant: Any,
    correction: Correction | None = None,
    *,
    ties: str = "average",
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> jax.Array:
    """Ranks from embeddings in one pass, never holding queries x gallery.

    Equal to `ranks(apply_correction(similarity_fn(queries, gallery), correction), relevant)`, but
    sure of copies. A product of matrices may round two copies of an item apart. Here an item within
    rounding of the best right one is compared with it by similarities that are each computed alone:
    copies with the same bias are level.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim] embeddings.
      relevant: the right items, in one of the forms of this module; a CSR pair or a bool matrix
        must be concrete here (inside jit, pass the padded int array).
      correction: optional, fields [num_terms, num_gallery].
      ties: as in `ranks` (static).
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: queries held at once (static).

    Returns:
      [num_queries] float, 1 = best; NaN for queries without a right item.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, right items out of range, a correction
        fitted on another number of gallery items.
      TypeError: embeddings that are not floating point, right items that are not integers or bools,
        or integers of the shape of the scores.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> import jax.numpy as jnp
      >>> gallery = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(metrics.stream_ranks(jnp.array([[0.6, 0.8]]), gallery, jnp.array([0])))
      [2.]
    """
    queries = checks.embeddings("queries", queries)
    gallery = checks.embeddings("gallery", gallery)
    checks.same_dimension("queries", queries, "gallery", gallery)
    check_rows(similarity_fn, queries=queries, gallery=gallery)
    chunk_size = checks.integer("chunk_size", chunk_size, low=1)
    right = relevance.as_rows(relevant, (queries.shape[0], gallery.shape[0]))
    if correction is not None:
        check_streamed(correction, gallery.shape[0])
    return _stream_ranks(
        queries,
        gallery,
        right,
        correction,
        share=counts.share_of_ties(ties),
        similarity_fn=similarity_fn,
        chunk_size=chunk_size,
    )


@partial(jax.jit, static_argnames=("share", "similarity_fn", "chunk_size"))
def _stream_ranks(
    queries: jax.Array,
    gallery: jax.Array,
    right: jax.Array,
    correction: Correction | None,
    *,
    share: float,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> jax.Array:
    options: Any = {"similarity_fn": similarity_fn, "chunk_size": chunk_size}

    def count(offsets: jax.Array | None, mixtures: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        ahead, nearest = counts.count_ahead(
            queries, gallery, right, offsets, mixtures, share=share, **options
        )
        return ahead, nearest.indices

    top_1 = partial(raw_first, queries, gallery, **options)
    dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype)
    ahead = over_gates(count, top_1, correction, dtype)
    return counts.rank(ahead, (right >= 0).any(axis=1), dtype)


def recall_at(ranks: Any, k: float) -> jax.Array:
    """R@k, the share of queries with rank <= k, in [0, 1].

    Args:
      ranks: [...] float ranks, NaN = left out.
      k: the cut-off, >= 1.

    Returns:
      Scalar; NaN when no query counts.

    Raises:
      ValueError: k < 1.
      TypeError: ranks that are not floating point, k that is no number.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> import jax.numpy as jnp
      >>> print(metrics.recall_at(jnp.array([1.0, 3.0, 2.0, 9.0, jnp.nan]), 2))
      0.5
    """
    ranks = _check_ranks(ranks)
    return _recall_at(ranks, _cut_off(k, ranks.dtype))


@jax.jit
def _recall_at(ranks: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.nanmean(jnp.where(jnp.isnan(ranks), jnp.nan, (ranks <= k).astype(ranks.dtype)))


def median_rank(ranks: Any) -> jax.Array:
    """MdR, the median rank, at least 1.

    Args:
      ranks: [...] float ranks, NaN = left out.

    Returns:
      Scalar; NaN when no query counts.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> import jax.numpy as jnp
      >>> print(metrics.median_rank(jnp.array([1.0, 3.0, 20.0])))
      3.0
    """
    ranks = _check_ranks(ranks)
    return jnp.nanmedian(ranks) if ranks.size else jnp.asarray(jnp.nan, ranks.dtype)


def mean_rank(ranks: Any) -> jax.Array:
    """MnR, the mean rank, at least 1.

    Args:
      ranks: [...] float ranks, NaN = left out.

    Returns:
      Scalar; NaN when no query counts.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> import jax.numpy as jnp
      >>> print(metrics.mean_rank(jnp.array([1.0, 3.0, 20.0])))
      8.0
    """
    return jnp.nanmean(_check_ranks(ranks))


def mean_reciprocal_rank(ranks: Any) -> jax.Array:
    """MRR, the mean of 1 / rank, in (0, 1].

    Args:
      ranks: [...] float ranks, NaN = left out.

    Returns:
      Scalar; NaN when no query counts.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> import jax.numpy as jnp
      >>> print(metrics.mean_reciprocal_rank(jnp.array([1.0, 2.0, 4.0])).round(4))
      0.5833
    """
    return jnp.nanmean(1 / _check_ranks(ranks))


def geometric_mean_recall(ranks: Any, ks: Sequence[int] = (1, 5, 10)) -> jax.Array:
    """Geometric mean of R@k over several cut-offs, in [0, 1].

    Args:
      ranks: [...] float ranks, NaN = left out.
      ks: the cut-offs.

    Returns:
      Scalar; 0 when one of the recalls is 0.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> import jax.numpy as jnp
      >>> ranks = jnp.array([1.0, 4.0, 8.0, 50.0])    # R@1, 5, 10: 1/4, 2/4, 3/4
      >>> print(metrics.geometric_mean_recall(ranks).round(4))    # cube root of 3/32
      0.4543
    """
    ranks = _check_ranks(ranks)
    recalls = jnp.stack([_recall_at(ranks, _cut_off(k, ranks.dtype)) for k in ks])
    # Not exp(mean(log)): its slope at a recall of 0 is NaN.
    return jnp.prod(recalls) ** (1 / len(ks))


def mean_average_precision(scores: Any, relevant: Any) -> jax.Array:
    """mAP: the mean over queries of the mean over right items of precision at their rank.

    `precision(i) = right_rank(i) / rank(i)`, both ranks with averaged ties, the first among the
    right items alone.

    Args:
      scores: [num_queries, num_gallery], higher is better; may hold infinities, not NaN.
      relevant: the right items, in one of the forms of this module.

    Returns:
      Scalar in [0, 1]; queries without a right item are left out.

    Raises:
      ValueError: NaN scores, right items out of range, shapes that do not fit.
      TypeError: scores that are not floating point, right items that are not integers or bools, or
        integers of the shape of the scores.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> import jax.numpy as jnp
      >>> scores = jnp.array([[0.9, 0.8, 0.7]])
      >>> print(metrics.mean_average_precision(scores, jnp.array([[True, False, True]])).round(4))
      0.8333
    """
    scores = _check_scores(scores)
    return _mean_average_precision(scores, relevance.as_matrix(relevant, scores.shape))


@jax.jit
def _mean_average_precision(scores: jax.Array, right: jax.Array) -> jax.Array:
    dtype = numerics.accumulation_dtype(scores.dtype)
    scores = scores.astype(dtype)
    largest = jnp.finfo(dtype).max  # type: ignore[no-untyped-call]

    def average_rank(row: jax.Array, among: jax.Array) -> jax.Array:
        ordered = jnp.sort(jnp.where(among, row, jnp.inf))  # those outside stand at the top
        outside = (~among).sum(dtype=jnp.int32)
        not_above = jnp.searchsorted(ordered, row, side="right")
        below = jnp.searchsorted(ordered, row, side="left")
        above = jnp.maximum(row.shape[0] - outside - not_above, 0).astype(dtype)
        level = (not_above - below).astype(dtype)
        return 1 + above + (level - 1) / 2

    def average_precision(row: jax.Array, right: jax.Array) -> jax.Array:
        row = jnp.clip(numerics.below_every_number(row), max=largest)
        precision = average_rank(row, right) / average_rank(row, jnp.ones_like(right))
        count = right.sum()
        total = jnp.where(right, precision, 0).sum()
        return jnp.where(count > 0, total / jnp.maximum(count, 1).astype(dtype), jnp.nan)

    return jnp.nanmean(jax.vmap(average_precision)(scores, right))


def _check_scores(scores: Any) -> jax.Array:
    scores = checks.floating("scores", scores, ndim=2, finite=False)
    if scores.shape[1] == 0:
        raise checks.BadValueError(
            "scores", f" must have at least one gallery item, got shape {scores.shape}"
        )
    if checks.found(_holds_nan, scores):
        place = np.argwhere(np.isnan(np.asarray(scores, np.float64)))[0].tolist()
        raise checks.BadValueError("scores", f" must not hold NaN, found one at index {place}")
    return checks.read_alike(scores)


def _holds_nan(scores: Any) -> Any:
    return ~(scores >= -np.inf).all()


def _check_ranks(ranks: Any) -> jax.Array:
    ranks = checks.floating("ranks", ranks, finite=False)
    return ranks.astype(numerics.accumulation_dtype(ranks.dtype))


def _below_first(k: Any) -> Any:
    return k < 1


def _cut_off(k: Any, dtype: jnp.dtype) -> jax.Array:
    array = checks.real("k", k, dtype)
    if array.ndim:
        raise checks.BadTypeError("k", f" must be one number, got {k!r}")
    if checks.found(_below_first, array):
        raise checks.BadValueError("k", f" must be at least 1, the best rank, got {k}")
    return array
