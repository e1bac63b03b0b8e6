"""Hubness measures of a k-occurrence: how unevenly the gallery is retrieved."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, filling, numerics, seen
from dbnorm_jax._src.core.types import SearchResult

# How far a mean may be rounded, in units of the dtype's resolution.
_ROUNDINGS = 4.0
# Larger counts are scaled down by it: the sums of 2^31 of them, each times 2^31, are finite then.
# A power of two, which rounds nothing.
_LARGE = 2.0**64


def k_occurrence(
    indices: ArrayLike | SearchResult, num_gallery: int, *, where: ArrayLike | None = None
) -> jax.Array:
    """`N_k(g)`, the number of queries with g among their k nearest (Radovanovic et al., JMLR 2010).

    Args:
      indices: int [..., num_queries, k] gallery rows, -1 in empty places; or a SearchResult.
      num_gallery: size of the gallery (static).
      where: optional bool [..., num_queries] or [..., num_queries, k], the places to count.

    Returns:
      int32 [..., num_gallery].

    Raises:
      ValueError: indices out of range or with fewer than two axes, a mask that does not fit.
      TypeError: indices that are not integers.

    Examples:
      >>> from dbnorm_jax import hubness
      >>> print(hubness.k_occurrence([[0], [2], [2]], 4))
      [1 0 2 0]
    """
    num_gallery = checks.integer("num_gallery", num_gallery, low=1, high=checks.MOST_ROWS)
    if isinstance(indices, SearchResult):
        indices = indices.indices
    indices = checks.indices("indices", indices, low=-1, high=num_gallery)
    if indices.ndim < 2:
        raise checks.BadValueError(
            "indices",
            f" must be [num_queries, k], got shape {indices.shape}; for k = 1 use indices[:, None]",
        )
    if where is not None:
        where = seen.mask("where", where)
        shapes = (indices.shape[:-1], (*indices.shape[:-1], 1), indices.shape)
        if where.shape not in shapes:
            raise checks.BadValueError(
                "where", f" must have shape {shapes[0]} or {shapes[-1]}, got {where.shape}"
            )
    found: Any = indices
    if found.ndim == 2:
        found = filling.filled_up(found, fill=-1)
        where = filling.filled_up(where, len(found), fill=False)
    return _k_occurrence(found, where, num_gallery=num_gallery)


@partial(jax.jit, static_argnames="num_gallery")
def _k_occurrence(indices: jax.Array, where: jax.Array | None, *, num_gallery: int) -> jax.Array:
    if where is None:
        where = jnp.ones(indices.shape, bool)
    elif where.ndim < indices.ndim:
        where = where[..., None]
    where = jnp.broadcast_to(where, indices.shape)

    def one(indices: jax.Array, where: jax.Array) -> jax.Array:
        places = jnp.where(where & (indices >= 0), indices, num_gallery)  # out of bounds: dropped
        return jnp.zeros(num_gallery, jnp.int32).at[places].add(1, mode="drop")

    return numerics.vectorize(one, signature="(q,k),(q,k)->(g)")(indices, where)


def skewness(counts: ArrayLike) -> jax.Array:
    """Population skewness of the counts, `mean((N - mean)^3) / std^3`; 0 for constant counts.

    Args:
      counts: [..., num_gallery] k-occurrence.

    Returns:
      [...]; positive = hubs.

    Examples:
      >>> from dbnorm_jax import hubness
      >>> print(f"{hubness.skewness([0, 0, 0, 4]):.4f}")    # 2 / sqrt(3)
      1.1547
    """
    counts = _checked(counts)
    if isinstance(counts, np.ndarray):  # JAX would round it, or cut it off, first
        counts = checks.real("counts", _excess(counts))
    return _skewness(counts)


def _excess(counts: Any) -> Any:
    """Counts beyond the smallest; float32 makes 2^40 and 2^40 + 1 one number, but not 0 and 1."""
    return counts - counts.min(axis=-1, keepdims=True)


@jax.jit
def _skewness(counts: jax.Array) -> jax.Array:
    excess = _scaled(checks.real("counts", _excess(counts)))
    # Scaled before cubing: the third power of large counts leaves the range of float32.
    scale = excess.max(axis=-1, keepdims=True)
    deviation = excess / jnp.where(scale > 0, scale, 1)
    for _ in range(2):  # the first mean is rounded, and its error is a mean, too
        deviation = deviation - deviation.mean(axis=-1, keepdims=True)
    variance = jnp.square(deviation).mean(axis=-1)
    spread = variance > 0
    third = (deviation * deviation * deviation).mean(axis=-1)
    return jnp.where(spread, third / jnp.where(spread, variance, 1) ** 1.5, 0)


def hub_share(counts: ArrayLike, *, factor: float = 2.0) -> jax.Array:
    """Share of gallery items that are hubs, `N_k >= factor * mean(N_k)` up to 5e-7 of rounding.

    Args:
      counts: [..., num_gallery] k-occurrence.
      factor: how many times the mean makes a hub.

    Returns:
      [...] in [0, 1]; 0 when nothing was retrieved.

    Examples:
      >>> from dbnorm_jax import hubness
      >>> print(hubness.hub_share([0, 0, 1, 3]))
      0.25
    """
    return _hubs(_counts(counts), factor).mean(axis=-1)


def hub_occurrence(counts: ArrayLike, *, factor: float = 2.0) -> jax.Array:
    """Share of all places in the top-k lists that hubs take.

    Args:
      counts: [..., num_gallery] k-occurrence.
      factor: how many times the mean makes a hub.

    Returns:
      [...] in [0, 1]; 0 when nothing was retrieved.

    Examples:
      >>> from dbnorm_jax import hubness
      >>> print(hubness.hub_occurrence([0, 0, 1, 3]))
      0.75
    """
    counts = _counts(counts)
    return _ratio((counts * _hubs(counts, factor)).sum(axis=-1), counts.sum(axis=-1))


def anti_hub_share(counts: ArrayLike) -> jax.Array:
    """Share of gallery items that are anti-hubs, `N_k = 0`: never retrieved.

    Args:
      counts: [..., num_gallery] k-occurrence.

    Returns:
      [...] in [0, 1].

    Examples:
      >>> from dbnorm_jax import hubness
      >>> print(hubness.anti_hub_share([0, 0, 1, 3]))
      0.5
    """
    counts = _counts(counts)
    return (counts == 0).astype(counts.dtype).mean(axis=-1)


def gini(counts: ArrayLike) -> jax.Array:
    """Gini coefficient, `sum_ij |N_i - N_j| / (2 n sum N)`: 0 even, towards 1 all on one item.

    Args:
      counts: [..., num_gallery] k-occurrence.

    Returns:
      [...] in [0, 1); 0 when nothing was retrieved.

    Examples:
      >>> from dbnorm_jax import hubness
      >>> print(hubness.gini([0, 0, 0, 4]), hubness.gini([2, 2]))
      0.75 0.0
    """
    counts = _counts(counts)
    num_gallery = counts.shape[-1]
    places = jnp.arange(1, num_gallery + 1, dtype=counts.dtype)
    rows = jnp.sort(counts, axis=-1).reshape(-1, num_gallery)
    weighted = (rows * (2 * places - num_gallery - 1)[None]).sum(axis=-1)
    weighted = weighted.reshape(counts.shape[:-1])
    return _ratio(weighted, num_gallery * counts.sum(axis=-1))


def robin_hood(counts: ArrayLike) -> jax.Array:
    """Robin Hood index, `sum |N - mean| / (2 sum N)`: share to be moved for an even spread.

    Args:
      counts: [..., num_gallery] k-occurrence.

    Returns:
      [...] in [0, 1); 0 when nothing was retrieved.

    Examples:
      >>> from dbnorm_jax import hubness
      >>> print(hubness.robin_hood([0, 0, 0, 4]))
      0.75
    """
    counts = _counts(counts)
    deviation = jnp.abs(counts - counts.mean(axis=-1, keepdims=True)).sum(axis=-1)
    return _ratio(deviation / 2, counts.sum(axis=-1))


def atkinson(counts: ArrayLike, *, epsilon: float = 0.5) -> jax.Array:
    """Atkinson index, `1 - mean(N^(1 - epsilon))^(1 / (1 - epsilon)) / mean(N)`.

    Args:
      counts: [..., num_gallery] k-occurrence.
      epsilon: aversion to inequality, > 0 (static); at 1 with the geometric mean. From 1 on, one
        anti-hub makes the index 1.

    Returns:
      [...] in [0, 1]; 0 when nothing was retrieved.

    Raises:
      ValueError: epsilon <= 0.

    Examples:
      >>> from dbnorm_jax import hubness
      >>> print(hubness.atkinson([0, 0, 0, 4]))    # 1 - (2 / 4)^2 / 1
      0.75
    """
    checks.check_static("epsilon", epsilon)
    if not epsilon > 0:
        raise checks.BadValueError("epsilon", f" must be positive, got {epsilon}")
    return _atkinson(_counts(counts), epsilon=float(epsilon))


@partial(jax.jit, static_argnames="epsilon")
def _atkinson(counts: jax.Array, *, epsilon: float) -> jax.Array:
    retrieved = counts.sum(axis=-1) > 0
    mean = counts.mean(axis=-1)
    relative = counts / jnp.where(retrieved, mean, 1)[..., None]
    if epsilon == 1:
        center = jnp.exp(jnp.log(relative).mean(axis=-1))
    else:
        center = (relative ** (1 - epsilon)).mean(axis=-1) ** (1 / (1 - epsilon))
    return jnp.where(retrieved, 1 - center, 0)


def _no_count(counts: Any) -> Any:
    return ~((counts >= 0) & (counts < np.inf)).all()


def _counts(counts: Any) -> jax.Array:
    return _scaled(checks.real("counts", _checked(counts)))


@jax.jit
def _scaled(counts: jax.Array) -> jax.Array:
    """So small that no sum overflows; the measures do not depend on the scale."""
    largest = counts.max(axis=-1, keepdims=True)
    return counts * jnp.where(largest > _LARGE, 1 / _LARGE, 1).astype(counts.dtype)


def _checked(counts: Any) -> Any:
    """An array of NumPy or JAX, in its own dtype."""
    array = checks.numeric("counts", counts)
    if not checks.is_real(array):
        raise checks.BadTypeError("counts", f" must be numbers, got dtype {array.dtype}")
    if array.ndim < 1 or array.shape[-1] == 0:
        raise checks.BadValueError(
            "counts", f" must be [..., num_gallery], got shape {array.shape}"
        )
    if checks.found(_no_count, array):
        raise checks.BadValueError(
            "counts",
            f" must be finite, neither negative nor NaN, got values from "
            f"{np.asarray(array).min()} to {np.asarray(array).max()}",
        )
    checks.check_none_vanishes("counts", array, jax.dtypes.canonicalize_dtype(array.dtype))
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return checks.real("counts", array) if narrow else array


def _hubs(counts: jax.Array, factor: float) -> jax.Array:
    """[..., num_gallery], 1 where an item is a hub."""
    threshold = checks.real("factor", factor, counts.dtype) * counts.mean(axis=-1, keepdims=True)
    # A count at the threshold is a hub, also where the mean was rounded up.
    resolution = float(jnp.finfo(counts.dtype).eps)  # type: ignore[no-untyped-call]
    threshold = threshold * (1 - _ROUNDINGS * resolution)
    return ((counts >= threshold) & (counts > 0)).astype(counts.dtype)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
