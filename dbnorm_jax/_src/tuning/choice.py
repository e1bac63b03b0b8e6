"""What tuning decides, and all it looked at: a flat pytree of arrays that saves and loads.

The table has one row per candidate, raw first; what is served mixes them by their frequencies.
"""

import dataclasses
from typing import Any, NamedTuple

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

# What helps where pairs lack; `docs/choosing.md` says of what the figures are.
ADVICE = (
    "label 30 pairs: with the rest of the bank unpaired beside them, a choice gained 3.5 points of "
    "R@1 in the mean of a trial; without that rest 1.8, with 100 pairs 4.0"
)

# Which candidates there were; `Choice.grid_code` is the place here.
GRIDS = (
    "",
    "candidates were those that statistics of the banks alone fit, as was asked for (mergeable)",
    "Sinkhorn was no candidate: query bank x items ranked takes more than 1 GiB",
)
WHOLE_GRID, MERGEABLE, TOO_LARGE = range(len(GRIDS))

RAW = "raw"
OWN = "own bias"  # the caller's alone
# What any method may be fitted with: a bank that decays, a bias of the caller's own beside its own.
EXTRAS = ("half_life", "weight_own")
# What candidates differ in beside the method; 0 where a method has no such parameter.
COLUMNS = (
    *("beta_query", "beta_gallery", "temperature", "k", "weight_query", "weight_gallery"),
    *EXTRAS,
)
# The methods of files that do not name them, by place.
EARLIER_METHODS = (RAW, "is", "dis", "nnn", "gated nnn", "dualis", "dualdis")

# Share of nearest neighbors within the own sample: one half where two samples are alike. Groups of
# near duplicates that stay together raise it, another modality brings it near 1.
STRANGE, FOREIGN = 0.75, 0.95


def methods() -> tuple[str, ...]:
    """What can be chosen: raw, the rows of the table with a grid, a bias of the caller's own."""
    return (RAW, *(name for name, row in TABLE.items() if row.grid), OWN)


def is_known(method: str) -> bool:
    """Whether a choice of this version can serve it."""
    return method in (RAW, OWN) or method in TABLE


def is_gated(method: str) -> bool:
    """Whether it acts on a query only where a gate is open: such a method is not mixed."""
    return method in TABLE and TABLE[method].gated


def column(parameter: str) -> str:
    """Where a parameter of a method stands: with one bank, the weight is that bank's."""
    return "weight_query" if parameter == "weight" else parameter


def required(method: str) -> list[str]:
    """The columns that a method cannot be fitted without: they are above 0."""
    known = TABLE[method].parameters if method in TABLE else ()
    needed = ("beta_query", "beta_gallery", "temperature", "k")
    return [one.name for one in known if one.name in needed]


def is_swapped(query_own: float, gallery_own: float) -> bool:
    """Whether the query bank looks like the gallery, and the gallery bank does not."""
    return gallery_own > STRANGE and query_own < gallery_own - 0.2


def is_foreign(query_own: float, gallery_own: float) -> bool:
    """Whether the gallery bank looks nothing like the gallery."""
    return gallery_own > FOREIGN or is_swapped(query_own, gallery_own)


def bank_warnings(
    num_equal_rows: tuple[int, int, int], own_share: tuple[float, float]
) -> list[str]:
    """What looks wrong with the banks, in sentences; the arguments are those of `Choice`."""
    found = []
    wrong, leaked, same = num_equal_rows
    if wrong:
        found.append(f"{wrong} rows of the query bank equal gallery items: wrong modality?")
    if leaked:
        found.append(
            f"{leaked} rows of the gallery bank equal gallery items: the banks contain items "
            f"of the test, and figures on it are transductive"
        )
    if same:
        found.append(f"{same} rows of the query bank equal rows of the gallery bank")
    query_own, gallery_own = own_share
    if is_swapped(query_own, gallery_own):
        found.append("the query bank is more like the gallery than the gallery bank is: swapped?")
    elif gallery_own > STRANGE:
        found.append(
            f"the gallery bank is unlike the gallery (own share {gallery_own:.2f}, alike "
            f"0.50): another domain or modality"
        )
    return found


class Part(NamedTuple):
    """One of the corrections that a choice mixes."""

    method: str  # "raw", or its name in the table
    parameters: dict[str, float]  # as the fit of the method takes them, and those of EXTRAS
    frequency: float  # its share

    @property
    def columns(self) -> dict[str, float]:
        """The parameters by the names of the columns."""
        return {column(name): value for name, value in self.parameters.items()}

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.4g}" for name, value in self.parameters.items())
        return f"{self.method}({values})" if values else self.method


class Guarantee(NamedTuple):
    """Lower 95 % confidence limits of what a choice changes, as differences of shares."""

    recall_at_1: float  # in R@1, in [-1, 1]
    reciprocal_rank: float  # in the mean reciprocal rank, in [-1, 1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The correction chosen from the banks, with the evidence.

    Attributes:
      method: [num_candidates] int32, place among `methods`.
      beta_query: [num_candidates], inverse temperature of the query bank, 1/[unit of similarity]; 0
        where the method has none, and so below.
      beta_gallery: [num_candidates], of the gallery bank; 0 but in choices of older files.
      temperature: [num_candidates], of Sinkhorn, unit of similarity.
      k: [num_candidates] int32, largest similarities averaged.
      weight_query: [num_candidates], factor of the bias, or of the query bank's.
      weight_gallery: [num_candidates], of the gallery bank's.
      half_life: [num_candidates], age at which a row of the query bank counts half, in the unit
        of `times`; 0 where none decays.
      weight_own: [num_candidates], factor of the caller's own bias, `biases` of `tune`.
      frequency: [num_candidates], share in the mixture that is served; of raw, what the others are
        shrunk by. They sum to 1.
      gain: [num_candidates], mean gain over raw in log-likelihood of the right item on held-out
        pairs, in nats; of older files, in the logarithm of the rank.
      standard_error: [num_candidates], of the gain.
      p_value: [num_candidates], one-sided, adjusted for all candidates (sign flips, max-T).
      reciprocal_rank_gain: [num_candidates], gain in mean reciprocal rank on the same queries.
      recall_gain: [num_candidates], gain in R@1 on the same queries, in [-1, 1].
      limits: [2], what `guarantee` names; -1, which always holds, in choices of older files.
      spread: [], standard deviation of similarities within a row of the query bank.
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
      grid_code: place in `GRIDS` (static).
      methods: names of what could be chosen, "raw" first (static).

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import numpy as np
      >>> rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
      >>> choice = dbn.tuning.tune(query_bank=rows, gallery_bank=rows + 1, pairs=np.arange(20))
      >>> print(choice.name, choice.parameters, choice.reason)
      raw {} raw: too few pairs of distinct items to hold any out
    """

    method: jax.Array
    beta_query: jax.Array
    beta_gallery: jax.Array
    temperature: jax.Array
    k: jax.Array
    weight_query: jax.Array
    weight_gallery: jax.Array
    half_life: jax.Array
    weight_own: jax.Array
    frequency: jax.Array
    gain: jax.Array
    standard_error: jax.Array
    p_value: jax.Array
    reciprocal_rank_gain: jax.Array
    recall_gain: jax.Array
    limits: jax.Array
    spread: jax.Array
    own_share: jax.Array
    num_equal_rows: jax.Array
    num_held_out: int = dataclasses.field(metadata={"static": True})
    num_columns: int = dataclasses.field(metadata={"static": True})
    num_folds: int = dataclasses.field(metadata={"static": True})
    reason_code: int = dataclasses.field(metadata={"static": True})
    num_gallery_bank: int = dataclasses.field(metadata={"static": True}, default=0)
    num_wrong_pairs: int = dataclasses.field(metadata={"static": True}, default=0)
    grid_code: int = dataclasses.field(metadata={"static": True}, default=WHOLE_GRID)
    methods: tuple[str, ...] = dataclasses.field(metadata={"static": True}, default=EARLIER_METHODS)

    @property
    def mixture(self) -> tuple[Part, ...]:
        """What is served, the most frequent first: (method, parameters, frequency) of each."""
        frequency = np.asarray(self.frequency)
        order = np.argsort(-frequency, kind="stable")
        return tuple(self.part(int(row)) for row in order if frequency[row] > 0)

    def part(self, row: int) -> Part:
        """A candidate, with the parameters that it has by the names of its method."""
        method = self.methods[int(self.method[row])]
        known = TABLE[method].parameters if method in TABLE else ()
        values = {name: np.asarray(getattr(self, name))[row].item() for name in COLUMNS}
        names = [*(one.name for one in known), *EXTRAS]
        found = {name: values.get(column(name), 0) for name in names}
        parameters = {name: value for name, value in found.items() if value}
        return Part(method, parameters, float(self.frequency[row]))

    @property
    def name(self) -> str:
        """The method where one correction is served, "raw" where none is; else "mixture"."""
        parts = self.mixture
        return parts[0].method if len(parts) == 1 else "mixture"

    @property
    def gated(self) -> bool:
        """Whether what is served acts on a query only where a gate is open."""
        return any(is_gated(part.method) for part in self.mixture)

    @property
    def parameters(self) -> dict[str, float]:
        """Those of the one correction that is served; none of a mixture."""
        parts = self.mixture
        return parts[0].parameters if len(parts) == 1 else {}

    @property
    def guarantee(self) -> Guarantee:
        """What is proven of R@1 and of MRR at 95 %, after the selection: "at least this change".

        For queries exchangeable with those of the bank's pairs, among the gallery's items (of a
        large gallery a sample) and their own right one. Exactly 0 where raw is served.
        """
        return Guarantee(*(float(value) for value in self.limits))

    @property
    def reason(self) -> str:
        """Why."""
        return REASONS[self.reason_code]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks wrong with the banks, in sentences."""
        wrong, leaked, same = (int(count) for count in self.num_equal_rows)
        query_own, gallery_own = (float(share) for share in self.own_share)
        found = bank_warnings((wrong, leaked, same), (query_own, gallery_own))
        if self.num_wrong_pairs:
            found.append(
                f"about {self.num_wrong_pairs} queries of the bank lie on other items than their "
                f"own, which are no nearer than random ones: poisoned or mislabeled?"
            )
        return tuple(found)

    def summary(self) -> str:
        """What was chosen, on what evidence, what is proven, what looks wrong; some lines."""
        parts = self.mixture
        shares = " + ".join(f"{100 * part.frequency:.0f} % {part}" for part in parts)
        lines = [str(parts[0]) if len(parts) == 1 else f"mixture: {shares}", self.reason]
        if self.reason_code in (NO_PAIRS, FEW_PAIRS):
            lines.append(ADVICE)
        if self.num_held_out:
            frequency, gain = np.asarray(self.frequency)[1:], np.asarray(self.gain)[1:]
            row = int((frequency if frequency.any() else gain).argmax()) + 1
            about: Any = np.asarray
            which = "most often chosen" if frequency.any() else "best"
            lines.append(
                f"{which} of {len(self.method)} candidates on "
                f"{self.num_held_out} held-out pairs among {self.num_columns} items: gain "
                f"{about(self.gain)[row]:+.3f} ± {about(self.standard_error)[row]:.3f}, adjusted "
                f"p {about(self.p_value)[row]:.3f}, R@1 {100 * about(self.recall_gain)[row]:+.1f} "
                f"points"
            )
        if self.name == RAW:
            lines.append("R@1 and MRR stay exactly as they are")
        elif self.guarantee.recall_at_1 > -1:
            lines.append(self.guaranteed)
        if GRIDS[self.grid_code]:
            lines.append(GRIDS[self.grid_code])
        return "\n".join([*lines, *self.warnings])

    @property
    def guaranteed(self) -> str:
        """The guarantee in words."""
        recall, reciprocal = self.guarantee
        return (
            f"for queries like the bank's: R@1 at least {100 * recall:+.1f} points, MRR at least "
            f"{reciprocal:+.3f} (95 %)"
        )


publish("dbnorm_jax.tuning", Choice)
