"""`dbnorm tune` and `dbnorm evaluate --methods auto`."""

import json

import numpy as np
import pytest

import dbnorm_jax as dbn

pytest.importorskip("click")
pytest.importorskip("rich")


SIZE, DIM = 60, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of a hubby set."""
    folder = tmp_path_factory.mktemp("set")
    random = np.random.default_rng(3)
    items = random.normal(size=(2, SIZE, DIM))
    queries = items + 0.8 * random.normal(size=items.shape) + 2 * random.normal(size=DIM)
    names = ("queries", "gallery", "query_bank", "gallery_bank")
    for name, rows in zip(names, (queries[0], items[0], queries[1], items[1]), strict=True):
        np.save(folder / f"{name}.npy", rows.astype(np.float32))
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


BANKS = ("query_bank.npy", "gallery_bank.npy")


def test_tune_prints_and_writes(call, tmp_path):
    path = tmp_path / "choice.npz"
    arguments = ("tune", *BANKS, "--bank-pairs", "rows", "--gallery", "gallery.npy")
    code, out, err = call(*arguments, "--output", path)
    assert (code, err) == (0, "")
    choice = dbn.load(path)
    assert choice.name != "raw"
    assert choice.summary() in out
    assert f"{100 * choice.mixture[0].frequency:.0f} %  {choice.mixture[0]}" in out
    code, out, err = call(*arguments, "--json")
    content = json.loads(out)
    assert content["method"] == choice.name
    assert [part["frequency"] for part in content["mixture"]] == [
        part.frequency for part in choice.mixture
    ]
    assert len(content["candidates"]) == len(choice.gain)
    gains = [row["gain"] for row in content["candidates"]]
    assert gains == sorted(gains, reverse=True)


def test_pairs_of_a_part_of_the_bank(call, tmp_path):
    """The rest of the bank is in the statistics, and no part of what is held out."""
    pairs = np.where(np.arange(SIZE) % 3 == 0, -1, np.arange(SIZE))
    np.save(tmp_path / "pairs.npy", pairs)
    code, out, _ = call("tune", *BANKS, "--bank-pairs", tmp_path / "pairs.npy", "--json")
    assert code == 0
    content = json.loads(out)
    assert content["num_held_out"] == 2 * SIZE // 3
    banks = dict(zip(("query_bank", "gallery_bank"), map(np.load, BANKS), strict=True))
    cosine = {"similarity_fn": dbn.cosine_similarity}
    choice = dbn.tuning.tune(**banks, pairs=pairs, **cosine)
    gains = [row["gain"] for row in content["candidates"]]
    np.testing.assert_allclose(gains, -np.sort(-np.asarray(choice.gain)), 1e-3, 1e-4)
    assert all("half_life" in row and "weight_own" in row for row in content["candidates"])
    labeled = pairs >= 0
    alone = dbn.tuning.tune(
        query_bank=banks["query_bank"][labeled],
        gallery_bank=banks["gallery_bank"],
        pairs=pairs[labeled],
        **cosine,
    )
    assert np.abs(alone.gain - choice.gain).max() > 0.01


@pytest.mark.slow
def test_a_poisoned_bank_keeps_raw_unless_it_is_trusted(call, tmp_path):
    """Said by every command that chooses: tune, fit, evaluate and inspect."""
    query_bank, gallery = np.load("query_bank.npy"), np.load("gallery.npy")
    wrong = np.arange(0, SIZE, 2)
    query_bank[wrong] = gallery[wrong]
    path = tmp_path / "poisoned.npy"
    np.save(path, query_bank)
    tune = ("tune", path, "gallery_bank.npy", "--gallery", "gallery.npy")
    banks = ("--gallery-bank", "gallery_bank.npy", "--bank-pairs", "rows")
    fit = ("fit", "gallery.npy", "--query-bank", path, *banks, "--method", "auto")
    known = ("queries.npy", "gallery.npy", "--query-bank", path, *banks)
    output = tmp_path / "correction.npz"
    inspect = ("inspect", "gallery.npy", "--query-bank", path, *banks, "--method", "auto")
    commands = {
        "tune": (*tune, "--bank-pairs", "rows"),
        "fit": (*fit, "--output", output, "--force"),
        "evaluate": ("evaluate", *known, "--methods", "auto"),
        "inspect": (*inspect, "--beta-query", 20),
    }
    for name, arguments in commands.items():
        for trust in ([], ["--trust-banks"]):
            code, out, err = call(*arguments, *trust)
            assert (code, err) == (0, "")
            told = " ".join(out.split())
            assert ("raw: queries of the bank lie on wrong items" in told) == (not trust), name
            assert "queries of the bank lie on other items than their own" in told, name
            assert name != "fit" or dbn.load(output).bias.any() == bool(trust)
    code, out, _ = call(*tune, "--bank-pairs", "rows", "--trust-banks", "--json")
    content = json.loads(out)
    assert content["num_held_out"] == SIZE
    assert content["num_wrong_pairs"] > 0
    assert "lie on other items" in " ".join(content["warnings"])


def test_trust_banks_is_of_auto(call, tmp_path):
    bank = ("--query-bank", "query_bank.npy")
    fit = ("fit", "gallery.npy", *bank, "--method", "is", "--output", tmp_path / "c.npz")
    for arguments, expected in (
        (fit, "--method auto"),
        (("evaluate", "queries.npy", "gallery.npy", *bank), "auto among the methods"),
        (("inspect", "gallery.npy", *bank), "auto among the methods"),
        (("inspect", "--demo", "--method", "auto"), "no data beside it"),
        (("tune", *BANKS), "--bank-pairs"),
    ):
        code, _, err = call(*arguments, "--trust-banks")
        assert code == 2
        assert "--trust-banks" in err
        assert f"expected {expected}" in err


def test_tune_without_pairs_keeps_raw(call):
    code, out, _ = call("tune", *BANKS)
    assert code == 0
    assert out.startswith("raw\nraw: without `pairs`")
    assert "own share" in out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("no.npy", BANKS[1]), "no.npy"),
        ((*BANKS, "--bank-pairs", "query_bank.npy"), "--bank-pairs"),
        ((*BANKS, "--similarity", "hamming"), "--similarity"),
        ((BANKS[0],), "GALLERY_BANK"),
    ],
)
def test_tune_on_bad_input(call, arguments, word):
    code, out, err = call("tune", *arguments)
    assert (code, out) == (2, "")
    assert word in err
    assert err.count("\n") == 1


EVALUATE = ("evaluate", "queries.npy", "gallery.npy", "--query-bank", BANKS[0])


@pytest.mark.slow
def test_evaluate_auto(call):
    arguments = (*EVALUATE, "--gallery-bank", BANKS[1])
    code, out, err = call(*arguments, "--bank-pairs", "rows", "--methods", "auto,is", "--json")
    assert code == 0, err
    content = json.loads(out)
    assert [row["method"] for row in content["rows"]] == ["raw", "auto", "IS"]
    assert content["rows"][1]["gain"] > 0
    assert any(note.startswith("auto: ") for note in content["notes"])
    code, out, _ = call(*arguments, "--methods", "auto", "--json")
    content = json.loads(out)
    assert content["rows"][1]["gain"] == 0
    assert any("without `pairs`" in note for note in content["notes"])


@pytest.mark.slow
def test_auto_stands_first_where_there_are_pairs(call):
    code, out, _ = call(*EVALUATE, "--bank-pairs", "rows", "--json")
    assert code == 0
    assert [row["method"] for row in json.loads(out)["rows"]][:3] == ["raw", "auto", "IS"]
    code, out, _ = call(*EVALUATE, "--json")
    assert [row["method"] for row in json.loads(out)["rows"]] == ["raw", "CSLS"]


def test_auto_refuses_matrices(call):
    code, _, err = call(
        "evaluate",
        "--similarities",
        "queries.npy",
        "--query-bank-similarities",
        "query_bank.npy",
        "--beta-query",
        "1",
        "--methods",
        "auto",
    )
    assert code == 2
    assert "--methods auto: expected embeddings" in err
