"""Mutation testing: does a test fail when the code is wrong?

    python tests/campaigns/mutate.py --mutants 300 --seed 1

A seeded sample of small faults over `dbnorm_jax/_src`, each against the test files of its module,
in a copy of the repository. One process imports JAX, pytest and hypothesis; every run is a fork of
it that loads the (mutated) package anew. A mutant is killed when a test fails; one that takes five
times the processor time of an undisturbed run is a timeout, which counts as noticed. Results are
appended to a file of JSON lines, and a run with the same file goes on where the last one ended.
What survives is wrong tests, or one of `mutants_explained.json`: no fault, or one of speed only.

`--again` runs the survivors that are not explained once more, after tests were added.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = pathlib.Path("dbnorm_jax", "_src")
EXPLAINED = pathlib.Path(__file__).with_name("mutants_explained.json")

# Module -> its test files with their slow tests, or single tests, the likeliest to notice first.
TESTS = {
    "core/checks": (
        "laws/bad_input statistics/bank retrieval/metrics places/mesh/mesh "
        "laws/bad_numbers::test_more_rows_than_indices_are_refused "
        "laws/bad_numbers::test_weights_that_float32_does_not_hold_are_refused "
        "places/mesh/distributed::test_bad_input_of_one_process_raises_on_all"
    ),
    "core/elementary": "core/elementary",
    "core/filling": "laws/programs retrieval/search",
    "core/log_mean_exp": "core/log_mean_exp statistics/bank retrieval/growing places/mesh/mesh",
    "core/low_precision": "retrieval/prepared",
    "core/naming": "laws/public",
    "core/numerics": "statistics/bank core/similarity corrections/balance corrections/baselines",
    "core/prepared": "retrieval/prepared laws/public",
    "core/relevance": (
        "retrieval/metrics laws/bad_numbers::test_a_matrix_of_numbers_is_not_read_as_rows"
    ),
    "core/seen": "retrieval/seen laws/bad_input",
    "core/similarity": "core/similarity laws/bad_input",
    "core/text": "cli/terminal campaigns/hostile_files",
    "core/types": "statistics/bank files/state corrections/baselines",
    "core/version": "files/state",
    "corrections/balance": "corrections/balance laws/bad_input",
    "corrections/means": "corrections/baselines laws/bad_input",
    "corrections/rescaling": "corrections/baselines laws/bad_input",
    "corrections/streamed": "laws/every_method tuning/tune",
    "corrections/table": "laws/every_method laws/a_new_method cli/methods",
    "corrections/transport": "corrections/baselines laws/bad_input",
    "corrections/vectors": "corrections/baselines laws/bad_input",
    "files/archives": "files/state campaigns/hostile_files",
    "files/binary": "files/state cli/formats campaigns/hostile_files",
    "files/provenance": "files/state cli/fit",
    "files/state": "files/state tuning/tune",
    "files/texts": "files/state cli/one_reader",
    "insight/attribution": "insight/attribution",
    "insight/flips": "insight/flips",
    "insight/influence": "insight/attribution insight/flips",
    "insight/screening": "insight/screening",
    "passes/again": "passes/classes retrieval/prepared",
    "passes/banks": "statistics/bank places/disk/out_of_core",
    "passes/certified": "retrieval/prepared",
    "passes/columns": "corrections/baselines laws/bad_input passes/sorting",
    "passes/counts": "passes/counts retrieval/metrics retrieval/seen laws/bad_input",
    "passes/gating": "retrieval/search retrieval/metrics laws/bad_input",
    "passes/classes": "passes/classes passes/selection",
    "passes/nearest": "passes/selection passes/sorting",
    "passes/selection": "passes/selection corrections/baselines passes/sorting retrieval/search",
    "passes/sorting": "passes/sorting",
    "passes/streaming": "statistics/bank places/disk/out_of_core",
    "passes/sweep": "statistics/bank passes/selection places/disk/out_of_core",
    "places/disk/checkpoint": "places/disk/out_of_core campaigns/hostile_files",
    "places/disk/drive": "places/disk/out_of_core",
    "places/disk/fits": "places/disk/out_of_core",
    "places/disk/out_of_core": "places/disk/out_of_core",
    "places/disk/rows": "places/disk/out_of_core cli/formats",
    "places/disk/search": "places/disk/out_of_core",
    "places/mesh/drive": "places/mesh/mesh",
    "places/mesh/exchange": "places/mesh/mesh",
    "places/mesh/layout": "places/mesh/mesh",
    "retrieval/gain": "retrieval/gain laws/bad_input",
    "retrieval/growing": "retrieval/growing",
    "retrieval/hubness": "retrieval/hubness laws/bad_input",
    "retrieval/index_vectors": "retrieval/index_vectors laws/bad_input",
    "retrieval/metrics": "retrieval/metrics laws/bad_input",
    "retrieval/prepared": "retrieval/prepared laws/bad_input",
    "retrieval/published": "retrieval/published laws/bad_input",
    "retrieval/search": "retrieval/search laws/bad_input",
    "retrieval/rescoring": "retrieval/rescoring",
    "retrieval/soft": "retrieval/soft laws/bad_input",
    "statistics/bank": "statistics/bank laws/bad_input",
    "statistics/largest": "corrections/baselines laws/bad_input passes/sorting",
    "tuning/bank_checks": "tuning/tune",
    "tuning/choice": "tuning/tune files/state",
    "tuning/grid": "tuning/tune",
    "tuning/held_out": "tuning/tune",
    "tuning/likely_mistakes": "tuning/likely_mistakes",
    "tuning/mixture": "tuning/tune",
    "tuning/proof": "tuning/proof tuning/tune",
    "tuning/split": "tuning/tune",
    "tuning/tune": "tuning/tune",
    "tuning/wrong_pairs": "tuning/wrong_pairs tuning/tune",
}


# They watch what is written, and programs would be: compiled anew in each run.
WATCHING = {"tests/campaigns/test_hostile_files.py", "tests/files/test_faults.py"}


UNKNOWN_SECONDS = 200  # of the processor, for test files that were not run to the end yet


def modules() -> dict[str, pathlib.Path]:
    """`core/numerics` -> its file, of all modules."""
    folder = ROOT / SOURCES
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.py"))
        if path.stem != "__init__"
    }


class Listener:
    """Orders the tests; notes how long each takes and which one fails first."""

    def __init__(self, order: dict[str, tuple[float, ...]]):
        self.order, self.seconds, self.failed = order, {}, None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self.order.get(item.nodeid, (0, 0)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} cannot be imported"


def prepare(folder: pathlib.Path) -> None:
    """Before JAX is imported: settings of all runs. Compiled programs are shared between them."""
    os.environ.update(
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_backend_optimization_level=0",
        JAX_COMPILATION_CACHE_DIR=str(folder / "programs"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        HYPOTHESIS_PROFILE="mutants",
        PYTHONPATH=str(folder / "copy"),
        CI="1",
    )
    import hypothesis
    import jax.numpy
    import optax

    del jax, optax  # imported for the forks
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure is not made small
    hypothesis.settings.register_profile(
        "mutants", deadline=None, derandomize=True, max_examples=10, phases=phases
    )


def copy_of(folder: pathlib.Path) -> pathlib.Path:
    """A copy of what git lists, also of what is changed or not yet committed."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def _run_here(
    copy: pathlib.Path,
    file: str,
    order: dict[str, tuple[float, ...]],
    report: pathlib.Path,
    seconds: float,
) -> None:
    """In the fork: pytest, and what it found to `report`."""
    os.setsid()
    log = os.open(report.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import resource  # where there are forks

    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (16 << 30, 16 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(copy)
    sys.path[0] = str(copy)
    if file in WATCHING:
        import jax

        jax.config.update("jax_compilation_cache_dir", None)
    listener = Listener(order)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["-W", "ignore:Module already imported"]
    code = pytest.main([*options, file], plugins=[listener])
    found = {"code": int(code), "failed": listener.failed, "seconds": listener.seconds}
    report.write_text(json.dumps(found))


def run(
    copy: pathlib.Path, file: str, order: dict[str, tuple[float, ...]], seconds: float
) -> dict[str, Any]:
    """The outcome of a test file, or test, in a fork with so many seconds of the processor."""
    report = copy.parent / "report.json"
    report.unlink(missing_ok=True)
    sys.stdout.flush()
    process = os.fork()
    if not process:
        try:
            _run_here(copy, file, order, report, seconds)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0 if report.is_file() else 70)
    start, late = time.monotonic(), False
    while not (ended := os.wait4(process, os.WNOHANG))[0]:
        if time.monotonic() - start > 4 * seconds + 60:  # asleep, or others take the processor
            late = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it may have started
    usage, status = ended[2], ended[1]
    outcome: dict[str, Any] = {"cpu": round(usage.ru_utime + usage.ru_stime, 2), "failed": None}
    if report.is_file():
        outcome |= json.loads(report.read_text())
        outcome["result"] = "survived" if outcome["code"] == 0 else "killed"
    else:
        killer = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        timeout = late or killer in (signal.SIGXCPU, signal.SIGKILL)
        outcome |= {"result": "timeout" if timeout else "killed", "seconds": {}}
        outcome["failed"] = None if timeout else f"the process ended with status {status}"
    return outcome


class Campaign:
    """Runs mutants one after the other, and remembers what it learned about the tests."""

    def __init__(self, folder: pathlib.Path, tests: dict[str, list[str]]):
        self.copy, self.tests = copy_of(folder), tests
        self.passed: dict[str, dict[str, Any]] = {}  # test file -> a run in which nothing failed
        self.good: dict[str, bool] = {}  # test -> whether it passes without any mutant
        self.killers: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        self.clock = int(time.time())

    def test(self, module: str, mutant: Any) -> dict[str, Any]:
        path = self.copy / SOURCES / f"{module}.py"
        source = path.read_text("utf-8")
        cpu = 0.0
        for file in self.tests[module]:
            known = self.passed.get(file, {"seconds": {}, "cpu": UNKNOWN_SECONDS / 5})
            likely = self.killers[module]
            order = {
                test: (-likely[test], known["seconds"].get(test, 0.0))
                for test in {*likely, *known["seconds"]}
            }
            try:
                self._write(path, mutant.applied(source))
                outcome = run(self.copy, file, order, 20 + 5 * known["cpu"])
            finally:
                self._write(path, source)
            cpu += outcome["cpu"]
            if outcome["result"] == "survived":
                self.passed.setdefault(file, outcome)
            elif self._is_good(outcome["failed"] or file, file):
                break
        if outcome["failed"]:
            likely[outcome["failed"]] += 1
        return {"result": outcome["result"], "failed": outcome["failed"], "cpu": round(cpu, 2)}

    def _is_good(self, test: str, file: str) -> bool:
        """A test that fails with a mutant must pass without."""
        if file in self.passed:
            return True
        if not test.startswith(f"{file}::"):  # the file, or the process
            test = file
        if test not in self.good:
            outcome = run(self.copy, test, {}, 3600)
            self.good[test] = outcome["result"] == "survived"
            if not self.good[test]:
                log = (self.copy.parent / "report.log").read_text()
                print(f"{test} fails without any mutant and does not count:\n{log[-2000:]}")
            elif test == file:
                self.passed[file] = outcome
        return self.good[test]

    def _write(self, path: pathlib.Path, source: str) -> None:
        """With a time of its own: compiled files are told apart by it."""
        path.write_text(source, "utf-8")
        self.clock += 1
        os.utime(path, (self.clock, self.clock))


def summary(results: list[dict[str, Any]], explained: dict[str, str]) -> str:
    counts = collections.Counter(result["result"] for result in results)
    noticed = counts["killed"] + counts["timeout"]
    lines = [
        f"{len(results)} mutants: {counts['killed']} killed, {counts['timeout']} timeouts, "
        f"{counts['survived']} survived; {100 * noticed / max(len(results), 1):.1f} % noticed, "
        f"{sum(result['cpu'] for result in results) / 60:.0f} minutes of the processor"
    ]
    for result in results:
        if result["result"] == "survived":
            name = f"{result['module']}: {result['name']}"
            lines.append(f"  {name} (line {result['line']})\n      {explained.get(name, '?')}")
    return "\n".join(lines)


def _path(name: str) -> str:
    """`statistics/bank` and `statistics/bank::test_name` to what pytest takes."""
    file, _, test = name.partition("::")
    folder, _, stem = file.rpartition("/")
    return f"tests/{folder}/test_{stem}.py" + (f"::{test}" if test else "")


def main() -> None:
    import mutants

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("mutants.jsonl"))
    parser.add_argument("--again", action="store_true", help="run unexplained survivors once more")
    parser.add_argument("--folder", type=pathlib.Path, help="of the copy and compiled programs")
    parser.add_argument("--only", help="modules as core/numerics, separated by commas")
    options = parser.parse_args()
    sources = {name: path.read_text("utf-8") for name, path in modules().items()}
    sources = {name: text for name, text in sources.items() if name in TESTS}
    chosen = mutants.sample(sources, options.mutants, options.seed)
    explained = json.loads(EXPLAINED.read_text("utf-8"))
    done: dict[tuple[str, str], dict[str, Any]] = {}
    if options.results.is_file():
        for line in options.results.read_text("utf-8").splitlines():
            result = json.loads(line)
            done[result["module"], result["name"]] = result
    tests = {module: list(map(_path, names.split())) for module, names in TESTS.items()}
    with tempfile.TemporaryDirectory() as temporary, options.results.open("a") as to:
        folder = (options.folder or pathlib.Path(temporary)).resolve()
        folder.mkdir(exist_ok=True)
        prepare(folder)
        campaign = Campaign(folder, tests)
        for result in done.values():
            if result["failed"]:
                campaign.killers[result["module"]][result["failed"]] += 1
        for module, mutant in chosen:
            old = done.get((module, mutant.name))
            if options.only and module not in options.only.split(","):
                continue
            unexplained = f"{module}: {mutant.name}" not in explained
            if old and not (options.again and unexplained and old["result"] == "survived"):
                continue
            about = {"module": module, "name": mutant.name, "kind": mutant.kind}
            result = {**about, "line": mutant.line, **campaign.test(module, mutant)}
            done[module, mutant.name] = result
            to.write(json.dumps(result) + "\n")
            to.flush()
            print(f"{result['result']:9}{result['cpu']:6} s  {module}: {mutant.name}", flush=True)
    known = [
        done[module, mutant.name] for module, mutant in chosen if (module, mutant.name) in done
    ]
    print(summary(known, explained))


if __name__ == "__main__":
    main()
