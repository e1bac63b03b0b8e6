"""Files made to break readers: a short campaign of `fuzz_readers`, and what longer ones found."""

import io
import json
import pathlib
import struct
import zipfile

import numpy as np
import pytest

import dbnorm_jax as dbn

pytest.importorskip("click")
pytest.importorskip("safetensors")

import fuzz_readers

from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.names import read_items, read_names
from dbnorm_jax._cli.reading.single import read_floats
from dbnorm_jax._src.files import archives
from dbnorm_jax._src.places.disk import checkpoint
from dbnorm_jax._src.places.disk.drive import Partial

ROOT = pathlib.Path(__file__).parents[2]
EXECUTIONS = 10_000


@pytest.mark.slow
def test_a_short_campaign(tmp_path):
    outcome = fuzz_readers.campaign(tmp_path, EXECUTIONS, seed=0)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert sum(outcome.counts.values()) == EXECUTIONS
    # Every reader accepts some files and refuses some: the mutations are neither too wild nor tame.
    for name in fuzz_readers.READERS:
        assert outcome.counts[name, "read"] > 20, name
        assert outcome.counts[name, "refused"] > 20, name


def test_a_short_campaign_in_a_child(tmp_path):
    """With the readers of tables, where pyarrow is installed."""
    pytest.importorskip("pyarrow")
    assert not fuzz_readers.in_children(tmp_path, 3000, seed=0, first=0)


@pytest.mark.slow
def test_a_child_that_ends_is_noticed(tmp_path, monkeypatch):
    """Two of five executions end their process: two are broken, and all were begun."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, pathlib, sys, fuzz_readers\n"
        "folder, count, seed, first = sys.argv[2:]\n"
        "with fuzz_readers.counters(pathlib.Path(folder) / 'counters') as numbers:\n"
        "    for number in range(int(first), int(first) + int(count)):\n"
        "        numbers[0] = number\n"
        "        if number in (1, 3):\n"
        "            os.abort()\n",
        "utf-8",
    )
    monkeypatch.setattr(fuzz_readers, "__file__", str(script))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'campaigns'}")
    assert fuzz_readers.in_children(tmp_path, 5, seed=0, first=0) == 2


@pytest.mark.parametrize(
    "fault",
    {
        "runs": lambda path: fuzz_readers.ran(),
        "unpickles": lambda path: np.load(path, allow_pickle=True),
        "takes memory": lambda path: np.ones(2 * fuzz_readers.MEMORY, np.uint8),
        "raises another error": lambda path: {}["x"],
        "names no file": lambda path: read_floats.no_such_name,
        "writes": lambda path: path.with_suffix(".other").write_bytes(b""),
        "reads wrongly": lambda path: np.zeros(1),
    }.items(),
    ids=lambda fault: fault[0],
)
def test_the_campaign_notices(fault, tmp_path, monkeypatch):
    """A reader with a fault breaks the contract within a hundred files."""
    reader = fuzz_readers.Reader((".npy",), fault[1], fuzz_readers.check_array)
    monkeypatch.setattr(fuzz_readers, "READERS", {"faulty": reader})
    monkeypatch.setattr(fuzz_readers, "accepted", lambda: {"faulty": []})
    assert fuzz_readers.campaign(tmp_path, 100, seed=0, most_broken=1).broken


# --- found by campaigns --------------------------------------------------------------------------

ROWS = np.ones((3, 2), np.float32)


def with_npy_header(text):
    """Another header text before the values of ROWS."""
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + ROWS.tobytes()


def with_member_named(name):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), fuzz_readers.npy(ROWS))
        archive.writestr("other.npy", fuzz_readers.npy(ROWS))
    return stream.getvalue()


def with_directory_bytes(place, value):
    """An npz with a byte of its central directory changed."""
    data = bytearray(fuzz_readers.npz(query=ROWS))
    data[data.index(b"PK\x01\x02") + place] = value
    return bytes(data)


def packed_by(method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("query.npy", fuzz_readers.npy(ROWS))
    data = stream.getvalue()
    middle = data.index(b"query.npy") + 20
    return data[:middle] + bytes(8) + data[middle + 8 :]


HEAD = "{'descr': '<f4', 'fortran_order': False, 'shape':"


def with_bad_text():
    """Numbers beyond Unicode in a text array: a str of them is an error of the interpreter."""
    return fuzz_readers.npy(np.array(["ab", "c"])).replace(b"b\0\0\0", b"b\0\xff\xff")


FOUND = {
    "header of open brackets": ("a.npy", with_npy_header("{" + "(" * 90)),
    "header of two lines": ("a.npy", with_npy_header("{'descr': '<f4',\n'shape': (3, 2)")),
    "nothing, at length": ("a.npy", with_npy_header(f"{HEAD} (0, {2**62})}}")[:128]),
    "texts of no length": (
        "a.npy",
        with_npy_header(f"{HEAD.replace('<f4', '<U0')} ({2**50},)}}")[:128],
    ),
    "too many axes": ("a.npy", with_npy_header(f"{HEAD} (1,{'1,' * 65} 6)}}")),
    "directory that leads outside": ("a.npz", with_directory_bytes(45, 0xFF)),
    "name that is no UTF-8": (
        "a.npz",
        with_member_named("é.npy").replace("é".encode(), b"\xc3\x28"),
    ),
    "name of two lines": ("a.npz", with_member_named("a\nb.npy")),
    "name that paints": ("a.npz", with_member_named("\x1b[31m.npy")),
    "long name": ("a.npz", with_member_named("a" * 60_000 + ".npy")),
    "damaged bzip2": ("a.npz", packed_by(zipfile.ZIP_BZIP2)),
    "damaged lzma": ("a.npz", packed_by(zipfile.ZIP_LZMA)),
    "tensor of two lines": (
        "a.safetensors",
        fuzz_readers.safetensors(**{"a\nb": ("F32", ROWS), "c": ("F32", ROWS)}),
    ),
}


def assert_refused(path, read):
    with pytest.raises(ValueError, match="expected") as raised:
        read()
    line = str(raised.value)
    assert str(path) in line
    assert line.isprintable()
    assert len(line) < 1000 + len(str(path))


@pytest.mark.parametrize("case", FOUND)
def test_found_files_are_refused(case, tmp_path):
    name, data = FOUND[case]
    path = tmp_path / name
    path.write_bytes(data)
    assert_refused(path, lambda: read_floats(fuzz_readers.source(path)))
    if name == "a.npz":
        assert_refused(path, lambda: read_set(str(path), "cosine"))
        assert_refused(path, lambda: dbn.load(path))
        assert_refused(path, lambda: dbn.read_provenance(path))


def test_an_archive_of_many_disks_is_refused(tmp_path):
    """Whether it is an archive at all may be an error to ask (Python 3.11)."""
    path = tmp_path / "state.npz"
    disks = struct.pack("<IIQI", 0x07064B50, 0, 0, 2)  # the locator of the directory's 64-bit end
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0)
    path.write_bytes(b"PK\x03\x04" + bytes(30) + disks + end)
    for read in (dbn.load, dbn.read_provenance, lambda path: read_set(str(path), "cosine")):
        assert_refused(path, lambda read=read: read(path))


@pytest.mark.parametrize(
    ("header", "words"),
    {
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1073741824)}": "truncated",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, -2)}": "shape",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3, 2)}": "pickled Python objects",
        "{" + "(" * 90: "a damaged one",
    }.items(),
)
def test_a_pipe_that_lies_is_refused(header, words):
    """What a header declares is not made room for before it has come."""
    source = Source.kept("QUERIES", io.BytesIO(with_npy_header(header)))
    with fuzz_readers.guarded(), pytest.raises(ValueError, match=words) as raised:
        read_floats(source)
    source.path.unlink()
    assert str(raised.value).startswith("QUERIES (standard input): expected")
    assert str(raised.value).isprintable()


def test_a_header_that_python_2_wrote_is_read(tmp_path):
    """Without a warning: those are errors here."""
    path = tmp_path / "a.npy"
    path.write_bytes(with_npy_header(f"{HEAD} (3L, 2L)}}"))
    np.testing.assert_array_equal(read_floats(fuzz_readers.source(path)), ROWS)


def test_a_header_that_is_no_array_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(with_member_named("header"))
    assert_refused(path, lambda: dbn.load(path))
    assert_refused(path, lambda: dbn.read_provenance(path))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_texts_that_are_none_are_refused(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(with_bad_text())
    if name == "a.npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("header.npy", with_bad_text())
        assert_refused(path, lambda: dbn.load(path))
    assert_refused(path, lambda: read_names(fuzz_readers.source(path)))
    assert_refused(path, lambda: read_items(fuzz_readers.source(path), 2, "labels"))


def test_a_lying_packed_size_is_refused_before_memory_is_taken(tmp_path):
    """zipfile would make room for the packed size that the directory declares."""
    data = bytearray(fuzz_readers.good_files()["state"][0])
    place = data.index(b"PK\x01\x02") + 20
    data[place : place + 4] = struct.pack("<I", 2**31)
    path = tmp_path / "state.npz"
    path.write_bytes(data)
    for read in (dbn.load, dbn.read_provenance):
        with pytest.raises(ValueError, match="oversized"):
            read(path)


def with_header(data, **changes):
    """A state file of these contents with another header, and the checksum that fits it."""
    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays.pop("header"))) | changes
    if "sha256" not in changes:
        del header["sha256"]
        header["sha256"] = archives._digest(header, arrays)
    return fuzz_readers.npz(header=np.array(json.dumps(header)), **arrays)


HEADERS = {
    "checksum of two lines": {"sha256": "a\nb"},
    "long kind": {"kind": "a" * 10_000},
    "version beyond int64": {"format_version": 10**300},
    "arrays of two lines": {"arrays": {"a\nb": {}}},
    "long description": {"arrays": {"bias": "a" * 10_000, "active": 0}},
}


@pytest.mark.parametrize("case", HEADERS)
def test_found_state_files_are_refused(case, tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(with_header(fuzz_readers.good_files()["state"][1], **HEADERS[case]))
    assert_refused(path, lambda: dbn.load(path))


SUMS = fuzz_readers.sums()
CHECKPOINTS = {
    "no work": {"provenance": SUMS.provenance | {"work": None}},
    "work of two lines": {"provenance": SUMS.provenance | {"work": {"beta": "a\nb"}}},
    "no items": {"provenance": {"work": {"beta": 2.0}, "complete": False, "rows": None}},
    "items that are none": {"provenance": SUMS.provenance | {"items": 1}},
    "not even a provenance": {"provenance": None},
    "rows below 0": {"static": SUMS.static | {"rows_done": -1}},
    "no rows on their way": {"static": SUMS.static | {"items_done": 0}},
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_found_checkpoints_are_refused(case, tmp_path):
    path = tmp_path / "sums.partial"
    path.write_bytes(with_header(fuzz_readers.good_files()["checkpoint"][0], **CHECKPOINTS[case]))
    assert_refused(path, loading(path))


def loading(path, like=None):
    like = fuzz_readers.like_sums() if like is None else like
    return lambda: checkpoint.Checkpoint(path, 60.0, {"beta": 2.0}).load(like)


def test_checkpoints_of_another_k_are_refused(tmp_path):
    path = tmp_path / "sums.partial"
    archives.write(path, SUMS)
    assert loading(path)().partial.rows.values.shape == (3, 1, 2)
    assert_refused(path, loading(path, fuzz_readers.like_sums(k=3)))


@pytest.mark.parametrize("name", sorted(SUMS.arrays))
def test_checkpoints_with_other_arrays_are_refused(name, tmp_path):
    path = tmp_path / "sums.partial"
    for array in (SUMS.arrays[name][None], SUMS.arrays[name].astype(bool)):
        archives.write(path, SUMS._replace(arrays=SUMS.arrays | {name: array}))
        assert_refused(path, loading(path))


@pytest.mark.parametrize("name", sorted(SUMS.arrays.keys() - {"total_0"}))
def test_checkpoints_with_half_a_part_are_refused(name, tmp_path):
    path, array = tmp_path / "sums.partial", SUMS.arrays[name]
    for arrays in ({}, {name: array[1:]}, {"items_5": array}):
        others = {other: SUMS.arrays[other] for other in SUMS.arrays if other != name}
        archives.write(path, SUMS._replace(arrays=others | arrays))
        assert_refused(path, loading(path))


@pytest.mark.parametrize(
    "values", [np.zeros((3, 2), np.int32), np.zeros(2, np.float32), np.zeros((3, 3), np.float32)]
)
def test_checkpoints_with_other_values_are_refused(values, tmp_path):
    path = tmp_path / "largest.partial"
    like = Partial(None, None, None, np.zeros((1, 2), np.float32), 0, 0)
    archives.write(path, SUMS._replace(arrays={"outputs_0": values}))
    assert_refused(path, loading(path, like))
    good = np.zeros((3, 2), np.float32)
    archives.write(path, SUMS._replace(arrays={"outputs_0": good}))
    assert loading(path, like)().partial.outputs.shape == (3, 2)
