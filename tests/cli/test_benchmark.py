"""`dbnorm benchmark`: sizes that cannot be compared are refused, the figures are consistent."""

import json

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

SMALL = ("--queries", 64, "--gallery", 96, "--dim", 8)


@pytest.mark.slow
def test_every_line_stands_beside_the_same_products(call):
    code, out, err = call("benchmark", *SMALL, "--json")
    assert code == 0, err
    content = json.loads(out)
    lines = {line["work"]: line for line in content["lines"]}
    assert content["sizes"]["gallery"] == 96
    assert content["where"]["platform"] == "cpu"
    bases = [name for name, line in lines.items() if line["base"] == name]
    assert len(bases) == 2
    assert all(lines[name]["ratio"] == 1 for name in bases)
    assert len(lines) == 6
    for line in lines.values():
        assert line["gflops"] * line["seconds"] * 1e9 == pytest.approx(2 * 64 * 96 * 8)


@pytest.mark.slow
def test_table_has_every_line(call):
    code, out, _ = call("benchmark", *SMALL)
    assert code == 0
    for word in ("similarities alone", "fit, one bank", "DualDIS, k=10", "Ratio"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gallery", 1500), ["--gallery", "1500", "2048"]),
        (("--queries", 1025), ["--queries", "1025"]),
        (("--gallery", 8, "-k", 9), ["-k", "8 (gallery items)", "9"]),
        (("--dim", 0), ["--dim"]),
    ],
)
def test_sizes_are_checked_first(call, arguments, words):
    code, out, err = call("benchmark", *arguments)
    assert code == 2
    assert not out
    assert all(word in err for word in words)
