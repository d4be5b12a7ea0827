"""This computer, machines that are described, and what containers and drivers say of them."""

from __future__ import annotations

import getpass
import importlib.machinery
import json
import platform
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from workbench.errors import InputError, NotFoundError
from workbench.machine import (
    Device,
    Machine,
    accelerators,
    container,
    default_device,
    describe_machine,
    hardware,
    host,
    machine,
    nvml,
)
from workbench.redact import redacted

GIB = 1 << 30


# This computer


def test_this_computer_agrees_with_the_kernel() -> None:
    import psutil

    found = machine()
    assert found.ram_bytes <= psutil.virtual_memory().total
    assert 0 < found.ram_available_bytes <= found.ram_bytes
    assert 1 <= found.cores <= psutil.cpu_count()
    assert found.described is None
    assert set(found.disk_free_bytes) == {"outputs", "cache"}
    assert found.versions["torch"] == metadata.version("torch")
    if platform.machine() in ("x86_64", "AMD64"):
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
        assert ("AVX2" in found.instructions) == ("avx2" in flags)


def test_it_is_light_and_the_second_call_reads_free_figures_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import sys, workbench as wb\n"
        "wb.machine(); wb.machine('24GB-cuda')\n"
        "print({'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    first = machine()
    monkeypatch.setattr(host, "available_memory", lambda: 123456)
    assert machine().ram_available_bytes == 123456
    assert first.ram_available_bytes != 123456
    assert first.refresh().ram_available_bytes == 123456
    assert first.free()["ram"] == 123456
    monkeypatch.setattr(host, "processor", lambda: "asked again")
    assert machine().processor == first.processor  # what does not change is asked once


def test_it_goes_to_plain_data_and_back() -> None:
    found = machine()
    plain = json.loads(json.dumps(found.describe()))
    assert Machine.of(plain) == found
    other = describe_machine("2x80GB-cuda-hopper+256GB-ram")
    assert Machine.of(other.describe()) == other
    assert other.devices[1].compute_capability == (9, 0)


def test_receipts_learn_no_names() -> None:
    plain = machine().describe()
    text = json.dumps(plain)
    assert redacted(plain) == plain
    assert str(Path.home()) not in text
    if getpass.getuser() != "root":
        assert f"/{getpass.getuser()}" not in text
    assert len(platform.node()) < 4 or platform.node() not in text


# Machines that one does not have


@pytest.mark.parametrize(
    ("text", "devices", "each", "capability", "ram"),
    [
        ("24GB-cuda", 1, 24, (8, 0), 32),
        ("2x80GB-cuda", 2, 80, (8, 0), 160),
        ("8x141GB-cuda", 8, 141, (8, 0), 1128),
        ("24GB-cuda-turing", 1, 24, (7, 5), 32),
        ("24gib-CUDA-sm75", 1, 24, (7, 5), 32),
        ("24GB-cuda-sm120", 1, 24, (12, 0), 32),
        ("1x24GB-cuda+64GB-ram", 1, 24, (8, 0), 64),
        ("24GB-cuda + cpu-64GB", 1, 24, (8, 0), 64),
        ("cpu-32GB", 0, 0, None, 32),
        ("32GB-cpu", 0, 0, None, 32),
    ],
)
def test_texts_are_read(
    text: str, devices: int, each: int, capability: tuple[int, int] | None, ram: int
) -> None:
    found = machine(text)
    assert len(found.devices) == devices
    for device in found.devices:
        assert device.kind == "cuda"
        assert device.total_bytes == device.free_bytes == device.usable_bytes == each * GIB
        assert device.compute_capability == capability
        assert not device.unified
    assert found.ram_bytes == ram * GIB
    assert found.described == text
    assert found.refresh() is found
    said = found._repr_mimebundle_()["text/plain"]
    assert text in said
    assert ("compute capability 8.0 (Ampere)" in said) == (capability == (8, 0) and devices > 0)
    assert ("GiB of RAM" in said) == ("+" not in text and "cpu" not in text)


@pytest.mark.parametrize(
    ("size", "share"),
    [(16, 2 / 3), (32, 2 / 3), (64, 3 / 4), (96, 3 / 4)],
)
def test_a_mac_has_one_memory_and_a_working_set(size: int, share: float) -> None:
    found = machine(f"{size}GB-mac")
    (device,) = found.devices
    assert (device.kind, device.unified) == ("mps", True)
    assert device.total_bytes == found.ram_bytes == size * GIB
    assert device.usable_bytes == pytest.approx(size * GIB * share, rel=1e-6)
    assert "recommendedMaxWorkingSetSize" in found._repr_mimebundle_()["text/plain"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24GB",
        "cuda",
        "24-cuda",
        "0x24GB-cuda",
        "24GB-tpu",
        "2x16GB-mac",
        "16GB-mac+64GB-ram",
        "64GB-ram+cpu-32GB",
        "24GB-cuda-turin",
        "24GB-cuda-sm7",
        "16GB-mac-m1",
        "16GB-mac+24GB-cuda",
        "0GB-cuda",
        "-24GB-cuda",
        "24GB-cuda+",
    ],
)
def test_what_cannot_be_read_is_one_error_with_the_forms(text: str) -> None:
    with pytest.raises(InputError, match="24GB-cuda, 24GB-cuda-turing") as raised:
        describe_machine(text)
    assert repr(text) in str(raised.value)
    if "turin" in text:
        assert "Did you mean 'turing'?" in str(raised.value)


def test_files_of_machines(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        "processor: Xeon\ncores: 16\nram_bytes: 64GB\n"
        "devices:\n  - {kind: cuda, name: RTX, total_bytes: 24GB, compute_capability: [8, 9]}\n"
    )
    found = machine(path)
    assert found.ram_bytes == 64 * GIB
    assert found.devices[0].compute_capability == (8, 9)
    assert found.devices[0].usable_bytes == 24 * GIB
    assert found.described == "lab.yaml"
    assert found.free() == {"swap": 0}  # nothing was said of what is free
    for name, dump in (("a.json", json.dumps), ("a.yaml", yaml.safe_dump)):
        (tmp_path / name).write_text(dump(machine().describe()))
        again = machine(str(tmp_path / name))
        assert again.described == name  # its free figures are of then, not of now
        assert again == machine(machine().describe()).changed(
            described=name,
            ram_available_bytes=again.ram_available_bytes,
            swap_free_bytes=again.swap_free_bytes,
            disk_free_bytes=again.disk_free_bytes,
            devices=again.devices,
        )


def test_bad_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.json"):
        machine(tmp_path / "nowhere.json")
    bad = tmp_path / "bad.json"
    for text, words in (
        ("{", "not valid JSON"),
        ("[]", "mapping"),
        ('{"ram_byte": 1}', "ram_bytes"),
        ('{"ram_bytes": "much"}', "ram_bytes = 'much'"),
        ('{"ram_bytes": 1, "devices": [{"kind": "tpu", "name": "x"}]}', "cuda"),
        ('{"ram_bytes": -1}', "ram_bytes = -1"),
    ):
        bad.write_text(text)
        with pytest.raises(InputError, match=words):
            machine(bad)


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
