"""What tuning decides, and all it looked at: a flat pytree of arrays that saves and loads.

The table has one row per candidate, raw first; `chosen` is the row that `tuning.fit` fits.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.corrections.table import TABLE

# Why the choice is what it is; `Choice.reason_code` is the place here. The last but one is of older
# files.
REASONS = (
    "its held-out gain over raw is significant, all candidates looked at accounted for",
    "raw: without `pairs` nothing can be held out, and no correction is proven better",
    "raw: too few pairs of distinct items to hold any out",
    "raw: no candidate gains significantly over raw on held-out pairs",
    "raw: the similarities do not vary within a row, so nothing can be corrected",
    "raw: the gallery bank is unlike the gallery, so held-out pairs say nothing about it",
    "its held-out gain over raw is significant; refined from a point of the grid, on other queries",
    "raw: queries of the bank lie on wrong items, so held-out pairs and biases mislead",
)
CHOSEN, NO_PAIRS, FEW_PAIRS, NOT_PROVEN, CONSTANT, UNLIKE, _, WRONG_PAIRS = range(len(REASONS))

# What candidates differ in beside the method; 0 where a method has no such parameter.
COLUMNS = ("beta_query", "beta_gallery", "k", "weight_query", "weight_gallery")

# Share of nearest neighbors within the own sample: one half where two samples are alike. Groups of
# near duplicates that stay together raise it, another modality brings it near 1.
STRANGE, FOREIGN = 0.75, 0.95


def methods() -> tuple[str, ...]:
    """What can be chosen: raw, and the rows of the table with a grid. Files hold the place here."""
    return ("raw", *(name for name, row in TABLE.items() if row.grid))


def is_swapped(query_own: float, gallery_own: float) -> bool:
    """Whether the query bank looks like the gallery, and the gallery bank does not."""
    return gallery_own > STRANGE and query_own < gallery_own - 0.2


def is_foreign(query_own: float, gallery_own: float) -> bool:
    """Whether the gallery bank looks nothing like the gallery."""
    return gallery_own > FOREIGN or is_swapped(query_own, gallery_own)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The correction chosen from the banks, with the evidence.

    Attributes:
      chosen: [] int32, the row of the table that is to be fitted; 0 is raw.
      method: [num_candidates] int32, place among the methods that have a grid, after raw.
      beta_query: [num_candidates], inverse temperature of the query bank, 1/[unit of similarity]; 0
        where the method has none, and so below.
      beta_gallery: [num_candidates], of the gallery bank.
      k: [num_candidates] int32, largest similarities averaged.
      weight_query: [num_candidates], factor of the query bank's bias.
      weight_gallery: [num_candidates], of the gallery bank's.
      gain: [num_candidates], mean gain over raw of the criterion on held-out pairs; for log ranks
        in nats: 0.1 means that the geometric mean rank falls by a tenth.
      standard_error: [num_candidates], of the gain.
      p_value: [num_candidates], one-sided, adjusted for all candidates (sign flips, max-T).
      reciprocal_rank_gain: [num_candidates], gain in mean reciprocal rank on the same queries.
      recall_gain: [num_candidates], gain in R@1 on the same queries, in [-1, 1].
      spreads: [2], standard deviation of similarities within a row, query and gallery bank.
      active_share: [2], share of the items ranked that are in the bank's activation set; near 1 the
        gate is always open and DIS is IS.
      open_share: [2], share of held-out queries whose gate is open.
      own_share: [2], share of a bank item's nearest neighbors, among equally many bank and gallery
        items, that are bank items; 1/2 where both are alike, near 1 between modalities.
      num_equal_rows: [3] int32: query-bank rows that equal a gallery item (wrong modality),
        gallery-bank rows that equal one (the bank contains the test), query-bank rows that equal a
        gallery-bank row.
      num_held_out: queries held out in turn (static).
      num_columns: items they were ranked among (static).
      num_folds: folds of the pairs (static).
      reason_code: place in `REASONS` (static).
      num_gallery_bank: rows of the gallery bank; 0 where the gallery stood in for one, and in
        choices of files that do not say (static).
      num_wrong_pairs: about how many pairs have their query on another item than their own, where a
        test finds that there are such pairs; else 0, and in choices of files that do not say
        (static).

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
      >>> choice = dbn.tuning.tune(query_bank=rows, gallery_bank=rows + 1, pairs=np.arange(20))
      >>> print(choice.name, choice.parameters, choice.reason)
      raw {} raw: too few pairs of distinct items to hold any out
    """

    chosen: jax.Array
    method: jax.Array
    beta_query: jax.Array
    beta_gallery: jax.Array
    k: jax.Array
    weight_query: jax.Array
    weight_gallery: jax.Array
    gain: jax.Array
    standard_error: jax.Array
    p_value: jax.Array
    reciprocal_rank_gain: jax.Array
    recall_gain: jax.Array
    spreads: jax.Array
    active_share: jax.Array
    open_share: jax.Array
    own_share: jax.Array
    num_equal_rows: jax.Array
    num_held_out: int = dataclasses.field(metadata={"static": True})
    num_columns: int = dataclasses.field(metadata={"static": True})
    num_folds: int = dataclasses.field(metadata={"static": True})
    reason_code: int = dataclasses.field(metadata={"static": True})
    num_gallery_bank: int = dataclasses.field(metadata={"static": True}, default=0)
    num_wrong_pairs: int = dataclasses.field(metadata={"static": True}, default=0)

    @property
    def name(self) -> str:
        """The chosen method: "raw", or its name in the table."""
        return methods()[int(self.method[int(self.chosen)])]

    @property
    def gated(self) -> bool:
        """Whether the chosen method acts on a query only where a gate is open."""
        return self.name != "raw" and TABLE[self.name].gated

    @property
    def parameters(self) -> dict[str, float]:
        """Those that the chosen method has."""
        row = int(self.chosen)
        values = {name: np.asarray(getattr(self, name))[row].item() for name in COLUMNS}
        return {name: value for name, value in values.items() if value}

    @property
    def reason(self) -> str:
        """Why."""
        return REASONS[self.reason_code]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks wrong with the banks, in sentences."""
        found = []
        wrong, leaked, same = (int(count) for count in self.num_equal_rows)
        if wrong:
            found.append(f"{wrong} rows of the query bank equal gallery items: wrong modality?")
        if leaked:
            found.append(
                f"{leaked} rows of the gallery bank equal gallery items: the banks contain items "
                f"of the test, and figures on it are transductive"
            )
        if same:
            found.append(f"{same} rows of the query bank equal rows of the gallery bank")
        query_own, gallery_own = (float(share) for share in self.own_share)
        if is_swapped(query_own, gallery_own):
            found.append(
                "the query bank is more like the gallery than the gallery bank is: swapped?"
            )
        elif gallery_own > STRANGE:
            found.append(
                f"the gallery bank is unlike the gallery (own share {gallery_own:.2f}, alike "
                f"0.50): another domain or modality"
            )
        if self.num_wrong_pairs:
            found.append(
                f"about {self.num_wrong_pairs} queries of the bank lie on other items than their "
                f"own, which are no nearer than random ones: poisoned or mislabeled?"
            )
        if self.gated and float(self.active_share[0]) > 0.95:
            found.append("nearly every item is active: the gates are always open")
        return tuple(found)

    def summary(self) -> str:
        """What was chosen, on what evidence, and what looks wrong; some lines."""
        values = ", ".join(f"{name} {value:.4g}" for name, value in self.parameters.items())
        lines = [f"{self.name}({values})" if values else self.name, self.reason]
        if self.num_held_out:
            row = int(self.chosen) or int(np.asarray(self.gain)[1:].argmax()) + 1
            about: Any = np.asarray
            lines.append(
                f"{'chosen' if int(self.chosen) else 'best'} of {len(self.method)} candidates on "
                f"{self.num_held_out} held-out pairs among {self.num_columns} items: gain "
                f"{about(self.gain)[row]:+.3f} ± {about(self.standard_error)[row]:.3f}, adjusted "
                f"p {about(self.p_value)[row]:.3f}, R@1 {100 * about(self.recall_gain)[row]:+.1f} "
                f"points"
            )
        return "\n".join([*lines, *self.warnings])


publish("dbnorm_jax.tuning", Choice)
