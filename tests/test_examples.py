"""The examples run, without a warning, and say what they should."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("emoji") is None, reason="needs dbnorm_jax[cli]"),
]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("learn_betas", "DualIS, learned"),
        ("adapter", "Over post-hoc correction alone"),
        ("sensitivity", "Taking them away"),
    ],
)
def test_examples_run(name, last):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{name}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip().startswith(last)
