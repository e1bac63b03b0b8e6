"""The same work in other libraries, in processes with a chosen OpenBLAS kernel.

    python -m benchmarks.speed.peers [--queries 4096] [--gallery 102400] [--bank 10240] [--dim 512]

NumPy and faiss-cpu multiply with OpenBLAS, which picks its kernel when it is loaded, and not always
the processor's own. So everything is measured twice, each time interleaved in one process with the
library and the bare scan: with the kernel for this processor set, and as installed. Conversions and
the building of indexes are not timed. Peers that are not installed are reported as absent.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.support import environment, inputs, report

SIZES = {"queries": 4096, "gallery": 102400, "bank": 10240, "dim": 512, "k": 10, "repetitions": 7}
LIBRARY = "dbnorm_jax DualIS"
NNN_K = 128
NNN_WEIGHT = 0.75
_ROWS = 1024  # rows per product, whose result is written into the same memory again


# --- peers: NumPy ------------------------------------------------------------------------------


def log_normalizer(bank: np.ndarray, gallery: np.ndarray, beta: float) -> np.ndarray:
    """Computes log sum_b exp(beta s(b, g)), some gallery items at a time."""
    result = np.empty(len(gallery), np.float32)
    scaled = np.float32(beta) * bank
    for start in range(0, len(gallery), _ROWS):
        logits = gallery[start : start + _ROWS] @ scaled.T
        top = logits.max(axis=1, keepdims=True)
        logits -= top
        np.exp(logits, out=logits)
        result[start : start + _ROWS] = np.log(logits.sum(axis=1)) + top[:, 0]
    return result


def dual_bias(
    bank: np.ndarray, gallery_bank: np.ndarray, gallery: np.ndarray, betas: tuple[float, float]
) -> np.ndarray:
    """The bias of DualIS, (log Z_Q / |Q| + log Z_G / |G|) / (beta_Q + beta_G)."""
    sums = [
        log_normalizer(rows, gallery, beta) - np.float32(np.log(len(rows)))
        for rows, beta in zip((bank, gallery_bank), betas, strict=True)
    ]
    return (sums[0] + sums[1]) / np.float32(sum(betas))


def largest_means(bank: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    """NNN's bias before its weight: the mean of each gallery item's k largest similarities."""
    k = min(k, len(bank))
    result = np.empty(len(gallery), np.float32)
    for start in range(0, len(gallery), _ROWS):
        similarities = gallery[start : start + _ROWS] @ bank.T
        largest = np.partition(similarities, len(bank) - k, axis=1)[:, len(bank) - k :]
        result[start : start + _ROWS] = largest.mean(axis=1)
    return result


def numpy_top_k(
    queries: np.ndarray, gallery: np.ndarray, bias: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Product, `argpartition` and a sort of the k that are left."""
    scores = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    buffer = np.empty((min(_ROWS, len(queries)), len(gallery)), np.float32)
    for start in range(0, len(queries), _ROWS):
        rows = queries[start : start + _ROWS]
        found = np.matmul(rows, gallery.T, out=buffer[: len(rows)])
        found -= bias
        part = np.argpartition(found, -k, axis=1)[:, -k:]
        values = np.take_along_axis(found, part, axis=1)
        order = np.argsort(-values, axis=1)
        scores[start : start + _ROWS] = np.take_along_axis(values, order, axis=1)
        indices[start : start + _ROWS] = np.take_along_axis(part, order, axis=1)
    return scores, indices


def counted_ranks(
    queries: np.ndarray, gallery: np.ndarray, relevant: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """1 + the number of items above the right one."""
    result = np.empty(len(queries), np.float32)
    for start in range(0, len(queries), _ROWS):
        scores = queries[start : start + _ROWS] @ gallery.T
        scores -= bias
        own = np.take_along_axis(scores, relevant[start : start + _ROWS, None], axis=1)
        result[start : start + _ROWS] = 1 + (scores > own).sum(axis=1)
    return result


def sorted_ranks(
    queries: np.ndarray, gallery: np.ndarray, relevant: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """The same from a full sort of every row, as retrieval code often has it."""
    order = np.argsort(-(queries @ gallery.T - bias), axis=1)
    return 1 + (order == relevant[:, None]).argmax(axis=1).astype(np.float32)


# --- peers: others -----------------------------------------------------------------------------


def torch_top_k(
    queries: np.ndarray, gallery: np.ndarray, bias: np.ndarray, k: int
) -> Callable[[], tuple[np.ndarray, np.ndarray]] | None:
    """Product and `topk` in torch on the CPU; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    rows, items, minus = (torch.from_numpy(array) for array in (queries, gallery, -bias))
    buffer = torch.empty((min(_ROWS, len(rows)), len(items)))

    def search() -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for chunk in rows.split(_ROWS):
            torch.addmm(minus, chunk, items.T, out=buffer[: len(chunk)])
            parts.append(torch.topk(buffer[: len(chunk)], k, dim=1))
        scores, indices = zip(*parts, strict=True)
        return torch.cat(scores).numpy(), torch.cat(indices).numpy()

    return search


def faiss_search(
    queries: np.ndarray, gallery: np.ndarray, bias: np.ndarray | None, k: int
) -> Callable[[], tuple[np.ndarray, np.ndarray]] | None:
    """An exact inner-product index of faiss; None where it is not installed.

    With a bias, it is the gallery's last column, and 1 the queries'.
    """
    faiss = environment.quiet_import_faiss()
    if faiss is None:
        return None
    if bias is not None:
        gallery = np.column_stack([gallery, -bias]).astype(np.float32)
        queries = np.column_stack([queries, np.ones(len(queries), np.float32)])
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(np.ascontiguousarray(gallery))
    rows = np.ascontiguousarray(queries, np.float32)
    return lambda: index.search(rows, k)


def searches(
    queries: np.ndarray, gallery: np.ndarray, bias: np.ndarray, k: int
) -> dict[str, Callable[[], tuple[np.ndarray, np.ndarray]] | None]:
    """All peers of the search with a bias; None for those that are absent."""
    return {
        "faiss, d+1": faiss_search(queries, gallery, bias, k),
        "torch topk": torch_top_k(queries, gallery, bias, k),
        "NumPy argpartition": partial(numpy_top_k, queries, gallery, bias, k),
    }


# --- measuring, in a process of its own --------------------------------------------------------


def measure(
    queries: int, gallery: int, bank: int, dim: int, k: int, repetitions: int
) -> list[dict[str, Any]]:
    """Search and fit beside the library, with the BLAS kernels that this process has."""
    import jax.numpy as jnp

    import dbnorm_jax as dbn
    from benchmarks.support import common

    rows, items = inputs.unit_rows(2, queries, dim), inputs.unit_rows(1, gallery, dim)
    banks = inputs.unit_rows(0, bank, dim), inputs.unit_rows(3, bank, dim)
    on_device = jnp.asarray(rows), jnp.asarray(items)
    statistics = [
        dbn.stream_bank_statistics(jnp.asarray(part), on_device[1], beta=beta)
        for part, beta in zip(banks, (20.0, 1.0), strict=True)
    ]
    correction = dbn.dual_inverted_softmax(*statistics)
    bias = np.asarray(correction.bias.sum(axis=0))
    found = {LIBRARY: partial(dbn.stream_top_k, *on_device, k, correction)}
    found |= searches(rows, items, bias, k)
    found["faiss, d, no bias"] = faiss_search(rows, items, None, k)
    found["faiss, d+1, k=1"] = faiss_search(rows, items, bias, 1)
    found[f"{LIBRARY}, k=1"] = partial(dbn.stream_top_k, *on_device, 1, correction)
    expected = np.asarray(found[LIBRARY]()[0])
    for name in ("faiss, d+1", "torch topk", "NumPy argpartition"):
        if found[name] is not None:
            np.testing.assert_allclose(found[name]()[0], expected, atol=5e-6, err_msg=name)

    absent = [f"{name}: absent" for name, call in found.items() if call is None]
    search = {name: call for name, call in found.items() if call is not None}
    search = {"bare": partial(common.bare_scan, *on_device)} | search
    timings = common.interleaved(search, repetitions)
    flops = 2.0 * queries * gallery * dim
    figures = common.ratios(timings, flops)
    for suffix in ("", ", k=1"):
        peer = "faiss, d+1" + suffix
        if peer in timings:
            name = LIBRARY + suffix
            figures.append(
                common.ratio(name, timings[name], timings[peer], f"x {peer}", report.Target(high=1))
            )
    result = [{"title": "search", "figures": figures, "notes": absent}]

    # The fit of one bank; of NNN's in the same place.
    fit = {
        "bare": partial(common.bare_scan, jnp.asarray(banks[0]), on_device[1]),
        "dbnorm_jax IS": partial(
            dbn.stream_bank_statistics, jnp.asarray(banks[0]), on_device[1], beta=20.0, k=0
        ),
        "NumPy log-sum-exp": partial(log_normalizer, banks[0], items, 20.0),
        f"NumPy NNN, k={NNN_K}": partial(largest_means, banks[0], items, NNN_K),
        f"dbnorm_jax NNN, k={NNN_K}": partial(
            dbn.stream_largest_similarities, jnp.asarray(banks[0]), on_device[1], k=NNN_K
        ),
    }
    np.testing.assert_allclose(
        fit["dbnorm_jax IS"]().log_normalizer, fit["NumPy log-sum-exp"](), atol=5e-5
    )
    timings = common.interleaved(fit, max(3, repetitions // 2))
    result.append(
        {
            "title": "fit of one bank",
            "figures": common.ratios(timings, 2.0 * bank * gallery * dim),
            "notes": [],
        }
    )
    return result


def run(
    queries: int, gallery: int, bank: int, dim: int, k: int, repetitions: int
) -> list[report.Record]:
    """Both kernels, each in its process."""
    sizes = {"queries": queries, "gallery": gallery, "bank": bank, "dim": dim, "k": k}
    sizes["repetitions"] = repetitions
    core = environment.openblas_core()
    settings = [("as installed", None), *([(f"OPENBLAS_CORETYPE={core}", core)] if core else [])]
    records = []
    for setting, value in settings:
        arguments = [f"--{name}={size}" for name, size in sizes.items()]
        found = environment.child(
            "benchmarks.speed.peers",
            "--child",
            *arguments,
            variables={"OPENBLAS_CORETYPE": value},
        )
        for part in found["parts"]:
            shape = f"{queries if part['title'] == 'search' else bank} x {gallery} x {dim}"
            figures = [
                _figure(fields, keep_target=value is not None or not core)
                for fields in part["figures"]
            ]
            notes = [*part["notes"], *found["kernels"]]
            title = f"peers, {part['title']}: {shape}, {setting}"
            records.append(
                report.Record("peers", title, sizes | {"kernel": setting}, figures, notes)
            )
    return records


def _figure(fields: dict[str, Any], keep_target: bool) -> report.Figure:
    """A figure from its JSON; the target holds for the right kernel alone."""
    fields = {name: value for name, value in fields.items() if name != "met"}
    target = fields.pop("target", None)
    if target is not None and keep_target:
        fields["target"] = report.Target(high=float(target.removeprefix("<= ")))
    return report.Figure(**fields)


def main() -> None:
    """The tables, or one process's part of them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--child", action="store_true")
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options, _ = parser.parse_known_args()
    if not options.child:
        report.command(__doc__, run, SIZES)
        return
    sizes = vars(options)
    del sizes["child"]
    parts = measure(**sizes)
    for part in parts:
        part["figures"] = [figure.as_json() for figure in part["figures"]]
    print(json.dumps({"parts": parts, "kernels": environment.kernels()}))


if __name__ == "__main__":
    main()
