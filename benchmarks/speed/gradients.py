"""Gradients of a streamed statistic against a bare tile scan of the same shapes.

    python -m benchmarks.speed.gradients [--bank 8192] [--gallery 16384] [--dim 512]

The sum of the biases, k = 0, by its inputs. "all" is by bank, gallery and beta at once, in reverse:
at least 4 products (forward, again, and one for each factor). By beta alone, forward mode carries
the weighted mean of s along, `jax.jvp`, with no second pass. A ratio of temporaries is printed too:
what the compiled program allots above its inputs and outputs, for a bank and one twice as large.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from benchmarks.support.common import TILE, bare_scan, interleaved, machine, unit_rows


@jax.jit
def total(bank: jax.Array, gallery: jax.Array, beta: jax.Array) -> jax.Array:
    """The sum of all biases."""
    return dbn.stream_bank_statistics(bank, gallery, beta=beta, k=0).bias.sum()


by_all = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
by_beta_reverse = jax.jit(jax.grad(total, argnums=2))


@jax.jit
def by_beta(bank: jax.Array, gallery: jax.Array, beta: jax.Array) -> jax.Array:
    """The slope by beta in forward mode."""
    return jax.jvp(partial(total, bank, gallery), (beta,), (jnp.ones_like(beta),))[1]


def check_exact() -> None:
    """Nothing is timed that is wrong: the closed forms in NumPy float64."""
    bank, gallery = unit_rows(0, 96, 16), unit_rows(1, 64, 16)
    similarities = np.asarray(bank, np.float64) @ np.asarray(gallery, np.float64).T
    powers = np.exp(20.0 * similarities)
    shares = powers / powers.sum(axis=0)
    log_normalizer = np.log(powers.sum(axis=0) / 96)
    slope = ((shares * similarities).sum(axis=0) / 20 - log_normalizer / 400).sum()
    by_bank, by_gallery, by_its_beta = by_all(bank, gallery, jnp.float32(20))
    np.testing.assert_allclose(by_bank, shares @ np.asarray(gallery, np.float64), atol=1e-5)
    np.testing.assert_allclose(by_gallery, shares.T @ np.asarray(bank, np.float64), atol=1e-5)
    for found in (by_its_beta, by_beta(bank, gallery, jnp.float32(20))):
        np.testing.assert_allclose(found, slope, rtol=1e-4)


def temporaries(function: jax.stages.Wrapped, shapes: tuple[int, int, int]) -> float:
    """MiB that the compiled function allots above its inputs and outputs."""
    num_bank, num_gallery, dim = shapes
    arguments = [jax.ShapeDtypeStruct((rows, dim), jnp.float32) for rows in (num_bank, num_gallery)]
    compiled = function.lower(*arguments, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def run(num_bank: int, num_gallery: int, dim: int, repetitions: int) -> None:
    """Prints both tables."""
    check_exact()
    bank, gallery = unit_rows(0, num_bank, dim), unit_rows(1, num_gallery, dim)
    arguments = (bank, gallery, jnp.float32(20))
    functions = {
        "forward": total,
        "by bank, gallery, beta": by_all,
        "by beta, forward mode": by_beta,
        "by beta, reverse mode": by_beta_reverse,
    }
    contenders = {"bare": partial(bare_scan, bank, gallery)}
    contenders |= {name: partial(function, *arguments) for name, function in functions.items()}
    print(f"bank {num_bank} x gallery {num_gallery} x dim {dim}")
    timings = interleaved(contenders, repetitions)
    print("x bare: of minima, median")
    bare = timings["bare"].seconds
    for name, timing in timings.items():
        of_minima, median = timing.seconds.min() / bare.min(), np.median(timing.seconds / bare)
        print(f"{name:24}{of_minima:9.2f}{median:9.2f}")
    forward, slope = (timings[name].seconds for name in ("forward", "by beta, forward mode"))
    print(
        f"by beta, forward mode, x forward: {slope.min() / forward.min():.2f} of minima, "
        f"{float(np.median(slope / forward)):.2f} median"
    )
    print("\ntemporaries, MiB, for that bank and one twice as large")
    for name, function in functions.items():
        sizes = [
            temporaries(function, (rows, num_gallery, dim)) for rows in (num_bank, 2 * num_bank)
        ]
        print(f"{name:24}" + "".join(f"{size:9.1f}" for size in sizes))


def main() -> None:
    """Reads the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("bank", 8192), ("gallery", 16384)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"multiple of {TILE}")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(machine(), end="\n\n")
    run(options.bank, options.gallery, options.dim, options.repetitions)


if __name__ == "__main__":
    main()
