"""What `auto` chooses inside commands is what the library chooses, for galleries of any size."""

import numpy as np
import pytest
from pairs import hubby

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring import choosing
from dbnorm_jax._cli.measuring.methods import KINDS
from dbnorm_jax._cli.measuring.sources import source_of
from dbnorm_jax._cli.reading.sets import EvaluationSet


def a_log(gallery):
    """Queries of which two in three ask for items that the gallery holds, some of them often."""
    queries, items, _, _ = hubby(4, size=90)
    items[30:] = gallery[np.arange(60) // 4]
    queries[30:] = items[30:] + (queries - items).mean(axis=0)
    return queries, items


@pytest.mark.slow
def test_evaluate_serves_what_auto_serves():
    """Queries of an item of the gallery stay out of its sums, there as here."""
    queries, gallery, _, _ = hubby(3)
    query_bank, gallery_bank = a_log(gallery)
    known = {"gallery": gallery, "query_bank": query_bank, "gallery_bank": gallery_bank}
    test = EvaluationSet(
        "log", queries, **known, bank_pairs=np.arange(90), similarity="dot", trust_banks=True
    )
    correction, choice = KINDS["auto"].fit(source_of(test))
    expected = dbn.auto(**known, pairs=np.arange(90), trust_banks=True)
    assert choice.name != "raw"
    np.testing.assert_allclose(correction.bias, expected.bias, rtol=1e-5, atol=1e-5)
    alone = dbn.tuning.fit(choice, **known, pairs=np.full(90, -1))
    assert np.abs(alone.bias - expected.bias).max() > 0.01  # else the test means nothing


def test_a_long_gallery_is_sampled_with_what_the_bank_asks_for(monkeypatch):
    _, gallery, _, _ = hubby(3)
    query_bank, gallery_bank = a_log(gallery)
    monkeypatch.setattr(choosing, "_MOST_RANKED", 20)
    asked = []
    monkeypatch.setattr(dbn.tuning, "tune", lambda **given: asked.append(given["gallery"]))
    found = choosing.choose(
        gallery=gallery,
        query_bank=query_bank,
        gallery_bank=gallery_bank,
        pairs=np.arange(90),
        similarity_fn=dbn.dot_product,
    )
    ranked = {row.tobytes() for row in np.asarray(asked[0])}
    assert {row.tobytes() for row in gallery[:15]} <= ranked <= {row.tobytes() for row in gallery}
    assert 20 <= len(asked[0]) <= 35
    assert {*np.asarray(found.exclude["gallery"]).ravel().tolist()} == {-1, *range(15)}
