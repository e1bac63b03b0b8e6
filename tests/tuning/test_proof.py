"""The guard of a choice: its p-values by brute force, its errors by simulation."""

import numpy as np
import pytest

from dbnorm_jax._src.tuning import proof


def brute_p_values(differences, groups, seed):
    labels = np.unique(groups)
    sums = np.array([differences[groups == label].sum(axis=0) for label in labels])
    norm = np.sqrt((sums**2).sum(axis=0))
    statistic = sums.sum(axis=0) / norm
    signs = np.random.default_rng(seed).integers(0, 2, (proof.NUM_FLIPS, len(labels)), np.int8)
    largest = [((2.0 * row - 1) @ sums / norm).max() for row in signs]
    return [(1 + sum(top >= t - 1e-6 for top in largest)) / 1000 for t in statistic]


@pytest.mark.parametrize("shared", [False, True])
def test_guard_equals_brute_force(shared):
    rng = np.random.default_rng(0)
    differences = rng.normal(0.1, 1, (40, 7))
    groups = np.arange(40) // (2 if shared else 1)
    found = proof.evidence(differences, groups, 5, 0.05)
    np.testing.assert_allclose(found.p_value, brute_p_values(differences, groups, 5), atol=0.0021)
    np.testing.assert_allclose(found.gain, differences.mean(axis=0))
    if not shared:
        error = differences.std(axis=0, ddof=1) / np.sqrt(40)
        np.testing.assert_allclose(found.standard_error, error)


def test_guard_takes_a_candidate_that_does_nothing():
    found = proof.evidence(np.zeros((30, 3)), np.arange(30), 0, 0.05)
    assert (found.p_value == 1).all()
    assert (found.standard_error == 0).all()


def test_flips_that_reach_the_statistic_are_counted():
    """Of three equal gains, one flip in eight leaves all signs as they are."""
    found = proof.evidence(np.array([[0.0, 1.0]] * 3), np.arange(3), 0, 0.05)
    np.testing.assert_allclose(found.p_value, [1, 1 / 8], atol=0.03)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.5])
def test_what_exceeds_the_quantile_is_proven(level):
    rng = np.random.default_rng(1)
    differences = rng.normal(0.1, 1, (60, 40))
    found = proof.evidence(differences, np.arange(60), 0, level)
    statistic = differences.sum(axis=0) / np.sqrt((differences**2).sum(axis=0))
    np.testing.assert_array_equal(found.p_value <= level, statistic > found.quantile + 1e-6)


def shared(gains, also=None, level=0.05):
    groups = np.arange(len(gains))
    found = proof.evidence(gains, groups, 0, level)
    also = (gains, gains) if also is None else also
    return proof.frequencies(found, gains, *also, groups, level=level, seed=0)


def test_candidates_are_mixed_as_often_as_they_are_best():
    rng = np.random.default_rng(0)
    gains = rng.normal(1, 0.5, (200, 1)) * [0, 1, 1, 0.2] + 0.1 * rng.normal(size=(200, 4))
    gains[:, 0] = 0
    share = shared(gains)
    assert share.sum() == pytest.approx(1)
    assert share[0] == share[3] == 0
    assert 0.05 <= share[1] == pytest.approx(1 - share[2])
    gains[:, 2] += 0.2
    np.testing.assert_allclose(shared(gains), [0, 0, 1, 0])


def test_raw_keeps_its_share_and_shrinks_the_rest():
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(100, 1))
    noise = (noise - noise.mean()) / noise.std()
    share = shared((noise + 0.22) * [0.0, 1.0])  # a statistic that half of the bootstraps reach
    assert 0.2 < share[0] < 0.8
    assert share[1] == pytest.approx(1 - share[0])


def test_nothing_is_mixed_where_the_proof_fails_or_another_measure_loses():
    rng = np.random.default_rng(0)
    gains = rng.normal(size=(200, 1)) * [0, 1, 1]
    np.testing.assert_array_equal(shared(gains), [1, 0, 0])
    gains[:, 1:] += 1
    np.testing.assert_array_equal(shared(gains, (-gains, gains)), [1, 0, 0])
    np.testing.assert_array_equal(shared(gains, (gains, gains * [0, 1, -1])), [0, 1, 0])
    np.testing.assert_array_equal(shared(gains, (gains * [0, -1, 1], gains)), [0, 0, 1])


def test_rare_candidates_are_dropped_but_for_the_best():
    rng = np.random.default_rng(0)
    common = rng.normal(2, 1, (300, 1))
    gains = np.concatenate([np.zeros((300, 1)), common + rng.normal(size=(300, 60))], axis=1)
    share = shared(gains)
    assert share.sum() == pytest.approx(1)
    assert share[0] == 0
    assert (share[share > 0] >= 0.05).all()


@pytest.mark.parametrize(
    ("degrees", "expected"), [(5, 2.0150), (10, 1.8125), (29, 1.6991), (1e6, 1.6449)]
)
def test_quantiles_of_students_t(degrees, expected):
    assert proof.students_t(0.95, degrees) == pytest.approx(expected, rel=0.003)


def test_a_limit_counts_one_more_query_that_loses_all():
    gains = np.array([1.0, 0, 0, 1, -1, 0, 0, 1, 1, 0])
    with_loss = np.append(gains, -1)
    error = with_loss.std(ddof=1) / np.sqrt(11)
    expected = with_loss.mean() - proof.students_t(0.95, 10) * error
    assert proof.lower_limit(gains, np.arange(10)) == pytest.approx(expected)
    assert proof.lower_limit(np.zeros(300), np.arange(300)) == pytest.approx(-2.6 / 300, rel=0.1)


def test_a_limit_is_of_groups():
    """Queries that are alike count once, and a group of many is worth no more."""
    gains = np.random.default_rng(0).normal(0.2, 0.4, 60)
    alone = proof.lower_limit(gains, np.arange(60))
    doubled = proof.lower_limit(np.repeat(gains, 2), np.repeat(np.arange(60), 2))
    assert doubled == pytest.approx(alone, abs=0.02)
    assert proof.lower_limit(np.repeat(gains, 2), np.arange(120)) > doubled + 0.01
    uneven = np.append(np.zeros(60, int), np.arange(1, 61))
    values = np.append(np.full(60, 0.5), gains)
    assert proof.lower_limit(values, uneven) < proof.lower_limit(values, np.arange(120)) - 0.05


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_limits_cover(share):
    """Few queries change; and many."""
    rng = np.random.default_rng(1)
    p = [0.5 * share, 1 - share, 0.5 * share]
    draws = rng.choice([-1.0, 0, 1], (400, 100), p=p)
    above = [proof.lower_limit(row, np.arange(100)) > 0 for row in draws]
    assert np.mean(above) <= 0.07


def false_choices(repetitions, noise, num_queries):
    """How often a candidate is called better where none is: as correlated as real ones."""
    count = 0
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        common = noise(rng, (num_queries, 3)) @ rng.normal(size=(3, 40))
        differences = common + 0.5 * noise(rng, (num_queries, 40))
        differences[:, 0] = 0
        groups = np.arange(num_queries)
        found = proof.evidence(differences, groups, seed, 0.05)
        also = np.ones(differences.shape), np.ones(differences.shape)
        share = proof.frequencies(found, differences, *also, groups, level=0.05, seed=seed)
        count += share[0] < 1
    return count / repetitions


def normal(rng, shape):
    return rng.normal(size=shape)


def rare(rng, shape):
    """Most queries are not moved; losses and gains as likely."""
    return rng.choice([-1, 0, 1], shape, p=[0.1, 0.8, 0.1])


def skewed(rng, shape):
    """Rare large losses, many small gains."""
    return 1 - rng.exponential(size=shape)


def test_guard_error_rate():
    assert false_choices(100, normal, 60) <= 0.12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "num_queries", "most"),
    [(normal, 30, 0.065), (normal, 300, 0.065), (rare, 60, 0.065), (skewed, 100, 0.15)],
)
def test_guard_error_rate_at_length(noise, num_queries, most):
    assert false_choices(1500, noise, num_queries) <= most
