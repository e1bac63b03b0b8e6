"""Peak memory above the inputs, each size in a process of its own.

    python -m benchmarks.memory

Prints MiB of resident memory that fit and search take beyond their inputs, compiler included, for
growing banks and queries: it does not grow with them.
"""

import argparse
import gc
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import dbnorm_jax as dbn
from benchmarks.common import machine, unit_rows

_DIM = 128
_NUM_GALLERY = 20480
_SIZES = (4096, 32768, 262144)


def _status(field: str) -> float:
    """A line of this process's status, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {field} here: this benchmark needs Linux")


def measure(work: str, size: int) -> float:
    """MiB above what stood after the inputs were made."""
    inputs = unit_rows(0, _NUM_GALLERY, _DIM), unit_rows(1, size, _DIM)
    gallery, rows = jax.block_until_ready(inputs)  # copied in the background
    rows.sum().block_until_ready()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before = _status("VmRSS")
    if work == "fit":
        result = dbn.stream_bank_statistics(rows, gallery, beta=20.0)
    else:
        correction = dbn.Correction(np.zeros((1, _NUM_GALLERY), np.float32), None)
        result = dbn.stream_top_k(rows, gallery, 10, correction)
    jax.block_until_ready(result)
    return _status("VmHWM") - before


def main() -> None:
    """One process per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs=2, metavar=("WORK", "SIZE"), help=argparse.SUPPRESS)
    case = parser.parse_args().case
    if case:
        print(measure(case[0], int(case[1])))
        return
    print(machine())
    print(f"peak MiB above the inputs, gallery {_NUM_GALLERY} x dim {_DIM}")
    for work, what in (("fit", "bank items"), ("search", "queries")):
        for size in _SIZES:
            command = [sys.executable, "-m", "benchmarks.memory", "--case", work, str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{work:7} {size:7} {what:10} {float(done.stdout):7.0f}")


if __name__ == "__main__":
    main()
