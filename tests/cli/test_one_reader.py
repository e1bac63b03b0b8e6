"""One check for every input: option x form x (file, pipe), the same result or the same error."""

import io
import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import dbnorm_jax as dbn

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.names import read_items
from dbnorm_jax._cli.reading.single import read_floats

pytestmark = pytest.mark.usefixtures("compile_fast")

ROOT = pathlib.Path(__file__).parents[2]
ROWS, DIM = 12, 4
MATRICES = {
    name: np.random.default_rng(seed).normal(size=(ROWS, DIM)).astype(np.float32)
    for seed, name in enumerate(("queries", "gallery", "bank", "items"))
}
NUMBERS = np.roll(np.arange(ROWS), 1)
NAMES = np.array([f"name {row}" for row in range(ROWS)])


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def safetensors(**arrays):
    numpy = pytest.importorskip("safetensors.numpy")
    return numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def table(form, **arrays):
    arrow = pytest.importorskip("pyarrow")
    columns = {name: array.tolist() for name, array in arrays.items()}
    if arrays["it"].dtype.kind == "f":
        columns["it"] = arrow.array(columns["it"], arrow.list_(arrow.float32()))
    made, stream = arrow.table(columns), io.BytesIO()
    if form == "parquet":
        from pyarrow import parquet

        parquet.write_table(made, stream)
    else:
        make = arrow.ipc.new_file if form == "feather" else arrow.ipc.new_stream
        with make(stream, made.schema) as writer:
            writer.write_table(made)
    return stream.getvalue()


OTHER = np.zeros(ROWS)
# Form -> (its suffix, how an array is written, the `:name` to ask for).
FORMS = {
    "npy": (".npy", npy, ""),
    "npy in Fortran order": (".npy", lambda array: npy(np.asfortranarray(array)), ""),
    "npy with more behind it": (".npy", lambda array: npy(array) + b"junk", ""),
    "npy cut off": (".npy", lambda array: npy(array)[:-3], ""),
    "npy header cut off": (".npy", lambda array: npy(array)[:40], ""),
    "npy of objects": (".npy", lambda array: npy(array.astype(object)), ""),
    "npy named": (".npy", npy, ":it"),
    "npz": (".npz", lambda array: npz(it=array), ""),
    "npz of two": (".npz", lambda array: npz(it=array, other=OTHER), ""),
    "npz of two, named": (".npz", lambda array: npz(it=array, other=OTHER), ":it"),
    "npz, another named": (".npz", lambda array: npz(it=array), ":more"),
    "npz cut off": (".npz", lambda array: npz(it=array)[:-30], ""),
    "safetensors": (".safetensors", lambda array: safetensors(it=array), ""),
    "safetensors of two": (".safetensors", lambda array: safetensors(it=array, o=OTHER), ":it"),
    "safetensors cut off": (".safetensors", lambda array: safetensors(it=array)[:-3], ""),
    "parquet": (".parquet", lambda array: table("parquet", it=array), ""),
    "parquet of two": (".parquet", lambda array: table("parquet", it=array, o=OTHER), ":it"),
    "parquet, none named": (".parquet", lambda array: table("parquet", it=array, o=OTHER), ""),
    "parquet cut off": (".parquet", lambda array: table("parquet", it=array)[:-3], ""),
    "arrow": (".arrow", lambda array: table("arrow", it=array), ""),
    "arrow of two": (".arrow", lambda array: table("arrow", it=array, o=OTHER), ":it"),
    "feather": (".feather", lambda array: table("feather", it=array), ":it"),
    "text": (".txt", lambda array: "".join(f"{row}\n" for row in array).encode(), ""),
    "pickle": (".txt", lambda array: b"\x80\x04" + array.tobytes(), ""),
    "nothing": (".txt", lambda _: b"", ""),
    "one row less": (".npy", lambda array: npy(array[:-1]), ""),
    "not finite": (".npy", lambda array: npy(array * np.inf) if array.ndim == 2 else b"", ""),
}
SEARCH = ("search", "queries.npy", "gallery.npy")
EVALUATE = ("evaluate", "queries.npy", "gallery.npy", "--methods", "is", "--json")
INSPECT = ("inspect", "gallery.npy", "--json", "--query-bank", "bank.npy", "--queries")
FIT = ("fit", "gallery.npy", "--method", "is", "--output", "c.npz", "--force")
# Option -> (what it holds, the command that it ends).
OPTIONS = {
    "search QUERIES": (MATRICES["queries"], ("search", "--", None, "gallery.npy")),
    "search GALLERY": (MATRICES["gallery"], ("search", "--", "queries.npy", None)),
    "search --query-labels": (NAMES, (*SEARCH, "--query-labels", None)),
    "search --labels": (NAMES, (*SEARCH, "--labels", None)),
    "fit --query-bank": (MATRICES["bank"], (*FIT, "--query-bank", None)),
    "evaluate --query-bank": (MATRICES["bank"], (*EVALUATE, "--query-bank", None)),
    "evaluate --relevant": (NUMBERS, (*EVALUATE, "--query-bank", "bank.npy", "--relevant", None)),
    "inspect --labels": (NAMES, (*INSPECT, "queries.npy", "--labels", None)),
    "tune --bank-pairs": (NUMBERS, ("tune", "bank.npy", "items.npy", "--bank-pairs", None)),
    "tune GALLERY_BANK": (MATRICES["items"], ("tune", "--json", "--", "bank.npy", None)),
}
# Every form with one option of each kind, some forms with every option.
WHOLE = ("search QUERIES", "search --query-labels", "evaluate --relevant")
SOME = ("npy", "npy with more behind it", "npz of two", "parquet of two", "text")
CELLS = [
    (option, form)
    for option, (array, _) in OPTIONS.items()
    for form in FORMS
    if (option in WHOLE or form in SOME)
    and not (array is NAMES and form.startswith("safetensors"))  # which holds no texts
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in MATRICES.items():
        np.save(f"{name}.npy", rows)
    return tmp_path


def pipe(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def told(text):
    """But for what to type next, which cannot name what came through a pipe."""
    return text.partition("\nNext: ")[0].rstrip("\n")


@pytest.mark.parametrize(("option", "form"), CELLS)
def test_a_pipe_is_read_as_a_file_is(option, form, folder, call, monkeypatch):
    array, command = OPTIONS[option]
    suffix, write, member = FORMS[form]
    data = write(array)
    given = pathlib.Path(f"given{suffix}")
    given.write_bytes(data)
    found = []
    for text in (f"{given}{member}", f"-{member}"):
        pipe(monkeypatch, data)
        code, out, err = call(*(text if part is None else part for part in command))
        state = pathlib.Path("c.npz")
        if code == 0 and state.exists():
            out = np.asarray(dbn.load(state).bias).tobytes()
        # A file is named by its path; its reader may know it by its suffix alone.
        err = err.replace(f"'{given}", "(standard input").replace(f"{member}'", f"{member})")
        err = err.replace(f"instance {given}", "instance -").replace("input'", "input)")
        if isinstance(out, str):
            out = out.replace(f"{given.stem} -> ", "QUERIES -> ")
            out = told(out)
        found.append((code, out, told(err)))
    assert found[0] == found[1]
    good = form in GOOD or (form, option) in ALSO or (form == "text" and array is NAMES)
    expected = 0 if good else 2
    assert found[0][0] == expected, found[0][2]
    if expected:
        assert found[0][2].startswith(f"dbnorm: error: {option.split()[1]} ")
        assert found[0][2].count("\n") == 0


GOOD = {
    "npy",
    "npy in Fortran order",
    "npz",
    "npz of two, named",
    "safetensors",
    "safetensors of two",
    "parquet",
    "parquet of two",
    "arrow",
    "arrow of two",
    "feather",
}
# Queries may be fewer, and of a table they are the only lists.
ALSO = {(form, "search QUERIES") for form in ("one row less", "parquet, none named")}


def test_one_argument_takes_the_pipe(folder, call, monkeypatch):
    pipe(monkeypatch, npy(MATRICES["queries"]))
    code, _, err = call("search", "-", "-")
    assert code == 2
    assert "GALLERY: expected a file, got standard input, which QUERIES takes; name a file" in err


@pytest.mark.slow
def test_what_is_kept_of_a_pipe_goes_at_the_end(folder):
    kept = folder / "kept"
    kept.mkdir()
    environment = {**os.environ, "TMPDIR": str(kept), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dbnorm_jax", "search", "-", "gallery.npy"]
    for data, code in ((npy(MATRICES["queries"]), 0), (b"text", 2)):
        done = subprocess.run(
            command, input=data, env=environment, capture_output=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert not list(kept.iterdir())


def test_a_set_and_state_come_through_a_pipe(folder, call, monkeypatch):
    names = {"queries": "query", "gallery": "gallery", "bank": "query_bank"}
    data = npz(**{names[part]: MATRICES[part] for part in names})
    pathlib.Path("set.npz").write_bytes(data)
    wanted = json.loads(call("evaluate", "set.npz", "--methods", "is", "--json")[1])
    pipe(monkeypatch, data)
    found = json.loads(call("evaluate", "-", "--methods", "is", "--json")[1])
    assert found["rows"] == wanted["rows"]
    assert call(*FIT, "--query-bank", "bank.npy")[0] == 0
    wanted = call(*SEARCH, "--correction", "c.npz")
    assert wanted[0] == 0
    pipe(monkeypatch, pathlib.Path("c.npz").read_bytes())
    code, out, err = call(*SEARCH, "--correction", "-")
    assert (code, out) == wanted[:2]
    assert told(err).replace("under -", "under c.npz") == told(wanted[2])
    pipe(monkeypatch, b"text")
    code, _, err = call(*SEARCH, "--correction", "-")
    assert code == 2
    assert "--correction (standard input): expected an .npz written by dbnorm_jax.save" in err


def test_a_pipe_that_does_not_end_is_not_read_to_its_end():
    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size=-1):
            self.taken += size
            data = self.start[:size] + bytes(max(size - len(self.start), 0))
            self.start = self.start[size:]
            return data

    for start in (npy(MATRICES["queries"]), b"\x93NUMPY", b""):
        stream = Endless()
        stream.start = start
        source = Source.kept("QUERIES", stream)
        with pytest.raises(ValueError, match=r"QUERIES \(standard input\): expected"):
            read_floats(source)
        assert stream.taken < 2**17
        source.path.unlink()


# --- ids of tables -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("shared", [False, True], ids=["strings", "categories"])
def test_ids_come_from_a_column(folder, call, suffix, shared):
    arrow = pytest.importorskip("pyarrow")
    names = arrow.array(["ü, 1", "a", "ü, 2", *NAMES[3:]])
    columns = {"id": names.dictionary_encode() if shared else names, "number": NUMBERS.tolist()}
    columns["embedding"] = MATRICES["gallery"].tolist()
    made = arrow.table(columns)
    if suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(made, "gallery.parquet", row_group_size=5)
    else:
        make = arrow.ipc.new_file if suffix == ".feather" else arrow.ipc.new_stream
        with arrow.OSFile(f"gallery{suffix}", "wb") as file, make(file, made.schema) as writer:
            writer.write_table(made)
    found = {}
    for column in ("id", "number"):
        code, out, err = call(*SEARCH, "--labels", f"gallery{suffix}:{column}", "-k", 1)
        assert code == 0, err
        found[column] = [json.loads(line)["items"][0] for line in out.splitlines()]
    rows = [json.loads(line)["items"][0] for line in call(*SEARCH, "-k", 1)[1].splitlines()]
    assert found["id"] == [names[row].as_py() for row in rows]
    assert found["number"] == NUMBERS[rows].tolist()
    code, _, err = call(*SEARCH, "--labels", f"gallery{suffix}")
    assert code == 2
    assert f"got id, number, embedding; choose one, for instance gallery{suffix}:id" in err
    code, _, err = call(*SEARCH, "--labels", f"gallery{suffix}:embedding")
    assert code == 2
    assert "expected 1 axis of strings or integers" in err
    code, _, err = call("search", f"gallery{suffix}:id", "gallery.npy")
    assert code == 2
    assert "expected numbers, got a column of strings; choose another column" in err


def test_one_text_of_many_rows_is_unpacked_once(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "ids.parquet"
    parquet.write_table(arrow.table({"id": ["a" * 2**20] * 1000}), path)
    before = arrow.total_allocated_bytes()
    items = read_items(Source("--labels", path), 1000, "a name")
    assert len({id(one) for one in items}) == 1
    assert arrow.total_allocated_bytes() - before < 2**25


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_column_goes_before_a_field_of_that_path(tmp_path, suffix):
    arrow = pytest.importorskip("pyarrow")
    structs = [{"b": f"field {row}", "c": {"d": [float(row)]}} for row in range(3)]
    made = arrow.table({"a": structs, "a.b": ["x", "y", "z"], "a.c.d.list": [[7.0]] * 3})
    path = tmp_path / f"items{suffix}"
    if suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(made, path)
    else:
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)

    def source(member):
        return Source("--labels", path, member)

    assert read_items(source("a.b"), 3, "a name").tolist() == ["x", "y", "z"]
    assert read_floats(source(None)).tolist() == [[7.0]] * 3
    assert read_floats(source("a.c.d")).tolist() == [[0.0], [1.0], [2.0]]
    with pytest.raises(ValueError, match=r"an array named a\.e, got a, a\.b, a\.c\.d\.list"):
        read_items(source("a.e"), 3, "a name")
    with pytest.raises(ValueError, match="expected numbers, got a column of strings"):
        read_floats(source("a.b"))


def test_an_empty_part_of_a_table_has_no_ids(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    names, path = arrow.array(["a", "b", "a"]).dictionary_encode(), tmp_path / "ids.arrow"
    schema = arrow.schema([("id", names.type)])
    with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_stream(file, schema) as writer:
        for part in (names, names[:0], names):
            writer.write_batch(arrow.record_batch({"id": part}))
    items = read_items(Source("--labels", path), 6, "a name")
    assert items.tolist() == [*"abaaba"]


# --- the remedy that is shown is the right one ---------------------------------------------------

SCORES = (3, 4)
RELEVANT = {
    "rows": (np.array([1, 0, 3]), [[1], [0], [3]]),
    "rows, none of one": (np.array([1, -1, 3]), [[1], [], [3]]),
    "several rows, filled up": (np.array([[0, 1], [2, -1], [3, 0]]), [[0, 1], [2], [0, 3]]),
    "a matrix of bool": (np.eye(*SCORES, dtype=bool), [[0], [1], [2]]),
    "several in a matrix": (np.arange(12).reshape(SCORES) % 3 == 0, [[0, 3], [2], [1]]),
}


@pytest.mark.parametrize("case", RELEVANT)
def test_relevant_takes_what_the_library_takes(case, tmp_path):
    from dbnorm_jax._cli.reading.relevant import read_relevant

    array, wanted = RELEVANT[case]
    np.save(tmp_path / "r.npy", array)
    (indptr, indices), _, _ = read_relevant(Source("--relevant", tmp_path / "r.npy"), *SCORES)
    found = [indices[i:j].tolist() for i, j in itertools.pairwise(indptr)]
    assert found == wanted
    scores = np.random.default_rng(0).normal(size=SCORES).astype(np.float32)
    np.testing.assert_array_equal(
        dbn.metrics.ranks(scores, (indptr, indices)), dbn.metrics.ranks(scores, array)
    )


def saved(array):
    return lambda path: np.save(path, array)


# What is given for an option that takes row numbers or names -> the remedy, and what follows it.
REMEDIES = {
    "qrels": ("relevant", lambda path: path.write_text("q1 0 d1 2\n"), "give the ids", "float32"),
    "a pickle": ("relevant", lambda path: path.write_bytes(b"\x80\x04"), "row numbers", "float32"),
    "ids": ("relevant", saved(np.array(["a", "b", "c"])), "row numbers", "astype"),
    "floats": ("relevant", saved(np.array([0.0, 1, 2])), "astype('int64')", "nan"),
    "nan for none": ("relevant", saved(np.array([0.0, np.nan, 2])), "nan_to_num(rows, nan=-1)", ""),
    "embeddings": ("relevant", saved(np.ones((3, 2))), "row numbers", "astype"),
    "0 and 1": ("relevant", saved(np.eye(*SCORES, dtype=int)), ".astype(bool)", "reshape"),
    "transposed": ("relevant", saved(np.eye(4, 3, dtype=bool)), "transpose it", "nonzero"),
    "objects": ("relevant", saved(np.array([[0], [1, 2], [3]], object)), "row numbers", "float32"),
    "bool pairs": ("pairs", saved(np.eye(3, dtype=bool)), "matrix.argmax(1)", "gt_indptr"),
    "several pairs": ("pairs", saved(np.zeros((3, 2), int)), "one number per row", "gt_indptr"),
    "a text of pairs": ("pairs", lambda path: path.write_text("0\n1\n2\n"), "row numbers", "gt_in"),
    "objects for names": ("ids", saved(np.array(["a", "b", "c"], object)), "as str", "float32"),
    "floats for names": ("ids", saved(np.ones(3)), "as str", "float32"),
    "a pickle for names": ("ids", lambda path: path.write_bytes(b"\x80\x04"), "as str", "float32"),
}


@pytest.mark.parametrize("case", REMEDIES)
def test_the_remedy_fits_what_is_expected(case, tmp_path):
    from dbnorm_jax._cli.reading import arrays, names, relevant

    option, write, remedy, wrong = REMEDIES[case]
    path = tmp_path / "given.npy"
    write(path)
    read = {
        "relevant": lambda: relevant.read_relevant(Source("--relevant", path), *SCORES),
        "pairs": lambda: arrays.read_pairs(str(path), 3, 3),
        "ids": lambda: names.read_items(Source("--labels", path), 3, "3 names"),
    }
    with pytest.raises(ValueError, match="expected") as raised:
        read[option]()
    shown = str(raised.value).partition("; ")[2]
    assert remedy in shown
    assert not wrong or wrong not in shown
