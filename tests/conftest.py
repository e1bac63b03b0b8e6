"""Strict JAX for every test: no silent promotion, eight devices, warnings are errors."""

import importlib.metadata
import os
import pathlib
import socket
import sys

# Read when JAX starts; sharded and unsharded code see the same eight CPU devices.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Where nothing is optimized, emitting fusions through MLIR takes half of the time that is left.
# From JAX 0.11 on they are emitted in no other way, and the flag is fatal.
if "xla_backend_optimization_level=0" in os.environ["XLA_FLAGS"] and importlib.metadata.version(
    "jaxlib"
).startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=bool(os.environ.get("CI")), max_examples=25
)
hypothesis.settings.register_profile("short", deadline=None, derandomize=True, max_examples=3)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=400)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


LOOPBACK = {"localhost", "127.0.0.1", "::1", "", None, socket.gethostname()}


def _refuse_network(event, arguments):
    """An audit hook: nothing is looked up or connected to but this machine."""
    host = None
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    if host not in LOOPBACK and not str(host).startswith("127."):
        raise RuntimeError(f"tests use no network, got {event} of {host!r}")


sys.addaudithook(_refuse_network)


DATA = pathlib.Path(__file__).parent / "data"

# Begun first, so that none of them runs alone at the end.
LONG = {"test_transforms", "test_every_method", "test_selection", "test_bank", "test_search"}


def pytest_addoption(parser):
    text = "one case of every N-th test function of a file, the first one included"
    parser.addoption("--every", type=int, metavar="N", help=text)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.stem not in LONG)
    every = config.getoption("--every")
    if every:
        files = {}  # path -> test function -> its cases
        for item in items:
            functions = files.setdefault(item.path, {})
            functions.setdefault(item.nodeid.split("[")[0], []).append(item)
        chosen = [cases[0] for found in files.values() for cases in [*found.values()][::every]]
        config.hook.pytest_deselected(items=list({*items} - {*chosen}))
        items[:] = chosen


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """A process may map only so many of them."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compile_fast():
    """For tests whose time is nearly all compilation."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def x64():
    """float64 for the duration of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def golden(request):
    """The peers' inputs and outputs of one seed."""
    with np.load(DATA / f"golden_seed{request.param}.npz") as archive:
        return dict(archive)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    """Each precision in turn, with x64 on where it is needed."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def call(capsys):
    """Runs `dbnorm` in this process -> (exit code, stdout, stderr)."""
    command = pytest.importorskip("dbnorm_jax._cli.commands.main")

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            command.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run
