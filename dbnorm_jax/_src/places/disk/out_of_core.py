"""The streamed functions for embeddings that do not fit memory: read in blocks of rows."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dbnorm_jax._src.core import checks, relevance, seen
from dbnorm_jax._src.core.similarity import SimilarityFn, check_streamed, dot_product
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities, SearchResult
from dbnorm_jax._src.passes import counts
from dbnorm_jax._src.passes.streaming import DEFAULT_CHUNK_SIZE
from dbnorm_jax._src.places.disk import fits, search
from dbnorm_jax._src.places.disk.checkpoint import Checkpoint, Progress
from dbnorm_jax._src.places.disk.drive import check_repeatable, joined
from dbnorm_jax._src.places.disk.fits import Settings, row_pair
from dbnorm_jax._src.places.disk.rows import DEFAULT_BLOCK_SIZE, Array, Rows
from dbnorm_jax._src.places.disk.search import Passes


def bank_statistics(
    bank: Any,
    gallery: Any,
    *,
    beta: Any,
    k: int = 1,
    weights: Any = None,
    exclude: Any = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    block_size: int = DEFAULT_BLOCK_SIZE,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
) -> BankStatistics:
    """Bank statistics in one pass over the bank, with one over the gallery for each of its blocks.

    Equal to `stream_bank_statistics` up to rounding; the k-occurrence is exact.

    Args:
      bank: [num_bank, dim] array or iterable of blocks of rows.
      gallery: [num_gallery, dim] likewise; an iterable must begin anew for each block of the bank.
      beta: [...] inverse temperature, 1e-37 to 1e37, in 1/[unit of similarity].
      k: size of the neighborhoods behind the activation set, 0 for none.
      weights: optional [num_bank] multiplicities >= 0.
      exclude: optional int [num_bank] or [num_bank, most], gallery rows that a bank item does not
        enter, -1 for none: its own copy, or the items that are right for it.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n].
      chunk_size: bank rows computed with at once.
      block_size: rows read at once; results do not depend on it beyond rounding.
      checkpoint: optional file for the sums so far. A call that finds it goes on from there, with
        the very result of a call that was not interrupted, and returns at once what is complete;
        files that have changed since are refused, and so is a symbolic link. Delete it when the
        result is saved.
      checkpoint_every: seconds between two writes of the checkpoint.
      progress: optional, called with (bank rows done, gallery items that the next have passed).

    Returns:
      BankStatistics with fields [..., num_gallery].

    Raises:
      ValueError: as `stream_bank_statistics`; an iterator where more than one pass is needed; a
        checkpoint of other work, or of rows that have changed.
      TypeError: embeddings that are not floating point, or traced.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> bank, gallery = np.array([[1.0, 0.0], [0.6, 0.8]]), np.eye(2)
      >>> statistics = dbn.out_of_core.bank_statistics(bank, gallery, beta=20.0)
      >>> print(statistics.k_occurrence, np.array_str(np.asarray(statistics.bias), precision=3))
      [1 1] [0.965 0.765]
    """
    return fits.fit_bank(
        bank,
        gallery,
        Settings(similarity_fn, chunk_size, block_size),
        beta=beta,
        k=k,
        weights=weights,
        exclude=exclude,
        checkpoint=_kept(checkpoint, checkpoint_every),
        progress=progress,
    ).state


def largest_similarities(
    bank: Any,
    gallery: Any,
    *,
    k: int,
    exclude: Any = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    block_size: int = DEFAULT_BLOCK_SIZE,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
) -> LargestSimilarities:
    """The k largest similarities of each gallery item to a bank: what CSLS and NNN average.

    Equal to `stream_largest_similarities` up to rounding.

    Args:
      bank: [num_bank, dim] array or iterable of blocks of rows, which must begin anew for each
        block of the gallery.
      gallery: [num_gallery, dim] likewise, passed over once.
      k: how many per gallery item, at least 1; may exceed the bank.
      exclude: optional int [num_bank] or [num_bank, most], gallery rows that a bank item does not
        enter, -1 for none: its own copy, or the items that are right for it.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n].
      chunk_size: gallery items computed with at once.
      block_size: rows read at once; results do not depend on it beyond rounding.
      checkpoint: optional file for the gallery items done, as for `bank_statistics`. What the block
        of items on its way has found is not kept.
      checkpoint_every: seconds between two writes of the checkpoint.
      progress: optional, called with (gallery items done, bank rows that the next have passed).

    Returns:
      LargestSimilarities of [k, num_gallery].

    Raises:
      ValueError: as `stream_largest_similarities`; an iterator where more than one pass is needed;
        a checkpoint of other work, or of rows that have changed.
      TypeError: embeddings that are not floating point, or traced.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> found = dbn.out_of_core.largest_similarities([np.eye(2)], np.eye(2), k=1, exclude=[0, 1])
      >>> print(found.values)
      [[0. 0.]]
    """
    return fits.fit_largest(
        bank,
        gallery,
        Settings(similarity_fn, chunk_size, block_size),
        k=k,
        exclude=exclude,
        checkpoint=_kept(checkpoint, checkpoint_every),
        progress=progress,
    ).state


def _kept(path: str | os.PathLike[str] | None, every: float) -> Checkpoint | None:
    return None if path is None else Checkpoint(Path(path), float(every))


def top_k(
    queries: Any,
    gallery: Any,
    k: int,
    correction: Correction | None = None,
    *,
    exclude: Any = None,
    where: Any = None,
    gates: Any = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    block_size: int = DEFAULT_BLOCK_SIZE,
) -> SearchResult:
    """The k best gallery items of each query, exact.

    Equal to `stream_top_k` up to rounding. `top_k_blocks` gives the same block by block, for
    results that do not fit memory either.

    Args:
      queries: [num_queries, dim] array or iterable of blocks of rows.
      gallery: [num_gallery, dim] likewise; an iterable must begin anew for each block of queries.
      k: neighbors per query, between 1 and num_gallery.
      correction: optional, fields [num_terms, num_gallery].
      exclude: as in `stream_top_k`.
      where: as in `stream_top_k`.
      gates: as in `stream_top_k`.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n].
      chunk_size: queries computed with at once.
      block_size: rows read at once; results do not depend on it beyond rounding.

    Returns:
      SearchResult of NumPy arrays [num_queries, k], best first, ties to the lowest gallery index.

    Raises:
      ValueError: as `stream_top_k`; an iterator where more than one pass is needed.
      TypeError: embeddings that are not floating point, or traced.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> print(dbn.out_of_core.top_k(np.array([[0.6, 0.8]]), [np.eye(2)], 1).indices)
      [[1]]
    """
    settings = Settings(similarity_fn, chunk_size, block_size)
    blocks = _top_k_blocks(queries, gallery, k, correction, settings, exclude, where, gates)
    found: SearchResult = joined(list(blocks))
    return found


def top_k_blocks(
    queries: Any,
    gallery: Any,
    k: int,
    correction: Correction | None = None,
    *,
    exclude: Any = None,
    where: Any = None,
    gates: Any = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    block_size: int = DEFAULT_BLOCK_SIZE,
) -> Iterator[SearchResult]:
    """`top_k` of one block of queries after the other: nothing grows with their number.

    Args:
      queries: as in `top_k`.
      gallery: as in `top_k`.
      k: as in `top_k`.
      correction: as in `top_k`.
      exclude: as in `top_k`.
      where: as in `top_k`.
      gates: as in `top_k`.
      similarity_fn: as in `top_k`.
      chunk_size: as in `top_k`.
      block_size: as in `top_k`; each result is of at most so many queries.

    Returns:
      Iterator of SearchResult of NumPy arrays [at most block_size, k].

    Raises:
      ValueError: as `top_k`.
      TypeError: as `top_k`.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> for found in dbn.out_of_core.top_k_blocks(np.eye(3), np.eye(3), 1, block_size=2):
      ...     print(found.indices.T)
      [[0 1]]
      [[2]]
    """
    settings = Settings(similarity_fn, chunk_size, block_size)
    return _top_k_blocks(queries, gallery, k, correction, settings, exclude, where, gates)


def _top_k_blocks(
    queries: Any, gallery: Any, k: int, correction: Any, settings: Settings, *seen_by: Any
) -> Iterator[SearchResult]:
    passes = _passes(queries, gallery, correction, settings, *seen_by)
    k = checks.integer("k", k, low=1, high=passes.gallery.num_rows, of=" (gallery items)")
    return (jax.tree.map(np.asarray, found) for _, found in search.top_k_blocks(passes, k))


def ranks(
    queries: Any,
    gallery: Any,
    relevant: Any,
    correction: Correction | None = None,
    *,
    exclude: Any = None,
    where: Any = None,
    gates: Any = None,
    ties: str = "average",
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    block_size: int = DEFAULT_BLOCK_SIZE,
) -> Array:
    """Rank of each query's best right item; equal to `metrics.stream_ranks` up to rounding.

    The gallery is passed over twice for each block of queries: the right items are fetched first.

    Args:
      queries: [num_queries, dim] array or iterable of blocks of rows.
      gallery: [num_gallery, dim] array or iterable of blocks of rows that begins anew each time.
      relevant: the right items, in one of the forms of `metrics`.
      correction: optional, fields [num_terms, num_gallery].
      ties: as in `metrics.ranks`.
      exclude: as in `metrics.stream_ranks`.
      where: as in `metrics.stream_ranks`.
      gates: as in `metrics.stream_ranks`.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n].
      chunk_size: queries computed with at once.
      block_size: rows read at once; results do not depend on it beyond rounding.

    Returns:
      NumPy [num_queries] float, 1 = best; +inf for queries without a right item.

    Raises:
      ValueError: as `metrics.stream_ranks`; an iterator for the gallery.
      TypeError: embeddings that are not floating point, or traced.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> print(dbn.out_of_core.ranks(np.array([[0.6, 0.8]]), [np.eye(2)], np.array([0])))
      [2.]
    """
    settings = Settings(similarity_fn, chunk_size, block_size)
    passes = _passes(queries, gallery, correction, settings, exclude, where, gates)
    ties = counts.check_ties(ties)
    num_queries, num_gallery = passes.queries.num_rows, passes.gallery.num_rows
    is_array = not isinstance(relevant, tuple)
    # Of an iterable the length is known, and compared, after its first pass.
    if is_array:
        relevant = checks.numeric("relevant", relevant)
        rows, columns = (*relevant.shape, 0, 0)[:2]
        columns = columns if relevant.dtype == bool else checks.MOST_ROWS
    else:
        rows, columns = np.size(relevant[:1]) - 1, checks.MOST_ROWS
    shape = (
        rows if num_queries is None else num_queries,
        columns if num_gallery is None else num_gallery,
    )
    right = np.asarray(relevance.as_rows(relevant, shape))
    found = []
    for ranks in search.rank_blocks(passes, right, ties):
        num_gallery = passes.gallery.num_rows
        if is_array and num_gallery is not None:
            relevance.check_matrix(relevant, (len(right), num_gallery))
        found.append(ranks)
    total = np.concatenate(found)
    if len(total) != len(right):
        raise checks.BadValueError(
            "relevant",
            f" must have one entry (or row) per query, expected {len(total)}, got {len(right)}",
        )
    return total


def fingerprint(rows: Any) -> dict[str, Any]:
    """What a matrix is known by: SHA-256 of all its rows, with their number, dim and dtype.

    Of the rows as they are computed with (float64 becomes float32 unless x64 is enabled), whatever
    the blocks, the byte order and the order of the axes in memory. For `save(..., provenance=)`.

    Args:
      rows: [num_rows, dim] array or iterable of blocks of rows.

    Returns:
      A dict of sha256, rows, dim and dtype.

    Raises:
      ValueError: empty or non-finite rows.
      TypeError: rows that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> described = dbn.out_of_core.fingerprint(np.eye(4))
      >>> print(described["rows"], described["dim"], described["dtype"])
      4 4 float32
      >>> described == dbn.out_of_core.fingerprint(np.split(np.eye(4), 2))
      True
    """
    return Rows("rows", rows, DEFAULT_BLOCK_SIZE).hash()


def _passes(
    queries: Any,
    gallery: Any,
    correction: Correction | None,
    settings: Settings,
    exclude: Any,
    where: Any,
    gates: Any,
) -> Passes:
    queries, gallery = row_pair(("queries", queries), ("gallery", gallery), settings)
    num_queries, num_gallery = queries.num_rows, gallery.num_rows
    if correction is not None:
        check_streamed(correction, correction.num_gallery if num_gallery is None else num_gallery)
        correction = checks.unsplit(correction)
    exclude = seen.exclusions(exclude, num_queries, num_gallery, rows="queries")
    where = seen.items(where, num_gallery)
    gates = seen.gates(gates, correction, num_queries)
    queries.in_any_number = True
    queries.per_row = jax.tree.map(np.asarray, {"exclude": exclude, "gates": gates})
    gallery.per_row = jax.tree.map(np.asarray, {"where": where})
    check_repeatable(queries, gallery)
    passes = Passes(queries, gallery, correction, settings.chunk_size)
    passes.check_gallery()
    return passes
