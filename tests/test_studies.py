"""The studies of tuning: their measures, and that draws are kept."""

import argparse
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("emoji")

from benchmarks import held_out_bias, pairless, studies


class One(NamedTuple):
    value: float


@pytest.mark.slow
def test_draws_are_kept(tmp_path, capsys):
    asked = studies.options("Title.", ("100",), ["--draws", "1", "--cache", str(tmp_path)])
    assert isinstance(asked, argparse.Namespace)
    first = studies.collected("a", One, lambda test, seed: One(len(test.query_bank)), asked)
    asked.seconds = -1.0
    second = studies.collected("a", One, lambda test, seed: One(-1), asked)
    assert len(first) == 6
    assert {cell: draws[0].value for cell, draws in second.items()} == dict.fromkeys(first, 100)
    assert not studies.collected("b", One, lambda test, seed: One(-1), asked)
    assert "stopped by --seconds after 0 draws" in capsys.readouterr().out


def test_figures_of_an_estimate():
    expected = np.array([0, 0.1, 0.3, 0.2])
    found = held_out_bias.figures(expected + np.array([0, 0.3, 0, 0]), expected)
    np.testing.assert_allclose(found[:2], [0.1, np.sqrt(0.03)])
    np.testing.assert_allclose(found[3:], [0.3, 0.2])


def test_mutual_neighbors():
    rng = np.random.default_rng(0)
    items = rng.normal(size=(20, 8))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    order = rng.permutation(20)
    for way in ("CSLS", "raw"):
        np.testing.assert_array_equal(pairless.mutual(items[order], items, way), order)
    lone = pairless.mutual(np.ones((3, 2)), np.array([[1.0, 1.0], [-1, -1]]), "raw")
    np.testing.assert_array_equal(lone, [0, -1, -1])
