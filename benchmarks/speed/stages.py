"""Where the time of a search and of a fit goes: what each stage adds to the products.

    python -m benchmarks.speed.stages [--queries 2048] [--gallery 102400] [--dim 512]

A stage is timed by a program that stops after it, over the tiles of the whole. Sizes above 1024 are
multiples of it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.support import common, report
from benchmarks.support.common import bare_scan, interleaved
from benchmarks.support.report import Figure, Record
from dbnorm_jax._src.core import elementary, similarity
from dbnorm_jax._src.passes import selection, streaming
from dbnorm_jax._src.passes.nearest import columns_for, nearest_items

SIZES = {"queries": 2048, "gallery": 102400, "dim": 512, "repetitions": 7}
# Stage: the program that ends with it, and the one that ends before it.
STAGES = {
    "search: maxima of blocks": ("maxima", "bare"),
    "search: the nearest item": ("k=1", "maxima, narrow"),
    "search: inserting 10": ("k=10", "maxima"),
    "search: inserting 100": ("k=100", "maxima"),
    "search in 4 lists: maxima of blocks": ("maxima, 4 lists", "bare"),
    "search in 4 lists: inserting 10 each": ("k=10, 4 lists", "maxima, 4 lists"),
    "fit: maxima of columns": ("columns", "bare"),
    "fit: powers and their sums": ("log-normalizer", "columns"),
    "fit: the nearest item": ("log-normalizer, k=1", "log-normalizer"),
    "fit: the 10 nearest": ("log-normalizer, k=10", "log-normalizer"),
}


def _over_tiles(
    stage: Callable[[jax.Array, Any], jax.Array],
    queries: jax.Array,
    gallery: jax.Array,
    lists: selection.Offsets,
    columns: int,
) -> jax.Array:
    """The sum of `stage(similarities, lists)` over the tiles that a search takes."""

    def chunk(total: jax.Array, rows: streaming.Block) -> tuple[jax.Array, None]:
        def add(total: jax.Array, items: streaming.Block) -> tuple[jax.Array, None]:
            similarities = similarity.tile(dbn.dot_product, rows.rows, items.rows[0])
            return total + stage(elementary.written(similarities), items.rows[1]).sum(), None

        return streaming.scan_chunks(add, total, (gallery, lists), columns)[0], None

    start = jnp.zeros((), queries.dtype)
    return streaming.scan_chunks(chunk, start, queries, streaming.DEFAULT_CHUNK_SIZE)[0]


@partial(jax.jit, static_argnames="columns")
def block_maxima(
    queries: jax.Array, gallery: jax.Array, offsets: jax.Array, columns: int
) -> jax.Array:
    """Products, and the maximum of each block of scores, in as many lists as there are offsets."""
    num_lists = offsets.shape[1]

    def stage(similarities: jax.Array, lists: selection.Offsets) -> jax.Array:
        return selection.in_blocks(similarities, lists).bounds(num_lists)

    return _over_tiles(stage, queries, gallery, selection.by_list(offsets), columns)


@jax.jit
def column_maxima(bank: jax.Array, gallery: jax.Array) -> jax.Array:
    """Products, and the maximum of each gallery item."""

    def stage(similarities: jax.Array, _: None) -> jax.Array:
        return elementary.largest_first(similarities)

    return _over_tiles(stage, bank, gallery, None, streaming.COLUMNS)


@partial(jax.jit, static_argnames="k")
def nearest(queries: jax.Array, gallery: jax.Array, offsets: jax.Array, k: int) -> jax.Array:
    """A whole search."""
    return nearest_items(
        queries,
        gallery,
        offsets,
        k=k,
        similarity_fn=dbn.dot_product,
        chunk_size=streaming.DEFAULT_CHUNK_SIZE,
    ).values


@partial(jax.jit, static_argnames="k")
def fitted(bank: jax.Array, gallery: jax.Array, k: int) -> dbn.BankStatistics:
    """A whole fit, its input known to be finite."""
    return dbn.stream_bank_statistics(bank, gallery, beta=20.0, k=k)


def run(queries: int, gallery: int, dim: int, repetitions: int) -> list[Record]:
    """What each stage adds, in times of the bare scan."""
    rows, items = common.unit_rows(2, queries, dim), common.unit_rows(1, gallery, dim)
    offsets = jax.random.normal(jax.random.key(3), (gallery, 4)) / 100
    one, some = offsets[:, :1], min(100, gallery)
    contenders = {
        "bare": partial(bare_scan, rows, items),
        "maxima, narrow": partial(block_maxima, rows, items, one, columns_for(1).cpu),
        "maxima": partial(block_maxima, rows, items, one, columns_for(10).cpu),
        "k=1": partial(nearest, rows, items, one, 1),
        "k=10": partial(nearest, rows, items, one, min(10, gallery)),
        "k=100": partial(nearest, rows, items, one, some),
        "maxima, 4 lists": partial(block_maxima, rows, items, offsets, columns_for(10).cpu),
        "k=10, 4 lists": partial(nearest, rows, items, offsets, min(10, gallery)),
        "columns": partial(column_maxima, rows, items),
        "log-normalizer": partial(fitted, rows, items, 0),
        "log-normalizer, k=1": partial(fitted, rows, items, 1),
        "log-normalizer, k=10": partial(fitted, rows, items, min(10, gallery)),
    }
    timings = interleaved(contenders, repetitions)
    bare = timings["bare"].seconds
    figures = [common.ratio("products alone", timings["bare"], timings["bare"])]
    for stage, (name, before) in STAGES.items():
        added = (timings[name].seconds - timings[before].seconds) / bare
        low, median, high = map(float, np.percentile(added, [25, 50, 75]))
        figures.append(Figure(stage, median, "x bare", low=low, high=high))
    sizes = {"queries": queries, "gallery": gallery, "dim": dim, "repetitions": repetitions}
    title = f"stages: queries {queries} x gallery {gallery} x dim {dim}, what each adds"
    return [Record("stages", title, sizes, figures)]


if __name__ == "__main__":
    report.command(__doc__, run, SIZES)
