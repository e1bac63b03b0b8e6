"""Several processes at once: rivals for one output, readers of a file that is replaced, threads.

    python tests/campaigns/concurrency.py --rounds 20 --seed 1

Rivals: several `dbnorm fit` with one output; those that end well leave the whole result, the others
are refused with a line. Readers: `search` and `export` while a `fit` replaces the correction that
they read; what they write is that of the old or the new one. Choices: `tune` and `fit --method
auto` with 1, 2 and 4 threads, with and without threads inside a product, on one processor, and with
other seeds of Python's hashes; the choice must be the same, and of equal settings every byte.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import random
import shutil
import sys
import tempfile
import time

import processes
from processes import BANK, JOBS, NEW, OLD, REFUSED

import dbnorm_jax as dbn

RIVALS = 4
REFUSAL = "expected no other process that fits it, got one at work"


@dataclasses.dataclass
class Outcome:
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    broken: list[str] = dataclasses.field(default_factory=list)

    def found(self, what, said):
        self.counts[what] += 1
        self.broken += said


# --- rivals --------------------------------------------------------------------------------------


def rivals(place, job, whole, outcome, count=RIVALS):
    """Several processes of one job: one result, whole, and nothing beside it."""
    place.clear()
    running = [place.start(job.arguments(NEW, place.out)) for _ in range(count)]
    ends = [processes.ended(process) for process in running]
    for code, err in ends:
        refused = code == REFUSED and REFUSAL in err and len(err.splitlines()) == 1
        said = [] if code == 0 or refused else [f"rivals: exit code {code}: {err[-500:]}"]
        outcome.found("refused" if code else "done", said)
    if not any(code == 0 for code, _ in ends):
        outcome.broken.append("rivals: none was done")
    if processes.contents(place.out) != whole[NEW]:
        outcome.broken.append(f"rivals: {sorted(processes.contents(place.out))} was left")


# --- readers -------------------------------------------------------------------------------------

CORRECTION = "out/fitted.npz"
READERS = {
    "search": (("search", "queries.npy", "gallery.npy"), "found.npz"),
    "export": (("export", "gallery.npy"), "index"),
}


class Reader:
    """A command that reads the correction, and what it writes under the old and the new one."""

    def __init__(self, place, name, whole):
        self.place, self.name = place, name
        words, output = READERS[name]
        self.folder = place.folder / f"{name}-out"
        words = (*JOBS["fit"].program, *words, "--correction", CORRECTION, "--force")
        self.arguments = [*words, "--output", str(self.folder / output)]
        self.expected = {}
        for variant in (OLD, NEW):
            place.clear(whole[variant])
            self.start()
            processes.must(processes.ended(self.process))
            self.expected[variant] = processes.contents(self.folder)
        if self.expected[OLD] == self.expected[NEW]:
            raise RuntimeError(
                f"expected other results of another correction, got the same: {name}"
            )

    def start(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.process = self.place.start(self.arguments)

    def end(self, outcome):
        code, err = processes.ended(self.process)
        found = processes.contents(self.folder)
        seen = next((name for name, whole in self.expected.items() if found == whole), None)
        said = [] if code == 0 else [f"{self.name}: exit code {code}: {err[-500:]}"]
        if seen is None:
            said.append(f"{self.name}: of neither the old nor the new correction")
        outcome.found(f"{self.name} of the {seen} one", said)


def readers(place, job, whole, duration, reading, outcome, generator):
    """Commands that read a correction while it is replaced, which takes some seconds."""
    place.clear(whole[OLD])
    writer = place.start(job.arguments(NEW, place.out, "--force"))
    begun = time.monotonic()
    moments = sorted(generator.uniform(0, duration) for _ in reading)
    for moment, reader in zip(moments, generator.sample(reading, len(reading)), strict=True):
        time.sleep(max(0, begun + moment - time.monotonic()))
        reader.start()
    for reader in reading:
        reader.end(outcome)
    code, err = processes.ended(writer)
    outcome.found("replaced", [] if code == 0 else [f"writer: exit code {code}: {err[-500:]}"])


# --- choices -------------------------------------------------------------------------------------

PAIRS = ("--bank-pairs", "rows")
CHOOSING = {
    "tune": ("tune", "bank.npy", "bank_items.npy", *PAIRS, "--gallery", "gallery.npy"),
    "fit --method auto": (
        *("fit", "gallery.npy", *BANK, "--gallery-bank", "bank_items.npy"),
        *("--method", "auto", *PAIRS),
    ),
}
ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
# How many threads XLA takes is what NPROC says.
SETTINGS = {f"{threads} threads": {"NPROC": str(threads)} for threads in (1, 2, 4)}
SETTINGS |= {"no threads in a product": ONE_THREAD}
ON_ONE_PROCESSOR = "on one processor"
HASHES = {f"hashes of {seed}": {"PYTHONHASHSEED": seed} for seed in ("0", "1", "2")}


def choice_of(path):
    """What was chosen: the method, and the shares of what is mixed, without the evidence."""
    state = dbn.load(path)
    if isinstance(state, dbn.tuning.Choice):
        return state.name, {str(part): part.frequency for part in state.mixture}
    chosen = dbn.read_provenance(path)["choice"]
    shares = [(part.pop("frequency"), part) for part in chosen["mixture"]]
    return chosen["method"], {json.dumps(part): share for share, part in shares}


def choices(place, name, outcome):
    """The same choice under all settings; the same bytes where only hashes differ."""
    found, wholes = {}, {}
    settings = SETTINGS | HASHES
    if shutil.which("taskset"):
        settings |= {ON_ONE_PROCESSOR: {}}
    for setting, changes in settings.items():
        place.clear()
        path = place.out / "chosen.npz"
        words = [*JOBS["fit"].program, *CHOOSING[name], "--output", str(path)]
        # Programs that other settings compiled are not taken.
        cache = place.folder / f"programs {json.dumps(changes)}"
        kept = {} if setting in HASHES else {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        prefix = ["taskset", "-c", "0"] if setting == ON_ONE_PROCESSOR else []
        processes.must(processes.ended(place.start(words, prefix, **kept, **changes)))
        found[setting], wholes[setting] = choice_of(path), path.read_bytes()
    first = next(iter(found.values()))
    for setting, choice in found.items():
        other = choice[0] != first[0] or choice[1].keys() != first[1].keys()
        said = [f"{name} {setting}: chose {choice}, not {first}"] if other else []
        outcome.found(f"{name}: {choice[0]}", said)
        if choice != first and not other:
            outcome.counts[f"{name}: other last digits of its parameters"] += 1
    if len({wholes[setting] for setting in HASHES}) > 1:
        outcome.broken.append(f"{name}: other bytes under other seeds of hashes")
    outcome.counts[f"{name}: different files of {len(wholes)} settings"] += len({*wholes.values()})


# --- campaigns -----------------------------------------------------------------------------------


def campaign(place, rounds, seed, *, choosing=tuple(CHOOSING), tell=lambda outcome: None):
    outcome, job = Outcome(), JOBS["fit"]
    whole = place.undisturbed(job)
    begun = time.monotonic()
    place.clear()
    processes.must(place.run(job.arguments(NEW, place.out)))
    duration = time.monotonic() - begun
    reading = [Reader(place, name, whole) for name in READERS] if rounds else []
    for number in range(rounds):
        rivals(place, job, whole, outcome)
        generator = random.Random(f"{seed} {number}")
        readers(place, job, whole, duration, reading, outcome, generator)
        tell(outcome)
    for name in choosing:
        choices(place, name, outcome)
        tell(outcome)
    if rounds and not outcome.counts["refused"]:
        outcome.broken.append("rivals: none was refused, so that none was at work with another")
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(processes.about(options.seed), flush=True)
    told = 0

    def tell(outcome):
        nonlocal told
        for line in outcome.broken[told:]:
            print(line, flush=True)
        told = len(outcome.broken)

    with tempfile.TemporaryDirectory() as name:
        place = processes.Place(pathlib.Path(name))
        outcome = campaign(place, options.rounds, options.seed, tell=tell)
    tell(outcome)
    for what, count in sorted(outcome.counts.items()):
        print(f"{what}: {count}")
    print(f"{options.rounds} rounds; {len(outcome.broken)} promises broken")
    sys.exit(bool(outcome.broken))


if __name__ == "__main__":
    main()
