"""What looking at values costs: our checks outside of jit, and checkify inside.

    python -m benchmarks.speed.checks [--bank 10240] [--gallery 10240] [--dim 512] [--repetitions 7]

The base is the same function inside a caller's `jit`, where values are not looked at.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import checkify

import dbnorm_jax as dbn
from benchmarks.support import report
from benchmarks.support.common import interleaved, ratios, unit_rows

SIZES = {"bank": 10240, "gallery": 10240, "dim": 512, "repetitions": 7}
LARGEST = 1.02  # of the checks that are always made


def fit(bank: jax.Array, gallery: jax.Array) -> jax.Array:
    """Sums over a bank."""
    return dbn.stream_bank_statistics(bank, gallery, beta=20.0).log_normalizer


def search(bank: jax.Array, gallery: jax.Array) -> jax.Array:
    """The rows of the bank as queries."""
    return dbn.stream_top_k(bank, gallery, 10).scores


def _contenders(
    function: Callable[..., Any], name: str, *arrays: jax.Array
) -> dict[str, Callable[[], Any]]:
    def with_check(*arrays: jax.Array) -> Any:
        checkify.check(jnp.isfinite(arrays[0]).all(), "must be finite")
        return function(*arrays)

    jitted = jax.jit(function)
    own = jax.jit(checkify.checkify(with_check, errors=checkify.user_checks))
    every = jax.jit(checkify.checkify(function, errors=checkify.float_checks))
    return {
        f"{name} inside jit, nothing checked": lambda: jitted(*arrays),
        f"{name}, our checks": lambda: function(*arrays),
        f"{name} inside jit, one check by checkify": lambda: own(*arrays)[1],
        f"{name} inside jit, float_checks": lambda: every(*arrays)[1],
    }


def run(bank: int, gallery: int, dim: int, repetitions: int) -> list[report.Record]:
    """One table."""
    arrays = (unit_rows(0, bank, dim), unit_rows(1, gallery, dim))
    figures = []
    for name, function in (("fit", fit), ("search", search)):
        contenders = _contenders(function, name, *arrays)
        found = interleaved(contenders, repetitions)
        targets = {f"{name}, our checks": LARGEST}
        figures += ratios(found, 2.0 * bank * gallery * dim, targets)
    title = f"checks of values: bank or queries {bank} x gallery {gallery} x dim {dim}"
    sizes = {"bank": bank, "gallery": gallery, "dim": dim, "repetitions": repetitions}
    return [report.Record("checks", title, sizes, figures)]


if __name__ == "__main__":
    report.command(__doc__, run, SIZES)
