"""The k nearest by classes of columns, for accelerators: a tile is compared, never sorted.

The columns of a tile fall into classes, column mod number of classes, and each class keeps its few
best items. All k nearest are among them unless one class has more of these than it keeps; and that
shows. What a class has left out ranks after the last that it keeps, so

    bound      the first of all these last items, in the order of the search
    settled    the items kept that rank no later than the bound: the nearest of all, in order

A row of which fewer than k are settled is looked at again: the items after its bound, in classes
that are turned from tile to tile. Each look settles as many items as a class keeps, or more. So
answers are exact in any order of the gallery; ties go to the lowest index.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.passes.again import looked_at_again

# Classes for a k up to the number before them: some vectors of an accelerator's lanes.
_CLASSES = ((128, 256), (512, 512), (1024, 1024))
# A greater k is selected tile by tile.
MOST = _CLASSES[-1][0]
# Share of rows that may need another look, where the gallery is in random order.
_SHARE = 1e-4
_NO_PLACE = 2**31 - 1


class Depth(NamedTuple):
    """How much is kept of a row."""

    num_classes: int
    kept: int  # items of each class
    complete: bool  # whether no order of the gallery needs another look


def depth(k: int, num_items: int, columns: int) -> Depth:
    """Of a search for k neighbors among so many items, in tiles of so many columns.

    In random order a class holds a number of the k nearest that is about Poisson distributed.
    """
    num_classes = next(number for most, number in _CLASSES if k <= most)
    mean, kept = k / num_classes, 0
    term, rest = math.exp(-mean), 1.0
    while rest * num_classes > _SHARE:
        rest -= term
        kept += 1
        term *= mean / kept
    of_class = -(-num_items // columns) * -(-columns // num_classes)  # at most
    kept = min(kept, k, of_class)
    return Depth(num_classes, kept, kept in (k, of_class))


class Ranked(NamedTuple):
    """Items of rows by rank, each a value and the index that decides between equal values."""

    values: jax.Array
    indices: jax.Array  # int32

    def no_later(self, other: "Ranked") -> jax.Array:
        """Where an item ranks before another one, or is it."""
        same = (self.values == other.values) & (self.indices <= other.indices)
        return (self.values > other.values) | same

    def where(self, mask: jax.Array, others: "Ranked") -> "Ranked":
        """These where the mask holds, others elsewhere."""
        return jax.tree.map(lambda mine, other: jnp.where(mask, mine, other), self, others)

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "Ranked":
        return Ranked(function(self.values), function(self.indices))


class Classes(NamedTuple):
    """The best items so far of each class of each list; -inf where there are fewer."""

    kept: tuple[tuple[Ranked, ...], ...]  # [num_lists][kept] of [num_rows, num_classes]
    after: Ranked | None  # [num_rows, num_lists], items that rank later enter; None = all
    turn: jax.Array | None  # int32, which classes the columns fall into; None = by column


def start(
    shape: tuple[int, ...], much: Depth, dtype: jnp.dtype, after: Any = None, turn: Any = None
) -> Classes:
    """Classes for Nearest of a shape [num_rows, num_lists, k]."""
    none = Ranked(
        jnp.full((shape[0], much.num_classes), -jnp.inf, dtype),
        jnp.zeros((shape[0], much.num_classes), jnp.int32),
    )
    return Classes(((none,) * much.kept,) * shape[1], after, turn)


def add(
    classes: Classes,
    similarities: jax.Array,
    offsets: tuple[jax.Array, ...] | None,
    start: jax.Array,
    entering: jax.Array | None,
) -> Classes:
    """Adds a tile, as `selection.add_tile`; `entering` [1 or num_rows, num_columns] is a mask."""
    indices = start + lax.iota(jnp.int32, similarities.shape[1])
    added = []
    for place, kept in enumerate(classes.kept):
        scores = similarities if offsets is None else similarities - offsets[place][None]
        scores = numerics.below_every_number(scores)
        if entering is not None:
            scores = jnp.where(entering, scores, -jnp.inf)
        if classes.after is not None:
            after = classes.after.map(lambda part: part[:, place, None])  # noqa: B023
            early = Ranked(scores, jnp.broadcast_to(indices, scores.shape)).no_later(after)
            scores = jnp.where(early, -jnp.inf, scores)
        added.append(_add_scores(kept, scores, indices, classes.turn))
    return classes._replace(kept=tuple(added))


def _add_scores(
    kept: tuple[Ranked, ...], scores: jax.Array, indices: jax.Array, turn: jax.Array | None
) -> tuple[Ranked, ...]:
    num_columns, num_classes = scores.shape[1], kept[0].values.shape[1]
    for first in range(0, num_columns, num_classes):
        part = slice(first, min(first + num_classes, num_columns))
        missing = first + num_classes - part.stop
        items = Ranked(
            jnp.pad(scores[:, part], ((0, 0), (0, missing)), constant_values=-jnp.inf),
            jnp.pad(indices[part], (0, missing))[None],
        )
        if turn is not None:
            items = items.map(partial(_turned, by=_scattered(indices[first], turn, num_classes)))
        kept = _inserted(kept, items)
    return kept


def _scattered(place: jax.Array, turn: jax.Array, size: int) -> jax.Array:
    """A number below `size`, a power of two, that has no pattern over places and turns."""
    mixed = (place + turn * 40503) * -1640531527  # 2^32 / golden ratio (Knuth's hash)
    return lax.shift_right_logical(mixed, jnp.int32(15)) & (size - 1)


def _turned(part: jax.Array, by: jax.Array) -> jax.Array:
    """Columns moved on, those of the end to the front."""
    twice = jnp.concatenate([part, part], axis=1)
    return lax.dynamic_slice_in_dim(twice, part.shape[1] - by, part.shape[1], axis=1)


def _inserted(kept: tuple[Ranked, ...], items: Ranked) -> tuple[Ranked, ...]:
    """One item of each class inserted after all that are at least as near."""
    new, before = [], None
    for old in kept:
        better = items.values > old.values
        if before is None:
            moved = items
        else:  # what stood before it, or the item itself
            passed, earlier = before
            moved = earlier.where(passed, items)
        new.append(moved.where(better, old))
        before = better, old
    return tuple(new)


class Settled(NamedTuple):
    """What is known of rows, each entry of it [num_rows, num_lists, ...]."""

    nearest: Ranked  # [..., k] settled so far, best first
    bound: Ranked  # [...] no item left out ranks before it
    done: jax.Array  # [...] bool, whether the nearest are all settled


def settle(classes: Classes, known: Ranked, *, complete: bool = False) -> Settled:
    """Joins to the items known [num_rows, num_lists, k] those that the classes settle.

    With `complete` classes these are all: none of the nearest is left out.
    """
    lists = [
        _settle(kept, known.map(lambda part: part[:, place]), complete)  # noqa: B023
        for place, kept in enumerate(classes.kept)
    ]
    settled: Settled = jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *lists)
    return settled


def _settle(kept: tuple[Ranked, ...], known: Ranked, complete: bool) -> Settled:
    bound = _first(kept[-1])
    if complete:
        bound = bound._replace(values=jnp.full_like(bound.values, -jnp.inf))
    of_rows = bound.map(lambda part: part[:, None])
    candidates: Ranked = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *kept)
    values = jnp.where(candidates.no_later(of_rows), candidates.values, -jnp.inf)
    joined = Ranked(
        jnp.concatenate([known.values, values], axis=1),
        jnp.concatenate([known.indices, candidates.indices], axis=1),
    )
    k = known.values.shape[1]
    if k == 1:
        nearest = _first(joined).map(lambda part: part[:, None])
    else:
        lowest_first = lax.sort((-joined.values, joined.indices), dimension=1, num_keys=2)
        nearest = Ranked(-lowest_first[0][:, :k], lowest_first[1][:, :k])
    last = nearest.map(lambda part: part[:, -1])
    return Settled(nearest, bound, last.no_later(bound) | (bound.values == -jnp.inf))


def _first(items: Ranked) -> Ranked:
    """[num_rows] the first of each row, by rank."""
    values = items.values.max(axis=1)
    level = items.values == values[:, None]
    return Ranked(values, jnp.where(level, items.indices, _NO_PLACE).min(axis=1))


def look_again(
    found: Settled, known: Ranked, look: Callable[[jax.Array, Classes], Classes], much: Depth
) -> Ranked:
    """The nearest of all rows, those not done looked at again, a block of them at a time.

    `known` are the nearest of items before. `look` hands some rows [size] all items once more: it
    takes their empty classes and returns them when they have met these.
    """
    _, num_lists, k = known.values.shape

    def of_block(rows: jax.Array, there: jax.Array) -> Ranked:
        # From the start: products of fewer rows may round differently.
        before = known.map(lambda part: part[rows])
        shape = (len(rows), num_lists)
        after = Ranked(
            jnp.full(shape, jnp.inf, before.values.dtype), jnp.full(shape, -1, jnp.int32)
        )

        def again(state: tuple[jax.Array, Settled]) -> tuple[jax.Array, Settled]:
            turn, settled = state
            empty = start((*shape, k), much, before.values.dtype, settled.bound, turn)
            return turn + 1, settle(look(rows, empty), settled.nearest)

        state = jnp.int32(1), Settled(before, after, jnp.broadcast_to(~there[:, None], shape))
        state = numerics.varying_like(state, known, found, rows)
        return lax.while_loop(lambda state: ~state[1].done.all(), again, state)[1].nearest

    return looked_at_again(found.nearest, found.done.all(axis=1), of_block)
