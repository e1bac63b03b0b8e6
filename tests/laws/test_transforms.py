"""jit, vmap, scan and grad through everything public, for every normalizer."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import NORMALIZERS, SHAPES, problem
from jax.test_util import check_grads
from patience import slow_but

import dbnorm_jax as dbn

all_normalizers = pytest.mark.parametrize("case", slow_but(NORMALIZERS[::3], NORMALIZERS), ids=str)


def pipeline(case, queries, gallery, query_bank, gallery_bank, betas, *, streamed):
    """Embeddings -> (scores [num_queries, num_gallery], top-3, ranks)."""
    if streamed:
        statistics = [
            dbn.stream_bank_statistics(bank, gallery, beta=beta, k=2, chunk_size=4)
            for bank, beta in ((query_bank, betas[0]), (gallery_bank, betas[1]))
        ]
    else:
        statistics = [
            dbn.bank_statistics(dbn.dot_product(bank, gallery), beta=beta, k=2)
            for bank, beta in ((query_bank, betas[0]), (gallery_bank, betas[1]))
        ]
    correction = case.fit(*statistics)
    similarities = dbn.dot_product(queries, gallery)
    scores = dbn.apply_correction(similarities, correction)
    relevant = jnp.arange(queries.shape[0]) % gallery.shape[0]
    if streamed:
        nearest = dbn.stream_top_k(queries, gallery, 3, correction, chunk_size=4)
        ranks = dbn.metrics.stream_ranks(queries, gallery, relevant, correction, chunk_size=4)
    else:
        nearest = dbn.top_k(similarities, 3, correction)
        ranks = dbn.metrics.ranks(scores, relevant)
    return scores, nearest, ranks


def arguments_of(seed, shape=SHAPES[0]):
    test = problem(seed, shape)
    arrays = (test.queries, test.gallery, test.query_bank, test.gallery_bank)
    return (*(jnp.asarray(array) for array in arrays), jnp.array([20.0, 2.0]))


@pytest.mark.slow
@all_normalizers
@pytest.mark.parametrize("streamed", [False, True])
def test_jit_equals_eager(case, streamed):
    arguments = arguments_of(0)
    eager = pipeline(case, *arguments, streamed=streamed)
    jitted = jax.jit(lambda *args: pipeline(case, *args, streamed=streamed))(*arguments)
    chex.assert_trees_all_close(jitted, eager, atol=1e-6)
    chex.assert_trees_all_equal(jitted[1].indices, eager[1].indices)


@pytest.mark.slow
@all_normalizers
@pytest.mark.parametrize("streamed", [False, True])
def test_vmap_equals_loop(case, streamed):
    batch = [arguments_of(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch)
    mapped = jax.vmap(lambda *args: pipeline(case, *args, streamed=streamed))(*stacked)
    looped = [pipeline(case, *arguments, streamed=streamed) for arguments in batch]
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped)
    chex.assert_trees_all_close(mapped, looped, atol=1e-6)
    chex.assert_trees_all_equal(mapped[1].indices, looped[1].indices)


@pytest.mark.slow
@all_normalizers
def test_leading_axes_equal_vmap(case):
    def scores(similarities, query_bank, gallery_bank):
        correction = case.fit(
            dbn.bank_statistics(query_bank, beta=20.0, k=2),
            dbn.bank_statistics(gallery_bank, beta=2.0, k=2),
        )
        gates = dbn.gates(similarities, correction)
        corrected = dbn.apply_correction(similarities, correction)
        return gates, corrected, dbn.top_k(similarities, 3, correction)

    matrices = [
        np.stack([getattr(problem(seed), name) for seed in range(3)])
        for name in ("similarities", "query_bank_similarities", "gallery_bank_similarities")
    ]
    chex.assert_trees_all_close(scores(*matrices), jax.vmap(scores)(*matrices), atol=1e-6)


@pytest.mark.slow
def test_scan_over_batches_of_queries():
    queries, gallery, bank, _, _ = arguments_of(1, SHAPES[2])
    correction = dbn.dynamic_inverted_softmax(dbn.stream_bank_statistics(bank, gallery, beta=20.0))

    def step(carry, rows):
        return carry, dbn.stream_top_k(rows, gallery, 2, correction)

    # The closed-over gallery is concrete: its values are looked at while the scan is traced.
    _, scanned = jax.lax.scan(step, None, queries.reshape(2, 2, -1))
    whole = dbn.stream_top_k(queries, gallery, 2, correction)
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf.reshape(4, 2), scanned), whole, atol=1e-6
    )


def test_abstract_inputs():
    shape = jax.eval_shape(
        lambda bank, gallery: dbn.stream_bank_statistics(bank, gallery, beta=20.0),
        jax.ShapeDtypeStruct((100, 8), jnp.bfloat16),
        jax.ShapeDtypeStruct((50, 8), jnp.bfloat16),
    )
    assert shape.bias.shape == shape.k_occurrence.shape == (50,)
    assert shape.bias.dtype == jnp.float32


# --- gradients -----------------------------------------------------------------------------------


def smooth(case, streamed):
    """A scalar that depends on everything: the scores under a fixed random weighting."""

    def function(*arguments):
        scores = pipeline(case, *arguments, streamed=streamed)[0]
        weighting = np.random.default_rng(0).normal(size=scores.shape)
        return (scores * jnp.asarray(weighting, scores.dtype)).sum()

    return function


# The dense path once: streamed gradients are compared with dense ones below.
PATHS = [
    (NORMALIZERS[0], True),
    pytest.param(NORMALIZERS[-1], True, marks=pytest.mark.slow),
    pytest.param(NORMALIZERS[-1], False, marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "streamed"), PATHS, ids=str)
def test_gradients_equal_finite_differences(case, streamed, x64):
    arguments = [jnp.asarray(array, jnp.float64) for array in arguments_of(2)]
    arguments[-1] = jnp.array([2.0, 1.0])  # moderate betas: the differences stay smooth
    check_grads(
        smooth(case, streamed),
        arguments,
        order=2,
        eps=1e-5,
        atol=1e-5,
        rtol=1e-5,
        modes=["fwd", "rev"],
    )


@all_normalizers
def test_streamed_gradients_equal_dense(case):
    arguments = arguments_of(3)
    places = tuple(range(len(arguments)))
    streamed, dense = (
        jax.grad(smooth(case, streamed), argnums=places)(*arguments) for streamed in (True, False)
    )
    chex.assert_trees_all_close(streamed, dense, atol=2e-5, rtol=2e-5)
    chex.assert_tree_all_finite(streamed)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1e-3, 1.0, 1e4])
def test_gradients_are_finite_at_masks_ties_and_large_beta(beta):
    similarities = jnp.zeros((4, 3)).at[0].set(1e3)
    where = np.array([[True, False, False]] * 4)
    where[:, 1] = [False, True, False, False]

    def loss(similarities, beta, weights):
        statistics = dbn.bank_statistics(similarities, beta=beta, where=where, weights=weights)
        empty = dbn.bank_statistics(similarities, beta=beta, where=np.zeros((4, 3), bool))
        correction = dbn.dual_dynamic_inverted_softmax(dbn.merge(statistics, empty), empty)
        return dbn.apply_correction(similarities, correction).sum()

    with jax.debug_nans(True):
        gradients = jax.grad(loss, argnums=(0, 1, 2))(
            similarities, jnp.float32(beta), jnp.array([1.0, 0.0, 2.0, 0.0])
        )
    chex.assert_tree_all_finite(gradients)


def test_masked_rows_have_no_gradient():
    arguments = arguments_of(4)

    def loss(bank, weights):
        return dbn.stream_bank_statistics(
            bank, arguments[1], beta=20.0, weights=weights, chunk_size=4
        ).bias.sum()

    weights = jnp.array([1.0, 0.0, 2.0, 1.0, 0.0, 1.0])
    gradient = jax.grad(loss)(arguments[2], weights)
    np.testing.assert_array_equal(gradient[jnp.array([1, 4])], np.zeros((2, 4)))
    assert (jnp.abs(gradient).sum(axis=1) > 0).sum() == 4


@pytest.mark.slow
def test_closed_forms():
    """d log Z / d beta is the mean under the responsibilities, its slope their variance."""
    _, gallery, bank, _, _ = arguments_of(5)
    similarities = reference.dot_product(bank, gallery)

    def log_normalizer(beta):
        return dbn.stream_bank_statistics(bank, gallery, beta=beta).log_normalizer

    slope = jax.jacfwd(log_normalizer)(jnp.float32(3))
    expected = reference.log_normalizer_beta_derivative(similarities, 3.0)
    np.testing.assert_allclose(slope, expected, atol=1e-5)
    shares = reference.responsibilities(similarities, 3.0)
    variance = (shares * similarities**2).sum(axis=0) - expected**2
    curvature = jax.jacfwd(jax.jacfwd(log_normalizer))(jnp.float32(3))
    np.testing.assert_allclose(curvature, variance, atol=1e-5)
    by_bank = jax.jacrev(
        lambda bank: dbn.stream_bank_statistics(bank, gallery, beta=3.0).log_normalizer
    )(bank)
    # The attribution: beta x responsibility x gallery vector.
    attribution = 3 * np.einsum("bg,gd->gbd", shares, np.asarray(gallery, np.float64))
    np.testing.assert_allclose(by_bank, attribution, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in NORMALIZERS if case.gated], ids=str)
def test_gates_have_no_gradient(case):
    similarities = jnp.asarray(problem(6).similarities)
    correction = case.fit(
        *(
            dbn.bank_statistics(matrix, beta=20.0)
            for matrix in (problem(6).query_bank_similarities, problem(6).gallery_bank_similarities)
        )
    )
    gradient = jax.grad(lambda s: dbn.gates(s, correction).sum())(similarities)
    np.testing.assert_array_equal(gradient, np.zeros_like(similarities))


@pytest.mark.slow
def test_no_input_is_changed():
    test = problem(7)
    arrays = [test.queries, test.gallery, test.query_bank, test.gallery_bank]
    copies = [array.copy() for array in arrays]
    for case in NORMALIZERS:
        for streamed in (False, True):
            pipeline(case, *arrays, np.array([20.0, 2.0], np.float32), streamed=streamed)
    chex.assert_trees_all_equal(arrays, copies)


def test_read_only_and_strided_inputs():
    test = problem(8)
    expected = dbn.stream_top_k(test.queries, test.gallery, 3)
    wide = np.repeat(test.queries, 2, axis=1)[:, ::2]
    fortran = np.asfortranarray(test.gallery)
    fortran.flags.writeable = False
    chex.assert_trees_all_close(dbn.stream_top_k(wide, fortran, 3), expected, atol=1e-6)


def test_gradients_by_a_gated_correction():
    """Refused by JAX, as a set has no derivative; with `allow_int`, or by the bias alone, right."""
    queries, gallery, bank, _, betas = arguments_of(0)
    statistics = dbn.stream_bank_statistics(bank, gallery, beta=betas[0], k=2)
    correction = dbn.dynamic_inverted_softmax(statistics)
    similarities = dbn.dot_product(queries, gallery)

    def loss(correction):
        return jnp.square(dbn.apply_correction(similarities, correction)).sum()

    with pytest.raises(TypeError, match=r"got bool.*allow_int"):
        jax.grad(loss)(correction)
    slopes = jax.grad(loss, allow_int=True)(correction)
    gates = dbn.gates(similarities, correction)
    assert 0 < gates.sum() < gates.size
    expected = -2 * (gates * dbn.apply_correction(similarities, correction)).sum(axis=0)[None]
    np.testing.assert_allclose(slopes.bias, expected, rtol=1e-5)
    assert slopes.active.dtype == jax.dtypes.float0
    by_bias = jax.grad(lambda bias: loss(dataclasses.replace(correction, bias=bias)))
    np.testing.assert_array_equal(by_bias(correction.bias), slopes.bias)
