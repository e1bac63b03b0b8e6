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
    found = proof.evidence(differences, groups, 5)
    np.testing.assert_allclose(found.p_value, brute_p_values(differences, groups, 5), atol=0.0021)
    np.testing.assert_allclose(found.gain, differences.mean(axis=0))
    if not shared:
        error = differences.std(axis=0, ddof=1) / np.sqrt(40)
        np.testing.assert_allclose(found.standard_error, error)


def test_guard_takes_a_candidate_that_does_nothing():
    found = proof.evidence(np.zeros((30, 3)), np.arange(30), 0)
    assert (found.p_value == 1).all()
    assert (found.standard_error == 0).all()


def test_flips_that_reach_the_statistic_are_counted():
    """Of three equal gains, one flip in eight leaves all signs as they are."""
    found = proof.evidence(np.array([[0.0, 1.0]] * 3), np.arange(3), 0)
    np.testing.assert_allclose(found.p_value, [1, 1 / 8], atol=0.03)


def test_a_lead_must_exceed_its_error():
    noise = np.random.default_rng(0).normal(size=400)
    noise -= noise.mean()
    assert proof.leads(noise + 0.1)
    assert not proof.leads(noise + 0.01)
    assert not proof.leads(np.zeros(9))


def test_the_standard_candidate_is_preferred_among_equals():
    rng = np.random.default_rng(0)
    gains = rng.normal(1, 0.5, 200)
    columns = [0 * gains, gains, gains + rng.normal(0.001, 0.1, 200), gains + 0.5]
    differences = np.stack(columns, axis=1)
    found = proof.evidence(differences, np.arange(200), 0)

    def chosen(standard, columns):
        part = proof.Evidence(*(values[columns] for values in found))
        also = np.ones(len(columns))
        return proof.choose(part, differences[:, columns], also, level=0.05, standard=standard)

    assert chosen(1, [0, 1, 2]) == 1
    assert chosen(1, [0, 1, 3]) == 2
    assert proof.choose(found, differences, -np.ones(4), level=0.05, standard=1) == 0


def false_choices(repetitions, noise, num_queries):
    """How often a candidate is called better where none is: as correlated as real ones."""
    count = 0
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        common = noise(rng, (num_queries, 3)) @ rng.normal(size=(3, 40))
        differences = common + 0.5 * noise(rng, (num_queries, 40))
        differences[:, 0] = 0
        found = proof.evidence(differences, np.arange(num_queries), seed)
        count += bool(proof.choose(found, differences, np.ones(40), level=0.05, standard=1))
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
