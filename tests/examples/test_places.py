"""What other packages hand over becomes the numbers that they would compute themselves."""

import doctest
import importlib
import pathlib
import pickle
import re
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from printed import ROOT, lines_of, numbers

pytest.importorskip("emoji")

NUM_IMAGES, DIM = 14, 6
COUNTS = np.array([1, 3, 2, 5, 1, 2, 4, 1, 1, 3, 2, 2, 1, 2])
ITEMS = np.repeat(np.arange(NUM_IMAGES), COUNTS)


@pytest.fixture(scope="module")
def places():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        yield importlib.import_module("examples.places")


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def arrays():
    """Texts, images, and a bank of either."""
    random = np.random.default_rng(0)
    images, bank = random.normal(size=(NUM_IMAGES, DIM)), random.normal(size=(20, DIM))
    texts = images[ITEMS] + 0.8 * random.normal(size=(len(ITEMS), DIM))
    asking = bank + 0.8 * random.normal(size=bank.shape)
    return tuple(map(unit, (texts, images, asking, bank)))


def their_recall(scores, right, cut):
    """As the places do it: sort, look for any right one among the first."""
    first = np.argsort(-scores, axis=1)[:, :cut]
    return np.take_along_axis(right, first, axis=1).any(axis=1).mean()


def expected(texts, images, cut, banks=(None, None)):
    """(texts ask, images ask) in float64, raw or under IS(20)."""
    right = ITEMS[:, None] == np.arange(NUM_IMAGES)
    found = []
    for queries, gallery, truth, bank in (
        (texts, images, right, banks[0]),
        (images, texts, right.T, banks[1]),
    ):
        scores = queries.astype(float) @ gallery.T.astype(float)
        if bank is not None:
            scores -= reference.log_normalizer(bank.astype(float) @ gallery.T, 20.0) / 20.0
        found.append(their_recall(scores, truth, cut))
    return found


@pytest.mark.parametrize("corrected", [pytest.param(False, marks=pytest.mark.slow), True])
def test_both_benchmarks_have_their_own_numbers(places, arrays, corrected):
    texts, images, *banks = arrays
    banks = banks if corrected else (None, None)
    ids = np.random.default_rng(1).permutation(1000)[:NUM_IMAGES]
    results = {
        "images": {"embeddings": images, "id": ids},
        "texts": {"embeddings": texts, "id": ids[ITEMS], "caption_i": np.zeros(len(ITEMS))},
    }
    big_vision = places.big_vision(results, *banks)
    clip_benchmark = places.clip_benchmark(images, texts, ITEMS.tolist(), *banks)
    for cut in (1, 5, 10):
        of_texts, of_images = expected(texts, images, cut, banks)
        assert big_vision["txt2img"][f"Recall@{cut}"] == pytest.approx(of_texts)
        assert big_vision["img2txt"][f"Recall@{cut}"] == pytest.approx(of_images)
        assert clip_benchmark[f"image_retrieval_recall@{cut}"] == pytest.approx(of_texts)
        assert clip_benchmark[f"text_retrieval_recall@{cut}"] == pytest.approx(of_images)


@pytest.mark.slow
def test_the_matrix_of_clip4clip(places, arrays):
    texts, images, *banks = arrays
    logits = [50 * rows @ images.T for rows in (texts, *banks)]
    scores, found = places.clip4clip(*logits, np.cumsum(COUNTS), logit_scale=50.0)
    # In cosines with the betas of cosines.
    plain = [rows.astype(float) @ images.T for rows in (texts, *banks)]
    wanted = reference.dual_dynamic_inverted_softmax(*plain, 20.0, 1.0, 1)
    order = np.argsort(-np.asarray(scores), axis=1)
    np.testing.assert_array_equal(order, np.argsort(-wanted, axis=1))
    right = ITEMS[:, None] == np.arange(NUM_IMAGES)
    assert found[1] == pytest.approx(their_recall(wanted, right, 1))
    pairs = [matrix[:NUM_IMAGES] for matrix in logits]
    assert places.clip4clip(*pairs)[0].shape == (NUM_IMAGES, NUM_IMAGES)


def test_late_interaction(places, arrays):
    random = np.random.default_rng(2)
    queries, documents, bank = (unit(random.normal(size=(n, 5, 4))) for n in (6, 9, 8))
    lengths = random.integers(1, 6, len(documents))
    for document, length in zip(documents, lengths, strict=True):
        document[length:] = 0
    queries[:, 4] = 0
    wanted, banked = (
        np.array(
            [
                [
                    sum((token @ document[:length].T).max() for token in query if token.any())
                    for document, length in zip(documents, lengths, strict=True)
                ]
                for query in rows
            ]
        )
        for rows in (queries, bank)
    )
    assert (wanted < 0).any()  # filled tokens would have raised these to 0
    similarity = places.max_sim(4)
    flat = [rows.reshape(len(rows), -1) for rows in (queries, documents, bank)]
    np.testing.assert_allclose(similarity(*map(jnp.asarray, flat[:2])), wanted, atol=1e-5)
    dbn = places.dbn
    statistics = dbn.stream_bank_statistics(flat[2], flat[1], beta=4.0, similarity_fn=similarity)
    correction = dbn.inverted_softmax(statistics)
    found = dbn.stream_top_k(*flat[:2], 9, correction, similarity_fn=similarity)
    scores = wanted - reference.log_normalizer(banked, 4.0) / 4.0
    np.testing.assert_array_equal(found.indices, np.argsort(-scores, axis=1))


# --- mteb -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index_of():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        yield importlib.import_module("examples.mteb_index").CorrectedIndex


def added(index, images):
    ids = [f"image {row}" for row in range(NUM_IMAGES)]
    index.add_documents(images[:5], ids[:5])
    index.add_documents(images[5:], ids[5:])
    return index


@pytest.mark.parametrize("corrected", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_index_for_mteb(index_of, arrays, corrected):
    texts, images, asking, _ = arrays
    wanted = texts.astype(float) @ images.T
    if corrected:
        wanted -= reference.log_normalizer(asking.astype(float) @ images.T, 20.0) / 20.0
    index = added(index_of(asking if corrected else None), images)
    scores, rows = index.search(texts, 99, similarity_fn=None)
    np.testing.assert_array_equal(rows, np.argsort(-wanted, axis=1))
    if not corrected:
        np.testing.assert_allclose(scores, -np.sort(-wanted, axis=1), atol=1e-5)
    ranked = {"a": ["image 7", "image 2", "image 11"], "b": ["image 0"]}
    names = {0: "a", 1: "b", 2: "no list"}
    scores, places = index.search(texts[:3], 2, None, ranked, names)
    assert places[0] == np.argsort(-wanted[0, [7, 2, 11]])[:2].tolist()
    assert (places[1:], scores[2]) == ([[0], []], [])
    index.clear()
    assert len(added(index, images).search(texts, 3)[1][0]) == 3


@pytest.mark.slow
def test_mteb_searches_with_the_index(index_of, arrays):
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.models.search_wrappers import SearchEncoderWrapper

    texts, images, asking, _ = arrays
    vectors = {f"text {row}": vector for row, vector in enumerate(texts)}
    vectors |= {f"image {row}": vector for row, vector in enumerate(images)}

    class Encoder:
        mteb_model_meta = None

        def encode(self, inputs, **_):
            return np.stack([vectors[text] for batch in inputs for text in batch["text"]])

        def similarity(self, *_):
            raise AssertionError("the index has its own")

    def table(name, count):
        names = [f"{name} {row}" for row in range(count)]
        return datasets.Dataset.from_dict({"id": names, "text": names})

    told = {"task_metadata": mteb.get_task("NFCorpus").metadata, "hf_split": "test"}
    told |= {"hf_subset": "default", "encode_kwargs": {"batch_size": 4}}
    wrapper = SearchEncoderWrapper(Encoder(), index_backend=index_of(asking))
    wrapper.index(table("image", NUM_IMAGES), **told)
    found = wrapper.search(table("text", len(texts)), top_k=3, **told)
    wanted = texts.astype(float) @ images.T
    wanted -= reference.log_normalizer(asking.astype(float) @ images.T, 20.0) / 20.0
    for row, best in enumerate(np.argsort(-wanted, axis=1)[:, :3]):
        assert set(found[f"text {row}"]) == {f"image {item}" for item in best}


# --- training loops -----------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_betas_and_reaches_the_bank(arrays, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    soft_loss = importlib.import_module("examples.soft_loss")
    _, images, asking, _ = arrays
    queries = unit(images + 0.3)
    together = soft_loss.loss(queries, images, asking)
    alone = []
    for beta in soft_loss.BETAS:
        monkeypatch.setattr(soft_loss, "BETAS", beta[None])
        alone.append(soft_loss.loss(queries, images, asking))
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-5)
    gradient = jax.grad(soft_loss.loss, argnums=2)(queries, images, jnp.asarray(asking))
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name"), [("flax", "flax_loop"), ("equinox", "equinox_loop")])
def test_loops_learn_alike_on_one_device_and_on_four(package, name, monkeypatch):
    pytest.importorskip(package)
    pytest.importorskip("matplotlib")
    printed = [lines_of(name), lines_of(name, devices=4)]
    for lines, devices in zip(printed, ("1 device", "4 devices"), strict=True):
        before, after, *_ = numbers(lines[0])
        assert after < before / 10
        assert lines[0].endswith(devices)
        assert numbers(lines[2])[1] > numbers(lines[1])[1]  # raw R@1 of queries it has not seen
    one, four = (numbers(lines[0])[0] for lines in printed)
    assert one == pytest.approx(four, abs=0.02)  # four leave out up to three pairs


PAGE = ROOT / "docs" / "places.md"


@pytest.mark.slow
def test_the_page_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    failures, attempted = doctest.testfile(str(PAGE), module_relative=False)
    assert attempted > 5
    assert not failures


def test_the_page_reads_arrays_of_a_pickle_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^    import pickle.*", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    code = compile(textwrap.dedent(code), PAGE.name, "exec")
    matrix = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for protocol in range(2, 6):
        for kept in (matrix, matrix.T, matrix.astype(np.float64)):
            (tmp_path / "matrix.pkl").write_bytes(pickle.dumps(kept, protocol))
            exec(code, {})
            np.testing.assert_allclose(np.load("matrix.npy"), kept, rtol=1e-6)

    class Call:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "called",)

    for hostile in (Call(), np.array([Call()], object)):
        (tmp_path / "matrix.pkl").write_bytes(pickle.dumps(hostile))
        with pytest.raises(pickle.UnpicklingError, match="is no array"):
            exec(code, {})
    assert not (tmp_path / "called").exists()


def test_the_page_names_them_all():
    named = set(re.findall(r"`examples/(\w+)\.py`", PAGE.read_text("utf-8")))
    assert {"flax_loop", "equinox_loop", "mteb_index", "places", "soft_loss"} <= named
    for name in named:
        assert (ROOT / "examples" / f"{name}.py").is_file()
