"""Named arrays in one .npz: written whole or not at all, checked before use, never executed.

    header           JSON text: kind, format version, library version, static fields, provenance,
                     the dtype and shape of every array, and the SHA-256 of all that
    bias             the arrays, by name
    ...

Version 2 has a provenance, what the arrays were made from. Static fields that older versions lack
are read with their defaults. Version 3 has other arrays than these for bank statistics, version 4
for a choice.
"""

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from dbnorm_jax._src.core.text import excerpt, printable
from dbnorm_jax._src.core.version import __version__
from dbnorm_jax._src.files import binary

FORMAT_VERSION = 4
_HEADER = "header"
_LARGEST_HEADER = 2**20
LARGEST_PROVENANCE = _LARGEST_HEADER // 8  # characters, of which each may take several bytes
_BROKEN = "the file is damaged: copy or write it again"

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


class Fields(NamedTuple):
    """What an archive of one kind holds; arrays may be left out."""

    static: frozenset[str]
    arrays: frozenset[str]
    later: Mapping[str, Any] = {}  # static ones that older versions may lack: defaults
    earlier: frozenset[str] | None = None  # the arrays of older versions, where they were others,
    since: int = 1  # and the version since which they are these


class Archive(NamedTuple):
    """What an archive held."""

    kind: str
    static: dict[str, Any]
    arrays: Arrays
    provenance: dict[str, Any] | None


def write(path: Path, archive: Archive) -> None:
    """Writes an archive; an existing file is replaced."""
    header = {
        "kind": archive.kind,
        "format_version": FORMAT_VERSION,
        "library": f"dbnorm_jax {__version__}",
        "static": archive.static,
        "arrays": {name: _description(array) for name, array in archive.arrays.items()},
        "provenance": archive.provenance,
    }
    header["sha256"] = _digest(header, archive.arrays)
    text = np.array(json.dumps(header))
    # Not by np.savez: that of NumPy 2.0 leaves its file open, to be complained about later, where
    # the disk is full.
    with binary.replacing(path) as file, zipfile.ZipFile(file, "w") as container:
        for name, array in {_HEADER: text, **archive.arrays}.items():
            with container.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy_format.write_array(member, array, allow_pickle=False)


def read(path: Path, kinds: Mapping[str, Fields]) -> Archive:
    """Reads and checks an archive of one of these kinds."""
    with _opened(path) as (archive, size):
        header = _read_header(archive, size, kinds)
        arrays = {name: _read(archive, name, size) for name in header["arrays"]}
        for name, array in arrays.items():
            if header["arrays"][name] != _description(array):
                declared = excerpt(header["arrays"][name])
                raise ValueError(
                    f"expected {name} to be {declared}, got {_description(array)}; {_BROKEN}"
                )
        digest = header.pop("sha256")
        if digest != _digest(header, arrays):
            shown = excerpt(digest)
            raise ValueError(f"expected SHA-256 {shown}, got another; {_BROKEN}")
    static = {**kinds[header["kind"]].later, **header["static"]}
    return Archive(header["kind"], static, arrays, header.get("provenance"))


def read_header(path: Path, kinds: Mapping[str, Fields]) -> dict[str, Any]:
    """The header alone; the arrays are not read, and the checksum is not compared."""
    with _opened(path) as (archive, size):
        return _read_header(archive, size, kinds)


def _description(array: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def _digest(header: dict[str, Any], arrays: Arrays) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """An archive and the size of its file; errors about it begin with the path."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive, os.fstat(file.fileno()).st_size
        except binary.ZIP_ERRORS as error:
            contents = "other contents"
            with contextlib.suppress(*binary.ZIP_ERRORS):  # which looks at more than its magic
                if zipfile.is_zipfile(file):
                    contents = f"a damaged archive ({error})"
            raise ValueError(f"{printable(path)}: {_refusal(contents)}") from None
        except ValueError as error:
            raise ValueError(f"{printable(path)}: {error}") from None


def _refusal(contents: str) -> ValueError:
    shown = excerpt(contents)
    return ValueError(f"expected an .npz written by dbnorm_jax.save, got {shown}")


def _read_header(
    archive: zipfile.ZipFile, size: int, kinds: Mapping[str, Fields]
) -> dict[str, Any]:
    names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    if len(names) != len(archive.namelist()) or _HEADER not in names:
        raise _refusal(f"members {', '.join(sorted(archive.namelist())[:8])}")
    array = _read(archive, _HEADER, min(size, _LARGEST_HEADER))
    header: Any = None
    if array.dtype.kind == "U" and not array.ndim:
        with contextlib.suppress(ValueError, RecursionError):
            header = json.loads(str(array[()]))
    if not isinstance(header, dict):
        raise _refusal("a header that is none")
    kind, version = header.get("kind"), header.get("format_version")
    if not isinstance(kind, str) or type(version) is not int:
        raise _refusal("a header without kind and format version")
    if version > FORMAT_VERSION:
        shown = version if version < 10**9 else "a huge one"
        raise ValueError(
            f"expected format version {FORMAT_VERSION} or older, got {shown}; upgrade dbnorm_jax"
        )
    if kind not in kinds:
        shown = excerpt(repr(kind))
        raise ValueError(f"expected one of {', '.join(kinds)}, got kind {shown}")
    static, arrays, later, earlier, since = kinds[kind]
    if version < since and earlier is not None:
        arrays = earlier
    required_static = static - (later.keys() if version < FORMAT_VERSION else set())
    required = {"kind", "format_version", "library", "static", "arrays", "sha256"}
    required |= {"provenance"} if version > 1 else set()
    if (
        header.keys() != required
        or not isinstance(header.get("provenance"), (dict, type(None)))
        or not all(isinstance(header[part], dict) for part in ("static", "arrays"))
        or not required_static <= header["static"].keys() <= static
        or not all(_is_static(name, value) for name, value in header["static"].items())
        or not header["arrays"].keys() <= arrays
        or names != header["arrays"].keys() | {_HEADER}
    ):
        raise _refusal(f"other fields than those of a {kind}")
    return header


def _is_static(name: str, value: Any) -> bool:
    if name == "methods":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if name == "similarity_fn":
        return isinstance(value, str)
    return type(value) is int or (name == "similarity" and isinstance(value, (str, type(None))))


def _read(archive: zipfile.ZipFile, name: str, largest: int) -> np.ndarray[Any, np.dtype[Any]]:
    """One member; `save` never compresses, so none can unpack to more than the file holds."""
    info = archive.getinfo(f"{name}.npy")
    packed = info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
    if packed or info.flag_bits & 1 or info.file_size > largest:
        raise _refusal(f"a compressed, locked or oversized member {name}")
    stream = io.BytesIO(archive.read(info))
    try:
        header = binary.read_header(stream, info.file_size)
        array = header.array(stream.getbuffer()[header.offset :])
        # Written on a machine of the other byte order: the same values, which JAX would refuse.
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    except binary.BadArrayError as error:
        raise ValueError(f"in {name}, {excerpt(error)}; {_BROKEN}") from None
