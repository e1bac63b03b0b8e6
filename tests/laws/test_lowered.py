"""What programs ask of accelerators, read off those lowered for them on a machine without one."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export
from tracing import largest_intermediate, steps

import dbnorm_jax as dbn
from benchmarks.speed.compile_accelerators import CASES

PLATFORMS = ("tpu", "cuda")
NUM_ROWS, NUM_GALLERY, DIM = 4096, 40_000, 64
FUNCTIONS = [name for name, case in CASES.items() if not case.on_mesh]
# On vectors of numbers they take longer than the products of the tile.
SLOW = {"sort", "top_k", "gather"}
# Ranks take the score of the right item out of each tile.
TAKING = {"ranks, DualIS"}
# As others, with more neighbors or terms.
MORE = {"top 100", "largest, k=128", "top 10, DualIS", "fit, k=10"}


def functions(fail=()):
    """All of them; those that fail are known not to hold the law yet, on either platform."""
    fails = pytest.mark.xfail(reason="a gather in the tile", raises=AssertionError)
    marks = {name: [pytest.mark.slow] * (name in MORE) for name in FUNCTIONS}
    return [pytest.param(name, marks=marks[name] + [fails] * (name in fail)) for name in FUNCTIONS]


def arguments_of(name):
    shapes = ((NUM_ROWS, DIM), (NUM_GALLERY, DIM))
    rows = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return [*rows, *CASES[name].more(NUM_GALLERY, NUM_ROWS)]


@functools.cache
def traced(name):
    return jax.jit(CASES[name].call).trace(*arguments_of(name))


@functools.cache
def tiles(name, platform):
    """The steps of each loop that computes a tile, those of loops within it left out."""
    module = traced(name).lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")
    functions = {op.attributes["sym_name"].value: op.operation for op in module.body.operations}
    loops = []

    def steps_of(operation):
        own = []
        for region in operation.regions:
            for block in region.blocks:
                for each in block.operations:
                    inner = each.operation
                    if inner.name == "stablehlo.while":
                        loops.append(steps_of(inner))
                        continue
                    own.append(inner)
                    called = functions.get(
                        inner.attributes["callee"].value if inner.name == "func.call" else None
                    )
                    own += steps_of(inner if called is None else called)
        return own

    steps_of(functions["main"])
    return [loop for loop in loops if any(map(is_tile, loop))]


def shape_of(value):
    return tuple(value.type.shape)


def is_tile(operation):
    if operation.name != "stablehlo.dot_general":
        return False
    rows, columns = shape_of(operation.results[0])[-2:]
    return rows * columns >= 2**19


def slow_steps(name, platform):
    loops = tiles(name, platform)
    if not loops:  # no assertion, which functions that are known to fail might fail by
        raise LookupError("no tile in the program")
    return [step for loop in loops for step in loop if step.name.split(".")[-1] in SLOW]


@pytest.mark.parametrize("name", functions(fail=TAKING))
def test_no_tile_is_sorted_or_gathered_from(name):
    found = [slow_steps(name, platform) for platform in PLATFORMS]
    kinds = [{f"{step.name} {shape_of(step.results[0])}" for step in steps} for steps in found]
    assert kinds == [set(), set()]


@pytest.mark.parametrize("name", functions())
def test_no_array_is_larger_than_a_tile_or_what_is_returned(name):
    lists = 4 if name == "top 10, DualDIS" else 1
    k = 128 if name == "largest, k=128" else 1
    others = max(NUM_GALLERY * max(k, DIM), NUM_ROWS * 100)
    for platform, columns in (("tpu", 4096), ("cuda", NUM_GALLERY)):
        most = largest_intermediate(CASES[name].call, *arguments_of(name), platform=platform)
        assert most <= max(1024 * columns * lists, others), platform


def test_a_program_has_the_tiles_of_its_platform():
    """Whichever machine exports it."""
    rows = [jax.ShapeDtypeStruct((count, DIM), jnp.float32) for count in (2048, 70_000)]
    functions = {
        "search": lambda *arrays: dbn.stream_top_k(*arrays, 10),
        "fit": lambda *arrays: dbn.stream_bank_statistics(*arrays, beta=20.0, k=0),
    }
    widths = {
        ("search", "cpu"): 2016,
        ("search", "tpu"): 3904,
        ("search", "cuda"): 23_360,
        ("fit", "cpu"): 1024,
        ("fit", "tpu"): 3904,
        ("fit", "cuda"): 35_008,
    }
    for (name, platform), width in widths.items():
        exported = export.export(jax.jit(functions[name]), platforms=[platform])(*rows)
        products = re.findall(r"dot_general.*-> tensor<1024x(\d+)xf32>", exported.mlir_module())
        assert {int(columns) for columns in products} == {width}, (name, platform)


def test_a_fit_on_an_accelerator_takes_few_steps():
    """Of each a GPU launches some 36 programs, which would take longer than small products."""
    rows = [jax.ShapeDtypeStruct((count, 512), jnp.float32) for count in (10_240, 102_400)]
    fit = functools.partial(dbn.stream_bank_statistics, beta=20.0)
    assert steps(fit, *rows, platform="cuda") == 20
    assert steps(fit, *rows, platform="tpu") == 250
    assert steps(fit, *rows) == 1000
