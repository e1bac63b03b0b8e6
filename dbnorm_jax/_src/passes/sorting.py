"""The k largest entries of columns by a bitonic network (Batcher, 1968), for processors.

`lax.top_k` looks at one column after the other. A network compares whole rows of a matrix with each
other, the same rows whatever is in them, so that every step runs over vectors of columns:

    groups of 2, 4, ... entries are sorted, one descending and the next ascending, up to groups of
    at least k; then of each two groups the larger entries, row by row, are kept and sorted again.

Values alone: which entry they came from is not known, nor needed to average them.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core.elementary import from_order, separate, to_order


def largest_of_columns(matrix: jax.Array, k: int) -> jax.Array:
    """[k, num_columns] the k largest of each column [num_rows, num_columns], best first.

    Without NaN; -inf where there are fewer.
    """
    size = 2 ** (k - 1).bit_length()
    groups = 2 ** (math.ceil(len(matrix) / size) - 1).bit_length()
    filling = ((0, groups * size - len(matrix)), (0, 0))
    rows = to_order(jnp.pad(matrix, filling, constant_values=-jnp.inf))
    sorted_size = 2
    while sorted_size <= size:
        # One group that is whole needs no ascending one beside it.
        rows = _sorted(rows, sorted_size, alternating=sorted_size < len(rows))
        sorted_size *= 2
    while len(rows) > size:
        rows = _larger_halves(rows, size)
    return from_order(rows[:k], matrix.dtype)


def merged(first: jax.Array, second: jax.Array) -> jax.Array:
    """[k, num_columns] the k largest of two such, each best first."""
    k = len(first)
    filling = ((0, 2 ** (k - 1).bit_length() - k), (0, 0))
    falling, other = (
        to_order(jnp.pad(part, filling, constant_values=-jnp.inf)) for part in (first, second)
    )
    rows = _larger_halves(jnp.concatenate([falling, other[::-1]]), len(falling))
    return from_order(rows[:k], first.dtype)


def _larger_halves(rows: jax.Array, size: int) -> jax.Array:
    """Of each two sorted groups, descending and ascending, the `size` largest, sorted again."""
    pairs = rows.reshape(-1, 2, size, rows.shape[1])
    rows = separate(jnp.maximum(pairs[:, 0], pairs[:, 1]).reshape(-1, rows.shape[1]))
    return _sorted(rows, size, alternating=len(rows) > size)


def _sorted(rows: jax.Array, size: int, *, alternating: bool) -> jax.Array:
    """Sorts groups that rise and then fall, or fall and then rise."""
    steps = size.bit_length() - 1
    # Two steps at once: half as often is the matrix read and written.
    distance = size // 2
    if steps % 2:
        rows = _exchanged(rows, [distance], size, alternating=alternating)
        distance //= 2
    while distance >= 2:
        rows = _exchanged(rows, [distance, distance // 2], size, alternating=alternating)
        distance //= 4
    return rows


def _exchanged(rows: jax.Array, distances: list[int], size: int, *, alternating: bool) -> jax.Array:
    """Rows at these distances from each other, one distance after the other, put in order."""
    last, count = distances[-1], 2 ** len(distances)
    parts = rows.reshape(-1, count, last, rows.shape[1])
    descending = None
    if alternating:
        starts = lax.iota(jnp.int32, len(parts)) * (count * last)
        descending = (starts & size == 0)[:, None, None]
    entries = [parts[:, place] for place in range(count)]
    for distance in distances:
        step = distance // last
        for place in range(count):
            if not place & step:
                entries[place], entries[place + step] = _in_order(
                    entries[place], entries[place + step], descending
                )
    # Computed anew for each use, the steps would double the work.
    return separate(jnp.stack(entries, axis=1).reshape(rows.shape))


def _in_order(
    first: jax.Array, second: jax.Array, descending: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    larger, smaller = jnp.maximum(first, second), jnp.minimum(first, second)
    if descending is None:
        return larger, smaller
    return jnp.where(descending, larger, smaller), jnp.where(descending, smaller, larger)
