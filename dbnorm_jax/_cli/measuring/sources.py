"""Where similarities come from: embeddings, streamed, or matrices, by rows."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading.sets import Csr, EvaluationSet, SimilaritySet
from dbnorm_jax._src.corrections.streamed import Streamed
from dbnorm_jax._src.corrections.table import Rescore

Ranks = npt.NDArray[np.floating[Any]]
Neighbors = npt.NDArray[np.int32]

# Queries whose whole row of scores is held at once, where a method needs the row.
_ROWS = 512
# A matrix that some methods must hold whole.
_LARGEST_MATRIX = 4 * 2**30


class UnfitError(ValueError):
    """A source that a method cannot be fitted from."""


class Found(NamedTuple):
    """What a search finds: [num_queries, k] gallery rows, and ranks where the truth is known."""

    nearest: Neighbors
    ranks: Ranks | None
    remark: str = ""  # what a method has to say


def source_of(test: EvaluationSet | SimilaritySet) -> "Embeddings | Matrices":
    """The source of a set."""
    return Matrices(test) if isinstance(test, SimilaritySet) else Embeddings(test)


def _check_size(part: str, num_rows: int, num_gallery: int) -> None:
    size = 4 * num_rows * num_gallery
    if size > _LARGEST_MATRIX:
        raise UnfitError(
            f"expected a {'query' if part == 'queries' else part} x gallery matrix of at most "
            f"{_LARGEST_MATRIX / 2**30:g} GiB, which this method holds whole, got "
            f"{size / 2**30:.1f} GiB; leave it out or use fewer rows"
        )


def _found_by_rows(
    k: int, relevant: Csr | None, num_gallery: int, blocks: Iterator[tuple[int, jax.Array]]
) -> Found:
    """What blocks of score rows hold, each with the number of its first query."""
    nearest, ranks = [], []
    for start, scores in blocks:
        nearest.append(np.asarray(dbn.top_k(scores, k).indices))
        if relevant is not None:
            right = _right_items(relevant, start, scores.shape[0], num_gallery)
            ranks.append(np.asarray(dbn.metrics.ranks(scores, right)))
    return Found(np.concatenate(nearest), np.concatenate(ranks) if ranks else None)


def _right_items(relevant: Csr, start: int, count: int, num_gallery: int) -> npt.NDArray[np.bool_]:
    indptr, indices = relevant
    ends = indptr[start : start + count + 1]
    right = np.zeros((count, num_gallery), bool)
    right[np.repeat(np.arange(count), np.diff(ends)), indices[ends[0] : ends[-1]]] = True
    return right


class _Known:
    """Statistics asked for once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Any, int], dbn.BankStatistics] = {}

    def statistics(self, bank: str, beta: Any, k: int = 1) -> dbn.BankStatistics:
        """Of the "query" or the "gallery" bank; `beta`: a number or a vector."""
        k = max(k, 1)  # so that gated methods share them with the others
        if not isinstance(beta, float):
            return self._fitted(bank, beta, k)
        if (bank, beta, k) not in self._known:
            self._known[bank, beta, k] = self._fitted(bank, beta, k)
        return self._known[bank, beta, k]

    def _fitted(self, bank: str, beta: Any, k: int) -> dbn.BankStatistics:
        raise NotImplementedError


class Embeddings(_Known):
    """A set of embeddings; nothing of the size of a matrix is held unless a method asks."""

    embedded = True  # as the rows of the table ask

    def __init__(self, test: EvaluationSet) -> None:
        super().__init__()
        self.similarity_fn = (
            dbn.negative_squared_euclidean if test.similarity == "euclidean" else dbn.dot_product
        )
        self.queries, self.gallery = jnp.asarray(test.queries), jnp.asarray(test.gallery)
        self.query_bank = jnp.asarray(test.query_bank)
        self.gallery_bank = None if test.gallery_bank is None else jnp.asarray(test.gallery_bank)
        self.bank_pairs = test.bank_pairs
        self.num_queries, self.num_gallery = len(test.queries), len(test.gallery)
        self.test, self.measure = test, test.similarity
        self._streamed = Streamed(
            self.gallery, self.query_bank, self.gallery_bank, similarity_fn=self.similarity_fn
        )

    def _fitted(self, bank: str, beta: Any, k: int) -> dbn.BankStatistics:
        return self._streamed.statistics(bank, beta, k)

    def largest(self, k: int) -> dbn.LargestSimilarities:
        """Of the query bank, streamed."""
        return self._streamed.largest(k)

    def rows(self, part: str) -> jax.Array:
        """Embeddings; without a gallery bank, the gallery is it."""
        other = self.gallery if self.gallery_bank is None else self.gallery_bank
        own = {"queries": self.queries, "gallery": self.gallery, "query bank": self.query_bank}
        return own.get(part, other)

    def similarities(self, part: str) -> jax.Array:
        """[num_rows, num_gallery], whole."""
        rows = self.rows(part)
        _check_size(part, len(rows), self.num_gallery)
        return self.similarity_fn(rows, self.gallery)

    def distances(self, similarities: jax.Array) -> jax.Array:
        """Euclidean distances of what the similarities are of."""
        if self.measure == "dot":
            raise UnfitError(
                "expected cosine or euclidean similarity for a method on distances, got dot; "
                "leave rescaling methods out"
            )
        squares = 2 - 2 * similarities if self.measure == "cosine" else -similarities
        return jnp.sqrt(jnp.maximum(squares, 0))

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
        nearest = dbn.stream_top_k(
            self.queries, gallery, k, correction, similarity_fn=similarity_fn
        ).indices
        if self.test.relevant is None:
            return Found(np.asarray(nearest), None)
        ranks = dbn.metrics.stream_ranks(
            self.queries, gallery, self.test.relevant, correction, similarity_fn=similarity_fn
        )
        return Found(np.asarray(nearest), np.asarray(ranks))

    def by_rows(self, k: int, rescore: Rescore) -> Found:
        """A block of whole rows at a time."""

        def blocks() -> Iterator[tuple[int, jax.Array]]:
            for start in range(0, self.num_queries, _ROWS):
                rows = slice(start, min(start + _ROWS, self.num_queries))
                yield start, rescore(self.similarity_fn(self.queries[rows], self.gallery), rows)

        return _found_by_rows(k, self.test.relevant, self.num_gallery, blocks())


class Matrices(_Known):
    """A set of similarity matrices, read by rows."""

    embedded, measure = False, None

    def __init__(self, test: SimilaritySet) -> None:
        super().__init__()
        self.test = test
        self.num_queries, self.num_gallery = test.similarities.shape

    def _parts(self, matrix: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, len(matrix), _ROWS):
            yield matrix[start : start + _ROWS]

    def _fitted(self, bank: str, beta: Any, k: int) -> dbn.BankStatistics:
        matrix = self.test.query_bank if bank == "query" else self.test.gallery_bank
        if matrix is None:
            raise ValueError("a method with a gallery bank needs the gallery bank's similarities")
        parts = (dbn.bank_statistics(part, beta=beta, k=k) for part in self._parts(matrix))
        return functools.reduce(dbn.merge, parts)

    def largest(self, k: int) -> dbn.LargestSimilarities:
        """Merged over blocks of rows."""
        k = min(k, len(self.test.query_bank))
        parts = (dbn.largest_similarities(part, k=k) for part in self._parts(self.test.query_bank))
        return functools.reduce(dbn.merge, parts)

    def similarities(self, part: str) -> jax.Array:
        """[num_rows, num_gallery], whole."""
        matrix = self.test.similarities if part == "queries" else self.test.query_bank
        _check_size(part, len(matrix), self.num_gallery)
        return jnp.asarray(matrix)

    def search(self, k: int, correction: dbn.Correction | None) -> Found:
        """By blocks of rows."""
        if correction is None:
            return self.by_rows(k, lambda scores, _: scores)
        return self.by_rows(k, lambda scores, _: dbn.apply_correction(scores, correction))

    def by_rows(self, k: int, rescore: Rescore) -> Found:
        """A block of whole rows at a time."""

        def blocks() -> Iterator[tuple[int, jax.Array]]:
            for start in range(0, self.num_queries, _ROWS):
                rows = slice(start, min(start + _ROWS, self.num_queries))
                yield start, rescore(jnp.asarray(self.test.similarities[rows]), rows)

        return _found_by_rows(k, self.test.relevant, self.num_gallery, blocks())
