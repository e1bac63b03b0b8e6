"""Files of other ecosystems: read as NumPy reads its own, refused in one line."""

import json
import pathlib
import re
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dbnorm_jax._cli.reading import arrow_sizes
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.packages import install_hint
from dbnorm_jax._cli.reading.single import read_floats, read_integers

ROOT = pathlib.Path(__file__).parents[2]
VALUES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
LABELS = np.arange(7)[::-1]


def read(path, member=None, as_what=read_floats):
    text = str(path) if member is None else f"{path}:{member}"
    return as_what(Source.parse("GALLERY", text))


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow")


def table_of(arrow, kind="fixed", dtype=np.float32, values=VALUES):
    """Rows as lists, in two chunks, beside their labels."""
    parts = []
    for part in (values[:4], values[4:]):
        flat = arrow.array(np.ascontiguousarray(part, dtype).reshape(-1))
        if kind == "fixed":
            parts.append(arrow.FixedSizeListArray.from_arrays(flat, part.shape[1]))
        else:
            offsets = arrow.array(np.arange(0, part.size + 1, part.shape[1]), arrow.int32())
            parts.append(arrow.ListArray.from_arrays(offsets, flat))
    labels = arrow.chunked_array([arrow.array(LABELS)])
    return arrow.table({"embedding": arrow.chunked_array(parts), "label": labels})


def write(arrow, path, table):
    if path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(table, path, row_group_size=3)
    else:
        make = arrow.ipc.new_file if path.suffix == ".feather" else arrow.ipc.new_stream
        with arrow.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("kind", ["fixed", "list"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tables(arrow, tmp_path, suffix, kind, dtype):
    path = tmp_path / f"items{suffix}"
    write(arrow, path, table_of(arrow, kind, dtype))
    for member in (None, "embedding"):
        found = read(path, member)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, VALUES.astype(dtype))
    np.testing.assert_array_equal(read(path, "label", read_integers), LABELS)
    for member, words in [("labels", "named labels, got embedding, label"), ("label", "floating")]:
        with pytest.raises(ValueError, match=f"GALLERY '.*items.*: expected .*{words}"):
            read(path, member)


def test_datasets(tmp_path):
    """What `datasets` writes to disk, and its columns as arguments."""
    datasets = pytest.importorskip("datasets")
    import dbnorm_jax as dbn

    column = datasets.Dataset.from_dict({"embedding": VALUES.tolist()}, split="train")
    column = column.cast_column("embedding", datasets.Sequence(datasets.Value("float32")))
    column.save_to_disk(tmp_path / "set")
    np.testing.assert_array_equal(read(tmp_path / "set" / "data-00000-of-00001.arrow"), VALUES)
    column.to_parquet(tmp_path / "set.parquet")
    np.testing.assert_array_equal(read(tmp_path / "set.parquet"), VALUES)
    expected = dbn.dot_product(VALUES, VALUES)
    for rows in (column["embedding"], column.with_format("numpy")["embedding"]):
        np.testing.assert_array_equal(dbn.dot_product(rows, VALUES), expected)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_bad_tables(arrow, tmp_path, suffix):
    path = tmp_path / f"items{suffix}"

    def refused(columns, words, member=None):
        write(arrow, path, arrow.table(columns))
        with pytest.raises(ValueError, match=f"expected .*{words}"):
            read(path, member)

    rows = [[1.0, 2.0], [3.0, 4.0]]
    refused({"a": [[1.0, 2.0], [3.0]]}, "lists of one length, got 1 to 2")
    refused({"a": [[1.0, 2.0], None]}, "a value in every row, got 1 nulls")
    refused({"a": [[1.0, 2.0], [3.0, None]]}, "a number everywhere, got 1 nulls")
    refused({"a": [["x"], ["y"]]}, "numbers, got a column of")
    refused({"a": rows, "b": rows}, "one array, got a, b; choose one, for instance items.*:a")
    refused({"a": ["x", "y"]}, "numbers, got a column of string")
    doubled = arrow.table([[1.0], [2.0]], names=["a", "a"])
    write(arrow, path, doubled)
    with pytest.raises(ValueError, match="one array named a, got 2"):
        read(path, "a")
    refused({"a": arrow.array([], arrow.list_(arrow.float32()))}, "at least one row")
    write(arrow, path, arrow.table({"a": rows}))
    whole = path.read_bytes()
    for damaged in (b"", b"no table at all", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"GALLERY .*expected an? (Parquet|Arrow) file, got"):
            read(path)


def write_packed(arrow, path, table, compression):
    make = arrow.ipc.new_file if path.suffix == ".feather" else arrow.ipc.new_stream
    options = arrow.ipc.IpcWriteOptions(compression=compression)
    with arrow.OSFile(str(path), "wb") as file, make(file, table.schema, options=options) as writer:
        writer.write_table(table)


def test_a_bomb_is_not_unpacked(arrow, tmp_path):
    table = arrow.table({"a": arrow.array([[0.0] * 4000] * 1000)})
    for suffix in (".parquet", ".arrow", ".feather"):
        path = tmp_path / f"bomb{suffix}"
        if suffix == ".parquet":
            write(arrow, path, table)
        else:
            write_packed(arrow, path, table, "zstd")
        assert path.stat().st_size < 2**18
        before = arrow.total_allocated_bytes()
        with pytest.raises(ValueError, match="at most 100-fold compression"):
            read(path)
        assert arrow.total_allocated_bytes() - before < 2**20


@pytest.mark.parametrize("compression", ["lz4", "zstd", None])
@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
def test_sizes_of_packed_arrow_files(arrow, tmp_path, suffix, compression):
    """What buffers declare to unpack to is what they do unpack to."""
    path = tmp_path / f"items{suffix}"
    table = table_of(arrow, "list")
    write_packed(arrow, path, table, compression)
    np.testing.assert_array_equal(read(path, "embedding"), VALUES)
    declared = arrow_sizes.unpacked(memoryview(path.read_bytes()), 2**40, stream=suffix == ".arrow")
    # Each chunk has offsets and values, and the labels, split likewise, are beside it.
    buffers = VALUES.nbytes + 4 * (5 + 4) + LABELS.nbytes
    assert declared == 0 if compression is None else buffers <= declared <= buffers + 6 * 8
    # Cut anywhere, it is damaged or has less.
    whole, damaged = path.read_bytes(), 0
    for end in range(len(whole)):
        try:
            cut = memoryview(whole[:end])
            assert arrow_sizes.unpacked(cut, 2**40, stream=suffix == ".arrow") <= declared
        except arrow_sizes.DamagedError:
            damaged += 1
    assert damaged


def test_safetensors(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "items.safetensors"
    half = np.asarray(jnp.asarray(VALUES, jnp.bfloat16))
    # The writer takes contiguous arrays only (0.8.0 writes others wrongly); we only read.
    numpy.save_file({"items": VALUES, "half": half, "labels": LABELS.copy()}, path)
    np.testing.assert_array_equal(read(path, "items"), VALUES)
    np.testing.assert_array_equal(read(path, "half"), half.astype(np.float32))
    np.testing.assert_array_equal(read(path, "labels", read_integers), LABELS)
    with pytest.raises(ValueError, match=r"one array, got .*; choose one, for instance"):
        read(path)
    with pytest.raises(ValueError, match=r"named other, got"):
        read(path, "other")
    numpy.save_file({"only": VALUES.astype(np.float16)}, path)
    np.testing.assert_array_equal(read(path), VALUES.astype(np.float16))
    whole = path.read_bytes()
    header = json.dumps({"only": {"dtype": "F32", "shape": [10**9, 3], "data_offsets": [0, 42]}})
    lying = struct.pack("<Q", len(header)) + header.encode() + bytes(42)
    for damaged in (b"", b"no tensors at all", whole[:-3], whole + b"more", lying):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"expected a safetensors file, got .*; copy"):
            read(path)


def test_nothing_is_written_through_safetensors():
    """Version 0.8.0 writes wrong values for arrays that are not contiguous."""
    for path in (ROOT / "dbnorm_jax").rglob("*.py"):
        assert "safetensors.numpy" not in path.read_text("utf-8"), path


@pytest.mark.parametrize(
    ("name", "package"),
    [("a.safetensors", "safetensors"), ("a.parquet", "pyarrow"), ("a.arrow", "pyarrow")],
)
def test_a_missing_package_gets_an_install_hint(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package}, .*; {re.escape(install_hint(package))}$"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "a.safetensors", "a.arrow"])
def test_paths_that_are_no_files(tmp_path, name):
    package = {"a.safetensors": "safetensors"}.get(name, "pyarrow")
    pytest.importorskip(package)
    with pytest.raises(ValueError, match="a readable file, got no such file"):
        read(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="a file of arrays, got a folder"):
        read(tmp_path / name)
