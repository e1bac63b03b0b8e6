"""What each method does to a set: retrieval and hubness numbers. No printing, no files."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.methods import CHOICE, Method
from dbnorm_jax._cli.measuring.sources import (
    Embeddings,
    Found,
    Matrices,
    Neighbors,
    Ranks,
    UnfitError,
    source_of,
)
from dbnorm_jax._cli.reading.sets import SimilaritySet, Test, num_equal_rows
from dbnorm_jax._src.corrections.table import INNER_PRODUCTS, MOVED, SCORES, VECTORS

NEIGHBORS = 10
CUTS = (1, 5, 10, 50, 100)  # of recall

# Two-sided 95 % of a normal distribution.
_QUANTILE = 1.96

Step = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class ResultRow:
    """The numbers of one method; shares and recalls in percent, NaN where nothing is known."""

    method: Method
    nearest: Neighbors  # [num_queries, k] gallery rows, best first
    ranks: Ranks | None  # [num_queries] of each query's best right item
    remark: str  # for the notes
    choice: dbn.tuning.Choice | None  # of `auto`
    k_occurrence: Neighbors  # [num_gallery] how many queries have the item among their nearest
    skewness: float
    hub_share: float  # items retrieved at least twice as often as the mean
    anti_hub_share: float  # items never retrieved
    gates_open: tuple[float, ...]  # share of queries, one entry per bank of the method
    recall_at_1: float = math.nan
    recall_at_5: float = math.nan
    recall_at_10: float = math.nan
    recall_at_50: float = math.nan  # what a reranker of the first 50 can still put first
    recall_at_100: float = math.nan
    ndcg_at_10: float = math.nan  # of the lists as they are found
    gain: float = math.nan  # R@1 less that of raw, in points
    gain_interval: float = math.nan  # half-width: 1.96 standard errors of the paired differences
    median_rank: float = math.nan
    mean_rank: float = math.nan


def num_transductive(test: Test) -> int:
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
    test: Test, methods: Sequence[Method], on_step: Step = lambda _: None
) -> list[ResultRow]:
    """One row per method.

    Embeddings are streamed: no queries x gallery or bank x gallery matrix is held, but by methods
    that are defined on one. `on_step` hears what begins, `count_steps` times.
    """
    source = source_of(test)
    for bank, beta in _needed_statistics(methods):
        on_step(f"{bank} bank, beta {beta:g}")
        source.statistics(bank, beta)  # which keeps them
    on_step("raw")
    k = min(NEIGHBORS, source.num_gallery)
    raw = source.search(k, None)
    first = raw.nearest[:, 0]  # what the gates look at
    rows = []
    for method in methods:
        banks = [source.statistics(*need) for need in method.betas.items()]
        found = raw
        if method.kind != "raw":
            on_step(method.label)
            found = _found(source, method, k)
        gates_open = tuple(
            _rounded(100 * np.asarray(bank.active)[first].mean()) if method.about.gated else 100.0
            for bank in banks
        )
        rows.append(_row(test, method, found, raw, gates_open))
    return rows


def count_steps(methods: Sequence[Method]) -> int:
    """How often `evaluate` calls `on_step`."""
    return len(_needed_statistics(methods)) + 1 + sum(method.kind != "raw" for method in methods)


def _needed_statistics(methods: Sequence[Method]) -> list[tuple[str, float]]:
    return list(dict.fromkeys(need for method in methods for need in method.betas.items()))


def _found(source: Embeddings | Matrices, method: Method, k: int) -> Found:
    about = method.about
    try:
        if VECTORS in about.needs and not source.embedded:
            raise UnfitError("expected embeddings, got matrices; leave it out")
        if INNER_PRODUCTS in about.needs and source.measure == "euclidean":
            raise UnfitError("expected inner products or cosines, got distances")
        fitted = method.fit(source)
        if about.gives == SCORES:
            return source.by_rows(k, fitted)
    except UnfitError as error:
        raise ValueError(f"--methods {method.kind}: {error}") from None
    if about.gives == CHOICE:
        fitted, choice = fitted
        first, *others = choice.summary().split("\n")
        remark = f"auto: {first}, {'; '.join(others)}."
        return source.search(k, fitted)._replace(remark=remark, choice=choice)
    if isinstance(source, Matrices):
        return source.search(k, fitted)
    moved, correction = (fitted, None) if about.gives == MOVED else (None, fitted)
    return source.search(k, correction, gallery=moved, similarity_fn=about.similarity_fn)


def _row(
    test: Test, method: Method, found: Found, raw: Found, gates_open: tuple[float, ...]
) -> ResultRow:
    counts = dbn.hubness.k_occurrence(found.nearest, test.sizes["gallery"])
    ranks = found.ranks
    known: dict[str, Any] = {}
    if ranks is not None and np.isfinite(ranks).any():
        assert raw.ranks is not None
        for cut in CUTS:
            known[f"recall_at_{cut}"] = _rounded(100 * dbn.metrics.recall_at(ranks, cut))
        known["ndcg_at_10"] = _rounded(100 * ndcg(found.nearest, test.relevant, test.grades))
        known["median_rank"] = _rounded(dbn.metrics.median_rank(ranks))
        known["mean_rank"] = _rounded(dbn.metrics.mean_rank(ranks))
        known["gain"], known["gain_interval"] = paired_gain(ranks, raw.ranks)
    return ResultRow(
        method,
        *found,
        k_occurrence=np.asarray(counts),
        skewness=_rounded(dbn.hubness.skewness(counts)),
        hub_share=_rounded(100 * dbn.hubness.hub_share(counts)),
        anti_hub_share=_rounded(100 * dbn.hubness.anti_hub_share(counts)),
        gates_open=gates_open,
        **known,
    )


def ndcg(nearest: Neighbors, relevant: Any, grades: Any) -> jax.Array:
    """Of lists as they are, -1 in empty places; items without grades are worth 1."""
    indptr, indices = relevant
    grades = np.ones(len(indices), np.float32) if grades is None else grades.astype(np.float32)
    found = dbn.SearchResult(jnp.zeros(nearest.shape), jnp.asarray(nearest))
    return dbn.metrics.normalized_discounted_cumulative_gain(found, (indptr, indices, grades))


def paired_gain(ranks: Ranks, raw: Ranks) -> tuple[float, float]:
    """The gain in R@1 over the same queries, and the half-width of its 95 % interval, in points."""
    answered = np.isfinite(raw)
    differences = (ranks[answered] <= 1).astype(float) - (raw[answered] <= 1)
    error = differences.std() / np.sqrt(len(differences))
    return _rounded(100 * differences.mean()), _rounded(100 * _QUANTILE * error)


def _rounded(value: Any) -> float:
    # What float32 adds beyond is noise: 64.4, not 64.3999993801117.
    return round(float(value), 4)
