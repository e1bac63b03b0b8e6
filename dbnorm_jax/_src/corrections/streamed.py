"""Embeddings as a source of statistics: what the rows of the table are fitted from."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from dbnorm_jax._src.core.similarity import SimilarityFn, dot_product
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities
from dbnorm_jax._src.corrections import transport
from dbnorm_jax._src.passes.streaming import DEFAULT_CHUNK_SIZE
from dbnorm_jax._src.statistics.bank import stream_bank_statistics
from dbnorm_jax._src.statistics.largest import stream_largest_similarities


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """Embeddings of both banks against those of a gallery, a pass per question."""

    gallery: Any
    query_bank: Any
    gallery_bank: Any = None  # None: the gallery, each item left out of its own sum
    # By bank, "query" or "gallery", the gallery rows that a bank row does not enter.
    exclude: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    similarity_fn: SimilarityFn = dot_product
    chunk_size: int = DEFAULT_CHUNK_SIZE
    # What makes the statistics; their namesakes out of core take embeddings of any size.
    bank_statistics: Callable[..., BankStatistics] = stream_bank_statistics
    largest_similarities: Callable[..., LargestSimilarities] = stream_largest_similarities
    weights: Any = None  # [num_query_bank], of its rows in statistics; None: all alike

    def statistics(self, bank: str, beta: Any, k: int) -> BankStatistics:
        """In one pass over bank x gallery."""
        rows, exclude = self.query_bank, self.exclude.get(bank)
        if bank == "gallery":
            rows = self.gallery if self.gallery_bank is None else self.gallery_bank
            if self.gallery_bank is None and exclude is None:
                # An item's similarity to itself would drown its sum.
                exclude = jnp.arange(len(self.gallery))
        return self.bank_statistics(
            rows,
            self.gallery,
            beta=beta,
            k=k,
            weights=self.weights if bank == "query" else None,
            exclude=exclude,
            **self._how,
        )

    def largest(self, k: int) -> LargestSimilarities:
        """In one pass over bank x gallery."""
        k, exclude = min(k, len(self.query_bank)), self.exclude.get("query")
        return self.largest_similarities(
            self.query_bank, self.gallery, k=k, exclude=exclude, **self._how
        )

    def sinkhorn(self, temperature: Any, iterations: int, *, dual: bool) -> Correction:
        """In one pass over bank x gallery (dual: and gallery bank) per iteration, in memory."""
        more = {}
        if dual:
            more["gallery_bank"] = self.gallery if self.gallery_bank is None else self.gallery_bank
        return transport.stream_sinkhorn_normalization(
            self.query_bank,
            self.gallery,
            temperature=temperature,
            num_iterations=iterations,
            exclude=self.exclude.get("query"),
            **more,
            **self._how,
        )

    @property
    def _how(self) -> dict[str, Any]:
        return {"similarity_fn": self.similarity_fn, "chunk_size": self.chunk_size}
