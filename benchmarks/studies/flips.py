"""Which bank items flip which top-1: predictions beside refits, R^2 and rank correlation.

    python -m benchmarks.studies.flips --set DIR/data.npz ... [--rows 100] [--move 0.5]

Some rows of the query bank are drawn. Each of them is left out, or moved by noise of a given length
(unit rows stay of unit norm), and the bank is fitted anew. Two figures of a refit are predicted:
how many queries have another top-1, for each row; and how much of its lead over the next item each
query loses to the worst of the rows. Predictions are

    derivative     the bias moves along its derivative by the row's weight or by the row, as JAX has
                   it; gates stay, since their derivative is 0
    second order   with half of the second derivative
    closed form    `attribution.top_1_flips`, of 63 rivals

R^2 is that of the prediction itself, `1 - sum (refit - predicted)^2 / sum (refit - mean)^2`. Below
0 the mean would do better. Rank correlations are Spearman's. Copies in a gallery stay level with
each other: a lead of rounding is none.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

import dbnorm_jax as dbn
from benchmarks.support.common import machine
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.sets import EvaluationSet

BETAS = {"query": 20.0, "gallery": 1.0}
# Method -> how it is fitted, to how many banks, and whether it is gated.
METHODS: dict[str, tuple[Any, int, bool]] = {
    "IS(20)": (dbn.inverted_softmax, 1, False),
    "DIS(20)": (dbn.dynamic_inverted_softmax, 1, True),
    "DualIS(20, 1)": (dbn.dual_inverted_softmax, 2, False),
    "DualDIS(20, 1)": (dbn.dual_dynamic_inverted_softmax, 2, True),
}
PREDICTIONS = ("derivative", "second order", "closed form")
ROUNDING = 1e-6
RIVALS = 63


class Bank(NamedTuple):
    """A bank, its statistics, and those after each change, refitted or predicted."""

    rows: np.ndarray  # [num_bank, dim]
    statistics: dbn.BankStatistics
    changed: np.ndarray  # [num_rows], the rows that go or move
    moved: np.ndarray | None  # [num_rows, dim], where to
    biases: dict[str, np.ndarray]  # "refit" and predictions: [num_rows, num_gallery]
    active: np.ndarray  # [num_rows, num_gallery], of the refits


class Outcome(NamedTuple):
    """What becomes of the queries."""

    flips: np.ndarray  # [num_rows], queries with another top-1
    lost: np.ndarray  # [num_queries], of the lead, to the worst row


@partial(jax.jit, static_argnames="moves")
def _along(
    matrix: jax.Array, beta: jax.Array, row: jax.Array, moved: jax.Array, *, moves: bool
) -> tuple[jax.Array, jax.Array]:
    """First and second derivative of the bias on the way of a row, at its beginning."""

    def bias(way: jax.Array) -> jax.Array:
        weights, rows = jnp.ones(len(matrix)), matrix
        if moves:
            rows = matrix.at[row].add(way * (moved - matrix[row]))
        else:
            weights = weights.at[row].add(-way)
        return dbn.bank_statistics(rows, beta=beta, weights=weights, k=0).bias

    def slope(way: jax.Array) -> jax.Array:
        return jax.jvp(bias, (way,), (jnp.float32(1),))[1]

    return jax.jvp(slope, (jnp.float32(0),), (jnp.float32(1),))


def changed_bank(
    rows: np.ndarray, gallery: np.ndarray, beta: float, changed: np.ndarray, length: float | None
) -> Bank:
    """A bank whose rows go, or move by noise of a length, refitted and predicted."""
    matrix, moved, after = rows @ gallery.T, None, np.zeros((len(changed), len(gallery)), "f4")
    if length is not None:
        noise = np.random.default_rng(1).normal(size=(len(changed), rows.shape[1]))
        noise *= length / np.linalg.norm(noise, axis=1, keepdims=True)
        moved = rows[changed] + noise
        moved = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
        after = moved @ gallery.T
    fit = partial(dbn.stream_bank_statistics, gallery=gallery, beta=beta)
    whole, active = fit(rows), []
    biases: dict[str, list[Any]] = {name: [] for name in ("refit", *PREDICTIONS[:2])}
    for place, (row, new) in enumerate(zip(changed, after, strict=True)):
        if moved is None:
            refit = fit(np.delete(rows, row, axis=0))
        else:
            other = rows.copy()
            other[row] = moved[place]
            refit = fit(other)
        first, second = _along(
            matrix, jnp.float32(beta), jnp.int32(row), new, moves=moved is not None
        )
        found = refit.bias, whole.bias + first, whole.bias + first + second / 2
        for name, bias in zip(biases, found, strict=True):
            biases[name].append(np.asarray(bias))
        active.append(np.asarray(refit.active))
    stacked = {name: np.stack(each) for name, each in biases.items()}
    return Bank(rows, whole, changed, moved, stacked, np.stack(active))


@jax.jit
def _lead(scores: jax.Array, bias: jax.Array, gate: jax.Array, top_1: jax.Array) -> jax.Array:
    """[num_queries] how far an item is before all others under a term."""
    scores = scores - gate[:, None] * bias[None]
    rows = jnp.arange(len(scores))
    others = scores.at[rows, top_1].set(-jnp.inf)
    return scores[rows, top_1] - others.max(axis=1)


def outcomes(
    test: EvaluationSet, bank: Bank, other: dbn.BankStatistics, method: str
) -> dict[str, Outcome]:
    """Refit and predictions of a method; `other` is of the gallery bank."""
    fit, num_banks, gated = METHODS[method]
    similarities = np.asarray(test.queries) @ np.asarray(test.gallery).T
    raw = similarities.argmax(axis=1)
    total = sum([*BETAS.values()][:num_banks])
    scores = similarities
    if num_banks == 2:
        gate = np.asarray(other.active)[raw] if gated else np.ones(len(raw))
        term = BETAS["gallery"] / total * np.asarray(other.bias)
        scores = scores - gate[:, None] * term[None]
    weight = BETAS["query"] / total
    scores = jnp.asarray(scores, jnp.float32)

    def gates(active: Any) -> jax.Array:
        return jnp.asarray(np.asarray(active)[raw] if gated else np.ones(len(raw)), jnp.float32)

    present = gates(bank.statistics.active)
    term = weight * bank.statistics.bias
    top_1 = (scores - present[:, None] * term[None]).argmax(axis=1)
    lead = _lead(scores, term, present, top_1)
    found = {}
    for name, biases in bank.biases.items():
        flips, leads = [], []
        for bias, active in zip(biases, bank.active, strict=True):
            gate = gates(active) if name == "refit" else present
            left = np.asarray(_lead(scores, weight * jnp.asarray(bias), gate, top_1))
            flips.append(int((left < -ROUNDING).sum()))
            leads.append(left)
        found[name] = Outcome(np.array(flips), np.asarray(lead) - np.min(leads, axis=0))
    closed = dbn.attribution.top_1_flips(
        queries=test.queries,
        gallery=test.gallery,
        correction=fit(*(bank.statistics, other)[:num_banks]),
        bank=bank.rows,
        statistics=bank.statistics,
        items=bank.changed,
        moved=bank.moved,
        k=min(RIVALS, len(test.gallery)),
    )
    found["closed form"] = Outcome(
        np.asarray(closed.num_flips), np.asarray(closed.margin - closed.margin_left)
    )
    return found


def agreement(predicted: np.ndarray, refit: np.ndarray) -> tuple[float, float]:
    """(R^2, Spearman's correlation); NaN where all refits are the same."""
    if np.ptp(refit) == 0:
        return np.nan, np.nan
    left = ((refit - predicted) ** 2).sum() / ((refit - refit.mean()) ** 2).sum()
    constant = np.ptp(predicted) == 0
    return 1 - float(left), np.nan if constant else float(spearmanr(predicted, refit).statistic)


def report(test: EvaluationSet, num_rows: int, length: float) -> None:
    """Prints a line for each change and method."""
    gallery, rows = np.asarray(test.gallery), np.asarray(test.query_bank)
    other = dbn.stream_bank_statistics(test.gallery_bank, gallery, beta=BETAS["gallery"])
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:num_rows])
    for change, by in {"removed": None, f"moved by {length:g}": length}.items():
        bank = changed_bank(rows, gallery, BETAS["query"], chosen, by)
        for method in METHODS:
            found = outcomes(test, bank, other, method)
            refit = found.pop("refit")
            cells = [
                "{:7.3f}{:7.3f}".format(*agreement(getattr(each, what), getattr(refit, what)))
                for what in Outcome._fields
                for each in found.values()
            ]
            which = f"{test.name}, {change}, {method}"
            print(f"{which:50}{refit.flips.sum():6d}  " + "  ".join(cells), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--move", type=float, default=0.5)
    asked = parser.parse_args(arguments)
    print(machine())
    head = "  ".join(f"{name:>14}" for _ in range(2) for name in PREDICTIONS)
    print(f"{'':50}{'flips':>6}  {'flips of each row: R^2, rank':48}lead lost by each query")
    print(f"{'':56}  {head}")
    for path in asked.sets:
        report(read_set(path, "cosine"), asked.rows, asked.move)


if __name__ == "__main__":
    main()
