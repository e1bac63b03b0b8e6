"""Attribution against brute force: every bank item left out, every share computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import CHUNK_SIZES, SHAPES, SIMILARITY_FNS, problem
from patience import slow_but
from tracing import largest_intermediate

import dbnorm_jax as dbn
from dbnorm_jax import attribution

BETA = 8.0


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES[1:2])
@pytest.mark.parametrize("weighted", [False, True])
def test_contributors_equal_brute_force(chunk_size, weighted):
    test = problem(0, SHAPES[2])
    weights = np.array([1, 0, 2, 1, 1, 3, 1, 0, 1, 1, 1], np.float32) if weighted else None
    statistics = dbn.stream_bank_statistics(
        test.query_bank, test.gallery, beta=BETA, weights=weights
    )
    items = np.array([69, 0, 7, 7], np.int32)
    found = attribution.bias_contributors(
        test.query_bank,
        test.gallery,
        statistics,
        items,
        k=3,
        weights=weights,
        chunk_size=chunk_size,
    )
    shares = reference.responsibilities(test.query_bank_similarities, BETA, weights)[:, items].T
    order = np.argsort(-shares, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.indices, order)
    expected = np.take_along_axis(shares, order, axis=1)
    np.testing.assert_allclose(found.responsibilities, expected, atol=1e-5)
    np.testing.assert_allclose(found.effective_number, 1 / (shares**2).sum(axis=1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fn", list(SIMILARITY_FNS)[1:], ids=lambda fn: fn.__name__)
def test_contributors_leave_out_own_copies(fn):
    gallery = problem(1).gallery
    exclude = np.arange(len(gallery))
    several = np.stack([exclude, (exclude + 1) % 7, 0 * exclude - 1], axis=1)
    statistics = dbn.stream_bank_statistics(
        gallery, gallery, beta=BETA, exclude=several, similarity_fn=fn
    )
    found = attribution.bias_contributors(
        gallery, gallery, statistics, exclude, k=7, exclude=several, similarity_fn=fn
    )
    np.testing.assert_allclose(found.responsibilities.sum(axis=1), 1, atol=1e-5)
    for left_out in (exclude, (exclude - 1) % 7):
        assert not (found.indices[:, :5] == left_out[:, None]).any()
    assert not found.responsibilities[:, 5:].any()
    options = {"exclude": exclude, "similarity_fn": fn}
    statistics = dbn.stream_bank_statistics(gallery, gallery, beta=BETA, **options)
    found = attribution.bias_contributors(gallery, gallery, statistics, exclude, k=7, **options)
    np.testing.assert_allclose(found.responsibilities.sum(axis=1), 1, atol=1e-5)
    assert not (found.indices[:, :6] == exclude[:, None]).any()
    assert not found.responsibilities[:, 6].any()


def test_contributors_at_the_ends():
    bank, gallery = np.ones((4, 2), np.float32), np.ones((3, 2), np.float32)
    even = dbn.stream_bank_statistics(bank, gallery, beta=1e4)
    found = attribution.bias_contributors(bank, gallery, even, [1], k=1)
    np.testing.assert_allclose(found.effective_number, 4, rtol=1e-5)
    none = np.zeros(4, np.float32)
    empty = dbn.stream_bank_statistics(bank, gallery, beta=1.0, weights=none)
    found = attribution.bias_contributors(bank, gallery, empty, [1], k=2, weights=none)
    assert not found.effective_number.any()
    assert not found.responsibilities.any()


@pytest.mark.parametrize("gated", [False, True])
def test_top_1_changes_equal_brute_force(gated):
    test = problem(2, (40, 30, 20, 10))
    statistics = [
        dbn.stream_bank_statistics(bank, test.gallery, beta=beta)
        for bank, beta in ((test.query_bank, BETA), (test.gallery_bank, 2.0))
    ]
    fit = dbn.dual_dynamic_inverted_softmax if gated else dbn.dual_inverted_softmax
    correction = fit(*statistics)
    changes = attribution.top_1_changes(test.queries, test.gallery, correction, chunk_size=16)
    similarities = test.similarities
    gates = dbn.gates(similarities, correction)
    scores = np.asarray(dbn.apply_correction(similarities, correction))
    old, new = similarities.argmax(axis=1), scores.argmax(axis=1)
    np.testing.assert_array_equal(changes.old, old)
    np.testing.assert_array_equal(changes.new, new)
    np.testing.assert_array_equal(changes.changed, old != new)
    assert 0 < (old != new).sum() < len(old)
    rows = np.arange(len(old))
    lost = similarities[rows, old] - similarities[rows, new]
    np.testing.assert_allclose(changes.similarity_lost, lost, atol=1e-6)
    removed = gates * (correction.bias[:, old] - correction.bias[:, new]).T
    np.testing.assert_allclose(changes.bias_removed, removed, atol=1e-6)
    margin = changes.bias_removed.sum(axis=1) - changes.similarity_lost
    assert (margin >= -1e-6).all()


def recall(test, relevant, rows, beta, weights, *, k, weight=1.0, offsets=0.0):
    """R@1 of IS or, with k, DIS under some rows of the bank."""
    matrix = test.query_bank_similarities[rows]
    bias = weight * reference.bias(matrix, beta, weights[rows])
    scores = reference.dot_product(test.queries, test.gallery)
    gate = np.ones(len(scores))
    if k:
        active = reference.bank_k_occurrence(matrix, k, weights[rows]) > 0
        gate = reference.argmax_gate(scores, active)
    scores = scores - gate[:, None] * bias - offsets
    return reference.recall_at(reference.ranks(scores, relevant[:, None]), 1)


@pytest.mark.parametrize(
    ("k", "weighted"), slow_but([(2, True)], [(0, False), (1, False), (2, True)])
)
def test_influence_equals_leaving_out(k, weighted):
    for beta in (2.0, 60.0):
        check_influence(beta, k, weighted)


def check_influence(beta, k, weighted):
    test = problem(3, (40, 30, 20, 1))
    relevant = np.argsort(-test.similarities, axis=1)[np.arange(40), np.arange(40) % 3]
    weights = np.arange(20) % 3 if weighted else np.ones(20)
    weights = weights.astype(np.float32)
    offsets = np.linspace(0, 0.1, 30, dtype=np.float32)
    options = {"weights": weights} if weighted else {}
    statistics = dbn.stream_bank_statistics(
        test.query_bank, test.gallery, beta=beta, k=k, **options
    )
    items = np.array([19, 0, 3, 4, 5, 6, 7, 8, 9, 10, 11], np.int32)
    found = attribution.influence(
        queries=test.queries,
        gallery=test.gallery,
        relevant=relevant,
        bank=test.query_bank,
        statistics=statistics,
        items=items,
        gated=k > 0,
        weight=0.7,
        offsets=offsets,
        chunk_size=7,
        **options,
    )
    extra = {"k": k, "weight": 0.7, "offsets": offsets}
    whole = recall(test, relevant, np.arange(20), beta, weights, **extra)
    expected = [
        whole - recall(test, relevant, np.delete(np.arange(20), item), beta, weights, **extra)
        for item in items
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.any(found)


@pytest.mark.slow
def test_influence_of_the_only_item():
    """Without it the bank is empty, and an empty column has bias 0."""
    gallery = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    bank, query = jnp.array([[1.0, 0.0]]), jnp.array([[0.8, 0.7]])
    statistics = dbn.stream_bank_statistics(bank, gallery, beta=1e3)
    found = attribution.influence(
        queries=query, gallery=gallery, relevant=[1], bank=bank, statistics=statistics
    )
    np.testing.assert_array_equal(found, [1.0])


@pytest.mark.slow
def test_memory_is_one_tile():
    rows, statistics_of = jnp.ones((3000, 4)), dbn.stream_bank_statistics
    statistics = statistics_of(rows, rows, beta=1.0)
    relevant = jnp.zeros(3000, jnp.int32)
    options = {"chunk_size": 64}

    def influence(rows):
        return attribution.influence(
            queries=rows,
            gallery=rows,
            relevant=relevant,
            bank=rows,
            statistics=statistics,
            **options,
        )

    def contributors(rows):
        return attribution.bias_contributors(rows, rows, statistics, relevant, **options)

    for function in (influence, contributors):
        assert largest_intermediate(function, rows) <= 3000 * 3000 / 10
    assert jax.eval_shape(influence, rows).shape == (3000,)


def test_errors():
    rows = np.ones((3, 2), np.float32)
    statistics = dbn.stream_bank_statistics(rows, rows, beta=1.0, k=0)
    explain = attribution.bias_contributors
    with pytest.raises(ValueError, match="`items` must hold gallery rows"):
        explain(rows, rows, statistics, [3])
    with pytest.raises(ValueError, match="`k` must be between 1 and 3"):
        explain(rows, rows, statistics, [0], k=4)
    with pytest.raises(ValueError, match="`statistics` has 3 gallery items"):
        explain(rows, rows[:2], statistics, [0], k=1)
    several = dbn.stream_bank_statistics(rows, rows, beta=np.ones(2))
    with pytest.raises(ValueError, match=r"must have fields \[num_gallery\]"):
        explain(rows, rows, several, [0], k=1)
    for weights in (np.ones(1), np.ones((2, 3)), np.ones((3, 1))):
        with pytest.raises(ValueError, match="`weights`"):
            explain(rows, rows, statistics, [0], k=1, weights=weights)
    with pytest.raises(ValueError, match="activation set when `gated`"):
        attribution.influence(
            queries=rows,
            gallery=rows,
            relevant=[0, 1, 2],
            bank=rows,
            statistics=statistics,
            gated=True,
        )
    with pytest.raises(ValueError, match="`offsets` has 2 gallery items"):
        attribution.influence(
            queries=rows,
            gallery=rows,
            relevant=[0, 1, 2],
            bank=rows,
            statistics=statistics,
            offsets=np.zeros(2),
        )
