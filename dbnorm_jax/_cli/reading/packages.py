"""Packages that the command does without until they are needed, and how to install them."""

import shlex

# As in pyproject.toml, an extra each. Where a package is missing, its own name is what always
# installs: from a checkout, beside a wheel and beside a release.
_EXTRAS = (
    {"click": ">=8.2", "rich": ">=13.9", "matplotlib": ">=3.10"},
    {"emoji": "==2.16.*"},
    {"safetensors": ">=0.4.5"},
    {"pyarrow": ">=17"},
)


def install_hint(package: str) -> str | None:
    """The line that installs a package and the others of its extra; None: it is of no extra."""
    for extra in _EXTRAS:
        if package in extra:
            return f"pip install {shlex.join(name + release for name, release in extra.items())}"
    return None
