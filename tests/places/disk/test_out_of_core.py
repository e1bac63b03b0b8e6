"""Files larger than memory: what the streamed functions give, from whatever holds the rows."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dbnorm_jax as dbn
from dbnorm_jax._src.places.disk import checkpoint, drive, fits
from dbnorm_jax._src.places.disk.rows import prefetched

pytestmark = pytest.mark.usefixtures("compile_fast")

out_of_core = dbn.out_of_core
NUM_BANK, NUM_GALLERY, NUM_QUERIES, DIM = 29, 41, 19, 5
BLOCK = 16  # 41 = 16 + 16 + 9


def rows(seed, count):
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


BANK, GALLERY, QUERIES = rows(0, NUM_BANK), rows(1, NUM_GALLERY), rows(2, NUM_QUERIES)
OPTIONS = {"block_size": BLOCK}


class Anew:
    """An iterable of uneven blocks that begins anew each time, as an opened file would."""

    def __init__(self, array, sizes=(3, 0, 20, 1)):
        self.array, self.sizes = array, sizes

    def __iter__(self):
        start = 0
        for size in itertools.cycle(self.sizes):
            if start >= len(self.array):
                return
            yield self.array[start : start + size]
            start += size


class Convertible:
    """What `np.asarray` takes and says nothing else of itself, as tensors of other libraries do."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def memory_mapped(folder, array, order="C", dtype="<f4"):
    path = folder / f"{abs(hash((array.tobytes(), order, dtype)))}.npy"
    np.save(path, np.asarray(array, dtype, order=order))
    return np.load(path, mmap_mode="r")


FORMS = {
    "array": lambda folder, array: array,
    "jax": lambda folder, array: jnp.asarray(array),
    "mapped": memory_mapped,
    "big-endian": lambda folder, array: memory_mapped(folder, array, dtype=">f4"),
    "fortran": lambda folder, array: memory_mapped(folder, array, "F", "<f8"),
    "list": lambda folder, array: np.array_split(array, 7),
    "iterable": lambda folder, array: Anew(array),
    "convertible": lambda folder, array: Convertible(array),
}


def assert_statistics(found, expected):
    np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=4e-6, atol=4e-6)
    np.testing.assert_allclose(found.mass, expected.mass, rtol=1e-6)
    assert found.k == expected.k
    if expected.k:
        np.testing.assert_array_equal(found.k_occurrence, expected.k_occurrence)


def test_a_bank_of_one_block_takes_a_gallery_that_can_be_read_once():
    found = out_of_core.bank_statistics(
        BANK, iter(np.array_split(GALLERY, 3)), beta=3.0, block_size=64
    )
    assert_statistics(found, dbn.stream_bank_statistics(BANK, GALLERY, beta=3.0))


def test_a_gallery_that_can_be_read_once_is_refused_before_it_is_read():
    with pytest.raises(ValueError, match="passed over once per block of queries"):
        out_of_core.top_k(QUERIES, iter([GALLERY]), 3, **OPTIONS)


@pytest.mark.parametrize("chunk_size", [1, 8])
def test_rows_of_two_chunks_count_once(chunk_size):
    found = out_of_core.bank_statistics(
        BANK, GALLERY, beta=3.0, block_size=64, chunk_size=chunk_size
    )
    assert_statistics(found, dbn.stream_bank_statistics(BANK, GALLERY, beta=3.0))


def test_largest_similarities_leave_own_copies_out():
    exclude = np.arange(NUM_BANK) - 1
    options = {"k": 4, "exclude": exclude}
    found = out_of_core.largest_similarities(Anew(BANK), GALLERY, **options, **OPTIONS).values
    expected = dbn.stream_largest_similarities(BANK, GALLERY, **options).values
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="`exclude` must have one entry per bank row"):
        out_of_core.largest_similarities(Anew(BANK), GALLERY, k=4, exclude=exclude[:-1], **OPTIONS)


def test_ranks_of_queries_whose_number_only_csr_pairs_tell():
    right = np.random.default_rng(0).integers(0, NUM_GALLERY, 2 * NUM_QUERIES)
    pairs = (np.arange(0, 2 * NUM_QUERIES + 1, 2), right)
    found = out_of_core.ranks(Anew(QUERIES), GALLERY, pairs, **OPTIONS)
    np.testing.assert_array_equal(found, dbn.metrics.stream_ranks(QUERIES, GALLERY, pairs))


@pytest.mark.parametrize("block_size", [BLOCK, 64])
def test_largest_similarities_are_hashed_in_the_first_pass(block_size, tmp_path):
    fitted = fits.fit_largest(
        BANK,
        GALLERY,
        fits.Settings(dbn.dot_product, block_size=block_size),
        k=4,
        checkpoint=checkpoint.Checkpoint(tmp_path / "largest.partial", 60.0),
    )
    assert fitted.bank == out_of_core.fingerprint(BANK)
    assert fitted.gallery == out_of_core.fingerprint(GALLERY)


# --- equal to the functions in memory ------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_rows(form, folder):
    bank, gallery, queries = (FORMS[form](folder, array) for array in (BANK, GALLERY, QUERIES))
    statistics = dbn.stream_bank_statistics(BANK, GALLERY, beta=3.0, k=2)
    assert_statistics(
        out_of_core.bank_statistics(bank, gallery, beta=3.0, k=2, **OPTIONS), statistics
    )
    largest = out_of_core.largest_similarities(bank, gallery, k=4, **OPTIONS).values
    expected = dbn.stream_largest_similarities(BANK, GALLERY, k=4).values
    np.testing.assert_allclose(largest, expected, atol=1e-6)
    found = out_of_core.top_k(queries, gallery, 3, **OPTIONS)
    expected = dbn.stream_top_k(QUERIES, GALLERY, 3)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    described = out_of_core.fingerprint(bank)
    assert described == out_of_core.fingerprint(BANK)
    assert (described["rows"], described["dim"]) == BANK.shape


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cosine_similarity", marks=pytest.mark.slow),
        pytest.param("negative_squared_euclidean", marks=pytest.mark.slow),
    ],
)
def test_similarities(name):
    similarity_fn = getattr(dbn, name)
    options = {"beta": 2.0, "similarity_fn": similarity_fn}
    assert_statistics(
        out_of_core.bank_statistics(BANK, Anew(GALLERY), **options, **OPTIONS),
        dbn.stream_bank_statistics(BANK, GALLERY, **options),
    )


WEIGHTS = np.arange(NUM_BANK, dtype=np.float32) % 3
EXCLUDE = np.stack([np.arange(NUM_BANK) - 1, np.arange(NUM_BANK) // 2], axis=1)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 3.0, "weights": WEIGHTS, "exclude": EXCLUDE},
        pytest.param({"beta": 3.0, "weights": WEIGHTS}, marks=pytest.mark.slow),
        pytest.param(
            {"beta": np.array([0.5, 30.0], np.float32), "weights": WEIGHTS, "k": 0},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["both", "weights", "betas"],
)
def test_weights_exclusions_and_several_betas(options):
    assert_statistics(
        out_of_core.bank_statistics(Anew(BANK), GALLERY, **options, **OPTIONS),
        dbn.stream_bank_statistics(BANK, GALLERY, **options),
    )


@pytest.mark.slow
def test_largest_similarities_with_exclusions():
    exclude = EXCLUDE
    found = out_of_core.largest_similarities(BANK, GALLERY, k=2, exclude=exclude, **OPTIONS)
    expected = dbn.stream_largest_similarities(BANK, GALLERY, k=2, exclude=exclude)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)


def corrections():
    statistics = [dbn.stream_bank_statistics(BANK, GALLERY, beta=beta) for beta in (3.0, 0.5)]
    dual = dbn.dual_dynamic_inverted_softmax(*statistics)
    return {
        "IS": dbn.inverted_softmax(statistics[0]),
        "DIS": dbn.dynamic_inverted_softmax(statistics[0]),
        "DualDIS": dual,
        "soft gates": dbn.Correction(dual.bias, jnp.where(dual.active, 0.5, 0.25)),
    }


@pytest.mark.parametrize(
    "name",
    [
        "DualDIS",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("IS", "DIS", "soft gates")),
    ],
)
def test_corrected_search_and_ranks(name):
    correction = corrections()[name]
    found = out_of_core.top_k(Anew(QUERIES), Anew(GALLERY), 3, correction, **OPTIONS)
    expected = dbn.stream_top_k(QUERIES, GALLERY, 3, correction)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-6)
    relevant = np.arange(NUM_QUERIES) * 2
    relevant[3] = -1
    found = out_of_core.ranks(QUERIES, Anew(GALLERY), relevant, correction, **OPTIONS)
    expected = dbn.metrics.stream_ranks(QUERIES, GALLERY, relevant, correction)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_ranks_with_several_right_items():
    right = np.zeros((NUM_QUERIES, NUM_GALLERY), bool)
    right[np.arange(NUM_QUERIES), 3], right[::2, 40] = True, True
    expected = dbn.metrics.stream_ranks(QUERIES, GALLERY, right)
    for relevant in (right, (np.append(0, right.sum(1).cumsum()), np.nonzero(right)[1])):
        found = out_of_core.ranks(Anew(QUERIES), Anew(GALLERY), relevant, **OPTIONS)
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_ties_go_to_the_lowest_index(seed):
    """Small integers are exact: the order of a stable sort."""
    random = np.random.default_rng(seed)
    queries, gallery = (
        random.integers(-1, 2, size=(count, DIM)).astype(np.float32)
        for count in (NUM_QUERIES, NUM_GALLERY)
    )
    scores = queries @ gallery.T
    order = np.argsort(-scores, axis=1, kind="stable")
    found = out_of_core.top_k(queries, gallery, 3, **OPTIONS)
    np.testing.assert_array_equal(found.indices, order[:, :3])
    statistics = out_of_core.bank_statistics(queries, gallery, beta=1.0, k=2, **OPTIONS)
    counts = np.bincount(order[:, :2].reshape(-1), minlength=NUM_GALLERY)
    np.testing.assert_array_equal(statistics.k_occurrence, counts)
    best = np.arange(NUM_QUERIES) + 5
    level = scores[np.arange(NUM_QUERIES), best][:, None]
    ranks = 1 + (scores > level).sum(1) + ((scores == level).sum(1) - 1) / 2
    np.testing.assert_array_equal(out_of_core.ranks(queries, gallery, best, **OPTIONS), ranks)


def test_results_hardly_depend_on_the_blocks():
    whole = out_of_core.bank_statistics(BANK, GALLERY, beta=30.0)
    again = out_of_core.bank_statistics(BANK, GALLERY, beta=30.0)
    np.testing.assert_array_equal(whole.log_normalizer, again.log_normalizer)
    parts = out_of_core.bank_statistics(BANK, GALLERY, beta=30.0, **OPTIONS)
    apart = np.abs(parts.log_normalizer - whole.log_normalizer)
    assert (apart <= 4e-6 * np.maximum(1, np.abs(whole.log_normalizer))).all()


@pytest.mark.slow
def test_k_beyond_the_blocks():
    found = out_of_core.top_k(QUERIES, GALLERY, 30, **OPTIONS)
    np.testing.assert_array_equal(found.indices, dbn.stream_top_k(QUERIES, GALLERY, 30).indices)


@pytest.mark.slow
def test_float64(x64):
    bank, gallery = BANK.astype(np.float64), GALLERY.astype(np.float64)
    found = out_of_core.bank_statistics(bank, Anew(gallery), beta=3.0, **OPTIONS)
    assert found.log_normalizer.dtype == np.float64
    expected = dbn.stream_bank_statistics(bank, gallery, beta=3.0)
    np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=1e-13)


# --- blocks --------------------------------------------------------------------------------------


def test_ragged_blocks_compile_once():
    before = drive._add._cache_size()
    for gallery in (GALLERY, Anew(GALLERY)):
        # A chunk size of their own: no other test has compiled for it.
        out_of_core.bank_statistics(BANK, gallery, beta=3.0, chunk_size=13, **OPTIONS)
        out_of_core.top_k(QUERIES, gallery, 3, chunk_size=13, **OPTIONS)
    assert drive._add._cache_size() - before == 2  # one of the fit, one of the search


def test_results_come_block_by_block():
    read = []

    def queries():
        for block in np.array_split(QUERIES, NUM_QUERIES):
            read.append(len(read))
            yield block

    found = out_of_core.top_k_blocks(queries(), GALLERY, 2, block_size=4)
    assert next(found).indices.shape == (4, 2)
    assert len(read) <= 3 * 4  # one block ahead
    assert sum(len(part.indices) for part in found) == NUM_QUERIES - 4


def test_one_block_ahead_and_no_thread_left():
    made = []

    def items():
        for item in range(5):
            made.append(item)
            yield item

    ahead = prefetched(items())
    assert next(ahead) == 0
    assert len(made) <= 2
    ahead.close()
    assert not [thread for thread in threading.enumerate() if "dbnorm-reader" in thread.name]


def test_an_error_of_the_source_comes_through():
    def failing():
        yield BANK[:20]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        out_of_core.bank_statistics(failing(), GALLERY, beta=1.0, **OPTIONS)


# --- what is refused -----------------------------------------------------------------------------


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def fit(bank=BANK, gallery=GALLERY, **options):
    return lambda: out_of_core.bank_statistics(bank, gallery, **{"beta": 1.0, **OPTIONS, **options})


def search(queries=QUERIES, gallery=GALLERY, k=2, correction=None, **options):
    return lambda: out_of_core.top_k(queries, gallery, k, correction, **OPTIONS, **options)


SHORT = dbn.Correction(jnp.zeros((1, 40)), None)
REFUSED = {
    "an iterator for the gallery": (fit(gallery=iter([GALLERY])), ValueError, "begins anew"),
    "an iterator for queries' gallery": (search(gallery=iter([GALLERY])), ValueError, "a list"),
    "nan": (fit(gallery=changed(GALLERY, (37, 2), np.nan)), ValueError, r"gallery.*\[37, 2\]"),
    "infinity": (fit(bank=Anew(changed(BANK, (25, 0), -np.inf))), ValueError, r"bank.*\[25, 0\]"),
    "zero row": (
        fit(bank=changed(BANK, 20, 0), similarity_fn=dbn.cosine_similarity),
        ValueError,
        "bank.*zero row.*row 20",
    ),
    "integers": (fit(bank=np.ones((3, DIM), int)), TypeError, "bank.*floating"),
    "one axis": (fit(bank=[BANK[0]]), ValueError, "bank.*2 axes.*blocks of rows"),
    "nothing": (fit(bank=iter([])), ValueError, "bank.*at least one row"),
    "text": (fit(bank="bank.npy"), TypeError, "bank.*str"),
    "other columns": (fit(gallery=GALLERY[:, :4]), ValueError, "same number of columns.*5 and 4"),
    "other columns, late": (
        fit(gallery=[GALLERY, GALLERY[:, :4]]),
        ValueError,
        "gallery.*one kind",
    ),
    "other columns, blocks": (fit(gallery=[GALLERY[:, :4]]), ValueError, "same number of columns"),
    "large k": (fit(k=42), ValueError, "`k` must be between 0 and 41"),
    "large k, late": (search(gallery=[GALLERY], k=42), ValueError, "`k` must be between 1 and 41"),
    "short weights": (fit(bank=[BANK], weights=np.ones(28)), ValueError, "weights.*29"),
    "long weights": (fit(bank=[BANK], weights=np.ones(30)), ValueError, "weights.*29.*30"),
    "another gallery": (search(correction=SHORT), ValueError, "40 gallery items"),
    "another gallery, late": (
        search(gallery=[GALLERY], correction=SHORT),
        ValueError,
        "40 gallery items",
    ),
    "bad beta": (fit(beta=-1.0), ValueError, "`beta` must be positive"),
    "bad block size": (fit(block_size=0), ValueError, "block_size"),
    "another dimension, seen when read": (
        lambda: largest(Anew(BANK[:, :2]), Anew(GALLERY))(),  # noqa: PLW0108 - defined below
        ValueError,
        "`bank` and `gallery` must have the same number of columns.*got 2 and 5",
    ),
    "right items out of range": (
        lambda: out_of_core.ranks(QUERIES, [GALLERY], np.full(NUM_QUERIES, 41), **OPTIONS),
        ValueError,
        "relevant.*40, got 41",
    ),
    "few right items": (
        lambda: out_of_core.ranks([QUERIES], GALLERY, np.zeros(7, int), **OPTIONS),
        ValueError,
        "relevant.*one entry",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        call()


def test_traced_arguments_are_refused():
    with pytest.raises(TypeError, match="concrete"):
        jax.jit(lambda bank: out_of_core.top_k(bank, GALLERY, 1).scores)(BANK)


def test_a_gallery_that_changes_is_noticed():
    class Shrinking:
        length = NUM_GALLERY + 1

        def __iter__(self):
            self.length -= 1
            yield GALLERY[: self.length]

    with pytest.raises(ValueError, match=r"gallery.*same rows each time.*41 and then 40"):
        out_of_core.bank_statistics(BANK, Shrinking(), beta=1.0, **OPTIONS)


# --- checkpoints ---------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def largest(bank=BANK, gallery=GALLERY, **options):
    return lambda: out_of_core.largest_similarities(bank, gallery, **{"k": 2, **OPTIONS, **options})


def killed_after(steps, path, fit=fit, **options):
    """A fit that is interrupted after some blocks against blocks, the sums of each kept."""
    left = iter(range(steps))

    def progress(*_):
        if next(left, None) is None:
            raise KilledError

    with pytest.raises(KilledError):
        fit(checkpoint=path, checkpoint_every=0, progress=progress, **options)()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_resumed_is_bit_by_bit_the_same(steps, tmp_path):
    path = tmp_path / "sums.partial"
    whole = fit(beta=3.0)()
    killed_after(steps, path, beta=3.0)
    taken_up = []
    resumed = fit(beta=3.0, checkpoint=path, progress=lambda *done: taken_up.append(done))()
    assert len(taken_up) == 6 - steps  # 2 blocks of the bank against 3 of the gallery
    for first, second in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(first, second)
    # Done already: nothing is computed again.
    again = fit(beta=3.0, checkpoint=path, progress=lambda *done: pytest.fail("computed"))()
    np.testing.assert_array_equal(again.bias, whole.bias)


@pytest.mark.parametrize("name", ["sums", "largest"])
def test_killed_twice(name, tmp_path):
    """In the second block of rows: the items have passed as a whole before, and now in part."""
    function, options = (fit, {"beta": 3.0}) if name == "sums" else (largest, {})
    path = tmp_path / f"{name}.partial"
    for steps in (4, 1):
        killed_after(steps, path, function, **options)
    whole, resumed = function(**options)(), function(**options, checkpoint=path)()
    for first, second in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(first, second)


def test_resuming_iterables(tmp_path):
    path = tmp_path / "sums.partial"
    options = {"bank": Anew(BANK), "gallery": Anew(GALLERY), "k": 0}
    killed_after(4, path, beta=3.0, **options)
    resumed, whole = (
        fit(beta=3.0, checkpoint=kept, **options)() for kept in (path, tmp_path / "other")
    )
    np.testing.assert_array_equal(resumed.log_normalizer, whole.log_normalizer)


def test_finished_sums_without_neighborhoods_are_taken_up(tmp_path):
    first = fit(beta=3.0, k=0, checkpoint=tmp_path / "sums")()
    again = fit(beta=3.0, k=0, checkpoint=tmp_path / "sums", progress=pytest.fail)()
    np.testing.assert_array_equal(again.bias, first.bias)


OTHER_WORK = {
    "beta": ({"beta": 2.0}, "beta"),
    "k": ({"k": 3}, "k"),
    "similarity": ({"similarity_fn": dbn.cosine_similarity}, "similarity"),
    "weights": ({"weights": np.ones(NUM_BANK)}, "weights"),
    "blocks": ({"block_size": 8}, "block_size"),
    "bank": ({"bank": changed(BANK, (2, 2), 7)}, "bank.*changed"),
    "gallery": ({"gallery": changed(GALLERY, (2, 2), 7)}, "gallery.*changed"),
    "shorter gallery": ({"gallery": GALLERY[:20]}, "gallery"),
}


@pytest.mark.parametrize("steps", [5, 7])
@pytest.mark.parametrize("case", OTHER_WORK)
def test_other_work_is_not_taken_up(case, steps, tmp_path):
    path = tmp_path / "sums.partial"
    if steps > 6:
        fit(beta=3.0, checkpoint=path)()
    else:
        killed_after(steps, path, beta=3.0)
    options, words = OTHER_WORK[case]
    with pytest.raises(ValueError, match=words):
        fit(**{"beta": 3.0, **options}, checkpoint=path)()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_resumed_largest_similarities_are_the_same(steps, tmp_path):
    path = tmp_path / "largest.partial"
    whole = largest()()
    killed_after(steps, path, largest)
    taken_up = []
    resumed = largest(checkpoint=path, progress=lambda *done: taken_up.append(done))()
    # 3 blocks of the gallery against 2 of the bank; a block is kept when the next has begun.
    assert len(taken_up) == 6 - 2 * ((steps - 1) // 2)
    np.testing.assert_array_equal(resumed.values, whole.values)
    again = largest(checkpoint=path, progress=lambda *done: pytest.fail("computed"))()
    np.testing.assert_array_equal(again.values, whole.values)


OTHER_LARGEST = {
    "k": ({"k": 3}, "largest_similarities 3"),
    "exclude": ({"exclude": np.full(NUM_BANK, -1)}, "exclude"),
    "bank": ({"bank": changed(BANK, (2, 2), 7)}, "bank.*changed"),
    "shorter bank": ({"bank": BANK[:20]}, "bank.*rows that the checkpoint"),
    "gallery": ({"gallery": changed(GALLERY, (2, 2), 7)}, "gallery.*changed"),
    "shorter gallery": ({"gallery": GALLERY[:12]}, "gallery"),
}


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("case", OTHER_LARGEST)
def test_largest_similarities_of_other_work_are_not_taken_up(case, steps, tmp_path):
    path = tmp_path / "largest.partial"
    if steps > 6:
        largest(checkpoint=path)()
    else:
        killed_after(steps, path, largest)
    options, words = OTHER_LARGEST[case]
    with pytest.raises(ValueError, match=words):
        largest(**options, checkpoint=path)()


def test_checkpoints_of_another_kind_are_not_taken_up(tmp_path):
    fit(beta=3.0, checkpoint=tmp_path / "sums")()
    largest(checkpoint=tmp_path / "largest")()
    with pytest.raises(ValueError, match="largest_similarities"):
        largest(checkpoint=tmp_path / "sums")()
    with pytest.raises(ValueError, match="beta"):
        fit(beta=3.0, checkpoint=tmp_path / "largest")()
