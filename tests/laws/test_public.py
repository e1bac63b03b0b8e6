"""The law of public names: how arguments are given, what errors say, where things live."""

import inspect
import pickle
import pkgutil
import subprocess
import sys

import jax.numpy as jnp
import pytest

import dbnorm_jax as dbn

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
    if name in ("auto", "tuning.tune", "tuning.fit", "attribution.influence"):
        assert not by_place
