"""What reading costs: rows from a folder of shards against numpy.load of one file, and qrels.

    python -m benchmarks.speed.reading [--rows 1000000] [--dim 512] [--shards 100]
        [--lines 1000000] [--repetitions 5]

The shards hold the bytes of the one file. Qrels of `--lines` lines name queries and items out of a
tenth and all of as many ids; their time is that of `read_relevant`, ids looked up.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support import inputs, report
from benchmarks.support.common import interleaved, ratio
from benchmarks.support.report import Figure, Target
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.names import Labels
from dbnorm_jax._cli.reading.relevant import read_relevant
from dbnorm_jax._cli.reading.single import read_floats

SIZES = {"rows": 1_000_000, "dim": 512, "shards": 100, "lines": 1_000_000, "repetitions": 5}
LARGEST = 1.3  # of the shards against the one file
LONGEST = 5.0  # seconds for a million lines


def _of_shards(
    folder: Path, rows: int, dim: int, shards: int
) -> dict[str, Callable[[], np.ndarray[Any, Any]]]:
    whole, parts = folder / "whole.npy", folder / "img_emb"
    parts.mkdir()
    array = inputs.unit_rows(0, rows, dim)
    np.save(whole, array)
    for number, part in enumerate(np.array_split(array, shards)):
        np.save(parts / f"img_emb_{number}.npy", part)
    return {
        "numpy.load": lambda: np.load(whole),
        "shards": lambda: np.asarray(read_floats(Source("GALLERY", parts))),
    }


def _of_qrels(folder: Path, lines: int) -> Callable[[], Any]:
    random, source = np.random.default_rng(0), Source("--relevant", folder / "qrels.txt")
    sizes = max(lines // 10, 1), lines
    pairs = zip(*(random.integers(0, size, lines) for size in sizes), strict=True)
    source.path.write_text("".join(f"q{query} 0 d{item} 1\n" for query, item in pairs), "utf-8")
    ids = [
        Labels(source, np.array([f"{letter}{row}" for row in range(size)], object))
        for letter, size in zip("qd", sizes, strict=True)
    ]
    return lambda: read_relevant(source, *sizes, *ids).csr


def run(rows: int, dim: int, shards: int, lines: int, repetitions: int) -> list[report.Record]:
    """One table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = interleaved(_of_shards(folder, rows, dim, shards), repetitions)
        against, target = found["numpy.load"], Target(high=LARGEST)
        figures = [ratio("shards", found["shards"], against, "x numpy.load", target)]
        timing = interleaved({"qrels": _of_qrels(folder, lines)}, repetitions)["qrels"]
    target = Target(high=LONGEST * lines / 1_000_000)
    figures.append(Figure("qrels", float(np.median(timing.seconds)), "s", target))
    title = f"reading: {rows} x {dim} from {shards} shards, {lines} lines of qrels"
    sizes = {"rows": rows, "dim": dim, "shards": shards, "lines": lines}
    return [report.Record("reading", title, sizes | {"repetitions": repetitions}, figures)]


if __name__ == "__main__":
    report.command(__doc__, run, SIZES)
