"""What the page of a report adds to its table: a sweep of beta, the worst hubs, example queries."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.methods import Method
from dbnorm_jax._cli.measuring.sources import Embeddings, Matrices, Neighbors, source_of
from dbnorm_jax._cli.measuring.table_rows import NEIGHBORS, ResultRow, Step
from dbnorm_jax._cli.reading import sets
from dbnorm_jax._cli.reading.sets import EvaluationSet, Test

# Betas of the sweep, as multiples of the one in the table.
_MULTIPLES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0, 20.0)
# Queries that the sweep looks at, spread evenly: it searches many times.
_SWEPT = 2000
_HUBS, _MAKERS, _PLACES = 10, 3, 3
_GAINED, _LOST = 4, 3
# The corrected method set beside raw: the first of these that was run.
_SHOWN = ("auto", "dualis", "is", "dualdis", "dis", "published")


class Curve(NamedTuple):
    """One method over inverse temperatures.

    Attributes:
      label: of the method.
      recall_at_1: percent, one per beta; None where the truth is not known.
      skewness: of the k-occurrence, one per beta.
    """

    label: str
    recall_at_1: list[float] | None
    skewness: list[float]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Retrieval and hubness against the inverse temperature of the query bank.

    Attributes:
      betas: in 1/[unit of similarity], rising.
      curves: one per method; raw first, which has no beta and is level.
      beta: the one in the table.
      num_queries: how many were looked at.
    """

    betas: tuple[float, ...]
    curves: list[Curve]
    beta: float
    num_queries: int


class Maker(NamedTuple):
    """A query-bank item behind a hub's bias: its row and its share of the bias's sum."""

    row: int
    share: float


class Hub(NamedTuple):
    """One of the most retrieved items.

    Attributes:
      row: of the gallery.
      before: its k-occurrence under raw retrieval.
      after: the same under the corrected method.
      makers: the query-bank items behind its bias; empty where there are only matrices.
    """

    row: int
    before: int
    after: int
    makers: list[Maker]


class Example(NamedTuple):
    """A query whose first place changed.

    Attributes:
      query: its row.
      right: its right gallery rows; None where not known.
      before: the gallery rows raw retrieval puts first.
      after: those that the corrected method does.
    """

    query: int
    right: list[int] | None
    before: list[int]
    after: list[int]


@dataclasses.dataclass(frozen=True)
class Story:
    """What is told beside the table.

    Attributes:
      shown: the corrected method told of; None if raw alone was run.
      sweep: None where no method of the table has a beta.
      hubs: the most retrieved items, worst first.
      makers_beta: inverse temperature of the bias that the hubs' makers share.
      gained: examples of queries that became right (or changed, if no truth is known).
      lost: examples of queries that became wrong.
      num_gained: how many there are.
      num_lost: likewise.
    """

    shown: ResultRow | None
    sweep: Sweep | None
    hubs: list[Hub]
    makers_beta: float | None
    gained: list[Example]
    lost: list[Example]
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
    on_step("sweep of beta")
    sweep = _sweep(test, [row.method for row in rows])
    on_step("hubs and examples")
    beta = None if sweep is None else sweep.beta
    hubs = _hubs(test, raw, shown, beta)
    gained, lost = _changed(raw, shown)
    return Story(
        shown=shown,
        sweep=sweep,
        hubs=hubs,
        makers_beta=beta if hubs and hubs[0].makers else None,
        gained=_examples(test, raw, shown, gained, _GAINED),
        lost=_examples(test, raw, shown, lost, _LOST),
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
    raw = _point(source, k, None)
    curves = {"raw": [raw] * len(tried), "IS": []}
    dual = f"DualIS, gallery bank {second:g}" if second is not None else None
    of_gallery = None if second is None else source.statistics("gallery", second)
    for place in range(len(tried)):
        statistics = jax.tree.map(lambda field, place=place: field[place], of_queries)
        curves["IS"].append(_point(source, k, dbn.inverted_softmax(statistics)))
        if dual is not None and of_gallery is not None:
            correction = dbn.dual_inverted_softmax(statistics, of_gallery)
            curves.setdefault(dual, []).append(_point(source, k, correction))
    return Sweep(
        betas=tried,
        curves=[
            Curve(
                label,
                None if raw[0] is None else [point[0] for point in points if point[0] is not None],
                [point[1] for point in points],
            )
            for label, points in curves.items()
        ],
        beta=beta,
        num_queries=source.num_queries,
    )


def _point(
    source: Embeddings | Matrices, k: int, correction: dbn.Correction | None
) -> tuple[float | None, float]:
    """(R@1 in percent or None, skewness)."""
    found = source.search(k, correction)
    skewness = float(dbn.hubness.skewness(_counts(found.nearest, source.num_gallery)))
    if found.ranks is None or np.isnan(found.ranks).all():
        return None, skewness
    return 100 * float(dbn.metrics.recall_at(found.ranks, 1)), skewness


def _counts(nearest: Neighbors, num_gallery: int) -> jax.Array:
    return dbn.hubness.k_occurrence(nearest, num_gallery)


def _hubs(test: Test, raw: ResultRow, shown: ResultRow | None, beta: float | None) -> list[Hub]:
    order = np.argsort(-raw.k_occurrence, kind="stable")[:_HUBS]
    after = raw if shown is None else shown
    makers: list[list[Maker]] = [[] for _ in order]
    if isinstance(test, EvaluationSet) and beta is not None:
        source = Embeddings(test)
        found = dbn.attribution.bias_contributors(
            source.query_bank,
            source.gallery,
            source.statistics("query", beta),
            order.astype(np.int32),
            k=min(_MAKERS, len(test.query_bank)),
            similarity_fn=source.similarity_fn,
        )
        makers = [
            [Maker(int(row), float(share)) for row, share in zip(banked, shares, strict=True)]
            for banked, shares in zip(
                np.asarray(found.indices), np.asarray(found.responsibilities), strict=True
            )
        ]
    return [
        Hub(int(row), int(raw.k_occurrence[row]), int(after.k_occurrence[row]), made)
        for row, made in zip(order, makers, strict=True)
    ]


def _changed(raw: ResultRow, shown: ResultRow | None) -> tuple[Neighbors, Neighbors]:
    """Queries that became right and that became wrong; where no truth is known, that changed."""
    none = np.zeros(0, np.int32)
    if shown is None:
        return none, none
    if raw.ranks is None or shown.ranks is None:
        return np.flatnonzero(raw.nearest[:, 0] != shown.nearest[:, 0]).astype(np.int32), none
    before, after = raw.ranks <= 1, shown.ranks <= 1
    known = ~np.isnan(raw.ranks)
    return tuple(  # type: ignore[return-value]
        np.flatnonzero(known & change).astype(np.int32)
        for change in (~before & after, before & ~after)
    )


def _examples(
    test: Test, raw: ResultRow, shown: ResultRow | None, queries: Neighbors, count: int
) -> list[Example]:
    """Some of the queries, spread evenly over them: not the best ones."""
    if shown is None or not len(queries):
        return []
    places = np.unique(np.linspace(0, len(queries) - 1, count).round().astype(int))
    examples = []
    for query in queries[places].tolist():
        right = None
        if test.relevant is not None:
            indptr, indices = test.relevant
            right = indices[indptr[query] : indptr[query + 1]].tolist()
        lists = [row.nearest[query, :_PLACES].tolist() for row in (raw, shown)]
        examples.append(Example(query, right, *lists))
    return examples
