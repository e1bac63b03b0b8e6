"""What banks that do not fit, moved queries and stale banks do to each method.

    python -m benchmarks.studies.shift [--quick] [--set data.npz]...

Runs on the embedded emoji names (en -> de, five splits) and on every --set, an npz with query,
gallery, query_bank, gallery_bank, and gt_indptr with gt_indices; similarity is cosine. Inductive:
no bank is made of test items, and bank rows that equal a test row are counted.

    banks              the set's own; 100 rows of each; exchanged, gallery-bank items standing for
                       queries and query-bank items for the gallery
    wrong domain       random: rows drawn from a Gaussian of mean 0 and the gallery bank's
                       covariance, made unit; or the banks of another set of the same dimension
                       (for emoji names those of en -> fr, whose map and names differ)
    perturbed queries  test queries plus Gaussian noise of expected squared length size^2, made
                       unit (query shift, arXiv 2604.20851); the banks stay as they were
    stale bank         test queries plus size times one common direction, drawn likewise with the
                       query bank's covariance, made unit; the query bank, without what is streamed
                       below, stays as it was (stale) or moves along (fresh)
    updated            the stale bank, its weights times gamma, merged with the first of a stream of
                       moved bank queries that are not in it; "new gate" drops its activation set

`IS(20)` has beta 20 on the query bank, `DualIS(20,1)` also beta 1 on the gallery bank; `CSLS(10)`
averages the 10 and `NNN(128,0.75)` the 128 nearest bank items, or all where there are fewer. Cells
hold R@1 in percent, the gain over raw on the same queries with half its 95 % interval, paired over
the queries of a split, in parentheses its standard error over splits, and the skewness of N_10; all
are means over splits. Splits share emoji: between other data sets more varies.
"""

import argparse
import dataclasses
import itertools
import shlex
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.support.common import machine
from dbnorm_jax._cli.reading import arrays, sets
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet

Rows = np.ndarray  # [number, dim] float32, unit rows
Split = tuple[EvaluationSet, Sequence[EvaluationSet]]  # a test, and sets of other domains

BETA_QUERY, BETA_GALLERY = 20.0, 1.0
NNN_K, NNN_WEIGHT, CSLS_K = 128, 0.75, 10
SMALL_BANK = 100
NORMAL_95 = 1.96
COLUMNS = 4  # levels side by side
CELL = f"{'R@1':>5}{'gain':>7}{'±95%':>6}{'(s.e.)':>8}{'skew':>7}"


@dataclasses.dataclass(frozen=True)
class Levels:
    """How far each condition goes: splits, sizes of noise and of shift, numbers of new queries.

    Banks are updated under the last shift. Test queries have length 1.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    noise: tuple[float, ...] = (0.5, 1.0, 2.0)
    shifts: tuple[float, ...] = (0.25, 0.5, 1.0)
    streamed: tuple[int, ...] = (20, 80, 320)


QUICK = Levels(seeds=(0,), noise=(1.0,), shifts=(1.0,), streamed=(100,))

# What becomes of the old bank: name, its weight, whether its activation set stays.
UPDATES = (
    ("gamma 1", 1.0, True),
    ("gamma 0.1", 0.1, True),
    ("gamma 0.1, new gate", 0.1, False),
    ("new queries alone", 0.0, False),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What the methods keep of the two banks; `largest` holds NNN_K, of the query bank."""

    query: dbn.BankStatistics
    gallery: dbn.BankStatistics
    largest: dbn.LargestSimilarities


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One level of one condition: test queries [num_queries, dim] and what the banks left."""

    family: str
    level: str
    queries: Rows
    fitted: Fitted


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """One method on one case: hits [num_queries], 1 where the rank is 1, and skewness of N_10."""

    hits: np.ndarray
    skewness: float


# By (family, level), by method, one per split.
Results = dict[tuple[str, str], dict[str, list[Score]]]


def fit(query_bank: Rows, gallery_bank: Rows, gallery: Rows) -> Fitted:
    """What both banks [num_bank, dim] say about the gallery [num_gallery, dim]."""
    return Fitted(
        dbn.stream_bank_statistics(query_bank, gallery, beta=BETA_QUERY),
        dbn.stream_bank_statistics(gallery_bank, gallery, beta=BETA_GALLERY),
        dbn.stream_largest_similarities(query_bank, gallery, k=NNN_K),
    )


def updated(old: Fitted, new: Fitted, gamma: float, keep_active: bool) -> Fitted:
    """The old query bank, times gamma, and the new one; the gallery bank is the old one.

    The k-occurrence counts whole bank items and does not decay: activation sets only grow.
    `keep_active=False` makes the old one 0, so that gates are those of newer items alone.
    CSLS and NNN keep similarities, which have no weights: any gamma above 0 is the same to them.
    """
    if gamma == 0:
        return Fitted(new.query, old.gallery, new.largest)
    query = dbn.growing.decay(old.query, gamma)
    if not keep_active:
        query = dataclasses.replace(query, k_occurrence=jnp.zeros_like(query.k_occurrence))
    largest = dbn.merge(old.largest, new.largest)
    return Fitted(dbn.merge(query, new.query), old.gallery, largest)


def corrections(fitted: Fitted) -> dict[str, dbn.Correction | None]:
    """Every method by name; None is raw."""
    single, dual = f"({BETA_QUERY:g})", f"({BETA_QUERY:g},{BETA_GALLERY:g})"
    nearest = dataclasses.replace(fitted.largest, values=fitted.largest.values[:CSLS_K])
    return {
        "raw": None,
        f"IS{single}": dbn.inverted_softmax(fitted.query),
        f"DIS{single}": dbn.dynamic_inverted_softmax(fitted.query),
        f"DualIS{dual}": dbn.dual_inverted_softmax(fitted.query, fitted.gallery),
        f"DualDIS{dual}": dbn.dual_dynamic_inverted_softmax(fitted.query, fitted.gallery),
        f"CSLS({CSLS_K})": dbn.baselines.csls(nearest),
        f"NNN({NNN_K},{NNN_WEIGHT:g})": dbn.baselines.nearest_neighbor_normalization(
            fitted.largest, weight=NNN_WEIGHT
        ),
    }


def scores(test: EvaluationSet, case: Case) -> dict[str, Score]:
    """Each method's hits and hubness; queries without a right item are left out of the hits."""
    queries, gallery = jnp.asarray(case.queries), jnp.asarray(test.gallery)
    found = {}
    for name, correction in corrections(case.fitted).items():
        ranks = np.asarray(dbn.metrics.stream_ranks(queries, gallery, test.relevant, correction))
        nearest = dbn.stream_top_k(queries, gallery, min(10, len(gallery)), correction).indices
        counts = dbn.hubness.k_occurrence(nearest, len(gallery))
        hits = (ranks[~np.isnan(ranks)] <= 1).astype(float)
        found[name] = Score(hits, float(dbn.hubness.skewness(counts)))
    return found


def unit(rows: np.ndarray) -> Rows:
    """Rows of length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def drawn(rows: Rows, number: int, random: np.random.Generator) -> Rows:
    """Unit vectors [number, dim] along Gaussian draws of mean 0 and the covariance of `rows`."""
    centered = rows - rows.mean(axis=0)
    return unit(random.normal(size=(number, len(rows))) @ centered)


def bank_cases(
    test: EvaluationSet, others: Sequence[EvaluationSet], random: np.random.Generator
) -> Iterator[tuple[str, str, Rows, Rows]]:
    """(family, level, query bank, gallery bank) of the conditions that leave the queries alone."""
    own = test.query_bank, test.gallery_bank
    yield "banks", "matched", *own
    few = (bank[random.permutation(len(bank))[:SMALL_BANK]] for bank in own)
    yield "banks", f"small bank: {SMALL_BANK}", *few
    yield "banks", "wrong modality: exchanged", *own[::-1]
    noise = (drawn(test.gallery_bank, len(bank), random) for bank in own)
    yield "wrong domain", "random", *noise
    for number, other in enumerate(others, start=1):  # names may repeat
        yield "wrong domain", f"other {number}: {other.name}", other.query_bank, other.gallery_bank


def cases(
    test: EvaluationSet, others: Sequence[EvaluationSet], levels: Levels, seed: int
) -> Iterator[Case]:
    """Every condition at every level."""
    random = np.random.default_rng(seed)
    matched = None
    for family, level, *banks in bank_cases(test, others, random):
        fitted = fit(*banks, test.gallery)
        matched = matched or fitted  # the first
        yield Case(family, level, test.queries, fitted)
    noise = random.normal(size=test.queries.shape) / np.sqrt(test.queries.shape[1])
    for size in levels.noise:
        queries = unit(test.queries + size * noise)
        yield Case("perturbed queries", f"noise {size:g}", queries, matched)
    yield from stale_cases(test, levels, random)


def stale_cases(test: EvaluationSet, levels: Levels, random: np.random.Generator) -> Iterator[Case]:
    """The stale bank under growing shifts, and under the last one its updates."""
    order = random.permutation(len(test.query_bank))
    num_streamed = min(max(levels.streamed), len(order) // 2)
    stream, bank = np.split(test.query_bank[order], [num_streamed])
    direction = drawn(test.query_bank, 1, random)
    stale = fit(bank, test.gallery_bank, test.gallery)
    for size in levels.shifts:
        queries = unit(test.queries + size * direction)
        yield Case("stale bank", f"stale, shift {size:g}", queries, stale)
    bank, stream = unit(bank + size * direction), unit(stream + size * direction)
    fresh = fit(bank, test.gallery_bank, test.gallery)
    yield Case("stale bank", f"fresh, shift {size:g}", queries, fresh)

    for number in sorted({min(number, num_streamed) for number in levels.streamed}):
        new = fit(stream[:number], test.gallery_bank, test.gallery)
        family = f"stale bank of {len(bank)}, shift {size:g}, updated with {number} new queries"
        for level, gamma, keep_active in UPDATES:
            yield Case(family, level, queries, updated(stale, new, gamma, keep_active))


def cell(found: Sequence[Score], raw: Sequence[Score]) -> str:
    """One method at one level, over splits: see the docstring of the module."""
    recall = 100 * np.mean([score.hits.mean() for score in found])
    skew = np.mean([score.skewness for score in found])
    if found is raw:
        return f"{recall:5.1f}{skew:28.2f}"
    differences = [100 * (score.hits - base.hits) for score, base in zip(found, raw, strict=True)]
    gains = [difference.mean() for difference in differences]
    half = np.mean([NORMAL_95 * each.std(ddof=1) / np.sqrt(len(each)) for each in differences])
    error = f"({np.std(gains, ddof=1) / np.sqrt(len(gains)):.1f})" if len(gains) > 1 else ""
    return f"{recall:5.1f}{np.mean(gains):+7.1f}{f'±{half:.1f}':>6}{error:>8}{skew:7.2f}"


def tables(results: Results) -> Iterator[str]:
    """Lines of one table per family: methods down, its levels across."""
    for family, group in itertools.groupby(results, key=lambda key: key[0]):
        keys = list(group)
        for start in range(0, len(keys), COLUMNS):
            yield from table(family, {key[1]: results[key] for key in keys[start:][:COLUMNS]})


def table(family: str, levels: dict[str, dict[str, list[Score]]]) -> Iterator[str]:
    """Lines of one table, an empty one last."""
    methods = list(next(iter(levels.values())))
    width, name_width = len(CELL), max(map(len, methods))
    rows = [("", *(f"{level[:width]:<{width}}" for level in levels)), ("", *[CELL] * len(levels))]
    rows += [
        (name, *(cell(each[name], each["raw"]) for each in levels.values())) for name in methods
    ]
    lines = [" | ".join((f"{name:<{name_width}}", *cells)).rstrip() for name, *cells in rows]
    yield from (family, *lines[:2], "-" * len(lines[1]), *lines[2:], "")


def run(splits: Sequence[Split], levels: Levels) -> Results:
    """Every method on every case of every split."""
    results: Results = {}
    for seed, (test, others) in enumerate(splits):
        for case in cases(test, others, levels, seed):
            by_method = results.setdefault((case.family, case.level), {})
            for name, score in scores(test, case).items():
                by_method.setdefault(name, []).append(score)
    return results


def show(splits: Sequence[Split], levels: Levels) -> None:
    """Prints the tables of one data set."""
    test, _ = splits[0]
    print(
        f"{test.name}, splits: {len(splits)}; {len(test.queries)} queries, {len(test.gallery)} "
        f"gallery items, banks {len(test.query_bank)} and {len(test.gallery_bank)}"
    )
    equal = sum(equal_rows(*split) for split in splits)
    print("inductive" if not equal else "transductive", f"({equal} bank rows equal test rows)\n")
    print(*tables(run(splits, levels)), sep="\n")


def equal_rows(test: EvaluationSet, others: Sequence[EvaluationSet]) -> int:
    """How many bank rows, own or of another domain, equal a test row of either side."""
    return sum(
        sets.num_equal_rows(bank, rows)
        for owner in (test, *others)
        for bank in (owner.query_bank, owner.gallery_bank)
        for rows in (test.queries, test.gallery)
    )


def same_dimension(test: EvaluationSet, given: Sequence[EvaluationSet]) -> list[EvaluationSet]:
    """The other sets whose banks can stand in for those of `test`."""
    dim = test.gallery.shape[1]
    return [other for other in given if other is not test and other.gallery.shape[1] == dim]


def read(path: str) -> EvaluationSet:
    """One set, which must have both banks and know what is right."""
    test = arrays.read_set(path, "cosine")
    for name, value in (("gallery_bank", test.gallery_bank), ("gt_indptr", test.relevant)):
        if value is None:
            raise ValueError(f"--set {path}: expected an array named {name}, got none; add it")
    return test


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints every table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.shift",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one split and fewer levels")
    parser.add_argument("--set", action="append", default=[], metavar="PATH", help="repeatable")
    options = parser.parse_args(arguments)
    levels = QUICK if options.quick else Levels()
    given = [read(path) for path in options.set]

    words = [*(["--quick"] if options.quick else []), *(f"--set={path}" for path in options.set)]
    print(shlex.join(["python", "-m", "benchmarks.studies.shift", *words]), machine(), "", sep="\n")
    pairs = [[emoji_names("en", target, seed) for target in ("de", "fr")] for seed in levels.seeds]
    show([(test, [other]) for test, other in pairs], levels)
    for test in given:
        show([(test, same_dimension(test, given))], levels)


if __name__ == "__main__":
    main()
