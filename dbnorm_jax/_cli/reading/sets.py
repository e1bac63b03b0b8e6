"""What is evaluated: embeddings or similarity matrices of a test and its banks, checked."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dbnorm_jax._src.places.disk.rows import let_go

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Csr = tuple[Integers, Integers]  # (indptr, indices)


class Relevance(NamedTuple):
    """The right gallery rows of each query."""

    csr: Csr  # rows of a query rise, so that none is there twice
    grades: Array | None = None  # [num_entries] of each, above 0; None: 1
    remarks: tuple[str, ...] = ()  # what was passed over


# Rows converted at once: a memory-mapped file is never copied whole in float64.
ROWS_AT_ONCE = 2048
# Bytes in float32 beyond which embeddings stay where they are, to be prepared block by block.
MOST_IN_MEMORY = 2**30
# Where arrays of this alignment begin, a CPU device takes them over without a copy.
_ALIGNMENT = 64

# Rows closer than this share of their largest value are the same item.
_ROUNDING = 1e-6
# So many neighbors in projection are compared, against clusters that would take forever.
_MOST_NEIGHBORS = 256


class LargeRows:
    """Embeddings that stay where they are, and are prepared wherever some of them are asked for."""

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, argument: str, array: Array, similarity: str) -> None:
        self.shape: tuple[int, ...] = array.shape
        self._argument, self._array, self._similarity = argument, array, similarity

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: slice | Array) -> Floats:
        """Some of the rows, at most a few blocks."""
        first = (places.start or 0) if isinstance(places, slice) else 0
        rows = _whole(self._argument, self._array[places], self._similarity, first)
        let_go(self._array)
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All of them, in memory."""
        whole = _whole(self._argument, self._array, self._similarity)
        return whole if dtype is None else whole.astype(dtype, copy=False)


Rows = Floats | LargeRows


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Embeddings of a test and its banks, and names of the items."""

    name: str  # what to call the set in titles
    queries: Rows  # [num_queries, dim]; unit rows under cosine
    gallery: Rows  # [num_gallery, dim]
    query_bank: Rows  # [num_query_bank, dim], other items of the query modality
    # [num_gallery_bank, dim]; None: the gallery serves, each item excluded from its own sum.
    gallery_bank: Rows | None = None
    relevant: Csr | None = None  # the right gallery rows of each query; None: nothing is known
    bank_pairs: Integers | None = None  # the gallery-bank row of each query-bank row, -1 for none
    trust_banks: bool = False  # whether `auto` corrects although they look wrong
    similarity: str = "cosine"  # or "dot" or "euclidean"
    query_labels: tuple[str, ...] | None = None
    gallery_labels: tuple[str, ...] | None = None
    query_bank_labels: tuple[str, ...] | None = None
    grades: Array | None = None  # of each entry of `relevant`; None: 1
    remarks: tuple[str, ...] = ()  # on what is relevant

    @property
    def sizes(self) -> dict[str, int]:
        """How many rows of each kind there are."""
        return _sizes(self.queries, self.gallery, self.query_bank, self.gallery_bank)


@dataclasses.dataclass(frozen=True, eq=False)
class SimilaritySet:
    """Similarities of a test and its banks; columns are gallery items everywhere."""

    name: str
    similarities: Floats  # [num_queries, num_gallery]
    query_bank: Floats  # [num_query_bank, num_gallery]
    gallery_bank: Floats | None = None  # [num_gallery_bank, num_gallery]; None: only IS and DIS run
    relevant: Csr | None = None  # as in EvaluationSet
    grades: Array | None = None
    remarks: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """How many rows of each kind there are."""
        return _sizes(self.similarities, self.similarities.T, self.query_bank, self.gallery_bank)


def _sizes(queries: Rows, gallery: Rows, query_bank: Rows, bank: Rows | None) -> dict[str, int]:
    sizes = {"queries": len(queries), "gallery": len(gallery), "query_bank": len(query_bank)}
    return sizes if bank is None else {**sizes, "gallery_bank": len(bank)}


Test = EvaluationSet | SimilaritySet


def prepared(argument: str, array: Array, similarity: str) -> Rows:
    """`array` in float32, all values finite; rows of unit length under cosine.

    `argument` names it in errors. Beyond MOST_IN_MEMORY the values are checked, and nothing is
    held.
    """
    if array.size * LargeRows.dtype.itemsize <= MOST_IN_MEMORY:
        return _whole(argument, array, similarity)
    for _ in prepared_blocks(argument, array, similarity):
        pass
    return LargeRows(argument, array, similarity)


def prepared_matrix(argument: str, array: Array) -> Floats:
    """Similarities in float32, all values finite; a memory-mapped file stays mapped."""
    return _whole(argument, array, None)


def _whole(argument: str, array: Array, similarity: str | None, first: int = 0) -> Floats:
    """In memory, or a mapped float32 file that needs no change; errors number rows from `first`."""
    flat = isinstance(array, np.ndarray) and array.flags.c_contiguous  # and not made of parts
    keep = similarity != "cosine" and array.dtype == np.dtype("=f4") and flat
    out: Floats = array if keep else empty(array.shape, np.float32)
    for start, block in prepared_blocks(argument, array, similarity, first):
        if not keep:
            out[start - first : start - first + len(block)] = block
    return out


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """As `numpy.empty`, where a device of this processor can take it over."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def prepared_blocks(
    argument: str, array: Array, similarity: str | None, first: int = 0
) -> Iterator[tuple[int, Floats]]:
    """The rows of `prepared`, some at a time, each block with its place; the first has `first`."""
    for place, rows in blocks(array):
        start = first + place
        _check_finite(argument, rows, start)
        block = rows
        if similarity == "cosine":
            block = _unit_rows(argument, rows.astype(np.float64), start)  # its own copy
        if block.dtype != np.dtype("=f4"):
            with np.errstate(over="ignore"):
                block = block.astype(np.float32)
            _check_finite(argument, block, start, " in float32")
        yield start, block


def blocks(array: Rows) -> Iterator[tuple[int, Array]]:
    """Some of the rows at a time, and the number of the first of them."""
    for start in range(0, len(array), ROWS_AT_ONCE):
        yield start, np.asarray(array[start : start + ROWS_AT_ONCE])
        let_go(array)


def _check_finite(argument: str, block: Array, start: int, when: str = "") -> None:
    bad = ~np.isfinite(block)
    if bad.any():
        row, column = np.argwhere(bad)[0].tolist()
        raise ValueError(
            f"{argument}: expected finite values, got {block[row, column]}{when} at row "
            f"{start + row}, column {column}; remove or repair that row"
        )


def _unit_rows(argument: str, block: npt.NDArray[np.float64], start: int) -> Array:
    largest = np.abs(block).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(
            f"{argument}: expected rows of non-zero length under cosine similarity, got norm 0 at "
            f"row {start + int(largest.argmin())}; remove that row or use --similarity dot"
        )
    block /= largest  # first, so that no square overflows or vanishes
    block /= np.sqrt(np.einsum("rd,rd->r", block, block))[:, None]
    return block


def check_same_columns(arrays: dict[str, Array], meaning: str) -> None:
    """Raises unless all arrays have as many columns as the first; keys name them in errors."""
    (first_name, first), *others = arrays.items()
    for name, array in others:
        if array.shape[1] != first.shape[1]:
            transposed = array.shape[0] == first.shape[1] or array.shape[1] == first.shape[0]
            raise ValueError(
                f"{name}: expected {first.shape[1]} columns ({meaning}) as in {first_name}, got "
                f"shape {array.shape}"
                + ("; is it transposed? rows are items" if transposed else "; use files made alike")
            )


def relevant_from_indices(argument: str, indices: Array, num_queries: int, num_gallery: int) -> Csr:
    """One right gallery row per query, or several filled up with -1 (none), as CSR, checked."""
    if indices.shape[:1] != (num_queries,) or indices.ndim not in (1, 2):
        raise ValueError(
            f"{argument}: expected one gallery row per query, shape ({num_queries},), got shape "
            f"{indices.shape}; for several right items use an npz with gt_indptr and gt_indices"
        )
    _check_range(argument, indices, -1, num_gallery, "gallery rows", " (-1: none)")
    rows = indices.reshape(num_queries, -1)
    answered = np.asarray(rows >= 0)
    indptr = np.concatenate([[0], np.cumsum(answered.sum(axis=1))])
    return indptr.astype(np.int64), rows[answered].astype(np.int64)


def relevant_from_csr(
    argument: str, indptr: Array, indices: Array, num_queries: int, num_gallery: int
) -> Csr:
    """A CSR pair of right gallery rows, checked."""
    if indptr.shape != (num_queries + 1,):
        raise ValueError(
            f"{argument}: expected gt_indptr of shape ({num_queries + 1},), one more than there "
            f"are queries, got shape {indptr.shape}"
        )
    if indices.ndim != 1:
        raise ValueError(f"{argument}: expected gt_indices with 1 axis, got shape {indices.shape}")
    if int(indptr[0]) != 0 or int(indptr[-1]) != len(indices) or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(
            f"{argument}: expected gt_indptr to rise from 0 to the length of gt_indices "
            f"({len(indices)}), got {indptr[0]} to {indptr[-1]}"
        )
    _check_range(argument, indices, 0, num_gallery, "gallery rows in gt_indices", "")
    return indptr.astype(np.int64), indices.astype(np.int64)


def relevance(
    source: Any, csr: Csr, grades: Array | None = None, remarks: Sequence[str] = ()
) -> Relevance:
    """Each right row once, where several say the same; what has no grade above 0 is not right.

    `source` names the file in what is said of the others.
    """
    indptr, items = csr
    num_queries, said = len(indptr) - 1, [*remarks]
    queries = np.repeat(np.arange(num_queries), np.diff(indptr))
    if grades is not None:
        right = grades > 0
        queries, items, grades = queries[right], items[right], grades[right]
    order = in_order(queries, items)
    queries, items = queries[order], items[order]
    new = np.append(True, (np.diff(queries) != 0) | (np.diff(items) != 0))[: len(items)]
    if not new.all():
        said.append(f"{source}: {(~new).sum():,} right items are named again, and count once.")
    counts = np.bincount(queries[new], minlength=num_queries)
    indptr = np.concatenate([[0], counts.cumsum()])
    kept = None if grades is None else grades[order][new]
    return Relevance((indptr, items[new]), kept, tuple(said))


def in_order(queries: Array, items: Array) -> Array:
    """What sorts pairs of rows, each below 2^31; equal ones stay in their order."""
    return np.argsort(queries * np.int64(2**31) + items, kind="stable")


def told(relevance: Relevance | None) -> dict[str, Any]:
    """What a set holds of it, by the fields."""
    if relevance is None:
        return {}
    csr, grades, remarks = relevance
    return {"relevant": csr, "grades": grades, "remarks": remarks}


def rows_relevant(count: int) -> Csr:
    """Row i belongs to row i."""
    return np.arange(count + 1), np.arange(count)


def checked_pairs(
    argument: str, pairs: Array, num_query_bank: int, num_gallery_bank: int
) -> Integers:
    """The gallery-bank row of each query-bank row (-1: none), checked."""
    if pairs.shape != (num_query_bank,):
        raise ValueError(
            f"{argument}: expected one gallery-bank row per query-bank row, shape "
            f"({num_query_bank},), got shape {pairs.shape}"
        )
    _check_range(argument, pairs, -1, num_gallery_bank, "gallery-bank rows", " (-1: none)")
    return pairs.astype(np.int64)


def _check_range(argument: str, values: Array, low: int, high: int, what: str, remark: str) -> None:
    if values.size and (values.min() < low or values.max() >= high):
        raise ValueError(
            f"{argument}: expected {what} between {low}{remark} and {high - 1}, got values from "
            f"{values.min()} to {values.max()}; rows are counted from 0"
        )


def reversed_set(test: EvaluationSet) -> EvaluationSet:
    """The other direction: the two sides change places, in the test and in the banks."""
    if test.gallery_bank is None:
        raise ValueError(
            "--reverse: expected a gallery bank, since it becomes the query bank, got none; give "
            "--gallery-bank"
        )
    pairs = relevant = grades = None
    if test.bank_pairs is not None:
        pairs = np.full(len(test.gallery_bank), -1, np.int64)
        rows = np.flatnonzero(test.bank_pairs >= 0)[::-1]  # the first of several partners stays
        pairs[test.bank_pairs[rows]] = rows
    if test.relevant is not None:
        indptr, indices = test.relevant
        queries = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        counts = np.bincount(indices, minlength=len(test.gallery))
        order = np.argsort(indices, kind="stable")
        relevant = np.concatenate([[0], np.cumsum(counts)]), queries[order]
        grades = None if test.grades is None else test.grades[order]
    return dataclasses.replace(
        test,
        name=f"{test.name} (reversed)",
        queries=test.gallery,
        gallery=test.queries,
        query_bank=test.gallery_bank,
        gallery_bank=test.query_bank,
        relevant=relevant,
        grades=grades,
        bank_pairs=pairs,
        query_labels=test.gallery_labels,
        gallery_labels=test.query_labels,
        query_bank_labels=None,
    )


def some_queries(test: Test, count: int) -> Test:
    """The set with at most so many of its queries, spread evenly."""
    matrix = test.queries if isinstance(test, EvaluationSet) else test.similarities
    if len(matrix) <= count:
        return test
    rows = np.linspace(0, len(matrix) - 1, count).round().astype(int)
    relevant: Csr | None = None
    grades: Array | None = None
    if test.relevant is not None:
        indptr, indices = test.relevant
        parts = [np.arange(indptr[row], indptr[row + 1]) for row in rows]
        places = np.concatenate(parts)
        relevant = np.cumsum([0, *map(len, parts)]), indices[places]
        grades = None if test.grades is None else test.grades[places]
    kept: dict[str, Any] = {"relevant": relevant, "grades": grades}
    if isinstance(test, SimilaritySet):
        return dataclasses.replace(test, similarities=matrix[rows], **kept)
    return dataclasses.replace(test, queries=matrix[rows], query_labels=None, **kept)


def num_equal_rows(bank: Rows, test: Rows) -> int:
    """How many bank rows equal some test row, up to the rounding of float32.

    Not value for value: a file saved in float64, or scaled and normalized again, differs in the
    last bits. Rows are sorted by one random projection, where equal rows are neighbors, and only
    neighbors are compared: no bank x test matrix.
    """
    direction = np.random.default_rng(0).normal(size=test.shape[1:])
    keys = np.concatenate([rows.astype(np.float64) @ direction for _, rows in blocks(test)])
    order = np.argsort(keys)
    keys = keys[order]
    count = 0
    for _, rows in blocks(bank):
        key = rows.astype(np.float64) @ direction
        size = np.abs(rows).max(axis=1)
        reach = _ROUNDING * size * np.abs(direction).sum()
        place, end = np.searchsorted(keys, key - reach), np.searchsorted(keys, key + reach, "right")
        open_rows = np.arange(len(rows))  # not found yet, and with neighbors left
        for _ in range(_MOST_NEIGHBORS):
            open_rows = open_rows[place[open_rows] < end[open_rows]]
            if not len(open_rows):
                break
            others = test[order[place[open_rows]]]
            apart = np.abs(rows[open_rows] - others).max(axis=1)
            equal = apart <= _ROUNDING * size[open_rows]
            count += int(equal.sum())
            place[open_rows] += 1
            open_rows = open_rows[~equal]
    return count
