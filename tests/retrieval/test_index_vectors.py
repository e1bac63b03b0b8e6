"""Corrected scores as plain inner products, against NumPy and against the searches they replace."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import SHAPES, SIMILARITY_FNS, problem, statistics_of
from differences import check_slope
from hypothesis import given
from hypothesis import strategies as st

import dbnorm_jax as dbn

seeds = st.integers(0, 2**16)
term_counts = st.sampled_from([1, 2])
similarity_fns = pytest.mark.parametrize("similarity_fn", SIMILARITY_FNS, ids=lambda f: f.__name__)
SHAPE = SHAPES[0]


def correction_of(seed, num_terms, num_gallery=SHAPE[1]):
    """Random biases, some far from 0, and random activation sets."""
    random = np.random.default_rng(seed)
    bias = random.normal(size=(num_terms, num_gallery)) + random.normal(size=(num_terms, 1))
    active = random.random((num_terms, num_gallery)) < 0.5
    return dbn.Correction(jnp.asarray(bias, jnp.float32), jnp.asarray(active))


def corrected(similarities, correction, gates):
    """[num_queries, num_gallery] float64."""
    bias, gates = (np.asarray(array, np.float64) for array in (correction.bias, gates))
    return similarities - sum(
        gates[:, term, None] * bias[term] for term in range(correction.num_terms)
    )


def products(queries, gallery):
    return np.asarray(queries, np.float64) @ np.asarray(gallery, np.float64).T


def exact_top(scores, k):
    """[num_queries, k], what an exact engine returns."""
    return np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]


@similarity_fns
@given(seed=seeds, num_terms=term_counts)
def test_inner_products_are_the_corrected_scores(similarity_fn, seed, num_terms):
    """Without centering as they are, with it up to the constants that the docstring states."""
    test, correction = problem(seed, SHAPE), correction_of(seed, num_terms)
    gates = np.random.default_rng(seed).random((SHAPE[0], num_terms)).astype(np.float32)
    similarities = SIMILARITY_FNS[similarity_fn](test.queries, test.gallery)
    expected = corrected(similarities, correction, gates)
    plain, centered = (
        products(
            *dbn.inner_product_vectors(
                test.queries,
                test.gallery,
                correction,
                gates=gates,
                similarity_fn=similarity_fn,
                center=center,
            )
        )
        for center in (False, True)
    )
    constant = gates.astype(np.float64) @ np.asarray(correction.bias, np.float64).mean(axis=1)
    if similarity_fn is dbn.negative_squared_euclidean:
        plain -= (test.queries.astype(np.float64) ** 2).sum(axis=1)[:, None]
        centered -= (test.queries.astype(np.float64) ** 2).sum(axis=1)[:, None]
        constant += (test.gallery.astype(np.float64) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(plain, expected, atol=3e-6)
    np.testing.assert_allclose(centered, expected + constant[:, None], atol=3e-6)


@similarity_fns
@given(seed=seeds, num_terms=term_counts)
def test_cosines_are_the_same_scores(similarity_fn, seed, num_terms):
    test, correction = problem(seed, SHAPE), correction_of(seed, num_terms)
    gates = np.ones(num_terms, np.float32)
    options = {"gates": gates, "similarity_fn": similarity_fn}
    scores = products(*dbn.inner_product_vectors(test.queries, test.gallery, correction, **options))
    queries, gallery = dbn.inner_product_vectors(
        test.queries, test.gallery, correction, metric="cosine", **options
    )
    lengths = np.linalg.norm(np.asarray(gallery, np.float64), axis=1)
    np.testing.assert_allclose(lengths, lengths.max(), rtol=1e-6)
    factor = lengths.max() * np.linalg.norm(np.asarray(queries, np.float64), axis=1)
    cosines = reference.cosine_similarity(np.asarray(queries), np.asarray(gallery))
    np.testing.assert_allclose(cosines * factor[:, None], scores, atol=1e-5)


@pytest.mark.parametrize(
    ("similarity_fn", "metric"),
    [
        (dbn.dot_product, "inner_product"),
        (dbn.cosine_similarity, "cosine"),
        pytest.param(dbn.negative_squared_euclidean, "cosine", marks=pytest.mark.slow),
    ],
)
def test_two_searches_of_one_index_equal_stream_top_k(similarity_fn, metric):
    test, correction = problem(3, SHAPES[2]), correction_of(3, 2, SHAPES[2][1])
    options = {"similarity_fn": similarity_fn, "metric": metric}
    indexed = dbn.inner_product_gallery(test.gallery, correction, **options)

    def search(gates, k):
        queries = dbn.inner_product_queries(test.queries, gates, **options)
        return exact_top(products(queries, indexed), k)

    raw = search(np.zeros(correction.num_terms, np.float32), 1)[:, 0]
    gates = dbn.gates_from_top_1(raw, correction)
    similarities = SIMILARITY_FNS[similarity_fn](test.queries, test.gallery)
    for term, active in enumerate(correction.active):
        expected = reference.argmax_gate(similarities, np.asarray(active))
        np.testing.assert_array_equal(gates[:, term], expected)
    nearest = dbn.stream_top_k(
        test.queries, test.gallery, 10, correction, similarity_fn=similarity_fn
    )
    scores = corrected(similarities, correction, gates)
    found = np.take_along_axis(scores, search(gates, 10), axis=1)
    expected = np.take_along_axis(scores, np.asarray(nearest.indices), axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-6)  # what is level may change places


@similarity_fns
@given(seed=seeds, shift=st.floats(-2, 2, width=32))
def test_a_shift_is_added_to_the_columns_of_the_bias(similarity_fn, seed, shift):
    """And a score of a query moves by its gates' sum of it: no rank changes."""
    test, correction = problem(seed, SHAPE), correction_of(seed, 2)
    options = {"similarity_fn": similarity_fn, "gates": np.ones(2, np.float32)}
    queries, plain = dbn.inner_product_vectors(test.queries, test.gallery, correction, **options)
    _, moved = dbn.inner_product_vectors(
        test.queries, test.gallery, correction, shift=np.float32(shift), **options
    )
    expected = np.array(plain, np.float64)
    expected[:, test.gallery.shape[1] :][:, :2] += shift
    np.testing.assert_allclose(moved, expected, atol=3e-6)
    np.testing.assert_allclose(
        products(queries, moved), products(queries, plain) + 2 * shift, atol=3e-5
    )


@given(seed=seeds, constant=st.floats(-50, 50))
def test_a_constant_in_the_bias_changes_nothing(seed, constant):
    test, correction = problem(seed, SHAPE), correction_of(seed, 1)
    moved = dbn.Correction(correction.bias + np.float32(constant), None)
    vectors, same = (dbn.inner_product_gallery(test.gallery, one) for one in (correction, moved))
    np.testing.assert_allclose(vectors, same, atol=2e-5)
    np.testing.assert_allclose(np.mean(vectors[:, -1]), 0, atol=1e-6)


def test_centering_keeps_recall_in_few_bits():
    """bfloat16 keeps 8 bits: of a large common offset they keep little else."""
    random = np.random.default_rng(0)
    gallery, queries, bank = random.normal(size=(3, 300, 16)).astype(np.float32) / 4
    # The normalizer as released: a sum over the bank, not a mean.
    log_normalizer = reference.log_normalizer(products(bank, gallery), 0.5)
    correction = dbn.Correction(jnp.asarray(log_normalizer[None] / 0.5, jnp.float32), None)
    expected = exact_top(corrected(products(queries, gallery), correction, np.ones((300, 1))), 10)
    recall = {}
    for center in (False, True):
        vectors = dbn.inner_product_gallery(gallery, correction, center=center)
        stored = vectors.astype(jnp.bfloat16).astype(jnp.float32)
        found = exact_top(products(dbn.inner_product_queries(queries, [1.0]), stored), 10)
        kept = [np.isin(row, best).mean() for row, best in zip(found, expected, strict=True)]
        recall[center] = np.mean(kept)
    assert recall[True] > 0.97
    assert recall[False] < recall[True] - 0.05


@pytest.mark.parametrize("similarity_fn", [dbn.negative_squared_euclidean])
def test_parts_of_a_gallery_with_one_mean_and_length(similarity_fn):
    test = problem(1, SHAPES[2])
    correction = dbn.dual_inverted_softmax(*statistics_of(test))
    centered = dbn.Correction(correction.bias - correction.bias.mean(axis=1, keepdims=True), None)
    options = {"similarity_fn": similarity_fn, "center": False, "metric": "cosine"}
    whole = dbn.inner_product_gallery(test.gallery, centered, **options)
    length = float(jnp.linalg.norm(whole, axis=1).max())
    parts = [
        dbn.inner_product_gallery(
            test.gallery[rows],
            dbn.Correction(centered.bias[:, rows], None),
            **options,
            length=length,
        )
        for rows in (slice(0, 35), slice(35, 70))
    ]
    # The root of a rounded difference: the last column feels it, lengths do not.
    np.testing.assert_allclose(jnp.concatenate(parts)[:, :-1], whole[:, :-1], atol=1e-6)
    np.testing.assert_allclose(jnp.concatenate(parts)[:, -1], whole[:, -1], atol=2e-3)


def vectors_of(queries, gallery, bias, gates, similarity_fn, metric):
    return dbn.inner_product_vectors(
        queries,
        gallery,
        dbn.Correction(bias, None),
        gates=gates,
        similarity_fn=similarity_fn,
        metric=metric,
    )


def arguments_of(seed, dtype=np.float32):
    test = problem(seed)
    random = np.random.default_rng(seed)
    arrays = (test.queries, test.gallery, random.normal(size=(2, 7)), random.random((5, 2)))
    return [jnp.asarray(array, dtype) for array in arrays]


@similarity_fns
def test_jit_and_vmap(similarity_fn):
    batch = [arguments_of(seed) for seed in range(3)]
    stacked = [jnp.stack(leaves) for leaves in zip(*batch, strict=True)]

    def function(*arrays):
        return vectors_of(*arrays, similarity_fn, "cosine")

    looped = [function(*arguments) for arguments in batch]
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped)
    chex.assert_trees_all_close(jax.vmap(function)(*stacked), looped, atol=1e-5)
    chex.assert_trees_all_close(jax.jit(jax.vmap(function))(*stacked), looped, atol=1e-5)


@pytest.mark.parametrize(
    ("similarity_fn", "metric"),
    [
        pytest.param(dbn.dot_product, "inner_product", marks=pytest.mark.slow),
        (dbn.cosine_similarity, "cosine"),
        pytest.param(dbn.negative_squared_euclidean, "cosine", marks=pytest.mark.slow),
    ],
)
def test_gradients(similarity_fn, metric, x64):
    arguments = arguments_of(2, np.float64)
    weights = np.random.default_rng(3).normal(size=(5, 7))

    def loss(*arrays):
        queries, gallery = vectors_of(*arrays, similarity_fn, metric)
        # The longest vector has a last component of 0, where the root has no slope.
        return (weights * (queries @ gallery.T)).sum() + (gallery[:, :-1] ** 3).sum()

    check_slope(loss, arguments)
    gradients = jax.grad(
        lambda *arrays: vectors_of(*arrays, similarity_fn, metric)[1].sum(), argnums=(1, 2)
    )(*arguments)
    chex.assert_tree_all_finite(gradients)


def test_dtypes(x64):
    queries, gallery, bias, gates = arguments_of(4)
    wide = arguments_of(4, np.float64)
    for narrow in (jnp.bfloat16, jnp.float16):
        found = vectors_of(
            queries.astype(narrow), gallery.astype(narrow), bias, gates, dbn.dot_product, "cosine"
        )
        assert {array.dtype for array in found} == {jnp.dtype(jnp.float32)}
    found = vectors_of(*wide, dbn.negative_squared_euclidean, "cosine")
    assert {array.dtype for array in found} == {jnp.dtype(jnp.float64)}


def test_gates_may_be_one_row_for_all():
    queries, _, _, _ = arguments_of(5)
    row = np.array([1.0, 0.5], np.float32)
    same = dbn.inner_product_queries(queries, np.tile(row, (5, 1)))
    np.testing.assert_array_equal(dbn.inner_product_queries(queries, row), same)


def test_gates_of_soft_activation_and_of_none():
    bias = jnp.zeros((2, 3))
    soft = dbn.Correction(bias, jnp.array([[0.25, 0.5, 1.0], [0.0, 0.125, 0.75]]))
    np.testing.assert_array_equal(
        dbn.gates_from_top_1(np.array([2, 0], np.uint8), soft), [[1.0, 0.75], [0.25, 0.0]]
    )
    always = dbn.gates_from_top_1([1, 1, 0], dbn.Correction(bias, None))
    np.testing.assert_array_equal(always, np.ones((3, 2)))
