"""Where the public names are: what pickles, help and documentation hold on to."""

from typing import Any


def publish(module: str, *objects: Any) -> None:
    """Gives functions and classes the name of the public module that a user imports them from."""
    for one in objects:
        one.__module__ = module
