"""nDCG, precision and success against the reference and trec_eval, in every form they take."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax._src.passes import streaming

metrics = dbn.metrics
ndcg = metrics.normalized_discounted_cumulative_gain
stream_ndcg = metrics.stream_normalized_discounted_cumulative_gain
SEEDS = st.integers(0, 2**31)
# Few shapes: each one compiles anew.
SHAPE = NUM_QUERIES, NUM_GALLERY = 6, 9
CUTS = [None, 1, 4, 20]
FORMS = ["matrix", "lists", "csr"]


def _scores(rng, shape=SHAPE):
    """Few levels, so that ties are common, some of them infinite."""
    scores = rng.integers(-3, 4, shape) / 64
    infinite = np.where(rng.random(shape) < 0.5, np.inf, -np.inf)
    return np.where(rng.random(shape) < 0.2, infinite, scores).astype(np.float32)


def _grades(rng, shape=SHAPE):
    """Three items of a query have a grade: other widths compile anew. The first query has none."""
    graded = rng.random(shape).argsort(axis=-1) < 3
    grades = rng.integers(1, 5, shape) * graded
    grades[..., 0, :] = 0
    return grades


def _in_form(rng, grades, form):
    if form == "matrix":
        return grades
    # What is judged not to be right at all may be named, too.
    named = (grades > 0) | (rng.random(grades.shape) < 0.2)
    query, items = np.nonzero(named)
    if form == "csr":
        return np.concatenate([[0], named.sum(axis=1).cumsum()]), items, grades[query, items]
    rows = np.where(named, np.arange(grades.shape[1]), -1)
    order = rng.permuted(np.tile(np.arange(grades.shape[1]), (len(grades), 1)), axis=1)
    rows, values = (np.take_along_axis(part, order, axis=1) for part in (rows, grades))
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=-1), np.pad(values, ((0, 0), (0, 1)))


def _right(grades):
    return [np.flatnonzero(row) for row in grades]


def _signs(rng, num_rows):
    """Rows of +-1 times powers of two: all similarities are exact, and often level."""
    signs = rng.choice([-1.0, 1.0], (num_rows, 4))
    return (signs * rng.choice([0.5, 1.0, 2.0], (num_rows, 1))).astype(np.float32)


def _correction(rng, num_terms, kind):
    """Biases in multiples of 1/4: scores are exact, so ties are too."""
    bias = jnp.asarray(rng.integers(-8, 8, (num_terms, NUM_GALLERY)) / 4, jnp.float32)
    active = rng.integers(0, 5, bias.shape) / 4
    if kind == "always":
        return dbn.Correction(bias)
    return dbn.Correction(bias, jnp.asarray(active if kind == "soft" else active < 0.5))


# --- of scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", CUTS)
@settings(max_examples=15)
@given(st.sampled_from(FORMS), st.booleans(), SEEDS)
def test_gain_of_scores_matches_reference(k, form, masked, seed):
    rng = np.random.default_rng(seed)
    scores, grades = _scores(rng), _grades(rng)
    where = rng.random(SHAPE) < 0.7 if masked else None
    actual = ndcg(scores, _in_form(rng, grades, form), k, where=where)
    expected = reference.normalized_discounted_cumulative_gain(scores, grades, k, where)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_all_measures_are_expectations_over_all_orders_of_the_tied(k):
    """By all 24 orders of four level items, each as scores without ties."""
    scores, grades = np.array([[1.0, 2.0, 1.0, 1.0, 1.0]], np.float32), np.array([[2, 0, 1, 0, 0]])
    right = grades > 0
    orders = []
    for order in itertools.permutations([0, 2, 3, 4]):
        distinct = scores.copy()
        distinct[0, list(order)] += np.arange(4, dtype=np.float32) / 8
        orders.append([ndcg(distinct, grades, k), *_both(distinct, right, k)])
    actual = [ndcg(scores, grades, k), *_both(scores, right, k)]
    np.testing.assert_allclose(actual, np.mean(orders, axis=0), rtol=1e-6)


def _both(scores, right, k):
    return metrics.precision_at(scores, right, k), metrics.success_at(scores, right, k)


@pytest.mark.parametrize("k", [1, 4, 20])
@settings(max_examples=15)
@given(st.booleans(), SEEDS)
def test_precision_and_success_match_reference(k, masked, seed):
    rng = np.random.default_rng(seed)
    scores, grades = _scores(rng), _grades(rng)
    where = rng.random(SHAPE) < 0.7 if masked else None
    for name in ("precision_at", "success_at"):
        actual = getattr(metrics, name)(scores, grades > 0, k, where=where)
        expected = getattr(reference, name)(scores, _right(grades), k, where)
        np.testing.assert_allclose(actual, expected, rtol=1e-6, err_msg=name)


def test_success_without_ties_is_recall():
    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=(40, 12)).astype(np.float32), rng.integers(-1, 12, (40, 3))
    ranks = metrics.ranks(scores, relevant)
    for k in (1, 3, 12):
        assert metrics.success_at(scores, relevant, k) == metrics.recall_at(ranks, k)


def test_constant_scores_gain_and_succeed_as_chance_does():
    scores, relevant = np.zeros((3, 5000), np.float32), np.tile(np.arange(30), (3, 1))
    np.testing.assert_allclose(metrics.precision_at(scores, relevant, 7), 30 / 5000, rtol=1e-6)
    missed = np.prod((4970 - np.arange(7)) / (5000 - np.arange(7)))
    np.testing.assert_allclose(metrics.success_at(scores, relevant, 7), 1 - missed, rtol=1e-5)
    grades = np.zeros((3, 5000))
    grades[:, 17] = 5
    expected = (1 / np.log2(2 + np.arange(5000))).mean()
    np.testing.assert_allclose(ndcg(scores, grades), expected, rtol=1e-6)
    assert metrics.success_at(scores, relevant, 4971) == 1  # fewer are wrong


def test_gain_of_excluded_items():
    rng = np.random.default_rng(3)
    scores, grades, exclude = _scores(rng), _grades(rng), rng.integers(-1, NUM_GALLERY, (6, 2))
    where = np.ones(SHAPE, bool)
    for query, rows in enumerate(exclude):
        where[query, rows[rows >= 0]] = False
    expected = reference.normalized_discounted_cumulative_gain(scores, grades, 3, where)
    np.testing.assert_allclose(ndcg(scores, grades, 3, exclude=exclude), expected, rtol=1e-6)


def test_leading_axes_are_batch_and_share_grades():
    rng = np.random.default_rng(4)
    scores, grades = _scores(rng, (3, *SHAPE)), _grades(rng, (3, *SHAPE))
    expected = [ndcg(*pair, 3) for pair in zip(scores, grades, strict=True)]
    np.testing.assert_array_equal(ndcg(scores, grades, 3), expected)
    shared = [ndcg(one, grades[0], 3) for one in scores]
    for form in FORMS:
        np.testing.assert_array_equal(ndcg(scores, _in_form(rng, grades[0], form), 3), shared)


def test_bool_grades_are_0_and_1_and_scale_is_nothing():
    rng = np.random.default_rng(5)
    scores, grades = _scores(rng), _grades(rng)
    assert ndcg(scores, grades > 0) == ndcg(scores, (grades > 0).astype(int))
    expected = ndcg(scores, grades)
    for scale in (2.0**-120, 2.0**120):  # sums of which float32 does not hold
        np.testing.assert_allclose(ndcg(scores, grades * scale), expected, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-37, 2e37, 1e38])
def test_grades_of_any_size_gain(factor):
    scores, grades = np.array([[0.9, 0.8, 0.1]], np.float32), np.array([[0, 3, 2]], np.float32)
    found = ndcg(scores, grades * np.float32(factor))
    expected = reference.normalized_discounted_cumulative_gain(scores, grades)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_discounts_of_a_long_gallery_are_not_rounded_away():
    """Differences of float32 sums would be off by 4 % here."""
    num_gallery = 2**19
    scores = -np.arange(num_gallery, dtype=np.float32)[None]
    lists = np.array([[num_gallery - 1]]), np.array([[1]])
    expected = 1 / np.log2(1 + num_gallery)
    np.testing.assert_allclose(ndcg(scores, lists), expected, rtol=1e-6)


def test_gain_keeps_float64(x64):
    scores = np.array([[1.0, 1.0 + 1e-12, 0.0]])
    actual = ndcg(scores, [[1.0, 0.0, 0.0]])
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, 1 / np.log2(3), rtol=1e-15)  # level in float32
    rng = np.random.default_rng(6)
    scores, grades = _scores(rng).astype(float), _grades(rng)
    expected = reference.normalized_discounted_cumulative_gain(scores, grades, 4)
    np.testing.assert_allclose(ndcg(scores, grades, 4), expected, rtol=1e-14)


# --- of a search, and trec_eval ------------------------------------------------------------------


def _trec_eval(found, grades, k):
    """`ndcg_cut`, `P` and `success` of trec_eval, over the queries that have a right item."""
    values = []
    for places, row in zip(found, np.asarray(grades, np.float64), strict=True):
        gained = [row[item] if item >= 0 else 0 for item in places[:k]]
        gained, best = (np.array(part[:k]) for part in (gained, sorted(row)[::-1]))
        discounts = [1 / np.log2(np.arange(2, 2 + len(part))) for part in (gained, best)]
        if row.any():
            gain, ideal = gained @ discounts[0], best @ discounts[1]
            values.append((gain / ideal, (gained > 0).sum() / k, (gained > 0).any()))
    return np.mean(values, axis=0)


def _measured(found, graded, right, k):
    return (
        ndcg(found, graded, k),
        metrics.precision_at(found, right, k),
        metrics.success_at(found, right, k),
    )


@pytest.mark.slow
@settings(max_examples=20)
@given(st.sampled_from(FORMS), SEEDS)
def test_measures_of_a_search_equal_trec_eval(form, seed):
    rng = np.random.default_rng(seed)
    scores, grades = rng.integers(0, 4, SHAPE).astype(np.float32), _grades(rng)
    found = dbn.top_k(scores, 5, where=rng.random(SHAPE) < 0.6)  # some places are empty
    graded = _in_form(rng, grades, form)
    right = np.where(grades > 0, np.arange(NUM_GALLERY), -1)
    for k in (1, 3, 5):
        expected = _trec_eval(np.asarray(found.indices), grades, k)
        np.testing.assert_allclose(_measured(found, graded, right, k), expected, rtol=1e-6)
    assert ndcg(found, graded) == ndcg(found, graded, 5)
    np.testing.assert_array_equal(
        _measured(found, graded, grades > 0, 3), _measured(found, graded, right, 3)
    )


def test_measures_without_ties_equal_trec_eval():
    rng = np.random.default_rng(7)
    scores = rng.permuted(np.tile(np.arange(40, dtype=np.float32), (20, 1)), axis=1)
    grades = _grades(rng, (20, 40))
    for k in (1, 5, 10, 40):
        expected = _trec_eval(np.argsort(-scores, axis=1), grades, k)
        np.testing.assert_allclose(_measured(scores, grades, grades > 0, k), expected, rtol=1e-6)


def test_measures_equal_those_of_pytrec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(8)
    scores = rng.permuted(np.tile(np.arange(40, dtype=np.float32), (20, 1)), axis=1)
    grades = _grades(rng, (20, 40))
    # Queries that have no right item are not judged: trec_eval would count them as 0.
    qrels = {
        f"q{query}": {f"d{item}": int(grade) for item, grade in enumerate(row)}
        for query, row in enumerate(grades)
        if row.any()
    }
    run = {
        f"q{query}": {f"d{item}": float(score) for item, score in enumerate(row)}
        for query, row in enumerate(scores)
    }
    names = ("ndcg_cut_{}", "P_{}", "success_{}")
    cuts = (1, 5, 10)
    evaluator = pytrec_eval.RelevanceEvaluator(
        qrels, {"ndcg_cut.1,5,10", "P.1,5,10", "success.1,5,10"}
    )
    by_query = evaluator.evaluate(run).values()
    for k in cuts:
        expected = [np.mean([one[name.format(k)] for one in by_query]) for name in names]
        found = dbn.top_k(scores, k)
        for ranked in (scores, found):
            actual = _measured(ranked, grades, grades > 0, k)
            np.testing.assert_allclose(actual, expected, rtol=1e-6)


# --- streamed ------------------------------------------------------------------------------------


def _check_stream(rng, correction=None, form="csr", k=None, **options):
    queries, gallery = _signs(rng, NUM_QUERIES), _signs(rng, NUM_GALLERY)
    grades = _grades(rng)
    scores = dbn.dot_product(queries, gallery)
    if correction is not None:
        scores = dbn.apply_correction(scores, correction)
    actual = stream_ndcg(queries, gallery, _in_form(rng, grades, form), correction, k=k, **options)
    expected = reference.normalized_discounted_cumulative_gain(scores, grades, k)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("k", [None, 3])
@settings(max_examples=10)
@given(st.sampled_from(FORMS), SEEDS)
def test_streamed_gain_matches_reference(k, form, seed):
    _check_stream(np.random.default_rng(seed), form=form, k=k, chunk_size=4)


@pytest.mark.parametrize("kind", slow_but(["hard"], ["always", "hard", "soft"]))
@settings(max_examples=5)
@given(SEEDS)
def test_streamed_gain_of_corrected_scores(kind, seed):
    rng = np.random.default_rng(seed)
    _check_stream(rng, _correction(rng, 2, kind), k=4)


@pytest.mark.slow
def test_streamed_gain_of_what_is_seen():
    rng = np.random.default_rng(9)
    queries, gallery = _signs(rng, NUM_QUERIES), _signs(rng, NUM_GALLERY)
    grades, correction = _grades(rng), _correction(rng, 2, "hard")
    exclude = np.array([[-1, 2], [3, 3], [4, 5], [0, -1], [8, 1], [2, 7]])
    kept = np.arange(NUM_GALLERY) != 6
    where = np.tile(kept, (NUM_QUERIES, 1))
    for query, rows in enumerate(exclude):
        where[query, rows[rows >= 0]] = False
    options = {"exclude": exclude, "where": kept}
    similarities = dbn.dot_product(queries, gallery)
    gates = dbn.gates(similarities, correction, where=where)
    scores = dbn.apply_correction(similarities, correction, gates=gates)
    graded = _in_form(rng, grades, "csr")
    expected = reference.normalized_discounted_cumulative_gain(scores, grades, 4, where)
    mesh = jax.make_mesh((2, 2), ("bank", "gallery"))
    for more in ({}, {"mesh": mesh}, {"gates": gates}):
        actual = stream_ndcg(queries, gallery, graded, correction, k=4, **options, **more)
        np.testing.assert_allclose(actual, expected, rtol=1e-6, err_msg=str(more))


def test_copies_of_a_graded_item_are_level_over_several_tiles():
    rng = np.random.default_rng(10)
    num_gallery = streaming.COLUMNS + 37  # the second tile overlaps the first
    queries, kinds = rng.normal(size=(3, 24)), rng.normal(size=(5, 24))
    kind = rng.integers(0, 5, num_gallery)
    queries, gallery = queries.astype(np.float32), kinds[kind].astype(np.float32)
    grades = np.zeros((3, num_gallery))
    grades[np.repeat(np.arange(3), 3), rng.choice(num_gallery, 9, replace=False)] = 2
    scores = (queries.astype(float) @ kinds.T)[:, kind]
    expected = reference.normalized_discounted_cumulative_gain(scores, grades)
    np.testing.assert_allclose(stream_ndcg(queries, gallery, grades), expected, rtol=1e-6)


def test_streaming_holds_no_queries_by_gallery():
    sizes = {"queries": (4096, 4), "gallery": (65536, 4)}
    queries, gallery = (jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes.values())
    rows, grades = (jax.ShapeDtypeStruct((4096, 2), dtype) for dtype in (jnp.int32, jnp.float32))
    program = jax.jit(lambda q, g, *lists: stream_ndcg(q, g, lists, k=10, chunk_size=256))
    held = program.lower(queries, gallery, rows, grades).compile().memory_analysis()
    assert held.temp_size_in_bytes < 4096 * 65536 // 8  # a bit for each pair


# --- what holds of all ---------------------------------------------------------------------------


def test_nothing_to_gain_is_left_out():
    rng = np.random.default_rng(11)
    queries, gallery = _signs(rng, NUM_QUERIES), _signs(rng, NUM_GALLERY)
    scores, none = dbn.dot_product(queries, gallery), np.zeros(SHAPE)
    some = none.copy()
    some[2, 3] = 1
    found = dbn.top_k(scores, NUM_GALLERY)
    with jax.debug_nans(True):
        for value in (ndcg(scores, some), ndcg(found, some), stream_ndcg(queries, gallery, some)):
            assert 0 < value <= 1
        assert ndcg(scores[2:3], some[2:3]) == ndcg(scores, some)
    for value in (ndcg(scores, none), ndcg(found, none), stream_ndcg(queries, gallery, none)):
        assert np.isnan(value)
    unanswered = np.full(NUM_QUERIES, -1)
    for measure, ranked in itertools.product(
        (metrics.precision_at, metrics.success_at), (scores, found)
    ):
        assert np.isnan(measure(ranked, unanswered, 2))


@pytest.mark.slow
def test_jit_and_vmap_equal_a_loop():
    rng = np.random.default_rng(12)
    scores, grades = _scores(rng, (3, *SHAPE)), _grades(rng, (3, *SHAPE))
    csr = [_in_form(rng, (one > 0) * np.eye(*SHAPE, 1, int), "csr") for one in grades]
    csr = [(indptr, rows[:4], values[:4]) for indptr, rows, values in csr]
    csr = [(np.minimum(indptr, 4), *rest) for indptr, *rest in csr]
    lists = [_in_form(rng, one, "lists") for one in grades]
    over = jax.jit(jax.vmap(functools.partial(ndcg, k=3)))
    for forms in (list(grades), lists, csr):
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *forms)
        expected = [ndcg(*pair, k=3) for pair in zip(scores, forms, strict=True)]
        np.testing.assert_allclose(over(scores, stacked), expected, rtol=1e-6)
    found = dbn.top_k(np.nan_to_num(scores), 4)
    found = [jax.tree.map(lambda part, place=place: part[place], found) for place in range(3)]
    of_search = jax.jit(lambda result, lists: ndcg(result, lists, 3))
    embeddings = [(_signs(rng, NUM_QUERIES), _signs(rng, NUM_GALLERY)) for _ in range(3)]
    streamed = jax.jit(lambda queries, gallery, lists: stream_ndcg(queries, gallery, lists, k=3))
    for result, pair, graded in zip(found, embeddings, lists, strict=True):
        np.testing.assert_allclose(of_search(result, graded), ndcg(result, graded, 3), rtol=1e-6)
        expected = stream_ndcg(*pair, graded, k=3)
        np.testing.assert_allclose(streamed(*pair, graded), expected, rtol=1e-6)
    for measure in (metrics.precision_at, metrics.success_at):
        actual = jax.jit(functools.partial(measure, k=3))(scores[0], grades[0] > 0)
        np.testing.assert_allclose(actual, measure(scores[0], grades[0] > 0, 3), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0])
def test_inside_jit_a_bad_grade_counts_as_0(bad):
    scores, grades = np.array([[3.0, 2.0, 1.0]], np.float32), np.array([[bad, 1.0, 2.0]], "f4")
    expected = ndcg(scores, np.array([[0.0, 1.0, 2.0]]))
    lists = np.arange(3)[None], grades
    found = dbn.top_k(scores, 3)
    with jax.debug_nans(not np.isnan(bad)):
        assert jax.jit(ndcg)(scores, grades) == expected
        assert jax.jit(ndcg)(scores, lists) == expected
        assert jax.jit(ndcg)(found, lists) == expected
        assert jax.jit(stream_ndcg)(np.ones((1, 1), "f4"), scores.T, lists) == expected


def test_inside_jit_nan_scores_rank_below_every_number():
    scores, grades = np.array([[np.nan, -1e38, 0.5]], np.float32), np.array([[1, 0, 0]])
    np.testing.assert_allclose(jax.jit(ndcg)(scores, grades), 1 / np.log2(4), rtol=1e-6)
    lists, one = (np.array([[0]]), np.array([[1]])), np.ones((1, 1), np.float32)
    np.testing.assert_allclose(jax.jit(stream_ndcg)(one, scores.T, lists), 1 / 2, rtol=1e-6)


# --- errors --------------------------------------------------------------------------------------

SCORES, EYE = np.eye(2, 3, dtype=np.float32), np.eye(3, dtype=np.float32)
CSR = [0, 1, 2], [0, 1], [1.0, 2.0]
FOUND = dbn.top_k(SCORES, 2)
BAD_GRADES = [
    (ValueError, [[0, 1, np.nan]] * 2, ("`grades`", "finite", "nan", "[0, 2]")),
    (ValueError, [[0, 1, np.inf]] * 2, ("`grades`", "finite", "inf")),
    (ValueError, [[0, 1, -1]] * 2, ("`grades`", "negative", "-1")),
    (ValueError, [[0, 1e-50, 1]] * 2, ("`grades`", "0 or at least")),
    (ValueError, [[0, 1e300, 1]] * 2, ("`grades`", "range of float32")),
    (TypeError, [["a", "b", "c"]] * 2, ("`grades`", "numeric")),
    (TypeError, [[1j, 0, 0]] * 2, ("`grades`", "real numbers", "complex")),
    (ValueError, ([0, 1, 2], [0, 1], [1.0]), ("`grades[2]`", "(2,)", "(1,)")),
    (ValueError, ([0, 1, 2], [0, 1], [1.0, -2.0]), ("`grades[2]`", "negative", "-2")),
    (ValueError, ([0, 1, 2], [0, 1], [1.0, np.nan]), ("`grades[2]`", "finite", "[1]")),
    (ValueError, ([0, 1, 2], [0, -1], [1.0, 2.0]), ("`grades[1] (indices)`", "-1")),
    (ValueError, ([0, 2, 2], [1, 1], [1.0, 2.0]), ("`grades`", "row 1 repeated for query 0")),
    (ValueError, ([0, 2, 2], [1, 1], [0, 0]), ("`grades`", "row 1 repeated for query 0")),
    (ValueError, ([0, 2, 1], [0], [1.0]), ("`grades[0] (indptr)`", "0 to 2")),
    (ValueError, ([0, 1], [0], [1.0]), ("`grades[0]`", "num_queries + 1 = 3", "got 2")),
    (TypeError, ([0, 1, 2], [0.0, 1.0], [1.0, 1.0]), ("`grades[1] (indices)`", "integers")),
    (ValueError, ([0],), ("`grades`", "1 parts")),
    (ValueError, ([0, 1, 2], [0, 1]), ("`grades[0] (indices)`", "2 axes")),
    (ValueError, ([[0], [1]], [[1.0]]), ("`grades`", "2 queries", "(2, 1)", "(1, 1)")),
    (ValueError, ([[0]], [[1.0]]), ("`grades`", "2 queries", "(1, 1)")),
    (ValueError, ([[0, 0], [1, 2]], np.ones((2, 2))), ("`grades`", "row 0 repeated for query 0")),
    (ValueError, np.ones((3, 3)), ("`grades`", "(2, 3)", "(3, 3)")),
]
OUT_OF_RANGE = [
    (ValueError, ([0, 1, 2], [0, 3], [1.0, 2.0]), ("`grades[1] (indices)`", "from 0 to 3")),
    (ValueError, ([[3], [0]], np.ones((2, 1))), ("`grades[0] (indices)`", "from 0 to 3")),
]
K = [
    (ValueError, {"k": 0}, ("`k`", "at least 1", "got 0")),
    (TypeError, {"k": 2.5}, ("`k`", "integer", "2.5")),
]
MORE = (ValueError, {"k": 3}, ("`k`", "at most 2", "SearchResult", "got 3"))
WHERE = (ValueError, {"where": SCORES > 0}, ("`where`", "None for a SearchResult"))
NAN = (ValueError, {"scores": SCORES * np.nan}, ("`scores`", "not hold NaN"))
OF_SCORES = {"scores": SCORES, "grades": CSR}
OF_FOUND = {"scores": FOUND, "grades": CSR}
OF_ROWS = {"queries": SCORES, "gallery": EYE, "grades": CSR}
RIGHT = {"relevant": [0, 1], "k": 1}


def _found(indices):
    return dbn.SearchResult(FOUND.scores, np.array(indices))


BAD_FOUND = [
    (ValueError, {"scores": _found([[0, 0], [1, 2]])}, ("indices", "row 0 repeated for query 0")),
    (ValueError, {"scores": _found([[0, -2], [1, 2]])}, ("indices", "-2")),
    (ValueError, {"scores": _found([0, 1])}, ("`scores.indices`", "2 axes")),
    (TypeError, {"scores": _found([[0.0, 1], [1, 2]])}, ("`scores.indices`", "integers")),
    MORE,
    WHERE,
]
LISTS = "two arrays [num_queries, most]"
BAD = [
    (function, good | changed, error, words)
    for function, good, cases in (
        (ndcg, OF_SCORES, [*K, NAN]),
        (ndcg, OF_FOUND, [*K, *BAD_FOUND]),
        (stream_ndcg, OF_ROWS, K),
        *((metrics.precision_at, {"scores": scores, **RIGHT}, K) for scores in (SCORES, FOUND)),
        *((metrics.success_at, {"scores": scores, **RIGHT}, K) for scores in (SCORES, FOUND)),
        (metrics.precision_at, {"scores": SCORES, **RIGHT}, [NAN]),
        (metrics.success_at, {"scores": FOUND, **RIGHT}, BAD_FOUND),
        *(
            (function, good, [(error, {"grades": grades}, words) for error, grades, words in cases])
            for function, good, cases in (
                (ndcg, OF_SCORES, BAD_GRADES + OUT_OF_RANGE),
                (ndcg, OF_FOUND, BAD_GRADES[:-1]),
                (stream_ndcg, OF_ROWS, BAD_GRADES + OUT_OF_RANGE),
            )
        ),
        (
            jax.jit(functools.partial(ndcg, FOUND)),
            {"grades": CSR},
            [(TypeError, {}, ("`grades`", LISTS))],
        ),
        (jax.jit(stream_ndcg), OF_ROWS, [(TypeError, {}, ("`grades`", LISTS))]),
        (
            ndcg,
            OF_FOUND,
            [(ValueError, {"grades": SCORES[:, :1]}, ("`scores.indices`", "between -1"))],
        ),
    )
    for error, changed, words in cases
]


@pytest.mark.parametrize(("function", "arguments", "error", "words"), BAD)
def test_bad_arguments_are_refused(function, arguments, error, words):
    with pytest.raises(error) as caught:
        function(**arguments)
    for word in words:
        assert word in str(caught.value)
