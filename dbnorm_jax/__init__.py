"""Correct hubness in embedding retrieval with Dual Bank Normalization, in JAX.

    query and gallery banks -> bank_statistics -> a normalizer -> apply_correction or top_k

Names resolve on first use, so that importing the package imports neither JAX nor optax.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from dbnorm_jax._src import attribution as attribution
    from dbnorm_jax._src import baselines as baselines
    from dbnorm_jax._src import growing as growing
    from dbnorm_jax._src import hubness as hubness
    from dbnorm_jax._src import metrics as metrics
    from dbnorm_jax._src import out_of_core as out_of_core
    from dbnorm_jax._src import sharding as sharding
    from dbnorm_jax._src import tuning as tuning
    from dbnorm_jax._src.banks import bank_statistics as bank_statistics
    from dbnorm_jax._src.banks import merge as merge
    from dbnorm_jax._src.banks import responsibilities as responsibilities
    from dbnorm_jax._src.banks import stream_bank_statistics as stream_bank_statistics
    from dbnorm_jax._src.collectives import all_merge as all_merge
    from dbnorm_jax._src.conformance import published_scores as published_scores
    from dbnorm_jax._src.inner_products import gates_from_top_1 as gates_from_top_1
    from dbnorm_jax._src.inner_products import inner_product_gallery as inner_product_gallery
    from dbnorm_jax._src.inner_products import inner_product_queries as inner_product_queries
    from dbnorm_jax._src.inner_products import inner_product_vectors as inner_product_vectors
    from dbnorm_jax._src.io import load as load
    from dbnorm_jax._src.io import read_provenance as read_provenance
    from dbnorm_jax._src.io import save as save
    from dbnorm_jax._src.largest import largest_similarities as largest_similarities
    from dbnorm_jax._src.largest import (
        stream_largest_similarities as stream_largest_similarities,
    )
    from dbnorm_jax._src.normalizers import (
        dual_dynamic_inverted_softmax as dual_dynamic_inverted_softmax,
    )
    from dbnorm_jax._src.normalizers import dual_inverted_softmax as dual_inverted_softmax
    from dbnorm_jax._src.normalizers import dynamic_inverted_softmax as dynamic_inverted_softmax
    from dbnorm_jax._src.normalizers import inverted_softmax as inverted_softmax
    from dbnorm_jax._src.retrieval import apply_correction as apply_correction
    from dbnorm_jax._src.retrieval import gates as gates
    from dbnorm_jax._src.retrieval import semantic_search as semantic_search
    from dbnorm_jax._src.retrieval import stream_top_k as stream_top_k
    from dbnorm_jax._src.retrieval import top_k as top_k
    from dbnorm_jax._src.similarity import cosine_similarity as cosine_similarity
    from dbnorm_jax._src.similarity import dot_product as dot_product
    from dbnorm_jax._src.similarity import negative_squared_euclidean as negative_squared_euclidean
    from dbnorm_jax._src.soft import soft_activation as soft_activation
    from dbnorm_jax._src.soft import soft_gates as soft_gates
    from dbnorm_jax._src.soft import stream_soft_activation as stream_soft_activation
    from dbnorm_jax._src.soft import stream_soft_gates as stream_soft_gates
    from dbnorm_jax._src.tuning import auto as auto
    from dbnorm_jax._src.types import BankStatistics as BankStatistics
    from dbnorm_jax._src.types import Correction as Correction
    from dbnorm_jax._src.types import LargestSimilarities as LargestSimilarities
    from dbnorm_jax._src.types import SearchResult as SearchResult

_MODULES = (
    "attribution",
    "baselines",
    "growing",
    "hubness",
    "metrics",
    "out_of_core",
    "sharding",
    "tuning",
)
_HOME = {
    "BankStatistics": "types",
    "Correction": "types",
    "LargestSimilarities": "types",
    "SearchResult": "types",
    "all_merge": "collectives",
    "apply_correction": "retrieval",
    "auto": "tuning",
    "bank_statistics": "banks",
    "cosine_similarity": "similarity",
    "dot_product": "similarity",
    "dual_dynamic_inverted_softmax": "normalizers",
    "dual_inverted_softmax": "normalizers",
    "dynamic_inverted_softmax": "normalizers",
    "gates": "retrieval",
    "gates_from_top_1": "inner_products",
    "inner_product_gallery": "inner_products",
    "inner_product_queries": "inner_products",
    "inner_product_vectors": "inner_products",
    "inverted_softmax": "normalizers",
    "largest_similarities": "largest",
    "load": "io",
    "merge": "banks",
    "negative_squared_euclidean": "similarity",
    "published_scores": "conformance",
    "read_provenance": "io",
    "responsibilities": "banks",
    "save": "io",
    "semantic_search": "retrieval",
    "soft_activation": "soft",
    "soft_gates": "soft",
    "stream_bank_statistics": "banks",
    "stream_largest_similarities": "largest",
    "stream_soft_activation": "soft",
    "stream_soft_gates": "soft",
    "stream_top_k": "retrieval",
    "top_k": "retrieval",
}

__all__ = ["__version__", *_HOME, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Resolves a public name on first use (PEP 562)."""
    if name in _MODULES:
        value = importlib.import_module(f"dbnorm_jax._src.{name}")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"dbnorm_jax._src.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'dbnorm_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
