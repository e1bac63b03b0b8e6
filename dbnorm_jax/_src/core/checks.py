"""Errors on bad arguments: the name, what was expected, what was given, the remedy.

Shapes, dtypes and static values are checked always, also while tracing. Values (finite, positive,
in range) can be checked for concrete arrays only: inside a caller's `jax.jit` those checks fall
away, which is also the way to opt out of their cost, one pass over the input.
"""

import contextlib
import numbers
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from dbnorm_jax._src.core import elementary


class ArgumentError(Exception):
    """What is wrong with an argument: names and texts in turn, the argument's own name first."""

    @property
    def argument(self) -> str:
        """The name of the argument that is wrong."""
        return str(self.args[0])

    def message(self, labels: Mapping[str, str] = MappingProxyType({})) -> str:
        """The message, with labels for names where a caller knows the arguments by others."""
        parts = list(self.args)
        parts[::2] = [labels.get(name, f"`{name}`") for name in parts[::2]]
        return "".join(parts)

    def __str__(self) -> str:
        return self.message()


class BadValueError(ArgumentError, ValueError):
    """An argument of a value that it must not have."""


class BadTypeError(ArgumentError, TypeError):
    """An argument of a type that it must not have."""


def is_concrete(*arrays: Any) -> bool:
    """Whether values can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))


def unsplit(tree: Any) -> Any:
    """The arrays of a pytree, each whole: those that lie on several devices go through the host.

    No device is prescribed for the copy, so JAX puts it beside any other argument. A program of
    tiles would exchange every tile of a split array. Under a trace an Explicit sharding is given up
    and every device gets the whole; of an Auto sharding the compiler takes care.
    """
    return jax.tree.map(_unsplit, tree)


def alike(first: Any, second: Any) -> tuple[Any, Any]:
    """Both states as they are where they are split alike, by gallery items, else each `unsplit`."""
    states = (first, second)
    one, other = ([jax.typeof(leaf).sharding for leaf in jax.tree.leaves(s)] for s in states)
    by_items = not any(any(how.spec[:-1]) for how in one)
    return states if one == other and by_items else unsplit(states)


def _unsplit(array: Any) -> Any:
    if not isinstance(array, jax.Array):
        return array
    if not is_concrete(array):
        split = jax.typeof(array).sharding
        if not any(split.spec):
            return array
        return jax.reshard(array, NamedSharding(split.mesh, P()))  # type: ignore[no-untyped-call]
    sharding = array.sharding
    if isinstance(sharding, SingleDeviceSharding):
        return array
    context = jax.sharding.get_abstract_mesh()
    if sharding.is_fully_replicated and jax.typeof(array).sharding.mesh == context:
        return array
    with jax.ensure_compile_time_eval():
        if array.is_fully_addressable:
            return jnp.asarray(np.asarray(array))
        from jax.experimental import multihost_utils

        return jnp.asarray(multihost_utils.process_allgather(array, tiled=True))


MOST_ROWS = 2**31 - 1
# What is served with all digits: sums of weights, and 1 / beta, stay in float32.
MOST_WEIGHT = 1e18
MOST_BETA = 1e37
INVERSE_TEMPERATURE = "inverse temperature, in 1/[unit of similarity]"

# Values that a host checks sooner than a program for it is compiled.
_FEW = 2**20
_FEW_TO_MOVE = 2**12

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


def found(problem: Callable[[Any], Any], array: Any) -> bool:
    """Whether a concrete array has a problem, looked up where it lives; never on traced ones.

    Arrays that a function under trace closes over are concrete: they are checked too. `problem` is
    a function of a module, so that it compiles once, of operators that NumPy and JAX share.
    """
    if not is_concrete(array):
        return False
    if isinstance(array, np.ndarray):
        return bool(problem(array))
    if _is_at_hand(array):
        return bool(problem(np.asarray(array)))
    with jax.ensure_compile_time_eval():
        return bool(jax.jit(problem)(array))


def _is_at_hand(array: jax.Array) -> bool:
    # What NumPy does not know (bfloat16) it is slow at.
    if array.dtype.kind not in "biuf" or not array.is_fully_addressable:
        return False
    on_host = all(device.platform == "cpu" for device in array.devices())
    return array.size <= (_FEW if on_host else _FEW_TO_MOVE)


def on_host(array: Any) -> Any:
    """A JAX array as one of NumPy, uncopied, where the host computes; any other as it is.

    For what NumPy does to a few numbers: JAX would compile it for every shape.
    """
    config: Any = jax.config
    if not isinstance(array, jax.Array) or not is_concrete(array):
        return array
    first = jax.local_devices()[0]
    here = first.platform == "cpu" and array.devices() == {first}
    return np.asarray(array) if here and config.jax_default_device is None else array


def converted(array: Any, dtype: Any) -> jax.Array:
    """`array` with another dtype that holds it; concrete stays concrete, also under a trace."""
    if not is_concrete(array):
        return jnp.asarray(array, dtype)
    if array.dtype.kind in "biu" and array.dtype != dtype:
        array = on_host(array)
        array = array.astype(dtype) if isinstance(array, np.ndarray) else array
    with jax.ensure_compile_time_eval():
        return jnp.asarray(array, dtype)


def narrowed(name: str, array: Any, dtype: Any) -> jax.Array:
    """`array` of NumPy or JAX with another dtype; concrete values out of its range are refused.

    JAX itself keeps the low bits of a number that is too large, and makes a float infinite.
    """
    dtype, given = np.dtype(dtype), array
    if isinstance(array, np.ndarray):
        try:
            with np.errstate(over="raise"):
                array = array.astype(dtype, copy=False)
            fits = dtype.kind not in "iu" or (array == given).all()
        except FloatingPointError:
            fits = False
    else:
        fits = not (_is_narrowing(array, dtype) and found(_exceeds_float32, array))
    if not fits:
        limits: Any = (np.iinfo if dtype.kind in "iu" else np.finfo)(dtype)
        with jax.ensure_compile_time_eval():
            smallest, largest = given.min(), given.max()
        raise BadValueError(
            name,
            f" must be in the range of {dtype}, at most {limits.max:.3g} in size, got values "
            f"from {smallest} to {largest}; scale them, or enable jax_enable_x64",
        )
    return converted(array, dtype)


def _is_narrowing(array: Any, dtype: Any) -> bool:
    return bool(array.dtype == np.float64 and dtype == np.float32)


def _exceeds_float32(array: Any) -> Any:
    return ((abs(array) > _LARGEST) & (abs(array) < np.inf)).any()


def _vanishes_in_float32(array: Any) -> Any:
    return ((array != 0) & (abs(array) < _SMALLEST)).any()


def as_array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array; NumPy float64 becomes float32 unless x64 is enabled, as in JAX."""
    array = numeric(name, value)
    if isinstance(array, jax.Array):
        return array
    return narrowed(name, array, jax.dtypes.canonicalize_dtype(array.dtype))


def real(name: str, value: Any, dtype: Any = None, unit: str = "") -> jax.Array:
    """Real numbers, integers of any size among them, as the floating-point `dtype`.

    By default float64 stays where x64 is enabled, and all else is float32.
    """
    array = numeric(name, value)
    if not is_real(array):
        raise BadTypeError(name, f" must be real numbers{unit}, got dtype {array.dtype}")
    if dtype is None:
        dtype = np.float64 if array.dtype == np.float64 else np.float32
    return narrowed(name, array, jax.dtypes.canonicalize_dtype(dtype))


def check_none_vanishes(name: str, value: Any, dtype: Any) -> None:
    """Raises where the conversion to `dtype` makes 0 of a number that is none."""
    array = numeric(name, value)
    if _is_narrowing(array, dtype) and found(_vanishes_in_float32, array):
        raise BadValueError(
            name,
            f" must be 0 or at least {_SMALLEST:.3g}, the smallest of float32, got numbers "
            f"nearer to 0; scale them, or enable jax_enable_x64",
        )


def numeric(name: str, value: Any) -> "jax.Array | np.ndarray[Any, np.dtype[Any]]":
    """A JAX array, `unsplit`; anything else as a NumPy array in native byte order.

    Tensors of other frameworks on the CPU are read through NumPy; bfloat16, which NumPy lacks, is
    copied through DLPack. What becomes of either shares no memory with the tensor.
    """
    if isinstance(value, jax.Array):
        return unsplit(value)
    kind = type(value).__name__
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise BadValueError(name, f" must be an array, got ragged {kind}") from error
    except (TypeError, RuntimeError) as error:  # a tensor that NumPy cannot read
        if "bfloat16" in str(getattr(value, "dtype", "")):
            with (
                contextlib.suppress(BufferError, RuntimeError, TypeError),
                jax.ensure_compile_time_eval(),
            ):
                return jnp.array(jax.dlpack.from_dlpack(value), copy=True)
        raise BadTypeError(
            name,
            f" must be an array in the host's memory, got a {kind} that cannot be read "
            f"({error}); convert it, for instance with .detach().float().cpu()",
        ) from error
    if array.dtype == object or array.dtype.kind in "SUMm":
        remedy = "; make rows one array with numpy.stack" if array.dtype == object else ""
        if remedy and all(isinstance(one, int) for one in array.flat):
            remedy = "; give integers of more than 64 bits as floats"
        raise BadTypeError(
            name, f" must be a numeric array, got {kind} of dtype {array.dtype}{remedy}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def floating(
    name: str, value: Any, *, ndim: int | None = None, min_ndim: int = 0, finite: bool = True
) -> jax.Array:
    """`value` as a floating-point JAX array of the given rank, all values finite."""
    array = as_array(name, value)
    _check_floating(name, array, ndim, min_ndim)
    if finite:
        check_finite(name, array)
    return array


def _check_floating(name: str, array: Any, ndim: int | None, min_ndim: int = 0) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise BadTypeError(
            name,
            f" must be floating point, got dtype {array.dtype}; "
            f"convert it first, for instance with .astype('float32')",
        )
    if ndim is not None and array.ndim != ndim:
        raise BadValueError(name, f" must have {ndim} axes, got shape {array.shape}")
    if array.ndim < min_ndim:
        raise BadValueError(name, f" must have at least {min_ndim} axes, got shape {array.shape}")


def _not_finite(array: Any) -> Any:
    # A maximum passes NaN on, and is read three times as fast as a mask is made.
    return ~(abs(array).max(initial=0) < np.inf)


def _not_positive(array: Any) -> Any:
    return ~((array > 0) & (array < np.inf)).all()


def is_negative(array: Any) -> Any:
    """Whether any value is below 0."""
    return (array < 0).any()


def _not_finite_anywhere(array: Any) -> Any:
    # A maximum over devices may lose NaN.
    return ~(abs(array) < np.inf).all()


@jax.jit
def _first_not_finite(array: jax.Array) -> jax.Array:
    # A minimum over rows works on any sharding; argmax does not.
    bad = ~jnp.isfinite(array.reshape(array.shape[0], -1)).all(axis=1)
    return jnp.where(bad, lax.iota(jnp.int32, len(bad)), len(bad)).min()


def check_finite(name: str, array: jax.Array, remedy: str = "remove or repair that row") -> None:
    """Raises where a concrete array holds NaN or infinity, naming the first such place."""
    on_one_device = not is_concrete(array) or len(array.devices()) == 1
    if found(_not_finite if on_one_device else _not_finite_anywhere, array):
        if array.is_fully_addressable:
            place = np.argwhere(~np.isfinite(np.asarray(array, dtype=np.float64)))[0].tolist()
            value = np.asarray(array)[tuple(place)]
        else:  # each process finds the same, and raises alike
            with jax.ensure_compile_time_eval():
                value, place = "a value that is not", [int(_first_not_finite(array))]
        raise BadValueError(name, f" must be finite, found {value} at index {place}; {remedy}")


def embeddings(name: str, value: Any) -> jax.Array:
    """A finite, non-empty [num_rows, dim] array."""
    array = as_array(name, value)
    check_embeddings(name, array)
    check_finite(name, array)
    return array


def checked_embeddings(**arrays: Any) -> dict[str, jax.Array]:
    """`embeddings` by their names, all of the first one's dimension."""
    checked = {name: embeddings(name, value) for name, value in arrays.items()}
    (first_name, first), *others = checked.items()
    for name, other in others:
        same_dimension(first_name, first, name, other)
    return checked


def check_embeddings(name: str, array: Any) -> None:
    """Raises unless the array, of JAX or NumPy, has the type and shape of embeddings."""
    _check_floating(name, array, ndim=2)
    if 0 in array.shape:
        raise BadValueError(
            name, f" must have at least one row and one dimension, got shape {array.shape}"
        )
    check_indexable(name, array.shape[0], "rows")


def check_indexable(name: str, count: int, of: str) -> None:
    """Raises where int32 could not number as many."""
    if count > MOST_ROWS:
        raise BadValueError(
            name,
            f" must have at most {MOST_ROWS} {of}, which int32 can number, got {count}; "
            f"split it, and merge what is found",
        )


def same_dimension(first_name: str, first: Any, second_name: str, second: Any) -> None:
    """Raises unless both [rows, dim] arrays have the same dim."""
    if first.shape[1] != second.shape[1]:
        hint = ""
        if first.shape[1] == second.shape[0] or first.shape[0] == second.shape[1]:
            hint = "; is one of them transposed? rows are items"
        raise BadValueError(
            first_name,
            " and ",
            second_name,
            f" must have the same number of columns "
            f"(embedding dimensions), got shapes {first.shape} and {second.shape}{hint}",
        )


def similarities(name: str, value: Any, *, rows: str, alike: bool = True) -> jax.Array:
    """A finite [..., num_rows, num_gallery] array with at least one row and one column.

    Without `alike`, who reads it twice sees to it that it is read alike.
    """
    array = floating(name, value, min_ndim=2)
    if 0 in array.shape[-2:]:
        raise BadValueError(
            name,
            f" must have at least one row ({rows}) and one column (gallery), "
            f"got shape {array.shape}",
        )
    check_indexable(name, max(array.shape[-2:]), "rows or columns")
    return read_alike(array) if alike else array


def read_alike(matrix: jax.Array) -> jax.Array:
    """A matrix whose readers agree in each number, also where a caller's jit fuses it with them."""
    return matrix if is_concrete(matrix) else elementary.rounded(matrix)


def matching_gallery(
    name: str, num_gallery: int, similarities_name: str, shape: tuple[int, ...]
) -> None:
    """Raises unless the state `name` was fitted on as many gallery items as there are columns."""
    if num_gallery != shape[-1]:
        raise BadValueError(
            name,
            f" has {num_gallery} gallery items but ",
            similarities_name,
            f" has {shape[-1]} columns (shape {shape}); columns are gallery items",
        )


def check_static(name: str, value: Any) -> None:
    """Raises where a caller's transformation traces what a program is compiled for."""
    if not is_concrete(value):
        raise BadTypeError(
            name,
            f" must be static, got a traced value; mark it with "
            f'jax.jit(..., static_argnames="{name}"), or bind it with functools.partial',
        )


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; static."""
    check_static(name, value)
    return bool(value)


def integer(name: str, value: Any, *, low: int, high: int | None = None, of: str = "") -> int:
    """`value` as an int in [low, high]; static."""
    check_static(name, value)
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise BadTypeError(name, f" must be an integer, got {value!r}") from None
    if number < low or (high is not None and number > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}{of}"
        raise BadValueError(name, f" must be {bound}, got {number}")
    return number


def rate(name: str, value: Any) -> float:
    """`value` as a float between 0 and 1, neither of them; static."""
    check_static(name, value)
    if not isinstance(value, numbers.Real):
        raise BadTypeError(name, f" must be a number, got {value!r}")
    if not 0 < float(value) < 1:
        raise BadValueError(name, f" must be between 0 and 1, got {value}")
    return float(value)


def neighbors(name: str, value: Any, default: int, *, high: int, of: str) -> int:
    """`value` as an int in [1, high]; None is `default`, or all where there are fewer."""
    return min(default, high) if value is None else integer(name, value, low=1, high=high, of=of)


def positive(name: str, value: Any, dtype: Any, unit: str = "") -> jax.Array:
    """A positive, finite scalar or array, as `dtype`."""
    array = real(name, value, dtype)
    if found(_not_positive, array):
        raise BadValueError(name, f" must be positive and finite{unit}, got {value}")
    return array


def is_real(array: Any) -> bool:
    """Whether the dtype holds real numbers; bool is none."""
    return jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)


def bank_weights(name: str, value: Any, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
    """Finite multiplicities >= 0, one per bank row; `dtype` as in `real`."""
    array = real(name, value, dtype, " (multiplicities)")
    if array.shape[-1:] != shape[-1:]:
        raise BadValueError(
            name, f" must have one entry per bank row, expected shape {shape}, got {array.shape}"
        )
    check_none_vanishes(name, value, array.dtype)
    check_finite(name, array)
    if found(is_negative, array):
        with jax.ensure_compile_time_eval():
            raise BadValueError(name, f" must not be negative, got a minimum of {array.min()}")
    if found(_out_of_range, array):
        with jax.ensure_compile_time_eval():
            least, most = jnp.where(array > 0, array, jnp.inf).min(), array.max()
        raise BadValueError(
            name,
            f" must be 0 or between {1 / MOST_WEIGHT:g} and {MOST_WEIGHT:g}, got {least:.3g} to "
            f"{most:.3g}; scale them, which no bias depends on",
        )
    return array


def _out_of_range(weights: Any) -> Any:
    return ((weights > MOST_WEIGHT) | ((weights > 0) & (weights < 1 / MOST_WEIGHT))).any()


def inverse_temperature(name: str, value: Any, dtype: Any) -> jax.Array:
    """A positive scalar or array that exponents can be made of, as `dtype`."""
    array = positive(name, value, dtype, f" ({INVERSE_TEMPERATURE})")
    if found(_not_served, array):
        raise BadValueError(
            name,
            f" must be between {1 / MOST_BETA:g} and {MOST_BETA:g} ({INVERSE_TEMPERATURE}), got "
            f"{value}; scale the similarities",
        )
    return array


def _not_served(beta: Any) -> Any:
    return ((beta > MOST_BETA) | (beta < 1 / MOST_BETA)).any()


def indices(
    name: str, value: Any, *, low: int, high: int, ndim: int | None = None, of: str = "gallery rows"
) -> jax.Array:
    """An integer array with values in [low, high), as int32."""
    array = integers(name, value, low=low, high=high, ndim=ndim, of=of)
    return converted(array, jnp.int32)


def integers(
    name: str, value: Any, *, low: int, high: int, ndim: int | None = None, of: str = "gallery rows"
) -> Any:
    """As `indices`, of JAX or NumPy and of the integer type that was given."""
    array = numeric(name, value)
    if isinstance(value, list | tuple) and not array.size:  # of no type of its own
        array = array.astype(np.int32)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise BadTypeError(name, f" must hold integers ({of}), got dtype {array.dtype}")
    if ndim is not None and array.ndim != ndim:
        raise BadValueError(name, f" must have {ndim} axes, got shape {array.shape}")
    if array.size and is_concrete(array):
        # As Python integers, before the conversion: int64 may not fit, int8 and uint not compare.
        array = on_host(array)
        with jax.ensure_compile_time_eval():
            smallest, largest = int(array.min()), int(array.max())
        if smallest < low or largest >= high:
            none = f" ({low} marks none)" if low == -1 else ""
            raise BadValueError(
                name,
                f" must hold {of} between {low}{none} and {high - 1}, "
                f"got values from {smallest} to {largest}",
            )
    return array


def one_per_bank_row(name: str, vector: jax.Array, num_bank: int) -> None:
    """Raises unless the vector has one entry per bank row."""
    if vector.shape != (num_bank,):
        wanted = f"one entry per bank row, expected shape {(num_bank,)}"
        raise BadValueError(name, f" must have {wanted}, got {vector.shape}")


def correction(value: Any, kind: type, remedy: str = "make it with one of the normalizers") -> None:
    """Raises unless `value` is a Correction (the `kind`) of finite fields.

    One NaN would take its item, or all items of a query, out of every result.
    """
    instance("correction", value, kind, remedy)
    for name, field in (("bias", value.bias), ("active", value.active)):
        if field is not None and is_concrete(field):
            remedy = "fit it anew, from banks of finite similarities"
            check_finite(f"correction.{name}", as_array(f"correction.{name}", field), remedy)


def unbatched(correction: Any) -> None:
    """Raises unless the fields of a Correction are [num_terms, num_gallery]."""
    if correction.bias.ndim != 2:
        raise BadValueError(
            "correction",
            f" must have fields [num_terms, num_gallery] here, got a bias of shape "
            f"{correction.bias.shape}; use jax.vmap over its leading axes",
        )


def instance(name: str, value: Any, expected: type | tuple[type, ...], remedy: str) -> None:
    """Raises unless `value` is of the expected type."""
    if not isinstance(value, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        names = " or ".join(kind.__name__ for kind in kinds)
        raise BadTypeError(name, f" must be a {names}, got {type(value).__name__}; {remedy}")
