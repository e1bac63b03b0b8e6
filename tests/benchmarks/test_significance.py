"""What benchmarks conclude: tests, errors and oracles, on simulated data whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.studies import significance
from benchmarks.studies.significance import Mean, clustered, equivalence, oracle, smallest_effect


def test_exact_mcnemar():
    assert significance.exact_mcnemar(0, 0) == 1
    assert significance.exact_mcnemar(0, 5) == 1
    assert significance.exact_mcnemar(5, 0) == pytest.approx(1 / 32)
    assert significance.exact_mcnemar(3, 1) == pytest.approx(5 / 16)


def test_holm():
    assert significance.holm([0.04, 0.5]) == 0
    assert significance.holm([0.01, 0.04, 0.5]) == 1
    assert significance.holm([0.01, 0.02, 0.04]) == 3


def test_losses_are_pooled_over_draws():
    right, wrong = np.array([True, True, False]), np.array([False, True, False])
    assert significance.loss([(right, wrong)] * 5) == pytest.approx(1 / 32)
    assert significance.loss([(wrong, right)] * 5) == 1


def test_a_query_in_several_draws_counts_once():
    rng = np.random.default_rng(1)
    queries, gains = np.arange(400), rng.normal(1, 1, 400)
    once = significance.interval_over(queries, gains)
    repeated = significance.interval_over(np.tile(queries, 9), np.tile(gains, 9))
    np.testing.assert_allclose(repeated, once)
    assert once[1] - once[0] == pytest.approx(2 * 1.96 / 20, rel=0.15)
    others = significance.interval_over(np.arange(3600), np.tile(gains, 9))
    assert others[1] - others[0] < 0.4 * (once[1] - once[0])


# --- the smallest effect --------------------------------------------------------------------------


@pytest.mark.parametrize(("num_queries", "discordance"), [(1000, 0.1), (2000, 0.02), (500, 0.3)])
def test_the_smallest_effect_is_found_in_four_of_five_samples(num_queries, discordance):
    gain = smallest_effect(num_queries, discordance) / 100
    shares = [(discordance + gain) / 2, (discordance - gain) / 2, 1 - discordance]
    better, worse, _ = np.random.default_rng(0).multinomial(num_queries, shares, 20000).T
    found = (better - worse) / np.sqrt(better + worse) > 1.96
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_too_few_queries_show_nothing():
    assert smallest_effect(10, 0.1) == math.inf
    assert smallest_effect(2, 1.0) == math.inf
    assert smallest_effect(1000, 0.0) == math.inf
    assert smallest_effect(4000, 0.1) == pytest.approx(smallest_effect(1000, 0.1) / 2, rel=0.01)


# --- errors clustered by set ----------------------------------------------------------------------


def test_clustered_errors_of_equal_sets_are_those_of_their_means():
    values = np.random.default_rng(0).normal(size=(5, 4))
    means = values.mean(axis=1)
    mean = clustered(values.ravel(), np.repeat([*"abcde"], 4))
    assert mean.value == pytest.approx(values.mean())
    assert mean.error == pytest.approx(means.std(ddof=1) / math.sqrt(5))
    assert mean.num_sets == 5
    low, high = mean.interval()
    assert (high - low) / 2 == pytest.approx(2.776 * mean.error, rel=1e-3)  # t with 4 degrees


def test_singletons_are_a_plain_standard_error():
    mean = clustered([1.0, 2.0, 6.0], range(3))
    assert (mean.value, mean.error) == pytest.approx((3, math.sqrt(7 / 3)))


def test_one_set_gives_no_error():
    mean = clustered([1.0, 2.0], ["a", "a"])
    assert math.isnan(mean.error)
    assert all(map(math.isnan, mean.interval()))
    assert equivalence(mean, 10) == 1


def test_clustered_intervals_cover_where_plain_ones_do_not():
    """Sets of unequal size whose cells have a part in common."""
    sets, rng = np.repeat(np.arange(7), [2, 2, 4, 6, 8, 8, 12]), np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        values = rng.normal(size=7)[sets] + 0.5 * rng.normal(size=len(sets))
        intervals = [clustered(values, by).interval() for by in (sets, range(len(sets)))]
        covered.append([low <= 0 <= high for low, high in intervals])
    by_set, plain = np.mean(covered, axis=0)
    assert by_set > 0.93
    assert plain < 0.65


def test_directions_of_a_set_are_one_set():
    assert significance.set_of("wordnet, reversed") == significance.set_of("wordnet") == "wordnet"
    names = ("emoji en -> de", "emoji de -> en (map reversed)", "emoji es -> it")
    assert {significance.set_of(name) for name in names} == {"emoji"}


# --- equivalence ----------------------------------------------------------------------------------


def test_equivalence_is_the_interval_of_90_percent():
    for value, error in ((0.0, 0.05), (0.1, 0.05), (-0.1, 0.04), (0.1, 0.06), (0.3, 0.01)):
        mean = Mean(value, error, 5)
        low, high = mean.interval(0.9)
        assert (equivalence(mean, 0.2) < 0.05) == (low > -0.2 and high < 0.2)


def test_equivalence_errs_in_one_of_twenty_at_the_margin():
    rng = np.random.default_rng(0)
    means = [clustered(0.2 + 0.05 * rng.normal(size=6), range(6)) for _ in range(2000)]
    said = np.mean([equivalence(mean, 0.2) < 0.05 for mean in means])
    assert said == pytest.approx(0.05, abs=0.02)
    means = [clustered(0.05 * rng.normal(size=6), range(6)) for _ in range(1000)]
    assert np.mean([equivalence(mean, 0.2) < 0.05 for mean in means]) > 0.95


def test_equivalence_without_any_spread():
    assert equivalence(clustered([0.0, 0.0], "ab"), 0.2) == 0
    assert equivalence(clustered([0.2, 0.2], "ab"), 0.2) == 1


# --- oracles --------------------------------------------------------------------------------------


def world(rng, spread, num_queries):
    """Gains of 100 candidates in {-1, 0, 1}, correlated over candidates, and what they expect."""
    loads, shifts = rng.normal(size=(100, 4)) / 2, spread * rng.normal(size=100)
    latent = loads @ rng.normal(size=(4, num_queries)) + shifts[:, None]
    latent += 0.7 * rng.normal(size=latent.shape)
    gains = (latent > 1.6).astype(float) - (latent < -1.6)
    scale = np.sqrt((loads**2).sum(axis=1) + 0.49)
    truth = stats.norm.sf((1.6 - shifts) / scale) - stats.norm.cdf((-1.6 - shifts) / scale)
    gains[0] = truth[0] = 0  # raw
    return gains, truth


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_the_debiased_oracle_is_nearer_to_the_truth(spread):
    """It lies between what its choice gains in truth, which halves estimate, and the plain one."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(16):
        gains, truth = world(rng, spread, 500)
        found = oracle(gains, num_draws=100)
        assert found.plain == pytest.approx(gains.mean(axis=1).max())
        rows.append([found.plain, found.debiased, found.halves, truth.max(), truth[found.best]])
    plain, debiased, halves, best, chosen = 100 * np.mean(rows, axis=0)
    assert plain - best > 0.5
    assert abs(debiased - best) < 0.5 * (plain - best)
    assert chosen - 0.3 < debiased
    assert chosen - 1.2 < halves < chosen + 0.3


def test_an_oracle_without_luck_is_what_it_was():
    gains = np.tile([[0.0], [1.0], [-1.0]], (1, 200))
    found = oracle(gains)
    assert found.best == 1
    assert (found.plain, found.debiased, found.halves) == pytest.approx((1, 1, 1))


def test_an_oracle_is_seeded():
    gains = np.random.default_rng(0).integers(-1, 2, (20, 101)).astype(float)
    assert oracle(gains) == oracle(gains)
    assert oracle(gains, seed=1).debiased != oracle(gains).debiased
