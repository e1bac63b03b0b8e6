"""The examples run, without a warning, and say what they should."""

import importlib.util
import struct

import numpy as np
import pytest
from printed import lines_of, numbers

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("emoji", "matplotlib")),
    reason="needs dbnorm_jax[cli]",
)


def drawn(name, folder):
    """What an example prints that draws; the picture is one that a page can show."""
    picture = folder / f"{name}.png"
    printed = lines_of(name, "--output", picture)
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert 600 < width < 1600 > height > 300
    assert 10_000 < len(content) < 150_000
    return printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("learn_betas", "DualIS, learned"),
        ("adapter", "Over post-hoc correction alone"),
        ("sensitivity", "Taking them away"),
    ],
)
def test_examples_run(name, last):
    assert lines_of(name)[-1].strip().startswith(last)


@pytest.mark.slow
def test_glyphs(tmp_path):
    printed = drawn("glyphs", tmp_path)
    raw, corrected = (numbers(line) for line in printed if line.startswith(("raw ", "corrected ")))
    assert corrected[2] < raw[2] / 2  # skewness
    won, lost, gain, _ = numbers(printed[-1])[:4]
    assert gain == pytest.approx(corrected[0] - raw[0], abs=0.11)
    assert won > lost > 0


@pytest.mark.slow
def test_languages(tmp_path):
    printed = drawn("languages", tmp_path)
    rows = [numbers(line) for line in printed if " -> " in line]
    assert len(rows) == 12
    for raw, corrected, gain, _, won, lost, skew, skew_corrected in rows:
        assert gain == pytest.approx(corrected - raw, abs=0.11)
        assert won > lost > 0
        assert skew_corrected < skew / 1.5
    assert numbers(printed[-1])[0] >= 10


@pytest.mark.slow
def test_code_search(tmp_path):
    printed = drawn("code_search", tmp_path)
    assert numbers(printed[0])[0] > 3000  # functions
    rows = {line[:29].strip(): numbers(line[29:]) for line in printed if ", " in line[:29]}
    for name in ("words", "words and learned"):
        raw, corrected = rows[f"{name}, raw"], rows[f"{name}, corrected"]
        assert corrected[-2] < raw[-2]  # skewness
        assert corrected[-1] < raw[-1]  # the greatest hub
        assert corrected[1] == pytest.approx(corrected[0] - raw[0], abs=0.11)
    means = next(numbers(line) for line in printed if line.startswith("  raw"))
    assert means[0] > 10 > means[-1]  # short functions are near to more sentences


@pytest.mark.slow
def test_bank_size(tmp_path):
    printed = drawn("bank_size", tmp_path)
    sets = "\n".join(printed).split("gallery items\n")[1:]
    assert len(sets) == 2
    for told in sets:
        rows = [numbers(line) for line in told.splitlines() if "bank of" in line]
        sizes, gains, widths, gated, _ = zip(*rows, strict=True)
        assert list(sizes) == sorted(sizes)
        assert gains[0] < gains[-1]
        assert abs(gated[0]) < abs(gains[0])  # few gates are open where the bank is small
        assert min(widths) > 0


SOURCE = '''
def parseHeader(line):
    """Return the fields of a header.

    More is not read.
    """
    return line.split(":")


def again(line):
    """Return the fields of a header."""
    return line


def short():
    """Too short."""
    return 1


def undescribed(line):
    return line


def same(line):
    """Another sentence for equal code."""
    return line.split(":")


class Reader:
    async def read_all(self):
        """Read whatever is left."""
        return await self.rest()
'''


def test_functions_are_found_once_and_without_their_sentence(tmp_path):
    code_search = pytest.importorskip("examples.code_search")
    (tmp_path / "headers.py").write_text(SOURCE, "utf-8")
    (tmp_path / "broken.py").write_text("def broken(:", "utf-8")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "skipped.py").write_text(SOURCE, "utf-8")
    found = code_search.functions(tmp_path)
    assert [one.name for one in found] == ["headers.parseHeader", "headers.read_all"]
    assert found[0].sentence == "Return the fields of a header."
    assert "fields" not in found[0].code
    assert code_search.words("parseHTTPHeader parse_header") == [
        *("parse", "http", "header"),
        *("parse", "header"),
    ]


def test_no_module_is_in_two_parts():
    code_search = pytest.importorskip("examples.code_search")
    modules = np.random.default_rng(1).choice([f"module {i}" for i in range(40)], 600)
    parts = code_search.thirds(list(modules))
    assert sorted(np.concatenate(parts)) == list(range(600))
    kinds = [set(modules[part]) for part in parts]
    assert not kinds[0] & kinds[1]
    assert not kinds[0] & kinds[2]
    assert not kinds[1] & kinds[2]
    assert all(150 < len(part) < 250 for part in parts)


def test_intervals():
    common = pytest.importorskip("examples.common")
    bank_size = pytest.importorskip("examples.bank_size")
    before, after = np.array([0.0, 1, 0, 0]), np.array([1.0, 0, 1, 0])
    change, width = common.gain(before, after)
    assert change == 25
    assert width == pytest.approx(1.96 * 100 * np.sqrt(2.75 / 3 / 4))
    # Equal draws add nothing; draws that differ widen it.
    once = 100 * (after - before)[None]
    assert bank_size.interval(np.repeat(once, 5, axis=0)) == pytest.approx(bank_size.interval(once))
    mean, wider = bank_size.interval(np.concatenate([once + 50, once - 50]))
    assert mean == pytest.approx(25)
    assert wider > bank_size.interval(once)[1]
