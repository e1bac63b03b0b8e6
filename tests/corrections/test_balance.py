"""The four normalizers: the paper's rankings, on one scale, without overflow."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import NORMALIZERS, SHAPES, problem, statistics_of
from hypothesis import given
from hypothesis import strategies as st

import dbnorm_jax as dbn

seeds = st.integers(0, 2**32 - 1)
all_normalizers = pytest.mark.parametrize("case", NORMALIZERS, ids=str)


@all_normalizers
@given(
    seeds,
    st.sampled_from(SHAPES),
    st.sampled_from([(1.0, 1.0), (20.0, 1.0), (50.0, 200.0)]),
    st.sampled_from([1, 3]),
)
def test_equals_the_reference(case, seed, shape, betas, k):
    test = problem(seed, shape, levels=8)
    banks = (test.query_bank_similarities, test.gallery_bank_similarities)
    correction = case.fit(*statistics_of(test, *betas, k=k))
    found = dbn.apply_correction(test.similarities, correction)
    expected = case.scores(test.similarities, *banks, *betas, k)
    np.testing.assert_allclose(found, expected, atol=4e-6)


@all_normalizers
def test_the_log_domain_ranks_as_the_published_product(case):
    test = problem(1, SHAPES[2])
    banks = (test.query_bank_similarities, test.gallery_bank_similarities)
    published = {
        "inverted_softmax": lambda s, q, g: reference.published_inverted_softmax(s, q, 20.0),
        "dynamic_inverted_softmax": lambda s, q, g: reference.published_dynamic_inverted_softmax(
            s, q, 20.0, 10
        ),
        "dual_inverted_softmax": lambda s, q, g: reference.published_dual_inverted_softmax(
            s, q, g, 20.0, 2.0
        ),
        "dual_dynamic_inverted_softmax": lambda s, q, g: (
            reference.published_dual_dynamic_inverted_softmax(s, q, g, 20.0, 2.0, 10)
        ),
    }[case.name](test.similarities, *banks)
    correction = case.fit(*statistics_of(test, k=10))
    scores = dbn.apply_correction(test.similarities, correction)
    gates = np.asarray(dbn.gates(test.similarities, correction))
    # Where DualDIS has one gate open, the published product leaves the scale.
    rows = gates.all(axis=1) if case.dual else np.ones(len(gates), bool)
    assert rows.any()
    np.testing.assert_array_equal(
        np.argsort(-np.asarray(scores), axis=1)[rows], np.argsort(-published, axis=1)[rows]
    )


@all_normalizers
def test_scores_stay_on_the_scale_of_the_similarity(case):
    """Shifting all similarities by c shifts a score by c (1 - open weight), whatever the gates."""
    test = problem(2, SHAPES[2])
    shift = np.float32(0.5)

    def scores(shift):
        statistics = [
            dbn.bank_statistics(matrix + shift, beta=beta, k=2)
            for matrix, beta in (
                (test.query_bank_similarities, 20.0),
                (test.gallery_bank_similarities, 2.0),
            )
        ]
        correction = case.fit(*statistics)
        similarities = test.similarities + shift
        return dbn.apply_correction(similarities, correction), dbn.gates(similarities, correction)

    (before, gates), (after, gates_after) = scores(np.float32(0)), scores(shift)
    chex.assert_trees_all_equal(gates, gates_after)
    weights = np.array([20 / 22, 2 / 22]) if case.dual else np.array([1.0])
    expected = shift * (1 - np.asarray(gates) @ weights)
    np.testing.assert_allclose(after - before, np.tile(expected[:, None], 70), atol=2e-6)


@all_normalizers
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_large_beta_is_finite_and_ranks_right(case, scale):
    test = problem(3, SHAPES[2])
    similarities, query_bank, gallery_bank = (
        (matrix * scale).astype(np.float32)
        for matrix in (
            test.similarities,
            test.query_bank_similarities,
            test.gallery_bank_similarities,
        )
    )
    correction = case.fit(
        dbn.bank_statistics(query_bank, beta=1000.0), dbn.bank_statistics(gallery_bank, beta=1000.0)
    )
    scores = np.asarray(dbn.apply_correction(similarities, correction))
    chex.assert_tree_all_finite(scores)
    expected = case.scores(similarities, query_bank, gallery_bank, 1000.0, 1000.0, 1)
    np.testing.assert_allclose(scores, expected, atol=4e-6 * scale)


def test_a_bank_orthogonal_to_everything_changes_no_ranking():
    test = problem(4)
    statistics = dbn.bank_statistics(np.zeros((9, 7), np.float32), beta=20.0)
    correction = dbn.inverted_softmax(statistics)
    chex.assert_trees_all_close(correction.bias, jnp.zeros((1, 7)), atol=1e-6)
    assert (
        dbn.top_k(test.similarities, 7, correction).indices
        == dbn.top_k(test.similarities, 7).indices
    ).all()


@pytest.mark.parametrize("weights", [(0.75, 0.25), np.array([1, 0]), jnp.array([0.9, 0.6])])
@pytest.mark.parametrize("case", [case for case in NORMALIZERS if case.dual], ids=str)
def test_own_weights(case, weights):
    test = problem(5)
    query_statistics, gallery_statistics = statistics_of(test)
    function = getattr(dbn, case.name)
    found = function(query_statistics, gallery_statistics, weights=weights)
    expected = [
        float(weight) * np.asarray(statistics.bias)
        for weight, statistics in zip(weights, (query_statistics, gallery_statistics), strict=True)
    ]
    np.testing.assert_allclose(found.bias, expected, rtol=1e-6)


@pytest.mark.parametrize("case", [case for case in NORMALIZERS if case.dual], ids=str)
def test_published_weights_are_the_shares_of_the_betas(case):
    query_statistics, gallery_statistics = statistics_of(problem(6), 6.0, 2.0)
    found = case.fit(query_statistics, gallery_statistics)
    np.testing.assert_allclose(found.bias[0], 0.75 * query_statistics.bias, rtol=1e-6)
    np.testing.assert_allclose(found.bias[1], 0.25 * gallery_statistics.bias, rtol=1e-6)


def test_one_bank_in_float64_gives_float64(x64):
    test = problem(8)
    wide = dbn.bank_statistics(test.query_bank_similarities.astype(np.float64), beta=20.0)
    narrow = dbn.bank_statistics(test.gallery_bank_similarities, beta=jnp.float32(2))
    for function in (dbn.dual_inverted_softmax, dbn.dual_dynamic_inverted_softmax):
        assert function(wide, narrow).bias.dtype == jnp.float64
        assert function(narrow, wide).bias.dtype == jnp.float64


@pytest.mark.slow
def test_betas_and_weights_may_be_batched():
    test = problem(7)
    betas = jnp.array([1.0, 20.0, 50.0])
    query_statistics = dbn.stream_bank_statistics(test.query_bank, test.gallery, beta=betas)
    gallery_statistics = dbn.stream_bank_statistics(test.gallery_bank, test.gallery, beta=2.0)
    many = dbn.dual_dynamic_inverted_softmax(query_statistics, gallery_statistics)
    assert many.bias.shape == many.active.shape == (3, 2, 7)
    own = dbn.dual_inverted_softmax(
        gallery_statistics, gallery_statistics, weights=(jnp.array([0.1, 0.2, 0.3]), 1.0)
    )
    assert own.bias.shape == (3, 2, 7)
    for place, beta in enumerate(betas):
        one = dbn.stream_bank_statistics(test.query_bank, test.gallery, beta=beta)
        single = dbn.dual_dynamic_inverted_softmax(one, gallery_statistics)
        chex.assert_trees_all_close(many.bias[place], single.bias, atol=1e-6)
        np.testing.assert_allclose(
            own.bias[place, 0], 0.1 * (place + 1) * gallery_statistics.bias, rtol=1e-6
        )
