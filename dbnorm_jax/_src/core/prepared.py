"""A gallery that is searched often: its values checked once, its items in bfloat16 beside them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, low_precision, numerics, similarity
from dbnorm_jax._src.core.low_precision import LowItems
from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.core.similarity import SimilarityFn, check_streamed, dot_product
from dbnorm_jax._src.core.types import Correction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PreparedGallery:
    """Gallery items and their correction, checked once; `prepare_gallery` makes it.

    It goes where a gallery goes, alone: its correction and its similarity are its own. Its methods
    return another one and leave it as it is.

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

    @property
    def query_centre(self) -> jax.Array | None:
        """[dim] that it was prepared with, up to rounding, or None."""
        if self.low is None:
            return None
        return low_precision.given_center(self.similarity_fn, self.low)

    def with_correction(self, correction: Correction | None) -> "PreparedGallery":
        """The same items under another correction, or none; nothing else is made anew.

        Args:
          correction: fields [num_terms, num_gallery], or None.

        Raises:
          ValueError: a correction of another gallery or similarity.
          TypeError: no Correction.

        Examples:
          >>> import dbnorm_jax as dbn
          >>> import jax.numpy as jnp
          >>> prepared = dbn.prepare_gallery([[1.0, 0.0], [0.0, 1.0]])
          >>> corrected = prepared.with_correction(dbn.Correction(jnp.array([[0.0, 0.5]])))
          >>> print(dbn.stream_top_k([[0.6, 0.8]], corrected, 1).indices)
          [[0]]
        """
        fitted = fitting(correction, self.gallery, self.similarity_fn)
        return dataclasses.replace(self, correction=fitted)

    def append(self, items: ArrayLike, correction: Correction | None = None) -> "PreparedGallery":
        """These items behind the others, which are not checked again.

        Args:
          items: [num_items, dim] embeddings, of the dtype of the gallery.
          correction: of these items alone, fields [num_terms, num_items], with the terms and gates
            of that of the gallery; None where that has none.

        Raises:
          ValueError: bad or mismatched embeddings, a correction that does not go with the others'.
          TypeError: another dtype, no Correction.

        Examples:
          >>> import dbnorm_jax as dbn
          >>> prepared = dbn.prepare_gallery([[1.0, 0.0]]).append([[0.0, 1.0]])
          >>> print(dbn.stream_top_k([[0.6, 0.8]], prepared, 1).indices)
          [[1]]
        """
        (items,) = similarity.checked_rows(self.similarity_fn, items=items)
        checks.same_dimension("gallery", self.gallery, "items", items)
        if items.dtype != self.gallery.dtype:
            raise checks.BadTypeError(
                "items", f" must have the gallery's dtype {self.gallery.dtype}, got {items.dtype}"
            )
        added = fitting(correction, items, self.similarity_fn, "items")
        own = self.correction
        kinds = [
            None if one is None else (one.num_terms, one.active is None) for one in (own, added)
        ]
        if kinds[0] != kinds[1]:
            terms = ["none" if one is None else _described(one) for one in (own, added)]
            raise checks.BadValueError(
                "correction",
                f" must be as that of the gallery, {terms[0]}, got {terms[1]}; or give all items "
                f"another one by with_correction",
            )
        if own is not None and added is not None:
            active = None
            if own.active is not None and added.active is not None:
                active = _joined(own.active, added.active)
            bias = _joined(own.bias, added.bias)
            own = dataclasses.replace(own, bias=bias, active=active)
        return self._of(jnp.concatenate([self.gallery, items]), own)

    def remove(self, rows: ArrayLike) -> "PreparedGallery":
        """Without some items; those behind them move up.

        Args:
          rows: int [num_rows] gallery rows, concrete, in any order.

        Raises:
          ValueError: rows beyond the gallery, or all of them.
          TypeError: rows that are not integers, or traced.

        Examples:
          >>> import dbnorm_jax as dbn
          >>> prepared = dbn.prepare_gallery([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]).remove([1])
          >>> print(dbn.stream_top_k([[0.6, 0.8]], prepared, 1).indices)
          [[1]]
        """
        places = checks.indices("rows", rows, low=0, high=self.num_gallery, ndim=1)
        if not checks.is_concrete(places):
            raise checks.BadTypeError("rows", " must be concrete: the shapes depend on them")
        kept = np.setdiff1d(np.arange(self.num_gallery, dtype=np.int32), np.asarray(places))
        if not len(kept):
            raise checks.BadValueError(
                "rows", f" must leave an item of {self.num_gallery}, got all of them"
            )
        correction = self.correction
        if correction is not None:
            correction = jax.tree.map(lambda field: field[:, kept], correction)
        return self._of(self.gallery[kept], correction)

    def _of(self, gallery: jax.Array, correction: Correction | None) -> "PreparedGallery":
        return prepared(gallery, correction, self.similarity_fn, self.query_centre)


def fitting(
    correction: Correction | None,
    gallery: jax.Array,
    similarity_fn: SimilarityFn,
    of: str = "gallery",
) -> Correction | None:
    """The correction, whole; raises unless it is one of these items, which `of` names."""
    if correction is None:
        return None
    check_streamed(correction, len(gallery), of)
    similarity.check_similarity("correction", correction, similarity_fn, gallery)
    whole: Correction = checks.unsplit(correction)
    return whole


def _joined(own: jax.Array, added: jax.Array) -> jax.Array:
    """Fields of items and of those behind them.

    Of two dtypes neither is rounded: no bias overflows, no soft activation is taken for open.
    """
    if own.dtype != added.dtype:
        dtypes = (part.dtype for part in (own, added) if part.dtype != bool)
        dtype = numerics.accumulation_dtype(*dtypes)
        own, added = own.astype(dtype), added.astype(dtype)
    return jnp.concatenate([own, added], axis=1)


def _described(correction: Correction) -> str:
    gates = "without gates" if correction.active is None else "with gates"
    return f"{correction.num_terms} terms {gates}"


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
