"""What the thresholds of `tuning.likely_mistakes` were drawn from, on sets that are used rightly.

    python -m benchmarks.studies.mistakes [--set FILE ...]

The emoji names of the demo and every given set, both directions:

    bank      own share of the query bank beside the queries, and of the gallery bank beside the
              gallery: the larger; *exchanged*, each beside the other side, the smaller
    ahead     mean share of wrong items ahead of the right one
    columns   correlation of the mean similarities of an item to the queries and to the query bank;
              *turned*, of a query to the items in place of the first, where a matrix is transposed
    at ...    gain of IS in points of R@1 where beta x spread is so much
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import dbnorm_jax as dbn
from benchmarks.support.common import machine
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set
from dbnorm_jax._src.core.relevance import as_rows
from dbnorm_jax._src.tuning import bank_checks

BETA_SPREADS = (0.02, 0.3, 1.0, 2.0, 5.0, 10.0, 50.0)
_BANK_ROWS = 2000


def figures(test: EvaluationSet) -> dict[str, float]:
    """All figures of one set, by name."""
    assert test.gallery_bank is not None
    queries, gallery, query_bank, gallery_bank = (
        np.asarray(rows)
        for rows in (test.queries, test.gallery, test.query_bank, test.gallery_bank)
    )
    random = np.random.default_rng(0)

    def own_share(bank: np.ndarray, side: np.ndarray) -> float:
        return bank_checks.own_share(bank, side, random, dbn.dot_product)

    similarities, bank = queries @ gallery.T, query_bank[:_BANK_ROWS] @ gallery.T
    right = as_rows(test.relevant, similarities.shape)
    ranks = np.asarray(dbn.metrics.ranks(similarities, right))
    answered = np.isfinite(ranks)
    spread = float(bank.std(axis=1).mean())
    count = min(similarities.shape)
    found = {
        "bank": max(own_share(query_bank, queries), own_share(gallery_bank, gallery)),
        "exchanged": min(own_share(query_bank, gallery), own_share(gallery_bank, queries)),
        "ahead": float((ranks[answered] - 1).mean() / (len(gallery) - 1)),
        "columns": correlation(similarities.mean(axis=0), bank.mean(axis=0)),
        "turned": correlation(similarities[:count, :count].mean(axis=1), bank.mean(axis=0)[:count]),
    }
    raw = dbn.metrics.recall_at(ranks[answered], 1)
    for value in BETA_SPREADS:
        fitted = dbn.inverted_softmax(dbn.bank_statistics(bank, beta=value / spread))
        corrected = np.asarray(dbn.metrics.ranks(dbn.apply_correction(similarities, fitted), right))
        found[f"at {value:g}"] = 100 * float(dbn.metrics.recall_at(corrected[answered], 1) - raw)
    return found


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's."""
    return float(np.corrcoef(first, second)[0, 1])


def both_ways(paths: Sequence[str]) -> Iterator[EvaluationSet]:
    """The demo and the given sets, and each the other way round."""
    for test in (emoji_names(), *(read_set(path, "cosine") for path in paths)):
        yield from (test, reversed_set(test))


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    asked: Any = parser.parse_args(arguments)
    print(machine())
    for number, test in enumerate(both_ways(asked.sets)):
        found = figures(test)
        if not number:
            print(f"\n{'':32}" + "".join(f"{name:>11}" for name in found))
        cells = (
            f"{v:+11.1f}" if name.startswith("at ") else f"{v:11.3f}" for name, v in found.items()
        )
        print(f"{test.name[:31]:32}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
