"""What devices exchange inside `jax.shard_map`: numbers per gallery item, short lists per row.

`all_merge` is for every user's own `shard_map`. `Shard` knows which rows of a sharded axis a device
holds; what it returns is the same on all devices of that axis.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dbnorm_jax._src.core import checks, elementary, log_mean_exp, numerics
from dbnorm_jax._src.core.types import BankStatistics, LargestSimilarities
from dbnorm_jax._src.passes.selection import Nearest, argmax, filled, largest_of_columns
from dbnorm_jax._src.passes.streaming import scan_chunks

# One name of a mesh axis, several that act as one, or None: not sharded.
Axis = str | tuple[str, ...] | None
# Entries of neighbor lists from all devices held at once: 32 MiB with values and indices.
_GATHERED = 2**22


def all_merge(statistics: Any, axis_name: str | tuple[str, ...]) -> Any:
    """Statistics of the parts of a bank on each device -> those of the whole, on every device.

    What `merge` does to two, over a mesh axis inside `jax.shard_map`: masses and k-occurrences are
    summed, biases by the exponential mean; of largest similarities the k largest stay. Twelve
    numbers per gallery item cross the wire (k of LargestSimilarities).

    Args:
      statistics: BankStatistics or LargestSimilarities of this device's part of the bank; all parts
        on the same gallery items, with the same k (and beta).
      axis_name: the mesh axis, or axes, along which the bank is split.

    Returns:
      That of all parts together; differentiable.

    Raises:
      TypeError: other types.
      NameError: no such axis here, from JAX.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("bank",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> fit = jax.shard_map(
      ...     lambda part: dbn.all_merge(dbn.bank_statistics(part, beta=1.0), "bank"),
      ...     mesh=mesh, in_specs=jax.P("bank"), out_specs=jax.P())
      >>> print(fit(jnp.array([[0.0], [0.0]])).log_normalizer.round(4))    # log 2
      [0.6931]

    References:
      As `merge`.
    """
    checks.instance(
        "statistics",
        statistics,
        (BankStatistics, LargestSimilarities),
        "all_merge joins the statistics of parts of one bank",
    )
    if isinstance(statistics, LargestSimilarities):
        parts = gathered(statistics.values, axis_name, axis=-2)
        return dataclasses.replace(statistics, values=largest_of_columns(parts, statistics.k))
    parts, occurrence = numerics.varying_like(
        (statistics.means, statistics.k_occurrence), lax.axis_index(axis_name)
    )
    whole = log_mean_exp.merged_over(
        parts,
        statistics.beta[..., None],
        lax.axis_size(axis_name),
        partial(lax.pmax, axis_name=axis_name),
        partial(lax.psum, axis_name=axis_name),
    )
    counts = None if occurrence is None else lax.psum(occurrence, axis_name)
    return dataclasses.replace(statistics, **whole._asdict(), k_occurrence=counts)


def gathered(array: jax.Array, axis_name: str | tuple[str, ...], *, axis: int) -> jax.Array:
    """The arrays of all devices side by side along `axis`, the same on every device."""
    array = numerics.varying_like(array, lax.axis_index(axis_name))
    return lax.all_gather(array, axis_name, axis=axis % array.ndim, tiled=True, to="invarying")


class Shard(NamedTuple):
    """A device's rows of an array whose leading axis is split evenly, padding last."""

    axis: Axis  # None: every device holds all rows
    num_shards: int  # devices along the axis
    total: int  # rows in all, without padding

    @property
    def size(self) -> int:
        """Rows per device."""
        return -(-self.total // self.num_shards)

    @property
    def start(self) -> jax.Array | int:
        """Index of this device's first row."""
        return 0 if self.axis is None else lax.axis_index(self.axis).astype(jnp.int32) * self.size

    @property
    def missing(self) -> int:
        """Rows of padding on all devices."""
        return self.size * self.num_shards - self.total

    @property
    def valid(self) -> jax.Array | None:
        """[size] bool, False on padding; None where no device has any."""
        if not self.missing:
            return None
        return lax.iota(jnp.int32, self.size) < jnp.clip(self.total - self.start, 0, self.size)

    def local(self, rows: jax.Array) -> jax.Array:
        """Indices of rows as this device's own; beyond them (`size`) where another has the row."""
        own = rows - self.start
        return jnp.where((own >= 0) & (own < self.size), own, self.size)

    def sum(self, array: jax.Array) -> jax.Array:
        return array if self.axis is None else lax.psum(array, self.axis)

    def maximum(self, array: jax.Array) -> jax.Array:
        """Without a gradient."""
        return array if self.axis is None else lax.pmax(lax.stop_gradient(array), self.axis)

    def take(self, array: jax.Array, rows: jax.Array) -> jax.Array:
        """[..., num] columns of [..., size] by global index, from the devices that hold them."""
        if self.axis is None:
            return array[..., rows]
        own = self.local(rows)
        values = array[..., jnp.where(own < self.size, own, 0)]
        mine = jnp.broadcast_to(own < self.size, values.shape)
        if values.dtype == bool:
            return lax.psum((values & mine).astype(jnp.int32), self.axis) > 0
        return lax.psum(jnp.where(mine, values, 0), self.axis)

    def first(self, nearest: Nearest) -> jax.Array:
        """[...] global index of the nearest item of all devices, the lowest of equals, or -1."""
        if self.axis is None:
            return nearest.indices
        best = lax.pmax(lax.stop_gradient(nearest.values), self.axis)
        found = (nearest.values == best) & (nearest.indices >= 0)
        index = lax.pmin(jnp.where(found, nearest.indices + self.start, self.total), self.axis)
        return jnp.where(index < self.total, index, -1)

    def nearest(self, nearest: Nearest, k: int) -> Nearest:
        """The k nearest of all devices' lists [num_rows, places], with global indices.

        Lists are best first, with index -1 where there are fewer.
        """
        if self.axis is None:
            return nearest
        places = nearest.values.shape[1]
        # What is there ranks above what is not, also where its score is no number.
        exists = nearest.indices >= 0
        values = jnp.where(exists, numerics.below_every_number(nearest.values), -jnp.inf)
        lists = Nearest(values, nearest.indices + self.start)

        def merge_rows(carry: None, block: Any) -> tuple[None, Nearest]:
            # In the order of the devices, so equal values keep the order of the gallery.
            merged = Nearest(*(gathered(part, self.axis or (), axis=1) for part in block.rows))

            def one(values: jax.Array, indices: jax.Array) -> Nearest:
                keys = lax.stop_gradient(values)
                chosen = argmax(keys)[1][None] if k == 1 else elementary.top_k(keys, k)[1]
                return Nearest(values[chosen], indices[chosen])

            return carry, jax.vmap(one)(*merged)

        rows = max(1, _GATHERED // (places * self.num_shards))
        return Nearest(*filled(*scan_chunks(merge_rows, None, lists, rows)[1]))
