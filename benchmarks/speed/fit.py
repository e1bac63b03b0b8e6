"""Bank statistics against a bare tile scan of the same shapes.

    python -m benchmarks.speed.fit [--bank 10240] [--gallery 102400] [--dim 512] [--repetitions 7]

Sizes above 1024 are multiples of it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.support import report
from benchmarks.support.common import bare_scan, full_dot, interleaved, ratios, unit_rows
from benchmarks.support.report import Record

SIZES = {"bank": 10240, "gallery": 10240, "dim": 512, "repetitions": 7}
TARGETS = {
    "log-normalizer": 1.08,
    "k=1 activation": 1.12,
    "k=10 activation": 1.25,
    "both banks, one jit": 1.12,
    "8 betas": 1.6,
    "bfloat16, k=1": 1.2,
    "SN, 10 iterations": 9 * 1.25 + 2,
}
BETAS = (20.0, 1.0)
# The whole matrix is held by `full_dot`; the machine may have other things to hold.
_LARGEST_MATRIX = 2**30


@jax.jit
def both_banks(bank: jax.Array, gallery_bank: jax.Array, gallery: jax.Array) -> tuple:
    """Statistics of two banks in one program."""
    return tuple(
        dbn.stream_bank_statistics(rows, gallery, beta=beta)
        for rows, beta in zip((bank, gallery_bank), BETAS, strict=True)
    )


@jax.jit
def both_bare(bank: jax.Array, gallery_bank: jax.Array, gallery: jax.Array) -> tuple:
    """The two scans that `both_banks` cannot do without."""
    return bare_scan(bank, gallery), bare_scan(gallery_bank, gallery)


@jax.jit
def eight_betas(bank: jax.Array, gallery: jax.Array, betas: jax.Array) -> dbn.BankStatistics:
    """Log-normalizers at several inverse temperatures."""
    return dbn.stream_bank_statistics(bank, gallery, beta=betas, k=0)


@jax.jit
def one_shot(bank: jax.Array, gallery: jax.Array) -> jax.Array:
    """What one would write first: the whole matrix and `jax.nn.logsumexp`."""
    return jax.nn.logsumexp(BETAS[0] * full_dot(bank, gallery), axis=0)


def check_exact(bank: jax.Array, gallery: jax.Array) -> None:
    """Nothing is timed that is wrong: some columns against NumPy in float64."""
    columns = slice(0, 256)
    logits = BETAS[0] * (np.asarray(bank, np.float64) @ np.asarray(gallery, np.float64)[columns].T)
    top = logits.max(axis=0)
    expected = top + np.log(np.exp(logits - top).sum(axis=0))
    found = dbn.stream_bank_statistics(bank, gallery, beta=BETAS[0], k=0).log_normalizer[columns]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def run(bank: int, gallery: int, dim: int, repetitions: int, wide: bool = False) -> list[Record]:
    """The table of the fit; `wide` leaves only the four kinds of statistics."""
    rows, items = unit_rows(0, bank, dim), unit_rows(1, gallery, dim)
    check_exact(rows, items)
    fit = partial(dbn.stream_bank_statistics, rows, items, beta=BETAS[0])
    contenders = {
        "bare": partial(bare_scan, rows, items),
        "log-normalizer": partial(fit, k=0),
        "k=1 activation": partial(fit, k=1),
        "k=10 activation": partial(fit, k=10),
        "128 largest, for NNN": partial(dbn.stream_largest_similarities, rows, items, k=128),
    }
    bases, passes, notes = {}, {}, []
    if not wide:
        other, betas = unit_rows(3, bank, dim), jnp.linspace(1.0, 50.0, 8)
        half_rows, half_items = (array.astype(jnp.bfloat16) for array in (rows, items))
        contenders |= {
            "bare, both banks": partial(both_bare, rows, other, items),
            "both banks, one jit": partial(both_banks, rows, other, items),
            "8 betas": partial(eight_betas, rows, items, betas),
            "bare, bfloat16": partial(bare_scan, half_rows, half_items),
            "bfloat16, k=1": partial(
                dbn.stream_bank_statistics, half_rows, half_items, beta=BETAS[0]
            ),
        }
        sinkhorn = partial(
            dbn.baselines.stream_sinkhorn_normalization,
            temperature=0.05,
            num_iterations=10,
        )
        contenders |= {
            "SN, 10 iterations": partial(sinkhorn, rows, items),
            "SN, 10 iterations, bfloat16": partial(sinkhorn, half_rows, half_items),
        }
        bases = {
            "both banks, one jit": "bare, both banks",
            "bfloat16, k=1": "bare, bfloat16",
            "SN, 10 iterations, bfloat16": "bare, bfloat16",
        }
        passes = {"bare, both banks": 2, "both banks, one jit": 2}
        passes |= {"SN, 10 iterations": 10, "SN, 10 iterations, bfloat16": 10}
        if bank * gallery * 4 <= _LARGEST_MATRIX:
            contenders["full jnp.dot"] = partial(full_dot, rows, items)
            contenders["one-shot logsumexp"] = partial(one_shot, rows, items)
        else:
            notes.append("full jnp.dot left out: its result is above 1 GiB")
    figures = ratios(
        interleaved(contenders, repetitions),
        2.0 * bank * gallery * dim,
        TARGETS,
        bases,
        passes,
    )
    title = f"fit: bank {bank} x gallery {gallery} x dim {dim}"
    sizes = {"bank": bank, "gallery": gallery, "dim": dim, "repetitions": repetitions}
    return [Record("fit", title, sizes, figures, notes)]


if __name__ == "__main__":
    report.command(__doc__, run, SIZES)
