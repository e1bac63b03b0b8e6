"""Fused kernels in Pallas: the similarity tile never leaves the chip.

A fit tile [bank, gallery] leaves the maximum and the sum of exponentials of each gallery item, and
the best gallery item of each bank row; a search tile [gallery, queries] leaves the maxima of blocks
of gallery items. That is some hundredth of the tile, and plain JAX merges it, a bounded number of
tiles at a time. No program of a grid reads what another has written, so that one source serves
GPUs (through Triton) and TPUs.

Ties, weights and NaN are as in `banks`. Only values: `dispatch` adds the derivatives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dbnorm_jax._src.core import elementary, numerics, similarity
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.passes import streaming
from dbnorm_jax._src.passes.banks import BankSums
from dbnorm_jax._src.passes.selection import BLOCK, Nearest, argmax

# What a pass keeps of its tiles at once, at most.
_MOST_BYTES = 1 << 26


class Plan(NamedTuple):
    """How a platform runs the kernels."""

    platform: str  # "interpret" is the interpreter, on any platform
    tile: int  # rows and columns of a tile, a power of two and a multiple of BLOCK
    depth: int  # bytes of each row multiplied at once
    most_dimensions: int
    gallery_axis: int  # of the grid; the other one runs first, while a gallery tile is in cache


# On a GPU only `depth` bytes of the rows are on the chip, a TPU holds them in full in its 16 MB.
# The first axis of a grid runs fastest on a GPU, the last one on a TPU.
PLANS = {
    plan.platform: plan
    for plan in (
        Plan("cuda", 128, 128, 1 << 16, 1),
        Plan("tpu", 256, 512, 2048, 0),
        Plan("interpret", 64, 128, 1 << 16, 0),
    )
}


def bank_sums(
    bank: jax.Array,
    gallery: jax.Array,
    beta: jax.Array,
    weights: jax.Array | None,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    plan: Plan,
) -> BankSums:
    """As `banks.bank_sums`, for k of 0 or 1 and without exclusions."""
    dtype = jnp.float32
    num_bank, num_gallery = bank.shape[0], gallery.shape[0]
    bank, gallery = _operands(bank, gallery, similarity_fn, plan)
    gallery = _padded(gallery, plan.tile)
    width = gallery.shape[0]
    weights = jnp.ones(num_bank, dtype) if weights is None else weights
    # Of each bank row a tile leaves a value and an index, of each gallery item two numbers.
    rows_kept = max(1, _MOST_BYTES // (16 * width)) * plan.tile

    def add_bank_chunk(carry: Any, chunk: streaming.Block) -> tuple[Any, None]:
        log_sum, k_occurrence = carry
        rows, entering = chunk.rows
        if chunk.fresh is not None:
            entering = jnp.where(chunk.fresh, entering, 0)
        rows, entering = _padded(rows, plan.tile), _padded(entering, plan.tile)
        pieces, *best = _fit_pieces(beta, entering, rows, gallery, num_gallery, k=k, plan=plan)
        maximum = jnp.maximum(log_sum.maximum, pieces.maximum.max(axis=0))
        totals = pieces.total * jnp.exp(beta * (pieces.maximum - maximum[None]))
        total = log_sum.total * jnp.exp(beta * (log_sum.maximum - maximum)) + totals.sum(axis=0)
        if k:
            values, indices = best
            value, first = jax.vmap(argmax, in_axes=1)(values)
            index = jnp.take_along_axis(indices, first[None], axis=0)[0]
            counted = numerics.is_number(value) & (entering > 0)
            k_occurrence = k_occurrence.at[index].add(counted.astype(jnp.int32))
        return (numerics.RunningLogSum(maximum, total), k_occurrence), None

    start = (numerics.start_log_sum(width, beta), jnp.zeros(num_gallery, jnp.int32))
    (log_sum, k_occurrence), _ = streaming.scan_chunks(
        add_bank_chunk, start, (bank, weights), rows_kept
    )
    log_normalizer = numerics.finish_log_sum(log_sum, beta)[:num_gallery]
    return BankSums(log_normalizer, jnp.full(num_gallery, weights.sum()), k_occurrence)


def _fit_pieces(
    beta: jax.Array,
    weights: jax.Array,
    bank: jax.Array,
    gallery: jax.Array,
    num_gallery: int,
    *,
    k: int,
    plan: Plan,
) -> tuple[Any, ...]:
    """RunningLogSum [bank tiles, gallery]; with k, the best values and indices [tiles, bank]."""
    from jax.experimental import pallas as pl

    tile, dim = plan.tile, bank.shape[1]
    spec, grid = _grid(plan, gallery.shape[0], bank.shape[0])
    per_item, per_row = (
        spec((None, 1, tile), "row", "", "item"),
        spec((None, 1, tile), "item", "", "row"),
    )
    items = _output((bank.shape[0] // tile, 1, gallery.shape[0]), jnp.float32)
    values = _output((gallery.shape[0] // tile, 1, bank.shape[0]), jnp.float32)
    indices = _output(values.shape, jnp.int32)

    def kernel(
        beta_ref: Any, weights_ref: Any, bank_ref: Any, gallery_ref: Any, *outputs: Any
    ) -> None:
        similarities = _tile(bank_ref, gallery_ref, plan)
        entering = weights_ref[...]
        # A row of weight 0 must not move the maximum.
        counted = jnp.where(entering > 0, similarities, numerics.LOWEST)
        maximum = counted.max(axis=0, keepdims=True)
        outputs[0][...] = maximum
        powers = entering * jnp.exp(beta_ref[...] * (counted - maximum))
        outputs[1][...] = powers.sum(axis=0, keepdims=True)
        if k:
            place = _places(plan, 1)
            ranked = jnp.where(place < num_gallery, _numbers(similarities), -jnp.inf)
            value = ranked.max(axis=1)
            index = jnp.where(ranked == value[:, None], place, num_gallery).min(axis=1)
            outputs[2][...] = value[None]
            outputs[3][...] = index[None]

    call = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[
            spec((1, 1), "", ""),
            spec((tile, 1), "row", ""),
            spec((tile, dim), "row", ""),
            spec((tile, dim), "item", ""),
        ],
        out_specs=[per_item, per_item, *[per_row, per_row][: 2 * k]],
        out_shape=[items, items, *[values, indices][: 2 * k]],
        name="dbnorm_fit",
        **_options(plan),
    )
    maximum, total, *best = call(beta.reshape(1, 1), weights[:, None], bank, gallery)
    return (
        numerics.RunningLogSum(maximum[:, 0], total[:, 0]),
        *(array[:, 0] for array in best),
    )


def search(
    queries: jax.Array,
    gallery: jax.Array,
    offsets: jax.Array,
    *,
    k: int,
    similarity_fn: SimilarityFn,
    plan: Plan,
) -> Nearest:
    """As `nearest.nearest_items` without mixtures and exclusions, for a k of at most the blocks.

    Blocks are chosen by the kernel's products, and the chosen ones scored anew: exact up to the
    rounding of products. An item can be missed only if its score is within that rounding of the
    k-th; where products are exact, as with small integers, so is the result, ties included.
    """
    num_gallery, num_lists = offsets.shape
    queries, gallery = _operands(queries, gallery, similarity_fn, plan)
    gallery, offsets = _padded(gallery, plan.tile), _padded(offsets, plan.tile)
    blocks = gallery.reshape(-1, BLOCK, gallery.shape[1])
    block_offsets = offsets.reshape(-1, BLOCK, num_lists)
    # Of each query: all block maxima, and the embeddings of one block.
    kept = 4 * (num_lists * len(blocks) + BLOCK * gallery.shape[1])
    chunk_size = -(-max(1, _MOST_BYTES // kept) // plan.tile) * plan.tile

    def best(query: jax.Array, maxima: jax.Array, number: jax.Array) -> Nearest:
        chosen = jnp.sort(elementary.top_k(maxima, k)[1])  # of equal maxima the earlier

        def score(block: jax.Array) -> jax.Array:
            scores = _product(query[None], blocks[block])[0] - block_offsets[block][:, number]
            within = block * BLOCK + lax.iota(jnp.int32, BLOCK) < num_gallery
            return jnp.where(within, numerics.below_every_number(scores), -jnp.inf)

        # One block at a time: the queries of a chunk do so together.
        values, places = elementary.top_k(lax.map(score, chosen).reshape(-1), k)
        return Nearest(values, chosen[places // BLOCK] * BLOCK + places % BLOCK)

    def search_chunk(carry: None, chunk: streaming.Block) -> tuple[None, Nearest]:
        rows = chunk.rows
        maxima = _block_maxima(_padded(rows, plan.tile), gallery, offsets, num_gallery, plan=plan)[
            :, :, : rows.shape[0]
        ]

        def best_of_list(number: jax.Array) -> Nearest:
            return jax.vmap(best, in_axes=(0, 1, None))(rows, maxima[number], number)

        lists = lax.map(best_of_list, lax.iota(jnp.int32, num_lists))
        return carry, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), lists)

    nearest = streaming.scan_chunks(search_chunk, None, queries, chunk_size)[1]
    return nearest._replace(
        values=jnp.where(numerics.is_number(nearest.values), nearest.values, -jnp.inf)
    )


def _block_maxima(
    queries: jax.Array,
    gallery: jax.Array,
    offsets: jax.Array,
    num_gallery: int,
    *,
    plan: Plan,
) -> jax.Array:
    """[num_lists, num_blocks, num_queries] largest `similarity - offset` in blocks of items."""
    from jax.experimental import pallas as pl

    tile, dim, num_lists = plan.tile, gallery.shape[1], offsets.shape[1]
    spec, grid = _grid(plan, gallery.shape[0], queries.shape[0])
    num_blocks = tile // BLOCK

    def kernel(gallery_ref: Any, queries_ref: Any, offsets_ref: Any, maxima_ref: Any) -> None:
        similarities = _tile(gallery_ref, queries_ref, plan)
        place = _places(plan, 0)
        for number in range(num_lists):
            scores = _numbers(similarities - offsets_ref[number])
            scores = jnp.where(place < num_gallery, scores, -jnp.inf)
            maxima_ref[number] = scores.reshape(num_blocks, BLOCK, tile).max(axis=1)

    call = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[
            spec((tile, dim), "item", ""),
            spec((tile, dim), "row", ""),
            spec((num_lists, tile, 1), "", "item", ""),
        ],
        out_specs=spec((num_lists, num_blocks, tile), "", "item", "row"),
        out_shape=_output((num_lists, gallery.shape[0] // BLOCK, queries.shape[0]), jnp.float32),
        name="dbnorm_search",
        **_options(plan),
    )
    return call(gallery, queries, offsets.T[:, :, None])


def _operands(
    rows: jax.Array, columns: jax.Array, similarity_fn: SimilarityFn, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    """Embeddings of one dtype whose products are the similarities, their dimension padded."""
    if similarity_fn is similarity.cosine_similarity:
        rows, columns = numerics.normalize_rows(rows), numerics.normalize_rows(columns)
    elif rows.dtype != columns.dtype:
        rows, columns = rows.astype(jnp.float32), columns.astype(jnp.float32)
    depth = plan.depth // rows.dtype.itemsize
    missing = -rows.shape[1] % depth
    if missing:
        rows, columns = (jnp.pad(array, ((0, 0), (0, missing))) for array in (rows, columns))
    return rows, columns


def _padded(array: jax.Array, multiple: int) -> jax.Array:
    missing = -array.shape[0] % multiple
    return jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array


def _grid(plan: Plan, num_items: int, num_rows: int) -> tuple[Callable[..., Any], tuple[int, int]]:
    """BlockSpecs from what each axis of an array goes along: gallery "item", other "row" or ""."""
    from jax.experimental import pallas as pl

    def spec(shape: tuple[int | None, ...], *along: str) -> Any:
        def place(*programs: Any) -> tuple[Any, ...]:
            item, row = programs[::-1] if plan.gallery_axis else programs
            return tuple({"item": item, "row": row, "": 0}[name] for name in along)

        return pl.BlockSpec(shape, place)

    items, rows = num_items // plan.tile, num_rows // plan.tile
    return spec, (rows, items) if plan.gallery_axis else (items, rows)


def _output(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _places(plan: Plan, axis: int) -> jax.Array:
    """[tile, tile] gallery indices along an axis of this program's tile."""
    from jax.experimental import pallas as pl

    within = lax.broadcasted_iota(jnp.int32, (plan.tile, plan.tile), axis)
    return pl.program_id(plan.gallery_axis) * plan.tile + within


def _tile(rows_ref: Any, columns_ref: Any, plan: Plan) -> jax.Array:
    """[tile, tile] products of two blocks of embeddings, a slice of the dimension at a time."""
    from jax.experimental import pallas as pl

    depth = plan.depth // rows_ref.dtype.itemsize

    def add(step: jax.Array, total: jax.Array) -> jax.Array:
        part = pl.ds(pl.multiple_of(step * depth, depth), depth)
        return total + _product(rows_ref[:, part], columns_ref[:, part])

    start = jnp.zeros((plan.tile, plan.tile), jnp.float32)
    return lax.fori_loop(0, rows_ref.shape[1] // depth, add, start)


def _product(rows: jax.Array, columns: jax.Array) -> jax.Array:
    # Products of bfloat16 are exact in float32: a higher precision has nothing to add.
    exact = rows.dtype == jnp.bfloat16
    return lax.dot_general(
        rows,
        columns,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.DEFAULT if exact else numerics.matmul_precision(),
        preferred_element_type=jnp.float32,
    )


def _numbers(values: jax.Array) -> jax.Array:
    """`numerics.below_every_number`, without the array constant that a kernel may not hold."""
    lowest = float(np.finfo(np.float32).min)
    return jnp.where(values >= lowest, values, lowest)


def _options(plan: Plan) -> dict[str, Any]:
    """What `pallas_call` is told for a platform."""
    if plan.platform == "interpret":
        return {"interpret": True}
    if plan.platform == "tpu":
        from jax.experimental.pallas import tpu

        return {"compiler_params": tpu.CompilerParams(dimension_semantics=("parallel",) * 2)}
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=8, num_stages=3)}
