"""The corrections that tuning chooses from: raw and all points of the grids of the table.

Weights stand apart from the temperatures. Inverse temperatures are multiples of 1/spread, and
temperatures of the spread, the standard deviation of similarities within a row: the grid has no
unit.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dbnorm_jax._src.corrections.table import GALLERY_BANK, TABLE, Row
from dbnorm_jax._src.tuning.choice import COLUMNS, OWN, RAW, column, methods

# Of a bias of the caller's own.
_OWN_WEIGHTS = (0.25, 0.5, 1.0)
Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Candidate = tuple[str, Mapping[str, float]]  # the method, and those of COLUMNS that it has


class Candidates(NamedTuple):
    """One entry per candidate; 0 where a method has no such parameter."""

    method: Integers  # [num_candidates] place in methods()
    beta_query: Floats  # [num_candidates], 1/[unit of similarity]
    beta_gallery: Floats  # [num_candidates]
    temperature: Floats  # [num_candidates], unit of similarity
    k: Integers  # [num_candidates]
    weight_query: Floats  # [num_candidates]
    weight_gallery: Floats  # [num_candidates]
    half_life: Floats  # [num_candidates], unit of the times
    weight_own: Floats  # [num_candidates]

    def row(self, index: int) -> Candidate:
        """One candidate, what `from_rows` takes."""
        values = {name: getattr(self, name)[index].item() for name in COLUMNS}
        return methods()[self.method[index]], {name: one for name, one in values.items() if one}


def arguments(row: Row, columns: Mapping[str, Any]) -> dict[str, Any]:
    """What the fit of a method is called with: the columns that it has, defaults for the rest."""
    names = (parameter.name for parameter in row.parameters)
    return row.defaults | {name: columns[column(name)] for name in names if column(name) in columns}


def grid(
    spread: float, *, mergeable: bool = False, half_lives: Sequence[float] = (), own: bool = False
) -> Candidates:
    """Raw first, then every method; the spread is within a row of query bank x gallery.

    `mergeable` leaves those that statistics alone fit. IS, a mean over the bank, is tried with
    every half-life too; with `own` all are, with a bias of the caller's own at some weights.
    """
    names = [name for name in TABLE if TABLE[name].grid]
    names = [name for name in names if TABLE[name].by_statistics or not mergeable]
    rows = [row for name in names for row in _points(name, spread)]
    decayed = [row for row in rows if "beta_query" in row[1]]
    rows += [(name, {**row, "half_life": h}) for h in half_lives for name, row in decayed]
    with_own = [(name, {**row, "weight_own": w}) for w in _OWN_WEIGHTS for name, row in rows]
    alone = [(OWN, {"weight_own": weight}) for weight in _OWN_WEIGHTS]
    return from_rows([(RAW, {}), *rows, *((*alone, *with_own) if own else ())])


def declined(own: bool) -> Candidates:
    """Those of a choice that looked at none: raw, and what it would have looked at."""
    return from_rows([(RAW, {}), *([(OWN, {"weight_own": 1.0})] if own else [])])


def _points(name: str, spread: float) -> Iterator[Candidate]:
    row = TABLE[name]
    allowed = {"beta_query", "temperature", "k", "weight_query", "weight"}
    if unknown := {*row.grid} - allowed:
        raise ValueError(
            f"the grid of {name!r} must be of {sorted(allowed)}, got {sorted(unknown)}"
        )
    if row.gated or (GALLERY_BANK in row.needs and row.by_statistics):
        raise ValueError(f"the grid of {name!r} must be of a method with one bias, without a gate")
    units = {"beta_query": 1 / spread, "temperature": spread}
    for values in itertools.product(*row.grid.values()):
        given = zip(row.grid, values, strict=True)
        yield name, {column(one): value * units.get(one, 1) for one, value in given}


def from_rows(rows: Sequence[Candidate]) -> Candidates:
    """Candidates from one tuple each."""
    parameters: list[Any] = [
        np.asarray(
            [given.get(name, 0) for _, given in rows], np.int32 if name == "k" else np.float32
        )
        for name in COLUMNS
    ]
    return Candidates(
        np.asarray([methods().index(name) for name, _ in rows], np.int32), *parameters
    )
