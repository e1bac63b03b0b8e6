"""Rows in bfloat16, and a bound on what their products miss of a similarity.

A similarity of this package is a product of transformed rows `a` and items `b`, less one number for
each item, plus one for each row:

    s(q, g) = a(q) . b(g) - less(g) + rest(q)

    dot product      a = q, b = g
    cosine           a = q / |q|, b = g / |g|
    Euclidean        a = 2 (q - m), b = g - m, less = |g - m|^2, rest = -|q - m|^2, m the mean item

With a center of the rows both sides are centered, a on that and b on the mean item m, and

    a . b = (a - center) . (b - m) + center . b + (a - center) . m

moves the second part to `less` and the third to `rest`. Let a' and b' be the rounded a and b. Then

    a . b - a' . b' = (a - a') . b + a' . (b - b')

so that by Cauchy and Schwarz the product misses at most `|a - a'| |b| + |a'| |b - b'|`. Products of
two numbers of bfloat16 are exact in float32; their sum of `dim` terms is taken to lose at most
`2 dim u |a'| |b'|` with u = 2^-24: twice what rounding to nearest loses in any order, so that sums
that are cut off are covered too. Numbers below the smallest normal one may count as 0 anywhere.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import (
    SimilarityFn,
    cosine_similarity,
    dot_product,
    negative_squared_euclidean,
)

SERVED = (dot_product, cosine_similarity, negative_squared_euclidean)

_U = 2.0**-24  # half the distance of 1 to the next float32
_TINY = 2.0**-126  # the smallest normal float32
# No sum is beyond the range of float32 where the sizes of its terms are below this.
_FAR = 2.0**125


class LowItems(NamedTuple):
    """Gallery items in bfloat16, and how far they are from what they stand for."""

    vectors: jax.Array  # [num_items, dim] bfloat16, b'
    less: jax.Array | None  # [num_items] float32; None = 0
    less_error: jax.Array  # of those, at most; a number, like all below
    norm: jax.Array  # largest |b|, rounded up
    missed: jax.Array  # largest |b - b'|, rounded up
    norm_given: jax.Array  # largest norm of an item as given, rounded up
    mean: jax.Array | None  # [dim] subtracted from the items; None = 0
    center: jax.Array | None  # [dim] subtracted from the rows; None = 0


class LowRows(NamedTuple):
    """Queries in bfloat16, and how far they are from what they stand for."""

    vectors: jax.Array  # [num_rows, dim] bfloat16, a'
    rest: jax.Array  # [num_rows]
    rest_error: jax.Array  # [num_rows], of those, at most
    norm: jax.Array  # [num_rows] |a'|, rounded up
    missed: jax.Array  # [num_rows] |a - a'|, rounded up
    scale: jax.Array  # [num_rows], no sum of products for a similarity is larger in size


def low_items(
    similarity_fn: SimilarityFn, items: jax.Array, center: jax.Array | None = None
) -> LowItems:
    """Items [num_items, dim] in bfloat16; with a center [dim] of the rows, centered on both sides.

    Of a cosine the center is one of rows of unit length.
    """
    items, center = lax.stop_gradient((items, center))
    wide = items.astype(numerics.accumulation_dtype(items.dtype))
    dim, given = items.shape[1], norms_up(wide).max()
    euclidean = similarity_fn is negative_squared_euclidean
    compared = numerics.normalize_rows(wide) if similarity_fn is cosine_similarity else wide
    center = None if center is None else center.astype(wide.dtype)
    mean, moved = None, compared
    if euclidean or center is not None:
        mean = compared.mean(axis=0)
        moved = compared - mean[None]
        if euclidean:
            compared, center = moved, None if center is None else 2 * (center - mean)
    vectors, missed = _lowered(moved)
    norm = norms_up(moved).max()
    less: jax.Array | None = None
    less_error = jnp.zeros((), norm.dtype)
    if euclidean:
        less = jnp.square(moved).sum(axis=1)
        less_error += norm * norm
    if center is not None:
        along = (center[None] * compared).sum(axis=1)
        less = -along if less is None else less - along
        less_error += norms_up(center[None])[0] * norms_up(compared).max()
    less_error = _narrow(2 * (dim + 8) * _U * less_error)
    less = None if less is None else less.astype(jnp.float32)
    return LowItems(vectors, less, less_error, norm, missed.max(), given, mean, center)


def given_center(similarity_fn: SimilarityFn, items: LowItems) -> jax.Array | None:
    """[dim] the center of the rows that `low_items` was given, up to rounding; or None."""
    if items.center is None or similarity_fn is not negative_squared_euclidean:
        return items.center
    assert items.mean is not None
    return items.center / 2 + items.mean


def low_rows(similarity_fn: SimilarityFn, rows: jax.Array, items: LowItems) -> LowRows:
    """Rows [num_rows, dim] in bfloat16, to be multiplied by these items."""
    rows = lax.stop_gradient(rows)
    moving = [part.dtype for part in (items.center, items.mean) if part is not None]
    wide = rows.astype(numerics.accumulation_dtype(rows.dtype, *moving))
    center, mean = (
        None if part is None else part[None].astype(wide.dtype)
        for part in (items.center, items.mean)
    )
    dim, given = rows.shape[1], norms_up(wide)
    rest, rest_error = jnp.zeros(len(rows), wide.dtype), jnp.zeros(len(rows), jnp.float32)
    moved = wide
    if similarity_fn is cosine_similarity:
        moved, scale = numerics.normalize_rows(wide), jnp.ones_like(given)
    elif mean is None or similarity_fn is dot_product:
        scale = given * items.norm_given
    else:
        near = wide - mean
        far = norms_up(near)
        moved, scale = 2 * near, jnp.square(far + items.norm)
        rest = -jnp.square(near).sum(axis=1)
        rest_error += jnp.square(far)
    if center is not None:
        moved = moved - center
        if mean is not None and similarity_fn is not negative_squared_euclidean:
            rest = (moved * mean).sum(axis=1)
            rest_error += norms_up(moved) * norms_up(mean)[0]
    vectors, missed = _lowered(moved)
    norm = norms_up(moved) + missed
    return LowRows(vectors, rest, _narrow(2 * (dim + 8) * _U * rest_error), norm, missed, scale)


def is_beyond(
    rows: LowRows,
    items: LowItems,
    last: jax.Array,
    kth: jax.Array,
    offset_error: jax.Array,
    largest_offset: jax.Array,
) -> jax.Array:
    """[num_rows] bool, whether no item of which the product is at most `last` has a score of `kth`.

    Args:
      rows: they.
      items: their products with the rows, less their offsets, are the first scores.
      last: [num_rows], the first score that is the least of a list.
      kth: [num_rows], a score of the similarity itself, in full precision.
      offset_error: [num_rows] or one number, how far the offsets of the first scores may be off.
      largest_offset: likewise, the size of the largest.

    What is not finite is never beyond.
    """
    dim, rest = items.vectors.shape[1], rows.rest.astype(kth.dtype)
    gap = (kth - rest) - last.astype(kth.dtype)
    reach = rows.norm * (items.norm + items.missed)
    missed = rows.missed * items.norm + rows.norm * items.missed + 2 * dim * _U * reach
    # Scores in full precision are rounded too, and each subtraction is. Of an item that is not
    # listed, what its subtraction loses is no more than that of the last, as it grows with scores.
    missed += 2 * (dim + 8) * _U * rows.scale
    missed += 4 * _U * (jnp.abs(last) + _narrow(jnp.abs(kth)) + _narrow(jnp.abs(rest)))
    missed += rows.rest_error + items.less_error + offset_error
    missed = (1 + 16 * _U) * missed + 8 * (dim + 8) * _TINY
    finite = reach + largest_offset + rows.scale < _FAR
    return finite & (gap > missed.astype(gap.dtype))


def norms_up(rows: jax.Array) -> jax.Array:
    """[num_rows] Euclidean norms, rounded up, float32; of tiny and of huge rows too."""
    largest = jnp.abs(rows).max(axis=1, keepdims=True)
    scaled = numerics.over(rows, jnp.where(largest > 0, largest, 1))
    norms = largest[:, 0] * jnp.sqrt(jnp.square(scaled).sum(axis=1))
    return _narrow(norms * (1 + (rows.shape[1] + 8) * _U) + _least(rows))


def _lowered(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows as bfloat16, and the norms of what they then miss, that of making the rows included."""
    # By steps that XLA keeps: a conversion there and back it would take for none.
    low = lax.reduce_precision(rows.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
    missed = norms_up(rows - low.astype(rows.dtype)) + (rows.shape[1] + 8) * _U * norms_up(rows)
    return low.astype(jnp.bfloat16), _narrow((1 + 4 * _U) * missed + _least(rows))


def _least(rows: jax.Array) -> float:
    """The norm of a row of numbers that count as 0."""
    return 2 * rows.shape[1] ** 0.5 * _TINY


def _narrow(sizes: Any) -> jax.Array:
    """As float32, rounded up: those of float64 by a little."""
    return jnp.asarray(sizes * (1 + 2 * _U), jnp.float32)
