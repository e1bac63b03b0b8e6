"""Pairs on wrong items: the test by ranks, what goes into it, and both on simulated banks."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import hubby

import dbnorm_jax as dbn
from dbnorm_jax._src.tuning import split as folds
from dbnorm_jax._src.tuning import wrong_pairs

SIZE, DIM = 240, 32


def p_of(z, lost, seed=0):
    return wrong_pairs.p_value(np.asarray(z), np.asarray(lost), np.random.default_rng(seed))


def mixed(num_wrong, num_pairs=200, seed=0):
    """The z and the losses of a good encoder's pairs, some of which are on wrong items."""
    rng = np.random.default_rng(seed)
    z, lost = rng.normal(3, 0.5, num_pairs), np.zeros(num_pairs, bool)
    z[:num_wrong] = rng.normal(6, 0.5, num_wrong)
    lost[:num_wrong] = rng.permutation(num_wrong) % 2
    return z, lost


@pytest.mark.parametrize("share_lost", [0.05, 0.5, 0.9])
def test_chance_of_a_false_alarm(share_lost):
    """The p-value of lost queries like the rest is below a level no more often than that."""
    rng = np.random.default_rng(1)
    found = np.array(
        [p_of(rng.normal(size=40), rng.random(40) < share_lost, seed) for seed in range(100)]
    )
    assert found.min() >= 1 / 1000
    assert (found <= 0.05).sum() <= 13  # more has a chance below 0.001 at 5 %


def test_p_value_is_the_share_of_permutations():
    """Of 8 queries, the 2 lost have the largest z: so they are in 1 of 28 choices."""
    z, lost = np.arange(8.0), np.arange(8) >= 6
    assert p_of(z, lost) == pytest.approx(1 / 28, abs=0.02)
    assert p_of(-z, lost) == 1
    assert p_of(np.ones(8), lost) == 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_wrong=st.integers(0, 100))
def test_only_the_order_of_z_counts(seed, num_wrong):
    z, lost = mixed(num_wrong, seed=seed)
    assert p_of(z, lost) == p_of(np.exp(z), lost)


def test_errors_that_are_tolerated_are_no_alarm():
    """As many as are taken out first, all lost, and no others lost."""
    z, lost = mixed(0)
    most = int(wrong_pairs.TOLERATED * len(z))
    z[:most], lost[:most] = 9, True
    assert p_of(z, lost) == 1


@pytest.mark.parametrize("all_or_none", [True, False])
def test_nothing_to_compare_with(all_or_none):
    assert p_of(np.arange(9.0), np.full(9, all_or_none)) == 1


@pytest.mark.parametrize("num_wrong", [20, 40, 80])
def test_the_share_is_about_right(num_wrong):
    found = wrong_pairs.share_wrong(*mixed(num_wrong), np.random.default_rng(0))
    assert found == pytest.approx(num_wrong / 200, rel=0.1)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def paired(seed, noise, num_pairs=SIZE, num_gallery=150):
    """Pairs of unit rows, and a gallery of other items."""
    rng = np.random.default_rng(seed)
    items = unit(rng.normal(size=(num_pairs + num_gallery, DIM)))
    bank = items[:num_pairs]
    return unit(bank + noise * unit(rng.normal(size=bank.shape))), bank, items[num_pairs:]


def asked(query_bank, gallery_bank, gallery, right=None, seed=0, columns=None):
    """What `tune` asks; with `columns`, only so many items are ranked."""
    rng = np.random.default_rng(seed)
    banks = folds.checked(query_bank, gallery_bank, gallery, dbn.dot_product)
    right = np.arange(len(query_bank))[:, None] if right is None else right
    split = folds.split_pairs(banks, right, np.arange(len(query_bank)), 4, rng)
    if columns is not None:
        own = len(split.columns) - len(gallery_bank)
        split = split._replace(columns=split.columns[own - columns :])
        less = {"right": split.right, "excluded_query": split.excluded_query}
        less = {name: np.where(rows < 0, -1, rows - own + columns) for name, rows in less.items()}
        split = split._replace(**less)
    return wrong_pairs.num_wrong(banks, split, right, rng, dbn.dot_product)


@pytest.mark.parametrize("noise", [0.3, 1.2, 2.5])
def test_encoders_good_and_weak_are_no_poison(noise):
    assert not any(asked(*paired(seed, noise), seed=seed) for seed in range(5))


@pytest.mark.parametrize("noise", [0.3, 1.2, 2.5])
@pytest.mark.parametrize("num_victims", [150, 5])
def test_a_fifth_on_wrong_items_is_seen(noise, num_victims):
    for seed in range(3):
        query_bank, gallery_bank, gallery = paired(seed, noise)
        rng = np.random.default_rng(seed)
        wrong = rng.choice(len(query_bank), len(query_bank) // 5, replace=False)
        query_bank[wrong] = gallery[rng.integers(0, num_victims, len(wrong))]
        assert asked(query_bank, gallery_bank, gallery, seed=seed) > 0


def test_items_that_are_not_ranked_are_looked_at():
    """A large gallery is sampled for the ranks, and poison may lie on the rest."""
    query_bank, gallery_bank, gallery = paired(0, 1.2)
    query_bank[:48] = gallery[20:68]
    whole, some = (asked(query_bank, gallery_bank, gallery, columns=n) for n in (None, 20))
    assert whole > 0
    assert some > 0


def test_copies_and_several_right_items_are_no_others():
    """Neither a copy of the right item nor another right one is a wrong item that is near."""
    query_bank, gallery_bank, gallery = paired(0, 0.3)
    gallery[:40] = gallery_bank[:40]
    gallery_bank[220:] = gallery_bank[200:220]
    right = np.arange(SIZE)[:, None] + np.zeros(2, int)
    right[:20, 1] = np.arange(20, 40)
    rng = np.random.default_rng(0)
    banks = folds.checked(query_bank, gallery_bank, gallery, dbn.dot_product)
    split = folds.split_pairs(banks, right, np.arange(SIZE), 4, rng)
    lost, mean, deviation = wrong_pairs._in_row(
        query_bank,
        split.columns,
        split.right,
        split.excluded_query,
        similarity_fn=dbn.dot_product,
    )
    columns = np.asarray(split.columns)
    equal = (columns[None] == gallery_bank[:, None]).all(axis=2)
    others = ~(equal[right[:, 0]] | equal[right[:, 1]])
    rows = query_bank @ columns.T
    expected = [row[seen] for row, seen in zip(rows, others, strict=True)]
    np.testing.assert_allclose(mean, [row.mean() for row in expected], atol=1e-6)
    np.testing.assert_allclose(deviation, [row.std() for row in expected], atol=1e-6)
    own = (query_bank * gallery_bank).sum(axis=1)
    own[:20] = np.maximum(own[:20], (query_bank[:20] * gallery_bank[20:40]).sum(axis=1))
    halves = [np.median(row) >= value for row, value in zip(expected, own, strict=True)]
    np.testing.assert_array_equal(lost, halves)


def test_constant_rows_are_no_alarm():
    query_bank, gallery_bank, gallery = paired(0, 0.3)
    query_bank[:48] = 0
    assert asked(query_bank, gallery_bank, gallery) == 0


def test_an_item_that_is_asked_for_again_and_again_counts_once():
    """Its queries lie on another item, all of them: one bad need, however many ask."""
    query_bank, gallery_bank, gallery = paired(0, 1.2)
    right = np.arange(SIZE)[:, None]
    right[:48] = 0
    query_bank[:48] = gallery[7]
    assert asked(query_bank, gallery_bank, gallery, right) == 0


def test_a_gallery_on_the_device_is_not_copied(monkeypatch):
    queries, items, _, gallery = hubby(5, gallery=300)
    gallery = jax.device_put(np.tile(gallery, (8, 1)))
    asked, largest = [], wrong_pairs._largest

    def seen(queries, columns, *others, **options):
        asked.append(columns.unsafe_buffer_pointer())
        return largest(queries, columns, *others, **options)

    monkeypatch.setattr(wrong_pairs, "_largest", seen)
    known = {"query_bank": queries, "gallery_bank": items, "gallery": gallery}
    dbn.tuning.tune(**known, pairs=np.arange(len(items)))
    assert asked[1] == gallery.unsafe_buffer_pointer()
