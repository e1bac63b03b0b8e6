"""Whether a loss is one: exact tests of paired answers, many cells at once, and intervals."""

import math
from collections.abc import Iterable, Sequence

import numpy as np


def exact_mcnemar(worse: int, better: int) -> float:
    """One-sided: the chance of at least `worse` losses where losses and gains are as likely."""
    total = worse + better
    if not total:
        return 1.0
    return sum(math.comb(total, count) for count in range(worse, total + 1)) / 2**total


def loss(draws: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The p-value of a loss, draws pooled: bool [num_queries] right before and after, of each."""
    pairs = list(draws)
    worse = sum(int((before & ~after).sum()) for before, after in pairs)
    better = sum(int((after & ~before).sum()) for before, after in pairs)
    return exact_mcnemar(worse, better)


def holm(p_values: Sequence[float], level: float = 0.05) -> int:
    """How many hypotheses Holm's procedure rejects."""
    ordered = sorted(p_values)
    for place, value in enumerate(ordered):
        if value > level / (len(ordered) - place):
            return place
    return len(ordered)


def interval_over(queries: np.ndarray, gains: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of a mean gain over queries that may come again in other draws.

    Args:
      queries: [num_answers], which query it was.
      gains: [num_answers].
    """
    _, places, counts = np.unique(queries, return_inverse=True, return_counts=True)
    sums = np.bincount(places, gains)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(sums), (1000, len(sums)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)
