"""Parquet and Arrow for `fuzz_readers`: good and unusual tables, and readers that pyarrow serves.

Damaged tables may end the process, so these readers run in a process of their own only.
"""

import io
import pathlib
import random

import numpy as np
import pyarrow as pa
from pyarrow import parquet

Random = random.Random

SUFFIXES = (".parquet", ".arrow", ".feather")
PACKED = (None, "lz4", "zstd")
PARQUET_PACKED = ("none", "snappy", "zstd", "gzip")
ROWS = 5


def as_parquet(table, **options):
    stream = io.BytesIO()
    parquet.write_table(table, stream, **options)
    return stream.getvalue()


def as_ipc(table, compression=None, *, stream=False):
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def fixed(values):
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def plain_tables():
    values = np.linspace(-1, 1, ROWS * 3).reshape(ROWS, 3)
    single = values.astype(np.float32)
    integers = np.array([0, 2, 1, 4, 3])
    lists = pa.array(single.tolist(), pa.list_(pa.float32()))
    nested = pa.list_(pa.list_(pa.float32()))
    parts = pa.chunked_array([fixed(single[:2]), fixed(single[2:])])
    return [
        pa.table({"query": fixed(single)}),
        pa.table({"query": lists, "label": integers}),
        pa.table({"query": parts, "label": pa.array(list("abcde"))}),
        pa.table({"query": pa.array(values.tolist(), pa.large_list(pa.float64()))}),
        pa.table({"label": integers}),
        pa.table({"query": tensors(single), "label": integers}),
        pa.table({"query": pa.array(single[:, None].tolist(), nested)}),
    ]


def tensors(values):
    kind = pa.fixed_shape_tensor(pa.float32(), (1, values.shape[1]))
    return pa.ExtensionArray.from_storage(kind, fixed(values))


def good_files():
    """By suffix."""
    parquets, arrows, feathers = [], [], []
    for number, table in enumerate(plain_tables()):
        packed = PARQUET_PACKED[number % len(PARQUET_PACKED)]
        options = {"use_dictionary": number % 2 == 0, "write_page_checksum": number == 1}
        parquets.append(as_parquet(table, compression=packed, **options))
        version = "2.0" if number % 2 else "1.0"
        parquets.append(as_parquet(table, row_group_size=2, data_page_version=version))
        arrows.append(as_ipc(table, stream=True))
        feathers += [as_ipc(table), as_ipc(table, PACKED[1 + number % 2])]
    zeros = pa.table({"query": pa.array([[0.0] * 4000] * 1000)})
    bombs = [as_parquet(zeros, compression="zstd"), as_ipc(zeros, "zstd")]
    return {
        ".parquet": [*parquets, bombs[0]],
        ".arrow": [*arrows, as_ipc(zeros, "zstd", stream=True)],
        ".feather": [*feathers, bombs[1]],
    }


# --- unusual tables ------------------------------------------------------------------------------

NUMBERS = [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.int64(), pa.uint64()]
OTHERS = [pa.string(), pa.binary(), pa.bool_(), pa.null(), pa.date32(), pa.timestamp("us")]
OTHERS += [pa.decimal128(9, 2), pa.dictionary(pa.int8(), pa.string()), pa.string_view()]
NAMES = ["query", "label", "a\nb", "\x1b[31m", "", "a" * 500, "query.list", "\u202e", "é"]


def column(rng: Random, rows: int, kind: pa.DataType, *, nulls: bool):
    def value(kind):
        if nulls and rng.random() < 0.1:
            return None
        if pa.types.is_dictionary(kind):
            return rng.choice("ab")
        if pa.types.is_struct(kind):
            return {"x": 1.0}
        if pa.types.is_fixed_size_list(kind):
            return [value(kind.value_type) for _ in range(kind.list_size)]
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
            return [value(kind.value_type) for _ in range(rng.choice((3, 3, 3, 0, 1)))]
        if pa.types.is_integer(kind):
            return rng.choice((0, 1, 2, 127))
        if pa.types.is_floating(kind):
            number = rng.choice((0.0, -1.5, 2.0, float("nan"), float("inf")))
            return np.float16(number) if pa.types.is_float16(kind) else number
        if pa.types.is_boolean(kind):
            return rng.random() < 0.5
        if pa.types.is_binary(kind):
            return b"\xff"
        if pa.types.is_decimal(kind) or pa.types.is_null(kind) or pa.types.is_temporal(kind):
            return None
        return rng.choice(("a", "", "é"))

    return pa.array([value(kind) for _ in range(rows)], kind)


def unusual(rng: Random, suffix: str) -> bytes | None:
    """A well-formed table as few would write it; None where pyarrow cannot write it either."""
    columns = {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.choice(NUMBERS if rng.random() < 0.8 else OTHERS)
        inner = rng.random()
        if inner < 0.3:
            widths = (1, 3) if suffix == ".parquet" else (0, 1, 3)  # whose writer aborts at 0
            kind = pa.list_(kind, rng.choice(widths))
        elif inner < 0.6:
            kind = rng.choice((pa.list_, pa.large_list, pa.list_view))(kind)
        elif inner < 0.7:
            kind = pa.struct([("x", pa.float32())])
        elif inner < 0.75:
            kind = pa.list_(pa.list_(kind))
        columns[rng.choice(NAMES)] = kind
    rows = rng.choice((0, 1, 2, ROWS, ROWS, ROWS, 40))
    nulls = rng.random() < 0.3
    try:
        made = {name: column(rng, rows, kind, nulls=nulls) for name, kind in columns.items()}
        table = pa.table(made)
        if rng.random() < 0.3:
            table = table.slice(rng.randrange(rows + 1), rng.choice((0, 2, ROWS)))
        if rng.random() < 0.3:
            table = pa.concat_tables([table, table])
        if suffix == ".parquet":
            size = rng.choice((1, 2, 100))
            packed = rng.choice(PARQUET_PACKED)
            return as_parquet(table, row_group_size=size, compression=packed)
        return as_ipc(table, rng.choice(PACKED), stream=suffix == ".arrow")
    except (pa.ArrowException, TypeError, ValueError):
        return None


# --- what is right -------------------------------------------------------------------------------


def as_pyarrow_reads(path: pathlib.Path, name: str) -> list:
    """The column as Python values: another way than by buffers. ArrowInvalid where it is damaged.

    Values are made from whatever is there, so that a damaged column would end the process.
    """
    data = path.read_bytes()
    if path.suffix == ".parquet":
        table = parquet.read_table(io.BytesIO(data), columns=[name])
    else:
        table = opened(data).read_all()
    table.select([name]).validate(full=True)
    return table.column(name).to_pylist()


def opened(data: bytes):
    """An IPC file, or a stream."""
    try:
        return pa.ipc.open_file(pa.py_buffer(data))
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(pa.py_buffer(data))


def names(path: pathlib.Path) -> list[str]:
    data = path.read_bytes()
    if path.suffix == ".parquet":
        return parquet.read_schema(io.BytesIO(data)).names
    return opened(data).schema.names


def check_column(path: pathlib.Path, value: np.ndarray, member: str | None = None) -> None:
    """Some column of the file, or the one named, holds these values."""
    if value.size > 2**14:
        return  # slow as Python values
    for name in [member] if member else names(path):
        try:
            expected = np.array(as_pyarrow_reads(path, name), value.dtype)
        except (TypeError, ValueError, OverflowError, OSError):  # another column, maybe damaged
            continue
        if expected.ndim > 2:  # a row is all its numbers
            expected = expected.reshape(len(expected), -1)
        # A Python float keeps no payload of NaN.
        if np.array_equal(expected, value, equal_nan=value.dtype.kind == "f"):
            return
    raise AssertionError("another array than pyarrow reads")
