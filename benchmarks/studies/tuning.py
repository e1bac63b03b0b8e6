"""The automatic choice beside the best possible one: gains in R@1 over raw, on many sets.

    python -m benchmarks.studies.tuning [--set DIR/data.npz ...] [--draws 5] [--cache DIR]
        [--seconds S]

Sets, directions and banks as in `benchmarks.studies.quality`. Per draw of the bank,
`dbnorm_jax.auto` sees the gallery and the banks with their pairs, never a test query. Beside it
stand

    oracle       the best of all candidates, chosen on the test queries themselves, draw by draw
    debiased     the same less its luck on these queries, by the bootstrap (`significance.oracle`)
    halves       chosen on one half of the test queries, judged by the other
    unguarded    the candidate of the highest held-out gain, significant or not
    fixed        the defaults of `dbnorm evaluate`

A cell is a set, a direction and a size of the bank. *Could show*: the smallest gain in R@1 that its
queries show in 4 of 5 samples (McNemar's test at 5 %), if as many answers change as under the
oracle's candidate. Standard errors and intervals of means are clustered by set. With --cache, draws
done are kept there; with --seconds, no draw begins after so long, and another run goes on: long
studies run in pieces.
"""

import argparse
import dataclasses
import hashlib
import itertools
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies.quality import LANGUAGES, draws
from benchmarks.studies.significance import (
    clustered,
    holm,
    loss,
    oracle,
    set_of,
    smallest_effect,
)
from benchmarks.support.common import COLORS, MARKERS, machine
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set
from dbnorm_jax._src.core.relevance import as_rows
from dbnorm_jax._src.corrections.streamed import Streamed
from dbnorm_jax._src.corrections.table import TABLE
from dbnorm_jax._src.tuning import grid as candidates
from dbnorm_jax._src.tuning import held_out, mixture

SIZES = (100, 300, 1000, None)
FIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "IS(20)": ("is", {"beta_query": 20.0}),
    "DIS(20)": ("dis", {"beta_query": 20.0}),
    "DualIS(20, 1)": ("dualis", {"beta_query": 20.0, "beta_gallery": 1.0}),
    "DualDIS(20, 1)": ("dualdis", {"beta_query": 20.0, "beta_gallery": 1.0}),
    "CSLS(10)": ("csls", {"k": 10}),
    "NNN(128, 0.75)": ("nnn", {"k": 128, "weight": 0.75}),
}


class Draw(NamedTuple):
    """One draw of the bank."""

    raw: np.ndarray  # [num_queries] bool, right item first
    auto: np.ndarray  # [num_queries] bool
    gains: np.ndarray  # [num_candidates] points of R@1 on the test
    oracle: np.ndarray  # [3] points of the best of them: plain, debiased, by halves
    discordance: float  # share of answers that it changes
    fixed: np.ndarray  # [num_fixed]
    unguarded: float  # gain of the candidate of the highest held-out gain
    kept_raw: bool
    method: str


Cell = tuple[str, str]  # (set and direction, size of the bank)


def plan(
    paths: Sequence[str],
    sizes: Sequence[int | None],
    num_draws: int,
    languages: Sequence[tuple[str, str]] = LANGUAGES,
) -> Iterator[tuple[Cell, int, Callable[[], EvaluationSet]]]:
    """Every draw: its cell, its number, and how it is made."""

    def drawn(test: EvaluationSet, size: int | None, number: int) -> EvaluationSet:
        return list(draws(test, size, number + 1))[-1]

    for source, target in languages:
        for reverse, size, number in itertools.product((False, True), sizes, range(num_draws)):
            if size is not None and size >= len(emoji_names(source, target, 0).query_bank):
                continue

            def emoji(
                source: str = source,
                target: str = target,
                reverse: bool = reverse,
                size: int | None = size,
                number: int = number,
            ) -> EvaluationSet:
                test = emoji_names(source, target, number)  # a split of its own
                return drawn(reversed_set(test) if reverse else test, size, number)

            ends = (target, source) if reverse else (source, target)
            yield (f"emoji {ends[0]} -> {ends[1]}", _label(size)), number, emoji
    for path in paths:
        test = read_set(path, "cosine")
        for reverse, size in itertools.product((False, True), sizes):
            if size is not None and size >= len(test.query_bank):
                continue
            whole = reversed_set(test) if reverse else test
            for number in range(num_draws if size is not None else 1):
                cell = (f"{test.name}{', reversed' * reverse}", _label(size))
                yield (
                    cell,
                    number,
                    lambda whole=whole, size=size, number=number: drawn(whole, size, number),
                )


def _label(size: int | None) -> str:
    return "all" if size is None else str(size)


def chosen(
    test: EvaluationSet, seed: int, *, trust_banks: bool = False
) -> tuple[dbn.Correction, dbn.tuning.Choice]:
    """What `auto` makes of the banks of a set."""
    return dbn.auto(
        gallery=test.gallery,
        query_bank=test.query_bank,
        gallery_bank=test.gallery_bank,
        pairs=test.bank_pairs,
        seed=seed,
        trust_banks=trust_banks,
        return_choice=True,
    )


def run_draw(test: EvaluationSet, seed: int) -> Draw:
    """Chooses, fits and ranks; and ranks under every candidate."""
    assert test.gallery_bank is not None
    correction, choice = chosen(test, seed)
    right = as_rows(test.relevant, (len(test.queries), len(test.gallery)))
    found = dbn.metrics.stream_ranks(test.queries, test.gallery, right, correction)
    spread = float(choice.spread)
    if not spread:
        raise ValueError(f"{test.name}: {choice.reason}")
    answered = np.isfinite(np.asarray(found))
    hits = candidate_ranks(test, right, spread)[:, answered] <= 1
    fixed = np.array([ranks[answered] <= 1 for ranks in fixed_ranks(test, right)])
    gains = 100 * (hits.mean(axis=1) - hits[0].mean())
    best = oracle(100.0 * hits - 100.0 * hits[0])
    return Draw(
        raw=hits[0],
        auto=np.asarray(found)[answered] <= 1,
        gains=gains,
        oracle=np.array([best.plain, best.debiased, best.halves]),
        discordance=float((hits[best.best] != hits[0]).mean()),
        fixed=100 * (fixed.mean(axis=1) - hits[0].mean()),
        unguarded=float(gains[int(np.asarray(choice.gain).argmax())]),
        kept_raw=choice.name == "raw",
        method=choice.summary().split("\n", 1)[0],
    )


def source_of(test: EvaluationSet) -> Streamed:
    """The whole banks of a set."""
    return Streamed(
        *(jnp.asarray(rows) for rows in (test.gallery, test.query_bank, test.gallery_bank))
    )


def candidate_ranks(test: EvaluationSet, right: jax.Array, spread: float) -> np.ndarray:
    """[num_candidates, num_queries], on the test with whole banks."""
    gallery = jnp.asarray(test.gallery)
    table = candidates.grid(spread)
    biases = mixture.fitted(table, source_of(test), len(gallery), gallery.dtype)
    return ranks_under(test, right, biases)


def ranks_under(test: EvaluationSet, right: jax.Array, biases: jax.Array) -> np.ndarray:
    """[num_biases, num_queries] of the test's queries."""
    count, rows, gallery = len(test.queries), 512, jnp.asarray(test.gallery)
    size = math.ceil(count / math.ceil(count / rows))
    ranks = []
    for start in range(0, count, size):
        places = np.minimum(np.arange(start, start + size), count - 1)
        similarities = dbn.dot_product(test.queries[places], gallery)
        ranks.append(np.asarray(_scores(similarities, right[places], biases, 1.0).ranks))
    return np.concatenate(ranks, axis=1)[:, :count]


_scores = jax.jit(held_out.scores)


def fixed_ranks(test: EvaluationSet, right: jax.Array) -> np.ndarray:
    """[num_fixed, num_queries], on the test with whole banks."""
    source, ranks = source_of(test), []
    for name, parameters in FIXED.values():
        most = len(test.query_bank)
        given = {key: min(one, most) if key == "k" else one for key, one in parameters.items()}
        fitted = TABLE[name].fit(source, **given)
        ranks.append(dbn.metrics.stream_ranks(test.queries, test.gallery, right, fitted))
    return np.array(ranks)


def interval(found: Sequence[Draw]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean gain, over queries where draws share them."""
    differences = [draw.auto.astype(float) - draw.raw for draw in found]
    rng = np.random.default_rng(0)
    if len({draw.raw.tobytes() for draw in found}) == 1:
        differences = [np.mean(differences, axis=0)]
    means = [
        np.mean([part[rng.integers(0, len(part), len(part))].mean() for part in differences])
        for _ in range(1000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


@dataclasses.dataclass(frozen=True)
class Summary:
    """A cell in numbers, means over draws in points of R@1."""

    auto: float
    oracle: float
    debiased: float
    halves: float
    unguarded: float
    fixed: np.ndarray
    kept_raw: float
    p_value: float
    could_show: float


def summary(found: Sequence[Draw]) -> Summary:
    """Means over draws; the p-value of a loss, draws pooled."""
    plain, debiased, halves = np.mean([draw.oracle for draw in found], axis=0)
    return Summary(
        auto=_mean(100 * (draw.auto.mean() - draw.raw.mean()) for draw in found),
        oracle=float(plain),
        debiased=float(debiased),
        halves=float(halves),
        unguarded=_mean(draw.unguarded for draw in found),
        fixed=np.mean([draw.fixed for draw in found], axis=0),
        kept_raw=_mean(draw.kept_raw for draw in found),
        p_value=loss((draw.raw, draw.auto) for draw in found),
        could_show=smallest_effect(len(found[0].raw), _mean(draw.discordance for draw in found)),
    )


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def print_report(cells: dict[Cell, list[Draw]]) -> None:
    """A line per cell, the means, and the targets."""
    names = [*FIXED]
    print(
        f"\n{'set, bank of':44}{'auto':>7}{'oracle':>8}{'debiased':>10}{'halves':>8}"
        f"{'unguarded':>11}{'raw kept':>10}{'could show':>12}"
    )
    numbers = {cell: summary(found) for cell, found in cells.items()}
    for (name, size), row in numbers.items():
        print(
            f"{name + ', ' + size:44}{row.auto:+7.2f}{row.oracle:+8.2f}{row.debiased:+10.2f}"
            f"{row.halves:+8.2f}{row.unguarded:+11.2f}{row.kept_raw:10.0%}{row.could_show:12.2f}"
        )
    rows = list(numbers.values())
    sets = [set_of(name) for name, _ in numbers]
    auto, best = np.array([row.auto for row in rows]), np.array([row.oracle for row in rows])
    debiased = np.array([row.debiased for row in rows])
    columns = {
        "oracle": best,
        "oracle, debiased": debiased,
        "oracle, by halves": np.array([row.halves for row in rows]),
        "auto": auto,
        "unguarded": np.array([row.unguarded for row in rows]),
        **{name: np.array([row.fixed[i] for row in rows]) for i, name in enumerate(names)},
    }
    by_candidate = np.array([np.mean([d.gains for d in found], axis=0) for found in cells.values()])
    one_for_all = int(by_candidate.mean(axis=0).argmax())
    columns["best of the grid in hindsight, one for all"] = by_candidate[:, one_for_all]
    title = f"over {len(rows)} cells of {len(set(sets))} sets"
    print(f"\n{title:44}{'mean':>7}{'95 % interval':>17}{'worst':>8}{'cells below raw':>17}")
    for name, gains in columns.items():
        mean = clustered(gains, sets)
        low, high = mean.interval()
        shown = f"[{low:+.2f}, {high:+.2f}]" if mean.num_sets > 1 else "one set"
        print(
            f"{name:44}{mean.value:+7.2f}{shown:>17}{gains.min():+8.2f}{(gains < -1e-9).sum():17d}"
        )
    print_by_size(numbers)
    print("\ntargets")
    fixed_best = max(columns[name].mean() for name in names)
    small, one, two = best < 1, best >= 1, best >= 2
    kept = np.array([row.kept_raw for row in rows])
    significant = holm([row.p_value for row in rows])
    share = float(np.median(auto[one] / best[one])) if one.any() else math.nan
    ratio, fair = auto.mean() / best.mean(), auto.mean() / debiased.mean()
    in_small = auto[small].mean() if small.any() else math.nan
    above_fixed = auto.mean() - fixed_best
    above_unguarded = auto.mean() - columns["unguarded"].mean()
    often_raw = float((kept[two] > 0.5).mean()) if two.any() else 0.0
    lines = [
        ("mean gain over the oracle's, at least 0.80", ratio, ratio >= 0.8),
        ("the same over the debiased oracle's", fair, fair >= 0.8),
        ("mean gain less the best fixed method's, above 0", above_fixed, above_fixed > 0),
        ("mean gain less the unguarded choice's, above 0", above_unguarded, above_unguarded > 0),
        ("cells significantly worse than raw, none", significant, not significant),
        (
            f"mean where the oracle gains < 1 ({small.sum()} cells), at least -0.3",
            in_small,
            not in_small < -0.3,
        ),
        (
            f"median share where it gains >= 1 ({one.sum()} cells), at least 0.70",
            share,
            not share < 0.7,
        ),
        (
            f"cells with raw kept in most draws where it gains >= 2 ({two.sum()}), at most 1/4",
            often_raw,
            often_raw <= 0.25,
        ),
    ]
    for text, value, met in lines:
        print(f"  {'met' if met else 'NOT MET':8}{text:80}{value:8.3f}")
    print("\ncells below raw, with the paired bootstrap's 95 % interval over queries")
    below = [cell for cell, row in numbers.items() if row.auto < -1e-9]
    for cell in below:
        low, high = interval(cells[cell])
        print(f"  {', '.join(cell):44}{numbers[cell].auto:+7.2f}  [{low:+.2f}, {high:+.2f}]")
    if not below:
        print("  none")


def print_by_size(numbers: Mapping[Cell, Summary]) -> None:
    """Means over the cells of each size of the bank, and what their queries could show."""
    by_size: dict[str, list[Summary]] = defaultdict(list)
    for (_, size), row in numbers.items():
        by_size[size].append(row)
    print(
        f"\n{'pairs in the bank':21}{'cells':>5}{'auto':>8}{'oracle':>8}{'debiased':>10}"
        f"{'share of debiased':>19}{'raw kept':>10}"
    )
    for size, rows in by_size.items():
        auto, best, fair, kept = (
            float(np.mean([getattr(row, name) for row in rows]))
            for name in ("auto", "oracle", "debiased", "kept_raw")
        )
        print(
            f"{size:21}{len(rows):5}{auto:+8.2f}{best:+8.2f}{fair:+10.2f}{auto / fair:19.0%}"
            f"{kept:10.0%}"
        )
    shown = [row.could_show for row in numbers.values()]
    less = sum(row.debiased < row.could_show for row in numbers.values())
    print(
        f"could show: {min(shown):.1f} to {max(shown):.1f} points; "
        f"the debiased oracle gains less in {less} of {len(shown)} cells"
    )


def write_plots(cells: dict[Cell, list[Draw]], folder: Path) -> None:
    """The temperature sweep of IS, and gain against the size of the bank."""
    from matplotlib.figure import Figure

    grid = candidates.grid(1.0)
    by_cell = {
        cell: np.mean([draw.gains for draw in found], axis=0) for cell, found in cells.items()
    }
    gains = np.array(list(by_cell.values()))
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for weight, color, marker in zip((0.25, 0.5, 0.75, 1.0), COLORS, MARKERS, strict=False):
        rows = (grid.method == 1) & (grid.weight_query == weight)
        for place, reduce in enumerate((np.mean, np.min)):
            axes[place].plot(
                grid.beta_query[rows],
                reduce(gains[:, rows], axis=0),
                marker=marker,
                color=color,
                label=f"weight {weight:g}",
            )
    auto = [_mean(100 * (d.auto.mean() - d.raw.mean()) for d in found) for found in cells.values()]
    best = [_mean(draw.oracle[1] for draw in found) for found in cells.values()]
    for place, (title, reduce) in enumerate((("mean of the cells", np.mean), ("worst", np.min))):
        axes[place].axhline(float(reduce(auto)), color="black", label="auto")
        axes[place].axhline(
            float(reduce(best)), color="black", linestyle=":", label="oracle, debiased"
        )
        axes[place].set(xscale="log", title=title, xlabel="beta x spread of similarities")
        axes[place].set_xticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
        axes[place].minorticks_off()
    axes[1].axhline(0, color="gray", linewidth=0.8)
    axes[0].set_ylabel("IS: gain over raw, points of R@1")
    axes[1].legend(fontsize=8, loc="lower left")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "temperature_sweep.png", dpi=130)

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({size for _, size in cells}, key=lambda size: (size == "all", len(size), size))
    names = list(dict.fromkeys(name for name, _ in cells))
    for name, look in looks(names).items():
        found = [
            (sizes.index(size), _mean(100 * (d.auto.mean() - d.raw.mean()) for d in draws_))
            for (of, size), draws_ in cells.items()
            if of == name
        ]
        axes.plot(*zip(*found, strict=True), **look, label=name, markersize=4)
    axes.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
    axes.set(xlabel="pairs in the bank", ylabel="auto: gain over raw, points of R@1")
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(folder / "gain_by_bank_size.png", dpi=130)


def looks(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """How the lines of sets look: the two directions of one are alike, the second dashed."""
    found: dict[frozenset[str], int] = {}  # what both directions share -> its place
    result = {}
    for name in names:
        ends = frozenset(name.removesuffix(", reversed").removeprefix("emoji ").split(" -> "))
        style = "--" if ends in found else "-"
        place = found.setdefault(ends, len(found)) % len(COLORS)
        result[name] = {"color": COLORS[place], "marker": MARKERS[place], "linestyle": style}
    return result


def _file(cache: Path, cell: Cell, number: int) -> Path:
    name = hashlib.sha256(f"{cell} {Draw._fields}".encode()).hexdigest()[:12]
    return cache / f"{name}-{number}.npz"


def _kept(path: Path | None, make: Callable[[], Draw]) -> Draw:
    if path is not None and path.exists():
        with np.load(path) as archive:
            values = {name: archive[name] for name in Draw._fields}
        names = ("discordance", "unguarded", "kept_raw", "method")
        scalars = {name: values[name].item() for name in names}
        return Draw(**values | scalars)
    draw = make()
    if path is not None:
        np.savez_compressed(path, **draw._asdict())
    return draw


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--bank-sizes", nargs="+", default=["100", "300", "1000", "all"])
    parser.add_argument("--cache", type=Path, help="folder where draws are kept")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="begin no draw after so long"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write two pictures there")
    options = parser.parse_args(arguments)
    print(machine())
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
    sizes = [None if size == "all" else int(size) for size in options.bank_sizes]
    cells: dict[Cell, list[Draw]] = defaultdict(list)
    started, previous = time.monotonic(), None
    for cell, number, make in plan(options.sets, sizes, options.draws):
        path = None if options.cache is None else _file(options.cache, cell, number)
        waiting = path is None or not path.exists()
        if waiting and time.monotonic() - started > options.seconds:
            print("stopped by --seconds; the next run goes on", file=sys.stderr)
            return
        if waiting and cell != previous:
            jax.clear_caches()  # a process may map only so many programs
            previous = cell
        cells[cell].append(_kept(path, lambda make=make, number=number: run_draw(make(), number)))
    print_report(cells)
    if options.plots is not None:
        write_plots(cells, options.plots)


if __name__ == "__main__":
    main()
