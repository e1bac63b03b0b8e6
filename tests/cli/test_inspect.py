"""`dbnorm inspect`: what it prints and writes, and what it refuses."""

import csv
import json

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.commands import main as command
from dbnorm_jax._cli.showing import hub_report, plots

SIZE, DIM = 60, 8
PLANTED = 7
ODD = " one\u2028name\x85of\x0cmany, \rlines "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of a set with a planted hub, which is the mean of the queries."""
    folder = tmp_path_factory.mktemp("set")
    random = np.random.default_rng(3)
    items = random.normal(size=(2, SIZE, DIM))
    queries = items + random.normal(size=items.shape) + 1.5 * random.normal(size=DIM)
    items[0, PLANTED] = 5 * queries[0].mean(axis=0)
    parts = {
        "query": queries[0],
        "gallery": items[0],
        "query_bank": queries[1],
        "gallery_bank": items[1],
    }
    parts = {name: rows.astype(np.float32) for name, rows in parts.items()}
    for name, rows in parts.items():
        np.save(folder / f"{name}.npy", rows)
    np.savez(folder / "set.npz", **parts, bank_pair=np.arange(SIZE))
    names = [f"item {row}" for row in range(SIZE)]
    names[PLANTED] = "[red]\x1b[2Jplanted"
    names[3] = ODD
    names[4], names[5] = "=1+1", "-5"
    (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    np.save(folder / "labels.npy", np.array(names))
    np.save(folder / "ids.npy", np.arange(SIZE) + 1000)
    (folder / "short.txt").write_text("one\n", encoding="utf-8")
    (folder / "latin.txt").write_bytes(b"\xe4\n" * SIZE)
    return folder


@pytest.fixture
def call(capsys, folder, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            command.main(["inspect", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


BANK = ("gallery.npy", "--query-bank", "query_bank.npy")
FILES = (*BANK, "--gallery-bank", "gallery_bank.npy", "--queries", "query.npy")


@pytest.mark.slow
def test_planted_hub_is_listed_flagged_and_written(call, tmp_path):
    labels = ("--labels", "labels.npy", "--bank-labels", "ids.npy")
    code, out, err = call(*FILES, *labels, "--bank-pairs", "rows", "--top", 3)
    assert (code, err) == (0, "")
    assert "Hubs: " in out
    assert "retrieval of the queries" in out
    hubs = out.partition("Hubs: ")[2].partition("Anti-hubs")[0]
    assert r"'[red]\x1b[2Jplanted'" in hubs.splitlines()[4]
    assert "'10" in hubs  # a bank id
    assert "\x1b" not in out
    assert "query-bank items flip a top-1 when left out, under the bias at beta 20" in out
    suspects = out.partition("Screening for planted hubs")[2]
    assert "planted'" in suspects
    assert "IS(20): N_10 in the bank" in suspects

    pytest.importorskip("matplotlib")
    target = tmp_path / "hubs"
    code, text, err = call("set.npz", "--labels", "labels.txt", "--json", "--output", target)
    assert code == 0, err
    content = json.loads(text)
    assert (target / "inspection.json").read_text(encoding="utf-8") == text
    assert [path.name for path in sorted(target.iterdir())] == sorted(hub_report.FILES)
    assert content["schema"] == "dbnorm inspection 1"
    assert content["retrieval_of"] == "queries"
    hub = content["hubs"][0]
    assert (hub["row"], hub["label"]) == (PLANTED, "[red]\x1b[2Jplanted")
    assert hub["k_occurrence"] == 58
    assert hub["k_occurrence_corrected"] < 2 * SIZE / 3
    assert len(hub["contributors"]) == 3
    assert 1 <= hub["effective_number"] <= SIZE
    flips = content["flips"]
    assert flips["num_queries"] == SIZE
    assert 0 < len(flips["deciding"]) <= flips["num_deciding"]
    told = flips["deciding"][0]["for_instance"]
    assert told["old"]["row"] != told["new"]["row"]
    flagged = content["screening"]["flagged"]
    assert flagged[0]["row"] == PLANTED
    assert "raw" in flagged[0]["by"]
    assert content["screening"]["compared_with"] == "gallery bank"
    with (target / "items.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SIZE
    assert [rows[row]["label"] for row in (3, 4, 5)] == [ODD, "'=1+1", "'-5"]
    assert float(rows[3]["similarity_to_query_bank"])
    assert rows[PLANTED]["n_10"] == "58"
    assert rows[PLANTED]["flagged"] == "1"
    assert sum(int(row["n_10_corrected"]) for row in rows) == 10 * SIZE
    for name in ("k_occurrence.png", "banks.png"):
        assert (target / name).read_bytes().startswith(b"\x89PNG")

    code, out, err = call("set.npz", "--output", target)
    assert (code, out) == (2, "")
    assert "--force" in err


@pytest.mark.slow
def test_the_bank_may_be_asked_itself(call):
    code, text, err = call(*BANK, "--json")
    assert code == 0, err
    content = json.loads(text)
    assert content["retrieval_of"] == "query bank"
    assert content["kind"] == "transductive"
    assert content["screening"]["compared_with"] == "gallery"
    assert content["num_rescued_by_a_right_query"] is None
    assert content["hubs"][0]["row"] == PLANTED
    assert any("query bank itself" in note for note in content["notes"])


@pytest.mark.slow
def test_text_says_what_was_not_given(call):
    code, out, _ = call(*BANK, "--method", "csls", "--similarity", "dot", "--beta-query", 1)
    assert code == 0
    assert "retrieval of the query bank itself" in out
    assert "planted or not" in out
    code, out, _ = call(*FILES)
    assert code == 0
    assert "With --bank-pairs, corrected scores are screened too." in out


@pytest.mark.slow
def test_demo(call):
    pytest.importorskip("emoji")
    code, text, err = call("--demo", "--json")
    assert code == 0, err
    content = json.loads(text)
    assert content["hubs"][0]["label"] == "flagge schweiz"
    assert content["num_rescued"] > 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("inspect", "GALLERY", "--demo")),
        (("gallery.npy", "--gallery-bank", "gallery_bank.npy"), ("--query-bank",)),
        (("gallery.npy",), ("SET.npz",)),
        (("--demo", "--queries", "query.npy"), ("--demo", "--queries")),
        (("--demo", "--labels", "labels.txt"), ("--demo", "--labels")),
        ((*BANK, "--relevant", "ids.npy"), ("--relevant", "--queries")),
        ((*BANK, "--labels", "short.txt"), ("--labels 'short.txt'", "60 labels", "got 1")),
        ((*BANK, "--labels", "latin.txt"), ("--labels 'latin.txt'", "UTF-8", "0xe4")),
        ((*BANK, "--bank-labels", "no.txt"), ("--bank-labels 'no.txt'",)),
        ((*BANK, "--query-labels", "query.npy"), ("--query-labels", "strings or integers")),
        ((*BANK, "--method", "is,dis"), ("--method", "one correction", "IS, DIS")),
        ((*BANK, "--method", "raw"), ("--method",)),
        ((*BANK, "--method", "dsl"), ("--method", "DSL")),
        ((*BANK, "--similarity", "dot"), ("--beta-query", "dot")),
        ((*BANK, "--similarity", "dot", "--method", "csls"), ("--beta-query", "contributors")),
        ((*BANK, "--method", "csls", "--beta-query", "-1"), ("--beta-query", "positive")),
        ((*BANK, "--beta-gallery", "2"), ("--beta-gallery", "takes it, got IS(20)")),
        ((*BANK, "--method", "is:beta_query=5", "--beta-query", "6"), ("--beta-query", "IS(5)")),
        ((*BANK, "--method", "nnn:k=61"), ("--method nnn:k=61", "at most 60")),
        ((*BANK, "--bank-pairs", "rows"), ("--bank-pairs", "--gallery-bank")),
        ((*BANK, "--force"), ("--force", "--output")),
        ((*BANK, "--false-alarm-rate", "2"), ("--false-alarm-rate", "got 2")),
        ((*BANK, "--top", "0"), ("--top",)),
        ((*BANK, "--output", "labels.txt"), ("--output", "folder")),
        (("no.npy", *BANK[1:]), ("GALLERY 'no.npy'",)),
    ],
)
def test_bad_input(call, arguments, words):
    code, out, err = call(*arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_the_picture_with_nothing_to_mark(monkeypatch):
    """No hubs, no anti-hubs, no screening: still a picture."""
    pytest.importorskip("matplotlib")

    class Row:
        def __init__(self, label):
            self.method = type("Method", (), {"label": label})

    class Found:
        counts = (np.ones(5, int), np.ones(5, int))
        hubs = anti_hubs = np.array([], int)
        similarities = np.ones((2, 5))
        correlations = (float("nan"),) * 3
        flagged = ()

    report = type("Report", (), {"name": "$x$", "k": 3, "rows": [Row("raw"), Row("IS(20)")]})
    assert plots.banks_png(report, Found).startswith(b"\x89PNG")
