"""What a guard costs and what it saves: rules of choice on the same held-out ranks, on many sets.

    python -m benchmarks.studies.guards [--set DIR/data.npz ...] [--draws 5]
        [--bank-sizes 100 300 1000 all]

Sets, directions and banks as in `benchmarks.studies.tuning`. Per draw, held-out queries are ranked
under all candidates as `tuning.tune` does; every rule then chooses from the same ranks, and what it
chose is fitted with the whole banks and ranked on the test.

    highest gain      the candidate of the highest held-out gain, by the logarithm of the rank, the
                      reciprocal rank or R@1: no guard
    one error         the same by log rank, but IS at 2/spread, weight 0.75, unless that is led by
                      more than one standard error
    guard 0.05        that among candidates proven better than raw at this level: what `auto` does
    ... of roots      the guard's test on signed square roots of the gains: less weight for the rest

The oracle is debiased (`significance.oracle`), and standard errors are clustered by set.

The second table is of simulated sets on which nothing is to be gained
(`benchmarks.studies.error_rate`): there a guard is what keeps from losing.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import error_rate, pieces
from benchmarks.studies.significance import clustered, holm, loss, oracle, set_of
from benchmarks.studies.tuning import FIXED, Cell, candidate_ranks
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._src.core.relevance import as_rows
from dbnorm_jax._src.tuning import grid, proof
from dbnorm_jax._src.tuning import split as folds


class Rule(NamedTuple):
    """How to choose from held-out ranks."""

    value: Callable[[np.ndarray], np.ndarray]  # of a rank
    level: float | None = None  # of the guard
    is_cautious: bool = False  # rule of one standard error
    tested: Callable[[np.ndarray], np.ndarray] = np.asarray  # of a query's gain, in the test


def _log_rank(ranks: np.ndarray) -> np.ndarray:
    return -np.log(ranks)


def _root(gains: np.ndarray) -> np.ndarray:
    return np.sign(gains) * np.sqrt(np.abs(gains))


RULES = {
    "highest gain in log rank": Rule(_log_rank),
    "highest gain in reciprocal rank": Rule(np.reciprocal),
    "highest gain in R@1": Rule(lambda ranks: (ranks <= 1).astype(float)),
    "one error, log rank": Rule(_log_rank, is_cautious=True),
    **{
        f"guard {level:g}": Rule(_log_rank, level, is_cautious=True)
        for level in (0.01, 0.05, 0.2, 0.5)
    },
    "guard 0.05 of roots": Rule(_log_rank, 0.05, is_cautious=True, tested=_root),
    "guard 0.05, reciprocal rank": Rule(np.reciprocal, 0.05, is_cautious=True),
}
BASE = "highest gain in log rank"


class Draw(NamedTuple):
    """One draw of the bank."""

    raw: np.ndarray  # [num_queries] bool, right item first
    hits: np.ndarray  # [num_rules, num_queries] bool
    kept_raw: np.ndarray  # [num_rules] bool
    oracles: np.ndarray  # [2] points of R@1 that the best candidate gains on the test, and debiased


def run_draw(test: EvaluationSet, seed: int) -> Draw:
    """Every rule on one draw."""
    assert test.gallery_bank is not None
    assert test.bank_pairs is not None
    rng = np.random.default_rng(seed)
    banks = folds.Banks(test.query_bank, test.gallery_bank, test.gallery)
    right = test.bank_pairs[:, None]
    paired = np.flatnonzero(test.bank_pairs >= 0)
    split = folds.split_pairs(banks, right, paired, 10, rng)
    spreads = [
        folds.spread(bank, split.columns, excluded, dbn.dot_product)
        for bank, excluded in (
            (banks.query, split.excluded_query),
            (banks.gallery, split.excluded_gallery),
        )
    ]
    table = grid.grid(*spreads)
    ranks = np.asarray(folds.ranks(banks, split, table, dbn.dot_product)[0], np.float64)
    groups = right[split.held_out].max(axis=1)
    standard = grid.standard(table, spreads[0])
    rows = [choose(rule, ranks, groups, standard, seed) for rule in RULES.values()]
    relevant = as_rows(test.relevant, (len(test.queries), len(test.gallery)))
    found = candidate_ranks(test, relevant, *spreads)
    hits = found[: len(found) - len(FIXED), ~np.isnan(found[0])] <= 1
    best = oracle(100.0 * hits - 100.0 * hits[0])
    oracles = np.array([best.plain, best.debiased])
    return Draw(hits[0], hits[rows], np.array(rows) == 0, oracles)


def choose(rule: Rule, ranks: np.ndarray, groups: np.ndarray, standard: int, seed: int) -> int:
    """The candidate that the rule takes, 0 for raw."""
    values = rule.value(ranks)
    differences = values - values[:, :1]
    gain = differences.mean(axis=0)
    reciprocal = (1 / ranks - 1 / ranks[:, :1]).mean(axis=0)
    if rule.level is None:
        best = int(gain.argmax())
        if not rule.is_cautious or not gain[standard] > 0:
            return best
        return best if proof.leads(differences[:, best] - differences[:, standard]) else standard
    found = proof.evidence(rule.tested(differences), groups, seed)
    return proof.choose(
        found._replace(gain=gain), differences, reciprocal, level=rule.level, standard=standard
    )


def simulated(sizes: Sequence[str], num_draws: int) -> Iterator[pieces.Planned]:
    """Sets on which nothing is to be gained, in the form of `tuning.plan`."""
    for world, size, number in itertools.product(error_rate.NOISE, sizes, range(num_draws)):
        if size != "all":
            yield (
                (f"simulated: {world}", size),
                number,
                partial(error_rate.test_set, world, int(size), number),
            )


def print_report(cells: dict[Cell, list[Draw]], title: str) -> None:
    """One line per rule."""
    gains = {
        cell: np.mean([100 * (d.hits.mean(axis=1) - d.raw.mean()) for d in found], axis=0)
        for cell, found in cells.items()
    }
    rows = np.array(list(gains.values()))
    kept = np.array([np.mean([d.kept_raw for d in found], axis=0) for found in cells.values()])
    plain, debiased = np.mean(
        [np.mean([d.oracles for d in found], axis=0) for found in cells.values()], axis=0
    )
    sets = [set_of(name) for name, _ in cells]
    print(
        f"\n{title}: {len(cells)} cells of {len(set(sets))} sets; the oracle gains {plain:+.2f}, "
        f"debiased {debiased:+.2f}"
    )
    print(
        f"{'':34}{'mean':>7}{'worst':>8}{'below raw':>11}{'significantly':>15}{'raw kept':>10}"
        f"{'less ' + BASE:>34}"
    )
    base = rows[:, [*RULES].index(BASE)]
    for place, name in enumerate(RULES):
        row, apart = rows[:, place], clustered(rows[:, place] - base, sets)
        losses = holm(
            [loss((draw.raw, draw.hits[place]) for draw in found) for found in cells.values()]
        )
        print(
            f"{name:34}{row.mean():+7.2f}{row.min():+8.2f}{(row < -1e-9).sum():11d}{losses:15d}"
            f"{kept[:, place].mean():10.0%}{f'{apart.value:+.2f} ± {apart.error:.2f}':>34}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    asked: Any = pieces.options(__doc__, ("100", "300", "1000", "all"), arguments)
    more = simulated(asked.bank_sizes, asked.draws)
    found = pieces.collected("guards", Draw, run_draw, asked, more)
    for kind in (False, True):
        cells = {cell: draws for cell, draws in found.items() if ("simulated" in cell[0]) is kind}
        if cells:
            print_report(cells, "nothing to be gained" if kind else "sets with pairs")


if __name__ == "__main__":
    main()
