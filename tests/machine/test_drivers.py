"""What control groups, processors and drivers say, from invented files and libraries."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import pytest

from workbench.machine import (
    Device,
    accelerators,
    container,
    default_device,
    hardware,
    host,
    machine,
    nvml,
)

GIB = 1 << 30


# Containers


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "40 24 0:33 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 24 0:34 {root} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
)


def test_nested_groups_of_version_2_leave_the_least(tmp_path: Path) -> None:
    found = container.limits(
        tree(
            tmp_path,
            {
                "proc/self/cgroup": "0::/user.slice/job\n",
                "proc/self/mountinfo": V2,
                "sys/fs/cgroup/user.slice/memory.max": f"{2 * GIB}\n",
                "sys/fs/cgroup/user.slice/memory.current": f"{GIB}\n",
                "sys/fs/cgroup/user.slice/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
                "sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/user.slice/job/memory.max": "max\n",
                "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000\n",
            },
        )
    )
    assert found.memory_bytes == 2 * GIB
    assert found.memory_free_bytes == 2 * GIB - GIB // 2  # file cache can be had back
    assert found.cpus == 1.5


def test_groups_of_version_1_are_found_as_a_container_sees_them(tmp_path: Path) -> None:
    found = container.limits(
        tree(
            tmp_path,
            {
                "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
                "proc/self/mountinfo": V1.format(root="/docker/abc"),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/memory/memory.stat": (
                    f"total_inactive_file 0\nhierarchical_memory_limit {3 * GIB}\n"
                ),
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
        )
    )
    assert found.memory_bytes == 3 * GIB  # a group around the container, which it cannot see
    assert found.memory_free_bytes == 3 * GIB
    assert found.cpus == 0.5


def test_no_limit_and_no_groups_are_no_limit(tmp_path: Path) -> None:
    none = container.Limits()
    assert container.limits(tmp_path) == none
    unlimited = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/\n0::/../../elsewhere\n",
            "proc/self/mountinfo": V1.format(root="/") + V2,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert container.limits(unlimited) == none


def test_a_limit_is_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware._fixed.cache_clear()
    limit = container.Limits(memory_bytes=GIB, memory_free_bytes=GIB // 4, cpus=0.5)
    monkeypatch.setattr(container, "limits", lambda: limit)
    try:
        found = machine()
    finally:
        hardware._fixed.cache_clear()
    assert (found.ram_bytes, found.ram_available_bytes) == (GIB, GIB // 4)
    assert found.cores == 1
    said = found._repr_mimebundle_()["text/plain"]
    assert "0.2 free of 1.0 GiB (container limit)" in said
    assert "0.5 of CPU time" in said


def test_processors_are_read_from_either_architecture(tmp_path: Path) -> None:
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve\nModel\t\t: Board 5\n")
    assert host.instruction_sets(arm) == ("NEON", "DOTPROD", "I8MM", "SVE")
    assert host.processor(arm) == "Board 5"
    intel = tmp_path / "intel"
    intel.write_text("model name\t: X\nflags\t\t: fpu avx avx2 avx512f amx_tile avx512_vnni\n")
    assert host.instruction_sets(intel) == ("AVX", "AVX2", "AVX512", "AVX512-VNNI", "AMX")


# Drivers


class Driver(types.ModuleType):
    """The part of nvidia-ml-py that is used, over two invented devices."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, unified: bool = False) -> None:
        super().__init__("pynvml")
        self.used = 4 * GIB
        self.unified = unified

    def nvmlInit(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13000

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        raise self.NVMLError(name)

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}{handle}{handle}-secret"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return ("NVIDIA A", "NVIDIA B")[handle]

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return ((9, 0), (8, 9))[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:
        if self.unified:
            raise self.NVMLError("not supported")
        total = 24 * GIB
        return types.SimpleNamespace(total=total, free=total - self.used, used=self.used)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    fake = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    fake.__spec__ = importlib.machinery.ModuleSpec("pynvml", None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_devices_are_read_from_the_driver(driver: Driver) -> None:
    found = machine()
    assert [device.name for device in found.devices] == ["NVIDIA A", "NVIDIA B"]
    assert found.devices[0].compute_capability == (9, 0)
    assert (found.driver, found.cuda) == ("580.65.06", "13.0")
    assert found.free()["cuda:1"] == 20 * GIB
    driver.used = 10 * GIB
    assert found.free()["cuda:1"] == 14 * GIB  # read now, not remembered
    assert found.devices[1].free_bytes == 20 * GIB
    assert "secret" not in json.dumps(found.describe())
    assert "compute capability 9.0" in found._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["NVIDIA B"]),
        ("1,0", ["NVIDIA B", "NVIDIA A"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["NVIDIA A"]),
        ("GPU-111", ["NVIDIA B"]),
        ("GPU-999", []),
    ],
)
def test_hidden_devices_stay_hidden(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.name for device in machine().devices] == names


def test_a_device_without_memory_of_its_own_shares_ours(driver: Driver) -> None:
    driver.unified = True
    found = machine()
    assert found.devices[0].unified
    assert found.devices[0].total_bytes == host.physical_memory()


def test_the_default_device_is_one_that_pytorch_can_use(driver: Driver) -> None:
    import torch

    assert default_device("llama_cpp") == "cuda"
    assert default_device() == ("cuda" if torch.cuda.is_available() else "cpu")


def test_without_the_driver_pytorch_is_asked_only_where_a_device_could_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(nvml, "library", lambda: (None, "nvidia-ml-py is not installed"))
    monkeypatch.setattr(accelerators, "_SIGNS", ("/nowhere/at/all",))
    assert not accelerators.torch_may_have_devices()
    assert accelerators.find() == accelerators.Found()
    monkeypatch.setattr(accelerators, "_SIGNS", ("/",))
    monkeypatch.setattr(accelerators.metadata, "version", lambda name: "2.13.0")
    assert accelerators.torch_may_have_devices()
    fake = types.ModuleType("torch")
    fake.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    fake.version = types.SimpleNamespace(cuda="13.0")  # type: ignore[attr-defined]
    fake.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda index: types.SimpleNamespace(name="T4", major=7, minor=5),
        mem_get_info=lambda index: (10 * GIB, 16 * GIB),
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    found = accelerators.find()
    assert found.devices == (
        Device(
            kind="cuda",
            name="T4",
            total_bytes=16 * GIB,
            free_bytes=10 * GIB,
            compute_capability=(7, 5),
        ),
    )
    assert found.notes == ("nvidia-ml-py is not installed: device memory is read through PyTorch",)
    monkeypatch.setattr(accelerators.metadata, "version", lambda name: "2.13.0+cpu")
    assert not accelerators.torch_may_have_devices()


def test_apples_gpu_takes_metals_figure_before_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"hw.memsize": str(16 * GIB), "machdep.cpu.brand_string": "Apple M3"}
    monkeypatch.setattr(host, "sysctl", settings.get)
    monkeypatch.setattr(accelerators, "_from_metal", lambda: None)
    found = accelerators._apple()
    (device,) = found.devices
    assert (device.name, device.unified, device.kind) == ("Apple M3 GPU", True, "mps")
    assert device.working_set_bytes == 16 * GIB * 2 // 3
    assert "llama.cpp prints" in found.notes[0]
    settings["iogpu.wired_limit_mb"] = "14000"
    assert accelerators.working_set(16 * GIB) == (
        14000 << 20,
        "the system's setting iogpu.wired_limit_mb",
    )
    monkeypatch.setattr(accelerators, "_from_metal", lambda: (12 * GIB, "Metal, through MLX"))
    assert accelerators.working_set(16 * GIB)[0] == 12 * GIB
