"""Right items in every form that people keep, and what is written evaluated again."""

import itertools
import json
import pathlib

import numpy as np
import pytest
import scipy.sparse

pytest.importorskip("click")
pytest.importorskip("rich")

from dbnorm_jax._cli.measuring.table_rows import ndcg
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.names import Labels
from dbnorm_jax._cli.reading.relevant import read_relevant

pytestmark = pytest.mark.usefixtures("compile_fast")

SHAPE = NUM_QUERIES, NUM_GALLERY = 4, 6
# Query 2 has no right item; that of grade 0 is judged and not right.
GRADES = np.array(
    [[0, 0, 2, 0, 1, 0], [3, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1]], np.float32
)
LISTS = [np.flatnonzero(row).tolist() for row in GRADES]
PAIRS = np.argwhere(GRADES)
QUERIES = np.array([f"q{row}" for row in range(NUM_QUERIES)], object)
ITEMS = np.array([f"ü {row}" if row == 1 else f"d{row}" for row in range(NUM_GALLERY)], object)
TREC_ITEMS = np.array([f"d{row}" for row in range(NUM_GALLERY)], object)


def read(path, shape=SHAPE, items=ITEMS, **options):
    ids = [Labels(Source("--labels", path), names) for names in (QUERIES, items)]
    return read_relevant(Source("--relevant", path), *shape, *ids, **options)


def lists_of(found):
    (indptr, indices), _, _ = found
    return [indices[start:end].tolist() for start, end in itertools.pairwise(indptr)]


def saved(array, **more):
    return lambda path: np.savez(path, pairs=array, **more) if more else np.save(path, array)


def written(text):
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


def padded(lists):
    most = max(map(len, lists)) + 1
    return np.array([row + [-1] * (most - len(row)) for row in lists])


def sparse(matrix):
    return lambda path: scipy.sparse.save_npz(path, matrix)


TREC = "".join(f"q{q} 0 d{d} {GRADES[q, d]:g}\n" for q, d in PAIRS) + "q0 0 d5 -1\nq2 0 d5 0\n"
BEIR = "query-id\tcorpus-id\tscore\n" + "".join(
    f"q{q}\t{ITEMS[d]}\t{GRADES[q, d]:g}\n" for q, d in PAIRS
)
# Name -> (file, how it is written, whether it holds grades).
FORMS = {
    "a matrix of bool": ("a.npy", saved(GRADES > 0), False),
    "a matrix of grades": ("a.npy", saved(GRADES), True),
    "grades in Fortran order": ("a.npy", saved(np.asfortranarray(GRADES, "f8")), True),
    "lists filled up": ("a.npy", saved(padded(LISTS)), False),
    "pairs": ("a.npy", saved(PAIRS), False),
    "pairs in any order": ("a.npy", saved(PAIRS[[3, 0, 4, 2, 1]].astype(np.uint16)), False),
    "pairs in an npz": ("a.npz", lambda path: np.savez(path, pairs=PAIRS, more=PAIRS), False),
    "gt_indptr": (
        "a.npz",
        lambda path: np.savez(
            path, gt_indptr=np.cumsum([0, *map(len, LISTS)]), gt_indices=PAIRS[:, 1]
        ),
        False,
    ),
    "scipy csr": ("a.npz", sparse(scipy.sparse.csr_matrix(GRADES)), True),
    "scipy csr array of bool": ("a.npz", sparse(scipy.sparse.csr_array(GRADES > 0)), False),
    "json": ("a.json", written(json.dumps(LISTS, indent=1)), False),
    "json lines": ("a.jsonl", written("".join(f"{row}\n" for row in LISTS)), False),
    "qrels of TREC": ("a.txt", written(TREC), True),
    "qrels of TREC in any order": ("a.txt", written("\n".join(sorted(TREC.split("\n")))), True),
    "qrels of BEIR": ("a.tsv", written(BEIR), True),
    "qrels of BEIR, a mark, CRLF": (
        "a.tsv", written(b"\xef\xbb\xbf" + BEIR.replace("\n", "\r\n").encode()), True
    ),
    "without a header": ("a.tsv", written(BEIR.partition("\n")[2]), True),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form, tmp_path):
    name, write, graded = FORMS[form]
    write(tmp_path / name)
    items = TREC_ITEMS if "TREC" in form else ITEMS
    found = read(tmp_path / name, items=items)
    assert lists_of(found) == LISTS
    grades = np.ones(len(PAIRS)) if found.grades is None else found.grades
    assert grades.tolist() == (GRADES[GRADES > 0] if graded else np.ones(len(PAIRS))).tolist()
    assert found.remarks == ()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_lists_come_from_a_column(tmp_path, suffix):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / f"a{suffix}"

    def write(lists, **more):
        made = arrow.table({"right": arrow.array(lists, arrow.list_(arrow.int32())), **more})
        if suffix == ".parquet":
            pytest.importorskip("pyarrow.parquet").write_table(made, path, row_group_size=2)
        else:
            new_file = arrow.ipc.new_file
            with arrow.OSFile(str(path), "wb") as file, new_file(file, made.schema) as writer:
                writer.write_table(made, max_chunksize=3)

    write(LISTS, text=[*"abcd"])
    found = read_relevant(Source.parse("--relevant", f"{path}:right"), *SHAPE)
    assert lists_of(found) == LISTS
    write([[], [], [], []])
    assert lists_of(read(path)) == [[], [], [], []]
    write([[6], [1, 2], [], [3]])
    with pytest.raises(ValueError, match="values from -1 to 6"):
        read(path)
    write([[0] * 20_000, *([[1]] * 40_000)])
    with pytest.raises(ValueError, match="lists that fill 1/100 of a matrix, got 40001 of 60000"):
        read(path, (40_001, 6))


def test_captions_of_images_as_clip_benchmark_keeps_them(tmp_path):
    """The image of each text: rows where texts ask, queries where images do."""
    of_text = np.repeat(np.arange(3), 5)
    np.save(tmp_path / "texts_image_index.npy", of_text)
    found = read(tmp_path / "texts_image_index.npy", (15, 3))
    assert lists_of(found) == [[image] for image in of_text]
    found = read(tmp_path / "texts_image_index.npy", (3, 15))
    assert lists_of(found) == np.arange(15).reshape(3, 5).tolist()


def test_what_is_unknown_or_repeated_is_counted_and_said(tmp_path):
    path = tmp_path / "qrels"
    path.write_text(f"{TREC}q9 0 d1 1\nq9 0 d2 1\nq0 0 x 1\n{TREC}", "utf-8")
    found = read(path, items=TREC_ITEMS)
    assert lists_of(found) == LISTS
    assert [remark.partition(": ")[2] for remark in found.remarks] == [
        "3 of 17 lines are passed over: they name 1 queries and 1 items that are not here.",
        "5 right items are named again, and count once.",
    ]
    np.save(tmp_path / "a.npy", np.array([[0, 0, -1], [1, 2, 1], [-1, -1, -1], [3, -1, -1]]))
    found = read(tmp_path / "a.npy")
    assert lists_of(found) == [[0], [1, 2], [], [3]]
    assert "2 right items are named again, and count once." in found.remarks[0]
    path.write_text(f"{TREC}q3 0 x 1\n", "utf-8")
    found = read(path, items=TREC_ITEMS, growing=True)
    assert lists_of(found) == [*LISTS[:3], [1, 5, NUM_GALLERY]]


BAD = {
    "no ids known": ("a b c 1\n" * 2, "ids that are known", "none of them on 2 lines", "--labels"),
    "two columns": ("q0 d1\n", "qrels (query 0 item grade)", "2 columns on line 1", "row numbers"),
    "other columns": ("q0 0 d1 1\n\nq0 d1 1\n", "4 columns as before", "3 on line 3", "write"),
    "no grade": ("q0 0 d1 1\nq0 0 d2 x\n", "a grade", "'x' on line 2", "write lines"),
    "a grade of Python's": ("q0 0 d1 1_0\n", "a grade", "'1_0' on line 1", "write lines"),
    "infinite grade": ("q0 0 d1 inf\n", "a grade", "'inf' on line 1", "write lines"),
    "no header": ("q0\td1\tx\n", "a grade", "'x", "write lines"),
    "two grades": (
        "q0 0 d2 1\nq1 0 d2 1\nq0 0 d2 2\n", "one grade for query 'q0' and item 'd2'",
        "1 and 2 on lines 1 and 3", "remove one"
    ),
    "lists of few": ("[[1], [2]]", "a list for each of 4 queries", "got 2", "row numbers"),
    "lists beyond": ("[[1], [2], [], [6]]", "between 0 and 5", "6 in list 3", "from 0"),
    "lists below": ("[1]\n[-1]\n[]\n[6]\n", "between 0 and 5", "-1 on line 2", "from 0"),
    "lists of names": ("[1]\n[\"d\"]\n[]\n[6]\n", "row numbers", "on line 2", "row numbers"),
    "lists of bool": ("[1]\n[true]\n[]\n[6]\n", "row numbers", "on line 2", "row numbers"),
    "no lists": ("[1]\n[2\n", "a list of rows", "other text on line 2", "row numbers"),
    "depth": ("[" * 10**5, "a list of rows", "other text on line 1", "row numbers"),
    "pairs or lists": (PAIRS[:4], "lists of rows, or pairs", "may be either", "numpy.savez"),
    "pairs beyond": (np.array([[0, 1], [0, 6], [1, 1]]), "between 0 and 5", "6 in row 1", "from 0"),
    "pairs of others": (np.array([[0, 1], [4, 2], [1, 1]]), "query rows", "4 in row 1", "from 0"),
    "pairs of none": (np.array([[0, 1], [1, -1], [1, 1]]), "gallery rows", "-1 in row 1", "from 0"),
    "negative grades": (np.where(GRADES > 2, -1, GRADES), "not negative", "row 1, column 0", ""),
    "no numbers": (GRADES * np.nan, "grades, finite", "nan at row 0, column 0", "0 where"),
    "grades as integers": (GRADES.astype(int), "bool or of grades", "int64", ".astype('float32')"),
    "transposed grades": (GRADES.T, "queries x gallery", "shape (6, 4)", "transpose it"),
    "sparse by columns": (scipy.sparse.csc_matrix(GRADES), "in CSR", "csc", "matrix.tocsr()"),
    "sparse transposed": (scipy.sparse.csr_matrix(GRADES.T), "shape (4, 6)", "shape (6, 4)", ""),
    "sparse and negative": (scipy.sparse.csr_matrix(-GRADES), "not negative", "-2.0", "0 where"),
    "sparse and repeated": (
        scipy.sparse.csr_matrix(([1.0, 2.0], [1, 1], [0, 2, 2, 2, 2]), shape=SHAPE),
        "each entry once", "some again", "sum_duplicates()"
    ),
    "a pickle": (b"\x80\x04K\x01.", "an array file", "pickle", "row numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_judgments_are_one_line(case, tmp_path):
    given, *words = BAD[case]
    path = tmp_path / "given.npz"
    if scipy.sparse.issparse(given):
        sparse(given)(path)
    elif isinstance(given, np.ndarray):
        path = tmp_path / "given.npy"
        np.save(path, given)
    else:
        path = tmp_path / "given.txt"
        written(given)(path)
    with pytest.raises(ValueError, match="expected") as raised:
        read(path)
    line = str(raised.value)
    assert line.isprintable()
    for word in (f"--relevant '{path}", *words):
        assert word in line


# --- by the command ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twenty queries by their ids, of which two ask for nothing, and thirty items."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    parts = {"queries": 20, "gallery": 30, "bank": 25}
    vectors = {name: random.normal(size=(count, 6)) + 0.4 for name, count in parts.items()}
    for name, rows in vectors.items():
        np.save(f"{name}.npy", rows.astype(np.float32))
    grades = random.integers(1, 4, (20, 30)) * (random.random((20, 30)) < 0.1)
    grades[:, 0] += grades.sum(axis=1) == 0
    grades[[3, 8]] = 0
    names = [f"q{row}" for row in range(20)], [f"d{row}" for row in range(30)]
    for name, ids in zip(("queries", "gallery"), names, strict=True):
        pathlib.Path(f"{name}.txt").write_text("\n".join(ids), "utf-8")
    lines = [f"q{q} 0 d{d} {grades[q, d]}" for q, d in np.argwhere(grades)]
    pathlib.Path("qrels.txt").write_text("\n".join([*lines, "q77 0 d1 1"]), "utf-8")
    return vectors, grades


def dcg(grades):
    return (grades / np.log2(2 + np.arange(len(grades)))).sum()


def expected_numbers(vectors, grades):
    """By NumPy; and [num_queries, num_gallery] the order in which items are found."""
    unit = {name: rows / np.linalg.norm(rows, axis=1)[:, None] for name, rows in vectors.items()}
    order = np.argsort(-(unit["queries"] @ unit["gallery"].T), axis=1)
    asked = np.flatnonzero(grades.any(axis=1))
    first = np.array([np.flatnonzero(grades[query, order[query]])[0] for query in asked])
    gains = [
        dcg(grades[query, order[query]][:10]) / dcg(np.sort(grades[query])[::-1][:10])
        for query in asked
    ]
    numbers = {f"recall_at_{cut}": 100 * (first < cut).mean() for cut in (1, 5, 10, 50, 100)}
    numbers["ndcg_at_10"] = 100 * np.mean(gains)
    return numbers, order


RELEVANT = ("--relevant", "qrels.txt")
SEARCH = ("search", "queries.npy", "gallery.npy", "-k", 30)


@pytest.mark.slow
def test_evaluate_reads_qrels(folder, call):
    numbers, _ = expected_numbers(*folder)
    ids = ("--query-labels", "queries.txt", "--labels", "gallery.txt")
    evaluate = ("evaluate", "queries.npy", "gallery.npy", "--query-bank", "bank.npy", "--json")
    code, out, err = call(*evaluate, "--methods", "is", *RELEVANT, *ids)
    assert code == 0, err
    content = json.loads(out)
    for name, value in numbers.items():
        assert content["rows"][0][name] == pytest.approx(value, abs=1e-3)
    notes = " ".join(content["notes"])
    assert "they name 1 queries and 0 items that are not here" in notes
    assert "2 of 20 queries have no right item and are left out." in notes
    ids = ("--query-labels", "queries.txt", "--labels", "gallery.txt")
    assert call(*SEARCH, *ids, "--output", "found.trec")[0] == 0
    again = json.loads(call("inspect", "--results", "found.trec", *RELEVANT, "--json")[1])
    for name in ("recall_at_1", "recall_at_5", "recall_at_10", "ndcg_at_10"):
        assert again["retrieval"][name] == content["rows"][0][name], name


def test_a_written_run_evaluated_again_gives_the_same_numbers(folder, call):
    vectors, grades = folder
    numbers, order = expected_numbers(vectors, grades)
    ids = ("--query-labels", "queries.txt", "--labels", "gallery.txt")
    for output in ("found.trec", "found.jsonl", "found.npz"):
        assert call(*SEARCH, *ids, "--output", output)[0] == 0
        code, out, err = call("inspect", "--results", output, *RELEVANT, "--json")
        assert code == 0, err
        again = json.loads(out)
        assert again["retrieval"].pop("num_queries") == 18
        for name, value in again["retrieval"].items():
            assert value == pytest.approx(numbers[name], abs=1e-3), name
        assert "recall_at_50" not in again["retrieval"]
        top = again["items"][0]
        item = int(top["item"][1:])
        right = sum(grades[q, item] > 0 and item in order[q, :10] for q in range(20))
        assert top["right_for"] == right
    assert call(*SEARCH, "--output", "rows.npz")[0] == 0
    np.save("grades.npy", grades.astype(np.float32))
    inspect = ("inspect", "--results", "rows.npz", "--relevant", "grades.npy", "--num-items", 30)
    rows = json.loads(call(*inspect, "--json")[1])["retrieval"]
    assert rows == {"num_queries": 18, **again["retrieval"]}
    _, out, _ = call(*inspect, "--output", "said")
    assert "right for" in out
    assert f"nDCG@10 {numbers['ndcg_at_10']:.1f}" in out
    assert "right_for" in pathlib.Path("said/items.csv").read_text("utf-8")


def test_runs_and_json_are_written_as_others_read_them(folder, call):
    search = ("search", "queries.npy", "gallery.npy", "-k", 3)
    ids = ("--query-labels", "queries.txt", "--labels", "gallery.txt")
    lines = [json.loads(line) for line in call(*search, *ids)[1].splitlines()]
    for options, prefix in ((ids, ("q", "d")), ((), ("", ""))):
        for suffix in ("trec", "json"):
            code, _, err = call(*search, *options, "--output", f"r.{suffix}", "--force")
            assert code == 0, err
        run = [line.split(" ") for line in pathlib.Path("r.trec").read_text("utf-8").splitlines()]
        expected = [
            [prefix[0] + line["query"][1:], "Q0", prefix[1] + item[1:], str(rank), repr(score)]
            for line in lines
            for rank, (item, score) in enumerate(zip(line["items"], line["scores"], strict=True), 1)
        ]
        assert [columns[:5] for columns in run] == expected
        assert {columns[5] for columns in run} == {"dbnorm"}
        content = json.loads(pathlib.Path("r.json").read_text("utf-8"))
        assert content == {
            query: {row[2]: float(row[4]) for row in rows}
            for query, rows in itertools.groupby(expected, lambda row: row[0])
        }
    np.save("names.npy", np.array(["a b", *(f"d{row}" for row in range(29))]))
    code, _, err = call(*search, "--labels", "names.npy", "--output", "s.trec")
    assert code == 2
    assert "expected ids without blanks, for a TREC run, got 'a b' in row 0; write .jsonl" in err
    assert call(*search, "--labels", "names.npy", "--output", "s.json")[0] == 0


def test_judgments_and_results_of_different_kinds_are_refused(folder, call):
    search = ("search", "queries.npy", "gallery.npy", "-k", 3)
    assert call(*search, "--output", "run.trec")[0] == 0
    np.save("rows.npy", np.zeros(20, int))
    code, _, err = call("inspect", "--results", "run.trec", "--relevant", "rows.npy")
    assert (code, err.count("\n")) == (2, 1)
    assert "expected qrels, since the results name their items, got rows of items" in err
    assert call(*search, "--query-labels", "queries.txt", "--output", "named.jsonl")[0] == 0
    code, _, err = call("inspect", "--results", "named.jsonl", "--relevant", "rows.npy")
    assert "got numbers of items and names of queries; name both or neither" in err
    evaluate = ("evaluate", "queries.npy", "gallery.npy", "--query-bank", "bank.npy")
    code, _, err = call(*evaluate, "--relevant", "qrels.txt", "--labels", "gallery.txt")
    assert "expected ids of both sides, which qrels name, got no --query-labels" in err


def test_lists_are_taken_as_they_are():
    """Copies may be level; what is found is what counts."""
    lists = np.array([[2, 0, -1], [1, 2, 0]], np.int32)
    relevant = np.array([0, 2, 3]), np.array([0, 1, 0])
    gains = [3 / np.log2(3) / (3 + 1 / np.log2(3)), 0.5]
    found = ndcg(lists, relevant, np.array([3.0, 1.0, 2.0]))
    assert found == pytest.approx(np.mean(gains), abs=1e-6)
