"""A default number of neighbors fits every collection: where there are fewer, it is all."""

import inspect
import json

import jax
import numpy as np
import pytest
from patience import slow_but

import dbnorm_jax as dbn

pytestmark = pytest.mark.usefixtures("compile_fast")

SIZES = (1, 4)


def rows(seed, count):
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def of_matrices(function, size, **options):
    squares = [np.abs(rows(seed, size) @ rows(seed + 1, size).T) for seed in range(3)]
    return function(*squares, **options)


def of_contributors(size, **options):
    bank, gallery = rows(0, size), rows(1, size)
    statistics = dbn.stream_bank_statistics(bank, gallery, beta=1.0)
    return dbn.attribution.bias_contributors(bank, gallery, statistics, [0], **options)


def of_flips(size, **options):
    queries, gallery, bank = (rows(seed, size) for seed in range(3))
    statistics = dbn.stream_bank_statistics(bank, gallery, beta=1.0)
    return dbn.attribution.top_1_flips(
        queries=queries,
        gallery=gallery,
        correction=dbn.inverted_softmax(statistics),
        bank=bank,
        statistics=statistics,
        **options,
    )


# Function -> a call on collections of a size.
DEFAULTS = {
    "semantic_search": lambda size, **options: dbn.semantic_search(
        rows(0, size), rows(1, size), **options
    ),
    "metrics.normalized_discounted_cumulative_gain": lambda size, **options: (
        dbn.metrics.normalized_discounted_cumulative_gain(
            rows(0, size) @ rows(1, size).T, np.eye(size), **options
        )
    ),
    "metrics.stream_normalized_discounted_cumulative_gain": lambda size, **options: (
        dbn.metrics.stream_normalized_discounted_cumulative_gain(
            rows(0, size), rows(1, size), np.eye(size), **options
        )
    ),
    "attribution.bias_contributors": of_contributors,
    "attribution.top_1_flips": of_flips,
    "attribution.hub_screening": lambda size, **options: dbn.attribution.hub_screening(
        gallery=rows(0, size), query_bank=rows(1, size), gallery_bank=rows(2, size + 1), **options
    ),
    "baselines.dis_sim_local": lambda size, **options: dbn.baselines.dis_sim_local(
        rows(0, 3), rows(1, size), **options
    ),
    "baselines.local_scaling": lambda size, **options: of_matrices(
        dbn.baselines.local_scaling, size, **options
    ),
    "baselines.nicdm": lambda size, **options: of_matrices(dbn.baselines.nicdm, size, **options),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DEFAULTS)
def test_the_default_is_all_where_there_are_fewer(name, size):
    function = DEFAULTS[name]
    found, wanted = function(size), function(size, k=size)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


# Places beyond the last are empty.
ANY = {name for name in DEFAULTS if name == "semantic_search" or name.startswith("metrics.")}


@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - ANY))
def test_more_than_there_are_is_refused_where_it_is_asked_for(name):
    with pytest.raises(ValueError, match=r"`k` must be between 1 and 2 .*got 3"):
        DEFAULTS[name](2, k=3)


def test_no_other_function_has_a_default_beyond_one_item():
    """A new one has to be listed above."""
    modules = {"": dbn, "attribution.": dbn.attribution, "baselines.": dbn.baselines}
    modules |= {"metrics.": dbn.metrics, "hubness.": dbn.hubness, "out_of_core.": dbn.out_of_core}
    for prefix, module in modules.items():
        for name, function in inspect.getmembers(module, inspect.isfunction):
            defaults = {
                parameter.default
                for parameter in inspect.signature(function).parameters.values()
                if parameter.name == "k"
            }
            public = not name.startswith("_") and prefix + name not in DEFAULTS
            assert not public or defaults <= {inspect.Parameter.empty, None, 1}, prefix + name


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Files of so many rows each."""
    monkeypatch.chdir(tmp_path)

    def write(size):
        for seed, name in enumerate(("queries", "gallery", "bank", "items")):
            np.save(f"{name}.npy", rows(seed, size))

    return write


BANKS = ["--query-bank", "bank.npy"]
BOTH = [*BANKS, "--gallery-bank", "items.npy"]
NEIGHBORS = "auto,csls,nnn,ls,nicdm,dissim,invgc-local"
JOBS = {
    "search": ["search", "queries.npy", "gallery.npy"],
    "evaluate": ["evaluate", "queries.npy", "gallery.npy", *BOTH, "--methods", NEIGHBORS],
    "evaluate, no gallery bank": ["evaluate", "queries.npy", "gallery.npy", *BANKS],
    "inspect": ["inspect", "gallery.npy", *BOTH, "--queries", "queries.npy"],
    "inspect, no gallery bank": ["inspect", "gallery.npy", *BANKS],
    "tune": ["tune", "bank.npy", "items.npy", "--bank-pairs", "rows"],
    "fit auto": ["fit", "gallery.npy", *BOTH, "--method", "auto", "--bank-pairs", "rows"],
} | {
    f"fit {method}": ["fit", "gallery.npy", *BANKS, "--method", method]
    for method in ("csls", "nnn", "dualdis", "statistics")
}


@pytest.mark.slow
@pytest.mark.parametrize("job", slow_but(["search", "fit csls", "inspect"], JOBS))
def test_commands_on_small_files(job, small, call):
    pytest.importorskip("click")
    pytest.importorskip("rich")
    small(3)
    output = ["--output", "c.npz"] if job.startswith("fit") else []
    code, out, err = call(*JOBS[job], *output)
    assert code == 0, err
    if job == "search":
        assert all(len(json.loads(line)["items"]) == 3 for line in out.splitlines())


@pytest.mark.slow
def test_benchmark_on_a_small_gallery(call):
    pytest.importorskip("click")
    sizes = ["--queries", 8, "--gallery", 4, "--dim", 4]
    code, out, err = call("benchmark", *sizes, "--json")
    assert code == 0, err
    assert json.loads(out)["sizes"]["k"] == 4
