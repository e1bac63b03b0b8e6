"""The CPU set, in under five minutes on two cores: `python -m benchmarks.run [--json FILE]`.

Sizes are smaller than each topic's own, which `python -m benchmarks.speed.TOPIC` has. Lines of JSON
and the plot go to benchmark-results/; target beside measured comes last.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.speed import authors, fit, memory, peers, ranks, scaling, search, small
from benchmarks.support import environment, report
from benchmarks.support.report import Record

# In turn: topic, and its function with sizes.
SET: dict[str, tuple[Callable[..., Iterable[Record]], dict[str, int]]] = {
    "fit": (fit.run, {"bank": 2048, "gallery": 10240, "dim": 512, "repetitions": 7}),
    "fit-wide": (
        fit.run,
        {"bank": 1024, "gallery": 51200, "dim": 512, "repetitions": 7, "wide": True},
    ),
    "search": (
        search.run,
        {"queries": 1024, "gallery": 30720, "bank": 1024, "dim": 512, "repetitions": 7},
    ),
    "ranks": (
        ranks.run,
        {"queries": 1024, "gallery": 30720, "bank": 1024, "dim": 512, "repetitions": 7},
    ),
    "peers": (
        peers.run,
        {"queries": 1024, "gallery": 16384, "bank": 1024, "dim": 512, "k": 10, "repetitions": 7},
    ),
    "small": (small.run, {"rows": 1024, "dim": 512, "repetitions": 9, "processes": 2}),
    "memory": (
        memory.run,
        {"gallery": 4096, "rows": 2048, "factor": 8, "dim": 512, "processes": 1},
    ),
    "scaling": (
        scaling.run,
        {"smallest": 2048, "steps": 3, "gallery": 4096, "dim": 512, "repetitions": 7},
    ),
    "authors": (
        authors.run,
        {"queries": 1024, "gallery": 10240, "bank": 2048, "dim": 512, "repetitions": 1},
    ),
}


def run(topics: Sequence[str], path: Path) -> list[Record]:
    """Measures topics one after the other and prints each as soon as it is there."""
    records = []
    started = time.perf_counter()
    for topic in topics:
        function, sizes = SET[topic]
        found = list(function(**sizes))
        for record in found:
            print(*report.table(record), sep="\n", end="\n\n", flush=True)
        report.write(found, path)
        print(f"[{topic} done, {time.perf_counter() - started:.0f} s]", end="\n\n", flush=True)
        records += found
    return records


def main() -> None:
    """Every table, then target beside measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topics", nargs="+", choices=SET, default=list(SET))
    parser.add_argument("--json", type=Path, default=report.RESULTS / "cpu.jsonl")
    options = parser.parse_args()
    print(environment.summary(), end="\n\n", flush=True)
    records = run(options.topics, options.json)
    print("target | measured, at these sizes", *report.target_table(records), sep="\n")


if __name__ == "__main__":
    main()
