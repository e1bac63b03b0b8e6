"""Galleries that are searched often: prepared once, then searched in low precision with a proof."""

import warnings

from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, low_precision, prepared, similarity
from dbnorm_jax._src.core.prepared import PreparedGallery
from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product
from dbnorm_jax._src.core.types import Correction


def prepare_gallery(
    gallery: ArrayLike,
    correction: Correction | None = None,
    *,
    similarity_fn: SimilarityFn = dot_product,
    query_centre: ArrayLike | None = None,
) -> PreparedGallery:
    """A gallery with its correction, checked once, for `stream_top_k` and its like.

    They then look at the values of the queries alone. Beside the items it holds a copy in bfloat16,
    norms, and norms of what the copy misses. With these `stream_top_k` searches in low precision,
    scores a short list in full precision, and proves for each query that nothing else can be among
    its k best. What it cannot prove it searches in full precision, so that the answer is the same.

    Args:
      gallery: [num_gallery, dim] embeddings.
      correction: optional, fields [num_terms, num_gallery].
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static). Dot product, cosine and
        Euclidean distances are searched in low precision. Under any other there is no copy, a
        warning says so, and searches are in full precision.
      query_centre: optional, [dim], a mean of queries, of unit length each under cosine. Any vector
        gives the same answers; one near the queries lets more of them be proven.

    Returns:
      PreparedGallery, a pytree.

    Raises:
      ValueError: empty or non-finite embeddings, a zero row under cosine, a correction of another
        gallery or similarity.
      TypeError: embeddings that are not floating point, no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> prepared = dbn.prepare_gallery([[1.0, 0.0], [0.0, 1.0]])
      >>> print(dbn.stream_top_k([[0.6, 0.8]], prepared, 1).indices)
      [[1]]

    References:
      The bound is derived in `dbnorm_jax/_src/core/low_precision.py`.
    """
    (items,) = similarity.checked_rows(similarity_fn, gallery=gallery)
    correction = prepared.fitting(correction, items, similarity_fn)
    if query_centre is not None:
        center = checks.floating("query_centre", query_centre, ndim=1)
        if center.shape != items.shape[1:]:
            raise checks.BadValueError(
                "query_centre",
                f" must have one entry per dimension, {items.shape[1:]}, got {center.shape}",
            )
        query_centre = center
    if similarity_fn not in low_precision.SERVED:
        known = ", ".join(similarity.SIMILARITIES)
        warnings.warn(
            f"this gallery will be searched in full precision: `similarity_fn` is none of {known}",
            UserWarning,
            stacklevel=2,
        )
    return prepared.prepared(items, correction, similarity_fn, query_centre)
