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

from dbnorm_jax._src.core import checks, filling
from dbnorm_jax._src.core.similarity import check_similarity, check_streamed
from dbnorm_jax._src.core.types import Correction, SearchResult
from dbnorm_jax._src.passes import counts, selection, sweep
from dbnorm_jax._src.passes import nearest as search
from dbnorm_jax._src.passes.counts import Ahead, Best
from dbnorm_jax._src.passes.gating import over_gates
from dbnorm_jax._src.passes.selection import Nearest
from dbnorm_jax._src.places.disk import drive
from dbnorm_jax._src.places.disk.drive import Begin, Made
from dbnorm_jax._src.places.disk.rows import Array, RowBlock, Rows


class Asking(NamedTuple):
    """A block of queries."""

    rows: jax.Array  # [size, dim]
    unseen: jax.Array | None  # [size, most] int32, items that a query never sees, -1 for none
    gates: jax.Array | None  # [size, num_terms], in place of those of the raw best items


class Passes(NamedTuple):
    """Passes over a gallery for one block of queries after the other.

    The `per_row` of queries may have `exclude` and `gates`, that of the gallery `where`.
    """

    queries: Rows
    gallery: Rows
    correction: Correction | None
    chunk_size: int

    def blocks(self) -> Iterator[tuple[RowBlock, Asking]]:
        """The queries, block by block."""
        queries = self.queries
        for block in queries.read():
            own = (block.filled(queries.per_row.get(name)) for name in ("exclude", "gates"))
            if self.correction is not None:
                check_similarity("correction", self.correction, queries.similarity_fn, block.rows)
            yield block, Asking(queries.on_device(block), *own)

    def check_gallery(self) -> None:
        """Raises for what is of another gallery, once the length of this one is known."""
        num_gallery, exclude = self.gallery.num_rows, self.queries.per_row.get("exclude")
        if num_gallery is None:
            return
        if self.correction is not None:
            check_streamed(self.correction, num_gallery)
        if exclude is not None:
            checks.indices("exclude", exclude, low=-1, high=num_gallery)

    def nearest(self, asking: Asking, k: int, *lists: Any, hashed: bool = False) -> Nearest:
        """[num_queries, num_lists, k], best first, by one pass over the gallery."""
        offsets, mixtures = lists or (None, None)
        num_lists = search.count_lists(offsets, mixtures)

        def begin(_: np.dtype[Any]) -> tuple[Made, sweep.Rows]:
            self.queries.check_same_dimension(self.gallery)
            dtype = search.scores_dtype(asking.rows, self.gallery, offsets)
            columns = search.columns_for(k)
            tiling = sweep.Tiling(self.gallery.compare, dtype, self.chunk_size, columns)
            made = Made(search.nearest_pass, (num_lists, k, dtype), tiling)
            return made, sweep.Rows(asking.rows, (mixtures, asking.unseen))

        return self.through(begin, (selection.by_list(offsets), None), hashed=hashed)

    def through(self, begin: Begin, own: Any, *, hashed: bool = False) -> Any:
        """The outputs of one pass over the gallery."""
        state = None
        for _, after in drive.meet(begin, self.gallery, own, hashed=hashed):
            state = after
        outputs = drive.finish(begin, self.gallery, state)[1]
        self.check_gallery()
        return outputs

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
        checks.integer("k", k, low=1, high=passes.gallery.num_rows, of=" (gallery items)")
        yield block, filling.cut(SearchResult(*found), block.num_rows)


def rank_blocks(passes: Passes, right: Array, ties: str) -> Iterator[Array]:
    """The ranks of each block of queries, after two passes: one is for the right items' vectors.

    `right` [num_queries, num_right] int32 are gallery rows, -1 for none.
    """
    gallery, where = passes.gallery, passes.gallery.per_row.get("where")
    gallery.check_repeatable("the right items are read first, then the others counted")
    for block, asking in passes.blocks():
        if block.stop > len(right):
            raise checks.BadValueError(
                "relevant",
                f" must have one entry (or row) per query, expected at least "
                f"{block.stop}, got {len(right)}",
            )
        own = _distinct(counts.seen_right(block.filled(right), asking.unseen, where))
        vectors = _vectors(passes, np.asarray(own))

        def lists(offsets: Any, mixtures: Any) -> tuple[Ahead, jax.Array]:
            ahead, first = _counted(passes, asking, own, vectors, offsets, mixtures)  # noqa: B023
            return ahead, first.indices

        ahead = passes.over_gates(lists, asking)
        assert gallery.dtype is not None
        answered = jnp.asarray((np.asarray(own) >= 0).any(axis=1))
        yield np.asarray(counts.rank(ahead, answered, gallery.dtype, ties))[: block.num_rows]


def _vectors(passes: Passes, right: Array) -> Array:
    """[num_queries, num_right, dim] embeddings of the right items; zero where there is none."""
    vectors, gallery = None, passes.gallery
    for block in gallery.read():
        passes.queries.check_same_dimension(gallery)
        rows = np.asarray(gallery.on_device(block))
        if vectors is None:
            vectors = np.zeros((*right.shape, rows.shape[1]), rows.dtype)
        inside = (right >= block.start) & (right < block.stop)
        vectors[inside] = rows[right[inside] - block.start]
    passes.check_gallery()
    assert vectors is not None
    assert gallery.num_rows is not None
    last = int(right.max(initial=-1))
    if last >= gallery.num_rows:
        raise checks.BadValueError(
            "relevant",
            f" must hold gallery rows between -1 (-1 marks none) and "
            f"{gallery.num_rows - 1}, got {last}",
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
    rows, num_lists = asking.rows, search.count_lists(offsets, mixtures)
    dtype = search.scores_dtype(rows, vectors, offsets)
    tiling = sweep.Tiling(passes.gallery.compare, dtype, passes.chunk_size)
    score = search.Scoring(tiling.similarity_fn, dtype)
    best = counts.start_best((len(rows), num_lists), dtype)
    for place in range(vectors.shape[1]):
        own, items = right[:, place], jnp.asarray(vectors[:, place])
        best = _best_right(best, rows, items, own, offsets, mixtures, score=score)
    made = Made(counts.counts_pass, (score, num_lists), tiling)
    asked = sweep.Rows(rows, _ask(rows, right, best, mixtures, asking.unseen))
    return passes.through(lambda _: (made, asked), selection.by_list(offsets))


_ask, _distinct = jax.jit(counts.ask), jax.jit(counts.distinct)


@functools.partial(jax.jit, static_argnames="score")
def _best_right(
    best: Best,
    rows: jax.Array,
    vectors: jax.Array,
    right: jax.Array,
    offsets: jax.Array | None,
    mixtures: jax.Array | None,
    *,
    score: search.Scoring,
) -> Best:
    if offsets is not None:
        offsets = offsets[right].astype(score.dtype)
        mixtures = None if mixtures is None else mixtures.astype(score.dtype)
    picked = vectors, selection.by_list(offsets)
    return counts.add_right(best, right >= 0, score, rows, mixtures, picked)
