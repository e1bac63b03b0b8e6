"""Retrieval metrics: the rank of each query's best right item, and numbers made from ranks.

    rank(q) = 1 + wrong items above the best right one + wrong items level with it / (r + 1)

where r right items have that score, the best one included. Ranks come from counting, not sorting.
This is the expectation over all orders of tied items (McSherry and Najork, ECIR 2008): a constant
matrix has the mean rank, the mean average precision and the gain of chance, and with
`ties="harmonic"` the mean reciprocal rank. Which items are right is given as

    an int array [num_queries]          one right item per query, -1 for none
    an int array [num_queries, most]    several, padded with -1
    a bool matrix [num_queries, num_gallery]
    a CSR pair (indptr [num_queries + 1], indices)

Dtype and shape tell them apart: what has the shape of the scores must be bool. Integers of that
shape are refused, because 0 and 1 there would name gallery rows: `.astype(bool)` makes them a bool
matrix, one more column of -1 makes them lists of rows.

Queries without a right item have rank +inf and are left out of the numbers. Recall is a fraction.

Items may have grades, numbers >= 0, where some are more right than others:
`normalized_discounted_cumulative_gain` takes them as a matrix, as lists, or in CSR. It,
`precision_at` and `success_at` take scores or a SearchResult. The first is an expectation over all
orders of tied items; a SearchResult has its order.

    >>> from dbnorm_jax import metrics
    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[0.9, 0.8, 0.1], [0.5, 0.5, 0.5]])
    >>> ranks = metrics.ranks(scores, jnp.array([1, 0]))
    >>> print(ranks, metrics.recall_at(ranks, 1), metrics.mean_reciprocal_rank(ranks))
    [2. 2.] 0.0 0.5
"""

from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.retrieval.gain import (
    normalized_discounted_cumulative_gain,
    precision_at,
    stream_normalized_discounted_cumulative_gain,
    success_at,
)
from dbnorm_jax._src.retrieval.metrics import (
    geometric_mean_recall,
    mean_average_precision,
    mean_rank,
    mean_reciprocal_rank,
    median_rank,
    ranks,
    recall_at,
    stream_ranks,
)

__all__ = [
    "geometric_mean_recall",
    "mean_average_precision",
    "mean_rank",
    "mean_reciprocal_rank",
    "median_rank",
    "normalized_discounted_cumulative_gain",
    "precision_at",
    "ranks",
    "recall_at",
    "stream_normalized_discounted_cumulative_gain",
    "stream_ranks",
    "success_at",
]

publish(__name__, *(globals()[name] for name in __all__))
