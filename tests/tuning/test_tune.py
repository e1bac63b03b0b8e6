"""Tuning against brute force, and every way to ask for too much."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairs import DIM, SIZE, hubby, reference_scores

import dbnorm_jax as dbn
from dbnorm_jax._src.tuning import bank_checks, grid, held_out, mixture
from dbnorm_jax._src.tuning import split as folds
from dbnorm_jax._src.tuning.choice import (
    CONSTANT,
    FEW_PAIRS,
    MERGEABLE,
    NO_PAIRS,
    NOT_PROVEN,
    RAW,
    REASONS,
    TOO_LARGE,
    UNLIKE,
    WRONG_PAIRS,
    methods,
)


@pytest.fixture(scope="module")
def tuned():
    """A strong case: 300 pairs."""
    query_bank, gallery_bank, queries, gallery = hubby(0, 300, 200)
    choice = dbn.tuning.tune(
        query_bank=query_bank, gallery_bank=gallery_bank, pairs=np.arange(300), gallery=gallery
    )
    return choice, (gallery, query_bank, gallery_bank, queries)


TABLE = grid.from_rows(
    [
        (RAW, {}),
        ("is", {"beta_query": 0.3, "weight_query": 1.0}),
        ("nnn", {"k": 3, "weight_query": 0.75}),
        ("sn", {"temperature": 4.0, "weight_query": 1.0}),
        ("sn", {"temperature": 1.0, "weight_query": 0.5}),
        ("dbsn", {"temperature": 1.0, "weight_query": 0.75}),
    ]
)


@pytest.mark.parametrize(
    "known",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["gallery", "banks alone"],
)
def test_held_out_scores_equal_brute_force(known):
    query_bank, gallery_bank, _, gallery = hubby(1)
    pairs = np.arange(SIZE)
    pairs[:5] = -1  # never held out
    pairs[5:8] = 20  # several queries of one item
    rows = np.stack([pairs, np.full(SIZE, -1)], axis=1)
    rows[10, 1] = 3  # several right items
    banks = folds.Banks(query_bank, gallery_bank, gallery if known else None)
    paired = np.flatnonzero(pairs >= 0)
    split = folds.split_pairs(banks, rows, paired, 5, np.random.default_rng(0))
    assert (split.fold_query[:5] == 5).all()
    assert len(set(split.fold_query[[5, 6, 7, 20]])) == 1
    held = folds.HeldOut(banks, split, TABLE, dbn.dot_product, 3.0)
    found = held.scores(held.biases)
    ranks, likelihood = reference_scores(banks, split, TABLE, float(held.sharpness))
    # A rounding may exchange two neighbors.
    assert (np.abs(found.ranks - ranks) > 1e-6).mean() < 0.005
    assert np.abs(found.ranks - ranks).max() <= 1
    np.testing.assert_allclose(found.log_likelihood, likelihood, rtol=1e-3, atol=1e-3)


def test_as_searched_a_query_meets_no_right_items_of_others():
    rng = np.random.default_rng(0)
    similarities = rng.normal(size=(4, 9)).astype(np.float32)
    right, ranked = np.array([[5], [6], [7], [8]], np.int32), np.arange(9) < 5
    biases = rng.normal(size=(2, 9)).astype(np.float32)
    arguments = jnp.asarray(similarities), jnp.asarray(right), jnp.asarray(biases), jnp.float32(2)
    found = held_out.scores(*arguments, jnp.asarray(ranked))
    for candidate, bias in enumerate(biases):
        scores = similarities - bias
        own = scores[np.arange(4), right[:, 0], None]
        expected = 1 + (scores[:, :5] > own).sum(axis=1)
        np.testing.assert_array_equal(found.ranks[candidate], expected)


def test_the_split_knows_what_is_searched():
    query_bank, gallery_bank, _, gallery = hubby(1)
    gallery_bank[:10] = gallery[:10]
    rng, pairs = np.random.default_rng(0), np.arange(SIZE)
    banks = folds.Banks(query_bank, gallery_bank, gallery)
    split = folds.split_pairs(banks, pairs[:, None], pairs, 5, rng)
    known = bank_checks.equal_columns(np.asarray(split.columns), [gallery])[:, 0] >= 0
    np.testing.assert_array_equal(split.searched, known)
    assert split.searched.sum() == SIZE
    unknown = folds.split_pairs(banks._replace(items=None), pairs[:, None], pairs, 5, rng)
    assert unknown.searched.all()


@pytest.mark.slow
def test_levelling_scores_is_no_gain_where_they_say_nothing():
    corrected = 0
    for seed in range(40):
        query_bank, gallery_bank = bank((2, 100, DIM), seed)
        choice = dbn.tuning.tune(
            query_bank=query_bank, gallery_bank=gallery_bank, pairs=np.arange(100), seed=seed
        )
        corrected += choice.name != RAW
    assert corrected <= 5  # of 40, at a chance of 5 %, more come in one case of 70


def test_the_likelihood_is_of_all_right_items():
    rng = np.random.default_rng(0)
    similarities = 0.1 * rng.normal(size=(6, 5)).astype(np.float32)
    right = np.array([[0, -1], [1, 4], [2, 2], [3, -1], [4, 0], [-1, -1]], np.int32)
    biases = np.stack([np.zeros(5), 0.1 * rng.normal(size=5)]).astype(np.float32)
    found = held_out.scores(similarities, jnp.asarray(right), jnp.asarray(biases), jnp.float32(50))
    for candidate, bias in enumerate(biases):
        exponents = 50 * (similarities - bias)
        exponents -= exponents.max(axis=1, keepdims=True)
        for query, given_right in enumerate(right):
            places = np.unique(given_right[given_right >= 0])
            masses = np.exp(exponents[query])
            share = masses[places].sum() / masses.sum()
            expected = np.log(share) if len(places) else 0
            assert found.log_likelihood[candidate, query] == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(found.log_likelihood).all()


@pytest.mark.parametrize("temperature", [4.0, 0.5])
def test_sinkhorn_of_a_part_without_the_row_that_an_item_is_near_to(temperature):
    """The others are below it by more than float32 holds as a factor."""
    query_bank, columns = bank((40, DIM)), bank((12, DIM), seed=1)
    query_bank[3] = 10 * columns[5]
    kept = np.arange(40) % 4 != np.arange(4)[:, None]
    found = held_out.sinkhorn(
        jnp.asarray(query_bank),
        jnp.asarray(columns),
        jnp.asarray(columns[:0]),
        jnp.full((40, 1), -1, jnp.int32),
        (jnp.asarray(kept), jnp.zeros((4, 0), bool)),
        jnp.asarray([temperature]),
        num_iterations=10,
        similarity_fn=dbn.dot_product,
    )[0]
    for part, bias in enumerate(np.asarray(found, np.float64)):
        similarities = query_bank[kept[part]] @ columns.T
        expected = dbn.baselines.sinkhorn_normalization(
            similarities, temperature=temperature, num_iterations=10
        ).bias[0]
        apart = bias - np.asarray(expected)
        np.testing.assert_allclose(apart - apart.mean(), 0, atol=1e-4)


def logged(seed, num_logged=400, num_asked=1000, size=SIZE, exponent=1.0):
    """A log of queries among hubs, items asked for again and again, the first ones often."""
    rng = np.random.default_rng(seed)
    gallery = rng.normal(size=(size, DIM)).astype(np.float32)
    common = rng.normal(size=DIM).astype(np.float32)
    popularity = np.arange(1, size + 1) ** -exponent
    asked = rng.choice(size, num_logged + num_asked, p=popularity / popularity.sum())
    noise = 0.8 * rng.normal(size=(len(asked), DIM)).astype(np.float32)
    queries = gallery[asked] + common + noise
    log, test = slice(num_logged), slice(num_logged, None)
    return gallery, (queries[log], asked[log]), (queries[test], asked[test])


@pytest.mark.slow
def test_what_is_judged_is_what_is_served():
    """Ranks in the first fold are those under what `fit` makes of the others.

    Half of the gallery bank are gallery items, which are asked for again. The others are not, and
    are held out with all that asks for them.
    """
    num_known = SIZE // 2
    gallery, (log, asked), _ = logged(0, num_logged=200)
    gallery_bank = np.concatenate([gallery[:num_known], bank((SIZE - num_known, DIM), seed=5)])
    banks = folds.checked(log, gallery_bank, gallery, dbn.dot_product)
    rng = np.random.default_rng(0)
    split = folds.split_pairs(banks, asked[:, None], np.arange(len(log)), 4, rng)
    folds_of = [set(split.fold_query[asked == item]) for item in range(SIZE)]
    assert all(len(found) > 1 for found in folds_of[:3])
    assert all(len(found) <= 1 for found in folds_of[num_known:])
    assert (split.fold_gallery[:num_known] == 4).all()
    held = folds.HeldOut(banks, split, TABLE, dbn.dot_product, 3.0)
    columns = np.asarray(split.columns)
    declined = dbn.tuning.tune(query_bank=log, gallery_bank=gallery_bank)
    kept, kept_items = split.fold_query != 0, split.fold_gallery != 0
    pairs = (np.cumsum(kept_items) - 1)[asked[kept]]
    mixed = np.array([0.2, 0.1, 0.1, 0.2, 0.1, 0.3])
    for frequency in (*np.eye(len(mixed))[1:], mixed):
        fitted = dbn.tuning.fit(
            of_table(declined, TABLE, frequency),
            gallery=columns,
            query_bank=log[kept],
            gallery_bank=gallery_bank[kept_items],
            pairs=pairs,
        ).bias[0]
        expected = mixture.mixed(jnp.asarray(frequency, jnp.float32), held.biases[0])
        np.testing.assert_allclose(fitted - fitted.mean(), expected, rtol=1e-3, atol=1e-3)


def of_table(choice, table, frequency):
    """A choice of some candidates."""
    ones = jnp.ones(len(frequency))
    figures = ("gain", "standard_error", "p_value", "reciprocal_rank_gain", "recall_gain")
    return dataclasses.replace(
        choice,
        frequency=jnp.asarray(frequency),
        **dict.fromkeys(figures, ones),
        **{name: jnp.asarray(values) for name, values in table._asdict().items()},
    )


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_a_log_of_popular_items_costs_nothing(seed):
    """Partners left in the fit take from popular items what their own queries gave them."""
    gallery, (log, pairs), (queries, asked) = logged(seed)
    correction, choice = dbn.auto(
        gallery=gallery, query_bank=log, pairs=pairs, seed=seed, return_choice=True
    )
    assert choice.name != "raw"
    raw, corrected, with_partners = (
        dbn.metrics.recall_at(dbn.metrics.stream_ranks(queries, gallery, asked, fitted), 1)
        for fitted in (
            None,
            correction,
            dbn.tuning.fit(choice, gallery=gallery, query_bank=log, pairs=np.full(len(log), -1)),
        )
    )
    assert corrected > raw + 0.02
    assert corrected > with_partners + 0.02


@pytest.mark.slow
def test_a_gallery_bank_of_gallery_items_is_the_gallery():
    gallery, (log, pairs), _ = logged(3)
    gallery[7] = gallery[2]  # an item that stands there twice
    alone, choice = dbn.auto(gallery=gallery, query_bank=log, pairs=pairs, return_choice=True)
    order = np.random.default_rng(0).permutation(SIZE)
    again = dbn.tuning.fit(
        choice,
        gallery=gallery,
        query_bank=log,
        gallery_bank=gallery[order],
        pairs=np.argsort(order)[pairs],
    )
    np.testing.assert_allclose(again.bias, alone.bias, atol=1e-5)
    for copy in (2, 7):
        assert alone.bias[0, copy] == pytest.approx(float(alone.bias[0, 9 - copy]), abs=1e-5)


def test_fit_refuses_a_choice_that_it_cannot_serve():
    gallery, (log, pairs), _ = logged(0)
    choice = dbn.tuning.tune(query_bank=log, pairs=pairs, gallery=gallery)
    for gallery_bank, count in ((None, SIZE), (gallery[:5], 5)):
        with pytest.raises(ValueError, match=f"`pairs` must be given, got None: {count} gallery"):
            dbn.tuning.fit(choice, gallery=gallery, query_bank=log, gallery_bank=gallery_bank)
    served = dbn.tuning.fit(choice, gallery=gallery, query_bank=log, pairs=np.full(len(log), -1))
    assert np.isfinite(served.bias).all()
    with pytest.raises(ValueError, match=r"`pairs` must hold gallery rows .* 59"):
        dbn.tuning.fit(choice, gallery=gallery, query_bank=log, pairs=pairs + SIZE)
    with pytest.raises(ValueError, match="`gallery_bank` or `gallery` must be given"):
        dbn.tuning.tune(query_bank=log)


def test_fit_refuses_a_call_without_the_gallery_bank_of_the_choice(tuned):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    assert choice.num_gallery_bank == len(gallery_bank)
    with pytest.raises(ValueError, match=r"`gallery_bank` must be given, got None: .* 300 rows"):
        dbn.tuning.fit(choice, gallery=gallery, query_bank=query_bank, pairs=np.arange(300))
    unknown = dataclasses.replace(choice, num_gallery_bank=0)  # of an older file
    with pytest.raises(ValueError, match="`pairs` must be given"):
        dbn.tuning.fit(unknown, gallery=gallery, query_bank=query_bank)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 12))
def test_equal_columns_are_found_value_for_value(seed, num_rows, num_columns):
    rng = np.random.default_rng(seed)
    rows, columns = (
        rng.choice([-0.0, 0.0, 1.0], (n, 2)).astype(dtype)
        for n, dtype in ((num_rows, np.float32), (num_columns, np.float16))
    )
    found = bank_checks.equal_columns(rows, np.array_split(columns, 3))
    for row, places in zip(rows, found, strict=True):
        equal = np.flatnonzero((columns == row).all(axis=1))
        np.testing.assert_array_equal(places[places >= 0], equal[:8])


def test_the_choice_gains_on_queries_it_has_not_seen(tuned):
    choice, (gallery, query_bank, gallery_bank, queries) = tuned
    assert choice.name != RAW
    assert float(choice.p_value[int(choice.frequency[1:].argmax()) + 1]) <= 0.05
    assert sum(part.frequency for part in choice.mixture) == pytest.approx(1)
    correction = dbn.tuning.fit(
        choice, gallery=gallery, query_bank=query_bank, gallery_bank=gallery_bank
    )
    raw, corrected = (
        dbn.metrics.mean_reciprocal_rank(
            dbn.metrics.stream_ranks(queries, gallery, np.arange(len(queries)), fitted)
        )
        for fitted in (None, correction)
    )
    assert corrected > raw + 0.02


def test_the_guarantee_is_below_what_is_gained(tuned):
    choice, (gallery, query_bank, gallery_bank, queries) = tuned
    known = {"gallery": gallery, "query_bank": query_bank, "gallery_bank": gallery_bank}
    correction = dbn.tuning.fit(choice, **known)
    raw, corrected = (
        dbn.metrics.stream_ranks(queries, gallery, np.arange(len(queries)), fitted)
        for fitted in (None, correction)
    )
    recall, reciprocal = choice.guarantee
    for limit, measure in (
        (recall, lambda ranks: dbn.metrics.recall_at(ranks, 1)),
        (reciprocal, dbn.metrics.mean_reciprocal_rank),
    ):
        assert 0 < limit < measure(corrected) - measure(raw)
    assert f"R@1 at least {100 * recall:+.1f} points, MRR at least" in choice.summary()


def test_the_same_seed_gives_the_same_choice(tuned):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    again = dbn.tuning.tune(
        query_bank=query_bank, gallery_bank=gallery_bank, pairs=np.arange(300), gallery=gallery
    )
    for first, second in zip(jax.tree.leaves(choice), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(first, second)


def test_bank_order_changes_no_more_than_the_folds(tuned):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    rng = np.random.default_rng(3)
    queries, items = rng.permutation(300), rng.permutation(300)
    pairs = np.argsort(items)[queries]
    turned = dbn.tuning.tune(
        query_bank=query_bank[queries],
        gallery_bank=gallery_bank[items],
        pairs=pairs,
        gallery=gallery,
    )
    apart = np.abs(np.asarray(turned.gain - choice.gain))
    assert (apart <= 1e-6 + np.asarray(choice.standard_error)).mean() > 0.95
    assert turned.name != "raw"


def test_the_unit_of_similarity_does_not_matter(tuned):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    scaled = dbn.tuning.tune(
        query_bank=4 * query_bank,
        gallery_bank=4 * gallery_bank,
        pairs=np.arange(300),
        gallery=4 * gallery,
    )
    np.testing.assert_allclose(scaled.frequency, choice.frequency, atol=0.1)
    np.testing.assert_allclose(scaled.beta_query, choice.beta_query / 16, rtol=1e-5)
    np.testing.assert_allclose(scaled.temperature, choice.temperature * 16, rtol=1e-5)
    np.testing.assert_allclose(scaled.gain, choice.gain, atol=0.01)


def test_a_mixture_is_the_sum_of_its_centered_parts(tuned):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    known = {"gallery": gallery, "query_bank": query_bank, "gallery_bank": gallery_bank}
    alone = [
        np.asarray(dbn.tuning.fit(of_table(choice, TABLE, frequency), **known).bias[0])
        for frequency in np.eye(len(TABLE.method))
    ]
    assert not alone[0].any()
    similarities, to_bank = query_bank @ gallery.T, query_bank @ gallery_bank.T
    np.testing.assert_allclose(
        alone[1], dbn.bank_statistics(similarities, beta=0.3).bias, rtol=1e-4
    )
    largest = -np.sort(-similarities, axis=0)[:3].mean(axis=0)
    np.testing.assert_allclose(alone[2], 0.75 * largest, rtol=1e-4)
    how = {"temperature": 1.0, "num_iterations": 10}
    fitted = (
        0.5 * dbn.baselines.sinkhorn_normalization(similarities, **how).bias[0],
        0.75 * dbn.baselines.dual_bank_sinkhorn_normalization(similarities, to_bank, **how).bias[0],
    )
    for found, expected in zip(alone[4:], fitted, strict=True):
        np.testing.assert_allclose(found, expected - expected.mean(), atol=2e-4)
    share = np.array([0.25, 0.15, 0.1, 0.1, 0.2, 0.2])
    both = dbn.tuning.fit(of_table(choice, TABLE, share), **known)
    expected = sum(part * (bias - bias.mean()) for part, bias in zip(share, alone, strict=True))
    assert both.active is None
    np.testing.assert_allclose(both.bias[0], expected, atol=1e-3)


def test_the_summary_says_what_is_mixed(tuned):
    choice = of_table(tuned[0], TABLE, [0.5, 0, 0.25, 0.25, 0, 0])
    assert choice.name == "mixture"
    assert not choice.parameters
    assert choice.mixture[0] == (RAW, {}, 0.5)
    words = "mixture: 50 % raw + 25 % nnn(k 3, weight 0.75) + 25 % sn(temperature 4, weight 1)"
    assert choice.summary().startswith(words)
    assert "Sinkhorn was no candidate" in (
        dataclasses.replace(choice, grid_code=TOO_LARGE).summary()
    )


def test_without_whole_banks_in_memory_sinkhorn_is_no_candidate(tuned, monkeypatch):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    known = {"query_bank": query_bank, "gallery_bank": gallery_bank, "gallery": gallery}
    merging = dbn.tuning.tune(**known, pairs=np.arange(300), mergeable=True)
    assert merging.grid_code == MERGEABLE
    assert "candidates were those that statistics" in merging.summary()
    names = {merging.part(row).method for row in range(len(merging.method))}
    assert names == {RAW, "is", "nnn"}
    assert not mixture.needs_whole_banks(merging)
    monkeypatch.setattr(folds, "MOST_ENTRIES", 300 * (len(gallery) + 600) - 1)
    large = dbn.tuning.tune(**known, pairs=np.arange(300))
    assert large.grid_code == TOO_LARGE
    np.testing.assert_array_equal(large.gain, merging.gain)

    class Statistics:  # of a merged state, say
        statistics = largest = None

    dual = of_table(choice, TABLE, [0.5, 0, 0, 0.25, 0, 0.25])
    with pytest.raises(ValueError, match=r"`choice` must .*, got sn, dbsn, .* mergeable=True"):
        mixture.fit_chosen(dual, Statistics(), 10, jnp.float32, similarity_fn=dbn.dot_product)


def test_files(tuned, tmp_path):
    choice, _ = tuned
    dbn.save(tmp_path / "choice.npz", choice)
    loaded = dbn.load(tmp_path / "choice.npz")
    assert loaded.summary() == choice.summary()
    assert jax.tree.structure(loaded) == jax.tree.structure(choice)
    every = {"frequency": np.full_like(choice.frequency, 1 / len(choice.k))}  # all are mixed
    for broken, words in [
        ({"frequency": choice.frequency * 2}, "frequency to be shares that sum to 1"),
        ({"frequency": choice.frequency.at[1].set(-0.1)}, "frequency to be shares"),
        ({"gain": choice.gain * np.nan}, "gain to be finite"),
        ({"gain": choice.gain[1:]}, "gain to be of shape"),
        ({"limits": choice.gain}, "limits to be of shape"),
        ({"method": choice.method[:0]}, "method to be .num_candidates"),
        ({"method": choice.method + 1}, "method to be raw .0. first"),
        ({"method": choice.method.at[1].set(len(methods()))}, "method to be raw .0. first"),
        ({"method": choice.method.at[1].set(-1)}, "method to be raw .0. first"),
        ({"methods": (RAW, "is", "nnn", "sn", "best")}, "methods to be raw first"),
        ({"methods": (RAW, "dis", "nnn", "dis", "dis")}, "frequency to be 1 for a method with a"),
        ({"methods": ()}, "methods to be raw first"),
        ({"reason_code": len(REASONS)}, "reason_code to be below"),
        ({"reason_code": -1}, "reason_code to be below"),
        ({"grid_code": 3}, "grid_code to be below"),
        ({**every, "beta_query": 0 * choice.beta_query}, "beta_query to be above 0 for is"),
        ({**every, "temperature": -choice.temperature}, "temperature to be above 0 for sn"),
        ({**every, "k": 0 * choice.k}, "k to be above 0 for nnn"),
        ({"half_life": choice.half_life - 1}, "half_life to be at least 0"),
    ]:
        with pytest.raises(ValueError, match=f"expected {words}"):
            dbn.save(tmp_path / "choice.npz", dataclasses.replace(choice, **broken))


def test_what_is_fitted_knows_its_similarity(tuned):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    known = {"gallery": gallery, "query_bank": query_bank, "gallery_bank": gallery_bank}
    assert choice.name != RAW
    for frequency in (choice.frequency, *map(np.float32, np.eye(len(choice.k))[[1, -1]])):
        served = dataclasses.replace(choice, frequency=frequency)
        fitted = dbn.tuning.fit(served, **known, similarity_fn=dbn.cosine_similarity)
        assert fitted.similarity == "cosine_similarity"
    with pytest.raises(ValueError, match="`correction` was made under cosine_similarity"):
        dbn.stream_top_k(query_bank[:2], gallery, 1, fitted)


@pytest.mark.slow
def test_auto_with_and_without_a_gallery_bank(tuned):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    pairs = np.arange(300)
    correction, found = dbn.auto(
        gallery=gallery,
        query_bank=query_bank,
        gallery_bank=gallery_bank,
        pairs=pairs,
        return_choice=True,
    )
    np.testing.assert_array_equal(found.gain, choice.gain)
    np.testing.assert_array_equal(
        correction.bias,
        dbn.tuning.fit(
            choice, gallery=gallery, query_bank=query_bank, gallery_bank=gallery_bank
        ).bias,
    )
    alone, found = dbn.auto(
        gallery=gallery[:SIZE],
        query_bank=query_bank,
        pairs=np.where(pairs < SIZE, pairs, -1),
        return_choice=True,
    )
    assert alone.bias.shape[-1] == SIZE
    assert found.num_columns == SIZE
    assert not dbn.auto(
        gallery=gallery, query_bank=query_bank, gallery_bank=gallery_bank
    ).bias.any()


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_own_share_is_of_the_ten_nearest(shift):
    rng = np.random.default_rng(0)
    own, other = rng.normal(size=(2, 30, 4)).astype(np.float32)
    own += np.float32(shift)
    both = np.concatenate([own, other])
    itself = np.eye(30, 60, dtype=bool)
    nearest = np.argsort(-np.where(itself, -np.inf, own @ both.T), axis=1)
    expected = (nearest[:, :10] < 30).mean()
    found = bank_checks.own_share(own, other, rng, dbn.dot_product)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_statistics_of_parts_are_those_of_their_rows():
    rows, columns = bank((6, DIM)), bank((5, DIM), seed=1)
    excluded = np.full((6, 1), -1, np.int32)
    excluded[[0, 4]] = 2
    dealt = held_out.Blocks(
        np.array([[0, 1, 2], [3, 4, 0]], np.int32),
        np.array([[1, 1, 1], [1, 1, 0]], np.float32),
        np.array([0, 1], np.int32),
    )
    found = held_out.statistics(
        rows,
        columns,
        jnp.array([2.0]),
        excluded,
        jnp.array([[1.0] * 6, [2.0, 1, 0, 0.5, 3, 1]]),
        dealt,
        num_parts=2,
        k=0,
        similarity_fn=dbn.dot_product,
    )
    for part, members in enumerate(([0, 1, 2], [3, 4])):
        where = excluded[members] != np.arange(5)
        for place, weights in enumerate(([1.0] * 6, [2.0, 1, 0, 0.5, 3, 1])):
            expected = dbn.bank_statistics(
                rows[members] @ columns.T,
                beta=2.0,
                where=where,
                weights=np.array(weights)[members],
            )
            np.testing.assert_allclose(found.means.bias[part, place], expected.bias, rtol=1e-5)
            np.testing.assert_allclose(found.means.mass[part, place], expected.mass)


def test_means_of_the_nearest_are_of_those_that_are_there():
    rows, entered = jnp.zeros((1, 2)), jnp.array([[True, False]])
    one, nothing = jnp.ones(1), jnp.zeros((0, 2))
    means = dbn.bank_statistics(rows, beta=one, where=entered).means
    largest = jnp.array([[0.5, 0.8], [-jnp.inf, 0.4]])
    source = held_out.Prepared(one, (one, one), means, largest, (nothing, nothing))
    found = [source.statistics("query", 1.0, 0).bias, *(source.largest(k).mean for k in (1, 2))]
    np.testing.assert_allclose(found, [[0, 0], [0.5, 0.8], [0.5, 0.6]], rtol=1e-6)


def as_csr(pairs):
    return np.concatenate([[0], np.cumsum(pairs >= 0)]), pairs[pairs >= 0]


def test_csr_pairs_equal_single_ones():
    pairs = np.arange(SIZE)
    pairs[::7] = -1
    single, csr = (folds.right_rows("pairs", right, SIZE, SIZE) for right in (pairs, as_csr(pairs)))
    np.testing.assert_array_equal(single, csr)


def test_csr_pairs_are_taken(tuned):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    pairs = as_csr(np.arange(300))
    csr = dbn.tuning.tune(
        query_bank=query_bank, gallery_bank=gallery_bank, pairs=pairs, gallery=gallery
    )
    np.testing.assert_array_equal(csr.gain, choice.gain)


def bank(shape=(SIZE, DIM), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


EVERY = np.arange(SIZE)
DECLINES = {
    "no pairs": ((bank(), bank(seed=1), None), NO_PAIRS),
    "few pairs": ((bank(), bank(seed=1), np.where(EVERY < 29, EVERY, -1)), FEW_PAIRS),
    "one-item query bank": ((bank((1, DIM)), bank(), np.array([0])), FEW_PAIRS),
    "one-item gallery bank": ((bank(), bank((1, DIM)), 0 * EVERY), FEW_PAIRS),
    "all pairs with one item": ((bank(), bank(seed=1), 0 * EVERY), FEW_PAIRS),
    "identical rows": ((bank() * 0 + 1, bank() * 0 + 1, EVERY), FEW_PAIRS),
    "constant similarities": ((bank(), bank() * 0 + 1, EVERY), CONSTANT),
    "zero rows": ((bank() * 0, bank() * 0, EVERY), FEW_PAIRS),
    "identical queries": ((bank() * 0 + bank()[:1], bank(seed=1), EVERY), FEW_PAIRS),
    # Of unit length: else long items are hubs of dot products, and there is something to gain.
    "nothing to gain": ((unit(bank()), unit(bank()), EVERY), NOT_PROVEN),
    "unrelated": ((bank(), bank(seed=1), EVERY), NOT_PROVEN),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DECLINES)
def test_declines_to_raw(name):
    arrays, reason = DECLINES[name]
    query_bank, gallery_bank, pairs = arrays
    known = {"query_bank": query_bank, "gallery_bank": gallery_bank}
    choice = dbn.tuning.tune(**known, pairs=pairs)
    assert choice.reason_code == reason, choice.summary()
    assert choice.name == "raw"
    assert not choice.parameters
    assert choice.reason in choice.summary()
    if choice.num_held_out:
        best = int(np.argmax(choice.gain[1:])) + 1
        assert f"best of {len(choice.gain)} candidates" in choice.summary()
        assert f"gain {choice.gain[best]:+.3f}" in choice.summary()
    assert choice.guarantee == (0, 0)
    assert "R@1 and MRR stay exactly as they are" in choice.summary()
    for leaf in jax.tree.leaves(choice):
        assert np.isfinite(np.asarray(leaf)).all()
    assert not dbn.tuning.fit(choice, gallery=bank(), **known).bias.any()


def test_a_foreign_gallery_bank_is_declined():
    query_bank, gallery_bank, _, gallery = hubby(7)
    foreign = gallery_bank + 10
    choice = dbn.tuning.tune(
        query_bank=query_bank, gallery_bank=foreign, pairs=np.arange(SIZE), gallery=gallery
    )
    assert choice.reason_code == UNLIKE
    assert any("domain or modality" in warning for warning in choice.warnings)
    swapped = dbn.tuning.tune(
        query_bank=gallery_bank, gallery_bank=query_bank + 5, pairs=np.arange(SIZE), gallery=gallery
    )
    assert any("swapped" in warning for warning in swapped.warnings)


def test_queries_on_wrong_items_keep_raw_unless_the_banks_are_trusted(tuned):
    choice, (gallery, query_bank, gallery_bank, _) = tuned
    assert not choice.num_wrong_pairs
    rng = np.random.default_rng(0)
    poisoned = query_bank.copy()
    wrong = rng.choice(len(poisoned), 60, replace=False)
    poisoned[wrong] = gallery[rng.integers(0, len(gallery), 60)]
    known = {
        "query_bank": poisoned,
        "gallery_bank": gallery_bank,
        "gallery": gallery,
        "pairs": np.arange(len(poisoned)),
    }
    kept, found = dbn.auto(**known, return_choice=True)
    assert found.reason_code == WRONG_PAIRS
    assert found.name == "raw"
    assert not kept.bias.any()
    assert found.num_wrong_pairs == pytest.approx(60, abs=30)
    corrected, trusted = dbn.auto(**known, trust_banks=True, return_choice=True)
    assert trusted.name != "raw"
    assert corrected.bias.any()
    assert trusted.num_wrong_pairs == found.num_wrong_pairs
    for one in (found, trusted):
        words = f"about {one.num_wrong_pairs} queries of the bank lie on other items"
        assert any(words in warning for warning in one.warnings)
        assert words in one.summary()


def test_a_foreign_gallery_bank_that_is_trusted(tuned):
    _, (gallery, query_bank, gallery_bank, _) = tuned
    known = {"query_bank": query_bank, "gallery_bank": gallery_bank + 10, "gallery": gallery}
    kept, trusted = (
        dbn.tuning.tune(**known, pairs=np.arange(300), trust_banks=trust) for trust in (False, True)
    )
    assert kept.reason_code == UNLIKE
    assert trusted.num_held_out == 300
    assert set(kept.warnings) <= set(trusted.warnings)


def test_leaks_are_named():
    query_bank, gallery_bank, _, gallery = hubby(8)
    gallery_bank[:3] = gallery[:3]
    choice = dbn.tuning.tune(
        query_bank=query_bank, gallery_bank=gallery_bank, pairs=None, gallery=gallery
    )
    np.testing.assert_array_equal(choice.num_equal_rows, [0, 3, 0])
    assert any("transductive" in warning for warning in choice.warnings)


BAD = {
    "out of range": ({"pairs": EVERY + 1}, ValueError, "`pairs` must hold gallery rows .* and 59"),
    "too few": ({"pairs": EVERY[:-1]}, ValueError, "`pairs` must have one entry"),
    "floats": ({"pairs": EVERY + 0.5}, TypeError, "`pairs` must hold integers"),
    "level": ({"level": 1.5}, ValueError, "`level` must be between 0 and 1"),
    "level 0": ({"level": 0}, ValueError, "`level` must be between 0 and 1"),
    "level 1": ({"level": 1}, ValueError, "`level` must be between 0 and 1"),
    "folds": ({"num_folds": 1}, ValueError, "`num_folds` must be"),
    "dimensions": ({"gallery_bank": bank((SIZE, 5))}, ValueError, "same number of columns"),
    "NaN": ({"gallery_bank": bank() * np.nan}, ValueError, "`gallery_bank` must be finite"),
    "integers": ({"query_bank": EVERY[:, None]}, TypeError, "`query_bank` must be floating"),
    "zero row": (
        {
            "query_bank": bank() * np.float32(EVERY != 3)[:, None],
            "similarity_fn": dbn.cosine_similarity,
        },
        ValueError,
        "`query_bank` .*zero.*row 3",
    ),
    "empty": ({"query_bank": bank((0, DIM))}, ValueError, "`query_bank` must have at least one"),
    "level of text": ({"level": "5 %"}, TypeError, "`level` must be a number, got '5 %'"),
    "seed": ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
    "seed of text": ({"seed": "x"}, TypeError, "`seed` must be an integer, got 'x'"),
    "a name": ({"similarity_fn": "cosine"}, TypeError, "`similarity_fn` must be a function.*'cosi"),
    "a huge bias": (
        {"gallery": bank(seed=1), "biases": np.full(SIZE, 1e30, np.float32)},
        ValueError,
        "`biases` must be at most 1e\\+18 in size, got 1e\\+30",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, error, message = BAD[name]
    arrays = {"query_bank": bank(), "gallery_bank": bank(seed=1), "pairs": EVERY} | options
    with pytest.raises(error, match=message):
        dbn.tuning.tune(**arrays)


def test_tuning_is_not_for_jit():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda rows: dbn.tuning.tune(query_bank=rows, gallery_bank=rows).gain)(bank())
    with pytest.raises(TypeError, match="`choice` must be a Choice"):
        dbn.tuning.fit("is", gallery=bank(), query_bank=bank())


def test_grid_is_without_unit():
    first, second = grid.grid(1.0), grid.grid(0.5)
    np.testing.assert_allclose(second.beta_query, 2 * first.beta_query)
    np.testing.assert_allclose(second.temperature, first.temperature / 2)
    assert first.row(0) == (RAW, {})
    assert len({*zip(*first, strict=True)}) == len(first.method)
    assert set(first.method) == set(range(len(methods()) - 1))  # but for a bias of one's own
    assert grid.from_rows([first.row(80)]).row(0) == first.row(80)
