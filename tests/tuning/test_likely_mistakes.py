"""The mistakes that ruin results, each made on the demo's embeddings, are named with the remedy."""

import dataclasses
import pathlib

import numpy as np
import pytest

pytest.importorskip("emoji")

import dbnorm_jax as dbn
from dbnorm_jax import tuning
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import reversed_set
from dbnorm_jax._src.tuning import bank_checks

SETS = sorted((pathlib.Path(__file__).parents[3] / "shared" / "data").glob("*/data.npz"))
SIZE = 641  # of each side of the demo


@dataclasses.dataclass
class Inputs:
    queries: np.ndarray
    gallery: np.ndarray
    query_bank: np.ndarray
    gallery_bank: np.ndarray | None


def inputs(test):
    names = [field.name for field in dataclasses.fields(Inputs)]
    return {name: np.asarray(getattr(test, name)) for name in names}


@pytest.fixture(scope="module")
def right():
    """The demo as it should be given."""
    return {**inputs(emoji_names()), "relevant": np.arange(SIZE), "beta_query": 20.0}


def matrices(right):
    return {
        "similarities": right["queries"] @ right["gallery"].T,
        "query_bank_similarities": right["query_bank"] @ right["gallery"].T,
        "relevant": right["relevant"],
        "beta_query": 20.0,
    }


def test_what_is_right_is_silent(right):
    assert tuning.likely_mistakes(**right) == ()
    assert tuning.likely_mistakes(**right, similarity_fn=dbn.cosine_similarity) == ()
    assert tuning.likely_mistakes(**matrices(right)) == ()
    for name in ("queries", "gallery_bank", "relevant"):
        assert tuning.likely_mistakes(**{**right, name: None}) == ()
    few = {name: value[:49] for name, value in right.items() if name != "beta_query"}
    assert tuning.likely_mistakes(**few | {"relevant": np.arange(49)[::-1]}) == ()


def exchanged_banks(given):
    return given | {"query_bank": given["gallery_bank"], "gallery_bank": given["query_bank"]}


def exchanged_sides(given):
    return given | {"queries": given["gallery"], "gallery": given["queries"]}


def gallery_items_as_bank(given):
    return given | {"query_bank": given["gallery_bank"], "gallery_bank": None}


def queries_as_gallery_bank(given):
    return given | {"gallery_bank": given["query_bank"]}


def images_five_times(given):
    return given | {
        "queries": np.repeat(given["queries"], 5, axis=0),
        "gallery": np.repeat(given["gallery"], 5, axis=0),
        "relevant": np.arange(5 * SIZE),
    }


def gallery_end_to_end(given):
    return given | {
        "gallery": np.tile(given["gallery"], (2, 1)),
        "queries": np.tile(given["queries"], (2, 1)),
        "relevant": np.arange(2 * SIZE),
    }


def captions_without_relevant(given):
    return given | {"queries": np.repeat(given["queries"], 5, axis=0) + NOISE, "relevant": None}


def images_without_relevant(given):
    noisy = np.repeat(given["gallery"], 5, axis=0) + NOISE
    return given | {"gallery": noisy, "relevant": None}


NOISE = np.random.default_rng(0).normal(0, 0.003, (5 * SIZE, 1024)).astype(np.float32)


def off_by_one(given):
    return given | {"relevant": np.minimum(given["relevant"] + 1, SIZE - 1)}


def of_another_order(given):
    return given | {"relevant": np.random.default_rng(0).permutation(SIZE)}


def scaled_queries(given):
    return given | {"queries": 3.7 * given["queries"]}


def scaled_gallery_bank(given):
    return given | {"gallery_bank": given["gallery_bank"] / 3}


def large_beta(given):
    return given | {"beta_query": 2000.0}


def small_beta(given):
    return given | {"beta_query": 0.2}


def distances(given):
    given = matrices(given)
    return given | {"similarities": 1 - given["similarities"]}


def transposed(given):
    given = matrices(given)
    return given | {"similarities": given["similarities"].T.copy()}


def transposed_bank(given):
    given = matrices(given)
    return given | {"query_bank_similarities": given["query_bank_similarities"].T.copy()}


def gallery_as_query_bank(given):
    return given | {"query_bank": given["gallery"]}


MISTAKES = {
    exchanged_banks: "exchange the two banks, or QUERIES and GALLERY",
    exchanged_sides: "exchange the two banks, or QUERIES and GALLERY",
    gallery_items_as_bank: "give items like the queries as query bank, or exchange QUERIES",
    queries_as_gallery_bank: "give items like the gallery as gallery bank",
    gallery_as_query_bank: "641 rows of the query bank equal gallery items",
    images_five_times: 'give gallery[::5] in its place, then write python -c "import numpy as np; '
    "np.save('relevant.npy', np.arange(3205) // 5)\" and give --relevant relevant.npy",
    gallery_end_to_end: 'give gallery[:641] in its place, then write python -c "import numpy as '
    "np; np.save('relevant.npy', np.arange(1282) % 641)\"",
    captions_without_relevant: "np.save('relevant.npy', np.arange(3205) // 5)\" and give",
    images_without_relevant: "np.save('relevant.npy', np.arange(3205) // 5)\" and give",
    off_by_one: "the row before each of them ranks far better, so the row numbers are off by one",
    of_another_order: "numbers the rows of the gallery from 0 in their order",
    scaled_queries: "the norms of the queries (median 3.7) are 3.7 times those of the query bank",
    scaled_gallery_bank: "the norms of the gallery (median 1) are 3 times those of the gallery",
    large_beta: "beta 2000 is large for these similarities",
    small_beta: "beta 0.2 is small for these similarities",
    distances: "are distances given as similarities? Give their negatives",
    transposed: "the similarities look transposed",
    transposed_bank: "the query-bank similarities look transposed",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_named(mistake, right):
    found = tuning.likely_mistakes(**mistake(right))
    assert len(found) == 1, found
    assert MISTAKES[mistake] in found[0]


def test_the_relevant_line_is_right(right, tmp_path, monkeypatch):
    """The line that is printed makes the right items of what was given."""
    given = captions_without_relevant(right)
    (found,) = tuning.likely_mistakes(**given)
    code = found.partition('python -c "')[2].partition('"')[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    given["relevant"] = np.load("relevant.npy")
    assert tuning.likely_mistakes(**given) == ()


def test_copies_that_are_all_named_right_are_silent(right):
    given = images_five_times(right)
    all_five = 5 * (np.arange(5 * SIZE) // 5)[:, None] + np.arange(5)
    assert tuning.likely_mistakes(**given | {"relevant": all_five}) == ()


def test_corrections_below_raw_are_told():
    rng = np.random.default_rng(0)
    raw = np.where(rng.random(400) < 0.6, 1.0, 5.0)
    worse = np.where(rng.random((2, 400)) < 0.2, 3.0, raw)
    (found,) = tuning.likely_mistakes(ranks=np.stack([raw, *worse]))
    assert found.startswith("every correction is below raw (the best by ")
    assert tuning.likely_mistakes(ranks=np.stack([raw, worse[0], raw])) == ()
    assert tuning.likely_mistakes(ranks=np.stack([raw, worse[0]])) == ()


def test_bad_arguments_are_named(right):
    with pytest.raises(ValueError, match="`relevant`"):
        tuning.likely_mistakes(**right | {"relevant": np.full(SIZE, SIZE)})
    with pytest.raises(ValueError, match="`gallery_bank`"):
        tuning.likely_mistakes(**right | {"gallery_bank": right["gallery_bank"][:, 1:]})


def test_first_equal_rows():
    rows = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [-0.0, 1.0]])
    np.testing.assert_array_equal(bank_checks.first_equal(rows), [0, 1, 0, 1])


CASES = [(path, backwards) for path in SETS for backwards in (False, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "backwards"), CASES, ids=str)
def test_real_sets_are_silent_until_they_are_used_wrongly(path, backwards):
    test = read_set(str(path), "cosine")
    test = reversed_set(test) if backwards else test
    given = {**inputs(test), "relevant": test.relevant, "beta_query": 20.0}
    assert tuning.likely_mistakes(**given) == ()
    for mistake in (exchanged_banks, gallery_items_as_bank, scaled_queries, large_beta):
        (found,) = tuning.likely_mistakes(**mistake(given))
        assert MISTAKES[mistake][:20] in found
    if len(given["queries"]) == len(given["gallery"]):
        turned = matrices(given)
        assert tuning.likely_mistakes(**turned) == ()
        turned["similarities"] = turned["similarities"].T.copy()
        assert any("transposed" in one for one in tuning.likely_mistakes(**turned))
