"""Gates, scores and neighbors: dense and streamed agree with the reference and each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import (
    CHUNK_SIZES,
    NORMALIZERS,
    SHAPES,
    SIMILARITY_FNS,
    problem,
    signed_zeros,
    statistics_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import slow_but
from tracing import largest_intermediate

import dbnorm_jax as dbn
from dbnorm_jax._src.places.mesh import drive

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from(SHAPES)
all_normalizers = pytest.mark.parametrize("case", slow_but(NORMALIZERS[::3], NORMALIZERS), ids=str)


def soft_correction(seed, num_terms, num_gallery):
    random = np.random.default_rng(seed)
    bias, active = random.random((2, num_terms, num_gallery)).astype(np.float32)
    return dbn.Correction(jnp.asarray(bias), jnp.asarray(active))


def test_no_item_of_16_bits_is_copied_to_float32():
    """XLA would move the conversion of a tile out of the loop, and so make one of all items."""

    def search(queries, gallery):
        return dbn.stream_top_k(queries, gallery, 3)

    arrays = (
        jax.ShapeDtypeStruct((9, 8), jnp.bfloat16),
        jax.ShapeDtypeStruct((5001, 8), "bfloat16"),
    )
    program = jax.jit(search).lower(*arrays).compile().as_text()
    assert "bf16[5001,8]" in program
    assert "f32[5001,8]" not in program


# --- gates ---------------------------------------------------------------------------------------


@all_normalizers
@given(seeds, shapes, st.sampled_from([1, 3]))
def test_gates_equal_the_reference(case, seed, shape, k):
    test = problem(seed, shape, levels=2)  # coarse levels: many ties for the first place
    correction = case.fit(*statistics_of(test, k=k))
    found = np.asarray(dbn.gates(test.similarities, correction))
    banks = (test.query_bank_similarities, test.gallery_bank_similarities)[: correction.num_terms]
    expected = [
        reference.argmax_gate(test.similarities, reference.bank_k_occurrence(bank, k) > 0)
        for bank in banks
    ]
    if not case.gated:
        expected = np.ones_like(expected)
    np.testing.assert_array_equal(found, np.transpose(expected))


def test_the_gate_reads_the_raw_similarity():
    # exp(20 s) of the first two saturates float32 alike; the raw values differ.
    similarities = np.array([[99.5, 100.0, 0.0]], np.float32)
    statistics = dbn.bank_statistics(np.array([[0.0, 1.0, 0.0]], np.float32), beta=20.0)
    assert dbn.gates(similarities, dbn.dynamic_inverted_softmax(statistics)) == 1


def test_own_gates():
    test = problem(0)
    correction = dbn.dual_inverted_softmax(*statistics_of(test))
    gates = np.random.default_rng(0).random((5, 2)).astype(np.float32)
    found = dbn.apply_correction(test.similarities, correction, gates=gates)
    expected = test.similarities - gates @ np.asarray(correction.bias)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- zeros of both signs are level ---------------------------------------------------------------


def _mesh():
    return jax.make_mesh((2, 4), ("bank", "gallery"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def _half_open(gallery, dtype=bool):
    """A correction that changes no score; whether its gate is open says which item was nearest."""
    active = np.arange(len(gallery)) % 2 == 0
    return dbn.Correction(jnp.zeros((1, len(gallery))), jnp.asarray(active[None], dtype))


SEARCHES = {
    "top_k": lambda q, g, k: dbn.top_k(q * g.T, k).indices,
    "top_k, gated": lambda q, g, k: dbn.top_k(q * g.T, k, _half_open(g)).indices,
    "top_k, soft gates": lambda q, g, k: dbn.top_k(q * g.T, k, _half_open(g, float)).indices,
    "stream_top_k": lambda q, g, k: dbn.stream_top_k(q, g, k).indices,
    "stream_top_k, gated": lambda q, g, k: dbn.stream_top_k(q, g, k, _half_open(g)).indices,
    "stream_top_k, soft": lambda q, g, k: dbn.stream_top_k(q, g, k, _half_open(g, float)).indices,
    "semantic_search": lambda q, g, k: [
        [found["corpus_id"] for found in row]
        for row in dbn.semantic_search(q, g, k=k, similarity_fn=dbn.dot_product)
    ],
    "mesh": lambda q, g, k: dbn.stream_top_k(q, g, k, mesh=_mesh()).indices,
    "out_of_core": lambda q, g, k: dbn.out_of_core.top_k(q, g, k, block_size=16).indices,
}
OCCURRENCES = {
    "bank_statistics": lambda q, g, k: dbn.bank_statistics(q * g.T, beta=1.0, k=k),
    "stream_bank_statistics": lambda q, g, k: dbn.stream_bank_statistics(q, g, beta=1.0, k=k),
    "mesh": lambda q, g, k: dbn.stream_bank_statistics(q, g, beta=1.0, k=k, mesh=_mesh()),
    "out_of_core": lambda q, g, k: dbn.out_of_core.bank_statistics(
        q, g, beta=1.0, k=k, block_size=16
    ),
}
OPEN_GATES = {
    "gates": lambda q, g: dbn.gates(q * g.T, _half_open(g))[:, 0],
    "straight through": lambda q, g: dbn.soft_gates(
        q * g.T, _half_open(g), temperature=1.0, straight_through=True
    )[:, 0].round(),
    "straight through, streamed": lambda q, g: dbn.stream_soft_gates(
        q, g, _half_open(g), temperature=1.0, straight_through=True
    )[:, 0].round(),
}
few = settings(max_examples=4)


@pytest.mark.parametrize("k", [3, 40])
@pytest.mark.parametrize("search", SEARCHES)
@few
@given(seeds)
def test_neighbors_among_zeros_of_both_signs(search, k, seed):
    queries, gallery = signed_zeros(seed, 6, 70)
    expected = reference.top_k(queries * gallery.T, k)[1]
    np.testing.assert_array_equal(SEARCHES[search](queries, gallery, k), expected)


@pytest.mark.parametrize("k", [3, 40])
@pytest.mark.parametrize("count", OCCURRENCES)
@few
@given(seeds)
def test_k_occurrence_among_zeros_of_both_signs(count, k, seed):
    bank, gallery = signed_zeros(seed, 6, 70)
    expected = reference.bank_k_occurrence(bank * gallery.T, k)
    found = OCCURRENCES[count](bank, gallery, k)
    np.testing.assert_array_equal(found.k_occurrence, expected)
    np.testing.assert_array_equal(found.active, expected > 0)


@pytest.mark.parametrize("gate", OPEN_GATES)
@few
@given(seeds)
def test_gates_among_zeros_of_both_signs(gate, seed):
    queries, gallery = signed_zeros(seed, 6, 70)
    expected = np.argmax(queries * gallery.T, axis=1) % 2 == 0
    np.testing.assert_array_equal(OPEN_GATES[gate](queries, gallery), expected)


def test_zero_has_a_slope_of_either_sign():
    scores = jnp.array([[-0.0, 0.0, -1.0]])
    slope = jax.grad(lambda scores: dbn.top_k(scores, 2).scores.sum())(scores)
    np.testing.assert_array_equal(slope, [[1, 1, 0]])


# --- neighbors -----------------------------------------------------------------------------------


@given(seeds, shapes, st.sampled_from([1, 2, 3]))
def test_top_k_equals_the_reference_with_ties(seed, shape, k):
    similarities = problem(seed, shape, levels=2).similarities
    scores, indices = dbn.top_k(similarities, k)
    expected_scores, expected_indices = reference.top_k(similarities, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)
    assert indices.dtype == jnp.int32


@pytest.mark.parametrize("k", [1, 3, 30, 2500])
def test_top_k_of_long_rows_with_ties(k):
    rows = np.random.default_rng(0).integers(0, 40, (3, 2500)).astype(np.float32)
    np.testing.assert_array_equal(dbn.top_k(rows, k).indices, reference.top_k(rows, k)[1])


@all_normalizers
@given(seeds, shapes, st.sampled_from(CHUNK_SIZES[:2]))
def test_streamed_equals_dense_with_ties(case, seed, shape, chunk_size):
    k = 3
    test = problem(seed, shape, levels=4)  # products are exact, so ties are ties in every tile
    correction = case.fit(*statistics_of(test))
    dense = dbn.top_k(test.similarities, k, correction)
    streamed = dbn.stream_top_k(test.queries, test.gallery, k, correction, chunk_size=chunk_size)
    chex.assert_trees_all_equal(streamed, dense)


@pytest.mark.slow
@pytest.mark.parametrize("similarity_fn", SIMILARITY_FNS)
@all_normalizers
def test_streamed_equals_dense_for_every_similarity(case, similarity_fn):
    test = problem(1, SHAPES[2])
    statistics = [
        dbn.stream_bank_statistics(bank, test.gallery, beta=beta, similarity_fn=similarity_fn)
        for bank, beta in ((test.query_bank, 20.0), (test.gallery_bank, 2.0))
    ]
    correction = case.fit(*statistics)
    dense = dbn.top_k(similarity_fn(test.queries, test.gallery), 10, correction)
    streamed = dbn.stream_top_k(
        test.queries, test.gallery, 10, correction, similarity_fn=similarity_fn, chunk_size=3
    )
    chex.assert_trees_all_close(streamed.scores, dense.scores, atol=2e-6)
    chex.assert_trees_all_equal(streamed.indices, dense.indices)


@pytest.mark.parametrize("num_gallery", [1, 33, 5000])
@pytest.mark.parametrize("k", slow_but([10], [1, 10, 200]))
def test_streamed_over_several_tiles_with_ties(num_gallery, k):
    random = np.random.default_rng(0)
    queries, gallery = (random.integers(-3, 4, (n, 3)).astype(np.float32) for n in (5, num_gallery))
    bias = jnp.asarray(random.integers(0, 5, (2, num_gallery)).astype(np.float32))
    active = jnp.asarray(random.random((2, num_gallery)) > 0.5)
    k = min(k, num_gallery)
    for correction in (None, dbn.Correction(bias, None), dbn.Correction(bias, active)):
        dense = dbn.top_k(dbn.dot_product(queries, gallery), k, correction)
        streamed = dbn.stream_top_k(queries, gallery, k, correction, chunk_size=2)
        chex.assert_trees_all_equal(streamed, dense)


@pytest.mark.parametrize("num_terms", slow_but([3], [1, 2, 3, 4]))
def test_soft_and_many_gates(num_terms):
    test = problem(2, SHAPES[2])
    soft = soft_correction(2, num_terms, 70)
    hard = dbn.Correction(soft.bias, soft.active > 0.5)
    for correction in (soft, hard):
        dense = dbn.top_k(test.similarities, 7, correction)
        streamed = dbn.stream_top_k(test.queries, test.gallery, 7, correction, chunk_size=3)
        chex.assert_trees_all_close(streamed.scores, dense.scores, atol=1e-6)
        chex.assert_trees_all_equal(streamed.indices, dense.indices)
        nearest = reference.top_k(test.similarities, 1)[1][:, 0]
        gates = np.asarray(correction.active, np.float64)[:, nearest].T
        expected = test.similarities - gates @ np.asarray(correction.bias, np.float64)
        np.testing.assert_allclose(dense.scores, reference.top_k(expected, 7)[0], atol=1e-6)


def test_all_of_the_gallery_in_order():
    test = problem(3, SHAPES[2])
    result = dbn.stream_top_k(test.queries, test.gallery, 70, chunk_size=3)
    assert (jnp.sort(result.indices, axis=1) == jnp.arange(70)[None]).all()
    assert (jnp.diff(result.scores, axis=1) <= 0).all()


@given(seeds)
def test_gallery_permutation(seed):
    test = problem(seed, SHAPES[2])
    order = np.random.default_rng(seed).permutation(70)
    correction = dbn.dual_dynamic_inverted_softmax(*statistics_of(test))
    permuted = jax.tree.map(lambda leaf: leaf[:, order], correction)
    first = dbn.stream_top_k(test.queries, test.gallery, 5, correction)
    second = dbn.stream_top_k(test.queries, test.gallery[order], 5, permuted)
    chex.assert_trees_all_close(second.scores, first.scores, atol=1e-6)
    np.testing.assert_array_equal(order[np.asarray(second.indices)], first.indices)


@pytest.mark.slow
def test_bfloat16_and_float64(x64):
    test = problem(4, SHAPES[2])
    low = [array.astype(jnp.bfloat16) for array in (test.queries, test.gallery)]
    assert dbn.stream_top_k(*low, 3).scores.dtype == jnp.float32
    wide = [array.astype(np.float64) for array in (test.queries, test.gallery)]
    correction = dbn.dynamic_inverted_softmax(
        dbn.stream_bank_statistics(test.query_bank.astype(np.float64), wide[1], beta=20.0)
    )
    found = dbn.stream_top_k(*wide, 3, correction)
    assert found.scores.dtype == jnp.float64
    dense = dbn.top_k(dbn.dot_product(*wide), 3, correction)
    chex.assert_trees_all_close(found.scores, dense.scores, atol=1e-14)


def test_inside_jit_nan_never_wins():
    test = problem(5, SHAPES[2])
    gallery = test.gallery.copy()
    gallery[[0, 40]] = np.nan
    correction = dbn.dual_dynamic_inverted_softmax(*statistics_of(test))

    @jax.jit
    def search(queries, gallery):
        raw = dbn.stream_top_k(queries, gallery, 70)
        return raw, dbn.stream_top_k(queries, gallery, 70, correction)

    kept = np.delete(np.arange(70), [0, 40])
    remaining = jax.tree.map(lambda leaf: leaf[:, kept], correction)
    for result, fitted in zip(search(test.queries, gallery), (None, remaining), strict=True):
        expected = dbn.top_k(test.similarities[:, kept], 68, fitted).indices
        np.testing.assert_array_equal(result.indices[:, :68], kept[np.asarray(expected)])
        np.testing.assert_array_equal(result.indices[:, 68:], np.tile([0, 40], (4, 1)))
        assert (result.scores[:, 68:] == -jnp.inf).all()
    dense = jax.jit(lambda s: dbn.top_k(s, 1))(jnp.array([[jnp.nan, 0.5, jnp.nan, 0.7]]))
    assert dense.indices[0, 0] == 3


def test_nothing_larger_than_a_tile_is_held():
    queries = jax.ShapeDtypeStruct((30_000, 8), jnp.float32)
    gallery = jax.ShapeDtypeStruct((40_000, 8), jnp.float32)
    correction = dbn.Correction(jnp.zeros((2, 40_000)), jnp.ones((2, 40_000), bool))

    def search(queries, gallery):
        return dbn.stream_top_k(queries, gallery, 10, correction, chunk_size=256)

    # One tile under each of the four combinations of the two gates.
    assert largest_intermediate(search, queries, gallery) <= max(256 * 4096 * 4, 30_000 * 4 * 10)


def test_memory_does_not_grow_with_the_queries():
    def temporaries(num_queries):
        shapes = [jax.ShapeDtypeStruct((n, 8), jnp.float32) for n in (num_queries, 5000)]
        search = jax.jit(lambda queries, gallery: dbn.stream_top_k(queries, gallery, 10))
        analysis = search.lower(*shapes).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    small, large = temporaries(4096), temporaries(65536)
    assert large - small <= 65536 * 10 * 8 * 2  # the results, never a tile


@pytest.mark.slow
def test_few_programs_for_queries_in_any_number():
    random = np.random.default_rng(7)
    gallery = jnp.asarray(random.normal(size=(50, 6)), jnp.float32)
    queries = jnp.asarray(random.normal(size=(300, 6)), jnp.float32)
    whole = dbn.stream_top_k(queries, gallery, 3)
    compiled = drive.top_k._cache_size()
    for count in (1, 2, 31, 100, 127, 128, 250, 255):
        found = dbn.stream_top_k(queries[:count], gallery, 3)
        np.testing.assert_array_equal(found.indices, whole.indices[:count])
        np.testing.assert_allclose(found.scores, whole.scores[:count], rtol=1e-5)
    assert drive.top_k._cache_size() - compiled <= 3
