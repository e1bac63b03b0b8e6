"""`dbnorm fit`, `dbnorm merge` and `dbnorm search`."""

import csv
import dataclasses
import io
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dbnorm_jax as dbn

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.commands import main as command
from dbnorm_jax._cli.commands import search
from dbnorm_jax._cli.reading import large, sets
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.names import read_items, read_lines
from dbnorm_jax._cli.showing import output, progress
from dbnorm_jax._src.core.similarity import SIMILARITY_FUNCTIONS
from dbnorm_jax._src.places.disk import checkpoint

pytestmark = pytest.mark.usefixtures("compile_fast")

ROOT = pathlib.Path(__file__).parents[2]
SIZE, DIM, BLOCK = 60, 8, 32


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(3)
    items = random.normal(size=(2, SIZE, DIM))
    queries = items + 0.8 * random.normal(size=items.shape) + 2 * random.normal(size=DIM)
    names = ("queries", "gallery", "query_bank", "gallery_bank")
    parts = (queries[0], items[0], queries[1], items[1])
    return {name: rows.astype(np.float32) for name, rows in zip(names, parts, strict=True)}


@pytest.fixture(scope="module")
def unit(arrays):
    return {name: rows / np.linalg.norm(rows, axis=1)[:, None] for name, rows in arrays.items()}


@pytest.fixture
def folder(arrays, tmp_path, monkeypatch):
    """The current folder, with the files."""
    monkeypatch.chdir(tmp_path)
    for name, rows in arrays.items():
        np.save(f"{name}.npy", rows)
    np.save("monday.npy", arrays["query_bank"][:25])
    np.save("tuesday.npy", arrays["query_bank"][25:])
    return tmp_path


@pytest.fixture
def call(capsys, folder):
    def run(*arguments, expect=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            command.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert stopped.value.code == expect, captured.err
        return captured.err if expect else captured.out

    return run


FIT = ("fit", "gallery.npy", "--query-bank", "query_bank.npy", "--block-size", BLOCK)


def expected(method, unit):
    """What the functions in memory give."""
    gallery, query_bank, gallery_bank = (
        unit[name] for name in ("gallery", "query_bank", "gallery_bank")
    )
    if method == "csls":
        return dbn.baselines.csls(dbn.stream_largest_similarities(query_bank, gallery, k=10))
    query = dbn.stream_bank_statistics(query_bank, gallery, beta=20.0)
    if method == "dis":
        return dbn.dynamic_inverted_softmax(query)
    return dbn.dual_dynamic_inverted_softmax(
        query, dbn.stream_bank_statistics(gallery_bank, gallery, beta=1.0)
    )


def assert_same(found, wanted):
    np.testing.assert_allclose(found.bias, wanted.bias, atol=2e-6)
    assert (found.active is None) == (wanted.active is None)
    if wanted.active is not None:
        np.testing.assert_array_equal(found.active, wanted.active)


# --- fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["dualdis", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dis", "csls"))]
)
def test_fit_equals_the_functions_in_memory(call, unit, method):
    more = ("--gallery-bank", "gallery_bank.npy") if method == "dualdis" else ()
    out = call(*FIT, "--method", method, *more, "--output", "c.npz")
    assert out.startswith(f"c.npz written: {method}(")
    assert_same(dbn.load("c.npz"), expected(method, unit))
    made_from = dbn.read_provenance("c.npz")
    assert made_from["gallery_file"] == "gallery.npy"  # as typed: `merge` names it again
    assert made_from["gallery"] == dbn.out_of_core.fingerprint(np.load("gallery.npy"))
    assert made_from["query_bank"] == dbn.out_of_core.fingerprint(np.load("query_bank.npy"))
    assert made_from["similarity"] == "cosine"
    assert not list(pathlib.Path().glob("*.partial"))


def test_done_work_returns_at_once(call, monkeypatch):
    arguments = (*FIT, "--method", "dis", "--output", "c.npz")
    call(*arguments)
    before = pathlib.Path("c.npz").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "run", lambda *_: pytest.fail("computed again"))
        assert "is done already" in call(*arguments)
        os.utime("gallery.npy", (0, 0))  # another stamp, the same rows
        assert "is done already" in call(*arguments)
        assert "earlier results of other work" in call(*arguments, "--beta-query", 10, expect=2)
        rows = np.load("gallery.npy")
        np.save("gallery.npy", rows[::-1])
        assert "earlier results of other work" in call(*arguments, expect=2)
    assert pathlib.Path("c.npz").stat().st_mtime_ns == before
    assert "written" in call(*arguments, "--force")
    assert pathlib.Path("c.npz").stat().st_mtime_ns > before


def test_what_is_recorded_was_done(call, parts):
    """A default k is at most the rows there are; that of given statistics is theirs."""
    out = call(*FIT, "--method", "nnn", "--output", "n.npz", "--json")
    assert json.loads(out)["parameters"] == {"k": SIZE, "weight": 0.75}
    statistics = ("fit", "gallery.npy", "--query-statistics", "monday.npz", "--method", "dis")
    assert "-k: expected 1, that of" in call(*statistics, "-k", 2, "--output", "c.npz", expect=2)
    assert json.loads(call(*statistics, "--output", "c.npz", "--json"))["parameters"] == {"k": 1}


def test_a_change_behind_size_and_time_is_seen(call):
    call(*FIT, "--method", "is", "--output", "c.npz")
    for name, words in (
        ("gallery.npy", (*SEARCH, "--correction", "c.npz")),
        ("gallery.npy", ("export", "gallery.npy", "--correction", "c.npz", "--output", "index")),
        ("gallery.npy", (*FIT, "--method", "is", "--output", "c.npz")),
        ("query_bank.npy", (*FIT, "--method", "is", "--output", "c.npz")),
    ):
        path = pathlib.Path(name)
        before, status = path.read_bytes(), path.stat()
        damaged(name, (17, 3), 0.125)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (len(before), status.st_mtime_ns)
        err = call(*words, expect=2)
        assert "SHA-256" in err or "earlier results of other work" in err
        path.write_bytes(before)
    assert "is done already" in call(*FIT, "--method", "is", "--output", "c.npz")


def test_a_stamp_holds_samples_of_the_whole_file(tmp_path):
    """For file systems without the time of the last change."""
    path = tmp_path / "rows"
    path.write_bytes(bytes(2**18))
    before = large._stamp([path])["samples"]
    for place in (0, 2**17, 2**18 - 1):
        path.write_bytes(bytes(place) + b"1" + bytes(2**18 - place - 1))
        assert large._stamp([path])["samples"] != before


def test_other_contents_of_small_inputs_are_seen(call, parts):
    """Statistics under the same provenance, and pairs under the same name."""
    statistics = ("fit", "gallery.npy", "--query-statistics", "monday.npz", "--method", "is")
    call(*statistics, "--output", "c.npz")
    assert "is done already" in call(*statistics, "--output", "c.npz")
    known, state = dbn.read_provenance("monday.npz"), dbn.load("monday.npz")
    dbn.save("monday.npz", dataclasses.replace(state, bias=state.bias + 1), provenance=known)
    assert "earlier results of other work" in call(*statistics, "--output", "c.npz", expect=2)
    dbn.save("monday.npz", state, provenance={"log": "x" * 131_000})
    err = call(*statistics, "--output", "d.npz", expect=2)
    assert "'monday.npz': its provenance, written down again, must have at most" in err
    pairs = np.full(SIZE, -1)
    np.save("pairs.npy", pairs)
    auto = (*FIT, "--method", "auto", "--bank-pairs", "pairs.npy", "--output", "a.npz")
    call(*auto)
    made_from = dbn.read_provenance("a.npz")
    assert made_from["query_bank"] == dbn.out_of_core.fingerprint(np.load("query_bank.npy"))
    assert "is done already" in call(*auto)
    os.utime("query_bank.npy", (0, 0))
    assert "is done already" in call(*auto)
    np.save("pairs.npy", np.arange(SIZE))
    assert "earlier results of other work" in call(*auto, expect=2)


def test_a_damaged_result_is_not_done(call):
    call(*FIT, "--method", "is", "--output", "c.npz")
    with np.load("c.npz") as found:
        arrays = {**found}
    np.savez("c.npz", **arrays | {"bias": arrays["bias"] + 1})
    err = call(*FIT, "--method", "is", "--output", "c.npz", expect=2)
    assert "--output 'c.npz': expected SHA-256" in err


@pytest.mark.parametrize(
    ("method", "steps", "kept"),
    [
        # The query bank takes 4 steps, and one at its end.
        ("dualdis", 7, ["parts.npz.gallery-bank.partial", "parts.npz.query-bank.partial"]),
        ("nnn", 3, ["parts.npz.largest.partial"]),
    ],
)
def test_interrupted_work_goes_on(call, monkeypatch, method, steps, kept):
    arguments = (*FIT, "--method", method, "--checkpoint-every", 0)
    if method == "dualdis":
        arguments = (*arguments, "--gallery-bank", "gallery_bank.npy")
    arguments = (*arguments, "--output")
    call(*arguments, "whole.npz")
    left = iter(range(steps - 1))
    write = checkpoint.Checkpoint.write

    def killed(self, running, **options):
        write(self, running, **options)
        if next(left, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "write", killed)
        call(*arguments, "parts.npz", expect=130)
    assert sorted(path.name for path in pathlib.Path().glob("*.partial")) == kept
    assert not pathlib.Path("parts.npz").exists()
    assert "--force" not in call(*arguments, "parts.npz")
    first, second = dbn.load("whole.npz"), dbn.load("parts.npz")
    np.testing.assert_array_equal(first.bias, second.bias)
    if method == "dualdis":
        np.testing.assert_array_equal(first.active, second.active)
    for name in ("gallery", "query_bank", "gallery_bank"):
        first, second = (dbn.read_provenance(path).get(name) for path in ("parts.npz", "whole.npz"))
        assert first == second
    assert not list(pathlib.Path().glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_killed_work_goes_on(folder, attempt):
    """SIGKILL at random moments, until the work is done."""
    generator = np.random.default_rng(0)
    for name, count in (("gallery", 4096), ("query_bank", 4096)):
        np.save(f"{name}.npy", generator.normal(size=(count, 32)).astype(np.float32))
    arguments = [*FIT[:4], "--block-size", 256, "--method", "dis", "--checkpoint-every", 0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def start(output):
        words = [str(word) for word in [*arguments, "--output", output]]
        return subprocess.Popen([sys.executable, "-m", "dbnorm_jax", *words], env=environment)

    assert start("whole.npz").wait(600) == 0
    kills = 0
    while kills < 3:
        process = start("parts.npz")
        begun = time.monotonic()
        while not pathlib.Path("parts.npz.query-bank.partial").exists():
            if process.poll() is not None:  # the kill before came after the last write
                assert kills
                assert process.returncode == 0
                break
            assert time.monotonic() - begun < 300
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5) if not kills else random.uniform(1.5, 3))
        process.kill()
        if process.wait(60) == 0:
            break
        kills += 1
    assert start("parts.npz").wait(600) == 0
    first, second = dbn.load("whole.npz"), dbn.load("parts.npz")
    np.testing.assert_array_equal(first.bias, second.bias)
    np.testing.assert_array_equal(first.active, second.active)
    assert not list(folder.glob(".*.tmp-*"))


@pytest.mark.slow
def test_fit_auto(call, unit):
    banks = ("--gallery-bank", "gallery_bank.npy", "--bank-pairs", "rows")
    content = json.loads(call(*FIT, *banks, "--method", "auto", "--output", "c.npz", "--json"))
    known = {name: unit[name] for name in ("gallery", "query_bank", "gallery_bank")}
    choice = dbn.tuning.tune(**known, pairs=np.arange(SIZE))
    correction = dbn.tuning.fit(choice, **known)
    assert content["choice"]["method"] == choice.name != "raw"
    assert_same(dbn.load("c.npz"), correction)
    tune = ("tune", "query_bank.npy", "gallery_bank.npy", "--bank-pairs", "rows")
    call(*tune, "--gallery", "gallery.npy", "--output", "choice.npz")
    call(*FIT, *banks, "--choice", "choice.npz", "--output", "chosen.npz")
    assert_same(dbn.load("chosen.npz"), correction)
    # Rows that are read whole are prepared for inner products; asked for is the cosine.
    assert {dbn.load(f"{name}.npz").similarity for name in ("c", "chosen")} == {"cosine_similarity"}
    err = call(*FIT, "--choice", "choice.npz", "--output", "d.npz", expect=2)
    assert (
        f"--gallery-bank: expected one, as --choice 'choice.npz' was chosen with one of {SIZE}"
        in err
    )
    words = (*FIT, *banks, "--choice", "choice.npz", "--similarity", "dot", "--output", "d.npz")
    assert "expected a choice under dot similarity, got cosine" in call(*words, expect=2)
    words = (*FIT, *banks, "--choice", "c.npz", "--output", "d.npz")
    assert "expected a Choice, got a Correction; make one with dbnorm tune" in call(
        *words, expect=2
    )
    for field, needed in (("half_life", "times"), ("weight_own", "biases")):
        more = {field: jnp.where(choice.frequency > 0, 1.0, 0.0)}
        dbn.save("more.npz", dataclasses.replace(choice, **more))
        err = call(*FIT, *banks, "--choice", "more.npz", "--output", "d.npz", expect=2)
        assert f"got one that needs {needed}; fit it in Python" in err
    np.save("none.npy", np.full(SIZE, -1))
    banks = (*banks[:2], "--bank-pairs", "none.npy")
    call(*FIT, *banks, "--output", "raw.npz")
    assert not np.asarray(dbn.load("raw.npz").bias).any()


@pytest.mark.slow
@pytest.mark.parametrize("num_known", [SIZE, SIZE - 15])
def test_fit_auto_leaves_an_item_s_own_queries_out(call, arrays, unit, num_known, monkeypatch):
    """The bank is a log: what was asked for stands in the gallery, all of it or some.

    Read in blocks, so that biases are of items one by one.
    """
    monkeypatch.setattr(sets, "MOST_IN_MEMORY", 0)
    pairs = np.where(np.arange(SIZE) < num_known, np.arange(SIZE), -1)
    np.save("mixed.npy", np.where(pairs[:, None] < 0, arrays["gallery_bank"], arrays["gallery"]))
    mixed = np.where(pairs[:, None] < 0, unit["gallery_bank"], unit["gallery"])
    np.save("pairs.npy", pairs)
    banks = ["--bank-pairs", "pairs.npy"]
    if num_known < SIZE:
        banks += ["--gallery-bank", "mixed.npy"]
    log = ("fit", "gallery.npy", "--query-bank", "queries.npy", "--block-size", BLOCK)
    call(*log, *banks, "--method", "auto", "--output", "c.npz")
    arrays = {"gallery": unit["gallery"], "query_bank": unit["queries"]}
    if num_known < SIZE:
        arrays["gallery_bank"] = mixed
    choice = dbn.tuning.tune(**arrays, pairs=pairs, mergeable=True)
    correction = dbn.tuning.fit(choice, **arrays, pairs=pairs)
    assert choice.name != "raw"
    assert_same(dbn.load("c.npz"), correction)
    assert dbn.load("c.npz").similarity == "cosine_similarity"
    left_in = dbn.tuning.fit(choice, **arrays, pairs=0 * pairs - 1)
    apart = np.asarray(left_in.bias - correction.bias)[0]
    if num_known < SIZE:  # mixtures are centered
        apart = apart - apart[num_known:].mean()
    apart = np.abs(apart)
    assert (apart[:num_known] > 1e-3).mean() > 0.9
    assert (apart[num_known:] < 1e-5).all()


def damaged(name, place, value):
    rows = np.load(name)
    rows[place] = value
    np.save(name, rows)


BAD_FITS = {
    "no bank": ((*FIT[:2], "--method", "is", "--output", "c.npz"), "--query-bank: expected"),
    "no gallery": (("fit", "no.npy", *FIT[2:], "--method", "is", "--output", "c.npz"), "no.npy"),
    "no output": (FIT, "--output"),
    "a folder that is none": ((*FIT, "--method", "is", "--output", "no/c.npz"), "existing folder"),
    "another suffix": ((*FIT, "--method", "is", "--output", "c.pkl"), ".npz"),
    "beta of 0": (
        (*FIT, "--method", "is", "--beta-query", 0, "--output", "c.npz"),
        "--beta-query: expected a positive",
    ),
    "no beta": (
        (*FIT, "--method", "is", "--similarity", "dot", "--output", "c.npz"),
        "--beta-query: expected a num",
    ),
    "a beta too many": (
        (*FIT, "--method", "csls", "--beta-query", 2, "--output", "c.npz"),
        "--beta-query: expected a method that has it",
    ),
    "a bank too many": (
        (*FIT, "--method", "is", "--gallery-bank", "gallery_bank.npy", "--output", "c.npz"),
        "--gallery-bank: expected a method with one",
    ),
    "no activation set": (
        (*FIT, "--method", "dis", "-k", 0, "--output", "c.npz"),
        "-k: expected 1 or more",
    ),
    "no row to average": (
        (*FIT, "--method", "csls", "-k", 0, "--output", "c.npz"),
        "-k: expected 1 or more, got 0",
    ),
    "more rows than there are": (
        (*FIT, "--method", "nnn", "-k", 61, "--output", "c.npz"),
        "-k: expected between 1 and 60 (query-bank rows), got 61",
    ),
    "more items than there are": (
        (*FIT, "--method", "dis", "-k", 61, "--output", "c.npz"),
        "-k: expected between 1 and 60 (gallery items), got 61",
    ),
    "neighborhoods without a gate": (
        (*FIT, "--method", "is", "-k", 3, "--output", "c.npz"),
        "-k: expected a method that has it",
    ),
    "a seed of nothing": (
        (*FIT, "--method", "is", "--seed", 3, "--output", "c.npz"),
        "--seed: expected a method that has it",
    ),
    "pairs without auto": (
        (*FIT, "--method", "is", "--bank-pairs", "rows", "--output", "c.npz"),
        "--bank-pairs: expected --method auto or --choice",
    ),
    "no method": (
        (*FIT, "--output", "c.npz"),
        "--method: expected one, or --bank-pairs for auto, got neither; without pairs",
    ),
    "a method and a choice": (
        (*FIT, "--method", "is", "--choice", "choice.npz", "--output", "c.npz"),
        "--method: expected none beside --choice, got is; leave one out",
    ),
    "trust in a choice": (
        (*FIT, "--choice", "choice.npz", "--trust-banks", "--output", "c.npz"),
        "--trust-banks: expected --method auto",
    ),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_fits(call, case):
    arguments, words = BAD_FITS[case]
    err = call(*arguments, expect=2)
    assert words in err
    assert err.count("\n") == 1
    assert not pathlib.Path("c.npz").exists()


def test_bad_values_name_the_file(call):
    damaged("query_bank.npy", (33, 1), np.nan)
    err = call(*FIT, "--method", "is", "--output", "c.npz", expect=2)
    assert "--query-bank 'query_bank.npy' must be finite, found nan at index [33, 1]" in err


def test_progress_has_a_rate_and_the_time_left(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    with progress.RowProgress() as bar:
        report = bar.of("query bank", 1000, 50, 100)
        for done in ((0, 0), (0, 50), (100, 25), (500, 0)):
            report(*done)
            time.sleep(0.15)
    shown = terminal.getvalue()
    assert "query bank" in shown
    assert "50%" in shown
    assert "rows/s" in shown
    assert "0:00:0" in shown
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress.RowProgress().of("query bank", 1, 1, 1) is None


# --- merge ---------------------------------------------------------------------------------------


@pytest.fixture
def parts(call):
    """Statistics of two parts of the bank, fitted apart."""
    for name in ("monday", "tuesday"):
        arguments = ("fit", "gallery.npy", "--query-bank", f"{name}.npy", "--method", "statistics")
        call(*arguments, "--block-size", BLOCK, "--output", f"{name}.npz")
    return ("monday.npz", "tuesday.npz")


def test_merge_then_fit(call, parts, unit):
    out = call("merge", *parts, "--output", "both.npz")
    assert "25 + 35 bank rows" in out
    query = dbn.stream_bank_statistics(unit["query_bank"], unit["gallery"], beta=20.0)
    np.testing.assert_allclose(dbn.load("both.npz").log_normalizer, query.log_normalizer, rtol=4e-6)
    call("fit", "gallery.npy", "--query-statistics", "both.npz", "--method", "dis",
         "--output", "c.npz")  # fmt: skip
    assert_same(dbn.load("c.npz"), expected("dis", unit))
    content = json.loads(call("merge", *parts, "--output", "both.npz", "--force", "--json"))
    assert content["bank_rows"] == [25, 35]
    assert content["not_compared"] == []


def test_merge_refuses(call, parts):
    def refused(*files):
        err = call("merge", *files, "--output", "both.npz", expect=2)
        assert err.count("\n") == 1
        assert not pathlib.Path("both.npz").exists()
        return err

    assert "expected two files" in refused("monday.npz")
    assert "not in monday.npz already" in refused("monday.npz", "monday.npz")
    both = call("merge", "monday.npz", "monday.npz", "--output", "twice.npz", "--allow-repeats")
    assert "25 + 25" in both
    assert "not in twice.npz already" in refused("twice.npz", "monday.npz")
    state, made_from = dbn.load("tuesday.npz"), dbn.read_provenance("tuesday.npz")
    other = made_from["gallery"] | {"sha256": "0" * 64}
    for change, words in (
        ({"gallery": other}, "expected the gallery of monday.npz"),
        ({"similarity": "dot"}, "expected the similarity of monday.npz"),
    ):
        dbn.save("other.npz", state, provenance=made_from | change)
        assert words in refused("monday.npz", "other.npz")
    for change, name in (({"beta": state.beta / 2}, "beta="), ({"k": 2}, "k=")):
        dbn.save("other.npz", dataclasses.replace(state, **change))
        err = refused("monday.npz", "other.npz")
        assert f"monday.npz has {name}" in err
        assert f"other.npz has {name}" in err
    dbn.save("other.npz", dbn.inverted_softmax(state))
    assert "expected statistics of a bank, got a Correction" in refused("monday.npz", "other.npz")
    (pathlib.Path("other.npz")).write_bytes(b"text")
    assert "other.npz: expected an .npz written by" in refused("monday.npz", "other.npz")


def test_a_merged_file_is_not_that_of_one_part(call, parts):
    call("merge", *parts, "--output", "both.npz")
    words = ("fit", "gallery.npy", "--query-bank", "monday.npy", "--method", "statistics")
    err = call(*words, "--block-size", BLOCK, "--output", "both.npz", expect=2)
    assert "earlier results of other work" in err


def test_a_provenance_of_another_form_is_refused_by_file(call, parts):
    state = dbn.load("monday.npz")
    with pytest.warns(UserWarning, match="gallery to be"):
        dbn.save("c.npz", dbn.inverted_softmax(state), provenance={"gallery": "images v2"})
    with pytest.warns(UserWarning, match=r"parts\[0\]\.sha256 to be"):
        dbn.save("s.npz", state, provenance={"parts": [{"rows": 1}]})
    for words, file in (
        ((*SEARCH, "--correction", "c.npz"), "--correction 'c.npz'"),
        (("export", "gallery.npy", "--correction", "c.npz", "--output", "index"), "'c.npz'"),
        ((*FIT, "--method", "is", "--output", "c.npz"), "--output 'c.npz'"),
        (
            (*FIT[:2], "--query-statistics", "s.npz", "--method", "is", "--output", "d.npz"),
            "'s.npz'",
        ),
        (("merge", "monday.npz", "s.npz", "--output", "both.npz"), "s.npz"),
    ):
        err = call(*words, expect=2)
        assert f"{file}: in its provenance: expected" in err
        assert err.count("\n") == 1
    dbn.save("t.npz", state, provenance={"gallery": dbn.out_of_core.fingerprint(np.eye(9) + 0.0)})
    err = call("merge", "monday.npz", "t.npz", "--output", "both.npz", expect=2)
    assert "t.npz: expected the gallery of monday.npz" in err
    other = jax.tree.map(lambda leaf: leaf[:9] if leaf.ndim else leaf, state)
    known = dbn.read_provenance("monday.npz")
    dbn.save("u.npz", other, provenance=known)
    words = (*FIT[:2], "--query-statistics", "u.npz", "--method", "is", "--output", "d.npz")
    err = call(*words, expect=2)
    assert "'u.npz': expected statistics of 60 gallery items" in err
    euclidean = dataclasses.replace(state, similarity="negative_squared_euclidean")
    dbn.save("v.npz", dbn.inverted_softmax(euclidean), provenance=known)
    err = call(*SEARCH, "--correction", "v.npz", expect=2)
    assert "'v.npz': expected a provenance of its own similarity, euclidean, got cosine" in err


def test_merge_says_what_it_could_not_compare(call, parts, capsys):
    dbn.save("plain.npz", dbn.load("tuesday.npz"))
    content = json.loads(call("merge", "monday.npz", "plain.npz", "--output", "b.npz", "--json"))
    assert content["not_compared"] == ["plain.npz"]


# --- search --------------------------------------------------------------------------------------

SEARCH = ("search", "queries.npy", "gallery.npy", "-k", 3, "--block-size", BLOCK)


@pytest.fixture
def correction(call):
    call(*FIT, "--method", "dualdis", "--gallery-bank", "gallery_bank.npy", "--output", "c.npz")
    return "c.npz"


TEXTS = ("gallery_ids_utf8", "gallery_ids_offsets")


def test_one_long_id_sets_no_width(call):
    ids = ["x" * 200_000, "", *(f"Bild {row} ü" for row in range(2, SIZE))]
    pathlib.Path("ids.txt").write_text("\n".join(ids), encoding="utf-8")
    ids_of = ("--query-labels", "ids.txt", "--labels")
    call(*SEARCH, *ids_of, "ids.txt", "--output", "long.npz")
    assert pathlib.Path("long.npz").stat().st_size < 500_000
    # As docs/large_files.md says.
    found = np.load("long.npz")
    data, ends = found["gallery_ids_utf8"].tobytes(), found["gallery_ids_offsets"]
    assert [data[start:end].decode() for start, end in itertools.pairwise(ends)] == ids
    # The command reads them again, and those that older versions wrote.
    out = call(*SEARCH, *ids_of, "ids.txt")
    assert call(*SEARCH, *ids_of, "long.npz:gallery_ids") == out
    np.savez("old.npz", gallery_ids=np.array(ids), more=np.arange(3))
    assert call(*SEARCH, *ids_of, "old.npz:gallery_ids") == out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids_offsets": np.array([0, 2, 1, 4])}, "offsets that rise from 0 to 4, got 0 to 4"),
        ({"ids_offsets": np.array([0, 2, 3, 5])}, "offsets that rise from 0 to 4, got 0 to 5"),
        ({"ids_offsets": np.array([1, 2, 3, 4])}, "offsets that rise from 0 to 4, got 1 to 4"),
        ({"ids_offsets": np.zeros(0, int)}, "offsets as int64, got int64 of shape (0,)"),
        ({"ids_offsets": np.ones(4)}, "offsets as int64, got float64"),
        ({"ids_utf8": np.arange(4)}, "UTF-8 bytes as uint8, got int64"),
        ({"ids_utf8": np.full(4, 255, np.uint8)}, "UTF-8 text, got other bytes in text 0"),
    ],
)
def test_texts_that_cannot_be_are_refused(tmp_path, change, words):
    good = {"ids_utf8": np.frombuffer("aüc".encode(), np.uint8), "ids_offsets": [0, 1, 3, 4]}
    path = tmp_path / "ids.npz"
    np.savez(path, **good)
    assert read_items(Source("--query-labels", path, "ids"), 3, "ids").tolist() == ["a", "ü", "c"]
    np.savez(path, **good | change)
    with pytest.raises(ValueError, match=re.escape(words)):
        read_items(Source("--query-labels", path, "ids"), 3, "ids")


def test_search_in_every_format(call, correction, unit, monkeypatch):
    wanted = dbn.stream_top_k(unit["queries"], unit["gallery"], 3, dbn.load(correction))
    indices = np.asarray(wanted.indices)
    np.save("query_ids.npy", np.arange(SIZE) + 1000)
    pathlib.Path("gallery_ids.txt").write_text("\n".join(f"Bild {i} ü" for i in range(SIZE)))
    ids = ("--query-labels", "query_ids.npy", "--labels", "gallery_ids.txt")
    arguments = (*SEARCH, "--correction", correction)

    assert "3 of 60 items for 60 queries" in call(*arguments, *ids, "--output", "found.npz")
    with np.load("found.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["indices"], indices)
        np.testing.assert_allclose(found["scores"], wanted.scores, atol=1e-6)
        np.testing.assert_array_equal(found["query_ids"], np.arange(SIZE) + 1000)
        assert {*found} == {"scores", "indices", "query_ids", *TEXTS}
    content = json.loads(call(*arguments, "--output", "found.npy", "--json"))
    assert content["num_queries"] == SIZE
    np.testing.assert_array_equal(np.load("found.npy"), indices)

    call(*arguments, *ids, "--output", "found.csv")
    with pathlib.Path("found.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * SIZE
    assert lines[4]["query"] == "1001"
    assert lines[4]["rank"] == "2"
    assert lines[4]["item"] == f"Bild {indices[1, 1]} ü"
    out = call(*arguments)  # JSON lines on standard output
    assert [json.loads(line)["items"] for line in out.splitlines()] == indices.tolist()
    call(*arguments, "--output", "found.jsonl")
    assert pathlib.Path("found.jsonl").read_text("utf-8") == out

    data = pathlib.Path("queries.npy").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert call(SEARCH[0], "-", *arguments[2:]) == out


# What other readers than ours end lines at; the first begins as archives do.
IDS = [
    "PK-1",
    "a cat\u2028on a mat",
    "b\x0cc",
    "d\x85e",
    "f\rg",
    "h\x0b",
    "\x1c",
    ' "i", j ',
    "\u2029",
]
IDS += [f"k{row}" for row in range(SIZE - len(IDS))]


@pytest.mark.parametrize(("start", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_ids_hold_any_character_but_line_feeds(call, monkeypatch, start, end):
    pathlib.Path("ids.txt").write_bytes((start + end.join(IDS) + end).encode())
    arguments = (*SEARCH, "--query-labels", "ids.txt", "--labels", "ids.txt")
    out = call(*arguments)
    for lines in (out.removesuffix("\n").split("\n"), out.splitlines()):
        assert [json.loads(line)["query"] for line in lines] == IDS
    items = [item for line in out.splitlines() for item in json.loads(line)["items"]]
    call(*arguments, "--output", "ids.csv", "--force")
    with pathlib.Path("ids.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["query"] for row in rows[::3]] == IDS
    assert [row["item"] for row in rows] == items
    data = pathlib.Path("queries.npy").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert call(SEARCH[0], "-", *arguments[2:]) == out


@pytest.mark.parametrize("count", [SIZE - 1, SIZE + 1, 0])
@pytest.mark.parametrize("queries", ["queries.npy", "-"])
def test_ids_are_counted_before_anything_is_written(folder, capsys, monkeypatch, queries, count):
    pathlib.Path("ids.txt").write_text("an id\n" * count)
    data = pathlib.Path("queries.npy").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(SystemExit):
        command.main([SEARCH[0], queries, *map(str, SEARCH[2:]), "--query-labels", "ids.txt"])
    out, err = capsys.readouterr()
    assert out == ""
    assert f"--query-labels 'ids.txt': expected a name for each of 60 rows, got {count}" in err


def test_a_terminal_without_a_character_shows_its_number():
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    names = search._Names(np.array(["ü"]), None)
    search._json_lines(file, names)(0, np.zeros((1, 1)), np.zeros((1, 1), int))
    file.seek(0)
    assert json.loads(file.read())["query"] == "ü"


CHARACTERS = st.characters(exclude_categories=["Cs"])


@settings(max_examples=200)
@given(st.lists(st.text(CHARACTERS), min_size=2))
def test_cells_of_csv_are_read_back(cells):
    line = output.csv_line(cells)
    assert list(csv.reader(io.StringIO(line, newline=""))) == [cells]


@settings(max_examples=200)
@given(st.lists(st.text(CHARACTERS)), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_lines_end_at_line_feeds_only(lines, end, marked):
    lines = [line.replace("\n", "").rstrip("\r") for line in lines]
    text = ("\ufeff" if marked else "") + "".join(line + end for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "lines.txt"
        path.write_bytes(text.encode())
        found = read_lines(Source("--labels", path)).tolist()
        if lines and lines[-1]:
            path.write_bytes(text.removesuffix(end).encode())
            assert read_lines(Source("--labels", path)).tolist() == found
    if not marked and text.startswith("\ufeff"):  # taken for the mark
        lines[0] = lines[0][1:]
    assert found == (lines if text not in ("", "\ufeff") else [])


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_states_of_the_library_say_what_they_compare_by(call, arrays, similarity):
    """Without provenance too: searched as fitted, refused beside another similarity."""
    similarity_fn = SIMILARITY_FUNCTIONS[similarity]
    banks = arrays["query_bank"], arrays["gallery"]
    state = dbn.stream_bank_statistics(*banks, beta=1.0, similarity_fn=similarity_fn)
    fitted = dbn.inverted_softmax(state)
    dbn.save("c.npz", fitted)
    dbn.save("s.npz", state)
    call(*SEARCH, "--correction", "c.npz", "--output", "found.npz")
    served = dbn.stream_top_k(
        arrays["queries"], arrays["gallery"], 3, fitted, similarity_fn=similarity_fn
    )
    np.testing.assert_array_equal(np.load("found.npz")["indices"], served.indices)
    words = ("search", *SEARCH[1:], "--correction", "c.npz", "--similarity", "cosine")
    assert f"expected {similarity}, which the correction" in call(*words, expect=2)
    words = "fit", "gallery.npy", "--query-statistics", "s.npz", "--method", "is"
    call(*words, "--similarity", similarity, "--output", "same.npz")
    assert dbn.load("same.npz").similarity == similarity_fn.__name__
    assert f"give --similarity {similarity}" in call(*words, "--output", "x.npz", expect=2)
    call("fit", "gallery.npy", "--query-bank", "query_bank.npy", "--method", "statistics",
         "--beta-query", 1, "--output", "t.npz")  # fmt: skip
    assert "expected the similarity of t.npz, cosine" in call(
        "merge", "t.npz", "s.npz", "--output", "both.npz", expect=2
    )


def test_ids_are_of_one_item_each(call):
    pathlib.Path("ids.txt").write_text("\n".join(["a", "b", "c", "b", "a", *map(str, range(55))]))
    np.save("ids.npy", np.r_[7, 8, 7, np.arange(100, 157)])
    for option in ("--labels", "--query-labels"):
        err = call(*SEARCH, option, "ids.txt", "--output", "found.npz", expect=2)
        assert f"{option} 'ids.txt': expected a name of its own for every row" in err
        assert "got the same on lines 2 and 4: 'b'" in err
        assert "the same on rows 0 and 2: 7" in call(*SEARCH, option, "ids.npy", expect=2)
    assert not pathlib.Path("found.npz").exists()


def test_options_without_a_use_are_refused(call):
    np.save("ids.npy", np.arange(SIZE))
    evaluate = ("evaluate", "queries.npy", "gallery.npy", "--query-bank", "query_bank.npy")
    for words, message in (
        ((*SEARCH, "--force"), "--force: expected --output"),
        ((*SEARCH, "--labels", "ids.npy", "--output", "f.npy"), "--labels: expected an"),
        ((*evaluate, "--force"), "--force: expected --output"),
        (("tune", "monday.npy", "tuesday.npy", "--force"), "--force: expected --output"),
        (("tune", "monday.npy", "tuesday.npy", "--seed", 1), "--seed: expected --bank-pairs"),
    ):
        assert message in call(*words, expect=2)
    assert not pathlib.Path("f.npy").exists()


def test_search_refuses(call, correction, arrays):
    arguments = (*SEARCH, "--correction", correction)

    def refused(*words):
        err = call(*words, expect=2)
        assert err.count("\n") == 1
        return err

    assert "expected cosine, which the correction" in refused(*arguments, "--similarity", "dot")
    assert "between 1 and 60" in refused(*SEARCH[:3], "-k", 61)
    assert "--json" in refused(*SEARCH, "--json")
    pathlib.Path("ids.txt").write_text("a\nb")
    assert "a name for each of 60 rows" in refused(*SEARCH, "--query-labels", "ids.txt")
    dbn.save("s.npz", dbn.stream_bank_statistics(arrays["queries"], arrays["gallery"], beta=1.0))
    assert "expected a Correction" in refused(*SEARCH, "--correction", "s.npz")
    pathlib.Path("found.csv").write_text("mine")
    assert "no earlier results" in refused(*SEARCH, "--output", "found.csv")
    # Another gallery: other contents, then another length.
    np.save("gallery.npy", arrays["gallery"][::-1])
    assert "expected the gallery it was made for, SHA-256" in refused(
        *arguments, "--output", "found.npz"
    )
    assert not pathlib.Path("found.npz").exists()
    np.save("gallery.npy", arrays["gallery"][:50])
    assert "60 rows of 8, got 50 of 8" in refused(*arguments)
    assert pathlib.Path("found.csv").read_text() == "mine"
