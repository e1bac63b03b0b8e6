"""The page of a report: what it says, that it is right, and that nothing leaves it."""

import functools
import html
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from patience import HUNG

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from dbnorm_jax._cli.measuring import story
from dbnorm_jax._cli.measuring.methods import choose_methods
from dbnorm_jax._cli.measuring.table_rows import evaluate
from dbnorm_jax._cli.reading import sets
from dbnorm_jax._cli.showing import page, plots, table
from dbnorm_jax._cli.showing.verdict import Verdict

NUM_QUERIES, NUM_BANK, DIM = 40, 60, 8
HOSTILE = "<script>alert('1')</script> & \"quotes\"\0\x1b[2J\u202e\n\u2028\udcff"


def unit(random, rows):
    vectors = random.normal(size=(rows, DIM))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_files(folder, seed=0):
    random = np.random.default_rng(seed)
    gallery, bank = unit(random, NUM_QUERIES), unit(random, NUM_BANK)
    arrays = {
        "query": gallery + 0.4 * random.normal(size=gallery.shape),
        "gallery": gallery,
        "query_bank": bank + 0.4 * random.normal(size=bank.shape),
        "gallery_bank": bank,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array.astype(np.float32))
    for name, count in (("query", 40), ("gallery", 40), ("query_bank", 60)):
        lines = [f"{name} item {row}" for row in range(count)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return arrays


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    write_files(path)
    return path


@pytest.fixture
def arguments(folder):
    named = {
        "--query-bank": "query_bank.npy",
        "--gallery-bank": "gallery_bank.npy",
        "--labels": "gallery.txt",
        "--bank-labels": "query_bank.txt",
        "--query-labels": "query.txt",
    }
    options = [part for name, file in named.items() for part in (name, folder / file)]
    options += ["--methods", "paper,csls"]
    return ["evaluate", folder / "query.npy", folder / "gallery.npy", *options]


def evaluation_set(seed=0, num_queries=NUM_QUERIES):
    random = np.random.default_rng(seed)
    gallery, bank = unit(random, NUM_QUERIES), unit(random, NUM_BANK)
    rows = random.integers(0, NUM_QUERIES, num_queries)
    return sets.EvaluationSet(
        name="test",
        queries=(gallery[rows] + 0.5 * random.normal(size=(num_queries, DIM))).astype(np.float32),
        gallery=gallery.astype(np.float32),
        query_bank=(bank + 0.5 * random.normal(size=bank.shape)).astype(np.float32),
        gallery_bank=bank.astype(np.float32),
        relevant=(np.arange(num_queries + 1), rows),
        similarity="dot",
    )


@pytest.fixture(scope="module")
def told():
    test = evaluation_set()
    methods = choose_methods(("is", "dualis"), 5.0, 1.0)
    rows = evaluate(test, methods)
    steps = []
    return test, rows, story.tell(test, rows, steps.append), steps


class _Reader(html.parser.HTMLParser):
    """Text, tags with their attributes, and what the page would load."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.loads, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = _Reader()
    reader.feed(text)
    return reader


SAID = Verdict("auto gains.", (("dbnorm", "fit"),))


def report_of(rows, **more):
    told = {
        "name": "test",
        "similarity": "dot",
        "sizes": {"queries": NUM_QUERIES, "gallery": NUM_QUERIES, "query_bank": NUM_BANK},
        "beta_query": 5.0,
        "beta_gallery": 1.0,
        "own_gallery_bank": False,
        "num_equal_rows": 0,
        "k": 10,
        "rows": rows,
    }
    return table.Report(**told | more)


@pytest.mark.slow
def test_page_holds_table_labels_and_command(call, arguments, tmp_path):
    code, _, err = call(*arguments, "--output", tmp_path / "out")
    assert code == 0, err
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    reader = read(text)
    said = " ".join(reader.text)
    content = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    for row in content["rows"]:
        assert f"{row['recall_at_1']:.1f}" in said
        assert f"{row['skewness']:.2f}" in said
    for label in ("gallery item", "query_bank item", "query item"):
        assert label in said
    assert "dbnorm evaluate" in said
    assert "--bank-labels" in said
    assert "--output" not in said.partition("Made with")[2]
    assert reader.tags.count("img") == 2 * 6  # for either scheme
    assert content["versions"]["jax"] in said


@pytest.mark.slow
def test_page_loads_nothing(call, arguments, tmp_path):
    call(*arguments, "--output", tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    reader = read(text)
    assert reader.loads
    assert all(link.startswith("data:image/png;base64,") for link in reader.loads)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "script" not in reader.tags


def test_hostile_labels_are_text(told, capsys):
    test, rows, told_story, _ = told
    named = {
        "gallery_labels": (HOSTILE,) * NUM_QUERIES,
        "query_labels": (HOSTILE,) * NUM_QUERIES,
        "query_bank_labels": (HOSTILE,) * NUM_BANK,
    }
    report = report_of(rows, name=HOSTILE, notes=(HOSTILE,))
    said = Verdict(HOSTILE, (("dbnorm", HOSTILE),))
    labelled = sets.dataclasses.replace(test, **named)
    text = page.to_html(report, labelled, told_story, [], ["dbnorm", HOSTILE], said)
    reader = read(text)
    assert "script" not in reader.tags
    assert " ".join(reader.text).count("<script>alert") >= 3
    assert text.replace("\n", "").isprintable()
    assert r"\x00\x1b[2J\u202e\n\u2028\udcff" in text
    table.show(report)
    shown = capsys.readouterr().out
    assert shown.startswith("<script>")
    assert shown.replace("\n", "").isprintable()
    plots.methods_png(report)
    figure = plots.Figure()
    plots._png(figure, HOSTILE)
    assert figure.get_suptitle().isprintable()
    formula = table.to_csv(sets.dataclasses.replace(report, name="=1+1"))
    assert [line.partition(",")[0] for line in formula.splitlines()[1:]] == ["'=1+1"] * len(rows)


def charts_of(report, sweep):
    return [
        *plots.k_occurrence_charts(report),
        *plots.methods_charts(report),
        *plots.sweep_charts(report, sweep),
    ]


def test_page_is_found_through_without_eyes(told):
    test, rows, told_story, _ = told
    report = report_of(rows)

    class Chart:
        says = "raw 1"

        def png(self, *, dark):
            return b"dark" if dark else b"light"

    page_of = functools.partial(page.to_html, report)
    reader = read(page_of(test, told_story, [("Title", "said", [Chart()])], ["dbnorm"], SAID))
    found = {tag: [one for name, one in reader.attributes if name == tag] for tag in reader.tags}
    assert [len(found[tag]) for tag in ("h1", "main", "footer")] == [1, 1, 1]
    scopes = [one["scope"] for one in found["th"]]
    assert scopes.count("row") + reader.tags.count("thead") == reader.tags.count("tr")
    assert {one["aria-label"] for one in found["div"] if "tabindex" in one} == {
        "Methods", "The most retrieved items", "Queries before and after",
    }  # fmt: skip
    assert [one["alt"] for one in found["img"]] == ["raw 1"] * 2
    assert [one["class"] for one in found["img"]] == ["light", "dark"]
    said = " ".join(reader.text)
    assert "With --labels and --bank-labels names stand" in said
    assert "With --query-labels and --labels names stand" in said
    names = {
        f"{part}_labels": ("a name",) * NUM_BANK for part in ("gallery", "query", "query_bank")
    }
    named = page_of(sets.dataclasses.replace(test, **names), told_story, [], ["dbnorm"], SAID)
    assert "Rows are counted from 0" not in named


def test_what_the_charts_say_in_words(told):
    _, rows, told_story, _ = told
    sweep = told_story.sweep
    says = [chart.says for chart in charts_of(report_of(rows), sweep)]
    ranked, _, recalls, skewness, recalls_by_beta, skewness_by_beta = says
    shown = told_story.shown
    for row in (rows[0], shown):
        counts = np.sort(row.k_occurrence)
        assert f"top 10 of {counts[-1]} queries" in ranked
        assert f"the median item of {np.median(counts):g}, {row.anti_hub_share:.1f} %" in ranked
    for row in rows[1:]:
        interval = f"({row.gain:+.1f} ± {row.gain_interval:.1f})"
        assert f"{row.method.label} {row.recall_at_1:.1f} % {interval}" in recalls
        assert f"{row.method.label} {row.skewness:.2f}" in skewness
    for curve in sweep.curves[1:]:
        for value in curve.recall_at_1:
            assert f"{value:.1f}" in recalls_by_beta
        for value in curve.skewness:
            assert f"{value:.2f}" in skewness_by_beta


def test_intervals_are_drawn(told):
    _, rows, told_story, _ = told
    report, sweep = report_of(rows), told_story.sweep
    axes = plots.Figure().subplots()
    plots.methods_charts(report)[0].draw(axes)
    ends = axes.containers[1].lines[2][0].get_segments()
    for row, (left, right) in zip(rows[1:], ends, strict=True):
        middle, half = row.recall_at_1, row.gain_interval
        np.testing.assert_allclose([left[0], right[0]], [middle - half, middle + half])
    axes = plots.Figure().subplots()
    plots.sweep_charts(report, sweep)[0].draw(axes)
    for band, curve in zip(axes.collections, sweep.curves[1:], strict=True):
        low, high = (
            band.get_paths()[0].vertices[:, 1].min(),
            band.get_paths()[0].vertices[:, 1].max(),
        )
        recall, half = np.array(curve.recall_at_1), np.array(curve.intervals)
        np.testing.assert_allclose([low, high], [(recall - half).min(), (recall + half).max()])


def test_sweep_meets_the_table(told):
    _, rows, told_story, steps = told
    assert len(steps) == story.NUM_STEPS
    sweep = told_story.sweep
    place = sweep.betas.index(5.0)
    by_label = {curve.label: curve for curve in sweep.curves}
    assert list(by_label) == ["raw", "IS", "DualIS, gallery bank 1"]
    for curve, row in zip(sweep.curves, rows, strict=True):
        assert curve.recall_at_1[place] == pytest.approx(row.recall_at_1, abs=1e-3)
        assert curve.skewness[place] == pytest.approx(row.skewness, abs=1e-3)
        assert curve.intervals[place] == pytest.approx(row.gain_interval, abs=1e-3)
    assert len(set(by_label["raw"].skewness)) == 1
    assert len(set(by_label["IS"].skewness)) > 1


def test_hubs_and_their_makers(told):
    test, rows, told_story, _ = told
    raw = rows[0].k_occurrence
    assert [hub.before for hub in told_story.hubs] == sorted(raw, reverse=True)[:10]
    powers = np.exp(5.0 * test.query_bank.astype(float) @ test.gallery.astype(float).T)
    for hub in told_story.hubs:
        shares = powers[:, hub.row] / powers[:, hub.row].sum()
        order = np.argsort(-shares)[:3]
        assert [maker.row for maker in hub.makers] == order.tolist()
        np.testing.assert_allclose([m.share for m in hub.makers], shares[order], rtol=1e-4)
        assert hub.after == told_story.shown.k_occurrence[hub.row]


def test_examples_are_what_they_say(told):
    test, rows, told_story, _ = told
    before, after = rows[0].ranks <= 1, told_story.shown.ranks <= 1
    assert told_story.num_gained == (after & ~before).sum()
    assert told_story.num_lost == (before & ~after).sum()
    assert told_story.num_gained
    for example in told_story.gained:
        right = test.relevant[1][example.query]
        assert example.right == [right]
        assert example.before[0] != right
        assert example.after[0] == right
    for example in told_story.lost:
        assert example.before[0] in example.right
        assert example.after[0] not in example.right


def test_some_queries_keep_their_right_items():
    test = evaluation_set(num_queries=100)
    some = sets.some_queries(test, 7)
    assert len(some.queries) == 7
    indptr, indices = some.relevant
    for row, query in enumerate(some.queries):
        original = int(np.flatnonzero((test.queries == query).all(axis=1))[0])
        assert indices[indptr[row] : indptr[row + 1]].tolist() == [test.relevant[1][original]]
    assert sets.some_queries(test, 100) is test


def test_auto_that_kept_raw_is_not_shown(told):
    _, rows, _, _ = told
    auto = choose_methods(("auto",), None, None)[1]
    kept = story.dataclasses.replace(rows[0], method=auto)
    assert story.shown_row([rows[0], kept, *rows[1:]]).method.kind == "dualis"
    assert story.shown_row([rows[0], kept]) is None
    chose = story.dataclasses.replace(rows[1], method=auto)
    assert story.shown_row([rows[0], chose, *rows[1:]]).method.kind == "auto"


@pytest.mark.slow
def test_matrices_and_no_truth(call, folder, tmp_path):
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("query", "gallery", "query_bank")}
    np.save(tmp_path / "s.npy", arrays["query"][:30] @ arrays["gallery"].T)
    np.save(tmp_path / "b.npy", arrays["query_bank"] @ arrays["gallery"].T)
    code, _, err = call(
        "evaluate",
        *("--similarities", tmp_path / "s.npy"),
        *("--query-bank-similarities", tmp_path / "b.npy"),
        *("--methods", "is", "--beta-query", "5", "--output", tmp_path / "out"),
    )
    assert code == 0, err
    said = " ".join(read((tmp_path / "out" / "report.html").read_text("utf-8")).text)
    assert "changes the first place of" in said
    assert "R@1 from" not in said


def test_labels_must_fit(call, arguments, folder, tmp_path):
    (tmp_path / "few.txt").write_text("one\ntwo\n", "utf-8")
    code, _, err = call(*arguments, "--labels", tmp_path / "few.txt")
    assert code == 2
    assert "--labels" in err
    assert "40 labels" in err
    code, _, err = call(
        "evaluate", "--similarities", "s.npy", "--query-bank-similarities", "b.npy",
        "--labels", tmp_path / "few.txt",
    )  # fmt: skip
    assert code == 2
    assert "--labels" in err


def browser(*options, profile):
    """What headless Chromium prints."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here")
    base = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    return subprocess.run(
        [program, *base, *options], capture_output=True, text=True, timeout=HUNG, check=True
    ).stdout


# Written into the root of the page around: what the browser made of this one.
LOOK = """<script>onload = () => {
const style = getComputedStyle(document.body);
const shown = [...document.images].filter(i => i.offsetWidth);
parent.document.documentElement.dataset.seen = JSON.stringify({
  width: innerWidth, needed: document.documentElement.scrollWidth, ground: style.backgroundColor,
  ink: style.color, schemes: shown.map(i => i.className), widths: shown.map(i => i.offsetWidth)})}
</script>"""


def seen(text, width, dark, folder):
    """The numbers of `LOOK` for a page of some width in a color scheme."""
    # Windows have a least width, frames have none. The page itself lets no script run.
    inner = html.escape(re.sub("<meta http-equiv[^>]*>", "", text) + LOOK)
    path = folder / "frame.html"
    frame = f'<iframe width="{width}" height="2000" style="border: 0" srcdoc="{inner}"></iframe>'
    path.write_text(f"<!DOCTYPE html><html>{frame}</html>", "utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    dumped = browser(scheme, "--dump-dom", path.as_uri(), profile=folder / "user")
    return json.loads(html.unescape(re.search('data-seen="([^"]*)"', dumped)[1]))


def brightness(color):
    return sum(map(int, re.findall(r"\d+", color)[:3])) / (3 * 255)


@pytest.fixture(scope="module")
def whole_page(told):
    """A page with all its charts."""
    test, rows, told_story, _ = told
    report = report_of(rows)
    pictures = [("Charts", "All of them.", charts_of(report, told_story.sweep))]
    return page.to_html(report, test, told_story, pictures, ["dbnorm"], SAID)


@pytest.mark.slow
def test_a_browser_fits_the_page_to_screens_and_schemes(whole_page, tmp_path):
    for width in (400, 768, 1280):
        for dark in (False, True):
            found = seen(whole_page, width, dark, tmp_path)
            assert found["width"] == width
            assert found["needed"] <= width  # the page is not pushed aside
            assert found["schemes"] == ["dark" if dark else "light"] * 6
            ground, ink = brightness(found["ground"]), brightness(found["ink"])
            assert (ground < 0.2, ink > 0.8) == (dark, dark)
            # The smallest letters of a chart have 9 points.
            assert min(found["widths"]) / plots._WIDTH * 9 / 72 >= 9.5  # pixels


@pytest.mark.slow
def test_a_browser_shows_the_page(whole_page, tmp_path):
    path, picture = tmp_path / "report.html", tmp_path / "page.png"
    path.write_text(whole_page, "utf-8")
    browser(
        "--window-size=1100,2600",
        "--hide-scrollbars",
        "--blink-settings=preferredColorScheme=1",
        f"--screenshot={picture}",
        path.as_uri(),
        profile=tmp_path / "user",
    )
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    assert pixels.shape[:2] == (2600, 1100)
    # Text and pictures down the page, no empty rectangle.
    written = (pixels.min(axis=2) < 0.5).reshape(26, -1).any(axis=1)
    assert written.mean() > 0.7
