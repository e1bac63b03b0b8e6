"""Exponential means: right at every beta and weight that is accepted, however put together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dbnorm_jax as dbn
from dbnorm_jax import growing
from dbnorm_jax._src.core import checks

EPS = np.finfo(np.float32).eps


def exact(similarities, beta, weights=None):
    """(bias, log of the mass, responsibilities) of each column in extended precision."""
    s = np.asarray(similarities, np.longdouble)
    w = np.ones(len(s)) if weights is None else np.asarray(weights)
    w, beta = w.astype(np.longdouble)[:, None], np.longdouble(beta)
    top = np.where(w > 0, s, -np.inf).max(axis=0)
    x = np.minimum(beta * (s - top), 0)
    below = (w * np.expm1(x)).sum(axis=0) / w.sum()
    mean = (w * np.exp(x)).sum(axis=0) / w.sum()
    log_mean = np.where(below > -0.5, np.log1p(np.maximum(below, -0.5)), np.log(mean))
    return top + log_mean / beta, np.log(w.sum()), w * np.exp(x) / (w.sum() * mean)


def assert_right(statistics, similarities, weights=None, roundings=16):
    beta = np.asarray(statistics.beta, np.float64)
    bias, log_mass, _ = exact(similarities, beta, weights)
    largest = np.abs(np.asarray(similarities, np.float64)).max()
    found = np.asarray(statistics.bias, np.longdouble)
    few = roundings * EPS * largest
    assert np.abs(found - bias).max() <= few
    present = np.asarray(similarities, np.float64)[
        slice(None) if weights is None else np.asarray(weights) > 0
    ]
    assert (found <= present.max(axis=0) + few).all()
    assert (found >= present.min(axis=0) - few).all()
    if weights is None:
        assert (found >= present.mean(axis=0) - few).all()
    np.testing.assert_allclose(statistics.log_mass, log_mass, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("power", [-36.9, -20, -8, -6, -4, -3, -2, -1, 0, 1, 2, 4, 8, 20, 36.9])
def test_the_bias_is_right_at_every_beta(power):
    random = np.random.default_rng(int(power) + 40)
    shape = (700, 60)  # two blocks of rows, several tiles
    unlike = random.uniform(-0.1, 0.4, shape)
    alike = 0.3 + 1e-4 * random.normal(size=shape)
    skewed = np.where(np.arange(700)[:, None] == 3, 1.0, 0.01 * random.normal(size=shape))
    for matrix in (unlike, alike, skewed, np.full(shape, 0.7)):
        similarities = matrix.astype(np.float32)
        assert_right(dbn.bank_statistics(similarities, beta=10.0**power), similarities)


@pytest.mark.parametrize("beta", [1e-6, 0.1, 1.0, 20.0, 1e4])
def test_streamed_biases_are_right_at_every_beta(beta):
    random = np.random.default_rng(3)
    bank, gallery = (random.normal(size=(n, 8)).astype(np.float32) for n in (1100, 40))
    found = dbn.stream_bank_statistics(bank, gallery, beta=beta, chunk_size=256)
    products = bank.astype(np.float64) @ gallery.astype(np.float64).T
    bias = exact(products, np.float32(beta))[0]
    assert np.abs(np.asarray(found.bias) - bias).max() <= 12 * EPS * np.abs(products).max()


@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 30.0, 1e3]), st.integers(1, 5))
def test_weights_of_all_sizes_are_right(seed, beta, num_rows):
    random = np.random.default_rng(seed)
    similarities = random.normal(size=(num_rows, 3)).astype(np.float32)
    weights = (10 ** random.uniform(-17.9, 17.9, num_rows)).astype(np.float32)
    weights[random.random(num_rows) < 0.2] = 0
    weights[0] = max(weights[0], 1)
    found = dbn.bank_statistics(similarities, beta=beta, weights=weights)
    assert_right(found, similarities, list(weights))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta", [1.0, 20.0, [1.0, 20.0, 700.0]])
def test_rows_of_weight_0_may_be_above_the_others_by_any_amount(beta, dtype):
    """Also where their power is just beyond the range of its dtype."""
    exponents = np.concatenate([np.linspace(0, 900, 7201), 10.0 ** np.arange(3, 19)])
    above = np.concatenate([exponents / one for one in np.ravel(beta)])
    with jax.enable_x64(True):
        similarities = np.stack([np.zeros_like(above), above, -np.ones_like(above)]).astype(dtype)
        found = dbn.bank_statistics(similarities, beta=beta, weights=[1.0, 0.0, 1.0])
        expected = dbn.bank_statistics(similarities[::2], beta=beta)
        np.testing.assert_allclose(found.bias, expected.bias, atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("heavy", [1e-6, 1e6])
@pytest.mark.parametrize("step", [2, 16, 32])
def test_rows_that_stand_out_at_regular_distances(step, heavy):
    # A few rows of a tile, those at 0, step, 2 step..., tell how its sums are made: they are unlike
    # the others here, and of another weight.
    random = np.random.default_rng(step)
    similarities = random.uniform(-1.0, -0.9, (1024, 3)).astype(np.float32)
    similarities[::step] = random.uniform(0.999, 1.0, (1024 // step, 3))
    weights = np.ones(1024, np.float32)
    weights[::step] = heavy
    for beta in (1e-3, 5.0, 20.0, 200.0):
        statistics = dbn.bank_statistics(similarities, beta=beta, weights=weights)
        assert_right(statistics, similarities, weights)


@pytest.mark.parametrize("scale", [1.0, 123.4, 5678.9, 1e6])
@pytest.mark.parametrize("beta", [1e-3, 20.0, 1e4, 1e8])
def test_responsibilities_are_shares_at_every_beta(beta, scale):
    random = np.random.default_rng(7)
    one = (scale * random.uniform(0.8, 1, (1, 50))).astype(np.float32)
    np.testing.assert_array_equal(dbn.responsibilities(one, dbn.bank_statistics(one, beta=beta)), 1)
    # Differences that a float32 holds exactly, so that only the library rounds.
    steps = random.integers(0, 40, (30, 20)) * np.float32(2.0**-3 / beta)
    several = (np.round(steps / (EPS * scale)) * (EPS * scale) + scale).astype(np.float32)
    found = dbn.responsibilities(several, dbn.bank_statistics(several, beta=beta))
    expected = exact(several, np.float32(beta))[2]
    np.testing.assert_allclose(found, expected, rtol=64 * EPS, atol=1e-30)
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-5)


def test_rows_one_by_one_beyond_2_to_the_24():
    random = np.random.default_rng(1)
    large = dbn.bank_statistics([[0.25, -0.5]], beta=3.0, weights=[2.0**24])
    rows = random.normal(size=(3000, 1, 2)).astype(np.float32)

    def add(state, row):
        return dbn.merge(state, dbn.bank_statistics(row, beta=3.0)), None

    found = jax.lax.scan(add, large, rows)[0]
    total = np.asarray(found.weight, np.float64) + np.asarray(found.weight_rest, np.float64)
    np.testing.assert_array_equal(total, 2**24 + 3000)
    every = np.concatenate([[[0.25, -0.5]], rows[:, 0]])
    bias = exact(every, 3.0, [2**24] + [1] * 3000)[0]
    moved = bias - np.array([0.25, -0.5])
    both = np.asarray(found.bias, np.float64) + np.asarray(found.bias_rest, np.float64)
    np.testing.assert_allclose(both - np.array([0.25, -0.5]), moved.astype(float), rtol=1e-4)


@pytest.mark.slow
@given(st.permutations(range(5)), st.sampled_from([1e-5, 2.0, 1e5]))
def test_parts_in_any_order(order, beta):
    random = np.random.default_rng(5)
    similarities = random.normal(size=(50, 4)).astype(np.float32)
    weights = (10 ** random.uniform(-6, 6, 50)).astype(np.float32)
    parts = [
        dbn.bank_statistics(similarities[rows], beta=beta, weights=weights[rows])
        for rows in np.split(np.arange(50), [3, 4, 20, 36])
    ]
    found = dbn.merge(*(parts[place] for place in order))
    assert_right(found, similarities, list(weights))


def test_what_decays_for_years_is_still_there():
    random = np.random.default_rng(2)
    old, new = (random.normal(size=(20, 3)).astype(np.float32) for _ in range(2))
    state = dbn.bank_statistics(old, beta=5.0)
    fading = functools.reduce(lambda state, _: growing.decay(state, 1e-30), range(3), state)
    np.testing.assert_array_equal(fading.bias, state.bias)
    np.testing.assert_allclose(fading.log_mass, state.log_mass - 90 * np.log(10), rtol=1e-6)
    assert (fading.mass == 0).all()  # in float32
    fresh = dbn.bank_statistics(new, beta=5.0)
    both = dbn.merge(fading, fresh)
    np.testing.assert_allclose(both.bias, fresh.bias, rtol=1e-6)
    # Beside what fades as fast, it has its whole weight.
    alike = dbn.merge(fading, functools.reduce(growing.decay, [1e-30] * 3, fresh))
    np.testing.assert_allclose(alike.bias, dbn.merge(state, fresh).bias, rtol=1e-5)
    grown = functools.reduce(growing.decay, [1e30] * 3, alike)
    np.testing.assert_allclose(grown.mass, 40, rtol=1e-5)


def test_a_hot_row_stays_when_the_heavy_one_goes():
    whole = dbn.bank_statistics([[10.0], [0.0]], beta=10.0, weights=[1e-8, 1.0])
    cold = dbn.bank_statistics([[0.0]], beta=10.0)
    for everything in (
        whole,
        dbn.merge(growing.decay(dbn.bank_statistics([[10.0]], beta=10.0), 1e-8), cold),
    ):
        left = dbn.subtract(everything, cold)
        np.testing.assert_allclose(left.bias, 10, rtol=1e-6)
        np.testing.assert_allclose(left.mass, 1e-8, rtol=1e-4)
        np.testing.assert_allclose(left.log_normalizer, 100 + np.log(1e-8), rtol=1e-5)


def test_a_mass_below_its_own_rounding_is_refused():
    whole = dbn.bank_statistics([[10.0], [0.0]], beta=10.0, weights=[1e-12, 1.0])
    for smallest_share in (1e-3, 0):
        with pytest.raises(ValueError, match=r"`part` must leave a share"):
            dbn.subtract(
                whole, dbn.bank_statistics([[0.0]], beta=10.0), smallest_share=smallest_share
            )


@pytest.mark.parametrize("beta", [0.9 / checks.MOST_BETA, 1.1 * checks.MOST_BETA, 1e-39, 3e38])
def test_betas_that_cannot_be_served_are_refused(beta):
    for fit in (
        lambda: dbn.bank_statistics([[1.0]], beta=beta),
        lambda: dbn.stream_bank_statistics([[1.0]], [[1.0]], beta=beta),
        lambda: dbn.out_of_core.bank_statistics(np.ones((1, 1)), np.ones((1, 1)), beta=beta),
    ):
        with pytest.raises(ValueError, match=r"`beta` must be between 1e-37 and 1e\+37"):
            fit()


@pytest.mark.parametrize("weight", [0.9 / checks.MOST_WEIGHT, 1.1 * checks.MOST_WEIGHT, 3e38])
def test_weights_that_cannot_be_served_are_refused(weight):
    rows = np.ones((2, 1), np.float32)
    for fit in (dbn.bank_statistics, functools.partial(dbn.stream_bank_statistics, rows)):
        with pytest.raises(ValueError, match=r"`weights` must be 0 or between 1e-18 and 1e\+18"):
            fit(rows, beta=1.0, weights=[weight, 1])


@pytest.mark.slow
def test_gradients_through_merging_are_those_of_the_whole():
    random = np.random.default_rng(11)
    similarities = jnp.asarray(random.normal(size=(9, 4)), jnp.float32)
    weights = jnp.asarray(random.uniform(0.5, 2, 9), jnp.float32)

    def whole(similarities, weights, beta):
        return dbn.bank_statistics(similarities, beta=beta, weights=weights).bias.sum()

    def parts(similarities, weights, beta):
        cut = [
            dbn.bank_statistics(similarities[rows], beta=beta, weights=weights[rows])
            for rows in (slice(0, 2), slice(2, 3), slice(3, 9))
        ]
        return dbn.merge(*cut).bias.sum()

    for beta in (1e-2, 1.0, 50.0):
        slopes = (jax.grad(f, (0, 1, 2))(similarities, weights, beta) for f in (whole, parts))
        for one, other in zip(*slopes, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("place", [-1e38, -2e30, 2e30, 1e38])
def test_columns_far_from_zero(place):
    similarities = np.array([[place], [place * (1 - 1e-6)]], np.float32)
    for beta in (1e-36, 1.0, 1e20):
        found = dbn.bank_statistics(similarities, beta=beta)
        merged = dbn.merge(*(dbn.bank_statistics(row[None], beta=beta) for row in similarities))
        for statistics in (found, merged):
            assert_right(statistics, similarities)
