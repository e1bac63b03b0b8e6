"""The forms of files that hold arrays, read by nobody but their readers here, and distrusted.

NumPy's own messages are not passed on, since some of them advise to allow pickles. In Parquet and
Arrow a column of lists of one length is a matrix, a column of numbers or texts a vector; lists of
lists, and tensors of one shape, are rows of all their numbers. Lists of integers may differ in
length, and are filled up with -1. An .npy and Arrow files are memory-mapped, the others are read
whole.
"""

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np

from dbnorm_jax._cli.reading import arrow_sizes, word_vectors
from dbnorm_jax._cli.reading.argument import Source, kind_of, opened
from dbnorm_jax._cli.reading.packages import install_hint
from dbnorm_jax._cli.reading.sets import Array
from dbnorm_jax._src.files import binary, texts

# A file may unpack to so much without question, and beyond it to so many times its own size.
# Embeddings shrink by a factor of 1 to 4; a planted bomb by about 1000.
_SMALL = 16 * 2**20
_MOST_COMPRESSED = 100
_LISTED = 8
PICKLE = b"\x80"
_BROKEN = "copy or write it again"

ROWS, NUMBERS, TEXTS = "rows", "numbers", "texts"


class Container(NamedTuple):
    """An open file."""

    names: list[str] | None  # of its arrays; None where it is one array
    read: Callable[[str], Array]  # an array, by its name
    columns: Mapping[str, str | None] = {}  # of a table, what each holds of the three above
    fields: Mapping[str, str | None] = {}  # of its structs, by their paths; a column goes first


@contextlib.contextmanager
def contained(source: Source) -> Iterator[Container]:
    """The file, open and in whatever form."""
    kind = kind_of(source)
    if kind is None:
        raise _unknown(source)
    try:
        with _FORMS[kind](source) as container:
            yield container
    except binary.BadArrayError as error:
        remedy = f"copy it again, or {source.remedy}"
        raise source.fail(error.expected, error.actual, remedy) from None


def _unknown(source: Source) -> ValueError:
    with opened(source) as file:
        start = file.read(1)
    what, remedy = "other contents", source.remedy
    if not start:
        what, remedy = "an empty file", _BROKEN
    elif start == PICKLE:
        what = "what looks like a pickle, which can run code and is not loaded"
    forms = "an array file (.npy, .npz, .safetensors, .parquet, .arrow, .vec)"
    return source.fail(forms, what, remedy)


def listed(names: list[str]) -> str:
    """Some of the names."""
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


# --- of NumPy ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _npy(source: Source) -> Iterator[Container]:
    def read(_: str) -> Array:
        with opened(source) as file:
            header = binary.read_header(file, source.path.stat().st_size)
        if not header.num_bytes:
            return np.empty(header.shape, header.dtype)
        size = (header.num_bytes,)
        return header.array(np.memmap(source.path, np.uint8, "r", header.offset, size))

    yield Container(None, read)


@contextlib.contextmanager
def _npz(source: Source) -> Iterator[Container]:
    with opened(source) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.namelist()
                names = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
                of_texts = texts.names(names)

                def read(name: str) -> Array:
                    if name not in of_texts:
                        return _unpacked(source, archive, name)
                    parts = (name + texts.UTF8, name + texts.OFFSETS)
                    return texts.joined(*(_unpacked(source, archive, part) for part in parts))

                yield Container([*names, *of_texts], read)
        except binary.ZIP_ERRORS:
            what = "a truncated, damaged or locked one"
            raise source.fail("an npz archive", what, _BROKEN) from None


def _unpacked(source: Source, archive: zipfile.ZipFile, name: str) -> Array:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise source.fail("members as NumPy writes them", "another way of packing", source.remedy)
    # The directory may lie about the packed size as well: the file bounds it.
    packed = min(info.compress_size, source.path.stat().st_size)
    _check_unpacked(source, packed, info.file_size)
    with archive.open(info) as stream:
        start = io.BytesIO(stream.read(2**14))
        header = binary.read_header(start, info.file_size)
        data, filled, block = bytearray(header.num_bytes), 0, start.read()
        target = memoryview(data)
        while block:
            target[filled : filled + len(block)] = block
            filled += len(block)
            block = stream.read(min(2**20, len(data) - filled))
        if filled < len(data):
            raise source.fail(f"{len(data)} bytes", f"{filled} (truncated)", _BROKEN)
        stream.read(1)  # past the end: compares the checksum
        return header.array(data)


def _check_unpacked(source: Source, packed: int, unpacked: int) -> None:
    """Raises for a bomb, and for a file damaged so that it looks like one."""
    if unpacked > max(_SMALL, _MOST_COMPRESSED * packed):
        expected = f"at most {_MOST_COMPRESSED}-fold compression"
        what = f"{packed} bytes declared to unpack to {unpacked}"
        raise source.fail(expected, what, "save it with numpy.save instead")


# --- of others, each by an extra -----------------------------------------------------------------


@contextlib.contextmanager
def _reading(source: Source, package: str, form: str) -> Iterator[None]:
    """Names the package to install, and turns foreign errors into one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        remedy = str(install_hint(package))
        raise source.fail(f"the package {package}, which reads it", "none", remedy) from None
    except Exception as error:
        # Arrow's own are subclasses of ValueError and others, and some are plain OSErrors, which
        # ours are not. Names of columns are decoded late.
        foreign = type(error).__module__.startswith(("pyarrow", "safetensors"))
        if not (foreign or isinstance(error, (OSError, UnicodeError, arrow_sizes.DamagedError))):
            raise
        line = str(error).partition("\n")[0]
        raise source.fail(f"{form} file", line, _BROKEN) from None


@contextlib.contextmanager
def _safetensors(source: Source) -> Iterator[Container]:
    with _reading(source, "safetensors", "a safetensors"):
        import safetensors

        with safetensors.safe_open(source.path, "np") as file:

            def read(name: str) -> Array:
                array: Array = file.get_tensor(name)
                # bfloat16 and smaller floats, which NumPy lacks.
                return array.astype(np.float32) if array.dtype.kind == "V" else array

            yield Container(list(file.keys()), read)


@contextlib.contextmanager
def _parquet(source: Source) -> Iterator[Container]:
    with _reading(source, "pyarrow", "a Parquet"):
        from pyarrow import parquet

        with opened(source) as file:
            schema = parquet.read_schema(file)
            file.seek(0)
            columns, fields = _columns(schema)
            # A text that many rows share is unpacked once.
            shared = [name for name, what in {**columns, **fields}.items() if what == TEXTS]
            with parquet.ParquetFile(file, read_dictionary=shared) as table:
                names = schema.names
                read = partial(_of_parquet, source, table)
                yield Container(names, read, columns, fields)


def _of_parquet(source: Source, table: Any, name: str) -> Array:
    metadata = table.metadata
    schema, size = metadata.schema, source.path.stat().st_size
    groups = range(metadata.num_row_groups)
    declared = sum(metadata.row_group(group).total_byte_size for group in groups)
    _check_unpacked(source, size, declared)
    # A column is read by its name, and with it the field of a struct that has this path.
    places = [
        place
        for place in range(metadata.num_columns)
        if f"{schema.column(place).path}.".startswith(f"{name}.")
    ]
    unpacked = 0
    for group in groups:
        # A damaged chunk ends the process where its metadata is asked for first (pyarrow 26); the
        # reader raises.
        next(table.iter_batches(1, row_groups=[group], columns=[name]), None)
        parts = map(metadata.row_group(group).column, places)
        unpacked += 8 * sum(part.num_values for part in parts)
    _check_unpacked(source, size, unpacked)
    return _as_array(source, _picked(_part(table.read([name]), name), name))


@contextlib.contextmanager
def _arrow(source: Source) -> Iterator[Container]:
    """An IPC file, or a stream as `datasets` writes."""
    with _reading(source, "pyarrow", "an Arrow"):
        import pyarrow

        mapped = pyarrow.memory_map(str(source.path))
        whole = memoryview(mapped.read_buffer())
        mapped.seek(0)
        stream = False
        try:
            reader = pyarrow.ipc.open_file(mapped)
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            reader, stream = pyarrow.ipc.open_stream(mapped), True
        most = max(_SMALL, _MOST_COMPRESSED * len(whole))
        _check_unpacked(source, len(whole), arrow_sizes.unpacked(whole, most, stream=stream))
        table = reader.read_all()

        columns, fields = _columns(table.schema)

        def read(name: str) -> Array:
            part = _part(table, name)
            part.validate(full=True)  # Arrow follows offsets that lead elsewhere
            return _as_array(source, _picked(part, name))

        yield Container(table.column_names, read, columns, fields)


@contextlib.contextmanager
def _vectors(source: Source) -> Iterator[Container]:
    """Word vectors as text, by fastText, word2vec or GloVe."""
    columns = {"words": TEXTS, "vectors": ROWS}

    def read(name: str) -> Array:
        with opened(source) as file:
            return word_vectors.read(source, file)[[*columns].index(name)]

    yield Container([*columns], read, columns)


_FORMS: dict[str, Callable[[Source], AbstractContextManager[Container]]] = {
    "npy": _npy,
    "npz": _npz,
    "safetensors": _safetensors,
    "parquet": _parquet,
    "arrow": _arrow,
    "vectors": _vectors,
}


def _columns(schema: Any) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """What the columns hold, and what the fields of structs do, by paths that no column has."""
    from pyarrow import types

    columns = {field.name: _holds(field.type) for field in schema}
    fields: dict[str, str | None] = {}
    inside = [(field.name, field.type) for field in schema if types.is_struct(field.type)]
    while inside:
        place, struct = inside.pop()
        for field in struct:
            path = f"{place}.{field.name}"
            if path not in columns:
                fields[path] = _holds(field.type)
            if types.is_struct(field.type):
                inside.append((path, field.type))
    return columns, fields


def _part(table: Any, name: str) -> Any:
    """The column of that name, or where there is none the structs that may have such a field."""
    names = table.column_names
    return table.select([name] if name in names else [n for n in names if name.startswith(f"{n}.")])


def _picked(part: Any, name: str) -> Any:
    while name not in part.column_names:
        part = part.flatten()  # a struct into columns with its name before theirs
    return part.columns[part.column_names.index(name)]


def _is_list(kind: Any) -> bool:
    """Lists in any layout, and tensors, which are stored as lists."""
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)
    views = [getattr(types, f"is_{name}list_view", None) for name in ("", "large_")]
    tests = [types.is_list, types.is_large_list, types.is_fixed_size_list, *filter(None, views)]
    return any(test(kind) for test in tests)


def _holds(kind: Any) -> str | None:
    from pyarrow import types

    if _is_list(kind):
        return ROWS
    if types.is_floating(kind) or types.is_integer(kind):
        return NUMBERS
    if types.is_dictionary(kind):
        kind = kind.value_type
    return TEXTS if types.is_string(kind) or types.is_large_string(kind) else None


def _as_array(source: Source, column: Any) -> Array:
    """Numbers, texts or lists of one length; without a copy where numbers are in one piece."""
    if column.null_count:
        raise source.fail("a value in every row", f"{column.null_count} nulls", "remove those rows")
    what = _holds(column.type)
    if what == TEXTS:
        return _texts(source, column)
    return _lists(source, column) if what == ROWS else _numbers(source, column.type, column)


def _lists(source: Source, column: Any) -> Array:
    """[rows, numbers of a row]; lists of lists end to end, integers filled up with -1."""
    from pyarrow import types

    if types.is_integer(getattr(column.type, "value_type", column.type)):
        return _filled(source, column)
    parts = [_flat(source, chunk) for chunk in column.chunks if len(chunk)]
    if not parts:
        raise source.fail("at least one row", "none", "fill it")
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        _fail_lengths(source, widths)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _filled(source: Source, column: Any) -> Array:
    from pyarrow.compute import list_value_length

    if not len(column):
        raise source.fail("at least one row", "none", "fill it")
    lengths = np.concatenate([list_value_length(chunk).to_numpy() for chunk in column.chunks])
    values = np.concatenate(
        [_numbers(source, chunk.type.value_type, chunk.flatten()) for chunk in column.chunks]
    )
    most = int(lengths.max())
    if len(values) == len(lengths) * most and most:
        return values.reshape(-1, most)
    if 8 * len(lengths) * most > max(_SMALL, _MOST_COMPRESSED * values.nbytes):
        expected = f"lists that fill 1/{_MOST_COMPRESSED} of a matrix"
        actual = f"{len(lengths)} of {len(values)} integers in all, {most} in one"
        raise source.fail(expected, actual, "write gt_indptr and gt_indices in an npz")
    if len(values) and values.max() >= 2**62:
        raise source.fail("integers below 2^62", f"{values.max()}", "write row numbers")
    filled = np.full((len(lengths), max(most, 1)), -1, np.int64)
    filled[np.arange(filled.shape[1]) < lengths[:, None]] = values
    return filled


def _flat(source: Source, chunk: Any) -> Array:
    from pyarrow.compute import list_value_length

    if hasattr(chunk, "storage"):  # a tensor, in the order of its memory
        chunk = chunk.storage
    if chunk.null_count:
        remedy = "remove those rows"
        raise source.fail("a list everywhere", f"{chunk.null_count} nulls", remedy)
    lengths = sorted(list_value_length(chunk).unique().to_pylist())
    if len(lengths) > 1:
        _fail_lengths(source, lengths)
    if not lengths[0]:
        raise source.fail("lists of one or more values", "empty ones", "fill them")
    inner = chunk.flatten()
    deeper = _is_list(inner.type)
    values = _flat(source, inner) if deeper else _numbers(source, inner.type, inner)
    return values.reshape(len(chunk), -1)


def _fail_lengths(source: Source, lengths: list[int]) -> NoReturn:
    both = f"{lengths[0]} to {lengths[-1]}"
    raise source.fail("lists of one length", both, "keep rows of one length")


def _texts(source: Source, column: Any) -> Array:
    """As objects; rows that share a text in the file share it here."""
    from pyarrow import types

    parts = [np.empty(0, object)]
    for chunk in column.chunks:
        shared = types.is_dictionary(chunk.type)
        values = np.array((chunk.dictionary if shared else chunk).to_pylist(), object)
        parts.append(values[chunk.indices.to_numpy()] if shared else values)
    array = np.concatenate(parts)
    if None in array:  # of a dictionary
        raise source.fail("a value in every row", "nulls", "remove those rows")
    return array


def _numbers(source: Source, kind: Any, values: Any) -> Array:
    if _holds(kind) != NUMBERS:
        raise source.fail("numbers", f"a column of {kind}", "choose another column")
    if values.null_count:
        raise source.fail("a number everywhere", f"{values.null_count} nulls", "remove those rows")
    array: Array = values.to_numpy(zero_copy_only=False)
    return array
