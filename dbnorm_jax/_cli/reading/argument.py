"""A file that an argument names, and how errors name it."""

import contextlib
import dataclasses
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dbnorm_jax._src.files.binary import printable

SAVE_REMEDY = "write it with numpy.save as float32"
BROKEN_REMEDY = "copy or write it again"

_OF_SEVERAL = (".npz", ".safetensors", ".parquet", ".arrow", ".feather")


@dataclasses.dataclass(frozen=True)
class Source:
    """A file given for an argument; `str()` of it names both in errors.

    Attributes:
      argument: as the user knows it.
      path: of the file.
      member: the array in a file of several.
    """

    argument: str
    path: Path
    member: str | None = None

    @classmethod
    def parse(cls, argument: str, text: str) -> "Source":
        """`FILE` or, of several arrays, `FILE.npz:name`; a file of that very name comes first."""
        head, colon, member = text.rpartition(":")
        if colon and Path(head).suffix.lower() in _OF_SEVERAL and not Path(text).exists():
            return cls(argument, Path(head), member)
        return cls(argument, Path(text))

    def __str__(self) -> str:
        member = "" if self.member is None else f":{printable(self.member)}"
        return f"{self.argument} '{self.path}{member}'"

    def fail(self, expected: str, actual: str, remedy: str) -> ValueError:
        """The error to raise."""
        parts = map(printable, (expected, actual, remedy))  # names in files may be anything
        return ValueError("{}: expected {}, got {}; {}".format(self, *parts))


def neighbors(k: int | None, num_gallery: int) -> int:
    """What -k asks for; left out, 10 or all items where there are fewer.

    Raises:
      ValueError: more were asked for than there are.
    """
    if k is not None and k > num_gallery:
        raise ValueError(
            f"-k: expected between 1 and {num_gallery} (gallery items), got {k}; lower it"
        )
    return min(10, num_gallery) if k is None else k


@contextlib.contextmanager
def opened(source: Source) -> Iterator[IO[bytes]]:
    """The file for reading; one line of what is wrong where it is none."""
    try:
        # A pipe or device would block, and has no size to check the header against.
        if not stat.S_ISREG(source.path.stat().st_mode):
            kind = "a folder" if source.path.is_dir() else "something else"
            raise source.fail("a file of arrays", kind, "name the file itself")
        file = source.path.open("rb")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise source.fail("a readable file", why, "check the path") from None
    with file:
        yield file
