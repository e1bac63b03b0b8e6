"""The two pictures: how unevenly the gallery is retrieved, and what each method gains."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import dbnorm_jax as dbn
from dbnorm_jax._cli.evaluation import ResultRow
from dbnorm_jax._cli.table import Report

# Okabe and Ito's colours, told apart with any colour vision; line styles differ as well.
_RAW, _CORRECTED, _EVEN = "#D55E00", "#0072B2", "#767676"
_DPI = 150

# The corrected method shown against raw: the first of these that was run.
_SHOWN = ("dualis", "is", "dualdis", "dis", "published")


def k_occurrence_png(report: Report) -> bytes:
    """Rank plot and Lorenz curve of the k-occurrence, raw against corrected."""
    rows = [row for row in report.rows if row.method.kind == "raw"]
    for kind in _SHOWN:
        found = [row for row in report.rows if row.method.kind == kind]
        if found:
            rows.append(found[0])
            break
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
