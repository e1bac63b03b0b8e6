"""What an optimized program does, read off its text: steps, how often each runs, bytes they move.

The text is that of `jax.stages.Compiled.as_text()`. XLA's own sums count the body of a loop once;
here it counts as often as it runs. Imports no JAX.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.<>-]+) .*\{$")
_STEP = re.compile(r"^\s+(ROOT )?%?([\w.<>-]+) = (.*)$")
_NAME = re.compile(r"%([\w.<>-]+)")
# They name, group or wait for arrays, and move nothing.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
}
_PARTS = {"slice", "dynamic-slice", "gather"}
# They read as much as they write.
_COPIES = _PARTS | {"copy"}
_SAME = {"bitcast", "copy", "convert", "reshape"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One instruction."""

    name: str
    opcode: str
    result: str  # its type
    operands: tuple[str, ...]
    argument: str  # what stands in its parentheses
    attributes: str
    is_root: bool

    def called(self, attribute: str) -> list[str]:
        """Computations that an attribute names."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.<>-]+)", self.attributes)
        return _NAME.findall(found[1]) if found else []

    @property
    def source(self) -> str:
        """The last part of the operation's name in JAX, or the opcode."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1].rsplit("/", 1)[-1] if found and found[1] else self.opcode


@dataclasses.dataclass(frozen=True)
class Run:
    """A step where it runs."""

    step: Step
    times: int
    bytes_once: int  # read from and written to the device's memory, each time

    @property
    def traffic(self) -> int:
        """Bytes in all."""
        return self.times * self.bytes_once


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, and which of them is run."""

    computations: Mapping[str, Sequence[Step]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Reads the text of a module."""
        computations: dict[str, list[Step]] = {}
        steps, entry = None, None
        for line in text.splitlines():
            head = _HEAD.match(line)
            if head and not line.startswith("HloModule"):
                steps = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
                continue
            body = _STEP.match(line)
            if body and steps is not None:
                steps.append(_step(body))
        if entry is None:
            raise ValueError("expected the text of an optimized module, got none with an ENTRY")
        return cls(computations, entry)

    def runs(self) -> Iterator[Run]:
        """Every step that moves or computes something.

        Of a choice by the data the branch that moves less counts, or the shorter of two.
        """
        yield from self._runs(self.entry, 1)

    def _runs(self, name: str, times: int) -> Iterator[Run]:
        steps = self.computations[name]
        types = {step.name: step.result for step in steps}
        for step in steps:
            if step.opcode == "while":
                trips = self.trips(step)
                for body in step.called("body"):
                    yield from self._runs(body, times * (1 if trips is None else trips))
            elif step.opcode == "conditional":
                names = ("branch_computations", "true_computation", "false_computation")
                branches = [branch for name in names for branch in step.called(name)]
                yield from self._runs(min(branches, key=self._weight), times)
            elif step.opcode == "call":
                for body in step.called("to_apply"):
                    yield from self._runs(body, times)
            elif step.opcode not in _FREE and not step.opcode.endswith("-done"):
                yield Run(step, times, self._bytes(step, types))

    def _weight(self, name: str) -> tuple[int, int]:
        """Bytes that a computation moves, and its steps with those fused into them."""
        runs = list(self._runs(name, 1))
        fused = [called for each in runs for called in each.step.called("calls")]
        return sum(each.traffic for each in runs), len(runs) + sum(
            len(self.computations[called]) for called in fused
        )

    def open_loops(self) -> list[str]:
        """Loops whose number of steps depends on the data; each counts once."""
        whiles = (step for steps in self.computations.values() for step in steps)
        return [each.name for each in whiles if each.opcode == "while" and not self.trips(each)]

    def trips(self, loop: Step) -> int | None:
        """How often a loop runs, or None where the program does not say."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        (condition,) = loop.called("condition")
        steps = self.computations[condition]
        whole = {
            step.name: int(step.argument)
            for step in steps
            if step.opcode == "constant" and step.argument.lstrip("-").isdigit()
        }
        # A counter from 0 is compared with a constant, in the condition itself or in its root.
        (root,) = (step for step in steps if step.is_root)
        limits = [whole[name] for name in root.operands if name in whole]
        return limits[0] if len(limits) == 1 else None

    def _bytes(self, step: Step, types: Mapping[str, str]) -> int:
        operands = [types.get(name, "") for name in step.operands]
        if step.opcode.removesuffix("-start") in _COPIES:
            made = _begun(step.result) if step.opcode.endswith("-start") else step.result
            return memory(made) + _bytes_of(made) * bool(memory(operands[0]))
        if step.opcode == "dynamic-update-slice":
            return _bytes_of(operands[1]) * bool(memory(step.result)) + memory(operands[1])
        inner = step.called("calls") if step.opcode == "fusion" else []
        if not inner:
            return memory(step.result) + sum(map(memory, operands))
        read = 0
        for operand, name in zip(operands, self._inputs(inner[0]), strict=True):
            part = self._part_read(inner[0], name)
            read += memory(operand) if part is None else min(memory(operand), part)
        return read + self._written(self.computations[inner[0]], step.result)

    def _inputs(self, computation: str) -> list[str]:
        """The names of its parameters, in order."""
        steps = self.computations[computation]
        inputs = [step for step in steps if step.opcode == "parameter"]
        return [step.name for step in sorted(inputs, key=lambda step: int(step.argument))]

    def _part_read(self, computation: str, name: str) -> int | None:
        """Bytes that a computation reads of an array it only takes parts of; None = all of it."""
        total = 0
        for step in self.computations[computation]:
            if name not in step.operands:
                continue
            first = step.operands[0] == name
            if step.opcode in _PARTS and first:
                part: int | None = _bytes_of(step.result)
            elif step.opcode == "dynamic-update-slice" and first:
                part = 0
            elif step.opcode in _SAME:
                part = self._part_read(computation, step.name)
            elif step.opcode == "fusion":
                (inner,) = step.called("calls")
                part = self._part_read(inner, self._inputs(inner)[step.operands.index(name)])
            else:
                return None
            if part is None:
                return None
            total += part
        return total

    @staticmethod
    def _written(steps: Sequence[Step], result: str) -> int:
        """Bytes of the results; of one that is updated in place those of the update."""
        types = {step.name: step.result for step in steps}
        updates = {
            _shape(step.result): _bytes_of(types[step.operands[1]])
            for step in steps
            if step.opcode == "dynamic-update-slice"
        }
        total = 0
        for array in _ARRAY.finditer(result):
            whole = memory(array[0])
            total += min(whole, updates.get(_shape(array[0]), whole))
        return total


def memory(result: str) -> int:
    """Bytes of a type, or of each in a tuple, that lie in the device's memory, not on the chip."""
    return sum(
        _size(array) for array in _ARRAY.finditer(result) if not re.search(r"S\([1-9]", array[0])
    )


def _begun(result: str) -> str:
    """What a copy makes that is begun and waited for later: its type names the source, too."""
    if result.startswith("(("):  # the source stands first, in parentheses of its own
        result = result[_closing(result, 1) :]
    found = _ARRAY.search(result)
    return found[0] if found else ""


def _bytes_of(result: str) -> int:
    return sum(_size(array) for array in _ARRAY.finditer(result))


def _size(array: re.Match[str]) -> int:
    size = _BYTES.get(array[1], 0)
    for length in filter(None, array[2].split(",")):
        size *= int(length)
    return size


def _shape(result: str) -> str:
    found = _ARRAY.search(result)
    return found[2] if found else ""


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _step(line: re.Match[str]) -> Step:
    rest = line[3]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    argument = rest[start + 1 : end - 1]
    operands = tuple(_NAME.findall(argument))
    return Step(line[2], rest[:start], result, operands, argument, rest[end:], bool(line[1]))
