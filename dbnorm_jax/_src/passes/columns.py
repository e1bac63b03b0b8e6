"""The k largest similarities of each column, by a search or by a sorting network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.core.types import LargestSimilarities
from dbnorm_jax._src.passes import selection, sorting
from dbnorm_jax._src.passes.nearest import nearest_items, nearest_pass
from dbnorm_jax._src.passes.selection import Nearest, is_apart
from dbnorm_jax._src.passes.sweep import Chunk, Items, Pass, Rows, Tile, Tiling, Transposed, sweep

# Bank rows and gallery items that a network sorts at once, few enough for a processor's cache; and
# the bank rows per place up to which it is the faster.
_ROWS = 1024
_ITEMS = 256
_ROWS_PER_PLACE = 192


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
    find = _Largest(k, similarity_fn, chunk_size)
    if bank.shape[0] > _ROWS_PER_PLACE * k or not selection.suits_network(k, gallery.shape[0]):
        return LargestSimilarities(find.by_search(bank, gallery, exclude, valid))

    @jax.custom_jvp
    def largest(*arrays: Any) -> jax.Array:
        return lax.platform_dependent(*arrays, cpu=find.by_network, default=find.by_search)

    @largest.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        masks = primals[2:]
        return jax.jvp(lambda *rows: find.by_search(*rows, *masks), primals[:2], tangents[:2])

    return LargestSimilarities(largest(bank, gallery, exclude, valid))


def largest_pass(k: int, dtype: jnp.dtype) -> Pass:
    """Outputs [size, k] largest similarities of items that ask, as in `nearest_pass`."""
    search = nearest_pass(1, k, dtype)

    def finish(total: None, nearest: Nearest, items: Chunk) -> tuple[None, jax.Array]:
        return total, search.finish(total, nearest, items)[1].values[:, 0]

    return search._replace(finish=finish)


class _Largest(NamedTuple):
    """Two ways to [k, num_gallery], the k largest similarities of each item to a bank."""

    k: int
    similarity_fn: SimilarityFn
    chunk_size: int

    def by_search(self, bank: jax.Array, gallery: jax.Array, exclude: Any, valid: Any) -> jax.Array:
        """The gallery asks and the bank answers: few items of a large bank are inserted."""
        nearest = nearest_items(
            gallery,
            bank,
            None,
            k=self.k,
            similarity_fn=Transposed(self.similarity_fn),
            chunk_size=self.chunk_size,
            exclude=exclude,
            valid=valid,
        )
        return nearest.values[:, 0].T

    def by_network(
        self, bank: jax.Array, gallery: jax.Array, exclude: Any, valid: Any
    ) -> jax.Array:
        """Every tile is sorted: of a small bank, many items are among the k largest."""
        dtype = numerics.accumulation_dtype(bank.dtype, gallery.dtype)

        def add(_: None, largest: jax.Array, tile: Tile) -> tuple[None, jax.Array]:
            own, entering = tile.rows.own, tile.rows.entering > 0
            counted = numerics.is_number(tile.similarities) & entering[:, None]
            if own is not None:
                counted &= is_apart(own[:, None], tile.places[None])
            similarities = jnp.where(counted, tile.similarities, -jnp.inf)
            here = sorting.largest_of_columns(similarities, self.k)
            return None, sorting.merged(largest.T, here).T

        return sweep(
            Pass(add),
            Rows(bank, exclude, None if valid is None else valid.astype(dtype)),
            Items(gallery),
            Tiling(self.similarity_fn, dtype, _ROWS, min(self.chunk_size, _ITEMS)),
            state=jnp.full((gallery.shape[0], self.k), -jnp.inf, dtype),
        ).items.T
