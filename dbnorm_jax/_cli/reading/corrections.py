"""Reading a fitted correction beside the gallery that it was fitted on."""

from pathlib import Path
from typing import Any, NamedTuple

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading import large


class Fitted(NamedTuple):
    """What a file of `dbnorm fit`, or of dbnorm_jax.save, holds.

    Attributes:
      correction: for this gallery, by its shape.
      similarity: what to compare by.
      gallery: rows, dim and SHA-256 of the gallery that it was fitted on, where that is known.
      unchanged: the gallery has the size and time of change that the fit saw.
    """

    correction: dbn.Correction
    similarity: str
    gallery: dict[str, Any] | None
    unchanged: bool


def read_correction(path: str | Path, gallery: large.Rows, similarity: str | None) -> Fitted:
    """Reads --correction; `similarity` is what the user asked for, None: what it was fitted with.

    Raises:
      ValueError: it is none, or one for another gallery or similarity.
    """
    label = f"--correction '{path}'"
    state = dbn.load(path)
    if not isinstance(state, dbn.Correction):
        raise ValueError(
            f"{label}: expected a Correction, got {type(state).__name__}; make one with dbnorm "
            f"fit, or save what a normalizer, tuning.fit or auto returns"
        )
    provenance = dbn.read_provenance(path) or {}
    known = provenance.get("gallery")
    large.check_gallery(label, known, *gallery.rows.shape)
    num_gallery = len(gallery.rows)
    if state.bias.ndim != 2 or state.num_gallery != num_gallery:
        raise ValueError(
            f"{label}: expected {num_gallery} gallery items, one per row of GALLERY, got a bias "
            f"of shape {state.bias.shape}; fit it on this gallery"
        )
    fitted = provenance.get("similarity")
    if fitted is not None and fitted not in large.SIMILARITY_FUNCTIONS:
        raise ValueError(f"{label}: expected a similarity known here, got {fitted!r}; fit it anew")
    if fitted is not None and similarity not in (None, fitted):
        raise ValueError(
            f"--similarity: expected {fitted}, which the correction was fitted with, got "
            f"{similarity}; leave it out"
        )
    stamps = provenance.get("stamps")
    unchanged = isinstance(stamps, dict) and stamps.get("gallery") == gallery.stamp
    return Fitted(state, similarity or fitted or "cosine", known, unchanged)
