"""Rows of several files as one array, which stay in their files."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.sets import Array


class Shards:
    """Arrays of as many columns one after another, [num_rows, dim], without a copy of them."""

    ndim = 2

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape = int(self._ends[-1]), parts[0].shape[1]
        self.size = self.shape[0] * self.shape[1]
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: slice | Array) -> Array:
        """Some of the rows: a view where they lie in one part."""
        if isinstance(places, slice):
            start, stop, step = places.indices(len(self))
            if step == 1:
                return self._between(start, max(start, stop))
            places = np.arange(start, stop, step)
        places = np.asarray(places)
        rows = np.empty((*places.shape, self.shape[1]), self.dtype)
        of_part = np.searchsorted(self._ends, places, side="right")
        for number in np.unique(of_part):
            here, part = of_part == number, self.parts[number]
            rows[here] = part[places[here] - (self._ends[number] - len(part))]
        return rows

    def _between(self, start: int, stop: int) -> Array:
        first, last = np.searchsorted(self._ends, [start, max(stop - 1, start)], side="right")
        found = []
        for number in range(int(first), min(int(last) + 1, len(self.parts))):
            part = self.parts[number]
            begin = int(self._ends[number]) - len(part)
            found.append(part[max(start - begin, 0) : stop - begin])
        return found[0] if len(found) == 1 else np.concatenate([self.parts[0][:0], *found])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All of them, in memory."""
        whole = np.concatenate(self.parts)
        return whole if dtype is None else whole.astype(dtype, copy=False)


def joined(files: Sequence[tuple[Source, Array]]) -> Any:
    """The array of one file, or the rows of several, which must be alike."""
    (source, first), *others = files
    if not others:
        return first
    for other, array in others:
        kind, known = array.dtype.kind, first.dtype.kind
        if kind != known or (kind in "fV" and array.dtype != first.dtype):
            what = f"{array.dtype}"
            raise other.fail(f"{first.dtype} as in '{source.path.name}'", what, "convert it")
        if not first.ndim or array.shape[1:] != first.shape[1:] or array.ndim != first.ndim:
            expected = f"rows of shape {first.shape[1:]} as in '{source.path.name}'"
            raise other.fail(expected, f"shape {array.shape}", "use files made alike")
    arrays = [array for _, array in files if len(array)] or [first]
    if len(arrays) == 1:
        return arrays[0]
    return Shards(arrays) if first.ndim == 2 and first.dtype.kind == "f" else np.concatenate(arrays)
