"""Banks of pairs with hubs, a small set of them, and held-out scores from the definition."""

import numpy as np

from dbnorm_jax._cli.reading.sets import EvaluationSet, rows_relevant

SIZE, DIM = 60, 12


def hubby(seed, size=SIZE, gallery=SIZE, noise=1.0):
    """Pairs whose queries lean one way, so that some items are everybody's neighbors."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(size + gallery, DIM)).astype(np.float32)
    queries = items + noise * rng.normal(size=items.shape).astype(np.float32)
    queries += 1.5 * rng.normal(size=DIM).astype(np.float32)
    return queries[:size], items[:size], queries[size:], items[size:]


def small_set():
    """30 queries for 30 items, and banks of 40 pairs in another order; unit rows."""
    random = np.random.default_rng(0)
    common = random.normal(size=6)

    def pair(count):
        rows = random.normal(size=(count, 6)) + common
        views = (rows, rows + 0.5 * random.normal(size=rows.shape))
        return [view / np.linalg.norm(view, axis=1, keepdims=True) for view in views]

    (gallery, queries), (gallery_bank, query_bank) = pair(30), pair(40)
    turned = np.random.default_rng(1).permutation(40)
    rows = (queries, gallery, query_bank, gallery_bank[np.argsort(turned)])
    rows = [one.astype(np.float32) for one in rows]
    return EvaluationSet("test", *rows, rows_relevant(30), turned)


def reference_biases(banks, split, table, fold):
    """[num_candidates, columns] of what is left without a fold, from the definitions."""
    columns = np.asarray(split.columns, np.float64)
    query_bank, gallery_bank = (np.asarray(bank, np.float64) for bank in banks[:2])
    kept, kept_items = split.fold_query != fold, split.fold_gallery != fold
    similarities = query_bank[kept] @ columns.T
    valid = np.ones(similarities.shape, bool)
    for row, places in enumerate(split.excluded_query[kept]):
        valid[row, places[places >= 0]] = False
    found = np.zeros((len(table.method), len(columns)))
    for index in range(len(found)):
        name, given = table.row(index)
        weight = given.get("weight_query", 1)
        if name in ("sn", "dbsn"):
            to_items = similarities, query_bank[kept] @ gallery_bank[kept_items].T
            size = 2 if name == "dbsn" else 1
            matrix = np.concatenate(to_items[:size], axis=1)
            entered = np.concatenate([valid, np.ones(to_items[1].shape, bool)][:size], axis=1)
            bias = reference_sinkhorn(matrix, entered, given["temperature"])[: len(columns)]
            found[index] = weight * bias
            continue
        for column in range(len(columns)) if name != "raw" else ():
            values = similarities[valid[:, column], column]
            if name == "nnn":
                found[index, column] = weight * np.sort(values)[::-1][: given["k"]].mean()
            else:
                beta, top = given["beta_query"], values.max()
                mean = np.exp(beta * (values - top)).mean()
                found[index, column] = weight * (top + np.log(mean) / beta)
    return found


def reference_sinkhorn(similarities, entered, temperature, iterations=10):
    """Row sums over all that enters, columns held to their means: `exp(s / T)` of uniform sides."""
    kernel = np.where(entered, np.exp(similarities / temperature), 0)
    items = np.ones(kernel.shape[1])
    for _ in range(iterations):
        rows = 1 / (kernel @ items)
        items = entered.sum(axis=0) / (rows @ kernel)
    return -temperature * np.log(items)


def reference_scores(banks, split, table, sharpness):
    """Ranks and log-likelihoods of the held-out queries, [num_held_out, num_candidates] each."""
    query_bank, columns = (np.asarray(rows, np.float64) for rows in (banks[0], split.columns))
    biases = [reference_biases(banks, split, table, fold) for fold in range(split.num_folds)]
    found = np.zeros((2, len(split.held_out), len(table.method)))
    for place, query in enumerate(split.held_out):
        right = np.unique([column for column in split.right[query] if column >= 0])
        for index, bias in enumerate(biases[split.fold_query[query]]):
            scores = query_bank[query] @ columns.T - bias
            best, wrong = scores[right].max(), np.delete(scores, right)
            rank = 1 + (wrong > best).sum() + (wrong == best).sum() / 2
            exponents = sharpness * (scores - scores.max())
            likelihood = np.log(np.exp(exponents[right]).sum() / np.exp(exponents).sum())
            found[:, place, index] = rank, likelihood
    return found
