"""The law of public names: how arguments are given, what errors say, where things live."""

import inspect

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
        for name in getattr(module, "__all__", dir(module)):
            yield f"{namespace}.{name}", getattr(module, name)


PUBLIC = dict(public())
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


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
