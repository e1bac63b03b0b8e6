"""Ranks of the right items against a bare tile scan of the same shapes.

    python -m benchmarks.speed.ranks [--queries 4096] [--gallery 102400] [--bank 10240] [--dim 512]

Sizes above 1024 are multiples of it.
"""

from functools import partial

import numpy as np

import dbnorm_jax as dbn
from benchmarks.speed import peers
from benchmarks.speed.search import NOISE, corrections
from benchmarks.support import common, inputs, report
from benchmarks.support.common import bare_scan, interleaved, ratios
from benchmarks.support.report import Record

SIZES = {"queries": 4096, "gallery": 102400, "bank": 10240, "dim": 512, "repetitions": 7}
TARGETS = {"raw": 1.05, "DualIS": 1.05}


def run(queries: int, gallery: int, bank: int, dim: int, repetitions: int) -> list[Record]:
    """The table of the ranks."""
    items = inputs.unit_rows(1, gallery, dim)
    rows = inputs.near(5, items, queries, NOISE)
    relevant = np.arange(queries, dtype=np.int32) % gallery
    banks = common.unit_rows(0, bank, dim), common.unit_rows(3, bank, dim)
    on_device = common.jnp.asarray(rows), common.jnp.asarray(items)
    fitted = corrections(*banks, on_device[1])
    bias = np.asarray(fitted["DualIS"].bias.sum(axis=0))
    ranks = partial(dbn.metrics.stream_ranks, *on_device, relevant)

    # Nothing is timed that is wrong; near ties may be seen otherwise after another rounding.
    some = slice(0, 64)
    found = np.asarray(ranks(fitted["DualIS"]))[some]
    expected = peers.sorted_ranks(rows[some], items, relevant[some], bias)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1.0)

    contenders = {
        "bare": partial(bare_scan, *on_device),
        "raw": ranks,
        "DualIS": partial(ranks, fitted["DualIS"]),
        "DualDIS": partial(ranks, fitted["DualDIS"]),
        "NumPy, counting": partial(peers.counted_ranks, rows, items, relevant, bias),
    }
    timings = interleaved(contenders, repetitions)
    figures = ratios(timings, 2.0 * queries * gallery * dim, TARGETS)
    sizes = {"queries": queries, "gallery": gallery, "bank": bank, "dim": dim}
    sizes["repetitions"] = repetitions
    title = f"ranks: queries {queries} x gallery {gallery} x dim {dim}"
    return [Record("ranks", title, sizes, figures)]


if __name__ == "__main__":
    report.command(__doc__, run, SIZES)
