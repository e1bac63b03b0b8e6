"""Bad numbers at every public entry that takes arrays: refused by name, or taken and right.

A new public function must be added to `ENTRIES`, or to those that take no embeddings.
"""

import inspect
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import problem, statistics_of
from patience import HUNG, slow_but

import dbnorm_jax as dbn
from dbnorm_jax import attribution, baselines, growing, metrics, out_of_core, tuning
from dbnorm_jax._src.passes import streaming

pytestmark = pytest.mark.usefixtures("compile_fast")

ROOT = pathlib.Path(__file__).parents[2]
TEST = problem(0)
QUERIES, GALLERY, BANK, GALLERY_BANK = (
    TEST.queries,
    TEST.gallery,
    TEST.query_bank,
    TEST.gallery_bank,
)
SIMILARITIES, BANK_SIMILARITIES = TEST.similarities, TEST.query_bank_similarities
QUERY, GALLERY_STATISTICS = statistics_of(TEST)
CORRECTION = dbn.dual_inverted_softmax(QUERY, GALLERY_STATISTICS)
PREPARED = dbn.prepare_gallery(GALLERY, CORRECTION)
RELEVANT = np.arange(len(QUERIES))
EVERY_ITEM = np.argsort(-SIMILARITIES, axis=1)
GRADES = np.eye(*SIMILARITIES.shape, dtype=np.float32)
MESH = jax.make_mesh((1, 1), ("bank", "gallery"))
DISTANCE_NAMES = ("distances", "query_distances", "gallery_distances")
DISTANCES = (
    -dbn.negative_squared_euclidean(QUERIES, GALLERY),
    -dbn.negative_squared_euclidean(QUERIES, BANK),
    -dbn.negative_squared_euclidean(BANK, GALLERY),
)
DISTANCES = [np.asarray(array) for array in DISTANCES]

BOTH = {"bank": BANK, "gallery": GALLERY}
PAIR = {"queries": QUERIES, "gallery": GALLERY}
MATRIX = {"similarities": SIMILARITIES}
BANK_MATRIX = {"similarities": BANK_SIMILARITIES}
TEMPERATURE = {"temperature": 0.2}


def of(function, arrays, *static, **options):
    """An entry: its floating-point arrays by name, all of which are positional."""
    return (lambda **given: function(*given.values(), *static, **options)), arrays


def named(function, arrays, **options):
    """An entry whose arrays are keyword-only."""
    return (lambda **given: function(**given, **options)), arrays


ENTRIES = {
    "dot_product": of(dbn.dot_product, {"rows": QUERIES, "columns": GALLERY}),
    "cosine_similarity": of(dbn.cosine_similarity, {"rows": QUERIES, "columns": GALLERY}),
    "negative_squared_euclidean": of(
        dbn.negative_squared_euclidean, {"rows": QUERIES, "columns": GALLERY}
    ),
    "bank_statistics": of(dbn.bank_statistics, BANK_MATRIX, beta=3.0),
    "stream_bank_statistics": of(dbn.stream_bank_statistics, BOTH, beta=3.0),
    "largest_similarities": of(dbn.largest_similarities, BANK_MATRIX, k=2),
    "stream_largest_similarities": of(dbn.stream_largest_similarities, BOTH, k=2),
    "responsibilities": of(dbn.responsibilities, BANK_MATRIX, QUERY),
    "soft_activation": of(dbn.soft_activation, BANK_MATRIX, **TEMPERATURE),
    "stream_soft_activation": of(dbn.stream_soft_activation, BOTH, **TEMPERATURE),
    "soft_gates": of(dbn.soft_gates, MATRIX, CORRECTION, **TEMPERATURE),
    "stream_soft_gates": of(dbn.stream_soft_gates, PAIR, CORRECTION, **TEMPERATURE),
    "gates": of(dbn.gates, MATRIX, CORRECTION),
    "apply_correction": of(dbn.apply_correction, MATRIX, CORRECTION),
    "top_k": of(dbn.top_k, MATRIX, 2, CORRECTION),
    "stream_top_k": of(dbn.stream_top_k, PAIR, 2, CORRECTION),
    "prepare_gallery": of(dbn.prepare_gallery, {"gallery": GALLERY}, CORRECTION),
    "prepared: stream_top_k": of(dbn.stream_top_k, {"queries": QUERIES}, PREPARED, 2),
    "certified_queries": of(dbn.certified_queries, {"queries": QUERIES}, PREPARED, 2),
    "semantic_search": of(dbn.semantic_search, PAIR, CORRECTION),
    "published_scores": of(dbn.published_scores, MATRIX, QUERY, GALLERY_STATISTICS),
    "rescore": of(
        lambda scores: dbn.rescore((scores, EVERY_ITEM), CORRECTION),
        {"results.scores": SIMILARITIES},
    ),
    "inner_product_gallery": of(dbn.inner_product_gallery, {"gallery": GALLERY}, CORRECTION),
    "inner_product_queries": of(dbn.inner_product_queries, {"queries": QUERIES}, np.ones(2)),
    "inner_product_vectors": of(dbn.inner_product_vectors, PAIR, CORRECTION, gates=np.ones(2)),
    "auto": named(dbn.auto, {"gallery": GALLERY, "query_bank": BANK, "gallery_bank": GALLERY_BANK}),
    "metrics.ranks": of(metrics.ranks, {"scores": SIMILARITIES}, RELEVANT),
    "metrics.mean_average_precision": of(
        metrics.mean_average_precision, {"scores": SIMILARITIES}, RELEVANT
    ),
    "metrics.stream_ranks": of(metrics.stream_ranks, PAIR, RELEVANT, CORRECTION),
    "metrics.normalized_discounted_cumulative_gain": of(
        metrics.normalized_discounted_cumulative_gain, {"scores": SIMILARITIES}, GRADES
    ),
    "metrics.normalized_discounted_cumulative_gain: grades": of(
        lambda grades: metrics.normalized_discounted_cumulative_gain(SIMILARITIES, grades),
        {"grades": GRADES},
    ),
    "metrics.stream_normalized_discounted_cumulative_gain": of(
        metrics.stream_normalized_discounted_cumulative_gain, PAIR, GRADES, CORRECTION
    ),
    "metrics.precision_at": of(metrics.precision_at, {"scores": SIMILARITIES}, RELEVANT, 2),
    "metrics.success_at": of(metrics.success_at, {"scores": SIMILARITIES}, RELEVANT, 2),
    "out_of_core.bank_statistics": of(out_of_core.bank_statistics, BOTH, beta=3.0),
    "out_of_core.largest_similarities": of(out_of_core.largest_similarities, BOTH, k=2),
    "out_of_core.top_k": of(out_of_core.top_k, PAIR, 2, CORRECTION),
    "out_of_core.top_k_blocks": of(
        lambda *arrays: list(out_of_core.top_k_blocks(*arrays)), PAIR, 2, CORRECTION
    ),
    "out_of_core.ranks": of(out_of_core.ranks, PAIR, RELEVANT, CORRECTION),
    "mesh: stream_bank_statistics": of(dbn.stream_bank_statistics, BOTH, beta=3.0, mesh=MESH),
    "mesh: stream_largest_similarities": of(dbn.stream_largest_similarities, BOTH, k=2, mesh=MESH),
    "mesh: stream_top_k": of(dbn.stream_top_k, PAIR, 2, CORRECTION, mesh=MESH),
    "mesh: stream_ranks": of(metrics.stream_ranks, PAIR, RELEVANT, CORRECTION, mesh=MESH),
    "tuning.tune": named(
        tuning.tune,
        {"query_bank": BANK, "gallery_bank": BANK[::-1].copy()},
        pairs=np.arange(6),
    ),
    "tuning.likely_mistakes": named(
        tuning.likely_mistakes,
        {"queries": QUERIES, "gallery": GALLERY, "query_bank": BANK, "gallery_bank": GALLERY_BANK},
    ),
    "tuning.likely_mistakes: matrices": named(
        tuning.likely_mistakes,
        {"similarities": SIMILARITIES, "query_bank_similarities": BANK_SIMILARITIES},
    ),
    "attribution.bias_contributors": of(
        attribution.bias_contributors, BOTH, QUERY, np.array([0]), k=2
    ),
    "attribution.top_1_changes": of(attribution.top_1_changes, PAIR, CORRECTION),
    "attribution.influence": named(
        attribution.influence,
        {"queries": QUERIES, "gallery": GALLERY, "bank": BANK},
        relevant=RELEVANT,
        statistics=QUERY,
        gated=True,
    ),
    "attribution.top_1_flips": named(
        attribution.top_1_flips,
        {"queries": QUERIES, "gallery": GALLERY, "bank": BANK, "moved": BANK},
        correction=dbn.dynamic_inverted_softmax(QUERY),
        statistics=QUERY,
    ),
    "attribution.hub_screening": named(
        attribution.hub_screening, {"gallery": GALLERY, "query_bank": BANK}, k=2
    ),
    "baselines.distribution_normalization": of(
        baselines.distribution_normalization, {"query_bank_mean": BANK[0], "gallery": GALLERY}
    ),
    "baselines.sinkhorn_normalization": of(
        baselines.sinkhorn_normalization, BANK_MATRIX, num_iterations=2, **TEMPERATURE
    ),
    "baselines.sinkhorn_residual": of(
        baselines.sinkhorn_residual, BANK_MATRIX, CORRECTION, **TEMPERATURE
    ),
    "baselines.stream_sinkhorn_normalization": named(
        baselines.stream_sinkhorn_normalization,
        {"query_bank": BANK, "gallery": GALLERY, "gallery_bank": GALLERY_BANK},
        num_iterations=2,
        **TEMPERATURE,
    ),
    "baselines.dual_bank_sinkhorn_normalization": of(
        baselines.dual_bank_sinkhorn_normalization,
        {"similarities": BANK_SIMILARITIES, "bank_similarities": BANK @ GALLERY_BANK.T},
        num_iterations=2,
        **TEMPERATURE,
    ),
    "baselines.hubless_nearest_neighbor": of(
        baselines.hubless_nearest_neighbor, BANK_MATRIX, num_iterations=2, **TEMPERATURE
    ),
    "baselines.dis_sim_local": of(
        baselines.dis_sim_local, {"gallery": GALLERY, "query_bank": BANK}, k=2
    ),
    "baselines.globally_corrected": of(
        baselines.globally_corrected,
        {"similarities": SIMILARITIES, "bank_similarities": BANK_SIMILARITIES},
    ),
    "baselines.dual_softmax": of(baselines.dual_softmax, MATRIX, **TEMPERATURE),
    "baselines.inverse_graph_convolution": named(
        baselines.inverse_graph_convolution,
        {"gallery": GALLERY, "query_bank": BANK, "gallery_bank": GALLERY_BANK},
        query_rate=0.3,
        gallery_rate=0.1,
    ),
    **{
        f"baselines.{function.__name__}": of(
            function,
            dict(zip(DISTANCE_NAMES, DISTANCES, strict=True)),
            **options,
        )
        for function, options in (
            (baselines.mutual_proximity, {"method": "empiric"}),
            (baselines.local_scaling, {"k": 2}),
            (baselines.nicdm, {"k": 2}),
        )
    },
}


# What takes no embeddings or similarities: states, ranks, counts, indices, files.
OTHERS = {
    *("merge", "all_merge", "save", "load", "read_provenance", "gates_from_top_1"),
    *("inverted_softmax", "dynamic_inverted_softmax"),
    *("dual_inverted_softmax", "dual_dynamic_inverted_softmax"),
    *("BankStatistics", "LargestSimilarities", "Correction", "PreparedGallery", "SearchResult"),
    *("baselines.csls", "baselines.nearest_neighbor_normalization"),
    *("metrics.recall_at", "metrics.median_rank", "metrics.mean_rank"),
    *("metrics.mean_reciprocal_rank", "metrics.geometric_mean_recall"),
    *("attribution.Contributors", "attribution.HubScreening", "attribution.Top1Changes"),
    "attribution.Top1Flips",
    *("growing.add_gallery_items", "growing.decay"),
    *("growing.remove_gallery_items", "subtract"),
    *("out_of_core.fingerprint", "tuning.Choice", "tuning.fit"),
}
MODULES = (attribution, baselines, growing, metrics, out_of_core, tuning)


def test_every_entry_has_its_line():
    public = {name for name in dbn.__all__ if callable(getattr(dbn, name))}
    for module in MODULES:
        names = getattr(module, "__all__", [name for name in vars(module) if is_own(module, name)])
        prefix = next(name for name in dbn.__all__ if getattr(dbn, name) is module)
        public |= {f"{prefix}.{name}" for name in names}
    assert public == {name for name in ENTRIES if ": " not in name} | OTHERS
    assert not ENTRIES.keys() & OTHERS


def is_own(module, name):
    value = getattr(module, name)
    return getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")


# --- refused -------------------------------------------------------------------------------------

PLACES = [(name, array) for name, (_, arrays) in ENTRIES.items() for array in arrays]
# Scores of masked items.
MAY_BE_INFINITE = {
    *("metrics.ranks", "metrics.mean_average_precision"),
    *(
        "metrics.normalized_discounted_cumulative_gain",
        "metrics.precision_at",
        "metrics.success_at",
    ),
}


@pytest.mark.parametrize(("name", "argument"), PLACES)
def test_refused_by_name(name, argument):
    """NaN and infinities in the last row of one argument: an error that names it."""
    call, arrays = ENTRIES[name]
    values = [np.nan] if name in MAY_BE_INFINITE else [np.nan, np.inf, -np.inf]
    for value in values:
        changed = arrays[argument].copy()
        changed[(-1,) * changed.ndim] = value
        words = "not hold NaN" if name in MAY_BE_INFINITE else "be finite"
        with pytest.raises(ValueError, match=f"`{argument}` must {words}") as raised:
            call(**arrays | {argument: changed})
        assert raised.value.argument == argument


CORRECTED = {
    "gates": lambda correction: dbn.gates(SIMILARITIES, correction),
    "apply_correction": lambda correction: dbn.apply_correction(SIMILARITIES, correction),
    "top_k": lambda correction: dbn.top_k(SIMILARITIES, 2, correction),
    "stream_top_k": lambda correction: dbn.stream_top_k(QUERIES, GALLERY, 2, correction),
    "semantic_search": lambda correction: dbn.semantic_search(QUERIES, GALLERY, correction),
    "soft_gates": lambda correction: dbn.soft_gates(SIMILARITIES, correction, temperature=0.2),
    "stream_ranks": lambda correction: metrics.stream_ranks(QUERIES, GALLERY, RELEVANT, correction),
    "rescore": lambda correction: dbn.rescore((SIMILARITIES, EVERY_ITEM), correction),
    "inner_product_gallery": lambda correction: dbn.inner_product_gallery(GALLERY, correction),
    "gates_from_top_1": lambda correction: dbn.gates_from_top_1(np.zeros(5, int), correction),
    "out_of_core": lambda correction: out_of_core.top_k(QUERIES, GALLERY, 2, correction),
    "mesh": lambda correction: dbn.stream_top_k(QUERIES, GALLERY, 2, correction, mesh=MESH),
    "top_1_changes": lambda correction: attribution.top_1_changes(QUERIES, GALLERY, correction),
}


@pytest.mark.parametrize("name", CORRECTED)
def test_a_correction_with_bad_numbers_is_refused(name):
    """What was fitted inside jit, or overflowed, goes no further."""
    bias = jnp.zeros((2, 7)).at[1, 3].set(jnp.nan)
    soft = jnp.full((2, 7), 0.5).at[0, 2].set(jnp.inf)
    with pytest.raises(
        ValueError, match=r"`correction.bias` must be finite, found nan at.* \[1, 3"
    ):
        CORRECTED[name](dbn.Correction(bias, None))
    with pytest.raises(ValueError, match=r"`correction.active` must be finite"):
        CORRECTED[name](dbn.Correction(jnp.zeros((2, 7)), soft))


def test_products_that_overflow_go_no_further_than_the_fit():
    huge = dbn.stream_bank_statistics(BANK * 1e20, GALLERY * 1e20, beta=1.0)
    with pytest.raises(ValueError, match=r"`correction.bias` must be finite"):
        dbn.stream_top_k(QUERIES, GALLERY, 2, dbn.inverted_softmax(huge))


# --- taken, and right ----------------------------------------------------------------------------

EXACT = {name: entry for name, entry in ENTRIES.items() if name not in ("auto", "tuning.tune")}


def leaves(value):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(value)]


@pytest.mark.parametrize("name", slow_but(["stream_top_k"], EXACT))
def test_strided_and_read_only_arrays(name):
    """Other layouts of the same values give the same bits, and are not written to."""
    call, arrays = ENTRIES[name]
    expected = leaves(call(**arrays))
    layouts = {
        "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
        "reversed": lambda array: array[::-1].copy()[::-1],
        "fortran": np.asfortranarray,
    }
    for layout in layouts.values():
        changed = {key: layout(array) for key, array in arrays.items()}
        for array in changed.values():
            array.flags.writeable = False
        for found, wanted in zip(leaves(call(**changed)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


FITTED = {
    "IS": lambda query, gallery: dbn.inverted_softmax(query),
    "DIS": lambda query, gallery: dbn.dynamic_inverted_softmax(query),
    "DualIS": dbn.dual_inverted_softmax,
    "DualDIS": dbn.dual_dynamic_inverted_softmax,
}


def fitted(name, bank, gallery, beta=3.0, **options):
    query = dbn.stream_bank_statistics(bank, gallery, beta=beta, **options)
    return FITTED[name](query, dbn.stream_bank_statistics(gallery, gallery, beta=beta, **options))


@pytest.mark.parametrize("name", FITTED)
def test_one_item_and_one_bank_row(name):
    """The bias is a similarity, or a mean of two by their betas: log-sums of one term are exact."""
    correction = fitted(name, BANK[:1], GALLERY[:1])
    cross = (BANK[:1].astype(float) @ GALLERY[:1].astype(float).T)[0, 0]
    own = (GALLERY[:1].astype(float) @ GALLERY[:1].astype(float).T)[0, 0]
    expected = (cross + own) / 2 if "Dual" in name else cross
    np.testing.assert_allclose(correction.bias.sum(), expected, rtol=1e-5, atol=1e-6)
    found = dbn.stream_top_k(QUERIES, GALLERY[:1], 1, correction)
    assert (found.indices == 0).all()
    raw = QUERIES.astype(float) @ GALLERY[:1].astype(float).T
    np.testing.assert_allclose(found.scores, raw - expected, atol=1e-5)
    dense = dbn.top_k(SIMILARITIES[:, :1], 1, correction)
    np.testing.assert_array_equal(dense.indices, found.indices)


@pytest.mark.parametrize("name", ["IS", "DualDIS"])
@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, 1e-40, 1e15])
def test_constant_matrices_are_all_ties(name, value):
    """Nothing is preferred: equal biases, and the lowest indices in order."""
    gallery, bank = np.full((70, 4), value, np.float32), np.full((11, 4), 1.0, np.float32)
    correction = fitted(name, bank, gallery, beta=0.5)
    bias = np.asarray(correction.bias)
    assert np.isfinite(bias).all()
    assert (bias == bias[:, :1]).all()
    found = dbn.stream_top_k(bank, gallery, 5, correction)
    np.testing.assert_array_equal(found.indices, np.tile(np.arange(5), (11, 1)))
    assert (metrics.stream_ranks(bank, gallery, np.arange(11), correction) == 35.5).all()


@pytest.mark.parametrize("name", ["IS", "DualDIS"])
@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e37])
def test_cosines_of_huge_and_tiny_rows(name, scale):
    """Length means nothing to a cosine, up to the ends of float32."""
    options = {"similarity_fn": dbn.cosine_similarity}
    expected = fitted(name, BANK, GALLERY, **options)
    found = fitted(name, BANK * np.float32(scale), GALLERY * np.float32(scale), **options)
    np.testing.assert_allclose(found.bias, expected.bias, atol=2e-6)
    wanted = dbn.stream_top_k(QUERIES, GALLERY, 3, expected, **options)
    got = dbn.stream_top_k(QUERIES * np.float32(scale), GALLERY, 3, found, **options)
    np.testing.assert_array_equal(got.indices, wanted.indices)
    np.testing.assert_allclose(got.scores, wanted.scores, atol=2e-6)


def test_products_at_the_ends_of_float32():
    """Similarities of 1e37 rank and correct as those of 1: the scale is the caller's."""
    scale = np.float32(2.0**60)
    expected = fitted("DualDIS", BANK, GALLERY)
    found = fitted("DualDIS", BANK * scale, GALLERY * scale, beta=3.0 / 2.0**120)
    np.testing.assert_allclose(found.bias / 2.0**120, expected.bias, rtol=1e-5)
    np.testing.assert_array_equal(found.active, expected.active)


def test_denormal_rows_are_small_numbers():
    """Products below the smallest number are 0, and so are their biases; nothing is NaN."""
    tiny = BANK * np.float32(1e-42)
    assert tiny.any()
    found = dbn.stream_bank_statistics(tiny, GALLERY, beta=1.0)
    np.testing.assert_allclose(found.bias, 0, atol=1e-6)
    np.testing.assert_allclose(found.log_normalizer, np.log(len(BANK)), rtol=1e-6)


def test_empty_blocks_change_nothing():
    parts = [BANK[:0], BANK[:2], BANK[2:2], BANK[2:], BANK[:0]]
    expected = out_of_core.bank_statistics(BANK, GALLERY, beta=3.0)
    found = out_of_core.bank_statistics(iter(parts), GALLERY, beta=3.0)
    np.testing.assert_array_equal(found.log_normalizer, expected.log_normalizer)
    pieces = [GALLERY[:3], GALLERY[:0], GALLERY[3:]]
    searched = out_of_core.top_k(QUERIES, pieces, 3)
    np.testing.assert_array_equal(searched.indices, out_of_core.top_k(QUERIES, GALLERY, 3).indices)


HALF_WAY = """
import numpy as np, jax
import dbnorm_jax as dbn

random = np.random.default_rng(0)
bank, gallery, queries = (random.normal(size=(n, 4)) for n in (6, 7, 5))

def run(dtype):
    arrays = [array.astype(dtype) for array in (bank, gallery, queries)]
    statistics = dbn.stream_bank_statistics(*arrays[:2], beta=3.0)
    correction = dbn.dynamic_inverted_softmax(statistics)
    return statistics, correction, dbn.stream_top_k(arrays[2], arrays[1], 3, correction)

def same(first, second):
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.dtype == other.dtype and (one == other).all()

before = run(np.float32)
same(run(np.float64), before)  # JAX rounds it
jax.config.update("jax_enable_x64", True)
same(run(np.float32), before)
wide = run(np.float64)
assert wide[0].log_normalizer.dtype == wide[2].scores.dtype == np.float64
assert wide[2].indices.dtype == before[2].indices.dtype == np.int32
np.testing.assert_allclose(wide[1].bias, before[1].bias, atol=1e-5)
merged = dbn.merge(before[0], wide[0])  # one fitted before, one after
np.testing.assert_allclose(merged.bias, wide[0].bias, atol=1e-5)
mixed = dbn.stream_top_k(queries, gallery, 3, before[1])  # a correction of before
np.testing.assert_array_equal(mixed.indices, wide[2].indices)
jax.config.update("jax_enable_x64", False)
same(run(np.float32), before)
same(dbn.stream_top_k(queries, gallery, 3, wide[1]).indices, before[2].indices)
"""


@pytest.mark.slow
def test_x64_switched_on_half_way():
    """What was compiled and fitted before goes on to work, and float64 is float64."""
    done = subprocess.run(
        [sys.executable, "-c", HALF_WAY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HUNG,
        check=False,
    )
    assert not done.returncode, done.stderr


# --- more than 2^31 ------------------------------------------------------------------------------


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_arrays_of_more_than_2_to_the_31_values():
    """Shapes alone, nothing is allocated: banks, galleries and matrices of 2^33 values."""
    bank, gallery = abstract(2**25, 256), abstract(2**26 + 1, 256)

    def run(bank, gallery, queries):
        statistics = dbn.stream_bank_statistics(bank, gallery, beta=3.0)
        correction = dbn.dual_dynamic_inverted_softmax(statistics, statistics)
        ranks = metrics.stream_ranks(queries, gallery, jnp.zeros(16, jnp.int32), correction)
        return correction, dbn.stream_top_k(queries, gallery, 10, correction), ranks

    correction, found, ranks = jax.eval_shape(run, bank, gallery, abstract(16, 256))
    assert correction.bias.shape == (2, 2**26 + 1)
    assert (found.indices.shape, found.indices.dtype) == ((16, 10), jnp.int32)
    assert ranks.shape == (16,)
    dense = jax.eval_shape(
        lambda matrix: dbn.top_k(
            matrix, 3, dbn.inverted_softmax(dbn.bank_statistics(matrix, beta=3.0))
        ),
        abstract(2**16, 2**17),
    )
    assert dense.indices.shape == (2**16, 3)


@pytest.mark.parametrize("chunk_size", [1024, 1000, 2**20])
def test_chunks_up_to_the_last_row(chunk_size):
    """The places of the last blocks of 2^31 - 1 rows: each row is passed once, none is beyond."""
    length = 2**31 - 1
    size = streaming.even_size(length, chunk_size)
    num_blocks = -(-length // size)
    for index in (num_blocks - 2, num_blocks - 1):
        start, fresh = streaming._place(jnp.int32(index), size, length)
        assert start.dtype == jnp.int32
        places = int(start) + np.flatnonzero(fresh).astype(np.int64)
        np.testing.assert_array_equal(
            places, np.arange(index * size, min((index + 1) * size, length))
        )


def test_more_rows_than_indices_are_refused():
    with pytest.raises(ValueError, match=r"`gallery` must have at most 2147483647 rows"):
        jax.eval_shape(
            lambda gallery: dbn.stream_top_k(QUERIES[:, :1], gallery, 1), abstract(2**31, 1)
        )
    with pytest.raises(ValueError, match=r"`similarities` must have at most 2147483647"):
        jax.eval_shape(lambda matrix: dbn.top_k(matrix, 1), abstract(1, 2**31))


# --- integers that int32 does not hold -----------------------------------------------------------

TOO_LARGE = 2**32  # what int32 makes 0 of
MULTIPLES = np.array([TOO_LARGE + 1, 1, 2**33, 0, 2**31, 5])  # of the six bank rows


def grown(function, *arguments, **options):
    """A change of the gallery behind statistics of weighted rows."""

    def call(weights):
        fitted = dbn.stream_bank_statistics(BANK, GALLERY, beta=3.0, weights=weights)
        neighbors = dbn.stream_top_k(BANK, GALLERY, 1)
        return function(fitted, neighbors, BANK, *arguments, weights=weights, **options)

    return call


def flips(**options):
    known = {"queries": QUERIES, "gallery": GALLERY, "bank": BANK, "statistics": QUERY}
    return attribution.top_1_flips(correction=dbn.inverted_softmax(QUERY), **known, **options)


WEIGHTED = {
    "bank_statistics": lambda w: dbn.bank_statistics(BANK_SIMILARITIES, beta=3.0, weights=w),
    "stream_bank_statistics": lambda w: dbn.stream_bank_statistics(
        BANK, GALLERY, beta=3.0, weights=w
    ),
    "responsibilities": lambda w: dbn.responsibilities(BANK_SIMILARITIES, QUERY, weights=w),
    "soft_activation": lambda w: dbn.soft_activation(BANK_SIMILARITIES, temperature=9.0, weights=w),
    "stream_soft_activation": lambda w: dbn.stream_soft_activation(
        BANK, GALLERY, temperature=9.0, weights=w
    ),
    "out_of_core.bank_statistics": lambda w: out_of_core.bank_statistics(
        [BANK], GALLERY, beta=3.0, weights=w
    ),
    "mesh: stream_bank_statistics": lambda w: dbn.stream_bank_statistics(
        BANK, GALLERY, beta=3.0, weights=w, mesh=MESH
    ),
    "attribution.bias_contributors": lambda w: attribution.bias_contributors(
        BANK, GALLERY, QUERY, RELEVANT, k=2, weights=w
    ),
    "attribution.influence": lambda w: attribution.influence(
        queries=QUERIES, gallery=GALLERY, relevant=RELEVANT, bank=BANK, statistics=QUERY, weights=w
    ),
    "attribution.top_1_flips": lambda w: flips(weights=w),
    "growing.add_gallery_items": grown(growing.add_gallery_items, GALLERY[:2]),
    "growing.remove_gallery_items": grown(growing.remove_gallery_items, GALLERY, removed=[1]),
}

# Of rows: what takes them, the argument, good ones.
EXCLUDED = np.arange(6)
ROWS = {
    "metrics.ranks": (lambda rows: metrics.ranks(SIMILARITIES, rows), "relevant", RELEVANT),
    "metrics.mean_average_precision": (
        lambda rows: metrics.mean_average_precision(SIMILARITIES, rows),
        "relevant",
        RELEVANT,
    ),
    "metrics.precision_at": (
        lambda rows: metrics.precision_at(SIMILARITIES, rows, 2),
        "relevant",
        RELEVANT,
    ),
    "metrics.success_at": (
        lambda rows: metrics.success_at(SIMILARITIES, rows, 2),
        "relevant",
        RELEVANT,
    ),
    "metrics.stream_ranks": (
        lambda rows: metrics.stream_ranks(QUERIES, GALLERY, rows),
        "relevant",
        RELEVANT,
    ),
    "out_of_core.ranks": (
        lambda rows: out_of_core.ranks(QUERIES, GALLERY, rows),
        "relevant",
        RELEVANT,
    ),
    "out_of_core.ranks of blocks": (
        lambda rows: out_of_core.ranks([QUERIES], [GALLERY[:3], GALLERY[3:]], rows),
        "relevant",
        RELEVANT,
    ),
    "mesh: stream_ranks": (
        lambda rows: metrics.stream_ranks(QUERIES, GALLERY, rows, mesh=MESH),
        "relevant",
        RELEVANT,
    ),
    "attribution.influence": (
        lambda rows: attribution.influence(
            queries=QUERIES, gallery=GALLERY, relevant=rows, bank=BANK, statistics=QUERY
        ),
        "relevant",
        RELEVANT,
    ),
    "tuning.tune": (
        lambda rows: tuning.tune(query_bank=BANK, gallery_bank=GALLERY, pairs=rows),
        "pairs",
        EXCLUDED,
    ),
    "tuning.fit": (
        lambda rows: tuning.fit(
            tuning.tune(query_bank=BANK, gallery_bank=GALLERY),
            gallery=GALLERY,
            query_bank=BANK,
            gallery_bank=GALLERY,
            pairs=rows,
        ),
        "pairs",
        EXCLUDED,
    ),
    "auto": (
        lambda rows: dbn.auto(gallery=GALLERY, query_bank=BANK, gallery_bank=GALLERY, pairs=rows),
        "pairs",
        EXCLUDED,
    ),
}
MATRICES = dict(ROWS)  # where a matrix of the scores' shape may be meant
ROWS |= {
    "metrics.normalized_discounted_cumulative_gain": (
        lambda rows: metrics.normalized_discounted_cumulative_gain(
            SIMILARITIES, GRADES, exclude=rows
        ),
        "exclude",
        RELEVANT,
    ),
    "metrics.stream_normalized_discounted_cumulative_gain": (
        lambda rows: metrics.stream_normalized_discounted_cumulative_gain(
            QUERIES, GALLERY, GRADES, exclude=rows
        ),
        "exclude",
        RELEVANT,
    ),
    "attribution.influence: items": (
        lambda rows: attribution.influence(
            queries=QUERIES,
            gallery=GALLERY,
            relevant=RELEVANT,
            bank=BANK,
            statistics=QUERY,
            items=rows,
        ),
        "items",
        EXCLUDED,
    ),
    "attribution.top_1_flips": (lambda rows: flips(items=rows), "items", EXCLUDED),
    "tuning.likely_mistakes": (
        lambda rows: tuning.likely_mistakes(queries=QUERIES, gallery=GALLERY, relevant=rows),
        "relevant",
        RELEVANT,
    ),
    "attribution.bias_contributors": (
        lambda rows: attribution.bias_contributors(BANK, GALLERY, QUERY, rows, k=2),
        "items",
        RELEVANT,
    ),
    "attribution.bias_contributors: exclude": (
        lambda rows: attribution.bias_contributors(
            BANK, GALLERY, QUERY, RELEVANT, k=2, exclude=rows
        ),
        "exclude",
        EXCLUDED,
    ),
    "stream_bank_statistics": (
        lambda rows: dbn.stream_bank_statistics(BANK, GALLERY, beta=3.0, exclude=rows),
        "exclude",
        EXCLUDED,
    ),
    "stream_largest_similarities": (
        lambda rows: dbn.stream_largest_similarities(BANK, GALLERY, k=2, exclude=rows),
        "exclude",
        EXCLUDED,
    ),
    "baselines.stream_sinkhorn_normalization": (
        lambda rows: baselines.stream_sinkhorn_normalization(
            BANK, GALLERY, temperature=0.5, num_iterations=2, exclude=rows
        ),
        "exclude",
        EXCLUDED,
    ),
    "out_of_core.bank_statistics": (
        lambda rows: out_of_core.bank_statistics(BANK, GALLERY, beta=3.0, exclude=rows),
        "exclude",
        EXCLUDED,
    ),
    "out_of_core.largest_similarities": (
        lambda rows: out_of_core.largest_similarities(BANK, [GALLERY], k=2, exclude=rows),
        "exclude",
        EXCLUDED,
    ),
    "mesh: stream_bank_statistics": (
        lambda rows: dbn.stream_bank_statistics(BANK, GALLERY, beta=3.0, exclude=rows, mesh=MESH),
        "exclude",
        EXCLUDED,
    ),
    "mesh: stream_largest_similarities": (
        lambda rows: dbn.stream_largest_similarities(BANK, GALLERY, k=2, exclude=rows, mesh=MESH),
        "exclude",
        EXCLUDED,
    ),
    "gates": (
        lambda rows: dbn.gates(SIMILARITIES, dbn.dynamic_inverted_softmax(QUERY), exclude=rows),
        "exclude",
        RELEVANT,
    ),
    "top_k": (lambda rows: dbn.top_k(SIMILARITIES, 2, exclude=rows), "exclude", RELEVANT),
    "stream_top_k": (
        lambda rows: dbn.stream_top_k(QUERIES, GALLERY, 2, exclude=rows),
        "exclude",
        RELEVANT,
    ),
    "mesh: stream_top_k": (
        lambda rows: dbn.stream_top_k(QUERIES, GALLERY, 2, exclude=rows, mesh=MESH),
        "exclude",
        RELEVANT,
    ),
    "certified_queries": (
        lambda rows: dbn.certified_queries(QUERIES, PREPARED, 2, exclude=rows),
        "exclude",
        RELEVANT,
    ),
    "semantic_search": (
        lambda rows: dbn.semantic_search(QUERIES, GALLERY, k=2, exclude=rows),
        "exclude",
        RELEVANT,
    ),
    "out_of_core.top_k": (
        lambda rows: out_of_core.top_k(QUERIES, [GALLERY], 2, exclude=rows),
        "exclude",
        RELEVANT,
    ),
    "out_of_core.top_k_blocks": (
        lambda rows: list(out_of_core.top_k_blocks(QUERIES, [GALLERY], 2, exclude=rows)),
        "exclude",
        RELEVANT,
    ),
    "gates_from_top_1": (
        lambda rows: dbn.gates_from_top_1(rows, dbn.dynamic_inverted_softmax(QUERY)),
        "indices",
        RELEVANT,
    ),
    "rescore": (
        lambda rows: dbn.rescore((SIMILARITIES, EVERY_ITEM), CORRECTION, exclude=rows),
        "exclude",
        RELEVANT,
    ),
    "rescore: indices": (
        lambda rows: dbn.rescore((SIMILARITIES[:, :1], rows[:, None]), CORRECTION),
        "results.indices",
        RELEVANT,
    ),
    "hubness.k_occurrence": (
        lambda rows: dbn.hubness.k_occurrence(rows[:, None], 7),
        "indices",
        RELEVANT,
    ),
    "growing.remove_gallery_items": (
        lambda rows: growing.remove_gallery_items(
            dbn.stream_bank_statistics(BANK, GALLERY, beta=3.0),
            dbn.stream_top_k(BANK, GALLERY, 1),
            BANK,
            GALLERY,
            removed=rows,
        ),
        "removed",
        RELEVANT,
    ),
    "growing.remove_gallery_items: neighbors": (
        lambda rows: growing.remove_gallery_items(
            dbn.stream_bank_statistics(BANK, GALLERY, beta=3.0),
            dbn.SearchResult(np.zeros((6, 1), np.float32), rows[:, None]),
            BANK,
            GALLERY,
            removed=[0],
        ),
        "neighbors.indices",
        EXCLUDED,
    ),
}
# Multiplicities of terms, not of rows; and what was tested with its sibling.
NOT_LISTED = {"dual_inverted_softmax", "dual_dynamic_inverted_softmax"}


def test_whatever_takes_weights_or_rows_is_listed():
    names = {id(getattr(dbn, name)): name for name in dbn.__all__}
    modules = {"": dbn} | {f"{names[id(module)]}.": module for module in MODULES}
    for prefix, module in modules.items():
        for name in getattr(module, "__all__", vars(module)):
            function = getattr(module, name)
            if not (prefix == "" or is_own(module, name)) or not inspect.isfunction(function):
                continue
            parameters = set(inspect.signature(function).parameters)
            if prefix + name in NOT_LISTED:
                continue
            assert ("weights" in parameters) == (prefix + name in WEIGHTED), prefix + name
            if parameters & {"exclude", "relevant", "pairs", "indices", "removed"}:
                assert prefix + name in ROWS, prefix + name


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_any_size_are_right(name):
    """Integers of 64 bits weigh as the same numbers in floating point do, bit by bit."""
    call = WEIGHTED[name]
    expected = leaves(call(MULTIPLES.astype(np.float32)))
    for weights in (MULTIPLES, MULTIPLES.astype(np.uint64), MULTIPLES.tolist()):
        for found, wanted in zip(leaves(call(weights)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("weight", [1e39, 1e-50])
def test_weights_that_float32_does_not_hold_are_refused(name, weight):
    weights = np.ones(6)
    weights[4] = weight
    with pytest.raises(ValueError, match=r"`weights` must be .*float32.*enable jax_enable_x64"):
        WEIGHTED[name](weights)


@pytest.mark.parametrize("name", ["bank_statistics", "out_of_core.bank_statistics"])
def test_float64_weights_of_float32_rows_are_refused_likewise(x64, name):
    with pytest.raises(ValueError, match=r"`weights` must be .*1e\+39"):
        WEIGHTED[name](np.full(6, 1e39))


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_int32_does_not_hold_are_refused(name):
    call, argument, rows = ROWS[name]
    rows = rows.copy()
    rows[1] += TOO_LARGE
    for wide in (rows, rows.astype(np.uint64)):
        with pytest.raises(ValueError, match=rf"`{argument}` must hold .*{TOO_LARGE + 1}"):
            call(wide)


def test_numbers_of_any_size_are_right():
    """Where one number is asked for, an integer means what the same float does."""
    large = TOO_LARGE + 1
    for kind in (int, np.int64, np.uint64):
        assert dbn.bank_statistics(BANK_SIMILARITIES, beta=kind(large)).beta == np.float32(large)
        assert growing.decay(QUERY, kind(large)).mass[0] == 6 * np.float32(large)
        assert metrics.recall_at(np.array([1.0, 5.0], np.float32), kind(large)) == 1
        assert dbn.hubness.hub_share([3, 1], factor=kind(large)) == 0
        dual = dbn.dual_inverted_softmax(QUERY, GALLERY_STATISTICS, weights=(kind(large), 1))
        assert (dual.bias[0] == np.float32(large) * QUERY.bias).all()


@pytest.mark.parametrize(
    ("call", "name"), [(metrics.mean_rank, "ranks"), (lambda s: metrics.ranks(s, [0]), "scores")]
)
def test_what_may_be_infinite_is_not_made_so(call, name):
    values = np.array([[1.0, 1e39]])
    with pytest.raises(ValueError, match=rf"`{name}` must be in the range of float32"):
        call(values)
    assert np.isfinite(call(np.where(values > 9, np.inf, values))).sum() <= 1


# --- yes and no where rows are asked for ---------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
def test_a_matrix_of_numbers_is_not_read_as_rows(name, dtype):
    call, argument, rows = MATRICES[name]
    right = rows[:, None] == np.arange(7)
    words = f"`{argument}` of the shape of the scores.*bool" if "blocks" not in name else argument
    with pytest.raises(TypeError, match=words):
        call(right.astype(dtype))


def test_a_bool_matrix_must_be_as_wide_as_the_blocks_are_long():
    right = RELEVANT[:, None] == np.arange(6)
    with pytest.raises(ValueError, match=r"`relevant` as a bool matrix.*\(5, 7\), got \(5, 6\)"):
        out_of_core.ranks(QUERIES, [GALLERY[:3], GALLERY[3:]], right)
