"""A thousand items, the first call, and the import.

    python -m benchmarks.speed.small [--rows 1024] [--dim 512] [--repetitions 15] [--processes 5]

On small problems what counts is the overhead: warm calls beside NumPy, and how much longer the
first call of a process takes, without and with a persistent compilation cache that has seen it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.speed import peers
from benchmarks.support import environment, inputs, report

SIZES = {"rows": 1024, "dim": 512, "repetitions": 15, "processes": 5}
LARGEST_FIRST = 0.3  # s above a steady call
LARGEST_CACHED = 0.1
LARGEST_IMPORT = 0.05
PROGRAMS = ("fit", "search")
BETAS = (20.0, 1.0)


def library_pipeline(queries: Any, gallery: Any, query_bank: Any, gallery_bank: Any) -> Any:
    """DualIS from embeddings to the ten best."""
    import dbnorm_jax as dbn

    statistics = [
        dbn.stream_bank_statistics(bank, gallery, beta=beta, k=0)
        for bank, beta in zip((query_bank, gallery_bank), BETAS, strict=True)
    ]
    return dbn.stream_top_k(queries, gallery, 10, dbn.dual_inverted_softmax(*statistics))


def numpy_pipeline(
    queries: np.ndarray, gallery: np.ndarray, query_bank: np.ndarray, gallery_bank: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same in NumPy, by log-sum-exp and `argpartition`."""
    bias = peers.dual_bias(query_bank, gallery_bank, gallery, BETAS)
    return peers.numpy_top_k(queries, gallery, bias, 10)


def measure_warm(rows: int, dim: int, repetitions: int) -> list[dict[str, Any]]:
    """Steady calls beside NumPy, in this process."""
    import jax.numpy as jnp

    import dbnorm_jax as dbn
    from benchmarks.speed import authors
    from benchmarks.support import common

    arrays = [inputs.unit_rows(seed, rows, dim) for seed in range(4)]
    queries, gallery, bank, _ = arrays
    there = [jnp.asarray(array) for array in arrays]
    bias = peers.dual_bias(bank, arrays[3], gallery, BETAS)
    correction = dbn.Correction(jnp.asarray(bias)[None], None)
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "fit": (
            partial(dbn.stream_bank_statistics, there[2], there[1], beta=BETAS[0], k=0),
            partial(peers.log_normalizer, bank, gallery, BETAS[0]),
        ),
        "search, k=10": (
            partial(dbn.stream_top_k, there[0], there[1], 10, correction),
            partial(peers.numpy_top_k, queries, gallery, bias, 10),
        ),
        "DualIS from embeddings": (
            partial(library_pipeline, *there),
            partial(numpy_pipeline, *arrays),
        ),
        "DualIS, released formulas": (
            partial(library_pipeline, *there),
            partial(authors.released_best, "dualis", *arrays),
        ),
        "DualDIS, released formulas": (
            partial(authors.library_best, "dualdis", *there),
            partial(authors.released_best, "dualdis", *arrays),
        ),
    }
    np.testing.assert_allclose(
        library_pipeline(*there).scores, numpy_pipeline(*arrays)[0], atol=2e-5
    )
    contenders = {}
    for name, (ours, theirs) in pairs.items():
        contenders |= {f"{name}, NumPy": theirs, name: ours}
    timings = common.interleaved(contenders, repetitions)
    return [
        common.ratio(
            name, timings[name], timings[f"{name}, NumPy"], "x NumPy", report.Target(high=1)
        ).as_json()
        for name in pairs
    ]


def measure_first(program: str, rows: int, dim: int) -> dict[str, float]:
    """First call and the median of later ones, in a fresh process; imports are over before."""
    import jax
    import jax.numpy as jnp

    import dbnorm_jax as dbn

    queries, gallery = (jnp.asarray(inputs.unit_rows(seed, rows, dim)) for seed in range(2))
    correction = dbn.Correction(jnp.zeros((2, rows), jnp.float32), None)
    calls = {
        "fit": partial(dbn.stream_bank_statistics, queries, gallery, beta=20.0),
        "search": partial(dbn.stream_top_k, queries, gallery, 10, correction),
    }
    jax.block_until_ready((queries, gallery, correction.bias))

    def seconds() -> float:
        started = time.perf_counter()
        jax.block_until_ready(calls[program]())
        return time.perf_counter() - started

    first = seconds()
    return {"above steady": first - float(np.median([seconds() for _ in range(9)]))}


def measure_import() -> dict[str, float]:
    """Seconds of importing jax, and of all public names of the library after it."""
    started = time.perf_counter()
    import jax  # noqa: F401

    with_jax = time.perf_counter()
    import dbnorm_jax as dbn

    for name in dbn.__all__:
        getattr(dbn, name)
    return {"jax": with_jax - started, "library": time.perf_counter() - with_jax}


def run(rows: int, dim: int, repetitions: int, processes: int) -> list[report.Record]:
    """Warm calls, first calls and imports."""
    core = environment.openblas_core()
    tuned = {"OPENBLAS_CORETYPE": core} if core else {}
    call = partial(environment.child, "benchmarks.speed.small")
    warm = call("--case=warm", rows, dim, repetitions, variables=tuned)
    figures = []
    for fields in warm["figures"]:
        known = {name: value for name, value in fields.items() if name not in ("target", "met")}
        figures.append(report.Figure(**known, target=report.Target(high=1)))
    for program in PROGRAMS:
        with tempfile.TemporaryDirectory() as folder:
            cached = {
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            }
            call(f"--case={program}", rows, dim, variables=cached)  # fills the cache
            for name, variables, largest in (
                ("cold", {"JAX_COMPILATION_CACHE_DIR": None}, LARGEST_FIRST),
                ("cached", cached, LARGEST_CACHED),
            ):
                found = [
                    call(f"--case={program}", rows, dim, variables=variables)["above steady"]
                    for _ in range(processes)
                ]
                figures.append(
                    _median(f"{program}, first call, {name}", found, report.Target(high=largest))
                )
    with tempfile.TemporaryDirectory() as folder:
        # As installed: compiled to bytecode before.
        compiled = {"PYTHONDONTWRITEBYTECODE": None, "PYTHONPYCACHEPREFIX": folder}
        call("--case=import", variables=compiled)
        imports = [call("--case=import", variables=compiled) for _ in range(processes)]
    figures += [
        _median("import jax", [each["jax"] for each in imports], None),
        _median(
            "import of the library after jax",
            [each["library"] for each in imports],
            report.Target(high=LARGEST_IMPORT),
        ),
    ]
    sizes = {"rows": rows, "dim": dim, "repetitions": repetitions, "processes": processes}
    notes = (
        "first call: seconds above a steady one; cached: a persistent compilation cache",
        "import: with every public name resolved",
        *warm["kernels"],
    )
    title = f"small: {rows} x {rows} x dim {dim}"
    return [report.Record("small", title, sizes, figures, notes)]


def _median(name: str, values: list[float], target: report.Target | None) -> report.Figure:

    low, median, high = np.percentile(values, [25, 50, 75])
    return report.Figure(name, float(median), "s", target, low=float(low), high=float(high))


def main() -> None:
    """The table, or one process's part of it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--case", choices=("warm", "import", *PROGRAMS))
    options, numbers = parser.parse_known_args()
    if options.case is None:
        report.command(__doc__, run, SIZES)
        return
    sizes = list(map(int, numbers))
    if options.case == "warm":
        print(json.dumps({"figures": measure_warm(*sizes), "kernels": environment.kernels()}))
    elif options.case == "import":
        print(json.dumps(measure_import()))
    else:
        print(json.dumps(measure_first(options.case, *sizes)))


if __name__ == "__main__":
    main()
