"""Arrays of other frameworks as arguments: the same results, and nothing shared with them."""

import functools
import pathlib
import re

import chex
import jax
import numpy as np
import pytest
from cases import problem

import dbnorm_jax as dbn

TEST = problem(0)
CORRECTION = dbn.Correction(np.linspace(0, 1, 7, dtype=np.float32)[None], None)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_tensors_are_arrays(torch):
    rows, columns = (torch.from_numpy(array.copy()) for array in (TEST.queries, TEST.gallery))
    expected = dbn.dot_product(TEST.queries, TEST.gallery)
    for kind in (torch.float32, torch.float64):
        found = dbn.dot_product(rows.to(kind), columns.to(kind))
        np.testing.assert_array_equal(found, expected)
    strided = torch.repeat_interleave(rows, 2, dim=1)[:, ::2]
    np.testing.assert_array_equal(dbn.dot_product(strided, columns.T.contiguous().T), expected)
    halves = [dbn.dot_product(rows.to(kind), columns) for kind in (torch.float16, torch.bfloat16)]
    for half, tolerance in zip(halves, (1e-3, 1e-2), strict=True):
        np.testing.assert_allclose(half, expected, atol=tolerance)
        assert half.dtype == np.float32
    gates = dbn.gates_from_top_1(torch.tensor([0, 6]), CORRECTION)
    assert gates.tolist() == [[1.0], [1.0]]


def test_a_tensor_changed_later_changes_nothing(torch):
    """What is kept is computed from the values at the time of the call."""
    for kind in (torch.float32, torch.bfloat16):
        bank, gallery = (
            torch.from_numpy(rows.copy()).to(kind) for rows in (TEST.query_bank, TEST.gallery)
        )
        expected = dbn.stream_bank_statistics(bank.clone(), gallery.clone(), beta=3.0)
        found = dbn.stream_bank_statistics(bank, gallery, beta=3.0)
        vectors = dbn.inner_product_gallery(gallery, CORRECTION)
        kept = np.array(vectors)
        bank.fill_(7)
        gallery.fill_(7)
        np.testing.assert_array_equal(found.log_normalizer, expected.log_normalizer)
        np.testing.assert_array_equal(vectors, kept)


def test_large_inputs_are_not_shared(torch):
    tensor = torch.ones((2**18, 8))  # large and aligned: what a framework would rather share
    vectors = dbn.inner_product_queries(tensor, [1.0])
    again = dbn.inner_product_queries(tensor.bfloat16(), [1.0])
    tensor.fill_(7)
    assert float(vectors.max()) == float(again.max()) == 1


@pytest.mark.parametrize("what", ["gradient", "meta", "sparse", "strided bfloat16"])
def test_tensors_that_cannot_be_read(torch, what):
    tensor = torch.from_numpy(TEST.queries.copy())
    tensor = {
        "gradient": tensor.requires_grad_,
        "meta": lambda: tensor.to("meta"),
        "sparse": tensor.to_sparse,
        "strided bfloat16": lambda: tensor.repeat(1, 2).bfloat16()[:, ::2],
    }[what]()
    with pytest.raises(TypeError, match=r"`queries` must be an array .* got a Tensor .*detach"):
        dbn.stream_top_k(tensor, TEST.gallery, 1)


def test_rows_of_objects_name_the_remedy():
    rows = np.empty(len(TEST.queries), object)
    rows[:] = list(TEST.queries)
    with pytest.raises(TypeError, match=r"`queries` .*numpy.stack"):
        dbn.stream_top_k(rows, TEST.gallery, 1)
    np.testing.assert_array_equal(
        dbn.stream_top_k(np.stack(rows), TEST.gallery, 1).indices,
        dbn.stream_top_k(TEST.queries, TEST.gallery, 1).indices,
    )


def test_semantic_search():
    hits = dbn.semantic_search(TEST.queries, TEST.gallery, CORRECTION, k=3)
    scores, indices = dbn.stream_top_k(
        TEST.queries, TEST.gallery, 3, CORRECTION, similarity_fn=dbn.cosine_similarity
    )
    assert [[hit["corpus_id"] for hit in query] for query in hits] == indices.tolist()
    assert [[hit["score"] for hit in query] for query in hits] == scores.tolist()
    # As there, no more than there are.
    assert {len(query) for query in dbn.semantic_search(TEST.queries, TEST.gallery, k=99)} == {7}


def test_semantic_search_of_sentence_transformers(torch):
    util = pytest.importorskip("sentence_transformers.util")
    queries, gallery = (torch.from_numpy(rows.copy()) for rows in (TEST.queries, TEST.gallery))
    theirs = util.semantic_search(queries, gallery, top_k=4)
    ours = dbn.semantic_search(queries, gallery, k=4)
    for their, our in zip(theirs, ours, strict=True):
        assert [hit["corpus_id"] for hit in our] == [hit["corpus_id"] for hit in their]
        np.testing.assert_allclose(
            [hit["score"] for hit in our], [hit["score"] for hit in their], atol=1e-6
        )


def test_the_page_on_inputs(torch):
    pytest.importorskip("datasets")
    page = pathlib.Path(__file__).parents[2] / "docs" / "inputs.md"
    defined = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        exec(compile(code, page.name, "exec"), defined)
    assert defined["similarities"].shape == (50, 50)
    assert torch.from_dlpack(defined["scores"]).shape == (20, 10)


def test_states_pass_through_flax():
    """As the page of questions registers them: with static fields, alone and inside others."""
    serialization = pytest.importorskip("flax.serialization")
    page = pathlib.Path(__file__).parents[2] / "docs" / "faq.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "serialization" in block)
    exec(compile(code, page.name, "exec"), {})
    options = {"similarity_fn": dbn.cosine_similarity}
    fit = functools.partial(dbn.stream_bank_statistics, TEST.query_bank, TEST.gallery, **options)
    largest = functools.partial(
        dbn.stream_largest_similarities, TEST.query_bank, TEST.gallery, **options
    )
    statistics, sums = fit(beta=3.0, k=2), fit(beta=5.0, k=0)
    # Each with one that differs in all that can differ, to be filled.
    for state, other in (
        (statistics, sums),
        (sums, statistics),
        (largest(k=3), dbn.largest_similarities(np.zeros((4, 2), np.float32), k=1)),
        (dbn.dynamic_inverted_softmax(statistics), CORRECTION),
        (CORRECTION, dbn.dynamic_inverted_softmax(statistics)),
    ):
        again = serialization.from_bytes(other, serialization.to_bytes(state))
        chex.assert_trees_all_equal(again, state)  # their static fields too
        chex.assert_trees_all_equal_dtypes(again, state)
        assert again.similarity == state.similarity
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(again))
        inside = serialization.to_bytes({"step": 3, "state": state})
        found = serialization.from_bytes({"step": 0, "state": other}, inside)
        chex.assert_trees_all_equal(found["state"], state)
