"""The three similarity functions against the reference, at extreme norms, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import dbnorm_jax as dbn
from dbnorm_jax._src.core import low_precision

FUNCTIONS = [dbn.dot_product, dbn.cosine_similarity, dbn.negative_squared_euclidean]
every_similarity = pytest.mark.parametrize("function", FUNCTIONS)
SEEDS = st.integers(0, 2**31)
# (num_rows, num_columns, dim), few: each one compiles anew.
SHAPES = [(5, 7, 3), (1, 1, 1), (4, 6, 16)]


def _vectors(seed, shape=(5, 7, 3)):
    rng = np.random.default_rng(seed)
    num_rows, num_columns, dim = shape
    rows, columns = rng.normal(size=(num_rows, dim)), rng.normal(size=(num_columns, dim))
    return rows.astype(np.float32), columns.astype(np.float32)


def _expected(function, rows, columns):
    return getattr(reference, function.__name__)(rows, columns)


# --- values --------------------------------------------------------------------------------------


@every_similarity
@settings(max_examples=15)
@given(st.sampled_from(SHAPES), SEEDS)
def test_similarity_matches_reference(function, shape, seed):
    rows, columns = _vectors(seed, shape)
    actual = function(rows, columns)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, _expected(function, rows, columns), rtol=1e-5, atol=1e-5)


@every_similarity
@pytest.mark.parametrize("narrow", [np.float64, np.float32])
def test_one_float64_input_gives_float64(x64, function, narrow):
    rows, columns = _vectors(0)
    columns = columns.astype(np.float64) + 1e-9  # lost in float32
    actual = function(rows.astype(narrow), columns)
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, _expected(function, rows, columns), rtol=1e-12, atol=1e-13)


@every_similarity
@pytest.mark.parametrize("other", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_bfloat16_input_is_accumulated_in_float32(function, other):
    rows, columns = _vectors(1, (4, 6, 16))
    rows, columns = jnp.asarray(rows, jnp.bfloat16), jnp.asarray(columns, other)
    actual = function(rows, columns)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, _expected(function, rows, columns), rtol=1e-5, atol=1e-5)


@every_similarity
def test_jit_equals_eager_and_vmap_equals_loop(function):
    pairs = [_vectors(seed) for seed in range(3)]
    rows, columns = (np.stack(parts) for parts in zip(*pairs, strict=True))
    expected = np.stack([function(*pair) for pair in pairs])
    np.testing.assert_allclose(jax.jit(function)(*pairs[0]), expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(function)(rows, columns), expected, rtol=1e-6, atol=1e-6)


@every_similarity
def test_products_take_full_float32_unless_the_caller_chooses(function):
    # A CPU computes the same either way: the request itself is checked.
    arrays = _vectors(2)
    assert "HIGHEST" in str(jax.make_jaxpr(function)(*arrays))
    with jax.default_matmul_precision("bfloat16"):
        assert "HIGHEST" not in str(jax.make_jaxpr(function)(*arrays))


@every_similarity
def test_inputs_are_not_changed(function):
    rows, columns = _vectors(3)
    copies = rows.copy(), columns.copy()
    function(rows, columns)
    np.testing.assert_array_equal(rows, copies[0])
    np.testing.assert_array_equal(columns, copies[1])


@every_similarity
def test_lists_and_foreign_byte_order_are_taken(function):
    rows, columns = _vectors(4)
    expected = function(rows, columns)
    np.testing.assert_array_equal(function(rows.tolist(), columns.tolist()), expected)
    np.testing.assert_array_equal(function(rows.astype(">f4"), columns), expected)


# --- cosine --------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_scale", [1e30, 1e-30])
@pytest.mark.parametrize("column_scale", [1e30, 1e-30])
def test_cosine_of_huge_and_tiny_vectors(row_scale, column_scale):
    # Their squares leave the range of float32.
    rows, columns = _vectors(5)
    rows, columns = rows * np.float32(row_scale), columns * np.float32(column_scale)
    actual = dbn.cosine_similarity(rows, columns)
    expected = reference.cosine_similarity(rows, columns)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_cosine_of_entries_of_very_different_size():
    rows, columns = np.array([[1e30, 1e-30]], np.float32), np.array([[3e-30, 4e-30]], np.float32)
    np.testing.assert_allclose(dbn.cosine_similarity(rows, columns), [[3 / 5]], rtol=1e-6)


@given(SEEDS)
def test_cosine_does_not_depend_on_length(seed):
    rows, columns = _vectors(seed)
    powers = 2.0 ** np.random.default_rng(seed).integers(-60, 60, (5, 1))  # exact in float32
    np.testing.assert_array_equal(
        dbn.cosine_similarity(rows * powers.astype(np.float32), columns),
        dbn.cosine_similarity(rows, columns),
    )


def test_cosine_with_itself_is_one():
    rows, _ = _vectors(6, (64, 1, 16))
    actual = np.diagonal(dbn.cosine_similarity(rows, -rows))
    np.testing.assert_allclose(actual, -np.ones(64), rtol=1e-6)


def test_zero_row_is_refused_under_cosine():
    rows, columns = _vectors(7)
    zero = np.where(np.isin(np.arange(5), [2, 4])[:, None], 0, rows).astype(np.float32)
    with pytest.raises(ValueError, match=r"`rows`.*zero row.*found 2, the first at row 2; remove"):
        dbn.cosine_similarity(zero, columns)
    with pytest.raises(ValueError, match=r"`columns`.*zero row.*found 2, the first at row 2"):
        dbn.cosine_similarity(columns, zero)


def test_a_row_that_computation_takes_for_zero_is_refused_as_one():
    # XLA flushes subnormal numbers to zero; NumPy does not.
    rows = np.array([[1.0, 2.0], [1e-40, 0.0]], np.float32)
    with pytest.raises(ValueError, match=r"`rows`.*zero row.*found 1, the first at row 1"):
        dbn.cosine_similarity(rows, np.eye(2, dtype=np.float32))


@pytest.mark.parametrize("function", [dbn.dot_product, dbn.negative_squared_euclidean])
def test_zero_row_is_taken_by_the_others(function):
    rows, columns = _vectors(8)
    rows[2] = 0
    expected = _expected(function, rows, columns)
    np.testing.assert_allclose(function(rows, columns), expected, rtol=1e-5, atol=1e-5)


def test_zero_row_inside_jit_is_zero_with_finite_gradients():
    rows, columns = _vectors(9)
    rows[2], columns[4] = 0, 0
    actual = jax.jit(dbn.cosine_similarity)(rows, columns)
    expected = reference.cosine_similarity(rows, columns)
    np.testing.assert_array_equal(actual[2], np.zeros(7))
    np.testing.assert_array_equal(actual[:, 4], np.zeros(5))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    gradients = jax.grad(lambda *arrays: dbn.cosine_similarity(*arrays).sum(), (0, 1))
    for gradient in jax.jit(gradients)(rows, columns):
        assert np.isfinite(gradient).all()
        assert np.any(gradient != 0)


# --- negative squared distance -------------------------------------------------------------------


def _far(seed, offset, spread, dtype=np.float32, shape=(40, 90, 16)):
    """Vectors around a point far from the origin in some coordinates, as float64 of the dtype."""
    rng = np.random.default_rng(seed)
    num_rows, num_columns, dim = shape
    center = offset * rng.choice([-1, 0, 1, 1], dim)
    spreads = spread * 10.0 ** rng.uniform(-2, 0, dim)
    return [
        np.asarray(jnp.asarray(center + spreads * rng.normal(size=(count, dim)), dtype), np.float64)
        for count in (num_rows, num_columns)
    ]


def _bound(eps, *arrays):
    """`docs/promises.md`: eps (4 + sqrt(dim)) of the squared spread of rows and columns.

    Three sums of `dim` products are rounded, each like a random walk, and two differences.
    """
    spread = np.square(np.ptp(np.concatenate(arrays), axis=0)).sum()
    return eps * (4 + arrays[0].shape[1] ** 0.5) * spread


@settings(max_examples=15)
@given(SEEDS, st.floats(-3, 9), st.floats(-3, 3))
@example(781, 7.634289051230608, 0.0)  # 4.5 eps, the most of 400 draws
def test_the_error_of_distances_is_of_the_spread_not_of_the_place(seed, offset, spread):
    rows, columns = _far(seed, 10**offset, 10**spread)
    actual = dbn.negative_squared_euclidean(rows, columns)
    error = np.abs(actual - reference.negative_squared_euclidean(rows, columns)).max()
    assert error <= _bound(np.finfo(np.float32).eps, rows, columns)


@pytest.mark.parametrize(
    ("dtype", "offset", "spread"),
    [
        ("float64", 1e15, 1.0),
        ("float32", 4e6, 1.0),
        ("bfloat16", 1e3, 10.0),
        ("float16", 3e4, 99.0),
    ],
)
def test_distances_far_from_the_origin_in_each_dtype(dtype, offset, spread):
    with jax.enable_x64(dtype == "float64"):
        rows, columns = _far(0, offset, spread, dtype)
        arrays = (jnp.asarray(array, dtype) for array in (rows, columns))
        actual = np.asarray(dbn.negative_squared_euclidean(*arrays))
    error = np.abs(actual - reference.negative_squared_euclidean(rows, columns)).max()
    assert error <= _bound(np.finfo(actual.dtype).eps, rows, columns)


@given(SEEDS, st.sampled_from([0, 1, 300, 1000]))
def test_distances_of_whole_numbers_are_exact(seed, offset):
    rng = np.random.default_rng(seed)
    rows, columns = (rng.integers(0, 200, (count, 16)) + offset for count in (5, 7))
    actual = dbn.negative_squared_euclidean(rows.astype(np.float32), columns.astype(np.float32))
    np.testing.assert_array_equal(actual, reference.negative_squared_euclidean(rows, columns))


def test_one_far_column_costs_the_others_nothing():
    """What most columns have around zero stays as it is."""
    rows, columns = _vectors(13, (5, 70, 3))
    far = np.concatenate([columns, np.full((1, 3), 1e6, np.float32)])
    np.testing.assert_array_equal(
        dbn.negative_squared_euclidean(rows, far)[:, :-1],
        dbn.negative_squared_euclidean(rows, columns),
    )


@pytest.mark.slow
def test_neighbors_far_from_the_origin_are_the_same_in_any_tile_and_place():
    """Those of the distances themselves: by chunks of any size, on a mesh, over files."""
    queries, gallery = (array.astype(np.float32) for array in _far(1, 4e6, 50.0))
    distances = reference.negative_squared_euclidean(queries, gallery)
    expected = reference.top_k(distances, 5)[1]
    right = expected[:, 3]
    options = {"similarity_fn": dbn.negative_squared_euclidean}
    mesh = jax.make_mesh((2, 4), ("bank", "gallery"))
    for found in (
        dbn.stream_top_k(queries, gallery, 5, **options),
        dbn.stream_top_k(queries, gallery, 5, chunk_size=7, **options),
        dbn.stream_top_k(queries, gallery, 5, mesh=mesh, **options),
        dbn.out_of_core.top_k(queries, gallery, 5, block_size=17, **options),
    ):
        np.testing.assert_array_equal(found.indices, expected)
        np.testing.assert_allclose(found.scores, np.take_along_axis(distances, expected, 1), 1e-4)
    for ranks in (
        dbn.metrics.stream_ranks(queries, gallery, right, **options),
        dbn.metrics.stream_ranks(queries, gallery, right, chunk_size=7, **options),
        dbn.metrics.stream_ranks(queries, gallery, right, mesh=mesh, **options),
        dbn.out_of_core.ranks(queries, gallery, right, block_size=17, **options),
    ):
        np.testing.assert_array_equal(ranks, np.full(len(queries), 4))


def test_negative_squared_euclidean_is_at_most_zero_far_from_the_origin():
    rows, _ = _vectors(10, (64, 1, 16))
    assert dbn.negative_squared_euclidean(rows + 1000, rows + 1000).max() <= 0


def test_negative_squared_euclidean_is_zero_where_vectors_coincide():
    rows = np.array([[1.0, 2.0], [-0.5, 0.25]], np.float32)  # exact
    np.testing.assert_array_equal(np.diagonal(dbn.negative_squared_euclidean(rows, rows)), [0, 0])


def test_gradient_of_distance_vanishes_where_vectors_coincide():
    row = jnp.array([[1.0, 2.0]])
    gradient = jax.grad(lambda row, column: dbn.negative_squared_euclidean(row, column).sum())
    np.testing.assert_array_equal(gradient(row, row), [[0, 0]])


# --- gradients -----------------------------------------------------------------------------------


@every_similarity
def test_gradients_equal_finite_differences(x64, function):
    arrays = [array.astype(np.float64) for array in _vectors(11)]
    check_grads(function, arrays, order=1, modes=["fwd", "rev"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e18, 1e-18])
def test_cosine_gradients_are_right_at_extreme_norms(scale):
    rows, columns = _vectors(12)
    gradient = jax.grad(lambda *arrays: dbn.cosine_similarity(*arrays).sum(), (0, 1))
    scaled = gradient(rows * np.float32(scale), columns * np.float32(scale))
    for actual, expected in zip(scaled, gradient(rows, columns), strict=True):
        np.testing.assert_allclose(actual * scale, expected, rtol=1e-4, atol=1e-5)


# --- errors --------------------------------------------------------------------------------------

GOOD = np.ones((2, 3), np.float32)
BAD = [
    (ValueError, np.ones((4, 5), np.float32), ("number of columns", "(2, 3)", "(4, 5)")),
    (ValueError, np.ones((3, 2), np.float32), ("(2, 3)", "(3, 2)", "transposed")),
    (ValueError, np.ones(3, np.float32), ("2 axes", "(3,)")),
    (ValueError, np.ones((1, 2, 3), np.float32), ("2 axes", "(1, 2, 3)")),
    (ValueError, np.ones((0, 3), np.float32), ("at least one row", "(0, 3)")),
    (ValueError, np.ones((2, 0), np.float32), ("one dimension", "(2, 0)")),
    (ValueError, np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), ("finite", "nan", "[1, 1]")),
    (ValueError, np.array([[0, 0, -np.inf]], np.float32), ("finite", "-inf", "[0, 2]")),
    (ValueError, [[1.0, 2.0], [3.0]], ("array", "ragged list")),
    (TypeError, np.ones((2, 3), int), ("floating point", "int", "astype")),
    (TypeError, np.ones((2, 3), bool), ("floating point", "bool")),
    (TypeError, np.ones((2, 3), np.complex64), ("floating point", "complex64")),
    (TypeError, np.full((2, 3), None), ("numeric", "object")),
    (TypeError, np.full((2, 3), "a"), ("numeric", "<U1")),
]


@every_similarity
@pytest.mark.parametrize(("error", "bad", "words"), BAD)
def test_bad_arrays_are_refused(function, error, bad, words):
    with pytest.raises(error, match="`columns`") as caught:
        function(GOOD, bad)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(error, match="`rows`"):
        function(bad, GOOD)


@every_similarity
def test_shapes_are_checked_inside_jit_too(function):
    with pytest.raises(ValueError, match="number of columns"):
        jax.jit(function)(GOOD, np.ones((4, 5), np.float32))


def test_a_value_beyond_float32_is_named():
    huge = np.array([[1e300, 0.0, 0.0]])  # infinite once it is float32
    with pytest.raises(ValueError, match=r"`rows` must be in the range of float32.*1e\+300"):
        dbn.dot_product(huge, GOOD)


def test_rows_near_the_largest_number_have_a_direction_and_a_norm():
    rows = np.array([[3e38, -1e38], [1e38, 1e38], [2.0, 1.0]], np.float32)
    expected = reference.cosine_similarity(rows.astype(float), rows.astype(float))
    np.testing.assert_allclose(dbn.cosine_similarity(rows, rows), expected, atol=1e-6)
    norms = low_precision.norms_up(jnp.asarray(rows[1:]))
    np.testing.assert_allclose(norms, np.linalg.norm(rows[1:].astype(float), axis=1), rtol=1e-4)
