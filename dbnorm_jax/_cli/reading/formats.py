"""Arrays in files of other ecosystems: safetensors, Parquet, Arrow. Read only, each by an extra.

A column of lists of one length is a matrix, a column of numbers a vector. Arrow files are
memory-mapped, the others are read whole.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dbnorm_jax._cli.reading import arrow_sizes
from dbnorm_jax._cli.reading.argument import BROKEN_REMEDY, Source, opened
from dbnorm_jax._cli.reading.packages import install_hint
from dbnorm_jax._cli.reading.sets import Array

# As for npz archives: so much without question, beyond it so many times the size of the file.
_SMALL = 16 * 2**20
_MOST_COMPRESSED = 100
_LISTED = 8


def reader(source: Source) -> Callable[[Source], Array] | None:
    """What reads a file of that name, None where it is none of these formats."""
    return {
        ".safetensors": _read_safetensors,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
        ".feather": _read_arrow,
    }.get(source.path.suffix.lower())


def _read_safetensors(source: Source) -> Array:
    with _reading(source, "safetensors"):
        import safetensors

        with opened(source):
            pass  # says in one line what is wrong with the path
        try:
            with safetensors.safe_open(source.path, "np") as file:
                array: Array = file.get_tensor(_chosen(source, list(file.keys())))
        except safetensors.SafetensorError as error:
            raise source.fail("a safetensors file", str(error), BROKEN_REMEDY) from None
    if array.dtype.kind == "V":  # bfloat16 and smaller, which NumPy lacks
        array = array.astype(np.float32)
    return array


def _read_parquet(source: Source) -> Array:
    with _reading(source, "pyarrow"):
        from pyarrow import parquet

        with opened(source) as file, parquet.ParquetFile(file) as table:
            name = _chosen(source, table.schema_arrow.names, _lists_of(table.schema_arrow))
            metadata = table.metadata
            schema = metadata.schema
            groups = range(metadata.num_row_groups)
            declared = sum(metadata.row_group(group).total_byte_size for group in groups)
            _check_unpacked(source, declared)
            places = [
                place
                for place in range(metadata.num_columns)
                if schema.column(place).path.partition(".")[0] == name
            ]
            unpacked = 0
            for group in groups:
                # A damaged chunk ends the process where its metadata is asked for first (pyarrow
                # 26); the reader raises.
                next(table.iter_batches(1, row_groups=[group], columns=[name]), None)
                chunks = [metadata.row_group(group).column(place) for place in places]
                unpacked += 8 * sum(chunk.num_values for chunk in chunks)
            _check_unpacked(source, unpacked)
            return _as_array(source, table.read([name]).column(0))


def _read_arrow(source: Source) -> Array:
    """An IPC file, or a stream as `datasets` writes."""
    with _reading(source, "pyarrow"):
        import pyarrow

        with opened(source):
            pass
        mapped = pyarrow.memory_map(str(source.path))
        whole = memoryview(mapped.read_buffer())
        mapped.seek(0)
        stream = False
        try:
            reader = pyarrow.ipc.open_file(mapped)
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            reader, stream = pyarrow.ipc.open_stream(mapped), True
        most = _most_unpacked(source)
        _check_unpacked(source, arrow_sizes.unpacked(whole, most, stream=stream))
        table = reader.read_all()
        name = _chosen(source, table.column_names, _lists_of(table.schema))
        table.select([name]).validate(full=True)  # Arrow follows offsets that lead elsewhere
        return _as_array(source, table.column(name))


def _most_unpacked(source: Source) -> int:
    return max(_SMALL, _MOST_COMPRESSED * source.path.stat().st_size)


def _check_unpacked(source: Source, unpacked: int) -> None:
    """Raises for a bomb, and for a file damaged so that it looks like one."""
    if unpacked > _most_unpacked(source):
        raise source.fail(
            f"at most {_MOST_COMPRESSED}-fold compression",
            f"{source.path.stat().st_size} bytes declared to unpack to {unpacked}",
            "save it with numpy.save instead",
        )


@contextlib.contextmanager
def _reading(source: Source, package: str) -> Iterator[None]:
    """Names the package to install, and turns Arrow's many errors into one line."""
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
        foreign = type(error).__module__.startswith("pyarrow")
        if not (foreign or isinstance(error, (OSError, UnicodeError, arrow_sizes.DamagedError))):
            raise
        kind = source.path.suffix[1:].title()
        line = str(error).partition("\n")[0]
        raise source.fail(
            f"an {kind} file" if kind == "Arrow" else f"a {kind} file", line, BROKEN_REMEDY
        ) from None


def _chosen(source: Source, names: list[str], likely: list[str] | None = None) -> str:
    """The array that is meant: the one named, the only one, or the only one with lists."""
    name = _meant(source, names, likely)
    if names.count(name) > 1:
        remedy = "rename the columns"
        raise source.fail(f"one array named {name}", f"{names.count(name)}", remedy)
    return name


def _meant(source: Source, names: list[str], likely: list[str] | None) -> str:
    if source.member is not None:
        if source.member not in names:
            raise source.fail(
                f"an array named {source.member}", _listed(names), "choose one of them"
            )
        return source.member
    for candidates in (likely or names, names):
        if len(candidates) == 1:
            return candidates[0]
    if not names:
        raise source.fail("an array", "none", "write it again")
    remedy = f"choose one, for instance {source.path.name}:{(likely or names)[0]}"
    raise source.fail("one array", _listed(names), remedy)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _lists_of(schema: Any) -> list[str]:
    from pyarrow import types

    return [field.name for field in schema if _is_list(types, field.type)]


def _is_list(types: Any, kind: Any) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _as_array(source: Source, column: Any) -> Array:
    """A column of numbers or of lists of one length; without a copy where it is in one piece."""
    from pyarrow import types

    if column.null_count:
        raise source.fail("a value in every row", f"{column.null_count} nulls", "remove those rows")
    if not _is_list(types, column.type):
        return _numbers(source, column.type, column)
    width = None
    parts = []
    for chunk in column.chunks:
        lengths = np.unique(
            [chunk.type.list_size]
            if types.is_fixed_size_list(chunk.type)
            else chunk.value_lengths().to_numpy(zero_copy_only=False)
        )
        if not len(chunk):
            continue
        if len(lengths) > 1 or width not in (None, lengths[0]):
            both = sorted({*lengths.tolist(), *([] if width is None else [width])})
            remedy = "keep rows of one length"
            raise source.fail("lists of one length", f"{both[0]} to {both[-1]}", remedy)
        width = int(lengths[0])
        if not width:
            raise source.fail("lists of one or more values", "empty ones", "fill them")
        parts.append(_numbers(source, chunk.type.value_type, chunk.flatten()).reshape(-1, width))
    if not parts:
        raise source.fail("at least one row", "none", "fill it")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _numbers(source: Source, kind: Any, values: Any) -> Array:
    from pyarrow import types

    if not (types.is_floating(kind) or types.is_integer(kind)):
        raise source.fail("numbers", f"a column of {kind}", "choose another column")
    if values.null_count:
        raise source.fail("a number everywhere", f"{values.null_count} nulls", "remove those rows")
    # A chunked column copies as it is; one chunk need not.
    array: Array = (
        values.to_numpy() if hasattr(values, "chunks") else values.to_numpy(zero_copy_only=False)
    )
    return array
