"""Largest similarities of galleries and banks that need not fit memory, block against block.

One pass over the gallery; for each of its blocks one over the bank. Gallery items ask and the bank
answers; what a block of items has found is final when the whole bank has passed.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.core.types import LargestSimilarities
from dbnorm_jax._src.passes import nearest as search
from dbnorm_jax._src.passes import sweep
from dbnorm_jax._src.passes.selection import Nearest, start_nearest
from dbnorm_jax._src.places.disk.block_banks import items_of
from dbnorm_jax._src.places.disk.fingerprints import Array
from dbnorm_jax._src.places.disk.rows import (
    RowBlock,
    Rows,
    check_all_rows,
    check_same_dimension,
    check_same_rows,
    of_prepared,
    on_device,
    read_again,
    wait_for,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PartialLargest:
    """Largest similarities of the gallery items so far.

    Attributes:
      values: [k, num_items], of the items that the whole bank has passed.
      k: how many per item (static).
    """

    values: Array
    k: int = dataclasses.field(metadata={"static": True})

    def state(self) -> LargestSimilarities:
        """Of the gallery, when all of it is done."""
        return LargestSimilarities(jnp.asarray(self.values))


class LargestPass:
    """The pass of a gallery over a bank, one block against one block at a time.

    Attributes:
      bank_fingerprint: of the bank once it has passed; of its rows so far before.
      gallery_fingerprint: of the gallery items that are done, where asked for.
    """

    def __init__(
        self,
        bank: Rows,
        gallery: Rows,
        *,
        k: int,
        exclude: Array | None,
        similarity_fn: SimilarityFn,
        chunk_size: int,
        begun: PartialLargest | None = None,
        expected: tuple[Any, Any] = (None, None),
        hashed: bool = False,
    ) -> None:
        check_same_dimension(bank, gallery)
        if not gallery.fits_one_block:
            bank.check_repeatable("the bank is passed over once per block of gallery rows")
        self.bank, self.gallery = bank, gallery
        self.k = k
        self.bank_fingerprint: dict[str, Any] | None = None
        self.gallery_fingerprint: dict[str, Any] | None = None
        self._hashed, self._bank_hashed = hashed, False
        self._expected = expected
        self._exclude = exclude
        self._similarity_fn = similarity_fn
        self._found = [] if begun is None else [begun.values]
        self._items_done = 0 if begun is None else begun.values.shape[1]
        self._rows_passed = 0
        self._add = functools.partial(
            _add_answers, similarity_fn=of_prepared(similarity_fn), chunk_size=chunk_size
        )

    @property
    def done(self) -> tuple[int, int]:
        """(gallery items done, bank rows that the next block of them has passed)."""
        return self._items_done, self._rows_passed

    def steps(self) -> Iterator[None]:
        """Adds what is left, yielding after each block against block."""
        gallery = self.gallery
        for block in gallery.read(hashed=self._hashed, skip=self._items_done):
            check_same_rows(gallery, self._expected[1], gallery.skipped)
            yield from self._against_bank(block)
            self.gallery_fingerprint = block.fingerprint
        if self.gallery_fingerprint is None:  # all had been done before
            self.gallery_fingerprint = gallery.skipped
            check_same_rows(gallery, self._expected[1], gallery.skipped)

    def check_other(self) -> None:
        """Reads the bank only to see whether it is the one expected."""
        self.bank_fingerprint = read_again(self.bank, self._expected[0])

    def _against_bank(self, asking: RowBlock) -> Iterator[None]:
        rows, bank = on_device(asking, self._similarity_fn), self.bank
        nearest = None
        # The first pass of this process is hashed.
        hashed, self._bank_hashed = self._hashed and not self._bank_hashed, True
        for block in bank.read(hashed=hashed):
            check_same_dimension(bank, self.gallery)
            if nearest is None:
                dtype = numerics.accumulation_dtype(rows.dtype, block.rows.dtype)
                nearest = start_nearest((len(asking.rows), 1, self.k), dtype)
            own = None
            if self._exclude is not None:
                own = block.filled(self._exclude, -1) - asking.start
            # The step before is done before the next is begun: no queue of blocks builds up.
            wait_for(nearest)
            nearest = self._add(nearest, rows, items_of(block, self._similarity_fn), own)
            if hashed:
                self.bank_fingerprint = block.fingerprint
            self._rows_passed = block.stop
            yield
        if hashed and self._items_done:
            check_all_rows(bank, self._expected[0], self.bank_fingerprint)
        assert nearest is not None
        if self._exclude is not None and len(self._exclude) != bank.num_rows:
            raise ValueError(
                f"`exclude` must have one entry per bank row, expected {bank.num_rows}, got "
                f"{len(self._exclude)}"
            )
        values = np.asarray(nearest.values[:, 0])
        values = np.where(np.asarray(numerics.is_number(nearest.values[:, 0])), values, -np.inf)
        self._found.append(values[: asking.num_rows].T)
        self._items_done, self._rows_passed = asking.stop, 0

    def partial(self) -> PartialLargest:
        """What has been found so far."""
        none = np.zeros((self.k, 0), np.float32)
        return PartialLargest(np.concatenate(self._found, axis=1) if self._found else none, self.k)


@functools.partial(jax.jit, static_argnames=("similarity_fn", "chunk_size"))
def _add_answers(
    nearest: Nearest,
    asking: jax.Array,
    answers: sweep.Items,
    exclude: jax.Array | None,
    *,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> Nearest:
    k, dtype = nearest.values.shape[-1], nearest.values.dtype
    return sweep.sweep(
        sweep.unfinished(search.nearest_pass(1, k, dtype)),
        sweep.Rows(asking, state=nearest),
        answers._replace(own=(None, exclude)),
        sweep.Tiling(
            lambda items, rows: similarity_fn(rows, items).T,
            dtype,
            chunk_size,
            search.columns_for(k),
        ),
    ).outputs
