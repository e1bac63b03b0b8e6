"""Where similarities come from: embeddings, streamed, or matrices, by rows."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading.sets import Csr, EvaluationSet, SimilaritySet

Ranks = npt.NDArray[np.floating[Any]]
Neighbors = npt.NDArray[np.int32]

# Queries whose whole row of scores is held at once, where a method needs the row.
_ROWS = 512
# A matrix that some methods must hold whole.
_LARGEST_MATRIX = 4 * 2**30

# (similarities of a block of queries, their rows) -> scores, higher is better.
Rescore = Callable[[jax.Array, slice], jax.Array]


class Found(NamedTuple):
    """What a search finds: [num_queries, k] gallery rows, and ranks where the truth is known."""

    nearest: Neighbors
    ranks: Ranks | None
    remark: str = ""  # what a method has to say


class Source(Protocol):
    """What every method can be fitted and evaluated with."""

    num_queries: int
    num_gallery: int

    def statistics(self, bank: str, beta: Any) -> dbn.BankStatistics:
        """Statistics of the "query" or the "gallery" bank; `beta`: a number or a vector."""
        ...

    def largest(self, k: int) -> dbn.LargestSimilarities:
        """Of the query bank."""
        ...

    def query_bank_similarities(self, method: str) -> jax.Array:
        """[num_query_bank, num_gallery], whole; `method` is named if that is too large."""
        ...

    def similarities(self, method: str) -> jax.Array:
        """[num_queries, num_gallery], whole."""
        ...

    def search(self, k: int, correction: dbn.Correction | None) -> Found:
        """Neighbors and ranks under a correction."""
        ...

    def by_rows(self, k: int, rescore: Rescore) -> Found:
        """Neighbors and ranks under scores of whole rows."""
        ...


def source_of(test: EvaluationSet | SimilaritySet) -> "Embeddings | Matrices":
    """The source of a set."""
    return Matrices(test) if isinstance(test, SimilaritySet) else Embeddings(test)


def _check_size(method: str, what: str, num_rows: int, num_gallery: int) -> None:
    size = 4 * num_rows * num_gallery
    if size > _LARGEST_MATRIX:
        raise ValueError(
            f"--methods {method}: expected a {what} x gallery matrix of at most "
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


class Embeddings:
    """A set of embeddings; nothing of the size of a matrix is held unless a method asks."""

    def __init__(self, test: EvaluationSet) -> None:
        self.similarity_fn = (
            dbn.negative_squared_euclidean if test.similarity == "euclidean" else dbn.dot_product
        )
        self.queries, self.gallery = jnp.asarray(test.queries), jnp.asarray(test.gallery)
        self.num_queries, self.num_gallery = len(test.queries), len(test.gallery)
        self.test = test

    @functools.cached_property
    def query_bank(self) -> jax.Array:
        """[num_query_bank, dim]."""
        return jnp.asarray(self.test.query_bank)

    @functools.cached_property
    def gallery_bank(self) -> jax.Array:
        """[num_gallery_bank, dim]; the gallery where there is none."""
        rows = self.test.gallery_bank
        return self.gallery if rows is None else jnp.asarray(rows)

    def statistics(self, bank: str, beta: Any) -> dbn.BankStatistics:
        """Streamed."""
        # The gallery as its own bank: an item's similarity to itself would drown its sum.
        own = bank == "gallery" and self.test.gallery_bank is None
        return dbn.stream_bank_statistics(
            self.query_bank if bank == "query" else self.gallery_bank,
            self.gallery,
            beta=beta,
            k=1,
            exclude=np.arange(self.num_gallery) if own else None,
            similarity_fn=self.similarity_fn,
        )

    def largest(self, k: int) -> dbn.LargestSimilarities:
        """Streamed."""
        k = min(k, len(self.test.query_bank))
        return dbn.stream_largest_similarities(
            self.query_bank, self.gallery, k=k, similarity_fn=self.similarity_fn
        )

    def query_bank_similarities(self, method: str) -> jax.Array:
        """Whole."""
        _check_size(method, "query bank", len(self.test.query_bank), self.num_gallery)
        return self.similarity_fn(self.query_bank, self.gallery)

    def similarities(self, method: str) -> jax.Array:
        """Whole."""
        _check_size(method, "query", self.num_queries, self.num_gallery)
        return self.similarity_fn(self.queries, self.gallery)

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


class Matrices:
    """A set of similarity matrices, read by rows."""

    def __init__(self, test: SimilaritySet) -> None:
        self.test = test
        self.num_queries, self.num_gallery = test.similarities.shape

    def _parts(self, matrix: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, len(matrix), _ROWS):
            yield matrix[start : start + _ROWS]

    def statistics(self, bank: str, beta: Any) -> dbn.BankStatistics:
        """Merged over blocks of rows."""
        matrix = self.test.query_bank if bank == "query" else self.test.gallery_bank
        if matrix is None:
            raise ValueError("a method with a gallery bank needs the gallery bank's similarities")
        parts = (dbn.bank_statistics(part, beta=beta, k=1) for part in self._parts(matrix))
        return functools.reduce(dbn.merge, parts)

    def largest(self, k: int) -> dbn.LargestSimilarities:
        """Merged over blocks of rows."""
        k = min(k, len(self.test.query_bank))
        parts = (dbn.largest_similarities(part, k=k) for part in self._parts(self.test.query_bank))
        return functools.reduce(dbn.merge, parts)

    def query_bank_similarities(self, method: str) -> jax.Array:
        """Whole."""
        _check_size(method, "query bank", len(self.test.query_bank), self.num_gallery)
        return jnp.asarray(self.test.query_bank)

    def similarities(self, method: str) -> jax.Array:
        """Whole."""
        _check_size(method, "query", self.num_queries, self.num_gallery)
        return jnp.asarray(self.test.similarities)

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
