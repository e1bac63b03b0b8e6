"""The command that all others are part of."""

from typing import Any

import click

import dbnorm_jax

_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "show_default": True,
}


@click.group(context_settings=_SETTINGS)
@click.version_option(dbnorm_jax.__version__, prog_name="dbnorm")
def cli() -> None:
    """See and correct hubs in embedding retrieval.

    A hub is a gallery item that turns up in the results of far too many queries. Dual Bank
    Normalization learns from a bank of other queries, and one of other gallery items, which items
    these are, and takes their advantage away.

    Start with: dbnorm demo
    """
