"""Refinement by gradient beside the grid alone: gains in R@1 over raw, on many sets.

    python -m benchmarks.studies.refinement [--set DIR/data.npz ...] [--draws 2]
        [--bank-sizes 100 300 all]

Sets, directions and banks as in `benchmarks.studies.tuning`. Per draw, `tuning.tune(refine=True)`
sees the gallery and the banks; the grid's choice and the refined one are both fitted and ranked on
the test.

    grid        the chosen point of the grid (raw where nothing is proven)
    refined     the refined point wherever there is one
    kept        the refined point if it leads by a standard error on pairs it was not fitted to
    if better   the same without the standard error
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import pieces
from benchmarks.studies.tuning import Cell
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._src.tuning.choice import REFINED


class Draw(NamedTuple):
    """Gains in points of R@1; what refinement promised on held-out pairs, in nats."""

    grid: float
    refined: float
    kept: float
    if_better: float
    is_refined: bool
    is_kept: bool
    promised: float


def run_draw(test: EvaluationSet, seed: int) -> Draw:
    """Chooses, refines, fits and ranks."""
    choice = dbn.tuning.tune(
        query_bank=test.query_bank,
        gallery_bank=test.gallery_bank,
        pairs=test.bank_pairs,
        gallery=test.gallery,
        seed=seed,
        refine=True,
    )
    count = len(choice.gain)
    is_kept = choice.reason_code == REFINED
    if not int(choice.chosen):
        return Draw(0, 0, 0, 0, False, False, 0)
    point = _grid_point(test, seed) if is_kept else int(choice.chosen)
    promised = float(choice.gain[count - 1] - choice.gain[point])
    grid, refined = (_gain(test, choice, row) for row in (point, count - 1))
    return Draw(
        grid,
        refined,
        refined if is_kept else grid,
        refined if promised > 0 else grid,
        True,
        is_kept,
        promised,
    )


def _grid_point(test: EvaluationSet, seed: int) -> int:
    choice = dbn.tuning.tune(
        query_bank=test.query_bank,
        gallery_bank=test.gallery_bank,
        pairs=test.bank_pairs,
        gallery=test.gallery,
        seed=seed,
    )
    return int(choice.chosen)


def _gain(test: EvaluationSet, choice: dbn.tuning.Choice, row: int) -> float:
    chosen = dataclasses.replace(choice, chosen=jnp.int32(row))
    fitted = dbn.tuning.fit(
        chosen,
        gallery=test.gallery,
        query_bank=test.query_bank,
        gallery_bank=test.gallery_bank,
        pairs=test.bank_pairs,
    )
    hits = [
        dbn.metrics.recall_at(
            dbn.metrics.stream_ranks(test.queries, test.gallery, test.relevant, correction), 1
        )
        for correction in (fitted, None)
    ]
    return 100 * float(hits[0] - hits[1])


def print_report(cells: dict[Cell, list[Draw]]) -> None:
    """A line per cell, then the means."""
    names = ("grid", "refined", "kept", "if_better")
    print(f"\n{'set, bank of':44}" + "".join(f"{name:>11}" for name in names))
    means = {}
    for cell, found in cells.items():
        means[cell] = [float(np.mean([getattr(draw, name) for draw in found])) for name in names]
        print(f"{', '.join(cell):44}" + "".join(f"{value:+11.2f}" for value in means[cell]))
    rows = np.array(list(means.values()))
    print(
        f"\n{'over ' + str(len(rows)) + ' cells':16}{'mean':>8}{'worst':>8}{'against the grid':>20}"
        f"{'better':>8}{'worse':>7}"
    )
    for place, name in enumerate(names):
        apart = rows[:, place] - rows[:, 0]
        error = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
        print(
            f"{name:16}{rows[:, place].mean():+8.2f}{rows[:, place].min():+8.2f}"
            f"{f'{apart.mean():+.3f} ± {error:.3f}':>20}"
            f"{(apart > 1e-9).sum():8d}{(apart < -1e-9).sum():7d}"
        )
    draws = [draw for found in cells.values() for draw in found]
    refined = [draw for draw in draws if draw.is_refined]
    print(
        f"\nrefined in {len(refined)} of {len(draws)} draws, kept in "
        f"{sum(draw.is_kept for draw in refined)}; held-out lead over the grid's point "
        f"{np.mean([draw.promised for draw in refined]) if refined else math.nan:+.4f} nats"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    asked = pieces.options(__doc__, ("100", "300", "all"), arguments)
    found = pieces.collected("refinement", Draw, run_draw, asked)
    print_report(found)


if __name__ == "__main__":
    main()
