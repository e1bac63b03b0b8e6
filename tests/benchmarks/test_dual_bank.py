"""The study of the second bank: its rules rank as the library, and it finds what was planted."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from pairs import small_set

pytest.importorskip("emoji")

import dbnorm_jax as dbn
from benchmarks.studies import dual_bank
from benchmarks.studies.dual_bank import Asked, Banks, Draw, Rule, Term
from dbnorm_jax import baselines


@pytest.fixture(scope="module")
def test_set():
    return small_set()


def corrections(matrices, between):
    """As published, by the library."""
    query = dbn.bank_statistics(matrices["query"], beta=20.0)
    gallery = dbn.bank_statistics(matrices["gallery"], beta=1.0)
    sinkhorn = {"temperature": 0.01, "num_iterations": 10}
    largest = partial(dbn.largest_similarities, matrices["query"])
    return {
        "IS": dbn.inverted_softmax(query),
        "DIS": dbn.dynamic_inverted_softmax(query),
        "DualIS": dbn.dual_inverted_softmax(query, gallery),
        "DualDIS": dbn.dual_dynamic_inverted_softmax(query, gallery),
        "CSLS": baselines.csls(largest(k=10)),
        "NNN": baselines.nearest_neighbor_normalization(largest(k=40)),
        "SN": baselines.sinkhorn_normalization(matrices["query"], **sinkhorn),
        "DBSN": baselines.dual_bank_sinkhorn_normalization(matrices["query"], between, **sinkhorn),
    }


@pytest.mark.slow
def test_published_rules_rank_as_the_library(test_set):
    banks = Banks(test_set.gallery, test_set.query_bank, test_set.gallery_bank)
    right = np.stack([np.arange(30), np.roll(np.arange(30), 1)], axis=1)
    right[::2, 1] = -1  # one right item or two
    asked = Asked(test_set.queries @ test_set.gallery.T, right)
    relevant = (np.arange(30) == right[:, :, None]).any(axis=1)
    made = corrections(banks.matrices, test_set.query_bank @ test_set.gallery_bank.T)
    assert made.keys() == dual_bank.PUBLISHED.keys()
    for name, correction in made.items():
        scores = dbn.apply_correction(asked.similarities, correction)
        ranks = asked.ranks(banks.offsets(dual_bank.PUBLISHED[name], asked.first))
        np.testing.assert_array_equal(ranks, dbn.metrics.ranks(scores, relevant), err_msg=name)
    np.testing.assert_array_equal(asked.ranks_of(np.asarray(scores)), ranks)


def test_without_its_second_term_dualis_is_is_at_the_effective_weight(test_set):
    rule = dual_bank.first_term(dual_bank.dual(20.0, 5.0))
    assert rule == Rule((Term("query", 20.0, 0.8),))
    banks = Banks(test_set.gallery, test_set.query_bank, test_set.gallery_bank)
    bias = dbn.bank_statistics(banks.matrices["query"], beta=20.0).bias
    np.testing.assert_allclose(banks.offsets(rule, np.zeros(1, int))[0], 0.8 * bias, rtol=1e-6)


def test_every_method_has_the_same_budget():
    made = dual_bank.candidates(0.1, 0.2)
    assert [*made] == [*dual_bank.METHODS]
    assert {len({*rules}) for rules in made.values()} == {dual_bank.BUDGET}


def test_halves_share_no_row_and_never_see_the_test(test_set):
    pairs = test_set.bank_pairs.copy()
    pairs[:5] = -1  # queries without an item, and their items unpaired
    given = dataclasses.replace(test_set, bank_pairs=pairs, queries=np.full((30, 6), np.nan))
    seen = []
    for banks, asked in dual_bank.halves(given, 0):
        similarities = test_set.query_bank @ test_set.gallery.T
        rows = [
            {row.tobytes() for row in similarities} & {row[:30].tobytes() for row in part}
            for part in (banks.matrices["query"], asked.similarities)
        ]
        assert not rows[0] & rows[1]
        assert len(rows[0]) + len(rows[1]) == 35
        assert len(banks.matrices["gallery"]) == len(rows[0]) + 5
        seen.append(rows[1])
        own = np.take_along_axis(asked.similarities, asked.right, axis=1)[:, 0]
        paired = (test_set.query_bank * test_set.gallery_bank[test_set.bank_pairs]).sum(axis=1)
        assert {*own.round(4)} <= {*paired.round(4)}
    assert not seen[0] & seen[1]


def test_small_banks_beside_all_items(test_set):
    few = dual_bank.drawn(lambda _: test_set, "8", 1)
    more = dual_bank.drawn(lambda _: test_set, "8+", 1)
    assert len(few.query_bank) == len(few.gallery_bank) == len(more.query_bank) == 8
    np.testing.assert_array_equal(more.gallery_bank, test_set.gallery_bank)
    partners = more.gallery_bank[more.bank_pairs]
    assert {*map(bytes, partners)} == {*map(bytes, few.gallery_bank[few.bank_pairs])}
    assert dual_bank.drawn(lambda _: test_set, "all", 1) is test_set


@pytest.mark.slow
def test_planted_hubs_are_what_they_are_said_to_be():
    """The second bank adds ten points where it alone knows the hubs, nothing where both do."""
    rule = dual_bank.DUALS["DualIS(20, 20)"]
    for name, (least, most) in zip(dual_bank.PLANTED, ((-2, 4), (7, 15)), strict=True):
        test = dual_bank.planted(name, 0)
        banks = Banks(test.gallery, test.query_bank, test.gallery_bank)
        asked = Asked(test.queries @ test.gallery.T, np.arange(1000)[:, None])
        hits = [
            asked.ranks(banks.offsets(one, asked.first)) <= 1
            for one in (rule, dual_bank.first_term(rule))
        ]
        assert least < 100 * (hits[0].mean() - hits[1].mean()) < most, name


@pytest.mark.slow
def test_a_draw_has_every_row(test_set):
    draw = dual_bank.run_draw(test_set, 0)
    assert draw.hits.shape == (len(dual_bank.ROWS), 30)
    raw = (test_set.queries @ test_set.gallery.T).argmax(axis=1) == np.arange(30)
    np.testing.assert_array_equal(draw.hits[0], raw)
    assert len(draw.chosen) == len(dual_bank.METHODS)


def made_up(apart, seed):
    """A draw where two rows answer `apart` queries of 1000 more than all others."""
    hits = np.zeros((len(dual_bank.ROWS), 1000), bool)
    hits[:, : 500 + seed] = True
    for row in ("DualIS(20, 5)", "gallery weight 0.1"):
        hits[dual_bank.ROWS.index(row), : 500 + seed + apart] = True
    return Draw(np.arange(1000), hits, np.zeros(8, int), np.array([0.5, 0.4, 0.1 * seed]))


def test_the_report_says_what_is_equivalent(capsys):
    cells = {(f"set {n}", "all"): [made_up(10 + n % 2, n)] for n in range(4)}
    dual_bank.print_report(cells, "sets")
    out = capsys.readouterr().out
    lines = {
        line[:24].strip(): line.split()[-1]
        for line in out.splitlines()
        if line.split()[-1:] in (["equivalent"], ["different"]) or line.endswith("not shown")
    }
    assert lines["DualIS(20, 5)"] == "different"
    assert lines["DualIS(20, 1)"] == lines["DualIS, tuned"] == "equivalent"
    assert "raw, its R@1" in out
    assert "0 negative, 0 zero, 4 positive" in out
    assert "DSL" not in out  # nothing transductive
