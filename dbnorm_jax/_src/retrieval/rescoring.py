"""The results of a raw search, corrected: what any index returns, sorted again.

    score(q, g) = s(q, g) - sum_t gate_t(q) bias_t(g), over the items g that the index has found

On the host NumPy computes it, so that a server of requests of any shape compiles nothing; under a
caller's transformation the same lines run in JAX.
"""

import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dbnorm_jax._src.core import checks, numerics, seen
from dbnorm_jax._src.core.types import Correction, SearchResult

# The bias [num_terms, num_gallery] and the activation set.
_Fields = tuple[Any, Any]


def rescore(
    results: SearchResult | tuple[ArrayLike, ArrayLike],
    correction: Correction,
    *,
    k: int | None = None,
    exclude: ArrayLike | None = None,
    where: ArrayLike | None = None,
    gates: ArrayLike | None = None,
) -> SearchResult:
    """Corrects the results of a raw search in any index, and sorts them again.

    An item that the index has not fetched is not found: fetch several times k. NumPy computes
    concrete arrays and compiles nothing.

    Args:
      results: raw scores [num_queries, fetched] and gallery rows [num_queries, fetched], in any
        order, as faiss returns them: similarities, larger = nearer, in the unit of the correction
        (hnswlib and usearch return `1 - similarity` as a distance, and the rows first). Row -1 is
        a missing place, whatever its score. An item that is there twice counts once.
      correction: with fields [num_terms, num_gallery].
      k: neighbors per query, between 1 and fetched; as many as were fetched when None (static).
      exclude: int [num_queries] or [num_queries, most], gallery rows a query never sees, -1 = none.
      where: bool [num_gallery], the items that are there.
      gates: [num_queries, num_terms]; when None, those of each query's nearest item by raw score.

    Returns:
      SearchResult of [num_queries, k], best first, ties to the lowest gallery index; score -inf and
      index -1 in places left. Of all gallery items it is what `top_k` returns. Arrays of NumPy
      where both results are none of JAX.

    Raises:
      ValueError: scores that are not finite, rows out of range, shapes that do not fit.
      TypeError: scores that are not floating point, rows that are no integers, no Correction.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> correction = dbn.Correction(bias=jnp.array([[0.5, 0.0, 0.25]]))
      >>> fetched = np.array([[1.0, 0.75, -np.inf]], np.float32), np.array([[0, 1, -1]])
      >>> scores, indices = dbn.rescore(fetched, correction)
      >>> print(scores, indices)
      [[0.75 0.5  -inf]] [[ 1  0 -1]]
    """
    checks.instance("correction", correction, Correction, "make it with one of the normalizers")
    checks.unbatched(correction)
    scores, rows = _checked(results, correction.num_gallery)
    num_queries, fetched = rows.shape
    k = checks.neighbors("k", k, fetched, high=fetched, of=" (items fetched)")
    unseen = seen.exclusions(exclude, num_queries, correction.num_gallery, rows="queries")
    there = seen.items(where, correction.num_gallery)
    gates = seen.gates(gates, correction, num_queries)
    if not checks.is_concrete((scores, rows, correction, unseen, there, gates)):
        checks.correction(correction, Correction)
        scores, rows = checks.unsplit((jnp.asarray(scores), jnp.asarray(rows)))
        fields = checks.unsplit((correction.bias, correction.active))
        return _rescored(jnp, scores, rows, fields, unseen, there, gates, k=k)
    options = (None if one is None else np.asarray(one) for one in (unseen, there, gates))
    found = _rescored(np, scores, rows, _on_host(correction), *options, k=k)
    if any(isinstance(part, jax.Array) for part in results):
        return SearchResult(*map(jax.device_put, found))
    return found


# Fields of JAX's arrays, which nothing changes: a server checks and copies its correction once.
_HELD: "weakref.WeakKeyDictionary[Correction, _Fields]" = weakref.WeakKeyDictionary()


def _on_host(correction: Correction) -> _Fields:
    """Bias and activation set in NumPy, checked."""
    held = _HELD.get(correction)
    if held is not None:
        return held
    checks.correction(correction, Correction)
    given = correction.bias, correction.active
    bias, active = (None if one is None else np.asarray(one) for one in checks.unsplit(given))
    if all(one is None or isinstance(one, jax.Array) for one in given):
        _HELD[correction] = bias, active
    return bias, active


def _checked(results: Any, num_gallery: int) -> tuple[Any, Any]:
    """Scores, 0 in missing places, and int32 rows; in NumPy unless they are traced."""
    try:
        scores, rows = results
    except (TypeError, ValueError):
        raise checks.BadTypeError(
            "results", f" must be a pair (scores, indices), got {type(results).__name__}"
        ) from None
    rows = checks.integers("results.indices", rows, low=-1, high=num_gallery, ndim=2)
    scores = checks.numeric("results.scores", scores)
    if scores.shape != rows.shape or 0 in rows.shape:
        raise checks.BadValueError(
            "results.scores",
            " and ",
            "results.indices",
            f" must have one shape [num_queries, fetched] with at least one place, got "
            f"{scores.shape} and {rows.shape}",
        )
    if not checks.is_concrete(scores, rows):
        scores = checks.floating("results.scores", scores)
        return scores, rows.astype(jnp.int32)
    scores, rows = np.asarray(scores), np.asarray(rows).astype(np.int32)
    if scores.dtype.kind != "f":
        scores = np.asarray(checks.floating("results.scores", scores, finite=False))
    # Engines write anything where they found nothing.
    scores = np.where(rows < 0, np.zeros((), scores.dtype), scores)
    dtype = jax.dtypes.canonicalize_dtype(scores.dtype)
    if scores.dtype != dtype or not np.isfinite(scores).all():
        scores = np.asarray(checks.floating("results.scores", scores))
    return scores, rows


def _rescored(
    xp: Any,
    scores: Any,
    rows: Any,
    fields: _Fields,
    unseen: Any,
    there: Any,
    gates: Any,
    *,
    k: int,
) -> SearchResult:
    """The formula, in NumPy or JAX (`xp`)."""
    dtype = numerics.accumulation_dtype(scores.dtype, fields[0].dtype)
    scores = scores.astype(dtype)
    # In order of index: then the first of level items is that of the lowest index.
    order = xp.lexsort((-scores, rows))
    scores, rows = (xp.take_along_axis(array, order, axis=1) for array in (scores, rows))
    none = xp.zeros((len(rows), 1), bool)
    again = xp.concatenate([none, rows[:, 1:] == rows[:, :-1]], axis=1)
    found = (rows >= 0) & ~again
    if there is not None:
        found = found & there[rows]
    if unseen is not None:
        found = found & (rows[..., None] != unseen[:, None]).all(axis=-1)
    least = xp.finfo(dtype).min
    raw = xp.where(found, _numbers(xp, scores, least), -xp.inf)
    corrected = scores - _offsets(xp, raw, rows, fields, gates)
    scores = xp.where(found, _numbers(xp, corrected, least), -xp.inf)
    best = xp.lexsort((-scores,))[:, :k]
    scores, rows = (xp.take_along_axis(array, best, axis=1) for array in (scores, rows))
    rows = xp.where(scores > -xp.inf, rows, -1)
    return SearchResult(xp.where(scores > least, scores, -xp.inf), rows)


def _numbers(xp: Any, scores: Any, least: Any) -> Any:
    """NaN, which a caller's jit lets in, and -inf as the lowest number: -inf means no item."""
    return xp.where(scores >= least, scores, least)


def _offsets(xp: Any, raw: Any, rows: Any, fields: _Fields, gates: Any) -> Any:
    """[num_queries, fetched], what is subtracted."""
    bias, active = fields
    terms = [term[rows].astype(raw.dtype) for term in bias]
    if gates is None and active is None:
        return sum(terms)
    if gates is None:
        nearest = raw.argmax(axis=1)[:, None]
        acts = xp.take_along_axis(raw, nearest, axis=1) > -xp.inf
        nearest = xp.take_along_axis(rows, nearest, axis=1)[:, 0]
        gates = xp.where(acts, active[:, nearest].T.astype(raw.dtype), 0)
    gates = gates.astype(raw.dtype)
    return sum(gates[:, number, None] * term for number, term in enumerate(terms))
