"""Over a mesh as on one device: eight forced CPU devices, both axis types, lengths that do not fit.

Embeddings of small integers have exact products, so ties are true ties and indices must be equal.
"""

import collections
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import dbnorm_jax as dbn
from dbnorm_jax._src.places.mesh import drive
from dbnorm_jax._src.places.mesh import layout as meshes

AXES = ("bank", "gallery")
EVEN = (16, 32, 8)  # bank rows, gallery items, queries
UNEVEN = (13, 27, 11)
MORE_DEVICES_THAN_ROWS = (3, 9, 2)


def make_mesh(shape=(2, 4), kind=AxisType.Auto, names=AXES):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def embeddings(sizes, seed=0, dtype=np.float32):
    """Bank, gallery and queries of small integers: many ties, exact products."""
    random = np.random.default_rng(seed)
    return [random.integers(-2, 3, size=(size, 4)).astype(dtype) for size in sizes]


def smooth(sizes, seed=0):
    """Without ties."""
    random = np.random.default_rng(seed)
    return [random.normal(size=(size, 4)).astype(np.float32) / 2 for size in sizes]


def placed(arrays, mesh, axes=("bank", "gallery", "bank")):
    return [
        jax.device_put(array, NamedSharding(mesh, jax.P(axis)))
        for array, axis in zip(arrays, axes, strict=True)
    ]


def own_copies(num_bank, num_gallery):
    """Two rows of the gallery for every second bank row, in all shards."""
    rows = np.arange(num_bank)[:, None] * 5 + [0, num_gallery // 2]
    return np.where(np.arange(num_bank)[:, None] % 2, rows % num_gallery, -1)


def on_one_device(**options):
    return {
        "bank_statistics": functools.partial(dbn.stream_bank_statistics, **options),
        "largest_similarities": functools.partial(dbn.stream_largest_similarities, **options),
        "top_k": functools.partial(dbn.stream_top_k, **options),
        "ranks": functools.partial(dbn.metrics.stream_ranks, **options),
    }


def on_mesh(mesh, **options):
    return on_one_device(mesh=mesh, **options)


def check_statistics(found, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=2e-6, atol=4e-6)
    np.testing.assert_allclose(found.mass, expected.mass, rtol=1e-6)
    if expected.k:
        np.testing.assert_array_equal(found.k_occurrence, expected.k_occurrence)


def check_result(found, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6, atol=1e-6)


def check_all(mesh, arrays, given, *, k=3, chunk_size=8, **options):
    """Every function on `given` over the mesh against one device on `arrays`."""
    bank, gallery, queries = arrays
    one, many = (
        on_one_device(chunk_size=chunk_size, **options),
        on_mesh(mesh, chunk_size=chunk_size, **options),
    )
    exclude = own_copies(len(bank), len(gallery))
    weights = np.arange(len(bank)) % 3 / 2
    fit = {"beta": [0.5, 2.0], "k": k, "exclude": exclude, "weights": weights}
    check_statistics(
        many["bank_statistics"](*given[:2], **fit), one["bank_statistics"](*arrays[:2], **fit)
    )
    largest = [
        functions["largest_similarities"](*rows[:2], k=k, exclude=exclude).values
        for functions, rows in ((many, given), (one, arrays))
    ]
    np.testing.assert_allclose(*largest, atol=1e-6)  # -inf where it belongs
    random = np.random.default_rng(0)
    shape = (2, len(gallery))
    bias = jnp.asarray(random.integers(0, 3, shape), given[1].dtype)
    correction = dbn.Correction(bias, jnp.asarray(random.integers(0, 2, shape), bool))
    asked, relevant = questions(len(queries), len(gallery), random)
    for seen in ({}, asked):
        check_result(
            many["top_k"](given[2], given[1], k, correction, **seen),
            one["top_k"](queries, gallery, k, correction, **seen),
        )
        ranks = [
            functions["ranks"](rows[2], rows[1], relevant, correction, **seen)
            for functions, rows in ((many, given), (one, arrays))
        ]
        np.testing.assert_array_equal(*ranks)


def questions(num_queries, num_gallery, random):
    """What queries see of a gallery, and what is right for them."""
    relevant = np.stack([np.arange(num_queries) * 3 % num_gallery, np.full(num_queries, -1)], 1)
    seen = {
        "exclude": random.integers(-1, num_gallery, (num_queries, 2)),
        "where": random.random(num_gallery) < 0.6,
    }
    return seen, relevant


@pytest.mark.slow
def test_as_on_one_device():
    arrays = embeddings(UNEVEN)
    check_all(make_mesh(), arrays, arrays)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_prepared_gallery_as_on_one_device(kind):
    """Each device proves what it finds among its items, and searches again what it cannot prove."""
    _, gallery, queries = embeddings((4, 203, 21))
    gallery[30:80] = gallery[30]  # copies, on two devices
    queries[::3] = gallery[30]
    random = np.random.default_rng(0)
    bias = jnp.asarray(random.integers(0, 3, (2, 203)), jnp.float32).at[:, 30:80].set(0)
    correction = dbn.Correction(bias, jnp.asarray(random.integers(0, 2, (2, 203)), bool))
    prepared = dbn.prepare_gallery(gallery, correction)
    mesh = make_mesh(kind=kind)
    found = dbn.stream_top_k(queries, prepared, 3, precision="certified", mesh=mesh)
    check_result(found, dbn.stream_top_k(queries, gallery, 3, correction))
    proof = dbn.certified_queries(queries, prepared, 3, precision="certified", mesh=mesh)
    assert not proof[::3].any()
    assert proof[1::3].any()


def pipeline(functions, rows, beta):
    """Fit, correct, search: what a user does."""
    bank, gallery, queries = rows
    statistics = functions["bank_statistics"](bank, gallery, beta=beta)
    correction = dbn.dynamic_inverted_softmax(statistics)
    return statistics, functions["top_k"](queries, gallery, 3, correction)


@pytest.mark.slow
def test_explicit_axes_and_inputs_that_are_split_already():
    mesh, arrays = make_mesh(kind=AxisType.Explicit), smooth(EVEN)
    given = placed(arrays, mesh)
    statistics, result = jax.jit(functools.partial(pipeline, on_mesh(mesh)))(given, 2.0)
    expected, expected_result = pipeline(on_one_device(), arrays, 2.0)
    check_statistics(statistics, expected)
    check_result(result, expected_result)
    assert statistics.log_normalizer.sharding.spec == jax.P("gallery")
    assert result.indices.sharding.spec[0] == "bank"


@pytest.mark.slow
def test_inside_jit_lengths_need_not_divide():
    arrays = smooth(UNEVEN)
    statistics, result = jax.jit(functools.partial(pipeline, on_mesh(make_mesh())))(arrays, 2.0)
    expected, expected_result = pipeline(on_one_device(), arrays, 2.0)
    check_statistics(statistics, expected)
    check_result(result, expected_result)


def test_inside_jit_rows_that_are_split_become_whole_where_asked():
    mesh, (_, gallery, queries) = make_mesh(kind=AxisType.Explicit), smooth(EVEN)
    given = jax.device_put(queries, NamedSharding(mesh, jax.P("bank")))
    found = jax.jit(lambda rows: dbn.stream_top_k(rows, gallery, 3, mesh=mesh, bank_axis=None))(
        given
    )
    check_result(found, dbn.stream_top_k(queries, gallery, 3))
    assert not any(found.indices.sharding.spec)


def loss(functions, rows, beta):
    statistics, result = pipeline(functions, rows, beta)
    return statistics.bias.sum() + (result.scores**2).sum()


def loss_with_largest(functions, rows, beta):
    largest = functions["largest_similarities"](*rows[:2], k=2)
    return loss(functions, rows, beta) + (largest.values**2).sum()


def check_gradient(mesh, sizes, *, place, jit=True, loss=loss_with_largest):
    arrays, beta = smooth(sizes), np.float32(3)
    given = placed(arrays, mesh) if place else arrays
    slopes, one = (
        jax.value_and_grad(functools.partial(loss, functions), argnums=(0, 1))
        for functions in (on_mesh(mesh), on_one_device())
    )
    found = (jax.jit(slopes) if jit else slopes)(given, beta)
    expected = jax.jit(one)(arrays, beta)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=2e-5)
    return found


@pytest.mark.slow
def test_gradient_as_on_one_device():
    mesh = make_mesh()
    _, (by_rows, _) = check_gradient(mesh, EVEN, place=True, loss=loss)
    specs = [slope.sharding.spec[0] for slope in by_rows]
    assert specs == ["bank", "gallery", "bank"]


def all_merged(similarities, mask, beta):
    statistics = dbn.bank_statistics(similarities, beta=beta, k=2, where=mask)
    largest = dbn.largest_similarities(similarities, k=2, where=mask)
    return dbn.all_merge(statistics, "bank"), dbn.all_merge(largest, "bank")


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_all_merge_in_a_shard_map_of_ones_own(check_vma):
    """Also of parts without a single item, and with a slope by beta."""
    mesh = make_mesh((4,), names=("bank",))
    similarities = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    mask = np.arange(8) >= 4  # the first two devices have nothing

    merged = jax.shard_map(
        all_merged,
        mesh=mesh,
        in_specs=(jax.P("bank"), jax.P("bank"), jax.P()),
        out_specs=jax.P(),
        check_vma=check_vma,
    )
    statistics, largest = jax.jit(merged)(similarities, mask, np.float32(3))
    expected = dbn.bank_statistics(similarities, beta=3.0, k=2, where=mask)
    check_statistics(statistics, expected)
    np.testing.assert_array_equal(
        largest.values, dbn.largest_similarities(similarities, k=2, where=mask).values
    )
    if check_vma:
        slope = jax.jit(jax.grad(lambda beta: merged(similarities, mask, beta)[0].bias.sum()))
        one = jax.grad(
            lambda beta: dbn.bank_statistics(similarities, beta=beta, where=mask).bias.sum()
        )
        np.testing.assert_allclose(slope(jnp.float32(3)), one(jnp.float32(3)), rtol=1e-5)


@pytest.mark.slow
def test_streamed_functions_run_in_a_shard_map_of_ones_own():
    mesh, (bank, gallery, _) = make_mesh((4,), names=("bank",)), smooth(EVEN)

    def fit(bank, gallery):
        return dbn.all_merge(
            dbn.stream_bank_statistics(bank, gallery, beta=3.0, k=2, chunk_size=3), "bank"
        )

    merged = jax.shard_map(fit, mesh=mesh, in_specs=(jax.P("bank"), jax.P()), out_specs=jax.P())
    check_statistics(
        jax.jit(merged)(bank, gallery), dbn.stream_bank_statistics(bank, gallery, beta=3.0, k=2)
    )


def test_a_device_holds_its_rows_only(tmp_path):
    """Of a memory-mapped file a process reads what its devices hold."""
    rows = np.arange(27 * 2, dtype=np.float32).reshape(27, 2)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    layout = meshes.layout(make_mesh(), *AXES)
    array = meshes.split(mapped, layout, "gallery")
    assert array.shape == (28, 2)
    for shard in array.addressable_shards:
        assert shard.data.shape == (7, 2)
    np.testing.assert_array_equal(array, rows[np.minimum(np.arange(28), 26)])
    np.testing.assert_array_equal(meshes.split(rows, layout, "bank", fill=-1)[27], [-1, -1])
    same = meshes.split(array, layout, "gallery")
    pairs = zip(same.addressable_shards, array.addressable_shards, strict=True)
    assert all(
        one.data.unsafe_buffer_pointer() == other.data.unsafe_buffer_pointer()
        for one, other in pairs
    )


def exchanged(lowered):
    """Numbers that each kind of exchange of a compiled program hands over, loops counted once."""
    pattern = r"= (.*?) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\("
    total = collections.Counter()
    for shapes, kind in re.findall(pattern, lowered.compile().as_text()):
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes):
            total[kind] += math.prod(int(size) for size in shape.split(",") if size)
    return dict(total)


@pytest.mark.slow
def test_devices_exchange_what_the_cost_model_says():
    """`docs/scaling.md`: numbers per gallery item and short lists per row, never embeddings."""
    mesh = make_mesh()
    bank, gallery, queries = placed(smooth((64, 512, 64)), mesh)
    split = drive.Split(meshes.layout(mesh, *AXES), 64, 512, dbn.dot_product, 16)
    static = {"split": split, "k": 1}
    fit = drive.bank_statistics.lower(bank, gallery, jnp.float32(3), None, None, **static)
    # The part of the largest sum, two sums and the mass with its digits, and the count, of the
    # 512 / 4 items of a device; value and index of the best of 16 bank rows at a time.
    assert exchanged(fit) == {"all-reduce": 12 * 512 // 4 + 2 * 16}
    fit = drive.bank_statistics.lower(
        bank, gallery, jnp.float32(3), None, None, **static | {"k": 3}
    )
    # Lists of three from each of 4 devices.
    assert exchanged(fit) == {"all-reduce": 12 * 512 // 4, "all-gather": 2 * 16 * 4 * 3}
    seen = drive.Seen(None, None, None)
    search = drive.top_k.lower(queries, gallery, None, seen, **static)
    assert exchanged(search) == {"all-gather": 2 * 32 * 4}


ERRORS = {
    "mesh": ({"mesh": 8}, TypeError, "`mesh` jax.sharding.Mesh int make_mesh"),
    "axis": ({"bank_axis": "rows"}, ValueError, "`bank_axis` 'rows' ('bank', 'gallery') None"),
    "one axis": ({"gallery_axis": "bank"}, ValueError, "`bank_axis` `gallery_axis` different"),
    "k": ({"k": 28}, ValueError, "`k` 0 and 27 got 28"),
    "beta": ({"beta": -1.0}, ValueError, "`beta` positive"),
    "weights": ({"weights": np.ones(12)}, ValueError, "`weights` (13,) (12,)"),
    "exclude": ({"exclude": np.full(13, 27)}, ValueError, "`exclude` -1 26 27"),
    "columns": ({"gallery": np.ones((27, 5), np.float32)}, ValueError, "columns (13, 4) (27, 5)"),
    "integers": ({"bank": np.ones((13, 4), int)}, TypeError, "`bank` floating int64"),
    "nan": ({"bank": np.full((13, 4), np.nan)}, ValueError, "`bank` finite nan [0, 0]"),
    "zero": (
        {"gallery": np.zeros((27, 4)), "similarity_fn": dbn.cosine_similarity},
        ValueError,
        "`gallery` zero row row 0",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input(case):
    options, error, words = ERRORS[case]
    bank, gallery, _ = embeddings(UNEVEN)
    arguments = {"bank": bank, "gallery": gallery, "beta": 1.0, "mesh": make_mesh(), **options}
    rows = arguments.pop("bank"), arguments.pop("gallery")
    with pytest.raises(error, match=".*".join(map(re.escape, words.split(" ")))):
        dbn.stream_bank_statistics(*rows, **arguments)


def test_correction_of_another_gallery():
    _, gallery, queries = embeddings(UNEVEN)
    correction = dbn.Correction(jnp.zeros((1, 5)), None)
    for call in (
        lambda: dbn.stream_top_k(queries, gallery, 2, correction, mesh=make_mesh()),
        lambda: dbn.metrics.stream_ranks(queries, gallery, [0] * 11, correction, mesh=make_mesh()),
    ):
        with pytest.raises(ValueError, match=r"`correction` has 5 gallery items .* 27"):
            call()
    with pytest.raises(TypeError, match="`statistics` must be a BankStatistics"):
        dbn.all_merge(correction, "bank")


# --- the whole matrix ------------------------------------------------------------------------


# Each pair of shape, axis types and sizes once: compiling takes all the time.
SAMPLED = [
    ((8, 1), AxisType.Auto, UNEVEN),
    ((8, 1), AxisType.Explicit, EVEN),
    ((1, 8), AxisType.Auto, MORE_DEVICES_THAN_ROWS),
    ((1, 8), AxisType.Explicit, UNEVEN),
    ((2, 4), AxisType.Auto, EVEN),
    ((2, 4), AxisType.Explicit, MORE_DEVICES_THAN_ROWS),
    ((4, 2), AxisType.Explicit, UNEVEN),
]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(13, 27, 11), (13, 32, 11), (16, 27, 11)], ids=str)
def test_rows_that_fill_up_the_devices_do_not_count(sizes):
    bank, gallery, _ = smooth(sizes)
    check_statistics(
        dbn.stream_bank_statistics(bank, gallery, beta=2.0, mesh=make_mesh()),
        dbn.stream_bank_statistics(bank, gallery, beta=2.0),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "kind", "sizes"), SAMPLED, ids=str)
def test_all_meshes(shape, kind, sizes):
    mesh, arrays = make_mesh(shape, kind), embeddings(sizes, seed=1)
    given = placed(arrays, mesh) if sizes == EVEN else arrays
    check_all(mesh, arrays, given)
    check_statistics(
        dbn.stream_bank_statistics(*given[:2], beta=0.5, mesh=mesh),
        dbn.stream_bank_statistics(*arrays[:2], beta=0.5),
    )


@pytest.mark.slow
@pytest.mark.parametrize("similarity_fn", [dbn.cosine_similarity, dbn.negative_squared_euclidean])
def test_other_similarities(similarity_fn):
    arrays = [np.abs(rows) + 1 for rows in embeddings(UNEVEN)]
    if similarity_fn is dbn.cosine_similarity:
        arrays = smooth(UNEVEN)
    check_all(make_mesh(), arrays, arrays, similarity_fn=similarity_fn, k=9)


@pytest.mark.slow
def test_float64(x64):
    arrays = embeddings(UNEVEN, dtype=np.float64)
    check_all(make_mesh(), arrays, arrays)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [("bank", None), (None, "bank"), (None, None), (AXES, None)])
def test_rows_that_are_whole_everywhere(axes):
    """A mesh of one axis, rows split over both, or over none."""
    mesh = make_mesh() if axes[0] == AXES else make_mesh((8,), names=("bank",))
    arrays = embeddings(UNEVEN)
    options = {"bank_axis": axes[0], "gallery_axis": axes[1]}
    many = on_mesh(mesh, **options)
    one = on_one_device()
    statistics, result = pipeline(many, arrays, 0.5)
    expected, expected_result = pipeline(one, arrays, 0.5)
    check_statistics(statistics, expected)
    np.testing.assert_allclose(result.scores, expected_result.scores, atol=1e-5)
    largest = [f["largest_similarities"](*arrays[:2], k=20).values for f in (many, one)]
    np.testing.assert_array_equal(*largest)
    relevant = np.arange(11)
    ranks = [f["ranks"](arrays[2], arrays[1], relevant) for f in (many, one)]
    np.testing.assert_array_equal(*ranks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "active",
    [None, np.float32, bool],
    ids=["no gates", "soft gates", "three gates"],
)
def test_other_gates(active):
    _, gallery, queries = embeddings(UNEVEN)
    random = np.random.default_rng(0)
    bias = random.integers(0, 3, size=(3, 27)).astype(np.float32)
    kept = None if active is None else jnp.asarray(random.integers(0, 2, size=(3, 27)), active)
    correction = dbn.Correction(jnp.asarray(bias), kept)
    mesh, relevant = make_mesh(), np.arange(11)
    check_result(
        dbn.stream_top_k(queries, gallery, 5, correction, mesh=mesh),
        dbn.stream_top_k(queries, gallery, 5, correction),
    )
    np.testing.assert_array_equal(
        dbn.metrics.stream_ranks(queries, gallery, relevant, correction, mesh=mesh, ties="min"),
        dbn.metrics.stream_ranks(queries, gallery, relevant, correction, ties="min"),
    )


def test_copies_on_different_devices_are_level():
    """Of whatever size the shards are, and however they round."""
    random = np.random.default_rng(0)
    items = random.normal(size=(20, 100)).astype(np.float32)
    gallery = np.concatenate([items, items[:5]])
    queries = items[:5] + 0.01 * random.normal(size=(5, 100)).astype(np.float32)
    for shape in ((2, 4), (1, 8)):
        ranks = dbn.metrics.stream_ranks(queries, gallery, np.arange(5), mesh=make_mesh(shape))
        np.testing.assert_array_equal(ranks, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 6, 27])
def test_not_a_number_in_ones_own_jit(k):
    """Values cannot be checked there: NaN ranks below every number, padding not at all."""
    _, gallery, queries = embeddings(UNEVEN)
    gallery[[3, 9, 26], 0] = np.nan
    queries[4, 1] = np.nan
    mesh = make_mesh()
    found = jax.jit(lambda *rows: dbn.stream_top_k(*rows, k, mesh=mesh))(queries, gallery)
    expected = jax.jit(lambda *rows: dbn.stream_top_k(*rows, k))(queries, gallery)
    check_result(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_ties_go_to_the_lowest_index(seed):
    """Every item many times, on all devices."""
    random = np.random.default_rng(seed)
    gallery = np.repeat(random.integers(-1, 2, size=(5, 4)), 6, axis=0).astype(np.float32)
    gallery = random.permutation(gallery)
    queries = random.integers(-1, 2, size=(8, 4)).astype(np.float32)
    result = dbn.stream_top_k(queries, gallery, 7, mesh=make_mesh((1, 8)))
    order = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(result.indices, order)
    statistics = dbn.stream_bank_statistics(queries, gallery, beta=1.0, k=7, mesh=make_mesh((1, 8)))
    np.testing.assert_array_equal(statistics.k_occurrence, np.bincount(order.ravel(), minlength=30))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "kind", "sizes"), [case for case in SAMPLED if case[2] is not EVEN], ids=str
)
def test_all_gradients(shape, kind, sizes):
    check_gradient(make_mesh(shape, kind), sizes, place=False)


@pytest.mark.slow
def test_gradient_outside_of_jit():
    def loss(functions, rows, beta):
        return functions["bank_statistics"](*rows[:2], beta=beta).bias.sum()

    check_gradient(make_mesh(), UNEVEN, place=False, jit=False, loss=loss)
    mesh = make_mesh(kind=AxisType.Explicit)
    with jax.set_mesh(mesh):  # JAX asks for it where axes are Explicit
        check_gradient(mesh, EVEN, place=True, jit=False, loss=loss)


@pytest.mark.slow
def test_normalizers_and_saved_state_over_a_mesh(tmp_path):
    """Every statistic of a mesh goes where those of one device go."""
    bank, gallery, queries = smooth(EVEN)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = make_mesh(kind=kind)
        statistics = dbn.stream_bank_statistics(bank, gallery, beta=2.0, mesh=mesh)
        largest = dbn.stream_largest_similarities(bank, gallery, k=3, mesh=mesh)
        whole = dbn.stream_bank_statistics(bank, gallery, beta=2.0)
        check_statistics(dbn.merge(statistics, statistics), dbn.merge(whole, whole))
        for correction in (
            dbn.dual_inverted_softmax(statistics, statistics),
            dbn.dynamic_inverted_softmax(statistics),
            dbn.baselines.csls(largest),
        ):
            dbn.save(tmp_path / "correction.npz", correction)
            loaded = dbn.load(tmp_path / "correction.npz")
            check_result(
                dbn.stream_top_k(queries, gallery, 3, correction, mesh=mesh),
                dbn.stream_top_k(queries, gallery, 3, loaded),
            )
