"""Choose the correction from the banks alone: never worse than raw."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.relevance import Relevant
from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.corrections.streamed import Streamed
from dbnorm_jax._src.tuning import bank_checks, grid, proof, wrong_pairs
from dbnorm_jax._src.tuning import split as folds
from dbnorm_jax._src.tuning.choice import (
    CHOSEN,
    CONSTANT,
    FEW_PAIRS,
    NO_PAIRS,
    NOT_PROVEN,
    UNLIKE,
    WRONG_PAIRS,
    Choice,
    is_foreign,
)

# Fewer pairs of distinct queries and items than this hold nothing out that could prove anything.
FEWEST_PAIRS = 30
_CRITERIA: dict[str, Callable[[Any], Any]] = {
    "log_rank": lambda ranks: -np.log(ranks),
    "reciprocal_rank": lambda ranks: 1 / ranks,
    "recall_at_1": lambda ranks: np.where(ranks <= 1, 1.0, 0.0),
}

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
    trust_banks: bool = False,
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
      trust_banks: True chooses although the gallery bank looks unlike the gallery, or queries of
        the bank seem to lie on wrong items. By default raw is kept then. The warnings stay.

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
    if criterion not in _CRITERIA:
        raise checks.BadValueError(
            "criterion", f" must be one of {', '.join(_CRITERIA)}, got {criterion!r}"
        )
    num_folds = checks.integer("num_folds", num_folds, low=2)
    if not 0 < level < 1:
        raise checks.BadValueError("level", f" must be between 0 and 1, got {level!r}")
    rng = np.random.default_rng(seed)
    own = partial(bank_checks.own_share, rng=rng, similarity_fn=similarity_fn)
    equal = bank_checks.num_equal
    same = equal(banks.query, banks.gallery)
    if banks.items is None or banks.items is banks.gallery:
        # Nothing else to compare with: the gallery bank is like itself.
        own_share, num_equal_rows = (own(banks.query, banks.gallery), 0.5), (0, 0, same)
    else:
        own_share = own(banks.query, banks.items), own(banks.gallery, banks.items)
        num_equal_rows = equal(banks.query, banks.items), equal(banks.gallery, banks.items), same
    choice = partial(
        _choice,
        own_share=_floats(own_share),
        num_equal_rows=jnp.asarray(num_equal_rows, jnp.int32),
        num_gallery_bank=0 if gallery_bank is None else len(banks.gallery),
    )
    if pairs is None:
        return choice(NO_PAIRS)
    right = folds.right_rows("pairs", pairs, len(banks.query), len(banks.gallery))
    paired = np.flatnonzero((right >= 0).any(axis=1))
    distinct = (len(np.unique(right[right >= 0])), bank_checks.num_distinct(banks.query[paired]))
    if min(len(paired), *distinct) < FEWEST_PAIRS:
        return choice(FEW_PAIRS)
    if is_foreign(*own_share) and not trust_banks:
        return choice(UNLIKE)
    split = folds.split_pairs(banks, right, paired, min(num_folds, len(paired)), rng)
    excluded = split.excluded_query, split.excluded_gallery
    spreads = tuple(
        folds.spread(bank, split.columns, own_columns, similarity_fn)
        for bank, own_columns in zip(banks[:2], excluded, strict=True)
    )
    if not (spreads[0] > 0 and spreads[1] > 0 and np.isfinite(spreads).all()):
        return choice(CONSTANT)
    num_wrong_pairs = wrong_pairs.num_wrong(banks, split, right, rng, similarity_fn)
    choice = partial(choice, num_wrong_pairs=num_wrong_pairs)
    if num_wrong_pairs and not trust_banks:
        return choice(WRONG_PAIRS)
    table = grid.grid(*spreads)
    ranks, active, is_open = folds.ranks(banks, split, table, similarity_fn)
    differences = _scored(ranks, criterion)
    groups = right[split.held_out].max(axis=1)
    found = proof.evidence(differences, groups, seed)
    reciprocal = _scored(ranks, "reciprocal_rank").mean(axis=0)
    standard = grid.standard(table, spreads[0])
    chosen = proof.choose(found, differences, reciprocal, level=level, standard=standard)
    return choice(
        CHOSEN if chosen else NOT_PROVEN,
        table,
        found,
        chosen=jnp.asarray(chosen, jnp.int32),
        reciprocal_rank_gain=_floats(reciprocal),
        recall_gain=_floats(_scored(ranks, "recall_at_1").mean(axis=0)),
        spreads=_floats(spreads),
        active_share=_floats(active),
        open_share=_floats(is_open),
        num_held_out=len(split.held_out),
        num_columns=len(split.columns),
        num_folds=split.num_folds,
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
    return grid.fit_chosen(
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
    trust_banks: bool = False,
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
    trust_banks: bool = False,
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
    trust_banks: bool = False,
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
      trust_banks: as in `tuning.tune`: whether to correct although the banks look wrong.
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
    choice = tune(**known, seed=seed, trust_banks=trust_banks)
    correction = fit(choice, **known)
    return (correction, choice) if return_choice else correction


def _scored(ranks: Floats, criterion: str) -> Floats:
    """[num_held_out, num_candidates] gains over raw, the first candidate."""
    values = _CRITERIA[criterion](ranks)
    return values - values[:, :1]


def _choice(
    reason: int,
    table: grid.Candidates | None = None,
    found: proof.Evidence | None = None,
    **known: Any,
) -> Choice:
    """What is not known is 0, raw the only candidate."""
    none = np.zeros(1)
    table, found = (
        table or grid.from_rows([grid.RAW]),
        found or proof.Evidence(none, none, none + 1),
    )
    unknown = {"reciprocal_rank_gain": none, "recall_gain": none}
    unknown |= dict.fromkeys(("spreads", "active_share", "open_share"), np.zeros(2))
    fields: dict[str, Any] = {
        **dict.fromkeys(("num_held_out", "num_columns", "num_folds"), 0),
        "chosen": jnp.int32(0),
        **{name: jnp.asarray(values) for name, values in table._asdict().items()},
        **{name: _floats(values) for name, values in (found._asdict() | unknown).items()},
    }
    return Choice(**(fields | known), reason_code=reason)


def _floats(values: Any) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.float32))
