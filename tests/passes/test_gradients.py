"""Derivatives of the streamed functions: closed forms, differences, the ends, and memory.

`test_transforms` holds those of every normalizer, streamed and dense, against each other.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import SHAPES, problem
from differences import check_slope
from tracing import largest_intermediate

import dbnorm_jax as dbn

BETA = 5.0
WEIGHTS = np.array([1.0, 0.5, 2.0, 1.0, 3.0, 1.0])


def arrays_of(seed, dtype=jnp.float32):
    test = problem(seed)
    arrays = (test.queries, test.gallery, test.query_bank, test.gallery_bank)
    return [jnp.asarray(array, dtype) for array in arrays]


def log_normalizer(bank, gallery, beta, weights):
    return dbn.stream_bank_statistics(
        bank, gallery, beta=beta, weights=weights, k=0, chunk_size=4
    ).log_normalizer


@pytest.mark.slow
def test_closed_forms(x64):
    """By everything at once, in float64: responsibilities p, and what they average."""
    _, gallery, bank, _ = arrays_of(0, jnp.float64)
    arguments = (bank, gallery, jnp.float64(BETA), jnp.asarray(WEIGHTS))
    similarities = reference.dot_product(bank, gallery)
    shares = reference.responsibilities(similarities, BETA, WEIGHTS)
    mean = (shares * similarities).sum(axis=0)
    by_bank, by_gallery, by_beta, by_weights = jax.jacrev(log_normalizer, argnums=(0, 1, 2, 3))(
        *arguments
    )
    expected = BETA * np.einsum("bg,gd->gbd", shares, gallery)
    np.testing.assert_allclose(by_bank, expected, atol=1e-12)
    centers = BETA * shares.T @ np.asarray(bank)  # the mean bank vector, item by item
    diagonal = by_gallery[np.arange(7), np.arange(7)]
    np.testing.assert_allclose(diagonal, centers, atol=1e-12)
    np.testing.assert_allclose(by_gallery.sum(axis=1), centers, atol=1e-12)
    np.testing.assert_allclose(by_beta, mean, atol=1e-12)
    np.testing.assert_allclose(by_weights, (shares / WEIGHTS[:, None]).T, atol=1e-12)
    forward = jax.jacfwd(log_normalizer, argnums=(0, 1, 2, 3))(*arguments)
    chex.assert_trees_all_close(forward, (by_bank, by_gallery, by_beta, by_weights), atol=1e-12)


def test_the_slope_of_the_bias_is_an_entropy(x64):
    """d bias / d beta = KL(p || weights) / beta^2: never negative, 0 where all contribute alike."""
    _, gallery, bank, _ = arrays_of(1, jnp.float64)
    similarities = reference.dot_product(bank, gallery)
    shares = reference.responsibilities(similarities, BETA)
    divergence = (shares * np.log(shares * len(shares))).sum(axis=0)

    def bias(beta):
        return dbn.stream_bank_statistics(bank, gallery, beta=beta, chunk_size=4).bias

    slope = jax.jacfwd(bias)(jnp.float64(BETA))
    np.testing.assert_allclose(slope, divergence / BETA**2, atol=1e-12)


@pytest.mark.slow
def test_hessian_vector_products(x64):
    """The curvature by similarities is beta^2 (diag p - p p^T); forward over reverse, streamed."""
    _, gallery, bank, _ = arrays_of(2, jnp.float64)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=bank.shape))
    weighting = jnp.linspace(-1, 2, 7)

    def total(bank):
        found = log_normalizer(bank, gallery, jnp.float64(BETA), jnp.asarray(WEIGHTS))
        return (weighting * found).sum()

    found = jax.jvp(jax.grad(total), (bank,), (direction,))[1]
    shares = reference.responsibilities(reference.dot_product(bank, gallery), BETA, WEIGHTS)
    moved = reference.dot_product(direction, gallery)
    change = shares * (moved - (shares * moved).sum(axis=0))
    expected = BETA**2 * (change * np.asarray(weighting)) @ np.asarray(gallery)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    twice = jax.grad(lambda bank: (jax.grad(total)(bank) * direction).sum())(bank)
    np.testing.assert_allclose(twice, expected, atol=1e-10)


@pytest.mark.slow
def test_the_whole_way_equals_differences(x64):
    """From embeddings, betas, bank weights and the weights of the banks to corrected neighbors."""

    def total(queries, gallery, query_bank, gallery_bank, betas, weights, shares):
        statistics = [
            dbn.stream_bank_statistics(
                bank, gallery, beta=beta, weights=rows, exclude=exclude, chunk_size=4
            )
            for bank, beta, rows, exclude in (
                (query_bank, betas[0], weights, None),
                (gallery_bank, betas[1], None, np.array([-1, 0, 3, -1])),
            )
        ]
        correction = dbn.dual_inverted_softmax(*statistics, weights=(shares[0], shares[1]))
        found = dbn.stream_top_k(queries, gallery, 3, correction, chunk_size=4)
        return (found.scores * jnp.linspace(1, 2, 3)[None]).sum()

    arguments = (
        *arrays_of(3, jnp.float64),
        jnp.array([3.0, 1.0]),
        jnp.asarray(WEIGHTS),
        jnp.array([0.7, 0.4]),
    )
    check_slope(total, arguments)


@pytest.mark.slow
def test_finite_at_the_ends():
    """Equal items, items absent or excluded, columns that nothing enters, any beta."""
    rows = jnp.ones((5, 3))
    weights = jnp.array([1.0, 0.0, 0.0, 2.0, 0.0])
    exclude = np.array([0, -1, -1, 0, -1])  # nothing enters column 0

    def total(bank, gallery, queries, beta, weights):
        statistics = dbn.stream_bank_statistics(
            bank, gallery, beta=beta, weights=weights, exclude=exclude, chunk_size=2
        )
        correction = dbn.dual_dynamic_inverted_softmax(statistics, statistics)
        found = dbn.stream_top_k(queries, gallery, 2, correction, chunk_size=2)
        return found.scores.sum() + statistics.bias.sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3, 4)))
    for beta in (1e-4, 1.0, 1e4, 1e7):
        with jax.debug_nans(True):
            found = gradient(rows, rows[:4], rows[:3], jnp.float32(beta), weights)
        chex.assert_tree_all_finite(found)
        assert not found[0][jnp.array([1, 2, 4])].any()


@pytest.mark.slow
def test_ties_share_the_gradient_of_a_bias_but_not_of_a_neighbor():
    rows = jnp.ones((4, 2))
    by_bank = jax.grad(
        lambda bank: dbn.stream_bank_statistics(bank, rows[:1], beta=1e3).bias.sum()
    )(rows)
    np.testing.assert_allclose(by_bank, np.full((4, 2), 1 / 4), rtol=1e-5)
    by_gallery = jax.grad(lambda gallery: dbn.stream_top_k(rows[:1], gallery, 1).scores.sum())(rows)
    np.testing.assert_array_equal(by_gallery, [[1, 1], [0, 0], [0, 0], [0, 0]])


@pytest.mark.slow
def test_huge_beta_points_at_the_largest():
    test = problem(4, SHAPES[1])
    similarities = jnp.asarray(test.gallery_bank_similarities)
    slope = jax.grad(lambda s: dbn.bank_statistics(s, beta=1e7).bias.sum())(similarities)
    expected = similarities == similarities.max(axis=0, keepdims=True)
    np.testing.assert_allclose(slope, expected.astype(jnp.float32), atol=1e-6)


# --- memory ------------------------------------------------------------------------------------


def statistic(bank, gallery, beta):
    return dbn.stream_bank_statistics(bank, gallery, beta=beta, k=1, chunk_size=128).bias.sum()


def neighbors(queries, gallery, beta):
    correction = dbn.Correction(beta * jnp.ones((1, gallery.shape[0])), None)
    return dbn.stream_top_k(queries, gallery, 4, correction, chunk_size=128).scores.sum()


def backward(function):
    return jax.grad(function, argnums=(0, 1, 2))


def curvature(function):
    def product(rows, columns, beta):
        slope = backward(function)
        return jax.jvp(lambda rows: slope(rows, columns, beta), (rows,), (rows,))[1]

    return product


@pytest.mark.parametrize("function", [statistic, neighbors], ids=lambda f: f.__name__)
@pytest.mark.parametrize("derivative", [backward, curvature], ids=lambda f: f.__name__)
def test_no_derivative_holds_the_matrix(function, derivative):
    rows, columns = jnp.ones((8192, 4)), jnp.ones((3000, 4))
    most = largest_intermediate(derivative(function), rows, columns, jnp.float32(2))
    assert most <= rows.shape[0] * columns.shape[0] / 20


@pytest.mark.slow
@pytest.mark.parametrize("function", [statistic, neighbors], ids=lambda f: f.__name__)
def test_memory_of_the_backward_pass_is_flat(function):
    def temporaries(num_rows):
        shapes = [jax.ShapeDtypeStruct((count, 8), jnp.float32) for count in (num_rows, 2048)]
        lowered = jax.jit(backward(function)).lower(*shapes, jax.ShapeDtypeStruct((), jnp.float32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(2048), temporaries(16384)
    # Vectors of one number per row, and of one per chunk and column; never rows x columns.
    assert large - small <= 16384 * 2048 * 4 / 32
