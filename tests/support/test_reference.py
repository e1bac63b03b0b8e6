"""The reference against the released code's outputs and against cases worked out by hand."""

import math
import pathlib

import numpy as np
import pytest
import reference
import reference_baselines as baselines

DATA = pathlib.Path(__file__).parents[1] / "data"
BETAS = {"0.5025": 1 / 1.99}  # the released default, rounded in the keys


def _beta(text):
    return BETAS.get(text, float(text))


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def golden(request):
    with np.load(DATA / f"golden_seed{request.param}.npz") as archive:
        return dict(archive)


@pytest.fixture
def similarities(golden):
    return reference.dot_product(golden["queries"], golden["gallery"])


@pytest.fixture
def query_bank_similarities(golden):
    return reference.dot_product(golden["query_bank"], golden["gallery"])


@pytest.fixture
def gallery_bank_similarities(golden):
    return reference.dot_product(golden["gallery_bank"], golden["gallery"])


def _assert_same_ranking(scores, expected):
    np.testing.assert_array_equal(
        np.argsort(-scores, axis=1, kind="stable"), np.argsort(-expected, axis=1, kind="stable")
    )


def _assert_equal_up_to_constant(values, expected, tolerance=1e-12):
    assert np.ptp(values - expected) < tolerance


# Every key is checked by exactly one of the tests below.
SINGLE_KEYS = [("1", k) for k in (None, 1, 3)]
SINGLE_KEYS += [(beta, k) for beta in ("20", "100") for k in (None, 1, 3)]
DUAL_KEYS = [
    (*betas, k) for betas in (("20", "20"), ("0.5025", "3"), ("50", "1")) for k in (None, 1, 3)
]
NEAREST_NEIGHBOR_KEYS = [(8, 0.5), (16, 0.75)]
ITERATIONS = [10, 1000]


def _single_key(beta, k):
    return f"is_beta{beta}" if k is None else f"dis_beta{beta}_k{k}"


def _dual_key(beta_query, beta_gallery, k):
    ending = f"{beta_query}_{beta_gallery}"
    return f"dualis_{ending}" if k is None else f"dualdis_{ending}_k{k}"


def test_every_golden_key_is_checked(golden):
    checked = {"queries", "gallery", "query_bank", "gallery_bank", "csls_k10"}
    checked |= {_single_key(*case) for case in SINGLE_KEYS}
    checked |= {_dual_key(*case) for case in DUAL_KEYS}
    for method in ("sinkhorn", "dbsn"):
        checked |= {f"{method}_hubness_tau0.05_iter{count}" for count in ITERATIONS}
    for ending in ("scores", "indices"):
        checked |= {f"nnn_k{k}_w{weight}_{ending}" for k, weight in NEAREST_NEIGHBOR_KEYS}
        checked |= {f"dn_lambda0.5_{ending}"}
    checked |= {"invgc_rg0.1_rq0.3", "invgc_local_rg0.1_rq0.3_pool0.1"}
    assert set(golden) == checked


# --- golden: exact values, and the ranking of the log-domain form -------------------------------


@pytest.mark.parametrize(("beta", "k"), SINGLE_KEYS)
def test_golden_single_bank(golden, similarities, query_bank_similarities, beta, k):
    expected = golden[_single_key(beta, k)]
    arguments = (similarities, query_bank_similarities, _beta(beta))
    if k is None:
        published = reference.published_inverted_softmax(*arguments)
        scores = reference.inverted_softmax(*arguments)
    else:
        published = reference.published_dynamic_inverted_softmax(*arguments, k)
        scores = reference.dynamic_inverted_softmax(*arguments, k)
    np.testing.assert_allclose(published, expected, rtol=1e-9)
    _assert_same_ranking(scores, expected)


@pytest.mark.parametrize(("beta_query", "beta_gallery", "k"), DUAL_KEYS)
def test_golden_dual_bank(
    golden,
    similarities,
    query_bank_similarities,
    gallery_bank_similarities,
    beta_query,
    beta_gallery,
    k,
):
    expected = golden[_dual_key(beta_query, beta_gallery, k)]
    banks = (query_bank_similarities, gallery_bank_similarities)
    arguments = (similarities, *banks, _beta(beta_query), _beta(beta_gallery))
    if k is None:
        published = reference.published_dual_inverted_softmax(*arguments)
        scores = reference.dual_inverted_softmax(*arguments)
        same = np.ones(len(expected), dtype=bool)
    else:
        published = reference.published_dual_dynamic_inverted_softmax(*arguments, k)
        scores = reference.dual_dynamic_inverted_softmax(*arguments, k)
        gates = [
            reference.argmax_gate(similarities, reference.bank_k_occurrence(bank, k) > 0)
            for bank in banks
        ]
        # With one gate open the default drops the other normalizer, where the released code
        # multiplies by s: two rankings. With none, s * s reverses the negative similarities.
        same = gates[0] & gates[1]
        assert same.any()
        assert not same.all()
        closed = ~gates[0] & ~gates[1]
        np.testing.assert_array_equal(scores[closed], similarities[closed])
    np.testing.assert_allclose(published, expected, rtol=1e-9)
    _assert_same_ranking(scores[same], expected[same])


# --- golden: the other corrections --------------------------------------------------------------


def test_golden_csls(golden, similarities, query_bank_similarities):
    scores = baselines.csls_scores(similarities, query_bank_similarities, 10)
    _assert_same_ranking(scores, golden["csls_k10"])
    np.testing.assert_allclose(scores, golden["csls_k10"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("k", "weight"), NEAREST_NEIGHBOR_KEYS)
def test_golden_nearest_neighbor_normalization(
    golden, similarities, query_bank_similarities, k, weight
):
    scores = baselines.nearest_neighbor_normalization_scores(
        similarities, query_bank_similarities, k, weight
    )
    values, indices = reference.top_k(scores, 10)
    np.testing.assert_array_equal(indices, golden[f"nnn_k{k}_w{weight}_indices"])
    np.testing.assert_allclose(values, golden[f"nnn_k{k}_w{weight}_scores"], rtol=0, atol=1e-12)


def test_golden_distribution_normalization(golden):
    scores = baselines.distribution_normalization_scores(
        golden["queries"], golden["gallery"], golden["query_bank"], golden["gallery_bank"], 0.5
    )
    values, indices = reference.top_k(scores, 10)
    np.testing.assert_array_equal(indices, golden["dn_lambda0.5_indices"])
    # One constant per query is free: the ranking does not see it.
    differences = values - golden["dn_lambda0.5_scores"]
    assert np.ptp(differences, axis=1).max() < 1e-12


def test_distribution_normalization_ranks_like_a_bias_of_the_query_bank_mean(
    golden, similarities, query_bank_similarities
):
    scores = baselines.distribution_normalization_scores(
        golden["queries"], golden["gallery"], golden["query_bank"], golden["gallery_bank"], 0.5
    )
    num_bank = len(query_bank_similarities)
    nearest = baselines.nearest_neighbor_normalization_scores(
        similarities, query_bank_similarities, num_bank, 0.5
    )
    assert np.ptp(scores - nearest, axis=1).max() < 1e-12


@pytest.mark.parametrize("num_iterations", ITERATIONS)
def test_golden_sinkhorn(golden, query_bank_similarities, num_iterations):
    hubness = baselines.sinkhorn_hubness(query_bank_similarities, 0.05, num_iterations)
    expected = golden[f"sinkhorn_hubness_tau0.05_iter{num_iterations}"]
    _assert_equal_up_to_constant(hubness, expected)


@pytest.mark.parametrize("num_iterations", ITERATIONS)
def test_golden_dual_bank_sinkhorn(golden, query_bank_similarities, num_iterations):
    between_banks = reference.dot_product(golden["query_bank"], golden["gallery_bank"])
    hubness = baselines.dual_bank_sinkhorn_hubness(
        query_bank_similarities, between_banks, 0.05, num_iterations
    )
    expected = golden[f"dbsn_hubness_tau0.05_iter{num_iterations}"]
    _assert_equal_up_to_constant(hubness, expected)


@pytest.mark.parametrize(
    ("key", "pool_rate"),
    [("invgc_rg0.1_rq0.3", None), ("invgc_local_rg0.1_rq0.3_pool0.1", 0.1)],
)
def test_golden_inverse_graph_convolution(golden, key, pool_rate):
    # The stored mean s is one number over all pairs; a mean per gallery item misses it by 8e-3.
    scores = baselines.inverse_graph_convolution_scores(
        golden["queries"],
        golden["gallery"],
        golden["query_bank"],
        golden["gallery_bank"],
        gallery_rate=0.1,
        query_rate=0.3,
        pool_rate=pool_rate,
    )
    np.testing.assert_allclose(scores, golden[key], rtol=0, atol=5e-7)  # stored in float32


# --- by hand: similarities ----------------------------------------------------------------------


def test_similarities_of_two_vectors():
    rows, columns = [[3.0, 4.0]], [[4.0, 3.0], [0.0, 0.0]]
    np.testing.assert_array_equal(reference.dot_product(rows, columns), [[24, 0]])
    np.testing.assert_allclose(reference.cosine_similarity(rows, columns), [[24 / 25, 0]])
    np.testing.assert_array_equal(
        reference.negative_squared_euclidean(rows, columns), [[-(1 + 1), -(9 + 16)]]
    )


# --- by hand: bank statistics -------------------------------------------------------------------

LOG = np.log  # similarities are logarithms of whole numbers, so that sums of exp are whole


def test_log_normalizer_mass_and_bias_with_weights_and_mask():
    bank = LOG([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    where = np.array([[True, True, False], [True, False, False]])
    weights = [2.0, 3.0]
    sums = [2 * 1 + 3 * 4, 2 * 2, 0]
    masses = [2 + 3, 2, 0]
    with np.errstate(divide="ignore"):
        expected = LOG(sums)
    np.testing.assert_allclose(reference.log_normalizer(bank, 1.0, weights, where), expected)
    np.testing.assert_array_equal(reference.mass(bank, weights, where), masses)
    np.testing.assert_allclose(
        reference.bias(bank, 1.0, weights, where), [LOG(14 / 5), LOG(4 / 2), 0]
    )


def test_where_may_name_bank_rows_and_weights_are_multiplicities():
    bank = LOG([[1.0, 2.0], [4.0, 5.0], [7.0, 1.0]])
    repeated = bank[[0, 0, 2]]
    for function in (reference.log_normalizer, reference.bias):
        weighted = function(bank, 2.0, weights=[2, 9, 1], where=[True, False, True])
        np.testing.assert_allclose(weighted, function(repeated, 2.0))


def test_bias_lies_between_mean_and_largest_similarity():
    bank = np.array([[0.0, 1.0], [0.5, -1.0], [0.1, 0.2]])
    np.testing.assert_allclose(reference.bias(bank, 1e-7), bank.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(reference.bias(bank, 1e7), bank.max(axis=0), atol=1e-6)


def test_bank_k_occurrence_with_ties_mask_and_weights():
    bank = [
        [5.0, 5.0, 1.0],  # a tie: the lowest index, 0, is nearest; then 1
        [1.0, 2.0, 3.0],  # 2; then 1
        [9.0, 8.0, 7.0],  # weight 0: absent
        [9.0, 8.0, 7.0],  # item 0 is masked: 1; then 2
        [9.0, 8.0, 7.0],  # only item 2 is valid
    ]
    weights = [1, 0.5, 0, 4, 1]
    where = np.ones((5, 3), dtype=bool)
    where[3, 0] = where[4, 0] = where[4, 1] = False
    np.testing.assert_array_equal(reference.bank_k_occurrence(bank, 1, weights, where), [1, 1, 2])
    np.testing.assert_array_equal(reference.bank_k_occurrence(bank, 2, weights, where), [1, 3, 3])


def test_responsibilities_are_shares_and_the_beta_derivative():
    bank = LOG([[1.0, 2.0], [3.0, 2.0]])
    np.testing.assert_allclose(
        reference.responsibilities(bank, 1.0), [[1 / 4, 1 / 2], [3 / 4, 1 / 2]]
    )
    np.testing.assert_allclose(
        reference.responsibilities(bank, 1.0, where=[[True, False], [True, False]]),
        [[1 / 4, 0], [3 / 4, 0]],
    )
    np.testing.assert_allclose(
        reference.log_normalizer_beta_derivative(bank, 1.0), [3 / 4 * LOG(3), LOG(2)]
    )
    step = 1e-6
    slopes = reference.log_normalizer(bank, 1 + step) - reference.log_normalizer(bank, 1 - step)
    np.testing.assert_allclose(
        reference.log_normalizer_beta_derivative(bank, 1.0), slopes / (2 * step), rtol=1e-8
    )


def test_argmax_gate_takes_the_lowest_index_on_ties():
    gate = reference.argmax_gate([[1.0, 1.0], [0.0, 1.0]], [False, True])
    np.testing.assert_array_equal(gate, [False, True])


def test_dual_weights_may_be_set_apart_from_beta():
    similarities, query_bank, gallery_bank = np.zeros((1, 2)), LOG([[2.0, 3]]), LOG([[5.0, 7]])
    # One bank item: its bias is its similarity at any beta.
    np.testing.assert_allclose(
        reference.dual_inverted_softmax(similarities, query_bank, gallery_bank, 3.0, 1.0),
        [[-0.75 * LOG(2) - 0.25 * LOG(5), -0.75 * LOG(3) - 0.25 * LOG(7)]],
    )
    # The raw nearest item is 0 (a tie), but item 1 alone is active in both banks.
    np.testing.assert_array_equal(
        reference.dual_dynamic_inverted_softmax(
            similarities, query_bank, gallery_bank, 3.0, 1.0, 1, weights=(1.0, 2.0)
        ),
        similarities,
    )
    np.testing.assert_allclose(
        reference.dual_dynamic_inverted_softmax(
            similarities, query_bank, gallery_bank, 3.0, 1.0, 2, weights=(1.0, 2.0)
        ),
        [[-LOG(2) - 2 * LOG(5), -LOG(3) - 2 * LOG(7)]],
    )


# --- by hand: the corrections without stored outputs ---------------------------------------------


def test_global_correction_counts_the_bank_above():
    scores = baselines.globally_corrected_scores([[0.5, 0.25]], [[0.6, 0.1], [0.7, 0.25]])
    np.testing.assert_allclose(scores, [[-3 + 0.5, -1 + 0.25]])


def test_dual_softmax_over_the_queries():
    scores = baselines.dual_softmax_scores(2 * LOG([[1.0, 2.0], [3.0, 2.0]]), 2.0)
    expected = [[0, 2 * LOG(2)], [2 * LOG(3) * 2 * 3 / 4, 2 * LOG(2)]]
    np.testing.assert_allclose(scores, expected, atol=1e-15)


def test_sinkhorn_reaches_uniform_marginals(query_bank_similarities):
    hubness = baselines.sinkhorn_hubness(query_bank_similarities, 0.05, 1000)
    plan = np.exp((query_bank_similarities - hubness) / 0.05)
    plan /= plan.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(plan.mean(axis=0), 1 / plan.shape[1], rtol=1e-10)


def test_empiric_mutual_proximity_counts_objects_farther_from_both():
    # Of four objects, the first and the last are farther than 2 from both sides.
    distances = baselines.mutual_proximity_empiric(
        [[2.0]], [[3.0, 1.0, 3.0, 4.0]], [[3.0], [3.0], [2.0], [5.0]]
    )
    np.testing.assert_array_equal(distances, [[1 - 2 / 4]])


def test_gaussian_mutual_proximity_at_the_mean_and_one_deviation_below():
    # The query's distances have mean 2; the item's mean 3 and deviation 1.
    distances = baselines.mutual_proximity_gaussian([[2.0]], [[1.0, 3.0]], [[2.0], [4.0]])
    survival = (1 + math.erf(1 / math.sqrt(2))) / 2
    np.testing.assert_allclose(distances, [[1 - survival / 2]])


def test_local_scaling_and_nicdm_use_the_k_nearest():
    arguments = ([[6.0]], [[9.0, 1.0, 3.0]], [[2.0], [6.0], [9.0]], 2)
    np.testing.assert_allclose(baselines.local_scaling(*arguments), [[1 - np.exp(-36 / (3 * 6))]])
    np.testing.assert_allclose(baselines.nicdm(*arguments), [[6 / np.sqrt(2 * 4)]])


def test_dis_sim_local_subtracts_the_distances_to_the_centroids():
    # The query's two nearest have centroid (1, 0); the item's nearest two have centroid (5, 0).
    distances = baselines.dis_sim_local(
        [[0.0, 0.0]],
        [[3.0, 0.0]],
        [[0.0, 0.0], [2.0, 0.0], [9.0, 0.0]],
        [[4.0, 0.0], [6.0, 0.0]],
        2,
    )
    np.testing.assert_array_equal(distances, [[9 - 1 - 4]])
