"""A long search from files under a fixed memory limit: nothing lost, nothing reordered.

    python -m benchmarks.speed.load [--queries 100000] [--items 1000000] [--dim 128]
        [--limit-mib 512]

`dbnorm search` under a correction, in a process whose data (RLIMIT_DATA, all of it: interpreter,
compiler, threads) may not exceed the limit; it says whether the gallery would fit there. Each query
is planted near one item, so that every row of the result is checked by its first neighbor; a sample
is checked whole against NumPy in float64, and the first queries are searched again in other blocks.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.support import environment, inputs, report

SIZES = {
    "queries": 100_000,
    "items": 1_000_000,
    "dim": 128,
    "limit_mib": 512,
    "sample": 200,
    "again": 5_000,
}
K = 10
BLOCK_SIZES = (8192, 3000)  # of the whole search, and of the first queries again
NOISE = 0.3  # length of what parts a query from its item
LARGEST_BIAS = 0.05  # far below the gap between that item and all others
ROUNDING = 2e-6  # of scores of unit vectors


# --- inputs --------------------------------------------------------------------------------------


def make(folder: Path, queries: int, items: int, dim: int, again: int) -> np.ndarray:
    """Writes files; returns the item that each query is near."""
    import dbnorm_jax as dbn

    gallery = np.lib.format.open_memmap(folder / "gallery.npy", "w+", np.float32, (items, dim))
    slab = 2**16
    for start in range(0, items, slab):
        part = gallery[start : start + slab]
        part[:] = inputs.unit_rows(start, len(part), dim)
    random = np.random.default_rng(0)
    planted = random.integers(0, items, queries)
    rows = inputs.near(1, np.asarray(gallery[planted]), queries, NOISE)
    np.save(folder / "queries.npy", rows)
    np.save(folder / "first.npy", rows[:again])
    bias = random.uniform(0, LARGEST_BIAS, (1, items)).astype(np.float32)
    active = random.random((1, items)) < 0.5
    dbn.save(folder / "correction.npz", dbn.Correction(bias, active))
    return planted


# --- a search in a process of its own ------------------------------------------------------------


def search(folder: Path, queries: str, block_size: int, limit_mib: int) -> dict[str, object]:
    """Runs the command; peak MiB that are not of files, and seconds."""
    environment.limit_data(limit_mib)
    from benchmarks.speed.out_of_core import watched
    from dbnorm_jax._cli.commands.main import main

    fits = True
    with contextlib.suppress(MemoryError):
        fits = False
        held = np.array(np.load(folder / "gallery.npy", mmap_mode="r"))
        fits = bool(held.size)
        del held
    command = ["search", folder / queries, folder / "gallery.npy", "--similarity", "dot"]
    command += ["--correction", folder / "correction.npz", "-k", K, "--block-size", block_size]
    command += ["--output", folder / f"found-{block_size}.npz"]
    code: object = 0
    started = time.monotonic()
    with watched() as peak, contextlib.redirect_stdout(io.StringIO()):
        try:
            main([str(word) for word in command])
        except SystemExit as stopped:
            code = stopped.code
    if code:
        sys.exit(f"dbnorm search ended with {code}")
    return {"peak": peak[0], "seconds": time.monotonic() - started, "fits": fits}


# --- what it found -------------------------------------------------------------------------------


def exact(folder: Path, rows: np.ndarray) -> np.ndarray:
    """[len(rows), items] corrected scores in float64, by NumPy."""
    import dbnorm_jax as dbn

    gallery = np.load(folder / "gallery.npy", mmap_mode="r")
    found = np.empty((len(rows), len(gallery)))
    for start in range(0, len(gallery), 2**16):
        part = gallery[start : start + 2**16].astype(np.float64)
        found[:, start : start + len(part)] = rows.astype(np.float64) @ part.T
    correction = dbn.load(folder / "correction.npz")
    bias, active = (np.asarray(part)[0] for part in (correction.bias, correction.active))
    found -= active[found.argmax(axis=1)][:, None] * bias.astype(np.float64)
    return found


def wrong_in_sample(folder: Path, sample: int, scores: np.ndarray, indices: np.ndarray) -> int:
    """How many of some queries have another list than NumPy's, beyond rounding."""
    queries = np.load(folder / "queries.npy", mmap_mode="r")
    wrong = 0
    places = np.linspace(0, len(queries) - 1, sample).astype(int)
    for part in np.array_split(places, max(sample // 20, 1)):
        expected = exact(folder, queries[part])
        best = -np.sort(np.partition(-expected, K - 1, axis=1)[:, :K], axis=1)
        own = np.take_along_axis(expected, indices[part].astype(np.int64), axis=1)
        distinct = np.array([len(set(row.tolist())) == K for row in indices[part]])
        # The score of each place is the best there, and is the score of the item named there.
        fits = (abs(scores[part] - best) <= ROUNDING) & (abs(own - best) <= ROUNDING)
        wrong += int((~(fits.all(axis=1) & distinct)).sum())
    return wrong


def digest(array: np.ndarray) -> str:
    """SHA-256 of the values, shortened."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _ulps(first: np.ndarray, second: np.ndarray) -> float:
    return float((abs(first - second) / np.spacing(np.maximum(abs(first), abs(second)))).max())


def run(
    queries: int, items: int, dim: int, limit_mib: int, sample: int, again: int
) -> list[report.Record]:
    """One table."""
    again, sample = min(again, queries), min(sample, queries)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted = make(folder, queries, items, dim, again)
        searches, results = [], []
        for file, size in zip(("queries.npy", "first.npy"), BLOCK_SIZES, strict=True):
            arguments = ("--case", folder, file, size, limit_mib)
            searches.append(environment.child("benchmarks.speed.load", *arguments))
            with np.load(folder / f"found-{size}.npz") as found:
                results.append((found["scores"], found["indices"]))
        (scores, indices), (more_scores, more_indices) = results
        wrong = wrong_in_sample(folder, sample, scores, indices)
    lost = queries - len(indices) if len(indices) != queries else 0
    other = int((indices[:, 0] != planted[: len(indices)]).sum()) + lost
    # Places whose neighbors in the list score the same but for rounding may change.
    gaps = np.diff(scores[:again], axis=1, prepend=np.inf, append=-np.inf)
    clear = (-gaps[:, :-1] > 2 * ROUNDING) & (-gaps[:, 1:] > 2 * ROUNDING)
    differing = indices[:again] != more_indices
    zero = report.Target(high=0)
    figures = [
        report.Figure("queries whose planted item is not first", other, "queries", zero),
        report.Figure(f"of {sample}: other lists than NumPy, float64", wrong, "queries", zero),
        report.Figure(
            f"places that differ in blocks of {BLOCK_SIZES[1]}",
            int((differing & clear).sum()),
            f"of {differing.size}",
            zero,
        ),
        report.Figure("  of those within rounding of a neighbor", int(differing.sum()), "places"),
        report.Figure("  scores, largest difference", _ulps(scores[:again], more_scores), "ulps"),
        report.Figure(
            "largest anonymous memory",
            max(float(found["peak"]) for found in searches),
            "MiB",
            report.Target(high=limit_mib),
        ),
    ]
    gigaflops = 2 * queries * items * dim / float(searches[0]["seconds"]) / 1e9
    notes = (
        "loading the gallery there " + ("fits" if searches[0]["fits"] else "fails"),
        f"SHA-256 of indices {digest(indices)}, of scores {digest(scores)}; of the first {again} "
        f"queries in blocks of {BLOCK_SIZES[0]}: {digest(indices[:again])}, "
        f"{digest(scores[:again])}; of {BLOCK_SIZES[1]}: {digest(more_indices)}, "
        f"{digest(more_scores)}",
        f"{searches[0]['seconds']:.0f} s, {gigaflops:.0f} GFLOP/s of the products alone",
    )
    sizes = {"queries": queries, "items": items, "dim": dim, "limit_mib": limit_mib}
    title = f"load: {queries} queries x {items} items x dim {dim}, k={K}, {limit_mib} MiB of data"
    return [report.Record("load", title, sizes, figures, notes)]


def main() -> None:
    """The table, or one process's part of it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--case", nargs=4)
    options, _ = parser.parse_known_args()
    if options.case is None:
        report.command(__doc__, run, SIZES)
        return
    folder, queries, block_size, limit = options.case
    print(json.dumps(search(Path(folder), queries, int(block_size), int(limit))))


if __name__ == "__main__":
    main()
