"""What the loops of flax and equinox share: pairs on a mesh, and a loss through soft gates.

The loss is the cross-entropy of the right items under DIS. Its activation set and its gates are
soft, so that gradients reach the bank through them, and it is the mean over several betas, which
`vmap` takes at once: what is learned then hangs on no single one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dbnorm_jax as dbn
from examples.common import halves, load, recall_at_1

BETAS = jnp.array([5.0, 10.0, 20.0, 40.0])
TEMPERATURE = 0.02
SCALE = 20.0
STEPS = 40
LEARNING_RATE = 3e-3


def loss(queries, gallery, bank) -> jax.Array:
    """Cross-entropy in nats, mean over `BETAS`: query i asks for item i."""
    similarities, banked = dbn.dot_product(queries, gallery), dbn.dot_product(bank, gallery)
    active = dbn.soft_activation(banked, temperature=TEMPERATURE)[None]

    def at(beta):
        hard = dbn.inverted_softmax(dbn.bank_statistics(banked, beta=beta, k=0))
        correction = dataclasses.replace(hard, active=active)
        gates = dbn.soft_gates(similarities, correction, temperature=TEMPERATURE)
        scores = dbn.apply_correction(similarities, correction, gates=gates)
        right = jnp.arange(len(queries))
        return optax.softmax_cross_entropy_with_integer_labels(SCALE * scores, right).mean()

    return jax.vmap(at)(BETAS).mean()


def pairs(seed: int = 0) -> tuple[jax.Array, ...]:
    """Queries and gallery of one half of the bank's pairs, and a bank of the other half's queries.

    Their rows lie on all devices, a part on each: the loops need no further word about the mesh.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    test = load(seed)
    ask, stand = halves(len(test.query_bank), seed)
    found = (test.query_bank[ask], test.gallery_bank[ask], test.query_bank[stand])
    parts = []
    for part in found:
        even = len(part) - len(part) % jax.device_count()
        parts.append(jax.device_put(np.asarray(part[:even]), rows))
    return tuple(parts)


def unit(rows) -> jax.Array:
    """Rows of length 1."""
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def report(values, adapt, seed: int = 0) -> None:
    """Prints the losses, and R@1 of a test that no step has seen; `adapt`: what was learned."""
    test = load(seed)
    devices = f"{jax.device_count()} device{'s' * (jax.device_count() > 1)}"
    print(f"loss {values[0]:.4f} -> {values[-1]:.4f} nats in {len(values)} steps on {devices}")
    for name, change in (("as they are", lambda rows: rows), ("adapted", adapt)):
        queries, bank = (change(jnp.asarray(part)) for part in (test.queries, test.query_bank))
        statistics = dbn.stream_bank_statistics(bank, test.gallery, beta=20.0, k=1)
        correction = dbn.dynamic_inverted_softmax(statistics)
        raw, corrected = (recall_at_1(queries, test.gallery, one) for one in (None, correction))
        print(f"R@1, queries {name:12}raw {raw:.1f}, DIS(20) {corrected:.1f}")
