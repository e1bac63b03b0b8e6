"""Documentation is executed: docstrings, the README's code and its figures."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil

import pytest

import dbnorm_jax as dbn
from dbnorm_jax import _src

ROOT = pathlib.Path(__file__).parent.parent
MODULES = [name for _, name, _ in pkgutil.iter_modules(_src.__path__)]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(f"dbnorm_jax._src.{name}")
    failures, _ = doctest.testmod(module, optionflags=FLAGS)
    assert not failures


def public_functions():
    for name in dbn.__all__:
        value = getattr(dbn, name)
        if inspect.ismodule(value):
            yield from (
                pytest.param(function, id=f"{name}.{inner}")
                for inner, function in vars(value).items()
                if inspect.isfunction(function)
                and not inner.startswith("_")
                and (
                    inner in getattr(value, "__all__", ()) or function.__module__ == value.__name__
                )
            )
        elif inspect.isfunction(value):
            yield pytest.param(value, id=name)


@pytest.mark.parametrize("function", list(public_functions()))
def test_every_public_function_is_documented(function):
    text = inspect.getdoc(function)
    for section in ("Args:", "Example:"):
        assert section in text
    assert ("Returns:" in text) == (inspect.signature(function).return_annotation is not None)
    arguments = text.partition("Args:")[2]
    for parameter in inspect.signature(function).parameters.values():
        assert f"{parameter.name}:" in arguments, f"{parameter.name} is not described"


def test_all_public_names_resolve():
    assert len(dbn.__all__) == len(set(dbn.__all__))
    assert set(dbn.__all__) <= set(dir(dbn))
    with pytest.raises(AttributeError, match="no_such_name"):
        dbn.no_such_name  # noqa: B018


def test_readme_examples():
    failures, attempted = doctest.testfile(
        str(ROOT / "README.md"), module_relative=False, optionflags=FLAGS
    )
    assert attempted > 5
    assert not failures
