"""Streamed neighbors: queries against the gallery, tile by tile, one matmul.

They come under several offsets at once, a list for each: the gates of a query are known only when
the whole gallery has been seen.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import elementary, numerics, similarity
from dbnorm_jax._src.core.similarity import SimilarityFn, tile
from dbnorm_jax._src.passes import selection
from dbnorm_jax._src.passes.selection import Nearest, Offsets
from dbnorm_jax._src.passes.streaming import COLUMNS, Block, Columns, scan_chunks
from dbnorm_jax._src.passes.sweep import Chunk, Items, Pass, Rows, Tile, Tiling, sweep

# Gallery items per tile on processors where neighbors are inserted, so many that a bad order of
# the gallery costs little; and where they are selected anew, at a cost of its own per tile. On GPUs
# that is the time to launch a dozen programs, which take longer than the products of a small tile.
INSERTING_COLUMNS = 2048
SELECTING_COLUMNS = 4096
LAUNCHING_COLUMNS = 2**15
# Pairs scored at once: always as many, since a program for fewer may round differently.
PAIRS = 64
# Entries of gallery vectors gathered at once: 4 MiB of float32, which stay in the cache.
_GATHERED = 2**20


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
    unseen: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> Nearest:
    """The k nearest gallery items of each query under several offsets at once, one matmul for all.

    Each of the `offsets` [num_gallery, num_lists] is subtracted from the similarities for a list of
    its own. With `mixtures` [num_queries, num_offsets] there is one list, under the query's own sum
    of offsets. `exclude` [num_gallery, most] are rows of queries that never see the item, -1 for
    none; `unseen` [num_queries, most] says the same from the queries' side; `valid` [num_gallery]
    is False on padding.

    Differentiable in the values: those of the items found, computed again from their embeddings.

    Returns:
      Nearest of [num_queries, num_lists, k], best first; -inf and index -1 where there are fewer.
    """
    arrays = (queries, gallery, offsets, mixtures)
    asked, items, less, mixed = lax.stop_gradient(arrays)
    dtype = scores_dtype(queries, gallery, offsets)
    tiling = Tiling(similarity_fn, dtype, chunk_size, columns_for(k))
    found: Nearest = sweep(
        nearest_pass(count_lists(offsets, mixtures), k, dtype),
        Rows(asked, (mixed, unseen)),
        Items(items, (selection.by_list(less), exclude), valid),
        tiling,
    ).outputs

    return differentiable(found, tiling, *arrays)


def differentiable(found: Nearest, tiling: Tiling, *arrays: Any) -> Nearest:
    """What is found, with the gradient of its scores, computed again from their embeddings.

    `arrays` are the queries, the gallery, and what `nearest_items` subtracts.
    """

    # Of the values alone: inside `jax.shard_map` integers could have no tangent that fits.
    @jax.custom_jvp
    def scores(found: Nearest, *arrays: Any) -> jax.Array:
        del arrays
        return found.values

    @scores.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        found, *arrays = primals
        again = partial(scores_again, tiling, found.indices)
        tangent = jax.jvp(again, tuple(arrays), tuple(tangents[1:]))[1]
        known = found.values > -jnp.inf
        return found.values, numerics.varying_like(jnp.where(known, tangent, 0), found.values)

    return found._replace(values=scores(found, *arrays))


def nearest_pass(num_lists: int, k: int, dtype: jnp.dtype) -> Pass:
    """Outputs Nearest [size, num_lists, k].

    Rows own mixtures and what they do not see, items their offsets and the rows that exclude them.
    """

    def start(rows: Chunk) -> Nearest:
        return selection.start_nearest((rows.size, num_lists, k), dtype)

    def add(nearest: Nearest, _: None, tile: Tile) -> tuple[Nearest, None]:
        (mixtures, unseen, *_), (offsets, excluded) = tile.rows.own, tile.own
        seen = selection.seen_by(unseen, tile.start)
        if excluded is not None:
            seen = selection.shown_to(excluded, tile.rows.number)
        scores = less_mixtures(tile.similarities, mixtures, offsets)
        return selection.add_tile(nearest, *scores, tile.start, valid=tile.valid, seen=seen), None

    def finish(total: None, nearest: Nearest, _: Chunk) -> tuple[None, Nearest]:
        return total, Nearest(*selection.filled(*nearest))

    return Pass(add, start, finish)


def columns_for(k: int) -> Columns:
    """Gallery items per tile of a search for k neighbors."""
    if k == 1:  # looked up: what stays in the cache is the faster
        cpu = COLUMNS
    else:
        cpu = INSERTING_COLUMNS if selection.inserts(k, INSERTING_COLUMNS) else SELECTING_COLUMNS
    return Columns(cpu, SELECTING_COLUMNS, LAUNCHING_COLUMNS)


def scores_again(
    tiling: Tiling,
    indices: jax.Array,
    queries: jax.Array,
    gallery: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
) -> jax.Array:
    """[num_queries, num_lists, k] scores of given items, their vectors gathered by chunks."""
    _, num_lists, k = indices.shape
    lists = lax.broadcasted_iota(jnp.int32, (num_lists, k), 0).reshape(-1)

    def one(query: jax.Array, mixture: jax.Array | None, found: jax.Array) -> jax.Array:
        items = found.reshape(-1)
        own = selection.by_list(None if offsets is None else offsets[items])
        mixture = None if mixture is None else mixture[None]
        similarities = tile(tiling.similarity_fn, query[None], gallery[items])
        similarities, own = less_mixtures(similarities.astype(tiling.dtype), mixture, own)
        scores = similarities[0]
        if own is not None:
            scores -= jnp.stack(own)[lists, jnp.arange(len(items))]
        return scores.reshape(num_lists, k)

    def chunk(carry: None, block: Block) -> tuple[None, jax.Array]:
        return carry, jax.vmap(one)(*block.rows)

    rows = max(1, min(tiling.chunk_size, _GATHERED // (num_lists * k * gallery.shape[1])))
    return scan_chunks(chunk, None, (queries, mixtures, indices), rows)[1]


class Scoring(NamedTuple):
    """Scores of pairs, each computed alone, and how far those of a tile may be from them."""

    similarity_fn: SimilarityFn
    dtype: jnp.dtype

    def pairs(
        self, rows: jax.Array, mixtures: Any, items: jax.Array, offsets: Offsets
    ) -> jax.Array:
        """[num_pairs, num_lists] scores of each row with its own item, NaN below every number.

        At most PAIRS of them. Each is a tile of its own, so that its score depends on nothing else.
        """
        num_pairs = rows.shape[0]

        def filled(pairs: jax.Array) -> jax.Array:
            filling = ((0, PAIRS - num_pairs), (0, 0))
            return (jnp.pad(pairs, filling, mode="edge") if num_pairs < PAIRS else pairs)[:, None]

        similarities = jax.vmap(self.similarity_fn)(filled(rows), filled(items))[:num_pairs, 0, 0]
        similarities = elementary.written(similarities.astype(self.dtype))
        if mixtures is not None:
            for term, offset in enumerate(offsets or ()):
                similarities -= mixtures[:, term] * offset
            offsets = None
        scores = similarities[:, None]
        if offsets is not None:
            scores -= jnp.stack(offsets, axis=1)
        return numerics.below_every_number(scores)

    def rounding(
        self,
        norms: jax.Array,
        mixtures: Any,
        items: jax.Array,
        offsets: Offsets,
        similarities: jax.Array,
        scores: jax.Array,
    ) -> jax.Array:
        """[num_rows, num_lists], how far scores of a tile may be from those of pairs.

        Looked at near `scores` [num_rows, num_lists]; `norms` [num_rows] are those of the rows.
        """
        rounding = similarity.rounding(self.similarity_fn, norms, items, similarities)[:, None]
        # Offsets are subtracted one by one, each difference rounded once.
        largest = jnp.abs(scores)
        if mixtures is not None:
            for term, offset in enumerate(offsets or ()):
                largest += jnp.abs(mixtures[:, term, None]) * jnp.abs(offset).max()
        rounding += jnp.finfo(self.dtype).eps * largest  # type: ignore[no-untyped-call]
        return jnp.where(jnp.isfinite(rounding), rounding, 0)


def less_mixtures(
    similarities: jax.Array, mixtures: jax.Array | None, offsets: Offsets
) -> tuple[jax.Array, Offsets]:
    """Subtracts the offsets that each query mixes in its own way; what is left to subtract."""
    if mixtures is None:
        return similarities, offsets
    # Few terms: an unrolled sum is exact in float32 on every backend, a matmul is not.
    assert offsets is not None
    for term, offset in enumerate(offsets):
        similarities -= mixtures[:, term, None] * offset[None]
    return elementary.written(similarities), None


def scores_dtype(*parts: Any) -> jnp.dtype:
    """Of scores of queries, a gallery and offsets or None."""
    return numerics.accumulation_dtype(*(part.dtype for part in parts if part is not None))


def count_lists(offsets: jax.Array | None, mixtures: jax.Array | None) -> int:
    return 1 if offsets is None or mixtures is not None else offsets.shape[1]
