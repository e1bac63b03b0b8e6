"""Whether a loss is one: exact tests of paired answers, many cells at once, and intervals."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

# Right or not, [num_queries] bool: by raw similarities, and by corrected ones.
Answers = tuple[np.ndarray, np.ndarray]


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


def print_ways(title: str, cells: Mapping[str, Mapping[str, Sequence[Answers]]]) -> None:
    """A line for each way: mean and worst gain over the cells, and which losses are significant.

    Args:
      title: of the table.
      cells: cell -> way -> draws of (raw, corrected) answers, bool [num_queries] right or not.
    """
    print(f"\n{title}, {len(cells)} cells")
    print(f"{'':34}{'mean':>7}{'worst':>8}{'below raw':>11}{'significantly':>15}")
    for way in dict.fromkeys(way for found in cells.values() for way in found):
        answers = {cell: found[way] for cell, found in cells.items()}
        gains = {
            cell: 100 * float(np.mean([after.mean() - before.mean() for before, after in draws]))
            for cell, draws in answers.items()
        }
        worst = min(gains, key=gains.__getitem__)
        values = np.array([*gains.values()])
        count = holm([loss(draws) for draws in answers.values()])
        print(
            f"{way:34}{values.mean():+7.2f}{values.min():+8.2f}{(values < -1e-9).sum():11d}"
            f"{count:15d}   {worst}"
        )
