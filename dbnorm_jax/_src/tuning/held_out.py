"""Scores of held-out bank queries under many corrections at once.

The pairs of the banks are dealt into folds. A fold's queries are scored among the columns (gallery
items, those right for the queries among them) under corrections fitted on the other folds:

    one pass over query bank x columns -> means under all betas, largest similarities, per fold
    Sinkhorn of all folds at once      -> biases under all temperatures
    the other folds merged, a source   -> corrections                        [candidates, columns]
    held-out queries                   -> ranks, log-likelihoods             [queries, candidates]

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

from dbnorm_jax._src.core import log_mean_exp, numerics
from dbnorm_jax._src.core.log_mean_exp import Means
from dbnorm_jax._src.core.similarity import SimilarityFn, tile
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities
from dbnorm_jax._src.corrections.table import GALLERY_BANK, TABLE, Row
from dbnorm_jax._src.passes import counts, selection, sorting
from dbnorm_jax._src.tuning.choice import COLUMNS
from dbnorm_jax._src.tuning.grid import Candidates, arguments

# Bank rows per block.
_ROWS = 512
# Logarithms that entries of a matrix of largest entry 1, and sums of them, do not fall below, so
# that float32 holds them and their inverses. A sum reaches it where a part lacks the one row that
# an item is near to.
_LOWEST, _FEWEST = -80.0, -60.0


class Statistics(NamedTuple):
    """What parts of a bank say about each column; the leading axis is the part."""

    means: Means  # of [parts, num_betas, columns]
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
    weights: jax.Array,  # [num_half_lives, num_bank], of the rows in the means
    dealt: Blocks,
    *,
    num_parts: int,
    k: int,  # largest similarities kept, 0 for none
    similarity_fn: SimilarityFn,
) -> Statistics:
    """Statistics of every part of a bank, in one pass over bank x columns.

    The means are at all betas under the first weights, then under the next.
    """
    num_columns, dtype = columns.shape[0], betas.dtype
    repeated = jnp.tile(betas, len(weights))
    places = lax.iota(jnp.int32, num_columns)

    def add_block(carry: Statistics, block: Any) -> tuple[Statistics, None]:
        rows, filled, part = block
        similarities = tile(similarity_fn, bank[rows], columns).astype(dtype)
        filled = filled.astype(dtype)
        own = (excluded[rows][:, :, None] == places[None, None]).any(axis=1)
        valid = ~own & (filled > 0)[:, None]

        means = []
        for of_rows in weights:
            mean = log_mean_exp.start_mean(num_columns, betas)
            entering = filled * of_rows[rows].astype(dtype)
            mean = log_mean_exp.add_rows(mean, similarities, betas, entering, valid=valid)
            means.append(log_mean_exp.finish_mean(mean, betas))
        here = jax.tree.map(lambda *fields: jnp.concatenate(fields), *means)
        largest = carry.largest
        if k:
            of_block = selection.largest_of_columns(jnp.where(valid, similarities, jnp.nan), k)
            largest = largest.at[part].set(sorting.merged(carry.largest[part], of_block))
        both = jax.tree.map(lambda some, more: jnp.stack([some[part], more]), carry.means, here)
        both = log_mean_exp.merged(both, repeated[:, None])
        merged = jax.tree.map(lambda some, whole: some.at[part].set(whole), carry.means, both)
        return Statistics(merged, largest), None

    start = Statistics(
        log_mean_exp.none((num_parts, len(repeated), num_columns), dtype),
        jnp.full((num_parts, k, num_columns), -jnp.inf, dtype),
    )
    return lax.scan(add_block, start, tuple(dealt))[0]


def merged(parts: Statistics, keep: jax.Array, betas: jax.Array) -> Statistics:
    """Some parts as one; `keep`: [num_parts] bool."""
    kept = jax.tree.map(lambda field: jnp.where(keep[:, None, None], field, 0), parts.means)
    largest = jnp.where(keep[:, None, None], parts.largest, -jnp.inf)
    largest, _ = lax.scan(
        lambda some, part: (sorting.merged(some, part), None), largest[0], largest[1:]
    )
    num_half_lives = parts.means[0].shape[1] // max(len(betas), 1)
    return Statistics(log_mean_exp.merged(kept, jnp.tile(betas, num_half_lives)[:, None]), largest)


@partial(jax.jit, static_argnames=("num_iterations", "similarity_fn"))
def sinkhorn(
    bank: jax.Array,  # [num_bank, dim]
    columns: jax.Array,  # [num_columns, dim]
    others: jax.Array,  # [num_others, dim], columns beside them: none, or the gallery bank
    excluded: jax.Array,  # [num_bank, most] int32, columns that a row does not enter, -1 for none
    kept: tuple[jax.Array, jax.Array],  # [num_parts, num_bank], [num_parts, num_others], 0 and 1
    temperatures: jax.Array,  # [num_temperatures]
    *,
    num_iterations: int,
    similarity_fn: SimilarityFn,
) -> jax.Array:
    """Biases of `transport.stream_sinkhorn_normalization` for many parts of the banks at once.

    The potentials of all parts are columns of one matrix, so that an iteration is two products with
    `K = exp(s / temperature)`. K is scaled by the largest entry of each row, then of each column.
    Of what is excluded it holds 0, and a row or another column that is not kept has a marginal of
    0. Whole matrices are held.

    Returns:
      [num_temperatures, num_parts, num_columns]; 0 in a column that nothing enters.
    """
    num_columns, dtype = columns.shape[0], temperatures.dtype
    every = jnp.concatenate([columns, others])
    entered = jnp.ones((bank.shape[0], every.shape[0]), bool)
    place = jnp.where(excluded < 0, every.shape[0], excluded)
    entered = entered.at[lax.iota(jnp.int32, bank.shape[0])[:, None], place].set(False, mode="drop")
    similarities = tile(similarity_fn, bank, every).astype(dtype)
    largest = jnp.where(entered, similarities, -jnp.inf).max(axis=1, keepdims=True)
    similarities = similarities - jnp.where(jnp.isfinite(largest), largest, 0)
    shift = jnp.where(entered, similarities, -jnp.inf).max(axis=0)
    shift = jnp.where(jnp.isfinite(shift), shift, 0)
    of_rows, of_others = (part.astype(dtype) for part in kept)
    of_columns = jnp.concatenate([jnp.ones((len(of_rows), num_columns), dtype), of_others], axis=1)
    product = partial(jnp.matmul, precision=numerics.matmul_precision())
    mass = product(of_rows, entered.astype(dtype))
    fewest = jnp.exp(jnp.asarray(_FEWEST, dtype))

    def centered(potentials: jax.Array) -> jax.Array:
        # Potentials have a free factor: it would drift out of what float32 holds.
        logs = jnp.log(jnp.maximum(potentials, fewest))
        return potentials * jnp.exp(-logs.mean(axis=1, keepdims=True))

    def at(temperature: jax.Array) -> jax.Array:
        exponents = jnp.maximum((similarities - shift[None]) / temperature, _LOWEST)
        kernel = jnp.where(entered, jnp.exp(exponents), 0)

        def iterate(_: Any, potentials: jax.Array) -> jax.Array:
            rows = product(kernel, (of_columns * potentials).T).T
            rows = of_rows / jnp.maximum(rows, fewest)
            return centered(mass / jnp.maximum(product(rows, kernel), fewest))

        start = jnp.exp(jnp.maximum((shift - shift.mean()) / temperature, _LOWEST))
        start = jnp.broadcast_to(start, of_columns.shape)
        potentials = lax.fori_loop(0, num_iterations, iterate, start)[:, :num_columns]
        bias = shift[None, :num_columns] - temperature * jnp.log(potentials)
        return jnp.where(mass[:, :num_columns] > 0, bias, 0)

    return lax.map(at, temperatures)


class Prepared(NamedTuple):
    """The source that candidates are fitted from: all that they ask for, at the values they ask."""

    betas: jax.Array  # [num_betas]
    temperatures: tuple[jax.Array, jax.Array]  # of SN and of DBSN
    means: Means  # of [num_half_lives * num_betas, columns]
    largest_values: jax.Array  # [k, columns]
    sinkhorn_biases: tuple[jax.Array, jax.Array]  # [num_temperatures, columns] each

    def aged(self, place: int) -> "Prepared":
        """With the means of one half-life."""
        own = slice(place * len(self.betas), (place + 1) * len(self.betas))
        return self._replace(means=jax.tree.map(lambda field: field[own], self.means))

    def statistics(self, bank: str, beta: Any, k: int) -> BankStatistics:
        """Of the query bank, without an activation set."""
        del bank, k
        found = jax.tree.map(lambda field: field[_nearest(self.betas, beta)], self.means)
        return BankStatistics.of(found, jnp.asarray(beta, self.betas.dtype), None, 0)

    def largest(self, k: int) -> LargestSimilarities:
        """Of the query bank; 0 in a column that nothing entered, which so gets no bias."""
        values = self.largest_values[:k]
        return LargestSimilarities(jnp.where(values[:1] > -jnp.inf, values, 0))

    def sinkhorn(self, temperature: Any, iterations: int, *, dual: bool) -> Correction:
        """SN, or DBSN with the gallery bank."""
        del iterations
        place = _nearest(self.temperatures[dual], temperature)
        return Correction(self.sinkhorn_biases[dual][place][None], None)


def _nearest(values: jax.Array, value: Any) -> jax.Array:
    return jnp.abs(values - value).argmin()


class Group(NamedTuple):
    """Candidates that differ in numbers alone."""

    method: Row
    k: int
    age: int  # place of its half-life
    places: tuple[int, ...]  # among the candidates


class Plan(NamedTuple):
    """What a table of candidates needs."""

    betas: jax.Array  # [num_betas], each once, and so below
    half_lives: tuple[float, ...]  # 0 first: none decays
    temperatures: tuple[jax.Array, jax.Array]  # of SN and of DBSN
    most: int  # of the largest similarities
    groups: tuple[Group, ...]
    parameters: dict[str, jax.Array]  # [num_candidates] each


def planned(table: Candidates, dtype: jnp.dtype) -> Plan:
    """What is asked for once, and the candidates by what is compiled for them."""
    half_lives = np.union1d([0.0], table.half_life)
    ages = np.searchsorted(half_lives, table.half_life)
    members: dict[tuple[str, int, int], list[int]] = {}
    for place in range(len(table.method)):
        name, parameters = table.row(place)
        known = name, int(parameters.get("k", 0)), int(ages[place])
        members.setdefault(known, []).append(place)
    groups = tuple(
        Group(TABLE[name], k, age, tuple(places))
        for (name, k, age), places in members.items()
        if name in TABLE
    )
    dual = np.zeros(len(table.method), bool)
    for group in groups:
        dual[list(group.places)] = GALLERY_BANK in group.method.needs

    def once(values: npt.NDArray[Any]) -> jax.Array:
        return jnp.asarray(np.unique(values[values > 0]), dtype)

    temperatures = once(table.temperature[~dual]), once(table.temperature[dual])
    values = {name: jnp.asarray(getattr(table, name), dtype) for name in COLUMNS if name != "k"}
    most = int(table.k.max())
    return Plan(
        once(table.beta_query), tuple(half_lives.tolist()), temperatures, most, groups, values
    )


def biases(
    source: Any, parameters: dict[str, jax.Array], groups: tuple[Group, ...], num_columns: int
) -> jax.Array:
    """[num_candidates, columns] of all candidates; raw is 0, and so is a bias of the caller's."""
    some = next(iter(parameters.values()))
    found = jnp.zeros((len(some), num_columns), some.dtype)
    for group in groups:

        def fit(given: dict[str, jax.Array], group: Group = group) -> jax.Array:
            method, aged = group.method, source.aged(group.age)
            fitted: Correction = method.fit(aged, **arguments(method, {**given, "k": group.k}))
            return fitted.bias.sum(axis=-2)

        places = np.array(group.places)
        given = {name: values[places] for name, values in parameters.items()}
        found = found.at[places].set(jax.vmap(fit)(given))
    return found


@jax.jit
def with_own(biases: jax.Array, weights: jax.Array, own: jax.Array) -> jax.Array:
    """[..., num_candidates, columns], with the caller's own at the weights [num_candidates]."""
    own = weights.astype(biases.dtype)[:, None] * own[None].astype(biases.dtype)
    return biases + jnp.broadcast_to(own, biases.shape)


@partial(jax.jit, static_argnames="groups")
def biases_by_part(
    parts: Statistics,
    sinkhorn_biases: tuple[jax.Array, jax.Array],  # [num_temperatures, num_parts, columns] each
    betas: jax.Array,
    temperatures: tuple[jax.Array, jax.Array],
    parameters: dict[str, jax.Array],
    keep: jax.Array,
    *,
    groups: tuple[Group, ...],
) -> jax.Array:
    """[num_folds, num_candidates, columns], each fitted on some parts.

    `keep`: [num_folds, num_parts] bool.
    """

    def of_fold(part: jax.Array) -> jax.Array:
        rest = merged(parts, keep[part], betas)
        transported = sinkhorn_biases[0][:, part], sinkhorn_biases[1][:, part]
        source = Prepared(betas, temperatures, rest.means, rest.largest, transported)
        return biases(source, parameters, groups, parts.largest.shape[-1])

    return lax.map(of_fold, lax.iota(jnp.int32, len(keep)))


class Scores(NamedTuple):
    """Of held-out queries under candidates; higher ranks are worse, higher likelihoods better."""

    ranks: Any  # [num_queries, num_candidates], as `metrics.ranks`
    log_likelihood: Any  # [num_queries, num_candidates], of the right columns in a softmax


def is_right(right: jax.Array, num_columns: int) -> jax.Array:
    """[num_queries, columns] bool, from [num_queries, most] int32, -1 for none."""
    places = lax.iota(jnp.int32, num_columns)
    matches: jax.Array = (right[:, :, None] == places[None, None]).any(axis=1)
    return matches


def scores(
    similarities: jax.Array,
    right: jax.Array,
    biases: jax.Array,
    sharpness: jax.Array,
    ranked: jax.Array | None = None,
) -> Scores:
    """Rank of each query's best right column under every candidate, and their log-likelihood.

    Args:
      similarities: [num_queries, columns].
      right: [num_queries, most] int32, -1 for none.
      biases: [num_candidates, columns].
      sharpness: tau of `log softmax tau (s - bias)`, summed over the right columns; [].
      ranked: [columns] bool, whether a column is ranked where it is not right; None for all.

    Returns:
      Fields [num_candidates, num_queries]; ranks are +inf for queries without a right column.
    """
    right = counts.distinct(right)
    matches = is_right(right, similarities.shape[1])
    answered = matches.any(axis=1)
    left_out = matches if ranked is None else matches | ~ranked[None]
    wrong = jnp.where(left_out, -jnp.inf, similarities)
    own = jnp.take_along_axis(similarities, jnp.maximum(right, 0), axis=1)

    def score(bias: jax.Array) -> Scores:
        of_right = own - bias[jnp.maximum(right, 0)]
        of_right = jnp.where(right >= 0, of_right, -jnp.inf)
        best = of_right.max(axis=1, keepdims=True)
        best_right = (of_right == best).sum(axis=1, dtype=jnp.int32)
        of_wrong = wrong - bias[None]
        ahead = counts.Ahead(*counts.count_both(of_wrong > best, of_wrong == best), best_right)
        ranks = counts.rank(ahead, answered, similarities.dtype, "average")
        # Above the best right one: finite wherever there is one.
        shift = jnp.where(answered[:, None], best, 0)
        right_mass = jnp.exp(sharpness * (of_right - shift)).sum(axis=1)
        top = jnp.maximum(sharpness * (of_wrong - shift).max(axis=1), 0)
        wrong_mass = jnp.exp(sharpness * (of_wrong - shift) - top[:, None]).sum(axis=1)
        whole = top + jnp.log(wrong_mass + right_mass * jnp.exp(-top))
        return Scores(ranks, jnp.where(answered, jnp.log(right_mass) - whole, 0))

    return Scores(*lax.map(score, biases))


@partial(jax.jit, static_argnames="similarity_fn")
def scores_by_block(
    bank: jax.Array,  # [num_bank, dim], the query bank
    columns: jax.Array,  # [num_columns, dim]
    right: jax.Array,  # [num_bank, most] int32 columns, -1 for none
    dealt: Blocks,  # the held-out rows
    biases: jax.Array,  # [num_parts, num_candidates, columns]
    sharpness: jax.Array,
    ranked: jax.Array,  # [num_columns] bool, whether a column is ranked where it is not right
    *,
    similarity_fn: SimilarityFn,
) -> Scores:
    """Scores of blocks of held-out queries, each under corrections of the other parts.

    Fields are [num_blocks, num_candidates, size], padding being repeats of row 0.
    """

    def of_block(block: Any) -> Scores:
        rows, _, part = block
        similarities = tile(similarity_fn, bank[rows], columns).astype(biases.dtype)
        return scores(similarities, right[rows], biases[part], sharpness, ranked)

    found: Scores = lax.map(of_block, tuple(dealt))
    return found


@partial(jax.jit, static_argnames="similarity_fn")
def raw_log_likelihood(
    queries: jax.Array,  # [num_queries, dim]
    columns: jax.Array,  # [num_columns, dim]
    right: jax.Array,  # [num_queries, most] int32 columns, -1 for none
    sharpness: jax.Array,  # [num_values]
    *,
    similarity_fn: SimilarityFn,
) -> jax.Array:
    """[num_values] means over the queries, of the similarities as they are."""
    similarities = tile(similarity_fn, queries, columns).astype(sharpness.dtype)
    none = jnp.zeros((1, columns.shape[0]), sharpness.dtype)

    def mean(value: jax.Array) -> jax.Array:
        return scores(similarities, right, none, value).log_likelihood.mean()

    return lax.map(mean, sharpness)
