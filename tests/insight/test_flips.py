"""Flips of the top-1 against brute force: every bank item left out or moved, and fitted anew."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import problem
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax import attribution

pytestmark = pytest.mark.usefixtures("compile_fast")

BETA, K = 8.0, 2
NUM = {"queries": 40, "gallery": 30, "bank": 20}
WEIGHT = 0.7


@pytest.fixture(scope="module")
def test():
    return problem(3, (*NUM.values(), 6))


def served(test, *, gated, weights=None):
    """What is served, of two terms, and the statistics behind its second."""
    banks = {"bank": test.gallery_bank, "beta": 2.0}, {"bank": test.query_bank, "beta": BETA}
    banks[1]["weights"] = weights
    statistics = [dbn.stream_bank_statistics(gallery=test.gallery, k=K, **bank) for bank in banks]
    fit = dbn.dual_dynamic_inverted_softmax if gated else dbn.dual_inverted_softmax
    return fit(*statistics, weights=(1 - WEIGHT, WEIGHT)), statistics[1]


def scores(test, bank, weights, *, gated):
    """[num_queries, num_gallery] under the second term's bank, refitted in float64."""
    raw = reference.dot_product(test.queries, test.gallery)
    total = raw
    banks = (test.gallery_bank, 2.0, 1 - WEIGHT, None), (bank, BETA, WEIGHT, weights)
    for rows, beta, weight, own in banks:
        matrix = reference.dot_product(rows, test.gallery)
        bias = weight * reference.bias(matrix, beta, own)
        gate = np.ones(len(raw))
        if gated:
            active = reference.bank_k_occurrence(matrix, K, own) > 0
            gate = reference.argmax_gate(raw, active)
        total = total - gate[:, None] * bias
    return total


def changed_banks(test, weights, items, moved):
    """The bank and its weights, changed in one place at a time."""
    for place, item in enumerate(items):
        bank = test.query_bank.copy()
        if moved is None:
            yield np.delete(bank, item, axis=0), np.delete(weights, item)
        else:
            bank[item] = moved[place]
            yield bank, weights


@pytest.mark.parametrize(
    ("gated", "moves", "weighted"),
    slow_but(
        [(True, True, False)],
        [(False, False, True), (True, False, False), (False, True, False), (True, True, False)],
    ),
)
def test_flips_equal_refits(test, gated, moves, weighted):
    weights = (np.arange(20) % 3 if weighted else np.ones(20)).astype(np.float32)
    items = np.array([19, 0, 3, 4, 5, 6, 7, 8, 9, 10, 11], np.int32)
    moved = test.queries[: len(items)] if moves else None
    correction, statistics = served(test, gated=gated, weights=weights if weighted else None)
    known = {
        "queries": test.queries,
        "gallery": test.gallery,
        "bank": test.query_bank,
        "correction": correction,
        "statistics": statistics,
        "term": 1,
        "items": items,
        "moved": moved,
        "weights": weights if weighted else None,
        "chunk_size": 7,
    }
    found = attribution.top_1_flips(k=NUM["gallery"], **known)

    whole = scores(test, test.query_bank, weights, gated=gated)
    top_1, queries = whole.argmax(axis=1), np.arange(NUM["queries"])
    flips, margins, winners = [], [], []
    for bank, own in changed_banks(test, weights, items, moved):
        after = scores(test, bank, own, gated=gated)
        flips.append(after.argmax(axis=1) != top_1)
        winners.append(after.argmax(axis=1))
        lead = after[queries, top_1].copy()
        after[queries, top_1] = -np.inf
        margins.append(lead - after.max(axis=1))
    flips, margins, winners = map(np.array, (flips, margins, winners))
    assert 0 < flips.sum() < flips.size
    np.testing.assert_array_equal(found.num_flips, flips.sum(axis=1))
    assert not np.any(found.num_undecided)
    np.testing.assert_array_equal(found.top_1, top_1)
    worst = margins.argmin(axis=0)
    np.testing.assert_array_equal(found.item, items[worst])
    np.testing.assert_allclose(found.margin_left, margins.min(axis=0), atol=1e-6)
    np.testing.assert_array_equal(found.new_top_1, winners[worst, queries])
    others = np.where(np.eye(NUM["gallery"], dtype=bool)[top_1], -np.inf, whole)
    np.testing.assert_allclose(found.margin, whole.max(axis=1) - others.max(axis=1), atol=1e-6)

    # Of few rivals: what is counted is a flip, and what is missed is undecided.
    few = attribution.top_1_flips(k=1, **known)
    assert (np.asarray(few.num_flips) <= flips.sum(axis=1)).all()
    assert (np.asarray(few.num_flips + few.num_undecided) >= flips.sum(axis=1)).all()
    assert np.any(few.num_undecided)


@pytest.mark.slow
def test_the_only_item_and_the_only_bank_row():
    gallery = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    bank, query = jnp.array([[1.0, 0.0]]), jnp.array([[0.8, 0.7]])
    statistics = dbn.stream_bank_statistics(bank, gallery, beta=1e3)
    correction = dbn.inverted_softmax(statistics)
    known = {"queries": query, "bank": bank}
    found = attribution.top_1_flips(
        gallery=gallery, correction=correction, statistics=statistics, **known
    )
    np.testing.assert_array_equal(found.num_flips, [1])  # an empty bank has bias 0
    np.testing.assert_allclose(found.margin_left, [-0.1], atol=1e-6)
    alone = dbn.stream_bank_statistics(bank, gallery[:1], beta=1.0)
    found = attribution.top_1_flips(
        gallery=gallery[:1],
        correction=dbn.inverted_softmax(alone),
        statistics=alone,
        **known,
    )
    np.testing.assert_array_equal(found.margin, [np.inf])
    assert not np.any(found.num_flips + found.num_undecided + found.new_top_1)


@pytest.mark.slow
def test_copies_of_an_item_are_no_flip_of_the_first():
    """Level before and after: the lowest index stays the top-1."""
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.normal(size=(4, 3)).astype(np.float32), 2, axis=0)
    bank, queries = (rng.normal(size=(n, 3)).astype(np.float32) for n in (6, 9))
    statistics = dbn.stream_bank_statistics(bank, gallery, beta=2.0)
    known = {"queries": queries, "gallery": gallery, "bank": bank, "statistics": statistics}
    for fit in (dbn.inverted_softmax, dbn.dynamic_inverted_softmax):
        found = attribution.top_1_flips(correction=fit(statistics), **known)
        assert not np.any(np.asarray(found.top_1) % 2)
        assert not np.any(np.asarray(found.new_top_1) % 2)
        np.testing.assert_array_equal(found.margin, 0)


def test_errors(test):
    rows = test.gallery
    correction, statistics = served(test, gated=True)
    known = {"queries": test.queries, "gallery": rows, "bank": test.query_bank, "term": 1}
    known |= {"correction": correction, "statistics": statistics}
    shut = jnp.zeros(len(rows), jnp.int32)
    other = dataclasses.replace(statistics, bias=statistics.bias * statistics.bias)
    soft = dataclasses.replace(correction, active=jnp.ones((2, len(rows))))
    for changes, words in [
        ({"term": 2}, "`term` must be between 0 and 1"),
        ({"term": 0}, "`statistics` must be those behind term 0.*another bias"),
        ({"statistics": other}, "`statistics` must be those behind term 1.*another bias"),
        (
            {"statistics": dataclasses.replace(statistics, k_occurrence=shut)},
            "`statistics` must be those behind term 1.*another activation set",
        ),
        (
            {"statistics": dataclasses.replace(statistics, k_occurrence=None, k=0)},
            "activation set for a gated term",
        ),
        ({"correction": soft}, "must have gates of bool here"),
        ({"moved": rows[:3]}, "`moved` must have one row per item, expected 20, got 3"),
        ({"moved": np.eye(20, 3)}, "`moved`"),
        ({"items": [20]}, "`items` must hold bank rows"),
        ({"items": np.array([], np.int32)}, "`items` must name at least one bank row"),
        ({"k": 31}, "`k` must be between 1 and 30"),
    ]:
        with pytest.raises(ValueError, match=words):
            attribution.top_1_flips(**known | changes)
