"""Results of a retrieval system, without its embeddings: the items that each query got, in order.

A TREC run      query Q0 item rank score tag, a line for each item of a query
JSON lines      {"query": ..., "items": [...], "scores": [...]}, a line for each query
arrays          indices [num_queries, k], rows of items; query_ids and gallery_ids may name both

The latter two are what `dbnorm search` writes.
"""

import dataclasses
import json
from array import array
from typing import Any

import numpy as np

from dbnorm_jax._cli.reading import names as naming
from dbnorm_jax._cli.reading import single
from dbnorm_jax._cli.reading.argument import Source, kind_of, opened
from dbnorm_jax._cli.reading.formats import PICKLE
from dbnorm_jax._cli.reading.lines import Names, numbered, parsed
from dbnorm_jax._cli.reading.names import Labels
from dbnorm_jax._cli.reading.relevant import read_relevant
from dbnorm_jax._cli.reading.sets import Array, Integers, Relevance
from dbnorm_jax._src.core.text import excerpt

_COLUMNS = "query Q0 item rank score tag"
_RENUMBER = "number the lines of each query 1, 2, 3, ..., best first"
_OBJECT = '{"query": "q1", "items": ["d7", "d2"]}'
_MOST_ITEMS = 2**31 - 1
_MOST = 2**62  # of ranks and row numbers, so that their sums are right
_WRITE = f"write {_OBJECT}, a line for each query"
_LISTS = (
    f"write a TREC run ({_COLUMNS}), JSON lines ({_OBJECT}), or an npz with indices [queries, k]"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """A list of items for every query, best first; each item once in a list."""

    title: str
    queries: Array  # [num_queries] names, or row numbers
    items: Array  # [num_items] names, or row numbers
    whole: bool  # whether these are all items that can be found, or those in some list
    indptr: Integers  # [num_queries + 1] where each list begins
    indices: Integers  # rows of `items`

    @property
    def lengths(self) -> Integers:
        """[num_queries] how many items a list has, at least one."""
        return np.diff(self.indptr)

    @property
    def num_named(self) -> int:
        """So many items there are at least."""
        by_row = self.items.dtype.kind in "iu" and not self.whole
        return int(self.items.max()) + 1 if by_row else len(self.items)

    def query(self, row: int) -> str | int:
        """What a query is called."""
        return _plain(self.queries[row])

    def item(self, row: int) -> str | int:
        """What an item is called."""
        return _plain(self.items[row])


def _plain(name: Any) -> Any:
    return name.item() if isinstance(name, np.generic) else name


def read_results(source: Source) -> Results:
    """The lists of a file in one of the forms above."""
    source = dataclasses.replace(source, remedy=_LISTS)
    kind = kind_of(source)
    with opened(source) as file:
        first = next((line for _, line in numbered(file)), b"") if kind is None else b""
    if kind is not None or first.startswith(PICKLE):
        return _of_arrays(source)
    if source.member is not None:
        raise source.fail("several arrays", "a text", "leave the :name out")
    return _of_objects(source) if first.lstrip().startswith(b"{") else _of_run(source)


def with_labels(results: Results, source: Source) -> Results:
    """The results with all items named in their order, by labels of rows or the list of all ids."""
    by_row, least = results.items.dtype.kind in "iu", results.num_named
    labels = naming.read_items(source, None, "labels") if by_row else naming.read_ids(source)
    if results.whole:
        raise source.fail("results without gallery_ids", "both", "leave one out")
    if by_row:
        rows = results.items
        if len(labels) < least:
            expected, remedy = (
                f"a label for each item, at least {least}",
                "write one for every item",
            )
            raise source.fail(expected, f"{len(labels)}", remedy)
    else:
        known = {name: row for row, name in enumerate(labels.tolist())}
        rows = np.array([known.get(name, -1) for name in results.items], np.int64)
        if (rows < 0).any():
            name, count = results.item(int(rows.argmin())), int((rows < 0).sum())
            expected = f"the ids of all items, {name!r} among them"
            actual = (
                f"{len(labels)} others; {count} of {len(rows)} ids in the results are not there"
            )
            raise source.fail(expected, actual, "give the ids that the system knows")
    return dataclasses.replace(results, items=labels, whole=True, indices=rows[results.indices])


def judged(results: Results, source: Source, num_items: int | None) -> tuple[Integers, Relevance]:
    """The items of all lists, and which are right, by rows of one numbering.

    Names go with qrels, rows with rows.
    """
    if results.items.dtype.kind not in "iu":
        ids = Labels(source, results.queries), Labels(source, results.items)
        right = read_relevant(source, len(results.queries), len(results.items), *ids, growing=True)
        return results.indices, right
    if results.queries.tolist() != list(range(len(results.queries))):
        expected = "results that name queries and items, as qrels do, or number both from 0"
        raise source.fail(expected, "numbers of items and names of queries", "name both or neither")
    size = num_items or _MOST_ITEMS
    return results.items[results.indices], read_relevant(source, len(results.queries), size)


# --- a TREC run ----------------------------------------------------------------------------------


def _of_run(source: Source) -> Results:
    """Lines in any order. A list is what the ranks say, and the scores must say the same.

    trec_eval looks at the scores alone; where both disagree, one of them is wrong.
    """
    queries, items = Names(source), Names(source)
    table, scores = array("q"), array("d")
    with opened(source) as file:
        for line, text in numbered(file):
            columns = text.split()
            if len(columns) != 6:
                what = f"{len(columns)} on line {line}"
                raise source.fail(f"6 columns ({_COLUMNS})", what, _LISTS)
            query, _, item, rank, score, _ = columns
            scores.append(_number(source, "a score", float, score, line))
            place = _number(source, "a rank", int, rank, line)
            table.extend((queries.row(query, line), items.row(item, line), place, line))
    if not scores:
        raise source.fail("at least one line", "none", _LISTS)
    rows = np.frombuffer(table, np.int64).reshape(-1, 4)
    order = np.lexsort((rows[:, 2], rows[:, 0]))
    rows, names = rows[order], queries.as_array()
    indptr = np.searchsorted(rows[:, 0], np.arange(len(names) + 1))
    results = Results(source.title, names, items.as_array(), False, indptr, rows[:, 1])
    _check_ranks(source, rows, np.frombuffer(scores)[order], results)
    _check_distinct(source, results, "lines", rows[:, 3])
    return results


def _number(source: Source, what: str, kind: Any, text: bytes, line: int) -> Any:
    try:
        (value,) = parsed([text], kind)
    except ValueError:
        value = None
    if value is None or not -_MOST < value < _MOST:  # nor NaN
        found = f"{excerpt(text.decode(errors='replace'))!r} on line {line}"
        raise source.fail(what, found, f"write lines of {_COLUMNS}")
    return value


def _check_ranks(source: Source, rows: Any, scores: Any, results: Results) -> None:
    """Of rows (query, item, rank, line) in the order of queries and ranks."""
    query, _, rank, line = rows.T
    begins = np.append(True, query[1:] != query[:-1])
    before = np.where(begins, np.clip(rank, 0, 1) - 1, np.roll(rank, 1))
    wrong = np.flatnonzero(rank != before + 1)
    if len(wrong):
        place = wrong[line[wrong].argmin()]
        expected = f"ranks of query {results.query(query[place])!r} without holes or repeats"
        previous = "first" if begins[place] else f"after {before[place]}"
        raise source.fail(expected, f"{rank[place]} {previous} on line {line[place]}", _RENUMBER)
    rising = np.flatnonzero(~begins & (scores > np.roll(scores, 1)))
    if len(rising):
        place = rising[line[rising].argmin()]
        expected = f"scores of query {results.query(query[place])!r} that do not rise with the rank"
        actual = f"{scores[place]:g} after {scores[place - 1]:g} on line {line[place]}"
        raise source.fail(expected, actual, _RENUMBER)


def _check_distinct(source: Source, results: Results, what: str, places: Any) -> None:
    """Raises where an item stands in a list twice; `places` are the numbers of `what` in errors."""
    query = np.repeat(np.arange(len(results.queries)), np.diff(results.indptr))
    order = np.lexsort((results.indices, query))
    same = np.diff(query[order]) + np.abs(np.diff(results.indices[order])) == 0
    if same.any():
        first, again = order[same.argmax()], order[same.argmax() + 1]
        item, name = results.item(results.indices[first]), results.query(query[first])
        where = sorted({int(places[first]), int(places[again])})
        actual = f"{item!r} twice, {what} {' and '.join(map(str, where))}"
        raise source.fail(f"each item once for query {name!r}", actual, "remove one")


# --- JSON lines ----------------------------------------------------------------------------------


def _of_objects(source: Source) -> Results:
    rows: dict[Any, int] = {}  # by the query
    known: dict[Any, int] = {}  # by the item
    indices, ends, lines = array("q"), array("q", [0]), array("q")
    kind: type | None = None
    with opened(source) as file:
        for line, text in numbered(file):
            query, items = _parsed(source, text, line)
            kind = kind or type(items[0])
            if {type(item) for item in items} != {kind} or kind not in (str, int):
                expected, actual = "items that are all names or all row numbers", "others"
                raise source.fail(expected, f"{actual} on line {line}", _WRITE)
            if kind is int and not 0 <= min(items) <= max(items) < _MOST:
                actual = f"{excerpt(min(items))} to {excerpt(max(items))} on line {line}"
                raise source.fail("row numbers, counted from 0", actual, _WRITE)
            if rows.setdefault(query, len(rows)) < len(lines):
                actual = f"it on lines {lines[rows[query]]} and {line}"
                raise source.fail(f"query {query!r} once", actual, "remove one")
            indices.extend(known.setdefault(item, len(known)) for item in items)
            ends.append(len(indices))
            lines.append(line)
    names = np.array([*known], object if kind is str else np.int64)
    queries = np.array([*rows], object)
    results = Results(source.title, queries, names, False, np.array(ends), np.array(indices))
    _check_distinct(source, results, "line", np.repeat(lines, np.diff(ends)))
    return results


def _parsed(source: Source, text: bytes, line: int) -> tuple[str | int, list[Any]]:
    try:
        content = json.loads(text.decode())
        query, items = content["query"], content["items"]
    except (ValueError, TypeError, LookupError, RecursionError):
        query = items = None
    if type(query) not in (str, int) or not isinstance(items, list):
        expected = "an object with a name as query and a list as items"
        raise source.fail(expected, f"something else on line {line}", _WRITE)
    if not items:
        raise source.fail(f"items for query {query!r}", f"none on line {line}", "leave it out")
    return query, items


# --- arrays --------------------------------------------------------------------------------------


def _of_arrays(source: Source) -> Results:
    names = [] if source.member is not None else single.names_of(source) or []
    found = single.member_of(source, "indices", names) if names else source
    indices = single.read_row_numbers(found)
    if indices.dtype.kind == "b" or indices.ndim != 2 or 0 in indices.shape:
        what, remedy = (
            f"{indices.dtype} of shape {indices.shape}",
            "write rows of items, best first",
        )
        raise found.fail("integers of shape [queries, k]", what, remedy)
    num_queries, k = indices.shape
    ids = {}
    for name in ("query_ids", "gallery_ids"):
        if name in names:
            count = num_queries if name == "query_ids" else None
            ids[name] = naming.read_ids(single.member_of(source, name, names), count)
    there = np.asarray(indices >= 0)
    counts = there.sum(axis=1)
    wrong = (indices < -1) | (indices >= _MOST) | (there != (np.arange(k) < counts[:, None]))
    for bad, expected, actual in (
        (wrong.any(axis=1), "rows of items, and -1 only behind them", "others"),
        (counts == 0, "at least one item for each query", "none"),
    ):
        if bad.any():
            place = f"{actual} in row {int(bad.argmax())}"
            raise found.fail(expected, place, "leave the row out or write it again")
    flat = indices[there].astype(np.int64)
    queries = ids.get("query_ids", np.arange(num_queries))
    items = ids.get("gallery_ids")
    if items is None:
        items, flat = np.unique(flat, return_inverse=True)
    elif flat.max() >= len(items):
        expected = f"rows of {len(items)} items, as many as gallery_ids"
        raise found.fail(expected, f"row {flat.max()}", "give the ids of all items")
    indptr = np.concatenate([[0], counts.cumsum()])
    results = Results(source.title, queries, items, "gallery_ids" in ids, indptr, flat)
    _check_distinct(found, results, "in row", np.repeat(np.arange(num_queries), counts))
    return results
