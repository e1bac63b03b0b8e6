"""Certified search: a first pass in bfloat16, a short list in full precision, a proof for each row.

    first scores    bfloat16 products less offsets, a list of more than k of the largest
    scores          those of the list, in full precision from the values as given
    certified       no item that is not listed can have the k-th score, by `low_precision.is_beyond`

Rows that are not certified are searched in full precision, a block of them at a time. So every
answer is that of `nearest_items`, up to rounding.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import elementary, low_precision, numerics, similarity
from dbnorm_jax._src.core.low_precision import LowItems
from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product
from dbnorm_jax._src.passes import selection
from dbnorm_jax._src.passes.again import looked_at_again
from dbnorm_jax._src.passes.nearest import (
    columns_for,
    differentiable,
    nearest_items,
    nearest_pass,
    scores_again,
    scores_dtype,
)
from dbnorm_jax._src.passes.selection import Nearest
from dbnorm_jax._src.passes.streaming import Columns
from dbnorm_jax._src.passes.sweep import Chunk, Items, Rows, Tiling, Transposed, sweep

# Listed beside the k nearest, or as many as these: enough that the last is far below the k-th.
_FEWEST_MORE = 22
# The longest list by which a processor searches sooner than in float32; it inserts into lists.
_MOST_LISTED = 64
# Rows by which a processor multiplies a tile of items in bfloat16 sooner than one in float32.
_MANY_ROWS = 128
# A product of fewer rows than these in bfloat16 is slower on processors than one of so many.
_FEWEST_MULTIPLIED = 8
# First scores held at once of few rows: 32 MiB. By tiles XLA would copy each tile of the items.
_MOST_AT_ONCE = 2**23
_UNITS = {"amx_bf16", "avx512_bf16"}


def num_listed(k: int) -> int:
    """Items in the list of a search for k neighbors."""
    return k + max(_FEWEST_MORE, k)


def pays(k: int, num_items: int) -> bool:
    """Whether there are items that a list leaves out."""
    return num_listed(k) < num_items


def by_platform(
    certified: Callable[..., Any],
    exact: Callable[..., Any],
    *,
    num_rows: int,
    num_items: int,
    k: int,
    precision: str | None,
) -> Callable[..., Any]:
    """One of the two, by `precision` or, where it is None, by the platform that it is lowered for.

    Accelerators multiply bfloat16 several times as fast as float32. Of processors those do that
    have units for it, where the list is short: to keep a longer one takes more than they spare.
    Rows are many there, or so few that they meet all items at once: in between, to copy the tiles
    takes the time. The units are those of the processor on which the program is traced.
    """
    if precision is not None:
        return certified if precision == "certified" else exact
    short = num_listed(k) <= _MOST_LISTED
    fitting = num_rows >= _MANY_ROWS or _at_once(num_rows, num_items)
    on_processor = certified if short and fitting and multiplies_bfloat16() else exact
    return lambda *arrays: lax.platform_dependent(*arrays, cpu=on_processor, default=certified)


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's processor has units that multiply bfloat16, as Linux says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.startswith("flags") and _UNITS & set(line.split()) for line in lines)


def certified_items(
    queries: jax.Array,
    gallery: jax.Array,
    low: LowItems,
    offsets: jax.Array | None,
    mixtures: jax.Array | None = None,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    unseen: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> tuple[Nearest, jax.Array]:
    """`nearest_items` under offsets of one list, [num_gallery, 1], or under mixtures of offsets.

    `low` are the gallery items in bfloat16; there are more of them than `num_listed(k)`.

    Returns:
      Nearest of [num_queries, 1, k]; and bool [num_queries], which of them are certified.
    """
    arrays = (queries, gallery, offsets, mixtures)
    (asked, items, less, mixed), low = lax.stop_gradient((arrays, low))
    tiling = Tiling(similarity_fn, scores_dtype(queries, gallery, offsets), chunk_size)
    found, certified = _first(asked, items, low, less, mixed, unseen, valid, tiling, k)

    def again(rows: jax.Array, _: jax.Array) -> Nearest:
        own = (None if part is None else part[rows] for part in (mixed, unseen))
        mixtures, apart = own
        options: Any = {"similarity_fn": similarity_fn, "chunk_size": chunk_size, "valid": valid}
        return nearest_items(asked[rows], items, less, mixtures, k=k, unseen=apart, **options)

    found = looked_at_again(found, certified, again, chunk_size=chunk_size)
    return differentiable(found, tiling, *arrays), certified


class _FirstOffsets(NamedTuple):
    """What is subtracted from the products of the first pass, float32."""

    terms: jax.Array | None  # [num_items, num_terms]
    mixtures: jax.Array | None  # [num_rows, num_terms]; None = there is one term at most
    largest: jax.Array  # [num_rows] the size of their sum, at most
    error: jax.Array  # [num_rows] of it, by rounding


def _first_offsets(
    offsets: jax.Array | None, mixtures: jax.Array | None, low: LowItems, num_rows: int
) -> _FirstOffsets:
    zero = jnp.zeros(num_rows, jnp.float32)
    less, size_less = None, zero
    if low.less is not None:
        less, size_less = low.less[:, None], zero + _size(low.less[:, None])
    if offsets is None:
        return _FirstOffsets(less, None, size_less, zero)
    sizes, terms = _size(offsets)[None], offsets.astype(jnp.float32)
    sums = sizes if mixtures is None else jnp.abs(mixtures) * sizes
    largest = size_less + sums.sum(axis=1).astype(jnp.float32)
    if mixtures is not None:
        mixtures = mixtures.astype(jnp.float32)
        if less is not None:
            terms = jnp.concatenate([terms, less], axis=1)
            mixtures = jnp.pad(mixtures, ((0, 0), (0, 1)), constant_values=1)
    elif less is not None:
        terms = terms + less
    elif offsets.dtype == jnp.float32:  # as they are
        return _FirstOffsets(terms, None, largest, zero)
    # Each term is rounded, its product with a mixture, and its difference, here and in scores.
    unit = jnp.finfo(jnp.float32).eps  # type: ignore[no-untyped-call]
    return _FirstOffsets(terms, mixtures, largest, 4 * (terms.shape[1] + 1) * unit * largest)


def _size(terms: jax.Array) -> jax.Array:
    """[num_terms] the largest in size of each."""
    return jnp.abs(terms).max(axis=0)


def _first(
    queries: jax.Array,
    gallery: jax.Array,
    low: LowItems,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    unseen: jax.Array | None,
    valid: jax.Array | None,
    tiling: Tiling,
    k: int,
) -> tuple[Nearest, jax.Array]:
    """The k best [num_queries, 1, k] of each list, and which rows that certifies."""
    num_rows, listed = len(queries), num_listed(k)
    first = _first_offsets(offsets, mixtures, low, num_rows)
    rows = low_precision.low_rows(tiling.similarity_fn, queries, low)
    pairs = tiling._replace(similarity_fn=similarity.alone(tiling.similarity_fn))

    def finish(total: None, nearest: Nearest, chunk: Chunk) -> tuple[None, Any]:
        *_, (rows, queries, mixtures, first) = chunk.own
        places = jnp.sort(nearest.indices[:, 0], axis=-1)  # equal scores keep the gallery's order
        scores = scores_again(pairs, places[:, None], queries, gallery, offsets, mixtures)[:, 0]
        values = jnp.where(places < 0, -jnp.inf, numerics.below_every_number(scores))
        best = jax.vmap(functools.partial(selection.largest_listed, k=k))(values, places)
        # Where a list has a place left, it holds all that the row sees.
        whole = nearest.indices[:, 0, -1] < 0
        certified = whole | low_precision.is_beyond(
            rows, low, nearest.values[:, 0, -1], best[0][:, -1], first.error, first.largest
        )
        found = Nearest(*(part[:, None] for part in selection.filled(*best)))
        return total, (found, certified)

    kept = nearest_pass(1, listed, jnp.dtype(jnp.float32))

    def finished(total: None, nearest: Nearest, chunk: Chunk) -> tuple[None, Any]:
        return finish(*kept.finish(total, nearest, chunk), chunk)

    held = (rows, queries, mixtures, first._replace(terms=None))
    own = (first.mixtures, unseen, held)
    vectors = rows.vectors
    if num_rows < _FEWEST_MULTIPLIED:
        filling = _FEWEST_MULTIPLIED - num_rows
        vectors, own = jax.tree.map(
            lambda part: jnp.concatenate([part, jnp.repeat(part[-1:], filling, axis=0)]),
            (vectors, own),
        )
        vectors = elementary.written(vectors)  # or XLA multiplies by each row alone
    outputs = sweep(
        kept._replace(finish=finished),
        Rows(vectors, own),
        Items(low.vectors, (selection.by_list(first.terms), None), valid),
        _low_tiling(len(vectors), len(low.vectors), listed, tiling.chunk_size),
    ).outputs
    found, certified = jax.tree.map(lambda part: part[:num_rows], outputs)
    return found, certified


def _at_once(num_rows: int, num_items: int) -> bool:
    return max(num_rows, _FEWEST_MULTIPLIED) * num_items <= _MOST_AT_ONCE


def _low_tiling(num_rows: int, num_items: int, listed: int, chunk_size: int) -> Tiling:
    """Of products in bfloat16: few rows meet all items at once, from the items' side."""
    if _at_once(num_rows, num_items):
        columns = Columns.everywhere(num_items)
        return Tiling(Transposed(dot_product), jnp.dtype(jnp.float32), chunk_size, columns)
    return Tiling(dot_product, jnp.dtype(jnp.float32), chunk_size, columns_for(listed))
