"""Passes of banks and galleries from their arguments: checked, begun or gone on with."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.core.types import BankStatistics, LargestSimilarities
from dbnorm_jax._src.passes.streaming import DEFAULT_CHUNK_SIZE
from dbnorm_jax._src.places.disk import checkpoint as checkpoints
from dbnorm_jax._src.places.disk.block_banks import BankPass, PerRow
from dbnorm_jax._src.places.disk.block_largest import LargestPass
from dbnorm_jax._src.places.disk.checkpoint import Checkpoint, Fitted
from dbnorm_jax._src.places.disk.fingerprints import Array, Fingerprint
from dbnorm_jax._src.places.disk.rows import DEFAULT_BLOCK_SIZE, Rows

# (rows done, rows of the other side that the next block of them has passed).
Progress = Callable[[int, int], None]


class Settings(NamedTuple):
    """How rows are compared and read."""

    similarity_fn: SimilarityFn
    chunk_size: int = DEFAULT_CHUNK_SIZE
    block_size: int = DEFAULT_BLOCK_SIZE

    def describe(self) -> dict[str, Any]:
        """In plain values."""
        similarity = getattr(self.similarity_fn, "__qualname__", repr(self.similarity_fn))
        return {**self._asdict(), "similarity_fn": similarity}


def row_pair(
    first: tuple[str, Any], second: tuple[str, Any], settings: Settings
) -> tuple[Rows, Rows]:
    """The rows of two arguments, each given with its name."""
    similarity_fn, chunk_size, block_size = settings
    checks.integer("chunk_size", chunk_size, low=1)
    checks.integer("block_size", block_size, low=1)
    return Rows(*first, block_size, similarity_fn), Rows(*second, block_size, similarity_fn)


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
    beta = checks.positive("beta", beta, widest, " (in 1/[unit of similarity])")
    if weights is not None:
        shape = np.shape(weights) if bank.num_rows is None else (bank.num_rows,)
        weights = np.asarray(checks.bank_weights("weights", weights, shape))
        checks.one_per_bank_row("weights", weights, len(weights))
    exclude = _exclusions(exclude, bank, gallery)
    work = {
        "beta": np.asarray(beta, np.float64).tolist(),
        "k": k,
        "weights": _digest(weights),
        "exclude": _digest(exclude),
    }
    make = partial(
        BankPass,
        bank,
        gallery,
        beta=beta,
        k=k,
        per_row=PerRow(weights, exclude),
        similarity_fn=settings.similarity_fn,
        chunk_size=settings.chunk_size,
    )
    return checkpoints.run(make, _of(checkpoint, work, settings), _reporting(progress))


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
    exclude = _exclusions(exclude, bank, gallery)
    work = {"largest_similarities": k, "exclude": _digest(exclude)}
    make = partial(
        LargestPass,
        bank,
        gallery,
        k=k,
        exclude=exclude,
        similarity_fn=settings.similarity_fn,
        chunk_size=settings.chunk_size,
    )
    return checkpoints.run(make, _of(checkpoint, work, settings), _reporting(progress))


def _of(
    checkpoint: Checkpoint | None, work: dict[str, Any], settings: Settings
) -> Checkpoint | None:
    """The checkpoint, for what has to be equal, beside the embeddings, for it to be taken up."""
    if checkpoint is None:
        return None
    return dataclasses.replace(checkpoint, work={**work, **settings.describe()})


def _reporting(progress: Progress | None) -> Callable[[checkpoints.Running], None] | None:
    return None if progress is None else lambda running: progress(*running.done)


def _digest(values: Any) -> str | None:
    if values is None:
        return None
    column = np.asarray(values)
    column = column.reshape(len(column), -1)
    return str(Fingerprint(column.dtype, column.shape[1]).update(column)["sha256"])


def _exclusions(exclude: Any, bank: Rows, gallery: Rows) -> Array | None:
    """The argument `exclude`, checked as far as lengths are known."""
    if exclude is None:
        return None
    num_bank = len(exclude) if bank.num_rows is None else bank.num_rows
    num_gallery = np.iinfo(np.int32).max if gallery.num_rows is None else gallery.num_rows
    return np.asarray(checks.exclusions(exclude, num_bank, num_gallery))
