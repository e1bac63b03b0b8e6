"""Trains a linear adapter through a hubness-corrected loss; is that better than correcting later?

    python -m examples.adapter

A low-rank adapter `q' = unit(q + q A B)` of the queries is trained on the bank's pairs, once
through raw and once through IS-corrected scores. In every step one half of the pairs asks and the
other half is the bank, drawn anew, so that no query is in its own bank. Post-hoc correction needs
no training: it is the row to beat.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import dbnorm_jax as dbn
from examples.common import load, recall_at_1, skewness, summary

BETA = 20.0
SCALE = 20.0
RANK = 16
STEPS = 60
SPLITS = 3


def adapted(adapter, rows) -> jax.Array:
    """Unit rows, moved by the adapter."""
    moved = rows + (rows @ adapter["in"]) @ adapter["out"]
    return moved / jnp.linalg.norm(moved, axis=1, keepdims=True)


def loss(adapter, queries, gallery, order, *, corrected) -> jax.Array:
    """Cross-entropy of the right items of one half, the other half being the bank."""
    half = len(order) // 2
    rows = adapted(adapter, queries[order])
    asking, bank = rows[:half], rows[half:]
    scores = dbn.dot_product(asking, gallery)
    if corrected:
        statistics = dbn.stream_bank_statistics(bank, gallery, beta=BETA, k=0)
        scores = dbn.apply_correction(scores, dbn.inverted_softmax(statistics))
    right = order[:half]
    return optax.softmax_cross_entropy_with_integer_labels(SCALE * scores, right).mean()


@partial(jax.jit, static_argnames="corrected")
def train(queries, gallery, seed, *, corrected: bool):
    """The adapter; the identity at first."""
    dim = queries.shape[1]
    key = jax.random.key(seed)
    adapter = {
        "in": jax.random.normal(key, (dim, RANK)) / jnp.sqrt(dim),
        "out": jnp.zeros((RANK, dim)),
    }
    optimizer = optax.adamw(2e-3, weight_decay=1e-2)

    def step(state, key):
        adapter, memory = state
        order = jax.random.permutation(key, len(queries))
        gradient = jax.grad(loss)(adapter, queries, gallery, order, corrected=corrected)
        updates, memory = optimizer.update(gradient, memory, adapter)
        return (optax.apply_updates(adapter, updates), memory), None

    state = (adapter, optimizer.init(adapter))
    return jax.lax.scan(step, state, jax.random.split(key, STEPS))[0][0]


def main() -> None:
    """Prints the table."""
    results: dict[str, list[tuple[float, float]]] = {}
    for seed in range(SPLITS):
        test = load(seed)
        bank, gallery = jnp.asarray(test.query_bank), jnp.asarray(test.gallery)
        pairs = (bank, jnp.asarray(test.gallery_bank), seed)
        adapters = {
            "no adapter": None,
            "adapter, raw loss": train(*pairs, corrected=False),
            "adapter, corrected loss": train(*pairs, corrected=True),
        }
        for name, adapter in adapters.items():
            queries, moved = (
                rows if adapter is None else adapted(adapter, rows)
                for rows in (jnp.asarray(test.queries), bank)
            )
            correction = dbn.inverted_softmax(
                dbn.stream_bank_statistics(moved, gallery, beta=BETA, k=0)
            )
            for kind, given in (("raw", None), ("IS", correction)):
                found = (recall_at_1(queries, gallery, given), skewness(queries, gallery, given))
                results.setdefault(f"{name}: {kind}", []).append(found)
    print(f"test, mean over {SPLITS} splits ± standard error{'R@1':>15}{'skewness of N_10':>22}")
    for name, found in results.items():
        recalls, skews = zip(*found, strict=True)
        print(f"  {name:46}{summary(recalls):>15}{summary(skews):>20}")
    best = {
        kind: sum(recall for recall, _ in results[kind]) / SPLITS
        for kind in ("no adapter: IS", "adapter, raw loss: IS", "adapter, corrected loss: IS")
    }
    base = best["no adapter: IS"]
    print(
        f"\nOver post-hoc correction alone: {best['adapter, raw loss: IS'] - base:+.1f} points of "
        f"R@1 by the adapter of the raw loss, {best['adapter, corrected loss: IS'] - base:+.1f} by "
        f"that of the corrected loss."
    )


if __name__ == "__main__":
    main()
