"""Random calls of all public functions: neither memory nor compiled programs grow without end.

    python tests/campaigns/calls.py --minutes 30 --seed 1

The calls are those of the law tests: `test_bad_numbers.py` (every public function that takes
arrays), `test_programs.py` (any number of queries), every method of the table on the shapes of
`cases.py`, and state files. First each is made once with each of its sizes; then they are drawn at
random. The resident memory of the last third of that time may lie at most `MEMORY` above that of
the second third, at their medians; and so few programs as `PROGRAMS` says may be compiled after
all shapes were seen.
"""

import argparse
import collections
import dataclasses
import pathlib
import random
import statistics
import sys
import tempfile
import time

import jax
import processes
import systems

import dbnorm_jax as dbn

MEMORY = 16 * 2**20  # bytes
PROGRAMS = 0
COMPILED = "/jax/core/compile/backend_compile_duration"
BETWEEN = 1.0  # seconds, of two looks at the memory
LOOKS = 9  # at least, to speak of thirds


def table(folder):
    """Name -> (function of a size, its sizes)."""
    sys.path.append(str(processes.ROOT / "tests" / "laws"))
    import cases
    import test_bad_numbers as numbers
    import test_programs as programs

    found = {}
    for name, (call, arrays) in numbers.ENTRIES.items():
        found[f"entry {name}"] = (
            lambda _, call=call, arrays=arrays: call(**copies(arrays)),
            (0,),
        )
    for name, call in numbers.WEIGHTED.items():
        found[f"weights {name}"] = (lambda _, call=call: call(numbers.MULTIPLES.copy()), (0,))
    for name, (call, _, rows) in numbers.ROWS.items():
        found[f"rows {name}"] = (lambda _, call=call, rows=rows: call(rows.copy()), (0,))
    for name, (call, _) in programs.REQUESTS.items():
        found[f"queries {name}"] = (call, programs.SIZES)
    for name, (call, _) in programs.MATRICES.items():
        found[f"scores {name}"] = (call, (2, 3, 7))
    problems = [cases.problem(0, shape) for shape in cases.SHAPES]
    for name in cases.FITS:
        found[f"fit {name}"] = (lambda size, name=name: fit(cases, name, problems[size]), (0, 1, 2))
    for name in cases.SCORED:
        found[f"score {name}"] = (
            lambda size, name=name: score(cases, name, problems[size]),
            (0, 1, 2),
        )
    states = [dbn.bank_statistics(test.query_bank_similarities, beta=2.0) for test in problems]
    found["save and load"] = (lambda size: saved(folder / "state.npz", states[size]), (0, 1, 2))
    return found


def copies(arrays):
    """So that nothing is kept by what it is."""
    return {name: array.copy() for name, array in arrays.items()}


def fit(cases, name, test):
    return cases.fit(name, test.query_bank.copy(), test.gallery.copy(), test.gallery_bank.copy())


def score(cases, name, test):
    parts = (test.queries, test.gallery, test.query_bank, test.gallery_bank)
    return cases.score(name, *(part.copy() for part in parts))


def saved(path, state):
    dbn.save(path, state)
    return dbn.load(path), dbn.read_provenance(path)


@dataclasses.dataclass
class Outcome:
    calls: int = 0
    first: int = 0  # programs compiled until all shapes were seen
    later: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    memory: list[int] = dataclasses.field(default_factory=list)  # bytes, at equal times

    @property
    def thirds(self):
        """Medians of the resident memory."""
        third = len(self.memory) // 3
        parts = (self.memory[part * third : (part + 1) * third] for part in range(3))
        return [statistics.median(part) for part in parts]

    @property
    def broken(self):
        said = []
        if self.later.total() > PROGRAMS:
            said.append(
                f"{self.later.total()} programs were compiled after all shapes were seen, of which "
                f"{PROGRAMS} may be: {dict(self.later.most_common(9))}"
            )
        if len(self.memory) < LOOKS:
            said.append("the time was too short to see whether memory levels off")
        elif (grown := self.thirds[2] - self.thirds[1]) > MEMORY:
            said.append(f"memory grew by {mib(grown)} from the second third to the last")
        return said


def mib(size):
    return f"{size / 2**20:.1f} MiB"


def campaign(found, seconds, seed, *, memory=None, between=BETWEEN, tell=lambda line: None):
    """All calls once, then random ones; `memory` gives the bytes that this process has."""
    memory = memory or (lambda: systems.memory("resident"))
    outcome, generator = Outcome(), random.Random(seed)
    compiled = 0

    def listen(event, *_, **__):
        nonlocal compiled
        compiled += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        everything = [(name, size) for name, (_, sizes) in found.items() for size in sizes]
        generator.shuffle(everything)
        for name, size in everything:
            jax.block_until_ready(found[name][0](size))
        outcome.first, outcome.calls = compiled, len(everything)
        tell(f"{outcome.first} programs in {outcome.calls} calls, {mib(memory())}")
        begun = looked = time.monotonic()
        while (now := time.monotonic()) - begun < seconds:
            before = compiled
            name, size = generator.choice(everything)
            jax.block_until_ready(found[name][0](size))
            outcome.calls += 1
            outcome.later[name] += compiled - before
            if now - looked >= between:
                outcome.memory.append(memory())
                looked = now
        outcome.later = +outcome.later
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="one of so many calls of the tables")
    options = parser.parse_args()
    print(processes.about(options.seed), flush=True)
    with tempfile.TemporaryDirectory() as name:
        found = table(pathlib.Path(name))
        chosen = {key: found[key] for key in [*found][:: options.every]}
        print(f"{len(chosen)} of {len(found)} calls of the tables", flush=True)
        outcome = campaign(
            chosen, 60 * options.minutes, options.seed, tell=lambda line: print(line, flush=True)
        )
    for name, count in outcome.later.most_common():
        print(f"compiled again {count} times: {name}")
    if len(outcome.memory) >= LOOKS:
        print("resident memory in thirds of the time: " + ", ".join(map(mib, outcome.thirds)))
    for line in outcome.broken:
        print(line)
    print(
        f"{outcome.calls} calls, {options.minutes:g} minutes; {len(outcome.broken)} bounds broken"
    )
    sys.exit(bool(outcome.broken))


if __name__ == "__main__":
    main()
