"""Draws at the edges of tiles, masks, weights, dtypes and betas, against an oracle.

    python tests/campaigns/boundaries.py --draws 100000 --seed 1
    python tests/campaigns/boundaries.py --seconds 900 --seed 2

Each draw compares every number that a place gives (matrices, streams, a mesh, files, vectors for
indexes) with `oracle.py`, under the bounds that `docs/promises.md` states and `Bounds` computes.
Draws come in bouts, each of one place, shape, dtype and method, so that programs are compiled once
per bout; `draws.py` says what is drawn. A draw depends on its seed and number only: `--first N
--draws 1` repeats one.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import sys
import tempfile
import time

if __name__ == "__main__":  # read when JAX starts; the tests have set it
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from draws import bout_of, draw_of, min_dtype

import dbnorm_jax as dbn

DRAWS_PER_BOUT = 250


# --- what is allowed -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How far results may be from exact ones; `docs/promises.md` says it in words.

    `eps` is that of the results, `error` [rows, num_gallery] how far similarities are off.
    """

    eps: float
    tiny: float

    def similarities(self, name, rows, columns):
        """A product of `dim` entries is rounded so often, to either side; subnormals are 0."""
        dim = rows.shape[1]
        lengths = [np.sqrt((one**2).sum(axis=1)) for one in (rows, columns)]
        sizes = lengths[0][:, None] * lengths[1][None]
        if name == "cosine_similarity":
            sizes = np.ones_like(sizes)
        if name == "negative_squared_euclidean":
            sizes = (lengths[0][:, None] + lengths[1][None]) ** 2
        largest = max(1, *(np.abs(one).max() for one in (rows, columns)))
        return self.eps * (4 + dim**0.5) * sizes + self.tiny * (2 + dim * largest)

    def bias(self, bank, error):
        """16 eps of the largest similarity of the column, at every beta and weight."""
        size = np.where(bank.entered, np.abs(bank.similarities), 0).max(axis=0, initial=0)
        off = np.where(bank.entered, error, 0).max(axis=0, initial=0)
        return 16 * self.eps * size + off + self.tiny

    def log_normalizer(self, bank, beta, error):
        """5e-6 of float32, which are 42 eps, of the largest of 1, beta |s| and |log mass|."""
        size = np.where(bank.entered, np.abs(bank.similarities), 0).max(axis=0, initial=0)
        off = np.where(bank.entered, error, 0).max(axis=0, initial=0)
        mass = bank.mass
        log_mass = np.abs(np.log(np.where(mass > 0, mass, 1)))
        return 42 * self.eps * np.maximum(np.maximum(1, beta * size), log_mass) + beta * off

    def mass(self, bank):
        """Whole numbers are exact; else each column sums as many weights as there are."""
        if (bank.weights == np.round(bank.weights)).all() and bank.weights.sum() < 2**24:
            return np.zeros(bank.entered.shape[1])
        return self.eps * (4 + len(bank.weights) ** 0.5) * bank.mass

    def responsibilities(self, bank, beta, shares):
        """Exponents `beta (s - top)` and logarithms are rounded relative to their own size."""
        excess = np.where(bank.entered, beta * (bank.top - bank.similarities), 0)
        mass = bank.mass
        logs = np.abs(bank.log_mean(beta)) + np.abs(np.log(np.where(mass > 0, mass, 1)))
        return 8 * self.eps * (1 + excess + logs) * shares + 4 * self.tiny

    def scores(self, similarities, terms, error):
        """Similarities are off by `error`; each offset [num_queries, num_gallery] rounds once."""
        size = np.abs(similarities) + sum(np.abs(term) for term in terms)
        return error + (1 + len(terms)) * self.eps * size + self.tiny

    def mean(self, largest, error):
        filled = np.where(np.isfinite(largest), np.abs(largest), 0).max(axis=0)
        return (2 + len(largest) ** 0.5) * self.eps * filled + error + self.tiny


class Judge:
    """Collects what is outside its bound, and the largest share of a bound that was used."""

    def __init__(self):
        self.used, self.found = {}, []

    def near(self, what, found, expected, bound):
        found, expected = np.asarray(found), np.asarray(expected)
        if found.shape != expected.shape:
            self.found.append((what, f"has shape {found.shape}, not {expected.shape}"))
            return
        wide = expected.dtype if expected.dtype.kind == "f" else np.float64
        found, expected = found.astype(wide), expected.astype(wide)
        bound = np.broadcast_to(bound, expected.shape)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            off = np.where(found == expected, 0, np.abs(found - expected))
            share = np.where(off == 0, 0, off / bound)
        share = np.where(np.isnan(share), np.inf, share)
        worst = float(share.max(initial=0))
        self.used[what] = max(self.used.get(what, 0), worst)
        if worst > 1:
            place = np.unravel_index(share.argmax(), share.shape)
            values = f"{found[place]:.9g}, not {expected[place]:.9g} within {bound[place]:.2g}"
            where = [int(part) for part in place]
            self.found.append((what, f"{values} at {where}, {(share > 1).sum()} such"))

    def same(self, what, found, expected):
        self.near(what, found, expected, 0)

    def between(self, what, found, low, high):
        found = np.asarray(found).astype(np.float64)
        self.near(what, found, np.clip(found, low, high), 0)

    def true(self, what, holds, *said):
        self.used.setdefault(what, 0)
        if not np.all(holds):
            self.found.append((what, f"does not hold: {said}"))


# --- places --------------------------------------------------------------------------------------


class Place:
    """One bout's functions, with what the oracle knows of their input."""

    def __init__(self, bout, draw, folder):
        self.bout, self.draw, self.folder = bout, draw, folder
        # Subnormal numbers of an argument may be 0 before they become float64.
        narrow = {"float32", "bfloat16"} & {*bout.dtypes}
        limits = np.finfo(bout.result), np.finfo(np.float32 if narrow else bout.result)
        self.bounds = Bounds(float(limits[0].eps), float(limits[1].tiny))
        self.similarity_fn = getattr(dbn, bout.similarity)
        self.options = {"similarity_fn": self.similarity_fn, "chunk_size": bout.chunk}
        if bout.place == "mesh":
            self.options["mesh"] = jax.make_mesh(bout.mesh, ("bank", "gallery"))
        if bout.place == "files":
            self.options["block_size"] = bout.block
        files, streams = (
            dbn.out_of_core,
            (dbn.stream_bank_statistics, dbn.stream_largest_similarities),
        )
        self.verbs = (*streams, dbn.stream_top_k, dbn.metrics.stream_ranks)
        if bout.place == "files":
            self.verbs = (
                files.bank_statistics,
                files.largest_similarities,
                files.top_k,
                files.ranks,
            )
        self.matrices = {}

    @property
    def is_matrix(self):
        return self.bout.place == "matrix"

    def exactly(self, array):
        """As the library reads it, in the oracle's precision."""
        if array.dtype == np.float64 and not self.bout.x64:
            array = array.astype(np.float32)
        return array.astype(np.float64).astype(self.bout.wide)

    def compared(self, name):
        """(similarities, error) [rows, num_gallery] of rows of this name."""
        if name not in self.matrices:
            rows, gallery = (self.exactly(getattr(self.draw, n)) for n in (name, "gallery"))
            values = oracle.similarities(self.bout.similarity, rows, gallery)
            error = np.zeros(values.shape)
            if self.is_matrix:
                values = self.exactly(self.given(values))
                if ((values != 0) & (np.abs(values) < self.bounds.tiny)).any():
                    error += self.bounds.tiny
            elif not self.draw.exact or self.bout.similarity == "cosine_similarity":
                error = self.bounds.similarities(self.bout.similarity, rows, gallery)
            self.matrices[name] = values, error.astype(np.float64)
        return self.matrices[name]

    def given(self, values):
        """A matrix in the dtype of the bout's gallery."""
        dtype = jnp.dtype(self.bout.dtypes[0])
        dtype = dtype if self.bout.x64 else min_dtype(dtype)
        largest = float(jnp.finfo(dtype).max)
        return np.clip(values, -largest, largest).astype(dtype)

    def matrix(self, name):
        return self.given(self.compared(name)[0])

    def embedded(self, name):
        array = getattr(self.draw, name)
        if self.bout.place != "files" or self.bout.block % 2:
            return array
        path = self.folder / f"{name}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode="r")

    def bank(self, name, weighted=True):
        """The oracle's Bank and the errors of its similarities; options are the query bank's."""
        values, error = self.compared(name)
        entered, weights = np.ones(values.shape, bool), np.ones(len(values))
        draw = self.draw
        if name == "bank" and draw.exclude is not None:
            entered = (
                draw.pairs if self.is_matrix else ~oracle.excluded(draw.exclude, len(entered.T))
            )
        if name == "bank" and draw.weights is not None and weighted:
            weights = draw.weights
        entered = entered & (weights > 0)[:, None]
        return oracle.Bank(values, weights.astype(self.bout.wide), entered), error

    def statistics(self, name, rows, beta):
        draw, weighted = self.draw, {}
        if name == "bank" and draw.weights is not None:
            weighted["weights"] = draw.weights[rows]
        if self.is_matrix:
            if name == "bank" and draw.pairs is not None:
                weighted["where"] = draw.pairs[rows]
            matrix = self.matrix(name)[rows]
            return dbn.bank_statistics(matrix, beta=beta, k=self.bout.k, **weighted)
        if name == "bank" and draw.exclude is not None:
            weighted["exclude"] = draw.exclude[rows]
        arrays = self.embedded(name)[rows], self.embedded("gallery")
        return self.verbs[0](*arrays, beta=beta, k=self.bout.k, **weighted, **self.options)

    def largest(self, name, rows, k):
        draw, masks = self.draw, {}
        if self.is_matrix:
            if draw.pairs is not None:
                masks["where"] = draw.pairs[rows]
            return dbn.largest_similarities(self.matrix(name)[rows], k=k, **masks)
        if draw.exclude is not None:
            masks["exclude"] = draw.exclude[rows]
        arrays = self.embedded(name)[rows], self.embedded("gallery")
        return self.verbs[1](*arrays, k=k, **masks, **self.options)

    def seen(self):
        draw, shape = self.draw, (self.bout.queries, self.bout.gallery)
        if draw.unseen is None:
            return np.ones(shape, bool)
        return draw.items[None] & ~oracle.excluded(draw.unseen, shape[1])

    def masks(self):
        draw = self.draw
        if draw.unseen is None:
            return {}
        items = np.broadcast_to(draw.items, (self.bout.queries, self.bout.gallery))
        return {"exclude": draw.unseen, "where": items if self.is_matrix else draw.items}

    def top_k(self, correction):
        if self.is_matrix:
            return dbn.top_k(self.matrix("queries"), self.bout.k, correction, **self.masks())
        arrays = self.embedded("queries"), self.embedded("gallery")
        return self.verbs[2](*arrays, self.bout.k, correction, **self.masks(), **self.options)

    def ranks(self, relevant, correction):
        arrays = self.embedded("queries"), self.embedded("gallery")
        return self.verbs[3](*arrays, relevant, correction, **self.masks(), **self.options)


def execute(judge, bout, draw, folder):
    """Judges one draw."""
    place = Place(bout, draw, folder)
    correction = fit(judge, place)
    if bout.place == "index":
        if correction is not None:
            judge_vectors(judge, place, correction)
    else:
        judge_search(judge, place, correction)


def beta_of(place, bank, power):
    scale = np.abs(bank.similarities).max() or 1.0
    beta = np.clip(10.0**power / float(scale), 1.1e-37, 0.9e37)
    return place.bout.result.type(beta)


def fit(judge, place):
    """Judges statistics, their parts and the correction of the bout's method, which it returns."""
    bout, method = place.bout, place.bout.method
    if method in ("csls", "nnn"):
        return _fit_largest(judge, place)
    found = {}
    names = ["bank", "gallery_bank"] if method.startswith("dual") else ["bank"]
    for name, power in zip(names, place.draw.powers, strict=False):
        bank, error = place.bank(name)
        beta = beta_of(place, bank, power)
        whole = place.statistics(name, slice(None), beta)
        judge_statistics(judge, "", place, whole, bank, error, beta)
        found[name] = whole, bank, error, beta
    whole, bank, error, beta = found["bank"]
    if bout.cut:
        _judge_parts(judge, place, *found["bank"])
    if place.is_matrix:
        given = {"weights": place.draw.weights, "where": place.draw.pairs}
        shares = dbn.responsibilities(place.matrix("bank"), whole, **given)
        expected = bank.responsibilities(bout.wide(beta))
        bound = place.bounds.responsibilities(bank, bout.wide(beta), expected)
        judge.near("responsibilities", shares, expected, bound)
    if method == "raw":
        return None
    verbs = {
        "is": dbn.inverted_softmax,
        "dis": dbn.dynamic_inverted_softmax,
        "dualis": dbn.dual_inverted_softmax,
        "dualdis": dbn.dual_dynamic_inverted_softmax,
    }
    correction = verbs[method](*(one[0] for one in found.values()))
    total = sum(bout.wide(one[3]) for one in found.values())
    for term, (statistics, bank, error, beta) in enumerate(found.values()):
        share = bout.wide(beta) / total
        expected, bound = bank.bias(bout.wide(beta)), place.bounds.bias(bank, error)
        bound = share * (bound + 4 * place.bounds.eps * np.abs(expected)) + place.bounds.tiny
        judge.near("correction.bias", correction.bias[term], share * expected, bound)
        if correction.active is not None:
            judge.same("correction.active", correction.active[term], statistics.k_occurrence > 0)
    judge.same("correction gates", correction.active is not None, method in ("dis", "dualdis"))
    return correction


def judge_statistics(judge, prefix, place, found, bank, error, beta, factor=1.0):
    bounds, wide = place.bounds, place.bout.wide(beta)
    judge.near(f"{prefix}mass", found.mass, bank.mass, factor * bounds.mass(bank))
    off = factor * bounds.log_normalizer(bank, wide, error)
    judge.near(f"{prefix}log_normalizer", found.log_normalizer, bank.log_normalizer(wide), off)
    judge.near(f"{prefix}bias", found.bias, bank.bias(wide), factor * bounds.bias(bank, error))
    fewest, most = bank.occurrences(place.bout.k, error)
    judge.between(f"{prefix}k_occurrence", found.k_occurrence, fewest, most)
    total = np.minimum(bank.entered.sum(axis=1), place.bout.k).sum()
    judge.same(f"{prefix}k_occurrence total", np.asarray(found.k_occurrence).sum(), total)
    active = np.asarray(found.k_occurrence) > 0
    judge.same(f"{prefix}active", found.active, active)


def _judge_parts(judge, place, whole, bank, error, beta):
    """Merged parts are the whole, and the whole less a part is the other."""
    rows = slice(None, place.bout.cut), slice(place.bout.cut, None)
    parts = [place.statistics("bank", one, beta) for one in rows]
    merged = dbn.merge(*parts)
    judge_statistics(judge, "merged ", place, merged, bank, error, beta, factor=2)
    wide, bounds = place.bout.wide(beta), place.bounds
    left, gone = bank.part(rows[1]), bank.part(rows[0])
    with np.errstate(invalid="ignore", over="ignore"):
        share = np.exp(np.minimum(left.log_normalizer(wide) - bank.log_normalizer(wide), 0))
    mass = bank.mass
    share = np.minimum(share, left.mass / np.where(mass > 0, mass, 1))
    # Nothing enters the other part: it is emptied, exactly, where masses are known exactly.
    empty, same = left.mass == 0, gone.mass == 0
    share = np.where(same, 1, share)
    known = (bounds.mass(bank) == 0).all()
    try:
        found = dbn.subtract(whole, parts[0])
    except ValueError as error_:
        refusable = (share[~empty] < 2e-3).any() or not known
        judge.true("subtract refuses", refusable, str(error_), float(share[~empty].min(initial=1)))
        return
    judged = ~empty & (share >= 1e-3)
    factor = np.where(judged, 4 / np.where(judged, share, 1), np.inf)
    expected = left.bias(wide)
    off = factor * bounds.bias(bank, error)
    judge.near(
        "subtracted bias", np.where(judged, found.bias, 0), np.where(judged, expected, 0), off
    )
    off = factor * bounds.log_normalizer(bank, wide, error)
    pair = (np.where(judged, one, 0) for one in (found.log_normalizer, left.log_normalizer(wide)))
    judge.near("subtracted log_normalizer", *pair, off)
    off = 4 * bounds.mass(bank) + np.where(judged, 0, bounds.eps * mass)
    judge.near("subtracted mass", found.mass, left.mass, off)
    counts = [np.asarray(one.k_occurrence) for one in (found, whole, parts[0])]
    judge.same("subtracted k_occurrence", counts[0], counts[1] - counts[2])
    if known:
        judge.same("emptied bias", np.asarray(found.bias)[empty], np.zeros(empty.sum()))
        logs = np.asarray(found.log_normalizer)[empty]
        judge.same("emptied log_normalizer", logs, np.full(empty.sum(), -np.inf))


def _fit_largest(judge, place):
    bout = place.bout
    k = min(bout.k, 2 * bout.bank)
    bank, error = place.bank("bank", weighted=False)
    off = np.where(bank.entered, error, 0).max(axis=0, initial=0)
    whole = place.largest("bank", slice(None), k)
    expected = bank.largest(k)
    values = np.asarray(whole.values)
    judge.near("largest", values, expected, off)
    judge.true("largest first", values[1:] <= values[:-1])
    if bout.cut:
        parts = (slice(None, bout.cut), slice(bout.cut, None))
        merged = dbn.merge(*(place.largest("bank", rows, k) for rows in parts))
        judge.near("merged largest", merged.values, expected, off)
    if not bank.entered.any(axis=0).all():
        return None
    weight = 0.5
    if bout.method == "csls":
        correction = dbn.baselines.csls(whole)
    else:
        weight = 0.75
        correction = dbn.baselines.nearest_neighbor_normalization(whole, weight=weight)
    bound = place.bounds.mean(expected, off)
    mean = weight * oracle.mean_of_largest(expected)
    judge.near("correction.bias", correction.bias[0], mean, bound)
    return correction


def terms_of(place, correction, judge):
    """([num_queries, num_gallery] offsets by term, [num_queries] are the gates beyond doubt)."""
    if correction is None:
        return [], np.ones(place.bout.queries, bool)
    values, error = place.compared("queries")
    bias = np.asarray(correction.bias).astype(place.bout.wide)
    opened, sure = np.ones((len(values), len(bias)), bool), np.ones(len(values), bool)
    if correction.active is not None:
        active = np.asarray(correction.active)
        opened, sure = oracle.gates(values, active, place.seen(), error)
    if place.is_matrix:
        found = dbn.gates(place.matrix("queries"), correction, **place.masks())
        judge.same("gates", np.asarray(found)[sure], opened[sure])
    return [opened[:, term, None] * bias[term] for term in range(len(bias))], sure


def copies_of(place, correction):
    """[num_gallery] numbers: alike are items of equal entries, up to the sign of 0, and biases."""
    columns = place.exactly(place.draw.gallery) + 0.0
    if correction is not None:
        columns = np.concatenate([columns, np.asarray(correction.bias).T.astype(columns.dtype)], 1)
    return np.unique(columns.astype(np.float64), axis=0, return_inverse=True)[1].reshape(-1)


def right_of(place):
    """The right items as rows that no scores have the shape of, and as a bool matrix."""
    rows = place.draw.relevant
    if place.bout.gallery == rows.shape[1]:
        rows = rows[:, 0]
    return rows, oracle.excluded(rows, place.bout.gallery)


def judge_search(judge, place, correction):
    bout, bounds = place.bout, place.bounds
    values, error = place.compared("queries")
    terms, sure = terms_of(place, correction, judge)
    scores, seen = values - sum(terms), place.seen()
    error = bounds.scores(values, terms, error) if terms or error.any() else error
    found = place.top_k(correction)
    indices, given = np.asarray(found.indices), np.asarray(found.scores)
    number = np.minimum(seen.sum(axis=1), bout.k)
    there = np.arange(bout.k) < number[:, None]
    judge.same("places found", indices >= 0, there)
    judge.true("scores of no items", given[~there] == -np.inf)
    judge.true("indices of no items", indices[~there] == -1)
    picked = np.where(there & (indices >= 0), indices, 0)
    judge.true("found are seen", np.take_along_axis(seen, picked, 1)[there])
    hits = np.zeros((*seen.shape,), int)
    np.add.at(hits, (np.nonzero(there)[0], picked[there]), 1)
    judge.true("found once", hits <= 1)
    judge.true("best first", given[:, 1:] <= given[:, :-1])
    checked = there & sure[:, None]

    def at(matrix):
        return np.where(checked, np.take_along_axis(matrix, picked, axis=1), 0)

    judge.near("scores", np.where(checked, given, 0), at(scores), np.maximum(at(error), 0))
    if not terms and not error.any():
        judge.same("indices", indices, oracle.top_k(scores, seen, bout.k))
    else:
        worst = -np.sort(-np.where(seen, scores - error, -np.inf), axis=1)[:, : bout.k]
        judge.true("nearest", (at(scores + error) >= np.where(checked, worst, 0)), place.draw.kind)
        if place.draw.exact and bout.similarity != "cosine_similarity":
            _judge_order_of_copies(judge, copies_of(place, correction), indices, seen)
    judge_ranks(judge, place, correction, scores, error, seen, sure)


def _judge_order_of_copies(judge, copies, indices, seen):
    """Of items that are alike, those found are the first that are seen, in their order."""
    for row, sees in zip(indices[:64], seen[:64], strict=True):
        found, columns = row[row >= 0], np.nonzero(sees)[0]
        places = np.full(len(sees), -1)
        places[columns] = _earlier_alike(copies[columns])
        judge.same("order of copies", _earlier_alike(copies[found]), places[found])


def _earlier_alike(numbers):
    """How many of the same number stand before each."""
    order = np.argsort(numbers, kind="stable")
    earlier = np.empty(len(numbers), int)
    earlier[order] = np.arange(len(numbers)) - np.searchsorted(numbers[order], numbers[order])
    return earlier


def judge_ranks(judge, place, correction, scores, error, seen, sure):
    rows, right = right_of(place)
    eps = place.bounds.eps
    if place.is_matrix:
        matrix = place.matrix("queries")
        given = matrix
        if correction is not None:
            gates = dbn.gates(matrix, correction, **place.masks())
            given = dbn.apply_correction(matrix, correction, gates=gates)
            judge.near("apply_correction", np.asarray(given)[sure], scores[sure], error[sure])
        found = dbn.metrics.ranks(given, rows, **place.masks())
        scores = place.exactly(np.asarray(given))
        tiny = place.bounds.tiny
        error = np.full(scores.shape, tiny * ((scores != 0) & (np.abs(scores) < tiny)).any())
        correction, sure = None, True  # what is judged are the ranks of these scores
    else:
        found = place.ranks(rows, correction)
    found = np.asarray(found).astype(np.float64)
    if correction is None and not error.any():
        expected = oracle.ranks(scores, right, seen)
        judge.near("ranks", found, expected, 2 * eps * np.where(expected < np.inf, expected, 1))
        return
    low, high = oracle.rank_limits(scores, error, right, seen, copies_of(place, correction))
    low, high = (one.astype(np.float64) for one in (low * (1 - 2 * eps), high * (1 + 2 * eps)))
    judge.between("ranks", np.where(sure, found, low), low, high)


def judge_vectors(judge, place, correction):
    """`[q, gate] . [g, -bias]` is the score, up to one number per query where it is said so."""
    bout, bounds, draw = place.bout, place.bounds, place.draw
    values, error = place.compared("queries")
    bias = np.asarray(correction.bias).astype(bout.wide)
    nearest = np.where(place.seen(), values, -np.inf).argmax(axis=1).astype(np.int32)
    gates = dbn.gates_from_top_1(nearest, correction)
    opened = np.ones((bout.queries, len(bias)), bool)
    if correction.active is not None:
        opened = np.asarray(correction.active)[:, nearest].T
    judge.same("gates_from_top_1", gates, opened)
    terms = [opened[:, term, None] * bias[term] for term in range(len(bias))]
    sizes = np.abs(bias).max() * len(bias)
    rows, gallery = (place.exactly(one) for one in (draw.queries, draw.gallery))
    off = bounds.similarities(bout.similarity, rows, gallery)
    off = off + bounds.scores(values, terms, error) + 4 * bounds.eps * sizes
    off = off + bounds.eps * bout.gallery**0.5 * sizes  # of the mean
    constant = 0.0
    if bout.similarity == "negative_squared_euclidean":
        constant = (rows**2).sum(axis=1, keepdims=True)
        off = off + 8 * bounds.eps * (constant + (gallery**2).sum(axis=1)[None])
        off = off + bounds.eps * bout.gallery**0.5 * (gallery**2).sum(axis=1).max()
    expected = values - sum(terms) + constant
    cosine = 1e-15 < np.abs(np.concatenate([gallery, bias.T], axis=1)).max() < 1e15
    for center, metric in (
        (False, "inner_product"),
        (True, "cosine" if cosine else "inner_product"),
    ):
        options = {"similarity_fn": place.similarity_fn, "metric": metric}
        indexed = dbn.inner_product_gallery(draw.gallery, correction, center=center, **options)
        asked = dbn.inner_product_queries(draw.queries, gates, **options)
        indexed, asked = (np.asarray(one).astype(bout.wide) for one in (indexed, asked))
        products = asked @ indexed.T - expected
        if center:
            products = products - products[:, :1]
            off = off + off[:, :1]
        judge.near(f"products center={center:d}", products, np.zeros_like(products), off)
        if metric == "cosine":
            lengths = np.sqrt((indexed**2).sum(axis=1))
            few = 4 + indexed.shape[1] ** 0.5
            judge.near(
                "lengths",
                lengths,
                np.full_like(lengths, lengths.max()),
                few * bounds.eps * lengths.max(),
            )


# --- campaigns -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    draws: int = 0
    places: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    used: dict[str, float] = dataclasses.field(default_factory=dict)
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    broken: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # by what is wrong


def campaign(folder, numbers, seed, *, seconds=np.inf, most_broken=3, tell=lambda line: None):
    """Executes draws of these numbers; of each kind of discrepancy the first few are told."""
    outcome, bout, start = Outcome(), None, time.monotonic()
    for number in numbers:
        if time.monotonic() - start > seconds:
            break
        if bout != (bout := bout_of(seed, number // DRAWS_PER_BOUT)):
            jax.clear_caches()  # a process may map only so many programs
        with jax.enable_x64(bout.x64):
            draw, judge = draw_of(bout, seed, number), Judge()
            try:
                execute(judge, bout, draw, folder)
            except Exception as error:
                judge.found.append((f"raises {type(error).__name__}", str(error)))
        outcome.draws += 1
        outcome.places[bout.place] += 1
        for what, share in judge.used.items():
            outcome.used[what] = max(outcome.used.get(what, 0), share)
        for what, said in judge.found:
            outcome.counts[bout.place, what] += 1
            if outcome.counts[bout.place, what] <= most_broken:
                repeat = f"--seed {seed} --first {number} --draws 1"
                line = f"{repeat}: {bout} {draw.kind}: {what}: {said}"
                outcome.broken.setdefault(what, []).append(line)
                tell(line)
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=np.inf)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        outcome = campaign(
            pathlib.Path(name),
            range(options.first, options.first + options.draws),
            options.seed,
            seconds=options.seconds,
            tell=lambda line: print(line, flush=True),
        )
    for what, share in sorted(outcome.used.items()):
        print(f"{what}: at most {share:.2g} of its bound")
    for (place, what), count in outcome.counts.most_common():
        print(f"broken in {count} draws: {place} {what}")
    places = ", ".join(f"{place} {count}" for place, count in sorted(outcome.places.items()))
    print(f"{outcome.draws} draws ({places}), {sum(outcome.counts.values())} outside their bound")
    sys.exit(bool(outcome.broken))


if __name__ == "__main__":
    main()
