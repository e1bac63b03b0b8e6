"""Mutation testing notices: known faults are found, and what is no fault is not."""

import ast
import collections
import json
import os
import subprocess
import sys

import mutants
import mutate
import pytest
from systems import forks

SOURCE = '''
"""A module: 1 < 2."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
Either = int | None


def share(part: "float | None", *, whole: float = 2.0) -> "float | None":
    """Of the whole: 1 / 2."""
    if part is None or whole <= 0:
        raise ValueError(f"`part` must be at least {1 + 1}")
    print("share")
    return min(part, whole) / whole
'''
EXPECTED = {
    "2.0 => 4.0",
    "part is None or whole <= 0 => not (part is None or whole <= 0)",
    "part is None or whole <= 0 => ((part is None) and (whole <= 0))",
    "part is None => part is not None",
    "whole <= 0 => whole < 0",
    "whole <= 0 => whole > 0",
    "0 => 1",
    "0 => (-1)",
    'raise ValueError(f"`part` must be at least {1 + 1}") => pass',
    'print("share") => pass',
    "min(part, whole) / whole => ((min(part, whole)) * (whole))",
    "min => max",
    "part, whole => whole, part",
}


def test_every_mutant_of_a_file():
    found = {mutant.name.removeprefix("share: "): mutant for mutant in mutants.mutants_of(SOURCE)}
    assert set(found) == EXPECTED
    for mutant in found.values():
        assert mutants.differs(mutant, SOURCE)
    changed = found["min => max"].applied(SOURCE)
    assert changed == SOURCE.replace("min(", "max(")


def test_arguments_are_left_out_or_swapped_whole():
    source = "f(one, two=2, three=g(3), *rest)\n"
    calls = [mutant.applied(source) for mutant in mutants.mutants_of(source)]
    assert {"f(one,  three=g(3), *rest)\n", "f(one, two=2,  *rest)\n"} <= set(calls)
    for call in calls:
        ast.parse(call)


@pytest.mark.slow
def test_the_sample_is_seeded_and_takes_of_every_kind():
    sources = {
        name: path.read_text("utf-8")
        for name, path in mutate.modules().items()
        if path.name.startswith("b")
    }
    chosen = mutants.sample(sources, 70, 1)
    assert chosen == mutants.sample(sources, 70, 1) != mutants.sample(sources, 70, 2)
    assert len(set(chosen)) == 70
    kinds = collections.Counter(mutant.kind for _, mutant in chosen)
    assert len(kinds) == 7
    assert min(kinds.values()) == max(kinds.values()) == 10


def test_every_module_has_tests_that_exist():
    modules = set(mutate.modules())
    assert set(mutate.TESTS) == modules
    for names in mutate.TESTS.values():
        for name in names.split():
            file, _, test = mutate._path(name).partition("::")
            source = (mutate.ROOT / file).read_text("utf-8")
            assert f"def {test}" in source


def test_reasons_are_of_mutants_that_exist():
    for name in json.loads(mutate.EXPLAINED.read_text("utf-8")):
        module, _, rest = name.partition(": ")
        source = (mutate.ROOT / mutate.SOURCES / f"{module}.py").read_text("utf-8")
        assert rest in {mutant.name for mutant in mutants.mutants_of(source)}, name


KNOWN = {
    "anti_hub_share: counts == 0 => counts != 0": "killed",
    "gini: num_gallery * counts.sum(axis=-1) => ((num_gallery) / (counts.sum(axis=-1)))": "killed",
    "robin_hood: deviation / 2 => ((deviation) * (2))": "killed",
    # 0 / 0, and not taken.
    "_ratio: whole > 0 => whole >= 0 #2": "survived",
}
CAMPAIGN = """
import json, pathlib, sys
import mutants, mutate

folder = pathlib.Path(sys.argv[1])
mutate.prepare(folder)
campaign = mutate.Campaign(folder, {"retrieval/hubness": ["tests/retrieval/test_hubness.py"]})
source = (mutate.ROOT / mutate.SOURCES / "retrieval" / "hubness.py").read_text()
found = {mutant.name: mutant for mutant in mutants.mutants_of(source)}
results = {name: campaign.test("retrieval/hubness", found[name]) for name in sys.argv[2:]}
(folder / "results.json").write_text(json.dumps(results))
"""


@forks
@pytest.mark.slow
def test_known_faults_are_killed_and_what_is_none_survives(tmp_path):
    """In a process of its own: runs are forks, and JAX has not started where they begin."""
    environment = {**os.environ, "PYTHONPATH": str(mutate.ROOT / "tests" / "campaigns")}
    command = [sys.executable, "-c", CAMPAIGN, tmp_path, *KNOWN]
    subprocess.run(command, cwd=mutate.ROOT, env=environment, check=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: result["result"] for name, result in results.items()} == KNOWN
    for result in results.values():
        assert (result["failed"] is None) == (result["result"] == "survived")
    mutated = tmp_path / "copy" / mutate.SOURCES / "retrieval" / "hubness.py"
    assert (
        mutated.read_text()
        == (mutate.ROOT / mutate.SOURCES / "retrieval" / "hubness.py").read_text()
    )
