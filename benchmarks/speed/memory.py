"""Peak memory above inputs and outputs, each size in a process of its own.

    python -m benchmarks.speed.memory [--gallery 20480] [--rows 4096] [--factor 8] [--dim 512]

MiB of resident memory that each step takes beyond its inputs and its results, compiler included,
for a small and a `factor` times larger number of bank items, queries and gallery items; the median
of several processes.
"""

import argparse
import gc
import json
import statistics

from benchmarks.support import environment, inputs, report

SIZES = {"gallery": 20480, "rows": 4096, "factor": 8, "dim": 512, "processes": 3}
LARGEST = 128.0  # MiB
# What counts as no growth: within this, processes of one size differ.
_NOISE = 16.0  # MiB
WORKS = ("fit", "both banks", "DualIS, k=10", "DualDIS, k=10", "ranks")


def measure(work: str, rows: int, gallery: int, dim: int) -> float:
    """MiB above inputs and outputs."""
    import jax
    import jax.numpy as jnp

    import dbnorm_jax as dbn

    arrays = [jnp.asarray(inputs.unit_rows(seed, n, dim)) for seed, n in ((0, rows), (1, gallery))]
    if work == "both banks":
        arrays.append(jnp.asarray(inputs.unit_rows(2, rows, dim)))
    elif work.startswith("Dual"):
        bias = jnp.zeros((2, gallery), jnp.float32)
        active = jnp.ones((2, gallery), bool) if work.startswith("DualDIS") else None
        arrays.append(dbn.Correction(bias, active))
    elif work == "ranks":
        arrays.append(jnp.zeros(rows, jnp.int32))
    for leaf in jax.block_until_ready(jax.tree.leaves(arrays)):  # copied in the background
        leaf.sum().block_until_ready()
    gc.collect()
    environment.restart_peak()
    before = environment.resident()
    if work == "fit":
        result = dbn.stream_bank_statistics(*arrays, beta=20.0)
    elif work == "both banks":
        result = [
            dbn.stream_bank_statistics(bank, arrays[1], beta=beta)
            for bank, beta in ((arrays[0], 20.0), (arrays[2], 1.0))
        ]
    elif work == "ranks":
        result = dbn.metrics.stream_ranks(*arrays)
    else:
        result = dbn.stream_top_k(*arrays[:2], 10, arrays[2])
    leaves = jax.block_until_ready(jax.tree.leaves(result))
    return environment.peak_resident() - before - sum(leaf.nbytes for leaf in leaves) / 2**20


def run(gallery: int, rows: int, factor: int, dim: int, processes: int) -> list[report.Record]:
    """One process per step and size."""
    figures = []
    for work in WORKS:
        what = "bank items" if work in ("fit", "both banks") else "queries"
        found = []
        for name, size in (
            (f"{rows} {what} x gallery {gallery}", (rows, gallery)),
            (f"{rows * factor} {what}", (rows * factor, gallery)),
            (f"gallery {gallery * factor}", (rows, gallery * factor)),
        ):
            peaks = [
                environment.child("benchmarks.speed.memory", f"--case={work}", *size, dim)["peak"]
                for _ in range(processes)
            ]
            found.append(statistics.median(peaks))
            figures.append(
                report.Figure(f"{work}: {name}", found[-1], "MiB", report.Target(high=LARGEST))
            )
        for name, value in zip((what, "gallery"), found[1:], strict=True):
            figures.append(
                report.Figure(
                    f"{work}: growth with {name} x {factor}",
                    value - found[0],
                    "MiB",
                    report.Target(high=_NOISE),
                )
            )
    sizes = {"gallery": gallery, "rows": rows, "factor": factor, "dim": dim, "processes": processes}
    title = "peak MiB above inputs and outputs, compiler included"
    added = [count * (factor - 1) * dim * 4 / 2**20 for count in (rows, gallery)]
    notes = (
        f"no growth: at most {_NOISE:g} MiB, within which processes of one size differ; the inputs "
        f"grow by {added[0]:.0f} MiB (rows) and {added[1]:.0f} MiB (gallery)",
    )
    return [report.Record("memory", title, sizes, figures, notes)]


def main() -> None:
    """The table, or one process's part of it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--case", choices=WORKS)
    options, numbers = parser.parse_known_args()
    if options.case is None:
        report.command(__doc__, run, SIZES)
        return
    print(json.dumps({"peak": measure(options.case, *map(int, numbers))}))


if __name__ == "__main__":
    main()
