"""Choose the correction from the banks alone: never worse than raw."""

from typing import Any, Literal, NamedTuple, overload

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.relevance import Relevant
from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.corrections.streamed import Streamed
from dbnorm_jax._src.tuning import bank_checks, grid, proof
from dbnorm_jax._src.tuning import split as folds
from dbnorm_jax._src.tuning.choice import (
    CHOSEN,
    CONSTANT,
    FEW_PAIRS,
    NO_PAIRS,
    NOT_PROVEN,
    UNLIKE,
    Choice,
    is_foreign,
)
from dbnorm_jax._src.tuning.fit import fit_chosen

# Fewer pairs of distinct queries and items than this hold nothing out that could prove anything.
FEWEST_PAIRS = 30
CRITERIA = ("log_rank", "reciprocal_rank", "recall_at_1")

Floats = npt.NDArray[Any]
Integers = npt.NDArray[np.integer[Any]]


def tune(
    *,
    query_bank: ArrayLike,
    gallery_bank: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    pairs: Relevant | None = None,
    criterion: str = "log_rank",
    similarity_fn: SimilarityFn = dot_product,
    seed: int = 0,
    num_folds: int = 10,
    level: float = 0.05,
) -> Choice:
    """Chooses a correction from the banks, or raw where none is proven better.

    Args:
      query_bank: [num_query_bank, dim] embeddings of other items like the queries.
      gallery_bank: [num_gallery_bank, dim] embeddings of other items like the gallery; None: the
        gallery itself, each item left out of its own sum.
      gallery: [num_gallery, dim], the items that will be searched. Held-out queries are ranked
        among them, as in use; without it, among the gallery bank.
      pairs: int [num_query_bank], the gallery-bank row (without a gallery bank, the gallery row)
        that is right for each query-bank row, -1 for none; several right rows as CSR (indptr,
        indices). None declines: without pairs nothing can be held out. A query never enters the
        statistics of its own right item. An item that the gallery holds may be asked for again:
        other queries for it are in the bank when one is held out. Queries for another item are
        held out together.
      criterion: "log_rank" (the least noisy), "reciprocal_rank" or "recall_at_1".
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      seed: of folds, samples and sign flips.
      num_folds: parts that are held out in turn, at least 2.
      level: chance of choosing a correction where none is better than raw.

    Returns:
      Choice; `choice.summary()` says what was chosen and why.

    Raises:
      ValueError: neither gallery bank nor gallery; empty, non-finite or mismatched embeddings;
        pairs out of range, an unknown criterion, a level outside (0, 1).
      TypeError: embeddings that are not floating point, pairs that are not integers.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> bank = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
      >>> choice = dbn.tuning.tune(query_bank=bank, gallery_bank=bank, pairs=np.arange(40))
      >>> print(choice.reason)    # nothing to gain: all right
      raw: no candidate gains significantly over raw on held-out pairs

    References:
      Westfall and Young, 1993 (sign flips of the largest statistic); Smith et al., ICLR 2017;
      Bogolin et al., CVPR 2022; Wang, Jian and Xue, EMNLP 2023; Chowdhury et al., EMNLP 2024.
    """
    banks = folds.checked(query_bank, gallery_bank, gallery, similarity_fn)
    if criterion not in CRITERIA:
        raise checks.BadValueError(
            "criterion", f" must be one of {', '.join(CRITERIA)}, got {criterion!r}"
        )
    num_folds = checks.integer("num_folds", num_folds, low=2)
    if not 0 < level < 1:
        raise checks.BadValueError("level", f" must be between 0 and 1, got {level!r}")
    rng = np.random.default_rng(seed)
    # Where there is nothing else to compare with, the gallery bank is like itself.
    items = None if banks.is_own else banks.items
    own_share = (
        bank_checks.own_share(
            banks.query, banks.gallery if items is None else items, rng, similarity_fn
        ),
        0.5 if items is None else bank_checks.own_share(banks.gallery, items, rng, similarity_fn),
    )
    num_gallery_bank = 0 if gallery_bank is None else len(banks.gallery)
    seen = _Seen(_equal_rows(banks.query, banks.gallery, items), own_share, num_gallery_bank)
    if pairs is None:
        return _declined(NO_PAIRS, seen)
    right = folds.right_rows("pairs", pairs, len(banks.query), len(banks.gallery))
    paired = np.flatnonzero((right >= 0).any(axis=1))
    distinct = (len(np.unique(right[right >= 0])), bank_checks.num_distinct(banks.query[paired]))
    if min(len(paired), *distinct) < FEWEST_PAIRS:
        return _declined(FEW_PAIRS, seen)
    if is_foreign(*own_share):
        return _declined(UNLIKE, seen)
    split = folds.split_pairs(banks, right, paired, min(num_folds, len(paired)), rng)
    spreads = tuple(
        folds.spread(bank, split.columns, excluded, similarity_fn)
        for bank, excluded in (
            (banks.query, split.excluded_query),
            (banks.gallery, split.excluded_gallery),
        )
    )
    if not (spreads[0] > 0 and spreads[1] > 0 and np.isfinite(spreads).all()):
        return _declined(CONSTANT, seen)
    table = grid.grid(*spreads)
    ranks, active, is_open = folds.ranks(banks, split, table, similarity_fn)
    differences = _scored(ranks, criterion)
    groups = right[split.held_out].max(axis=1)
    found = proof.evidence(differences, groups, seed)
    reciprocal = _scored(ranks, "reciprocal_rank").mean(axis=0)
    standard = grid.standard(table, spreads[0])
    chosen = proof.choose(found, differences, reciprocal, level=level, standard=standard)
    return _choice(
        table,
        seen,
        chosen=chosen,
        found=found,
        reciprocal=reciprocal,
        recall=_scored(ranks, "recall_at_1").mean(axis=0),
        spreads=spreads,
        active=active,
        is_open=is_open,
        counts=(len(split.held_out), len(split.columns), split.num_folds),
        reason=CHOSEN if chosen else NOT_PROVEN,
    )


def fit(
    choice: Choice,
    *,
    gallery: ArrayLike,
    query_bank: ArrayLike,
    gallery_bank: ArrayLike | None = None,
    pairs: Relevant | None = None,
    similarity_fn: SimilarityFn = dot_product,
) -> Correction:
    """Fits what `tune` chose to a gallery.

    Args:
      choice: concrete.
      gallery: [num_gallery, dim] embeddings of the items to be searched.
      query_bank: [num_query_bank, dim].
      gallery_bank: [num_gallery_bank, dim], if `tune` was given one; None: the gallery itself, each
        item left out of its own sum.
      pairs: those that `tune` was given. Where gallery-bank rows are gallery items, they are left
        out of their own sums, and so are the queries that they are right for: the choice was judged
        so, and an item that is often asked for would pay for its own queries.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).

    Returns:
      Correction; a zero bias where raw is the choice.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, pairs out of range; no gallery bank
        though the choice was made with one; no pairs though gallery-bank rows are gallery items
        (pairs of -1 leave none out).
      TypeError: no Choice, pairs that are not integers.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> rows = np.eye(3, dtype=np.float32)
      >>> choice = dbn.tuning.tune(gallery=rows, query_bank=rows)
      >>> print(dbn.tuning.fit(choice, gallery=rows, query_bank=rows).bias)
      [[0. 0. 0.]]
    """
    checks.instance("choice", choice, Choice, "make it with tuning.tune")
    if gallery_bank is None and choice.num_gallery_bank:
        raise checks.BadValueError(
            "gallery_bank",
            f" must be given, got None: the choice was made with a gallery bank of "
            f"{choice.num_gallery_bank} rows",
        )
    banks = folds.checked(query_bank, gallery_bank, gallery, similarity_fn)
    assert banks.items is not None
    right = None
    if pairs is not None:
        right = folds.right_rows("pairs", pairs, len(banks.query), len(banks.gallery))
    items, query = jnp.asarray(banks.items), jnp.asarray(banks.query)
    if choice.name == "raw":
        dtype = numerics.accumulation_dtype(items.dtype, query.dtype)
        return Correction(jnp.zeros((1, items.shape[0]), dtype), None)
    partners = folds.partners(banks.gallery, right, [banks.items])
    exclude = {} if partners is None else partners._asdict()
    return fit_chosen(
        choice, Streamed(items, query, jnp.asarray(banks.gallery), exclude, similarity_fn)
    )


@overload
def auto(
    *,
    gallery: ArrayLike,
    query_bank: ArrayLike,
    gallery_bank: ArrayLike | None = None,
    pairs: Relevant | None = None,
    similarity_fn: SimilarityFn = dot_product,
    seed: int = 0,
    return_choice: Literal[False] = False,
) -> Correction: ...


@overload
def auto(
    *,
    gallery: ArrayLike,
    query_bank: ArrayLike,
    gallery_bank: ArrayLike | None = None,
    pairs: Relevant | None = None,
    similarity_fn: SimilarityFn = dot_product,
    seed: int = 0,
    return_choice: Literal[True],
) -> tuple[Correction, Choice]: ...


def auto(
    *,
    gallery: ArrayLike,
    query_bank: ArrayLike,
    gallery_bank: ArrayLike | None = None,
    pairs: Relevant | None = None,
    similarity_fn: SimilarityFn = dot_product,
    seed: int = 0,
    return_choice: bool = False,
) -> Correction | tuple[Correction, Choice]:
    """The correction that the banks prove better than raw, fitted; raw where none is.

    Args:
      gallery: [num_gallery, dim] embeddings of the items to be searched.
      query_bank: [num_query_bank, dim] embeddings of other items like the queries.
      gallery_bank: [num_gallery_bank, dim] embeddings of other items like the gallery; None: the
        gallery itself, each item left out of its own sum.
      pairs: int [num_query_bank], the gallery-bank row (without a gallery bank, the gallery row)
        that is right for each query-bank row, -1 for none, or CSR. None declines to raw.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      seed: of folds, samples and sign flips.
      return_choice: whether to return the Choice too, which says what was done and why.

    Returns:
      Correction of zero bias where raw is the choice; with `return_choice`, (Correction, Choice).

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, pairs out of range.
      TypeError: embeddings that are not floating point, pairs that are not integers.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
      >>> correction, choice = dbn.auto(
      ...     gallery=rows, query_bank=rows + 1, gallery_bank=rows + 2, return_choice=True)
      >>> print(choice.reason, float(abs(correction.bias).max()))
      raw: without `pairs` nothing can be held out, and no correction is proven better 0.0
    """
    known: Any = {
        "gallery": gallery,
        "query_bank": query_bank,
        "gallery_bank": gallery_bank,
        "pairs": pairs,
        "similarity_fn": similarity_fn,
    }
    choice = tune(**known, seed=seed)
    correction = fit(choice, **known)
    return (correction, choice) if return_choice else correction


class _Seen(NamedTuple):
    equal_rows: tuple[int, int, int]
    own_share: tuple[float, ...]
    num_gallery_bank: int


def _equal_rows(query: Floats, gallery: Floats, items: Floats | None) -> tuple[int, int, int]:
    equal = bank_checks.num_equal
    if items is None:
        return 0, 0, equal(query, gallery)
    return equal(query, items), equal(gallery, items), equal(query, gallery)


def _scored(ranks: Floats, criterion: str) -> Floats:
    """[num_held_out, num_candidates] gains over raw, the first candidate."""
    if criterion == "log_rank":
        values = -np.log(ranks)
    elif criterion == "reciprocal_rank":
        values = 1 / ranks
    else:
        values = np.where(ranks <= 1, 1.0, 0.0)
    return values - values[:, :1]


def _declined(reason: int, seen: _Seen) -> Choice:
    table = grid.from_rows([grid.RAW])
    none = np.zeros(1)
    return _choice(
        table,
        seen,
        chosen=0,
        found=proof.Evidence(none, none, none + 1),
        reciprocal=none,
        recall=none,
        spreads=(0.0, 0.0),
        active=np.zeros(2),
        is_open=np.zeros(2),
        counts=(0, 0, 0),
        reason=reason,
    )


def _choice(
    table: grid.Candidates,
    seen: _Seen,
    *,
    chosen: int,
    found: proof.Evidence,
    reciprocal: Floats,
    recall: Floats,
    spreads: tuple[float, ...],
    active: Floats,
    is_open: Floats,
    counts: tuple[int, int, int],
    reason: int,
) -> Choice:
    def floats(values: Any) -> Any:
        return jnp.asarray(np.asarray(values, np.float32))

    return Choice(
        chosen=jnp.asarray(chosen, jnp.int32),
        method=jnp.asarray(table.method),
        beta_query=floats(table.beta_query),
        beta_gallery=floats(table.beta_gallery),
        k=jnp.asarray(table.k),
        weight_query=floats(table.weight_query),
        weight_gallery=floats(table.weight_gallery),
        gain=floats(found.gain),
        standard_error=floats(found.standard_error),
        p_value=floats(found.p_value),
        reciprocal_rank_gain=floats(reciprocal),
        recall_gain=floats(recall),
        spreads=floats(spreads),
        active_share=floats(active),
        open_share=floats(is_open),
        own_share=floats(seen.own_share),
        num_equal_rows=jnp.asarray(seen.equal_rows, jnp.int32),
        num_held_out=counts[0],
        num_columns=counts[1],
        num_folds=counts[2],
        reason_code=reason,
        num_gallery_bank=seen.num_gallery_bank,
    )
