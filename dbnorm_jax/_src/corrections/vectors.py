"""Corrections of the embeddings themselves: InvGC and DisSimLocal. Part of `dbnorm_jax.baselines`.

InvGC moves gallery vectors away from the banks and returns them: search them as usual. DisSimLocal
is a squared distance less two terms; that of the gallery item is returned as a Correction for
`negative_squared_euclidean`, since the query's own changes no ranking.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, numerics
from dbnorm_jax._src.core.similarity import dot_product, negative_squared_euclidean
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.passes import streaming
from dbnorm_jax._src.passes.nearest import nearest_items


def inverse_graph_convolution(
    *,
    gallery: ArrayLike,
    query_bank: ArrayLike,
    gallery_bank: ArrayLike,
    query_rate: ArrayLike,
    gallery_rate: ArrayLike,
    pool_rate: float | None = None,
) -> jax.Array:
    """InvGC: gallery vectors moved away from what the banks have near them.

    Per bank `g_B = norm(g - (r / |B|) sum_h (s(g, h) - mean s) h)`, with inner products s and their
    mean over all pairs; `g' = norm((g_Q + g_G) / 2)`. With `pool_rate` (LocalAdj) the sum runs over
    the `p = int(pool_rate |B|)` nearest h of each g, no mean is subtracted, and p divides.

    Args:
      gallery: [num_gallery, dim] embeddings, unit rows for cosines.
      query_bank: [num_query_bank, dim] embeddings.
      gallery_bank: [num_gallery_bank, dim] embeddings.
      query_rate: `r` of the query bank.
      gallery_rate: `r` of the gallery bank.
      pool_rate: share of the bank in a neighborhood, in (0, 1] (static); None for the whole bank.

    Returns:
      [num_gallery, dim] unit rows, to be searched with `dot_product`.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, a pool without members.
      TypeError: embeddings that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> gallery, bank = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0]])
      >>> moved = dbn.baselines.inverse_graph_convolution(
      ...     gallery=gallery, query_bank=bank, gallery_bank=bank, query_rate=0.5, gallery_rate=0.5)
      >>> print(jnp.array_str(moved, precision=3))    # the item along the bank stays, others turn
      [[0.243 0.97 ]
       [1.    0.   ]]

    References:
      Jian and Wang, EMNLP Findings 2023.
    """
    checked = checks.checked_embeddings(
        gallery=gallery, query_bank=query_bank, gallery_bank=gallery_bank
    )
    dtype = numerics.accumulation_dtype(*(array.dtype for array in checked.values()))
    names = ("query_bank", "gallery_bank")
    pools = tuple(_pool_size(pool_rate, name, checked[name]) for name in names)
    rates = {"query_rate": query_rate, "gallery_rate": gallery_rate}
    numbers = [checks.floating(name, checks.real(name, r), ndim=0) for name, r in rates.items()]
    return _inverse_graph_convolution(
        *(array.astype(dtype) for array in (*checked.values(), *numbers)), pools=pools
    )


def _pool_size(pool_rate: Any, name: str, bank: jax.Array) -> int | None:
    if pool_rate is None:
        return None
    checks.check_static("pool_rate", pool_rate)
    if not 0 < pool_rate <= 1:
        raise checks.BadValueError("pool_rate", f" must be in (0, 1], got {pool_rate!r}")
    size = int(pool_rate * bank.shape[0])
    if size < 1:
        raise checks.BadValueError(
            "pool_rate",
            f" must leave a neighborhood: {pool_rate} of the {bank.shape[0]} rows of "
            f"`{name}` is less than one",
        )
    return size


@partial(jax.jit, static_argnames="pools")
def _inverse_graph_convolution(
    gallery: jax.Array,
    query_bank: jax.Array,
    gallery_bank: jax.Array,
    query_rate: jax.Array,
    gallery_rate: jax.Array,
    *,
    pools: tuple[int | None, ...],
) -> jax.Array:
    banks = zip((query_bank, gallery_bank), (query_rate, gallery_rate), pools, strict=True)
    moved = [
        numerics.normalize_rows(gallery - rate * _pull(gallery, bank, pool))
        for bank, rate, pool in banks
    ]
    return numerics.normalize_rows((moved[0] + moved[1]) / 2)


def _pull(gallery: jax.Array, bank: jax.Array, pool: int | None) -> jax.Array:
    """[num_gallery, dim] mean over the bank, or the nearest of it, of similarity x bank vector."""
    precision = numerics.matmul_precision()
    if pool is None:
        # sum_h (s(g, h) - c) h needs the bank's Gram matrix and sum only, no bank x gallery.
        total = bank.sum(axis=0)
        mean = jnp.vdot(gallery.sum(axis=0), total, precision=precision)
        mean = mean / (gallery.shape[0] * bank.shape[0])
        gram = jnp.matmul(bank.T, bank, precision=precision)
        return (jnp.matmul(gallery, gram, precision=precision) - mean * total[None]) / len(bank)

    def chunk(carry: None, block: streaming.Block) -> tuple[None, jax.Array]:
        values, indices = _nearest(block.rows, bank, pool, dot_product)
        return carry, jnp.einsum("gp,gpd->gd", values, bank[indices], precision=precision) / pool

    return streaming.scan_chunks(chunk, None, gallery, _GATHERED)[1]


# Gallery items whose neighbors' vectors are held at once.
_GATHERED = 64


def _nearest(
    rows: jax.Array, bank: jax.Array, k: int, similarity_fn: Any
) -> tuple[jax.Array, jax.Array]:
    """[num_rows, k] similarities, and bank rows."""
    options = {"k": k, "similarity_fn": similarity_fn, "chunk_size": rows.shape[0]}
    nearest = nearest_items(rows, bank, None, **options)
    return nearest.values[:, 0], nearest.indices[:, 0]


def dis_sim_local(gallery: ArrayLike, query_bank: ArrayLike, *, k: int | None = None) -> Correction:
    """DisSimLocal: `|q - g|^2 - |q - c_q|^2 - |g - c_g|^2`, c the centroid of the k nearest.

    With `s = -|q - g|^2` that ranks as `s(q, g) + |g - c_g|^2`: the bias is `-|g - c_g|^2`. The
    centroid of a gallery item is that of its nearest query-bank items.

    Args:
      gallery: [num_gallery, dim] embeddings.
      query_bank: [num_query_bank, dim] embeddings.
      k: neighbors in the centroid; by default 10, or all where there are fewer (static).

    Returns:
      Correction with one term that always acts, for `negative_squared_euclidean`.

    Raises:
      ValueError: empty, non-finite or mismatched embeddings, k beyond the bank.
      TypeError: embeddings that are not floating point.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> gallery, bank = jnp.array([[3.0, 0.0]]), jnp.array([[4.0, 0.0], [6.0, 0.0], [20.0, 0.0]])
      >>> print(dbn.baselines.dis_sim_local(gallery, bank, k=2).bias)    # centroid (5, 0)
      [[-4.]]

    References:
      Hara et al., AAAI 2016.
    """
    gallery, bank = checks.checked_embeddings(gallery=gallery, query_bank=query_bank).values()
    k = checks.neighbors("k", k, 10, high=bank.shape[0], of=" (query-bank items)")
    dtype = numerics.accumulation_dtype(gallery.dtype, bank.dtype)
    return _dis_sim_local(gallery.astype(dtype), bank.astype(dtype), k=k)


@partial(jax.jit, static_argnames="k")
def _dis_sim_local(gallery: jax.Array, bank: jax.Array, *, k: int) -> Correction:
    def chunk(carry: None, block: streaming.Block) -> tuple[None, jax.Array]:
        _, indices = _nearest(block.rows, bank, k, negative_squared_euclidean)
        return carry, jnp.square(block.rows - bank[indices].mean(axis=1)).sum(axis=1)

    radii = streaming.scan_chunks(chunk, None, gallery, _GATHERED)[1]
    return Correction(-radii[None], None, negative_squared_euclidean.__name__)
