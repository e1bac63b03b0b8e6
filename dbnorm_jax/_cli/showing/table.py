"""The results as a table for people, and as CSV and JSON for machines."""

import dataclasses
import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

import jax
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.table_rows import ResultRow
from dbnorm_jax._cli.showing.output import report_line
from dbnorm_jax._cli.showing.terminal import wide_console

SCHEMA = "dbnorm evaluation 1"

# Share of bank rows that equal test rows from which on the figures are not those of new queries.
_MANY_EQUAL = 0.01

_UNITS = {
    "recall_at_1": "percent of queries",
    "recall_at_5": "percent of queries",
    "recall_at_10": "percent of queries",
    "recall_at_50": "percent of queries",
    "recall_at_100": "percent of queries",
    "ndcg_at_10": "percent of the largest possible, mean of the queries; gain: the grade",
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
    """All that a table says."""

    name: str  # of the set
    similarity: str
    sizes: dict[str, int]  # number of queries, gallery and bank items
    beta_query: float | None  # None where the rows differ or nothing needs it
    beta_gallery: float | None
    own_gallery_bank: bool  # the gallery serves as its own bank
    num_equal_rows: int  # bank rows that equal test rows; any makes the test transductive
    k: int  # neighborhood of the k-occurrence
    rows: Sequence[ResultRow]  # one per method
    notes: tuple[str, ...] = ()  # sentences below the table
    warnings: tuple[str, ...] = ()  # what looks wrong with the inputs, and the remedy

    @property
    def kind(self) -> str:
        """How the banks stand to the test."""
        return "transductive" if self.num_equal_rows else "inductive"

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and whether the banks hold test rows."""
        if not self.num_equal_rows:
            return self.notes
        total = self.sizes["query_bank"] + self.sizes.get("gallery_bank", 0)
        share = self.num_equal_rows / total
        said = (
            f"{self.num_equal_rows:,} of {total:,} bank rows ({100 * share:.2g} %) "
            f"{'equals a test row' if self.num_equal_rows == 1 else 'equal test rows'}"
        )
        if share < _MANY_EQUAL:
            said += (
                f", less than {100 * _MANY_EQUAL:g} %: the figures are still those of new queries"
            )
        else:
            said += ": the figures are transductive, not those of new queries"
        return (*self.notes, f"{said}.")

    @property
    def heading(self) -> list[str]:
        """The lines above the table."""
        sizes = f"{self.sizes['queries']:,} queries, {self.sizes['gallery']:,} gallery items, "
        sizes += f"query bank {self.sizes['query_bank']:,}, "
        if self.own_gallery_bank:
            sizes += "gallery bank: the gallery itself, each item left out of its own sum"
        elif "gallery_bank" in self.sizes:
            sizes += f"gallery bank {self.sizes['gallery_bank']:,}"
        else:
            sizes += "no gallery bank"
        how = f"similarity {self.similarity}"
        if self.beta_query is not None:
            how += f", beta {self.beta_query:g} (query bank)"
        if self.beta_gallery is not None:
            how += f", {self.beta_gallery:g} (gallery bank)"
        return [self.name, sizes, how]

    @property
    def tables(self) -> dict[str, list[ResultRow]]:
        """Its rows in tables by their titles: numbers that must not stand beside inductive ones."""
        tables = {"": [row for row in self.rows if not row.method.about.transductive]}
        others = [row for row in self.rows if row.method.about.transductive]
        if others:
            tables["These read the other test queries too:"] = [self.rows[0], *others]
        return tables


def show(report: Report) -> None:
    """Prints the table to stdout."""
    console = wide_console()
    name, *details = report.heading
    console.print(name, style="bold")
    console.print(*details, sep="\n")
    for title, rows in report.tables.items():
        if title:
            console.print(title, style="bold")
        console.print()
        console.print(grid(HEADERS, map(cells, rows)))
        console.print()
    console.print(*legend(report), sep="\n", style="dim")
    if report.remarks:
        console.print()
        console.print(*report.remarks, sep="\n")


def grid(headers: Sequence[str], rows: Iterable[Sequence[str]], left: Container[int] = (0,)) -> Any:
    """A table of rich; the columns that are not to the left are to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for place, header in enumerate(headers):
        table.add_column(header, justify="left" if place in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


HEADERS = (
    "Method", "R@1", "Gain", "±", "R@5", "R@10", "R@50", "R@100", "nDCG", "MdR", "MnR", "Skew",
    "Hubs", "Anti", "Open",
)  # fmt: skip


def cells(row: ResultRow) -> list[str]:
    """One line of the table, in the order of `HEADERS`."""
    gain = (_number(row.gain, 1, "+"), _number(row.gain_interval, 1))
    return [
        row.method.label,
        _number(row.recall_at_1, 1),
        *(("-", "-") if row.method.kind == "raw" else gain),
        *(_number(value, 1) for value in (row.recall_at_5, row.recall_at_10)),
        *(_number(value, 1) for value in (row.recall_at_50, row.recall_at_100, row.ndcg_at_10)),
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
        f"R@k: % of queries with a right item in their first k; Gain: points of R@1 over raw, ± "
        f"its 95 % interval, paired over queries; nDCG: of the first {report.k} places, in %; MdR, "
        f"MnR: median and mean rank"
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
    for row in (_row(report, row) for row in report.rows):
        row["set"] = report.name
        row["options"] = " ".join(f"{name}={value:g}" for name, value in row["options"].items())
        shares = [*row["gates_open"], None, None][:2]
        lines.append([*(row[name] for name in (*first, *columns)), *shares])
    return "".join(map(report_line, lines))


def content(report: Report) -> dict[str, Any]:
    """The whole report for JSON; null where nothing is known."""
    return {
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
        "notes": report.notes,
        "warnings": report.warnings,
    }


def _row(report: Report, row: ResultRow) -> dict[str, Any]:
    return {
        "method": row.method.name,
        "kind": "transductive" if row.method.about.transductive else report.kind,
        "beta_query": row.method.beta_query,
        "beta_gallery": row.method.beta_gallery,
        "options": dict(row.method.options),
        **{name: or_none(getattr(row, name)) for name in _UNITS},
    }


def or_none(value: Any) -> Any:
    """None for NaN, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value


def versions() -> dict[str, str]:
    """Of the packages that the numbers depend on."""
    return {"dbnorm_jax": dbn.__version__, "jax": jax.__version__, "numpy": np.__version__}
