"""Time against the number of bank items, gallery items and queries, with a plot.

    python -m benchmarks.speed.scaling [--smallest 4096] [--steps 4] [--gallery 10240] [--dim 512]

Every size is twice the one before; all are interleaved, each beside its bare scan. The slope is
that of a line through log(shortest time) over log(size). Sizes above 1024 are multiples of it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dbnorm_jax as dbn
from benchmarks.speed.search import corrections
from benchmarks.support import common, report
from benchmarks.support.common import COLORS, Timing, bare_scan, interleaved, unit_rows
from benchmarks.support.report import Figure, Record, Target

SIZES = {"smallest": 4096, "steps": 4, "gallery": 10240, "dim": 512, "repetitions": 7}
SLOPE = Target(0.97, 1.03)
PICTURE = "scaling.png"


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Of the least-squares line in log-log."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def works(sizes: Sequence[int], gallery: int, dim: int) -> dict[str, Callable[[int], tuple]]:
    """For each axis: size -> (bare scan, the library's step), ready to be called."""
    rows, items = unit_rows(0, max(sizes), dim), unit_rows(1, max(*sizes, gallery), dim)
    some, fixed = rows[: min(sizes)], items[:gallery]
    fitted = corrections(some, unit_rows(3, min(sizes), dim), fixed)["DualIS"]
    jax.block_until_ready((some, fixed, fitted.bias))
    fit = partial(dbn.stream_bank_statistics, beta=20.0)

    def bank(size: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        part = jax.block_until_ready(rows[:size])
        return partial(bare_scan, part, fixed), partial(fit, part, fixed)

    def columns(size: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        part = jax.block_until_ready(items[:size])
        return partial(bare_scan, some, part), partial(fit, some, part)

    def queries(size: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        part = jax.block_until_ready(rows[:size])
        search = partial(dbn.stream_top_k, part, fixed, 10, fitted)
        return partial(bare_scan, part, fixed), search

    return {
        "fit, bank items": bank,
        "fit, gallery items": columns,
        "DualIS k=10, queries": queries,
    }


def run(
    smallest: int,
    steps: int,
    gallery: int,
    dim: int,
    repetitions: int,
    picture: Path = report.RESULTS / PICTURE,
) -> list[Record]:
    """Slopes, share of the bare scan's speed, and the picture."""
    sizes = [smallest * 2**step for step in range(steps)]
    figures, curves = [], {}
    for axis, make in works(sizes, gallery, dim).items():
        contenders = {}
        for size in sizes:
            contenders[f"bare {size}"], contenders[f"ours {size}"] = make(size)
        timings = interleaved(contenders, repetitions)
        curves[axis] = {
            who: [timings[f"{who} {size}"] for size in sizes] for who in ("bare", "ours")
        }
        bare, ours = (
            [float(timing.seconds.min()) for timing in curves[axis][who]] for who in curves[axis]
        )
        figures += [
            Figure(f"{axis}: slope", slope(sizes, ours), "log s / log n", SLOPE),
            Figure(f"{axis}: slope of bare", slope(sizes, bare), "log s / log n"),
        ]
        figures += [
            common.ratio(f"{axis}: {size}", timing, base)
            for size, timing, base in zip(
                sizes, curves[axis]["ours"], curves[axis]["bare"], strict=True
            )
        ]
    draw(sizes, curves, picture)
    options = {"sizes": sizes, "gallery": gallery, "dim": dim, "repetitions": repetitions}
    title = f"scaling: n = {', '.join(map(str, sizes))}; gallery {gallery} x dim {dim}"
    return [Record("scaling", title, options, figures, [f"plot: {picture.name}"])]


def draw(sizes: Sequence[int], curves: dict[str, dict[str, list[Timing]]], picture: Path) -> None:
    """Time against n, and the share of the bare scan's speed that is reached."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    for color, (axis, timings) in zip(COLORS, curves.items(), strict=False):
        for who, style in (("ours", "o-"), ("bare", "x:")):
            shortest = [timing.seconds.min() for timing in timings[who]]
            label = axis if who == "ours" else None
            left.loglog(sizes, shortest, style, color=color, label=label, alpha=0.9, markersize=5)
        shares = np.array(
            [
                100 * bare.seconds / ours.seconds
                for bare, ours in zip(timings["bare"], timings["ours"], strict=True)
            ]
        )
        low, middle, high = np.percentile(shares, [25, 50, 75], axis=1)
        right.errorbar(
            sizes,
            middle,
            (middle - low, high - middle),
            fmt="o-",
            color=color,
            label=axis,
            capsize=3,
        )
    left.set(xlabel="n", ylabel="shortest time (s)", title="Time")
    right.set(
        xlabel="n",
        ylabel="% of the bare scan's speed",
        title="Share of the roofline",
        xscale="log",
        ylim=(0, 110),
    )
    right.axhline(100, color="gray", linestyle=":", linewidth=1)
    for axes in (left, right):
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    left.plot([], [], "x:", color="gray", label="bare scan of the same shapes")
    left.legend(fontsize=8, loc="upper left")
    right.legend(fontsize=8, loc="lower right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    report.command(__doc__, run, SIZES)
