"""Is any candidate better than raw? And which of them, if so?

Sign flips of paired differences, all candidates at once:

    t_j = sum_i d_ij / sqrt(sum_i d_ij^2),     d_ij: gain of candidate j on query i
    p_j = share of flips whose largest t over all candidates reaches t_j

If no candidate were better, each query's gains could as well have the other sign. Flipping the
whole row of a query keeps how candidates agree, so that the price of having looked at many is what
it must be: little for candidates that do nearly the same. Candidates with p_j <= level are better
than raw, all of them at once, with an error of at most `level` (Westfall and Young, 1993; Romano
and Wolf, 2005). Where gains are skewed the flips are approximate; studentizing makes the error
vanish with the number of queries.

Only where that rejects, the choice is made again on bootstraps of the queries, and how often each
candidate is chosen is its share of what is served (bagging: Breiman, 1996). A bootstrapped t varies
about twice as much as the quantile allows for, so that bagging alone would correct too often.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NUM_FLIPS = 999
_NUM_BOOTSTRAPS = 200
# What is chosen less often is dropped: each candidate that stays costs a fit.
_FEWEST = 0.05

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]


class Evidence(NamedTuple):
    """Per candidate, and what a statistic must exceed."""

    gain: Floats  # [num_candidates] mean difference
    standard_error: Floats  # [num_candidates]
    p_value: Floats  # [num_candidates]
    quantile: float  # of the largest statistic of a flip, at the level


def sums_of_groups(values: Floats, groups: Integers) -> tuple[Floats, Integers]:
    """Sums over the rows of each group, and their numbers."""
    labels, places = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(labels), *values.shape[1:]))
    np.add.at(sums, places, values)
    return sums, np.bincount(places)


def clustered_error(sums: Floats, sizes: Integers) -> Floats:
    """Standard error of a mean over rows, from the sums of independent groups of them."""
    mean = sums.sum(axis=0) / sizes.sum()
    centered = sums - np.multiply.outer(sizes, mean)
    factor = len(sizes) / max(len(sizes) - 1, 1)
    error: Floats = np.sqrt((centered**2).sum(axis=0) * factor) / sizes.sum()
    return error


def evidence(differences: Floats, groups: Integers, seed: int, level: float) -> Evidence:
    """Gains over raw and their adjusted p-values; the queries of a group flip together.

    Args:
      differences: [num_queries, num_candidates], gains of each query.
      groups: [num_queries]; those of a group share a right item.
      seed: of the flips.
      level: of the error, over all candidates.
    """
    sums, sizes = sums_of_groups(differences, groups)
    norm = np.sqrt((sums**2).sum(axis=0))
    moved = norm > 0
    scaled = (sums / np.where(moved, norm, 1)).astype(np.float32)
    signs = np.random.default_rng(seed).integers(0, 2, (NUM_FLIPS, len(sizes)), np.int8)
    largest = np.sort(((2 * signs.astype(np.float32) - 1) @ scaled).max(axis=1))
    statistic = scaled.astype(np.float64).sum(axis=0)
    reached = NUM_FLIPS - np.searchsorted(largest, statistic - 1e-6, side="left")
    p_value = np.where(moved, (1 + reached) / (1 + NUM_FLIPS), 1.0)
    # The p-value of what exceeds it is at most the level.
    place = NUM_FLIPS - max(int(level * (1 + NUM_FLIPS) + 1e-9), 1)
    quantile = float(largest[place])
    return Evidence(differences.mean(axis=0), clustered_error(sums, sizes), p_value, quantile)


def frequencies(
    found: Evidence,
    gains: Floats,
    log_rank: Floats,
    reciprocal_rank: Floats,
    groups: Integers,
    *,
    level: float,
    seed: int,
) -> Floats:
    """[num_candidates] shares of what is served, raw first; raw alone where nothing is proven.

    In every bootstrap of the groups, the candidate of the highest gain is chosen among those whose
    statistic exceeds the quantile and of whose gains in ranks none is a loss, else raw. Rare ones
    are dropped, and the rest stand for them; raw keeps its share.

    Args:
      found: of the gains.
      gains: [num_queries, num_candidates], in likelihood.
      log_rank: [num_queries, num_candidates], gains in the logarithm of the rank.
      reciprocal_rank: [num_queries, num_candidates], gains in the reciprocal rank.
      groups: [num_queries], resampled whole.
      level: of the error of the proof, over all candidates.
      seed: of the bootstraps.
    """
    raw = np.zeros(gains.shape[1])
    raw[0] = 1
    sums, of_log_rank, of_reciprocal = (
        sums_of_groups(values, groups)[0] for values in (gains, log_rank, reciprocal_rank)
    )
    proven = (found.p_value <= level) & (found.gain > 0)
    proven &= (of_log_rank.sum(axis=0) > 0) & (of_reciprocal.sum(axis=0) > 0)
    if not proven[1:].any():
        return raw
    rng = np.random.default_rng([seed, 1])
    counts = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), _NUM_BOOTSTRAPS)
    weights = counts.astype(np.float64)
    gain, norm = weights @ sums, np.sqrt(weights @ sums**2)
    better = (gain > found.quantile * norm) & (weights @ of_log_rank > 0)
    better &= weights @ of_reciprocal > 0
    better[:, 0] = False
    chosen = np.where(better.any(axis=1), np.where(better, gain, -np.inf).argmax(axis=1), 0)
    share = np.bincount(chosen, minlength=gains.shape[1]) / _NUM_BOOTSTRAPS
    corrected = share[1:]
    if not corrected.any():
        return raw
    kept = np.where(corrected >= min(_FEWEST, corrected.max()), corrected, 0)
    share[1:] = kept * (corrected.sum() / kept.sum())
    return share


def lower_limit(differences: Floats, groups: Integers, confidence: float = 0.95) -> float:
    """One-sided confidence limit of a mean over queries, those of a group being alike.

    Student's t with as many degrees of freedom as groups of equal size would be worth, less one.
    One more query counts that loses all: where none was seen to lose, some may (for n queries, the
    limit is then about that of the rule of three, -3 / n).

    Args:
      differences: [num_queries], at least -1.
      groups: [num_queries]; those of a group share a right item.
      confidence: of the limit.
    """
    sums, sizes = sums_of_groups(differences, groups)
    sums, sizes = np.append(sums, -1.0), np.append(sizes, 1)
    worth = sizes.sum() ** 2 / (sizes**2).sum()
    error = float(clustered_error(sums, sizes))
    return float(sums.sum() / sizes.sum()) - students_t(confidence, worth - 1) * error


def students_t(confidence: float, degrees: float) -> float:
    """Quantile of Student's t, to 0.3 % from 5 degrees on (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf(confidence)
    degrees = max(degrees, 1.0)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
