"""Files distrusted on reading and never half-written.

An .npy header is compared with the size of its file before anything is allocated, and nothing is
ever unpickled. A file is written beside its target and renamed onto it.
"""

import contextlib
import dataclasses
import math
import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format


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
        """The array of these values, not copied."""
        array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(values, self.dtype)
        return array.reshape(self.shape, order="F" if self.fortran_order else "C")


def read_header(file: IO[bytes], size: int) -> Header:
    """The header of an .npy stream of `size` bytes, checked against that size.

    Raises:
      BadArrayError: a damaged header, Python objects, or values of another size than declared.
    """
    try:
        version = npy_format.read_magic(file)
        # Version 3.0 differs from 2.0 only for field names, and structured arrays are refused.
        read = {
            (1, 0): npy_format.read_array_header_1_0,
            (2, 0): npy_format.read_array_header_2_0,
        }[version]
        header = Header(*read(file), file.tell())
    except (ValueError, KeyError, TypeError, EOFError, SyntaxError):
        raise BadArrayError("an .npy header", "a damaged one") from None
    if header.dtype.hasobject:
        raise BadArrayError("numbers", "pickled Python objects")
    declared = header.num_bytes + header.offset
    if min(header.shape, default=0) < 0 or declared != size:
        raise BadArrayError(
            f"{declared} bytes for shape {header.shape} and dtype {header.dtype}",
            f"{size}" + (" (truncated)" if size < declared else ""),
        )
    return header


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file whole: readers see the old one or the new one, also after a crash."""
    path = path.resolve()  # through a symbolic link, as writing in place would go
    # Renaming within a folder is atomic.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes it private
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
