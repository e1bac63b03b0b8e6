"""The places of each right item in a gallery that is split over devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dbnorm_jax._src.core import numerics
from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.passes import counts
from dbnorm_jax._src.passes.nearest import nearest_items
from dbnorm_jax._src.passes.selection import Nearest, filled
from dbnorm_jax._src.places.mesh import layout
from dbnorm_jax._src.places.mesh.drive import Seen, Split, _over_gates, _specs


@partial(jax.jit, static_argnames="split")
def places(
    queries: jax.Array,
    gallery: jax.Array,
    correction: Correction | None,
    seen: Seen,
    right: jax.Array,
    *,
    split: Split,
) -> tuple[jax.Array, jax.Array]:
    """[num_rows, most] int32 items above each of `right`, and level with it, itself included.

    `right` [num_rows, most] are gallery rows, padded with -1, none repeated; of those that are not
    seen none is level.
    """
    items = split.items
    dtype = numerics.accumulation_dtype(queries.dtype, gallery.dtype)

    def local(queries: Any, gallery: Any, correction: Any, seen: Seen, right: Any) -> Any:
        options = seen.options(split)
        search = partial(nearest_items, queries, gallery, **options)
        own = items.local(right)
        own = jnp.where((right >= 0) & (own < items.size), own, -1)
        own = counts.seen_right(own, options["unseen"], options["valid"])

        def count(offsets: Any, mixtures: Any) -> tuple[Any, jax.Array]:
            ahead, nearest = counts.count_ahead_of_each(
                queries, gallery, own, offsets, mixtures, merge_best=items.maximum, **options
            )
            return ahead, items.first(Nearest(*filled(*nearest)))

        found = _over_gates(count, search, correction, seen, items, dtype)
        above, level = jax.tree.map(items.sum, found)
        there = items.sum((own >= 0).astype(jnp.int32))
        return above, (level + 1) * there

    arrays, rows = (queries, gallery, correction, seen, right), P(split.rows.axis)
    above, level = split.on_devices(local, arrays, (*_specs(split), rows), rows)
    return (
        layout.whole(above, split.placement, split.num_rows),
        layout.whole(level, split.placement, split.num_rows),
    )
