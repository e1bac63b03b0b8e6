"""Poisoned banks: pairs on wrong items, what they do to `auto`, and whether it warns.

    python -m benchmarks.studies.poisoned [--set DIR/data.npz ...] [--pairs 300] [--seeds 100]
        [--draws 5] [--attacks copy ...] [--fractions 0.01 ...] [--only clean] [--names easy ...]

A share of the bank's pairs is put on wrong items:

    copy        the query is a random gallery item
    near        a random gallery item plus noise of a third of its length
    far         a random gallery item plus noise of its length
    victims     as near, around one of five gallery items
    permuted    the query stays; its right item is that of another such query

Simulated sets: unit rows of dim 32, queries with noise of some length about their item, 500 gallery
items. *hubs* adds a direction that all queries share; *log* asks for gallery items themselves,
evenly or by Zipf's law, and is the only bank. Given sets: `--pairs` of their pairs are drawn, in
both directions, and logs are made of them as in `benchmarks.studies.demand`.

Warnings are counted over `--seeds` draws, with Wilson's 95 % interval. R@1 in percent is the mean
of `--draws` of them: raw, `auto` with `trust_banks=True` (before) and without (now). Rank: mean
rank on the queries of the victim that fares worst.
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies.demand import demanded
from benchmarks.studies.error_rate import wilson
from benchmarks.studies.tuning import chosen
from benchmarks.support import environment
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set
from dbnorm_jax._src.core.relevance import as_rows
from dbnorm_jax._src.tuning import split as folds
from dbnorm_jax._src.tuning import wrong_pairs

ATTACKS = {"copy": 0.0, "near": 0.3, "far": 1.0, "victims": 0.3, "permuted": 0.0}  # noise
FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.4)
_VICTIMS = 5
_GALLERY, _TEST, _DIM = 500, 1000, 32

Draws = Callable[[int], EvaluationSet]  # of a seed


class World(NamedTuple):
    """A simulated encoder, and what is asked for."""

    noise: float
    common: float = 0.0  # length of the direction that all queries share
    exponent: float | None = None  # of the popularity in a log; None: pairs of other items


WORLDS = {
    "easy": World(0.2),
    "even": World(1.0),
    "hubs": World(1.0, common=1.0),
    "weak": World(1.6),
    "weaker": World(2.0),
    "weakest": World(3.0),
    "log, uniform": World(1.0, exponent=0.0),
    "log, Zipf(1)": World(1.0, exponent=1.0),
    "weak log, Zipf(1)": World(2.0, exponent=1.0),
    "log, Zipf(1), hubs": World(1.0, common=1.0, exponent=1.0),
}


def unit(rows: np.ndarray) -> np.ndarray:
    """Of length 1."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def simulated(name: str, num_pairs: int, seed: int) -> EvaluationSet:
    """A set of one of the worlds."""
    world = WORLDS[name]
    rng = np.random.default_rng([list(WORLDS).index(name), seed])
    direction = world.common * unit(rng.normal(size=(1, _DIM)))

    def asked(items: np.ndarray) -> np.ndarray:
        return unit(items + world.noise * unit(rng.normal(size=items.shape)) + direction)

    gallery = unit(rng.normal(size=(_GALLERY, _DIM)))
    popularity = np.arange(1, _GALLERY + 1) ** -(world.exponent or 0.0)
    needs = rng.choice(_GALLERY, num_pairs + _TEST, p=popularity / popularity.sum())
    bank, pairs = None, needs[:num_pairs]
    if world.exponent is None:
        bank, pairs = unit(rng.normal(size=(num_pairs, _DIM))), np.arange(num_pairs)
    query_bank = asked((gallery if bank is None else bank)[pairs])
    right = needs[num_pairs:]
    relevant = np.arange(_TEST + 1), right
    return EvaluationSet(name, asked(gallery[right]), gallery, query_bank, bank, relevant, pairs)


def drawn(test: EvaluationSet, num_pairs: int, seed: int) -> EvaluationSet:
    """Some pairs of a set, one item for each."""
    right = folds.right_rows(
        "bank_pairs", test.bank_pairs, len(test.query_bank), len(test.gallery_bank)
    )[:, 0]
    paired = np.flatnonzero(right >= 0)
    rows = np.random.default_rng(seed).permutation(paired)[:num_pairs]
    return dataclasses.replace(
        test,
        query_bank=np.asarray(test.query_bank)[rows],
        gallery_bank=np.asarray(test.gallery_bank)[right[rows]],
        bank_pairs=np.arange(len(rows)),
        query_bank_labels=None,
    )


def logged(test: EvaluationSet, exponent: float, num_pairs: int, seed: int) -> EvaluationSet:
    """A log as the only bank, `num_pairs` of what it holds."""
    whole = demanded(test, exponent, seed)
    right = folds.right_rows(
        "bank_pairs", whole.bank_pairs, len(whole.query_bank), len(whole.gallery)
    )[:, 0]
    bank, pairs = whole.query_bank[:num_pairs], right[:num_pairs]
    return dataclasses.replace(whole, query_bank=bank, bank_pairs=pairs)


def poisoned(
    test: EvaluationSet, attack: str, fraction: float, seed: int
) -> tuple[EvaluationSet, np.ndarray]:
    """The set with a share of its pairs on wrong items, and the gallery rows that are victims."""
    rng = np.random.default_rng(seed)
    query_bank, pairs = np.array(test.query_bank), np.array(test.bank_pairs)
    rows = rng.choice(len(query_bank), round(fraction * len(query_bank)), replace=False)
    victims = np.arange(0)
    if attack == "permuted":
        pairs[rows] = pairs[np.roll(rows, 1)]
    else:
        gallery = np.asarray(test.gallery)
        items = rng.integers(0, len(gallery), len(rows))
        if attack == "victims":
            victims = rng.choice(len(gallery), _VICTIMS, replace=False)
            items = victims[np.arange(len(rows)) % _VICTIMS]
        noise = ATTACKS[attack] * unit(rng.normal(size=(len(rows), gallery.shape[1])))
        query_bank[rows] = gallery[items] if attack == "copy" else unit(gallery[items] + noise)
    return dataclasses.replace(test, query_bank=query_bank, bank_pairs=pairs), victims


def is_warned(test: EvaluationSet, seed: int) -> bool:
    """What `tune` asks, without the rest of it."""
    rng = np.random.default_rng(seed)
    banks = folds.checked(test.query_bank, test.gallery_bank, test.gallery, dbn.dot_product)
    right = folds.right_rows("pairs", test.bank_pairs, len(banks.query), len(banks.gallery))
    paired = np.flatnonzero((right >= 0).any(axis=1))
    split = folds.split_pairs(banks, right, paired, 10, rng)
    return wrong_pairs.num_wrong(banks, split, right, rng, dbn.dot_product) > 0


class Outcome(NamedTuple):
    """Of one draw."""

    raw: float  # R@1 in percent
    before: float
    now: float
    rank_raw: float  # of the victim that fares worst; NaN without one
    rank_before: float
    rank_now: float


def outcome(test: EvaluationSet, victims: np.ndarray, seed: int) -> Outcome:
    """R@1 and the worst victim under raw, the choice without the check, and the choice."""
    correction, choice = chosen(test, seed, trust_banks=True)
    raw, before = (
        np.asarray(dbn.metrics.stream_ranks(test.queries, test.gallery, test.relevant, each))
        for each in (None, correction)
    )
    now = raw if choice.num_wrong_pairs else before
    right = np.asarray(as_rows(test.relevant, (len(test.queries), len(test.gallery))))
    asking = [asks for asks in ((right == victim).any(axis=1) for victim in victims) if asks.any()]
    worst = max(asking, key=lambda asks: before[asks].mean() - raw[asks].mean(), default=None)
    ranks = [np.nan if worst is None else r[worst].mean() for r in (raw, before, now)]
    return Outcome(*(100 * float((r <= 1).mean()) for r in (raw, before, now)), *map(float, ranks))


def sets(
    paths: Sequence[str], num_pairs: int, emoji: bool = True
) -> tuple[dict[str, Draws], dict[str, Draws]]:
    """Those that are attacked, and those that are left clean only."""
    attacked: dict[str, Draws] = {name: partial(simulated, name, num_pairs) for name in WORLDS}
    clean: dict[str, Draws] = {}
    for path in paths:
        test = read_set(path, "cosine")
        attacked[test.name] = partial(drawn, test, num_pairs)
        back = reversed_set(test)
        clean[f"{test.name}, reversed"] = partial(drawn, back, num_pairs)
        for whole, exponent in ((test, 0.0), (test, 1.0), (back, 1.0)):
            end = ", reversed" * (whole is back)
            name = f"log of {test.name}{end}, {'Zipf(1)' if exponent else 'uniform'}"
            clean[name] = partial(logged, whole, exponent, num_pairs)
    if emoji:
        clean["emoji en -> de"] = lambda seed: drawn(emoji_names("en", "de", seed), num_pairs, seed)
        clean["emoji de -> en"] = lambda seed: drawn(
            reversed_set(emoji_names("en", "de", seed)), num_pairs, seed
        )
    return attacked, clean


def counted(count: int, total: int) -> str:
    """With its interval in percent; a dash of none."""
    if not total:
        return "-"
    low, high = (100 * end for end in wilson(count, total))
    return f"{count}/{total} [{max(low, 0):.0f}, {min(high, 100):.0f}]"


def print_clean(known: Mapping[str, Draws], num_seeds: int, first: int = 0) -> None:
    """A line per set: R@1 of raw, and warnings."""
    print(f"\n{'clean':40}{'raw R@1':>9}{'warnings':>20}")
    for name, draws in known.items():
        test = draws(first)
        ranks = np.asarray(dbn.metrics.stream_ranks(test.queries, test.gallery, test.relevant))
        seeds = range(first, first + num_seeds)
        count = sum(is_warned(draws(seed), seed) for seed in seeds)
        raw = 100 * float((ranks <= 1).mean())
        print(f"{name:40}{raw:9.1f}{counted(count, num_seeds):>20}", flush=True)


def print_attacked(
    known: Mapping[str, Draws],
    num_seeds: int,
    num_draws: int,
    attacks: Sequence[str],
    fractions: Sequence[float],
) -> None:
    """A line per set, attack and share."""
    heads = f"{'warnings':>20}{'raw':>8}{'before':>8}{'now':>8}{'rank: raw':>11}{'before':>8}"
    print(f"\n{'set':22}{'attack':10}{'share':>6}{heads}{'now':>8}")
    for name, draws in known.items():
        for attack in attacks:
            for fraction in fractions:
                count, found = 0, []
                for seed in range(max(num_seeds, num_draws)):
                    test, victims = poisoned(draws(seed), attack, fraction, seed)
                    count += seed < num_seeds and is_warned(test, seed)
                    if seed < num_draws:
                        found.append(outcome(test, victims, seed))
                line = f"{name:22}{attack:10}{fraction:6.0%}{counted(count, num_seeds):>20}"
                if found:
                    *recalls, raw, before, now = np.mean(found, axis=0)
                    line += "".join(f"{value:8.1f}" for value in recalls)
                    if attack == "victims":
                        line += f"{raw:11.1f}{before:8.1f}{now:8.1f}"
                print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="SET.npz")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0, help="of the clean sets")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--attacks", nargs="+", choices=[*ATTACKS], default=[*ATTACKS])
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--only", choices=["clean", "attacked"])
    parser.add_argument("--names", nargs="+", help="of sets, if not all")
    parser.add_argument("--no-emoji", action="store_true")
    asked = parser.parse_args(arguments)
    print(environment.summary())
    attacked, clean = sets(asked.sets, asked.pairs, not asked.no_emoji)
    if asked.names:
        attacked, clean = (
            {name: draws for name, draws in known.items() if name in asked.names}
            for known in (attacked, clean)
        )
    if asked.only != "attacked":
        print_clean({**attacked, **clean}, asked.seeds, asked.first_seed)
    if asked.only != "clean":
        print_attacked(attacked, asked.seeds, asked.draws, asked.attacks, asked.fractions)


if __name__ == "__main__":
    main()
