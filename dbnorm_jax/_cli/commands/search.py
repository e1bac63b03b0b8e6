"""`dbnorm search`: the nearest items of each query, from files of any size into one of any size."""

import codecs
import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, Protocol
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.lib import format as npy_format

from dbnorm_jax._cli.reading import large
from dbnorm_jax._cli.reading.argument import Source, neighbors
from dbnorm_jax._cli.reading.arrays import read_items
from dbnorm_jax._cli.reading.corrections import read_correction
from dbnorm_jax._cli.showing.output import Sink, csv_line
from dbnorm_jax._cli.showing.progress import RowProgress
from dbnorm_jax._src.places.disk import search
from dbnorm_jax._src.places.disk.fits import Settings, row_pair
from dbnorm_jax._src.places.disk.rows import DEFAULT_BLOCK_SIZE
from dbnorm_jax._src.places.disk.search import Passes

_SUFFIXES = (".npz", ".npy", ".csv", ".jsonl")
# Some readers of JSON lines end a line at these, which JSON itself does not escape.
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    queries: str
    gallery: str
    correction: str | None = None
    k: int | None = None
    similarity: str | None = None
    query_ids: str | None = None
    gallery_ids: str | None = None
    output: Path | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    force: bool = False
    as_json: bool = False


class _Names(NamedTuple):
    """What to call the rows of both sides; None: by their numbers."""

    queries: Array | None
    gallery: Array | None


class Results(Protocol):
    """Takes results block by block."""

    def add(self, start: int, scores: Array, indices: Array) -> None:
        """Those of the queries `start, start + 1, ...`."""
        ...


def run(request: Request) -> None:
    """Checks, searches block by block, writes as it goes; the file appears when all is in it."""
    output = None
    if request.output is not None:
        output = Sink(request.output, suffixes=_SUFFIXES, force=request.force)
    elif request.as_json:
        raise ValueError("--json: expected --output, whose contents it sums up, got none; name one")
    queries, gallery = large.open_rows(
        {"QUERIES": request.queries, "GALLERY": request.gallery}
    ).values()
    if output is not None:
        output.check_apart({rows.label: rows.path for rows in (queries, gallery)})
    num_gallery = len(gallery.rows)
    k = neighbors(request.k, num_gallery)
    fitted = None
    if request.correction is not None:
        fitted = read_correction(request.correction, gallery, request.similarity)
    correction = None if fitted is None else fitted.correction
    similarity = (request.similarity or "cosine") if fitted is None else fitted.similarity
    names = _Names(
        _names("--query-ids", request.query_ids, len(queries.rows)),
        _names("--gallery-ids", request.gallery_ids, num_gallery),
    )
    settings = Settings(large.SIMILARITY_FUNCTIONS[similarity], block_size=request.block_size)
    pair = row_pair(("queries", queries.rows), ("gallery", gallery.rows), settings)
    passes = Passes(*pair, correction, settings.chunk_size)
    known = None if fitted is None else fitted.gallery
    # A gallery with the size and time of change that the fit saw is not hashed again.
    hashed = fitted is not None and known is not None and not fitted.unchanged
    count = 0
    with ExitStack() as stack:
        stack.enter_context(large.errors_name({"queries": queries.label, "gallery": gallery.label}))
        progress = stack.enter_context(RowProgress())
        report = progress.of("queries", len(queries.rows), None, request.block_size)
        sink = stack.enter_context(_results(output, k, names))
        for block, found in search.top_k_blocks(passes, k, hashed=hashed):
            if hashed:
                assert fitted is not None
                large.check_fingerprint(fitted.label, known, pair[1].fingerprint)
                hashed = False
            sink.add(block.start, np.asarray(found.scores), np.asarray(found.indices))
            count = block.stop
            if report is not None:
                report(count, 0)
    if output is not None:
        _report(request, k, count, num_gallery, similarity)


def _report(request: Request, k: int, num_queries: int, num_gallery: int, similarity: str) -> None:
    content = {
        "output": str(request.output),
        "num_queries": num_queries,
        "num_gallery": num_gallery,
        "k": k,
        "similarity": similarity,
        "correction": request.correction,
    }
    if request.as_json:
        print(json.dumps(content, indent=2))
        return
    how = "raw" if request.correction is None else f"under {request.correction}"
    print(
        f"wrote {request.output}: {k} of {num_gallery:,} items for {num_queries:,} queries ({how})"
    )


def _names(option: str, text: str | None, count: int) -> Array | None:
    if text is None:
        return None
    source = Source.parse(option, text)
    return read_items(source, count, f"a name for each of {count} rows")


@contextmanager
def _results(output: Sink | None, k: int, names: _Names) -> Iterator[Results]:
    if output is None:
        yield _JsonLines(sys.stdout, names)
        return
    suffix = output.path.suffix
    if suffix in (".csv", ".jsonl"):
        with output.open() as file:
            text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
            yield _Csv(text, names) if suffix == ".csv" else _JsonLines(text, names)
            text.detach()
        return
    beside = output.path.absolute().parent  # the folder for temporary files may be small
    with (
        output.alone(),
        TemporaryFile(dir=beside) as scores,
        TemporaryFile(dir=beside) as indices,
    ):
        arrays = _Arrays(scores, indices, k)
        yield arrays
        with output.open() as file:
            arrays.write(file, suffix, names)


class _JsonLines:
    """One object per query."""

    def __init__(self, file: IO[str], names: _Names) -> None:
        self._file, self._names = file, names
        self._ascii = codecs.lookup(getattr(file, "encoding", None) or "utf-8").name != "utf-8"

    def add(self, start: int, scores: Array, indices: Array) -> None:
        for row, (values, items) in enumerate(zip(scores.tolist(), indices, strict=True), start):
            content = {
                "query": _name(self._names.queries, row),
                "items": [_name(self._names.gallery, item) for item in items.tolist()],
                "scores": values,
            }
            line = json.dumps(content, ensure_ascii=self._ascii).translate(_LINE_ENDS)
            print(line, file=self._file)


class _Csv:
    """One line per query and item."""

    def __init__(self, file: IO[str], names: _Names) -> None:
        self._file, self._names = file, names
        self._file.write(csv_line(["query", "rank", "item", "score"]))

    def add(self, start: int, scores: Array, indices: Array) -> None:
        for row, (values, items) in enumerate(zip(scores.tolist(), indices, strict=True), start):
            query = _name(self._names.queries, row)
            for rank, (value, item) in enumerate(zip(values, items.tolist(), strict=True), 1):
                cells = [query, rank, _name(self._names.gallery, item), value]
                self._file.write(csv_line(cells))


class _Arrays:
    """Values in files of their own until their number is known."""

    def __init__(self, scores: IO[bytes], indices: IO[bytes], k: int) -> None:
        self._files, self._k, self._count = {"scores": scores, "indices": indices}, k, 0
        self._dtypes: dict[str, np.dtype[Any]] = {}

    def add(self, start: int, scores: Array, indices: Array) -> None:
        for name, array in (("scores", scores), ("indices", indices)):
            self._dtypes[name] = array.dtype
            self._files[name].write(np.ascontiguousarray(array).tobytes())
        self._count = start + len(scores)

    def write(self, file: IO[bytes], suffix: str, names: _Names) -> None:
        if suffix == ".npy":
            self._copy("indices", file)
            return
        with ZipFile(file, "w", ZIP_STORED) as archive:
            for name in self._files:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    self._copy(name, member)
            for name, values in (("query_ids", names.queries), ("gallery_ids", names.gallery)):
                if values is not None:
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        plain = values.astype(str) if values.dtype == object else values
                        npy_format.write_array(member, np.asarray(plain), allow_pickle=False)

    def _copy(self, name: str, target: IO[bytes]) -> None:
        header = {
            "descr": npy_format.dtype_to_descr(self._dtypes[name]),
            "fortran_order": False,
            "shape": (self._count, self._k),
        }
        npy_format.write_array_header_1_0(target, header)
        source = self._files[name]
        source.seek(0)
        while block := source.read(2**20):
            target.write(block)


def _name(names: Array | None, row: int) -> Any:
    if names is None:
        return row
    value = names[row]
    return value.item() if isinstance(value, np.generic) else value
