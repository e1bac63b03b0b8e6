"""What the second bank adds: DualIS beside IS at the same weight, DBSN beside SN, by bank size.

    python -m benchmarks.studies.dual_bank [--set DIR/data.npz ...] [--draws 3] [--no-emoji]
        [--bank-sizes 100 300 1000 all 100+] [--cache DIR] [--seconds S]

Sets, directions and banks as in `benchmarks.studies.tuning`; *100+* is 100 pairs beside all other
items of the gallery bank, unpaired. Two kinds of planted sets stand apart, every draw a set. In
both, queries and items have a part in common that makes hubs. *Hubs of both banks*: the query bank
has it as well. *Hubs of items alone*: the query bank is of another domain, which lacks it; the
second bank knows what the first cannot.

DualIS is `s - w_Q bias_Q - w_G bias_G` with `w_i = beta_i / (beta_Q + beta_G)`. So it weakens the
first bank's bias before it adds the second one: it is held against IS at that *effective weight*,
`s - w_Q bias_Q`. Stated before any of it was measured: they are equivalent if two one-sided t
tests, clustered by set, place the mean difference in R@1 within 0.2 points at the level 0.05.

Tables of quality, every one inductive:

    as published    IS and DIS at beta 20, DualIS and DualDIS at 20 and 1, SN and DBSN at
                    temperature .01 and 10 iterations, CSLS at 10, NNN at 128 and .75
    tuned           36 candidates for every method, all on the same pairs: one half of them is the
                    bank and the other half's queries are ranked among the gallery and their right
                    items, both ways; the highest gain in mean log rank wins. No guard

Temperatures of candidates are multiples of the spread, the standard deviation of similarities
within a row. A figure is the mean gain in R@1 over raw with half its 95 % interval, clustered by
set, and the worst cell.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import pieces, quality
from benchmarks.studies.quality import LANGUAGES
from benchmarks.studies.significance import (
    Mean,
    clustered,
    equivalence,
    interval_over,
    oracle,
    set_of,
    smallest_effect,
)
from benchmarks.studies.tuning import Cell
from dbnorm_jax import baselines
from dbnorm_jax._cli.measuring.hubs import rank_correlations
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet, reversed_set, rows_relevant
from dbnorm_jax._src.core.relevance import as_rows

SIZES = ("100", "300", "1000", "all", "100+")  # of banks
MARGIN = 0.2  # points of R@1
MOST_HELD_OUT = 256  # queries of a half that are ranked
K = 10  # of the hubs that are correlated with the banks

# --- rules ----------------------------------------------------------------------------------------


class Term(NamedTuple):
    """One bias of the items, with its weight."""

    kind: str  # "query" or "gallery": of a bank; "nearest"; "sn", "dbsn"
    argument: float  # inverse temperature, k, temperature
    weight: float


class Rule(NamedTuple):
    """A method with its parameters: weighted biases, each gated by its bank or none."""

    terms: tuple[Term, ...] = ()
    is_gated: bool = False


def dual(beta_query: float, beta_gallery: float) -> Rule:
    """DualIS as published: the temperatures give the weights."""
    both = beta_query + beta_gallery
    return Rule(
        (
            Term("query", beta_query, beta_query / both),
            Term("gallery", beta_gallery, beta_gallery / both),
        )
    )


def first_term(rule: Rule) -> Rule:
    """The rule without its second bank: IS at the effective weight."""
    return rule._replace(terms=rule.terms[:1])


def gated(rule: Rule) -> Rule:
    """Each bias only for queries whose raw top-1 is in its bank's activation set."""
    return rule._replace(is_gated=True)


_IS, _DUAL = Rule((Term("query", 20.0, 1.0),)), dual(20.0, 1.0)
PUBLISHED = {
    "IS": _IS,
    "DIS": gated(_IS),
    "DualIS": _DUAL,
    "DualDIS": gated(_DUAL),
    "CSLS": Rule((Term("nearest", 10, 0.5),)),
    "NNN": Rule((Term("nearest", 128, 0.75),)),
    "SN": Rule((Term("sn", 0.01, 1.0),)),
    "DBSN": Rule((Term("dbsn", 0.01, 1.0),)),
}
RELEASED = "DualDIS (released)"
DUALS = {
    f"DualIS({query:g}, {other:g})": dual(query, other)
    for query, other in ((20.0, 1.0), (20.0, 5.0), (20.0, 20.0))
}
GALLERY_WEIGHTS = (-0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5)

_WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_MULTIPLES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
BUDGET = len(_WEIGHTS) * len(_MULTIPLES)


def candidates(query_spread: float, gallery_spread: float) -> dict[str, list[Rule]]:
    """The same number for every method; temperatures are multiples of a spread."""
    one = [
        Rule((Term("query", beta / query_spread, weight),))
        for beta, weight in itertools.product(_MULTIPLES, _WEIGHTS)
    ]
    two = [
        Rule((Term("query", beta / query_spread, w), Term("gallery", other / gallery_spread, w_g)))
        for beta, other, w, w_g in itertools.product(
            (1.0, 2.0, 4.0), (0.5, 4.0), (0.5, 0.75, 1.0), (0.1, 0.25)
        )
    ]
    counts = (*range(1, 21), *range(25, 105, 5))
    return {
        "IS": one,
        "DIS": [gated(rule) for rule in one],
        "DualIS": two,
        "DualDIS": [gated(rule) for rule in two],
        "CSLS": [Rule((Term("nearest", k, 0.5),)) for k in counts],
        "NNN": [
            Rule((Term("nearest", k, weight),))
            for k, weight in itertools.product((1, 3, 10, 30, 100, 300), _WEIGHTS)
        ],
        **{
            name: [
                Rule((Term(name.lower(), query_spread / beta, weight),))
                for beta, weight in itertools.product(_MULTIPLES, _WEIGHTS)
            ]
            for name in ("SN", "DBSN")
        },
    }


METHODS = (*PUBLISHED,)
ROWS = (
    "raw",
    *PUBLISHED,
    RELEASED,
    *(f"{name}, tuned" for name in METHODS),
    "DualIS, tuned, first term",
    *(f"{name}{', first term' * first}" for name in DUALS for first in (False, True)),
    "SN, spread/2",
    "DBSN, spread/2",
    *(f"gallery weight {weight:g}" for weight in GALLERY_WEIGHTS),
)

# --- scores ---------------------------------------------------------------------------------------


class Banks:
    """What a pair of banks says about some items; every bias is fitted once."""

    def __init__(self, items: np.ndarray, query_bank: np.ndarray, gallery_bank: np.ndarray) -> None:
        self.matrices = {"query": query_bank @ items.T, "gallery": gallery_bank @ items.T}
        self._between = query_bank @ gallery_bank.T
        self.spreads = [float(matrix.std(axis=1).mean()) for matrix in self.matrices.values()]
        self.statistics = cache(self._statistics)
        self.bias = cache(self._bias)
        self._largest = cache(lambda: np.sort(self.matrices["query"], axis=0)[::-1])

    def _statistics(self, bank: str, beta: float) -> dbn.BankStatistics:
        return dbn.bank_statistics(self.matrices[bank], beta=beta)

    def active(self, bank: str) -> np.ndarray:
        """[num_items] bool, near some item of the bank; the same at every beta."""
        return np.asarray(self.statistics(bank, 20.0).active)

    def _bias(self, kind: str, argument: float) -> np.ndarray:
        if kind in self.matrices:
            return np.asarray(self.statistics(kind, argument).bias)
        similarities = self.matrices["query"]
        if kind == "nearest":
            largest = self._largest()[: int(argument)]
            return largest.mean(axis=0, dtype=np.float64).astype(np.float32)
        options = {"temperature": argument, "num_iterations": 10}
        if kind == "sn":
            fitted = baselines.sinkhorn_normalization(similarities, **options)
        else:
            fitted = baselines.dual_bank_sinkhorn_normalization(
                similarities, self._between, **options
            )
        return np.asarray(fitted.bias[0])

    def offsets(self, rule: Rule, first: np.ndarray) -> np.ndarray:
        """What is subtracted: [num_items], or [num_queries, num_items] under gates.

        Args:
          rule: the method.
          first: [num_queries], the raw top-1 of each.
        """
        total = np.zeros((1, self.matrices["query"].shape[1]), np.float32)
        for kind, argument, weight in rule.terms:
            bias = np.float32(weight) * self.bias(kind, argument)[None]
            total = total + (self.active(kind)[first][:, None] * bias if rule.is_gated else bias)
        return total


class Asked:
    """Queries with their right items."""

    def __init__(self, similarities: np.ndarray, right: np.ndarray) -> None:
        self.similarities, self.right = similarities, np.maximum(right, 0)
        self._is_padding = right < 0
        self.first = similarities.argmax(axis=1)
        self._wrong = similarities.copy()
        rows, places = np.nonzero(~self._is_padding)
        self._wrong[rows, right[rows, places]] = -np.inf

    def ranks(self, offsets: np.ndarray) -> np.ndarray:
        """[num_queries] rank of the best right item, ties counted as half."""
        return self._ranks(self.similarities, self._wrong, offsets)

    def ranks_of(self, scores: np.ndarray) -> np.ndarray:
        """The same under scores that are no similarities less offsets."""
        wrong = np.where(np.isneginf(self._wrong), -np.inf, scores)
        return self._ranks(scores, wrong, np.zeros((1, 1), np.float32))

    def _ranks(self, scores: np.ndarray, wrong: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        own = np.take_along_axis(scores, self.right, axis=1) - np.take_along_axis(
            np.broadcast_to(offsets, scores.shape), self.right, axis=1
        )
        best = np.where(self._is_padding, -np.inf, own).max(axis=1, keepdims=True)
        others = wrong - offsets
        return 1 + (others > best).sum(axis=1) + (others == best).sum(axis=1) / 2


# --- one draw -------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """One draw of the bank."""

    queries: np.ndarray  # [num_queries] which they are, in the set and draw
    hits: np.ndarray  # [num_rows, num_queries] bool, right item first
    chosen: np.ndarray  # [num_methods] the candidate that the bank's pairs chose
    correlations: np.ndarray  # [3] of N_10 with either bank, and with the gallery bank given both


def run_draw(test: EvaluationSet, seed: int) -> Draw:
    """Tunes on the bank's pairs and ranks the test under all rows."""
    query_bank, gallery_bank = np.asarray(test.query_bank), np.asarray(test.gallery_bank)
    queries, gallery = np.asarray(test.queries), np.asarray(test.gallery)
    chosen = tuned(test, seed)
    banks = Banks(gallery, query_bank, gallery_bank)
    right = np.asarray(as_rows(test.relevant, (len(queries), len(gallery))))
    answered = (right >= 0).any(axis=1)
    asked = Asked((queries @ gallery.T)[answered], right[answered])
    statistics = banks.statistics("query", 20.0), banks.statistics("gallery", 1.0)
    released = np.asarray(dbn.published_scores(asked.similarities, *statistics))
    rows = rules(banks, chosen)
    ranks = [
        asked.ranks_of(released)
        if name == RELEASED
        else asked.ranks(banks.offsets(rows[name], asked.first))
        for name in ROWS
    ]
    counts = _k_occurrence(asked.similarities)
    means = [matrix.mean(axis=0) for matrix in banks.matrices.values()]
    # Splits of embedded names have other queries each; those of a file are the same ones.
    number = seed if test.name.startswith(("emoji", "planted")) else 0
    return Draw(
        np.flatnonzero(answered) + len(queries) * number,
        np.stack(ranks) <= 1,
        np.array([*chosen.values()]),
        np.array(rank_correlations(np.stack([counts, *means]))),
    )


def rules(banks: Banks, chosen: Mapping[str, int]) -> dict[str, Rule]:
    """By row; the released form is no rule."""
    known = candidates(*banks.spreads)
    best = {name: known[name][place] for name, place in chosen.items()}
    second = 2 / banks.spreads[1]
    found = {"raw": Rule(), **PUBLISHED, **{f"{name}, tuned": rule for name, rule in best.items()}}
    found["DualIS, tuned, first term"] = first_term(best["DualIS"])
    for name, rule in DUALS.items():
        found |= {name: rule, f"{name}, first term": first_term(rule)}
    for name in ("SN", "DBSN"):
        found[f"{name}, spread/2"] = Rule((Term(name.lower(), banks.spreads[0] / 2, 0.75),))
    for weight in GALLERY_WEIGHTS:
        more = (Term("gallery", second, weight),) if weight else ()
        found[f"gallery weight {weight:g}"] = Rule((*best["IS"].terms, *more))
    return found


def tuned(test: EvaluationSet, seed: int) -> dict[str, int]:
    """The candidate of each method with the highest gain in mean log rank on the bank's pairs."""
    totals: dict[str, np.ndarray] = {name: np.zeros(BUDGET) for name in METHODS}
    for banks, asked in halves(test, seed):
        for name, rules_of in candidates(*banks.spreads).items():
            totals[name] -= [
                np.log(asked.ranks(banks.offsets(rule, asked.first))).mean() for rule in rules_of
            ]
    return {name: int(total.argmax()) for name, total in totals.items()}


def halves(test: EvaluationSet, seed: int) -> Iterator[tuple[Banks, Asked]]:
    """Each half of the pairs as bank, the other half's queries among the gallery and their items.

    The halves have no row in common. Items without a pair are in both banks.
    """
    query_bank, gallery_bank = np.asarray(test.query_bank), np.asarray(test.gallery_bank)
    gallery, pairs = np.asarray(test.gallery), np.asarray(test.bank_pairs)
    rng = np.random.default_rng(seed)
    paired = rng.permutation(np.unique(pairs[pairs >= 0]))
    alone = np.setdiff1d(np.arange(len(gallery_bank)), paired)
    parts = [np.sort(part) for part in np.array_split(paired, 2)]
    for own, other in itertools.permutations(parts):
        bank = np.flatnonzero(np.isin(pairs, own))
        held_out = np.flatnonzero(np.isin(pairs, other))
        if len(held_out) > MOST_HELD_OUT:
            held_out = np.sort(rng.choice(held_out, MOST_HELD_OUT, replace=False))
        items, right = np.unique(pairs[held_out], return_inverse=True)
        columns = np.concatenate([gallery, gallery_bank[items]])
        banks = Banks(columns, query_bank[bank], gallery_bank[np.concatenate([own, alone])])
        asked = Asked(query_bank[held_out] @ columns.T, len(gallery) + right[:, None])
        yield banks, asked


def _k_occurrence(similarities: np.ndarray) -> np.ndarray:
    """[num_items], how many queries have an item among their K nearest."""
    nearest = np.argpartition(-similarities, K - 1, axis=1)[:, :K]
    return np.bincount(nearest.ravel(), minlength=similarities.shape[1])


# --- sets -----------------------------------------------------------------------------------------

PLANTED = {"planted: hubs of both banks": True, "planted: hubs of items alone": False}


def planted(name: str, number: int) -> EvaluationSet:
    """Gaussian pairs, both sides with a mean in common; the query bank has it, too, or not."""
    random = np.random.default_rng([number, PLANTED[name]])
    size, dim = 1000, 64

    def unit(rows: np.ndarray) -> np.ndarray:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    common, shared = random.normal(size=dim), random.normal(size=(2 * size, dim))
    queries = shared + 2 * random.normal(size=shared.shape)
    queries[: 2 * size if PLANTED[name] else size] += 2 * common
    rows, items = unit(queries), unit(shared + common / 2)
    return EvaluationSet(
        name=name,
        queries=rows[:size],
        gallery=items[:size],
        query_bank=rows[size:],
        gallery_bank=items[size:],
        relevant=rows_relevant(size),
        bank_pairs=np.arange(size),
    )


def drawn(make: Callable[[int], EvaluationSet], size: str, number: int) -> EvaluationSet:
    """A set with smaller banks, pairs together; "100+" keeps the gallery bank whole."""
    test = make(number)
    if size == "all":
        return test
    count = int(size.removesuffix("+"))
    if not size.endswith("+"):
        return list(quality.draws(test, count, number + 1))[-1]
    pairs = np.asarray(test.bank_pairs)
    rows = np.random.default_rng(number).choice(np.flatnonzero(pairs >= 0), count, replace=False)
    return dataclasses.replace(test, query_bank=test.query_bank[rows], bank_pairs=pairs[rows])


def planned(
    paths: Sequence[str],
    sizes: Sequence[str],
    num_draws: int,
    languages: Sequence[tuple[str, str]],
) -> Iterator[pieces.Planned]:
    """Every draw, in the form of `benchmarks.studies.tuning.plan`."""
    sources: list[tuple[str, Callable[[int], EvaluationSet]]] = []
    for source, target in languages:

        def emoji(number: int, ends: tuple[str, str] = (source, target)) -> EvaluationSet:
            return emoji_names(*ends, number)  # a split of its own

        sources.append((f"emoji {source} -> {target}", emoji))
        sources.append((f"emoji {target} -> {source}", lambda n, of=emoji: reversed_set(of(n))))
    for path in paths:
        test = read_set(path, "cosine")
        sources.append((test.name, lambda _, test=test: test))
        sources.append((f"{test.name}, reversed", lambda _, test=test: reversed_set(test)))
    sources += [(name, partial(planted, name)) for name in PLANTED]
    for name, make in sources:
        most = len(make(0).query_bank)
        for size in sizes:
            if size != "all" and int(size.removesuffix("+")) >= most:
                continue
            is_file = not name.startswith(("emoji", "planted"))
            for number in range(1 if is_file and size == "all" else num_draws):
                own = f", {number}" * (name in PLANTED)
                yield (name + own, size), number, partial(drawn, make, size, number)


# --- reports --------------------------------------------------------------------------------------

Cells = dict[Cell, list[Draw]]


def gains(cells: Cells, row: str, less: str = "raw") -> np.ndarray:
    """[num_cells] points of R@1 that a row gains over another, means over draws."""
    one, other = ROWS.index(row), ROWS.index(less)
    return np.array(
        [
            np.mean([100 * (d.hits[one].mean() - d.hits[other].mean()) for d in found])
            for found in cells.values()
        ]
    )


def by_size(cells: Cells) -> dict[str, Cells]:
    """The cells of every size, in the order of SIZES."""
    sizes = sorted(
        {size for _, size in cells},
        key=lambda size: (size.endswith("+"), size == "all", len(size), size),
    )
    return {size: {cell: d for cell, d in cells.items() if cell[1] == size} for size in sizes}


def _mean(cells: Cells, row: str, less: str = "raw") -> Mean:
    return clustered(gains(cells, row, less), [set_of(name) for name, _ in cells])


def _half(mean: Mean, level: float = 0.95) -> float:
    return mean.interval(level)[1] - mean.value


def _header(title: str, cells: Cells, width: int) -> None:
    sizes = by_size(cells)
    print(f"\n{title}\n{'bank of':20}" + "".join(f"{size:>{width}}" for size in sizes))
    counts = [f"{len(here)} ({len({set_of(n) for n, _ in here})})" for here in sizes.values()]
    print(f"{'cells (sets)':20}" + "".join(f"{count:>{width}}" for count in counts))


def print_quality(cells: Cells, title: str, rows: Sequence[str]) -> None:
    """Mean gain over raw with half its 95 % interval, and the worst cell."""
    _header(f"{title}: gain in R@1 over raw, half its 95 % interval, the worst cell", cells, 21)
    raw = [
        np.mean([np.mean([d.hits[0].mean() for d in found]) for found in here.values()])
        for here in by_size(cells).values()
    ]
    print(f"{'raw, its R@1':20}" + "".join(f"{100 * value:21.1f}" for value in raw))
    for row in rows:
        line = ""
        for here in by_size(cells).values():
            mean = _mean(here, row)
            line += f"{mean.value:+8.2f} ±{_half(mean):5.2f}{gains(here, row).min():+6.1f}"
        print(f"{row:20}{line}")


def print_differences(cells: Cells, title: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Mean differences with half their 95 % interval."""
    _header(f"{title}: difference in R@1, half its 95 % interval", cells, 17)
    for row, less in pairs:
        print(f"{row} - {less}")
        means = [_mean(here, row, less) for here in by_size(cells).values()]
        print(f"{'':20}" + "".join(f"{mean.value:+10.2f} ±{_half(mean):5.2f}" for mean in means))


def print_equivalence(cells: Cells) -> None:
    """The tests that were stated in advance."""
    print(
        f"\nDualIS less IS at the effective weight: R@1, 90 % interval, equivalent within {MARGIN}?"
    )
    print(f"{'':24}{'bank of':>8}{'cells (sets)':>14}{'mean':>8}{'90 % interval':>18}{'p':>9}")
    pairs = [*((name, f"{name}, first term") for name in DUALS)]
    pairs.append(("DualIS, tuned", "DualIS, tuned, first term"))
    for row, less in pairs:
        for size, here in (*by_size(cells).items(), ("every", cells)):
            mean = _mean(here, row, less)
            low, high = mean.interval(0.9)
            p_value = equivalence(mean, MARGIN)
            verdict = "equivalent" if p_value < 0.05 else "not shown"
            if low > MARGIN or high < -MARGIN:
                verdict = "different"
            count = f"{len(here)} ({mean.num_sets})"
            print(
                f"{row:24}{size:>8}{count:>14}{mean.value:+8.2f}{f'[{low:+.2f}, {high:+.2f}]':>18}"
                f"{p_value:9.4f}  {verdict}"
            )


def print_weights(cells: Cells) -> None:
    """What the gallery bank's bias adds to tuned IS at every weight, and the sign of the best."""
    base = "gallery weight 0"
    others = [(f"gallery weight {weight:g}", base) for weight in GALLERY_WEIGHTS if weight]
    print_differences(cells, "tuned IS and the gallery bank's bias at a weight", others)
    rows = [ROWS.index(f"gallery weight {weight:g}") for weight in GALLERY_WEIGHTS]
    signs: dict[str, list[float]] = {"negative": [], "zero": [], "positive": []}
    found, plain = [], []
    for draws in cells.values():
        apart = np.mean([d.hits[rows].mean(axis=1) for d in draws], axis=0)
        is_best = apart == apart.max()
        best = 0.0 if is_best[GALLERY_WEIGHTS.index(0)] else GALLERY_WEIGHTS[int(is_best.argmax())]
        signs["negative" if best < 0 else "positive" if best else "zero"].append(best)
        oracles = [oracle(100.0 * d.hits[rows] - 100.0 * d.hits[ROWS.index(base)]) for d in draws]
        plain.append(np.mean([one.plain for one in oracles]))
        found.append(np.mean([one.halves for one in oracles]))
    counts = ", ".join(f"{len(values)} {name}" for name, values in signs.items())
    print(f"the best weight of {len(cells)} cells in hindsight: {counts}")
    print(
        f"what it gains over weight 0: {np.mean(plain):+.2f}; chosen on one half of the test "
        f"queries, judged by the other: {np.mean(found):+.2f}"
    )


def print_cells(cells: Cells) -> None:
    """Where the second bank helps: every cell, with an interval over its queries."""
    row, less = (ROWS.index(f"DualIS, tuned{end}") for end in ("", ", first term"))
    print("\ntuned DualIS less its first term, by cell: 95 % interval over queries")
    print(
        f"{'set, bank of':40}{'raw':>6}{'mean':>8}{'interval':>18}{'could show':>12}{'partial':>9}"
    )
    marks = {"above": 0, "below": 0}
    partials, apart = [], []
    for cell, found in cells.items():
        each = np.concatenate([100.0 * d.hits[row] - 100.0 * d.hits[less] for d in found])
        low, high = interval_over(np.concatenate([d.queries for d in found]), each)
        changed = np.mean([(d.hits[row] != d.hits[less]).mean() for d in found])
        least = smallest_effect(len(found[0].queries), float(changed))
        partials.append(np.mean([d.correlations[2] for d in found]))
        apart.append(each.mean())
        sign = "above" if low > 0 else "below" if high < 0 else ""
        if sign:
            marks[sign] += 1
        print(
            f"{', '.join(cell):40}{100 * np.mean([d.hits[0].mean() for d in found]):6.1f}"
            f"{each.mean():+8.2f}{f'[{low:+.2f}, {high:+.2f}]':>18}"
            f"{f'{least:.2f}' if math.isfinite(least) else '-':>12}"
            f"{partials[-1]:+9.2f}  {sign}"
        )
    print(
        f"{marks['above']} of {len(cells)} cells above 0, {marks['below']} below; by chance one of "
        "40 each way\n(could show: the smallest difference that McNemar's test finds in 4 of 5 "
        "samples; -: so few\nanswers change that none)"
    )
    if len(cells) > 2:
        ranked = rank_correlations(np.stack([apart, partials, partials]))[0]
        print(
            f"rank correlation, over cells, with the partial correlation of N_{K} and the gallery "
            f"bank given the query bank: {ranked:+.2f}"
        )


def print_report(cells: Cells, title: str) -> None:
    """All tables of one kind of set."""
    print(f"\n=== {title}: inductive, {sum(map(len, cells.values()))} draws")
    print_quality(cells, "as published", [*PUBLISHED, RELEASED])
    print_quality(cells, f"tuned, {BUDGET} candidates each", [f"{name}, tuned" for name in METHODS])
    print_equivalence(cells)
    print_differences(
        cells,
        "what DualIS adds to IS: by a smaller weight, by the second bank",
        [
            pair
            for name in DUALS
            for pair in ((f"{name}, first term", "IS"), (name, f"{name}, first term"))
        ],
    )
    print_differences(
        cells,
        "tuned alike",
        [
            ("DualIS, tuned", "IS, tuned"),
            ("DualDIS, tuned", "DIS, tuned"),
            ("DBSN, tuned", "SN, tuned"),
        ],
    )
    print_differences(
        cells,
        "columns that absorb: DBSN less SN at the same temperature",
        [("DBSN", "SN"), ("DBSN, spread/2", "SN, spread/2")],
    )
    print_weights(cells)
    print_cells(cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    asked: Any = pieces.options(__doc__, SIZES, arguments)
    languages = () if asked.no_emoji else LANGUAGES[:1]  # all of them count as one set
    more = planned(asked.sets, asked.bank_sizes, asked.draws, languages)
    asked.sets, asked.no_emoji, asked.bank_sizes = [], True, []  # planned above
    found: Cells = pieces.collected("dual_bank", Draw, run_draw, asked, more)
    for is_planted in (True, False):
        kinds: dict[str, Cells] = {}
        for cell, draws in found.items():
            if cell[0].startswith("planted") is is_planted:
                kind = cell[0].rpartition(",")[0] if is_planted else "sets"
                kinds.setdefault(kind, {})[cell] = draws
        for title, cells in kinds.items():
            print_report(cells, title)


if __name__ == "__main__":
    main()
