"""Screening for planted hubs, and what `dbnorm inspect` finds, against brute force."""

import jax
import numpy as np
import pytest
import reference
from cases import CHUNK_SIZES, SHAPES, SIMILARITY_FNS, problem
from tracing import largest_intermediate

from dbnorm_jax import attribution

pytest.importorskip("click")

from dbnorm_jax._cli.measuring.hubs import inspect, num_steps, rank_correlations
from dbnorm_jax._cli.measuring.methods import make_method
from dbnorm_jax._cli.reading.sets import EvaluationSet, rows_relevant

DIM, SIZE = 8, 60


def screen(gallery, query_bank, gallery_bank=None, **options):
    return attribution.hub_screening(
        gallery=gallery, query_bank=query_bank, gallery_bank=gallery_bank, **options
    )


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def collection(seed):
    """(gallery, query bank, gallery bank) of two modalities with a mean of their own, with hubs."""
    random = np.random.default_rng(seed)
    common, gap = np.random.default_rng(0).normal(size=(2, DIM))
    items = random.normal(size=(3, SIZE, DIM)) + 0.5 * common
    queries = items[1] + random.normal(size=(SIZE, DIM)) + 1.5 * gap
    return unit(items[0]), unit(queries), unit(items[2])


def assert_screened(found, expected):
    counts, p_values, flagged = expected
    np.testing.assert_array_equal(found.k_occurrence, counts)
    np.testing.assert_allclose(found.p_value, p_values, rtol=1e-6)
    np.testing.assert_array_equal(found.flagged, flagged)
    np.testing.assert_array_equal(found.flagged, found.k_occurrence >= found.threshold)


@pytest.mark.parametrize("rate", [0.002, 0.3])
@pytest.mark.parametrize("fn", list(SIMILARITY_FNS)[::2], ids=lambda fn: fn.__name__)
def test_screening_equals_brute_force(fn, rate):
    test = problem(0, SHAPES[2])
    ours = SIMILARITY_FNS[fn]
    options = {"k": 3, "false_alarm_rate": rate, "similarity_fn": fn, "chunk_size": CHUNK_SIZES[1]}
    expected = reference.hub_screening(
        ours(test.query_bank, test.gallery), ours(test.query_bank, test.gallery_bank), 3, rate
    )
    assert_screened(screen(test.gallery, test.query_bank, test.gallery_bank, **options), expected)
    alone = reference.hub_screening(ours(test.query_bank, test.gallery), None, 3, rate)
    assert_screened(screen(test.gallery, test.query_bank, **options), alone)


def test_corrected_scores_are_screened():
    test = problem(0, SHAPES[2])
    random = np.random.default_rng(0)
    bias, bank_bias = (random.normal(size=len(rows)) for rows in (test.gallery, test.gallery_bank))
    bias, bank_bias = bias.astype(np.float32), bank_bias.astype(np.float32)
    found = screen(
        test.gallery,
        test.query_bank,
        test.gallery_bank,
        k=3,
        bias=bias,
        gallery_bank_bias=bank_bias,
    )
    to_gallery, to_bank = (test.query_bank @ rows.T for rows in (test.gallery, test.gallery_bank))
    assert_screened(found, reference.hub_screening(to_gallery - bias, to_bank - bank_bias, 3))
    found = screen(test.gallery, test.query_bank, k=3, bias=bias)
    assert_screened(found, reference.hub_screening(to_gallery - bias, None, 3))


def test_a_planted_hub_is_found():
    gallery, query_bank, gallery_bank = collection(1)
    planted = unit(query_bank.mean(axis=0))
    gallery[7] = planted
    for bank in (gallery_bank, None):
        found = screen(gallery, query_bank, bank, k=5)
        assert found.k_occurrence.argmax() == 7
        assert found.flagged[7]
        assert found.flagged.sum() <= 2  # one in 61 clean items may be
    # Copies do not hide one another from a clean bank; in the gallery itself they do.
    gallery[:20] = planted
    assert screen(gallery, query_bank, gallery_bank, k=5).flagged[:20].all()
    assert not screen(gallery, query_bank, k=5).flagged[5:20].any()


def test_items_are_judged_by_themselves():
    gallery, query_bank, gallery_bank = collection(2)
    order = np.random.default_rng(0).permutation(SIZE)
    found = screen(gallery, query_bank, gallery_bank, k=5)
    moved = screen(gallery[order], query_bank[order], gallery_bank[order[::-1]], k=5)
    for part in ("k_occurrence", "p_value", "flagged"):
        np.testing.assert_array_equal(getattr(moved, part), np.asarray(getattr(found, part))[order])
    assert moved.threshold == found.threshold
    other = gallery.copy()
    other[:30] = unit(query_bank.mean(axis=0))
    others = screen(other, query_bank, gallery_bank, k=5)
    np.testing.assert_array_equal(others.k_occurrence[30:], found.k_occurrence[30:])


def test_clean_items_are_seldom_flagged():
    """At most the promised share on average, whatever the distribution of counts."""
    for rate in (0.01, 0.1):
        shares = []
        for seed in range(60):
            found = screen(*collection(seed), k=5, false_alarm_rate=rate)
            shares.append(float(found.flagged.mean()))
        most = max(rate, 1 / (1 + SIZE))
        assert 0 < np.mean(shares) < most + 4 * np.std(shares) / np.sqrt(len(shares))


def test_nothing_of_the_size_of_a_matrix_is_held():
    rows = np.ones((4096, 4), np.float32)

    def run(gallery, query_bank, gallery_bank):
        return screen(gallery, query_bank, gallery_bank, k=2, chunk_size=64)

    assert largest_intermediate(run, rows, rows, rows) < 4096 * 256


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 7}, "`k` 1 6"),
        ({"false_alarm_rate": 0.0}, "`false_alarm_rate` between 0 and 1 got 0"),
        ({"bias": np.zeros(7, np.float32)}, "`bias` `gallery_bank_bias` together"),
        ({"gallery_bank": None, "gallery_bank_bias": np.zeros(7)}, "`gallery_bank_bias` None"),
        (
            {"bias": np.zeros(6, np.float32), "gallery_bank_bias": np.zeros(7, np.float32)},
            "`bias` 6 `gallery` 7",
        ),
        ({"gallery_bank": np.ones((7, 3), np.float32)}, "`query_bank` `gallery_bank`"),
        ({"gallery_bank": np.ones((1, 4), np.float32)}, "`gallery_bank` at least 2 got 1"),
        ({"gallery_bank": np.full((7, 4), np.nan, np.float32)}, "`gallery_bank` finite nan"),
    ],
)
def test_bad_input(options, words):
    rows = np.ones((7, 4), np.float32)
    arguments = {"k": 2, "gallery_bank": rows} | options
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are looked for below
        screen(rows, rows, **arguments)
    place = 0
    for word in words.split():
        place = str(error.value).index(word, place)


def test_rank_correlations():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    columns = np.round(random.normal(size=(3, 50)) + random.normal(size=50), 1)  # with ties
    query, gallery, partial = rank_correlations(columns)
    assert query == pytest.approx(stats.spearmanr(columns[0], columns[1]).statistic)
    assert gallery == pytest.approx(stats.spearmanr(columns[0], columns[2]).statistic)
    ranks = np.stack([stats.rankdata(column) for column in columns])
    rests = [
        row - np.polyval(np.polyfit(ranks[1], row, 1), ranks[1]) for row in (ranks[0], ranks[2])
    ]
    assert partial == pytest.approx(np.corrcoef(rests)[0, 1])
    for length in (1, 5):
        assert np.isnan(rank_correlations(np.ones((3, length)))).all()


@pytest.fixture(scope="module")
def inspected():
    gallery, query_bank, gallery_bank = collection(3)
    noise = np.random.default_rng(5).normal(size=gallery.shape)
    queries = unit(gallery + 0.6 * noise + 1.5 * query_bank.mean(axis=0))
    test = EvaluationSet(
        name="test",
        queries=queries,
        gallery=gallery,
        query_bank=query_bank,
        gallery_bank=gallery_bank,
        relevant=rows_relevant(SIZE),
        bank_pairs=np.arange(SIZE),
    )
    method = make_method("is", {}, 10.0, None)
    steps = []
    found = inspect(test, method, beta=10.0, top=4, false_alarm_rate=0.02, on_step=steps.append)
    assert len(steps) == num_steps(method)
    return test, found


@pytest.mark.slow
def test_inspection_equals_brute_force(inspected):
    test, found = inspected
    similarities, banked = test.queries @ test.gallery.T, test.query_bank @ test.gallery.T
    corrected = reference.inverted_softmax(similarities, banked, 10.0)
    nearest = [np.argsort(-rows, axis=1)[:, :10] for rows in (similarities, corrected)]
    before, after = (reference.k_occurrence(rows, SIZE) for rows in nearest)
    np.testing.assert_array_equal(found.counts[0], before)
    np.testing.assert_array_equal(found.counts[1], after)
    top_1, flips = corrected.argmax(axis=1), []
    for row in range(len(banked)):
        without = reference.inverted_softmax(similarities, np.delete(banked, row, axis=0), 10.0)
        flips.append((without.argmax(axis=1) != top_1).sum())
    assert max(flips) > 1
    np.testing.assert_array_equal(found.flips.num_flips, flips)
    np.testing.assert_array_equal(found.deciding[:1], [np.argmax(flips)])
    np.testing.assert_array_equal(found.flips.old, top_1)
    assert found.flips.flipped.sum() <= sum(flips)
    order = np.argsort(-before, kind="stable")
    np.testing.assert_array_equal(found.hubs, order[before[order] >= 20])
    np.testing.assert_array_equal(found.anti_hubs, np.flatnonzero(before == 0))
    np.testing.assert_array_equal(found.lost, np.flatnonzero((before > 0) & (after == 0)))
    assert set(found.rescued) == set(np.flatnonzero((before == 0) & (after > 0)))
    assert len(found.rescued) > 1

    shares = reference.responsibilities(banked, 10.0)
    for hub, makers in zip(found.hubs[:4], found.contributors.indices, strict=True):
        np.testing.assert_array_equal(makers, np.argsort(-shares[:, hub])[:3])

    right = {item for item in found.rescued if item in nearest[1][item]}
    assert found.num_rescued_right == len(right)
    assert set(found.rescued[: len(right)]) == right
    assert len(found.askers) == min(4, len(found.rescued))
    for item, askers in zip(found.rescued, found.askers, strict=False):
        assert len(askers) == after[item]
        for query, place, answered in askers:
            assert nearest[1][query, place - 1] == item
            assert answered == (query == item)


def test_inspection_screens_both_scores(inspected):
    test, found = inspected
    assert list(found.screenings) == ["raw", "IS(10)"]
    assert found.false_alarm_rate == 0.01
    similarities = [test.query_bank @ rows.T for rows in (test.gallery, test.gallery_bank)]
    assert_screened(found.screenings["raw"], reference.hub_screening(*similarities, rate=0.01))
    # A clean item's bias leaves out its own query.
    apart = similarities[1].astype(np.float64)
    np.fill_diagonal(apart, -np.inf)
    biases = [
        np.log(np.exp(10.0 * matrix.astype(np.float64)).sum(axis=0) / count) / 10.0
        for matrix, count in ((similarities[0], SIZE), (apart, SIZE - 1))
    ]
    corrected = [matrix - bias for matrix, bias in zip(similarities, biases, strict=True)]
    expected = reference.hub_screening(*corrected, rate=0.01)
    assert_screened(found.screenings["IS(10)"], expected)


@pytest.mark.parametrize("kind", ["dualis", "dualdis", "csls", "nnn", "dn"])
@pytest.mark.slow
def test_inspection_under_other_methods(inspected, kind):
    test, _ = inspected
    betas = (10.0, 2.0) if kind.startswith("dual") else (None, None)
    method = make_method(kind, {}, *betas)
    found = inspect(test, method, beta=10.0, top=2, false_alarm_rate=0.02)
    assert len(found.screenings) == 1 + (kind != "dn")
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raw", "DualIS 20/2", "CSLS 10"])
def test_the_benchmark_attacks_separate_items_alike(name, monkeypatch):
    """Its shortcut, other items' scores computed once, finds what the whole computation finds."""
    pytest.importorskip("emoji")
    from benchmarks.studies import planted

    gallery, query_bank, gallery_bank = collection(4)
    queries = unit(gallery + np.random.default_rng(6).normal(size=gallery.shape))
    arguments = (queries, gallery, (query_bank, gallery_bank), query_bank[:2])
    found = []
    for separate in (planted.SEPARATE, set()):
        monkeypatch.setattr(planted, "SEPARATE", separate)
        jax.clear_caches()
        found.append(planted.attack(*arguments, fit=planted.FITS[name], steps=3))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    at_1, at_10 = planted.success(found[0], *arguments[:3], fit=planted.FITS[name])
    assert 0 <= at_1 <= at_10 <= 100
