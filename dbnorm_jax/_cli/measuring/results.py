"""Who comes up for everything, from results alone. No printing, no files."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.table_rows import CUTS, ndcg
from dbnorm_jax._cli.reading.results import Results
from dbnorm_jax._cli.reading.sets import Relevance

Integers = npt.NDArray[np.integer[Any]]

# An item is in more lists than chance would bring, where chance brings any item there so rarely.
_LEVEL = 0.05
_ASKERS = 3  # queries named of an item


class Chance(NamedTuple):
    """What is to be expected where every query draws its items at random from the collection."""

    most: int  # lists that no item is in more of, with probability 1 - _LEVEL
    anti_hub_share: float  # percent of items
    skewness: float  # of the binomial distribution of the k-occurrence


class Judged(NamedTuple):
    """What the right items say of the lists; None where nothing is known."""

    right_for: Integers  # [num known items] queries that an item answers and is found by
    num_answered: int  # queries with a right item
    recalls: dict[int, float]  # by k, percent of these with a right item in the first k places
    ndcg: float  # percent, of the first k places
    remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Popularity:
    """The k-occurrence of items; rows are those of `results.items`."""

    results: Results
    k: int  # first places of the lists that count
    num_items: int | None  # of the collection; None: not known, and what follows is of those found
    k_occurrence: Integers  # [num known items] in how many lists an item is
    first: Integers  # [num known items] in how many it is the first
    order: Integers  # items that are found, the most found first
    askers: list[list[int]]  # some queries that find each of the first of these
    num_hubs: int  # N_k >= 2x its mean
    hub_occurrence: float  # percent of all places that hubs take
    half: int  # so many items take half of all places
    skewness: float
    gini: float
    chance: Chance | None  # None where the size of the collection is not known
    judged: Judged | None  # None where no right items are known

    @property
    def num_queries(self) -> int:
        """How many lists there are."""
        return len(self.results.queries)

    @property
    def num_beyond_chance(self) -> int | None:
        """Items in more lists than chance explains; None where that is not known."""
        return None if self.chance is None else int((self.k_occurrence > self.chance.most).sum())


def popularity(
    results: Results,
    k: int,
    num_items: int | None,
    top: int,
    right: tuple[Integers, Relevance] | None = None,
) -> Popularity:
    """Counts the first k places; `top` items are given queries that find them.

    `right`: the items of all lists and those that are right, by other rows.
    """
    lengths = results.lengths
    place = np.arange(len(results.indices)) - np.repeat(results.indptr[:-1], lengths)
    items = results.indices[place < k]
    counts = np.bincount(items, minlength=len(results.items))
    first = np.bincount(results.indices[place == 0], minlength=len(results.items))
    if results.whole:
        num_items = len(results.items)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    # Items in no list have no row of their own, but count. Sorted, in whatever order they came,
    # so that sums in float32 are rounded alike.
    missing = 0 if num_items is None else num_items - len(counts)
    of_all = np.sort(np.pad(counts, (missing, 0)))
    queries = np.repeat(np.arange(len(lengths)), lengths)[place < k]
    hubs = (of_all >= 2 * of_all.mean()) & (of_all > 0)
    return Popularity(
        results,
        k,
        num_items,
        counts,
        first,
        order,
        [_spread(queries[items == item]) for item in order[:top]],
        num_hubs=int(hubs.sum()),
        hub_occurrence=100 * float(of_all[hubs].sum() / len(items)),
        half=1 + int(np.searchsorted(counts[order].cumsum(), len(items) / 2)),
        skewness=float(dbn.hubness.skewness(of_all)),
        gini=float(dbn.hubness.gini(of_all)),
        chance=None if num_items is None else _chance(np.minimum(lengths, k), num_items),
        judged=None if right is None else _judged(results, place, k, *right),
    )


def _judged(results: Results, place: Integers, k: int, items: Integers, right: Relevance) -> Judged:
    num_queries, longest = len(results.queries), int(results.lengths.max())
    query = np.repeat(np.arange(num_queries), results.lengths)
    (indptr, right_items), grades, remarks = right
    right_query = np.repeat(np.arange(num_queries), np.diff(indptr))
    size = 1 + max(int(items.max()), int(right_items.max(initial=0)))
    hits = np.isin(query * size + items, right_query * size + right_items)
    # Where no right item is found, its rank is beyond every cut.
    ranks = np.where(np.diff(indptr) > 0, np.float32(2**31), np.inf)
    np.minimum.at(ranks, query[hits], 1 + place[hits])
    nearest = np.full((num_queries, k), -1, np.int32)
    nearest[query[place < k], place[place < k]] = items[place < k]
    known = hits & (place < k)
    return Judged(
        np.bincount(results.indices[known], minlength=len(results.items)),
        int((np.diff(indptr) > 0).sum()),
        {cut: 100 * float(dbn.metrics.recall_at(ranks, cut)) for cut in CUTS if cut <= longest},
        100 * float(ndcg(nearest, (indptr, right_items), grades)),
        remarks,
    )


def _spread(queries: Integers) -> list[int]:
    """Some of the queries, spread evenly."""
    places = np.linspace(0, len(queries) - 1, min(_ASKERS, len(queries))).round().astype(int)
    return [int(query) for query in queries[places]]


def _chance(found: Integers, num_items: int) -> Chance:
    """Of lists of these lengths.

    N_k of an item is a sum over queries of yes (1) with probability length / num_items. Beyond its
    mean its tail is at most that of the binomial with the mean of these probabilities (Hoeffding,
    Annals of Mathematical Statistics 1956). That some item is in the tail is at most num_items
    times as likely.
    """
    share = found / num_items
    with np.errstate(divide="ignore"):
        never = float(np.exp(np.log1p(-share).sum()))
    spread = share * (1 - share)
    third = float((spread * (1 - 2 * share)).sum())
    skewness = third / float(spread.sum()) ** 1.5 if spread.any() else 0.0
    tail = _binomial_tail(len(found), float(share.mean()))
    most = int(np.argmax(tail * num_items <= _LEVEL)) - 1
    return Chance(max(most, int(np.ceil(share.sum()))), 100 * never, skewness)


def _binomial_tail(count: int, share: float) -> npt.NDArray[np.float64]:
    """[count + 2] the probability of at least 0, 1, ..., count + 1 of `count` draws."""
    if share >= 1:
        return np.append(np.ones(count + 1), 0)
    number = np.arange(count)
    steps = np.log((count - number) / (number + 1)) + np.log(share) - np.log1p(-share)
    mass = np.exp(np.append(0, steps).cumsum() + count * np.log1p(-share))
    return np.append(mass[::-1].cumsum()[::-1], 0)
