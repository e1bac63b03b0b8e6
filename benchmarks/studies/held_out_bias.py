"""Held-out gains beside the gains on the test: the folds of `tuning`, and a plain split.

    python -m benchmarks.studies.held_out_bias [--set DIR/data.npz ...] [--draws 2]
        [--bank-sizes 100 300]

Sets, directions and banks as in `benchmarks.studies.tuning`. For every candidate of the grid, its
gain in mean log rank over raw is estimated from the banks in four ways and set beside its gain on
the test queries, with the whole banks.

    folds          what `tuning.tune` does: 10 folds, an item's partners left out of its statistics
    halves         one half of the pairs, items of both modalities, is the bank; the queries of the
                   other half are ranked, both ways round; the two halves have no item in common
    with gallery   the queries are ranked among the real gallery and their right items
    banks alone    among the gallery bank (of halves: the items of their own half)

    bias       mean over candidates of the estimate less the gain on the test, in nats
    error      root of the mean square of that
    follows    correlation over candidates
    at choice  bias at the candidate of the highest estimate
    regret     what that candidate gains less on the test than the best one, less the luck of the
               latter (`significance.oracle`)

Standard errors are clustered by set.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import pieces
from benchmarks.studies.significance import clustered, oracle, set_of
from benchmarks.studies.tuning import Cell, candidate_ranks
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._src.core.relevance import as_rows
from dbnorm_jax._src.tuning import grid
from dbnorm_jax._src.tuning import split as folds

WAYS = tuple(
    f"{split}, {items}"
    for split, items in itertools.product(("folds", "halves"), ("with gallery", "banks alone"))
)
COLUMNS = ("bias", "error", "follows", "at choice", "regret")


class Draw(NamedTuple):
    """One draw of the bank."""

    figures: np.ndarray  # [num_ways, num_columns]


def run_draw(test: EvaluationSet, seed: int) -> Draw:
    """All ways on one draw."""
    none = np.full((len(test.query_bank), 1), -1)
    gallery = jnp.asarray(test.gallery)
    spread = folds.spread(test.query_bank, gallery, none, dbn.dot_product)
    ranks = _ranks(test, spread)
    expected, best = _gains(ranks), oracle(np.log(ranks[0]) - np.log(ranks)).debiased
    found = [by_folds(test, spread, seed, is_known=is_known) for is_known in (True, False)]
    for is_known in (True, False):
        halves = [_ranks(half, spread) for half in by_halves(test, seed, is_known=is_known)]
        found.append(_gains(np.concatenate(halves, axis=1)))
    return Draw(np.array([figures(estimate, expected, best) for estimate in found]))


def figures(estimate: np.ndarray, expected: np.ndarray, possible: float) -> list[float]:
    """Of the estimates of all candidates; raw, the first, is left out.

    Args:
      estimate: [num_candidates] gains by the banks.
      expected: [num_candidates] gains on the test.
      possible: what the best candidate gains.
    """
    estimate, expected = estimate[1:], expected[1:]
    apart, best = estimate - expected, int(estimate.argmax())
    return [
        float(apart.mean()),
        math.sqrt(float((apart**2).mean())),
        float(np.corrcoef(estimate, expected)[0, 1]),
        float(apart[best]),
        float(possible - expected[best]),
    ]


def by_folds(test: EvaluationSet, spread: float, seed: int, *, is_known: bool) -> np.ndarray:
    """[num_candidates] gains by the scheme of `tuning`."""
    banks = folds.Banks(test.query_bank, _gallery_bank(test), test.gallery if is_known else None)
    pairs = test.bank_pairs
    assert pairs is not None
    rng, paired = np.random.default_rng(seed), np.flatnonzero(pairs >= 0)
    split = folds.split_pairs(banks, pairs[:, None], paired, 10, rng)
    held_out = folds.HeldOut(banks, split, grid.grid(spread), dbn.dot_product, spread)
    return _gains(held_out.scores(held_out.biases).ranks.T)


def by_halves(test: EvaluationSet, seed: int, *, is_known: bool) -> list[EvaluationSet]:
    """Each half of the pairs as the test of the other, without an item in common."""
    pairs, gallery_bank = test.bank_pairs, _gallery_bank(test)
    assert pairs is not None
    items = np.random.default_rng(seed).permutation(np.unique(pairs[pairs >= 0]))
    halves = [np.flatnonzero(np.isin(pairs, part)) for part in np.array_split(items, 2)]
    found = []
    for bank, rows in itertools.permutations(halves):
        own, right = np.unique(pairs[rows], return_inverse=True)
        known = test.gallery if is_known else test.gallery[:0]
        found.append(
            dataclasses.replace(
                test,
                queries=test.query_bank[rows],
                gallery=np.concatenate([known, gallery_bank[own]]),
                query_bank=test.query_bank[bank],
                gallery_bank=gallery_bank[np.unique(pairs[bank])],
                relevant=len(known) + right,
                bank_pairs=None,
                query_labels=None,
                gallery_labels=None,
            )
        )
    return found


def _gallery_bank(test: EvaluationSet) -> np.ndarray:
    assert test.gallery_bank is not None
    return test.gallery_bank


def _ranks(test: EvaluationSet, spread: float) -> np.ndarray:
    right = as_rows(test.relevant, (len(test.queries), len(test.gallery)))
    ranks = candidate_ranks(test, right, spread)
    return ranks[:, np.isfinite(ranks[0])]


def _gains(ranks: np.ndarray) -> np.ndarray:
    values = -np.log(ranks).mean(axis=1)
    return values - values[0]


def print_report(cells: dict[Cell, list[Draw]]) -> None:
    """Means over cells with their standard errors, by the size of the bank."""
    means = {
        cell: np.mean([draw.figures for draw in found], axis=0) for cell, found in cells.items()
    }
    for size in dict.fromkeys(size for _, size in cells):
        here = {cell: values for cell, values in means.items() if cell[1] == size}
        rows, sets = np.array([*here.values()]), [set_of(name) for name, _ in here]
        print(f"\nbank of {size}: {len(rows)} cells")
        print(f"{'':24}" + "".join(f"{name:>18}" for name in COLUMNS))
        for place, way in enumerate(WAYS):
            line = []
            for column in range(len(COLUMNS)):
                mean = clustered(rows[:, place, column], sets)
                line.append(f"{f'{mean.value:+.3f} ± {mean.error:.3f}':>18}")
            print(f"{way:24}" + "".join(line))


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    asked = pieces.options(__doc__, ("100", "300"), arguments)
    found = pieces.collected("held_out_bias", Draw, run_draw, asked)
    print_report(found)


if __name__ == "__main__":
    main()
