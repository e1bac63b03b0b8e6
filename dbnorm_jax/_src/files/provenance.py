"""What fitted state was made from: whatever JSON has a form for, by names that users choose.

What commands read again has a form of its own: `save` warns of another, and the commands refuse it.
None says of any entry that nothing is known.

    gallery      what `out_of_core.fingerprint` says of it
    parts        the same of each part of the bank, in a list
    similarity   cosine, dot or euclidean
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.similarity import SIMILARITY_FUNCTIONS
from dbnorm_jax._src.core.text import excerpt
from dbnorm_jax._src.files.archives import LARGEST_PROVENANCE

_MOST_LEVELS = 100  # reading is recursive, from wherever it is called
_REMEDY = "write what out_of_core.fingerprint returns, or leave the entry out"


def plain(provenance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A provenance as it will be read again; raises for what JSON has no form for."""
    if provenance is None:
        return None
    if not isinstance(provenance, Mapping):
        raise checks.BadTypeError("provenance", f" must be a dict, got {type(provenance).__name__}")
    try:
        text = json.dumps(dict(provenance), allow_nan=False)
        found: dict[str, Any] = json.loads(text)
        _check_levels(found)
    except (TypeError, ValueError, RecursionError) as error:
        raise checks.BadTypeError(
            "provenance", f" must hold text, numbers, lists and dicts only: {error}"
        ) from None
    if len(text) > LARGEST_PROVENANCE:
        raise checks.BadValueError(
            "provenance", f" must have at most {LARGEST_PROVENANCE} characters, got {len(text)}"
        )
    return found


def _check_levels(found: Any) -> None:
    inside = [found]
    for _ in range(_MOST_LEVELS):
        holders = [one.values() if isinstance(one, dict) else one for one in inside]
        inside = [one for holder in holders for one in holder if isinstance(one, (dict, list))]
    if inside:
        raise ValueError(f"they nest more than {_MOST_LEVELS} levels deep")


def checked(name: str, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries that are known; raises where one that is read again has another form.

    `name` says in the error where it stands.
    """
    known = {entry: value for entry, value in (provenance or {}).items() if value is not None}
    if "gallery" in known:
        check_fingerprint(name, "gallery", known["gallery"])
    parts = known.get("parts", [])
    _expect(name, "parts", parts, isinstance(parts, list), "a list of fingerprints")
    for place, part in enumerate(parts):
        check_fingerprint(name, f"parts[{place}]", part)
    if "similarity" in known:
        value = known["similarity"]
        right = isinstance(value, str) and value in SIMILARITY_FUNCTIONS
        _expect(name, "similarity", value, right, " or ".join(SIMILARITY_FUNCTIONS), "correct it")
    return known


def check_fingerprint(name: str, entry: str, value: Any, remedy: str = _REMEDY) -> None:
    """Raises unless it has the entries that `out_of_core.fingerprint` makes; others may follow."""
    is_dict = isinstance(value, dict)
    _expect(name, entry, value, is_dict, "a dict of sha256, rows, dtype and dim", remedy)
    digest, dtype = value.get("sha256"), value.get("dtype")
    right = isinstance(digest, str) and bool(re.fullmatch("[0-9a-f]{64}", digest))
    _expect(name, f"{entry}.sha256", digest, right, "64 hexadecimal digits", remedy)
    for count in ("rows", "dim"):
        number = value.get(count)
        right = type(number) is int and 1 <= number < 2**63
        _expect(name, f"{entry}.{count}", number, right, "a whole number of 1 or more", remedy)
    _expect(name, f"{entry}.dtype", dtype, isinstance(dtype, str), "the name of a dtype", remedy)


def _expect(
    name: str, entry: str, value: Any, right: bool, expected: str, remedy: str = _REMEDY
) -> None:
    if not right:
        actual = "none" if value is None else excerpt(repr(value))
        raise ValueError(f"{name}: expected {entry} to be {expected}, got {actual}; {remedy}")
