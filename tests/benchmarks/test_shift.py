"""The benchmark of shifted queries and banks: its decay, its conditions and its tables."""

import contextlib
import importlib
import io
import pathlib
import re
import sys

import numpy as np
import pytest
import reference

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet, rows_relevant

pytestmark = pytest.mark.slow  # a benchmark: out of the way of the library's own tests

ROOT = pathlib.Path(__file__).parents[2]
METHODS = ("raw", "IS(20)", "DIS(20)", "DualIS(20,1)", "DualDIS(20,1)", "CSLS(10)", "NNN(128,0.75)")
CONDITIONS = (
    ("banks", ("matched", "small bank: 100", "wrong modality: exchanged")),
    ("wrong domain", ("random", "other 1: emoji names en -> fr")),
    ("perturbed queries", ("noise 1",)),
    ("stale bank", ("stale, shift 1", "fresh, shift 1")),
    (
        "stale bank of 541, shift 1, updated with 100 new queries",
        ("gamma 1", "gamma 0.1", "gamma 0.1, new gate", "new queries alone"),
    ),
)


@pytest.fixture(scope="module")
def shift():
    """The benchmark; the root is not importable under a bare `pytest`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        yield importlib.import_module("benchmarks.studies.shift")


@pytest.fixture(scope="module")
def quick(shift):
    """What the quick run prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        shift.main(["--quick"])
    return out.getvalue()


def small_set(seed=0, name="small", dim=8, gallery_bank=True):
    random = np.random.default_rng(seed)

    def rows(number):
        return reference.normalize_rows(random.normal(size=(number, dim))).astype(np.float32)

    bank = rows(24) if gallery_bank else None
    return EvaluationSet(name, rows(16), rows(16), rows(30), bank, rows_relevant(16))


# --- updates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "keep_active"), [(1.0, True), (0.1, True), (0.1, False), (0, 0)])
def test_the_old_bank_enters_with_its_weight(shift, gamma, keep_active):
    test, other = small_set(), small_set(1)
    old, new = (
        shift.fit(part.query_bank, part.gallery_bank, test.gallery) for part in (test, other)
    )
    found = shift.updated(old, new, gamma, keep_active)
    bank = np.concatenate([test.query_bank, other.query_bank])
    weights = np.repeat([gamma, 1.0], [30, 30]).astype(np.float32)
    expected = dbn.stream_bank_statistics(bank, test.gallery, beta=20.0, weights=weights)
    np.testing.assert_allclose(found.query.bias, expected.bias, atol=1e-6)
    np.testing.assert_allclose(found.query.mass, expected.mass, rtol=1e-6)
    counts = [part.query.k_occurrence for part in (old, new)]
    np.testing.assert_array_equal(
        found.query.k_occurrence, counts[0] + counts[1] if keep_active else counts[1]
    )
    assert found.gallery is old.gallery


# --- conditions ----------------------------------------------------------------------------------


def test_conditions_of_the_banks(shift):
    test, other = small_set(), small_set(1, "unlike")
    random = np.random.default_rng(0)
    found = {level: banks for _, level, *banks in shift.bank_cases(test, [other], random)}
    own = test.query_bank, test.gallery_bank
    np.testing.assert_equal(found["matched"], list(own))
    np.testing.assert_equal(found["wrong modality: exchanged"], list(own[::-1]))
    np.testing.assert_equal(found["other 1: unlike"], [other.query_bank, other.gallery_bank])
    assert [bank.shape for bank in found["random"]] == [(30, 8), (24, 8)]


def test_draws_have_the_covariance(shift):
    scales = np.array([2.0, 1.0, 0.0])
    rows = np.random.default_rng(0).normal(size=(2000, 3)) * scales + 5
    found = shift.drawn(rows, 4000, np.random.default_rng(1))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.05)
    # Made unit: for scales 2 and 1 the mean square of the first of two is 2 / (2 + 1).
    np.testing.assert_allclose((found**2).mean(axis=0), [2 / 3, 1 / 3, 0], atol=0.03)


def test_sets_of_one_name_stay_apart(shift):
    test, random = small_set(), np.random.default_rng(0)
    found = shift.bank_cases(test, [small_set(1), small_set(2)], random)
    assert [case[1] for case in found][-2:] == ["other 1: small", "other 2: small"]


def test_wrong_domains_have_the_same_dimension(shift):
    test, same, unlike = small_set(), small_set(1), small_set(2, dim=9)
    assert shift.same_dimension(test, [test, same, unlike]) == [same]


def test_equal_rows_are_counted(shift):
    test = small_set()
    assert shift.equal_rows(test, []) == 0
    test.query_bank[3], test.gallery_bank[5] = test.gallery[2], test.queries[7]
    assert shift.equal_rows(test, []) == 2


def test_stream_and_stale_bank_share_no_query(shift, monkeypatch):
    test, banks = small_set(), []
    monkeypatch.setattr(shift, "fit", lambda bank, *_: banks.append(bank))
    monkeypatch.setattr(shift, "updated", lambda *_: None)
    # Without a shift the rows can be recognized.
    levels = shift.Levels(shifts=(0.0,), streamed=(5, 999))
    found = list(shift.stale_cases(test, levels, np.random.default_rng(0)))
    assert len(found) == 2 + 2 * len(shift.UPDATES)
    stale, fresh, few, all_new = banks
    np.testing.assert_allclose(fresh, stale, atol=1e-6)
    np.testing.assert_array_equal(few, all_new[:5])
    rows = np.concatenate([stale, all_new])
    assert len(rows) == len(test.query_bank) == 30
    np.testing.assert_allclose(np.sort(rows, axis=0), np.sort(test.query_bank, axis=0), atol=1e-6)


def test_cell_over_splits(shift):
    raw = [shift.Score(np.array(hits, float), 2.0) for hits in ([0, 0, 1, 1], [0, 0, 0, 0])]
    found = [shift.Score(np.array(hits, float), 1.0) for hits in ([1, 0, 1, 1], [1, 1, 0, 0])]
    # Differences 1 0 0 0 and 1 1 0 0: means 25 and 50, deviations 50 and 57.7, 1.96 / sqrt(4).
    assert shift.cell(found, raw).split() == ["62.5", "+37.5", "±52.8", "(12.5)", "1.00"]
    assert shift.cell(found[:1], raw[:1]).split() == ["75.0", "+25.0", "±49.0", "1.00"]
    assert shift.cell(raw, raw).split() == ["25.0", "2.00"]


@pytest.mark.parametrize("missing", ["gallery_bank", "gt_indptr"])
def test_a_set_lacks_something(shift, tmp_path, missing):
    test = small_set()
    arrays = {"query": test.queries, "gallery": test.gallery, "query_bank": test.query_bank}
    if missing == "gt_indptr":
        arrays |= {"gallery_bank": test.gallery_bank, "query": test.queries[:3]}
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=missing):
        shift.main(["--set", str(tmp_path / "data.npz")])


# --- tables --------------------------------------------------------------------------------------


def cells_of(out):
    """{(family, level): {method: [R@1, ..., skewness]}} of the printed tables."""
    found = {}
    for block in out.split("\n\n"):
        family, *lines = block.strip().splitlines() or [""]
        if len(lines) < 3 or set(lines[2]) != {"-"}:
            continue
        levels = [part.strip() for part in lines[0].split("|")[1:]]
        for line in lines[3:]:
            method, *cells = line.split("|")
            for level, text in zip(levels, cells, strict=True):
                found.setdefault((family, level), {})[method.strip()] = text.split()
    return found


def test_quick_run_prints_every_condition_and_method(quick):
    found = cells_of(quick)
    expected = [(family, level) for family, levels in CONDITIONS for level in levels]
    assert list(found) == expected
    for by_method in found.values():
        assert tuple(by_method) == METHODS
        for method, numbers in by_method.items():
            assert len(numbers) == (2 if method == "raw" else 4), "no error over one split"
    assert quick.startswith("python -m benchmarks.studies.shift --quick\n")
    assert re.search(r"^\d{4}-\d\d-\d\d, .* cores, jax ", quick, re.MULTILINE)
    assert "\ninductive (0 bank rows equal test rows)\n" in quick


def test_matched_numbers_are_the_library_s(quick):
    test = emoji_names("en", "de", 0)
    query = dbn.stream_bank_statistics(test.query_bank, test.gallery, beta=20.0)
    gallery = dbn.stream_bank_statistics(test.gallery_bank, test.gallery, beta=1.0)
    near, wide = (
        dbn.stream_largest_similarities(test.query_bank, test.gallery, k=k) for k in (10, 128)
    )
    corrections = (
        None,
        dbn.inverted_softmax(query),
        dbn.dynamic_inverted_softmax(query),
        dbn.dual_inverted_softmax(query, gallery),
        dbn.dual_dynamic_inverted_softmax(query, gallery),
        dbn.baselines.csls(near),
        dbn.baselines.nearest_neighbor_normalization(wide, weight=0.75),
    )
    found = cells_of(quick)["banks", "matched"]
    hits = []
    for method, correction in zip(METHODS, corrections, strict=True):
        ranks = dbn.metrics.stream_ranks(test.queries, test.gallery, np.arange(641), correction)
        hits.append(np.asarray(ranks) <= 1)
        nearest = dbn.stream_top_k(test.queries, test.gallery, 10, correction).indices
        skewness = float(dbn.hubness.skewness(dbn.hubness.k_occurrence(nearest, 641)))
        assert found[method][0] == f"{100 * hits[-1].mean():.1f}"
        assert found[method][-1] == f"{skewness:.2f}"
        if correction is not None:
            gain = 100 * (hits[-1].mean() - hits[0].mean())
            assert found[method][1] == f"{gain:+.1f}"
    assert len({numbers[0] for numbers in found.values()}) == len(METHODS)


def test_updates_reach_only_what_has_weights_or_gates(quick):
    plain, lighter, regated, alone = (
        cells_of(quick)[CONDITIONS[-1][0], level] for level in CONDITIONS[-1][1]
    )
    for method in ("CSLS(10)", "NNN(128,0.75)"):
        assert plain[method] == lighter[method] != alone[method]
    assert lighter["IS(20)"] == regated["IS(20)"] != plain["IS(20)"]
    assert lighter["DIS(20)"] != regated["DIS(20)"]
