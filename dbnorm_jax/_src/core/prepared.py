"""A gallery that is searched often: its values checked once, its items in bfloat16 beside them."""

import dataclasses
from functools import partial

import jax

from dbnorm_jax._src.core import low_precision
from dbnorm_jax._src.core.low_precision import LowItems
from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product
from dbnorm_jax._src.core.types import Correction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PreparedGallery:
    """Gallery items and their correction, checked once; `prepare_gallery` makes it.

    It goes where a gallery goes, alone: its correction and its similarity are its own.

    Attributes:
      gallery: [num_gallery, dim] embeddings as given.
      correction: fields [num_terms, num_gallery], or None.
      low: the items in bfloat16 and what they miss; None under a similarity that is not served so.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).

    Examples:
      >>> import dbnorm_jax as dbn
      >>> prepared = dbn.prepare_gallery([[1.0, 0.0], [0.0, 1.0]])
      >>> print(prepared.num_gallery, prepared.low.vectors.dtype)
      2 bfloat16
    """

    gallery: jax.Array
    correction: Correction | None
    low: LowItems | None
    similarity_fn: SimilarityFn = dataclasses.field(metadata={"static": True})

    @property
    def num_gallery(self) -> int:
        """Number of gallery items."""
        return self.gallery.shape[0]


def prepared(
    gallery: jax.Array,
    correction: Correction | None,
    similarity_fn: SimilarityFn,
    query_centre: jax.Array | None,
) -> PreparedGallery:
    """Of arguments that are checked."""
    low = None
    if similarity_fn in low_precision.SERVED:
        low = _low_items(gallery, query_centre, similarity_fn=similarity_fn)
        if gallery.dtype == low.vectors.dtype and similarity_fn is dot_product and low.mean is None:
            low = low._replace(vectors=gallery)  # not a second time in memory
    return PreparedGallery(gallery, correction, low, similarity_fn)


@partial(jax.jit, static_argnames="similarity_fn")
def _low_items(
    gallery: jax.Array, center: jax.Array | None, *, similarity_fn: SimilarityFn
) -> LowItems:
    return low_precision.low_items(similarity_fn, gallery, center)


publish("dbnorm_jax", PreparedGallery)
