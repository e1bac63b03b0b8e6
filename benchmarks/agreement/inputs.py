"""What the comparisons of `benchmarks.agreement.table` share: the table, ulps, hostile inputs."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Errors = Iterator[tuple[str, float]]  # (the inputs, largest difference in ulps)


class Comparison(NamedTuple):
    """A row of the table."""

    what: str
    peer: str  # the module to import
    scale: str  # an ulp is eps times this
    dtypes: tuple[str, ...]
    bound: float  # ulps
    measure: Callable[[str, int], Errors]  # of a precision and a seed

    @property
    def name(self) -> str:
        """Of the row."""
        return f"{self.what}, {self.peer}"


COMPARISONS: list[Comparison] = []


def compared(
    peer: str, scale: str, bound: float, dtypes: str = "float32 float64"
) -> Callable[[Callable[[str, int], Errors]], Callable[[str, int], Errors]]:
    """Puts a function into the table; its docstring says what it compares."""

    def listed(measure: Callable[[str, int], Errors]) -> Callable[[str, int], Errors]:
        what = (measure.__doc__ or "").strip(".")
        COMPARISONS.append(Comparison(what, peer, scale, tuple(dtypes.split()), bound, measure))
        return measure

    return listed


def run(comparison: Comparison, dtype: str, seed: int) -> dict[str, float]:
    """Largest difference in ulps for each of the inputs; x64 where it is needed."""
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        return dict(comparison.measure(dtype, seed))


def ulps(ours: Any, theirs: Any, scale: Any, dtype: str) -> float:
    """NaN, or an infinity that the other has not, is an infinite error."""
    eps = float(jnp.finfo("float64" if dtype == "float64" else "float32").eps)
    ours, theirs = np.asarray(ours, np.longdouble), np.asarray(theirs, np.longdouble)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        error = np.where(ours == theirs, 0, np.abs(ours - theirs)) / (eps * np.asarray(scale))
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0))


def given(values: Any, dtype: str) -> jax.Array:
    """As an array of this precision."""
    return jnp.asarray(values).astype(dtype)


def exact(array: jax.Array) -> np.ndarray:
    """What the array holds, in float64."""
    return np.asarray(array.astype("float32") if array.dtype == jnp.bfloat16 else array, np.float64)


# --- inputs ---------------------------------------------------------------------------------------


def matrices(dtype: str, seed: int) -> Iterator[tuple[str, jax.Array, float]]:
    """(name, similarities [num_rows, num_columns], beta)."""
    draw = np.random.default_rng(seed)
    rows, columns = 60, 40
    cosines = np.tanh(draw.standard_normal((rows, columns)))
    yield "random", given(cosines, dtype), 20.0
    yield "ties", given(draw.integers(0, 3, (rows, columns)) / 2, dtype), 20.0
    yield "constant", given(np.full((rows, columns), 0.7), dtype), 50.0
    yield "beta 1e3", given(cosines, dtype), 1e3
    yield "beta 1e4", given(cosines, dtype), 1e4
    yield "beta 1e-3", given(cosines, dtype), 1e-3
    yield "tiny", given(cosines * 1e-30, dtype), 20.0
    yield "huge", given(cosines * 1e30, dtype), 1e-3
    yield "logits of 1e4", given(cosines * 1e4, dtype), 1.0
    yield "one row", given(cosines[:1], dtype), 20.0
    yield "one column", given(cosines[:, :1], dtype), 20.0
    yield "one pair", given(cosines[:1, :1], dtype), 1e4
    yield "long rows", given(draw.uniform(-1, 1, (50_000, 4)), dtype), 5.0


def embeddings(
    dtype: str, seed: int, *, unit: bool = False
) -> Iterator[tuple[str, jax.Array, jax.Array]]:
    """(name, rows [num_rows, dim], gallery [num_gallery, dim])."""
    draw = np.random.default_rng(seed)
    rows, gallery = draw.standard_normal((60, 32)), draw.standard_normal((40, 32))
    if unit:
        rows, gallery = (part / np.linalg.norm(part, axis=1)[:, None] for part in (rows, gallery))
    yield "random", given(rows, dtype), given(gallery, dtype)
    whole = [draw.integers(-1, 2, part.shape).astype(float) for part in (rows, gallery)]
    for part in whole:
        part[:, 0] = 1  # no zero rows, which have no cosine
    yield "ties", given(whole[0], dtype), given(whole[1], dtype)
    yield "equal items", given(rows, dtype), given(np.repeat(gallery[:1], 40, axis=0), dtype)
    yield "tiny", given(rows * 1e-12, dtype), given(gallery * 1e-12, dtype)
    yield "huge", given(rows * 1e12, dtype), given(gallery * 1e12, dtype)
    yield "one item", given(rows, dtype), given(gallery[:1], dtype)
    yield "one row", given(rows[:1], dtype), given(gallery, dtype)
    if not unit:
        sizes = 10.0 ** draw.uniform(-3, 3, (40, 1))
        yield "norms 1e-3 to 1e3", given(rows, dtype), given(gallery * sizes, dtype)
    long = draw.standard_normal((2, 40, 3000)) / 50
    yield "long rows", given(long[0], dtype), given(long[1], dtype)


def norms(rows: np.ndarray) -> np.ndarray:
    """Lengths of the rows."""
    return np.linalg.norm(rows, axis=1)
