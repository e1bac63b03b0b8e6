"""The selection of accelerators, run here: against NumPy, and what their programs are made of."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import dbnorm_jax as dbn
from dbnorm_jax._src.passes import again, classes, selection, sweep
from dbnorm_jax._src.passes.nearest import nearest_pass
from dbnorm_jax._src.passes.streaming import Columns

NUM_ROWS, NUM_ITEMS, TILE, CHUNK = 7, 600, 96, 4
# Small classes, so that many rows are looked at again; and those of programs.
SIZES = {"small": (((4, 8), (classes.MOST, 64)), 5.0), "as they are": (classes._CLASSES, 1e-4)}


@pytest.fixture
def accelerator(monkeypatch):
    """The programs of accelerators, with classes of a size."""
    monkeypatch.setattr(sweep, "on_platform", lambda *arrays, cpu, default: default(*arrays))

    def sized(name):
        numbers, share = SIZES[name]
        monkeypatch.setattr(classes, "_CLASSES", numbers)
        monkeypatch.setattr(classes, "_SHARE", share)
        monkeypatch.setattr(again, "FEW", 3)

    sized("small")
    jax.clear_caches()
    yield sized
    jax.clear_caches()  # what follows is compiled for processors


def looked_up(rows, items):
    """A similarity that is any number: rows [m, 1] say which entry of items [n, num_rows]."""
    return items.T[rows[:, 0].astype(jnp.int32)]


def program(k):
    """As `expected`, compiled once for all draws."""

    @jax.jit
    def run(similarities, offsets, unseen, exclude, valid):
        rows = jnp.arange(NUM_ROWS, dtype=jnp.float32)[:, None]
        return sweep.sweep(
            nearest_pass(offsets.shape[1], k, similarities.dtype),
            sweep.Rows(rows, (None, unseen)),
            sweep.Items(similarities.T, (tuple(offsets.T), exclude), valid),
            sweep.Tiling(looked_up, similarities.dtype, CHUNK, Columns.everywhere(TILE)),
        ).outputs

    return run


def expected(similarities, offsets, unseen, exclude, valid, k):
    """(values, indices) [num_rows, num_lists, k]; NaN after all numbers, -1 where there is none."""
    rows, items = np.arange(NUM_ROWS), np.arange(NUM_ITEMS)
    seen = np.broadcast_to(valid, similarities.shape).copy()
    if unseen is not None:
        seen &= ~(unseen[:, :, None] == items).any(axis=1)
    if exclude is not None:
        seen &= ~(exclude[None] == rows[:, None, None]).any(axis=2)
    values, indices = [], []
    for offset in offsets.T:
        scores = similarities.astype(np.float64) - offset
        numbers = np.where(np.isnan(scores), np.finfo(np.float32).min, scores)
        best, place = reference.top_k(np.where(seen, numbers, -np.inf), k)
        values.append(np.take_along_axis(np.where(np.isnan(scores), -np.inf, scores), place, 1))
        values[-1][best == -np.inf] = -np.inf
        indices.append(np.where(best == -np.inf, -1, place))
    return np.stack(values, axis=1), np.stack(indices, axis=1)


def drawn(seed, order, *, num_lists=2, most=2, missing=0.1):
    """Similarities in an order, offsets, what is not seen, and a mask; exact in float32."""
    random = np.random.default_rng(seed)
    shape = NUM_ROWS, NUM_ITEMS
    scores = np.round(random.normal(size=shape), 2)
    columns = np.arange(NUM_ITEMS) % TILE
    if order == "ascending":
        scores.sort(axis=1)
    elif order == "one class":  # all of the best where two of eight and of 64 classes are
        scores += 100 * (columns % 64 < 2)
    elif order == "one place of a tile":
        scores += 100 * (columns < 3)
    elif order == "ties":
        scores = random.choice([-0.0, 0.0, 1.0], shape)
    elif order == "one value":
        scores[:] = 2
    elif order == "no numbers":
        scores[random.random(shape) < 0.3] = np.nan
        scores[random.random(shape) < 0.1] = np.inf
        scores[random.random(shape) < 0.1] = -np.inf
    # Multiples of 1/4: differences are exact, so that the reference has the same ties.
    scores, offsets = np.round(4 * scores) / 4, random.integers(-2, 3, (NUM_ITEMS, num_lists)) / 4
    if order == "no numbers":
        scores[scores == -np.inf] = np.nan  # below every number, alike
    return (
        scores.astype(np.float32),
        offsets.astype(np.float32),
        random.integers(-1, NUM_ITEMS, (NUM_ROWS, most)).astype(np.int32),
        random.random(NUM_ITEMS) >= missing,
    )


ORDERS = (
    "random",
    "ascending",
    "one class",
    "one place of a tile",
    "ties",
    "one value",
    "no numbers",
)


def check(found, wanted):
    np.testing.assert_array_equal(found.indices, wanted[1])
    np.testing.assert_array_equal(found.values, wanted[0].astype(np.float32))


@pytest.mark.parametrize("k", [1, 5, 70])
def test_equals_the_reference(k, accelerator):
    """In any order, with ties, exclusions and masks."""
    run = program(k)
    assert k == 1 or not classes.depth(k, NUM_ITEMS, TILE).complete

    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1), st.sampled_from(ORDERS), st.sampled_from([0.0, 0.1, 0.9, 1]))
    def check_one(seed, order, missing):
        similarities, offsets, unseen, valid = drawn(seed, order, missing=missing)
        found = run(similarities, offsets, unseen, None, valid)
        check(found, expected(similarities, offsets, unseen, None, valid, k))

    check_one()


@pytest.mark.parametrize("most", [2, 9])
def test_items_exclude_rows(most, accelerator):
    similarities, offsets, _, valid = drawn(0, "one class")
    exclude = np.random.default_rng(1).integers(-1, NUM_ROWS, (NUM_ITEMS, most)).astype(np.int32)
    found = program(5)(similarities, offsets, None, exclude, valid)
    check(found, expected(similarities, offsets, None, exclude, valid, 5))


@pytest.mark.parametrize("k", [10, NUM_ITEMS])
def test_classes_as_they_are(k, accelerator):
    accelerator("as they are")
    run = program(k)
    for order in ORDERS:
        similarities, offsets, unseen, valid = drawn(2, order)
        found = run(similarities, offsets, unseen, None, valid)
        check(found, expected(similarities, offsets, unseen, None, valid, k))


RANDOM = np.random.default_rng(3)
GALLERY, QUERIES = (RANDOM.normal(size=(n, 8)).astype(np.float32) for n in (1500, 33))
MANY = 6000  # items of which no class keeps all


def gated(num_items):
    """A correction with two gates, whose raw nearest item decides."""
    bias = RANDOM.normal(size=(2, num_items)).astype(np.float32)
    return dbn.Correction(bias, RANDOM.random((2, num_items)) < 0.5)


# Of (queries, gallery, correction).
FUNCTIONS = {
    "top 10, DualDIS": lambda q, g, c: dbn.stream_top_k(q, g, 10, c, chunk_size=16),
    "fit, k=10": lambda q, g, _: dbn.stream_bank_statistics(q, g, beta=1.0, k=10, chunk_size=16),
    "largest, k=20": lambda q, g, _: dbn.stream_largest_similarities(q, g, k=20, chunk_size=16),
    "ranks": lambda q, g, c: dbn.metrics.stream_ranks(q, g, np.arange(33), c, chunk_size=16),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_processors(name, monkeypatch):
    correction = gated(len(GALLERY))
    on_processors = jax.jit(FUNCTIONS[name])(QUERIES, GALLERY, correction)
    with monkeypatch.context() as patched:
        patched.setattr(sweep, "on_platform", lambda *arrays, cpu, default: default(*arrays))
        jax.clear_caches()
        by_classes = jax.jit(FUNCTIONS[name])(QUERIES, GALLERY, correction)
    jax.clear_caches()
    chex.assert_trees_all_close(by_classes, on_processors, rtol=1e-5)


def loops(operation, functions):
    """(multiplies, names of operations within) of each loop of a program, inner ones included."""

    def within(operation, *, nested):
        for region in operation.regions:
            for block in region:
                for one in block:
                    yield one
                    if one.operation.name == "func.call":
                        yield from within(functions[one.attributes["callee"].value], nested=nested)
                    elif nested or one.operation.name != "stablehlo.while":
                        yield from within(one, nested=nested)

    for one in within(operation, nested=True):
        if one.operation.name == "stablehlo.while":
            own = {part.operation.name for part in within(one, nested=False)}
            yield (
                "stablehlo.dot_general" in own,
                {p.operation.name for p in within(one, nested=True)},
            )


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", ["top 10, DualDIS", "fit, k=10", "largest, k=20"])
def test_no_tile_is_sorted(name, platform):
    """The loops that multiply rows with tiles hold no sort and no gather, for accelerators."""
    gallery = jax.ShapeDtypeStruct((MANY, 8), jnp.float32)
    rows = jax.ShapeDtypeStruct((MANY, 8), jnp.float32) if "largest" in name else QUERIES
    traced = jax.jit(FUNCTIONS[name]).trace(rows, gallery, gated(MANY))
    module = traced.lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")
    functions = {part.attributes["sym_name"].value: part for part in module.body}
    found = [names for multiplies, names in loops(functions["main"], functions) if multiplies]
    assert len(found) >= 2  # the first look and another one
    for names in found:
        assert not {one for one in names if "sort" in one or "top_k" in one or "gather" in one}


@pytest.mark.parametrize("k", [1, 10, 100])
def test_in_random_order_one_look_settles_all_rows(k):
    num_rows, num_items, columns = 400, 20_000, 4096
    scores = np.random.default_rng(k).normal(size=(num_rows, num_items)).astype(np.float32)
    much = classes.depth(k, num_items, columns)
    assert k == 1 or not much.complete
    handed_on = None if much.complete else classes.handed_on(k, num_items, columns)
    found = classes.start((num_rows, 1, k), much, jnp.float32, handed_on=handed_on)
    for start in range(0, num_items, columns):
        tile = jnp.asarray(scores[:, start : start + columns])
        found = classes.add(found, tile, None, jnp.int32(start), None)
    none = selection.start_nearest((num_rows, 1, k), jnp.float32)
    settled = classes.settle(found, classes.Ranked(*none), complete=much.complete)
    assert settled.done.mean() > 0.99
    best = np.sort(scores, axis=1)[:, : -k - 1 : -1]
    done = np.asarray(settled.done)[:, 0]
    np.testing.assert_array_equal(np.asarray(settled.nearest.values)[done, 0], best[done])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("handed_on", [1, 2])
def test_what_a_fold_leaves_out_is_within_the_bound(order, handed_on):
    """What is settled is right, and every item that is not among it ranks after the bound."""
    k, much = 5, classes.Depth(8, 3, complete=False)
    scores, offsets, _, valid = drawn(4, order, num_lists=1)
    found = classes.start((NUM_ROWS, 1, k), much, jnp.float32, handed_on=handed_on)
    for start in range(0, NUM_ITEMS, TILE):
        part = slice(start, start + TILE)
        less = (jnp.asarray(offsets[part, 0]),)
        entering = jnp.asarray(valid[None, part])
        found = classes.add(found, jnp.asarray(scores[:, part]), less, jnp.int32(start), entering)
    folded = np.asarray(found.lists[0].folded)
    assert (folded > -np.inf).any()
    none = selection.start_nearest((NUM_ROWS, 1, k), jnp.float32)
    nearest, bound, done = classes.settle(found, classes.Ranked(*none))
    numbers = np.where(np.isnan(scores), np.finfo(np.float32).min, scores - offsets[:, 0])
    numbers = np.where(valid, numbers, -np.inf)
    best = np.lexsort((np.broadcast_to(np.arange(NUM_ITEMS), numbers.shape), -numbers))[:, :k]
    for row in range(NUM_ROWS):
        level, index = np.asarray(bound.values)[row, 0], np.asarray(bound.indices)[row, 0]
        is_before = [
            (numbers[row, item], -item) >= (level, -index) and numbers[row, item] > -np.inf
            for item in best[row]
        ]
        settled = best[row][is_before]
        np.testing.assert_array_equal(np.asarray(nearest.indices)[row, 0, : len(settled)], settled)
        assert bool(done[row, 0]) == (len(settled) == k)


@pytest.mark.parametrize("k", [2, 5, 40])
def test_what_is_picked_is_what_is_sorted(k):
    """One by one, as TPUs find the nearest: with ties, and where there are fewer."""
    random = np.random.default_rng(k)
    values = random.choice([-np.inf, -1, -0.0, 0.0, 2, np.inf], (6, 50), p=[0.5, *[0.1] * 5])
    places = np.stack([random.permutation(50) for _ in range(6)])
    items = classes.Ranked(jnp.asarray(values, jnp.float32), jnp.asarray(places, jnp.int32))
    picked, wanted = classes._best_by_picking(items, k), classes._best_by_sort(items, k)
    there = np.asarray(wanted.values) > -np.inf
    np.testing.assert_array_equal(picked.values, wanted.values)
    np.testing.assert_array_equal(
        np.asarray(picked.indices)[there], np.asarray(wanted.indices)[there]
    )


@pytest.mark.parametrize("k", [200, 400])
def test_classes_are_deep_enough_for_the_tiles_of_every_platform(k, monkeypatch, accelerator):
    """Narrow tiles, whose last classes are few, put more items into one class than wide ones."""
    monkeypatch.setattr(classes, "_CLASSES", ((classes.MOST, 64),))
    monkeypatch.setattr(classes, "_SHARE", 1e-4)
    num_rows, num_items, narrow, wide = 3, 960, 96, 960
    depths = [classes.depth(k, num_items, columns) for columns in (narrow, wide)]
    assert depths[0] != depths[1]
    assert depths[1].complete
    scores = np.random.default_rng(k).normal(size=(num_rows, num_items)).astype(np.float32)
    scores[:, np.arange(num_items) % narrow % 64 < 4] += 100  # in four classes of narrow tiles
    tiling = sweep.Tiling(
        looked_up,
        jnp.dtype(jnp.float32),
        CHUNK,
        Columns(narrow, wide, wide),
    )
    found = sweep.sweep(
        nearest_pass(1, k, jnp.float32),
        sweep.Rows(jnp.arange(num_rows, dtype=jnp.float32)[:, None], (None, None)),
        sweep.Items(jnp.asarray(scores).T, (None, None)),
        tiling,
    ).outputs
    values, indices = reference.top_k(scores, k)
    np.testing.assert_array_equal(found.indices[:, 0], indices)
    np.testing.assert_array_equal(found.values[:, 0], values)
