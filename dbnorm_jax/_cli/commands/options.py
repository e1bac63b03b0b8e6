"""Options that several commands share, so that one name means and looks the same everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

# Shells complete it to a name of a file. Nothing is checked here: FILE.npz:name is no path.
FILE = click.Path(readable=False)


def _together(*options: Decorator) -> Decorator:
    """Several options as one decorator, listed by `--help` in the order given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def file(name: str, text: str, *, metavar: str = "FILE") -> Decorator:
    """An option that names a file to read."""
    return click.option(name, type=FILE, metavar=metavar, help=text)


def similarity(
    text: str = "cosine normalizes the rows; euclidean is the negative squared distance.",
    *,
    default: str | None = "cosine",
) -> Decorator:
    """`--similarity`; without a default where files or a correction may say it."""
    choice = click.Choice(["cosine", "dot", "euclidean"])
    if default is None and "[default:" not in text:
        text += "  [default: cosine]"
    return click.option("--similarity", type=choice, default=default, help=text)


def betas() -> Decorator:
    """`--beta-query` and `--beta-gallery`."""
    return _together(
        click.option(
            "--beta-query",
            type=float,
            metavar="BETA",
            help="Inverse temperature of the query bank, 1/[unit of similarity].  [default: 20 for "
            "cosine]",
        ),
        click.option(
            "--beta-gallery",
            type=float,
            metavar="BETA",
            help="The same for the gallery bank.  [default: 1 for cosine]",
        ),
    )


def bank_pairs(purpose: str) -> Decorator:
    """`--bank-pairs`: which bank rows belong together; `purpose` says what for."""
    return file(
        "--bank-pairs",
        "Gallery-bank row of each query-bank row (integers, -1: none); 'rows': row i and row i. "
        + purpose,
        metavar="FILE|rows",
    )


def trust_banks() -> Decorator:
    """`--trust-banks`: correct although the banks look wrong."""
    return click.option(
        "--trust-banks",
        is_flag=True,
        help="Choose although the banks look wrong: raw is kept where the gallery bank is unlike "
        "the gallery, or queries of the bank lie on wrong items.",
    )


def gallery_bank(
    text: str = "Other items like the gallery. Left out: the gallery itself, each item without "
    "itself.",
) -> Decorator:
    """`--gallery-bank`, which may be left out."""
    return file("--gallery-bank", text)


def labels(*, bank: bool = True) -> Decorator:
    """`--labels`, `--query-labels` and, of a `bank`, `--bank-labels`: what results call rows."""
    return _together(
        file(
            "--labels",
            "Names, ids or captions of the gallery items: text, a line each, or an .npy array.",
        ),
        *[file("--bank-labels", "The same for the query bank.")] * bank,
        file("--query-labels", "The same for the queries."),
    )


def output(metavar: str, text: str, **more: Any) -> Decorator:
    """`--output`: a file or folder that is written whole or not at all."""
    kind = click.Path(path_type=Path)
    return click.option("--output", type=kind, metavar=metavar, help=text, **more)


def force(text: str = "Overwrite an earlier result.") -> Decorator:
    """`--force`: earlier results stay without it."""
    return click.option("--force", is_flag=True, help=text)


def as_json(text: str = "Print JSON instead of text.") -> Decorator:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def neighbors(text: str) -> Decorator:
    """`-k`; left out, it fits a small gallery."""
    text += "  [default: 10, or all where there are fewer]"
    return click.option("-k", type=click.IntRange(min=1), metavar="K", help=text)


def seed(text: str, *, default: int | None = 0) -> Decorator:
    """`--seed`; without a default where it may have no use."""
    text += "" if default == 0 else "  [default: 0]"
    return click.option("--seed", default=default, type=click.IntRange(min=0), help=text)


def block_size() -> Decorator:
    """`--block-size` of the commands that stream files."""
    return click.option(
        "--block-size",
        default=8192,
        type=click.IntRange(min=1),
        help="Rows read at once; memory is a few blocks.",
    )


def given(request: Any, *names: str) -> list[str]:
    """Those of the options that are given, as they are written."""
    values = {f"--{name.replace('_', '-')}": getattr(request, name) for name in names}
    return [option for option, value in values.items() if value is not None and value is not False]


def check(*problems: tuple[object, str]) -> None:
    """Raises for the first that is there: whether, and the message."""
    for wrong, message in problems:
        if wrong:
            raise ValueError(message)
