"""The streamed functions over a device mesh, on one host or many: same results, larger inputs.

    bank rows and queries are split over the mesh axis "bank", gallery items over "gallery"

Each device streams its bank rows against its gallery items and holds nothing else. Then a few
numbers per gallery item are merged along "bank", and short lists per row along "gallery".

    >>> import dbnorm_jax as dbn
    >>> import jax
    >>> import numpy as np
    >>> random = np.random.default_rng(0)
    >>> queries, bank, gallery = random.normal(size=(3, 64, 8)).astype("float32")
    >>> mesh = jax.make_mesh((1, 1), ("bank", "gallery"))    # (2, 4) on eight devices
    >>> statistics = dbn.sharding.bank_statistics(bank, gallery, beta=2.0, mesh=mesh)
    >>> correction = dbn.dynamic_inverted_softmax(statistics)
    >>> scores, indices = dbn.sharding.top_k(queries, gallery, 10, correction, mesh=mesh)
    >>> indices.shape
    (64, 10)

Lengths need not divide; where they do, results stay split like the inputs, and inputs that are
split already stay where they are. Axis types may be Auto or Explicit. Everything works inside
`jax.jit` and `jax.grad`. `docs/scaling.md` has several hosts, and what it costs.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dbnorm_jax._src.core import checks, numerics, relevance
from dbnorm_jax._src.core.similarity import SimilarityFn, check_rows, dot_product
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities, SearchResult
from dbnorm_jax._src.passes import counts, streaming
from dbnorm_jax._src.passes.gating import check_streamed
from dbnorm_jax._src.places.mesh import drive, layout
from dbnorm_jax._src.places.mesh.drive import Split
from dbnorm_jax._src.places.mesh.exchange import Axis
from dbnorm_jax._src.places.mesh.layout import Layout

_BETA_UNIT = " (inverse temperature, in 1/[unit of similarity])"


def bank_statistics(
    bank: Any,
    gallery: Any,
    *,
    beta: Any,
    mesh: Mesh,
    k: int = 1,
    weights: Any = None,
    exclude: Any = None,
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> BankStatistics:
    """Bank statistics over a device mesh.

    Equal to `stream_bank_statistics` up to rounding, with an activation set of the whole gallery:
    the k nearest of each bank row are those of all devices.

    Args:
      bank: [num_bank, dim] embeddings of bank items, on one host, sharded, or of NumPy.
      gallery: [num_gallery, dim] embeddings of gallery items, likewise.
      beta: [...] inverse temperature > 0, in 1/[unit of similarity].
      mesh: the devices.
      k: size of the neighbourhoods behind the activation set, 0 for none (static).
      weights: optional [num_bank] multiplicities >= 0 (0 absent, 2 twice).
      exclude: optional int [num_bank] or [num_bank, most], gallery rows that a bank item does not
        enter, -1 for none: its own copy, or the items that are right for it.
      bank_axis: mesh axis over which bank rows are split; a tuple of several, or None for whole.
      gallery_axis: mesh axis over which gallery items are split, likewise.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: bank rows held at once on a device (static).

    Returns:
      BankStatistics with fields [..., num_gallery], split over `gallery_axis` where its size
      divides num_gallery, else a copy on every device.

    Raises:
      ValueError: as `stream_bank_statistics`; a mesh without the axis.
      TypeError: embeddings that are not floating point, a `mesh` that is none.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> bank, gallery = jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> mesh = jax.make_mesh((1,), ("bank",))
      >>> statistics = dbn.sharding.bank_statistics(
      ...     bank, gallery, beta=20.0, mesh=mesh, gallery_axis=None)
      >>> print(statistics.k_occurrence, jnp.array_str(statistics.bias, precision=3))
      [1 1] [0.965 0.765]

    References:
      As `bank_statistics`.
    """
    placement = layout.layout(mesh, bank_axis, gallery_axis)
    split, bank, gallery = _split(placement, similarity_fn, chunk_size, bank=bank, gallery=gallery)
    k = checks.integer("k", k, low=0, high=split.num_gallery, of=" (gallery items)")
    dtype = numerics.accumulation_dtype(bank.dtype, gallery.dtype)
    beta = checks.positive("beta", beta, dtype, _BETA_UNIT)
    if weights is None and bank.shape[0] > split.num_rows:
        weights = np.ones(split.num_rows, np.float32)
    if weights is not None:
        weights = checks.bank_weights("weights", weights, (split.num_rows,), dtype)
        checks.one_per_bank_row("weights", weights, split.num_rows)
        weights = layout.split(weights, placement, placement.bank, fill=0)
    if exclude is not None:
        exclude = checks.exclusions(exclude, split.num_rows, split.num_gallery)
        exclude = layout.split(exclude, placement, placement.bank, fill=-1)
    return drive.bank_statistics(
        bank,
        gallery,
        layout.split(beta, placement, None),
        weights,
        exclude,
        split=split,
        k=k,
    )


def largest_similarities(
    bank: Any,
    gallery: Any,
    *,
    k: int,
    mesh: Mesh,
    exclude: Any = None,
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> LargestSimilarities:
    """The k largest similarities of each gallery item to a bank, over a device mesh.

    Equal to `stream_largest_similarities` up to rounding.

    Args:
      bank: [num_bank, dim] embeddings of bank items, on one host, sharded, or of NumPy.
      gallery: [num_gallery, dim] embeddings of gallery items, likewise.
      k: how many per gallery item, at least 1 (static); may exceed the bank.
      mesh: the devices.
      exclude: optional int [num_bank] or [num_bank, most], gallery rows that a bank item does not
        enter, -1 for none: its own copy, or the items that are right for it.
      bank_axis: mesh axis over which bank rows are split; a tuple of several, or None for whole.
      gallery_axis: mesh axis over which gallery items are split, likewise.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: gallery items held at once on a device (static).

    Returns:
      LargestSimilarities of [k, num_gallery], split over `gallery_axis` where its size divides
      num_gallery, else a copy on every device.

    Raises:
      ValueError: as `stream_largest_similarities`; a mesh without the axis.
      TypeError: embeddings that are not floating point, a `mesh` that is none.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> gallery = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> mesh = jax.make_mesh((1, 1), ("bank", "gallery"))
      >>> print(dbn.sharding.largest_similarities(gallery, gallery, k=1, mesh=mesh).values)
      [[1. 1.]]
    """
    placement = layout.layout(mesh, bank_axis, gallery_axis)
    split, bank, gallery = _split(placement, similarity_fn, chunk_size, bank=bank, gallery=gallery)
    k = checks.integer("k", k, low=1)
    if exclude is not None:
        exclude = checks.exclusions(exclude, split.num_rows, split.num_gallery)
        exclude = layout.split(exclude, placement, placement.bank, fill=-1)
    return drive.largest_similarities(
        bank,
        gallery,
        exclude,
        split=split,
        k=k,
    )


def top_k(
    queries: Any,
    gallery: Any,
    k: int,
    correction: Correction | None = None,
    *,
    mesh: Mesh,
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> SearchResult:
    """The k best gallery items of each query, over a device mesh.

    Equal to `stream_top_k`, exact: each device finds the k best of its gallery items, and of these
    the k best stay. The gates are those of the best item of the whole gallery.

    Args:
      queries: [num_queries, dim] embeddings, on one host, sharded, or of NumPy.
      gallery: [num_gallery, dim] embeddings of gallery items, likewise.
      k: neighbours per query, between 1 and num_gallery (static).
      correction: optional, fields [num_terms, num_gallery].
      mesh: the devices.
      bank_axis: mesh axis over which queries are split; a tuple of several, or None for whole.
      gallery_axis: mesh axis over which gallery items are split, likewise.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: queries held at once on a device (static); half of them where more than two
        devices are one processor.

    Returns:
      SearchResult of [num_queries, k], best first, ties to the lowest gallery index; split over
      `bank_axis` where its size divides num_queries, else a copy on every device.

    Raises:
      ValueError: as `stream_top_k`; a mesh without the axis.
      TypeError: embeddings that are not floating point, a `mesh` that is none.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> gallery = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> mesh = jax.make_mesh((1, 1), ("bank", "gallery"))
      >>> print(dbn.sharding.top_k(jnp.array([[0.6, 0.8]]), gallery, 1, mesh=mesh).indices)
      [[1]]
    """
    placement = layout.layout(mesh, bank_axis, gallery_axis)
    split, queries, gallery = _split(
        placement, similarity_fn, chunk_size, queries=queries, gallery=gallery
    )
    k = checks.integer("k", k, low=1, high=split.num_gallery, of=" (gallery items)")
    return drive.top_k(
        queries,
        gallery,
        _split_correction(correction, placement, split.num_gallery),
        split=split._replace(chunk_size=placement.queries_at_once(split.chunk_size)),
        k=k,
    )


def ranks(
    queries: Any,
    gallery: Any,
    relevant: Any,
    correction: Correction | None = None,
    *,
    mesh: Mesh,
    ties: str = "average",
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> jax.Array:
    """Rank of each query's best right item, over a device mesh.

    Equal to `metrics.stream_ranks`: the best right item of all devices is found first, then each
    device counts its own items ahead of it.

    Args:
      queries: [num_queries, dim] embeddings, on one host, sharded, or of NumPy.
      gallery: [num_gallery, dim] embeddings of gallery items, likewise.
      relevant: the right items, in one of the forms of `metrics`, as for `metrics.stream_ranks`.
      correction: optional, fields [num_terms, num_gallery].
      mesh: the devices.
      ties: as in `metrics.ranks` (static).
      bank_axis: mesh axis over which queries are split; a tuple of several, or None for whole.
      gallery_axis: mesh axis over which gallery items are split, likewise.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: queries held at once on a device (static).

    Returns:
      [num_queries] float, 1 = best; +inf for queries without a right item. Split over `bank_axis`
      where its size divides num_queries, else a copy on every device.

    Raises:
      ValueError: as `metrics.stream_ranks`; a mesh without the axis.
      TypeError: embeddings that are not floating point, a `mesh` that is none.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> gallery = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> mesh = jax.make_mesh((1, 1), ("bank", "gallery"))
      >>> print(dbn.sharding.ranks(jnp.array([[0.6, 0.8]]), gallery, jnp.array([0]), mesh=mesh))
      [2.]
    """
    placement = layout.layout(mesh, bank_axis, gallery_axis)
    split, queries, gallery = _split(
        placement, similarity_fn, chunk_size, queries=queries, gallery=gallery
    )
    right = relevance.as_rows(relevant, (split.num_rows, split.num_gallery))
    return drive.ranks(
        queries,
        gallery,
        layout.split(right, placement, placement.bank, fill=-1),
        _split_correction(correction, placement, split.num_gallery),
        split=split,
        ties=counts.check_ties(ties),
    )


def _split(
    placement: Layout, similarity_fn: SimilarityFn, chunk_size: int, **embeddings: Any
) -> tuple[Split, jax.Array, jax.Array]:
    """Bank rows or queries, and the gallery: checked and split; and how they are."""
    arrays = {name: checks.numeric(name, value) for name, value in embeddings.items()}
    for name, array in arrays.items():
        checks.check_embeddings(name, array)
    (first, rows), (second, items) = arrays.items()
    checks.same_dimension(first, rows, second, items)
    split = {
        name: layout.split(array, placement, axis)
        for (name, array), axis in zip(
            arrays.items(), (placement.bank, placement.gallery), strict=True
        )
    }
    # Of the global arrays: every process finds the same, and raises alike.
    for name, array in split.items():
        checks.check_finite(name, array)
    check_rows(similarity_fn, **split)
    chunk_size = checks.integer("chunk_size", chunk_size, low=1)
    how = Split(placement, len(rows), len(items), similarity_fn, chunk_size)
    return how, split[first], split[second]


def _split_correction(
    correction: Correction | None, placement: Layout, num_gallery: int
) -> Correction | None:
    if correction is None:
        return None
    check_streamed(correction, num_gallery)
    return jax.tree.map(
        lambda field: layout.split(field, placement, placement.gallery, dim=1, fill=0), correction
    )
