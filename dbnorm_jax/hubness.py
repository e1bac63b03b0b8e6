"""Hubness measures of a k-occurrence: how unevenly the gallery is retrieved.

`N_k(g)` is the number of queries with gallery item g among their k nearest; zeros are kept, and its
mean is `k num_queries / num_gallery`, which need not be k. A hub has `N_k >= 2` times that mean, an
anti-hub has `N_k = 0`. All measures take counts [..., num_gallery] and return [...]. Counts may be
integers of any size, or numbers that float32 holds.

    >>> from dbnorm_jax import hubness
    >>> import jax.numpy as jnp
    >>> counts = hubness.k_occurrence(jnp.array([[0, 1], [0, 2], [0, 1]]), 5)
    >>> print(counts, hubness.hub_share(counts), hubness.anti_hub_share(counts))
    [3 2 1 0 0] 0.2 0.4
"""

from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.retrieval.hubness import (
    anti_hub_share,
    atkinson,
    gini,
    hub_occurrence,
    hub_share,
    k_occurrence,
    robin_hood,
    skewness,
)

__all__ = [
    "anti_hub_share",
    "atkinson",
    "gini",
    "hub_occurrence",
    "hub_share",
    "k_occurrence",
    "robin_hood",
    "skewness",
]

publish(__name__, *(globals()[name] for name in __all__))
