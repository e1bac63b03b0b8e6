"""A pass over files: rows and items that need not fit memory, block against block.

    for each block of rows              their state so far
        for each block of items             the state of these items, on the host
            one sweep                       both updated

What is held is a block of each, the next of each, and vectors as long as the files. Blocks of items
come in order: what a pass finds is exact, and ties go to the lowest index.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.passes import sweep
from dbnorm_jax._src.passes.sweep import Items, Pass, Tiling
from dbnorm_jax._src.places.disk.rows import RowBlock, Rows


class Made(NamedTuple):
    """A pass, made anew in each program by a function of a module: one program for all blocks."""

    make: Callable[..., Pass]  # (*static, *arrays) -> the pass
    static: tuple[Any, ...]
    tiling: Tiling
    arrays: tuple[Any, ...] = ()
    start_items: Callable[..., Any] = lambda *_: None  # (number of items, *arrays) -> their state

    def kept(self, arrays: tuple[Any, ...]) -> Pass:
        return self.make(*self.static, *arrays)

    @property
    def known(self) -> "Made":
        """All but the arrays, which are traced."""
        return self._replace(arrays=())


# dtype of the items -> the pass, and a block of rows: neither is known before items are read.
Begin = Callable[[np.dtype[Any]], tuple[Made, sweep.Rows]]


def meet(
    begin: Begin,
    items: Rows,
    own: Any = None,
    *,
    hashed: bool = False,
    skip: int = 0,
    state: Any = None,
    states: dict[int, Any] | None = None,
) -> Iterator[tuple[RowBlock, Any]]:
    """Adds blocks of items to one block of rows; yields each, and the state of the rows after it.

    Of the items only those take part that a `where` in their `per_row` has. `own` goes with each
    item. The rows have met the first `skip` of them, which has left their `state`. The `states` of
    the blocks of items, by their number, are updated.
    """
    states = {} if states is None else states
    own, where, place = jax.tree.map(np.asarray, own), items.per_row.get("where"), -1
    for block in items.read(hashed=hashed, skip=skip):
        assert items.dtype is not None
        made, rows = begin(items.dtype)
        dtype = made.tiling.dtype
        if state is None:
            state = made.kept(made.arrays).start(sweep.chunk_of(rows, None, dtype))
        # The step before is done before the next is begun: no queue of blocks builds up.
        _settle(state, states, place)
        place = block.start // items.block_size
        if place not in states:
            states[place] = made.start_items(len(block.rows), *made.arrays)
        given = Items(
            items.on_device(block),
            jax.tree.map(lambda leaf: _of_block(leaf, block, dtype), own),  # noqa: B023
            block.valid if where is None else block.valid & block.filled(where),
            jnp.asarray(block.start, jnp.int32),
        )
        waiting = jax.tree.map(jnp.asarray, states[place])
        rows = rows._replace(state=state)
        state, states[place] = _add(made.arrays, rows, given, waiting, made=made.known)
        yield block, state
    _settle(state, states, place)


def finish(begin: Begin, items: Rows, state: Any, total: Any = None) -> tuple[Any, Any]:
    """(total, outputs) of a block of rows that has met all items."""
    assert items.dtype is not None
    made, rows = begin(items.dtype)
    return _finish(made.arrays, rows, state, total, made=made.known)


def _settle(state: Any, states: dict[int, Any], place: int) -> None:
    """Waits for a step, and keeps the state of its items on the host: devices hold less."""
    jax.block_until_ready(state)  # type: ignore[no-untyped-call]
    if place >= 0:
        states[place] = jax.tree.map(np.array, states[place])


def _of_block(leaf: np.ndarray[Any, Any], block: RowBlock, dtype: jnp.dtype) -> jax.Array:
    filled: jax.Array = block.filled(leaf)
    return filled.astype(dtype) if jnp.issubdtype(filled.dtype, jnp.floating) else filled


@functools.partial(jax.jit, static_argnames="made")
def _add(arrays: Any, rows: sweep.Rows, items: Items, state: Any, *, made: Made) -> Any:
    kept = made.kept(arrays)
    unfinished = Pass(kept.add, kept.start)  # its outputs are the state of the rows
    swept = sweep.sweep(unfinished, rows, items, made.tiling, state=state)
    return swept.outputs, swept.items


@functools.partial(jax.jit, static_argnames="made")
def _finish(arrays: Any, rows: sweep.Rows, state: Any, total: Any, *, made: Made) -> Any:
    return made.kept(arrays).finish(total, state, sweep.chunk_of(rows, None, made.tiling.dtype))


class Partial(NamedTuple):
    """What a pass has so far, to go on from without any rounding."""

    items: Any  # pytree of [num_items, ...], states
    rows: Any  # pytree of [size, ...], state of the rows on their way; None where there are none
    total: Any  # pytree of [num_items, ...]
    outputs: Any  # pytree of [rows_done, ...]
    rows_done: int  # that have met all items
    items_done: int  # that the rows on their way have met


class BlockSweep:
    """A pass over files, that goes on where it was left."""

    _state: Any = None
    _total: Any = None
    _num_items = 0  # that have states
    _rows_done = 0
    _items_done = 0
    _items_hashed = False

    def __init__(
        self,
        rows: Rows,
        items: Rows,
        begin: Callable[[RowBlock, np.dtype[Any]], tuple[Made, sweep.Rows]],
        own: Any = None,  # of the items
        start_total: Callable[[int], Any] = lambda _: None,  # number of items -> before all rows
        *,
        begun: Partial | None = None,
        expected: tuple[Any, Any] = (None, None),  # fingerprints of rows and items
        hashed: bool = False,
    ) -> None:
        check_repeatable(rows, items)
        # Of the rows that have entered; of the items once they have passed, before of those so far.
        self.rows_fingerprint, self.items_fingerprint = expected
        rows.expected, items.expected = expected
        self._rows, self._items, self._own = rows, items, own
        self._begin, self._start_total, self._hashed = begin, start_total, hashed
        self._states: dict[int, Any] = {}
        self._outputs: list[Any] = []
        if begun is not None:
            self._go_on_from(begun)

    def steps(self) -> Iterator[tuple[int, int]]:
        """Adds what is left, block against block; yields how many rows and items are done.

        The items are those that the next block of rows has met.
        """
        for block in self._rows.read(hashed=self._hashed, skip=self._rows_done):
            self.rows_fingerprint = block.fingerprint
            yield from self._against_items(block)

    def check_items(self) -> None:
        """Reads the items only to see whether they are those expected."""
        self._items.hash()
        self._items.check_all()

    def _against_items(self, block: RowBlock) -> Iterator[tuple[int, int]]:
        items = self._items
        begin = functools.cache(functools.partial(self._begin, block))
        # The first pass of this process is hashed, from its beginning.
        hashed, self._items_hashed = self._hashed and not self._items_hashed, True
        options: dict[str, Any] = {"skip": self._items_done, "state": self._state}
        met = meet(begin, items, self._own, hashed=hashed, states=self._states, **options)
        for passing, self._state in met:
            self._items_done = passing.stop
            self._num_items = max(self._num_items, passing.stop)
            if hashed and not self._rows_done:
                self.items_fingerprint = passing.fingerprint
            yield self._rows_done, self._items_done
        if hashed:
            self.items_fingerprint = items.fingerprint
            if self._rows_done:
                items.check_all()
        if self._total is None:
            assert items.num_rows is not None
            self._total = self._start_total(items.num_rows)
        self._total, outputs = finish(begin, items, self._state, self._total)
        kept = jax.tree.map(lambda leaf: np.asarray(leaf)[: block.num_rows], outputs)
        self._outputs.append(kept)
        self._rows_done, self._items_done, self._state = block.stop, 0, None

    def partial(self) -> Partial:
        """What has been added so far; rows that no items remember begin their way anew."""
        states = [self._states[place] for place in sorted(self._states)]
        items = jax.tree.map(lambda leaf: leaf[: self._num_items], joined(states))
        remembered = bool(jax.tree.leaves(items))
        return Partial(
            items,
            jax.tree.map(np.asarray, self._state) if remembered else None,
            jax.tree.map(np.asarray, self._total),
            joined(self._outputs),
            self._rows_done,
            self._items_done if remembered else 0,
        )

    def _go_on_from(self, begun: Partial) -> None:
        self._rows_done, self._items_done = begun.rows_done, begun.items_done
        self._state, self._total = jax.tree.map(jnp.asarray, (begun.rows, begun.total))
        self._outputs = [begun.outputs] if begun.rows_done else []
        if not (leaves := jax.tree.leaves(begun.items)):
            return
        self._num_items = len(leaves[0])
        size = min(self._items.block_size, self._num_items)
        for start in range(0, self._num_items, size):
            block = RowBlock(leaves[0][:size], start, min(size, self._num_items - start), None)
            self._states[start // size] = jax.tree.map(block.filled, begun.items)


def check_repeatable(rows: Rows, items: Rows) -> None:
    """Raises for items that can be passed over only once, but have to be for each block of rows."""
    if not rows.fits_one_block:
        each = rows.name if rows.name == "queries" else f"{rows.name} rows"
        items.check_repeatable(f"the {items.name} is passed over once per block of {each}")


def joined(parts: list[Any]) -> Any:
    """Pytrees of [rows, ...] one after the other, on the host; None of nothing."""
    if not parts:
        return None
    return jax.tree.map(lambda *leaves: np.concatenate([*map(np.asarray, leaves)]), *parts)
