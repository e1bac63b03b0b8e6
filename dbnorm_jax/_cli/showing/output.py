"""Where results go: looked at before any work, then written all or none, each file whole.

A symbolic link counts as an earlier result, wherever it leads: nothing is written through one. With
--force the link itself is replaced. One process at a time writes a result.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import dbnorm_jax as dbn
from dbnorm_jax._src.core.text import printable
from dbnorm_jax._src.files import binary

# What a text begins with that a spreadsheet computes, also in full width; it skips the blanks.
_FORMULAS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")

Content = Callable[[IO[bytes]], object]  # writes it


def written(make: Callable[[], bytes]) -> Content:
    """Of what is made whole."""
    return lambda file: file.write(make())


class Sink:
    """What --output names: a file with one of the suffixes, or a folder for files of the names."""

    def __init__(
        self,
        path: Path,
        *,
        names: Sequence[str] = (),
        suffixes: tuple[str, ...] = (),
        force: bool = False,
    ) -> None:
        """Raises where the results could not be written; `force` replaces what is there."""
        self.path = path
        self._names, self._suffixes, self._force = names, suffixes, force
        self._held = False
        self._check()

    def _check(self) -> None:
        if self._names:
            self._check_folder()
        else:
            self._check_file()
        place = (self.path if self._names else self.path.parent).absolute()
        while (what := binary.found_at(place)) is None:
            place = place.parent
        if not place.is_dir():
            self._fail("a place to write to", f"{what} at '{place}'", "name another")
        if not os.access(place, os.W_OK | os.X_OK):
            self._fail("a place to write to", f"no permission for '{place}'", "name another")

    def _check_folder(self) -> None:
        what = binary.found_at(self.path)
        if what is not None and not self.path.is_dir():
            self._fail("a folder", what, "name another")
        found = {name: binary.found_at(self.path / name) for name in self._names}
        present = ", ".join(
            name if what == binary.FILE else f"{name} ({what})"
            for name, what in found.items()
            if what is not None
        )
        if present and not self._force:
            remedy = "name another folder, or allow overwriting with --force"
            self._fail("no earlier results", present, remedy)
        if binary.FOLDER in found.values():
            self._fail("files", present, "name another folder")

    def _check_file(self) -> None:
        suffix = self.path.suffix
        if suffix not in self._suffixes:
            expected = f"a name that ends in {' or '.join(self._suffixes)}"
            self._fail(expected, suffix or "none", "rename it")
        if not self.path.absolute().parent.is_dir():
            self._fail("an existing folder", f"'{self.path.parent}'", "make it first")
        what = binary.found_at(self.path)
        if what == binary.FOLDER:
            self._fail("a file", what, "name another")
        if what is not None and not self._force:
            remedy = "name another, or allow overwriting with --force"
            self._fail("no earlier results", what, remedy)

    def _fail(self, expected: str, actual: str, remedy: str) -> None:
        raise self._error(self.path, expected, actual, remedy)

    def _error(self, path: Path, expected: str, actual: str, remedy: str) -> ValueError:
        line = f"--output '{path}': expected {expected}, got {actual}; {remedy}"
        return ValueError(printable(line))

    def check_apart(self, inputs: Mapping[str, Iterable[Path]]) -> None:
        """Raises where a result would replace a file that is read; `inputs`: by their labels.

        Rows are read while results are made, and Windows replaces no file that is memory-mapped.
        """
        for path in [self.path / name for name in self._names] or [self.path]:
            if binary.found_at(path) != binary.FILE:
                continue
            for label, given in inputs.items():
                if any(one.samefile(path) for one in given):
                    expected = f"another file than {label}"
                    raise self._error(path, expected, "the same", "name another")

    @contextlib.contextmanager
    def alone(self, work: str = "writes") -> Iterator[None]:
        """Raises where another process is at work for the same result; `work`: what it does."""
        if self._held:
            yield
            return
        if not self._names:
            with self._locked(self.path, work):
                yield
            return
        made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._locked(self.path / self._names[0], work):
                yield
        except BaseException:
            for place in made:
                with contextlib.suppress(OSError):  # what is not empty stays
                    place.rmdir()
            raise

    @contextlib.contextmanager
    def _locked(self, path: Path, work: str) -> Iterator[None]:
        place = binary.lock_place(path)
        if binary.found_at(place) == binary.LINK:
            if not self._force:
                what = f"a symbolic link '{place.name}'"
                self._fail("room for its lock", what, "remove it, or let --force replace it")
            place.unlink()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(binary.alone(path))
            except BlockingIOError:
                remedy = "wait for it, or name another file"
                self._fail(f"no other process that {work} it", "one at work", remedy)
            self._check()  # another may have ended since
            self._held = True
            try:
                yield
            finally:
                self._held = False

    @contextlib.contextmanager
    def open(self, name: str = "") -> Iterator[IO[bytes]]:
        """The file, or one of those in the folder, which appears when all is in it."""
        with self.alone(), binary.replacing(self.path / name) as file:
            yield file

    def write(self, contents: Mapping[str, Content], stale: Sequence[str] = ()) -> list[Path]:
        """Writes all beside their places, then puts them there in this order -> the paths.

        `stale` is removed in between: what says that an earlier result is whole, and its rest.
        """
        with self.alone(), contextlib.ExitStack() as stack:
            for name, content in reversed([*contents.items()]):  # opened first, put there last
                path = self.path / name
                file = stack.enter_context(binary.replacing(path))
                with binary.naming(path):
                    content(file)
                    file.flush()
                    os.fsync(file.fileno())
            for name in stale:
                (self.path / name).unlink(missing_ok=True)
        return [self.path / name for name in contents]

    def save(self, state: Any, provenance: Mapping[str, Any] | None = None) -> None:
        """Writes fitted state."""
        with self.alone():
            dbn.save(self.path, state, provenance=provenance)


def sink_of(
    request: Any, *, names: Sequence[str] = (), suffixes: tuple[str, ...] = ()
) -> Sink | None:
    """What --output names, None where it is left out."""
    if request.output is not None:
        return Sink(request.output, names=names, suffixes=suffixes, force=request.force)
    if request.force:
        raise ValueError(
            "--force: expected --output, whose earlier results it replaces, got none; leave it out"
        )
    return None


def csv_line(cells: Iterable[Any]) -> str:
    """A line of CSV.

    `csv.writer` quotes a lone carriage return only where its own lines end with one, and readers
    end a line there.
    """
    return ",".join(map(_cell, cells)) + "\n"


def report_line(cells: Iterable[Any]) -> str:
    """A line of CSV for people, whose spreadsheets take some texts for formulas.

    Before such a text stands an apostrophe, which makes it text to them. Numbers are no texts.
    """
    return csv_line(
        f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell
        for cell in cells
    )


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    quoted = any(char in text for char in ',"\r\n')
    return '"' + text.replace('"', '""') + '"' if quoted else text
