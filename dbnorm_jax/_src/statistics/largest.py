"""Each gallery item's largest similarities to a bank: what CSLS and NNN average.

    similarities [num_bank, num_gallery]  ->  LargestSimilarities [k, num_gallery]

They merge over parts of a bank, like bank statistics.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, numerics, seen
from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product, known_by
from dbnorm_jax._src.core.types import LargestSimilarities
from dbnorm_jax._src.passes import selection, streaming
from dbnorm_jax._src.places.mesh import drive, layout
from dbnorm_jax._src.places.mesh.exchange import Axis


def largest_similarities(
    similarities: ArrayLike, *, k: int, where: ArrayLike | None = None
) -> LargestSimilarities:
    """The k largest entries of each column of a similarity matrix.

    Args:
      similarities: [..., num_bank, num_gallery], higher is closer.
      k: how many per gallery item, at least 1 (static); may exceed the bank.
      where: optional bool, valid rows [..., num_bank] or pairs [..., num_bank, num_gallery].

    Returns:
      LargestSimilarities of [..., k, num_gallery].

    Raises:
      ValueError: an empty or non-finite matrix, k < 1, a mask that does not fit.
      TypeError: a matrix that is not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> print(dbn.largest_similarities([[0.5, 0.25], [1.0, 0.0], [0.25, 0.75]], k=2).values)
      [[1.   0.75] [0.5  0.25]]
    """
    similarities = checks.similarities("similarities", similarities, rows="bank items")
    k = checks.integer("k", k, low=1)
    if where is not None:
        where = seen.pairs(where, similarities.shape)
    return _largest_similarities(similarities, where, k=k)


@partial(jax.jit, static_argnames="k")
def _largest_similarities(
    similarities: jax.Array, where: jax.Array | None, *, k: int
) -> LargestSimilarities:
    matrix = similarities.astype(numerics.accumulation_dtype(similarities.dtype))
    if where is not None:
        matrix = jnp.where(jnp.broadcast_to(where, matrix.shape), matrix, jnp.nan)
    return LargestSimilarities(selection.largest_of_columns(matrix, k))


def stream_largest_similarities(
    bank: ArrayLike,
    gallery: ArrayLike,
    *,
    k: int,
    exclude: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
    mesh: Mesh | None = None,
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
) -> LargestSimilarities:
    """`largest_similarities` from embeddings, never holding bank x gallery.

    Args:
      bank: [num_bank, dim] embeddings of bank items.
      gallery: [num_gallery, dim] embeddings of gallery items.
      k: how many per gallery item, at least 1 (static); may exceed the bank.
      exclude: int [num_bank] or [num_bank, most], gallery rows a bank item leaves out, -1 for none.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: gallery items held at once (static).
      mesh: optional, the devices that share the work; as in `stream_bank_statistics`.
      bank_axis: mesh axis over which bank rows are split; a tuple of several, or None for whole.
      gallery_axis: mesh axis over which gallery items are split, likewise.

    Returns:
      LargestSimilarities of [k, num_gallery], up to rounding those of the matrix. Over a mesh,
      split over `gallery_axis` where its size divides num_gallery, else whole on each device.

    Raises:
      ValueError: bad or mismatched embeddings or `exclude`, k < 1, a mesh without the axis.
      TypeError: embeddings that are not floating point, a `mesh` that is none.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> gallery = [[1.0, 0.0], [0.0, 1.0]]
      >>> print(dbn.stream_largest_similarities(gallery, gallery, k=1).values)
      [[1. 1.]]
      >>> print(dbn.stream_largest_similarities(gallery, gallery, k=1, exclude=[0, 1]).values)
      [[0. 0.]]
    """
    how = layout.layout(mesh, bank_axis, gallery_axis), similarity_fn, chunk_size
    split, bank, gallery = drive.checked(*how, bank=bank, gallery=gallery)
    k = checks.integer("k", k, low=1)
    exclude = split.along_rows(seen.exclusions(exclude, split.num_rows, split.num_gallery), -1)
    largest = drive.largest_similarities(bank, gallery, exclude, split=split, k=k)
    return known_by(largest, similarity_fn)
