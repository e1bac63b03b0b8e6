"""The four normalizers of the paper: bank statistics -> Correction.

With `bias_B(g; beta) = (log Z_B(g; beta) - log |B|) / beta`, weights `w_i = beta_i / (beta_1 +
beta_2)` and gates `a` in {0, 1} (is the query's raw top-1 in the bank's activation set),

    score(q, g) = s(q, g) - a_Q(q) w_1 bias_Q(g; beta_1) - a_G(q) w_2 bias_G(g; beta_2).

Up to a positive factor this is the logarithm of the published products of exponentials, so IS, DIS
and DualIS rank as published at any beta without overflow, and scores stay on the scale of the
similarity whichever gates are open; DualDIS does where both gates are open.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.similarity import agreed
from dbnorm_jax._src.core.types import BankStatistics, Correction


def inverted_softmax(query_statistics: BankStatistics) -> Correction:
    """IS, the inverted softmax: `exp(beta s(q, g)) / Z_Q(g)`, as `s(q, g) - bias_Q(g)`.

    Args:
      query_statistics: of the query bank, fields [..., num_gallery].

    Returns:
      Correction with one term that always acts.

    Raises:
      TypeError: anything but BankStatistics.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> statistics = dbn.bank_statistics(jnp.array([[0.9, 0.1]]), beta=20.0)
      >>> print(jnp.array_str(dbn.inverted_softmax(statistics).bias, precision=3))
      [[0.9 0.1]]

    References:
      Smith et al., ICLR 2017.
    """
    return _single(_checked("query_statistics", query_statistics, gated=False))


def dynamic_inverted_softmax(query_statistics: BankStatistics) -> Correction:
    """DIS: IS on queries whose raw top-1 lies in the query bank's activation set, raw otherwise.

    Args:
      query_statistics: of the query bank with `k >= 1`, fields [..., num_gallery].

    Returns:
      Correction with one gated term.

    Raises:
      ValueError: statistics without an activation set (`k == 0`).
      TypeError: anything but BankStatistics.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> statistics = dbn.bank_statistics(jnp.array([[0.9, 0.1, 0.2]]), beta=20.0)
      >>> correction = dbn.dynamic_inverted_softmax(statistics)
      >>> queries = jnp.array([[0.5, 0.4, 0.0], [0.4, 0.5, 0.0]])      # raw top-1: item 0, item 1
      >>> print(dbn.gates(queries, correction).T)
      [[1. 0.]]

    References:
      Bogolin et al., CVPR 2022, QB-Norm. Their code takes the gate after the exponential, which
      saturates; here it reads the raw similarities.
    """
    return _single(_checked("query_statistics", query_statistics, gated=True))


def dual_inverted_softmax(
    query_statistics: BankStatistics,
    gallery_statistics: BankStatistics,
    *,
    weights: ArrayLike | None = None,
) -> Correction:
    """DualIS: `exp(b1 s) / Z_Q(g; b1) * exp(b2 s) / Z_G(g; b2)`, as `s - w1 bias_Q - w2 bias_G`.

    Args:
      query_statistics: of the query bank with beta b1, fields [..., num_gallery].
      gallery_statistics: of the gallery bank with beta b2. Gallery items are closer to each other
        than to queries: b2 is much smaller than b1 (20 and 1 for cosines is a start).
      weights: optional (w_query, w_gallery); the published `b_i / (b1 + b2)` when None.

    Returns:
      Correction with two terms that always act.

    Raises:
      ValueError: statistics of galleries of different size, or weights that are not a pair of
        finite numbers.
      TypeError: anything but BankStatistics.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> query_statistics = dbn.bank_statistics(jnp.array([[0.9, 0.1]]), beta=3.0)
      >>> gallery_statistics = dbn.bank_statistics(jnp.array([[0.4, 0.8]]), beta=1.0)
      >>> print(dbn.dual_inverted_softmax(query_statistics, gallery_statistics).bias.round(3))
      [[0.675 0.075]
       [0.1   0.2  ]]

    References:
      Wang, Jian and Xue, Balance Act, EMNLP 2023. In the released code the test similarities are
      never read; here they are what is corrected.
    """
    return _dual(query_statistics, gallery_statistics, weights, gated=False)


def dual_dynamic_inverted_softmax(
    query_statistics: BankStatistics,
    gallery_statistics: BankStatistics,
    *,
    weights: ArrayLike | None = None,
) -> Correction:
    """DualDIS: each of DualIS's two terms acts where the raw top-1 is in its bank's activation set.

    `score = s - a_Q(q) w1 bias_Q(g; b1) - a_G(q) w2 bias_G(g; b2)`.

    Args:
      query_statistics: of the query bank with beta b1 and `k >= 1`, fields [..., num_gallery].
      gallery_statistics: of the gallery bank with beta b2 and `k >= 1`.
      weights: optional (w_query, w_gallery); the published `b_i / (b1 + b2)` when None.

    Returns:
      Correction with two gated terms.

    Raises:
      ValueError: statistics without an activation set, of galleries of different size, or weights
        that are not a pair of finite numbers.
      TypeError: anything but BankStatistics.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> query_statistics = dbn.bank_statistics(jnp.array([[0.9, 0.1]]), beta=3.0)
      >>> gallery_statistics = dbn.bank_statistics(jnp.array([[0.4, 0.8]]), beta=1.0)
      >>> correction = dbn.dual_dynamic_inverted_softmax(query_statistics, gallery_statistics)
      >>> print(dbn.gates(jnp.array([[0.6, 0.5]]), correction))    # raw top-1: item 0
      [[1. 0.]]

    References:
      Wang, Jian and Xue, Balance Act, EMNLP 2023. On rows with one open gate the released code
      multiplies by the raw similarity, which changes the scale from row to row and reverses
      negative similarities: `published_scores` reproduces it.
    """
    return _dual(query_statistics, gallery_statistics, weights, gated=True)


def _checked(name: str, statistics: Any, *, gated: bool) -> BankStatistics:
    """The statistics, without their activation set where there is no gate."""
    remedy = "make it with bank_statistics or stream_bank_statistics"
    checks.instance(name, statistics, BankStatistics, remedy)
    if not gated:
        return dataclasses.replace(statistics, k_occurrence=None)
    if statistics.k_occurrence is None:
        raise checks.BadValueError(
            name,
            " must carry an activation set, got statistics with k=0; "
            "make them with k=1 or more, or use the normalizer without a gate",
        )
    return statistics


@jax.jit
def _single(statistics: BankStatistics) -> Correction:
    active = None if statistics.active is None else statistics.active[..., None, :]
    return Correction(statistics.bias[..., None, :], active, statistics.similarity)


def _dual(
    query_statistics: Any, gallery_statistics: Any, weights: Any, *, gated: bool
) -> Correction:
    query_statistics = _checked("query_statistics", query_statistics, gated=gated)
    gallery_statistics = _checked("gallery_statistics", gallery_statistics, gated=gated)
    if weights is not None:
        try:
            query_weight, gallery_weight = weights
        except (TypeError, ValueError):
            raise checks.BadValueError(
                "weights", f" must be a pair (w_query, w_gallery), got {weights!r}"
            ) from None
        pair = {"weights[0]": query_weight, "weights[1]": gallery_weight}
        weights = [checks.floating(name, checks.real(name, one)) for name, one in pair.items()]
    if query_statistics.num_gallery != gallery_statistics.num_gallery:
        raise checks.BadValueError(
            "query_statistics",
            f" has {query_statistics.num_gallery} gallery items but "
            f"`gallery_statistics` has {gallery_statistics.num_gallery}; "
            f"both banks must be compared with the same gallery",
        )
    agreed(("query_statistics", query_statistics), ("gallery_statistics", gallery_statistics))
    return _dual_jit(checks.alike(query_statistics, gallery_statistics), weights)


@jax.jit
def _dual_jit(
    banks: tuple[BankStatistics, BankStatistics], weights: list[jax.Array] | None
) -> Correction:
    dtype = numerics.accumulation_dtype(*(bank.bias.dtype for bank in banks))
    if weights is None:
        betas = jnp.broadcast_arrays(*(bank.beta.astype(dtype) for bank in banks))
        weights = [beta / (betas[0] + betas[1]) for beta in betas]
    terms = []
    for weight, bank in zip(weights, banks, strict=True):
        pair = jnp.broadcast_arrays(weight.astype(dtype)[..., None], bank.bias.astype(dtype))
        terms.append(pair[0] * pair[1])
    gates = [bank.active for bank in banks if bank.active is not None]
    active = jnp.stack(jnp.broadcast_arrays(*gates), axis=-2) if gates else None
    similarity = banks[0].similarity or banks[1].similarity
    return Correction(jnp.stack(jnp.broadcast_arrays(*terms), axis=-2), active, similarity)
