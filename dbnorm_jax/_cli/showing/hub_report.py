"""An inspection as text for people, and as CSV and JSON for machines."""

import math
from typing import Any

import numpy as np

from dbnorm_jax._cli.measuring.hubs import Inspection
from dbnorm_jax._cli.measuring.table_rows import NEIGHBORS
from dbnorm_jax._cli.showing import table
from dbnorm_jax._cli.showing.output import Content, report_line, written
from dbnorm_jax._cli.showing.table import Report, or_none
from dbnorm_jax._cli.showing.terminal import json_text, wide_console
from dbnorm_jax._src.core.text import printable

SCHEMA = "dbnorm inspection 1"
FILES = ("inspection.json", "items.csv", "k_occurrence.png", "banks.png")

_LONGEST = 32
_ASKERS = 3


def contents(report: Report, found: Inspection) -> dict[str, Content]:
    """What each of the files will hold."""
    from dbnorm_jax._cli.showing import plots

    made = (
        lambda: json_text(content(report, found)).encode(),
        lambda: to_csv(found).encode(errors="replace"),
        lambda: plots.k_occurrence_png(report),
        lambda: plots.banks_png(report, found),
    )
    return dict(zip(FILES, map(written, made), strict=True))


def counted(report: Report, found: Inspection) -> str:
    """How many hubs there are, and how many of those never retrieved are rescued."""
    items, rescued = report.sizes["gallery"], len(found.rescued)
    label = found.rows[1].method.label
    return (
        f"{len(found.hubs):,} of {items:,} items are hubs and {len(found.anti_hubs):,} are never "
        f"retrieved; {label} retrieves {rescued:,} of these."
    )


# A title, a table, which may be empty, and remarks below it.
_Section = tuple[str, Any, list[str]]


def show(report: Report, found: Inspection) -> None:
    """Prints the table of evaluate, and what explains it."""
    table.show(report)
    console, said = wide_console(), content(report, found)
    sections = (
        _hubs(said, found),
        _deciding(said, found),
        _rescued(said, found),
        _suspects(said, found),
    )
    for title, rows, remarks in sections:
        console.print()
        console.print(title, style="bold")
        if rows.row_count:
            console.print()
            console.print(rows)
            console.print()
        for line in remarks:
            console.print(line, style="dim")


def _hubs(content: dict[str, Any], found: Inspection) -> _Section:
    title = (
        f"Hubs: {content['num_hubs']:,} of {content['sizes']['gallery']:,} items, retrieval of the "
        f"{'queries' if content['retrieval_of'] == 'queries' else 'query bank itself'}"
    )
    occurrence = f"N_{content['k']}"
    headers = (occurrence, "after", "item", "made by", "most by (share of the bias's sum)")
    remarks = [
        f"made by: effective number of query-bank items behind the bias at beta {found.beta:g}, of "
        f"{content['sizes']['query_bank']:,}; 1 = a single one."
    ]
    values = [f"{value:+.2f}" for value in found.correlations]
    if not any(map(math.isnan, found.correlations)):
        remarks.append(
            f"{occurrence} and the mean similarity to an item's 10 nearest: rank correlation "
            f"{values[0]} with the query bank, {values[1]} with the gallery bank; the latter "
            f"{values[2]} among items alike to the query bank."
        )
    return title, table.grid(headers, map(_hub_cells, content["hubs"]), left=(2, 4)), remarks


def _hub_cells(hub: dict[str, Any]) -> list[str]:
    makers = []
    for maker in hub["contributors"]:
        share = 100 * maker["responsibility"]
        if share > 0:
            makers.append(f"{_name(maker)} {share:.{0 if share >= 10 else 1}f} %")
    counts = [str(hub["k_occurrence"]), str(hub["k_occurrence_corrected"])]
    return [*counts, _name(hub), f"{hub['effective_number']:.3g}", ", ".join(makers)]


def _deciding(content: dict[str, Any], found: Inspection) -> _Section:
    flips = content["flips"]
    title = (
        f"Deciding bank items: {flips['num_deciding']:,} of {content['sizes']['query_bank']:,} "
        f"query-bank items flip a top-1 when left out, under the bias at beta {found.beta:g}"
    )
    headers = ("top-1s flipped", "bank item", "for instance")
    remarks = [
        f"{flips['num_flipped']:,} of {flips['num_queries']:,} queries have another top-1 without "
        f"some single item of the bank."
    ]
    return title, table.grid(headers, map(_deciding_cells, flips["deciding"]), left=(1, 2)), remarks


def _deciding_cells(item: dict[str, Any]) -> list[str]:
    told = item["for_instance"]
    example = "" if told is None else " -> ".join(map(_name, (told["old"], told["new"])))
    if told is not None:
        example = f"{_name(told['query'])}: {example}"
    return [str(item["num_flips"]), _name(item), example]


def _rescued(content: dict[str, Any], found: Inspection) -> _Section:
    method, total = found.rows[1].method.label, content["num_rescued"]
    title = (
        f"Anti-hubs: {content['num_anti_hubs']:,} of {content['sizes']['gallery']:,} items are "
        f"never retrieved; {method} retrieves {total:,} of them"
    )
    headers = (f"N_{content['k']}", "rescued item", "retrieved by (place)")
    remarks = [f"Retrieved before, but no longer under {method}: {len(found.lost):,}."]
    right = found.num_rescued_right
    if total and right is not None:
        remark = f"{right:,} of the {total:,} are retrieved by a query that they answer."
        remarks.insert(0, remark)
    return title, table.grid(headers, map(_rescued_cells, content["rescued"]), left=(1, 2)), remarks


def _rescued_cells(item: dict[str, Any]) -> list[str]:
    askers = [
        f"{_name(asker)} ({asker['place']}{', right' if asker['right'] else ''})"
        for asker in item["retrieved_by"][:_ASKERS]
    ]
    askers += ["..."] * (len(item["retrieved_by"]) > _ASKERS)
    return [str(item["k_occurrence_corrected"]), _name(item), ", ".join(askers)]


def _suspects(content: dict[str, Any], found: Inspection) -> _Section:
    title, screening, sizes = "Screening for planted hubs: ", content["screening"], content["sizes"]
    if screening is None:
        title += f"not done, fewer than {NEIGHBORS + 1} items to compare with"
        return title, table.grid((), ()), []
    num_bank, flagged, thresholds = (
        sizes["query_bank"],
        screening["flagged"],
        screening["thresholds"],
    )
    title += f"{len(flagged):,} of {sizes['gallery']:,} items flagged"
    headers = ("item", *(f"{name}: N_{content['k']} in the bank" for name in thresholds))
    rows = (
        [_name(item), *(_judged(item, name, num_bank) for name in thresholds)]
        for item in flagged[: found.top]
    )
    reasons = " or ".join(
        f"{count:,} ({100 * count / num_bank:.1f} %, {name})" for name, count in thresholds.items()
    )
    reach = (
        f"Flagged is what at least {reasons} of the {num_bank:,} query-bank items have in their "
        f"top {content['k']}"
    )
    rate = 100 * found.false_alarm_rate
    if found.test.gallery_bank is None:
        remarks = [
            f"{reach}: the most retrieved {rate:g} % of the gallery, planted or not. A gallery "
            f"bank known to be clean would tell."
        ]
    else:
        rate = max(rate, 100 / (1 + sizes["gallery_bank"]))
        remarks = [
            f"{reach}, were it in the gallery bank. At most {rate:.2g} % of clean items get so far "
            f"by {'either' if len(thresholds) > 1 else 'that'} score, natural hubs: a reason to "
            f"look, no proof. p: the share that does as well."
        ]
        if len(thresholds) == 1 and found.test.bank_pairs is None:
            remarks.append("With --bank-pairs, corrected scores are screened too.")
    return title, table.grid(headers, rows), remarks


def _judged(item: dict[str, Any], name: str, num_bank: int) -> str:
    count, mark = item["k_occurrence_in_bank"][name], "!" if name in item["by"] else " "
    return f"{count} ({100 * count / num_bank:.1f} %), p {item['p_value'][name]:.2g} {mark}"


def _name(item: dict[str, Any]) -> str:
    """The label, cut to what a column has room for, or the row."""
    if item["label"] is None:
        return f"row {item['row']}"
    text = printable(item["label"])
    return f"'{text}'" if len(text) <= _LONGEST else f"'{text[: _LONGEST - 3]}...'"


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
            None if math.isnan(value) else float(f"{value:.6g}") for value in values
        ]
    for name, screening in zip(("", "corrected_"), found.screenings.values(), strict=False):
        columns[f"{name}n_{k}_in_bank"] = screening.k_occurrence
        columns[f"{name}p_value"] = [float(f"{value:.4g}") for value in screening.p_value]
        columns[f"{name}flagged"] = screening.flagged.astype(int)
    return "".join(map(report_line, [columns, *zip(*columns.values(), strict=True)]))


def content(report: Report, found: Inspection) -> dict[str, Any]:
    """All but the single items that are no hubs, anti-hubs or suspects, for JSON."""
    test, (before, after) = found.test, found.counts

    def counted(row: int) -> dict[str, Any]:
        counts = {"k_occurrence": int(before[row]), "k_occurrence_corrected": int(after[row])}
        return _named(row, test.gallery_labels) | counts

    def makers(banked: Any, shares: Any) -> list[dict[str, Any]]:
        return [
            _named(bank, test.query_bank_labels) | {"responsibility": share}
            for bank, share in zip(banked.tolist(), shares.tolist(), strict=True)
        ]

    names = ("query_bank", "gallery_bank", "gallery_bank_given_query_bank")
    return table.content(report) | {
        "schema": SCHEMA,
        "retrieval_of": "query bank" if test.queries is test.query_bank else "queries",
        "num_hubs": len(found.hubs),
        "hubs": [
            counted(hub)
            | {"effective_number": float(effective), "contributors": makers(banked, shares)}
            for hub, banked, shares, effective in zip(found.hubs, *found.contributors, strict=False)
        ],
        "contributors_beta": found.beta,
        "flips": _flips(found),
        "num_anti_hubs": len(found.anti_hubs),
        "num_rescued": len(found.rescued),
        "num_rescued_by_a_right_query": found.num_rescued_right,
        "num_no_longer_retrieved": len(found.lost),
        "rescued": [
            counted(item)
            | {
                "retrieved_by": [
                    _named(query, test.query_labels) | {"place": place, "right": right}
                    for query, place, right in askers
                ]
            }
            for item, askers in zip(found.rescued, found.askers, strict=False)
        ],
        "rank_correlations_of_k_occurrence": dict(
            zip(names, map(or_none, found.correlations), strict=True)
        ),
        "screening": _screening(found) if found.screenings else None,
    }


def _flips(found: Inspection) -> dict[str, Any]:
    test, flips = found.test, found.flips

    def instance(row: int) -> dict[str, Any] | None:
        """The first query that hangs on this bank item more than on any other."""
        places = np.flatnonzero(flips.flipped & (flips.item == row))[:1]
        for place in places.tolist():
            return {
                "query": _named(flips.queries[place], test.query_labels),
                "old": _named(flips.old[place], test.gallery_labels),
                "new": _named(flips.new[place], test.gallery_labels),
            }
        return None

    return {
        "num_queries": len(flips.queries),
        "num_flipped": int(flips.flipped.sum()),
        "num_deciding": len(found.deciding),
        "deciding": [
            _named(row, test.query_bank_labels)
            | {"num_flips": int(flips.num_flips[row]), "for_instance": instance(row)}
            for row in found.deciding[: found.top].tolist()
        ],
    }


def _screening(found: Inspection) -> dict[str, Any]:
    screenings = found.screenings.items()
    return {
        "compared_with": "gallery" if found.test.gallery_bank is None else "gallery bank",
        "false_alarm_rate_of_each": found.false_alarm_rate,
        "thresholds": {name: int(screening.threshold) for name, screening in screenings},
        "flagged": [
            _named(item, found.test.gallery_labels)
            | {
                "by": [name for name, one in screenings if one.flagged[item]],
                "k_occurrence_in_bank": {
                    name: int(one.k_occurrence[item]) for name, one in screenings
                },
                "p_value": {name: float(one.p_value[item]) for name, one in screenings},
            }
            for item in found.flagged
        ],
    }


def _named(row: int, labels: tuple[str, ...] | None) -> dict[str, Any]:
    return {"row": int(row), "label": None if labels is None else labels[row]}
