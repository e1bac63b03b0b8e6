"""What is served: the mixture of a choice, fitted to a gallery as one bias.

    bias = sum over what was mixed of frequency x (its bias, less the mean of that)

Raw has a bias of 0, so that its frequency shrinks the rest.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy.typing as npt

from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.similarity import SimilarityFn, known_by
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.corrections.table import SINKHORN_ITERATIONS, TABLE, Source
from dbnorm_jax._src.tuning import grid, held_out, split
from dbnorm_jax._src.tuning.choice import EXTRAS, RAW, Choice

Floats = npt.NDArray[Any]
# What a choice is refused for that a call lacks.
_USED = {
    "times": "corrections of a bank that decays",
    "biases": "a bias of the caller's own, with the weight that was found for it",
}


def needs_whole_banks(choice: Choice) -> tuple[str, ...]:
    """The methods of a choice that statistics alone do not fit."""
    names = dict.fromkeys(part.method for part in choice.mixture if part.method in TABLE)
    return tuple(name for name in names if not TABLE[name].by_statistics)


def missing(choice: Choice, given: Mapping[str, Any]) -> Iterator[str]:
    """Those of `times` and `biases` that a choice mixes and a call lacks."""
    mixed = [part.parameters for part in choice.mixture]
    for name, parameter in (("times", "half_life"), ("biases", "weight_own")):
        if given.get(name) is None and any(parameter in one for one in mixed):
            yield name


def fit_chosen(
    choice: Choice,
    source: Source,
    num_gallery: int,
    dtype: Any,
    *,
    similarity_fn: SimilarityFn,
    times: Floats | None = None,
    own: jax.Array | None = None,
) -> Correction:
    """The correction that was chosen; `choice` is concrete.

    All that it mixes is fitted from what one pass gives at all inverse temperatures, one at all k,
    and one run of Sinkhorn at all temperatures.

    Args:
      choice: what `tune` returned.
      source: of the banks.
      num_gallery: items.
      dtype: of the bias.
      similarity_fn: what the correction is known to be of; raw is of any.
      times: [num_query_bank], if the source can weigh its rows.
      own: [num_gallery], the caller's own bias.

    Raises:
      ValueError: the choice mixes a method that the source cannot fit from statistics alone, a
        bank that decays without times, a bias of the caller's own that is not there.
    """
    for name in missing(choice, {"times": times, "biases": own}):
        raise checks.BadValueError(
            name, f" must be given, got None: the choice mixes {_USED[name]}"
        )
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
    alone = len(parts) == len(choice.mixture) == 1
    if alone and not whole and parts[0].parameters.keys().isdisjoint(EXTRAS):
        method = TABLE[parts[0].method]
        found: Correction = method.fit(source, **grid.arguments(method, parts[0].columns))
        return found
    table = grid.from_rows([(part.method, part.columns) for part in parts])
    frequency = jnp.asarray([part.frequency for part in parts], dtype)
    biases = fitted(table, source, num_gallery, dtype, times)
    if own is not None:
        biases = held_out.with_own(biases, jnp.asarray(table.weight_own), own)
    return known_by(Correction(mixed(frequency, biases)[None], None), similarity_fn)


def fitted(
    table: grid.Candidates,
    source: Source,
    num_gallery: int,
    dtype: jnp.dtype,
    times: Floats | None = None,
) -> jax.Array:
    """[num_candidates, num_gallery], the bias of each; raw is 0."""
    plan = held_out.planned(table, dtype)
    prepared = _prepared(plan, source, num_gallery, times)
    return _biases(prepared, plan.parameters, groups=plan.groups, num_columns=num_gallery)


_biases = jax.jit(held_out.biases, static_argnames=("groups", "num_columns"))


def added(correction: Correction, own: jax.Array) -> Correction:
    """A correction with one more term, which always acts."""
    own = own.astype(correction.bias.dtype)
    if correction.active is None:
        return dataclasses.replace(correction, bias=correction.bias.at[0].add(own))
    rows = jnp.concatenate([correction.bias, own[None]])
    always = jnp.ones((1, len(own)), correction.active.dtype)
    return Correction(rows, jnp.concatenate([correction.active, always]), correction.similarity)


@jax.jit
def mixed(frequency: jax.Array, biases: jax.Array) -> jax.Array:
    """[..., num_candidates] and [..., num_candidates, columns] -> [..., columns]."""
    centered = biases - biases.mean(axis=-1, keepdims=True)
    # Not a matrix product: in a low precision that would round every bias.
    return (frequency[..., None] * centered).sum(axis=-2)


def _prepared(
    plan: held_out.Plan, source: Any, num_gallery: int, times: Floats | None
) -> held_out.Prepared:
    dtype = plan.betas.dtype
    nothing = jnp.zeros((0, num_gallery), dtype)
    means: Any = None
    if len(plan.betas):
        means = jax.tree.map(
            lambda *fields: jnp.concatenate(fields),
            *(
                _aged(source, times, half_life).statistics("query", plan.betas, 0).means
                for half_life in plan.half_lives
            ),
        )
    largest = source.largest(plan.most).values if plan.most else nothing

    def sinkhorn(temperatures: jax.Array, *, dual: bool) -> jax.Array:
        if not len(temperatures):
            return nothing

        if split.sinkhorn_fits(source.query_bank, source.gallery, source.gallery_bank):
            return _held_sinkhorn(source, temperatures, dual=dual)

        def at(temperature: jax.Array) -> jax.Array:
            fitted: Correction = source.sinkhorn(temperature, SINKHORN_ITERATIONS, dual=dual)
            return fitted.bias[0]

        return jax.vmap(at)(temperatures)  # their similarities are computed once

    single, dual = plan.temperatures
    found = sinkhorn(single, dual=False), sinkhorn(dual, dual=True)
    return held_out.Prepared(plan.betas, plan.temperatures, means, largest, found)


def _held_sinkhorn(source: Any, temperatures: jax.Array, *, dual: bool) -> jax.Array:
    """As it was judged, of whole matrices, which are computed once for all iterations."""
    bank, columns = source.query_bank, source.gallery
    others = columns if source.gallery_bank is None else source.gallery_bank
    others = others[: len(others) * dual].astype(columns.dtype)
    nothing = jnp.full((len(bank), 1), -1, jnp.int32)
    all_rows = jnp.ones((1, len(bank)), bool), jnp.ones((1, len(others)), bool)
    return held_out.sinkhorn(
        bank,
        columns,
        others,
        jnp.asarray(source.exclude.get("query", nothing)),
        all_rows,
        temperatures,
        num_iterations=SINKHORN_ITERATIONS,
        similarity_fn=source.similarity_fn,
    )[:, 0]


def _aged(source: Any, times: Floats | None, half_life: float) -> Any:
    if not half_life or times is None:
        return source
    return dataclasses.replace(source, weights=split.decay(times, half_life))
