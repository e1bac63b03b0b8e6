"""A bank that learns from the queries it serves, with demand that is uneven and that shifts.

    python -m benchmarks.studies.served --set DIR/data.npz ...

2,000 queries of a set come in batches of 50, as in `benchmarks.studies.demand`, evenly or by Zipf's
law with exponent 1. All of them are moved by one vector of length 0, 0.5 or 1, which the bank does
not know. Each batch is corrected by IS at 2/spread, by what the bank was before; then it enters the
bank. The bank begins as 1,000 rows of the set's own.

    static                 the bank stays as it began
    with the served        the served queries are merged into it
    decayed                so they are, and all older weights are multiplied by 0.8
    the served alone       it begins empty
"""

import argparse
import itertools
from collections.abc import Sequence

import jax
import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies.demand import EXPONENTS, demanded
from benchmarks.studies.significance import Answers, print_ways
from benchmarks.support.common import machine
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set

# Way -> decay of the bank at each batch, whether it learns, and the weight of its bias.
WAYS = {
    "static, weight 0.75": (1.0, False, 0.75),
    "static, weight 0.25": (1.0, False, 0.25),
    "with the served, weight 0.25": (1.0, True, 0.25),
    "decayed, weight 0.25": (0.8, True, 0.25),
    "decayed, weight 0.75": (0.8, True, 0.75),
    "the served alone, weight 0.75": (0.0, True, 0.75),
}
SHIFTS = (0.0, 0.5, 1.0)
_SERVED, _BATCH, _BANK = 2000, 50, 1000


def shifted(rows: np.ndarray, length: float, seed: int) -> np.ndarray:
    """Unit rows moved by one vector, and of unit norm again."""
    way = np.random.default_rng(seed).normal(size=rows.shape[1])
    rows = rows + length * way / np.linalg.norm(way)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def served(similarities: np.ndarray, bank: np.ndarray, right: np.ndarray, way: str) -> Answers:
    """Whether each query is right by raw similarities, and by those corrected when it came.

    Of similarities to the gallery: [num_queries, num_gallery] and [num_bank, num_gallery].
    """
    decay, learns, weight = WAYS[way]
    beta = 2 / float(bank.std(axis=1).mean())
    statistics = dbn.bank_statistics(bank, beta=beta, k=0) if decay else None
    after = []
    for start in range(0, len(similarities), _BATCH):
        batch = similarities[start : start + _BATCH]
        bias = 0.0 if statistics is None else weight * np.asarray(statistics.bias)[None]
        rows = np.arange(start, start + len(batch))
        after.append(right[rows, (batch - bias).argmax(axis=1)])
        if learns:
            new = dbn.bank_statistics(batch, beta=beta, k=0)
            if statistics is None:
                statistics = new
            else:
                old = dbn.growing.decay(statistics, decay) if decay else statistics
                statistics = dbn.merge(old, new)
    before = right[np.arange(len(right)), similarities.argmax(axis=1)]
    return before, np.concatenate(after)


def right_items(test: EvaluationSet) -> np.ndarray:
    """[num_queries, num_gallery] bool."""
    assert test.relevant is not None
    first, places = test.relevant
    right = np.zeros((len(first) - 1, len(test.gallery)), bool)
    right[np.repeat(np.arange(len(right)), np.diff(first)), places] = True
    return right


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    asked = parser.parse_args(arguments)
    print(machine())
    found: dict[str, dict[str, dict[str, list[Answers]]]] = {}
    for path in asked.sets:
        read = read_set(path, "cosine")
        for whole, demand in itertools.product((read, reversed_set(read)), ("uniform", "Zipf(1)")):
            jax.clear_caches()
            test = demanded(whole, EXPONENTS[demand], 0)
            gallery = np.asarray(test.gallery)
            bank = np.asarray(whole.query_bank)[:_BANK] @ gallery.T
            right = right_items(test)[:_SERVED]
            for shift in SHIFTS:
                queries = shifted(np.asarray(test.queries)[:_SERVED], shift, 0)
                name = f"{test.name}, shift {shift:g}"
                found.setdefault(demand, {})[name] = {
                    way: [served(queries @ gallery.T, bank, right, way)] for way in WAYS
                }
    for demand, cells in found.items():
        print_ways(demand, cells)
    print_ways(
        "all", {f"{d}, {c}": ways for d, cells in found.items() for c, ways in cells.items()}
    )


if __name__ == "__main__":
    main()
