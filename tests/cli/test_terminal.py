"""What people are shown: printable lines, whatever names, arguments and labels hold."""

import ast
import csv
import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import HUNG, slow_but

import dbnorm_jax as dbn

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.reading.argument import typed
from dbnorm_jax._cli.showing import output, terminal
from dbnorm_jax._src.core.text import excerpt, printable

ROOT = pathlib.Path(__file__).parents[2]
CLI = sorted((ROOT / "dbnorm_jax" / "_cli").rglob("*.py"))
# Sets a title, rings, reverses the line, ends it in several ways, is invisible, is no UTF-8.
HOSTILE = "a\x1b]0;title\x07\u202e\x9b2J\n\r\t\u2028\x85\u200b\u2066\x7f\xa0\ufeff'  \"$x\\\udcffz"
RESULT = f"{HOSTILE}.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    random = np.random.default_rng(0)
    try:
        (folder / HOSTILE).mkdir()
    except (OSError, ValueError):
        pytest.skip("the system has no such names")
    for name, rows in (("queries", 20), ("gallery", 40), ("bank", 30)):
        np.save(folder / HOSTILE / f"{name}{HOSTILE}.npy", random.normal(size=(rows, 4)))
    np.savez(folder / HOSTILE / "other.npz", np.ones((3, 4)))  # so that it is no folder of shards
    np.savez(folder / f"{HOSTILE}.npz", **{"a\x1b[2J": np.ones((3, 4)), "b": np.ones((3, 4))})
    bias = np.linspace(0, 1, 40, dtype=np.float32)[None]
    dbn.save(folder / f"c{HOSTILE}.npz", dbn.Correction(bias, None))
    for name in ("s", "t"):
        dbn.save(folder / f"{name}{HOSTILE}.npz", dbn.bank_statistics(bias, beta=1.0))
    names = np.array([f"{row}\x1b[2J\u202e\u2028\x7f\x9b\U000e0001é" for row in range(40)])
    np.save(folder / "names.npy", names)
    return folder


@pytest.fixture
def shown(folder, call, monkeypatch):
    """Runs the command in that folder -> what it exits with, the lines of both streams."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        code, out, err = call(*arguments)
        for line in [*out.split("\n"), *err.split("\n")]:
            assert line.isprintable(), line
        return code, out.split("\n")[:-1], err.split("\n")[:-1]

    return run


def rows_of(name):
    return f"{HOSTILE}/{name}{HOSTILE}.npy"


def test_printable():
    assert printable(HOSTILE).isprintable()
    assert printable("a\x1b\u202e\n\x85\udcff") == r"a\x1b\u202e\n\x85\udcff"
    assert printable("Größe 図 'x'") == "Größe 図 'x'"
    assert len(excerpt("\x1b" * 10_000)) < 1300


FILE_OF = {
    "evaluate": ["{0}", "{0}", "--query-bank", "{0}"],
    "evaluate ": ["{0}"],
    "evaluate  ": [
        "--similarities",
        "{0}",
        "--query-bank-similarities",
        "{0}",
    ],
    "tune": ["{0}", "{0}"],
    "inspect": ["{0}", "--query-bank", "{0}"],
    "inspect ": ["--results", "{0}"],
    "fit": ["{0}", "--query-bank", "{0}", "--method", "is", "--output", "x.npz"],
    "search": ["{0}", "{0}"],
    "search ": [rows_of("queries"), rows_of("gallery"), "--correction", "{0}"],
    "search  ": [rows_of("queries"), rows_of("gallery"), "--labels", "{0}"],
    "merge": ["{0}", "{0}", "--output", "x.npz"],
    "export": [rows_of("gallery"), "--correction", "{0}", "--output", "x"],
}


@pytest.mark.parametrize(
    "file",
    [f"no{HOSTILE}.npy", HOSTILE, f"{HOSTILE}.npz", f"c{HOSTILE}.npz"],
    ids=["missing", "a folder", "two arrays", "a state"],
)
@pytest.mark.parametrize("command", FILE_OF)
def test_files_that_are_refused(command, file, shown):
    words = [word.format(file) for word in FILE_OF[command]]
    if (command, file) == ("search ", f"c{HOSTILE}.npz") or (command, file[0]) == ("export", "c"):
        pytest.skip("is right there")
    code, out, (line,) = shown(command.strip(), *words)
    assert (code, out) == (2, [])
    assert printable(file) in line


@pytest.mark.parametrize(
    "words",
    [
        [HOSTILE],
        ["search", f"--{HOSTILE}"],
        ["search", f"--force={HOSTILE}"],
        ["search", "a", "b", HOSTILE],
        ["search", "a", "b", "-k", HOSTILE],
        ["search", "a", "b", "--similarity", HOSTILE],
        ["search", "a", "b", "--output", HOSTILE],
        ["search", "a", "b", "--output", f"{HOSTILE}/x/{RESULT}"],
        ["search", "a", "b", "--output", f"{HOSTILE}.npz"],
        ["export", "a", "--correction", "c", "--output", rows_of("gallery")],
        ["fit", "a", "--method", HOSTILE, "--output", "x.npz"],
        ["fit", "a", "--query-bank", "b", "--method", "is", "--output", f"no{HOSTILE}"],
        ["evaluate", "a", "b", "--query-bank", "c", "--methods", HOSTILE],
        ["evaluate", "a", "b", "--query-bank", "c", "--methods", f"nnn:k={HOSTILE}"],
        ["inspect", "a", "--query-bank", "c", "--method", f"nnn:{HOSTILE}=1"],
        ["demo", "--source", HOSTILE],
        ["demo", "--output", f"{HOSTILE}.npz"],
        ["benchmark", "--queries", HOSTILE],
    ],
    ids=lambda words: printable(" ".join(words))[:40],
)
def test_arguments_that_are_refused(words, shown, monkeypatch):
    code, out, (line,) = shown(*words)
    assert (code, out) == (2, [])
    assert line.startswith("dbnorm: error: ")
    monkeypatch.setenv("DBNORM_TRACEBACK", "1")
    code, out, lines = shown(*words)
    assert (code, out, lines[-1]) == (2, [], line)


QUICK = ["search", "merge", "export"]


@pytest.mark.parametrize("command", slow_but(QUICK, [*QUICK, "fit", "tune", "evaluate", "inspect"]))
@pytest.mark.parametrize("as_json", [False, True])
def test_results_are_named(command, as_json, shown, folder):
    queries, gallery, bank = map(rows_of, ("queries", "gallery", "bank"))
    words, result = {
        "search": ([queries, gallery, "--correction", f"c{HOSTILE}.npz"], RESULT),
        "merge": ([f"{one}{HOSTILE}.npz" for one in "st"], f"m{HOSTILE}.npz"),
        "export": ([gallery, "--correction", f"c{HOSTILE}.npz"], f"index{HOSTILE}"),
        "fit": ([gallery, "--query-bank", bank, "--method", "is"], f"f{HOSTILE}.npz"),
        "tune": ([queries, gallery], f"t{HOSTILE}.npz"),
        "evaluate": ([queries, gallery, "--query-bank", bank, "--methods", "is"], f"e{HOSTILE}"),
        "inspect": ([gallery, "--query-bank", bank, "--labels", "names.npy"], f"i{HOSTILE}"),
    }[command]
    more = ["--force", *["--json"] * as_json]
    code, out, err = shown(command, *words, "--output", result, *more)
    assert code == 0, err
    assert (folder / result).exists()
    assert any(printable(result) in line for line in out + err) or command == "tune" or as_json
    if as_json:
        content = json.loads("\n".join(out))
        assert content.get("output", result) == result
        assert content.get("correction", words[-1]) == words[-1]


@pytest.mark.slow
def test_titles(shown):
    queries, gallery, bank = map(rows_of, ("queries", "gallery", "bank"))
    words = [queries, gallery, "--query-bank", bank, "--methods", "is", "--labels", "names.npy"]
    code, (title, *_), err = shown("evaluate", *words)
    assert (code, err) == (0, [])
    name = printable(HOSTILE)
    assert title == f"queries{name} -> gallery{name}"


def test_search_escapes_ids_as_json_does(shown):
    words = [rows_of("queries"), rows_of("gallery"), "-k", 1]
    _, out, _ = shown("search", *words)
    code, named, _ = shown("search", *words, "--labels", "names.npy")
    assert code == 0
    names = np.load("names.npy").tolist()
    found = [json.loads(line)["items"] for line in out]
    assert [json.loads(line)["items"] for line in named] == [[names[one]] for (one,) in found]


def test_a_full_standard_output_is_named(tmp_path):
    """Not by Python at its exit, for a second time."""
    if not pathlib.Path("/dev/full").exists():
        pytest.skip("writes to /dev/full")
    with pathlib.Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "dbnorm_jax", "--help"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, timeout=HUNG, check=False
        )
    assert done.returncode == 2
    assert done.stderr == b"dbnorm: error: standard output: No space left on device\n"


@pytest.mark.parametrize("path", CLI, ids=lambda path: path.stem)
def test_there_is_one_way_to_the_terminal(path):
    """`print` is forbidden by ruff; consoles and streams here."""
    if path.stem == "terminal":
        return
    tree = ast.parse(path.read_text("utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"}
    assert "Console" not in calls or path.stem == "progress"  # whose texts are the command's own


TEXTS = st.text(st.characters())  # surrogates too


@settings(max_examples=200)
@given(TEXTS)
def test_json_is_read_back(text):
    made = terminal.json_text({"a": [text], text: None})
    assert json.loads(made) == {"a": [text], text: None}
    assert made.replace("\n", "").isprintable()


def test_json_is_whole_where_the_terminal_lacks_characters(monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), "ascii", errors="replace")
    monkeypatch.setattr(sys, "stdout", file)
    terminal.say_json(["é\x7f\U000e0001"])
    file.seek(0)
    assert json.loads(file.read()) == ["é\x7f\U000e0001"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "ksh"])
def test_a_shell_takes_what_is_typed(shell):
    if shutil.which(shell) is None:
        pytest.skip("is not here")
    words = ["dbnorm", "two words", HOSTILE, "it's", "$x", "\\n\x1b", "\x01234", "é\u200b"]
    line = typed(*words)
    assert line.isprintable()
    done = subprocess.run(
        [shell, "-c", f"printf '%s\\0' {line}"], capture_output=True, timeout=HUNG, check=True
    )
    wanted = [word.encode("utf-8", "surrogateescape") for word in words]
    assert done.stdout.split(b"\0")[:-1] == wanted


HINTED = f"{HOSTILE}.npz:a\x1b[2J"


def test_a_hint_can_be_typed(shown):
    _, _, (line,) = shown("search", f"{HOSTILE}.npz", rows_of("gallery"))
    assert line.endswith(f"; choose one, for instance {typed(HINTED)}")


@pytest.mark.parametrize("head", "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
def test_texts_of_reports_are_no_formulas(head):
    text = f"{head}1+1"
    line = output.report_line([text, f"a{text}", -1, -2.5, np.float32(-3), None])
    (cells,) = csv.reader(io.StringIO(line, newline=""))
    assert cells == [f"'{text}", f"a{text}", "-1", "-2.5", "-3.0", ""]
    (cells,) = csv.reader(io.StringIO(output.csv_line([text]), newline=""))
    assert cells == [text]
