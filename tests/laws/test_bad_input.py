"""Bad input: an error before any work that names the argument, what was expected and what came."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import problem, statistics_of

import dbnorm_jax as dbn
from dbnorm_jax._src.core import checks

TEST = problem(0)
SIMILARITIES, BANK = TEST.similarities, TEST.query_bank_similarities
QUERY, GALLERY_STATISTICS = statistics_of(TEST)
PLAIN = dbn.bank_statistics(BANK, beta=20.0, k=0)
NARROW = dbn.bank_statistics(BANK[:, :5], beta=20.0)
CORRECTION = dbn.dual_dynamic_inverted_softmax(QUERY, GALLERY_STATISTICS)


def with_value(array, value):
    changed = array.copy()
    changed[2, 1] = value
    return changed


def bank(similarities=BANK, **options):
    return lambda: dbn.bank_statistics(similarities, **{"beta": 20.0, **options})


def stream(bank=TEST.query_bank, gallery=TEST.gallery, **options):
    return lambda: dbn.stream_bank_statistics(bank, gallery, **{"beta": 20.0, **options})


def search(queries=TEST.queries, gallery=TEST.gallery, k=2, correction=None, **options):
    return lambda: dbn.stream_top_k(queries, gallery, k, correction, **options)


# What is called -> the error, and words that its message holds in this order.
CASES = {
    "integers": (bank(np.ones((6, 7), int)), TypeError, "`similarities` floating int32 astype"),
    "bools": (bank(np.ones((6, 7), bool)), TypeError, "`similarities` floating bool"),
    "complex": (bank(BANK + 1j), TypeError, "`similarities` floating complex64"),
    "objects": (bank(BANK.astype(object)), TypeError, "`similarities` numeric object"),
    "text": (bank([["a", "b"]]), TypeError, "`similarities` numeric <U1"),
    "ragged": (bank([[1.0, 2.0], [3.0]]), ValueError, "`similarities` ragged"),
    "nothing": (bank(None), TypeError, "`similarities` NoneType"),
    "one axis": (bank(BANK[0]), ValueError, "`similarities` 2 (7,)"),
    "empty bank": (bank(BANK[:0]), ValueError, "`similarities` bank items (0, 7)"),
    "empty gallery": (bank(BANK[:, :0]), ValueError, "`similarities` gallery (6, 0)"),
    "nan": (bank(with_value(BANK, np.nan)), ValueError, "`similarities` finite nan [2, 1]"),
    "inf": (bank(with_value(BANK, np.inf)), ValueError, "`similarities` finite inf [2, 1]"),
    "zero beta": (bank(beta=0.0), ValueError, "`beta` positive got 0"),
    "negative beta": (bank(beta=-1), ValueError, "`beta` positive 1/[unit of similarity] got -1"),
    "nan beta": (bank(beta=np.nan), ValueError, "`beta` positive got nan"),
    "infinite beta": (bank(beta=np.inf), ValueError, "`beta` finite got inf"),
    "vanishing beta": (bank(beta=1e-60), ValueError, "`beta` positive got 1e-60"),
    "beta in words": (bank(beta="high"), TypeError, "`beta` numeric str"),
    "bool beta": (bank(beta=True), TypeError, "`beta` number bool"),
    "one of many betas": (stream(beta=[1.0, -2.0]), ValueError, "`beta` positive got [1.0, -2.0]"),
    "negative k": (bank(k=-1), ValueError, "`k` between 0 and 7 got -1"),
    "large k": (bank(k=8), ValueError, "`k` between 0 and 7 (gallery items) got 8"),
    "k in parts": (bank(k=1.0), TypeError, "`k` integer got 1.0"),
    "bool k": (bank(k=True), TypeError, "`k` integer got True"),
    "float mask": (bank(where=np.ones((6, 7))), TypeError, "`where` bool float"),
    "mask of other shape": (
        bank(where=np.ones((7, 6), bool)),
        ValueError,
        "`where` (6,) (6, 7) got (7, 6)",
    ),
    "mask of gallery items": (bank(where=np.ones(7, bool)), ValueError, "`where` (6,) (7,)"),
    "short weights": (bank(weights=np.ones(5)), ValueError, "`weights` (6,) (5,)"),
    "negative weights": (bank(weights=-np.ones(6)), ValueError, "`weights` negative -1"),
    "nan weights": (bank(weights=np.full(6, np.nan)), ValueError, "`weights` finite nan [0]"),
    "bool weights": (bank(weights=np.ones(6, bool)), TypeError, "`weights` multiplicities bool"),
    "stream: one axis": (stream(TEST.query_bank[0]), ValueError, "`bank` 2 axes (4,)"),
    "stream: nan": (
        stream(gallery=with_value(TEST.gallery, np.nan)),
        ValueError,
        "`gallery` finite nan [2, 1] row",
    ),
    "stream: empty": (stream(TEST.query_bank[:0]), ValueError, "`bank` at least one row (0, 4)"),
    "stream: columns": (
        stream(gallery=TEST.gallery[:, :3]),
        ValueError,
        "`bank` `gallery` columns (6, 4) (7, 3)",
    ),
    "largest: columns": (
        lambda: dbn.stream_largest_similarities(TEST.query_bank[:, 1:], TEST.gallery, k=1),
        ValueError,
        "`bank` `gallery` (6, 3) (7, 4)",
    ),
    "stream: transposed": (
        stream(gallery=TEST.gallery.T),
        ValueError,
        "(6, 4) (4, 7) transposed",
    ),
    "stream: zero row": (
        stream(TEST.query_bank * 0, similarity_fn=dbn.cosine_similarity),
        ValueError,
        "`bank` zero row 6 row 0",
    ),
    "stream: exclude": (stream(exclude=np.full(6, 7)), ValueError, "`exclude` -1 6 7"),
    "stream: exclude type": (stream(exclude=np.ones(6)), TypeError, "`exclude` integers float"),
    "stream: exclude axes": (
        stream(exclude=np.zeros((6, 1, 1), int)),
        ValueError,
        "`exclude` (6,) (6, 'most') (6, 1, 1)",
    ),
    "stream: exclude size": (stream(exclude=np.zeros(5, int)), ValueError, "`exclude` (6,) (5,)"),
    "stream: weights axes": (stream(weights=np.ones((2, 6))), ValueError, "`weights` (6,) (2, 6)"),
    "stream: chunk size": (stream(chunk_size=0), ValueError, "`chunk_size` at least 1 got 0"),
    "stream: similarity": (
        stream(similarity_fn=lambda rows, columns: rows[:, 0]),
        ValueError,
        "`similarity_fn` (6, 7) got (6,)",
    ),
    "largest: zero row": (
        lambda: dbn.stream_largest_similarities(
            TEST.query_bank * 0, TEST.gallery, k=2, similarity_fn=dbn.cosine_similarity
        ),
        ValueError,
        "`bank` zero row",
    ),
    "soft gates: zero row": (
        lambda: dbn.stream_soft_gates(
            TEST.queries * 0,
            TEST.gallery,
            CORRECTION,
            temperature=0.1,
            similarity_fn=dbn.cosine_similarity,
        ),
        ValueError,
        "`queries` zero row",
    ),
    "NNN: two weights": (
        lambda: dbn.baselines.nearest_neighbor_normalization(
            dbn.largest_similarities(BANK, k=2), weight=np.ones(2)
        ),
        TypeError,
        "`weight` real number",
    ),
    "merge: gallery": (lambda: dbn.merge(QUERY, NARROW), ValueError, "`first` 7 `others[0]` 5"),
    "merge: k": (lambda: dbn.merge(QUERY, PLAIN), ValueError, "`first` k=1 `others[0]` k=0"),
    "merge: beta": (
        lambda: dbn.merge(QUERY, GALLERY_STATISTICS),
        ValueError,
        "`first` beta=20.0 `others[0]` beta=2.0",
    ),
    "merge: the third": (
        lambda: dbn.merge(QUERY, QUERY, PLAIN),
        ValueError,
        "`first` k=1 `others[1]` k=0",
    ),
    "merge: type": (lambda: dbn.merge(QUERY, CORRECTION), TypeError, "`others[0]` BankStatistics"),
    "responsibilities": (
        lambda: dbn.responsibilities(BANK, NARROW),
        ValueError,
        "`statistics` 5 `similarities` 7 columns",
    ),
    "IS of a correction": (
        lambda: dbn.inverted_softmax(CORRECTION),
        TypeError,
        "`query_statistics` BankStatistics Correction",
    ),
    "DIS of a correction": (
        lambda: dbn.dynamic_inverted_softmax(CORRECTION),
        TypeError,
        "`query_statistics` BankStatistics Correction",
    ),
    "DualIS of a correction": (
        lambda: dbn.dual_inverted_softmax(QUERY, CORRECTION),
        TypeError,
        "`gallery_statistics` BankStatistics Correction",
    ),
    "DualDIS of a correction": (
        lambda: dbn.dual_dynamic_inverted_softmax(QUERY, CORRECTION),
        TypeError,
        "`gallery_statistics` BankStatistics Correction",
    ),
    "DIS without activation": (
        lambda: dbn.dynamic_inverted_softmax(PLAIN),
        ValueError,
        "`query_statistics` activation set k=0 k=1",
    ),
    "DualDIS without activation": (
        lambda: dbn.dual_dynamic_inverted_softmax(QUERY, PLAIN),
        ValueError,
        "`gallery_statistics` activation set k=0",
    ),
    "DualIS of two galleries": (
        lambda: dbn.dual_inverted_softmax(QUERY, NARROW),
        ValueError,
        "`query_statistics` 7 `gallery_statistics` 5",
    ),
    "three weights": (
        lambda: dbn.dual_inverted_softmax(QUERY, GALLERY_STATISTICS, weights=(1, 2, 3)),
        ValueError,
        "`weights` pair (1, 2, 3)",
    ),
    "one weight": (
        lambda: dbn.dual_inverted_softmax(QUERY, GALLERY_STATISTICS, weights=0.5),
        ValueError,
        "`weights` pair 0.5",
    ),
    "nan weight": (
        lambda: dbn.dual_inverted_softmax(QUERY, GALLERY_STATISTICS, weights=(np.nan, 1.0)),
        ValueError,
        "`weights[0]` finite nan",
    ),
    "gates of another gallery": (
        lambda: dbn.gates(SIMILARITIES[:, :4], CORRECTION),
        ValueError,
        "`correction` 7 `similarities` 4 columns",
    ),
    "gates without correction": (
        lambda: dbn.gates(SIMILARITIES, QUERY),
        TypeError,
        "`correction` Correction BankStatistics",
    ),
    "gates of other shape": (
        lambda: dbn.apply_correction(SIMILARITIES, CORRECTION, gates=np.ones((5, 1), np.float32)),
        ValueError,
        "`gates` (5, 2) (5, 1)",
    ),
    "top_k: k": (lambda: dbn.top_k(SIMILARITIES, 8), ValueError, "`k` 1 and 7 got 8"),
    "top_k: zero": (lambda: dbn.top_k(SIMILARITIES, 0), ValueError, "`k` 1 and 7 got 0"),
    "top_k: nan": (
        lambda: dbn.top_k(with_value(SIMILARITIES, np.nan), 1),
        ValueError,
        "`similarities` finite",
    ),
    "search: k": (search(k=8), ValueError, "`k` 1 and 7 got 8"),
    "search: nan": (
        search(with_value(TEST.queries, np.nan)),
        ValueError,
        "`queries` finite nan [2, 1]",
    ),
    "search: columns": (search(TEST.queries[:, 1:]), ValueError, "`queries` `gallery` (5, 3)"),
    "search: correction": (
        search(correction=dbn.inverted_softmax(NARROW)),
        ValueError,
        "`correction` 5 `gallery` 7",
    ),
    "search: batched": (
        search(correction=dbn.Correction(jnp.ones((2, 1, 7)), None)),
        ValueError,
        "`correction` (2, 1, 7) vmap",
    ),
    "index: zero row": (
        lambda: dbn.inner_product_gallery(
            TEST.gallery * 0, CORRECTION, similarity_fn=dbn.cosine_similarity
        ),
        ValueError,
        "`gallery` zero row",
    ),
    "index: correction": (
        lambda: dbn.inner_product_gallery(TEST.gallery[:5], CORRECTION),
        ValueError,
        "`correction` 7 `gallery` 5",
    ),
    "index: nan bias": (
        lambda: dbn.inner_product_gallery(
            TEST.gallery, dbn.Correction(jnp.full((1, 7), jnp.nan), None)
        ),
        ValueError,
        "`correction.bias` finite nan",
    ),
    "index: other similarity": (
        lambda: dbn.inner_product_gallery(TEST.gallery, CORRECTION, similarity_fn=max),
        ValueError,
        "`similarity_fn` dot_product inner-product forms max stream_top_k",
    ),
    "index: metric": (
        lambda: dbn.inner_product_gallery(TEST.gallery, CORRECTION, metric="l2"),
        ValueError,
        "`metric` inner_product, cosine 'l2'",
    ),
    "index: length without cosine": (
        lambda: dbn.inner_product_gallery(TEST.gallery, CORRECTION, length=3.0),
        ValueError,
        "`length` None cosine",
    ),
    "index: short length": (
        lambda: dbn.inner_product_gallery(TEST.gallery, CORRECTION, metric="cosine", length=0.1),
        ValueError,
        "`length` at least every vector 0.1 row",
    ),
    "index: lengths": (
        lambda: dbn.inner_product_gallery(
            TEST.gallery, CORRECTION, metric="cosine", length=[9.0] * 7
        ),
        ValueError,
        "`length` one number (7,)",
    ),
    "index: gates of other queries": (
        lambda: dbn.inner_product_queries(TEST.queries, np.ones((4, 2), np.float32)),
        ValueError,
        "`gates` [num_queries, num_terms] 5 (4, 2)",
    ),
    "index: gates of other terms": (
        lambda: dbn.inner_product_vectors(TEST.queries, TEST.gallery, CORRECTION, gates=[1.0]),
        ValueError,
        "`gates` `correction` 2 (5, 1)",
    ),
    "index: bool gates": (
        lambda: dbn.inner_product_queries(TEST.queries, np.ones((5, 2), bool)),
        TypeError,
        "`gates` floating bool",
    ),
    "index: columns": (
        lambda: dbn.inner_product_vectors(
            TEST.queries[:, 1:], TEST.gallery, CORRECTION, gates=[1.0, 1.0]
        ),
        ValueError,
        "`queries` `gallery` (5, 3) (7, 4)",
    ),
    "top-1: nothing found": (
        lambda: dbn.gates_from_top_1(np.array([0, -1]), CORRECTION),
        ValueError,
        "`indices` gallery rows 0 6 -1",
    ),
    "top-1: no correction": (
        lambda: dbn.gates_from_top_1([0], np.ones((1, 7))),
        TypeError,
        "`correction` Correction ndarray",
    ),
    "top-1: whole result": (
        lambda: dbn.gates_from_top_1(np.zeros((5, 10), int), CORRECTION),
        ValueError,
        "`indices` (5, 10) column 0",
    ),
    "top-1: batched": (
        lambda: dbn.gates_from_top_1([0], dbn.Correction(jnp.ones((2, 1, 7)), None)),
        ValueError,
        "`correction` (2, 1, 7) vmap",
    ),
    "search: zero row": (
        search(gallery=TEST.gallery * 0, similarity_fn=dbn.cosine_similarity),
        ValueError,
        "`gallery` zero row",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, words = CASES[case]
    with pytest.raises(error, match=".*".join(map(re.escape, words.split(" ")))):
        call()


def test_the_hint_at_a_transposed_array_is_only_given_where_it_fits():
    rows = {count: np.ones((count, 4), np.float32) for count in (4, 5, 6)}
    for bank, gallery, fits in [
        (rows[6], rows[5].T, True),  # [6, 4] and [4, 5]
        (rows[5].T, rows[6], True),
        (rows[6][:, :3], rows[5], False),
        (rows[4][:, :3], rows[5], True),  # [4, 3] and [5, 4]: the first could be [3, 4]
        (rows[6][:, :3], rows[6], False),
    ]:
        with pytest.raises(ValueError, match="number of columns") as error:
            dbn.stream_bank_statistics(bank, gallery, beta=1.0)
        assert ("transposed" in str(error.value)) == fits


class Tensor:
    """Of another library: NumPy cannot read it, DLPack can."""

    def __init__(self, values, dtype):
        self.values, self.dtype = values, dtype

    def __array__(self, dtype=None, copy=None):
        raise TypeError("unsupported")

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


def test_tensors_that_numpy_cannot_read():
    values = jnp.asarray(BANK, jnp.bfloat16)
    found = dbn.bank_statistics(Tensor(values, "torch.bfloat16"), beta=2.0).bias
    np.testing.assert_array_equal(found, dbn.bank_statistics(values, beta=2.0).bias)
    with pytest.raises(TypeError, match=r"Tensor that cannot be read \(unsupported\)"):
        dbn.bank_statistics(Tensor(values, "torch.float8"), beta=2.0)


def test_one_index_out_of_range_among_good_ones_is_noticed():
    for wrong, low, high in ((7, 0, 7), (-2, -2, 6)):
        with pytest.raises(ValueError, match=f"`indices` must .* values from {low} to {high}"):
            dbn.hubness.k_occurrence(np.array([[0, 6], [3, wrong]]), 7)


@pytest.mark.parametrize("few", [0, 2**20])  # looked at where the array lives, or by NumPy
@pytest.mark.parametrize("num_devices", [1, 8])
def test_values_are_checked_wherever_an_array_lives(few, num_devices, monkeypatch):
    monkeypatch.setattr(checks, "_FEW", few)
    mesh = jax.make_mesh((num_devices,), ("bank",), devices=jax.devices()[:num_devices])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("bank"))
    good = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    checks.check_finite("rows", jax.device_put(good, sharding))
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[[5, 7]] = value
        array = jax.device_put(bad, sharding)
        assert int(checks._first_not_finite(array)) == 5
        with pytest.raises(ValueError, match=r"`rows` must be finite.* \[5, 0\]"):
            checks.check_finite("rows", array)


SHAPE_CASES = [
    "one axis",
    "large k",
    "mask of other shape",
    "short weights",
    "stream: columns",
    "stream: chunk size",
    "gates of another gallery",
    "top_k: k",
    "search: correction",
    "index: correction",
    "index: gates of other queries",
    "top-1: whole result",
    "DIS without activation",
]


@pytest.mark.parametrize("case", SHAPE_CASES)
def test_shapes_are_checked_while_tracing(case):
    call, error, _ = CASES[case]
    with pytest.raises(error):
        jax.jit(call)()


def test_values_of_traced_arrays_are_not_looked_at():
    found = jax.jit(lambda s, beta: dbn.bank_statistics(s, beta=beta).bias)(
        with_value(BANK, np.nan), 20.0
    )
    # It stays visible, and as the bias of a column it ranks that item last, not first.
    np.testing.assert_array_equal(jnp.isnan(found), np.arange(7) == 1)
    scores = jax.jit(lambda s, b: dbn.top_k(s, 7, dbn.Correction(b[None], None)))
    assert (scores(SIMILARITIES, found).indices[:, -1] == 1).all()


def test_python_lists_and_other_byte_orders_are_taken():
    expected = dbn.bank_statistics(BANK, beta=20.0).bias
    for same in (BANK.tolist(), BANK.astype(">f4"), BANK.astype(np.float64)):
        np.testing.assert_array_equal(dbn.bank_statistics(same, beta=20.0).bias, expected)
