"""Ranks of held-out bank queries under many corrections at once.

The pairs of the banks are dealt into folds. A fold's queries are ranked among the columns (gallery
items, those right for the queries among them) under corrections fitted on the other folds:

    one pass over query bank x columns and one over gallery bank x columns, per fold
        -> means under all betas, largest similarities, k-occurrence   [folds, columns]
    the other folds merged, a source -> corrections -> ranks                  [queries, candidates]

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

from dbnorm_jax._src.core import log_mean_exp
from dbnorm_jax._src.core.log_mean_exp import Means
from dbnorm_jax._src.core.similarity import SimilarityFn, tile
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities
from dbnorm_jax._src.corrections.table import TABLE, Row
from dbnorm_jax._src.passes import counts, selection, sorting
from dbnorm_jax._src.tuning.choice import COLUMNS
from dbnorm_jax._src.tuning.grid import Candidates, arguments

# Bank rows per block.
_ROWS = 512


class Statistics(NamedTuple):
    """What parts of a bank say about each column; the leading axis is the part."""

    means: Means  # of [parts, num_betas, columns]
    k_occurrence: jax.Array  # [parts, columns] int32, of k = 1
    largest: jax.Array  # [parts, k, columns], -inf where there is none


class Blocks(NamedTuple):
    """Bank rows dealt into blocks, none of two parts."""

    rows: npt.NDArray[np.int32]  # [num_blocks, size]
    weights: npt.NDArray[np.float32]  # [num_blocks, size], 0 on padding
    part: npt.NDArray[np.int32]  # [num_blocks]


def blocks(parts: npt.NDArray[np.integer[Any]], num_parts: int) -> Blocks:
    """Deals rows into blocks by their part; `parts`: [num_rows], the part of each."""
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
    bank: jax.Array,  # [num_bank, dim]
    columns: jax.Array,  # [num_columns, dim]
    betas: jax.Array,  # [num_betas]
    excluded: jax.Array,  # [num_bank, most] int32, columns that a row does not enter, -1 for none
    dealt: Blocks,
    *,
    num_parts: int,
    k: int,  # largest similarities kept, 0 for none
    similarity_fn: SimilarityFn,
) -> Statistics:
    """Statistics of every part of a bank, in one pass over bank x columns."""
    num_columns, num_betas = columns.shape[0], betas.shape[0]
    dtype = betas.dtype
    places = lax.iota(jnp.int32, num_columns)

    def add_block(carry: Statistics, block: Any) -> tuple[Statistics, None]:
        rows, weights, part = block
        similarities = tile(similarity_fn, bank[rows], columns).astype(dtype)
        weights = weights.astype(dtype)
        own = (excluded[rows][:, :, None] == places[None, None]).any(axis=1)
        valid = ~own & (weights > 0)[:, None]

        mean = log_mean_exp.start_mean(num_columns, betas)
        mean = log_mean_exp.add_rows(mean, similarities, betas, weights, valid=valid)
        here = log_mean_exp.finish_mean(mean, betas)
        seen = jnp.where(valid, similarities, -jnp.inf)
        best = jnp.where(valid.any(axis=1), seen.argmax(axis=1), num_columns)
        occurrence = jnp.zeros(num_columns, jnp.int32).at[best].add(1, mode="drop")
        largest = carry.largest
        if k:
            of_block = selection.largest_of_columns(jnp.where(valid, similarities, jnp.nan), k)
            largest = largest.at[part].set(sorting.merged(carry.largest[part], of_block))
        both = jax.tree.map(lambda some, more: jnp.stack([some[part], more]), carry.means, here)
        both = log_mean_exp.merged(both, betas[:, None])
        return Statistics(
            jax.tree.map(lambda some, whole: some.at[part].set(whole), carry.means, both),
            carry.k_occurrence.at[part].add(occurrence),
            largest,
        ), None

    start = Statistics(
        log_mean_exp.none((num_parts, num_betas, num_columns), dtype),
        jnp.zeros((num_parts, num_columns), jnp.int32),
        jnp.full((num_parts, k, num_columns), -jnp.inf, dtype),
    )
    return lax.scan(add_block, start, tuple(dealt))[0]


def merged(parts: Statistics, without: jax.Array, betas: jax.Array) -> Statistics:
    """All parts but one as one."""
    keep = lax.iota(jnp.int32, len(parts.k_occurrence)) != without
    kept = jax.tree.map(lambda field: jnp.where(keep[:, None, None], field, 0), parts.means)
    largest = jnp.where(keep[:, None, None], parts.largest, -jnp.inf)
    largest, _ = lax.scan(
        lambda some, part: (sorting.merged(some, part), None), largest[0], largest[1:]
    )
    return Statistics(
        log_mean_exp.merged(kept, betas[:, None]),
        jnp.where(keep[:, None], parts.k_occurrence, 0).sum(axis=0),
        largest,
    )


class HeldOut(NamedTuple):
    """The source that candidates are fitted from: statistics of one part, no leading axis."""

    query: Statistics
    gallery: Statistics
    betas: tuple[jax.Array, jax.Array]  # of the query and of the gallery bank

    def statistics(self, bank: str, beta: Any, k: int) -> BankStatistics:
        """Those of the nearest beta that is there; activation sets are of k = 1."""
        part, betas = (
            (self.query, self.betas[0]) if bank == "query" else (self.gallery, self.betas[1])
        )
        place = jnp.abs(betas - beta).argmin()
        found = jax.tree.map(lambda field: field[place], part.means)
        occurrence = part.k_occurrence if k else None
        return BankStatistics.of(found, jnp.asarray(beta, betas.dtype), occurrence, min(k, 1))

    def largest(self, k: int) -> LargestSimilarities:
        """Of the query bank; 0 in a column that nothing entered, which so gets no bias."""
        values = self.query.largest[:k]
        return LargestSimilarities(jnp.where(values[:1] > -jnp.inf, values, 0))


class Group(NamedTuple):
    """Candidates that differ in numbers alone."""

    method: Row
    k: int
    places: tuple[int, ...]  # among the candidates


class Plan(NamedTuple):
    """What a table of candidates needs."""

    betas: tuple[jax.Array, jax.Array]  # of the query and of the gallery bank
    most: int  # of the largest similarities
    groups: tuple[Group, ...]
    parameters: dict[str, jax.Array]  # [num_candidates] each


def planned(table: Candidates, dtype: jnp.dtype) -> Plan:
    """Each inverse temperature once, and the candidates by what is compiled for them."""
    betas = [np.unique(values[values > 0]) for values in (table.beta_query, table.beta_gallery)]
    query, gallery = (jnp.asarray(values if len(values) else [1.0], dtype) for values in betas)
    members: dict[tuple[str, int], list[int]] = {}
    for place in range(len(table.method)):
        name, _, _, k, *_ = table.row(place)
        members.setdefault((name, k), []).append(place)
    groups = tuple(
        Group(TABLE[name], k, tuple(places))
        for (name, k), places in members.items()
        if name != "raw"
    )
    parameters = {name: jnp.asarray(getattr(table, name), dtype) for name in COLUMNS if name != "k"}
    return Plan((query, gallery), int(table.k.max()), groups, parameters)


def corrections(
    source: HeldOut, parameters: dict[str, jax.Array], groups: tuple[Group, ...]
) -> Correction:
    """All candidates, [num_candidates, num_terms, columns]; raw and absent terms are 0."""
    fitted = []
    for group in groups:

        def fit(given: dict[str, jax.Array], group: Group = group) -> Correction:
            method = group.method
            found = method.fit(source, **arguments(method, {**given, "k": group.k}))
            open_gates = jnp.ones(found.bias.shape, found.bias.dtype)
            active = open_gates if found.active is None else found.active
            return Correction(found.bias, active.astype(found.bias.dtype))

        places = np.array(group.places)
        fitted.append(jax.vmap(fit)({name: values[places] for name, values in parameters.items()}))
    num_candidates = len(next(iter(parameters.values())))
    num_terms = max((one.num_terms for one in fitted), default=1)
    shape = (num_candidates, num_terms, source.query.k_occurrence.shape[-1])
    all_of = Correction(*(jnp.zeros(shape, source.betas[0].dtype),) * 2)
    for group, one in zip(groups, fitted, strict=True):
        where = (np.array(group.places)[:, None], np.arange(one.num_terms))
        all_of = jax.tree.map(lambda whole, part, at=where: whole.at[at].set(part), all_of, one)
    return all_of


def ranks(similarities: jax.Array, right: jax.Array, candidates: Correction) -> jax.Array:
    """Rank of each query's best right column under every candidate, as `metrics.ranks`.

    Args:
      similarities: [num_queries, columns].
      right: [num_queries, most] int32, -1 for none.
      candidates: fields [num_candidates, num_terms, columns].

    Returns:
      [num_candidates, num_queries] float, +inf for queries without a right column.
    """
    right = counts.distinct(right)
    places = lax.iota(jnp.int32, similarities.shape[1])
    is_right = (right[:, :, None] == places[None, None]).any(axis=1)
    answered = is_right.any(axis=1)
    wrong = jnp.where(is_right, -jnp.inf, similarities)
    assert candidates.active is not None
    # Here, not in the loop, where the gather would be fused into every entry of the scores.
    gates = candidates.active[:, :, similarities.argmax(axis=1)]
    own = jnp.take_along_axis(similarities, jnp.maximum(right, 0), axis=1)

    def rank(candidate: tuple[jax.Array, jax.Array]) -> jax.Array:
        bias, gates = candidate
        # A product of one or two terms: sums of broadcasts take three times as long on a CPU.
        offsets = jnp.matmul(gates.T, bias, precision=lax.Precision.HIGHEST)
        of_right = own - jnp.take_along_axis(offsets, jnp.maximum(right, 0), axis=1)
        of_right = jnp.where(right >= 0, of_right, -jnp.inf)
        best = of_right.max(axis=1, keepdims=True)
        best_right = (of_right == best).sum(axis=1, dtype=jnp.int32)
        scores = wrong - offsets
        ahead = counts.Ahead(*counts.count_both(scores > best, scores == best), best_right)
        return counts.rank(ahead, answered, similarities.dtype, "average")

    return lax.map(rank, (candidates.bias, gates))


@partial(jax.jit, static_argnames=("groups", "similarity_fn"))
def held_out_ranks(
    bank: jax.Array,  # [num_bank, dim], the query bank
    columns: jax.Array,  # [num_columns, dim]
    right: jax.Array,  # [num_bank, most] int32 columns, -1 for none
    dealt: Blocks,  # the held-out rows
    query_parts: Statistics,
    gallery_parts: Statistics,
    betas: tuple[jax.Array, jax.Array],
    parameters: dict[str, jax.Array],  # [num_candidates] each
    *,
    groups: tuple[Group, ...],
    similarity_fn: SimilarityFn,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ranks of blocks of held-out queries, each under corrections of the other parts.

    Returns:
      [num_blocks, num_candidates, size] ranks and [num_blocks, 2, size] gates, padding being
      repeats of row 0; and [num_blocks, 2] the share of active columns.
    """

    def of_block(block: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows, _, part = block
        query, gallery = (
            merged(parts, part, by)
            for parts, by in zip((query_parts, gallery_parts), betas, strict=True)
        )
        similarities = tile(similarity_fn, bank[rows], columns).astype(betas[0].dtype)
        fitted = corrections(HeldOut(query, gallery, betas), parameters, groups)
        active = jnp.stack([query.k_occurrence > 0, gallery.k_occurrence > 0])
        gates = active[:, similarities.argmax(axis=1)]
        return ranks(similarities, right[rows], fitted), gates, active.mean(axis=1)

    return lax.map(of_block, tuple(dealt))
