"""Texts of any length in an archive of arrays, without a width that the longest would set for all.

NAME_utf8      uint8, the UTF-8 bytes of all texts, one after another
NAME_offsets   int64, where each text begins, and at last where the last one ends
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dbnorm_jax._src.files.binary import BadArrayError

UTF8, OFFSETS = "_utf8", "_offsets"
_AT_ONCE = 2**20  # bytes

Array = np.ndarray[Any, np.dtype[Any]]


def offsets(texts: Array) -> Array:
    """[num_texts + 1] int64."""
    lengths = np.fromiter(map(len, _encoded(texts)), np.int64, len(texts))
    return np.concatenate([[0], lengths.cumsum()])


def parts(texts: Array) -> Iterator[bytes]:
    """The bytes of all, some texts at a time."""
    held = bytearray()
    for text in _encoded(texts):
        held += text
        if len(held) >= _AT_ONCE:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def _encoded(texts: Array) -> Iterator[bytes]:
    return (str(text).encode() for text in texts)


def names(members: Iterable[str]) -> list[str]:
    """What texts an archive of these members holds."""
    found = {*members}
    heads = [name.removesuffix(UTF8) for name in found if name.endswith(UTF8)]
    return sorted(name for name in heads if name + OFFSETS in found and name not in found)


def joined(data: Array, places: Array) -> Array:
    """[num_texts] objects; BadArrayError where these are not what is described above."""
    if data.dtype != np.uint8 or data.ndim != 1:
        raise BadArrayError("UTF-8 bytes as uint8", f"{data.dtype} of shape {data.shape}")
    if places.dtype.kind not in "iu" or places.ndim != 1 or not len(places):
        raise BadArrayError("offsets as int64", f"{places.dtype} of shape {places.shape}")
    rising = bool((places[1:] >= places[:-1]).all())
    if (int(places[0]), int(places[-1])) != (0, len(data)) or not rising:
        actual = f"{places[0]} to {places[-1]}"
        raise BadArrayError(f"offsets that rise from 0 to {len(data)}", actual)
    plain, ends = data.tobytes(), places.tolist()
    found = np.empty(len(ends) - 1, object)
    try:
        for row in range(len(found)):
            found[row] = plain[ends[row] : ends[row + 1]].decode()
    except UnicodeDecodeError:
        raise BadArrayError("UTF-8 text", f"other bytes in text {row}") from None
    return found
