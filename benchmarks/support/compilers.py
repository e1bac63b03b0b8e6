"""The compilers of TPUs and of NVIDIA's GPUs, on a machine that has none.

They come as packages, `pip install -e '.[compilers]'`, and compile for a device described to
them. What comes out is the program that the device would run; nothing here runs it.
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from benchmarks.support import schedules

# What libtpu asks of a machine with TPUs, and the one compilation service that it would be alone.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Four devices of a kind, and the peaks of one, as its maker states them."""

    platform: str  # as JAX lowers for it
    topology: str
    flops: float  # per second, of products of bfloat16 added in float32
    bandwidth: float  # bytes per second of its memory
    clock: float | None = None  # cycles per second; None = no time is made of cycles
    cores: int = 1  # of a device; a schedule is of one
    description: Mapping[str, Any] | None = None  # of a GPU

    @property
    def passes(self) -> dict[str, int]:
        """Products of bfloat16 that one product takes, by the dtype of the embeddings."""
        return {"bfloat16": 1, "float32": 6}


def _gpu(capability: int, cores: int, clock: float, bandwidth: float, **more: int) -> dict:
    """A GPU in the words of XLA's `GpuTargetConfigProto`; memory in bytes, clocks in GHz."""
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "memory_bandwidth": int(bandwidth),
        "clock_rate_ghz": clock,
        "cuda_compute_capability": {"major": capability},
        "device_vendor": "NVIDIA Corporation",
        **dict.fromkeys(("driver_version", "runtime_version"), "13.0.0"),
        "compile_time_toolkit_version": "13.0.0",
        "dnn_version": "9.10.0",
    }
    return device | more


TARGETS = {
    "v4": Target("tpu", "v4:2x2x1", 275e12, 1228e9, 1.05e9, cores=2),
    "v5e": Target("tpu", "v5e:2x2", 197e12, 819e9, 1.5e9),
    "v5p": Target("tpu", "v5p:2x2x1", 459e12, 2765e9, 1.75e9, cores=2),
    "v6e": Target("tpu", "v6e:2x2", 918e12, 1640e9, 1.75e9),
    "tpu7x": Target("tpu", "tpu7x:2x2x1", 1153e12, 3690e9),
    "h200": Target(
        "cuda",
        "1x1x4",
        989e12,
        4800e9,
        description=_gpu(
            9,
            cores=132,
            clock=1.98,
            bandwidth=4800e9,
            fpus_per_core=128,
            shared_memory_per_core=228 * 1024,
            shared_memory_per_block_optin=227 * 1024,
            l2_cache_size=50 * 2**20,
            device_memory_size=141 * 2**30,
        ),
    ),
    "a100": Target(
        "cuda",
        "1x1x4",
        312e12,
        2039e9,
        description=_gpu(
            8,
            cores=108,
            clock=1.41,
            bandwidth=2039e9,
            fpus_per_core=64,
            shared_memory_per_core=164 * 1024,
            shared_memory_per_block_optin=163 * 1024,
            l2_cache_size=40 * 2**20,
            device_memory_size=80 * 2**30,
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler made of a function."""

    text: str  # the optimized program
    temporaries: int  # bytes on each device
    schedules: Mapping[str, schedules.Schedule]  # of its steps, on TPUs


class Compiler:
    """The compiler of one target."""

    def __init__(self, name: str) -> None:
        self.name, self.target = name, TARGETS[name]
        self._folder = Path(tempfile.mkdtemp(prefix=f"compiled-{name}-"))
        self.devices = self._devices()

    def close(self) -> None:
        """Removes what the compiler has written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _devices(self) -> Sequence[Any]:
        jax.config.update("jax_platforms", "cpu")
        if self.target.platform == "tpu":
            # Read once, when libtpu is loaded: one target per process.
            flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {schedules.FLAGS}"
            os.environ.update(_WITHOUT_TPU, LIBTPU_INIT_ARGS=flags.format(folder=self._folder))
            asked: dict[str, Any] = {"topology_name": self.target.topology}
        else:
            jax.devices()  # makes the plugins known
            config = f"gpu_device_info {{\n{_proto(self.target.description)}\n}}\n"
            config += 'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n'
            config += f'device_description_str: "NVIDIA {self.name.upper()}"\n'
            asked = {"topology_name": self.name, "topology": self.target.topology}
            asked["target_config"] = config
        try:
            return topologies.get_topology_desc(platform=self.target.platform, **asked).devices
        except Exception as error:  # of the packages or of XLA
            self.close()
            raise SystemExit(
                f"no compiler for {self.name} here: pip install -e '.[compilers]' has them "
                f"({type(error).__name__}: {str(error).splitlines()[0][:200]})"
            ) from None

    def mesh(self) -> jax.sharding.Mesh:
        """Two by two devices."""
        devices = np.array(self.devices[:4]).reshape(2, 2)
        types = (jax.sharding.AxisType.Auto,) * 2
        return jax.sharding.Mesh(devices, ("bank", "gallery"), axis_types=types)

    def compile(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Compiled:
        """Of arguments as `jax.ShapeDtypeStruct`; those without a sharding lie on one device."""
        one = jax.sharding.SingleDeviceSharding(self.devices[0])
        placed = [
            jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=each.sharding or one)
            for each in arguments
        ]
        for path in self._folder.iterdir():
            path.unlink()
        platforms = (self.target.platform,)
        compiled = jax.jit(function).trace(*placed).lower(lowering_platforms=platforms).compile()
        found = schedules.read_folder(self._folder)
        return Compiled(compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes, found)


def _proto(fields: Mapping[str, Any] | None) -> str:
    """Text of a protocol buffer."""
    lines = []
    for name, value in (fields or {}).items():
        if isinstance(value, Mapping):
            lines.append(f"{name} {{ {_proto(value)} }}")
        else:
            lines.append(f'{name}: "{value}"' if isinstance(value, str) else f"{name}: {value}")
    return "\n".join(lines)
