"""The k largest similarities of each column, by a search or by a sorting network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.core.types import LargestSimilarities
from dbnorm_jax._src.passes import selection, sorting
from dbnorm_jax._src.passes.nearest import nearest_items, nearest_pass
from dbnorm_jax._src.passes.selection import Nearest, is_apart
from dbnorm_jax._src.passes.streaming import Columns
from dbnorm_jax._src.passes.sweep import Chunk, Items, Pass, Rows, Tile, Tiling, Transposed, sweep

# Bank rows and gallery items that a network sorts at once, few enough for a processor's cache; and
# the bank rows per place up to which it is the faster.
_ROWS = 1024
_ITEMS = 256
_ROWS_PER_PLACE = 192
# Items whose lists are made at once: each is held three times or four while it is made, and the
# lists of a large gallery, k numbers per item, can outweigh its embeddings.
_AT_ONCE = 2**13


def nearest_bank_items(
    bank: jax.Array,
    gallery: jax.Array,
    exclude: jax.Array | None,
    valid: jax.Array | None = None,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> LargestSimilarities:
    """As `stream_largest_similarities`, unchecked; `valid` [num_bank] is False on padding."""
    # The gallery asks and the bank answers: few items of a large bank are inserted.
    transposed = Transposed(similarity_fn)
    ask = partial(nearest_items, k=k, similarity_fn=transposed, chunk_size=chunk_size)

    def by_search(bank: jax.Array, gallery: jax.Array, exclude: Any, valid: Any) -> jax.Array:
        return ask(gallery, bank, None, exclude=exclude, valid=valid).values[:, 0].T

    if bank.shape[0] > _ROWS_PER_PLACE * k or not selection.suits_network(k, gallery.shape[0]):
        return LargestSimilarities(_by_parts(by_search, bank, gallery, exclude, valid, k=k))
    by_network = partial(_by_network, k=k, similarity_fn=similarity_fn, chunk_size=chunk_size)

    @jax.custom_jvp
    def largest(*arrays: Any) -> jax.Array:
        return lax.platform_dependent(*arrays, cpu=by_network, default=by_search)

    @largest.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        masks = primals[2:]
        return jax.jvp(lambda *rows: by_search(*rows, *masks), primals[:2], tangents[:2])

    return LargestSimilarities(_by_parts(largest, bank, gallery, exclude, valid, k=k))


def _by_parts(
    largest: Callable[..., jax.Array],
    bank: jax.Array,
    gallery: jax.Array,
    exclude: jax.Array | None,
    valid: jax.Array | None,
    *,
    k: int,
) -> jax.Array:
    """[k, num_gallery] of `largest`, asked of a part of the gallery after the other."""
    num_gallery = gallery.shape[0]
    size = min(num_gallery, _AT_ONCE)
    if size == num_gallery:
        return largest(bank, gallery, exclude, valid)

    def add_items(number: jax.Array, found: jax.Array) -> jax.Array:
        # The last ones overlap those before.
        start = jnp.minimum(number * size, num_gallery - size)
        items = lax.dynamic_slice_in_dim(gallery, start, size)
        here = largest(bank, items, None if exclude is None else exclude - start, valid)
        return lax.dynamic_update_slice_in_dim(found, here, start, axis=1)

    dtype = numerics.accumulation_dtype(bank.dtype, gallery.dtype)
    empty = numerics.varying_like(jnp.zeros((k, num_gallery), dtype), bank, gallery, exclude, valid)
    return lax.fori_loop(0, -(-num_gallery // size), add_items, empty)


def largest_pass(k: int, dtype: jnp.dtype) -> Pass:
    """Outputs [size, k] largest similarities of items that ask, as in `nearest_pass`."""
    search = nearest_pass(1, k, dtype)

    def finish(total: None, nearest: Nearest, items: Chunk) -> tuple[None, jax.Array]:
        return total, search.finish(total, nearest, items)[1].values[:, 0]

    return search._replace(finish=finish)


def _by_network(
    bank: jax.Array,
    gallery: jax.Array,
    exclude: Any,
    valid: Any,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> jax.Array:
    """[k, num_gallery]; every tile is sorted: of a small bank, many items are among the largest."""
    dtype = numerics.accumulation_dtype(bank.dtype, gallery.dtype)

    def add(_: None, largest: jax.Array, tile: Tile) -> tuple[None, jax.Array]:
        own, entering = tile.rows.own, tile.rows.entering > 0
        counted = numerics.is_number(tile.similarities) & entering[:, None]
        if own is not None:
            counted &= is_apart(own[:, None], tile.places[None])
        similarities = jnp.where(counted, tile.similarities, -jnp.inf)
        here = sorting.largest_of_columns(similarities, k)
        return None, sorting.merged(largest.T, here).T

    return sweep(
        Pass(add),
        Rows(bank, exclude, None if valid is None else valid.astype(dtype)),
        Items(gallery),
        Tiling(similarity_fn, dtype, _ROWS, Columns.everywhere(min(chunk_size, _ITEMS))),
        state=jnp.full((gallery.shape[0], k), -jnp.inf, dtype),
    ).items.T
