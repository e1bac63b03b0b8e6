"""Bank statistics: the reference's numbers, and the laws they obey."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import CHUNK_SIZES, SHAPES, SIMILARITY_FNS, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import largest_intermediate, optimized

import dbnorm_jax as dbn
from dbnorm_jax._src.places.mesh import drive
from dbnorm_jax._src.statistics import bank as banks

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from(SHAPES)
betas = st.sampled_from([0.01, 1.0, 20.0, 1000.0])


def assert_statistics(statistics, expected, *, tolerance=4e-6):
    """Fields agree; log-normalizers up to rounding of float32 times beta."""
    chex.assert_trees_all_equal(statistics.k_occurrence, expected.k_occurrence)
    np.testing.assert_allclose(statistics.mass, expected.mass, rtol=1e-6)
    scale = np.maximum(1, np.asarray(expected.beta)[..., None])
    np.testing.assert_allclose(
        statistics.log_normalizer / scale, expected.log_normalizer / scale, atol=tolerance
    )
    assert statistics.k == expected.k


# --- equal to the reference ----------------------------------------------------------------------


@given(seeds, shapes, betas, st.sampled_from([0, 1, 3]), st.sampled_from(["", "rows", "pairs"]))
def test_equals_the_reference(seed, shape, beta, k, masked):
    similarities = problem(seed, shape, levels=8).query_bank_similarities
    random = np.random.default_rng(seed)
    num_bank, num_gallery = similarities.shape
    weights = random.integers(0, 3, num_bank).astype(np.float32) / 2
    where = {
        "": None,
        "rows": random.random(num_bank) > 0.4,
        "pairs": random.random((num_bank, num_gallery)) > 0.4,
    }[masked]
    options = {"weights": weights, "where": where}
    found = dbn.bank_statistics(similarities, beta=beta, k=k, **options)
    expected = reference.log_normalizer(similarities, beta, **options)
    np.testing.assert_allclose(found.log_normalizer, expected, rtol=1e-5, atol=2e-6 * max(1, beta))
    np.testing.assert_allclose(found.mass, reference.mass(similarities, **options), rtol=1e-6)
    bias = reference.bias(similarities, beta, **options)
    np.testing.assert_allclose(found.bias, bias, atol=2e-6 * max(1, 1 / beta))
    if k:
        counts = reference.bank_k_occurrence(similarities, k, **options)
        np.testing.assert_array_equal(found.k_occurrence, counts)
        np.testing.assert_array_equal(found.active, counts > 0)
    else:
        assert found.k_occurrence is None
        assert found.active is None


@settings(max_examples=12)  # each combination compiles
@given(
    seeds,
    shapes,
    st.sampled_from(CHUNK_SIZES),
    st.sampled_from([0, 1, 3]),
    st.sampled_from(list(SIMILARITY_FNS)),
    st.sampled_from([None, (), (1,), (3,), (9,)]),
)
def test_streamed_equals_matrix(seed, shape, chunk_size, k, similarity_fn, entries):
    test = problem(seed, shape)
    random = np.random.default_rng(seed)
    num_bank, num_gallery = shape[2], shape[1]
    weights = random.integers(0, 3, num_bank)
    exclude = None if entries is None else random.integers(-1, num_gallery, (num_bank, *entries))
    found = dbn.stream_bank_statistics(
        test.query_bank,
        test.gallery,
        beta=20.0,
        k=k,
        weights=weights,
        exclude=exclude,
        similarity_fn=similarity_fn,
        chunk_size=chunk_size,
    )
    where = None
    if exclude is not None:
        where = reference.apart(exclude, num_gallery)
    similarities = similarity_fn(test.query_bank, test.gallery)
    expected = dbn.bank_statistics(similarities, beta=20.0, k=k, where=where, weights=weights)
    assert_statistics(found, expected)


@pytest.mark.parametrize("num_gallery", [1, 31, 2500])
@pytest.mark.parametrize("num_bank", [1, 1030])
def test_streamed_over_several_tiles(num_bank, num_gallery):
    random = np.random.default_rng(0)
    bank, gallery = (random.normal(size=(n, 3)).astype(np.float32) for n in (num_bank, num_gallery))
    k = min(2, num_gallery)
    found = dbn.stream_bank_statistics(bank, gallery, beta=3.0, k=k)
    expected = dbn.bank_statistics(dbn.dot_product(bank, gallery), beta=3.0, k=k)
    np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=1e-5, atol=1e-5)
    # Neighbors may swap where their products round differently in tiles of other shapes.
    assert int(found.k_occurrence.sum()) == num_bank * k
    assert (found.k_occurrence != expected.k_occurrence).mean() <= 0.01


# --- laws ----------------------------------------------------------------------------------------


@given(seeds, shapes)
def test_gallery_permutation(seed, shape):
    similarities = problem(seed, shape).query_bank_similarities
    order = np.random.default_rng(seed).permutation(shape[1])
    whole = dbn.bank_statistics(similarities, beta=20.0, k=2)
    permuted = dbn.bank_statistics(similarities[:, order], beta=20.0, k=2)
    chex.assert_trees_all_close(permuted.bias, whole.bias[order], atol=1e-6)
    chex.assert_trees_all_equal(permuted.k_occurrence, whole.k_occurrence[order])


@pytest.mark.slow
@given(seeds, shapes)
def test_bank_order_does_not_matter(seed, shape):
    test = problem(seed, shape)
    order = np.random.default_rng(seed).permutation(shape[2])
    first, second = (
        dbn.stream_bank_statistics(bank, test.gallery, beta=20.0, chunk_size=3)
        for bank in (test.query_bank, test.query_bank[order])
    )
    assert_statistics(first, second)


@given(seeds, st.integers(1, 10), st.integers(1, 10))
def test_split_and_merge(seed, first_cut, second_cut):
    similarities = problem(seed, SHAPES[2]).query_bank_similarities
    whole = dbn.bank_statistics(similarities, beta=20.0, k=2)
    cuts = sorted((first_cut, second_cut))
    keep = [np.zeros(11, bool) for _ in range(3)]
    keep[0][: cuts[0]] = keep[1][cuts[0] : cuts[1]] = keep[2][cuts[1] :] = True
    # Parts by mask rather than slicing: one shape, and an empty part when the cuts meet.
    a, b, c = (dbn.bank_statistics(similarities, beta=20.0, k=2, where=rows) for rows in keep)
    assert_statistics(dbn.merge(dbn.merge(a, b), c), whole)
    assert_statistics(dbn.merge(a, dbn.merge(b, c)), whole)
    chex.assert_trees_all_close(dbn.merge(a, b), dbn.merge(b, a), atol=1e-6)
    chex.assert_trees_all_equal(dbn.merge(a, b, c), dbn.merge(dbn.merge(a, b), c))
    assert dbn.merge(a) is a


def test_an_empty_part_is_the_identity_of_merge():
    similarities = problem(0).query_bank_similarities
    whole = dbn.bank_statistics(similarities, beta=20.0)
    empty = dbn.bank_statistics(similarities, beta=20.0, where=np.zeros(6, bool))
    assert (empty.log_normalizer == -jnp.inf).all()
    assert not empty.mass.any()
    assert not empty.bias.any()
    for merged in (dbn.merge(whole, empty), dbn.merge(empty, whole)):
        assert_statistics(merged, whole, tolerance=1e-7)
    assert (dbn.merge(empty, empty).log_normalizer == -jnp.inf).all()


@given(seeds)
def test_duplicates_are_weights(seed):
    similarities = problem(seed).query_bank_similarities
    weights = np.array([2, 0, 1, 3, 0, 1])
    repeated = dbn.bank_statistics(np.repeat(similarities, weights, axis=0), beta=20.0, k=0)
    weighted = dbn.bank_statistics(similarities, beta=20.0, k=0, weights=weights)
    assert_statistics(weighted, repeated)


def test_rows_of_weight_zero_are_absent_even_when_huge():
    similarities = np.array([[0.1, 0.2], [1e4, -1e4], [0.3, 0.1]], np.float32)
    weighted = dbn.bank_statistics(similarities, beta=50.0, weights=[1, 0, 1])
    assert_statistics(weighted, dbn.bank_statistics(similarities[::2], beta=50.0))


@given(seeds, st.sampled_from([0.5, 4.0, 64.0]), st.sampled_from([-3.0, 0.5]))
def test_scale_and_shift(seed, scale, shift):
    similarities = problem(seed).query_bank_similarities
    statistics = dbn.bank_statistics(similarities, beta=20.0)
    scaled = dbn.bank_statistics(similarities * np.float32(scale), beta=20.0 / scale)
    shifted = dbn.bank_statistics(similarities + np.float32(shift), beta=20.0)
    chex.assert_trees_all_close(scaled.log_normalizer, statistics.log_normalizer, atol=1e-5)
    chex.assert_trees_all_close(scaled.bias, statistics.bias * np.float32(scale), rtol=1e-5)
    chex.assert_trees_all_close(shifted.bias, statistics.bias + np.float32(shift), atol=1e-6)


def test_beta_limits_are_mean_and_maximum(x64):
    similarities = problem(3).query_bank_similarities.astype(np.float64)
    small = dbn.bank_statistics(similarities, beta=1e-9)
    np.testing.assert_allclose(small.bias, similarities.mean(axis=0), atol=1e-6)
    large = dbn.bank_statistics(similarities, beta=1e9)
    np.testing.assert_allclose(large.bias, similarities.max(axis=0), atol=1e-8)


@given(seeds, st.sampled_from([1e-3, 0.1, 10.0, 1e4]), st.sampled_from([1e-3, 1.0, 1e4]))
def test_float32_error_is_bounded(seed, beta, scale):
    similarities = (problem(seed, SHAPES[2]).query_bank_similarities * scale).astype(np.float32)
    found = dbn.bank_statistics(similarities, beta=beta, k=0)
    chex.assert_tree_all_finite(found.log_normalizer)
    expected = reference.log_normalizer(similarities, beta)
    bound = 5e-6 * max(1, beta * np.abs(similarities).max())
    assert np.abs(found.log_normalizer - expected).max() <= bound


@pytest.mark.parametrize("num_bank", [65_536, 100_000])
@pytest.mark.parametrize("beta", [1e-2, 5.0])
def test_long_banks_keep_their_digits(num_bank, beta):
    """Added up one after the other, 300,000 rows lost three of seven."""
    similarities = np.random.default_rng(0).uniform(-1, 1, (num_bank, 2)).astype(np.float32)
    expected = reference.log_normalizer(similarities, beta)
    found = dbn.bank_statistics(similarities, beta=beta, k=0)
    assert np.abs(found.log_normalizer - expected).max() <= 5e-6


@pytest.mark.slow
def test_a_vector_of_betas_is_a_loop():
    test = problem(1)
    many = jnp.array([[1.0, 20.0], [3.0, 500.0]])
    batched = dbn.stream_bank_statistics(test.query_bank, test.gallery, beta=many)
    similarities = test.query_bank_similarities
    assert batched.bias.shape == (2, 2, 7)
    for place in np.ndindex(2, 2):
        single = dbn.stream_bank_statistics(test.query_bank, test.gallery, beta=many[place])
        found = jax.tree.map(lambda leaf, place=place: leaf[place], batched)
        assert_statistics(found, single)
        chex.assert_trees_all_close(
            dbn.bank_statistics(jnp.stack([similarities] * 2), beta=many[0]).bias[place[1]],
            dbn.bank_statistics(similarities, beta=many[0, place[1]]).bias,
            atol=1e-6,
        )


@pytest.mark.parametrize(
    "compiled",
    [banks._bank_statistics, drive.bank_statistics],
    ids=["from matrices", "streamed"],
)
def test_sweeping_beta_compiles_once(compiled):
    test = problem(2)
    compiled.clear_cache()
    for beta in (1.0, 7, np.float32(20), np.float64(0.1), jnp.float32(3)):
        if compiled is banks._bank_statistics:
            dbn.bank_statistics(test.query_bank_similarities, beta=beta)
        else:
            dbn.stream_bank_statistics(test.query_bank, test.gallery, beta=beta)
    assert compiled._cache_size() == 1


@pytest.mark.slow
def test_batched_masks_and_weights():
    stack = np.stack([problem(seed).query_bank_similarities for seed in range(3)])
    random = np.random.default_rng(0)
    rows, pairs = random.random((3, 6)) > 0.4, random.random((3, 6, 7)) > 0.4
    weights = random.integers(0, 3, (3, 6))
    for options in ({"where": rows}, {"where": pairs, "weights": weights}, {"weights": weights}):
        batched = dbn.bank_statistics(stack, beta=20.0, **options)
        shares = dbn.responsibilities(stack, batched, **options)
        for place in range(3):
            own = {name: value[place] for name, value in options.items()}
            single = dbn.bank_statistics(stack[place], beta=20.0, **own)
            assert_statistics(jax.tree.map(lambda x, place=place: x[place], batched), single)
            chex.assert_trees_all_close(
                shares[place], dbn.responsibilities(stack[place], single, **own), atol=1e-6
            )


def test_statistics_of_the_gallery_itself_leave_the_item_out():
    gallery = problem(4).gallery
    found = dbn.stream_bank_statistics(gallery, gallery, beta=5.0, exclude=np.arange(7))
    off_diagonal = ~np.eye(7, dtype=bool)
    similarities = reference.dot_product(gallery, gallery)
    np.testing.assert_allclose(
        found.bias, reference.bias(similarities, 5.0, where=off_diagonal), atol=1e-6
    )
    np.testing.assert_array_equal(
        found.k_occurrence, reference.bank_k_occurrence(similarities, 1, where=off_diagonal)
    )
    np.testing.assert_array_equal(found.mass, np.full(7, 6.0))


@pytest.mark.slow
@given(seeds, shapes, st.booleans())
def test_responsibilities(seed, shape, masked):
    similarities = problem(seed, shape).query_bank_similarities
    random = np.random.default_rng(seed)
    options = {"weights": random.integers(0, 3, shape[2])}
    if masked:
        options["where"] = random.random(similarities.shape) > 0.3
    statistics = dbn.bank_statistics(similarities, beta=20.0, **options)
    found = dbn.responsibilities(similarities, statistics, **options)
    expected = reference.responsibilities(similarities, 20.0, **options)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    filled = np.asarray(statistics.mass) > 0
    np.testing.assert_allclose(found.sum(axis=0), filled, atol=2e-5)

    def total_bias(similarities):
        return dbn.bank_statistics(similarities, beta=20.0, **options).bias.sum()

    chex.assert_trees_all_close(jax.grad(total_bias)(similarities), found, atol=2e-5)


def test_responsibilities_of_a_column_without_bank_items_are_zero():
    similarities = jnp.ones((2, 2))
    statistics = dbn.bank_statistics(similarities, beta=1.0, where=jnp.array([[True, False]] * 2))
    shares = dbn.responsibilities(similarities, statistics)
    np.testing.assert_allclose(shares, [[0.5, 0.0]] * 2)
    with pytest.raises(TypeError, match="statistics"):
        dbn.responsibilities(similarities, statistics.log_normalizer)


# --- numeric care --------------------------------------------------------------------------------


def _scaled_sum(rows, columns):
    return (rows + columns.T) * 900


# What XLA fuses with its readers, each of whom might round it in its own way.
FUSED = {
    "dot product": (dbn.dot_product, lambda b, g: b @ g.T),
    "elementwise": (_scaled_sum, _scaled_sum),
}
FITS = {
    "k=0": lambda b, g, fn: dbn.stream_bank_statistics(b, g, beta=1e4, k=0, similarity_fn=fn),
    "k=3": lambda b, g, fn: dbn.stream_bank_statistics(b, g, beta=1e4, k=3, similarity_fn=fn),
    "weights": lambda b, g, fn: dbn.stream_bank_statistics(
        b, g, beta=1e4, weights=np.ones(300), similarity_fn=fn
    ),
    "two betas": lambda b, g, fn: jax.tree.map(
        lambda leaf: leaf[1],
        dbn.stream_bank_statistics(b, g, beta=jnp.array([1.0, 1e4]), similarity_fn=fn),
    ),
    "a matrix of a caller's jit": lambda b, g, fn: dbn.bank_statistics(fn(b, g), beta=1e4),
    "merged": lambda b, g, fn: dbn.merge(
        *(
            dbn.stream_bank_statistics(part, g, beta=1e4, similarity_fn=fn)
            for part in (b[1:], b[:1])
        )
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("fused", FUSED)
def test_fused_similarities_agree_with_their_maximum(fit, fused):
    """Rounded in two ways, at beta |s| of 1e10 all powers overflow, or none is left."""
    random = np.random.default_rng(0)
    bank, gallery = ((random.normal(size=(n, 1)) * 1e3).astype(np.float32) for n in (300, 1100))
    similarity_fn, exact = FUSED[fused]
    similarities = exact(bank.astype(np.float64), gallery.astype(np.float64))
    expected = reference.log_normalizer(similarities, 1e4)
    found = optimized(lambda b, g: FITS[fit](b, g, similarity_fn).log_normalizer, bank, gallery)
    np.testing.assert_allclose(found, expected, atol=1e-7 * abs(expected).max())
    if fit != "k=0":
        return
    gradient = optimized(
        jax.grad(lambda b, g: FITS[fit](b, g, similarity_fn).bias.sum()), bank, gallery
    )
    chex.assert_tree_all_finite(gradient)


def test_rows_that_come_again_move_no_maximum():
    """The last chunk repeats rows, which a tile of another shape might round otherwise."""

    def by_place(rows, columns):
        places = jnp.arange(len(rows), dtype=jnp.float32)
        return rows @ columns.T * (1 - jnp.finfo(jnp.float32).eps * places[:, None])

    bank, gallery = jnp.array([[1.0], [1.0], [2.0], [1.0], [1.0]]) * 1e3, jnp.full((2, 1), 1e3)
    options = {"beta": 1e4, "chunk_size": 3, "similarity_fn": by_place}
    found = dbn.stream_bank_statistics(bank, gallery, **options)
    np.testing.assert_allclose(found.log_normalizer, 2e10, rtol=1e-6)


def test_bfloat16_inputs_accumulate_in_float32():
    random = np.random.default_rng(0)
    bank, gallery = (random.normal(size=(n, 64)) / 8 for n in (300, 50))
    low = [array.astype(jnp.bfloat16) for array in (bank, gallery)]
    found = dbn.stream_bank_statistics(*low, beta=20.0)
    assert found.log_normalizer.dtype == found.beta.dtype == jnp.float32
    exact = reference.dot_product(*(array.astype(np.float64) for array in low))
    np.testing.assert_allclose(found.log_normalizer, reference.log_normalizer(exact, 20.0), 1e-4)
    matrix = exact.astype(jnp.bfloat16)
    assert dbn.bank_statistics(matrix, beta=20.0).bias.dtype == jnp.float32


def test_float64_stays_float64(x64):
    test = problem(5)
    bank, gallery = test.query_bank.astype(np.float64), test.gallery.astype(np.float64)
    found = dbn.stream_bank_statistics(bank, gallery, beta=20.0, chunk_size=4)
    assert found.bias.dtype == jnp.float64
    expected = reference.bias(reference.dot_product(bank, gallery), 20.0)
    np.testing.assert_allclose(found.bias, expected, atol=1e-14)


def test_nothing_larger_than_a_tile_is_held():
    bank = jax.ShapeDtypeStruct((50_000, 8), jnp.float32)
    gallery = jax.ShapeDtypeStruct((40_000, 8), jnp.float32)

    def fit(bank, gallery):
        return dbn.stream_bank_statistics(bank, gallery, beta=20.0, k=3, chunk_size=512)

    assert largest_intermediate(fit, bank, gallery) <= 512 * 1024
    assert largest_intermediate(fit, bank, gallery, platform="cuda") <= 512 * 2**16


@pytest.mark.slow
def test_memory_does_not_grow_with_the_bank():
    def temporaries(num_bank):
        shapes = [jax.ShapeDtypeStruct((n, 8), jnp.float32) for n in (num_bank, 5000)]

        def loss(bank, gallery):
            return dbn.stream_bank_statistics(bank, gallery, beta=20.0).bias.sum()

        forward = jax.jit(loss).lower(*shapes).compile().memory_analysis()
        backward = jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis()
        return forward.temp_size_in_bytes, backward.temp_size_in_bytes - 4 * 8 * num_bank

    small, large = temporaries(4096), temporaries(65536)
    assert large[0] <= 1.1 * small[0]
    # Backward, one carry of gallery length per chunk of the bank is kept; a tile never is.
    assert large[1] - small[1] <= 2 * (65536 - 4096) // 1024 * 5000 * 4 * 3
    assert large[1] < 65536 * 5000 * 4 / 20
