"""Which gallery items are right for which query, and how much, in the forms that people keep it.

rows            a gallery row for each query, or a list of them filled up with -1
queries         the query of each gallery item, where there are more or fewer of these
pairs           [num_pairs, 2], query row and gallery row; of an npz, the array `pairs`
a matrix        queries x gallery, bool, or grades as floating-point numbers
CSR             gt_indptr and gt_indices, or what scipy.sparse.save_npz writes of a csr_matrix
lists           JSON: a list of gallery rows for each query, [[4], [0, 7], []], or one on each line
qrels           lines of names: query 0 item grade (TREC); query, item, grade (BEIR), with a header
                or without
"""

import dataclasses
import io
import json
from array import array as numbers
from typing import Any

import numpy as np

from dbnorm_jax._cli.reading import sets, single
from dbnorm_jax._cli.reading.argument import Source, kind_of, opened
from dbnorm_jax._cli.reading.formats import NUMBERS, PICKLE
from dbnorm_jax._cli.reading.lines import numbered, parsed
from dbnorm_jax._cli.reading.names import Labels, distinct
from dbnorm_jax._cli.reading.sets import Array, Csr, Relevance
from dbnorm_jax._src.core.text import excerpt

CSR = ("gt_indptr", "gt_indices")
_SCIPY = {"indptr", "indices", "data", "shape", "format"}
_REMEDY = f"{single.ROW_NUMBERS}; several as gt_indptr and gt_indices in an npz, or write qrels"
_QRELS = "query 0 item grade"
_AT_ONCE = 2**20  # bytes


def read_relevant(
    source: Source,
    num_queries: int,
    num_gallery: int,
    query_ids: Labels | None = None,
    gallery_ids: Labels | None = None,
    *,
    growing: bool = False,
) -> Relevance:
    """The right gallery rows of each query and their grades; ids are what qrels name.

    With `growing`, items that only qrels name have rows behind those of the gallery.
    """
    source, shape = dataclasses.replace(source, remedy=_REMEDY), (num_queries, num_gallery)
    start = b""
    if kind_of(source) is None:
        with opened(source) as file:
            start = next((line.lstrip() for _, line in numbered(file)), b"")
    if start and not start.startswith((b"[", PICKLE)):
        if source.member is not None:
            raise source.fail("several arrays", "a text", "leave the :name out")
        return _of_qrels(source, *_ids(source, query_ids, gallery_ids), growing=growing)
    if growing:
        expected = "qrels, since the results name their items"
        raise source.fail(expected, "rows of items", f"write lines {_QRELS}")
    if start.startswith(b"["):
        return sets.relevance(source, _of_lists(source, shape))
    names = [] if source.member is not None else single.names_of(source) or []
    if {*CSR} & {*names}:
        return sets.relevance(source, _of_parts(source, names, CSR, shape))
    if {*names} >= _SCIPY:
        return _of_scipy(source, names, shape)
    if "pairs" in names:
        source = single.member_of(source, "pairs", names)
    array = single.read(source, NUMBERS)
    if array.ndim == 2 and array.dtype.kind in "bf":
        return _of_matrix(source, array, shape)
    return sets.relevance(source, _of_rows(source, single.row_numbers(source, array), shape))


def _of_parts(
    source: Source, names: list[str], parts: tuple[str, str], shape: tuple[int, int]
) -> Csr:
    indptr, indices = (single.read_integers(single.member_of(source, one, names)) for one in parts)
    return sets.relevant_from_csr(str(source), indptr, indices, *shape)


def _of_rows(source: Source, array: Array, shape: tuple[int, int]) -> Csr:
    """Rows, lists of them or pairs, by their shape."""
    num_queries, num_gallery = shape
    if array.shape == shape:
        remedy = (
            "make 0 and 1 bool with .astype(bool), grades floats with .astype('float32'); give "
            "rows one more column of -1"
        )
        what = f"{array.dtype} of the shape of the scores, {shape}"
        raise source.fail("row numbers, or a matrix of bool or of grades", what, remedy)
    named = source.member == "pairs"
    if array.ndim == 2 and array.shape[1] == 2 and (named or len(array) != num_queries):
        return _of_pairs(source, array, shape)
    if array.ndim == 2 and array.shape[1] == 2 and _may_be_pairs(array, num_queries):
        expected = "lists of rows, or pairs of query and gallery row"
        remedy = "save pairs with numpy.savez(file, pairs=pairs); give lists one more column of -1"
        raise source.fail(expected, f"shape {array.shape}, which may be either", remedy)
    if array.ndim == 1 and len(array) == num_gallery != num_queries:
        _check_rows(source, array, -1, num_queries, "query")
        items = np.flatnonzero(array >= 0)
        return _csr(array[items].astype(np.int64), items, num_queries)
    return sets.relevant_from_indices(str(source), array, num_queries, num_gallery)


def _may_be_pairs(array: Array, num_queries: int) -> bool:
    first = array[:, 0].astype(np.int64)
    return bool((array >= 0).all() and (first[1:] >= first[:-1]).all() and first[-1] < num_queries)


def _of_pairs(source: Source, pairs: Array, shape: tuple[int, int]) -> Csr:
    for column, (count, what) in enumerate(zip(shape, ("query", "gallery"), strict=True)):
        _check_rows(source, pairs[:, column], 0, count, what)
    queries, items = pairs.astype(np.int64).T
    return _csr(queries, items, shape[0])


def _check_rows(source: Source, rows: Array, low: int, count: int, what: str) -> None:
    wrong = (rows < low) | (rows >= count)
    if wrong.any():
        place = int(wrong.argmax())
        expected = f"{what} rows between {low} and {count - 1}"
        actual = f"{rows[place]} in row {place}"
        raise source.fail(expected, actual, "rows are counted from 0, in the order of the file")


def _csr(queries: Any, items: Any, num_queries: int) -> Csr:
    order = np.argsort(queries, kind="stable")
    counts = np.bincount(queries, minlength=num_queries)
    return np.concatenate([[0], counts.cumsum()]), items[order]


# --- matrices ------------------------------------------------------------------------------------


def _of_matrix(source: Source, matrix: Array, shape: tuple[int, int]) -> Relevance:
    """True, or a grade above 0; some rows at a time."""
    if matrix.shape != shape:
        what = f"{matrix.dtype} of shape {matrix.shape}"
        remedy = "transpose it" if matrix.T.shape == shape else source.remedy
        expected = f"integers, or a matrix of bool or of grades of shape {shape}, queries x gallery"
        raise source.fail(expected, what, remedy)
    queries, items, grades = [], [], []
    for start, block in sets.blocks(matrix):
        _check_grades(source, block, start)
        rows, columns = block.nonzero()
        queries.append(rows + start)
        items.append(columns)
        grades.append(block[rows, columns])
    csr = _csr(np.concatenate(queries), np.concatenate(items), shape[0])
    found = None if matrix.dtype.kind == "b" else np.concatenate(grades).astype(np.float64)
    return sets.relevance(source, csr, found)


def _check_grades(source: Source, grades: Array, first: int = 0) -> None:
    """Of entries, or of some rows of a matrix; the first has this number."""
    if grades.dtype.kind == "b":
        return
    wrong = ~((grades >= 0) & (grades < np.inf))
    if wrong.any():
        place, *column = np.argwhere(wrong)[0].tolist()
        where = f"row {first + place}, column {column[0]}" if column else f"entry {place}"
        actual = f"{grades[(place, *column)]} at {where}"
        raise source.fail("grades, finite and not negative", actual, "write 0 where none is right")


def _of_scipy(source: Source, names: list[str], shape: tuple[int, int]) -> Relevance:
    def part(name: str) -> Array:
        return single.read(single.member_of(source, name, names), NUMBERS)

    form, size, data = part("format"), part("shape"), part("data")
    if form.dtype.kind not in "SU" or form.ndim or form.astype("U").item() != "csr":
        what = excerpt(
            form.astype("U").item() if form.dtype.kind in "SU" and not form.ndim else form
        )
        raise source.fail("a sparse matrix in CSR", what, "save matrix.tocsr()")
    if size.dtype.kind not in "iu" or size.shape != (2,) or tuple(size.tolist()) != shape:
        what = f"shape {tuple(size.ravel().tolist())}"
        raise source.fail(f"shape {shape}, queries x gallery", what, "give that of these files")
    csr = _of_parts(source, names, ("indptr", "indices"), shape)
    if data.dtype.kind not in "biuf" or data.shape != csr[1].shape:
        what = f"{data.dtype} of shape {data.shape}"
        raise source.fail(f"a number for each of {len(csr[1])} entries", what, "write it again")
    _check_grades(source, data)
    found = sets.relevance(source, csr, data.astype(np.float64))
    if len(found.csr[1]) < np.count_nonzero(data):
        raise source.fail("each entry once", "some again", "call sum_duplicates() before saving")
    return found


# --- text ----------------------------------------------------------------------------------------


def _of_lists(source: Source, shape: tuple[int, int]) -> Csr:
    """JSON, whole or by lines."""
    with opened(source) as file:
        data = file.read()
    lines = None
    try:
        lists = json.loads(data.decode("utf-8-sig"))
        if lists and not isinstance(lists[0], list):
            lists = [lists]  # one line
    except (ValueError, RecursionError):
        lists, lines = [], []
        for line, text in numbered(io.BytesIO(data)):
            try:
                lists.append(json.loads(text.decode()))
            except (ValueError, RecursionError):
                raise source.fail("a list of rows", f"other text on line {line}", _REMEDY) from None
            lines.append(line)
    if len(lists) != shape[0]:
        raise source.fail(f"a list for each of {shape[0]} queries", f"{len(lists)}", _REMEDY)
    indices = numbers("q")
    for row, items in enumerate(lists):
        place = f"in list {row}" if lines is None else f"on line {lines[row]}"
        if not isinstance(items, list) or any(type(item) is not int for item in items):
            raise source.fail("lists of row numbers", f"something else {place}", _REMEDY)
        if items and not 0 <= min(items) <= max(items) < shape[1]:
            worst = min(items) if min(items) < 0 else max(items)
            expected = f"gallery rows between 0 and {shape[1] - 1}"
            raise source.fail(expected, f"{excerpt(worst)} {place}", "count rows from 0")
        indices.extend(items)
    return np.cumsum([0, *map(len, lists)]), np.array(indices, np.int64)


def _ids(source: Source, queries: Labels | None, gallery: Labels | None) -> tuple[Labels, Labels]:
    if queries is None or gallery is None:
        missing = " and ".join(["--query-labels"] * (not queries) + ["--labels"] * (not gallery))
        remedy = f"give the ids, in the order of the rows, or {single.ROW_NUMBERS}"
        raise source.fail("ids of both sides, which qrels name", f"no {missing}", remedy)
    return queries, gallery


class _Rows(dict[bytes, int]):
    """By names; others are counted and have row -1, or grow the table."""

    def __init__(self, labels: Labels, *, growing: bool = False) -> None:
        source, names = labels
        texts = [str(name).encode("utf-8", "replace") for name in names.tolist()]
        super().__init__(zip(texts, range(len(texts)), strict=True))
        if len(self) < len(texts):
            distinct(source, names)  # says which
            raise source.fail("ids that differ as texts", "some that do not", "rename them")
        self.unknown: set[bytes] = set()
        self._growing = growing

    def __missing__(self, name: bytes) -> int:
        if self._growing:
            return self.setdefault(name, len(self))
        self.unknown.add(name)
        return -1

    def name(self, row: int) -> str:
        """For an error."""
        return [*self][row].decode(errors="replace")


def _of_qrels(
    source: Source, query_ids: Labels, gallery_ids: Labels, *, growing: bool
) -> Relevance:
    """Lines of TREC or BEIR. A grade of 0 or less says that an item was judged, and is not right.

    Lines of 3 columns between tabs may hold blanks in names, and begin with a header.
    """
    queries, items = _Rows(query_ids), _Rows(gallery_ids, growing=growing)
    asked, named, places, grades = numbers("q"), numbers("q"), numbers("q"), numbers("d")
    known: dict[bytes, float] = {}  # grades by their texts
    with opened(source) as file:
        line, text = next(numbered(file))
        separator = b"\t" if text.count(b"\t") == 2 else None
        cells = text.split(separator)
        width, texts = len(cells), [text]
        if width not in (3, 4):
            what = f"{width} columns on line {line}"
            raise source.fail(f"qrels ({_QRELS})", what, source.remedy)
        if separator and cells[0] not in queries and _grade(cells[2]) is None:
            texts[0] = b""  # the header
        while texts:
            lines, cells = _cells(source, line, texts, separator, width)
            asked.extend(map(queries.__getitem__, cells[::width]))
            named.extend(map(items.__getitem__, cells[width - 2 :: width]))
            judged = cells[width - 1 :: width]
            for grade in {*judged} - known.keys():
                known[grade] = _checked_grade(source, grade, lines[judged.index(grade)])
            grades.extend(map(known.__getitem__, judged))
            places.extend(lines)
            line += len(texts)
            texts = file.readlines(_AT_ONCE)
    values = np.array(grades)
    columns = [np.array(column, np.int64) for column in (asked, named, places)]
    rows = np.stack(columns, axis=1)
    there = (rows[:, :2] >= 0).all(axis=1)
    if not there.any():
        what, both = f"none of them on {len(rows):,} lines", "--query-labels and --labels"
        remedy = f"give the ids that the qrels use as {both}"
        raise source.fail("ids that are known on both sides", what, remedy)
    remarks = []
    if not there.all():
        remarks.append(
            f"{source}: {(~there).sum():,} of {len(rows):,} lines are passed over: they name "
            f"{len(queries.unknown):,} queries and {len(items.unknown):,} items that are not here."
        )
    rows, values = rows[there], values[there]
    order = sets.in_order(rows[:, 0], rows[:, 1])
    rows, values = rows[order], values[order]
    again = (rows[1:, :2] == rows[:-1, :2]).all(axis=1) & (values[1:] != values[:-1])
    if again.any():
        place = int(again.argmax())
        query, item, line = rows[place].tolist()
        expected = f"one grade for query {queries.name(query)!r} and item {items.name(item)!r}"
        what = f"{values[place]:g} and {values[place + 1]:g} on lines {line} and"
        raise source.fail(expected, f"{what} {rows[place + 1, 2]}", "remove one")
    csr = _csr(rows[:, 0], rows[:, 1], len(query_ids.names))
    return sets.relevance(source, csr, values, remarks)


def _cells(
    source: Source, first: int, texts: list[bytes], separator: bytes | None, width: int
) -> tuple[list[int], list[bytes]]:
    """The numbers of lines that are not blank, the first text has `first`; their cells, in a row.

    Not a list for each line: the garbage collector would look at so many again and again.
    """
    lines: list[int] = []
    cells: list[bytes] = []
    for line, text in enumerate(texts, first):
        found = text.split(separator)
        if len(found) == width:
            lines.append(line)
            cells += found
        elif text.strip():
            what, remedy = f"{len(found)} on line {line}", f"write lines {_QRELS}"
            raise source.fail(f"{width} columns as before", what, remedy)
    return lines, cells


def _grade(text: bytes) -> float | None:
    try:
        (value,) = parsed([text])
    except ValueError:
        return None
    return value if abs(value) < np.inf else None


def _checked_grade(source: Source, text: bytes, line: int) -> float:
    value = _grade(text)
    if value is None:
        what = f"{excerpt(text.decode(errors='replace'))!r} on line {line}"
        raise source.fail("a grade", what, f"write lines {_QRELS}")
    return value
