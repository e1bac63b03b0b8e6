"""Each command that takes banks says on stderr, in JSON and in its report what looks wrong."""

import json
import pathlib
import re

import numpy as np
import pytest

pytest.importorskip("rich")

from dbnorm_jax._cli.measuring import mistakes
from dbnorm_jax._cli.reading import sets

ROOT = pathlib.Path(__file__).parents[2]
SWAPPED = "the query bank looks like the gallery and the gallery bank like the queries"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Queries and items apart from each other, in files."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    offset = 4 * np.eye(16, dtype=np.float32)[0]
    for queries, gallery in (("queries", "gallery"), ("query_bank", "gallery_bank")):
        items = random.normal(size=(120, 16)).astype(np.float32)
        noise = 0.1 * random.normal(size=items.shape).astype(np.float32)
        np.save(folder / f"{gallery}.npy", items)
        np.save(folder / f"{queries}.npy", items + noise + offset)
    np.save(folder / "captions.npy", np.load(folder / "queries.npy").repeat(5, axis=0) + 1e-3)
    np.save(folder / "shifted.npy", np.minimum(np.arange(120) + 1, 119))
    return folder


@pytest.fixture
def said(call, folder, monkeypatch):
    """Runs the command, which must end well -> (stdout, the lines on stderr)."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        code, out, err = call(*arguments)
        assert code == 0, err
        return out, err.splitlines()

    return run


EVALUATE = ("evaluate", "queries.npy", "gallery.npy", "--methods", "is")
RIGHT = ("--query-bank", "query_bank.npy", "--gallery-bank", "gallery_bank.npy")
EXCHANGED = ("--query-bank", "gallery_bank.npy", "--gallery-bank", "query_bank.npy")


def warned(lines):
    return [line for line in lines if line.startswith("dbnorm: warning: ")]


@pytest.mark.slow
def test_evaluate_says_it_everywhere(said, tmp_path):
    assert said(*EVALUATE, *RIGHT)[1] == []
    out, lines = said(*EVALUATE, *EXCHANGED, "--json", "--output", tmp_path / "report")
    (line,) = warned(lines)
    assert SWAPPED in line
    (said,) = json.loads(out)["warnings"]
    assert line == f"dbnorm: warning: {said}"
    assert json.loads((tmp_path / "report" / "results.json").read_text())["warnings"] == [said]
    page = (tmp_path / "report" / "report.html").read_text()
    assert f'<p class="warning">Warning: {said}.</p>' in page
    assert page.index("Warning: ") < page.index("<h2>Methods</h2>")


def test_fit_says_it(said, tmp_path):
    fit = ("fit", "gallery.npy", "--similarity", "dot", "--method", "dualis")
    betas = ("--beta-query", "1", "--beta-gallery", "0.1")
    assert warned(said(*fit, *betas, *RIGHT, "--output", tmp_path / "right.npz")[1]) == []
    wrong = (*fit, "--beta-query", 2000, "--beta-gallery", "0.1", *RIGHT, "--json")
    out, lines = said(*wrong, "--output", tmp_path / "wrong.npz")
    (line,) = warned(lines)
    assert "beta 2000 is large for these similarities" in line
    assert json.loads(out)["warnings"] == [line.removeprefix("dbnorm: warning: ")]


def test_tune_says_it(said):
    np.save("large.npy", 3.7 * np.load("gallery.npy"))
    tune = ("tune", "query_bank.npy", "gallery_bank.npy", "--similarity", "dot", "--json")
    assert json.loads(said(*tune, "--gallery", "gallery.npy")[0])["warnings"] == []
    out, lines = said(*tune, "--gallery", "large.npy")
    assert any("the norms of the gallery" in line for line in warned(lines))
    assert any("the norms of the gallery" in one for one in json.loads(out)["warnings"])


@pytest.mark.slow
def test_inspect_says_it(said):
    inspect = ("inspect", "gallery.npy", "--queries", "queries.npy")
    assert warned(said(*inspect, *RIGHT)[1]) == []
    out, lines = said(*inspect, *EXCHANGED, "--json")
    assert SWAPPED in warned(lines)[0]
    assert SWAPPED in json.loads(out)["warnings"][0]


@pytest.mark.slow
def test_the_page_of_mistakes_quotes_what_is_printed(said):
    """Each row of the table in docs/faq.md: the command beside the mistake prints the words."""
    wrong = {
        "banks exchanged": (*EVALUATE, *EXCHANGED),
        "`--relevant` counts from 1": (*EVALUATE, *RIGHT, "--relevant", "shifted.npy"),
        "five captions of each image, no `--relevant`": (
            *("evaluate", "captions.npy", *EVALUATE[2:]),
            *RIGHT,
        ),
        "`--beta-query 2000` with cosines": (*EVALUATE, *RIGHT, "--beta-query", 2000),
    }
    text = (ROOT / "docs" / "faq.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.MULTILINE))
    for mistake, arguments in wrong.items():
        printed = " ".join(warned(said(*arguments)[1]))
        assert rows[mistake] in printed, printed


def test_of_large_rows_a_few_are_asked_for_at_once(monkeypatch):
    """What is read of a mapped file maps the pages around it."""
    whole = np.arange(9000, dtype=np.float32).reshape(3000, 3)
    rows, asked = sets.LargeRows("rows", whole, "dot"), []
    read = sets.LargeRows.__getitem__

    def counted(own, places):
        asked.append(len(places))
        return read(own, places)

    monkeypatch.setattr(sets.LargeRows, "__getitem__", counted)
    np.testing.assert_array_equal(mistakes._drawn(rows), whole)
    assert max(asked) <= 64
