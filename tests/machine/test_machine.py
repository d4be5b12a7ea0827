"""This computer, machines that are described, and what containers and drivers say of them."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from workbench.errors import InputError, NotFoundError
from workbench.machine import (
    Machine,
    describe_machine,
    host,
    machine,
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
