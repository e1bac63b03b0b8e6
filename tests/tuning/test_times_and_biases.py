"""Banks that decay and a bias of one's own: what is judged, what is served, what is refused."""

import dataclasses

import numpy as np
import pytest
from pairs import DIM

import dbnorm_jax as dbn
from dbnorm_jax._src.tuning import grid
from dbnorm_jax._src.tuning import split as folds
from dbnorm_jax._src.tuning.choice import OWN, RAW, methods

SIZE = 90


def drifting(seed=0, size=SIZE, asked=2 * SIZE):
    """A gallery and a log of which the later half leans another way than the first."""
    rng = np.random.default_rng(seed)
    gallery = rng.normal(size=(size, DIM)).astype(np.float32)
    pairs = rng.integers(0, size, asked)
    times = np.sort(rng.uniform(0, 100, asked))
    leans = 2 * rng.normal(size=(2, DIM))
    noise = rng.normal(size=(asked, DIM))
    log = gallery[pairs] + noise + np.where(times[:, None] < 50, *leans)
    return gallery, log.astype(np.float32), pairs, times


def choice_of(rows, frequency, num_rows=SIZE):
    """A choice of some candidates with these shares."""
    empty = dbn.tuning.tune(query_bank=np.eye(num_rows, DIM, dtype=np.float32), gallery_bank=BANK)
    table = grid.from_rows([(RAW, {}), *rows])
    figures = ("gain", "standard_error", "p_value", "reciprocal_rank_gain", "recall_gain")
    shares = np.array([0.0, *frequency], np.float32)
    return dataclasses.replace(
        empty,
        num_gallery_bank=0,
        frequency=shares,
        **dict.fromkeys(figures, 0 * shares),
        **table._asdict(),
    )


BANK = np.random.default_rng(9).normal(size=(SIZE, DIM)).astype(np.float32)
DECAYED = ("is", {"beta_query": 0.5, "weight_query": 0.75, "half_life": 20.0})
WITH_OWN = ("is", {"beta_query": 0.5, "weight_query": 0.75, "weight_own": 0.5})


def reference_is(log, gallery, pairs, weights, beta=0.5):
    """0.75 of the bias of IS in float64, own partners left out."""
    similarities = log.astype(np.float64) @ gallery.T.astype(np.float64)
    powers = weights[:, None] * np.exp(beta * similarities)
    entered = pairs[:, None] != np.arange(len(gallery))
    means = (powers * entered).sum(axis=0) / (weights[:, None] * entered).sum(axis=0)
    return 0.75 * np.log(means) / beta


def centered(bias):
    return bias - bias.mean()


def test_fit_serves_a_bank_that_decays_and_a_bias_of_ones_own():
    gallery, log, pairs, times = drifting()
    own = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
    known = {"gallery": gallery, "query_bank": log, "pairs": pairs}
    weights = 0.5 ** ((times.max() - times) / 20)
    decayed = reference_is(log, gallery, pairs, weights)
    even = reference_is(log, gallery, pairs, np.ones(len(log)))
    both = choice_of([DECAYED, WITH_OWN, (OWN, {"weight_own": 0.25})], [0.5, 0.2, 0.3])
    expected = centered(0.5 * decayed + 0.2 * (even + 0.5 * own) + 0.3 * 0.25 * own)
    fitted = dbn.tuning.fit(both, **known, times=times, biases=own)
    np.testing.assert_allclose(centered(np.asarray(fitted.bias[0])), expected, atol=2e-5)
    alone = dbn.tuning.fit(choice_of([DECAYED], [1.0]), **known, times=times)
    np.testing.assert_allclose(centered(np.asarray(alone.bias[0])), centered(decayed), atol=2e-5)
    # The unit and the origin of the times are free, as is the order of the rows.
    order = np.random.default_rng(2).permutation(len(log))
    hours = choice_of([(DECAYED[0], DECAYED[1] | {"half_life": 20 * 24.0})], [1.0])
    turned = dbn.tuning.fit(
        hours,
        gallery=gallery,
        query_bank=log[order],
        pairs=pairs[order],
        times=24 * (times[order] - 1e4),
    )
    np.testing.assert_allclose(turned.bias, alone.bias, atol=2e-5)


def test_what_a_choice_mixes_and_a_call_lacks_is_refused():
    gallery, log, pairs, times = drifting()
    known = {"gallery": gallery, "query_bank": log, "pairs": pairs}
    with pytest.raises(ValueError, match="`times` must be given, got None: the choice mixes"):
        dbn.tuning.fit(choice_of([DECAYED], [1.0]), **known)
    with pytest.raises(ValueError, match="`biases` must be given, got None: the choice mixes"):
        dbn.tuning.fit(choice_of([WITH_OWN], [1.0]), **known, times=times)
    # Looked at, and not mixed: nothing is needed, and nothing is added.
    unused = choice_of([("nnn", {"k": 3, "weight_query": 1.0}), WITH_OWN], [1.0, 0.0])
    plain, given = (dbn.tuning.fit(unused, **known, biases=b) for b in (None, np.ones(SIZE)))
    np.testing.assert_array_equal(plain.bias, given.bias)


def test_a_choice_that_knows_no_bias_gets_it_whole():
    gallery, log, pairs, _ = drifting()
    own = np.arange(SIZE, dtype=np.float32)
    known = {"gallery": gallery, "query_bank": log, "pairs": pairs}
    unaware = choice_of([("nnn", {"k": 3, "weight_query": 1.0})], [1.0])
    without, added = (dbn.tuning.fit(unaware, **known, biases=b).bias for b in (None, own))
    np.testing.assert_allclose(added - without, own[None], rtol=1e-5)
    # What kept raw with the bias at hand serves nothing.
    declined = dbn.tuning.tune(**known | {"pairs": None}, biases=own)
    assert declined.name == RAW
    assert not dbn.tuning.fit(declined, **known, biases=own).bias.any()


def test_folds_follow_each_other_in_time():
    gallery, log, pairs, times = drifting()
    pairs = np.where(np.arange(len(log)) % 7 == 0, -1, pairs)  # some without
    banks = folds.Banks(log, gallery, gallery)
    paired = np.flatnonzero(pairs >= 0)
    rng = np.random.default_rng(0)
    split = folds.split_pairs(banks, pairs[:, None], paired, 5, rng, times)
    assert (pairs[split.held_out] >= 0).all()
    assert len(split.held_out) == pytest.approx(2 / 3 * len(paired), abs=2)
    for fold in range(5):
        before = split.keep[fold][split.fold_query]
        own = split.fold_query == fold
        assert times[before].max() < times[own].min()
        assert before.sum() + (times >= times[own].min()).sum() == len(log)


def test_what_is_judged_is_of_earlier_queries_and_the_own_bias():
    gallery, log, pairs, times = drifting()
    own = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
    banks = folds.Banks(log, gallery, gallery)
    rng = np.random.default_rng(0)
    split = folds.split_pairs(banks, pairs[:, None], np.arange(len(log)), 3, rng, times)
    table = grid.from_rows([(RAW, {}), DECAYED, WITH_OWN, (OWN, {"weight_own": 0.25})])
    held = folds.HeldOut(banks, split, table, dbn.dot_product, 3.0, times=times, own=own)
    columns = np.asarray(split.columns)
    places = (columns[:, None] == gallery[None]).all(axis=2).argmax(axis=1)
    at = np.argsort(places)[pairs]
    for fold in range(3):
        kept = split.keep[fold][split.fold_query]
        weights = 0.5 ** ((times.max() - times) / 20)
        decayed = reference_is(log[kept], columns, at[kept], weights[kept])
        even = reference_is(log[kept], columns, at[kept], np.ones(kept.sum()))
        expected = [0 * even, decayed, even + 0.5 * own[places], 0.25 * own[places]]
        np.testing.assert_allclose(held.biases[fold], expected, atol=5e-5)


@pytest.mark.slow
def test_tune_takes_the_decay_where_queries_drift():
    gallery, log, pairs, times = drifting(asked=600)
    known = {"gallery": gallery, "query_bank": log, "pairs": pairs, "times": times}
    choice = dbn.tuning.tune(**known)
    decayed = np.asarray(choice.half_life) > 0
    assert decayed.sum() == 108
    assert float(np.asarray(choice.frequency)[decayed].sum()) > 0.5
    assert choice.guarantee.reciprocal_rank > 0
    assert "half_life" in choice.summary()
    assert np.isfinite(dbn.tuning.fit(choice, **known).bias).all()


@pytest.mark.slow
def test_tune_finds_the_weight_of_a_bias_of_ones_own(tmp_path):
    """Queries of unit items among items that all are offset by what the bias says."""
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(SIZE, DIM)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    offset = rng.normal(size=SIZE).astype(np.float32)
    pairs = rng.integers(0, SIZE, 400)
    log = gallery[pairs] + 0.2 * rng.normal(size=(400, DIM)).astype(np.float32)
    items, asked = (
        np.append(rows, column[:, None], axis=1).astype(np.float32)
        for rows, column in ((gallery, offset), (log, np.ones(400)))
    )
    known = {"gallery": items, "query_bank": asked, "pairs": pairs}
    choice = dbn.tuning.tune(**known, biases=offset)
    assert choice.name != RAW
    weight = float(np.asarray(choice.frequency) @ np.asarray(choice.weight_own))
    assert weight > 0.1
    served = dbn.tuning.fit(choice, **known, biases=offset)
    ranks = [dbn.metrics.stream_ranks(asked, items, pairs, one) for one in (None, served)]
    assert dbn.metrics.recall_at(ranks[1], 1) > dbn.metrics.recall_at(ranks[0], 1) + 0.3
    # The columns survive a file.
    dbn.save(tmp_path / "choice.npz", choice)
    again = dbn.load(tmp_path / "choice.npz")
    assert again.mixture == choice.mixture
    assert any("weight_own" in part.parameters for part in again.mixture)


BAD = {
    "times": ({"times": np.arange(3)}, ValueError, r"`times` must have one entry per query-bank"),
    "2-D times": ({"times": np.ones((SIZE, 1))}, ValueError, r"`times` must have one entry"),
    "NaN": ({"times": np.full(SIZE, np.nan)}, ValueError, "`times` must be finite, got nan"),
    "words": ({"times": np.full(SIZE, "now")}, TypeError, "`times` must hold numbers or dates"),
    "no date": (
        {"times": np.full(SIZE, np.datetime64("NaT", "s"))},
        ValueError,
        "`times` must be finite",
    ),
    "biases": ({"biases": np.ones(3)}, ValueError, r"`biases` must have one entry per gallery row"),
    "infinite": ({"biases": np.full(SIZE, np.inf)}, ValueError, "`biases` must be finite"),
    "integers": ({"biases": np.arange(SIZE)}, TypeError, "`biases` must be floating point"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, error, message = BAD[name]
    known = {"gallery": BANK, "query_bank": BANK, "pairs": np.arange(SIZE)}
    for call in (dbn.tuning.tune, dbn.auto, lambda **all: dbn.tuning.fit(UNAWARE, **all)):
        with pytest.raises(error, match=message):
            call(**known, **options)


UNAWARE = choice_of([("nnn", {"k": 3, "weight_query": 1.0})], [1.0])


def test_a_bias_needs_items_that_it_is_known_of():
    known = {"query_bank": BANK, "pairs": np.arange(SIZE), "biases": np.ones(SIZE)}
    with pytest.raises(ValueError, match="`biases` needs `gallery`"):
        dbn.tuning.tune(**known, gallery_bank=BANK)
    with pytest.raises(ValueError, match=r"got 0 of 90 pairs with gallery items; give a log"):
        dbn.tuning.tune(**known, gallery_bank=BANK, gallery=BANK[::-1] + 1)


def test_dates_are_times():
    days = np.array(["2026-11-01", "2026-11-03"], "datetime64[D]")
    np.testing.assert_array_equal(np.diff(folds.times_of(days, 2)), 2)
    assert methods()[-1] == OWN


@pytest.mark.parametrize("first", [-(2**63), -3, 2**62, np.uint64(2**64 - 3)], ids=str)
def test_times_that_float64_cannot_tell_apart_are_told_apart(first):
    dtype = np.uint64 if isinstance(first, np.uint64) else np.int64
    times = np.array([first, first + dtype(2), first + dtype(1)], dtype)
    np.testing.assert_array_equal(folds.times_of(times, 3), [0, 2, 1])
    ends = np.array([-(2**63), 2**63 - 1])
    np.testing.assert_array_equal(folds.times_of(ends, 2), [0, 2.0**64])
    with pytest.raises(ValueError, match="`times` must be finite, got nan in entry 1"):
        folds.times_of(np.array(["2026-11-01", "NaT"], "datetime64[ns]"), 2)


@pytest.mark.parametrize("method", ["sn", "dbsn"])
def test_sinkhorn_is_fitted_alike_from_whole_matrices_and_streamed(method, monkeypatch):
    gallery, log, pairs, _ = drifting()
    known = {"gallery": gallery, "query_bank": log, "pairs": pairs}
    choice = choice_of([(method, {"temperature": 2.0, "weight_query": 0.75})], [1.0])
    held = dbn.tuning.fit(choice, **known).bias[0]
    monkeypatch.setattr(folds, "MOST_ENTRIES", 0)
    streamed = dbn.tuning.fit(choice, **known).bias[0]
    assert held.std() > 0.1
    np.testing.assert_allclose(centered(held), centered(streamed), atol=2e-5)


@pytest.mark.parametrize("pairs", [None, np.where(np.arange(SIZE) < 20, np.arange(SIZE), -1)])
def test_labels_are_what_is_advised_where_pairs_lack(pairs):
    choice = dbn.tuning.tune(query_bank=BANK, gallery_bank=BANK, pairs=pairs)
    assert "label 30 pairs" in choice.summary()
    assert "3.5 points of R@1" in choice.summary()
