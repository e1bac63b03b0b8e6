"""Kills of `dbnorm` at random moments: what it leaves is absent, the earlier output, or whole.

    python tests/campaigns/kills.py --kills 200 --seed 1

Each kill is of a process of its own that runs `fit` with checkpoints, `search`, `export`,
`evaluate` or `inspect`, over no earlier output or over one of other options; three of four by
SIGKILL, the rest by SIGTERM. Two of three moments are drawn from the time that the command takes
undisturbed, every third shortly after it began to write. Afterwards the same command is given
again: the result must be that of an undisturbed run, byte for byte, and nothing else may stand
there. A kill lands where the command had not ended; three quarters must.

A kill depends on its seed and number, and on how fast the machine is: `--first N --kills 1`.
"""

import argparse
import collections
import dataclasses
import pathlib
import random
import signal
import statistics
import sys
import tempfile
import time

import processes
from processes import JOBS, NEW, OLD

from dbnorm_jax._src.files import archives
from dbnorm_jax._src.places.disk import checkpoint

RUNS = 3  # undisturbed, for the time that a command takes
LANDED = 0.75  # of the kills, at least


@dataclasses.dataclass
class Outcome:
    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    landed: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    states: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    broken: list[str] = dataclasses.field(default_factory=list)

    @property
    def enough(self):
        return self.landed.total() >= LANDED * self.kills.total()


class Undisturbed:
    """What a job writes by variant, and how long it takes: the median of a few runs."""

    def __init__(self, place, job, runs):
        self.contents = place.undisturbed(job)
        durations = []
        for _ in range(runs):
            place.clear()
            begun = time.monotonic()
            processes.must(place.run(job.arguments(NEW, place.out)))
            durations.append(time.monotonic() - begun)
            if processes.contents(place.out) != self.contents[NEW]:
                raise RuntimeError(f"expected the same bytes of every run, got others: {job}")
        self.duration = statistics.median(durations)


def begins_to_write(folder):
    return any(".tmp-" in path.name for path in folder.rglob(".*"))


def wait(generator, place, process, duration):
    """Until a random moment of the run, or of the milliseconds after it began to write."""
    if generator.random() < 2 / 3:
        time.sleep(generator.uniform(0, duration))
        return
    begun = time.monotonic()
    while not begins_to_write(place.out) and process.poll() is None:
        if time.monotonic() - begun > 3 * duration:
            return
        time.sleep(0.0005)
    time.sleep(generator.uniform(0, 0.02))


def execute(place, job, undisturbed, generator):
    """One kill -> (whether it landed, what was there afterwards, what is not as promised)."""
    terminated = generator.random() < 1 / 4
    earlier = undisturbed.contents[OLD] if generator.random() < 1 / 2 else {}
    new = undisturbed.contents[NEW]
    place.clear(earlier)
    process = place.start(job.arguments(NEW, place.out, *["--force"] * bool(earlier)))
    wait(generator, place, process, undisturbed.duration)
    process.send_signal(signal.SIGTERM if terminated else signal.SIGKILL)
    code, err = processes.ended(process)
    found = processes.contents(place.out)
    # Before the command handles SIGTERM, and after, it ends the process as any other.
    if terminated:
        killed, codes = False, (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    else:
        killed, codes = True, (0, -signal.SIGKILL)
    said = [] if code in codes else [f"exit code {code}: {err.strip()[-500:]}"]
    said += processes.judge(job, found, earlier, new, killed=killed)
    said += unreadable(place, job)
    results = {name: found[name] for name in new if name in found}
    wholes = {"new": new, "earlier": earlier}.items()
    state = next((what for what, whole in wholes if results == whole), "between")
    state = "nothing" if not results else state
    state += ", files on their way" * (found.keys() > results.keys())
    # What was written has to be allowed to go; otherwise nothing left may hold up the next one,
    # and a fit is to go on.
    force = earlier or (results and not job.checkpoints)
    again = place.run(job.arguments(NEW, place.out, *["--force"] * bool(force)))
    if again[0]:
        said.append(f"the command again: exit code {again[0]}: {again[1].strip()[-500:]}")
    rest = processes.contents(place.out)
    for name in sorted({*rest, *new}):
        if rest.get(name) != new.get(name):
            what = "differs" if name in rest and name in new else "is missing"
            said.append(f"the command again: {name} {'was left' if name not in new else what}")
    return code != 0, state, said


def unreadable(place, job):
    """Checkpoints that are not whole, by their checksum."""
    for name in job.checkpoints:
        if (place.out / name).exists():
            try:
                archives.read(place.out / name, checkpoint._FIELDS)
            except (ValueError, OSError) as error:
                yield f"{name}: {error}"


def campaign(place, numbers, seed, jobs, *, runs=RUNS, tell=lambda line: None):
    """Kills of these numbers, of the jobs in turn."""
    outcome, known = Outcome(), {}
    names = list(jobs)
    for number in numbers:
        name = names[number % len(names)]
        job = jobs[name]
        if name not in known:
            known[name] = Undisturbed(place, job, runs)
            tell(f"{name} takes {known[name].duration:.2f} s")
        generator = random.Random(f"{seed} {number}")
        landed, state, said = execute(place, job, known[name], generator)
        outcome.kills[name] += 1
        outcome.landed[name] += landed
        outcome.states[state] += landed
        for what in said:
            outcome.broken.append(f"--seed {seed} --first {number} --kills 1: {name}: {what}")
            tell(outcome.broken[-1])
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    print(processes.about(options.seed), flush=True)
    numbers = range(options.first, options.first + options.kills)
    with tempfile.TemporaryDirectory() as name:
        place = processes.Place(pathlib.Path(name))
        place.correction()
        outcome = campaign(
            place, numbers, options.seed, JOBS, tell=lambda line: print(line, flush=True)
        )
    for name, count in outcome.kills.items():
        print(f"{name}: {outcome.landed[name]} of {count} kills landed")
    for state, count in outcome.states.most_common():
        print(f"found after {count} of them: {state}")
    landed, kills = outcome.landed.total(), outcome.kills.total()
    enough = "" if outcome.enough else f", too few: at least {LANDED:.0%} must"
    print(f"{kills} kills, {landed} landed{enough}; {len(outcome.broken)} promises broken")
    sys.exit(bool(outcome.broken) or not outcome.enough)


if __name__ == "__main__":
    main()
