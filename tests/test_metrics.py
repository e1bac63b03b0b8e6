"""Ranks and retrieval numbers against the reference, in every form of right items."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import dbnorm_jax as dbn
from dbnorm_jax._src import streaming

metrics = dbn.metrics
SEEDS = st.integers(0, 2**31)
# Few shapes: each one compiles anew.
SHAPES = [(5, 7), (8, 3), (1, 6)]
FORMS = ["padded", "bool", "csr"]
TIES = ["average", "min", "max"]
NUM_QUERIES, NUM_GALLERY = 10, 9
NORMALIZERS = [f"{kind}inverted_softmax" for kind in ("", "dynamic_", "dual_", "dual_dynamic_")]
SIMILARITIES = [dbn.dot_product, dbn.cosine_similarity, dbn.negative_squared_euclidean]
NUMBERS = [
    *[("recall_at", 1), ("recall_at", 5), ("median_rank",), ("mean_rank",)],
    *[("mean_reciprocal_rank",), ("geometric_mean_recall",), ("geometric_mean_recall", (2, 3))],
]
every_number = pytest.mark.parametrize("number", NUMBERS, ids=str)
matrix_functions = pytest.mark.parametrize(
    "function", [metrics.ranks, metrics.mean_average_precision]
)


def _scores(rng, shape):
    """Few levels, so that ties are common, and exact in float32."""
    scores = rng.integers(-3, 4, shape) / 64
    infinite = np.where(rng.random(shape) < 0.5, np.inf, -np.inf)
    return np.where(rng.random(shape) < 0.2, infinite, scores).astype(np.float32)


def _right(rng, shape):
    """A bool matrix of a fixed number of right pairs: some queries get none, some several."""
    matrix = np.zeros(shape[0] * shape[1], bool)
    matrix[rng.permutation(matrix.size)[: shape[0] + 1]] = True
    return matrix.reshape(shape)


def _as_form(rng, matrix, form):
    if form == "bool":
        return matrix
    if form == "csr":
        return np.concatenate([[0], matrix.sum(axis=1).cumsum()]), np.nonzero(matrix)[1]
    items = np.where(matrix, np.arange(matrix.shape[1])[None], -1)
    return rng.permuted(items, axis=1)  # an empty place may stand anywhere


def _lists(matrix):
    return [np.flatnonzero(row) for row in matrix]


def _signs(rng, num_rows):
    """Rows of +-1 times powers of two: all three similarities are exact, and often level."""
    signs = rng.choice([-1.0, 1.0], (num_rows, 4))
    return (signs * rng.choice([0.5, 1.0, 2.0], (num_rows, 1))).astype(np.float32)


def _normalize(name, statistics):
    return getattr(dbn, name)(*statistics[: 1 + name.startswith("dual")])


def _correction(rng, kind, num_gallery=NUM_GALLERY):
    """A correction with biases in multiples of 1/64: scores are exact, so ties are too."""
    if kind is None:
        return None
    if kind in NORMALIZERS:
        banks = rng.normal(size=(2, 6, num_gallery)).astype(np.float32)
        correction = _normalize(kind, [dbn.bank_statistics(bank, beta=3.0) for bank in banks])
        return dataclasses.replace(correction, bias=jnp.round(correction.bias * 64) / 64)
    bias = jnp.asarray(rng.integers(-64, 64, (2 if kind == "soft" else 3, num_gallery)) / 64)
    active = rng.integers(0, 5, bias.shape) / 4
    return dbn.Correction(bias, jnp.asarray(active if kind == "soft" else active < 0.5))


def _corrected(similarities, correction):
    """s(q, g) - sum_t gate_t(q) bias_t(g) in float64, soft gates too."""
    if correction is None:
        return similarities
    nearest = np.argmax(similarities, axis=1)
    scores = similarities.copy()
    for term, bias in enumerate(np.asarray(correction.bias, np.float64)):
        gate = 1.0 if correction.active is None else np.asarray(correction.active)[term, nearest]
        scores -= np.broadcast_to(gate, nearest.shape)[:, None] * bias
    return scores


def _check_stream(rng, correction, similarity_fn, chunk_size, num_gallery=NUM_GALLERY):
    queries, gallery = _signs(rng, NUM_QUERIES), _signs(rng, num_gallery)
    matrix = _right(rng, (NUM_QUERIES, num_gallery))
    relevant = _as_form(rng, matrix, "padded")
    options = {"similarity_fn": similarity_fn, "chunk_size": chunk_size}
    streamed = metrics.stream_ranks(queries, gallery, relevant, correction, **options)
    scores = similarity_fn(queries, gallery)
    if correction is not None:
        scores = dbn.apply_correction(scores, correction)
    np.testing.assert_array_equal(streamed, metrics.ranks(scores, relevant))
    exact = getattr(reference, similarity_fn.__name__)(queries, gallery)
    expected = reference.ranks(_corrected(exact, correction), _lists(matrix))
    np.testing.assert_array_equal(streamed, expected)


# --- ranks ---------------------------------------------------------------------------------------


@given(st.sampled_from(SHAPES), st.sampled_from(FORMS), st.sampled_from(TIES), st.booleans(), SEEDS)
def test_ranks_match_reference(shape, form, ties, masked, seed):
    rng = np.random.default_rng(seed)
    scores, matrix = _scores(rng, shape), _right(rng, shape)
    where = rng.random(shape) < 0.7 if masked else None
    actual = metrics.ranks(scores, _as_form(rng, matrix, form), ties=ties, where=where)
    expected = reference.ranks(scores, _lists(matrix), ties=ties, where=where)
    np.testing.assert_array_equal(actual, expected)


@given(st.sampled_from(SHAPES), SEEDS)
def test_ranks_of_one_right_item_per_query(shape, seed):
    rng = np.random.default_rng(seed)
    scores, relevant = _scores(rng, shape), rng.integers(-1, shape[1], shape[0])
    expected = reference.ranks(scores, [[item] if item >= 0 else [] for item in relevant])
    np.testing.assert_array_equal(metrics.ranks(scores, relevant), expected)


@given(st.sampled_from(SHAPES), SEEDS)
def test_ranks_do_not_depend_on_the_order_of_the_gallery(shape, seed):
    rng = np.random.default_rng(seed)
    scores, matrix, order = _scores(rng, shape), _right(rng, shape), rng.permutation(shape[1])
    np.testing.assert_array_equal(
        metrics.ranks(scores[:, order], matrix[:, order]), metrics.ranks(scores, matrix)
    )


def test_constant_scores_rank_in_the_middle():
    scores, relevant = np.zeros((4, 7), np.float32), np.arange(4)
    ranks = metrics.ranks(scores, relevant)
    np.testing.assert_array_equal(ranks, np.full(4, (1 + 7) / 2))
    assert metrics.recall_at(ranks, 1) == 0
    assert metrics.mean_average_precision(scores, relevant) < 1


@pytest.mark.parametrize("form", FORMS)
def test_ranks_keep_float64(x64, form):
    scores = np.array([[1.0, 1.0 + 1e-12], [0.5, 0.5]])  # level in float32
    ranks = metrics.ranks(scores, _as_form(np.random.default_rng(0), np.eye(2, dtype=bool), form))
    assert ranks.dtype == jnp.float64
    np.testing.assert_array_equal(ranks, [2, 1.5])


def test_bfloat16_scores_give_float32_ranks():
    # 600 level items: their count is no bfloat16 number.
    scores = jnp.zeros((1, 602), jnp.bfloat16)
    ranks = metrics.ranks(scores, jnp.array([0]))
    assert ranks.dtype == jnp.float32
    np.testing.assert_array_equal(ranks, [1 + 601 / 2])


# --- streamed ranks ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, *NORMALIZERS, "soft", "three terms"])
@settings(max_examples=8)
@given(st.sampled_from([1, 7, NUM_QUERIES, 64]), SEEDS)
def test_stream_ranks_equal_ranks_of_corrected_similarities(kind, chunk_size, seed):
    rng = np.random.default_rng(seed)
    _check_stream(rng, _correction(rng, kind), dbn.dot_product, chunk_size)


@pytest.mark.parametrize("similarity_fn", SIMILARITIES)
@settings(max_examples=10)
@given(SEEDS)
def test_stream_ranks_under_each_similarity(similarity_fn, seed):
    rng = np.random.default_rng(seed)
    _check_stream(rng, _correction(rng, NORMALIZERS[-1]), similarity_fn, chunk_size=4)


@pytest.mark.parametrize("kind", [None, "dynamic_inverted_softmax"])
def test_stream_ranks_over_several_gallery_tiles(kind):
    num_gallery = streaming._SEARCH_COLUMNS + 37  # the second tile overlaps the first
    rng = np.random.default_rng(5)
    correction = _correction(rng, kind, num_gallery)
    _check_stream(rng, correction, dbn.dot_product, 64, num_gallery)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_stream_ranks_match_the_formula_of_each_normalizer(name):
    rng = np.random.default_rng(1)
    queries, gallery, *banks = (
        rng.normal(size=(rows, 4)).astype(np.float32) for rows in (40, 30, 12, 12)
    )
    statistics = [dbn.stream_bank_statistics(bank, gallery, beta=2.0) for bank in banks]
    num_banks = 1 + name.startswith("dual")
    products = [reference.dot_product(rows, gallery) for rows in (queries, *banks[:num_banks])]
    options = [2.0] * num_banks + [1] * ("dynamic" in name)
    scores = getattr(reference, name)(*products, *options)
    relevant = rng.integers(0, 30, 40)
    actual = metrics.stream_ranks(queries, gallery, relevant, _normalize(name, statistics))
    np.testing.assert_array_equal(actual, reference.ranks(scores, relevant[:, None]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ties", TIES)
def test_stream_ranks_take_every_form_and_tie_rule(form, ties):
    rng = np.random.default_rng(2)
    queries, gallery = _signs(rng, NUM_QUERIES), _signs(rng, NUM_GALLERY)
    matrix = _right(rng, (NUM_QUERIES, NUM_GALLERY))
    actual = metrics.stream_ranks(queries, gallery, _as_form(rng, matrix, form), ties=ties)
    expected = reference.ranks(queries @ gallery.T, _lists(matrix), ties=ties)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("form", FORMS)
def test_stream_ranks_keep_float64(x64, form):
    relevant = _as_form(np.random.default_rng(0), np.array([[True, False]]), form)
    ranks = metrics.stream_ranks(np.array([[1.0]]), np.array([[1.0], [1.0 + 1e-12]]), relevant)
    assert ranks.dtype == jnp.float64
    np.testing.assert_array_equal(ranks, [2])


def test_stream_ranks_take_bfloat16():
    rng = np.random.default_rng(3)
    queries, gallery = _signs(rng, NUM_QUERIES), _signs(rng, NUM_GALLERY)  # exact in bfloat16
    relevant = rng.integers(0, NUM_GALLERY, NUM_QUERIES)
    halves = [jnp.asarray(array, jnp.bfloat16) for array in (queries, gallery)]
    ranks = metrics.stream_ranks(*halves, relevant)
    assert ranks.dtype == jnp.float32
    np.testing.assert_array_equal(ranks, metrics.stream_ranks(queries, gallery, relevant))


# --- numbers -------------------------------------------------------------------------------------


def _some_ranks(rng, shape=(12,)):
    ranks = rng.integers(2, 26, shape) / 2
    ranks = np.where(rng.random(shape) < 0.2, np.nan, ranks)
    ranks.reshape(-1)[0] = 1.0  # at least one counts
    return ranks.astype(np.float32)


def _number(number, ranks, module=metrics):
    name, *arguments = number
    return getattr(module, name)(ranks, *arguments)


@every_number
@settings(max_examples=15)
@given(st.sampled_from([(12,), (3, 5)]), SEEDS)
def test_numbers_match_reference(number, shape, seed):
    ranks = _some_ranks(np.random.default_rng(seed), shape)
    expected = _number(number, ranks.reshape(-1), reference)
    np.testing.assert_allclose(_number(number, ranks), expected, rtol=1e-6)


@every_number
@pytest.mark.parametrize("count", [0, 3])
def test_numbers_are_nan_when_no_query_counts(number, count):
    assert np.isnan(_number(number, np.full(count, np.nan, np.float32)))


@every_number
def test_numbers_keep_float64(x64, number):
    ranks = _some_ranks(np.random.default_rng(4)).astype(np.float64)
    actual = _number(number, ranks)
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, _number(number, ranks, reference), rtol=1e-14)


@every_number
def test_numbers_of_bfloat16_ranks_are_float32(number):
    actual = _number(number, jnp.array([1, 2, 4], jnp.bfloat16))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, _number(number, [1, 2, 4], reference), rtol=1e-6)


@pytest.mark.parametrize("kind", [int, np.int64, np.float32, jnp.asarray])
def test_recall_takes_any_number_as_cut_off(kind):
    assert metrics.recall_at(np.array([1.0, 3.0, 9.0, 9.0], np.float32), kind(3)) == 2 / 4


def test_geometric_mean_of_a_zero_recall_is_zero():
    assert metrics.geometric_mean_recall(np.array([2.0, 3.0], np.float32)) == 0


@given(st.sampled_from(SHAPES), st.sampled_from(FORMS), SEEDS)
def test_mean_average_precision_matches_reference(shape, form, seed):
    rng = np.random.default_rng(seed)
    scores, matrix = _scores(rng, shape), _right(rng, shape)
    actual = metrics.mean_average_precision(scores, _as_form(rng, matrix, form))
    expected = reference.mean_average_precision(scores, _lists(matrix))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_mean_average_precision_is_nan_when_no_query_counts():
    assert np.isnan(metrics.mean_average_precision(np.zeros((2, 3), np.float32), [-1, -1]))


def test_mean_average_precision_keeps_float64(x64):
    actual = metrics.mean_average_precision(np.array([[1.0, 1.0 + 1e-12, 0.0]]), [0])
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, 1 / 2)  # level in float32, so 1 / 1.5


# --- transforms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@matrix_functions
def test_jit_of_matrix_functions_equals_eager(function, form):
    rng = np.random.default_rng(6)
    scores, relevant = _scores(rng, (5, 7)), _as_form(rng, _right(rng, (5, 7)), form)
    np.testing.assert_array_equal(jax.jit(function)(scores, relevant), function(scores, relevant))


@matrix_functions
def test_vmap_of_matrix_functions_equals_loop(function):
    rng = np.random.default_rng(9)
    scores, matrices = _scores(rng, (3, 5, 7)), np.stack([_right(rng, (5, 7)) for _ in range(3)])
    expected = [function(*pair) for pair in zip(scores, matrices, strict=True)]
    np.testing.assert_array_equal(jax.vmap(function)(scores, matrices), expected)


@every_number
def test_jit_and_vmap_of_numbers_equal_a_loop(number):
    ranks = _some_ranks(np.random.default_rng(8), (3, 5))
    ranks[:, 0] = 1  # each row counts
    expected = [_number(number, row) for row in ranks]
    over = jax.jit(jax.vmap(functools.partial(_number, number)))
    np.testing.assert_allclose(over(ranks), expected, rtol=1e-6)


def test_vmap_and_jit_of_stream_ranks_over_corrections():
    rng = np.random.default_rng(10)
    queries, gallery = _signs(rng, NUM_QUERIES), _signs(rng, NUM_GALLERY)
    relevant = rng.integers(0, NUM_GALLERY, NUM_QUERIES)
    corrections = [_correction(rng, NORMALIZERS[-1]) for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *corrections)
    over = jax.jit(jax.vmap(metrics.stream_ranks, in_axes=(None, None, None, 0)))
    expected = [metrics.stream_ranks(queries, gallery, relevant, one) for one in corrections]
    np.testing.assert_array_equal(over(queries, gallery, relevant, stacked), expected)


@pytest.mark.parametrize(("right", "rank"), [(0, 3), (1, 2), (2, 1)])
def test_inside_jit_nan_ranks_below_every_number(right, rank):
    scores = np.array([[np.nan, -1e38, 0.5]], np.float32)
    assert jax.jit(metrics.ranks)(scores, np.array([right])) == rank
    gallery, queries = scores.reshape(3, 1), np.ones((1, 1), np.float32)
    assert jax.jit(metrics.stream_ranks)(queries, gallery, np.array([right])) == rank
    precision = jax.jit(metrics.mean_average_precision)(scores, np.array([right]))
    np.testing.assert_allclose(precision, 1 / rank, rtol=1e-6)


def test_inputs_are_not_changed():
    rng = np.random.default_rng(11)
    queries, gallery = _signs(rng, 5), _signs(rng, 7)
    scores, relevant, where = queries @ gallery.T, np.array([0, -1, 2, 3, 6]), np.ones((5, 7), bool)
    arrays = [queries, gallery, scores, relevant, where]
    copies = [array.copy() for array in arrays]
    metrics.ranks(scores, relevant, where=where)
    metrics.stream_ranks(queries, gallery, relevant)
    metrics.mean_average_precision(scores, relevant)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- errors --------------------------------------------------------------------------------------

SCORES, EYE, RELEVANT = np.eye(2, 3, dtype=np.float32), np.eye(3, dtype=np.float32), [0, 1]
BAD_SCORES = [
    (ValueError, np.array([[0, np.nan, 0], [0, 0, 0]], np.float32), ("NaN", "[0, 1]")),
    (ValueError, SCORES[0], ("2 axes", "(3,)")),
    (TypeError, np.eye(2, 3, dtype=np.int32), ("floating point", "int32")),
]
BAD_RELEVANT = [
    (ValueError, [0, 3], ("between -1", "2", "from 0 to 3")),
    (ValueError, [-2, 0], ("between -1", "from -2 to 0")),
    (ValueError, [0], ("per query", "expected 2", "(1,)")),
    (ValueError, [[[0]], [[0]]], ("per query", "(2, 1, 1)")),
    (ValueError, np.ones((3, 2), bool), ("bool matrix", "(2, 3)", "(3, 2)")),
    (TypeError, [0.0, 1.0], ("integers", "float")),
    (TypeError, ["a", "b"], ("numeric", "<U1")),
    (ValueError, ([0, 1, 2],), ("(indptr, indices)", "1 parts")),
    (ValueError, ([0, 2], [0, 1]), ("num_queries + 1 = 3", "got 2")),
    (ValueError, ([0, 2, 1], [0, 1]), ("rise", "indices 2", "0 to 1")),
    (ValueError, ([0, 3, 2], [0, 1]), ("offsets", "0 to 3")),
    (ValueError, ([0, 1, 2], [-1, 1]), ("(indices)", "-1 to 1")),
    (ValueError, ([0, 1, 2], 0), ("(indices)", "1 axes", "()")),
]
INTS, OPTIONS = np.ones((2, 3), int), {"similarity_fn": dbn.cosine_similarity}
BAD_RANKS_OPTIONS = [
    (ValueError, {"ties": "mean"}, ("`ties`", "'average'", "'mean'")),
    (ValueError, {"where": np.ones(3, bool)}, ("`where`", "(2, 3)", "(3,)")),
    (TypeError, {"where": INTS}, ("`where`", "bool", "int")),
]
BIAS, BATCHED = jnp.zeros((1, 4)), dbn.Correction(jnp.zeros((1, 1, 3)), None)
BAD_STREAM_ARGUMENTS = [
    (ValueError, {"ties": "mean"}, ("`ties`", "'average'", "'mean'")),
    (ValueError, {"chunk_size": 0}, ("`chunk_size`", "at least 1", "got 0")),
    (ValueError, {"gallery": EYE[:, :2]}, ("`queries`", "`gallery`", "(2, 3)", "(3, 2)")),
    (TypeError, {"gallery": INTS}, ("`gallery`", "floating point", "int")),
    (ValueError, {"queries": SCORES * np.nan}, ("`queries`", "finite", "nan", "[0, 0]")),
    (ValueError, {"queries": 0 * SCORES, **OPTIONS}, ("`queries`", "zero row", "row 0")),
    (TypeError, {"correction": BIAS}, ("`correction`", "Correction")),
    (ValueError, {"correction": dbn.Correction(BIAS, None)}, ("`correction`", "4 gallery", "(3,)")),
    (ValueError, {"correction": BATCHED}, ("`correction`", "[num_terms, num_gallery]", "vmap")),
]


def _assert_raises(error, words, function, *arguments, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    for word in words:
        assert word in str(caught.value)


@matrix_functions
@pytest.mark.parametrize(("error", "scores", "words"), BAD_SCORES)
def test_bad_scores_are_refused(function, error, scores, words):
    _assert_raises(error, ("`scores`", *words), function, scores, RELEVANT)


@pytest.mark.parametrize(("error", "relevant", "words"), BAD_RELEVANT)
def test_bad_right_items_are_refused(error, relevant, words):
    words = ("`relevant", *words)
    _assert_raises(error, words, metrics.ranks, SCORES, relevant)
    _assert_raises(error, words, metrics.mean_average_precision, SCORES, relevant)
    _assert_raises(error, words, metrics.stream_ranks, SCORES, EYE, relevant)


@pytest.mark.parametrize("form", ["bool", "csr"])
def test_stream_ranks_name_the_remedy_for_traced_sets(form):
    relevant = _as_form(None, np.eye(2, 3, dtype=bool), form)
    words = ("`relevant`", "concrete", "padded with -1")
    _assert_raises(TypeError, words, jax.jit(metrics.stream_ranks), SCORES, EYE, relevant)


@pytest.mark.parametrize(("error", "options", "words"), BAD_RANKS_OPTIONS)
def test_bad_options_of_ranks_are_refused(error, options, words):
    _assert_raises(error, words, metrics.ranks, SCORES, RELEVANT, **options)


@pytest.mark.parametrize(("error", "arguments", "words"), BAD_STREAM_ARGUMENTS)
def test_bad_arguments_of_stream_ranks_are_refused(error, arguments, words):
    good = {"queries": SCORES, "gallery": EYE, "relevant": RELEVANT}
    _assert_raises(error, words, metrics.stream_ranks, **good | arguments)


def test_an_empty_gallery_is_refused():
    _assert_raises(ValueError, ("`scores`",), metrics.ranks, np.zeros((2, 0)), [-1, -1])


@every_number
def test_integer_ranks_are_refused(number):
    words = ("`ranks`", "floating point", "int32")
    _assert_raises(TypeError, words, _number, number, np.array([1, 2], np.int32))
