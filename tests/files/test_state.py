"""State files: bit by bit, checked before use, whole or not at all, never executed."""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NORMALIZERS, problem, statistics_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dbnorm_jax as dbn
from dbnorm_jax._src.files import archives, binary


def states():
    query_statistics, gallery_statistics = statistics_of(problem(0), k=2)
    empty = dbn.bank_statistics(np.zeros((1, 7), np.float32), beta=1.0, where=np.zeros(1, bool))
    batched = dbn.stream_bank_statistics(
        problem(0).query_bank, problem(0).gallery, beta=jnp.array([1.0, 20.0]), k=0
    )
    soft = dbn.Correction(jnp.ones((1, 7)), jnp.full((1, 7), 0.5))
    fitted = [case.fit(query_statistics, gallery_statistics) for case in NORMALIZERS]
    largest = dbn.largest_similarities(problem(0).query_bank_similarities, k=9)  # -inf below 6
    return [query_statistics, batched, empty, soft, largest, *fitted]


def assert_identical(first, second):
    assert type(first) is type(second)
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, jax.Array):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state ü 数.npz"


@pytest.mark.parametrize("place", range(9))
def test_round_trip_is_exact(place, path):
    state = states()[place]
    dbn.save(path, state)
    assert_identical(dbn.load(path), state)
    dbn.save(str(path), state)  # over an existing one, by a string
    assert_identical(dbn.load(str(path)), state)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("similarity_fn", [dbn.dot_product, dbn.negative_squared_euclidean])
@pytest.mark.parametrize("place", range(3))
def test_a_prepared_gallery_is_prepared_again(place, similarity_fn, path):
    """Its items, correction and center are kept; the copy in bfloat16 is made of them."""
    gallery = np.asarray(problem(0).gallery, np.float32)
    soft = dbn.Correction(jnp.ones((1, 7)), jnp.full((1, 7), 0.5), similarity_fn.__name__)
    correction = (None, dbn.Correction(jnp.ones((2, 7))), soft)[place]
    center = None if place == 0 else gallery.mean(axis=0)
    state = dbn.prepare_gallery(
        gallery, correction, similarity_fn=similarity_fn, query_centre=center
    )
    dbn.save(path, state)
    found = dbn.load(path)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.gallery, gallery)


def of_rows(rows, columns):
    return rows @ columns.T


def test_galleries_that_cannot_be_kept_are_refused(path):
    gallery = jnp.ones((2, 3))
    with pytest.warns(UserWarning, match="full precision"):
        own = dbn.prepare_gallery(gallery, similarity_fn=of_rows)
    with pytest.raises(ValueError, match="`state` must be prepared under dot_product, cosine_sim"):
        dbn.save(path, own)
    changed = dataclasses.replace(dbn.prepare_gallery(gallery), gallery=gallery * jnp.nan)
    with pytest.raises(ValueError, match="state: expected gallery to be finite"):
        dbn.save(path, changed)
    short = dataclasses.replace(
        dbn.prepare_gallery(gallery), correction=dbn.Correction(jnp.ones((1, 3)))
    )
    with pytest.raises(ValueError, match=r"bias to be floating point, \[num_terms, 2\]"):
        dbn.save(path, short)
    with pytest.raises(TypeError, match="npy can name, got bfloat16"):
        dbn.save(path, dbn.prepare_gallery(gallery.astype(jnp.bfloat16)))
    zeros = np.zeros((1, 2), np.float32)
    for name, words in {
        "cosine_similarity": "must have no zero row under cosine",
        "manhattan": "expected similarity_fn to be one of dot_product",
    }.items():
        static = {"similarity": None, "similarity_fn": name}
        written_as(path, 4, "PreparedGallery", static, gallery=zeros)
        with pytest.raises(ValueError, match=f"state ü 数.npz: .*{words}"):
            dbn.load(path)


def test_a_loaded_correction_serves(path):
    test = problem(1)
    correction = dbn.dual_dynamic_inverted_softmax(*statistics_of(test))
    dbn.save(path, correction)
    for function in (
        lambda fitted: dbn.stream_top_k(test.queries, test.gallery, 3, fitted),
        lambda fitted: dbn.top_k(test.similarities, 3, fitted),
    ):
        for found, expected in zip(function(dbn.load(path)), function(correction), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_loaded_parts_merge(path):
    test = problem(2)
    first, second = (
        dbn.stream_bank_statistics(rows, test.gallery, beta=20.0)
        for rows in (test.query_bank[:3], test.query_bank[3:])
    )
    dbn.save(path, first)
    assert_identical(dbn.merge(dbn.load(path), second), dbn.merge(first, second))


def test_float64_needs_x64_to_come_back(path):
    with jax.enable_x64(True):
        state = dbn.bank_statistics(np.eye(3) / 3, beta=20.0)
        dbn.save(path, state)
        assert_identical(dbn.load(path), state)
    with pytest.raises(ValueError, match=r"float64.*enable_x64"):
        dbn.load(path)


def test_numpy_reads_the_arrays(path):
    correction = states()[-1]
    dbn.save(path, correction)
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["bias"], correction.bias)
        header = json.loads(str(archive["header"]))
    assert header["kind"] == "Correction"
    assert header["format_version"] == 4
    assert len(header["sha256"]) == 64


def test_provenance_is_kept_and_optional(path):
    state = states()[-1]
    dbn.save(path, state)
    assert dbn.read_provenance(path) is None
    made_from = {"gallery": dbn.out_of_core.fingerprint(problem(0).gallery), "betas": [20.0, 1]}
    dbn.save(path, state, provenance=made_from)
    assert dbn.read_provenance(path) == made_from
    assert_identical(dbn.load(path), state)
    rewritten(path, with_header(provenance={"gallery": "another"}))
    with pytest.raises(ValueError, match="SHA-256"):
        dbn.load(path)
    for bad in ("text", {"array": np.ones(2)}, {"number": np.nan}):
        with pytest.raises(TypeError, match="`provenance` must"):
            dbn.save(path, state, provenance=bad)
    with pytest.raises(ValueError, match="at most"):
        dbn.save(path, state, provenance={"text": "x" * 200_000})


KNOWN = {"sha256": "0" * 64, "rows": 5, "dtype": "float32", "dim": 3}
BAD_ENTRIES = {
    "gallery of text": ({"gallery": "images v2"}, "gallery to be a dict of sha256, rows, dtype"),
    "gallery without digest": ({"gallery": {"rows": 5, "dim": 3}}, "gallery.sha256 to be 64 hexa"),
    "rows in words": ({"gallery": KNOWN | {"rows": "five"}}, "gallery.rows to be a whole number"),
    "rows of bool": ({"gallery": KNOWN | {"rows": True}}, "gallery.rows .* got True"),
    "no dim": ({"gallery": KNOWN | {"dim": 0}}, "gallery.dim to be a whole number of 1 or more"),
    "dtype by number": ({"gallery": KNOWN | {"dtype": 4}}, "gallery.dtype to be the name"),
    "another digest": ({"gallery": KNOWN | {"sha256": "md5"}}, "gallery.sha256 .* got 'md5'"),
    "parts of text": ({"parts": "monday"}, "parts to be a list of fingerprints, got 'monday'"),
    "part without rows": ({"parts": [KNOWN, {}]}, r"parts\[1\].sha256 .* got none"),
    "similarities": ({"similarity": ["cosine"]}, "similarity to be cosine or dot or euclidean"),
    "another similarity": ({"similarity": "manhattan"}, "similarity .* got 'manhattan'"),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_another_form_of_what_is_read_again_is_written_with_a_warning(path, case):
    entries, words = BAD_ENTRIES[case]
    words = f"^provenance: expected {words}.*; commands refuse the file as it is"
    with pytest.warns(UserWarning, match=words) as told:
        dbn.save(path, states()[-1], provenance=entries)
    assert [warning.filename for warning in told] == [__file__]
    assert dbn.read_provenance(path) == entries
    assert_identical(dbn.load(path), states()[-1])


def test_other_entries_are_free(path):
    free = {"query_bank": "captions", "stamps": 1, "beta": "20", "gallery": None, "parts": None}
    free |= {"encoder": {"gallery": 1}, "similarity": None, "command": ["dbnorm", "fit"]}
    dbn.save(path, states()[-1], provenance=free)
    assert dbn.read_provenance(path) == free


@pytest.mark.parametrize("levels", [100, 950, 100_000])
def test_too_deep_a_provenance_is_refused(path, levels):
    """What is taken can be read from any depth of calls."""
    deep: list[object] = []
    for _ in range(98):
        deep = [deep]
    dbn.save(path, states()[-1], provenance={"deep": deep})
    assert dbn.read_provenance(path) == {"deep": deep}
    for _ in range(98, levels):
        deep = [deep]
    with pytest.raises(TypeError, match="`provenance` must hold text, numbers"):
        dbn.save(path, states()[-1], provenance={"deep": deep})


def test_files_of_the_first_version_load(path):
    state = states()[-1]
    dbn.save(path, state)
    with np.load(path) as archive:
        header = json.loads(str(archive["header"]))
    arrays = {name: np.asarray(getattr(state, name)) for name in header["arrays"]}
    for name in ("sha256", "provenance"):
        del header[name]
    header["format_version"], header["static"] = 1, {}
    header["sha256"] = archives._digest(header, arrays)
    np.savez(path, header=np.array(json.dumps(header)), **arrays)
    assert_identical(dbn.load(path), state)
    assert dbn.read_provenance(path) is None


def written_as(path, version, kind, static, **arrays):
    """A file as an older version wrote it."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    header = {"kind": kind, "format_version": version, "library": "dbnorm_jax", "static": static}
    header["arrays"] = {name: archives._description(array) for name, array in arrays.items()}
    header |= {"provenance": None} if version > 1 else {}
    header["sha256"] = archives._digest(header, arrays)
    np.savez(path, header=np.array(json.dumps(header)), **arrays)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_sums_of_older_versions_load_as_means(version, path):
    """They held log Z and the mass; format 3 never did. An empty column is one."""
    similarities = problem(0).query_bank_similarities
    where = np.ones(similarities.shape, bool)
    where[:, 2] = False
    state = dbn.bank_statistics(similarities, beta=20.0, where=where)
    sums = {"log_normalizer": state.log_normalizer, "mass": state.mass, "beta": state.beta}
    written_as(path, version, "BankStatistics", {"k": 1}, **sums, k_occurrence=state.k_occurrence)
    if version == 3:
        with pytest.raises(ValueError, match="other fields"):
            dbn.load(path)
        return
    found = dbn.load(path)
    np.testing.assert_allclose(found.bias, state.bias, atol=1e-6)
    np.testing.assert_allclose(found.log_normalizer, state.log_normalizer, rtol=1e-6)
    for field in ("mass", "k_occurrence", "beta"):
        np.testing.assert_array_equal(getattr(found, field), getattr(state, field))
    assert found.similarity is None
    for field, place, value, words in (
        ("log_normalizer", 0, np.nan, "free of NaN"),
        ("mass", 0, np.nan, "finite"),
        ("mass", 0, -1.0, "finite and at least 0"),
        ("beta", (), 0.0, "positive"),
    ):
        bad = np.array(sums[field])
        bad[place] = value
        written_as(path, version, "BankStatistics", {"k": 0}, **{**sums, field: bad})
        with pytest.raises(ValueError, match=f"expected {field} to be .*{words}"):
            dbn.load(path)
    short = {**sums, "mass": sums["mass"][:3]}
    written_as(path, version, "BankStatistics", {"k": 0}, **short)
    with pytest.raises(ValueError, match="expected log_normalizer, mass and beta, of shapes"):
        dbn.load(path)


@pytest.mark.parametrize("version", [2, 3])
def test_a_choice_of_one_candidate_loads(path, version):
    """What older versions wrote: the place of the candidate, and methods by their places."""
    rows = np.eye(3, dtype=np.float32)
    state = dbn.tuning.tune(query_bank=rows, gallery_bank=rows)
    zeros, count = np.zeros(7, np.float32), np.arange(7, dtype=np.int32)
    names = ("gain", "standard_error", "p_value", "reciprocal_rank_gain", "recall_gain")
    arrays = dict.fromkeys((*names, "beta_query", "weight_query"), zeros + 0.5)
    arrays |= {"beta_gallery": zeros + 2, "weight_gallery": zeros + 0.25, "k": 0 * count}
    arrays |= dict.fromkeys(("spreads", "active_share", "open_share", "own_share"), zeros[:2] + 0.1)
    arrays |= {"method": count, "chosen": count[5], "num_equal_rows": 0 * count[:3]}
    later = {"num_gallery_bank": 3, "num_wrong_pairs": 0}
    static = dict.fromkeys(("num_held_out", "num_columns", "num_folds"), 30)
    static |= {"reason_code": 0} | (later if version == 3 else {})
    written_as(path, version, "Choice", static, **arrays)
    found = dbn.load(path)
    parameters = {"beta_query": 0.5, "beta_gallery": 2, "weight_query": 0.5, "weight_gallery": 0.25}
    assert (found.name, found.parameters) == ("dualis", parameters)
    assert found.mixture[0].frequency == 1
    assert "at least" not in found.summary()  # nothing is known
    assert found.num_gallery_bank == (3 if version == 3 else 0)
    banks = {"query_bank": rows, "gallery": rows, "gallery_bank": rows + 1}
    query, gallery = (
        dbn.stream_bank_statistics(bank, rows, beta=beta)
        for bank, beta in ((rows, 0.5), (rows + 1, 2.0))
    )
    expected = dbn.dual_inverted_softmax(query, gallery, weights=(0.5, 0.25))
    np.testing.assert_allclose(dbn.tuning.fit(found, **banks).bias, expected.bias, rtol=1e-6)
    gated = {**arrays, "chosen": count[6]}
    written_as(path, version, "Choice", static, **gated)
    assert dbn.tuning.fit(dbn.load(path), **banks).active is not None
    for broken in ({"chosen": count[:1]}, {"chosen": np.int32(7)}, {"spreads": zeros[:1]}):
        written_as(path, version, "Choice", static, **arrays | broken)
        with pytest.raises(ValueError, match="expected chosen, a place in gain, and spreads"):
            dbn.load(path)
    dbn.save(path, state)
    with np.load(path) as archive:
        header = json.loads(str(archive["header"]))
    arrays = {name: np.asarray(getattr(state, name)) for name in header["arrays"]}
    written_as(path, 4, "Choice", static, **arrays)  # without what this version has
    with pytest.raises(ValueError, match="other fields"):
        dbn.load(path)


# --- what cannot be saved ------------------------------------------------------------------------

FLAT = jax.tree.map(lambda leaf: leaf[0], dbn.Correction(jnp.ones((1, 3))))


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({"bias": 1}, TypeError, "BankStatistics or LargestSimilarities or Correction"),
        (dbn.Correction(jnp.ones((1, 3), jnp.bfloat16), None), TypeError, "bfloat16"),
        (dbn.LargestSimilarities(jnp.arange(6.0).reshape(2, 3)), ValueError, "sorted"),
        (FLAT, ValueError, "num_terms, num_gallery"),
        (dbn.Correction(jnp.ones((0, 3)), None), ValueError, "num_terms, num_gallery"),
        (dbn.Correction(jnp.ones((1, 0)), None), ValueError, "num_terms, num_gallery"),
        (dbn.LargestSimilarities(jnp.ones(3)), ValueError, "k, num_gallery"),
        (dbn.LargestSimilarities(jnp.ones((0, 3))), ValueError, "k, num_gallery"),
        (dbn.LargestSimilarities(jnp.ones((2, 0))), ValueError, "k, num_gallery"),
        (dbn.Correction(jnp.full((1, 3), jnp.nan), None), ValueError, "bias to be finite"),
        (dbn.Correction(jnp.ones((1, 3)), jnp.ones((1, 2))), ValueError, "active"),
        (dbn.Correction(jnp.ones((1, 3)), 2 * jnp.ones((1, 3))), ValueError, r"\[0, 1\]"),
    ],
)
def test_refused_before_anything_is_written(state, error, words, path):
    path.write_bytes(b"old")
    with pytest.raises(error, match=words):
        dbn.save(path, state)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("place", [(), (3,)])  # of one column, or of all
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("bias", np.nan, "finite"),
        ("bias", -np.inf, "finite"),
        ("bias_rest", np.nan, "finite"),
        ("weight", np.nan, "finite"),
        ("weight", -1, "at least 0"),
        ("weight", np.inf, "finite"),
        ("weight_rest", np.inf, "finite"),
        ("beta", 0, "positive"),
        ("beta", np.nan, "positive"),
        ("beta", np.inf, "finite"),
        ("k_occurrence", -1, "at least 0"),
    ],
)
def test_statistics_out_of_range_are_refused(field, value, words, place, path):
    state = dbn.bank_statistics(problem(0).query_bank_similarities, beta=20.0)
    array = np.array(getattr(state, field))
    array[place if array.ndim else ()] = value
    with pytest.raises(ValueError, match=f"expected {field} to be .*{words}"):
        dbn.save(path, dataclasses.replace(state, **{field: jnp.asarray(array)}))


@pytest.mark.parametrize("shape", [(), (6,), (1, 7)])
def test_counts_of_another_shape_are_refused(shape, path):
    state = dbn.bank_statistics(problem(0).query_bank_similarities, beta=20.0)
    with pytest.raises(ValueError, match="expected k_occurrence to be of the shape"):
        dbn.save(path, dataclasses.replace(state, k_occurrence=jnp.zeros(shape, jnp.int32)))


@pytest.mark.parametrize("k", [-1, 8])
def test_k_out_of_range_is_refused(k, path):
    state = dbn.bank_statistics(problem(0).query_bank_similarities, beta=20.0)
    counts = state.k_occurrence if k > 0 else None
    with pytest.raises(ValueError, match="expected k to be between 0 and 7"):
        dbn.save(path, dataclasses.replace(state, k_occurrence=counts, k=k))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_largest_similarities_out_of_range_are_refused(value, path):
    with pytest.raises(ValueError, match="expected values to be free of NaN"):
        dbn.save(path, dbn.LargestSimilarities(jnp.array([[value, 1.0], [0.5, 0.5]])))


def test_traced_state_is_refused(path):
    def inside(bias):
        dbn.save(path, dbn.Correction(bias, None))
        return bias

    with pytest.raises(TypeError, match="concrete"):
        jax.jit(inside)(jnp.ones((1, 3)))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(broken, path, monkeypatch):
    first, second = states()[-1], states()[0]
    dbn.save(path, first)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (pathlib.Path, "replace")), fail)
    with pytest.raises(OSError, match="No space left"):
        dbn.save(path, second)
    assert_identical(dbn.load(path), first)
    assert list(path.parent.iterdir()) == [path]


def test_a_path_is_held_by_one_at_a_time(path):
    with binary.alone(path):
        with pytest.raises(BlockingIOError), binary.alone(path):
            pytest.fail("held twice")
        with binary.alone(path.with_name("other")):
            pass
    with binary.alone(path):
        pass
    assert not list(path.parent.iterdir())


# --- what is not loaded --------------------------------------------------------------------------


def rewritten(path, change):
    """Writes the archive anew after `change(members)`, a dict of .npy bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members = change(members) or members
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def with_header(**changes):
    def change(members):
        header = json.loads(str(np.load(io.BytesIO(members["header.npy"]))))
        members["header.npy"] = npy(np.array(json.dumps(header | changes)))

    return change


def swapped(members):
    """As a machine of the other byte order writes it: the header and its checksum are the same."""
    for name, data in members.items():
        array = np.load(io.BytesIO(data))
        members[name] = npy(array.astype(array.dtype.newbyteorder("S")))


@pytest.mark.parametrize("place", range(9))
def test_files_of_the_other_byte_order_load(place, path):
    state = states()[place]
    dbn.save(path, state)
    rewritten(path, swapped)
    assert_identical(dbn.load(path), state)


def with_member(name, array, **options):
    def change(members):
        members[f"{name}.npy"] = npy(array, **options)

    return change


CHANGES = {
    "newer version": (with_header(format_version=5), "upgrade"),
    "unknown kind": (with_header(kind="Magic"), "Magic"),
    "another kind": (with_header(kind="BankStatistics"), "fields"),
    "kind that is no text": (with_header(kind=[]), "kind"),
    "another checksum": (with_header(sha256="0" * 64), "SHA-256"),
    "more in the header": (with_header(surprise=1), "fields"),
    "header that is no JSON": (with_member("header", np.array("{")), "header"),
    "header that is deep": (with_member("header", np.array("[" * 100_000)), "header"),
    "header that is no text": (with_member("header", np.ones(3)), "header"),
    "header that is large": (
        with_member("header", np.array("a" * (archives._LARGEST_HEADER // 4 + 1))),
        "oversized member header",
    ),
    "other values": (with_member("bias", np.ones((2, 7), np.float32)), "SHA-256"),
    "other shape": (with_member("bias", np.ones((2, 6), np.float32)), "bias"),
    "other dtype": (with_member("bias", np.ones((2, 7), np.float64)), "bias"),
    "objects": (with_member("bias", np.array([{}]), allow_pickle=True), "pickled"),
    "a further array": (with_member("more", np.ones(3)), "fields"),
    "a field less": (lambda members: members.pop("active.npy") and None, "fields"),
    "truncated array": (
        lambda members: members | {"bias.npy": members["bias.npy"][:-4]},
        "truncated",
    ),
    "lying array": (
        lambda members: (
            members | {"bias.npy": members["bias.npy"].replace(b"(2, 7)", b"(2000000000, 7)")}
        ),
        "bias",
    ),
    "no header": (lambda members: members.pop("header.npy") and None, "members"),
    "path tricks": (lambda members: members | {"../../evil.npy": npy(np.ones(1))}, "fields"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changed_files_are_refused(case, path):
    change, words = CHANGES[case]
    dbn.save(path, states()[-1])
    rewritten(path, change)
    with pytest.raises(ValueError, match=words) as raised:
        dbn.load(path)
    assert str(path) in str(raised.value)
    assert "allow_pickle" not in str(raised.value)


CONTENTS = {
    "empty": b"",
    "text": b"not an archive",
    "pickle": pickle.dumps({"bias": 1}),
    "npy": npy(np.ones(3)),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_other_files_are_refused(case, path):
    path.write_bytes(CONTENTS[case])
    with pytest.raises(ValueError, match=r"expected an .npz written by dbnorm_jax.save"):
        dbn.load(path)


def test_a_compressed_bomb_is_refused_before_it_unpacks(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.npy", bytes(2**28))
    with pytest.raises(ValueError, match="compressed"):
        dbn.load(path)


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        dbn.load(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
def test_any_damage_is_noticed(path, where, flip, cut):
    state = dbn.Correction(jnp.linspace(0, 1, 14).reshape(2, 7), jnp.ones((2, 7), bool))
    dbn.save(path, state)
    data = bytearray(path.read_bytes())
    place = int(where * len(data))
    if cut:
        del data[place:]
    else:
        data[place] ^= flip
    path.write_bytes(data)
    # Bytes that say nothing (dates in the zip directory) may change; values may not.
    try:
        loaded = dbn.load(path)
    except ValueError:
        return
    assert not cut
    assert_identical(loaded, state)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0), (2, 3)])
def test_headers_of_arrays_with_and_without_values(shape):
    stream = io.BytesIO()
    np.save(stream, np.zeros(shape, np.float32))
    size = stream.tell()
    stream.seek(0)
    header = binary.read_header(stream, size)
    assert (header.shape, header.dtype) == (shape, np.float32)
