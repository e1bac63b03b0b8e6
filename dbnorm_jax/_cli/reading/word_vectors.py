"""Word vectors as text: lines of a word and its numbers, after fastText's and word2vec's header.

2 3                 words and dimensions; GloVe has no such line
the 0.1 -0.2 0.3
of 0.4 0.1 -0.5
"""

from array import array
from typing import IO

import numpy as np

from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.lines import parsed
from dbnorm_jax._cli.reading.sets import Array
from dbnorm_jax._src.core.text import excerpt

_REMEDY = "write lines of a word and its numbers, with blanks between them"


def read(source: Source, file: IO[bytes]) -> tuple[Array, Array]:
    """The words [num_words], as objects, and their vectors [num_words, dim] in float32."""
    words: list[str] = []
    values = array("f")
    declared = dim = None
    for line, text in enumerate(file, 1):
        cells = text.rstrip().split(b" ")
        if cells == [b""]:
            continue
        if dim is None and len(cells) == 2 and all(cell.isdigit() for cell in cells):
            declared, dim = (int(cell[:18]) for cell in cells)  # no file holds more
            continue
        dim = len(cells) - 1 if dim is None else dim
        if len(cells) <= dim or not dim or not cells[0]:
            expected = f"a word and {dim or 'some'} numbers"
            what = f"{len(cells) - 1} numbers" if cells[0] else "no word"
            raise source.fail(expected, f"{what} on line {line}", _REMEDY)
        try:
            words.append(b" ".join(cells[: len(cells) - dim]).decode())  # a word may hold blanks
            values.extend(parsed(cells[len(cells) - dim :]))
        except ValueError as error:
            what = "text that is no UTF-8" if isinstance(error, UnicodeError) else "other text"
            raise source.fail(
                f"a word and {dim} numbers", f"{what} on line {line}", _REMEDY
            ) from None
    if not words:
        raise source.fail("lines of a word and its numbers", "none", _REMEDY)
    if declared not in (None, len(words)):
        what = f"{len(words)} (truncated?)"
        raise source.fail(f"{excerpt(declared)} words, as the header says", what, "copy it again")
    vectors: Array = np.frombuffer(values, np.float32).reshape(len(words), -1)
    return np.array(words, object), vectors
