"""An index backend for mteb: retrieval and reranking tasks, corrected by a bank of other queries.

    SearchEncoderWrapper(model, index_backend=CorrectedIndex(bank))

mteb hands over all documents' embeddings with their ids, then all queries' embeddings. A bank is
embeddings of queries from elsewhere, such as the training split; those of the task would make its
score transductive. Of a reranking task mteb also tells which documents each query may have.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

import dbnorm_jax as dbn

Found = tuple[list[list[float]], list[list[int]]]


class CorrectedIndex:
    """Exact search under IS; without a bank, raw."""

    def __init__(
        self,
        query_bank=None,
        *,
        beta: float = 20.0,
        similarity_fn: Callable[[jax.Array, jax.Array], jax.Array] = dbn.cosine_similarity,
    ) -> None:
        self._bank, self._beta, self._similarity_fn = query_bank, beta, similarity_fn
        self.clear()

    def clear(self) -> None:
        """Forgets all documents."""
        self._parts: list[np.ndarray] = []
        self._ids: list[str] = []

    def add_documents(self, embeddings, idxs: Sequence[str]) -> None:
        """Adds documents: embeddings [n, dim], and their ids."""
        self._parts.append(np.asarray(embeddings))
        self._ids += idxs

    def search(
        self,
        embeddings,
        top_k: int,
        similarity_fn: object = None,  # noqa: ARG002 - the model's, of tensors: ours is of arrays
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        query_idx_to_id: Mapping[int, str] | None = None,
    ) -> Found:
        """Scores and rows of the nearest documents, best first, for each query.

        Where `top_ranked` tells a query's documents, the rows count in that list.
        """
        queries, documents = np.asarray(embeddings), np.concatenate(self._parts)
        correction, similarity = None, {"similarity_fn": self._similarity_fn}
        if self._bank is not None:
            statistics = dbn.stream_bank_statistics(
                np.asarray(self._bank), documents, beta=self._beta, **similarity
            )
            correction = dbn.inverted_softmax(statistics)
        if top_ranked is None:
            k = min(top_k, len(documents))
            found = dbn.stream_top_k(queries, documents, k, correction, **similarity)
            return found.scores.tolist(), found.indices.tolist()
        assert query_idx_to_id is not None
        row = {name: place for place, name in enumerate(self._ids)}
        bias = np.zeros(len(documents)) if correction is None else np.asarray(correction.bias[0])
        scores, places = [], []
        for number, query in enumerate(queries):
            rows = [row[name] for name in top_ranked.get(query_idx_to_id[number], ())]
            if not rows:
                scores.append([])
                places.append([])
                continue
            near = np.asarray(self._similarity_fn(query[None], documents[rows]))[0] - bias[rows]
            order = np.argsort(-near, kind="stable")[:top_k]
            scores.append(near[order].tolist())
            places.append(order.tolist())
        return scores, places
