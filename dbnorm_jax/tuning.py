"""Choose the correction from the banks alone: never worse than raw.

    banks = {"query_bank": query_bank, "gallery_bank": gallery_bank, "pairs": pairs}
    choice = tuning.tune(gallery=gallery, **banks)
    correction = tuning.fit(choice, gallery=gallery, **banks)

or both in one call, `dbnorm_jax.auto`. The bank's pairs are dealt into folds; the queries of each
fold are scored under some 90 corrections fitted on the other folds. Raw is kept unless a candidate
gains significantly, all of them accounted for; else those that are best on bootstraps of the
queries are mixed. `choice.guarantee` is what is then proven of R@1 and MRR.

    >>> import dbnorm_jax as dbn
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> items = rng.normal(size=(600, 16)).astype(np.float32)
    >>> queries = items + rng.normal(size=items.shape).astype(np.float32)
    >>> queries += 2 * items.mean(axis=0) + 0.5            # all alike: some items are hubs
    >>> known = {"gallery": items[:300], "query_bank": queries[300:], "gallery_bank": items[300:]}
    >>> choice = dbn.tuning.tune(**known, pairs=np.arange(300))
    >>> correction = dbn.tuning.fit(choice, **known)
    >>> ranks = [dbn.metrics.stream_ranks(queries[:300], items[:300], np.arange(300), fitted)
    ...          for fitted in (None, correction)]
    >>> bool(dbn.metrics.recall_at(ranks[1], 1) > dbn.metrics.recall_at(ranks[0], 1))
    True
"""

from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.tuning.choice import Choice
from dbnorm_jax._src.tuning.likely_mistakes import likely_mistakes
from dbnorm_jax._src.tuning.tune import fit, tune

__all__ = ["Choice", "fit", "likely_mistakes", "tune"]

publish(__name__, *(globals()[name] for name in __all__))
