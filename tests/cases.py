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


def statistics_of(test, beta_query=20.0, beta_gallery=2.0, k=1):
    """The statistics of both banks of a problem, from its matrices."""
    return (
        dbn.bank_statistics(test.query_bank_similarities, beta=beta_query, k=k),
        dbn.bank_statistics(test.gallery_bank_similarities, beta=beta_gallery, k=k),
    )
