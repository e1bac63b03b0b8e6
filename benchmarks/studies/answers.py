"""Is there an answer at all? Top-1 scores of queries with and without their right items.

    python -m benchmarks.studies.answers --set DIR/data.npz ...

Every query is asked twice, the second time without its right items. Printed is the AUC of a score
of the result: the chance that a query with an answer scores higher than one without, ties counting
half. And a threshold: the score that 95 % of the bank's own queries stay below, whose answers are
not in the gallery. The bank is fitted on one half of its queries and the threshold set on the
other. Printed are the shares of queries without and with an answer above the threshold.
"""

import argparse
from collections.abc import Sequence

import jax
import numpy as np
from scipy.stats import rankdata

import dbnorm_jax as dbn
from benchmarks.support.common import machine
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set
from dbnorm_jax._src.core.relevance import as_rows

SCORES = ("raw top-1", "raw lead", "IS(20) top-1", "CSLS(10) top-1", "CSLS(10), both terms")


def area(present: np.ndarray, absent: np.ndarray) -> float:
    """The chance that one of the first is above one of the second, ties counting half."""
    ranks = rankdata(np.concatenate([present, absent]))[: len(present)]
    above = ranks.sum() - len(present) * (len(present) + 1) / 2
    return float(above / (len(present) * len(absent)))


def scores(queries: np.ndarray, gallery: np.ndarray, bank: np.ndarray, exclude: object) -> list:
    """[num_queries] of each of `SCORES`."""
    statistics = dbn.stream_bank_statistics(bank, gallery, beta=20.0)
    csls = dbn.baselines.csls(dbn.stream_largest_similarities(bank, gallery, k=10))
    raw, corrected, local = (
        np.asarray(dbn.stream_top_k(queries, gallery, k, one, exclude=exclude).scores)
        for k, one in ((10, None), (1, dbn.inverted_softmax(statistics)), (1, csls))
    )
    own = raw.mean(axis=1) / 2  # the term of the query, which no ranking needs
    return [raw[:, 0], raw[:, 0] - raw[:, 1], corrected[:, 0], local[:, 0], local[:, 0] - own]


def told_apart(test: EvaluationSet) -> list[tuple[float, float, float]]:
    """(AUC, share of queries without an answer above the threshold, of those with one)."""
    queries, gallery, bank = map(np.asarray, (test.queries, test.gallery, test.query_bank))
    order = np.random.default_rng(0).permutation(len(bank))
    fitted, held_out = np.array_split(bank[order], 2)
    asked = (
        (queries, None),
        (queries, as_rows(test.relevant, (len(queries), len(gallery)))),
        (held_out, None),
    )
    found = [scores(rows, gallery, fitted, exclude) for rows, exclude in asked]
    cells = []
    for present, absent, held in zip(*found, strict=True):
        threshold = np.quantile(held, 0.95)
        shares = (100 * float((each > threshold).mean()) for each in (absent, present))
        cells.append((area(present, absent), *shares))
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    asked = parser.parse_args(arguments)
    print(machine())
    print(f"{'AUC; % above without, with answer':40}" + "".join(f"{one:>24}" for one in SCORES))
    rows = []
    for path in asked.sets:
        read = read_set(path, "cosine")
        for test in (read, reversed_set(read)):
            jax.clear_caches()
            rows.append(told_apart(test))
            print(_line(test.name, rows[-1]), flush=True)
    print(_line(f"mean of {len(rows)}", np.mean(rows, axis=0)))


def _line(name: str, cells: Sequence[Sequence[float]]) -> str:
    return f"{name[:39]:40}" + "".join(f"{a:10.3f}{b:7.1f}{c:7.1f}" for a, b, c in cells)


if __name__ == "__main__":
    main()
