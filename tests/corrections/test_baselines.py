"""The field's other corrections: their authors' outputs, their definitions, and how they relate."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_baselines
from cases import CHUNK_SIZES, SHAPES, SIMILARITY_FNS, problem
from hypothesis import given
from hypothesis import strategies as st
from patience import slow_but
from rankings import assert_same_ranking
from tracing import largest_intermediate

import dbnorm_jax as dbn
from dbnorm_jax import baselines
from dbnorm_jax._src.passes import sweep

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture
def parts(golden, dtype):
    names = ("queries", "gallery", "query_bank", "gallery_bank")
    return [jnp.asarray(golden[name].astype(dtype)) for name in names]


def tolerance(dtype, wide=1e-12, single=2e-6):
    return wide if dtype == np.float64 else single


# --- the authors' outputs ------------------------------------------------------------------------


def test_golden_csls(golden, dtype, parts):
    queries, gallery, query_bank, _ = parts
    largest = dbn.stream_largest_similarities(query_bank, gallery, k=10, chunk_size=16)
    scores = dbn.apply_correction(dbn.dot_product(queries, gallery), baselines.csls(largest))
    assert_same_ranking(scores, golden["csls_k10"], tolerance(dtype, 0))


@pytest.mark.parametrize(("k", "weight"), [(8, 0.5), (16, 0.75)])
def test_golden_nearest_neighbor_normalization(golden, dtype, parts, k, weight):
    queries, gallery, query_bank, _ = parts
    largest = dbn.stream_largest_similarities(query_bank, gallery, k=k)
    correction = baselines.nearest_neighbor_normalization(largest, weight=weight)
    scores, indices = dbn.stream_top_k(queries, gallery, 10, correction)
    np.testing.assert_allclose(scores, golden[f"nnn_k{k}_w{weight}_scores"], atol=tolerance(dtype))
    if dtype == np.float64:
        np.testing.assert_array_equal(indices, golden[f"nnn_k{k}_w{weight}_indices"])


def test_golden_distribution_normalization(golden, dtype, parts):
    queries, gallery, query_bank, _ = parts
    correction = baselines.distribution_normalization(query_bank.mean(axis=0), gallery)
    scores, indices = dbn.stream_top_k(queries, gallery, 10, correction)
    # One constant per query is free: the ranking does not see it.
    differences = np.asarray(scores) - golden["dn_lambda0.5_scores"]
    assert np.ptp(differences, axis=1).max() < tolerance(dtype)
    if dtype == np.float64:
        np.testing.assert_array_equal(indices, golden["dn_lambda0.5_indices"])


@pytest.mark.parametrize("num_iterations", slow_but([10], [10, 1000]))
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("method", ["sinkhorn", "dbsn"])
def test_golden_sinkhorn(golden, dtype, parts, method, streamed, num_iterations):
    _, gallery, query_bank, gallery_bank = parts
    options = {"temperature": 0.05, "num_iterations": num_iterations}
    second = gallery_bank if method == "dbsn" else None
    if streamed:
        fitted = baselines.stream_sinkhorn_normalization(
            query_bank, gallery, gallery_bank=second, chunk_size=32, **options
        )
    elif second is None:
        fitted = baselines.sinkhorn_normalization(dbn.dot_product(query_bank, gallery), **options)
    else:
        fitted = baselines.dual_bank_sinkhorn_normalization(
            dbn.dot_product(query_bank, gallery), dbn.dot_product(query_bank, second), **options
        )
    expected = golden[f"{method}_hubness_tau0.05_iter{num_iterations}"]
    assert np.ptp(np.asarray(fitted.bias[0]) - expected) < tolerance(dtype)


@pytest.mark.parametrize(
    ("key", "pool_rate"),
    [("invgc_rg0.1_rq0.3", None), ("invgc_local_rg0.1_rq0.3_pool0.1", 0.1)],
)
def test_golden_inverse_graph_convolution(golden, dtype, parts, key, pool_rate):
    queries, gallery, query_bank, gallery_bank = parts
    moved = baselines.inverse_graph_convolution(
        gallery=gallery,
        query_bank=query_bank,
        gallery_bank=gallery_bank,
        query_rate=0.3,
        gallery_rate=0.1,
        pool_rate=pool_rate,
    )
    scores = dbn.dot_product(queries, moved)
    np.testing.assert_allclose(scores, golden[key], atol=5e-7)  # stored in float32


# --- the definitions -----------------------------------------------------------------------------


@given(seeds, st.sampled_from(SHAPES), st.sampled_from([1, 3, 20]), st.booleans())
def test_largest_similarities(seed, shape, k, masked):
    similarities = problem(seed, shape).query_bank_similarities
    where = None
    kept = similarities.astype(np.float64)
    if masked:
        where = np.random.default_rng(seed).random(similarities.shape) > 0.4
        kept = np.where(where, kept, -np.inf)
    found = dbn.largest_similarities(similarities, k=k, where=where)
    expected = -np.sort(-kept, axis=0)[:k]
    padded = np.full((k, shape[1]), -np.inf)
    padded[: len(expected)] = expected
    np.testing.assert_allclose(found.values, padded, rtol=1e-6)
    for item in range(shape[1]):
        present = padded[:, item][padded[:, item] > -np.inf]
        mean = present.mean() if len(present) else np.nan
        np.testing.assert_allclose(found.mean[item], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@given(
    seeds,
    st.sampled_from(SHAPES),
    st.sampled_from([1, 3, 20]),
    st.sampled_from([None, (), (3,), (9,)]),
)
def test_streamed_largest_equals_matrix(seed, shape, k, entries):
    test = problem(seed, shape)
    random = np.random.default_rng(seed)
    chunk_size = int(random.choice(CHUNK_SIZES))
    similarity_fn = list(SIMILARITY_FNS)[random.integers(3)]
    where = exclude = None
    if entries is not None:
        exclude = random.integers(-1, shape[1], (shape[2], *entries))
        where = reference.apart(exclude, shape[1])
    found = dbn.stream_largest_similarities(
        test.query_bank,
        test.gallery,
        k=k,
        exclude=exclude,
        similarity_fn=similarity_fn,
        chunk_size=chunk_size,
    )
    similarities = similarity_fn(test.query_bank, test.gallery)
    expected = dbn.largest_similarities(similarities, k=k, where=where)
    assert found.similarity == similarity_fn.__name__
    chex.assert_trees_all_close(found.values, expected.values, atol=2e-6)


@given(seeds)
def test_parts_merge(seed):
    similarities = problem(seed, SHAPES[2]).query_bank_similarities
    whole = dbn.largest_similarities(similarities, k=5)
    first, second = (dbn.largest_similarities(part, k=5) for part in np.split(similarities, [3]))
    chex.assert_trees_all_equal(dbn.merge(first, second), whole)
    chex.assert_trees_all_equal(dbn.merge(second, first), whole)


@pytest.fixture
def distances():
    test = problem(0, SHAPES[2])

    def between(rows, columns):
        return np.sqrt(-reference.negative_squared_euclidean(rows, columns)).astype(np.float32)

    return [
        between(test.queries, test.gallery),
        between(test.queries, test.query_bank),
        between(test.query_bank, test.gallery),
    ]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (baselines.mutual_proximity, reference_baselines.mutual_proximity_gaussian),
        (
            lambda *matrices: baselines.mutual_proximity(*matrices, method="empiric"),
            reference_baselines.mutual_proximity_empiric,
        ),
        (
            lambda *matrices: baselines.local_scaling(*matrices, k=3),
            lambda *matrices: reference_baselines.local_scaling(*matrices, 3),
        ),
        (
            lambda *matrices: baselines.nicdm(*matrices, k=3),
            lambda *matrices: reference_baselines.nicdm(*matrices, 3),
        ),
    ],
    ids=["gaussian", "empiric", "local_scaling", "nicdm"],
)
def test_rescaled_distances(function, expected, distances):
    found = np.asarray(function(*distances))
    np.testing.assert_allclose(found, expected(*distances), atol=2e-6)
    jitted = jax.jit(function)(*map(jnp.asarray, distances))
    np.testing.assert_allclose(jitted, found, atol=1e-6)


@pytest.mark.parametrize("k", [1, 4])
def test_dis_sim_local_ranks_as_defined(k):
    test = problem(1, SHAPES[2])
    correction = baselines.dis_sim_local(test.gallery, test.query_bank, k=k)
    similarities = dbn.negative_squared_euclidean(test.queries, test.gallery)
    scores = np.asarray(dbn.apply_correction(similarities, correction))
    expected = -reference_baselines.dis_sim_local(
        test.queries, test.gallery, test.gallery, test.query_bank, k
    )
    assert np.ptp(scores - expected, axis=1).max() < 2e-6  # but for the query's own term


@given(seeds, st.sampled_from(SHAPES))
def test_global_correction(seed, shape):
    test = problem(seed, shape, levels=4)
    found = baselines.globally_corrected(test.similarities, test.query_bank_similarities)
    expected = reference_baselines.globally_corrected_scores(
        test.similarities, test.query_bank_similarities
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dual_softmax():
    similarities = problem(2).similarities
    found = baselines.dual_softmax(similarities, temperature=0.1)
    expected = reference_baselines.dual_softmax_scores(similarities, 0.1)
    np.testing.assert_allclose(found, expected, atol=2e-6)


# --- how they relate -----------------------------------------------------------------------------


def test_csls_is_half_of_the_mean():
    test = problem(3)
    largest = dbn.largest_similarities(test.query_bank_similarities, k=3)
    chex.assert_trees_all_equal(
        baselines.csls(largest), baselines.nearest_neighbor_normalization(largest, weight=0.5)
    )
    scores = dbn.apply_correction(test.similarities, baselines.csls(largest))
    expected = reference_baselines.csls_scores(test.similarities, test.query_bank_similarities, 3)
    assert_same_ranking(scores, expected, 1e-6)


def test_distribution_normalization_is_the_mean_over_the_whole_bank():
    test = problem(4)
    correction = baselines.distribution_normalization(
        test.query_bank.mean(axis=0), test.gallery, weight=0.3
    )
    whole = dbn.largest_similarities(test.query_bank_similarities, k=len(test.query_bank))
    expected = baselines.nearest_neighbor_normalization(whole, weight=0.3)
    np.testing.assert_allclose(correction.bias, expected.bias, atol=1e-6)


def test_the_first_gallery_update_is_the_inverted_softmax():
    # One gallery item more makes the bank's first update uniform: all rows sum to the same.
    bank = problem(5).query_bank_similarities
    beta = 4.0
    rest = 40 * np.exp(beta * 1.0) - np.exp(beta * bank).sum(axis=1)
    assert (rest > 0).all()
    balanced = np.concatenate([bank, np.log(rest)[:, None] / beta], axis=1).astype(np.float32)
    fitted = baselines.sinkhorn_normalization(balanced, temperature=1 / beta, num_iterations=1)
    expected = dbn.bank_statistics(balanced, beta=beta, k=0).bias
    difference = np.asarray(fitted.bias[0] - expected)
    assert np.ptp(difference) < 2e-6


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_converged_sinkhorn_is_hnn(x64, temperature):
    bank = problem(6, (5, 7, 12, 4)).query_bank_similarities.astype(np.float64)
    sinkhorn = baselines.sinkhorn_normalization(bank, temperature=temperature, num_iterations=20000)
    hnn = baselines.hubless_nearest_neighbor(bank, temperature=temperature, num_iterations=300)
    for fitted in (sinkhorn, hnn):
        residual = baselines.sinkhorn_residual(bank, fitted, temperature=temperature)
        assert residual < 1e-6
    assert np.ptp(np.asarray(sinkhorn.bias - hnn.bias)) < 1e-6 * temperature * 20


@pytest.mark.parametrize("num_iterations", slow_but([100], [15, 100, 600]))
def test_hnn_stays_converged_in_float32(num_iterations):
    """Unoptimized programs, which quick tests run, let a constant grow where none is taken out."""
    random = np.random.default_rng(0)
    bank = (random.normal(size=(200, 150)) / 6).astype(np.float32)
    how = {"temperature": 0.05}
    fitted = baselines.hubless_nearest_neighbor(bank, num_iterations=num_iterations, **how)
    assert baselines.sinkhorn_residual(bank, fitted, **how) < 1e-5


def test_the_residual_falls_and_tells_an_unfinished_fit():
    bank = problem(7, SHAPES[2]).query_bank_similarities
    residuals = [
        float(
            baselines.sinkhorn_residual(
                bank,
                baselines.sinkhorn_normalization(bank, temperature=0.1, num_iterations=count),
                temperature=0.1,
            )
        )
        for count in (1, 10, 1000)
    ]
    assert residuals[0] > residuals[1] > residuals[2]
    assert residuals[0] > 0.1


def test_one_streamed_iteration_by_single_rows():
    test = problem(8, SHAPES[0])
    options = {"temperature": 0.1, "num_iterations": 1}
    streamed = baselines.stream_sinkhorn_normalization(
        test.query_bank, test.gallery, chunk_size=1, **options
    )
    matrix = baselines.sinkhorn_normalization(test.query_bank_similarities, **options)
    assert np.ptp(np.asarray(streamed.bias - matrix.bias)) < 4e-6


@pytest.mark.parametrize("similarity_fn", SIMILARITY_FNS)
def test_streamed_sinkhorn_equals_matrix(similarity_fn):
    test = problem(8, SHAPES[2])
    options = {"temperature": 0.01, "num_iterations": 10}
    streamed = baselines.stream_sinkhorn_normalization(
        test.query_bank,
        test.gallery,
        gallery_bank=test.gallery_bank,
        similarity_fn=similarity_fn,
        chunk_size=4,
        **options,
    )
    matrix = baselines.dual_bank_sinkhorn_normalization(
        similarity_fn(test.query_bank, test.gallery),
        similarity_fn(test.query_bank, test.gallery_bank),
        **options,
    )
    assert np.ptp(np.asarray(streamed.bias - matrix.bias)) < 4e-6


def test_streamed_forms_never_hold_bank_x_gallery():
    bank = jax.ShapeDtypeStruct((20_000, 8), jnp.float32)
    gallery = jax.ShapeDtypeStruct((30_000, 8), jnp.float32)

    def sinkhorn(bank, gallery, chunk_size=512):
        return baselines.stream_sinkhorn_normalization(
            bank, gallery, temperature=0.1, num_iterations=3, chunk_size=chunk_size
        )

    def largest(bank, gallery):
        return dbn.stream_largest_similarities(bank, gallery, k=10, chunk_size=512)

    assert largest_intermediate(largest, bank, gallery) <= 512 * 4096
    # All items of a chunk wait for the second look; the last tile is moved back, at most a tile.
    assert largest_intermediate(sinkhorn, bank, gallery) <= 512 * (30_000 + 1024)
    whole = partial(sinkhorn, chunk_size=20_000)
    assert largest_intermediate(whole, bank, gallery) <= sweep.MOST_KEPT / 4 * 1.05


@pytest.mark.parametrize("differentiated", slow_but([False], [False, True]))
def test_memory_of_streamed_sinkhorn_does_not_grow_with_the_bank(differentiated):
    def total(bank, gallery):
        fitted = baselines.stream_sinkhorn_normalization(
            bank, gallery, temperature=0.1, num_iterations=3, chunk_size=64
        )
        return fitted.bias.var()

    function = jax.grad(total) if differentiated else total

    def temporaries(num_bank):
        shapes = [jax.ShapeDtypeStruct((count, 8), jnp.float32) for count in (num_bank, 2000)]
        return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    few, many = 512, 4096
    grown = temporaries(many) - temporaries(few)
    # Backward: what items keep at each chunk, and the gradient of the bank. Never a matrix.
    kept = (many - few) * (2 * 5 * 2000 / 64 + 4 * 8) * 4 if differentiated else 0
    assert grown <= kept + 2**14
    assert kept < (many - few) * 2000 * 4 / 5


# Tiles of 576 items: neither side divides, and items and rows repeat at the ends.
UNEVEN = problem(11, (1, 1100, 9, 70))


def uneven_rows(num_bank=9, num_gallery=1100):
    return [
        jnp.asarray(rows)
        for rows in (
            UNEVEN.query_bank[:num_bank],
            UNEVEN.gallery[:num_gallery],
            UNEVEN.gallery_bank,
        )
    ]


def from_matrices(bank, gallery, gallery_bank, **options):
    similarities = dbn.dot_product(bank, gallery)
    if gallery_bank is None:
        return baselines.sinkhorn_normalization(similarities, **options).bias
    to_bank = dbn.dot_product(bank, gallery_bank)
    return baselines.dual_bank_sinkhorn_normalization(similarities, to_bank, **options).bias


def from_embeddings(bank, gallery, gallery_bank, **options):
    return baselines.stream_sinkhorn_normalization(
        bank, gallery, gallery_bank=gallery_bank, chunk_size=4, **options
    ).bias


@pytest.mark.parametrize("dual", [False, True], ids=["sn", "dbsn"])
@pytest.mark.parametrize("shape", [(9, 1100), (1, 1100), (9, 1), (1, 1)], ids=str)
def test_streamed_sinkhorn_equals_matrix_where_nothing_divides(shape, dual):
    bank, gallery, gallery_bank = uneven_rows(*shape)
    rows = (bank, gallery, gallery_bank if dual else None)
    options = {"temperature": 0.02, "num_iterations": 10}
    found, expected = (fit(*rows, **options) for fit in (from_embeddings, from_matrices))
    assert found.shape == expected.shape
    assert np.ptp(np.asarray(found - expected)) < 4e-6


@pytest.mark.parametrize("dual", slow_but([True], [False, True]))
def test_streamed_sinkhorn_has_the_gradient_of_the_matrix(dual):
    bank, gallery, gallery_bank = uneven_rows()
    rows = (bank, gallery, gallery_bank)

    def spread(rows, temperature, fit):
        rows = rows if dual else (*rows[:2], None)
        return fit(*rows, temperature=temperature, num_iterations=3).var()

    gradient = jax.jit(jax.grad(spread, argnums=(0, 1)), static_argnums=2)
    found, expected = (gradient(rows, 0.1, fit) for fit in (from_embeddings, from_matrices))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
    with jax.debug_nans(True):
        chex.assert_tree_all_finite(gradient(rows, 1e-5, from_embeddings))


def test_an_iteration_of_sinkhorn_computes_each_similarity_once():
    counted = []

    def similarity_fn(rows, columns):
        jax.debug.callback(lambda: counted.append(rows.shape[0] * columns.shape[0]))
        return dbn.dot_product(rows, columns)

    bank, gallery, _ = uneven_rows(num_bank=8)
    baselines.stream_sinkhorn_normalization(
        bank,
        gallery[:1024],
        temperature=0.1,
        num_iterations=3,
        similarity_fn=similarity_fn,
        chunk_size=4,
    ).bias.block_until_ready()
    jax.effects_barrier()
    assert sum(counted) == 3 * 8 * 1024


def test_streamed_sinkhorn_of_bfloat16_is_that_of_its_numbers():
    halves = [rows.astype(jnp.bfloat16) for rows in uneven_rows()]
    options = {"temperature": 0.02, "num_iterations": 10}
    found = from_embeddings(*halves, **options)
    expected = from_matrices(*(rows.astype(jnp.float32) for rows in halves), **options)
    assert found.dtype == jnp.float32
    assert np.ptp(np.asarray(found - expected)) < 4e-6


@pytest.mark.slow
def test_gradients_are_finite():
    test = problem(9)

    def total(gallery, bank):
        similarities = dbn.dot_product(bank, gallery)
        largest = dbn.stream_largest_similarities(bank, gallery, k=3)
        fitted = [
            baselines.csls(largest),
            baselines.distribution_normalization(bank.mean(axis=0), gallery),
            baselines.sinkhorn_normalization(similarities, temperature=0.1, num_iterations=3),
            baselines.dis_sim_local(gallery, bank, k=3),
        ]
        moved = baselines.inverse_graph_convolution(
            gallery=gallery, query_bank=bank, gallery_bank=bank, query_rate=0.1, gallery_rate=0.1
        )
        return sum((correction.bias**2).sum() for correction in fitted) + moved[:, 0].sum()

    gradients = jax.grad(total, argnums=(0, 1))(test.gallery, test.query_bank)
    chex.assert_tree_all_finite(gradients)
    assert all(jnp.abs(gradient).max() > 0 for gradient in gradients)


# --- bad input -----------------------------------------------------------------------------------

BANK = problem(10).query_bank_similarities
EMPTY_COLUMN = np.arange(7) != np.zeros((6, 1))
LARGEST = dbn.largest_similarities(BANK, k=2)
CASES = {
    "k": (lambda: dbn.largest_similarities(BANK, k=0), ValueError, "`k`"),
    "no bank item": (
        lambda: baselines.csls(dbn.largest_similarities(BANK, k=2, where=EMPTY_COLUMN)),
        ValueError,
        "`largest`.*without any",
    ),
    "statistics": (
        lambda: baselines.csls(dbn.bank_statistics(BANK, beta=1.0)),
        TypeError,
        "`largest` must be a LargestSimilarities",
    ),
    "weight": (
        lambda: baselines.nearest_neighbor_normalization(LARGEST, weight=np.nan),
        ValueError,
        "`weight` must be finite",
    ),
    "mean": (
        lambda: baselines.distribution_normalization(np.ones(3, np.float32), problem(0).gallery),
        ValueError,
        "`query_bank_mean`.*4.*got 3",
    ),
    "merge": (
        lambda: dbn.merge(LARGEST, dbn.largest_similarities(BANK, k=3)),
        ValueError,
        "k=2.*k=3",
    ),
    "merge of two kinds": (
        lambda: dbn.merge(LARGEST, dbn.bank_statistics(BANK, beta=1.0)),
        TypeError,
        r"`others\[0\]` must be a LargestSimilarities",
    ),
    "temperature": (
        lambda: baselines.sinkhorn_normalization(BANK, temperature=0, num_iterations=1),
        ValueError,
        "`temperature` must be positive",
    ),
    "iterations": (
        lambda: baselines.sinkhorn_normalization(BANK, temperature=1, num_iterations=0),
        ValueError,
        "`num_iterations`",
    ),
    "rows": (
        lambda: baselines.dual_bank_sinkhorn_normalization(
            BANK, BANK[:3], temperature=1, num_iterations=1
        ),
        ValueError,
        "`bank_similarities`.*row",
    ),
    "galleries": (
        lambda: baselines.globally_corrected(BANK, BANK[:, :3]),
        ValueError,
        "`similarities` and `bank_similarities`",
    ),
    "negative distances": (
        lambda: baselines.nicdm(BANK, np.abs(BANK), np.abs(BANK), k=1),
        ValueError,
        "`distances`.*at least 0",
    ),
    "method": (
        lambda: baselines.mutual_proximity(BANK, BANK, BANK, method="exact"),
        ValueError,
        "`method`.*'exact'",
    ),
    "pool": (
        lambda: baselines.inverse_graph_convolution(
            gallery=problem(0).gallery,
            query_bank=problem(0).query_bank,
            gallery_bank=problem(0).gallery_bank,
            query_rate=0.1,
            gallery_rate=0.1,
            pool_rate=0.01,
        ),
        ValueError,
        "`pool_rate`.*less than one",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, words = CASES[case]
    with pytest.raises(error, match=words):
        call()
