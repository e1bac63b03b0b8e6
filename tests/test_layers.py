"""The house: each file imports lower layers only, and nothing it should not."""

import ast
import pathlib
import socket
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "dbnorm_jax"
LAYERS = [
    {"elementary"},
    {"types", "choices", "checks", "numerics", "binary_files", "guard", "fingerprints"},
    {"similarity", "relevance", "sorting", "candidates", "archives"},
    {"selection"},
    {"streaming", "blocks", "held_out", "diagnostics"},
    {"search", "collectives"},
    {"kernels", "counting", "mesh"},
    {"dispatch"},
    {
        "banks",
        "largest",
        "bank_means",
        "sinkhorn",
        "rescaling",
        "neighborhoods",
        "normalizers",
        "retrieval",
        "hubness",
        "folds",
    },
    {
        "baselines",
        "metrics",
        "conformance",
        "io",
        "refinement",
        "soft",
        "influence",
        "screening",
        "inner_products",
        "block_banks",
        "fitting",
        "growing",
    },
    {"tuning", "attribution", "sharded", "block_search", "block_largest"},
    {"sharding", "checkpoints"},
    {"block_fits"},
    {"out_of_core"},
]
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted((PACKAGE / "_src").glob("*.py"))
FORBIDDEN = {"pickle", "socket", "urllib", "http", "requests", "subprocess", "marshal", "shelve"}


def imports(path):
    """Full names of the modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(name):
    return next((level for level, names in enumerate(LAYERS) if name in names), None)


def test_every_file_has_a_layer():
    names = {path.stem for path in (PACKAGE / "_src").glob("*.py")} - {"__init__"}
    assert names == set().union(*LAYERS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_files_import_lower_layers_only(path):
    for name in imports(path):
        assert not name.startswith("dbnorm_jax._cli"), f"{path.stem} imports the command"
        parts = name.split(".")
        if parts[:2] == ["dbnorm_jax", "_src"]:
            imported = layer_of(parts[2])
            assert imported < layer_of(path.stem), f"{path.stem} imports {parts[2]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_are_short(path):
    assert len(path.read_text("utf-8").splitlines()) <= 430


def test_imports_are_declared_and_harmless():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["cli"], *extras["safetensors"], *extras["parquet"]]
    declared = {line.partition("=")[0].rstrip("<>=!~ ") for line in listed} | {"dbnorm_jax"}
    for path in FILES:
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & FORBIDDEN, f"{path} imports {roots & FORBIDDEN}"
        assert roots - sys.stdlib_module_names <= declared, path


def test_nothing_is_evaluated():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, path


def test_public_functions_take_data_first_and_options_by_name():
    """At most four positional arguments, then keyword-only; no **kwargs."""
    for path in (PACKAGE / "_src").glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert node.args.kwarg is None or node.name.startswith("check"), node.name


def test_tests_use_no_network():
    """Those that try are stopped; documentation addresses, which nobody answers at."""
    for host in ("192.0.2.1", "2001:db8::1", "example.com"):
        with pytest.raises(RuntimeError, match="tests use no network"):
            socket.create_connection((host, 9), timeout=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        with pytest.raises(RuntimeError, match="tests use no network"):
            sender.sendto(b"", ("192.0.2.1", 9))
        sender.sendto(b"", ("127.0.0.1", 9))
