"""What commands say at their end: a verdict, and a next command that works as it is printed."""

import pathlib
import re
import shlex

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import dbnorm_jax as dbn
from dbnorm_jax._cli.commands import declared  # noqa: F401 - they add themselves
from dbnorm_jax._cli.commands.group import cli
from dbnorm_jax._cli.measuring.methods import Method, choose_methods, parse
from dbnorm_jax._cli.measuring.table_rows import ResultRow
from dbnorm_jax._cli.showing import verdict
from dbnorm_jax._cli.showing.verdict import Inputs

SIZE, DIM = 60, 8
# Names that a shell must be told of.
NAMED = {
    "queries": "my queries.npy",
    "gallery": "the $gallery's.npy",
    "query_bank": "bank (old).npy",
    "gallery_bank": "items.npy",
}
BANKS = ("--query-bank", NAMED["query_bank"], "--gallery-bank", NAMED["gallery_bank"])


@pytest.fixture
def folder(tmp_path, monkeypatch, compile_fast):
    """A hubby set under those names."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    items = random.normal(size=(2, SIZE, DIM))
    queries = items + 0.5 * random.normal(size=items.shape) + 2 * random.normal(size=DIM)
    arrays = {"queries": queries[0], "gallery": items[0]}
    arrays |= {"query_bank": queries[1], "gallery_bank": items[1]}
    for name, rows in arrays.items():
        np.save(NAMED[name], rows.astype(np.float32))
    members = {"query": arrays["queries"]} | arrays
    np.savez("a set.npz", **members, bank_pair=np.arange(SIZE))
    return tmp_path


def following(text):
    """The commands that a text says to type, as a shell takes them apart."""
    return [shlex.split(line) for line in re.findall(r"^(?:Next|Then): (.+)$", text, re.MULTILINE)]


def typed_after(call, *arguments):
    """What a command says comes next, all of which is typed -> what the last of it says."""
    code, out, err = call(*arguments)
    assert code == 0, err
    commands = following(out)
    assert commands, out
    for program, *words in commands:
        assert program == "dbnorm"
        code, out, err = call(*words)
        assert code == 0, (words, err)
    return [words[1:2] + words[-1:] for words in commands], out


def test_from_a_table_to_what_comes_up(call, folder):
    """Without pairs: CSLS is fitted, searched with, and its results are looked at."""
    files = ("evaluate", NAMED["queries"], NAMED["gallery"], *BANKS[:2])
    commands, out = typed_after(call, *files)
    assert commands == [["fit", "correction.npz"], ["search", "found.npz"]]
    ((_, *words),) = following(out)
    assert words == ["inspect", "--results", "found.npz", "--num-items", str(SIZE)]
    code, out, err = call(*words)
    assert code == 0, err
    assert "items take" in out
    assert following(out) == [["dbnorm", "inspect", "--help"]]
    # Typed again, nothing that is there stands in the way.
    commands, _ = typed_after(call, *files)
    assert commands == [["fit", "correction-2.npz"], ["search", "found-2.npz"]]


def test_from_statistics_to_vectors(call, folder):
    bank = np.load(NAMED["query_bank"])
    fits = []
    for day, rows in (("monday", bank[:30]), ("tuesday", bank[30:])):
        np.save(f"{day}.npy", rows)
        fit = ("fit", NAMED["gallery"], "--query-bank", f"{day}.npy", "--method", "statistics")
        fits.append(typed_after(call, *fit, "--output", f"{day}.npz")[0])
    assert fits == [[["fit", "correction.npz"]], [["fit", "correction-2.npz"]]]
    commands, out = typed_after(call, "merge", "monday.npz", "tuesday.npz", "--output", "both.npz")
    assert commands == [["fit", "correction-3.npz"]]
    gallery, beta = np.load(NAMED["gallery"]), np.float32(20)
    similarity = dbn.cosine_similarity
    whole = dbn.stream_bank_statistics(bank, gallery, beta=beta, similarity_fn=similarity)
    found = dbn.load("correction-3.npz").bias
    np.testing.assert_allclose(found, dbn.inverted_softmax(whole).bias, rtol=1e-5, atol=1e-5)
    ((_, *words),) = following(out)
    assert words[0] == "export"
    code, out, err = call(*words)
    assert code == 0, err
    ((program, readme),) = following(out)
    assert program == "cat"
    assert pathlib.Path(readme).read_text("utf-8").startswith("# Corrected vectors")


def test_machine_outputs_hold_no_verdict(call, folder):
    files = (NAMED["queries"], NAMED["gallery"])
    code, out, err = call("search", *files, "-k", 2)
    assert code == 0
    assert len(out.splitlines()) == SIZE
    assert following(err) == [["dbnorm", "search", *files, "-k", "2", "--output", "found.npz"]]
    code, out, err = call("search", *files, "--output", "s.npz", "--json")
    assert (code, err) == (0, "")
    assert "Next" not in out


@pytest.mark.slow
def test_from_pairs_to_a_corrected_search(call, folder):
    """By files, by a set and by a choice: the same correction."""
    pairs = (*BANKS, "--bank-pairs", "rows")
    arguments = ("evaluate", NAMED["queries"], NAMED["gallery"], *pairs, "--methods", "auto")
    _, out, _ = call(*arguments, "--output", "report")
    assert re.search(
        r"^auto gains [\d.]+ ± [\d.]+ points of R@1, at least \+[\d.]+ on queries like the bank's "
        r"\(95 %\); \d+ queries won, \d+ lost\.$",
        out,
        re.MULTILINE,
    ), out
    page = pathlib.Path("report/report.html").read_text("utf-8")
    assert page.index('id="verdict"') < page.index("dbnorm fit") < page.index('id="summary"')
    for _, *words in following(out):
        assert call(*words)[0] == 0
    commands, _ = typed_after(call, "evaluate", "a set.npz", "--methods", "auto")
    assert commands == [["fit", "correction-2.npz"], ["search", "found-2.npz"]]
    banks = (NAMED["query_bank"], NAMED["gallery_bank"], "--bank-pairs", "rows")
    tune = ("tune", *banks, "--gallery", NAMED["gallery"])
    typed_after(call, *tune)
    commands, _ = typed_after(call, *tune, "--output", "the choice.npz")
    assert commands == [["fit", "correction-4.npz"]]
    first, *others = (dbn.load(f"correction{end}.npz").bias for end in ("", "-2", "-3", "-4"))
    assert np.asarray(first).any()
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_from_hubs_to_a_fit(call, folder):
    inspect = ("inspect", NAMED["gallery"], "--query-bank", NAMED["query_bank"])
    commands, _ = typed_after(call, *inspect, "--queries", NAMED["queries"], "--method", "nnn:k=7")
    assert commands == [["fit", "correction.npz"], ["search", "found.npz"]]
    _, out, _ = call("inspect", "--demo", "--top", 1)
    assert following(out) == [["dbnorm", "evaluate", "--help"]]
    code, out, _ = call("tune", NAMED["query_bank"], NAMED["gallery_bank"])
    assert code == 0
    ((_, *words),) = following(out)
    assert words[-3] == "csls"
    assert call(*words)[0] == 0


# --- of tables made up -------------------------------------------------------------------------


FILES = Inputs("g.npy", "b.npy", "i.npy", "rows", "q.npy")


def row(kind, *, gain=0.0, interval=1.0, skewness=1.0, ranks=(1, 2, 1), choice=None):
    wish = parse(kind, "--methods")[0]
    method = choose_methods([wish.kind], 20.0, 1.0)[-1]
    ranks = np.asarray(ranks, float)
    nothing = np.zeros((3, 1), np.int32), ranks, "", choice, np.zeros(3, np.int32)
    return ResultRow(method, *nothing, skewness, 0, 0, (), gain=gain, gain_interval=interval)


RAW = row("raw")


@pytest.mark.parametrize(
    ("told", "words", "first"),
    [
        (row("is", gain=5.0, ranks=(1, 1, 2)), "gains 5.0 ± 1.0 points of R@1; 1 queries", "fit"),
        (row("is", gain=-5.0), "loses 5.0 ± 1.0 points of R@1", "search"),
        (row("is", gain=0.5), "changes nothing that these queries show: +0.5 ± 1.0", "search"),
        (row("dsl", gain=5.0), "dbnorm fit does not make it; dbnorm_jax.baselines.", "fit"),
        (row("sn", gain=5.0), "dbnorm fit does not make it; dbnorm_jax.baselines.", "fit"),
    ],
)  # fmt: skip
def test_a_table_is_told(told, words, first):
    found = verdict.of_table([RAW, told], FILES)
    assert words in found.text
    assert found.steps[0][1] == first
    assert ("Raw is the safer one" in found.text) == (first == "search")


def test_nothing_is_gained_without_right_items():
    unknown = [row(kind, gain=np.nan, skewness=value) for kind, value in (("raw", 2), ("csls", 1))]
    found = verdict.of_table(unknown, FILES)
    assert "from 2.00 to 1.00" in found.text
    assert "not known without right items (--relevant)" in found.text
    assert [command[1] for command in found.steps] == ["fit", "search"]


@pytest.mark.parametrize(
    "kind", ["is", "dis", "dualis", "csls", "nnn", "nnn:k=7", "is:beta_query=3"]
)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_fit_is_the_method_s(kind, similarity):
    """Its options are read back by `dbnorm fit` as they were."""
    name, parameters, _ = parse(kind, "--methods")[0]
    method = choose_methods([name], 20.0, 1.0)[-1]
    values = {"beta_query": method.beta_query, "beta_gallery": method.beta_gallery}
    values |= dict(method.options) | parameters
    options = {key: value for key, value in values.items() if key in dict(method.options)}
    method = Method(name, values["beta_query"], values["beta_gallery"], tuple(options.items()))
    inputs = Inputs("g.npy", "b.npy", "i.npy", similarity=similarity)
    _, command, *words = verdict.fit_command(inputs, method)
    found = cli.commands[command].make_context(command, words).params
    assert (found["method"], found["similarity"]) == (name, similarity)
    assert found["gallery_bank"] == ("i.npy" if name == "dualis" else None)
    for key in ("beta_query", "beta_gallery", "k"):
        default = method.about.defaults.get(key)
        taken = default if found[key] is None and similarity == "cosine" else found[key]
        assert taken == values.get(key) or (key == "k" and found[key] is None)


def test_what_came_through_a_pipe_is_not_named_again():
    for piped in (
        Inputs("-", "b.npy", queries="q.npy"),
        Inputs("g.npy", "-:bank", queries="q.npy"),
    ):
        found = verdict.of_table([RAW, row("is", gain=5.0)], piped)
        assert found.steps == ()
        assert "Next" not in "\n".join(found.lines)
    found = verdict.of_fit("made", Inputs("g.npy", "-"), "c.npz", statistics=False)
    assert [command[1] for command in found.steps] == ["export"]
