"""Is any candidate better than raw? Sign flips of paired differences, all candidates at once.

    t_j = sum_i d_ij / sqrt(sum_i d_ij^2),     d_ij: gain of candidate j on query i
    p_j = share of flips whose largest t over all candidates reaches t_j

If no candidate were better, each query's gains could as well have the other sign. Flipping the
whole row of a query keeps how candidates agree, so that the price of having looked at many is what
it must be: little for candidates that do nearly the same. Candidates with p_j <= level are better
than raw, all of them at once, with an error of at most `level` (Westfall and Young, 1993; Romano
and Wolf, 2005). Where gains are skewed the flips are approximate; studentizing makes the error
vanish with the number of queries.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NUM_FLIPS = 999

Floats = npt.NDArray[np.float64]


class Evidence(NamedTuple):
    """Per candidate."""

    gain: Floats  # [num_candidates] mean difference
    standard_error: Floats  # [num_candidates]
    p_value: Floats  # [num_candidates]


def evidence(differences: Floats, groups: npt.NDArray[np.integer], seed: int) -> Evidence:
    """Gains over raw and their adjusted p-values; the queries of a group flip together.

    Args:
      differences: [num_queries, num_candidates], gains of each query.
      groups: [num_queries]; those of a group share a right item.
      seed: of the flips.
    """
    num_queries = len(differences)
    labels, places = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(labels), differences.shape[1]))
    np.add.at(sums, places, differences)
    gain = differences.mean(axis=0)
    sizes = np.bincount(places)
    centered = sums - sizes[:, None] * gain
    error = np.sqrt((centered**2).sum(axis=0) * len(labels) / max(len(labels) - 1, 1)) / num_queries
    norm = np.sqrt((sums**2).sum(axis=0))
    moved = norm > 0
    scaled = (sums / np.where(moved, norm, 1)).astype(np.float32)
    signs = np.random.default_rng(seed).integers(0, 2, (NUM_FLIPS, len(labels)), np.int8)
    largest = np.sort(((2 * signs.astype(np.float32) - 1) @ scaled).max(axis=1))
    statistic = scaled.astype(np.float64).sum(axis=0)
    reached = NUM_FLIPS - np.searchsorted(largest, statistic - 1e-6, side="left")
    p_value = np.where(moved, (1 + reached) / (1 + NUM_FLIPS), 1.0)
    return Evidence(gain, error, p_value)


def choose(
    found: Evidence, differences: Floats, also: Floats, *, level: float, standard: int
) -> int:
    """The best of the candidates that are proven better, 0 (raw) where none is.

    Rule of one standard error: the standard candidate, if proven, gives way only to one that beats
    it by more than the standard error of their difference. What is level is not told apart by
    noise.

    Args:
      found: per candidate, raw first.
      differences: [num_queries, num_candidates], gains of each query.
      also: [num_candidates], a second gain that must not be a loss.
      level: of the error, over all candidates.
      standard: a candidate that is preferred among equals.
    """
    proven = (found.p_value <= level) & (found.gain > 0) & (also > 0)
    proven[0] = False
    if not proven.any():
        return 0
    best = int(np.where(proven, found.gain, -np.inf).argmax())
    lead = differences[:, best] - differences[:, standard]
    return standard if proven[standard] and not leads(lead) else best


def leads(differences: Floats) -> bool:
    """Whether the mean difference is more than one standard error."""
    return bool(differences.mean() > differences.std() / np.sqrt(len(differences)))
