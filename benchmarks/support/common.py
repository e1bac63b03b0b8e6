"""What the benchmarks share: inputs, another base than `bare_scan`, ratios of timings, colors."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.support import environment, inputs
from benchmarks.support.report import Figure, Target
from dbnorm_jax._cli.measuring.timing import TILE, Timing, bare_scan, interleaved

__all__ = [
    "COLORS",
    "MARKERS",
    "TILE",
    "Timing",
    "bare_scan",
    "full_dot",
    "interleaved",
    "machine",
    "ratio",
    "ratios",
    "unit_rows",
]

# Okabe and Ito's, told apart with any color vision; markers differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def unit_rows(seed: int, num_rows: int, dim: int) -> jax.Array:
    """Random unit vectors, [num_rows, dim] float32."""
    return jnp.asarray(inputs.unit_rows(seed, num_rows, dim))


def machine() -> str:
    """What the figures were made on."""
    return environment.summary()


@jax.jit
def full_dot(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """All inner products at once, kept: [num_rows, num_columns] in new memory."""
    return jnp.dot(rows, columns.T, preferred_element_type=jnp.float32)


# --- ratios ---------------------------------------------------------------------------------------


def ratio(
    name: str,
    timing: Timing,
    base: Timing,
    unit: str = "x bare",
    target: Target | None = None,
    flops: float | None = None,
) -> Figure:
    """Time against a base's, repetition by repetition."""
    ratios = timing.seconds / base.seconds
    low, median, high = np.percentile(ratios, [25, 50, 75])
    shortest = float(timing.seconds.min())
    return Figure(
        name,
        float(median),
        unit,
        target,
        of_minima=shortest / float(base.seconds.min()),
        low=float(low),
        high=float(high),
        seconds=shortest,
        gflops=None if flops is None else flops / shortest / 1e9,
        cores=timing.cores,
    )


def ratios(
    timings: Mapping[str, Timing],
    flops: float,
    targets: Mapping[str, float] | None = None,
    bases: Mapping[str, str] | None = None,
    passes: Mapping[str, int] | None = None,
) -> list[Figure]:
    """One figure per contender.

    Args:
      timings: what `interleaved` returned; the first contender is the base.
      flops: of the first contender's inner products.
      targets: the largest ratios hoped for, by contender.
      bases: other bases than the first contender.
      passes: how many times as many inner products a contender has, where not 1.
    """
    first, bases, targets, passes = next(iter(timings)), bases or {}, targets or {}, passes or {}
    return [
        ratio(
            name,
            timing,
            timings[bases.get(name, first)],
            f"x {bases.get(name, first)}",
            Target(high=targets[name]) if name in targets else None,
            flops * passes.get(name, 1),
        )
        for name, timing in timings.items()
    ]
