"""The scores of the paper's released code, for conformance and for the paper's row in tables."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, elementary, numerics
from dbnorm_jax._src.core.types import BankStatistics, Correction
from dbnorm_jax._src.retrieval.search import gates

# exp of both is a float32; half the first less half the log of the smallest one is the second.
_LARGEST_PRODUCT = 80.0
_LARGEST_EXPONENT = 85.0


def published_scores(
    similarities: ArrayLike,
    query_statistics: BankStatistics,
    gallery_statistics: BankStatistics | None = None,
) -> jax.Array:
    """IS, DIS, DualIS and DualDIS as the released code scores them, without its overflow.

    One factor per bank: `exp(beta s(q, g)) / Z(g)` where the gate of q is open, the raw `s(q, g)`
    where it is closed. A factor is gated iff its statistics carry an activation set (`k >= 1`), so
    statistics with `k = 0` give IS and DualIS. With two banks a row is ratio x ratio, ratio x s,
    s x ratio or s x s.

    Use it to compare with published numbers, not to retrieve: `s x s` reverses the order of
    negative similarities, and the scale differs from row to row.

    Args:
      similarities: [..., num_queries, num_gallery], raw.
      query_statistics: of the query bank.
      gallery_statistics: of the gallery bank; None for IS and DIS.

    Returns:
      [..., num_queries, num_gallery], the released scores up to a positive factor per row. Products
      beyond the range of the dtype below the row's largest (float32: about 1e72) are 0.

    Raises:
      ValueError: a non-finite matrix, statistics of another number of gallery items.
      TypeError: a matrix that is not floating point, no BankStatistics.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> statistics = dbn.bank_statistics([[0.9, 0.1, 0.2]], beta=20.0, k=1)
      >>> s = [[0.1, 0.3, 0.2]]                         # raw top-1 is item 1, which is not active
      >>> print(dbn.published_scores(s, statistics))    # so the row stays raw
      [[0.1 0.3 0.2]]

    References:
      Wang, Jian and Xue, EMNLP 2023; Bogolin et al., CVPR 2022. The released code passes the
      gallery bank's similarities for the test similarities, overwrites its inputs, and gates on
      exponentials; this is what it computes when called the right way round on copies.
    """
    similarities = checks.similarities("similarities", similarities, rows="queries")
    banks = {"query_statistics": query_statistics}
    if gallery_statistics is not None:
        banks["gallery_statistics"] = gallery_statistics
    for name, statistics in banks.items():
        checks.instance(name, statistics, BankStatistics, "make it with bank_statistics")
        checks.matching_gallery(name, statistics.num_gallery, "similarities", similarities.shape)
    return _published_scores(similarities, checks.unsplit(tuple(banks.values())))


@jax.jit
def _published_scores(similarities: jax.Array, banks: tuple[BankStatistics, ...]) -> jax.Array:
    dtype = numerics.accumulation_dtype(similarities.dtype, *(bank.bias.dtype for bank in banks))
    similarities = similarities.astype(dtype)

    def ratio(row: jax.Array, log_normalizer: jax.Array, beta: jax.Array) -> jax.Array:
        return beta * row - jnp.where(log_normalizer == -jnp.inf, 0, log_normalizer)

    def product(row: jax.Array, opens: jax.Array, log_ratios: jax.Array) -> jax.Array:
        # Written: its maximum is subtracted from it.
        exponent = elementary.written(jnp.where(opens[:, None], log_ratios, 0).sum(axis=0))
        factor = jnp.where(opens[:, None], 1, row[None]).prod(axis=0)
        # One exponential for the whole product, shifted to make the best of the range: that leaves
        # the ranking of the row. Taken in halves, so that a small raw factor comes in between; the
        # bound only acts where the factor is 0. The shift stays in the scores, so its slope counts.
        sizes = exponent + jnp.log(jnp.where(factor == 0, 1, jnp.abs(factor)))
        top = jnp.where(factor == 0, numerics.lowest(dtype), sizes).max()
        shifted = exponent - top + _LARGEST_PRODUCT
        half = jnp.exp(jnp.where(opens.any(), jnp.minimum(shifted / 2, _LARGEST_EXPONENT), 0))
        return half * factor * half

    ratios = numerics.vectorize(ratio, "(g),(g),()->(g)")
    log_ratios = [
        ratios(
            similarities,
            bank.log_normalizer[..., None, :].astype(dtype),
            bank.beta[..., None].astype(dtype),
        )
        for bank in banks
    ]
    opens = [_gate(similarities, bank) for bank in banks]
    scores: jax.Array = numerics.vectorize(product, "(g),(t),(t,g)->(g)")(
        similarities,
        jnp.stack(jnp.broadcast_arrays(*opens), axis=-1),
        jnp.stack(jnp.broadcast_arrays(*log_ratios), axis=-2),
    )
    return scores


def _gate(similarities: jax.Array, bank: BankStatistics) -> jax.Array:
    """[..., num_queries] bool."""
    if bank.active is None:
        return jnp.ones(similarities.shape[:-1], bool)
    bias = jnp.zeros((*bank.active.shape[:-1], 1, bank.num_gallery), similarities.dtype)
    return gates(similarities, Correction(bias, bank.active[..., None, :]))[..., 0] > 0
