"""Documentation is executed: docstrings, the README's code and its figures."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest
from patience import slow_but

import dbnorm_jax as dbn
from dbnorm_jax import _src

ROOT = pathlib.Path(__file__).parents[2]
PREFIX = "dbnorm_jax._src."
MODULES = [
    found.name.removeprefix(PREFIX)
    for found in pkgutil.walk_packages(_src.__path__, PREFIX)
    if not found.ispkg
]
NAMESPACES = [found.name for found in pkgutil.iter_modules(dbn.__path__) if found.name[0] != "_"]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(PREFIX + name)
    failures, _ = doctest.testmod(module, optionflags=FLAGS)
    assert not failures


@pytest.mark.parametrize("name", slow_but(["growing"], ["", *NAMESPACES]))
def test_examples_of_namespaces_and_of_their_names(name):
    """Doctest finds nothing of a module of `_src` that is published already."""
    module = getattr(dbn, name) if name else dbn
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=FLAGS)
    tests = [doctest.DocTestParser().get_doctest(module.__doc__, {}, module.__name__, None, 0)]
    for one in module.__all__:
        if callable(getattr(module, one)):
            found = finder.find(getattr(module, one), module=False, globs={"__file__": __file__})
            tests += found
    assert tests
    for test in tests:
        assert not runner.run(test).failed


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
    for section in ("Args:", "Examples:"):
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


PAGES = ("README.md", *(f"docs/{page}.md" for page in ("index", "faq", "gradients", "large_files")))
PAGES += ("docs/recipes.md", "docs/lifecycle.md")


@pytest.mark.parametrize("page", slow_but(["README.md"], PAGES))
def test_page_examples(page):
    failures, attempted = doctest.testfile(
        str(ROOT / page), module_relative=False, optionflags=FLAGS
    )
    assert attempted > 5
    assert not failures


def test_reference_holds_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    for name in dbn.__all__:
        if name != "__version__":
            value = getattr(dbn, name)
            place = value.__name__ if inspect.ismodule(value) else f"dbnorm_jax.{name}"
            assert re.search(rf"^::: {re.escape(place)}\b", text, re.MULTILINE), name


def test_pages_link_to_pages():
    pages = sorted((ROOT / "docs").glob("*.md"))
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in pages:
        assert page.name in navigation
        for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_promises_name_tests_that_exist():
    text = (ROOT / "docs" / "promises.md").read_text("utf-8")
    named = re.findall(r"`tests/([\w/]+)\.py::(\w+)`", text)
    assert len(named) > 30
    for file, test in named:
        source = (ROOT / "tests" / f"{file}.py").read_text("utf-8")
        assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file}::{test}"
    # A promise without a test is none.
    promises = text.partition("## What is not promised")[0]
    for bullet in re.split(r"^- ", promises, flags=re.MULTILINE)[1:]:
        assert "`tests/" in bullet, bullet
