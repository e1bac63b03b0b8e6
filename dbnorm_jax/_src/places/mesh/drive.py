"""What each device does with its part of the bank, the queries and the gallery.

The passes run on a device's own rows, inside `jax.shard_map`; `exchange` merges what they find.
Without a mesh one device has all rows, and nothing is exchanged. Arrays come as `layout.split`
makes them: filled up to lengths that divide.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.low_precision import LowItems
from dbnorm_jax._src.core.similarity import SimilarityFn, check_rows
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities, SearchResult
from dbnorm_jax._src.passes import banks, counts
from dbnorm_jax._src.passes.certified import by_platform, certified_items, pays
from dbnorm_jax._src.passes.columns import nearest_bank_items
from dbnorm_jax._src.passes.gating import over_gates
from dbnorm_jax._src.passes.nearest import nearest_items
from dbnorm_jax._src.passes.selection import Nearest, filled
from dbnorm_jax._src.passes.streaming import both
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

    def along_rows(self, array: Any, fill: Any) -> Any:
        """What goes with the rows, [num_rows, ...] or None, split like them."""
        placement = self.placement
        return None if array is None else layout.split(array, placement, placement.bank, fill=fill)

    def along_items(self, tree: Any, fill: Any, dim: int = 0) -> Any:
        """A pytree of what goes with the gallery items, split like them along an axis."""
        split = partial(layout.split, axis=self.placement.gallery, dim=dim, fill=fill)
        return jax.tree.map(lambda array: split(array, self.placement), tree)

    def on_devices(self, local: Callable[..., Any], arrays: Any, specs: Any, out: Any) -> Any:
        """`local` of each device's part of the arrays."""
        mesh = self.placement.mesh
        if mesh is None:
            return local(*arrays)
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)(*arrays)


def checked(
    placement: Layout,
    similarity_fn: SimilarityFn,
    chunk_size: int,
    *,
    known: bool = False,
    **embeddings: Any,
) -> tuple[Split, jax.Array, jax.Array]:
    """Bank rows or queries, and the gallery: checked and split; and how they are.

    Of a gallery that is known the values have been checked.
    """
    here = placement.mesh is None
    for name, value in embeddings.items():
        # For a mesh, arrays of a host stay there, and those that are split stay split.
        if here or not isinstance(value, jax.Array):
            embeddings[name] = (checks.as_array if here else checks.numeric)(name, value)
        checks.check_embeddings(name, embeddings[name])
    (first, rows), (second, items) = embeddings.items()
    checks.same_dimension(first, rows, second, items)
    split = {
        first: layout.split(rows, placement, placement.bank),
        second: layout.split(items, placement, placement.gallery),
    }
    # Of the global arrays: every process finds the same, and raises alike.
    looked_at = {first: split[first]} if known else split
    for name, array in looked_at.items():
        checks.check_finite(name, array)
    check_rows(similarity_fn, **looked_at)
    chunk_size = checks.integer("chunk_size", chunk_size, low=1)
    how = Split(placement, len(rows), len(items), similarity_fn, chunk_size)
    return how, split[first], split[second]


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
    items, rows = split.items, split.rows

    def local(bank: Any, gallery: Any, beta: Any, weights: Any, exclude: Any) -> tuple[Any, ...]:
        if weights is None and rows.valid is not None:
            weights = rows.valid.astype(beta.dtype)
        found = banks.bank_means(
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
        statistics = found.named(beta, k)
        if rows.axis is not None:
            statistics = all_merge(statistics, rows.axis)
        return statistics.means, statistics.k_occurrence

    arrays = (bank, gallery, beta, weights, exclude)
    specs = (P(rows.axis), P(items.axis), P(), P(rows.axis), P(rows.axis))
    fields = split.on_devices(local, arrays, specs, P(*[None] * beta.ndim, items.axis))
    means, k_occurrence = jax.tree.map(
        lambda field: layout.whole(field, split.placement, items.total, dim=beta.ndim), fields
    )
    return BankStatistics.of(means, beta, k_occurrence, k)


def _own_among_nearest(nearest: Nearest, *, items: Shard, k: int) -> Nearest:
    """Of the k nearest [size, 1, k] on all devices, those that this one holds; others beyond."""
    if items.axis is None:
        return nearest
    if k == 1:  # two numbers per row, however many devices there are
        return nearest._replace(indices=items.local(_first(nearest, items))[:, None, None])
    merged = items.nearest(Nearest(*filled(*(part[:, 0] for part in nearest))), k)
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


class Seen(NamedTuple):
    """Which items which queries see, and which terms act on them; None leaves it open."""

    unseen: Any  # [num_rows, most] int32, gallery rows, -1 for none
    valid: Any  # [num_gallery] bool
    gates: Any  # [num_rows, num_terms]

    def options(self, split: Split) -> dict[str, Any]:
        """Of the streamed functions, on one device."""
        items = split.items
        unseen = None if self.unseen is None else self.unseen - items.start
        return {"unseen": unseen, "valid": both(items.valid, self.valid), **split.options}


@partial(jax.jit, static_argnames=("split", "k", "precision"))
def top_k(*arrays: Any, split: Split, k: int, precision: str | None = None) -> SearchResult:
    """The k best items of a gallery split over devices; arguments as of `_searched`."""
    return _searched(*arrays, split=split, k=k, precision=precision)[0]


@partial(jax.jit, static_argnames=("split", "k", "precision"))
def are_certified(*arrays: Any, split: Split, k: int, precision: str | None = None) -> jax.Array:
    """[num_rows] bool, the queries of which the first pass proves what `top_k` finds."""
    return _searched(*arrays, split=split, k=k, precision=precision)[1]


def _searched(
    queries: jax.Array,
    gallery: jax.Array,
    correction: Correction | None,
    seen: Seen,
    low: LowItems | None = None,
    *,
    split: Split,
    k: int,
    precision: str | None,
) -> tuple[SearchResult, jax.Array]:
    """The k best items, and which queries are certified; None without a gallery in bfloat16."""
    items = split.items
    dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype)
    split = split._replace(chunk_size=split.placement.queries_at_once(split.chunk_size))
    of_device = min(k, items.size)

    def nearest(search: Any, correction: Any, seen: Seen, *, combined: bool) -> Nearest:
        def lists(offsets: Any, mixtures: Any) -> tuple[Nearest, jax.Array]:
            found = search(offsets, mixtures, k=of_device)
            return found, _first(found, items)

        found = _over_gates(lists, search, correction, seen, items, dtype, combined=combined)
        return items.nearest(found, k)

    def exact(queries: Any, gallery: Any, correction: Any, seen: Seen, _: Any) -> tuple[Any, Any]:
        search = partial(nearest_items, queries, gallery, **seen.options(split))
        found = nearest(search, correction, seen, combined=True)
        return found, jnp.zeros_like(found.indices[:, 0], dtype=bool)

    def certified(
        queries: Any, gallery: Any, correction: Any, seen: Seen, low: Any
    ) -> tuple[Any, Any]:
        proofs = []

        def search(offsets: Any, mixtures: Any, k: int) -> Nearest:
            found, proof = certified_items(
                queries, gallery, low, offsets, mixtures, k=k, **seen.options(split)
            )
            proofs.append(proof)
            return found

        found = nearest(search, correction, seen, combined=False)
        failing = items.sum((~jnp.stack(proofs)).sum(axis=0, dtype=jnp.int32))
        return found, failing == 0

    def local(*arrays: Any) -> tuple[Any, Any]:
        if low is None or not pays(of_device, items.size):
            return exact(*arrays)
        choose = partial(by_platform, certified, exact, k=of_device, precision=precision)
        return choose(num_rows=len(arrays[0]), num_items=items.size)(*arrays)

    arrays, rows = (queries, gallery, correction, seen, low), P(split.rows.axis)
    how: Any = P()
    if low is not None:
        along: Any = P(split.items.axis)
        how = jax.tree.map(lambda _: P(), low)._replace(vectors=along, less=along)
    parts = split.on_devices(local, arrays, (*_specs(split), how), rows)
    found, proof = jax.tree.map(
        lambda part: layout.whole(part, split.placement, split.num_rows), parts
    )
    return SearchResult(*found), proof


def _specs(split: Split) -> tuple[Any, ...]:
    """How queries, the gallery, its correction and what is seen are split."""
    rows, items = P(split.rows.axis), P(split.items.axis)
    return rows, items, P(None, split.items.axis), Seen(rows, items, rows)


def _over_gates(
    lists: Any,
    search: Any,
    correction: Any,
    seen: Seen,
    items: Shard,
    dtype: jnp.dtype,
    *,
    combined: bool = True,
) -> Any:
    """As `gating.over_gates`; the raw nearest item on all devices by a search of its own."""

    def top_1() -> jax.Array:
        return _first(search(None, None, k=1), items)

    take, gates = items.take, seen.gates
    return over_gates(lists, top_1, correction, dtype, take, gates, combined)


@partial(jax.jit, static_argnames=("split", "ties"))
def ranks(
    queries: jax.Array,
    gallery: jax.Array,
    correction: Correction | None,
    seen: Seen,
    right: jax.Array,
    *,
    split: Split,
    ties: str,
) -> jax.Array:
    """Ranks in a gallery split over devices; `right` [num_rows, most] is padded with -1."""
    items = split.items
    dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype)

    def local(queries: Any, gallery: Any, correction: Any, seen: Seen, right: Any) -> jax.Array:
        options = seen.options(split)
        search = partial(nearest_items, queries, gallery, **options)
        own = items.local(right)
        own = jnp.where((right >= 0) & (own < items.size), own, -1)
        own = counts.seen_right(own, options["unseen"], options["valid"])

        def count(offsets: Any, mixtures: Any) -> tuple[counts.Ahead, jax.Array]:
            ahead, nearest = counts.count_ahead(
                queries, gallery, own, offsets, mixtures, merge_best=items.maximum, **options
            )
            return ahead, items.first(Nearest(*filled(*nearest)))

        ahead = _over_gates(count, search, correction, seen, items, dtype)
        ahead = jax.tree.map(items.sum, ahead)
        answered = items.sum((own >= 0).any(axis=1).astype(jnp.int32)) > 0
        return counts.rank(ahead, answered, dtype, ties)

    arrays, rows = (queries, gallery, correction, seen, right), P(split.rows.axis)
    found = split.on_devices(local, arrays, (*_specs(split), rows), rows)
    return layout.whole(found, split.placement, split.num_rows)


@partial(jax.jit, static_argnames="split")
def places(
    queries: jax.Array,
    gallery: jax.Array,
    correction: Correction | None,
    seen: Seen,
    right: jax.Array,
    *,
    split: Split,
) -> tuple[jax.Array, jax.Array]:
    """[num_rows, most] int32 items above each of `right`, and level with it, itself included.

    `right` [num_rows, most] are gallery rows, padded with -1, none repeated; of those that are not
    seen none is level.
    """
    items = split.items
    dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype)

    def local(queries: Any, gallery: Any, correction: Any, seen: Seen, right: Any) -> Any:
        options = seen.options(split)
        search = partial(nearest_items, queries, gallery, **options)
        own = items.local(right)
        own = jnp.where((right >= 0) & (own < items.size), own, -1)
        own = counts.seen_right(own, options["unseen"], options["valid"])

        def count(offsets: Any, mixtures: Any) -> tuple[Any, jax.Array]:
            ahead, nearest = counts.count_ahead_of_each(
                queries, gallery, own, offsets, mixtures, merge_best=items.maximum, **options
            )
            return ahead, items.first(Nearest(*filled(*nearest)))

        found = _over_gates(count, search, correction, seen, items, dtype)
        above, level = jax.tree.map(items.sum, found)
        there = items.sum((own >= 0).astype(jnp.int32))
        return above, (level + 1) * there

    arrays, rows = (queries, gallery, correction, seen, right), P(split.rows.axis)
    above, level = split.on_devices(local, arrays, (*_specs(split), rows), rows)
    return (
        layout.whole(above, split.placement, split.num_rows),
        layout.whole(level, split.placement, split.num_rows),
    )
