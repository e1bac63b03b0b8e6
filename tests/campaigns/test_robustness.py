"""Kills, rivals, full disks and long runs of calls: short campaigns, and whether they notice."""

import io
import os

import jax
import numpy as np
import pytest
from patience import slow_but
from systems import limits, reads_proc

pytest.importorskip("click")

import calls
import concurrency
import full_disks
import killed_worker
import kills
import processes
from processes import NEW, OLD

# --- kills ---------------------------------------------------------------------------------------


class Child:
    """A forked child, as a process of its own is."""

    def __init__(self, worker, words):
        self.worker, self.code, self.stderr = worker, None, io.StringIO()
        worker.start(*words)

    def poll(self):
        return self.code

    def send_signal(self, number):
        os.kill(self.worker.child, number)

    def wait(self, seconds):
        if self.code is None:
            self.code = self.worker.end()
        return self.code

    def kill(self):
        pass


class Forked(processes.Place):
    """Where commands run in forked children, which import nothing again."""

    def __init__(self, folder):
        super().__init__(folder)
        self.worker = killed_worker.Worker(**self.environment)

    def start(self, arguments):
        return Child(self.worker, arguments[len(processes.JOBS["fit"].program) :])


@pytest.mark.slow
def test_a_short_campaign_of_kills(tmp_path, monkeypatch):
    """After a kill every file is old or new; the command again gives what nothing disturbed."""
    monkeypatch.chdir(tmp_path)
    place = Forked(tmp_path)
    place.correction()
    jobs = {name: processes.JOBS[name] for name in ("fit", "export", "evaluate")}
    # Of this seed three are by SIGTERM.
    outcome = kills.campaign(place, range(6), 5, jobs, runs=1)
    place.worker.close()
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.kills == dict.fromkeys(jobs, 2)
    assert outcome.landed.total() >= 3  # a moment that is drawn may come late on a busy machine


WRITER = """
import os, pathlib, signal, sys, time
fault, variant, _, output, *force = sys.argv[1:]
path = pathlib.Path(output)
temporary = path.with_name(f".{path.name}.tmp-{os.getpid():012x}")
for left in path.parent.glob(f".{path.name}.tmp-*"):
    if fault == "goes on from what is half":
        temporary = left
    elif fault != "leaves what a killed one left":
        left.unlink()

def end(*_):
    if fault != "leaves a file when it is asked to end":
        temporary.unlink(missing_ok=True)
    sys.exit(1 if fault == "fails when it is asked to end" else 143)

signal.signal(signal.SIGTERM, end)
place = path if fault == "writes in place" else temporary
try:
    with open(place, "a" if place != path else "w") as file:
        for _ in range(10):
            file.write(variant)
            file.flush()
            time.sleep(0.005)
except OSError as error:
    if fault != "leaves a file on a full disk":
        place.unlink()
    if fault != "says nothing of a full disk":
        print(f"dbnorm: error: {path}: {error.strerror}", file=sys.stderr)
    sys.exit(0 if fault == "calls it done" else 2)
place.replace(path)
"""
FAULTS = {
    "none": None,
    "writes in place": "neither the earlier one nor the new one",
    "goes on from what is half": "the command again: out.txt differs",
    "leaves what a killed one left": "the command again: .out.txt.tmp-",
    "leaves a file when it is asked to end": "was left",
    "fails when it is asked to end": "exit code 1",
}


def writer(fault):
    variants = {OLD: ("old",), NEW: ("new",)}
    return processes.Job((fault,), variants, "out.txt", program=("-I", "-S", "-c", WRITER))


@pytest.mark.parametrize("fault", slow_but(["writes in place"], FAULTS))
def test_kills_are_noticed(fault, tmp_path):
    """A small program with a fault breaks a promise; without one it breaks none."""
    place = processes.Place(tmp_path)
    outcome = kills.campaign(place, range(10), 2, {"writer": writer(fault)})
    assert outcome.landed.total() > 3
    found = "\n".join(outcome.broken)
    assert not found if FAULTS[fault] is None else FAULTS[fault] in found


# --- full disks ----------------------------------------------------------------------------------

ON_FULL_DISKS = {
    "none": None,
    "leaves a file on a full disk": "left ['.out.txt.tmp-",
    "says nothing of a full disk": "said ",
    "calls it done": "ended well, and left [",
    "writes in place": "or changed it",
}


@limits
@pytest.mark.parametrize("fault", slow_but(["leaves a file on a full disk"], ON_FULL_DISKS))
def test_what_a_full_disk_does_is_noticed(fault, tmp_path):
    place = processes.Place(tmp_path)
    filling, jobs = full_disks.Limited(place), {"writer": writer(fault)}
    outcome = full_disks.campaign(place, filling, range(8), 1, jobs)
    found = "\n".join(outcome.broken)
    if ON_FULL_DISKS[fault] is None:
        assert not found
        assert outcome.refused["writer"] > 3
    else:
        assert ON_FULL_DISKS[fault] in found


@limits
@pytest.mark.slow
def test_a_short_campaign_of_full_disks(tmp_path):
    """On a file system in memory where one may be mounted."""
    place = processes.Place(tmp_path)
    jobs = {"fit": processes.JOBS["fit"]}
    outcome = full_disks.campaign(place, full_disks.disk(place), range(3), 1, jobs)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.refused["fit"]


# --- several processes ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_campaign_of_rivals_and_readers(tmp_path):
    place = processes.Place(tmp_path)
    place.correction()
    outcome = concurrency.campaign(place, 1, 1, choosing=())
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.counts["refused"] + outcome.counts["done"] == concurrency.RIVALS


@pytest.mark.slow
def test_choices_do_not_depend_on_threads_and_hashes(tmp_path, monkeypatch):
    few = {"SETTINGS": ("4 threads",), "HASHES": ("hashes of 1", "hashes of 2")}
    for table, names in few.items():
        settings = getattr(concurrency, table)
        monkeypatch.setattr(concurrency, table, {name: settings[name] for name in names})
    monkeypatch.setattr(concurrency.shutil, "which", lambda name: None)
    outcome = concurrency.campaign(processes.Place(tmp_path), 0, 1, choosing=["tune"])
    assert not outcome.broken, "\n".join(outcome.broken)
    assert "tune: raw" not in outcome.counts  # so that something was chosen


# Rivals that all write, one after the other, as if there were no lock.
REGARDLESS = """
import pathlib, sys
path = pathlib.Path(sys.argv[-1])
with path.open("a") as file:
    file.write("new")
"""


def test_rivals_that_share_their_output_are_noticed(tmp_path):
    place, outcome = processes.Place(tmp_path), concurrency.Outcome()
    job = processes.Job((), {NEW: ()}, "out.txt", program=("-I", "-S", "-c", REGARDLESS))
    concurrency.rivals(place, job, place.undisturbed(job), outcome)
    assert outcome.broken == ["rivals: ['out.txt'] was left"]


# --- calls ---------------------------------------------------------------------------------------


@reads_proc
@pytest.mark.slow
def test_a_short_campaign_of_calls(tmp_path):
    found = calls.table(tmp_path)
    chosen = {name: found[name] for name in [*found][::30]}
    outcome = calls.campaign(chosen, 5, 1, between=0.2)
    assert not outcome.broken
    assert outcome.first > len(chosen)


def test_calls_that_take_ever_more_are_noticed():
    kept, double = [], jax.jit(lambda x: 2 * x)
    table = {
        "good": (lambda size: double(np.ones(size)), (1, 2)),
        "keeps": (lambda _: kept.append(2**20), (0,)),
        "compiles": (lambda _: jax.jit(lambda x: x + 1)(1.0), (0,)),
    }

    def broken(*names):
        chosen = {name: table[name] for name in names}
        return calls.campaign(chosen, 0.3, 1, memory=lambda: sum(kept), between=0.01).broken

    assert not broken("good")
    assert "memory grew by" in broken("good", "keeps")[0]
    kept.clear()
    line, *_ = broken("good", "compiles")
    assert "programs were compiled after all shapes were seen" in line
    assert "'compiles'" in line
    assert "good" not in line
