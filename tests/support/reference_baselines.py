"""The field's other corrections in plain NumPy float64, to compare the library with.

Same conventions as `reference`: the gallery is the last axis, nothing is batched. Scores and
similarities: higher is closer. The last four work on distances: lower is closer, also in what
they return.
"""

import math

import numpy as np
from reference import _float64, dot_product, log_sum_exp, normalize_rows, top_k


def mean_of_largest(values, k, axis):
    """r = mean of the k largest values along the axis (of all of them where fewer than k)."""
    values = np.moveaxis(_float64(values), axis, -1)
    return np.sort(values, axis=-1)[..., ::-1][..., :k].mean(axis=-1)


# --- from similarities -------------------------------------------------------------------------


def csls_scores(similarities, query_bank_similarities, k):
    """CSLS: 2 s(q, g) - r_G(q) - r_B(g)."""
    similarities = _float64(similarities)
    of_queries = mean_of_largest(similarities, k, axis=1)
    of_gallery = mean_of_largest(query_bank_similarities, k, axis=0)
    return 2 * similarities - of_queries[:, None] - of_gallery


def nearest_neighbor_normalization_scores(similarities, query_bank_similarities, k, weight):
    """NNN: s(q, g) - weight x mean of the k largest s(b, g)."""
    return _float64(similarities) - weight * mean_of_largest(query_bank_similarities, k, axis=0)


def globally_corrected_scores(similarities, query_bank_similarities):
    """GC: -Rank + s, Rank = 1 + bank items with s(b, g) > s(q, g)."""
    similarities = _float64(similarities)
    bank = _float64(query_bank_similarities)
    above = (bank[None, :, :] > similarities[:, None, :]).sum(axis=1)
    return -(1 + above) + similarities


def dual_softmax_scores(similarities, temperature):
    """DSL: s(q, g) x softmax over the queries of s / T x num_queries; transductive."""
    similarities = _float64(similarities)
    scaled = similarities / temperature
    softmax = np.exp(scaled - log_sum_exp(scaled, axis=0))
    return similarities * softmax * len(similarities)


def sinkhorn_hubness(query_bank_similarities, temperature, num_iterations):
    """SN: h(g) = -T log u_g with u, v scaling exp(-(1 - s) / T) to uniform marginals."""
    exponents = -(1 - _float64(query_bank_similarities)) / temperature
    num_bank, num_gallery = exponents.shape
    # The bank side is scaled first and the gallery side last: after few iterations the order
    # shows. Starting u at its marginal only shifts h by a constant.
    log_u = np.full(num_gallery, -np.log(num_gallery))
    for _ in range(num_iterations):
        log_v = -np.log(num_bank) - log_sum_exp(exponents + log_u[None, :], axis=1)
        log_u = -np.log(num_gallery) - log_sum_exp(exponents + log_v[:, None], axis=0)
    return -temperature * log_u


def dual_bank_sinkhorn_hubness(
    query_bank_similarities, query_bank_to_gallery_bank, temperature, num_iterations
):
    """DBSN: SN with the columns [gallery; gallery bank], the first num_gallery potentials."""
    query_bank_similarities = _float64(query_bank_similarities)
    stacked = np.hstack([query_bank_similarities, _float64(query_bank_to_gallery_bank)])
    hubness = sinkhorn_hubness(stacked, temperature, num_iterations)
    return hubness[: query_bank_similarities.shape[1]]


# --- from embeddings ---------------------------------------------------------------------------


def distribution_normalization_scores(queries, gallery, query_bank, gallery_bank, weight):
    """DN: (q - weight mu_Q) . (g - weight mu_G), mu the means of the two banks."""
    centered_queries = _float64(queries) - weight * _float64(query_bank).mean(axis=0)
    centered_gallery = _float64(gallery) - weight * _float64(gallery_bank).mean(axis=0)
    return dot_product(centered_queries, centered_gallery)


def _inverse_convolved(gallery, bank, rate, pool_rate):
    """g - (r / |B|) sum_h (s(g, h) - mean s) h, or over g's nearest h alone; row-normalized."""
    gallery, bank = _float64(gallery), _float64(bank)
    to_bank = dot_product(gallery, bank)
    if pool_rate is None:
        # `mean s` is one number, over all pairs (gallery item, bank item).
        return normalize_rows(gallery - rate / len(bank) * (to_bank - to_bank.mean()) @ bank)
    pool_size = int(pool_rate * len(bank))
    values, indices = top_k(to_bank, pool_size)
    result = np.empty(gallery.shape)
    for item in range(len(gallery)):
        result[item] = gallery[item] - rate / pool_size * values[item] @ bank[indices[item]]
    return normalize_rows(result)


def inverse_graph_convolution_scores(
    queries, gallery, query_bank, gallery_bank, gallery_rate, query_rate, pool_rate=None
):
    """InvGC (LocalAdj with pool_rate): q . normalize((g_Q + g_G) / 2)."""
    from_queries = _inverse_convolved(gallery, query_bank, query_rate, pool_rate)
    from_gallery = _inverse_convolved(gallery, gallery_bank, gallery_rate, pool_rate)
    return dot_product(queries, normalize_rows((from_queries + from_gallery) / 2))


# --- from distances; every result is a distance again ------------------------------------------
#
# `distances` is [num_queries, num_gallery]. `query_distances` [num_queries, num_objects] holds
# the distances from each query to the objects it is judged by, `gallery_distances`
# [num_objects, num_gallery] those from each gallery item. The two sets of objects may differ,
# except for the empiric mutual proximity.


def mutual_proximity_empiric(distances, query_distances, gallery_distances):
    """MP: 1 - the fraction of objects j with d(q, j) > d(q, g) and d(g, j) > d(q, g)."""
    distances = _float64(distances)
    result = np.empty(distances.shape)
    for query, item in np.ndindex(distances.shape):
        farther_from_query = _float64(query_distances)[query] > distances[query, item]
        farther_from_item = _float64(gallery_distances)[:, item] > distances[query, item]
        result[query, item] = 1 - np.mean(farther_from_query & farther_from_item)
    return result


def _normal_survival(value, mean, deviation):
    """SF(x; mu, sd) = erfc((x - mu) / (sd sqrt 2)) / 2."""
    return math.erfc((value - mean) / (deviation * math.sqrt(2))) / 2


def mutual_proximity_gaussian(distances, query_distances, gallery_distances):
    """MP: 1 - SF(d; mu_q, sd_q) SF(d; mu_g, sd_g), population standard deviations."""
    distances = _float64(distances)
    query_distances, gallery_distances = _float64(query_distances), _float64(gallery_distances)
    result = np.empty(distances.shape)
    for query, item in np.ndindex(distances.shape):
        of_query, of_item = query_distances[query], gallery_distances[:, item]
        distance = distances[query, item]
        result[query, item] = 1 - (
            _normal_survival(distance, of_query.mean(), of_query.std())
            * _normal_survival(distance, of_item.mean(), of_item.std())
        )
    return result


def local_scaling(distances, query_distances, gallery_distances, k):
    """LS: 1 - exp(-d^2 / (r_q r_g)), r the k-th smallest distance."""
    query_radii = np.sort(_float64(query_distances), axis=1)[:, k - 1]
    gallery_radii = np.sort(_float64(gallery_distances), axis=0)[k - 1]
    return 1 - np.exp(-(_float64(distances) ** 2) / (query_radii[:, None] * gallery_radii))


def nicdm(distances, query_distances, gallery_distances, k):
    """NICDM: d / sqrt(m_q m_g), m the mean of the k smallest distances."""
    query_means = -mean_of_largest(-_float64(query_distances), k, axis=1)
    gallery_means = -mean_of_largest(-_float64(gallery_distances), k, axis=0)
    return _float64(distances) / np.sqrt(query_means[:, None] * gallery_means)


def _squared_distance_to_centroid(vector, pool, k):
    """|v - c|^2, c the centroid of the k vectors of the pool nearest to v."""
    squared_distances = ((pool - vector) ** 2).sum(axis=1)
    centroid = pool[np.argsort(squared_distances, kind="stable")[:k]].mean(axis=0)
    return ((vector - centroid) ** 2).sum()


def dis_sim_local(queries, gallery, query_pool, gallery_pool, k):
    """DisSimLocal: |q - g|^2 - |q - c_q|^2 - |g - c_g|^2.

    queries [num_queries, dim] find their k neighbors in query_pool [., dim], gallery items
    [num_gallery, dim] in gallery_pool [., dim]; usually the gallery and the query bank.
    """
    queries, gallery = _float64(queries), _float64(gallery)
    query_pool, gallery_pool = _float64(query_pool), _float64(gallery_pool)
    result = np.empty((len(queries), len(gallery)))
    for query, item in np.ndindex(result.shape):
        result[query, item] = (
            ((queries[query] - gallery[item]) ** 2).sum()
            - _squared_distance_to_centroid(queries[query], query_pool, k)
            - _squared_distance_to_centroid(gallery[item], gallery_pool, k)
        )
    return result
