"""The pages as a reader types them: commands parse, and run from top to bottom of a page."""

import importlib
import inspect
import json
import pathlib
import pickle
import re
import shlex
import textwrap

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("emoji")

import click

import dbnorm_jax as dbn
from dbnorm_jax._cli.commands import declared  # noqa: F401 - they add themselves
from dbnorm_jax._cli.commands.group import cli
from dbnorm_jax._cli.measuring.methods import KINDS
from dbnorm_jax._src.corrections.table import TABLE

ROOT = pathlib.Path(__file__).parents[2]
FILES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {path.name: path.read_text("utf-8") for path in FILES}
HELP = {
    f"{name} --help": inspect.getdoc(command.callback) for name, command in cli.commands.items()
}
TEXTS = {**PAGES, **HELP}
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def typed(text, program="dbnorm"):
    """The arguments of each line of code that runs `program`, in order."""
    indented = FENCE.sub(lambda fence: re.sub("^", "    ", fence[1], flags=re.MULTILINE), text)
    start = rf"^(?: +|Example: )(?:Next: |Then: )?(?:\.venv/bin/)?{program} (.*)$"
    lines = re.findall(start, indented.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_readme_is_read_in_thirty_seconds():
    assert len(PAGES["README.md"].split()) <= 900


def test_the_readme_links_to_what_is_there():
    targets = re.findall(r"\]\(([^)#]+)", PAGES["README.md"])
    assert len(targets) > 20
    for target in targets:
        assert (ROOT / target).is_file(), target


def mentioned(text, program="dbnorm"):
    """The arguments of each mention in a sentence, which may leave some out."""
    spans = re.findall(rf"`{program} ([^`|]+)", FENCE.sub("", text))
    return [words for span in spans if (words := span.replace("...", "").split())]


def options(words):
    return {word.partition("=")[0] for word in words if word.startswith("-")}


def parsed(arguments):
    """The values of a command's parameters."""
    name, *rest = arguments
    return cli.commands[name].make_context(name, rest).params


@pytest.mark.parametrize("where", TEXTS)
def test_commands_parse(where):
    for arguments in typed(TEXTS[where]):
        try:
            parsed(arguments)
        except (KeyError, click.UsageError) as error:
            pytest.fail(f"dbnorm {shlex.join(arguments)}: {error!r}")
    for name, *rest in mentioned(TEXTS[where]):
        if not name.startswith("-"):
            known = {"--help"}.union(*(option.opts for option in cli.commands[name].params))
            assert options(rest) <= known, (name, rest)


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_their_options_exist(page):
    for module, *rest in (
        *typed(PAGES[page], r"python -m"),
        *mentioned(PAGES[page], r"python -m"),
    ):
        folder, _, name = module.partition(".")
        if folder not in ("benchmarks", "examples"):
            continue
        source = (ROOT / folder / f"{name.replace('.', '/')}.py").read_text("utf-8")
        shared = ("support/report", "studies/pieces") if folder == "benchmarks" else ("common",)
        source += "".join((ROOT / folder / f"{other}.py").read_text("utf-8") for other in shared)
        for option in options(rest):
            # Sizes are options by the names of a table.
            key = option.removeprefix("--").replace("-", "_")
            assert f'"{option}"' in source or f'"{key}": ' in source, (module, option)


SCRIPTS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("[!_]*.py"))
]


OPTIONAL = ("flax", "equinox", "mteb")  # of examples, which say so


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_find_what_they_import(script):
    try:
        importlib.import_module(script)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"no {error.name} here")


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    known = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    for page, text in PAGES.items():
        for targets in (*typed(text, "make"), *mentioned(text, "make")):
            assert set(targets) <= known, page


WORKFLOWS = {path.name: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}


@pytest.mark.skipif(not WORKFLOWS, reason="not in the source archive")
def test_workflows_run_what_is_there():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    known = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    run = set()
    for name, path in WORKFLOWS.items():
        text = path.read_text("utf-8")
        for line in re.findall(r"make (.+)$", text, re.MULTILINE):
            words = re.sub(r"\$\{\{.*?\}\}", "", line).split()
            targets = {word for word in words if "=" not in word}
            assert targets <= known, name
            run |= targets
        for targets in re.findall(r"target: \[(.*)\]", text):
            assert set(targets.split(", ")) <= known, name
            run |= {*targets.split(", ")}
        for folder in re.findall(r"\btests/\w+", text):
            assert (ROOT / folder).is_dir(), name
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert {
        *re.findall(r"test(?:-\w+)?", " ".join(re.findall(r"make (.+)$", ci, re.MULTILINE)))
    } <= run


def test_no_page_fits_to_the_queries_it_asks():
    """Names of files mean the same on all pages: a bank of one is no test of another."""
    banks, asked = set(), set()
    for text in TEXTS.values():
        for name, *rest in typed(text):
            values = parsed([name, *rest])
            banks.add(values.get("query_bank"))
            if name == "evaluate":
                asked.update(values["files"][:1])
            elif name != "benchmark":
                asked.add(values.get("queries"))
    banks, asked = banks - {None}, asked - {None}
    assert {"train_captions.npy", "monday.npy"} <= banks
    assert "captions.npy" in asked
    assert not banks & asked


def test_the_comparison_knows_what_is_there():
    """The column of this library: all commands and corrections, and no name that is gone."""
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", PAGES["comparison.md"], re.MULTILINE)
    column = dict(rows[1:])
    assert set(re.findall(r"`(?:dbnorm )?(\w+)`", column["command"])) == set(cli.commands)
    corrections = {kind.name for kind in KINDS.values()} - {"raw", "auto"}
    shown = set(re.split("[,;] ", column["corrections"]))
    assert {name for name in corrections if name.split()[0] == name} == shown
    for row, cell in rows[1:]:
        for name in re.findall(r"`([a-z_]\w*)`", cell):
            assert name in {*dir(dbn), *cli.commands}, (row, name)
    assert "not there" not in PAGES["comparison.md"]


def test_the_page_of_methods_is_the_table():
    """One line per row of the table, and what else the command runs."""
    lines = re.findall(r"^\| (.*) \|$", PAGES["methods.md"], re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    by_name = {found[0]: found for found in cells}
    for key, row in TABLE.items():
        _, function, _, needs, parameters, _, source = by_name.pop(f"`{key}` {row.name}")
        assert re.match(r"`(\w+)`", function)[1] == row.function
        assert hasattr(dbn, row.function) or hasattr(dbn.baselines, row.function)
        assert needs == ", ".join(row.needs).replace("query bank, gallery bank", "both banks")
        described = [
            f"`{one.name}` {one.default:g}{f' ({one.unit})' if one.unit else ''}"
            for one in row.parameters
            if one.default is not None
        ]
        assert parameters == (", ".join(described) or "none")
        assert source == row.paper
    assert set(by_name) == {"name", "`auto`", "`published`"}


def test_no_page_installs_what_is_not_released():
    """Only a checkout or a wheel can be installed by this name."""
    folders = ("dbnorm_jax", "benchmarks", "examples")
    sources = {
        str(path.relative_to(ROOT)): path.read_text("utf-8")
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    for where, text in {**TEXTS, **sources}.items():
        assert not re.search(r"pip install [^`\n]*(?<!/)dbnorm_jax", text), where
        assert "dbnorm_jax[" not in text, where
    wheels = re.findall(r"dist/dbnorm_jax-(.*?)-py3-none-any\.whl", "".join(PAGES.values()))
    assert set(wheels) == {dbn.__version__}


# --- typed in a folder of small files ----------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, compile_fast):
    """The files that the pages name: pairs by rows, banks and days apart from the test."""
    random = np.random.default_rng(0)
    common = random.normal(size=8)

    def save(count, *names):
        items = random.normal(size=(count, 8)) + common
        views = {name: items + 0.5 * random.normal(size=items.shape) for name in names}
        for name, rows in views.items():
            np.save(f"{name}.npy", rows.astype(np.float32))
        return views

    monkeypatch.chdir(tmp_path)
    test = save(30, "captions", "images")
    bank = save(40, "train_captions", "train_images")
    for day in ("monday", "tuesday"):
        save(20, day)
    for name, count in (("image_names", 30), ("train_captions", 40)):
        lines = [f"{name} {row}" for row in range(count)]
        pathlib.Path(f"{name}.txt").write_text("\n".join(lines), "utf-8")
    for folder in ("img_emb", "img_ids"):
        pathlib.Path(folder).mkdir()
    for number, part in enumerate(np.split(test["images"].astype(np.float32), [4, 9])):
        np.save(f"img_emb/img_emb_{number}.npy", part)
        ids = "".join(f"{number} {row}\n" for row in range(len(part)))
        pathlib.Path(f"img_ids/{number}.txt").write_text(ids, "utf-8")
    for name in ("caption", "image"):
        ids = [f"{name}_{row}" for row in range(30)]
        pathlib.Path(f"{name}_ids.txt").write_text("\n".join(ids), "utf-8")
    qrels = [f"caption_{row} 0 image_{row} 1" for row in range(30)]
    pathlib.Path("qrels.txt").write_text("\n".join(qrels), "utf-8")
    names = ("query", "gallery", "query_bank", "gallery_bank")
    np.savez("data.npz", **test, **bank)
    np.savez("set.npz", **dict(zip(names, (test | bank).values(), strict=True)))
    run = [f"q{row} Q0 d{row % 7} 1 0.5 system" for row in range(30)]
    pathlib.Path("run.trec").write_text("\n".join(run), "utf-8")
    objects = [json.dumps({"query": row, "items": ["a", "b"]}) for row in range(30)]
    pathlib.Path("results.jsonl").write_text("\n".join(objects), "utf-8")
    np.save("s.npy", test["captions"] @ test["images"].T)
    np.save("b.npy", bank["train_captions"] @ test["images"].T)
    return tmp_path


QUICK = ("fit", "merge", "search", "export")  # the others compile for many seconds


def type_all(call, lines):
    for arguments in lines:
        code, _, err = call(*arguments)
        assert code == 0, f"dbnorm {shlex.join(arguments)}: {err}"


# `docs/indexes.md` makes its files itself: tests/retrieval/test_indexes.py types it.
LINES = {page: typed(text) for page, text in PAGES.items() if page != "indexes.md"}
CHEAP = {page: [line for line in lines if line[0] in QUICK] for page, lines in LINES.items()}


def pages_of(lines):
    return [page for page in lines if lines[page]]


@pytest.mark.parametrize("page", pages_of(CHEAP))
def test_a_page_is_typed(page, folder, call):
    type_all(call, CHEAP[page])


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_of(LINES))
def test_a_page_is_typed_in_full(page, folder, call):
    type_all(call, LINES[page])


def test_lines_are_found():
    assert {"README.md", "command.md", "large_files.md", "inputs.md"} <= {*pages_of(CHEAP)}
    assert {"choosing.md", "index.md"} <= {*pages_of(LINES)}


def test_examples_of_the_help_are_typed(folder, call):
    """In the order in which one needs another's result."""
    lines = [line for name in QUICK for line in typed(HELP[f"{name} --help"])]
    assert [line[0] for line in lines] == ["fit", "fit", "merge", "fit", "search", "export"]
    tuesday = [word.replace("monday", "tuesday") for word in lines[1]]
    type_all(call, [tuesday, *lines])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "evaluate", "inspect", "tune"])
def test_other_examples_of_the_help_are_typed(name, folder, call):
    lines = typed(HELP[f"{name} --help"])
    assert lines
    type_all(call, lines)


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_page_on_scaling():
    """On the eight devices that tests have; its scripts for several hosts are left out."""
    random = np.random.default_rng(0)
    defined = {
        name: random.normal(size=(count, 8)).astype(np.float32)
        for name, count in (("queries", 20), ("query_bank", 34), ("gallery", 50))
    }
    first, own, *_, last = blocks("scaling.md")
    for code in (first, own, last):
        exec(compile(code, "scaling.md", "exec"), defined)
    expected = dbn.stream_bank_statistics(defined["query_bank"], defined["gallery"], beta=20.0)
    for name in ("statistics", "merged"):
        np.testing.assert_allclose(
            defined[name].log_normalizer, expected.log_normalizer, rtol=1e-5, atol=1e-5
        )
    assert defined["indices"].shape == (20, 10)
    assert defined["index_rows"].shape == (50, 9)


def test_the_page_on_inputs_reads_a_pickle(folder):
    """As NumPy arrays are pickled; the library itself opens none."""
    matrix = np.arange(6.0).reshape(2, 3)
    with pathlib.Path("matrix.pkl").open("wb") as file:
        pickle.dump(matrix, file)
    (code,) = re.findall(
        r"^    import pickle.*?(?=\n\n)", PAGES["inputs.md"], re.DOTALL | re.MULTILINE
    )
    exec(compile(textwrap.dedent(code), "inputs.md", "exec"), {})
    np.testing.assert_array_equal(np.load("matrix.npy"), matrix)
