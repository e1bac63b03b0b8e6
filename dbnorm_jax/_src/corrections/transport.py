"""Corrections by optimal transport: SN, DBSN and HNN. Part of `dbnorm_jax.baselines`.

Potentials `u` of the gallery and `v` of the query bank scale `exp(s / temperature)` to uniform
marginals; the bias is `-temperature log u`, up to a constant. One iteration updates the bank's
potentials, then the gallery's, in the log domain:

    log v_b = -log m - LSE_g(s(b, g) / temperature + log u_g)
    log u_g = -log n - LSE_b(s(b, g) / temperature + log v_b)

After the second update the gallery's marginals are exact and the bank's are not:
`sinkhorn_residual` says by how much. From uniform bank potentials the gallery's update alone is
the inverted softmax with beta = 1 / temperature.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, elementary, numerics, seen
from dbnorm_jax._src.core.log_mean_exp import RunningMean, add_rows, finish_mean, start_mean
from dbnorm_jax._src.core.similarity import SimilarityFn, check_rows, dot_product, name_of
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.passes import streaming
from dbnorm_jax._src.passes.selection import is_apart
from dbnorm_jax._src.passes.sweep import Chunk, Items, Pass, Rows, Tile, Tiling, sweep

_UNIT = " (in the unit of similarity)"


def sinkhorn_normalization(
    similarities: ArrayLike, *, temperature: ArrayLike, num_iterations: int
) -> Correction:
    """SN: Sinkhorn potentials of the gallery against the query bank.

    Args:
      similarities: [num_query_bank, num_gallery], higher is closer.
      temperature: > 0, in the unit of similarity.
      num_iterations: updates of both sides, starting from uniform gallery potentials (static).

    Returns:
      Correction with one term that always acts. Convergence is not assumed: `sinkhorn_residual`
      measures what is left.

    Raises:
      ValueError: an empty or non-finite matrix, temperature <= 0, fewer than one iteration.
      TypeError: a matrix that is not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> bank = jnp.array([[1.0, 0.0], [1.0, 0.0]])     # item 0 is nearer to all by 1
      >>> fitted = dbn.baselines.sinkhorn_normalization(bank, temperature=0.5, num_iterations=3)
      >>> print(f"{fitted.bias[0, 0] - fitted.bias[0, 1]:.3f}")
      1.000

    References:
      Pan et al., ACM MM 2025 (arXiv 2508.02538).
    """
    similarities, temperature, count = _checked(similarities, temperature, num_iterations)
    return _sinkhorn(similarities, temperature, num_iterations=count)


def dual_bank_sinkhorn_normalization(
    similarities: ArrayLike,
    bank_similarities: ArrayLike,
    *,
    temperature: ArrayLike,
    num_iterations: int,
) -> Correction:
    """DBSN: SN of the gallery and the gallery bank together, of which the gallery is kept.

    Args:
      similarities: [num_query_bank, num_gallery], higher is closer.
      bank_similarities: [num_query_bank, num_gallery_bank], of the same query bank.
      temperature: > 0, in the unit of similarity (0.01 in the paper).
      num_iterations: updates of both sides (static; 10 in the paper).

    Returns:
      Correction with one term that always acts.

    Raises:
      ValueError: as `sinkhorn_normalization`, or matrices with different numbers of rows.
      TypeError: a matrix that is not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> to_gallery, to_bank = jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5, 0.5]])
      >>> fitted = dbn.baselines.dual_bank_sinkhorn_normalization(
      ...     to_gallery, to_bank, temperature=0.5, num_iterations=3)
      >>> print(fitted.bias.shape, f"{fitted.bias[0, 0] - fitted.bias[0, 1]:.3f}")
      (1, 2) 1.000

    References:
      Pan et al., ACM MM 2025 (arXiv 2508.02538).
    """
    similarities, temperature, count = _checked(similarities, temperature, num_iterations)
    bank_similarities = checks.similarities(
        "bank_similarities", bank_similarities, rows="query bank items"
    )
    if bank_similarities.ndim != 2 or bank_similarities.shape[0] != similarities.shape[0]:
        raise checks.BadValueError(
            "bank_similarities",
            f" must have a row per query-bank item as `similarities` "
            f"{similarities.shape}, got {bank_similarities.shape}",
        )
    dtype = numerics.accumulation_dtype(similarities.dtype, bank_similarities.dtype)
    stacked = jnp.concatenate([similarities.astype(dtype), bank_similarities.astype(dtype)], axis=1)
    fitted = _sinkhorn(stacked, temperature.astype(dtype), num_iterations=count)
    return Correction(fitted.bias[:, : similarities.shape[1]], None)


def stream_sinkhorn_normalization(
    query_bank: ArrayLike,
    gallery: ArrayLike,
    *,
    gallery_bank: ArrayLike | None = None,
    temperature: ArrayLike,
    num_iterations: int,
    exclude: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
) -> Correction:
    """SN, or DBSN with a gallery bank, from embeddings, never holding bank x gallery.

    One pass over the similarities per iteration. It holds all similarities of `chunk_size` bank
    rows; where those take more than 128 MiB it holds fewer rows, but not fewer than 32.

    Args:
      query_bank: [num_query_bank, dim] embeddings.
      gallery: [num_gallery, dim] embeddings.
      gallery_bank: optional [num_gallery_bank, dim] embeddings.
      temperature: > 0, in the unit of similarity.
      num_iterations: updates of both sides (static).
      exclude: int [num_query_bank] or [num_query_bank, most], gallery rows that a bank item does
        not enter, -1 for none. What is left of an item is held to the mean over the rest, so that
        it is neither favored nor punished for what it lost.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: bank rows held at once, at most (static).

    Returns:
      Correction with one term that always acts.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, temperature <= 0, fewer than one
        iteration, `exclude` that does not fit.
      TypeError: embeddings that are not floating point, `exclude` that is not of integers.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> bank, gallery = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> fitted = dbn.baselines.stream_sinkhorn_normalization(
      ...     bank, gallery, temperature=0.5, num_iterations=3)
      >>> print(f"{fitted.bias[0, 0] - fitted.bias[0, 1]:.3f}")
      1.000

    References:
      Pan et al., ACM MM 2025 (arXiv 2508.02538).
    """
    more = {} if gallery_bank is None else {"gallery_bank": gallery_bank}
    arrays = checks.checked_embeddings(query_bank=query_bank, gallery=gallery, **more)
    check_rows(similarity_fn, **arrays)
    dtype = numerics.accumulation_dtype(*(array.dtype for array in arrays.values()))
    if len({array.dtype for array in arrays.values()}) > 1:
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    bank, *columns = arrays.values()
    fitted = _stream_sinkhorn(
        bank,
        jnp.concatenate(columns),
        checks.positive("temperature", temperature, dtype, _UNIT),
        seen.exclusions(exclude, bank.shape[0], columns[0].shape[0]),
        num_iterations=checks.integer("num_iterations", num_iterations, low=1),
        similarity_fn=similarity_fn,
        chunk_size=checks.integer("chunk_size", chunk_size, low=1),
    )
    return Correction(fitted.bias[:, : columns[0].shape[0]], None, name_of(similarity_fn))


def sinkhorn_residual(
    similarities: ArrayLike, correction: Correction, *, temperature: ArrayLike
) -> jax.Array:
    """How far SN is from its fixed point: the largest relative error of a marginal.

    With the bank's potentials set to the gallery's, the bank's marginals are exact, and the
    gallery's are off by at most this share. 0 is converged.

    Args:
      similarities: [num_query_bank, num_gallery] that the correction was fitted on (of DBSN, both
        galleries stacked).
      correction: of SN, one term.
      temperature: the one it was fitted with.

    Returns:
      Scalar, at least 0.

    Raises:
      ValueError: shapes that do not fit, an empty or non-finite matrix, temperature <= 0.
      TypeError: a matrix that is not floating point, no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> bank = jnp.array([[0.9, 0.1], [0.3, 0.2]])
      >>> for count in (1, 50):
      ...     fitted = dbn.baselines.sinkhorn_normalization(
      ...         bank, temperature=0.2, num_iterations=count)
      ...     residual = dbn.baselines.sinkhorn_residual(bank, fitted, temperature=0.2)
      ...     print(f"{residual:.3f}")
      0.220
      0.000
    """
    similarities, temperature, _ = _checked(similarities, temperature, 1)
    checks.correction(correction, Correction, "make it with sinkhorn_normalization")
    correction = checks.unsplit(correction)
    checks.matching_gallery(
        "correction", correction.num_gallery, "similarities", similarities.shape
    )
    return _residual(similarities, correction.bias[..., 0, :], temperature)


def hubless_nearest_neighbor(
    similarities: ArrayLike, *, temperature: ArrayLike, num_iterations: int = 100
) -> Correction:
    """HNN: the dual of the entropic assignment of bank queries to gallery items, minimized.

    `beta` minimizes `mean_b temperature LSE_g((beta_g + s(b, g)) / temperature) - mean_g beta_g`;
    a query then takes the item of the largest `s(q, g) + beta_g`: the bias is `-beta`. The minimum
    is the fixed point of SN; here it is found by L-BFGS.

    Args:
      similarities: [num_query_bank, num_gallery], higher is closer (the paper's are negative
        distances).
      temperature: `eps` > 0, in the unit of similarity.
      num_iterations: L-BFGS steps (static).

    Returns:
      Correction with one term that always acts; `sinkhorn_residual` measures its convergence. Its
      line search has no reverse-mode derivative: differentiate `sinkhorn_normalization` instead.

    Raises:
      ValueError: an empty or non-finite matrix, temperature <= 0, fewer than one step.
      TypeError: a matrix that is not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> bank = jnp.array([[1.0, 0.0], [1.0, 0.0]])
      >>> fitted = dbn.baselines.hubless_nearest_neighbor(bank, temperature=0.5)
      >>> print(f"{fitted.bias[0, 0] - fitted.bias[0, 1]:.2f}")
      1.00

    References:
      Huang et al., ACL 2019, who step along stochastic gradients of the same objective.
    """
    similarities, temperature, count = _checked(similarities, temperature, num_iterations)
    return _hubless(similarities, temperature, num_iterations=count)


def _checked(
    similarities: Any, temperature: Any, num_iterations: int
) -> tuple[jax.Array, jax.Array, int]:
    array = checks.similarities("similarities", similarities, rows="query bank items")
    if array.ndim != 2:
        raise checks.BadValueError(
            "similarities",
            f" must be [num_query_bank, num_gallery], got {array.shape}; use "
            f"jax.vmap over leading axes",
        )
    dtype = numerics.accumulation_dtype(array.dtype)
    temperature = checks.positive("temperature", temperature, dtype, _UNIT)
    count = checks.integer("num_iterations", num_iterations, low=1)
    return checks.converted(array, dtype), temperature, count


def _iterated(
    update: Callable[[jax.Array], jax.Array], num_gallery: int, dtype: jnp.dtype, count: int
) -> Correction:
    """The bias after `count` updates of both sides, from uniform potentials of the gallery.

    Potentials are kept as `temperature x log`, on the scale of s. What is constant in one cancels
    in the next update: means stand in for the marginals.
    """
    start = jnp.zeros(num_gallery, dtype)
    potential, _ = lax.scan(lambda potential, _: (update(potential), None), start, None, count)
    return Correction(-potential[None], None)


@partial(jax.jit, static_argnames="num_iterations")
def _sinkhorn(
    similarities: jax.Array, temperature: jax.Array, *, num_iterations: int
) -> Correction:
    def log_sums(potential: jax.Array, axis: int) -> jax.Array:
        exponents = (similarities + jnp.expand_dims(potential, 1 - axis)) / temperature
        # Written: their maximum is subtracted from them.
        sums = jax.nn.logsumexp(elementary.written(exponents), axis=axis)
        return temperature * (sums - jnp.log(float(similarities.shape[axis])))

    def update(potential: jax.Array) -> jax.Array:
        return -log_sums(-log_sums(potential, axis=1), axis=0)

    return _iterated(update, similarities.shape[1], temperature.dtype, num_iterations)


@partial(jax.jit, static_argnames=("num_iterations", "similarity_fn", "chunk_size"))
def _stream_sinkhorn(
    bank: jax.Array,
    gallery: jax.Array,
    temperature: jax.Array,
    exclude: jax.Array | None,
    *,
    num_iterations: int,
    similarity_fn: SimilarityFn,
    chunk_size: int,
) -> Correction:
    beta = 1 / temperature
    num_gallery = gallery.shape[0]
    iteration, no_rows = _iteration(beta, num_gallery), start_mean(num_gallery, beta)
    tiling = Tiling(similarity_fn, beta.dtype, chunk_size)

    # Rematerialised: all iterations have the same similarities, and a backward pass would compute
    # them outside of the loop, all at once.
    @jax.checkpoint
    def update(potential: jax.Array) -> jax.Array:
        swept = sweep(
            iteration, Rows(bank, exclude), Items(gallery, potential), tiling, state=no_rows
        )
        return -finish_mean(swept.items, beta).bias

    return _iterated(update, num_gallery, beta.dtype, num_iterations)


class _Powers(NamedTuple):
    """Of bank rows, over the items so far, each similarity with the potential of its item."""

    maximum: jax.Array  # [num_rows]
    total: jax.Array  # [num_rows] sum_g exp(beta (s + potential - maximum))


def _iteration(beta: jax.Array, num_gallery: int) -> Pass:
    """Items own their potential, and keep the mean of which the next one is made; rows, `exclude`.

    The potential of a bank row is made of all items, and enters their means at the second look. Its
    powers need not have all digits at a small beta, as those of items do: there their rounding
    moves all items alike.
    """
    rate = beta / math.log(2)

    def start(rows: Chunk) -> _Powers:
        lowest = jnp.full(rows.size, numerics.lowest(beta.dtype), beta.dtype)
        return _Powers(lowest, jnp.zeros_like(lowest))

    def add(powers: _Powers, mean: RunningMean, tile: Tile) -> tuple[_Powers, RunningMean]:
        scores, entered = tile.similarities + tile.own[None], _entered(tile)
        if entered is not None:
            scores = jnp.where(entered, scores, numerics.lowest(beta.dtype))
        # The shift cancels, so its gradient is left out.
        largest = elementary.largest_last(lax.stop_gradient(scores))
        maximum = jnp.maximum(powers.maximum, largest)
        added = elementary.exp2(rate * (scores - maximum[:, None]))
        if entered is not None:
            added = jnp.where(entered, added, 0)
        # Without a first item there is nothing to shift: from the start it would be too far.
        moved = jnp.where(powers.total > 0, powers.maximum - maximum, 0)
        summed = jnp.matmul(added, tile.entering, precision=numerics.matmul_precision())
        return _Powers(maximum, powers.total * elementary.exp2(rate * moved) + summed), mean

    def finish(total: None, powers: _Powers, _: Chunk) -> tuple[None, jax.Array]:
        some = powers.total > 0  # no item, where a row enters none: then it is read nowhere
        log_mean = jnp.log(jnp.where(some, powers.total, 1) / num_gallery)
        potential = jnp.where(some, -(powers.maximum + log_mean / beta), 0)
        return total, elementary.written(potential)  # `add_rows` reads it twice

    def again(potential: jax.Array, mean: RunningMean, tile: Tile) -> RunningMean:
        scores = tile.similarities + potential[:, None]
        return add_rows(mean, scores, beta, tile.rows.entering, valid=_entered(tile))

    return Pass(add, start, finish, again)


def _entered(tile: Tile) -> jax.Array | None:
    """Which items a row enters, but for those that it owns as excluded; None where it is all."""
    exclude = tile.rows.own
    return None if exclude is None else is_apart(exclude[:, None], tile.places[None])


@jax.jit
def _residual(similarities: jax.Array, bias: jax.Array, temperature: jax.Array) -> jax.Array:
    exponents = elementary.written((similarities - bias[None]) / temperature)
    assignment = jax.nn.softmax(exponents, axis=1)
    return jnp.abs(assignment.mean(axis=0) * similarities.shape[1] - 1).max()


@partial(jax.jit, static_argnames="num_iterations")
def _hubless(similarities: jax.Array, temperature: jax.Array, *, num_iterations: int) -> Correction:
    import optax  # here, so that the library is imported without it

    def objective(beta: jax.Array) -> jax.Array:
        exponents = elementary.written((beta[None] + similarities) / temperature)
        return (jax.nn.logsumexp(exponents, axis=1).mean() - (beta / temperature).mean()).sum()

    optimizer = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(objective)

    # Once the objective is flat to the last bit, the line search wanders: the point of the smallest
    # gradient is kept.
    def step(carry: Any, _: None) -> tuple[Any, None]:
        beta, state, best, smallest = carry
        value, gradient = value_and_gradient(beta, state=state)
        size = jnp.abs(gradient).max()
        best, smallest = jnp.where(size < smallest, beta, best), jnp.minimum(size, smallest)
        # optax mixes dtypes freely; a caller may have forbidden that.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = optimizer.update(
                gradient, state, beta, value=value, grad=gradient, value_fn=objective
            )
            beta = optax.apply_updates(beta, updates)
        # A constant added to beta changes only its rounding, and the search would let it grow.
        beta -= beta.mean()
        return (beta, state, best, smallest), None

    # The bias of SN's first half-step is a good start, and 0 would do.
    exponents = elementary.written(similarities / temperature)
    start = -temperature * (jax.nn.logsumexp(exponents, axis=0) - jnp.log(float(len(similarities))))
    carry = (start, optimizer.init(start), start, jnp.asarray(jnp.inf, start.dtype))
    (_, _, best, _), _ = lax.scan(step, carry, None, length=num_iterations)
    return Correction(-(best - best.mean())[None], None)
