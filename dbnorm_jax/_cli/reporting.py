"""The files of a report, and where they went."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from dbnorm_jax._cli.output import Content
from dbnorm_jax._cli.table import Report, to_csv, to_json

FILES = ("results.csv", "results.json", "k_occurrence.png", "methods.png")


def require(*packages: str) -> None:
    """Raises, before any work, where an optional package is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def contents(report: Report) -> dict[str, Content]:
    """What each of the files will hold."""
    from dbnorm_jax._cli import plots

    made = (
        lambda: to_csv(report).encode(errors="replace"),
        lambda: to_json(report).encode(errors="replace"),
        lambda: plots.k_occurrence_png(report),
        lambda: plots.methods_png(report),
    )
    return dict(zip(FILES, made, strict=True))


def print_paths(paths: Sequence[Path], *, to_stderr: bool = False) -> None:
    """One line per written file."""
    for path in paths:
        print(f"wrote {path}", file=sys.stderr if to_stderr else sys.stdout)
