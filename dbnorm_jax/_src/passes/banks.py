"""The pass of a bank over a gallery: exponential means, and who is whose nearest neighbor."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.log_mean_exp import Means, RunningMean, add_rows, finish_mean, start_mean
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.core.types import BankStatistics
from dbnorm_jax._src.passes.selection import Nearest, add_tile, is_apart, seen_by, start_nearest
from dbnorm_jax._src.passes.streaming import COLUMNS, Columns
from dbnorm_jax._src.passes.sweep import Chunk, Items, Pass, Rows, Tile, Tiling, sweep

# Gallery items per tile: on TPUs so many that a fold pays (`passes/classes.py`); on GPUs each step
# of a loop starts programs, which take longer than the products of a small tile. 256 MiB of float32
# similarities with 1024 rows.
WIDTHS = Columns(COLUMNS, 4096, 2**16)


class BankMeans(NamedTuple):
    """Streamed bank statistics, before they are named."""

    means: Means  # of [num_gallery], or [num_betas, num_gallery]
    k_occurrence: jax.Array  # [num_gallery] int32

    def named(self, beta: jax.Array, k: int) -> BankStatistics:
        """The statistics under a `beta` of any shape, whose entries are those of the means."""
        shape = (*beta.shape, self.means.bias.shape[-1])
        means = jax.tree.map(lambda part: part.reshape(shape), self.means)
        counts = jnp.broadcast_to(self.k_occurrence, shape) if k else None
        return BankStatistics.of(means, beta, counts, k)


def bank_means(
    bank: jax.Array,
    gallery: jax.Array,
    beta: jax.Array,
    weights: jax.Array | None,
    exclude: jax.Array | None,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    valid: jax.Array | None = None,
    merge_nearest: Callable[[Nearest], Nearest] = lambda nearest: nearest,
) -> BankMeans:
    """Means and k-occurrence of a bank in one pass over its similarities.

    They are computed once for a `beta` of [num_betas]. `exclude` [num_bank, most] holds gallery
    rows that an item does not enter, -1 for none; what is not `valid` is never among the nearest.
    """
    num_gallery = gallery.shape[0]
    start = start_mean(num_gallery, beta), jnp.zeros(num_gallery, jnp.int32)
    mean, counts = numerics.varying_like(start, beta)
    mean, k_occurrence, _ = sweep(
        bank_pass(k, beta, merge_nearest),
        Rows(bank, exclude, weights),
        Items(gallery, valid=valid),
        Tiling(similarity_fn, beta.dtype, chunk_size, WIDTHS),
        state=mean,
        total=counts,
    )
    return BankMeans(finish_mean(mean, beta), k_occurrence)


def bank_pass(
    k: int, beta: jax.Array, merge_nearest: Callable[[Nearest], Nearest] = lambda nearest: nearest
) -> Pass:
    """Rows own what they exclude; items keep a RunningMean; the total is the k-occurrence.

    `merge_nearest` is what becomes of the nearest items [size, 1, k] of some rows before they are
    counted; an index beyond the gallery is not.
    """

    def start(rows: Chunk) -> Nearest:
        return start_nearest((rows.size, 1, k), beta.dtype)

    def add(nearest: Nearest, mean: RunningMean, tile: Tile) -> tuple[Nearest, RunningMean]:
        similarities, entering, exclude = tile.similarities, tile.rows.entering, tile.rows.own
        valid = None if exclude is None else is_apart(exclude[:, None], tile.places[None])
        mean = add_rows(mean, similarities, beta, entering, valid=valid)
        if k:
            seen, numbers = seen_by(exclude, tile.start), lax.stop_gradient(similarities)
            nearest = add_tile(nearest, numbers, None, tile.start, valid=tile.valid, seen=seen)
        return nearest, mean

    def finish(k_occurrence: jax.Array, nearest: Nearest, rows: Chunk) -> tuple[jax.Array, None]:
        if not k:
            return k_occurrence, None
        nearest = merge_nearest(nearest)
        known = numerics.is_number(nearest.values[:, 0])
        counted = (known & (rows.entering > 0)[:, None]).astype(jnp.int32)
        return k_occurrence.at[nearest.indices[:, 0]].add(counted, mode="drop"), None

    return Pass(add, start, finish)
