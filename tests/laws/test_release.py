"""What is shipped: the wheel, the source archive, types that a user's checker understands."""

import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from patience import HUNG

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading.packages import install_hint

ROOT = pathlib.Path(__file__).parents[2]
USER = """
import jax
import numpy as np
from jax.sharding import Mesh

import dbnorm_jax as dbn

rows = np.ones((10, 4), np.float32)
statistics = dbn.stream_bank_statistics(rows, rows, beta=20.0)
correction: dbn.Correction = dbn.inverted_softmax(statistics)
result = dbn.stream_top_k(rows, rows, 3, correction)
scores, indices = result
ranks = dbn.metrics.stream_ranks(rows, rows, np.arange(10), correction)
recall = dbn.metrics.recall_at(ranks, 1)
found = dbn.out_of_core.top_k(rows, rows, 3, correction)
counts = dbn.hubness.k_occurrence(indices, 10)
csls = dbn.baselines.csls(dbn.stream_largest_similarities(rows, rows, k=3))
mesh = Mesh(np.array(jax.devices()), ("gallery",))
spread = dbn.stream_top_k(rows, rows, 3, correction, mesh=mesh, bank_axis=None)
chosen, choice = dbn.auto(
    gallery=rows, query_bank=rows, gallery_bank=rows, pairs=np.arange(10), return_choice=True
)
print(result.scores, recall, found.indices, counts, csls.bias, spread.scores, choice.summary())
"""


def test_module_runs_as_the_command():
    found = subprocess.run(
        [sys.executable, "-m", "dbnorm_jax", "--version"],
        capture_output=True,
        text=True,
        timeout=HUNG,
        cwd=ROOT,
        check=True,
    )
    assert found.stdout.strip().endswith(dbn.__version__)


def test_metadata():
    metadata = importlib.metadata.metadata("dbnorm_jax")
    needed = {line.split(">")[0] for line in metadata.get_all("Requires-Dist") if ";" not in line}
    assert needed == {"jax", "jaxlib", "numpy", "optax"}
    assert metadata["License-Expression"] == "Apache-2.0"


def test_floor_is_what_the_project_allows():
    """tests/floor.txt pins each package at the lowest release that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"]]
    for extra in ("cli", "demo", "test", "faiss", "safetensors"):
        needed += extras[extra]
    floors = dict(
        line.replace("==", ">=").removesuffix(".*").split(">=")
        for line in needed
        if not line.startswith("dbnorm_jax")
    )
    lines = (ROOT / "tests" / "floor.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert pins.keys() == floors.keys()
    for name, pin in pins.items():
        assert pin.removesuffix(".*").removesuffix(".0") == floors[name].removesuffix(".0"), name


@pytest.mark.parametrize("extra", ["cli", "demo", "safetensors", "parquet"])
def test_install_hints_name_what_the_project_does(extra):
    """Packages that every registry has, whether this library came from a checkout or a wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = project["optional-dependencies"][extra]
    needed = [name for name in needed if not name.startswith("dbnorm_jax")]
    for requirement in needed:
        hint = install_hint(re.match(r"[\w-]+", requirement)[0])
        assert shlex.split(hint) == ["pip", "install", *needed]
    assert install_hint("jax") is None


@pytest.mark.parametrize(("own", "found"), [("3.11", True), ("3.12", False), ("3.14", False)])
def test_the_newest_python_is_one_that_runs(own, found, tmp_path):
    """A name on the PATH is passed over where nothing runs by it, as are versions not newer."""
    if shutil.which("bash") is None:
        pytest.skip("runs a script of bash")
    scripts = {
        "own": f"echo {own}",
        "python3.13": "exit 127",
        "python3.12": f'exec "{sys.executable}" "$@"',
        "pyenv": "exit 1",
    }
    for name, line in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n", "utf-8")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "tests" / "newest_python.sh"), "own"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        timeout=HUNG,
        check=True,
    )
    assert done.stdout == (f"{sys.executable}\n" if found else "")


def build(source, target):
    """Both archives, or from the contents of a source archive the wheel."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)],
        capture_output=True,
        timeout=HUNG,
        check=True,
    )
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.iterdir()}


@pytest.mark.slow
def test_builds_are_reproducible(tmp_path, monkeypatch):
    """The same bits from the repository and, at another place and time, from its source archive."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1764028800")
    first = build(ROOT, tmp_path / "first")
    (archive,) = (tmp_path / "first").glob("*.tar.gz")
    with tarfile.open(archive) as members:
        members.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for path in unpacked.rglob("*.py"):
        os.utime(path, (10**9, 10**9))
    assert len(first) == 2
    assert build(unpacked, tmp_path / "second") == first


@pytest.mark.slow
def test_archives_hold_what_they_should(tmp_path):
    build(ROOT, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"dbnorm_jax/py.typed", "dbnorm_jax/__main__.py"} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "dbnorm_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    with zipfile.ZipFile(wheel) as members:
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        (commands,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        lines = members.read(metadata).decode().splitlines()
        assert "dbnorm = dbnorm_jax._cli.commands.main:main" in members.read(commands).decode()
    needed = [line.lower() for line in lines if line.startswith("Requires-Dist:")]
    needed = [line for line in needed if "extra == 'compilers'" not in line]
    assert not [line for line in needed if "torch" in line or "nvidia" in line or "cuda" in line]
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        tops = {pathlib.PurePath(name).parts[1] for name in members.getnames()}
    folders = {"dbnorm_jax", "tests", "docs", "benchmarks", "examples"}
    files = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "mkdocs.yml"}
    assert folders | files | {"pyproject.toml", "CITATION.cff"} <= tops


CHECKERS = {
    "mypy": ["mypy", "--strict", "--cache-dir", "cache"],
    "pyright": ["pyright", "--pythonpath", sys.executable],
}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_file_is_typed(checker, tmp_path):
    """Names that resolve on first use have the types of what they resolve to."""
    pytest.importorskip(checker)
    (tmp_path / "user.py").write_text(USER, "utf-8")
    call = [sys.executable, "-m", *CHECKERS[checker], "user.py"]
    found = subprocess.run(
        call, capture_output=True, text=True, timeout=HUNG, cwd=tmp_path, check=False
    )
    assert found.returncode == 0, found.stdout
    # That it is checked at all:
    wrong = USER + 'bad: int = dbn.metrics.recall_at(ranks, "1")\n'
    (tmp_path / "user.py").write_text(wrong, "utf-8")
    found = subprocess.run(
        call, capture_output=True, text=True, timeout=HUNG, cwd=tmp_path, check=False
    )
    assert found.returncode == 1
    assert "recall_at" in found.stdout or '"int"' in found.stdout, found.stdout


GRAPH = """
import contextlib, os, pathlib, re, subprocess, sys

import faiss
import numpy as np

import dbnorm_jax as dbn

assert pathlib.Path(dbn.__file__).is_relative_to(sys.argv[1]), dbn.__file__
random = np.random.default_rng(0)
common = random.normal(size=32)
gallery, bank, queries = (
    (random.normal(size=(n, 32)) + 0.7 * common).astype(np.float32) for n in (2000, 1000, 200)
)
cosine = {"similarity_fn": dbn.cosine_similarity}
correction = dbn.inverted_softmax(dbn.stream_bank_statistics(bank, gallery, beta=20.0, **cosine))
np.save("gallery.npy", gallery)
dbn.save("correction.npz", correction)
export = ["export", "gallery.npy", "--correction", "correction.npz", "--output", "index"]
subprocess.run([sys.executable, "-m", "dbnorm_jax", *export], check=True)
os.chdir("index")
defined = {}
text = pathlib.Path("README.md").read_text("utf-8")
exec(re.findall(r"```python\\n(.*?)```", text, re.DOTALL)[0], defined)
vectors = np.load("vectors.npy")
index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
index.hnsw.efConstruction = 200
index.add(vectors)
index.hnsw.efSearch = 64
found = index.search(defined["with_gates"](queries, 1.0), 10)[1]
for fitted, least, most in ((correction, 0.97, 1), (None, 0, 0.95)):
    exact = np.asarray(dbn.stream_top_k(queries, gallery, 10, fitted, **cosine).indices)
    recall = np.mean([np.isin(*pair).mean() for pair in zip(found, exact)])
    assert least <= recall <= most, recall
"""


@pytest.mark.slow
def test_from_the_wheel_to_a_corrected_graph_index(tmp_path):
    """As a user does it: installed apart from the checkout, by the command and its README."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    if importlib.util.find_spec("faiss") is None:  # not imported here: on new Pythons it warns
        pytest.skip("could not find faiss")
    build(ROOT, tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    done = subprocess.run(
        [sys.executable, "-c", GRAPH, str(installed)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        timeout=HUNG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
