"""Kills, full disks and rivals: what is on the disk afterwards is old or new, never broken.

DBNORM_KILLS=200 python -m pytest tests/test_faults.py -m slow     # the long form
"""

import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import dbnorm_jax as dbn

pytest.importorskip("click")

import killed_worker

from dbnorm_jax._src import archives, checkpoints

ROOT = pathlib.Path(__file__).parent.parent
KILLS = int(os.environ.get("DBNORM_KILLS", "0"))
SECONDS = 300


class Worker:
    """Children of one process, to be killed."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        environment.pop("XLA_FLAGS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(ROOT / "tests" / "killed_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def start(self, *job):
        self.tell(json.dumps([str(word) for word in job]))
        self.child = int(self.process.stdout.readline())

    def end(self):
        """The exit code of the child, once it has ended."""
        self.tell("")
        return int(self.process.stdout.readline())

    def kill(self):
        os.kill(self.child, signal.SIGKILL)
        return self.end()

    def run(self, *job):
        """Seconds that the job takes, undisturbed."""
        begun = time.monotonic()
        self.start(*job)
        assert self.end() == 0
        return time.monotonic() - begun

    def close(self):
        with self.process:
            self.process.stdin.close()
            self.process.wait(SECONDS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("queries", "gallery", "bank"):
        np.save(f"{name}.npy", generator.normal(size=(2048, 16)).astype(np.float32))
    for name, queries in (("small", 60), ("few", 40)):
        np.save(f"{name}.npy", generator.normal(size=(queries, 8)).astype(np.float32))
    return tmp_path


@pytest.fixture
def worker(folder):
    running = Worker()
    yield running
    running.close()


def last_change(folder):
    """When a file came or went, temporary ones too."""
    return folder.stat().st_mtime_ns


def moments(rounds, duration, folder):
    """Waits until a random moment: of the whole run, or just after it began to write."""
    generator = random.Random(rounds)
    for number in range(rounds):

        def wait(until_written=number % 2):
            if not until_written:
                time.sleep(generator.uniform(0, duration))
                return
            before = last_change(folder)
            begun = time.monotonic()
            while last_change(folder) == before and time.monotonic() - begun < 3 * duration:
                time.sleep(0.0005)
            time.sleep(generator.uniform(0, 0.02))

        yield wait


def rounds(share, short):
    """How many kills: a share of the long form, or a few."""
    return max(int(share * KILLS), short)


@pytest.mark.slow
def test_killed_saves(worker, folder):
    """Every file is one of those that were saved."""
    path = folder / "state.npz"
    dbn.save(path, killed_worker.correction(0))
    killed = 0
    for wait in moments(rounds(0.4, 10), 0.4, folder):
        before = float(dbn.load(path).bias[0, 0])
        worker.start("save", path, int(before) + 1)
        wait()
        killed += worker.kill() == -signal.SIGKILL
        bias = np.asarray(dbn.load(path).bias)
        assert (bias == bias[0, 0]).all()
        assert bias[0, 0] >= before
        assert all(other.name.startswith(f".{path.name}.tmp-") for other in left(folder, path))
    assert killed == rounds(0.4, 10)
    assert bias[0, 0] > 0  # something was written


def left(folder, path):
    return [one for one in folder.iterdir() if one.suffix != ".npy" and one != path]


@pytest.mark.slow
def test_killed_fits_go_on(worker, folder):
    """Resumed after kills at random moments, a fit gives bit by bit what it would have given."""
    job = ["fit", "gallery.npy", "--query-bank", "bank.npy", "--block-size", 256, "--method", "dis"]
    job += ["--checkpoint-every", 0, "--output"]
    duration = worker.run(*job, "whole.npz")
    whole, kills = dbn.load("whole.npz"), 0
    output, partial = folder / "parts.npz", folder / "parts.npz.query-bank.partial"
    for wait in moments(rounds(0.3, 6), duration, folder):
        worker.start(*job, output)
        wait()
        kills += worker.kill() == -signal.SIGKILL
        if partial.exists():
            archives.read(partial, checkpoints._FIELDS)  # whole, by its checksum
        if output.exists():
            assert_same(dbn.load(output), whole)
            output.unlink()
    assert kills
    worker.run(*job, output)
    assert_same(dbn.load(output), whole)
    assert not partial.exists()


def assert_same(first, second):
    np.testing.assert_array_equal(first.bias, second.bias)
    np.testing.assert_array_equal(first.active, second.active)


def contents(folder):
    return {one.name: one.read_bytes() for one in folder.glob("[!.]*")} if folder.exists() else {}


@pytest.mark.slow
def test_killed_exports(worker, folder):
    """Files are old or new, and where there is a manifest, all are of its export."""
    output, wanted = folder / "index", {}
    for name, seed in (("old", 1.0), ("new", 2.0)):
        bias = np.linspace(0, seed, 2048, dtype=np.float32)[None]
        dbn.save(f"{name}.npz", dbn.Correction(bias, None))
    jobs = {
        name: ["export", "gallery.npy", "--correction", f"{name}.npz", "--output", output]
        for name in ("old", "new")
    }
    for name, job in jobs.items():
        duration = worker.run(*job, "--force")
        wanted[name] = contents(output)
    for number, wait in enumerate(moments(rounds(0.2, 4), duration, output)):
        worker.start(*jobs["old" if number % 4 < 2 else "new"], "--force")
        wait()
        worker.kill()
        found = contents(output)
        for name, data in found.items():
            assert data in [whole[name] for whole in wanted.values()], name
        if "export.json" in found:
            assert found in wanted.values()
    worker.run(*jobs["old"], "--force")
    assert contents(output) == wanted["old"]


@pytest.mark.slow
def test_killed_reports(worker, folder):
    """Every file of the results is whole, of the earlier run or of this one."""
    output, wanted = folder / "results", {}
    job = ["evaluate", "small.npy", "small.npy", "--query-bank", "few.npy", "--methods", "csls"]
    job += ["--output", output, "--force"]
    betas = {"old": 10, "new": 5}
    for name, neighbors in betas.items():
        duration = worker.run(*job[:-4], f"csls:k={neighbors}", *job[-3:])
        wanted[name] = contents(output)
    for number, wait in enumerate(moments(rounds(0.1, 2), duration, output)):
        neighbors = list(betas.values())[number % 4 < 2]
        worker.start(*job[:-4], f"csls:k={neighbors}", *job[-3:])
        wait()
        worker.kill()
        found = contents(output)
        assert found.keys() == wanted["old"].keys()
        for name, data in found.items():
            assert data in [whole[name] for whole in wanted.values()], name


WATCHED = """
import os, sys

def watch(event, arguments):
    if event == "open":
        name, mode, flags = arguments
        writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writing and name != os.devnull and not isinstance(name, int):
            print("wrote", os.path.abspath(name), file=sys.stderr)
    elif event.startswith(("socket.connect", "socket.bind", "subprocess.", "os.system")):
        print("did", event, arguments, file=sys.stderr)

from dbnorm_jax._cli.main import main
sys.addaudithook(watch)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_nothing_is_written_elsewhere_and_no_network_used(folder):
    """Every file opened for writing lies beside the output or in it; bytecode is not kept."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    (folder / "given").mkdir()
    jobs = [
        ["fit", "gallery.npy", "--query-bank", "bank.npy", "--output", "given/c.npz"],
        ["search", "queries.npy", "gallery.npy", "--output", "given/found.npz"],
        ["export", "gallery.npy", "--correction", "given/c.npz", "--output", "given/index"],
    ]
    for job in jobs:
        done = subprocess.run(
            [sys.executable, "-c", WATCHED, *job],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        events = [line for line in done.stderr.splitlines() if line.startswith(("wrote ", "did "))]
        assert events, done.stderr
        for line in events:
            assert line.startswith(f"wrote {folder / 'given'}"), line


# --- rivals --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_writers_of_one_path(folder):
    """Readers see what the one or the other saved, whole."""
    path = folder / "state.npz"
    dbn.save(path, killed_worker.correction(0))
    workers = [Worker(), Worker()]
    for seed, worker in enumerate(workers):
        worker.start("save", path, seed)  # one saves even numbers, the other odd ones
    seen = set()
    begun = time.monotonic()
    while len(seen) < 2 or time.monotonic() - begun < 2:
        bias = np.asarray(dbn.load(path).bias)
        assert (bias == bias[0, 0]).all()
        if bias[0, 0]:
            seen.add(int(bias[0, 0]) % 2)
        assert time.monotonic() - begun < SECONDS
    for worker in workers:
        worker.kill()
        worker.close()


LOCKS = """
import os, sys, fcntl, pathlib
from dbnorm_jax._src import binary_files

with {held}:
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds something until it is told or killed."""
    pytest.importorskip("fcntl")
    running = []

    def start(held):
        process = subprocess.Popen(
            [sys.executable, "-c", LOCKS.format(held=held)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        running.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in running:
        with process:
            process.kill()


def test_what_a_killed_save_left_is_removed_by_the_next(holder, tmp_path):
    """But not the temporary file of one at work, nor those of other files."""
    path = tmp_path / "state.npz"
    for name in (".state.npz.tmp-left", ".other.npz.tmp-left", ".state.npz.tmp"):
        (tmp_path / name).write_bytes(b"half")
    writer = holder(f"binary_files.replacing(pathlib.Path({str(path)!r}))")
    (working,) = set(tmp_path.glob(".state.npz.tmp-*"))
    assert working.name != ".state.npz.tmp-left"  # which that one has removed
    dbn.save(path, killed_worker.correction(1, size=3))
    names = {".other.npz.tmp-left", ".state.npz.tmp", path.name}
    assert {one.name for one in tmp_path.iterdir()} == names | {working.name}
    writer.kill()
    writer.wait(SECONDS)
    dbn.save(path, killed_worker.correction(2, size=3))
    assert {one.name for one in tmp_path.iterdir()} == names
    assert float(dbn.load(path).bias[0, 0]) == 2


def test_a_second_fit_of_the_same_output_is_refused(holder, call, folder):
    """They would share their checkpoint; after the first, whether ended or killed, it may run."""
    other = holder(f"binary_files.alone(pathlib.Path({str(folder / 'c.npz')!r}))")
    job = ["fit", "small.npy", "--query-bank", "few.npy", "--method", "is", "--output", "c.npz"]
    code, out, err = call(*job)
    assert code == 2
    assert not out
    assert "--output 'c.npz': expected no other process that fits it, got one at work" in err
    assert not (folder / "c.npz").exists()
    other.kill()
    other.wait(SECONDS)
    assert call(*job)[0] == 0
    assert not list(folder.glob(".*"))


# --- full disks, closed folders ------------------------------------------------------------------


@pytest.fixture
def no_room():
    """Files may have 4 KiB, as if the disk were full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_state(tmp_path, no_room):
    path = tmp_path / "state.npz"
    dbn.save(path, killed_worker.correction(1, size=3))
    old = path.read_bytes()
    no_room()
    with pytest.raises(OSError, match="too large") as raised:
        dbn.save(path, killed_worker.correction(2))
    assert raised.value.filename == str(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_export(call, tmp_path, no_room):
    rows = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32)
    np.save(tmp_path / "gallery.npy", rows)
    correction = dbn.Correction(np.linspace(0, 1, 256, dtype=np.float32)[None], None)
    dbn.save(tmp_path / "correction.npz", correction)
    job = ["export", tmp_path / "gallery.npy", "--correction", tmp_path / "correction.npz"]
    job += ["--output", tmp_path / "index"]
    assert call(*job)[0] == 0
    old = contents(tmp_path / "index")
    no_room()
    code, _, err = call(*job, "--force")
    assert code == 2
    assert "index/vectors.npy: File too large" in err
    assert len(err.splitlines()) == 1
    assert contents(tmp_path / "index") == old


@pytest.mark.parametrize("kind", ["no folder", "a file for a folder", "closed"])
def test_places_that_cannot_be_written(kind, tmp_path):
    place = tmp_path / "place"
    if kind == "a file for a folder":
        place.write_bytes(b"mine")
    elif kind == "closed":
        if os.geteuid() == 0:
            place = pathlib.Path("/proc")  # closed to the superuser, too
        else:
            place.mkdir(mode=0o500)
    path = place / "state.npz"
    with pytest.raises(OSError, match=r"state\.npz") as raised:
        dbn.save(path, killed_worker.correction(1, size=3))
    assert raised.value.filename == str(path)
    if kind == "a file for a folder":
        assert place.read_bytes() == b"mine"


def test_links_that_go_round_cannot_be_written(tmp_path):
    path = tmp_path / "state.npz"
    path.symlink_to(tmp_path / "other.npz")
    (tmp_path / "other.npz").symlink_to(path)
    with pytest.raises(OSError, match=r"symbolic links.*state\.npz") as raised:
        dbn.save(path, killed_worker.correction(1, size=3))
    assert raised.value.filename == str(path)
    assert path.is_symlink()
