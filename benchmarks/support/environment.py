"""What figures were made on, and processes to make them in. Imports no JAX by itself."""

import json
import os
import platform
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("dbnorm_jax", "jax", "jaxlib", "numpy", "faiss-cpu", "torch", "threadpoolctl"),
    *("libtpu", "jax-cuda13-plugin"),
)


def versions() -> dict[str, str]:
    """Installed packages that matter here."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def commit() -> str:
    """The commit of the measured code, "+" where files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_lines(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return ""


def processor() -> str:
    """The processor's name."""
    return _cpu_lines("model name") or platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Machine, versions and commit, for a JSON line."""
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory("MemTotal") / 1024, 1),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }
    if "jax" in sys.modules:
        import jax

        found["devices"] = sorted({device.device_kind for device in jax.devices()})
    return found


def summary() -> str:
    """The same in one line."""
    found = describe()
    devices = ", ".join(found.get("devices", ["cpu"]))
    return (
        f"{found['date']}, {found['processor']}, {found['cores']} cores, jax "
        f"{found['versions']['jax']} on {devices}, NumPy {found['versions']['numpy']}, Python "
        f"{found['python']}, commit {found['commit']}"
    )


# --- OpenBLAS ----------------------------------------------------------------------------------


def openblas_core() -> str:
    """The name of the OpenBLAS kernel made for this processor; "" where none is known here.

    Left alone, OpenBLAS often picks an older one on processors newer than itself.
    """
    flags = set(_cpu_lines("flags").split())
    if "avx512dq" in flags:
        return "SkylakeX"
    if "avx2" in flags:
        return "Zen" if "AMD" in _cpu_lines("vendor_id") else "Haswell"
    return ""


def kernels() -> list[str]:
    """Loaded BLAS libraries with the kernel each has picked."""
    try:
        import threadpoolctl
    except ImportError:
        return ["unknown: threadpoolctl is not installed"]
    return sorted(
        {
            f"{info['internal_api']} {info.get('version')} {info.get('architecture', '')}: "
            f"{info['num_threads']} threads"
            for info in threadpoolctl.threadpool_info()
            if info["user_api"] == "blas"
        }
    )


def quiet_import_faiss() -> Any:
    """The faiss module, or None; its bindings warn while they are imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import faiss
    except ImportError:
        return None
    return faiss


# --- processes ---------------------------------------------------------------------------------


def child(
    module: str, *arguments: object, variables: dict[str, str | None] | None = None
) -> dict[str, Any]:
    """Runs `python -m module arguments` and reads the JSON of its last line.

    Args:
      module: of this package.
      *arguments: its command line.
      variables: environment variables to set, or to remove where None.
    """
    environment = dict(os.environ)
    for name, value in (variables or {}).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- memory ------------------------------------------------------------------------------------


def _memory(field: str) -> float:
    return _field(Path("/proc/meminfo"), field)


def available_memory() -> float:
    """MiB that can be taken now."""
    return _memory("MemAvailable")


def resident() -> float:
    """MiB of this process."""
    return _field(Path("/proc/self/status"), "VmRSS")


def peak_resident() -> float:
    """The largest number of MiB of this process since `restart_peak`."""
    return _field(Path("/proc/self/status"), "VmHWM")


def own_memory(field: str) -> float:
    """MiB of this process in a field of /proc/self/status."""
    return _field(Path("/proc/self/status"), field)


def restart_peak() -> None:
    """Lets the peak begin anew from what is resident."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def limit_data(mebibytes: float) -> None:
    """Refuses this process more data than that, from here on."""
    import resource  # which Windows has not

    most = int(mebibytes * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _field(path: Path, field: str) -> float:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith(field + ":"))
    except (OSError, StopIteration):
        raise OSError(f"no {field} in {path}: memory is measured on Linux only") from None
    return int(line.split()[1]) / 1024
