"""`published_scores` against the released code's formulas, row by row up to a positive factor."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from differences import check_slope
from hypothesis import given, settings
from hypothesis import strategies as st

import dbnorm_jax as dbn

SEEDS = st.integers(0, 2**31)
NUM_QUERIES, NUM_BANK, NUM_GALLERY = 16, 4, 12
# k of the query bank, and of the gallery bank or None without one; 0 is a factor without a gate.
CASES = list(itertools.product([0, 1, 3], [None, 0, 1, 3]))
every_case = pytest.mark.parametrize(("query_k", "gallery_k"), CASES)


def _matrices(seed, low=-1.0, high=1.0, dtype=np.float32):
    """Similarities of queries, query bank and gallery bank, in steps of 1/64 of the range."""
    rng = np.random.default_rng(seed)
    steps = [rng.integers(1, 64, (n, NUM_GALLERY)) for n in (NUM_QUERIES, NUM_BANK, NUM_BANK)]
    return [(low + (high - low) * values / 64).astype(dtype) for values in steps]


def _statistics(banks, betas, ks):
    return [
        None if k is None else dbn.bank_statistics(bank, beta=beta, k=k)
        for bank, beta, k in zip(banks, betas, ks, strict=True)
    ]


def _factor(similarities, bank, beta, k):
    """One bank's factor as released."""
    if not k:
        return reference.published_inverted_softmax(similarities, bank, beta)
    return reference.published_dynamic_inverted_softmax(similarities, bank, beta, k)


def _expected(similarities, banks, betas, ks):
    query_k, gallery_k = ks
    if gallery_k is None:
        return _factor(similarities, banks[0], betas[0], query_k)
    if query_k == gallery_k == 0:
        return reference.published_dual_inverted_softmax(similarities, *banks, *betas)
    if query_k == gallery_k:
        return reference.published_dual_dynamic_inverted_softmax(
            similarities, *banks, *betas, query_k
        )
    factors = [_factor(similarities, *bank) for bank in zip(banks, betas, ks, strict=True)]
    return factors[0] * factors[1]


def _assert_same_up_to_row_factor(actual, expected, rtol):
    actual = np.asarray(actual, np.float64)
    np.testing.assert_array_equal(np.sign(actual), np.sign(expected))
    ratios = actual / np.where(expected == 0, 1, expected)
    ratios = np.where(expected == 0, np.nan, ratios)
    assert np.nanmin(ratios) > 0
    np.testing.assert_array_less(np.nanmax(ratios, axis=1), np.nanmin(ratios, axis=1) * (1 + rtol))


def _open(similarities, bank, k):
    """Which rows have an open gate; all without one."""
    if not k:
        return np.ones(len(similarities), bool)
    return reference.argmax_gate(similarities, reference.bank_k_occurrence(bank, k) > 0)


# --- values --------------------------------------------------------------------------------------


@every_case
@settings(max_examples=10)
@given(SEEDS)
def test_scores_match_the_released_ones(query_k, gallery_k, seed):
    ks, betas = (query_k, gallery_k), (6.0, 2.0)
    similarities, *banks = _matrices(seed)
    actual = dbn.published_scores(similarities, *_statistics(banks, betas, ks))
    assert actual.dtype == jnp.float32
    _assert_same_up_to_row_factor(actual, _expected(similarities, banks, betas, ks), 1e-4)


@every_case
@pytest.mark.parametrize("betas", [(1 / 1.99, 3.0), (100.0, 1.0)])
def test_scores_match_the_released_ones_in_float64(x64, query_k, gallery_k, betas):
    ks = query_k, gallery_k
    similarities, *banks = _matrices(0, dtype=np.float64)
    actual = dbn.published_scores(similarities, *_statistics(banks, betas, ks))
    assert actual.dtype == jnp.float64
    _assert_same_up_to_row_factor(actual, _expected(similarities, banks, betas, ks), 1e-10)


def test_the_cases_hold_every_combination_of_gates():
    similarities, *banks = _matrices(0, dtype=np.float64)
    for ks in ((1, 1), (1, 3), (3, 1)):
        gates = [_open(similarities, *bank) for bank in zip(banks, ks, strict=True)]
        assert set(zip(*gates, strict=True)) == set(itertools.product([False, True], repeat=2))


@pytest.mark.parametrize(("query_k", "gallery_k"), [(1, None), (1, 1), (3, 1)])
def test_rows_with_every_gate_closed_stay_raw(query_k, gallery_k):
    ks = query_k, gallery_k
    similarities, *banks = _matrices(0)
    closed = ~_open(similarities, banks[0], query_k)
    raw = similarities
    if gallery_k is not None:
        closed &= ~_open(similarities, banks[1], gallery_k)
        raw = similarities * similarities
    assert closed.any()
    actual = dbn.published_scores(similarities, *_statistics(banks, (6.0, 2.0), ks))
    np.testing.assert_array_equal(actual[closed], raw[closed])


# --- range ---------------------------------------------------------------------------------------


def _log_expected(similarities, banks, betas, ks):
    """log of the released product of positive similarities, in any range."""
    total = 0
    for bank, beta, k in zip(banks, betas, ks, strict=True):
        if k is not None:
            log_ratio = beta * similarities - reference.log_normalizer(bank, beta)
            is_open = _open(similarities, bank, k)[:, None]
            total = total + np.where(is_open, log_ratio, np.log(similarities))
    return total


@every_case
@pytest.mark.parametrize(
    ("high", "betas"), [(1.0, (1000.0, 1000.0)), (1.0, (1000.0, 5.0)), (100.0, (20.0, 1.0))]
)
def test_ranking_is_right_where_the_released_code_overflows(query_k, gallery_k, high, betas):
    ks = query_k, gallery_k
    similarities, *banks = _matrices(1, low=0.0, high=high)
    scores = np.asarray(dbn.published_scores(similarities, *_statistics(banks, betas, ks)))
    assert np.isfinite(scores).all()
    expected = _log_expected(similarities.astype(np.float64), banks, betas, ks)
    order = np.argsort(-expected, axis=1)
    ranked = np.take_along_axis(scores, order, axis=1)
    assert (ranked[:, 0] > 0).all()
    # Level up to rounding, or falling; 0 once below the range.
    assert (ranked[:, 1:] <= ranked[:, :-1] * (1 + 1e-2)).all()
    # The clear winner stands alone.
    gap = -np.diff(np.take_along_axis(expected, order[:, :2], axis=1), axis=1)[:, 0]
    assert (ranked[gap > 0.1, 0] > ranked[gap > 0.1, 1]).all()


def test_products_within_the_promised_range_are_kept():
    exponents = np.arange(0, np.log(1e72), 12)
    statistics = dbn.bank_statistics(np.zeros((1, len(exponents)), np.float32), beta=1.0, k=0)
    scores = dbn.published_scores(-exponents.astype(np.float32)[None], statistics)
    scores = np.asarray(scores, np.float64)[0]
    np.testing.assert_allclose(scores / scores[0], np.exp(-exponents), rtol=1e-4)


def test_a_similarity_of_zero_does_not_hide_the_rest_of_the_row():
    # Item 0 has by far the larger ratio, but its product is 0.
    similarities = np.array([[0.0, 0.5]], np.float32)
    query_bank = np.array([[-1.0, 0.9]], np.float32)  # its gate is open
    gallery_bank = np.array([[0.9, 0.3]], np.float32)  # its gate is closed
    banks, betas = (query_bank, gallery_bank), (200.0, 1.0)
    scores = dbn.published_scores(similarities, *_statistics(banks, betas, (1, 1)))
    expected = _expected(similarities, banks, betas, (1, 1))
    assert np.argmax(expected) == 1
    assert np.argmax(scores) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("query_k", "gallery_k"), [(0, None), (1, 3)])
def test_slopes_equal_differences(x64, query_k, gallery_k):
    """Of rows with every, one and no gate open; a row moves with its largest product."""
    rng = np.random.default_rng(0)
    sizes = NUM_QUERIES, NUM_BANK, NUM_BANK
    matrices = [jnp.asarray(rng.normal(size=(size, NUM_GALLERY)) / 2) for size in sizes]

    def scores(*matrices):
        return dbn.published_scores(
            matrices[0], *_statistics(matrices[1:], (6.0, 2.0), (query_k, gallery_k))
        )

    weights = rng.normal(size=matrices[0].shape) / jnp.abs(scores(*matrices)).max(axis=1)[:, None]
    check_slope(lambda *matrices: (weights * scores(*matrices)).sum(), matrices)


def test_gradients_are_finite_at_large_beta():
    similarities, *banks = _matrices(2)

    def total(*matrices):
        return dbn.published_scores(
            matrices[0], *_statistics(matrices[1:], (1000.0, 100.0), (1, 1))
        ).sum()

    for gradient in jax.grad(total, (0, 1, 2))(similarities, *banks):
        assert np.isfinite(gradient).all()


# --- gates ---------------------------------------------------------------------------------------


def test_gates_read_the_raw_similarities():
    # Both exponentials are infinite in float32, and IS itself would put item 0 first.
    similarities = np.array([[0.8, 0.9, 0.1]], np.float32)
    opens_item_1 = dbn.bank_statistics(np.array([[0.1, 0.7, 0.0]], np.float32), beta=1000.0)
    opens_item_0 = dbn.bank_statistics(np.array([[0.7, 0.1, 0.0]], np.float32), beta=1000.0)
    assert np.argmax(dbn.published_scores(similarities, opens_item_1)) == 0
    np.testing.assert_array_equal(dbn.published_scores(similarities, opens_item_0), similarities)


def test_level_similarities_open_by_the_lowest_item():
    similarities = np.array([[0.2, 0.5, 0.5]], np.float32)
    opens_item_2 = dbn.bank_statistics(np.array([[0.0, 0.1, 0.7]], np.float32), beta=2.0)
    np.testing.assert_array_equal(dbn.published_scores(similarities, opens_item_2), similarities)


# --- batches, transforms -------------------------------------------------------------------------


@pytest.mark.parametrize("ks", [(0, None), (1, 3)])
def test_leading_axes_jit_and_vmap_equal_a_loop(ks):
    betas = 6.0, 2.0
    stacks = [np.stack(parts) for parts in zip(*map(_matrices, range(3)), strict=True)]

    def scores(similarities, *banks):
        return dbn.published_scores(similarities, *_statistics(banks, betas, ks))

    expected = [scores(*matrices) for matrices in zip(*stacks, strict=True)]
    np.testing.assert_allclose(scores(*stacks), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(scores))(*stacks), expected, rtol=1e-5)


@pytest.mark.parametrize("batched", ["query_statistics", "gallery_statistics"])
def test_a_vector_of_betas_in_one_bank(batched):
    similarities, query_bank, gallery_bank = _matrices(3)
    betas = np.array([2.0, 5.0], np.float32)
    plain = {
        "query_statistics": dbn.bank_statistics(query_bank, beta=6.0),
        "gallery_statistics": dbn.bank_statistics(gallery_bank, beta=2.0),
    }
    bank = query_bank if batched == "query_statistics" else gallery_bank
    actual = dbn.published_scores(
        similarities, **plain | {batched: dbn.bank_statistics(bank, beta=betas)}
    )
    for scores, beta in zip(actual, betas, strict=True):
        statistics = plain | {batched: dbn.bank_statistics(bank, beta=beta)}
        expected = dbn.published_scores(similarities, **statistics)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("wide", [True, False])
def test_float64_in_any_place_gives_float64(x64, position, wide):
    dtypes = [np.float64 if (place == position) == wide else np.float32 for place in range(3)]
    matrices = [matrix.astype(dtype) for matrix, dtype in zip(_matrices(4), dtypes, strict=True)]
    betas, ks = (6.0, 2.0), (1, 1)
    actual = dbn.published_scores(matrices[0], *_statistics(matrices[1:], betas, ks))
    assert actual.dtype == jnp.float64
    _assert_same_up_to_row_factor(actual, _expected(*matrices[:1], matrices[1:], betas, ks), 1e-4)


def test_bfloat16_similarities_give_float32():
    similarities, *banks = _matrices(5)
    halves = jnp.asarray(similarities, jnp.bfloat16)
    statistics = _statistics(banks, (6.0, 2.0), (1, 3))
    actual = dbn.published_scores(halves, *statistics)
    assert actual.dtype == jnp.float32
    expected = dbn.published_scores(halves.astype(jnp.float32), *statistics)
    np.testing.assert_array_equal(actual, expected)


def test_inputs_are_not_changed():
    # The released code writes into its input.
    matrices = _matrices(6)
    copies = [matrix.copy() for matrix in matrices]
    dbn.published_scores(matrices[0], *_statistics(matrices[1:], (6.0, 2.0), (1, 1)))
    for matrix, copy in zip(matrices, copies, strict=True):
        np.testing.assert_array_equal(matrix, copy)


# --- empty columns, errors -----------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1])
def test_an_empty_column_leaves_the_others_alone(k):
    similarities, bank, _ = _matrices(7)
    where = np.ones(bank.shape, bool)
    where[:, 5] = False
    scores = np.asarray(
        dbn.published_scores(similarities, dbn.bank_statistics(bank, beta=6.0, k=k, where=where))
    )
    assert np.isfinite(scores).all()
    gate = np.ones(NUM_QUERIES, bool)
    if k:
        gate = reference.argmax_gate(
            similarities, reference.bank_k_occurrence(bank, k, where=where) > 0
        )
    assert gate.any()
    expected = reference.published_inverted_softmax(similarities, bank, 6.0)
    expected[:, 5] = np.exp(6.0 * similarities[:, 5])  # no bank item: nothing to divide by
    expected = np.where(gate[:, None], expected, similarities)
    _assert_same_up_to_row_factor(scores, expected, 1e-4)


MATRIX = np.ones((2, 3), np.float32)
BAD = [
    (ValueError, "similarities", np.ones((2, 4), np.float32), ("3 gallery items", "(2, 4)")),
    (ValueError, "similarities", np.full((2, 3), np.nan, np.float32), ("finite", "[0, 0]")),
    (ValueError, "similarities", MATRIX[0], ("at least 2 axes", "(3,)")),
    (ValueError, "similarities", np.ones((0, 3), np.float32), ("at least one row", "(0, 3)")),
    (TypeError, "similarities", np.ones((2, 3), int), ("floating point", "int")),
    (TypeError, "query_statistics", MATRIX, ("BankStatistics", "ndarray", "bank_statistics")),
    (TypeError, "query_statistics", None, ("BankStatistics", "NoneType")),
    (TypeError, "gallery_statistics", MATRIX, ("BankStatistics", "ndarray")),
]


@pytest.mark.parametrize(("error", "name", "value", "words"), BAD)
def test_bad_arguments_are_refused(error, name, value, words):
    statistics = dbn.bank_statistics(MATRIX, beta=1.0)
    arguments = {"similarities": MATRIX, "query_statistics": statistics} | {name: value}
    with pytest.raises(error, match=f"`{name}`") as caught:
        dbn.published_scores(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_statistics_of_another_gallery_are_refused():
    statistics = dbn.bank_statistics(MATRIX, beta=1.0)
    other = dbn.bank_statistics(np.ones((2, 5), np.float32), beta=1.0)
    with pytest.raises(ValueError, match="`gallery_statistics` has 5 gallery items but"):
        dbn.published_scores(MATRIX, statistics, other)
