"""The released DBNorm formulas, re-typed in NumPy as that code computes them.

Called the right way round and on copies, which the released code does not do: it reads one bank
where the test similarities belong and overwrites its caller's matrix. Everything else stays: exp
without a shift, whole temporaries of bank x gallery, a full sort where the largest k are wanted,
and a Python `in` per query. All matrices have the gallery as columns.
"""

import numpy as np


def inverted_softmax(bank: np.ndarray, test: np.ndarray, beta: float) -> np.ndarray:
    """IS: exp(beta s) over the bank's sum of them."""
    bank, test = np.exp(bank * beta), np.exp(test * beta)
    return np.divide(test, np.sum(bank, axis=0))


def retrieved_items(bank: np.ndarray, k: int) -> np.ndarray:
    """The activation set: items among the k nearest of any bank item."""
    order = np.argsort(-bank, axis=1)
    return np.unique(order[:, :k].reshape(-1))


def rows_to_normalize(test: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Rows whose nearest item is among the items."""
    nearest = np.argsort(-test, axis=1)[:, 0]
    return np.nonzero(np.array([item in items for item in nearest]))[0]


def dynamic_inverted_softmax(bank: np.ndarray, test: np.ndarray, beta: float, k: int) -> np.ndarray:
    """DIS: IS on rows whose nearest item is in the activation set; others stay as they are."""
    items = retrieved_items(bank, k)
    result = test.copy()
    bank, test = np.exp(bank * beta), np.exp(test * beta)
    normalizer = np.sum(bank, axis=0)
    rows = rows_to_normalize(test, items)
    result[rows, :] = np.divide(test[rows, :], normalizer)
    return result


def dual_inverted_softmax(
    query_bank: np.ndarray, gallery_bank: np.ndarray, test: np.ndarray, betas: tuple[float, float]
) -> np.ndarray:
    """DualIS: the product of one factor per bank."""
    return inverted_softmax(query_bank, test, betas[0]) * inverted_softmax(
        gallery_bank, test, betas[1]
    )


def dual_dynamic_inverted_softmax(
    query_bank: np.ndarray,
    gallery_bank: np.ndarray,
    test: np.ndarray,
    betas: tuple[float, float],
    k: int,
) -> np.ndarray:
    """DualDIS: the product of one factor per bank."""
    return dynamic_inverted_softmax(query_bank, test, betas[0], k) * dynamic_inverted_softmax(
        gallery_bank, test, betas[1], k
    )
