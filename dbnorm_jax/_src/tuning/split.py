"""What is held out: the banks checked, their pairs dealt into folds, and the scores that come out.

The items ranked are those that will be searched, or the gallery bank where these are not known, and
beside them the right items of the held-out queries. Large banks are sampled.

What is judged is what `tuning.fit` serves. A query never enters the statistics of an item that it
asks for: `Partners` says which columns those are, here and there. An item that the gallery holds is
asked for again, so its queries are dealt one by one, and it stays in the gallery bank. Queries of
another item stay together: the items to come have no query in the bank.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.relevance import as_rows
from dbnorm_jax._src.core.similarity import SimilarityFn, check_rows
from dbnorm_jax._src.corrections.table import SINKHORN_ITERATIONS
from dbnorm_jax._src.tuning import bank_checks, grid, held_out

# Queries held out; items they are ranked among, the right ones among them; others at least.
_MOST_QUERIES = 1024
_MOST_COLUMNS = 2048
_FEWEST_OTHERS = 1024
_SPREAD_ROWS = 512
# What Sinkhorn may hold, twice: 1 GiB of float32.
MOST_ENTRIES = 2**28
# Share of the pairs, the earliest, that is no fold where there are times.
_FIRST = 1 / 3
_HALF_LIVES = (1.0, 0.3, 0.1)
# A larger bias of one's own leaves nothing of similarities in float32, and its sums overflow.
_MOST_BIAS = 1e18
# Multiples of 1/spread that the sharpness of the likelihoods is one of.
_SHARPNESS = (0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 6.0, 9.0)

Floats = npt.NDArray[Any]
Integers = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]


class Banks(NamedTuple):
    """The embeddings, checked and on the host."""

    query: Floats  # [num_query_bank, dim]
    gallery: Floats  # [num_gallery_bank, dim]
    items: Floats | None  # [num_gallery, dim]; `gallery` itself where it is its own bank


def checked(query: Any, gallery: Any, items: Any, similarity_fn: SimilarityFn) -> Banks:
    """Raises unless the arrays fit; without a gallery bank, the gallery stands in for it."""
    if gallery is None and items is None:
        raise checks.BadValueError("gallery_bank", " or `gallery` must be given, got neither")
    arrays = {"query_bank": query, "gallery_bank": gallery, "gallery": items}
    given = {
        name: checks.embeddings(name, rows) for name, rows in arrays.items() if rows is not None
    }
    if not checks.is_concrete(given):
        raise TypeError("tuning decides by values: call it outside jit, vmap and grad")
    for name, rows in given.items():
        checks.same_dimension("query_bank", given["query_bank"], name, rows)
    check_rows(similarity_fn, **given)
    found = {name: np.asarray(rows) for name, rows in given.items()}
    items = found.get("gallery")
    return Banks(found["query_bank"], found.get("gallery_bank", items), items)


def right_rows(name: str, pairs: Any, num_query_bank: int, num_gallery_bank: int) -> Integers:
    """The right gallery-bank rows of each query-bank row, [num_query_bank, most], -1 for none."""
    try:
        return np.asarray(as_rows(pairs, (num_query_bank, num_gallery_bank)))
    except checks.ArgumentError as error:
        own = error.argument.replace("relevant", name, 1)
        raise type(error)(own, *error.args[1:]) from None


class Partners(NamedTuple):
    """Columns that a bank row does not enter, -1 for none."""

    query: Integers  # [num_query_bank, most] int32, the items that are right for the row
    gallery: Integers  # [num_gallery_bank, most] int32, the row itself


def partners(
    gallery_bank: Floats, right: Integers | None, columns: Iterable[Floats]
) -> Partners | None:
    """The columns (in blocks, in order) that equal gallery-bank rows; None where no column does.

    Raises:
      ValueError: some do, and their queries, `right`, are not known.
    """
    own = bank_checks.equal_columns(gallery_bank, columns)
    found = int((own[:, 0] >= 0).sum())
    if not found:
        return None
    if right is None:
        raise checks.BadValueError(
            "pairs",
            f" must be given, got None: {found} gallery-bank rows are gallery items, and "
            f"the choice was made with their own queries left out of their statistics; pairs of "
            f"-1 leave none out",
        )
    of_query = np.where(right[:, :, None] >= 0, own[right], np.int32(-1))
    return Partners(of_query.reshape(len(right), -1), own)


class Split(NamedTuple):
    """What is ranked, and which rows are held out when."""

    columns: Any  # [num_columns, dim], the items ranked
    searched: Flags  # [num_columns], whether they will be searched, all where that is not known
    held_out: Integers  # [num_held_out] query-bank rows, ranked in turn
    right: Integers  # [num_query_bank, most] int32, the right columns of each row, -1 for none
    excluded_query: Integers  # as Partners.query
    excluded_gallery: Integers  # as Partners.gallery
    fold_query: Integers  # [num_query_bank]; num_folds: never held out
    fold_gallery: Integers  # [num_gallery_bank]
    num_folds: int
    keep: Flags  # [num_folds, num_folds + 1], the parts that a fold is judged by


def times_of(times: Any, num_query_bank: int) -> Floats | None:
    """As numbers, float64 [num_query_bank]; None where none are given.

    Integers and dates are counted from the first, which float64 may be unable to tell from others.
    """
    if times is None:
        return None
    found = np.asarray(times)
    if found.dtype.kind == "M":
        found = np.where(np.isnat(found), np.nan, _from_first(found.astype(np.int64)))
    elif found.dtype.kind in "iu":
        found = _from_first(found)
    if found.dtype.kind != "f":
        raise checks.BadTypeError("times", f" must hold numbers or dates, got {found.dtype}")
    if found.shape != (num_query_bank,):
        raise checks.BadValueError(
            "times",
            f" must have one entry per query-bank row ({num_query_bank},), got {found.shape}",
        )
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        raise checks.BadValueError("times", f" must be finite, got {found[row]} in entry {row}")
    return found


def _from_first(numbers: Any) -> Floats:
    """float64 differences of integers from the smallest."""
    smallest = numbers.min(initial=np.iinfo(numbers.dtype).max)
    # Modulo 2^64 a difference is right although one of 64 bits with a sign may not hold it.
    return (numbers.astype(np.uint64) - np.asarray(smallest).astype(np.uint64)).astype(np.float64)


def own_bias(biases: Any, num_gallery: int | None) -> jax.Array | None:
    """The caller's own bias, [num_gallery]; None where none is given."""
    if biases is None:
        return None
    if num_gallery is None:
        raise checks.BadValueError("biases", " needs `gallery`, of whose items it is; got None")
    found = checks.floating("biases", biases, ndim=1)
    if found.shape != (num_gallery,):
        raise checks.BadValueError(
            "biases", f" must have one entry per gallery row ({num_gallery},), got {found.shape}"
        )
    checks.check_finite("biases", found)
    largest = float(abs(found).max())
    if largest > _MOST_BIAS:
        raise checks.BadValueError(
            "biases", f" must be at most {_MOST_BIAS:g} in size, got {largest:g}; scale them"
        )
    return found


def decay(times: Floats, half_life: float) -> Floats:
    """[num_query_bank] weights: 1 of the newest row, half of what is a half-life older."""
    weights = np.exp2((times - times.max()) / half_life)
    # Less than what a weight may be counts as nothing.
    return np.where(weights < 1 / checks.MOST_WEIGHT, 0, weights)


def half_lives(times: Floats | None) -> Floats:
    """Those that are tried: shares of the age that half of the rows are younger than."""
    age = 0.0 if times is None else float(times.max() - np.median(times))
    return np.multiply(_HALF_LIVES, age) if age > 0 else np.zeros(0)


def with_known_items(banks: Banks, right: Integers, paired: Integers, fewest: int) -> Integers:
    """Those of the paired rows whose right items are in the gallery, which biases are known of."""
    assert banks.items is not None
    known = bank_checks.equal_columns(banks.gallery, [banks.items])[:, 0] >= 0
    found = paired[(known[right[paired]] | (right[paired] < 0)).all(axis=1)]
    if len(found) < min(fewest, len(paired)):
        raise checks.BadValueError(
            "biases",
            f" must be known of the items that `pairs` name, got {len(found)} of {len(paired)} "
            f"pairs with gallery items; give a log of queries for the gallery's own items",
        )
    return found


def split_pairs(
    banks: Banks,
    right: Integers,
    paired: Integers,
    num_folds: int,
    rng: np.random.Generator,
    times: Floats | None = None,
) -> Split:
    """Deals the pairs into folds and chooses what is ranked.

    With times, folds follow each other, and a fold is judged by what was there before it.
    """
    items = () if banks.items is None else (banks.items,)
    searched = bank_checks.equal_columns(banks.gallery, items)[:, 0] >= 0
    asked_again = (searched[right[paired]] | (right[paired] < 0)).all(axis=1)
    alone = len(banks.gallery) + np.arange(len(paired))
    group = np.where(asked_again, alone, right[paired].max(axis=1))
    group = np.unique(group, return_inverse=True)[1]
    fold_of_group = rng.permutation(int(group.max()) + 1) % num_folds
    fold_query = np.full(len(banks.query), num_folds)
    fold_query[paired] = fold_of_group[group]
    parts = np.arange(num_folds + 1)
    keep = parts[None] != parts[:-1, None]
    if times is not None:
        fold_query = _by_time(times, times[paired], num_folds)
        paired = paired[fold_query[paired] < num_folds]
        keep &= (parts[None] < parts[:-1, None]) | (parts[None] == num_folds)
    fold_gallery = np.full(len(banks.gallery), num_folds)
    for column in right[paired].T:
        held = (column >= 0) & ~searched[column]
        fold_gallery[column[held]] = fold_query[paired[held]]

    held_out = _sample(paired, _MOST_QUERIES, rng)
    own = np.unique(right[held_out])
    own = own[own >= 0]
    num_others = max(_MOST_COLUMNS - len(own), _FEWEST_OTHERS)
    if banks.items is None:
        others = np.setdiff1d(np.arange(len(banks.gallery)), own)
        own = np.concatenate([own, _sample(others, num_others, rng)])
        columns, start = banks.gallery[own], 0
        ranked = np.ones(len(own), bool)
    else:
        known = bank_checks.equal_columns(banks.items, [banks.gallery[own]])[:, 0] >= 0
        others = _sample(np.flatnonzero(~known), num_others, rng)
        columns = np.concatenate([banks.items[others], banks.gallery[own]])
        start = len(others)
        ranked = np.append(np.ones(start, bool), searched[own])
    # One place more than there are rows: -1 stays -1.
    place = np.full(len(banks.gallery) + 1, -1)
    place[own] = start + np.arange(len(own))
    excluded = partners(banks.gallery, right, [columns])
    assert excluded is not None  # the right items are columns
    return Split(
        jnp.asarray(columns),
        ranked,
        held_out,
        place[right].astype(np.int32),
        *excluded,
        fold_query,
        fold_gallery,
        num_folds,
        keep,
    )


def _by_time(times: Floats, paired: Floats, num_folds: int) -> Integers:
    """The fold of each time, in order; num_folds for the first part of all, which is no fold."""
    shares = np.linspace(_FIRST, 1, num_folds, endpoint=False)
    edges = np.quantile(paired, shares, method="higher")
    fold = np.searchsorted(edges, times, side="right") - 1
    return np.where(fold < 0, num_folds, fold)


def _sample(rows: Integers, most: int, rng: np.random.Generator) -> Integers:
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def spread(bank: Floats, columns: Any, excluded: Integers, similarity_fn: SimilarityFn) -> float:
    rows = np.linspace(0, len(bank) - 1, min(_SPREAD_ROWS, len(bank))).astype(int)
    own = jnp.asarray(bank[rows]), columns, jnp.asarray(excluded[rows])
    value = float(bank_checks.spread(*own, similarity_fn=similarity_fn))
    # Below rounding, a row is constant.
    rounding = 1e-5 * float(jnp.abs(columns).max() * np.abs(bank).max())
    return value if value > rounding else 0.0


def fits_in_memory(banks: Banks, split: Split) -> bool:
    """Whether Sinkhorn can hold query bank x (columns and gallery bank)."""
    return sinkhorn_fits(banks.query, split.columns, banks.gallery)


def sinkhorn_fits(query_bank: Any, columns: Any, gallery_bank: Any) -> bool:
    """Whether it holds whole matrices; without a gallery bank, the columns stand for one."""
    others = columns if gallery_bank is None else gallery_bank
    return len(query_bank) * (len(columns) + len(others)) <= MOST_ENTRIES


class HeldOut:
    """The held-out queries of a split, and the corrections of each fold's others.

    Attributes:
      biases: [num_folds, num_candidates, columns].
      folds: [num_held_out], the fold of each query.
      sharpness: tau of the likelihoods, that of the highest one of raw. There no candidate gains by
        what levels or stretches all scores.
    """

    def __init__(
        self,
        banks: Banks,
        split: Split,
        table: grid.Candidates,
        similarity_fn: SimilarityFn,
        spread: float,
        *,
        times: Any = None,
        own: jax.Array | None = None,
    ) -> None:
        self._split, self._similarity_fn = split, similarity_fn
        self.folds = split.fold_query[split.held_out]
        self._query_bank, self._right = jnp.asarray(banks.query), jnp.asarray(split.right)
        dtype = numerics.accumulation_dtype(self._query_bank.dtype, split.columns.dtype)
        plan = held_out.planned(table, dtype)
        num_parts = split.num_folds + 1
        weights = np.ones((len(plan.half_lives), len(banks.query)), dtype)
        for row, half_life in zip(weights[1:], plan.half_lives[1:], strict=True):
            row[:] = decay(times, half_life)
        parts = held_out.statistics(
            self._query_bank,
            split.columns,
            plan.betas,
            jnp.asarray(split.excluded_query),
            jnp.asarray(weights),
            held_out.blocks(split.fold_query, num_parts),
            num_parts=num_parts,
            k=plan.most,
            similarity_fn=similarity_fn,
        )
        self.biases = held_out.biases_by_part(
            parts,
            self._sinkhorn(banks, plan),
            plan.betas,
            plan.temperatures,
            plan.parameters,
            jnp.asarray(split.keep),
            groups=plan.groups,
        )
        if own is not None and banks.items is not None:
            items = bank_checks.equal_columns(np.asarray(split.columns), [banks.items])[:, 0]
            of_columns = own[items]
            self.biases = held_out.with_own(self.biases, plan.parameters["weight_own"], of_columns)
        queries = split.held_out
        steps = jnp.asarray(_SHARPNESS, dtype) / spread
        likelihood = held_out.raw_log_likelihood(
            self._query_bank[queries],
            split.columns,
            self._right[queries],
            steps,
            similarity_fn=similarity_fn,
        )
        self.sharpness = steps[int(likelihood.argmax())]

    def _sinkhorn(self, banks: Banks, plan: held_out.Plan) -> tuple[Any, Any]:
        split = self._split
        folds = np.arange(split.num_folds)[:, None]
        rows, items = split.keep[:, split.fold_query], split.fold_gallery != folds
        others = jnp.asarray(banks.gallery).astype(split.columns.dtype)
        found = []
        for temperatures, size in zip(plan.temperatures, (0, len(others)), strict=True):
            if not len(temperatures):
                empty = (0, split.num_folds, len(split.columns))
                found.append(jnp.zeros(empty, temperatures.dtype))
                continue
            found.append(
                held_out.sinkhorn(
                    self._query_bank,
                    split.columns,
                    others[:size],
                    jnp.asarray(split.excluded_query),
                    (jnp.asarray(rows), jnp.asarray(items[:, :size])),
                    temperatures,
                    num_iterations=SINKHORN_ITERATIONS,
                    similarity_fn=self._similarity_fn,
                )
            )
        return found[0], found[1]

    def scores(self, biases: Any, *, as_searched: bool = False) -> held_out.Scores:
        """Fields [num_held_out, num_candidates], under [num_folds, num_candidates, columns].

        Among all columns, or each among its own right ones and those that will be searched.
        """
        split = self._split
        ranked = split.searched | (not as_searched)
        folds = np.full(len(split.fold_query), -1)
        folds[split.held_out] = self.folds
        dealt = held_out.blocks(folds, split.num_folds)
        by_block = held_out.scores_by_block(
            self._query_bank,
            split.columns,
            self._right,
            dealt,
            biases,
            self.sharpness,
            jnp.asarray(ranked),
            similarity_fn=self._similarity_fn,
        )
        filled = dealt.weights > 0
        order = np.argsort(dealt.rows[filled])
        return held_out.Scores(
            *(np.swapaxes(np.asarray(one, np.float64), 1, 2)[filled][order] for one in by_block)
        )
