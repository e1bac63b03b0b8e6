"""The benchmark of the automatic choice: its summary, and that its oracle ranks as the library."""

import dataclasses
import itertools

import numpy as np
import pytest

pytest.importorskip("emoji")

import dbnorm_jax as dbn
from benchmarks.studies import tuning
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._src.core.relevance import as_rows
from dbnorm_jax._src.tuning import grid


def draw(raw, auto, gains):
    raw, auto = np.array(raw, bool), np.array(auto, bool)
    oracles = np.array([max(gains), max(gains) - 1, max(gains) - 2])
    return tuning.Draw(
        raw, auto, np.array(gains), oracles, 0.25, np.zeros(6), gains[1], False, "is"
    )


def test_summary():
    found = [draw([1, 0, 0, 0], [1, 1, 0, 0], [0, 30, 50]), draw([1, 0, 0, 0], [0] * 4, [0, 0, 10])]
    row = tuning.summary(found)
    assert (row.auto, row.oracle, row.unguarded) == (0, 30, 15)
    assert (row.debiased, row.halves) == (29, 28)
    assert row.p_value == pytest.approx(3 / 4)
    assert row.could_show == np.inf  # four queries show nothing
    low, high = tuning.interval(found)
    assert low <= 0 <= high


def test_means_by_size_of_the_bank(capsys):
    found = tuning.summary([draw([1, 0, 0, 0], [1, 1, 0, 0], [0, 30, 50])])
    kept = dataclasses.replace(found, auto=0.0, kept_raw=1.0, could_show=30.0)
    tuning.print_by_size({("a", "100"): found, ("b", "100"): kept, ("a", "all"): found})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["100", "2", "+12.50", "+50.00", "+49.00", "26%", "50%"] in lines
    assert ["all", "1", "+25.00", "+50.00", "+49.00", "51%", "0%"] in lines
    assert " ".join(lines[-1]).endswith("the debiased oracle gains less in 2 of 3 cells")


def test_both_directions_of_a_set_look_alike():
    names = ["emoji en -> de", "emoji de -> en", "emoji en -> fr", "spoken", "spoken, reversed"]
    looks = list(tuning.looks(names).values())
    for first, second in ((0, 1), (3, 4)):
        same = {**looks[first], "linestyle": "--"}
        assert looks[first] != same == looks[second]
    apart = {(look["color"], look["marker"]) for look in looks}
    assert len(apart) == 3


@pytest.mark.slow
def test_the_oracle_ranks_as_the_library(capsys, monkeypatch):
    # A part of the banks: 88 candidates are fitted to all of them.
    test = emoji_names("en", "de", 0)
    part = slice(200)
    test = dataclasses.replace(
        test,
        query_bank=test.query_bank[part],
        gallery_bank=test.gallery_bank[part],
        bank_pairs=test.bank_pairs[part],
    )
    right = as_rows(test.relevant, (len(test.queries), len(test.gallery)))
    ranks = tuning.fixed_ranks(test, right)
    query, gallery = (
        dbn.stream_bank_statistics(bank, test.gallery, beta=beta)
        for bank, beta in ((test.query_bank, 20.0), (test.gallery_bank, 1.0))
    )
    largest = dbn.stream_largest_similarities(test.query_bank, test.gallery, k=10)
    for row, correction in (
        (0, dbn.inverted_softmax(query)),
        (1, dbn.dynamic_inverted_softmax(query)),
        (2, dbn.dual_inverted_softmax(query, gallery)),
        (3, dbn.dual_dynamic_inverted_softmax(query, gallery)),
        (4, dbn.baselines.csls(largest)),
    ):
        expected = dbn.metrics.stream_ranks(test.queries, test.gallery, right, correction)
        assert (np.abs(ranks[row] - np.asarray(expected)) > 0).mean() < 0.02
    table = grid.grid(0.1)
    place = int(np.flatnonzero((table.method == 1) & (table.weight_query == 1))[-1])
    beta = float(table.beta_query[place])
    fitted = dbn.inverted_softmax(
        dbn.stream_bank_statistics(test.query_bank, test.gallery, beta=beta)
    )
    expected = dbn.metrics.stream_ranks(test.queries, test.gallery, right, fitted)
    found = tuning.candidate_ranks(test, right, 0.1)[place]
    assert (np.abs(found - np.asarray(expected)) > 0).mean() < 0.02
    plan = tuning.plan
    monkeypatch.setattr(tuning, "plan", lambda *given: itertools.islice(plan(*given), 1))
    tuning.main(["--draws", "1", "--bank-sizes", "100"])
    out = capsys.readouterr().out
    assert "median share" in out
    assert "oracle, debiased" in out
