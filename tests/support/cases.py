"""Tables of all variants: generic tests loop over them, and a new method is one line here."""

import dataclasses
from collections.abc import Callable

import numpy as np
import reference

import dbnorm_jax as dbn

# (num_queries, num_gallery, num_query_bank, num_gallery_bank): few, since each compiles anew.
SHAPES = [(5, 7, 6, 4), (8, 3, 1, 9), (4, 70, 11, 5)]
DIM = 4
CHUNK_SIZES = [1, 3, 64]
SIMILARITY_FNS = {
    dbn.dot_product: reference.dot_product,
    dbn.cosine_similarity: reference.cosine_similarity,
    dbn.negative_squared_euclidean: reference.negative_squared_euclidean,
}


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """One method: how the library fits it, and the scores it must give."""

    name: str
    fit: Callable  # (query_statistics, gallery_statistics) -> Correction
    scores: Callable  # (similarities, query_bank, gallery_bank, b1, b2, k) -> scores, float64
    gated: bool = False
    dual: bool = False

    def __str__(self):
        return self.name


NORMALIZERS = [
    Normalizer(
        "inverted_softmax",
        lambda query, gallery: dbn.inverted_softmax(query),
        lambda s, q, g, b1, b2, k: reference.inverted_softmax(s, q, b1),
    ),
    Normalizer(
        "dynamic_inverted_softmax",
        lambda query, gallery: dbn.dynamic_inverted_softmax(query),
        lambda s, q, g, b1, b2, k: reference.dynamic_inverted_softmax(s, q, b1, k),
        gated=True,
    ),
    Normalizer(
        "dual_inverted_softmax",
        dbn.dual_inverted_softmax,
        lambda s, q, g, b1, b2, k: reference.dual_inverted_softmax(s, q, g, b1, b2),
        dual=True,
    ),
    Normalizer(
        "dual_dynamic_inverted_softmax",
        dbn.dual_dynamic_inverted_softmax,
        reference.dual_dynamic_inverted_softmax,
        gated=True,
        dual=True,
    ),
]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Embeddings of a test and its banks, float32, and their similarities."""

    queries: np.ndarray
    gallery: np.ndarray
    query_bank: np.ndarray
    gallery_bank: np.ndarray

    @property
    def similarities(self):
        return _products(self.queries, self.gallery)

    @property
    def query_bank_similarities(self):
        return _products(self.query_bank, self.gallery)

    @property
    def gallery_bank_similarities(self):
        return _products(self.gallery_bank, self.gallery)


def _products(rows, columns):
    return reference.dot_product(rows, columns).astype(np.float32)


def problem(seed, shape=SHAPES[0], *, levels=0):
    """A random problem; with `levels` its entries are multiples of 1 / levels, so that ties occur.

    Such products are exact in float32 whatever the order of summation.
    """
    random = np.random.default_rng(seed)
    num_queries, num_gallery, num_query_bank, num_gallery_bank = shape

    def rows(count):
        values = random.normal(size=(count, DIM)) / 2
        if levels:
            values = np.clip(np.round(values * levels), -levels, levels) / levels
        return values.astype(np.float32)

    counts = (num_queries, num_gallery, num_query_bank, num_gallery_bank)
    return Problem(*(rows(count) for count in counts))


def signed_zeros(seed, num_queries, num_gallery):
    """Embeddings of one dimension whose products are -1, 1 and, the largest of most queries, zeros.

    Of both signs.
    """
    random = np.random.default_rng(seed)
    queries = random.choice([-1, 1, 1, 1], (num_queries, 1)).astype(np.float32)
    gallery = random.choice([-1.0, -0.0, -0.0, 0.0, 0.0], (num_gallery, 1)).astype(np.float32)
    return queries, gallery


def statistics_of(test, beta_query=20.0, beta_gallery=2.0, k=1):
    """The statistics of both banks of a problem, from its matrices."""
    return (
        dbn.bank_statistics(test.query_bank_similarities, beta=beta_query, k=k),
        dbn.bank_statistics(test.gallery_bank_similarities, beta=beta_gallery, k=k),
    )


# Every method from embeddings: (query_bank, gallery, gallery_bank, chunk_size) -> Correction.
FITS = {
    **{
        case.name: lambda query_bank, gallery, gallery_bank, chunk_size, case=case: case.fit(
            *(
                dbn.stream_bank_statistics(bank, gallery, beta=beta, k=2, chunk_size=chunk_size)
                for bank, beta in ((query_bank, 20.0), (gallery_bank, 2.0))
            )
        )
        for case in NORMALIZERS
    },
    "csls": lambda query_bank, gallery, _, chunk_size: dbn.baselines.csls(
        dbn.stream_largest_similarities(query_bank, gallery, k=3, chunk_size=chunk_size)
    ),
    "nearest_neighbor_normalization": lambda query_bank, gallery, _, chunk_size: (
        dbn.baselines.nearest_neighbor_normalization(
            dbn.stream_largest_similarities(query_bank, gallery, k=3, chunk_size=chunk_size)
        )
    ),
    "distribution_normalization": lambda query_bank, gallery, _, __: (
        dbn.baselines.distribution_normalization(query_bank.mean(axis=0), gallery)
    ),
    "sinkhorn_normalization": lambda query_bank, gallery, _, __: (
        dbn.baselines.sinkhorn_normalization(
            dbn.dot_product(query_bank, gallery), temperature=0.2, num_iterations=5
        )
    ),
    "stream_sinkhorn_normalization": lambda query_bank, gallery, gallery_bank, chunk_size: (
        dbn.baselines.stream_sinkhorn_normalization(
            query_bank,
            gallery,
            gallery_bank,
            temperature=0.2,
            num_iterations=5,
            chunk_size=chunk_size,
        )
    ),
    "dual_bank_sinkhorn_normalization": lambda query_bank, gallery, gallery_bank, _: (
        dbn.baselines.dual_bank_sinkhorn_normalization(
            dbn.dot_product(query_bank, gallery),
            dbn.dot_product(query_bank, gallery_bank),
            temperature=0.2,
            num_iterations=5,
        )
    ),
    "hubless_nearest_neighbor": lambda query_bank, gallery, _, __: (
        dbn.baselines.hubless_nearest_neighbor(
            dbn.dot_product(query_bank, gallery), temperature=0.3, num_iterations=30
        )
    ),
    "dis_sim_local": lambda query_bank, gallery, _, __: dbn.baselines.dis_sim_local(
        gallery, query_bank, k=3
    ),
}
# An optimizer's path: no smooth function of its input, and it feels the last bits.
ITERATED = {"hubless_nearest_neighbor"}


def _distances(rows, columns):
    # Away from 0, where the root has no slope.
    return (1e-6 - dbn.negative_squared_euclidean(rows, columns)) ** 0.5


# Those that are no Correction: (queries, gallery, query_bank, gallery_bank) -> scores.
SCORES = {
    "globally_corrected": lambda queries, gallery, query_bank, _: dbn.baselines.globally_corrected(
        dbn.dot_product(queries, gallery), dbn.dot_product(query_bank, gallery)
    ),
    "dual_softmax": lambda queries, gallery, _, __: dbn.baselines.dual_softmax(
        dbn.dot_product(queries, gallery), temperature=0.2
    ),
    "inverse_graph_convolution": lambda queries, gallery, query_bank, gallery_bank: dbn.dot_product(
        queries,
        dbn.baselines.inverse_graph_convolution(
            gallery, query_bank, gallery_bank, query_rate=0.3, gallery_rate=0.1
        ),
    ),
    "inverse_graph_convolution_local": lambda queries, gallery, query_bank, gallery_bank: (
        dbn.dot_product(
            queries,
            dbn.baselines.inverse_graph_convolution(
                gallery, query_bank, gallery_bank, query_rate=0.3, gallery_rate=0.1, pool_rate=0.5
            ),
        )
    ),
    **{
        name: lambda queries, gallery, query_bank, _, name=name, options=options: (
            -getattr(dbn.baselines, name.partition("-")[0])(
                _distances(queries, gallery),
                _distances(queries, query_bank),
                _distances(query_bank, gallery),
                **options,
            )
        )
        for name, options in {
            "mutual_proximity-gaussian": {"method": "gaussian"},
            "mutual_proximity-empiric": {"method": "empiric"},
            "local_scaling": {"k": 2},
            "nicdm": {"k": 2},
        }.items()
    },
}
# Ranks and counts: the gradient is that of the similarity beside them, or zero.
COUNTED = {"globally_corrected", "mutual_proximity-empiric"}
