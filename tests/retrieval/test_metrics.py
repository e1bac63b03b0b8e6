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
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax._src.passes import streaming

metrics = dbn.metrics
SEEDS = st.integers(0, 2**31)
# Few shapes: each one compiles anew.
SHAPES = [(5, 7), (8, 3)]
FORMS = ["single", "padded", "bool", "csr"]
TIES = ["average", "harmonic", "min", "max"]
NUM_QUERIES, NUM_GALLERY = 10, 9
NORMALIZERS = [f"{kind}inverted_softmax" for kind in ("", "dynamic_", "dual_", "dual_dynamic_")]
SIMILARITIES = [dbn.dot_product, dbn.cosine_similarity, dbn.negative_squared_euclidean]
NUMBERS = [
    *[("recall_at", 1), ("recall_at", 5), ("median_rank",), ("mean_rank",)],
    *[("mean_reciprocal_rank",), ("geometric_mean_recall",), ("geometric_mean_recall", (2, 3))],
]
every_number = pytest.mark.parametrize("number", NUMBERS, ids=str)


def _scores(rng, shape):
    """Few levels, so that ties are common, and exact in float32."""
    scores = rng.integers(-3, 4, shape) / 64
    infinite = np.where(rng.random(shape) < 0.5, np.inf, -np.inf)
    return np.where(rng.random(shape) < 0.2, infinite, scores).astype(np.float32)


def _relevant(rng, shape, form):
    """Right items in one of the forms, and as lists; some queries have none, some several."""
    num_queries, num_gallery = shape
    places = rng.permutation(num_queries * num_gallery).reshape(shape)
    matrix = places <= num_queries  # a fixed number of pairs
    if form == "single":
        matrix &= matrix.cumsum(axis=1) == 1
    items = np.where(matrix, np.arange(num_gallery)[None], -1)
    relevant = {
        "single": lambda: items.max(axis=1),
        # An empty place may stand anywhere; the shape is not that of the scores.
        "padded": lambda: rng.permuted(np.pad(items, ((0, 0), (0, 1)), constant_values=-1), axis=1),
        "bool": lambda: matrix,
        "csr": lambda: (np.concatenate([[0], matrix.sum(axis=1).cumsum()]), np.nonzero(matrix)[1]),
    }[form]()
    return relevant, [np.flatnonzero(row) for row in matrix]


def _signs(rng, num_rows):
    """Rows of +-1 times powers of two: all three similarities are exact, and often level."""
    signs = rng.choice([-1.0, 1.0], (num_rows, 4))
    return (signs * rng.choice([0.5, 1.0, 2.0], (num_rows, 1))).astype(np.float32)


def _normalize(name, statistics):
    return getattr(dbn, name)(*statistics[: 1 + name.startswith("dual")])


def _correction(rng, kind):
    """A correction with biases in multiples of 1/64: scores are exact, so ties are too."""
    if kind is None:
        return None
    if kind in NORMALIZERS:
        banks = rng.normal(size=(2, 6, NUM_GALLERY)).astype(np.float32)
        correction = _normalize(kind, [dbn.bank_statistics(bank, beta=3.0) for bank in banks])
        return dataclasses.replace(correction, bias=jnp.round(correction.bias * 64) / 64)
    bias = jnp.asarray(rng.integers(-64, 64, (2 if kind == "soft" else 3, NUM_GALLERY)) / 64)
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


def _check_stream(rng, similarity_fn, correction=None, form="padded", **options):
    num_gallery = NUM_GALLERY if correction is None else correction.num_gallery
    queries, gallery = _signs(rng, NUM_QUERIES), _signs(rng, num_gallery)
    relevant, lists = _relevant(rng, (NUM_QUERIES, num_gallery), form)
    streamed = metrics.stream_ranks(
        queries, gallery, relevant, correction, similarity_fn=similarity_fn, **options
    )
    scores = similarity_fn(queries, gallery)
    if correction is not None:
        scores = dbn.apply_correction(scores, correction)
    ties = options.get("ties", "average")
    np.testing.assert_array_equal(streamed, metrics.ranks(scores, relevant, ties=ties))
    exact = getattr(reference, similarity_fn.__name__)(queries, gallery)
    expected = reference.ranks(_corrected(exact, correction), lists, ties=ties)
    np.testing.assert_allclose(streamed, expected, rtol=2e-7)  # thirds are rounded


# --- ranks ---------------------------------------------------------------------------------------


@given(st.sampled_from(SHAPES), st.sampled_from(FORMS), st.sampled_from(TIES), st.booleans(), SEEDS)
def test_ranks_match_reference(shape, form, ties, masked, seed):
    rng = np.random.default_rng(seed)
    scores, (relevant, lists) = _scores(rng, shape), _relevant(rng, shape, form)
    where = rng.random(shape) < 0.7 if masked else None
    actual = metrics.ranks(scores, relevant, ties=ties, where=where)
    expected = reference.ranks(scores, lists, ties=ties, where=where)
    np.testing.assert_allclose(actual, expected, rtol=2e-7)  # thirds are rounded


@given(st.sampled_from(SHAPES), SEEDS)
def test_ranks_do_not_depend_on_the_order_of_the_gallery(shape, seed):
    rng = np.random.default_rng(seed)
    scores, (matrix, _) = _scores(rng, shape), _relevant(rng, shape, "bool")
    order = rng.permutation(shape[1])
    actual = metrics.ranks(scores[:, order], matrix[:, order])
    np.testing.assert_array_equal(actual, metrics.ranks(scores, matrix))


def test_constant_scores_rank_in_the_middle():
    scores, relevant = np.zeros((5, 7), np.float32), np.arange(5)
    ranks = metrics.ranks(scores, relevant)
    np.testing.assert_array_equal(ranks, np.full(5, (1 + 7) / 2))
    assert metrics.recall_at(ranks, 1) == 0
    # Of one right item at a random place: the mean of 1, 1/2, ..., 1/7.
    expected = np.mean(1 / np.arange(1, 8))
    np.testing.assert_allclose(metrics.mean_average_precision(scores, relevant), expected, 1e-6)
    harmonic = metrics.ranks(scores, relevant, ties="harmonic")
    np.testing.assert_allclose(metrics.mean_reciprocal_rank(harmonic), expected, 1e-6)
    # The best of three at random places among seven: (7 + 1) / (3 + 1).
    three = np.tile(np.array([[4, 0, 6]]), (5, 1))
    np.testing.assert_array_equal(metrics.ranks(scores, three), 2)


def test_no_number_is_nan_where_some_queries_are_unanswered():
    scores = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    right = np.array([1, -1, 2])
    with jax.debug_nans(True):
        ranks = metrics.ranks(scores, right)
        assert jnp.isposinf(ranks[1])
        assert (ranks == metrics.stream_ranks(scores, np.eye(5, dtype=np.float32), right)).all()
        for number in NUMBERS:
            assert _number(number, ranks) == _number(number, ranks[::2])
        assert metrics.mean_average_precision(scores, right) > 0


def test_ranks_that_hold_nan_are_refused():
    with pytest.raises(ValueError, match="`ranks` must not hold NaN: queries without a right item"):
        metrics.mean_rank(np.array([1.0, np.nan], np.float32))


def test_no_answers_no_average_precision():
    scores = np.zeros((5, 7), np.float32)
    assert np.isnan(metrics.mean_average_precision(scores, -np.ones(5, int)))  # nothing is right


@pytest.mark.parametrize("form", ["padded", "csr"])
@pytest.mark.parametrize("function", [metrics.ranks, metrics.stream_ranks])
def test_ranks_keep_float64(x64, form, function):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(5, 1)), 1 + 1e-12 * rng.normal(size=(7, 1))
    scores, (relevant, lists) = queries @ gallery.T, _relevant(rng, (5, 7), form)
    ranks = function(*([scores] if function is metrics.ranks else [queries, gallery]), relevant)
    assert ranks.dtype == jnp.float64
    np.testing.assert_array_equal(ranks, reference.ranks(scores, lists))  # all level in float32


def test_ranks_of_bfloat16_are_counted_in_float32():
    rows = jnp.ones((602, 1), jnp.bfloat16)  # all level, and 301.5 is no bfloat16 number
    streamed = metrics.stream_ranks(rows[:1], rows, jnp.array([0]))
    for ranks in (metrics.ranks(rows.T, jnp.array([0])), streamed):
        assert ranks.dtype == jnp.float32
        np.testing.assert_array_equal(ranks, [1 + 601 / 2])


# --- streamed ranks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", slow_but([None, NORMALIZERS[-1], "soft"], [None, *NORMALIZERS, "soft", "three terms"])
)
@settings(max_examples=8)
@given(SEEDS)
def test_stream_ranks_equal_ranks_of_corrected_similarities(kind, seed):
    rng = np.random.default_rng(seed)
    _check_stream(rng, dbn.dot_product, _correction(rng, kind), chunk_size=4)


@pytest.mark.parametrize("chunk_size", [1, 7, NUM_QUERIES, 64])
@settings(max_examples=5)
@given(SEEDS)
def test_stream_ranks_do_not_depend_on_chunk_size(chunk_size, seed):
    rng = np.random.default_rng(seed)
    _check_stream(rng, dbn.dot_product, _correction(rng, NORMALIZERS[-1]), chunk_size=chunk_size)


@pytest.mark.parametrize("similarity_fn", SIMILARITIES)
@settings(max_examples=10)
@given(SEEDS)
def test_stream_ranks_under_each_similarity(similarity_fn, seed):
    rng = np.random.default_rng(seed)
    _check_stream(rng, similarity_fn, _correction(rng, NORMALIZERS[-1]), chunk_size=4)


@pytest.mark.parametrize(
    ("form", "ties"),
    [
        *zip(FORMS, ["average"] * 4, strict=True),
        ("padded", "min"),
        ("csr", "max"),
        ("bool", "harmonic"),
    ],
)
def test_stream_ranks_take_every_form_and_tie_rule(form, ties):
    _check_stream(np.random.default_rng(2), dbn.dot_product, form=form, ties=ties)


def test_stream_ranks_over_several_gallery_tiles():
    rng = np.random.default_rng(5)
    num_gallery = streaming.COLUMNS + 37  # the second tile overlaps the first
    bias = jnp.asarray(rng.integers(-64, 64, (1, num_gallery)) / 64)
    correction = dbn.Correction(bias, jnp.asarray(rng.random(bias.shape) < 0.5))
    _check_stream(rng, dbn.dot_product, correction, form="single")


@pytest.mark.parametrize("name", slow_but(NORMALIZERS[-1:], NORMALIZERS))
def test_stream_ranks_match_the_formula_of_each_normalizer(name):
    rng = np.random.default_rng(1)
    sizes = (40, 4), (30, 4), (12, 4), (12, 4)
    queries, gallery, *banks = (rng.normal(size=size).astype(np.float32) for size in sizes)
    statistics = [dbn.stream_bank_statistics(bank, gallery, beta=2.0) for bank in banks]
    num_banks = 1 + name.startswith("dual")
    products = [reference.dot_product(rows, gallery) for rows in (queries, *banks[:num_banks])]
    options = [2.0] * num_banks + [1] * ("dynamic" in name)
    scores = getattr(reference, name)(*products, *options)
    relevant = rng.integers(0, 30, 40)
    actual = metrics.stream_ranks(queries, gallery, relevant, _normalize(name, statistics))
    np.testing.assert_array_equal(actual, reference.ranks(scores, relevant[:, None]))


# --- numbers -------------------------------------------------------------------------------------


def _some_ranks(rng, shape=(12,)):
    ranks = rng.integers(2, 26, shape) / 2
    ranks = np.where(rng.random(shape) < 0.2, np.inf, ranks)
    ranks.reshape(-1)[0] = rng.choice([1, 12])  # at least one counts; a recall may be 0
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
    assert np.isnan(_number(number, np.full(count, np.inf, np.float32)))


@every_number
@pytest.mark.parametrize(
    ("given_as", "computed_in"), [(jnp.float64, jnp.float64), (jnp.bfloat16, jnp.float32)]
)
def test_numbers_are_computed_in_at_least_float32(x64, number, given_as, computed_in):
    ranks = _some_ranks(np.random.default_rng(4))  # exact in bfloat16
    actual = _number(number, jnp.asarray(ranks, given_as))
    assert actual.dtype == computed_in
    rtol = 10 * jnp.finfo(computed_in).eps
    np.testing.assert_allclose(actual, _number(number, ranks, reference), rtol=rtol)


@pytest.mark.parametrize("kind", [int, np.int64, np.float32, jnp.asarray])
def test_recall_takes_any_number_as_cut_off(kind):
    assert metrics.recall_at(np.array([1.0, 3.0, 9.0, 9.0], np.float32), kind(3)) == 2 / 4


@given(st.sampled_from(SHAPES), st.sampled_from(FORMS), SEEDS)
def test_mean_average_precision_matches_reference(shape, form, seed):
    rng = np.random.default_rng(seed)
    scores, (relevant, lists) = _scores(rng, shape), _relevant(rng, shape, form)
    actual = metrics.mean_average_precision(scores, relevant)
    expected = reference.mean_average_precision(scores, lists)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_mean_average_precision_keeps_float64(x64):
    actual = metrics.mean_average_precision(np.array([[1.0, 1.0 + 1e-12, 0.0]]), [0])
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, 1 / 2)  # level in float32, so 1 / 1.5


@pytest.mark.parametrize("form", ["padded", "csr"])
@pytest.mark.parametrize("function", [metrics.ranks, metrics.mean_average_precision])
def test_jit_and_vmap_of_matrix_functions_equal_a_loop(function, form):
    rng = np.random.default_rng(6)
    scores = _scores(rng, (3, 5, 7))
    relevant = [_relevant(rng, (5, 7), form)[0] for _ in range(3)]
    expected = [function(*pair) for pair in zip(scores, relevant, strict=True)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *relevant)
    np.testing.assert_array_equal(jax.jit(jax.vmap(function))(scores, stacked), expected)


@every_number
def test_jit_and_vmap_of_numbers_equal_a_loop(number):
    ranks = _some_ranks(np.random.default_rng(8), (3, 5))
    ranks[:, 0] = 1  # each row counts
    expected = [_number(number, row) for row in ranks]
    over = jax.jit(jax.vmap(functools.partial(_number, number)))
    np.testing.assert_allclose(over(ranks), expected, rtol=1e-6)


@pytest.mark.slow
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


def test_csr_pairs_without_any_right_item():
    queries, gallery = np.eye(3, dtype=np.float32), np.ones((4, 3), np.float32)
    none = (np.zeros(4, np.int32), np.zeros(0, np.int32))
    assert jnp.isposinf(metrics.ranks(queries @ gallery.T, none)).all()
    assert jnp.isposinf(metrics.stream_ranks(queries, gallery, none)).all()


def test_inputs_are_not_changed():
    rng = np.random.default_rng(11)
    queries, gallery, relevant = _signs(rng, 5), _signs(rng, 7), np.arange(-1, 4)
    arrays = scores, *_ = queries @ gallery.T, queries, gallery, relevant
    copies = [array.copy() for array in arrays]
    metrics.ranks(scores, relevant)
    metrics.stream_ranks(queries, gallery, relevant)
    metrics.mean_average_precision(scores, relevant)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- errors --------------------------------------------------------------------------------------

SCORES, EYE, RELEVANT = np.eye(2, 3, dtype=np.float32), np.eye(3, dtype=np.float32), [0, 1]
EMBEDDINGS = {"queries": SCORES, "gallery": EYE, "relevant": RELEVANT}
INTS, COSINE = np.ones((2, 3), int), {"similarity_fn": dbn.cosine_similarity}
NAN = np.where(np.arange(6).reshape(2, 3) == 1, np.nan, 0)
BIAS, BATCHED = jnp.zeros((1, 4)), dbn.Correction(jnp.zeros((1, 1, 3)), None)
BAD_SCORES = [
    (ValueError, {"scores": NAN}, ("`scores`", "NaN", "[0, 1]")),
    (ValueError, {"scores": SCORES[0]}, ("`scores`", "2 axes", "(3,)")),
    (TypeError, {"scores": INTS}, ("`scores`", "floating point", "int")),
]
BAD_OPTIONS = [
    (ValueError, {"ties": "mean"}, ("`ties`", "'average'", "'mean'")),
    (ValueError, {"where": np.ones(3, bool)}, ("`where`", "(2, 3)", "(3,)")),
    (TypeError, {"where": INTS}, ("`where`", "bool", "int")),
    (ValueError, {"scores": np.zeros((2, 0)), "relevant": [-1, -1]}, ("`scores`",)),
]
MATRIX = (
    "`relevant`",
    "shape of the scores, (2, 3), must be bool",
    ".astype(bool)",
    "column of -1",
)
BAD_RELEVANT = [
    (ValueError, {"relevant": [0, 3]}, ("`relevant`", "between -1", "from 0 to 3")),
    (ValueError, {"relevant": [-2, 0]}, ("`relevant`", "between -1", "from -2 to 0")),
    (ValueError, {"relevant": [0]}, ("`relevant`", "per query", "expected 2", "(1,)")),
    (ValueError, {"relevant": [[[0]], [[0]]]}, ("`relevant`", "per query", "(2, 1, 1)")),
    (ValueError, {"relevant": np.ones((3, 2), bool)}, ("`relevant`", "bool", "(2, 3)", "(3, 2)")),
    (TypeError, {"relevant": [0.0, 1.0]}, ("`relevant`", "integers", "float")),
    (ValueError, {"relevant": [2**32 + 1, 0]}, ("`relevant`", "between -1", f"{2**32 + 1}")),
    (ValueError, {"relevant": ([0, 1, 2], [2**32 + 1, 0])}, ("(indices)", f"{2**32 + 1}")),
    (ValueError, {"relevant": ([0, 2**32 + 1, 2], [0, 1])}, ("(indptr)", f"{2**32 + 1}")),
    *(
        (TypeError, {"relevant": matrix}, MATRIX)
        for matrix in (INTS, INTS.astype("f4"), [[0] * 3] * 2)
    ),
    (TypeError, {"relevant": ["a", "b"]}, ("`relevant`", "numeric", "<U1")),
    (ValueError, {"relevant": ([0, 1, 2],)}, ("`relevant`", "(indptr, indices)", "1 parts")),
    (ValueError, {"relevant": ([0, 2], [0, 1])}, ("(indptr)", "num_queries + 1 = 3", "got 2")),
    (ValueError, {"relevant": ([0, 2, 1], [0, 1])}, ("(indptr)", "rise", "0 to 1")),
    (ValueError, {"relevant": ([0, 3, 2], [0, 1])}, ("(indptr)", "offsets", "0 to 3")),
    (ValueError, {"relevant": ([0, 1, 2], [-1, 1])}, ("(indices)", "-1 to 1")),
    (ValueError, {"relevant": ([0, 1, 2], 0)}, ("(indices)", "1 axes", "()")),
]
BAD_STREAM = [
    (ValueError, {"ties": "mean"}, ("`ties`", "'average'", "'mean'")),
    (ValueError, {"chunk_size": 0}, ("`chunk_size`", "at least 1", "got 0")),
    (ValueError, {"gallery": EYE[:, :2]}, ("`queries`", "`gallery`", "(2, 3)", "(3, 2)")),
    (TypeError, {"gallery": INTS}, ("`gallery`", "floating point", "int")),
    (ValueError, {"queries": NAN}, ("`queries`", "finite", "nan", "[0, 1]")),
    (ValueError, {"queries": 0 * SCORES, **COSINE}, ("`queries`", "zero row", "row 0")),
    (TypeError, {"correction": BIAS}, ("`correction`", "Correction")),
    (ValueError, {"correction": dbn.Correction(BIAS, None)}, ("`correction`", "4 gallery", "(3,)")),
    (ValueError, {"correction": BATCHED}, ("`correction`", "[num_terms, num_gallery]", "vmap")),
]
BAD_RANKS = [(TypeError, {"ranks": np.array([1, 2], np.int32)}, ("`ranks`", "floating", "int32"))]
REMEDY = ("`relevant`", "concrete", "padded with -1")  # for sets inside jit
BAD_TRACED = [(TypeError, {"relevant": sets}, REMEDY) for sets in (INTS > 0, ([0, 1, 2], [0, 1]))]
BAD_TRACED.append((TypeError, {"relevant": INTS}, MATRIX))
BAD = [
    (function, good | arguments, error, words)
    for function, good, cases in (
        (metrics.ranks, {"scores": SCORES, "relevant": RELEVANT}, BAD_SCORES + BAD_OPTIONS),
        (metrics.mean_average_precision, {"relevant": RELEVANT}, BAD_SCORES),
        (metrics.ranks, {"scores": SCORES}, BAD_RELEVANT),
        (metrics.mean_average_precision, {"scores": SCORES}, BAD_RELEVANT),
        (metrics.stream_ranks, EMBEDDINGS, BAD_RELEVANT + BAD_STREAM),
        (jax.jit(metrics.stream_ranks), EMBEDDINGS, BAD_TRACED),
        (jax.jit(metrics.ranks), {"scores": SCORES}, BAD_TRACED[-1:]),
        (jax.jit(metrics.mean_average_precision), {"scores": SCORES}, BAD_TRACED[-1:]),
        (metrics.recall_at, {"k": 1}, BAD_RANKS),
        (metrics.median_rank, {}, BAD_RANKS),
    )
    for error, arguments, words in cases
]


@pytest.mark.parametrize(("function", "arguments", "error", "words"), BAD)
def test_bad_arguments_are_refused(function, arguments, error, words):
    with pytest.raises(error) as caught:
        function(**arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.slow
def test_the_harmonic_rank_is_that_of_one_device():
    rng = np.random.default_rng(1)
    queries, gallery = (rng.integers(-1, 2, (n, 2)).astype(np.float32) for n in (5, 23))
    relevant = rng.integers(0, 23, (5, 3))
    arguments, mesh = (queries, gallery, relevant), jax.make_mesh((2, 2), ("bank", "gallery"))
    expected = metrics.ranks(queries @ gallery.T, relevant, ties="harmonic")
    for ranks in (
        metrics.stream_ranks(*arguments, ties="harmonic", chunk_size=2),
        metrics.stream_ranks(*arguments, ties="harmonic", mesh=mesh),
        dbn.out_of_core.ranks(*arguments, ties="harmonic"),
        jax.jit(functools.partial(metrics.ranks, ties="harmonic"))(queries @ gallery.T, relevant),
    ):
        np.testing.assert_array_equal(ranks, expected)
