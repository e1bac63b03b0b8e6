"""The pass of a bank over a gallery: log-normalizers, and who is whose nearest neighbor."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.core.types import BankStatistics
from dbnorm_jax._src.passes.selection import Nearest, add_tile, is_apart, seen_by, start_nearest
from dbnorm_jax._src.passes.sweep import Chunk, Items, Pass, Rows, Tile, Tiling, sweep


class BankSums(NamedTuple):
    """Streamed bank statistics, before they are named."""

    log_normalizer: jax.Array  # [num_gallery], or [num_betas, num_gallery]
    mass: jax.Array  # [num_gallery]
    k_occurrence: jax.Array  # [num_gallery] int32

    def named(self, beta: jax.Array, k: int) -> BankStatistics:
        """The statistics under a `beta` of any shape, whose entries are those of the sums."""
        shape = (*beta.shape, len(self.mass))
        mass, counts = jax.tree.map(
            lambda array: jnp.broadcast_to(array, shape),
            (self.mass, self.k_occurrence if k else None),
        )
        return BankStatistics(self.log_normalizer.reshape(shape), mass, beta, counts, k)


def bank_sums(
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
) -> BankSums:
    """Log-normalizers and k-occurrence of a bank in one pass over its similarities.

    They are computed once for a `beta` of [num_betas]. `exclude` [num_bank, most] holds gallery
    rows that an item does not enter, -1 for none; what is not `valid` is never among the nearest.
    """
    num_gallery = gallery.shape[0]
    start = start_sums(num_gallery, beta), jnp.zeros(num_gallery, jnp.int32)
    sums, counts = numerics.varying_like(start, beta)
    (log_sum, mass), k_occurrence, _ = sweep(
        bank_pass(k, beta, merge_nearest),
        Rows(bank, exclude, weights),
        Items(gallery, valid=valid),
        Tiling(similarity_fn, beta.dtype, chunk_size),
        state=sums,
        total=counts,
    )
    return BankSums(numerics.finish_log_sum(log_sum, beta), mass, k_occurrence)


class RunningSums(NamedTuple):
    """The state of gallery items while bank rows are added."""

    log_sum: numerics.RunningLogSum
    mass: jax.Array  # [num_items]


def start_sums(num_items: int, beta: jax.Array) -> RunningSums:
    return RunningSums(numerics.start_log_sum(num_items, beta), jnp.zeros(num_items, beta.dtype))


def bank_pass(
    k: int, beta: jax.Array, merge_nearest: Callable[[Nearest], Nearest] = lambda nearest: nearest
) -> Pass:
    """Rows own what they exclude; items keep RunningSums; the total is the k-occurrence.

    `merge_nearest` is what becomes of the nearest items [size, 1, k] of some rows before they are
    counted; an index beyond the gallery is not.
    """

    def start(rows: Chunk) -> Nearest:
        return start_nearest((rows.size, 1, k), beta.dtype)

    def add(nearest: Nearest, sums: RunningSums, tile: Tile) -> tuple[Nearest, RunningSums]:
        similarities, entering, exclude = tile.similarities, tile.rows.entering, tile.rows.own
        valid = None if exclude is None else is_apart(exclude[:, None], tile.places[None])
        log_sum = numerics.add_rows(sums.log_sum, similarities, beta, entering, valid=valid)
        added = entering.sum() if valid is None else jnp.where(valid, entering[:, None], 0).sum(0)
        if k:
            seen, numbers = seen_by(exclude, tile.start), lax.stop_gradient(similarities)
            nearest = add_tile(nearest, numbers, None, tile.start, valid=tile.valid, seen=seen)
        return nearest, RunningSums(log_sum, sums.mass + added)

    def finish(k_occurrence: jax.Array, nearest: Nearest, rows: Chunk) -> tuple[jax.Array, None]:
        if not k:
            return k_occurrence, None
        nearest = merge_nearest(nearest)
        known = numerics.is_number(nearest.values[:, 0])
        counted = (known & (rows.entering > 0)[:, None]).astype(jnp.int32)
        return k_occurrence.at[nearest.indices[:, 0]].add(counted, mode="drop"), None

    return Pass(add, start, finish)
