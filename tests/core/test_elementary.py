"""Elementary functions against NumPy in float64, on every kind of value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from tracing import optimized

from dbnorm_jax._src.core import elementary

NAN_OF_EITHER_SIGN = np.array([np.nan, -np.nan], np.float32)


@pytest.mark.parametrize("function", [elementary.written, elementary.rounded])
def test_two_readers_see_the_same_numbers(function):
    """A product that one rounds, the other would subtract from unrounded."""
    random = np.random.default_rng(0)
    rows, columns = (random.normal(size=(n, 1)).astype(np.float32) for n in (300, 500))

    def excess(rows, columns):
        products = function(rows * columns.T)
        return (products - products.max(axis=0)[None]).max(axis=0)

    np.testing.assert_array_equal(optimized(excess, rows, columns), np.zeros(500))
    np.testing.assert_array_equal(optimized(jax.vmap(excess), rows[None], columns[None]), 0)


@pytest.mark.parametrize("function", [elementary.written, elementary.rounded])
def test_what_is_written_stays_as_it_is(function):
    values = np.array([[0.0, -0.0, np.inf], [-np.inf, np.nan, 1e-40]], np.float32)
    found = jax.jit(function)(values)
    np.testing.assert_array_equal(np.asarray(found).view(np.int32), values.view(np.int32))
    check_grads(lambda x: jnp.sin(function(x)), (jnp.linspace(-2.0, 2.0, 7),), order=2, rtol=1e-2)
    for dtype in (jnp.float16, jnp.bfloat16):
        assert function(jnp.ones(3, dtype)).dtype == dtype


def test_powers_of_two_are_within_1_2_ulp():
    x = np.linspace(-126, 127, 1_000_001).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    found = np.asarray(jax.jit(elementary.exp2)(x))
    assert (abs(found - exact) / np.spacing(exact.astype(np.float32))).max() <= 1.2
    whole = np.arange(-126, 128, dtype=np.float32)
    np.testing.assert_array_equal(elementary.exp2(jnp.asarray(whole)), 2.0 ** whole.astype(float))


def test_powers_of_two_of_special_values():
    x = np.array([0, -0.0, -126.5, -1e30, -np.inf, *NAN_OF_EITHER_SIGN], np.float32)
    expected = np.array([1, 1, 0, 0, 0, np.nan, np.nan])
    np.testing.assert_array_equal(jax.jit(elementary.exp2)(jnp.asarray(x)), expected)


def test_powers_of_two_have_derivatives():
    x = jnp.linspace(-8.0, 2.0, 7)
    check_grads(elementary.exp2, (x,), order=2, rtol=1e-2)
    slope = jax.vmap(jax.grad(elementary.exp2))(x)
    np.testing.assert_allclose(slope, np.log(2) * np.exp2(np.asarray(x)), rtol=1e-6)
    assert jax.grad(elementary.exp2)(-jnp.inf) == 0


def test_other_floats_have_the_powers_of_jax():
    for dtype in (jnp.float16, jnp.bfloat16):
        x = jnp.linspace(-5, 5, 9, dtype=dtype)
        np.testing.assert_array_equal(elementary.exp2(x), jnp.exp2(x))
        assert elementary.exp2(x).dtype == dtype
    with jax.enable_x64(True):
        x = jnp.linspace(-300.0, 300.0, 9)
        assert x.dtype == jnp.float64
        np.testing.assert_array_equal(elementary.exp2(x), jnp.exp2(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", [elementary.scaled_exp2, elementary._scaled_exp2])
@pytest.mark.parametrize("rate", [1e-37, 1e-3, 1.0, 30.0])
def test_scaled_powers_less_nothing_or_their_unit(function, dtype, rate):
    """As processors have them and as others do; all digits, also where `rate d` vanishes."""
    sizes = np.geomspace(1e-4, 125, 1001) * min(1, 1 / rate)
    d = np.concatenate([-sizes, [0], sizes]).astype(dtype)
    special = np.array([np.nan, -200 / max(rate, 1e-30)], dtype)
    with jax.enable_x64(True):

        def found(unit, less, d=d):
            numbers = (jnp.asarray(number, dtype) for number in (rate, unit, less))
            result = jax.jit(function)(d, *numbers)
            assert result.dtype == dtype
            return np.asarray(result, np.longdouble)

        powers, above = found(1, 0), found(1 / rate, 1 / rate)
        if rate > 1e-30:
            np.testing.assert_allclose(found(1, 0, special), [np.nan, 0], atol=1e-45)
            np.testing.assert_allclose(found(3, 3, special), [np.nan, -3], rtol=1e-6)
    rate, unit = (np.asarray(number, dtype).astype(np.longdouble) for number in (rate, 1 / rate))
    x, eps = np.log(np.longdouble(2)) * rate * d, np.finfo(dtype).eps
    # A power is as far off as its argument is rounded, which is |x| times as much.
    bound = (4 + np.abs(x)) * eps
    assert (np.abs(powers - np.exp(x)) <= bound * np.exp(x)).all()
    assert (np.abs(above - np.expm1(x) * unit) <= bound * np.abs(np.expm1(x) * unit)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithms_of_1_and_more_are_within_2_ulp(dtype):
    """On all of its range, where those of JAX have lost seven bits of float64."""
    sizes = np.geomspace(1e-30, 0.99, 20_001)
    x = np.concatenate([-sizes, [0], sizes, np.geomspace(1, 1e30, 2001)]).astype(dtype)
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(elementary.log1p)(x))
        check_grads(elementary.log1p, (x[::997].clip(-0.9, 9).astype(float),), order=2)
    assert found.dtype == dtype
    exact = np.log1p(x.astype(np.longdouble))
    assert (np.abs(found - exact) <= 2 * np.finfo(dtype).eps * np.abs(exact)).all()


NUMBERS = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, np.inf, -np.inf])
# One entry, what XLA reduces at once, and what is folded once, often, with a rest or not at all.
WIDTHS = (1, 2, 31, 32, 33, 64, 96, 100, 128, 512, 514)


@given(numbers=st.lists(NUMBERS, min_size=1, max_size=40), seed=st.integers(0, 2**16))
def test_largest_over_the_last_axis(numbers, seed):
    values = np.random.default_rng(seed).choice(np.float32(numbers), (3, 32))
    np.testing.assert_array_equal(_largest_last(values), values.max(axis=-1))


_largest_last = jax.jit(elementary.largest_last)


@pytest.mark.parametrize("width", WIDTHS)
def test_over_a_last_axis_of_any_width(width):
    random = np.random.default_rng(width)
    values = random.normal(size=(2, 3, width)).astype(np.float32)
    np.testing.assert_array_equal(_largest_last(values), values.max(axis=-1))
    integers = random.integers(-(2**31), 2**31, size=(5, width)).astype(np.int32)
    found = jax.jit(elementary.smallest_last)(integers)
    np.testing.assert_array_equal(found, integers.min(axis=-1))
    flags = np.zeros((width + 1, width), bool)  # each alone, and none
    flags[np.arange(width), np.arange(width)] = True
    np.testing.assert_array_equal(jax.jit(elementary.any_last)(flags), np.arange(width + 1) < width)


@pytest.mark.parametrize("width", [1, 31, 32, 128, 514])
def test_nan_is_passed_over(width):
    random = np.random.default_rng(width)
    values = random.normal(size=(60, width)).astype(np.float32)
    values[random.random(values.shape) < 0.4] = NAN_OF_EITHER_SIGN[0]
    values[random.random(values.shape) < 0.4] = NAN_OF_EITHER_SIGN[1]
    values[:3] = np.concatenate([NAN_OF_EITHER_SIGN, [-np.inf]])[:, None]
    numbers = np.where(np.isnan(values), -np.inf, values).max(axis=-1)
    found = np.asarray(_largest_last(values))
    np.testing.assert_array_equal(np.where(np.isnan(found), -np.inf, found), numbers)


@given(st.lists(NUMBERS, min_size=2, max_size=40))
def test_integers_in_the_order_of_numbers(numbers):
    values = np.resize(np.float32(numbers), 40)
    order = elementary.to_order(jnp.asarray(values))
    np.testing.assert_array_equal(elementary.from_order(order, jnp.dtype("float32")), values)
    before, after = (np.asarray(order)[:, None], np.asarray(order)[None])
    np.testing.assert_array_equal(before < after, values[:, None] < values[None])
    np.testing.assert_array_equal(before == after, values[:, None] == values[None])


def test_of_float64():
    with jax.enable_x64(True):
        values = np.random.default_rng(1).normal(size=(4, 64)) * 1e200
        np.testing.assert_array_equal(elementary.largest_last(values), values.max(axis=-1))
        np.testing.assert_array_equal(elementary.largest_first(values), values.max(axis=0))


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 64])
def test_largest_over_the_first_axis(num_rows):
    matrix = np.random.default_rng(num_rows).normal(size=(num_rows, 5)).astype(np.float32)
    matrix[:, 3] = -np.inf
    matrix[0, 4] = np.nan
    found = np.asarray(jax.jit(elementary.largest_first)(matrix))
    np.testing.assert_array_equal(found[:4], matrix[:, :4].max(axis=0))
    assert np.isnan(found[4]) or found[4] in matrix[:, 4] or found[4] == -np.inf
