"""The load test of `benchmarks.speed.load` in a smaller form, and that it would notice."""

import numpy as np
import pytest
from systems import reads_proc

import dbnorm_jax as dbn

pytest.importorskip("click")

from benchmarks.speed import load

SIZES = {"queries": 9000, "items": 40_000, "dim": 64, "limit_mib": 640}


@pytest.mark.slow
@reads_proc
def test_a_long_search_under_a_memory_limit():
    """Nothing lost, nothing reordered, the same in other blocks, within the limit."""
    (record,) = load.run(**SIZES, sample=100, again=4000)
    targets = [figure for figure in record.figures if figure.target is not None]
    assert len(targets) == 4
    for figure in targets:
        assert figure.met, figure


def test_what_is_lost_or_reordered_is_noticed(tmp_path):
    planted = load.make(tmp_path, queries=60, items=500, dim=64, again=10)
    queries, gallery = (np.load(tmp_path / f"{name}.npy") for name in ("queries", "gallery"))
    correction = dbn.load(tmp_path / "correction.npz")
    found = dbn.stream_top_k(queries, gallery, load.K, correction)
    scores, indices = np.array(found.scores), np.array(found.indices)
    assert (indices[:, 0] == planted).all()
    assert load.wrong_in_sample(tmp_path, 60, scores, indices) == 0
    swapped = indices.copy()
    swapped[7, [2, 3]] = swapped[7, [3, 2]]
    assert load.wrong_in_sample(tmp_path, 60, scores, swapped) == 1
    doubled = indices.copy()
    doubled[5, 9] = doubled[5, 8]
    assert load.wrong_in_sample(tmp_path, 60, scores, doubled) == 1
    rolled = np.roll(scores, 1, axis=0), np.roll(indices, 1, axis=0)
    assert load.wrong_in_sample(tmp_path, 60, *rolled) == 60
