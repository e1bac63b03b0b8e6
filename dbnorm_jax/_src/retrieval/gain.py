"""What the first k places hold: discounted gain, precision, success."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, filling, numerics, relevance, seen
from dbnorm_jax._src.core.relevance import Grades, Relevant
from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product
from dbnorm_jax._src.core.types import Correction, SearchResult
from dbnorm_jax._src.passes import counts, streaming
from dbnorm_jax._src.places.mesh import drive, layout
from dbnorm_jax._src.places.mesh.exchange import Axis
from dbnorm_jax._src.retrieval.metrics import ahead_of_best, check_scores, mean_counted
from dbnorm_jax._src.retrieval.search import asking


def normalized_discounted_cumulative_gain(
    scores: ArrayLike | SearchResult,
    grades: Grades,
    k: int | None = None,
    *,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """nDCG@k, the mean over queries of the gain of the first k places over the largest possible.

        DCG@k = sum over places i = 1 ... k of grade(item at i) / log2(1 + i)
        nDCG@k = DCG@k / DCG@k of the same items in the order of their grades

    The gain is the grade itself, as of `ndcg_cut` in trec_eval; for that of 2^grade - 1, give these
    as grades. Of scores, this is the expectation over all orders of tied items: an item of n level
    ones behind a others has the mean of the discounts at places a + 1 ... a + n, 0 beyond k. Of a
    SearchResult, the order is that of its places.

    Args:
      scores: [..., num_queries, num_gallery], higher is better; may hold infinities, not NaN. Or a
        SearchResult of [num_queries, places].
      grades: finite and >= 0, in one of three forms: a matrix of the shape of the scores (bool is 0
        or 1), which queries of all leading axes may share; lists (indices, grades), two arrays
        [num_queries, most], indices padded with -1; CSR (indptr [num_queries + 1], indices,
        grades). Items without a grade have grade 0. Inside jit, for a SearchResult: lists.
      k: the cut-off, >= 1; all places when None (static). Of a SearchResult, at most its places.
      exclude: as in `ranks`; not for a SearchResult.
      where: bool [..., num_queries, num_gallery], as in `ranks`; not for a SearchResult.

    Returns:
      [...] in [0, 1]. Queries without a grade above 0 are left out (trec_eval counts them as 0
      where they are judged); NaN when no query counts. Inside a caller's jit, where values cannot
      be checked, a grade that is NaN, infinite or negative counts as 0, and NaN scores rank below
      every number.

    Raises:
      ValueError: NaN scores, grades that are negative or not finite, items out of range or named
        twice for a query, shapes that do not fit, k < 1, more places than a SearchResult has.
      TypeError: scores that are not floating point, indices that are not integers.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> grades = [[0, 3, 2]]
      >>> ndcg = metrics.normalized_discounted_cumulative_gain([[0.9, 0.8, 0.1]], grades)
      >>> print(f"{ndcg:.4f}")    # (3 / log2(3) + 2 / log2(4)) / (3 / log2(2) + 2 / log2(3))
      0.6788
      >>> import dbnorm_jax as dbn
      >>> found = dbn.top_k([[0.9, 0.8, 0.1]], 2)
      >>> csr = [0, 2], [1, 2], [3, 2]
      >>> print(metrics.normalized_discounted_cumulative_gain(found, csr, 1))
      0.0

    References:
      Järvelin and Kekäläinen, ACM TOIS 2002; ties as in McSherry and Najork, ECIR 2008;
      `m_ndcg_cut.c` of trec_eval.
    """
    k = None if k is None else checks.integer("k", k, low=1)
    if isinstance(scores, SearchResult):
        num_gallery = _num_columns(grades)
        found = _check_found(scores, k, exclude, where, num_gallery)
        rows, values = relevance.graded_rows(grades, (found.shape[0], num_gallery))
        above, level = _places_found(found, rows)
        return _gain(values, above, level, _discounts(found.shape[1], values.dtype))
    scores = check_scores(scores, batched=True)
    values = relevance.graded_matrix(grades, scores.shape)
    pairs = seen.by_query(where, exclude, scores.shape)
    dtype = numerics.accumulation_dtype(scores.dtype, values.dtype)
    return _gain_of_scores(scores, values, pairs, _discounts(_last(k, scores), dtype))


def stream_normalized_discounted_cumulative_gain(
    queries: ArrayLike,
    gallery: ArrayLike,
    grades: Grades,
    correction: Correction | None = None,
    *,
    k: int | None = None,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
    gates: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
    mesh: Mesh | None = None,
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
) -> jax.Array:
    """`normalized_discounted_cumulative_gain` of corrected scores from embeddings in one pass.

    Never holds queries x gallery, but a few numbers per query and graded item. Ties are
    expectations, and copies of a graded item are level with it, as in `stream_ranks`.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim] embeddings.
      grades: as in `normalized_discounted_cumulative_gain`; inside jit lists (indices, grades).
      correction: fields [num_terms, num_gallery].
      k: the cut-off, >= 1; all places when None (static).
      exclude: int [num_queries] or [num_queries, most], gallery rows a query never sees, -1 = none.
      where: bool [num_gallery], the items that are there.
      gates: [num_queries, num_terms]; those of the raw similarities when None.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: queries held at once (static).
      mesh: optional, the devices that share the work; as in `stream_bank_statistics`.
      bank_axis: mesh axis over which queries are split; a tuple of several, or None for whole.
      gallery_axis: mesh axis over which gallery items are split, likewise.

    Returns:
      Scalar in [0, 1]; NaN when no query has a grade above 0 of an item that it sees.

    Raises:
      ValueError, TypeError: as `stream_ranks`; of grades and k as
        `normalized_discounted_cumulative_gain`.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> gallery, grades = [[1.0, 0.0], [0.0, 1.0]], ([[0]], [[2]])
      >>> ndcg = metrics.stream_normalized_discounted_cumulative_gain([[0.6, 0.8]], gallery, grades)
      >>> print(f"{ndcg:.4f}")    # at place 2: log2(2) / log2(3)
      0.6309
    """
    k = None if k is None else checks.integer("k", k, low=1)
    how = layout.layout(mesh, bank_axis, gallery_axis), similarity_fn, chunk_size
    num_queries, split, *asked = asking(
        how, queries, gallery, correction, exclude, where, gates, filling_up=mesh is None
    )
    rows, values = relevance.graded_rows(grades, (num_queries, split.num_gallery))
    # Queries that fill up have no graded item, so they do not count.
    rows = split.along_rows(filling.filled_up(rows, split.num_rows, -1), -1)
    values = filling.filled_up(values, split.num_rows, 0)
    places = checks.unsplit(drive.places(*asked, rows, split=split))
    dtype = numerics.accumulation_dtype(asked[0].dtype, asked[1].dtype, values.dtype)
    last = split.num_gallery if k is None else min(k, split.num_gallery)
    return _gain_of_seen(values, *places, _discounts(last, dtype))


def _last(k: int | None, scores: jax.Array) -> int:
    return scores.shape[-1] if k is None else min(k, scores.shape[-1])


def _discounts(last: int, dtype: jnp.dtype) -> Any:
    """[2, last + 1], the sums of the first 0, 1, ..., last discounts in two parts, high and low.

    A discount is the difference of two sums. Of a million they are near 5e4, where float32 steps by
    .004, and a discount there is .05: what float32 rounds off a sum is kept as its low part.
    """
    sums = np.concatenate([[0], np.cumsum(1 / np.log2(2 + np.arange(last)))])
    high = sums.astype(dtype)
    return np.stack([high, (sums - high.astype(np.float64)).astype(dtype)])


@jax.jit
def _gain_of_scores(
    scores: jax.Array, grades: jax.Array, seen: jax.Array | None, discounts: Any
) -> jax.Array:
    return _gain(*_in_order(scores, grades, seen), discounts)


@jax.jit
def _gain(grades: jax.Array, above: jax.Array, level: jax.Array, discounts: jax.Array) -> jax.Array:
    """[...] nDCG of grades [..., num_queries, most] of items that are level at these places."""
    last = discounts.shape[1] - 1
    grades = grades.astype(discounts.dtype)
    largest = grades.max(axis=-1, keepdims=True)
    grades = numerics.over(grades, jnp.where(largest > 0, largest, 1))  # no sum overflows

    def gain(first: jax.Array, beyond: jax.Array, grades: jax.Array) -> jax.Array:
        """Each grade by the sum of the discounts from one place to another."""
        high, low = discounts[:, jnp.minimum(beyond, last)] - discounts[:, jnp.minimum(first, last)]
        return grades * (high + low)

    found = gain(above, above + level, grades) / jnp.maximum(level, 1).astype(grades.dtype)
    best = lax.top_k(grades, min(last, grades.shape[-1]))[0]
    place = jnp.broadcast_to(lax.iota(jnp.int32, best.shape[-1]), best.shape)
    ideal = gain(place, place + 1, best).sum(axis=-1)
    counted = largest[..., 0] > 0
    # At most 1, but for the rounding of two sums in different orders.
    shares = jnp.minimum(found.sum(axis=-1) / jnp.where(counted, ideal, 1), 1)
    return mean_counted(shares, counted, axis=-1)


@jax.jit
def _gain_of_seen(grades: jax.Array, above: Any, level: Any, discounts: Any) -> jax.Array:
    """`_gain` of those items that are level with something, as what is seen is with itself."""
    return _gain(jnp.where(level > 0, grades, 0), above, level, discounts)


def _in_order(
    scores: jax.Array, gains: jax.Array, seen: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gains [..., num_queries, num_gallery] of items that are seen, best item first.

    With each int32 items above it and level with it. What is not seen gains 0 behind all others.
    """
    scores = numerics.below_every_number(scores)
    if seen is not None:
        scores, gains = (
            jnp.where(seen, scores, -jnp.inf),
            jnp.where(seen, gains, jnp.zeros((), gains.dtype)),
        )
    ordered, gains = lax.sort((-scores, gains), num_keys=1, is_stable=False)
    place = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    differs = ordered[..., 1:] != ordered[..., :-1]
    pad = [(0, 0)] * (scores.ndim - 1)
    begins = jnp.pad(differs, [*pad, (1, 0)], constant_values=True)
    ends = jnp.pad(differs, [*pad, (0, 1)], constant_values=True)
    axis = scores.ndim - 1
    above = lax.cummax(jnp.where(begins, place, 0), axis)
    beyond = lax.cummin(jnp.where(ends, place + 1, scores.shape[-1]), axis, reverse=True)
    return gains, above, beyond - above


@jax.jit
def _places_found(found: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[num_queries, most] places before each of `rows` where it is found; level: whether it is."""

    def one(found: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        order = jnp.argsort(found)
        near = jnp.minimum(jnp.searchsorted(found[order], rows), len(found) - 1)
        here = (found[order][near] == rows) & (rows >= 0)
        return jnp.where(here, order[near], 0).astype(jnp.int32), here.astype(jnp.int32)

    return jax.vmap(one)(found, rows)


def precision_at(
    scores: ArrayLike | SearchResult,
    relevant: Relevant,
    k: int,
    *,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """P@k, the mean over queries of the share of right items among the first k.

    As `P` in trec_eval: of k places, also where a query sees fewer items. Of scores, it is the
    expectation over all orders of tied items; of a SearchResult, the order is that of its places.

    Args:
      scores: [num_queries, num_gallery], higher is better; may hold infinities, not NaN. Or a
        SearchResult of [num_queries, places], as `stream_top_k` finds it.
      relevant: the right items, in one of the forms of this module; inside jit, for a SearchResult,
        an int array.
      k: the cut-off, >= 1 (static); of a SearchResult, at most its places.
      exclude: as in `ranks`; not for a SearchResult.
      where: as in `ranks`; not for a SearchResult.

    Returns:
      Scalar in [0, 1]; queries without a right item are left out, NaN when no query counts.

    Raises:
      ValueError, TypeError: as `ranks`; k < 1, more places than a SearchResult has.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> print(metrics.precision_at([[0.9, 0.8, 0.7, 0.1]], [[0, 2, 3, -1, -1]], 2))
      0.5
    """
    k = checks.integer("k", k, low=1)
    if isinstance(scores, SearchResult):
        hits, answered = _hits(scores, relevant, k, exclude, where)
        return mean_counted(hits / k, answered)
    scores = check_scores(scores)
    right = relevance.as_matrix(relevant, scores.shape)
    return _precision(scores, right, seen.by_query(where, exclude, scores.shape), k)


@jax.jit
def _precision(
    scores: jax.Array, right: jax.Array, seen: jax.Array | None, k: jax.Array
) -> jax.Array:
    dtype = numerics.accumulation_dtype(scores.dtype)
    right, above, level = _in_order(scores, right, seen)
    within = jnp.clip(k - above, 0, level).astype(dtype) / level.astype(dtype)
    hits = jnp.where(right, within, 0).sum(axis=-1)
    return mean_counted(hits / k.astype(dtype), right.any(axis=-1))


def success_at(
    scores: ArrayLike | SearchResult,
    relevant: Relevant,
    k: int,
    *,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The share of queries with a right item among the first k, as `success` in trec_eval.

    Papers on retrieval call it R@k. Of scores, it is the expectation over all orders of tied items,
    where `recall_at` compares the expected rank with k; without ties both are equal. Of a
    SearchResult, the order is that of its places.

    Args:
      scores: as in `precision_at`.
      relevant: as in `precision_at`.
      k: the cut-off, >= 1 (static); of a SearchResult, at most its places.
      exclude: as in `ranks`; not for a SearchResult.
      where: as in `ranks`; not for a SearchResult.

    Returns:
      Scalar in [0, 1]; queries without a right item are left out, NaN when no query counts.

    Raises:
      ValueError, TypeError: as `precision_at`.

    Examples:
      >>> from dbnorm_jax import metrics
      >>> scores = [[0.9, 0.8, 0.7], [0.5, 0.5, 0.5]]
      >>> print(metrics.success_at(scores, [0, 1], 1).round(4))    # (1 + 1 / 3) / 2
      0.6667
    """
    k = checks.integer("k", k, low=1)
    if isinstance(scores, SearchResult):
        hits, answered = _hits(scores, relevant, k, exclude, where)
        return mean_counted(hits.clip(max=1), answered)
    scores = check_scores(scores)
    right = relevance.as_matrix(relevant, scores.shape)
    return _success(scores, right, seen.by_query(where, exclude, scores.shape), k)


@jax.jit
def _success(
    scores: jax.Array, right: jax.Array, seen: jax.Array | None, k: jax.Array
) -> jax.Array:
    ahead, answered = ahead_of_best(scores, right, seen)
    return mean_counted(counts.success(ahead, k, scores.dtype), answered)


def _hits(
    result: SearchResult, relevant: Any, k: int, exclude: Any, where: Any
) -> tuple[jax.Array, jax.Array]:
    """[num_queries] right items among the first k of each query; and whether it has any."""
    is_rows = isinstance(relevant, tuple) or checks.numeric("relevant", relevant).dtype != bool
    num_gallery = checks.MOST_ROWS if is_rows else _num_columns(relevant)
    found = _check_found(result, k, exclude, where, num_gallery)
    right = counts.distinct(relevance.as_rows(relevant, (found.shape[0], num_gallery)))
    hits = _places_found(found, right)[1].sum(axis=-1)
    return hits.astype(numerics.accumulation_dtype(result.scores.dtype)), (right >= 0).any(axis=-1)


def _num_columns(matrix: Any) -> int:
    """The size of the gallery; what is no matrix leaves it open."""
    is_matrix = not isinstance(matrix, tuple) and np.ndim(matrix) == 2
    return np.shape(matrix)[1] if is_matrix else checks.MOST_ROWS


def _check_found(
    result: SearchResult, k: int | None, exclude: Any, where: Any, num_gallery: int
) -> jax.Array:
    """[num_queries, k] gallery rows, -1 where a place is empty."""
    for name, value in (("exclude", exclude), ("where", where)):
        if value is not None:
            raise checks.BadValueError(
                name, " must be None for a SearchResult: give it to the search, got a value"
            )
    found = checks.indices("scores.indices", result.indices, low=-1, high=num_gallery, ndim=2)
    if 0 in found.shape:
        raise checks.BadValueError(
            "scores.indices", f" must have at least one query and place, got shape {found.shape}"
        )
    if k is not None and k > found.shape[1]:
        raise checks.BadValueError(
            "k", f" must be at most {found.shape[1]}, the places of the SearchResult, got {k}"
        )
    if checks.is_concrete(found):
        order = np.sort(np.asarray(found), axis=1)
        again = (order[:, 1:] == order[:, :-1]) & (order[:, 1:] >= 0)
        if again.any():
            query, place = np.argwhere(again)[0].tolist()
            raise checks.BadValueError(
                "scores.indices",
                f" must hold a gallery row once per query, got row {order[query, place]} repeated "
                f"for query {query}",
            )
    return found[:, :k]
