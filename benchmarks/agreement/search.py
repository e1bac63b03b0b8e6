"""log Z and nearest neighbors beside SciPy, scikit-learn and faiss."""

from typing import Any

import numpy as np

import dbnorm_jax as dbn
from benchmarks.agreement.inputs import (
    Errors,
    compared,
    embeddings,
    exact,
    given,
    matrices,
    norms,
    ulps,
)

# --- log Z ----------------------------------------------------------------------------------------


@compared("scipy", "max(1, beta max|s|)", 16, "float32 float64 bfloat16")
def log_z_of_matrices(dtype: str, seed: int) -> Errors:
    """Log Z of a matrix."""
    from scipy.special import logsumexp

    for name, similarities, beta in matrices(dtype, seed):
        exponents = np.asarray(beta * exact(similarities), np.longdouble)
        ours = dbn.bank_statistics(similarities, beta=beta).log_normalizer
        scale = np.maximum(1, np.abs(exponents).max(axis=0))
        yield name, ulps(ours, logsumexp(exponents, axis=0), scale, dtype)


@compared("scipy", "max(1, beta max|b| |g|)", 16, "float32 float64 bfloat16")
def log_z_streamed(dtype: str, seed: int) -> Errors:
    """Log Z, streamed."""
    from scipy.special import logsumexp

    for name, bank, gallery in embeddings(dtype, seed):
        size = (norms(exact(bank))[:, None] * norms(exact(gallery))).max(axis=0)
        for largest in (20.0, 1e3, 1e4):
            beta = float(np.float32(largest / size.max()))
            exponents = beta * (exact(bank) @ exact(gallery).T)
            ours = dbn.stream_bank_statistics(bank, gallery, beta=beta, chunk_size=16)
            error = ulps(
                ours.log_normalizer,
                logsumexp(exponents, axis=0),
                np.maximum(1, beta * size),
                dtype,
            )
            yield f"{name}, beta max s {largest:g}", error


@compared("scipy", "max(1, beta max|s|)", 4)
def responsibilities(dtype: str, seed: int) -> Errors:
    """Responsibilities."""
    from scipy.special import softmax

    for name, similarities, beta in matrices(dtype, seed):
        if name == "huge":
            continue  # where an ulp of the exponent is 1e20, a share has no digits
        ours = dbn.responsibilities(similarities, dbn.bank_statistics(similarities, beta=beta))
        exponents = beta * exact(similarities)
        scale = np.maximum(1, np.abs(exponents).max(axis=0))
        yield name, ulps(ours, softmax(exponents, axis=0), scale, dtype)


# --- neighbors ------------------------------------------------------------------------------------


def lost(scores: np.ndarray, found: Any, peer: Any) -> np.ndarray:
    """What our items score less, place by place, than the peer's: [num_queries, k]."""
    ours, theirs = (np.take_along_axis(scores, np.asarray(i), axis=1) for i in (found, peer))
    return np.maximum(theirs - ours, 0)


def in_order(scores: np.ndarray, found: Any) -> bool:
    """Whether equal scores stand in the order of the gallery; of exact scores only."""
    found = np.asarray(found)
    ours = np.take_along_axis(scores, found, axis=1)
    ordered = (ours[:, 1:] < ours[:, :-1]) | (found[:, 1:] > found[:, :-1])
    return bool(ordered.all())


@compared("sklearn", "1", 4)
def nearest_by_cosine(dtype: str, seed: int) -> Errors:
    """top-10 by cosine."""
    from sklearn.neighbors import NearestNeighbors

    for name, queries, gallery in embeddings(dtype, seed):
        k = min(10, gallery.shape[0])
        peer = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
        theirs = peer.fit(exact(gallery)).kneighbors(exact(queries), return_distance=False)
        ours = dbn.stream_top_k(
            queries, gallery, k, similarity_fn=dbn.cosine_similarity, chunk_size=16
        )
        unit = [rows / norms(rows)[:, None] for rows in (exact(queries), exact(gallery))]
        scores = unit[0] @ unit[1].T
        yield name, ulps(lost(scores, ours.indices, theirs), np.zeros((len(unit[0]), k)), 1, dtype)
        yield (
            f"{name}: values",
            ulps(ours.scores, np.take_along_axis(scores, np.asarray(ours.indices), 1), 1, dtype),
        )


@compared("faiss", "max|q| |g|", 4)
def nearest_by_inner_product(dtype: str, seed: int) -> Errors:
    """top-10 by inner product."""
    for name, queries, gallery in embeddings(dtype, seed):
        k = min(10, gallery.shape[0])
        ours = dbn.stream_top_k(queries, gallery, k, chunk_size=16)
        theirs = faiss_nearest(queries, gallery, k)
        scores = exact(queries) @ exact(gallery).T
        size = norms(exact(queries))[:, None] * norms(exact(gallery)).max()
        yield (
            name,
            ulps(lost(scores, ours.indices, theirs), 0 * scores[:, :k], size, dtype),
        )
        if name in {"ties", "equal items"}:  # ties of whole numbers are exact
            yield f"{name}: lowest index", 0.0 if in_order(scores, ours.indices) else np.inf


@compared("sklearn", "(|q| + max|g|)^2", 4)
def nearest_by_distance(dtype: str, seed: int) -> Errors:
    """top-10 by distance."""
    from sklearn.neighbors import NearestNeighbors

    for name, queries, gallery in embeddings(dtype, seed):
        k = min(10, gallery.shape[0])
        peer = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(exact(gallery))
        theirs = peer.kneighbors(exact(queries), return_distance=False)
        ours = dbn.stream_top_k(
            queries, gallery, k, similarity_fn=dbn.negative_squared_euclidean, chunk_size=16
        )
        scores = -np.square(exact(queries)[:, None] - exact(gallery)[None]).sum(axis=2)
        size = np.square(norms(exact(queries))[:, None] + norms(exact(gallery)).max())
        yield (
            name,
            ulps(lost(scores, ours.indices, theirs), 0 * scores[:, :k], size, dtype),
        )


def faiss_nearest(rows: Any, items: Any, k: int, *, values: bool = False) -> np.ndarray:
    """Items of the k largest inner products, or these, [num_rows, k]."""
    import faiss

    rows, items = (np.ascontiguousarray(part, np.float32) for part in (rows, items))
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    found = index.search(rows, k)
    return found[0] if values else found[1]


@compared("faiss", "max|q| |g| + max|bias|", 4, "float32")
def nearest_of_corrected(dtype: str, seed: int) -> Errors:
    """top-10 of DualDIS, as vectors."""
    for name, queries, gallery in embeddings(dtype, seed, unit=True):
        if name in {"tiny", "huge"}:
            continue  # of unit rows only
        draw = np.random.default_rng(seed + 1)
        banks = [given(draw.standard_normal((50, gallery.shape[1])), dtype) for _ in range(2)]
        size = max(norms(exact(bank)).max() for bank in banks) * norms(exact(gallery)).max()
        for largest in (20.0, 1e4):
            beta = largest / size
            fitted = [dbn.stream_bank_statistics(bank, gallery, beta=beta) for bank in banks]
            correction = dbn.dual_dynamic_inverted_softmax(*fitted)
            raw = dbn.dot_product(queries, gallery)
            k = min(10, gallery.shape[0])
            vectors = dbn.inner_product_vectors(
                queries, gallery, correction, gates=dbn.gates(raw, correction)
            )
            theirs = faiss_nearest(*vectors, k)
            ours = dbn.stream_top_k(queries, gallery, k, correction, chunk_size=16)
            bias, gates = exact(correction.bias), exact(dbn.gates(raw, correction))
            scores = exact(queries) @ exact(gallery).T - gates @ bias
            size_of_pairs = norms(exact(queries))[:, None] * norms(exact(gallery)).max()
            scale = size_of_pairs + np.abs(bias).max()
            error = lost(scores, ours.indices, theirs)
            yield f"{name}, beta max s {largest:g}", ulps(error, 0 * error, scale, dtype)
