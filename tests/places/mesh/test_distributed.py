"""Two real processes on this machine, joined by `jax.distributed`: as in one process."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
WORKER = ROOT / "tests" / "support" / "distributed_worker.py"
PATIENCE = 240  # seconds; then the processes are ended and the test fails


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(work, num_processes=2):
    """[(exit code, output)] of each process; none outlives the test."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(num_processes), port, work],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_processes)
    ]
    try:
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"a process of {work!r} was still running after {PATIENCE} s")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, text) for process, text in zip(processes, outputs, strict=True)]


@pytest.mark.slow
def test_two_processes_as_one():
    """Fit, search, ranks and gradient."""
    for code, output in run("check"):
        assert code == 0, output
        assert "equal" in output


@pytest.mark.slow
def test_bad_input_of_one_process_raises_on_all():
    outcomes = run("errors")
    errors = [
        [line for line in output.splitlines() if line.startswith("error: ")]
        for _, output in outcomes
    ]
    assert all(code == 0 for code, _ in outcomes), outcomes
    assert errors[0] == errors[1]
    assert "`bank` must be finite" in errors[0][0]
    assert "[11]" in errors[0][0]
    assert "`bank` must have no zero row" in errors[0][1]
    assert "found 3, the first at row 9" in errors[0][1]


@pytest.mark.slow
def test_the_survivor_of_a_lost_peer_ends_with_an_error():
    (code, output), (lost, _) = run("lose")
    assert lost == 9
    assert "ready" in output
    assert code != 0
