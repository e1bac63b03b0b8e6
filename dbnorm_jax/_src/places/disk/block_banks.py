"""Statistics of banks and galleries that need not fit memory, block against block.

One pass over the bank; for each of its blocks one over the gallery. What is held is a block of
each, the next of each, and vectors of gallery length:

    for each bank block                    its rows' k nearest so far
        for each gallery block             the running log-sums of its items
            one matmul                     both updated

The k nearest of a bank row are known when the whole gallery has passed, so that the k-occurrence is
exact; ties go to the lowest gallery index, as gallery blocks come in order.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.core.types import BankStatistics
from dbnorm_jax._src.passes import banks, sweep
from dbnorm_jax._src.passes.selection import Nearest, start_nearest
from dbnorm_jax._src.places.disk.fingerprints import Array
from dbnorm_jax._src.places.disk.rows import (
    RowBlock,
    Rows,
    check_same_dimension,
    check_same_rows,
    of_prepared,
    on_device,
    read_again,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PartialSums:
    """Bank statistics of the bank rows so far, to go on from without any rounding.

    Attributes:
      maximum: [num_gallery] largest similarity so far.
      total: [num_gallery] or [num_gallery, num_betas], sums of exponentials below that.
      mass: [num_gallery].
      beta: [...] inverse temperature.
      k_occurrence: [num_gallery] int32, of the rows done; None where there are none.
      nearest_values: [num_rows, 1, k] of the rows on their way, None where there are none.
      nearest_indices: of the same.
      k: size of the neighborhoods (static).
      rows_done: bank rows that have passed the whole gallery (static).
      items_done: gallery items that the rows on their way have passed (static).
    """

    maximum: Array
    total: Array
    mass: Array
    beta: Array
    k_occurrence: Array | None
    nearest_values: Array | None
    nearest_indices: Array | None
    k: int = dataclasses.field(metadata={"static": True})
    rows_done: int = dataclasses.field(metadata={"static": True})
    items_done: int = dataclasses.field(metadata={"static": True})

    def state(self) -> BankStatistics:
        """Of the bank, when all of it is done."""
        beta = jnp.asarray(self.beta)
        flat = beta.reshape(-1) if beta.ndim else beta
        log_sum = numerics.RunningLogSum(jnp.asarray(self.maximum), jnp.asarray(self.total))
        shape = (*beta.shape, len(self.maximum))
        counts = None
        if self.k_occurrence is not None:
            counts = jnp.broadcast_to(jnp.asarray(self.k_occurrence), shape)
        return BankStatistics(
            _finish(log_sum, flat).reshape(shape),
            jnp.broadcast_to(jnp.asarray(self.mass), shape),
            beta,
            counts,
            self.k,
        )


_finish = jax.jit(numerics.finish_log_sum)


class PerRow(NamedTuple):
    """Arguments with one entry per bank row, on the host."""

    weights: Array | None
    exclude: Array | None


class BankPass:
    """The pass of a bank over a gallery, one block against one block at a time.

    Attributes:
      bank_fingerprint: of the bank rows that have entered, where asked for.
      gallery_fingerprint: of the gallery once it has passed; of its rows so far before.
    """

    def __init__(
        self,
        bank: Rows,
        gallery: Rows,
        *,
        beta: Any,
        k: int,
        per_row: PerRow,
        similarity_fn: SimilarityFn,
        chunk_size: int,
        begun: PartialSums | None = None,
        expected: tuple[Any, Any] = (None, None),
        hashed: bool = False,
    ) -> None:
        check_same_dimension(bank, gallery)
        if not bank.fits_one_block:
            gallery.check_repeatable("the gallery is passed over once per block of bank rows")
        self.bank, self.gallery = bank, gallery
        self.k = k
        self.bank_fingerprint: dict[str, Any] | None = None
        self.gallery_fingerprint: dict[str, Any] | None = None
        self._hashed, self._gallery_hashed = hashed, False
        self._expected = expected
        self._beta, self._per_row = beta, per_row
        self._similarity_fn = similarity_fn
        self._rows_done, self._items_done = 0, 0
        self._nearest: Nearest | None = None
        self._sums: list[banks.RunningSums] = []
        self._num_items = 0  # that have sums
        self._counts: Array | None = None
        if begun is not None:
            self._go_on_from(begun)
        self._add = functools.partial(
            _add_block,
            similarity_fn=of_prepared(similarity_fn),
            chunk_size=chunk_size,
        )

    @property
    def done(self) -> tuple[int, int]:
        """(bank rows done, gallery items that the next block of them has passed)."""
        return self._rows_done, self._items_done

    def steps(self) -> Iterator[None]:
        """Adds what is left, yielding after each block against block."""
        bank = self.bank
        for block in bank.read(hashed=self._hashed, skip=self._rows_done):
            check_same_rows(bank, self._expected[0], bank.skipped, block.fingerprint)
            self.bank_fingerprint = block.fingerprint
            for name, values in self._per_row._asdict().items():
                if values is not None and len(values) < block.stop:
                    self._fail_length(name, len(values), f"at least {block.stop}")
            yield from self._against_gallery(block)
            self._rows_done, self._items_done, self._nearest = block.stop, 0, None
        if self.bank_fingerprint is None:  # all had been done before
            self.bank_fingerprint = bank.skipped
            check_same_rows(bank, self._expected[0], bank.skipped)
        for name, values in self._per_row._asdict().items():
            if values is not None and len(values) != bank.num_rows:
                self._fail_length(name, len(values), str(bank.num_rows))

    def check_other(self) -> None:
        """Reads the gallery only to see whether it is the one expected."""
        self.gallery_fingerprint = read_again(self.gallery, self._expected[1])

    def _fail_length(self, name: str, actual: int, expected: str) -> None:
        raise ValueError(
            f"`{name}` must have one entry per bank row, expected {expected}, got {actual}"
        )

    def _against_gallery(self, block: RowBlock) -> Iterator[None]:
        rows, gallery = on_device(block, self._similarity_fn), self.gallery
        bank, nearest, before = None, self._nearest, None
        # The first pass of this process is hashed, from its beginning.
        hashed, self._gallery_hashed = self._hashed and not self._gallery_hashed, True
        for items in gallery.read(hashed=hashed, skip=self._items_done):
            if bank is None:
                check_same_dimension(self.bank, gallery)
                bank = self._entering(block, rows)
            if nearest is None:
                nearest = start_nearest((len(rows), 1, self.k), self._flat_beta().dtype)
            place = items.start // gallery.block_size
            if place == len(self._sums):
                self._sums.append(banks.start_sums(len(items.rows), self._flat_beta()))
                self._num_items = items.stop
            # The step before is done before the next is begun: no queue of blocks builds up.
            self._settle(before)
            passing = items_of(items, self._similarity_fn)
            sums = jax.tree.map(jnp.asarray, self._sums[place])
            nearest, sums = self._add(nearest, sums, bank, passing, self._flat_beta())
            self._sums[place], before = sums, place
            self._nearest, self._items_done = nearest, items.stop
            if hashed:
                check_same_rows(gallery, self._expected[1], gallery.skipped, items.fingerprint)
                self.gallery_fingerprint = items.fingerprint
            yield
        self._settle(before)
        if hashed and self.gallery_fingerprint is None:
            self.gallery_fingerprint = gallery.skipped
            check_same_rows(gallery, self._expected[1], gallery.skipped)
        if self.k:
            assert nearest is not None
            self._count(nearest, bank or self._entering(block, rows))

    def _settle(self, place: int | None) -> None:
        """Waits for the sums of a block, and keeps them on the host: devices hold less."""
        if place is not None:
            self._sums[place] = jax.tree.map(np.array, self._sums[place])

    def _entering(self, block: RowBlock, rows: jax.Array) -> sweep.Rows:
        weights, exclude = self._per_row
        dtype = self._flat_beta().dtype
        entering = block.valid.astype(dtype)
        if weights is not None:
            entering = block.filled(np.asarray(checks.narrowed("weights", weights, dtype)), 0)
        own = None if exclude is None else block.filled(exclude, -1)
        return sweep.Rows(rows, own, entering)

    def _flat_beta(self) -> jax.Array:
        assert self.bank.dtype is not None
        assert self.gallery.dtype is not None
        dtype = numerics.accumulation_dtype(self.bank.dtype, self.gallery.dtype)
        self._beta = checks.narrowed("beta", self._beta, dtype)
        return self._beta.reshape(-1) if self._beta.ndim else self._beta

    def _count(self, nearest: Nearest, bank: sweep.Rows) -> None:
        num_gallery = self.gallery.num_rows
        assert num_gallery is not None
        checks.integer("k", self.k, low=0, high=num_gallery, of=" (gallery items)")
        if self._counts is None:
            self._counts = np.zeros(num_gallery, np.int32)
        assert bank.weights is not None
        known = jnp.asarray(numerics.is_number(nearest.values[:, 0]))
        counted = np.asarray(known & (bank.weights > 0)[:, None])
        np.add.at(self._counts, np.asarray(nearest.indices[:, 0])[counted], 1)

    def partial(self) -> PartialSums:
        """What has been added so far."""
        length = self._num_items

        def joined(leaf: Callable[[banks.RunningSums], jax.Array]) -> Array:
            return np.concatenate([np.asarray(leaf(sums)) for sums in self._sums])[:length]

        nearest = self._nearest
        return PartialSums(
            joined(lambda sums: sums.log_sum.maximum),
            joined(lambda sums: sums.log_sum.total),
            joined(lambda sums: sums.mass),
            np.asarray(self._beta),
            None if self._counts is None else self._counts.copy(),
            None if nearest is None else np.asarray(nearest.values),
            None if nearest is None else np.asarray(nearest.indices),
            self.k,
            self._rows_done,
            self._items_done,
        )

    def _go_on_from(self, begun: PartialSums) -> None:
        self._rows_done, self._items_done = begun.rows_done, begun.items_done
        self._num_items = len(begun.mass)
        if begun.k_occurrence is not None:
            self._counts = np.array(begun.k_occurrence)
        if begun.nearest_values is not None:
            values, indices = begun.nearest_values, begun.nearest_indices
            self._nearest = Nearest(jnp.asarray(values), jnp.asarray(indices))
        size = min(self.gallery.block_size, self._num_items)
        for start in range(0, self._num_items, size):
            part = RowBlock(begun.mass[:size], start, min(size, self._num_items - start), None)
            log_sum = numerics.RunningLogSum(
                part.filled(begun.maximum, numerics.LOWEST), part.filled(begun.total, 0)
            )
            self._sums.append(banks.RunningSums(log_sum, part.filled(begun.mass, 0)))


def items_of(block: RowBlock, similarity_fn: SimilarityFn) -> sweep.Items:
    """A block where JAX computes, as what is asked."""
    rows = on_device(block, similarity_fn)
    return sweep.Items(rows, None, block.valid, jnp.asarray(block.start, jnp.int32))


@functools.partial(jax.jit, static_argnames=("similarity_fn", "chunk_size"))
def _add_block(
    nearest: Nearest,
    sums: banks.RunningSums,
    bank: sweep.Rows,
    items: sweep.Items,
    beta: jax.Array,
    *,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> tuple[Nearest, banks.RunningSums]:
    kept = banks.bank_pass(beta, k=nearest.values.shape[-1])
    tiling = sweep.Tiling(similarity_fn, beta.dtype, chunk_size)
    swept = sweep.sweep(
        sweep.unfinished(kept), bank._replace(state=nearest), items, tiling, state=sums
    )
    return swept.outputs, swept.items
