"""The double loop of every streamed computation: rows against items, a tile of similarities each.

    for each chunk of rows              state = start(rows)
        for each tile of items              state, state of the items = add(both, tile)
                                        total, outputs = finish(total, state, rows)
        for each tile of items, if asked    state of the items = again(outputs, it, tile)

A `Pass` says what is kept of a tile. It is written once, and runs inside jit, on the devices of a
mesh and over blocks of files.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn, tile
from dbnorm_jax._src.passes import classes
from dbnorm_jax._src.passes.classes import Classes, Ranked
from dbnorm_jax._src.passes.selection import Nearest
from dbnorm_jax._src.passes.streaming import (
    COLUMNS,
    DEFAULT_CHUNK_SIZE,
    Block,
    Columns,
    both,
    even_size,
    in_order,
    scan_blocks,
    scan_chunks,
)

# Bytes of similarities that wait for a second look; they may be more where this few rows have more.
MOST_KEPT = 2**27
FEWEST_ROWS = 32


class Rows(NamedTuple):
    """Bank rows or queries, whole or a block of them."""

    vectors: jax.Array  # [num_rows, dim]
    own: Any = None  # pytree of [num_rows, ...], what goes with each
    weights: jax.Array | None = None  # [num_rows], 0 on rows that do not enter; None = ones
    start: jax.Array | int = 0  # number of the first
    state: Any = None  # pytree of [num_rows, ...], what items before have left; None = no items


class Items(NamedTuple):
    """Gallery items, whole or a block of them."""

    vectors: jax.Array  # [num_items, dim]
    own: Any = None  # pytree of [num_items, ...], what goes with each
    valid: jax.Array | None = None  # [num_items] bool, False on padding
    start: jax.Array | int = 0  # gallery index of the first


class Chunk(NamedTuple):
    """Rows that are held at once."""

    vectors: jax.Array  # [size, dim]
    own: Any  # pytree of [size, ...]
    entering: jax.Array  # [size] weights; 0 on rows that do not enter, or entered before
    fresh: jax.Array | None  # [size] bool, False on rows that were here before; None = all fresh
    start: jax.Array  # number of the first
    picked: jax.Array | None = None  # [size] int32, which after it these are; None = all in order

    @property
    def size(self) -> int:
        return len(self.vectors)

    def number(self, row: jax.Array) -> jax.Array:
        """The number of a row of the chunk."""
        return self.start + (row if self.picked is None else self.picked[row])

    @property
    def places(self) -> jax.Array:
        """[size] their numbers."""
        return self.number(lax.iota(jnp.int32, self.size))

    def pick(self, rows: jax.Array) -> "Chunk":
        """Some of them, by their places in the chunk."""
        parts = self.vectors, self.own, self.entering, self.fresh
        vectors, own, entering, fresh = jax.tree.map(lambda part: part[rows], parts)
        return Chunk(vectors, own, entering, fresh, self.start, rows)


class Tile(NamedTuple):
    """A chunk of rows against some items."""

    similarities: jax.Array  # [size, num_items]
    rows: Chunk
    items: jax.Array  # [num_items, dim]
    own: Any  # of the items, pytree of [num_items, ...]
    valid: jax.Array | None  # [num_items] bool, False on padding and on items that were here before
    start: jax.Array  # gallery index of the first item

    @property
    def places(self) -> jax.Array:
        """[num_items] gallery indices."""
        return self.start + lax.iota(jnp.int32, self.similarities.shape[1])

    @property
    def entering(self) -> jax.Array:
        """[num_items] weights, 0 on items that are not valid."""
        ones = jnp.ones(self.similarities.shape[1], self.similarities.dtype)
        return ones if self.valid is None else jnp.where(self.valid, ones, 0)


class Pass(NamedTuple):
    """What is kept of the tiles: of their rows, of their items, and in all.

    Attributes:
      add: (state of the rows, state of the items, tile) -> both states; the state of the items is a
        pytree of [num_items, ...] that waits for the next rows.
      start: chunk -> state of the rows before their first tile, a pytree of [size, ...].
      finish: (total, state of the rows, chunk) -> (total, outputs), when the rows have met all
        items; outputs is a pytree of [size, ...] or None. By default the state of the rows.
      again: (outputs of the rows, state of the items, tile) -> state of the items, a second look at
        the tiles of rows that are finished. Their similarities are kept in between, of fewer rows
        at once where they would take more than `MOST_KEPT`. Items must be the whole gallery. None =
        no second look.
    """

    add: Callable[[Any, Any, Tile], tuple[Any, Any]]
    start: Callable[[Chunk], Any] = lambda _: None
    finish: Callable[[Any, Any, Chunk], tuple[Any, Any]] = lambda total, state, _: (total, state)
    again: Callable[[Any, Any, Tile], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Transposed:
    """A similarity of items and rows as one of rows and items."""

    similarity_fn: SimilarityFn

    def __call__(self, rows: jax.Array, items: jax.Array) -> jax.Array:
        return self.similarity_fn(items, rows).T


class Tiling(NamedTuple):
    """How similarities are computed, and how many at once."""

    similarity_fn: SimilarityFn
    dtype: jnp.dtype  # of the similarities
    chunk_size: int = DEFAULT_CHUNK_SIZE  # rows
    columns: Columns = Columns.everywhere(COLUMNS)  # items of a tile


class Swept(NamedTuple):
    items: Any  # state of the items, pytree of [num_items, ...]
    total: Any
    outputs: Any  # pytree of [num_rows, ...]


def sweep(
    kept: Pass, rows: Rows, items: Items, tiling: Tiling, *, state: Any = None, total: Any = None
) -> Swept:
    """Runs a pass over all tiles; `state` is that of the items, pytree of [num_items, ...]."""

    def add_rows(carry: tuple[Any, Any], block: Block) -> tuple[tuple[Any, Any], Any]:
        state, total = carry
        vectors, own, weights, so_far = block.rows
        held = Rows(vectors, own, weights, rows.start + block.start)
        chunk = chunk_of(held, block.fresh, tiling.dtype)
        so_far = kept.start(chunk) if so_far is None else so_far
        so_far, state, similarities = meet(kept, so_far, chunk, items, state, tiling)
        total, outputs = kept.finish(total, so_far, chunk)
        if kept.again is not None:
            state = _meet_again(kept.again, outputs, chunk, items, state, tiling, similarities)
        return (state, total), outputs

    arrays = (rows.vectors, rows.own, rows.weights, rows.state)
    carry = numerics.varying_like((state, total), arrays, items[:-1])
    (state, total), outputs = scan_chunks(add_rows, carry, arrays, _num_rows(kept, items, tiling))
    return Swept(state, total, outputs)


def _num_rows(kept: Pass, items: Items, tiling: Tiling) -> int:
    """Rows of a chunk."""
    if kept.again is None:
        return tiling.chunk_size
    fitting = MOST_KEPT // (len(items.vectors) * tiling.dtype.itemsize)
    return min(tiling.chunk_size, max(FEWEST_ROWS, fitting))


def chunk_of(rows: Rows, fresh: jax.Array | None, dtype: jnp.dtype) -> Chunk:
    """All of these rows as one chunk, with weights of a dtype where they have none."""
    vectors, own, weights, start, _ = rows
    entering = jnp.ones(len(vectors), dtype) if weights is None else weights
    if fresh is not None:
        entering = jnp.where(fresh, entering, 0)
    return Chunk(vectors, own, entering, fresh, jnp.asarray(start))


def meet(
    kept: Pass, so_far: Any, rows: Chunk, items: Items, state: Any, tiling: Tiling
) -> tuple[Any, Any, jax.Array | None]:
    """Adds all items to the state of one chunk of rows.

    Returns it, the state of the items, and the similarities of each tile if the pass looks again.
    """
    by_tiles = partial(_meet_tiles, kept, tiling)
    k = max([part.values.shape[-1] for part in _nearest_of(so_far)], default=0)
    if not 0 < k <= classes.MOST:
        return by_tiles(so_far, rows, items, state)
    by_classes = partial(_meet_by_classes, kept, tiling)
    return on_platform(so_far, rows, items, state, cpu=by_tiles, default=by_classes)


def on_platform(*arrays: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """One of the two, by the platform that the program is lowered for."""
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)


def _meet_tiles(
    kept: Pass, tiling: Tiling, so_far: Any, rows: Chunk, items: Items, state: Any
) -> tuple[Any, Any, jax.Array | None]:
    def add_items(so_far: Any, block: Block) -> tuple[Any, Any]:
        vectors, *_, state = block.rows
        similarities = tile(tiling.similarity_fn, rows.vectors, vectors).astype(tiling.dtype)
        so_far, state = kept.add(so_far, state, _tile(similarities, rows, items, block))
        return so_far, (state, None if kept.again is None else similarities)

    def in_tiles(so_far: Any, arrays: Any, columns: int) -> Any:
        so_far, (state, similarities) = scan_blocks(add_items, so_far, arrays, columns)
        return so_far, in_order(state, len(items.vectors)), similarities

    arrays = (items.vectors, items.own, items.valid, state)
    so_far = numerics.varying_like(so_far, rows, arrays)
    if kept.again is not None:  # tiles that are kept have one shape on all platforms
        return in_tiles(so_far, arrays, tiling.columns.cpu)
    columns = tiling.columns.at_most(len(items.vectors))
    return columns.choose(in_tiles, so_far, arrays)


def _meet_by_classes(
    kept: Pass, tiling: Tiling, so_far: Any, rows: Chunk, items: Items, state: Any
) -> tuple[Any, Any, jax.Array | None]:
    """As `_meet_tiles`; in place of the nearest stand classes while the tiles pass."""
    (nearest,) = _nearest_of(so_far)
    known = Ranked(*nearest)
    num_items = len(items.vectors)
    # Deep enough for the tiles of every platform.
    depths = [
        classes.depth(known.values.shape[-1], num_items, even_size(num_items, columns))
        for columns in tiling.columns
    ]
    much = max(depths, key=lambda depth: (depth.kept, not depth.complete))
    handed_on = None
    if not much.complete:
        widest = even_size(num_items, tiling.columns.tpu)
        handed_on = classes.handed_on(known.values.shape[-1], num_items, widest)
    empty = classes.start(known.values.shape, much, known.values.dtype, handed_on=handed_on)
    met = _meet_tiles(kept, tiling, _with_nearest(so_far, empty), rows, items, state)
    (collected,) = _nearest_of(met[0])
    found = classes.settle(collected, known, complete=much.complete)
    best = found.nearest
    if not much.complete:
        again = lax.stop_gradient((so_far, rows, items, state))

        def look(chosen: jax.Array, empty: Classes) -> Classes:
            so_far, rows, items, state = again
            some = jax.tree.map(
                lambda part: empty if _is_nearest(part) else part[chosen],
                so_far,
                is_leaf=_is_nearest,
            )
            once = kept._replace(again=None)
            return _nearest_of(_meet_tiles(once, tiling, some, rows.pick(chosen), items, state))[0]

        best = classes.look_again(found, known, look, much)
    return _with_nearest(met[0], Nearest(*best)), *met[1:]


def _nearest_of(state: Any) -> list[Any]:
    return [part for part in jax.tree.leaves(state, is_leaf=_is_nearest) if _is_nearest(part)]


def _with_nearest(state: Any, nearest: Any) -> Any:
    return jax.tree.map(
        lambda part: nearest if _is_nearest(part) else part, state, is_leaf=_is_nearest
    )


def _is_nearest(part: Any) -> bool:
    return isinstance(part, Nearest | Classes)


def _meet_again(
    again: Callable[[Any, Any, Tile], Any],
    outputs: Any,
    rows: Chunk,
    items: Items,
    state: Any,
    tiling: Tiling,
    similarities: jax.Array | None,
) -> Any:
    """The state of the items after a second look at the tiles of one chunk of rows."""

    def look(_: None, block: Block) -> tuple[None, Any]:
        return None, again(outputs, block.rows[-1], _tile(block.kept, rows, items, block))

    arrays = (items.vectors, items.own, items.valid, state)
    _, state = scan_blocks(look, None, arrays, tiling.columns.cpu, similarities)
    return in_order(state, len(items.vectors))


def _tile(similarities: jax.Array, rows: Chunk, items: Items, block: Block) -> Tile:
    vectors, own, valid, _ = block.rows
    valid = both(block.fresh, valid)
    return Tile(similarities, rows, vectors, own, valid, items.start + block.start)
