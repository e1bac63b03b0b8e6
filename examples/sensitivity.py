"""Sensitivity maps: which dimensions of the embedding make hubs.

    python -m examples.sensitivity

`d bias(g) / d g` is the mean bank vector under the responsibilities of g. Times g, it splits the
item's mean similarity to the bank, under the responsibilities, among the dimensions; what the
greatest hubs have in excess of the average item is the map. It says where the bias comes from, not
what would cure it; so it is checked by taking the dimensions away that it names, and the last line
says what that did. In these embeddings the excess is spread over many dimensions.
"""

from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from examples.common import load, recall_at_1, skewness

BETA = 20.0
NUM_HUBS = 20
NUM_DIMENSIONS = 32


def sensitivity(bank, gallery) -> jax.Array:
    """[num_gallery, dim] `g * d bias(g) / d g`."""

    def total(gallery):
        return dbn.stream_bank_statistics(bank, gallery, beta=BETA, k=0).bias.sum()

    return gallery * jax.grad(total)(gallery)  # each bias reads its own row only


def grams_of(dimension: int, names) -> str:
    """The most frequent parts of names that fall into a dimension (a bucket of hashed n-grams)."""
    counts: dict[str, int] = {}
    for name in names:
        padded = f" {name} "
        grams = {padded[i : i + n] for n in (2, 3, 4) for i in range(len(padded) - n + 1)}
        for gram in grams:
            if crc32(gram.encode()) % 1024 == dimension:
                counts[gram] = counts.get(gram, 0) + 1
    return ", ".join(f"'{gram}'" for gram in sorted(counts, key=counts.get, reverse=True)[:3])


def without(rows, dimensions):
    """Unit rows without some dimensions."""
    kept = np.array(rows)
    kept[:, dimensions] = 0
    return jnp.asarray(kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12))


def main() -> None:
    """Prints the map and its check."""
    test = load()
    queries, gallery, bank = (
        jnp.asarray(rows) for rows in (test.queries, test.gallery, test.query_bank)
    )
    # Hubs as the bank sees them: the test queries are not looked at.
    counts = np.asarray(dbn.stream_bank_statistics(bank, gallery, beta=BETA, k=10).k_occurrence)
    hubs = np.argsort(-counts)[:NUM_HUBS]
    shares = np.asarray(sensitivity(bank, gallery))
    excess = shares[hubs].mean(axis=0) - shares.mean(axis=0)
    order = np.argsort(-excess)
    print(
        f"The {NUM_HUBS} greatest hubs, by the bank: {counts[hubs].mean():.0f} of {len(bank)} bank"
    )
    print(f"items have one in their top 10, against {counts.mean():.0f} for the average item.")
    print("\ndimension   share of the excess   parts of names")
    for dimension in order[:8]:
        share = 100 * excess[dimension] / excess.sum()
        print(f"{dimension:9}   {share:18.1f}%   {grams_of(dimension, test.gallery_labels)}")

    named = order[:NUM_DIMENSIONS]
    energy = np.asarray(jnp.square(gallery).mean(axis=0))
    others = np.argsort(-energy)
    others = others[~np.isin(others, named)][:NUM_DIMENSIONS]
    print(
        f"\nwithout {NUM_DIMENSIONS} dimensions of 1024   squares taken   skewness of N_10     R@1"
    )
    skews = {}
    for name, dimensions in (
        ("none taken", order[:0]),
        ("those of the map", named),
        ("largest others", others),
    ):
        left = [without(rows, dimensions) for rows in (queries, gallery)]
        skews[name] = skewness(*left)
        print(
            f"  {name:29}{100 * energy[dimensions].sum() / energy.sum():13.1f}%"
            f"{skews[name]:19.2f}{recall_at_1(*left):8.1f}"
        )
    change = skews["those of the map"] - skews["none taken"]
    verdict = "lowers" if change < -0.1 else "raises" if change > 0.1 else "does not change"
    print(f"\nTaking them away {verdict} the skewness ({change:+.2f}).")


if __name__ == "__main__":
    main()
