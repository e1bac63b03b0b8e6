"""State that grows and shrinks equals state made anew."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dbnorm_jax as dbn

pytestmark = pytest.mark.usefixtures("compile_fast")

growing = dbn.growing
NUM_BANK, NUM_GALLERY, NUM_NEW, DIM, BETA = 24, 20, 6, 4, 2.0


def integers(seed, count):
    """Small integers: similarities are exact and often level."""
    random = np.random.default_rng(seed)
    return random.integers(-2, 3, size=(count, DIM)).astype(np.float32)


def fit(bank, gallery, k=2, **options):
    return dbn.stream_bank_statistics(bank, gallery, beta=BETA, k=k, **options)


def assert_same(found, expected, tolerance=4e-6):
    scale = np.maximum(1, np.abs(expected.log_normalizer))
    apart = np.abs(np.asarray(found.log_normalizer) - np.asarray(expected.log_normalizer))
    assert (apart[np.isfinite(scale)] <= tolerance * scale[np.isfinite(scale)]).all()
    np.testing.assert_array_equal(
        np.isfinite(found.log_normalizer), np.isfinite(expected.log_normalizer)
    )
    np.testing.assert_allclose(found.mass, expected.mass, rtol=1e-6)
    if expected.k:
        np.testing.assert_array_equal(found.k_occurrence, expected.k_occurrence)


# --- bank items ----------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_subtract_is_the_inverse_of_merge(seed):
    bank, gallery = integers(seed, NUM_BANK), integers(seed + 1, NUM_GALLERY)
    old, new = fit(bank[:12], gallery), fit(bank[12:], gallery)
    left = dbn.subtract(dbn.merge(old, new), old, smallest_share=0)
    # The limit that is stated: a share c of the sum left, an error 1 / c times as large.
    share = np.exp(np.asarray(new.log_normalizer - dbn.merge(old, new).log_normalizer))
    scale = np.maximum(1, np.abs(np.asarray(new.log_normalizer)))
    apart = np.abs(np.asarray(left.log_normalizer - new.log_normalizer))
    known = share > 1e-4
    assert (apart <= 4e-6 * scale / share)[known].all()
    assert np.isfinite(left.log_normalizer).all()
    np.testing.assert_array_equal(left.mass, new.mass)
    np.testing.assert_array_equal(left.k_occurrence, new.k_occurrence)


def test_subtracting_all_leaves_the_empty_part():
    whole = fit(integers(0, NUM_BANK), integers(1, NUM_GALLERY))
    left = dbn.subtract(whole, whole)
    chex.assert_trees_all_equal(left, dbn.subtract(whole, whole, smallest_share=0))
    assert (np.asarray(left.log_normalizer) == -np.inf).all()
    assert not np.asarray(left.mass).any()
    assert not np.asarray(left.k_occurrence).any()
    assert not np.asarray(left.bias).any()
    assert_same(dbn.merge(left, whole), whole)
    assert_same(dbn.subtract(whole, left), whole)


def test_too_large_a_cancellation_is_refused():
    large, small = (dbn.bank_statistics(jnp.array([[x, 0.0]]), beta=1.0) for x in (20.0, 0.0))
    whole = dbn.merge(large, small)
    with pytest.raises(ValueError, match=r"share of at least 0.001.*at \[0\].*merge"):
        dbn.subtract(whole, large)
    # What cannot be checked under jit is no NaN.
    left = jax.jit(dbn.subtract)(whole, large)
    assert np.isfinite(left.log_normalizer).all()
    slope = jax.grad(lambda whole: dbn.subtract(whole, large).bias.sum(), allow_int=True)(whole)
    assert np.isfinite(slope.bias).all()
    assert np.isfinite(slope.weight).all()


def test_what_is_no_part_is_refused():
    bank, gallery = integers(5, NUM_BANK), integers(1, NUM_GALLERY)
    first, other = fit(bank[:12], gallery), fit(bank[12:], gallery)
    shape = first.bias.shape
    short = jax.tree.map(lambda field: field[:5] if field.shape == shape else field, first)
    for part, words in (
        (dbn.merge(first, other), "`part` must be of bank items that are in `whole`"),
        (dataclasses.replace(first, beta=first.beta + 1), "beta"),
        (short, "gallery and k"),
        (dataclasses.replace(first, k=1), "gallery and k"),
    ):
        with pytest.raises(ValueError, match=words):
            dbn.subtract(other, part)
    with pytest.raises(TypeError, match="`part` must be a BankStatistics"):
        dbn.subtract(other, 3)


def test_decay_multiplies_the_weights():
    bank, gallery = integers(0, NUM_BANK), integers(1, NUM_GALLERY)
    faded = growing.decay(fit(bank[:12], gallery), 0.5)
    assert_same(faded, fit(bank[:12], gallery, weights=np.full(12, 0.5, np.float32)))
    weights = np.repeat(np.float32([0.5, 1]), 12)
    assert_same(dbn.merge(faded, fit(bank[12:], gallery)), fit(bank, gallery, weights=weights))
    np.testing.assert_allclose(faded.bias, fit(bank[:12], gallery).bias, atol=1e-6)
    for factor in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="`factor` must be positive"):
            growing.decay(faded, factor)


# --- gallery items -------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_gallery_items_come_and_go(weighted):
    bank, gallery = integers(2, NUM_BANK), integers(3, NUM_GALLERY)
    new = integers(4, NUM_NEW)
    weights = {"weights": np.arange(NUM_BANK, dtype=np.float32) % 3} if weighted else {}
    statistics, neighbors = fit(bank, gallery, **weights), dbn.stream_top_k(bank, gallery, 2)
    statistics, neighbors = growing.add_gallery_items(statistics, neighbors, bank, new, **weights)
    grown = np.concatenate([gallery, new])
    assert_same(statistics, fit(bank, grown, **weights))
    expected = dbn.stream_top_k(bank, grown, 2)
    np.testing.assert_array_equal(neighbors.indices, expected.indices)
    np.testing.assert_array_equal(neighbors.scores, expected.scores)

    removed = np.array([0, 7, 21, 7])
    left, kept = growing.remove_gallery_items(
        statistics, neighbors, bank, grown, removed=removed, **weights
    )
    stays = np.delete(grown, removed, axis=0)
    assert_same(left, fit(bank, stays, **weights))
    np.testing.assert_array_equal(
        left.log_normalizer, np.delete(np.asarray(statistics.log_normalizer), removed)
    )
    np.testing.assert_array_equal(kept.indices, dbn.stream_top_k(bank, stays, 2).indices)


def test_items_that_come_are_level_with_zeros_of_the_other_sign():
    """The neighbors so far hold negative zeros, as `lax.top_k` may give them; they came first."""
    bank, gallery, new = np.ones((2, 1), np.float32), np.zeros((3, 1)), np.zeros((2, 1))
    neighbors = dbn.SearchResult(jnp.full((2, 2), -0.0), jnp.array([[0, 1]] * 2))
    _, found = growing.add_gallery_items(
        fit(bank, gallery.astype(np.float32)), neighbors, bank, new.astype(np.float32)
    )
    np.testing.assert_array_equal(found.indices, [[0, 1]] * 2)


def test_only_rows_that_lose_a_neighbor_are_searched_again(monkeypatch):
    bank, gallery = integers(2, NUM_BANK), integers(3, NUM_GALLERY)
    statistics, neighbors = fit(bank, gallery), dbn.stream_top_k(bank, gallery, 2)
    counts = np.asarray(statistics.k_occurrence)
    searched = []
    from dbnorm_jax._src.retrieval import growing as module

    search = module.stream_top_k
    monkeypatch.setattr(
        module,
        "stream_top_k",
        lambda rows, *more, **options: searched.append(len(rows)) or search(rows, *more, **options),
    )
    hub, nobody = int(counts.argmax()), int(counts.argmin())
    assert counts[nobody] == 0
    for gone, rows in ((nobody, []), (hub, [counts[hub]])):
        searched.clear()
        growing.remove_gallery_items(statistics, neighbors, bank, gallery, removed=[gone])
        assert searched == rows


def test_without_an_activation_set_no_neighbors_are_needed():
    bank, gallery, new = integers(2, NUM_BANK), integers(3, NUM_GALLERY), integers(4, NUM_NEW)
    statistics, none = growing.add_gallery_items(fit(bank, gallery, k=0), None, bank, new)
    assert none is None
    assert_same(statistics, fit(bank, np.concatenate([gallery, new]), k=0))
    grown = np.concatenate([gallery, new])
    left, none = growing.remove_gallery_items(statistics, None, bank, grown, removed=[2])
    assert none is None
    assert_same(left, fit(bank, np.delete(grown, 2, axis=0), k=0))


@pytest.mark.parametrize("k", [1, 2])
def test_as_many_gallery_items_may_stay_as_the_activation_set_counts(k):
    bank, gallery = integers(2, NUM_BANK), integers(3, NUM_GALLERY)
    neighbors = dbn.stream_top_k(bank, gallery, k)
    left, _ = growing.remove_gallery_items(
        fit(bank, gallery, k=k), neighbors, bank, gallery, removed=np.arange(k, NUM_GALLERY)
    )
    assert_same(left, fit(bank, gallery[:k], k=k))


def test_statistics_under_several_betas_grow():
    bank, gallery, new = integers(2, NUM_BANK), integers(3, NUM_GALLERY), integers(4, NUM_NEW)
    betas = {"beta": np.array([1.0, 3.0], np.float32), "k": 0}
    several = dbn.stream_bank_statistics(bank, gallery, **betas)
    grown, _ = growing.add_gallery_items(several, None, bank, new)
    anew = dbn.stream_bank_statistics(bank, np.concatenate([gallery, new]), **betas)
    assert grown.bias.shape == (2, NUM_GALLERY + NUM_NEW)
    assert_same(grown, anew)
    removed = np.arange(NUM_GALLERY, len(anew.bias[0]))
    whole = np.concatenate([gallery, new])
    left, _ = growing.remove_gallery_items(grown, None, bank, whole, removed=removed)
    assert_same(left, several)


def test_what_does_not_belong_together_is_refused():
    bank, gallery = integers(2, NUM_BANK), integers(3, NUM_GALLERY)
    statistics, neighbors = fit(bank, gallery), dbn.stream_top_k(bank, gallery, 2)
    add = growing.add_gallery_items

    def remove(removed, gallery=gallery):
        return growing.remove_gallery_items(statistics, neighbors, bank, gallery, removed=removed)

    for call, words in (
        (lambda: add(statistics, None, bank, gallery), "neighbors.*stream_top_k"),
        (lambda: add(fit(bank, gallery, k=0), neighbors, bank, gallery), "None for k=0"),
        (lambda: add(statistics, neighbors, bank[:9], gallery), "bank rows, k"),
        (lambda: add(statistics, dbn.stream_top_k(-bank, gallery, 2), bank, gallery), "differ"),
        (lambda: remove([NUM_GALLERY]), "removed.*between 0 and 19"),
        (lambda: remove(np.arange(NUM_GALLERY - 1)), "leave at least 2"),
        (lambda: remove([0], gallery[:5]), "20 items"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="concrete"):
        jax.jit(lambda bank: add(statistics, neighbors, bank, gallery)[0].bias)(bank)
