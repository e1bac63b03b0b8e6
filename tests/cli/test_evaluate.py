"""The `dbnorm` command: what it prints, writes and refuses."""

import csv
import io
import itertools
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import reference
import reference_baselines as baselines
from patience import HUNG

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("emoji")

import dbnorm_jax as dbn
from dbnorm_jax._cli.commands import evaluate as evaluate_module
from dbnorm_jax._cli.reading import sets
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.packages import install_hint
from dbnorm_jax._cli.showing import plots

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = {"report.html", "results.csv", "results.json", "k_occurrence.png", "methods.png"}
NUMBERS = (
    "recall_at_1",
    "gain",
    "gain_interval",
    "recall_at_5",
    "recall_at_10",
    "median_rank",
    "mean_rank",
    "skewness",
)
# One shape throughout, so that everything compiles once.
NUM_QUERIES, NUM_BANK, DIM = 40, 60, 8
METHODS = ("--methods", "paper,csls,nnn")
PUBLISHED = ("--methods", "paper,published,csls,nnn")


def run_apart(*code, cwd=None):
    """Runs Python in its own process, stdout and stderr piped."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
        timeout=HUNG,
        check=False,
    )


@pytest.fixture
def call_json(call):
    """Runs the command with --json and parses what it prints."""

    def run(*arguments):
        code, out, err = call(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture(scope="module")
def arrays():
    """Embeddings with a common direction, which makes hubs."""
    random = np.random.default_rng(0)
    common = random.normal(size=DIM)

    def side(count, noise, base=None):
        base = random.normal(size=(count, DIM)) if base is None else base
        return (base + common + noise * random.normal(size=base.shape)).astype(np.float32)

    gallery, gallery_bank = side(NUM_QUERIES, 0.1), side(NUM_BANK, 0.1)
    return {
        "query": side(NUM_QUERIES, 0.8, gallery),
        "gallery": gallery,
        "query_bank": side(NUM_BANK, 0.8, gallery_bank),
        "gallery_bank": gallery_bank,
    }


@pytest.fixture(scope="module")
def folder(arrays, tmp_path_factory):
    """The arrays as files, in a folder whose name needs care."""
    folder = tmp_path_factory.mktemp("Ordner mit Ümläut $x$ 数据")
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    truth = np.random.default_rng(1).permutation(NUM_QUERIES)
    np.save(folder / "truth.npy", truth)
    csr = {"gt_indptr": np.arange(NUM_QUERIES + 1), "gt_indices": truth}
    np.savez(folder / "truth.npz", **csr)
    np.savez_compressed(folder / "set.npz", **arrays, **csr, bank_pair=np.arange(NUM_BANK))
    return folder


def embeddings_of(folder, *, gallery_bank=True):
    """The arguments that name the files."""
    bank = ["--gallery-bank", folder / "gallery_bank.npy"] if gallery_bank else []
    files = [folder / "query.npy", folder / "gallery.npy"]
    return [*files, "--query-bank", folder / "query_bank.npy", *bank]


def cosines(rows, columns):
    return reference.cosine_similarity(rows, columns).astype(np.float32)


def by_method(content):
    return {row["method"]: row for row in content["rows"]}


def assert_same_rows(first, second, tolerance=1e-3):
    assert by_method(first).keys() == by_method(second).keys()
    for method, row in by_method(first).items():
        for name in NUMBERS:
            assert row[name] == pytest.approx(by_method(second)[method][name], abs=tolerance)
        assert row["gates_open"] == pytest.approx(by_method(second)[method]["gates_open"])


# --- start-up ----------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    heavy = ["jax", "numpy", "matplotlib", "rich", "emoji"]
    code = f"""
import sys
from dbnorm_jax._cli.commands.main import main
for arguments in (["--help"], ["demo", "--help"], ["evaluate", "-h"], ["--version"]):
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == 0, stopped.code
print("loaded:", [name for name in {heavy} if name in sys.modules])
"""
    done = run_apart("-c", code)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert "evaluate" in done.stdout
    assert f"version {dbn.__version__}" in done.stdout


@pytest.mark.parametrize("package", ["rich", "matplotlib", "emoji"])
def test_missing_package_gets_an_install_hint(package, call, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("dbnorm_jax._cli.commands.demo.evaluate", fail_if_called)
    code, out, err = call("demo", "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert package in err
    assert install_hint(package) in err
    assert not (tmp_path / "out").exists()


def fail_if_called(*_, **__):
    raise AssertionError("work began although a check should have failed")


# --- the embedded set --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the demo, in a process of its own."""
    folder = tmp_path_factory.mktemp("demo")
    return run_apart("-m", "dbnorm_jax", "demo", cwd=folder), folder / "dbnorm-demo"


def test_demo_prints_a_table(demo):
    done, _ = demo
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    title, sizes, *_ = done.stdout.splitlines()
    assert title == "emoji names en -> de (cross-lingual stand-in for cross-modal retrieval)"
    assert sizes.startswith("641 queries, 641 gallery items")
    labels = [
        "raw",
        "auto",
        "IS(20)",
        "DIS(20)",
        "DualIS(20, 1)",
        "DualDIS(20, 1)",
        "DualIS(20, 20)",
    ]
    lines = [line for line in done.stdout.splitlines() if line.startswith(tuple(labels))]
    assert [len(line.split()) for line in lines[:3]] == [15, 15, 15]  # no column cut
    assert all(any(line.startswith(label) for line in lines) for label in labels)
    assert "Worst hub: '" in done.stdout


def test_demo_numbers_lie_in_the_measured_ranges(demo):
    content = json.loads((demo[1] / "results.json").read_text("utf-8"))
    assert content["schema"] == "dbnorm evaluation 1"
    assert content["kind"] == "inductive"
    assert content["sizes"] == dict.fromkeys(
        ("queries", "gallery", "query_bank", "gallery_bank"), 641
    )
    rows = {(row["method"], row["beta_query"], row["beta_gallery"]): row for row in content["rows"]}
    raw = rows["raw", None, None]
    assert 31 <= raw["recall_at_1"] <= 40
    assert raw["skewness"] > 1.3
    for key in (("IS", 20, None), ("DualIS", 20, 1)):
        assert rows[key]["recall_at_1"] >= raw["recall_at_1"] + 5
        assert rows[key]["skewness"] < 0.65 * raw["skewness"]
    assert 2.4 <= rows["DualIS", 20, 20]["recall_at_1"] - raw["recall_at_1"] <= 5.6
    for key in (("DIS", 20, None), ("DualDIS", 20, 1)):
        assert all(0 < share < 100 for share in rows[key]["gates_open"])


def test_demo_files(demo):
    done, folder = demo
    assert {path.name for path in folder.iterdir()} == RESULTS
    assert all(f"wrote dbnorm-demo{os.sep}{name}" in done.stdout for name in RESULTS)
    for name in ("k_occurrence.png", "methods.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    content = json.loads((folder / "results.json").read_text("utf-8"))
    lines = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text("utf-8"))))
    assert len(lines) == len(content["rows"]) == 9
    for line, row in zip(lines, content["rows"], strict=True):
        assert (line["method"], line["kind"]) == (row["method"], "inductive")
        assert all(float(line[name]) == row[name] for name in NUMBERS)


@pytest.mark.parametrize(("page", "num_rows"), [("README.md", 5), ("docs/command.md", 9)])
def test_pages_show_the_demo_s_table(demo, page, num_rows):
    """Some of its columns, and of its rows."""
    text = (ROOT / page).read_text("utf-8").splitlines()
    lines = demo[0].stdout.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("──"))
    rows = lines[start + 1 : lines.index("", start)]
    names = lines[start - 1].split()
    first = next(place for place, line in enumerate(text) if line.startswith("    Method "))
    shown_names = text[first].split()
    shown_rows = text[first + 2 : text.index("", first)]
    assert len(shown_names) >= 10
    assert len(shown_rows) == num_rows
    for shown in shown_rows:
        label, found = shown[4:19], dict(zip(shown_names[1:], shown[19:].split(), strict=True))
        row = next(row for row in rows if row.startswith(label))
        numbers = dict(zip(names[1:], row[15:].split(), strict=True))
        for name, one in found.items():
            # The last digits may differ between processors.
            for value, other in zip(numbers[name].split("/"), one.split("/"), strict=True):
                assert value == other or float(value) == pytest.approx(float(other), abs=0.4)


def test_the_readme_quotes_the_demo_s_verdict(demo):
    readme = (ROOT / "README.md").read_text("utf-8")
    out = demo[0].stdout
    numbers = r"auto gains ([\d.]+) ± ([\d.]+) .* at least \+([\d.]+) .*; (\d+) .* won, (\d+) lost"
    for one, other in zip(
        *(re.search(numbers, text).groups() for text in (readme, out)), strict=True
    ):
        assert float(one) == pytest.approx(float(other), abs=2)
    hub = re.search(r"'flagge schweiz' .* of (\d+) of (\d+) queries; .*, of (\d+)\.", out).groups()
    words = " ".join(readme.split())
    assert f"results of {hub[0]} of {hub[1]} queries" in words
    assert f"in {hub[2]} lists" in words


@pytest.mark.parametrize(
    ("source", "target", "seed"),
    [("en", "de", 0), ("en", "de", 1), ("en", "de", 4), ("de", "en", 2)],
)
def test_emoji_names_show_hubs_whatever_the_seed(source, target, seed):
    test = emoji_names(source, target, seed)
    assert {len(part) for part in (test.queries, test.gallery, test.query_bank)} == {641}
    similarities = reference.dot_product(test.queries, test.gallery)
    query_bank = reference.dot_product(test.query_bank, test.gallery)
    gallery_bank = reference.dot_product(test.gallery_bank, test.gallery)
    biases = reference.bias(query_bank, 20), reference.bias(gallery_bank, 1)

    def numbers(scores):
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        counts = np.bincount(nearest.ravel(), minlength=641)
        return 100 * (nearest[:, 0] == np.arange(641)).mean(), reference.skewness(counts)

    raw = numbers(similarities)
    assert 31 <= raw[0] <= 40
    assert raw[1] > 1.3
    for bias in (biases[0], 20 / 21 * biases[0] + 1 / 21 * biases[1]):
        corrected = numbers(similarities - bias)
        assert corrected[0] >= raw[0] + 5
        assert corrected[1] < 0.65 * raw[1]
    equal = (biases[0] + reference.bias(gallery_bank, 20)) / 2
    assert 2.4 <= numbers(similarities - equal)[0] - raw[0] <= 5.6


def test_emoji_names_are_reproducible_and_apart():
    first, again, other = emoji_names(), emoji_names(), emoji_names(seed=1)
    np.testing.assert_array_equal(first.queries, again.queries)
    assert not np.array_equal(first.queries, other.queries)
    assert first.query_labels != other.query_labels
    assert len(set(first.query_labels)) == len(set(first.gallery_labels)) == 641
    np.testing.assert_allclose(np.linalg.norm(first.gallery, axis=1), 1, rtol=1e-6)
    assert sets.num_equal_rows(first.query_bank, first.queries) == 0
    assert sets.num_equal_rows(first.queries, first.queries) == 641


# --- evaluate: the same numbers by every way in --------------------------------------------------


@pytest.fixture(scope="module")
def expected(arrays):
    """R@1 of each method by the reference, right item i for query i."""
    similarities = cosines(arrays["query"], arrays["gallery"])
    query_bank = cosines(arrays["query_bank"], arrays["gallery"])
    gallery_bank = cosines(arrays["gallery_bank"], arrays["gallery"])
    scores = {
        "raw": similarities,
        "IS": reference.inverted_softmax(similarities, query_bank, 20.0),
        "DIS": reference.dynamic_inverted_softmax(similarities, query_bank, 20.0, 1),
        "DualIS": reference.dual_inverted_softmax(
            similarities, query_bank, gallery_bank, 20.0, 1.0
        ),
        "DualDIS": reference.dual_dynamic_inverted_softmax(
            similarities, query_bank, gallery_bank, 20.0, 1.0, 1
        ),
        "DualDIS (published)": reference.published_dual_dynamic_inverted_softmax(
            similarities, query_bank, gallery_bank, 20.0, 1.0, 1
        ),
        "CSLS": baselines.csls_scores(similarities, query_bank, 10),
        # The bank has 60 items: the mean of the 128 largest is that of all.
        "NNN": baselines.nearest_neighbor_normalization_scores(similarities, query_bank, 60, 0.75),
    }
    right = [[query] for query in range(NUM_QUERIES)]
    return {
        name: 100 * float(reference.recall_at(reference.ranks(score, right), 1))
        for name, score in scores.items()
    }


def test_evaluate_agrees_with_the_reference(folder, expected, call_json):
    content = call_json("evaluate", *embeddings_of(folder), *PUBLISHED)
    assert content["similarity"] == "cosine"
    assert content["betas"] == {"query_bank": 20, "gallery_bank": 1}
    found = {name: row["recall_at_1"] for name, row in by_method(content).items()}
    assert found == pytest.approx(expected, abs=1e-3)


def test_matrices_give_the_same_numbers(folder, arrays, call_json, tmp_path):
    for name, rows in (("s", "query"), ("q", "query_bank"), ("g", "gallery_bank")):
        np.save(tmp_path / f"{name}.npy", cosines(arrays[rows], arrays["gallery"]))
    matrices = [
        "--similarities",
        tmp_path / "s.npy",
        "--query-bank-similarities",
        tmp_path / "q.npy",
        "--beta-query=20",
    ]
    both = ["--gallery-bank-similarities", tmp_path / "g.npy", "--beta-gallery=1"]
    truth = ["--relevant", folder / "truth.npz"]
    embedded = call_json("evaluate", *embeddings_of(folder), *PUBLISHED, *truth)
    given = call_json("evaluate", *matrices, *both, *PUBLISHED, *truth)
    assert_same_rows(embedded, given)
    assert given["similarity"] != "cosine"
    alone = call_json("evaluate", *matrices, *METHODS)
    assert list(by_method(alone)) == ["raw", "IS", "DIS", "CSLS", "NNN"]
    assert list(by_method(call_json("evaluate", *matrices[:4]))) == ["raw", "CSLS"]
    assert "gallery_bank" not in alone["sizes"]


@pytest.mark.slow
def test_set_equals_separate_files(folder, call_json):
    pairs = ("--bank-pairs", "rows")
    separate, as_csr = (
        call_json("evaluate", *embeddings_of(folder), "--relevant", folder / truth, *pairs)
        for truth in ("truth.npy", "truth.npz")
    )
    together = call_json("evaluate", folder / "set.npz")
    members = [f"{folder / 'set.npz'}:{name}" for name in ("query", "gallery")]
    banks = [f"{folder / 'set.npz'}:{name}" for name in ("query_bank", "gallery_bank")]
    by_member = call_json(
        *("evaluate", *members, "--query-bank", banks[0], "--gallery-bank", banks[1]),
        *("--relevant", folder / "truth.npy", *pairs),
    )
    assert together["set"] == "set"
    assert by_method(together)["NNN"]["options"]["k"] == NUM_BANK  # of the 128 asked for
    for other in (as_csr, together, by_member):
        assert_same_rows(separate, other, tolerance=0)


@pytest.mark.slow
def test_reverse_swaps_both_sides(folder, call_json, tmp_path):
    truth = np.load(folder / "truth.npy")
    np.save(tmp_path / "back.npy", np.argsort(truth))
    swapped = call_json(
        *("evaluate", folder / "gallery.npy", folder / "query.npy"),
        *("--query-bank", folder / "gallery_bank.npy", "--gallery-bank"),
        *(folder / "query_bank.npy", "--relevant", tmp_path / "back.npy", "--bank-pairs", "rows"),
    )
    content = call_json("evaluate", folder / "set.npz", "--reverse")
    assert content["set"] == "set (reversed)"
    assert_same_rows(content, swapped, tolerance=0)
    assert by_method(content) != by_method(call_json("evaluate", folder / "set.npz"))


def test_reversed_truth_and_pairs():
    def rows(count):
        return np.eye(count, 9, dtype=np.float32)

    test = sets.EvaluationSet(
        name="t",
        queries=rows(2),
        gallery=rows(4),
        query_bank=rows(3),
        gallery_bank=rows(5),
        relevant=(np.array([0, 2, 3]), np.array([1, 3, 1])),
        bank_pairs=np.array([4, -1, 4]),
    )
    back = sets.reversed_set(test)
    assert [len(part) for part in (back.queries, back.gallery, back.query_bank)] == [4, 2, 5]
    indptr, indices = back.relevant
    right = [sorted(indices[a:b].tolist()) for a, b in itertools.pairwise(indptr)]
    assert right == [[], [0, 1], [], [0]]
    assert back.bank_pairs.tolist() == [-1, -1, -1, -1, 0]


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2"])
def test_other_float_types(dtype, folder, arrays, call_json, tmp_path):
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", np.asfortranarray(array.astype(dtype)))
    content = call_json("evaluate", *embeddings_of(tmp_path), "--methods", "dualdis")
    single = call_json("evaluate", *embeddings_of(folder), "--methods", "dualdis")
    if dtype == "<f2":
        assert list(by_method(content)) == ["raw", "DualDIS"]
    else:
        assert_same_rows(content, single)


def test_dot_of_unit_rows_is_cosine(folder, arrays, call_json, tmp_path):
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", reference.normalize_rows(array).astype(np.float32))
    betas = ["--beta-query", "20", "--beta-gallery", "1"]
    dot = call_json("evaluate", *embeddings_of(tmp_path), *METHODS, "--similarity", "dot", *betas)
    assert_same_rows(dot, call_json("evaluate", *embeddings_of(folder), *METHODS))


def test_gallery_may_serve_as_its_own_bank(folder, arrays, call_json, call):
    content = call_json("evaluate", *embeddings_of(folder, gallery_bank=False), *METHODS)
    assert content["gallery_is_its_own_bank"]
    gallery = reference.normalize_rows(arrays["gallery"]).astype(np.float32)
    queries = reference.normalize_rows(arrays["query"]).astype(np.float32)
    bank = reference.normalize_rows(arrays["query_bank"]).astype(np.float32)
    own = dbn.stream_bank_statistics(gallery, gallery, beta=1.0, exclude=np.arange(NUM_QUERIES))
    other = dbn.stream_bank_statistics(bank, gallery, beta=20.0)
    correction = dbn.dual_dynamic_inverted_softmax(other, own)
    ranks = dbn.metrics.stream_ranks(queries, gallery, np.arange(NUM_QUERIES), correction)
    row = by_method(content)["DualDIS"]
    assert row["mean_rank"] == pytest.approx(float(ranks.mean()), abs=1e-3)
    first = np.asarray(dbn.stream_top_k(queries, gallery, 1).indices)[:, 0]
    assert row["gates_open"][1] == pytest.approx(100 * np.asarray(own.active)[first].mean())
    code, out, _ = call("evaluate", *embeddings_of(folder, gallery_bank=False))
    assert code == 0
    assert "the gallery itself" in out


def test_table_is_plain_and_uncut_when_piped(folder, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    code, out, err = call("evaluate", *embeddings_of(folder), *PUBLISHED)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "…" not in out
    assert out.splitlines()[0] == "query -> gallery"
    line = next(line for line in out.splitlines() if line.startswith("DualDIS (published)"))
    assert len(line.split()) == 16
    assert max(map(len, out.splitlines()[4:13])) <= 104


def test_transductive_banks_are_named(folder, arrays, call, call_json, tmp_path):
    bank = arrays["query_bank"].copy()
    bank[[3, 5, 7]] = 2.5 * arrays["query"][[0, 1, 2]]  # another length, the same direction
    np.save(tmp_path / "bank.npy", bank)
    arguments = [
        *("evaluate", folder / "query.npy", folder / "gallery.npy"),
        *("--query-bank", tmp_path / "bank.npy", "--gallery-bank", folder / "gallery_bank.npy"),
    ]
    content = call_json(*arguments)
    assert content["kind"] == "transductive"
    assert content["num_bank_rows_equal_to_test_rows"] == 3
    _, out, _ = call(*arguments)
    said = "3 of 120 bank rows (2.5 %) equal test rows: the figures are transductive, not those"
    assert f"{said} of new queries." in out.splitlines()


def test_unknown_right_items_leave_the_hubness_columns(folder, arrays, call, call_json, tmp_path):
    np.save(tmp_path / "fewer.npy", arrays["query"][:-1])
    arguments = ["evaluate", tmp_path / "fewer.npy", *embeddings_of(folder)[1:], "--methods", "is"]
    for row in call_json(*arguments)["rows"]:
        assert row["recall_at_1"] is row["mean_rank"] is None
        assert row["skewness"] > 0
    code, out, _ = call(*arguments)
    assert code == 0
    assert "--relevant" in out
    line = next(line for line in out.splitlines() if line.startswith("IS(20)"))
    assert line.split()[1:6] == ["-"] * 5


@pytest.mark.slow
def test_small_gallery_and_unanswered_queries(arrays, call_json, tmp_path):
    for name, count in (("query", 12), ("gallery", 4), ("query_bank", 9)):
        np.save(tmp_path / f"{name}.npy", arrays[name][:count])
    np.save(tmp_path / "truth.npy", np.array([0, 1, 2, 3, -1, -1, 0, 0, 1, 2, 3, -1], np.int16))
    content = call_json(
        *("evaluate", *embeddings_of(tmp_path, gallery_bank=False)),
        *("--relevant", tmp_path / "truth.npy", "--output", tmp_path / "out"),
    )
    assert content["k"] == 4
    row = by_method(content)["raw"]
    assert (row["recall_at_5"], row["skewness"]) == (100, 0)


def test_bank_pairs_are_checked(folder, call, tmp_path):
    arguments = ["evaluate", *embeddings_of(folder), "--methods", "raw"]
    assert call(*arguments, "--bank-pairs", "rows")[0] == 0
    np.save(tmp_path / "pairs.npy", np.full(NUM_BANK, NUM_BANK))
    code, _, err = call(*arguments, "--bank-pairs", tmp_path / "pairs.npy")
    assert code == 2
    assert "--bank-pairs" in err
    assert f"between -1 (-1: none) and {NUM_BANK - 1}" in err


# --- what it writes ----------------------------------------------------------------------------


def test_output_folder(folder, call, tmp_path):
    out_folder = tmp_path / "new" / "Ergebnis mit Leerzeichen ü"
    arguments = ["evaluate", folder / "set.npz", "--methods", "dualis", "--output", out_folder]
    code, out, _ = call(*arguments)
    assert code == 0
    assert {path.name for path in out_folder.iterdir()} == RESULTS
    assert f"wrote {out_folder / 'methods.png'}" in out
    before = (out_folder / "results.json").read_bytes()

    code, out, err = call(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--force" in err
    assert (out_folder / "results.json").read_bytes() == before

    code, out, err = call(*arguments, "--force", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(before)
    assert err.count("wrote ") == len(RESULTS)


def test_failure_while_drawing_writes_nothing(folder, call, monkeypatch, tmp_path):
    def fail(_):
        raise ValueError("no ink")

    monkeypatch.setattr(plots, "methods_png", fail)
    code, out, err = call("evaluate", folder / "set.npz", "--output", tmp_path / "out")
    assert (code, out, err) == (2, "", "dbnorm: error: no ink\n")
    assert not (tmp_path / "out").exists()


def test_failure_while_writing_keeps_the_old_file(folder, call, monkeypatch, tmp_path):
    (tmp_path / "results.csv").write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = call("evaluate", folder / "set.npz", "--output", tmp_path, "--force")
    assert (code, err.count("\n")) == (2, 1)
    assert "No space left" in err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"results.csv": "old"}


def test_interruption(folder, call, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_module, "evaluate", interrupt)
    code, out, err = call("evaluate", folder / "set.npz", "--output", tmp_path / "out")
    assert (code, out, err.strip()) == (130, "", "")
    assert not (tmp_path / "out").exists()


# --- bad input: one line, exit code 2, before any work -------------------------------------------


class _Planted:
    """Touches a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def _saved(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _with_value(array, value):
    changed = array.copy()
    changed[4, 2] = value
    return changed


def _archive(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _zero_row(array):
    changed = array.copy()
    changed[7] = 0
    return changed


def _lying(array):
    """A header that declares far more than the file holds."""
    return _saved(array).replace(b"(60, 8)", b"(6000000000, 8)")


# Contents of the query-bank file -> words of the error.
BAD_FILES = {
    "empty": (lambda _: b"", ["an empty file"]),
    "text": (lambda _: b"0.1 0.2\n0.3 0.4\n", ["numpy.save"]),
    "pickle": (pickle.dumps, ["pickle", "numpy.save"]),
    "truncated": (lambda array: _saved(array)[:-5], ["truncated", "2048 bytes"]),
    "truncated header": (lambda array: _saved(array)[:40], ["header"]),
    "trailing bytes": (lambda array: _saved(array) + b"junk", ["bytes"]),
    "lying header": (_lying, ["truncated"]),
    "objects": (lambda array: _saved(np.array([[{}] * 8] * 60)), ["pickled"]),
    "strings": (lambda array: _saved(array.astype(str)), ["floating-point"]),
    "integers": (lambda array: _saved(array.astype(int)), ["floating-point", "astype"]),
    "bools": (lambda array: _saved(array > 0), ["floating-point", "bool"]),
    "complex": (lambda array: _saved(array + 1j), ["floating-point", "complex"]),
    "bfloat16": (lambda array: _saved(array.view("V2")), ["bfloat16"]),
    "one axis": (lambda array: _saved(array[0]), ["2 axes", "(8,)"]),
    "three axes": (lambda array: _saved(array[None]), ["2 axes", "(1, 60, 8)"]),
    "no rows": (lambda array: _saved(array[:0]), ["at least one row", "(0, 8)"]),
    "fewer columns": (lambda array: _saved(array[:, 1:]), ["8 columns", "(60, 7)"]),
    "transposed": (lambda array: _saved(array.T), ["transposed"]),
    "nan": (lambda array: _saved(_with_value(array, np.nan)), ["nan", "row 4, column 2"]),
    "infinity": (lambda array: _saved(_with_value(array, -np.inf)), ["-inf", "row 4"]),
    "zero row": (lambda array: _saved(_zero_row(array)), ["norm 0", "row 7"]),
    "damaged archive": (lambda array: _archive(**{"a.npy": _saved(array)})[:200], ["archive"]),
    "archive of text": (lambda _: _archive(**{"a.txt": b"hello"}), ["archive without any"]),
    "two arrays": (
        lambda array: _archive(**{"a.npy": _saved(array), "b.npy": _saved(array)}),
        ["one array", "a, b", ":a"],
    ),
    "bomb": (lambda _: _archive(**{"a.npy": _saved(np.zeros((2**16, 80)))}), ["compression"]),
    "objects in an archive": (
        lambda _: _archive(**{"a.npy": _saved(np.array([[{}] * 8]))}),
        ["pickled"],
    ),
    "lying archive": (lambda array: _archive(**{"a.npy": _lying(array)}), ["truncated"]),
}


@pytest.fixture
def refused(call, monkeypatch, tmp_path):
    """Asserts that arguments are refused in one line before any work; returns the line."""
    monkeypatch.setattr(evaluate_module, "evaluate", fail_if_called)

    def run(*arguments):
        target = tmp_path / "never"
        code, out, err = call(*arguments, "--output", target)
        assert (code, out) == (2, "")
        assert err.startswith("dbnorm: error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert "allow_pickle" not in err
        assert not target.exists()
        return err

    return run


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case, folder, arrays, refused, tmp_path):
    make, words = BAD_FILES[case]
    path = tmp_path / "bank.npy"
    path.write_bytes(make(arrays["query_bank"]))
    line = refused("evaluate", folder / "query.npy", folder / "gallery.npy", "--query-bank", path)
    assert "--query-bank" in line
    assert str(path) in line
    for word in words:
        assert word in line


def test_pickles_are_never_run(folder, refused, tmp_path):
    touched = tmp_path / "touched"
    path = tmp_path / "bank.pkl"
    path.write_bytes(pickle.dumps(_Planted(str(touched))))
    planted = np.empty(1, object)
    planted[0] = _Planted(str(touched))
    np.save(tmp_path / "bank.npy", planted, allow_pickle=True)
    for bank in (path, tmp_path / "bank.npy"):
        refused("evaluate", folder / "query.npy", folder / "gallery.npy", "--query-bank", bank)
    assert not touched.exists()


def test_flipped_byte_in_an_archive(folder, refused, tmp_path):
    data = bytearray((folder / "set.npz").read_bytes())
    data[200] ^= 0xFF
    (tmp_path / "set.npz").write_bytes(data)
    assert "SET.npz" in refused("evaluate", tmp_path / "set.npz")


FILES = ("query.npy", "gallery.npy")
BANK = ("--query-bank", "query_bank.npy")
MATRICES = ("--similarities", "query.npy", "--query-bank-similarities")
BAD_ARGUMENTS = {
    "no files": ([], ["0 files"]),
    "three files": ([*FILES, "query.npy"], ["3 files"]),
    "no bank": (FILES, ["--query-bank"]),
    "not there": ([*FILES, "--query-bank", "nope.npy"], ["nope.npy", "no such file"]),
    "a folder": ([*FILES, "--query-bank", "."], ["a folder"]),
    "no such member": ([*FILES, "--query-bank", "set.npz:x"], ["named x", "query_bank"]),
    "member of npy": ([*FILES, "--query-bank", "truth.npz:gt_indptr"], ["floating-point"]),
    "zero beta": (
        [*FILES, *BANK, *METHODS, "--beta-query", "0"],
        ["--beta-query", "positive", "got 0"],
    ),
    "negative beta": ([*FILES, *BANK, *METHODS, "--beta-gallery=-1"], ["--beta-gallery", "got -1"]),
    "nan beta": ([*FILES, *BANK, *METHODS, "--beta-query", "nan"], ["--beta-query", "got nan"]),
    "infinite beta": (
        [*FILES, *BANK, *METHODS, "--beta-query", "inf"],
        ["--beta-query", "got inf"],
    ),
    "beta in words": ([*FILES, *BANK, *METHODS, "--beta-query", "many"], ["--beta-query"]),
    "beta for dot": (
        [*FILES, *BANK, *METHODS, "--similarity", "dot"],
        ["--beta-query", "1/similarity"],
    ),
    "beta for euclidean": (
        [*FILES, *BANK, *METHODS, "--similarity", "euclidean", "--beta-query", "1"],
        ["--beta-gallery", "1/similarity"],
    ),
    "beta of no method": (
        [*FILES, *BANK, "--methods", "csls", "--beta-query", "5"],
        ["--beta-query", "raw, CSLS(10)"],
    ),
    "beta beside that of the only method": (
        [*FILES, *BANK, "--methods", "is:beta_query=5", "--beta-query", "6"],
        ["--beta-query", "IS(5)"],
    ),
    "more neighbors than there are": (
        [*FILES, *BANK, "--methods", "nnn:k=61"],
        ["--methods nnn:k=61", "at most 60, rows of the query bank"],
    ),
    "labels of another bank": (
        [*FILES, *BANK, "--reverse", "--bank-labels", "l.txt"],
        ["--bank-labels", "--reverse"],
    ),
    "unknown method": ([*FILES, *BANK, "--methods", "is,magic"], ["--methods", "magic"]),
    "unknown similarity": ([*FILES, *BANK, "--similarity", "l1"], ["--similarity"]),
    "unknown option": ([*FILES, *BANK, "--fast"], ["--fast"]),
    "truth out of range": ([*FILES, *BANK, "--relevant", "far.npy"], ["far.npy", "to 40"]),
    "truth too short": ([*FILES, *BANK, "--relevant", "short.npy"], ["(40,)", "(3,)"]),
    "truth as floats": ([*FILES, *BANK, "--relevant", "query.npy"], ["integers"]),
    "truth incomplete": ([*FILES, *BANK, "--relevant", "half.npz"], ["gt_indptr"]),
    "truth not rising": ([*FILES, *BANK, "--relevant", "falling.npz"], ["gt_indptr", "rise"]),
    "truth for fewer": ([*FILES, *BANK, "--relevant", "fewer.npz"], ["gt_indptr", "(41,)"]),
    "pairs of unequal banks": (
        [*FILES, "--query-bank", "query_bank.npy", "--bank-pairs", "rows"],
        ["60 and 40"],
    ),
    "reverse without gallery bank": ([*FILES, *BANK, "--reverse"], ["--gallery-bank"]),
    "set without queries": (["truth.npz"], ["query"]),
    "single array as set": (["query.npy"], ["query, gallery and query_bank"]),
    "bank beside a set": (["set.npz", *BANK], ["--query-bank"]),
    "matrices without a bank": (
        ["--similarities", "query.npy"],
        ["--query-bank-similarities"],
    ),
    "matrices and files": ([*FILES, "--similarities", "query.npy"], ["QUERIES"]),
    "bank matrix alone": (
        [*FILES, *BANK, "--gallery-bank-similarities", "query.npy"],
        ["--similarities"],
    ),
    "matrices without beta": (
        [*MATRICES, "query_bank.npy", "--methods", "is"],
        ["--beta-query", "1/similarity"],
    ),
    "dual without its matrix": (
        [*MATRICES, "query_bank.npy", "--beta-query", "1", "--methods", "dualis"],
        ["--gallery-bank-similarities"],
    ),
    "matrices of other width": (
        [*MATRICES, "narrow.npy"],
        ["--query-bank-similarities", "8 columns (gallery items)"],
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case, folder, refused, monkeypatch):
    monkeypatch.chdir(folder)
    rows = np.arange(NUM_QUERIES)
    np.save("far.npy", rows + 1)
    np.save("short.npy", rows[:3])
    np.save("narrow.npy", np.ones((5, 7), np.float32))
    np.savez("half.npz", gt_indices=rows, more=rows)
    np.savez("falling.npz", gt_indptr=np.r_[0, 9, rows[3:], NUM_QUERIES, 4][:41], gt_indices=rows)
    np.savez("fewer.npz", gt_indptr=rows, gt_indices=rows[:-1])
    arguments, words = BAD_ARGUMENTS[case]
    line = refused("evaluate", *arguments)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["demo", "--source", "xx"], "--source"),
        (["demo", "--source", "de"], "two languages"),
        (["demo", "--seed", "-1"], "--seed"),
        (["dome"], "dome"),
    ],
)
def test_bad_demo_arguments(arguments, word, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert word in err
    assert not list(tmp_path.iterdir())


def test_output_that_is_a_file(folder, call, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate_module, "evaluate", fail_if_called)
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = call("evaluate", folder / "set.npz", "--output", target)
        assert (code, err.count("\n")) == (2, 1)
        assert "--output" in err
    assert (tmp_path / "file").read_text() == "mine"
