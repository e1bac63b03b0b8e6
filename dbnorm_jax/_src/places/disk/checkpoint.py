"""Long fits that outlive their process: what they have so far in a file, to go on from.

It is kept as it is, without any rounding: a fit that was killed and resumed gives bit by bit what
it would have given. What is of other work, or of files that have changed, is refused.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import jax
import numpy as np

from dbnorm_jax._src.core.text import excerpt, printable
from dbnorm_jax._src.core.types import BankStatistics, LargestSimilarities
from dbnorm_jax._src.files import archives, binary, provenance
from dbnorm_jax._src.files.archives import Archive, Fields
from dbnorm_jax._src.places.disk.drive import BlockSweep, Partial

State = TypeVar("State", BankStatistics, LargestSimilarities)

# (rows done, rows of the other side that the next block of them has passed).
Progress = Callable[[int, int], None]

_KIND = "UnfinishedPass"
_COUNTS = ("rows_done", "items_done")
_PARTS = tuple(name for name in Partial._fields if name not in _COUNTS)
_MOST_LEAVES = 8  # of a part; they are named by their numbers
_NAMES = frozenset(f"{part}_{number}" for part in _PARTS for number in range(_MOST_LEAVES))
_FIELDS = {_KIND: Fields(frozenset(_COUNTS), _NAMES)}
_SIDES = ("rows", "items")  # with a fingerprint each
_PROVENANCE = {"work", "complete", "stamps", *_SIDES}
_REMEDY = "delete that file to begin anew, or name another"


class Fitted(NamedTuple, Generic[State]):
    """What was fitted, and fingerprints of what from (None where nothing was hashed)."""

    state: State
    bank: dict[str, Any] | None
    gallery: dict[str, Any] | None


class Found(NamedTuple):
    """What was in a file."""

    partial: Partial
    provenance: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A file for what a fit has so far."""

    path: Path
    every: float  # seconds between two writes
    # What it is of; that of other work is not taken up.
    work: dict[str, Any] = dataclasses.field(default_factory=dict)
    stamps: Any = None  # of the files that are read: equal stamps mean equal files

    def load(self, like: Partial) -> Found | None:
        """What is in the file, None where there is none.

        It is to be like what is given, but arrays may be longer, and a part may be missing.
        """
        what = binary.found_at(self.path)
        if what is None:
            return None
        if what != binary.FILE:
            self._refuse("a file or none", what)
        archive = archives.read(self.path, _FIELDS)
        found = archive.provenance or {}
        fits = min(archive.static.values()) >= 0 and found.keys() == _PROVENANCE
        fits = fits and isinstance(found["work"], dict) and isinstance(found["complete"], bool)
        fits = fits and all(isinstance(found[side], (dict, type(None))) for side in _SIDES)
        if not fits:
            self._refuse()
        for side in _SIDES:
            if found[side] is not None:
                provenance.check_fingerprint(printable(self.path), side, found[side], _REMEDY)
        for name, value in self.work.items():
            if found["work"].get(name) != value:
                actual = f"one with {excerpt(found['work'].get(name))}"
                self._refuse(f"a checkpoint of work with {name} {value}", actual)
        parts = {part: self._part(archive, part, getattr(like, part)) for part in _PARTS}
        partial = Partial(**parts, **archive.static)
        if like.rows is not None and (partial.rows is None) == bool(partial.items_done):
            self._refuse()
        return Found(partial, found)

    def write(self, running: BlockSweep, *, complete: bool = False) -> None:
        """Replaces the file by what there is so far."""
        partial = running.partial()
        arrays = {
            f"{part}_{number}": np.asarray(leaf)
            for part in _PARTS
            for number, leaf in enumerate(jax.tree.leaves(getattr(partial, part)))
        }
        made_from = {
            "work": self.work,
            "complete": complete,
            "rows": running.rows_fingerprint,
            "items": running.items_fingerprint,
            "stamps": self.stamps,
        }
        static = {name: getattr(partial, name) for name in _COUNTS}
        archives.write(self.path, Archive(_KIND, static, arrays, made_from))

    def _part(self, archive: Archive, part: str, like: Any) -> Any:
        """One part, its arrays checked; None where it is missing."""
        leaves, structure = jax.tree.flatten(like)
        names = [f"{part}_{number}" for number in range(len(leaves))]
        found = {name for name in archive.arrays if name.startswith(f"{part}_")}
        if not found:
            return None
        if found != set(names):
            self._refuse()
        arrays = [archive.arrays[name] for name in names]
        if any(_form(one) != _form(leaf) for one, leaf in zip(arrays, leaves, strict=True)):
            self._refuse()
        if len({len(array) for array in arrays}) > 1:
            self._refuse()
        return jax.tree.unflatten(structure, arrays)

    def _refuse(
        self, expected: str = "the beginning of a fit", actual: str = "other contents"
    ) -> NoReturn:
        path = printable(self.path)
        raise ValueError(f"{path}: expected {expected}, got {actual}; {_REMEDY}")


def _form(array: Any) -> tuple[Any, ...]:
    return array.dtype.kind, array.ndim, array.shape[1:]


def run(
    make: Callable[..., BlockSweep],
    like: Partial,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> tuple[Partial, dict[str, Any] | None, dict[str, Any] | None]:
    """Runs a pass to its end, from where its checkpoint was left; it is kept at the end too.

    `make` takes `begun`, `expected` and `hashed` of the pass, a checkpoint is `like` what is given.
    Returns (what the pass has kept, fingerprint of the rows, fingerprint of the items).
    """
    found = None if checkpoint is None else checkpoint.load(like)
    if found is None:
        running = make(hashed=checkpoint is not None)
    else:
        assert checkpoint is not None
        partial, made_from = found
        expected = made_from["rows"], made_from["items"]
        stamped = checkpoint.stamps is not None and made_from["stamps"] == checkpoint.stamps
        if made_from["complete"] and stamped:
            return partial, *expected
        running = make(begun=partial, expected=expected, hashed=True)
        if made_from["complete"]:
            running.check_items()
    written = time.monotonic()
    for done in running.steps():
        if progress is not None:
            progress(*done)
        if checkpoint is not None and time.monotonic() - written >= checkpoint.every:
            checkpoint.write(running)
            written = time.monotonic()
    if checkpoint is not None:
        checkpoint.write(running, complete=True)
    return running.partial(), running.rows_fingerprint, running.items_fingerprint
