"""Copies of the right item are level with it, wherever they are and whatever scores them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import slow_but

import dbnorm_jax as dbn

ranks = dbn.metrics.stream_ranks
COPIES = 5


def manhattan(rows, columns):
    return -jnp.abs(rows[:, None] - columns[None]).sum(axis=-1)


def halved_bits(rows, columns):
    """Of rounded embeddings: its own rounding is coarser than that of what it returns."""
    return rows.astype(jnp.bfloat16) @ columns.astype(jnp.bfloat16).T


SIMILARITIES = [
    dbn.dot_product,
    dbn.cosine_similarity,
    dbn.negative_squared_euclidean,
    manhattan,
    halved_bits,
]


def problem(num_items, dim, dtype=np.float32, seed=0):
    """A gallery whose first items are there once more at its end, and a query near each of them."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(num_items, dim))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    queries = items[:COPIES] + 0.01 * rng.normal(size=(COPIES, dim))
    gallery = np.concatenate([items, items[:COPIES]])
    return jnp.asarray(queries, dtype), jnp.asarray(gallery, dtype)


def corrections(gallery, similarity_fn):
    """Of each kind; fitted alike on copies, they leave copies level."""
    rng = np.random.default_rng(1)
    banks = [jnp.asarray(rng.normal(size=(9, gallery.shape[1])), gallery.dtype) for _ in range(2)]
    query, items = (
        dbn.stream_bank_statistics(bank, gallery, beta=5.0, similarity_fn=similarity_fn)
        for bank in banks
    )
    dual = dbn.dual_dynamic_inverted_softmax(query, items)
    # Copies of an item round apart in the statistics too: here only their ranks are asked.
    bias = dual.bias.at[:, -COPIES:].set(dual.bias[:, :COPIES])
    active = jnp.stack([jnp.arange(dual.num_gallery) % 2 == term for term in range(2)])
    soft = jnp.where(active, 0.75, 0.3)
    return {
        "none": None,
        "one bias": dbn.Correction(bias[:1], None),
        "hard gates": dbn.Correction(bias, active),
        "soft gates": dbn.Correction(bias, soft),
    }


@pytest.mark.parametrize(
    ("num_items", "dim", "similarity_fn"),
    [
        *((20, 100, similarity_fn) for similarity_fn in SIMILARITIES),
        *((*sizes, dbn.dot_product) for sizes in [(10, 64), (20, 8), (100, 512)]),
    ],
)
def test_copies_of_the_right_item_are_level(num_items, dim, similarity_fn):
    queries, gallery = problem(num_items, dim)
    found = ranks(queries, gallery, np.arange(COPIES), similarity_fn=similarity_fn)
    np.testing.assert_array_equal(found, np.full(COPIES, 1.5))


@pytest.mark.parametrize(
    ("kind", "similarity_fn"),
    slow_but(
        [("hard gates", dbn.dot_product)],
        [
            *(("hard gates", similarity_fn) for similarity_fn in SIMILARITIES[:3]),
            *((kind, dbn.dot_product) for kind in ("one bias", "soft gates")),
        ],
    ),
)
def test_copies_stay_level_under_a_correction(kind, similarity_fn):
    queries, gallery = problem(21, 100)
    correction = corrections(gallery, similarity_fn)[kind]
    options = {"similarity_fn": similarity_fn}
    right, both = np.arange(COPIES), np.arange(COPIES)[:, None] + [0, 21]
    found = np.asarray(ranks(queries, gallery, right, correction, **options))
    # Where the copy is right as well, nothing wrong is level.
    again = np.asarray(ranks(queries, gallery, both, correction, **options))
    np.testing.assert_array_equal(found - again, 0.5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_copies_are_level_in_each_dtype(dtype):
    with jax.enable_x64(dtype == "float64"):
        queries, gallery = problem(20, 100, dtype)
        np.testing.assert_array_equal(ranks(queries, gallery, np.arange(COPIES)), 1.5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_copies_are_level_far_from_the_origin(dtype):
    queries, gallery = problem(20, 100)
    queries, gallery = (jnp.asarray(rows + 9, dtype) for rows in (queries, gallery))
    found = ranks(queries, gallery, np.arange(COPIES), similarity_fn=dbn.negative_squared_euclidean)
    expected = [(gallery == item[None]).all(axis=1).sum() for item in gallery[:COPIES]]
    np.testing.assert_array_equal(found, 1 + (np.asarray(expected) - 1) / 2)


@pytest.mark.slow
@settings(max_examples=10)
@given(st.integers(0, 2**31), st.sampled_from(["none", "one bias"]))
def test_ranks_do_not_depend_on_tiles(seed, kind):
    """Of a gallery full of near ties, whose items differ in their last bits or not at all."""
    rng = np.random.default_rng(seed)
    num_items, dim = 60, 100
    bases = rng.normal(size=(4, dim))
    gallery = bases[rng.integers(0, 4, num_items)].astype(np.float32)
    steps = rng.integers(-1, 2, gallery.shape) * (rng.random(gallery.shape) < 0.02)
    gallery = (gallery * (1 + steps * 2.0**-22)).astype(np.float32)
    queries = (bases[rng.integers(0, 4, 8)] + 0.1 * rng.normal(size=(8, dim))).astype(np.float32)
    right = rng.integers(-1, num_items, (8, 2)).astype(np.int32)
    correction = corrections(jnp.asarray(gallery), dbn.dot_product)[kind]
    found = np.asarray(ranks(queries, gallery, right, correction))
    order = rng.permutation(num_items)
    there = np.where(right >= 0, np.argsort(order)[right], -1)
    moved = correction and jax.tree.map(lambda field: field[:, order], correction)
    np.testing.assert_array_equal(ranks(queries, gallery[order], there, moved), found)
    np.testing.assert_array_equal(ranks(queries, gallery, right, correction, chunk_size=3), found)
    of_files = dbn.out_of_core.ranks(queries, gallery, right, correction, block_size=17)
    np.testing.assert_array_equal(of_files, found)


def test_as_many_copies_as_a_tile_has_rows_and_more():
    """More near items than are scored at once: in one row, and over all rows."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(3, 33)).astype(np.float32)
    gallery = items[rng.integers(0, 3, 300)]
    which = np.argmax(items @ items.T, axis=0)
    queries = np.repeat(items, 90, axis=0) + 0.001 * rng.normal(size=(270, 33)).astype(np.float32)
    right = np.array([np.flatnonzero((gallery == item).all(axis=1))[-1] for item in items])
    assert (which == np.arange(3)).all()
    copies = np.array([(gallery == item).all(axis=1).sum() for item in items])
    found = ranks(queries, gallery, np.repeat(right, 90))
    np.testing.assert_array_equal(found, np.repeat(1 + (copies - 1) / 2, 90))


def test_infinite_and_missing_scores_keep_their_order():
    """Rounding is of numbers: beside an infinite score nothing is near, NaN is below all."""
    table = jnp.array([[jnp.inf, 1.0, jnp.inf, jnp.nan], [jnp.nan, -jnp.inf, 0.0, jnp.nan]])

    def looked_up(rows, columns):
        return table[rows[:, 0].astype(int)[:, None], columns[:, 0].astype(int)[None]]

    queries, gallery = jnp.arange(2.0)[:, None], jnp.arange(4.0)[:, None]
    for right in range(4):
        found = ranks(queries, gallery, np.full(2, right), similarity_fn=looked_up)
        expected = [[1.5, 3, 1.5, 4], [3, 3, 1, 3]]
        np.testing.assert_array_equal(found, np.array(expected)[:, right])
