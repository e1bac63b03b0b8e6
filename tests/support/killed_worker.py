"""Runs jobs in forked children, so that a kill costs no import.

A line of JSON in, the process id of the child out; an empty line in, its exit code out.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.commands import declared  # noqa: F401 - imported before the fork
from dbnorm_jax._cli.commands.main import main

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 300


class Worker:
    """Children of one process, to be killed."""

    def __init__(self, **environment):
        if not hasattr(os, "fork"):
            import pytest

            pytest.skip("forks")
        fast = {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        environment = {**os.environ, **fast, **environment}
        environment.pop("XLA_FLAGS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
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

    def close(self):
        with self.process:
            self.process.stdin.close()
            self.process.wait(SECONDS)


# --- in the worker -------------------------------------------------------------------------------


def correction(seed, size=20_000):
    return dbn.Correction(np.full((2, size), seed, np.float32), None)


def save_for_ever(path, seed):
    while True:
        dbn.save(pathlib.Path(path), correction(seed))
        seed += 2


def child(job):
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    if job[0] == "save":
        save_for_ever(job[1], int(job[2]))
    main(job)


def serve():
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if not process:
            try:
                child(job)
            except SystemExit as stopped:
                os._exit(stopped.code or 0)
            finally:
                os._exit(70)
        print(process, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
