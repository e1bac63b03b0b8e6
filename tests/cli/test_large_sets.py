"""`evaluate` and `inspect` with sets too large for memory: what they find, hold and refuse."""

import json
import mmap
from functools import partial

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.measuring import choosing, methods, sources
from dbnorm_jax._cli.reading import sets
from dbnorm_jax._src.places.disk import rows as rows_module

SIZE, DIM = 60, 8
BANKS = ("--query-bank", "query_bank.npy", "--gallery-bank", "gallery_bank.npy")
PAIRED = ("--bank-pairs", "rows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Paired embeddings with a common direction, which makes hubs."""
    folder = tmp_path_factory.mktemp("set")
    random = np.random.default_rng(5)
    for names in (("gallery", "queries"), ("gallery_bank", "query_bank")):
        items = random.normal(size=(SIZE, DIM)) + 1
        asked = items + random.normal(size=items.shape)
        for name, rows in zip(names, (items, asked), strict=True):
            np.save(folder / f"{name}.npy", rows.astype(np.float32))
    return folder


@pytest.fixture
def both_ways(call, folder, monkeypatch):
    """Runs a command in memory and in blocks of 16 rows -> what it prints as JSON, twice."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        found = []
        for most in (sets.MOST_IN_MEMORY, 0):
            monkeypatch.setattr(sets, "MOST_IN_MEMORY", most)
            code, out, err = call(*arguments, "--json")
            assert code == 0, err
            found.append(json.loads(out))
        return found

    def in_blocks(function):
        return lambda *rows, **options: function(*rows, **options, block_size=16)

    small = sources.Passes(*map(in_blocks, sources._OUT_OF_CORE))
    monkeypatch.setattr(sources, "_OUT_OF_CORE", small)
    # What is chosen for large files is of statistics alone, and so here in memory too.
    monkeypatch.setattr(methods, "choose", partial(choosing.choose, mergeable=True))
    monkeypatch.setattr(sources, "DEFAULT_BLOCK_SIZE", 16)
    return run


def assert_alike(first, second):
    """Equal but for the rounding of tiles."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert_alike(value, second[name])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_alike(one, other)
    elif isinstance(first, float):
        np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-4)
    else:
        assert second == first


@pytest.mark.slow
def test_evaluate_finds_the_same(both_ways):
    assert_alike(*both_ways("evaluate", "queries.npy", "gallery.npy", *BANKS, "--methods", "is"))


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_evaluate_finds_the_same_under_all_methods(both_ways, similarity):
    methods = "auto,all" if similarity == "cosine" else "is:beta_query=2,csls"
    files = ("evaluate", "queries.npy", "gallery.npy", *BANKS, *PAIRED)
    assert_alike(*both_ways(*files, "--similarity", similarity, "--methods", methods))


@pytest.mark.slow
@pytest.mark.parametrize("banks", [BANKS[:2], BANKS, (*BANKS, *PAIRED)], ids=len)
def test_inspect_finds_the_same(both_ways, banks):
    files = ("inspect", "gallery.npy", "--queries", "queries.npy", *banks)
    assert_alike(*both_ways(*files, "--method", "is"))


@pytest.mark.slow
def test_a_sample_of_a_large_gallery_is_ranked(both_ways, monkeypatch):
    """The choice is made all the same, and in memory it is the same choice."""
    monkeypatch.setattr(choosing, "_MOST_RANKED", 20)
    files = ("evaluate", "queries.npy", "gallery.npy", *BANKS, *PAIRED)
    assert_alike(*both_ways(*files, "--methods", "auto"))


# --- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_rows_are_those_prepared_in_memory(monkeypatch, similarity):
    rows = np.random.default_rng(1).normal(size=(50, 6))
    expected = sets.prepared("GALLERY", rows, similarity)
    monkeypatch.setattr(sets, "MOST_IN_MEMORY", expected.nbytes - 1)
    monkeypatch.setattr(sets, "ROWS_AT_ONCE", 7)
    found = sets.prepared("GALLERY", rows, similarity)
    assert isinstance(found, sets.LargeRows)
    assert (found.shape, found.dtype, len(found)) == ((50, 6), np.float32, 50)
    np.testing.assert_array_equal(np.asarray(found), expected)
    for places in (slice(10, 40), np.array([49, 3, 3])):
        np.testing.assert_array_equal(found[places], expected[places])


@pytest.mark.parametrize(("value", "what"), [(np.nan, "finite values"), (0.0, "non-zero length")])
def test_bad_rows_are_refused_before_any_work(monkeypatch, value, what):
    rows = np.ones((50, 6))
    rows[33] = value
    monkeypatch.setattr(sets, "MOST_IN_MEMORY", 0)
    monkeypatch.setattr(sets, "ROWS_AT_ONCE", 8)
    with pytest.raises(ValueError, match=f"GALLERY: expected .*{what}.* row 33"):
        sets.prepared("GALLERY", rows, "cosine")
    with pytest.raises(ValueError, match=f"GALLERY: expected .*{what}.* row 33"):
        sets.LargeRows("GALLERY", rows, "cosine")[20:40]


def test_a_device_takes_over_what_is_prepared():
    import jax

    rows = sets.prepared("GALLERY", np.random.default_rng(1).normal(size=(64, 32)), "cosine")
    if jax.default_backend() == "cpu":
        placed = sources.in_memory(rows)
        assert placed.unsafe_buffer_pointer() == rows.ctypes.data


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="pages stay until others need them")
def test_pages_are_handed_back_unless_they_hold_changes(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.ones((4096, 4), np.float32))
    read = np.load(path, mmap_mode="r")
    changed = np.load(path, mmap_mode="c")
    changed[:] = 2
    for rows in (read, read[10:20], changed, changed[:5], np.ones(3), None):
        rows_module.let_go(rows)
    assert (read == 1).all()
    assert (changed == 2).all()
