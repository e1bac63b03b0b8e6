"""Prepared galleries: what low precision finds is proven, or is searched in full precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax._src.core import checks, low_precision, similarity

RANDOM = np.random.default_rng(0)
NUM_QUERIES, NUM_GALLERY, DIM, K = 40, 300, 64, 5
FUNCTIONS = {
    dbn.dot_product: reference.dot_product,
    dbn.cosine_similarity: reference.cosine_similarity,
    dbn.negative_squared_euclidean: reference.negative_squared_euclidean,
}
certified = partial(dbn.stream_top_k, precision="certified")


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def unit(*shape):
    rows = normal(*shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


QUERIES, GALLERY = unit(NUM_QUERIES, DIM), unit(NUM_GALLERY, DIM)
BIAS = (0.1 * normal(1, NUM_GALLERY)).astype(np.float32)
ACTIVE = RANDOM.random((2, NUM_GALLERY)) < 0.4
GATED = dbn.Correction(jnp.asarray(0.1 * normal(2, NUM_GALLERY)), jnp.asarray(ACTIVE))


def assert_nearest(found, scores, sizes):
    """The k best of exact scores, in order; others only where scores differ by a rounding."""
    expected = np.argsort(-scores, axis=1, kind="stable")[:, : found.indices.shape[1]]
    indices = np.asarray(found.indices)
    assert all(len(set(row)) == len(row) for row in indices.tolist())
    got, best = (np.take_along_axis(scores, places, axis=1) for places in (indices, expected))
    tolerance = 2.0**-22 * DIM**0.5 * np.broadcast_to(sizes, best.shape)
    different = indices != expected
    assert (np.abs(got - best) <= tolerance)[different].all()
    np.testing.assert_allclose(found.scores, best, rtol=0, atol=4 * tolerance.max() + 1e-30)


def exact_scores(queries, gallery, bias, similarity_fn=dbn.dot_product):
    similarities = FUNCTIONS[similarity_fn](queries, gallery)
    return similarities - np.asarray(bias, np.float64).sum(axis=0)


# --- the answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", slow_but([True], [False, True]))
@pytest.mark.parametrize(
    "similarity_fn",
    slow_but(list(FUNCTIONS)[2:], FUNCTIONS),
    ids=lambda function: function.__name__,
)
def test_the_answer_is_that_of_full_precision(similarity_fn, centred):
    """Anisotropic rows, far from the origin: centers matter, and distances cancel."""
    away = np.full(DIM, 0.3, np.float32)
    queries, gallery = QUERIES + away, GALLERY + away
    prepared = dbn.prepare_gallery(
        gallery,
        dbn.Correction(jnp.asarray(BIAS)),
        similarity_fn=similarity_fn,
        query_centre=queries.mean(axis=0) if centred else None,
    )
    found = certified(queries, prepared, K)
    assert_nearest(found, exact_scores(queries, gallery, BIAS, similarity_fn), 7.0)
    proof = dbn.certified_queries(queries, prepared, K, precision="certified")
    assert proof.mean() > 0.5


def test_what_is_appended_keeps_its_values():
    gallery, items = np.eye(3, 4, dtype=np.float32), np.ones((1, 4), np.float32)
    own = dbn.Correction(jnp.zeros((1, 3), jnp.float16), jnp.ones((1, 3), bool))
    new = dbn.Correction(jnp.full((1, 1), 1e6), jnp.full((1, 1), 0.5))
    grown = dbn.prepare_gallery(gallery, own).append(items, new).correction
    np.testing.assert_array_equal(grown.active, [[1, 1, 1, 0.5]])
    np.testing.assert_array_equal(grown.bias, [[0, 0, 0, 1e6]])


def test_a_correction_of_other_items_is_not_appended_and_nothing_is_removed():
    prepared = dbn.prepare_gallery(np.eye(3, dtype=np.float32), dbn.Correction(jnp.zeros((1, 3))))
    with pytest.raises(ValueError, match="has 3 gallery items but `items` has 1 columns"):
        prepared.append(np.ones((1, 3), np.float32), prepared.correction)
    np.testing.assert_array_equal(prepared.remove([]).gallery, prepared.gallery)
    with pytest.raises(TypeError, match="`rows` must hold integers"):
        prepared.remove(np.zeros(0))


def test_a_similarity_is_a_function():
    for similarity_fn in ("cosine", None, 2):
        with pytest.raises(TypeError, match="`similarity_fn` must be a function of rows"):
            dbn.prepare_gallery(np.eye(3, dtype=np.float32), similarity_fn=similarity_fn)


def test_scores_differ_by_less_than_a_rounding_where_another_item_is_found():
    found = certified(QUERIES, dbn.prepare_gallery(GALLERY, dbn.Correction(jnp.asarray(BIAS))), K)
    scores = exact_scores(QUERIES, GALLERY, BIAS)
    best = np.sort(scores, axis=1)[:, ::-1][:, :K]
    assert_nearest(found, scores, np.abs(best))


HUGE = np.float32(3.4e38)  # rounds to infinity in bfloat16
LARGE_BIAS = np.where(RANDOM.random((1, NUM_GALLERY)) < 0.1, np.float32(1e6), BIAS)
WORST = {
    "items all equal": (QUERIES, np.repeat(GALLERY[:1], NUM_GALLERY, axis=0), 0 * BIAS),
    "items in pairs": (QUERIES, np.repeat(GALLERY[: NUM_GALLERY // 2], 2, axis=0), 0 * BIAS),
    "tiny items": (QUERIES, GALLERY * np.float32(1e-20), 0 * BIAS),
    "huge items": (QUERIES, GALLERY * np.float32(1e20), 0 * BIAS),
    "tiny and huge": (
        QUERIES,
        GALLERY * np.where(np.arange(NUM_GALLERY) % 2, 1e20, 1e-20).astype(np.float32)[:, None],
        0 * BIAS,
    ),
    "tiny both": (QUERIES * np.float32(1e-15), GALLERY * np.float32(1e-20), 0 * BIAS),
    "tiny queries, huge items": (QUERIES * np.float32(1e-30), GALLERY * np.float32(1e30), 0 * BIAS),
    "zero items": (QUERIES, GALLERY * (np.arange(NUM_GALLERY) % 2)[:, None].astype("f4"), 0 * BIAS),
    "zero queries": (0 * QUERIES, GALLERY, BIAS),
    "logits": (100 * QUERIES, GALLERY, BIAS),
    "beyond bfloat16": (
        QUERIES,
        np.where(np.arange(NUM_GALLERY)[:, None] == 7, np.eye(1, DIM, dtype="f4") * HUGE, GALLERY),
        0 * BIAS,
    ),
    "sums beyond float32": (1e18 * QUERIES, np.float32(1e20) * GALLERY, 0 * BIAS),
    "biases of 1e6": (QUERIES, GALLERY, LARGE_BIAS),
    "every bias near 1e6": (QUERIES, GALLERY, BIAS + np.float32(1e6)),
}


@pytest.mark.parametrize("case", WORST)
def test_the_worst_cases(case):
    """As precise as a search in float32, whose scores are of the same sizes."""
    queries, gallery, bias = (np.asarray(part, np.float32) for part in WORST[case])
    correction = dbn.Correction(jnp.asarray(bias))
    found = certified(queries, dbn.prepare_gallery(gallery, correction), K)
    with np.errstate(over="ignore"):
        scores = exact_scores(queries, gallery, bias)
        norms = np.linalg.norm(queries.astype(float), axis=1)
        most = np.linalg.norm(gallery.astype(float), axis=1).max()
    if case == "sums beyond float32":
        assert np.abs(scores).max() < 3e38
        assert norms.max() * most > 1e37
    near = np.sort(np.abs(bias[0]))[NUM_GALLERY // 2]  # of the items that are found
    if case == "tiny both":  # products and sums below the smallest normal number count as 0
        np.testing.assert_array_equal(found.indices, dbn.stream_top_k(queries, gallery, K).indices)
    else:
        assert_nearest(found, scores, (norms * most + near)[:, None])
    if case == "items all equal":
        np.testing.assert_array_equal(found.indices, np.tile(np.arange(K), (NUM_QUERIES, 1)))
    if case == "items in pairs":  # ties to the lowest index
        assert (found.indices[:, ::2] % 2 == 0).all()


def test_large_biases_elsewhere_cost_no_proof():
    prepared = dbn.prepare_gallery(GALLERY, dbn.Correction(jnp.asarray(LARGE_BIAS)))
    assert dbn.certified_queries(QUERIES, prepared, K, precision="certified").all()


@pytest.mark.parametrize("k", slow_but([1], [1, NUM_GALLERY - 1, NUM_GALLERY]))
def test_any_number_of_neighbors(k):
    found = certified(QUERIES, dbn.prepare_gallery(GALLERY), k)
    assert_nearest(found, exact_scores(QUERIES, GALLERY, 0 * BIAS), 1.0)


def test_one_item():
    found = certified(QUERIES[:1], dbn.prepare_gallery(GALLERY[:1]), 1)
    np.testing.assert_allclose(found.scores, QUERIES[:1] @ GALLERY[:1].T, rtol=1e-5)
    assert found.indices == 0


@pytest.mark.slow
def test_a_thousand_neighbors_of_many():
    gallery = unit(3000, 16)
    queries = unit(8, 16)
    found = certified(queries, dbn.prepare_gallery(gallery), 1000)
    assert_nearest(found, queries.astype(float) @ gallery.T.astype(float), 1.0)


OPTIONS = {
    "where": {"where": np.arange(NUM_GALLERY) % 3 > 0},
    "few there": {"where": np.arange(NUM_GALLERY) < 20},
    "fewer than k there": {"where": np.arange(NUM_GALLERY) < 3},
    "exclude": {"exclude": np.argsort(-QUERIES @ GALLERY.T)[:, :2]},
    "gates": {"gates": RANDOM.random((NUM_QUERIES, 2)).astype(np.float32)},
    "own gates": {},
}


@pytest.mark.parametrize("name", slow_but(["own gates"], OPTIONS))
def test_options_are_those_of_a_gallery(name):
    prepared = dbn.prepare_gallery(GALLERY, GATED)
    found = certified(QUERIES, prepared, K, **OPTIONS[name])
    expected = dbn.stream_top_k(QUERIES, GALLERY, K, GATED, **OPTIONS[name])
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    proof = dbn.certified_queries(QUERIES, prepared, K, precision="certified", **OPTIONS[name])
    assert proof.all()


@pytest.mark.slow
def test_gates_are_read_from_a_raw_nearest_item_that_is_proven():
    """Of two items less than a rounding of bfloat16 apart one is active."""
    gallery = GALLERY.copy()
    gallery[1] = gallery[0] * np.float32(1 + 2e-4)
    active = np.zeros((1, NUM_GALLERY), bool)
    active[0, 1] = True
    correction = dbn.Correction(jnp.asarray(BIAS), jnp.asarray(active))
    queries = np.repeat(gallery[:1], 3, axis=0)
    found = certified(queries, dbn.prepare_gallery(gallery, correction), K)
    opened = exact_scores(queries, gallery, BIAS)
    assert_nearest(found, opened, 1.0)


@pytest.mark.slow
def test_soft_gates():
    soft = dbn.Correction(GATED.bias, jnp.asarray(RANDOM.random((2, NUM_GALLERY)), jnp.float32))
    found = certified(QUERIES, dbn.prepare_gallery(GALLERY, soft), K)
    expected = dbn.stream_top_k(QUERIES, GALLERY, K, soft)
    np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.mark.parametrize("num_failing", slow_but([170], [1, 30, 170]))
def test_rows_that_are_not_proven_are_searched_again(num_failing):
    """Few of them, many and nearly all: queries near copies of one item, among others."""
    gallery = GALLERY.copy()
    gallery[100:140] = gallery[100]
    queries = unit(180, DIM)
    chosen = RANDOM.permutation(180)[:num_failing]
    queries[chosen] = gallery[100] + 0.01 * queries[chosen]
    prepared = dbn.prepare_gallery(gallery)
    options = {"chunk_size": 128}
    proof = np.asarray(
        dbn.certified_queries(queries, prepared, K, precision="certified", **options)
    )
    assert not proof[chosen].any()
    assert proof.sum() > 0.8 * (180 - num_failing)
    found = certified(queries, prepared, K, **options)
    assert_nearest(found, queries.astype(float) @ gallery.T.astype(float), 1.1)
    expected = np.tile(np.arange(100, 105), (num_failing, 1))  # ties to the lowest index
    np.testing.assert_array_equal(found.indices[chosen], expected)


# --- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.9, 0.99, 1.03, 1.1, 3.0])
def test_rows_just_inside_and_just_outside_the_bound(share):
    """An item misses all that the query's rounding can lose, and the list does not hold it.

    Half of the query's entries lose 2^-8 each. The last item lies along those alone; all others lie
    along the other half, which loses nothing, and have its first score.
    """
    half, num_gallery = DIM // 2, 40
    query = np.repeat(np.array([1 + 2.0**-8, 1.0], np.float32), half)[None]
    along, aside = np.repeat(np.eye(2, dtype=np.float32), half, axis=1)
    gallery = np.repeat(aside[None], num_gallery, axis=0)
    gallery[-1] = along
    missed = 2.0**-8 * half
    bias = np.zeros((1, num_gallery), np.float32)
    bias[0, 0] = -share * missed  # how far the first item is before all others, the last left out
    prepared = dbn.prepare_gallery(gallery, dbn.Correction(jnp.asarray(bias)))
    proof = dbn.certified_queries(query, prepared, 1, precision="certified")
    assert proof[0] == (share > 1)
    found = certified(query, prepared, 1)
    assert found.indices == (0 if share > 1 else num_gallery - 1)
    assert_nearest(found, exact_scores(query, gallery, bias), half)


@pytest.mark.parametrize("similarity_fn", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("centred", [False, True])
def test_the_bound_holds_of_each_product(similarity_fn, centred):
    """Against float64: no similarity is farther from its first score than the bound says."""
    scales = 10.0 ** RANDOM.uniform(-3, 3, (60, 1))
    queries = (scales * RANDOM.normal(size=(60, DIM))).astype(np.float32)
    gallery = (RANDOM.normal(size=(80, DIM)) + 0.5).astype(np.float32)
    center = jnp.asarray(queries.mean(axis=0)) if centred else None
    items = low_precision.low_items(similarity_fn, jnp.asarray(gallery), center)
    rows = low_precision.low_rows(similarity_fn, jnp.asarray(queries), items)
    products = similarity.dot_product(rows.vectors, items.vectors)
    first = products - (0 if items.less is None else items.less[None])
    exact = FUNCTIONS[similarity_fn](queries, gallery)
    # With an exact score as the k-th, and the first score of the same item as the last of a list:
    # were it beyond, the item would have been proven to have no such score.
    beyond = jax.vmap(
        lambda last, kth: low_precision.is_beyond(
            rows, items, last, kth, jnp.float32(0), jnp.float32(np.abs(first).max())
        ),
        in_axes=1,
        out_axes=1,
    )
    kth = jnp.asarray(exact, jnp.float32)
    assert not beyond(first, kth).any()
    # And the bound is no idle one: it is met within a factor.
    sizes = np.abs(exact - np.asarray(rows.rest, np.float64)[:, None]).max(axis=1, keepdims=True)
    far = np.asarray(rows.norm, np.float64)[:, None] * float(items.norm) + 0 * sizes
    assert beyond(first, kth + jnp.asarray(0.05 * far, jnp.float32)).all()


def hostile(dim, seed):
    """Rows and items of bfloat16 whose sums cancel, or lose what is small beside what is large."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(64, dim)) * 2.0 ** random.integers(-12, 12, (64, dim))
    items = random.normal(size=(96, dim)) * 2.0 ** random.integers(-12, 12, (96, dim))
    rows[0], items[0] = 1, 2.0**-13
    rows[0, 0], items[0, 0] = 2.0**8, 2.0**4  # each of the others is below half a last place
    rows[1], items[1] = 1, np.resize([2.0**7, 2.0**-17, -(2.0**7), 2.0**-17], dim)
    rows[2], items[2] = rows[0, ::-1], items[0, ::-1]  # what is large stands last
    rows[3], items[3] = 1.9921875, 1.9921875  # every bit set
    return (jnp.asarray(part, jnp.bfloat16) for part in (rows, items))


@pytest.mark.parametrize("dim", [64, 515])
def test_the_accumulator_loses_no_more_than_the_bound_takes(dim):
    """On this platform: sums of products of bfloat16 are of float32, and no less."""
    rows, items = hostile(dim, seed=dim)
    wide = (np.asarray(part, np.float64) for part in (rows, items))
    given, other = wide
    exact = given @ other.T
    taken = (
        2 * dim * 2.0**-24 * np.outer(*(np.linalg.norm(part, axis=1) for part in (given, other)))
    )
    found = np.asarray(jax.jit(similarity.dot_product)(rows, items), np.float64)
    assert (np.abs(found - exact) <= taken).all()
    # An accumulator in bfloat16 would be found out.
    total = jnp.zeros(exact.shape, jnp.bfloat16)
    for entry in range(dim):
        total = total + rows[:, entry, None] * items[None, :, entry]
    assert (np.abs(np.asarray(total, np.float64) - exact) > taken).any()


def test_what_low_precision_misses_is_not_optimized_away():
    """XLA takes a conversion to bfloat16 and back for none where it may be more precise."""
    items = low_precision.low_items(dbn.dot_product, jnp.full((1, DIM), 1 + 2.0**-8, jnp.float32))
    compiled = jax.jit(partial(low_precision.low_items, dbn.dot_product))(
        jnp.full((1, DIM), 1 + 2.0**-8, jnp.float32)
    )
    for made in (items, compiled):
        assert 2.0**-8 * DIM**0.5 <= made.missed <= 1.01 * 2.0**-8 * DIM**0.5


# --- where it goes -------------------------------------------------------------------------------


def test_inside_jit_nan_is_not_proven_and_ranks_lowest():
    queries, gallery = QUERIES.copy(), GALLERY.copy()
    gallery[3, 0], queries[1, 2] = np.nan, np.nan

    @jax.jit
    def both(queries, gallery):
        prepared = dbn.prepare_gallery(gallery)
        proof = dbn.certified_queries(queries, prepared, K, precision="certified")
        return certified(queries, prepared, K), dbn.stream_top_k(queries, gallery, K), proof

    found, expected, proof = both(queries, gallery)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(np.isfinite(found.scores), np.isfinite(expected.scores))
    assert not proof.any()
    _, _, proof = both(queries, GALLERY)
    assert proof.sum() == NUM_QUERIES - 1


def test_gradients_are_those_of_a_gallery():
    def total(queries, gallery, bias, prepared):
        correction = dbn.Correction(bias)
        if prepared:
            found = certified(queries, dbn.prepare_gallery(gallery, correction), K)
        else:
            found = dbn.stream_top_k(queries, gallery, K, correction)
        return (found.scores * jnp.arange(1.0, K + 1)[None]).sum()

    arguments = (jnp.asarray(QUERIES), jnp.asarray(GALLERY), jnp.asarray(BIAS))
    slopes = [
        jax.jit(jax.grad(partial(total, prepared=prepared), (0, 1, 2)))(*arguments)
        for prepared in (True, False)
    ]
    for ours, theirs in zip(*slopes, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.abs(theirs).max() > 0.1


@pytest.mark.slow
def test_a_batch_of_requests():
    prepared = dbn.prepare_gallery(GALLERY)
    requests = QUERIES.reshape(4, -1, DIM)
    found = jax.vmap(lambda queries: certified(queries, prepared, K))(requests)
    expected = certified(QUERIES, prepared, K)
    np.testing.assert_array_equal(found.indices.reshape(-1, K), expected.indices)


@pytest.mark.parametrize("dtype", slow_but(["bfloat16"], ["bfloat16", "float16", "float64"]))
def test_embeddings_of_other_types(dtype):
    with jax.enable_x64(dtype == "float64"):
        queries, gallery = jnp.asarray(QUERIES, dtype), jnp.asarray(GALLERY, dtype)
        prepared = dbn.prepare_gallery(gallery)
        found, expected = certified(queries, prepared, K), dbn.stream_top_k(queries, gallery, K)
        assert found.scores.dtype == expected.scores.dtype
        np.testing.assert_array_equal(found.indices, expected.indices)
        if dtype == "bfloat16":
            places = [one.unsafe_buffer_pointer() for one in (prepared.low.vectors, gallery)]
            assert places[0] == places[1]  # in memory once


def test_ranks_of_a_prepared_gallery():
    relevant = np.arange(NUM_QUERIES)
    prepared = dbn.prepare_gallery(GALLERY, GATED, similarity_fn=dbn.cosine_similarity)
    options = {"similarity_fn": dbn.cosine_similarity}
    expected = dbn.metrics.stream_ranks(QUERIES, GALLERY, relevant, GATED, **options)
    for given in ({}, options):
        found = dbn.metrics.stream_ranks(QUERIES, prepared, relevant, **given)
        np.testing.assert_array_equal(found, expected)


def test_semantic_search_of_a_prepared_gallery():
    """By the gallery's own similarity, whatever the default is."""
    found = dbn.semantic_search(QUERIES, dbn.prepare_gallery(2 * GALLERY), k=K)
    rows = [[place["corpus_id"] for place in places] for places in found]
    np.testing.assert_array_equal(rows, dbn.stream_top_k(QUERIES, 2 * GALLERY, K).indices)
    assert found[0][0]["score"] == pytest.approx(2 * (QUERIES[0] @ GALLERY.T).max(), rel=1e-5)


def test_any_other_similarity_is_searched_in_full_precision():
    def shifted(rows, columns):
        return rows @ columns.T + 1

    with pytest.warns(UserWarning, match=r"full precision: `similarity_fn` is none of dot_product"):
        prepared = dbn.prepare_gallery(GALLERY, similarity_fn=shifted)
    found = dbn.stream_top_k(QUERIES, prepared, K)
    expected = dbn.stream_top_k(QUERIES, GALLERY, K, similarity_fn=shifted)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert not dbn.certified_queries(QUERIES, prepared, K).any()
    with pytest.raises(ValueError, match=r"`precision` \"certified\" must come with a gallery"):
        certified(QUERIES, prepared, K)


@pytest.mark.parametrize("precision", slow_but([None], [None, "float32"]))
def test_answers_do_not_depend_on_precision(precision):
    prepared = dbn.prepare_gallery(GALLERY, dbn.Correction(jnp.asarray(BIAS)))
    found = dbn.stream_top_k(QUERIES, prepared, K, precision=precision)
    assert_nearest(found, exact_scores(QUERIES, GALLERY, BIAS), 1.0)


def test_values_of_a_prepared_gallery_are_not_looked_at_again(monkeypatch):
    prepared = dbn.prepare_gallery(GALLERY, dbn.Correction(jnp.asarray(BIAS)))
    looked_at = []
    found = checks.found
    monkeypatch.setattr(
        checks, "found", lambda *arguments: looked_at.append(arguments[1]) or found(*arguments)
    )
    dbn.stream_top_k(QUERIES, prepared, K)
    assert looked_at
    assert all(len(array) < NUM_GALLERY for array in looked_at if checks.is_concrete(array))


# --- bad input -----------------------------------------------------------------------------------


def test_another_correction_beside_a_prepared_gallery_is_refused():
    prepared = dbn.prepare_gallery(GALLERY, GATED)
    with pytest.raises(ValueError, match="`correction` must be None beside a prepared gallery"):
        dbn.stream_top_k(QUERIES, prepared, K, GATED)


def test_another_similarity_beside_a_prepared_gallery_is_refused():
    with pytest.raises(
        ValueError, match=r"`similarity_fn` must be that of the prepared gallery, d"
    ):
        dbn.stream_top_k(
            QUERIES, dbn.prepare_gallery(GALLERY), K, similarity_fn=dbn.cosine_similarity
        )


def test_what_cannot_be_prepared():
    with pytest.raises(ValueError, match=r"`gallery` must be finite, found nan at index \[1, 0\]"):
        dbn.prepare_gallery([[1.0], [np.nan]])
    with pytest.raises(ValueError, match="`gallery` must have no zero row under cosine"):
        dbn.prepare_gallery([[1.0], [0.0]], similarity_fn=dbn.cosine_similarity)
    with pytest.raises(
        ValueError, match="`correction` has 300 gallery items but `gallery` has 299"
    ):
        dbn.prepare_gallery(GALLERY[1:], GATED)
    with pytest.raises(ValueError, match=r"`query_centre` must have one entry per dimension"):
        dbn.prepare_gallery(GALLERY, query_centre=QUERIES[0, 1:])


# --- items that come and go ----------------------------------------------------------------------


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, other)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("similarity_fn", slow_but([dbn.dot_product], FUNCTIONS))
def test_items_that_come_and_go_are_as_prepared_at_once(similarity_fn, gated):
    """In pieces, with others in between, the whole gallery comes out, center and all."""
    options = {"similarity_fn": similarity_fn, "query_centre": QUERIES.mean(axis=0)}
    correction = GATED if gated else dbn.Correction(jnp.asarray(BIAS))

    def part(rows):
        return GALLERY[rows], jax.tree.map(lambda field: field[:, rows], correction)

    first, strange, rest = np.arange(100), np.array([7, 250]), np.arange(100, NUM_GALLERY)
    pieces = dbn.prepare_gallery(*part(first), **options).append(*part(strange))
    pieces = pieces.append(*part(rest)).remove([101, 100])
    whole = dbn.prepare_gallery(GALLERY, correction, **options)
    assert_same(pieces, whole)
    found, expected = (certified(QUERIES, one, K) for one in (pieces, whole))
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_another_correction_of_the_same_items():
    raw = dbn.prepare_gallery(GALLERY)
    corrected = raw.with_correction(GATED)
    assert corrected.low is raw.low
    assert raw.correction is None
    assert_same(corrected, dbn.prepare_gallery(GALLERY, GATED))
    assert_same(corrected.with_correction(None), raw)
    with pytest.raises(
        ValueError, match="`correction` has 300 gallery items but `gallery` has 299"
    ):
        raw.remove([0]).with_correction(GATED)


BAD_CHANGES = {
    "another width": (
        lambda one: one.append(GALLERY[:1, 1:]),
        ValueError,
        "same number of columns",
    ),
    "another dtype": (
        lambda one: one.append(GALLERY[:1].astype(np.float16)),
        TypeError,
        "`items` must have the gallery's dtype float32, got float16",
    ),
    "not a number": (
        lambda one: one.append(np.full((1, DIM), np.nan, np.float32)),
        ValueError,
        "`items` must be finite",
    ),
    "no correction": (
        lambda one: one.append(GALLERY[:1]),
        ValueError,
        "`correction` must be as that of the gallery, 2 terms with gates, got none",
    ),
    "no gates": (
        lambda one: one.append(GALLERY[:1], dbn.Correction(jnp.zeros((2, 1)))),
        ValueError,
        "2 terms with gates, got 2 terms without gates",
    ),
    "no such row": (
        lambda one: one.remove([300]),
        ValueError,
        "`rows` must hold gallery rows between 0 and 299",
    ),
    "all rows": (
        lambda one: one.remove(np.arange(300)),
        ValueError,
        "`rows` must leave an item of 300, got all of them",
    ),
    "traced rows": (
        lambda one: jax.jit(lambda rows: one.remove(rows).gallery)(np.arange(2)),
        TypeError,
        "`rows` must be concrete",
    ),
}


@pytest.mark.parametrize("case", BAD_CHANGES)
def test_changes_that_do_not_fit_are_refused(case):
    change, error, words = BAD_CHANGES[case]
    with pytest.raises(error, match=words):
        change(dbn.prepare_gallery(GALLERY, GATED))


def test_precisions_are_named():
    with pytest.raises(
        ValueError, match=r'`precision` must be None, "float32" or "certified", got'
    ):
        dbn.stream_top_k(QUERIES, GALLERY, K, precision="bfloat16")
    with pytest.raises(ValueError, match=r'`precision` "certified" must come with a gallery that'):
        certified(QUERIES, GALLERY, K)
    with pytest.raises(TypeError, match="`gallery` must be a PreparedGallery, got ndarray"):
        dbn.certified_queries(QUERIES, GALLERY, K)
