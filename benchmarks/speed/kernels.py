"""Fused kernels against plain JAX on a GPU or TPU: `python -m benchmarks.speed.kernels`.

Both run in one process, interleaved, beside the bare products of the same tiles. On a CPU there is
nothing to compare.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.support.common import bare_scan, interleaved, unit_rows
from dbnorm_jax._src.passes import dispatch

NUM_ROWS, NUM_GALLERY, DIM, K = 10240, 102400, 512, 10
CASES = {"bfloat16": ("bfloat16", None), "tf32": ("float32", "tensorfloat32")}


def main() -> None:
    """Prints seconds of each case, the ratio to plain JAX, and how far the results differ."""
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, dim {DIM}")
    rows, gallery = unit_rows(0, NUM_ROWS, DIM), unit_rows(1, NUM_GALLERY, DIM)
    for name, (dtype, precision) in CASES.items():
        with jax.default_matmul_precision(precision):
            _case(name, rows.astype(dtype), gallery.astype(dtype))


def _case(name: str, rows: jax.Array, gallery: jax.Array) -> None:
    os.environ[dispatch.SWITCH] = dispatch.AUTO
    if dispatch.choose(rows, gallery, dbn.dot_product) == dispatch.NEVER:
        print(f"{name}: no fused kernels on {jax.default_backend()}; see the log for a reason")
        return

    def switched(switch: str, run: Callable[[], jax.Array]) -> Callable[[], jax.Array]:
        def call() -> jax.Array:
            os.environ[dispatch.SWITCH] = switch
            return run()

        return call

    passes = {
        "fit": lambda: dbn.stream_bank_statistics(rows, gallery, beta=20.0).log_normalizer,
        f"top-{K}": lambda: dbn.stream_top_k(rows, gallery, K).scores,
    }
    for title, run in passes.items():
        fused, plain = switched(dispatch.AUTO, run), switched(dispatch.NEVER, run)
        timings = interleaved(
            {"bare": lambda: bare_scan(rows, gallery), "plain": plain, "fused": fused}
        )
        best = {key: timing.seconds.min() for key, timing in timings.items()}
        difference = float(jnp.abs(fused() - plain()).max())
        ratio = np.median(timings["fused"].seconds / timings["plain"].seconds)
        print(
            f"{name} {title}: bare {best['bare']:.4f} s, plain {best['plain']:.4f} s, fused "
            f"{best['fused']:.4f} s, fused / plain {ratio:.2f}, difference {difference:.1e}"
        )


if __name__ == "__main__":
    main()
