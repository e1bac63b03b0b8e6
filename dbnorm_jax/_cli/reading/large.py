"""What the commands for large files share: files read in blocks, known by stamps and fingerprints.

A fingerprint is SHA-256 of all rows, made while they are read. A stamp is the file's size and time
of change: where it is as before, the file is taken for unchanged without reading it.
"""

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading import arrays
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.files import binary

SIMILARITY_FUNCTIONS: dict[str, SimilarityFn] = {
    "cosine": dbn.cosine_similarity,
    "dot": dbn.dot_product,
    "euclidean": dbn.negative_squared_euclidean,
}
STDIN = "-"
_ROWS = 4096  # of a pipe in one block
_PART = 2**20  # bytes asked for at once


class Rows(NamedTuple):
    """The rows of one argument: an array, memory-mapped where the file is an .npy, or blocks."""

    label: str  # names argument and file in errors
    rows: Any
    stamp: dict[str, Any] | None

    @property
    def num_rows(self) -> int | None:
        """None where they come through a pipe."""
        return len(self.rows) if isinstance(self.rows, np.ndarray) else None


def open_rows(argument: str, text: str) -> Rows:
    """Opens `FILE`, `FILE.npz:name`, or an .npy on standard input ("-"); reads no values yet."""
    if text == STDIN:
        label = f"{argument} (standard input)"
        return Rows(label, Pipe(label, sys.stdin.buffer), None)
    source = Source.parse(argument, text)
    array = arrays.read_floats(source)
    status = source.path.stat()
    stamp = {"bytes": status.st_size, "modified": status.st_mtime_ns, "member": source.member}
    return Rows(str(source), array, {"path": str(source.path.resolve()), **stamp})


def paths(inputs: Iterable[Rows]) -> dict[str, Path]:
    """The files behind rows, by their labels."""
    stamps = {rows.label: rows.stamp for rows in inputs}
    return {label: Path(stamp["path"]) for label, stamp in stamps.items() if stamp is not None}


class Pipe(Iterator[np.ndarray[Any, np.dtype[Any]]]):
    """The rows of an .npy stream, block by block; no more memory than what has come."""

    def __init__(self, label: str, stream: IO[bytes]) -> None:
        self._expected = f"{label}: expected a 2-d floating-point .npy"
        self._stream = stream
        self._blocks = self._read()

    def __next__(self) -> np.ndarray[Any, np.dtype[Any]]:
        return next(self._blocks)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), which the stream declares before any row of it comes."""
        return self._header.shape

    @functools.cached_property
    def _header(self) -> binary.Header:
        expected = self._expected
        try:
            header = binary.read_stream_header(self._stream)
        except binary.BadArrayError as error:
            found = binary.printable(error.actual)
            raise ValueError(f"{expected}, got {found}; write it with numpy.save") from None
        shape, dtype = header.shape, header.dtype
        if len(shape) != 2 or dtype.kind != "f" or header.fortran_order or 0 in shape:
            order = " in Fortran order" if header.fortran_order else ""
            raise ValueError(
                f"{expected}, got {dtype} of shape {shape}{order}; give a file instead"
            )
        return header

    def _read(self) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        (num_rows, dim), dtype = self.shape, self._header.dtype
        for start in range(0, num_rows, _ROWS):
            size = (min(_ROWS, num_rows - start), dim)
            data = bytearray()
            while missing := size[0] * size[1] * dtype.itemsize - len(data):
                part = self._stream.read(min(missing, _PART))
                if not part:
                    raise ValueError(
                        f"{self._expected} of {num_rows} rows, got a truncated one; send it again"
                    )
                data += part
            yield np.frombuffer(data, dtype).reshape(size)


@contextlib.contextmanager
def errors_name(labels: Mapping[str, str]) -> Iterator[None]:
    """Puts the labels of files where the library names its arguments."""
    try:
        yield
    except checks.ArgumentError as error:
        raise ValueError(error.message(labels)) from None


def check_gallery(label: str, known: Mapping[str, Any] | None, rows: int, dim: int) -> None:
    """Raises where a state was made for a gallery of another shape."""
    if known and (known["rows"], known["dim"]) != (rows, dim):
        raise ValueError(
            f"{label}: expected the gallery it was made for, {known['rows']} rows of {known['dim']}"
            f", got {rows} of {dim}; fit it anew"
        )


def check_fingerprint(label: str, known: Mapping[str, Any] | None, found: Any) -> None:
    """Raises where a state was made for a gallery with other contents."""
    if known and found and known["sha256"] != found["sha256"]:
        raise ValueError(
            f"{label}: expected the gallery it was made for, SHA-256 {known['sha256'][:12]}..., got"
            f" {found['sha256'][:12]}... of the same shape; fit it anew"
        )
