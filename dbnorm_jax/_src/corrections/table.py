"""The table of methods: one row per correction, read by the command, by tuning, tests and pages.

A row says how to fit a method from a *source*, anything that gives the statistics of the banks. So
it runs wherever they come from: matrices, streams, a mesh, files, the held-out part of a bank.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product, negative_squared_euclidean
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities
from dbnorm_jax._src.corrections import balance, means, rescaling, transport, vectors

# What a method needs.
QUERY_BANK, GALLERY_BANK = "query bank", "gallery bank"
WHOLE = "whole bank"  # in memory, more than one pass over it
VECTORS = "vectors"  # embeddings; matrices do not do
INNER_PRODUCTS = "inner products"  # cosines or dot products
DISTANCES = "distances"  # cosines or distances, from which distances can be told
TEST_QUERIES = "the other test queries"

# What comes of a fit: a Correction, gallery vectors to search, or a function that scores rows.
CORRECTION, MOVED, SCORES = "correction", "vectors", "scores"

SINKHORN_ITERATIONS = 10  # as published

# Units of parameters.
PER_SIMILARITY, SIMILARITY = "1/similarity", "similarity"


class Source(Protocol):
    """What a method is fitted from: the statistics of the banks."""

    def statistics(self, bank: str, beta: Any, k: int) -> BankStatistics:
        """Of the "query" or the "gallery" bank; any beta where the activation set alone is used.

        A source may have been told of another k.
        """

    def largest(self, k: int) -> LargestSimilarities:
        """The k largest to the query bank; fewer where the bank is smaller."""


class WholeSource(Source, Protocol):
    """What those methods are fitted from that need more than statistics."""

    similarity_fn: SimilarityFn
    embedded: bool  # whether there are vectors, not matrices alone

    def sinkhorn(self, temperature: Any, iterations: int, *, dual: bool) -> Correction:
        """SN of the query bank; dual: DBSN, of the gallery bank too."""

    def rows(self, part: str) -> jax.Array:
        """[num_rows, dim] embeddings: "gallery", "query bank", "gallery bank" or "queries"."""

    def similarities(self, part: str) -> jax.Array:
        """[num_rows, num_gallery] of the "query bank" or the "queries"."""

    def distances(self, similarities: jax.Array) -> jax.Array:
        """Euclidean distances, of the same shape."""


# (similarities of a block of queries [num_rows, num_gallery], their places) -> scores.
Rescore = Callable[[jax.Array, slice], jax.Array]


class Parameter(NamedTuple):
    """A parameter of a method, as `fit` takes it."""

    name: str
    default: float | None  # None where the method has its own, and only tuning sets another
    unit: str = ""  # a power of the similarity: then the default is for cosines
    whole: bool = False  # an integer


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """What is known of a method."""

    name: str  # as in the field's papers
    function: str  # its name in `dbnorm_jax` or `dbnorm_jax.baselines`
    paper: str
    group: str  # a name that stands for all its methods in `--methods`; "" keeps it out of lists
    fit: Callable[..., Any]  # (source, **parameters) -> what `gives` says
    parameters: tuple[Parameter, ...] = ()  # in the order in which they are shown
    needs: tuple[str, ...] = (QUERY_BANK,)  # what the source must have
    gives: str = CORRECTION
    gated: bool = False  # whether it acts on a query only where a gate is open
    similarity_fn: SimilarityFn | None = None  # the only one that it corrects; None for any
    # What `auto` tries, all combinations; betas are multiples of 1/spread, temperatures of the
    # spread of the similarities within a row. Empty: it is no candidate.
    grid: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """Parameters that a user may set."""
        return {one.name: one.default for one in self.parameters if one.default is not None}

    @property
    def by_statistics(self) -> bool:
        """Whether statistics of the banks are all it needs: then it runs on files of any size."""
        return self.gives == CORRECTION and {QUERY_BANK, GALLERY_BANK}.issuperset(self.needs)

    @property
    def transductive(self) -> bool:
        """Whether it reads the other test queries."""
        return TEST_QUERIES in self.needs


def _weighted(fitted: Correction, weight: Any) -> Correction:
    return fitted if weight is None else dataclasses.replace(fitted, bias=weight * fitted.bias)


def _single(normalizer: Callable[..., Correction], k: int) -> Callable[..., Correction]:
    def fit(source: Source, *, beta_query: Any, weight_query: Any = None) -> Correction:
        return _weighted(normalizer(source.statistics("query", beta_query, k)), weight_query)

    return fit


def _dual(normalizer: Callable[..., Correction], k: int) -> Callable[..., Correction]:
    def fit(
        source: Source,
        *,
        beta_query: Any,
        beta_gallery: Any,
        weight_query: Any = None,
        weight_gallery: Any = None,
    ) -> Correction:
        query = source.statistics("query", beta_query, k)
        gallery = source.statistics("gallery", beta_gallery, k)
        weights = None if weight_query is None else (weight_query, weight_gallery)
        return normalizer(query, gallery, weights=weights)

    return fit


def _csls(source: Source, *, k: int) -> Correction:
    return means.csls(source.largest(k))


def _nearest(source: Source, *, k: int, weight: Any) -> Correction:
    return means.nearest_neighbor_normalization(source.largest(k), weight=weight)


def _gated_nearest(source: Source, *, k: int, weight: Any) -> Correction:
    # The activation set has no temperature.
    gate = balance.dynamic_inverted_softmax(source.statistics("query", 1.0, 1))
    return dataclasses.replace(_nearest(source, k=k, weight=weight), active=gate.active)


def _distribution(source: WholeSource, *, weight: Any) -> Correction:
    mean = source.rows("query bank").mean(axis=0)
    return means.distribution_normalization(mean, source.rows("gallery"), weight=weight)


def _sinkhorn(*, dual: bool) -> Callable[..., Correction]:
    def fit(
        source: WholeSource, *, temperature: Any, iterations: int, weight: Any = None
    ) -> Correction:
        return _weighted(source.sinkhorn(temperature, iterations, dual=dual), weight)

    return fit


def _hubless(source: WholeSource, *, temperature: Any, iterations: int) -> Correction:
    return transport.hubless_nearest_neighbor(
        source.similarities("query bank"), temperature=temperature, num_iterations=iterations
    )


def _dis_sim_local(source: WholeSource, *, k: int) -> Correction:
    bank = source.rows("query bank")
    return vectors.dis_sim_local(source.rows("gallery"), bank, k=min(k, bank.shape[0]))


def _moved(
    source: WholeSource, *, query_rate: Any, gallery_rate: Any, pool: float | None = None
) -> jax.Array:
    gallery, *banks = map(source.rows, ("gallery", "query bank", "gallery bank"))
    if pool is not None:  # of a small bank, one item
        pool = max(pool, min(1.0, 1.5 / min(map(len, banks))))
    return vectors.inverse_graph_convolution(
        gallery=gallery,
        query_bank=banks[0],
        gallery_bank=banks[1],
        query_rate=query_rate,
        gallery_rate=gallery_rate,
        pool_rate=pool,
    )


def _globally_corrected(source: WholeSource) -> Rescore:
    bank = source.similarities("query bank")
    return lambda rows, _: rescaling.globally_corrected(rows, bank)


def _dual_softmax(source: WholeSource, *, temperature: Any) -> Rescore:
    scores = rescaling.dual_softmax(source.similarities("queries"), temperature=temperature)
    return lambda _, places: scores[places]


def _rescaled(rescale: Callable[..., jax.Array], **fixed: Any) -> Callable[..., Rescore]:
    """Queries are judged by the gallery, gallery items by the query bank."""

    def fit(source: WholeSource, **parameters: Any) -> Rescore:
        bank = source.distances(source.similarities("query bank"))
        options = fixed | {name: min(k, *bank.shape) for name, k in parameters.items()}

        def rescore(rows: jax.Array, places: slice) -> jax.Array:
            distances = of_query = source.distances(rows)
            if fixed:  # "empiric": both ends are judged by the same objects
                queries, objects = source.rows("queries")[places], source.rows("query bank")
                of_query = source.distances(source.similarity_fn(queries, objects))
            return -rescale(distances, of_query, bank, **options)

        return rescore

    return fit


BETA_QUERY = Parameter("beta_query", 20.0, PER_SIMILARITY)
BETA_GALLERY = Parameter("beta_gallery", 1.0, PER_SIMILARITY)
_TEMPERATURE = Parameter("temperature", 0.05, SIMILARITY)
_HUBLESS = (_TEMPERATURE, Parameter("iterations", 100, whole=True))
_SINKHORN = (
    _TEMPERATURE,
    Parameter("iterations", SINKHORN_ITERATIONS, whole=True),
    Parameter("weight", None),
)
_RATES = (Parameter("query_rate", 0.3), Parameter("gallery_rate", 0.1))
_ONE = (BETA_QUERY, Parameter("weight_query", None))
_TWO = (*_ONE[:1], BETA_GALLERY, *_ONE[1:], Parameter("weight_gallery", None))
_NEAREST = (Parameter("k", 128, whole=True), Parameter("weight", 0.75))
_TEN = (Parameter("k", 10, whole=True),)

_BOTH = (QUERY_BANK, GALLERY_BANK)
_MATRIX = (QUERY_BANK, WHOLE)
_RESCALED = (QUERY_BANK, VECTORS, DISTANCES)

_WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_ONE_GRID = {"beta_query": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), "weight_query": _WEIGHTS}
_NEAREST_GRID = {"k": (1, 3, 10, 30, 100), "weight": _WEIGHTS}
_SINKHORN_GRID = {"temperature": (1.0, 0.5, 0.25, 0.125), "weight": (0.5, 0.75, 1.0)}
_DUAL_SINKHORN_GRID = _SINKHORN_GRID | {"temperature": (0.5, 0.25, 0.125)}

# name, function, paper, group, fit, parameters, needs, gives.
# fmt: off
TABLE: dict[str, Row] = {
    "is": Row("IS", "inverted_softmax", "Smith et al., ICLR 2017",
              "paper", _single(balance.inverted_softmax, 0), _ONE, grid=_ONE_GRID),
    "dis": Row("DIS", "dynamic_inverted_softmax", "Bogolin et al., CVPR 2022 (QB-Norm)",
               "paper", _single(balance.dynamic_inverted_softmax, 1), _ONE,
               gated=True),
    "csls": Row("CSLS", "csls", "Conneau et al., ICLR 2018",
                "means", _csls, _TEN),
    "nnn": Row("NNN", "nearest_neighbor_normalization", "Chowdhury et al., EMNLP 2024",
               "means", _nearest, _NEAREST, grid=_NEAREST_GRID),
    "gated nnn": Row("gated NNN", "nearest_neighbor_normalization", "this library",
                     "", _gated_nearest, _NEAREST, gated=True),
    "dualis": Row("DualIS", "dual_inverted_softmax", "Wang, Jian, Xue, EMNLP 2023",
                  "paper", _dual(balance.dual_inverted_softmax, 0), _TWO, _BOTH),
    "dualdis": Row("DualDIS", "dual_dynamic_inverted_softmax", "Wang, Jian, Xue, EMNLP 2023",
                   "paper", _dual(balance.dual_dynamic_inverted_softmax, 1), _TWO, _BOTH,
                   gated=True),
    "dn": Row("DN", "distribution_normalization", "Zhou et al., NeurIPS 2023",
              "means", _distribution, (Parameter("weight", 0.5),),
              (QUERY_BANK, VECTORS, INNER_PRODUCTS)),
    "sn": Row("SN", "sinkhorn_normalization", "Pan et al., ACM MM 2025",
              "transport", _sinkhorn(dual=False), _SINKHORN, _MATRIX,
              grid=_SINKHORN_GRID),
    "dbsn": Row("DBSN", "dual_bank_sinkhorn_normalization", "Pan et al., ACM MM 2025",
                "transport", _sinkhorn(dual=True), _SINKHORN, (*_BOTH, VECTORS),
                grid=_DUAL_SINKHORN_GRID),
    "hnn": Row("HNN", "hubless_nearest_neighbor", "Huang et al., ACL 2019",
               "transport", _hubless, _HUBLESS, _MATRIX),
    "gc": Row("GC", "globally_corrected", "Dinu et al., 2015",
              "rescaling", _globally_corrected, (), _MATRIX, SCORES),
    "mp": Row("MP", "mutual_proximity", "Schnitzer et al., JMLR 2012",
              "rescaling", _rescaled(rescaling.mutual_proximity), (), _RESCALED, SCORES),
    "mp-empiric": Row("MP empiric", "mutual_proximity", "Schnitzer et al., JMLR 2012",
                      "rescaling", _rescaled(rescaling.mutual_proximity, method="empiric"), (),
                      _RESCALED, SCORES),
    "ls": Row("LS", "local_scaling", "Zelnik-Manor, Perona, 2004",
              "rescaling", _rescaled(rescaling.local_scaling), _TEN, _RESCALED, SCORES),
    "nicdm": Row("NICDM", "nicdm", "Jegou et al., 2007",
                 "rescaling", _rescaled(rescaling.nicdm), _TEN, _RESCALED, SCORES),
    "dissim": Row("DisSimLocal", "dis_sim_local", "Hara et al., AAAI 2016",
                  "vectors", _dis_sim_local, _TEN, (QUERY_BANK, VECTORS),
                  similarity_fn=negative_squared_euclidean),
    "invgc": Row("InvGC", "inverse_graph_convolution", "Jian, Wang, EMNLP Findings 2023",
                 "vectors", _moved, _RATES, (*_BOTH, VECTORS), MOVED, similarity_fn=dot_product),
    "invgc-local": Row("InvGC local", "inverse_graph_convolution",
                       "Jian, Wang, EMNLP Findings 2023", "vectors", _moved,
                       (*_RATES, Parameter("pool", 0.1)), (*_BOTH, VECTORS), MOVED,
                       similarity_fn=dot_product),
    "dsl": Row("DSL", "dual_softmax", "Cheng et al., 2021",
               "transductive", _dual_softmax, (_TEMPERATURE,), (TEST_QUERIES,), SCORES),
}
# fmt: on
