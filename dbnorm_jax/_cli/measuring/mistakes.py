"""What looks wrong with a set or with files, of at most so many rows that it costs no memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.table_rows import ResultRow
from dbnorm_jax._cli.reading import large
from dbnorm_jax._cli.reading.sets import Array, LargeRows, SimilaritySet, Test

# Bytes beyond which rows are drawn, and their right items are not looked at.
_MOST_BYTES = 2**28
_DRAWN = 4093  # a prime: the counts that are left are no multiples of each other
# Entries of right items, one line of them per query.
_MOST_RIGHT = 2**26


def mistakes_of(test: Test, rows: Sequence[ResultRow], beta: float | None) -> tuple[str, ...]:
    """Of a set and its rows; `beta`: that of the query bank, None where several are."""
    found = [row.ranks for row in rows if row.method.kind != "auto" and row.ranks is not None]
    ranks = np.stack(found) if found else None
    relevant = _relevant(test)
    if isinstance(test, SimilaritySet):
        matrices = (test.similarities, test.query_bank)
        if any(matrix.nbytes > _MOST_BYTES for matrix in matrices):
            return dbn.tuning.likely_mistakes(ranks=ranks)
        return dbn.tuning.likely_mistakes(
            similarities=matrices[0],
            query_bank_similarities=matrices[1],
            relevant=relevant,
            ranks=ranks,
            beta_query=beta,
        )
    own = test.queries is test.query_bank  # the bank asks: no queries are known
    parts = {"gallery": test.gallery, "query_bank": test.query_bank}
    parts |= {} if own else {"queries": test.queries}
    parts |= {} if test.gallery_bank is None else {"gallery_bank": test.gallery_bank}
    return mistakes_of_rows(
        parts,
        test.similarity,
        relevant=None if own else relevant,
        ranks=None if own else ranks,
        beta_query=beta,
    )


def mistakes_of_rows(
    parts: dict[str, Any],
    similarity: str,
    *,
    relevant: Any = None,
    ranks: Any = None,
    beta_query: float | None = None,
) -> tuple[str, ...]:
    """Of embeddings by their names, prepared for the similarity; of large ones some rows."""
    sizes = {name: rows.shape[0] * rows.shape[1] * 4 for name, rows in parts.items()}
    if max(sizes.values()) > _MOST_BYTES:
        parts, relevant = {name: _drawn(rows) for name, rows in parts.items()}, None
    arrays: dict[str, Any] = {name: np.asarray(rows) for name, rows in parts.items()}
    return dbn.tuning.likely_mistakes(
        **arrays,
        similarity_fn=large.PREPARED_FUNCTIONS[similarity],
        relevant=relevant,
        ranks=ranks,
        beta_query=beta_query,
    )


def _drawn(rows: Array | LargeRows) -> Array:
    places = np.linspace(0, len(rows) - 1, min(len(rows), _DRAWN)).round().astype(np.int64)
    # A few at a time: each maps the pages around it, which large rows let go after every call.
    return np.concatenate([np.asarray(rows[some]) for some in np.array_split(places, _DRAWN // 64)])


def _relevant(test: Test) -> Any:
    """The right items, or the first of each query where all would fill the memory."""
    if test.relevant is None:
        return None
    indptr, indices = test.relevant
    counts = np.diff(indptr)
    if len(counts) * int(counts.max(initial=0)) <= _MOST_RIGHT:
        return test.relevant
    first = np.full(len(counts), -1, np.int64)
    first[counts > 0] = indices[indptr[:-1][counts > 0]]
    return first
