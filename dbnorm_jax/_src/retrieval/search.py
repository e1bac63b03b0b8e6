"""From similarities and a Correction to scores and neighbors.

    score(q, g) = s(q, g) - sum_t gate_t(q) bias_t(g)

The gate of a query is the activity of its raw top-1 gallery item, read from the similarity before
anything is subtracted; ties go to the lowest gallery index everywhere. Gallery items that a query
does not see, by `exclude` or `where`, are not found, and are no top-1 for its gates.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, elementary, filling, numerics, seen, similarity
from dbnorm_jax._src.core.prepared import PreparedGallery
from dbnorm_jax._src.core.similarity import (
    SimilarityFn,
    check_streamed,
    cosine_similarity,
    dot_product,
)
from dbnorm_jax._src.core.types import Correction, SearchResult
from dbnorm_jax._src.passes import selection, streaming
from dbnorm_jax._src.places.mesh import drive, layout
from dbnorm_jax._src.places.mesh.exchange import Axis


def gates(
    similarities: ArrayLike,
    correction: Correction,
    *,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Which terms act on which query: `a_t(q) = active_t(argmax_g s(q, g))`.

    As in dynamic inverted softmax, Bogolin et al., CVPR 2022.

    Args:
      similarities: [..., num_queries, num_gallery], raw.
      correction: with fields [..., num_terms, num_gallery].
      exclude: optional int [num_queries] or [num_queries, most], gallery rows that a query never
        sees, -1 for none: itself, where it stands in its own gallery.
      where: optional bool [..., num_queries, num_gallery], the pairs that are seen.

    Returns:
      [..., num_queries, num_terms] in [0, 1]; 1 where `correction.active` is None, else 0 for a
      query that sees nothing. Piecewise constant in the similarities: their gradient is zero.

    Raises:
      ValueError: a non-finite matrix, a correction of another gallery.
      TypeError: a matrix that is not floating point, or no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> active = jnp.array([[True, False], [True, True]])
      >>> print(dbn.gates([[0.1, 0.9]], dbn.Correction(jnp.zeros((2, 2)), active)))
      [[0. 1.]]
    """
    similarities, correction = check_matrix(similarities, correction)
    return _gates(similarities, correction, seen.by_query(where, exclude, similarities.shape))


@jax.jit
def _gates(similarities: jax.Array, correction: Correction, pairs: jax.Array | None) -> jax.Array:
    dtype = numerics.accumulation_dtype(similarities.dtype, correction.bias.dtype)
    if correction.active is None:
        lead = jnp.broadcast_shapes(similarities.shape[:-2], correction.bias.shape[:-2])
        return jnp.ones((*lead, similarities.shape[-2], correction.num_terms), dtype)

    def one(row: jax.Array, active: jax.Array) -> jax.Array:
        best, nearest = selection.argmax(row)
        return jnp.where(best > -jnp.inf, active[:, nearest], jnp.zeros((), active.dtype))

    act = numerics.vectorize(one, signature="(g),(t,g)->(t)")
    numbers = _seen(lax.stop_gradient(similarities), pairs)
    return act(numbers, correction.active[..., None, :, :]).astype(dtype)


def apply_correction(
    similarities: ArrayLike, correction: Correction, *, gates: ArrayLike | None = None
) -> jax.Array:
    """Corrected scores `s(q, g) - sum_t a_t(q) bias_t(g)`.

    DualIS and DualDIS of Wang, Jian and Xue, EMNLP 2023, in the log domain.

    Args:
      similarities: [..., num_queries, num_gallery], raw.
      correction: with fields [..., num_terms, num_gallery].
      gates: optional [..., num_queries, num_terms]; those of the raw similarities when None.

    Returns:
      [..., num_queries, num_gallery] in the unit of similarity, at least float32.

    Raises:
      ValueError: a non-finite matrix, or shapes that do not fit.
      TypeError: a matrix that is not floating point, or no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> correction = dbn.Correction(bias=jnp.array([[0.5, 0.25]]))
      >>> print(dbn.apply_correction([[1.0, 0.5]], correction))
      [[0.5  0.25]]
    """
    similarities, correction = check_matrix(similarities, correction)
    gates = seen.gates(gates, correction, similarities.shape[-2])
    return _apply_correction(similarities, correction, gates)


@jax.jit
def _apply_correction(
    similarities: jax.Array, correction: Correction, gates: jax.Array | None
) -> jax.Array:
    dtype = numerics.accumulation_dtype(similarities.dtype, correction.bias.dtype)
    bias = correction.bias.astype(dtype)
    if gates is None and correction.active is None:
        offsets = bias.sum(axis=-2, keepdims=True)
    else:
        if gates is None:
            gates = _gates(similarities, correction, None)
        gates = gates.astype(dtype)
        # Few terms: an unrolled sum is exact in float32 on every backend, a matmul is not.
        terms = [
            gates[..., :, t, None] * bias[..., t, None, :] for t in range(correction.num_terms)
        ]
        offsets = functools.reduce(jnp.add, terms)
    return similarities.astype(dtype) - offsets


def top_k(
    similarities: ArrayLike,
    k: int,
    correction: Correction | None = None,
    *,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
    gates: ArrayLike | None = None,
) -> SearchResult:
    """The k best gallery items of each query from a similarity matrix.

    Args:
      similarities: [..., num_queries, num_gallery], raw.
      k: neighbors per query, between 1 and num_gallery (static).
      correction: optional, fields [..., num_terms, num_gallery].
      exclude: int [num_queries] or [num_queries, most], gallery rows a query never sees, -1 = none.
      where: bool [..., num_queries, num_gallery], the pairs that are seen.
      gates: [..., num_queries, num_terms]; those of the raw similarities when None.

    Returns:
      SearchResult of [..., num_queries, k], best first, ties to the lowest gallery index. A query
      that sees fewer items has score -inf and index -1 in the places left. Inside a caller's jit,
      where values cannot be checked, NaN ranks below every number, with score -inf.

    Raises:
      ValueError: a non-finite matrix, k out of range, or shapes that do not fit.
      TypeError: a matrix that is not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> scores, indices = dbn.top_k([[0.1, 0.9, 0.5]], 2)
      >>> print(scores, indices)
      [[0.9 0.5]] [[1 2]]
    """
    if correction is None:
        similarities = checks.similarities("similarities", similarities, rows="queries")
    else:
        similarities, correction = check_matrix(similarities, correction)
    k = checks.integer("k", k, low=1, high=similarities.shape[-1], of=" (gallery items)")
    pairs = seen.by_query(where, exclude, similarities.shape)
    gates = seen.gates(gates, correction, similarities.shape[-2])
    return _top_k(similarities, correction, pairs, gates, k=k)


@functools.partial(jax.jit, static_argnames="k")
def _top_k(
    similarities: jax.Array,
    correction: Correction | None,
    pairs: jax.Array | None,
    gates: jax.Array | None,
    *,
    k: int,
) -> SearchResult:
    if correction is None:
        scores = similarities.astype(numerics.accumulation_dtype(similarities.dtype))
    else:
        if gates is None and pairs is not None and correction.active is not None:
            gates = _gates(similarities, correction, pairs)
        scores = _apply_correction(similarities, correction, gates)
        if correction.active is not None and correction.active.dtype != bool:
            scores = elementary.written(scores)  # read twice; hard gates round nothing
    find = functools.partial(selection.largest_number, k=k)
    return SearchResult(*numerics.vectorize(find, "(g)->(k),(k)")(_seen(scores, pairs)))


def _seen(scores: jax.Array, pairs: jax.Array | None) -> jax.Array:
    """NaN below every number, and -inf where a query does not see the item."""
    numbers = numerics.below_every_number(scores)
    return numbers if pairs is None else jnp.where(pairs, numbers, -jnp.inf)


def stream_top_k(
    queries: ArrayLike,
    gallery: ArrayLike | PreparedGallery,
    k: int,
    correction: Correction | None = None,
    *,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
    gates: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    precision: str | None = None,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
    mesh: Mesh | None = None,
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
) -> SearchResult:
    """`top_k` from embeddings, never holding queries x gallery.

    Exact, up to rounding: no item is skipped. The gates of DIS and DualDIS are read in the same
    pass, with one matmul.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim] embeddings; or a PreparedGallery, which is searched sooner.
      k: neighbors per query, between 1 and num_gallery (static).
      correction: optional, fields [num_terms, num_gallery]; a PreparedGallery has its own.
      exclude: int [num_queries] or [num_queries, most], gallery rows a query never sees, -1 = none.
      where: bool [num_gallery], the items that are there.
      gates: [num_queries, num_terms]; those of the raw similarities when None.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static); a PreparedGallery has its
        own.
      precision: how a PreparedGallery is searched (static): "certified", first in bfloat16;
        "float32", in full precision; None leaves it to the platform that the program is compiled
        for. It is "certified" on accelerators, and on processors with units for bfloat16 where k
        is at most 32 and queries are at least 128, or at most 2^23 / num_gallery. The answers are
        the same up to rounding.
      chunk_size: queries held at once (static); half of them where devices share a processor.
      mesh: optional, the devices that share the work; as in `stream_bank_statistics`.
      bank_axis: mesh axis over which queries are split; a tuple of several, or None for whole.
      gallery_axis: mesh axis over which gallery items are split, likewise.

    Returns:
      SearchResult of [num_queries, k] as of `top_k`. Over a mesh, split over `bank_axis` where its
      size divides num_queries, else a copy on every device.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, k out of range, a correction of
        another gallery, a mesh without the axis.
      TypeError: embeddings that are not floating point, a `mesh` that is none.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> print(dbn.stream_top_k([[0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]], 1).indices)
      [[1]]
    """
    how = layout.layout(mesh, bank_axis, gallery_axis), similarity_fn, chunk_size
    num_queries, split, *asked = asking(
        how, queries, gallery, correction, exclude, where, gates, filling_up=mesh is None
    )
    k = checks.integer("k", k, low=1, high=split.num_gallery, of=" (gallery items)")
    precision = _check_precision(precision, gallery)
    low = _low(gallery, split)
    found = drive.top_k(*asked, low, split=split, k=k, precision=precision)
    return filling.cut(found, num_queries)


def certified_queries(
    queries: ArrayLike,
    gallery: PreparedGallery,
    k: int,
    *,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
    gates: ArrayLike | None = None,
    precision: str | None = None,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
    mesh: Mesh | None = None,
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
) -> jax.Array:
    """The queries that `stream_top_k` answers without a search in full precision.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: PreparedGallery.
      k: neighbors per query, between 1 and num_gallery (static).
      exclude: as in `stream_top_k`, like all that follows.
      where: bool [num_gallery].
      gates: [num_queries, num_terms].
      precision: static.
      chunk_size: static.
      mesh: optional.
      bank_axis: mesh axis of the queries.
      gallery_axis: mesh axis of the gallery items.

    Returns:
      [num_queries] bool; False for all where the search is in full precision.

    Raises:
      ValueError: as `stream_top_k`.
      TypeError: as `stream_top_k`; no PreparedGallery.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> prepared = dbn.prepare_gallery(np.eye(64, dtype=np.float32))
      >>> queries = 3 * np.eye(64, dtype=np.float32)[:2]
      >>> print(dbn.certified_queries(queries, prepared, 1, precision="certified"))
      [ True  True]
    """
    checks.instance("gallery", gallery, PreparedGallery, "make it with prepare_gallery")
    how = layout.layout(mesh, bank_axis, gallery_axis), gallery.similarity_fn, chunk_size
    num_queries, split, *asked = asking(
        how, queries, gallery, None, exclude, where, gates, filling_up=mesh is None
    )
    k = checks.integer("k", k, low=1, high=split.num_gallery, of=" (gallery items)")
    precision = _check_precision(precision, gallery)
    low = _low(gallery, split)
    proof = drive.are_certified(*asked, low, split=split, k=k, precision=precision)
    return filling.cut(proof, num_queries)


def _check_precision(precision: Any, gallery: Any) -> str | None:
    """Raises unless the gallery can be searched in this precision."""
    checks.check_static("precision", precision)
    known = (None, "float32", "certified")
    if precision not in known:
        raise checks.BadValueError(
            "precision", f' must be None, "float32" or "certified", got {precision!r}'
        )
    served = isinstance(gallery, PreparedGallery) and gallery.low is not None
    if precision == "certified" and not served:
        names = ", ".join(similarity.SIMILARITIES)
        raise checks.BadValueError(
            "precision",
            f' "certified" must come with a gallery that prepare_gallery has made under one of '
            f"{names}",
        )
    result: str | None = precision
    return result


def _low(gallery: Any, split: drive.Split) -> Any:
    """The items in bfloat16 of a gallery that has them, split like the items."""
    if not isinstance(gallery, PreparedGallery) or gallery.low is None:
        return None
    low = gallery.low
    vectors, less = split.along_items((low.vectors, low.less), 0)
    return low._replace(vectors=vectors, less=less)


def asking(
    how: Any,
    queries: Any,
    gallery: Any,
    correction: Any,
    exclude: Any,
    where: Any,
    gates: Any,
    *,
    filling_up: bool,
) -> tuple[int, drive.Split, Any, Any, Any, drive.Seen]:
    """The arguments of a streamed search or measure, checked, filled up and split.

    Returns:
      How many queries there are; how they are split; and what `drive` takes.
    """
    known = isinstance(gallery, PreparedGallery)
    if known:
        how, gallery, correction = _of_prepared(how, gallery, correction)
    num_queries = None
    if filling_up:
        num_queries, queries, gallery = filling.checked_queries(queries, few=known, gallery=gallery)
    split, queries, gallery = drive.checked(*how, known=known, queries=queries, gallery=gallery)
    num_queries, num_gallery = num_queries or split.num_rows, split.num_gallery
    if correction is not None:
        if not known:
            check_streamed(correction, num_gallery)
        looked_at = (queries,) if known else (queries, gallery)
        similarity.check_similarity("correction", correction, how[1], *looked_at)
    unseen = seen.exclusions(exclude, num_queries, num_gallery, rows="queries")
    gates = seen.gates(gates, correction, num_queries)
    unseen, gates = (filling.filled_up(part, split.num_rows) for part in (unseen, gates))
    asked = drive.Seen(
        split.along_rows(unseen, -1),
        split.along_items(seen.items(where, num_gallery), False),
        split.along_rows(gates, 0),
    )
    correction = split.along_items(correction, 0, dim=1)
    return num_queries, split, queries, gallery, correction, asked


def _of_prepared(how: Any, gallery: PreparedGallery, correction: Any) -> tuple[Any, Any, Any]:
    """`how`, the gallery and the correction of a prepared gallery; raises for others beside it."""
    if correction is not None:
        raise checks.BadValueError(
            "correction",
            " must be None beside a prepared gallery, which has its own; give it another by "
            "with_correction",
        )
    placement, similarity_fn, chunk_size = how
    own = gallery.similarity_fn
    if similarity_fn not in (own, dot_product):
        name, other = (getattr(one, "__name__", one) for one in (own, similarity_fn))
        raise checks.BadValueError(
            "similarity_fn",
            f" must be that of the prepared gallery, {name}, or be left out, got {other}; prepare "
            f"the gallery anew under it",
        )
    return (placement, own, chunk_size), gallery.gallery, gallery.correction


def semantic_search(
    queries: ArrayLike,
    gallery: ArrayLike | PreparedGallery,
    correction: Correction | None = None,
    *,
    k: int = 10,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
    gates: ArrayLike | None = None,
    similarity_fn: SimilarityFn = cosine_similarity,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> list[list[dict[str, int | float]]]:
    """`stream_top_k` in the format of `sentence_transformers.util.semantic_search`.

    Args:
      queries: [num_queries, dim] embeddings, also torch tensors on the CPU.
      gallery: [num_gallery, dim] embeddings, there called the corpus; or a PreparedGallery, whose
        own similarity counts.
      correction: optional, fields [num_terms, num_gallery].
      k: neighbors per query, there called top_k; all items where there are fewer.
      exclude: as in `stream_top_k`.
      where: as in `stream_top_k`.
      gates: as in `stream_top_k`.
      similarity_fn: as in `stream_top_k`, by default that of sentence-transformers.
      chunk_size: queries held at once.

    Returns:
      One list per query, best first, of `{"corpus_id": gallery row, "score": corrected score}`.

    Raises:
      ValueError, TypeError: as `stream_top_k`.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> dbn.semantic_search([[0.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]], k=1)
      [[{'corpus_id': 1, 'score': 1.0}]]
    """
    if isinstance(gallery, PreparedGallery):
        if similarity_fn is cosine_similarity:  # left out, or that of the gallery
            similarity_fn = gallery.similarity_fn
        num_gallery = gallery.num_gallery
    else:
        gallery = checks.embeddings("gallery", gallery)
        num_gallery = gallery.shape[0]
    found = stream_top_k(
        queries,
        gallery,
        min(checks.integer("k", k, low=1), num_gallery),
        correction,
        exclude=exclude,
        where=where,
        gates=gates,
        similarity_fn=similarity_fn,
        chunk_size=chunk_size,
    )
    return [
        [{"corpus_id": row, "score": score} for score, row in zip(*places, strict=True) if row >= 0]
        for places in zip(found.scores.tolist(), found.indices.tolist(), strict=True)
    ]


def check_matrix(similarities: Any, correction: Any) -> tuple[jax.Array, Correction]:
    """Both, checked to be of the same gallery."""
    array = checks.similarities("similarities", similarities, rows="queries")
    checks.correction(correction, Correction)
    checks.matching_gallery("correction", correction.num_gallery, "similarities", array.shape)
    return array, checks.unsplit(correction)
