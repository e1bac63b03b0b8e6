"""What a query does not see is not found, not ranked, not right and no top-1 for its gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dbnorm_jax as dbn

NUM_QUERIES, NUM_GALLERY, K = 6, 9, 4
SEEDS = st.integers(0, 2**31)
KINDS = ["raw", "one bias", "hard gates", "soft gates", "given gates"]


def problem(seed, kind, most=2):
    """Small integers, whose products are exact."""
    rng = np.random.default_rng(seed)
    queries, gallery = (
        rng.integers(-3, 4, (size, 3)).astype(np.float32) for size in (NUM_QUERIES, NUM_GALLERY)
    )
    bias = jnp.asarray(rng.integers(-8, 9, (2, NUM_GALLERY)) / 4, jnp.float32)
    active = rng.integers(0, 5, bias.shape) / 4
    correction = {
        "raw": None,
        "one bias": dbn.Correction(bias[:1], None),
        "soft gates": dbn.Correction(bias, jnp.asarray(active, jnp.float32)),
    }.get(kind, dbn.Correction(bias, jnp.asarray(active < 0.5)))
    gates = None
    if kind == "given gates":
        gates = (rng.integers(0, 5, (NUM_QUERIES, 2)) / 4).astype(np.float32)
    exclude = rng.integers(-1, NUM_GALLERY, (NUM_QUERIES, most))
    where = rng.random(NUM_GALLERY) < 0.7
    relevant = rng.integers(-1, NUM_GALLERY, (NUM_QUERIES, 2))
    return queries, gallery, correction, gates, exclude, where, relevant


def brute_force(queries, gallery, correction, gates, exclude, where):
    """[num_queries, num_gallery] float64 scores, -inf where an item is not seen."""
    similarities = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    scores = np.full(similarities.shape, -np.inf)
    for query, row in enumerate(similarities):
        seen = [g for g in range(NUM_GALLERY) if where[g] and g not in exclude[query]]
        for item in seen:
            scores[query, item] = row[item]
        if correction is None or not seen:
            continue
        top = max(seen, key=lambda g: row[g])
        for term, bias in enumerate(np.asarray(correction.bias, np.float64)):
            if gates is not None:
                gate = gates[query, term]
            else:
                gate = 1 if correction.active is None else correction.active[term, top]
            scores[query] -= float(gate) * bias
    return scores


def check_found(found, scores):
    indices, values = np.asarray(found.indices), np.asarray(found.scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    expected = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(indices, np.where(expected > -np.inf, order, -1))


@pytest.mark.slow
@settings(max_examples=15)
@given(SEEDS, st.sampled_from(KINDS))
def test_every_search_and_rank_equals_brute_force(seed, kind):
    queries, gallery, correction, gates, exclude, where, relevant = problem(seed, kind)
    scores = brute_force(queries, gallery, correction, gates, exclude, where)
    seen = {"exclude": exclude, "where": where}
    matrix = {"exclude": exclude, "where": np.broadcast_to(where, scores.shape)}
    similarities = queries @ gallery.T
    check_found(dbn.top_k(similarities, K, correction, gates=gates, **matrix), scores)
    check_found(dbn.stream_top_k(queries, gallery, K, correction, gates=gates, **seen), scores)
    options = {"gates": gates, "block_size": 4, **seen}
    check_found(dbn.out_of_core.top_k(queries, gallery, K, correction, **options), scores)

    right = np.zeros(scores.shape, bool)
    for query, items in enumerate(relevant):
        right[query, items[items >= 0]] = True
    right &= scores > -np.inf
    expected = dbn.metrics.ranks(
        np.where(scores > -np.inf, scores, -1e30).astype(np.float32), right
    )
    ranks = dbn.metrics.stream_ranks(queries, gallery, relevant, correction, gates=gates, **seen)
    np.testing.assert_array_equal(ranks, expected)
    of_files = dbn.out_of_core.ranks(queries, gallery, relevant, correction, **options)
    np.testing.assert_array_equal(of_files, expected)
    corrected = similarities
    if correction is not None:
        given = dbn.gates(similarities, correction, **matrix) if gates is None else gates
        corrected = dbn.apply_correction(similarities, correction, gates=given)
    padded = np.pad(relevant, ((0, 0), (0, 1)), constant_values=-1)
    np.testing.assert_array_equal(dbn.metrics.ranks(corrected, padded, **matrix), expected)


@settings(max_examples=15)
@given(SEEDS)
def test_average_precision_is_that_of_the_smaller_gallery(seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.integers(-2, 3, (1, 9)).astype(np.float32), rng.random((1, 9)) < 0.4
    exclude = rng.integers(-1, 9, (1, 3))
    kept = np.setdiff1d(np.arange(9), exclude)
    found = dbn.metrics.mean_average_precision(scores, right, exclude=exclude)
    expected = dbn.metrics.mean_average_precision(scores[:, kept], right[:, kept])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_gallery_that_asks_itself():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 8)).astype(np.float32)
    own = np.arange(40)
    found = dbn.stream_top_k(rows, rows, 39, exclude=own)
    assert not (np.asarray(found.indices) == own[:, None]).any()
    assert (np.asarray(found.indices) >= 0).all()
    short = dbn.stream_top_k(rows, rows, 40, exclude=own)
    np.testing.assert_array_equal(short.indices[:, 39], -1)
    assert (np.asarray(short.scores[:, 39]) == -np.inf).all()


@pytest.mark.parametrize("num_queries", [1, 40, 200])
@pytest.mark.parametrize("k", [1, 10])
def test_many_excluded_items_over_several_tiles(num_queries, k):
    """More than are compared one by one, in galleries of more than a tile."""
    rng = np.random.default_rng(1)
    queries, gallery = (
        rng.normal(size=(size, 4)).astype(np.float32) for size in (num_queries, 2100)
    )
    exclude = np.asarray(dbn.stream_top_k(queries, gallery, 12).indices)
    found = dbn.stream_top_k(queries, gallery, k, exclude=exclude)
    whole = np.asarray(dbn.stream_top_k(queries, gallery, 12 + k).indices)
    np.testing.assert_array_equal(found.indices, whole[:, 12:])


def test_semantic_search_leaves_out_what_is_not_seen():
    rows = np.eye(3, dtype=np.float32)
    found = dbn.semantic_search(rows, rows, exclude=np.array([[0, 1], [1, -1], [-1, -1]]))
    assert [[one["corpus_id"] for one in each] for each in found] == [[2], [0, 2], [2, 0, 1]]


def test_a_query_that_sees_nothing():
    correction = dbn.Correction(jnp.ones((2, 3)), jnp.ones((2, 3), bool))
    similarities, nothing = np.ones((2, 3), np.float32), np.zeros((2, 3), bool)
    found = dbn.top_k(similarities, 2, correction, where=nothing)
    assert (np.asarray(found.indices) == -1).all()
    assert (dbn.gates(similarities, correction, where=nothing) == 0).all()
    assert jnp.isposinf(dbn.metrics.ranks(similarities, np.array([0, 1]), where=nothing)).all()


def test_under_jit_vmap_and_grad():
    rng = np.random.default_rng(2)
    rows = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
    own = jnp.arange(12)

    def best(rows, own):
        return dbn.stream_top_k(rows, rows, 1, exclude=own).scores.sum()

    np.testing.assert_allclose(jax.jit(best)(rows, own), best(rows, own), rtol=1e-6)
    others = jnp.stack([own, jnp.full(12, -1)])
    each = jax.vmap(best, in_axes=(None, 0))(rows, others)
    np.testing.assert_allclose(each, [best(rows, one) for one in others], rtol=1e-6)
    nearest = dbn.stream_top_k(rows, rows, 1, exclude=own).indices[:, 0]
    expected = rows[nearest] + jnp.zeros_like(rows).at[nearest].add(rows)
    np.testing.assert_allclose(jax.grad(best)(rows, own), expected, rtol=1e-5)


ROWS = np.ones((4, 3), np.float32)
CORRECTION = dbn.Correction(jnp.zeros((2, 4)), None)


@pytest.mark.parametrize(
    ("error", "call", "words"),
    [
        (ValueError, lambda: dbn.stream_top_k(ROWS, ROWS, 1, exclude=np.arange(3)), "queries"),
        (ValueError, lambda: dbn.stream_top_k(ROWS, ROWS, 1, exclude=np.full(4, 4)), "and 3"),
        (TypeError, lambda: dbn.stream_top_k(ROWS, ROWS, 1, exclude=np.ones(4)), "exclude"),
        (TypeError, lambda: dbn.stream_top_k(ROWS, ROWS, 1, where=np.ones(4)), "bool mask"),
        (ValueError, lambda: dbn.stream_top_k(ROWS, ROWS, 1, where=np.ones(3, bool)), "per gall"),
        (ValueError, lambda: dbn.top_k(ROWS, 1, where=np.ones((3, 3), bool)), "`where` must have"),
        (ValueError, lambda: dbn.top_k(ROWS, 1, gates=np.ones((4, 2))), "come with a correction"),
        (
            ValueError,
            lambda: dbn.stream_top_k(ROWS, ROWS, 1, CORRECTION, gates=np.ones((4, 1))),
            r"\(4, 2\), got \(4, 1\)",
        ),
        (
            ValueError,
            lambda: dbn.metrics.stream_ranks(ROWS, ROWS, np.arange(4), exclude=np.arange(3)),
            r"\(4,\) or \(4, 'most'\) \(queries\)",
        ),
    ],
)
def test_errors(error, call, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("length", [3, 5, 7])
@pytest.mark.parametrize("name", ["exclude", "where", "gates"])
def test_lengths_are_checked_where_files_tell_theirs_late(name, length):
    """Of an iterable the number of rows is known at its end."""
    queries, gallery = (np.split(np.eye(6, dtype=np.float32), 3) for _ in range(2))
    value = {
        "exclude": np.full(length, -1),
        "where": np.ones(length, bool),
        "gates": np.ones((length, 1), np.float32),
    }[name]
    correction = dbn.Correction(jnp.zeros((1, 6)), jnp.ones((1, 6), bool))
    options = {name: value, "block_size": 2}
    with pytest.raises(ValueError, match=f"`{name}` must have one entry per .* row, expected"):
        dbn.out_of_core.top_k(queries, gallery, 2, correction, **options)
    with pytest.raises(ValueError, match=f"`{name}` must have one entry per .* row, expected"):
        dbn.out_of_core.ranks(queries, gallery, np.arange(6), correction, **options)


def test_excluded_rows_beyond_a_gallery_of_late_length_are_refused():
    blocks = np.split(np.eye(6, dtype=np.float32), 3)
    with pytest.raises(ValueError, match=r"`exclude` must hold gallery rows .* 5, got .* to 6"):
        dbn.out_of_core.top_k(blocks, blocks, 2, exclude=np.arange(1, 7), block_size=2)
