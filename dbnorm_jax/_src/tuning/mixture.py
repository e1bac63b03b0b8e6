"""What is served: the mixture of a choice, fitted to a gallery as one bias.

    bias = sum over what was mixed of frequency x (its bias, less the mean of that)

Raw has a bias of 0, so that its frequency shrinks the rest.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.corrections.table import SINKHORN_ITERATIONS, TABLE, Source
from dbnorm_jax._src.tuning import grid, held_out
from dbnorm_jax._src.tuning.choice import RAW, Choice


def needs_whole_banks(choice: Choice) -> tuple[str, ...]:
    """The methods of a choice that statistics alone do not fit."""
    names = dict.fromkeys(part.method for part in choice.mixture if part.method != RAW)
    return tuple(name for name in names if not TABLE[name].by_statistics)


def fit_chosen(choice: Choice, source: Source, num_gallery: int, dtype: Any) -> Correction:
    """The correction that was chosen; `choice` is concrete.

    All that it mixes is fitted from what one pass gives at all inverse temperatures, one at all k,
    and one run of Sinkhorn at all temperatures.

    Raises:
      ValueError: the choice mixes a method that the source cannot fit from statistics alone.
    """
    whole = needs_whole_banks(choice)
    if whole and not hasattr(source, "sinkhorn"):
        raise checks.BadValueError(
            "choice",
            f" must be of methods that statistics alone fit, got {', '.join(whole)}, which needs "
            f"whole banks in memory: make it with tuning.tune(..., mergeable=True)",
        )
    parts = [part for part in choice.mixture if part.method != RAW]
    if not parts:
        return Correction(jnp.zeros((1, num_gallery), dtype), None)
    if len(parts) == len(choice.mixture) == 1:
        method = TABLE[parts[0].method]
        found: Correction = method.fit(source, **grid.arguments(method, parts[0].columns))
        return found
    table = grid.from_rows([(part.method, part.columns) for part in parts])
    frequency = jnp.asarray([part.frequency for part in parts], dtype)
    return Correction(mixed(frequency, fitted(table, source, num_gallery, dtype))[None], None)


def fitted(table: grid.Candidates, source: Source, num_gallery: int, dtype: jnp.dtype) -> jax.Array:
    """[num_candidates, num_gallery], the bias of each; raw is 0."""
    plan = held_out.planned(table, dtype)
    prepared = _prepared(plan, source, num_gallery)
    return _biases(prepared, plan.parameters, groups=plan.groups, num_columns=num_gallery)


_biases = jax.jit(held_out.biases, static_argnames=("groups", "num_columns"))


@jax.jit
def mixed(frequency: jax.Array, biases: jax.Array) -> jax.Array:
    """[..., num_candidates] and [..., num_candidates, columns] -> [..., columns]."""
    centered = biases - biases.mean(axis=-1, keepdims=True)
    # Not a matrix product: in a low precision that would round every bias.
    return (frequency[..., None] * centered).sum(axis=-2)


def _prepared(plan: held_out.Plan, source: Any, num_gallery: int) -> held_out.Prepared:
    dtype = plan.betas.dtype
    nothing = jnp.zeros((0, num_gallery), dtype)
    means: Any = None
    if len(plan.betas):
        means = source.statistics("query", plan.betas, 0).means
    largest = source.largest(plan.most).values if plan.most else nothing

    def sinkhorn(temperatures: jax.Array, *, dual: bool) -> jax.Array:
        if not len(temperatures):
            return nothing

        def at(temperature: jax.Array) -> jax.Array:
            fitted: Correction = source.sinkhorn(temperature, SINKHORN_ITERATIONS, dual=dual)
            return fitted.bias[0]

        return jax.vmap(at)(temperatures)  # their similarities are computed once

    single, dual = plan.temperatures
    found = sinkhorn(single, dual=False), sinkhorn(dual, dual=True)
    return held_out.Prepared(plan.betas, plan.temperatures, means, largest, found)
