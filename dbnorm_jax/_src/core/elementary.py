"""Elementary functions of `jnp`, written so that XLA compiles them to fast loops for processors.

Each says what it spares; where XLA comes to do as well by itself, it can go.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

# Entries that XLA reduces at once; it takes longer reductions of integers apart.
_LANES = 32
# Beyond so many folds the reduction that XLA has for long axes is as fast.
_MOST_FOLDED = 16 * _LANES

# 2^x = 2^n 2^r with a whole n: 2^r = 1 + r q(r), fitted for |r| <= 1/2 to 2e-9 of the value.
_FITTED = (0.6931471825, 0.2402264774, 0.0555033237, 0.0096184378, 0.0013398875, 0.0001535335)
# A float32 of this size has no binary places: adding it rounds, and its last bits hold n.
_ROUNDER = 12582912.0  # 1.5 * 2^23
_ONE = 0x3F800000  # the bits of 1.0, whose exponent is in the bits from the 23rd on
_LOWEST_EXPONENT = -126  # of a power that is no subnormal number


@jax.custom_jvp
def written(array: jax.Array) -> jax.Array:
    """The same array, computed once and for itself, whatever reads it.

    What XLA fuses with several readers it computes for each of them, and not always alike: one
    reader rounds a product, another subtracts from it unrounded (fused multiply-add). Where two
    readers must agree, what they read is written.
    """
    # On processors XLA takes barriers away before it fuses. What a loop might change, it writes.
    return lax.platform_dependent(
        array, cpu=lambda array: _never_changed(array, array), default=separate
    )


@jax.custom_jvp
def rounded(array: jax.Array) -> jax.Array:
    """The same array, each number rounded before it is read.

    For an array that a caller holds: to write it would copy it. Readers agree that compute the same
    steps, none of them merged with a step of their own.
    """
    return lax.platform_dependent(array, cpu=_rounded_by_bits, default=separate)


written.defjvps(lambda tangent, *_: tangent)
rounded.defjvps(lambda tangent, *_: tangent)


def _rounded_by_bits(array: jax.Array) -> jax.Array:
    # Bits are of rounded numbers. XLA would cancel the two conversions with nothing in between.
    bits = lax.bitcast_convert_type(array, _integer(array.dtype))
    zero = _never_changed(jnp.zeros((), bits.dtype), array)
    return lax.bitcast_convert_type(bits ^ jnp.broadcast_to(zero, bits.shape), array.dtype)


def _never_changed(value: jax.Array, array: jax.Array) -> jax.Array:
    """The value, after a loop that runs while an entry of the array is below -inf: never."""
    # A sharded dimension cannot be sliced where its sharding is part of the type.
    sharded = any(jax.typeof(array).sharding.spec)
    entry = array.min() if sharded else array[(0,) * array.ndim]
    return lax.while_loop(
        lambda state: state[0] < -jnp.inf, lambda state: (state[0], state[1] + 1), (entry, value)
    )[1]


def separate(array: jax.Array) -> jax.Array:
    """The same array; what makes it and what reads it are not simplified together."""
    return lax.optimization_barrier(array)  # type: ignore[no-untyped-call]


@jax.custom_jvp
def exp2(x: jax.Array) -> jax.Array:
    """`jnp.exp2(x)` for x up to 127, within 1.2 float32 ulp, on processors in 0.6 of the time.

    Below -126, where float32 has subnormal numbers only, it is 0. NaN stays NaN.
    """
    if x.dtype != jnp.float32:
        return jnp.exp2(x)
    return lax.platform_dependent(
        x, cpu=lambda x: _scaled_exp2_float32(x, 1.0, 1.0, 0.0), default=jnp.exp2
    )


exp2.defjvps(lambda tangent, power, _: math.log(2) * power * tangent)


def scaled_exp2(d: jax.Array, rate: Any, unit: Any, less: Any) -> jax.Array:
    """`unit 2^(rate d) - less`, with all digits near d = 0 where `less` is `unit`; else it is 0.

    It is `ln 2 rate unit d` where `rate d` vanishes: `unit` may be as large as 1 / rate. Times
    `rate`, d is up to 127. Not differentiable.
    """
    if d.dtype == jnp.float32:
        return lax.platform_dependent(
            d, rate, unit, less, cpu=_scaled_exp2_float32, default=_scaled_exp2
        )
    return _scaled_exp2(d, rate, unit, less)


def _scaled_exp2(d: jax.Array, rate: Any, unit: Any, less: Any) -> jax.Array:
    x = rate * d
    tiny = jnp.abs(x) < jnp.finfo(d.dtype).eps  # type: ignore[no-untyped-call]
    near = jnp.where(tiny, math.log(2) * rate * unit * d, unit * jnp.expm1(math.log(2) * x))
    return jnp.where(less == 0, unit * jnp.exp2(x), near)


def _scaled_exp2_float32(d: jax.Array, rate: Any, unit: Any, less: Any) -> jax.Array:
    x = rate * d
    moved = uncancelled(x + _ROUNDER)
    whole = moved - _ROUNDER
    r = x - whole
    slope = jnp.full_like(x, _FITTED[-1])
    for coefficient in _FITTED[-2::-1]:
        slope = coefficient + r * slope
    exponent = (lax.bitcast_convert_type(moved, jnp.int32) << 23) + _ONE
    # Times the power of two, not added to the exponent: NaN stays NaN.
    power = lax.bitcast_convert_type(exponent, jnp.float32)
    # unit 2^n (1 + r q) - less, of which r unit is made of d: r may vanish where it does not.
    value = power * (slope * (d * (rate * unit) - whole * unit) + (unit - less))
    value += (power - 1) * less
    return jnp.where(x < _LOWEST_EXPONENT, -less, value)


def log1p(x: jax.Array) -> jax.Array:
    """`jnp.log1p(x)` of finite x > -1 within 2 ulp.

    XLA's is up to 120 ulp off in float64, from -0.5 to -0.3.
    """
    total = uncancelled(1 + x)
    rest = lax.stop_gradient(x - (total - 1))
    return jnp.log(total) + rest / total


def uncancelled(array: jax.Array) -> jax.Array:
    """The same sum; without it XLA would cancel what is added and then subtracted."""
    kind = jnp.finfo(jnp.result_type(array))  # type: ignore[no-untyped-call]
    return lax.reduce_precision(array, exponent_bits=kind.nexp, mantissa_bits=kind.nmant)


def largest_first(matrix: jax.Array) -> jax.Array:
    """[num_columns] the largest of each column, in half the time of `matrix.max(axis=0)`.

    Of a column with NaN it may be NaN or any number there, or -inf. Not differentiable.
    """

    def reduce(array: jax.Array, axis: int) -> jax.Array:
        lowest = jnp.asarray(-jnp.inf, array.dtype)
        return lax.reduce(array, lowest, lambda a, b: jnp.where(b > a, b, a), (axis,))

    mesh = jax.typeof(matrix).sharding.mesh
    if mesh.size > 1 and any(kind != AxisType.Manual for kind in mesh.axis_types):
        return matrix.max(axis=0)  # XLA splits only reductions that it knows
    if len(matrix) % 8 == 0:  # eight rows at once stay in registers
        matrix = separate(reduce(matrix.reshape(-1, 8, matrix.shape[1]), 1))
    return reduce(matrix, 0)


def to_order(values: jax.Array) -> jax.Array:
    """Integers in the order of the floats, NaN below all, both zeros one: compared sooner."""
    bits = lax.bitcast_convert_type(values, _integer(values.dtype))
    return _swapped(bits) - _negative(bits) + _raised(values.dtype)


def from_order(integers: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The floats that `to_order` was given."""
    lowered = integers - _raised(dtype)
    return lax.bitcast_convert_type(_swapped(lowered + _negative(lowered)), dtype)


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k`, which ranks -0.0 below 0.0, with both zeros level: the lowest index wins."""
    # Not by `where` alone: the slope at 0 is 1.
    zeros = lax.stop_gradient(jnp.where(values == 0, values, 0))
    return lax.top_k(values - zeros, k)


def _integer(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(f"int{8 * dtype.itemsize}")


def _swapped(integers: jax.Array) -> jax.Array:
    # The floats that integers spell are in their order; but below zero more is less.
    limits = jnp.iinfo(integers.dtype)  # type: ignore[no-untyped-call]
    return integers ^ (_negative(integers) & limits.max)


def _negative(integers: jax.Array) -> jax.Array:
    # -1 where negative, else 0. The negative floats are moved by it: -0.0 comes to lie on 0.0.
    return integers >> (8 * integers.dtype.itemsize - 1)


def _raised(dtype: jnp.dtype) -> jax.Array:
    # As high as they can stand: NaN, above infinity, runs over and comes to lie below all.
    bits = _integer(dtype)
    infinity = lax.bitcast_convert_type(jnp.asarray(jnp.inf, dtype), bits)
    return jnp.iinfo(bits).max - infinity  # type: ignore[no-untyped-call]


def largest_last(values: jax.Array) -> jax.Array:
    """The largest number over the last axis, sooner than by `values.max(axis=-1)`.

    NaN is passed over; of nothing else something below every number comes out, NaN or -inf.
    """
    if values.shape[-1] > _MOST_FOLDED:
        return jnp.where(jnp.isnan(values), -jnp.inf, values).max(axis=-1)
    largest = separate(_folded(jnp.maximum, to_order(values)).max(axis=-1))
    return from_order(largest, values.dtype)


def smallest_last(integers: jax.Array) -> jax.Array:
    """The smallest over the last axis, sooner than by `integers.min(axis=-1)`."""
    return _folded(jnp.minimum, integers).min(axis=-1)


def any_last(flags: jax.Array) -> jax.Array:
    """Whether any is set over the last axis, sooner than by `flags.any(axis=-1)`."""
    return _folded(jnp.logical_or, flags).any(axis=-1)


def _folded(pick: Callable[[jax.Array, jax.Array], jax.Array], values: jax.Array) -> jax.Array:
    """Halves of the last axis laid on each other until it is short; a long one as it is."""
    foldable = values.shape[-1] <= _MOST_FOLDED
    while foldable and values.shape[-1] > _LANES and values.shape[-1] % 2 == 0:
        half = values.shape[-1] // 2
        values = pick(values[..., :half], values[..., half:])
    return values
