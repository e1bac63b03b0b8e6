"""The checks that every input passes, whatever the form of its file, and sets of several inputs.

Errors name the argument, the file, what was expected, what was found and the remedy.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dbnorm_jax._cli.reading import formats, sets
from dbnorm_jax._cli.reading.argument import STDIN, Source, kind_of, opened, typed
from dbnorm_jax._cli.reading.formats import NUMBERS, ROWS, TEXTS
from dbnorm_jax._cli.reading.sets import Array, Csr, EvaluationSet
from dbnorm_jax._src.core.text import excerpt

_ROW_NUMBERS = "write row numbers, counted from 0, with numpy.save as int64"
_SEVERAL = "; several as gt_indptr and gt_indices in an npz"
_NAMES = "write texts with numpy.save as str, or as UTF-8 text, a line each"
_CSR = ("gt_indptr", "gt_indices")


def read_floats(source: Source) -> Array:
    """A non-empty 2-d floating-point array; an .npy file is memory-mapped."""
    array = _read(source, ROWS, alone=True)
    kind = array.dtype.kind
    if kind != "f":
        what, remedy = f"dtype {array.dtype}", "convert with .astype('float32')"
        if kind == "V":
            what += " (bfloat16 loses its name in an .npy file)"
            remedy = "convert with .astype('float32') before it is saved"
        elif kind not in "biuc":
            remedy = "name the file of the embeddings"
        raise source.fail("floating-point numbers", what, remedy)
    if array.ndim != 2:
        remedy = "reshape it to [rows, columns]"
        raise source.fail("2 axes, one row per item", f"shape {array.shape}", remedy)
    if 0 in array.shape:
        raise source.fail("at least one row and one column", f"shape {array.shape}", "fill it")
    return array


def read_integers(source: Source) -> Array:
    """A 1-d array of row numbers."""
    array = read_row_numbers(dataclasses.replace(source, remedy=_ROW_NUMBERS))
    if array.dtype.kind == "b" or array.ndim != 1:
        what = f"dtype {array.dtype}, shape {array.shape}"
        remedy = f"keep one number per row, shape ({len(array) if array.ndim else 1},)"
        if array.dtype.kind == "b" and array.ndim == 2:
            remedy = "write numpy.where(matrix.any(1), matrix.argmax(1), -1)"
        raise source.fail("1 axis of integers (rows, counted from 0)", what, remedy)
    return array


def read_row_numbers(source: Source) -> Array:
    """Integers of any shape; bool too."""
    array = _read(source, NUMBERS)
    if array.dtype.kind in "biu":
        return array
    remedy = source.remedy
    if array.dtype.kind == "f" and array.ndim == 1:
        whole = array[np.isfinite(array)]
        if (whole == whole.round()).all():
            remedy = "convert with .astype('int64')"
        if len(whole) < len(array):
            remedy = "convert with numpy.nan_to_num(rows, nan=-1).astype('int64')"
    what = f"dtype {array.dtype}, shape {array.shape}"
    raise source.fail("integers (rows, counted from 0)", what, remedy)


def read_pairs(given: str | Source, num_query_bank: int, num_gallery_bank: int) -> sets.Integers:
    """The gallery-bank row of each query-bank row (-1: none), of a file or as --bank-pairs says."""
    if given == "rows":
        if num_query_bank != num_gallery_bank:
            raise ValueError(
                f"--bank-pairs rows: expected banks of equal length, got {num_query_bank} and "
                f"{num_gallery_bank} rows; give a file of gallery-bank rows"
            )
        return sets.rows_relevant(num_query_bank)[1]
    source = given if isinstance(given, Source) else Source.parse("--bank-pairs", given)
    return sets.checked_pairs(str(source), read_integers(source), num_query_bank, num_gallery_bank)


def read_relevant(source: Source, num_queries: int, num_gallery: int) -> Csr:
    """The right gallery rows of each query: rows, several filled up with -1, a bool matrix, CSR."""
    source = dataclasses.replace(source, remedy=_ROW_NUMBERS + _SEVERAL)
    names = [] if source.member is not None else names_of(source) or []
    if {*_CSR} & {*names}:
        indptr, indices = (read_integers(member_of(source, name, names)) for name in _CSR)
        return sets.relevant_from_csr(str(source), indptr, indices, num_queries, num_gallery)
    array, shape = read_row_numbers(source), (num_queries, num_gallery)
    if array.dtype.kind == "b":
        if array.shape != shape:
            what = f"shape {array.shape}"
            remedy = "transpose it" if array.T.shape == shape else source.remedy
            raise source.fail(f"a matrix of bool of shape {shape}, queries x gallery", what, remedy)
        return np.concatenate([[0], array.sum(axis=1).cumsum()]), array.nonzero()[1]
    if array.shape == shape:
        remedy = "make 0 and 1 bool with .astype(bool); give rows one more column of -1"
        what = f"{array.dtype} of the shape of the scores, {shape}"
        raise source.fail("row numbers, or a matrix of bool", what, remedy)
    return sets.relevant_from_indices(str(source), array, num_queries, num_gallery)


def names_of(source: Source) -> list[str] | None:
    """Of the arrays in a file; None where it is one array."""
    with formats.contained(source) as file:
        return file.names


def member_of(source: Source, name: str, names: list[str]) -> Source:
    if name not in names:
        only = f"only {formats.listed(names)}" if names else "no NumPy arrays"
        raise source.fail(f"an array named {name}", only, "rename or add the array")
    return dataclasses.replace(source, member=name)


def _read(source: Source, wanted: str, *, alone: bool = False) -> Array:
    """The array that is meant: the one named, or the only one.

    A column of a table should hold what is `wanted`; with `alone` the only one that does is meant.
    """
    with formats.contained(source) as file:
        if file.names is None:
            if source.member is not None:
                raise source.fail("several arrays", "a single .npy array", "leave the :name out")
            return file.read("")
        likely = [name for name in file.names if file.columns.get(name) == wanted]
        if source.member in file.fields:
            name = str(source.member)
        else:
            name = _meant(source, file.names, likely, alone=alone)
        if file.names.count(name) > 1:
            actual = f"{file.names.count(name)}"
            raise source.fail(f"one array named {name}", actual, "rename the columns")
        if wanted != TEXTS and {**file.fields, **file.columns}.get(name) == TEXTS:
            raise source.fail("numbers", "a column of strings", "choose another column")
        return file.read(name)


def _meant(source: Source, names: list[str], likely: list[str], *, alone: bool) -> str:
    if source.member is not None:
        if source.member not in names:
            found = formats.listed(names) or "no NumPy arrays"
            raise source.fail(f"an array named {source.member}", found, "choose one of them")
        return source.member
    if not names:
        remedy = "save the array with numpy.save (from PyTorch: tensor.numpy())"
        raise source.fail("a file of arrays", "an archive without any", remedy)
    if alone and len(likely) == 1:
        return likely[0]
    if len(names) > 1:
        file = STDIN if source.piped else source.path.name
        one = typed(f"{file}:{(likely or names)[0]}")
        remedy = "choose one" + f", for instance {one}" * (one == excerpt(one))
        raise source.fail("one array", formats.listed(names), remedy)
    return names[0]


# --- names ---------------------------------------------------------------------------------------


def read_items(source: Source, count: int | None, expected: str) -> Array:
    """What `count` items are called, or any number; `expected` says what they stand for."""
    items = read_lines(source) if kind_of(source) is None else read_names(source)
    if count not in (None, len(items)):
        remedy = "write one for every row, in the order of the rows"
        raise source.fail(expected, f"{len(items)}", remedy)
    return items


def read_ids(source: Source, count: int | None = None) -> Array:
    """What `count` items are called, or any number, each by a name of its own."""
    ids = read_items(source, count, f"a name for each of {count} rows")
    values = ids.tolist()
    if len({*values}) < len(values):
        first: dict[Any, int] = {}
        again = next(row for row, one in enumerate(values) if first.setdefault(one, row) != row)
        where, start = ("lines", 1) if kind_of(source) is None else ("rows", 0)
        places = f"{where} {first[values[again]] + start} and {again + start}"
        actual = f"the same on {places}: {values[again]!r}"
        raise source.fail("a name of its own for every row", actual, "rename or remove one")
    return ids


def read_names(source: Source) -> Array:
    """A 1-d array of texts or integers."""
    source = dataclasses.replace(source, remedy=_NAMES)
    array = _read(source, TEXTS)
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
    with opened(source) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {data[error.start]:#x} at place {error.start}"
        raise source.fail("UTF-8 text, or an array file", what, _NAMES) from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    return np.array(lines, dtype=object)


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


def with_labels(test: EvaluationSet, request: Any) -> EvaluationSet:
    """The set with the labels that are given."""
    labels: dict[str, Any] = {}
    for option, text in labels_given(request).items():
        field, part, of = _LABELS[option]
        source = Source.parse(option, text)
        labels[field] = read_labels(source, len(getattr(test, part)), of)
    return dataclasses.replace(test, **labels)


def read_labels(source: Source, count: int, of: str) -> tuple[str, ...]:
    """One label per item, as `read_items` finds them."""
    labels = read_items(source, count, f"{count} labels, one per {of}")
    return tuple(str(label) for label in labels)


# --- sets ----------------------------------------------------------------------------------------


def read_together(
    named: Mapping[str, str | Source | None], meaning: str = "embedding dimensions"
) -> dict[str, tuple[Source, Array]]:
    """The rows of those arguments that are given, of as many columns each; no values are read."""
    sources = {
        argument: given if isinstance(given, Source) else Source.parse(argument, given)
        for argument, given in named.items()
        if given is not None
    }
    found = {argument: (source, read_floats(source)) for argument, source in sources.items()}
    sets.check_same_columns({str(source): rows for source, rows in found.values()}, meaning)
    return found


def read_embeddings(
    named: Mapping[str, tuple[str, str | None]],
    similarity: str,
    *,
    relevant: str | None,
    bank_pairs: str | None,
) -> EvaluationSet:
    """A set from files apart: `named` maps a field of it to its argument and what that says."""
    read = read_together(dict(named.values()))
    parts = {field: read[argument] for field, (argument, _) in named.items() if argument in read}
    titles = [parts[field][0].title for field in ("queries", "gallery") if field in parts]
    source = None if relevant is None else Source.parse("--relevant", relevant)
    return _prepared(" -> ".join(titles), parts, similarity, source, bank_pairs)


def read_set(text: str, similarity: str) -> EvaluationSet:
    """A whole set from one file.

    It holds query, gallery and query_bank, and possibly gallery_bank, bank_pair, and gt_indptr
    with gt_indices.
    """
    source = Source.parse("SET.npz", text)
    names = names_of(source)
    if source.member is not None or names is None:
        remedy = "give a set, or the files of its parts one by one as --help says"
        raise source.fail("an npz with query, gallery and query_bank", "one array", remedy)
    members = {"queries": "query", "gallery": "gallery", "query_bank": "query_bank"}
    if "gallery_bank" in names:
        members["gallery_bank"] = "gallery_bank"
    parts = read_together(
        {field: member_of(source, name, names) for field, name in members.items()}
    )
    paired = "bank_pair" in names and "gallery_bank" in names
    pairs = member_of(source, "bank_pair", names) if paired else None
    # Many sets are folders with one data.npz each: the folder is the name.
    title = source.path.resolve().parent.name if source.title == "data" else source.title
    relevant = source if {*_CSR} & {*names} else None
    return _prepared(title, parts, similarity, relevant, pairs)


def _prepared(
    name: str,
    parts: Mapping[str, tuple[Source, Array]],
    similarity: str,
    relevant: Source | None,
    bank_pairs: str | Source | None,
) -> EvaluationSet:
    """A set of these parts; values are read last.

    Without queries the query bank asks, without a gallery bank the gallery stands in for it.
    Where nothing says what is relevant, row i belongs to row i if the counts agree.
    """
    sizes = {field: len(rows) for field, (_, rows) in parts.items()}
    truth = pairs = None
    if relevant is not None:
        truth = read_relevant(relevant, sizes["queries"], sizes["gallery"])
    elif sizes.get("queries") == sizes["gallery"]:
        truth = sets.rows_relevant(sizes["gallery"])
    if bank_pairs is not None:
        others = sizes.get("gallery_bank", sizes["gallery"])
        pairs = read_pairs(bank_pairs, sizes["query_bank"], others)
    embeddings = {
        field: sets.prepared(str(source), rows, similarity)
        for field, (source, rows) in parts.items()
    }
    return EvaluationSet(
        name,
        embeddings.get("queries", embeddings["query_bank"]),
        embeddings["gallery"],
        embeddings["query_bank"],
        embeddings.get("gallery_bank"),
        relevant=truth,
        bank_pairs=pairs,
        similarity=similarity,
    )
