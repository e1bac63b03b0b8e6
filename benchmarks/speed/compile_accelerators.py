"""The streamed functions compiled for accelerators, by their own compilers, without any: not run.

    python -m benchmarks.speed.compile_accelerators --target v5e [--function "top 10" ...]
        [--bank 10240] [--gallery 102400] [--queries 4096] [--dim 512] [--json FILE] [--docs]

Targets: TPU v4, v5e, v5p, v6e and tpu7x, NVIDIA h200 and a100. For every function: whether it
compiles, bytes of temporaries, bytes read and written with loops counted as often as they run; on
GPUs the programs launched; on TPUs the time of the final schedule, in which a step takes its cycles
or its bytes at the memory's bandwidth, whichever is longer, and the share of that time that the
products alone would take at the peak. Nothing is measured on a device: a run can only be slower.

One JSON line per function is appended, to benchmark-results/compiled-TARGET.jsonl unless told
otherwise; --docs writes the newest line of each into the table of docs/accelerators.md.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import dbnorm_jax as dbn
from benchmarks.support import environment, report
from benchmarks.support.compilers import TARGETS, Compiled, Compiler, Target
from benchmarks.support.programs import Program, Run, Step
from benchmarks.support.report import Figure, Record
from benchmarks.support.schedules import Schedule

SIZES = {"bank": 10240, "gallery": 102400, "queries": 4096, "dim": 512}
DTYPES = ("float32", "bfloat16")
DOCS = environment.ROOT / "docs" / "accelerators.md"
# Lines of a record.
TEMPORARIES, TRAFFIC, LAUNCHES, TIME, SHARE = (
    "temporaries",
    "memory traffic",
    "launches",
    "schedule",
    "share of the roof",
)
_MEGA = 1e6


class Case(NamedTuple):
    """A function of embeddings; `products` of all rows with the gallery are what it needs."""

    call: Callable[..., Any]
    rows: str  # "bank" or "queries"
    products: int = 1
    on_mesh: bool = False
    more: Callable[..., Sequence[Any]] = lambda *_: ()  # sizes -> shapes of other arguments


def _terms(num_gallery: int, _: int) -> list[Any]:
    """The shapes of a correction of two gated terms."""
    return [
        jax.ShapeDtypeStruct((2, num_gallery), jnp.float32),
        jax.ShapeDtypeStruct((2, num_gallery), jnp.bool_),
    ]


def _beta(*_: int) -> list[Any]:
    # An argument: a compiler without a device holds no arrays.
    return [jax.ShapeDtypeStruct((), jnp.float32)]


def _right(_: int, num_rows: int) -> list[Any]:
    return [jax.ShapeDtypeStruct((num_rows,), jnp.int32)]


def _corrected(gated: bool, queries: Any, gallery: Any, bias: Any, active: Any) -> Any:
    correction = dbn.Correction(bias, active if gated else None)
    return dbn.stream_top_k(queries, gallery, 10, correction)


def _ranks(queries: Any, gallery: Any, bias: Any, active: Any, right: Any) -> Any:
    del active
    correction = dbn.Correction(bias, None)
    return dbn.metrics.stream_ranks(queries, gallery, right, correction)


def _fit(bank: Any, gallery: Any, beta: Any, *, k: int = 1, **options: Any) -> Any:
    return dbn.stream_bank_statistics(bank, gallery, beta=beta, k=k, **options)


def _top(queries: Any, gallery: Any, *, k: int, **options: Any) -> Any:
    return dbn.stream_top_k(queries, gallery, k, **options)


def _largest(bank: Any, gallery: Any, *, k: int) -> Any:
    return dbn.stream_largest_similarities(bank, gallery, k=k)


def _gradient(bank: Any, gallery: Any, beta: Any, **options: Any) -> Any:
    def loss(bank: Any, gallery: Any) -> Any:
        return _fit(bank, gallery, beta, **options).bias.sum()

    return jax.grad(loss, (0, 1))(bank, gallery)


def _soft(bank: Any, gallery: Any) -> Any:
    return dbn.stream_soft_activation(bank, gallery, temperature=0.05)


CASES = {
    **{f"fit, k={k}": Case(partial(_fit, k=k), "bank", more=_beta) for k in (0, 1, 10)},
    **{f"top {k}": Case(partial(_top, k=k), "queries") for k in (1, 10, 100)},
    "top 10, DualIS": Case(partial(_corrected, False), "queries", more=_terms),
    "top 10, DualDIS": Case(partial(_corrected, True), "queries", more=_terms),
    "ranks, DualIS": Case(
        _ranks, "queries", more=lambda *sizes: [*_terms(*sizes), *_right(*sizes)]
    ),
    **{f"largest, k={k}": Case(partial(_largest, k=k), "bank") for k in (10, 128)},
    # Shares are known when all items have passed: the products come twice.
    "soft activation": Case(_soft, "bank", products=2),
    # Forward, and one for the gradient of each of the two factors.
    "gradient of fit, k=1": Case(_gradient, "bank", products=3, more=_beta),
    "fit, k=1, 2 x 2 mesh": Case(_fit, "bank", on_mesh=True, more=_beta),
    "top 10, 2 x 2 mesh": Case(partial(_top, k=10), "queries", on_mesh=True),
    "gradient of fit, k=1, 2 x 2 mesh": Case(
        _gradient, "bank", products=3, on_mesh=True, more=_beta
    ),
}


def run(
    target: str, functions: Sequence[str] = (), dtypes: Sequence[str] = DTYPES, **sizes: int
) -> Iterator[Record]:
    """One record for each function and dtype, as soon as it is compiled."""
    compiler = Compiler(target)
    try:
        for name in functions or CASES:
            for dtype in dtypes:
                yield _record(compiler, name, dtype, sizes)
    finally:
        compiler.close()


def _record(compiler: Compiler, name: str, dtype: str, sizes: Mapping[str, int]) -> Record:
    case, num_rows = CASES[name], sizes[CASES[name].rows]
    shapes = (num_rows, sizes["dim"]), (sizes["gallery"], sizes["dim"])
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    arguments += case.more(sizes["gallery"], num_rows)
    call, devices = case.call, 1
    if case.on_mesh:
        mesh = compiler.mesh()
        call, devices = partial(call, mesh=mesh), mesh.size
        axes = (*mesh.axis_names, *[None] * len(arguments))
        arguments = [
            each.update(sharding=jax.NamedSharding(mesh, jax.P(axis) if axis else jax.P()))
            for each, axis in zip(arguments, axes, strict=False)
        ]
    products = 2.0 * num_rows * sizes["gallery"] * sizes["dim"] * case.products / devices
    least = products * compiler.target.passes[dtype] / compiler.target.flops
    try:
        compiled = compiler.compile(call, arguments)
    except Exception as error:  # the compiler's: a row of the table
        figures, notes = [], [f"does not compile: {_first_line(error)}"]
    else:
        figures, notes = figures_of(compiled, compiler.target, least)
    title = f"{name}, {dtype}, compiled for {compiler.name}, not run"
    known = {"target": compiler.name, "function": name, "dtype": dtype}
    return Record("compiled", title, {**known, **sizes}, figures, notes)


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def figures_of(compiled: Compiled, target: Target, least: float) -> tuple[list[Figure], list[str]]:
    """What a table says of a program, and notes; `least` are the seconds of its products alone."""
    program = Program.parse(compiled.text)
    runs = list(program.runs())
    traffic = sum(each.traffic for each in runs)
    figures = [
        Figure(TEMPORARIES, compiled.temporaries / _MEGA, "MB"),
        Figure(TRAFFIC, traffic / _MEGA, "MB"),
    ]
    open_loops = len(program.open_loops())
    if target.platform == "tpu":
        scheduled = _schedules(runs, compiled)
        seconds = {each: _seconds(each, scheduled, target) for each in runs}
        total, notes = sum(seconds.values()), [_largest_parts(seconds, "the time")]
        if target.clock is None:
            cycles = sum(_cycles(each, scheduled) * each.times for each in runs)
            figures.append(Figure("cycles", cycles / _MEGA, "million"))
            notes = []
        elif total:
            figures.append(Figure(TIME, total * 1e3, "ms"))
            figures.append(Figure(SHARE, 100 * least / total, "%"))
        open_loops += sum(each.open_loops for each in scheduled.values())
    else:
        launches = sum(each.times for each in runs)
        figures.append(Figure(LAUNCHES, launches, ""))
        notes = [_largest_parts({each: each.traffic for each in runs}, "the traffic")]
    if open_loops:
        notes.append(f"{open_loops} loops of unknown length count once")
    return figures, notes


def _schedules(runs: Sequence[Run], compiled: Compiled) -> dict[str, Schedule]:
    """Of each step that has one; of steps that are alike the compiler writes one alone."""
    written = {_kind(run): compiled.schedules.get(run.step.name) for run in runs}
    written |= {
        _kind(run): found for run in runs if (found := compiled.schedules.get(run.step.name))
    }
    return {run.step.name: found for run in runs if (found := written[_kind(run)])}


def _kind(run: Run) -> tuple[str, str, int]:
    name = re.sub(r"[.\d]+$", "", run.step.name)
    return name, re.sub(r"S\(\d\)", "", run.step.result), _estimate(run.step)


def _estimate(step: Step) -> int:
    """XLA's own figure, of some steps; good for products."""
    stated = re.search(r'estimated_cycles":"(\d+)"', step.attributes)
    return int(stated[1]) if stated else 0


def _cycles(run: Run, scheduled: Mapping[str, Schedule]) -> int:
    """Of one time; of products XLA's figure where it is longer."""
    found, estimate = scheduled.get(run.step.name), _estimate(run.step)
    if found is None:
        return estimate
    is_product = run.step.source in {"dot_general", "conv_general_dilated"}
    return max(found.cycles, estimate) if is_product else found.cycles


def _seconds(run: Run, scheduled: Mapping[str, Schedule], target: Target) -> float:
    cycles = _cycles(run, scheduled) / (target.clock or 1)
    return run.times * max(cycles, run.bytes_once / target.bandwidth)


def _largest_parts(parts: Mapping[Run, float], of: str) -> str:
    """The two operations that take most."""
    sums: dict[str, float] = {}
    for each, part in parts.items():
        sums[each.step.source] = sums.get(each.step.source, 0) + part
    total = sum(sums.values()) or 1
    first = sorted(sums.items(), key=lambda item: -item[1])[:2]
    said = ", ".join(f"{name} {100 * part / total:.0f} %" for name, part in first)
    return f"{said} of {of}"


# --- the table of the documentation --------------------------------------------------------------


def markdown(lines: Sequence[Mapping[str, Any]], platform: str) -> list[str]:
    """A table of JSON lines of one target, the newest of each function and dtype."""
    newest = {(line["sizes"]["function"], line["sizes"]["dtype"]): line for line in lines}
    columns = [TEMPORARIES, TRAFFIC]
    columns += [TIME, "cycles", SHARE] if platform == "tpu" else [LAUNCHES]
    known = {figure["name"] for line in newest.values() for figure in line["figures"]}
    units = {f["name"]: f["unit"] for line in newest.values() for f in line["figures"]}
    columns = [column for column in columns if column in known]
    heads = [f"{each}, {units[each]}" if units[each] else each for each in columns]
    rows = [["function", *heads, "most of it is"], ["---"] * (len(heads) + 2)]
    for name in CASES:
        for dtype in DTYPES:
            if (name, dtype) in newest:
                line = newest[name, dtype]
                values = {figure["name"]: figure["value"] for figure in line["figures"]}
                cells = [_plain(values[each]) if each in values else "-" for each in columns]
                rows.append([f"{name}, {dtype}", *cells, "; ".join(line["notes"])])
    return ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def write_table(target: str, lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Replaces the table between the marks of a target."""
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- compiled for {target} -->", f"<!-- end of {target} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{path}: expected the marks {begin} and {end}, got a page without")
    before, rest = text.split(begin, 1)
    made = lines[-1]["environment"]
    versions = ", ".join(
        f"{name} {made['versions'][name]}"
        for name in ("jax", "libtpu", "jax-cuda13-plugin")
        if made["versions"].get(name, "absent") != "absent"
    )
    stated = f"{versions}; {made['date']}, commit {made['commit']}."
    table = "\n".join([*markdown(lines, TARGETS[target].platform), "", stated])
    path.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def main() -> None:
    """Compiles, prints, and appends one JSON line per function."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--function", dest="functions", action="append", choices=CASES)
    parser.add_argument("--dtype", dest="dtypes", action="append", choices=DTYPES)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", action="store_true", help="write the table of docs/")
    options = vars(parser.parse_args())
    target, in_docs = options.pop("target"), options.pop("docs")
    path = options.pop("json") or report.RESULTS / f"compiled-{target}.jsonl"
    functions, dtypes = options.pop("functions") or (), options.pop("dtypes") or DTYPES
    for record in run(target, functions, dtypes, **options):
        print(*report.table(record), sep="\n", end="\n\n", flush=True)
        report.write([record], path)
    if in_docs:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        write_table(target, lines, DOCS)


if __name__ == "__main__":
    main()
