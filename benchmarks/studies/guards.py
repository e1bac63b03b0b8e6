"""What a guard costs and what it saves: rules of choice on the same held-out ranks, on many sets.

    python -m benchmarks.studies.guards [--set DIR/data.npz ...] [--draws 5]
        [--bank-sizes 100 300 1000 all]

Sets, directions and banks as in `benchmarks.studies.tuning`. Per draw, held-out queries are scored
under all candidates as `tuning.tune` does; every rule then chooses from the same scores, and what
it chose is fitted with the whole banks and ranked on the test.

    highest ...       the candidate of the highest held-out gain, in likelihood, in the logarithm of
                      the rank, in the reciprocal rank or in R@1: no guard
    guard, one        that of the highest likelihood among candidates proven better than raw
    guard 0.05        the same with bagging: what `auto` does, at this level
    bagged alone      what it does without the proof on all queries before
    former            what `auto` did before: IS and NNN with weights up to 1 (without the dual and
                      gated ones, candidates then too), guard and choice by log rank, IS at
                      2/spread and weight 0.75 unless that is led by more than one standard error

The oracle is debiased (`significance.oracle`), and standard errors are clustered by set.

The second table is of simulated sets on which nothing is to be gained
(`benchmarks.studies.error_rate`): there a guard is what keeps from losing.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import error_rate, pieces
from benchmarks.studies.significance import clustered, holm, loss, oracle, set_of
from benchmarks.studies.tuning import Cell, ranks_under, source_of
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._src.core.relevance import as_rows
from dbnorm_jax._src.tuning import grid, mixture, proof
from dbnorm_jax._src.tuning import split as folds
from dbnorm_jax._src.tuning.tune import Gains

# Shares of what is served, [num_candidates], from gains, groups, a seed, and the names of the
# candidates.
Rule = Callable[[Gains, np.ndarray, int, list[str]], np.ndarray]


def _highest(measure: str) -> Rule:
    def rule(gains: Gains, *_: Any) -> np.ndarray:
        values = getattr(gains, measure).mean(axis=0)
        return (np.arange(len(values)) == values.argmax()).astype(float)

    return rule


def _one(gains: Gains, groups: np.ndarray, seed: int, _: list[str]) -> np.ndarray:
    found = proof.evidence(gains.likelihood, groups, seed, 0.05)
    also = np.minimum(gains.log_rank.mean(axis=0), gains.reciprocal_rank.mean(axis=0))
    values = np.where((found.p_value <= 0.05) & (also > 0), found.gain, 0)
    return (np.arange(len(values)) == values.argmax()).astype(float)


def _guarded(level: float) -> Rule:
    def rule(gains: Gains, groups: np.ndarray, seed: int, _: list[str]) -> np.ndarray:
        found = proof.evidence(gains.likelihood, groups, seed, level)
        return gains.frequencies(found, groups, level=level, seed=seed)

    return rule


def _former(gains: Gains, groups: np.ndarray, seed: int, names: list[str]) -> np.ndarray:
    tried = np.array([name.startswith(("is 1", "nnn 1")) for name in names])
    values = np.where(tried[None], gains.log_rank, 0)
    found = proof.evidence(values, groups, seed, 0.05)
    proven = (found.p_value <= 0.05) & (found.gain > 0) & (gains.reciprocal_rank.mean(axis=0) > 0)
    best = int(np.where(proven, found.gain, 0).argmax())
    standard = names.index("is 1 2 0.75")
    lead = values[:, best] - values[:, standard]
    if proven[standard] and lead.mean() <= lead.std() / np.sqrt(len(lead)):
        best = standard
    return (np.arange(len(names)) == best).astype(float)


def names_of(table: grid.Candidates, spread: float) -> list[str]:
    """Each candidate as method, whether its weight is at most 1, beta over 1/spread, and weight."""
    found = []
    for row in range(len(table.method)):
        name, given = table.row(row)
        weight, beta = given.get("weight_query", 0), given.get("beta_query", 0) * spread
        found.append(f"{name} {int(weight <= 1)} {beta:.3g} {weight:g}")
    return found


def _bagged(gains: Gains, groups: np.ndarray, seed: int, _: list[str]) -> np.ndarray:
    found = proof.evidence(gains.likelihood, groups, seed, 0.05)
    unproven = found._replace(p_value=np.zeros_like(found.p_value))
    return gains.frequencies(unproven, groups, level=0.05, seed=seed)


RULES: dict[str, Rule] = {
    "highest likelihood": _highest("likelihood"),
    "highest gain in log rank": _highest("log_rank"),
    "highest gain in reciprocal rank": _highest("reciprocal_rank"),
    "highest gain in R@1": _highest("recall"),
    "guard, one": _one,
    **{f"guard {level:g}": _guarded(level) for level in (0.01, 0.05, 0.2, 0.5)},
    "bagged alone": _bagged,
    "former": _former,
}
BASE = "former"


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
    spread = folds.spread(banks.query, split.columns, split.excluded_query, dbn.dot_product)
    table = grid.grid(spread)
    held_out = folds.HeldOut(banks, split, table, dbn.dot_product, spread)
    gains = Gains.of(held_out.scores(held_out.biases))
    groups = right[split.held_out].max(axis=1)
    known = gains, groups, seed, names_of(table, spread)
    shares = np.array([rule(*known) for rule in RULES.values()], np.float32)
    relevant = as_rows(test.relevant, (len(test.queries), len(test.gallery)))
    size = len(test.gallery)
    biases = mixture.fitted(table, source_of(test), size, jnp.dtype(np.float32))
    served = mixture.mixed(
        jnp.asarray(shares), jnp.broadcast_to(biases, (len(shares), *biases.shape))
    )
    ranks = ranks_under(test, relevant, jnp.concatenate([biases, served]))
    hits = ranks[:, np.isfinite(ranks[0])] <= 1
    best = oracle(100.0 * hits[: len(biases)] - 100.0 * hits[0])
    oracles = np.array([best.plain, best.debiased])
    return Draw(hits[0], hits[len(biases) :], shares[:, 0] == 1, oracles)


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
    """One line per rule; errors of differences are clustered by set."""
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
