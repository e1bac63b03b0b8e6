"""Saving and loading fitted state: one .npz of plain arrays by field name, checked and atomic.

`numpy.load(path)` opens such a file too. Nothing in it is ever unpickled or executed.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.log_mean_exp import Means
from dbnorm_jax._src.core.prepared import PreparedGallery, prepared
from dbnorm_jax._src.core.similarity import SIMILARITIES, check_rows, name_of, named
from dbnorm_jax._src.core.text import printable
from dbnorm_jax._src.core.types import BankStatistics, Correction, LargestSimilarities
from dbnorm_jax._src.files import archives
from dbnorm_jax._src.files import provenance as provenances
from dbnorm_jax._src.files.archives import Archive, Arrays, Fields
from dbnorm_jax._src.tuning.choice import (
    COLUMNS,
    EXTRAS,
    GRIDS,
    RAW,
    REASONS,
    Choice,
    is_gated,
    is_known,
    required,
)

Array = np.ndarray[Any, np.dtype[Any]]
State = BankStatistics | LargestSimilarities | Correction | Choice | PreparedGallery


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """What is kept of a PreparedGallery: all that it is made of again."""

    gallery: jax.Array
    bias: jax.Array | None  # of its correction
    active: jax.Array | None
    query_centre: jax.Array | None
    similarity: str | None = dataclasses.field(metadata={"static": True})  # of the correction
    similarity_fn: str = dataclasses.field(metadata={"static": True})

    @staticmethod
    def of(state: PreparedGallery) -> "_Kept":
        name = name_of(state.similarity_fn)
        if name is None:
            raise checks.BadValueError(
                "state",
                f" must be prepared under {', '.join(SIMILARITIES)} to be saved, got another "
                f"similarity; save its gallery and its correction",
            )
        bias = active = similarity = None
        if state.correction is not None:
            bias, active = state.correction.bias, state.correction.active
            similarity = state.correction.similarity
        return _Kept(state.gallery, bias, active, state.query_centre, similarity, name)

    def prepared(self) -> PreparedGallery:
        correction = None
        if self.bias is not None:
            correction = Correction(self.bias, self.active, self.similarity)
        return prepared(self.gallery, correction, named(self.similarity_fn), self.query_centre)


_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (BankStatistics, LargestSimilarities, Correction, Choice)
} | {PreparedGallery.__name__: _Kept}
_SAVED = (BankStatistics, LargestSimilarities, Correction, Choice, PreparedGallery)


# What bank statistics were kept as before they were means.
_SUMS = frozenset({"log_normalizer", "mass", "beta", "k_occurrence"})
# What a choice was kept as before it was a mixture: the place of one candidate, gates and all.
_ONE_CHOSEN = frozenset(
    {
        *("chosen", "method", *COLUMNS, "gain", "standard_error", "p_value"),
        *("reciprocal_rank_gain", "recall_gain", "spreads", "active_share", "open_share"),
        *("own_share", "num_equal_rows"),
    }
) - {"temperature", *EXTRAS}
_EARLIER = {BankStatistics: (_SUMS, 3), Choice: (_ONE_CHOSEN, 4)}


def _fields(kind: type[Any]) -> Fields:
    fields = dataclasses.fields(kind)
    static = {field.name: field.default for field in fields if field.metadata.get("static")}
    arrays = frozenset(field.name for field in fields) - static.keys()
    later = {name: value for name, value in static.items() if value is not dataclasses.MISSING}
    return Fields(frozenset(static), arrays, later, *_EARLIER.get(kind, ()))


_FIELDS = {name: _fields(kind) for name, kind in _KINDS.items()}


def save(
    path: str | os.PathLike[str], state: State, *, provenance: Mapping[str, Any] | None = None
) -> None:
    """Writes statistics, a correction, a choice or a gallery to one .npz, whole or not at all.

    Args:
      path: the file, by this very name; an existing one is replaced, a symbolic link too, and not
        what it leads to.
      state: concrete BankStatistics, LargestSimilarities, Correction, tuning.Choice or
        PreparedGallery; of the last what it is made of, without the copy in bfloat16.
      provenance: optional, what the state was made from: text, numbers, lists and dicts, for
        instance {"gallery": out_of_core.fingerprint(gallery)}. `dbnorm fit` writes one and `dbnorm
        merge` compares them. What they read again has a form of its own: "gallery" is a fingerprint
        like this, "parts" a list of them, "similarity" is "cosine", "dot" or "euclidean". Another
        form is written with a warning, and commands refuse the file. All other names are yours.

    Raises:
      TypeError: another type, values inside a jit, a dtype that .npy has no name for (bfloat16), a
        provenance that JSON has no form for.
      ValueError: fields whose shapes or values cannot be, a provenance that is too long.
      OSError: the file cannot be written; an existing one is then unchanged.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "query_bank.npz"
      >>> dbn.save(path, dbn.bank_statistics(jnp.array([[0.5, 0.25]]), beta=2.0))
      >>> print(dbn.load(path).bias, sorted(p.name for p in path.parent.iterdir()))
      [0.5  0.25] ['query_bank.npz']
    """
    checks.instance("state", state, _SAVED, "save takes fitted state")
    if not checks.is_concrete(state):
        raise checks.BadTypeError(
            "state", " must be concrete to be saved, got values traced by jit or vmap"
        )
    kept_of = _Kept.of(state) if isinstance(state, PreparedGallery) else state
    arrays, static = _parts(kept_of)
    for name, array in arrays.items():
        if array.dtype.kind not in "fib":
            raise checks.BadTypeError(
                f"state.{name}",
                f" must have a dtype that .npy can name, got {array.dtype}; convert "
                f"it with .astype('float32')",
            )
    _check_state("state", type(kept_of), arrays, static)
    kept = provenances.plain(provenance)
    try:
        provenances.checked("provenance", kept)
    except ValueError as error:
        warnings.warn(f"{error}; commands refuse the file as it is", UserWarning, stacklevel=2)
    archives.write(Path(path), Archive(type(state).__name__, static, arrays, kept))


def load(path: str | os.PathLike[str]) -> State:
    """Reads what `save` wrote, after checking all of it.

    Args:
      path: the file.

    Returns:
      What was saved, bit by bit.

    Raises:
      ValueError: not such a file, damaged, of a newer format, or float64 while x64 is off.
      OSError: the file cannot be read.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> dbn.load(__file__)
      Traceback (most recent call last):
      ValueError: ...: expected an .npz written by dbnorm_jax.save, got other contents
    """
    path = Path(path)
    name, static, arrays, _ = archives.read(path, _FIELDS)
    kind = _KINDS[name]
    if "log_normalizer" in arrays:
        arrays = _of_sums(printable(path), arrays)
    if "chosen" in arrays:
        arrays = _of_one_chosen(printable(path), arrays)
    if kind is Choice and "gain" in arrays:  # older files have none of these
        arrays = dict.fromkeys(EXTRAS, np.zeros_like(arrays["gain"])) | arrays
    if "methods" in static:
        static = static | {"methods": tuple(static["methods"])}
    _check_state(printable(path), kind, arrays, static)
    wide = [field for field, array in arrays.items() if array.dtype == np.float64]
    if wide and not jax.config.jax_enable_x64:  # type: ignore[attr-defined, unused-ignore]
        raise ValueError(
            f"{printable(path)}: holds float64 ({', '.join(wide)}), which JAX would round to "
            f"float32; load it within jax.enable_x64(True)"
        )
    values = {name: jnp.asarray(array) for name, array in arrays.items()} | static
    found = kind(**dict.fromkeys(_FIELDS[name].arrays) | values)
    return found.prepared() if isinstance(found, _Kept) else found


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What the state in a file was made from, without reading the state.

    Args:
      path: the file.

    Returns:
      What was given to `save` as provenance; None where nothing was.

    Raises:
      ValueError: not such a file, or of a newer format.
      OSError: the file cannot be read.

    Examples:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "correction.npz"
      >>> correction = dbn.Correction(bias=jnp.array([[0.3, 0.1]]), active=None)
      >>> dbn.save(path, correction, provenance={"encoder": "v2"})
      >>> print(dbn.read_provenance(path))
      {'encoder': 'v2'}
    """
    found: dict[str, Any] | None = read_header(path).get("provenance")
    return found


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of `save` says of itself: provenance, sha256 of all that it holds, and more."""
    return archives.read_header(Path(path), _FIELDS)


def _parts(state: Any) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and the static fields, None left out."""
    arrays: Arrays = {}
    static: dict[str, Any] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if field.metadata.get("static"):
            is_named = field.name in ("similarity", "similarity_fn", "methods")
            static[field.name] = value if is_named else int(value)
        elif value is not None:
            arrays[field.name] = np.asarray(value)
    return arrays, static


def _of_sums(name: str, arrays: Arrays) -> Arrays:
    """The arrays of bank statistics from the sums that older files hold, to their digits."""
    log_normalizer, mass, beta = (arrays.get(field) for field in ("log_normalizer", "mass", "beta"))
    if (
        log_normalizer is None
        or mass is None
        or beta is None
        or (mass.shape, beta.shape) != (log_normalizer.shape, log_normalizer.shape[:-1])
    ):
        raise ValueError(f"{name}: expected log_normalizer, mass and beta, of shapes that fit")
    for field, right, expected in (
        ("log_normalizer", log_normalizer < np.inf, "free of NaN and +inf"),
        ("mass", (mass >= 0) & (mass < np.inf), "finite and at least 0"),
        ("beta", (beta > 0) & (beta < np.inf), "positive and finite"),
    ):
        if not right.all():
            raise ValueError(f"{name}: expected {field} to be {expected}")
    filled, dtype = mass > 0, log_normalizer.dtype
    with np.errstate(all="ignore"):  # what comes of it is checked
        log_mean = log_normalizer.astype(float) - np.log(np.where(filled, mass, 1).astype(float))
        exact = np.where(filled, log_mean / beta.astype(float)[..., None], 0)
        bias = exact.astype(dtype)
        rest = (exact - bias).astype(dtype)
    nothing = np.zeros_like(mass)
    means = Means(bias, rest, mass, nothing, nothing.astype(np.int32))  # type: ignore[arg-type]
    kept = {field: array for field, array in arrays.items() if field in ("beta", "k_occurrence")}
    return {**means._asdict(), **kept}


def _of_one_chosen(name: str, arrays: Arrays) -> Arrays:
    """The arrays of a choice from those that older files hold: all of one candidate."""
    chosen, gain, spreads = (arrays.get(field) for field in ("chosen", "gain", "spreads"))
    if (
        chosen is None
        or gain is None
        or spreads is None
        or (chosen.shape, gain.ndim, spreads.shape) != ((), 1, (2,))
        or chosen.dtype.kind != "i"
        or not 0 <= int(chosen) < len(gain)
    ):
        raise ValueError(f"{name}: expected chosen, a place in gain, and spreads of both banks")
    frequency = (np.arange(len(gain)) == int(chosen)).astype(gain.dtype)
    kept = {
        field: array
        for field, array in arrays.items()
        if field not in ("chosen", "spreads", "active_share", "open_share")
    }
    limits = np.full(2, 0 if int(chosen) == 0 else -1, gain.dtype)  # -1: nothing is known
    temperature = np.zeros_like(gain)
    found = {"frequency": frequency, "temperature": temperature, "limits": limits}
    return {**kept, **found, "spread": spreads[:1].reshape(())}


def _check_state(name: str, kind: type[Any], arrays: Arrays, static: dict[str, Any]) -> None:
    """Raises unless the fields fit together as their types declare."""

    def expect(condition: bool, field: str, expected: str) -> None:
        if not condition:
            array = arrays.get(field)
            actual = "none" if array is None else f"{array.dtype} of shape {array.shape}"
            raise ValueError(f"{name}: expected {field} to be {expected}, got {actual}")

    def floats(field: str) -> np.ndarray[Any, np.dtype[Any]]:
        expect(field in arrays and arrays[field].dtype.kind == "f", field, "floating point")
        return arrays[field]

    known = (None, *SIMILARITIES)
    expect(static.get("similarity") in known, "similarity", f"one of {', '.join(map(str, known))}")
    if kind is _Kept:
        _check_gallery(name, expect, arrays, static)
    elif kind is Correction:
        _check_correction(expect, floats("bias"), arrays.get("active"))
    elif kind is Choice:
        _check_choice(expect, arrays, static)
    elif kind is LargestSimilarities:
        values = floats("values")
        expect(values.ndim >= 2 and 0 not in values.shape[-2:], "values", "[..., k, num_gallery]")
        expect(bool((values < np.inf).all()), "values", "free of NaN and +inf")
        ordered = bool((values[..., 1:, :] <= values[..., :-1, :]).all())
        expect(ordered, "values", "sorted, best first")
    else:
        shape, beta, k = floats("bias").shape, floats("beta"), static["k"]
        expect(len(shape) >= 1 and shape[-1] > 0, "bias", "[..., num_gallery]")
        for field in Means._fields[:-1]:
            expect(floats(field).shape == shape, field, f"of the shape of bias {shape}")
            expect(bool(np.isfinite(arrays[field]).all()), field, "finite")
        expect(bool((arrays["weight"] >= 0).all()), "weight", "at least 0")
        exponent = arrays.get("weight_exponent", np.zeros(0))
        expect(exponent.dtype == np.int32, "weight_exponent", "int32")
        expect(exponent.shape == shape, "weight_exponent", f"of the shape of bias {shape}")
        expect(beta.shape == shape[:-1], "beta", f"of shape {shape[:-1]}")
        expect(bool(((beta > 0) & (beta < np.inf)).all()), "beta", "positive and finite")
        expect(0 <= k <= shape[-1], "k", f"between 0 and {shape[-1]}")
        expect(("k_occurrence" in arrays) == (k > 0), "k_occurrence", "there iff k >= 1")
        if "k_occurrence" in arrays:
            counts = arrays["k_occurrence"]
            expect(counts.dtype == np.int32, "k_occurrence", "int32")
            expect(counts.shape == shape, "k_occurrence", f"of the shape of bias {shape}")
            expect(bool((counts >= 0).all()), "k_occurrence", "at least 0")


def _check_correction(
    expect: Callable[[bool, str, str], None], bias: Array, active: Array | None
) -> None:
    expect(bias.ndim >= 2 and 0 not in bias.shape[-2:], "bias", "[..., num_terms, num_gallery]")
    expect(bool(np.isfinite(bias).all()), "bias", "finite")
    if active is not None:
        expect(active.shape == bias.shape, "active", f"of the shape of bias {bias.shape}")
        expect(active.dtype.kind in "bf", "active", "bool or floating point")
        expect(bool(((active >= 0) & (active <= 1)).all()), "active", "in [0, 1]")


def _check_gallery(
    name: str,
    expect: Callable[[bool, str, str], None],
    arrays: Arrays,
    static: dict[str, Any],
) -> None:
    known = static["similarity_fn"] in SIMILARITIES
    expect(known, "similarity_fn", f"one of {', '.join(SIMILARITIES)}")
    nothing: Any = np.zeros(0, int)
    gallery, bias, center = (arrays.get(field) for field in ("gallery", "bias", "query_centre"))
    gallery = nothing if gallery is None else gallery
    right = gallery.ndim == 2 and gallery.size > 0 and gallery.dtype.kind == "f"
    expect(right, "gallery", "floating point, [num_gallery, dim]")
    expect(bool(np.isfinite(gallery).all()), "gallery", "finite")
    compared: Any = gallery
    try:
        check_rows(named(static["similarity_fn"]), gallery=compared)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if center is not None:
        right = center.dtype.kind == "f" and center.shape == gallery.shape[1:]
        expect(right and bool(np.isfinite(center).all()), "query_centre", "finite, [dim]")
    if bias is None:
        expect("active" not in arrays, "active", "absent without a bias")
        return
    right = bias.dtype.kind == "f" and bias.ndim == 2 and bias.shape[1:] == gallery.shape[:1]
    expect(right, "bias", f"floating point, [num_terms, {len(gallery)}]")
    _check_correction(expect, bias, arrays.get("active"))


_SHAPES = {"spread": (), "limits": (2,), "own_share": (2,), "num_equal_rows": (3,)}
_WHOLE = ("method", "k", "num_equal_rows")


def _check_choice(
    expect: Callable[[bool, str, str], None], arrays: Arrays, static: dict[str, Any]
) -> None:
    length = arrays["method"].shape[:1] if "method" in arrays else (0,)
    expect("method" in arrays and 0 not in length, "method", "[num_candidates]")
    for field in (field.name for field in dataclasses.fields(Choice) if not field.metadata):
        shape = _SHAPES.get(field, length)
        expect(field in arrays and arrays[field].shape == shape, field, f"of shape {shape}")
        kind, name = ("i", "integer") if field in _WHOLE else ("f", "floating point")
        expect(arrays[field].dtype.kind == kind, field, name)
        expect(bool(np.isfinite(arrays[field]).all()), field, "finite")
    method, frequency, methods = arrays["method"], arrays["frequency"], static["methods"]
    known = len(methods) > 0 and methods[0] == RAW and all(map(is_known, methods))
    expect(known, "methods", "raw first, then methods of this version")
    known = bool(((method >= 0) & (method < len(methods))).all()) and int(method[0]) == 0
    expect(known, "method", f"raw (0) first, then below {len(methods)}")
    shares = bool((frequency >= 0).all()) and abs(float(frequency.sum()) - 1) < 1e-3
    expect(shares, "frequency", "shares that sum to 1")
    mixed = method[frequency > 0]
    alone = len(mixed) == 1 or not any(is_gated(methods[place]) for place in mixed)
    expect(alone, "frequency", "1 for a method with a gate")
    for place, name in enumerate(methods):
        rows = (method == place) & (frequency > 0)
        for field in required(name):
            expect(bool((arrays[field][rows] > 0).all()), field, f"above 0 for {name}")
    expect(bool((arrays["half_life"] >= 0).all()), "half_life", "at least 0")
    for field, values in (("reason_code", REASONS), ("grid_code", GRIDS)):
        expect(0 <= static[field] < len(values), field, f"below {len(values)}")
    for field in ("num_gallery_bank", "num_wrong_pairs"):
        expect(static[field] >= 0, field, "at least 0")
