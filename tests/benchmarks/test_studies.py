"""The studies of tuning: their measures, and that draws are kept."""

import argparse
import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from pairs import small_set

import dbnorm_jax as dbn

pytest.importorskip("emoji")

from benchmarks.studies import (
    answers,
    demand,
    flips,
    guarantee,
    guards,
    held_out_bias,
    logged,
    mistakes,
    modalities,
    own_bias,
    pairless,
    partners,
    pieces,
    served,
)
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._src.tuning.held_out import Scores
from dbnorm_jax._src.tuning.tune import Gains


class One(NamedTuple):
    value: float


@pytest.mark.slow
def test_draws_are_kept(tmp_path, capsys):
    asked = pieces.options("Title.", ("100",), ["--draws", "1", "--cache", str(tmp_path)])
    assert isinstance(asked, argparse.Namespace)
    first = pieces.collected("a", One, lambda test, seed: One(len(test.query_bank)), asked)
    asked.seconds = -1.0
    second = pieces.collected("a", One, lambda test, seed: One(-1), asked)
    assert len(first) == 6
    assert {cell: draws[0].value for cell, draws in second.items()} == dict.fromkeys(first, 100)
    assert not pieces.collected("b", One, lambda test, seed: One(-1), asked)
    assert "stopped by --seconds after 0 draws" in capsys.readouterr().out


def test_figures_of_an_estimate():
    expected = np.array([0, 0.1, 0.3, 0.2])
    found = held_out_bias.figures(expected + np.array([0, 0.3, 0, 0]), expected, 0.3)
    np.testing.assert_allclose(found[:2], [0.1, np.sqrt(0.03)])
    np.testing.assert_allclose(found[3:], [0.3, 0.2])


def test_mutual_neighbors():
    rng = np.random.default_rng(0)
    items = rng.normal(size=(20, 8))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    order = rng.permutation(20)
    for way in ("CSLS", "raw"):
        np.testing.assert_array_equal(pairless.mutual(items[order], items, way), order)
    lone = pairless.mutual(np.ones((3, 2)), np.array([[1.0, 1.0], [-1, -1]]), "raw")
    np.testing.assert_array_equal(lone, [0, -1, -1])


def held_out_gains(gains):
    """100 queries of rank 4 under raw; candidates better for some of them, worse for others."""
    ranks = np.full((100, len(gains)), 4.0)
    for column, (better, worse) in enumerate(gains):
        ranks[:better, column] = 1
        ranks[better : better + worse, column] = 8
    return Gains.of(Scores(ranks, -np.log(ranks)))


NAMES = ["raw 1 0 0", "is 1 2 0.75", "nnn 1 0 1"]


def test_rules_of_choice():
    """Raw, one that is proven, one with the highest gain."""
    gains, groups = held_out_gains([(0, 0), (30, 0), (52, 40)]), np.arange(100)
    shares = {name: rule(gains, groups, 0, NAMES) for name, rule in guards.RULES.items()}
    assert shares["highest gain in log rank"][2] == shares["highest gain in R@1"][2] == 1
    assert shares["guard, one"][2] == 1
    assert shares["former"][1] == 1  # not led by more than its error
    assert shares["guard 0.01"][1] > 0.2
    assert shares["guard 0.01"][0] < 0.05
    noise = held_out_gains([(0, 0), (3, 2), (1, 1)])
    shares = {name: rule(noise, groups, 0, NAMES) for name, rule in guards.RULES.items()}
    assert shares["highest gain in log rank"][1] == 1
    assert shares["guard 0.01"][0] == shares["guard 0.05"][0] == shares["former"][0] == 1


def test_a_line_of_the_guarantee():
    """Two of three worlds are biased; one loses more than was guaranteed."""
    found = [
        guarantee.Outcome(True, np.array([0.02, 0.01]), np.array([0.05, 0.005])),
        guarantee.Outcome(True, np.array([-0.01, -0.1]), np.array([-0.02, 0.1])),
        guarantee.Outcome(False, np.zeros(2), np.zeros(2)),
    ]
    words = guarantee.row("hubs", found).split()
    assert words[:2] == ["hubs", "67"]
    assert words[3:] == ["67", "67", "+1.50", "+0.50", "+1.00"]


@pytest.mark.slow
@pytest.mark.parametrize("world", ["hubs", "popular"])
def test_what_the_guarantee_is_of_is_what_is_served(world):
    data = guarantee.simulated(world, 60, 0)
    data = {name: data[name] for name in ("gallery", "query_bank", "gallery_bank", "pairs")}
    choice = dbn.tuning.tune(**data)
    if choice.name == "raw":
        choice = dataclasses.replace(choice, frequency=jnp.full(len(choice.gain), 1 / 88))
    found = guarantee.served(choice, **data)
    np.testing.assert_allclose(found.bias, dbn.tuning.fit(choice, **data).bias, atol=1e-4)


def test_worlds_of_the_guarantee():
    hubs, even = (guarantee.simulated(world, 40, 0) for world in ("hubs", "even"))
    counts = [
        np.bincount((data["queries"] @ data["gallery"].T).argmax(axis=1), minlength=500)
        for data in (hubs, even)
    ]
    assert counts[0].max() > 2 * counts[1].max()
    unrelated = guarantee.simulated("unrelated", 40, 0)
    assert (unrelated["pairs"] != even["pairs"]).mean() > 0.8
    assert (unrelated["relevant"] != even["relevant"]).mean() > 0.9


def test_a_log_and_its_test_share_no_query():
    rng = np.random.default_rng(0)
    relevant = np.array([0, 2, 3, 5, 6, 8, 9, 10]), np.array([3, 1, 0, 2, 4, 5, 6, 6, 0, 1])
    queries, gallery = np.arange(14, dtype=np.float32).reshape(7, 2), rng.normal(size=(7, 2))
    whole = EvaluationSet("set", queries, gallery, queries[:1], gallery[:1], relevant)
    found = logged.logged(whole, 2, 0)
    assert found.gallery_bank is None
    log, asked = found.query_bank[:, 0] // 2, (found.queries[:, 0] // 2).astype(int)
    assert len(log) == 2
    assert len(asked) == 4
    assert not set(log) & set(asked)
    first, places = relevant
    np.testing.assert_array_equal(found.bank_pairs, places[first[log.astype(int)]])
    for row, query in enumerate(asked):
        own = found.relevant[1][found.relevant[0][row] : found.relevant[0][row + 1]]
        np.testing.assert_array_equal(own, places[first[query] : first[query + 1]])


def test_simulated_demand_asks_again():
    """Needs come as often as their popularity says, each time with their own right items."""
    queries = np.eye(20, dtype=np.float32)
    relevant = np.arange(0, 41, 2), np.arange(40) % 25
    whole = EvaluationSet("set", queries, np.eye(25, 20), queries[:1], None, relevant)
    for exponent, least, most in ((0.0, 0.04, 0.07), (1.0, 0.25, 0.31)):
        test = demand.demanded(whole, exponent, 0)
        needs = np.array([int(label) for label in test.query_labels])
        assert least < np.bincount(needs).max() / len(needs) < most
        norms = np.linalg.norm(test.queries, axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-6)
        own = (test.queries * queries[needs]).sum(axis=1)
        assert own.mean() == pytest.approx(1 / np.sqrt(1 + 0.7**2), abs=0.01)
        assert len(np.unique(test.queries.round(5), axis=0)) == len(needs)
        assert not set(map(bytes, test.query_bank)) & set(map(bytes, test.queries))
        np.testing.assert_array_equal(test.relevant[1].reshape(-1, 2)[:, 0], 2 * needs % 25)
        assert len(test.bank_pairs[0]) == len(test.query_bank) + 1


def rows_of(seed, *sizes, dim=6):
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(size, dim)) for size in sizes]
    return [(one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in rows]


def test_agreement_of_a_prediction():
    refit = np.array([0.0, 1, 2, 5])
    assert flips.agreement(refit, refit) == (1, pytest.approx(1))
    squared, rank = flips.agreement(refit + 2, refit)
    assert squared == pytest.approx(1 - 16 / 14)
    assert rank == pytest.approx(1)
    assert np.isnan(flips.agreement(refit, np.ones(4))).all()


@pytest.mark.slow
def test_the_closed_form_of_flips_is_the_refit():
    queries, gallery, query_bank, gallery_bank = rows_of(0, 50, 40, 30, 20)
    test = EvaluationSet("set", queries, gallery, query_bank, gallery_bank)
    other = flips.dbn.stream_bank_statistics(gallery_bank, gallery, beta=1.0)
    for length in (None, 0.5):
        bank = flips.changed_bank(query_bank, gallery, 20.0, np.arange(0, 30, 3), length)
        for method in flips.METHODS:
            found = flips.outcomes(test, bank, other, method)
            assert found["refit"].flips.any()
            np.testing.assert_array_equal(found["closed form"].flips, found["refit"].flips)
            np.testing.assert_allclose(found["closed form"].lost, found["refit"].lost, atol=1e-5)
            assert flips.agreement(found["second order"].flips, found["refit"].flips)[1] > 0.5


@pytest.mark.slow
def test_a_served_query_is_corrected_by_earlier_ones_only():
    similarities, bank = (np.random.default_rng(n).normal(size=(150 - 20 * n, 7)) for n in (0, 1))
    similarities, bank = similarities.astype(np.float32), bank.astype(np.float32)
    right = np.random.default_rng(2).random((150, 7)) < 0.3
    beta = 2 / bank.std(axis=1).mean()
    for way, (decay, learns, weight) in served.WAYS.items():
        before, after = served.served(similarities, bank, right, way)
        np.testing.assert_array_equal(before, right[np.arange(150), similarities.argmax(axis=1)])
        rows, weights = bank, np.ones(len(bank))
        if not decay:
            rows, weights = bank[:0], weights[:0]
        for start in (0, 50, 100):
            batch, bias = similarities[start : start + 50], np.zeros(7)
            if len(rows):
                total = weights @ np.exp(beta * rows.astype(float)) / weights.sum()
                bias = np.log(total) / beta
            expected = (batch - weight * bias).argmax(axis=1)
            own = right[np.arange(start, start + 50), expected]
            np.testing.assert_array_equal(after[start : start + 50], own)
            if learns:
                weights = np.concatenate([weights * (decay or 1), np.ones(50)])
                rows = np.concatenate([rows, batch])


@pytest.mark.slow
def test_probable_partners_are_left_out():
    bank, gallery, gallery_bank = rows_of(3, 9, 6, 4)
    similarities, others = bank @ gallery.T, bank @ gallery_bank.T
    spread = similarities.std(axis=1).mean()
    both = np.exp(8 / spread * np.concatenate([similarities, others], axis=1).astype(float))
    left = 1 - both / both.sum(axis=1, keepdims=True)
    powers = left[:, :6] * np.exp(2 / spread * similarities)
    bias = spread / 2 * np.log(powers.sum(axis=0) / left[:, :6].sum(axis=0))
    found = partners.inverted_softmax(similarities, others)
    np.testing.assert_allclose(found.bias[0], 0.25 * bias, atol=1e-4)
    without = partners.dual_bank_sinkhorn(similarities, others)
    assert without.bias.shape == (1, 6)


def test_a_mixed_gallery_and_its_bank_share_no_pair():
    queries, gallery, query_bank, gallery_bank = rows_of(4, 5, 5, 8, 9)
    pairs, relevant = np.array([8, 0, 1, 2, 3, 4, 5, 6]), (np.arange(6), np.arange(5))
    whole = EvaluationSet("set", queries, gallery, query_bank, gallery_bank, relevant, pairs)
    found = modalities.mixed(whole)
    assert len(found.gallery) == 9
    assert len(found.query_bank) == 4
    partners_of = {
        row.tobytes(): gallery_bank[pair] for row, pair in zip(query_bank, pairs, strict=True)
    }
    for row, pair in zip(found.query_bank, found.bank_pairs, strict=True):
        np.testing.assert_array_equal(found.gallery_bank[pair], partners_of[row.tobytes()])
    kept = {row.tobytes() for row in found.gallery_bank}
    for row in found.gallery[5:]:
        assert partners_of[row.tobytes()].tobytes() not in kept
    centred = modalities.centred(found, 5)
    np.testing.assert_allclose(np.linalg.norm(centred.gallery, axis=1), 1, atol=1e-6)


def test_the_area_is_the_chance_to_be_above():
    assert answers.area(np.array([1.0, 2, 3]), np.array([0.0, 2])) == pytest.approx(4.5 / 6)


def test_own_bias_counts_the_first_of_a_log():
    queries, gallery, log = rows_of(5, 3, 4, 5)
    right = np.arange(6), np.array([0, 0, 1, 3, 3])
    relevant = np.arange(4), np.zeros(3, int)
    whole = EvaluationSet("set", queries, gallery, log, None, relevant, right)
    own = own_bias.popularity(whole, 3)
    spread = (log[:3] @ gallery.T).std(axis=1).mean()
    counts = np.array([3, 2, 1, 1])
    np.testing.assert_allclose(own, -spread / 4 * np.log(counts / counts.mean()), rtol=1e-5)
    first, places = own_bias.part(whole, slice(3, 5))
    np.testing.assert_array_equal(first, [0, 1, 2])
    np.testing.assert_array_equal(places, [3, 3])


def test_figures_behind_the_thresholds_of_mistakes():
    """On a small set, from their definitions; `ahead` and the gain by counting."""
    test = small_set()
    found = mistakes.figures(test)
    similarities, bank = test.queries @ test.gallery.T, test.query_bank @ test.gallery.T
    own = np.diag(similarities)[:, None]
    assert found["ahead"] == pytest.approx((similarities > own).sum(axis=1).mean() / 29)
    spread = bank.std(axis=1).mean()
    biases = spread / 2 * np.log(np.exp(2 / spread * bank).mean(axis=0))
    hits = [
        (one.argmax(axis=1) == np.arange(30)).mean()
        for one in (similarities - biases, similarities)
    ]
    assert found["at 2"] == pytest.approx(100 * (hits[0] - hits[1]), abs=1e-3)
    apart = dataclasses.replace(test, gallery=-test.gallery, gallery_bank=-test.gallery_bank)
    other = mistakes.figures(apart)
    assert other["bank"] == pytest.approx(found["bank"])
    assert other["exchanged"] > found["exchanged"] + 0.1
