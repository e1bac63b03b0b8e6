"""One request at a time: a call on a prepared gallery beside naive JAX.

    python -m benchmarks.speed.latency [--gallery 102400] [--dim 512] [--repetitions 50]

Naive is `jit(lax.top_k(queries @ gallery.T - bias))`, which checks nothing. Queries are of NumPy.
"""

from functools import partial

import jax
import numpy as np
from jax import lax

import dbnorm_jax as dbn
from benchmarks.support import common, inputs, report
from benchmarks.support.common import interleaved
from benchmarks.support.report import Figure, Record, Target

SIZES = {"gallery": 102400, "dim": 512, "repetitions": 50}
LARGEST_OVERHEAD = 1.0  # ms of a call above its program
# Queries of a request, and the time hoped for, x naive.
REQUESTS = {1: 1.2, 8: 0.75, 64: 0.7, 256: 0.6}
K = 10


@jax.jit
def naive(queries: jax.Array, gallery: jax.Array, bias: jax.Array) -> list[jax.Array]:
    """Scores as one matrix, and XLA's own selection."""
    scores = queries @ gallery.T - bias[None]
    return list(lax.top_k(scores, min(K, len(gallery))))


@partial(jax.jit, static_argnames="k")
def program(queries: jax.Array, prepared: dbn.PreparedGallery, k: int) -> dbn.SearchResult:
    """The same call compiled with nothing around it."""
    return dbn.stream_top_k(queries, prepared, k)


def run(gallery: int, dim: int, repetitions: int) -> list[Record]:
    """The table of requests."""
    items = common.unit_rows(1, gallery, dim)
    bias = 0.02 * common.unit_rows(3, 1, gallery)[0] * gallery**0.5
    prepared = dbn.prepare_gallery(items, dbn.Correction(bias[None]))
    k = min(K, gallery)
    figures = []
    for size, target in REQUESTS.items():
        rows = inputs.unit_rows(2, size, dim)
        contenders = {
            "naive": partial(naive, rows, items, bias),
            "prepared": partial(dbn.stream_top_k, rows, prepared, k),
            "gallery": partial(dbn.stream_top_k, rows, items, k, prepared.correction),
        }
        timings = interleaved(contenders, repetitions)
        first = timings["naive"]
        for name, limit in (("prepared", target), ("gallery", None)):
            hoped = None if limit is None else Target(high=limit)
            ratio = common.ratio(f"{size}, {name}", timings[name], first, "x naive", hoped)
            figures.append(ratio)
        for name, timing in timings.items():
            for percent in (50, 99):
                value = 1e3 * float(np.percentile(timing.seconds, percent))
                figures.append(Figure(f"{size}, {name}, p{percent}", value, "ms"))
    figures.append(overhead(dim, repetitions))
    sizes = {"gallery": gallery, "dim": dim, "repetitions": repetitions}
    title = f"requests of a gallery of {gallery} x dim {dim}, k={k}"
    return [Record("latency", title, sizes, figures)]


def overhead(dim: int, repetitions: int) -> Figure:
    """What an eager call adds to its program, of a gallery so small that little else is left."""
    rows = inputs.unit_rows(2, 8, dim)
    prepared = dbn.prepare_gallery(common.unit_rows(1, 128, dim))
    contenders = {
        "program": partial(program, rows, prepared, K),
        "call": partial(dbn.stream_top_k, rows, prepared, K),
    }
    timings = interleaved(contenders, repetitions)
    call, compiled = (np.median(timings[name].seconds) for name in ("call", "program"))
    target = Target(high=LARGEST_OVERHEAD)
    return Figure("eager call above its program", 1e3 * float(call - compiled), "ms", target)


if __name__ == "__main__":
    report.command(__doc__, run, SIZES)
