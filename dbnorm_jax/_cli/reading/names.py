"""What rows are called: ids and labels, of text files, arrays and columns of tables."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dbnorm_jax._cli.reading.argument import Source, kind_of, opened, parts
from dbnorm_jax._cli.reading.formats import TEXTS
from dbnorm_jax._cli.reading.sets import Array
from dbnorm_jax._cli.reading.single import read

_NAMES = "write texts with numpy.save as str, or as UTF-8 text, a line each"


def read_items(source: Source, count: int | None, expected: str) -> Array:
    """What `count` items are called, or any number; `expected` says what they stand for."""
    items = read_lines(source) if kind_of(source) is None else read_names(source)
    if count not in (None, len(items)):
        remedy = "write one for every row, in the order of the rows"
        raise source.fail(expected, f"{len(items)}", remedy)
    return items


def read_ids(source: Source, count: int | None = None) -> Array:
    """What `count` items are called, or any number, each by a name of its own."""
    return distinct(source, read_items(source, count, f"a name for each of {count} rows"))


def distinct(source: Source, names: Array) -> Array:
    """The names, of which no two should be alike."""
    values = names.tolist()
    if len({*values}) < len(values):
        first: dict[Any, int] = {}
        again = next(row for row, one in enumerate(values) if first.setdefault(one, row) != row)
        where, start = ("lines", 1) if kind_of(source) is None else ("rows", 0)
        places = f"{where} {first[values[again]] + start} and {again + start}"
        actual = f"the same on {places}: {values[again]!r}"
        raise source.fail("a name of its own for every row", actual, "rename or remove one")
    return names


def read_names(source: Source) -> Array:
    """A 1-d array of texts or integers."""
    source = dataclasses.replace(source, remedy=_NAMES)
    array = read(source, TEXTS)
    if array.dtype.kind not in "OUiu" or array.ndim != 1:
        what = f"dtype {array.dtype}, shape {array.shape}"
        raise source.fail("1 axis of strings or integers", what, source.remedy)
    return array


def read_lines(source: Source) -> Array:
    """The lines of a UTF-8 text file, as objects.

    A line ends with a line feed, or with a carriage return before it. `str.splitlines`, and files
    opened as text, end lines at characters that names may hold.
    """
    if source.member is not None:
        raise source.fail("several arrays", "a text", "leave the :name out")
    return np.concatenate([_lines(part) for part in parts(source)])


def _lines(source: Source) -> Array:
    with opened(source) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {data[error.start]:#x} at place {error.start}"
        raise source.fail("UTF-8 text, or an array file", what, _NAMES) from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    return np.array(lines, dtype=object)


class Labels(NamedTuple):
    """What the rows of one side are called, and the file that says so."""

    source: Source
    names: Array


# Option -> field of the set, the rows that are named, what one of them is called.
_LABELS = {
    "--labels": ("gallery_labels", "gallery", "gallery item"),
    "--bank-labels": ("query_bank_labels", "query_bank", "query-bank item"),
    "--query-labels": ("query_labels", "queries", "query"),
}


def labels_given(request: Any) -> dict[str, str]:
    """The options of labels that are given, and what they say."""
    texts = {option: getattr(request, option[2:].replace("-", "_")) for option in _LABELS}
    return {option: text for option, text in texts.items() if text is not None}


def read_labels(given: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, Labels]:
    """By the field of the set; `given` as `labels_given` has it, `sizes` by the field of rows."""
    found = {}
    for option, text in given.items():
        field, part, of = _LABELS[option]
        source, count = Source.parse(option, text), sizes[part]
        found[field] = Labels(source, read_items(source, count, f"{count} labels, one per {of}"))
    return found
