"""From a Choice to a Correction, wherever the statistics come from."""

from collections.abc import Callable

from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities
from dbnorm_jax._src.corrections.balance import dual_dynamic_inverted_softmax, dual_inverted_softmax
from dbnorm_jax._src.corrections.means import nearest_neighbor_normalization
from dbnorm_jax._src.tuning.choice import Choice


def fit_chosen(
    choice: Choice,
    statistics: Callable[[str, float, int], BankStatistics],
    largest: Callable[[int], LargestSimilarities],
) -> Correction:
    """The correction that was chosen, if it is not raw.

    Args:
      choice: concrete.
      statistics: ("query" or "gallery" bank, beta, k) -> those of the bank.
      largest: k -> the largest similarities to the query bank.
    """
    row, name = int(choice.chosen), choice.name
    weight, k = float(choice.weight_query[row]), 1 if choice.gated else 0
    if "nnn" in name:
        correction = nearest_neighbor_normalization(largest(int(choice.k[row])), weight=weight)
        if not choice.gated:
            return correction
        active = statistics("query", 1 / float(choice.spreads[0]), k).active
        assert active is not None
        return Correction(correction.bias, active[None])
    query_statistics = statistics("query", float(choice.beta_query[row]), k)
    if "dual" in name:
        gallery_statistics = statistics("gallery", float(choice.beta_gallery[row]), k)
        make = dual_dynamic_inverted_softmax if choice.gated else dual_inverted_softmax
        weights = (weight, float(choice.weight_gallery[row]))
        return make(query_statistics, gallery_statistics, weights=weights)
    active = query_statistics.active
    return Correction(
        weight * query_statistics.bias[None], None if active is None else active[None]
    )
