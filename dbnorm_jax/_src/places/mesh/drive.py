"""What each device does with its part of the bank, the queries and the gallery.

The streamed functions run on a device's own rows, inside `jax.shard_map`; `exchange` merges what
they find. Arrays come as `layout.split` makes them: filled up to lengths that divide.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities, SearchResult
from dbnorm_jax._src.passes import banks, counts
from dbnorm_jax._src.passes.columns import nearest_bank_items
from dbnorm_jax._src.passes.gating import over_gates
from dbnorm_jax._src.passes.nearest import nearest_items
from dbnorm_jax._src.passes.selection import Nearest
from dbnorm_jax._src.places.mesh import layout
from dbnorm_jax._src.places.mesh.exchange import Shard, all_merge
from dbnorm_jax._src.places.mesh.layout import Layout

_STATIC = ("placement", "num_rows", "num_gallery", "similarity_fn", "chunk_size")


@partial(jax.jit, static_argnames=(*_STATIC, "k"))
def bank_statistics(
    bank: jax.Array,
    gallery: jax.Array,
    beta: jax.Array,
    weights: jax.Array | None,
    exclude: jax.Array | None,
    *,
    placement: Layout,
    num_rows: int,
    num_gallery: int,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> BankStatistics:
    """Statistics of a bank split over devices; arguments as `meshes.split` makes them."""
    del num_rows  # rows that fill up have weight 0
    items = placement.shard(placement.gallery, num_gallery)

    def local(bank: Any, gallery: Any, beta: Any, weights: Any, exclude: Any) -> tuple[Any, ...]:
        sums = banks.bank_sums(
            bank,
            gallery,
            beta.reshape(-1) if beta.ndim else beta,
            weights,
            None if exclude is None else exclude - items.start,
            k=min(k, items.size),
            valid=items.valid,
            merge_nearest=partial(_own_among_nearest, items=items, k=k),
            similarity_fn=similarity_fn,
            chunk_size=chunk_size,
        )
        shape = (*beta.shape, items.size)
        statistics = BankStatistics(
            sums.log_normalizer.reshape(shape),
            jnp.broadcast_to(sums.mass, shape),
            beta,
            jnp.broadcast_to(sums.k_occurrence, shape) if k else None,
            k,
        )
        if placement.bank is not None:
            statistics = all_merge(statistics, placement.bank)
        return statistics.log_normalizer, statistics.mass, statistics.k_occurrence

    rows, vector = P(placement.bank), P(*[None] * beta.ndim, placement.gallery)
    fields = jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(rows, P(placement.gallery), P(), rows, rows),
        out_specs=(vector, vector, vector),
    )(bank, gallery, beta, weights, exclude)
    log_normalizer, mass, k_occurrence = jax.tree.map(
        lambda field: layout.whole(field, placement, num_gallery, dim=beta.ndim), fields
    )
    return BankStatistics(log_normalizer, mass, beta, k_occurrence, k)


def _own_among_nearest(nearest: Nearest, *, items: Shard, k: int) -> Nearest:
    """Of the k nearest [size, 1, k] on all devices, those that this one holds; others beyond."""
    if k == 1:  # two numbers per row, however many devices there are
        best = items.first(Nearest(*(part[:, 0, 0] for part in nearest)))
        return nearest._replace(indices=items.local(best)[:, None, None])
    merged = items.nearest(Nearest(*(part[:, 0] for part in nearest)), k)
    return Nearest(merged.values[:, None], items.local(merged.indices)[:, None])


@partial(jax.jit, static_argnames=(*_STATIC, "k"))
def largest_similarities(
    bank: jax.Array,
    gallery: jax.Array,
    exclude: jax.Array | None,
    *,
    placement: Layout,
    num_rows: int,
    num_gallery: int,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> LargestSimilarities:
    """Largest similarities to a bank split over devices."""
    items = placement.shard(placement.gallery, num_gallery)
    rows = placement.shard(placement.bank, num_rows)

    def local(bank: Any, gallery: Any, exclude: Any) -> jax.Array:
        own = None if exclude is None else exclude - items.start
        largest = nearest_bank_items(
            bank, gallery, own, rows.valid, k=k, similarity_fn=similarity_fn, chunk_size=chunk_size
        )
        return (largest if rows.axis is None else all_merge(largest, rows.axis)).values

    values = jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(P(rows.axis), P(items.axis), P(rows.axis)),
        out_specs=P(None, items.axis),
    )(bank, gallery, exclude)
    return LargestSimilarities(layout.whole(values, placement, num_gallery, dim=1))


@partial(jax.jit, static_argnames=(*_STATIC, "k"))
def top_k(
    queries: jax.Array,
    gallery: jax.Array,
    correction: Correction | None,
    *,
    placement: Layout,
    num_rows: int,
    num_gallery: int,
    k: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> SearchResult:
    """The k best items of a gallery split over devices."""
    items = placement.shard(placement.gallery, num_gallery)

    def local(queries: Any, gallery: Any, correction: Any) -> Nearest:
        find: Any = partial(
            nearest_items,
            queries,
            gallery,
            valid=items.valid,
            similarity_fn=similarity_fn,
            chunk_size=chunk_size,
        )

        def lists(offsets: Any, mixtures: Any, k: int = min(k, items.size)) -> tuple[Any, Any]:
            nearest = find(offsets, mixtures, k=k)
            return nearest, items.first(Nearest(*(part[:, 0, 0] for part in nearest)))

        dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype)
        nearest = over_gates(lists, lambda: lists(None, None, 1)[1], correction, dtype, items.take)
        return items.nearest(nearest, k)

    rows = P(placement.bank)
    nearest = jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(rows, P(items.axis), P(None, items.axis)),
        out_specs=rows,
    )(queries, gallery, correction)
    return SearchResult(*(layout.whole(part, placement, num_rows) for part in nearest))


@partial(jax.jit, static_argnames=(*_STATIC, "share"))
def ranks(
    queries: jax.Array,
    gallery: jax.Array,
    right: jax.Array,
    correction: Correction | None,
    *,
    placement: Layout,
    num_rows: int,
    num_gallery: int,
    share: float,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> jax.Array:
    """Ranks in a gallery split over devices; `right` [num_rows, most] is padded with -1."""
    items = placement.shard(placement.gallery, num_gallery)
    dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype)

    def local(queries: Any, gallery: Any, right: Any, correction: Any) -> jax.Array:
        own = items.local(right)
        own = jnp.where((right >= 0) & (own < items.size), own, -1)

        def count(offsets: Any, mixtures: Any) -> tuple[jax.Array, jax.Array]:
            ahead, nearest = counts.count_ahead(
                queries,
                gallery,
                own,
                offsets,
                mixtures,
                share=share,
                valid=items.valid,
                merge_best=items.maximum,
                similarity_fn=similarity_fn,
                chunk_size=chunk_size,
            )
            return ahead, items.first(nearest)

        def top_1() -> jax.Array:
            nearest = nearest_items(
                queries,
                gallery,
                None,
                k=1,
                valid=items.valid,
                similarity_fn=similarity_fn,
                chunk_size=chunk_size,
            )
            return items.first(Nearest(*(part[:, 0, 0] for part in nearest)))

        ahead = items.sum(over_gates(count, top_1, correction, dtype, items.take))
        return counts.rank(ahead, (right >= 0).any(axis=1), dtype)

    rows = P(placement.bank)
    found = jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(rows, P(items.axis), rows, P(None, items.axis)),
        out_specs=rows,
    )(queries, gallery, right, correction)
    return layout.whole(found, placement, num_rows)
