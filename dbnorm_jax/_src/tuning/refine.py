"""Between the points of the grid: the chosen candidate's temperatures and weights, by gradient.

    soft rank = 1 + sum over wrong items of sigmoid((score - score of the right item) / t)
    minimise the mean log soft rank of the held-out queries, beta within a factor of 2 of the grid's
    point, weights within [0, 1.5]

Biases are smooth in log beta: a polynomial through seven temperatures per bank stands for them, to
a thousandth of the spread, so that a step costs queries x columns and no pass over the banks. It is
the source from which the table fits the method.
Parameters fitted on one half of the folds are judged on the other half, both ways round.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn, tile
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities
from dbnorm_jax._src.corrections.table import TABLE, Row
from dbnorm_jax._src.tuning import grid, held_out_ranks
from dbnorm_jax._src.tuning.split import Banks, Split

# Chebyshev's, in units of the bound: log(beta / beta of the grid) / log(FACTOR).
FACTOR = 2.0
NODES = np.cos(np.pi * (2 * np.arange(7) + 1) / 14)
MOST_WEIGHT = 1.5
_STEPS = 30
_RATE = 0.1
# Of the sigmoid, in spreads of similarities within a row.
_TEMPERATURE = 0.1

Floats = npt.NDArray[Any]


class Refined(NamedTuple):
    """What came of a candidate."""

    row: grid.Candidate  # fitted on all held-out queries
    by_half: tuple[
        grid.Candidate, grid.Candidate
    ]  # fitted without the first, the second half of folds
    ranks: Floats  # [num_held_out], each under the row that was fitted without it


class _Near(NamedTuple):
    """The source of a candidate: statistics around its temperatures, without one fold."""

    biases: dict[str, jax.Array]  # by bank, [nodes, columns]
    active: dict[str, jax.Array]  # [columns] bool
    centers: dict[str, jax.Array]  # beta of the grid
    nearest: jax.Array  # [k, columns], the largest similarities to the query bank

    def statistics(self, bank: str, beta: Any, k: int) -> BankStatistics:
        """Of unit mass; `beta` is within `FACTOR` of the grid's."""
        center = self.centers[bank]
        beta = jnp.asarray(beta, center.dtype)
        bias = _at(self.biases[bank], jnp.log(beta / center) / math.log(FACTOR))
        occurrence = self.active[bank].astype(jnp.int32) if k else None
        return BankStatistics(beta * bias, jnp.ones_like(bias), beta, occurrence, min(k, 1))

    def largest(self, k: int) -> LargestSimilarities:
        """All that there are."""
        return LargestSimilarities(self.nearest[:k])


class _Problem(NamedTuple):
    similarities: jax.Array  # [num_queries, columns]
    is_right: jax.Array  # [num_queries, columns]
    sources: _Near  # a leading axis of folds
    fold: jax.Array  # [num_queries] int32


def refined(
    banks: Banks,
    split: Split,
    candidate: grid.Candidate,
    *,
    spread: float,
    similarity_fn: SimilarityFn,
) -> Refined:
    """Fits a candidate's temperatures and weights to the held-out queries.

    Args:
      banks: the embeddings.
      split: what is held out.
      candidate: a row of the table, not raw.
      spread: standard deviation of similarities within a row of the query bank.
      similarity_fn: the similarity (static).
    """
    name, beta_query, beta_gallery, k, *weights = candidate
    bank = jnp.asarray(banks.query)
    dtype = numerics.accumulation_dtype(bank.dtype, split.columns.dtype)
    known = {"query": (bank, beta_query, k, split.excluded_query, split.fold_query)}
    if beta_gallery:
        other = jnp.asarray(banks.gallery)
        known["gallery"] = (other, beta_gallery, 0, split.excluded_gallery, split.fold_gallery)
    # A bank without a temperature still has one, of which nothing is used.
    nodes = {
        side: jnp.asarray(FACTOR**NODES * about[1] if about[1] else [1 / spread], dtype)
        for side, about in known.items()
    }
    parts = {
        side: held_out_ranks.statistics(
            embeddings,
            split.columns,
            nodes[side],
            jnp.asarray(excluded),
            held_out_ranks.blocks(folds, split.num_folds + 1),
            num_parts=split.num_folds + 1,
            k=most,
            similarity_fn=similarity_fn,
        )
        for side, (embeddings, _, most, excluded, folds) in known.items()
    }
    fold = split.fold_query[split.held_out]
    problem = _problem(
        bank[split.held_out],
        split.columns,
        jnp.asarray(split.right[split.held_out]),
        nodes,
        parts,
        jnp.asarray(fold, jnp.int32),
        num_folds=split.num_folds,
        similarity_fn=similarity_fn,
    )
    start = np.array([0, 0, *weights])
    free = np.array([beta_query > 0, beta_gallery > 0, *(np.array(weights) > 0)])
    low = np.where(free, [-1, -1, 0, 0], start)
    high = np.where(free, [1, 1, MOST_WEIGHT, MOST_WEIGHT], start)
    first = fold < split.num_folds / 2
    used = np.stack([~first, first, np.ones_like(first)])
    found, ranks = _fits(
        problem,
        *(jnp.asarray(values, dtype) for values in (used, start, low, high)),
        jnp.asarray(_TEMPERATURE * spread, dtype),
        method=TABLE[name],
        k=k,
    )

    def row(values: Floats) -> grid.Candidate:
        query, other, weight, weight_other = (float(value) for value in values)
        betas = beta_query * FACTOR**query, beta_gallery * FACTOR**other
        return (name, *betas, k, weight, weight_other)

    rows = [row(values) for values in np.asarray(found, np.float64)]
    both = np.asarray(ranks, np.float64)
    crossed = np.where(first, both[0], both[1])
    return Refined(rows[2], (rows[0], rows[1]), crossed)


@partial(jax.jit, static_argnames=("num_folds", "similarity_fn"))
def _problem(
    queries: jax.Array,
    columns: jax.Array,
    right: jax.Array,
    nodes: dict[str, jax.Array],
    parts: dict[str, held_out_ranks.Statistics],
    fold: jax.Array,
    *,
    num_folds: int,
    similarity_fn: SimilarityFn,
) -> _Problem:
    def without(fold: jax.Array) -> _Near:
        found = {
            side: held_out_ranks.HeldOut(*(held_out_ranks.merged(part, fold),) * 2, (betas,) * 2)
            for (side, part), betas in zip(parts.items(), nodes.values(), strict=True)
        }

        def biases(side: str) -> jax.Array:
            return jax.vmap(lambda beta: found[side].statistics("query", beta, 0).bias)(nodes[side])

        return _Near(
            {side: biases(side) for side in found},
            {side: source.query.k_occurrence > 0 for side, source in found.items()},
            # In the middle of the nodes.
            {side: betas[len(betas) // 2] for side, betas in nodes.items()},
            found["query"].largest(parts["query"].largest.shape[1]).values,
        )

    sources = lax.map(without, lax.iota(jnp.int32, num_folds))
    similarities = tile(similarity_fn, queries, columns).astype(sources.nearest.dtype)
    places = lax.iota(jnp.int32, columns.shape[0])
    is_right = (right[:, :, None] == places[None, None]).any(axis=1)
    return _Problem(similarities, is_right, sources, fold)


@partial(jax.jit, static_argnames=("method", "k"))
def _fits(
    problem: _Problem,
    used: jax.Array,
    start: jax.Array,
    low: jax.Array,
    high: jax.Array,
    temperature: jax.Array,
    *,
    method: Row,
    k: int,
) -> tuple[jax.Array, jax.Array]:
    """Parameters per row of `used` (weights of the queries), and all ranks under them."""
    import optax

    steps = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))

    def loss(parameters: jax.Array, weights: jax.Array) -> jax.Array:
        above = jax.nn.sigmoid(_leads(problem, parameters, method, k) / temperature)
        soft = jnp.where(problem.is_right, 0, above).sum(axis=1)
        return (weights * jnp.log1p(soft)).sum() / weights.sum()

    def fitted(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            parameters, state = carry
            gradient = jax.grad(loss)(parameters, weights)
            # optax mixes dtypes freely; a caller may have forbidden that.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = steps.update(gradient, state)
                moved = optax.apply_updates(parameters, updates)
            return (optax.projections.projection_box(moved, low, high), state), None

        (parameters, _), _ = lax.scan(step, (start, steps.init(start)), length=_STEPS)
        return parameters, _ranks(problem, _leads(problem, parameters, method, k))

    return lax.map(fitted, used)


def _leads(problem: _Problem, parameters: jax.Array, method: Row, k: int) -> jax.Array:
    """[num_queries, columns] of every column over the best right one."""

    def fit(source: _Near) -> Correction:
        centers = (source.centers[side] for side in ("query", "gallery") if side in source.centers)
        betas = [center * FACTOR**step for center, step in zip(centers, parameters, strict=False)]
        columns = dict(zip(("beta_query", "beta_gallery"), betas, strict=False))
        columns |= {"k": k, "weight_query": parameters[2], "weight_gallery": parameters[3]}
        fitted: Correction = method.fit(source, **grid.arguments(method, columns))
        return fitted

    fitted = jax.vmap(fit)(problem.sources)
    offset = jnp.zeros_like(problem.similarities)
    nearest = problem.similarities.argmax(axis=1)
    for term in range(fitted.num_terms):
        bias = fitted.bias[problem.fold, term]
        if fitted.active is not None:
            gates = fitted.active[problem.fold, term, nearest]
            bias = bias * gates[:, None].astype(bias.dtype)
        offset = offset + bias
    scores = problem.similarities - offset
    best = jnp.where(problem.is_right, scores, -jnp.inf).max(axis=1, keepdims=True)
    return scores - best


def _at(biases: jax.Array, place: jax.Array) -> jax.Array:
    """The polynomial through the nodes, [columns]."""
    if biases.shape[0] == 1:
        return biases[0]
    powers = jnp.stack([place**power for power in range(len(NODES))])
    basis = powers @ jnp.asarray(np.linalg.inv(np.vander(NODES, increasing=True)).T, powers.dtype)
    return basis @ biases


def _ranks(problem: _Problem, leads: jax.Array) -> jax.Array:
    halves = (leads > 0).astype(jnp.int32) + (leads >= 0).astype(jnp.int32)
    return 1 + jnp.where(problem.is_right, 0, halves).sum(axis=1).astype(leads.dtype) / 2
