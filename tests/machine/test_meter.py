"""The meter against allocations whose size is known."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from touched_memory import touched

from workbench.errors import InputError
from workbench.machine import probes
from workbench.machine.meter import Meter
from workbench.machine.timeline import Timeline

MB = 1_000_000
linux = pytest.mark.xfail(sys.platform != "linux", reason="there is no /proc to read children in")
exact_peak = pytest.mark.xfail(
    not probes.HostPeak.permitted(), reason="this kernel does not let its peak be reset"
)


def spike(size: int) -> None:
    """Touch and free ``size`` bytes inside one call that holds the interpreter's lock."""
    region = mmap.mmap(-1, size)
    view = (ctypes.c_char * size).from_buffer(region)
    memset = ctypes.PyDLL(None).memset
    memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    memset(ctypes.addressof(view), 1, size)
    del view
    region.close()


@pytest.mark.parametrize("exact", [True, False])
def test_a_known_allocation_is_measured_within_five_percent(exact: bool) -> None:
    size = 200 * MB
    with Meter(interval=0.02, exact=exact) as meter:
        with meter.phase("keep"):
            kept = touched(size)
            time.sleep(0.1)
        with meter.phase("nothing"):
            time.sleep(0.05)
        with meter.phase("free"):
            del kept
    keep, nothing, free = (p for p in meter.phases if p.place == probes.HOST)
    assert keep.delta_bytes == pytest.approx(size, rel=0.05)
    assert keep.kept_bytes == pytest.approx(size, rel=0.05)
    assert keep.anonymous_bytes == pytest.approx(size, rel=0.05)
    assert nothing.delta_bytes < 5 * MB  # the earlier allocation is no part of this phase
    assert free.kept_bytes == pytest.approx(-size, rel=0.05)
    assert free.delta_bytes < 5 * MB


@exact_peak
def test_a_peak_inside_a_phase_does_not_reach_the_next() -> None:
    with Meter() as meter:
        with meter.phase("spike"):
            spike(150 * MB)
        with meter.phase("after"):
            spike(20 * MB)  # mapped: the heap may have so much freed memory to hand out again
    assert meter.delta("spike") == pytest.approx(150 * MB, rel=0.05)
    assert meter.delta("after") == pytest.approx(20 * MB, rel=0.25)


@exact_peak
def test_a_spike_that_sampling_misses_is_caught_by_the_kernels_peak() -> None:
    with Meter(interval=30, exact=False) as sampled, sampled.phase("spike"):
        spike(150 * MB)
    with Meter(interval=30) as exact, exact.phase("spike"):
        spike(150 * MB)
    assert sampled.phases[0].source == "sampled RSS"
    assert exact.phases[0].source == "VmHWM"
    missed, caught = sampled.delta("spike"), exact.delta("spike")
    assert missed is not None
    assert missed < 15 * MB
    assert caught == pytest.approx(150 * MB, rel=0.05)


def test_mapped_files_and_heap_are_told_apart(tmp_path) -> None:
    path = tmp_path / "weights.bin"
    np.ones(40 * MB, dtype=np.uint8).tofile(path)
    with Meter() as meter, meter.phase("map"):
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        assert int(mapped.sum()) == 40 * MB
    (phase,) = (p for p in meter.phases if p.place == probes.HOST)
    assert phase.file_bytes == pytest.approx(40 * MB, rel=0.1)
    assert phase.anonymous_bytes is not None
    assert phase.anonymous_bytes < 10 * MB


def test_children_count_when_asked() -> None:
    code = "import time; x = bytearray(120_000_000); print('ready', flush=True); time.sleep(60)"
    with Meter(children=True, interval=0.02) as meter, meter.phase("child"):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.15)
        child.kill()
        child.wait()
        child.stdout.close()
    tree = meter.delta("child", place=probes.TREE)
    own = meter.delta("child")
    assert tree is not None
    assert own is not None
    assert 115 * MB < tree < 170 * MB
    assert own < 20 * MB


CHILD = """
import mmap, sys
def spike(size):
    region = mmap.mmap(-1, size)
    region.write(b"1" * 4096)
    for at in range(0, size, 4096):
        region[at] = 1
    region.close()
spike(90_000_000)
print("ready", flush=True)
for line in sys.stdin:
    spike(int(line))
    print("done", flush=True)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with process:
        yield process
        process.kill()


def ask_to_spike(process: subprocess.Popen[str], size: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{size}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def of_child(meter: Meter, process: subprocess.Popen[str]) -> list[probes.PhaseMemory]:
    return [phase for phase in meter.phases if phase.place == f"child {process.pid}"]


@linux
def test_a_childs_spike_between_samples_is_caught_without_its_baggage(
    child: subprocess.Popen[str],
) -> None:
    with Meter(children=True, interval=30) as meter:
        with meter.phase("small"):  # below what it took before the meter came
            ask_to_spike(child, 20 * MB)
        with meter.phase("large"):
            ask_to_spike(child, 150 * MB)
    small, large = of_child(meter, child)
    assert small.delta_bytes < 25 * MB
    assert large.delta_bytes == pytest.approx(150 * MB, rel=0.1)
    assert large.start_bytes < 60 * MB
    assert not large.ended
    assert large.source == probes.CHILD
    tree = meter.delta("large", place=probes.TREE)
    assert tree is not None
    assert tree < 50 * MB  # the sum is sampled, and saw nothing of it


@linux
def test_a_child_that_dies_is_told(child: subprocess.Popen[str]) -> None:
    with Meter(children=True, interval=0.01) as meter, meter.phase("work"):
        ask_to_spike(child, 30 * MB)
        child.kill()
        child.wait()
        time.sleep(0.05)
    (phase,) = of_child(meter, child)
    assert phase.ended
    assert phase.end_bytes == 0
    assert phase.peak_bytes > 0
    assert "(ended)" in meter._repr_mimebundle_()["text/plain"]


def test_the_peak_of_a_child_that_resets_it_counts_from_there() -> None:
    from workbench.machine.host_probes import _Child

    seen = _Child(start=50, floor=200, mark=200, peak=50, last=50)
    seen.look({"VmHWM": 200, "VmRSS": 60})
    assert seen.peak == 60  # 200 was before this phase
    seen.look({"VmHWM": 90, "VmRSS": 70})  # it measures itself, and has reset its peak
    assert seen.peak == 90
    seen.look({"VmHWM": 150, "VmRSS": 70})
    assert seen.peak == 150


def test_mlx_arrays_are_counted_exactly() -> None:
    import mlx.core as mx

    with Meter(interval=30) as meter:
        with meter.phase("arrays"):
            mx.eval(mx.ones((20_000_000,), dtype=mx.float32))
        with meter.phase("less"):
            mx.eval(mx.ones((5_000_000,), dtype=mx.float32))
    arrays, less = (phase for phase in meter.phases if phase.place == "mlx")
    assert arrays.delta_bytes == pytest.approx(80 * MB, rel=0.05)
    assert less.delta_bytes == pytest.approx(20 * MB, rel=0.05)
    assert arrays.source == "MLX peak"


class FakeCuda:
    """PyTorch's counters of one device."""

    peak, reserved, now = 0, 0, 100

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def reset_peak_memory_stats(self, index: int) -> None:
        self.peak = self.now

    def memory_allocated(self, index: int) -> int:
        return self.now

    def max_memory_allocated(self, index: int) -> int:
        return self.peak

    def max_memory_reserved(self, index: int) -> int:
        return self.reserved


def test_pytorchs_peaks_and_the_lack_of_nvml_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    for alone, source in ((True, "no NVML"), (False, "torch.cuda peak")):
        probe = probes.TorchCuda(alone=alone)
        probe.begin()
        cuda.peak, cuda.reserved = 700, 900
        (phase,) = probe.end("load", 1.0)
        assert (phase.start_bytes, phase.peak_bytes, phase.reserved_bytes) == (100, 700, 900)
        assert source in phase.source
        assert phase.source in probes.DEVICE_SOURCES


def test_readings_over_time_know_their_phase() -> None:
    with Meter(interval=0.01, timeline=True) as meter:
        with meter.phase("before"):
            pass
        with meter.phase("mapped"):
            kept = touched(60 * MB)
            time.sleep(0.05)
        del kept
    rows = [row for row in meter.timeline() if row["place"] == probes.HOST]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    phases = [row["phase"] for row in rows]
    assert phases[0] is None
    assert phases[-1] is None
    assert {"before", "mapped"} < set(phases)
    level = {name: max(r["bytes"] for r in rows if r["phase"] == name) for name in set(phases)}
    assert level["mapped"] - level["before"] == pytest.approx(60 * MB, rel=0.1)
    assert rows[-1]["bytes"] < level["mapped"] - 50 * MB
    with pytest.raises(InputError, match="timeline=True"):
        Meter().timeline()


def test_readings_over_time_are_bounded_and_keep_their_peaks() -> None:
    kept = Timeline(limit=100)
    for index in range(20_000):
        kept.add(index / 10, "host", 10_000 if index == 12_345 else index % 7, "run")
        if index % 50 == 0:
            kept.add(index / 10, "rare", index, None)
    rows = kept.rows()
    assert 40 < len(rows) <= 102
    assert max(row["bytes"] for row in rows if row["place"] == "host") == 10_000
    assert {"seconds": 1234.5, "place": "host", "bytes": 10_000, "phase": "run"} in rows
    rare = [row for row in rows if row["place"] == "rare"]
    assert rare[-1]["bytes"] == 19_950
    assert rows[0]["seconds"] < 100
    assert rows[-1]["seconds"] > 1990


def test_the_sampler_ends_with_the_meter_and_its_cost_is_counted() -> None:
    before = threading.active_count()
    with Meter(interval=0.02, exact=False) as meter, meter.phase("wait"):
        time.sleep(0.2)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    taken = meter.samples
    time.sleep(0.06)
    assert meter.samples == taken >= 3
    assert 0 < meter.cost_seconds < 0.2
    assert "samples" in meter._repr_mimebundle_()["text/plain"]


def fail_in_phase(meter: Meter) -> None:
    with meter.phase("load"):
        kept = touched(100 * MB)
        raise MemoryError(kept.size)


def test_a_failing_phase_is_kept_and_its_error_passes() -> None:
    with Meter() as meter:
        with pytest.raises(MemoryError):
            fail_in_phase(meter)
        with meter.phase("next"):
            pass
    assert meter.delta("load") == pytest.approx(100 * MB, rel=0.2)
    assert {row["name"] for row in meter.as_rows()} == {"load", "next"}
    assert meter.as_rows()[0]["delta_bytes"] == meter.phases[0].delta_bytes


def test_misuse_is_told() -> None:
    with pytest.raises(InputError, match="needs an open meter"), Meter().phase("load"):
        pass
    with (
        Meter() as meter,
        meter.phase("load"),
        pytest.raises(InputError, match="began inside 'load'"),
        meter.phase("prefill"),
    ):
        pass
    with pytest.raises(InputError, match="interval"):
        Meter(interval=0)


class FakeDriver:
    """The part of the NVIDIA library that the probe uses, over invented readings."""

    class NVMLError(Exception):
        pass

    def __init__(self, readings: list[tuple[list[tuple[int, int | None]], int]]) -> None:
        self.readings = readings
        self.now = 0

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[object]:
        processes, _ = self.readings[self.now]
        return [type("P", (), {"pid": p, "usedGpuMemory": used})() for p, used in processes]

    def nvmlDeviceGetMemoryInfo(self, device: int) -> object:
        return type("I", (), {"used": self.readings[self.now][1]})()


def driven(readings: list[tuple[list[tuple[int, int | None]], int]]) -> list[probes.PhaseMemory]:
    driver = FakeDriver(readings)
    probe = probes.Nvml(driver)
    probe.begin()
    for driver.now in range(1, len(readings)):
        probe.sample()
    return list(probe.end("load", 1.0))


def test_the_driver_figure_is_of_this_process_where_it_tells() -> None:
    import os

    own = os.getpid()
    (phase,) = driven([([(1, 50)], 50), ([(1, 50), (own, 300)], 350), ([(1, 90), (own, 200)], 290)])
    assert (phase.start_bytes, phase.peak_bytes, phase.end_bytes) == (0, 300, 200)
    assert phase.source == "NVML process tree, sampled"


def test_the_driver_figure_is_labelled_device_wide_where_it_does_not_tell() -> None:
    (phase,) = driven([([(1, 50)], 50), ([(1, 50), (2, None)], 350), ([(1, 50)], 290)])
    assert (phase.start_bytes, phase.peak_bytes, phase.end_bytes) == (50, 350, 290)
    assert phase.source == "NVML device-wide, sampled"
    assert driven([([], 50), ([], 50)]) == []
