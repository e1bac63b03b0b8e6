"""Disks that fill up at random places of an output: the earlier one stays, and a line names it.

    python tests/campaigns/full_disks.py --draws 60 --seed 1

Each draw runs a command that writes to a file system of its own in memory, with room for a part of
what the command writes: checkpoints, temporary files, the result. Where none can be mounted, which
takes privileges, a limit on the size of each file stands in. A command that is refused must say so
in one line that names the output, and leave what stood there before, or nothing; a fit may leave
its checkpoint. Once there is room the same command must give what an undisturbed run gives.
"""

import argparse
import collections
import contextlib
import dataclasses
import pathlib
import random
import re
import subprocess
import sys
import tempfile

import processes
from processes import JOBS, NEW, OLD, REFUSED
from systems import limited, resource

PAGE = 4096
FULL = r"dbnorm: error: .*{output}.*: (No space left on device|File too large)"


@dataclasses.dataclass
class Outcome:
    draws: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    broken: list[str] = dataclasses.field(default_factory=list)


class Mounted:
    """A file system in memory with room for so many pages of 4 KiB."""

    kind = "a file system in memory"

    def __init__(self, place):
        self.place = place

    @contextlib.contextmanager
    def room(self, earlier, new, generator):
        """Holds what is there and a part of the new; gives the function that makes more room."""
        free = generator.randint(1, max(2, int(1.5 * pages(new))))
        mount = ["mount", "-t", "tmpfs", "none", str(self.place.out)]
        # Each file and folder takes a page more on some systems.
        size = PAGE * (pages(earlier) + free)
        subprocess.run([*mount, "-o", f"size={size}"], check=True, capture_output=True)
        try:
            self.place.fill(earlier)
            yield lambda: subprocess.run(
                [*mount, "-o", f"remount,size={2**24}"], check=True, capture_output=True
            )
        finally:
            subprocess.run(["umount", str(self.place.out)], check=True)


class Limited:
    """Files of at most so many bytes."""

    kind = "a limit on the size of files"

    def __init__(self, place):
        self.place = place

    @contextlib.contextmanager
    def room(self, earlier, new, generator):
        self.place.fill(earlier)
        with contextlib.ExitStack() as stack:
            most = generator.randint(1, max(map(len, new.values())))
            stack.enter_context(limited("RLIMIT_FSIZE", most))
            yield stack.close


def pages(found):
    return sum(-(-len(data) // PAGE) for data in found.values())


def disk(place):
    """What can be had here."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={PAGE}", "none", str(place.out)]
    with contextlib.suppress(OSError):
        if not subprocess.run(mount, check=False, capture_output=True).returncode:
            subprocess.run(["umount", str(place.out)], check=True)
            return Mounted(place)
    if resource is None:
        sys.exit("expected a file system in memory, or limits on files, got neither; no draws made")
    return Limited(place)


def execute(place, filling, job, whole, generator):
    """One draw -> (whether the command was refused, what is not as promised)."""
    earlier = whole[OLD] if generator.random() < 1 / 2 else {}
    place.clear()
    with filling.room(earlier, whole[NEW], generator) as make_room:
        before = processes.contents(place.out)
        code, err = place.run(job.arguments(NEW, place.out, *["--force"] * bool(earlier)))
        make_room()
        found = processes.contents(place.out)
        said = []
        if code == REFUSED:
            line = FULL.format(output=re.escape(job.output))
            if not re.fullmatch(line, err.strip()):
                said.append(f"said {err.strip()[-500:]}")
            rest = {name: data for name, data in found.items() if name not in job.checkpoints}
            if rest != before:
                said.append(f"left {sorted(rest)} where there was {sorted(before)}, or changed it")
        elif code:
            said.append(f"exit code {code}: {err.strip()[-500:]}")
        elif found != whole[NEW]:
            said.append(f"ended well, and left {sorted(found)}, not the whole result")
        # A result that is there, earlier or whole, has to be allowed to go.
        again = place.run(job.arguments(NEW, place.out, *["--force"] * bool(earlier or not code)))
        if again[0]:
            said.append(f"the command again: exit code {again[0]}: {again[1].strip()[-500:]}")
        elif processes.contents(place.out) != whole[NEW]:
            said.append(f"the command again: gave other than {sorted(whole[NEW])}")
    return code == REFUSED, said


def campaign(place, filling, numbers, seed, jobs, *, tell=lambda line: None):
    """Draws of these numbers, of the jobs in turn."""
    outcome, known = Outcome(), {}
    names = list(jobs)
    for number in numbers:
        name = names[number % len(names)]
        if name not in known:
            known[name] = place.undisturbed(jobs[name])
        generator = random.Random(f"{seed} {number}")
        refused, said = execute(place, filling, jobs[name], known[name], generator)
        outcome.draws[name] += 1
        outcome.refused[name] += refused
        for what in said:
            outcome.broken.append(f"--seed {seed} --first {number} --draws 1: {name}: {what}")
            tell(outcome.broken[-1])
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    print(processes.about(options.seed), flush=True)
    numbers = range(options.first, options.first + options.draws)
    with tempfile.TemporaryDirectory() as name:
        place = processes.Place(pathlib.Path(name))
        filling = disk(place)
        print(f"filled: {filling.kind}", flush=True)
        place.correction()
        outcome = campaign(
            place, filling, numbers, options.seed, JOBS, tell=lambda line: print(line, flush=True)
        )
    for name, count in outcome.draws.items():
        print(f"{name}: {outcome.refused[name]} of {count} draws were refused")
    draws, refused = outcome.draws.total(), outcome.refused.total()
    enough = 2 * refused >= draws
    few = "" if enough else ", too few: at least half must be"
    print(f"{draws} draws, {refused} refused{few}; {len(outcome.broken)} promises broken")
    sys.exit(bool(outcome.broken) or not enough)


if __name__ == "__main__":
    main()
