"""One process of several: fits, searches and differentiates over all their devices.

    python tests/support/distributed_worker.py RANK NUM_PROCESSES PORT [WORK]

WORK is one of

    check     (default) results equal those of this process's devices alone; prints "equal"
    errors    bad input raises on every process alike; prints the messages
    lose      rank 1 leaves without a word in the middle; rank 0 must end with an error
"""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import NamedSharding

import dbnorm_jax as dbn

SIZES = (12, 21, 10)  # bank rows, gallery items, queries: some divide by 4, some do not
HEARTBEAT = 10  # seconds, the shortest that JAX takes without complaint


def embeddings():
    random = np.random.default_rng(0)
    return [random.normal(size=(size, 4)).astype(np.float32) / 2 for size in SIZES]


def local_part(array, num_processes, rank):
    """The rows of this process."""
    size = len(array) // num_processes
    return array[rank * size : (rank + 1) * size]


def loss(fit, search, bank, gallery, queries):
    correction = dbn.dynamic_inverted_softmax(fit(bank, gallery, beta=3.0))
    return (search(queries, gallery, 3, correction).scores ** 2).sum()


def check(mesh, num_processes, rank):
    """Fit, search, ranks and gradient over all processes against this one alone."""
    from jax.experimental import multihost_utils

    bank, gallery, queries = embeddings()
    # Only the rows of this process ever enter it.
    split = NamedSharding(mesh, jax.P("bank"))
    rows = jax.make_array_from_process_local_data(split, local_part(bank, num_processes, rank))
    statistics = dbn.stream_bank_statistics(rows, gallery, beta=3.0, mesh=mesh)
    expected = dbn.stream_bank_statistics(bank, gallery, beta=3.0)
    whole = multihost_utils.process_allgather(statistics, tiled=True)
    np.testing.assert_allclose(whole.log_normalizer, expected.log_normalizer, atol=4e-6)
    np.testing.assert_array_equal(whole.k_occurrence, expected.k_occurrence)

    correction = dbn.dynamic_inverted_softmax(statistics)
    result = dbn.stream_top_k(queries, gallery, 3, correction, mesh=mesh)
    alone = dbn.stream_top_k(queries, gallery, 3, dbn.dynamic_inverted_softmax(expected))
    result = multihost_utils.process_allgather(result, tiled=True)
    np.testing.assert_array_equal(result.indices, alone.indices)
    np.testing.assert_allclose(result.scores, alone.scores, atol=4e-6)

    relevant = np.arange(len(queries), dtype=np.int32)
    ranks = dbn.metrics.stream_ranks(queries, gallery, relevant, correction, mesh=mesh)
    np.testing.assert_array_equal(
        multihost_utils.process_allgather(ranks, tiled=True),
        dbn.metrics.stream_ranks(
            queries, gallery, relevant, dbn.dynamic_inverted_softmax(expected)
        ),
    )

    def over_mesh(bank, gallery, queries):
        options = {"mesh": mesh}
        return loss(
            lambda *rows, beta: dbn.stream_bank_statistics(*rows, beta=beta, **options),
            lambda *rows: dbn.stream_top_k(*rows, **options),
            bank,
            gallery,
            queries,
        )

    def on_one(bank, gallery, queries):
        return loss(dbn.stream_bank_statistics, dbn.stream_top_k, bank, gallery, queries)

    slopes = jax.jit(jax.grad(over_mesh, argnums=(0, 1)))(rows, gallery, queries)
    for slope, by_itself in zip(
        slopes, jax.jit(jax.grad(on_one, argnums=(0, 1)))(bank, gallery, queries), strict=True
    ):
        found = multihost_utils.process_allgather(slope, tiled=True)
        np.testing.assert_allclose(found, by_itself, atol=2e-5)
    print("equal", flush=True)


def errors(mesh, num_processes, rank):
    """Only one process has the bad row; all of them raise."""
    bank, gallery, _ = embeddings()
    bad = bank.copy()
    bad[-1] = np.nan  # of the last process
    split = NamedSharding(mesh, jax.P("bank"))
    rows, zeros = (
        jax.make_array_from_process_local_data(split, local_part(array, num_processes, rank))
        for array in (bad, bank * (np.arange(len(bank)) < 9)[:, None].astype(np.float32))
    )
    for call in (
        lambda: dbn.stream_bank_statistics(rows, gallery, beta=3.0, mesh=mesh),
        lambda: dbn.stream_bank_statistics(
            zeros, gallery, beta=3.0, mesh=mesh, similarity_fn=dbn.cosine_similarity
        ),
    ):
        try:
            call()
        except ValueError as error:
            print(f"error: {error}", flush=True)


def lose(mesh, num_processes, rank):
    """The survivor's next collective fails, or the runtime ends its process: it never hangs."""
    bank, gallery, _ = embeddings()
    fit = dbn.stream_bank_statistics
    jax.block_until_ready(fit(bank, gallery, beta=3.0, mesh=mesh).bias)
    print("ready", flush=True)
    if rank == 1:
        os._exit(9)
    while True:
        jax.block_until_ready(fit(bank, gallery, beta=3.0, mesh=mesh).bias)


def main(rank, num_processes, port, work="check"):
    rank, num_processes = int(rank), int(num_processes)
    jax.distributed.initialize(
        coordinator_address=f"127.0.0.1:{port}",
        num_processes=num_processes,
        process_id=rank,
        initialization_timeout=60,
        heartbeat_timeout_seconds=HEARTBEAT,
    )
    mesh = jax.make_mesh((num_processes, 2), ("bank", "gallery"))
    {"check": check, "errors": errors, "lose": lose}[work](mesh, num_processes, rank)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
