"""Pairs whose query lies on another item than their own: poison, or many wrong labels.

Of every query, two things are looked at:

    lost    its own item is no nearer than half of all items, as a random one would be
    z       (largest similarity to another item - mean of the row) / standard deviation of the row

A weak encoder loses items too. But a query that lost its own is then no nearer to another item than
queries are that did not: its z is one of theirs. A query on a wrong item is as near to that one as
right queries are to their own, and its own item, a random one, is lost in half of the cases. The
question is whether the z of the lost are larger than those of the rest: the rank-sum test
(Wilcoxon, 1945), one-sided. Its p-value is exact for any distribution, by random permutations.

Queries of one item are alike: of those, one is looked at, or an item that is often asked for and
badly encoded would count many times.

Real pairs hold some errors, which do no harm. So the test comes after the lost queries of the
largest z are taken out, as many as are tolerated.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dbnorm_jax._src.core.similarity import SimilarityFn, tile
from dbnorm_jax._src.passes import nearest
from dbnorm_jax._src.tuning.split import Banks, Split, partners

# Chance of a false alarm, and the fewest permutations that can tell it.
LEVEL = 0.001
_PERMUTATIONS = 999
# Share of the pairs looked at that is taken out first. As many are not lost: twice this is wrong.
TOLERATED = 0.02
_SAMPLE = 512

Floats = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer[Any]]


def num_wrong(
    banks: Banks,
    split: Split,
    right: Integers,
    rng: np.random.Generator,
    similarity_fn: SimilarityFn,
) -> int:
    """About how many of the pairs are on wrong items; 0 where the test rejects nothing.

    Args:
      banks: with all items that a query may lie on.
      split: a sample of the held-out queries is looked at, one of each item.
      right: [num_query_bank, most] gallery-bank rows, -1 for none.
      rng: of the sample and the permutations.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n].
    """
    rows = rng.permutation(split.held_out)
    first = np.unique(right[rows].max(axis=1), return_index=True)[1]
    rows = np.sort(rows[np.sort(first)[:_SAMPLE]])
    size = len(rows)
    queries = jnp.asarray(banks.query[rows])
    lost, mean, deviation = (
        np.asarray(found)
        for found in _in_row(
            queries,
            split.columns,
            jnp.asarray(split.right[rows]),
            jnp.asarray(split.excluded_query[rows]),
            similarity_fn=similarity_fn,
        )
    )
    arrays = [banks.gallery]
    if banks.items is not None and banks.items is not banks.gallery:
        arrays.append(banks.items)
    largest = np.full(size, -np.inf)
    for columns in arrays:
        own = partners(banks.gallery, right[rows], [columns])
        unseen = np.full((size, 1), -1, np.int32) if own is None else own.query
        # A processor takes aligned rows over, where `jnp.asarray` would copy a whole gallery.
        found = _largest(
            queries, jax.device_put(columns), jnp.asarray(unseen), similarity_fn=similarity_fn
        )
        largest = np.maximum(largest, np.asarray(found))
    varies = deviation > 0
    z = np.where(varies, (largest - mean) / np.where(varies, deviation, 1), -np.inf)
    num_paired = int((right >= 0).any(axis=1).sum())
    return round(num_paired * share_wrong(z, lost, rng))


def share_wrong(z: Floats, lost: Flags, rng: np.random.Generator) -> float:
    """Estimated share of pairs on wrong items; 0 where `p_value` is above the level."""
    if p_value(z, lost, rng) > LEVEL:
        return 0.0
    middle = np.median(z[~lost])
    excess = int((z[lost] > middle).sum()) - int((z[lost] < middle).sum())
    return min(1.0, 2 * max(excess, 1) / len(z))


def p_value(z: Floats, lost: Flags, rng: np.random.Generator) -> float:
    """Of the hypothesis that the lost are no nearer to another item than the rest."""
    found = np.sort(z[lost])
    found = found[: max(len(found) - int(TOLERATED * len(z)), 0)]
    rest = z[~lost]
    if not (len(found) and len(rest)):
        return 1.0
    both = np.concatenate([found, rest])
    ordered = np.sort(both)
    # Twice the mean rank of equal values, an integer: sums are exact.
    ranks = np.searchsorted(ordered, both) + np.searchsorted(ordered, both, "right")
    orders = rng.permuted(np.tile(ranks, (_PERMUTATIONS, 1)), axis=1)
    reached = (orders[:, : len(found)].sum(axis=1) >= ranks[: len(found)].sum()).sum()
    return float(1 + reached) / (1 + _PERMUTATIONS)


@partial(jax.jit, static_argnames="similarity_fn")
def _in_row(
    queries: jax.Array,
    columns: jax.Array,
    right: jax.Array,  # [num_queries, most] int32, -1 for none
    excluded: jax.Array,  # [num_queries, most] int32, all that equal a right one, -1 for none
    *,
    similarity_fn: SimilarityFn,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether the own item is lost; mean and standard deviation of the others' similarities."""
    similarities = tile(similarity_fn, queries, columns)
    places = jnp.arange(columns.shape[0], dtype=jnp.int32)
    others = (excluded[:, :, None] != places[None, None]).all(axis=1)
    own = jnp.take_along_axis(similarities, jnp.maximum(right, 0), axis=1)
    own = jnp.where(right >= 0, own, -jnp.inf).max(axis=1, keepdims=True)
    above, below = (
        (others & side).sum(axis=1) for side in (similarities > own, similarities < own)
    )
    mean = similarities.mean(axis=1, where=others)
    return above >= below, mean, similarities.std(axis=1, where=others)


@partial(jax.jit, static_argnames="similarity_fn")
def _largest(
    queries: jax.Array, columns: jax.Array, unseen: jax.Array, *, similarity_fn: SimilarityFn
) -> jax.Array:
    """Largest similarity of each query among the columns that it sees."""
    found = nearest.nearest_items(
        queries,
        columns,
        None,
        k=1,
        similarity_fn=similarity_fn,
        chunk_size=_SAMPLE,
        unseen=unseen,
    )
    return found.values[:, 0, 0]
