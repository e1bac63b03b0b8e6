"""The released code's outputs, called the right way round: reproduced in float64 and in float32."""

import pathlib

import numpy as np
import pytest
from rankings import assert_same_ranking

import dbnorm_jax as dbn

DATA = pathlib.Path(__file__).parents[1] / "data"
RELEASED_BETA = {"0.5025": 1 / 1.99}  # rounded in the keys


def _keys():
    """(method, betas, k or 0) of every stored output of the paper's four."""
    keys = []
    with np.load(DATA / "golden_seed0.npz") as archive:
        for name in archive.files:
            method, *parts = name.split("_")
            if method in {"is", "dis", "dualis", "dualdis"}:
                k = int(parts.pop().removeprefix("k")) if "dis" in method else 0
                betas = [RELEASED_BETA.get(part, part) for part in parts]
                betas = tuple(float(str(beta).removeprefix("beta")) for beta in betas)
                keys.append(pytest.param(name, method, betas, k, id=name))
    return keys


KEYS = _keys()


def statistics_of(golden, dtype, betas, k):
    banks = [golden[name].astype(dtype) for name in ("query_bank", "gallery_bank")]
    gallery = golden["gallery"].astype(dtype)
    return [
        dbn.stream_bank_statistics(bank, gallery, beta=beta, k=k, chunk_size=32)
        for bank, beta in zip(banks, betas, strict=False)
    ]


def correction_of(method, statistics):
    return {
        "is": dbn.inverted_softmax,
        "dis": dbn.dynamic_inverted_softmax,
        "dualis": dbn.dual_inverted_softmax,
        "dualdis": dbn.dual_dynamic_inverted_softmax,
    }[method](*statistics)


def test_all_keys_are_there():
    assert len(KEYS) == 9 + 9


@pytest.mark.parametrize(("name", "method", "betas", "k"), KEYS)
def test_default_ranks_as_released(golden, dtype, name, method, betas, k):
    similarities = dbn.dot_product(golden["queries"].astype(dtype), golden["gallery"].astype(dtype))
    correction = correction_of(method, statistics_of(golden, dtype, betas, k))
    scores = np.asarray(dbn.apply_correction(similarities, correction))
    assert scores.dtype == dtype
    expected = golden[name]
    if method == "dualdis":  # the released code leaves the scale where one gate is closed
        both = np.asarray(dbn.gates(similarities, correction)).all(axis=1)
        assert both.any()
        scores, expected = scores[both], expected[both]
    assert_same_ranking(scores, expected, 0 if dtype == np.float64 else 1e-6)


@pytest.mark.parametrize(("name", "method", "betas", "k"), KEYS)
def test_published_scores_are_the_released_ones_up_to_a_factor_per_row(
    golden, dtype, name, method, betas, k
):
    similarities = dbn.dot_product(golden["queries"].astype(dtype), golden["gallery"].astype(dtype))
    statistics = statistics_of(golden, dtype, betas, k)
    scores = np.asarray(dbn.published_scores(similarities, *statistics), np.float64)
    expected = golden[name]
    # A raw factor near 0 has no relative accuracy, and float32 ends 1e72 below the row's best.
    compared = np.abs(similarities) > 0.02
    compared &= np.abs(expected) > 1e-70 * np.abs(expected).max(axis=1, keepdims=True)
    assert compared.mean() > 0.9
    ratios = np.where(compared, scores / expected, np.nan)
    middle = np.nanmedian(ratios, axis=1, keepdims=True)
    assert (middle > 0).all()
    # A relative error of exp is an absolute one of its argument: beta times that of the cosine.
    tolerance = 1e-9 if dtype == np.float64 else 1e-5 + 4e-6 * sum(betas)
    np.testing.assert_allclose((ratios / middle)[compared], 1, rtol=tolerance)
    if dtype == np.float64:
        assert_same_ranking(scores, expected, 0)


@pytest.mark.parametrize(("name", "method", "betas", "k"), KEYS)
def test_streamed_neighbors_follow_the_released_ranking(golden, dtype, name, method, betas, k):
    queries, gallery = (golden[part].astype(dtype) for part in ("queries", "gallery"))
    correction = correction_of(method, statistics_of(golden, dtype, betas, k))
    found = np.asarray(dbn.stream_top_k(queries, gallery, 5, correction, chunk_size=24).indices)
    expected = np.argsort(-golden[name], axis=1, kind="stable")[:, :5]
    if method == "dualdis":
        both = np.asarray(dbn.gates(dbn.dot_product(queries, gallery), correction)).all(axis=1)
        found, expected = found[both], expected[both]
    if dtype == np.float64:
        np.testing.assert_array_equal(found, expected)
    else:  # neighboring scores may be closer than float32 tells apart
        assert (found == expected).mean() > 0.99
