"""Whether `Choice.guarantee` holds, how far it lies below the truth, and what raw is left for.

    python -m benchmarks.studies.guarantee [--worlds 100] [--only hubs few ...]

Simulated worlds as in `benchmarks.studies.error_rate`: 500 gallery items, a bank of pairs of its
own, and 4,000 test queries, whose change in R@1 and in MRR is taken for the truth.

    even, easy, popular    as there, 100 pairs: nothing is to be gained
    unrelated              100 pairs at random: similarities say nothing of the right item
    hubs                   the queries of `even` lean one way, so that some items are found for all;
                           100 pairs, and with 300
    few                    the same with 40 pairs

Biased: worlds in which raw was not kept, with their 95 % interval (Wilson). Covered: the share of
all worlds in which the change is at least what is guaranteed. Over the biased ones, the mean change
and guarantee in points of R@1; over all, the largest excess of a guarantee over the change.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import error_rate
from benchmarks.support import environment
from dbnorm_jax._src.corrections.streamed import Streamed
from dbnorm_jax._src.tuning import grid, mixture, split

WORLDS = {
    "even": ("even", 100),
    "easy": ("easy", 100),
    "popular": ("popular", 100),
    "unrelated": ("unrelated", 100),
    "hubs": ("hubs", 100),
    "hubs, 300": ("hubs", 300),
    "few": ("hubs", 40),
}
_LEAN = 0.7  # length of what all queries have in common, beside their own


class Outcome(NamedTuple):
    """One world; R@1 and MRR each, as differences of shares."""

    biased: bool
    limits: np.ndarray  # [2]
    changes: np.ndarray  # [2]


def simulated(world: str, num_pairs: int, seed: int) -> dict[str, np.ndarray]:
    """One set, as `error_rate.simulated`; but for `popular`, the bank asks for each item once."""
    data = error_rate.simulated(world if world in error_rate.NOISE else "even", num_pairs, seed)
    if world == "popular":
        return data
    random = np.random.default_rng([7, num_pairs, seed])
    # Each once: then all worlds have the same shapes, and with them the same programs.
    noise = random.normal(size=(num_pairs, error_rate.DIM))
    noise *= error_rate.NOISE.get(world, 1.0) / np.linalg.norm(noise, axis=1, keepdims=True)
    data |= {"query_bank": _unit(data["gallery_bank"] + noise), "pairs": np.arange(num_pairs)}
    if world == "unrelated":
        data["pairs"] = random.permutation(num_pairs)
        data["relevant"] = random.permutation(data["relevant"])
    common = random.normal(size=error_rate.DIM)
    common *= (_LEAN if world == "hubs" else 0) / np.linalg.norm(common)
    for name in ("queries", "query_bank"):
        data[name] = _unit(data[name] + common).astype(np.float32)
    return data


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def outcome(world: str, num_pairs: int, seed: int) -> Outcome:
    """What is guaranteed, and what came of it."""
    data = simulated(world, num_pairs, seed)
    right = jnp.asarray(data.pop("relevant"), jnp.int32)
    queries = data.pop("queries")
    choice = dbn.tuning.tune(**data, seed=seed)
    limits = np.array(choice.guarantee)
    if choice.name == "raw":
        return Outcome(False, limits, np.zeros(2))
    correction = served(choice, **data)
    raw, corrected = (
        np.asarray(dbn.metrics.stream_ranks(queries, data["gallery"], right, fitted))
        for fitted in (None, correction)
    )
    changes = [
        np.mean(corrected <= 1) - np.mean(raw <= 1),
        np.mean(1 / corrected) - np.mean(1 / raw),
    ]
    return Outcome(True, limits, np.array(changes))


def served(
    choice: dbn.tuning.Choice,
    *,
    gallery: np.ndarray,
    query_bank: np.ndarray,
    gallery_bank: np.ndarray,
    pairs: np.ndarray,
) -> dbn.Correction:
    """What `tuning.fit` makes of a choice, from all candidates: every mixture is one program."""
    partners = split.partners(gallery_bank, pairs[:, None], [gallery])
    exclude = {} if partners is None else partners._asdict()
    arrays = (jnp.asarray(rows) for rows in (gallery, query_bank, gallery_bank))
    biases = mixture.fitted(
        grid.grid(float(choice.spread)),
        Streamed(*arrays, exclude),
        len(gallery),
        jnp.dtype(np.float32),
    )
    return dbn.Correction(mixture.mixed(choice.frequency, biases)[None], None)


def row(name: str, found: Sequence[Outcome]) -> str:
    """A line of the table."""
    biased = np.array([one.biased for one in found])
    limits, changes = (
        np.array([getattr(one, field) for one in found]) for field in ("limits", "changes")
    )
    low, high = error_rate.wilson(int(biased.sum()), len(found))
    share = f"{100 * biased.mean():.0f} ({100 * low:.0f}-{100 * high:.0f})"
    covered = 100 * (limits <= changes + 1e-9).mean(axis=0)
    figures = f"{'-':>8}{'-':>12}"
    if biased.any():
        change, limit = (100 * values[biased, 0].mean() for values in (changes, limits))
        figures = f"{change:+8.2f}{limit:+12.2f}"
    excess = 100 * (limits - changes)[:, 0].max()
    return f"{name:12}{share:>14}{covered[0]:15.0f}{covered[1]:7.0f}{figures}{excess:+10.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line per kind of world."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=[*WORLDS], default=[*WORLDS])
    asked = parser.parse_args(arguments)
    print(environment.summary())
    print(f"\n{asked.worlds} worlds of each kind")
    print(
        f"{'':12}{'biased, %':>14}{'covered, % R@1':>15}{'MRR':>7}{'change':>8}{'guaranteed':>12}"
        f"{'excess':>10}"
    )
    for name in asked.only:
        world, num_pairs = WORLDS[name]
        found = [outcome(world, num_pairs, seed) for seed in range(asked.worlds)]
        print(row(name, found), flush=True)


if __name__ == "__main__":
    main()
