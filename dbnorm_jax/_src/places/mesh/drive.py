"""What each device does with its part of the bank, the queries and the gallery.

The streamed functions run on a device's own rows, inside `jax.shard_map`; `exchange` merges what
they find. Arrays come as `layout.split` makes them: filled up to lengths that divide.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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


class Split(NamedTuple):
    """Rows and gallery items that are split over a mesh, and how they are compared (static)."""

    placement: Layout
    num_rows: int  # without padding, like
    num_gallery: int
    similarity_fn: SimilarityFn
    chunk_size: int

    @property
    def rows(self) -> Shard:
        """Bank rows or queries of a device."""
        return self.placement.shard(self.placement.bank, self.num_rows)

    @property
    def items(self) -> Shard:
        """Gallery items of a device."""
        return self.placement.shard(self.placement.gallery, self.num_gallery)

    @property
    def options(self) -> dict[str, Any]:
        """Of the streamed functions."""
        return {"similarity_fn": self.similarity_fn, "chunk_size": self.chunk_size}

    def on_devices(self, local: Callable[..., Any], arrays: Any, specs: Any, out: Any) -> Any:
        """`local` of each device's part of the arrays."""
        mesh = self.placement.mesh
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)(*arrays)


@partial(jax.jit, static_argnames=("split", "k"))
def bank_statistics(
    bank: jax.Array,
    gallery: jax.Array,
    beta: jax.Array,
    weights: jax.Array | None,
    exclude: jax.Array | None,
    *,
    split: Split,
    k: int,
) -> BankStatistics:
    """Statistics of a bank split over devices; rows that fill up have weight 0."""
    items, axis = split.items, split.placement.bank

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
            **split.options,
        )
        shape = (*beta.shape, items.size)
        statistics = BankStatistics(
            sums.log_normalizer.reshape(shape),
            jnp.broadcast_to(sums.mass, shape),
            beta,
            jnp.broadcast_to(sums.k_occurrence, shape) if k else None,
            k,
        )
        if axis is not None:
            statistics = all_merge(statistics, axis)
        return statistics.log_normalizer, statistics.mass, statistics.k_occurrence

    arrays = (bank, gallery, beta, weights, exclude)
    specs = (P(axis), P(items.axis), P(), P(axis), P(axis))
    fields = split.on_devices(local, arrays, specs, P(*[None] * beta.ndim, items.axis))
    log_normalizer, mass, k_occurrence = jax.tree.map(
        lambda field: layout.whole(field, split.placement, items.total, dim=beta.ndim), fields
    )
    return BankStatistics(log_normalizer, mass, beta, k_occurrence, k)


def _own_among_nearest(nearest: Nearest, *, items: Shard, k: int) -> Nearest:
    """Of the k nearest [size, 1, k] on all devices, those that this one holds; others beyond."""
    if k == 1:  # two numbers per row, however many devices there are
        return nearest._replace(indices=items.local(_first(nearest, items))[:, None, None])
    merged = items.nearest(Nearest(*(part[:, 0] for part in nearest)), k)
    return Nearest(merged.values[:, None], items.local(merged.indices)[:, None])


def _first(nearest: Nearest, items: Shard) -> jax.Array:
    """[size] the nearest item on all devices, of the first list of [size, num_lists, k]."""
    return items.first(Nearest(*(part[:, 0, 0] for part in nearest)))


@partial(jax.jit, static_argnames=("split", "k"))
def largest_similarities(
    bank: jax.Array, gallery: jax.Array, exclude: jax.Array | None, *, split: Split, k: int
) -> LargestSimilarities:
    """Largest similarities to a bank split over devices."""
    items, rows = split.items, split.rows

    def local(bank: Any, gallery: Any, exclude: Any) -> jax.Array:
        own = None if exclude is None else exclude - items.start
        largest = nearest_bank_items(bank, gallery, own, rows.valid, k=k, **split.options)
        return (largest if rows.axis is None else all_merge(largest, rows.axis)).values

    specs = (P(rows.axis), P(items.axis), P(rows.axis))
    values = split.on_devices(local, (bank, gallery, exclude), specs, P(None, items.axis))
    return LargestSimilarities(layout.whole(values, split.placement, items.total, dim=1))


@partial(jax.jit, static_argnames=("split", "k"))
def top_k(
    queries: jax.Array,
    gallery: jax.Array,
    correction: Correction | None,
    *,
    split: Split,
    k: int,
) -> SearchResult:
    """The k best items of a gallery split over devices."""
    items = split.items

    def local(queries: Any, gallery: Any, correction: Any) -> Nearest:
        find = partial(_nearest, queries, gallery, split)

        def lists(offsets: Any, mixtures: Any) -> tuple[Nearest, jax.Array]:
            nearest = find(min(k, items.size), offsets, mixtures)
            return nearest, _first(nearest, items)

        def top_1() -> jax.Array:
            return _first(find(1), items)

        dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype)
        return items.nearest(over_gates(lists, top_1, correction, dtype, items.take), k)

    specs = (P(split.rows.axis), P(items.axis), P(None, items.axis))
    nearest = split.on_devices(local, (queries, gallery, correction), specs, P(split.rows.axis))
    return SearchResult(*(layout.whole(part, split.placement, split.num_rows) for part in nearest))


def _nearest(
    queries: jax.Array,
    gallery: jax.Array,
    split: Split,
    k: int,
    offsets: jax.Array | None = None,
    mixtures: jax.Array | None = None,
) -> Nearest:
    """This device's nearest items of its queries."""
    options = {"k": k, "valid": split.items.valid, **split.options}
    return nearest_items(queries, gallery, offsets, mixtures, **options)


@partial(jax.jit, static_argnames=("split", "ties"))
def ranks(
    queries: jax.Array,
    gallery: jax.Array,
    right: jax.Array,
    correction: Correction | None,
    *,
    split: Split,
    ties: str,
) -> jax.Array:
    """Ranks in a gallery split over devices; `right` [num_rows, most] is padded with -1."""
    items = split.items
    dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype)

    def local(queries: Any, gallery: Any, right: Any, correction: Any) -> jax.Array:
        own = items.local(right)
        own = jnp.where((right >= 0) & (own < items.size), own, -1)

        def count(offsets: Any, mixtures: Any) -> tuple[counts.Ahead, jax.Array]:
            ahead, nearest = counts.count_ahead(
                queries,
                gallery,
                own,
                offsets,
                mixtures,
                valid=items.valid,
                merge_best=items.maximum,
                **split.options,
            )
            return ahead, items.first(nearest)

        def top_1() -> jax.Array:
            return _first(_nearest(queries, gallery, split, 1), items)

        ahead = over_gates(count, top_1, correction, dtype, items.take)
        ahead = jax.tree.map(items.sum, ahead)
        return counts.rank(ahead, (right >= 0).any(axis=1), dtype, ties)

    rows = P(split.rows.axis)
    specs = (rows, P(items.axis), rows, P(None, items.axis))
    found = split.on_devices(local, (queries, gallery, right, correction), specs, rows)
    return layout.whole(found, split.placement, split.num_rows)
