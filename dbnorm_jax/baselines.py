"""The field's other corrections, beside which every claim for the paper's four has to stand.

Correction      csls  nearest_neighbor_normalization  distribution_normalization
sinkhorn_normalization  dual_bank_sinkhorn_normalization  hubless_nearest_neighbor
stream_sinkhorn_normalization  dis_sim_local
embeddings      inverse_graph_convolution
scores          globally_corrected  dual_softmax (transductive)
distances       mutual_proximity  local_scaling  nicdm
"""

from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.corrections.means import (
    csls,
    distribution_normalization,
    nearest_neighbor_normalization,
)
from dbnorm_jax._src.corrections.rescaling import (
    dual_softmax,
    globally_corrected,
    local_scaling,
    mutual_proximity,
    nicdm,
)
from dbnorm_jax._src.corrections.transport import (
    dual_bank_sinkhorn_normalization,
    hubless_nearest_neighbor,
    sinkhorn_normalization,
    sinkhorn_residual,
    stream_sinkhorn_normalization,
)
from dbnorm_jax._src.corrections.vectors import dis_sim_local, inverse_graph_convolution

__all__ = [
    "csls",
    "dis_sim_local",
    "distribution_normalization",
    "dual_bank_sinkhorn_normalization",
    "dual_softmax",
    "globally_corrected",
    "hubless_nearest_neighbor",
    "inverse_graph_convolution",
    "local_scaling",
    "mutual_proximity",
    "nearest_neighbor_normalization",
    "nicdm",
    "sinkhorn_normalization",
    "sinkhorn_residual",
    "stream_sinkhorn_normalization",
]

publish(__name__, *(globals()[name] for name in __all__))
