"""The version of this package, which state files name too."""

__version__ = "0.1.0.dev0"
