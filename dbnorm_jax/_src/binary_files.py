"""Files distrusted on reading and never half-written.

An .npy header is compared with the size of its file before anything is allocated, and nothing is
ever unpickled. A file is written beside its target and renamed onto it.
"""

import contextlib
import dataclasses
import errno
import glob
import importlib
import math
import os
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

fcntl: Any = None
with contextlib.suppress(ImportError):  # on Windows
    fcntl = importlib.import_module("fcntl")

# What zipfile raises for damaged archives: for some it seeks to nowhere, or asks for a password.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
)

_LONGEST = 300
_MOST_AXES = 64  # of NumPy


def printable(text: object) -> str:
    """Text out of a file for an error: one line of bounded length that paints no terminal."""
    shown = str(text)
    shown = shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "..."
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in shown
    )


class BadArrayError(ValueError):
    """An .npy stream that cannot be what it says.

    Attributes:
      expected: what should have been there.
      actual: what was.
    """

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"expected {expected}, got {actual}")
        self.expected, self.actual = expected, actual


@dataclasses.dataclass(frozen=True)
class Header:
    """What an .npy header declares.

    Attributes:
      shape: of the array.
      fortran_order: columns first.
      dtype: of the array; holds no Python objects.
      offset: where the values begin, in bytes.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, values: bytes | bytearray | memoryview) -> np.ndarray[Any, np.dtype[Any]]:
        """The array of these values, not copied; BadArrayError where texts are none."""
        array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(values, self.dtype)
        check_texts(array)
        return array.reshape(self.shape, order="F" if self.fortran_order else "C")


def check_texts(array: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Raises BadArrayError for texts with numbers that are no characters, which break Python."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        order = array.dtype.byteorder
        codes = np.ascontiguousarray(array).reshape(-1).view(np.dtype("u4").newbyteorder(order))
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise BadArrayError("texts", "numbers that are no characters")


def read_header(file: IO[bytes], size: int) -> Header:
    """The header of an .npy stream of `size` bytes, checked against that size.

    Raises:
      BadArrayError: a damaged header, Python objects, or values of another size than declared.
    """
    header = dataclasses.replace(read_stream_header(file), offset=file.tell())
    declared = header.num_bytes + header.offset
    if declared != size:
        raise BadArrayError(
            f"{declared} bytes for shape {header.shape} and dtype {header.dtype}",
            f"{size}" + (" (truncated)" if size < declared else ""),
        )
    return header


def read_stream_header(file: IO[bytes]) -> Header:
    """The header of an .npy stream of unknown size; its offset is not known either.

    Raises:
      BadArrayError: a damaged header, Python objects, or a shape that cannot be.
    """
    try:
        version = npy_format.read_magic(file)
        # Version 3.0 differs from 2.0 only for field names, and structured arrays are refused.
        read = {
            (1, 0): npy_format.read_array_header_1_0,
            (2, 0): npy_format.read_array_header_2_0,
        }[version]
        with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
            header = Header(*read(file), offset=0)
    except Exception:  # NumPy tokenizes and parses the header, which fails in many ways
        raise BadArrayError("an .npy header", "a damaged one") from None
    if header.dtype.hasobject:
        raise BadArrayError("numbers", "pickled Python objects")
    # Without values a shape may be anything, and values without bytes as many as it likes.
    extent = math.prod(max(size, 1) for size in header.shape) * header.dtype.itemsize
    if not 0 < extent < 2**62 or len(header.shape) > _MOST_AXES or min(header.shape, default=0) < 0:
        raise BadArrayError("an array that fits in memory", f"shape {header.shape}")
    return header


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file whole: readers see the old one or the new one, also after a crash."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; it takes the place of the one at `path` at the end, unless an error comes.

    Readers see the old one or the new one, also after a crash.
    """
    with _naming(path):
        target = _target(path)
        remove_cut_off(target)
        handle, temporary = _temporary(target)
    kept = os.dup(handle)  # keeps the lock until the file is in its place
    try:
        with _naming(path, temporary), _removed_on_failure(Path(temporary)):
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes it private
            Path(temporary).replace(target)
    finally:
        os.close(kept)


def remove_cut_off(path: Path) -> None:
    """Removes temporary files of `path` whose writers were killed; those at work hold a lock."""
    if fcntl is None:
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Held by one process at a time for `path`; BlockingIOError where another holds it.

    A file beside it is locked, which goes with the process, also where that is killed.
    """
    if fcntl is None:
        yield
        return
    place = path.with_name(f".{path.name}.lock")
    while True:
        with _naming(path, str(place)):
            handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(handle).st_nlink:  # removed by the one before, since it was opened
                continue
            try:
                yield
            finally:
                place.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def _lock(handle: int, how: int) -> None:
    """Raises BlockingIOError where another process has it; nothing where there are no locks."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise
    except OSError:  # of a file system without
        pass


def _target(path: Path) -> Path:
    """Where a file is to go: through a symbolic link, as writing in place would."""
    with contextlib.suppress(RuntimeError):  # how older Python says that links go round
        target = path.resolve()
        if not target.is_symlink():
            return target
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _temporary(target: Path) -> tuple[int, str]:
    """A new file beside it, since renaming within a folder is atomic, and locked."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.tmp-", dir=target.parent)
        if fcntl is None:
            return handle, name
        _lock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # taken for cut off before it was locked


@contextlib.contextmanager
def _removed_on_failure(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def _naming(path: Path, temporary: str | None = None) -> Iterator[None]:
    """A full disk or closed folder is an error about the file that was to be written."""
    try:
        yield
    except OSError as error:
        # Errors about other files, read meanwhile, pass.
        about = str(error.filename or "")
        if about not in ("", temporary) and f".{path.name}.tmp-" not in about:
            raise
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
