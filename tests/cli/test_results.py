"""`dbnorm inspect --results`: the lists of a live system, without its embeddings."""

import collections
import csv
import io
import json
import pathlib
import sys

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.measuring.results import popularity
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.results import read_results

pytestmark = pytest.mark.usefixtures("compile_fast")

NUM_QUERIES, NUM_ITEMS, K = 200, 400, 10
HUB = 7


@pytest.fixture
def lists():
    """Ten items for each query, of which two thirds begin with one and the same."""
    random = np.random.default_rng(0)
    found = []
    for query in range(NUM_QUERIES):
        others = random.permutation(np.delete(np.arange(NUM_ITEMS), HUB))[: K - (query % 3 > 0)]
        found.append([HUB] * (query % 3 > 0) + others.tolist())
    return np.array(found)


def as_run(lists, shuffled=False):
    lines = [
        f"q{query} Q0 d{item} {place} {1 - place / 20} system"
        for query, items in enumerate(lists)
        for place, item in enumerate(items, 1)
    ]
    if shuffled:
        lines = np.random.default_rng(1).permutation(lines).tolist()
    return "".join(f"{line}\n" for line in lines).encode()


def as_objects(lists, names=True):
    rows = (
        {"query": f"q{query}", "items": [f"d{item}" if names else int(item) for item in items]}
        for query, items in enumerate(lists)
    )
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def as_npz(lists, **more):
    stream = io.BytesIO()
    np.savez(stream, indices=lists, scores=np.zeros(lists.shape), **more)
    return stream.getvalue()


@pytest.fixture
def shown(call, tmp_path, monkeypatch):
    """What is said of results with these contents, as JSON."""
    monkeypatch.chdir(tmp_path)

    def run(data, *arguments, name="results"):
        pathlib.Path(name).write_bytes(data)
        code, out, err = call("inspect", "--results", name, "--json", *arguments)
        assert code == 0, err
        return json.loads(out)

    return run


def test_the_numbers_are_those_of_another_count(shown, lists):
    counts = collections.Counter(lists.ravel().tolist())
    of_all = np.array([counts[item] for item in range(NUM_ITEMS)], float)
    found = shown(as_run(lists), "--num-items", NUM_ITEMS, "--top", 3)
    assert found["schema"] == "dbnorm results 1"
    retrieved = len(counts)
    assert found["sizes"] == {"queries": 200, "gallery": NUM_ITEMS, "retrieved": retrieved}
    assert found["items"][0]["item"] == f"d{HUB}"
    assert [item["k_occurrence"] for item in found["items"]] == sorted(of_all)[:-4:-1]
    hub = found["items"][0]
    assert hub["percent_of_queries"] == pytest.approx(100 * of_all[HUB] / NUM_QUERIES)
    assert hub["first_for"] == of_all[HUB]
    assert all(int(query[1:]) % 3 > 0 for query in hub["queries"])
    assert len(hub["queries"]) == 3
    assert found["skewness"] == pytest.approx(scipy.stats.skew(of_all), abs=1e-3)
    gini = np.abs(of_all[:, None] - of_all).mean() / (2 * of_all.mean())
    assert found["gini"] == pytest.approx(gini, abs=1e-4)
    assert found["num_anti_hubs"] == NUM_ITEMS - retrieved
    hubs = of_all[of_all >= 2 * of_all.mean()]
    assert found["num_hubs"] == len(hubs)
    assert found["percent_of_places_of_hubs"] == pytest.approx(100 * hubs.sum() / of_all.sum())
    half = np.flatnonzero(np.sort(of_all)[::-1].cumsum() >= of_all.sum() / 2)[0] + 1
    assert found["num_items_with_half_of_the_places"] == half
    chance, share = found["by_chance"], K / NUM_ITEMS
    drawn = scipy.stats.binom(NUM_QUERIES, share)
    assert chance["skewness"] == pytest.approx(float(drawn.stats("s")), abs=1e-4)
    assert chance["percent_anti_hubs"] == pytest.approx(100 * drawn.pmf(0), abs=1e-4)
    most = chance["most_lists"]
    assert NUM_ITEMS * drawn.sf(most) <= 0.05 < NUM_ITEMS * drawn.sf(most - 1)
    assert found["num_beyond_chance"] == (of_all > most).sum() == 1


def test_what_chance_brings_is_what_it_brings(tmp_path):
    """Lists of different lengths, drawn at random many times."""
    random = np.random.default_rng(0)
    path, lengths = tmp_path / "run.jsonl", np.repeat([1, 4, 9], 20)
    drawn, most = [], []
    for _ in range(200):
        lists = [random.permutation(50)[:length].tolist() for length in lengths]
        drawn.append(np.bincount(np.concatenate(lists), minlength=50))
        most.append(drawn[-1].max())
    path.write_bytes(as_objects(lists))
    found = popularity(read_results(Source("--results", path)), 10, 50, 1)
    assert (np.array(most) > found.chance.most).mean() <= 0.05
    assert found.chance.most <= np.quantile(most, 0.9) + 4
    counts = np.concatenate(drawn)
    assert found.chance.skewness == pytest.approx(scipy.stats.skew(counts), abs=0.05)
    assert found.chance.anti_hub_share == pytest.approx(100 * (counts == 0).mean(), abs=0.05)
    assert popularity(found.results, 60, 9 + found.results.num_named, 1).chance.most <= 60


def test_every_form_says_the_same(shown, lists):
    def essence(data, *arguments, **options):
        found = shown(data, *arguments, **options)
        return {key: value for key, value in found.items() if key not in ("results", "items")}

    size = ("--num-items", NUM_ITEMS)
    wanted = essence(as_run(lists), *size)
    assert essence(as_run(lists, shuffled=True), *size) == wanted
    assert essence(b"\xef\xbb\xbf" + as_objects(lists) + b"\n", *size) == wanted
    assert essence(as_objects(lists, names=False), *size) == wanted
    assert essence(as_npz(lists), *size) == wanted
    ids = np.array([f"d{item}" for item in range(NUM_ITEMS)])
    assert essence(as_npz(lists, gallery_ids=ids)) == wanted
    stream = io.BytesIO()
    np.save(stream, lists.astype(np.int32))
    assert essence(stream.getvalue(), *size) == wanted
    pathlib.Path("ids.txt").write_text("\n".join(ids), "utf-8")
    assert essence(as_run(lists), "--labels", "ids.txt") == wanted
    assert essence(as_npz(lists), "--labels", "ids.txt") == wanted
    assert shown(as_npz(lists), "--labels", "ids.txt")["items"][0]["item"] == f"d{HUB}"
    fewer = np.where(np.arange(K) < 3, lists, -1)
    assert essence(as_npz(fewer), *size) == {**essence(as_run(lists), *size, "-k", 3)}


def test_what_search_writes_is_read(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    queries, gallery = random.normal(size=(30, 4)), random.normal(size=(20, 4)) + 0.5
    np.save("queries.npy", queries)
    np.save("gallery.npy", gallery)
    pathlib.Path("ids.txt").write_text("".join(f"item {row}\n" for row in range(20)), "utf-8")
    said = []
    for ids in ((), ("--labels", "ids.txt")):
        search = ("search", "queries.npy", "gallery.npy", "-k", 3, *ids)
        assert call(*search, "--output", "found.npz", "--force")[0] == 0
        assert call(*search, "--output", "found.jsonl", "--force")[0] == 0
        piped = call(*search)[1].encode()
        for name in ("found.npz", "found.jsonl", "-"):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
            size = () if ids and name == "found.npz" else ("--num-items", 20)
            code, out, err = call("inspect", "--results", name, "--json", *size)
            assert code == 0, err
            said.append({**json.loads(out), "results": "", "items": []})
    assert all(one == said[0] for one in said)
    similarities = queries @ gallery.T / np.linalg.norm(gallery, axis=1)
    counts = np.bincount(np.argsort(-similarities)[:, :3].ravel(), minlength=20)
    assert said[0]["num_anti_hubs"] == (counts == 0).sum()


def test_people_are_told(call, lists, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("run.trec").write_bytes(as_run(lists))
    code, out, err = call("inspect", "--results", "run.trec", "--num-items", NUM_ITEMS)
    assert (code, err) == (0, "")
    assert "1 item comes up more often than chance explains; the most retrieved, 'd7'" in out
    assert "comes up for 66 % of the queries" in out
    code, out, _ = call("inspect", "--results", "run.trec")
    assert "give --num-items" in out
    pathlib.Path("even.jsonl").write_bytes(as_objects(np.arange(NUM_ITEMS).reshape(-1, K)))
    code, out, _ = call("inspect", "--results", "even.jsonl", "--num-items", NUM_ITEMS)
    assert "No item comes up more often than chance explains" in out
    assert "Never: 0 of 400 items" in out
    command = ("inspect", "--results", "run.trec", "--output", "said", "--json")
    code, out, err = call(*command)
    assert code == 0
    assert pathlib.Path("said/inspection.json").read_text("utf-8") == out
    assert "wrote said" in err
    with pathlib.Path("said/items.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["item"] == f"d{HUB}"
    assert sum(int(row["n_10"]) for row in rows) == lists.size
    assert call(*command)[0] == 2


LINE = "q1 Q0 d1 1 0.9 x\n"
BAD = {
    "a hole": (f"{LINE}q1 Q0 d2 3 0.8 x\n", "'q1' without holes", "3 after 1 on line 2", "number"),
    "a late begin": ("q1 Q0 d2 2 0.8 x\n", "'q1' without holes", "2 first on line 1", "number"),
    "a rank twice": (f"{LINE}\nq1 Q0 d2 1 0.8 x\n", "repeats", "1 after 1 on line 3", "number"),
    "a rising score": (f"{LINE}q1 Q0 d2 2 1 x\n", "not rise", "1 after 0.9 on line 2", "number"),
    "an item twice": (f"{LINE}q1 Q0 d1 2 0.8 x\n", "each item once", "twice, lines 1 and 2", ""),
    "five columns": (f"{LINE}q1 Q0 d1 2 0.8\n", "6 columns", "5 on line 2", "TREC run"),
    "no rank": ("q1 Q0 d1 one 0.8 x\n", "a rank", "'one' on line 1", "write lines of"),
    "a rank of Python's": ("q1 Q0 d1 1_0 0.8 x\n", "a rank", "'1_0' on line 1", "write lines of"),
    "a score of Python's": ("q1 Q0 d1 1 1_0.0 x\n", "a score", "'1_0.0' on line 1", "write lines"),
    "no score": ("q1 Q0 d1 1 nan x\n", "a score", "'nan' on line 1", "write lines of"),
    "no text": (b"q1 Q0 \xe4 1 1 x\n", "names in UTF-8", "line 1", "UTF-8"),
    "nothing": ("\n\n", "at least one line", "none", "TREC run"),
    "no items": ('{"query": 1, "items": []}', "items for query 1", "none on line 1", "leave"),
    "no list": ('{"query": 1, "items": "d"}', "an object", "something else on line 1", "write"),
    "no object": ('{"query": 1', "an object", "something else on line 1", "write"),
    "no name": ('{"query": true, "items": ["d"]}', "a name as query", "on line 1", "write"),
    "depth": ('{"query":' + "[" * 10**5, "an object", "something else on line 1", "write"),
    "mixed": ('{"query": 1, "items": ["d", 2]}', "all names or all row", "line 1", "write"),
    "mixed lines": (
        '{"query": 1, "items": ["d"]}\n{"query": 2, "items": [2]}', "all names", "line 2", ""
    ),
    "negative": ('{"query": 1, "items": [-1]}', "row numbers", "-1 to -1 on line 1", "write"),
    "a query twice": (
        '{"query": 1, "items": ["d"]}\n' * 2, "query 1 once", "it on lines 1 and 2", "remove one"
    ),
    "an item twice again": (
        '{"query": 1, "items": ["d", "e", "d"]}', "each item once for query 1", "line 1", "remove"
    ),
    "one axis": (as_npz(np.arange(3)), "[queries, k]", "shape (3,)", "write rows"),
    "bool": (as_npz(np.ones((2, 2), bool)), "integers of shape", "bool", "write rows"),
    "floats": (as_npz(np.ones((2, 2))), "integers", "float64", "TREC run"),
    "holes": (as_npz(np.array([[1, 2], [-1, 2]])), "-1 only behind", "in row 1", "leave"),
    "below": (as_npz(np.array([[1, 2], [1, -2]])), "-1 only behind", "in row 1", "leave"),
    "none": (as_npz(np.array([[1, 2], [-1, -1]])), "at least one item", "none in row 1", "leave"),
    "twice": (as_npz(np.array([[1, 2], [2, 2]])), "once for query 1", "2 twice, in row 1", ""),
    "beyond": (as_npz(np.array([[1, 2]]), gallery_ids=np.arange(2)), "rows of 2", "row 2", "ids"),
    "pickled": (b"\x80\x04K\x01.", "a pickle", "not loaded", "TREC run"),
    "no indices": (as_npz(np.ones((2, 2)))[:40], "npz archive", "truncated", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_results_are_one_line(case, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, *words = BAD[case]
    pathlib.Path("given").write_bytes(data.encode() if isinstance(data, str) else data)
    code, out, err = call("inspect", "--results", "given")
    assert (code, out, err.count("\n")) == (2, "", 1)
    for word in ("--results 'given", *words):
        assert word in err, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.npy",), "--results: expected the lists of a system alone, got GALLERY beside it"),
        (("--query-bank", "x", "--method", "is"), "got --query-bank, --method beside it"),
        (("--demo",), "got --demo beside it"),
        (("--false-alarm-rate", "0.002"), "got --false-alarm-rate beside it"),
        (("--num-items", "1"), "--num-items: expected at least 2, as the results name so many"),
        (("-k", "3"), "-k: expected between 1 and 2 (places of the longest list), got 3"),
        (("--labels", "ids.txt"), "--labels 'ids.txt': expected the ids of all items, 'd2' among"),
        (("--labels", "ids.txt"), "1 of 2 ids in the results are not there"),
        (("--labels", "twice.txt"), "the same on lines 1 and 2: 'd1'"),
        (("--force",), "--force: expected --output"),
    ],
)
def test_bad_options_beside_results(arguments, words, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("run").write_text(f"{LINE}q1 Q0 d2 2 0.8 x\n", "utf-8")
    pathlib.Path("ids.txt").write_text("d1\nd3\n", "utf-8")
    pathlib.Path("twice.txt").write_text("d1\nd1\n", "utf-8")
    code, out, err = call("inspect", "--results", "run", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_bad_sizes_of_named_results(shown, call, lists):
    ids = np.array([f"d{item}" for item in range(NUM_ITEMS)])
    shown(as_npz(lists, gallery_ids=ids))
    code, _, err = call("inspect", "--results", "results", "--num-items", 400)
    assert code == 2
    assert "--num-items: expected results that do not name all items, got names of 400" in err
    pathlib.Path("ids.txt").write_text("\n".join(ids[:9]), "utf-8")
    code, _, err = call("inspect", "--results", "results", "--labels", "ids.txt")
    assert "expected results without gallery_ids" in err
    shown(as_npz(lists))
    code, _, err = call("inspect", "--results", "results", "--labels", "ids.txt")
    assert "expected a label for each item, at least 400, got 9" in err
    code, _, err = call("inspect", "x.npy", "--query-bank", "y.npy", "-k", 3, "--num-items", 4)
    assert "-k, --num-items: expected --results beside it" in err
