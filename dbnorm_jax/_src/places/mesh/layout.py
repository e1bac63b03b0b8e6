"""Global arrays over a device mesh: split evenly, filled up where lengths do not divide.

What is on its devices already stays there. Of a NumPy array or a memory-mapped file each process
reads its own rows only. Every computation masks what was filled up.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dbnorm_jax._src.core import checks
from dbnorm_jax._src.places.mesh.exchange import Axis, Shard


class Layout(NamedTuple):
    """A mesh, and which of its axes split what; without a mesh, one device has all."""

    mesh: Mesh | None
    bank: Axis  # of bank rows and queries
    gallery: Axis

    def shard(self, axis: Axis, num_rows: int) -> Shard:
        """What each device holds of so many rows."""
        shape = {} if self.mesh is None else self.mesh.shape
        return Shard(axis, math.prod(shape[name] for name in _names(axis)), num_rows)

    def queries_at_once(self, chunk_size: int) -> int:
        """Half of them where many devices are one processor, whose cache holds all their tiles."""
        local = [] if self.mesh is None else self.mesh.local_devices
        shared = len(local) > 2 and local[0].platform == "cpu"
        return max(1, chunk_size // 2) if shared else chunk_size


def _names(axis: Axis) -> tuple[str, ...]:
    return () if axis is None else axis if isinstance(axis, tuple) else (axis,)


def layout(mesh: Any, bank_axis: Axis, gallery_axis: Axis) -> Layout:
    """The arguments `mesh`, `bank_axis` and `gallery_axis`, checked."""
    if mesh is None:
        return Layout(None, None, None)
    if not isinstance(mesh, Mesh):
        raise checks.BadTypeError(
            "mesh",
            f" must be a jax.sharding.Mesh or None, got {type(mesh).__name__}; make one with "
            f'jax.make_mesh((2, 4), ("bank", "gallery"))',
        )
    for argument, axis in (("bank_axis", bank_axis), ("gallery_axis", gallery_axis)):
        for name in _names(axis):
            if name not in mesh.axis_names:
                raise checks.BadValueError(
                    argument,
                    f" must name an axis of the mesh, got {name!r} but it has "
                    f"{mesh.axis_names}; None leaves these rows whole on every device",
                )
    names = (*_names(bank_axis), *_names(gallery_axis))
    if len(set(names)) < len(names):
        raise checks.BadValueError(
            "bank_axis",
            f" and `gallery_axis` must name different axes of the mesh, got "
            f"{bank_axis!r} and {gallery_axis!r}",
        )
    return Layout(mesh, bank_axis, gallery_axis)


def split(
    array: Any, placement: Layout, axis: Axis, *, dim: int = 0, fill: Any = None
) -> jax.Array:
    """An array of JAX, traced or not, or of NumPy, split over a mesh axis along one of its own.

    It is filled up to a length that divides, with copies of its last entry where `fill` is None.
    Without a mesh axis there is a copy on every device.
    """
    if placement.mesh is None:
        return checks.unsplit(array)
    sharding = NamedSharding(placement.mesh, P(*[None] * dim, axis) if axis is not None else P())
    missing = placement.shard(axis, array.shape[dim]).missing if axis is not None else 0
    if isinstance(array, jax.core.Tracer):
        return _split_traced(array, sharding, dim, missing, fill)
    with jax.ensure_compile_time_eval():
        if not isinstance(array, jax.Array):
            return _split_host(array, sharding, dim, missing, fill)
        if array.is_fully_addressable and not sharding.is_fully_addressable:
            # Every process has it: each keeps its part.
            return _split_host(np.asarray(array), sharding, dim, missing, fill)
        if missing and len(array.devices()) > 1:
            function = jax.jit(_split_traced, static_argnums=(1, 2, 3, 4), out_shardings=sharding)
            return function(array, sharding, dim, missing, fill)
        return jax.device_put(_filled(array, dim, missing, fill), sharding)


def whole(array: jax.Array, placement: Layout, length: int, dim: int = 0) -> jax.Array:
    """A traced result without what was filled up; then it is on every device as a whole."""
    if placement.mesh is None or array.shape[dim] == length:
        return array
    array = _resharded(array, NamedSharding(placement.mesh, P()))
    return jax.lax.slice_in_dim(array, 0, length, axis=dim)


def _split_traced(
    array: jax.Array, sharding: NamedSharding, dim: int, missing: int, fill: Any
) -> jax.Array:
    if missing:
        # Explicit axes cannot be filled up while they are split.
        array = _resharded(array, NamedSharding(sharding.mesh, P()))
    return _resharded(_filled(array, dim, missing, fill), sharding)


def _resharded(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Where axes are Explicit the sharding is part of the type; else `jax.shard_map` sees to it."""
    mesh = sharding.mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if AxisType.Explicit not in kinds.values():
        return array
    kept = [
        tuple(name for name in _names(axis) if kinds[name] == AxisType.Explicit) or None
        for axis in sharding.spec
    ]
    now = jax.typeof(array).sharding.spec
    if not any(now) and not any(kept):
        return array
    return jax.reshard(array, NamedSharding(mesh, P(*kept)))


def _filled(array: jax.Array, dim: int, missing: int, fill: Any) -> jax.Array:
    if not missing:
        return array
    widths = [(0, missing * (axis == dim)) for axis in range(array.ndim)]
    how: Any = {"mode": "edge"} if fill is None else {"constant_values": fill}
    return jnp.pad(array, widths, **how)


def _split_host(
    array: Any, sharding: NamedSharding, dim: int, missing: int, fill: Any
) -> jax.Array:
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    shape = tuple(size + missing * (axis == dim) for axis, size in enumerate(array.shape))

    def part(index: Any) -> Any:
        own = array[index]
        if missing:
            places = np.arange(*index[dim].indices(shape[dim]))
            last = array.shape[dim] - 1
            own = np.take(array, np.minimum(places, last), axis=dim)
            if fill is not None:
                own[(slice(None),) * dim + (places > last,)] = fill
        # What leaves the range of the dtype becomes infinite, which the value checks then name.
        with np.errstate(over="ignore"):
            return np.asarray(own, dtype)

    return jax.make_array_from_callback(shape, sharding, part)
