"""Tables of all variants: generic tests loop over them, and over the table of methods."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import reference

import dbnorm_jax as dbn
from dbnorm_jax._src.corrections.streamed import Streamed
from dbnorm_jax._src.corrections.table import CORRECTION, DISTANCES, MOVED, SCORES, TABLE

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


# Parameters on problems as small as these; beta_query and the rest are the table's.
SMALL = {"beta_gallery": 2.0, "k": 3, "temperature": 0.2, "iterations": 5, "pool": 0.5}
LONG = SMALL | {"temperature": 0.3, "iterations": 30}
# An optimizer's path: no smooth function of its input, and it feels the last bits.
ITERATED = {"hnn"}
# Ranks and counts: the gradient is that of the similarity beside them, or zero.
COUNTED = {"gc", "mp-empiric"}


@dataclasses.dataclass(frozen=True, eq=False)
class Whole(Streamed):
    """Embeddings with all that any row of the table asks of a source."""

    queries: object = None
    embedded = True

    def rows(self, part):
        return getattr(self, part.replace(" ", "_"))

    def similarities(self, part):
        return self.similarity_fn(self.rows(part), self.gallery)

    def distances(self, similarities):
        return (1e-6 - similarities) ** 0.5  # away from 0, where the root has no slope


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """Banks and a gallery, with two functions that give their statistics in some place."""

    of_bank: Callable  # (bank, gallery, beta=, k=) -> BankStatistics
    of_largest: Callable  # (bank, gallery, k=) -> LargestSimilarities
    gallery: object
    banks: dict

    def statistics(self, bank, beta, k):
        return self.of_bank(self.banks[bank], self.gallery, beta=beta, k=k)

    def largest(self, k):
        return self.of_largest(self.banks["query"], self.gallery, k=k)


def places():
    """By place, the functions that give statistics from embeddings."""
    mesh = {"mesh": jax.make_mesh((2, 2), ("bank", "gallery"))}
    disk = {"block_size": 4}
    return {
        "matrix": [
            lambda bank, gallery, how=how, **options: how(dbn.dot_product(bank, gallery), **options)
            for how in (dbn.bank_statistics, dbn.largest_similarities)
        ],
        "streamed": [dbn.stream_bank_statistics, dbn.stream_largest_similarities],
        "mesh": [
            partial(dbn.stream_bank_statistics, **mesh),
            partial(dbn.stream_largest_similarities, **mesh),
        ],
        "disk": [
            partial(dbn.out_of_core.bank_statistics, **disk),
            partial(dbn.out_of_core.largest_similarities, **disk),
        ],
    }


def fitted(name, source):
    """What a row of the table makes of a source."""
    row, values = TABLE[name], LONG if name in ITERATED else SMALL
    return row.fit(source, **{key: values.get(key, value) for key, value in row.defaults.items()})


def rows_that_give(*what):
    return [name for name, row in TABLE.items() if row.gives in what]


# Functions on matrices that stand behind no row of the table: (query_bank, gallery, gallery_bank).
ON_MATRICES = {
    "sinkhorn_normalization": lambda query_bank, gallery, _: dbn.baselines.sinkhorn_normalization(
        dbn.dot_product(query_bank, gallery), temperature=0.2, num_iterations=5
    ),
    "dual_bank_sinkhorn_normalization": lambda query_bank, gallery, gallery_bank: (
        dbn.baselines.dual_bank_sinkhorn_normalization(
            dbn.dot_product(query_bank, gallery),
            dbn.dot_product(query_bank, gallery_bank),
            temperature=0.2,
            num_iterations=5,
        )
    ),
}
FITS = [*rows_that_give(CORRECTION), *ON_MATRICES]
SCORED = rows_that_give(SCORES, MOVED)


def fit(name, query_bank, gallery, gallery_bank, chunk_size=1024):
    """The Correction of a row of the table, or of a function on matrices."""
    if name in ON_MATRICES:
        return ON_MATRICES[name](query_bank, gallery, gallery_bank)
    return fitted(name, Whole(gallery, query_bank, gallery_bank, chunk_size=chunk_size))


def score(name, queries, gallery, query_bank, gallery_bank):
    """Scores [num_queries, num_gallery] of a row that gives no Correction."""
    row = TABLE[name]
    similarity_fn = dbn.dot_product
    if DISTANCES in row.needs:
        similarity_fn = dbn.negative_squared_euclidean
    source = Whole(gallery, query_bank, gallery_bank, {}, similarity_fn, queries=queries)
    found = fitted(name, source)
    if row.gives == MOVED:
        return row.similarity_fn(queries, found)
    return found(similarity_fn(queries, gallery), slice(None))
