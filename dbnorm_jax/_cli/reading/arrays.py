"""Reading arrays from files, distrusting them; .npy and .npz here, others by `formats`.

The header is compared with the size of the file before anything is allocated, and nothing is ever
unpickled. Errors name the argument, the file, what was expected, what was found and the remedy;
NumPy's own messages are not passed on, since some of them advise to allow pickles.
"""

import contextlib
import dataclasses
import io
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from dbnorm_jax._cli.reading import formats, sets
from dbnorm_jax._cli.reading.argument import BROKEN_REMEDY, SAVE_REMEDY, Source, opened
from dbnorm_jax._cli.reading.sets import Array, Csr, EvaluationSet
from dbnorm_jax._src.files import binary

_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = b"PK"
_PICKLE_MAGIC = b"\x80"
# How archives begin, full or empty; two letters may begin a text as well.
_MEMBER_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")

# An archive may unpack to so much without question, and beyond it to so many times its own size.
# Embeddings shrink by a factor of 1 to 4; a planted bomb by about 1000.
_SMALL = 16 * 2**20
_MOST_COMPRESSED = 100

_REWRITE_REMEDY = "copy it again, or write it with numpy.save as float32"


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


def read_integers(source: Source, several: str = "") -> Array:
    """A 1-d array of row numbers; `several` says where a row that has several of them goes."""
    array = _read(source)
    expected = "1 axis of integers (rows, counted from 0)"
    if array.dtype.kind == "b" or array.ndim == 2:
        what = f"dtype {array.dtype}, shape {array.shape}"
        remedy = "write the number of each row's right one, for a matrix numpy.nonzero(matrix)[1]"
        raise source.fail(expected, what, remedy + several)
    if array.dtype.kind not in "iu":
        remedy = "convert with .astype('int64')"
        raise source.fail("integers (rows, counted from 0)", f"dtype {array.dtype}", remedy)
    if array.ndim != 1:
        raise source.fail(expected, f"shape {array.shape}", "reshape it")
    return array


def read_labels(source: Source, count: int, of: str) -> tuple[str, ...]:
    """One label per item, as `read_items` finds them."""
    labels = read_items(source, count, f"{count} labels, one per {of}")
    return tuple(str(label) for label in labels)


def read_items(source: Source, count: int, expected: str) -> Array:
    """What items are called: lines of text, or a 1-d array of texts or integers.

    `expected` says in an error what the `count` of them stands for.
    """
    with opened(source) as file:
        start = file.read(len(_NPY_MAGIC))
    is_array = start == _NPY_MAGIC or start.startswith(_MEMBER_MAGICS)
    items = read_names(source) if is_array else read_lines(source)
    if len(items) != count:
        remedy = "write a line for every one, in the order of the rows"
        raise source.fail(expected, f"{len(items)}", remedy)
    return items


def read_names(source: Source) -> Array:
    """A 1-d array of texts or integers."""
    array = _read(source)
    if array.dtype.kind not in "Uiu" or array.ndim != 1:
        what = f"dtype {array.dtype}, shape {array.shape}"
        raise source.fail("1 axis of strings or integers", what, "or give a text file")
    return array


def read_lines(source: Source) -> Array:
    """The lines of a UTF-8 text file, as objects.

    A line ends with a line feed, or with a carriage return before it. `str.splitlines`, and files
    opened as text, end lines at characters that names may hold.
    """
    with opened(source) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {data[error.start]:#x} at place {error.start}"
        raise source.fail("UTF-8 text", what, "save it as UTF-8") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    return np.array(lines, dtype=object)


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
    array = read_integers(source, "; several as gt_indptr and gt_indices in an npz")
    return sets.relevant_from_indices(str(source), array, num_queries, num_gallery)


def read_set(text: str, similarity: str) -> EvaluationSet:
    """A whole set from one npz.

    It holds query, gallery and query_bank, and possibly gallery_bank, bank_pair, and gt_indptr
    with gt_indices.
    """
    source = Source.parse("SET.npz", text)
    if source.member is not None or not _is_archive(source):
        remedy = "give a set, or the files of its parts one by one as --help says"
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
    if (read := formats.reader(source)) is not None:
        return read(source)
    if _is_archive(source):
        return _read_member(source)
    if source.member is not None:
        raise source.fail("an npz archive", "a single .npy array", "leave the :name out")
    with opened(source) as file:
        size = source.path.stat().st_size
        header = _header(source, file, size)
    if not header.num_bytes:
        return np.empty(header.shape, header.dtype)
    array = np.memmap(
        source.path,
        dtype=header.dtype,
        mode="r",
        offset=header.offset,
        shape=header.shape,
        order="F" if header.fortran_order else "C",
    )
    with _refusing(source):
        binary.check_texts(array)
    return array


def _is_archive(source: Source) -> bool:
    with opened(source) as file:
        start = file.read(len(_NPY_MAGIC))
    if start.startswith(_ZIP_MAGIC):
        return True
    if start == _NPY_MAGIC:
        return False
    if not start:
        raise source.fail("a .npy or .npz file", "an empty file", BROKEN_REMEDY)
    what = "other contents"
    if start.startswith(_PICKLE_MAGIC):
        what = "what looks like a pickle, which can run code and is not loaded"
    raise source.fail("a .npy or .npz file", what, SAVE_REMEDY)


def _header(source: Source, file: IO[bytes], size: int) -> binary.Header:
    with _refusing(source):
        return binary.read_header(file, size)


@contextlib.contextmanager
def _refusing(source: Source) -> Iterator[None]:
    try:
        yield
    except binary.BadArrayError as error:
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
    with opened(source) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except binary.ZIP_ERRORS:
            remedy = BROKEN_REMEDY
            what = "a truncated, damaged or locked one"
            raise source.fail("an npz archive", what, remedy) from None


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
    with _archive(source) as archive:
        info = archive.getinfo(f"{source.member}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            what = "another way of packing"
            raise source.fail("members as NumPy writes them", what, SAVE_REMEDY)
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
    with _refusing(source):
        return header.array(data)


def _fill(source: Source, target: memoryview, start: bytes, stream: IO[bytes]) -> None:
    target[: len(start)] = start
    filled = len(start)
    while filled < len(target):
        block = stream.read(min(2**20, len(target) - filled))
        if not block:
            raise source.fail(f"{len(target)} bytes", f"{filled} (truncated)", BROKEN_REMEDY)
        target[filled : filled + len(block)] = block
        filled += len(block)
    stream.read(1)  # past the end: compares the checksum
