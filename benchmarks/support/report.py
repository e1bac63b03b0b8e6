"""Figures with targets, their tables and JSON lines. Imports no JAX by itself."""

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support import environment

# Where lines of JSON and pictures go, unless told otherwise; git does not see it.
RESULTS = environment.ROOT / "benchmark-results"


# --- figures -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """A range that a figure should lie in."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if math.isinf(self.high) else f"{self.low:g} .. {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured number: a ratio with its spread, or a plain one.

    A ratio's value is the median over repetitions; it meets its target only if the ratio of the
    shortest times does, too.
    """

    name: str
    value: float
    unit: str
    target: Target | None = None
    of_minima: float | None = None
    low: float | None = None  # quartiles of the ratios over repetitions
    high: float | None = None
    seconds: float | None = None  # the shortest
    gflops: float | None = None  # of the inner products alone, in that time
    cores: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether it lies in its target; None without one."""
        if self.target is None:
            return None
        values = [self.value] if self.of_minima is None else [self.value, self.of_minima]
        return all(self.target.low <= value <= self.target.high for value in values)

    def as_json(self) -> dict[str, Any]:
        """Plain values, without those that are not there."""
        found = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None
        }
        if self.target is not None:
            found |= {"target": str(self.target), "met": self.met}
        return found


@dataclasses.dataclass(frozen=True)
class Record:
    """The figures of one table."""

    topic: str
    title: str
    sizes: Mapping[str, Any]
    figures: Sequence[Figure]
    notes: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """One JSON line's worth, with machine, versions and commit."""
        return {
            "topic": self.topic,
            "title": self.title,
            "sizes": dict(self.sizes),
            "figures": [figure.as_json() for figure in self.figures],
            "notes": list(self.notes),
            "environment": environment.describe(),
        }


# --- tables ------------------------------------------------------------------------------------

_VERDICTS = {True: "met", False: "not met", None: ""}


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _plain(value: float) -> str:
    return (
        f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"
    )


def table(record: Record) -> list[str]:
    """Title, one line per figure, notes."""
    width = max((len(figure.name) for figure in record.figures), default=0)
    unit = max((len(figure.unit) for figure in record.figures), default=0)
    timed = any(figure.seconds is not None for figure in record.figures)
    header = f"{'':{width}}"
    if timed:
        header += f"{'min s':>9}{'GFLOP/s':>9}{'cores':>7}{'of minima':>11}"
    header += f"{'median' if timed else '':>9}{'quartiles' if timed else '':>14}"
    lines = [record.title, f"{header}".rstrip()]
    for figure in record.figures:
        line = f"{figure.name:{width}}"
        if timed:
            line += (
                f"{_optional(figure.seconds, '9.4f'):>9}{_optional(figure.gflops, '.0f'):>9}"
                f"{_optional(figure.cores, '.2f'):>7}{_optional(figure.of_minima, '.2f'):>11}"
            )
        spread = "" if figure.low is None else f"{figure.low:.2f}-{figure.high:.2f}"
        line += f"{_plain(figure.value):>9}{spread:>14}  {figure.unit:<{unit}}"
        if figure.target is not None:
            line += f"  {figure.target!s:<14} {_VERDICTS[figure.met]}"
        lines.append(line.rstrip())
    return [*lines, *(f"({note})" for note in [*record.notes, *_unrest(record)])]


def _unrest(record: Record) -> list[str]:
    """Whether something else seems to have run beside the base."""
    cores = os.cpu_count() or 1
    bare = [each.cores for each in record.figures if each.name == "bare" and each.cores is not None]
    return [
        f"bare kept {busy:.2f} of {cores} cores busy: look again when the machine is idle"
        for busy in bare
        if busy < 0.9 * cores
    ]


def target_table(records: Sequence[Record]) -> list[str]:
    """Target beside measured, for all figures that have one."""
    rows = [
        (f"{record.topic}: {figure.name}", figure)
        for record in records
        for figure in record.figures
        if figure.target is not None
    ]
    width = max((len(name) for name, _ in rows), default=0)
    unit = max((len(figure.unit) for _, figure in rows), default=0)
    lines = [f"{'':{width}}  {'target':<14}{'measured':>9}{'of minima':>11}"]
    for name, figure in rows:
        lines.append(
            f"{name:{width}}  {figure.target!s:<14}{_plain(figure.value):>9}"
            f"{_optional(figure.of_minima, '.2f'):>11}  {figure.unit:<{unit}}  "
            f"{_VERDICTS[figure.met]}"
        )
    num_met = sum(figure.met for _, figure in rows)
    return [*(line.rstrip() for line in lines), f"{num_met} of {len(rows)} met"]


# --- commands ----------------------------------------------------------------------------------


def write(records: Sequence[Record], path: Path) -> None:
    """Appends one JSON line per record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record.as_json()) + "\n" for record in records)


def command(
    description: str, run: Callable[..., Iterable[Record]], defaults: Mapping[str, int]
) -> None:
    """A topic's command line: integers with defaults, and a file for JSON lines."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    options = vars(parser.parse_args())
    path = options.pop("json")
    print(environment.summary(), end="\n\n")
    for record in run(**options):  # those that come one by one are kept even if the next fails
        print(*table(record), sep="\n", end="\n\n", flush=True)
        if path is not None:
            write([record], path)
