"""The running top-k over many tiles: exact in any order of the gallery, with ties and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import dbnorm_jax as dbn
from dbnorm_jax._src.passes import again, classes, nearest, selection, sweep

NUM_QUERIES, NUM_GALLERY = 6, 700
WIDTHS = ("COLUMNS", "INSERTING_COLUMNS", "SELECTING_COLUMNS", "LAUNCHING_COLUMNS")


@pytest.fixture(autouse=True, params=["inserted", "selected anew", "by classes"])
def _small_tiles(monkeypatch, request):
    # Five blocks a tile and few rows in a group; all ways, as on processors and on accelerators.
    for name in WIDTHS:
        monkeypatch.setattr(nearest, name, 5 * selection.BLOCK)
    monkeypatch.setattr(selection, "_GROUP", 4)
    monkeypatch.setattr(selection, "_COLUMNS_PER_INSERTED", 0.25)
    monkeypatch.setattr(selection, "_MOST_INSERTED", 512 if request.param == "inserted" else 0)
    if request.param == "by classes":
        as_on_accelerators(monkeypatch)


def as_on_accelerators(monkeypatch):
    """The programs of accelerators; classes so few and small that many rows are looked at again."""
    monkeypatch.setattr(sweep, "on_platform", lambda *arrays, cpu, default: default(*arrays))
    monkeypatch.setattr(classes, "_CLASSES", ((4, 16), (classes.MOST, 64)))
    monkeypatch.setattr(classes, "_SHARE", 8)
    monkeypatch.setattr(again, "FEW", 4)


def search(similarities, offsets, mixtures=None, *, k, exclude=None):
    """The streamed search on a similarity matrix: the identity stands for the queries."""

    @jax.jit  # a new function each time: traced with the constants of this test
    def run(similarities, offsets, mixtures):
        return nearest.nearest_items(
            jnp.eye(len(similarities)),
            similarities.T,
            offsets,
            mixtures,
            k=k,
            similarity_fn=dbn.dot_product,
            chunk_size=4,
            exclude=None if exclude is None else exclude[:, None],
        )

    return run(similarities, offsets, mixtures)


@pytest.mark.parametrize("_small_tiles", ["inserted"], indirect=True)
@pytest.mark.parametrize("k", [2, 170, 171, 341])
def test_tiles_are_wide_enough_to_insert(k, monkeypatch):
    """To select anew tile by tile would take more than twice the time."""
    monkeypatch.undo()  # tiles as they are outside these tests
    assert selection.inserts(k, nearest.columns_for(k).cpu)


ORDERS = {
    "random": lambda scores: scores,
    "descending": lambda scores: -np.sort(-scores, axis=1),
    "ascending": lambda scores: np.sort(scores, axis=1),
    "constant": np.zeros_like,
    "few levels": np.round,
    "one hub late": lambda scores: scores + 9 * (np.arange(NUM_GALLERY) == 600),
}


# One k will do where all are selected in the same way.
@pytest.mark.parametrize(
    ("_small_tiles", "k"),
    [
        ("inserted", 1),
        ("inserted", 10),
        ("inserted", 200),
        ("selected anew", 10),
        ("by classes", 1),
        ("by classes", 10),
        ("by classes", 200),
    ],
    indirect=["_small_tiles"],
)
@pytest.mark.parametrize("order", ORDERS)
def test_exact_in_any_order(order, k):
    random = np.random.default_rng(0)
    scores = ORDERS[order](random.normal(size=(NUM_QUERIES, NUM_GALLERY))).astype(np.float32)
    offsets = np.round(random.normal(size=(NUM_GALLERY, 2)), 1).astype(np.float32)
    found = search(scores, offsets, k=k)
    for place in range(2):
        values, indices = reference.top_k(scores - offsets[:, place], k)
        np.testing.assert_array_equal(found.indices[:, place], indices)
        np.testing.assert_allclose(found.values[:, place], values, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_items_a_query_never_sees_crowd_out_none(k):
    """All but the last block of the first tile would be nearer to query 0."""
    random = np.random.default_rng(5)
    scores = random.normal(size=(NUM_QUERIES, NUM_GALLERY)).astype(np.float32)
    hidden, shown = slice(0, 4 * selection.BLOCK), 5 * selection.BLOCK
    scores[0, hidden] += 100
    scores[0, shown:] -= 100
    exclude = np.full(NUM_GALLERY, -1)
    exclude[hidden] = 0
    found = search(scores, None, k=k, exclude=jnp.asarray(exclude, jnp.int32))
    # Not in place: the search may still be reading.
    visible = np.where(exclude == np.arange(NUM_QUERIES)[:, None], -np.inf, scores)
    values, indices = reference.top_k(visible, k)
    np.testing.assert_array_equal(found.indices[:, 0], indices)
    np.testing.assert_allclose(found.values[:, 0], values, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 10])
def test_mixtures(k):
    random = np.random.default_rng(1)
    scores = random.normal(size=(NUM_QUERIES, NUM_GALLERY)).astype(np.float32)
    offsets = random.normal(size=(NUM_GALLERY, 3)).astype(np.float32)
    mixtures = random.random((NUM_QUERIES, 3)).astype(np.float32)
    found = search(scores, offsets, mixtures, k=k)
    exact = scores - mixtures.astype(np.float64) @ offsets.T
    np.testing.assert_allclose(found.values[:, 0], reference.top_k(exact, k)[0], atol=1e-5)


def test_nan_ranks_below_every_number():
    # One query: the identity would carry NaN into the others.
    scores = np.random.default_rng(2).normal(size=(1, NUM_GALLERY)).astype(np.float32)
    scores[:, ::3] = np.nan
    found = search(scores, np.zeros((NUM_GALLERY, 1), np.float32), k=NUM_GALLERY)
    numbers = np.flatnonzero(~np.isnan(scores[0]))
    order = numbers[np.argsort(-scores[0, numbers])]
    np.testing.assert_array_equal(found.indices[0, 0, : len(order)], order)
    np.testing.assert_array_equal(found.indices[0, 0, len(order) :], np.arange(0, NUM_GALLERY, 3))
    assert (found.values[0, 0, len(order) :] == -np.inf).all()


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_gradients_equal_those_of_the_matrix(order):
    random = np.random.default_rng(3)
    scores = ORDERS[order](random.normal(size=(NUM_QUERIES, NUM_GALLERY))).astype(np.float32)
    offsets = random.normal(size=(NUM_GALLERY, 1)).astype(np.float32) / 10
    weights = jnp.asarray(random.normal(size=(NUM_QUERIES, 10)), jnp.float32)

    def streamed(scores, offsets):
        return (weights * search(scores, offsets, k=10).values[:, 0]).sum()

    def dense(scores, offsets):
        correction = dbn.Correction(offsets.T, None)
        return (weights * dbn.top_k(scores, 10, correction).scores).sum()

    for first, second in zip(
        jax.grad(streamed, (0, 1))(scores, offsets),
        jax.grad(dense, (0, 1))(scores, offsets),
        strict=True,
    ):
        chex.assert_trees_all_close(first, second, atol=1e-5)
        assert jnp.abs(first).max() > 0


def test_item_that_one_query_never_sees():
    # The hidden item is the best of its block, or level with it, for the query and for others.
    random = np.random.default_rng(4)
    scores = np.round(random.normal(size=(NUM_QUERIES, NUM_GALLERY)), 1).astype(np.float32)
    hidden_from = np.full(NUM_GALLERY, -1, np.int32)
    best = np.argsort(-scores, axis=1, kind="stable")
    for query in range(NUM_QUERIES):
        hidden_from[best[query, [0, 1, 5]]] = query
    found = search(scores, None, k=10, exclude=jnp.asarray(hidden_from))
    seen = np.where(hidden_from[None] == np.arange(NUM_QUERIES)[:, None], -np.inf, scores)
    values, indices = reference.top_k(seen, 10)
    np.testing.assert_array_equal(found.indices[:, 0], indices)
    np.testing.assert_array_equal(found.values[:, 0], values)


def test_nan_hides_no_other_item_of_its_block():
    scores = np.random.default_rng(5).normal(size=(NUM_QUERIES, NUM_GALLERY)).astype(np.float32)
    best = np.argsort(-scores, axis=1)
    beside = (best[:, 0] + np.where(best[:, 0] % selection.BLOCK, -1, 1)) % NUM_GALLERY
    nan = np.setdiff1d(beside, best[:, :10])
    assert len(nan)
    scores[:, nan] = np.nan
    found = search(scores, None, k=10)
    indices = reference.top_k(np.where(np.isnan(scores), -np.inf, scores), 10)[1]
    np.testing.assert_array_equal(found.indices[:, 0], indices)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_largest_of_columns(k):
    matrix = np.array([[1.0, 5.0], [3.0, 2.0], [2.0, np.nan]], np.float32)
    expected = np.array([[3, 5], [2, 2], [1, -np.inf], [-np.inf] * 2], np.float32)[:k]
    for stack, lead in ((matrix, ()), (np.stack([matrix] * 2), (2,))):
        found = selection.largest_of_columns(jnp.asarray(stack), k)
        np.testing.assert_array_equal(found, np.broadcast_to(expected, (*lead, k, 2)))


@pytest.mark.parametrize("k", [1, 3])
def test_largest_of_a_long_row(k):
    random = np.random.default_rng(6)
    for row in (random.normal(size=NUM_GALLERY), random.integers(0, 9, NUM_GALLERY)):
        values, indices = selection.largest(jnp.asarray(row, jnp.float32), k)
        expected = np.argsort(-row, kind="stable")[:k]
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(values, row[expected].astype(np.float32))
