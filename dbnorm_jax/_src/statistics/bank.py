"""Bank statistics: what a bank of other items says about each gallery item.

    similarities [num_bank, num_gallery]  ->  bias, mass, k-occurrence   [num_gallery]

Statistics merge: those of two parts of a bank give those of the whole, so banks grow, shards reduce
and long fits resume.
"""

import dataclasses
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, elementary, log_mean_exp, numerics, seen
from dbnorm_jax._src.core.similarity import SimilarityFn, agreed, dot_product, known_by
from dbnorm_jax._src.core.types import BankStatistics, LargestSimilarities
from dbnorm_jax._src.passes import selection, streaming
from dbnorm_jax._src.places.mesh import drive, layout
from dbnorm_jax._src.places.mesh.exchange import Axis

# Shares of the mass of a column that `subtract` takes for none, and trusts: masses are known to
# about 2^-44 of themselves. Without a mass, so much of Z is its rounding.
_NO_MASS, _LEAST_MASS, _NO_SUM = 2.0**-40, 2.0**-36, 1e-3


def bank_statistics(
    similarities: ArrayLike,
    *,
    beta: ArrayLike,
    k: int = 1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> BankStatistics:
    """Bank statistics of a similarity matrix: the exponential mean of each column, its bias.

    `bias(g) = (1 / beta) log (sum_b w_b exp(beta s(b, g)) / sum_b w_b)`, and
    `k_occurrence(g) = #{b with w_b > 0: g among the k largest of s(b, .)}`.

    Args:
      similarities: [..., num_bank, num_gallery], higher is closer, any unit.
      beta: [...] inverse temperature, 1e-37 to 1e37, in 1/[unit of similarity]; one set of each.
      k: size of the neighborhoods behind the activation set, 0 for none (static).
      where: optional bool, valid rows [..., num_bank] or pairs [..., num_bank, num_gallery].
      weights: optional [..., num_bank] multiplicities, 0 (absent) or 1e-18 to 1e18 (2: twice).

    Returns:
      BankStatistics with fields [..., num_gallery].

    Raises:
      ValueError: an empty or non-finite matrix, bad `where` or `weights`, beta or k out of range.
      TypeError: a matrix that is not floating point, a mask that is not bool.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> statistics = dbn.bank_statistics([[0.9, 0.1], [0.7, 0.1]], beta=1.0)
      >>> print(jnp.array_str(statistics.bias, precision=4))    # from mean to maximum
      [0.805 0.1  ]

    References:
      Smith et al., ICLR 2017 (inverted softmax); Bogolin et al., CVPR 2022 (activation set); Wang,
      Jian and Xue, EMNLP 2023 (both banks). The released code exponentiates without a shift and
      overflows float32 at beta s > 88; this does not at any beta.
    """
    similarities = checks.similarities("similarities", similarities, rows="bank items", alike=False)
    num_bank, num_gallery = similarities.shape[-2:]
    k = checks.integer("k", k, low=0, high=num_gallery, of=" (gallery items)")
    dtype = numerics.accumulation_dtype(similarities.dtype)
    beta = checks.inverse_temperature("beta", beta, dtype)
    if where is not None:
        where = seen.pairs(where, similarities.shape)
    if weights is not None:
        weights = checks.bank_weights("weights", weights, (num_bank,), dtype)
    return _bank_statistics(similarities.astype(dtype), beta, where, weights, k=k)


@partial(jax.jit, static_argnames="k")
def _bank_statistics(
    similarities: jax.Array,
    beta: jax.Array,
    where: jax.Array | None,
    weights: jax.Array | None,
    *,
    k: int,
) -> BankStatistics:
    dtype = similarities.dtype
    num_bank, num_gallery = similarities.shape[-2:]

    def one(similarities: jax.Array, beta: jax.Array, *masks: jax.Array) -> tuple[jax.Array, ...]:
        remaining = list(masks)
        valid = remaining.pop(0) if where is not None else None
        entering = remaining.pop(0) if weights is not None else jnp.ones(num_bank, dtype)
        mean = _running_mean(similarities, beta, entering, valid)
        outputs = (*log_mean_exp.finish_mean(mean, beta), beta)
        if not k:
            return outputs
        counted_pairs = elementary.rounded(lax.stop_gradient(similarities))
        if valid is not None:
            counted_pairs = jnp.where(valid, counted_pairs, -jnp.inf)
        values, indices = jax.vmap(lambda row: selection.largest(row, k))(counted_pairs)
        counted = (values > -jnp.inf) & (entering > 0)[:, None]
        occurrence = jnp.zeros(num_gallery, jnp.int32).at[indices].add(counted.astype(jnp.int32))
        return (*outputs, occurrence)

    signature = "(b,g),()" + ",(b,g)" * (where is not None) + ",(b)" * (weights is not None)
    signature += "->(g),(g),(g),(g),(g),()" + ",(g)" * bool(k)
    masks = [mask for mask in (where, weights) if mask is not None]
    over_batches = numerics.vectorize(one, signature=signature)
    outputs = over_batches(similarities, beta, *masks)
    *fields, beta = outputs[:-1] if k else outputs
    return BankStatistics.of(log_mean_exp.Means(*fields), beta, outputs[-1] if k else None, k)


def _running_mean(
    similarities: jax.Array, beta: jax.Array, entering: jax.Array, valid: jax.Array | None
) -> log_mean_exp.RunningMean:
    """Of all rows; many by blocks, as a long sum in one piece loses digits."""
    start = log_mean_exp.start_mean(similarities.shape[1], beta)

    def add(mean: Any, rows: jax.Array, entering: jax.Array, valid: jax.Array | None) -> Any:
        # Here, not as a whole: a loop over what is no argument of the program would copy it.
        return log_mean_exp.add_rows(mean, elementary.rounded(rows), beta, entering, valid=valid)

    arrays = (similarities, entering, valid)
    if similarities.shape[0] <= streaming.DEFAULT_CHUNK_SIZE:
        return add(start, *arrays)

    def add_block(mean: Any, block: streaming.Block) -> tuple[Any, None]:
        rows, entering, valid = block.rows
        if block.fresh is not None:
            entering = jnp.where(block.fresh, entering, 0)
        return add(mean, rows, entering, valid), None

    start = numerics.varying_like(start, arrays, beta)
    return streaming.scan_chunks(add_block, start, arrays, streaming.DEFAULT_CHUNK_SIZE)[0]


def stream_bank_statistics(
    bank: ArrayLike,
    gallery: ArrayLike,
    *,
    beta: ArrayLike,
    k: int = 1,
    weights: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    similarity_fn: SimilarityFn = dot_product,
    chunk_size: int = streaming.DEFAULT_CHUNK_SIZE,
    mesh: Mesh | None = None,
    bank_axis: Axis = "bank",
    gallery_axis: Axis = "gallery",
) -> BankStatistics:
    """`bank_statistics` from embeddings, in one pass that never holds bank x gallery.

    Memory above the inputs is one tile and a few vectors of gallery length.

    Args:
      bank: [num_bank, dim] embeddings of bank items.
      gallery: [num_gallery, dim] embeddings of gallery items.
      beta: [...] inverse temperature, 1e-37 to 1e37, in 1/[unit of similarity]; faster than `vmap`.
      k: size of the neighborhoods behind the activation set, 0 for none (static).
      weights: optional [num_bank] multiplicities, 0 (absent) or 1e-18 to 1e18 (2: twice).
      exclude: int [num_bank] or [num_bank, most], gallery rows that a bank item does not enter, -1
        for none: those right for it, or its own copy, which would drown the sum.
      similarity_fn: (rows [m, dim], columns [n, dim]) -> [m, n] (static).
      chunk_size: bank rows held at once (static); results do not depend on it beyond rounding.
      mesh: optional, the devices that share the work; `docs/scaling.md` says how. NumPy arrays and
        files are read by part, arrays that are split already stay where they are.
      bank_axis: mesh axis over which bank rows are split; a tuple of several, or None for whole.
      gallery_axis: mesh axis over which gallery items are split, likewise.

    Returns:
      BankStatistics with fields [..., num_gallery], up to rounding those of the matrix. Over a
      mesh, split over `gallery_axis` where its size divides num_gallery, else whole on each device.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, beta <= 0, k larger than the gallery,
        `weights` or `exclude` that do not fit, a mesh without the axis.
      TypeError: embeddings that are not floating point, a `mesh` that is none.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> bank, gallery = [[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]]
      >>> statistics = dbn.stream_bank_statistics(bank, gallery, beta=20.0)
      >>> print(statistics.k_occurrence, jnp.array_str(statistics.bias, precision=3))
      [1 1] [0.965 0.765]
      >>> mesh = jax.make_mesh((1, 1), ("bank", "gallery"))    # (2, 4) on eight devices
      >>> print(dbn.stream_bank_statistics(bank, gallery, beta=20.0, mesh=mesh).k_occurrence)
      [1 1]
    """
    how = layout.layout(mesh, bank_axis, gallery_axis), similarity_fn, chunk_size
    split, bank, gallery = drive.checked(*how, bank=bank, gallery=gallery)
    k = checks.integer("k", k, low=0, high=split.num_gallery, of=" (gallery items)")
    dtype = numerics.accumulation_dtype(bank.dtype, gallery.dtype)
    beta = layout.split(checks.inverse_temperature("beta", beta, dtype), split.placement, None)
    weights = split.along_rows(row_weights(weights, split.num_rows, dtype), 0)
    exclude = split.along_rows(seen.exclusions(exclude, split.num_rows, split.num_gallery), -1)
    statistics = drive.bank_statistics(bank, gallery, beta, weights, exclude, split=split, k=k)
    return known_by(statistics, similarity_fn)


def row_weights(weights: Any, num_bank: int, dtype: Any) -> jax.Array | None:
    """The argument `weights` of a streamed function, [num_bank]; None where it is left out."""
    if weights is None:
        return None
    weights = checks.bank_weights("weights", weights, (num_bank,), dtype)
    checks.one_per_bank_row("weights", weights, num_bank)
    return weights


State = TypeVar("State", BankStatistics, LargestSimilarities)


def merge(first: State, *others: State) -> State:
    """Statistics of parts of a bank -> those of the whole; the inverse of `subtract`.

    `Z = sum_p Z_p`, masses and k-occurrences add, and the bias is the exponential mean of biases
    under the masses; of the largest similarities of all parts the k largest stay. Associative,
    commutative; a part without items is the identity.

    Args:
      first: BankStatistics or LargestSimilarities of one part.
      *others: of other parts, on the same gallery with the same k (and beta); none gives `first`.

    Returns:
      That of all parts together.

    Raises:
      ValueError: galleries of different size, different k, similarities or (concrete) betas.
      TypeError: other types, or two different ones.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> parts = [dbn.bank_statistics([[0.0]], beta=1.0) for _ in range(3)]
      >>> print(dbn.merge(*parts).mass, dbn.merge(*parts).log_normalizer.round(4))   # log 3
      [3.] [1.0986]
    """
    remedy = "merge joins the statistics of parts of one bank"
    checks.instance("first", first, (BankStatistics, LargestSimilarities), remedy)
    join: Any = _merge_largest if isinstance(first, LargestSimilarities) else _merge
    merged = first
    for place, other in enumerate(others):
        name = f"others[{place}]"
        checks.instance(name, other, type(first), remedy)
        _check_mergeable(first, name, other)
        similarity = agreed(("first", merged), (name, other))
        merged = dataclasses.replace(join(*checks.alike(merged, other)), similarity=similarity)
    return merged


def _check_mergeable(first: Any, name: str, other: Any) -> None:
    def check(attribute: str, what: str, one: Any, two: Any, remedy: str) -> None:
        if not np.array_equal(one, two):
            two = f" has {attribute}{two}; {remedy}"
            raise checks.BadValueError("first", f" has {attribute}{one}{what} but ", name, two)

    sizes = first.num_gallery, other.num_gallery
    check("", " gallery items", *sizes, "only statistics of the same gallery merge")
    check("k=", "", first.k, other.k, "different neighborhoods do not merge")
    if isinstance(first, BankStatistics) and checks.is_concrete(first.beta, other.beta):
        remedy = "log-normalizers of different inverse temperatures do not merge"
        check("beta=", "", first.beta, other.beta, remedy)


@jax.jit
def _merge(first: BankStatistics, second: BankStatistics) -> BankStatistics:
    counts = None
    if first.k_occurrence is not None and second.k_occurrence is not None:
        counts = first.k_occurrence + second.k_occurrence
    parts = jax.tree.map(lambda *parts: jnp.stack(parts), first.means, second.means)
    merged = log_mean_exp.merged(parts, first.beta[..., None])
    return BankStatistics.of(merged, first.beta, counts, first.k)


@jax.jit
def _merge_largest(first: LargestSimilarities, second: LargestSimilarities) -> LargestSimilarities:
    both = jnp.concatenate([first.values, second.values], axis=-2)
    return LargestSimilarities(selection.largest_of_columns(both, first.k))


def subtract(
    whole: BankStatistics, part: BankStatistics, *, smallest_share: float = 1e-3
) -> BankStatistics:
    """Statistics of a bank without a part of it: the inverse of `merge`.

    `Z = Z_whole - Z_part`; masses and k-occurrences subtract exactly. If a share c of `Z_whole` is
    left, the error of log Z is 1/c times that of the two. Below `smallest_share` this refuses, and
    where a mass is left that its own rounding could have made; to merge the parts that stay loses
    nothing. A column of which no mass is left is empty, exactly.

    Args:
      whole: BankStatistics, fields [..., num_gallery].
      part: of some of its bank items, with the same beta and k.
      smallest_share: of `Z_whole` that must be left in each column that is not emptied.

    Returns:
      Those of the other bank items. Inside a caller's jit, where values cannot be checked, a share
      below the rounding of `Z_whole` is taken for that: never NaN.

    Raises:
      ValueError: different galleries, k or (concrete) betas; no part of it; too small a share left.
      TypeError: other types.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> old, new = (dbn.bank_statistics([[x]], beta=1.0) for x in (0.5, 0.25))
      >>> left = dbn.subtract(dbn.merge(old, new), old)
      >>> print(left.log_normalizer.round(4), left.mass)
      [0.25] [1.]
    """
    for name, value in (("whole", whole), ("part", part)):
        checks.instance(name, value, BankStatistics, "make them with bank_statistics")
    whole, part = checks.alike(whole, part)
    if (whole.num_gallery, whole.k) != (part.num_gallery, part.k):
        raise checks.BadValueError(
            "part",
            " must have the gallery and k of ",
            "whole",
            f", {whole.num_gallery} items and k={whole.k}, got {part.num_gallery} and k={part.k}",
        )
    concrete = checks.is_concrete(whole, part)
    if concrete and not np.array_equal(whole.beta, part.beta):
        raise checks.BadValueError(
            "part", f" must have beta={whole.beta} as ", "whole", f", got {part.beta}"
        )
    similarity = agreed(("whole", whole), ("part", part))
    left, share = _subtract(whole, part)
    if concrete:
        _check_left(left, np.asarray(share), smallest_share)
    return dataclasses.replace(left, similarity=similarity)


@jax.jit
def _subtract(whole: BankStatistics, part: BankStatistics) -> tuple[BankStatistics, jax.Array]:
    left, share, mass = log_mean_exp.without(whole.means, part.means, whole.beta[..., None])
    emptied = (whole.weight > 0) & (jnp.abs(mass) <= _NO_MASS) & (share <= _NO_SUM)
    left = jax.tree.map(lambda field: jnp.where(emptied, 0, field), left)
    counts = None
    if whole.k_occurrence is not None and part.k_occurrence is not None:
        counts = whole.k_occurrence - part.k_occurrence
    # A mass that is its own rounding has no log: whatever share may be left, this one is too small.
    share = jnp.where(mass > _LEAST_MASS, share, mass - 2 * _LEAST_MASS)
    share = jnp.where(emptied | (whole.weight == 0) & (part.weight == 0), 1, share)
    return BankStatistics.of(left, whole.beta, counts, whole.k), share


def _check_left(left: BankStatistics, share: Any, smallest: float) -> None:
    negative = np.argwhere(np.asarray(0 if left.k_occurrence is None else left.k_occurrence) < 0)
    if len(negative):
        raise checks.BadValueError(
            "part",
            " must be of bank items that are in ",
            "whole",
            f", but at {negative[0].tolist()} it has a larger k-occurrence",
        )
    if not (share >= smallest).all():
        place = np.argwhere(~(share >= smallest))[0].tolist()
        raise checks.BadValueError(
            "part",
            f" must leave a share of at least {smallest:g} of each column's sum, or take "
            f"all its mass, but at {place} it leaves {share[tuple(place)]:.3g}; merge the "
            f"statistics of the parts that stay instead",
        )


def responsibilities(
    similarities: ArrayLike,
    statistics: BankStatistics,
    *,
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Which bank item made which gallery item a hub: `w_b exp(beta s(b, g)) / Z(g)`.

    The derivative of `log Z(g)` with respect to `beta s(b, g)`, and that of `bias(g)` with respect
    to `s(b, g)`: non-negative, and each column sums to 1 over the bank.

    Args:
      similarities: [..., num_bank, num_gallery], raw, or some rows of it.
      statistics: of that matrix.
      weights: optional [..., num_bank], the weights the statistics were made with.
      where: optional bool mask of rows or pairs, the one the statistics were made with.

    Returns:
      [..., num_bank, num_gallery] in [0, 1]; 0 in empty columns.

    Raises:
      ValueError: a non-finite matrix, statistics of another gallery.
      TypeError: a matrix that is not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> s = [[0.5, 0.1], [0.5, 0.9]]
      >>> print(dbn.responsibilities(s, dbn.bank_statistics(s, beta=10.0)).round(3))
      [[0.5 0. ] [0.5 1. ]]
    """
    similarities = checks.similarities("similarities", similarities, rows="bank items")
    checks.instance("statistics", statistics, BankStatistics, "make them with bank_statistics")
    statistics = checks.unsplit(statistics)
    checks.matching_gallery(
        "statistics", statistics.num_gallery, "similarities", similarities.shape
    )
    if where is not None:
        where = seen.pairs(where, similarities.shape)
    if weights is not None:
        dtype = statistics.bias.dtype
        weights = checks.bank_weights("weights", weights, similarities.shape[-2:-1], dtype)
    return _responsibilities(similarities, statistics, weights, where)


@jax.jit
def _responsibilities(
    similarities: jax.Array,
    statistics: BankStatistics,
    weights: jax.Array | None,
    where: jax.Array | None,
) -> jax.Array:
    dtype = statistics.bias.dtype
    num_bank, num_gallery = similarities.shape[-2:]
    weights = jnp.ones(num_bank, dtype) if weights is None else weights
    where = jnp.ones((num_bank, num_gallery), bool) if where is None else where

    def one(*arrays: jax.Array) -> jax.Array:
        similarities, beta, weights, where, *fields = arrays
        shares = log_mean_exp.shares(
            log_mean_exp.Means(*fields), similarities, weights[:, None], beta
        )
        return jnp.where(where, shares, 0)

    over_batches = numerics.vectorize(one, "(b,g),(),(b),(b,g),(g),(g),(g),(g),(g)->(b,g)")
    shares: jax.Array = over_batches(
        similarities.astype(dtype), statistics.beta, weights, where, *statistics.means
    )
    return shares
