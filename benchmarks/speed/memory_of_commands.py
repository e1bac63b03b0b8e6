"""Peak memory of each command in units of its gallery, each call in a process of its own.

    python -m benchmarks.speed.memory_of_commands [--few 20000] [--gallery 200000] [--large 600000]
        [--rows 64] [--dim 512]

The gallery is a float32 .npy; banks and queries are small. Peaks are above the process once it has
imported everything: resident memory, which counts pages of files that are mapped, and anonymous
memory (RssAnon), which does not. Most of what a call with `few` items takes are compiled programs
and their tiles, which `few` fill; growth is what each further byte of gallery adds to its peak.
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.speed.out_of_core import anonymous, watched
from benchmarks.support import environment, inputs, report

SIZES = {"few": 20_000, "gallery": 200_000, "large": 600_000, "rows": 64, "dim": 512}
MOST = 1.3  # x gallery
# In the order in which one needs what another has written; what begins with @ is in the folder.
_BANKS = ("--query-bank", "@bank.npy", "--gallery-bank", "@gallery_bank.npy")
_SET = ("@queries.npy", "@gallery.npy", *_BANKS, "--relevant", "@right.npy")
COMMANDS: dict[str, tuple[str, ...]] = {
    # All methods of the default; NNN keeps as many similarities per item as it averages.
    "evaluate": ("evaluate", *_SET, "--bank-pairs", "rows"),
    "evaluate, paper": ("evaluate", *_SET, "--methods", "paper"),
    "inspect": ("inspect", "@gallery.npy", *_BANKS),
    "fit": (
        *("fit", "@gallery.npy", *_BANKS, "--method", "dualdis"),
        *("--force", "--output", "@correction.npz"),
    ),
    "fit, statistics": (
        *("fit", "@gallery.npy", *_BANKS[:2], "--method", "statistics"),
        *("--force", "--output", "@statistics.npz"),
    ),
    "search": (
        *("search", "@queries.npy", "@gallery.npy", "--correction", "@correction.npz"),
        *("--force", "--output", "@found.npz"),
    ),
    "tune": (
        *("tune", "@bank.npy", "@gallery_bank.npy", "--gallery", "@gallery.npy"),
        *("--bank-pairs", "rows"),
    ),
    "export": (
        *("export", "@gallery.npy", "--correction", "@correction.npz"),
        *("--force", "--output", "@exported"),
    ),
    "merge": (
        *("merge", "@statistics.npz", "@statistics.npz", "--allow-repeats"),
        *("--force", "--output", "@merged.npz"),
    ),
}


def make(folder: Path, gallery: int, rows: int, dim: int) -> None:
    """The files of a call."""
    shape = (gallery, dim)
    file = np.lib.format.open_memmap(folder / "gallery.npy", "w+", np.float32, shape)
    for start in range(0, gallery, 4096):
        part = file[start : start + 4096]
        part[:] = inputs.unit_rows(start, len(part), dim)
    for seed, name in enumerate(("queries", "bank", "gallery_bank"), 1):
        np.save(folder / f"{name}.npy", inputs.unit_rows(gallery + seed, rows, dim))
    np.save(folder / "right.npy", np.arange(rows))


def measure(folder: str, command: str) -> dict[str, float]:
    """MiB above what the process had before the call, resident and anonymous."""
    import jax

    from dbnorm_jax._cli.commands import declared  # noqa: F401 - imports what a command needs
    from dbnorm_jax._cli.commands.main import main

    jax.devices()
    arguments = [
        str(Path(folder) / text[1:]) if text.startswith("@") else text for text in COMMANDS[command]
    ]
    before = environment.resident(), anonymous()
    environment.restart_peak()
    printed = io.StringIO()
    with watched() as peak, contextlib.redirect_stdout(printed):
        try:
            main(arguments)
        except SystemExit as stopped:
            if stopped.code:
                raise RuntimeError(f"{' '.join(arguments)} failed: {stopped.code}") from None
    resident = environment.peak_resident() - before[0]
    return {"resident": resident, "anonymous": peak[0] - before[1]}


def measured(
    gallery: int, rows: int, dim: int, commands: Iterable[str] | None = None
) -> dict[str, dict[str, float]]:
    """The peaks of commands, of all if not said, against a gallery of that length."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), gallery, rows, dim)
        return {
            command: environment.child(
                "benchmarks.speed.memory_of_commands", "--case", folder, command
            )
            for command in commands or COMMANDS
        }


def run(few: int, gallery: int, large: int, rows: int, dim: int) -> Iterator[report.Record]:
    """One table per length of the gallery."""
    # Side by side: memory does not depend on who else computes.
    with ThreadPoolExecutor() as pool:
        base, *others = pool.map(lambda length: measured(length, rows, dim), (few, gallery, large))
    mib = dim * 4 / 2**20
    for length, found in zip((gallery, large), others, strict=True):
        size, figures = length * mib, []
        for command, peaks in found.items():
            grown = peaks["resident"] - base[command]["resident"]
            growth = grown / (size - few * mib)
            figures += [
                report.Figure(f"{command}: {kind}", peak / size, "x gallery")
                for kind, peak in peaks.items()
            ]
            target = report.Target(high=MOST)
            figures.append(report.Figure(f"{command}: growth", growth, "x gallery", target))
        fixed = ", ".join(f"{name} {peaks['resident']:.0f}" for name, peaks in base.items())
        title = f"peak memory of commands, gallery {length:,} x {dim} ({size:.0f} MiB)"
        sizes = {"few": few, "gallery": length, "rows": rows, "dim": dim}
        note = f"resident MiB with {few:,} items: {fixed}"
        yield report.Record("memory_of_commands", title, sizes, figures, (note,))


def main() -> None:
    """The tables, or one process's part of them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--case", nargs=2)
    options, _ = parser.parse_known_args()
    if options.case is None:
        report.command(__doc__, run, SIZES)
        return
    print(json.dumps(measure(*options.case)))


if __name__ == "__main__":
    main()
