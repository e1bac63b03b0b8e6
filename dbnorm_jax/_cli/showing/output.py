"""Where results go: looked at before any work, then written all or none, each file whole.

A symbolic link counts as an earlier result, wherever it leads: nothing is written through one. With
--force the link itself is replaced.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dbnorm_jax._src.files import binary

Content = Callable[[], bytes]


def check_folder(argument: str, folder: Path, names: list[str], *, force: bool) -> None:
    """Raises, before any work, where the results could not be written."""
    what = binary.found_at(folder)
    if what is not None and not folder.is_dir():
        raise ValueError(f"{argument} '{folder}': expected a folder, got {what}; name another")
    found = {name: binary.found_at(folder / name) for name in names}
    present = [
        name if what == binary.FILE else f"{name} ({what})"
        for name, what in found.items()
        if what is not None
    ]
    if present and not force:
        raise ValueError(
            f"{argument} '{folder}': expected no earlier results, got {', '.join(present)}; name "
            f"another folder, or allow overwriting with --force"
        )
    if binary.FOLDER in found.values():
        raise ValueError(
            f"{argument} '{folder}': expected files, got {', '.join(present)}; name another folder"
        )
    _check_writable(argument, folder, folder)


def check_file(argument: str, path: Path, suffixes: tuple[str, ...], *, force: bool) -> None:
    """Raises, before any work, where a result could not be written."""
    if path.suffix not in suffixes:
        raise ValueError(
            f"{argument} '{path}': expected a name that ends in {' or '.join(suffixes)}, got "
            f"{path.suffix or 'none'}; rename it"
        )
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"{argument} '{path}': expected an existing folder, got '{path.parent}'; make it first"
        )
    what = binary.found_at(path)
    if what == binary.FOLDER:
        raise ValueError(f"{argument} '{path}': expected a file, got {what}; name another")
    if what is not None and not force:
        raise ValueError(
            f"{argument} '{path}': expected no earlier results, got {what}; name another, or allow "
            f"overwriting with --force"
        )
    _check_writable(argument, path, path.parent)


def check_apart(argument: str, path: Path, inputs: Mapping[str, Path]) -> None:
    """Raises where a result would replace a file that is read; `inputs`: by their labels.

    Rows are read while results are made, and Windows replaces no file that is memory-mapped.
    """
    if binary.found_at(path) != binary.FILE:
        return
    for label, given in inputs.items():
        if given.samefile(path):
            raise ValueError(
                f"{argument} '{path}': expected another file than {label}, got the same; name "
                f"another"
            )


def write(folder: Path, contents: dict[str, Content]) -> list[Path]:
    """Makes all contents first, then writes them; returns the paths."""
    made = {name: content() for name, content in contents.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        binary.replace_file(folder / name, data)
    return [folder / name for name in made]


def csv_line(cells: Iterable[Any]) -> str:
    """A line of CSV.

    `csv.writer` quotes a lone carriage return only where its own lines end with one, and readers
    end a line there.
    """
    return ",".join(map(_cell, cells)) + "\n"


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    quoted = any(char in text for char in ',"\r\n')
    return '"' + text.replace('"', '""') + '"' if quoted else text


@contextlib.contextmanager
def alone(argument: str, path: Path, *, force: bool) -> Iterator[None]:
    """Raises where another process is at work for the same result; they would share checkpoints."""
    place = binary.lock_place(path)
    if binary.found_at(place) == binary.LINK:
        if not force:
            raise ValueError(
                f"{argument} '{path}': expected room for its lock, got a symbolic link "
                f"'{place.name}'; remove it, or let --force replace it"
            )
        place.unlink()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(binary.alone(path))
        except BlockingIOError:
            raise ValueError(
                f"{argument} '{path}': expected no other process that fits it, got one at work; "
                f"wait for it, or name another file"
            ) from None
        yield


def _check_writable(argument: str, path: Path, folder: Path) -> None:
    """Raises unless a folder, or the one that it will be made in, takes files."""
    place = folder.absolute()
    while (what := binary.found_at(place)) is None:
        place = place.parent
    obstacle = None
    if not place.is_dir():
        obstacle = f"{what} at '{place}'"
    elif not os.access(place, os.W_OK | os.X_OK):
        obstacle = f"no permission for '{place}'"
    if obstacle is not None:
        raise ValueError(
            f"{argument} '{path}': expected a place to write to, got {obstacle}; name another"
        )
