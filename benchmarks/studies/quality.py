"""Every method beside every other: gains in R@1 over raw, with errors, on many sets.

    python -m benchmarks.studies.quality [--set DIR/data.npz ...] [--bank-sizes 100 all] [--draws 3]

Sets are the embedded names of emoji in several pairs of languages, and any npz in the layout that
`dbnorm evaluate SET.npz` reads; each in both directions. Banks are drawn from the set's own banks,
pairs together: `--draws` times for a size below the whole, once for the whole. Everything is
inductive, but for the transductive methods, which are printed apart and below.

*fixed* runs the defaults of `dbnorm evaluate`. *tuned* chooses each method's parameters on the bank
alone: one half of its pairs is the bank, the other half plays the test, and the highest mean
reciprocal rank over both ways round wins. It never sees the test; nor does it guard against a
choice that is worse than raw.

Printed per set: the gain in points of R@1, plus or minus one standard error over draws (over
splits of the names, for the embedded sets); for a single draw, over queries; and the smallest gain
that the set could show with the share of answers that IS changes. Then, over all sets and
directions, the mean with its standard error, clustered by set, and the worst.
"""

import argparse
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks.studies.significance import Mean, clustered, set_of, smallest_effect
from benchmarks.support.common import machine
from dbnorm_jax._cli.measuring.methods import (
    DEFAULT_BETAS,
    KINDS,
    Method,
    choose_methods,
    everything,
    make_method,
)
from dbnorm_jax._cli.measuring.table_rows import ResultRow, evaluate, num_transductive
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set, rows_relevant

LANGUAGES = (("en", "de"), ("en", "fr"), ("es", "it"))
RAW = Method("raw")

_BETAS = (5.0, 10.0, 20.0, 40.0, 80.0)
_DUAL_BETAS = tuple(itertools.product((10.0, 20.0, 40.0), (0.5, 1.0, 3.0)))
GRID: dict[str, list[Method]] = {
    **{kind: [Method(kind, beta) for beta in _BETAS] for kind in ("is", "dis")},
    **{kind: [Method(kind, *betas) for betas in _DUAL_BETAS] for kind in ("dualis", "dualdis")},
    "csls": [make_method("csls", {"k": k}, None, None) for k in (5, 10, 30)],
    "nnn": [
        make_method("nnn", {"k": k, "weight": weight}, None, None)
        for k, weight in itertools.product((10, 128), (0.25, 0.5, 0.75, 1.0))
    ],
    "sn": [make_method("sn", {"temperature": t}, None, None) for t in (0.02, 0.05, 0.1)],
}


def draws(test: EvaluationSet, size: int | None, count: int) -> Iterator[EvaluationSet]:
    """The set with smaller banks: `size` of its bank pairs, `count` times; None: the whole once."""
    pairs = test.bank_pairs
    assert pairs is not None
    assert test.gallery_bank is not None
    paired = np.flatnonzero(pairs >= 0)
    if size is None or size >= len(paired):
        yield test
        return
    for seed in range(count):
        rows = np.sort(np.random.default_rng(seed).choice(paired, size, replace=False))
        yield dataclasses.replace(
            test,
            query_bank=test.query_bank[rows],
            gallery_bank=test.gallery_bank[pairs[rows]],
            bank_pairs=np.arange(size),
        )


def tuned(test: EvaluationSet) -> list[Method]:
    """Per kind of the grid, the parameters of the highest mean reciprocal rank inside the bank."""
    candidates = [method for methods in GRID.values() for method in methods]
    scores = dict.fromkeys(candidates, 0.0)
    for half in _halves(test):
        for row in evaluate(half, [RAW, *candidates])[1:]:
            assert row.ranks is not None
            scores[row.method] += float(np.nanmean(1 / row.ranks))
    return [max(methods, key=scores.__getitem__) for methods in GRID.values()]


def _halves(test: EvaluationSet) -> Iterator[EvaluationSet]:
    """The bank's pairs split in two, each half as the test of the other."""
    pairs, gallery_bank = test.bank_pairs, test.gallery_bank
    assert pairs is not None
    assert gallery_bank is not None
    paired = np.random.default_rng(0).permutation(np.flatnonzero(pairs >= 0))
    paired = paired[: len(paired) // 2 * 2]
    for bank, rows in itertools.permutations(np.split(paired, 2)):
        yield dataclasses.replace(
            test,
            queries=test.query_bank[rows],
            gallery=gallery_bank[pairs[rows]],
            query_bank=test.query_bank[bank],
            gallery_bank=gallery_bank[pairs[bank]],
            relevant=rows_relevant(len(rows)),
            bank_pairs=np.arange(len(bank)),
            query_labels=None,
            gallery_labels=None,
        )


def results(test: EvaluationSet, kinds: Sequence[str], *, with_tuned: bool) -> dict[str, ResultRow]:
    """Rows by name, the tuned ones marked."""
    fixed = choose_methods(kinds, *DEFAULT_BETAS.values())
    chosen = tuned(test) if with_tuned else []
    rows = evaluate(test, [*fixed, *chosen])
    named = {row.method.name: row for row in rows[: len(fixed)]}
    return named | {f"{row.method.name}, tuned": row for row in rows[len(fixed) :]}


def summarized(rows: Sequence[ResultRow]) -> Mean:
    """Gain over raw in points of R@1, over draws; of a single one, over its queries."""
    if len(rows) == 1:
        return Mean(rows[0].gain, rows[0].gain_interval / 1.96, 1)
    return clustered([row.gain for row in rows], range(len(rows)))


def discordance(rows: Sequence[dict[str, ResultRow]], method: str) -> float:
    """Mean over draws of the share of queries that are right under raw or the method alone."""
    shares = []
    for row in rows:
        before, after = row["raw"].ranks, row[method].ranks
        assert before is not None
        assert after is not None
        answered = np.isfinite(before)
        shares.append(float(((before <= 1) != (after <= 1))[answered].mean()))
    return float(np.mean(shares))


def embedded_sets(num_splits: int) -> Iterator[tuple[str, list[EvaluationSet]]]:
    """The names of emoji: (name, one set per split)."""
    for source, target in LANGUAGES:
        forth = [emoji_names(source, target, seed) for seed in range(num_splits)]
        yield f"emoji {source} -> {target}", forth
        yield f"emoji {target} -> {source} (map reversed)", [reversed_set(test) for test in forth]


def given_sets(paths: Sequence[str]) -> Iterator[tuple[str, list[EvaluationSet]]]:
    """Sets from files, both directions."""
    for path in paths:
        test = read_set(path, "cosine")
        yield test.name, [test]
        yield f"{test.name}, reversed", [reversed_set(test)]


def print_set(
    name: str, tests: Sequence[EvaluationSet], table: dict[str, list[Mean]], header: str
) -> None:
    """One table: methods by bank sizes."""
    overlap = sum(num_transductive(test) for test in tests)
    note = "inductive" if not overlap else f"{overlap} bank rows equal test rows"
    print(f"\n{name}: {len(tests[0].queries)} queries, {len(tests[0].gallery)} items; {note}")
    print(header)
    for method in _apart(table):
        cells = "".join(f"{gain.value:+8.1f} ±{gain.error:4.1f}" for gain in table[method])
        print(f"{method:20}{cells}")


def _apart(methods: Iterable[str]) -> Iterator[str]:
    """Inductive methods; then, after a heading, those that read the other test queries."""
    names = {about.name for about in KINDS.values() if about.transductive}
    later = []
    for method in methods:
        if method in names:
            later.append(method)
        else:
            yield method
    if later:
        print("transductive, not to be compared with the rows above:")
        yield from later


def run(
    sets: Iterator[tuple[str, list[EvaluationSet]]],
    sizes: Sequence[int | None],
    num_draws: int,
    kinds: Sequence[str],
    *,
    with_tuned: bool = True,
) -> None:
    """Prints a table per set, then over all."""
    columns = ["all" if size is None else str(size) for size in sizes]
    header = f"{'gain, bank of':20}" + "".join(f"{column:>14}" for column in columns)
    overall: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    names: list[str] = []
    for name, tests in sets:
        names.append(set_of(name))
        table: dict[str, list[Mean]] = defaultdict(list)
        recalls: list[float] = []
        shown: list[str] = []
        for column, size in zip(columns, sizes, strict=True):
            found = [
                results(drawn, kinds, with_tuned=with_tuned)
                for test in tests
                for drawn in draws(test, size, num_draws if len(tests) == 1 else 1)
            ]
            for method in found[0]:
                rows = [row[method] for row in found]
                table[method].append(summarized(rows))
                overall[method][column].append(float(np.mean([row.gain for row in rows])))
            recalls.append(float(np.mean([rows["raw"].recall_at_1 for rows in found])))
            if "IS" in found[0]:
                changed = discordance(found, "IS")
                least = smallest_effect(len(tests[0].queries), changed)
                shown.append(f"{least:.1f} ({changed:.0%})")
            jax.clear_caches()  # a process may map only so many programs
        print_set(f"{name}, raw R@1 {recalls[-1]:.1f}", tests, table, header)
        if shown:
            print(
                f"{'could show':20}" + "".join(f"{cell:>14}" for cell in shown) + "\n"
                "(the smallest gain that McNemar's test finds in 4 of 5 samples of as many queries "
                "at\n5 %, if as many answers change as under IS: their share)"
            )
    _print_overall(overall, columns, names)


def _print_overall(
    overall: dict[str, dict[str, list[float]]], columns: Sequence[str], names: Sequence[str]
) -> None:
    print(
        f"\nover all {len(names)} sets and directions: mean gain, its standard error clustered by "
        f"set ({len(set(names))} sets), the worst"
    )
    print(f"{'bank of':20}" + "".join(f"{column:>24}" for column in columns))
    for method in _apart(overall):
        cells = ""
        for column in columns:
            gains = overall[method][column]
            gain = clustered(gains, names)
            cells += f"{gain.value:+10.2f} ±{gain.error:5.2f} {min(gains):+6.1f}"
        print(f"{method:20}{cells}")


def _size(text: str) -> int | None:
    return None if text == "all" else int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    parser.add_argument("--bank-sizes", nargs="+", type=_size, default=[100, None])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one split, one pair of languages")
    parser.add_argument("--fixed-only", action="store_true", help="no tuned parameters")
    options = parser.parse_args(arguments)
    missing = [path for path in options.sets if not Path(path).is_file()]
    if missing:
        parser.error(f"--set: expected a readable file, got {missing[0]}")
    print(machine())
    splits = 1 if options.quick else options.draws
    embedded = embedded_sets(splits)
    if options.quick:
        embedded = itertools.islice(embedded, 2)
    sets = itertools.chain(embedded, given_sets(options.sets))
    kinds = (*everything(), "published")
    run(sets, options.bank_sizes, options.draws, kinds, with_tuned=not options.fixed_only)


if __name__ == "__main__":
    main()
