"""Where similarities come from: embeddings, streamed, or matrices, by rows.

Embeddings are streamed from memory, or block by block where some are too large for it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading import large
from dbnorm_jax._cli.reading.sets import (
    Csr,
    EvaluationSet,
    Floats,
    LargeRows,
    SimilaritySet,
    Test,
)
from dbnorm_jax._src.corrections.streamed import Streamed
from dbnorm_jax._src.corrections.table import Rescore
from dbnorm_jax._src.places.disk.rows import DEFAULT_BLOCK_SIZE

Ranks = npt.NDArray[np.floating[Any]]
Neighbors = npt.NDArray[np.int32]

# Queries whose whole row of scores is held at once, where a method needs the row.
_ROWS = 512
# A matrix that some methods must hold whole.
_LARGEST_MATRIX = 4 * 2**30
# Query-bank items told of per item.
_MAKERS = 3
# Queries whose top-1 is looked at without each bank item, and how many items follow it.
_ASKED = 1024
_RIVALS = 15


class UnfitError(ValueError):
    """A source that a method cannot be fitted from."""


class Found(NamedTuple):
    """What a search finds: [num_queries, k] gallery rows, and ranks where the truth is known."""

    nearest: Neighbors
    ranks: Ranks | None
    remark: str = ""  # what a method has to say
    choice: dbn.tuning.Choice | None = None  # where that method is `auto`


class Flips(NamedTuple):
    """The top-1s that one query-bank item decides, of some queries under the bias at a beta."""

    queries: npt.NDArray[np.integer[Any]]  # [num_asked], those looked at
    num_flips: npt.NDArray[np.integer[Any]]  # [num_query_bank], another top-1 without the item
    item: npt.NDArray[np.integer[Any]]  # [num_asked], bank row that the top-1 hangs on most
    flipped: npt.NDArray[np.bool_]  # [num_asked], whether it is another one without that row
    old: npt.NDArray[np.integer[Any]]  # [num_asked] gallery rows, with it and without it
    new: npt.NDArray[np.integer[Any]]


class Passes(NamedTuple):
    """The streamed functions, of arrays in memory or of rows that need not fit it."""

    bank_statistics: Callable[..., dbn.BankStatistics]
    largest_similarities: Callable[..., dbn.LargestSimilarities]
    top_k: Callable[..., dbn.SearchResult]
    ranks: Callable[..., Any]


_IN_MEMORY = Passes(
    dbn.stream_bank_statistics,
    dbn.stream_largest_similarities,
    dbn.stream_top_k,
    dbn.metrics.stream_ranks,
)
_OUT_OF_CORE = Passes(
    dbn.out_of_core.bank_statistics,
    dbn.out_of_core.largest_similarities,
    dbn.out_of_core.top_k,
    dbn.out_of_core.ranks,
)


def source_of(test: Test) -> "Embeddings | Matrices":
    """The source of a set."""
    return Matrices(test) if isinstance(test, SimilaritySet) else Embeddings(test)


class _Source:
    """What both have in common: statistics are made once, and rows of scores are searched."""

    test: Test
    _fitted: Callable[[str, Any, int], dbn.BankStatistics]
    _scores: Callable[[slice], jax.Array]  # of some queries

    def __init__(self, test: Test) -> None:
        self.test = test
        self.num_queries, self.num_gallery = test.sizes["queries"], test.sizes["gallery"]
        self._known: dict[tuple[str, Any, int], dbn.BankStatistics] = {}

    def statistics(self, bank: str, beta: Any, k: int = 1) -> dbn.BankStatistics:
        """Of the "query" or the "gallery" bank; `beta`: a number or a vector."""
        key = bank, beta, max(k, 1)  # so that gated methods share them with the others
        if not isinstance(beta, float):
            return self._fitted(*key)
        if key not in self._known:
            self._known[key] = self._fitted(*key)
        return self._known[key]

    def by_rows(self, k: int, rescore: Rescore) -> Found:
        """A block of whole rows at a time."""
        nearest, ranks = [], []
        for start in range(0, self.num_queries, _ROWS):
            rows = slice(start, min(start + _ROWS, self.num_queries))
            scores = rescore(self._scores(rows), rows)
            nearest.append(np.asarray(dbn.top_k(scores, k).indices))
            if self.test.relevant is not None:
                right = _right_items(self.test.relevant, rows, self.num_gallery)
                ranks.append(np.asarray(dbn.metrics.ranks(scores, right)))
        return Found(np.concatenate(nearest), np.concatenate(ranks) if ranks else None)

    def _check_size(self, part: str, num_rows: int) -> None:
        size = 4 * num_rows * self.num_gallery
        if size > _LARGEST_MATRIX:
            raise UnfitError(
                f"expected a {'query' if part == 'queries' else part} x gallery matrix of at most "
                f"{_LARGEST_MATRIX / 2**30:g} GiB, which this method holds whole, got "
                f"{size / 2**30:.1f} GiB; leave it out or use fewer rows"
            )


def _right_items(relevant: Csr, rows: slice, num_gallery: int) -> npt.NDArray[np.bool_]:
    indptr, indices = relevant
    ends = indptr[rows.start : rows.stop + 1]
    right = np.zeros((len(ends) - 1, num_gallery), bool)
    right[np.repeat(np.arange(len(right)), np.diff(ends)), indices[ends[0] : ends[-1]]] = True
    return right


def in_memory(rows: Any) -> jax.Array:
    """All rows on the device, which on a CPU takes over what `sets.empty` made."""
    return rows if isinstance(rows, jax.Array) else jax.device_put(np.asarray(rows))


def _placed(rows: Any) -> Any:
    """On the device; rows too large for memory stay outside."""
    return rows if rows is None or isinstance(rows, LargeRows) else in_memory(rows)


def blocks(rows: Any, *others: Any) -> Iterator[tuple[Any, ...]]:
    """Rows on the device with what goes with them, or None: at once, or block by block."""
    size = DEFAULT_BLOCK_SIZE if isinstance(rows, LargeRows) else len(rows)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield in_memory(rows[part]), *(None if other is None else other[part] for other in others)


class Embeddings(_Source):
    """A set of embeddings; nothing of the size of a matrix is held unless a method asks."""

    embedded = True  # as the rows of the table ask
    test: EvaluationSet

    def __init__(self, test: EvaluationSet) -> None:
        super().__init__(test)
        self.measure, self.bank_pairs = test.similarity, test.bank_pairs
        self.similarity_fn = large.PREPARED_FUNCTIONS[test.similarity]
        self.queries, self.gallery = _placed(test.queries), _placed(test.gallery)
        self.query_bank, self.gallery_bank = _placed(test.query_bank), _placed(test.gallery_bank)
        self._parts = {
            "queries": self.queries,
            "gallery": self.gallery,
            "query bank": self.query_bank,
            "gallery bank": self.gallery if self.gallery_bank is None else self.gallery_bank,
        }
        some_large = any(isinstance(rows, LargeRows) for rows in self._parts.values())
        self.passes = _OUT_OF_CORE if some_large else _IN_MEMORY
        streamed = self.streamed(self.gallery, {})
        self._fitted, self.largest = streamed.statistics, streamed.largest

    def streamed(self, items: Any, exclude: Mapping[str, Any]) -> Streamed:
        """The banks against some items, which `exclude` keeps out of some sums."""
        return Streamed(
            items,
            self.query_bank,
            self.gallery_bank,
            exclude,
            self.similarity_fn,
            bank_statistics=self.passes.bank_statistics,
            largest_similarities=self.passes.largest_similarities,
        )

    def rows(self, part: str) -> jax.Array:
        """Embeddings, in memory and from then on held; without a gallery bank, the gallery is it.

        For methods that need more than statistics.
        """
        rows = self._parts[part]
        if isinstance(rows, LargeRows):
            whole = in_memory(rows)
            self._parts = {name: whole if own is rows else own for name, own in self._parts.items()}
        return self._parts[part]

    def similarities(self, part: str) -> jax.Array:
        """[num_rows, num_gallery], whole."""
        rows = self.rows(part)
        self._check_size(part, len(rows))
        return self.similarity_fn(rows, self.rows("gallery"))

    def sinkhorn(self, temperature: Any, iterations: int, *, dual: bool) -> dbn.Correction:
        """SN, or DBSN, of whole banks in memory."""
        gallery, query_bank, gallery_bank = map(
            self.rows, ("gallery", "query bank", "gallery bank")
        )
        whole = Streamed(gallery, query_bank, gallery_bank, similarity_fn=self.similarity_fn)
        return whole.sinkhorn(temperature, iterations, dual=dual)

    def _scores(self, rows: slice) -> jax.Array:
        return self.similarity_fn(self.rows("queries")[rows], self.rows("gallery"))

    def distances(self, similarities: jax.Array) -> jax.Array:
        """Euclidean distances of what the similarities are of."""
        if self.measure == "dot":
            raise UnfitError(
                "expected cosine or euclidean similarity for a method on distances, got dot; "
                "leave rescaling methods out"
            )
        squares = 2 - 2 * similarities if self.measure == "cosine" else -similarities
        return jnp.sqrt(jnp.maximum(squares, 0))

    def makers(self, items: npt.NDArray[Any], beta: float) -> dbn.attribution.Contributors:
        """The query-bank items behind the biases of gallery rows at beta."""
        statistics = self.statistics("query", beta)
        means = jax.tree.map(lambda field: field[items], statistics.means)
        return dbn.attribution.bias_contributors(
            self.rows("query bank"),
            self.gallery[items],
            dbn.BankStatistics.of(means, statistics.beta, None, 0),
            np.arange(len(items), dtype=np.int32),
            k=min(_MAKERS, len(self.query_bank)),
            similarity_fn=self.similarity_fn,
        )

    def flips(self, beta: float) -> Flips:
        """What leaving out one query-bank item does under IS at beta, to queries evenly spaced."""
        rows = np.arange(0, self.num_queries, -(-self.num_queries // _ASKED))
        queries, statistics = in_memory(self.queries[rows]), self.statistics("query", beta)
        near = self.passes.top_k(
            queries,
            self.gallery,
            min(_RIVALS + 1, self.num_gallery),
            dbn.inverted_softmax(statistics),
            similarity_fn=self.similarity_fn,
        ).indices
        items = np.unique(near)  # the others are not near enough to any of these queries
        means = jax.tree.map(lambda field: field[items], statistics.means)
        statistics = dbn.BankStatistics.of(means, statistics.beta, None, 0)
        found = dbn.attribution.top_1_flips(
            queries=queries,
            gallery=in_memory(self.gallery[items]),
            correction=dbn.inverted_softmax(statistics),
            bank=self.rows("query bank"),
            statistics=statistics,
            k=min(_RIVALS, len(items)),
            similarity_fn=self.similarity_fn,
        )
        found = jax.device_get(found)
        old, new = items[found.top_1], items[found.new_top_1]
        return Flips(rows, found.num_flips, found.item, old != new, old, new)

    def search(
        self,
        k: int,
        correction: dbn.Correction | None,
        *,
        gallery: jax.Array | None = None,
        similarity_fn: Any = None,
    ) -> Found:
        """Streamed; a method may bring its own gallery vectors and similarity."""
        gallery = self.gallery if gallery is None else gallery
        similarity_fn = similarity_fn or self.similarity_fn
        nearest = self.passes.top_k(
            self.queries, gallery, k, correction, similarity_fn=similarity_fn
        ).indices
        if self.test.relevant is None:
            return Found(np.asarray(nearest), None)
        ranks = self.passes.ranks(
            self.queries, gallery, self.test.relevant, correction, similarity_fn=similarity_fn
        )
        return Found(np.asarray(nearest), np.asarray(ranks))


class Matrices(_Source):
    """A set of similarity matrices, read by rows."""

    embedded, measure = False, None
    test: SimilaritySet

    def _fitted(self, bank: str, beta: Any, k: int) -> dbn.BankStatistics:
        matrix = self.test.query_bank if bank == "query" else self.test.gallery_bank
        if matrix is None:
            raise ValueError("a method with a gallery bank needs the gallery bank's similarities")
        return _merged(matrix, lambda part: dbn.bank_statistics(part, beta=beta, k=k))

    def largest(self, k: int) -> dbn.LargestSimilarities:
        """Of the query bank."""
        k = min(k, len(self.test.query_bank))
        return _merged(self.test.query_bank, lambda part: dbn.largest_similarities(part, k=k))

    def similarities(self, part: str) -> jax.Array:
        """[num_rows, num_gallery], whole."""
        matrix = self.test.similarities if part == "queries" else self.test.query_bank
        self._check_size(part, len(matrix))
        return jnp.asarray(matrix)

    def sinkhorn(self, temperature: Any, iterations: int, *, dual: bool) -> dbn.Correction:
        """SN; DBSN asks for embeddings."""
        if dual:
            raise UnfitError("expected embeddings for DBSN, got matrices; leave it out")
        return dbn.baselines.sinkhorn_normalization(
            self.similarities("query bank"), temperature=temperature, num_iterations=iterations
        )

    def _scores(self, rows: slice) -> jax.Array:
        return jnp.asarray(self.test.similarities[rows])

    def search(self, k: int, correction: dbn.Correction | None) -> Found:
        """By blocks of rows."""
        if correction is None:
            return self.by_rows(k, lambda scores, _: scores)
        return self.by_rows(k, lambda scores, _: dbn.apply_correction(scores, correction))


def _merged(matrix: Floats, make: Callable[[Floats], Any]) -> Any:
    """What is made of blocks of rows, put together."""
    blocks = (matrix[start : start + _ROWS] for start in range(0, len(matrix), _ROWS))
    return functools.reduce(dbn.merge, map(make, blocks))
