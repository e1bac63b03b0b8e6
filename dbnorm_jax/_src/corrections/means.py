"""Corrections by a mean of bank similarities: CSLS, NNN and DN. Part of `dbnorm_jax.baselines`.

    score(q, g) = s(q, g) - weight x mean of the k largest s(b, g)

CSLS is the weight 1/2, DN the mean over the whole bank.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.types import Correction, LargestSimilarities


def csls(largest: LargestSimilarities) -> Correction:
    """CSLS: `2 s(q, g) - r_G(q) - r_B(g)`, as `s(q, g) - r_B(g) / 2`.

    `r_B(g)` is the mean of g's k largest similarities to the query bank (k = 10 in the paper). The
    query's own mean `r_G(q)` and the factor 2 change no ranking and are left out.

    Args:
      largest: of the query bank, values [..., k, num_gallery].

    Returns:
      Correction with one term that always acts.

    Raises:
      ValueError: a gallery item without any bank item.
      TypeError: anything but LargestSimilarities.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> largest = dbn.largest_similarities(jnp.array([[0.5, 0.0], [1.0, 0.5]]), k=2)
      >>> print(dbn.baselines.csls(largest).bias)
      [[0.375 0.125]]

    References:
      Conneau et al., ICLR 2018, equation 3.
    """
    return nearest_neighbor_normalization(largest, weight=0.5)


def nearest_neighbor_normalization(
    largest: LargestSimilarities, *, weight: ArrayLike = 0.75
) -> Correction:
    """NNN: `s(q, g) - weight x mean of the k largest s(b, g)`.

    Args:
      largest: of the query bank, values [..., k, num_gallery]; the paper's k is 16 to 512.
      weight: `alpha`, the share of the mean that is subtracted.

    Returns:
      Correction with one term that always acts.

    Raises:
      ValueError: a gallery item without any bank item, a weight that is not finite.
      TypeError: anything but LargestSimilarities.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> largest = dbn.largest_similarities(jnp.array([[0.5, 0.0], [1.0, 0.5]]), k=1)
      >>> print(dbn.baselines.nearest_neighbor_normalization(largest, weight=0.5).bias)
      [[0.5  0.25]]

    References:
      Chowdhury et al., EMNLP 2024.
    """
    checks.instance("largest", largest, LargestSimilarities, "make it with largest_similarities")
    if checks.found(_lacks_bank_item, largest.values):
        raise checks.BadValueError(
            "largest",
            " must have a bank item for every gallery item, found a column without any; "
            "widen `where` or the bank",
        )
    return _weighted_mean(largest, _weight(weight, largest.values.dtype))


def distribution_normalization(
    query_bank_mean: ArrayLike, gallery: ArrayLike, *, weight: ArrayLike = 0.5
) -> Correction:
    """DN: `(q - weight mu_Q) . (g - weight mu_G)`, as `s(q, g) - weight mu_Q . g`.

    What else the product holds is one constant per query. For inner products it equals NNN with k
    the size of the bank.

    Args:
      query_bank_mean: [dim] `mu_Q`, the mean of the query bank's embeddings.
      gallery: [num_gallery, dim] embeddings, as they are searched (unit rows for cosines).
      weight: `lambda`.

    Returns:
      Correction with one term that always acts.

    Raises:
      ValueError: shapes that do not fit, values that are not finite.
      TypeError: arrays that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> mean, gallery = jnp.array([1.0, 0.0]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(dbn.baselines.distribution_normalization(mean, gallery).bias)
      [[0.5 0. ]]

    References:
      Zhou et al., NeurIPS 2023.
    """
    mean = checks.floating("query_bank_mean", query_bank_mean, ndim=1)
    gallery = checks.embeddings("gallery", gallery)
    if mean.shape[0] != gallery.shape[1]:
        raise checks.BadValueError(
            "query_bank_mean",
            f" must have the gallery's {gallery.shape[1]} dimensions, got {mean.shape[0]}",
        )
    dtype = numerics.accumulation_dtype(mean.dtype, gallery.dtype)
    return _distribution_normalization(mean, gallery, _weight(weight, dtype))


@jax.jit
def _distribution_normalization(
    mean: jax.Array, gallery: jax.Array, weight: jax.Array
) -> Correction:
    return Correction(weight * numerics.product_transposed(mean[None], gallery), None)


@jax.jit
def _weighted_mean(largest: LargestSimilarities, weight: jax.Array) -> Correction:
    return Correction(weight * largest.mean[..., None, :], None, largest.similarity)


def _weight(weight: Any, dtype: jnp.dtype) -> jax.Array:
    array = checks.real("weight", weight, dtype)
    if array.ndim:
        raise checks.BadTypeError("weight", f" must be a real number, got {weight!r}")
    checks.check_finite("weight", array)
    return array


def _lacks_bank_item(values: Any) -> Any:
    return ~(values[..., 0, :] > -np.inf).all()
