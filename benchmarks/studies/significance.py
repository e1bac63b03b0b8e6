"""What a benchmark may conclude: exact tests of paired answers, errors over sets, oracles.

A *set* is what was sampled: its directions, bank sizes and draws share items and encoder, so means
over cells have errors that are clustered by set.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

# --- paired answers -------------------------------------------------------------------------------

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


def smallest_effect(
    num_queries: int, discordance: float, *, level: float = 0.05, power: float = 0.8
) -> float:
    """The smallest gain in R@1, in points, that McNemar's test (two-sided) finds with this power.

    With a share `p` of discordant queries, n queries, and normal quantiles z of 1 - level/2 and z'
    of power, the gain d at which `d sqrt(n) = z sqrt(p) + z' sqrt(p - d^2)` (Connor, Biometrics
    1987).

    Args:
      num_queries: n, every query once, however many draws of the bank it was asked under.
      discordance: p in [0, 1], queries that are right under one method and not under the other.
      level: of the test.
      power: the chance to find it.

    Returns:
      Points; inf where even one-sided changes, d = p, would not be found.
    """
    z, other = (float(stats.norm.ppf(q)) for q in (1 - level / 2, power))
    size = num_queries + other**2
    if size <= z**2:
        return math.inf
    gain = z * math.sqrt(num_queries) + other * math.sqrt(size - z**2)
    gain *= math.sqrt(discordance) / size
    return 100 * gain if 0 < gain <= discordance else math.inf


# --- means over cells -----------------------------------------------------------------------------


class Mean(NamedTuple):
    """A mean over cells, with the standard error that the sets give it."""

    value: float
    error: float  # nan with one set
    num_sets: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided, by Student's t with one degree of freedom less than sets."""
        if self.num_sets < 2:
            return math.nan, math.nan
        half = float(stats.t.ppf((1 + level) / 2, self.num_sets - 1)) * self.error
        return self.value - half, self.value + half


def set_of(name: str) -> str:
    """The set that a direction belongs to.

    Emoji names of all languages, which share emoji and encoder, are one.
    """
    if name.startswith("emoji"):
        return "emoji"
    return name.removesuffix(", reversed").removesuffix(" (reversed)")


def clustered(values: Sequence[float], sets: Sequence[Hashable]) -> Mean:
    """The mean of all values; its error by the jackknife that leaves out one set at a time.

    Where all sets have as many values, the standard error of the means of sets. It allows for what
    the values of a set have in common, and for sets of unequal size.

    Args:
      values: [num_cells].
      sets: [num_cells], the set of each; all different: the plain standard error.
    """
    values = np.asarray(values, float)
    _, places = np.unique([str(one) for one in sets], return_inverse=True)
    sums, counts = np.bincount(places, values), np.bincount(places)
    mean = float(values.mean())
    if len(sums) < 2:
        return Mean(mean, math.nan, len(sums))
    without = (sums.sum() - sums) / (len(values) - counts)
    share = (len(sums) - 1) / len(sums)
    return Mean(mean, math.sqrt(share * float(((without - mean) ** 2).sum())), len(sums))


def equivalence(mean: Mean, margin: float) -> float:
    """The p-value of two one-sided t tests: that the mean lies in (-margin, margin).

    Below 0.05 the 90 % interval of the mean lies between the margins (Schuirmann, 1987); 1 where
    one set gives no error.
    """
    if mean.num_sets < 2:
        return 1.0
    if mean.error == 0:
        return 0.0 if abs(mean.value) < margin else 1.0
    return float(stats.t.sf((margin - abs(mean.value)) / mean.error, mean.num_sets - 1))


# --- the best in hindsight ------------------------------------------------------------------------


class Oracle(NamedTuple):
    """What the best of many candidates gains, chosen on the queries that it is judged by."""

    best: int  # the candidate of the highest mean gain
    plain: float  # its mean gain, which carries the luck of the choice
    debiased: float  # less that luck, as the bootstrap estimates it
    halves: float  # chosen on one half of the queries, judged by the other


def oracle(gains: np.ndarray, *, seed: int = 0, num_draws: int = 200) -> Oracle:
    """The oracle, plain and without its luck.

    Chosen on queries drawn again from the queries, a candidate gains more on these than on all
    queries: the mean of that difference is subtracted (Efron, 1983). What is left still lies a
    little above the expected gain of the oracle's choice, and near the gain of the best candidate
    that there is. `halves` is below: it chooses by half as many queries.

    Args:
      gains: [num_candidates, num_queries] over raw, in any unit; without raw among the candidates
        a choice may lose.
      seed: of the draws.
      num_draws: of the bootstrap, and of splits into halves.
    """
    gains = np.asarray(gains, np.float32)
    num_queries = gains.shape[1]
    rng = np.random.default_rng(seed)
    mean = gains.mean(axis=1, dtype=np.float64)
    best = int(mean.argmax())
    times = rng.multinomial(num_queries, np.full(num_queries, 1 / num_queries), num_draws)
    again = gains @ times.T.astype(np.float32) / num_queries
    luck = np.mean([again[one, draw] - mean[one] for draw, one in enumerate(again.argmax(axis=0))])
    first = rng.permuted(np.tile(np.arange(num_queries) % 2, (num_draws, 1)), axis=1)
    split = np.concatenate([first, 1 - first])  # each half once to choose by, once to judge by
    chosen = gains @ split.T.astype(np.float32) / split.sum(axis=1)
    judged = gains @ (1 - split).T.astype(np.float32) / (1 - split).sum(axis=1)
    halves = [judged[one, draw] for draw, one in enumerate(chosen.argmax(axis=0))]
    return Oracle(best, float(mean[best]), float(mean[best] - luck), float(np.mean(halves)))


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
