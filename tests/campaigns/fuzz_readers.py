"""Hostile files: seeded mutations of good files, against every reader.

The contract: the right value, or a ValueError, TypeError or OSError of one printable line that
names the file. No other error, no hang, no more memory than a bound, no code of the file executed,
nothing else opened for writing.

    python tests/campaigns/fuzz_readers.py --executions 1000000 --seed 1
    python tests/campaigns/fuzz_readers.py --executions 200000 --seed 1 --coverage   # by atheris

An execution depends on its seed and number only: `--first N --executions 1` repeats one. Where
pyarrow is installed its readers take part. The files are read in a child, since what is not Python
may end the process; that counts as a broken contract.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import mmap
import pathlib
import pickle
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.names import Labels, read_items, read_lines, read_names
from dbnorm_jax._cli.reading.relevant import read_relevant
from dbnorm_jax._cli.reading.results import read_results
from dbnorm_jax._cli.reading.single import read_floats, read_integers
from dbnorm_jax._src.core.log_mean_exp import start_mean
from dbnorm_jax._src.files import archives
from dbnorm_jax._src.passes.selection import start_nearest
from dbnorm_jax._src.places.disk import checkpoint as checkpoints
from dbnorm_jax._src.places.disk.checkpoint import Checkpoint
from dbnorm_jax._src.places.disk.drive import Partial

sys.path.append(str(pathlib.Path(__file__).parents[1] / "support"))  # where this is a script
import systems

MEMORY = 256 * 2**20  # more than the process has; an archive may unpack to 16 MiB unasked
SECONDS = 20  # of the processor, for one file
STUCK = 600  # seconds without a file done, for what no signal interrupts

ROWS = 5


# --- good files ----------------------------------------------------------------------------------


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(save=np.savez, **arrays):
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def safetensors(**arrays):
    header, data = {}, b""
    for name, (dtype, array) in arrays.items():
        place = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": place}
        data += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def ran(*_):
    """What a pickle of ours runs when it is loaded."""
    RAN.append(True)


RAN: list[bool] = []


class Planted:
    def __reduce__(self):
        return ran, ()


def states():
    similarities = np.linspace(-1, 1, 4 * 7).reshape(4, 7).astype(np.float32)
    statistics = dbn.bank_statistics(jnp.asarray(similarities), beta=2.0)
    return [
        statistics,
        dbn.dynamic_inverted_softmax(statistics),
        dbn.inverted_softmax(statistics),
        dbn.largest_similarities(jnp.asarray(similarities), k=2),
    ]


def like_sums(k=2):
    """What a checkpoint of bank statistics holds."""
    sums = start_mean(1, jnp.float32(2))
    nearest, counts = start_nearest((1, 1, k), jnp.float32), jnp.zeros(1, jnp.int32)
    return Partial(sums, nearest, counts, None, 0, 0)


def sums():
    size = np.arange(7, dtype=np.float32)
    arrays = {f"items_{number}": size for number in range(5)}
    arrays |= {"rows_0": np.ones((3, 1, 2), np.float32), "rows_1": np.ones((3, 1, 2), np.int32)}
    arrays |= {"total_0": np.arange(7, dtype=np.int32)}
    provenance = {"work": {"beta": 2.0}, "complete": False, "rows": None, "items": None}
    static = {"rows_done": 3, "items_done": 4}
    return archives.Archive(checkpoints._KIND, static, arrays, {**provenance, "stamps": None})


def found_sums():
    archive = sums()
    structure = jax.tree.structure(like_sums())
    leaves = [*archive.arrays.values(), *archive.static.values()]
    return checkpoints.Found(jax.tree.unflatten(structure, leaves), archive.provenance)


@functools.cache
def good_files() -> dict[str, list[bytes]]:
    """By suffix, state files and checkpoints apart."""
    rows = np.linspace(-1, 1, ROWS * 3).reshape(ROWS, 3)
    single = rows.astype(np.float32)
    integers = np.array([0, 2, 1, 4, 3])
    texts = np.array(["a", "bc", "d", "", "é"])
    planted = np.empty((ROWS, 3), object)
    planted[:] = Planted()
    whole = {"query": single, "gallery": single, "query_bank": single}
    truth = {"gt_indptr": np.arange(ROWS + 1), "gt_indices": integers}
    bomb = npz(np.savez_compressed, query=np.zeros((2**24, 1), np.float32))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "state.npz"
        saved = []
        for state in states():
            dbn.save(path, state, provenance={"encoder": "v2", "rows": [1, 2]})
            saved.append(path.read_bytes())
        archives.write(path, sums())
        checkpoint = path.read_bytes()
    return {
        ".npy": [
            npy(single),
            npy(np.asfortranarray(rows)),
            npy(rows.astype(">f2")),
            npy(integers),
            npy(texts),
            npy(planted, allow_pickle=True),
            pickle.dumps(Planted()),
        ],
        ".npz": [
            npz(**whole, **truth),
            npz(np.savez_compressed, **whole, gallery_bank=single, bank_pair=integers),
            npz(query=single),
            npz(np.savez_compressed, query=rows),
            npz(**truth),
            npz(query=planted),
            bomb,
        ],
        ".safetensors": [
            safetensors(query=("F32", single)),
            safetensors(query=("F64", rows), ids=("I64", integers)),
            safetensors(query=("BF16", np.zeros((ROWS, 3), np.uint16))),
        ],
        ".txt": ["a\nbc\nd\n\né\n".encode()],
        ".vec": [
            "5 3\na 1 2 3\nb .5 0 -1\nü ü 1 1 1\nd 0 0 1e3\ne 1 2 3\n".encode(),
            b"a 1 2\nb 3 4\n",
        ],
        ".qrels": [
            b"a 0 b 1\nb 0 c 2\n\na 0 d 0\nx 0 y 1\na 0 b 1\n",
            b"query-id\tcorpus-id\tscore\na\tb\t1\n",
            b"[[0, 2], [], [1], [4], [3]]",
            npz(pairs=np.array([[0, 1], [0, 2], [4, 4]])),
            npz(
                format=np.array(b"csr"),
                shape=np.array([ROWS, ROWS]),
                indptr=np.arange(ROWS + 1),
                indices=integers,
                data=rows[:, 2] + 1,
            ),
        ],
        ".trec": [
            "q1 Q0 d1 1 .9 x\nq2 Q0 é 0 5 x\n\nq1 Q0 d3 2 .9 x\n".encode(),
            b'{"query": "q1", "items": ["d1", "d2"]}\n{"query": 7, "items": ["d2"], "scores": [1]}',
            b'{"query": 1, "items": [3, 0]}\n',
            npz(indices=np.array([[3, 0], [1, -1]]), query_ids=texts[:2], gallery_ids=texts),
        ],
        "state": saved,
        "checkpoint": [checkpoint],
        **(tables().good_files() if has_tables() else {}),
    }


def has_tables() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def tables() -> Any:
    import fuzz_tables

    return fuzz_tables


# --- mutations -----------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 3, 5, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
NUMBERS += [2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -5]
DTYPES = ["<f4", ">f4", "<f8", "<f2", "<i8", "<u1", "|b1", "|O", "<U1", "<U9", "|S4", "|V4", "<c8"]
DTYPES += ["<M8[s]", "<f16", "f", "", "x", "<f4\n", "V0", "<U999999999"]
NAMES = [
    "../../evil.npy",
    "/etc/passwd",
    "query.npy",
    "a\nb.npy",
    "\x1b[31m.npy",
    "",
    "x/",
    "header.npy",
]
NAMES += ["C:\\evil.npy", "query", "gt_indptr.npy", "\u202e.npy", "a" * 300]
SHAPES = [
    (),
    (0,),
    (ROWS,),
    (ROWS, 3),
    (3, ROWS),
    (2**40, 3),
    (-1, 3),
    (-5, -3),
    (2**62, 4, 0),
    (15,),
]
LEAVES: list[Any] = [None, True, "", "x\ny", "\x1b[31m", 1.5, 1e308, [], {}, [1], {"a": 1}, "F32"]
LEAVES += ["float64", "int32", *NUMBERS]

Random = random.Random


def bytewise(rng: Random, data: bytes) -> bytes:
    """Cuts, flips, lying numbers, pieces of itself and of other files."""
    changed = bytearray(data)
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 2, 4, 8, 64)))
    match rng.randrange(8):
        case 0:
            del changed[at:]
        case 1:
            for _ in range(rng.choice((1, 1, 1, 4, 16))):
                if changed:
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        case 2:
            changed[at:end] = rng.randbytes(end - at)
        case 3:
            del changed[at:end]
        case 4:
            changed[at:at] = data[at:end] * rng.choice((1, 3, 50))
        case 5:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % 256**size
            changed[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
        case 6:
            other = rng.choice(rng.choice(list(good_files().values())))
            changed[at:] = other[rng.randrange(len(other)) :][: 2**14]
        case 7:
            numbers = list(re.finditer(rb"\d+", data[:4096]))
            if numbers:
                found = rng.choice(numbers)
                changed[found.start() : found.end()] = str(rng.choice(NUMBERS)).encode()
    return bytes(changed)


def npy_header(rng: Random, data: bytes) -> bytes:
    """Another well-formed header before the same values."""
    if data[:6] != b"\x93NUMPY" or len(data) < 10:
        return bytewise(rng, data)
    (length,) = struct.unpack("<H", data[8:10])
    text = data[10 : 10 + length].decode("latin-1").strip()
    with contextlib.suppress(IndexError):
        old = re.findall(
            r"'descr': ('[^']*'|\[.*?\])|'fortran_order': (\w+)|'shape': (\(.*?\))", text
        )
        kind = rng.randrange(4)
        if kind == 0:
            text = text.replace(old[0][0], repr(rng.choice(DTYPES)), 1)
        elif kind == 1:
            text = text.replace(old[1][1], rng.choice(("True", "False", "1", "None")), 1)
        elif kind == 2:
            text = text.replace(old[2][2], repr(rng.choice(SHAPES)), 1)
        else:
            more = rng.choice(
                ("'x': 1", "__import__('os')", "(" * 300, "'shape': 5", "\x00", "9" * 5000)
            )
            text = text.replace("}", f", {more}}}", 1)
    text += " " * (-(len(text) + 11) % 64) + "\n"
    head = data[:8] + struct.pack("<H", len(text) % 2**16) + text.encode("latin-1")
    return head + data[10 + length :]


def edited(rng: Random, value: Any) -> Any:
    """A JSON value with one place changed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(sorted(value))
        rest = {key: inner for key, inner in value.items() if key != name}
        match rng.randrange(8):
            case 0:
                return rest
            case 1:
                return {**rest, rng.choice(("x", "a\nb", "\x1b[31m", "k")): value[name]}
        return {**value, name: edited(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], edited(rng, value[place]), *value[place + 1 :]]
    return rng.choice(LEAVES)


def safetensors_header(rng: Random, data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError, OverflowError):
        return bytewise(rng, data)
    text = json.dumps(edited(rng, header)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def zipped(rng: Random, data: bytes) -> bytes:
    """Another well-formed archive: members changed, renamed, doubled, gone, packed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > 2**16:
                return bytewise(rng, data)
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # damaged already
        return bytewise(rng, data)
    if members:
        place = rng.randrange(len(members))
        name, member = members[place]
        match rng.randrange(8):
            case 0:
                members[place] = (rng.choice(NAMES), member)
            case 1:
                members.append((rng.choice(NAMES), member))
            case 2:
                del members[place]
            case 3 | 4:
                members[place] = (name, bytewise(rng, member))
            case _:
                members[place] = (name, npy_header(rng, member))
    stream = io.BytesIO()
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of doubled names
        with zipfile.ZipFile(stream, "w", packing) as archive:
            for name, member in members:
                archive.writestr(zipfile.ZipInfo(name), member, packing)
    return stream.getvalue()


def signed(rng: Random, data: bytes) -> bytes:
    """A state file with other contents and the checksum that fits them."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = dict(archive)
        header = json.loads(str(arrays.pop("header")))
        if rng.random() < 0.5:
            header = edited(rng, header)
        else:
            name = rng.choice(sorted(arrays))
            array = arrays[name]
            values = [np.nan, np.inf, -np.inf, -1, 0, 2, 1e300, 2**31]
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                match rng.randrange(4):
                    case 0:
                        arrays[name] = np.full_like(
                            array, np.array(rng.choice(values)).astype(array.dtype)
                        )
                    case 1:
                        arrays[name] = array.astype(
                            rng.choice(("f8", "f2", "i4", "i8", "?", "c8", "U9"))
                        )
                    case 2:
                        arrays[name] = array.reshape(
                            rng.choice(((-1,), (-1, 1), (1, -1), (1, 1, -1)))
                        )
                    case 3:
                        arrays[name] = array[..., :0] if array.ndim else array[None]
            header["arrays"] = {key: archives._description(inner) for key, inner in arrays.items()}
        header.pop("sha256", None)
        header["sha256"] = archives._digest(header, arrays)
    except Exception:  # damaged already
        return bytewise(rng, data)
    return npz(header=np.array(json.dumps(header)), **arrays)


# --- readers -------------------------------------------------------------------------------------


def source(path, member=None):
    return Source("GALLERY", path, member)


def plain(value: Any) -> Any:
    """Arrays as their bytes, to be compared bit by bit; dataclasses as tuples."""
    if dataclasses.is_dataclass(value):
        fields = (plain(getattr(value, field.name)) for field in dataclasses.fields(value))
        return (type(value).__name__, *fields)
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if hasattr(value, "dtype"):
        array = np.asarray(value)
        return (array.dtype.str, array.shape, array.tobytes())
    return value


def as_numpy_reads(path: pathlib.Path, member: str | None = None) -> np.ndarray:
    """Independent of our readers: by numpy.load, or from a safetensors header."""
    data = path.read_bytes()
    if data[4:9] == b"\0\0\0\0{":
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        (entry,) = [header[member]] if member else [v for k, v in header.items() if k[:2] != "__"]
        start, end = (8 + length + place for place in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            wide = np.frombuffer(data[start:end], "<u2").astype("<u4") << 16
            return wide.view("<f4").reshape(entry["shape"])
        size = re.sub(r"\D", "", entry["dtype"])
        kind = {"F": "f", "I": "i", "U": "u"}[entry["dtype"][0]]
        return np.frombuffer(data[start:end], f"<{kind}{int(size) // 8}").reshape(entry["shape"])
    if data[:2] != b"PK":
        return np.load(path, allow_pickle=False)
    with np.lib.npyio.NpzFile(path, allow_pickle=False) as loaded:
        names = [name for name in loaded.zip.namelist() if name.endswith(".npy")]
        return loaded[f"{member}.npy" if member else names[0]]


@functools.cache
def known() -> tuple[Any, ...]:
    return (
        *map(plain, states()),
        plain(found_sums()),
        {"encoder": "v2", "rows": [1, 2]},
        sums().provenance,
    )


def check_array(path, value, member=None):
    assert plain(value) == plain(as_numpy_reads(path, member)), "another array than NumPy reads"


def check_known(path, value):
    assert plain(value) in known(), "another state than was saved"


def check_set(path, value):
    for name in ("query", "gallery", "query_bank"):
        rows = getattr(value, {"query": "queries"}.get(name, name))
        assert rows.shape == as_numpy_reads(path, name).shape
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def check_labels(path, value):
    assert len(value) == ROWS


def check_lines(path, value):
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        expected = [line.removesuffix("\n") if line[-2:] != "\r\n" else line[:-2] for line in file]
    assert list(value) == expected


def check_relevant(path, value):
    (indptr, indices), grades, _ = value
    assert grades is None or (grades.shape == indices.shape and (grades > 0).all())
    assert len(indptr) == ROWS + 1
    assert indptr[0] == 0
    assert indptr[-1] == len(indices)
    assert ((indices >= 0) & (indices < ROWS)).all()


def check_vectors(path, value):
    """Of a text, or of an array that was put in its place."""
    data = path.read_bytes()
    if data[:6] == b"\x93NUMPY" or data[:2] == b"PK" or data[4:9] == b"\0\0\0\0{":
        check_array(path, value)
        return
    lines = [line.rstrip() for line in data.split(b"\n") if line.strip()]
    lines = lines[len(lines[0].split(b" ")) == 2 and lines[0].replace(b" ", b"").isdigit() :]
    dim = value.shape[1]
    expected = np.array([[*map(float, line.split(b" ")[-dim:])] for line in lines])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(value, expected.astype(np.float32))


def check_results(path, value):
    """Lists of distinct items; of a text, those that its lines say in another way."""
    lists = [
        [value.item(item) for item in value.indices[start:end]]
        for start, end in itertools.pairwise(value.indptr)
    ]
    assert all(lists)
    assert all(len({*items}) == len(items) for items in lists)
    assert len(lists) == len({*value.queries.tolist()})
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data[:2] == b"PK" or data[:1] == b"\x93":
        return
    expected = {}
    for line in filter(None, map(bytes.strip, data.split(b"\n"))):
        if data.lstrip()[:1] == b"{":
            content = json.loads(line)
            expected[content["query"]] = list(enumerate(content["items"]))
        else:
            query, _, item, rank, _, _ = line.split()
            expected.setdefault(query.decode(), []).append((int(rank), item.decode()))
    for query, items in zip(value.queries, lists, strict=True):
        assert [item for _, item in sorted(expected.pop(query))] == items
    assert not expected


def nothing(path, value):
    pass


@dataclasses.dataclass(frozen=True)
class Reader:
    kinds: tuple[str, ...]  # of good_files
    read: Callable[[pathlib.Path], Any]
    check: Callable[..., None]


def member_query(path):
    return read_floats(source(path, "query"))


def piped(path):
    """An .npy on standard input, whose name the path stands for."""
    with path.open("rb") as file:
        kept = Source.kept(str(path), file)
    try:
        return read_floats(kept)
    finally:
        kept.path.unlink()


IDS = [Labels(source("ids"), np.array([*"abcde"], object)) for _ in range(2)]
ARRAYS = (".npy", ".npz", ".safetensors")
TABLES = (".parquet", ".arrow", ".feather")
READERS = {
    "floats": Reader(ARRAYS, lambda path: read_floats(source(path)), check_array),
    "member": Reader(
        (".npz", ".safetensors"),
        member_query,
        lambda path, value: check_array(path, value, "query"),
    ),
    "integers": Reader(ARRAYS, lambda path: read_integers(source(path)), check_array),
    "names": Reader(ARRAYS, lambda path: read_names(source(path)), check_array),
    "labels": Reader(
        (".txt", ".npy", ".npz"),
        lambda path: read_items(source(path), ROWS, "labels"),
        check_labels,
    ),
    "pipe": Reader((".npy",), piped, check_array),
    "lines": Reader((".txt",), lambda path: read_lines(source(path)), check_lines),
    "relevant": Reader(
        (".npy", ".npz", ".qrels"),
        lambda path: read_relevant(source(path), ROWS, ROWS, *IDS),
        check_relevant,
    ),
    "vectors": Reader((".vec",), lambda path: read_floats(source(path)), check_vectors),
    "results": Reader(
        (".trec", ".npz", ".npy"), lambda path: read_results(source(path)), check_results
    ),
    "set": Reader((".npz",), lambda path: read_set(str(path), "cosine"), check_set),
    "load": Reader(("state",), dbn.load, check_known),
    "read_provenance": Reader(("state",), dbn.read_provenance, nothing),
    "checkpoint": Reader(
        ("checkpoint",),
        lambda path: Checkpoint(path, 60.0, {"beta": 2.0}).load(like_sums()),
        check_known,
    ),
}


def table_readers() -> dict[str, Reader]:
    """Those that may end the process."""

    def check_column(path, value, member=None):
        tables().check_column(path, value, member)

    suffixes = TABLES
    return {
        "table": Reader(suffixes, lambda path: read_floats(source(path)), check_column),
        "table member": Reader(
            suffixes, member_query, lambda path, value: check_column(path, value, "query")
        ),
        "table integers": Reader(suffixes, lambda path: read_integers(source(path)), check_column),
        "table names": Reader(suffixes, lambda path: read_names(source(path)), check_column),
    }


@functools.cache
def accepted() -> dict[str, list[tuple[str, bytes]]]:
    """The good files that each reader reads, with their kinds."""
    found: dict[str, list[tuple[str, bytes]]] = {name: [] for name in READERS}
    with tempfile.TemporaryDirectory() as folder:
        for name, reader in READERS.items():
            for kind in reader.kinds:
                for number, data in enumerate(good_files()[kind]):
                    path = pathlib.Path(folder) / f"{name}{number}{suffix_of(kind)}"
                    path.write_bytes(data)
                    with contextlib.suppress(ValueError):
                        reader.read(path)
                        found[name].append((kind, data))
    return found


def suffix_of(kind: str) -> str:
    return kind if kind.startswith(".") else ".npz"


# --- the campaign --------------------------------------------------------------------------------


class HangError(BaseException):
    pass


def _hung(*_):
    raise HangError(f"more than {SECONDS} s of the processor")


_watching = False
_seen: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    # A pipe is kept in a temporary file, which is opened by its handle.
    if not _watching or (arguments and (isinstance(arguments[0], int) or _keeps(arguments[0]))):
        return
    mode = arguments[1] if event == "open" and len(arguments) > 1 else None
    if (
        event
        in ("pickle.find_class", "os.system", "subprocess.Popen", "socket.connect", "os.remove")
        or (isinstance(mode, str) and set(mode) & set("wax+"))
        or (event == "exec" and not str(arguments[0].co_filename).endswith(".py"))
    ):
        _seen.append(f"{event} {arguments}")


def _keeps(name: Any) -> bool:
    return str(name).startswith(f"{tempfile.gettempdir()}/dbnorm-")


@functools.cache
def _install_audit() -> None:
    sys.addaudithook(_audit)  # cannot be taken away again; it is idle while nothing is watched


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Address space, processor time and what the interpreter does are watched."""
    global _watching  # noqa: PLW0603
    import safetensors.numpy  # noqa: F401 - what importing runs is no file's doing

    _install_audit()
    with contextlib.ExitStack() as stack:
        if systems.PROC.exists():
            limit = systems.memory("all") + MEMORY
            stack.enter_context(systems.limited("RLIMIT_AS", limit))
        stack.enter_context(systems.limited_seconds(SECONDS, _hung))
        _watching = True
        try:
            yield
        finally:
            _watching = False


def case(seed: int, number: int) -> tuple[str, str, bytes, bool]:
    """Name of a reader, suffix, contents of the file, whether its checksum was forged."""
    rng = Random(f"{seed}:{number}")
    name = rng.choice(list(READERS))
    kind = rng.choice(READERS[name].kinds)
    contents = good_files()
    if rng.random() < 0.6 and accepted()[name]:
        kind, data = rng.choice(accepted()[name])
    else:
        # Whatever the suffix, tables are read by pyarrow, which has a campaign of its own.
        alike = [kind] if kind in TABLES else [one for one in contents if one not in TABLES]
        data = rng.choice(contents[kind if rng.random() < 0.95 else rng.choice(alike)])
    suffix = suffix_of(kind)
    forged = False
    if kind in TABLES and rng.random() < 0.4:
        data = tables().unusual(rng, kind) or data
        if rng.random() < 0.5:
            return name, suffix, data, forged
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change: Callable[[Random, bytes], bytes] = bytewise
        if rng.random() < 0.5:
            if data[:2] == b"PK":
                change = signed if kind[0] != "." and rng.random() < 0.6 else zipped
            elif data[:1] == b"\x93":
                change = npy_header
            elif suffix == ".safetensors" and len(data) > 8:
                change = safetensors_header
        forged |= change is signed
        data = change(rng, data)
    return name, suffix, data, forged


def check(name: str, path: pathlib.Path, value: Any) -> None:
    try:
        READERS[name].check(path, value)
    except Exception as error:  # also where NumPy refuses what ours reads
        raise AssertionError(f"{name} reads wrongly: {error!r}") from error


def execute(folder: pathlib.Path, seed: int, number: int) -> tuple[str, str]:
    """One file to one reader -> its name and what came of it; AssertionError: broken contract."""
    name, suffix, data, forged = case(seed, number)
    path = folder / f"{number}{suffix}"
    path.write_bytes(data)
    return judge(name, path, forged=forged)


def judge(name: str, path: pathlib.Path, *, forged: bool) -> tuple[str, str]:
    """Reads a file and removes it; AssertionError: broken contract."""
    outcome, line = "read", None
    try:
        with guarded():
            value = READERS[name].read(path)
        if not forged:
            check(name, path, value)
    except (ValueError, TypeError, OSError) as error:
        outcome, line = "refused", str(error)
    except (Exception, HangError) as error:
        raise AssertionError(f"{name}: {error!r}") from error
    finally:
        path.unlink()
    if line is not None:
        assert str(path) in line, f"{name} does not name the file: {line}"
        assert line.isprintable(), f"{name} says more than one printable line: {line!r}"
        assert len(line) < 1000 + len(str(path)), f"{name} says {len(line)} characters"
        assert "allow_pickle" not in line, f"{name} advises to load pickles"
        assert "alloc" not in line, f"{name} asks for memory: {line}"  # Arrow's MemoryErrors
    assert not _seen, f"{name}: the file made {_seen}"
    assert not RAN, f"{name}: a pickle was run"
    return name, outcome


@dataclasses.dataclass
class Outcome:
    counts: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    broken: list[str] = dataclasses.field(default_factory=list)
    slowest: float = 0.0


def campaign(
    folder: pathlib.Path,
    executions: int,
    seed: int,
    *,
    first: int = 0,
    most_broken: int = 20,
    begin: Callable[[int], None] = lambda number: None,
) -> Outcome:
    """Executes `first` and those after it; `begin` is told each number before."""
    outcome = Outcome()
    for number in range(first, first + executions):
        start = time.process_time()
        begin(number)
        try:
            key = execute(folder, seed, number)
            outcome.counts[key] = outcome.counts.get(key, 0) + 1
        except AssertionError as error:
            outcome.broken.append(f"--seed {seed} --first {number}: {error}")
            forget()
            if len(outcome.broken) >= most_broken:
                break
        outcome.slowest = max(outcome.slowest, time.process_time() - start)
    return outcome


def forget() -> None:
    """What a broken file did is reported once."""
    _seen.clear()
    RAN.clear()


# --- in a child ----------------------------------------------------------------------------------


@contextlib.contextmanager
def counters(path: pathlib.Path) -> Iterator[memoryview]:
    """Numbers that outlive the process that writes them: the execution begun, those broken."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 16) as shared:
        numbers = memoryview(shared).cast("q")
        try:
            yield numbers
        finally:
            numbers.release()


def child(folder: pathlib.Path, executions: int, seed: int, first: int) -> None:
    """Runs a campaign and prints what came of it."""
    if has_tables():
        READERS.update(table_readers())
    accepted()
    resident = systems.peak_memory()
    start = time.monotonic()
    with counters(folder / "counters") as numbers:

        def begin(number: int) -> None:
            numbers[0] = number

        for done in range(0, executions, 20_000):
            count = min(20_000, executions - done)
            outcome = campaign(folder, count, seed, first=first + done, begin=begin)
            numbers[1] += len(outcome.broken)
            for line in outcome.broken:
                print(line)
            read = sum(v for k, v in outcome.counts.items() if k[1] == "read")
            grown = systems.peak_memory() - resident
            print(
                f"{done + count} executions from {first} on, {time.monotonic() - start:.0f} s; of "
                f"the last {count} {read} read, {len(outcome.broken)} broken, slowest "
                f"{outcome.slowest:.2f} s; {grown >> 10} MiB",
                flush=True,
            )


def in_children(folder: pathlib.Path, executions: int, seed: int, first: int) -> int:
    """How many executions broke the contract; one that ends its child does."""
    place = folder / "counters"
    broken, next_one, end = 0, first, first + executions
    while next_one < end:
        place.write_bytes(bytes(16))
        with counters(place) as numbers:
            numbers[0] = next_one
            arguments = [folder, end - next_one, seed, next_one]
            command = [sys.executable, __file__, "--child", *map(str, arguments)]
            with subprocess.Popen(command) as process:
                ended = _awaited(process, numbers)
            broken += numbers[1]
            if ended is None:
                break
            broken += 1
            print(f"--seed {seed} --first {numbers[0]}: {ended}", flush=True)
            next_one = numbers[0] + 1
    return broken


def _awaited(process: "subprocess.Popen[bytes]", numbers: memoryview) -> str | None:
    """How a child ended before its work was done."""
    last, since = numbers[0], time.monotonic()
    while True:
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            if numbers[0] != last:
                last, since = numbers[0], time.monotonic()
            elif time.monotonic() - since > STUCK:
                process.kill()
                return f"nothing for {STUCK} s"
            continue
        return None if code == 0 else f"the process ended with {code}"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        folder, *rest = sys.argv[2:]
        child(pathlib.Path(folder), *map(int, rest))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--coverage", action="store_true")
    options = parser.parse_args()
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = pathlib.Path(name)
        if options.coverage:
            import fuzz_coverage

            broken = fuzz_coverage.run(folder, options.executions, options.seed)
        else:
            broken = in_children(folder, options.executions, options.seed, options.first)
    print(f"{options.executions} executions, {broken} broken")
    sys.exit(bool(broken))


if __name__ == "__main__":
    sys.modules["fuzz_readers"] = sys.modules[__name__]  # where pickles look for `ran`
    main()
