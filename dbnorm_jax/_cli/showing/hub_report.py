"""An inspection as text for people, and as CSV and JSON for machines."""

import json
import math
import sys
from typing import Any

from dbnorm_jax._cli.measuring.hubs import Asker, Inspection, Integers
from dbnorm_jax._cli.measuring.table_rows import NEIGHBORS
from dbnorm_jax._cli.showing import table
from dbnorm_jax._cli.showing.output import Content, csv_line
from dbnorm_jax._cli.showing.table import Report
from dbnorm_jax._src.insight.screening import HubScreening

SCHEMA = "dbnorm inspection 1"
FILES = ("inspection.json", "items.csv", "k_occurrence.png", "banks.png")

_LONGEST = 32
_ASKERS = 3

Labels = tuple[str, ...] | None


def contents(report: Report, found: Inspection) -> dict[str, Content]:
    """What each of the files will hold."""
    from dbnorm_jax._cli.showing import plots

    made = (
        lambda: to_json(report, found).encode(errors="replace"),
        lambda: to_csv(found).encode(errors="replace"),
        lambda: plots.k_occurrence_png(report),
        lambda: plots.banks_png(report, found),
    )
    return dict(zip(FILES, made, strict=True))


def show(report: Report, found: Inspection) -> None:
    """Prints the table of evaluate, and what explains it."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    table.show(report)
    console = Console(file=sys.stdout, highlight=False)
    sections = [_hubs(report, found), _rescued(report, found), _suspects(report, found)]
    # Lines run over on a narrow terminal: half a label would mislead.
    wide = console.options.update(width=1000)
    widths = [Measurement.get(console, wide, rows).maximum for _, rows, _ in sections if rows]
    console.width = max([console.width, *widths])
    for title, rows, remarks in sections:
        console.print()
        console.print(Text(title, style="bold"), soft_wrap=True)
        if rows is not None:
            console.print()
            console.print(rows)
            console.print()
        for line in remarks:
            console.print(Text(line, style="dim"), soft_wrap=True)


# A title, a table if there is anything to list, and remarks below it.
_Section = tuple[str, Any, list[str]]


def _hubs(report: Report, found: Inspection) -> _Section:
    test, (before, after) = found.test, found.counts
    whose = "query bank itself" if test.queries is test.query_bank else "queries"
    title = f"Hubs: {len(found.hubs):,} of {len(before):,} items, retrieval of the {whose}"
    rows = None
    if len(found.hubs):
        rows = _grid(
            f"N_{report.k}>", "after>", "item<", "made by>", "most by (share of the bias's sum)<"
        )
        parts = zip(found.hubs, *found.contributors, strict=False)
        for hub, banked, shares, effective in parts:
            makers = [
                f"{_name(int(bank), test.query_bank_labels)} {_percent(float(share))}"
                for bank, share in zip(banked, shares, strict=True)
                if share > 0
            ]
            rows.add_row(
                str(before[hub]),
                str(after[hub]),
                _name(hub, test.gallery_labels),
                f"{effective:.3g}",
                ", ".join(makers),
            )
    remarks = [
        f"made by: effective number of query-bank items behind the bias at beta {found.beta:g}, of "
        f"{len(test.query_bank):,}; 1 = a single one."
    ]
    values = [f"{value:+.2f}" for value in found.correlations]
    if not any(math.isnan(value) for value in found.correlations):
        remarks.append(
            f"N_{report.k} and the mean similarity to an item's 10 nearest: rank correlation "
            f"{values[0]} with the query bank, {values[1]} with the gallery bank; the latter "
            f"{values[2]} among items alike to the query bank."
        )
    return title, rows, remarks


def _rescued(report: Report, found: Inspection) -> _Section:
    test, after = found.test, found.counts[1]
    method = report.rows[1].method.label
    title = (
        f"Anti-hubs: {len(found.anti_hubs):,} of {len(after):,} items are never retrieved; "
        f"{method} retrieves {len(found.rescued):,} of them"
    )
    rows = None
    if len(found.rescued):
        rows = _grid(f"N_{report.k}>", "rescued item<", "retrieved by (place)<")
        for item, askers in zip(found.rescued, found.askers, strict=False):
            named = [
                f"{_name(asker.query, test.query_labels)} ({asker.place}"
                f"{', right' if asker.right else ''})"
                for asker in askers[:_ASKERS]
            ]
            named += ["..."] * (len(askers) > _ASKERS)
            rows.add_row(str(after[item]), _name(item, test.gallery_labels), ", ".join(named))
    remarks = [f"Retrieved before, but no longer under {method}: {len(found.lost):,}."]
    if found.num_rescued_right is not None and len(found.rescued):
        remarks.insert(
            0,
            f"{found.num_rescued_right:,} of the {len(found.rescued):,} are retrieved by a query "
            f"that they answer.",
        )
    return title, rows, remarks


def _suspects(report: Report, found: Inspection) -> _Section:
    test, k, flagged = found.test, report.k, found.flagged
    num_bank = len(test.query_bank)
    if not found.screenings:
        fewest = NEIGHBORS + 1
        title = f"Screening for planted hubs: not done, fewer than {fewest} items to compare with"
        return title, None, []
    title = f"Screening for planted hubs: {len(flagged):,} of {len(test.gallery):,} items flagged"
    rows = None
    if flagged:
        rows = _grid("item<", *(f"{name}: N_{k} in the bank>" for name in found.screenings))
        for item in flagged[: found.top]:
            cells = [_judged(screening, item, num_bank) for screening in found.screenings.values()]
            rows.add_row(_name(item, test.gallery_labels), *cells)
    thresholds = " or ".join(
        f"{int(screening.threshold):,} ({100 * int(screening.threshold) / num_bank:.1f} %, {name})"
        for name, screening in found.screenings.items()
    )
    reach = f"Flagged is what at least {thresholds} of the {num_bank:,} query-bank items have in"
    rate = 100 * found.false_alarm_rate
    if test.gallery_bank is None:
        remark = (
            f"{reach} their top {k}: the most retrieved {rate:g} % of the gallery, planted or not. "
            f"A gallery bank known to be clean would tell."
        )
        return title, rows, [remark]
    rate = max(rate, 100 / (1 + len(test.gallery_bank)))
    remarks = [
        f"{reach} their top {k}, were it in the gallery bank. At most {rate:.2g} % of clean items "
        f"get so far by {'either' if len(found.screenings) > 1 else 'that'} score, natural hubs: a "
        f"reason to look, no proof. p: the share that does as well."
    ]
    if len(found.screenings) == 1 and test.bank_pairs is None:
        remarks.append("With --bank-pairs, corrected scores are screened too.")
    return title, rows, remarks


def _judged(screening: HubScreening, item: int, num_bank: int) -> str:
    count = int(screening.k_occurrence[item])
    mark = "!" if screening.flagged[item] else " "
    return f"{count} ({100 * count / num_bank:.1f} %), p {screening.p_value[item]:.2g} {mark}"


def _grid(*headers: str) -> Any:
    """A table; `>` behind a header sets its column to the right."""
    from rich import box
    from rich.table import Table

    rows = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for header in headers:
        justify: Any = "right" if header.endswith(">") else "left"
        rows.add_column(header[:-1], justify=justify, no_wrap=True)
    return rows


def _name(row: int, labels: Labels) -> str:
    """The label, fit for a terminal, or the row."""
    from rich.markup import escape

    if labels is None:
        return f"row {row}"
    unprintable = "\N{REPLACEMENT CHARACTER}"
    text = "".join(char if char.isprintable() else unprintable for char in labels[row])
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    return escape(f"'{text}'")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def to_csv(found: Inspection) -> str:
    """One line per gallery item."""
    labels, (before, after) = found.test.gallery_labels, found.counts
    k = found.rows[0].nearest.shape[1]
    columns: dict[str, Any] = {
        "row": range(len(before)),
        "label": labels or [""] * len(before),
        f"n_{k}": before,
        f"n_{k}_corrected": after,
    }
    for bank, values in zip(("query", "gallery"), found.similarities, strict=True):
        columns[f"similarity_to_{bank}_bank"] = [
            "" if math.isnan(value) else f"{value:.6g}" for value in values
        ]
    for name, screening in zip(("", "corrected_"), found.screenings.values(), strict=False):
        columns[f"{name}n_{k}_in_bank"] = screening.k_occurrence
        columns[f"{name}p_value"] = [f"{value:.4g}" for value in screening.p_value]
        columns[f"{name}flagged"] = screening.flagged.astype(int)
    return "".join(map(csv_line, [columns, *zip(*columns.values(), strict=True)]))


def to_json(report: Report, found: Inspection) -> str:
    """All but the single items that are no hubs, anti-hubs or suspects."""
    test, (before, after) = found.test, found.counts
    content = json.loads(table.to_json(report)) | {
        "schema": SCHEMA,
        "retrieval_of": "query bank" if test.queries is test.query_bank else "queries",
        "num_hubs": len(found.hubs),
        "hubs": [
            _item(hub, test.gallery_labels, before, after)
            | {
                "effective_number": float(effective),
                "contributors": [
                    _named(int(bank), test.query_bank_labels) | {"responsibility": float(share)}
                    for bank, share in zip(banked, shares, strict=True)
                ],
            }
            for hub, banked, shares, effective in zip(found.hubs, *found.contributors, strict=False)
        ],
        "contributors_beta": found.beta,
        "num_anti_hubs": len(found.anti_hubs),
        "num_rescued": len(found.rescued),
        "num_rescued_by_a_right_query": found.num_rescued_right,
        "num_no_longer_retrieved": len(found.lost),
        "rescued": [
            _item(item, test.gallery_labels, before, after)
            | {"retrieved_by": [_asker(asker, test.query_labels) for asker in askers]}
            for item, askers in zip(found.rescued, found.askers, strict=False)
        ],
        "rank_correlations_of_k_occurrence": {
            name: None if math.isnan(value) else value
            for name, value in zip(
                ("query_bank", "gallery_bank", "gallery_bank_given_query_bank"),
                found.correlations,
                strict=True,
            )
        },
        "screening": _screening(found),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _screening(found: Inspection) -> dict[str, Any] | None:
    if not found.screenings:
        return None
    return {
        "compared_with": "gallery" if found.test.gallery_bank is None else "gallery bank",
        "false_alarm_rate_of_each": found.false_alarm_rate,
        "thresholds": {
            name: int(screening.threshold) for name, screening in found.screenings.items()
        },
        "flagged": [
            _named(item, found.test.gallery_labels)
            | {
                "by": [name for name, one in found.screenings.items() if one.flagged[item]],
                "k_occurrence_in_bank": {
                    name: int(one.k_occurrence[item]) for name, one in found.screenings.items()
                },
                "p_value": {
                    name: float(one.p_value[item]) for name, one in found.screenings.items()
                },
            }
            for item in found.flagged
        ],
    }


def _named(row: int, labels: Labels) -> dict[str, Any]:
    return {"row": int(row), "label": None if labels is None else labels[row]}


def _item(row: int, labels: Labels, before: Integers, after: Integers) -> dict[str, Any]:
    counts = {"k_occurrence": int(before[row]), "k_occurrence_corrected": int(after[row])}
    return _named(row, labels) | counts


def _asker(asker: Asker, labels: Labels) -> dict[str, Any]:
    return _named(asker.query, labels) | {"place": asker.place, "right": asker.right}
