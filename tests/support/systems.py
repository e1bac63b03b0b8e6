"""What only some systems have, in one place: tests that need it skip where it is not."""

import contextlib
import importlib
import os
import pathlib
import signal

import pytest


def _module(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


resource = _module("resource")  # None on Windows
PROC = pathlib.Path("/proc/self")  # on Linux

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
limits = pytest.mark.skipif(resource is None, reason="limits a process")
reads_proc = pytest.mark.skipif(not (PROC / "statm").exists(), reason="reads /proc")


def memory(field):
    """Bytes of this process, as `reads_proc` says: all that it may touch, or what is resident."""
    pages = (PROC / "statm").read_text("ascii").split()
    return int(pages[("all", "resident").index(field)]) * resource.getpagesize()


def peak_memory():
    """The most bytes of this process so far, in units of the system; 0 where it does not say."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def limited(kind, most):
    """This process under a limit, by its name in `resource`."""
    kind = getattr(resource, kind)
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextlib.contextmanager
def limited_seconds(seconds, then):
    """Calls the handler once the work has taken so many seconds of the processor, where it may."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGPROF, then)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
