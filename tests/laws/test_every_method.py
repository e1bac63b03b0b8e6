"""What holds for every correction of the table: transforms, dtypes, places, laws, files."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    COUNTED,
    FITS,
    ITERATED,
    ON_MATRICES,
    SCORED,
    SHAPES,
    Placed,
    fit,
    fitted,
    places,
    problem,
    score,
)
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax._src.corrections.table import TABLE

all_fits = pytest.mark.parametrize("name", slow_but(["csls", "dualdis", "sn"], FITS))
all_scores = pytest.mark.parametrize("name", slow_but(["ls", "gc"], SCORED))


def banks(seed, shape=SHAPES[2], dtype=np.float32):
    test = problem(seed, shape)
    return [
        jnp.asarray(array.astype(dtype))
        for array in (test.query_bank, test.gallery, test.gallery_bank)
    ]


def vectors(seed, shape=SHAPES[2], dtype=np.float32):
    test = problem(seed, shape)
    arrays = (test.queries, test.gallery, test.query_bank, test.gallery_bank)
    return [jnp.asarray(array.astype(dtype)) for array in arrays]


def test_every_baseline_is_covered():
    covered = {row.function for row in TABLE.values()} | {*ON_MATRICES}
    # The streamed one stands behind the rows of the other two.
    apart = {"sinkhorn_residual", "stream_sinkhorn_normalization"}
    assert set(dbn.baselines.__all__) <= covered | apart


def tolerance(name):
    return 1e-3 if name in ITERATED else 2e-6


@all_fits
def test_jit_equals_eager(name):
    arrays = banks(0)
    eager = fit(name, *arrays)
    jitted = jax.jit(lambda *arrays: fit(name, *arrays))(*arrays)
    chex.assert_trees_all_close(jitted, eager, atol=tolerance(name))


@all_fits
def test_vmap_equals_loop(name):
    batch = [banks(seed) for seed in range(2)]
    stacked = [jnp.stack(arrays) for arrays in zip(*batch, strict=True)]
    mapped = jax.vmap(lambda *arrays: fit(name, *arrays))(*stacked)
    for place, arrays in enumerate(batch):
        single = fit(name, *arrays)
        found = jax.tree.map(lambda leaf, place=place: leaf[place], mapped)
        chex.assert_trees_all_close(found, single, atol=tolerance(name))


@all_fits
def test_chunk_size_does_not_matter(name):
    arrays = banks(1)
    whole = fit(name, *arrays)
    for chunk_size in (1, 7):
        chex.assert_trees_all_close(fit(name, *arrays, chunk_size), whole, atol=tolerance(name))


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.by_statistics])
def test_every_place_gives_the_same(name):
    """Matrices, streams, a mesh and blocks of files."""
    query_bank, gallery, gallery_bank = banks(9)
    whole = fit(name, query_bank, gallery, gallery_bank)
    for functions in places().values():
        source = Placed(*functions, gallery, {"query": query_bank, "gallery": gallery_bank})
        found = fitted(name, source)
        assert found.similarity in (None, whole.similarity)  # a matrix does not say it
        expected = dataclasses.replace(whole, similarity=found.similarity)
        chex.assert_trees_all_close(found, expected, atol=2e-6)


@all_fits
def test_gallery_permutation(name):
    query_bank, gallery, gallery_bank = banks(2)
    order = np.random.default_rng(2).permutation(gallery.shape[0])
    whole = fit(name, query_bank, gallery, gallery_bank)
    permuted = fit(name, query_bank, gallery[order], gallery_bank)
    expected = jax.tree.map(lambda leaf: leaf[..., order], whole)
    chex.assert_trees_all_close(permuted, expected, atol=tolerance(name))


@all_fits
def test_bank_order_does_not_matter(name):
    query_bank, gallery, gallery_bank = banks(3)
    whole = fit(name, query_bank, gallery, gallery_bank)
    turned = fit(name, query_bank[::-1], gallery, gallery_bank[::-1])
    chex.assert_trees_all_close(turned, whole, atol=tolerance(name))


# A line search has no reverse-mode derivative; sinkhorn_normalization has the same limit and one.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FITS if name not in ITERATED])
def test_gradients_are_finite_and_reach_the_bank(name):
    def total(*arrays):
        return (fit(name, *arrays).bias ** 2).sum()

    gradients = jax.grad(total, argnums=(0, 1, 2))(*banks(4))
    chex.assert_tree_all_finite(gradients)
    assert all(jnp.abs(gradient).max() > 0 for gradient in gradients[:2])


@all_fits
def test_dtypes(name, x64):
    for dtype, expected in ((jnp.bfloat16, np.float32), (np.float64, np.float64)):
        arrays = banks(5, dtype=dtype)
        correction = fit(name, *arrays)
        assert correction.bias.dtype == expected
        chex.assert_tree_all_finite(correction.bias)


@all_fits
def test_a_fit_serves_searches_and_files(name, tmp_path):
    test = problem(6, SHAPES[2])
    correction = fit(name, *banks(6))
    assert correction.bias.shape[-1] == 70
    similarity_fn = getattr(dbn, correction.similarity or "dot_product")
    dense = dbn.top_k(similarity_fn(test.queries, test.gallery), 5, correction)
    options = {"similarity_fn": similarity_fn, "chunk_size": 3}
    streamed = dbn.stream_top_k(test.queries, test.gallery, 5, correction, **options)
    chex.assert_trees_all_close(streamed.scores, dense.scores, atol=2e-6)
    dbn.save(tmp_path / "fit.npz", correction)
    chex.assert_trees_all_equal(dbn.load(tmp_path / "fit.npz").bias, correction.bias)


@all_scores
def test_scores_jit_vmap_and_permutation(name):
    arrays = vectors(7)
    eager = score(name, *arrays)
    assert eager.shape == (4, 70)
    chex.assert_trees_all_close(jax.jit(partial(score, name))(*arrays), eager, atol=2e-5)
    stacked = [jnp.stack([array, array]) for array in arrays]
    chex.assert_trees_all_close(jax.vmap(partial(score, name))(*stacked)[1], eager, atol=2e-5)
    order = np.random.default_rng(7).permutation(70)
    permuted = score(name, arrays[0], arrays[1][order], *arrays[2:])
    chex.assert_trees_all_close(permuted, eager[:, order], atol=2e-5)


@all_scores
def test_scores_gradients_and_dtypes(name, x64):
    gradients = jax.grad(lambda *arrays: score(name, *arrays).sum(), argnums=(0, 1, 2))(*vectors(8))
    chex.assert_tree_all_finite(gradients)
    if name not in COUNTED:
        assert jnp.abs(gradients[1]).max() > 0
    assert score(name, *vectors(8, dtype=np.float64)).dtype == jnp.float64
    assert score(name, *vectors(8, dtype=jnp.bfloat16)).dtype == jnp.float32
