"""Kills, full disks and rivals: what is on the disk afterwards is old or new, never broken.

`tests/campaigns` kills, races and fills disks at length.
"""

import contextlib
import errno
import io
import os
import pathlib
import random
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import types

import numpy as np
import pytest
import systems
from patience import slow_but

import dbnorm_jax as dbn

pytest.importorskip("click")

import killed_worker

from dbnorm_jax._cli.commands import main, search
from dbnorm_jax._src.files import binary

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 300


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
    running = killed_worker.Worker()
    yield running
    running.close()


@pytest.mark.slow
def test_killed_saves(worker, folder):
    """Every file is one of those that were saved."""
    path = folder / "state.npz"
    dbn.save(path, killed_worker.correction(0))
    begun = time.monotonic()
    worker.start("save", path, 1)
    while float(dbn.load(path).bias[0, 0]) == 0:
        time.sleep(0.001)
    duration = 4 * (time.monotonic() - begun)  # longer on a machine with other work
    worker.kill()
    first, generator = float(dbn.load(path).bias[0, 0]), random.Random(0)
    for _ in range(10):
        before = float(dbn.load(path).bias[0, 0])
        worker.start("save", path, int(before) + 1)
        time.sleep(generator.uniform(0, duration))
        assert worker.kill() == -signal.SIGKILL
        bias = np.asarray(dbn.load(path).bias)
        assert (bias == bias[0, 0]).all()
        assert bias[0, 0] >= before
        assert all(other.name.startswith(f".{path.name}.tmp-") for other in left(folder, path))
    assert bias[0, 0] > first  # something was written


def left(folder, path):
    return [one for one in folder.iterdir() if one.suffix != ".npy" and one != path]


def contents(folder):
    return {one.name: one.read_bytes() for one in folder.glob("[!.]*")} if folder.exists() else {}


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

from dbnorm_jax._cli.commands.main import main
sys.addaudithook(watch)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_nothing_is_written_elsewhere_and_no_network_used(folder):
    """Every file opened for writing lies beside the output or in it; bytecode is not kept."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    (folder / "given").mkdir()
    jobs = [
        [
            "fit",
            "gallery.npy",
            "--query-bank",
            "bank.npy",
            "--method",
            "is",
            "--output",
            "given/c.npz",
        ],
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
    workers = [killed_worker.Worker() for _ in range(2)]
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
from dbnorm_jax._src.files import binary as binary_files

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
    working = {one.name for one in tmp_path.glob(".state.npz.tmp-*")}
    assert len(working) == 2  # and its lock
    assert ".state.npz.tmp-left" not in working  # which that one has removed
    dbn.save(path, killed_worker.correction(1, size=3))
    names = {".other.npz.tmp-left", ".state.npz.tmp", path.name}
    assert {one.name for one in tmp_path.iterdir()} == names | working
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


def test_a_fit_killed_after_its_result_was_there_is_cleared_up_by_the_next(call, folder):
    job = ["fit", "small.npy", "--query-bank", "few.npy", "--method", "is", "--output", "c.npz"]
    assert call(*job)[0] == 0
    whole, result = {*folder.iterdir()}, pathlib.Path("c.npz").read_bytes()
    for name in ("c.npz.query-bank.partial", ".c.npz.tmp-left", ".c.npz.tmp-gone.lock"):
        pathlib.Path(name).write_bytes(b"left")
    code, out, _ = call(*job)
    assert (code, "is done already" in out) == (0, True)
    assert {*folder.iterdir()} == whole
    assert pathlib.Path("c.npz").read_bytes() == result


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "search", "tune", "merge", "export", "evaluate"])
def test_a_second_writer_of_the_same_output_is_refused(command, holder, call, jobs, folder):
    job, output = jobs[command]
    place = folder / output
    if command in MEMBERS:
        place.mkdir()
        place /= {"export": "export.json"}.get(command, MEMBERS[command][0])
    holder(f"binary_files.alone(pathlib.Path({str(place)!r}))")
    code, out, err = call(*job, "--output", output)
    assert (code, out) == (2, "")
    assert f"--output '{output}': expected no other process" in err
    assert not [one for one in folder.glob(f"{output}*") if one.is_file()]


# --- full disks, closed folders ------------------------------------------------------------------


@pytest.fixture
def no_room():
    """Files may have so many bytes, as if the disk were full then."""
    if systems.resource is None:
        pytest.skip("limits a process")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        yield lambda size=4096: stack.enter_context(systems.limited("RLIMIT_FSIZE", size))
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
        place.mkdir(mode=0o500)
        if os.access(place, os.W_OK):
            place = systems.PROC  # closed to the superuser, too
        if not place.exists():
            pytest.skip("no folder is closed here")
    path = place / "state.npz"
    with pytest.raises(OSError, match=r"state\.npz") as raised:
        dbn.save(path, killed_worker.correction(1, size=3))
    assert raised.value.filename == str(path)
    if kind == "a file for a folder":
        assert place.read_bytes() == b"mine"


@pytest.mark.parametrize("command", ["search", "tune", "merge", "fit"])
def test_a_folder_is_no_place_for_a_file(command, call, jobs):
    """Said before the work, with --force too."""
    job, output = jobs[command]
    pathlib.Path(output).mkdir()
    for more in ([], ["--force"]):
        code, out, err = call(*job, "--output", output, *more)
        assert (code, out) == (2, "")
        assert f"--output '{output}': expected a file, got a folder; name another" in err


JOBS = ["fit", "search", "tune", "merge", "export", "evaluate", "inspect", "demo"]


@pytest.mark.parametrize("command", slow_but(["fit", "search", "merge", "export"], JOBS))
def test_every_command_names_what_a_full_disk_refuses(command, call, jobs, folder, no_room):
    """And leaves nothing behind, not even a new folder."""
    job, output = jobs[command]
    outputs = [output]
    if command == "search":
        outputs += [f"found.{suffix}" for suffix in ("jsonl", "json", "trec", "npy", "npz")]
    before = {*folder.rglob("*")}
    no_room(10)
    for place in outputs:
        code, out, err = call(*job, "--output", place)
        assert (code, out) == (2, "")
        assert err.startswith(f"dbnorm: error: {place}")
        assert err.endswith(": File too large\n")
        assert {*folder.rglob("*")} == before


@pytest.mark.parametrize("command", slow_but(["fit", "export"], JOBS))
def test_a_disk_that_is_full_at_the_end_of_the_largest_file(command, call, jobs, folder, no_room):
    """The other files are whole by then, on their way; so are checkpoints."""
    job, output = jobs[command]
    job = [*job, *["--checkpoint-every", 0] * (command == "fit"), "--output", output]
    before = {*folder.rglob("*")}
    assert call(*job)[0] == 0
    written = [path for path in folder.rglob("*") if path not in before and path.is_file()]
    most = max(path.stat().st_size for path in written) - 1
    for path in written:
        path.unlink()
    if (folder / output).is_dir():
        (folder / output).rmdir()
    no_room(most)
    code, out, err = call(*job)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"dbnorm: error: {output}.*: File too large\n", err)
    assert {*folder.rglob("*")} == before


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES"])
@pytest.mark.parametrize("late", [False, True], ids=["at the first file", "at the last"])
def test_every_error_of_a_write_names_the_file(error, late, call, jobs, folder, monkeypatch):
    """What was there before stays as it was, each file of a folder too."""
    number, fsync, left = getattr(errno, error), os.fsync, [2 * late]

    def refuse(handle):
        if not left[0]:
            raise OSError(number, os.strerror(number))
        left[0] -= 1
        fsync(handle)

    job, output = jobs["export"]
    assert call(*job, "--output", output)[0] == 0
    before = contents(folder / output)
    monkeypatch.setattr(os, "fsync", refuse)
    code, out, err = call(*job, "--output", output, "--force")
    name = "activation.npy" if late else "export.json"
    assert (code, out) == (2, "")
    assert err == f"dbnorm: error: {output}/{name}: {os.strerror(number)}\n"
    assert contents(folder / output) == before
    left[0] = 0
    code, _, err = call(*jobs["search"][0], "--output", "found.npz")
    assert (code, err) == (2, f"dbnorm: error: found.npz: {os.strerror(number)}\n")
    assert not list(folder.glob("*found*"))


def test_what_is_kept_of_a_pipe_needs_room(call, folder, no_room, monkeypatch):
    data = pathlib.Path("queries.npy").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = {*folder.iterdir()}
    no_room(4096)
    code, _, err = call("search", "-", "gallery.npy")
    assert code == 2
    assert re.fullmatch(r"dbnorm: error: .*dbnorm-\w+: File too large\n", err)
    assert {*folder.iterdir()} == before


# --- signals -------------------------------------------------------------------------------------

SIGNALS = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture
def sending(monkeypatch):
    """Lets the second block of a search send a signal, twice, and see who handles it."""
    blocks, seen = search.search.top_k_blocks, []

    def start(number):
        def sent(*arguments, **options):
            for place, block in enumerate(blocks(*arguments, **options)):
                yield block
                if place == 1:
                    seen.append(signal.getsignal(number))
                    try:
                        signal.raise_signal(number)
                    finally:
                        signal.raise_signal(number)

        monkeypatch.setattr(search.search, "top_k_blocks", sent)
        return seen

    return start


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("output", ["found.npz", "found.csv", None])
def test_a_signal_ends_the_command_as_ctrl_c_does(name, output, call, folder, sending):
    """Temporary files go, one line says why, and whoever called `main` has the signal back."""
    number = getattr(signal, name)
    sending(number)
    before = {*folder.iterdir()}
    more = [] if output is None else ["--output", output]
    handler = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored
    try:
        code, _, err = call("search", "queries.npy", "gallery.npy", "--block-size", 512, *more)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, handler)
    assert (code, err) == (128 + number, f"dbnorm: ended by {name}\n")
    assert {*folder.iterdir()} == before


def test_a_signal_is_told_from_the_error_that_an_import_makes_of_it(call, monkeypatch):
    """A compiled module that meets it while it is imported fails with an ImportError."""

    def importing(_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise ImportError("encountered an error while initializing") from error

    monkeypatch.setattr(main, "_run", importing)
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        code, _, err = call("search", "queries.npy", "gallery.npy")
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (code, err) == (143, "dbnorm: ended by SIGTERM\n")


@pytest.mark.parametrize("ignored", [True, False])
def test_signals_of_others_stay_theirs(ignored, call, folder, sending):
    """As under nohup, or in a program that calls `main`."""
    heard = []
    own = signal.SIG_IGN if ignored else lambda *_: heard.append(1)
    before = signal.signal(signal.SIGTERM, own)
    try:
        seen = sending(signal.SIGTERM)
        assert call("search", "queries.npy", "gallery.npy", "--block-size", "512")[0] == 0
        assert seen == [own]
        assert signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(heard) == (0 if ignored else 2)


def test_a_thread_takes_no_signals(folder):
    codes = []

    def work():
        with pytest.raises(SystemExit) as stopped:
            main.main(["search", "few.npy", "small.npy", "--output", "found.npz"])
        codes.append(stopped.value.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(SECONDS)
    assert codes == [0]


# --- links: what is written goes nowhere else ----------------------------------------------------


@pytest.fixture
def jobs(folder):
    """Command -> what it is told, and its output."""
    rows = np.arange(60, dtype=np.float32)[None] / 60
    dbn.save("correction.npz", dbn.Correction(rows, rows > 0.5))
    for name in ("one", "two"):
        dbn.save(f"{name}.npz", dbn.bank_statistics(rows, beta=1.0))
    bank = ["--query-bank", "few.npy"]
    return {
        "fit": (["fit", "small.npy", *bank, "--method", "is"], "fitted.npz"),
        "search": (["search", "few.npy", "small.npy"], "found.csv"),
        "tune": (["tune", "few.npy", "small.npy"], "choice.npz"),
        "merge": (["merge", "one.npz", "two.npz"], "merged.npz"),
        "export": (["export", "small.npy", "--correction", "correction.npz"], "index"),
        "evaluate": (["evaluate", "few.npy", "small.npy", *bank, "--methods", "is"], "results"),
        "inspect": (["inspect", "small.npy", *bank], "hubs"),
        "demo": (["demo"], "shown"),
    }


# Of the folders that commands write.
MEMBERS = {
    "export": ["vectors.npy", "activation.npy", "README.md", "export.json", "vectors.parquet"],
    "evaluate": ["report.html", "results.csv", "results.json", "k_occurrence.png", "methods.png"],
    "inspect": ["inspection.json", "items.csv", "k_occurrence.png", "banks.png"],
    "demo": ["report.html", "results.csv", "results.json", "k_occurrence.png", "methods.png"],
}


@pytest.fixture
def planted():
    """Puts links to nothing, or to files, where a command writes -> what they lead to."""

    def plant(command, output, *, old):
        victim = pathlib.Path("victim")
        victim.mkdir()
        places = [pathlib.Path(output)]
        if command in MEMBERS:
            places[0].mkdir()
            places = [places[0] / name for name in MEMBERS[command]]
        if command == "fit":
            places += [places[0].with_name(f".{output}.lock")]
            places += [
                pathlib.Path(f"{output}.{made}.partial")
                for made in ("query-bank", "gallery-bank", "largest")
            ]
        for place in places:
            target = victim.absolute() / place.name
            place.symlink_to(target)
            if old:
                target.write_bytes(b"mine")
        return victim, places

    return plant


@pytest.mark.parametrize("old", [False, True], ids=["dangling", "leading"])
@pytest.mark.parametrize("command", ["fit", "search", "tune", "merge", *MEMBERS])
def test_links_are_refused(command, old, call, jobs, planted):
    """Before any work; each of them alone, too."""
    job, output = jobs[command]
    victim, places = planted(command, output, old=old)
    for alone in (None, *places):
        for place in places:
            if place != alone and alone is not None and place.is_symlink():
                place.rename(place.with_name(f"{place.name}-aside"))
        code, out, err = call(*job, "--output", output)
        assert (code, out) == (2, ""), alone
        assert "symbolic link" in err, alone
        assert len(err.splitlines()) == 1
        for place in places:
            if not place.is_symlink():
                place.with_name(f"{place.name}-aside").rename(place)
    contents = {one.name: one.read_bytes() for one in victim.iterdir()}
    assert contents == ({place.name: b"mine" for place in places} if old else {})


@pytest.mark.parametrize("command", slow_but(["fit"], ["fit", "search", "tune", "merge", *MEMBERS]))
def test_force_replaces_links_and_not_what_they_lead_to(command, call, jobs, planted):
    job, output = jobs[command]
    victim, places = planted(command, output, old=True)
    code, _, err = call(*job, "--output", output, "--force")
    assert code == 0, err
    assert {one.read_bytes() for one in victim.iterdir()} == {b"mine"}
    assert not [place for place in places if place.is_symlink()]
    kept = [place for place in places if place.exists()]
    assert kept
    assert all(place.read_bytes() != b"mine" for place in kept)


@pytest.mark.parametrize("command", MEMBERS)
@pytest.mark.parametrize("place", ["out", "out/below"])
def test_folders_that_are_links_to_nothing_are_refused(command, place, call, jobs):
    pathlib.Path("out").symlink_to("victim")
    job, _ = jobs[command]
    for more in ([], ["--force"]):
        code, out, err = call(*job, "--output", place, *more)
        assert (code, out) == (2, "")
        assert "got a symbolic link" in err
        assert len(err.splitlines()) == 1
    assert not pathlib.Path("victim").exists()


def test_a_link_to_a_folder_is_that_folder(call, jobs):
    pathlib.Path("real").mkdir()
    pathlib.Path("index").symlink_to("real")
    job, output = jobs["export"]
    assert call(*job, "--output", output)[0] == 0
    assert pathlib.Path("index").is_symlink()
    assert pathlib.Path("real/export.json").exists()


@pytest.mark.parametrize("kind", ["dangling", "leading", "going round"])
def test_saving_replaces_a_link_itself(kind, tmp_path):
    path, target = tmp_path / "state.npz", tmp_path / "elsewhere.npz"
    path.symlink_to(path if kind == "going round" else target)
    if kind == "leading":
        target.write_bytes(b"mine")
    dbn.save(path, killed_worker.correction(1, size=3))
    assert not path.is_symlink()
    assert float(dbn.load(path).bias[0, 0]) == 1
    assert target.read_bytes() == b"mine" if kind == "leading" else not target.exists()


@pytest.mark.parametrize("old", [False, True], ids=["dangling", "leading"])
def test_a_checkpoint_that_is_a_link_is_refused(old, tmp_path):
    path, target = tmp_path / "sums.partial", tmp_path / "elsewhere"
    path.symlink_to(target)
    if old:
        target.write_bytes(b"mine")
    rows = np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match=r"sums\.partial: expected .*, got a symbolic link"):
        dbn.out_of_core.bank_statistics(rows, rows, beta=1.0, checkpoint=path)
    assert path.is_symlink()
    assert target.read_bytes() == b"mine" if old else not target.exists()


def test_what_a_rival_puts_beside_a_file_leads_nowhere(tmp_path):
    """Links named like temporary files and their locks."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"mine")
    for name, target in (
        (".state.npz.tmp-1", "file"),
        (".state.npz.tmp-2", "new"),
        (".state.npz.tmp-3.lock", "file"),
        (".state.npz.tmp-4.lock", "new"),
    ):
        (tmp_path / name).symlink_to(victim / target)
    dbn.save(tmp_path / "state.npz", killed_worker.correction(1, size=3))
    assert [one.name for one in victim.iterdir()] == ["file"]
    assert (victim / "file").read_bytes() == b"mine"
    assert float(dbn.load(tmp_path / "state.npz").bias[0, 0]) == 1


# --- who may read what is written ----------------------------------------------------------------


@pytest.fixture
def umask(monkeypatch):
    """Sets the process's, as a user would before; afterwards nothing may."""
    before = os.umask(0o027)
    switch = os.umask

    def refuse(_):
        pytest.fail("the umask is of the whole process: other threads create files meanwhile")

    monkeypatch.setattr(os, "umask", refuse)
    yield
    switch(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_new_files_have_the_mode_that_the_umask_leaves(tmp_path):
    path = tmp_path / "state.npz"
    dbn.save(path, killed_worker.correction(1, size=3))
    assert mode_of(path) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
@pytest.mark.usefixtures("umask")
def test_old_files_keep_their_mode(mode, tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(b"old")
    path.chmod(mode)
    while_written = []
    with binary.replacing(path) as file:
        while_written.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        file.write(b"new")
    assert [*while_written, mode_of(path)] == [mode, mode]
    assert path.read_bytes() == b"new"


def test_a_file_that_another_user_left_opens_nothing_to_them(tmp_path, monkeypatch):
    """A mode of theirs narrows what a new file would have, and never widens it."""
    path = tmp_path / "state.npz"
    path.write_bytes(b"theirs")
    path.chmod(0o662)
    before, fstat = os.umask(0o022), os.fstat
    try:

        def another(handle):
            found = fstat(handle)
            return os.stat_result((*found[:4], found.st_uid + 1, *found[5:]))

        monkeypatch.setattr(os, "fstat", another)
        dbn.save(path, killed_worker.correction(1, size=3))
    finally:
        os.umask(before)
    assert mode_of(path) == 0o640


# --- Windows -------------------------------------------------------------------------------------


def is_held(path):
    """Whether this process has the file at a path open, or mapped."""
    try:
        wanted = os.lstat(path)
    except FileNotFoundError:
        return False
    for handle in (systems.PROC / "fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            if os.path.samestat(os.fstat(int(handle.name)), wanted):
                return True
    place = pathlib.Path(path).resolve()
    return f" {place}\n" in (systems.PROC / "maps").read_text("utf-8")


@pytest.fixture(params=["fcntl", "msvcrt", "no locks"])
def windows(request, monkeypatch):
    """Its law: a file that is open or mapped is not renamed, replaced or removed."""
    if not systems.PROC.exists():
        pytest.skip("reads /proc")
    fcntl, opened = pytest.importorskip("fcntl"), os.open

    def lawful(original):
        def function(*paths, **options):
            for path in paths:
                if is_held(path):
                    raise PermissionError(13, "The process cannot access the file", str(path))
            return original(*paths, **options)

        return function

    def files_only(path, flags, *mode, **options):
        if pathlib.Path(path).is_dir() and not flags & getattr(os, "O_TMPFILE", 0):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *mode, **options)

    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, lawful(getattr(os, name)))
    monkeypatch.setattr(os, "open", files_only)

    def locking(handle, mode, count):
        assert (mode, count) == (2, 1)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

    if request.param != "fcntl":
        monkeypatch.setattr(binary, "fcntl", None)
        fake = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
        found = fake if request.param == "msvcrt" else None
        monkeypatch.setattr(binary, "msvcrt", found, raising=False)
    return request.param


def test_the_law_of_windows_is_kept_here(windows, tmp_path):
    """That the fixture notices."""
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(9.0))
    with path.open("rb"), pytest.raises(PermissionError):
        path.replace(tmp_path / "other")
    mapped = np.load(path, mmap_mode="r")
    with pytest.raises(PermissionError):
        path.unlink()
    del mapped
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("windows", ["msvcrt"], indirect=True)
def test_every_command_writes_on_windows(windows, call, jobs):
    """New files, and over what is there."""
    for command, (job, output) in jobs.items():
        for place in [f"{output}/{name}" for name in MEMBERS.get(command, ())] or [output]:
            pathlib.Path(place).parent.mkdir(exist_ok=True)
            pathlib.Path(place).write_bytes(b"old")
        more = ["--checkpoint-every", 0] * (command == "fit")
        code, _, err = call(*job, "--output", output, *more, "--force")
        assert code == 0, (command, err)
    job, _ = jobs["search"]
    for output in ("found.npz", "found.npy", "found.jsonl"):
        assert call(*job, "--output", output)[0] == 0, output
    assert not [one for one in pathlib.Path().rglob("*") if one.name.startswith(".")]
    assert not list(pathlib.Path().rglob("*.partial"))


def test_a_failed_write_leaves_nothing_on_windows(windows, tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), binary.replacing(path) as file:
        file.write({}["missing"])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_locks_on_windows(windows, tmp_path):
    """With them no work is taken for cut off, and two fits are kept apart."""
    path = tmp_path / "state.npz"
    with binary.alone(path), binary.replacing(path) as file:
        if windows != "no locks":
            with pytest.raises(BlockingIOError), binary.alone(path):
                pytest.fail("held twice")
        (tmp_path / ".state.npz.tmp-left").write_bytes(b"half")
        dbn.save(path, killed_worker.correction(1, size=3))
        file.write(b"second")
    assert path.read_bytes() == b"second"
    left = {".state.npz.tmp-left"} if windows == "no locks" else set()
    assert {one.name for one in tmp_path.iterdir()} == {path.name} | left


def test_a_file_system_without_locks(monkeypatch, tmp_path):
    """Nothing is taken for cut off there, and nothing kept apart."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", flock)
    path, left = tmp_path / "state.npz", tmp_path / ".state.npz.tmp-left"
    left.write_bytes(b"half")
    with binary.alone(path), binary.alone(path):
        dbn.save(path, killed_worker.correction(1, size=3))
    assert {*tmp_path.iterdir()} == {path, left}


@pytest.mark.parametrize("command", ["search", "export", "fit", "tune"])
def test_an_output_that_is_an_input_is_refused(command, call, folder):
    """What is read by blocks, or mapped, is not to be replaced under the reader."""
    np.savez("set.npz", gallery=np.load("small.npy"))
    pathlib.Path("out").mkdir()
    np.save("out/vectors.npy", np.load("small.npy"))
    dbn.save("c.npz", dbn.Correction(np.zeros((1, 60), np.float32), None))
    job, output = {
        "search": (["search", "few.npy", "small.npy"], "few.npy"),
        "export": (["export", "out/vectors.npy", "--correction", "c.npz"], "out"),
        "fit": (["fit", "set.npz:gallery", "--query-bank", "few.npy", "--method", "is"], "set.npz"),
        "tune": (["tune", "few.npy", "set.npz:gallery"], "set.npz"),
    }[command]
    before = {one: one.read_bytes() for one in folder.rglob("*.np?")}
    code, out, err = call(*job, "--output", output, "--force")
    assert (code, out) == (2, "")
    assert f"--output '{output}" in err
    assert "expected another file than" in err
    assert {one: one.read_bytes() for one in folder.rglob("*.np?")} == before
