"""The k largest of columns by a sorting network: against NumPy, and the ways that lead to it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import dbnorm_jax as dbn
from dbnorm_jax._src.passes import columns, selection, sorting


def unit_rows(seed, num_rows, dim):
    rows = np.random.default_rng(seed).normal(size=(num_rows, dim))
    return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)


def by_numpy(matrix, k):
    rows = np.sort(matrix, axis=0)[::-1][:k]
    return np.pad(rows, ((0, k - len(rows)), (0, 0)), constant_values=-np.inf)


@pytest.mark.parametrize(
    ("num_rows", "k"), [(1, 1), (3, 2), (7, 3), (12, 5), (13, 1), (14, 4), (16, 16), (5, 9)]
)
def test_right_on_every_column_of_zeros_and_ones(num_rows, k):
    """Then a network is right on every column there is (0-1 principle, Knuth 5.3.4)."""
    columns = np.arange(2**num_rows) >> np.arange(num_rows)[:, None] & 1
    matrix = columns.astype(np.float32)
    found = jax.jit(sorting.largest_of_columns, static_argnums=1)(matrix, k)
    np.testing.assert_array_equal(found, by_numpy(matrix, k))


@pytest.mark.parametrize("k", [1, 2, 3, 8, 11])
def test_merged_is_right_on_every_two_sorted_columns(k):
    ones = np.arange(k + 1)
    ordered = (np.arange(k)[:, None] < ones).astype(np.float32)
    first, second = (ordered[:, places.ravel()] for places in np.meshgrid(ones, ones))
    np.testing.assert_array_equal(
        jax.jit(sorting.merged)(first, second), by_numpy(np.concatenate([first, second]), k)
    )


@pytest.mark.parametrize("seed", range(3))
def test_values_and_missing_ones(seed):
    matrix = np.random.default_rng(seed).normal(size=(300, 7)).astype(np.float32)
    matrix[:, 0] = -np.inf
    matrix[20:, 1] = -np.inf
    found = jax.jit(sorting.largest_of_columns, static_argnums=1)(matrix, 50)
    np.testing.assert_array_equal(found, by_numpy(matrix, 50))


@pytest.fixture
def _always(monkeypatch):
    monkeypatch.setattr(selection, "_FEWEST_BY_NETWORK", 1)
    monkeypatch.setattr(selection, "_FEWEST_COLUMNS", 1)
    monkeypatch.setattr(columns, "_ROWS", 16)
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_both_ways_are_taken(monkeypatch):
    """The fixture below must mean something."""
    taken = []
    monkeypatch.setattr(columns, "_by_network", lambda *_, k, **__: taken.append(k))

    def way(num_bank, num_gallery, k):
        shapes = [jax.ShapeDtypeStruct((rows, 2), jnp.float32) for rows in (num_bank, num_gallery)]
        find = partial(
            columns.nearest_bank_items, k=k, similarity_fn=dbn.dot_product, chunk_size=256
        )
        jax.eval_shape(lambda *arrays: find(*arrays, None).values, *shapes)

    for few in ((4, 2**14 - 1, 16), (4, 2**14, 15), (3100, 2**14, 16)):
        way(*few)
    assert not taken
    with pytest.raises(TypeError):  # nothing is returned
        way(4, 2**14, 16)
    assert taken == [16]


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("chunk_size", [5, 64])
@pytest.mark.parametrize("entries", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 6, 40])
def test_streamed_equals_dense(k, entries, chunk_size):
    """37 bank rows in tiles of at most 16, 23 items in uneven chunks, more places than rows."""
    bank, gallery = unit_rows(0, 37, 8), unit_rows(1, 23, 8)
    own = np.where(np.arange(37) % 3 == 0, np.arange(37) % 23, -1)
    exclude = np.stack([own, np.where(own < 0, own, (own + 1) % 23)], axis=1)[:, :entries]
    similarities = np.asarray(bank, np.float64) @ np.asarray(gallery, np.float64).T
    similarities[~reference.apart(exclude, 23)] = -np.inf
    exclude = exclude if entries else None
    found = dbn.stream_largest_similarities(
        bank, gallery, k=k, exclude=exclude, chunk_size=chunk_size
    )
    np.testing.assert_allclose(found.values, by_numpy(similarities, k), atol=1e-6)


@pytest.mark.parametrize("num_parts", [2, 3])
@pytest.mark.parametrize("network", [True, False])
def test_parts_of_a_gallery_are_the_whole(num_parts, network, monkeypatch):
    bank, gallery = unit_rows(6, 9, 4), unit_rows(7, 23, 4)
    exclude = jnp.stack([jnp.arange(9), jnp.full(9, 22)], axis=1)
    monkeypatch.setattr(selection, "suits_network", lambda *_: network)

    def largest(bank, gallery):
        find = partial(columns.nearest_bank_items, k=3, similarity_fn=dbn.dot_product)
        return find(bank, gallery, exclude, jnp.arange(9) < 8, chunk_size=8).values

    def found():
        values, pull = jax.vjp(largest, bank, gallery)
        return values, *pull(values)

    whole = found()
    monkeypatch.setattr(columns, "_AT_ONCE", -(-23 // num_parts) + 1)
    for one, other in zip(found(), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.usefixtures("_always")
def test_not_a_number_is_none():
    matrix = np.array([[np.nan, 1.0], [2.0, np.nan], [np.nan, 3.0]], np.float32)
    np.testing.assert_array_equal(
        selection.largest_of_columns(jnp.asarray(matrix), 2), [[2, 3], [-np.inf, 1]]
    )
    batched = selection.largest_of_columns(jnp.stack([jnp.asarray(matrix)] * 2), 1)
    np.testing.assert_array_equal(batched, [[[2, 3]]] * 2)


@pytest.mark.slow
@pytest.mark.usefixtures("_always")
def test_gradients_reach_what_was_found():
    bank, gallery = unit_rows(2, 19, 6), unit_rows(3, 11, 6)
    weights = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32)

    def streamed(bank, gallery):
        found = dbn.stream_largest_similarities(bank, gallery, k=3, exclude=np.arange(19) % 11)
        return (found.values * weights).sum()

    def dense(bank, gallery):
        own = np.arange(19)[:, None] % 11 == np.arange(11)[None]
        found = dbn.largest_similarities(bank @ gallery.T, k=3, where=~own)
        return (found.values * weights).sum()

    def plain(bank, gallery):
        own = np.arange(19)[:, None] % 11 == np.arange(11)[None]
        rows = jnp.sort(jnp.where(own, -jnp.inf, bank @ gallery.T), axis=0)[::-1]
        return (rows[:3] * weights).sum()

    expected = jax.grad(plain, (0, 1))(bank, gallery)
    for function in (streamed, dense):
        for found, gradient in zip(
            jax.grad(function, (0, 1))(bank, gallery), expected, strict=True
        ):
            np.testing.assert_allclose(found, gradient, atol=1e-6)
    tangent = jax.jvp(streamed, (bank, gallery), (bank, gallery))[1]
    np.testing.assert_allclose(tangent, 2 * plain(bank, gallery), rtol=1e-4)


def test_places_without_an_item_have_no_slope():
    bank, gallery = unit_rows(4, 3, 6), unit_rows(5, 11, 6)

    def values(bank):
        return dbn.stream_largest_similarities(bank, gallery, k=5).values

    found, tangent = jax.jvp(values, (bank,), (bank,))
    np.testing.assert_allclose(tangent[:3], found[:3], rtol=1e-5)
    np.testing.assert_array_equal(tangent[3:], 0)
