"""The law of public names: how arguments are given, what errors say, where things live."""

import ast
import dataclasses
import inspect
import pathlib
import pickle
import pkgutil
import re
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax._src.core import checks
from dbnorm_jax._src.core.similarity import SIMILARITIES

NAMESPACES = ("attribution", "baselines", "growing", "hubness", "metrics", "out_of_core", "tuning")
EMBEDDINGS = {"queries", "gallery", "bank", "query_bank", "gallery_bank"}


def public():
    """Every public function and class, by its public name."""
    for name in dbn.__all__:
        if callable(getattr(dbn, name)):
            yield name, getattr(dbn, name)
    for namespace in NAMESPACES:
        module = getattr(dbn, namespace)
        for name in module.__all__:
            yield f"{namespace}.{name}", getattr(module, name)


PUBLIC = dict(public())
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


@pytest.mark.slow
def test_namespaces_are_modules():
    """`from dbnorm_jax.metrics import recall_at`, without an attribute of the package first."""
    found = {module.name for module in pkgutil.iter_modules(dbn.__path__)}
    assert {name for name in found if not name.startswith("_")} == set(NAMESPACES)
    for name in NAMESPACES:
        code = f"import sys; from dbnorm_jax.{name} import __all__; import dbnorm_jax as dbn"
        code += f"; assert dbn.{name} is sys.modules['dbnorm_jax.{name}']"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_imports_nothing():
    code = "import sys; before = set(sys.modules); import dbnorm_jax; "
    code += "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "jax" not in found.stdout.replace("dbnorm_jax", "")
    assert "numpy" not in found.stdout


@pytest.mark.parametrize("name", PUBLIC)
def test_names_are_the_public_ones(name):
    """For pickles, `help` and documentation: they last when the house is built anew."""
    value = PUBLIC[name]
    assert f"{value.__module__}.{value.__qualname__}" == f"dbnorm_jax.{name}"
    assert pickle.loads(pickle.dumps(value)) is value


def test_states_pickle_by_public_names():
    """Also those of a process that has never asked for their classes."""
    code = "import dbnorm_jax as dbn, numpy as np, pickle, sys; rows = np.eye(2, dtype='f4'); "
    code += "states = dbn.stream_bank_statistics(rows, rows, beta=1.0), dbn.tuning.tune("
    code += "query_bank=rows, gallery=rows); sys.stdout.buffer.write(pickle.dumps(states))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b"dbnorm_jax._src" not in found.stdout
    statistics, choice = pickle.loads(found.stdout)
    assert isinstance(statistics, dbn.BankStatistics)
    assert isinstance(choice, dbn.tuning.Choice)
    assert jnp.array_equal(statistics.mass, jnp.full(2, 2.0))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_three_embeddings_are_given_by_name(name):
    """Two of them exchanged would be accepted and silently wrong."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    met = EMBEDDINGS & parameters.keys()
    by_place = {one for one in met if parameters[one].kind is not inspect.Parameter.KEYWORD_ONLY}
    # Rows and columns of one similarity, in that order.
    assert len(met) <= 2 or not by_place or by_place == {"query_bank", "gallery"}
    if name in (
        "auto",
        "tuning.tune",
        "tuning.fit",
        "attribution.influence",
        "attribution.top_1_flips",
    ):
        assert not by_place


@pytest.mark.parametrize("name", FUNCTIONS)
def test_at_most_four_arguments_are_given_by_place(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    kinds = [parameter.kind for parameter in parameters]
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 4


ROWS = np.eye(4, dtype=np.float32)
RELEVANT = np.arange(4)
CORRECTION = dbn.Correction(jnp.zeros((1, 4)), jnp.ones((1, 4), bool))
BANKS = {"gallery": ROWS, "query_bank": ROWS, "gallery_bank": ROWS}
STATISTICS = dbn.stream_bank_statistics(ROWS, ROWS, beta=1.0)
# The function, what it is given, and the argument among that which is static.
STATIC = [
    (dbn.top_k, (ROWS, 2), {}, "k"),
    (dbn.stream_top_k, (ROWS, ROWS, 3), {}, "k"),
    (dbn.stream_top_k, (ROWS, ROWS), {"k": 3}, "k"),
    (partial(dbn.stream_top_k, k=3), (ROWS, ROWS), {"chunk_size": 2}, "chunk_size"),
    (partial(dbn.bank_statistics, beta=1.0), (ROWS,), {"k": 1}, "k"),
    (partial(dbn.stream_bank_statistics, beta=1.0), (ROWS, ROWS), {"k": 1}, "k"),
    (dbn.largest_similarities, (ROWS,), {"k": 1}, "k"),
    (dbn.stream_largest_similarities, (ROWS, ROWS), {"k": 1}, "k"),
    (dbn.hubness.k_occurrence, (RELEVANT[:, None], 4), {}, "num_gallery"),
    (dbn.hubness.atkinson, (ROWS[0],), {"epsilon": 0.5}, "epsilon"),
    (
        partial(dbn.stream_soft_activation, temperature=0.5),
        (ROWS, ROWS),
        {"chunk_size": 2},
        "chunk_size",
    ),
    (
        partial(dbn.soft_gates, temperature=0.5),
        (ROWS, CORRECTION),
        {"straight_through": True},
        "straight_through",
    ),
    (dbn.inner_product_gallery, (ROWS, CORRECTION), {"center": True}, "center"),
    (
        partial(dbn.baselines.sinkhorn_normalization, temperature=0.5),
        (ROWS,),
        {"num_iterations": 2},
        "num_iterations",
    ),
    (
        partial(dbn.baselines.inverse_graph_convolution, query_rate=0.1, gallery_rate=0.1),
        (),
        {**BANKS, "pool_rate": 0.5},
        "pool_rate",
    ),
    (
        partial(dbn.attribution.hub_screening, **BANKS, k=1),
        (),
        {"false_alarm_rate": 0.5},
        "false_alarm_rate",
    ),
    (
        partial(dbn.attribution.influence, relevant=RELEVANT, statistics=STATISTICS),
        (),
        {"queries": ROWS, "gallery": ROWS, "bank": ROWS, "gated": True},
        "gated",
    ),
    (dbn.attribution.bias_contributors, (ROWS, ROWS, STATISTICS, RELEVANT), {"k": 1}, "k"),
    *(
        (
            partial(
                dbn.attribution.top_1_flips,
                statistics=STATISTICS,
                correction=dbn.inverted_softmax(STATISTICS),
            ),
            (),
            {"queries": ROWS, "gallery": ROWS, "bank": ROWS, name: value},
            name,
        )
        for name, value in {"k": 1, "term": 0}.items()
    ),
]


@pytest.mark.parametrize("place", range(len(STATIC)))
def test_a_traced_static_argument_is_named_with_the_remedy(place):
    function, arguments, options, name = STATIC[place]
    with pytest.raises(TypeError, match=rf'`{name}` must be static.*static_argnames="{name}"'):
        jax.jit(function)(*arguments, **options)
    jax.jit(function, static_argnames=name)(*arguments, **options)


def test_k_occurrence_counts_what_a_search_found():
    found = dbn.stream_top_k(ROWS, ROWS, 2)
    expected = dbn.hubness.k_occurrence(found.indices, 4)
    np.testing.assert_array_equal(dbn.hubness.k_occurrence(found, 4), expected)
    batched = jax.vmap(lambda one: dbn.hubness.k_occurrence(one, 4))(
        jax.tree.map(lambda leaf: leaf[None], found)
    )
    np.testing.assert_array_equal(batched[0], expected)


def test_a_correction_always_acts_by_default_and_has_terms():
    assert dbn.Correction(jnp.zeros((1, 4))).active is None
    with pytest.raises(ValueError, match=r"`bias` must be .*num_terms.*shape \(4,\).*bias\[None\]"):
        dbn.Correction(jnp.zeros(4))
    with pytest.raises(ValueError, match=r"`bias` must be"):
        jax.jit(dbn.Correction)(jnp.zeros(4))
    # What is made of its leaves, or stands for them, may have any rank.
    assert jax.tree.map(jnp.sum, CORRECTION).active == 4
    axes = dbn.Correction(bias=0, active=None)
    biases = dbn.Correction(jnp.zeros((3, 1, 4)))
    found = jax.vmap(lambda one: one.num_gallery * one.bias[0, 0], in_axes=(axes,))(biases)
    assert found.shape == (3,)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(CORRECTION)]
    assert paths == [".bias", ".active"]


NAN = np.full((4, 4), np.nan, np.float32)
WRONG = {
    "queries": lambda: dbn.stream_top_k(NAN, ROWS, 1),
    "gallery": lambda: dbn.stream_top_k(ROWS, ROWS[:, :0], 1),
    "k": lambda: dbn.stream_top_k(ROWS, ROWS, 9),
    "correction": lambda: dbn.top_k(ROWS, 1, 3),
    "others[1]": lambda: dbn.merge(STATISTICS, STATISTICS, 3),
    "pairs": lambda: dbn.auto(**BANKS, pairs=[9, 9, 9, 9]),
    "choice": lambda: dbn.tuning.fit("is", **BANKS),
    "bias": lambda: dbn.Correction(jnp.zeros(4)),
    "counts": lambda: dbn.hubness.gini(-ROWS[0]),
    "relevant": lambda: dbn.metrics.ranks(ROWS, [0.5] * 4),
    "ties": lambda: dbn.metrics.ranks(ROWS, RELEVANT, ties="best"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_carry_the_name_of_the_argument(name):
    with pytest.raises((ValueError, TypeError), match=f"`{re.escape(name)}`") as raised:
        WRONG[name]()
    assert raised.value.argument == name


def test_errors_name_what_a_caller_knows():
    with pytest.raises(ValueError, match="`queries` and `gallery` must have the same") as raised:
        dbn.stream_top_k(ROWS, np.ones((4, 3), np.float32), 1)
    message = raised.value.message({"queries": "--queries 'a.npy'", "gallery": "--gallery `b`"})
    assert message.startswith("--queries 'a.npy' and --gallery `b` must have the same number of")
    again = pickle.loads(pickle.dumps(raised.value))
    assert (str(again), again.argument) == (str(raised.value), "queries")
    assert isinstance(raised.value, checks.ArgumentError)


SOURCES = {
    path.relative_to(pathlib.Path(dbn.__file__).parent).as_posix(): path.read_text("utf-8")
    for path in pathlib.Path(dbn.__file__).parent.rglob("*.py")
}


@pytest.mark.parametrize("path", SOURCES)
def test_no_message_names_its_argument_in_text_alone(path):
    for node in ast.walk(ast.parse(SOURCES[path])):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            words = ast.unparse(node.exc)
            assert not re.match(r"(Value|Type)Error\(f?['\"]`", words), words


# Blocks of rows may come from anywhere; a state, or what has its fields, merges over devices.
UNTYPED = ("out_of_core", "all_merge")


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith(UNTYPED)])
def test_arrays_are_typed(name):
    """What is given is `ArrayLike`, what comes back `jax.Array`."""
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        assert parameter.annotation is not Any, parameter
    assert inspect.signature(FUNCTIONS[name]).return_annotation is not Any


FUNCTION_OF = {name: getattr(dbn, name) for name in SIMILARITIES}
WIDE = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def states(similarity_fn, rows=WIDE):
    """States of the rows with themselves, all that know their similarity."""
    options = {"similarity_fn": similarity_fn}
    query = dbn.stream_bank_statistics(rows, rows, beta=1.0, **options)
    largest = dbn.stream_largest_similarities(rows, rows, k=2, **options)
    mesh = jax.make_mesh((1, 1), ("bank", "gallery"))
    return [
        query,
        largest,
        dbn.merge(query, query),
        dbn.subtract(dbn.merge(query, query), query),
        dbn.growing.decay(query, 0.5),
        dbn.growing.add_gallery_items(
            query, dbn.stream_top_k(rows, rows, 1, **options), rows, rows[:1], **options
        )[0],
        dbn.inverted_softmax(query),
        dbn.dual_dynamic_inverted_softmax(query, query),
        dbn.baselines.csls(largest),
        dbn.baselines.nearest_neighbor_normalization(largest),
        dbn.baselines.stream_sinkhorn_normalization(
            rows, rows, temperature=0.5, num_iterations=1, **options
        ),
        dbn.out_of_core.bank_statistics(rows, [rows], beta=1.0, **options),
        dbn.out_of_core.largest_similarities(rows, [rows], k=1, **options),
        dbn.stream_bank_statistics(rows, rows, beta=1.0, mesh=mesh, **options),
        dbn.stream_largest_similarities(rows, rows, k=1, mesh=mesh, **options),
        jax.jit(lambda rows: dbn.stream_bank_statistics(rows, rows, beta=1.0, **options))(rows),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["cosine_similarity"], SIMILARITIES))
def test_states_know_their_similarity(name, tmp_path):
    for state in states(FUNCTION_OF[name]):
        assert state.similarity == name
        assert name in str(jax.tree.structure(state))
        dbn.save(tmp_path / "state.npz", state)
        assert dbn.load(tmp_path / "state.npz").similarity == name
        assert pickle.loads(pickle.dumps(state)).similarity == name
    assert all(state.similarity is None for state in states(lambda rows, columns: rows @ columns.T))
    assert dbn.bank_statistics(WIDE @ WIDE.T, beta=1.0).similarity is None
    assert dbn.baselines.dis_sim_local(WIDE, WIDE, k=1).similarity == "negative_squared_euclidean"


@pytest.mark.slow
def test_states_of_two_similarities_do_not_merge():
    dot, other = (dbn.stream_bank_statistics(WIDE, WIDE, beta=1.0, similarity_fn=fn) for fn in FNS)
    largest = [dbn.stream_largest_similarities(WIDE, WIDE, k=2, similarity_fn=fn) for fn in FNS]
    way_out = r"dataclasses.replace\(.*, similarity=None\)"
    for join in (dbn.merge, dbn.subtract, dbn.dual_inverted_softmax):
        with pytest.raises(ValueError, match=f"is of dot_product but .* of negative.*{way_out}"):
            join(dot, other)
    with pytest.raises(ValueError, match=way_out):
        dbn.merge(*largest)
    unknown = dataclasses.replace(other, similarity=None)
    assert dbn.merge(dot, unknown).similarity == "dot_product"
    assert dbn.merge(unknown, dot).similarity == "dot_product"
    with pytest.raises(ValueError, match=way_out):
        dbn.merge(unknown, dot, other)
    assert dbn.merge(unknown, unknown).similarity is None


FNS = (dbn.dot_product, dbn.negative_squared_euclidean)
SERVED = {
    "search": lambda c, rows, fn: dbn.stream_top_k(rows, rows, 1, c, similarity_fn=fn),
    "semantic": lambda c, rows, fn: dbn.semantic_search(rows, rows, c, similarity_fn=fn),
    "ranks": lambda c, rows, fn: dbn.metrics.stream_ranks(
        rows, rows, np.arange(len(rows)), c, similarity_fn=fn
    ),
    "soft gates": lambda c, rows, fn: dbn.stream_soft_gates(
        rows, rows, c, temperature=0.5, similarity_fn=fn
    ),
    "index": lambda c, rows, fn: dbn.inner_product_gallery(rows, c, similarity_fn=fn),
    "changes": lambda c, rows, fn: dbn.attribution.top_1_changes(rows, rows, c, similarity_fn=fn),
    "files": lambda c, rows, fn: dbn.out_of_core.top_k(rows, [rows], 1, c, similarity_fn=fn),
    "files, ranks": lambda c, rows, fn: dbn.out_of_core.ranks(
        rows, [rows], np.arange(len(rows)), c, similarity_fn=fn
    ),
    "mesh": lambda c, rows, fn: dbn.stream_top_k(
        rows, rows, 1, c, similarity_fn=fn, mesh=jax.make_mesh((1, 1), ("bank", "gallery"))
    ),
    "mesh, ranks": lambda c, rows, fn: dbn.metrics.stream_ranks(
        rows,
        rows,
        np.arange(len(rows)),
        c,
        similarity_fn=fn,
        mesh=jax.make_mesh((1, 1), ("bank", "gallery")),
    ),
}


@pytest.mark.parametrize("name", slow_but(["search", "files"], SERVED))
def test_another_similarity_is_refused(name):
    serve = SERVED[name]
    correction = dbn.dynamic_inverted_softmax(dbn.stream_bank_statistics(WIDE, WIDE, beta=1.0))
    serve(correction, WIDE, dbn.dot_product)
    with pytest.raises(ValueError, match="`correction` was made under dot_product") as raised:
        serve(correction, WIDE, dbn.negative_squared_euclidean)
    assert raised.value.argument == "correction"
    assert "dataclasses.replace(correction, similarity=None)" in str(raised.value)
    unknown = dataclasses.replace(correction, similarity=None)
    serve(unknown, WIDE, dbn.negative_squared_euclidean)
    if name != "index":  # which knows no cosines
        with pytest.raises(ValueError, match="not all rows have norm 1"):
            serve(correction, WIDE, dbn.cosine_similarity)
        unit = WIDE / np.linalg.norm(WIDE, axis=1, keepdims=True)
        one_longer = unit * np.where(np.arange(len(unit)) == 3, 1.01, 1)[:, None].astype(np.float32)
        with pytest.raises(ValueError, match="not all rows have norm 1"):
            serve(correction, one_longer, dbn.cosine_similarity)
        serve(correction, unit, dbn.cosine_similarity)
        serve(correction, jnp.asarray(unit, jnp.bfloat16), dbn.cosine_similarity)


def test_insight_refuses_another_similarity():
    statistics = dbn.stream_bank_statistics(WIDE, WIDE, beta=1.0)
    options = {"similarity_fn": dbn.negative_squared_euclidean}
    with pytest.raises(ValueError, match="`statistics` was made under dot_product"):
        dbn.attribution.bias_contributors(WIDE, WIDE, statistics, [0], **options)
    with pytest.raises(ValueError, match="`statistics` was made under dot_product"):
        dbn.attribution.influence(
            queries=WIDE,
            gallery=WIDE,
            relevant=[0] * 5,
            bank=WIDE,
            statistics=statistics,
            **options,
        )
    with pytest.raises(ValueError, match="`correction` was made under dot_product"):
        dbn.attribution.top_1_flips(
            queries=WIDE,
            gallery=WIDE,
            correction=dbn.inverted_softmax(statistics),
            bank=WIDE,
            statistics=statistics,
            **options,
        )
    neighbors = dbn.stream_top_k(WIDE, WIDE, 1)
    with pytest.raises(ValueError, match="`statistics` was made under dot_product"):
        dbn.growing.add_gallery_items(statistics, neighbors, WIDE, WIDE, **options)
