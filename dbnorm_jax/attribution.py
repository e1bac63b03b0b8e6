"""Attribution: what made an item a hub, moved a query or looks planted; a bank item's worth.

    bias_contributors   the bank items behind the bias of given gallery items
    top_1_changes       the queries whose top-1 a correction changed, and which term changed it
    top_1_flips         the bank items that flip a top-1 when they go or move
    influence           what each bank item is worth in R@1, by leaving it out
    hub_screening       the gallery items retrieved as no clean item is: maybe planted

All are streamed: none holds bank x gallery or queries x gallery.

    >>> import dbnorm_jax as dbn
    >>> import jax.numpy as jnp
    >>> gallery = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> bank = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> statistics = dbn.stream_bank_statistics(bank, gallery, beta=5.0)
    >>> correction = dbn.inverted_softmax(statistics)
    >>> changes = dbn.attribution.top_1_changes(jnp.array([[0.72, 0.7]]), gallery, correction)
    >>> print(changes.changed, changes.old, changes.new)
    [ True] [0] [1]
    >>> behind = dbn.attribution.bias_contributors(bank, gallery, statistics, changes.old, k=2)
    >>> print(behind.indices, behind.effective_number.round(1))
    [[0 1]] [2.]
"""

from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.insight.attribution import (
    Contributors,
    Top1Changes,
    bias_contributors,
    top_1_changes,
)
from dbnorm_jax._src.insight.flips import Top1Flips, top_1_flips
from dbnorm_jax._src.insight.influence import influence
from dbnorm_jax._src.insight.screening import HubScreening, hub_screening

__all__ = [
    "Contributors",
    "HubScreening",
    "Top1Changes",
    "Top1Flips",
    "bias_contributors",
    "hub_screening",
    "influence",
    "top_1_changes",
    "top_1_flips",
]

publish(__name__, *(globals()[name] for name in __all__))
