"""The k largest of rows, exact, ties to the lowest index: at once, or running over tiles.

A row is looked at in blocks of columns: one maximum per block says which blocks can hold any of the
k largest, and only those are read again. Running over tiles, after the first ones few blocks beat
the k-th value so far: almost all of the work is one maximum per block.
"""

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import elementary, numerics
from dbnorm_jax._src.passes import classes, sorting
from dbnorm_jax._src.passes.classes import Classes

# Columns per block: two AVX-512 registers or one warp of float32.
BLOCK = 32
# Excluded places compared one by one: a reduction over so short an axis would be a loop of its own.
_COMPARED = 8
# Rows and lists whose new items are inserted side by side: few, as the slowest holds up the others.
_GROUP = 64
# An item is inserted by comparing it with all k, and a first tile has k to insert: a k that is
# large, or large beside the tile, is cheaper to select anew.
_MOST_INSERTED = 512
_COLUMNS_PER_INSERTED = 12
# Fewer are selected as soon column by column, and of fewer columns sooner than a network compiles.
_FEWEST_BY_NETWORK = 16
_FEWEST_COLUMNS = 2**14


def argmax(row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(largest value, its lowest index) of one row without NaN; `jnp.argmax` is slow on CPU."""
    value = elementary.largest_last(row)
    return value, _place(row, value)


def _place(row: jax.Array, value: jax.Array) -> jax.Array:
    """The lowest index at which a row has the value; its length where it has not."""
    places = lax.iota(jnp.int32, row.shape[0])
    return elementary.smallest_last(jnp.where(row == value, places, row.shape[0]))


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
    chosen = argmax(maxima)[1][None] if k == 1 else jnp.sort(elementary.top_k(maxima, k)[1])
    indices = chosen[:, None] * BLOCK + lax.iota(jnp.int32, BLOCK)[None]
    return blocks[chosen].reshape(-1), indices.reshape(-1)


def largest(row: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(values, indices) of the k largest of one row, best first, ties to the lowest index.

    NaN ranks below every number and comes out as -inf.
    """
    return largest_number(numerics.below_every_number(row), k)


def largest_number(numbers: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """As `largest`, without NaN; -inf is where no item is, and index -1 where there are fewer."""
    return filled(*largest_listed(*_candidates(numbers, k), k))


def filled(values: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-inf where there is no number, and index -1 where there is no item."""
    there = values > -jnp.inf
    return jnp.where(numerics.is_number(values), values, -jnp.inf), jnp.where(there, indices, -1)


def largest_listed(values: jax.Array, indices: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of a list without NaN, and their indices; ties to the first place."""
    if k == 1:
        value, place = argmax(values)
        return value[None], indices[place][None]
    values, places = elementary.top_k(values, k)
    return values, indices[places]


def largest_of_columns(matrix: jax.Array, k: int) -> jax.Array:
    """[..., k, num_columns] the k largest of each column, best first; -inf where there are fewer.

    NaN comes out as -inf.
    """
    if matrix.ndim > 2:
        return jax.vmap(partial(largest_of_columns, k=k))(matrix)
    numbers = jnp.where(numerics.is_number(matrix), matrix, -jnp.inf)
    return (_by_network if suits_network(k, matrix.shape[1]) else _by_selection)(numbers, k)


def suits_network(k: int, num_columns: int) -> bool:
    """Whether a network, which compiles for longer, finds the k largest of columns sooner."""
    return k >= _FEWEST_BY_NETWORK and num_columns >= _FEWEST_COLUMNS


def _by_selection(numbers: jax.Array, k: int) -> jax.Array:
    values = lax.top_k(numbers.T, min(k, len(numbers)))[0].T
    return jnp.pad(values, ((0, k - len(values)), (0, 0)), constant_values=-jnp.inf)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _by_network(numbers: jax.Array, k: int) -> jax.Array:
    return lax.platform_dependent(
        numbers,
        cpu=lambda numbers: sorting.largest_of_columns(numbers, k),
        default=lambda numbers: _by_selection(numbers, k),
    )


@_by_network.defjvp
def _(k: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # A network would keep every step for a gradient.
    return jax.jvp(partial(_by_selection, k=k), primals, tangents)


class Nearest(NamedTuple):
    """The running k nearest gallery items of one row, best first; -inf where none is known yet."""

    values: jax.Array  # [k]
    indices: jax.Array  # [k] int32


def start_nearest(shape: tuple[int, ...], dtype: jnp.dtype) -> Nearest:
    return Nearest(jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, jnp.int32))


# For each list [num_items], subtracted from the similarities of the items; None = nothing is.
Offsets = tuple[jax.Array, ...] | None


def by_list(offsets: jax.Array | None) -> Offsets:
    """The columns of [num_items, num_lists] offsets, each side by side in memory."""
    return None if offsets is None else tuple(offsets.T)


class Seen(NamedTuple):
    """Which items of a tile a query may see."""

    some: Callable[[jax.Array, jax.Array], jax.Array]  # (query of the chunk, columns) -> bool
    whole: Callable[[int, int], jax.Array]  # both numbers -> [num_queries, num_columns] bool


def is_apart(excluded: jax.Array, place: jax.Array) -> jax.Array:
    """[...] bool, whether a place [...] is none of those excluded [..., most]."""
    num_entries = excluded.shape[-1]
    if num_entries > _COMPARED:
        shape = (*jnp.broadcast_shapes(excluded.shape[:-1], place.shape), num_entries)
        different = jnp.broadcast_to(excluded, shape) != jnp.broadcast_to(place[..., None], shape)
        return different.all(axis=-1)
    apart = [excluded[..., entry] != place for entry in range(num_entries)]
    return reduce(operator.and_, apart)


def seen_by(unseen: jax.Array | None, start: jax.Array) -> Seen | None:
    """Which columns, of gallery items from `start` on, are none of `unseen` [num_queries, most]."""
    if unseen is None:
        return None

    # Entries first: side by side are the items.
    def whole(_: int, num_columns: int) -> jax.Array:
        places = start + lax.iota(jnp.int32, num_columns)
        return (unseen.T[:, :, None] != places[None, None]).all(axis=0)

    return Seen(lambda row, columns: is_apart(unseen[row], start + columns), whole)


def shown_to(excluded: jax.Array, number: Callable[[jax.Array], jax.Array]) -> Seen:
    """Which columns, of items that exclude rows `excluded` [num_columns, most], a query sees.

    `number` of a query of the chunk is its row.
    """

    def whole(num_queries: int, _: int) -> jax.Array:
        rows = number(lax.iota(jnp.int32, num_queries))
        return (excluded.T[:, None] != rows[None, :, None]).all(axis=0)

    return Seen(lambda query, columns: is_apart(excluded[columns], number(query)), whole)


def _block(blocks: jax.Array, row: jax.Array, block: jax.Array) -> jax.Array:
    """One block of [num_rows, num_blocks, BLOCK]; by one index, which XLA follows faster."""
    flat, place = blocks.reshape(-1, BLOCK), row * blocks.shape[1] + block
    return flat.at[place].get(mode="promise_in_bounds", wrap_negative_indices=False)


class Tile(NamedTuple):
    """A tile of similarities in blocks of columns."""

    similarities: jax.Array  # [num_queries, num_blocks, BLOCK]
    offsets: jax.Array | None  # [num_lists, num_blocks, BLOCK]
    valid: jax.Array | None  # [num_blocks, BLOCK] bool
    seen: Seen | None

    def scores(self, query: jax.Array, place: jax.Array, block: jax.Array) -> jax.Array:
        """[BLOCK] scores of one block for one query and list: NaN lowest, -inf where no item is."""
        scores = _block(self.similarities, query, block)
        if self.offsets is not None:
            scores = scores - _block(self.offsets, place, block)
        scores = numerics.below_every_number(scores)
        if self.valid is not None:
            scores = jnp.where(self.valid[block], scores, -jnp.inf)
        if self.seen is not None:
            columns = block * BLOCK + lax.iota(jnp.int32, BLOCK)
            scores = jnp.where(self.seen.some(query, columns), scores, -jnp.inf)
        return scores

    def bounds(self, num_lists: int) -> jax.Array:
        """[num_queries, num_lists, num_blocks]: no score of a block is above.

        One subtraction and one maximum per score: this is nearly all that a search adds to the
        similarities. Each is the largest score itself unless the query may not see that item.
        """
        offsets = self.offsets
        if self.valid is not None:
            none = jnp.zeros((num_lists, *self.valid.shape), self.similarities.dtype)
            offsets = none if offsets is None else offsets
            offsets = jnp.where(self.valid[None], offsets, jnp.inf)
        if offsets is None:
            maxima = elementary.largest_last(self.similarities)[:, None]
        else:
            maxima = elementary.largest_last(self.similarities[:, None] - offsets[None])
        maxima = numerics.below_every_number(maxima)
        if self.valid is not None:
            maxima = jnp.where(self.valid.any(axis=-1)[None, None], maxima, -jnp.inf)
        return maxima

    def maxima(self, num_lists: int) -> jax.Array:
        """[num_queries, num_lists, num_blocks] the largest of `scores` in each block, exactly."""
        if self.seen is None:
            return self.bounds(num_lists)
        num_queries, num_blocks, _ = self.similarities.shape
        scores = self.similarities[:, None]
        if self.offsets is not None:
            scores = scores - self.offsets[None]
        scores = numerics.below_every_number(scores)
        if self.valid is not None:
            scores = jnp.where(self.valid[None, None], scores, -jnp.inf)
        columns = lax.iota(jnp.int32, num_blocks * BLOCK)
        seen = jax.vmap(self.seen.some, (0, None))(lax.iota(jnp.int32, num_queries), columns)
        scores = jnp.where(seen.reshape(self.similarities.shape)[:, None], scores, -jnp.inf)
        return jnp.broadcast_to(scores.max(axis=-1), (num_queries, num_lists, num_blocks))


def in_blocks(
    similarities: jax.Array,
    offsets: Offsets,
    valid: jax.Array | None = None,
    seen: Seen | None = None,
) -> Tile:
    """A tile of similarities [num_queries, num_columns]; arguments as of `add_tile`."""
    num_queries, num_columns = similarities.shape
    num_blocks = -(-num_columns // BLOCK)
    missing = num_blocks * BLOCK - num_columns
    if missing:
        valid = jnp.ones(num_columns, bool) if valid is None else valid
        valid = jnp.pad(valid, (0, missing))
        similarities = jnp.pad(similarities, ((0, 0), (0, missing)))
        offsets = None if offsets is None else tuple(jnp.pad(row, (0, missing)) for row in offsets)
    return Tile(
        similarities.reshape(num_queries, num_blocks, BLOCK),
        None if offsets is None else jnp.stack(offsets).reshape(-1, num_blocks, BLOCK),
        None if valid is None else valid.reshape(num_blocks, BLOCK),
        seen,
    )


State = TypeVar("State", Nearest, Classes)


def add_tile(
    nearest: State,
    similarities: jax.Array,
    offsets: Offsets,
    start: jax.Array,
    *,
    valid: jax.Array | None = None,
    seen: Seen | None = None,
) -> State:
    """Adds a tile of similarities, less offsets, to the k nearest [num_queries, num_lists, k].

    Or to the classes that stand for them within `sweep.meet` on accelerators.

    The tile is of gallery items `start, start + 1, ...`, all after those before. Which items are
    nearest is no smooth question: nothing here is differentiated.
    """
    if isinstance(nearest, Classes):
        return _add_to_classes(nearest, similarities, offsets, start, valid, seen)
    k = nearest.values.shape[-1]
    tile = in_blocks(similarities, offsets, valid, seen)
    if k == 1:
        return _replace(nearest, tile, start)
    if not inserts(k, similarities.shape[1]):
        return _select_anew(nearest, tile, start)
    # A loop that asks after every step whether to go on suits processors only.
    return lax.platform_dependent(
        nearest,
        start,
        cpu=lambda nearest, start: _insert(nearest, tile, start),
        default=lambda nearest, start: _select_anew(nearest, tile, start),
    )


def _add_to_classes(
    nearest: Classes,
    similarities: jax.Array,
    offsets: Offsets,
    start: jax.Array,
    valid: jax.Array | None,
    seen: Seen | None,
) -> Classes:
    entering = None if valid is None else valid[None]
    if seen is not None:
        shown = seen.whole(*similarities.shape)
        entering = shown if entering is None else entering & shown
    return classes.add(nearest, similarities, offsets, start, entering)


def inserts(k: int, num_columns: int) -> bool:
    """Whether the k nearest of a tile so wide are inserted, on processors, or selected anew."""
    return k <= min(_MOST_INSERTED, num_columns / _COLUMNS_PER_INSERTED)


def _insert(nearest: Nearest, tile: Tile, start: jax.Array) -> Nearest:
    """Inserts the items that beat the k-th nearest, best first, a group of rows at a time.

    Best first, only items are inserted that stay: about k / t for each row of the t-th tile.
    """
    num_queries, num_lists, k = nearest.values.shape
    num_rows = num_queries * num_lists  # one row per query and list
    group = min(_GROUP, num_rows)
    bounds = tile.bounds(num_lists).reshape(num_rows, -1)
    values, indices = (array.reshape(num_rows, k) for array in nearest)
    waiting = (bounds > values[:, -1:]).sum(axis=1, dtype=jnp.int32)
    # Rows with most to insert first: those of a group need about as many steps. One key for both,
    # no larger than there are bounds, is sorted faster than two.
    rows = lax.sort(lax.iota(jnp.int32, num_rows) - waiting * num_rows) % num_rows
    rows = jnp.pad(rows, (0, -num_rows % group), constant_values=num_rows)

    def insert_group(state: tuple[Any, ...]) -> tuple[Any, ...]:
        place, values, indices = state
        chosen = lax.dynamic_slice_in_dim(rows, place, group)
        inside = jnp.minimum(chosen, num_rows - 1)
        left = jnp.where((chosen < num_rows)[:, None], bounds[inside], -jnp.inf)
        added = _insert_best(tile, inside, left, Nearest(values[inside], indices[inside]), start)
        # Rows beyond the last are dropped.
        values = values.at[chosen].set(added.values, mode="drop")
        indices = indices.at[chosen].set(added.indices, mode="drop")
        return place + group, values, indices

    count = (waiting > 0).sum(dtype=jnp.int32)
    _, values, indices = lax.while_loop(
        lambda state: state[0] < count, insert_group, (jnp.int32(0), values, indices)
    )
    return Nearest(*(array.reshape(num_queries, num_lists, k) for array in (values, indices)))


class _Inserting(NamedTuple):
    """A row while its items are inserted, best first and ties by column."""

    bounds: jax.Array  # [num_blocks] on the items not yet inserted
    bound: jax.Array  # the largest of them
    nearest: Nearest  # [k]
    last_value: jax.Array  # of the item inserted last
    last_column: jax.Array


def _insert_best(
    tile: Tile, rows: jax.Array, bounds: jax.Array, nearest: Nearest, start: jax.Array
) -> Nearest:
    """Inserts into each of the rows, side by side, while a bound beats its k-th value."""
    num_lists = 1 if tile.offsets is None else tile.offsets.shape[0]
    no_column = tile.similarities.shape[1] * BLOCK

    def step(row: jax.Array, state: _Inserting) -> _Inserting:
        bound = state.bound
        block = jnp.minimum(_place(state.bounds, bound), state.bounds.shape[0] - 1)
        scores = tile.scores(row // num_lists, row % num_lists, block)
        columns = block * BLOCK + lax.iota(jnp.int32, BLOCK)
        after = (scores < state.last_value) | (
            (scores == state.last_value) & (columns > state.last_column)
        )
        scores = jnp.where(after, scores, -jnp.inf)
        # None is equal where the bound was no maximum: then the block gets its maximum, no more.
        found = jnp.where(scores == bound, columns, no_column).min()
        inserted = found < no_column
        rest = jnp.where(columns == found, -jnp.inf, scores).max()
        blocks = lax.iota(jnp.int32, state.bounds.shape[0])
        bounds = jnp.where(blocks == block, rest, state.bounds)
        added = _insert_one(state.nearest, bound, found + start)
        return _Inserting(
            bounds,
            elementary.largest_last(bounds),
            jax.tree.map(lambda new, old: jnp.where(inserted, new, old), added, state.nearest),
            jnp.where(inserted, bound, state.last_value),
            jnp.where(inserted, found, state.last_column),
        )

    def more(state: _Inserting) -> jax.Array:
        return elementary.any_last(state.bound > state.nearest.values[:, -1])

    state = _Inserting(
        bounds,
        elementary.largest_last(bounds),
        nearest,
        jnp.full(len(rows), jnp.inf, bounds.dtype),
        jnp.full(len(rows), -1, jnp.int32),
    )
    state = numerics.varying_like(state, rows, bounds, nearest)
    return lax.while_loop(more, lambda state: jax.vmap(step)(rows, state), state).nearest


def _insert_one(nearest: Nearest, value: jax.Array, index: jax.Array) -> Nearest:
    """Inserts an item after all that are at least as near."""
    stays = nearest.values >= value
    before = jnp.concatenate([jnp.ones(1, bool), stays[:-1]])

    def inserted(old: jax.Array, new: jax.Array) -> jax.Array:
        moved = jnp.concatenate([old[:1], old[:-1]])
        return jnp.where(stays, old, jnp.where(before, new, moved))

    return Nearest(inserted(nearest.values, value), inserted(nearest.indices, index))


def _replace(nearest: Nearest, tile: Tile, start: jax.Array) -> Nearest:
    """The nearest so far, or the best item of the block with the largest maximum."""

    def one(query: jax.Array, place: jax.Array, maxima: jax.Array, nearest: Nearest) -> Nearest:
        block = argmax(maxima)[1]
        value, column = argmax(tile.scores(query, place, block))
        found = Nearest(value[None], (start + block * BLOCK + column)[None])
        return jax.tree.map(
            lambda new, old: jnp.where(value > nearest.values, new, old), found, nearest
        )

    return _each(one, nearest, tile)


def _select_anew(nearest: Nearest, tile: Tile, start: jax.Array) -> Nearest:
    """The k largest of the k nearest so far and the k blocks with the largest maxima."""
    k = nearest.values.shape[-1]

    def one(query: jax.Array, place: jax.Array, maxima: jax.Array, nearest: Nearest) -> Nearest:
        count = min(k, maxima.shape[0])
        best = argmax(maxima)[1][None] if count == 1 else elementary.top_k(maxima, count)[1]
        chosen = jnp.sort(best)  # in order of index: equal values keep the order of the gallery
        scores = jax.vmap(tile.scores, (None, None, 0))(query, place, chosen)
        columns = chosen[:, None] * BLOCK + lax.iota(jnp.int32, BLOCK)[None] + start
        values = jnp.concatenate([nearest.values, scores.reshape(-1)])
        indices = jnp.concatenate([nearest.indices, columns.reshape(-1)])
        return Nearest(*largest_listed(values, indices, k))

    return _each(one, nearest, tile)


def _each(one: Callable[..., Nearest], nearest: Nearest, tile: Tile) -> Nearest:
    """`one(query, place of the list, block maxima, nearest)` for each query and list."""
    num_queries, num_lists, _ = nearest.values.shape
    maxima = tile.maxima(num_lists)  # exact: a mere bound might crowd out a block
    queries, places = (lax.iota(jnp.int32, size) for size in (num_queries, num_lists))
    over_lists = jax.vmap(one, (None, 0, 0, 0))
    return jax.vmap(over_lists, (0, None, 0, 0))(queries, places, maxima, nearest)
