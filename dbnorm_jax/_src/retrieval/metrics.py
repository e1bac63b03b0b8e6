"""Retrieval metrics: the rank of each query's best right item, and numbers made from ranks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, filling, numerics, relevance, seen
from dbnorm_jax._src.core.prepared import PreparedGallery
from dbnorm_jax._src.core.relevance import Relevant
from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.passes import counts, streaming
from dbnorm_jax._src.places.mesh import drive, layout
from dbnorm_jax._src.places.mesh.exchange import Axis
from dbnorm_jax._src.retrieval.search import asking


def ranks(
    scores: ArrayLike,
    relevant: Relevant,
    *,
    ties: str = "average",
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Rank of each query's best right item.

    Args:
      scores: [num_queries, num_gallery], higher is better; may hold infinities, not NaN.
      relevant: the right items, in one of the forms of this module.
      ties: "average", the expectation over all orders; "harmonic", one over that of 1 / rank, for
        `mean_reciprocal_rank`; "min", ties broken in favor of right items, or "max", of wrong ones
        (static).
      exclude: int [num_queries] or [num_queries, most], gallery rows a query never sees, -1 = none.
      where: bool [num_queries, num_gallery], the pairs that are seen: others are not right either.

    Returns:
      [num_queries] float, 1 = best; +inf for queries without a right item. Other right items never
      count. Inside a caller's jit, where values cannot be checked, NaN ranks below every number.

    Raises:
      ValueError: NaN scores, right items out of range, shapes that do not fit, an unknown `ties`.
      TypeError: scores that are not floating point, right items that are not integers or bools, or
        integers of the shape of the scores.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> scores = [[0.3, 0.7, 0.7, 0.1]]
      >>> print(metrics.ranks(scores, [1]), metrics.ranks(scores, [0]))
      [1.5] [3.]
    """
    scores = check_scores(scores)
    ties = counts.check_ties(ties)
    right = relevance.as_matrix(relevant, scores.shape)
    return _ranks(scores, right, seen.by_query(where, exclude, scores.shape), ties=ties)


@partial(jax.jit, static_argnames="ties")
def _ranks(scores: jax.Array, right: jax.Array, seen: jax.Array | None, *, ties: str) -> jax.Array:
    return counts.rank(*ahead_of_best(scores, right, seen), scores.dtype, ties)


def ahead_of_best(
    scores: jax.Array, right: jax.Array, seen: jax.Array | None
) -> tuple[counts.Ahead, jax.Array]:
    """Of each query's best right item; and whether it has one that it sees."""
    scores = numerics.below_every_number(scores)
    wrong = ~right
    if seen is not None:
        right, wrong = right & seen, wrong & seen
    best = jnp.where(right, scores, -jnp.inf).max(axis=-1, keepdims=True)
    ahead = counts.count_both((scores > best) & wrong, (scores == best) & wrong)
    num_right = right.sum(axis=-1, dtype=jnp.int32)
    level = lax.cond(
        (num_right <= 1).all(),
        lambda: num_right,  # one that is right is level with itself
        lambda: ((scores == best) & right).sum(axis=-1, dtype=jnp.int32),
    )
    return counts.Ahead(*ahead, level), num_right > 0


def stream_ranks(
    queries: ArrayLike,
    gallery: ArrayLike | PreparedGallery,
    relevant: Relevant,
    correction: Correction | None = None,
    *,
    ties: str = "average",
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
    gates: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
    mesh: Mesh | None = None,
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
) -> jax.Array:
    """`ranks` of corrected scores from embeddings in one pass, never holding queries x gallery.

    A product of matrices may round two copies of an item apart. Here an item within rounding of the
    best right one is compared with it by similarities that are each computed alone: copies with the
    same bias are level.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim] embeddings; or a PreparedGallery, whose values are not looked at
        again, with its own correction and similarity. All items are counted in full precision.
      relevant: the right items, in one of the forms of this module; inside jit an int array.
      correction: fields [num_terms, num_gallery].
      ties: as in `ranks` (static).
      exclude: int [num_queries] or [num_queries, most], gallery rows a query never sees, -1 = none.
      where: bool [num_gallery], the items that are there.
      gates: [num_queries, num_terms]; those of the raw similarities when None.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: queries held at once (static).
      mesh: optional, the devices that share the work; as in `stream_bank_statistics`.
      bank_axis: mesh axis over which queries are split; a tuple of several, or None for whole.
      gallery_axis: mesh axis over which gallery items are split, likewise.

    Returns:
      [num_queries] float, 1 = best; +inf for queries without a right item. Over a mesh, split over
      `bank_axis` where its size divides num_queries, else a copy on every device.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, right items out of range, a correction
        of another gallery, a mesh without the axis.
      TypeError: embeddings that are not floating point, right items as in `ranks`, no Mesh.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> print(metrics.stream_ranks([[0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]], relevant=[0]))
      [2.]
    """
    how = layout.layout(mesh, bank_axis, gallery_axis), similarity_fn, chunk_size
    num_queries, split, *asked = asking(
        how, queries, gallery, correction, exclude, where, gates, filling_up=mesh is None
    )
    right = relevance.as_rows(relevant, (num_queries, split.num_gallery))
    right = split.along_rows(filling.filled_up(right, split.num_rows), -1)
    found = drive.ranks(*asked, right, split=split, ties=counts.check_ties(ties))
    return filling.cut(found, num_queries)


def recall_at(ranks: ArrayLike, k: float) -> jax.Array:
    """R@k, the share of queries with rank <= k.

    Args:
      ranks: [...] float ranks, +inf = left out.
      k: the cut-off, >= 1.

    Returns:
      Scalar in [0, 1]; NaN when no query counts.

    Raises:
      ValueError: k < 1, ranks that hold NaN.
      TypeError: ranks that are not floating point, k that is no number.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> print(metrics.recall_at([1.0, 3.0, 2.0, 9.0, float("inf")], 2))
      0.5
    """
    ranks = _check_ranks(ranks)
    return _recall_at(ranks, _cut_off(k, ranks.dtype))


@jax.jit
def _recall_at(ranks: jax.Array, k: jax.Array) -> jax.Array:
    return mean_counted((ranks <= k).astype(ranks.dtype), ranks < jnp.inf)


def median_rank(ranks: ArrayLike) -> jax.Array:
    """MdR, the median rank.

    Args:
      ranks: [...] float ranks, +inf = left out.

    Returns:
      Scalar; NaN when no query counts.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> print(metrics.median_rank([1.0, 3.0, 20.0]))
      3.0
    """
    return _median(_check_ranks(ranks))


@jax.jit
def _median(ranks: jax.Array) -> jax.Array:
    count = (ranks < jnp.inf).sum(dtype=jnp.int32)
    ranks = jnp.sort(jnp.append(ranks.reshape(-1), jnp.inf))  # those left out stand last
    middle = (ranks[jnp.maximum(count - 1, 0) // 2] + ranks[count // 2]) / 2
    return jnp.where(count > 0, middle, jnp.nan)


def mean_rank(ranks: ArrayLike) -> jax.Array:
    """MnR, the mean rank.

    Args:
      ranks: [...] float ranks, +inf = left out.

    Returns:
      Scalar; NaN when no query counts.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> print(metrics.mean_rank([1.0, 3.0, 20.0]))
      8.0
    """
    ranks = _check_ranks(ranks)
    return mean_counted(ranks, ranks < jnp.inf)


def mean_reciprocal_rank(ranks: ArrayLike) -> jax.Array:
    """MRR, the mean of 1 / rank, in (0, 1].

    Args:
      ranks: [...] float ranks, +inf = left out; where items may be level, of `ties="harmonic"`: one
        over an expected rank is less than the expectation.

    Returns:
      Scalar; NaN when no query counts.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> print(metrics.mean_reciprocal_rank([1.0, 2.0, 4.0]).round(4))
      0.5833
    """
    ranks = _check_ranks(ranks)
    return mean_counted(1 / ranks, ranks < jnp.inf)


def geometric_mean_recall(ranks: ArrayLike, ks: Sequence[int] = (1, 5, 10)) -> jax.Array:
    """Geometric mean of R@k over several cut-offs, in [0, 1].

    Args:
      ranks: [...] float ranks, +inf = left out.
      ks: the cut-offs.

    Returns:
      Scalar; 0 when one of the recalls is 0.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> ranks = [1.0, 4.0, 8.0, 50.0]    # R@1, 5, 10: 1/4, 2/4, 3/4
      >>> print(metrics.geometric_mean_recall(ranks).round(4))    # cube root of 3/32
      0.4543
    """
    ranks = _check_ranks(ranks)
    recalls = jnp.stack([_recall_at(ranks, _cut_off(k, ranks.dtype)) for k in ks])
    # Not exp(mean(log)): its slope at a recall of 0 is NaN.
    return jnp.prod(recalls) ** (1 / len(ks))


def mean_average_precision(
    scores: ArrayLike,
    relevant: Relevant,
    *,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """mAP: the mean over queries of the mean over right items of precision at their rank.

    The expectation over all orders of tied items, as in McSherry and Najork (ECIR 2008): of n level
    items, r of them right, behind a items, b of them right, one at place i = a + 1 ... a + n is
    right with probability r / n, its precision then (b + 1 + (i - a - 1)(r - 1)/(n - 1)) / i.

    Args:
      scores: [num_queries, num_gallery], higher is better; may hold infinities, not NaN.
      relevant: the right items, in one of the forms of this module.
      exclude: as in `ranks`.
      where: as in `ranks`.

    Returns:
      Scalar in [0, 1]; queries without a right item are left out.

    Raises:
      ValueError, TypeError: as `ranks`.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> right = [[True, False, True]]
      >>> print(metrics.mean_average_precision([[0.9, 0.8, 0.7]], right).round(4))
      0.8333
    """
    scores = check_scores(scores)
    right = relevance.as_matrix(relevant, scores.shape)
    return _mean_average_precision(scores, right, seen.by_query(where, exclude, scores.shape))


@jax.jit
def _mean_average_precision(
    scores: jax.Array, right: jax.Array, seen: jax.Array | None
) -> jax.Array:
    dtype = numerics.accumulation_dtype(scores.dtype)
    scores = numerics.below_every_number(scores)
    if seen is not None:  # what is not seen stands behind all others
        scores, right = jnp.where(seen, scores, -jnp.inf), right & seen
    places = 1 + jnp.arange(scores.shape[1], dtype=jnp.int32)

    def average_precision(row: jax.Array, right: jax.Array) -> jax.Array:
        order = jnp.argsort(-row)
        row, right = row[order], right[order].astype(jnp.int32)
        # Of each entry: where the run of those that are level begins, and how long it is.
        first = jnp.searchsorted(-row, -row, side="left", method="sort")
        level = jnp.searchsorted(-row, -row, side="right", method="sort") - first
        until = jnp.cumsum(right)
        before = (until - right)[first]
        run = until[first + level - 1] - before
        share = run.astype(dtype) / level.astype(dtype)
        others = jnp.maximum(level - 1, 1).astype(dtype)
        slope = jnp.maximum(run - 1, 0).astype(dtype) / others
        earlier = (places - 1 - first).astype(dtype)
        precision = ((before + 1).astype(dtype) + earlier * slope) / places.astype(dtype)
        return (share * precision).sum() / jnp.maximum(right.sum(), 1).astype(dtype)

    return mean_counted(jax.vmap(average_precision)(scores, right), right.any(axis=1))


def check_scores(scores: Any, *, batched: bool = False) -> jax.Array:
    """Scores [num_queries, num_gallery] without NaN; with leading axes where `batched`."""
    shape: Any = {"min_ndim": 2} if batched else {"ndim": 2}
    scores = checks.floating("scores", scores, finite=False, **shape)
    if scores.shape[-1] == 0:
        raise checks.BadValueError(
            "scores", f" must have at least one gallery item, got shape {scores.shape}"
        )
    if checks.found(_holds_nan, scores):
        place = np.argwhere(np.isnan(np.asarray(scores, np.float64)))[0].tolist()
        raise checks.BadValueError("scores", f" must not hold NaN, found one at index {place}")
    return checks.read_alike(scores)


def _holds_nan(values: Any) -> Any:
    return ~(values >= -np.inf).all()


@partial(jax.jit, static_argnames="axis")
def mean_counted(values: jax.Array, counted: jax.Array, axis: int | None = None) -> jax.Array:
    """Of those that are counted; NaN where none is."""
    count = counted.sum(axis=axis, dtype=jnp.int32)
    total = jnp.where(counted, values, 0).sum(axis=axis)
    return jnp.where(count > 0, total / jnp.maximum(count, 1).astype(values.dtype), jnp.nan)


def _check_ranks(ranks: Any) -> jax.Array:
    ranks = checks.floating("ranks", ranks, finite=False)
    if checks.found(_holds_nan, ranks):
        raise checks.BadValueError(
            "ranks", " must not hold NaN: queries without a right item have rank +inf"
        )
    if ranks.ndim == 1:
        ranks = jnp.asarray(filling.filled_up(ranks, fill=np.inf), ranks.dtype)  # left out
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
