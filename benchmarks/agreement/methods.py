"""Other corrections, measures and metrics beside POT, kiez, SciPy and scikit-learn."""

from collections.abc import Iterator
from typing import Any

import numpy as np

import dbnorm_jax as dbn
from benchmarks.agreement.inputs import (
    Errors,
    compared,
    embeddings,
    exact,
    given,
    matrices,
    norms,
    ulps,
)
from benchmarks.agreement.search import faiss_nearest
from dbnorm_jax import baselines, hubness, metrics

# --- means of the nearest -------------------------------------------------------------------------


@compared("faiss", "max|b| |g|", 4, "float32")
def csls_bias(dtype: str, seed: int) -> Errors:
    """Bias of CSLS, from k-NN of the bank."""
    for name, bank, gallery in embeddings(dtype, seed):
        k = min(10, bank.shape[0])
        ours = baselines.csls(dbn.stream_largest_similarities(bank, gallery, k=k)).bias[0]
        theirs = faiss_nearest(gallery, bank, k, values=True).mean(axis=1, dtype=np.float64) / 2
        yield name, ulps(ours, theirs, norms(exact(gallery)) * norms(exact(bank)).max(), dtype)


# --- optimal transport ----------------------------------------------------------------------------


@compared("ot", "max|s| + temperature log(n m)", 32)
def sinkhorn(dtype: str, seed: int) -> Errors:
    """SN, the same iterations."""
    import ot

    for name, similarities, beta in matrices(dtype, seed):
        if name == "long rows":
            continue
        exponents, temperature = exact(similarities), 1 / beta
        ours = baselines.sinkhorn_normalization(
            similarities, temperature=temperature, num_iterations=20
        ).bias[0]
        log = ot.bregman.sinkhorn_log(
            [], [], -exponents.T, temperature, numItermax=20, stopThr=0, log=True, warn=False
        )[1]
        theirs = -temperature * log["log_u"]
        scale = np.abs(exponents).max() + temperature * np.log(exponents.size)
        yield name, ulps(ours - ours.mean(), theirs - theirs.mean(), scale, dtype)


@compared("ot", "max|s| + temperature log(n m)", 32, "float32")
def hubless(dtype: str, seed: int) -> Errors:
    """HNN against SN of POT, both converged."""
    import ot

    similarities = next(matrices(dtype, seed))[1]
    ours = baselines.hubless_nearest_neighbor(similarities, temperature=0.2).bias[0]
    cost = -exact(similarities).T
    log = ot.bregman.sinkhorn_log([], [], cost, 0.2, numItermax=2000, stopThr=1e-14, log=True)[1]
    theirs = -0.2 * log["log_u"]
    scale = np.abs(cost).max() + 0.2 * np.log(cost.size)
    yield "random", ulps(ours - ours.mean(), theirs - theirs.mean(), scale, dtype)


# --- corrections of distances ---------------------------------------------------------------------


def distances(dtype: str, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, queries, gallery), as many of both: kiez reads as many candidates of either."""
    draw = np.random.default_rng(seed)
    queries, gallery = draw.standard_normal((2, 25, 8))
    for name, scale, shift in (("random", 1, 0), ("tiny", 1e-6, 0), ("huge", 1e6, 0)):
        yield name, *(exact(given(part * scale + shift, dtype)) for part in (queries, gallery))
    clusters = 5 * draw.standard_normal((3, 8))[draw.integers(0, 3, 25)]
    yield "clusters", exact(given(queries + clusters, dtype)), exact(given(gallery, dtype))


def by_kiez(
    name: str, queries: np.ndarray, gallery: np.ndarray | None, k: int, metric: str, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(corrected distances, items) of each query's k nearest; without a gallery, among queries."""
    from kiez import hubness_reduction, neighbors

    search = neighbors.SklearnNN(n_candidates=k, metric=metric)
    reduction = getattr(hubness_reduction, name)(nn_algo=search, **options)
    reduction.fit(queries, gallery)
    values, items = search.kneighbors(query=None, k=k, return_distance=True)
    return reduction.transform(values, items, queries)[0], items


@compared("kiez", "1", 64)
def mutual_proximity(dtype: str, seed: int) -> Errors:
    """Mutual proximity, of normal distributions."""
    for name, queries, gallery in distances(dtype, seed):
        matrix = np.linalg.norm(queries[:, None] - gallery[None], axis=2)
        theirs, items = by_kiez("MutualProximity", queries, gallery, len(gallery), "euclidean")
        ours = baselines.mutual_proximity(*[given(matrix, dtype)] * 3)
        yield name, ulps(np.take_along_axis(np.asarray(ours), items, 1), theirs, 1, dtype)


@compared("kiez", "1", 8)
def empiric_mutual_proximity(dtype: str, seed: int) -> Errors:
    """Mutual proximity, empiric, of one set, times n / (n - 1)."""
    for name, items, _ in distances(dtype, seed):
        matrix = np.linalg.norm(items[:, None] - items[None], axis=2)
        others = len(items) - 1
        theirs, places = by_kiez(
            "MutualProximity", items, None, others, "euclidean", method="empiric"
        )
        ours = baselines.mutual_proximity(*[given(matrix, dtype)] * 3, method="empiric")
        ours = 1 - (1 - exact(ours)) * len(items) / others  # kiez leaves the item itself out
        yield name, ulps(np.take_along_axis(ours, places, 1), theirs, 1, dtype)


@compared("kiez", "1", 8)
def local_scaling(dtype: str, seed: int) -> Errors:
    """Local scaling."""
    yield from _scaled(baselines.local_scaling, "standard", dtype, seed)


@compared("kiez", "max(1, the distance)", 8)
def nicdm(dtype: str, seed: int) -> Errors:
    """NICDM."""
    yield from _scaled(baselines.nicdm, "nicdm", dtype, seed)


def _scaled(function: Any, method: str, dtype: str, seed: int) -> Errors:
    for name, queries, gallery in distances(dtype, seed):
        matrix = given(np.linalg.norm(queries[:, None] - gallery[None], axis=2), dtype)
        theirs, items = by_kiez("LocalScaling", queries, gallery, 5, "euclidean", method=method)
        ours = np.take_along_axis(np.asarray(function(matrix, matrix, matrix, k=5)), items, 1)
        yield name, ulps(ours, theirs, np.maximum(1, theirs), dtype)


@compared("kiez", "1", 8)
def csls_of_cosines(dtype: str, seed: int) -> Errors:
    """CSLS of cosines, whose distances are 1 - s."""
    for name, queries, gallery in distances(dtype, seed):
        bank, items = given(queries, dtype), given(gallery, dtype)
        largest = dbn.stream_largest_similarities(
            bank, items, k=5, similarity_fn=dbn.cosine_similarity
        )
        cosines = dbn.cosine_similarity(bank, items)
        scores = 2 * exact(dbn.apply_correction(cosines, baselines.csls(largest)))
        scores -= np.sort(exact(cosines), axis=1)[:, -5:].mean(axis=1, keepdims=True)
        theirs, places = by_kiez("CSLS", queries, gallery, 5, "cosine")
        yield name, ulps(-np.take_along_axis(scores, places, 1), theirs, 1, dtype)


@compared("kiez", "(|q| + |g|)^2", 8)
def dis_sim_local(dtype: str, seed: int) -> Errors:
    """DisSimLocal, up to one constant."""
    for name, queries, gallery in distances(dtype, seed):
        bank, items = given(queries, dtype), given(gallery, dtype)
        theirs, places = by_kiez("DisSimLocal", queries, gallery, 5, "sqeuclidean")
        squares = -dbn.negative_squared_euclidean(bank, items)
        # Ours leaves out what is the same for a whole row: the distance to the query's centroid.
        centroids = gallery[places].mean(axis=1)
        rest = np.square(queries - centroids).sum(axis=1, keepdims=True)
        ours = exact(squares) + exact(baselines.dis_sim_local(items, bank, k=5).bias) - rest
        ours = np.take_along_axis(ours, places, 1)
        size = (norms(queries).max() + norms(gallery).max()) ** 2
        yield name, ulps(ours - ours.mean(), theirs - theirs.mean(), size, dtype)


@compared("skhubness", "1", 64)
def mutual_proximity_of_graphs(dtype: str, seed: int) -> Errors:
    """Mutual proximity, more queries than items."""
    from scipy.sparse import csr_matrix
    from skhubness.reduction import MutualProximity

    def graph(matrix: np.ndarray) -> Any:
        order = np.argsort(matrix, axis=1)
        values, (rows, columns) = np.take_along_axis(matrix, order, 1), matrix.shape
        ends = np.arange(0, rows * columns + 1, columns)
        return csr_matrix((values.ravel(), order.ravel(), ends), shape=matrix.shape)

    for name, queries, gallery in distances(dtype, seed):
        matrix = np.linalg.norm(queries[:, None] - gallery[None, :15], axis=2)
        peer = MutualProximity("normal").fit(graph(matrix.T.copy()))
        theirs = peer.transform(graph(matrix)).toarray()
        ours = baselines.mutual_proximity(*[given(matrix, dtype)] * 3)
        yield name, ulps(ours, theirs, 1, dtype)


# --- measures and metrics -------------------------------------------------------------------------


def counts(seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, k-occurrence)."""
    draw = np.random.default_rng(seed)
    yield "random", draw.poisson(3, 500)
    yield "one hub", np.array([300] + [0] * 299)
    yield "heavy tail", (draw.pareto(1.2, 2000) * 3).astype(int)
    yield "two values", np.array([0, 5] * 50)
    yield "large", draw.integers(10**6, 2 * 10**6, 300)


@compared("scipy", "max(1, |skewness|)", 32)
def skewness(dtype: str, seed: int) -> Errors:
    """Skewness."""
    from scipy import stats

    for name, occurrence in counts(seed):
        theirs = stats.skew(occurrence.astype(np.float64))
        ours = hubness.skewness(given(occurrence, dtype))
        yield name, ulps(ours, theirs, max(1, abs(theirs)), dtype)


@compared("kiez", "1", 8)
def hubness_measures(dtype: str, seed: int) -> Errors:
    """Hubness measures, as many queries as items."""
    from kiez.analysis import hubness_score

    draw = np.random.default_rng(seed)
    for name, weights in (("even", np.ones(100)), ("hubs", 1.0 / np.arange(1, 101))):
        nearest = np.stack(
            [draw.choice(100, 5, replace=False, p=weights / weights.sum()) for _ in range(100)]
        )
        theirs = hubness_score(nearest, 100, return_value="all")
        occurrence = given(hubness.k_occurrence(nearest, 100), dtype)
        for measure, ours in {
            "k_skewness": hubness.skewness,
            "gini": hubness.gini,
            "robinhood": hubness.robin_hood,
            "atkinson": hubness.atkinson,
            "antihub_occurrence": hubness.anti_hub_share,
            "hub_occurrence": hubness.hub_occurrence,
        }.items():
            value = theirs[measure]
            yield f"{name}: {measure}", ulps(ours(occurrence), value, max(1, abs(value)), dtype)


@compared("scipy", "the rank", 0)
def ranks(dtype: str, seed: int) -> Errors:
    """Ranks of one right item, three rules for ties."""
    from scipy import stats

    for name, scores, _ in matrices(dtype, seed):
        if name not in {"random", "ties", "constant", "one column"}:
            continue
        right = np.random.default_rng(seed).integers(0, scores.shape[1], len(scores))
        for ties in ("average", "min", "max"):
            theirs = stats.rankdata(-exact(scores), ties, axis=1)[np.arange(len(scores)), right]
            yield (
                f"{name}, {ties}",
                ulps(metrics.ranks(scores, right, ties=ties), theirs, theirs, dtype),
            )


@compared("sklearn", "1", 4)
def retrieval_metrics(dtype: str, seed: int) -> Errors:
    """Mean average precision, recall, reciprocal rank."""
    from sklearn import metrics as peer

    draw = np.random.default_rng(seed)
    for name, scores, _ in matrices(dtype, seed):
        if name in {"ties", "constant"} or 1 in scores.shape or name == "long rows":
            continue  # scikit-learn breaks ties in another way
        values = exact(scores)
        relevant = draw.random(scores.shape) < 0.1
        relevant[:, 0] = True
        theirs = peer.label_ranking_average_precision_score(relevant, values)
        yield (
            f"{name}: mAP",
            ulps(metrics.mean_average_precision(scores, relevant), theirs, 1, dtype),
        )
        right = draw.integers(0, scores.shape[1], len(scores))
        place = metrics.ranks(scores, right)
        labels = np.arange(scores.shape[1])
        for k in (1, 5, 10):
            theirs = peer.top_k_accuracy_score(right, values, k=k, labels=labels)
            yield f"{name}: recall at {k}", ulps(metrics.recall_at(place, k), theirs, 1, dtype)
        one = labels == right[:, None]
        theirs = peer.label_ranking_average_precision_score(one, values)
        yield f"{name}: MRR", ulps(metrics.mean_reciprocal_rank(place), theirs, 1, dtype)
        theirs = peer.coverage_error(one, values)
        yield f"{name}: mean rank", ulps(metrics.mean_rank(place), theirs, theirs, dtype)
