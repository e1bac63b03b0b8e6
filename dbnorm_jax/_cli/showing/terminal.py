"""The only way to stdout and stderr: whatever names and labels hold, printable lines come out.

Nothing heavy is imported here, as `dbnorm --help` needs it.
"""

import codecs
import json
import sys
from collections.abc import Iterable
from typing import IO, Any

from dbnorm_jax._src.core.text import printable


def say(line: str, *, to_stderr: bool = False) -> None:
    """One line to stdout, or to stderr."""
    stream = sys.stderr if to_stderr else sys.stdout
    stream.write(printable(line) + "\n")


def say_warnings(sentences: Iterable[str]) -> None:
    """A line to stderr for each."""
    for sentence in sentences:
        say(f"dbnorm: warning: {sentence}", to_stderr=True)


def say_json(content: Any) -> None:
    """JSON to stdout."""
    sys.stdout.write(json_text(content, only_ascii=not is_utf8(sys.stdout)))


def is_utf8(stream: IO[str]) -> bool:
    """Whether every character can be written to it."""
    return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name == "utf-8"


def json_text(
    content: Any, *, indent: int | None = 2, only_ascii: bool = False, allow_nan: bool = False
) -> str:
    """As it is printed and written.

    What cannot be printed is escaped as JSON escapes, so that readers get what it was.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=only_ascii, allow_nan=allow_nan)
    lines = (
        line if line.isprintable() else "".join(map(_json_character, line))
        for line in text.split("\n")
    )
    return "\n".join(lines) + "\n"


def _json_character(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def wide_console() -> Any:
    """Of rich, for stdout: prints text as it is, plain when piped, each string as one line."""
    from rich.console import Console

    class Printable(Console):
        """Every string that is printed, in tables too, passes here."""

        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(printable(text), **options)

    # A cut number would mislead: on a narrow terminal lines run over instead.
    return Printable(
        file=sys.stdout, width=1000, soft_wrap=True, highlight=False, markup=False, emoji=False
    )
