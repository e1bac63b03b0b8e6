"""Arrays that lie on several devices, at every public function: results are those of one device."""

import inspect
import pathlib
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax import attribution, baselines, growing, hubness, metrics, out_of_core, tuning

pytestmark = pytest.mark.usefixtures("compile_fast")

KINDS = [AxisType.Auto, AxisType.Explicit]
ROWS, DIM = jax.P("bank"), jax.P(None, "gallery")


def make_mesh(kind):
    return jax.make_mesh((2, 4), ("bank", "gallery"), axis_types=(kind,) * 2)


def inputs():
    """Of lengths that divide, and what the functions of one device make of them."""
    random = np.random.default_rng(0)
    sizes = {"queries": 8, "gallery": 24, "bank": 16, "gallery_bank": 8}
    rows = {name: random.normal(size=(size, 4)).astype("f") for name, size in sizes.items()}
    a = types.SimpleNamespace(**{name: jnp.asarray(array) for name, array in rows.items()})
    a.matrix, a.bank_matrix = a.queries @ a.gallery.T, a.bank @ a.gallery.T
    a.banks_matrix = a.bank @ a.gallery_bank.T
    a.statistics = dbn.bank_statistics(a.bank_matrix, beta=3.0)
    a.gallery_statistics = dbn.bank_statistics(a.gallery_bank @ a.gallery.T, beta=3.0)
    a.largest = dbn.largest_similarities(a.bank_matrix, k=4)
    a.correction = dbn.dual_dynamic_inverted_softmax(a.statistics, a.gallery_statistics)
    a.neighbors = dbn.stream_top_k(a.bank, a.gallery, 1)
    a.first = a.neighbors.indices[:, 0]
    a.distances = abs(a.matrix), abs(a.queries @ a.bank.T), abs(a.bank_matrix)
    a.found = dbn.stream_top_k(a.queries, a.gallery, 4)
    a.indices = a.found.indices
    a.ranks = metrics.stream_ranks(a.queries, a.gallery, np.arange(8))
    a.counts = hubness.k_occurrence(a.indices, 24)
    a.relevant = jnp.asarray(random.integers(0, 24, (8, 2)))
    a.graded = a.relevant.at[:, 1].set((a.relevant[:, 0] + 5) % 24)  # none repeated
    a.grades = jnp.asarray(random.random((8, 2)), jnp.float32)
    a.grade_matrix = jnp.asarray(random.integers(0, 3, (8, 24)))
    a.hidden = (a.relevant[:, ::-1] + 1) % 24
    a.exclude = jnp.asarray(random.integers(0, 24, (16, 2)))
    a.weights = jnp.asarray(random.random(16), jnp.float32)
    a.where = jnp.asarray(random.random(24) < 0.8)
    a.gates = jnp.asarray(random.random((8, 2)), jnp.float32)
    return a


def seen(a):
    return {"exclude": a.hidden, "where": a.where, "gates": a.gates}


def banks(a):
    return {"gallery": a.gallery, "query_bank": a.bank, "gallery_bank": a.gallery_bank}


def saved(a, path=None):
    path = path or pathlib.Path(a.path) / "state.npz"
    dbn.save(path, a.correction)
    return dbn.load(path)


SOFT = {"temperature": 0.2}
FEW = {"temperature": 0.2, "num_iterations": 2}
BLOCKS = {"block_size": 8}
DISTANCES = {
    "mutual_proximity": {"method": "empiric"},
    "local_scaling": {"k": 2},
    "nicdm": {"k": 2},
}

# What runs inside a caller's jit.
TRACED = {
    "dot_product": lambda a: dbn.dot_product(a.queries, a.gallery),
    "cosine_similarity": lambda a: dbn.cosine_similarity(a.queries, a.gallery),
    "negative_squared_euclidean": lambda a: dbn.negative_squared_euclidean(a.queries, a.gallery),
    "bank_statistics": lambda a: dbn.bank_statistics(a.bank_matrix, beta=3.0, weights=a.weights),
    "stream_bank_statistics": lambda a: dbn.stream_bank_statistics(
        a.bank, a.gallery, beta=3.0, weights=a.weights, exclude=a.exclude
    ),
    "largest_similarities": lambda a: dbn.largest_similarities(a.bank_matrix, k=2),
    "stream_largest_similarities": lambda a: dbn.stream_largest_similarities(
        a.bank, a.gallery, k=2, exclude=a.exclude
    ),
    "responsibilities": lambda a: dbn.responsibilities(a.bank_matrix, a.statistics),
    "soft_activation": lambda a: dbn.soft_activation(a.bank_matrix, **SOFT),
    "stream_soft_activation": lambda a: dbn.stream_soft_activation(a.bank, a.gallery, **SOFT),
    "soft_gates": lambda a: dbn.soft_gates(a.matrix, a.correction, **SOFT),
    "stream_soft_gates": lambda a: dbn.stream_soft_gates(
        a.queries, a.gallery, a.correction, **SOFT
    ),
    "gates": lambda a: dbn.gates(a.matrix, a.correction, exclude=a.relevant),
    "apply_correction": lambda a: dbn.apply_correction(a.matrix, a.correction),
    "top_k": lambda a: dbn.top_k(a.matrix, 3, a.correction, exclude=a.relevant, gates=a.gates),
    "stream_top_k": lambda a: (
        dbn.stream_top_k(a.queries, a.gallery, 3, a.correction),
        dbn.stream_top_k(a.queries, a.gallery, 3, a.correction, **seen(a)),
    ),
    "prepare_gallery": lambda a: dbn.stream_top_k(
        a.queries, dbn.prepare_gallery(a.gallery, a.correction), 3
    ),
    "certified_queries": lambda a: dbn.certified_queries(
        a.queries, dbn.prepare_gallery(a.gallery), 1, precision="certified"
    ),
    "published_scores": lambda a: dbn.published_scores(
        a.matrix, a.statistics, a.gallery_statistics
    ),
    "inner_product_gallery": lambda a: dbn.inner_product_gallery(a.gallery, a.correction),
    "inner_product_queries": lambda a: dbn.inner_product_queries(a.queries, a.gates),
    "inner_product_vectors": lambda a: dbn.inner_product_vectors(
        a.queries, a.gallery, a.correction, gates=a.gates
    ),
    "rescore": lambda a: dbn.rescore(a.found, a.correction, k=3, exclude=a.relevant),
    "gates_from_top_1": lambda a: dbn.gates_from_top_1(a.first, a.correction),
    "merge": lambda a: (
        dbn.merge(a.statistics, a.gallery_statistics),
        dbn.merge(a.largest, a.largest),
    ),
    "inverted_softmax": lambda a: dbn.inverted_softmax(a.statistics),
    "dynamic_inverted_softmax": lambda a: dbn.dynamic_inverted_softmax(a.statistics),
    "dual_inverted_softmax": lambda a: dbn.dual_inverted_softmax(
        a.statistics, a.gallery_statistics
    ),
    "dual_dynamic_inverted_softmax": lambda a: dbn.dual_dynamic_inverted_softmax(
        a.statistics, a.gallery_statistics
    ),
    "baselines.csls": lambda a: baselines.csls(a.largest),
    "baselines.nearest_neighbor_normalization": lambda a: baselines.nearest_neighbor_normalization(
        a.largest
    ),
    "baselines.distribution_normalization": lambda a: baselines.distribution_normalization(
        a.bank.mean(axis=0), a.gallery
    ),
    "baselines.sinkhorn_normalization": lambda a: baselines.sinkhorn_normalization(
        a.bank_matrix, **FEW
    ),
    "baselines.sinkhorn_residual": lambda a: baselines.sinkhorn_residual(
        a.bank_matrix, a.correction, **SOFT
    ),
    "baselines.stream_sinkhorn_normalization": lambda a: baselines.stream_sinkhorn_normalization(
        a.bank, a.gallery, gallery_bank=a.gallery_bank, **FEW
    ),
    "baselines.dual_bank_sinkhorn_normalization": lambda a: (
        baselines.dual_bank_sinkhorn_normalization(a.bank_matrix, a.banks_matrix, **FEW)
    ),
    "baselines.hubless_nearest_neighbor": lambda a: baselines.hubless_nearest_neighbor(
        a.bank_matrix, **FEW
    ),
    "baselines.dis_sim_local": lambda a: baselines.dis_sim_local(a.gallery, a.bank, k=2),
    "baselines.globally_corrected": lambda a: baselines.globally_corrected(a.matrix, a.bank_matrix),
    "baselines.dual_softmax": lambda a: baselines.dual_softmax(a.matrix, **SOFT),
    "baselines.inverse_graph_convolution": lambda a: baselines.inverse_graph_convolution(
        **banks(a), query_rate=0.3, gallery_rate=0.1
    ),
    **{
        f"baselines.{name}": lambda a, name=name, options=options: getattr(baselines, name)(
            *a.distances, **options
        )
        for name, options in DISTANCES.items()
    },
    "growing.decay": lambda a: growing.decay(a.statistics, 0.5),
    "subtract": lambda a: dbn.subtract(dbn.merge(a.statistics, a.statistics), a.statistics),
    "attribution.bias_contributors": lambda a: attribution.bias_contributors(
        a.bank, a.gallery, a.statistics, a.first, k=2
    ),
    "attribution.top_1_changes": lambda a: attribution.top_1_changes(
        a.queries, a.gallery, a.correction
    ),
    "attribution.influence": lambda a: attribution.influence(
        queries=a.queries,
        gallery=a.gallery,
        relevant=a.relevant,
        bank=a.bank,
        statistics=a.statistics,
    ),
    "attribution.top_1_flips": lambda a: attribution.top_1_flips(
        queries=a.queries,
        gallery=a.gallery,
        correction=dbn.dynamic_inverted_softmax(a.statistics),
        bank=a.bank,
        statistics=a.statistics,
    ),
    "metrics.ranks": lambda a: metrics.ranks(a.matrix, a.relevant),
    "metrics.stream_ranks": lambda a: metrics.stream_ranks(
        a.queries, a.gallery, a.relevant, a.correction, **seen(a)
    ),
    "metrics.mean_average_precision": lambda a: metrics.mean_average_precision(
        a.matrix, a.relevant
    ),
    "metrics.normalized_discounted_cumulative_gain": lambda a: [
        metrics.normalized_discounted_cumulative_gain(a.matrix, a.grade_matrix, 5),
        metrics.normalized_discounted_cumulative_gain(a.found, (a.graded, a.grades)),
    ],
    "metrics.stream_normalized_discounted_cumulative_gain": lambda a: (
        metrics.stream_normalized_discounted_cumulative_gain(
            a.queries, a.gallery, (a.graded, a.grades), a.correction, **seen(a)
        )
    ),
    "metrics.precision_at": lambda a: metrics.precision_at(a.matrix, a.relevant, 5),
    "metrics.success_at": lambda a: metrics.success_at(a.matrix, a.relevant, 5),
    "metrics.recall_at": lambda a: metrics.recall_at(a.ranks, 5),
    **{
        f"metrics.{name}": lambda a, name=name: getattr(metrics, name)(a.ranks)
        for name in (
            *("median_rank", "mean_rank", "mean_reciprocal_rank"),
            "geometric_mean_recall",
        )
    },
    "hubness.k_occurrence": lambda a: hubness.k_occurrence(a.indices, 24),
    **{
        f"hubness.{name}": lambda a, name=name: getattr(hubness, name)(a.counts)
        for name in (
            *("skewness", "hub_share", "hub_occurrence", "anti_hub_share"),
            *("gini", "robin_hood", "atkinson"),
        )
    },
}
EAGER = {
    "semantic_search": lambda a: np.array(
        [
            [found["corpus_id"] for found in row]
            for row in dbn.semantic_search(a.queries, a.gallery, a.correction, k=3)
        ]
    ),
    "auto": lambda a: dbn.auto(**banks(a)),
    "save": saved,
    "growing.add_gallery_items": lambda a: growing.add_gallery_items(
        a.statistics, a.neighbors, a.bank, a.gallery_bank
    ),
    "growing.remove_gallery_items": lambda a: growing.remove_gallery_items(
        a.statistics, a.neighbors, a.bank, a.gallery, removed=[3]
    ),
    "out_of_core.bank_statistics": lambda a: out_of_core.bank_statistics(
        a.bank, a.gallery, beta=3.0, weights=a.weights, exclude=a.exclude, **BLOCKS
    ),
    "out_of_core.largest_similarities": lambda a: out_of_core.largest_similarities(
        a.bank, a.gallery, k=2, **BLOCKS
    ),
    "out_of_core.top_k": lambda a: out_of_core.top_k(
        a.queries, a.gallery, 3, a.correction, **seen(a), **BLOCKS
    ),
    "out_of_core.top_k_blocks": lambda a: list(
        out_of_core.top_k_blocks([a.queries], [a.gallery], 3, a.correction)
    ),
    "out_of_core.ranks": lambda a: out_of_core.ranks(
        a.queries, a.gallery, a.relevant, a.correction, **BLOCKS
    ),
    "out_of_core.fingerprint": lambda a: np.array(
        [*str(out_of_core.fingerprint(a.gallery)).encode()]
    ),
    "tuning.tune": lambda a: tuning.tune(query_bank=a.bank, gallery_bank=a.gallery_bank).parameters,
    "tuning.likely_mistakes": lambda a: np.array(
        tuning.likely_mistakes(
            queries=a.queries, gallery=a.gallery, query_bank=a.bank, gallery_bank=a.gallery_bank
        )
    ),
    "tuning.fit": lambda a: tuning.fit(
        tuning.tune(query_bank=a.bank, gallery_bank=a.gallery_bank), **banks(a)
    ),
    "attribution.hub_screening": lambda a: attribution.hub_screening(
        gallery=a.gallery, query_bank=a.bank, k=2
    ),
}
FUNCTIONS = TRACED | EAGER
# What takes no arrays, or runs inside `jax.shard_map` alone.
WITHOUT = {"all_merge", "load", "read_provenance"}


def test_every_function_has_its_line():
    named = {name for name in dbn.__all__ if inspect.isfunction(getattr(dbn, name))}
    for module in (attribution, baselines, growing, hubness, metrics, out_of_core, tuning):
        prefix, names = module.__name__.split(".")[1], module.__all__
        named |= {f"{prefix}.{name}" for name in names if inspect.isfunction(vars(module)[name])}
    assert FUNCTIONS.keys() | WITHOUT == named


def placed(a, mesh, spec, every=1):
    """Every array on the mesh where its lengths divide, or every second one."""
    leaves, tree = jax.tree.flatten(vars(a))

    def put(place, array):
        if place % every or not array.ndim:
            return array
        own = jax.P(*spec[: array.ndim])
        sizes = (2 if name == "bank" else 4 for name in own if name)
        lengths = (size for size, name in zip(array.shape, own, strict=False) if name)
        if any(length % size for length, size in zip(lengths, sizes, strict=True)):
            own = jax.P()
        return jax.device_put(array, NamedSharding(mesh, own))

    leaves = [put(place, array) for place, array in enumerate(leaves)]
    return types.SimpleNamespace(**jax.tree.unflatten(tree, leaves))


LAYOUTS = {"rows": (ROWS, 1), "some rows": (ROWS, 2), "dim": (DIM, 1), "copies": (jax.P(), 1)}


def check_same(found, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def arrays():
    return inputs()


QUICK = ["stream_bank_statistics", "stream_top_k", "top_k", "merge", "out_of_core.top_k"]


@pytest.mark.parametrize("name", slow_but(QUICK, FUNCTIONS))
def test_as_of_one_device(name, arrays, tmp_path):
    function, path = FUNCTIONS[name], str(tmp_path)
    expected = function(types.SimpleNamespace(**vars(arrays), path=path))
    for kind in KINDS:
        for spec, every in LAYOUTS.values():
            given = placed(arrays, make_mesh(kind), spec, every)
            given.path = path
            check_same(function(given), expected)


def in_jit(name, arrays, kind, layout):
    spec, every = LAYOUTS[layout]
    given = placed(arrays, make_mesh(kind), spec, every)
    function = jax.jit(lambda tree: FUNCTIONS[name](types.SimpleNamespace(**tree)))
    check_same(function(vars(given)), FUNCTIONS[name](arrays))


STREAMED = ["stream_bank_statistics", "stream_top_k", "metrics.stream_ranks"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", STREAMED)
def test_streamed_functions_in_a_callers_jit(name, kind, arrays):
    in_jit(name, arrays, kind, "rows")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("layout", ["rows", "dim"])
@pytest.mark.parametrize("name", TRACED)
def test_all_in_a_callers_jit(name, layout, kind, arrays):
    in_jit(name, arrays, kind, layout)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_a_mesh_run_returns_goes_into_other_functions(kind, arrays):
    mesh, a = make_mesh(kind), arrays
    statistics = dbn.stream_bank_statistics(a.bank, a.gallery, beta=3.0, mesh=mesh)
    whole = dbn.stream_bank_statistics(a.bank, a.gallery, beta=3.0)
    for one, other in ((statistics, whole), (whole, statistics), (statistics, statistics)):
        check_same(dbn.merge(one, other), dbn.merge(whole, whole))
        correction = dbn.dual_dynamic_inverted_softmax(one, other)
        expected = dbn.dual_dynamic_inverted_softmax(whole, whole)
        check_same(correction, expected)
        result = dbn.stream_top_k(a.queries, a.gallery, 3, correction)
        check_same(result, dbn.stream_top_k(a.queries, a.gallery, 3, expected))
    found = dbn.stream_top_k(a.queries, a.gallery, 3, correction, mesh=mesh)
    check_same(found, result)
    check_same(hubness.k_occurrence(found.indices, 24), hubness.k_occurrence(result.indices, 24))
