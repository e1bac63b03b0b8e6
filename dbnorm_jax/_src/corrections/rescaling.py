"""Corrections that rescale whole matrices: GC, MP, LS, NICDM, DSL. Part of `dbnorm_jax.baselines`.

They are no sum of a similarity and one number per gallery item, so they need the matrices. GC and
DSL take and return scores, higher is closer. MP, LS and NICDM are defined on distances and return
distances, lower is closer: search with their negative.

    distances          [num_queries, num_gallery]
    query_distances    [num_queries, num_objects]  from each query to the objects it is judged by
    gallery_distances  [num_objects, num_gallery]  from such objects to each gallery item

The two sets of objects may differ, but for the empiric mutual proximity. Inductive use judges
gallery items by the query bank, and queries by the gallery.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, elementary, numerics
from dbnorm_jax._src.passes import selection


def globally_corrected(similarities: ArrayLike, bank_similarities: ArrayLike) -> jax.Array:
    """GC: rank the query among the bank from the item's side, `-rank + s(q, g)`.

    `rank = 1 + #{b: s(b, g) > s(q, g)}`; the similarity breaks ties, so it should span less than 1.

    Args:
      similarities: [num_queries, num_gallery], higher is closer.
      bank_similarities: [num_query_bank, num_gallery].

    Returns:
      [num_queries, num_gallery] scores, higher is closer. In float32 the tie-break keeps
      2^-24 x rank of its resolution.

    Raises:
      ValueError: empty or non-finite matrices, or ones of different galleries.
      TypeError: matrices that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> similarities, bank = jnp.array([[0.5, 0.25]]), jnp.array([[0.75, 0.0], [0.625, 0.25]])
      >>> print(dbn.baselines.globally_corrected(similarities, bank))
      [[-2.5  -0.75]]

    References:
      Dinu et al., ICLR 2015 workshop.
    """
    similarities = _matrix("similarities", similarities)
    bank = _matrix("bank_similarities", bank_similarities)
    _same("similarities", similarities, "bank_similarities", bank, axis=1, what="gallery items")
    return _globally_corrected(similarities, bank)


@jax.jit
def _globally_corrected(similarities: jax.Array, bank: jax.Array) -> jax.Array:
    def column(scores: jax.Array, ordered: jax.Array) -> jax.Array:
        return bank.shape[0] - jnp.searchsorted(ordered, scores, side="right")

    above = jax.vmap(column, in_axes=1, out_axes=1)(similarities, jnp.sort(bank, axis=0))
    return similarities - (1 + above).astype(similarities.dtype)


def dual_softmax(similarities: ArrayLike, *, temperature: ArrayLike) -> jax.Array:
    """DSL: `s(q, g) x softmax over the test queries of s / temperature x num_queries`.

    Transductive: every score depends on the other test queries, which a served query does not have.
    Never compare it with inductive numbers.

    Args:
      similarities: [num_queries, num_gallery], higher is closer.
      temperature: > 0, in the unit of similarity.

    Returns:
      [num_queries, num_gallery] scores.

    Raises:
      ValueError: an empty or non-finite matrix, temperature <= 0.
      TypeError: a matrix that is not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> print(dbn.baselines.dual_softmax(jnp.array([[1.0, 0.5], [1.0, 0.5]]), temperature=1.0))
      [[1.  0.5]
       [1.  0.5]]

    References:
      Cheng et al., 2021 (CAMoE).
    """
    similarities = _matrix("similarities", similarities)
    temperature = checks.positive(
        "temperature", temperature, similarities.dtype, " (in the unit of similarity)"
    )
    return _dual_softmax(similarities, temperature)


@jax.jit
def _dual_softmax(similarities: jax.Array, temperature: jax.Array) -> jax.Array:
    # Written: their maximum is subtracted from them.
    shares = jax.nn.softmax(elementary.written(similarities / temperature), axis=0)
    return similarities * shares * similarities.shape[0]


def mutual_proximity(
    distances: ArrayLike,
    query_distances: ArrayLike,
    gallery_distances: ArrayLike,
    *,
    method: str = "gaussian",
) -> jax.Array:
    """MP: one less the chance that a random object is farther from both ends of the pair.

    "gaussian": `1 - SF(d; mu_q, sd_q) SF(d; mu_g, sd_g)` of normal distributions with the mean and
    population deviation of each end's distances. "empiric": one less the share of objects j with
    `d(q, j) > d(q, g)` and `d(j, g) > d(q, g)`.

    Args:
      distances: [num_queries, num_gallery].
      query_distances: [num_queries, num_objects].
      gallery_distances: [num_objects, num_gallery]; the same objects for "empiric".
      method: "gaussian" or "empiric" (static).

    Returns:
      [num_queries, num_gallery] in [0, 1], a distance: lower is closer.

    Raises:
      ValueError: empty or non-finite matrices, shapes that do not fit, an unknown method.
      TypeError: matrices that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> of_query = jnp.array([[3.0, 1.0, 3.0, 4.0]])
      >>> of_item = jnp.array([[3.0], [3.0], [2.0], [5.0]])
      >>> print(dbn.baselines.mutual_proximity(
      ...     jnp.array([[2.0]]), of_query, of_item, method="empiric"))    # objects 0 and 3 of 4
      [[0.5]]

    References:
      Schnitzer et al., JMLR 2012.
    """
    matrices = _distances(distances, query_distances, gallery_distances)
    if method == "gaussian":
        return _gaussian(*matrices)
    if method != "empiric":
        raise checks.BadValueError("method", f" must be 'gaussian' or 'empiric', got {method!r}")
    if matrices[1].shape[1] != matrices[2].shape[0]:
        raise checks.BadValueError(
            "query_distances",
            f" and `gallery_distances` must be to the same objects, got "
            f"{matrices[1].shape[1]} columns and {matrices[2].shape[0]} rows",
        )
    return _empiric(*matrices)


@jax.jit
def _gaussian(
    distances: jax.Array, query_distances: jax.Array, gallery_distances: jax.Array
) -> jax.Array:
    def survival(of: jax.Array, axis: int) -> jax.Array:
        mean = of.mean(axis=axis, keepdims=True)
        deviation = of.std(axis=axis, keepdims=True)
        spread = deviation > 0
        # Equal distances: a step at the mean.
        step = jnp.where(distances < mean, 1.0, jnp.where(distances > mean, 0.0, 0.5))
        standard = (distances - mean) / jnp.where(spread, deviation, 1)
        return jnp.where(spread, jax.scipy.stats.norm.sf(standard), step)

    return 1 - survival(query_distances, 1) * survival(gallery_distances, 0)


@jax.jit
def _empiric(
    distances: jax.Array, query_distances: jax.Array, gallery_distances: jax.Array
) -> jax.Array:
    def add_object(count: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        from_query, from_item = ends
        farther = (from_query[:, None] > distances) & (from_item[None] > distances)
        return count + farther.astype(jnp.int32), None

    start = jnp.zeros(distances.shape, jnp.int32)
    count, _ = lax.scan(add_object, start, (query_distances.T, gallery_distances))
    return 1 - count.astype(distances.dtype) / gallery_distances.shape[0]


def local_scaling(
    distances: ArrayLike,
    query_distances: ArrayLike,
    gallery_distances: ArrayLike,
    *,
    k: int | None = None,
) -> jax.Array:
    """LS: `1 - exp(-d^2 / (r_q r_g))`, `r` the distance to the k-th neighbor.

    Args:
      distances: [num_queries, num_gallery], at least 0.
      query_distances: [num_queries, num_objects], at least 0.
      gallery_distances: [num_objects, num_gallery], at least 0.
      k: the neighbor; by default the 10th, or the last where there are fewer (static).

    Returns:
      [num_queries, num_gallery] in [0, 1], a distance: lower is closer.

    Raises:
      ValueError: empty or non-finite matrices, negative distances, shapes that do not fit, k beyond
        the objects.
      TypeError: matrices that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> of_query, of_item = jnp.array([[9.0, 1.0, 3.0]]), jnp.array([[2.0], [6.0], [9.0]])
      >>> scaled = dbn.baselines.local_scaling(jnp.array([[6.0]]), of_query, of_item, k=2)
      >>> print(f"{scaled[0, 0]:.3f}")    # 1 - exp(-36 / (3 x 6))
      0.865

    References:
      Zelnik-Manor and Perona, NeurIPS 2004.
    """
    return _by_neighbors(_local_scaling, k, distances, query_distances, gallery_distances)


@partial(jax.jit, static_argnames="k")
def _local_scaling(
    distances: jax.Array, query_distances: jax.Array, gallery_distances: jax.Array, *, k: int
) -> jax.Array:
    query_radius, gallery_radius = _smallest(query_distances, gallery_distances, k)
    product = query_radius[:, -1:] * gallery_radius[-1:]
    ratio = jnp.square(distances) / jnp.where(product > 0, product, 1)
    # A neighbor at distance 0: only what is as near stays near.
    return jnp.where(product > 0, -jnp.expm1(-ratio), (distances > 0).astype(distances.dtype))


def nicdm(
    distances: ArrayLike,
    query_distances: ArrayLike,
    gallery_distances: ArrayLike,
    *,
    k: int | None = None,
) -> jax.Array:
    """NICDM: `d / sqrt(m_q m_g)`, `m` the mean distance to the k nearest.

    Args:
      distances: [num_queries, num_gallery], at least 0.
      query_distances: [num_queries, num_objects], at least 0.
      gallery_distances: [num_objects, num_gallery], at least 0.
      k: neighbors in the mean; by default 10, or all where there are fewer (static).

    Returns:
      [num_queries, num_gallery], a distance: lower is closer.

    Raises:
      ValueError: as `local_scaling`.
      TypeError: matrices that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> of_query, of_item = jnp.array([[9.0, 1.0, 3.0]]), jnp.array([[2.0], [6.0], [9.0]])
      >>> print(dbn.baselines.nicdm(jnp.array([[6.0]]), of_query, of_item, k=2).round(3))
      [[2.121]]

    References:
      Jegou et al., CVPR 2007.
    """
    return _by_neighbors(_nicdm, k, distances, query_distances, gallery_distances)


@partial(jax.jit, static_argnames="k")
def _nicdm(
    distances: jax.Array, query_distances: jax.Array, gallery_distances: jax.Array, *, k: int
) -> jax.Array:
    of_query, of_gallery = _smallest(query_distances, gallery_distances, k)
    product = of_query.mean(axis=1, keepdims=True) * of_gallery.mean(axis=0, keepdims=True)
    tiny = float(jnp.finfo(distances.dtype).tiny)  # type: ignore[no-untyped-call]
    return distances / jnp.sqrt(jnp.maximum(product, tiny))


def _smallest(
    query_distances: jax.Array, gallery_distances: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """([num_queries, k], [k, num_gallery]) smallest distances, nearest first."""
    of_query = -lax.top_k(-query_distances, k)[0]
    return of_query, -selection.largest_of_columns(-gallery_distances, k)


def _matrix(name: str, value: Any) -> jax.Array:
    array = checks.read_alike(checks.floating(name, value, ndim=2))
    if 0 in array.shape:
        raise checks.BadValueError(name, f" must have rows and columns, got shape {array.shape}")
    return checks.converted(array, numerics.accumulation_dtype(array.dtype))


_DISTANCES = ("distances", "query_distances", "gallery_distances")


def _distances(*values: Any) -> list[jax.Array]:
    matrices = list(map(_matrix, _DISTANCES, values))
    _same(_DISTANCES[0], matrices[0], _DISTANCES[1], matrices[1], axis=0, what="queries")
    _same(_DISTANCES[0], matrices[0], _DISTANCES[2], matrices[2], axis=1, what="gallery items")
    return matrices


def _by_neighbors(rescaled: Callable[..., jax.Array], k: int | None, *values: Any) -> jax.Array:
    matrices = _distances(*values)
    for name, array in zip(_DISTANCES, matrices, strict=True):
        if checks.found(checks.is_negative, array):
            raise checks.BadValueError(
                name, " must hold distances of at least 0, found negative ones"
            )
    fewest = min(matrices[1].shape[1], matrices[2].shape[0])
    return rescaled(*matrices, k=checks.neighbors("k", k, 10, high=fewest, of=" (objects)"))


def _same(
    first_name: str, first: jax.Array, second_name: str, second: jax.Array, *, axis: int, what: str
) -> None:
    if first.shape[axis] != second.shape[axis]:
        raise checks.BadValueError(
            first_name,
            f" and `{second_name}` must have the same {what} along axis {axis}, got "
            f"shapes {first.shape} and {second.shape}",
        )
