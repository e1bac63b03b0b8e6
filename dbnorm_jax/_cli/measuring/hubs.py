"""What is to be said of a collection's hubs. No printing, no files."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.methods import Method
from dbnorm_jax._cli.measuring.sources import Embeddings, Flips, blocks
from dbnorm_jax._cli.measuring.table_rows import NEIGHBORS, ResultRow, Step, count_steps, evaluate
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._src.insight.screening import screened

Integers = npt.NDArray[np.integer[Any]]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Asker(NamedTuple):
    """A query that retrieves an item."""

    query: int
    place: int  # of the item among its nearest, 1 = best
    right: bool | None  # whether the item answers it, if that is known


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """What is found; items are gallery rows."""

    test: EvaluationSet
    rows: list[ResultRow]  # raw retrieval and that under the correction
    hubs: Integers  # `N_k >= 2x` its mean under raw retrieval, the most retrieved first
    contributors: dbn.attribution.Contributors  # to the query-bank bias of the hubs to be shown
    flips: Flips  # under that bias: the top-1s that one query-bank item decides
    beta: float  # inverse temperature of that bias
    anti_hubs: Integers  # never retrieved raw
    rescued: Integers  # those among them that the correction finds; for a right query first
    lost: Integers  # retrieved raw, but not under the correction
    askers: list[list[Asker]]  # of those rescued that are to be shown
    num_rescued_right: int | None  # found for a query that they answer, if that is known
    similarities: Doubles  # [2, num_gallery] mean to the 10 nearest items of either bank
    # Rank correlations of raw N_k with them, and with the second given the first.
    correlations: tuple[float, float, float]
    # For planted hubs, as NumPy arrays, by the scores used; empty: too few to compare with.
    screenings: dict[str, dbn.attribution.HubScreening]
    top: int  # how many of each kind are to be shown
    false_alarm_rate: float  # of every single screening

    @property
    def counts(self) -> tuple[Integers, Integers]:
        """N_k before and after."""
        return self.rows[0].k_occurrence, self.rows[1].k_occurrence

    @property
    def deciding(self) -> Integers:
        """Query-bank rows without which some top-1 is another one, those of the most first."""
        order = np.argsort(-self.flips.num_flips, kind="stable")
        return order[self.flips.num_flips[order] > 0]

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
    return count_steps([Method("raw"), method]) + 4


def inspect(
    test: EvaluationSet,
    method: Method,
    *,
    beta: float,
    top: int,
    false_alarm_rate: float,
    on_step: Step = lambda _: None,
) -> Inspection:
    """Retrieval before and after, who made the hubs, who is rescued, who looks planted.

    `beta` is that of the query-bank bias explained, `top` the number of hubs and of rescued items
    to be shown, `false_alarm_rate` that of all screenings together.
    """
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
    makers = source.makers(hubs[:top] if len(hubs) else order[:1], beta)
    on_step("flips")
    flips = source.flips(beta)
    on_step("similarity to the banks")
    similarities = _similarities(source)
    on_step("screening")
    screenings = _screenings(source, method, false_alarm_rate)
    return Inspection(
        test=test,
        rows=rows,
        hubs=hubs,
        contributors=jax.device_get(jax.tree.map(lambda part: part[: len(hubs)], makers)),
        flips=flips,
        beta=beta,
        anti_hubs=anti_hubs,
        rescued=rescued,
        lost=np.flatnonzero((before > 0) & (after == 0)),
        askers=[_askers(rows[1].nearest, right, item) for item in rescued[:top]],
        num_rescued_right=None if right is None else int(np.isfinite(places[0][rescued]).sum()),
        similarities=similarities,
        correlations=rank_correlations(np.stack([before, *similarities])),
        screenings=screenings,
        top=top,
        false_alarm_rate=false_alarm_rate / max(1, len(screenings)),
    )


def _right_pairs(test: EvaluationSet, nearest: Integers) -> Bools:
    """[num_queries, k] whether the item answers the query."""
    assert test.relevant is not None
    indptr, indices = test.relevant
    num_gallery = len(test.gallery)
    queries = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    found = np.arange(len(nearest))[:, None] * num_gallery + nearest
    return np.isin(found, queries * num_gallery + indices)


def _best_place(nearest: Integers, chosen: Bools | None, num_gallery: int) -> Doubles:
    """[num_gallery] the best place of an item in a list, of the chosen ones; infinity for none."""
    places = np.broadcast_to(np.arange(1.0, nearest.shape[1] + 1), nearest.shape)
    best = np.full(num_gallery, np.inf)
    chosen = np.ones(nearest.shape, bool) if chosen is None else chosen
    np.minimum.at(best, nearest[chosen], places[chosen])
    return best


def _askers(nearest: Integers, right: Bools | None, item: int) -> list[Asker]:
    """The queries that retrieve an item: right ones first, then by its place."""
    found = [
        Asker(query, place + 1, None if right is None else bool(right[query, place]))
        for query, place in np.argwhere(nearest == item).tolist()
    ]
    return sorted(found, key=lambda asker: (not asker.right, asker.place, asker.query))


def _similarities(source: Embeddings) -> Doubles:
    rows = []
    own, gallery_bank = None, source.gallery_bank
    if gallery_bank is None:
        own, gallery_bank = np.arange(source.num_gallery), source.gallery
    for bank, exclude in ((source.query_bank, None), (gallery_bank, own)):
        largest = source.passes.largest_similarities(
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
    own = source.gallery_bank is None
    clean = source.gallery if own else source.gallery_bank
    if len(clean) <= NEIGHBORS:
        return {}
    biases: dict[str, tuple[Any, Any]] = {"raw": (None, None)}
    # A clean item's own query in the bank would raise its bias: unpaired, too much is flagged.
    paired = source.gallery_bank is not None and source.bank_pairs is not None
    if paired and method.about.by_statistics:
        biases[method.label] = (
            _bias(source, method, joining=True),
            _bias(source, method, joining=False),
        )
    return {
        name: jax.device_get(
            screened(
                None if own else blocks(source.gallery, bias),
                (clean, clean_bias),
                source.rows("query bank"),
                k=NEIGHBORS,
                false_alarm_rate=rate / len(biases),
                top_k=partial(source.passes.top_k, similarity_fn=source.similarity_fn),
                similarity_fn=source.similarity_fn,
            )
        )
        for name, (bias, clean_bias) in biases.items()
    }


def _bias(source: Embeddings, method: Method, *, joining: bool) -> Any:
    """Of the gallery, or of the gallery bank without an item's own query and copy: [num_items]."""
    items, own = source.gallery, {}
    if not joining:
        items = source.gallery_bank
        own = {"query": source.bank_pairs, "gallery": np.arange(len(items))}
    return method.fit(source.streamed(items, own)).bias.sum(axis=0)


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
