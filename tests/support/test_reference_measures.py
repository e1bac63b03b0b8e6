"""The reference's retrieval and hubness numbers against cases worked out by hand."""

import itertools

import numpy as np
import pytest
import reference

# --- by hand: retrieval numbers -----------------------------------------------------------------


def test_top_k_takes_the_lowest_index_on_ties():
    values, indices = reference.top_k([[1.0, 3.0, 3.0, 2.0]], 3)
    np.testing.assert_array_equal(values, [[3, 3, 2]])
    np.testing.assert_array_equal(indices, [[1, 2, 3]])


@pytest.mark.parametrize(("ties", "expected"), [("average", 3), ("min", 2), ("max", 4)])
def test_ranks_with_ties(ties, expected):
    # Best right item 1 (score 5): item 0 is above, items 2 and 3 are level, item 4 is below.
    scores = [[6.0, 5.0, 5.0, 5.0, 1.0]]
    np.testing.assert_array_equal(reference.ranks(scores, [[1]], ties=ties), [expected])


def test_ranks_ignore_other_right_items_and_masked_pairs():
    scores = np.array([[5.0, 5.0, 4.0, 6.0]] * 4)
    relevant = [[0, 1], [0], [0], []]
    where = np.ones((4, 4), dtype=bool)
    where[1, 3] = False  # a wrong item above is removed
    where[2, 0] = False  # the only right item is removed
    # Query 0: item 3 above, the other right item does not count. Query 1: item 1 is level.
    np.testing.assert_array_equal(
        reference.ranks(scores, relevant, where=where), [2, 1.5, np.inf, np.inf]
    )


def test_ties_of_several_right_items_are_an_expectation():
    """By all orders of the tied."""
    scores, right = np.array([[1.0, 1.0, 1.0, 0.5, 1.0]]), [0, 4]
    first, precisions = [], []
    for order in itertools.permutations([0, 1, 2, 4]):
        places = [place for place, item in enumerate([*order, 3], 1) if item in right]
        first.append(places[0])
        precisions.append(np.mean([count / place for count, place in enumerate(places, 1)]))
    assert reference.ranks(scores, [right])[0] == pytest.approx(np.mean(first))
    assert reference.mean_average_precision(scores, [right]) == pytest.approx(np.mean(precisions))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_gain_precision_and_success_are_expectations_over_all_orders(k):
    scores = np.array([[1.0, 1.0, 1.0, 0.5, 1.0, 0.5]])
    grades = np.array([[2.0, 0.0, 0.0, 1.0, 0.0, 0.0]])
    right = np.flatnonzero(grades[0])
    discounts = 1 / np.log2(2 + np.arange(6)) * (np.arange(6) < k)
    gains, precisions, successes = [], [], []
    for first in itertools.permutations([0, 1, 2, 4]):
        for last in itertools.permutations([3, 5]):
            order = np.array([*first, *last])
            gains.append((grades[0, order] * discounts).sum())
            hits = np.isin(order[:k], right).sum()
            precisions.append(hits / k)
            successes.append(hits > 0)
    ideal = (np.sort(grades[0])[::-1] * discounts).sum()
    found = reference.normalized_discounted_cumulative_gain(scores, grades, k)
    assert found == pytest.approx(np.mean(gains) / ideal)
    assert reference.precision_at(scores, [right], k) == pytest.approx(np.mean(precisions))
    assert reference.success_at(scores, [right], k) == pytest.approx(np.mean(successes))


def test_gain_by_hand():
    scores, grades = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]], [[0, 3, 2], [0, 0, 0]]
    expected = (3 / np.log2(3) + 2 / 2) / (3 + 2 / np.log2(3))
    found = reference.normalized_discounted_cumulative_gain(scores, grades)
    assert found == pytest.approx(expected)  # the second query does not count
    where = np.array([[True, False, True], [True] * 3])
    found = reference.normalized_discounted_cumulative_gain(scores, grades, where=where)
    assert found == pytest.approx(1 / np.log2(3))


def test_constant_scores_do_not_give_rank_one():
    np.testing.assert_array_equal(reference.ranks(np.zeros((1, 5)), [[3]]), [1 + 4 / 2])


def test_numbers_leave_out_queries_without_a_right_item():
    ranks = [1, 2, np.inf, 6, 20]
    assert reference.recall_at(ranks, 1) == 1 / 4
    assert reference.recall_at(ranks, 5) == 2 / 4
    assert reference.recall_at(ranks, 10) == 3 / 4
    assert reference.geometric_mean_recall(ranks) == pytest.approx((6 / 64) ** (1 / 3))
    assert reference.median_rank(ranks) == (2 + 6) / 2
    assert reference.mean_rank(ranks) == 29 / 4
    assert reference.mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 2 + 1 / 6 + 1 / 20) / 4)


def test_mean_average_precision_of_two_queries_with_a_tie():
    scores = [[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 3.0, 1.0], [1.0, 2.0, 3.0, 4.0]]
    relevant = [[0, 2], [1], []]
    first = (1 / 1 + 2 / 3) / 2
    second = (1 / 2 + 1 / 3) / 2  # item 0 above, item 2 level
    assert reference.mean_average_precision(scores, relevant) == pytest.approx((first + second) / 2)


# --- by hand: hubness ---------------------------------------------------------------------------


def test_k_occurrence_keeps_zeros():
    np.testing.assert_array_equal(
        reference.k_occurrence([[0, 2], [2, 0], [2, 3]], 5), [2, 0, 3, 1, 0]
    )


def test_hubness_measures_of_one_hub():
    counts = [0, 0, 0, 4]  # mean 1; deviations -1, -1, -1, 3
    assert reference.skewness(counts) == pytest.approx((24 / 4) / (12 / 4) ** 1.5)
    assert reference.hub_share(counts) == 1 / 4
    assert reference.hub_share(counts, factor=4.0) == 1 / 4  # the bound itself counts
    assert reference.hub_share(counts, factor=4.5) == 0
    assert reference.hub_occurrence(counts) == 1
    assert reference.anti_hub_share(counts) == 3 / 4
    assert reference.gini(counts) == (6 * 4) / (2 * 16)  # six ordered pairs differ, by 4
    assert reference.robin_hood(counts) == (1 + 1 + 1 + 3) / (2 * 4)
    # Square roots 0, 0, 0, 2 have mean 1/2, whose square is 1/4 of the mean.
    assert reference.atkinson(counts) == pytest.approx(1 - 1 / 4)
    assert reference.atkinson(counts, epsilon=1) == 1
    assert reference.atkinson(counts, epsilon=2) == 1


def test_hubness_measures_of_unequal_positive_counts():
    counts = [1, 4, 4]
    assert reference.hub_occurrence(counts, factor=1.0) == 8 / 9
    assert reference.gini(counts) == pytest.approx((4 * 3) / (2 * 9 * 3))
    assert reference.robin_hood(counts) == pytest.approx((2 + 1 + 1) / (2 * 9))
    assert reference.atkinson(counts) == pytest.approx(1 - ((1 + 2 + 2) / 3) ** 2 / 3)
    assert reference.atkinson(counts, epsilon=1) == pytest.approx(1 - 16 ** (1 / 3) / 3)
    # Harmonic mean: 3 / (1 + 1/4 + 1/4) = 2.
    assert reference.atkinson(counts, epsilon=2) == pytest.approx(1 - 2 / 3)


@pytest.mark.parametrize("counts", [[0, 0, 0], [2, 2, 2]], ids=["zero", "constant"])
def test_hubness_measures_of_equal_counts_are_zero(counts):
    assert reference.skewness(counts) == 0
    assert reference.hub_share(counts) == 0
    assert reference.hub_occurrence(counts) == 0
    assert reference.gini(counts) == 0
    assert reference.robin_hood(counts) == 0
    for epsilon in (0.5, 1, 2):
        assert reference.atkinson(counts, epsilon) == pytest.approx(0)
    assert reference.anti_hub_share(counts) == (counts[0] == 0)
