"""The corrections that tuning chooses from.

    raw                  s
    is,     dis          s - [a] w bias(beta)               dis: only where the gate is open
    nnn,    gated nnn    s - [a] w mean of the k largest    w = 1/2: CSLS
    dualis, dualdis      s - [a] w bias_Q(beta) - [a'] w' bias_G(beta')

Weights stand apart from the temperatures. Inverse temperatures are multiples of 1/spread, where the
spread is the standard deviation of similarities within a row: the grid has no unit.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dbnorm_jax._src.tuning.choice import GATED, METHODS

_BETAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_DUAL_BETAS = (1.0, 2.0, 4.0, 8.0)
_GALLERY_BETAS = (0.5, 2.0, 8.0)
_NEIGHBORS = (1, 3, 10, 30, 100)
_WEIGHTS = (0.25, 0.5, 0.75, 1.0)
_DUAL_WEIGHTS = ((0.5, 0.25), (0.5, 0.5), (1.0, 0.25), (1.0, 0.5))

# What is preferred among equals: IS at twice 1/spread (for cosines, about the usual 20), and the
# weight that is usual for NNN.
_STANDARD = ("is", 2.0, 0.75)

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
# Method, beta of the query and the gallery bank, k, weights of the query and the gallery bank.
Row = tuple[str, float, float, int, float, float]


class Candidates(NamedTuple):
    """One entry per candidate; 0 where a method has no such parameter."""

    method: Integers  # [num_candidates] place in METHODS
    beta_query: Floats  # [num_candidates], 1/[unit of similarity]
    beta_gallery: Floats  # [num_candidates]
    k: Integers  # [num_candidates]
    weight_query: Floats  # [num_candidates]
    weight_gallery: Floats  # [num_candidates]

    @property
    def gated(self) -> npt.NDArray[np.bool_]:
        """[num_candidates], which act only where a gate is open."""
        return np.isin(self.method, [METHODS.index(name) for name in GATED])

    def row(self, index: int) -> Row:
        """One candidate as a tuple, what `from_rows` takes."""
        method, query, gallery, k, *weights = (values[index].item() for values in self)
        return (METHODS[method], query, gallery, k, weights[0], weights[1])

    def with_row(self, row: Row) -> "Candidates":
        """One more candidate, the last."""
        pairs = zip(self, from_rows([row]), strict=True)
        return Candidates(*(np.concatenate(pair) for pair in pairs))


def grid(query_spread: float, gallery_spread: float) -> Candidates:
    """Raw first, then every family.

    Args:
      query_spread: within a row of query bank x gallery, in the unit of similarity.
      gallery_spread: within a row of gallery bank x gallery.
    """
    rows: list[Row] = [("raw", 0, 0, 0, 0, 0)]
    for name, beta, weight in itertools.product(("is", "dis"), _BETAS, _WEIGHTS):
        rows.append((name, beta / query_spread, 0, 0, weight, 0))
    for name, k, weight in itertools.product(("nnn", "gated nnn"), _NEIGHBORS, _WEIGHTS):
        rows.append((name, 0, 0, k, weight, 0))
    for name, beta, other, weights in itertools.product(
        ("dualis", "dualdis"), _DUAL_BETAS, _GALLERY_BETAS, _DUAL_WEIGHTS
    ):
        rows.append((name, beta / query_spread, other / gallery_spread, 0, *weights))
    return from_rows(rows)


def standard(table: Candidates, query_spread: float) -> int:
    """The row of the standard candidate in a grid."""
    name, beta, weight = _STANDARD
    found = (
        (table.method == METHODS.index(name))
        & np.isclose(table.beta_query * query_spread, beta)
        & (table.weight_query == weight)
    )
    return int(found.argmax())


def from_rows(rows: Sequence[Row]) -> Candidates:
    """Candidates from one tuple each."""
    names, *columns = zip(*rows, strict=True)
    betas, others, neighbors, weights, gallery_weights = columns
    return Candidates(
        np.asarray([METHODS.index(name) for name in names], np.int32),
        np.asarray(betas, np.float32),
        np.asarray(others, np.float32),
        np.asarray(neighbors, np.int32),
        np.asarray(weights, np.float32),
        np.asarray(gallery_weights, np.float32),
    )
