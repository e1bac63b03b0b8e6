"""A corrected search as a plain inner product: for any index, one more dimension per term.

    s(q, g) - sum_t gate_t(q) bias_t(g) = [q, gate(q)] . [g, -bias(g)]

The gallery side is written once, when the index is built; the query side per request. Corrections
that always act have gates of 1. Those of DIS and DualDIS depend on the nearest raw item, which the
same index finds under gates of 0: two searches.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, filling, numerics, similarity
from dbnorm_jax._src.core.similarity import SimilarityFn, check_streamed, checked_rows, dot_product
from dbnorm_jax._src.core.types import Correction

_METRICS = ("inner_product", "cosine")
# Lengths agree to so many roundings: a row of the given length is not too long.
_ROUNDINGS = 8


def inner_product_vectors(
    queries: ArrayLike,
    gallery: ArrayLike,
    correction: Correction,
    *,
    gates: ArrayLike,
    similarity_fn: SimilarityFn = dot_product,
    center: bool = True,
    shift: ArrayLike = 0.0,
    metric: str = "inner_product",
    length: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Both sides of `[q, gate(q)] . [g, -bias(g)]`, the corrected score up to a constant per query.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim] embeddings.
      correction: with fields [num_terms, num_gallery].
      gates: [num_queries, num_terms], or [num_terms] for all, as of `gates_from_top_1` or `gates`.
      similarity_fn: as in `inner_product_gallery` (static).
      center: as in `inner_product_gallery` (static).
      shift: as in `inner_product_gallery`.
      metric: as in `inner_product_gallery` (static).
      length: as in `inner_product_gallery`.

    Returns:
      What `inner_product_queries` and `inner_product_gallery` return.

    Raises:
      ValueError, TypeError: as they do.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> correction = dbn.Correction(bias=jnp.array([[0.5, 0.0]]))
      >>> queries, gallery = dbn.inner_product_vectors(
      ...     [[1.0, 0.0]], [[1.0, 0.0], [0.8, 0.6]], correction, gates=[1.0])
      >>> print(queries, gallery, queries @ gallery.T)
      [[1. 0. 1.]] [[ 1.    0.   -0.25] [ 0.8   0.6   0.25]] [[0.75 1.05]]
    """
    queries, gallery = checked_rows(similarity_fn, queries=queries, gallery=gallery)
    options: Any = {"similarity_fn": similarity_fn, "metric": metric}
    indexed = inner_product_gallery(
        gallery, correction, center=center, shift=shift, length=length, **options
    )
    gates = _checked_gates(gates, queries.shape[0])
    if gates.shape[-1] != correction.num_terms:
        raise checks.BadValueError(
            "gates",
            f" must have one column per term of `correction`, expected "
            f"{correction.num_terms}, got shape {(queries.shape[0], gates.shape[-1])}",
        )
    return inner_product_queries(queries, gates, **options), indexed


def inner_product_gallery(
    gallery: ArrayLike,
    correction: Correction,
    *,
    similarity_fn: SimilarityFn = dot_product,
    center: bool = True,
    shift: ArrayLike = 0.0,
    metric: str = "inner_product",
    length: ArrayLike | None = None,
) -> jax.Array:
    """Vectors to index, `[g, -bias_1(g), ..., -bias_t(g)]`: made once, when the index is built.

    Biases are centered, so that an index that stores few bits spends them on differences. Every
    score of a query moves by `sum_t gate_t(q) mean(bias_t)`, which changes no rank.
    A graph index (HNSW) links items by their own inner products. A `shift` c of the bias columns
    makes them `s(g, h) - c (bias(g) + bias(h))` up to a constant and the small product of both
    biases: links lead to items that a corrected search ranks high. No rank of a query changes.
    A negative squared distance is `[2 q, 1] . [g, -|g|^2]` up to `|q|^2`: one dimension more, after
    the terms. A store that knows cosines only gets vectors of one `length` (Bachrach et al., RecSys
    2014), by a last dimension `sqrt(length^2 - |rest|^2)` which queries meet with 0. Its cosines
    are the scores over `length` and over the length of the query's vector.

    Args:
      gallery: [num_gallery, dim] embeddings.
      correction: with fields [num_terms, num_gallery]; its gates do not matter here.
      similarity_fn: what the correction was fitted with (static): `dot_product`,
        `cosine_similarity` (rows are normalized) or `negative_squared_euclidean`.
      center: whether to subtract the means (static). Where a gallery grows or is written in parts,
        subtract one mean for all parts from `correction.bias` and turn it off.
      shift: what is added to every bias column, for unit rows in a graph index 0.5; 0 serves exact
        indexes, and those that store few bits or compare by cosine, where it costs digits.
      metric: "inner_product", or "cosine" for stores that normalize (static).
      length: with "cosine", the common length, at least that of the longest vector; that one's when
        None. Give it where a gallery grows or is written in parts.

    Returns:
      [num_gallery, dim + num_terms] in at least float32; one column more for squared distances, one
      more for "cosine".

    Raises:
      ValueError: bad embeddings, a correction of another gallery or similarity, a short `length`.
      TypeError: embeddings that are not floating point, no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> correction = dbn.Correction(bias=jnp.array([[0.5, 0.0]]))
      >>> print(dbn.inner_product_gallery([[1.0, 0.0], [0.8, 0.6]], correction))
      [[ 1.    0.   -0.25] [ 0.8   0.6   0.25]]
    """
    _check_options(similarity_fn, metric)
    (gallery,) = checked_rows(similarity_fn, gallery=gallery)
    check_streamed(correction, gallery.shape[0])
    correction = checks.unsplit(correction)
    similarity.check_similarity("correction", correction, similarity_fn, gallery)
    center = checks.flag("center", center)
    shift = checks.floating("shift", shift, ndim=0)
    rows = _gallery_rows(
        gallery, correction.bias, shift, similarity_fn=similarity_fn, center=center
    )
    if metric == "inner_product":
        if length is not None:
            raise checks.BadValueError(
                "length", ' must be None unless `metric` is "cosine"; leave it out'
            )
        return rows
    if length is not None:
        length = checks.positive("length", length, rows.dtype)
        if length.ndim:
            raise checks.BadValueError("length", f" must be one number, got shape {length.shape}")
        if checks.is_concrete(rows, length):
            _check_length(rows, length)
    return _of_one_length(rows, length)


def inner_product_queries(
    queries: ArrayLike,
    gates: ArrayLike,
    *,
    similarity_fn: SimilarityFn = dot_product,
    metric: str = "inner_product",
) -> jax.Array:
    """Vectors to search with, `[q, gate_1(q), ..., gate_t(q)]`: made per request.

    Args:
      queries: [num_queries, dim] embeddings.
      gates: [num_queries, num_terms], or [num_terms] for all queries alike: 1 where a term acts
        (always for IS, DualIS, CSLS, ...), 0 for the raw search; `gates_from_top_1` for DIS.
      similarity_fn: as for the gallery (static).
      metric: as for the gallery (static).

    Returns:
      [num_queries, dim + num_terms] in at least float32; columns as of `inner_product_gallery`.

    Raises:
      ValueError: bad embeddings or gates, another similarity function.
      TypeError: arrays that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> print(dbn.inner_product_queries([[0.6, 0.8]], [1.0, 0.0]))
      [[0.6 0.8 1.  0. ]]
    """
    _check_options(similarity_fn, metric)
    num_queries, queries = filling.checked_queries(queries)
    (queries,) = checked_rows(similarity_fn, queries=queries)
    gates = _checked_gates(gates, num_queries)
    gates = gates[None] if gates.ndim == 1 else filling.filled_up(gates, queries.shape[0])
    rows = _query_rows(queries, gates, similarity_fn=similarity_fn, cosine=metric == "cosine")
    return filling.cut(rows, num_queries)


def gates_from_top_1(indices: ArrayLike, correction: Correction) -> jax.Array:
    """`gates` by each query's nearest raw item in any index: `a_t(q) = active_t(nearest(q))`.

    Args:
      indices: [num_queries] integers, the gallery row of each query's raw top-1.
      correction: with fields [num_terms, num_gallery].

    Returns:
      [num_queries, num_terms] in [0, 1]; 1 where `correction.active` is None.

    Raises:
      ValueError: rows out of range (engines return -1 where they found nothing), another shape.
      TypeError: indices that are no integers, no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> active = jnp.array([[True, False, True], [True, True, False]])
      >>> print(dbn.gates_from_top_1([0, 2], dbn.Correction(jnp.zeros((2, 3)), active)))
      [[1. 1.] [1. 0.]]
    """
    checks.correction(correction, Correction)
    correction = checks.unsplit(correction)
    checks.unbatched(correction)
    if np.ndim(indices) != 1:
        raise checks.BadValueError(
            "indices",
            f" must have 1 axis, the nearest item of each query, got shape "
            f"{np.shape(indices)}; take column 0 of a search result",
        )
    rows = checks.indices("indices", indices, low=0, high=correction.num_gallery)
    return filling.cut(_gates_from_top_1(filling.filled_up(rows), correction), rows.shape[0])


@jax.jit
def _gates_from_top_1(indices: jax.Array, correction: Correction) -> jax.Array:
    dtype = numerics.accumulation_dtype(correction.bias.dtype)
    if correction.active is None:
        return jnp.ones((indices.shape[0], correction.num_terms), dtype)
    return correction.active[:, indices].T.astype(dtype)


def _check_options(similarity_fn: SimilarityFn, metric: str) -> None:
    if metric not in _METRICS:
        raise checks.BadValueError(
            "metric", f" must be one of {', '.join(_METRICS)}, got {metric!r}"
        )
    if similarity.name_of(similarity_fn) is None:
        name = getattr(similarity_fn, "__name__", repr(similarity_fn))
        raise checks.BadValueError(
            "similarity_fn",
            f" must be dot_product, cosine_similarity or "
            f"negative_squared_euclidean, which have inner-product forms, got {name}; search with "
            f"stream_top_k instead",
        )


def _checked_gates(gates: Any, num_queries: int) -> jax.Array:
    """[num_queries, num_terms] gates, or [num_terms] for all."""
    array = checks.floating("gates", gates, min_ndim=1)
    if array.ndim == 1 and array.shape[0]:
        return array
    if array.ndim != 2 or array.shape[0] != num_queries or not array.shape[1]:
        raise checks.BadValueError(
            "gates",
            f" must have shape [num_queries, num_terms] with {num_queries} queries, or "
            f"[num_terms] for all alike, got {array.shape}",
        )
    return array


def _check_length(rows: jax.Array, length: jax.Array) -> None:
    norms = np.linalg.norm(np.asarray(rows, np.float64), axis=1)
    if norms.max() > float(length) * (1 + _ROUNDINGS * float(jnp.finfo(rows.dtype).eps)):  # type: ignore[no-untyped-call]
        raise checks.BadValueError(
            "length",
            f" must be at least the length of every vector, got {float(length):g} but "
            f"{norms.max():g} at row {int(norms.argmax())}; build the index anew with a larger one",
        )


@functools.partial(jax.jit, static_argnames=("similarity_fn", "center"))
def _gallery_rows(
    gallery: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    *,
    similarity_fn: SimilarityFn,
    center: bool,
) -> jax.Array:
    dtype = numerics.accumulation_dtype(gallery.dtype, bias.dtype)
    gallery, columns = gallery.astype(dtype), -bias.astype(dtype)
    if similarity_fn is similarity.cosine_similarity:
        gallery = numerics.normalize_rows(gallery)
    if center:
        columns -= columns.mean(axis=1, keepdims=True)
    columns += shift.astype(dtype)
    if similarity_fn is similarity.negative_squared_euclidean:
        squares = -jnp.square(gallery).sum(axis=1)[None]
        if center:
            squares -= squares.mean()
        columns = jnp.concatenate([columns, squares])
    return jnp.concatenate([gallery, columns.T], axis=1)


@functools.partial(jax.jit, static_argnames=("similarity_fn", "cosine"))
def _query_rows(
    queries: jax.Array, gates: jax.Array, *, similarity_fn: SimilarityFn, cosine: bool
) -> jax.Array:
    columns = [jnp.broadcast_to(gates, (queries.shape[0], gates.shape[1]))]
    dtype = numerics.accumulation_dtype(queries.dtype, gates.dtype)
    queries = queries.astype(numerics.accumulation_dtype(queries.dtype))
    if similarity_fn is similarity.cosine_similarity:
        queries = numerics.normalize_rows(queries)
    if similarity_fn is similarity.negative_squared_euclidean:
        queries = 2 * queries
        columns.append(jnp.ones((queries.shape[0], 1), queries.dtype))
    if cosine:
        columns.append(jnp.zeros((queries.shape[0], 1), queries.dtype))
    return jnp.concatenate([array.astype(dtype) for array in (queries, *columns)], axis=1)


@jax.jit
def _of_one_length(rows: jax.Array, length: jax.Array | None) -> jax.Array:
    squares = jnp.square(rows).sum(axis=1)
    left = (squares.max() if length is None else jnp.square(length)) - squares
    some = left > 0
    # Double where: sqrt has an infinite slope at 0.
    last = jnp.where(some, jnp.sqrt(jnp.where(some, left, 1)), 0)
    return jnp.concatenate([rows, last[:, None]], axis=1)
