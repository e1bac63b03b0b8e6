"""Search and ranks with queries and galleries that need not fit memory, block against block.

For each block of queries one pass over the gallery, whose blocks come in order, so that the lists
of nearest items carry on from one to the next and ties go to the lowest gallery index. The lists
under every combination of gates grow side by side; which of them counts is known at the end.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.similarity import SimilarityFn, check_similarity
from dbnorm_jax._src.core.types import Correction, SearchResult
from dbnorm_jax._src.passes import nearest as search
from dbnorm_jax._src.passes import sweep
from dbnorm_jax._src.passes.counts import (
    Ahead,
    Best,
    add_right,
    ask,
    counts_pass,
    distinct,
    paired_scores,
    seen_right,
    start_best,
)
from dbnorm_jax._src.passes.gating import check_streamed, over_gates
from dbnorm_jax._src.passes.selection import Nearest
from dbnorm_jax._src.places.disk import drive
from dbnorm_jax._src.places.disk.drive import Begin, Made
from dbnorm_jax._src.places.disk.fingerprints import Array
from dbnorm_jax._src.places.disk.rows import (
    RowBlock,
    Rows,
    check_same_dimension,
    of_prepared,
    on_device,
)


class Asking(NamedTuple):
    """A block of queries."""

    rows: jax.Array  # [size, dim]
    unseen: jax.Array | None  # [size, most] int32, items that a query never sees, -1 for none
    gates: jax.Array | None  # [size, num_terms], in place of those of the raw best items


class Passes(NamedTuple):
    """Passes over a gallery for one block of queries after the other."""

    queries: Rows
    gallery: Rows
    correction: Correction | None
    similarity_fn: SimilarityFn
    chunk_size: int
    exclude: Array | None = None  # [num_queries, most]
    where: Array | None = None  # [num_gallery] bool
    gates: Array | None = None  # [num_queries, num_terms]

    def blocks(self) -> Iterator[tuple[RowBlock, Asking]]:
        """The queries, block by block."""
        for block in self.queries.read():
            own = (
                None if given is None else block.filled(given)
                for given in (self.exclude, self.gates)
            )
            if self.correction is not None:
                check_similarity("correction", self.correction, self.similarity_fn, block.rows)
            yield block, Asking(on_device(block, self.similarity_fn), *own)

    def check(self) -> None:
        """Raises for what can be known to be wrong before anything is read."""
        drive.check_repeatable(self.queries, self.gallery)
        self.check_gallery()

    def check_gallery(self) -> None:
        """Raises for what is of another gallery, once the length of this one is known."""
        num_gallery = self.gallery.num_rows
        if num_gallery is None:
            return
        if self.correction is not None:
            check_streamed(self.correction, num_gallery)
        if self.exclude is not None:
            checks.indices("exclude", self.exclude, low=-1, high=num_gallery)

    def nearest(self, asking: Asking, k: int, *lists: Any, hashed: bool = False) -> Nearest:
        """[num_queries, num_lists, k], best first, by one pass over the gallery."""
        offsets, mixtures = lists or (None, None)
        num_lists = search.count_lists(offsets, mixtures)

        def begin(items: np.dtype[Any]) -> tuple[Made, sweep.Rows]:
            check_same_dimension(self.queries, self.gallery)
            dtype = self.dtype(asking.rows, items, offsets)
            tiling = drive.tiling(self.similarity_fn, dtype, self.chunk_size, search.columns_for(k))
            made = Made(search.nearest_pass, (num_lists, k, dtype), tiling)
            return made, sweep.Rows(asking.rows, (mixtures, asking.unseen))

        return self.through(begin, (search.by_list(offsets), None), hashed=hashed)

    def through(self, begin: Begin, own: Any, *, hashed: bool = False) -> Any:
        """The outputs of one pass over the gallery."""
        outputs = drive.through(begin, self.gallery, own, where=self.where, hashed=hashed)
        self.check_gallery()
        return outputs

    def dtype(self, rows: jax.Array, items: Any, offsets: jax.Array | None) -> jnp.dtype:
        """Of the scores."""
        known = (rows.dtype, items) if offsets is None else (rows.dtype, items, offsets.dtype)
        return numerics.accumulation_dtype(*known)

    def over_gates(self, lists: Any, asking: Asking) -> Any:
        """As `gating.over_gates`, with a pass of its own for the gates where one is needed."""

        def top_1() -> jax.Array:
            return self.nearest(asking, 1).indices[:, 0, 0]

        dtype = asking.rows.dtype
        return over_gates(lists, top_1, self.correction, dtype, gates=asking.gates)


def top_k_blocks(
    passes: Passes, k: int, *, hashed: bool = False
) -> Iterator[tuple[RowBlock, SearchResult]]:
    """The k nearest items of each block of queries, as soon as its pass is over.

    With `hashed`, `passes.gallery.fingerprint` is there after the first.
    """
    for block, asking in passes.blocks():

        def lists(offsets: Any, mixtures: Any) -> tuple[Nearest, jax.Array]:
            nearest = passes.nearest(asking, k, offsets, mixtures, hashed=hashed)  # noqa: B023
            return nearest, nearest.indices[:, 0, 0]

        found = passes.over_gates(lists, asking)
        hashed = False
        num_gallery = passes.gallery.num_rows
        if num_gallery is not None and k > num_gallery:
            raise checks.BadValueError(
                "k", f" must be between 1 and {num_gallery} (gallery items), got {k}"
            )
        yield block, SearchResult(*(part[: block.num_rows] for part in found))


def rank_blocks(passes: Passes, right: Array) -> Iterator[tuple[Ahead, Array, np.dtype[Any]]]:
    """(Ahead of [num_queries], whether each has a right item, dtype of the gallery) by blocks.

    Args:
      passes: over the gallery, two for each block of queries: one for the right items' vectors.
      right: [num_queries, num_right] int32 gallery rows, -1 for none.
    """
    passes.gallery.check_repeatable("the right items are read first, then the others counted")
    for block, asking in passes.blocks():
        if block.stop > len(right):
            raise checks.BadValueError(
                "relevant",
                f" must have one entry (or row) per query, expected at least "
                f"{block.stop}, got {len(right)}",
            )
        own = _distinct(seen_right(block.filled(right), asking.unseen, passes.where))
        vectors = _vectors(passes, np.asarray(own))

        def lists(offsets: Any, mixtures: Any) -> tuple[Ahead, jax.Array]:
            ahead, first = _counted(passes, asking, own, vectors, offsets, mixtures)  # noqa: B023
            return ahead, first.indices

        ahead = passes.over_gates(lists, asking)
        assert passes.gallery.dtype is not None
        answered: Array = np.any(np.asarray(own)[: block.num_rows] >= 0, axis=1)
        yield Ahead(*(part[: block.num_rows] for part in ahead)), answered, passes.gallery.dtype


def _vectors(passes: Passes, right: Array) -> Array:
    """[num_queries, num_right, dim] embeddings of the right items; zero where there is none."""
    vectors = None
    for block in passes.gallery.read():
        check_same_dimension(passes.queries, passes.gallery)
        rows = np.asarray(on_device(block, passes.similarity_fn))
        if vectors is None:
            vectors = np.zeros((*right.shape, rows.shape[1]), rows.dtype)
        inside = (right >= block.start) & (right < block.stop)
        vectors[inside] = rows[right[inside] - block.start]
    passes.check_gallery()
    assert vectors is not None
    assert passes.gallery.num_rows is not None
    last = int(right.max(initial=-1))
    if last >= passes.gallery.num_rows:
        raise checks.BadValueError(
            "relevant",
            f" must hold gallery rows between -1 (-1 marks none) and "
            f"{passes.gallery.num_rows - 1}, got {last}",
        )
    return vectors


def _counted(
    passes: Passes,
    asking: Asking,
    right: jax.Array,
    vectors: Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
) -> tuple[Ahead, Nearest]:
    """What `counts_pass` says of a block of queries."""
    similarity_fn, rows = of_prepared(passes.similarity_fn), asking.rows
    num_lists = search.count_lists(offsets, mixtures)
    dtype = passes.dtype(rows, vectors.dtype, offsets)
    best = start_best((len(rows), num_lists), dtype)
    for place in range(vectors.shape[1]):
        own, items = right[:, place], jnp.asarray(vectors[:, place])
        best = _best_right(best, rows, items, own, offsets, mixtures, similarity_fn=similarity_fn)
    made = Made(
        counts_pass,
        (search.Scoring(similarity_fn, dtype), num_lists),
        drive.tiling(passes.similarity_fn, dtype, passes.chunk_size),
    )
    asked = sweep.Rows(rows, _ask(rows, right, best, mixtures, asking.unseen))
    return passes.through(lambda _: (made, asked), search.by_list(offsets))


_ask, _distinct = jax.jit(ask), jax.jit(distinct)


@functools.partial(jax.jit, static_argnames="similarity_fn")
def _best_right(
    best: Best,
    rows: jax.Array,
    vectors: jax.Array,
    right: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    *,
    similarity_fn: SimilarityFn,
) -> Best:
    if offsets is not None:
        dtype = best.scores.dtype
        offsets = offsets[right].astype(dtype)
        mixtures = None if mixtures is None else mixtures.astype(dtype)
    scores = paired_scores(rows, vectors, offsets, mixtures, similarity_fn=similarity_fn)
    return add_right(best, scores, right >= 0)
