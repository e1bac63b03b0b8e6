"""Recall@10 of vector indexes, raw and corrected, and of stored precision. Needs faiss.

    python -m benchmarks.studies.indexes [--gallery 20000] [--queries 500] [--bank 2000] [--dim 64]
    python -m benchmarks.studies.indexes --set FILE.npz

Each list is compared with the exact one of its own kind: raw with raw, corrected with corrected.
hnswlib and usearch take part where they are installed.
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import dbnorm_jax as dbn
from benchmarks.support import environment, inputs, report
from benchmarks.support.report import Figure, Record
from dbnorm_jax._cli.reading.arrays import read_set

K = 10
NOISE = 1.5
BETAS = (20.0, 1.0)
# Those of the released code for similarities that are logits, on cosines: large offsets.
FLAT_BETAS = (0.5, 3.0)

# (vectors [num_gallery, width]) -> search: (queries, k) -> [num_queries, k] gallery rows.
Search = Callable[[np.ndarray, int], np.ndarray]
Build = Callable[[np.ndarray], Search]


class Data(NamedTuple):
    """Unit rows of a gallery, queries and both banks."""

    gallery: np.ndarray
    queries: np.ndarray
    query_bank: np.ndarray
    gallery_bank: np.ndarray


def synthetic(gallery: int, queries: int, bank: int, dim: int) -> Data:
    """Random directions with one in common: no clusters to make it easy, and hubs."""
    common = inputs.unit_rows(0, 1, dim)
    counts = (gallery, queries, bank, bank)
    return Data(*(inputs.near(seed, common, n, NOISE) for seed, n in enumerate(counts, 1)))


def of_set(path: str) -> Data:
    """A set of files, as `dbnorm evaluate` takes it."""
    found = read_set(path, "cosine")
    bank = found.gallery_bank if found.gallery_bank is not None else found.gallery
    return Data(found.gallery, found.queries, found.query_bank, bank)


def fitted(data: Data, betas: tuple[float, float], *, gated: bool = False) -> dbn.Correction:
    """DualIS, or DualDIS."""
    statistics = [
        dbn.stream_bank_statistics(bank, data.gallery, beta=beta)
        for bank, beta in zip((data.query_bank, data.gallery_bank), betas, strict=True)
    ]
    make = dbn.dual_dynamic_inverted_softmax if gated else dbn.dual_inverted_softmax
    return make(*statistics)


# --- engines -----------------------------------------------------------------------------------


def faiss_index(description: str, **settings: int) -> Build:
    """An index of faiss's factory, searched by inner product."""
    import faiss

    def build(vectors: np.ndarray) -> Search:
        index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        if "HNSW" in description:
            index.hnsw.efConstruction = 200
        index.train(vectors)
        index.add(vectors)
        for name, value in settings.items():
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        return lambda queries, k: index.search(queries, k)[1]

    return build


def hnswlib_index(ef: int) -> Build:
    """hnswlib, M = 32."""
    import hnswlib

    def build(vectors: np.ndarray) -> Search:
        index = hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), M=32, ef_construction=200)
        index.add_items(vectors)
        index.set_ef(ef)
        return lambda queries, k: index.knn_query(queries, k)[0]

    return build


def usearch_index(ef: int, dtype: str) -> Build:
    """usearch, connectivity 32."""
    from usearch.index import Index

    def build(vectors: np.ndarray) -> Search:
        index = Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype=dtype,
            connectivity=32,
            expansion_add=200,
            expansion_search=ef,
        )
        index.add(np.arange(len(vectors)), vectors)
        return lambda queries, k: index.search(queries, k).keys

    return build


def engines() -> dict[str, Build]:
    """What is installed."""
    found = {"faiss Flat": faiss_index("Flat")}
    for ef in (32, 64, 128, 256):
        found[f"faiss HNSW32, ef {ef}"] = faiss_index("HNSW32", efSearch=ef)
    for probes in (8, 16, 32):
        found[f"faiss IVF128, nprobe {probes}"] = faiss_index("IVF128,Flat", nprobe=probes)
    if importlib.util.find_spec("hnswlib") is not None:
        found |= {f"hnswlib, ef {ef}": hnswlib_index(ef) for ef in (64, 256)}
    if importlib.util.find_spec("usearch") is not None:
        for ef, dtype in ((64, "f32"), (256, "f32"), (256, "f16"), (256, "bf16")):
            found[f"usearch {dtype}, ef {ef}"] = usearch_index(ef, dtype)
    return found


# --- tables ------------------------------------------------------------------------------------


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of the exact list that was found."""
    pairs = zip(found, expected, strict=True)
    return float(np.mean([np.isin(row, best).mean() for row, best in pairs]))


def exact(data: Data, correction: dbn.Correction | None) -> np.ndarray:
    """The lists to find, [num_queries, K]."""
    return np.asarray(dbn.stream_top_k(data.queries, data.gallery, K, correction).indices)


def vectors_of(
    data: Data, correction: dbn.Correction, **options: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery of the corrected search, all gates open, one column for all terms."""
    whole = dbn.Correction(correction.bias.sum(axis=0, keepdims=True), None)
    found = dbn.inner_product_vectors(data.queries, data.gallery, whole, gates=[1.0], **options)
    return np.asarray(found[0]), np.asarray(found[1])


def by_engine(data: Data) -> list[Figure]:
    """Approximate indexes of raw and of corrected vectors."""
    correction = fitted(data, BETAS)
    kinds = {
        "raw": ((data.queries, data.gallery), exact(data, None)),
        "DualIS": (vectors_of(data, correction), exact(data, correction)),
    }
    return [
        Figure(name, recall(build(gallery)(queries, K), expected), kind)
        for name, build in engines().items()
        for kind, ((queries, gallery), expected) in kinds.items()
    ]


def two_searches(data: Data) -> list[Figure]:
    """DualDIS by gates read from an approximate index, and from a raw index searched once."""
    dual = fitted(data, BETAS, gated=True)
    expected = exact(data, dual)
    right_gates = dbn.gates(dbn.dot_product(data.queries, data.gallery), dual)
    vectors = np.asarray(dbn.inner_product_gallery(data.gallery, dual))
    figures = []
    for name in ("faiss Flat", "faiss HNSW32, ef 64", "faiss HNSW32, ef 256"):
        search = engines()[name](vectors)
        nearest = search(np.asarray(dbn.inner_product_queries(data.queries, [0.0, 0.0])), 1)[:, 0]
        gates = dbn.gates_from_top_1(nearest, dual)
        asked = np.asarray(dbn.inner_product_queries(data.queries, gates))
        wrong = float((gates != right_gates).any(axis=1).mean())
        figures += [
            Figure(name, recall(search(asked, K), expected), "recall@10"),
            Figure(name, wrong, "wrong gates"),
        ]
    raw = engines()["faiss Flat"](data.gallery)
    for fetched in (20, 50, 100, 400):
        items = raw(data.queries, fetched)
        scores = np.einsum("qd,qkd->qk", data.queries, data.gallery[items])
        gates = np.asarray(dbn.gates_from_top_1(items[:, 0], dual))
        scores = scores - np.einsum("qt,tqk->qk", gates, np.asarray(dual.bias)[:, items])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        found = recall(np.take_along_axis(items, best, axis=1), expected)
        figures.append(Figure(f"raw index, {fetched} fetched and scored again", found, "recall@10"))
    return figures


def by_precision(data: Data) -> list[Figure]:
    """Corrected vectors stored in fewer bits, from biases of three forms."""
    figures = []
    for betas in (BETAS, FLAT_BETAS):
        mean = fitted(data, betas)
        # As released: a sum over the bank where the library takes a mean.
        offset = sum(np.log(len(bank)) for bank in (data.query_bank, data.gallery_bank)) / sum(
            betas
        )
        summed = dbn.Correction(mean.bias + np.float32(offset / mean.num_terms), None)
        expected = exact(data, mean)
        forms = {
            "sum": vectors_of(data, summed, center=False),
            "mean": vectors_of(data, mean, center=False),
            "centered": vectors_of(data, mean),
        }
        for stored in ("Flat", "SQfp16", "SQbf16", "SQ8", "uniform 8 bits"):
            for form, (queries, gallery) in forms.items():
                build, rows = faiss_index("Flat"), gallery
                if stored == "uniform 8 bits":  # one scale for all columns, as some stores have
                    scale = np.abs(gallery).max() / np.float32(127)
                    rows = np.round(gallery / scale) * scale
                else:
                    build = faiss_index(stored)
                found = recall(build(rows)(queries, K), expected)
                name = f"betas {betas[0]:g}/{betas[1]:g}, {stored}"
                figures.append(Figure(name, found, form))
    return figures


def effect(data: Data) -> list[Figure]:
    """How much there is to correct."""
    correction = fitted(data, BETAS)
    lists = {"raw": exact(data, None), "DualIS": exact(data, correction)}
    counts = {
        name: dbn.hubness.k_occurrence(found, len(data.gallery)) for name, found in lists.items()
    }
    return [
        *(
            Figure("skewness of N_10", float(dbn.hubness.skewness(count)), name)
            for name, count in counts.items()
        ),
        Figure("overlap@10 with raw", recall(lists["DualIS"], lists["raw"]), "DualIS"),
    ]


TABLES = {
    "effect": effect,
    "engines": by_engine,
    "two searches": two_searches,
    "precision": by_precision,
}


def table(record: Record) -> list[str]:
    """One line per name, one column per kind of figure."""
    kinds = list(dict.fromkeys(figure.unit for figure in record.figures))
    rows: dict[str, dict[str, float]] = {}
    for figure in record.figures:
        rows.setdefault(figure.name, {})[figure.unit] = figure.value
    width = max(map(len, rows))
    lines = [record.title, f"{'':{width}}" + "".join(f"{kind:>13}" for kind in kinds)]
    for name, values in rows.items():
        cells = (f"{values[kind]:.3f}" if kind in values else "" for kind in kinds)
        lines.append((f"{name:{width}}" + "".join(f"{cell:>13}" for cell in cells)).rstrip())
    return lines


def run(data: Data, name: str) -> list[Record]:
    """All tables."""
    sizes = {field: len(rows) for field, rows in data._asdict().items()}
    sizes["dim"] = data.gallery.shape[1]
    shape = ", ".join(f"{key} {value}" for key, value in sizes.items())
    return [
        Record("indexes", f"{topic}: {name} ({shape})", sizes, make(data))
        for topic, make in TABLES.items()
    ]


def main() -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in {"gallery": 20_000, "queries": 500, "bank": 2_000, "dim": 64}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--set", metavar="FILE.npz", dest="path")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    options = parser.parse_args()
    print(environment.summary(), end="\n\n")
    if options.path is not None:
        data, name = of_set(options.path), Path(options.path).parent.name
    else:
        sizes = (options.gallery, options.queries, options.bank, options.dim)
        data, name = synthetic(*sizes), "synthetic"
    records = run(data, name)
    for record in records:
        print(*table(record), sep="\n", end="\n\n")
    if options.json is not None:
        report.write(records, options.json)


if __name__ == "__main__":
    main()
