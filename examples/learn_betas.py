"""Learns both betas and both weights of DualIS end to end, by gradient descent.

    python -m examples.learn_betas

One half of the bank's pairs plays the test and the other half is the bank, both ways round; the
loss is the cross-entropy of the right item under the corrected scores. The test is looked at once,
at the end. Everything is differentiated: statistics, bias, scores.
"""

import jax
import jax.numpy as jnp
import optax

import dbnorm_jax as dbn
from examples.common import halves, load, recall_at_1, summary

STEPS = 150
SPLITS = 3
START = {
    "log_betas": jnp.log(jnp.array([20.0, 2.0])),
    "weights": jnp.array([0.9, 0.1]),
    "log_scale": jnp.log(jnp.float32(20)),
}


def fit(parameters, gallery, query_bank, gallery_bank) -> dbn.Correction:
    """DualIS of the parameters."""
    betas = jnp.exp(parameters["log_betas"])
    statistics = [
        dbn.stream_bank_statistics(bank, gallery, beta=beta, k=0)
        for bank, beta in ((query_bank, betas[0]), (gallery_bank, betas[1]))
    ]
    weights = parameters["weights"]
    return dbn.dual_inverted_softmax(*statistics, weights=(weights[0], weights[1]))


def loss(parameters, parts) -> jax.Array:
    """Cross-entropy of the right items, in nats, over both ways round."""
    losses = []
    for (queries, gallery), (query_bank, gallery_bank) in (parts, parts[::-1]):
        correction = fit(parameters, gallery, query_bank, gallery_bank)
        scores = dbn.apply_correction(dbn.dot_product(queries, gallery), correction)
        right = jnp.arange(len(queries))
        logits = jnp.exp(parameters["log_scale"]) * scores
        losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, right).mean())
    return sum(losses) / len(losses)


@jax.jit
def train(parts):
    """The learned parameters, and the loss before and after."""
    optimizer = optax.adam(0.05)

    def step(state, _):
        parameters, memory = state
        value, gradient = jax.value_and_grad(loss)(parameters, parts)
        updates, memory = optimizer.update(gradient, memory)
        return (optax.apply_updates(parameters, updates), memory), value

    (parameters, _), values = jax.lax.scan(step, (START, optimizer.init(START)), length=STEPS)
    return parameters, values


def main() -> None:
    """Prints what was learned and what it gives."""
    rows = {"raw": [], "DualIS, betas 20 and 2": [], "DualIS, learned": []}
    for seed in range(SPLITS):
        test = load(seed)
        parts = tuple(
            (jnp.asarray(test.query_bank[half]), jnp.asarray(test.gallery_bank[half]))
            for half in halves(len(test.query_bank), seed)
        )
        parameters, values = train(parts)
        banks = (test.gallery, test.query_bank, test.gallery_bank)
        betas = jnp.exp(parameters["log_betas"]).round(1)
        weights = parameters["weights"].round(2)
        print(
            f"split {seed}: loss {values[0]:.3f} -> {values[-1]:.3f} nats, "
            f"betas {betas[0]:.1f} and {betas[1]:.1f}, weights {weights[0]:.2f} and "
            f"{weights[1]:.2f}"
        )
        for name, correction in zip(
            rows, (None, fit(START, *banks), fit(parameters, *banks)), strict=True
        ):
            rows[name].append(recall_at_1(test.queries, test.gallery, correction))
    print(f"\nR@1 on the test, mean over {SPLITS} splits ± standard error")
    for name, recalls in rows.items():
        print(f"  {name:24}{summary(recalls)}")


if __name__ == "__main__":
    main()
