"""What looks wrong with the inputs of a correction, in sentences, with the remedy.

The thresholds were measured on the emoji names and four other sets of embeddings (photos,
translations, spoken words, definitions), both directions of each: ten. A warning needs evidence
that none of the ten came near, because a false alarm costs more than a mistake that is missed.
`benchmarks/studies/mistakes.py` prints the figures.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.relevance import Relevant
from dbnorm_jax._src.core.similarity import SimilarityFn, check_rows, dot_product, tile
from dbnorm_jax._src.tuning import bank_checks
from dbnorm_jax._src.tuning.choice import bank_warnings, is_swapped
from dbnorm_jax._src.tuning.split import right_rows

Floats = npt.NDArray[Any]
Integers = npt.NDArray[np.integer[Any]]

# Fewer rows show nothing reliably.
_FEWEST = 50
# Rows and columns compared.
_ROWS, _COLUMNS = 512, 2048
# Rows among which repeated ones are looked for.
_KEYED = 2**14

# Mean share of wrong items ahead of the right one: 0.5 by chance, at most 0.13 on the ten. Right
# items that are guessed must be better than half of chance.
_CHANCE, _WORSE, _FOUND = 0.4, 0.6, 0.25
# Largest ratio of median norms of a bank and of its side. Two draws of the same items differ by few
# percent.
_NORMS = 1.5
# beta x spread, the standard deviation of similarities within a row. IS was best between 1 and 2 on
# all ten. At 10 it was below raw on eight of them, and below half of its best gain on another; at
# 0.02 it was below a third of its best gain on all but one.
_BETA_SPREAD = 0.02, 10.0
# Correlation of an item's mean similarity to the bank and to the queries: 0.99 on the ten, at most
# 0.59 where one of the two matrices is transposed.
_ALIKE = 0.8
# Right items per query are guessed up to so many.
_MOST_EACH = 100


def likely_mistakes(
    *,
    queries: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    query_bank: ArrayLike | None = None,
    gallery_bank: ArrayLike | None = None,
    similarities: ArrayLike | None = None,
    query_bank_similarities: ArrayLike | None = None,
    relevant: Relevant | None = None,
    ranks: ArrayLike | None = None,
    beta_query: float | None = None,
    similarity_fn: SimilarityFn = dot_product,
) -> tuple[str, ...]:
    """What looks wrong with the inputs of a correction, one sentence each, with the remedy.

    Give what is at hand: more arguments allow more checks. They compare the right items with
    chance, banks and their norms with the sides that they stand for, beta with the spread of
    similarities, and the axes of square matrices; and they find repeated rows and counts of 5 to 1.
    At most 512 rows are compared with 2,048, drawn with a fixed seed. Fewer than 50 rows say
    nothing.

    Args:
      queries: [num_queries, dim] embeddings.
      gallery: [num_gallery, dim].
      query_bank: [num_query_bank, dim].
      gallery_bank: [num_gallery_bank, dim].
      similarities: [num_queries, num_gallery], in place of embeddings.
      query_bank_similarities: [num_query_bank, num_gallery], in place of embeddings.
      relevant: int [num_queries], the right gallery row of each query, -1 for none; [num_queries,
        most] or CSR (indptr, indices) for several. None: not known.
      ranks: [1 + num_corrections, num_queries] of the best right item, 1 the best, raw first, as
        `metrics.ranks` gives them.
      beta_query: inverse temperature of the query bank, 1/[unit of similarity].
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n].

    Returns:
      Sentences; none where nothing looks wrong.

    Raises:
      ValueError: empty, non-finite or mismatched arrays; right items out of range.
      TypeError: embeddings that are not floating point, right items that are not integers.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> rows = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
      >>> dbn.tuning.likely_mistakes(queries=rows, gallery=rows, relevant=np.arange(100))
      ()
      >>> right = (np.arange(100) + 1) % 100
      >>> found, = dbn.tuning.likely_mistakes(queries=rows, gallery=rows, relevant=right)
      >>> print(found.partition(":")[0])
      the right items rank no better than chance

    References:
      The comparison of banks is the nearest-neighbor test of Schilling, JASA 1986.
    """
    embedded = {
        "queries": queries,
        "gallery": gallery,
        "query_bank": query_bank,
        "gallery_bank": gallery_bank,
    }
    given = {
        name: checks.embeddings(name, one) for name, one in embedded.items() if one is not None
    }
    for name, array in given.items():
        checks.same_dimension(next(iter(given)), next(iter(given.values())), name, array)
    check_rows(similarity_fn, **given)
    matrices = {"similarities": similarities, "query_bank_similarities": query_bank_similarities}
    for name, value in matrices.items():
        if value is not None:
            given[name] = checks.floating(name, value, ndim=2)
    if not checks.is_concrete(given):
        raise TypeError("mistakes are looked for in values: call it outside jit, vmap and grad")
    rows = _Rows(
        similarity_fn,
        np.random.default_rng(0),
        **{name: np.asarray(one) for name, one in given.items()},
    )
    test = _test(rows)
    right = None
    if relevant is not None and test is not None:
        right = right_rows("relevant", relevant, *test.shape)
    found = (
        *_repeated(rows, right),
        *_right_items(test, right),
        *_below_raw(ranks),
        *_banks(rows),
        *_norms(rows),
        *_transposed(rows),
        *_beta(rows, beta_query),
    )
    return tuple(dict.fromkeys(found))


class _Rows(NamedTuple):
    """What is at hand, on the host."""

    similarity_fn: SimilarityFn
    rng: np.random.Generator
    queries: Floats | None = None
    gallery: Floats | None = None
    query_bank: Floats | None = None
    gallery_bank: Floats | None = None
    similarities: Floats | None = None
    query_bank_similarities: Floats | None = None

    def some(self, count: int, most: int) -> Integers:
        """Row numbers, at most so many, in order."""
        return np.sort(self.rng.choice(count, min(count, most), replace=False))

    def block(self, rows: Floats, columns: Floats) -> Floats:
        """Their similarities."""
        return np.asarray(tile(self.similarity_fn, jnp.asarray(rows), jnp.asarray(columns)))


class _Test(NamedTuple):
    """Some queries, and their similarities to some items."""

    shape: tuple[int, int]  # of queries x gallery
    queries: Integers  # [m] query rows
    columns: Integers  # [n] gallery rows
    block: Floats  # [m, n]
    rows: _Rows

    def ahead(self, right: Integers) -> float:
        """Mean share of items ahead of the right one of each query, [m] gallery rows, -1: none."""
        known = right >= 0
        if known.sum() < _FEWEST:
            return np.nan
        queries, right, block = self.queries[known], right[known], self.block[known]
        if self.rows.similarities is not None:
            own = self.rows.similarities[queries, right]
        else:
            assert self.rows.queries is not None
            assert self.rows.gallery is not None
            own = self.rows.block(self.rows.queries[queries], self.rows.gallery[right]).diagonal()
        others = self.columns != right[:, None]
        above = (block > own[:, None]) + 0.5 * (block == own[:, None])
        return float((above * others).sum() / others.sum())


def _test(rows: _Rows) -> _Test | None:
    """None without queries and gallery, or where they are few."""
    if rows.similarities is not None:
        shape = rows.similarities.shape
    elif rows.queries is not None and rows.gallery is not None:
        shape = len(rows.queries), len(rows.gallery)
    else:
        return None
    queries, columns = rows.some(shape[0], _ROWS), rows.some(shape[1], _COLUMNS)
    if rows.similarities is not None:
        block = rows.similarities[np.ix_(queries, columns)]
    else:
        assert rows.queries is not None
        assert rows.gallery is not None
        block = rows.block(rows.queries[queries], rows.gallery[columns])
    return _Test(shape, queries, columns, block, rows)


def _right_items(test: _Test | None, right: Integers | None) -> Iterator[str]:
    """Right items at random places, or unknown although the counts say them."""
    if test is None or min(test.shape) < _FEWEST:
        return
    ahead = np.nan
    if right is not None:
        ahead = test.ahead(right[test.queries, 0])
        if not ahead >= _CHANCE:  # good, or too few are known
            return
    for rule, expression, guess in _guesses(*test.shape):
        if test.ahead(guess[test.queries]) < _FOUND:
            yield (
                f"the counts are {_ratio(*test.shape)} and {rule}, but the right items given say "
                f"otherwise or are none: {_relevant_line(expression)}"
            )
            return
    if right is None:
        return
    first = right[:, 0]
    if ahead > _WORSE:
        yield (
            f"the right items rank worse than chance ({100 * ahead:.0f} % of the others are ahead "
            f"of them; chance: 50 %): are distances given as similarities? Give their negatives"
        )
        return
    remedy = (
        "check that `relevant` (--relevant) numbers the rows of the gallery from 0 in their order, "
        "and that one model made queries and gallery"
    )
    for step, word in ((-1, "before"), (1, "after")):
        moved = np.where(first < 0, -1, first + step)
        moved[moved >= test.shape[1]] = -1
        if test.ahead(moved[test.queries]) < _FOUND:
            remedy = (
                f"the row {word} each of them ranks far better, so the row numbers are off by one; "
                f"count gallery rows from 0 in `relevant` (--relevant)"
            )
    yield (
        f"the right items rank no better than chance: {100 * ahead:.0f} % of the others are ahead "
        f"of them (chance: 50 %); {remedy}"
    )


def _guesses(num_queries: int, num_gallery: int) -> Iterator[tuple[str, str, Integers]]:
    """What counts may mean: in words, as an expression, and one right row of each query."""
    rows = np.arange(num_queries)
    each, rest = divmod(num_queries, num_gallery)
    if 1 < each <= _MOST_EACH and not rest:
        yield (
            f"query i belongs to item i // {each}",
            f"np.arange({num_queries}) // {each}",
            rows // each,
        )
        expression = f"np.arange({num_queries}) % {num_gallery}"
        yield f"query i belongs to item i % {num_gallery}", expression, rows % num_gallery
    each, rest = divmod(num_gallery, num_queries)
    if 1 < each <= _MOST_EACH and not rest:
        yield (
            f"item i belongs to query i // {each}",
            f"np.arange({num_gallery}) // {each}",
            rows * each,
        )
        expression = f"np.arange({num_gallery}) % {num_queries}"
        yield f"item i belongs to query i % {num_queries}", expression, rows


def _ratio(num_queries: int, num_gallery: int) -> str:
    if num_queries > num_gallery:
        return f"{num_queries // num_gallery} queries to 1 item"
    return f"1 query to {num_gallery // num_queries} items"


def _relevant_line(expression: str) -> str:
    """How `--relevant` is made and given."""
    return (
        f"write python -c \"import numpy as np; np.save('relevant.npy', {expression})\" and give "
        f"--relevant relevant.npy"
    )


def _repeated(rows: _Rows, right: Integers | None) -> Iterator[str]:
    """Rows that stand again and again, where the right items do not name all of them."""
    if right is not None and (right >= 0).sum() > 1.5 * (right[:, 0] >= 0).sum():
        return  # several right items: copies are named
    for name, whole in (("gallery", rows.gallery), ("queries", rows.queries)):
        if whole is None or len(whole) < _FEWEST:
            continue
        first = bank_checks.first_equal(whole[:_KEYED])
        distinct = len(np.unique(first))
        each, rest = divmod(len(first), distinct)
        if each < 2:
            continue
        number = np.unique(first, return_inverse=True)[1]
        places, slot, by = np.arange(len(first)), f"[::{each}]", f"// {each}"
        if (number == places % distinct).all():
            slot, by = f"[:{distinct}]", f"% {distinct}"
        elif rest or not (number == places // each).all():
            if name == "gallery":
                yield (
                    f"{len(first) - distinct:,} of {len(first):,} gallery rows repeat an earlier "
                    f"row, and equal rows tie: give each item once"
                )
            continue
        other = rows.queries if name == "gallery" else rows.gallery
        made = "" if other is None else f", then {_relevant_line(f'np.arange({len(other)}) {by}')}"
        yield (
            f"each row of the {name} stands {each} times, and equal rows tie: give {name}{slot} in "
            f"its place{made}"
        )
        return


def _below_raw(ranks: Any) -> Iterator[str]:
    """Several corrections, all of them below raw by more than their 95 % intervals."""
    if ranks is None:
        return
    hits = np.asarray(ranks) <= 1
    hits = hits[:, np.isfinite(np.asarray(ranks)[0])]
    if len(hits) < 3 or hits.shape[1] < _FEWEST:
        return
    change = hits[1:].astype(float) - hits[0]
    mean, error = change.mean(axis=1), change.std(axis=1) / np.sqrt(change.shape[1])
    if (mean + 1.96 * error < 0).all():
        yield (
            f"every correction is below raw (the best by {-100 * mean.max():.1f} points of R@1): "
            f"check that no banks are exchanged and no matrix is transposed (rows are queries or "
            f"bank items, columns gallery items), and that the query bank is of items like the "
            f"queries"
        )


def _banks(rows: _Rows) -> Iterator[str]:
    """Banks that look like the other side."""
    if rows.gallery is None or rows.query_bank is None:
        return
    if min(len(rows.gallery), len(rows.query_bank)) < _FEWEST:
        return
    wrong = bank_checks.num_equal(rows.query_bank, rows.gallery)
    if 2 * wrong > len(rows.query_bank):  # one modality may share some items
        yield from bank_warnings(num_equal_rows=(wrong, 0, 0), own_share=(0.5, 0.5))
        return
    gallery_bank = rows.gallery_bank
    if gallery_bank is not None and len(gallery_bank) < _FEWEST:
        gallery_bank = None
    if rows.queries is None or len(rows.queries) < _FEWEST:
        if gallery_bank is not None:
            shares = (
                _apart(rows, rows.query_bank, rows.gallery),
                _apart(rows, gallery_bank, rows.gallery),
            )
            if is_swapped(*shares):
                yield from bank_warnings(num_equal_rows=(0, 0, 0), own_share=shares)
        return
    query = _of_other_side(rows, rows.query_bank, rows.queries, rows.gallery)
    if gallery_bank is None:
        if query:
            yield (
                "the query bank looks like the gallery and not like the queries: give items like "
                "the queries as query bank, or exchange QUERIES and GALLERY"
            )
        return
    gallery = _of_other_side(rows, gallery_bank, rows.gallery, rows.queries)
    if query and gallery:
        yield (
            "the query bank looks like the gallery and the gallery bank like the queries: exchange "
            "the two banks, or QUERIES and GALLERY"
        )
    elif query:
        yield (
            "the query bank looks like the gallery and not like the queries: give items like the "
            "queries as query bank"
        )
    elif gallery:
        yield (
            "the gallery bank looks like the queries and not like the gallery: give items like the "
            "gallery as gallery bank"
        )


def _of_other_side(rows: _Rows, bank: Floats, own: Floats, other: Floats) -> bool:
    return is_swapped(_apart(rows, bank, other), _apart(rows, bank, own))


def _apart(rows: _Rows, first: Floats, second: Floats) -> float:
    """The own share of the two samples that is larger.

    0.49 to 0.53 for banks and their sides on the ten sets, 0.82 to 1.00 for banks and the other
    side. One of the two alone is not enough: of a side that lies inside of the other it is 0.5.
    """
    return max(
        bank_checks.own_share(one, other, rows.rng, rows.similarity_fn)
        for one, other in ((first, second), (second, first))
    )


def _norms(rows: _Rows) -> Iterator[str]:
    """Under dot products and distances a bank must have the norms of what it stands for."""
    pairs = (
        ("queries", rows.queries, "query bank", rows.query_bank),
        ("gallery", rows.gallery, "gallery bank", rows.gallery_bank),
    )
    for name, own, bank_name, bank in pairs:
        if own is None or bank is None or min(len(own), len(bank)) < _FEWEST:
            continue
        if _is_scale_free(rows, bank):
            continue
        norms = [
            float(
                np.median(
                    np.linalg.norm(one[rows.some(len(one), _ROWS)].astype(np.float32), axis=1)
                )
            )
            for one in (own, bank)
        ]
        if min(norms) > 0 and max(norms) > _NORMS * min(norms):
            yield (
                f"the norms of the {name} (median {norms[0]:.3g}) are {norms[0] / norms[1]:.3g} "
                f"times those of the {bank_name} ({norms[1]:.3g}), on which this similarity "
                f"depends: scale both alike, or compare by cosines (--similarity cosine)"
            )


def _is_scale_free(rows: _Rows, some: Floats) -> bool:
    row = some[:1].astype(np.float32)
    return bool(np.allclose(rows.block(2 * row, row), rows.block(row, row), rtol=1e-3))


def _transposed(rows: _Rows) -> Iterator[str]:
    """A square matrix whose columns are no gallery items: hubs are those of its rows."""
    test, bank = rows.similarities, rows.query_bank_similarities
    if test is None or bank is None or min(*test.shape, *bank.shape) < _FEWEST:
        return
    as_given = _correlation(test.mean(axis=0), bank.mean(axis=0))
    tries = (
        ("similarities", test, (test.mean(axis=1), bank.mean(axis=0))),
        ("query-bank similarities", bank, (test.mean(axis=0), bank.mean(axis=1))),
    )
    for name, matrix, means in tries:
        if matrix.shape[0] != matrix.shape[1]:
            continue
        turned = _correlation(*means)
        if as_given < _ALIKE < turned:
            yield (
                f"the {name} look transposed (mean similarities of items agree with those of the "
                f"other matrix by {turned:.2f} instead of {as_given:.2f} when turned): columns are "
                f"gallery items, so give the transpose"
            )
            return


def _correlation(first: Floats, second: Floats) -> float:
    if not (first.std() > 0 and second.std() > 0):
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _beta(rows: _Rows, beta: float | None) -> Iterator[str]:
    """A beta that makes of the bias the largest similarity, or the mean."""
    if beta is None:
        return
    if rows.query_bank_similarities is not None:
        matrix = rows.query_bank_similarities
        block = matrix[rows.some(len(matrix), _ROWS)]
    elif rows.query_bank is not None and rows.gallery is not None:
        bank, gallery = rows.query_bank, rows.gallery
        block = rows.block(
            bank[rows.some(len(bank), _ROWS)], gallery[rows.some(len(gallery), _COLUMNS)]
        )
    else:
        return
    spread = float(np.sqrt(block.astype(np.float64).var(axis=1).mean()))
    low, high = _BETA_SPREAD
    if min(block.shape) >= _FEWEST and spread > 0 and not low <= beta * spread <= high:
        word = "large" if beta * spread > high else "small"
        yield (
            f"beta {beta:g} is {word} for these similarities (beta x their spread within a row is "
            f"{beta * spread:.3g}; 1 to 2 was best on all sets measured): try {1.5 / spread:.2g}, "
            f"or let auto choose"
        )
