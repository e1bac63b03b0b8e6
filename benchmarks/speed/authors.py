"""The released code's formulas beside the library, each in a fresh process.

    python -m benchmarks.speed.authors [--queries 5120] [--gallery 51200] [--bank 10240] [--dim 512]

From embeddings to the ten best items of each query: seconds of the first call, so with compilation
here and first-touched memory there, and the largest memory of the whole process while it works.
Making inputs and importing packages is not timed. The released formulas hold whole matrices: at the
sizes above 11 to 14 GB. Where that is not free, queries and gallery are halved, and a note says so.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import released
from benchmarks.support import environment, inputs, report

SIZES = {"queries": 5120, "gallery": 51200, "bank": 10240, "dim": 512, "repetitions": 1}
BETAS = (20.0, 1.0)
K = 1
NUM_BEST = 10
CASES = ("dualis", "dualdis")
TARGETS = {"dualis": 6.0, "dualdis": 12.0}
MEMORY_TARGET = 15.0


def released_best(
    case: str,
    queries: np.ndarray,
    gallery: np.ndarray,
    query_bank: np.ndarray,
    gallery_bank: np.ndarray,
) -> np.ndarray:
    """[num_queries, 10] indices from the released formulas."""
    test, *banks = (rows @ gallery.T for rows in (queries, query_bank, gallery_bank))
    if case == "dualis":
        scores = released.dual_inverted_softmax(*banks, test, BETAS)
    else:
        scores = released.dual_dynamic_inverted_softmax(*banks, test, BETAS, K)
    # Kinder than that code, which sorts whole rows.
    part = np.argpartition(scores, -NUM_BEST, axis=1)[:, -NUM_BEST:]
    order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1)
    return np.take_along_axis(part, order, axis=1)


def library_best(case: str, queries: Any, gallery: Any, query_bank: Any, gallery_bank: Any) -> Any:
    """The same from the library."""
    import dbnorm_jax as dbn

    k = K if case == "dualdis" else 0
    statistics = [
        dbn.stream_bank_statistics(bank, gallery, beta=beta, k=k)
        for bank, beta in zip((query_bank, gallery_bank), BETAS, strict=True)
    ]
    normalizer = (
        dbn.dual_dynamic_inverted_softmax if case == "dualdis" else dbn.dual_inverted_softmax
    )
    return dbn.stream_top_k(queries, gallery, NUM_BEST, normalizer(*statistics)).indices


def make_inputs(queries: int, gallery: int, bank: int, dim: int) -> list[np.ndarray]:
    """Queries, gallery, query bank, gallery bank."""
    rows = (queries, gallery, bank, bank)
    return [inputs.unit_rows(seed, count, dim) for seed, count in enumerate(rows)]


def largest_matrices(queries: int, gallery: int, bank: int) -> float:
    """MiB that the released DualDIS holds at its worst: float32 matrices, and int64 of a sort."""
    return gallery * (2 * bank + queries + bank + 2 * bank + queries) * 4 / 2**20


def measure(who: str, case: str, sizes: dict[str, int], output: Path | None) -> dict[str, float]:
    """First call, second call, and peak memory of this process."""
    if who == "library":
        import jax

        import dbnorm_jax as dbn

        for name in dbn.__all__:  # resolved on first use; importing is not timed
            getattr(dbn, name)
        best, arrays = library_best, [jax.numpy.asarray(rows) for rows in make_inputs(**sizes)]
        jax.block_until_ready(arrays)
    else:
        best, arrays = released_best, make_inputs(**sizes)
    environment.restart_peak()
    started = time.perf_counter()
    found = np.asarray(best(case, *arrays))
    seconds = time.perf_counter() - started
    if output is not None:
        np.save(output, found)
    return {"seconds": seconds, "peak": environment.peak_resident()}


def run(
    queries: int, gallery: int, bank: int, dim: int, repetitions: int
) -> Iterator[report.Record]:
    """Ratios of time and memory, released over ours; one record per case, as it is done."""
    notes = []
    while largest_matrices(queries, gallery, bank) > 0.9 * environment.available_memory():
        queries, gallery = queries // 2, gallery // 2
        notes = [f"scaled down to {queries} x {gallery}: memory is short"]
    sizes = {"queries": queries, "gallery": gallery, "bank": bank, "dim": dim}
    full = all(size >= SIZES[name] for name, size in sizes.items())
    if not full:
        wanted = " x ".join(str(SIZES[name]) for name in sizes)
        notes.append(f"targets are for {wanted}: on less work, compilation is most of our time")
    core = environment.openblas_core()
    for case in CASES:
        found = {who: [] for who in ("library", "released")}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(repetitions):
                for who, results in found.items():
                    arguments = [f"--{name}={size}" for name, size in sizes.items()]
                    output = Path(folder) / f"{who}.npy"
                    variables = {"OPENBLAS_CORETYPE": core} if core else {}
                    results.append(
                        environment.child(
                            "benchmarks.speed.authors",
                            f"--who={who}",
                            f"--case={case}",
                            f"--output={output}",
                            *arguments,
                            variables=variables,
                        )
                    )
            ours, theirs = (np.load(Path(folder) / f"{who}.npy") for who in found)
        agreement = float((ours[:, 0] == theirs[:, 0]).mean())
        agrees = f"{case}: nearest item agrees for {100 * agreement:.2f} % of queries"
        seconds, peaks = (
            {who: np.array([each[field] for each in results]) for who, results in found.items()}
            for field in ("seconds", "peak")
        )
        times = seconds["released"] / seconds["library"]
        figures = [
            *(
                report.Figure(f"{case}, {who}", float(np.median(values)), "s")
                for who, values in seconds.items()
            ),
            report.Figure(
                f"{case}, released / library",
                float(np.median(times)),
                "x ours, time",
                report.Target(low=TARGETS[case]) if full else None,
                low=float(times.min()),
                high=float(times.max()),
            ),
            *(
                report.Figure(f"{case}, {who}", float(np.median(values)), "MiB, process")
                for who, values in peaks.items()
            ),
            report.Figure(
                f"{case}, released / library",
                float(np.median(peaks["released"] / peaks["library"])),
                "x ours, memory",
                report.Target(low=MEMORY_TARGET) if full else None,
            ),
        ]
        shape = f"queries {queries} x gallery {gallery}, banks of {bank}, dim {dim}"
        yield report.Record(
            "authors",
            f"released formulas of {case}: {shape}",
            sizes | {"repetitions": repetitions},
            figures,
            [*notes, agrees],
        )


def main() -> None:
    """The table, or one process's part of it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--who", choices=("library", "released"))
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--output", type=Path)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options, _ = parser.parse_known_args()
    if options.who is None:
        report.command(__doc__, run, SIZES)
        return
    sizes = {name: getattr(options, name) for name in SIZES if name != "repetitions"}
    print(json.dumps(measure(options.who, options.case, sizes, options.output)))


if __name__ == "__main__":
    main()
