"""The k largest of rows, exact, ties to the lowest index: at once, or running over tiles.

A row is looked at in blocks of columns: one maximum per block says which blocks can hold any of the
k largest, and only those are read again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src import numerics

# Columns per block: two AVX-512 registers or one warp of float32.
BLOCK = 32
# Up to so many blocks per row are merged one by one; beyond, all of the tile's candidates at once.
_MOST_MERGES = 12


def argmax(row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(largest value, its lowest index) of one row without NaN; `jnp.argmax` is slow on CPU."""
    value = row.max()
    places = lax.iota(jnp.int32, row.shape[0])
    return value, jnp.where(row == value, places, row.shape[0]).min()


def _candidates(row: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(values, indices): a short list that holds the k largest of one row, in order of index.

    The k largest lie in the k blocks with the largest block maxima; of two blocks with equal maxima
    the earlier one is kept, so ties at the k-th place are right too.
    """
    size = row.shape[0]
    num_blocks = -(-size // BLOCK)
    if 2 * k >= num_blocks:
        return row, lax.iota(jnp.int32, size)
    # Padding stands last, and each chosen block holds an item: it never gets among the k largest.
    row = jnp.pad(row, (0, num_blocks * BLOCK - size), constant_values=-jnp.inf)
    blocks = row.reshape(num_blocks, BLOCK)
    maxima = blocks.max(axis=1)
    chosen = argmax(maxima)[1][None] if k == 1 else jnp.sort(lax.top_k(maxima, k)[1])
    indices = chosen[:, None] * BLOCK + lax.iota(jnp.int32, BLOCK)[None]
    return blocks[chosen].reshape(-1), indices.reshape(-1)


def largest(row: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(values, indices) of the k largest of one row, best first, ties to the lowest index.

    NaN ranks below every number and comes out as -inf.
    """
    values, indices = _take_largest(*_candidates(numerics.below_every_number(row), k), k)
    return jnp.where(numerics.is_number(values), values, -jnp.inf), indices


def _take_largest(values: jax.Array, indices: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    if k == 1:
        value, place = argmax(values)
        return value[None], indices[place][None]
    values, places = lax.top_k(values, k)
    return values, indices[places]


def largest_of_columns(matrix: jax.Array, k: int) -> jax.Array:
    """[..., k, num_columns] the k largest of each column, best first; -inf where there are fewer.

    NaN comes out as -inf.
    """
    rows = numerics.below_every_number(jnp.swapaxes(matrix, -1, -2))
    values = lax.top_k(rows, min(k, rows.shape[-1]))[0]
    values = jnp.where(numerics.is_number(values), values, -jnp.inf)
    missing = [(0, 0)] * (values.ndim - 1) + [(0, k - values.shape[-1])]
    return jnp.swapaxes(jnp.pad(values, missing, constant_values=-jnp.inf), -1, -2)


class Nearest(NamedTuple):
    """The running k nearest gallery items of one row, best first; -inf where none is known yet."""

    values: jax.Array  # [k]
    indices: jax.Array  # [k] int32


def start_nearest(shape: tuple[int, ...], dtype: jnp.dtype) -> Nearest:
    """No neighbors yet; `shape` is [..., k]."""
    return Nearest(jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, jnp.int32))


def add_columns(
    nearest: Nearest, row: jax.Array, start: jax.Array, valid: jax.Array | None
) -> Nearest:
    """Adds a row of scores of gallery items `start, start + 1, ...`, all after those before.

    Args:
      nearest: the running k nearest of one row.
      row: [num_columns] scores.
      start: gallery index of the first column.
      valid: optional [num_columns] bool.
    """
    k = nearest.values.shape[0]
    row = numerics.below_every_number(row)
    values, places = _candidates(row if valid is None else jnp.where(valid, row, -jnp.inf), k)
    # Earlier items stand first in the list: equal values keep the order of the gallery.
    return Nearest(
        *_take_largest(
            jnp.concatenate([nearest.values, values]),
            jnp.concatenate([nearest.indices, places + start]),
            k,
        )
    )


def add_tile(
    nearest: Nearest,
    similarities: jax.Array,
    offsets: jax.Array,
    mixtures: jax.Array | None,
    start: jax.Array,
    valid: jax.Array | None,
) -> Nearest:
    """Adds a tile of similarities, less offsets, to the k nearest of each query and list.

    Only blocks whose maximum beats a list's k-th value are merged into it, in the order of the
    gallery, so that equal values keep it. After the first tiles there are few.

    Args:
      nearest: [num_queries, num_lists, k].
      similarities: [num_queries, num_columns], of gallery items `start, start + 1, ...`, all after
        those before.
      offsets: [num_columns, num_lists], each subtracted for a list of its own.
      mixtures: optional [num_queries, num_offsets]: one list, under the query's own sum of offsets.
      start: gallery index of the first column.
      valid: optional bool [num_columns] or [num_queries, num_columns].
    """
    k = nearest.values.shape[-1]
    num_columns = similarities.shape[1]
    num_blocks = -(-num_columns // BLOCK)
    missing = num_blocks * BLOCK - num_columns
    if missing:
        valid = jnp.ones(num_columns, bool) if valid is None else valid
        valid = jnp.pad(valid, [(0, 0)] * (valid.ndim - 1) + [(0, missing)])
        similarities = jnp.pad(similarities, ((0, 0), (0, missing)))
        offsets = jnp.pad(offsets, ((0, missing), (0, 0)))
    tile = _Tile(
        similarities.reshape(-1, num_blocks, BLOCK),
        offsets.reshape(num_blocks, BLOCK, -1),
        mixtures,
        None if valid is None else valid.reshape(*valid.shape[:-1], num_blocks, BLOCK),
        start,
    )
    axes = _Tile(0, None, None if mixtures is None else 0, None, None)
    if valid is not None and valid.ndim == 2:
        axes = axes._replace(valid=0)
    # Which blocks are read is no smooth question; the values read keep their gradient.
    frozen = jax.tree.map(lax.stop_gradient, tile)
    maxima = jax.vmap(_block_maxima, in_axes=(axes,))(frozen)
    kth = lax.stop_gradient(nearest.values[..., -1:])
    most = (maxima > kth).sum(axis=-1, dtype=jnp.int32).max()

    def keep(nearest: Nearest) -> Nearest:
        return nearest

    def merge_few(nearest: Nearest) -> Nearest:
        slots = jax.vmap(_merged_slots, in_axes=(axes, 0, 0))(frozen, maxima, nearest.values)
        return jax.vmap(_from_slots, in_axes=(axes, 0, 0))(tile, nearest, slots)

    def merge_all(nearest: Nearest) -> Nearest:
        def one(tile: _Tile, maxima: jax.Array, nearest: Nearest) -> Nearest:
            chosen = jax.vmap(lambda row: _first_largest(row, min(k, num_blocks)))(maxima)
            return _with_blocks(tile, nearest, chosen)

        return jax.vmap(one, in_axes=(axes, 0, 0))(tile, maxima, nearest)

    if num_blocks <= k:
        return merge_all(nearest)
    case = jnp.where(most == 0, 0, jnp.where(most <= _MOST_MERGES, 1, 2))
    return lax.switch(case, [keep, merge_few, merge_all], nearest)


class _Tile(NamedTuple):
    """One query's view of a tile, in blocks."""

    similarities: Any  # [num_blocks, BLOCK]
    offsets: Any  # [num_blocks, BLOCK, num_offsets]
    mixture: Any  # [num_offsets] or None
    valid: Any  # [num_blocks, BLOCK] or None
    start: Any  # gallery index of the first column


def _scores(tile: _Tile, block: jax.Array | slice) -> jax.Array:
    """[num_lists, ..., BLOCK] scores of one block or of all, NaN below every number."""
    offsets = tile.offsets[block]
    if tile.mixture is not None:
        shape = (1,) * (offsets.ndim - 1) + tile.mixture.shape
        offsets = (offsets * tile.mixture.reshape(shape)).sum(axis=-1, keepdims=True)
    offsets = jnp.moveaxis(offsets, -1, 0)
    scores = numerics.below_every_number(tile.similarities[block][None] - offsets)
    if tile.valid is None:
        return scores
    return jnp.where(tile.valid[block][None], scores, -jnp.inf)


def _block_maxima(tile: _Tile) -> jax.Array:
    """[num_lists, num_blocks]."""
    return _scores(tile, slice(None)).max(axis=-1)


def _first_largest(maxima: jax.Array, k: int) -> jax.Array:
    """[k] blocks with the largest maxima, in order; of equal ones the first."""
    return argmax(maxima)[1][None] if k == 1 else jnp.sort(lax.top_k(maxima, k)[1])


_Running = tuple[jax.Array, jax.Array, jax.Array]  # block maxima left, values, slots


def _merged_slots(tile: _Tile, maxima: jax.Array, values: jax.Array) -> jax.Array:
    """[num_lists, k] where the new k nearest come from: an old place, or k + a column."""
    k = values.shape[-1]

    def one(place: jax.Array, maxima: jax.Array, values: jax.Array) -> jax.Array:
        def more(state: _Running) -> jax.Array:
            maxima, values, _ = state
            return (maxima > values[-1]).any()

        def merge(state: _Running) -> _Running:
            maxima, values, slots = state
            blocks = lax.iota(jnp.int32, maxima.shape[0])
            beats = maxima > values[-1]
            block = jnp.where(beats, blocks, maxima.shape[0]).min()
            scores = _scores(tile, block)[place]
            columns = k + block * BLOCK + lax.iota(jnp.int32, BLOCK)
            values, slots = _take_largest(
                jnp.concatenate([values, scores]), jnp.concatenate([slots, columns]), k
            )
            return jnp.where(blocks == block, -jnp.inf, maxima), values, slots

        slots = lax.iota(jnp.int32, k)
        return lax.while_loop(more, merge, (maxima, lax.stop_gradient(values), slots))[2]

    places = lax.iota(jnp.int32, maxima.shape[0])
    return jax.vmap(one)(places, maxima, values)


def _from_slots(tile: _Tile, nearest: Nearest, slots: jax.Array) -> Nearest:
    k = slots.shape[-1]
    column = jnp.maximum(slots - k, 0)
    block, within = column // BLOCK, column % BLOCK

    def score(place: jax.Array, block: jax.Array, within: jax.Array) -> jax.Array:
        return _scores(tile, block)[place, within]

    lists = lax.iota(jnp.int32, slots.shape[0])
    new = jax.vmap(jax.vmap(score, in_axes=(None, 0, 0)))(lists, block, within)
    old = jnp.minimum(slots, k - 1)
    return Nearest(
        jnp.where(slots < k, jnp.take_along_axis(nearest.values, old, axis=-1), new),
        jnp.where(
            slots < k, jnp.take_along_axis(nearest.indices, old, axis=-1), column + tile.start
        ),
    )


def _with_blocks(tile: _Tile, nearest: Nearest, chosen: jax.Array) -> Nearest:
    """Merges the chosen blocks [num_lists, num_chosen], in order, at once."""
    k = nearest.values.shape[-1]

    def one(place: jax.Array, values: jax.Array, indices: jax.Array, chosen: jax.Array) -> Nearest:
        scores = jax.vmap(lambda block: _scores(tile, block)[place])(chosen).reshape(-1)
        columns = chosen[:, None] * BLOCK + lax.iota(jnp.int32, BLOCK)[None] + tile.start
        return Nearest(
            *_take_largest(
                jnp.concatenate([values, scores]),
                jnp.concatenate([indices, columns.reshape(-1)]),
                k,
            )
        )

    lists = lax.iota(jnp.int32, chosen.shape[0])
    return jax.vmap(one)(lists, nearest.values, nearest.indices, chosen)
