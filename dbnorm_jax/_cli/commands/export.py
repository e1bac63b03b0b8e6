"""`dbnorm export`: corrected gallery vectors for any index, and how to query them.

vectors.npy      [num_gallery, width], row i for gallery row i; or vectors.parquet
activation.npy   [num_terms, num_gallery], where gates have to be read (DIS, DualDIS)
README.md        how to query, as code that runs
export.json      the layout for machines; written last: a folder that holds it is whole
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from numpy.lib import format as npy_format

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading import large, sets
from dbnorm_jax._cli.reading.corrections import read_correction
from dbnorm_jax._cli.reading.packages import install_hint
from dbnorm_jax._cli.showing.export_readme import Layout, readme
from dbnorm_jax._cli.showing.output import Content, Sink, written
from dbnorm_jax._cli.showing.progress import Progress
from dbnorm_jax._cli.showing.report import print_paths
from dbnorm_jax._cli.showing.terminal import json_text, say_json
from dbnorm_jax._cli.showing.verdict import of_export, tell

MANIFEST = "export.json"
# As docs/indexes.md finds by benchmarks/studies/graphs.py.
GRAPH_SHIFT = 0.5
_ACTIVATION = "activation.npy"
_README = "README.md"
_NAMES = [MANIFEST, _README, _ACTIVATION, "vectors.npy", "vectors.parquet"]

Block = tuple[int, sets.Array]


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    gallery: str
    correction: str
    output: Path
    similarity: str | None = None
    metric: str = "inner-product"
    dtype: str = "float32"
    file_format: str = "npy"
    force: bool = False
    as_json: bool = False

    @property
    def vectors(self) -> str:
        """Name of the file of vectors."""
        return f"vectors.{self.file_format}"


def run(request: Request) -> None:
    """Checks, reads, writes and says what was written."""
    # An earlier vectors.parquet goes where a vectors.npy is written.
    sink = Sink(request.output, names=_NAMES, force=request.force)
    if request.file_format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"--format parquet: expected the package pyarrow, got none; {install_hint('pyarrow')}"
        )
    rows = large.open_rows({"GALLERY": request.gallery})["GALLERY"]
    sink.check_apart({rows.label: rows.paths})
    gallery = rows.rows
    fitted = read_correction(request.correction, rows, request.similarity)
    if fitted.gallery is not None and not fitted.unchanged:
        found = dbn.out_of_core.fingerprint(gallery)
        large.check_fingerprint(fitted.label, fitted.gallery, found)
    correction, similarity = fitted.correction, fitted.similarity
    passes = 1 + (similarity == "euclidean") + (request.metric == "cosine")
    num_blocks = -(-len(gallery) // sets.ROWS_AT_ONCE)
    with Progress(passes * num_blocks) as progress:

        def blocks(what: str) -> Iterator[Block]:
            for block in sets.prepared_blocks(rows.label, gallery, similarity):
                progress(what)
                yield block

        terms = _terms(correction, similarity, blocks)
        shift = _shift(request, similarity)
        means = terms.mean(axis=1)
        means[: len(means) - (similarity == "euclidean")] += shift
        terms -= means[:, None]
        length = _length(terms, blocks) if request.metric == "cosine" else None
        layout = Layout(
            num_gallery=len(gallery),
            dim=gallery.shape[1],
            num_terms=len(terms) - (similarity == "euclidean"),
            gated=correction.active is not None,
            similarity=similarity,
            metric=request.metric,
            means=tuple(means.tolist()),
            shift=shift,
            length=length,
        )
        vectors = _vectors(blocks("writing"), terms, layout, request.dtype)
        manifest = _manifest(request, layout)
        paths = _write(sink, request, layout, manifest, correction, vectors)
    if request.as_json:
        say_json(manifest)
        return
    print_paths(paths)
    text = (
        f"{layout.num_gallery} vectors of {layout.width} = {layout.dim} + {len(layout.columns)} "
        f"dimensions, to be searched by {layout.metric.replace('-', ' ')}"
        + (", two searches per query" if layout.gated else "")
    )
    tell(of_export(f"{text}.", request.output / _README))


def _write(
    sink: Sink,
    request: Request,
    layout: Layout,
    manifest: dict[str, Any],
    correction: dbn.Correction,
    vectors: Iterator[sets.Array],
) -> list[Path]:
    def write_vectors(file: IO[bytes]) -> None:
        _WRITERS[request.file_format](file, layout, request.dtype, vectors)

    contents: dict[str, Content] = {request.vectors: write_vectors}
    if layout.gated:
        contents[_ACTIVATION] = lambda file: np.save(file, np.asarray(correction.active))
    text = readme(layout, request.vectors, request.dtype)
    contents[_README] = written(text.encode)
    contents[MANIFEST] = written(json_text(manifest).encode)
    # An earlier export is none without its manifest, and this one neither.
    return sink.write(contents, [MANIFEST, *{*_NAMES} - {*contents}])


def _terms(
    correction: dbn.Correction, similarity: str, blocks: Callable[[str], Iterator[Block]]
) -> sets.Array:
    """[num_terms, num_gallery] float64: what an inner product with the gates has to subtract."""
    terms = np.asarray(correction.bias, np.float64)
    if correction.active is None:  # they act together: one number per item
        terms = terms.sum(axis=0, keepdims=True)
    if similarity != "euclidean":
        return terms.copy()
    squares = [np.square(block.astype(np.float64)).sum(axis=1) for _, block in blocks("reading")]
    return np.concatenate([terms, np.concatenate(squares)[None]])


def _shift(request: Request, similarity: str) -> float:
    """Of the columns of the bias. Where all vectors have one length no link depends on it."""
    graph = request.metric == "inner-product" and similarity != "euclidean"
    return GRAPH_SHIFT if graph else 0.0


def _length(terms: sets.Array, blocks: Callable[[str], Iterator[Block]]) -> float:
    """Of the longest vector, in float32 and rounded up."""
    largest = 0.0
    for start, block in blocks("reading"):
        squares = np.square(block.astype(np.float64)).sum(axis=1)
        squares += np.square(terms[:, start : start + len(block)]).sum(axis=0)
        largest = max(largest, float(squares.max()))
    return float(np.nextafter(np.float32(math.sqrt(largest)), np.float32(np.inf)))


def _vectors(
    blocks: Iterator[Block], terms: sets.Array, layout: Layout, dtype: str
) -> Iterator[sets.Array]:
    """Blocks of the vectors, in order."""
    for start, block in blocks:
        # Rows are unit, squares are a term and the means are gone: the plain form is left.
        own = terms[:, start : start + len(block)].astype(np.float32)
        rows = dbn.inner_product_gallery(
            block,
            dbn.Correction(jnp.asarray(own), None),
            center=False,
            metric=layout.metric.replace("-", "_"),
            length=layout.length,
        )
        with np.errstate(over="ignore"):
            stored = np.asarray(rows).astype(dtype)
        if not np.isfinite(stored).all():
            row = start + int(np.argmin(np.isfinite(stored).all(axis=1)))
            raise ValueError(
                f"--dtype {dtype}: expected values in its range, got larger ones at row "
                f"{row}; use --dtype float32"
            )
        yield stored


def _write_npy(file: IO[bytes], layout: Layout, dtype: str, blocks: Iterator[sets.Array]) -> None:
    shape = {"shape": (layout.num_gallery, layout.width)}
    header = npy_format.header_data_from_array_1_0(np.empty(0, dtype)) | shape
    npy_format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block).data)


def _write_parquet(
    file: IO[bytes], layout: Layout, dtype: str, blocks: Iterator[sets.Array]
) -> None:
    import pyarrow
    from pyarrow import parquet

    kind = pyarrow.list_(pyarrow.from_numpy_dtype(np.dtype(dtype)), layout.width)
    schema = pyarrow.schema([("id", pyarrow.int64()), ("vector", kind)])
    first = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for block in blocks:
            flat = pyarrow.array(np.ascontiguousarray(block).reshape(-1))
            vectors = pyarrow.FixedSizeListArray.from_arrays(flat, type=kind)
            ids = pyarrow.array(np.arange(first, first + len(block)))
            writer.write_table(pyarrow.table([ids, vectors], schema=schema))
            first += len(block)


_WRITERS = {"npy": _write_npy, "parquet": _write_parquet}


def _manifest(request: Request, layout: Layout) -> dict[str, Any]:
    return {
        "schema": "dbnorm export 1",
        "library": f"dbnorm_jax {dbn.__version__}",
        **dataclasses.asdict(layout),
        "width": layout.width,
        "columns": layout.columns,
        "dtype": request.dtype,
        "vectors": request.vectors,
        "activation": _ACTIVATION if layout.gated else None,
        "gallery": request.gallery,
        "correction": request.correction,
    }
