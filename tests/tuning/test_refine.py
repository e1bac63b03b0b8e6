"""Refinement off the grid: against brute force, within bounds, kept only where it leads."""

import numpy as np
import pytest
from pairs import SIZE, hubby, reference_ranks

import dbnorm_jax as dbn
from dbnorm_jax._src.tuning import grid, proof, refine
from dbnorm_jax._src.tuning import split as folds
from dbnorm_jax._src.tuning.choice import CHOSEN, REFINED

EVERY = np.arange(SIZE)
# The start is poor, so that there is something to gain.
START = ("is", 0.3, 0.0, 0, 0.25, 0.0)


def problem(seed=1):
    query_bank, gallery_bank, _, gallery = hubby(seed)
    banks = folds.Banks(query_bank, gallery_bank, gallery)
    split = folds.split_pairs(banks, EVERY[:, None], EVERY, 5, np.random.default_rng(0))
    spread = folds.spread(query_bank, split.columns, split.excluded_query, dbn.dot_product)
    return banks, split, spread


def refined(start, seed=1):
    banks, split, spread = problem(seed)
    found = refine.refined(banks, split, start, spread=spread, similarity_fn=dbn.dot_product)
    return found, banks, split, spread


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(("nnn", 0.0, 0.0, 3, 0.25, 0.0), marks=pytest.mark.slow),
        pytest.param(("dis", 0.3, 0.0, 0, 0.5, 0.0), marks=pytest.mark.slow),
        pytest.param(("gated nnn", 0.0, 0.0, 1, 0.5, 0.0), marks=pytest.mark.slow),
        ("dualdis", 0.3, 0.1, 0, 0.5, 0.5),
    ],
    ids=lambda start: start[0],
)
def test_ranks_equal_brute_force_at_the_other_half(start):
    found, banks, split, _ = refined(start)
    table = grid.from_rows([*found.by_half])
    expected = reference_ranks(banks, split, EVERY[:, None], table)
    first = split.fold_query[split.held_out] < split.num_folds / 2
    both = np.where(first, expected[:, 0], expected[:, 1])
    assert (np.abs(found.ranks - both) > 1e-6).mean() < 0.04
    assert np.abs(found.ranks - both).max() <= 1
    for row in (found.row, *found.by_half):
        assert row[0] == start[0]
        assert row[3] == start[3]
        for value, point in zip(row[1:3], start[1:3], strict=True):
            assert point / 2 - 1e-6 <= value <= 2 * point + 1e-6
        for value, point in zip(row[4:], start[4:], strict=True):
            assert (0 <= value <= 1.5) if point else value == 0


def soft_log_rank(banks, split, row, temperature):
    """Mean over held-out queries, from the definition, with exact biases."""
    _, beta, _, _, weight, _ = row
    columns = np.asarray(split.columns, np.float64)
    similarities = banks.query.astype(np.float64) @ columns.T
    values = []
    for query in split.held_out:
        right = split.excluded_query[query, 0]
        valid = np.repeat((split.fold_query != split.fold_query[query])[:, None], len(columns), 1)
        valid[np.arange(len(valid)), split.excluded_query[:, 0]] = False
        total = np.where(valid, np.exp(beta * similarities), 0).sum(axis=0) / valid.sum(axis=0)
        scores = similarities[query] - weight * np.log(total) / beta
        above = 1 / (1 + np.exp(-(np.delete(scores, right) - scores[right]) / temperature))
        values.append(np.log1p(above.sum()))
    return np.mean(values)


def test_the_surrogate_falls_to_a_minimum():
    found, banks, split, spread = refined(START)

    def at(beta, weight):
        row = ("is", beta, 0.0, 0, weight, 0.0)
        return soft_log_rank(banks, split, row, 0.1 * spread)

    best = at(found.row[1], found.row[4])
    assert best < at(START[1], START[4]) - 0.05
    around = [
        at(beta, weight)
        for beta in np.geomspace(START[1] / 2, START[1] * 2, 7)
        for weight in np.linspace(0, 1.5, 7)
    ]
    assert best <= min(around) + 0.02


def poor(table):
    return int(((table.method == 1) & np.isclose(table.weight_query, 0.25)).argmax())


@pytest.mark.slow
def test_kept_where_it_leads(monkeypatch, tmp_path):
    query_bank, gallery_bank, _, gallery = hubby(5)
    arrays = {"gallery": gallery, "query_bank": query_bank, "gallery_bank": gallery_bank}
    plain = dbn.tuning.tune(**arrays, pairs=EVERY)
    point = poor(plain)
    monkeypatch.setattr(proof, "choose", lambda *_, **__: point)
    choice = dbn.tuning.tune(**arrays, pairs=EVERY, refine=True)
    count = len(plain.gain)
    assert len(choice.gain) == count + 1
    assert int(choice.chosen) == count
    assert choice.reason_code == REFINED
    assert "refined" in choice.summary()
    assert float(choice.gain[count]) > float(choice.gain[point])
    np.testing.assert_array_equal(choice.gain[:count], plain.gain)
    beta = float(choice.beta_query[count] / choice.beta_query[point])
    assert 0.5 - 1e-5 <= beta <= 2 + 1e-5
    dbn.save(tmp_path / "choice.npz", choice)
    assert dbn.load(tmp_path / "choice.npz").parameters == choice.parameters
    fitted = dbn.tuning.fit(choice, **arrays)
    same = dbn.stream_bank_statistics(query_bank, gallery, beta=float(choice.beta_query[count]))
    np.testing.assert_allclose(
        fitted.bias[0], float(choice.weight_query[count]) * same.bias, rtol=1e-4
    )

    # Not kept where it does not lead; the rest as before.
    monkeypatch.setattr(proof, "leads", lambda _: False)
    again = dbn.tuning.tune(**arrays, pairs=EVERY, refine=True)
    np.testing.assert_array_equal(choice.gain, again.gain)
    assert int(again.chosen) == point
    assert again.reason_code == CHOSEN


def test_never_where_raw_is_kept():
    rows = np.random.default_rng(0).normal(size=(SIZE, 12)).astype(np.float32)
    choice = dbn.tuning.tune(query_bank=rows, gallery_bank=rows, pairs=EVERY, refine=True)
    assert choice.name == "raw"
    assert len(choice.gain) == len(grid.grid(1.0, 1.0).method)


def test_a_lead_must_exceed_its_error():
    noise = np.random.default_rng(0).normal(size=400)
    noise -= noise.mean()
    assert proof.leads(noise + 0.1)
    assert not proof.leads(noise + 0.01)
    assert not proof.leads(np.zeros(9))


def test_rows_of_a_table():
    table = grid.grid(1.0, 2.0)
    assert grid.from_rows([table.row(100)]).row(0) == table.row(100)
    more = table.with_row(START)
    assert len(more.method) == len(table.method) + 1
    np.testing.assert_allclose(more.row(len(table.method))[1:], START[1:], rtol=1e-6)
