"""A log of queries instead of two banks: `auto` without a gallery bank, beside fixed methods.

    python -m benchmarks.studies.logged [--set DIR/data.npz ...] [--draws 5]
        [--bank-sizes 100 300 all]

Half of a set's queries, with the gallery items that were right for them, are the log; `auto` gets
it as the query bank, its pairs, and the gallery, which serves as the gallery bank too. The other
half are the test. Beside `auto` stand raw, CSLS(10), NNN(128, 0.75), IS(20) and DualIS(20, 1), all
with the same log.

In the given sets every item is right for one query: what the log asked for, no test query asks for
again, which corrections profit from. In the simulated ones (`benchmarks.studies.error_rate`) items
are asked for again and again, some often: there hubs are right.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import error_rate, pieces
from benchmarks.studies.significance import holm, interval_over, loss
from benchmarks.studies.tuning import Cell, chosen
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set

METHODS = ("auto", "CSLS(10)", "NNN(128, 0.75)", "IS(20)", "DualIS(20, 1)")


class Draw(NamedTuple):
    """One draw of the log."""

    queries: np.ndarray  # [num_queries] names: a query may be in the test of several draws
    raw: np.ndarray  # [num_queries] bool, right item first
    hits: np.ndarray  # [num_methods, num_queries] bool
    kept_raw: bool


def logged(test: EvaluationSet, size: int | None, seed: int) -> EvaluationSet:
    """Half of the queries as a log, `size` of them kept; the other half as the test."""
    assert test.relevant is not None
    first, places = np.asarray(test.relevant[0])[:-1], np.asarray(test.relevant[1])
    order = np.random.default_rng(seed).permutation(len(test.queries))
    log, asked = np.split(order, [len(order) // 2])
    log = log[:size]
    counts = np.diff(test.relevant[0])[asked]
    right = np.concatenate(
        [places[first[row] : first[row] + n] for row, n in zip(asked, counts, strict=True)]
    )
    return dataclasses.replace(
        test,
        queries=test.queries[asked],
        query_bank=test.queries[log],
        gallery_bank=None,
        relevant=(np.concatenate([[0], np.cumsum(counts)]), right),
        bank_pairs=places[first[log]],
        query_labels=tuple(str(row) for row in asked),
        query_bank_labels=None,
    )


def run_draw(test: EvaluationSet, seed: int) -> Draw:
    """Every method on one log."""
    gallery, log = test.gallery, test.query_bank
    correction, choice = chosen(test, seed)
    largest = {k: dbn.stream_largest_similarities(log, gallery, k=k) for k in (10, 128)}
    statistics = dbn.stream_bank_statistics(log, gallery, beta=20.0)
    own = dbn.stream_bank_statistics(gallery, gallery, beta=1.0, exclude=np.arange(len(gallery)))
    corrections = (
        None,
        correction,
        dbn.baselines.csls(largest[10]),
        dbn.baselines.nearest_neighbor_normalization(largest[128], weight=0.75),
        dbn.inverted_softmax(statistics),
        dbn.dual_inverted_softmax(statistics, own),
    )
    raw, *hits = (
        np.asarray(dbn.metrics.stream_ranks(test.queries, gallery, test.relevant, each)) <= 1
        for each in corrections
    )
    return Draw(np.asarray(test.query_labels), raw, np.stack(hits), choice.name == "raw")


def planned(paths: Sequence[str], sizes: Sequence[str], num_draws: int) -> Iterator[pieces.Planned]:
    """Every draw, in the form of `benchmarks.studies.tuning.plan`."""
    kept = [None if size == "all" else int(size) for size in sizes]
    for path in paths:
        test = read_set(path, "cosine")
        for whole in (test, reversed_set(test)):
            for size, number in itertools.product(kept, range(num_draws)):
                name = f"{test.name}{', reversed' * (whole is not test)}"
                yield (name, str(size or "all")), number, partial(logged, whole, size, number)

    def simulated(size: int | None, number: int) -> EvaluationSet:
        made = error_rate.test_set("popular", size or 2000, number)
        labels = tuple(f"{number} {row}" for row in range(len(made.queries)))
        return dataclasses.replace(made, gallery_bank=None, query_labels=labels)

    for size, number in itertools.product(kept, range(num_draws)):
        yield ("simulated: popular", str(size or "all")), number, partial(simulated, size, number)


def is_simulated(cell: Cell) -> str:
    """The kind of a cell of this benchmark."""
    return "simulated" if cell[0].startswith("simulated") else "given"


def print_report(cells: dict[Cell, list[Draw]], kind: Callable[[Cell], str] = is_simulated) -> None:
    """A line per cell, and one of means per kind."""
    head = "".join(f"{name:>16}" for name in METHODS[1:])
    print(f"\n{'set, log of':36}{'raw':>7}{'auto':>8}{'95 % interval':>17}{head}{'raw kept':>10}")
    rows: dict[str, list[np.ndarray]] = {}
    losses: dict[str, list[list[float]]] = {}
    for cell, found in cells.items():
        raw = 100 * float(np.mean([draw.raw.mean() for draw in found]))
        gains = np.mean([100 * (d.hits.mean(axis=1) - d.raw.mean()) for d in found], axis=0)
        rows.setdefault(kind(cell), []).append(gains)
        losses.setdefault(kind(cell), []).append(
            [loss((d.raw, d.hits[place]) for d in found) for place in range(len(METHODS))]
        )
        apart = np.concatenate([100.0 * d.hits[0] - 100.0 * d.raw for d in found])
        low, high = interval_over(np.concatenate([d.queries for d in found]), apart)
        print(
            f"{', '.join(cell):36}{raw:7.2f}{gains[0]:+8.2f}{f'[{low:+.2f}, {high:+.2f}]':>17}"
            + "".join(f"{gain:+16.2f}" for gain in gains[1:])
            + f"{np.mean([draw.kept_raw for draw in found]):10.0%}"
        )
    for name_of_kind, values in rows.items():
        means, worst = np.mean(values, axis=0), np.min(values, axis=0)
        title = f"{name_of_kind}, {len(values)} cells"
        print(f"\n{title:28}{'mean':>8}{'worst':>8}{'significant losses':>20}")
        for place, name in enumerate(METHODS):
            count = holm([row[place] for row in losses[name_of_kind]])
            print(f"  {name:26}{means[place]:+8.2f}{worst[place]:+8.2f}{count:20d}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    asked: Any = pieces.options(__doc__, ("100", "300", "all"), arguments)
    more = planned(asked.sets, asked.bank_sizes, asked.draws)
    asked.sets, asked.no_emoji = [], True
    found: dict[Cell, list[Draw]] = pieces.collected("logged", Draw, run_draw, asked, more)
    print_report(found)


if __name__ == "__main__":
    main()
