"""Banks of pairs with hubs, and their held-out ranks from the definition."""

import numpy as np

from dbnorm_jax._src.corrections.table import TABLE
from dbnorm_jax._src.tuning.choice import methods

SIZE, DIM = 60, 12


def hubby(seed, size=SIZE, gallery=SIZE, noise=1.0):
    """Pairs whose queries lean one way, so that some items are everybody's neighbors."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(size + gallery, DIM)).astype(np.float32)
    queries = items + noise * rng.normal(size=items.shape).astype(np.float32)
    queries += 1.5 * rng.normal(size=DIM).astype(np.float32)
    return queries[:size], items[:size], queries[size:], items[size:]


def reference_ranks(banks, split, right, table):
    """One query at a time, from the definition."""
    columns = np.asarray(split.columns, np.float64)
    query_bank, gallery_bank = (np.asarray(bank, np.float64) for bank in (banks[0], banks[1]))
    to_query, to_gallery = query_bank @ columns.T, gallery_bank @ columns.T
    own = {int(row): i for i, row in enumerate(split.excluded_gallery[:, 0]) if row >= 0}
    found = np.zeros((len(split.held_out), len(table.method)))
    for place, query in enumerate(split.held_out):
        fold = split.fold_query[query]
        right_columns = [c for c in split.right[query] if c >= 0]
        row = to_query[query]
        for index, name in enumerate(methods()[m] for m in table.method):
            scores = row.copy()
            for bank, folds_of, beta, weight, is_query in (
                (to_query, split.fold_query, table.beta_query, table.weight_query, True),
                (to_gallery, split.fold_gallery, table.beta_gallery, table.weight_gallery, False),
            ):
                if not weight[index]:
                    continue
                valid = np.repeat((folds_of != fold)[:, None], len(columns), axis=1)
                for column in range(len(columns)):
                    if is_query:
                        valid[(split.excluded_query == column).any(axis=1), column] = False
                    elif column in own:
                        valid[own[column], column] = False
                bias = np.zeros(len(columns))
                for column in range(len(columns)):
                    values = bank[valid[:, column], column]
                    if is_query and table.k[index]:
                        bias[column] = np.sort(values)[::-1][: table.k[index]].mean()
                    else:
                        b = float(beta[index])
                        top = values.max()
                        bias[column] = top + np.log(np.exp(b * (values - top)).mean()) / b
                if TABLE[name].gated:
                    rows = np.flatnonzero(valid.any(axis=1))
                    active = np.where(valid[rows], bank[rows], -np.inf).argmax(axis=1)
                    if row.argmax() not in active:
                        continue
                scores = scores - weight[index] * bias
            best = scores[right_columns].max()
            wrong = np.delete(scores, right_columns)
            found[place, index] = 1 + (wrong > best).sum() + (wrong == best).sum() / 2
    return found
