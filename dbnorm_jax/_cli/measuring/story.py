"""What the page of a report adds to its table: a sweep of beta, the worst hubs, example queries."""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.methods import Method
from dbnorm_jax._cli.measuring.sources import Embeddings, Found, Matrices, source_of
from dbnorm_jax._cli.measuring.table_rows import NEIGHBORS, ResultRow, Step, paired_gain
from dbnorm_jax._cli.reading import sets
from dbnorm_jax._cli.reading.sets import Array, EvaluationSet, Test

# Betas of the sweep, as multiples of the one in the table.
_MULTIPLES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0, 20.0)
# Queries that the sweep looks at, spread evenly: it searches many times.
_SWEPT = 2000
_HUBS, _PLACES = 10, 3
_GAINED, _LOST = 4, 3
# The corrected method set beside raw: the first of these that was run.
_SHOWN = ("auto", "dualis", "is", "dualdis", "dis", "published")


class Curve(NamedTuple):
    """One method over inverse temperatures."""

    label: str
    recall_at_1: tuple[float, ...]  # percent; NaN where the truth is not known
    skewness: tuple[float, ...]
    # Half-width of the 95 % interval of the gain over raw, in points; NaN as above.
    intervals: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Retrieval and hubness against the inverse temperature of the query bank."""

    betas: tuple[float, ...]  # in 1/[unit of similarity], rising
    curves: list[Curve]  # raw first, which has no beta and is level
    beta: float  # the one in the table
    num_queries: int  # how many were looked at


class Maker(NamedTuple):
    """A query-bank item behind a hub's bias: its row and its share of the bias's sum."""

    row: int
    share: float


class Hub(NamedTuple):
    """One of the most retrieved items, and its k-occurrence before and after correction."""

    row: int
    before: int
    after: int
    makers: list[Maker]  # none where there are only matrices


class Example(NamedTuple):
    """A query whose first place changed, and the gallery rows first before and after correction."""

    query: int
    right: list[int] | None  # its right gallery rows, if known
    before: list[int]
    after: list[int]


@dataclasses.dataclass(frozen=True)
class Story:
    """What is told beside the table."""

    shown: ResultRow | None  # the corrected method told of; None if raw alone was run
    sweep: Sweep | None  # None where no method of the table has a beta
    hubs: list[Hub]  # the most retrieved items, worst first
    makers_beta: float | None  # of the bias that the hubs' makers share
    gained: list[Example]  # of queries that became right, or changed if no truth is known
    lost: list[Example]  # of queries that became wrong
    num_gained: int
    num_lost: int


NUM_STEPS = 2


def shown_row(rows: Sequence[ResultRow]) -> ResultRow | None:
    """The corrected method that pictures set beside raw: `auto` first, unless it kept raw."""
    by_kind = {row.method.kind: row for row in reversed(rows)}
    raw = by_kind["raw"]
    for kind in _SHOWN:
        row = by_kind.get(kind)
        if row is not None and (kind != "auto" or (row.nearest != raw.nearest).any()):
            return row
    return next((row for row in rows if row.method.kind not in ("raw", "auto")), None)


def tell(test: Test, rows: Sequence[ResultRow], on_step: Step) -> Story:
    """Computes the story; calls `on_step` `NUM_STEPS` times."""
    shown, raw = shown_row(rows), rows[0]
    corrected = raw if shown is None else shown
    on_step("sweep of beta")
    sweep = _sweep(test, [row.method for row in rows])
    on_step("hubs and examples")
    beta = None if sweep is None else sweep.beta
    hubs = _hubs(test, raw, corrected, beta)
    gained, lost = changed(raw, corrected)
    return Story(
        shown=shown,
        sweep=sweep,
        hubs=hubs,
        makers_beta=beta if hubs and hubs[0].makers else None,
        gained=_examples(test, raw, corrected, gained, _GAINED),
        lost=_examples(test, raw, corrected, lost, _LOST),
        num_gained=len(gained),
        num_lost=len(lost),
    )


def _sweep(test: Test, methods: Sequence[Method]) -> Sweep | None:
    betas = [method.beta_query for method in methods if method.beta_query is not None]
    if not betas:
        return None
    beta = betas[0]
    second = next((m.beta_gallery for m in methods if m.beta_gallery is not None), None)
    source = source_of(sets.some_queries(test, _SWEPT))
    tried = tuple(round(multiple * beta, 10) for multiple in _MULTIPLES)
    of_queries = source.statistics("query", np.array(tried, np.float32))
    k = min(NEIGHBORS, source.num_gallery)
    fits: dict[str, Callable[[Any], dbn.Correction]] = {"IS": dbn.inverted_softmax}
    if second is not None:
        of_gallery = source.statistics("gallery", second)
        fits[f"DualIS, gallery bank {second:g}"] = lambda one: dbn.dual_inverted_softmax(
            one, of_gallery
        )
    raw = source.search(k, None)
    points = {"raw": [_point(source, raw, raw)] * len(tried)}
    for label, fit in fits.items():
        points[label] = [
            _point(source, source.search(k, fit(_at(of_queries, place))), raw)
            for place in range(len(tried))
        ]
    curves = [Curve(label, *zip(*found, strict=True)) for label, found in points.items()]
    return Sweep(tried, curves, beta, source.num_queries)


def _at(stacked: dbn.BankStatistics, place: int) -> dbn.BankStatistics:
    return jax.tree.map(operator.itemgetter(place), stacked)


def _point(source: Embeddings | Matrices, found: Found, raw: Found) -> tuple[float, float, float]:
    """(R@1 in percent, skewness, half-width of the gain's interval); NaN where not known."""
    counts = dbn.hubness.k_occurrence(found.nearest, source.num_gallery)
    recall = interval = math.nan
    if found.ranks is not None and raw.ranks is not None and np.isfinite(found.ranks).any():
        recall = 100 * float(dbn.metrics.recall_at(found.ranks, 1))
        _, interval = paired_gain(found.ranks, raw.ranks)
    return recall, float(dbn.hubness.skewness(counts)), interval


def _hubs(test: Test, raw: ResultRow, corrected: ResultRow, beta: float | None) -> list[Hub]:
    order = np.argsort(-raw.k_occurrence, kind="stable")[:_HUBS]
    makers: list[list[Maker]] = [[] for _ in order]
    if isinstance(test, EvaluationSet) and beta is not None:
        found = Embeddings(test).makers(order, beta)
        pairs = zip(found.indices.tolist(), found.responsibilities.tolist(), strict=True)
        makers = [list(map(Maker, *pair)) for pair in pairs]
    return [
        Hub(row, int(raw.k_occurrence[row]), int(corrected.k_occurrence[row]), made)
        for row, made in zip(order.tolist(), makers, strict=True)
    ]


def changed(raw: ResultRow, corrected: ResultRow) -> tuple[Array, Array]:
    """Queries that became right and that became wrong; where no truth is known, that changed."""
    if raw.ranks is None or corrected.ranks is None:
        changed = np.flatnonzero(raw.nearest[:, 0] != corrected.nearest[:, 0])
        return changed, changed[:0]
    before, after = raw.ranks <= 1, corrected.ranks <= 1
    return np.flatnonzero(~before & after), np.flatnonzero(before & ~after)


def _examples(
    test: Test, raw: ResultRow, corrected: ResultRow, queries: Array, count: int
) -> list[Example]:
    """Some of the queries, spread evenly over them: not the best ones."""
    places = np.linspace(0, len(queries) - 1, min(count, len(queries))).round().astype(int)
    examples = []
    for query in queries[places].tolist():
        right = None
        if test.relevant is not None:
            indptr, indices = test.relevant
            right = indices[indptr[query] : indptr[query + 1]].tolist()
        lists = [row.nearest[query, :_PLACES].tolist() for row in (raw, corrected)]
        examples.append(Example(query, right, *lists))
    return examples
