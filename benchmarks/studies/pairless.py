"""How far the banks get without pairs: ways to choose a correction, gains in R@1 over raw.

    python -m benchmarks.studies.pairless [--set DIR/data.npz ...] [--draws 2]
        [--bank-sizes 100 300 all] [--cache DIR] [--seconds S] [--unpaired] [--no-emoji]

Sets, directions and banks as in `benchmarks.studies.tuning`; beside them one kind of set on which
raw is right, simulated: *popular items*, where some items are asked for far more often than others,
by the query bank as by the test. Items are their queries' hubs because they are right. The pairs
are kept from every way but the last.

The first four choose the least uneven of 45 corrections (raw, IS and NNN), on halves of the banks:
one half of the query bank is fitted to the columns, the other half retrieves 10 of them, both ways
round. At most 1,024 rows and 1,024 columns are looked at.

    skewness, bank       the least skewness of k-occurrence over the gallery bank
    Robin Hood, bank     the least Robin Hood index there
    skewness, gallery    over the real gallery
    Robin Hood, gallery
    mutual CSLS          pseudo-pairs, mutual nearest neighbors of the banks under CSLS (as in
                         MUSE), then `tuning.tune` with its guard
    mutual raw           the same by the similarity itself
    standard             IS at 2/spread with weight 0.75, never asked
    IS at quarter weight the same with weight 0.25
    where skewed         the same where the raw k-occurrence of the gallery bank is skewed beyond 1
    both agree           the same where `mutual raw` corrects, too
    pairs                `tuning.tune` with the true pairs

With `--unpaired` the banks are the queries of one half of the pairs and the items of the other
half, where no true pair exists. Draws keep what every candidate would have hit.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.studies import pieces
from benchmarks.studies.significance import holm, loss
from benchmarks.studies.tuning import Cell, ranks_under, source_of
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._src.core.relevance import as_rows
from dbnorm_jax._src.corrections.streamed import Streamed
from dbnorm_jax._src.tuning import grid as candidates
from dbnorm_jax._src.tuning import mixture, split

K = 10
MOST = 1024
SKEWED = 1.0
MEASURES = (dbn.hubness.skewness, dbn.hubness.robin_hood)
PLACES = ("bank", "gallery")
WAYS = (
    "skewness, bank",
    "Robin Hood, bank",
    "skewness, gallery",
    "Robin Hood, gallery",
    "mutual CSLS",
    "mutual raw",
    "standard",
    "IS at quarter weight",
    "where skewed",
    "both agree",
    "pairs",
)


class Draw(NamedTuple):
    """One draw of the bank."""

    # [num_candidates + 3, num_queries] bool, right item first; raw is the first, what `auto` serves
    # under CSLS's, raw's and the true pairs the last
    hits: np.ndarray
    unevenness: np.ndarray  # [2, 2, num_candidates]: bank or gallery; skewness or Robin Hood index
    tuned: np.ndarray  # [3]: candidates by mutual CSLS, mutual raw, and (-1: not run) the pairs
    precision: float  # share of the CSLS pseudo-pairs that are true


def unpaired(test: EvaluationSet, seed: int) -> EvaluationSet:
    """Queries of one half of the pairs, items of the other."""
    pairs, gallery_bank = test.bank_pairs, test.gallery_bank
    assert pairs is not None
    assert gallery_bank is not None
    paired = np.random.default_rng(seed).permutation(np.flatnonzero(pairs >= 0))
    first, second = np.array_split(paired, 2)
    apart = np.setdiff1d(pairs[second], pairs[first])
    return dataclasses.replace(
        test,
        query_bank=test.query_bank[np.sort(first)],
        gallery_bank=gallery_bank[apart],
        bank_pairs=None,
    )


def popular(seed: int, size: int) -> EvaluationSet:
    """Unit vectors; items of 40 topics, each item asked for by a power law, by bank and test alike.

    Half of the items are the gallery. The bank's queries ask for all items, as a log of searches
    does; those of them that ask for an item of the gallery bank are paired.
    """
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(40, 64))
    items = topics[rng.integers(0, 40, 2000)] + 1.0 * rng.normal(size=(2000, 64))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    share = 1 / np.arange(1, 1001)
    gallery, other = np.split(rng.permutation(2000), 2)
    wanted = rng.choice(1000, 1500 + size, p=share / share.sum())
    asked = gallery[wanted[:1500]]
    banked = np.where(rng.random(size) < 0.5, gallery[wanted[1500:]], other[wanted[1500:]])

    def queries(rows: np.ndarray) -> np.ndarray:
        found = items[rows] + 0.14 * rng.normal(size=(len(rows), 64))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    place = np.full((2, 2000), -1)  # in the gallery, in the gallery bank
    place[0, gallery] = place[1, other] = np.arange(1000)
    return EvaluationSet(
        "popular items (simulated)",
        queries(asked),
        items[gallery].astype(np.float32),
        queries(banked),
        items[other].astype(np.float32),
        (np.arange(len(asked) + 1), place[0, asked]),
        place[1, banked],
    )


def run_draw(test: EvaluationSet, seed: int) -> Draw:
    """What every candidate would have hit, and what the banks show."""
    query_bank, gallery_bank, gallery = test.query_bank, test.gallery_bank, test.gallery
    assert gallery_bank is not None
    right = as_rows(test.relevant, (len(test.queries), len(gallery)))
    none = np.full((len(query_bank), 1), -1)
    spread = split.spread(query_bank, jnp.asarray(gallery), none, dbn.dot_product)
    table = candidates.grid(spread, mergeable=True)
    pseudo = [mutual(query_bank, gallery_bank, way) for way in ("CSLS", "raw")]
    served, tuned = [], []
    for pairs in (*map(_round_number, pseudo), test.bank_pairs):
        bias = np.zeros((1, len(gallery)), np.float32)
        if pairs is not None:
            bias = np.asarray(_tuned(test, pairs, seed).bias)
        served.append(bias)
        tuned.append(-1 if pairs is None else int(bias.any()))
    whole = mixture.fitted(table, source_of(test), len(gallery), jnp.dtype(np.float32))
    ranks = ranks_under(test, right, jnp.concatenate([whole, *served]))
    rng = np.random.default_rng(seed)
    query_rows, bank_rows, rows = (
        np.sort(rng.permutation(len(array))[:MOST]) for array in (query_bank, gallery_bank, gallery)
    )
    few = query_bank[query_rows], gallery_bank[bank_rows]
    uneven = [
        unevenness(few[0], few[1], table, seed),
        unevenness(few[0], gallery[rows], table, seed),
    ]
    told = pseudo[0] >= 0
    true = 0.0
    if test.bank_pairs is not None and told.any():
        true = float((pseudo[0] == test.bank_pairs)[told].mean())
    hits = ranks[:, np.isfinite(ranks[0])] <= 1
    return Draw(hits, np.array(uneven), np.array(tuned), np.float64(true))


def chosen(draw: Draw) -> dict[str, int]:
    """The candidate that each way chooses, 0 for raw."""
    table = candidates.grid(1.0, mergeable=True)
    standard, quarter = (
        [table.row(row) for row in range(len(table.method))].index(
            ("is", {"beta_query": 2.0, "weight_query": weight})
        )
        for weight in (0.75, 0.25)
    )
    csls, raw, pairs = (
        len(table.method) + place if corrected > 0 else int(corrected)
        for place, corrected in enumerate(draw.tuned)
    )
    least = {
        f"{measure}, {place}": int(draw.unevenness[where, what].argmin())
        for where, place in enumerate(PLACES)
        for what, measure in enumerate(("skewness", "Robin Hood"))
    }
    found = {
        **least,
        "mutual CSLS": csls,
        "mutual raw": raw,
        "standard": standard,
        "IS at quarter weight": quarter,
        "where skewed": quarter if draw.unevenness[0, 0, 0] > SKEWED else 0,
        "both agree": quarter if raw else 0,
    }
    return found if pairs < 0 else {**found, "pairs": pairs}


def _tuned(test: EvaluationSet, pairs: np.ndarray, seed: int) -> dbn.Correction:
    return dbn.auto(
        query_bank=test.query_bank,
        gallery_bank=test.gallery_bank,
        pairs=pairs,
        gallery=test.gallery,
        seed=seed,
    )


def _round_number(pairs: np.ndarray) -> np.ndarray:
    """A few pairs less: every number of them would be a program of its own."""
    told = np.flatnonzero(pairs >= 0)
    step = 10 if len(told) < 200 else 100
    keep = told[: len(told) // step * step]
    return np.where(np.isin(np.arange(len(pairs)), keep), pairs, -1)


def mutual(query_bank: np.ndarray, gallery_bank: np.ndarray, way: str) -> np.ndarray:
    """[num_query_bank], each row's mutual nearest neighbor, -1 for none."""
    similarities = query_bank @ gallery_bank.T
    if way == "CSLS":
        means = [
            np.sort(similarities, axis=axis).take(range(-min(K, size), 0), axis=axis).mean(axis)
            for axis, size in enumerate(similarities.shape)
        ]
        similarities = 2 * similarities - means[0] - means[1][:, None]
    forth, back = similarities.argmax(axis=1), similarities.argmax(axis=0)
    return np.where(back[forth] == np.arange(len(forth)), forth, -1)


def unevenness(
    query_bank: np.ndarray, columns: np.ndarray, table: candidates.Candidates, seed: int
) -> np.ndarray:
    """[2, num_candidates]: skewness and Robin Hood index of k-occurrence, mean of both halves."""
    rng = np.random.default_rng(seed)
    half = rng.permutation(len(query_bank)) % 2
    values = []
    for part in (0, 1):
        kept, asking = query_bank[half != part], query_bank[half == part]
        source = Streamed(jnp.asarray(columns), jnp.asarray(kept))
        biases = mixture.fitted(table, source, len(columns), jnp.dtype(np.float32))
        similarities = np.asarray(dbn.dot_product(jnp.asarray(asking), jnp.asarray(columns)))
        counts = jnp.asarray(_counts(similarities, np.asarray(biases)))
        values.append([_each(counts, measure=measure) for measure in MEASURES])
    return np.mean(values, axis=0)


@partial(jax.jit, static_argnames="measure")
def _each(counts: jax.Array, *, measure: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return jax.vmap(measure)(counts)


def _counts(similarities: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """[num_candidates, columns] k-occurrence of one half's queries under the other half's fit."""
    size = similarities.shape[1]
    k = min(K, size)
    found = []
    for bias in biases:
        scores = similarities - bias
        # At least the k-th largest, instead of k places: ties are rare.
        lowest = np.partition(scores, size - k, axis=1)[:, size - k, None]
        found.append((scores >= lowest).sum(axis=0).astype(np.int32))
    return np.stack(found)


def popular_sets(sizes: Sequence[str], num_draws: int) -> Iterator[pieces.Planned]:
    """The simulated sets in the form of `tuning.plan`."""
    for size, number in itertools.product(sizes, range(num_draws)):
        count = 4000 if size == "all" else int(size)
        yield ("popular items (simulated)", size), number, partial(popular, number, count)


def print_report(cells: dict[Cell, list[Draw]], title: str) -> None:
    """One line per way: mean over cells, worst, cells below raw and significantly so."""
    print(f"\n{title}: {len(cells)} cells")
    print(f"{'':24}{'mean':>7}{'worst':>8}{'below raw':>11}{'significantly':>15}{'raw kept':>10}")
    by_way = {cell: [chosen(draw) for draw in found] for cell, found in cells.items()}
    for way in WAYS:
        gains, p_values, kept = [], [], []
        for cell, found in cells.items():
            if way not in by_way[cell][0]:
                continue
            rows = [ways[way] for ways in by_way[cell]]
            pairs = [(draw.hits[row], draw.hits[0]) for draw, row in zip(found, rows, strict=True)]
            gains.append(np.mean([100 * (hit.mean() - raw.mean()) for hit, raw in pairs]))
            p_values.append(loss((raw, hit) for hit, raw in pairs))
            kept.append(np.mean([row == 0 for row in rows]))
        if not gains:
            continue
        row = np.array(gains)
        worst = list(cells)[int(row.argmin())]
        print(
            f"{way:24}{row.mean():+7.2f}{row.min():+8.2f}{(row < -1e-9).sum():11d}"
            f"{holm(p_values):15d}{np.mean(kept):10.0%}   {', '.join(worst)}"
        )
    draws = [draw for found in cells.values() for draw in found]
    print(f"CSLS pseudo-pairs that are true: {np.mean([draw.precision for draw in draws]):.0%}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    parser = pieces.parser(__doc__, ("100", "300", "all"))
    parser.add_argument("--unpaired", action="store_true", help="banks without a common pair")
    asked = parser.parse_args(arguments)
    more = popular_sets(asked.bank_sizes, asked.draws)
    if asked.unpaired:
        found = pieces.collected(
            "pairless, unpaired",
            Draw,
            lambda test, seed: run_draw(unpaired(test, seed), seed),
            asked,
            more,
        )
    else:
        found = pieces.collected("pairless, ", Draw, run_draw, asked, more)
    by_kind: dict[str, dict[Cell, list[Draw]]] = {}
    for cell, draws in found.items():
        kind = cell[0].split()[0] if cell[0].startswith(("emoji", "popular")) else "given sets"
        by_kind.setdefault(kind, {})[cell] = draws
    for kind, cells in by_kind.items():
        print_report(cells, f"{kind}, {'unpaired' if asked.unpaired else 'paired'} banks")


if __name__ == "__main__":
    main()
