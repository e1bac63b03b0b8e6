"""The wings of the house: each file imports what its wing may, and nothing it should not."""

import ast
import graphlib
import pathlib
import socket
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "dbnorm_jax"
FACES = {path.relative_to(ROOT).as_posix() for path in PACKAGE.glob("*.py")}

# House -> wing -> wings, or single files of them, that its files import beside their own wing.
# Houses import those above them, never those below. The wing "" is the house's own folder.
HOUSES = {
    "dbnorm_jax/_src": {
        "core": "",
        "passes": "core",
        "places/mesh": "core passes",
        "statistics": "core passes places/mesh",
        "corrections": "core passes statistics",
        "retrieval": "core passes places/mesh statistics",
        "tuning": "core passes statistics corrections",
        "insight": "core passes statistics retrieval",
        "files": "core tuning/choice",
        "places/disk": "core passes files",
    },
    "dbnorm_jax/_cli": {
        "reading": "",
        "measuring": "reading",
        "showing": "reading measuring",
        "commands": "reading measuring showing",
    },
    "benchmarks": {
        "support": "",
        "speed": "support",
        "agreement": "support",
        "studies": "support",
        "": "support speed",
    },
}
# Folders of tests beside those of wings.
TESTS = {"cli", "benchmarks", "examples", "laws", "support", "campaigns"}

SOURCES = sorted((PACKAGE / "_src").rglob("*.py"))
FILES = sorted(PACKAGE.rglob("*.py"))
MEMBERS = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for house in HOUSES
    for path in sorted((ROOT / house).rglob("*.py"))
    if path.name != "__init__.py"
}
FORBIDDEN = {"pickle", "socket", "urllib", "http", "requests", "subprocess", "marshal", "shelve"}


def imports(source):
    """Full names of what a source imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(name):
    """The file of this repository that a dotted name lies in, or None."""
    parts = name.split(".")
    while parts:
        for end in (".py", "/__init__.py"):
            path = "/".join(parts) + end
            if (ROOT / path).is_file():
                return path
        parts.pop()
    return None


def place_of(path):
    """(house, wing, place in the house without .py); None where there is none."""
    for house, wings in HOUSES.items():
        if path.startswith(f"{house}/"):
            place = path.removeprefix(f"{house}/").removesuffix(".py").removesuffix("/__init__")
            wing = place if place in wings else place.rpartition("/")[0]
            return house, wing if wing in wings else None, place
    return None, None, None


def breaches(path, source):
    """What a file imports against the law, in words; or that it stands in no wing."""
    house, wing, _ = place_of(path)
    if wing is None:
        yield f"{path} stands in no wing"
        return
    order = list(HOUSES)
    for name in imports(source):
        imported = file_of(name)
        its_house, its_wing, its_place = place_of(imported or "")
        if imported is None:
            continue
        if imported in FACES:
            fine = house != order[0]
        elif its_house == house:
            may = {wing, *HOUSES[house][wing].split()}
            fine = its_wing in may or its_place in may
        else:
            fine = its_wing is not None and order.index(its_house) < order.index(house)
        if not fine:
            yield f"{path} imports {name}"


@pytest.mark.parametrize("path", MEMBERS)
def test_files_import_what_their_wing_may(path):
    assert not list(breaches(path, MEMBERS[path]))


def test_no_imports_go_round():
    """Not inside a wing either."""
    graph = {
        path: set(map(file_of, imports(source))) & MEMBERS.keys()
        for path, source in MEMBERS.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


# What the modules of Python, and names in them, are of some systems only.
OF_SOME = {"fcntl", "grp", "msvcrt", "posix", "pwd", "resource", "termios", "winreg"}
OF_SOME |= {f"signal.{name}" for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPROF", "SIGXFSZ")}
OF_SOME |= {f"os.{name}" for name in ("fork", "geteuid", "getuid", "sched_getaffinity", "uname")}
EVERYWHERE = [
    path
    for folder in ("dbnorm_jax", "tests", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def run_on_import(node):
    """The parts of a module that importing it runs: no bodies of functions."""
    yield node
    for part in ast.iter_child_nodes(node):
        if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from run_on_import(part)
        elif not isinstance(part, ast.Lambda):
            for decorator in part.decorator_list:
                yield from run_on_import(decorator)


def of_some_systems(source):
    """What importing a module asks of the system that not every one has."""
    for node in run_on_import(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = imports(ast.unparse(node))
            yield from (name for name in names if name.partition(".")[0] in OF_SOME)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in OF_SOME:
            yield ast.unparse(node)


def test_every_module_imports_on_every_system():
    """What only some have is asked for where it is used, in tests by way of `systems`."""
    for path in EVERYWHERE:
        source = path.read_text("utf-8")
        assert not list(of_some_systems(source)), path
        reads_proc = '"/proc' in source and (ROOT / "tests") in path.parents
        assert not reads_proc or path.stem in ("systems", "test_wings"), path


@pytest.mark.parametrize(
    "source",
    [
        "import resource",
        "if True:\n    from fcntl import flock",
        "class A:\n    import pwd",
        "import signal\nKILL = signal.SIGKILL",
        "import os\n@mark(os.getuid() == 0)\ndef f(): ...",
    ],
)
def test_what_some_systems_lack_is_noticed(source):
    assert [*of_some_systems(source)]
    inside = "def f():\n    " + source.replace("\n", "\n    ")
    assert not [*of_some_systems(inside)]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("dbnorm_jax/_src/core/checks.py", "from dbnorm_jax._src.passes import selection"),
        ("dbnorm_jax/_src/passes/nearest.py", "import dbnorm_jax._src.retrieval.metrics"),
        ("dbnorm_jax/_src/corrections/means.py", "from dbnorm_jax._src.places.mesh import layout"),
        ("dbnorm_jax/_src/tuning/tune.py", "from dbnorm_jax._src.retrieval.search import top_k"),
        ("dbnorm_jax/_src/files/archives.py", "from dbnorm_jax._src.tuning import grid"),
        ("dbnorm_jax/_src/statistics/bank.py", "import dbnorm_jax as dbn"),
        ("dbnorm_jax/_src/places/disk/rows.py", "from dbnorm_jax._cli.reading import arrays"),
        ("dbnorm_jax/_cli/reading/sets.py", "from dbnorm_jax._cli.measuring import methods"),
        ("dbnorm_jax/_cli/commands/fit.py", "from benchmarks.support import inputs"),
        ("dbnorm_jax/_cli/commands/fit.py", "from examples import common"),
        ("benchmarks/studies/shift.py", "from benchmarks.speed import fit"),
        ("dbnorm_jax/_src/search.py", "import math"),
        ("dbnorm_jax/_src/places/search.py", "import math"),
        ("dbnorm_jax/_cli/commands/more/search.py", "import math"),
    ],
)
def test_a_breach_is_noticed(path, line):
    assert list(breaches(path, f"{line}\n"))
    assert list(breaches(path, f"def late():\n    {line}\n"))


def test_wings_hand_nothing_on():
    """Their `__init__` is a docstring, so that a name has one place."""
    for house, wings in HOUSES.items():
        folders = {ROOT / house / wing for wing in wings if wing}
        for folder in folders | {folder.parent for folder in folders}:
            text = (folder / "__init__.py").read_text("utf-8")
            assert ast.get_docstring(ast.parse(text)), folder
            assert len(ast.parse(text).body) == 1, folder


def test_tests_stand_where_what_they_test_does():
    folders = {*next(iter(HOUSES.values())), *TESTS}
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert path.parent.relative_to(ROOT / "tests").as_posix() in folders, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_are_short(path):
    """One idea each."""
    assert len(path.read_text("utf-8").splitlines()) <= 600


def test_imports_are_declared_and_harmless():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [
        *project["dependencies"],
        *(line for name in ("cli", "demo", "safetensors", "parquet") for line in extras[name]),
    ]
    declared = {line.partition("=")[0].rstrip("<>=!~ ") for line in listed} | {"dbnorm_jax"}
    for path in FILES:
        roots = {name.partition(".")[0] for name in imports(path.read_text("utf-8"))}
        assert not roots & FORBIDDEN, f"{path} imports {roots & FORBIDDEN}"
        assert roots - sys.stdlib_module_names <= declared, path


def test_nothing_is_evaluated():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, path


def test_public_functions_take_data_first_and_options_by_name():
    """At most four positional arguments, then keyword-only; no **kwargs."""
    for path in SOURCES:
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
