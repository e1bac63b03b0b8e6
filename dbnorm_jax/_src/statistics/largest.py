"""Each gallery item's largest similarities to a bank: what CSLS and NNN average.

    similarities [num_bank, num_gallery]  ->  LargestSimilarities [k, num_gallery]

They merge over parts of a bank, like bank statistics.

    >>> import dbnorm_jax as dbn
    >>> import jax.numpy as jnp
    >>> bank, gallery = jnp.array([[1.0, 0.0], [0.5, 1.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(dbn.stream_largest_similarities(bank, gallery, k=1).values)
    [[1. 1.]]
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.similarity import SimilarityFn, check_rows, dot_product, tile
from dbnorm_jax._src.core.types import LargestSimilarities
from dbnorm_jax._src.passes import selection, sorting, streaming
from dbnorm_jax._src.passes.nearest import nearest_items
from dbnorm_jax._src.passes.streaming import Block, scan_chunks

# Bank rows and gallery items that a network sorts at once, few enough for a processor's cache; and
# the bank rows per place up to which it is the faster.
_ROWS = 1024
_ITEMS = 256
_ROWS_PER_PLACE = 192


def largest_similarities(similarities: Any, *, k: int, where: Any = None) -> LargestSimilarities:
    """The k largest entries of each column of a similarity matrix.

    Args:
      similarities: [..., num_bank, num_gallery], higher is closer.
      k: how many per gallery item, at least 1 (static); may exceed the bank.
      where: optional bool mask, [..., num_bank] of valid bank rows or [..., num_bank, num_gallery]
        of valid pairs.

    Returns:
      LargestSimilarities of [..., k, num_gallery].

    Raises:
      ValueError: an empty or non-finite matrix, k < 1, a mask that does not fit.
      TypeError: a matrix that is not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> similarities = jnp.array([[0.5, 0.25], [1.0, 0.0], [0.25, 0.75]])
      >>> print(dbn.largest_similarities(similarities, k=2).values)
      [[1.   0.75]
       [0.5  0.25]]
    """
    similarities = checks.similarities("similarities", similarities, rows="bank items")
    k = checks.integer("k", k, low=1)
    if where is not None:
        where = checks.pairs(where, similarities.shape)
    return _largest_similarities(similarities, where, k=k)


@partial(jax.jit, static_argnames="k")
def _largest_similarities(
    similarities: jax.Array, where: jax.Array | None, *, k: int
) -> LargestSimilarities:
    matrix = similarities.astype(numerics.accumulation_dtype(similarities.dtype))
    if where is not None:
        matrix = jnp.where(jnp.broadcast_to(where, matrix.shape), matrix, jnp.nan)
    return LargestSimilarities(selection.largest_of_columns(matrix, k))


def stream_largest_similarities(
    bank: Any,
    gallery: Any,
    *,
    k: int,
    exclude: Any = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> LargestSimilarities:
    """The k largest similarities of each gallery item to a bank, never holding bank x gallery.

    Equal to `largest_similarities(similarity_fn(bank, gallery), k=k)` up to rounding.

    Args:
      bank: [num_bank, dim] embeddings of bank items.
      gallery: [num_gallery, dim] embeddings of gallery items.
      k: how many per gallery item, at least 1 (static); may exceed the bank.
      exclude: optional int [num_bank] or [num_bank, most], gallery rows that a bank item does not
        enter, -1 for none: its own copy, or the items that are right for it.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: gallery items held at once (static).

    Returns:
      LargestSimilarities of [k, num_gallery].

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, k < 1, `exclude` that does not fit.
      TypeError: embeddings that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> gallery = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(dbn.stream_largest_similarities(gallery, gallery, k=1, exclude=[0, 1]).values)
      [[0. 0.]]
    """
    bank, gallery = checks.embeddings("bank", bank), checks.embeddings("gallery", gallery)
    checks.same_dimension("bank", bank, "gallery", gallery)
    check_rows(similarity_fn, bank=bank, gallery=gallery)
    k = checks.integer("k", k, low=1)
    chunk_size = checks.integer("chunk_size", chunk_size, low=1)
    if exclude is not None:
        exclude = checks.exclusions(exclude, bank.shape[0], gallery.shape[0])
    return _stream_largest_similarities(
        bank, gallery, exclude, k=k, similarity_fn=similarity_fn, chunk_size=chunk_size
    )


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
            similarity_fn=lambda items, rows: self.similarity_fn(rows, items).T,
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

        def of_items(carry: None, items: Block) -> tuple[None, jax.Array]:
            columns = items.start + lax.iota(jnp.int32, items.rows.shape[0])

            def add_bank_rows(largest: jax.Array, block: Block) -> tuple[jax.Array, None]:
                rows, own, is_valid = block.rows
                similarities = tile(self.similarity_fn, rows, items.rows).astype(dtype)
                counted = numerics.is_number(similarities)
                entering = streaming.both(block.fresh, is_valid)
                if entering is not None:
                    counted &= entering[:, None]
                if own is not None:
                    counted &= streaming.is_apart(own[:, None], columns[None])
                similarities = jnp.where(counted, similarities, -jnp.inf)
                here = sorting.largest_of_columns(similarities, self.k)
                return sorting.merged(largest, here), None

            arrays = (bank, exclude, valid)
            start = jnp.full((self.k, len(columns)), -jnp.inf, dtype)
            start = numerics.varying_like(start, items.rows, arrays)
            return carry, scan_chunks(add_bank_rows, start, arrays, _ROWS)[0].T

        return scan_chunks(of_items, None, gallery, min(self.chunk_size, _ITEMS))[1].T


_stream_largest_similarities = jax.jit(
    nearest_bank_items, static_argnames=("k", "similarity_fn", "chunk_size")
)
