"""The same work on one device, over forced host devices, and over two processes.

    python -m benchmarks.speed.mesh [--bank 4096] [--queries 4096] [--gallery 16384] [--dim 512]

All run on the same cores, so that a ratio of 1 means that splitting and merging cost nothing. Two
processes have one core each and exchange over loopback.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding

import dbnorm_jax as dbn
from benchmarks.support import environment, inputs, report
from benchmarks.support.common import Timing, interleaved, ratio
from benchmarks.support.report import Figure, Record, Target

SIZES = {"bank": 4096, "queries": 4096, "gallery": 16384, "dim": 512, "repetitions": 7}
MESHES = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 8), (8, 1), (2, 4))
MOST_DEVICES = 8
LARGEST = Target(high=1.05)
ONE = "one device"


def works(mesh: Any, arrays: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """Fit and search over a mesh, or on one device where there is none."""
    bank, queries, gallery = arrays
    bias = np.linspace(0, 0.1, len(gallery), dtype=np.float32)[None]
    if mesh is None:
        fit, search = dbn.stream_bank_statistics, dbn.stream_top_k
        places: list[Any] = [jax.devices()[0]] * 4
    else:
        fit = partial(dbn.stream_bank_statistics, mesh=mesh)
        search = partial(dbn.stream_top_k, mesh=mesh)
        specs = jax.P("bank"), jax.P("bank"), jax.P("gallery"), jax.P(None, "gallery")
        places = [NamedSharding(mesh, spec) for spec in specs]
    bank, queries, gallery, bias = (
        jax.device_put(array, place)
        for array, place in zip((bank, queries, gallery, bias), places, strict=True)
    )
    correction = dbn.Correction(bias, None)
    return {
        "fit, k=1": lambda: fit(bank, gallery, beta=20.0),
        "DualIS, k=10": lambda: search(queries, gallery, 10, correction),
    }


def make_arrays(bank: int, queries: int, gallery: int, dim: int) -> list[np.ndarray]:
    """Bank, queries and gallery."""
    return [inputs.unit_rows(seed, size, dim) for seed, size in enumerate((bank, queries, gallery))]


def check_equal(one: Any, many: Any) -> None:
    """Before anything is timed."""
    if isinstance(one, dbn.BankStatistics):
        np.testing.assert_allclose(many.log_normalizer, one.log_normalizer, atol=4e-6)
        np.testing.assert_array_equal(many.k_occurrence, one.k_occurrence)
    else:
        np.testing.assert_allclose(many.scores, one.scores, atol=1e-6)


def run(
    bank: int, queries: int, gallery: int, dim: int, repetitions: int, processes: bool = True
) -> list[Record]:
    """Ratios to one device, and to the same of two processes."""
    if len(jax.devices()) < MOST_DEVICES:
        raise RuntimeError(f"needs {MOST_DEVICES} devices: run `python -m benchmarks.speed.mesh`")
    arrays = make_arrays(bank, queries, gallery, dim)
    kind = (AxisType.Auto,) * 2
    meshes = {
        f"{rows} x {columns} devices": jax.make_mesh(
            (rows, columns), ("bank", "gallery"), axis_types=kind
        )
        for rows, columns in MESHES
    }
    contenders = {name: works(mesh, arrays) for name, mesh in {ONE: None, **meshes}.items()}
    figures = []
    for work in contenders[ONE]:
        calls = {name: calls[work] for name, calls in contenders.items()}
        for name in meshes:
            check_equal(calls[ONE](), calls[name]())
        timings = interleaved(calls, repetitions)
        flops = 2 * (bank if work.startswith("fit") else queries) * gallery * dim
        for name in meshes:
            timing, base = timings[name], timings[ONE]
            figures += [
                ratio(f"{work}, {name}", timing, base, f"x {ONE}", LARGEST, flops),
                Figure("  its processor time", processor(timing) / processor(base), f"x {ONE}"),
            ]
        if processes:
            sizes = (bank, queries, gallery, dim, repetitions)
            figures.append(two_processes(work, sizes, timings[ONE]))
    options = {"bank": bank, "queries": queries, "gallery": gallery, "dim": dim}
    title = f"mesh: bank {bank}, queries {queries}, gallery {gallery} x dim {dim}"
    return [Record("mesh", title, {**options, "repetitions": repetitions}, figures)]


def processor(timing: Timing) -> float:
    """Seconds of all cores together: what others on the machine disturb least."""
    return timing.cores * float(timing.seconds.sum())


# --- two processes -------------------------------------------------------------------------------


def two_processes(work: str, sizes: tuple[int, ...], base: Timing) -> Figure:
    """Shortest time of both together against the shortest of one process with all cores."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    variables = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "benchmarks.speed.mesh", "--port", str(port)]
    running = [
        subprocess.Popen(
            [*command, "--rank", str(rank), "--work", work, "--sizes", *map(str, sizes)],
            cwd=environment.ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    shortest = min(json.loads(outputs[0].splitlines()[-1])["seconds"])
    return Figure(
        f"{work}, 2 processes",
        shortest / float(base.seconds.min()),
        f"x {ONE}, of minima",
        seconds=shortest,
    )


def one_process(rank: int, port: int, work: str, sizes: list[int]) -> None:
    """Its part of the work on its own core; prints the seconds of each repetition."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    *shape, repetitions = sizes
    mesh = jax.make_mesh((1, 2), ("bank", "gallery"), axis_types=(AxisType.Auto,) * 2)
    call = works(mesh, make_arrays(*shape))[work]
    print(json.dumps({"seconds": interleaved({work: call}, repetitions)[work].seconds.tolist()}))
    jax.distributed.shutdown()


def main() -> None:
    """The table, or one process's part of it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--work")
    parser.add_argument("--sizes", type=int, nargs="+")
    options, _ = parser.parse_known_args()
    if options.rank is not None:
        one_process(options.rank, options.port, options.work, options.sizes)
        return
    # Read when the backend starts, at the first array.
    flag = f"--xla_force_host_platform_device_count={MOST_DEVICES}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    report.command(__doc__, run, SIZES)


if __name__ == "__main__":
    main()
