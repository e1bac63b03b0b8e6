"""The pictures: how unevenly the gallery is retrieved, what methods gain, where the hubs lie."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.hubs import Inspection
from dbnorm_jax._cli.measuring.story import Sweep, shown_row
from dbnorm_jax._cli.measuring.table_rows import ResultRow
from dbnorm_jax._cli.showing.table import Report

# Okabe and Ito's colours, told apart with any colour vision; line styles differ as well.
_RAW, _CORRECTED, _EVEN = "#D55E00", "#0072B2", "#767676"
_OTHERS, _SECOND = "#B5B5B5", "#009E73"
_DPI = 150


def k_occurrence_png(report: Report) -> bytes:
    """Rank plot and Lorenz curve of the k-occurrence, raw against corrected."""
    shown = shown_row(report.rows)
    rows = [row for row in report.rows if row.method.kind == "raw"]
    if shown is not None:
        rows.append(shown)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    ranked, lorenz = figure.subplots(1, 2)
    styles: list[dict[str, Any]] = [
        {"color": _RAW, "linestyle": "-", "linewidth": 2.2},
        {"color": _CORRECTED, "linestyle": (0, (5, 1.5)), "linewidth": 2.2},
    ]
    for row, style in zip(rows, styles, strict=False):
        _rank_curve(ranked, row, style)
        _lorenz_curve(lorenz, row, style)
    _finish_ranked(ranked, report)
    _finish_lorenz(lorenz, report)
    _headline(figure, f"Who is retrieved: {report.name}, {report.kind_in_words}")
    return _png(figure)


def _rank_curve(axes: Axes, row: ResultRow, style: dict[str, Any]) -> None:
    counts = np.sort(row.k_occurrence)[::-1]
    counts = counts[counts > 0]  # a logarithm has no place for zeros: there the curve ends
    never = f"{row.anti_hub_share:.1f} % of items never"
    label = f"{row.method.label}: most {counts.max()} times, {never}"
    axes.plot(np.arange(1, len(counts) + 1), counts, label=label, **style)
    axes.plot(len(counts), counts[-1], marker="o", markersize=5, color=style["color"])


def _finish_ranked(axes: Axes, report: Report) -> None:
    mean = report.k * report.sizes["queries"] / report.sizes["gallery"]
    axes.axhline(mean, color=_EVEN, linestyle=":", linewidth=1.4, label=f"mean: {mean:.3g}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(_plain)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Gallery items, most retrieved first (place)")
    axes.set_ylabel(f"Queries with the item in their top {report.k} (number)")
    axes.set_title(
        f"{report.k}-occurrence by rank (dot: items beyond it are never retrieved)", fontsize=11
    )
    _tidy(axes)
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def _plain(value: float, _: float) -> str:
    return f"{value:g}"


def _lorenz_curve(axes: Axes, row: ResultRow, style: dict[str, Any]) -> None:
    counts = np.sort(row.k_occurrence)
    shares = 100 * np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    gini = float(dbn.hubness.gini(row.k_occurrence))
    items = np.linspace(0, 100, len(shares))
    axes.plot(items, shares, label=f"{row.method.label}: Gini {gini:.2f}", **style)


def _finish_lorenz(axes: Axes, report: Report) -> None:
    label = "all alike: Gini 0"
    axes.plot([0, 100], [0, 100], color=_EVEN, linestyle=":", linewidth=1.4, label=label)
    axes.set_xlabel("Gallery items, least retrieved first (%)")
    axes.set_ylabel(f"Share of all top-{report.k} places (%)")
    axes.set_title("Lorenz curve", fontsize=11)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_aspect("equal")
    _tidy(axes)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def methods_png(report: Report) -> bytes:
    """Bars of R@1, where the right items are known, and of skewness."""
    values = {
        f"Skewness of the {report.k}-occurrence (lower: fewer hubs)": (
            [row.skewness for row in report.rows],
            ".2f",
        )
    }
    recalls = [row.recall_at_1 for row in report.rows]
    if not any(math.isnan(recall) for recall in recalls):
        values = {"R@1 (% of queries, higher is better)": (recalls, ".1f")} | values
    height = 1.5 + 0.42 * len(report.rows)
    figure = Figure(figsize=(1.5 + 4.3 * len(values), height), layout="constrained")
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for axes, (label, (numbers, digits)) in zip(panels, values.items(), strict=True):
        _bars(axes, report.rows, numbers, digits)
        axes.set_xlabel(label)
    panels[0].set_yticks(range(len(report.rows)), [row.method.label for row in report.rows])
    panels[0].invert_yaxis()
    _headline(figure, f"{report.name}, {report.kind_in_words}")
    return _png(figure)


def sweep_png(report: Report, sweep: Sweep) -> bytes:
    """R@1, where the right items are known, and skewness against the query bank's beta."""
    known = not math.isnan(sweep.curves[0].recall_at_1[0])
    figure = Figure(figsize=(10 if known else 5.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 1 + known, squeeze=False)[0]
    styles: list[dict[str, Any]] = [
        {"color": _RAW, "linestyle": ":", "linewidth": 1.8},
        {"color": _CORRECTED, "marker": "o", "markersize": 4, "linewidth": 2},
        {"color": _SECOND, "marker": "s", "markersize": 4, "linewidth": 2, "linestyle": "--"},
    ]
    for curve, style in zip(sweep.curves, styles, strict=False):
        if known:
            panels[0].plot(sweep.betas, curve.recall_at_1, label=curve.label, **style)
        panels[-1].plot(sweep.betas, curve.skewness, label=curve.label, **style)
    if known:
        panels[0].set_ylabel("R@1 (% of queries)")
    panels[-1].set_ylabel(f"Skewness of the {report.k}-occurrence")
    for axes in panels:
        axes.axvline(sweep.beta, color=_EVEN, linestyle="-", linewidth=1, zorder=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sweep.betas))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(_plain)
        axes.set_xlabel("Inverse temperature of the query bank (line: the table's)")
        _tidy(axes)
    panels[-1].legend(frameon=False, fontsize=9)
    _headline(figure, f"{report.name}, {sweep.num_queries:,} queries")
    return _png(figure)


def banks_png(report: Report, found: Inspection) -> bytes:
    """Where hubs lie: similarity to the query bank and to the gallery bank, and k-occurrence."""
    before, after = found.counts
    others = np.ones(len(before), bool)
    others[found.hubs] = others[found.anti_hubs] = False
    groups = (
        ("others", np.flatnonzero(others), _OTHERS, "o", 14),
        (f"anti-hubs ({len(found.anti_hubs):,})", found.anti_hubs, _CORRECTED, "v", 20),
        (f"hubs ({len(found.hubs):,})", found.hubs, _RAW, "D", 20),
    )
    figure = Figure(figsize=(10, 4.9), layout="constrained")
    banks, changes = figure.subplots(1, 2)
    query, gallery = found.similarities
    for label, items, color, marker, size in groups:
        if not len(items):
            continue
        style: dict[str, Any] = {"color": color, "marker": marker, "s": size, "linewidths": 0}
        banks.scatter(query[items], gallery[items], label=label, alpha=0.75, **style)
        banks.axvline(float(np.median(query[items])), color=color, linestyle=":", linewidth=1.4)
        banks.axhline(float(np.median(gallery[items])), color=color, linestyle=":", linewidth=1.4)
        changes.scatter(before[items], after[items], alpha=0.75, **style)
    banks.set_xlabel("Mean similarity to the 10 nearest of the query bank")
    banks.set_ylabel("... and of the gallery bank")
    title = "Where hubs lie (dotted: medians)"
    if not any(math.isnan(value) for value in found.correlations):
        with_query, with_gallery, _ = found.correlations
        title += f"\nrank correlation with N_{report.k}: {with_query:+.2f} and {with_gallery:+.2f}"
    banks.set_title(title, fontsize=11)
    most = max(int(before.max()), int(after.max()), 1)
    changes.plot([0, most], [0, most], color=_EVEN, linestyle=":", linewidth=1.4)
    changes.set_xscale("symlog", linthresh=1, linscale=0.4)
    changes.set_yscale("symlog", linthresh=1, linscale=0.4)
    steps = [scale * 10**power for power in range(9) for scale in (1, 2, 5)]
    ticks = [0, *(step for step in steps if step <= most)]
    for axis in (changes.xaxis, changes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(_plain)
    changes.set_xlabel(f"Raw N_{report.k}: queries with the item in their top {report.k}")
    changes.set_ylabel(f"N_{report.k} under {report.rows[1].method.label}")
    changes.set_title("Before and after (dotted: unchanged)", fontsize=11)
    if found.flagged:
        ring: dict[str, Any] = {"s": 90, "facecolors": "none", "edgecolors": "black"}
        label = f"flagged by the screening ({len(found.flagged):,})"
        banks.scatter(query[found.flagged], gallery[found.flagged], label=label, **ring)
        changes.scatter(before[found.flagged], after[found.flagged], **ring)
    for axes in (banks, changes):
        _tidy(axes)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    _headline(figure, f"{report.name}: {len(before):,} items")
    return _png(figure)


def _bars(axes: Axes, rows: Sequence[ResultRow], numbers: list[float], digits: str) -> None:
    colors = [_RAW if row.method.kind == "raw" else _CORRECTED for row in rows]
    bars = axes.barh(range(len(rows)), numbers, color=colors, height=0.68)
    axes.bar_label(bars, [f"{number:{digits}}" for number in numbers], padding=3, fontsize=9)
    raw = [number for row, number in zip(rows, numbers, strict=True) if row.method.kind == "raw"]
    if raw:  # to read gains and losses off
        axes.axvline(raw[0], color=_RAW, linestyle=":", linewidth=1.2, zorder=0)
    axes.margins(x=0.14)
    axes.tick_params(axis="y", length=0)
    _tidy(axes, grid=False)


def _tidy(axes: Axes, *, grid: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)


def _headline(figure: Figure, text: str) -> None:
    # File names may hold dollar signs, which are no formulas here.
    figure.suptitle(text, fontsize=12, parse_math=False)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # A set named in a script the font lacks is still worth its picture.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()
