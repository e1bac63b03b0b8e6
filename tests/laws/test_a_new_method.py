"""A correction that nobody has published, one function and one row, is found wherever methods are.

score(q, g) = s(q, g) - weight x the k-th largest s(b, g)
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import reference
from cases import problem
from pairs import SIZE, hubby

import dbnorm_jax as dbn
from dbnorm_jax._src.corrections.table import TABLE, Parameter, Row
from dbnorm_jax._src.tuning.choice import methods
from tests.laws import test_every_method as generic


def kth_nearest(source, *, k, weight):
    return dbn.Correction(weight * source.largest(k).values[..., -1:, :], None)


ROW = Row(
    "Kth",
    "kth_nearest",
    "nobody, never",
    "means",
    kth_nearest,
    (Parameter("k", 2, whole=True), Parameter("weight", 0.5)),
    grid={"k": (1, 4), "weight": (0.5, 1.0)},
)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(TABLE, "toy", ROW)
    return "toy"


def bias(bank, gallery, k, weight):
    return weight * np.sort(reference.dot_product(bank, gallery), axis=0)[-k]


def test_transforms_places_searches_and_files(toy, tmp_path):
    generic.test_jit_equals_eager(toy)
    generic.test_vmap_equals_loop(toy)
    generic.test_chunk_size_does_not_matter(toy)
    generic.test_every_place_gives_the_same(toy)
    generic.test_gallery_permutation(toy)
    generic.test_bank_order_does_not_matter(toy)
    generic.test_gradients_are_finite_and_reach_the_bank(toy)
    generic.test_a_fit_serves_searches_and_files(toy, tmp_path)


def test_dtypes(toy, x64):
    generic.test_dtypes(toy, x64)


@pytest.fixture(scope="module")
def banks():
    return hubby(2)


@pytest.mark.slow
def test_auto_tries_it(toy, banks, tmp_path):
    query_bank, gallery_bank, _, gallery = banks
    known = {"gallery": gallery, "similarity_fn": dbn.dot_product}
    choice = dbn.tuning.tune(
        query_bank=query_bank, gallery_bank=gallery_bank, pairs=np.arange(SIZE), **known
    )
    rows = np.flatnonzero(np.asarray(choice.method) == methods().index(toy))
    assert len(rows) == 4
    assert np.abs(choice.gain[rows]).min() > 0
    # Of the largest one alone it is NNN.
    nnn = (choice.method == methods().index("nnn")) & (choice.k == 1)
    for row in rows[np.asarray(choice.k)[rows] == 1]:
        same = nnn & (choice.weight_query == choice.weight_query[row])
        assert choice.gain[row] == choice.gain[same][0]

    only = jnp.zeros(len(choice.gain)).at[rows[-1]].set(1)
    chosen = dataclasses.replace(choice, frequency=only)
    assert (chosen.name, chosen.parameters) == (toy, {"k": 4, "weight": 1.0})
    dbn.save(tmp_path / "choice.npz", chosen)
    fitted = dbn.tuning.fit(
        dbn.load(tmp_path / "choice.npz"),
        gallery=gallery,
        query_bank=query_bank,
        gallery_bank=gallery_bank,
    )
    np.testing.assert_allclose(fitted.bias[0], bias(query_bank, gallery, 4, 1.0), rtol=1e-5)


def test_a_grid_of_unknown_parameters_is_refused(toy, banks, monkeypatch):
    monkeypatch.setitem(TABLE, toy, dataclasses.replace(ROW, grid={"rate": (0.1,)}))
    query_bank, gallery_bank, _, gallery = banks
    banks = {"query_bank": query_bank, "gallery_bank": gallery_bank, "gallery": gallery}
    with pytest.raises(ValueError, match=r"grid of 'toy' must be of .*'k'.*, got \['rate'"):
        dbn.tuning.tune(**banks, pairs=np.arange(SIZE))
    monkeypatch.setitem(TABLE, toy, dataclasses.replace(ROW, gated=True))
    with pytest.raises(ValueError, match="grid of 'toy' must be of a method with one bias"):
        dbn.tuning.tune(**banks, pairs=np.arange(SIZE))


@pytest.mark.slow
def test_the_command_knows_it(toy, call, tmp_path):
    test = problem(3, (40, 30, 25, 20))
    names = ("queries", "gallery", "query_bank", "gallery_bank")
    for name in names:
        np.save(tmp_path / f"{name}.npy", getattr(test, name))
    files = {name: tmp_path / f"{name}.npy" for name in names}
    right = np.arange(40) % 30
    np.save(tmp_path / "right.npy", right)
    shared = ("--query-bank", files["query_bank"], "--similarity", "dot")
    scores = reference.dot_product(test.queries, test.gallery)
    corrected = scores - bias(test.query_bank, test.gallery, 3, 0.5)

    arguments = (files["queries"], files["gallery"], *shared, "--relevant", tmp_path / "right.npy")
    code, out, err = call("evaluate", *arguments, "--methods", "toy:k=3,means", "--json")
    assert code == 0, err
    found = {
        row["method"]: row for row in json.loads(out)["rows"] if row["options"] != ROW.defaults
    }
    assert found["Kth"]["options"] == {"k": 3, "weight": 0.5}
    ranks = reference.ranks(corrected, right[:, None])
    assert found["Kth"]["mean_rank"] == pytest.approx(reference.mean_rank(ranks), abs=0.03)

    output = tmp_path / "toy.npz"
    arguments = (files["gallery"], *shared, "--method", "toy", "-k", 3, "--output", output)
    code, _, err = call("fit", *arguments, "--block-size", 8)
    assert code == 0, err
    fitted = dbn.load(output)
    np.testing.assert_allclose(fitted.bias[0], (scores - corrected)[0], rtol=1e-4, atol=1e-6)
    assert dbn.read_provenance(output)["parameters"] == {"k": 3, "weight": 0.5}

    arguments = (files["gallery"], *shared, "--method", "toy:k=3", "--queries", files["queries"])
    betas = ("--beta-query", 5, "--gallery-bank", files["gallery_bank"])
    code, out, err = call("inspect", *arguments, *betas, "--json")
    assert code == 0, err
    assert "Kth" in out


def test_the_command_lists_it(toy, call, tmp_path):
    code, _, err = call("evaluate", tmp_path / "none.npz", "--methods", "nonsense")
    assert code == 2
    assert f"dn, {toy}, sn" in err
    code, out, _ = call("fit", "--help")
    assert code == 0
    assert toy in out
