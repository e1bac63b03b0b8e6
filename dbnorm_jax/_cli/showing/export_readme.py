"""What exported vectors are made of, and the README that says how to query them."""

import dataclasses
import textwrap


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the columns of the vectors are, and what a query needs to meet them."""

    num_gallery: int
    dim: int
    num_terms: int  # columns after the embedding that a gate meets
    gated: bool  # whether gates depend on the query; 1 otherwise
    similarity: str
    metric: str
    means: tuple[float, ...]  # of the terms, and the shift; a score lacks `gates . means`
    shift: float  # of the columns that a gate meets
    length: float | None  # of all vectors under the cosine metric

    @property
    def columns(self) -> list[str]:
        """What comes after the embedding, column by column."""
        terms = [f"-bias {term + 1}" for term in range(self.num_terms)]
        squares = ["-|g|^2"] * (self.similarity == "euclidean")
        return [*terms, *squares, *["padding"] * (self.metric == "cosine")]

    @property
    def width(self) -> int:
        """Of the vectors."""
        return self.dim + len(self.columns)


_ENGINES = {
    "inner-product": "faiss `IndexFlatIP` or `METRIC_INNER_PRODUCT`, hnswlib and usearch `ip`, "
    "Qdrant `Dot`, Milvus `IP`, LanceDB `dot`, pgvector `<#>`",
    "cosine": "Qdrant `Cosine`, Milvus `COSINE`, LanceDB `cosine`, hnswlib `cosine`, usearch "
    "`cos`, pgvector `<=>`",
}


def readme(layout: Layout, vectors: str, dtype: str) -> str:
    """The text, with the numbers of this export."""
    normalized = ", normalized" if layout.similarity == "cosine" else ""
    search = "With gates of 0 instead of 1 the same index returns the raw results."
    if layout.gated:
        search = (
            "Each query is searched for twice: gates of 0 find its nearest raw item, whose column "
            "of `activation.npy` holds the gates for the search proper. Where the index is "
            "approximate, a missed nearest item may open or close a gate wrongly."
        )
    texts = [
        f"`{vectors}` holds {layout.num_gallery} vectors of {layout.width} dimensions in {dtype}, "
        f"row i for row i of the gallery: {layout.dim} of the embedding{normalized}, then "
        f"`{'`, `'.join(layout.columns)}`. Index them with an engine that compares by "
        f"{layout.metric.replace('-', ' ')}: {_ENGINES[layout.metric]}.",
        "A query is its embedding with as many columns more. In NumPy, where `search` stands for "
        "your engine:",
        search,
        _score_text(layout),
        "The vectors belong to this gallery, row by row, and to the banks of the correction: when "
        "either changes, fit and export again. `export.json` says the same to machines. Recipes "
        "per engine are in `docs/indexes.md` of dbnorm_jax.",
    ]
    paragraphs = [textwrap.fill(text, 100, break_on_hyphens=False) for text in texts]
    paragraphs.insert(2, f"```python\n{_code(layout, vectors)}\n```")
    return "\n\n".join(["# Corrected vectors", *paragraphs]) + "\n"


_CODE = """\
import numpy as np
{pandas}
vectors = {load}  # index these once
{activation}

def with_gates(queries, gates):
{scale}    gates = np.broadcast_to(gates, (len(queries), {num_terms}))
    return np.concatenate([queries, gates{more}], axis=1).astype(np.float32)


def search(queries, k):
{normalize}    return np.argsort(-(queries @ {vectors}.T), axis=1, kind="stable")[:, :k]


def corrected_search(queries, k):
{nearest}    return search(with_gates(queries, {gates}), k)"""
_LOADS = {
    "vectors.npy": 'np.load("vectors.npy", mmap_mode="r")',
    "vectors.parquet": 'np.stack(pandas.read_parquet("vectors.parquet")["vector"])',
}
_SCALES = {
    "cosine": "    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)\n",
    "dot": "",
    "euclidean": "    queries = 2 * queries\n",
}
_NEAREST = "    nearest = search(with_gates(queries, np.zeros({})), 1)[:, 0]\n"


def _code(layout: Layout, vectors: str) -> str:
    num_terms, gated, cosine = layout.num_terms, layout.gated, layout.metric == "cosine"
    more = ", np.ones((len(queries), 1))" * (layout.similarity == "euclidean")
    return _CODE.format(
        pandas="import pandas\n" * vectors.endswith("parquet"),
        load=_LOADS[vectors],
        activation='activation = np.load("activation.npy")\n' * gated,
        scale=_SCALES[layout.similarity],
        num_terms=num_terms,
        more=more + ", np.zeros((len(queries), 1))" * cosine,
        normalize="    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)\n" * cosine,
        vectors="unit" if cosine else "vectors",
        nearest=_NEAREST.format(num_terms) * gated,
        gates="activation[:, nearest].T" if gated else f"np.ones({num_terms})",
    )


def _score_text(layout: Layout) -> str:
    means = ", ".join(f"{mean:.6g}" for mean in layout.means)
    text = "A result's number ranks the items of one query. "
    if layout.metric == "cosine":
        text += (
            f"It times {layout.length:.6g} (the length of all vectors) and the length of the "
            f"query's vector is an inner product. "
        )
    product = "It" if layout.metric == "inner-product" else "That"
    minus = f"the sum of gates x [{means}]"
    if layout.similarity == "euclidean":
        minus += " (the last of them always) and the squared length of the query"
    return text + (
        f"{product} is the corrected score once {minus} is subtracted: biases were centered"
        + (
            f", and shifted by {layout.shift:g}, so that the links of a graph index lead to items "
            f"of low bias."
            if layout.shift
            else ", so that vectors stored in few bits keep their order."
        )
    )
