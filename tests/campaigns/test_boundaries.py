"""Edges of tiles, masks, weights, dtypes and betas: a short campaign, and whether it notices."""

import dataclasses
import itertools
import math

import boundaries
import draws
import numpy as np
import oracle
import pytest

import dbnorm_jax as dbn

SEED = 2
BOUTS = (13, 15, 36, 47, 59)  # of every place, and cheap: each compiles anew
DRAWS = 8  # of each


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    firsts = [boundaries.DRAWS_PER_BOUT * bout for bout in BOUTS]
    numbers = [first + number for first in firsts for number in range(DRAWS)]
    return boundaries.campaign(tmp_path_factory.mktemp("boundaries"), numbers, SEED)


@pytest.mark.slow
def test_a_short_campaign(outcome):
    assert set(outcome.places) == set(draws.PLACES)
    assert outcome.draws == DRAWS * len(BOUTS)
    assert len(outcome.used) > 35
    broken = [line for lines in outcome.broken.values() for line in lines]
    assert not broken, "\n".join(broken)


SMALL = draws.Bout(
    place="matrix",
    method="dis",
    bank=6,
    gallery=9,
    queries=7,
    dim=2,
    k=2,
    dtypes=("float32", "float32"),
    x64=False,
    similarity="dot_product",
    weighted=True,
    masked=True,
    chunk=32,
    block=32,
    mesh=(2, 4),
    cut=2,
)


def with_arguments(**changes):
    """A function that is called with arguments changed."""

    def faulty(function):
        def call(*arrays, **options):
            for name, change in changes.items():
                options[name] = change(options[name])
            return function(*arrays, **options)

        return call

    return faulty


def with_result(change):
    """A function whose result is changed."""
    return lambda function: lambda *arrays, **options: change(function(*arrays, **options))


def moved(array, eps):
    return np.asarray(array) * (1 + eps)


FAULTS = {
    "mass": ("bank_statistics", with_arguments(weights=np.ones_like)),
    "k_occurrence": ("bank_statistics", with_arguments(k=lambda k: k + 1)),
    "log_normalizer": ("bank_statistics", with_arguments(beta=lambda beta: moved(beta, 1e-4))),
    "merged mass": ("merge", lambda function: lambda *states: states[0]),
    "subtracted mass": ("subtract", lambda function: lambda whole, part: whole),
    "responsibilities": ("responsibilities", with_result(lambda shares: moved(shares, 1))),
    "gates": ("gates", with_result(lambda gates: 1 - gates)),
    "apply_correction": ("apply_correction", with_result(lambda scores: moved(scores, 1e-5))),
    "found are seen": ("top_k", with_arguments(exclude=lambda exclude: np.full_like(exclude, -1))),
    "scores": ("top_k", with_result(lambda found: found._replace(scores=moved(found[0], 1e-5)))),
    "nearest": ("top_k", with_result(lambda found: found._replace(indices=found[1][:, ::-1]))),
    "ranks": ("metrics.ranks", with_result(np.round)),
}


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """Draws, and what is outside its bound in each where nothing has a fault."""
    folder = tmp_path_factory.mktemp("unchanged")
    powers = np.array([0.5, 0.5])
    drawn = [
        dataclasses.replace(draws.draw_of(SMALL, 0, number), powers=powers) for number in range(12)
    ]
    return [(draw, noticed(draw, folder)) for draw in drawn]


def noticed(draw, folder):
    judge = boundaries.Judge()
    boundaries.execute(judge, SMALL, draw, folder)
    return {what for what, _ in judge.found}


@pytest.mark.slow
@pytest.mark.parametrize("what", FAULTS)
def test_the_campaign_notices(what, unchanged, monkeypatch, tmp_path):
    """A function with a fault gives what is outside its bound, and within it without the fault."""
    path, faulty = FAULTS[what]
    *modules, name = path.split(".")
    module = getattr(dbn, modules[0]) if modules else dbn
    monkeypatch.setattr(module, name, faulty(getattr(module, name)))
    assert any(what in noticed(draw, tmp_path) - before for draw, before in unchanged)


def test_the_oracle_by_hand():
    similarities = np.array([[0.0, 1.0], [math.log(3), -1.0], [5.0, 2.0]])
    bank = oracle.Bank(
        similarities, np.array([1.0, 1.0, 2.0]), np.array([[1, 1], [1, 0], [0, 0]], bool)
    )
    np.testing.assert_allclose(bank.bias(1.0), [math.log(2), 1], rtol=1e-15)
    np.testing.assert_allclose(bank.log_normalizer(1.0), [math.log(4), 1], rtol=1e-15)
    np.testing.assert_allclose(bank.bias(1e-9)[0], math.log(3) / 2, rtol=1e-9)  # the mean
    np.testing.assert_allclose(bank.bias(1e9)[0], math.log(3), rtol=1e-9)  # the largest
    np.testing.assert_allclose(bank.responsibilities(1.0), [[0.25, 1], [0.75, 0], [0, 0]])
    np.testing.assert_array_equal(bank.occurrences(1)[0], [1, 1])
    np.testing.assert_array_equal(bank.largest(2), [[math.log(3), 1], [0, -np.inf]])


def test_the_oracle_s_ranks_are_means_over_all_orders():
    scores = np.array([3.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    right = np.array([0, 1, 0, 0, 1, 1], bool)
    orders = itertools.permutations(range(6))
    ranks = [
        1 + min(np.nonzero(right[list(order)])[0])
        for order in orders
        if (np.diff(scores[list(order)]) <= 0).all()
    ]
    wrong_ahead = np.mean(ranks)  # the right item that stands first has wrong ones only before it
    found = oracle.ranks(scores[None], right[None], np.ones((1, 6), bool))
    np.testing.assert_allclose(found, [wrong_ahead])
