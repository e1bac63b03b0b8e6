"""`dbnorm export`: what it writes, that its README works as printed, and what it refuses."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import reference
from patience import HUNG
from systems import reads_proc

import dbnorm_jax as dbn

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.commands import export as export_module
from dbnorm_jax._cli.commands import main as command
from dbnorm_jax._cli.reading import sets
from dbnorm_jax._cli.reading.packages import install_hint

ROOT = pathlib.Path(__file__).parents[2]
NUM_GALLERY, NUM_QUERIES, DIM, K = 60, 20, 5, 8
SIMILARITIES = {
    "cosine": reference.cosine_similarity,
    "dot": reference.dot_product,
    "euclidean": reference.negative_squared_euclidean,
}
NPY = {"README.md", "export.json", "vectors.npy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A gallery, queries, and corrections of every form, biases far from 0."""
    folder = tmp_path_factory.mktemp("Galerie mit Ümläut")
    random = np.random.default_rng(0)
    for name, rows in (("gallery", NUM_GALLERY), ("queries", NUM_QUERIES)):
        np.save(folder / f"{name}.npy", random.normal(size=(rows, DIM)).astype(np.float32))
    bias = (random.normal(size=(2, NUM_GALLERY)) / 4 + 3).astype(np.float32)
    active = random.random((2, NUM_GALLERY)) < 0.5
    for name, fields in {
        "always": (bias, None),
        "hard": (bias, active),
        "soft": (bias[:1], random.random((1, NUM_GALLERY)).astype(np.float32)),
    }.items():
        dbn.save(folder / f"{name}.npz", dbn.Correction(*fields))
    return folder


@pytest.fixture
def call(capsys):
    """Runs the command in this process -> (exit code, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            command.main(["export", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.fixture
def export(call, folder, tmp_path):
    """Exports the gallery -> (the folder, what --json prints)."""

    def run(correction, *options):
        code, out, err = call(
            folder / "gallery.npy",
            *("--correction", folder / f"{correction}.npz", "--output", tmp_path / "index"),
            *("--json", *options),
        )
        assert (code, err) == (0, "")
        return tmp_path / "index", json.loads(out)

    return run


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def readme_code(folder):
    """What the README's code defines, run in its folder."""
    text = (folder / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    here = pathlib.Path.cwd()
    os.chdir(folder)
    try:
        defined = {}
        exec(compile(code, "README.md", "exec"), defined)
    finally:
        os.chdir(here)
    return defined


def corrected(folder, correction, similarity):
    """[num_queries, num_gallery] float64, by the formulas."""
    queries, gallery = (np.load(folder / f"{name}.npy") for name in ("queries", "gallery"))
    scores = SIMILARITIES[similarity](queries, gallery)
    if correction is None:
        return scores
    nearest = scores.argmax(axis=1)
    for term, bias in enumerate(np.asarray(correction.bias, np.float64)):
        gate = 1.0 if correction.active is None else np.asarray(correction.active)[term, nearest]
        scores = scores - np.multiply.outer(np.broadcast_to(gate, len(scores)), bias)
    return scores


def assert_same_neighbors(found, folder, correction, similarity):
    """The best, or level with them to rounding."""
    scores = corrected(folder, correction, similarity)
    best = -np.sort(-scores, axis=1)[:, :K]
    np.testing.assert_allclose(np.take_along_axis(scores, found, axis=1), best, atol=3e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("metric", ["inner-product", "cosine"])
@pytest.mark.parametrize("name", ["always", "hard", "soft"])
def test_the_readme_searches_as_the_library_does(export, folder, name, metric, similarity):
    index, manifest = export(name, "--similarity", similarity, "--metric", metric)
    correction = dbn.load(folder / f"{name}.npz")
    assert names_in(index) == NPY | ({"activation.npy"} if name != "always" else set())
    vectors = np.load(index / "vectors.npy")
    extra = (2 if name == "hard" else 1) + (similarity == "euclidean") + (metric == "cosine")
    assert vectors.shape == (NUM_GALLERY, DIM + extra) == (NUM_GALLERY, manifest["width"])
    assert vectors.dtype == np.float32
    first = DIM + manifest["num_terms"]
    shift = 0.5 if metric == "inner-product" and similarity != "euclidean" else 0
    assert manifest["shift"] == shift
    np.testing.assert_allclose(vectors[:, DIM:first].mean(axis=0), shift, atol=1e-6)
    defined = readme_code(index)
    queries = np.load(folder / "queries.npy")
    assert_same_neighbors(defined["corrected_search"](queries, K), folder, correction, similarity)
    raw = defined["search"](defined["with_gates"](queries, np.zeros(manifest["num_terms"])), K)
    assert_same_neighbors(raw, folder, None, similarity)


@pytest.mark.parametrize("metric", ["inner-product", "cosine"])
def test_scores_as_the_readme_says(export, folder, metric):
    """What the index returns, turned into corrected scores with the numbers of the export."""
    index, manifest = export("always", "--similarity", "dot", "--metric", metric)
    queries = np.load(folder / "queries.npy")
    asked = readme_code(index)["with_gates"](queries, 1.0)
    vectors = np.load(index / "vectors.npy").astype(np.float64)
    scores = asked @ vectors.T
    if metric == "cosine":
        lengths = np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(lengths, manifest["length"], rtol=1e-6)
        cosines = scores / lengths / np.linalg.norm(asked, axis=1, keepdims=True)
        scores = cosines * manifest["length"] * np.linalg.norm(asked, axis=1, keepdims=True)
    expected = corrected(folder, dbn.load(folder / "always.npz"), "dot")
    np.testing.assert_allclose(scores - sum(manifest["means"]), expected, atol=1e-5)
    readme = (index / "README.md").read_text("utf-8")
    assert f"[{manifest['means'][0]:.6g}]" in readme
    assert max(map(len, readme.splitlines())) <= 100


def test_half_precision(export, folder):
    index, manifest = export("always", "--dtype", "float16")
    vectors = np.load(index / "vectors.npy")
    assert vectors.dtype == np.float16
    assert manifest["dtype"] == "float16"
    whole = dbn.inner_product_gallery(
        np.load(folder / "gallery.npy"),
        dbn.Correction(dbn.load(folder / "always.npz").bias.sum(axis=0, keepdims=True), None),
        similarity_fn=dbn.cosine_similarity,
        shift=0.5,
    )
    np.testing.assert_allclose(vectors, whole, atol=1e-3)


def test_parquet(export, folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    index, _ = export("hard", "--format", "parquet")
    assert names_in(index) == {"README.md", "export.json", "vectors.parquet", "activation.npy"}
    table = parquet.read_table(index / "vectors.parquet")
    assert table.column("id").to_pylist() == list(range(NUM_GALLERY))
    pytest.importorskip("pandas")
    found = readme_code(index)["corrected_search"](np.load(folder / "queries.npy"), K)
    assert_same_neighbors(found, folder, dbn.load(folder / "hard.npz"), "cosine")


def test_blocks_make_one_whole(export, monkeypatch):
    for similarity, metric in [("cosine", "inner-product"), ("euclidean", "cosine")]:
        options = ("--similarity", similarity, "--metric", metric, "--force")
        index, manifest = export("hard", *options)
        whole = np.load(index / "vectors.npy")
        monkeypatch.setattr(sets, "ROWS_AT_ONCE", 25)
        _, again = export("hard", *options)
        np.testing.assert_allclose(np.load(index / "vectors.npy"), whole, atol=1e-6)
        assert again == manifest
        monkeypatch.undo()


def test_force_leaves_nothing_of_an_earlier_export(call, export, folder, tmp_path):
    index, _ = export("hard")
    arguments = (folder / "gallery.npy", "--correction", folder / "always.npz")
    code, _, err = call(*arguments, "--output", index)
    assert code == 2
    assert "--output" in err
    assert "--force" in err
    assert "activation.npy" in names_in(index)
    code, out, err = call(*arguments, "--output", index, "--force")
    assert (code, err) == (0, "")
    assert names_in(index) == NPY
    *_, last, empty, verdict, _ = out.splitlines()
    assert last == f"wrote {index / 'export.json'}"
    assert (empty, verdict[:34]) == ("", "60 vectors of 6 = 5 + 1 dimensions")


def test_a_broken_export_is_seen_to_be_none(call, export, folder, monkeypatch):
    """The manifest goes when the vectors change, whole or not at all, and comes last."""
    index, _ = export("always")
    before = {name: (index / name).read_bytes() for name in NPY}

    def interrupted(*arguments):
        yield np.zeros((3, DIM + 1), np.float32)
        raise KeyboardInterrupt

    arguments = (folder / "gallery.npy", "--correction", folder / "always.npz", "--output", index)
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "_vectors", interrupted)
        assert call(*arguments, "--force")[0] == 130
    assert {name: (index / name).read_bytes() for name in names_in(index)} == before

    replace = pathlib.Path.replace

    def stopped(path, target):
        if "vectors" not in path.name:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(pathlib.Path, "replace", stopped)
    assert call(*arguments, "--force")[0] == 130
    assert names_in(index) == {"README.md", "vectors.npy"}


def test_refusals(call, folder, tmp_path, monkeypatch):
    gallery, always = folder / "gallery.npy", folder / "always.npz"

    def refused(words, *arguments):
        code, out, err = call(*arguments, "--output", tmp_path / "index")
        assert (code, out) == (2, "")
        assert re.search(".*".join(map(re.escape, words.split(" "))), err), err
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "index").exists() or not names_in(tmp_path / "index")

    refused("--correction", gallery)
    refused("always.npz 20 (2, 60) fit", folder / "queries.npy", "--correction", always)
    refused("gallery.npy dbnorm_jax.save", gallery, "--correction", gallery)
    refused("no.npz no such file", gallery, "--correction", folder / "no.npz")
    refused("GALLERY no.npy readable", folder / "no.npy", "--correction", always)
    statistics = tmp_path / "statistics.npz"
    dbn.save(statistics, dbn.bank_statistics(np.zeros((2, NUM_GALLERY), np.float32), beta=1.0))
    refused("Correction BankStatistics normalizer", gallery, "--correction", statistics)

    monkeypatch.setattr(sets, "ROWS_AT_ONCE", 25)
    rows = np.load(gallery)
    rows[47, 3] = np.nan
    np.save(tmp_path / "bad.npy", rows)
    refused("GALLERY finite nan row 47 column 3", tmp_path / "bad.npy", "--correction", always)
    rows[47] = 0
    np.save(tmp_path / "bad.npy", rows)
    refused("GALLERY norm 0 row 47", tmp_path / "bad.npy", "--correction", always)
    rows[47] = 1e5
    np.save(tmp_path / "bad.npy", rows)
    options = ("--similarity", "dot", "--dtype", "float16")
    refused(
        "--dtype float16 row 47 float32", tmp_path / "bad.npy", "--correction", always, *options
    )
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    refused(install_hint("pyarrow"), gallery, "--correction", always, "--format", "parquet")


MEMORY = """
import sys, threading
from systems import PROC
from dbnorm_jax._cli.commands import main

peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.005):
        status = (PROC / "status").read_text()
        anonymous = int(status.split("RssAnon:")[1].split()[0])
        peak = max(peak, anonymous)

threading.Thread(target=watch).start()
try:
    main.main(sys.argv[1:])
except SystemExit as stopped:
    assert stopped.code == 0, stopped.code
finally:
    done.set()
print("PEAK", peak // 1024)
"""


@pytest.mark.slow
@reads_proc
def test_memory_does_not_grow_with_the_gallery(tmp_path):
    """A gallery of 600 MB costs no more memory than one of 60: it is mapped, not held."""
    peaks = []
    for count in (40_000, 400_000):
        rows = np.lib.format.open_memmap(
            tmp_path / "gallery.npy", mode="w+", dtype=np.float32, shape=(count, 384)
        )
        for start in range(0, count, 10_000):
            rows[start : start + 10_000] = 1
        del rows
        bias = np.linspace(0, 1, count, dtype=np.float32)[None]
        dbn.save(tmp_path / "correction.npz", dbn.Correction(bias, None))
        done = subprocess.run(
            [
                *(sys.executable, "-c", MEMORY, "export", tmp_path / "gallery.npy"),
                *("--correction", tmp_path / "correction.npz", "--force"),
                *("--output", tmp_path / "index"),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"},
            timeout=HUNG,
            check=True,
        )
        peaks.append(int(done.stdout.split("PEAK")[1]))
        assert np.load(tmp_path / "index" / "vectors.npy", mmap_mode="r").shape == (count, 385)
    # What blocks leave to the allocator varies by some 100 MB from run to run.
    assert peaks[1] < peaks[0] + 250, peaks
