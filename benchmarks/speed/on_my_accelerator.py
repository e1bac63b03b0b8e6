"""Fit, gradient, search and ranks on your GPU or TPU, in five minutes: a JSON line to send back.

    git clone REPOSITORY && cd dbnorm_jax
    pip install -e '.[bench]' 'jax[cuda13]'                         # or 'jax[tpu]'
    python -m benchmarks.speed.on_my_accelerator > line.json        # the table goes to stderr

Against a bare `jnp.dot` of the same shapes and dtype, for float32 at highest precision, bfloat16
with float32 accumulation and float32 at the platform's default (tf32 on recent GPUs, bfloat16 on
TPUs). Beside the library: `lax.top_k` and `lax.approx_max_k` of the whole matrix, torch, cuVS and
faiss-gpu, or why they are absent. After --seconds nothing further is begun, and the line says what
was left out. Sizes above 1024 are multiples of it. The platform is that of JAX's first device;
`--platform cpu` runs the same code, to test it. With --json the line is appended to a file, too.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import dbnorm_jax as dbn
from benchmarks.speed.search import corrections
from benchmarks.support import environment, inputs, report
from benchmarks.support.common import bare_scan, interleaved, ratio
from benchmarks.support.report import Figure, Record

SIZES = {
    "bank": 16384,
    "gallery": 102400,
    "queries": 16384,
    "dim": 512,
    "repetitions": 5,
    "seconds": 300,
}
PLATFORMS = {
    "gpu": "pip install 'jax[cuda13]'",
    "tpu": "pip install 'jax[tpu]'",
    "cpu": "JAX_PLATFORMS must allow it",
}
K = 10
# Name -> dtype of the embeddings, and what the caller sets as JAX's precision of products.
ARITHMETIC = {
    "float32 highest": (jnp.float32, "highest"),
    "bfloat16": (jnp.bfloat16, "default"),
    "float32 default": (jnp.float32, "default"),
}

Call = Callable[[], Any]


def accelerator() -> str:
    """The accelerator's platform; ends the process with a message where there is none."""
    platform = jax.default_backend()
    if platform == "cpu":
        ways = " or ".join(PLATFORMS[name] for name in ("gpu", "tpu"))
        sys.exit(
            f"benchmarks.speed.on_my_accelerator: no accelerator for jax {jax.__version__} here, "
            f"only cpu; nothing was measured. On a machine that has one: {ways}"
        )
    return platform


def require(platform: str) -> jax.Device:
    """The first device of a platform; ends the process with a message where there is none."""
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        known = ", ".join(sorted({device.platform for device in jax.devices()}))
        sys.exit(
            f"benchmarks.speed.on_my_accelerator: no {platform} for jax {jax.__version__} here, "
            f"only {known}; "
            f"nothing was measured. On a machine that has one: {PLATFORMS[platform]}"
        )


def under(precision: str, call: Call) -> Call:
    """The call with JAX's precision of products set, as a user would set it."""

    def run() -> Any:
        with jax.default_matmul_precision(precision):
            return call()

    return run


@jax.jit
def bare_dot(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The base: all inner products at the precision that is set."""
    return jnp.dot(rows, columns.T, preferred_element_type=jnp.float32)


@jax.jit
def gradient(bank: jax.Array, gallery: jax.Array) -> Any:
    """That of a fit, by the embeddings of both sides."""

    def loss(bank: jax.Array, gallery: jax.Array) -> jax.Array:
        return dbn.stream_bank_statistics(bank, gallery, beta=20.0, k=0).bias.sum()

    return jax.grad(loss, (0, 1))(bank, gallery)


@jax.jit
def matrix_top_k(queries: jax.Array, gallery: jax.Array, bias: jax.Array) -> Any:
    """`lax.top_k` of the whole corrected matrix."""
    return lax.top_k(bare_dot(queries, gallery) - bias[None], K)


@jax.jit
def matrix_approx_max_k(queries: jax.Array, gallery: jax.Array, bias: jax.Array) -> Any:
    """`lax.approx_max_k` of the whole corrected matrix; approximate on TPUs alone."""
    return lax.approx_max_k(bare_dot(queries, gallery) - bias[None], K)


# --- peers: each returns a call, or raises where it cannot -------------------------------------


def torch_top_k(platform: str, queries: Any, gallery: Any, bias: Any, precision: str) -> Call:
    """Product and `topk`."""
    import torch

    if platform == "tpu" or (platform == "gpu" and not torch.cuda.is_available()):
        raise ImportError(f"torch without {platform}")
    device = "cuda" if platform == "gpu" else "cpu"
    half = queries.dtype == jnp.bfloat16
    rows, items, minus = (
        torch.from_numpy(np.array(array, np.float32)).to(device)
        for array in (queries, gallery, -bias)
    )
    if half:
        rows, items, minus = rows.bfloat16(), items.bfloat16(), minus.bfloat16()
    torch.set_float32_matmul_precision("highest" if precision == "highest" else "high")

    def search() -> tuple[np.ndarray | None, Any]:
        found = [torch.topk(torch.addmm(minus, part, items.T), K) for part in rows.split(4096)]
        if device == "cuda":
            torch.cuda.synchronize()
        return torch.cat([each.indices for each in found])

    return search


def faiss_gpu(platform: str, queries: Any, gallery: Any, bias: Any, _precision: str) -> Call:
    """Exact inner-product index with the bias as its last column; queries come from the host."""
    faiss = environment.quiet_import_faiss()
    if faiss is None:
        raise ImportError("faiss is not installed")
    if platform != "gpu" or not hasattr(faiss, "GpuIndexFlatIP") or not faiss.get_num_gpus():
        raise ImportError("faiss without GPU support")
    rows, items = extended(queries, gallery, bias)
    options = faiss.GpuIndexFlatConfig()
    options.useFloat16 = queries.dtype == jnp.bfloat16
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), rows.shape[1], options)
    index.add(items)
    return lambda: index.search(rows, K)[1]


def cuvs_brute_force(platform: str, queries: Any, gallery: Any, bias: Any, _precision: str) -> Call:
    """Exact search of cuVS, with the bias as the last column."""
    from cuvs.common import Resources
    from cuvs.neighbors import brute_force

    if platform != "gpu":
        raise ImportError("cuVS needs a GPU")
    dtype = np.float16 if queries.dtype == jnp.bfloat16 else np.float32
    rows, items = (jnp.asarray(array, dtype) for array in extended(queries, gallery, bias))
    jax.block_until_ready((rows, items))
    resources = Resources()
    index = brute_force.build(items, metric="inner_product", resources=resources)

    def search() -> Any:
        _, indices = brute_force.search(index, rows, K, resources=resources)
        resources.sync()
        return indices

    return search


PEERS = {"torch topk": torch_top_k, "faiss-gpu": faiss_gpu, "cuVS brute force": cuvs_brute_force}


def extended(queries: Any, gallery: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose inner products are corrected scores: -bias against 1."""
    rows, items = np.asarray(queries, np.float32), np.asarray(gallery, np.float32)
    ones = np.ones((len(rows), 1), np.float32)
    return np.hstack([rows, ones]), np.column_stack([items, -np.asarray(bias)]).astype(np.float32)


def peers_of(platform: str, *arguments: Any) -> tuple[dict[str, Call], list[str]]:
    """Those that run here, and one line for each that does not."""
    found, absent = {}, []
    for name, make in PEERS.items():
        try:
            call = make(platform, *arguments)
            call()
        except ImportError as error:
            absent.append(f"{name}: absent ({error})")
        except Exception as error:  # another library's: said, and the rest is measured
            absent.append(f"{name}: failed ({type(error).__name__}: {str(error)[:200]})")
        else:
            found[name] = call
    return found, absent


# --- measuring ---------------------------------------------------------------------------------


def run(
    platform: str,
    bank: int,
    gallery: int,
    queries: int,
    dim: int,
    repetitions: int,
    seconds: float,
) -> list[Record]:
    """One record: every arithmetic, every step; none is begun after so many seconds."""
    device, end = require(platform), time.monotonic() + seconds
    figures, notes = [], []
    with jax.default_device(device):
        for name, (dtype, precision) in ARITHMETIC.items():
            if time.monotonic() > end:
                notes.append(f"{name}: not measured, {seconds:g} s were over")
                continue
            rows, items = inputs.unit_rows(2, queries, dim), inputs.unit_rows(1, gallery, dim)
            banks = inputs.unit_rows(0, bank, dim), inputs.unit_rows(3, bank, dim)
            arrays = [jnp.asarray(array, dtype) for array in (rows, items, *banks)]
            some_figures, some_notes = _measure(platform, name, arrays, precision, repetitions, end)
            figures += some_figures
            notes += some_notes
    sizes = {"bank": bank, "gallery": gallery, "queries": queries, "dim": dim}
    sizes |= {"repetitions": repetitions, "platform": platform, "device": device.device_kind}
    title = (
        f"{platform} ({device.device_kind}): bank {bank}, queries {queries}, gallery {gallery}, "
        f"dim {dim}"
    )
    return [Record(platform, title, sizes, figures, list(dict.fromkeys(notes)))]


def _measure(
    platform: str,
    name: str,
    arrays: list[jax.Array],
    precision: str,
    repetitions: int,
    end: float,
) -> tuple[list[Figure], list[str]]:
    rows, items, bank, gallery_bank = arrays
    with jax.default_matmul_precision(precision):
        fitted = corrections(bank, gallery_bank, items)
    bias = fitted["DualIS"].bias.sum(axis=0)
    relevant = jnp.arange(len(rows), dtype=jnp.int32) % len(items)
    bare = partial(bare_dot, bank, items)
    fits = {
        "bare dot, bank": bare,
        "bare scan, bank": partial(bare_scan, bank, items),
        "fit, k=0": partial(dbn.stream_bank_statistics, bank, items, beta=20.0, k=0),
        "fit, k=1": partial(dbn.stream_bank_statistics, bank, items, beta=20.0),
        "gradient of fit, k=0": partial(gradient, bank, items),
    }
    search = partial(dbn.stream_top_k, rows, items, K)
    searches = {
        "bare dot, queries": partial(bare_dot, rows, items),
        "DualIS, k=10": partial(search, fitted["DualIS"]),
        "DualDIS, k=10": partial(search, fitted["DualDIS"]),
        "ranks, DualIS": partial(dbn.metrics.stream_ranks, rows, items, relevant, fitted["DualIS"]),
        "lax.top_k": partial(matrix_top_k, rows, items, bias),
        "lax.approx_max_k": partial(matrix_approx_max_k, rows, items, bias),
    }
    figures = _against_dot(name, fits, arrays, precision, repetitions, len(bank))
    if time.monotonic() > end:
        return figures, [f"{name}: searches not measured, the time was over"]
    others, notes = peers_of(platform, rows, items, bias, precision)
    expected = np.asarray(under(precision, searches["DualIS, k=10"])().indices)
    for peer, call in (others | {"lax.approx_max_k": searches["lax.approx_max_k"]}).items():
        found = under(precision, call)()
        found = np.asarray(found[1] if peer == "lax.approx_max_k" else _on_host(found))
        notes.append(f"{name}, {peer}: recall {_recall(found, expected):.4f} of ours")
    figures += _against_dot(name, searches | others, arrays, precision, repetitions, len(rows))
    return figures, notes


def _against_dot(
    name: str,
    group: dict[str, Call],
    arrays: list[jax.Array],
    precision: str,
    repetitions: int,
    num_rows: int,
) -> list[Figure]:
    """Times of the first call of a group, which is the bare product of so many rows."""
    timings = interleaved(
        {step: under(precision, call) for step, call in group.items()}, repetitions
    )
    base, items = next(iter(timings)), arrays[1]
    flops = 2.0 * num_rows * items.shape[0] * items.shape[1]
    return [
        ratio(f"{name}: {step}", timing, timings[base], "x bare dot", flops=flops)
        for step, timing in timings.items()
    ]


def _on_host(found: Any) -> Any:
    if hasattr(found, "copy_to_host"):  # cuVS
        return found.copy_to_host()
    return found.cpu().numpy() if hasattr(found, "cpu") else found


def _recall(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of the expected neighbors that were found."""
    shared = [len(np.intersect1d(*pair)) for pair in zip(found, expected, strict=True)]
    return float(np.mean(shared)) / expected.shape[1]


def main() -> None:
    """Measures, and prints one JSON line."""
    # Peers share the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=PLATFORMS)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    options = vars(parser.parse_args())
    path = options.pop("json")
    options["platform"] = options["platform"] or accelerator()
    require(options["platform"])
    (record,) = run(**options)
    print(environment.summary(), "", *report.table(record), sep="\n", file=sys.stderr)
    print(json.dumps(record.as_json()))
    if path is not None:
        report.write([record], path)


if __name__ == "__main__":
    main()
