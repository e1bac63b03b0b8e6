"""Reading fitted state: a choice, statistics and corrections of the gallery they were made for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading import large
from dbnorm_jax._cli.reading.argument import Source, opened
from dbnorm_jax._src.core.similarity import SIMILARITY_FUNCTIONS
from dbnorm_jax._src.core.text import printable
from dbnorm_jax._src.files import provenance as provenances
from dbnorm_jax._src.files.state import read_header

_NAMES = {function.__name__: name for name, function in SIMILARITY_FUNCTIONS.items()}


class State(NamedTuple):
    """Of a file, what it was made from, and what it compared by, where that is known."""

    state: Any
    provenance: Mapping[str, Any]
    similarity: str | None
    sha256: str  # of all that the file holds


class Fitted(NamedTuple):
    """What a file of `dbnorm fit`, or of dbnorm_jax.save, holds."""

    label: str  # names argument and file in errors
    correction: dbn.Correction  # for this gallery, by its shape
    similarity: str  # what to compare by
    gallery: dict[str, Any] | None  # what it was fitted on: rows, dim, SHA-256, where known
    unchanged: bool  # the gallery has the size and time of change that the fit saw


def read_state(source: Source, kinds: tuple[type, ...], article: str, remedy: str) -> State:
    """Reads what dbnorm_jax.save wrote; `article` says in an error what is expected."""
    with opened(source):
        pass  # says in one line what is wrong with the path
    try:
        state, header = dbn.load(source.path), read_header(source.path)
    except ValueError as error:
        raise ValueError(str(error).replace(printable(source.path), str(source), 1)) from None
    if not isinstance(state, kinds):
        raise source.fail(article, f"a {type(state).__name__}", remedy)
    provenance = provenances.checked(f"{source}: in its provenance", header.get("provenance"))
    # Files of before states knew it have it here; a cosine may be an inner product of unit rows.
    similarity = provenance.get("similarity", _own(state))
    return State(state, provenance, similarity, header["sha256"])


def _own(state: Any) -> str | None:
    return _NAMES.get(getattr(state, "similarity", None) or "")


def check_own(source: Source, found: State) -> None:
    """Raises where the file says another similarity than the state in it knows."""
    own, similarity = _own(found.state), found.similarity
    if own not in (None, similarity) and (own, similarity) != ("dot", "cosine"):
        expected = f"a provenance of its own similarity, {own}"
        raise source.fail(expected, str(similarity), "fit it anew")


def read_correction(text: str, gallery: large.Rows, similarity: str | None) -> Fitted:
    """Reads --correction; without a `similarity` that the user asked for, its own is taken."""
    source = Source.parse("--correction", text)
    remedy = "make one with dbnorm fit, or save what a normalizer, tuning.fit or auto returns"
    found = read_state(source, (dbn.Correction,), "a Correction", remedy)
    check_own(source, found)
    state, provenance, fitted, _ = found
    known = provenance.get("gallery")
    large.check_gallery(str(source), known, *gallery.rows.shape)
    num_gallery = len(gallery.rows)
    if state.bias.ndim != 2 or state.num_gallery != num_gallery:
        expected = f"{num_gallery} gallery items, one per row of GALLERY"
        raise source.fail(expected, f"a bias of shape {state.bias.shape}", "fit it on this gallery")
    if fitted is not None and similarity not in (None, fitted):
        raise ValueError(
            f"--similarity: expected {fitted}, which the correction was fitted with, got "
            f"{similarity}; leave it out"
        )
    stamps = provenance.get("stamps")
    unchanged = isinstance(stamps, dict) and stamps.get("gallery") == gallery.stamp
    return Fitted(str(source), state, similarity or fitted or "cosine", known, unchanged)


def read_choice(text: str, similarity: str) -> tuple[str, State]:
    """Reads --choice: what names the file in errors, and what it holds."""
    source = Source.parse("--choice", text)
    made = read_state(source, (dbn.tuning.Choice,), "a Choice", "make one with dbnorm tune")
    _check_similarity(source, made, similarity, "a choice")
    return str(source), made


def read_statistics(
    text: str, gallery: large.Rows, similarity: str, *, gated: bool
) -> tuple[str, State]:
    """Reads --query-statistics, of this gallery; `gated`: with activation sets.

    Returns what names the file in errors, and what it holds.
    """
    source = Source.parse("--query-statistics", text)
    remedy = "make them with dbnorm fit --method statistics"
    made = read_state(source, (dbn.BankStatistics,), "BankStatistics", remedy)
    check_own(source, made)
    large.check_gallery(str(source), made.provenance.get("gallery"), *gallery.rows.shape)
    num_gallery = len(gallery.rows)
    if made.state.bias.shape != (num_gallery,):
        expected = f"statistics of {num_gallery} gallery items, one per row of GALLERY"
        raise source.fail(expected, f"shape {made.state.bias.shape}", "fit it anew")
    if gated and not made.state.k:
        raise source.fail("statistics with k of 1 or more", "0", "fit it anew")
    _check_similarity(source, made, similarity, "statistics")
    return str(source), made


def _check_similarity(source: Source, made: State, similarity: str, what: str) -> None:
    if made.similarity not in (None, similarity):
        expected = f"{what} under {similarity} similarity"
        raise source.fail(expected, made.similarity, f"give --similarity {made.similarity}")
