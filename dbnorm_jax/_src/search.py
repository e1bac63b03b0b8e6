"""Streamed neighbours and ranks: queries against the gallery, tile by tile, one matmul.

Both come under several offsets at once, a list for each: the gates of a query are known only when
the whole gallery has been seen.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dbnorm_jax._src import numerics
from dbnorm_jax._src.selection import Nearest, add_tile, start_nearest
from dbnorm_jax._src.similarity import SimilarityFn, tile
from dbnorm_jax._src.streaming import Block, scan_chunks

# Gallery items per tile: wide, so that inserting neighbours costs little beside the similarities.
_COLUMNS = 4096
# Entries of gallery vectors gathered at once for a gradient: 64 MiB of float32.
_GATHERED = 2**24
# Queries scored against their own right items at once.
_DIAGONAL = 128


def nearest_items(
    queries: jax.Array,
    gallery: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None = None,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    exclude: jax.Array | None = None,
) -> Nearest:
    """The k nearest gallery items of each query under several offsets at once, one matmul for all.

    Differentiable in the values: those of the items found, computed again from their embeddings.

    Args:
      queries: [num_queries, dim].
      gallery: [num_gallery, dim].
      offsets: [num_gallery, num_lists], each subtracted from the similarities for a list of its
        own; None = one list of raw similarities.
      mixtures: optional [num_queries, num_offsets]: one list then, under the query's own sum of
        offsets.
      k: neighbours per list.
      similarity_fn: the similarity.
      chunk_size: queries held at once.
      exclude: optional [num_gallery] int32, the row of the one query that never sees the item.

    Returns:
      Nearest of [num_queries, num_lists, k], best first; with k above the number of items, -inf.
    """

    @jax.custom_jvp
    def found_in(queries: Any, gallery: Any, offsets: Any, mixtures: Any) -> Nearest:
        return _search(
            queries,
            gallery,
            offsets,
            mixtures,
            exclude,
            k=k,
            similarity_fn=similarity_fn,
            chunk_size=chunk_size,
        )

    @found_in.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Nearest, Nearest]:
        found = found_in(*primals)
        again = partial(
            _scores_again, indices=found.indices, similarity_fn=similarity_fn, chunk_size=chunk_size
        )
        tangent = jax.jvp(again, primals, tangents)[1]
        known = found.values > -jnp.inf
        no_tangent: Any = np.zeros(found.indices.shape, jax.dtypes.float0)
        return found, Nearest(jnp.where(known, tangent, 0), no_tangent)

    return found_in(queries, gallery, offsets, mixtures)


def _search(
    queries: jax.Array,
    gallery: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    exclude: jax.Array | None,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> Nearest:
    score = _scoring(queries, gallery, offsets, similarity_fn)
    num_lists = _num_lists(offsets, mixtures)

    def search_chunk(carry: None, chunk: Block) -> tuple[None, Nearest]:
        rows, mixture = chunk.rows

        def add_gallery_tile(nearest: Nearest, block: Block) -> tuple[Nearest, None]:
            items, tile_offsets, excluded = block.rows
            nearest = add_tile(
                nearest,
                *score(rows, mixture, items, tile_offsets),
                block.start,
                valid=block.fresh,
                seen=None
                if excluded is None
                else lambda row, columns: excluded[columns] != chunk.start + row,
            )
            return nearest, None

        start = start_nearest((rows.shape[0], num_lists, k), score.dtype)
        arrays = (gallery, offsets, exclude)
        return carry, scan_chunks(add_gallery_tile, start, arrays, _COLUMNS)[0]

    nearest = scan_chunks(search_chunk, None, (queries, mixtures), chunk_size)[1]
    return nearest._replace(
        values=jnp.where(numerics.is_number(nearest.values), nearest.values, -jnp.inf)
    )


def _scores_again(
    queries: jax.Array,
    gallery: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    *,
    indices: jax.Array,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> jax.Array:
    """[num_queries, num_lists, k] scores of given items, their vectors gathered by chunks."""
    score = _scoring(queries, gallery, offsets, similarity_fn)
    _, num_lists, k = indices.shape
    lists = lax.broadcasted_iota(jnp.int32, (num_lists, k), 0).reshape(-1)

    def one(query: jax.Array, mixture: jax.Array | None, found: jax.Array) -> jax.Array:
        items = found.reshape(-1)
        own = None if offsets is None else offsets[items]
        scores, own = score(
            query[None], None if mixture is None else mixture[None], gallery[items], own
        )
        scores = scores[0] if own is None else scores[0] - own[jnp.arange(len(items)), lists]
        return scores.reshape(num_lists, k)

    def chunk(carry: None, block: Block) -> tuple[None, jax.Array]:
        return carry, jax.vmap(one)(*block.rows)

    rows = max(1, min(chunk_size, _GATHERED // (num_lists * k * gallery.shape[1])))
    return scan_chunks(chunk, None, (queries, mixtures, indices), rows)[1]


class _Scoring(NamedTuple):
    """Tiles of similarities, and what is left to subtract from them."""

    similarity_fn: SimilarityFn
    dtype: jnp.dtype

    def __call__(
        self, rows: jax.Array, mixtures: Any, items: jax.Array, offsets: Any
    ) -> tuple[jax.Array, Any]:
        """([num_rows, num_items] similarities, [num_items, num_lists] offsets or None).

        Offsets that each query mixes in its own way are subtracted here.
        """
        similarities = tile(self.similarity_fn, rows, items).astype(self.dtype)
        if mixtures is None:
            return similarities, offsets
        # Few terms: an unrolled sum is exact in float32 on every backend, a matmul is not.
        for term in range(offsets.shape[1]):
            similarities -= mixtures[:, term, None] * offsets[None, :, term]
        return similarities, None


def _scoring(
    queries: jax.Array, gallery: jax.Array, offsets: jax.Array | None, similarity_fn: SimilarityFn
) -> _Scoring:
    parts = (queries, gallery) if offsets is None else (queries, gallery, offsets)
    return _Scoring(similarity_fn, numerics.accumulation_dtype(*(part.dtype for part in parts)))


def _num_lists(offsets: jax.Array | None, mixtures: jax.Array | None) -> int:
    return 1 if offsets is None or mixtures is not None else offsets.shape[1]


def count_ahead(
    queries: jax.Array,
    gallery: jax.Array,
    relevant: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    *,
    share: float,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Counts the wrong items ahead of each query's best right item, in one pass.

    Args:
      queries: [num_queries, dim].
      gallery: [num_gallery, dim].
      relevant: [num_queries, num_right] int32 gallery rows, -1 for none.
      offsets: as in `nearest_items`.
      mixtures: as in `nearest_items`.
      share: 0, 1/2 or 1, what an item counts that is level with the best right one.
      similarity_fn: the similarity.
      chunk_size: queries held at once.

    Returns:
      [num_queries, num_lists] int32, twice the number ahead, and [num_queries] int32 the best item
      of the first list.
    """
    score = _scoring(queries, gallery, offsets, similarity_fn)
    num_lists = _num_lists(offsets, mixtures)

    def best_right(rows: jax.Array, right: jax.Array, mixture: jax.Array | None) -> jax.Array:
        """[size, num_lists] scores of the best right items of a chunk."""

        # Scored as tiles of queries against their own right items, of which the diagonal is kept:
        # a product of single rows may round differently, and break ties between equal items.
        def block_scores(carry: None, block: Block) -> tuple[None, jax.Array]:
            rows, column, mixture = block.rows
            own = None if offsets is None else offsets[column]
            scores, own = score(rows, mixture, gallery[column], own)
            scores = jnp.diagonal(scores)[:, None]
            return carry, numerics.below_every_number(scores if own is None else scores - own)

        def add_right(best: jax.Array, column: jax.Array) -> tuple[jax.Array, None]:
            scores = scan_chunks(block_scores, None, (rows, column, mixture), _DIAGONAL)[1]
            return jnp.where((column >= 0)[:, None], jnp.maximum(best, scores), best), None

        start = jnp.full((rows.shape[0], num_lists), -jnp.inf, score.dtype)
        return lax.scan(jax.checkpoint(add_right), start, right.T)[0]

    def count_chunk(carry: None, chunk: Block) -> tuple[None, tuple[jax.Array, jax.Array]]:
        rows, right, mixture = chunk.rows
        best = best_right(rows, right, mixture)
        # Counted from the same tile as the others, each right item is taken out again exactly.
        right = jnp.sort(right, axis=1)
        again = jnp.pad(right[:, 1:] == right[:, :-1], ((0, 0), (1, 0)))
        right = jnp.where(again, -1, right)

        def add_gallery_tile(state: Any, block: Block) -> tuple[Any, None]:
            ahead, nearest = state
            items, tile_offsets = block.rows
            similarities, tile_offsets = score(rows, mixture, items, tile_offsets)
            nearest = add_tile(
                nearest,
                similarities,
                None if tile_offsets is None else tile_offsets[:, :1],
                block.start,
                valid=block.fresh,
            )
            column = right - block.start
            inside = (column >= 0) & (column < items.shape[0])
            column = jnp.where(inside, column, 0)
            if block.fresh is not None:
                inside &= block.fresh[column]
            own = jnp.take_along_axis(similarities, column, axis=1)
            counts = []
            for place in range(num_lists):
                offset = None if tile_offsets is None else tile_offsets[:, place]
                level = best[:, place, None]
                of_right = own if offset is None else own - offset[column]
                of_right = _ahead(numerics.below_every_number(of_right), level, share)
                counts.append(
                    _count_ahead(similarities, offset, level, share, block.fresh)
                    - jnp.where(inside, of_right, 0).sum(axis=1).astype(jnp.int32)
                )
            return (ahead + jnp.stack(counts, axis=1), nearest), None

        start = (
            jnp.zeros((rows.shape[0], num_lists), jnp.int32),
            start_nearest((rows.shape[0], 1, 1), score.dtype),
        )
        (ahead, nearest), _ = scan_chunks(add_gallery_tile, start, (gallery, offsets), _COLUMNS)
        return carry, (ahead, nearest.indices[:, 0, 0])

    return scan_chunks(count_chunk, None, (queries, relevant, mixtures), chunk_size)[1]


def _ahead(scores: jax.Array, best: jax.Array, share: float) -> jax.Array:
    """float32, 2 where a score is above the best right one, 2 share where it is level."""
    above, at_least = ((array).astype(jnp.float32) for array in (scores > best, scores >= best))
    return (2 - 2 * share) * above + 2 * share * at_least


def _count_ahead(
    similarities: jax.Array,
    offset: jax.Array | None,
    best: jax.Array,
    share: float,
    valid: jax.Array | None,
) -> jax.Array:
    """[num_queries] int32 sums of `_ahead` over a tile, NaN below every number."""
    counted = jnp.ones(similarities.shape[1], jnp.float32)
    if valid is not None:
        counted = jnp.where(valid, counted, 0)

    def count(similarities: jax.Array, *, careful: bool) -> jax.Array:
        scores = similarities if offset is None else similarities - offset[None]
        if careful:
            scores = numerics.below_every_number(scores)
        # A product with ones sums faster than a sum does, and exactly: a tile is small.
        ahead = _ahead(scores, best, share)
        return jnp.matmul(ahead, counted, precision=lax.Precision.HIGHEST).astype(jnp.int32)

    # NaN is ahead of nothing, and level with NaN only.
    return lax.cond(
        numerics.is_number(best).all(),
        partial(count, careful=False),
        partial(count, careful=True),
        similarities,
    )
