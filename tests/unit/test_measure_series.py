"""The sampler against a recorded tree whose KSM counters the test moves on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests/fixtures/host/linux-6.18"
PAGES_IN_A_MIB = 256

SCRIPT = f"""
import runpy, sys, ansible.module_utils
ansible.module_utils.__path__.append({str(ROOT / "plugins/module_utils")!r})
runpy.run_path({str(ROOT / "plugins/modules/measure_series.py")!r}, run_name="__main__")
"""


class Kernel:
    """A tree whose counters go on, one full scan each step, as long as run is 1."""

    def __init__(self, tree: Path, saved_pages: Callable[[int], int], step_seconds: float = 0.1) -> None:
        self.tree = tree
        self.saved_pages = saved_pages
        self.step_seconds = step_seconds
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._work)

    def put(self, name: str, value: int) -> None:
        # In place and of one width: a reader holds the file open and never sees it empty.
        descriptor = os.open(self.tree / "sys/kernel/mm/ksm" / name, os.O_WRONLY)
        os.write(descriptor, f"{value:<12}\n".encode())
        os.close(descriptor)

    def running(self) -> bool:
        return (self.tree / "sys/kernel/mm/ksm/run").read_text().strip() == "1"

    def _work(self) -> None:
        scan = 0
        while not self.stopped.wait(self.step_seconds):
            if self.running():
                scan += 1
                self.put("pages_sharing", self.saved_pages(scan))
                self.put("full_scans", scan)

    def __enter__(self) -> "Kernel":
        self.put("smart_scan", 0)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(RECORDED, tmp_path / "host")
    yield tmp_path / "host"


def launch(tree: Path, **arguments: Any) -> subprocess.Popen[str]:
    """The module in a process of its own, as Ansible runs it."""
    given = {
        "proc_root": str(tree / "proc"),
        "sys_root": str(tree / "sys"),
        "interval_seconds": 0.1,
        "timeout_seconds": 3,
        "start_ksm": True,
        **arguments,
    }
    path = tree / "arguments.json"
    path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
    script = f"import sys; sys.argv = ['module', {str(path)!r}]\n{SCRIPT}"
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=60)
    assert output, errors
    result: dict[str, Any] = json.loads(output)
    return result


def sample(tree: Path, **arguments: Any) -> dict[str, Any]:
    return result_of(launch(tree, **arguments))


def test_a_saving_that_stops_growing_settles(tree: Path, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    progress.touch()
    with Kernel(tree, lambda scan: min(scan, 5) * PAGES_IN_A_MIB):
        result = sample(tree, guests=5, progress_path=str(progress))
    observed, samples = result["observed"], result["observed"]["samples"]
    assert result["changed"] is True
    assert (tree / "sys/kernel/mm/ksm/run").read_text().strip() == "1"
    assert observed["converged"] is True
    assert observed["converged_after_seconds"] == observed["duration_seconds"] == samples["seconds"][-1]
    # Scan 5 reaches the last value, so a still window of two scans ends with scan 7 at the earliest.
    assert 7 <= observed["full_scans"] == samples["full_scans"][-1] <= 9
    assert samples["pages_sharing"][0] == 0
    assert samples["pages_sharing"][-1] == 5 * PAGES_IN_A_MIB
    assert observed["reason"].startswith("settled: the saved pages moved by 0.00 %")
    lines = progress.read_text().splitlines()
    assert re.fullmatch(r"scan 0, saved 0 MiB \(0\.0 MiB/VM\), 0 s", lines[0])
    assert lines[-1].startswith("settled: ")


@pytest.mark.parametrize(
    "saved_pages",
    [lambda scan: 1000 + 20 * scan, lambda scan: 9000 - 100 * scan, lambda scan: 1000 + 50 * (scan % 2)],
    ids=["rising", "falling", "oscillating"],
)
def test_a_saving_that_moves_does_not_settle(tree: Path, saved_pages: Callable[[int], int]) -> None:
    # Slower than the samples: one sample for every second scan would not see an oscillation.
    with Kernel(tree, saved_pages, step_seconds=0.3):
        observed = sample(tree, timeout_seconds=3)["observed"]
    assert observed["converged"] is False
    assert observed["converged_after_seconds"] is None
    assert observed["full_scans"] > 5
    assert observed["duration_seconds"] == pytest.approx(3, abs=0.2)
    assert observed["reason"].startswith("not settled when the 3 s were over: the saved pages moved by")


def test_the_cadence_does_not_drift(tree: Path) -> None:
    samples = sample(tree, until="seconds", duration_seconds=2)["observed"]["samples"]
    assert len(samples["seconds"]) == 21
    assert samples["seconds"][0] < 0.05
    assert all(
        seconds == pytest.approx(0.1 * slot, abs=0.05) for slot, seconds in enumerate(samples["seconds"])
    )


def test_sampling_for_a_time_goes_on_after_settling(tree: Path) -> None:
    with Kernel(tree, lambda _scan: 1000):
        observed = sample(tree, until="seconds", duration_seconds=2)["observed"]
    assert observed["converged"] is True
    assert observed["converged_after_seconds"] < 1.5
    assert observed["duration_seconds"] >= 2


def test_every_column_has_a_value_for_every_sample(tree: Path) -> None:
    samples = sample(tree, until="seconds", duration_seconds=0.5)["observed"]["samples"]
    assert len({len(values) for values in samples.values()}) == 1
    assert samples["MemAvailable_bytes"][0] == 24201852 * 1024
    assert samples["memory_some_total_microseconds"][0] == int(
        (tree / "proc/pressure/memory").read_text().split("total=")[1].split()[0]
    )
    assert samples["pswpout"][0] == 0
    assert None not in [value for values in samples.values() for value in values]


def test_a_counter_that_the_kernel_has_not_is_null(tree: Path) -> None:
    for name in ("general_profit", "ksm_zero_pages"):
        (tree / "sys/kernel/mm/ksm" / name).unlink()
    (tree / "proc/pressure/memory").unlink()
    with Kernel(tree, lambda _scan: 1000):
        observed = sample(tree)["observed"]
    samples = observed["samples"]
    for name in ("general_profit", "ksm_zero_pages", "memory_some_total_microseconds"):
        assert set(samples[name]) == {None}
    assert observed["converged"] is True


def test_zero_pages_count_as_saved(tree: Path) -> None:
    with Kernel(tree, lambda _scan: 1000) as kernel:
        process = launch(tree, timeout_seconds=2)
        pages = 1
        while process.poll() is None:
            kernel.put("ksm_zero_pages", pages)
            pages += 100
            time.sleep(0.05)
        assert result_of(process)["observed"]["converged"] is False


@pytest.mark.parametrize("name", ["pages_sharing", "full_scans"])
def test_a_missing_required_counter_is_named_and_ksm_is_not_started(tree: Path, name: str) -> None:
    (tree / "sys/kernel/mm/ksm" / name).unlink()
    result = sample(tree)
    assert result["failed"] is True
    assert f"ksm/{name} cannot be read" in result["msg"]
    assert (tree / "sys/kernel/mm/ksm/run").read_text() == "0\n"


def test_a_missing_line_of_meminfo_is_named_and_ksm_is_not_started(tree: Path) -> None:
    path = tree / "proc/meminfo"
    path.write_text(re.sub(r"^Slab:.*\n", "", path.read_text(), flags=re.MULTILINE))
    assert sample(tree)["msg"].startswith("Slab is missing")
    assert (tree / "sys/kernel/mm/ksm/run").read_text() == "0\n"


def test_without_start_ksm_it_writes_nothing_and_refuses_a_stopped_ksm(tree: Path) -> None:
    result = sample(tree, start_ksm=False)
    assert result["failed"] is True
    assert "KSM is not running" in result["msg"]
    assert (tree / "sys/kernel/mm/ksm/run").read_text() == "0\n"


def test_check_mode_writes_nothing(tree: Path) -> None:
    result = sample(tree, _ansible_check_mode=True)
    assert result["changed"] is True
    assert (tree / "sys/kernel/mm/ksm/run").read_text() == "0\n"


def test_a_tuner_that_stops_ksm_ends_the_series(tree: Path) -> None:
    with Kernel(tree, lambda scan: 100 * scan) as kernel:
        process = launch(tree, timeout_seconds=20)
        while not kernel.running():
            time.sleep(0.02)
        time.sleep(0.5)
        kernel.put("run", 0)
        observed = result_of(process)["observed"]
    assert observed["converged"] is False
    assert observed["reason"].startswith("something else on the host stopped KSM")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_returns_what_there_is(tree: Path, number: signal.Signals) -> None:
    with Kernel(tree, lambda scan: 100 * scan) as kernel:
        process = launch(tree, timeout_seconds=30)
        while not kernel.running():
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(number)
        observed = result_of(process)["observed"]
    assert observed["converged"] is False
    assert observed["reason"].startswith(f"interrupted by {number.name}")
    assert len(observed["samples"]["seconds"]) >= 4


def test_a_progress_file_that_is_a_link_is_refused(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept\n")
    (tmp_path / "link").symlink_to(target)
    result = sample(tree, progress_path=str(tmp_path / "link"))
    assert "progress_path" in result["msg"]
    assert target.read_text() == "kept\n"


@pytest.mark.parametrize(
    ("name", "value"), [("interval_seconds", 0.01), ("timeout_seconds", 0), ("min_full_scans", 0)]
)
def test_an_argument_out_of_range_is_named(tree: Path, name: str, value: float) -> None:
    assert sample(tree, **{name: value})["msg"].startswith(f"{name} is {value:g}; it must be ")


def test_a_duration_is_needed_to_sample_for_a_time(tree: Path) -> None:
    assert "duration_seconds" in sample(tree, until="seconds")["msg"]


@pytest.mark.parametrize("version", [1, 2])
def test_the_envelope_joins_the_series(tree: Path, tmp_path: Path, version: int) -> None:
    folder = tmp_path / "envelope"
    folder.mkdir()
    usage, inactive = (
        ("memory.usage_in_bytes", "total_inactive_file")
        if version == 1
        else ("memory.current", "inactive_file")
    )
    (folder / usage).write_text("9000000\n")
    (folder / "memory.stat").write_text(f"inactive_anon 5\n{inactive} 1000000\nactive_file 7\n")
    observed = sample(tree, until="seconds", duration_seconds=0.3, envelope_path=str(folder))["observed"]
    column = observed["samples"]["envelope_working_set_bytes"]
    assert set(column) == {8_000_000}
    assert len(column) == len(observed["samples"]["seconds"])
    assert "cow_ksm" in observed["samples"]


def test_an_envelope_that_is_not_there_is_named(tree: Path, tmp_path: Path) -> None:
    result = sample(tree, envelope_path=str(tmp_path / "absent"))
    assert result["msg"] == f"{tmp_path}/absent is no memory cgroup; a series of the envelope needs it"
    assert (tree / "sys/kernel/mm/ksm/run").read_text().strip() == "0"
