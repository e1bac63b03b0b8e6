"""The command that all others are part of."""

import contextlib
from collections.abc import Iterator
from typing import Any

import click

import dbnorm_jax

# Names that one may know an option by: scripts of ids say these.
_KNOWN_AS = {"query-ids": "query-labels", "gallery-ids": "labels", "beta": "beta-query"}

_SETTINGS: dict[str, Any] = {
    "token_normalize_func": lambda name: _KNOWN_AS.get(name, name),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "show_default": True,
}


class ReaderGoneError(Exception):
    """The reader of the output went away (`dbnorm ... | head`)."""


class _Group(click.Group):
    """A group whose closed pipes reach `main`; click would end the process with 1."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _closed_pipes():
            return super().make_context(*arguments, **options)

    def invoke(self, context: click.Context) -> Any:
        with _closed_pipes():
            return super().invoke(context)


@contextlib.contextmanager
def _closed_pipes() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGoneError from error


@click.group(cls=_Group, context_settings=_SETTINGS)
@click.version_option(dbnorm_jax.__version__, prog_name="dbnorm")
def cli() -> None:
    """See and correct hubs in embedding retrieval.

    A hub is a gallery item that turns up in the results of far too many queries. Dual Bank
    Normalization learns from a bank of other queries, and one of other gallery items, which items
    these are, and takes their advantage away.

    Start with: dbnorm demo
    """
