"""The study of poisoned banks: what its attacks do, and a short run of what it counts."""

import numpy as np
import pytest

from benchmarks.studies import poisoned

SIZE = 200


@pytest.fixture(scope="module")
def clean():
    """A set of a good encoder."""
    return poisoned.simulated("even", SIZE, 0)


@pytest.mark.parametrize("attack", poisoned.ATTACKS)
def test_an_attack_changes_its_share_and_no_more(clean, attack):
    found, victims = poisoned.poisoned(clean, attack, 0.2, 0)
    moved = (found.query_bank != clean.query_bank).any(axis=1)
    paired = found.bank_pairs != clean.bank_pairs
    assert (paired if attack == "permuted" else moved).sum() == SIZE // 5
    assert not (moved if attack == "permuted" else paired).any()
    nearest = (found.query_bank[moved] @ clean.gallery.T).argmax(axis=1)
    if attack == "copy":
        np.testing.assert_array_equal(found.query_bank[moved], clean.gallery[nearest])
    if attack == "victims":
        np.testing.assert_array_equal(np.unique(nearest), np.sort(victims))
    assert len(victims) == (5 if attack == "victims" else 0)
    assert sorted(found.bank_pairs) == sorted(clean.bank_pairs)


@pytest.mark.parametrize("name", poisoned.WORLDS)
def test_a_clean_bank_is_no_alarm(name):
    assert not poisoned.is_warned(poisoned.simulated(name, SIZE, 1), 1)


@pytest.mark.parametrize("attack", poisoned.ATTACKS)
def test_a_fifth_of_the_pairs_is_seen(clean, attack):
    assert poisoned.is_warned(poisoned.poisoned(clean, attack, 0.2, 0)[0], 0)


@pytest.mark.slow
def test_the_study_prints_its_table(capsys):
    counts = ["--seeds", "2", "--draws", "0", "--pairs", "200", "--fractions", "0.2"]
    poisoned.main([*counts, "--no-emoji", "--names", "easy"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["easy", "100.0", "0/2"] in [line[:3] for line in lines]
    assert ["easy", "copy", "20%", "2/2"] in [line[:4] for line in lines]


@pytest.mark.slow
def test_a_hundred_seeds():
    """What `docs/choosing.md` states, for a strong and a weak encoder and for an uneven log."""
    for name in ("easy", "weak", "log, Zipf(1)"):
        sets = [poisoned.simulated(name, 300, seed) for seed in range(100)]
        alarms = [poisoned.is_warned(test, seed) for seed, test in enumerate(sets)]
        assert sum(alarms) <= 1
        for attack in ("copy", "near", "far", "victims"):
            seen = [
                poisoned.is_warned(poisoned.poisoned(test, attack, 0.2, seed)[0], seed)
                for seed, test in enumerate(sets)
            ]
            assert sum(seen) >= 95
