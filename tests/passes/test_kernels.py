"""The fused kernels in Pallas' interpreter: the reference's numbers, the plain path's gradients."""

import contextlib
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

import dbnorm_jax as dbn
from dbnorm_jax._src.passes import dispatch, kernels

# (num_rows, num_gallery, dim): below, at and above the tiles of the interpreter.
SHAPES = [(5, 40, 3), (64, 64, 32), (70, 200, 40)]
seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from(SHAPES)
dtypes = st.sampled_from(["float32", "bfloat16"])
few = settings(max_examples=6)  # each shape compiles


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, dispatch.INTERPRET)


@pytest.fixture
def calls(monkeypatch):
    """Names of the fused passes that were traced."""
    names = []
    for name in ("bank_sums", "search"):
        original = getattr(kernels, name)

        def spy(*arrays, name=name, original=original, **options):
            names.append(name)
            return original(*arrays, **options)

        monkeypatch.setattr(kernels, name, spy)
    jax.clear_caches()
    return names


def rows_of(random, shape, dtype, levels):
    """Embeddings that `dtype` holds exactly; with `levels`, integers whose products are exact."""
    values = random.normal(size=shape)
    values = np.round(values * levels) if levels else values
    rows = jnp.asarray(values, jnp.float32).astype(dtype)
    return rows, np.asarray(rows, np.float64)


# --- equal to the reference ----------------------------------------------------------------------


@few
@given(
    seeds,
    shapes,
    dtypes,
    st.sampled_from([0, 1]),
    st.sampled_from([0.01, 2.0, 1e4]),
    st.sampled_from([0, 1, 3]),
    st.booleans(),
)
def test_fit(seed, shape, dtype, k, beta, levels, weighted):
    random = np.random.default_rng(seed)
    num_bank, num_gallery, dim = shape
    bank, exact_bank = rows_of(random, (num_bank, dim), dtype, levels)
    gallery, exact_gallery = rows_of(random, (num_gallery, dim), dtype, levels)
    weights = random.integers(0, 3, num_bank).astype(np.float32) if weighted else None
    similarities = reference.dot_product(exact_bank, exact_gallery)
    found = dbn.stream_bank_statistics(bank, gallery, beta=beta, k=k, weights=weights)
    expected = reference.log_normalizer(similarities, beta, weights=weights)
    scale = max(1, beta) * max(1, np.abs(similarities).max())
    np.testing.assert_allclose(found.log_normalizer, expected, rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_array_equal(found.mass, reference.mass(similarities, weights=weights))
    if k:
        counts = reference.bank_k_occurrence(similarities, k, weights=weights)
        np.testing.assert_array_equal(found.k_occurrence, counts)


@few
@given(seeds, shapes, dtypes, st.sampled_from([1, 7]), st.booleans())
def test_search(seed, shape, dtype, k, corrected):
    """Integers: products are exact, and ties many; the lowest index wins."""
    random = np.random.default_rng(seed)
    num_queries, num_gallery, dim = shape
    k = min(k, num_gallery // 32)
    queries, exact_queries = rows_of(random, (num_queries, dim), dtype, 1)
    gallery, exact_gallery = rows_of(random, (num_gallery, dim), dtype, 1)
    bias = random.integers(-2, 3, (2, num_gallery)).astype(np.float32)
    active = random.random((2, num_gallery)) > 0.5
    scores = reference.dot_product(exact_queries, exact_gallery)
    if corrected:
        scores = scores - reference.argmax_gate(scores, active[0])[:, None] * bias[0]
        raw = reference.dot_product(exact_queries, exact_gallery)
        scores = scores - reference.argmax_gate(raw, active[1])[:, None] * bias[1]
    correction = dbn.Correction(jnp.asarray(bias), jnp.asarray(active)) if corrected else None
    found = dbn.stream_top_k(queries, gallery, k, correction)
    values, indices = reference.top_k(scores, k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, values)


@few
@given(seeds, st.sampled_from([dbn.dot_product, dbn.cosine_similarity]))
def test_search_of_floats(seed, similarity_fn):
    random = np.random.default_rng(seed)
    queries, gallery = (
        random.normal(size=(count, 40)).astype(np.float32) for count in SHAPES[2][:2]
    )
    found = dbn.stream_top_k(queries, gallery, 5, similarity_fn=similarity_fn)
    expected = {
        dbn.dot_product: reference.dot_product,
        dbn.cosine_similarity: reference.cosine_similarity,
    }[similarity_fn](queries, gallery)
    np.testing.assert_allclose(found.scores, reference.top_k(expected, 5)[0], atol=2e-5)
    own = np.take_along_axis(expected, np.asarray(found.indices), axis=1)
    np.testing.assert_allclose(found.scores, own, atol=2e-5)


def test_several_passes(monkeypatch):
    """Bank and queries in more than one chunk, the last one shorter."""
    random = np.random.default_rng(0)
    bank, gallery = (random.integers(-1, 2, (count, 8)) * 1.0 for count in (150, 300))
    monkeypatch.setattr(kernels, "_MOST_BYTES", 1)
    jax.clear_caches()
    statistics = dbn.stream_bank_statistics(bank, gallery, beta=0.3)
    found = dbn.stream_top_k(bank, gallery, 4)
    similarities = reference.dot_product(bank, gallery)
    expected = reference.log_normalizer(similarities, 0.3)
    np.testing.assert_allclose(statistics.log_normalizer, expected, rtol=1e-6)
    counts = reference.bank_k_occurrence(similarities, 1)
    np.testing.assert_array_equal(statistics.k_occurrence, counts)
    np.testing.assert_array_equal(found.indices, reference.top_k(similarities, 4)[1])


def test_nan_ranks_below_every_number():
    # Inside a jit, where values are not checked.
    rows = np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32)
    gallery = rows.copy()
    gallery[3] = np.nan
    found = jax.jit(lambda rows, gallery: dbn.stream_top_k(rows, gallery, 2))(rows, gallery)
    assert not (np.asarray(found.indices) == 3).any()
    chex.assert_tree_all_finite(found.scores)
    statistics = jax.jit(lambda r, g: dbn.stream_bank_statistics(r, g, beta=1.0))(rows, gallery)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(statistics.log_normalizer)), [3])
    assert statistics.k_occurrence[3] == 0
    assert statistics.k_occurrence.sum() == 100


# --- transformations -----------------------------------------------------------------------------


def fit(bank, gallery, beta, weights):
    return dbn.stream_bank_statistics(bank, gallery, beta=beta, weights=weights).bias.sum()


def search(queries, gallery):
    return (dbn.stream_top_k(queries, gallery, 2).scores ** 2).sum()


ARGUMENTS = (
    jnp.asarray(np.random.default_rng(2).normal(size=(20, 4)), jnp.float32),
    jnp.asarray(np.random.default_rng(3).normal(size=(80, 4)), jnp.float32),
    jnp.float32(3),
    jnp.asarray(np.arange(20) % 3, jnp.float32),
)


@pytest.mark.slow
def test_derivatives_are_those_of_the_plain_path(monkeypatch, calls):
    tangents = jax.tree.map(jnp.ones_like, ARGUMENTS)

    def derivatives():
        return (
            jax.value_and_grad(fit, (0, 1, 2, 3))(*ARGUMENTS),
            jax.jvp(fit, ARGUMENTS, tangents),
            jax.grad(jax.grad(fit, 2), 2)(*ARGUMENTS),
            jax.value_and_grad(search, (0, 1))(*ARGUMENTS[:2]),
        )

    fused = derivatives()
    assert set(calls) == {"bank_sums", "search"}
    monkeypatch.setenv(dispatch.SWITCH, dispatch.NEVER)
    chex.assert_trees_all_equal(fused, derivatives())
    chex.assert_tree_all_finite(fused)


def test_vmap_over_betas(calls):
    bank, gallery, _, weights = ARGUMENTS
    betas = jnp.array([0.5, 20.0])

    def fit(beta):
        return dbn.stream_bank_statistics(bank, gallery, beta=beta, weights=weights)

    mapped = jax.vmap(fit)(betas)
    assert calls
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(fit, betas))
    chex.assert_trees_all_close(mapped, looped, rtol=1e-6)
    chex.assert_trees_all_close(fit(betas), looped, rtol=1e-6)


# --- the switch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switch", "fused"), [(None, False), ("never", False), ("auto", False), ("interpret", True)]
)
def test_switch(monkeypatch, calls, switch, fused):
    """Never by default; `auto` finds nothing on a CPU; seen without clearing compiled programs."""
    if switch is None:
        monkeypatch.delenv(dispatch.SWITCH)
    else:
        monkeypatch.setenv(dispatch.SWITCH, switch)

    def trace():
        calls.clear()
        jax.eval_shape(fit, *ARGUMENTS)
        jax.eval_shape(search, *ARGUMENTS[:2])
        return set(calls)

    assert trace() == ({"bank_sums", "search"} if fused else set())
    monkeypatch.setenv(dispatch.SWITCH, "never")
    assert trace() == set()


def test_unknown_switch(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "yes")
    with pytest.raises(ValueError, match="DBNORM_KERNELS must be never, auto or interpret"):
        dbn.stream_top_k(*ARGUMENTS[:2], 1)


def test_plain_where_the_kernels_do_not_fit(calls):
    bank, gallery = ARGUMENTS[:2]
    soft = dbn.Correction(jnp.ones((1, 80)), jnp.full((1, 80), 0.5))
    for run in (
        lambda: dbn.stream_bank_statistics(bank, gallery, beta=1.0, k=2),
        lambda: dbn.stream_bank_statistics(bank, gallery, beta=1.0, exclude=np.arange(20)),
        lambda: dbn.stream_bank_statistics(bank.astype(jnp.float16), gallery, beta=1.0),
        lambda: dbn.stream_top_k(bank, gallery, 2, similarity_fn=dbn.negative_squared_euclidean),
        lambda: dbn.stream_top_k(bank, gallery, 5),  # more blocks than there are
        lambda: dbn.stream_top_k(bank, gallery, 1, soft),
    ):
        jax.eval_shape(run)
    with jax.enable_x64(True):
        jax.eval_shape(lambda: dbn.stream_top_k(np.asarray(bank, np.float64), gallery, 1))
    assert not calls


@pytest.mark.parametrize(
    ("dtype", "precision", "similarity_fn", "version", "fused"),
    [
        ("bfloat16", None, dbn.dot_product, (0, 10, 2), True),
        ("float32", None, dbn.dot_product, (0, 10, 2), False),
        ("float32", "tensorfloat32", dbn.dot_product, (0, 10, 2), True),
        ("float32", "highest", dbn.dot_product, (0, 10, 2), False),
        ("bfloat16", None, dbn.cosine_similarity, (0, 10, 2), False),
        ("bfloat16", None, dbn.dot_product, (0, 11, 0), False),
    ],
)
def test_auto_on_a_gpu(monkeypatch, dtype, precision, similarity_fn, version, fused):
    """Where the products are of low precision, and on a tested JAX."""
    monkeypatch.setenv(dispatch.SWITCH, dispatch.AUTO)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(dispatch, "_works", lambda *key: True)
    rows = jnp.ones((4, 8), dtype)
    with jax.default_matmul_precision(precision):
        found = dispatch.choose(rows, rows, similarity_fn)
    assert found == ("cuda" if fused else "never")


def test_a_failing_probe_is_logged(monkeypatch, caplog):
    def broken(*arrays, **options):
        raise NotImplementedError("no such lowering")

    monkeypatch.setattr(kernels, "bank_sums", broken)
    dispatch._works.cache_clear()
    with caplog.at_level(logging.WARNING, "dbnorm_jax"):
        assert not dispatch._works(dispatch.INTERPRET, "bfloat16", None)
    assert "no fused kernels on interpret in bfloat16" in caplog.text
    assert "no such lowering" in caplog.text
    dispatch._works.cache_clear()


def test_the_probe_accepts_the_kernels(caplog):
    dispatch._works.cache_clear()

    @jax.jit
    def under_a_trace(x):
        assert dispatch._works(dispatch.INTERPRET, "bfloat16", None), caplog.text
        return x

    under_a_trace(1.0)
    dispatch._works.cache_clear()


# --- lowering, without the hardware --------------------------------------------------------------


@contextlib.contextmanager
def as_jax_wants_it(platform):
    """A JAX that deprecates Triton warns, and must be told the GPU.

    No user is warned: with such a JAX `auto` chooses the plain path (test_auto_on_a_gpu).
    """
    if platform != "cuda" or jax.__version_info__ < dispatch._TESTED_JAX[1]:
        yield
        return
    gpu = jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=gpu)
    warned = pytest.warns(DeprecationWarning, match="Pallas Triton backend is deprecated")
    with warned, jax.sharding.use_abstract_mesh(mesh):
        yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers(monkeypatch, platform, dtype):
    """To Triton and to Mosaic TPU; the CPU of the same machine takes the plain path."""
    monkeypatch.setattr(dispatch, "choose", lambda *_: platform)

    def run(bank, gallery, beta):
        statistics = dbn.stream_bank_statistics(bank, gallery, beta=beta)
        correction = dbn.dynamic_inverted_softmax(statistics)
        return statistics, dbn.stream_top_k(bank, gallery, 2, correction)

    call = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}[platform]
    shapes = (
        jax.ShapeDtypeStruct((300, 24), dtype),
        jax.ShapeDtypeStruct((500, 24), dtype),
        jax.ShapeDtypeStruct((), jnp.float32),
    )

    def exported_for(name):
        """One platform at a time: JAX lowers a branch for all platforms of a program."""
        return export.export(
            jax.jit(run),
            platforms=[name],
            disabled_checks=[export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")],
        )(*shapes)

    with as_jax_wants_it(platform):
        exported = exported_for(platform)
    plain = exported_for("cpu")
    assert str(exported.mlir_module()).count(f"@{call}(") == 2
    assert call not in str(plain.mlir_module())
