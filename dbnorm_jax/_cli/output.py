"""Writing results: all of them or none, each file whole."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dbnorm_jax._src import binary_files

Content = Callable[[], bytes]


def check_folder(argument: str, folder: Path, names: list[str], *, force: bool) -> None:
    """Raises, before any work, where the results could not be written."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{argument} '{folder}': expected a folder, got a file; name another")
    present = [name for name in names if (folder / name).exists()]
    if present and not force:
        raise ValueError(
            f"{argument} '{folder}': expected no earlier results, got {', '.join(present)}; name "
            f"another folder, or allow overwriting with --force"
        )
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"{argument} '{folder}': expected a place to write to, got no permission for "
            f"'{parent}'; name another"
        )


def write(folder: Path, contents: dict[str, Content]) -> list[Path]:
    """Makes all contents first, then writes them; returns the paths."""
    made = {name: content() for name, content in contents.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        binary_files.replace_file(folder / name, data)
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
