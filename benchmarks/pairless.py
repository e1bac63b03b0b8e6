"""How far the banks get without pairs: ways to choose a correction, gains in R@1 over raw.

    python -m benchmarks.pairless [--set DIR/data.npz ...] [--draws 2] [--bank-sizes 100 300 all]

Sets, directions and banks as in `benchmarks.tuning`, the pairs kept from every way but the last.
The first four choose among the candidates of `tuning` by how evenly the bank's own queries
retrieve: half of the query bank, and of the gallery bank, is fitted to the columns, the other half
of the query bank retrieves 10 of them, both ways round.

    skewness, bank       the least skewness of k-occurrence over the gallery bank
    Robin Hood, bank     the least Robin Hood index there
    skewness, gallery    over the real gallery
    Robin Hood, gallery
    mutual CSLS          pseudo-pairs, mutual nearest neighbors of the banks under CSLS (as in
                         MUSE), then `tuning.tune` with its guard
    mutual raw           the same by the similarity itself
    standard             IS at 2/spread with weight 0.75, never asked
    IS at quarter weight the same with weight 0.25
    pairs                `tuning.tune` with the true pairs

Every way is run twice: on banks whose items belong together, and on *unpaired* banks, the queries
of one half of the pairs and the items of the other half, where no true pair exists.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks import studies
from benchmarks.tuning import Cell, candidate_ranks, exact_mcnemar, holm
from dbnorm_jax._cli.sets import EvaluationSet
from dbnorm_jax._src import candidates, folds, held_out
from dbnorm_jax._src.relevance import as_rows

K = 10
WAYS = (
    "skewness, bank",
    "Robin Hood, bank",
    "skewness, gallery",
    "Robin Hood, gallery",
    "mutual CSLS",
    "mutual raw",
    "standard",
    "IS at quarter weight",
    "pairs",
)
MEASURES = (dbn.hubness.skewness, dbn.hubness.robin_hood)


class Draw(NamedTuple):
    """One draw of the bank, on banks that belong together and on unpaired ones."""

    raw: np.ndarray  # [num_queries] bool, right item first
    found: np.ndarray  # [2, num_ways, num_queries]
    kept_raw: np.ndarray  # [2, num_ways]
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


def run_draw(test: EvaluationSet, seed: int) -> Draw:
    """Every way's choice, ranked on the test."""
    both = [_ways(banks, seed) for banks in (test, unpaired(test, seed))]
    raw, found, kept, precision = zip(*both, strict=True)
    return Draw(raw[0], np.stack(found), np.stack(kept), precision[0])


def _ways(test: EvaluationSet, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    assert test.gallery_bank is not None
    query_bank, gallery_bank, gallery = test.query_bank, test.gallery_bank, test.gallery
    right = as_rows(test.relevant, (len(test.queries), len(gallery)))
    none = np.full((max(len(query_bank), len(gallery_bank)), 1), -1)
    spreads = [
        folds.spread(bank, jnp.asarray(gallery), none[: len(bank)], dbn.dot_product)
        for bank in (query_bank, gallery_bank)
    ]
    table = candidates.grid(*spreads)
    ranks = candidate_ranks(test, right, *spreads)
    hits = ranks[:, ~np.isnan(ranks[0])] <= 1
    standard = candidates.standard(table, spreads[0])
    chosen = {"standard": standard, "IS at quarter weight": standard - 2}
    assert table.weight_query[standard - 2] == 0.25
    # The banks' own items are ranked, too, but not by themselves.
    excluded = np.arange(len(gallery_bank))[:, None]
    for name, columns, own in (("bank", gallery_bank, excluded), ("gallery", gallery, None)):
        values = unevenness(query_bank, gallery_bank, columns, own, table, seed)
        for measure, row in zip(("skewness", "Robin Hood"), values, strict=True):
            chosen[f"{measure}, {name}"] = int(row.argmin())
    found = {name: (hits[row], row == 0) for name, row in chosen.items()}
    pseudo = {f"mutual {way}": mutual(query_bank, gallery_bank, way) for way in ("CSLS", "raw")}
    for name, pairs in {**pseudo, "pairs": test.bank_pairs}.items():
        correction, choice = dbn.auto(
            gallery, query_bank, gallery_bank, pairs, seed=seed, return_choice=True
        )
        of_choice = np.asarray(dbn.metrics.stream_ranks(test.queries, gallery, right, correction))
        found[name] = of_choice[~np.isnan(ranks[0])] <= 1, int(choice.chosen) == 0
    guessed = pseudo["mutual CSLS"]
    told = guessed >= 0
    true = 0.0
    if test.bank_pairs is not None and told.any():
        true = float((guessed == test.bank_pairs)[told].mean())
    is_right = np.stack([found[name][0] for name in WAYS])
    return hits[0], is_right, np.array([found[name][1] for name in WAYS]), true


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
    query_bank: np.ndarray,
    gallery_bank: np.ndarray,
    columns: np.ndarray,
    excluded: np.ndarray | None,
    table: candidates.Candidates,
    seed: int,
) -> np.ndarray:
    """[2, num_candidates]: skewness and Robin Hood index of k-occurrence, mean of both halves."""
    rng = np.random.default_rng(seed)
    needs = held_out.planned(table, jnp.dtype(np.float32))
    parts, halves = [], []
    for place, bank in enumerate((query_bank, gallery_bank)):
        half = rng.permutation(len(bank)) % 2
        own = excluded if place and excluded is not None else np.full((len(bank), 1), -1)
        halves.append(half)
        parts.append(
            held_out.statistics(
                jnp.asarray(bank),
                jnp.asarray(columns),
                needs.betas[place],
                jnp.asarray(own, jnp.int32),
                held_out.blocks(half, 2),
                num_parts=2,
                k=0 if place else needs.most,
                similarity_fn=dbn.dot_product,
            )
        )
    values = []
    for part in (0, 1):
        queries = jnp.asarray(query_bank[halves[0] == part])
        query, other = (jax.tree.map(np.asarray, _without(found, part)) for found in parts)
        biases = (
            np.asarray(held_out.biases(query, needs.betas[0], needs.neighbors)),
            np.asarray(held_out.biases(other, needs.betas[1], jnp.zeros(0, jnp.int32))),
        )
        active = np.stack([query.k_occurrence > 0, other.k_occurrence > 0])
        similarities = np.asarray(dbn.dot_product(queries, jnp.asarray(columns)))
        terms = held_out.Terms(*(np.asarray(field) for field in needs.terms))  # type: ignore[arg-type]
        counts = jnp.asarray(_counts(similarities, biases, active, terms))
        values.append([_each(counts, measure=measure) for measure in MEASURES])
    return np.mean(values, axis=0)


_without = jax.jit(held_out.merged)


@partial(jax.jit, static_argnames="measure")
def _each(counts: jax.Array, *, measure: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return jax.vmap(measure)(counts)


def _counts(
    similarities: np.ndarray,
    biases: tuple[np.ndarray, np.ndarray],
    active: np.ndarray,
    terms: held_out.Terms,
) -> np.ndarray:
    """[num_candidates, columns] k-occurrence of one half's queries under the other half's fit."""
    gates = active[:, similarities.argmax(axis=1)]
    size = similarities.shape[1]
    k = min(K, size)
    found = []
    for query, weight, other, other_weight, gated in zip(*terms, strict=True):
        on = (gates | ~gated).astype(similarities.dtype)[..., None]
        scores = similarities - on[0] * (weight * biases[0][query])
        if other_weight:
            scores -= on[1] * (other_weight * biases[1][other])
        # At least the k-th largest, instead of k places: ties are rare.
        lowest = np.partition(scores, size - k, axis=1)[:, size - k, None]
        found.append((scores >= lowest).sum(axis=0).astype(np.int32))
    return np.stack(found)


def print_report(cells: dict[Cell, list[Draw]], banks: int, title: str) -> None:
    """One line per way: mean over cells, worst, cells below raw and significantly so."""
    print(f"\n{title}: {len(cells)} cells")
    print(f"{'':24}{'mean':>7}{'worst':>8}{'below raw':>11}{'significantly':>15}{'raw kept':>10}")
    for place, way in enumerate(WAYS):
        gains, p_values, kept = [], [], []
        for found in cells.values():
            gains.append(
                np.mean(
                    [100 * (draw.found[banks, place].mean() - draw.raw.mean()) for draw in found]
                )
            )
            worse = sum(int((draw.raw & ~draw.found[banks, place]).sum()) for draw in found)
            better = sum(int((draw.found[banks, place] & ~draw.raw).sum()) for draw in found)
            p_values.append(exact_mcnemar(worse, better))
            kept.append(np.mean([draw.kept_raw[banks, place] for draw in found]))
        row = np.array(gains)
        worst = list(cells)[int(row.argmin())]
        print(
            f"{way:24}{row.mean():+7.2f}{row.min():+8.2f}{(row < -1e-9).sum():11d}"
            f"{holm(p_values):15d}{np.mean(kept):10.0%}   {', '.join(worst)}"
        )
    if banks:
        return
    draws = [draw for found in cells.values() for draw in found]
    print(f"CSLS pseudo-pairs that are true: {np.mean([draw.precision for draw in draws]):.0%}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads what to run."""
    asked = studies.options(__doc__, ("100", "300", "all"), arguments)
    found = studies.collected("pairless", Draw, run_draw, asked)
    print_report(found, 0, "banks that belong together")
    print_report(found, 1, "unpaired banks")


if __name__ == "__main__":
    main()
