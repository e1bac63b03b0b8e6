"""The formulas in plain NumPy float64: what the library is compared with.

Written from the mathematics alone, never from the library. Similarities are [num_rows,
num_gallery], higher is closer; the gallery is always the last axis; nothing is batched.
The other corrections of the field are in `reference_baselines`.
"""

import math

import numpy as np

# --- similarities ------------------------------------------------------------------------------


def _float64(values):
    """The array in float64."""
    return np.asarray(values, dtype=np.float64)


def normalize_rows(vectors):
    """v / |v| row by row; a zero row stays zero."""
    vectors = _float64(vectors)
    lengths = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    return vectors / np.where(lengths > 0, lengths, 1.0)


def dot_product(rows, columns):
    """s(i, j) = r_i . c_j for rows [m, dim], columns [n, dim] -> [m, n]."""
    return _float64(rows) @ _float64(columns).T


def cosine_similarity(rows, columns):
    """s(i, j) = r_i . c_j / (|r_i| |c_j|); 0 where a vector is zero."""
    return normalize_rows(rows) @ normalize_rows(columns).T


def negative_squared_euclidean(rows, columns):
    """s(i, j) = -|r_i - c_j|^2."""
    # The difference itself: expanding the square would cancel for close vectors.
    differences = _float64(rows)[:, None, :] - _float64(columns)[None, :, :]
    return -(differences**2).sum(axis=2)


# --- bank statistics ---------------------------------------------------------------------------


def log_sum_exp(values, axis, weights=1.0):
    """log sum w exp(v) along an axis, over the places of weight > 0; -inf where there are none."""
    values = _float64(values)
    weights = np.broadcast_to(_float64(weights), values.shape)
    values = np.where(weights > 0, values, -np.inf)
    shift = values.max(axis=axis, keepdims=True, initial=-np.inf)  # an empty bank is allowed
    shift = np.where(np.isfinite(shift), shift, 0.0)  # -inf - -inf would be NaN
    total = (weights * np.exp(values - shift)).sum(axis=axis)
    with np.errstate(divide="ignore"):
        return np.log(total) + np.squeeze(shift, axis=axis)


def _pair_weights(similarities, weights=None, where=None):
    """The weight with which each pair (b, g) enters its column, [num_bank, num_gallery]."""
    similarities = _float64(similarities)
    pairs = np.ones(similarities.shape)
    if weights is not None:
        pairs = pairs * _float64(weights)[:, None]
    if where is not None:
        where = np.asarray(where, dtype=bool)
        if where.ndim == 1:  # a vector names whole bank rows
            where = where[:, None]
        pairs = np.where(where, pairs, 0.0)
    return pairs


def log_normalizer(similarities, beta, weights=None, where=None):
    """log Z(g) = log sum_b w_b exp(beta s(b, g)); -inf for a column nothing enters."""
    pairs = _pair_weights(similarities, weights, where)
    return log_sum_exp(beta * _float64(similarities), axis=0, weights=pairs)


def mass(similarities, weights=None, where=None):
    """|B|(g) = sum of the weights w_b that enter the column g."""
    return _pair_weights(similarities, weights, where).sum(axis=0)


def bias(similarities, beta, weights=None, where=None):
    """bias(g) = (log Z(g) - log |B|(g)) / beta; 0 for a column nothing enters."""
    log_sums = log_normalizer(similarities, beta, weights, where)
    masses = mass(similarities, weights, where)
    result = np.zeros(masses.shape)
    for item in range(len(masses)):
        if masses[item] > 0:
            result[item] = (log_sums[item] - np.log(masses[item])) / beta
    return result


def bank_k_occurrence(similarities, k, weights=None, where=None):
    """N(g) = number of bank rows of weight > 0 with g among their k nearest valid items."""
    similarities = _float64(similarities)
    enters = _pair_weights(similarities, weights, where) > 0
    counts = np.zeros(similarities.shape[1], dtype=np.int64)
    for row, valid in zip(similarities, enters, strict=True):
        nearest = sorted(np.flatnonzero(valid), key=lambda item, row=row: (-row[item], item))
        counts[nearest[:k]] += 1
    return counts


def responsibilities(similarities, beta, weights=None, where=None):
    """w_b exp(beta s(b, g)) / Z(g), the derivative of log Z(g) by beta s(b, g); 0 if no entry."""
    similarities = _float64(similarities)
    pairs = _pair_weights(similarities, weights, where)
    log_sums = log_normalizer(similarities, beta, weights, where)
    result = np.zeros(similarities.shape)
    for bank_item, item in zip(*np.nonzero(pairs), strict=True):
        exponent = beta * similarities[bank_item, item] - log_sums[item]
        result[bank_item, item] = pairs[bank_item, item] * np.exp(exponent)
    return result


def log_normalizer_beta_derivative(similarities, beta):
    """d log Z(g) / d beta = sum_b responsibility(b, g) s(b, g)."""
    return (responsibilities(similarities, beta) * _float64(similarities)).sum(axis=0)


# --- soft gates --------------------------------------------------------------------------------


def softmax_rows(similarities, temperature):
    """p(i, g) = exp(s(i, g) / t) / sum_h exp(s(i, h) / t)."""
    logits = _float64(similarities) / temperature
    return np.exp(logits - log_sum_exp(logits, axis=1)[:, None])


def soft_activation(similarities, temperature, weights=None):
    """a(g) = 1 - prod_b (1 - p(b, g))^w_b."""
    unpicked = 1 - softmax_rows(similarities, temperature)
    if weights is not None:
        unpicked = unpicked ** _float64(weights)[:, None]
    return 1 - unpicked.prod(axis=0)


def soft_gates(similarities, active, temperature):
    """a(q) = sum_g p(q, g) a(g)."""
    return softmax_rows(similarities, temperature) @ _float64(active)


# --- the four normalizers ----------------------------------------------------------------------


def argmax_gate(similarities, active):
    """a(q): is the raw nearest item argmax_g s(q, g) active (lowest index on ties)."""
    return np.asarray(active, dtype=bool)[np.argmax(_float64(similarities), axis=1)]


def _bank_gate(similarities, bank_similarities, k):
    """a_B(q): is the raw nearest item of q in the activation set A_B(k)."""
    return argmax_gate(similarities, bank_k_occurrence(bank_similarities, k) > 0)


def _dual_weights(beta_query, beta_gallery, weights):
    """(w1, w2), by default w_i = beta_i / (beta_query + beta_gallery)."""
    if weights is not None:
        return weights
    total = beta_query + beta_gallery
    return beta_query / total, beta_gallery / total


def inverted_softmax(similarities, query_bank_similarities, beta):
    """IS: s(q, g) - bias_Q(g)."""
    return _float64(similarities) - bias(query_bank_similarities, beta)


def dynamic_inverted_softmax(similarities, query_bank_similarities, beta, k):
    """DIS: s(q, g) - a_Q(q) bias_Q(g)."""
    gate = _bank_gate(similarities, query_bank_similarities, k)
    return _float64(similarities) - gate[:, None] * bias(query_bank_similarities, beta)


def dual_inverted_softmax(
    similarities,
    query_bank_similarities,
    gallery_bank_similarities,
    beta_query,
    beta_gallery,
    weights=None,
):
    """DualIS: s(q, g) - w1 bias_Q(g) - w2 bias_G(g)."""
    weight_query, weight_gallery = _dual_weights(beta_query, beta_gallery, weights)
    return (
        _float64(similarities)
        - weight_query * bias(query_bank_similarities, beta_query)
        - weight_gallery * bias(gallery_bank_similarities, beta_gallery)
    )


def dual_dynamic_inverted_softmax(
    similarities,
    query_bank_similarities,
    gallery_bank_similarities,
    beta_query,
    beta_gallery,
    k,
    weights=None,
):
    """DualDIS: s(q, g) - a_Q(q) w1 bias_Q(g) - a_G(q) w2 bias_G(g)."""
    weight_query, weight_gallery = _dual_weights(beta_query, beta_gallery, weights)
    gate_query = _bank_gate(similarities, query_bank_similarities, k)[:, None]
    gate_gallery = _bank_gate(similarities, gallery_bank_similarities, k)[:, None]
    return (
        _float64(similarities)
        - gate_query * weight_query * bias(query_bank_similarities, beta_query)
        - gate_gallery * weight_gallery * bias(gallery_bank_similarities, beta_gallery)
    )


# --- the released code's scores: products in the linear domain, free to overflow ----------------


def published_inverted_softmax(similarities, query_bank_similarities, beta):
    """IS as released: exp(beta s(q, g)) / sum_b exp(beta s(b, g))."""
    with np.errstate(over="ignore", invalid="ignore"):
        normalizer = np.exp(beta * _float64(query_bank_similarities)).sum(axis=0)
        return np.exp(beta * _float64(similarities)) / normalizer


def published_dynamic_inverted_softmax(similarities, query_bank_similarities, beta, k):
    """DIS as released: the IS row where the gate is open, the raw row s(q, .) elsewhere."""
    gate = _bank_gate(similarities, query_bank_similarities, k)
    normalized = published_inverted_softmax(similarities, query_bank_similarities, beta)
    return np.where(gate[:, None], normalized, _float64(similarities))


def published_dual_inverted_softmax(
    similarities, query_bank_similarities, gallery_bank_similarities, beta_query, beta_gallery
):
    """DualIS as released: IS over the query bank times IS over the gallery bank."""
    with np.errstate(over="ignore", invalid="ignore"):
        return published_inverted_softmax(
            similarities, query_bank_similarities, beta_query
        ) * published_inverted_softmax(similarities, gallery_bank_similarities, beta_gallery)


def published_dual_dynamic_inverted_softmax(
    similarities, query_bank_similarities, gallery_bank_similarities, beta_query, beta_gallery, k
):
    """DualDIS as released: the product of two DIS factors, each with its own gate."""
    with np.errstate(over="ignore", invalid="ignore"):
        return published_dynamic_inverted_softmax(
            similarities, query_bank_similarities, beta_query, k
        ) * published_dynamic_inverted_softmax(
            similarities, gallery_bank_similarities, beta_gallery, k
        )


# --- neighbors and retrieval numbers -----------------------------------------------------------


def top_k(scores, k):
    """(values, indices) of the k largest scores per row, descending, lowest index on ties."""
    scores = _float64(scores)
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, indices, axis=1), indices


def ranks(scores, relevant, ties="average", where=None):
    """Expected place of the first right item, the orders of tied items being equally likely.

    Of w wrong and r right items that are level, the first j are all wrong with probability
    C(w, j) / C(w + r, j); summed over j = 1 ... w this is the expected number before a right one.
    """
    scores = _float64(scores)
    num_queries, num_gallery = scores.shape
    result = np.full(num_queries, np.inf)  # +inf where no right item remains
    for query in range(num_queries):
        valid = [g for g in range(num_gallery) if where is None or where[query][g]]
        right_items = set(relevant[query])
        right = [g for g in valid if g in right_items]
        wrong = [g for g in valid if g not in right_items]
        if right:
            best = max(scores[query, g] for g in right)
            above = sum(scores[query, g] > best for g in wrong)
            w = sum(scores[query, g] == best for g in wrong)
            r = sum(scores[query, g] == best for g in right)
            averages = (math.comb(w, j) / math.comb(w + r, j) for j in range(1, w + 1))
            before = {"average": sum(averages)}
            # The first right one has j wrong ones before it in C(w - j + r - 1, r - 1) of the
            # C(w + r, r) ways to place the right ones.
            orders = [math.comb(w - j + r - 1, r - 1) / math.comb(w + r, r) for j in range(w + 1)]
            harmonic = 1 / sum(share / (1 + above + j) for j, share in enumerate(orders))
            before |= {"min": 0, "max": w, "harmonic": harmonic - 1 - above}
            result[query] = 1 + above + before[ties]
    return result


def _answerable(values):
    """The values of the queries that have a right item."""
    values = _float64(values)
    return values[values < np.inf]


def recall_at(ranks, k):
    """The share of queries with rank <= k, in [0, 1]."""
    return np.mean(_answerable(ranks) <= k)


def median_rank(ranks):
    """The median of the ranks."""
    return np.median(_answerable(ranks))


def mean_rank(ranks):
    """The mean of the ranks."""
    return np.mean(_answerable(ranks))


def mean_reciprocal_rank(ranks):
    """The mean of 1 / rank."""
    return np.mean(1 / _answerable(ranks))


def geometric_mean_recall(ranks, ks=(1, 5, 10)):
    """(product of R@k over ks)^(1 / number of ks)."""
    return np.prod([recall_at(ranks, k) for k in ks]) ** (1 / len(ks))


def mean_average_precision(scores, relevant):
    """Mean over queries of the expected average precision over all orders of tied items."""
    scores = _float64(scores)
    values = []
    for row, items in zip(scores, relevant, strict=True):
        right = sorted(set(items))
        if not right:
            continue
        total = passed = passed_right = 0
        for score in sorted(set(row.tolist()), reverse=True):
            n, r = int(np.sum(row == score)), sum(row[g] == score for g in right)
            for place in range(1, n + 1):
                # A right item at this place, and `others` right ones among the places before.
                for others in range(min(r, place)):
                    ways = math.comb(r - 1, others) * math.comb(n - r, place - 1 - others)
                    chance = r / n * ways / math.comb(n - 1, place - 1)
                    total += chance * (passed_right + others + 1) / (passed + place)
            passed, passed_right = passed + n, passed_right + r
        values.append(total / len(right))
    return np.mean(values) if values else np.nan


def _tied_groups(row, seen):
    """Places before each group of level items that are seen, best first, and the items."""
    passed = 0
    for score in sorted(set(row[seen].tolist()), reverse=True):
        items = np.flatnonzero(seen & (row == score))
        yield passed, items
        passed += len(items)


def _seen(where, query, num_gallery):
    return np.ones(num_gallery, bool) if where is None else np.asarray(where)[query]


def normalized_discounted_cumulative_gain(scores, grades, k=None, where=None):
    """Mean over queries of the expected DCG of the first k places over that of the best order.

    Each of the places of a group of level items is held by each of them alike.
    """
    scores, grades = _float64(scores), _float64(grades)
    num_queries, num_gallery = scores.shape
    cut = num_gallery if k is None else k
    values = []
    for query in range(num_queries):
        seen = _seen(where, query, num_gallery)
        found = 0.0
        for passed, items in _tied_groups(scores[query], seen):
            for place in range(passed + 1, passed + len(items) + 1):
                if place <= cut:
                    found += np.mean(grades[query, items]) / math.log2(1 + place)
        best = sorted(grades[query, seen], reverse=True)[:cut]
        ideal = sum(grade / math.log2(1 + place) for place, grade in enumerate(best, 1))
        if ideal > 0:
            values.append(found / ideal)
    return np.mean(values) if values else np.nan


def precision_at(scores, relevant, k, where=None):
    """Mean over queries of the expected share of right items among the first k places."""
    scores = _float64(scores)
    values = []
    for query, items in enumerate(relevant):
        seen = _seen(where, query, scores.shape[1])
        right = [g for g in set(items) if seen[g]]
        hits = 0.0
        for passed, tied in _tied_groups(scores[query], seen):
            places = sum(place <= k for place in range(passed + 1, passed + len(tied) + 1))
            hits += places * np.isin(tied, right).mean()
        if right:
            values.append(hits / k)
    return np.mean(values) if values else np.nan


def success_at(scores, relevant, k, where=None):
    """Mean over queries of the probability that one of the first k places holds a right item."""
    scores = _float64(scores)
    values = []
    for query, items in enumerate(relevant):
        seen = _seen(where, query, scores.shape[1])
        right = [g for g in set(items) if seen[g]]
        missed = 1.0
        for passed, tied in _tied_groups(scores[query], seen):
            places, n = min(max(k - passed, 0), len(tied)), len(tied)
            wrong = n - int(np.isin(tied, right).sum())
            missed *= math.comb(wrong, places) / math.comb(n, places)
        if right:
            values.append(1 - missed)
    return np.mean(values) if values else np.nan


# --- hubness -----------------------------------------------------------------------------------


def k_occurrence(indices, num_gallery):
    """N_k(g) = number of queries with g among their k nearest, zeros kept."""
    counts = np.zeros(num_gallery, dtype=np.int64)
    for neighbors in indices:
        for item in neighbors:
            counts[item] += 1
    return counts


def skewness(counts):
    """mean((x - mean x)^3) / mean((x - mean x)^2)^(3/2), the population one; 0 if constant."""
    counts = _float64(counts)
    if counts.max() == counts.min():
        return 0.0
    deviations = counts - counts.mean()
    return np.mean(deviations**3) / np.mean(deviations**2) ** 1.5


def _is_hub(counts, factor):
    """N_k(g) >= factor x mean N_k; no item is a hub when nothing was retrieved."""
    return (counts.sum() > 0) & (counts >= factor * counts.mean())


def hub_share(counts, factor=2.0):
    """The share of items with N_k >= factor x mean N_k."""
    return np.mean(_is_hub(_float64(counts), factor))


def hub_occurrence(counts, factor=2.0):
    """The share of all occurrences that fall on hubs."""
    counts = _float64(counts)
    if counts.sum() == 0:
        return 0.0
    return counts[_is_hub(counts, factor)].sum() / counts.sum()


def anti_hub_share(counts):
    """The share of items with N_k = 0."""
    return np.mean(_float64(counts) == 0)


def gini(counts):
    """sum_ij |x_i - x_j| / (2 n^2 mean x)."""
    counts = _float64(counts)
    if counts.sum() == 0:
        return 0.0
    differences = np.abs(counts[:, None] - counts[None, :]).sum()
    return differences / (2 * len(counts) ** 2 * counts.mean())


def robin_hood(counts):
    """sum_i |x_i - mean x| / (2 sum x), the share to move for equality."""
    counts = _float64(counts)
    if counts.sum() == 0:
        return 0.0
    return np.abs(counts - counts.mean()).sum() / (2 * counts.sum())


def atkinson(counts, epsilon=0.5):
    """1 - (mean x^(1 - eps))^(1 / (1 - eps)) / mean x; at eps = 1: 1 - geometric mean / mean."""
    counts = _float64(counts)
    if counts.sum() == 0:
        return 0.0
    if epsilon >= 1 and counts.min() == 0:
        return 1.0  # the limit: one zero sends the generalised mean to 0
    if epsilon == 1:
        return 1 - np.exp(np.log(counts).mean()) / counts.mean()
    power = 1 - epsilon
    return 1 - np.mean(counts**power) ** (1 / power) / counts.mean()


def hub_screening(query_bank_similarities, bank_similarities=None, k=10, rate=0.002):
    """(N, p, flagged) of columns that join a clean gallery bank, one after the other.

    `query_bank_similarities`: query bank x gallery; `bank_similarities`: query bank x gallery bank,
    None where the gallery is compared with itself. Without ties.
    """
    matrix = _float64(query_bank_similarities)
    if bank_similarities is None:
        order = np.argsort(-matrix, axis=1)[:, :k]
        counts = k_occurrence(order, matrix.shape[1])
        shares = np.array([np.mean(counts >= count) for count in counts])
        return counts, shares, (counts > 0) & (shares * len(counts) <= max(1, rate * len(counts)))
    clean = _float64(bank_similarities)
    counts = []
    for column in matrix.T:
        joined = np.concatenate([clean, column[:, None]], axis=1)
        order = np.argsort(-joined, axis=1, kind="stable")[:, :k]
        counts.append((order == clean.shape[1]).any(axis=1).sum())
    clean_counts = k_occurrence(np.argsort(-clean, axis=1)[:, :k], clean.shape[1])
    size = len(clean_counts) + 1
    counts = np.array(counts)
    as_often = np.array([1 + (clean_counts >= count).sum() for count in counts])
    return counts, as_often / size, (counts > 0) & (as_often <= max(1, rate * size))


def apart(exclude, num_gallery):
    """[num_bank, num_gallery] bool, False on the gallery rows that a bank row does not enter."""
    where = np.ones((len(exclude), num_gallery), bool)
    for row, entries in enumerate(np.reshape(exclude, (len(exclude), -1))):
        for place in entries[entries >= 0]:
            where[row, place] = False
    return where
