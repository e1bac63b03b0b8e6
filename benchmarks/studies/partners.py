"""Without pairs: IS and DBSN that leave probable partners out, beside IS as it is.

    python -m benchmarks.studies.partners --set DIR/data.npz ... [--draws 2]

The partner of a bank query b is guessed: P(g | b) is the softmax over gallery and gallery bank of
8/spread s(b, .). A column leaves each row out by so much: its weight is 1 - P(g | b). What is
served is a quarter of the bias of IS at 2/spread, or of DBSN at that temperature.

    declined    raw stays where the mean of the largest P of each row is below 0.5: most partners
                are not to be guessed

Sets: those given, in both directions, with 300 pairs and whole banks, whose pairs nobody sees; and
logs of simulated demand by Zipf's law with exponent 1 (`benchmarks.studies.demand`), in which hubs
are items asked for often as well.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import demand, pairless, pieces
from benchmarks.studies.served import right_items
from benchmarks.studies.significance import print_ways
from dbnorm_jax._cli.reading.sets import EvaluationSet

SURE = 0.5
WAYS = (
    "IS, weight 0.75",
    "IS, weight 0.25",
    "IS without partners",
    "IS without partners, declined",
    "DBSN without partners",
    "DBSN without partners, declined",
)


class Draw(NamedTuple):
    """One draw of a bank."""

    raw: np.ndarray  # [num_queries] bool, right item first
    hits: np.ndarray  # [num_ways, num_queries] bool
    sure: float  # mean of the largest P


def partners(similarities: Any, others: Any, spread: Any) -> jax.Array:
    """P(g | b), [num_query_bank, num_gallery + num_gallery_bank]."""
    return jax.nn.softmax(8 / spread * jnp.concatenate([similarities, others], axis=1), axis=1)


def inverted_softmax(similarities: Any, others: Any, *, weight: float = 0.25) -> dbn.Correction:
    """IS whose columns leave probable partners out."""
    spread = similarities.std(axis=1).mean()
    left = 1 - partners(similarities, others, spread)[:, : similarities.shape[1]]
    left = jnp.maximum(left, 1e-6)  # its logarithm must be a number
    of_left = similarities + jnp.log(left) * spread / 2
    bias = dbn.bank_statistics(of_left, beta=2 / spread, k=0).bias
    bias = bias - jnp.log(left.mean(axis=0)) * spread / 2  # weights that sum to 1
    return dbn.Correction(weight * bias[None])


def dual_bank_sinkhorn(similarities: Any, others: Any, *, weight: float = 0.25) -> dbn.Correction:
    """DBSN whose kernel leaves probable partners out."""
    spread = similarities.std(axis=1).mean()
    left = jnp.maximum(1 - partners(similarities, others, spread), 1e-6)
    kept = jnp.concatenate([similarities, others], axis=1) + jnp.log(left) * spread / 2
    fitted = dbn.baselines.sinkhorn_normalization(kept, temperature=spread / 2, num_iterations=10)
    return dbn.Correction(weight * fitted.bias[:, : similarities.shape[1]])


def run_draw(test: EvaluationSet, _: int) -> Draw:
    """Every way on one bank."""
    gallery, bank = np.asarray(test.gallery), np.asarray(test.query_bank)
    similarities, others = bank @ gallery.T, np.zeros((len(bank), 0), np.float32)
    if test.gallery_bank is not None:
        others = bank @ np.asarray(test.gallery_bank).T
    spread = similarities.std(axis=1).mean()
    sure = float(partners(similarities, others, spread).max(axis=1).mean())
    plain = dbn.bank_statistics(similarities, beta=2 / spread, k=0).bias[None]
    corrections = [None, dbn.Correction(0.75 * plain), dbn.Correction(0.25 * plain)]
    for fit in (inverted_softmax, dual_bank_sinkhorn):
        correction = fit(similarities, others)
        corrections += [correction, correction if sure >= SURE else None]
    asked, right = np.asarray(test.queries) @ gallery.T, right_items(test)
    rows = np.flatnonzero(right.any(axis=1))
    raw, *hits = (
        right[rows, (asked if each is None else asked - np.asarray(each.bias)).argmax(axis=1)[rows]]
        for each in corrections
    )
    return Draw(raw, np.stack(hits), np.float64(sure))


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    asked: Any = pieces.options(__doc__, ("300", "all"), arguments)
    asked.no_emoji = True
    logs = [one for one in demand.planned(asked.sets, asked.draws) if one[0][1] == "Zipf(1)"]
    popular = pairless.popular_sets(asked.bank_sizes, asked.draws)
    found = pieces.collected("partners", Draw, run_draw, asked, [*popular, *logs])
    kinds: dict[str, dict[str, Any]] = {}
    for cell, draws in found.items():
        kind = "given sets"
        if cell[1] == "Zipf(1)":
            kind = "logs of simulated demand"
        elif cell[0].startswith("popular"):
            kind = "popular items, no hubs (simulated)"
        kinds.setdefault(kind, {})[", ".join(cell)] = {
            way: [(draw.raw, draw.hits[place]) for draw in draws] for place, way in enumerate(WAYS)
        }
        sure = np.mean([draw.sure for draw in draws])
        raw = 100 * np.mean([draw.raw.mean() for draw in draws])
        print(f"{', '.join(cell):48} mean of max P {sure:.2f}   raw R@1 {raw:.1f}")
    for kind, cells in kinds.items():
        print_ways(kind, cells)


if __name__ == "__main__":
    main()
