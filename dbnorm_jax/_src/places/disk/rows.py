"""Rows of a matrix that need not fit memory, in blocks of one shape, read one block ahead.

    an array, memory-mapped or not       read in slices
    an iterable of blocks of rows        any number of rows each, cut and joined to size

Every block is converted, checked and named by its rows in errors. The last one is filled up with
copies of its first row, so that one compiled program serves all.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.core import checks, filling, numerics
from dbnorm_jax._src.core.similarity import SimilarityFn, cosine_similarity, dot_product
from dbnorm_jax._src.passes.streaming import even_size

# Rows read, converted and moved at once: so many that their products take far longer.
DEFAULT_BLOCK_SIZE = 8192
# Block sizes are multiples of this, so that few of them are compiled for.
_MULTIPLE = 256
_END: Any = object()
Array = np.ndarray[Any, np.dtype[Any]]


class RowBlock(NamedTuple):
    """Some rows in memory."""

    rows: Array  # [size, dim]; from `num_rows` on copies of the first
    start: int  # number of the first row
    num_rows: int
    fingerprint: dict[str, Any] | None  # of all rows up to here, where asked for

    @property
    def stop(self) -> int:
        """One more than the number of the last row."""
        return self.start + self.num_rows

    def filled(self, values: Array | None) -> Any:
        """`values`, one per row of the matrix, for this block; 0 on the copies. None stays None."""
        if values is None:
            return None
        part = values[self.start : self.stop]
        missing = [(0, len(self.rows) - len(part))] + [(0, 0)] * (values.ndim - 1)
        return jnp.asarray(np.pad(part, missing))

    @property
    def valid(self) -> jax.Array:
        """[size] bool, False on the copies."""
        return jnp.asarray(np.arange(len(self.rows)) < self.num_rows)


class Fingerprint:
    """SHA-256 of the rows of a matrix, block by block in order, with their dtype and number.

    The same for every way of cutting the rows into blocks, for C and Fortran order and for either
    byte order; another for another dtype. Of whole contents, because a file that changed in one
    place is another file: hashed by the thread that reads them anyway, a GB/s or two.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._num_rows = 0

    def update(self, rows: Array) -> dict[str, Any]:
        """Adds rows [num_rows, dim], C order; returns the description of all so far."""
        plain: Any = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
        self._digest.update(plain.view(np.uint8))
        self._num_rows += len(rows)
        description = {"rows": self._num_rows, "dtype": rows.dtype.name, "dim": rows.shape[1]}
        digest = self._digest.copy()
        digest.update(json.dumps(description, sort_keys=True).encode())
        return {"sha256": digest.hexdigest(), **description}


class Rows:
    """The rows of one argument."""

    num_rows: int | None = None  # until an iterable has been passed over once
    dim: int | None = None  # until the first block of an iterable
    dtype: np.dtype[Any] | None = None  # of the blocks; as `dim`
    fingerprint: dict[str, Any] | None = None  # of all rows, after a pass that was hashed
    expected: dict[str, Any] | None = None  # fingerprint of the first rows, which a pass compares
    in_any_number = False  # whether a short block is filled up, too: requests of few queries
    _passes = 0

    def __init__(
        self, name: str, source: Any, block_size: int, similarity_fn: SimilarityFn = dot_product
    ) -> None:
        self.name = name  # of the argument
        self.block_size = block_size
        self.similarity_fn = similarity_fn  # by which they are compared
        # Other arguments with an entry for each row, by name; None where not given.
        self.per_row: dict[str, Array | None] = {}
        self._source = source
        # Looked up here: the setting belongs to a thread, and another one reads.
        self._wide = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined, unused-ignore]
        if isinstance(source, jax.core.Tracer):
            raise checks.BadTypeError(
                name, " must be concrete here, got values traced by jit or vmap"
            )
        lazy = isinstance(getattr(source, "dtype", None), np.dtype)  # slices of it are arrays
        if isinstance(source, jax.Array) or (hasattr(source, "__array__") and not lazy):
            self._source = source = np.asarray(source)
        self._is_array = hasattr(source, "shape") and hasattr(source, "dtype")
        if self._is_array:
            self._check_shape(source)
            if 0 in source.shape:
                shape = tuple(source.shape)
                self.fail(f" must have at least one row and one dimension, got shape {shape}")
            self.num_rows = source.shape[0]
            self.block_size = even_size(source.shape[0], block_size, _MULTIPLE)
        elif not isinstance(source, Iterable) or isinstance(source, (str, bytes, dict)):
            raise checks.BadTypeError(
                name,
                f" must be an array or an iterable of blocks of rows, got {type(source).__name__}",
            )
        self._is_iterator = not self._is_array and iter(source) is source

    def fail(self, text: str) -> NoReturn:
        """Raises, with the name of the argument before the text."""
        raise checks.BadValueError(self.name, text)

    def on_device(self, block: RowBlock) -> jax.Array:
        """The block where JAX computes; of unit length under cosine similarity."""
        rows = jnp.asarray(block.rows)
        return _normalized(rows) if self.similarity_fn is cosine_similarity else rows

    @property
    def compare(self) -> SimilarityFn:
        """The similarity of rows on a device."""
        return dot_product if self.similarity_fn is cosine_similarity else self.similarity_fn

    @property
    def fits_one_block(self) -> bool:
        """Whether there is known to be no second block."""
        return self.num_rows is not None and self.num_rows <= self.block_size

    def check_repeatable(self, why: str) -> None:
        """Raises for an iterator, which can be passed over only once."""
        if self._is_iterator:
            self.fail(
                f" must be an array or an iterable that begins anew each time, got an iterator "
                f"({type(self._source).__name__}); {why}: pass a list, or an object whose __iter__ "
                f"opens the source"
            )

    def check_same_dimension(self, other: "Rows") -> None:
        """Raises where both are known to have different numbers of columns."""
        if None not in (self.dim, other.dim) and self.dim != other.dim:
            raise checks.BadValueError(
                self.name,
                " and ",
                other.name,
                f" must have the same number of columns (embedding dimensions), got {self.dim} and "
                f"{other.dim}",
            )

    def check_all(self) -> None:
        """Raises where a hashed pass has met other rows than those expected, or more or fewer."""
        if self.expected and self.fingerprint != self.expected:
            self.fail(
                f" must have the {self.expected['rows']} rows that the checkpoint was made from, "
                f"got {self.num_rows}"
            )

    def read(self, *, hashed: bool = False, skip: int = 0) -> Iterator[RowBlock]:
        """One pass, read ahead by a thread; blocks within the first `skip` rows are left out."""
        if self._passes and self._is_iterator:
            self.check_repeatable("it is read more than once")
        self._passes += 1
        return prefetched(self._read(hashed, skip))

    def hash(self) -> dict[str, Any]:
        """The fingerprint, by a pass that is for nothing else."""
        for _ in self.read(hashed=True):
            pass
        assert self.fingerprint is not None
        return self.fingerprint

    def _read(self, hashed: bool, skip: int) -> Iterator[RowBlock]:
        known, num_rows, size = self.num_rows, 0, self.block_size
        fingerprint, described = Fingerprint(), None
        for rows in self._of_one_size():
            if hashed:
                described = fingerprint.update(rows)
                self._check_same(described)
            start, num_rows = num_rows, num_rows + len(rows)
            if num_rows > checks.MOST_ROWS:
                self.fail(f" must have at most {checks.MOST_ROWS} rows; split it")
            self._check_per_row(num_rows, whole=False)
            if num_rows <= skip:
                continue
            if start < skip:
                self._fail_changed(skip, num_rows)
            if not start:
                size = self.block_size = len(rows)  # the only block, if short, is filled up less
                size = filling.length(size) if self.in_any_number else size
            copies = np.broadcast_to(rows[:1], (size - len(rows), rows.shape[1]))
            filled = np.concatenate([rows, copies]) if len(copies) else rows
            yield RowBlock(filled, start, len(rows), described)
        if not num_rows:
            self.fail(" must have at least one row, got none")
        if num_rows != (num_rows if known is None else known) or num_rows < skip:
            self._fail_changed(skip if known is None else known, num_rows)
        self._check_per_row(num_rows, whole=True)
        self.num_rows = num_rows
        self.fingerprint = described or self.fingerprint

    def _check_per_row(self, num_rows: int, *, whole: bool) -> None:
        for name, values in self.per_row.items():
            length = num_rows if values is None else len(values)
            if length < num_rows or (whole and length > num_rows):
                raise checks.BadValueError(
                    name,
                    f" must have one entry per {self.name} row, expected "
                    f"{'' if whole else 'at least '}{num_rows}, got {length}",
                )

    def _check_same(self, found: dict[str, Any]) -> None:
        expected = self.expected
        if expected and expected["rows"] == found["rows"] and expected != found:
            self.fail(
                f" must have the rows that the checkpoint was made from, but its first "
                f"{found['rows']} rows have changed; begin anew without the checkpoint"
            )

    def _fail_changed(self, before: int, now: int) -> None:
        self.fail(
            f" must have the same rows each time, got {before} and then {now}; has it changed, or "
            f"does it not begin anew?"
        )

    def _of_one_size(self) -> Iterator[Array]:
        """Converted rows, `block_size` at a time; the last may be fewer."""
        held: list[Array] = []
        start, count = 0, 0  # of the rows held
        for raw in self._slices() if self._is_array else map(self._checked, self._source):
            if len(raw):
                held.append(self._converted(raw, start + count))
                count += len(raw)
            while count >= self.block_size:
                rows = held[0] if len(held) == 1 else np.concatenate(held)
                yield rows[: self.block_size]
                held = [rows[self.block_size :]] if count > self.block_size else []
                start, count = start + self.block_size, count - self.block_size
        if count:
            yield np.concatenate(held)

    def _check_shape(self, array: Any) -> None:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise checks.BadTypeError(
                self.name,
                f" must be floating point, got dtype {array.dtype}; convert it first, "
                f"for instance with .astype('float32')",
            )
        if len(array.shape) != 2:
            remedy = "" if self._is_array else "; an iterable gives blocks of rows [rows, dim]"
            self.fail(f" must have 2 axes, got shape {tuple(array.shape)}{remedy}")
        dtype = np.dtype(array.dtype).newbyteorder("=")
        if dtype.itemsize > 4 and not self._wide:
            dtype = np.dtype(np.float32)
        if (self.dim or array.shape[1], self.dtype or dtype) != (array.shape[1], dtype):
            self.fail(
                f" must have blocks of one kind, got {self.dim} columns of {self.dtype} and then "
                f"{array.shape[1]} of {dtype}"
            )
        self.dim, self.dtype = array.shape[1], dtype

    def _slices(self) -> Iterator[Array]:
        for start in range(0, self._source.shape[0], self.block_size):
            yield np.asarray(self._source[start : start + self.block_size])
            let_go(self._source)

    def _checked(self, block: Any) -> Array:
        array = np.asarray(block)
        self._check_shape(array)
        if not array.shape[1]:
            self.fail(f" must have at least one dimension, got {array.shape}")
        return array

    def _converted(self, raw: Array, start: int) -> Array:
        """In the dtype that is computed with, its values checked."""
        # A slice of an array stays where it is: the check below reads the pages of a file, which
        # the device then shares or copies. An iterable may write its next block over this one.
        copy = None if self._is_array else True
        with np.errstate(over="ignore"):
            rows: Array = np.array(raw, dtype=self.dtype, order="C", copy=copy)
        # A sum would do, were it not for opposite infinities and overflow: both are looked into.
        with np.errstate(all="ignore"):
            suspect = not np.isfinite(rows.sum(dtype=np.promote_types(rows.dtype, np.float32)))
        if suspect and not (finite := np.isfinite(rows)).all():
            row, column = np.argwhere(~finite)[0].tolist()
            self.fail(
                f" must be finite, found {rows[row, column]} at index [{start + row}, {column}]; "
                f"remove or repair that row"
            )
        if self.similarity_fn is cosine_similarity:
            # To the device the smallest numbers may be zero.
            tiny = np.finfo(np.float64 if self.dtype == np.float64 else np.float32).tiny
            zero = np.abs(rows).max(axis=1) < tiny
            if zero.any():
                self.fail(
                    f" must have no zero row under cosine similarity, found the first at row "
                    f"{start + int(zero.argmax())}; remove it"
                )
        return rows


def let_go(array: Any) -> None:
    """Hands back the pages that were read of a memory-mapped file; who needs one reads it again.

    Else a process seems to hold the whole file. Any other array is left alone; one that is made of
    `parts` lets each of them go.
    """
    for part in getattr(array, "parts", ()):
        let_go(part)
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    if array is None or not hasattr(array, "madvise"):
        return
    # What was written into a map that copies is nowhere else.
    if memoryview(array).readonly:
        array.madvise(mmap.MADV_DONTNEED)


def prefetched(items: Iterable[Any]) -> Iterator[Any]:
    """The items, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1, "dbnorm-reader") as reader:
        iterator = reader.submit(iter, items).result()
        ahead = reader.submit(next, iterator, _END)
        while (item := ahead.result()) is not _END:
            ahead = reader.submit(next, iterator, _END)
            yield item


_normalized: Callable[[jax.Array], jax.Array] = jax.jit(numerics.normalize_rows)
