"""Correct hubness in embedding retrieval with Dual Bank Normalization, in JAX.

    query and gallery banks -> bank_statistics -> a normalizer -> apply_correction or top_k

Names resolve on first use, so that importing the package imports neither JAX nor optax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dbnorm_jax._src.core.version import __version__ as __version__

if TYPE_CHECKING:
    from dbnorm_jax import attribution as attribution
    from dbnorm_jax import baselines as baselines
    from dbnorm_jax import growing as growing
    from dbnorm_jax import hubness as hubness
    from dbnorm_jax import metrics as metrics
    from dbnorm_jax import out_of_core as out_of_core
    from dbnorm_jax import tuning as tuning
    from dbnorm_jax._src.core.similarity import cosine_similarity as cosine_similarity
    from dbnorm_jax._src.core.similarity import dot_product as dot_product
    from dbnorm_jax._src.core.similarity import (
        negative_squared_euclidean as negative_squared_euclidean,
    )
    from dbnorm_jax._src.core.types import BankStatistics as BankStatistics
    from dbnorm_jax._src.core.types import Correction as Correction
    from dbnorm_jax._src.core.types import LargestSimilarities as LargestSimilarities
    from dbnorm_jax._src.core.types import SearchResult as SearchResult
    from dbnorm_jax._src.corrections.balance import (
        dual_dynamic_inverted_softmax as dual_dynamic_inverted_softmax,
    )
    from dbnorm_jax._src.corrections.balance import dual_inverted_softmax as dual_inverted_softmax
    from dbnorm_jax._src.corrections.balance import (
        dynamic_inverted_softmax as dynamic_inverted_softmax,
    )
    from dbnorm_jax._src.corrections.balance import inverted_softmax as inverted_softmax
    from dbnorm_jax._src.files.state import load as load
    from dbnorm_jax._src.files.state import read_provenance as read_provenance
    from dbnorm_jax._src.files.state import save as save
    from dbnorm_jax._src.places.mesh.exchange import all_merge as all_merge
    from dbnorm_jax._src.retrieval.index_vectors import gates_from_top_1 as gates_from_top_1
    from dbnorm_jax._src.retrieval.index_vectors import (
        inner_product_gallery as inner_product_gallery,
    )
    from dbnorm_jax._src.retrieval.index_vectors import (
        inner_product_queries as inner_product_queries,
    )
    from dbnorm_jax._src.retrieval.index_vectors import (
        inner_product_vectors as inner_product_vectors,
    )
    from dbnorm_jax._src.retrieval.published import published_scores as published_scores
    from dbnorm_jax._src.retrieval.search import apply_correction as apply_correction
    from dbnorm_jax._src.retrieval.search import gates as gates
    from dbnorm_jax._src.retrieval.search import semantic_search as semantic_search
    from dbnorm_jax._src.retrieval.search import stream_top_k as stream_top_k
    from dbnorm_jax._src.retrieval.search import top_k as top_k
    from dbnorm_jax._src.retrieval.soft import soft_activation as soft_activation
    from dbnorm_jax._src.retrieval.soft import soft_gates as soft_gates
    from dbnorm_jax._src.retrieval.soft import stream_soft_activation as stream_soft_activation
    from dbnorm_jax._src.retrieval.soft import stream_soft_gates as stream_soft_gates
    from dbnorm_jax._src.statistics.bank import bank_statistics as bank_statistics
    from dbnorm_jax._src.statistics.bank import merge as merge
    from dbnorm_jax._src.statistics.bank import responsibilities as responsibilities
    from dbnorm_jax._src.statistics.bank import stream_bank_statistics as stream_bank_statistics
    from dbnorm_jax._src.statistics.bank import subtract as subtract
    from dbnorm_jax._src.statistics.largest import largest_similarities as largest_similarities
    from dbnorm_jax._src.statistics.largest import (
        stream_largest_similarities as stream_largest_similarities,
    )
    from dbnorm_jax._src.tuning.tune import auto as auto
# Modules beside this one, and where the names of this one live.
_MODULES = ("attribution", "baselines", "growing", "hubness", "metrics", "out_of_core", "tuning")
_HOME = {
    "BankStatistics": "core.types",
    "Correction": "core.types",
    "LargestSimilarities": "core.types",
    "SearchResult": "core.types",
    "all_merge": "places.mesh.exchange",
    "apply_correction": "retrieval.search",
    "auto": "tuning.tune",
    "bank_statistics": "statistics.bank",
    "cosine_similarity": "core.similarity",
    "dot_product": "core.similarity",
    "dual_dynamic_inverted_softmax": "corrections.balance",
    "dual_inverted_softmax": "corrections.balance",
    "dynamic_inverted_softmax": "corrections.balance",
    "gates": "retrieval.search",
    "gates_from_top_1": "retrieval.index_vectors",
    "inner_product_gallery": "retrieval.index_vectors",
    "inner_product_queries": "retrieval.index_vectors",
    "inner_product_vectors": "retrieval.index_vectors",
    "inverted_softmax": "corrections.balance",
    "largest_similarities": "statistics.largest",
    "load": "files.state",
    "merge": "statistics.bank",
    "negative_squared_euclidean": "core.similarity",
    "published_scores": "retrieval.published",
    "read_provenance": "files.state",
    "responsibilities": "statistics.bank",
    "save": "files.state",
    "semantic_search": "retrieval.search",
    "soft_activation": "retrieval.soft",
    "soft_gates": "retrieval.soft",
    "stream_bank_statistics": "statistics.bank",
    "stream_largest_similarities": "statistics.largest",
    "stream_soft_activation": "retrieval.soft",
    "stream_soft_gates": "retrieval.soft",
    "stream_top_k": "retrieval.search",
    "subtract": "statistics.bank",
    "top_k": "retrieval.search",
}

__all__ = ["__version__", *_HOME, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Resolves a public name on first use (PEP 562)."""
    if name in _MODULES:
        value = importlib.import_module(f"dbnorm_jax.{name}")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"dbnorm_jax._src.{_HOME[name]}"), name)
        value.__module__ = __name__
    else:
        raise AttributeError(f"module 'dbnorm_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
