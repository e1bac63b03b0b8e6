"""The k nearest by classes of columns, for accelerators: a tile is compared, never sorted.

The columns of a tile fall into classes, column mod number of classes, and each class keeps its few
best items. All k nearest are among them unless one class has more of these than it keeps; and that
shows. What a class has left out ranks after the last that it keeps, so

    bound      the first of all these last items, in the order of the search
    settled    the items kept that rank no later than the bound: the nearest of all, in order

Where classes are many, a tile is folded first: each class takes only the best few of its items in
the tile. What the fold leaves out is known by its value, and the bound ranks before all of that.

A row of which fewer than k are settled is looked at again: the items after its bound, in classes
that are turned from tile to tile, of tiles that are not folded. Each look settles as many items as
a class keeps, or more. So answers are exact in any order of the gallery; ties go to the lowest
index.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import elementary, numerics
from dbnorm_jax._src.passes.again import looked_at_again

# Classes for a k up to the number before them: some vectors of an accelerator's lanes.
_CLASSES = ((128, 256), (512, 512), (1024, 1024))
# A greater k is selected tile by tile.
MOST = _CLASSES[-1][0]
# Share of rows that may need another look, where the gallery is in random order.
_SHARE = 1e-4
# Tiles in which classes have more items, as those of GPUs, are not folded: all items are inserted.
_MOST_FOLDED = 16
# So many of the nearest a TPU finds sooner one by one than by a sort.
_MOST_PICKED = _CLASSES[0][0]
_NO_PLACE = 2**31 - 1


class Depth(NamedTuple):
    """How much is kept of a row."""

    num_classes: int
    kept: int  # items of each class
    complete: bool  # whether no order of the gallery needs another look


def depth(k: int, num_items: int, columns: int) -> Depth:
    """Of a search for k neighbors among so many items, in tiles of so many columns."""
    num_classes = next(number for most, number in _CLASSES if k <= most)
    of_class = -(-num_items // columns) * -(-columns // num_classes)  # at most
    kept = min(_most_together(k, num_classes) + 1, k, of_class)
    return Depth(num_classes, kept, kept in (k, of_class))


def handed_on(k: int, num_items: int, columns: int) -> int:
    """Items that a class takes of a tile so wide, one of those that so many items are cut into."""
    num_classes = depth(k, num_items, columns).num_classes
    return max(1, _most_together(k, num_classes * -(-num_items // columns)))


def _most_together(k: int, places: int) -> int:
    """How many of the k nearest stand in one place of so many, in all but a _SHARE of rows.

    In random order their number is about Poisson distributed.
    """
    mean, number = k / places, 0
    term = math.exp(-mean)
    rest = 1 - term
    while rest * places > _SHARE:
        number += 1
        term *= mean / number
        rest -= term
    return number


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


class Class(NamedTuple):
    """What is known of each class of a list, [num_rows, num_classes] each."""

    kept: tuple[Ranked, ...]  # the best so far, best first; -inf where there are fewer
    folded: jax.Array  # no value that a fold has left out is above


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Classes:
    """The best items so far of each class of each list."""

    lists: tuple[Class, ...]
    after: Ranked | None = None  # [num_rows, num_lists], items that rank later enter; None = all
    turn: jax.Array | None = None  # int32, which classes the columns fall into; None = by column
    # Items that a class takes of a tile; None = all.
    handed_on: int | None = dataclasses.field(default=None, metadata={"static": True})


def start(
    shape: tuple[int, ...],
    much: Depth,
    dtype: jnp.dtype,
    *,
    after: Ranked | None = None,
    turn: jax.Array | None = None,
    handed_on: int | None = None,
) -> Classes:
    """Classes for Nearest of a shape [num_rows, num_lists, k]."""
    values = jnp.full((shape[0], much.num_classes), -jnp.inf, dtype)
    none = Ranked(values, jnp.zeros(values.shape, jnp.int32))
    lists = (Class((none,) * much.kept, values),) * shape[1]
    return Classes(lists, after, turn, handed_on)


def add(
    classes: Classes,
    similarities: jax.Array,
    offsets: tuple[jax.Array, ...] | None,
    start: jax.Array,
    entering: jax.Array | None,
) -> Classes:
    """Adds a tile, as `selection.add_tile`; `entering` [1 or num_rows, num_columns] is a mask."""
    indices = start + lax.iota(jnp.int32, similarities.shape[1])
    added: list[Class] = []
    for place, known in enumerate(classes.lists):
        if len(classes.lists) > 1:
            # Scores of all lists at once would leave TPUs no memory on the chip for the classes.
            similarities, added = lax.platform_dependent(
                (similarities, added), tpu=elementary.separate, default=lambda parts: parts
            )
        scores = similarities if offsets is None else similarities - offsets[place][None]
        scores = numerics.below_every_number(scores)
        if entering is not None:
            scores = jnp.where(entering, scores, -jnp.inf)
        if classes.after is not None:
            after = classes.after.map(lambda part: part[:, place, None])  # noqa: B023
            early = Ranked(scores, jnp.broadcast_to(indices, scores.shape)).no_later(after)
            scores = jnp.where(early, -jnp.inf, scores)
        items = _by_class(scores, indices, known.folded.shape[1], classes.turn)
        added.append(_added(known, items, classes.handed_on))
    return dataclasses.replace(classes, lists=tuple(added))


def _by_class(
    scores: jax.Array, indices: jax.Array, num_classes: int, turn: jax.Array | None
) -> list[Ranked]:
    """The items of a tile, of each class one after the other."""
    num_columns, parts = scores.shape[1], []
    for first in range(0, num_columns, num_classes):
        part = slice(first, min(first + num_classes, num_columns))
        missing = first + num_classes - part.stop
        items = Ranked(
            jnp.pad(scores[:, part], ((0, 0), (0, missing)), constant_values=-jnp.inf),
            jnp.pad(indices[part], (0, missing))[None],
        )
        if turn is not None:
            items = items.map(partial(_turned, by=_scattered(indices[first], turn, num_classes)))
        parts.append(items)
    return parts


def _added(known: Class, items: list[Ranked], handed_on: int | None) -> Class:
    kept, folded = known
    if handed_on is not None and handed_on < len(items) <= _MOST_FOLDED:
        none = Ranked(jnp.full_like(folded, -jnp.inf), jnp.zeros(folded.shape, jnp.int32))
        best: tuple[Ranked, ...] = (none,) * handed_on
        for item in items:
            best, left = _inserted(best, item)
            folded = jnp.maximum(folded, left.values)
        items = list(best)
    for item in items:
        kept, _ = _inserted(kept, item)
    return Class(kept, folded)


def _scattered(place: jax.Array, turn: jax.Array, size: int) -> jax.Array:
    """A number below `size`, a power of two, that has no pattern over places and turns."""
    mixed = (place + turn * 40503) * -1640531527  # 2^32 / golden ratio (Knuth's hash)
    return lax.shift_right_logical(mixed, jnp.int32(15)) & (size - 1)


def _turned(part: jax.Array, by: jax.Array) -> jax.Array:
    """Columns moved on, those of the end to the front."""
    twice = jnp.concatenate([part, part], axis=1)
    return lax.dynamic_slice_in_dim(twice, part.shape[1] - by, part.shape[1], axis=1)


def _inserted(kept: tuple[Ranked, ...], item: Ranked) -> tuple[tuple[Ranked, ...], Ranked]:
    """One item of each class inserted after all that are at least as near, and what falls out."""
    new, moved = [], item
    for old in kept:
        better = item.values > old.values
        new.append(
            Ranked(
                jnp.maximum(old.values, moved.values),
                jnp.where(better, moved.indices, old.indices),
            )
        )
        # All that rank after the item move on, in their order.
        moved = Ranked(
            jnp.minimum(old.values, moved.values),
            jnp.where(better, old.indices, moved.indices),
        )
    return tuple(new), moved


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
        _settle(of_list, known.map(lambda part: part[:, place]), complete)  # noqa: B023
        for place, of_list in enumerate(classes.lists)
    ]
    settled: Settled = jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *lists)
    return settled


def _settle(classes: Class, known: Ranked, complete: bool) -> Settled:
    kept, folded = classes
    bound = _first(kept[-1])
    if complete:
        bound = bound._replace(values=jnp.full_like(bound.values, -jnp.inf))
    # Which of the items with its value a fold has left out first, it does not say.
    left = Ranked(folded.max(axis=1), jnp.full_like(bound.indices, -1))
    bound = left.where(left.values >= bound.values, bound)
    of_rows = bound.map(lambda part: part[:, None])
    candidates: Ranked = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *kept)
    values = jnp.where(candidates.no_later(of_rows), candidates.values, -jnp.inf)
    joined = Ranked(
        jnp.concatenate([known.values, values], axis=1),
        jnp.concatenate([known.indices, candidates.indices], axis=1),
    )
    nearest = _best(joined, known.values.shape[1])
    last = nearest.map(lambda part: part[:, -1])
    return Settled(nearest, bound, last.no_later(bound) | (bound.values == -jnp.inf))


def _best(items: Ranked, k: int) -> Ranked:
    """[num_rows, k] the first k of each row, by rank."""
    if k == 1:
        return _first(items).map(lambda part: part[:, None])
    if k > _MOST_PICKED:
        return _best_by_sort(items, k)
    picked, sorted_ = (partial(find, k=k) for find in (_best_by_picking, _best_by_sort))
    best: Ranked = lax.platform_dependent(items, tpu=picked, default=sorted_)
    return best


def _best_by_sort(items: Ranked, k: int) -> Ranked:
    lowest_first = lax.sort((-items.values, items.indices), dimension=1, num_keys=2)
    return Ranked(-lowest_first[0][:, :k], lowest_first[1][:, :k])


def _best_by_picking(items: Ranked, k: int) -> Ranked:
    """One after the other: each takes two looks at the row, a sort many more."""

    def pick(values: jax.Array, _: None) -> tuple[jax.Array, Ranked]:
        first = _first(items._replace(values=values))
        return jnp.where(items.indices == first.indices[:, None], -jnp.inf, values), first

    picked: Ranked = lax.scan(pick, items.values, None, length=k)[1]
    return picked.map(jnp.transpose)


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
            empty = start((*shape, k), much, before.values.dtype, after=settled.bound, turn=turn)
            return turn + 1, settle(look(rows, empty), settled.nearest)

        state = jnp.int32(1), Settled(before, after, jnp.broadcast_to(~there[:, None], shape))
        state = numerics.varying_like(state, known, found, rows)
        return lax.while_loop(lambda state: ~state[1].done.all(), again, state)[1].nearest

    return looked_at_again(found.nearest, found.done.all(axis=1), of_block)
