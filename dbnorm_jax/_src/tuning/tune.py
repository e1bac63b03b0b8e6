"""Choose the correction from the banks alone: never worse than raw."""

from functools import partial
from typing import Any, Literal, NamedTuple, overload

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
from dbnorm_jax._src.tuning import bank_checks, grid, mixture, proof, wrong_pairs
from dbnorm_jax._src.tuning import split as folds
from dbnorm_jax._src.tuning.choice import (
    CHOSEN,
    CONSTANT,
    FEW_PAIRS,
    MERGEABLE,
    NO_PAIRS,
    NOT_PROVEN,
    RAW,
    TOO_LARGE,
    UNLIKE,
    WHOLE_GRID,
    WRONG_PAIRS,
    Choice,
    is_foreign,
    methods,
)

# Fewer pairs of distinct queries and items than this hold nothing out that could prove anything.
FEWEST_PAIRS = 30
Floats = npt.NDArray[Any]
Integers = npt.NDArray[np.integer[Any]]


def tune(
    *,
    query_bank: ArrayLike,
    gallery_bank: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    pairs: Relevant | None = None,
    times: ArrayLike | None = None,
    biases: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    seed: int = 0,
    num_folds: int = 10,
    level: float = 0.05,
    trust_banks: bool = False,
    mergeable: bool = False,
) -> Choice:
    """Chooses a correction from the banks, or raw where none is proven better.

    Held-out queries are scored under all candidates. A candidate is proven where its gain in the
    log-likelihood of the right item, `log softmax tau (s - bias)`, is significant, all candidates
    accounted for. Where one is, the choice is made again on bootstraps of the queries, and what is
    served mixes the biases of what was chosen by how often it was.

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
        held out together. Equal queries may have other right items, as a word has meanings: each
        pair is judged alone.
      times: [num_query_bank], when each row of the query bank was asked, as numbers or dates, later
        ones larger. Folds then follow each other: a query is judged by what was asked before it.
        IS of a bank that decays, row weights `2^-(age / half-life)` at three half-lives, joins the
        candidates. A row without a time of its own, of an older bank, has an early one.
      biases: [num_gallery], a bias of one's own for each item, unit of similarity, larger for what
        shall come later. It joins the candidates, at weights of 0.25, 0.5 and 1, alone and beside
        each of the others. Only pairs with gallery items are then held out, as others have none.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      seed: of folds, samples, sign flips and bootstraps.
      num_folds: parts that are held out in turn, at least 2.
      level: chance of choosing a correction where none is better than raw.
      trust_banks: True chooses although the gallery bank looks unlike the gallery, or queries of
        the bank seem to lie on wrong items. By default raw is kept then. The warnings stay.
      mergeable: True leaves the candidates that statistics of the banks alone fit, which merge and
        run over files and meshes. By default there are Sinkhorn's too, which need whole banks in
        memory.

    Returns:
      Choice; `choice.summary()` says what was chosen and why.

    Raises:
      ValueError: neither gallery bank nor gallery; empty, non-finite or mismatched embeddings;
        pairs out of range, a level outside (0, 1); `times` or `biases` of another length, not
        finite, `biases` without gallery, or with fewer than 30 pairs of gallery items.
      TypeError: embeddings or biases that are not floating point, pairs that are not integers,
        times that are neither numbers nor dates.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> bank = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
      >>> bank /= np.linalg.norm(bank, axis=1, keepdims=True)
      >>> choice = dbn.tuning.tune(query_bank=bank, gallery_bank=bank, pairs=np.arange(40))
      >>> print(choice.reason)    # nothing to gain: all right
      raw: no candidate gains significantly over raw on held-out pairs

    References:
      Westfall and Young, 1993 (sign flips of the largest statistic); Breiman, 1996 (bagging); Smith
      et al., ICLR 2017; Chowdhury et al., EMNLP 2024; Pan et al., ACM MM 2025.
    """
    banks = folds.checked(query_bank, gallery_bank, gallery, similarity_fn)
    num_folds = checks.integer("num_folds", num_folds, low=2)
    seed = checks.integer("seed", seed, low=0)
    level = checks.rate("level", level)
    asked = folds.times_of(times, len(banks.query))
    own = folds.own_bias(biases, None if banks.items is None else len(banks.items))
    rng = np.random.default_rng(seed)
    own_of = partial(bank_checks.own_share, rng=rng, similarity_fn=similarity_fn)
    equal = bank_checks.num_equal
    same = equal(banks.query, banks.gallery)
    if banks.items is None or banks.items is banks.gallery:
        # Nothing else to compare with: the gallery bank is like itself.
        own_share, num_equal_rows = (own_of(banks.query, banks.gallery), 0.5), (0, 0, same)
    else:
        own_share = own_of(banks.query, banks.items), own_of(banks.gallery, banks.items)
        num_equal_rows = equal(banks.query, banks.items), equal(banks.gallery, banks.items), same
    choice = partial(
        _choice,
        grid.declined(own is not None),
        own_share=_floats(own_share),
        num_equal_rows=jnp.asarray(num_equal_rows, jnp.int32),
        num_gallery_bank=0 if gallery_bank is None else len(banks.gallery),
    )
    if pairs is None:
        return choice(reason_code=NO_PAIRS)
    right = folds.right_rows("pairs", pairs, len(banks.query), len(banks.gallery))
    paired: Integers = np.flatnonzero((right >= 0).any(axis=1))
    if own is not None:
        paired = folds.with_known_items(banks, right, paired, FEWEST_PAIRS)
    distinct = (len(np.unique(right[right >= 0])), bank_checks.num_distinct(banks.query[paired]))
    if min(len(paired), *distinct) < FEWEST_PAIRS:
        return choice(reason_code=FEW_PAIRS)
    if is_foreign(*own_share) and not trust_banks:
        return choice(reason_code=UNLIKE)
    split = folds.split_pairs(banks, right, paired, min(num_folds, len(paired)), rng, asked)
    spread = folds.spread(banks.query, split.columns, split.excluded_query, similarity_fn)
    if not (spread > 0 and np.isfinite(spread)):
        return choice(reason_code=CONSTANT)
    num_wrong_pairs = wrong_pairs.num_wrong(banks, split, right, rng, similarity_fn)
    choice = partial(choice, num_wrong_pairs=num_wrong_pairs)
    if num_wrong_pairs and not trust_banks:
        return choice(reason_code=WRONG_PAIRS)
    grid_code = MERGEABLE if mergeable else WHOLE_GRID
    if not mergeable and not folds.fits_in_memory(banks, split):
        grid_code = TOO_LARGE
    table = grid.grid(
        spread,
        mergeable=grid_code != WHOLE_GRID,
        half_lives=folds.half_lives(asked).tolist(),
        own=own is not None,
    )
    held_out = folds.HeldOut(banks, split, table, similarity_fn, spread, times=asked, own=own)
    gains = Gains.of(held_out.scores(held_out.biases))
    groups = right[split.held_out].max(axis=1)
    found = proof.evidence(gains.likelihood, groups, seed, level)
    frequency = gains.frequencies(found, groups, level=level, seed=seed)
    return _choice(
        table,
        **choice.keywords,
        reason_code=NOT_PROVEN if frequency[0] == 1 else CHOSEN,
        frequency=_floats(frequency),
        gain=_floats(found.gain),
        standard_error=_floats(found.standard_error),
        p_value=_floats(found.p_value),
        reciprocal_rank_gain=_floats(gains.reciprocal_rank.mean(axis=0)),
        recall_gain=_floats(gains.recall.mean(axis=0)),
        limits=_floats(_limits(held_out, gains, groups, frequency, level=level, seed=seed)),
        spread=_floats(spread),
        grid_code=grid_code,
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
    times: ArrayLike | None = None,
    biases: ArrayLike | None = None,
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
      times: [num_query_bank], those that `tune` was given; rows decay from the newest one on. Where
        the choice mixes no bank that decays they change nothing.
      biases: [num_gallery], what `tune` was given, for these items: it enters with the weights that
        were found, and not at all where raw is kept. To a choice that was made without, it is added
        whole, on your own account: neither choice nor guarantee knows of it.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).

    Returns:
      Correction; a zero bias where raw is the choice.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, pairs out of range; no gallery bank
        though the choice was made with one; no pairs though gallery-bank rows are gallery items
        (pairs of -1 leave none out); no times or biases though the choice mixes what needs them,
        some of another length or not finite.
      TypeError: no Choice, pairs that are not integers, biases that are not floating point.

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
    own, asked = folds.own_bias(biases, len(banks.items)), folds.times_of(times, len(banks.query))
    judged = bool(np.asarray(choice.weight_own).any())  # whether the choice knows of it
    items, query = jax.device_put((banks.items, banks.query))  # uncopied, where they can be
    exclude = {}
    if choice.name != RAW:
        partners = folds.partners(banks.gallery, right, [banks.items])
        exclude = {} if partners is None else partners._asdict()
    source = Streamed(items, query, jnp.asarray(banks.gallery), exclude, similarity_fn)
    dtype = numerics.accumulation_dtype(items.dtype, query.dtype)
    known: Any = {
        "similarity_fn": similarity_fn,
        "times": asked,
        "own": own if judged else None,
    }
    fitted = mixture.fit_chosen(choice, source, len(items), dtype, **known)
    return fitted if own is None or judged else mixture.added(fitted, own)


@overload
def auto(
    *,
    gallery: ArrayLike,
    query_bank: ArrayLike,
    gallery_bank: ArrayLike | None = None,
    pairs: Relevant | None = None,
    times: ArrayLike | None = None,
    biases: ArrayLike | None = None,
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
    times: ArrayLike | None = None,
    biases: ArrayLike | None = None,
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
    times: ArrayLike | None = None,
    biases: ArrayLike | None = None,
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
      times: [num_query_bank], as in `tuning.tune`: when each row was asked.
      biases: [num_gallery], as in `tuning.tune`: a bias of one's own, used as far as it is proven.
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
        "times": times,
        "biases": biases,
        "similarity_fn": similarity_fn,
    }
    choice = tune(**known, seed=seed, trust_banks=trust_banks)
    correction = fit(choice, **known)
    return (correction, choice) if return_choice else correction


class Gains(NamedTuple):
    """Over raw, the first candidate: [num_held_out, num_candidates] each."""

    likelihood: Floats
    log_rank: Floats
    reciprocal_rank: Floats
    recall: Floats

    @classmethod
    def of(cls, scores: Any) -> "Gains":
        """From the scores of held-out queries."""
        ranks = scores.ranks
        values = (scores.log_likelihood, -np.log(ranks), 1 / ranks, np.where(ranks <= 1, 1.0, 0.0))
        return cls(*(value - value[:, :1] for value in values))

    def frequencies(
        self, found: proof.Evidence, groups: Integers, *, level: float, seed: int
    ) -> Floats:
        """What is mixed: the highest likelihood, where no rank measure loses."""
        ranks = self.log_rank, self.reciprocal_rank
        return proof.frequencies(found, self.likelihood, *ranks, groups, level=level, seed=seed)


def _limits(
    held_out: folds.HeldOut,
    gains: Gains,
    groups: Integers,
    frequency: Floats,
    *,
    level: float,
    seed: int,
) -> Floats:
    """[2] what `Choice.guarantee` names; exactly 0 where raw is served.

    Every fold is scored under what the whole procedure makes of the other folds, the selection and
    all. So the limit is of what was selected without the query, from nine tenths of the pairs. A
    query is ranked among the items that will be searched and its own right ones: among the right
    items of other queries too, more would be gained and lost.
    """
    if frequency[0] == 1:
        return np.zeros(2)
    fold_of, shares = held_out.folds, []
    for fold in range(len(held_out.biases)):
        others = fold_of != fold
        rest = Gains(*(values[others] for values in gains))
        found = proof.evidence(rest.likelihood, groups[others], seed, level)
        shares.append(rest.frequencies(found, groups[others], level=level, seed=seed))
    served = mixture.mixed(jnp.asarray(np.array(shares), held_out.biases.dtype), held_out.biases)
    both = jnp.stack([jnp.zeros_like(served), served], axis=1)
    crossed = Gains.of(held_out.scores(both, as_searched=True))
    limits = [proof.lower_limit(v[:, 1], groups) for v in (crossed.recall, crossed.reciprocal_rank)]
    return np.array(limits)


def _choice(table: grid.Candidates, **known: Any) -> Choice:
    """What is not known is 0, and raw is served."""
    none = np.zeros(len(table.method))
    unknown: dict[str, Any] = dict.fromkeys(
        ("gain", "standard_error", "reciprocal_rank_gain", "recall_gain"), none
    )
    raw = np.arange(len(none)) == 0
    unknown |= {"p_value": none + 1, "frequency": raw, "limits": np.zeros(2), "spread": 0.0}
    fields: dict[str, Any] = {
        **dict.fromkeys(("num_held_out", "num_columns", "num_folds"), 0),
        "methods": methods(),
        **{name: jnp.asarray(values) for name, values in table._asdict().items()},
        **{name: _floats(values) for name, values in unknown.items()},
    }
    return Choice(**(fields | known))


def _floats(values: Any) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.float32))
