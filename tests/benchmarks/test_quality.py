"""The quality benchmark: fair draws, tuning that sees the bank alone, honest errors."""

import numpy as np
import pytest
from pairs import small_set

pytest.importorskip("emoji")

from benchmarks.studies import quality
from dbnorm_jax._cli.measuring.table_rows import evaluate

pytestmark = pytest.mark.slow  # a benchmark: out of the way of the library's own tests


@pytest.fixture(scope="module")
def test_set():
    return small_set()


def test_draws_keep_pairs_together(test_set):
    drawn = list(quality.draws(test_set, 8, 3))
    assert len(drawn) == 3
    originals = {row.tobytes(): place for place, row in enumerate(test_set.query_bank)}
    chosen = []
    for draw in drawn:
        places = [originals[row.tobytes()] for row in draw.query_bank]
        assert len(set(places)) == 8
        chosen.append(places)
        partners = test_set.gallery_bank[test_set.bank_pairs[places]]
        np.testing.assert_array_equal(draw.gallery_bank[draw.bank_pairs], partners)
    assert chosen[0] != chosen[1]
    assert list(quality.draws(test_set, None, 3)) == [test_set]
    assert list(quality.draws(test_set, 1000, 3)) == [test_set]


def test_tuning_never_sees_the_test(test_set):
    halves = list(quality._halves(test_set))
    assert len(halves) == 2
    bank_rows = {row.tobytes() for row in test_set.query_bank}
    for half in halves:
        rows = [{row.tobytes() for row in part} for part in (half.queries, half.query_bank)]
        assert rows[0] | rows[1] <= bank_rows
        assert not rows[0] & rows[1]
        # Right items: query i belongs to gallery item i of the half.
        similarities = half.queries @ half.gallery.T
        assert (similarities.argmax(axis=1) == np.arange(20)).mean() > 0.3


def test_the_best_parameters_inside_the_bank_win(test_set, monkeypatch):
    grid = {"is": quality.GRID["is"], "csls": quality.GRID["csls"]}
    monkeypatch.setattr(quality, "GRID", grid)
    chosen = quality.tuned(test_set)
    assert [method.kind for method in chosen] == ["is", "csls"]
    for method, candidates in zip(chosen, grid.values(), strict=True):
        scores = {}
        for candidate in candidates:
            rows = [evaluate(half, [candidate])[0] for half in quality._halves(test_set)]
            scores[candidate] = sum(float((1 / row.ranks).mean()) for row in rows)
        assert scores[method] == pytest.approx(max(scores.values()), rel=1e-6)


def test_what_a_set_could_show(test_set):
    rows = [quality.results(test_set, ("is",), with_tuned=False) for _ in range(2)]
    before, after = (rows[0][name].ranks <= 1 for name in ("raw", "IS"))
    assert quality.discordance(rows, "IS") == pytest.approx((before != after).mean())


def test_tables_set_transductive_methods_apart(test_set, capsys, monkeypatch):
    monkeypatch.setattr(quality, "GRID", {"csls": quality.GRID["csls"][:1]})
    quality.run(iter([("toy", [test_set])]), [8, None], 2, ("is", "csls", "nnn", "dsl"))
    out = capsys.readouterr().out
    assert "could show" in out
    per_set, overall = out.split("over all 1 sets")
    for table in (per_set, overall):
        lines = [line.split("  ")[0] for line in table.splitlines() if line]
        place = lines.index("transductive, not to be compared with the rows above:")
        assert lines[place + 1] == "DSL"
        assert {"raw", "IS", "CSLS", "NNN", "CSLS, tuned"} <= set(lines[:place])
    assert "toy, raw R@1" in per_set
