"""Certified search of a prepared gallery against a bare tile scan of the same shapes in float32.

    python -m benchmarks.speed.certified [--queries 2048] [--gallery 102400] [--dim 512]

Sizes above 1024 are multiples of it. How many queries are certified depends on the data; the time
depends on how many are not.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.speed.search import check_exact, corrections
from benchmarks.support import common, inputs, report
from benchmarks.support.common import bare_scan, interleaved, ratios
from benchmarks.support.report import Figure, Record, Target

SIZES = {"queries": 2048, "gallery": 102400, "bank": 2048, "dim": 512, "repetitions": 5}
FEWEST_CERTIFIED = 99.5  # percent
FAILING = (0.0, 0.01, 0.1, 1.0)
KINDS = {
    "anisotropic": inputs.anisotropic,
    "clustered": inputs.clustered,
    "duplicated": inputs.duplicated,
}

# What is certified everywhere, also where the rule of the platform would not.
certified = partial(dbn.stream_top_k, precision="certified")
exact = partial(dbn.stream_top_k, precision="float32")


def run(queries: int, gallery: int, bank: int, dim: int, repetitions: int) -> list[Record]:
    """The table of certified searches."""
    sizes = {"queries": queries, "gallery": gallery, "bank": bank, "dim": dim}
    sizes["repetitions"] = repetitions
    rows, items = common.unit_rows(2, queries, dim), common.unit_rows(1, gallery, dim)
    banks = common.unit_rows(0, bank, dim), common.unit_rows(3, bank, dim)
    fitted = corrections(*banks, items)
    prepared = {name: dbn.prepare_gallery(items, fitted[name]) for name in ("DualIS", "DualDIS")}
    check_exact(rows, items, fitted["DualIS"])
    half = rows.astype(jnp.bfloat16), prepared["DualIS"].low.vectors
    many = min(100, gallery)
    contenders = {
        "bare": partial(bare_scan, rows, items),
        "bare, bfloat16": partial(bare_scan, *half),
        "float32, DualIS, k=10": partial(exact, rows, prepared["DualIS"], 10),
        "certified, DualIS, k=10": partial(certified, rows, prepared["DualIS"], 10),
        "float32, DualDIS, k=10": partial(exact, rows, prepared["DualDIS"], 10),
        "certified, DualDIS, k=10": partial(certified, rows, prepared["DualDIS"], 10),
        "float32, DualIS, k=100": partial(exact, rows, prepared["DualIS"], many),
        "certified, DualIS, k=100": partial(certified, rows, prepared["DualIS"], many),
    }
    timings = interleaved(contenders, repetitions)
    share = np.median(timings["bare, bfloat16"].seconds / timings["bare"].seconds)
    targets = {
        "certified, DualIS, k=10": share + 0.15,
        "certified, DualDIS, k=10": 2 * share + 0.25,
        "certified, DualIS, k=100": share + 0.45,
    }
    flops = 2.0 * queries * gallery * dim
    figures = ratios(timings, flops, targets)
    figures += [
        proven(f"random, {name}, k=10", rows, prepared[name], FEWEST_CERTIFIED)
        for name in ("DualIS", "DualDIS")
    ]
    shape = f"queries {queries} x gallery {gallery} x dim {dim}"
    records = [Record("certified", f"certified search: {shape}", sizes, figures)]
    records.append(failing(queries, gallery, dim, repetitions, sizes, shape))
    records.append(kinds(queries, gallery, dim, sizes, shape))
    return records


def failing(
    queries: int, gallery: int, dim: int, repetitions: int, sizes: dict[str, int], shape: str
) -> Record:
    """The time where a share of the queries cannot be certified."""
    contenders = {}
    for share in FAILING:
        # With copies of every item no query is certified.
        rows, items = map(jnp.asarray, inputs.duplicated(31, queries, gallery, dim, share))
        if not contenders:
            contenders["bare"] = partial(bare_scan, rows, items)
        prepared = dbn.prepare_gallery(items)
        contenders[f"{100 * share:g} % failing, k=10"] = partial(certified, rows, prepared, 10)
    figures = ratios(interleaved(contenders, repetitions), 2.0 * queries * gallery * dim)
    return Record("certified", f"queries that are not certified: {shape}", sizes, figures)


def kinds(queries: int, gallery: int, dim: int, sizes: dict[str, int], shape: str) -> Record:
    """The share of queries that is certified, by kind of data."""
    figures = []
    for name, make in KINDS.items():
        rows, items = map(jnp.asarray, make(41, queries, gallery, dim))
        fewest = FEWEST_CERTIFIED if name == "anisotropic" else None
        plain = dbn.prepare_gallery(items)
        centered = dbn.prepare_gallery(items, query_centre=rows.mean(axis=0))
        figures += [
            proven(f"{name}, k=10", rows, plain, fewest),
            proven(f"{name}, k=100", rows, plain, fewest, min(100, gallery)),
            proven(f"{name}, k=10, centered", rows, centered, fewest),
        ]
    return Record("certified", f"certified queries: {shape}", sizes, figures)


def proven(
    name: str, rows: jnp.ndarray, prepared: dbn.PreparedGallery, fewest: float | None, k: int = 10
) -> Figure:
    """The share of queries that is certified, in percent."""
    proof = np.asarray(dbn.certified_queries(rows, prepared, k, precision="certified"))
    target = None if fewest is None else Target(low=fewest)
    return Figure(f"certified: {name}", 100 * float(proof.mean()), "%", target)


if __name__ == "__main__":
    report.command(__doc__, run, SIZES)
