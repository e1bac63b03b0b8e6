"""Studies over many draws of banks, in pieces: planned by `tuning`, done here and kept."""

import argparse
import hashlib
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.studies.quality import LANGUAGES
from benchmarks.studies.tuning import Cell, plan
from benchmarks.support.common import machine
from dbnorm_jax._cli.reading.sets import EvaluationSet

Planned = tuple[Cell, int, Callable[[], EvaluationSet]]


def options(text: str, sizes: Sequence[str], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads what to run."""
    return parser(text, sizes).parse_args(arguments)


def parser(text: str, sizes: Sequence[str]) -> argparse.ArgumentParser:
    """What every study asks for."""
    made = argparse.ArgumentParser(description=text.splitlines()[0])
    made.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    made.add_argument("--no-emoji", action="store_true", help="given sets only")
    made.add_argument("--draws", type=int, default=2)
    made.add_argument("--bank-sizes", nargs="+", default=list(sizes))
    made.add_argument("--cache", type=Path, help="folder where draws are kept")
    made.add_argument("--seconds", type=float, default=math.inf, help="begin no draw after so long")
    return made


def collected(
    name: str,
    kind: Any,
    run_draw: Callable[[EvaluationSet, int], Any],
    asked: argparse.Namespace,
    more: Iterable[Planned] = (),
) -> dict[Cell, list[Any]]:
    """All draws by cell; those done where time ran out (with a cache, the next run goes on).

    Args:
      name: of the study, for its files.
      kind: the NamedTuple that `run_draw` returns.
      run_draw: of an evaluation set and the number of the draw.
      asked: the options.
      more: draws beside those of `benchmarks.studies.tuning`, first in order.
    """
    print(machine())
    if asked.cache is not None:
        asked.cache.mkdir(parents=True, exist_ok=True)
    sizes = [None if size == "all" else int(size) for size in asked.bank_sizes]
    found: dict[Cell, list[Any]] = defaultdict(list)
    started, previous = time.monotonic(), None
    planned = plan(asked.sets, sizes, asked.draws, () if asked.no_emoji else LANGUAGES)
    for cell, number, make in itertools.chain(more, planned):
        path = (
            None
            if asked.cache is None
            else asked.cache / _file((name, *kind._fields), cell, number)
        )
        if path is not None and path.exists():
            with np.load(path) as archive:
                found[cell].append(kind(**archive))
            continue
        if time.monotonic() - started > asked.seconds:
            print(f"stopped by --seconds after {sum(map(len, found.values()))} draws")
            break
        if cell != previous:
            jax.clear_caches()  # a process may map only so many programs
            previous = cell
        draw = run_draw(make(), number)
        found[cell].append(draw)
        if path is not None:
            np.savez_compressed(path, **draw._asdict())
    return found


def _file(name: tuple[str, ...], cell: Cell, number: int) -> str:
    return hashlib.sha256(f"{name} {cell} {number}".encode()).hexdigest()[:16] + ".npz"
