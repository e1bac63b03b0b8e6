"""What is to be said of a collection's hubs. No printing, no files."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.methods import Method
from dbnorm_jax._cli.measuring.sources import Embeddings
from dbnorm_jax._cli.measuring.table_rows import NEIGHBORS, ResultRow, Step, count_steps, evaluate
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._src.corrections.streamed import Streamed

CONTRIBUTORS = 3

Integers = npt.NDArray[np.integer[Any]]
Doubles = npt.NDArray[np.float64]


class Asker(NamedTuple):
    """A query that retrieves an item.

    Attributes:
      query: its row.
      place: of the item among its nearest, 1 = best.
      right: whether the item answers it; None where that is not known.
    """

    query: int
    place: int
    right: bool | None


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """What is found.

    Attributes:
      test: what was inspected.
      rows: raw retrieval and that under the correction.
      hubs: gallery rows, `N_k >= 2x` its mean under raw retrieval, the most retrieved first.
      contributors: of those hubs that are to be shown, to their query-bank bias.
      beta: inverse temperature of that bias.
      anti_hubs: gallery rows that raw retrieval never finds.
      rescued: those among them that the correction finds; found for a right query first.
      lost: gallery rows that raw retrieval finds and the correction does not.
      askers: of those rescued that are to be shown.
      num_rescued_right: how many are found for a query that they answer; None if not known.
      similarities: [2, num_gallery] mean similarity to the 10 nearest items of either bank.
      correlations: rank correlations of raw N_k with them, and with the second given the first.
      screenings: for planted hubs, as NumPy arrays, by the scores used; empty where there is too
        little to compare with.
      top: how many of each kind are to be shown.
      false_alarm_rate: of every single screening.
    """

    test: EvaluationSet
    rows: list[ResultRow]
    hubs: Integers
    contributors: dbn.attribution.Contributors
    beta: float
    anti_hubs: Integers
    rescued: Integers
    lost: Integers
    askers: list[list[Asker]]
    num_rescued_right: int | None
    similarities: Doubles
    correlations: tuple[float, float, float]
    screenings: dict[str, dbn.attribution.HubScreening]
    top: int
    false_alarm_rate: float

    @property
    def counts(self) -> tuple[Integers, Integers]:
        """N_k before and after."""
        return self.rows[0].k_occurrence, self.rows[1].k_occurrence

    @property
    def flagged(self) -> list[int]:
        """Gallery rows that some screening flags, the most retrieved by raw scores first."""
        if not self.screenings:
            return []
        some = np.any([screening.flagged for screening in self.screenings.values()], axis=0)
        counts = next(iter(self.screenings.values())).k_occurrence
        return sorted(np.flatnonzero(some).tolist(), key=lambda row: -counts[row])


def num_steps(method: Method) -> int:
    """How often `inspect` calls `on_step`."""
    return count_steps([Method("raw"), method]) + 3


def inspect(
    test: EvaluationSet,
    method: Method,
    *,
    beta: float,
    top: int,
    false_alarm_rate: float,
    on_step: Step | None = None,
) -> Inspection:
    """Retrieval before and after, who made the hubs, who is rescued, who looks planted.

    Args:
      test: the queries may be the query bank itself.
      method: the correction.
      beta: inverse temperature of the query-bank bias that is explained.
      top: how many hubs and rescued items are to be shown.
      false_alarm_rate: of all screenings together.
      on_step: hears what begins.
    """
    on_step = on_step or (lambda _: None)
    rows = evaluate(test, [Method("raw"), method], on_step)
    before, after = (row.k_occurrence for row in rows)
    order = np.argsort(-before, kind="stable")
    mean = rows[0].nearest.size / len(before)
    hubs = order[(before[order] >= 2 * mean) & (before[order] > 0)]
    anti_hubs = np.flatnonzero(before == 0)
    rescued = anti_hubs[after[anti_hubs] > 0]
    right = None if test.relevant is None else _right_pairs(test, rows[1].nearest)
    # The best place among right queries, and among all.
    places = [_best_place(rows[1].nearest, chosen, len(before)) for chosen in (right, None)]
    rescued = rescued[np.lexsort((places[1][rescued], places[0][rescued]))]

    source = Embeddings(test)
    on_step("contributors")
    # No hubs, nothing to explain: one item, of which nothing is kept, spares a special case.
    items = hubs[:top] if len(hubs) else order[:1]
    found = dbn.attribution.bias_contributors(
        source.query_bank,
        source.gallery,
        source.statistics("query", beta),
        items.astype(np.int32),
        k=min(CONTRIBUTORS, len(test.query_bank)),
        similarity_fn=source.similarity_fn,
    )
    kept = min(top, len(hubs))
    on_step("similarity to the banks")
    similarities = _similarities(source)
    on_step("screening")
    screenings = _screenings(source, method, false_alarm_rate)
    return Inspection(
        test=test,
        rows=rows,
        hubs=hubs,
        contributors=jax.device_get(jax.tree.map(lambda part: part[:kept], found)),
        beta=beta,
        anti_hubs=anti_hubs,
        rescued=rescued,
        lost=np.flatnonzero((before > 0) & (after == 0)),
        askers=[_askers(test, rows[1].nearest, item) for item in rescued[:top]],
        num_rescued_right=None if right is None else int(np.isfinite(places[0][rescued]).sum()),
        similarities=similarities,
        correlations=rank_correlations(np.stack([before, *similarities])),
        screenings=screenings,
        top=top,
        false_alarm_rate=false_alarm_rate / max(1, len(screenings)),
    )


def _right_pairs(test: EvaluationSet, nearest: Integers) -> npt.NDArray[np.bool_]:
    """[num_queries, k] whether the item answers the query."""
    assert test.relevant is not None
    indptr, indices = test.relevant
    num_gallery = len(test.gallery)
    queries = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    found = np.arange(len(nearest))[:, None] * num_gallery + nearest
    return np.isin(found, queries * num_gallery + indices)


def _best_place(
    nearest: Integers, chosen: npt.NDArray[np.bool_] | None, num_gallery: int
) -> Doubles:
    """[num_gallery] the best place of an item in a list, of the chosen ones; infinity for none."""
    places = np.broadcast_to(np.arange(1.0, nearest.shape[1] + 1), nearest.shape)
    best = np.full(num_gallery, np.inf)
    chosen = np.ones(nearest.shape, bool) if chosen is None else chosen
    np.minimum.at(best, nearest[chosen], places[chosen])
    return best


def _askers(test: EvaluationSet, nearest: Integers, item: int) -> list[Asker]:
    """The queries that retrieve an item: right ones first, then by its place."""
    queries, places = np.nonzero(nearest == item)
    right: list[bool | None] = [None] * len(queries)
    if test.relevant is not None:
        indptr, indices = test.relevant
        right = [
            bool((indices[indptr[query] : indptr[query + 1]] == item).any()) for query in queries
        ]
    found = [
        Asker(int(query), int(place) + 1, answered)
        for query, place, answered in zip(queries, places, right, strict=True)
    ]
    return sorted(found, key=lambda asker: (not asker.right, asker.place, asker.query))


def _similarities(source: Embeddings) -> Doubles:
    own = source.test.gallery_bank is None
    rows = []
    for bank, exclude in (
        (source.query_bank, None),
        (source.rows("gallery bank"), np.arange(source.num_gallery) if own else None),
    ):
        largest = dbn.stream_largest_similarities(
            bank,
            source.gallery,
            k=min(NEIGHBORS, bank.shape[0] - (exclude is not None)) or 1,
            exclude=exclude,
            similarity_fn=source.similarity_fn,
        )
        rows.append(largest.mean)
    return np.asarray(jnp.stack(rows), np.float64)


def _screenings(
    source: Embeddings, method: Method, rate: float
) -> dict[str, dbn.attribution.HubScreening]:
    """By raw scores, and by corrected ones where the two are known to be fair to both."""
    bank = source.test.gallery_bank
    if (source.num_gallery if bank is None else len(bank)) <= NEIGHBORS:
        return {}
    biases: dict[str, dict[str, Any]] = {"raw": {}}
    # A clean item's own query in the bank would raise its bias: unpaired, too much is flagged.
    if bank is not None and source.bank_pairs is not None and method.about.by_statistics:
        biases[method.label] = {
            "bias": _bias(source, method, joining=True),
            "gallery_bank_bias": _bias(source, method, joining=False),
        }
    screenings = {}
    for name, given in biases.items():
        found = dbn.attribution.hub_screening(
            gallery=source.gallery,
            query_bank=source.query_bank,
            gallery_bank=source.gallery_bank,
            k=NEIGHBORS,
            false_alarm_rate=rate / len(biases),
            similarity_fn=source.similarity_fn,
            **given,
        )
        screenings[name] = jax.device_get(found)
    return screenings


def _bias(source: Embeddings, method: Method, *, joining: bool) -> Any:
    """Of the gallery, or of the gallery bank without an item's own query and copy: [num_items]."""
    items = source.gallery if joining else source.rows("gallery bank")
    own = {"query": source.bank_pairs, "gallery": np.arange(len(items))}
    fitted = method.fit(
        Streamed(
            items,
            source.query_bank,
            source.gallery_bank,
            {} if joining else own,
            similarity_fn=source.similarity_fn,
        )
    )
    return fitted.bias.sum(axis=0)


def rank_correlations(columns: npt.NDArray[Any]) -> tuple[float, float, float]:
    """Spearman's correlation of the first of three rows with either other, and a partial one.

    The partial one is with the third given the second. NaN where a row is constant.
    """
    if columns.shape[1] < 2:
        return math.nan, math.nan, math.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        table: Doubles = np.asarray(np.corrcoef([_ranked(column) for column in columns]))
        query, gallery, between = table[0, 1], table[0, 2], table[1, 2]
        partial = (gallery - query * between) / np.sqrt((1 - query**2) * (1 - between**2))
    return float(query), float(gallery), float(partial)


def _ranked(values: npt.NDArray[Any]) -> Doubles:
    """Ranks, averaged over ties."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[places]
