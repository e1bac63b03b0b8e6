"""The benchmark of the paper's setting: every data set's files, against the reference."""

import importlib
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import reference
from patience import HUNG

pytestmark = pytest.mark.slow  # a benchmark: out of the way of the library's own tests

ROOT = pathlib.Path(__file__).parents[2]
NUM_ITEMS, NUM_TEXTS = 12, 60
BETAS = (20.0, 2.0)
NAMES = ("raw", "IS", "DIS", "DualIS", "DualDIS", "DualDIS (published)")
PAIRS = ("msrvtt", "activitynet", "didemo", "lsmdc")
DATASETS = ("coco", "flickr30k", *PAIRS, "msvd", "vatex", "queryd", "audiocaps", "clotho")
TWO_WAYS = ("msrvtt", "msvd", "activitynet", "didemo", "lsmdc", "vatex")  # published in both
DIRECTIONS = ("text-to-visual", "visual-to-text")
LAYOUTS = ("embeddings", "matrices")


@pytest.fixture(scope="module", autouse=True)
def _compile_fast():
    """Nearly all of the time here is compilation."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def modules():
    """Both files of the benchmark; the root is not importable under a bare `pytest`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        yield tuple(
            importlib.import_module(f"benchmarks.studies.{name}")
            for name in ("paper", "paper_sets")
        )


@pytest.fixture
def run(modules, capsys):
    """(exit status, stdout, stderr) of the command."""

    def call(*arguments):
        status = modules[0].main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def caption_items(dataset):
    """[num_texts] the item of each caption: pairs, five each, or unequal numbers."""
    if dataset in PAIRS:
        return np.arange(NUM_ITEMS)
    if dataset != "msvd":
        return np.repeat(np.arange(NUM_ITEMS), NUM_TEXTS // NUM_ITEMS)
    counts = np.array([1, 9, 2, 8, 3, 7, 4, 6, 5, 5, 1, 9])
    assert counts.sum() == NUM_TEXTS
    return np.random.default_rng(7).permutation(np.repeat(np.arange(NUM_ITEMS), counts))


def features(dataset, seed=27):
    """(test captions, test items, bank captions, bank items), noisy enough to have hubs."""
    random = np.random.default_rng(seed)

    def noisy(rows, shift):
        return (rows + 0.9 * random.normal(size=rows.shape) + shift).astype(np.float32)

    shift = random.normal(size=(2, 1, 8))
    centers, bank_centers = random.normal(size=(NUM_ITEMS, 8)), random.normal(size=(30, 8))
    texts = noisy(centers[caption_items(dataset)], shift[0])
    banks = (noisy(bank_centers, part) for part in shift)  # of one size: fewer programs
    return texts, noisy(centers, shift[1]), *banks


def side_of(dataset):
    return "audio" if dataset in ("audiocaps", "clotho") else "visual"


def ordered(arrays, direction):
    """Queries, gallery, query bank, gallery bank."""
    texts, items, bank_texts, bank_items = arrays
    if direction == "text-to-visual":
        return texts, items, bank_texts, bank_items
    return items, texts, bank_items, bank_texts


def similarities(arrays, direction):
    """Test, query bank and gallery bank, columns being the gallery; float64."""
    queries, gallery, query_bank, gallery_bank = ordered(arrays, direction)
    return [
        reference.cosine_similarity(rows, gallery) for rows in (queries, query_bank, gallery_bank)
    ]


def write(
    folder, dataset, arrays=None, layout="embeddings", direction="text-to-visual", items=None
):
    """The files of a data set."""
    arrays = features(dataset) if arrays is None else arrays
    side = side_of(dataset)
    if layout == "embeddings":
        names = ("test_text", f"test_{side}", "bank_text", f"bank_{side}")
        made = arrays
    else:
        names = ("test_similarities", "query_bank_similarities", "gallery_bank_similarities")
        made = similarities(arrays, direction)
    for name, array in zip(names, made, strict=True):
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "test_text_item.npy", caption_items(dataset) if items is None else items)
    return folder


def relevant_of(items, direction):
    """The set of right gallery rows of each query."""
    if direction == "text-to-visual":
        return [{item} - {-1} for item in items.tolist()]
    return [set(np.flatnonzero(items == item).tolist()) for item in range(NUM_ITEMS)]


def expected_recalls(arrays, items, direction):
    """R@1 in percent by name of the method."""
    test, query_bank, gallery_bank = similarities(arrays, direction)
    beta_query, beta_gallery = BETAS
    dual = (test, query_bank, gallery_bank, beta_query, beta_gallery)
    scores = (
        test,
        reference.inverted_softmax(test, query_bank, beta_query),
        reference.dynamic_inverted_softmax(test, query_bank, beta_query, 1),
        reference.dual_inverted_softmax(*dual),
        reference.dual_dynamic_inverted_softmax(*dual, 1),
        reference.published_dual_dynamic_inverted_softmax(*dual, 1),
    )
    relevant = relevant_of(items, direction)
    recalls = [100 * reference.recall_at(reference.ranks(rows, relevant), 1) for rows in scores]
    return dict(zip(NAMES, recalls, strict=True))


def rows_of(text):
    """{method: (published, ours, difference, source)} of the printed table."""
    rows = {}
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) == 5 and cells[0] in NAMES:
            rows[cells[0]] = tuple(cells[1:])
    assert tuple(rows) == NAMES
    return rows


def betas():
    return "--beta-query", BETAS[0], "--beta-gallery", BETAS[1]


def evaluated(run, folder, dataset, direction="text-to-visual"):
    """Stdout of a run that succeeds."""
    status, out, _ = run(
        "--dataset", dataset, "--features", folder, "--direction", direction, *betas()
    )
    assert status == 0
    return out


def title_of(modules, folder, dataset, direction):
    """The title of the table, without an evaluation."""
    paper, paper_sets = modules
    entry = paper_sets.DATASETS[dataset]
    return paper.title(entry, direction, paper_sets.read(folder, entry, direction))


def refused(run, folder, dataset="coco", *options):
    """(stdout, the one line on stderr) of a run with files it cannot use."""
    status, out, error = run("--dataset", dataset, "--features", folder, *options)
    assert status == 2
    assert error.count("\n") == 1
    assert error.startswith("paper: error: ")
    return out, error


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_embeddings_take_their_places(modules, tmp_path, dataset, direction):
    arrays = features(dataset)
    test = modules[1].read(
        write(tmp_path, dataset, arrays), modules[1].DATASETS[dataset], direction
    )
    found = (test.queries, test.gallery, test.query_bank, test.gallery_bank)
    for array, expected in zip(found, ordered(arrays, direction), strict=True):
        np.testing.assert_allclose(array, reference.normalize_rows(expected), atol=1e-6)
    indptr, indices = test.relevant
    right = [set(part.tolist()) for part in np.split(indices, indptr[1:-1])]
    assert right == relevant_of(caption_items(dataset), direction)


# What is read of the other sets is tested above: embeddings of more shapes compile for long.
CASES = [(name, "matrices", direction) for name in DATASETS for direction in DIRECTIONS]
CASES += [("msvd", "embeddings", direction) for direction in DIRECTIONS]
CASES += [(name, "embeddings", DIRECTIONS[0]) for name in DATASETS if name not in ("msvd", *PAIRS)]


@pytest.mark.parametrize(("dataset", "layout", "direction"), CASES)
def test_recalls_are_those_of_the_reference(run, tmp_path, dataset, layout, direction):
    arrays = features(dataset)
    write(tmp_path, dataset, arrays, layout, direction)
    out = evaluated(run, tmp_path, dataset, direction)
    expected = expected_recalls(arrays, caption_items(dataset), direction)
    assert len(set(expected.values())) > 2, "the fixture tells the methods apart"
    for name, (published, ours, difference, _) in rows_of(out).items():
        assert float(ours) == pytest.approx(expected[name], abs=0.006)
        if published == "-":
            assert difference == "-"
        else:
            assert float(difference) == pytest.approx(expected[name] - float(published), abs=0.006)
    assert f"beta {BETAS[0]:g} (query bank), {BETAS[1]:g} (gallery bank)" in out


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_captions_of_nothing_count_nowhere(run, tmp_path, direction):
    items = caption_items("msvd")
    items[::7] = -1
    items[items == 3] = -1  # a video without captions
    write(tmp_path, "msvd", items=items)
    rows = rows_of(evaluated(run, tmp_path, "msvd", direction))
    for name, recall in expected_recalls(features("msvd"), items, direction).items():
        assert float(rows[name][1]) == pytest.approx(recall, abs=0.006)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_unsigned_rows(run, tmp_path, direction):
    write(tmp_path, "msvd")
    signed = rows_of(evaluated(run, tmp_path, "msvd", direction))
    write(tmp_path, "msvd", items=caption_items("msvd").astype(np.uint64))
    assert rows_of(evaluated(run, tmp_path, "msvd", direction)) == signed


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_need_no_item_file(modules, tmp_path, direction, layout):
    (write(tmp_path, "msrvtt", None, layout, direction) / "test_text_item.npy").unlink()
    test = modules[1].read(tmp_path, modules[1].DATASETS["msrvtt"], direction)
    for found, expected in zip(test.relevant, (np.arange(13), np.arange(12)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_cosines_have_default_betas(run, tmp_path):
    status, out, _ = run("--dataset", "clotho", "--features", write(tmp_path, "clotho"))
    assert status == 0
    assert "beta 20 (query bank), 1 (gallery bank)" in out


# --- the title ---------------------------------------------------------------------------------


def test_title_of_a_small_split(run, tmp_path):
    title, *_ = evaluated(run, write(tmp_path, "coco"), "coco").splitlines()
    assert title == (
        "COCO 5k, text-to-image: inductive; non-standard split: 12 instead of 5,000 images, "
        "60 instead of 25,010 captions"
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_are_counted_alike_in_both_directions(modules, tmp_path, layout, direction):
    title = title_of(
        modules, write(tmp_path, "clotho", None, layout, direction), "clotho", direction
    )
    assert "12 instead of 1,045 audio clips, 60 instead of 5,225 captions" in title
    assert title.startswith(f"Clotho, {direction.replace('visual', 'audio')}: ")


def test_standard_sizes_are_not_remarked(modules):
    sizes = {"coco": (25_010, 5_000), "flickr30k": (5_000, 1_000), "msrvtt": (1_000, 1_000)}
    sizes |= {"msvd": (27_763, 670), "activitynet": (4_917, 4_917)}
    sizes |= {"audiocaps": (4_080, 816), "clotho": (5_225, 1_045), "didemo": (1_004, 1_004)}
    sizes |= {"lsmdc": (1_000, 1_000), "vatex": (15_000, 1_500), "queryd": (386, 386)}
    datasets = modules[1].DATASETS
    assert set(datasets) == set(sizes) == set(DATASETS)
    for name, (num_texts, num_items) in sizes.items():
        assert datasets[name].deviation(num_texts, num_items) == ""
        assert "instead of" in datasets[name].deviation(num_texts, num_items - 1)
    assert datasets["coco"].deviation(25_000, 5_000) == ""  # the first five of each image
    assert datasets["coco"].deviation(24_999, 5_000).endswith("24,999 instead of 25,010 captions")
    assert datasets["msvd"].deviation(20_000, 670) == ""  # counts vary


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_banks_of_test_rows_make_it_transductive(modules, tmp_path, direction):
    texts, items, bank_texts, bank_items = features("msvd")
    bank_texts, bank_items = bank_texts.copy(), bank_items.copy()
    bank_texts[:3] = 2.5 * texts[10:13]  # the same after normalization
    bank_items[4] = items[2]
    write(tmp_path, "msvd", (texts, items, bank_texts, bank_items))
    title = title_of(modules, tmp_path, "msvd", direction)
    assert ": transductive (4 of 60 bank rows equal test rows)" in title


def test_matrices_say_what_they_cannot_show(run, tmp_path):
    texts, items, bank_texts, bank_items = features("msvd")
    arrays = (texts, items, np.concatenate([bank_texts[2:], texts[:2]]), bank_items)
    out = evaluated(run, write(tmp_path, "msvd", arrays, "matrices"), "msvd")
    assert ": transductive (2 of 60 bank rows" in out
    assert "matrices do not show whether gallery bank items are test items" in out


# --- published numbers without features -----------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_not_run_here(run, dataset, direction):
    status, out, error = run("--dataset", dataset, "--direction", direction)
    assert (status, error) == (0, "")
    for published, ours, difference, source in rows_of(out).values():
        assert (ours, difference) == ("not run here", "-")
        assert (published == "-") == (source == "-")
        if direction == "visual-to-text" and dataset not in TWO_WAYS:
            assert published == "-"


def test_published_numbers(run):
    def numbers(dataset):
        rows = rows_of(run("--dataset", dataset)[1])
        return [rows[name][0] for name in NAMES[:5]], rows["raw"][3]

    later = "Balance Act, as cited by later work"
    assert numbers("coco") == (["30.31", "35.15", "35.16", "37.93", "37.92"], f"CLIP; {later}")
    assert numbers("flickr30k")[0] == ["71.60", "72.26", "72.26", "73.00", "73.00"]
    assert numbers("msrvtt")[0] == ["44.10", "44.20", "44.20", "45.00", "45.00"]
    assert numbers("msvd") == (["25.4", "-", "28.9", "-", "-"], "TT-CE+; beta 20; QB-Norm README")
    assert numbers("audiocaps")[0] == ["23.1", "-", "23.9", "-", "-"]
    assert numbers("didemo")[0] == ["21.6", "-", "24.2", "-", "-"]
    assert numbers("lsmdc")[0] == ["17.2", "-", "17.8", "-", "-"]
    assert numbers("vatex")[0] == ["53.2", "-", "54.8", "-", "-"]
    assert numbers("queryd")[0] == ["14.4", "-", "15.1", "-", "-"]
    assert numbers("clotho")[0] == ["-"] * 5
    also = "Also published: raw 30.3, DIS 34.8 (CLIP; beta 20; QB-Norm README)."
    assert also in run("--dataset", "coco")[1]
    also = "Also published: raw 21.3, DIS 22.3 (CLIP4Clip; temperature 0.8; QB-Norm README)."
    assert also in run("--dataset", "lsmdc")[1]


def test_the_other_direction_has_its_own_numbers(run):
    rows = rows_of(run("--dataset", "vatex", "--direction", "visual-to-text")[1])
    assert rows["raw"][0] == "85.4"
    assert [rows[name][0] for name in NAMES[1:]] == ["-"] * 5
    assert "85.4" not in run("--dataset", "vatex")[1]


def test_as_a_command():
    call = [sys.executable, "-m", "benchmarks.studies.paper", "--dataset", "coco"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=HUNG, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "not run here" in done.stdout


# --- files that cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "name", "shape"),
    [
        ("coco", "test_text", "[25010, dim]"),
        ("coco", "test_visual", "[5000, dim]"),
        ("clotho", "test_audio", "[1045, dim]"),
        ("clotho", "bank_audio", "[number of bank audio clips, dim]"),
        ("msvd", "bank_text", "[number of bank captions, dim]"),
        ("msvd", "bank_visual", "[number of bank videos, dim]"),
        ("flickr30k", "test_text_item", "[5000], integers"),
    ],
)
def test_missing_file_is_named_with_its_shape(run, tmp_path, dataset, name, shape):
    (write(tmp_path, dataset) / f"{name}.npy").unlink()
    out, error = refused(run, tmp_path, dataset)
    assert out == ""
    assert f"lacks {name}.npy of shape {shape};" in error


@pytest.mark.parametrize(
    ("direction", "shape"),
    [
        ("text-to-visual", "[number of bank captions, 5000]"),
        ("visual-to-text", "[number of bank images, 25010]"),
    ],
)
def test_missing_matrix_is_named_with_its_shape(run, tmp_path, direction, shape):
    write(tmp_path, "coco", layout="matrices", direction=direction)
    (tmp_path / "query_bank_similarities.npy").unlink()
    _, error = refused(run, tmp_path, "coco", "--direction", direction, *betas())
    assert f"lacks query_bank_similarities.npy of shape {shape};" in error


@pytest.mark.parametrize("exists", [True, False])
def test_folder_without_data(run, tmp_path, exists):
    folder = tmp_path if exists else tmp_path / "none"
    out, error = refused(run, folder)
    assert "not run here" in out
    assert ("test_text.npy" if exists else "got nothing") in error


def test_both_layouts_are_ambiguous(run, tmp_path):
    write(tmp_path, "coco")
    write(tmp_path, "coco", layout="matrices")
    assert "got both (test_text.npy and test_similarities.npy)" in refused(run, tmp_path)[1]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("test_text_item", np.arange(59), "expected shape (60,), one per caption, got (59,)"),
        ("test_text_item", np.full(60, 12), "expected gallery rows between -1 (-1: none) and 11"),
        ("test_text_item", np.zeros(60), "expected integers"),
        ("bank_text", np.ones((4, 9), np.float32), "expected 8 columns (embedding dimensions)"),
        ("test_visual", np.ones(8, np.float32), "expected 2 axes"),
        ("bank_visual", np.zeros((3, 8), np.float32), "expected rows of non-zero length"),
        ("test_text", np.full((60, 8), np.nan, np.float32), "expected finite values"),
        ("test_text", np.ones((60, 8), int), "expected floating-point numbers"),
        ("test_text", np.array([{}]), "test_text.npy"),
    ],
)
def test_wrong_contents(run, tmp_path, name, array, message):
    np.save(write(tmp_path, "coco") / f"{name}.npy", array)
    _, error = refused(run, tmp_path)
    assert message in error
    assert f"{name}.npy" in error


def test_matrices_of_the_other_direction(run, tmp_path):
    write(tmp_path, "coco", layout="matrices", direction="visual-to-text")
    error = refused(run, tmp_path, "coco", *betas())[1]
    assert "test_text_item.npy': expected shape (12,)" in error
    assert "the other direction" in error


def test_matrices_with_other_columns(run, tmp_path):
    write(tmp_path, "coco", layout="matrices")
    np.save(tmp_path / "gallery_bank_similarities.npy", np.ones((12, 30)))
    error = refused(run, tmp_path, "coco", *betas())[1]
    assert "gallery_bank_similarities.npy': expected 12 columns (gallery items)" in error
    assert "transposed" in error


def test_pairs_of_unequal_number(run, tmp_path):
    texts, *others = features("msrvtt")
    write(tmp_path, "msrvtt", (texts[:-1], *others))
    (tmp_path / "test_text_item.npy").unlink()
    error = refused(run, tmp_path, "msrvtt")[1]
    assert "test_text_item.npy': expected the file beside 11 captions and 12 videos" in error


@pytest.mark.parametrize("given", [(), betas()[:2], betas()[2:]])
def test_matrices_have_no_default_betas(run, tmp_path, given):
    write(tmp_path, "coco", layout="matrices")
    error = refused(run, tmp_path, "coco", *given)[1]
    assert "--beta-gallery" in error if given == betas()[:2] else "--beta-query" in error
    assert "only cosines have a default" in error


@pytest.mark.parametrize("beta", ["0", "-1", "nan", "inf", "1e39", "1e-50", "many"])
def test_bad_betas(run, capsys, beta):
    with pytest.raises(SystemExit, match="2"):
        run("--dataset", "coco", f"--beta-query={beta}")
    assert "--beta-query" in capsys.readouterr().err
