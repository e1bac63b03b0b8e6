"""One program for CPU, CUDA and TPU: every public array function exports, and runs as it was."""

import pathlib
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    FITS,
    ITERATED,
    NORMALIZERS,
    SCORED,
    SHAPES,
    fit,
    problem,
    score,
    statistics_of,
)
from jax import export
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax import attribution, baselines, hubness, metrics
from dbnorm_jax._src.corrections.table import TABLE

PLATFORMS = ["cpu", "cuda", "tpu"]
PROBLEM = problem(0, SHAPES[0])
EMBEDDINGS = (PROBLEM.queries, PROBLEM.gallery, PROBLEM.query_bank, PROBLEM.gallery_bank)
STATISTICS = statistics_of(PROBLEM)
CORRECTION = dbn.dual_dynamic_inverted_softmax(*STATISTICS)
SIMILARITIES = PROBLEM.similarities
RELEVANT = np.arange(SIMILARITIES.shape[0], dtype=np.int32) % SIMILARITIES.shape[1]
RANKS = np.array([1.0, 2.5, np.inf, 4.0], np.float32)
COUNTS = np.array([3, 0, 1, 2], np.int32)


def check_export(function, *arguments):
    """Exports for all platforms in one program; on the CPU it gives what the function gives."""
    function = jax.jit(function)
    exported = export.export(function, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == tuple(PLATFORMS)
    # The exported program is compiled anew: rounding may differ.
    chex.assert_trees_all_close(exported.call(*arguments), function(*arguments), atol=1e-5)


@pytest.mark.parametrize("name", slow_but(["dualdis"], FITS))
def test_fits(name):
    """Embeddings -> scores and neighbors, with each method."""

    def run(queries, gallery, query_bank, gallery_bank):
        correction = fit(name, query_bank, gallery, gallery_bank, 4)
        return correction, dbn.apply_correction(dbn.dot_product(queries, gallery), correction)

    if name in ITERATED:  # feels the last bits: only that it exports
        export.export(jax.jit(run), platforms=PLATFORMS)(*EMBEDDINGS)
        return
    check_export(run, *EMBEDDINGS)


@pytest.mark.parametrize("name", SCORED)
def test_scores(name):
    check_export(partial(score, name), *EMBEDDINGS)


def _prepared(gallery):
    prepared = dbn.prepare_gallery(gallery)
    assert isinstance(prepared, dbn.PreparedGallery)
    return prepared


def _vmapped(queries, gallery):
    return jax.vmap(lambda row: dbn.stream_top_k(row[None], gallery, 2))(queries)


AUTO = (jax.sharding.AxisType.Auto,) * 2
MESH = jax.make_mesh((1, 1), ("bank", "gallery"), axis_types=AUTO)


def _sharded(queries, gallery, bank, correction, relevant):
    options = {"mesh": MESH, "chunk_size": 4}
    return (
        dbn.stream_bank_statistics(bank, gallery, beta=3.0, **options),
        dbn.stream_largest_similarities(bank, gallery, k=2, **options),
        dbn.stream_top_k(queries, gallery, 3, correction, **options),
        metrics.stream_ranks(queries, gallery, relevant, correction, **options),
    )


def _all_merged(bank, gallery):
    def merged(bank, gallery):
        statistics = dbn.stream_bank_statistics(bank, gallery, beta=3.0, chunk_size=4)
        return dbn.all_merge(statistics, "bank")

    specs = {"in_specs": (jax.P("bank"), jax.P()), "out_specs": jax.P()}
    return jax.shard_map(merged, mesh=MESH, **specs)(bank, gallery)


# Programs of several functions: one compilation each.
FUNCTIONS = {
    "similarities": (
        lambda rows, columns: (
            dbn.dot_product(rows, columns),
            dbn.cosine_similarity(rows, columns),
            dbn.negative_squared_euclidean(rows, columns),
        ),
        EMBEDDINGS[:2],
    ),
    "normalizers": (
        lambda query, gallery, banks: (
            [case.fit(query, gallery) for case in NORMALIZERS],
            dbn.growing.decay(dbn.merge(query, query), 0.5),
            dbn.subtract(dbn.merge(query, query), query),
            dbn.responsibilities(banks, query),
            query.bias,
        ),
        (*STATISTICS, PROBLEM.query_bank_similarities),
    ),
    "bank_statistics": (
        lambda similarities, beta, where, weights: (
            dbn.bank_statistics(similarities, beta=beta, k=2, where=where, weights=weights),
            dbn.largest_similarities(similarities, k=2, where=where).mean,
        ),
        (
            PROBLEM.query_bank_similarities,
            jnp.array([1.0, 20.0]),
            np.arange(6) > 0,
            np.arange(6, dtype=np.float32),
        ),
    ),
    "stream_bank_statistics": (
        lambda bank, gallery, exclude, weights: (
            dbn.stream_bank_statistics(
                bank, gallery, beta=3.0, k=2, exclude=exclude, weights=weights, chunk_size=4
            ),
            dbn.stream_largest_similarities(bank, gallery, k=2, exclude=exclude, chunk_size=4),
        ),
        (
            PROBLEM.query_bank,
            PROBLEM.gallery,
            np.array([-1, 0, 1, 2, 3, -1], np.int32),
            np.arange(6, dtype=np.float32),
        ),
    ),
    "half precision": (
        lambda bank, gallery: (
            dbn.stream_bank_statistics(bank, gallery, beta=3.0),
            dbn.stream_top_k(bank, gallery, 3).scores,
        ),
        tuple(jnp.asarray(rows, jnp.bfloat16) for rows in EMBEDDINGS[2:0:-1]),
    ),
    "retrieval": (
        lambda similarities, correction: (
            dbn.gates(similarities, correction),
            dbn.apply_correction(similarities, correction),
            dbn.top_k(similarities, 3, correction),
            dbn.top_k(similarities, 3),
        ),
        (SIMILARITIES, CORRECTION),
    ),
    "rescore": (
        lambda similarities, correction: dbn.rescore(dbn.top_k(similarities, 5), correction, k=3),
        (SIMILARITIES, CORRECTION),
    ),
    "stream_top_k": (
        lambda queries, gallery, correction: dbn.stream_top_k(
            queries, gallery, 3, correction, chunk_size=4
        ),
        (*EMBEDDINGS[:2], CORRECTION),
    ),
    "stream_top_k, soft gates": (
        lambda queries, gallery, bias, active: dbn.stream_top_k(
            queries, gallery, 3, dbn.Correction(bias, active), chunk_size=4
        ),
        (*EMBEDDINGS[:2], CORRECTION.bias, jnp.full_like(CORRECTION.bias, 0.5)),
    ),
    "a prepared gallery": (
        lambda queries, gallery: (
            dbn.stream_top_k(queries, _prepared(gallery), 3),
            dbn.certified_queries(queries, _prepared(gallery), 3),
        ),
        (EMBEDDINGS[0], jnp.tile(EMBEDDINGS[1], (8, 1))),
    ),
    "soft gates": (
        lambda queries, gallery, bank, bias: (
            dbn.soft_activation(dbn.dot_product(bank, gallery), temperature=0.2),
            dbn.stream_soft_activation(bank, gallery, temperature=0.2, chunk_size=4),
            dbn.soft_gates(
                dbn.dot_product(queries, gallery),
                dbn.Correction(bias, jnp.full_like(bias, 0.5)),
                temperature=0.2,
            ),
            dbn.stream_soft_gates(
                queries,
                gallery,
                dbn.Correction(bias, jnp.full_like(bias, 0.5)),
                temperature=0.2,
                straight_through=True,
                chunk_size=4,
            ),
        ),
        (*EMBEDDINGS[:3], CORRECTION.bias),
    ),
    "inner products": (
        lambda queries, gallery, correction, indices: (
            dbn.inner_product_vectors(
                queries, gallery, correction, gates=dbn.gates_from_top_1(indices, correction)
            ),
            dbn.inner_product_gallery(
                gallery,
                correction,
                similarity_fn=dbn.negative_squared_euclidean,
                metric="cosine",
            ),
            dbn.inner_product_queries(
                queries, jnp.ones(2), similarity_fn=dbn.cosine_similarity, metric="cosine"
            ),
        ),
        (*EMBEDDINGS[:2], CORRECTION, np.array([0, 3, 1, 1, 6], np.int32)),
    ),
    "stream_top_k under vmap": (_vmapped, EMBEDDINGS[:2]),
    "published_scores": (dbn.published_scores, (SIMILARITIES, *STATISTICS)),
    "ranks": (
        lambda scores, relevant: (
            metrics.ranks(scores, relevant),
            metrics.mean_average_precision(scores, relevant),
            metrics.precision_at(scores, relevant, 3),
            metrics.success_at(scores, relevant, 3),
        ),
        (SIMILARITIES, RELEVANT),
    ),
    "gain": (
        lambda scores, queries, gallery, correction, rows, grades: (
            metrics.normalized_discounted_cumulative_gain(scores, (rows, grades), 3),
            metrics.normalized_discounted_cumulative_gain(
                dbn.top_k(scores, 3, correction), (rows, grades)
            ),
            metrics.stream_normalized_discounted_cumulative_gain(
                queries, gallery, (rows, grades), correction, chunk_size=4
            ),
        ),
        (
            *(SIMILARITIES, *EMBEDDINGS[:2], CORRECTION),
            *(RELEVANT[:, None], jnp.ones((len(RELEVANT), 1))),
        ),
    ),
    "stream_ranks": (
        lambda queries, gallery, relevant, correction: metrics.stream_ranks(
            queries, gallery, relevant, correction, chunk_size=4
        ),
        (*EMBEDDINGS[:2], RELEVANT, CORRECTION),
    ),
    "metrics of ranks": (
        lambda ranks: (
            metrics.recall_at(ranks, 1),
            metrics.median_rank(ranks),
            metrics.mean_rank(ranks),
            metrics.mean_reciprocal_rank(ranks),
            metrics.geometric_mean_recall(ranks),
        ),
        (RANKS,),
    ),
    "hubness": (
        lambda indices, counts: (
            hubness.k_occurrence(indices, 4),
            [
                measure(counts)
                for measure in (
                    hubness.skewness,
                    hubness.hub_share,
                    hubness.hub_occurrence,
                    hubness.anti_hub_share,
                    hubness.gini,
                    hubness.robin_hood,
                    hubness.atkinson,
                )
            ],
        ),
        (np.array([[0, 1], [3, 1]], np.int32), COUNTS),
    ),
    "sinkhorn_residual": (
        lambda similarities: baselines.sinkhorn_residual(
            similarities,
            baselines.sinkhorn_normalization(similarities, temperature=0.2, num_iterations=3),
            temperature=0.2,
        ),
        (PROBLEM.query_bank_similarities,),
    ),
    "attribution": (
        lambda queries, gallery, bank, statistics, correction, relevant: (
            attribution.bias_contributors(bank, gallery, statistics, np.array([2, 0]), k=3),
            attribution.top_1_changes(queries, gallery, correction, chunk_size=4),
            attribution.influence(
                queries=queries,
                gallery=gallery,
                relevant=relevant,
                bank=bank,
                statistics=statistics,
                gated=True,
            ),
            attribution.top_1_flips(
                queries=queries,
                gallery=gallery,
                correction=dbn.dynamic_inverted_softmax(statistics),
                bank=bank,
                statistics=statistics,
            ),
            attribution.hub_screening(
                gallery=gallery, query_bank=bank, gallery_bank=queries, k=2, chunk_size=4
            ),
        ),
        (*EMBEDDINGS[:3], STATISTICS[0], CORRECTION, RELEVANT),
    ),
    "sharded": (_sharded, (*EMBEDDINGS[:3], CORRECTION, RELEVANT)),
    "all_merge": (_all_merged, (PROBLEM.query_bank, PROBLEM.gallery)),
    "gradient of a streamed statistic": (
        jax.grad(
            lambda bank, gallery, beta: dbn.stream_bank_statistics(
                bank, gallery, beta=beta, chunk_size=4
            ).bias.sum(),
            argnums=(0, 1, 2),
        ),
        (PROBLEM.query_bank, PROBLEM.gallery, jnp.float32(3)),
    ),
    "gradient of a streamed top-k": (
        jax.grad(lambda *arrays: dbn.stream_top_k(*arrays, 3).scores.sum(), argnums=(0, 1)),
        EMBEDDINGS[:2],
    ),
}


@pytest.mark.parametrize(
    "name", slow_but(["stream_bank_statistics", "stream_top_k", "stream_ranks"], FUNCTIONS)
)
def test_functions(name):
    function, arguments = FUNCTIONS[name]
    check_export(function, *arguments)


def test_every_public_function_is_exported():
    """A new public function must be added here, and to the tables it goes through."""
    code = "".join(
        (pathlib.Path(__file__).parents[1] / name).read_text("utf-8")
        for name in ("laws/test_export.py", "support/cases.py")
    )
    names = {
        *(name for name in dbn.__all__ if callable(getattr(dbn, name))),
        *baselines.__all__,
        *(name for name in vars(attribution) if _is_public(attribution, name)),
        *(name for name in vars(hubness) if _is_public(hubness, name)),
        *(name for name in vars(metrics) if _is_public(metrics, name)),
    } - {
        "save",
        "load",
        "read_provenance",
        "auto",
        "BankStatistics",
        "LargestSimilarities",
        "SearchResult",
    }
    names -= {"Contributors", "HubScreening", "Top1Changes", "Top1Flips"}
    names -= {row.function for row in TABLE.values()} | {"stream_sinkhorn_normalization"}
    names -= {"semantic_search"}  # returns Python lists
    assert not {name for name in names if name not in code}


def _is_public(module, name):
    value = getattr(module, name)
    return getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
