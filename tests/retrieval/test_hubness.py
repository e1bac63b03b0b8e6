"""Hubness measures and k-occurrence against the reference, over batches and at any scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import dbnorm_jax as dbn

hubness = dbn.hubness
SEEDS = st.integers(0, 2**31)
# Few shapes: each one compiles anew. In 7 and 49 a mean is easily rounded.
SHAPES = [(7,), (49,), (3, 8), (2, 3, 5)]
MEASURES = [
    ("skewness", {}),
    ("hub_share", {}),
    ("hub_share", {"factor": 1.0}),
    ("hub_occurrence", {}),
    ("hub_occurrence", {"factor": 4.0}),
    ("anti_hub_share", {}),
    ("gini", {}),
    ("robin_hood", {}),
    ("atkinson", {}),
    ("atkinson", {"epsilon": 1.0}),
    ("atkinson", {"epsilon": 2.0}),
]
every_measure = pytest.mark.parametrize(("name", "options"), MEASURES)


def _measure(name, options, counts):
    return getattr(hubness, name)(counts, **options)


def _expected(name, options, counts):
    function = functools.partial(getattr(reference, name), **options)
    return np.apply_along_axis(function, -1, np.asarray(counts))


def _assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def _counts(rng, shape, most=5):
    """Counts with zeros, among them a row that is constant and one of nothing."""
    counts = rng.integers(0, most + 1, shape) * rng.integers(0, 2, shape)
    if rng.random() < 0.5:
        counts += 1  # no zeros
    if rng.random() < 0.2:
        counts[:] = rng.integers(0, most + 1)
    return counts


# --- measures ------------------------------------------------------------------------------------


@every_measure
@settings(max_examples=12)
@given(st.sampled_from(SHAPES), st.sampled_from([5, 1_000_000]), SEEDS)
def test_measure_matches_reference(name, options, shape, most, seed):
    counts = _counts(np.random.default_rng(seed), shape, most)
    actual = _measure(name, options, counts)
    assert actual.shape == shape[:-1]
    assert actual.dtype == jnp.float32
    _assert_close(actual, _expected(name, options, counts))


@every_measure
@pytest.mark.parametrize("num_gallery", [7, 3000])
def test_measure_of_constant_counts(name, options, num_gallery):
    # The sums of the last row are no float32 numbers.
    counts = np.tile(np.array([[0], [1], [3], [1_000_001]]), num_gallery)
    _assert_close(_measure(name, options, counts), _expected(name, options, counts))


@every_measure
def test_measure_of_one_hub_with_everything(name, options):
    counts = np.array([0, 0, 0, 1_000_000, 0, 0, 0])
    _assert_close(_measure(name, options, counts), _expected(name, options, counts))


@every_measure
@settings(max_examples=10)
@given(SEEDS)
def test_measure_does_not_depend_on_scale(name, options, seed):
    # Powers of two are exact; the third power of the largest counts leaves float32.
    counts = _counts(np.random.default_rng(seed), (7,)).astype(np.float32)
    expected = _measure(name, options, counts)
    for scale in (2.0**-10, 2.0**20, 2.0**44):
        _assert_close(_measure(name, options, counts * np.float32(scale)), expected)


@every_measure
def test_jit_and_vmap_equal_a_loop(name, options):
    counts = np.random.default_rng(1).integers(0, 6, (3, 8))
    measure = functools.partial(_measure, name, options)
    expected = [measure(row) for row in counts]
    _assert_close(measure(counts), expected)
    _assert_close(jax.jit(jax.vmap(measure))(counts), expected)


@every_measure
def test_float64_counts_keep_float64(x64, name, options):
    counts = np.random.default_rng(2).random(49)
    actual = _measure(name, options, counts)
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, _expected(name, options, counts), rtol=1e-12)


@every_measure
def test_small_dtypes_are_accumulated_in_float32(name, options):
    counts = np.random.default_rng(3).integers(64, 127, 49)  # the sum overflows int8
    expected = _expected(name, options, counts)
    for dtype in (jnp.int8, jnp.bfloat16):
        actual = _measure(name, options, jnp.asarray(counts, dtype))
        assert actual.dtype == jnp.float32
        _assert_close(actual, expected)


@every_measure
@settings(max_examples=12)
@given(st.sampled_from(["spread", "close"]), st.sampled_from(["i8", "u8", "f8", "list"]), SEEDS)
def test_counts_up_to_2_to_the_53_are_right(name, options, kind, dtype, seed):
    """int32 holds none of them, and float32 not what tells close ones apart."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 2**53, 49) * rng.integers(0, 2, 49)
    # At a factor of 1 the threshold is among close counts, which float32 does not tell apart.
    if kind == "close" and options != {"factor": 1.0}:
        counts = 2**53 - 1 - rng.integers(0, 5, 49)
    # Of differences, which are exact: in float64 the mean of large counts is rounded.
    exact = counts - counts.min() if name == "skewness" else counts
    given = counts.tolist() if dtype == "list" else counts.astype(dtype)
    _assert_close(_measure(name, options, given), _expected(name, options, exact.astype(float)))


def test_close_counts_on_a_device_are_right():
    counts = 2**31 - 1 - np.random.default_rng(6).integers(0, 5, 49)
    _assert_close(hubness.skewness(jnp.asarray(counts)), reference.skewness(counts - counts.min()))


@every_measure
def test_sums_of_the_largest_counts_do_not_overflow(name, options):
    counts = np.array([3e38, 3e38, 2e38, 0, 0, 0, 0], np.float32)
    _assert_close(_measure(name, options, counts), _expected(name, options, counts.astype(float)))


def test_skewness_of_many_counts():
    """The rounding of a mean, and of a sum in float32, would show in the third decimal."""
    counts = np.random.default_rng(7).integers(2**40, 2**41, 200_000)
    _assert_close(hubness.skewness(counts), reference.skewness(counts - counts.min()))


def test_counts_are_not_changed():
    counts = np.arange(7, dtype=np.float32)
    for name, options in MEASURES:
        _measure(name, options, counts)
    np.testing.assert_array_equal(counts, np.arange(7))


@pytest.mark.parametrize("num_gallery", [3, 7, 49, 100])
def test_an_item_at_twice_the_mean_is_a_hub(num_gallery):
    # One item at 2 x mean and one at 0 leave the mean at 3.
    counts = np.full(num_gallery, 3)
    counts[:2] = 6, 0
    np.testing.assert_allclose(hubness.hub_share(counts), 1 / num_gallery, rtol=1e-6)
    np.testing.assert_allclose(hubness.hub_occurrence(counts), 2 / num_gallery, rtol=1e-6)


def test_hubs_are_told_by_the_mean_not_by_k():
    # 8 queries, k = 1, 2 gallery items: the mean is 4, so 7 of 8 is no hub and 8 of 8 is.
    counts = hubness.k_occurrence(np.array([[0]] * 7 + [[1]]), 2)
    assert hubness.hub_share(counts) == 0
    assert hubness.hub_share(hubness.k_occurrence(np.zeros((8, 1), int), 2)) == 1 / 2


# --- k-occurrence --------------------------------------------------------------------------------

# (leading axes, num_queries, k, num_gallery)
PLACES = [((), 6, 2, 5), ((), 4, 3, 9), ((), 12, 1, 4), ((2,), 5, 2, 6), ((2, 3), 4, 2, 5)]


def _reference_counts(indices, num_gallery, counted):
    """The reference for each leading index, of the places that count."""
    lead = indices.shape[:-2]
    result = np.zeros((*lead, num_gallery), int)
    for place in np.ndindex(lead):
        lists = [
            row[keep & (row >= 0)] for row, keep in zip(indices[place], counted[place], strict=True)
        ]
        result[place] = reference.k_occurrence(lists, num_gallery)
    return result


@given(st.sampled_from(PLACES), st.sampled_from([None, "queries", "places"]), SEEDS)
def test_k_occurrence_matches_reference(places, masked, seed):
    rng = np.random.default_rng(seed)
    lead, num_queries, k, num_gallery = places
    indices = rng.integers(-1, num_gallery, (*lead, num_queries, k))
    where = None
    if masked:
        where = rng.random(indices.shape if masked == "places" else indices.shape[:-1]) < 0.6
    counted = np.ones(indices.shape, bool) if where is None else where
    if masked == "queries":
        counted = np.broadcast_to(where[..., None], indices.shape)
    actual = hubness.k_occurrence(indices, num_gallery, where=where)
    assert actual.dtype == jnp.int32
    np.testing.assert_array_equal(actual, _reference_counts(indices, num_gallery, counted))


def test_k_occurrence_takes_a_column_of_queries_as_mask():
    indices, where = np.array([[0, 1], [2, 1]]), np.array([True, False])
    expected = hubness.k_occurrence(indices, 4, where=where)
    np.testing.assert_array_equal(hubness.k_occurrence(indices, 4, where=where[:, None]), expected)
    np.testing.assert_array_equal(expected, [1, 1, 0, 0])


def test_k_occurrence_of_a_search_counts_the_nearest():
    similarities = np.random.default_rng(4).normal(size=(11, 6)).astype(np.float32)
    counts = hubness.k_occurrence(dbn.top_k(similarities, 3).indices, 6)
    np.testing.assert_array_equal(counts, reference.bank_k_occurrence(similarities, 3))
    assert counts.mean() == 3 * 11 / 6  # not k


def test_k_occurrence_in_jit_and_vmap():
    rng = np.random.default_rng(5)
    indices, where = rng.integers(-1, 6, (3, 5, 2)), rng.random((3, 5)) < 0.6
    count = lambda indices, where: hubness.k_occurrence(indices, 6, where=where)  # noqa: E731
    expected = [count(*pair) for pair in zip(indices, where, strict=True)]
    np.testing.assert_array_equal(jax.vmap(count)(indices, where), expected)
    np.testing.assert_array_equal(jax.jit(count)(indices, where), expected)


def test_k_occurrence_keeps_int32_under_x64(x64):
    assert hubness.k_occurrence(np.array([[0], [2]]), 3).dtype == jnp.int32


# --- errors --------------------------------------------------------------------------------------

BAD_COUNTS = [
    (TypeError, np.array([True, False]), ("numbers", "bool")),
    (TypeError, np.array(["a"]), ("numeric", "<U1")),
    (TypeError, np.array([1 + 1j, 2]), ("complex",)),
    (ValueError, np.array([1, -1]), ("negative", "-1")),
    (ValueError, np.array([1, np.nan], np.float32), ("NaN", "nan")),
    (ValueError, np.array([1, np.inf], np.float32), ("finite", "inf")),
    (ValueError, np.array([1, 1e39]), ("float32", "3.4e+38", "1e+39")),
    (ValueError, np.array([1, 1e-50]), ("float32", "1.18e-38", "nearer to 0")),
    (TypeError, [2**64, 1], ("numeric", "64 bits", "floats")),
    (ValueError, np.array(3), ("num_gallery", "()")),
    (ValueError, np.zeros((2, 0)), ("num_gallery", "(2, 0)")),
]


@pytest.mark.parametrize(("error", "counts", "words"), BAD_COUNTS)
def test_bad_counts_are_refused(error, counts, words):
    for name, options in MEASURES:
        with pytest.raises(error, match="`counts`") as caught:
            _measure(name, options, counts)
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize("epsilon", [0, -1.0, float("nan")])
def test_atkinson_refuses_epsilon_that_is_not_positive(epsilon):
    with pytest.raises(ValueError, match=f"`epsilon` must be positive, got {epsilon}"):
        hubness.atkinson(np.array([1, 2]), epsilon=epsilon)


INDICES = np.array([[0, 1], [2, 1], [0, 2]])
BAD_PLACES = [
    (ValueError, (np.array([[0, 3]]), 3), {}, ("`indices`", "between -1", "2", "0 to 3")),
    (ValueError, (np.array([[0, -2]]), 3), {}, ("`indices`", "-1 marks none", "-2 to 0")),
    (ValueError, (INDICES, 2**31), {}, ("`num_gallery`", "2147483647", f"{2**31}")),
    (ValueError, (np.array([0, 1]), 3), {}, ("`indices`", "(2,)", "indices[:, None]")),
    (TypeError, (np.array([[0.0]]), 3), {}, ("`indices`", "integers", "float")),
    (ValueError, (INDICES, 0), {}, ("`num_gallery`", "between 1", "got 0")),
    (TypeError, (INDICES, 3.0), {}, ("`num_gallery`", "integer", "3.0")),
    (TypeError, (INDICES, True), {}, ("`num_gallery`", "integer", "True")),
    (ValueError, (INDICES, 3), {"where": np.ones(2, bool)}, ("`where`", "(3,)", "(3, 2)", "(2,)")),
    (ValueError, (INDICES, 3), {"where": np.ones((3, 3), bool)}, ("`where`", "(3, 3)")),
    (ValueError, (INDICES, 3), {"where": np.array(True)}, ("`where`", "got ()")),
    (TypeError, (INDICES, 3), {"where": np.ones(3, int)}, ("`where`", "bool", "int")),
]


@pytest.mark.parametrize(("error", "arguments", "options", "words"), BAD_PLACES)
def test_bad_places_are_refused(error, arguments, options, words):
    with pytest.raises(error) as caught:
        hubness.k_occurrence(*arguments, **options)
    for word in words:
        assert word in str(caught.value)
