"""Results of a raw search, corrected, against NumPy and against the searches they replace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dbnorm_jax as dbn

NUM_QUERIES, NUM_GALLERY = 5, 9
SEARCH = functools.partial(dbn.rescore, k=4)
JITTED = jax.jit(SEARCH)
seeds = st.integers(0, 2**16)


def case(seed, gated):
    """Quarters, with many ties; all sums are exact."""
    random = np.random.default_rng(seed)
    similarities = random.integers(-4, 5, (NUM_QUERIES, NUM_GALLERY)) / 4
    bias = random.integers(-2, 3, (2, NUM_GALLERY)) / 4
    active = random.random((2, NUM_GALLERY)) < 0.5
    correction = dbn.Correction(
        jnp.asarray(bias, jnp.float32), jnp.asarray(active) if gated else None
    )
    exclude = random.integers(-1, NUM_GALLERY, (NUM_QUERIES, 2))
    return random, similarities.astype(np.float32), correction, exclude


def expected(fetched, correction, k, exclude, there, gates):
    """Row by row in float64, from the definition."""
    bias = np.asarray(correction.bias, np.float64)
    lists = []
    for query, (scores, rows) in enumerate(zip(*fetched, strict=True)):
        own = {
            int(row): float(score)
            for score, row in zip(scores, rows, strict=True)
            if row >= 0 and there[row] and row not in exclude[query]
        }
        gate = np.ones(len(bias))
        if gates is not None:
            gate = gates[query]
        elif correction.active is not None and own:
            nearest = min(own, key=lambda row: (-own[row], row))
            gate = np.asarray(correction.active)[:, nearest]
        final = sorted((-(score - gate @ bias[:, row]), row) for row, score in own.items())[:k]
        final += [(np.inf, -1)] * (k - len(final))
        lists.append(final)
    found = np.array(lists)
    return -found[..., 0], found[..., 1]


@pytest.mark.parametrize("own_gates", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@given(seed=seeds)
def test_what_was_fetched_is_corrected(gated, own_gates, seed):
    """Places in any order, some missing with any number beside them, on the host and under jit."""
    random, similarities, correction, exclude = case(seed, gated)
    rows = np.argsort(random.random(similarities.shape), axis=1)[:, :7]
    scores = np.take_along_axis(similarities, rows, axis=1)
    missing = random.random(rows.shape) < 0.3
    rows = np.where(missing, -1, rows)
    scores[missing] = random.choice([np.nan, -np.inf, 9, -3.4e38], missing.sum())
    there = random.random(NUM_GALLERY) < 0.8
    gates = random.integers(0, 3, (NUM_QUERIES, 2)) / 2 if own_gates else None
    wanted = expected((scores, rows), correction, 4, exclude, there, gates)
    options = {"exclude": exclude, "where": there}
    if own_gates:
        options["gates"] = gates.astype(np.float32)
    for call in (SEARCH, JITTED):
        found = call((scores, rows), correction, **options)
        np.testing.assert_array_equal(found.scores, wanted[0])
        np.testing.assert_array_equal(found.indices, wanted[1])


@given(seed=seeds, gated=st.booleans())
def test_of_all_items_it_is_the_search_itself(seed, gated):
    random, similarities, correction, exclude = case(seed, gated)
    rows = np.argsort(random.random(similarities.shape), axis=1)
    raw = np.take_along_axis(similarities, rows, axis=1), rows
    found = dbn.rescore(raw, correction, k=5, exclude=exclude)
    wanted = dbn.top_k(similarities, 5, correction, exclude=exclude)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    np.testing.assert_array_equal(found.indices, wanted.indices)


def test_of_all_embeddings_it_is_the_streamed_search():
    random = np.random.default_rng(0)
    queries, gallery = (random.normal(size=(n, 8)).astype(np.float32) for n in (20, 60))
    correction = dbn.dynamic_inverted_softmax(
        dbn.stream_bank_statistics(gallery[::2], gallery, beta=2.0, k=1)
    )
    raw = dbn.stream_top_k(queries, gallery, 60)
    wanted = dbn.stream_top_k(queries, gallery, 10, correction)
    found = dbn.rescore(raw, correction, k=10)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)


@given(seed=seeds, gated=st.booleans())
def test_an_item_fetched_twice_counts_once(seed, gated):
    _, similarities, correction, _ = case(seed, gated)
    once = dbn.top_k(similarities, NUM_GALLERY)
    twice = dbn.SearchResult(*(jnp.concatenate([part, part[:, ::-1]], axis=1) for part in once))
    wanted = dbn.rescore(once, correction)
    found = dbn.rescore(twice, correction, k=NUM_GALLERY)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    np.testing.assert_array_equal(found.indices, wanted.indices)


def test_gradients_pass_to_scores_and_bias():
    _, similarities, correction, _ = case(1, gated=True)
    rows = jnp.broadcast_to(jnp.arange(NUM_GALLERY), similarities.shape)
    weights = jnp.broadcast_to(jnp.arange(1.0, 4.0), (NUM_QUERIES, 3))

    def total(search):
        def of(similarities, bias):
            fitted = dbn.Correction(bias, correction.active)
            return (search(similarities, fitted).scores * weights).sum()

        return jax.grad(of, (0, 1))(jnp.asarray(similarities), correction.bias)

    found = total(lambda scores, fitted: dbn.rescore((scores, rows), fitted, k=3))
    wanted = total(lambda scores, fitted: dbn.top_k(scores, 3, fitted))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


GOOD = np.zeros((2, 3), np.float32), np.zeros((2, 3), int)
CORRECTION = dbn.Correction(jnp.zeros((1, 4)))


@pytest.mark.parametrize(
    ("results", "options", "error", "words"),
    [
        (np.zeros((3, 3)), {}, TypeError, "`results.*pair.*ndarray"),
        ((GOOD[0][:, :2], GOOD[1]), {}, ValueError, r"`results.scores.*\(2, 2\) and \(2, 3\)"),
        (GOOD[::-1], {}, TypeError, "`results.indices.*integers.*float32"),
        ((GOOD[1], GOOD[1]), {}, TypeError, "`results.scores.*floating point.*int"),
        ((GOOD[0][0], GOOD[1][0]), {}, ValueError, "`results.indices.*2 axes"),
        ((GOOD[0], GOOD[1] - 2), {}, ValueError, r"`results.indices.*-1 \(-1 marks none\) and 3"),
        ((GOOD[0], GOOD[1] + 4), {}, ValueError, "`results.indices.*4 to 4"),
        ((GOOD[0] * np.nan, GOOD[1]), {}, ValueError, "`results.scores.*finite"),
        (GOOD, {"k": 4}, ValueError, "`k.*between 1 and 3 .*fetched.*4"),
        (GOOD, {"gates": np.ones((2, 2), np.float32)}, ValueError, r"`gates.*\(2, 1\)"),
        (GOOD, {"exclude": np.zeros(3, int)}, ValueError, r"`exclude.*\(2,\)"),
        (GOOD, {"where": np.ones(3, bool)}, ValueError, r"`where.*\(4,\)"),
    ],
)
def test_refusals(results, options, error, words):
    with pytest.raises(error, match=words):
        dbn.rescore(results, CORRECTION, **options)
