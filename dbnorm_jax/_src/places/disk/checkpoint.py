"""Long fits that outlive their process: what they have so far in a file, to go on from.

It is kept as it is, without any rounding: a fit that was killed and resumed gives bit by bit what
it would have given. What is of other work, or of files that have changed, is refused.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from dbnorm_jax._src.core.types import BankStatistics, LargestSimilarities
from dbnorm_jax._src.files import archives, binary
from dbnorm_jax._src.files.archives import Archive, Fields
from dbnorm_jax._src.places.disk.block_banks import BankPass, PartialSums
from dbnorm_jax._src.places.disk.block_largest import LargestPass, PartialLargest

Running = BankPass | LargestPass
Partial = PartialSums | PartialLargest
State = TypeVar("State", BankStatistics, LargestSimilarities)

_KINDS: dict[str, type[Partial]] = {kind.__name__: kind for kind in (PartialSums, PartialLargest)}


def _fields(kind: type[Partial]) -> Fields:
    static = {field.name for field in dataclasses.fields(kind) if field.metadata.get("static")}
    arrays = {field.name for field in dataclasses.fields(kind)} - static
    return Fields(frozenset(static), frozenset(arrays))


_FIELDS = {name: _fields(kind) for name, kind in _KINDS.items()}
_REMEDY = "delete that file to begin anew, or name another"


class Fitted(NamedTuple, Generic[State]):
    """What was fitted, and fingerprints of what from (None where nothing was hashed)."""

    state: State
    bank: dict[str, Any] | None
    gallery: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A file for what a fit has so far.

    Attributes:
      path: of the file.
      every: seconds between two writes.
      work: what it is of; that of other work is not taken up.
      stamps: of the files that are read, or None: equal stamps mean equal files.
    """

    path: Path
    every: float
    work: dict[str, Any] = dataclasses.field(default_factory=dict)
    stamps: Any = None

    def load(self) -> Archive | None:
        """What is in the file, None where there is none."""
        what = binary.found_at(self.path)
        if what is None:
            return None
        if what != binary.FILE:
            raise ValueError(f"{self.path}: expected a file or none, got {what}; {_REMEDY}")
        archive = archives.read(self.path, _FIELDS)
        _check_form(self.path, archive)
        found = (archive.provenance or {})["work"]
        for name, value in self.work.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{self.path}: expected a checkpoint of work with {name} {value}, got one with "
                    f"{binary.printable(found.get(name))}; {_REMEDY}"
                )
        return archive

    def write(self, running: Running, *, complete: bool = False) -> None:
        """Replaces the file by what there is so far."""
        partial = running.partial()
        kind = type(partial).__name__
        static = {name: getattr(partial, name) for name in _FIELDS[kind].static}
        fields = {name: getattr(partial, name) for name in _FIELDS[kind].arrays}
        arrays = {name: np.asarray(value) for name, value in fields.items() if value is not None}
        provenance = {
            "work": self.work,
            "complete": complete,
            "bank": running.bank_fingerprint,
            "gallery": running.gallery_fingerprint,
            "stamps": self.stamps,
        }
        archives.write(self.path, Archive(kind, static, arrays, provenance))


def run(
    make: Callable[..., Running],
    checkpoint: Checkpoint | None = None,
    after_step: Callable[[Running], None] | None = None,
) -> Fitted[Any]:
    """Runs a pass to its end, from where its checkpoint was left.

    Args:
      make: takes `begun`, `expected` and `hashed` of the pass.
      checkpoint: where it is kept, at the end too.
      after_step: called after each block against block.
    """
    found = None if checkpoint is None else checkpoint.load()
    if found is None:
        running = make(hashed=checkpoint is not None)
        bank = gallery = None
    else:
        assert checkpoint is not None
        provenance = found.provenance or {}
        missing = dict.fromkeys(_FIELDS[found.kind].arrays)
        fields: dict[str, Any] = {**missing, **found.arrays, **found.static}
        partial = _KINDS[found.kind](**fields)
        bank, gallery = provenance["bank"], provenance["gallery"]
        stamped = checkpoint.stamps is not None and provenance["stamps"] == checkpoint.stamps
        if provenance["complete"] and stamped:
            return Fitted(partial.state(), bank, gallery)
        running = make(begun=partial, expected=(bank, gallery), hashed=True)
        if provenance["complete"]:
            running.check_other()
    written = time.monotonic()
    for _ in running.steps():
        if after_step is not None:
            after_step(running)
        if checkpoint is not None and time.monotonic() - written >= checkpoint.every:
            checkpoint.write(running)
            written = time.monotonic()
    # Where nothing was left to pass over them.
    running.bank_fingerprint = running.bank_fingerprint or bank
    running.gallery_fingerprint = running.gallery_fingerprint or gallery
    if checkpoint is not None:
        checkpoint.write(running, complete=True)
    return Fitted(running.partial().state(), running.bank_fingerprint, running.gallery_fingerprint)


def _check_form(path: Path, archive: Archive) -> None:
    """Raises unless the parts of a checkpoint fit together."""
    fits = min(archive.static.values()) >= 0
    fits = fits and (_are_sums if archive.kind == PartialSums.__name__ else _are_largest)(archive)
    found = archive.provenance or {}
    fits = fits and found.keys() == {"work", "complete", "bank", "gallery", "stamps"}
    fits = fits and isinstance(found["work"], dict) and isinstance(found["complete"], bool)
    fits = fits and all(isinstance(found[part], (dict, type(None))) for part in ("bank", "gallery"))
    if not fits:
        raise ValueError(f"{path}: expected the beginning of a fit, got other contents; {_REMEDY}")


def _are_sums(archive: Archive) -> bool:
    arrays, static = archive.arrays, archive.static
    kinds = {name: array.dtype.kind for name, array in arrays.items()}
    whole = {"k_occurrence", "nearest_indices"} & arrays.keys()
    fits = {"maximum", "total", "mass", "beta"} <= arrays.keys()
    fits = fits and all(kind == ("i" if name in whole else "f") for name, kind in kinds.items())
    if fits:
        size, betas = arrays["mass"].shape, arrays["beta"].shape
        fits = len(size) == 1 and len(betas) <= 1 and arrays["total"].shape == size + betas
        fits &= arrays["maximum"].shape == arrays.get("k_occurrence", arrays["mass"]).shape == size
        nearest = [arrays[name].shape for name in arrays if name.startswith("nearest")]
        fits &= len(nearest) in (0, 2) and len(set(nearest)) <= 1
        fits &= all(shape[1:] == (1, static["k"]) for shape in nearest)
    return fits


def _are_largest(archive: Archive) -> bool:
    values = archive.arrays.get("values")
    if values is None or values.dtype.kind != "f" or values.ndim != 2:
        return False
    return len(values) == archive.static["k"] > 0
