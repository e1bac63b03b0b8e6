"""Fit and search from files against the same in memory, and memory with a file beyond a limit.

    python -m benchmarks.speed.out_of_core [--bank 8192] [--gallery 20480] [--dim 512]
        [--repetitions 5]

Files lie in a temporary folder and are read from a warm page cache. Memory is anonymous (RssAnon),
in a process of its own whose data (RLIMIT_DATA) may grow by less than the file is large; loading
the file there fails.
"""

import argparse
import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.support import environment, inputs, report

SIZES = {
    "bank": 8192,
    "gallery": 20480,
    "dim": 512,
    "repetitions": 5,
    "file_mib": 256,
    "factor": 8,
    "limit_mib": 768,
}
SLOWER = 1.15
# Between files of one length and of `factor` times as much; vectors of gallery length are in it.
GROWTH = 128.0  # MiB
_BANK_ROWS = 64
BETA = 20.0


def timed(bank: int, gallery: int, dim: int, repetitions: int) -> report.Record:
    """Ratios of times, interleaved in this process."""
    import jax.numpy as jnp

    import dbnorm_jax as dbn
    from benchmarks.support.common import interleaved, ratios

    with tempfile.TemporaryDirectory() as folder:
        files = []
        for seed, count in enumerate((bank, gallery)):
            path = Path(folder) / f"{seed}.npy"
            np.save(path, inputs.unit_rows(seed, count, dim))
            files.append(np.load(path, mmap_mode="r"))
        rows, items = (jnp.asarray(array) for array in files)
        correction = dbn.inverted_softmax(dbn.stream_bank_statistics(rows, items, beta=BETA))
        sums = Path(folder) / "sums.partial"

        def kept() -> dbn.BankStatistics:
            sums.unlink(missing_ok=True)
            return dbn.out_of_core.bank_statistics(*files, beta=BETA, checkpoint=sums)

        contenders = {
            "fit in memory": lambda: dbn.stream_bank_statistics(rows, items, beta=BETA),
            "fit from files": lambda: dbn.out_of_core.bank_statistics(*files, beta=BETA),
            "fit, cosine": lambda: dbn.out_of_core.bank_statistics(
                *files, beta=BETA, similarity_fn=dbn.cosine_similarity
            ),
            "fit, hashed, with a checkpoint": kept,
            "search in memory": lambda: dbn.stream_top_k(rows, items, 10, correction),
            "search from files": lambda: dbn.out_of_core.top_k(*files, 10, correction),
        }
        found = interleaved(contenders, repetitions)
        np.testing.assert_allclose(
            contenders["fit in memory"]().log_normalizer,
            contenders["fit from files"]().log_normalizer,
            atol=1e-5,
        )
    figures = ratios(
        found,
        2.0 * bank * gallery * dim,
        {name: SLOWER for name in contenders if name not in ("fit in memory", "search in memory")},
        {"search from files": "search in memory"},
    )
    # On a machine that others use, processor time says more than the clock.
    used = {name: timing.cores * float(timing.seconds.sum()) for name, timing in found.items()}
    for name in contenders:
        base = "search in memory" if name.startswith("search") else "fit in memory"
        if name != base:
            ratio, target = used[name] / used[base], report.Target(high=SLOWER)
            figures.append(report.Figure(f"{name}: processor time", ratio, f"x {base}", target))
    title = f"out of core: bank or queries {bank} x gallery {gallery} x dim {dim}"
    sizes = {"bank": bank, "gallery": gallery, "dim": dim, "repetitions": repetitions}
    return report.Record("out_of_core", title, sizes, figures)


# --- memory ------------------------------------------------------------------------------------


def anonymous() -> float:
    """MiB of this process that are not of files."""
    return environment.own_memory("RssAnon")


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """The largest anonymous memory while inside, looked at every few milliseconds."""
    peak, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def measure(work: str, path: str, limit: float) -> dict[str, object]:
    """MiB above what the process had after a small call, under the limit."""
    import dbnorm_jax as dbn

    gallery = np.load(path, mmap_mode="r")
    rows = inputs.unit_rows(0, _BANK_ROWS, gallery.shape[1])

    def run(items: np.ndarray) -> object:
        if work == "fit":
            return dbn.out_of_core.bank_statistics(rows, items, beta=BETA).log_normalizer
        return dbn.out_of_core.top_k(rows, items, 10).scores

    run(gallery[: 2 * 8192])  # compiles, and starts what threads there are
    environment.limit_data(environment.own_memory("VmData") + limit)
    before = anonymous()
    with watched() as peak:
        np.asarray(run(gallery))
    fits = True
    try:
        np.array(gallery)
    except MemoryError:
        fits = False
    return {"peak": peak[0] - before, "fits": fits}


def held(dim: int, file_mib: int, factor: int, limit_mib: int) -> report.Record:
    """A file and one `factor` times as long, each in a process of its own."""
    figures, fits = [], []
    rows = file_mib * 2**20 // (4 * dim)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for times in (1, factor):
            path = Path(folder) / f"{times}.npy"
            shape = (rows * times, dim)
            file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            slab = inputs.unit_rows(1, 4096, dim)
            for start in range(0, len(file), len(slab)):
                part = file[start : start + len(slab)]
                part[:] = slab[: len(part)]
            del file
            paths.append(path)
        for work in ("fit", "search"):
            peaks = []
            for path, times in zip(paths, (1, factor), strict=True):
                found = environment.child(
                    "benchmarks.speed.out_of_core", "--case", work, path, limit_mib
                )
                peaks.append(float(found["peak"]))
                fits.append(bool(found["fits"]))
                name = f"{work}: file of {file_mib * times} MiB"
                figures.append(report.Figure(name, peaks[-1], "MiB"))
            growth = report.Figure(
                f"{work}: growth with the file x {factor}",
                peaks[1] - peaks[0],
                "MiB",
                report.Target(high=GROWTH),
            )
            figures.append(growth)
    notes = (
        f"data may grow by {limit_mib} MiB; loading the larger file there "
        + ("succeeded" if fits[1] else "failed for want of memory"),
    )
    sizes = {"dim": dim, "file_mib": file_mib, "factor": factor, "limit_mib": limit_mib}
    title = f"out of core: peak anonymous MiB, {_BANK_ROWS} rows against a gallery of dim {dim}"
    return report.Record("out_of_core", title, sizes, figures, notes)


def run(
    bank: int,
    gallery: int,
    dim: int,
    repetitions: int,
    file_mib: int,
    factor: int,
    limit_mib: int,
) -> list[report.Record]:
    """Both tables."""
    return [
        timed(bank, gallery, dim, repetitions),
        held(dim, file_mib, factor, limit_mib),
    ]


def main() -> None:
    """The tables, or one process's part of them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--case", nargs=3)
    options, _ = parser.parse_known_args()
    if options.case is None:
        report.command(__doc__, run, SIZES)
        return
    work, path, limit = options.case
    print(json.dumps(measure(work, path, float(limit))))


if __name__ == "__main__":
    main()
