"""Planted hubs: one gallery item made to be retrieved for everything, under every correction.

    python -m benchmarks.planted [--set DIR/data.npz ...] [--steps 100] [--seeds 3]

The attacker sets one unit vector freely, which is stronger than any image or text could, and knows
one half of the test queries; the other half, which is asked, and the banks are never shown to the
attack on raw scores. The *raw* attack ascends the raw scores, the *aware* attack the corrected
ones, by their gradient through statistics, bias and soft gates, and so sees the banks as well. Both
start from the mean of the known queries and from a gallery item, the aware one from what the raw
one found too, and keep what does best on the known queries.

Printed: the share of the held-out queries with the planted item among their first 1 and first 10,
mean over seeds (which half is known).
"""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.common import machine
from dbnorm_jax import baselines
from dbnorm_jax._cli.emoji_names import emoji_names
from dbnorm_jax._cli.files import read_set
from dbnorm_jax._cli.sets import EvaluationSet

TEMPERATURE = 0.02
SHARPNESS = 20.0
RATE = 0.05

# (query bank, gallery bank) against the gallery, and against each other -> Correction.
Fit = Callable[[jax.Array, jax.Array, jax.Array], dbn.Correction | None]


def _dual(fit, beta_query, beta_gallery, weights=None) -> Fit:
    return lambda query, gallery, _: fit(
        dbn.bank_statistics(query, beta=beta_query),
        dbn.bank_statistics(gallery, beta=beta_gallery),
        weights=weights,
    )


FITS: dict[str, Fit] = {
    "raw": lambda *_: None,
    "IS 20": lambda query, *_: dbn.inverted_softmax(dbn.bank_statistics(query, beta=20.0)),
    "DIS 20": lambda query, *_: dbn.dynamic_inverted_softmax(dbn.bank_statistics(query, beta=20.0)),
    "DualIS 20/2": _dual(dbn.dual_inverted_softmax, 20.0, 2.0),
    "DualIS 20/20": _dual(dbn.dual_inverted_softmax, 20.0, 20.0),
    "DualIS, weights 1, .1": _dual(dbn.dual_inverted_softmax, 20.0, 20.0, (1.0, 0.1)),
    "DualDIS 20/2": _dual(dbn.dual_dynamic_inverted_softmax, 20.0, 2.0),
    "CSLS 10": lambda query, *_: baselines.csls(dbn.largest_similarities(query, k=10)),
    "NNN 128, .75": lambda query, *_: baselines.nearest_neighbor_normalization(
        dbn.largest_similarities(query, k=128)
    ),
    "SN": lambda query, *_: baselines.sinkhorn_normalization(
        query, temperature=0.05, num_iterations=10
    ),
    "DBSN": lambda query, _, between: baselines.dual_bank_sinkhorn_normalization(
        query, between, temperature=0.05, num_iterations=10
    ),
}


def scores_with(planted, fit: Fit, queries, gallery, banks, *, soft: bool):
    """[num_queries, num_gallery + 1] corrected scores, the planted item last."""
    query_bank, gallery_bank = banks

    def against(rows):
        own = jnp.matmul(rows, planted, precision="highest")
        return jnp.concatenate([dbn.dot_product(rows, gallery), own[:, None]], axis=1)

    similarities, matrices = against(queries), (against(query_bank), against(gallery_bank))
    correction = fit(*matrices, dbn.dot_product(query_bank, gallery_bank))
    if correction is None:
        return similarities
    if correction.active is None or not soft:
        return dbn.apply_correction(similarities, correction)
    active = jnp.stack(
        [
            dbn.soft_activation(matrix, temperature=TEMPERATURE)
            for matrix in matrices[: correction.num_terms]
        ]
    )
    relaxed = dbn.Correction(correction.bias, active)
    gates = dbn.soft_gates(similarities, relaxed, temperature=TEMPERATURE)
    return dbn.apply_correction(similarities, relaxed, gates=gates)


@partial(jax.jit, static_argnames=("fit", "steps"))
def attack(queries, gallery, banks, starts, *, fit: Fit, steps: int):
    """The unit vector that most of the known queries retrieve first."""

    def loss(planted):
        planted = planted / jnp.linalg.norm(planted)
        scores = scores_with(planted, fit, queries, gallery, banks, soft=True)
        lead = scores[:, -1] - scores[:, :-1].max(axis=1)
        return -jax.nn.log_sigmoid(SHARPNESS * lead).mean()

    def ascend(start):
        def step(planted, _):
            gradient = jax.grad(loss)(planted)
            gradient = gradient / jnp.maximum(jnp.linalg.norm(gradient), 1e-12)
            planted = planted - RATE * gradient
            return planted / jnp.linalg.norm(planted), None

        end = jax.lax.scan(step, start, length=steps)[0]
        found = jnp.stack([start, end])
        losses = jnp.stack([loss(start), loss(end)])
        return found[losses.argmin()], losses.min()

    found, losses = jax.lax.map(ascend, starts)
    return found[losses.argmin()]


@partial(jax.jit, static_argnames="fit")
def success(planted, queries, gallery, banks, *, fit: Fit):
    """Shares of the queries with the planted item among their first 1 and 10, in percent."""
    scores = scores_with(planted, fit, queries, gallery, banks, soft=False)
    hit = dbn.top_k(scores, 10).indices == gallery.shape[0]
    return 100 * jnp.stack([hit[:, 0].mean(), hit.any(axis=1).mean()])


def run(test: EvaluationSet, steps: int, seeds: int) -> None:
    """Prints the table of one set."""
    if test.gallery_bank is None:
        raise ValueError(f"{test.name}: a gallery bank of its own is needed")
    queries, gallery, *rest = (
        jnp.asarray(rows)
        for rows in (test.queries, test.gallery, test.query_bank, test.gallery_bank)
    )
    banks = (rest[0], rest[1])
    table: dict[str, list[np.ndarray]] = {name: [] for name in FITS}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(queries))
        known, asked = queries[order[::2]], queries[order[1::2]]
        mean = known.mean(axis=0)
        starts = jnp.stack([mean / jnp.linalg.norm(mean), gallery[seed]])
        plain = attack(known, gallery, banks, starts, fit=FITS["raw"], steps=steps)
        # From the raw attack too: what knows more must not find less.
        starts = jnp.concatenate([starts, plain[None]])
        for name, fit in FITS.items():
            aware = attack(known, gallery, banks, starts, fit=fit, steps=steps)
            both = [success(planted, asked, gallery, banks, fit=fit) for planted in (plain, aware)]
            table[name].append(np.concatenate(both))
    print(f"\n{test.name}: {len(queries) - len(queries) // 2} known queries, {len(gallery)} items")
    print(
        f"{'attack success, %':24}{'raw attack: @1':>16}{'@10':>8}"
        f"{'aware attack: @1':>20}{'@10':>8}"
    )
    for name, found in table.items():
        plain_1, plain_10, aware_1, aware_10 = np.mean(found, axis=0)
        print(f"{name:24}{plain_1:16.1f}{plain_10:8.1f}{aware_1:20.1f}{aware_10:8.1f}", flush=True)


def main() -> None:
    """Reads what to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="FILE", dest="sets")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    run(emoji_names("en", "de"), options.steps, options.seeds)
    for path in options.sets:
        run(read_set(path, "cosine"), options.steps, options.seeds)


if __name__ == "__main__":
    main()
