"""Exponential means of columns: `(1 / beta) log (sum_b w_b exp(beta s_b) / sum_b w_b)`.

Of the bank rows b in a column stay this mean, which is the bias, and the sum of their weights, the
mass; `log Z = beta bias + log mass`. A sum of exponentials is never kept: at a large beta it has
lost what the bias is made of, at a small one the bias is the difference of two equal numbers.

    RunningMean   while rows are added:  m = max s,  sum w exp(x),  sum w (exp(x) - 1) / beta,
                                         x = beta (s - m)
    Means         between the passes:    the bias and the mass, with what rounding has left over

Of the two sums the first has all digits where most rows are far below the maximum, and the second
where `beta (s - m)` is small: `log1p` of its mean over beta is then `mean(s - m)` to all digits. It
is kept over beta, in the unit of similarity, where no beta is too small for it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from dbnorm_jax._src.core import elementary, numerics

# Bounds 2^ of the excess over the maximum of the rows that count: only others reach it.
_LARGEST_EXPONENT = 115.0
# A mean of powers that is above the one has lost digits of what it is below 1, and one below the
# other digits of itself, if it is made of that. Between the two either is good.
_NEARLY_ONE, _FAR_FROM_ONE = 0.6, 0.25
# Rows whose sums come first, as a long sum in one piece loses digits. About so many rows of a tile
# tell on which side its means are.
_FEW_ROWS = 32
# Terms of series in |x| < 1 / 4: what the next one would add is below the rounding of the sum.
_TERMS = {2**-23: 7, 2**-52: 12}
# Weights are kept in units of 2^(64 e), e an integer: between 2^-32 and 2^32 of them.
_UNIT = 64
_LOG_UNIT = _UNIT * math.log(2)


class Means(NamedTuple):
    """What columns say about the rows that entered them."""

    bias: jax.Array  # [..., num_gallery], 0 in an empty column
    bias_rest: jax.Array  # what the rounding of the bias has left over
    weight: jax.Array  # mass = (weight + weight_rest) 2^(64 weight_exponent), 0 in an empty column
    weight_rest: jax.Array
    weight_exponent: jax.Array  # int32

    @property
    def log_mass(self) -> jax.Array:
        """-inf in an empty column."""
        filled = self.weight > 0
        # Double where: the untaken branch must be finite too, or its NaN enters the gradient.
        log_weight = jnp.log(jnp.where(filled, self.weight, 1))
        return jnp.where(filled, log_weight + _log_unit(self), -jnp.inf)

    @property
    def mass(self) -> jax.Array:
        """Infinite, or 0, where it is out of the range of its dtype."""
        half = _UNIT // 2 * jnp.clip(self.weight_exponent, -3, 3)
        return jnp.ldexp(jnp.ldexp(self.weight, half), half)


def _log_unit(means: Means) -> jax.Array:
    return _LOG_UNIT * means.weight_exponent.astype(means.weight.dtype)


def none(shape: tuple[int, ...], dtype: jnp.dtype) -> Means:
    """Means of no rows."""
    zeros = jnp.zeros(shape, dtype)
    return Means(zeros, zeros, zeros, zeros, jnp.zeros(shape, jnp.int32))


class RunningMean(NamedTuple):
    """The rows added so far; the sums are 0 where there are none."""

    maximum: jax.Array  # [num_gallery], the largest similarity
    total: jax.Array  # [num_gallery], or [num_gallery, num_betas]: sum w exp(beta (s - maximum))
    below: jax.Array  # likewise, sum w (exp(beta (s - maximum)) - 1) / beta, at most 0
    mass: jax.Array  # [num_gallery], sum w
    mass_rest: jax.Array  # what its rounding has left over


def start_mean(num_gallery: int, beta: jax.Array) -> RunningMean:
    """The running mean of no rows, under a scalar `beta` or several."""
    lowest = jnp.full(num_gallery, numerics.lowest(beta.dtype), beta.dtype)
    no_sum, no_mass = jnp.zeros((num_gallery, *beta.shape), beta.dtype), jnp.zeros_like(lowest)
    return RunningMean(lowest, no_sum, no_sum, no_mass, no_mass)


def add_rows(
    state: RunningMean,
    similarities: jax.Array,
    beta: jax.Array,
    weights: jax.Array,
    *,
    valid: jax.Array | None = None,
) -> RunningMean:
    """Adds rows of similarities [num_rows, num_gallery], written or given: read twice, they agree.

    `beta` is a scalar or [num_betas], `weights` [num_rows] is 0 on rows that do not enter, `valid`
    [num_rows, num_gallery] bool.
    """
    # Before the branches below, which devices take or not: the slope of what all have is a sum over
    # devices, and those that take no branch would not take part in it.
    beta, weights = numerics.varying_like((beta, weights), similarities, weights, valid)
    # A row of weight 0 must not move the maximum: exp of all the others could vanish. Nor may one
    # that has entered before, as a tile of another shape may round it otherwise.
    counted = (weights > 0)[:, None]
    if valid is not None:
        counted = counted & valid
    lowest = numerics.lowest(similarities.dtype)
    top = jnp.where(counted, similarities, lowest)
    # The shift cancels in the mean, so its gradient is left out.
    largest = elementary.largest_first(lax.stop_gradient(top))
    maximum = jnp.maximum(lax.stop_gradient(state.maximum), largest)
    both = jnp.stack(_split(weights, len(weights), weights.max()))
    if valid is None:
        mass, mass_rest = both.sum(axis=1)
    else:
        entered = valid.astype(weights.dtype)
        mass, mass_rest = jnp.matmul(both, entered, precision=lax.Precision.HIGHEST)

    # Rows that do not count may be above the maximum, and by any amount.
    apart = similarities - maximum[None]
    apart = jnp.where(beta.max() / math.log(2) * apart > _LARGEST_EXPONENT, 0, apart)
    sums = partial(_sums, apart=apart, weights=weights, valid=valid, mass=lax.stop_gradient(mass))

    if beta.ndim:
        # One after the other: the powers under all betas together would not stay in the cache.
        total, below = (part.T for part in lax.map(jax.checkpoint(sums), beta))
    else:
        total, below = sums(beta)
    # Without a first row there is nothing to shift: from the start it would be infinitely far.
    moved = lax.stop_gradient(jnp.maximum(state.maximum - maximum, lowest))
    moved = jnp.where(state.mass > 0, moved, 0)
    moved, mass_so_far = (
        jnp.expand_dims(part, range(1, 1 + beta.ndim)) for part in (moved, state.mass)
    )
    beta = beta[None] if beta.ndim else beta
    # exp(beta (s - new)) - 1 = (exp(beta (s - old)) - 1) exp(beta moved) + (exp(beta moved) - 1).
    kept = jnp.exp(beta * moved)
    return RunningMean(
        maximum,
        state.total * kept + total,
        state.below * kept + mass_so_far * _expm1(beta, moved) + below,
        *added(state.mass, state.mass_rest, mass, mass_rest),
    )


@jax.custom_jvp
def _sums(
    beta: jax.Array, apart: jax.Array, weights: jax.Array, valid: jax.Array | None, mass: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """[num_gallery] sums of `w exp(beta d)` and of `w (exp(beta d) - 1) / beta`.

    Of d [num_rows, num_gallery], `apart`. In each column one of the two is summed, the one that has
    all digits, and the other made of it and of the sum of the weights, `mass`.
    """

    def summed(powers: jax.Array, step: int = 1) -> jax.Array:
        """A long sum in one piece loses digits: first of a few rows, then of their sums."""
        rows = weights[::step]
        few = [(0, -len(rows) % _FEW_ROWS)]
        parts = jnp.pad(rows, few).reshape(-1, 1, _FEW_ROWS)
        powers = _masked(powers, None if valid is None else valid[::step])
        powers = jnp.pad(powers, [*few, (0, 0)]).reshape(-1, _FEW_ROWS, powers.shape[1])
        return _product(parts, powers)[:, 0].sum(axis=0)

    rate = beta / math.log(2)

    def of_far(step: int = 1) -> jax.Array:
        return summed(elementary.exp2(rate * apart[::step]), step)

    def of_each(near: jax.Array) -> jax.Array:
        unit = jnp.where(near, 1 / beta, 1)[None]
        return summed(elementary.scaled_exp2(apart, rate, unit, jnp.where(near[None], unit, 0)))

    step = max(1, len(weights) // _FEW_ROWS)
    some = weights[::step]
    sampled = some.sum() if valid is None else some @ valid[::step].astype(some.dtype)
    near = of_far(step) > (_NEARLY_ONE + _FAR_FROM_ONE) / 2 * sampled
    part = lax.cond(near.any(), lambda: of_each(near), of_far)
    total = jnp.where(near, mass + beta * part, part)
    wrong = jnp.where(near, total < _FAR_FROM_ONE * mass, total > _NEARLY_ONE * mass)
    near ^= wrong
    part = lax.cond(wrong.any(), lambda: of_each(near), lambda: part)
    total = jnp.where(near, mass + beta * part, part)
    return total, jnp.where(near, part, (part - mass) / beta)


@partial(_sums.defjvp, symbolic_zeros=True)
def _(primals: Any, tangents: Any) -> Any:
    beta, apart, weights, valid, _ = primals
    by_beta, by_apart, by_weights, *_ = tangents
    powers = _masked(elementary.exp2(beta / math.log(2) * apart), valid)
    of_total, of_below = [], []
    if not isinstance(by_apart, SymbolicZero):
        moved = _product(weights, powers * by_apart)
        of_total.append(beta * moved)
        of_below.append(moved)
    if not isinstance(by_beta, SymbolicZero):
        of_total.append(by_beta * _product(weights, apart * powers))
        slope = _masked(_expm1_slope(beta, apart), valid)
        of_below.append(by_beta * _product(weights, slope))
    if not isinstance(by_weights, SymbolicZero):
        of_total.append(_product(by_weights, powers))
        of_below.append(_product(by_weights, _masked(_expm1(beta, apart), valid)))
    total, below = _sums(*primals)
    nothing = jnp.zeros_like(total)
    return (total, below), (sum(of_total, start=nothing), sum(of_below, start=nothing))


def _masked(rows: jax.Array, valid: jax.Array | None) -> jax.Array:
    return rows if valid is None else jnp.where(valid, rows, 0)


def _product(weights: jax.Array, rows: jax.Array) -> jax.Array:
    # Sums the rows and drops the padding in one fast operation.
    return jnp.matmul(weights, rows, precision=numerics.matmul_precision())


@jax.custom_jvp
def _expm1(beta: jax.Array, difference: jax.Array) -> jax.Array:
    """`expm1(beta d) / beta`, which is d where `beta d` vanishes."""
    return _near_or_far(
        beta,
        difference,
        # d (1 + x / 2! + x^2 / 3! + ...)
        lambda d, x: d * _series(x, lambda n: 1 / math.factorial(n + 1)),
        lambda _, x: (jnp.exp(x) - 1) / beta,
    )


@partial(_expm1.defjvp, symbolic_zeros=True)
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # By formulas: to keep what all terms of a series are made of would take as many tiles.
    (beta, difference), (by_beta, by_difference) = primals, tangents
    value = _expm1(beta, difference)
    slope = jnp.zeros_like(value)
    if not isinstance(by_difference, SymbolicZero):
        slope += (1 + beta * value) * by_difference
    if not isinstance(by_beta, SymbolicZero):
        slope += _expm1_slope(beta, difference) * by_beta
    return value, slope


def _expm1_slope(beta: jax.Array, difference: jax.Array) -> jax.Array:
    """The derivative of `expm1(beta d) / beta` by beta."""
    return _near_or_far(
        beta,
        difference,
        # Of the series: d^2 (1 / 2! + 2 x / 3! + 3 x^2 / 4! + ...)
        lambda d, x: d * d * _series(x, lambda n: (n + 1) / math.factorial(n + 2)),
        lambda d, x: (d * jnp.exp(x) - (jnp.exp(x) - 1) / beta) / beta,
    )


def _near_or_far(beta: Any, difference: Any, near: Any, far: Any) -> jax.Array:
    """A function of d and x = beta d where x is small, or another one; each sees its own only.

    Rows far above the maximum are none that count: there it is `far(0, 0)`.
    """
    x = beta * difference
    is_near = jnp.abs(x) < 0.25
    is_far = ~is_near & (x < _LARGEST_EXPONENT / 2)
    finite = jnp.maximum(difference, numerics.lowest(difference.dtype))
    of_near = near(*(jnp.where(is_near, part, 0) for part in (difference, x)))
    of_far = far(*(jnp.where(is_far, part, 0) for part in (finite, x)))
    return jnp.where(is_near, of_near, of_far)


def _series(x: jax.Array, coefficient: Callable[[int], float]) -> jax.Array:
    terms = _TERMS[float(jnp.finfo(x.dtype).eps)]  # type: ignore[no-untyped-call]
    total = jnp.full_like(x, coefficient(terms))
    for term in range(terms - 1, -1, -1):
        total = coefficient(term) + x * total
    return total


def _log1p(beta: jax.Array, value: jax.Array) -> jax.Array:
    """`log1p(beta v) / beta`, which is v where `beta v` vanishes."""
    x = beta * value
    near = jnp.abs(x) < 2.0**-18
    small = jnp.where(near, x, 0)
    series = 1 - small * (1 / 2 - small * (1 / 3 - small / 4))
    far = elementary.log1p(jnp.where(near, 0, x)) / beta
    return jnp.where(near, jnp.where(near, value, 0) * series, far)


def finish_mean(state: RunningMean, beta: jax.Array) -> Means:
    """Means of [num_gallery], or [num_betas, num_gallery] under several betas; NaN stays NaN."""
    total, below = state.total.T, state.below.T
    maximum, mass, mass_rest = (
        jnp.expand_dims(part, range(beta.ndim))
        for part in (state.maximum, state.mass, state.mass_rest)
    )
    filled = mass > 0
    whole = jnp.where(filled, mass, 1)
    mean, below = jnp.where(filled, total / whole, 1), jnp.where(filled, below / whole, 0)
    log_mean = _log_over(beta[..., None], jnp.log(mean), below)
    bias, rest = two_sum(jnp.where(filled, maximum, 0), log_mean)
    weight, weight_rest = (jnp.broadcast_to(part, bias.shape) for part in (mass, mass_rest))
    exponent = numerics.varying_like(jnp.zeros(bias.shape, jnp.int32), mass)
    return Means(bias, rest, *_in_range(weight, weight_rest, exponent))


def _log_over(beta: jax.Array, log_mean: jax.Array, below: jax.Array) -> jax.Array:
    """The log over beta of a mean of powers, from it or from `below`, where it is `1 + beta below`.

    Each of the two has all digits where what it is the log of is small.
    """
    near = beta * below > -0.5
    return jnp.where(near, _log1p(beta, jnp.where(near, below, 0)), log_mean / beta)


def merged(parts: Means, beta: jax.Array) -> Means:
    """Means of parts of a bank, along the first axis -> those of the whole."""
    over: Any = {"axis": 0, "keepdims": True}
    how = partial(jnp.max, **over), partial(jnp.sum, **over)
    whole = merged_over(parts, beta[None], len(parts.bias), *how)
    return jax.tree.map(lambda field: field[0], whole)


def merged_over(
    parts: Means,
    beta: jax.Array,
    num_parts: int,
    largest: Callable[[jax.Array], jax.Array],
    total: Callable[[jax.Array], jax.Array],
) -> Means:
    """Means of parts of a bank -> those of the whole; `largest` and `total` are over the parts.

    The order of the parts does not change a bit of the weights.

    With a_p the share of part p in the mass and d_p its bias less that of a part b of the largest
    Z, the log of the mean is `log sum_p a_p exp(beta d_p)`. It is `log1p(sum_p a_p expm1(beta
    d_p))`, to all digits where the part b has most of the mass, as when single rows are added.
    """
    filled = parts.weight > 0
    log_mass = parts.log_mass
    # Which part is the base has no slope; the mean does not depend on it.
    known, known_log_mass, steady = lax.stop_gradient((parts, log_mass, beta))
    bias = known.bias
    lowest = numerics.lowest(bias.dtype)
    top = largest(jnp.where(filled, bias, lowest))
    size = jnp.where(filled, known_log_mass + steady * (bias - top), -jnp.inf)
    # One of the heaviest. No two numbers are asked to be equal: a reader may round them otherwise.
    is_base = filled & (size >= largest(size) - 0.5)
    base = largest(jnp.where(is_base, bias, lowest))
    is_base &= steady * (base - bias) <= 0.5
    base_log_mass = largest(jnp.where(is_base, known_log_mass, -jnp.inf))
    any_filled = base_log_mass > -jnp.inf
    base, base_log_mass = (jnp.where(any_filled, part, 0) for part in (base, base_log_mass))

    highest = largest(jnp.where(filled, known.weight_exponent, -(2**30)))
    scaled, rest = _in_units(parts, highest)
    high, low = _split(scaled, num_parts, largest(lax.stop_gradient(scaled)))
    weight, weight_rest = two_sum(total(high), total(low + rest))
    exponent = jnp.where(any_filled, highest, 0)
    whole = jnp.where(any_filled, weight, 1)
    log_whole = jnp.log(whole) + _LOG_UNIT * exponent.astype(whole.dtype)

    difference = jnp.where(filled, (parts.bias - base) + parts.bias_rest, 0)
    x = beta * difference
    far, log_mass = x > 1, jnp.where(filled, log_mass, 0)
    # What is far above the base has little mass: its share times exp(x) is below that of the base.
    excess = jnp.where(
        far,
        (jnp.exp(jnp.where(far, log_mass - log_whole + x, 0)) - scaled / whole) / beta,
        scaled / whole * _expm1(beta, jnp.where(far, 0, difference)),
    )
    below = total(jnp.where(filled, excess, 0))
    powers = jnp.exp(jnp.minimum(log_mass - base_log_mass + x, 1))
    mean = total(jnp.where(filled, powers, 0))
    log_mean = jnp.log(jnp.where(any_filled, mean, 1)) + base_log_mass - log_whole
    log_mean = _log_over(beta, log_mean, below)
    number = total(jnp.isnan(bias).astype(beta.dtype)) == 0
    log_mean = jnp.where(number, jnp.where(any_filled, log_mean, 0), jnp.nan)
    return Means(
        *two_sum(base, log_mean),
        *_in_range(weight, weight_rest, exponent),
    )


def without(whole: Means, part: Means, beta: jax.Array) -> tuple[Means, jax.Array, jax.Array]:
    """(Means of a bank without a part of it, the shares of Z and of the mass that are left).

    Where a share is not positive, no mean is left; it is then some number, never NaN.
    """
    filled = (part.weight > 0) & (whole.weight > 0)
    difference = (part.bias - whole.bias) + (part.bias_rest - whole.bias_rest)
    difference = jnp.where(filled, difference, 0)
    x = beta * difference
    scaled, rest = _in_units(part, whole.weight_exponent)
    weight, weight_rest = added(whole.weight, whole.weight_rest, -scaled, -rest)
    mass_left = weight / jnp.where(whole.weight > 0, whole.weight, 1)
    share = jnp.where(filled, part.log_mass - whole.log_mass, 0) + x
    left = jnp.where(filled, -jnp.expm1(jnp.where(filled, jnp.minimum(share, 80), 0)), 1)
    there = (left > 0) & (weight > 0)
    # As in `merged`, with the weight of the part taken away: -w / (W - w) is its share.
    near = jnp.abs(x) <= 1
    change = jnp.where(there & near, -scaled / jnp.where(there, weight, 1), 0)
    change *= _expm1(beta, jnp.where(near, difference, 0))
    change = _log1p(beta, jnp.maximum(change, (2**-20 - 1) / beta))
    apart = there & ~near
    logs = [jnp.log(jnp.where(apart, part, 1)) for part in (left, mass_left)]
    change = jnp.where(apart, (logs[0] - logs[1]) / beta, change)
    bias, bias_rest = two_sum(whole.bias, whole.bias_rest + change)
    means = Means(bias, bias_rest, *_in_range(weight, weight_rest, whole.weight_exponent))
    return means, left, mass_left


def shares(means: Means, similarities: jax.Array, weights: jax.Array, beta: jax.Array) -> jax.Array:
    """`w exp(beta s) / Z`, in [0, 1]; 0 in empty columns and where the weight is 0."""
    there = (means.weight > 0) & (weights > 0)
    exponent = beta * ((similarities - means.bias) - means.bias_rest)
    exponent = jnp.where(there, exponent - _log_unit(means), 0)
    share = weights / jnp.where(there, means.weight, 1) * jnp.exp(exponent)
    return jnp.where(there, jnp.minimum(share, 1), 0)


def scaled_by(means: Means, factor: jax.Array) -> Means:
    """Those of the same rows with all weights multiplied by a positive factor."""
    zero = jnp.zeros_like(factor)
    factor, _, steps = _in_range(factor, zero, zero.astype(jnp.int32))
    weight, rest = means.weight * factor, means.weight_rest * factor
    weights = _in_range(weight, rest, means.weight_exponent + steps)
    return Means(means.bias, means.bias_rest, *weights)


def two_sum(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum, and exactly what the rounding has left over (Knuth, 1969)."""
    total = elementary.uncancelled(first + second)
    of_second = elementary.uncancelled(total - first)
    rest = (first - elementary.uncancelled(total - of_second)) + (second - of_second)
    return total, lax.stop_gradient(rest)


def _in_range(
    weight: jax.Array, rest: jax.Array, exponent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A weight in units in which it is between 2^-32 and 2^32; it may be 32 powers further out."""
    many, few = weight >= 2.0 ** (_UNIT // 2), (weight < 2.0 ** -(_UNIT // 2)) & (weight > 0)
    steps = many.astype(jnp.int32) - few.astype(jnp.int32)
    factor = jnp.where(many, 2.0**-_UNIT, jnp.where(few, 2.0**_UNIT, 1)).astype(weight.dtype)
    return weight * factor, rest * factor, exponent + steps


def _in_units(means: Means, exponent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weight and rest in units of 2^(64 exponent); 0 where they vanish beside it."""
    steps = means.weight_exponent - exponent
    factor = jnp.where(steps == 0, 1, jnp.where(steps == -1, 2.0**-_UNIT, 0))
    factor = jnp.where(steps > 0, 2.0**_UNIT, factor).astype(means.weight.dtype)
    return means.weight * factor, means.weight_rest * factor


def added(first: Any, first_rest: Any, second: Any, second_rest: Any) -> tuple[Any, Any]:
    """The sum of two numbers that have rests, with its own."""
    total, rest = two_sum(first, second)
    return two_sum(total, rest + (first_rest + second_rest))


def _split(numbers: Any, how_many: int, largest: Any) -> tuple[jax.Array, jax.Array]:
    """Numbers >= 0 as sums of two; the first ones add up without rounding, in any order.

    What is added to a constant and taken from it again has lost its last places. Such numbers add
    up exactly where the constant has room for their sum (Rump, Ogita and Oishi, 2008).
    """
    room = 2.0 ** max(2, (how_many - 1).bit_length())
    bits = jnp.finfo(numbers.dtype).nexp  # type: ignore[no-untyped-call]
    power = lax.reduce_precision(lax.stop_gradient(largest), exponent_bits=bits, mantissa_bits=0)
    constant = 1.5 * room * power
    high = elementary.uncancelled(elementary.uncancelled(numbers + constant) - constant)
    return high, numbers - high
