"""The formulas that the library computes, in NumPy, written from the formulas alone: an oracle.

It shares no code with the library or with `reference.py`, and computes in the precision of its
input: float64, or `numpy.longdouble` where results of float64 are judged. Rows are queries or bank
items, columns gallery items.
"""

import dataclasses

import numpy as np


def similarities(name, rows, columns):
    """[num_rows, num_columns] of the function of this name."""
    if name == "cosine_similarity":
        rows, columns = unit(rows), unit(columns)
    if name == "negative_squared_euclidean":
        squares = (rows**2).sum(1)[:, None] + (columns**2).sum(1)[None]
        return np.minimum(2 * (rows @ columns.T) - squares, 0)
    return rows @ columns.T


def unit(rows):
    """Rows over their lengths; scaled first, so that no square leaves the range."""
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def excluded(rows, num_gallery):
    """[num_rows, num_gallery] bool, True where a row names the column; -1 names none."""
    rows = np.asarray(rows).reshape(len(rows), -1)
    return (rows[:, :, None] == np.arange(num_gallery)).any(axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Bank:
    """Similarities [num_bank, num_gallery] of a bank, weights [num_bank], and what enters."""

    similarities: np.ndarray
    weights: np.ndarray
    entered: np.ndarray  # [num_bank, num_gallery] bool, False in rows of weight 0

    def part(self, rows):
        return Bank(self.similarities[rows], self.weights[rows], self.entered[rows])

    @property
    def mass(self):
        return (self.weights[:, None] * self.entered).sum(axis=0)

    @property
    def top(self):
        """[num_gallery] the largest similarity that enters; 0 where none does."""
        top = np.where(self.entered, self.similarities, -np.inf).max(axis=0, initial=-np.inf)
        return np.where(np.isfinite(top), top, 0)

    def _relative(self, beta):
        """`w_b / sum w` and `beta (s_b - top)`, 0 where nothing enters."""
        mass = self.mass
        shares = self.weights[:, None] * self.entered / np.where(mass > 0, mass, 1)
        return shares, np.where(self.entered, beta * (self.similarities - self.top), 0)

    def log_mean(self, beta):
        """`log(sum_b w_b exp(beta (s_b - top)) / sum w)`, right also where all exponents are small.

        Then the mean is nearly 1, and only its difference from 1 is known well.
        """
        shares, excess = self._relative(beta)
        change = (shares * np.expm1(excess)).sum(axis=0)
        mean = (shares * np.exp(excess)).sum(axis=0)
        direct = np.log(np.where(mean > 0, mean, 1))
        return np.where(change > -0.5, np.log1p(np.maximum(change, -0.5)), direct)

    def bias(self, beta):
        """`(log Z - log mass) / beta`; 0 in empty columns."""
        return self.top + self.log_mean(beta) / beta

    def log_normalizer(self, beta):
        """`log Z = log sum_b w_b exp(beta s_b)`; -inf in empty columns."""
        mass = self.mass
        log_mass = np.log(np.where(mass > 0, mass, 1))
        return np.where(mass > 0, beta * self.top + self.log_mean(beta) + log_mass, -np.inf)

    def responsibilities(self, beta):
        """`w_b exp(beta s_b) / Z`; 0 in empty columns."""
        shares, excess = self._relative(beta)
        terms = shares * np.exp(excess)
        total = terms.sum(axis=0)
        return terms / np.where(total > 0, total, 1)

    def occurrences(self, k, error=0.0):
        """(fewest, most) [num_gallery]: rows that have the column among their k nearest.

        `error` [num_bank, num_gallery] is how far similarities may be off; where all is exact,
        ties go to the lowest column and both are one.
        """
        counted = self.entered
        if not np.any(error):
            values = np.where(counted, self.similarities, -np.inf)
            nearest = np.argsort(-values, axis=1, kind="stable")[:, :k]
            found = np.zeros(counted.shape, bool)
            np.put_along_axis(found, nearest, values=True, axis=1)
            count = (found & counted).sum(axis=0)
            return count, count
        low = np.where(counted, self.similarities - error, -np.inf)
        high = np.where(counted, self.similarities + error, -np.inf)
        possible = high >= _largest(low, k)[:, None]
        certain = low > _largest(high, k + 1)[:, None]
        return (certain & counted).sum(axis=0), (possible & counted).sum(axis=0)

    def largest(self, k):
        """[k, num_gallery] the largest similarities of each column, -inf where there are fewer."""
        values = np.where(self.entered, self.similarities, -np.inf)
        filling = np.full((k, values.shape[1]), -np.inf, values.dtype)
        return -np.sort(-np.concatenate([values, filling]), axis=0)[:k]


def _largest(values, k):
    """[num_rows] the k-th largest of each row, -inf where there are fewer."""
    if k > values.shape[1]:
        return np.full(len(values), -np.inf)
    return -np.partition(-values, k - 1, axis=1)[:, k - 1]


def mean_of_largest(largest):
    """[num_gallery] `r_B`, the mean of the places filled; 0 where none is."""
    filled = np.isfinite(largest)
    return np.where(filled, largest, 0).sum(axis=0) / np.maximum(filled.sum(axis=0), 1)


def gates(similarities, active, seen, error=0.0):
    """([num_queries, num_terms] is the nearest item active, [num_queries] is that beyond doubt)."""
    values = np.where(seen, similarities, -np.inf)
    nearest = values.argmax(axis=1)  # the first of equals
    there = seen.any(axis=1)
    opened = active[:, nearest].T & there[:, None]
    if not np.any(error):
        return opened, np.ones(len(values), bool)
    candidate = seen & (values + error >= (values - error).max(axis=1, keepdims=True))
    same = active[None] == active[:, nearest].T[:, :, None]
    return opened, (same | ~candidate[:, None]).all(axis=(1, 2))


def top_k(scores, seen, k):
    """[num_queries, k] columns, best first and the lowest of equals; -1 where there are fewer."""
    order = np.argsort(-np.where(seen, scores, -np.inf), axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(seen, order, axis=1), order, -1)


def ranks(scores, right, seen):
    """[num_queries] expected rank of the best right item over all orders of the tied; +inf: none.

    Of one right item and `l` wrong ones in random order `l / 2` stand before it; of the first of
    `r` right ones `l / (r + 1)` do.
    """
    right, wrong = right & seen, ~right & seen
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    above = (wrong & (scores > best)).sum(axis=1)
    level = (wrong & (scores == best)).sum(axis=1)
    equal = (right & (scores == best)).sum(axis=1)
    return np.where(right.any(axis=1), 1 + above + level / (equal + 1), np.inf)


def rank_limits(scores, error, right, seen, copies):
    """(lowest, highest) [num_queries] expected rank where scores may be off by `error`.

    `copies` [num_gallery] numbers items that are alike: those of one right item are level with it.
    """
    right, wrong = right & seen, ~right & seen
    low, high = scores - error, scores + error
    at_least = np.where(right, low, -np.inf).max(axis=1, keepdims=True)
    at_most = np.where(right, high, -np.inf).max(axis=1, keepdims=True)
    alone = right.sum(axis=1) == 1
    twin = wrong & (copies[None] == copies[right.argmax(axis=1)][:, None]) & alone[:, None]
    level = twin.sum(axis=1) / 2
    certain = 1 + (wrong & ~twin & (low > at_most)).sum(axis=1) + level
    possible = 1 + (wrong & ~twin & (high >= at_least)).sum(axis=1) + level
    there = right.any(axis=1)
    return np.where(there, certain, np.inf), np.where(there, possible, np.inf)
