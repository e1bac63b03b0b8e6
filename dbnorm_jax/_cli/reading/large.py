"""What the commands for large files share: files read in blocks, known by stamps and fingerprints.

A fingerprint is SHA-256 of all rows, made while they are read. A stamp is the size of the file, its
times and a digest of samples. Where it is as before, the file is taken for unchanged and not read.
A program may set the time of the last write back; the system alone sets that of the last change.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading import arrays
from dbnorm_jax._cli.reading.argument import parts
from dbnorm_jax._cli.reading.sets import Array
from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.similarity import SIMILARITY_FUNCTIONS

# Of rows that `sets.prepared` made of unit length under cosine.
PREPARED_FUNCTIONS = SIMILARITY_FUNCTIONS | {"cosine": dbn.dot_product}


_SAMPLES, _SAMPLE = 32, 2**13  # so many, of so many bytes


class Rows(NamedTuple):
    """The rows of one argument, memory-mapped where its files are .npy."""

    label: str  # names argument and file in errors
    rows: Array
    paths: list[Path]
    stamp: dict[str, Any]


def open_rows(named: Mapping[str, str | None]) -> dict[str, Rows]:
    """Opens the files of those arguments that are given; reads no values yet."""
    found = {}
    for argument, (source, array) in arrays.read_together(named).items():
        paths = [part.path for part in parts(source)]
        stamp = {"path": str(source.path.resolve()), **_stamp(paths), "member": source.member}
        found[argument] = Rows(str(source), array, paths, stamp)
    return found


def _stamp(paths: Sequence[Path]) -> dict[str, Any]:
    """Of one file, or of several: all bytes, the last change, and a digest of their stamps."""
    stamps = [_stamp_of_file(path, max(_SAMPLES // len(paths), 2)) for path in paths]
    if len(stamps) == 1:
        return stamps[0]
    named = [[path.name, stamp] for path, stamp in zip(paths, stamps, strict=True)]
    return {
        "bytes": sum(stamp["bytes"] for stamp in stamps),
        "modified": max(stamp["modified"] for stamp in stamps),
        "changed": max(stamp["changed"] for stamp in stamps),
        "samples": hashlib.sha256(json.dumps(named).encode()).hexdigest(),
    }


def _stamp_of_file(path: Path, samples: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        last = max(status.st_size - _SAMPLE, 0)
        for number in range(samples):
            file.seek(last * number // (samples - 1))
            digest.update(file.read(_SAMPLE))
    return {
        "bytes": status.st_size,
        "modified": status.st_mtime_ns,
        "changed": status.st_ctime_ns,
        "samples": digest.hexdigest(),
    }


@contextlib.contextmanager
def errors_name(labels: Mapping[str, str]) -> Iterator[None]:
    """Puts the labels of files where the library names its arguments."""
    try:
        yield
    except checks.ArgumentError as error:
        raise ValueError(error.message(labels)) from None


def check_gallery(label: str, known: Mapping[str, Any] | None, rows: int, dim: int) -> None:
    """Raises where a state was made for a gallery of another shape."""
    if known and (known["rows"], known["dim"]) != (rows, dim):
        raise ValueError(
            f"{label}: expected the gallery it was made for, {known['rows']} rows of {known['dim']}"
            f", got {rows} of {dim}; fit it anew"
        )


def check_fingerprint(label: str, known: Mapping[str, Any] | None, found: Any) -> None:
    """Raises where a state was made for a gallery with other contents."""
    if known and found and known["sha256"] != found["sha256"]:
        raise ValueError(
            f"{label}: expected the gallery it was made for, SHA-256 {known['sha256'][:12]}..., got"
            f" {found['sha256'][:12]}... of the same shape; fit it anew"
        )
