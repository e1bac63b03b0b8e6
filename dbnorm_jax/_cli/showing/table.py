"""The results as a table for people, and as CSV and JSON for machines."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.table_rows import ResultRow
from dbnorm_jax._cli.showing.output import csv_line

SCHEMA = "dbnorm evaluation 1"

_UNITS = {
    "recall_at_1": "percent of queries",
    "recall_at_5": "percent of queries",
    "recall_at_10": "percent of queries",
    "gain": "points of R@1 over raw",
    "gain_interval": "points, half-width of the gain's 95 % interval, paired over queries",
    "median_rank": "rank, 1 = best",
    "mean_rank": "rank, 1 = best",
    "skewness": "of the k-occurrence",
    "hub_share": "percent of gallery items, k-occurrence >= 2x its mean",
    "anti_hub_share": "percent of gallery items, k-occurrence 0",
    "gates_open": "percent of queries, one entry per bank of the method",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """All that a table says.

    Attributes:
      name: of the set.
      similarity: cosine, dot, euclidean or "given" (matrices).
      sizes: number of queries, gallery and bank items.
      beta_query: of the query bank; None where the rows differ or nothing needs it.
      beta_gallery: of the gallery bank.
      own_gallery_bank: the gallery serves as its own bank.
      num_equal_rows: bank rows that equal test rows; more than 0 makes the test transductive.
      k: neighbourhood of the k-occurrence.
      rows: one per method.
      notes: sentences below the table.
    """

    name: str
    similarity: str
    sizes: dict[str, int]
    beta_query: float | None
    beta_gallery: float | None
    own_gallery_bank: bool
    num_equal_rows: int
    k: int
    rows: Sequence[ResultRow]
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """How the banks stand to the test."""
        return "transductive" if self.num_equal_rows else "inductive"

    @property
    def kind_in_words(self) -> str:
        """The kind, and what makes it so."""
        if not self.num_equal_rows:
            return self.kind
        total = self.sizes["query_bank"] + self.sizes.get("gallery_bank", 0)
        ending = "rows equals a test row" if self.num_equal_rows == 1 else "rows equal test rows"
        return f"{self.kind} ({self.num_equal_rows:,} of {total:,} bank {ending})"

    @property
    def heading(self) -> list[str]:
        """The lines above the table."""
        sizes = [f"{self.sizes['queries']:,} queries", f"{self.sizes['gallery']:,} gallery items"]
        sizes.append(f"query bank {self.sizes['query_bank']:,}")
        if self.own_gallery_bank:
            sizes.append("gallery bank: the gallery itself, each item left out of its own sum")
        elif "gallery_bank" in self.sizes:
            sizes.append(f"gallery bank {self.sizes['gallery_bank']:,}")
        else:
            sizes.append("no gallery bank")
        how = f"similarity {self.similarity}"
        if self.beta_query is not None:
            how += f", beta {self.beta_query:g} (query bank)"
        if self.beta_gallery is not None:
            how += f", {self.beta_gallery:g} (gallery bank)"
        return [f"{self.name}: {self.kind_in_words}", ", ".join(sizes), how]


def show(report: Report) -> None:
    """Prints the table to stdout; plain text when piped, never cut."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    own = [row for row in report.rows if not row.method.about.transductive]
    others = [row for row in report.rows if row.method.about.transductive]
    tables = [_table(own)]
    if others:  # numbers that must not stand beside inductive ones
        tables.append(_table([report.rows[0], *others]))
    console = Console(file=sys.stdout, highlight=False)
    # A cut number would mislead: on a narrow terminal lines run over instead.
    wide = console.options.update(width=1000)
    widths = [Measurement.get(console, wide, table).maximum for table in tables]
    console.width = max(console.width, *widths)
    name, *details = report.heading
    console.print(Text(name, style="bold"), soft_wrap=True)
    for line in details:
        console.print(Text(line), soft_wrap=True)
    console.print()
    console.print(tables[0])
    console.print()
    if others:
        console.print(Text("Transductive: these read the other test queries.", style="bold"))
        console.print()
        console.print(tables[1])
        console.print()
    for line in legend(report):
        console.print(Text(line, style="dim"), soft_wrap=True)
    if report.notes:
        console.print()
    for line in report.notes:
        console.print(Text(line), soft_wrap=True)


def _table(rows: Sequence[ResultRow]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    first, *others = HEADERS
    table.add_column(first, no_wrap=True)
    for header in others:
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row))
    return table


HEADERS = (
    "Method", "R@1", "Gain", "±", "R@5", "R@10", "MdR", "MnR", "Skew", "Hubs", "Anti", "Open",
)  # fmt: skip


def cells(row: ResultRow) -> list[str]:
    """One line of the table, in the order of `HEADERS`."""
    gain = (_number(row.gain, 1, "+"), _number(row.gain_interval, 1))
    return [
        row.method.label,
        _number(row.recall_at_1, 1),
        *(("-", "-") if row.method.kind == "raw" else gain),
        *(_number(value, 1) for value in (row.recall_at_5, row.recall_at_10)),
        _number(row.median_rank, 1 if row.median_rank % 1 else 0),
        _number(row.mean_rank, 1),
        _number(row.skewness, 2),
        *(_number(value, 1) for value in (row.hub_share, row.anti_hub_share)),
        "/".join(_number(share, 0) for share in row.gates_open) if row.method.about.gated else "-",
    ]


def legend(report: Report) -> list[str]:
    """What the columns mean."""
    occurrence = f"N_{report.k}"
    retrieval = (
        "R@k in %; Gain: points of R@1 over raw, ± its 95 % interval, paired over queries; MdR, "
        "MnR: median and mean rank"
    )
    if any(row.method.about.gated for row in report.rows):
        retrieval += "; Open: % of queries whose gate is open"
    hubness = (
        f"{occurrence}: how many queries have an item in their top {report.k}. Skew: its skewness; "
        f"Hubs, Anti: % of items with {occurrence} >= 2x the mean, or 0."
    )
    return [f"{retrieval}.", hubness]


def _number(value: float, digits: int, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def to_csv(report: Report) -> str:
    """One line per method; empty where nothing is known."""
    columns = [name for name in _UNITS if name != "gates_open"]
    gates = ["gates_open_query_bank", "gates_open_gallery_bank"]
    first = ["set", "kind", "method", "beta_query", "beta_gallery", "options"]
    lines: list[list[Any]] = [[*first, *columns, *gates]]
    for row in report.rows:
        shares = [*row.gates_open, None, None][:2]
        values = [getattr(row, name) for name in columns]
        lines.append(
            [report.name, _kind(report, row), row.method.name, row.method.beta_query]
            + [row.method.beta_gallery, _options(row)]
            + ["" if value is None or math.isnan(value) else value for value in (*values, *shares)]
        )
    return "".join(map(csv_line, lines))


def _kind(report: Report, row: ResultRow) -> str:
    return "transductive" if row.method.about.transductive else report.kind


def _options(row: ResultRow) -> str:
    return " ".join(f"{name}={value:g}" for name, value in row.method.options)


def to_json(report: Report) -> str:
    """The whole report; null where nothing is known."""
    content = {
        "schema": SCHEMA,
        "set": report.name,
        "kind": report.kind,
        "num_bank_rows_equal_to_test_rows": report.num_equal_rows,
        "similarity": report.similarity,
        "sizes": report.sizes,
        "gallery_is_its_own_bank": report.own_gallery_bank,
        "betas": {"query_bank": report.beta_query, "gallery_bank": report.beta_gallery},
        "k": report.k,
        "versions": versions(),
        "units": _UNITS,
        "rows": [_row(report, row) for row in report.rows],
        "notes": list(report.notes),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _row(report: Report, row: ResultRow) -> dict[str, Any]:
    numbers = {name: getattr(row, name) for name in _UNITS}
    return {
        "method": row.method.name,
        "kind": _kind(report, row),
        "beta_query": row.method.beta_query,
        "beta_gallery": row.method.beta_gallery,
        "options": dict(row.method.options),
    } | {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in numbers.items()
    }


def versions() -> dict[str, str]:
    """Of the packages that the numbers depend on."""
    import jax
    import numpy as np

    return {"dbnorm_jax": dbn.__version__, "jax": jax.__version__, "numpy": np.__version__}
