"""The state of every correction: flat pytrees, and the pair a search returns.

Axes: gallery is always last; leading axes (`...`) are batch, as `jax.vmap` makes them.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.log_mean_exp import Means
from dbnorm_jax._src.core.naming import publish


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BankStatistics:
    """What a bank says about each gallery item; merges over parts of the bank.

    With weights w_b, `bias = (1 / beta) log (sum_b w_b exp(beta s(b, g)) / sum_b w_b)`.

    Attributes:
      bias: [..., num_gallery], unit of similarity: from the mean of the similarities of a column,
        where beta is small, to their maximum, where it is large; 0 for an empty column.
      bias_rest: [..., num_gallery], what the rounding of the bias has left over.
      weight: [..., num_gallery], sum of the weights that entered the column, in units of
        `2^(64 weight_exponent)`.
      weight_rest: [..., num_gallery], what its rounding has left over.
      weight_exponent: [..., num_gallery] int32, 0 for a sum between 2^-32 and 2^32.
      beta: [...], inverse temperature, 1 / [unit of similarity].
      k_occurrence: [..., num_gallery] int32, number of bank items that have g among their `k`
        nearest; None when `k == 0`.
      k: size of the neighborhoods behind the activation set (static).
      similarity: name of the function of this package that compared bank and gallery, such as
        "dot_product"; None = another or unknown, which agrees with everything (static).

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> s = jnp.array([[0.9, 0.1, 0.2], [0.8, 0.1, 0.3]])
      >>> statistics = dbn.bank_statistics(s, beta=20.0, k=1)
      >>> print(statistics.active, jnp.array_str(statistics.bias, precision=3))
      [ True False False] [0.872 0.1   0.272]
    """

    bias: jax.Array
    bias_rest: jax.Array
    weight: jax.Array
    weight_rest: jax.Array
    weight_exponent: jax.Array
    beta: jax.Array
    k_occurrence: jax.Array | None
    k: int = dataclasses.field(metadata={"static": True})
    similarity: str | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def of(
        cls, means: Means, beta: jax.Array, k_occurrence: jax.Array | None, k: int
    ) -> "BankStatistics":
        """Statistics of these means; their similarity is unknown."""
        return cls(**means._asdict(), beta=beta, k_occurrence=k_occurrence, k=k)

    @property
    def means(self) -> Means:
        """The fields that stand for each column, as one."""
        return Means(self.bias, self.bias_rest, self.weight, self.weight_rest, self.weight_exponent)

    @property
    def mass(self) -> jax.Array:
        """[..., num_gallery], sum of the weights; 0 or infinite beyond the range of the dtype."""
        return self.means.mass

    @property
    def log_mass(self) -> jax.Array:
        """[..., num_gallery], its log; -inf where no bank item entered the column."""
        return self.means.log_mass

    @property
    def log_normalizer(self) -> jax.Array:
        """[..., num_gallery], `log Z(g) = log sum_b w_b exp(beta s(b, g))`; -inf as its mass."""
        beta = self.beta[..., None]
        return beta * self.bias + (self.log_mass + beta * self.bias_rest)

    @property
    def active(self) -> jax.Array | None:
        """[..., num_gallery] bool, the activation set `A_B(k)`; None when `k == 0`."""
        return None if self.k_occurrence is None else self.k_occurrence > 0

    @property
    def num_gallery(self) -> int:
        """Number of gallery items."""
        return self.bias.shape[-1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LargestSimilarities:
    """The largest similarities of each gallery item to a bank; what CSLS and NNN average.

    Attributes:
      values: [..., k, num_gallery], best first; -inf in places that no bank item fills. Inside a
        caller's jit, where values cannot be checked, NaN fills none.
      similarity: of bank and gallery, as in `BankStatistics` (static).

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> s = jnp.array([[0.5, 0.25], [1.0, 0.0], [0.25, 0.75]])
      >>> print(dbn.largest_similarities(s, k=2).values)
      [[1.   0.75]
       [0.5  0.25]]
    """

    values: jax.Array
    similarity: str | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def num_gallery(self) -> int:
        """Number of gallery items."""
        return self.values.shape[-1]

    @property
    def k(self) -> int:
        """How many are kept."""
        return self.values.shape[-2]

    @property
    def mean(self) -> jax.Array:
        """[..., num_gallery], mean of the places filled; NaN where none is."""
        if jax.typeof(self.values).sharding.spec[-2]:  # no place can be cut out on its own
            filled = self.values > -jnp.inf
            total = jnp.where(filled, self.values, 0).sum(-2)
            count = filled.sum(-2, dtype=total.dtype)
        else:
            total, count = _sum_of_places(self.values)
        return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), jnp.nan)


def _sum_of_places(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum and number of places filled, place by place: a masked sum of all copies them first."""

    def add(so_far: tuple[jax.Array, jax.Array], place: jax.Array) -> tuple[Any, None]:
        total, count = so_far
        filled = place > -jnp.inf
        return (total + jnp.where(filled, place, 0), count + filled.astype(count.dtype)), None

    none = jnp.zeros_like(values, shape=(*values.shape[:-2], values.shape[-1]))
    return lax.scan(add, (none, none), jnp.moveaxis(values, -2, 0))[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
    """All that query time needs: `score(q, g) = s(q, g) - sum_t gate_t(q) bias_t(g)`.

    Attributes:
      bias: [..., num_terms, num_gallery], weights applied, unit of similarity; larger = more of a
        hub.
      active: [..., num_terms, num_gallery] bool, or soft in [0, 1]: a term acts on query q iff the
        raw top-1 of q is active; None = every term always acts.
      similarity: that it was fitted under, as in `BankStatistics` (static).

    Raises:
      ValueError: a bias of fewer than two axes.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> correction = dbn.Correction(bias=jnp.array([[0.3, 0.0]]))
      >>> print(dbn.apply_correction(jnp.array([[0.6, 0.5]]), correction).round(3))
      [[0.3 0.5]]
    """

    bias: jax.Array
    active: jax.Array | None = None
    similarity: str | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        # What stands for arrays, such as the axes of a `vmap`, has no rank.
        if getattr(self.bias, "ndim", 2) < 2:
            raise checks.BadValueError(
                "bias",
                f" must be [..., num_terms, num_gallery], got shape {self.bias.shape}; "
                f"one term alone is bias[None]",
            )

    @property
    def num_gallery(self) -> int:
        """Number of gallery items."""
        return self.bias.shape[-1]

    @property
    def num_terms(self) -> int:
        """Number of terms: one per bank."""
        return self.bias.shape[-2]


_BIAS, _ACTIVE = map(jax.tree_util.GetAttrKey, ("bias", "active"))


def _unflat(similarity: str | None, leaves: Iterable[Any]) -> Correction:
    # Not by `__init__`: what a function of leaves returns, a sum for instance, may have any rank.
    correction, (bias, active) = object.__new__(Correction), leaves
    vars(correction).update(bias=bias, active=active, similarity=similarity)
    return correction


jax.tree_util.register_pytree_with_keys(
    Correction,
    lambda one: (((_BIAS, one.bias), (_ACTIVE, one.active)), one.similarity),
    _unflat,
    lambda one: ((one.bias, one.active), one.similarity),
)


class SearchResult(NamedTuple):
    """The nearest gallery items of each query, best first.

    Attributes:
      scores: [..., num_queries, k].
      indices: [..., num_queries, k] int32, gallery rows.
    """

    scores: jax.Array
    indices: jax.Array


publish("dbnorm_jax", BankStatistics, LargestSimilarities, Correction, SearchResult)
