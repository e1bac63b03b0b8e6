"""A file or a pipe that an argument names, and how errors name it."""

import contextlib
import dataclasses
import glob
import io
import json
import os
import re
import shlex
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dbnorm_jax._src.core.text import excerpt, printable
from dbnorm_jax._src.files import binary

STDIN = "-"

_STARTS = {
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "npz",  # an archive; two letters may begin a text as well
    b"PK\x05\x06": "npz",  # an empty one
    b"PAR1\x15": "parquet",
    b"ARROW1\0\0": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream
}
_SUFFIXES = {
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".vec": "vectors",
}
# Of files that a folder is read by; others in it, like a README, are passed over.
_ARRAYS = (*_SUFFIXES, ".npy")
_DATASET = "state.json"  # of a folder that `datasets` writes; it names the files
_START = 2**16  # bytes of a pipe at most that say what it holds
_PART = 2**20  # bytes asked for at once

# Standard input -> the argument that took it.
_taken: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Source:
    """A file given for an argument; `str()` of it names both in errors."""

    argument: str  # as the user knows it; none for one of many files
    path: Path  # of a pipe, what keeps its contents
    member: str | None = None  # the array in a file of several
    piped: bool = False  # it came through standard input
    remedy: str = "write it with numpy.save as float32"  # how to write what is expected
    part_of: Path | None = None  # the folder or pattern that stands for several files

    @classmethod
    def parse(cls, argument: str, text: str) -> "Source":
        """`FILE`, a folder, a pattern, `-` or, of several arrays, `FILE.npz:name`.

        A file of that very name is first.
        """
        head, colon, name = text.rpartition(":")
        several = head == STDIN or Path(head).suffix.lower() in _ARRAYS
        several = several or (head != "" and (glob.has_magic(head) or Path(head).is_dir()))
        member: str | None = name
        if not colon or not several or Path(text).exists():
            head, member = text, None
        if head != STDIN:
            return cls(argument, Path(head), member)
        stream = sys.stdin.buffer
        if stream in _taken:
            raise ValueError(
                f"{argument}: expected a file, got standard input, which {_taken[stream]} takes; "
                f"name a file"
            )
        _taken[stream] = argument
        source = cls.kept(argument, stream)
        weakref.finalize(stream, binary.discard, source.path)  # at the end at the latest
        return dataclasses.replace(source, member=member)

    @classmethod
    def kept(cls, argument: str, stream: IO[bytes]) -> "Source":
        """A pipe, kept in a temporary file: what is checked of files is checked of it.

        Of an .npy one byte more is taken than it declares, of noise the beginning. The
        caller removes the file.
        """
        handle, name = tempfile.mkstemp(prefix="dbnorm-")
        source = cls(argument, Path(name), piped=True)
        try:
            with binary.naming(source.path), os.fdopen(handle, "wb") as file:
                for part in source._parts(stream):
                    file.write(part)
        except BaseException:
            binary.discard(source.path)
            raise
        return source

    def _parts(self, stream: IO[bytes]) -> Iterator[bytes]:
        """What a pipe holds, as far as it is to be kept."""
        with _readable(self):
            start = stream.read(_START)
            yield start
            left = _declared(start) - len(start)
            while left > 0 and (part := stream.read(min(left, _PART))):
                yield part
                left -= len(part)

    @property
    def title(self) -> str:
        """What to call its contents."""
        return self.member or (self.argument if self.piped else self.path.stem)

    def __str__(self) -> str:
        place = "standard input" if self.piped else printable(self.path)
        place += "" if self.member is None else f":{excerpt(self.member)}"
        if not self.argument:
            return place
        return f"{self.argument} ({place})" if self.piped else f"{self.argument} '{place}'"

    def fail(self, expected: str, actual: str, remedy: str) -> ValueError:
        """The error to raise."""
        parts = map(excerpt, (expected, actual, remedy))  # names in files may be anything
        return ValueError("{}: expected {}, got {}; {}".format(self, *parts))


def parts(source: Source) -> list[Source]:
    """The files that it stands for: itself, or those of a folder or a pattern in natural order.

    In natural order 9 is before 10. Of a folder, those are files of arrays, all of one form.
    """
    path = source.path
    if source.piped or not (path.is_dir() or (glob.has_magic(str(path)) and not path.exists())):
        return [source]
    with _readable(source):
        if path.is_dir():
            found = _in_folder(source)
        else:
            matches = glob.iglob(str(path))  # noqa: PTH207 - a pattern may stand for folders too
            found = [one for one in map(Path, matches) if one.is_file()]
            found.sort(key=_naturally)
    if not found:
        raise source.fail("files of that pattern", "none", "check the path")
    return [dataclasses.replace(source, path=one, part_of=path) for one in found]


def _naturally(path: Path) -> list[tuple[bool, int, str]]:
    pieces = re.split("([0-9]+)", str(path))
    return [
        (bool(place % 2), int(piece) if place % 2 else 0, piece)
        for place, piece in enumerate(pieces)
    ]


def _in_folder(source: Source) -> list[Path]:
    inside = [one for one in source.path.iterdir() if not one.name.startswith(".")]
    found = [one for one in inside if one.suffix.lower() in _ARRAYS and one.is_file()]
    if source.path / _DATASET in inside:
        return _of_dataset(source, {one.name: one for one in found})
    forms = sorted({one.suffix.lower() for one in found})
    if len(forms) > 1:
        remedy = f"name those that are meant, as {source.path.name}/*{forms[0]}"
        raise source.fail("a folder of files of one form", ", ".join(forms), remedy)
    if not found:
        folders = ", ".join(sorted(one.name for one in inside if one.is_dir()))
        actual = f"a folder of folders: {folders}" if folders else "a folder without any"
        raise source.fail("a file of arrays", actual, "name the file itself, or pipe it to -")
    return sorted(found, key=_naturally)


def _of_dataset(source: Source, found: dict[str, Path]) -> list[Path]:
    """In the order of the rows; other files, like caches, may lie beside them."""
    try:
        text = (source.path / _DATASET).read_bytes()
        return [found[entry["filename"]] for entry in json.loads(text)["_data_files"]]
    except (ValueError, TypeError, LookupError, RecursionError):
        expected = f"a {_DATASET} that names the files of the folder"
        raise source.fail(expected, "another", "save the data set again") from None


def _declared(start: bytes) -> int:
    """How many bytes of a pipe to take at most."""
    kind = _kind(start)
    if kind == "npy":
        try:
            header = binary.read_header(io.BytesIO(start), None)
        except binary.BadArrayError:
            return 0
        return header.offset + header.num_bytes + 1
    return 0 if kind is None and b"\0" in start else sys.maxsize


def _kind(start: bytes) -> str | None:
    for known, kind in _STARTS.items():
        if start.startswith(known):
            return kind
    # Eight bytes say how long the JSON is that follows.
    return "safetensors" if start[4:9] == b"\0\0\0\0{" else None


def kind_of(source: Source) -> str | None:
    """What a file is by its beginning, else by its suffix; None for a text or anything else."""
    first = parts(source)[0]
    with opened(first) as file:
        kind = _kind(file.read(16))
    return kind or _SUFFIXES.get(first.path.suffix.lower())


@contextlib.contextmanager
def opened(source: Source) -> Iterator[IO[bytes]]:
    """The file for reading; one line of what is wrong where it is none."""
    with _readable(source):
        # A pipe or device would block, and has no size to check the header against.
        if not stat.S_ISREG(source.path.stat().st_mode):
            kind = "a folder" if source.path.is_dir() else "something else"
            raise source.fail("a file of arrays", kind, "name the file itself, or pipe it to -")
        with source.path.open("rb") as file:
            yield file


@contextlib.contextmanager
def _readable(source: Source) -> Iterator[None]:
    """Errors of the system are about this file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of Arrow
            raise
        why = (error.strerror or str(error)).lower()
        raise source.fail("a readable file", why, "check the path") from None


def typed(*words: str) -> str:
    """The words as a shell takes them; what a terminal cannot show by its bytes ($'...').

    POSIX has that form since 2024; bash, zsh and ksh have long had it.
    """
    return " ".join(
        shlex.quote(word)
        if word.isprintable()
        else "$'" + "".join(map(_typed_byte, os.fsencode(word))) + "'"
        for word in words
    )


def _typed_byte(byte: int) -> str:
    shown = chr(byte)
    plain = 0x20 <= byte < 0x7F and shown not in "\\'"
    return shown if plain else f"\\{byte:03o}"


def neighbors(k: int | None, count: int, of: str = "gallery items", default: int = 10) -> int:
    """What -k asks for, at most all there are; left out, the default or all there are."""
    if k is not None and k < 1:
        raise ValueError(f"-k: expected 1 or more, got {k}; leave it out")
    if k is not None and k > count:
        raise ValueError(f"-k: expected between 1 and {count} ({of}), got {k}; lower it")
    return min(default, count) if k is None else k
