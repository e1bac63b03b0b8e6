"""The speed benchmarks at tiny sizes: peers agree, tables and JSON lines can be read."""

import importlib
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from systems import reads_proc

import dbnorm_jax as dbn

pytestmark = pytest.mark.slow  # benchmarks: out of the way of the library's own tests

ROOT = pathlib.Path(__file__).parents[2]
TINY = {"gallery": 96, "dim": 16, "repetitions": 2}
TOPICS = {
    "fit": {"bank": 64, **TINY},
    "search": {"queries": 32, "bank": 64, **TINY},
    "certified": {"queries": 32, "bank": 64, **TINY},
    "latency": TINY,
    "ranks": {"queries": 64, "bank": 64, **TINY},
    "stages": {"queries": 32, **TINY},
    "peers": {"queries": 32, "bank": 130, "k": 3, **TINY},
    "small": {"rows": 64, "dim": 16, "repetitions": 2, "processes": 1},
    "mesh": {"bank": 64, "queries": 32, "processes": False, **TINY},
    "scaling": {"smallest": 64, "steps": 2, **TINY},
    "out_of_core": {"bank": 64, "file_mib": 1, "factor": 2, "limit_mib": 256, **TINY},
    "memory_of_commands": {"few": 40, "gallery": 80, "large": 96, "rows": 30, "dim": 16},
    "checks": {"bank": 64, **TINY},
    "reading": {"rows": 64, "dim": 16, "shards": 3, "lines": 50, "repetitions": 1},
    "load": {"queries": 500, "items": 3000, "dim": 16, "limit_mib": 640, "sample": 9, "again": 99},
    "authors": {"queries": 24, "gallery": 48, "bank": 40, "dim": 16, "repetitions": 1},
}
BETAS = (20.0, 1.0)


@pytest.fixture(scope="module", autouse=True)
def _compile_fast():
    """Nearly all of the time here is compilation, in this process and in those it starts."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def module(name):
    """A file of the benchmarks; the root is not importable under a bare `pytest`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        return importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def arrays():
    """Queries, gallery, query bank, gallery bank."""
    make = module("support.inputs").unit_rows
    return [make(seed, rows, 16) for seed, rows in enumerate((24, 48, 40, 40))]


@pytest.fixture(scope="module")
def similarities(arrays):
    """Of queries, query bank and gallery bank to the gallery, in float64."""
    queries, gallery, *banks = arrays
    return [reference.dot_product(rows, gallery) for rows in (queries, *banks)]


# --- every topic runs --------------------------------------------------------------------------


@pytest.mark.parametrize("topic", TOPICS)
def test_topic(topic, tmp_path, monkeypatch):
    report = module("support.report")
    # One of each is enough here: programs, commands and BLAS kernels.
    monkeypatch.setattr(module("speed.small"), "PROGRAMS", ("fit",))
    commands = module("speed.memory_of_commands").COMMANDS
    monkeypatch.setattr(module("speed.memory_of_commands"), "COMMANDS", {"fit": commands["fit"]})
    monkeypatch.setattr(module("speed.mesh"), "MESHES", ((2, 4),))
    monkeypatch.setattr(module("support.environment"), "openblas_core", lambda: "")
    picture = {"picture": tmp_path / "plot.png"} if topic == "scaling" else {}
    records = list(module(f"speed.{topic}").run(**TOPICS[topic], **picture))
    path = tmp_path / "lines.jsonl"
    report.write(records, path)
    report.write(records, path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2 * len(records)
    for line, record in zip(lines, records, strict=False):
        assert line["topic"] == topic
        assert line["environment"]["versions"]["jax"]
        assert line["environment"]["commit"]
        assert all(np.isfinite(figure["value"]) for figure in line["figures"])
        text = "\n".join(report.table(record))
        assert all(figure["name"] in text for figure in line["figures"])
    num_targets = sum(figure.target is not None for each in records for figure in each.figures)
    assert f" of {num_targets} met" in report.target_table(records)[-1]
    if picture:
        assert picture["picture"].read_bytes().startswith(b"\x89PNG")


@reads_proc
@pytest.mark.parametrize("work", module("speed.memory").WORKS)
def test_memory_is_measured(work):
    assert module("speed.memory").measure(work, rows=64, gallery=96, dim=16) > -1


@reads_proc
def test_commands_hold_a_gallery_at_most_once():
    """What 195 MiB of gallery add to the peak of a call whose tiles are full."""
    commands = module("speed.memory_of_commands")
    few, many = (
        commands.measured(length, 64, 512, ["evaluate, paper", "inspect"])
        for length in (20_000, 120_000)
    )
    for command, peaks in many.items():
        grown = peaks["resident"] - few[command]["resident"]
        assert grown <= commands.MOST * 100_000 * 512 * 4 / 2**20, (command, grown)


def test_accelerator_on_the_cpu(tmp_path):
    path = tmp_path / "cpu.jsonl"
    sizes = ("--bank=64", "--gallery=96", "--queries=32", "--dim=16", "--repetitions=1")
    module_name = "benchmarks.speed.on_my_accelerator"
    command = [sys.executable, "-m", module_name, "--platform=cpu", *sizes]
    done = subprocess.run(
        [*command, f"--json={path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert path.read_text(encoding="utf-8") == done.stdout
    found = json.loads(line)
    names = [figure["name"] for figure in found["figures"]]
    for arithmetic in ("float32 highest", "float32 default", "bfloat16"):
        for step in (
            "fit, k=1",
            "gradient of fit, k=0",
            "DualIS, k=10",
            "DualDIS, k=10",
            "ranks, DualIS",
        ):
            assert f"{arithmetic}: {step}" in names
    assert any(note.startswith("cuVS brute force: absent") for note in found["notes"])


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_platform_that_is_absent_is_refused(platform, tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    command = ["on_my_accelerator", f"--platform={platform}", f"--json={path}"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # set by the command, undone here
    with pytest.raises(SystemExit, match=f"no {platform} for jax .* nothing was measured"):
        module("speed.on_my_accelerator").main()
    assert not path.exists()


def test_no_accelerator_is_said(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["on_my_accelerator"])
    with pytest.raises(
        SystemExit, match=r"no accelerator for jax .* only cpu; nothing was measured"
    ):
        module("speed.on_my_accelerator").main()


def test_nothing_is_begun_when_the_time_is_over():
    sizes = {"bank": 64, "queries": 32, **TINY}
    (record,) = module("speed.on_my_accelerator").run("cpu", **sizes, seconds=-1)
    assert not record.figures
    assert len(record.notes) == 3
    assert all(note.endswith("not measured, -1 s were over") for note in record.notes)


# --- peers say what the library says -----------------------------------------------------------


def test_released_formulas(arrays, similarities):
    released, (test, *banks) = module("speed.released"), similarities
    expected = reference.published_inverted_softmax(test, banks[0], BETAS[0])
    np.testing.assert_allclose(released.inverted_softmax(banks[0], test, BETAS[0]), expected)
    expected = reference.published_dynamic_inverted_softmax(test, banks[0], BETAS[0], 2)
    found = released.dynamic_inverted_softmax(banks[0], test, BETAS[0], 2)
    np.testing.assert_allclose(found, expected)
    ours = [
        dbn.bank_statistics(jnp.asarray(bank, jnp.float32), beta=beta)
        for bank, beta in zip(banks, BETAS, strict=True)
    ]
    scores = dbn.published_scores(jnp.asarray(test, jnp.float32), *ours)
    found = released.dual_dynamic_inverted_softmax(*banks, test, BETAS, 1)
    np.testing.assert_array_equal(np.argsort(-scores, axis=1)[:, 0], found.argmax(axis=1))


def test_released_pipeline_ranks_as_the_library(arrays):
    authors = module("speed.authors")
    ours = authors.library_best("dualis", *arrays)
    np.testing.assert_array_equal(ours, authors.released_best("dualis", *arrays))


def test_numpy_peers(arrays, similarities):
    peers, (queries, gallery, *banks) = module("speed.peers"), arrays
    test, *bank_similarities = similarities
    found = peers.log_normalizer(banks[0], gallery, BETAS[0])
    expected = reference.log_normalizer(bank_similarities[0], BETAS[0])
    np.testing.assert_allclose(found, expected, atol=1e-5)

    scores = reference.dual_inverted_softmax(test, *bank_similarities, *BETAS)
    bias = peers.dual_bias(*banks, gallery, BETAS)
    np.testing.assert_allclose(test - bias, scores, atol=1e-5)
    best = np.sort(scores, axis=1)[:, ::-1][:, :5]
    for name, search in peers.searches(queries, gallery, bias, 5).items():
        if search is not None:
            np.testing.assert_allclose(search()[0], best, atol=1e-5, err_msg=name)

    correction = dbn.Correction(jnp.asarray(bias)[None], None)
    relevant = np.arange(len(queries))
    ranks = dbn.metrics.stream_ranks(queries, gallery, relevant, correction)
    for count in (peers.counted_ranks, peers.sorted_ranks):
        np.testing.assert_array_equal(count(queries, gallery, relevant, bias), ranks)

    largest = dbn.stream_largest_similarities(banks[0], gallery, k=7).values
    means = peers.largest_means(banks[0], gallery, 7)
    np.testing.assert_allclose(means, largest.mean(axis=0), atol=1e-6)


def test_accelerator_peers_rank_as_the_library(arrays):
    accelerator = module("speed.on_my_accelerator")
    queries, gallery = (jnp.asarray(array) for array in arrays[:2])
    bias = jnp.linspace(-0.2, 0.2, 48)
    expected = dbn.stream_top_k(queries, gallery, 10, dbn.Correction(bias[None], None)).indices
    for search in (accelerator.matrix_top_k, accelerator.matrix_approx_max_k):
        np.testing.assert_array_equal(search(queries, gallery, bias)[1], expected)
    rows, items = accelerator.extended(queries, gallery, bias)
    np.testing.assert_array_equal(dbn.stream_top_k(rows, items, 10).indices, expected)


# --- inputs, bases, targets --------------------------------------------------------------------


def test_inputs_are_what_they_are_called():
    inputs = module("support.inputs")
    rows = inputs.unit_rows(0, 5000, 8)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    queries, gallery = inputs.ascending(0, 4, 64, 8)
    order = (queries.mean(axis=0) @ gallery.T).argsort()
    assert np.corrcoef(order, np.arange(64))[0, 1] > 0.9  # nearly sorted for every query
    queries, gallery = inputs.clustered(0, 100, 1000, 64)
    similarities = queries @ gallery.T
    assert 0 < (similarities > 0.4).mean() < 0.05  # its own cluster stands apart


def test_bare_scan_and_its_ratios():
    common, inputs = module("support.common"), module("support.inputs")
    rows, columns = (jnp.asarray(inputs.unit_rows(seed, 2048, 4)) for seed in range(2))
    first = [(row, column) for row in (0, 1024) for column in (0, 1024)]
    expected = sum(float(rows[row] @ columns[column]) for row, column in first)
    assert float(common.bare_scan(rows, columns)) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="multiples of 1024"):
        common.bare_scan(rows[:1500], columns)
    base = common.Timing(np.array([1.0, 2.0, 4.0]), 1.0)
    slower = common.Timing(np.array([2.0, 3.0, 16.0]), 1.0)
    figure = common.ratios({"bare": base, "x": slower}, 4e9, {"x": 1.9}, passes={"x": 2})[1]
    assert (figure.value, figure.of_minima, figure.seconds, figure.gflops) == (2.0, 2.0, 2.0, 4.0)
    assert figure.met is False


def test_targets():
    report = module("support.report")
    figure = report.Figure("x", 1.0, "x bare", report.Target(high=1.05), of_minima=1.1)
    assert not figure.met  # both must
    assert report.Figure("x", 1.0, "x bare", report.Target(high=1.05), of_minima=1.0).met
    assert report.Figure("x", 7.0, "", report.Target(low=6)).met
    assert report.Figure("x", 7.0, "").met is None
    assert str(report.Target(0.97, 1.03)) == "0.97 .. 1.03"
    assert module("speed.scaling").slope([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1.0)


def test_the_set_of_one_command_knows_its_topics(tmp_path, monkeypatch, capsys):
    run = module("run")
    report = module("support.report")
    record = report.Record("fit", "title", {}, [report.Figure("x", 1.0, "s")])
    monkeypatch.setitem(run.SET, "fit", (lambda bank: [record] * bank, {"bank": 2}))
    assert run.run(["fit"], tmp_path / "cpu.jsonl") == [record] * 2
    assert (tmp_path / "cpu.jsonl").read_text(encoding="utf-8").count("\n") == 2
    assert "fit done" in capsys.readouterr().out
