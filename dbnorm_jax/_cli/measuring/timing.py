"""Timing side by side: contenders interleaved in one process, ratios to a bare tile scan.

The base, `bare_scan`, computes the same similarities in 1024 x 1024 tiles inside one jitted scan
and keeps nothing: what any exact method must pay at least.
"""

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

TILE = 1024


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
            kept = lax.optimization_barrier(product)  # type: ignore[no-untyped-call]
            return total + kept[0, 0], None

        return lax.scan(inner, total, blocks(rows))[0], None

    return lax.scan(outer, jnp.float32(0), blocks(columns))[0]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per repetition of one contender, and processor seconds per wall second."""

    seconds: npt.NDArray[np.float64]
    cores: float


def interleaved(
    contenders: dict[str, Callable[[], Any]],
    repetitions: int = 7,
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Timing]:
    """Times all contenders; each repetition runs every one once, the starting one rotates.

    The first run of each, which compiles, is not timed. `on_step` hears of it and of each
    repetition.
    """
    names = list(contenders)
    for name in names:
        on_step(f"compiling {name}")
        _wait(contenders[name]())
    seconds = {name: np.zeros(repetitions) for name in names}
    processor = dict.fromkeys(names, 0.0)
    for repetition in range(repetitions):
        on_step(f"repetition {repetition + 1}")
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            used, started = time.process_time(), time.perf_counter()
            _wait(contenders[name]())
            seconds[name][repetition] = time.perf_counter() - started
            processor[name] += time.process_time() - used
    return {
        name: Timing(seconds[name], processor[name] / float(seconds[name].sum())) for name in names
    }


def _wait(result: Any) -> None:
    jax.block_until_ready(result)  # type: ignore[no-untyped-call]
