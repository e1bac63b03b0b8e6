"""`dbnorm evaluate --methods`: every correction by name, group and parameter."""

import json

import numpy as np
import pytest
import reference
import reference_baselines as baselines

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.measuring import methods, sources

# One shape throughout, so that everything compiles once.
NUM_QUERIES, NUM_BANK, DIM = 40, 60, 8


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(3)
    common = random.normal(size=DIM)

    def rows(count, noise, base=None):
        base = random.normal(size=(count, DIM)) + common if base is None else base
        rows = base + noise * random.normal(size=base.shape)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    gallery, gallery_bank = rows(NUM_QUERIES, 0.0), rows(NUM_BANK, 0.0)
    return {
        "query": rows(NUM_QUERIES, 0.3, gallery),
        "gallery": gallery,
        "query_bank": rows(NUM_BANK, 0.3, gallery_bank),
        "gallery_bank": gallery_bank,
    }


@pytest.fixture(scope="module")
def path(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "set.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def rows_of(call, path):
    """--methods -> rows by name."""

    def run(text, *arguments):
        code, out, err = call("evaluate", path, "--methods", text, "--json", *arguments)
        assert code == 0, err
        return {row["method"]: row for row in json.loads(out)["rows"]}

    return run


@pytest.fixture(scope="module")
def expected_scores(arrays):
    queries, gallery, bank, gallery_bank = (
        arrays[name] for name in ("query", "gallery", "query_bank", "gallery_bank")
    )
    similarities = reference.dot_product(queries, gallery)
    to_gallery = reference.dot_product(bank, gallery)
    to_bank = reference.dot_product(bank, gallery_bank)

    def distances(rows, columns):
        return np.sqrt(np.maximum(2 - 2 * reference.dot_product(rows, columns), 0))

    own, of_bank = distances(queries, gallery), distances(bank, gallery)
    converged = baselines.sinkhorn_hubness(to_gallery, 0.05, 3000)
    vectors = (queries, gallery, bank, gallery_bank)
    return {
        "raw": similarities,
        "CSLS": baselines.csls_scores(similarities, to_gallery, 10),
        "NNN": baselines.nearest_neighbor_normalization_scores(similarities, to_gallery, 60, 0.75),
        "DN": baselines.distribution_normalization_scores(*vectors, 0.5),
        "SN": similarities - baselines.sinkhorn_hubness(to_gallery, 0.05, 10),
        "DBSN": similarities - baselines.dual_bank_sinkhorn_hubness(to_gallery, to_bank, 0.05, 10),
        "HNN": similarities - converged,
        "GC": baselines.globally_corrected_scores(similarities, to_gallery),
        "MP": -baselines.mutual_proximity_gaussian(own, own, of_bank),
        "MP empiric": -baselines.mutual_proximity_empiric(own, distances(queries, bank), of_bank),
        "LS": -baselines.local_scaling(own, own, of_bank, 10),
        "NICDM": -baselines.nicdm(own, own, of_bank, 10),
        "DisSimLocal": -baselines.dis_sim_local(queries, gallery, gallery, bank, 10),
        "InvGC": baselines.inverse_graph_convolution_scores(*vectors, 0.1, 0.3),
        "InvGC local": baselines.inverse_graph_convolution_scores(*vectors, 0.1, 0.3, 0.1),
        "DSL": baselines.dual_softmax_scores(similarities, 0.05),
    }


@pytest.mark.slow
def test_all_methods_agree_with_the_reference(rows_of, expected_scores):
    rows = rows_of("all")
    assert set(rows) - set(expected_scores) == {"IS", "DIS", "DualIS", "DualDIS"}
    right = [[query] for query in range(NUM_QUERIES)]
    raw_ranks = reference.ranks(expected_scores["raw"], right)
    for name, scores in expected_scores.items():
        ranks = reference.ranks(scores, right)
        row = rows[name]
        # A near-tie may fall otherwise in float32: one place of one query.
        assert row["mean_rank"] == pytest.approx(reference.mean_rank(ranks), abs=1.01 / NUM_QUERIES)
        hits = (ranks <= 1).astype(float) - (raw_ranks <= 1)
        assert row["gain"] == pytest.approx(100 * hits.mean(), abs=100 / NUM_QUERIES + 1e-6)
        if row["gain"] == pytest.approx(100 * hits.mean(), abs=1e-3):
            error = 1.96 * 100 * hits.std() / np.sqrt(NUM_QUERIES)
            assert row["gain_interval"] == pytest.approx(error, abs=1e-3)


@pytest.mark.slow
def test_groups_stand_for_their_methods(rows_of):
    for group, kinds in methods.groups().items():
        names = {methods.KINDS[kind].name for kind in kinds} | {"raw"}
        assert set(rows_of(group)) == names
    assert set(rows_of("means,is")) == {"raw", "CSLS", "NNN", "DN", "IS"}


@pytest.mark.slow
def test_parameters(rows_of, arrays):
    rows = rows_of("nnn:k=4:weight=0.5,is:beta_query=7,dualis:beta_gallery=3")
    assert rows["NNN"]["options"] == {"k": 4, "weight": 0.5}
    assert rows["IS"]["beta_query"] == 7
    assert (rows["DualIS"]["beta_query"], rows["DualIS"]["beta_gallery"]) == (20, 3)
    similarities = reference.dot_product(arrays["query"], arrays["gallery"])
    bank = reference.dot_product(arrays["query_bank"], arrays["gallery"])
    scores = baselines.nearest_neighbor_normalization_scores(similarities, bank, 4, 0.5)
    ranks = reference.ranks(scores, [[query] for query in range(NUM_QUERIES)])
    assert rows["NNN"]["mean_rank"] == pytest.approx(reference.mean_rank(ranks), abs=0.03)


@pytest.mark.slow
def test_one_method_twice_with_other_parameters(call, path):
    code, out, _ = call("evaluate", path, "--methods", "nnn:k=4,nnn:k=8,nnn:k=4")
    assert code == 0
    assert out.split("\n\nNNN(")[0].count("NNN(") == 2  # the verdict names it again


def test_transductive_methods_have_a_table_of_their_own(call, rows_of, path):
    code, out, _ = call("evaluate", path, "--methods", "is,dsl")
    assert code == 0
    first, second = out.split("\n\nIS(20) ")[0].split("These read the other test queries")
    assert "DSL" not in first
    assert "DSL" in second
    assert "IS(20)" not in second
    rows = rows_of("is,dsl")
    assert (rows["IS"]["kind"], rows["DSL"]["kind"]) == ("inductive", "transductive")


@pytest.mark.slow
def test_matrices_run_what_they_can(call, arrays, tmp_path, rows_of):
    for name, rows in (("s", "query"), ("q", "query_bank"), ("g", "gallery_bank")):
        np.save(tmp_path / f"{name}.npy", reference.dot_product(arrays[rows], arrays["gallery"]))
    files = ["--similarities", tmp_path / "s.npy", "--query-bank-similarities", tmp_path / "q.npy"]
    files += ["--gallery-bank-similarities", tmp_path / "g.npy"]
    betas = ["--beta-query", "20", "--beta-gallery", "1"]
    code, out, err = call(
        *("evaluate", *files, *betas, "--json", "--methods"),
        "all,sn:temperature=0.05,hnn:temperature=0.05,dsl:temperature=0.05",
    )
    assert code == 0, err
    found = {row["method"]: row for row in json.loads(out)["rows"]}
    assert set(found) == {
        *("raw", "IS", "DIS", "DualIS", "DualDIS", "CSLS", "NNN", "GC", "SN", "HNN", "DSL")
    }
    embedded = rows_of("all")
    for name, row in found.items():
        assert row["mean_rank"] == pytest.approx(embedded[name]["mean_rank"], abs=0.03)


@pytest.mark.slow
def test_the_command_fits_the_other_similarities(rows_of):
    euclidean = rows_of("csls,mp,ls,dissim,invgc,sn:temperature=0.1", "--similarity", "euclidean")
    cosine = rows_of("csls,mp,ls,dissim,invgc,sn:temperature=0.05")
    # Of unit rows the squared distance is 2 - 2 cosine: the same rankings.
    for name in ("CSLS", "MP", "LS", "DisSimLocal", "SN"):
        assert euclidean[name]["mean_rank"] == pytest.approx(cosine[name]["mean_rank"], abs=0.06)


REFUSED = {
    "nnn:size=3": "nnn:name=value with k, weight",
    "nnn:k": "nnn:name=value",
    "nnn:k=2.5": "a whole number above 0",
    "nnn:k=0": "a whole number above 0",
    "nnn:weight=much": "a number above 0",
    "means:k=3": "after the group means",
    "raw:k=3": "raw alone",
    "magic": "all, paper, means",
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_lists_are_refused(text, call, path):
    code, out, err = call("evaluate", path, "--methods", text)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--methods" in err
    assert REFUSED[text] in err


@pytest.mark.parametrize(
    ("text", "similarity", "words"),
    [
        ("mp", "dot", "cosine or euclidean"),
        ("dn", "euclidean", "cosine or dot"),
        ("sn", "dot", "sn:temperature=T"),
    ],
)
def test_what_cannot_run_is_refused_by_name(text, similarity, words, call, path):
    code, _, err = call("evaluate", path, "--methods", text, "--similarity", similarity)
    assert code == 2
    assert words in err


def test_matrices_too_large_are_refused_before_they_are_made(call, path, monkeypatch):
    monkeypatch.setattr(sources, "_LARGEST_MATRIX", 4 * NUM_BANK * NUM_QUERIES - 1)
    code, _, err = call("evaluate", path, "--methods", "gc")
    assert code == 2
    assert "query bank x gallery matrix" in err
