"""Files distrusted on reading and never half-written.

An .npy header is compared with the size of its file before anything is allocated, and nothing is
ever unpickled. A file is written beside its target, closed and renamed onto it. What stood there is
replaced itself, a symbolic link too: no link is followed.
"""

import contextlib
import dataclasses
import errno
import glob
import importlib
import math
import os
import secrets
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from dbnorm_jax._src.core.text import printable


def _module(name: str) -> Any:
    """A module that only some systems have, None elsewhere."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _module("fcntl"), _module("msvcrt")  # locks; Windows has the latter

# What may stand at a path.
FILE, FOLDER, LINK, OTHER = "a file", "a folder", "a symbolic link", "something else"

# What zipfile raises for damaged archives: for some it seeks to nowhere, or asks for a password.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
)

_MOST_AXES = 64  # of NumPy
_LOCK = ".lock"


class BadArrayError(ValueError):
    """An .npy stream that cannot be what it says: what should have been there, and what was."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"expected {expected}, got {actual}")
        self.expected, self.actual = expected, actual


@dataclasses.dataclass(frozen=True)
class Header:
    """What an .npy header declares; `offset` says at what byte the values begin."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, values: Any) -> np.ndarray[Any, np.dtype[Any]]:
        """The array of these bytes, not copied; BadArrayError for texts that break Python."""
        array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(values, self.dtype)
        if self.dtype.kind == "U":
            codes = array.view(np.dtype("u4").newbyteorder(self.dtype.byteorder))
            if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
                raise BadArrayError("texts", "numbers that are no characters")
        return array.reshape(self.shape, order="F" if self.fortran_order else "C")


def read_header(file: IO[bytes], size: int | None) -> Header:
    """The header of an .npy stream, checked against the size of that in bytes, where it is known.

    Raises:
      BadArrayError: a damaged header, Python objects, a shape that cannot be, or values of another
        size than declared.
    """
    try:
        version = npy_format.read_magic(file)
        # Version 3.0 differs from 2.0 only for field names, and structured arrays are refused.
        read = {
            (1, 0): npy_format.read_array_header_1_0,
            (2, 0): npy_format.read_array_header_2_0,
        }[version]
        with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
            header = Header(*read(file), offset=file.tell())
    except Exception:  # NumPy tokenizes and parses the header, which fails in many ways
        raise BadArrayError("an .npy header", "a damaged one") from None
    if header.dtype.hasobject:
        raise BadArrayError("numbers", "pickled Python objects")
    # Without values a shape may be anything, and values without bytes as many as it likes.
    extent = math.prod(max(length, 1) for length in header.shape) * header.dtype.itemsize
    if not 0 < extent < 2**62 or len(header.shape) > _MOST_AXES or min(header.shape, default=0) < 0:
        raise BadArrayError("an array that fits in memory", f"shape {header.shape}")
    declared = header.num_bytes + header.offset
    if size not in (None, declared):
        raise BadArrayError(
            f"{declared} bytes for shape {header.shape} and dtype {header.dtype}",
            f"{size}" + (" (truncated)" if size < declared else ""),
        )
    return header


def found_at(path: Path) -> str | None:
    """What stands at a path, None where nothing does; a link is one, wherever it leads."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return {stat.S_IFREG: FILE, stat.S_IFDIR: FOLDER, stat.S_IFLNK: LINK}.get(kind, OTHER)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; it takes the place of what is at `path` at the end, unless an error comes.

    Readers see the old one or the new one, also after a crash.
    """
    target = path.absolute()
    with naming(path), contextlib.ExitStack() as stack:
        if found_at(target) == FOLDER:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        remove_cut_off(target)
        while True:
            # Beside it, because renaming within a folder is atomic; by a name that nobody can
            # guess. Its lock is a file of its own, and outlives the closing of the other.
            temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(6)}")
            with contextlib.suppress(BlockingIOError):  # a rival looks whether it was cut off
                stack.enter_context(_held(_lock_of(temporary)))
                break
        try:
            with _create(temporary, target) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)  # closed: Windows renames no open file
        except BaseException:
            discard(temporary)
            raise
        with contextlib.suppress(OSError):  # keeps the new name through a crash
            handle = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def remove_cut_off(path: Path) -> None:
    """Removes temporary files of `path` whose writers were killed; those at work hold a lock."""
    for left in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        temporary = left.with_suffix("") if left.suffix == _LOCK else left
        with contextlib.suppress(OSError), _held(_lock_of(temporary)) as locked:
            if locked:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Held by one process at a time for `path`; BlockingIOError where another holds it.

    A file beside it is locked, which goes with the process, also where that is killed.
    """
    place = lock_place(path)
    with contextlib.ExitStack() as stack:
        with naming(path, place):
            stack.enter_context(_held(place))
        yield


def lock_place(path: Path) -> Path:
    """The file that `alone` locks."""
    return path.with_name(f".{path.name}{_LOCK}")


def _prefix(path: Path) -> str:
    """How the names of its temporary files, and of their locks, begin."""
    return f".{path.name}.tmp-"


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(temporary.name + _LOCK)


@contextlib.contextmanager
def _held(place: Path) -> Iterator[bool]:
    """Holds a lock file, and removes it -> whether there are locks at all.

    Raises:
      BlockingIOError: another process, or another place in this one, holds it.
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        if found_at(place) == LINK:  # Windows has no such flag
            raise OSError(
                errno.ELOOP, f"a symbolic link stands at '{printable(place)}'", str(place)
            )
        handle = os.open(place, flags, 0o666)
        try:
            locked = _lock(handle)
            there = os.fstat(handle).st_nlink  # or removed by the one before, since it was opened
        except BaseException:
            os.close(handle)
            raise
        if there:
            break
        os.close(handle)
    try:
        yield locked
    finally:
        # Before it is let go: afterwards another process may hold the file that this would remove.
        gone = discard(place)
        os.close(handle)
        if not gone:  # Windows removes no open file, neither this one's nor another's
            discard(place)


def _lock(handle: int) -> bool:
    """Whether there are locks; BlockingIOError where this one is held."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            return False
    except OSError as error:
        if error.errno == (errno.EAGAIN if fcntl is not None else errno.EACCES):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        return False  # a file system without
    return True


def discard(place: Path) -> bool:
    """Removes a file where the system lets; whether it did."""
    with contextlib.suppress(OSError):
        place.unlink(missing_ok=True)
        return True
    return False


def _create(temporary: Path, target: Path) -> IO[bytes]:
    """A new file, for those who may open the one that it is to replace, or any new file."""
    old = target.lstat() if found_at(target) == FILE else None
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777
    # The system takes the umask away. O_EXCL creates through no link.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    if old is not None and old.st_uid == os.fstat(handle).st_uid and hasattr(os, "fchmod"):
        # Back comes what the umask took. Of another user's file it does not: its mode is theirs.
        with contextlib.suppress(OSError):
            os.fchmod(handle, mode)
    return os.fdopen(handle, "wb")


@contextlib.contextmanager
def naming(path: Path, place: Path | None = None) -> Iterator[None]:
    """A full disk or closed folder is an error about the file that was to be written.

    `place` is one that is made for it, whose errors are about `path` too.
    """
    try:
        yield
    except OSError as error:
        # Errors about other files, read meanwhile, pass.
        about = str(error.filename or "")
        target = path.absolute()
        ours = about in ("", str(path), str(target), str(place)) or _prefix(target) in about
        if not ours or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
