"""Lines of text by their numbers, and the names in them by rows."""

from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.sets import Array

_MARK = b"\xef\xbb\xbf"  # of UTF-8, before the first line


def numbered(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, each with its number; the first has 1."""
    for number, line in enumerate(file, 1):
        text = line.removeprefix(_MARK) if number == 1 else line
        if text.strip():
            yield number, text


def parsed(texts: Sequence[bytes], kind: Any = float) -> Iterator[Any]:
    """What texts say; ValueError where one is no number.

    Python takes 1_0 for 10; no other reader of such files does.
    """
    if any(b"_" in text for text in texts):
        raise ValueError("an underscore")
    return map(kind, texts)


class Names:
    """Names in the order in which they come, each with a row of its own."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows: dict[bytes, int] = {}
        self._names: list[str] = []

    def row(self, name: bytes, line: int) -> int:
        """Its row: a new one where the name is new."""
        row = self._rows.get(name)
        if row is None:
            try:
                self._names.append(name.decode())
            except UnicodeDecodeError:
                what = f"other bytes on line {line}"
                raise self._source.fail("names in UTF-8", what, "write it as UTF-8") from None
            row = self._rows[name] = len(self._rows)
        return row

    def as_array(self) -> Array:
        """[num_names] texts, as objects."""
        return np.array(self._names, object)
