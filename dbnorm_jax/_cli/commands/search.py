"""`dbnorm search`: the nearest items of each query, from files of any size into one of any size."""

import dataclasses
import io
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.lib import format as npy_format

from dbnorm_jax._cli.commands.options import given
from dbnorm_jax._cli.reading import large
from dbnorm_jax._cli.reading.argument import Source, neighbors
from dbnorm_jax._cli.reading.corrections import read_correction
from dbnorm_jax._cli.reading.names import read_ids
from dbnorm_jax._cli.showing.output import Sink, csv_line, sink_of
from dbnorm_jax._cli.showing.progress import RowProgress
from dbnorm_jax._cli.showing.terminal import is_utf8, json_text, say_json
from dbnorm_jax._cli.showing.verdict import Inputs, of_search, tell
from dbnorm_jax._src.core.similarity import SIMILARITY_FUNCTIONS
from dbnorm_jax._src.files import texts
from dbnorm_jax._src.places.disk import search
from dbnorm_jax._src.places.disk.fits import Settings, row_pair
from dbnorm_jax._src.places.disk.rows import DEFAULT_BLOCK_SIZE
from dbnorm_jax._src.places.disk.search import Passes

_NAMED = (".npz", ".csv", ".jsonl", ".trec", ".json")  # what has room for names
_SUFFIXES = (*_NAMED, ".npy")
Array = np.ndarray[Any, np.dtype[Any]]
# Takes the first of some queries, in order, their scores and indices.
Add = Callable[[int, Array, Array], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    queries: str
    gallery: str
    correction: str | None = None
    k: int | None = None
    similarity: str | None = None
    query_labels: str | None = None
    labels: str | None = None
    output: Path | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    force: bool = False
    as_json: bool = False


class _Names(NamedTuple):
    """What to call the rows of both sides; None: by their numbers."""

    queries: Array | None
    gallery: Array | None


def run(request: Request) -> None:
    """Checks, searches block by block, writes as it goes; the file appears when all is in it."""
    output = sink_of(request, suffixes=_SUFFIXES)
    if output is None and request.as_json:
        raise ValueError("--json: expected --output, whose contents it sums up, got none; name one")
    named = given(request, "query_labels", "labels")
    if output is not None and output.path.suffix == ".npy" and named:
        raise ValueError(
            f"{named[0]}: expected an --output that holds names ({', '.join(_NAMED)}), got "
            f"'{output.path}', which holds row numbers alone; leave it out, or name another file"
        )
    queries, gallery = large.open_rows(
        {"QUERIES": request.queries, "GALLERY": request.gallery}
    ).values()
    if output is not None:
        output.check_apart({rows.label: rows.paths for rows in (queries, gallery)})
    num_queries, num_gallery = len(queries.rows), len(gallery.rows)
    k = neighbors(request.k, num_gallery)
    fitted = correction = known = None
    similarity, hashed = request.similarity or "cosine", False
    if request.correction is not None:
        fitted = read_correction(request.correction, gallery, request.similarity)
        correction, known, similarity = fitted.correction, fitted.gallery, fitted.similarity
        # A gallery with the size and time of change that the fit saw is not hashed again.
        hashed = known is not None and not fitted.unchanged
    bare = output is not None and output.path.suffix == ".trec"
    names = _Names(
        _names("--query-labels", request.query_labels, num_queries, bare=bare),
        _names("--labels", request.labels, num_gallery, bare=bare),
    )
    settings = Settings(SIMILARITY_FUNCTIONS[similarity], block_size=request.block_size)
    pair = row_pair(("queries", queries.rows), ("gallery", gallery.rows), settings)
    passes = Passes(*pair, correction, settings.chunk_size)
    with ExitStack() as stack:
        stack.enter_context(large.errors_name({"queries": queries.label, "gallery": gallery.label}))
        progress = stack.enter_context(RowProgress())
        report = progress.of("queries", num_queries, None, request.block_size)
        add = stack.enter_context(_results(output, (num_queries, k), names))
        for block, found in search.top_k_blocks(passes, k, hashed=hashed):
            if hashed:
                assert fitted is not None
                large.check_fingerprint(fitted.label, known, pair[1].fingerprint)
                hashed = False
            add(block.start, np.asarray(found.scores), np.asarray(found.indices))
            if report is not None:
                report(block.stop, 0)
    content = {
        "output": str(request.output),
        "num_queries": num_queries,
        "num_gallery": num_gallery,
        "k": k,
        "similarity": similarity,
        "correction": request.correction,
    }
    how = "raw" if request.correction is None else f"under {request.correction}"
    made = f"{k} of {num_gallery:,} items for {num_queries:,} queries ({how})"
    text = made if output is None else f"wrote {request.output}: {made}"
    if request.as_json:
        say_json(content)
        return
    inputs = Inputs.of(request, similarity=similarity)
    # An array of results that names its items names all.
    whole = request.labels is not None and output is not None and output.path.suffix == ".npz"
    count = None if whole else num_gallery
    options = [] if request.k is None else ["-k", str(request.k)]
    for option in given(request, "labels", "query_labels"):
        options += [option, getattr(request, option[2:].replace("-", "_"))]
    verdict = of_search(
        text, inputs, request.correction, request.output, options=options, num_items=count
    )
    sys.stdout.flush()  # a reader that went away is told nothing
    tell(verdict, apart=False, to_stderr=output is None)


def _names(option: str, text: str | None, count: int, *, bare: bool) -> Array | None:
    """What to call the rows; `bare`: by names that blanks may stand between."""
    if text is None:
        return None
    source = Source.parse(option, text)
    names = read_ids(source, count)
    for row, name in enumerate(names if bare else ()):
        plain = str(name).encode()
        if plain.split() != [plain]:
            what = f"{str(name)!r} in row {row}"
            remedy = "write .jsonl or .json, or other ids"
            raise source.fail("ids without blanks, for a TREC run", what, remedy)
    return names


@contextmanager
def _results(output: Sink | None, shape: tuple[int, int], names: _Names) -> Iterator[Add]:
    """What takes the results, of that shape in all; the file is whole where this ends."""
    if output is None:
        yield _json_lines(sys.stdout, names)
        return
    suffix = output.path.suffix
    with output.open() as file:
        if suffix in _LINES:
            text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
            yield _LINES[suffix](text, names)
            text.write("\n}\n" if suffix == ".json" else "")
            text.detach()
        elif suffix == ".npy":
            yield _arrays(shape, {"indices": file})
        else:
            with _beside(output.path) as indices, ZipFile(file, "w", ZIP_STORED) as archive:
                new = partial(archive.open, mode="w", force_zip64=True)
                with new("scores.npy") as scores:
                    yield _arrays(shape, {"scores": scores, "indices": indices})
                indices.seek(0)
                with new("indices.npy") as member:
                    shutil.copyfileobj(indices, member, 2**20)
                for name, values in (("query_ids", names.queries), ("gallery_ids", names.gallery)):
                    if values is not None:
                        _write_ids(new, name, values)


def _beside(path: Path) -> IO[bytes]:
    """A file without a name in the same folder: that for temporary files may be small."""
    folder = path.absolute().parent
    try:
        return TemporaryFile(dir=folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _arrays(shape: tuple[int, int], files: dict[str, IO[bytes]]) -> Add:
    def add(start: int, scores: Array, indices: Array) -> None:
        arrays = {"scores": scores, "indices": indices}
        for name, file in files.items():
            rows = np.ascontiguousarray(arrays[name])
            if start == 0:
                header = npy_format.header_data_from_array_1_0(rows) | {"shape": shape}
                npy_format.write_array_header_1_0(file, header)
            file.write(rows.data)

    return add


def _write_ids(new: Callable[[str], IO[bytes]], name: str, ids: Array) -> None:
    """Integers as an array, texts as `texts` says: the longest sets no width for all."""
    if ids.dtype.kind in "iu":
        with new(f"{name}.npy") as file:
            npy_format.write_array(file, np.asarray(ids), allow_pickle=False)
        return
    offsets = texts.offsets(ids)
    with new(f"{name}{texts.OFFSETS}.npy") as file:
        npy_format.write_array(file, offsets, allow_pickle=False)
    with new(f"{name}{texts.UTF8}.npy") as file:
        header = npy_format.header_data_from_array_1_0(np.empty(0, np.uint8))
        npy_format.write_array_header_1_0(file, header | {"shape": (int(offsets[-1]),)})
        for part in texts.parts(ids):
            file.write(part)


def _json_lines(file: IO[str], names: _Names) -> Add:
    """One object per query."""
    only_ascii = not is_utf8(file)

    def lines(query: Any, items: list[Any], scores: list[float]) -> str:
        content = {"query": query, "items": items, "scores": scores}
        return json_text(content, indent=None, only_ascii=only_ascii, allow_nan=True)

    return _lines(file, names, lines)


def _csv_lines(file: IO[str], names: _Names) -> Add:
    """One line per query and item."""
    file.write(csv_line(["query", "rank", "item", "score"]))

    def lines(query: Any, items: list[Any], scores: list[float]) -> str:
        ranked = enumerate(zip(items, scores, strict=True), 1)
        return "".join(csv_line([query, rank, item, score]) for rank, (item, score) in ranked)

    return _lines(file, names, lines)


def _run_lines(file: IO[str], names: _Names) -> Add:
    """A TREC run: one line per query and item."""

    def lines(query: Any, items: list[Any], scores: list[float]) -> str:
        ranked = enumerate(zip(items, scores, strict=True), 1)
        return "".join(
            f"{query} Q0 {item} {rank} {score} dbnorm\n" for rank, (item, score) in ranked
        )

    return _lines(file, names, lines)


def _json_entries(file: IO[str], names: _Names) -> Add:
    """An object of queries, of which each is one of items and scores; its end is not written."""
    separators = itertools.chain("{", itertools.repeat(","))

    def lines(query: Any, items: list[Any], scores: list[float]) -> str:
        content = {str(query): dict(zip(map(str, items), scores, strict=True))}
        return f"{next(separators)}\n{json_text(content, indent=None, allow_nan=True)[1:-2]}"

    return _lines(file, names, lines)


def _lines(file: IO[str], names: _Names, lines: Callable[..., str]) -> Add:
    def add(start: int, scores: Array, indices: Array) -> None:
        found = zip(scores.tolist(), indices.tolist(), strict=True)
        for query, (values, items) in enumerate(found, start):
            called = [_name(names.gallery, item) for item in items]
            file.write(lines(_name(names.queries, query), called, values))

    return add


_LINES: dict[str, Callable[[IO[str], _Names], Add]] = {
    ".csv": _csv_lines,
    ".jsonl": _json_lines,
    ".trec": _run_lines,
    ".json": _json_entries,
}


def _name(names: Array | None, row: int) -> Any:
    if names is None:
        return row
    value = names[row]
    return value.item() if isinstance(value, np.generic) else value
