"""A pass under gates that are known only at its end: every combination, then a choice."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.types import Correction

# Up to so many gated terms the search keeps one list per combination of gates: 4 for DualDIS.
_MOST_COMBINED_TERMS = 2


def over_gates(
    lists: Callable[[jax.Array | None, jax.Array | None], tuple[Any, jax.Array]],
    top_1: Callable[[], jax.Array],
    correction: Correction | None,
    dtype: jnp.dtype,
    activity: Callable[[jax.Array, jax.Array], jax.Array] = lambda active, items: active[:, items],
    gates: jax.Array | None = None,
    combined: bool = True,
) -> Any:
    """Runs one streamed pass over the similarities under every combination of gates, then chooses.

    The gates of a query are known only once the whole gallery has been seen. Few hard gates have
    few combinations, so the pass computes its result under each of them at the cost of one matmul.

    Args:
      lists: (offsets [num_gallery, num_lists] or None, mixtures or None) -> (pytree of
        [num_queries, num_lists, ...], [num_queries] the best item of the first list).
      top_1: () -> [num_queries] the raw best item, for gates that `lists` cannot combine.
      correction: optional.
      dtype: of the similarities.
      activity: (active [num_terms, num_gallery], items [num_queries]) -> [num_terms, num_queries].
      gates: optional [num_queries, num_terms], in place of those of the raw best items.
      combined: whether few hard gates are combined; else `top_1` finds the raw best items.

    Returns:
      The pytree of [num_queries, ...] under each query's own gates.
    """
    if correction is None:
        return jax.tree.map(lambda leaf: leaf[:, 0], lists(None, None)[0])
    bias = correction.bias.astype(numerics.accumulation_dtype(dtype, correction.bias.dtype))
    active, num_terms = correction.active, correction.num_terms
    if active is None and gates is None:
        return jax.tree.map(lambda leaf: leaf[:, 0], lists(bias.sum(axis=0)[:, None], None)[0])

    def opened(items: jax.Array) -> jax.Array:
        """[num_terms, num_queries] gates of raw best items; closed where there is none."""
        assert active is not None
        found = activity(active, jnp.maximum(items, 0))
        return jnp.where(items >= 0, found, jnp.zeros((), found.dtype))

    hard = active is not None and active.dtype == bool
    if combined and gates is None and hard and num_terms <= _MOST_COMBINED_TERMS:
        combinations = np.array(list(itertools.product((0, 1), repeat=num_terms)), bias.dtype)
        sums = [
            sum(gate * term for gate, term in zip(row, bias, strict=True)) for row in combinations
        ]
        results, first = lists(jnp.stack(sums, axis=-1), None)
        place_values = jnp.asarray(2 ** np.arange(num_terms)[::-1], jnp.int32)
        chosen = (opened(first).astype(jnp.int32) * place_values[:, None]).sum(axis=0)
    else:  # for soft gates, or many of them, a search of its own
        gates = opened(top_1()).T if gates is None else gates
        results, _ = lists(bias.T, gates.astype(bias.dtype))
        chosen = jnp.zeros(gates.shape[0], jnp.int32)

    def choose(leaf: jax.Array) -> jax.Array:
        return jax.vmap(lambda row, place: row[place])(leaf, chosen)

    return jax.tree.map(choose, results)
