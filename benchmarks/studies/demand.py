"""Simulated demand: a log of queries as the only bank, where some items are asked for often.

    python -m benchmarks.studies.demand --set DIR/data.npz ... [--draws 5]

The needs of a set, its queries with their right items, come again and again, by uniform, Zipf(0.75)
and Zipf(1) popularity in random order. Each time the query is worded anew: noise of length 0.7 is
added to its unit row. 1,000 such queries, with the items that were right for them, are the log. It
is the query bank; pairs are gallery rows, and the gallery is its own gallery bank. 3,000 others are
the test. Methods as in `benchmarks.studies.logged`.

The demand is simulated, and a test query is a logged one with other noise. The gain is no estimate
of the gain on a live log. The losses are what this benchmark is about: corrections fitted on a
log take from an item what its own queries gave it.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.studies import logged, pieces
from benchmarks.studies.tuning import Cell
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set

EXPONENTS = {"uniform": 0.0, "Zipf(0.75)": 0.75, "Zipf(1)": 1.0}
_LOGGED, _ASKED, _NOISE = 1000, 3000, 0.7


def demanded(test: EvaluationSet, exponent: float, seed: int) -> EvaluationSet:
    """A log and a test in which needs come again, the r-th most frequent by r ** -exponent."""
    assert test.relevant is not None
    rng = np.random.default_rng(seed)
    popularity = np.arange(1, len(test.queries) + 1) ** -exponent
    popularity = rng.permutation(popularity / popularity.sum())
    needs = rng.choice(len(test.queries), _LOGGED + _ASKED, p=popularity)
    rows = np.asarray(test.queries)[needs]
    noise = rng.normal(size=rows.shape)
    rows = rows + _NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    log, asked = needs[:_LOGGED], needs[_LOGGED:]
    return dataclasses.replace(
        test,
        queries=rows[_LOGGED:],
        query_bank=rows[:_LOGGED],
        gallery_bank=None,
        relevant=_right(test.relevant, asked),
        bank_pairs=_right(test.relevant, log),
        query_labels=tuple(str(need) for need in asked),
        query_bank_labels=None,
    )


def _right(relevant: Any, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The right items of some queries, as CSR."""
    first, places = (np.asarray(part) for part in relevant)
    items = [places[first[query] : first[query + 1]] for query in queries]
    return np.cumsum([0, *map(len, items)]), np.concatenate(items)


def planned(paths: Sequence[str], num_draws: int) -> Iterator[pieces.Planned]:
    """Every draw, in the form of `benchmarks.studies.tuning.plan`."""
    for path in paths:
        test = read_set(path, "cosine")
        for whole, (demand, exponent) in itertools.product(
            (test, reversed_set(test)), EXPONENTS.items()
        ):
            name = f"{test.name}{', reversed' * (whole is not test)}"
            for number in range(num_draws):
                yield (name, demand), number, partial(demanded, whole, exponent, number)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    asked: Any = pieces.options(__doc__, (), arguments)
    more = planned(asked.sets, asked.draws)
    asked.sets, asked.no_emoji = [], True
    found: dict[Cell, list[Any]] = pieces.collected(
        "demand", logged.Draw, logged.run_draw, asked, more
    )
    logged.print_report(found, kind=lambda cell: cell[1])


if __name__ == "__main__":
    main()
