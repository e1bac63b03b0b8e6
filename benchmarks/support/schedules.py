"""Cycles of a TPU's final schedule, read off the bundles that its compiler writes.

A bundle is what one core issues in one cycle. Those of a loop count as often as it runs. Waiting
for memory is not in them: the bytes of a step say what that takes at least. Imports no JAX.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

# Flags of the compiler: the last text of every step, and no other.
FLAGS = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=final_bundles"
)
_FILE = re.compile(r"\d+-(.*)-\d+-final_bundles\.txt")
# Address, label, one mark per loop around it, and what is issued.
_BUNDLE = re.compile(r"\s*0(?:x[0-9a-f]+)?\s+(LB|LE|LH|PB|PF|CT)?\s*:\s*((?:> ?)*)\s*(\{.*)")
_EXIT = re.compile(r"scmp\.(?:ge|gt|eq)\.s32\.totalorder [%\w]+, (\d+)\s*/\* loop exit test")
_COUNTED = re.compile(r"scmp\.ge\.s32\.totalorder [%\w]+, (\d+)")
# Of a loop whose loads run one round ahead and whose stores one behind.
_AHEAD = "stage = "


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Cycles of one step; loops whose number of rounds it does not say count once."""

    cycles: int
    open_loops: int


@dataclasses.dataclass
class _Loop:
    depth: int
    cycles: int = 0
    rounds: int | None = None
    counted: int | None = None
    is_ahead: bool = False

    def total(self) -> tuple[int, bool]:
        """Cycles of all rounds, and whether their number is known."""
        rounds = self.counted if self.rounds is None else self.rounds
        if rounds is None:
            return self.cycles, False
        ahead = 2 if self.is_ahead and rounds > 2 else 0
        return self.cycles * max(1, rounds - ahead), True


def read(lines: Iterable[str]) -> Schedule:
    """The schedule of one step."""
    loops, open_loops, depth = [_Loop(0)], 0, 0

    def close() -> None:
        nonlocal open_loops
        cycles, is_known = loops.pop().total()
        loops[-1].cycles += cycles
        open_loops += not is_known

    for line in lines:
        bundle = _BUNDLE.match(line)
        if bundle is None:
            continue
        label, marks, issued = bundle.groups()
        if marks or not issued.startswith("{}"):  # empty ones are not marked
            depth = marks.count(">")
        while len(loops) > 1 and (
            loops[-1].depth > depth or (label == "LB" and loops[-1].depth == depth)
        ):
            close()
        if label == "LB":
            loops.append(_Loop(depth))
        loop = loops[-1]
        loop.cycles += 1
        loop.is_ahead |= _AHEAD in issued
        if loop.depth == depth:
            tested, counted = _EXIT.search(issued), _COUNTED.findall(issued)
            loop.rounds = int(tested[1]) if tested else loop.rounds
            loop.counted = int(counted[-1]) if counted else loop.counted
    while len(loops) > 1:
        close()
    return Schedule(loops[0].cycles, open_loops)


def read_folder(folder: Path) -> dict[str, Schedule]:
    """Of every step in a folder of dumps, by its name."""
    found = {}
    for path in sorted(folder.iterdir()):
        name = _FILE.fullmatch(path.name)
        if name and "schedule-analysis" not in path.name:
            with path.open(encoding="utf-8", errors="replace") as lines:
                found[name[1]] = read(lines)
    return found
