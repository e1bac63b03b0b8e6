"""Saving and loading fitted state: one .npz of plain arrays by field name, checked and atomic.

    header           JSON text: kind, format version, library version, static fields, the dtype and
                     shape of every array, and the SHA-256 of all that
    log_normalizer   the arrays, by the names of the fields of the state
    ...

`numpy.load(path)` opens such a file too. Nothing in it is ever unpickled or executed.

    >>> import dbnorm_jax as dbn
    >>> import jax.numpy as jnp
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "correction.npz"
    >>> dbn.save(path, dbn.Correction(bias=jnp.array([[0.3, 0.1]]), active=None))
    >>> print(dbn.load(path).bias)
    [[0.3 0.1]]
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax
from dbnorm_jax._src import binary_files, checks
from dbnorm_jax._src.choices import METHODS, REASONS, Choice
from dbnorm_jax._src.types import BankStatistics, Correction, LargestSimilarities

State = BankStatistics | LargestSimilarities | Correction | Choice

FORMAT_VERSION = 1
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (BankStatistics, LargestSimilarities, Correction, Choice)
}
_HEADER = "header"
_LARGEST_HEADER = 2**20
_BROKEN = "the file is damaged: copy or write it again"

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def save(path: str | os.PathLike[str], state: State) -> None:
    """Writes statistics, a correction or a choice to one .npz, whole or not at all.

    Args:
      path: the file, by this very name; an existing one is replaced.
      state: concrete BankStatistics, LargestSimilarities, Correction or tuning.Choice.

    Raises:
      TypeError: another type, values inside a jit, a dtype that .npy has no name for (bfloat16).
      ValueError: fields whose shapes or values cannot be.
      OSError: the file cannot be written; an existing one is then unchanged.

    Example:
      >>> import dbnorm_jax as dbn
      >>> import jax.numpy as jnp
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "query_bank.npz"
      >>> dbn.save(path, dbn.bank_statistics(jnp.array([[0.5, 0.25]]), beta=2.0))
      >>> print(dbn.load(path).log_normalizer, sorted(p.name for p in path.parent.iterdir()))
      [1.  0.5] ['query_bank.npz']
    """
    checks.instance("state", state, tuple(_KINDS.values()), "save takes fitted state")
    if not checks.is_concrete(state):
        raise TypeError("`state` must be concrete to be saved, got values traced by jit or vmap")
    arrays, static = _parts(state)
    for name, array in arrays.items():
        if array.dtype.kind not in "fib":
            raise TypeError(
                f"`state.{name}` must have a dtype that .npy can name, got {array.dtype}; convert "
                f"it with .astype('float32')"
            )
    _check_state("state", type(state), arrays, static)
    header = {
        "kind": type(state).__name__,
        "format_version": FORMAT_VERSION,
        "library": f"dbnorm_jax {dbnorm_jax.__version__}",
        "static": static,
        "arrays": {name: _description(array) for name, array in arrays.items()},
    }
    header["sha256"] = _digest(header, arrays)
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **{_HEADER: np.array(json.dumps(header))}, **arrays)
    binary_files.replace_file(Path(path), stream.getvalue())


def load(path: str | os.PathLike[str]) -> State:
    """Reads what `save` wrote, after checking all of it.

    Args:
      path: the file.

    Returns:
      What was saved, bit by bit.

    Raises:
      ValueError: not such a file, damaged, of a newer format, or float64 while x64 is off.
      OSError: the file cannot be read.

    Example:
      >>> import dbnorm_jax as dbn
      >>> dbn.load(__file__)
      Traceback (most recent call last):
      ValueError: ...: expected an .npz written by dbnorm_jax.save, got other contents
    """
    path = Path(path)
    with path.open("rb") as file:
        header, arrays = _read_file(path, file)
    kind, static = _KINDS[header["kind"]], header["static"]
    for name, array in arrays.items():
        if header["arrays"][name] != _description(array):
            raise ValueError(
                f"{path}: expected {name} to be {header['arrays'][name]}, got "
                f"{_description(array)}; {_BROKEN}"
            )
    digest = header.pop("sha256")
    if digest != _digest(header, arrays):
        raise ValueError(f"{path}: expected SHA-256 {digest}, got another; {_BROKEN}")
    _check_state(str(path), kind, arrays, static)
    wide = [name for name, array in arrays.items() if array.dtype == np.float64]
    if wide and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError(
            f"{path}: holds float64 ({', '.join(wide)}), which JAX would round to float32; load it "
            f"within jax.enable_x64(True)"
        )
    fields = {field.name for field in dataclasses.fields(kind)}
    values = {name: jnp.asarray(arrays[name]) for name in fields & arrays.keys()} | static
    return kind(**dict.fromkeys(fields) | values)


def _parts(state: State) -> tuple[Arrays, dict[str, int]]:
    """The arrays and the static fields, None left out."""
    arrays: Arrays = {}
    static: dict[str, int] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if field.metadata.get("static"):
            static[field.name] = int(value)
        elif value is not None:
            arrays[field.name] = np.asarray(value)
    return arrays, static


def _description(array: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def _digest(header: dict[str, Any], arrays: Arrays) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _refusal(path: Path, contents: str) -> ValueError:
    return ValueError(f"{path}: expected an .npz written by dbnorm_jax.save, got {contents}")


def _read_file(path: Path, file: BinaryIO) -> tuple[dict[str, Any], Arrays]:
    size = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            header = _read_header(path, archive, size)
            return header, {name: _read(path, archive, name, size) for name in header["arrays"]}
    # A damaged archive may also lead zipfile to seek to nowhere.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        contents = "other contents"
        if zipfile.is_zipfile(file):
            contents = f"a damaged archive ({error})"
        raise _refusal(path, contents) from None


def _read_header(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, Any]:
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    if len(names) != len(archive.namelist()) or _HEADER not in names:
        raise _refusal(path, f"members {', '.join(sorted(archive.namelist())[:8])}")
    array = _read(path, archive, _HEADER, min(size, _LARGEST_HEADER))
    header: Any = None
    if array.dtype.kind == "U" and not array.ndim:
        with contextlib.suppress(ValueError, RecursionError):
            header = json.loads(str(array[()]))
    if not isinstance(header, dict):
        raise _refusal(path, "a header that is none")
    kind, version = header.get("kind"), header.get("format_version")
    if not isinstance(kind, str) or type(version) is not int:
        raise _refusal(path, "a header without kind and format version")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: expected format version {FORMAT_VERSION} or older, got {version}; upgrade "
            f"dbnorm_jax"
        )
    if kind not in _KINDS:
        raise ValueError(f"{path}: expected one of {', '.join(_KINDS)}, got kind {kind!r}")
    fields = dataclasses.fields(_KINDS[kind])
    static = {field.name for field in fields if field.metadata.get("static")}
    arrays = {field.name for field in fields} - static
    required = {"kind", "format_version", "library", "static", "arrays", "sha256"}
    if (
        header.keys() != required
        or not all(isinstance(header[part], dict) for part in ("static", "arrays"))
        or header["static"].keys() != static
        or not all(type(value) is int for value in header["static"].values())
        or not header["arrays"].keys() <= arrays
        or names != header["arrays"].keys() | {_HEADER}
    ):
        raise _refusal(path, f"other fields than those of a {kind}")
    return header


def _read(
    path: Path, archive: zipfile.ZipFile, name: str, largest: int
) -> np.ndarray[Any, np.dtype[Any]]:
    """One member; `save` never compresses, so none can unpack to more than the file holds."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size > largest:
        raise _refusal(path, f"a compressed, locked or oversized member {name}")
    stream = io.BytesIO(archive.read(info))
    try:
        header = binary_files.read_header(stream, info.file_size)
    except binary_files.BadArrayError as error:
        raise ValueError(f"{path}: in {name}, {error}; {_BROKEN}") from None
    return header.array(stream.getbuffer()[header.offset :])


def _check_state(name: str, kind: type[Any], arrays: Arrays, static: dict[str, int]) -> None:
    """Raises unless the fields fit together as their types declare."""

    def expect(condition: bool, field: str, expected: str) -> None:
        if not condition:
            array = arrays.get(field)
            actual = "none" if array is None else f"{array.dtype} of shape {array.shape}"
            raise ValueError(f"{name}: expected {field} to be {expected}, got {actual}")

    def is_float(field: str) -> bool:
        return field in arrays and arrays[field].dtype.kind == "f"

    if kind is Correction:
        expect(is_float("bias"), "bias", "floating point")
        shape = arrays["bias"].shape
        expect(len(shape) >= 2 and 0 not in shape[-2:], "bias", "[..., num_terms, num_gallery]")
        expect(bool(np.isfinite(arrays["bias"]).all()), "bias", "finite")
        if "active" in arrays:
            active = arrays["active"]
            expect(active.shape == shape, "active", f"of the shape of bias {shape}")
            expect(active.dtype.kind in "bf", "active", "bool or floating point")
            expect(bool(((active >= 0) & (active <= 1)).all()), "active", "in [0, 1]")
        return
    if kind is Choice:
        _check_choice(expect, arrays, static)
        return
    if kind is LargestSimilarities:
        expect(is_float("values"), "values", "floating point")
        values = arrays["values"]
        expect(values.ndim >= 2 and 0 not in values.shape[-2:], "values", "[..., k, num_gallery]")
        expect(bool((values < np.inf).all()), "values", "free of NaN and +inf")
        ordered = bool((values[..., 1:, :] <= values[..., :-1, :]).all())
        expect(ordered, "values", "sorted, best first")
        return
    for field in ("log_normalizer", "mass", "beta"):
        expect(is_float(field), field, "floating point")
    log_normalizer, mass, beta = (arrays[field] for field in ("log_normalizer", "mass", "beta"))
    shape = log_normalizer.shape
    expect(len(shape) >= 1 and shape[-1] > 0, "log_normalizer", "[..., num_gallery]")
    expect(mass.shape == shape, "mass", f"of the shape of log_normalizer {shape}")
    expect(beta.shape == shape[:-1], "beta", f"of shape {shape[:-1]}")
    expect(bool((log_normalizer < np.inf).all()), "log_normalizer", "free of NaN and +inf")
    expect(bool(((mass >= 0) & (mass < np.inf)).all()), "mass", "finite and at least 0")
    expect(bool(((beta > 0) & (beta < np.inf)).all()), "beta", "positive and finite")
    expect(0 <= static["k"] <= shape[-1], "k", f"between 0 and {shape[-1]}")
    expect(("k_occurrence" in arrays) == (static["k"] > 0), "k_occurrence", "there iff k >= 1")
    if "k_occurrence" in arrays:
        counts = arrays["k_occurrence"]
        expect(counts.dtype == np.int32, "k_occurrence", "int32")
        expect(counts.shape == shape, "k_occurrence", f"of the shape of log_normalizer {shape}")
        expect(bool((counts >= 0).all()), "k_occurrence", "at least 0")


_PAIRS = ("spreads", "active_share", "open_share", "own_share")
_LENGTHS = dict.fromkeys(_PAIRS, 2) | {"num_equal_rows": 3}
_WHOLE = ("chosen", "method", "k", "num_equal_rows")


def _check_choice(
    expect: Callable[[bool, str, str], None], arrays: Arrays, static: dict[str, int]
) -> None:
    fields = [field.name for field in dataclasses.fields(Choice) if not field.metadata]
    length = arrays["method"].shape[:1] if "method" in arrays else (0,)
    expect("method" in arrays and 0 not in length, "method", "[num_candidates]")
    for field in fields:
        shape = () if field == "chosen" else (_LENGTHS.get(field, length[0]),)
        expect(field in arrays and arrays[field].shape == shape, field, f"of shape {shape}")
        kind, name = ("i", "integer") if field in _WHOLE else ("f", "floating point")
        expect(arrays[field].dtype.kind == kind, field, name)
        expect(bool(np.isfinite(arrays[field]).all()), field, "finite")
    method, chosen = arrays["method"], int(arrays["chosen"])
    known = bool(((method >= 0) & (method < len(METHODS))).all()) and int(method[0]) == 0
    expect(known, "method", f"raw (0) first, then below {len(METHODS)}")
    expect(0 <= chosen < length[0], "chosen", f"between 0 and {length[0] - 1}")
    expect(0 <= static["reason_code"] < len(REASONS), "reason_code", f"below {len(REASONS)}")
