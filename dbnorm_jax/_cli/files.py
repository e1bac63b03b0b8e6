"""Reading arrays from .npy and .npz files, distrusting them.

The header is compared with the size of the file before anything is allocated, and nothing is ever
unpickled. Errors name the argument, the file, what was expected, what was found and the remedy;
NumPy's own messages are not passed on, since some of them advise to allow pickles.
"""

import contextlib
import dataclasses
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from dbnorm_jax._cli import sets
from dbnorm_jax._cli.sets import Array, Csr, EvaluationSet
from dbnorm_jax._src import binary_files

_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = b"PK"
_PICKLE_MAGIC = b"\x80"

# An archive may unpack to so much without question, and beyond it to so many times its own size.
# Embeddings shrink by a factor of 1 to 4; a planted bomb by about 1000.
_SMALL = 16 * 2**20
_MOST_COMPRESSED = 100

_SAVE_REMEDY = "write it with numpy.save as float32"
_BROKEN_REMEDY = "copy or write it again"
_REWRITE_REMEDY = "copy it again, or write it with numpy.save as float32"


@dataclasses.dataclass(frozen=True)
class Source:
    """A file given for an argument; `str()` of it names both in errors."""

    argument: str
    path: Path
    member: str | None = None

    @classmethod
    def parse(cls, argument: str, text: str) -> "Source":
        """`FILE` or `FILE.npz:name`; an existing file of that very name comes first."""
        head, colon, member = text.rpartition(":")
        if colon and head.lower().endswith(".npz") and not Path(text).exists():
            return cls(argument, Path(head), member)
        return cls(argument, Path(text))

    def __str__(self) -> str:
        member = "" if self.member is None else f":{self.member}"
        return f"{self.argument} '{self.path}{member}'"

    def fail(self, expected: str, actual: str, remedy: str) -> ValueError:
        """The error to raise."""
        return ValueError(f"{self}: expected {expected}, got {actual}; {remedy}")


def read_floats(source: Source) -> Array:
    """A non-empty 2-d floating-point array; an .npy file is memory-mapped."""
    array = _read(source)
    if array.dtype.kind != "f":
        what = f"dtype {array.dtype}"
        if array.dtype.kind == "V":
            what += " (bfloat16 loses its name in an .npy file)"
        raise source.fail("floating-point numbers", what, "convert with .astype('float32')")
    if array.ndim != 2:
        remedy = "reshape it to [rows, columns]"
        raise source.fail("2 axes, one row per item", f"shape {array.shape}", remedy)
    if 0 in array.shape:
        raise source.fail("at least one row and one column", f"shape {array.shape}", "fill it")
    return array


def read_integers(source: Source) -> Array:
    """A 1-d integer array."""
    array = _read(source)
    if array.dtype.kind not in "iu":
        remedy = "convert with .astype('int64')"
        raise source.fail("integers (rows, counted from 0)", f"dtype {array.dtype}", remedy)
    if array.ndim != 1:
        raise source.fail("1 axis", f"shape {array.shape}", "reshape it")
    return array


def read_relevant(source: Source, num_queries: int, num_gallery: int) -> Csr:
    """The right gallery rows of each query: one index per query, or CSR in an npz."""
    if source.member is None and _is_archive(source):
        names = _names(source)
        if len(names) != 1:
            indptr, indices = (
                read_integers(_member_of(source, name, names))
                for name in ("gt_indptr", "gt_indices")
            )
            return sets.relevant_from_csr(str(source), indptr, indices, num_queries, num_gallery)
    array = read_integers(source)
    return sets.relevant_from_indices(str(source), array, num_queries, num_gallery)


def read_set(text: str, similarity: str) -> EvaluationSet:
    """A whole set from one npz.

    It holds query, gallery and query_bank, and possibly gallery_bank, bank_pair, and gt_indptr
    with gt_indices.
    """
    source = Source.parse("SET.npz", text)
    if source.member is not None or not _is_archive(source):
        remedy = "give QUERIES and GALLERY as two files, or a set"
        what = "one array" if source.member is not None else "a single .npy array"
        raise source.fail("an npz with query, gallery and query_bank", what, remedy)
    names = _names(source)
    parts = {
        name: _member_of(source, name, names)
        for name in ("query", "gallery", "query_bank", "gallery_bank")
        if name in names or name != "gallery_bank"
    }
    arrays = {part: read_floats(part) for part in parts.values()}
    sets.check_same_columns(
        {str(part): array for part, array in arrays.items()}, "embedding dimensions"
    )
    num_queries, num_gallery = (len(arrays[parts[name]]) for name in ("query", "gallery"))
    relevant = None
    if "gt_indptr" in names or "gt_indices" in names:
        relevant = read_relevant(source, num_queries, num_gallery)
    elif num_queries == num_gallery:
        relevant = sets.rows_relevant(num_queries)
    pairs = None
    if "bank_pair" in names and "gallery_bank" in parts:
        part = _member_of(source, "bank_pair", names)
        sizes = (len(arrays[parts[name]]) for name in ("query_bank", "gallery_bank"))
        pairs = sets.checked_pairs(str(part), read_integers(part), *sizes)

    embeddings = {
        name: sets.prepared(str(part), arrays[part], similarity) for name, part in parts.items()
    }
    stem = source.path.stem
    return EvaluationSet(
        # Many sets are folders with one data.npz each: the folder is the name.
        name=source.path.resolve().parent.name if stem == "data" else stem,
        queries=embeddings["query"],
        gallery=embeddings["gallery"],
        query_bank=embeddings["query_bank"],
        gallery_bank=embeddings.get("gallery_bank"),
        relevant=relevant,
        bank_pairs=pairs,
        similarity=similarity,
    )


def _read(source: Source) -> Array:
    if _is_archive(source):
        return _read_member(source)
    if source.member is not None:
        raise source.fail("an npz archive", "a single .npy array", "leave the :name out")
    with _opened(source) as file:
        size = source.path.stat().st_size
        header = _header(source, file, size)
    if not header.num_bytes:
        return np.empty(header.shape, header.dtype)
    return np.memmap(
        source.path,
        dtype=header.dtype,
        mode="r",
        offset=header.offset,
        shape=header.shape,
        order="F" if header.fortran_order else "C",
    )


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    try:
        # A pipe or device would block, and has no size to check the header against.
        if not stat.S_ISREG(source.path.stat().st_mode):
            kind = "a folder" if source.path.is_dir() else "something else"
            raise source.fail("a .npy or .npz file", kind, "name the file itself")
        file = source.path.open("rb")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise source.fail("a readable file", why, "check the path") from None
    with file:
        yield file


def _is_archive(source: Source) -> bool:
    with _opened(source) as file:
        start = file.read(len(_NPY_MAGIC))
    if start.startswith(_ZIP_MAGIC):
        return True
    if start == _NPY_MAGIC:
        return False
    if not start:
        raise source.fail("a .npy or .npz file", "an empty file", _BROKEN_REMEDY)
    what = "other contents"
    if start.startswith(_PICKLE_MAGIC):
        what = "what looks like a pickle, which can run code and is not loaded"
    raise source.fail("a .npy or .npz file", what, _SAVE_REMEDY)


def _header(source: Source, file: IO[bytes], size: int) -> binary_files.Header:
    try:
        return binary_files.read_header(file, size)
    except binary_files.BadArrayError as error:
        raise source.fail(error.expected, error.actual, _REWRITE_REMEDY) from None


def _names(source: Source) -> list[str]:
    with _archive(source) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _member_of(source: Source, name: str, names: list[str]) -> Source:
    if name not in names:
        raise source.fail(f"an array named {name}", _listed(names), "rename or add the array")
    return dataclasses.replace(source, member=name)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"only {shown}" if names else "no NumPy arrays"


@contextlib.contextmanager
def _archive(source: Source) -> Iterator[zipfile.ZipFile]:
    try:
        with _opened(source) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except zipfile.BadZipFile:
        remedy = _BROKEN_REMEDY
        raise source.fail("an npz archive", "a truncated or damaged one", remedy) from None


def _read_member(source: Source) -> Array:
    names = _names(source)
    if source.member is None:
        if not names:
            remedy = "save the array with numpy.save (from PyTorch: tensor.numpy())"
            raise source.fail("an npz of NumPy arrays", "an archive without any", remedy)
        if len(names) > 1:
            remedy = f"choose one, for instance {source.path.name}:{names[0]}"
            raise source.fail("one array", _listed(names).replace("only ", ""), remedy)
        source = dataclasses.replace(source, member=names[0])
    elif source.member not in names:
        remedy = "choose one of them"
        raise source.fail(f"an array named {source.member}", _listed(names), remedy)
    try:
        with _archive(source) as archive:
            info = archive.getinfo(f"{source.member}.npy")
            # The directory may lie about the packed size as well: the file bounds it.
            packed = min(info.compress_size, source.path.stat().st_size)
            if info.file_size > max(_SMALL, _MOST_COMPRESSED * packed):
                raise source.fail(
                    f"at most {_MOST_COMPRESSED}-fold compression",
                    f"{packed} bytes declared to unpack to {info.file_size}",
                    "save it with numpy.save instead",
                )
            with archive.open(info) as stream:
                start = io.BytesIO(stream.read(2**14))
                header = _header(source, start, info.file_size)
                data = bytearray(header.num_bytes)
                _fill(source, memoryview(data), start.read(), stream)
    except (zlib.error, EOFError, RuntimeError, NotImplementedError):
        remedy = _BROKEN_REMEDY
        raise source.fail("a readable npz member", "a damaged or locked one", remedy) from None
    return header.array(data)


def _fill(source: Source, target: memoryview, start: bytes, stream: IO[bytes]) -> None:
    target[: len(start)] = start
    filled = len(start)
    while filled < len(target):
        block = stream.read(min(2**20, len(target) - filled))
        if not block:
            raise source.fail(f"{len(target)} bytes", f"{filled} (truncated)", _BROKEN_REMEDY)
        target[filled : filled + len(block)] = block
        filled += len(block)
    stream.read(1)  # past the end: compares the checksum
