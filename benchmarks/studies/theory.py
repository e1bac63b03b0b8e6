"""Do hubs lie near both banks? Rank correlations of N_10 with the similarity to each bank.

    python -m benchmarks.studies.theory [--set DIR/data.npz ...] [--resamples 500]

For every gallery item: N_10 over the test queries, and its mean similarity to the query bank and to
the gallery bank (over the whole bank, and over its 10 nearest). Printed with 95 % bootstrap
intervals over items: Spearman's correlation of N_10 with either, and the partial one with the
gallery bank given the query bank. Where the last is near 0, the second bank knows nothing about
hubs that the first does not.
"""

import argparse
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.support.common import machine
from dbnorm_jax._cli.measuring.hubs import rank_correlations
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set

LANGUAGES = (("en", "de"), ("en", "fr"), ("es", "it"))
K = 10


def with_interval(columns: np.ndarray, resamples: int) -> list[str]:
    """Each correlation with its 95 % interval over items."""
    random = np.random.default_rng(0)
    size = columns.shape[1]
    draws = [
        rank_correlations(columns[:, random.integers(size, size=size)]) for _ in range(resamples)
    ]
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return [
        f"{value:+.2f} [{a:+.2f}, {b:+.2f}]"
        for value, a, b in zip(rank_correlations(columns), low, high, strict=True)
    ]


def columns_of(test: EvaluationSet, nearest: int | None) -> np.ndarray:
    """[3, num_items] N_10, and the mean similarity to the query bank and the gallery bank."""
    gallery = jnp.asarray(test.gallery)
    found = dbn.stream_top_k(test.queries, gallery, K).indices
    rows = [dbn.hubness.k_occurrence(found, len(gallery))]
    for bank in (test.query_bank, test.gallery_bank):
        largest = dbn.stream_largest_similarities(bank, gallery, k=nearest or len(bank))
        rows.append(largest.mean)
    return np.stack([np.asarray(row, np.float64) for row in rows])


def synthetic(dim: int, gap: float, seed: int = 0) -> EvaluationSet:
    """Pairs of Gaussian vectors with noise on either side, one modality moved away by a gap."""
    random = np.random.default_rng(seed)
    size = 2000
    shared = random.normal(size=(size, dim))
    sides = [shared + random.normal(size=(size, dim)) for _ in range(2)]
    # Each modality has a mean of its own: without one there is no direction for a bank to know.
    sides = [side + gap * random.normal(size=dim) for side in sides]
    queries, items = (
        (side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32) for side in sides
    )
    half = size // 2
    return EvaluationSet(
        name=f"Gaussian, dim {dim}, gap {gap:g}",
        queries=queries[:half],
        gallery=items[:half],
        query_bank=queries[half:],
        gallery_bank=items[half:],
    )


def sets(paths: list[str]) -> Iterator[EvaluationSet]:
    """Synthetic, embedded and given sets, the latter two both ways."""
    for dim, gap in ((16, 0.0), (64, 0.0), (64, 1.0)):
        yield synthetic(dim, gap)
    tests = [emoji_names(*pair) for pair in LANGUAGES] + [
        read_set(path, "cosine") for path in paths
    ]
    for test in tests:
        yield test
        yield reversed_set(test)


def main() -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    parser.add_argument("--resamples", type=int, default=500)
    options = parser.parse_args()
    print(machine())
    for title, nearest in (("mean similarity to the whole bank", None), (f"to its {K} nearest", K)):
        print(f"\n{title}")
        print(
            f"{'':42}{'with query bank':>22}{'with gallery bank':>22}{'gallery, given query':>24}"
        )
        for test in sets(options.sets):
            cells = with_interval(columns_of(test, nearest), options.resamples)
            print(f"{test.name[:40]:42}{cells[0]:>22}{cells[1]:>22}{cells[2]:>24}", flush=True)


if __name__ == "__main__":
    main()
