"""Timing side by side: contenders interleaved in one process, ratios to a bare tile scan.

The base, `bare_scan`, computes the same similarities in 1024 x 1024 tiles inside one jitted scan
and keeps nothing: what any exact method must pay at least.
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import environment, inputs
from benchmarks.report import Figure, Target

TILE = 1024


def unit_rows(seed: int, num_rows: int, dim: int) -> jax.Array:
    """Random unit vectors, [num_rows, dim] float32."""
    return jnp.asarray(inputs.unit_rows(seed, num_rows, dim))


def machine() -> str:
    """What the figures were made on."""
    return environment.summary()


# --- bases -------------------------------------------------------------------------------------


@jax.jit
def bare_scan(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """All inner products, tile by tile, kept in nothing but one number that needs them all."""

    def blocks(array: jax.Array) -> jax.Array:
        tile = min(TILE, array.shape[0])
        if array.shape[0] % tile:
            raise ValueError(f"bare_scan takes multiples of {TILE} rows, got {array.shape[0]}")
        return array.reshape(-1, tile, array.shape[1])

    def outer(total: jax.Array, items: jax.Array) -> tuple[jax.Array, None]:
        def inner(total: jax.Array, bank: jax.Array) -> tuple[jax.Array, None]:
            product = lax.dot_general(
                bank, items, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            )
            # The barrier keeps the compiler from computing less than the whole tile, and one entry
            # from dropping it.
            return total + lax.optimization_barrier(product)[0, 0], None

        return lax.scan(inner, total, blocks(rows))[0], None

    return lax.scan(outer, jnp.float32(0), blocks(columns))[0]


@jax.jit
def full_dot(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """All inner products at once, kept: [num_rows, num_columns] in new memory."""
    return jnp.dot(rows, columns.T, preferred_element_type=jnp.float32)


# --- timing ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per repetition of one contender, and processor seconds per wall second."""

    seconds: np.ndarray
    cores: float


def interleaved(
    contenders: dict[str, Callable[[], Any]], repetitions: int = 7
) -> dict[str, Timing]:
    """Times all contenders; each repetition runs every one once, the starting one rotates."""
    names = list(contenders)
    for name in names:
        jax.block_until_ready(contenders[name]())
    seconds = {name: np.zeros(repetitions) for name in names}
    processor = dict.fromkeys(names, 0.0)
    for repetition in range(repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            used, started = time.process_time(), time.perf_counter()
            jax.block_until_ready(contenders[name]())
            seconds[name][repetition] = time.perf_counter() - started
            processor[name] += time.process_time() - used
    return {
        name: Timing(seconds[name], processor[name] / float(seconds[name].sum())) for name in names
    }


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
