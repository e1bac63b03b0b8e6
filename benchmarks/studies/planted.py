"""Planted hubs: gallery items made to be retrieved for everything; what stops and what finds them.

    python -m benchmarks.studies.planted [--set DIR/data.npz ...] [--steps 100] [--seeds 3]
        [--bank 1000] [--corrections quick]

The attacker sets one unit vector freely, which is stronger than any image or text could, and knows
one half of the test queries; the other half is asked. The banks are never shown to attacks on raw
scores. Attacks ascend by gradient from the mean of the known queries and from a gallery item (where
a gate or a transport makes steps dear, from what the raw attack found), and keep what does best on
the known queries:

- *raw*: the raw scores;
- *aware*: the corrected scores, through statistics, bias and soft gates, so it sees the banks too;
- *topic*: the raw scores of the 1, 3 or 10 % of known queries nearest to one of them, for the asked
  queries nearest to the same one;
- *evasive*: the raw scores, while no more of the query bank than the screening allows may retrieve
  the item. It sees both banks.

Printed, mean over seeds (which half is known): the share of the asked queries with the planted item
among their first 1 and first 10, and how many of the aware attacks `attribution.hub_screening`
finds at a false-alarm rate of 0.2 %: by raw scores, or half of it by raw and half by corrected
ones, where the bias is one of item and banks alone. False alarms: the share of the clean gallery
that the same screening flags.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.support.common import machine
from dbnorm_jax import baselines
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set

TEMPERATURE = 0.02
SHARPNESS = 20.0
RATE = 0.05
PENALTY, CAUTION = 50.0, 0.8
K = 10
ALARMS = 0.002
FAR = -10.0
TOPICS = (0.1, 0.03, 0.01)
LEVELS = (0, 5, 20, 50)

# (query bank, gallery bank) against the gallery, and against each other -> Correction.
Fit = Callable[[jax.Array, jax.Array, jax.Array], dbn.Correction | None]


def _dual(fit, beta_query, beta_gallery, weights=None) -> Fit:
    return lambda query, gallery, _: fit(
        dbn.bank_statistics(query, beta=beta_query),
        dbn.bank_statistics(gallery, beta=beta_gallery),
        weights=weights,
    )


FITS: dict[str, Fit] = {
    "raw": lambda *_: None,
    "IS 20": lambda query, *_: dbn.inverted_softmax(dbn.bank_statistics(query, beta=20.0)),
    "DIS 20": lambda query, *_: dbn.dynamic_inverted_softmax(dbn.bank_statistics(query, beta=20.0)),
    "DualIS 20/2": _dual(dbn.dual_inverted_softmax, 20.0, 2.0),
    "DualIS 20/20": _dual(dbn.dual_inverted_softmax, 20.0, 20.0),
    "DualIS, weights 1, .1": _dual(dbn.dual_inverted_softmax, 20.0, 20.0, (1.0, 0.1)),
    "DualDIS 20/2": _dual(dbn.dual_dynamic_inverted_softmax, 20.0, 2.0),
    "CSLS 10": lambda query, *_: baselines.csls(dbn.largest_similarities(query, k=10)),
    "NNN 128, .75": lambda query, *_: baselines.nearest_neighbor_normalization(
        dbn.largest_similarities(query, k=128)
    ),
    "SN": lambda query, *_: baselines.sinkhorn_normalization(
        query, temperature=0.05, num_iterations=10
    ),
    "DBSN": lambda query, _, between: baselines.dual_bank_sinkhorn_normalization(
        query, between, temperature=0.05, num_iterations=10
    ),
}

# Their bias is one of item and banks alone, so that an item can be judged by itself.
SCREENED = tuple(name for name in FITS if name not in ("raw", "SN", "DBSN"))
# No gate and no transport: a planted item changes no other item's score.
SEPARATE = {
    fit for name, fit in FITS.items() if name not in ("DIS 20", "DualDIS 20/2", "SN", "DBSN")
}


def scores_with(planted, fit: Fit, queries, gallery, banks, *, soft: bool):
    """[num_queries, num_gallery + 1] corrected scores, the planted item last."""
    query_bank, gallery_bank = banks

    def against(rows):
        own = jnp.matmul(rows, planted, precision="highest")
        return jnp.concatenate([dbn.dot_product(rows, gallery), own[:, None]], axis=1)

    similarities, matrices = against(queries), (against(query_bank), against(gallery_bank))
    correction = fit(*matrices, dbn.dot_product(query_bank, gallery_bank))
    if correction is None:
        return similarities
    if correction.active is None or not soft:
        return dbn.apply_correction(similarities, correction)
    active = jnp.stack(
        [
            dbn.soft_activation(matrix, temperature=TEMPERATURE)
            for matrix in matrices[: correction.num_terms]
        ]
    )
    relaxed = dbn.Correction(correction.bias, active)
    gates = dbn.soft_gates(similarities, relaxed, temperature=TEMPERATURE)
    return dbn.apply_correction(similarities, relaxed, gates=gates)


class Limit(NamedTuple):
    """What an evasive attack keeps to: few of the query bank above their k-th best clean item."""

    lowest: jax.Array  # [num_query_bank]
    share: jax.Array  # of the query bank


@partial(jax.jit, static_argnames=("fit", "steps"))
def attack(queries, gallery, banks, starts, limit: Limit | None = None, *, fit: Fit, steps: int):
    """The unit vector that most of the known queries retrieve first."""
    rivals = None
    if fit in SEPARATE:
        tables = [dbn.dot_product(rows, gallery) for rows in (queries, *banks)]
        correction = fit(tables[1], tables[2], jnp.zeros((1, 1)))
        bias = 0.0 if correction is None else correction.bias.sum(axis=0)[None]
        rivals = (tables[0] - bias).max(axis=1)

    def lead_of(planted):
        if rivals is None:
            scores = scores_with(planted, fit, queries, gallery, banks, soft=True)
            return scores[:, -1] - scores[:, :-1].max(axis=1)
        own, *columns = (
            jnp.matmul(rows, planted[:, None], precision="highest") for rows in (queries, *banks)
        )
        correction = fit(*columns, jnp.zeros((1, 1)))
        bias = 0.0 if correction is None else correction.bias.sum(axis=0)[None]
        return (own - bias)[:, 0] - rivals

    def loss(planted):
        planted = planted / jnp.linalg.norm(planted)
        lead = lead_of(planted)
        missed = -jax.nn.log_sigmoid(SHARPNESS * lead).mean()
        if limit is None:
            return missed
        above = jnp.matmul(banks[0], planted, precision="highest") - limit.lowest
        retrieved = jax.nn.sigmoid(above / (TEMPERATURE / 4)).mean()
        return missed + PENALTY * jax.nn.relu(retrieved - limit.share)

    def ascend(start):
        def step(planted, _):
            gradient = jax.grad(loss)(planted)
            gradient = gradient / jnp.maximum(jnp.linalg.norm(gradient), 1e-12)
            planted = planted - RATE * gradient
            return planted / jnp.linalg.norm(planted), None

        end = jax.lax.scan(step, start, length=steps)[0]
        found = jnp.stack([start, end])
        losses = jnp.stack([loss(start), loss(end)])
        return found[losses.argmin()], losses.min()

    found, losses = jax.lax.map(ascend, starts)
    return found[losses.argmin()]


@partial(jax.jit, static_argnames="fit")
def success(planted, queries, gallery, banks, *, fit: Fit):
    """Shares of the queries with the planted item among their first 1 and 10, in percent."""
    scores = scores_with(planted, fit, queries, gallery, banks, soft=False)
    hit = dbn.top_k(scores, K).indices == gallery.shape[0]
    return 100 * jnp.stack([hit[:, 0].mean(), hit.any(axis=1).mean()])


def unit(vector):
    """Of length 1."""
    return vector / jnp.linalg.norm(vector)


class Outcome(NamedTuple):
    """Of one planted item."""

    at_1: float  # percent of the asked queries
    at_10: float
    found_raw: bool  # by raw scores
    found: bool  # by raw or corrected scores


class Case:
    """One set with one half of its queries known."""

    def __init__(self, test: EvaluationSet, steps: int, seed: int) -> None:
        arrays = (test.queries, test.gallery, test.query_bank, test.gallery_bank)
        queries, self.gallery, *banks = (jnp.asarray(rows) for rows in arrays)
        self.banks = (banks[0], banks[1])
        pairs = np.full(len(banks[0]), -1) if test.bank_pairs is None else test.bank_pairs
        self.partners = jnp.asarray(pairs[:, None] == np.arange(len(banks[1])))
        order = np.random.default_rng(seed).permutation(len(queries))
        self.known, self.asked = queries[order[::2]], queries[order[1::2]]
        self.steps, self.seed = steps, seed

    def attack(self, known, starts, fit="raw", limit: Limit | None = None, *, quick=False):
        """The planted item; quick: from the given starts alone."""
        others = [] if quick else [unit(known.mean(axis=0)), self.gallery[self.seed]]
        starts = jnp.stack([*others, *starts])
        return attack(
            known, self.gallery, self.banks, starts, limit, fit=FITS[fit], steps=self.steps
        )

    def screen(self, items, **options):
        """The screening of items by the banks."""
        query_bank, gallery_bank = self.banks
        return dbn.attribution.hub_screening(
            gallery=items, query_bank=query_bank, gallery_bank=gallery_bank, k=K, **options
        )

    def screened(self, items, fit: str):
        """What the screening says of items: ([num_items] by raw scores alone, [num_items])."""
        screen = partial(self.screen, items)
        alone = np.asarray(screen(false_alarm_rate=ALARMS).flagged)
        if fit not in SCREENED:
            return alone, alone
        query_bank, gallery_bank = self.banks
        own = dbn.dot_product(gallery_bank, gallery_bank)
        # An item's own copy and its own query are left out of its sums, too far away to count: what
        # joins has neither in the banks.
        own = jnp.where(jnp.eye(len(own), dtype=bool), FAR, own)
        apart = jnp.where(self.partners, FAR, dbn.dot_product(query_bank, gallery_bank))
        biases = (
            FITS[fit](*matrices, own).bias.sum(axis=0)
            for matrices in (
                (dbn.dot_product(query_bank, items), dbn.dot_product(gallery_bank, items)),
                (apart, own),
            )
        )
        corrected = dict(zip(("bias", "gallery_bank_bias"), biases, strict=True))
        halves = [screen(false_alarm_rate=ALARMS / 2, **given) for given in ({}, corrected)]
        return alone, np.asarray(halves[0].flagged | halves[1].flagged)

    def outcome(self, planted, asked, fit: str = "raw") -> Outcome:
        """How far it gets, and whether it is found."""
        at_1, at_10 = success(planted, asked, self.gallery, self.banks, fit=FITS[fit]).tolist()
        raw, either = self.screened(planted[None], fit)
        return Outcome(at_1, at_10, bool(raw[0]), bool(either[0]))

    def universal(self, names: list[str]) -> dict[str, tuple[Outcome, Outcome]]:
        """By correction: of the attack on raw scores, and of the one that is aware."""
        plain = self.attack(self.known, ())
        outcomes = {}
        for name in names:
            # From the raw attack too: what knows more must not find less.
            aware = self.attack(self.known, (plain,), name, quick=FITS[name] not in SEPARATE)
            outcomes[name] = tuple(self.outcome(one, self.asked, name) for one in (plain, aware))
        return outcomes

    def weaker(self) -> dict[str, Outcome]:
        """Of attacks on a topic, and of one that evades the screening."""
        outcomes = {}
        for share in TOPICS:
            near, asked = (
                rows[
                    np.argsort(-np.asarray(rows @ self.known[0]))[: max(3, int(share * len(rows)))]
                ]
                for rows in (self.known, self.asked)
            )
            planted = self.attack(near, ())
            outcomes[f"topic of {100 * share:g} %"] = self.outcome(planted, asked)
        screening = self.screen(self.gallery)
        lowest = dbn.stream_top_k(*self.banks, K).scores[:, -1]
        share = CAUTION * screening.threshold / len(self.banks[0])
        start = self.attack(self.known, ())
        planted = self.attack(self.known, (start,), limit=Limit(lowest, share))
        outcomes["evasive"] = self.outcome(planted, self.asked)
        return outcomes


def run(
    test: EvaluationSet, names: list[str], steps: int, seeds: int
) -> tuple[list[Outcome], list[float]]:
    """Prints the table of one set; returns (universal attacks, false alarms in percent)."""
    if test.gallery_bank is None:
        raise ValueError(f"{test.name}: a gallery bank of its own is needed")
    cases = [Case(test, steps, seed) for seed in range(seeds)]
    universal = [case.universal(names) for case in cases]
    weaker = [case.weaker() for case in cases]
    sizes = f"{len(cases[0].known)} known queries, {len(test.gallery)} items"
    print(f"\n{test.name}: {sizes}, banks of {len(test.query_bank)} and {len(test.gallery_bank)}")
    print(
        f"{'attack success, %':24}{'raw: @1':>10}{'@10':>7}{'aware: @1':>13}{'@10':>7}"
        f"{'found: raw':>14}{'or corr.':>10}{'false alarms':>15}"
    )
    everything, alarms = [], []
    for name in names:
        pairs = [outcomes[name] for outcomes in universal]
        plain, aware = (np.mean([pair[i] for pair in pairs], axis=0) for i in (0, 1))
        raw, either = (sum(pair[1][column] for pair in pairs) for column in (2, 3))
        alarms.append(100 * float(cases[0].screened(cases[0].gallery, name)[1].mean()))
        print(
            f"{name:24}{plain[0]:10.1f}{plain[1]:7.1f}{aware[0]:13.1f}{aware[1]:7.1f}"
            f"{raw:12d}/{seeds}{either:8d}/{seeds}{alarms[-1]:13.2f} %"
        )
        everything += [pair[1] for pair in pairs] + [pair[0] for pair in pairs] * (name == "raw")
    for name in weaker[0]:
        outcomes = [row[name] for row in weaker]
        at_1, at_10, *_ = np.mean(outcomes, axis=0)
        found = sum(outcome.found for outcome in outcomes)
        print(f"{name + ', raw scores':24}{at_1:10.1f}{at_10:7.1f}{found:32d}/{seeds}")
    screening = cases[0].screen(test.gallery)
    threshold = int(screening.threshold)
    share = 100 * threshold / len(test.query_bank)
    print(
        f"by raw scores, N_{K} >= {threshold} is flagged: {share:.1f} % of the query bank",
        flush=True,
    )
    return everything, alarms


def summary(attacks: list[Outcome], alarms: list[float]) -> None:
    """Prints what was found, by how far the attacks got under the scores they were made for."""
    print(f"\nall sets: false alarms {np.mean(alarms):.2f} %, at most {max(alarms):.2f} %")
    for low, high in zip(LEVELS, (*LEVELS[1:], 101), strict=True):
        band = [one for one in attacks if low <= one.at_10 < high]
        if band:
            raw, either = (sum(one[column] for one in band) for column in (2, 3))
            reach = f"in the first {K} of {low} to {high - 1} % of the asked queries"
            print(f"{len(band):4} attacks {reach}: found {raw} by raw, {either} by either scores")


def sets(paths: list[str], bank: int | None) -> Iterator[EvaluationSet]:
    """The given sets, or the embedded one, both ways, with banks of that size."""
    for test in [read_set(path, "cosine") for path in paths] or [emoji_names("en", "de")]:
        cut = dataclasses.replace(
            test,
            query_bank=test.query_bank[:bank],
            gallery_bank=None if test.gallery_bank is None else test.gallery_bank[:bank],
            bank_pairs=None if test.bank_pairs is None else test.bank_pairs[:bank],
        )
        yield from (cut, reversed_set(cut))


def main() -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bank", type=int, help="size of either bank; all of it when left out")
    parser.add_argument(
        "--corrections",
        choices=["all", "quick"],
        default="all",
        help="quick: no gate, no transport",
    )
    options = parser.parse_args()
    names = [name for name, fit in FITS.items() if options.corrections == "all" or fit in SEPARATE]
    print(machine())
    attacks: list[Outcome] = []
    alarms: list[float] = []
    for test in sets(options.sets, options.bank):
        found, flagged = run(test, names, options.steps, options.seeds)
        attacks, alarms = attacks + found, alarms + flagged
        jax.clear_caches()  # a process may map only so many programs
    summary(attacks, alarms)


if __name__ == "__main__":
    main()
