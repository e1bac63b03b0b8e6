"""Many calls with changing shapes: neither memory nor compiled programs grow without end."""

import numpy as np
import pytest
from systems import memory, reads_proc

import dbnorm_jax as dbn
from dbnorm_jax._src.places.mesh import drive

ROUNDS = 40
SHAPES = [(50, 8), (64, 8), (300, 16)]  # galleries; queries and banks come in any number


def programs():
    return drive.top_k._cache_size() + drive.bank_statistics._cache_size()


@pytest.mark.slow
@reads_proc
def test_changing_shapes(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "state.npz"

    def one_round():
        for num_gallery, dim in SHAPES:
            gallery = random.normal(size=(num_gallery, dim)).astype(np.float32)
            bank = random.normal(size=(128, dim)).astype(np.float32)
            queries = random.normal(size=(random.integers(1, 256), dim)).astype(np.float32)
            statistics = dbn.stream_bank_statistics(bank, gallery, beta=random.uniform(1, 30))
            dbn.save(path, dbn.inverted_softmax(statistics))
            correction = dbn.load(path)
            found = dbn.stream_top_k(queries, gallery, 3, correction)
            scores = queries @ gallery.T - np.asarray(correction.bias).sum(axis=0)
            best = np.take_along_axis(scores, np.asarray(found.indices), axis=1)
            np.testing.assert_allclose(found.scores, best, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(
                best, np.sort(scores, axis=1)[:, :-4:-1], rtol=1e-4, atol=1e-4
            )

    before = programs()
    for _ in range(ROUNDS // 4):
        one_round()
    compiled, used = programs(), memory("resident")
    # Requests are filled up to a multiple of 32 queries, so that 256 sizes share 8 programs.
    most = (1 + 8) * len(SHAPES)
    assert 0 < compiled - before <= most
    for _ in range(ROUNDS):
        one_round()
    assert programs() - before <= most
    assert memory("resident") - used < 64 * 2**20
