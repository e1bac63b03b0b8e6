"""The corrections that tuning chooses from, raw and all points of the grids, and the fit of one.

Weights stand apart from the temperatures. Inverse temperatures are multiples of 1/spread, where the
spread is the standard deviation of similarities within a row: the grid has no unit.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.corrections.table import TABLE, Row, Source
from dbnorm_jax._src.tuning.choice import COLUMNS, Choice, methods

# What is preferred among equals: IS at twice 1/spread (for cosines, about the usual 20), and the
# weight that is usual for NNN.
_STANDARD = ("is", 2.0, 0.75)

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
# Method, beta of the query and the gallery bank, k, weights of the query and the gallery bank.
Candidate = tuple[str, float, float, int, float, float]

RAW: Candidate = ("raw", 0, 0, 0, 0, 0)


class Candidates(NamedTuple):
    """One entry per candidate; 0 where a method has no such parameter."""

    method: Integers  # [num_candidates] place in methods()
    beta_query: Floats  # [num_candidates], 1/[unit of similarity]
    beta_gallery: Floats  # [num_candidates]
    k: Integers  # [num_candidates]
    weight_query: Floats  # [num_candidates]
    weight_gallery: Floats  # [num_candidates]

    def row(self, index: int) -> Candidate:
        """One candidate as a tuple, what `from_rows` takes."""
        method, query, gallery, k, *weights = (values[index].item() for values in self)
        return (methods()[method], query, gallery, k, weights[0], weights[1])


def column(parameter: str) -> str:
    """Where a parameter of a method stands: with one bank, the weight is that bank's."""
    return "weight_query" if parameter == "weight" else parameter


def arguments(row: Row, columns: Mapping[str, Any]) -> dict[str, Any]:
    """What the fit of a method is called with: the columns that it has, defaults for the rest."""
    names = (parameter.name for parameter in row.parameters)
    return row.defaults | {name: columns[column(name)] for name in names if column(name) in columns}


def grid(query_spread: float, gallery_spread: float) -> Candidates:
    """Raw first, then every method; spreads are within a row of either bank x gallery."""
    spreads = {"beta_query": query_spread, "beta_gallery": gallery_spread}
    points = (_points(name, spreads) for name in methods()[1:])
    return from_rows([RAW, *itertools.chain.from_iterable(points)])


def _points(name: str, spreads: Mapping[str, float]) -> Iterator[Candidate]:
    points = TABLE[name].grid
    if unknown := {*map(column, points)} - {*COLUMNS}:
        raise ValueError(
            f"the grid of {name!r} must be of {COLUMNS} or 'weight', got {sorted(unknown)}"
        )
    for values in itertools.product(*points.values()):
        given = dict(zip(map(column, points), values, strict=True))
        query, gallery, k, *weights = (given.get(c, 0) / spreads.get(c, 1) for c in COLUMNS)
        yield (name, query, gallery, int(k), weights[0], weights[1])


def standard(table: Candidates, query_spread: float) -> int:
    """The row of the standard candidate in a grid."""
    name, beta, weight = _STANDARD
    found = (
        (table.method == methods().index(name))
        & np.isclose(table.beta_query * query_spread, beta)
        & (table.weight_query == weight)
    )
    return int(found.argmax())


def from_rows(rows: Sequence[Candidate]) -> Candidates:
    """Candidates from one tuple each."""
    names, *columns = zip(*rows, strict=True)
    parameters: list[Any] = [
        np.asarray(column, np.int32 if name == "k" else np.float32)
        for name, column in zip(COLUMNS, columns, strict=True)
    ]
    return Candidates(np.asarray([methods().index(name) for name in names], np.int32), *parameters)


def fit_chosen(choice: Choice, source: Source) -> Correction:
    """The correction that was chosen, if it is not raw; `choice` is concrete."""
    method, row = TABLE[choice.name], int(choice.chosen)
    columns = {name: np.asarray(getattr(choice, name))[row].item() for name in COLUMNS}
    fitted: Correction = method.fit(source, **arguments(method, columns))
    return fitted
