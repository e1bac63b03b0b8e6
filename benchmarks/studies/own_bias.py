"""A bias of one's own beside a fitted one: how often each item was asked for.

    python -m benchmarks.studies.own_bias --set DIR/data.npz ... [--draws 2]

Logs and tests of simulated demand as in `benchmarks.studies.demand`. An item that the log has n
times gets the bias `- c spread / 4 log((n + 1) / mean)`: it is wanted, whatever its similarity. c
is 0, 0.25, 0.5 or 1, the one of the least mean log rank of the last 300 queries of the log, under a
correction and counts of its first 700. Then both are made anew of the whole log. The correction is
IS at 2/spread with weight 0.75, each query left out of the column of its own right item.

The demand is simulated, and a test query is a logged one with other noise: the gain is no estimate
of that on a live log.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import demand, pieces
from benchmarks.studies.significance import print_ways
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._src.core.relevance import as_rows

STEPS = (0.0, 0.25, 0.5, 1.0)
WAYS = ("IS", "IS, with a bias of one's own", "c = 0.25", "c = 0.5", "c = 1")
_HELD_OUT = 300


class Draw(NamedTuple):
    """One draw of a log."""

    raw: np.ndarray  # [num_queries] bool, right item first
    hits: np.ndarray  # [num_ways, num_queries] bool
    step: float  # c that was chosen


def with_own(correction: dbn.Correction, own: np.ndarray) -> dbn.Correction:
    """A correction and a bias of one's own [num_gallery], which always acts."""
    bias = np.concatenate([correction.bias, own[None].astype(np.float32)])
    active = correction.active
    if active is not None:
        active = np.concatenate([active, np.ones((1, len(own)), bool)])
    return dbn.Correction(bias, active, correction.similarity)


def popularity(test: EvaluationSet, first: int) -> np.ndarray:
    """[num_gallery] minus a quarter of the spread times the log share of the first queries."""
    assert test.bank_pairs is not None
    indptr, places = test.bank_pairs
    counts = np.bincount(places[: indptr[first]], minlength=len(test.gallery)) + 1
    spread = (test.query_bank[:first] @ np.asarray(test.gallery).T).std(axis=1).mean()
    return -spread / 4 * np.log(counts / counts.mean())


def partners_out(test: EvaluationSet) -> dbn.Correction:
    """IS at 2/spread with weight 0.75; no query enters the statistics of what it asks for."""
    spread = (test.query_bank @ np.asarray(test.gallery).T).std(axis=1).mean()
    own = as_rows(test.bank_pairs, (len(test.query_bank), len(test.gallery)))
    statistics = dbn.stream_bank_statistics(
        test.query_bank, test.gallery, beta=2 / spread, k=0, exclude=own
    )
    return dbn.Correction(0.75 * statistics.bias[None], None, statistics.similarity)


def part(test: EvaluationSet, log: slice) -> Any:
    """The right items of some queries of the log, as CSR."""
    assert test.bank_pairs is not None
    first, places = test.bank_pairs
    ends = first[log.start : log.stop + 1]
    return ends - ends[0], places[ends[0] : ends[-1]]


def run_draw(test: EvaluationSet, _: int) -> Draw:
    """IS alone and with the counts of the log."""
    size = len(test.query_bank)
    first = size - _HELD_OUT
    early = dataclasses.replace(
        test, query_bank=test.query_bank[:first], bank_pairs=part(test, slice(0, first))
    )
    fitted, own = partners_out(early), popularity(test, first)
    late = test.query_bank[first:], test.gallery, part(test, slice(first, size))
    losses = [
        np.log(np.asarray(dbn.metrics.stream_ranks(*late, with_own(fitted, step * own)))).mean()
        for step in STEPS
    ]
    step = STEPS[int(np.argmin(losses))]
    fitted, own = partners_out(test), popularity(test, size)
    steps = (0.0, step, *STEPS[1:])
    raw, *hits = (
        np.asarray(dbn.metrics.stream_ranks(test.queries, test.gallery, test.relevant, one)) <= 1
        for one in (None, *(with_own(fitted, step * own) for step in steps))
    )
    return Draw(raw, np.stack(hits), np.float64(step))


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    asked: Any = pieces.options(__doc__, (), arguments)
    more = list(demand.planned(asked.sets, asked.draws))
    asked.sets, asked.no_emoji = [], True
    found = pieces.collected("own bias", Draw, run_draw, asked, more)
    kinds: dict[str, dict[str, Any]] = {}
    for cell, draws in found.items():
        kinds.setdefault(cell[1], {})[", ".join(cell)] = {
            way: [(draw.raw, draw.hits[place]) for draw in draws] for place, way in enumerate(WAYS)
        }
    for kind, cells in kinds.items():
        print_ways(kind, cells)
    chosen_steps = [draw.step for draws in found.values() for draw in draws]
    steps, counts = np.unique(chosen_steps, return_counts=True)
    print("c chosen: " + ", ".join(f"{a:g} {b} times" for a, b in zip(steps, counts, strict=True)))


if __name__ == "__main__":
    main()
