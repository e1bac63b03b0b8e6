"""What a script of the examples prints, and the numbers in it."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def lines_of(name, *arguments, devices=1):
    """What an example prints."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    if devices > 1:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def numbers(line):
    """Those of a line, in its order."""
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", line.replace(",", ""))]
