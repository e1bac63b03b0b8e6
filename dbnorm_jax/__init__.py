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
    from dbnorm_jax._src.core.prepared import PreparedGallery as PreparedGallery
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
    from dbnorm_jax._src.retrieval.prepared import prepare_gallery as prepare_gallery
    from dbnorm_jax._src.retrieval.published import published_scores as published_scores
    from dbnorm_jax._src.retrieval.rescoring import rescore as rescore
    from dbnorm_jax._src.retrieval.search import apply_correction as apply_correction
    from dbnorm_jax._src.retrieval.search import certified_queries as certified_queries
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
# Modules beside this one, and the names of this one by the module of `_src` that they live in.
_MODULES = ("attribution", "baselines", "growing", "hubness", "metrics", "out_of_core", "tuning")
_NAMES = {
    "core.prepared": "PreparedGallery",
    "core.similarity": "cosine_similarity dot_product negative_squared_euclidean",
    "core.types": "BankStatistics Correction LargestSimilarities SearchResult",
    "corrections.balance": (
        "dual_dynamic_inverted_softmax dual_inverted_softmax dynamic_inverted_softmax "
        "inverted_softmax"
    ),
    "files.state": "load read_provenance save",
    "places.mesh.exchange": "all_merge",
    "retrieval.index_vectors": (
        "gates_from_top_1 inner_product_gallery inner_product_queries inner_product_vectors"
    ),
    "retrieval.prepared": "prepare_gallery",
    "retrieval.published": "published_scores",
    "retrieval.rescoring": "rescore",
    "retrieval.search": (
        "apply_correction certified_queries gates semantic_search stream_top_k top_k"
    ),
    "retrieval.soft": "soft_activation soft_gates stream_soft_activation stream_soft_gates",
    "statistics.bank": "bank_statistics merge responsibilities stream_bank_statistics subtract",
    "statistics.largest": "largest_similarities stream_largest_similarities",
    "tuning.tune": "auto",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
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
