"""Passes of banks and galleries from their arguments: checked, begun or gone on with."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.core import checks, numerics, seen
from dbnorm_jax._src.core.log_mean_exp import RunningMean, finish_mean, start_mean
from dbnorm_jax._src.core.similarity import SimilarityFn, known_by, name_of
from dbnorm_jax._src.core.types import BankStatistics, LargestSimilarities
from dbnorm_jax._src.passes import banks, nearest, sweep
from dbnorm_jax._src.passes.columns import largest_pass
from dbnorm_jax._src.passes.selection import start_nearest
from dbnorm_jax._src.passes.streaming import DEFAULT_CHUNK_SIZE
from dbnorm_jax._src.places.disk import checkpoint as checkpoints
from dbnorm_jax._src.places.disk.checkpoint import Checkpoint, Fitted, Progress
from dbnorm_jax._src.places.disk.drive import BlockSweep, Made, Partial
from dbnorm_jax._src.places.disk.rows import DEFAULT_BLOCK_SIZE, Fingerprint, RowBlock, Rows


class Settings(NamedTuple):
    """How rows are compared and read."""

    similarity_fn: SimilarityFn
    chunk_size: int = DEFAULT_CHUNK_SIZE
    block_size: int = DEFAULT_BLOCK_SIZE


def row_pair(
    first: tuple[str, Any], second: tuple[str, Any], settings: Settings
) -> tuple[Rows, Rows]:
    """The rows of two arguments, each given with its name."""
    similarity_fn, chunk_size, block_size = settings
    checks.integer("chunk_size", chunk_size, low=1)
    checks.integer("block_size", block_size, low=1)
    pair = Rows(*first, block_size, similarity_fn), Rows(*second, block_size, similarity_fn)
    pair[0].check_same_dimension(pair[1])
    return pair


def fit_bank(
    bank: Any,
    gallery: Any,
    settings: Settings,
    *,
    beta: Any,
    k: int,
    weights: Any = None,
    exclude: Any = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Fitted[BankStatistics]:
    """`bank_statistics`, with fingerprints where there is a checkpoint, of whatever work."""
    bank, gallery = row_pair(("bank", bank), ("gallery", gallery), settings)
    k = checks.integer("k", k, low=0, high=gallery.num_rows, of=" (gallery items)")
    widest = jax.dtypes.canonicalize_dtype(np.float64)  # until the dtype of the rows is known
    beta = checks.inverse_temperature("beta", beta, widest)
    if weights is not None:
        shape = np.shape(weights) if bank.num_rows is None else (bank.num_rows,)
        weights = np.asarray(checks.bank_weights("weights", weights, shape))
        checks.one_per_bank_row("weights", weights, len(weights))
    exclude = jax.tree.map(np.asarray, seen.exclusions(exclude, bank.num_rows, gallery.num_rows))
    work = {
        "beta": np.asarray(beta, np.float64).tolist(),
        "k": k,
        "weights": _digest(weights),
        "exclude": _digest(exclude),
    }
    bank.per_row = {"weights": weights, "exclude": exclude}

    def narrowed(dtype: jnp.dtype) -> jax.Array:
        return checks.narrowed("beta", beta, dtype).reshape(beta.shape and -1)

    def begin(block: RowBlock, other: np.dtype[Any]) -> tuple[Made, sweep.Rows]:
        bank.check_same_dimension(gallery)
        dtype = numerics.accumulation_dtype(block.rows.dtype, other)
        entering = block.valid.astype(dtype)
        if weights is not None:
            entering = block.filled(np.asarray(checks.narrowed("weights", weights, dtype)))
        tiling = sweep.Tiling(bank.compare, dtype, settings.chunk_size, banks.WIDTHS)
        flat = narrowed(dtype)
        made = Made(banks.bank_pass, (k,), tiling, (flat,), start_mean)
        return made, sweep.Rows(bank.on_device(block), block.filled(exclude), entering)

    def start_total(num_gallery: int) -> jax.Array | None:
        checks.integer("k", k, low=0, high=num_gallery, of=" (gallery items)")
        return jnp.zeros(num_gallery, jnp.int32) if k else None

    few = narrowed(jnp.dtype(jnp.float32))
    like = Partial(
        start_mean(1, few), start_nearest((1, 1, k), few.dtype), start_total(k), None, 0, 0
    )
    make = partial(BlockSweep, bank, gallery, begin, start_total=start_total)
    kept = _of(checkpoint, work, settings)
    found, *fingerprints = checkpoints.run(make, like, kept, progress)
    mean: RunningMean = jax.tree.map(jnp.asarray, found.items)
    dtype = mean.mass.dtype
    total = jax.tree.map(jnp.asarray, found.total)
    whole = banks.BankMeans(_finish_mean(mean, narrowed(dtype)), total)
    statistics = whole.named(checks.narrowed("beta", beta, dtype), k)
    return Fitted(known_by(statistics, settings.similarity_fn), *fingerprints)


_finish_mean = jax.jit(finish_mean)


def fit_largest(
    bank: Any,
    gallery: Any,
    settings: Settings,
    *,
    k: int,
    exclude: Any = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Fitted[LargestSimilarities]:
    """`largest_similarities`, with fingerprints where there is a checkpoint, of whatever work."""
    bank, gallery = row_pair(("bank", bank), ("gallery", gallery), settings)
    k = checks.integer("k", k, low=1)
    exclude = jax.tree.map(np.asarray, seen.exclusions(exclude, bank.num_rows, gallery.num_rows))
    work = {"largest_similarities": k, "exclude": _digest(exclude)}
    bank.per_row = {"exclude": exclude}

    def begin(block: RowBlock, other: np.dtype[Any]) -> tuple[Made, sweep.Rows]:
        bank.check_same_dimension(gallery)
        dtype = numerics.accumulation_dtype(block.rows.dtype, other)
        sizes = settings.chunk_size, nearest.columns_for(k)
        tiling = sweep.Tiling(sweep.Transposed(bank.compare), dtype, *sizes)
        start = jnp.asarray(block.start, jnp.int32)
        asking = sweep.Rows(gallery.on_device(block), (None, None), start=start)
        return Made(largest_pass, (k, dtype), tiling), asking

    like = Partial(None, None, None, np.zeros((1, k), np.float32), 0, 0)
    make = partial(BlockSweep, gallery, bank, begin, own=(None, exclude))
    kept = _of(checkpoint, work, settings)
    state, of_gallery, of_bank = checkpoints.run(make, like, kept, progress)
    largest = LargestSimilarities(jnp.asarray(state.outputs.T), name_of(settings.similarity_fn))
    return Fitted(largest, of_bank, of_gallery)


def _of(
    checkpoint: Checkpoint | None, work: dict[str, Any], settings: Settings
) -> Checkpoint | None:
    """The checkpoint, for what has to be equal, beside the embeddings, for it to be taken up."""
    if checkpoint is None:
        return None
    similarity = getattr(settings.similarity_fn, "__qualname__", repr(settings.similarity_fn))
    work = {**work, **settings._asdict(), "similarity_fn": similarity}
    return dataclasses.replace(checkpoint, work=work)


def _digest(values: Any) -> str | None:
    if values is None:
        return None
    column = np.asarray(values)
    column = column.reshape(len(column), -1)
    return str(Fingerprint().update(column)["sha256"])
