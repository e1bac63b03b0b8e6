"""Errors on bad arguments: the name, what was expected, what was given, the remedy.

Shapes, dtypes and static values are checked always, also while tracing. Values (finite, positive,
in range) can be checked for concrete arrays only: inside a caller's `jax.jit` those checks fall
away, which is also the way to opt out of their cost, one pass over the input.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(*arrays: Any) -> bool:
    """Whether values can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))


def found(problem: Callable[[jax.Array], jax.Array], array: jax.Array) -> bool:
    """Whether a concrete array has a problem, looked up where it lives; never on traced ones.

    Arrays that a function under trace closes over are concrete: they are checked too.
    """
    if not is_concrete(array):
        return False
    with jax.ensure_compile_time_eval():
        return bool(problem(array))


def converted(array: Any, dtype: Any) -> jax.Array:
    """`array` with another dtype; concrete stays concrete, also under a trace."""
    if not is_concrete(array):
        return jnp.asarray(array, dtype)
    # What leaves the range of the dtype becomes infinite, which the value checks then name.
    with jax.ensure_compile_time_eval(), np.errstate(over="ignore"):
        return jnp.asarray(array, dtype)


def as_array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array; NumPy float64 becomes float32 unless x64 is enabled, as in JAX."""
    array = _numeric(name, value)
    if isinstance(array, jax.Array):
        return array
    return converted(array, jax.dtypes.canonicalize_dtype(array.dtype))


def _numeric(name: str, value: Any) -> "jax.Array | np.ndarray[Any, np.dtype[Any]]":
    """A JAX array as it is; anything else as a NumPy array in native byte order."""
    if isinstance(value, jax.Array):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"`{name}` must be an array, got ragged {type(value).__name__}") from error
    if array.dtype == object or array.dtype.kind in "SUMm":
        raise TypeError(
            f"`{name}` must be a numeric array, got {type(value).__name__} of dtype {array.dtype}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def floating(
    name: str, value: Any, *, ndim: int | None = None, min_ndim: int = 0, finite: bool = True
) -> jax.Array:
    """`value` as a floating-point JAX array of the given rank, all values finite."""
    array = as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` must be floating point, got dtype {array.dtype}; "
            f"convert it first, for instance with .astype('float32')"
        )
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} axes, got shape {array.shape}")
    if array.ndim < min_ndim:
        raise ValueError(f"`{name}` must have at least {min_ndim} axes, got shape {array.shape}")
    if finite:
        check_finite(name, array)
    return array


@jax.jit
def _not_finite(array: jax.Array) -> jax.Array:
    # A maximum passes NaN on, and is read three times as fast as a mask is made.
    return ~jnp.isfinite(jnp.abs(array).max(initial=0))


def check_finite(name: str, array: jax.Array) -> None:
    """Raises where a concrete array holds NaN or infinity, naming the first such place."""
    if found(_not_finite, array):
        place = np.argwhere(~np.isfinite(np.asarray(array, dtype=np.float64)))[0].tolist()
        raise ValueError(
            f"`{name}` must be finite, found {np.asarray(array)[tuple(place)]} at index {place}; "
            f"remove or repair that row"
        )


def embeddings(name: str, value: Any) -> jax.Array:
    """A finite, non-empty [num_rows, dim] array."""
    array = floating(name, value, ndim=2)
    if 0 in array.shape:
        raise ValueError(
            f"`{name}` must have at least one row and one dimension, got shape {array.shape}"
        )
    return array


def same_dimension(first_name: str, first: jax.Array, second_name: str, second: jax.Array) -> None:
    """Raises unless both [rows, dim] arrays have the same dim."""
    if first.shape[1] != second.shape[1]:
        hint = (
            "; is one of them transposed? rows are items"
            if first.shape[1] == second.shape[0] or first.shape[0] == second.shape[1]
            else ""
        )
        raise ValueError(
            f"`{first_name}` and `{second_name}` must have the same number of columns "
            f"(embedding dimensions), got shapes {first.shape} and {second.shape}{hint}"
        )


def similarities(name: str, value: Any, *, rows: str) -> jax.Array:
    """A finite [..., num_rows, num_gallery] array with at least one row and one column."""
    array = floating(name, value, min_ndim=2)
    if 0 in array.shape[-2:]:
        raise ValueError(
            f"`{name}` must have at least one row ({rows}) and one column (gallery), "
            f"got shape {array.shape}"
        )
    return array


def matching_gallery(
    name: str, num_gallery: int, similarities_name: str, shape: tuple[int, ...]
) -> None:
    """Raises unless the state `name` was fitted on as many gallery items as there are columns."""
    if num_gallery != shape[-1]:
        raise ValueError(
            f"`{name}` has {num_gallery} gallery items but `{similarities_name}` has {shape[-1]} "
            f"columns (shape {shape}); columns are gallery items"
        )


def integer(name: str, value: Any, *, low: int, high: int | None = None, of: str = "") -> int:
    """`value` as an int in [low, high]."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, got {value!r}") from None
    if number < low or (high is not None and number > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}{of}"
        raise ValueError(f"`{name}` must be {bound}, got {number}")
    return number


def positive(name: str, value: Any, dtype: Any, unit: str = "") -> jax.Array:
    """A positive, finite scalar or array, as `dtype`."""
    array = as_array(name, value)
    if not is_real(array):
        raise TypeError(f"`{name}` must be a real number, got dtype {array.dtype}")
    # Converted first: 1e-50 is positive as a Python float and 0 as float32.
    array = converted(array, dtype)
    if found(lambda array: ~((array > 0) & jnp.isfinite(array)).all(), array):
        raise ValueError(f"`{name}` must be positive and finite{unit}, got {value}")
    return array


def is_real(array: jax.Array) -> bool:
    """Whether the dtype holds real numbers; bool is none."""
    return jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)


def real_as_floating(array: jax.Array) -> jax.Array:
    """Real numbers of any dtype as float32, float64 as it is."""
    return array if array.dtype == jnp.float64 else converted(array, jnp.float32)


def bank_weights(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """Finite multiplicities >= 0, one per bank row."""
    array = as_array(name, value)
    if not is_real(array):
        raise TypeError(f"`{name}` must be numbers (multiplicities), got dtype {array.dtype}")
    if array.shape[-1:] != shape[-1:]:
        raise ValueError(
            f"`{name}` must have one entry per bank row, expected shape {shape}, got {array.shape}"
        )
    array = floating(name, real_as_floating(array))
    if found(lambda array: (array < 0).any(), array):
        raise ValueError(
            f"`{name}` must not be negative, got a minimum of {np.asarray(array).min()}"
        )
    return array


def indices(
    name: str, value: Any, *, low: int, high: int, ndim: int | None = None, of: str = "gallery rows"
) -> jax.Array:
    """An integer array with values in [low, high), as int32."""
    array = _numeric(name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`{name}` must hold integers ({of}), got dtype {array.dtype}")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} axes, got shape {array.shape}")
    if array.size and is_concrete(array):
        # As Python integers, before the conversion: int64 may not fit, int8 and uint not compare.
        with jax.ensure_compile_time_eval():
            smallest, largest = int(array.min()), int(array.max())
        if smallest < low or largest >= high:
            none = f" ({low} marks none)" if low == -1 else ""
            raise ValueError(
                f"`{name}` must hold {of} between {low}{none} and {high - 1}, "
                f"got values from {smallest} to {largest}"
            )
    return converted(array, jnp.int32)


def exclusions(value: Any, num_bank: int, num_gallery: int) -> jax.Array:
    """The argument `exclude`: the gallery row of each bank item's own copy, -1 for none."""
    array = indices("exclude", value, low=-1, high=num_gallery, ndim=1)
    one_per_bank_row("exclude", array, num_bank)
    return array


def one_per_bank_row(name: str, vector: jax.Array, num_bank: int) -> None:
    """Raises unless the vector has one entry per bank row."""
    if vector.shape != (num_bank,):
        raise ValueError(
            f"`{name}` must have one entry per bank row, expected shape {(num_bank,)}, "
            f"got {vector.shape}"
        )


def mask(name: str, value: Any) -> jax.Array:
    """A bool array."""
    array = as_array(name, value)
    if array.dtype != bool:
        raise TypeError(f"`{name}` must be a bool mask (True = valid), got dtype {array.dtype}")
    return array


def pairs(where: Any, shape: tuple[int, ...]) -> jax.Array:
    """A mask of rows or pairs as a mask of pairs that broadcasts against `shape`."""
    where = mask("where", where)
    given = where.shape
    if where.ndim == 1 or (where.shape == shape[:-1] and where.shape != shape[-2:]):
        where = where[..., None]
    try:
        fits = jnp.broadcast_shapes(where.shape, shape)[-2:] == tuple(shape[-2:])
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"`where` must mask bank rows {shape[:-1]} or pairs {shape}, got {given}")
    return jnp.broadcast_to(where, (*where.shape[:-2], *shape[-2:]))


def instance(name: str, value: Any, expected: type | tuple[type, ...], remedy: str) -> None:
    """Raises unless `value` is of the expected type."""
    if not isinstance(value, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"`{name}` must be a {names}, got {type(value).__name__}; {remedy}")
