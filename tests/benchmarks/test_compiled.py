"""What is read off compiled programs and schedules, on texts that any machine has."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks.speed import compile_accelerators as compiled
from benchmarks.support import environment, report, schedules
from benchmarks.support.compilers import TARGETS, Compiled
from benchmarks.support.programs import Program, memory

PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[64,256]{1,0})->f32[256]{0}}

%inner (p.0: f32[64,256], p.1: s32[]) -> f32[4,256] {
  %p.0 = f32[64,256]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[4,256]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={4,256}
}

%body (state.1: (s32[], f32[256], f32[64,256])) -> (s32[], f32[256], f32[64,256]) {
  %state.1 = (s32[], f32[256]{0}, f32[64,256]{1,0}) parameter(0)
  %index = s32[] get-tuple-element(%state.1), index=0
  %sum = f32[256]{0:S(1)} get-tuple-element(%state.1), index=1
  %rows = f32[64,256]{1,0} get-tuple-element(%state.1), index=2
  %slice_fusion.2 = f32[4,256]{1,0} fusion(%rows, %index), kind=kLoop, calls=%inner, metadata={op_name="jit(f)/while/body/slice"}
  ROOT %next = (s32[], f32[256]{0}, f32[64,256]{1,0}) tuple(%index, %sum, %rows)
}

%condition (state: (s32[], f32[256], f32[64,256])) -> pred[] {
  %state = (s32[], f32[256]{0}, f32[64,256]{1,0}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(16)
  ROOT %more = pred[] compare(%number, %limit), direction=LT
}

ENTRY %main (rows.1: f32[64,256]) -> f32[256] {
  %rows.1 = f32[64,256]{1,0} parameter(0)
  %start = (s32[], f32[256]{0}, f32[64,256]{1,0}) tuple(%rows.1)
  %loop = (s32[], f32[256]{0}, f32[64,256]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[256]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501
# Ten bundles in all: two outside, and a loop of six around one of two.
SCHEDULE = """
     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s3 }
   0x2   :  {}
   0x3 LB: >> { %v1 = vld [vmem:[%s1]] }
   0x4   : >> { %p1 = scmp.ge.s32.totalorder %s4, 5 /* loop exit test */ }
   0x5   : > { %v2 = vadd.f32 %v1, %v1 }
   0x6   : > { %p2 = scmp.ge.s32.totalorder %s2, 3 /* loop exit test */ }
   0x7   :  { %6 = vst [vmem:[%s1]] %v2 }
"""
LEAST = 1e-6  # seconds


def test_a_loop_counts_as_often_as_it_runs_and_a_slice_as_what_it_takes():
    program = Program.parse(PROGRAM)
    (run,) = program.runs()
    assert (run.step.name, run.step.source, run.times) == ("slice_fusion.2", "slice", 16)
    assert run.bytes_once == 2 * 4 * 256 * 4 + 4  # a slice read and written, and its place
    assert not program.open_loops()
    assert Program.parse(PROGRAM.replace("constant(16)", "parameter(1)")).open_loops() == ["loop"]


def test_what_lies_on_the_chip_is_no_traffic():
    assert memory("(f32[8,128]{1,0:T(8,128)S(1)}, bf16[8]{0:T(128)}, pred[3]{0})") == 19


@pytest.mark.parametrize(
    ("start", "moved"),
    [
        ("(f32[64,256]{1,0:S(1)}, f32[64,256]{1,0}, u32[]{:S(2)}) copy-start(%rows.1)", 64),
        ("((f32[64,256]{1,0}), f32[4,256]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%rows.1)", 4),
        ("((f32[64,256]{1,0}), f32[4,256]{1,0}, s32[]{:S(2)}) slice-start(%rows.1)", 8),
    ],
)
def test_a_copy_that_is_begun_moves_what_it_copies(start, moved):
    """Its type names the source, too."""
    text = PROGRAM.replace("  %start =", f"  %begun = {start}\n  %start =")
    (begun,) = [run for run in Program.parse(text).runs() if run.step.name == "begun"]
    assert begun.bytes_once == moved * 256 * 4


def test_programs_of_this_machine_are_read():
    def summed(rows):
        return lax.scan(lambda total, row: (total + jnp.sin(row), None), rows[0], rows)[0]

    rows = jax.ShapeDtypeStruct((23, 1024), jnp.float32)
    text = jax.jit(summed).lower(rows).compile().as_text()
    runs = list(Program.parse(text).runs())
    assert max(run.times for run in runs) == 23
    # Each row is read, and the sum is read and written beside it.
    assert 23 * 3 * 4096 <= sum(run.traffic for run in runs) <= 23 * 8 * 4096


def test_text_of_no_program():
    with pytest.raises(ValueError, match="expected the text of an optimized module"):
        Program.parse("nothing")


def test_cycles_of_nested_loops():
    assert schedules.read(SCHEDULE.splitlines()) == schedules.Schedule(2 + 3 * (4 + 5 * 2), 0)
    open_loop = SCHEDULE.replace("%s4, 5 /* loop exit test */", "%s4, %s5")
    assert schedules.read(open_loop.splitlines()) == schedules.Schedule(2 + 3 * (4 + 2), 1)


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        # 44 cycles at 1.5 GHz take longer than none, and the slice longer than these.
        ("v5e", compiled.TIME, 1e3 * 16 * (2 * 4096 + 4) / 819e9),
        ("h200", compiled.LAUNCHES, 16),
    ],
)
def test_figures(target, name, value):
    found = {"slice_fusion.2": schedules.Schedule(10, 0)}
    made = Compiled(PROGRAM, 12_000_000, found)
    figures, notes = compiled.figures_of(made, TARGETS[target], LEAST)
    values = {figure.name: figure.value for figure in figures}
    assert values[name] == pytest.approx(value)
    assert values[compiled.TEMPORARIES] == 12
    assert values[compiled.TRAFFIC] == pytest.approx(16 * (2 * 4096 + 4) / 1e6)
    assert notes[0].startswith("slice 100 %")
    if target == "v5e":
        assert values[compiled.SHARE] == pytest.approx(1e5 * LEAST / value)


def test_the_table_has_what_does_not_compile(tmp_path):
    sizes = {"function": "fit, k=0", "dtype": "float32", "target": "v5e"}
    fits = report.Record("compiled", "", sizes, [report.Figure(compiled.TIME, 43.2, "ms")], ["x"])
    fails = report.Record(
        "compiled", "", {**sizes, "function": "top 1"}, [], ["does not compile: why"]
    )
    older = report.Record("compiled", "", sizes, [], ["does not compile: before"])
    path = tmp_path / "lines.jsonl"
    report.write([older, fits, fails], path)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- compiled for v5e -->\nold\n<!-- end of v5e -->\nb\n", encoding="utf-8")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    compiled.write_table("v5e", lines, page)
    text = page.read_text(encoding="utf-8")
    assert "| fit, k=0, float32 | 43 | x |" in text
    assert "| top 1, float32 | - | does not compile: why |" in text
    assert "before" not in text
    assert "old" not in text
    assert environment.versions()["jax"] in text
    with pytest.raises(SystemExit, match="expected the marks"):
        compiled.write_table("v6e", lines, page)
