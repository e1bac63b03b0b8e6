"""What each method does to a set: retrieval and hubness numbers. No printing, no files."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.methods import Method
from dbnorm_jax._cli.measuring.sources import (
    Embeddings,
    Found,
    Matrices,
    Neighbors,
    Ranks,
    source_of,
)
from dbnorm_jax._cli.reading.sets import EvaluationSet, SimilaritySet, num_equal_rows

NEIGHBORS = 10

# Two-sided 95 % of a normal distribution.
_QUANTILE = 1.96

Step = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class ResultRow:
    """The numbers of one method; shares and recalls in percent, NaN where nothing is known.

    Attributes:
      method: what was evaluated.
      recall_at_1: R@1; likewise the next two.
      recall_at_5: R@5.
      recall_at_10: R@10.
      gain: R@1 less that of raw, in points.
      gain_interval: half-width of the gain's 95 % interval: 1.96 standard errors of the paired
        differences over queries.
      median_rank: MdR.
      mean_rank: MnR.
      skewness: of the k-occurrence.
      hub_share: items retrieved at least twice as often as the mean.
      anti_hub_share: items never retrieved.
      gates_open: share of queries whose gate is open, one entry per bank of the method.
      ranks: [num_queries] rank of each query's best right item, or None.
      k_occurrence: [num_gallery], how many queries have the item among their nearest.
      nearest: [num_queries, k] gallery rows, best first.
      remark: what the method has to say, for the notes.
    """

    method: Method
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    gain: float
    gain_interval: float
    median_rank: float
    mean_rank: float
    skewness: float
    hub_share: float
    anti_hub_share: float
    gates_open: tuple[float, ...]
    ranks: Ranks | None
    k_occurrence: Neighbors
    nearest: Neighbors
    remark: str = ""


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

    Embeddings are streamed: no queries x gallery or bank x gallery matrix is held, but by methods
    that are defined on one. `on_step` hears what begins, `count_steps` times.
    """
    on_step = on_step or (lambda _: None)
    source = source_of(test)
    statistics = {}
    for bank, beta in _needed_statistics(methods):
        on_step(f"{bank} bank, beta {beta:g}")
        statistics[bank, beta] = source.statistics(bank, beta)
    on_step("raw")
    k = min(NEIGHBORS, source.num_gallery)
    raw = source.search(k, None)
    first = raw.nearest[:, 0]  # what the gates look at
    rows = []
    for method in methods:
        banks = [statistics[need] for need in _banks_of(method)]
        found = raw
        if method.kind != "raw":
            on_step(method.label)
            found = _found(source, method, banks, k)
        gates_open = tuple(
            _rounded(100 * np.asarray(bank.active)[first].mean()) if method.gated else 100.0
            for bank in banks
        )
        rows.append(_row(method, found, raw, source.num_gallery, gates_open))
    return rows


def count_steps(methods: Sequence[Method]) -> int:
    """How often `evaluate` calls `on_step`."""
    corrected = [method for method in methods if method.kind != "raw"]
    return len(_needed_statistics(methods)) + 1 + len(corrected)


def _banks_of(method: Method) -> Iterator[tuple[str, float]]:
    if method.beta_query is not None:
        yield "query", method.beta_query
    if method.beta_gallery is not None:
        yield "gallery", method.beta_gallery


def _needed_statistics(methods: Sequence[Method]) -> list[tuple[str, float]]:
    return list(dict.fromkeys(need for method in methods for need in _banks_of(method)))


_PAPER: dict[str, Callable[..., dbn.Correction]] = {
    "is": dbn.inverted_softmax,
    "dis": dbn.dynamic_inverted_softmax,
    "dualis": dbn.dual_inverted_softmax,
    "dualdis": dbn.dual_dynamic_inverted_softmax,
}


def _found(
    source: Embeddings | Matrices, method: Method, banks: Sequence[dbn.BankStatistics], k: int
) -> Found:
    if method.kind in _PAPER:
        return source.search(k, _PAPER[method.kind](*banks))
    if method.kind == "published":
        return source.by_rows(k, lambda rows, _: dbn.published_scores(rows, *banks))
    if method.kind in _FITTED:
        return source.search(k, _FITTED[method.kind](source, method))
    if method.kind == "auto":
        return _chosen(source, k)
    if method.kind == "gc":
        bank = source.query_bank_similarities(method.kind)
        return source.by_rows(k, lambda rows, _: dbn.baselines.globally_corrected(rows, bank))
    if method.kind == "dsl":
        scores = dbn.baselines.dual_softmax(
            source.similarities(method.kind), temperature=method.option("temperature")
        )
        return source.by_rows(k, lambda _, rows: scores[rows])
    if isinstance(source, Matrices):
        raise ValueError(
            f"--methods {method.kind}: expected embeddings, got matrices; leave it out"
        )
    return _VECTORS[method.kind](source, method, k)


def _chosen(source: Embeddings | Matrices, k: int) -> Found:
    """What the banks alone prove better than raw."""
    if isinstance(source, Matrices):
        raise ValueError("--methods auto: expected embeddings, got matrices; leave it out")
    test = source.test
    correction, choice = dbn.auto(
        source.gallery,
        source.query_bank,
        None if test.gallery_bank is None else source.gallery_bank,
        test.bank_pairs,
        similarity_fn=source.similarity_fn,
        return_choice=True,
    )
    first, *others = choice.summary().split("\n")
    return source.search(k, correction)._replace(remark=f"auto: {first}, {'; '.join(others)}.")


def _fit_dn(source: Embeddings | Matrices, method: Method) -> dbn.Correction:
    assert isinstance(source, Embeddings)
    if source.test.similarity == "euclidean":
        raise ValueError("--methods dn: expected inner products or cosines, got distances")
    mean = source.query_bank.mean(axis=0)
    weight = method.option("weight")
    return dbn.baselines.distribution_normalization(mean, source.gallery, weight=weight)


def _fit_sinkhorn(source: Embeddings | Matrices, method: Method) -> dbn.Correction:
    temperature, count = method.option("temperature"), int(method.option("iterations"))
    if isinstance(source, Matrices):
        bank = source.query_bank_similarities(method.kind)
        return dbn.baselines.sinkhorn_normalization(
            bank, temperature=temperature, num_iterations=count
        )
    return dbn.baselines.stream_sinkhorn_normalization(
        source.query_bank,
        source.gallery,
        source.gallery_bank if method.kind == "dbsn" else None,
        temperature=temperature,
        num_iterations=count,
        similarity_fn=source.similarity_fn,
    )


_FITTED: dict[str, Callable[[Embeddings | Matrices, Method], dbn.Correction]] = {
    "csls": lambda source, method: dbn.baselines.csls(source.largest(int(method.option("k")))),
    "nnn": lambda source, method: dbn.baselines.nearest_neighbor_normalization(
        source.largest(int(method.option("k"))), weight=method.option("weight")
    ),
    "dn": _fit_dn,
    "sn": _fit_sinkhorn,
    "dbsn": _fit_sinkhorn,
    "hnn": lambda source, method: dbn.baselines.hubless_nearest_neighbor(
        source.query_bank_similarities(method.kind),
        temperature=method.option("temperature"),
        num_iterations=int(method.option("iterations")),
    ),
}


def _rescaled(source: Embeddings, method: Method, k: int) -> Found:
    """Distances rescaled: queries are judged by the gallery, gallery items by the query bank."""
    bank = _distances(source, source.query_bank_similarities(method.kind))

    def rescore(rows: jax.Array, places: slice) -> jax.Array:
        distances = _distances(source, rows)
        if method.kind == "mp":
            return -dbn.baselines.mutual_proximity(distances, distances, bank)
        if method.kind == "mp-empiric":  # both ends by the same objects
            to_bank = source.similarity_fn(source.queries[places], source.query_bank)
            return -dbn.baselines.mutual_proximity(
                distances, _distances(source, to_bank), bank, method="empiric"
            )
        rescale = dbn.baselines.local_scaling if method.kind == "ls" else dbn.baselines.nicdm
        neighbors = min(int(method.option("k")), source.num_gallery, bank.shape[0])
        return -rescale(distances, distances, bank, k=neighbors)

    return source.by_rows(k, rescore)


def _distances(source: Embeddings, similarities: jax.Array) -> jax.Array:
    """Euclidean distances of what the similarities are of."""
    if source.test.similarity == "dot":
        raise ValueError(
            "--methods: expected cosine or euclidean similarity for a method on distances, got "
            "dot; leave rescaling methods out"
        )
    squares = 2 - 2 * similarities if source.test.similarity == "cosine" else -similarities
    return jnp.sqrt(jnp.maximum(squares, 0))


def _dissimilar(source: Embeddings, method: Method, k: int) -> Found:
    neighbors = min(int(method.option("k")), len(source.test.query_bank))
    correction = dbn.baselines.dis_sim_local(source.gallery, source.query_bank, k=neighbors)
    return source.search(k, correction, similarity_fn=dbn.negative_squared_euclidean)


def _moved(source: Embeddings, method: Method, k: int) -> Found:
    gallery = dbn.baselines.inverse_graph_convolution(
        source.gallery,
        source.query_bank,
        source.gallery_bank,
        query_rate=method.option("query_rate"),
        gallery_rate=method.option("gallery_rate"),
        pool_rate=dict(method.options).get("pool"),
    )
    return source.search(k, None, gallery=gallery, similarity_fn=dbn.dot_product)


_VECTORS: dict[str, Callable[[Embeddings, Method, int], Found]] = {
    **dict.fromkeys(("mp", "mp-empiric", "ls", "nicdm"), _rescaled),
    "dissim": _dissimilar,
    **dict.fromkeys(("invgc", "invgc-local"), _moved),
}


def _row(
    method: Method, found: Found, raw: Found, num_gallery: int, gates_open: tuple[float, ...]
) -> ResultRow:
    counts = dbn.hubness.k_occurrence(found.nearest, num_gallery)
    ranks = found.ranks
    unknown = float("nan")
    recalls, middle, mean, gain, interval = [unknown] * 3, unknown, unknown, unknown, unknown
    if ranks is not None and np.isfinite(ranks).any():
        assert raw.ranks is not None
        recalls = [_rounded(100 * dbn.metrics.recall_at(ranks, cut)) for cut in (1, 5, 10)]
        middle = _rounded(dbn.metrics.median_rank(ranks))
        mean = _rounded(dbn.metrics.mean_rank(ranks))
        gain, interval = _paired_gain(ranks, raw.ranks)
    return ResultRow(
        method=method,
        recall_at_1=recalls[0],
        recall_at_5=recalls[1],
        recall_at_10=recalls[2],
        gain=gain,
        gain_interval=interval,
        median_rank=middle,
        mean_rank=mean,
        skewness=_rounded(dbn.hubness.skewness(counts)),
        hub_share=_rounded(100 * dbn.hubness.hub_share(counts)),
        anti_hub_share=_rounded(100 * dbn.hubness.anti_hub_share(counts)),
        gates_open=gates_open,
        ranks=ranks,
        k_occurrence=np.asarray(counts),
        nearest=found.nearest,
        remark=found.remark,
    )


def _paired_gain(ranks: Ranks, raw: Ranks) -> tuple[float, float]:
    """The gain in R@1 over the same queries, and the half-width of its 95 % interval, in points."""
    answered = np.isfinite(raw)
    differences = (ranks[answered] <= 1).astype(float) - (raw[answered] <= 1)
    error = differences.std() / np.sqrt(len(differences))
    return _rounded(100 * differences.mean()), _rounded(100 * _QUANTILE * error)


def _rounded(value: Any) -> float:
    # What float32 adds beyond is noise: 64.4, not 64.3999993801117.
    return round(float(value), 4)
