"""Soft activation and soft gates: the formulas, their limit, and gradients at saturation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import CHUNK_SIZES, SHAPES, SIMILARITY_FNS, problem
from differences import check_slope
from tracing import largest_intermediate, optimized

import dbnorm_jax as dbn

TEMPERATURES = [0.05, 0.7]


def correction_of(test, temperature=0.1):
    """Two terms, one hard and one soft, as one soft Correction."""
    hard = reference.bank_k_occurrence(test.query_bank_similarities, 1) > 0
    soft = reference.soft_activation(test.gallery_bank_similarities, temperature)
    active = np.stack([hard, soft]).astype(np.float32)
    return dbn.Correction(jnp.zeros_like(jnp.asarray(active)), jnp.asarray(active))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_formulas(shape, temperature):
    test = problem(0, shape)
    matrix = test.query_bank_similarities
    weights = np.arange(len(matrix), dtype=np.float32)
    for given in (None, weights):
        found = dbn.soft_activation(matrix, temperature=temperature, weights=given)
        expected = reference.soft_activation(matrix, temperature, given)
        np.testing.assert_allclose(found, expected, atol=2e-6)
    correction = correction_of(test)
    found = dbn.soft_gates(test.similarities, correction, temperature=temperature)
    expected = reference.soft_gates(test.similarities, correction.active.T, temperature)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_chunks_of_one_row():
    test = problem(1, SHAPES[0])
    bank, options = test.query_bank, {"temperature": 0.3, "chunk_size": 1}
    activation = dbn.stream_soft_activation(bank, test.gallery, **options)
    dense = dbn.soft_activation(test.query_bank_similarities, temperature=0.3)
    np.testing.assert_allclose(activation, dense, atol=1e-6)
    correction = correction_of(test)
    gates = dbn.stream_soft_gates(test.queries, test.gallery, correction, **options)
    dense = dbn.soft_gates(test.similarities, correction, temperature=0.3)
    np.testing.assert_allclose(gates, dense, atol=1e-6)


@pytest.mark.parametrize("fn", SIMILARITY_FNS, ids=lambda fn: fn.__name__)
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES[1:2])
def test_streamed_equals_dense(fn, chunk_size):
    test = problem(1, SHAPES[1])
    options = {"similarity_fn": fn, "chunk_size": chunk_size}
    weights = np.arange(9, dtype=np.float32)
    streamed = dbn.stream_soft_activation(
        test.gallery_bank, test.gallery, temperature=0.3, weights=weights, **options
    )
    dense = dbn.soft_activation(
        fn(test.gallery_bank, test.gallery), temperature=0.3, weights=weights
    )
    np.testing.assert_allclose(streamed, dense, atol=1e-6)
    correction = correction_of(test)
    for straight_through in (False, True):
        streamed = dbn.stream_soft_gates(
            test.queries,
            test.gallery,
            correction,
            temperature=0.3,
            straight_through=straight_through,
            **options,
        )
        dense = dbn.soft_gates(
            fn(test.queries, test.gallery),
            correction,
            temperature=0.3,
            straight_through=straight_through,
        )
        np.testing.assert_allclose(streamed, dense, atol=1e-6)


def test_several_tiles_of_the_gallery():
    random = np.random.default_rng(0)
    gallery, bank = (random.normal(size=(count, 4)).astype(np.float32) for count in (2500, 37))
    streamed = dbn.stream_soft_activation(bank, gallery, temperature=0.2, chunk_size=16)
    dense = dbn.soft_activation(dbn.dot_product(bank, gallery), temperature=0.2)
    np.testing.assert_allclose(streamed, dense, atol=1e-6)
    correction = dbn.Correction(jnp.zeros((1, 2500)), dense[None])
    for straight_through in (False, True):
        options = {"temperature": 0.2, "straight_through": straight_through}
        streamed = dbn.stream_soft_gates(bank, gallery, correction, chunk_size=16, **options)
        dense_gates = dbn.soft_gates(dbn.dot_product(bank, gallery), correction, **options)
        np.testing.assert_allclose(streamed, dense_gates, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_limit_is_hard(seed):
    test = problem(seed, SHAPES[2])
    statistics = dbn.bank_statistics(test.query_bank_similarities, beta=20.0, k=1)
    hard = statistics.active.astype(jnp.float32)
    errors = []
    for temperature in (0.3, 0.03, 1e-3, 1e-6):
        soft = dbn.soft_activation(test.query_bank_similarities, temperature=temperature)
        errors.append(float(jnp.abs(soft - hard).max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6
    correction = dbn.dynamic_inverted_softmax(statistics)
    gates = dbn.soft_gates(test.similarities, correction, temperature=1e-6)
    np.testing.assert_allclose(gates, dbn.gates(test.similarities, correction), atol=1e-6)


def test_straight_through_has_hard_values_and_soft_gradients():
    test = problem(2, SHAPES[2])
    correction = correction_of(test)

    def total(similarities, straight_through):
        gates = dbn.soft_gates(
            similarities, correction, temperature=0.2, straight_through=straight_through
        )
        return gates.sum(), gates

    similarities = jnp.asarray(test.similarities)
    hard_slope, hard = jax.grad(total, has_aux=True)(similarities, True)
    soft_slope, _ = jax.grad(total, has_aux=True)(similarities, False)
    np.testing.assert_array_equal(hard, dbn.gates(similarities, correction))
    np.testing.assert_array_equal(hard_slope, soft_slope)
    assert jnp.abs(soft_slope).max() > 0
    assert not jax.grad(lambda s: dbn.gates(s, correction).sum())(similarities).any()


def test_ties_share():
    similarities = np.ones((2, 4), np.float32)
    activity = dbn.soft_activation(similarities, temperature=1e-4)
    np.testing.assert_allclose(activity, 1 - (3 / 4) ** 2, atol=1e-6)
    correction = dbn.Correction(jnp.zeros((1, 4)), jnp.array([[True, False, False, False]]))
    found = dbn.soft_gates(similarities, correction, temperature=1e-4)
    np.testing.assert_allclose(found, 1 / 4, atol=1e-6)
    options = {"temperature": 1e-4, "straight_through": True}
    np.testing.assert_array_equal(dbn.soft_gates(similarities, correction, **options), [[1], [1]])


@pytest.mark.slow
def test_fused_similarities_agree_with_their_maximum():
    """Rounded in two ways, at |s| / temperature of 1e10 all powers overflow."""
    random = np.random.default_rng(0)
    bank, gallery = ((random.normal(size=(n, 1)) * 1e3).astype(np.float32) for n in (60, 1100))
    similarities = dbn.dot_product(bank, gallery)
    correction = dbn.Correction(jnp.zeros((1, 1100)), jnp.asarray(random.random((1, 1100)) < 0.5))
    options = {"temperature": 1e-4}
    expected = dbn.soft_activation(similarities, **options)
    chex.assert_tree_all_finite(expected)
    for function in (
        lambda b, g: dbn.stream_soft_activation(b, g, **options),
        lambda b, g: dbn.soft_activation(b * g.T, **options),
    ):
        np.testing.assert_array_equal(optimized(function, bank, gallery), expected)
    gradient = optimized(
        jax.grad(lambda b, g: dbn.stream_soft_activation(b, g, **options).sum()), bank, gallery
    )
    chex.assert_tree_all_finite(gradient)
    expected = dbn.soft_gates(similarities, correction, **options)
    for function in (
        lambda b, g: dbn.stream_soft_gates(b, g, correction, **options),
        lambda b, g: dbn.soft_gates(b * g.T, correction, **options),
    ):
        np.testing.assert_array_equal(optimized(function, bank, gallery), expected)


@pytest.mark.parametrize("temperature", [1e-8, 1e-3, 1.0, 1e6])
def test_gradients_are_finite_at_saturation(temperature):
    test = problem(3)
    scale = jnp.float32(100)

    def total(bank, gallery, queries, temperature, weights, *, streamed):
        if streamed:
            active = dbn.stream_soft_activation(
                bank, gallery, temperature=temperature, weights=weights, chunk_size=4
            )
            correction = dbn.Correction(active[None], active[None])
            gates = dbn.stream_soft_gates(queries, gallery, correction, temperature=temperature)
        else:
            matrix = dbn.dot_product(bank, gallery)
            active = dbn.soft_activation(matrix, temperature=temperature, weights=weights)
            correction = dbn.Correction(active[None], active[None])
            similarities = dbn.dot_product(queries, gallery)
            gates = dbn.soft_gates(similarities, correction, temperature=temperature)
        return gates.sum() + active.sum()

    arguments = (
        scale * test.query_bank,
        scale * test.gallery,
        scale * test.queries,
        jnp.float32(temperature),
        jnp.array([1.0, 0.0, 2.0, 1.0, 1.0, 1.0]),
    )
    with jax.debug_nans(True):
        for streamed in (False, True):
            gradients = jax.grad(
                lambda *arrays, streamed=streamed: total(*arrays, streamed=streamed),
                argnums=(0, 1, 2, 3, 4),
            )(*arguments)
            chex.assert_tree_all_finite(gradients)


@pytest.mark.slow
def test_gradients_equal_finite_differences(x64):
    test = problem(4)
    bank, gallery, queries = (
        jnp.asarray(array, jnp.float64) for array in (test.query_bank, test.gallery, test.queries)
    )

    def total(bank, gallery, queries, temperature, weights):
        active = dbn.stream_soft_activation(
            bank, gallery, temperature=temperature, weights=weights, chunk_size=4
        )
        correction = dbn.Correction(active[None], active[None])
        gates = dbn.stream_soft_gates(
            queries, gallery, correction, temperature=temperature, chunk_size=4
        )
        return (gates**2).sum()

    arguments = (bank, gallery, queries, jnp.float64(0.4), jnp.linspace(0.5, 2, 6))
    check_slope(total, arguments)


def test_jit_vmap_and_leading_axes():
    matrices = np.stack([problem(seed).query_bank_similarities for seed in range(2)])
    tests = np.stack([problem(seed).similarities for seed in range(2)])

    def both(matrix, similarities):
        active = dbn.soft_activation(matrix, temperature=0.2)[..., None, :]
        correction = dbn.Correction(jnp.zeros_like(active), active)
        return dbn.soft_gates(similarities, correction, temperature=0.2)

    expected = jnp.stack([both(*pair) for pair in zip(matrices, tests, strict=True)])
    chex.assert_trees_all_close(both(matrices, tests), expected, atol=1e-6)
    chex.assert_trees_all_close(jax.jit(jax.vmap(both))(matrices, tests), expected, atol=1e-6)
    temperatures = dbn.soft_activation(matrices[0], temperature=np.array([0.1, 0.2]))
    np.testing.assert_allclose(
        temperatures[1], dbn.soft_activation(matrices[0], temperature=0.2), atol=1e-6
    )


def test_dtypes_and_no_gate(x64):
    for dtype, expected in ((jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)):
        bank, gallery = (jnp.ones((count, 3), dtype) for count in (2, 4))
        assert dbn.stream_soft_activation(bank, gallery, temperature=0.1).dtype == expected
        correction = dbn.Correction(jnp.zeros((2, 4), jnp.float32), None)
        gates = dbn.stream_soft_gates(bank, gallery, correction, temperature=0.1)
        assert gates.dtype == expected
        np.testing.assert_array_equal(gates, np.ones((2, 2)))
        similarities = dbn.dot_product(bank, gallery)
        gates = dbn.soft_gates(similarities, correction, temperature=0.1)
        np.testing.assert_array_equal(gates, np.ones((2, 2)))


def test_memory_is_one_tile():
    bank, gallery = jnp.ones((3000, 4)), jnp.ones((2500, 4))

    def total(bank, gallery):
        active = dbn.stream_soft_activation(bank, gallery, temperature=0.1, chunk_size=64)
        correction = dbn.Correction(active[None], active[None])
        return dbn.stream_soft_gates(
            bank, gallery, correction, temperature=0.1, chunk_size=64
        ).sum()

    for function in (total, jax.grad(total, argnums=(0, 1))):
        # A tile, or a vector of gallery length per chunk; far below bank x gallery.
        assert largest_intermediate(function, bank, gallery) <= 2500 * 3000 / 50


def test_errors():
    matrix = np.ones((2, 3), np.float32)
    correction = dbn.Correction(jnp.zeros((1, 3)), jnp.ones((1, 3), bool))
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        dbn.soft_activation(matrix, temperature=0.0)
    with pytest.raises(ValueError, match="`temperature` must be a scalar"):
        dbn.stream_soft_activation(matrix, matrix, temperature=np.ones(2))
    with pytest.raises(ValueError, match="`weights`"):
        dbn.soft_activation(matrix, temperature=0.1, weights=np.ones(3))
    with pytest.raises(ValueError, match="`correction` has 3 gallery items"):
        dbn.soft_gates(matrix[:, :2], correction, temperature=0.1)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        dbn.soft_gates(matrix, correction, temperature=-1.0)
    with pytest.raises(TypeError, match="`correction` must be a Correction"):
        dbn.stream_soft_gates(matrix, matrix, None, temperature=0.1)
