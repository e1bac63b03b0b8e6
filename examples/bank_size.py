"""How many bank items are enough: what IS and DIS gain against the size of the bank.

    python -m examples.bank_size [SET.npz ...] [--output bank_size.png]

Two sets come along, names of characters to their pictures and names of emoji across languages;
others of yours (as for `dbnorm evaluate`: query, gallery, query_bank) are one panel more each. Of
the query bank so many items are drawn at random, five times; the beta stays. Intervals are of 95 %,
over queries and draws. Where the bank is small, its sum may be wrong about an item: the gate of DIS
then leaves most queries alone, which keeps it from losing much, and from gaining.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet
from examples import glyphs
from examples.common import arguments, hits

BETA = 20.0
SIZES = (25, 50, 100, 200, 400, 800, 1600)
DRAWS = 5
STYLES = {
    "IS": {"color": "#0072B2", "marker": "o"},
    "DIS": {"color": "#009E73", "marker": "s", "linestyle": "--"},
}

Gains = dict[int, dict[str, tuple[float, float]]]


def gains(test: EvaluationSet) -> Gains:
    """By bank size and method: mean gain in points of R@1, and half the width of its interval."""
    raw = hits(test)
    bank, gallery = jnp.asarray(test.query_bank), jnp.asarray(test.gallery)
    found = {}
    for size in [*(size for size in SIZES if size < len(bank)), len(bank)]:
        changes: dict[str, list[np.ndarray]] = {name: [] for name in STYLES}
        for seed in range(DRAWS if size < len(bank) else 1):
            # A drawn bank as weights: the same shapes, so nothing is compiled anew.
            drawn = np.random.default_rng(seed).permutation(len(bank))[:size]
            weights = jnp.zeros(len(bank)).at[drawn].set(1)
            statistics = dbn.stream_bank_statistics(bank, gallery, beta=BETA, weights=weights)
            for name, correction in (
                ("IS", dbn.inverted_softmax(statistics)),
                ("DIS", dbn.dynamic_inverted_softmax(statistics)),
            ):
                changes[name].append(100 * (hits(test, correction) - raw))
        found[size] = {name: interval(np.array(values)) for name, values in changes.items()}
    return found


def interval(changes: np.ndarray) -> tuple[float, float]:
    """Mean of [draws, queries], and half the width of its 95 % interval over both."""
    draws, queries = changes.shape
    variance = changes.mean(axis=0).var() / queries
    if draws > 1:
        variance += changes.mean(axis=1).var(ddof=1) / draws
    return float(changes.mean()), float(1.96 * variance**0.5)


def draw(results: dict[str, Gains]) -> Figure:
    """A panel for each set: gain against bank size."""
    rows = -(-len(results) // 3)
    columns = -(-len(results) // rows)
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, found) in zip(panels, results.items(), strict=False):
        for shift, (name, style) in zip((0.97, 1.03), STYLES.items(), strict=True):
            means, widths = zip(*(found[size][name] for size in found), strict=True)
            places = [shift * size for size in found]  # beside each other, to be seen
            axes.errorbar(places, means, widths, label=f"{name}({BETA:g})", capsize=2, **style)
        axes.axhline(0, color="#D55E00", linestyle=":", label="raw")
        axes.set_xscale("log")
        ticks = [size for size in (25, 100, 400, 1600) if size <= max(found)]
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("Bank items")
        axes.set_ylabel("Gain (points of R@1)")
        axes.grid(color="#E4E4E4", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def main() -> None:
    """Prints a line for each size and draws a panel for each set."""
    given = arguments("bank_size", "files of more sets of embeddings")
    tests = [glyphs.load()[0], emoji_names("en", "de")]
    tests += [read_set(path, "cosine") for path in given.sets]
    results: dict[str, Gains] = {}
    enough = []
    for test in tests:
        results[test.name] = found = gains(test)
        print(f"{test.name}: {len(test.queries):,} queries, {len(test.gallery):,} gallery items")
        for size, methods in found.items():
            told = (f"{name} {gain:+5.1f} ± {error:.1f}" for name, (gain, error) in methods.items())
            print(f"  bank of {size:5,}: {'   '.join(told)}", flush=True)
        sure = (size for size in found if found[size]["IS"][0] > found[size]["IS"][1])
        enough.append(f"{next(sure, 'none')}")
        jax.clear_caches()  # the next set has other shapes
    draw(results).savefig(given.output, dpi=110)
    print(
        f"\nThe smallest bank from which IS gained beyond its interval, set by set: "
        f"{', '.join(enough)}. Drawn: {given.output}"
    )


if __name__ == "__main__":
    main()
