"""The fit and the search against a bare tile scan of the same shapes.

python -m benchmarks.streaming [--bank 10240] [--gallery 10240] [--queries 4096] [--dim 512]
"""

import argparse
from functools import partial

import numpy as np

import dbnorm_jax as dbn
from benchmarks.common import TILE, bare_scan, interleaved, machine, ratio_lines, unit_rows


def check_exact(bank, gallery, queries, correction) -> None:
    """Nothing is timed that is wrong: a slice of the results against NumPy in float64."""
    items = np.asarray(gallery, np.float64)
    columns = slice(0, 256)
    logits = 20.0 * (np.asarray(bank, np.float64) @ items[columns].T)
    top = logits.max(axis=0)
    expected = top + np.log(np.exp(logits - top).sum(axis=0))
    found = dbn.stream_bank_statistics(bank, gallery, beta=20.0).log_normalizer[columns]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    some = np.asarray(queries[:64], np.float64)
    scores = some @ items.T - np.asarray(correction.bias, np.float64).sum(axis=0)
    best = np.sort(scores, axis=1)[:, ::-1][:, :10]
    result = dbn.stream_top_k(queries[:64], gallery, 10, correction)
    np.testing.assert_allclose(result.scores, best, atol=2e-6)
    exact = np.take_along_axis(scores, np.asarray(result.indices), axis=1)
    np.testing.assert_allclose(exact, best, atol=2e-6)


def run(num_bank: int, num_gallery: int, num_queries: int, dim: int, repetitions: int) -> None:
    """Prints the two tables."""
    bank, gallery = unit_rows(0, num_bank, dim), unit_rows(1, num_gallery, dim)
    queries, gallery_bank = unit_rows(2, num_queries, dim), unit_rows(3, num_bank, dim)
    query_statistics = dbn.stream_bank_statistics(bank, gallery, beta=20.0)
    gallery_statistics = dbn.stream_bank_statistics(gallery_bank, gallery, beta=1.0)
    dual = dbn.dual_inverted_softmax(query_statistics, gallery_statistics)
    check_exact(bank, gallery, queries, dual)

    print(f"fit: bank {num_bank} x gallery {num_gallery} x dim {dim}")
    fit = partial(dbn.stream_bank_statistics, bank, gallery, beta=20.0)
    contenders = {"bare": partial(bare_scan, bank, gallery)}
    contenders |= {f"fit, k={k}": partial(fit, k=k) for k in (0, 1, 10)}
    print(*ratio_lines(interleaved(contenders, repetitions), "bare"), sep="\n")

    print(f"\nsearch: queries {num_queries} x gallery {num_gallery} x dim {dim}")
    search = partial(dbn.stream_top_k, queries, gallery)
    relevant = np.arange(num_queries) % num_gallery
    dual_dynamic = dbn.dual_dynamic_inverted_softmax(query_statistics, gallery_statistics)
    contenders = {
        "bare": partial(bare_scan, queries, gallery),
        "raw, k=10": partial(search, 10),
        "DualIS, k=1": partial(search, 1, dual),
        "DualIS, k=10": partial(search, 10, dual),
        "DIS, k=10": partial(search, 10, dbn.dynamic_inverted_softmax(query_statistics)),
        "DualDIS, k=10": partial(search, 10, dual_dynamic),
        "ranks, DualIS": partial(dbn.metrics.stream_ranks, queries, gallery, relevant, dual),
    }
    print(*ratio_lines(interleaved(contenders, repetitions), "bare"), sep="\n")


def main() -> None:
    """Reads the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("bank", 10240), ("gallery", 10240), ("queries", 4096)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"multiple of {TILE}")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    print(machine(), end="\n\n")
    run(options.bank, options.gallery, options.queries, options.dim, options.repetitions)


if __name__ == "__main__":
    main()
