"""What campaigns over real processes share: commands on small inputs, and what they leave."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # where a script imports this
sys.path.insert(1, str(pathlib.Path(__file__).parents[1] / "support"))
from pairs import hubby

from benchmarks.support import environment

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 1800  # for a process: many, as others may want the processors
REFUSED = 2

# Old and new: what a command is told the first time, and over the earlier output.
OLD, NEW = "old", "new"


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, its words in two variants, and what it writes."""

    words: tuple[str, ...]
    variants: dict[str, tuple[str, ...]]
    output: str
    # A member of the output folder that says that all of it is of one run.
    manifest: str = ""
    # Beside the output: from what the same command goes on.
    checkpoints: tuple[str, ...] = ()
    program: tuple[str, ...] = ("-W", "ignore", "-m", "dbnorm_jax")

    def arguments(self, variant, folder, *more):
        """Of Python; `folder` is where the output goes."""
        output = str(folder / self.output)
        return [*self.program, *self.words, *self.variants[variant], "--output", output, *more]


BANK = ("--query-bank", "bank.npy")
BLOCKS = ("--block-size", "128")
JOBS = {
    "fit": Job(
        ("fit", "gallery.npy", *BANK, "--method", "dualdis", *BLOCKS, "--checkpoint-every", "0"),
        {OLD: ("--beta-query", "5"), NEW: ("--beta-query", "7")},
        "fitted.npz",
        checkpoints=("fitted.npz.query-bank.partial", "fitted.npz.gallery-bank.partial"),
    ),
    "search": Job(
        ("search", "queries.npy", "gallery.npy", "--correction", "correction.npz"),
        {OLD: ("-k", "3", "--block-size", "64"), NEW: ("-k", "5", "--block-size", "64")},
        "found.npz",
    ),
    "export": Job(
        ("export", "gallery.npy", "--correction", "correction.npz"),
        {OLD: ("--dtype", "float16"), NEW: ("--dtype", "float32")},
        "index",
        manifest="export.json",
    ),
    "evaluate": Job(
        ("evaluate", "few.npy", "few.npy", *BANK),
        {OLD: ("--methods", "csls:k=5"), NEW: ("--methods", "csls:k=10")},
        "results",
    ),
    "inspect": Job(
        ("inspect", "few.npy", *BANK),
        {OLD: ("--beta-query", "5"), NEW: ("--beta-query", "7")},
        "hubs",
    ),
}


class Place:
    """A folder of inputs, where processes run; and an environment that keeps compiled programs."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / "out"
        bank, items, queries, gallery = hubby(0, size=512, gallery=512)
        arrays = {"bank": bank, "bank_items": items, "queries": queries, "gallery": gallery}
        for name, rows in (arrays | {"few": gallery[:60]}).items():
            np.save(folder / f"{name}.npy", rows)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.environment.pop("XLA_FLAGS", None)
        self.clear()

    def clear(self, earlier=None):
        """Empties the folder of outputs, and puts there what an earlier run left."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.fill(earlier)

    def fill(self, earlier):
        for name, data in (earlier or {}).items():
            (self.out / name).parent.mkdir(exist_ok=True)
            (self.out / name).write_bytes(data)

    def start(self, arguments, prefix=(), **changes):
        """A process of Python, its messages to be read; `prefix` is a command that runs it."""
        return subprocess.Popen(
            [*prefix, sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment | changes,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments, **changes):
        """Exit code and messages of a process that nothing disturbs."""
        return ended(self.start(arguments, **changes))

    def correction(self):
        """What search and export are given."""
        options = ["--method", "dis", "--output", "correction.npz"]
        must(self.run([*JOBS["fit"].program, "fit", "gallery.npy", *BANK, *options]))

    def undisturbed(self, job):
        """By variant, the contents of the output of a run that nothing disturbs."""
        found = {}
        for variant in job.variants:
            self.clear()
            must(self.run(job.arguments(variant, self.out)))
            found[variant] = contents(self.out)
            assert found[variant], job
        return found


def ended(process):
    """Its exit code and its messages, once it has ended."""
    try:
        return process.wait(SECONDS), process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def must(outcome):
    code, err = outcome
    if code:
        raise RuntimeError(f"expected a command that succeeds, got {code}: {err}")


def contents(folder):
    """Every file below a folder, by its path from there; a folder without files ends with "/"."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def is_left(name, output):
    """Whether a path is one that `docs/promises.md` says a killed command may leave."""
    file = name.rpartition("/")[2]
    inside = name.rpartition("/")[0] in ("", output)
    # An empty folder is the first thing that an output in a folder needs.
    return name == f"{output}/" or (
        inside and bool(re.fullmatch(r"\..+\.tmp-[0-9a-f]{12}(\.lock)?|\..+\.lock", file))
    )


def judge(job, found, old, new, *, killed):
    """What of the contents of the folder is not as promised, in words.

    `old` and `new` are contents of undisturbed runs, `old` empty where there was no earlier one.
    `killed`: whether the command had no time to clean up.
    """
    said = []
    results = {name: data for name, data in found.items() if name in new or name in old}
    for name, data in results.items():
        if data not in (old.get(name), new.get(name)):
            said.append(f"{name} is neither the earlier one nor the new one")
    if job.manifest:
        whole = f"{job.output}/{job.manifest}"
        if whole in results and results not in (old, new):
            said.append(f"{whole} stands beside files of another run")
    else:
        said += [f"{name} is gone" for name in old if name not in results]
    for name in found.keys() - results.keys() - {*job.checkpoints}:
        if not (killed and is_left(name, job.output)):
            said.append(f"{name} was left")
    return said


def about(seed):
    """The first line of a campaign: where, when, from what seed."""
    return f"{environment.summary()}; seed {seed}"
