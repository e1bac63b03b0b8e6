"""Rows in several files: folders, patterns, data sets; word vectors; the layouts of Arrow."""

import itertools
import json
import pathlib

import numpy as np
import pytest

import dbnorm_jax as dbn

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.reading.argument import Source, parts
from dbnorm_jax._cli.reading.names import read_ids, read_items
from dbnorm_jax._cli.reading.shards import Shards
from dbnorm_jax._cli.reading.single import read_floats, read_integers

pytestmark = pytest.mark.usefixtures("compile_fast")

ROWS = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
CUTS = [0, 5, 6, 6, 20, 21, 30, 31, 40, 41, 50, 60]  # of which one shard is empty


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """As clip-retrieval writes them, with what else may lie in a folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("img_emb", "names"):
        pathlib.Path(name).mkdir()
    for number, (start, stop) in enumerate(itertools.pairwise(CUTS)):
        np.save(f"img_emb/img_emb_{number}.npy", ROWS[start:stop])
        lines = [f"row {row}" for row in range(start, stop)]
        pathlib.Path(f"names/{number}.txt").write_text("\n".join(lines), "utf-8")
    pathlib.Path("img_emb/README.md").write_text("ten shards", "utf-8")
    pathlib.Path("img_emb/.img_emb_1.npy.tmp-1").write_text("half", "utf-8")
    pathlib.Path("img_emb/more").mkdir()
    np.save("whole.npy", ROWS)
    np.save("bank.npy", ROWS[::-1] + 0.5)
    return tmp_path


def floats(text):
    return read_floats(Source.parse("GALLERY", text))


@pytest.mark.parametrize(
    "text", ["img_emb", "img_emb/", "img_emb/img_*.npy", "img_em?/*_[0-9]*.npy"]
)
def test_folders_and_patterns_are_read_in_natural_order(folder, text):
    found = floats(text)
    assert isinstance(found, Shards)
    assert found.shape == ROWS.shape
    np.testing.assert_array_equal(np.asarray(found), ROWS)
    files = [part.path.name for part in parts(Source.parse("GALLERY", text))]
    assert files == [f"img_emb_{number}.npy" for number in range(11)]


def test_any_rows_are_those_of_the_whole(folder):
    found, random = floats("img_emb"), np.random.default_rng(1)
    for start in range(0, 62, 3):
        for stop in (0, start, start + 1, 20, 41, 60, 99):
            for step in (None, 7):
                place = slice(start, stop, step)
                np.testing.assert_array_equal(found[place], ROWS[place])
    for places in (random.integers(0, 60, 33), np.array([], int), np.array([[59, 0], [5, 6]])):
        np.testing.assert_array_equal(found[places], ROWS[places])
    assert np.shares_memory(found[6:20], found.parts[2])  # no copy where rows lie in one file
    assert np.asarray(found, np.float64).dtype == np.float64


def test_integers_and_ids_come_from_several_files(folder):
    pathlib.Path("rows").mkdir()
    for number, rows in enumerate(([4, 2], [0], [1, 3])):
        np.save(f"rows/{9 + number}.npy", np.array(rows))
    found = read_integers(Source.parse("--bank-pairs", "rows"))
    assert found.tolist() == [4, 2, 0, 1, 3]
    ids = read_ids(Source.parse("--labels", "names/*.txt"), 60)
    assert ids.tolist() == [f"row {row}" for row in range(60)]
    pathlib.Path("names/11.txt").write_text("row 7", "utf-8")
    with pytest.raises(ValueError, match="the same on lines 8 and 61: 'row 7'"):
        read_ids(Source.parse("--labels", "names/*.txt"), 61)


def test_members_of_several_archives(folder):
    for number in (2, 10):
        np.savez(f"part-{number}.npz", emb=ROWS[number:20], other=ROWS[:number])
    found = floats("part-*.npz:emb")
    np.testing.assert_array_equal(found, np.concatenate([ROWS[2:20], ROWS[10:20]]))
    with pytest.raises(ValueError, match=r"one array, got emb, other; choose one, for instance"):
        floats("part-*.npz")


def test_search_takes_folders_and_patterns(folder, call):
    search, ids = ("-k", 3), ("--labels", "names/*.txt")
    found = call("search", "bank.npy", "img_emb", *search, *ids)
    assert found[0] == 0, found[2]
    assert found[:2] == call("search", "bank.npy", "whole.npy", *search, *ids)[:2]
    queries = call("search", "img_emb/*.npy", "whole.npy", *search)
    assert queries[:2] == call("search", "whole.npy", "whole.npy", *search)[:2]


@pytest.mark.slow
def test_every_command_takes_folders(folder, call):
    """The same bits as of one file; with ids from a pattern."""

    def state(gallery, *options):
        fit = ("fit", gallery, "--query-bank", "bank.npy", "--method", "dis", "--output", "c.npz")
        code, out, err = call(*fit, *options)
        assert code == 0, err
        return out, np.asarray(dbn.load("c.npz").bias).tobytes()

    expected = state("whole.npy")[1]
    assert state("img_emb", "--force")[1] == expected
    assert state("img_emb")[1] == expected  # done before: nothing has changed
    search = ("--correction", "c.npz", "-k", 3)
    found = call("search", "bank.npy", "img_emb", *search)
    assert found[0] == 0, found[2]
    assert found[:2] == call("search", "bank.npy", "whole.npy", *search)[:2]
    for gallery in ("whole.npy", "img_emb"):
        assert call("export", gallery, "--correction", "c.npz", "--output", f"i_{gallery}")[0] == 0
    vectors = [np.load(f"i_{gallery}/vectors.npy") for gallery in ("whole.npy", "img_emb")]
    np.testing.assert_array_equal(*vectors)
    np.save("img_emb/img_emb_4.npy", ROWS[20:21] + 1)
    code, _, err = call("search", "bank.npy", "img_emb", *search)
    assert code == 2
    assert "expected the gallery it was made for" in err
    np.savez("img_emb_0.npz", ROWS)
    code, _, err = call(
        *("search", "bank.npy", "img_emb", "--output", "img_emb/img_emb_3.npy", "--force")
    )
    assert code == 2
    assert "expected another file than GALLERY 'img_emb', got the same; name another" in err


@pytest.mark.slow
def test_evaluate_takes_folders(folder, call):
    said = []
    for gallery in ("whole.npy", "img_emb"):
        options = ("--query-bank", "bank.npy", "--similarity", "dot", "--beta-query", 1)
        code, out, err = call("evaluate", gallery, gallery, *options, "--methods", "is", "--json")
        assert code == 0, err
        said.append(json.loads(out)["rows"])
    assert said[0] == said[1]


def test_the_files_of_a_data_set_are_those_that_it_names(folder):
    """In the order of its rows; caches beside them are none of it."""
    named = [{"filename": f"img_emb_{number}.npy"} for number in (4, 0)]
    state = pathlib.Path("img_emb/state.json")
    state.write_text(json.dumps({"_data_files": named, "_split": "train"}), "utf-8")
    np.testing.assert_array_equal(floats("img_emb"), np.concatenate([ROWS[20:21], ROWS[:5]]))
    for text in (
        "{",
        "[]",
        '{"_data_files": [{"filename": "../whole.npy"}]}',
        '{"_data_files": 1}',
    ):
        state.write_text(text, "utf-8")
        with pytest.raises(
            ValueError, match=r"GALLERY 'img_emb': expected a state\.json that names"
        ):
            floats("img_emb")


def test_bad_shards_are_one_line(folder):
    def refused(text, *words):
        with pytest.raises(ValueError, match="expected") as raised:
            floats(text)
        for word in words:
            assert word in str(raised.value)

    np.save("img_emb/img_emb_12.npy", ROWS[:, :3])
    refused("img_emb", "img_emb_12.npy': expected rows of shape (4,) as in 'img_emb_0.npy'")
    refused("img_emb", "got shape (60, 3); use files made alike")
    np.save("img_emb/img_emb_12.npy", ROWS.astype(np.float64))
    refused("img_emb", "img_emb_12.npy': expected float32 as in 'img_emb_0.npy', got float64")
    pathlib.Path("img_emb/img_emb_12.npy").write_bytes(b"\x80\x04K\x01.")
    refused("img_emb", "img_emb_12.npy'", "a pickle, which can run code and is not loaded")
    np.savez("img_emb/a.npz", ROWS)
    refused("img_emb", "files of one form, got .npy, .npz; name those that are meant, as img_emb/*")
    refused("img_emb/*.safetensors", "expected files of that pattern, got none; check the path")
    refused("names", "expected a file of arrays, got a folder without any")
    pathlib.Path("splits/train").mkdir(parents=True)
    refused("splits", "got a folder of folders: train; name the file itself")


@pytest.mark.parametrize("header", [True, False])
def test_word_vectors(tmp_path, header):
    path = tmp_path / "wiki.vec"
    words = ["the", "São Paulo" if header else "São", "\xa0", "x"]
    vectors = np.array([[0.5, -1, 2e-3], [1, 0, 0], [-3, 4.25, 1e10], [0, 0, 7]], np.float32)
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(words, vectors, strict=True)]
    text = "\n".join([*["4 3"] * header, *lines]) + " \n\n"  # as word2vec ends its lines
    path.write_text(text, "utf-8")
    np.testing.assert_array_equal(floats(f"{path}"), vectors)
    np.testing.assert_array_equal(floats(f"{path}:vectors"), vectors)
    assert read_items(Source.parse("--labels", f"{path}:words"), 4, "labels").tolist() == words


BAD_VECTORS = {
    "fewer numbers": ("2 3\na 1 2 3\nb 1 2\n", "a word and 3 numbers", "2 numbers on line 3"),
    "other text": ("a 1 2 3\nb 1 x 2\n", "a word and 3 numbers", "other text on line 2"),
    "a number of Python's": (
        "a 1 2 3\nb 1 1_0 2\n",
        "a word and 3 numbers",
        "other text on line 2",
    ),
    "no text": (b"a 1 2 3\n\xe4 1 2 2\n", "a word and 3 numbers", "no UTF-8 on line 2"),
    "fewer words": ("5 3\na 1 2 3\nb 1 2 2\n", "5 words, as the header says", "2 (truncated?)"),
    "no numbers": ("the\n", "a word and some numbers", "0 numbers on line 1"),
    "no word": ("a 1 2 3\n 1 2 3\n", "a word and 3 numbers", "no word on line 2"),
    "no dimensions": ("5 0\na\n", "a word and some numbers", "on line 2"),
    "no words": ("5 3\n", "lines of a word", "none"),
    "many words": (f"{'9' * 5000} 3\na 1 2 3\n", "9 words, as the header says", "1 (truncated?)"),
    "nothing": ("", "lines of a word", "none"),
}


@pytest.mark.parametrize("case", BAD_VECTORS)
def test_bad_word_vectors_are_one_line(case, tmp_path):
    text, *words = BAD_VECTORS[case]
    path = tmp_path / "a.vec"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"GALLERY '.*a\.vec': expected") as raised:
        floats(f"{path}")
    for word in words:
        assert word in str(raised.value)


# --- the layouts of Arrow ------------------------------------------------------------------------

TENSORS = ROWS[:6].reshape(6, 2, 2)


def layouts(arrow):
    flat = arrow.array(TENSORS.reshape(-1))
    kind = arrow.fixed_shape_tensor(arrow.float32(), (2, 2))
    rows = [row.tolist() for row in ROWS[:6]]
    found = {
        "tensors": arrow.ExtensionArray.from_storage(
            kind, arrow.FixedSizeListArray.from_arrays(flat, 4)
        ),
        "lists of lists": arrow.array(TENSORS.tolist(), arrow.list_(arrow.list_(arrow.float32()))),
        "lists of pairs": arrow.array(
            TENSORS.tolist(), arrow.list_(arrow.list_(arrow.float32(), 2), 2)
        ),
        "large lists": arrow.array(rows, arrow.large_list(arrow.float32())),
    }
    if hasattr(arrow, "list_view"):
        found["list views"] = arrow.array(rows, arrow.list_view(arrow.float32()))
        found["large list views"] = arrow.array(rows, arrow.large_list_view(arrow.float32()))
        offsets = arrow.array(np.arange(20, -4, -4), arrow.int32())
        sizes = arrow.array(np.full(6, 4), arrow.int32())
        values = arrow.array(ROWS[:6][::-1].reshape(-1))
        found["list views backwards"] = arrow.ListViewArray.from_arrays(offsets, sizes, values)
    return found


LAYOUTS = (
    *("tensors", "lists of lists", "lists of pairs", "large lists"),
    *("list views", "large list views", "list views backwards"),
)


@pytest.mark.parametrize("suffix", [".arrow", ".parquet", ".feather"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_arrow(tmp_path, layout, suffix):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    array = layouts(arrow).get(layout)
    if array is None or (suffix == ".parquet" and "views" in layout):
        pytest.skip("this release has none")
    made = arrow.table({"emb": arrow.chunked_array([array[:2], array[2:]]), "id": [*"abcdef"]})
    for number, part in ((9, made[:4]), (10, made[4:])):
        path = tmp_path / f"data-{number}{suffix}"
        if suffix == ".parquet":
            parquet.write_table(part, path)
            continue
        make = arrow.ipc.new_file if suffix == ".feather" else arrow.ipc.new_stream
        with arrow.OSFile(str(path), "wb") as file, make(file, part.schema) as writer:
            writer.write_table(part)
    np.testing.assert_array_equal(floats(f"{tmp_path}"), ROWS[:6])
    np.testing.assert_array_equal(floats(f"{tmp_path}:emb"), ROWS[:6])
    ids = read_ids(Source.parse("--labels", f"{tmp_path}:id"), 6)
    assert ids.tolist() == [*"abcdef"]


def test_nested_lists_of_other_lengths_are_one_line(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.arrow"
    for rows, words in (
        ([[[1.0, 2.0], [3.0]]], "lists of one length, got 1 to 2"),
        ([[[1.0], [3.0]], [[1.0]]], "lists of one length, got 1 to 2"),
        ([[[1.0], None]], "a list everywhere, got 1 nulls"),
        ([[[1.0], []]], "lists of one length, got 0 to 1"),
        ([[[]]], "lists of one or more values, got empty ones"),
        ([[["a"]]], "numbers, got a column of string"),
    ):
        made = arrow.table({"emb": rows})
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)
        with pytest.raises(ValueError, match=words):
            floats(f"{path}")
