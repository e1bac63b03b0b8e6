"""A gallery of two modalities: queries of one find items of their own modality first.

    python -m benchmarks.studies.modalities --set DIR/data.npz ...

Half of the query bank joins the gallery: items of the queries' own modality, right for no query.
The other half, with its partners, is the bank. Centring takes from every vector the mean of its
group's bank, the queries' from the queries' own too, and makes it of unit norm again.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies.tuning import chosen
from benchmarks.support.common import machine
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.sets import EvaluationSet


def mixed(test: EvaluationSet) -> EvaluationSet:
    """The set with half of its query bank, whose pairs leave the bank, in the gallery."""
    assert test.bank_pairs is not None
    assert test.gallery_bank is not None
    order = np.random.default_rng(0).permutation(len(test.query_bank))
    joining, kept = np.split(order, [len(order) // 2])
    gone = np.setdiff1d(test.bank_pairs[joining], test.bank_pairs[kept])
    stays = np.setdiff1d(np.arange(len(test.gallery_bank)), gone)
    places = np.full(len(test.gallery_bank) + 1, -1)
    places[stays] = np.arange(len(stays))
    return dataclasses.replace(
        test,
        gallery=np.concatenate([test.gallery, test.query_bank[joining]]),
        query_bank=test.query_bank[kept],
        gallery_bank=test.gallery_bank[stays],
        bank_pairs=places[test.bank_pairs[kept]],
        gallery_labels=None,
        query_bank_labels=None,
    )


def centred(test: EvaluationSet, num_items: int) -> EvaluationSet:
    """All vectors less the mean of their group's bank; the first items are of the gallery's."""
    own, other = (np.mean(bank, axis=0) for bank in (test.query_bank, test.gallery_bank))

    def unit(rows: np.ndarray) -> np.ndarray:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    items = np.concatenate([test.gallery[:num_items] - other, test.gallery[num_items:] - own])
    return dataclasses.replace(
        test,
        queries=unit(test.queries - own),
        gallery=unit(items),
        query_bank=unit(test.query_bank - own),
        gallery_bank=unit(test.gallery_bank - other),
    )


def recalls(test: EvaluationSet) -> list[float]:
    """R@1 raw, by CSLS(10), by IS(20) and by `auto`."""
    statistics = dbn.stream_bank_statistics(test.query_bank, test.gallery, beta=20.0)
    largest = dbn.stream_largest_similarities(test.query_bank, test.gallery, k=10)
    corrections = [None, dbn.baselines.csls(largest), dbn.inverted_softmax(statistics)]
    ranks = [
        dbn.metrics.stream_ranks(test.queries, test.gallery, test.relevant, one)
        for one in (*corrections, chosen(test, 0)[0])
    ]
    return [100 * float((np.asarray(each) <= 1).mean()) for each in ranks]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    asked = parser.parse_args(arguments)
    print(machine())
    names = ("raw", "CSLS(10)", "IS(20)", "auto")
    print(f"{'R@1':40}" + "".join(f"{name:>10}" for name in names))
    for path in asked.sets:
        test = read_set(path, "cosine")
        both = mixed(test)
        alone = dataclasses.replace(both, gallery=test.gallery)
        kinds = {
            "items alone": alone,
            "both": both,
            "both, centred": centred(both, len(test.gallery)),
        }
        for kind, one in kinds.items():
            row = "".join(f"{value:10.1f}" for value in recalls(one))
            print(f"{f'{test.name}, {kind}':40}{row}", flush=True)


if __name__ == "__main__":
    main()
