"""What each method does to a set: retrieval and hubness numbers. No printing, no files."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import dbnorm_jax as dbn
from dbnorm_jax._cli.sets import Csr, EvaluationSet, SimilaritySet, num_equal_rows

Kind = Literal["raw", "is", "dis", "dualis", "dualdis", "published"]

NAMES: dict[Kind, str] = {
    "raw": "raw",
    "is": "IS",
    "dis": "DIS",
    "dualis": "DualIS",
    "dualdis": "DualDIS",
    "published": "DualDIS (published)",
}
QUERY_BANK_ONLY: tuple[Kind, ...] = ("raw", "is", "dis")
DUAL: tuple[Kind, ...] = ("dualis", "dualdis", "published")
NEIGHBORS = 10

# Queries whose whole row of scores is held at once, where a method needs the row.
_ROWS = 512

Step = Callable[[str], None]
Ranks = npt.NDArray[np.floating[Any]]
Neighbors = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method and its inverse temperatures, in 1/[unit of similarity]."""

    kind: Kind
    beta_query: float | None = None
    beta_gallery: float | None = None

    @property
    def name(self) -> str:
        """As in the paper: DualIS."""
        return NAMES[self.kind]

    @property
    def gated(self) -> bool:
        """Whether it acts on a query only where the gate is open."""
        return self.kind in ("dis", "dualdis", "published")

    @property
    def label(self) -> str:
        """With its betas: DualIS(20, 1)."""
        if self.kind in ("raw", "published"):
            return self.name
        betas = (self.beta_query, self.beta_gallery)
        return f"{self.name}({', '.join(f'{beta:g}' for beta in betas if beta is not None)})"


@dataclasses.dataclass(frozen=True, eq=False)
class ResultRow:
    """The numbers of one method; shares and recalls in percent, NaN where nothing is known.

    Attributes:
      method: what was evaluated.
      recall_at_1: R@1; likewise the next two.
      recall_at_5: R@5.
      recall_at_10: R@10.
      median_rank: MdR.
      mean_rank: MnR.
      skewness: of the k-occurrence.
      hub_share: items retrieved at least twice as often as the mean.
      anti_hub_share: items never retrieved.
      gates_open: share of queries whose gate is open, one entry per bank of the method.
      ranks: [num_queries] rank of each query's best right item, or None.
      k_occurrence: [num_gallery], how many queries have the item among their nearest.
      nearest: [num_queries, k] gallery rows, best first.
    """

    method: Method
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float
    skewness: float
    hub_share: float
    anti_hub_share: float
    gates_open: tuple[float, ...]
    ranks: Ranks | None
    k_occurrence: Neighbors
    nearest: Neighbors


def choose_methods(
    kinds: Sequence[Kind], beta_query: float | None, beta_gallery: float | None
) -> list[Method]:
    """The methods of these kinds, raw always first."""
    methods = [Method("raw")]
    for kind in dict.fromkeys(kinds):
        if kind in DUAL:
            methods.append(Method(kind, beta_query, beta_gallery))
        elif kind != "raw":
            methods.append(Method(kind, beta_query))
    return methods


def num_transductive(test: EvaluationSet | SimilaritySet) -> int:
    """How many bank rows equal test rows; 0 means the banks are apart from the test."""
    if isinstance(test, SimilaritySet):
        # A bank item that is a test query has that query's similarities. A gallery-bank matrix
        # has no counterpart to compare with.
        return num_equal_rows(test.query_bank, test.similarities)
    count = num_equal_rows(test.query_bank, test.queries)
    if test.gallery_bank is not None:
        count += num_equal_rows(test.gallery_bank, test.gallery)
    return count


def evaluate(
    test: EvaluationSet | SimilaritySet, methods: Sequence[Method], on_step: Step | None = None
) -> list[ResultRow]:
    """One row per method.

    Embeddings are streamed: no queries x gallery or bank x gallery matrix is ever held.
    `on_step` hears what begins, `count_steps` times.
    """
    on_step = on_step or (lambda _: None)
    source: _Source = _Matrices(test) if isinstance(test, SimilaritySet) else _Embeddings(test)
    statistics = {}
    for bank, beta in _needed_statistics(methods):
        on_step(f"{bank} bank, beta {beta:g}")
        statistics[bank, beta] = source.statistics(bank, beta)
    on_step(NAMES["raw"])
    k = min(NEIGHBORS, source.num_gallery)
    raw = source.search(k, None)
    first = raw.nearest[:, 0]  # what the gates look at
    rows = []
    for method in methods:
        banks = [statistics[need] for need in _banks_of(method)]
        found = raw
        if method.kind != "raw":
            on_step(method.label)
            found = (
                source.published(k, *banks)
                if method.kind == "published"
                else source.search(k, _correction(method.kind, banks))
            )
        gates_open = tuple(
            _rounded(100 * np.asarray(bank.active)[first].mean()) if method.gated else 100.0
            for bank in banks
        )
        rows.append(_row(method, found, source.num_gallery, gates_open))
    return rows


def count_steps(methods: Sequence[Method]) -> int:
    """How often `evaluate` calls `on_step`."""
    return len(_needed_statistics(methods)) + len({"raw", *methods} - {Method("raw")})


def _banks_of(method: Method) -> Iterator[tuple[str, float]]:
    if method.beta_query is not None:
        yield "query", method.beta_query
    if method.beta_gallery is not None:
        yield "gallery", method.beta_gallery


def _needed_statistics(methods: Sequence[Method]) -> list[tuple[str, float]]:
    return list(dict.fromkeys(need for method in methods for need in _banks_of(method)))


def _correction(kind: Kind, banks: Sequence[dbn.BankStatistics]) -> dbn.Correction:
    if kind == "is":
        return dbn.inverted_softmax(*banks)
    if kind == "dis":
        return dbn.dynamic_inverted_softmax(*banks)
    if kind == "dualis":
        return dbn.dual_inverted_softmax(*banks)
    return dbn.dual_dynamic_inverted_softmax(*banks)


def _row(
    method: Method, found: "_Found", num_gallery: int, gates_open: tuple[float, ...]
) -> ResultRow:
    counts = dbn.hubness.k_occurrence(found.nearest, num_gallery)
    ranks = found.ranks
    if ranks is None or np.isnan(ranks).all():
        recalls, middle, mean = [float("nan")] * 3, float("nan"), float("nan")
    else:
        recalls = [_rounded(100 * dbn.metrics.recall_at(ranks, cut)) for cut in (1, 5, 10)]
        middle = _rounded(dbn.metrics.median_rank(ranks))
        mean = _rounded(dbn.metrics.mean_rank(ranks))
    return ResultRow(
        method=method,
        recall_at_1=recalls[0],
        recall_at_5=recalls[1],
        recall_at_10=recalls[2],
        median_rank=middle,
        mean_rank=mean,
        skewness=_rounded(dbn.hubness.skewness(counts)),
        hub_share=_rounded(100 * dbn.hubness.hub_share(counts)),
        anti_hub_share=_rounded(100 * dbn.hubness.anti_hub_share(counts)),
        gates_open=gates_open,
        ranks=ranks,
        k_occurrence=np.asarray(counts),
        nearest=found.nearest,
    )


def _rounded(value: Any) -> float:
    # What float32 adds beyond is noise: 64.4, not 64.3999993801117.
    return round(float(value), 4)


class _Found(NamedTuple):
    """What a search finds: [num_queries, k] gallery rows, and ranks where the truth is known."""

    nearest: Neighbors
    ranks: Ranks | None


class _Source(Protocol):
    """Where similarities come from."""

    num_gallery: int

    def statistics(self, bank: str, beta: float) -> dbn.BankStatistics: ...

    def search(self, k: int, correction: dbn.Correction | None) -> _Found: ...

    def published(self, k: int, *banks: dbn.BankStatistics) -> _Found: ...


def _found_by_rows(
    k: int, relevant: Csr | None, num_gallery: int, blocks: Iterator[tuple[int, jax.Array]]
) -> _Found:
    """What blocks of score rows hold, each with the number of its first query."""
    nearest, ranks = [], []
    for start, scores in blocks:
        nearest.append(np.asarray(dbn.top_k(scores, k).indices))
        if relevant is not None:
            right = _right_items(relevant, start, scores.shape[0], num_gallery)
            ranks.append(np.asarray(dbn.metrics.ranks(scores, right)))
    return _Found(np.concatenate(nearest), np.concatenate(ranks) if ranks else None)


def _right_items(relevant: Csr, start: int, count: int, num_gallery: int) -> npt.NDArray[np.bool_]:
    indptr, indices = relevant
    ends = indptr[start : start + count + 1]
    right = np.zeros((count, num_gallery), bool)
    right[np.repeat(np.arange(count), np.diff(ends)), indices[ends[0] : ends[-1]]] = True
    return right


class _Embeddings:
    def __init__(self, test: EvaluationSet) -> None:
        self.similarity_fn = (
            dbn.negative_squared_euclidean if test.similarity == "euclidean" else dbn.dot_product
        )
        self.queries, self.gallery = jnp.asarray(test.queries), jnp.asarray(test.gallery)
        self.num_gallery = len(test.gallery)
        self.test = test

    def statistics(self, bank: str, beta: float) -> dbn.BankStatistics:
        rows = self.test.query_bank if bank == "query" else self.test.gallery_bank
        # The gallery as its own bank: an item's similarity to itself would drown its sum.
        exclude = np.arange(self.num_gallery) if rows is None else None
        return dbn.stream_bank_statistics(
            self.gallery if rows is None else jnp.asarray(rows),
            self.gallery,
            beta=beta,
            k=1,
            exclude=exclude,
            similarity_fn=self.similarity_fn,
        )

    def search(self, k: int, correction: dbn.Correction | None) -> _Found:
        queries, gallery, relevant = self.queries, self.gallery, self.test.relevant
        similarity_fn = self.similarity_fn
        nearest = dbn.stream_top_k(
            queries, gallery, k, correction, similarity_fn=similarity_fn
        ).indices
        if relevant is None:
            return _Found(np.asarray(nearest), None)
        ranks = dbn.metrics.stream_ranks(
            queries, gallery, relevant, correction, similarity_fn=similarity_fn
        )
        return _Found(np.asarray(nearest), np.asarray(ranks))

    def published(self, k: int, *banks: dbn.BankStatistics) -> _Found:
        def blocks() -> Iterator[tuple[int, jax.Array]]:
            for start in range(0, len(self.queries), _ROWS):
                rows = self.similarity_fn(self.queries[start : start + _ROWS], self.gallery)
                yield start, dbn.published_scores(rows, *banks)

        return _found_by_rows(k, self.test.relevant, self.num_gallery, blocks())


class _Matrices:
    def __init__(self, test: SimilaritySet) -> None:
        self.test = test
        self.num_gallery = test.similarities.shape[1]

    def statistics(self, bank: str, beta: float) -> dbn.BankStatistics:
        matrix = self.test.query_bank if bank == "query" else self.test.gallery_bank
        if matrix is None:
            raise ValueError("a method with a gallery bank needs the gallery bank's similarities")
        whole: dbn.BankStatistics | None = None
        for start in range(0, len(matrix), _ROWS):
            part = dbn.bank_statistics(matrix[start : start + _ROWS], beta=beta, k=1)
            whole = part if whole is None else dbn.merge(whole, part)
        assert whole is not None  # an empty bank was refused on reading
        return whole

    def _rows(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        for start in range(0, len(self.test.similarities), _ROWS):
            yield start, self.test.similarities[start : start + _ROWS]

    def search(self, k: int, correction: dbn.Correction | None) -> _Found:
        blocks = (
            (
                start,
                jnp.asarray(rows) if correction is None else dbn.apply_correction(rows, correction),
            )
            for start, rows in self._rows()
        )
        return _found_by_rows(k, self.test.relevant, self.num_gallery, blocks)

    def published(self, k: int, *banks: dbn.BankStatistics) -> _Found:
        blocks = ((start, dbn.published_scores(rows, *banks)) for start, rows in self._rows())
        return _found_by_rows(k, self.test.relevant, self.num_gallery, blocks)
