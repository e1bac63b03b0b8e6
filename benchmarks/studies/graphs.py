"""Corrected search in graph indexes: which way keeps its gain at the cost of the raw search.

    python -m benchmarks.studies.graphs --set FILE.npz [--set ...] [--reverse] [--gallery 8000]
        [--engines faiss,hnswlib,usearch] [--brief]

Galleries are test items, bank items, and copies of bank items with noise of length 0.3 up to the
number given (0: none). The correction is IS at beta 20. Each way searches with ef 12, 16, ... until
its R@1 is 98 % of that of the exact search of its kind, raw or corrected; what does not arrive has
"-". `distances` are those that faiss computes for a query, `time` is processor time of one thread,
calls of both interleaved, p50 and p99 are of single calls: each divided by that of the raw search
at its own smallest ef. `recall` is of the ten best of the exact search of its kind.

    raw                        the raw search itself
    dimension                  the bias as one more dimension, centered
    dimension x 2              multiplied by 2 in the gallery, divided by 2 in queries
    dimension + 0.5, + 1       shifted, so that links lead to items of low bias
    dimension, cosine          brought to one length by a second dimension
    dimension, M 64            a graph with twice the links
    raw, n fetched             the raw index, n results rescored
    half, 50 fetched           the shifted index under a gate of one half, 50 results rescored

`--brief` leaves raw, dimension, dimension + 0.5 and raw, 50 fetched.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies.served import right_items
from benchmarks.support import environment
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.sets import reversed_set

BETA = 20.0
EFS = (12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256)
KEPT = 0.98
K = 10
NOISE = 0.3
# -> (similarities [num_queries, k], gallery rows [num_queries, k])
Found = tuple[np.ndarray, np.ndarray]
Search = Callable[[np.ndarray, int, int], Found]  # queries, k, ef


def of_faiss(vectors: np.ndarray, links: int) -> Search:
    """Faiss HNSW."""
    import faiss

    index = faiss.IndexHNSWFlat(vectors.shape[1], links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(vectors)

    def search(queries: np.ndarray, k: int, ef: int) -> Found:
        return index.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=ef))

    return search


def of_hnswlib(vectors: np.ndarray, links: int) -> Search:
    """Hnswlib."""
    import hnswlib

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=links, ef_construction=200)
    index.add_items(vectors, num_threads=1)

    def search(queries: np.ndarray, k: int, ef: int) -> Found:
        index.set_ef(ef)
        rows, distances = index.knn_query(queries, k, num_threads=1)
        return 1 - distances, rows.astype(np.int64)

    return search


def of_usearch(vectors: np.ndarray, links: int) -> Search:
    """Usearch in float32."""
    from usearch.index import Index

    options: Any = {"metric": "ip", "dtype": "f32", "connectivity": links, "expansion_add": 200}
    index = Index(ndim=vectors.shape[1], **options)
    index.add(np.arange(len(vectors)), vectors, threads=1)

    def search(queries: np.ndarray, k: int, ef: int) -> Found:
        index.expansion_search = ef
        found = index.search(queries, k, threads=1)
        shape = (len(queries), k)
        return 1 - found.distances.reshape(shape), found.keys.reshape(shape).astype(np.int64)

    return search


ENGINES = {"faiss": of_faiss, "hnswlib": of_hnswlib, "usearch": of_usearch}


class Case(NamedTuple):
    """A gallery, queries, a correction and what is right."""

    gallery: np.ndarray
    queries: np.ndarray
    correction: dbn.Correction
    right: np.ndarray  # [num_queries, num_test_items] bool; other items are wrong


def case_of(test: Any, size: int) -> Case:
    """The test inside a larger gallery."""
    random = np.random.default_rng(0)
    bank = np.asarray(test.gallery_bank)
    parts = [np.asarray(test.gallery), bank]
    while sum(map(len, parts)) < size:
        noise = random.normal(size=bank.shape) / np.sqrt(bank.shape[1])
        rows = bank + NOISE * noise
        parts.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    gallery = np.concatenate(parts)[: max(size, len(parts[0]) + len(bank))]
    statistics = dbn.stream_bank_statistics(np.asarray(test.query_bank), gallery, beta=BETA)
    queries = np.asarray(test.queries)
    return Case(gallery, queries, dbn.inverted_softmax(statistics), right_items(test))


class Way(NamedTuple):
    """How an index is asked; `vectors` and `queries` decide what its scores are."""

    search: Callable[[np.ndarray, int, int], np.ndarray]  # queries, k, ef -> rows
    queries: np.ndarray
    corrected: bool = True


def ways_of(
    case: Case, engine: Callable[[np.ndarray, int], Search], *, brief: bool
) -> dict[str, Way]:
    """All of them, by name; an index is built for each form of vectors."""
    raw = engine(case.gallery, 32)
    correction = case.correction
    bias = np.asarray(correction.bias, np.float32)
    column = bias[0] - bias.mean()
    one = np.ones((len(case.queries), 1), np.float32)

    def plain(search: Search) -> Callable[..., np.ndarray]:
        return lambda queries, k, ef: search(queries, k, ef)[1]

    def fetching(count: int) -> Callable[..., np.ndarray]:
        def search(queries: np.ndarray, k: int, ef: int) -> np.ndarray:
            found = raw(queries, count, ef)
            return np.asarray(dbn.rescore(found, correction, k=k).indices)

        return search

    def indexed(shift: float = 0.0, links: int = 32, **options: Any) -> Search:
        rows = dbn.inner_product_gallery(case.gallery, correction, shift=shift, **options)
        return engine(np.asarray(rows), links)

    shifted = indexed(0.5)

    def half(queries: np.ndarray, k: int, ef: int) -> np.ndarray:
        scores, rows = shifted(queries, 50, ef)
        left = dbn.Correction((column / 2)[None], None)
        return np.asarray(dbn.rescore((scores, rows), left, k=k).indices)

    asked = np.hstack([case.queries, one])
    few = {
        "raw": Way(plain(raw), case.queries, corrected=False),
        "dimension": Way(plain(indexed()), asked),
        "dimension + 0.5": Way(plain(shifted), asked),
        "raw, 50 fetched": Way(fetching(50), case.queries),
    }
    if brief:
        return few
    scaled = np.hstack([case.gallery, -2 * column[:, None]])
    return few | {
        "dimension x 2": Way(plain(engine(scaled, 32)), np.hstack([case.queries, one / 2])),
        "dimension + 0.5, raw": Way(
            plain(shifted), np.hstack([case.queries, 0 * one]), corrected=False
        ),
        "dimension + 1": Way(plain(indexed(1.0)), asked),
        "dimension, cosine": Way(
            plain(indexed(metric="cosine")), np.hstack([case.queries, one, 0 * one])
        ),
        "dimension, M 64": Way(plain(indexed(links=64)), asked),
        **{f"raw, {count} fetched": Way(fetching(count), case.queries) for count in (100, 200)},
        "half, 50 fetched": Way(half, np.hstack([case.queries, one / 2])),
    }


def numbers(rows: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """R@1, R@10 and nDCG@10 of lists [num_queries, 10]."""
    inside = (rows >= 0) & (rows < right.shape[1])
    hits = inside & np.take_along_axis(right, np.where(inside, rows, 0), axis=1)
    gains = 1 / np.log2(np.arange(K) + 2)
    best = np.cumsum(gains)[np.minimum(right.sum(axis=1), K) - 1]
    return {
        "R@1": 100 * float(hits[:, 0].mean()),
        "R@10": 100 * float(hits.any(axis=1).mean()),
        "nDCG@10": 100 * float((hits @ gains / best).mean()),
    }


def distances(way: Way, ef: int) -> float:
    """Of one query, as faiss counts them."""
    import faiss

    faiss.cvar.hnsw_stats.reset()
    way.search(way.queries, K, ef)
    return faiss.cvar.hnsw_stats.ndis / len(way.queries)


def times(first: tuple[Way, int], second: tuple[Way, int]) -> tuple[float, float, float]:
    """Ratios of the second to the first: all queries at once, and p50 and p99 of single ones."""
    for way, ef in (first, second):  # once before it counts
        way.search(way.queries, K, ef)
    both: list[list[float]] = [[], []]
    single: list[list[int]] = [[], []]
    for _ in range(5):
        for spent, (way, ef) in zip(both, (first, second), strict=True):
            start = time.process_time()
            way.search(way.queries, K, ef)
            spent.append(time.process_time() - start)
    for row in range(min(500, len(first[0].queries))):
        for spent_alone, (way, ef) in zip(single, (first, second), strict=True):
            begun = time.thread_time_ns()
            way.search(way.queries[row : row + 1], K, ef)
            spent_alone.append(time.thread_time_ns() - begun)
    at_once = np.median(both[1]) / np.median(both[0])
    parts = (np.quantile(single[1], at) / np.quantile(single[0], at) for at in (0.5, 0.99))
    return (float(at_once), *(float(part) for part in parts))


def links_by_bias(case: Case) -> list[str]:
    """How many links of a faiss graph lead to an item, by fifths of the bias."""
    import faiss

    bias = np.asarray(case.correction.bias)[0]
    fifths = np.array_split(np.argsort(bias), 5)
    lines = ["links to an item (layer 0), by fifths of the bias, lowest first"]
    for shift in (0.0, 0.5, 1.0):
        vectors = np.asarray(dbn.inner_product_gallery(case.gallery, case.correction, shift=shift))
        index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        index.add(vectors)
        neighbors = faiss.vector_to_array(index.hnsw.neighbors)
        offsets = faiss.vector_to_array(index.hnsw.offsets)[: len(bias)].astype(np.int64)
        ends = neighbors[offsets[:, None] + np.arange(64)]
        counts = np.bincount(ends[ends >= 0], minlength=len(bias))
        cells = "".join(f"{counts[part].mean():8.1f}" for part in fifths)
        lines.append(f"    + {shift:<6g}{cells}    none at all: {(counts == 0).sum()}")
    return lines


def table(case: Case, engine: str, *, brief: bool) -> list[str]:
    """One line for each way."""
    similarities = case.queries @ case.gallery.T
    exact = {}
    for corrected in (False, True):
        fitted = case.correction if corrected else None
        exact[corrected] = np.asarray(dbn.top_k(similarities, 100, fitted).indices)
    goal = {kind: numbers(rows[:, :K], case.right) for kind, rows in exact.items()}
    lines = [
        f"exact {'corrected' if kind else 'raw'}: "
        + ", ".join(f"{name} {value:.1f}" for name, value in measured.items())
        for kind, measured in goal.items()
    ]
    header = ("ef", "% of R@1", "R@10", "nDCG@10", "recall", "distances", "time", "p50", "p99")
    lines.append(f"{engine:22}" + "".join(f"{name:>10}" for name in header))
    base: tuple[Way, int] | None = None
    for name, way in ways_of(case, ENGINES[engine], brief=brief).items():
        ef, rows = reached(way, case, goal[way.corrected]["R@1"])
        if not ef:
            lines.append(f"{name:22}         -")
            continue
        found = numbers(rows, case.right)
        base = base or (way, ef)
        pairs = zip(rows, exact[way.corrected][:, :K], strict=True)
        recall = np.mean([np.isin(best, row).mean() for row, best in pairs])
        cost = distances(way, ef) / distances(*base) if engine == "faiss" else np.nan
        cells = [
            f"{ef}",
            f"{100 * found['R@1'] / goal[way.corrected]['R@1']:.1f}",
            f"{found['R@10']:.1f}",
            f"{found['nDCG@10']:.1f}",
            f"{recall:.3f}",
            f"{cost:.2f}",
            *(f"{ratio:.2f}" for ratio in times(base, (way, ef))),
        ]
        lines.append(f"{name:22}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def reached(way: Way, case: Case, goal: float) -> tuple[int, np.ndarray]:
    """The smallest ef that keeps enough of R@1, 0 for none, and its lists."""
    for ef in EFS:
        rows = way.search(way.queries, K, ef)
        if numbers(rows, case.right)["R@1"] >= KEPT * goal:
            return ef, rows
    return 0, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    parser.add_argument("--reverse", action="store_true")
    parser.add_argument("--gallery", type=int, default=8000)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--brief", action="store_true")
    asked = parser.parse_args(arguments)
    print(environment.summary(), end="\n\n", flush=True)
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        faiss.omp_set_num_threads(1)
    for path in asked.sets:
        test = read_set(path, "cosine")
        case = case_of(reversed_set(test) if asked.reverse else test, asked.gallery)
        name = Path(path).parent.name + ", reversed" * asked.reverse
        print(f"{name}: {len(case.gallery)} items, {len(case.queries)} queries", flush=True)
        for engine in asked.engines.split(","):
            print(*table(case, engine, brief=asked.brief), sep="\n", end="\n\n", flush=True)
            if engine == "faiss" and not asked.brief:
                print(*links_by_bias(case), sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    main()
