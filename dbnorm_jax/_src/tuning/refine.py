"""Between the points of the grid: the chosen candidate's temperatures and weights, by gradient.

    soft rank = 1 + sum over wrong items of sigmoid((score - score of the right item) / t)
    minimise the mean log soft rank of the held-out queries, beta within a factor of 2 of the grid's
    point, weights within [0, 1.5]

Biases are smooth in log beta: a polynomial through seven temperatures per bank stands for them, to
a thousandth of the spread, so that a step costs queries x columns and no pass over the banks.
Parameters fitted on one half of the folds are judged on the other half, both ways round.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.similarity import SimilarityFn, tile
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

    row: grid.Row  # fitted on all held-out queries
    by_half: tuple[grid.Row, grid.Row]  # fitted without the first, the second half of folds
    ranks: Floats  # [num_held_out], each under the row that was fitted without it


class _Problem(NamedTuple):
    similarities: jax.Array  # [num_queries, columns]
    is_right: jax.Array  # [num_queries, columns]
    query_biases: jax.Array  # [num_folds, nodes, columns]
    gallery_biases: jax.Array
    gates: jax.Array  # [2, num_queries], 1 where a term acts
    fold: jax.Array  # [num_queries] int32


def refined(
    banks: Banks,
    split: Split,
    candidate: grid.Row,
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
    ratios = FACTOR**NODES

    def biases_of(
        rows: Any, beta: float, k: int, excluded: Any, fold: Any
    ) -> tuple[jax.Array, jax.Array]:
        # A bank without a temperature still has one, of which nothing is used.
        betas = jnp.asarray(ratios * beta if beta else [1 / spread], dtype)
        parts = held_out_ranks.statistics(
            rows,
            split.columns,
            betas,
            jnp.asarray(excluded),
            held_out_ranks.blocks(fold, split.num_folds + 1),
            num_parts=split.num_folds + 1,
            k=k,
            similarity_fn=similarity_fn,
        )
        return _biases(parts, betas, num_folds=split.num_folds, k=k)

    query_biases, active = biases_of(bank, beta_query, k, split.excluded_query, split.fold_query)
    others = query_biases[:, :1], active
    if weights[1]:
        gallery = jnp.asarray(banks.gallery)
        fold = split.fold_gallery
        others = biases_of(gallery, beta_gallery, 0, split.excluded_gallery, fold)
    fold = split.fold_query[split.held_out]
    gated = grid.from_rows([candidate]).gated[0]
    problem = _problem(
        bank[split.held_out],
        split.columns,
        jnp.asarray(split.right[split.held_out]),
        query_biases,
        others[0],
        jnp.stack([active, others[1]]),
        jnp.asarray(fold, jnp.int32),
        jnp.asarray(gated),
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
    )

    def row(values: Floats) -> grid.Row:
        query, other, weight, weight_other = (float(value) for value in values)
        betas = beta_query * FACTOR**query, beta_gallery * FACTOR**other
        return (name, *betas, k, weight, weight_other)

    rows = [row(values) for values in np.asarray(found, np.float64)]
    both = np.asarray(ranks, np.float64)
    crossed = np.where(first, both[0], both[1])
    return Refined(rows[2], (rows[0], rows[1]), crossed)


@partial(jax.jit, static_argnames=("num_folds", "k"))
def _biases(
    parts: held_out_ranks.Statistics, betas: jax.Array, *, num_folds: int, k: int
) -> tuple[jax.Array, jax.Array]:
    """[num_folds, nodes, columns] biases without each fold, and [num_folds, columns] active."""

    def without(fold: jax.Array) -> tuple[jax.Array, jax.Array]:
        part = held_out_ranks.merged(parts, fold)
        found = held_out_ranks.biases(part, betas, jnp.full(1 if k else 0, k, jnp.int32))
        return found[-1:] if k else found, part.k_occurrence > 0

    return lax.map(without, lax.iota(jnp.int32, num_folds))


@partial(jax.jit, static_argnames="similarity_fn")
def _problem(
    queries: jax.Array,
    columns: jax.Array,
    right: jax.Array,
    query_biases: jax.Array,
    gallery_biases: jax.Array,
    active: jax.Array,
    fold: jax.Array,
    gated: jax.Array,
    *,
    similarity_fn: SimilarityFn,
) -> _Problem:
    similarities = tile(similarity_fn, queries, columns).astype(query_biases.dtype)
    places = lax.iota(jnp.int32, columns.shape[0])
    is_right = (right[:, :, None] == places[None, None]).any(axis=1)
    gates = active[:, fold, similarities.argmax(axis=1)] | ~gated
    gates = gates.astype(similarities.dtype)
    return _Problem(similarities, is_right, query_biases, gallery_biases, gates, fold)


@jax.jit
def _fits(
    problem: _Problem,
    used: jax.Array,
    start: jax.Array,
    low: jax.Array,
    high: jax.Array,
    temperature: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Parameters per row of `used` (weights of the queries), and all ranks under them."""
    import optax

    steps = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))

    def loss(parameters: jax.Array, weights: jax.Array) -> jax.Array:
        above = jax.nn.sigmoid(_leads(problem, parameters) / temperature)
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
        return parameters, _ranks(problem, parameters)

    return lax.map(fitted, used)


def _leads(problem: _Problem, parameters: jax.Array) -> jax.Array:
    """[num_queries, columns] of every column over the best right one."""
    offset = jnp.zeros_like(problem.similarities)
    terms = zip(problem.gates, (problem.query_biases, problem.gallery_biases), strict=True)
    for place, (gate, biases) in enumerate(terms):
        bias = parameters[2 + place] * _at(biases, parameters[place])
        offset = offset + gate[:, None] * bias[problem.fold]
    scores = problem.similarities - offset
    best = jnp.where(problem.is_right, scores, -jnp.inf).max(axis=1, keepdims=True)
    return scores - best


def _at(biases: jax.Array, place: jax.Array) -> jax.Array:
    """The polynomial through the nodes, [num_folds, columns]."""
    if biases.shape[1] == 1:
        return biases[:, 0]
    powers = jnp.stack([place**power for power in range(len(NODES))])
    basis = powers @ jnp.asarray(np.linalg.inv(np.vander(NODES, increasing=True)).T, powers.dtype)
    return jnp.einsum("n,fnc->fc", basis, biases)


def _ranks(problem: _Problem, parameters: jax.Array) -> jax.Array:
    leads = _leads(problem, parameters)
    halves = (leads > 0).astype(jnp.int32) + (leads >= 0).astype(jnp.int32)
    return 1 + jnp.where(problem.is_right, 0, halves).sum(axis=1).astype(leads.dtype) / 2
