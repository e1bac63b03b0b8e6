"""How often `auto` corrects where nothing is to be gained, and what that does: simulated sets.

    python -m benchmarks.studies.error_rate [--sets 200] [--pairs 50 100 300]

Each set has 500 gallery items, a bank of pairs of its own, and 4,000 test queries, in three worlds
without hubs of the encoder's making:

    even     items spread evenly, queries with noise of their length
    easy     the same with a fifth of the noise: raw retrieval is right nearly always
    popular  queries ask for few of the items, in bank and test alike (Zipf's law): an item found
             often is right often, and whoever takes its advantage away is wrong

Corrected: the share of sets where `auto` left raw, with its 95 % interval (Wilson). Gain: in R@1
there, on the test queries. Worse: the share of all sets where the test queries say so (exact
McNemar test at the level 0.05, one-sided).
"""

import argparse
import math

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.support import environment
from dbnorm_jax._cli.reading.sets import EvaluationSet

NUM_GALLERY, NUM_QUERIES, DIM = 500, 4000, 32
NOISE = {"even": 1.0, "easy": 0.2, "popular": 1.0}


def simulated(world: str, num_pairs: int, seed: int) -> dict[str, np.ndarray]:
    """One set: unit rows, the right gallery rows of its queries, the bank's pairs."""
    random = np.random.default_rng([list(NOISE).index(world), num_pairs, seed])

    def unit(rows: np.ndarray) -> np.ndarray:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def asked(items: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        popularity = np.ones(len(items))
        if world == "popular":
            popularity = 1 / np.arange(1, len(items) + 1)
        right = random.choice(len(items), count, p=popularity / popularity.sum())
        noise = unit(random.normal(size=(count, DIM)))
        return unit(items[right] + NOISE[world] * noise), right

    gallery, gallery_bank = (unit(random.normal(size=(n, DIM))) for n in (NUM_GALLERY, num_pairs))
    if world == "popular":  # a bank of logged queries, whose items are the gallery's own
        gallery_bank = gallery
    queries, relevant = asked(gallery, NUM_QUERIES)
    query_bank, pairs = asked(gallery_bank, num_pairs)
    return {
        "gallery": gallery,
        "gallery_bank": gallery_bank,
        "queries": queries,
        "relevant": relevant,
        "query_bank": query_bank,
        "pairs": pairs,
    }


def test_set(world: str, num_pairs: int, seed: int) -> EvaluationSet:
    """The same as an evaluation set."""
    data = simulated(world, num_pairs, seed)
    relevant = np.arange(NUM_QUERIES + 1), data["relevant"]
    banks = data["query_bank"], data["gallery_bank"]
    name = f"simulated: {world}"
    return EvaluationSet(name, data["queries"], data["gallery"], *banks, relevant, data["pairs"])


def outcome(world: str, num_pairs: int, seed: int) -> tuple[bool, int, int]:
    """(whether raw was left, test queries won, test queries lost)."""
    data = simulated(world, num_pairs, seed)
    correction, choice = dbn.auto(
        gallery=data["gallery"],
        query_bank=data["query_bank"],
        gallery_bank=data["gallery_bank"],
        pairs=data["pairs"],
        seed=seed,
        return_choice=True,
    )
    if choice.name == "raw":
        return False, 0, 0
    before, after = (
        np.asarray(
            dbn.metrics.stream_ranks(
                data["queries"], data["gallery"], jnp.asarray(data["relevant"], jnp.int32), fitted
            )
        )
        <= 1
        for fitted in (None, correction)
    )
    return True, int((after & ~before).sum()), int((before & ~after).sum())


def wilson(count: int, total: int) -> tuple[float, float]:
    """A binomial share's 95 % interval."""
    z, share = 1.96, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / (1 + z * z / total)
    return middle - half, middle + half


def lost(won: int, lost: int) -> bool:
    """Whether so few wins among the changes have a chance below 0.05, were both alike."""
    changed = won + lost
    chance = sum(math.comb(changed, k) for k in range(won + 1)) / 2**changed
    return chance < 0.05


def main() -> None:
    """Prints one line per world and number of pairs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--pairs", type=int, nargs="+", default=[50, 100, 300])
    arguments = parser.parse_args()
    print(environment.summary())
    print(f"\n{'world':10s}{'pairs':>6s}{'corrected, %':>22s}{'gain there':>12s}{'worse, %':>10s}")
    for world in NOISE:
        for num_pairs in arguments.pairs:
            found = [outcome(world, num_pairs, seed) for seed in range(arguments.sets)]
            left = [(won, missed) for corrected, won, missed in found if corrected]
            low, high = wilson(len(left), len(found))
            gains = [100 * (won - missed) / NUM_QUERIES for won, missed in left]
            gain = f"{np.mean(gains):+.2f}" if gains else "-"
            worse = 100 * sum(lost(won, missed) for won, missed in left) / len(found)
            share = f"{100 * len(left) / len(found):.1f} ({100 * low:.1f}-{100 * high:.1f})"
            print(f"{world:10s}{num_pairs:6d}{share:>22s}{gain:>12s}{worse:10.1f}", flush=True)


if __name__ == "__main__":
    main()
