"""Timing side by side: contenders interleaved in one process, ratios to a bare tile scan.

The base, `bare_scan`, computes the same similarities in 1024 x 1024 tiles inside one jitted scan
and keeps nothing: what any exact method must pay at least.
"""

import dataclasses
import gc
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE = 1024


def unit_rows(seed: int, num_rows: int, dim: int) -> jax.Array:
    """Random unit vectors, [num_rows, dim] float32."""
    rows = np.random.default_rng(seed).normal(size=(num_rows, dim)).astype(np.float32)
    return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@jax.jit
def bare_scan(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """All inner products, tile by tile, kept in nothing but one number that needs them all."""

    def blocks(array: jax.Array) -> jax.Array:
        if array.shape[0] % TILE:
            raise ValueError(f"bare_scan takes multiples of {TILE} rows, got {array.shape[0]}")
        return array.reshape(-1, TILE, array.shape[1])

    def outer(total: jax.Array, items: jax.Array) -> tuple[jax.Array, None]:
        def inner(total: jax.Array, bank: jax.Array) -> tuple[jax.Array, None]:
            product = lax.dot_general(bank, items, (((1,), (1,)), ((), ())))
            # The barrier keeps the compiler from computing less than the whole tile, and one entry
            # from dropping it.
            return total + lax.optimization_barrier(product)[0, 0], None

        return lax.scan(inner, total, blocks(rows))[0], None

    return lax.scan(outer, jnp.float32(0), blocks(columns))[0]


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


def ratio_lines(timings: dict[str, Timing], base: str) -> list[str]:
    """One line per contender: seconds, ratio of minima, median of the ratios, cores."""
    reference = timings[base].seconds
    width = max(map(len, timings))
    lines = [f"{'':{width}}   min s   x {base}: of minima   median of ratios   cores"]
    for name, timing in timings.items():
        of_minima = timing.seconds.min() / reference.min()
        median = float(np.median(timing.seconds / reference))
        lines.append(
            f"{name:{width}}  {timing.seconds.min():6.3f}   {of_minima:>{len(base) + 13}.2f}"
            f"   {median:16.2f}   {timing.cores:5.2f}"
        )
    return lines


def machine() -> str:
    """What the figures were made on."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return (
        f"{time.strftime('%Y-%m-%d')}, {name}, {os.cpu_count()} cores, jax {jax.__version__} on "
        f"{devices}, Python {sys.version.split()[0]}"
    )
