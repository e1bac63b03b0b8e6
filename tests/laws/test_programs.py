"""Requests of any number of queries share few programs: a table of the most that each compiles."""

import inspect
import logging

import jax
import numpy as np
import pytest
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax import attribution, hubness, metrics, out_of_core

RANDOM = np.random.default_rng(0)
GALLERY = RANDOM.normal(size=(50, 6)).astype(np.float32)
QUERIES = RANDOM.normal(size=(20, 6)).astype(np.float32)
STATISTICS = dbn.stream_bank_statistics(QUERIES, GALLERY, beta=1.0)
CORRECTION = dbn.dynamic_inverted_softmax(STATISTICS)
PREPARED = dbn.prepare_gallery(GALLERY, CORRECTION)
SIZES = range(1, 21)


def rows(n, *most):
    """Gallery rows, of 64 bits as NumPy makes them."""
    return RANDOM.integers(0, 50, (n, *most))


def right(n):
    matrix = RANDOM.random((n, 50)) < 0.04
    matrix[:, 0] = True
    return matrix


def scores(n):
    return QUERIES[:n] @ GALLERY.T


def order(n):
    return np.argsort(-scores(n), axis=1)


def ranks(n):
    return RANDOM.integers(1, 9, n).astype(np.float32)


SOFT = {"temperature": 0.5}
# Function of a number of queries, and the most programs that 20 numbers of them compile, as
# measured: one of the function itself, and some that do not depend on the number, such as checks.
REQUESTS = {
    "stream_top_k": (lambda n: dbn.stream_top_k(QUERIES[:n], GALLERY, 3, CORRECTION), 1),
    "stream_top_k, arrays of JAX": (
        lambda n: dbn.stream_top_k(
            jax.device_put(QUERIES[:n]), GALLERY, 3, exclude=jax.device_put(rows(n))
        ),
        1,
    ),
    "stream_top_k, bfloat16": (
        lambda n: dbn.stream_top_k(QUERIES[:n].astype(jax.numpy.bfloat16), GALLERY, 3),
        2,
    ),
    "stream_top_k, a prepared gallery": (lambda n: dbn.stream_top_k(QUERIES[:n], PREPARED, 3), 2),
    "certified_queries": (lambda n: dbn.certified_queries(QUERIES[:n], PREPARED, 3), 2),
    "stream_top_k, all options": (
        lambda n: dbn.stream_top_k(
            QUERIES[:n],
            GALLERY,
            3,
            CORRECTION,
            exclude=rows(n),
            where=np.arange(50) > 0,
            gates=np.ones((n, 1), np.float32),
        ),
        1,
    ),
    "semantic_search": (lambda n: dbn.semantic_search(QUERIES[:n], GALLERY), 1),
    "stream_soft_gates": (
        lambda n: dbn.stream_soft_gates(QUERIES[:n], GALLERY, CORRECTION, **SOFT),
        1,
    ),
    "gates_from_top_1": (lambda n: dbn.gates_from_top_1(rows(n), CORRECTION), 1),
    "inner_product_queries": (lambda n: dbn.inner_product_queries(QUERIES[:n], [1.0]), 2),
    "inner_product_queries, own gates": (
        lambda n: dbn.inner_product_queries(QUERIES[:n], np.ones((n, 2), np.float32)),
        1,
    ),
    "inner_product_vectors": (
        lambda n: dbn.inner_product_vectors(QUERIES[:n], GALLERY, CORRECTION, gates=[1.0]),
        3,
    ),
    "metrics.stream_ranks": (
        lambda n: metrics.stream_ranks(QUERIES[:n], GALLERY, rows(n), CORRECTION),
        1,
    ),
    "metrics.stream_ranks, all options": (
        lambda n: metrics.stream_ranks(
            QUERIES[:n],
            GALLERY,
            rows(n, 2),
            CORRECTION,
            exclude=rows(n),
            gates=np.ones((n, 1), np.float32),
        ),
        1,
    ),
    # The longest list of right items is filled up, too: to 4 or to 8.
    "metrics.stream_ranks, bool": (
        lambda n: metrics.stream_ranks(QUERIES[:n], GALLERY, right(n)),
        3,
    ),
    "metrics.stream_ranks, CSR": (
        lambda n: metrics.stream_ranks(QUERIES[:n], GALLERY, (np.arange(n + 1), rows(n))),
        1,
    ),
    "metrics.recall_at": (lambda n: metrics.recall_at(ranks(n), 5), 1),
    "metrics.median_rank": (lambda n: metrics.median_rank(ranks(n)), 1),
    "metrics.mean_rank": (lambda n: metrics.mean_rank(ranks(n)), 2),
    "metrics.mean_reciprocal_rank": (lambda n: metrics.mean_reciprocal_rank(ranks(n)), 3),
    "metrics.geometric_mean_recall": (lambda n: metrics.geometric_mean_recall(ranks(n)), 4),
    "metrics.stream_normalized_discounted_cumulative_gain": (
        lambda n: metrics.stream_normalized_discounted_cumulative_gain(
            QUERIES[:n], GALLERY, (np.arange(n + 1), rows(n), np.ones(n, np.float32)), k=5
        ),
        2,
    ),
    "hubness.k_occurrence": (lambda n: hubness.k_occurrence(rows(n, 3), 50), 1),
    "hubness.k_occurrence, where": (
        lambda n: hubness.k_occurrence(rows(n, 3), 50, where=np.ones(n, bool)),
        1,
    ),
    "attribution.top_1_changes": (
        lambda n: attribution.top_1_changes(QUERIES[:n], GALLERY, CORRECTION),
        3,
    ),
}
# A matrix of scores has the caller's own shape, and to fill it up would copy it: each shape has a
# program, and so has each argument that is made a mask of pairs.
MATRICES = {
    "gates": (lambda n: dbn.gates(scores(n), CORRECTION, exclude=rows(n)), 2),
    "soft_gates": (lambda n: dbn.soft_gates(scores(n), CORRECTION, **SOFT), 1),
    "apply_correction": (lambda n: dbn.apply_correction(scores(n), CORRECTION), 1),
    "top_k": (lambda n: dbn.top_k(scores(n), 3, CORRECTION, exclude=rows(n)), 2),
    "published_scores": (lambda n: dbn.published_scores(scores(n), STATISTICS), 1),
    "metrics.ranks": (lambda n: metrics.ranks(scores(n), rows(n), exclude=rows(n)), 3),
    "metrics.ranks, CSR": (
        lambda n: metrics.ranks(scores(n), (np.arange(n + 1), rows(n))),
        2,
    ),
    "metrics.normalized_discounted_cumulative_gain": (
        lambda n: metrics.normalized_discounted_cumulative_gain(scores(n), right(n), 5),
        1,
    ),
    "metrics.precision_at": (lambda n: metrics.precision_at(scores(n), rows(n), 5), 2),
    "metrics.success_at": (lambda n: metrics.success_at(scores(n), rows(n), 5), 2),
    "metrics.mean_average_precision": (
        lambda n: metrics.mean_average_precision(scores(n), right(n)),
        1,
    ),
}


@pytest.fixture
def programs():
    """Names of the programs compiled since the test began, first of all every one anew."""
    names = []

    class Names(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Compiling"):
                names.append(message.split()[1])

    logger, handler = logging.getLogger("jax"), Names()
    before = logger.propagate
    jax.clear_caches()
    logger.addHandler(handler)
    logger.propagate = False
    with jax.log_compiles():
        yield names
    logger.removeHandler(handler)
    logger.propagate = before


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_of_any_number_of_queries_share_programs(name, programs):
    call, most = REQUESTS[name]
    for size in SIZES:
        call(size)
    assert 0 < len(programs) <= most, programs


def test_rescoring_compiles_nothing(programs):
    """Nor does it put anything on a device: what a server holds in NumPy stays there."""
    gates = np.ones((3, 1), np.float32)
    for options in ({}, {"exclude": rows(3), "where": np.arange(50) > 0, "gates": gates}):
        found = dbn.rescore((scores(3), order(3)), CORRECTION, k=5, **options)
        assert all(isinstance(part, np.ndarray) for part in found)
    assert not programs


@pytest.mark.parametrize("name", MATRICES)
def test_a_shape_of_matrices_has_few_programs(name, programs):
    call, most = MATRICES[name]
    call(2)  # with what does not depend on the shape
    del programs[:]
    call(3)
    assert 0 < len(programs) <= most, programs


BLOCKS = {
    "top_k": lambda n: out_of_core.top_k(QUERIES[:n], GALLERY, 3, CORRECTION),
    "ranks": lambda n: out_of_core.ranks(QUERIES[:n], GALLERY, rows(n), CORRECTION),
}


@pytest.mark.parametrize("name", slow_but(["top_k"], BLOCKS))
def test_blocks_of_files_share_programs(name, programs):
    """A gallery in files, whose blocks are met one by one, has many programs, always the same."""
    BLOCKS[name](20)
    assert programs
    del programs[:]
    for size in SIZES:
        BLOCKS[name](size)
    assert not programs


def test_every_function_of_queries_is_in_a_table():
    asked = {"queries", "ranks", "similarities", "scores"}
    names = {
        name
        for module in (dbn, attribution, hubness, metrics)
        for name in module.__all__
        if callable(function := getattr(module, name)) and not isinstance(function, type)
        if asked & {*inspect.signature(function).parameters}
    }
    # Of banks, not of queries; one result for a whole log of queries.
    names -= {"bank_statistics", "largest_similarities", "soft_activation", "influence"}
    names -= {"top_1_flips"}
    names -= {"responsibilities"}
    tables = {name.split(",")[0].split(".")[-1] for name in (*REQUESTS, *MATRICES)}
    assert names <= tables
