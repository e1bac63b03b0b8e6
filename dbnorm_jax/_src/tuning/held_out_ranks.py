"""Ranks of held-out bank queries under many corrections at once.

The pairs of the banks are dealt into folds. A fold's queries are ranked among the columns (gallery
items, those right for the queries among them) under corrections fitted on the other folds:

    one pass over query bank x columns and one over gallery bank x columns, per fold
        -> log-normalizers of all betas, largest similarities, k-occurrence   [folds, columns]
    the other folds merged -> biases -> ranks                                 [queries, candidates]

A column's own partners never enter its statistics: the right item of a new query has no partner in
the bank, and one left in would be corrected for being right.
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
from dbnorm_jax._src.passes import counts, selection
from dbnorm_jax._src.tuning.grid import Candidates

# Bank rows per block.
_ROWS = 512


class Statistics(NamedTuple):
    """What parts of a bank say about each column; the leading axis is the part."""

    log_normalizer: jax.Array  # [parts, num_betas, columns]
    mass: jax.Array  # [parts, columns]
    k_occurrence: jax.Array  # [parts, columns] int32, of k = 1
    largest: jax.Array  # [parts, k, columns], -inf where there is none


class Blocks(NamedTuple):
    """Bank rows dealt into blocks, none of two parts."""

    rows: npt.NDArray[np.int32]  # [num_blocks, size]
    weights: npt.NDArray[np.float32]  # [num_blocks, size], 0 on padding
    part: npt.NDArray[np.int32]  # [num_blocks]


def blocks(parts: npt.NDArray[np.integer[Any]], num_parts: int) -> Blocks:
    """Deals rows into blocks by their part.

    Args:
      parts: [num_rows], the part of each row.
      num_parts: how many parts there are.
    """
    members = [np.flatnonzero(parts == part) for part in range(num_parts)]
    size = min(_ROWS, max(len(rows) for rows in members))
    rows, weights, of = [], [], []
    for part, indices in enumerate(members):
        for start in range(0, len(indices), size):
            block = indices[start : start + size]
            padding = size - len(block)
            rows.append(np.pad(block, (0, padding)))
            weights.append(np.pad(np.ones(len(block)), (0, padding)))
            of.append(part)
    return Blocks(
        np.asarray(rows, np.int32), np.asarray(weights, np.float32), np.asarray(of, np.int32)
    )


@partial(jax.jit, static_argnames=("num_parts", "k", "similarity_fn"))
def statistics(
    bank: jax.Array,
    columns: jax.Array,
    betas: jax.Array,
    excluded: jax.Array,
    dealt: Blocks,
    *,
    num_parts: int,
    k: int,
    similarity_fn: SimilarityFn,
) -> Statistics:
    """Statistics of every part of a bank, in one pass over bank x columns.

    Args:
      bank: [num_bank, dim].
      columns: [num_columns, dim].
      betas: [num_betas].
      excluded: [num_bank, most] int32, columns that a row does not enter, -1 for none.
      dealt: the rows by part.
      num_parts: how many parts.
      k: largest similarities kept, 0 for none.
      similarity_fn: the similarity.
    """
    num_columns, num_betas = columns.shape[0], betas.shape[0]
    dtype = betas.dtype
    places = lax.iota(jnp.int32, num_columns)

    def add_block(carry: Statistics, block: Any) -> tuple[Statistics, None]:
        rows, weights, part = block
        similarities = tile(similarity_fn, bank[rows], columns).astype(dtype)
        weights = weights.astype(dtype)
        own = (excluded[rows][:, :, None] == places[None, None]).any(axis=1)
        valid = ~own & (weights > 0)[:, None]

        def log_sum(beta: jax.Array) -> jax.Array:
            state = numerics.add_rows(
                numerics.start_log_sum(num_columns, beta),
                similarities,
                beta,
                weights,
                valid=valid,
            )
            return numerics.finish_log_sum(state, beta)

        seen = jnp.where(valid, similarities, -jnp.inf)
        best = jnp.where(valid.any(axis=1), seen.argmax(axis=1), num_columns)
        occurrence = jnp.zeros(num_columns, jnp.int32).at[best].add(1, mode="drop")
        largest = carry.largest
        if k:
            here = selection.largest_of_columns(jnp.where(valid, similarities, jnp.nan), k)
            both = jnp.concatenate([carry.largest[part], here], axis=0)
            largest = largest.at[part].set(selection.largest_of_columns(both, k))
        log_normalizer = jax.vmap(log_sum)(betas)
        return Statistics(
            carry.log_normalizer.at[part].set(
                numerics.log_add(carry.log_normalizer[part], log_normalizer)
            ),
            carry.mass.at[part].add(jnp.where(valid, weights[:, None], 0).sum(axis=0)),
            carry.k_occurrence.at[part].add(occurrence),
            largest,
        ), None

    start = Statistics(
        jnp.full((num_parts, num_betas, num_columns), -jnp.inf, dtype),
        jnp.zeros((num_parts, num_columns), dtype),
        jnp.zeros((num_parts, num_columns), jnp.int32),
        jnp.full((num_parts, k, num_columns), -jnp.inf, dtype),
    )
    return lax.scan(add_block, start, tuple(dealt))[0]


def merged(parts: Statistics, without: jax.Array) -> Statistics:
    """All parts but one as one."""
    keep = lax.iota(jnp.int32, parts.mass.shape[0]) != without
    log_normalizer = jnp.where(keep[:, None, None], parts.log_normalizer, -jnp.inf)
    top = jnp.maximum(log_normalizer.max(axis=0), numerics.LOWEST)
    total = jnp.exp(log_normalizer - top[None]).sum(axis=0)
    filled = total > 0
    k = parts.largest.shape[1]
    largest = jnp.where(keep[:, None, None], parts.largest, -jnp.inf)
    largest = largest.reshape(-1, largest.shape[-1])
    if k:
        largest = selection.largest_of_columns(jnp.where(largest > -jnp.inf, largest, jnp.nan), k)
    return Statistics(
        jnp.where(filled, top + jnp.log(jnp.where(filled, total, 1)), -jnp.inf),
        jnp.where(keep[:, None], parts.mass, 0).sum(axis=0),
        jnp.where(keep[:, None], parts.k_occurrence, 0).sum(axis=0),
        largest,
    )


def biases(bank: Statistics, betas: jax.Array, neighbors: jax.Array) -> jax.Array:
    """[num_betas + num_neighbors, columns]: biases of all betas, means of the k largest for all k.

    Args:
      bank: of one part, no leading axis.
      betas: [num_betas].
      neighbors: [num_neighbors] int32, each at most the number kept.
    """
    filled = bank.mass > 0
    mass = jnp.where(filled, bank.mass, 1)
    log_normalizer = jnp.where(filled[None], bank.log_normalizer, 0)
    soft = (log_normalizer - jnp.where(filled, jnp.log(mass), 0)[None]) / betas[:, None]
    if not neighbors.shape[0]:
        return soft
    there = bank.largest > -jnp.inf
    sums = jnp.where(there, bank.largest, 0).cumsum(axis=0)
    counts = there.cumsum(axis=0).astype(sums.dtype)
    means = sums / jnp.maximum(counts, 1)
    return jnp.concatenate([soft, means[neighbors - 1]])


class Terms(NamedTuple):
    """Candidates as rows of the biases; weight 0 where a term is absent."""

    query: jax.Array  # [num_candidates] int32
    query_weight: jax.Array  # [num_candidates]
    gallery: jax.Array  # [num_candidates] int32
    gallery_weight: jax.Array  # [num_candidates]
    gated: jax.Array  # [num_candidates] bool


class Plan(NamedTuple):
    """What a table of candidates needs."""

    betas: tuple[jax.Array, jax.Array]  # of the query and of the gallery bank
    neighbors: jax.Array  # [num_neighbors] int32
    most: int  # the largest of them
    terms: Terms


def planned(table: Candidates, dtype: jnp.dtype) -> Plan:
    """Each inverse temperature once, and the candidates in terms of them."""
    betas = [np.unique(values[values > 0]) for values in (table.beta_query, table.beta_gallery)]
    neighbors = np.unique(table.k[table.k > 0])
    query = np.searchsorted(betas[0], table.beta_query)
    means = len(betas[0]) + np.searchsorted(neighbors, table.k)
    terms = Terms(
        jnp.asarray(np.where(table.k > 0, means, query), jnp.int32),
        jnp.asarray(table.weight_query, dtype),
        jnp.asarray(np.searchsorted(betas[1], table.beta_gallery), jnp.int32),
        jnp.asarray(table.weight_gallery, dtype),
        jnp.asarray(table.gated),
    )
    query_betas, gallery_betas = (jnp.asarray(values, dtype) for values in betas)
    most = int(neighbors.max(initial=0))
    return Plan((query_betas, gallery_betas), jnp.asarray(neighbors, jnp.int32), most, terms)


def ranks(
    similarities: jax.Array,
    right: jax.Array,
    query_bias: jax.Array,
    gallery_bias: jax.Array,
    active: jax.Array,
    terms: Terms,
) -> tuple[jax.Array, jax.Array]:
    """Rank of each query's best right column under every candidate, as `metrics.ranks`.

    Args:
      similarities: [num_queries, columns].
      right: [num_queries, most] int32, -1 for none.
      query_bias: [num_query_biases, columns].
      gallery_bias: [num_gallery_biases, columns].
      active: [2, columns] bool, the activation sets of both banks.
      terms: the candidates.

    Returns:
      [num_candidates, num_queries] float, +inf for queries without a right column; and the gates,
      [2, num_queries] bool.
    """
    right = counts.distinct(right)
    num_columns = similarities.shape[1]
    places = lax.iota(jnp.int32, num_columns)
    is_right = (right[:, :, None] == places[None, None]).any(axis=1)
    answered = is_right.any(axis=1)
    wrong = jnp.where(is_right, -jnp.inf, similarities)
    gates = active[:, similarities.argmax(axis=1)]
    own = jnp.take_along_axis(similarities, jnp.maximum(right, 0), axis=1)

    def rank(term: Terms) -> jax.Array:
        query_offset = term.query_weight * query_bias[term.query]
        gallery_offset = term.gallery_weight * gallery_bias[term.gallery]
        on = (gates | ~term.gated).astype(similarities.dtype)

        def offset(columns: Any) -> jax.Array:
            first, second = query_offset[columns], gallery_offset[columns]
            if first.ndim == 1:
                first, second = first[None], second[None]
            return on[0][:, None] * first + on[1][:, None] * second

        of_right = jnp.where(right >= 0, own - offset(jnp.maximum(right, 0)), -jnp.inf)
        best = of_right.max(axis=1, keepdims=True)
        scores = wrong - offset(slice(None))
        counted = (scores > best, scores == best, of_right == best)
        ahead = counts.Ahead(*(items.sum(axis=1, dtype=jnp.int32) for items in counted))
        return counts.rank(ahead, answered, similarities.dtype, "average")

    return lax.map(rank, terms), gates


@partial(jax.jit, static_argnames="similarity_fn")
def held_out_ranks(
    bank: jax.Array,
    columns: jax.Array,
    right: jax.Array,
    dealt: Blocks,
    query_parts: Statistics,
    gallery_parts: Statistics,
    betas: tuple[jax.Array, jax.Array],
    neighbors: jax.Array,
    terms: Terms,
    *,
    similarity_fn: SimilarityFn,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ranks of blocks of held-out queries, each under corrections of the other parts.

    Args:
      bank: [num_bank, dim], the query bank.
      columns: [num_columns, dim].
      right: [num_bank, most] int32 columns, -1 for none.
      dealt: the held-out rows by part.
      query_parts: of the query bank.
      gallery_parts: of the gallery bank.
      betas: of the query and of the gallery bank.
      neighbors: [num_neighbors] int32.
      terms: the candidates.
      similarity_fn: the similarity.

    Returns:
      [num_blocks, num_candidates, size] ranks and [num_blocks, 2, size] gates, padding being
      repeats of row 0; and [num_blocks, 2] the share of active columns.
    """

    def of_block(block: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows, _, part = block
        query, gallery = merged(query_parts, part), merged(gallery_parts, part)
        similarities = tile(similarity_fn, bank[rows], columns).astype(betas[0].dtype)
        active = jnp.stack([query.k_occurrence > 0, gallery.k_occurrence > 0])
        found, gates = ranks(
            similarities,
            right[rows],
            biases(query, betas[0], neighbors),
            biases(gallery, betas[1], jnp.zeros(0, jnp.int32)),
            active,
            terms,
        )
        return found, gates, active.mean(axis=1)

    return lax.map(of_block, tuple(dealt))
