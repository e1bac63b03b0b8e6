"""One array of one file, whatever the form of the file, and the checks that it passes.

Errors name the argument, the file, what was expected, what was found and the remedy.
"""

import dataclasses

import numpy as np

from dbnorm_jax._cli.reading import formats
from dbnorm_jax._cli.reading.argument import STDIN, Source, parts, typed
from dbnorm_jax._cli.reading.formats import NUMBERS, ROWS, TEXTS
from dbnorm_jax._cli.reading.sets import Array
from dbnorm_jax._cli.reading.shards import joined
from dbnorm_jax._src.core.text import excerpt

ROW_NUMBERS = "write row numbers, counted from 0, with numpy.save as int64"


def read_floats(source: Source) -> Array:
    """A non-empty 2-d floating-point array; an .npy file is memory-mapped."""
    array = read(source, ROWS, alone=True)
    kind = array.dtype.kind
    if kind != "f":
        what, remedy = f"dtype {array.dtype}", "convert with .astype('float32')"
        if kind == "V":
            what += " (bfloat16 loses its name in an .npy file)"
            remedy = "convert with .astype('float32') before it is saved"
        elif kind not in "biuc":
            remedy = "name the file of the embeddings"
        raise source.fail("floating-point numbers", what, remedy)
    if array.ndim != 2:
        remedy = "reshape it to [rows, columns]"
        raise source.fail("2 axes, one row per item", f"shape {array.shape}", remedy)
    if 0 in array.shape:
        raise source.fail("at least one row and one column", f"shape {array.shape}", "fill it")
    return array


def read_integers(source: Source) -> Array:
    """A 1-d array of row numbers."""
    array = read_row_numbers(dataclasses.replace(source, remedy=ROW_NUMBERS))
    if array.dtype.kind == "b" or array.ndim != 1:
        what = f"dtype {array.dtype}, shape {array.shape}"
        remedy = f"keep one number per row, shape ({len(array) if array.ndim else 1},)"
        if array.dtype.kind == "b" and array.ndim == 2:
            remedy = "write numpy.where(matrix.any(1), matrix.argmax(1), -1)"
        raise source.fail("1 axis of integers (rows, counted from 0)", what, remedy)
    return array


def read_row_numbers(source: Source) -> Array:
    """Integers of any shape; bool too."""
    return row_numbers(source, read(source, NUMBERS))


def row_numbers(source: Source, array: Array) -> Array:
    """The array, which should be integers or bool."""
    if array.dtype.kind in "biu":
        return array
    remedy = source.remedy
    if array.dtype.kind == "f" and array.ndim == 1:
        whole = array[np.isfinite(array)]
        if (whole == whole.round()).all():
            remedy = "convert with .astype('int64')"
        if len(whole) < len(array):
            remedy = "convert with numpy.nan_to_num(rows, nan=-1).astype('int64')"
    what = f"dtype {array.dtype}, shape {array.shape}"
    raise source.fail("integers (rows, counted from 0)", what, remedy)


def names_of(source: Source) -> list[str] | None:
    """Of the arrays in a file; None where it is one array."""
    with formats.contained(parts(source)[0]) as file:
        return file.names


def member_of(source: Source, name: str, names: list[str]) -> Source:
    """One of several arrays, by its name."""
    if name not in names:
        only = f"only {formats.listed(names)}" if names else "no NumPy arrays"
        raise source.fail(f"an array named {name}", only, "rename or add the array")
    return dataclasses.replace(source, member=name)


def read(source: Source, wanted: str, *, alone: bool = False) -> Array:
    """The array that is meant: the one named, or the only one; of several files their rows.

    A column of a table should hold what is `wanted`; with `alone` the only one that does is meant.
    """
    files = parts(source)
    return joined([(file, _read(file, wanted, alone=alone)) for file in files])


def _read(source: Source, wanted: str, *, alone: bool) -> Array:
    with formats.contained(source) as file:
        if file.names is None:
            if source.member is not None:
                raise source.fail("several arrays", "a single .npy array", "leave the :name out")
            return file.read("")
        likely = [name for name in file.names if file.columns.get(name) == wanted]
        if source.member in file.fields:
            name = str(source.member)
        else:
            name = _meant(source, file.names, likely, alone=alone)
        if file.names.count(name) > 1:
            actual = f"{file.names.count(name)}"
            raise source.fail(f"one array named {name}", actual, "rename the columns")
        if wanted != TEXTS and {**file.fields, **file.columns}.get(name) == TEXTS:
            raise source.fail("numbers", "a column of strings", "choose another column")
        return file.read(name)


def _meant(source: Source, names: list[str], likely: list[str], *, alone: bool) -> str:
    if source.member is not None:
        if source.member not in names:
            found = formats.listed(names) or "no NumPy arrays"
            raise source.fail(f"an array named {source.member}", found, "choose one of them")
        return source.member
    if not names:
        remedy = "save the array with numpy.save (from PyTorch: tensor.numpy())"
        raise source.fail("a file of arrays", "an archive without any", remedy)
    if alone and len(likely) == 1:
        return likely[0]
    if len(names) > 1:
        file = STDIN if source.piped else (source.part_of or source.path).name
        one = typed(f"{file}:{(likely or names)[0]}")
        remedy = "choose one" + f", for instance {one}" * (one == excerpt(one))
        raise source.fail("one array", formats.listed(names), remedy)
    return names[0]
