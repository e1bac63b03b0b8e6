"""The pictures: how unevenly the gallery is retrieved, what methods gain, where the hubs lie."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.hubs import Inspection
from dbnorm_jax._cli.measuring.story import Sweep, shown_row
from dbnorm_jax._cli.measuring.table_rows import ResultRow
from dbnorm_jax._cli.showing.table import Report
from dbnorm_jax._src.core.text import printable

# Okabe and Ito's colors, told apart with any color vision; line styles differ as well. On dark
# ground they are lighter. A theme says what the names stand for.
_RAW, _CORRECTED, _SECOND, _EVEN, _OTHERS = (f"C{place}" for place in range(5))
_LIGHT: Any = {
    "axes.prop_cycle": cycler(color=["#D55E00", "#0072B2", "#009E73", "#767676", "#B5B5B5"]),
    "grid.color": "#E4E4E4",
}
_DARK: Any = {
    "axes.prop_cycle": cycler(color=["#F0813A", "#3C8FCA", "#2FC79B", "#9A9A9A", "#6A6A6A"]),
    "grid.color": "#33383E",
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "#16191D"),
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#E6E6E6"
    ),
}
_DOTTED: dict[str, Any] = {"color": _EVEN, "linestyle": ":", "linewidth": 1.4}
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9}
_PLAIN = "{x:g}"
# Of a chart that stands alone: at 400 pixels its letters are those of a caption.
_WIDTH, _HEIGHT = 4.6, 4.2


class Chart(NamedTuple):
    """A chart, drawn beside others into a file or alone into the page."""

    says: str  # its numbers in words, for those who do not see it
    draw: Callable[[Axes], None]
    height: float = _HEIGHT  # inches

    def png(self, *, dark: bool) -> bytes:
        """The chart alone, as wide as a column of the page."""
        with mpl.rc_context(_DARK if dark else _LIGHT):
            figure = Figure(figsize=(_WIDTH, self.height), layout="constrained")
            self.draw(figure.subplots())
            return _png(figure)


def _side_by_side(charts: Sequence[Chart], headline: str) -> bytes:
    with mpl.rc_context(_LIGHT):
        size = (_WIDTH * len(charts) + 0.6, charts[0].height + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        for axes, chart in zip(
            figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True
        ):
            chart.draw(axes)
        return _png(figure, headline)


def k_occurrence_png(report: Report) -> bytes:
    """Rank plot and Lorenz curve of the k-occurrence, raw against corrected."""
    headline = f"Who is retrieved: {report.name}"
    return _side_by_side(k_occurrence_charts(report), headline)


def k_occurrence_charts(report: Report) -> list[Chart]:
    """Rank plot and Lorenz curve of the k-occurrence, raw against corrected."""
    shown = shown_row(report.rows)
    rows = [report.rows[0]]
    if shown is not None:
        rows.append(shown)
    ranked, shared = [], []
    for row in rows:
        counts, label = np.sort(row.k_occurrence)[::-1], row.method.label
        tenth = math.ceil(len(counts) / 10)
        ranked.append(
            f"{label}: the most retrieved item is in the top {report.k} of {counts[0]:,} queries, "
            f"the median item of {np.median(counts):g}, {row.anti_hub_share:.1f} % of items of none"
        )
        share = 100 * counts[:tenth].sum() / counts.sum()
        shared.append(
            f"{label}: the most retrieved 10 % of items take {share:.0f} % of all places, Gini "
            f"{_gini(row):.2f}"
        )
    says = f"{report.k}-occurrence by rank, mean {_mean_occurrence(report):.3g}. "
    return [
        Chart(f"{says}{'. '.join(ranked)}.", lambda axes: _ranks(axes, report, rows)),
        Chart(f"Lorenz curve. {'. '.join(shared)}.", lambda axes: _shares(axes, report, rows)),
    ]


_CURVES: tuple[dict[str, Any], ...] = (
    {"color": _RAW, "linestyle": "-", "linewidth": 2.2},
    {"color": _CORRECTED, "linestyle": (0, (5, 1.5)), "linewidth": 2.2},
)


def _mean_occurrence(report: Report) -> float:
    return report.k * report.sizes["queries"] / report.sizes["gallery"]


def _gini(row: ResultRow) -> float:
    return float(dbn.hubness.gini(row.k_occurrence))


def _ranks(axes: Axes, report: Report, rows: Sequence[ResultRow]) -> None:
    for row, style in zip(rows, _CURVES, strict=False):
        counts = np.sort(row.k_occurrence)[::-1]
        counts = counts[counts > 0]  # a logarithm has no place for zeros: there the curve ends
        never = f"{row.anti_hub_share:.1f} % of items never"
        label = f"{row.method.label}: most {counts.max()} times,\n{never}"
        axes.plot(np.arange(1, len(counts) + 1), counts, label=label, **style)
        axes.plot(len(counts), counts[-1], marker="o", markersize=5, color=style["color"])
    mean = _mean_occurrence(report)
    axes.axhline(mean, label=f"mean: {mean:.3g}", **_DOTTED)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="Gallery items, most retrieved first",
        ylabel=f"Queries with the item in their top {report.k}",
    )
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(_PLAIN)
    axes.yaxis.set_minor_formatter(NullFormatter())
    _tidy(axes, f"{report.k}-occurrence by rank (dot: the last retrieved)")
    axes.legend(loc="lower left", **_LEGEND)


def _shares(axes: Axes, report: Report, rows: Sequence[ResultRow]) -> None:
    for row, style in zip(rows, _CURVES, strict=False):
        counts = np.sort(row.k_occurrence)
        shares = 100 * np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
        label = f"{row.method.label}: Gini {_gini(row):.2f}"
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
    return _side_by_side(methods_charts(report), report.name)


def methods_charts(report: Report) -> list[Chart]:
    """Bars of R@1 with the gains' intervals, where right items are known, and of skewness."""
    rows, height = report.rows, 1.3 + 0.42 * len(report.rows)
    skewness = [f"{row.method.label} {row.skewness:.2f}" for row in rows]
    charts = [
        Chart(
            f"Skewness of the {report.k}-occurrence: {', '.join(skewness)}.",
            lambda axes: _bars(
                axes, rows, [row.skewness for row in rows], ".2f", f"Skewness of N_{report.k}"
            ),
            height,
        )
    ]
    recalls = [row.recall_at_1 for row in rows]
    if any(map(math.isnan, recalls)):
        return charts
    known = [f"raw {recalls[0]:.1f} %"]
    known += [
        f"{row.method.label} {row.recall_at_1:.1f} % ({row.gain:+.1f} ± {row.gain_interval:.1f})"
        for row in rows[1:]
    ]
    intervals = [0.0, *(row.gain_interval for row in rows[1:])]
    label = "R@1 in % (whisker: gain's 95 % interval)"
    chart = Chart(
        f"R@1, and the gain over raw in points with its 95 % interval: {', '.join(known)}.",
        lambda axes: _bars(axes, rows, recalls, ".1f", label, intervals),
        height,
    )
    return [chart, *charts]


def _bars(
    axes: Axes,
    rows: Sequence[ResultRow],
    numbers: Sequence[float],
    digits: str,
    label: str,
    intervals: Sequence[float] | None = None,
) -> None:
    """One bar a method; `intervals`: half the lengths of whiskers, none for raw."""
    places, colors = range(len(rows)), [_RAW, *[_CORRECTED] * (len(rows) - 1)]
    axes.barh(places, numbers, color=colors, height=0.68)
    ends = np.array(numbers, float)
    if intervals is not None:
        ink = {"color": mpl.rcParams["text.color"], "linestyle": "none", "linewidth": 1.4}
        axes.errorbar(numbers[1:], places[1:], xerr=intervals[1:], capsize=3, **ink)
        ends += intervals
    for place, number in enumerate(numbers):
        axes.annotate(
            f"{number:{digits}}",
            (max(ends[place], 0), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    # To read gains and losses off.
    axes.axvline(numbers[0], color=_RAW, linestyle=":", linewidth=1.4, zorder=3)
    axes.margins(x=0.16)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    axes.set_yticks(places, [row.method.label for row in rows])
    axes.invert_yaxis()
    _tidy(axes, grid=False)


_SWEPT: tuple[dict[str, Any], ...] = (
    {"color": _RAW, "linestyle": ":", "linewidth": 1.8},
    {"color": _CORRECTED, "marker": "o", "markersize": 4, "linewidth": 2},
    {"color": _SECOND, "marker": "s", "markersize": 4, "linewidth": 2, "linestyle": "--"},
)


def sweep_charts(report: Report, sweep: Sweep) -> list[Chart]:
    """R@1, where right items are known, and skewness against the query bank's beta."""
    skewness, charts = f"Skewness of the {report.k}-occurrence", []
    if not math.isnan(sweep.curves[0].recall_at_1[0]):
        charts.append(
            Chart(
                _swept("R@1 in %", sweep, [curve.recall_at_1 for curve in sweep.curves], ".1f"),
                lambda axes: _recalls(axes, sweep),
            )
        )
    values = [curve.skewness for curve in sweep.curves]
    charts.append(
        Chart(
            _swept(skewness, sweep, values, ".2f"),
            lambda axes: _over_betas(axes, sweep, values, skewness),
        )
    )
    return charts


def _swept(measure: str, sweep: Sweep, values: Sequence[Sequence[float]], digits: str) -> str:
    betas = ", ".join(f"{beta:g}" for beta in sweep.betas)
    level = f"{sweep.curves[0].label} {values[0][0]:{digits}}"
    others = [
        f"{curve.label} {', '.join(f'{value:{digits}}' for value in numbers)}"
        for curve, numbers in zip(sweep.curves[1:], values[1:], strict=True)
    ]
    return (
        f"{measure} of {sweep.num_queries:,} queries at beta {betas}: {'; '.join(others)}; {level}."
    )


def _recalls(axes: Axes, sweep: Sweep) -> None:
    values = [curve.recall_at_1 for curve in sweep.curves]
    _over_betas(axes, sweep, values, "R@1 in % (band: gain's 95 % interval)")
    for curve, style in zip(sweep.curves[1:], _SWEPT[1:], strict=False):
        middle, half = np.array(curve.recall_at_1), np.array(curve.intervals)
        axes.fill_between(
            sweep.betas, middle - half, middle + half, color=style["color"], alpha=0.2, linewidth=0
        )


def _over_betas(axes: Axes, sweep: Sweep, values: Sequence[Sequence[float]], label: str) -> None:
    for curve, numbers, style in zip(sweep.curves, values, _SWEPT, strict=False):
        axes.plot(sweep.betas, numbers, label=curve.label, **style)
    axes.axvline(sweep.beta, color=_EVEN, linestyle="-", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="Beta of the query bank (line: the table's)", ylabel=label)
    _mark(axes.xaxis, sweep.betas)
    _tidy(axes)
    axes.legend(**_LEGEND)


def banks_png(report: Report, found: Inspection) -> bytes:
    """Where hubs lie: similarity to the query bank and to the gallery bank, and k-occurrence."""
    with mpl.rc_context(_LIGHT):
        return _banks_png(report, found)


def _banks_png(report: Report, found: Inspection) -> bytes:
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
        axes.grid(linewidth=0.7)
    axes.set_axisbelow(True)


def _png(figure: Figure, headline: str = "") -> bytes:
    if headline:
        # File names may hold dollar signs, which are no formulas here.
        figure.suptitle(printable(headline), fontsize=12, parse_math=False)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # A set named in a script the font lacks is still worth its picture.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()
