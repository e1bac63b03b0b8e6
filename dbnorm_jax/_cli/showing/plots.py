"""The pictures: how unevenly the gallery is retrieved, what methods gain, where the hubs lie."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.hubs import Inspection
from dbnorm_jax._cli.measuring.story import Sweep, shown_row
from dbnorm_jax._cli.measuring.table_rows import ResultRow
from dbnorm_jax._cli.showing.table import Report
from dbnorm_jax._src.core.text import printable

# Okabe and Ito's colors, told apart with any color vision; line styles differ as well.
_RAW, _CORRECTED, _EVEN = "#D55E00", "#0072B2", "#767676"
_OTHERS, _SECOND = "#B5B5B5", "#009E73"
_DOTTED: dict[str, Any] = {"color": _EVEN, "linestyle": ":", "linewidth": 1.4}
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9}
_PLAIN = "{x:g}"


def k_occurrence_png(report: Report) -> bytes:
    """Rank plot and Lorenz curve of the k-occurrence, raw against corrected."""
    shown = shown_row(report.rows)
    rows = [report.rows[0]]
    if shown is not None:
        rows.append(shown)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    ranked, lorenz = figure.subplots(1, 2)
    _ranks(ranked, report, rows)
    _shares(lorenz, report, rows)
    return _png(figure, f"Who is retrieved: {report.name}")


_CURVES: tuple[dict[str, Any], ...] = (
    {"color": _RAW, "linestyle": "-", "linewidth": 2.2},
    {"color": _CORRECTED, "linestyle": (0, (5, 1.5)), "linewidth": 2.2},
)


def _ranks(axes: Axes, report: Report, rows: Sequence[ResultRow]) -> None:
    for row, style in zip(rows, _CURVES, strict=False):
        counts = np.sort(row.k_occurrence)[::-1]
        counts = counts[counts > 0]  # a logarithm has no place for zeros: there the curve ends
        never = f"{row.anti_hub_share:.1f} % of items never"
        label = f"{row.method.label}: most {counts.max()} times, {never}"
        axes.plot(np.arange(1, len(counts) + 1), counts, label=label, **style)
        axes.plot(len(counts), counts[-1], marker="o", markersize=5, color=style["color"])
    mean = report.k * report.sizes["queries"] / report.sizes["gallery"]
    axes.axhline(mean, label=f"mean: {mean:.3g}", **_DOTTED)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="Gallery items, most retrieved first (place)",
        ylabel=f"Queries with the item in their top {report.k} (number)",
    )
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(_PLAIN)
    axes.yaxis.set_minor_formatter(NullFormatter())
    title = f"{report.k}-occurrence by rank (dot: items beyond it are never retrieved)"
    _tidy(axes, title)
    axes.legend(loc="lower left", **_LEGEND)


def _shares(axes: Axes, report: Report, rows: Sequence[ResultRow]) -> None:
    for row, style in zip(rows, _CURVES, strict=False):
        counts = np.sort(row.k_occurrence)
        shares = 100 * np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
        label = f"{row.method.label}: Gini {float(dbn.hubness.gini(row.k_occurrence)):.2f}"
        axes.plot(np.linspace(0, 100, len(shares)), shares, label=label, **style)
    axes.plot([0, 100], [0, 100], label="all alike: Gini 0", **_DOTTED)
    axes.set(
        xlabel="Gallery items, least retrieved first (%)",
        ylabel=f"Share of all top-{report.k} places (%)",
        xlim=(0, 100),
        ylim=(0, 100),
        aspect="equal",
    )
    _tidy(axes, "Lorenz curve")
    axes.legend(loc="upper left", **_LEGEND)


def methods_png(report: Report) -> bytes:
    """Bars of R@1, where the right items are known, and of skewness."""
    skewness = f"Skewness of the {report.k}-occurrence (lower: fewer hubs)"
    values = [(skewness, [row.skewness for row in report.rows], ".2f")]
    recalls = [row.recall_at_1 for row in report.rows]
    if not any(map(math.isnan, recalls)):
        values.insert(0, ("R@1 (% of queries, higher is better)", recalls, ".1f"))
    height = 1.5 + 0.42 * len(report.rows)
    figure = Figure(figsize=(1.5 + 4.3 * len(values), height), layout="constrained")
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    places = range(len(report.rows))
    for axes, (label, numbers, digits) in zip(panels, values, strict=True):
        colors = [_RAW, *[_CORRECTED] * (len(numbers) - 1)]
        bars = axes.barh(places, numbers, color=colors, height=0.68)
        axes.bar_label(bars, [f"{number:{digits}}" for number in numbers], padding=3, fontsize=9)
        # To read gains and losses off.
        axes.axvline(numbers[0], color=_RAW, linestyle=":", linewidth=1.2, zorder=0)
        axes.margins(x=0.14)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
        _tidy(axes, grid=False)
    panels[0].set_yticks(places, [row.method.label for row in report.rows])
    panels[0].invert_yaxis()
    return _png(figure, report.name)


def sweep_png(report: Report, sweep: Sweep) -> bytes:
    """R@1, where the right items are known, and skewness against the query bank's beta."""
    known = not math.isnan(sweep.curves[0].recall_at_1[0])
    figure = Figure(figsize=(10 if known else 5.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 1 + known, squeeze=False)[0]
    styles: tuple[dict[str, Any], ...] = (
        {"color": _RAW, "linestyle": ":", "linewidth": 1.8},
        {"color": _CORRECTED, "marker": "o", "markersize": 4, "linewidth": 2},
        {"color": _SECOND, "marker": "s", "markersize": 4, "linewidth": 2, "linestyle": "--"},
    )
    for curve, style in zip(sweep.curves, styles, strict=False):
        if known:
            panels[0].plot(sweep.betas, curve.recall_at_1, label=curve.label, **style)
        panels[-1].plot(sweep.betas, curve.skewness, label=curve.label, **style)
    if known:
        panels[0].set_ylabel("R@1 (% of queries)")
    panels[-1].set_ylabel(f"Skewness of the {report.k}-occurrence")
    for axes in panels:
        axes.axvline(sweep.beta, color=_EVEN, linestyle="-", linewidth=1, zorder=0)
        axes.set(xscale="log", xlabel="Inverse temperature of the query bank (line: the table's)")
        _mark(axes.xaxis, sweep.betas)
        _tidy(axes)
    panels[-1].legend(**_LEGEND)
    return _png(figure, f"{report.name}, {sweep.num_queries:,} queries")


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
    if not any(map(math.isnan, found.correlations)):
        with_query, with_gallery, _ = found.correlations
        title += f"\nrank correlation with N_{report.k}: {with_query:+.2f} and {with_gallery:+.2f}"
    most = max(int(before.max()), int(after.max()), 1)
    changes.plot([0, most], [0, most], **_DOTTED)
    changes.set_xscale("symlog", linthresh=1, linscale=0.4)
    changes.set_yscale("symlog", linthresh=1, linscale=0.4)
    steps = [scale * 10**power for power in range(9) for scale in (1, 2, 5)]
    ticks = [0, *(step for step in steps if step <= most)]
    _mark(changes.xaxis, ticks)
    _mark(changes.yaxis, ticks)
    changes.set_xlabel(f"Raw N_{report.k}: queries with the item in their top {report.k}")
    changes.set_ylabel(f"N_{report.k} under {report.rows[1].method.label}")
    if found.flagged:
        ring: dict[str, Any] = {"s": 90, "facecolors": "none", "edgecolors": "black"}
        label = f"flagged by the screening ({len(found.flagged):,})"
        banks.scatter(query[found.flagged], gallery[found.flagged], label=label, **ring)
        changes.scatter(before[found.flagged], after[found.flagged], **ring)
    _tidy(banks, title)
    _tidy(changes, "Before and after (dotted: unchanged)")
    figure.legend(loc="outside lower center", ncols=4, **_LEGEND)
    return _png(figure, f"{report.name}: {len(before):,} items")


def _mark(axis: Axis, places: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(places))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_PLAIN)


def _tidy(axes: Axes, title: str = "", *, grid: bool = True) -> None:
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)


def _png(figure: Figure, headline: str) -> bytes:
    # File names may hold dollar signs, which are no formulas here.
    figure.suptitle(printable(headline), fontsize=12, parse_math=False)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # A set named in a script the font lacks is still worth its picture.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()
