"""Smooth stand-ins for the activation set and the gates, to train through them.

The hard ones are piecewise constant: their gradient is zero everywhere. With `p_b = softmax_g(s(b,
g) / t)` the soft activity of an item and the soft gate of a query are

    a(g) = 1 - prod_b (1 - p_b(g))^w_b          a(q) = sum_g softmax_g(s(q, g) / t) a(g)

the chance that some bank item picks g, and the expected activity of what q picks, when items are
picked with those probabilities. As t -> 0 they become the activation set with k = 1 and the hard
gate, where no two items tie; where some tie, they share.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, elementary, filling, numerics, similarity
from dbnorm_jax._src.core.similarity import SimilarityFn, check_streamed, dot_product
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.passes import selection, streaming
from dbnorm_jax._src.passes.sweep import Chunk, Items, Pass, Rows, Tile, Tiling, meet, sweep
from dbnorm_jax._src.retrieval.search import check_matrix
from dbnorm_jax._src.statistics.bank import row_weights

_UNIT = " (in the unit of similarity)"


def soft_activation(
    similarities: ArrayLike, *, temperature: ArrayLike, weights: ArrayLike | None = None
) -> jax.Array:
    """Soft activity of gallery items: `a(g) = 1 - prod_b (1 - softmax_g(s(b, g) / t))^w_b`.

    Goes where `Correction.active` goes. The smooth stand-in of `BankStatistics.active` for k = 1: a
    noisy-or over the bank of the activation set of Bogolin et al., CVPR 2022.

    Args:
      similarities: [..., num_bank, num_gallery], higher is closer, any unit.
      temperature: [...] > 0, in the unit of similarity; the hard activation set as it falls.
      weights: optional [..., num_bank] multiplicities >= 0.

    Returns:
      [..., num_gallery] in [0, 1], at least float32. Gradients are finite also where items are
      certain: `1 - p` is kept above the resolution of the dtype.

    Raises:
      ValueError: an empty or non-finite matrix, temperature <= 0, weights that do not fit.
      TypeError: a matrix that is not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> print(dbn.soft_activation([[0.0, 0.0], [0.0, 0.0]], temperature=0.1))    # 1 - (1 - 1/2)^2
      [0.75 0.75]
    """
    similarities = checks.similarities("similarities", similarities, rows="bank items")
    dtype = numerics.accumulation_dtype(similarities.dtype)
    temperature = checks.positive("temperature", temperature, dtype, _UNIT)
    if weights is None:
        weights = jnp.ones(similarities.shape[-2], dtype)
    else:
        weights = checks.bank_weights("weights", weights, similarities.shape[-2:-1], dtype)
    return _soft_activation(similarities.astype(dtype), temperature, weights)


@jax.jit
def _soft_activation(
    similarities: jax.Array, temperature: jax.Array, weights: jax.Array
) -> jax.Array:
    def one(similarities: jax.Array, temperature: jax.Array, weights: jax.Array) -> jax.Array:
        powers = _start(similarities.shape[0], 0, similarities.dtype)
        powers = _add(powers, similarities, temperature, None, None)
        return -jnp.expm1(_log_inactive(powers, similarities, temperature, weights))

    over_batches = numerics.vectorize(one, signature="(b,g),(),(b)->(g)")
    activity: jax.Array = over_batches(similarities, temperature, weights)
    return activity


def stream_soft_activation(
    bank: ArrayLike,
    gallery: ArrayLike,
    *,
    temperature: ArrayLike,
    weights: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> jax.Array:
    """`soft_activation` from embeddings, never holding bank x gallery, forward or backward.

    It costs two passes: the softmax of a bank item needs the whole gallery first.

    Args:
      bank: [num_bank, dim] embeddings of bank items.
      gallery: [num_gallery, dim] embeddings of gallery items.
      temperature: scalar > 0, in the unit of similarity.
      weights: optional [num_bank] multiplicities >= 0.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: bank rows held at once (static).

    Returns:
      [num_gallery] in [0, 1], at least float32; up to rounding that of the matrix.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, temperature <= 0, misfitting weights.
      TypeError: embeddings that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> bank, gallery = [[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
      >>> print(dbn.stream_soft_activation(bank, gallery, temperature=0.5).round(2))
      [0.88 0.12]
    """
    bank, gallery = similarity.checked_rows(similarity_fn, bank=bank, gallery=gallery)
    dtype = numerics.accumulation_dtype(bank.dtype, gallery.dtype)
    tiling = Tiling(similarity_fn, dtype, checks.integer("chunk_size", chunk_size, low=1))
    temperature = _scalar_temperature(temperature, dtype)
    weights = row_weights(weights, bank.shape[0], dtype)
    return _stream_soft_activation(bank, gallery, temperature, weights, tiling=tiling)


@partial(jax.jit, static_argnames="tiling")
def _stream_soft_activation(
    bank: jax.Array, gallery: jax.Array, temperature: jax.Array, weights: Any, *, tiling: Tiling
) -> jax.Array:
    items = Items(gallery)

    def add_powers(powers: _Powers, _: None, tile: Tile) -> tuple[_Powers, None]:
        return _add(powers, tile.similarities, temperature, None, tile.valid), None

    def add_inactive(powers: _Powers, so_far: jax.Array, tile: Tile) -> tuple[_Powers, jax.Array]:
        weights = tile.rows.entering
        return powers, so_far + _log_inactive(powers, tile.similarities, temperature, weights)

    def finish(log_inactive: jax.Array, powers: _Powers, rows: Chunk) -> tuple[jax.Array, None]:
        # Shares are known when all items have passed: these rows meet them once more.
        return meet(Pass(add_inactive), powers, rows, items, log_inactive, tiling)[1], None

    kept = Pass(add_powers, lambda rows: _start(rows.size, 0, tiling.dtype), finish)
    none = jnp.zeros(gallery.shape[0], tiling.dtype)
    return -jnp.expm1(sweep(kept, Rows(bank, None, weights), items, tiling, total=none).total)


def soft_gates(
    similarities: ArrayLike,
    correction: Correction,
    *,
    temperature: ArrayLike,
    straight_through: bool = False,
) -> jax.Array:
    """Soft gates `a_t(q) = sum_g softmax_g(s(q, g) / temperature) active_t(g)`, differentiable.

    What `apply_correction(..., gates=...)` takes; `gates` (Bogolin et al., CVPR 2022) has zero
    gradient everywhere. Straight-through is as in Bengio et al., 2013 (arXiv 1308.3432).

    Args:
      similarities: [..., num_queries, num_gallery], raw.
      correction: with fields [..., num_terms, num_gallery], `active` hard or soft.
      temperature: [...] > 0, in the unit of similarity; the hard gates as it falls.
      straight_through: whether values are those of `gates`, gradients still soft ones (static).

    Returns:
      [..., num_queries, num_terms] in [0, 1]; 1 where `correction.active` is None.

    Raises:
      ValueError: a non-finite matrix, temperature <= 0, a correction of another gallery.
      TypeError: a matrix that is not floating point, or no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> correction = dbn.Correction(bias=jnp.zeros((1, 2)), active=jnp.array([[True, False]]))
      >>> s = [[0.6, 0.5]]
      >>> soft = dbn.soft_gates(s, correction, temperature=0.1)
      >>> print(dbn.gates(s, correction), jnp.array_str(soft, precision=2))
      [[1.]] [[0.73]]
    """
    similarities, correction = check_matrix(similarities, correction)
    dtype = numerics.accumulation_dtype(similarities.dtype, correction.bias.dtype)
    temperature = checks.positive("temperature", temperature, dtype, _UNIT)
    straight = checks.flag("straight_through", straight_through)
    return _soft_gates(
        similarities.astype(dtype), correction, temperature, straight_through=straight
    )


@partial(jax.jit, static_argnames="straight_through")
def _soft_gates(
    similarities: jax.Array,
    correction: Correction,
    temperature: jax.Array,
    *,
    straight_through: bool,
) -> jax.Array:
    dtype = similarities.dtype
    if correction.active is None:
        lead = jnp.broadcast_shapes(
            similarities.shape[:-2], correction.bias.shape[:-2], temperature.shape
        )
        return jnp.ones((*lead, similarities.shape[-2], correction.num_terms), dtype)

    def one(similarities: jax.Array, active: jax.Array, temperature: jax.Array) -> jax.Array:
        powers = _start(similarities.shape[0], active.shape[0], dtype)
        powers = _add(powers, similarities, temperature, active, None)
        return _gates_of(powers, straight_through=straight_through)

    over_batches = numerics.vectorize(one, signature="(q,g),(t,g),()->(q,t)")
    soft: jax.Array = over_batches(similarities, correction.active.astype(dtype), temperature)
    return soft


def stream_soft_gates(
    queries: ArrayLike,
    gallery: ArrayLike,
    correction: Correction,
    *,
    temperature: ArrayLike,
    straight_through: bool = False,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> jax.Array:
    """`soft_gates` from embeddings in one pass, never holding queries x gallery.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim] embeddings.
      correction: with fields [num_terms, num_gallery], `active` hard or soft.
      temperature: scalar > 0, in the unit of similarity.
      straight_through: as in `soft_gates` (static).
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: queries held at once (static).

    Returns:
      [num_queries, num_terms] in [0, 1]; up to rounding those of the matrix.

    Raises:
      ValueError: bad or mismatched embeddings, temperature <= 0, a correction of another gallery.
      TypeError: embeddings that are not floating point, or no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> correction = dbn.Correction(bias=jnp.zeros((1, 2)), active=jnp.array([[True, False]]))
      >>> query, gallery = [[0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]]
      >>> print(dbn.stream_soft_gates(query, gallery, correction, temperature=0.1).round(2))
      [[0.12]]
    """
    num_queries, queries, gallery = filling.checked_queries(queries, gallery=gallery)
    queries, gallery = similarity.checked_rows(similarity_fn, queries=queries, gallery=gallery)
    check_streamed(correction, gallery.shape[0])
    correction = checks.unsplit(correction)
    similarity.check_similarity("correction", correction, similarity_fn, queries, gallery)
    dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype, correction.bias.dtype)
    tiling = Tiling(similarity_fn, dtype, checks.integer("chunk_size", chunk_size, low=1))
    temperature = _scalar_temperature(temperature, dtype)
    straight = checks.flag("straight_through", straight_through)
    soft = _stream_soft_gates(
        queries, gallery, correction, temperature, straight_through=straight, tiling=tiling
    )
    return filling.cut(soft, num_queries)


@partial(jax.jit, static_argnames=("straight_through", "tiling"))
def _stream_soft_gates(
    queries: jax.Array,
    gallery: jax.Array,
    correction: Correction,
    temperature: jax.Array,
    *,
    straight_through: bool,
    tiling: Tiling,
) -> jax.Array:
    dtype, num_terms, activity = tiling.dtype, correction.num_terms, correction.active
    if activity is None:
        return jnp.ones((queries.shape[0], num_terms), dtype)

    def start(rows: Chunk) -> _Powers:
        return _start(rows.size, num_terms, dtype)

    def add(powers: _Powers, _: None, tile: Tile) -> tuple[_Powers, None]:
        return _add(powers, tile.similarities, temperature, tile.own.T, tile.valid), None

    def finish(total: None, powers: _Powers, _: Chunk) -> tuple[None, jax.Array]:
        return total, _gates_of(powers, straight_through=straight_through)

    items = Items(gallery, activity.T.astype(dtype))
    return sweep(Pass(add, start, finish), Rows(queries), items, tiling).outputs


class _Powers(NamedTuple):
    """The running softmax of some rows over the gallery."""

    maximum: jax.Array  # [num_rows] largest similarity so far
    total: jax.Array  # [num_rows] sum_g exp((s - maximum) / t)
    active: jax.Array  # [num_rows, num_terms] the same sum with the activities as weights
    nearest: jax.Array  # [num_rows, num_terms] activity of the item that has the maximum


def _start(num_rows: int, num_terms: int, dtype: jnp.dtype) -> _Powers:
    none = jnp.zeros((num_rows, num_terms), dtype)
    return _Powers(
        jnp.full(num_rows, numerics.lowest(dtype), dtype), jnp.zeros(num_rows, dtype), none, none
    )


def _add(
    powers: _Powers,
    similarities: jax.Array,
    temperature: jax.Array,
    active: jax.Array | None,
    valid: jax.Array | None,
) -> _Powers:
    """Adds gallery items: similarities [num_rows, num_items], activities [num_terms, num_items]."""
    lowest = numerics.lowest(similarities.dtype)
    top = similarities if valid is None else jnp.where(valid[None], similarities, lowest)
    # The shift cancels, so its gradient is left out.
    best, place = jax.vmap(selection.argmax)(numerics.below_every_number(lax.stop_gradient(top)))
    maximum = jnp.maximum(powers.maximum, best)
    excess = similarities - maximum[:, None]
    if valid is not None:
        # An item that comes again may be rounded otherwise, to above the maximum.
        excess = jnp.where(valid[None], excess, 0)
    added = jnp.exp(excess / temperature)
    if valid is not None:
        added = jnp.where(valid[None], added, 0)
    # Without a first item there is nothing to shift: the start over a small temperature overflows.
    moved = jnp.where(powers.total > 0, powers.maximum - maximum, 0)
    kept = jnp.exp(moved / temperature)
    total = powers.total * kept + added.sum(axis=1)
    if active is None:
        return _Powers(maximum, total, powers.active, powers.nearest)
    summed = jnp.matmul(added, active.T, precision=numerics.matmul_precision())
    # Strictly better only: ties stay with the lowest index.
    better = (best > powers.maximum)[:, None]
    nearest = jnp.where(better, active[:, place].T, powers.nearest)
    return _Powers(maximum, total, powers.active * kept[:, None] + summed, nearest)


def _log_inactive(
    powers: _Powers, similarities: jax.Array, temperature: jax.Array, weights: jax.Array
) -> jax.Array:
    """[num_items] `sum_b w_b log(1 - p_b(g))`."""
    exponents = (similarities - powers.maximum[:, None]) / temperature
    shares = jnp.exp(exponents) / powers.total[:, None]
    # Kept away from 1, where the logarithm has no slope. What is lost is below the resolution: the
    # slope of the share falls as fast as that of the logarithm grows.
    most = 1 - jnp.finfo(shares.dtype).eps  # type: ignore[no-untyped-call]
    unpicked = elementary.log1p(-jnp.minimum(shares, jnp.asarray(most, shares.dtype)))
    return jnp.matmul(weights, unpicked, precision=numerics.matmul_precision())


def _gates_of(powers: _Powers, *, straight_through: bool) -> jax.Array:
    soft = powers.active / powers.total[:, None]
    if not straight_through:
        return soft
    return lax.stop_gradient(powers.nearest) + (soft - lax.stop_gradient(soft))


def _scalar_temperature(temperature: Any, dtype: jnp.dtype) -> jax.Array:
    temperature = checks.positive("temperature", temperature, dtype, _UNIT)
    if temperature.ndim:
        raise checks.BadValueError(
            "temperature", f" must be a scalar here, got shape {temperature.shape}; use jax.vmap"
        )
    return temperature
