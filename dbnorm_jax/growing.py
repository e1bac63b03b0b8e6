"""State that grows and shrinks: bank items and gallery items that come and go, without a new fit.

    bank items       come: merge            go: subtract, or decay with time
    gallery items    come: add_gallery_items        go: remove_gallery_items

A gallery item has its own column: it comes with one pass of the bank over the new items, and goes
with its column. Only the activation set ties columns together, since an item may enter or leave the
k nearest of any bank row. To keep it exact, keep the bank rows' neighbors, `stream_top_k(bank,
gallery, k)`: 8 k bytes for each bank row.

    >>> import numpy as np
    >>> import dbnorm_jax as dbn
    >>> random = np.random.default_rng(0)
    >>> bank, gallery, new = (random.normal(size=(n, 8)).astype("float32") for n in (50, 30, 5))
    >>> statistics = dbn.stream_bank_statistics(bank, gallery, beta=2.0)
    >>> neighbors = dbn.stream_top_k(bank, gallery, statistics.k)
    >>> grown, _ = dbn.growing.add_gallery_items(statistics, neighbors, bank, new)
    >>> anew = dbn.stream_bank_statistics(bank, np.concatenate([gallery, new]), beta=2.0)
    >>> print((grown.k_occurrence == anew.k_occurrence).all())
    True
"""

from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.retrieval.growing import add_gallery_items, decay, remove_gallery_items
from dbnorm_jax._src.statistics.bank import subtract  # noqa: F401  (public beside merge)

__all__ = ["add_gallery_items", "decay", "remove_gallery_items"]

publish(__name__, *(globals()[name] for name in __all__))
