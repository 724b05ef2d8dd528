"""The sampler against a recorded tree whose KSM counters the test moves on.

What depends on time is told a time by the test; what depends on processes waits for their events.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from plugin_files import load
from waiting import FOREVER_SECONDS, wait_until

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests/fixtures/host/linux-6.18"
PAGES_IN_A_MIB = 256

SCRIPT = f"""
import runpy, sys, ansible.module_utils
ansible.module_utils.__path__.append({str(ROOT / "plugins/module_utils")!r})
runpy.run_path({str(ROOT / "plugins/modules/measure_series.py")!r}, run_name="__main__")
"""

series = load("plugins/modules/measure_series.py")


class Kernel:
    """A tree, and a clock that only the sampler's own acts move on: reading takes time, and so does sleeping.

    While the sampler sleeps, and run is 1, one full scan is done.
    """

    def __init__(
        self,
        tree: Path,
        saved_pages: Callable[[int], int],
        *,
        zero_pages: Callable[[int], int] = lambda _scan: 0,
        read_seconds: Callable[[int], float] = lambda _sample: 0.02,
    ) -> None:
        self.tree = tree
        self.saved_pages = saved_pages
        self.zero_pages = zero_pages
        self.read_seconds = read_seconds
        self.now = 5000.0
        self.scan = 0
        self.reads = 0
        for name in ("smart_scan", "run", "full_scans"):
            self.put(name, 0)

    def put(self, name: str, value: int) -> None:
        put(self.tree, name, value)

    def monotonic(self) -> float:
        return self.now

    def read(self, sampler: Any) -> dict[str, Any]:
        row: dict[str, Any] = self.original_row(sampler)
        self.now += self.read_seconds(self.reads)
        self.reads += 1
        return row

    def sleep_until(self, deadline: float) -> None:
        self.now = max(self.now, deadline)
        if (self.tree / "sys/kernel/mm/ksm/run").read_text().strip() == "1":
            self.scan += 1
            self.put("pages_sharing", self.saved_pages(self.scan))
            if (self.tree / "sys/kernel/mm/ksm/ksm_zero_pages").exists():
                self.put("ksm_zero_pages", self.zero_pages(self.scan))
            self.put("full_scans", self.scan)

    def follow(self, **arguments: Any) -> dict[str, Any]:
        """`observed` of a series of a sample every 0.1 s."""
        given = {
            "start_ksm": True,
            "may_stop": False,
            # The recorded host has a bystander that offers memory, and guests of another name.
            "others": "allow",
            "interval_seconds": 0.1,
            "until": "converged",
            "duration_seconds": None,
            "timeout_seconds": 3,
            "min_full_scans": 3,
            "window_scans": 2,
            "threshold_percent": 0.5,
            "guests": 0,
            "domains": {},
            "envelope_path": None,
            "progress_path": None,
            "patience_seconds": 60,
            **arguments,
        }
        self.original_row = series.Sampler.row
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(series.Sampler, "row", lambda sampler: self.read(sampler))  # noqa: PLW0108 -- binds
            patch.setattr(series, "wait_until", self.sleep_until)
            patch.setattr(series.time, "monotonic", self.monotonic)
            # This process keeps its signals.
            patch.setattr(series.signal, "pthread_sigmask", lambda *_: None)
            roots = series.Roots(*(self.tree / name for name in ("proc", "sys", "run")))
            observed: dict[str, Any] = series.follow(given, roots)[0]
            return observed


def put(tree: Path, name: str, value: int) -> None:
    # In place and of one width: a reader holds the file open and never sees it empty.
    descriptor = os.open(tree / "sys/kernel/mm/ksm" / name, os.O_WRONLY)
    os.write(descriptor, f"{value:<12}\n".encode())
    os.close(descriptor)


def merging(tree: Path) -> bool:
    return (tree / "sys/kernel/mm/ksm/run").read_text().strip() == "1"


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
        "others": "allow",
        **arguments,
    }
    path = tree / "arguments.json"
    path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
    script = f"import sys; sys.argv = ['module', {str(path)!r}]\n{SCRIPT}"
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=FOREVER_SECONDS)
    assert output, errors
    result: dict[str, Any] = json.loads(output)
    return result


def sample(tree: Path, **arguments: Any) -> dict[str, Any]:
    return result_of(launch(tree, **arguments))


def test_a_saving_that_stops_growing_settles(tree: Path, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    progress.touch()
    kernel = Kernel(tree, lambda scan: min(scan, 5) * PAGES_IN_A_MIB)
    observed = kernel.follow(guests=5, progress_path=str(progress))
    samples = observed["samples"]
    assert merging(tree)
    assert observed["converged"] is True
    # Scan 5 reaches the last value, so a still window of two scans ends with scan 7.
    assert observed["full_scans"] == samples["full_scans"][-1] == 7
    assert observed["converged_after_seconds"] == observed["duration_seconds"] == pytest.approx(0.7)
    assert [pages // PAGES_IN_A_MIB for pages in samples["pages_sharing"]] == [0, 1, 2, 3, 4, 5, 5, 5]
    assert observed["reason"].startswith("settled: the saved pages moved by 0.00 %")
    lines = progress.read_text().splitlines()
    assert lines[0] == "scan 0, saved 0 MiB (0.0 MiB/VM), 0 s"
    assert lines[-1].startswith("settled: ")


@pytest.mark.parametrize(
    "saved_pages",
    [lambda scan: 1000 + 20 * scan, lambda scan: 9000 - 100 * scan, lambda scan: 1000 + 50 * (scan % 2)],
    ids=["rising", "falling", "oscillating"],
)
def test_a_saving_that_moves_does_not_settle(tree: Path, saved_pages: Callable[[int], int]) -> None:
    observed = Kernel(tree, saved_pages).follow(timeout_seconds=3)
    assert observed["converged"] is False
    assert observed["converged_after_seconds"] is None
    assert observed["full_scans"] == 30
    assert observed["duration_seconds"] == 3
    assert observed["reason"].startswith("not settled when the 3 s were over: the saved pages moved by")


def test_the_cadence_does_not_drift(tree: Path) -> None:
    # Each reading takes 20 ms; the sixth takes 250 ms, and its two slots are left out, not made up for.
    kernel = Kernel(tree, lambda _scan: 0, read_seconds=lambda sample: 0.25 if sample == 6 else 0.02)
    samples = kernel.follow(until="seconds", duration_seconds=2)["samples"]
    slots = [0, 1, 2, 3, 4, 5, *range(8, 21)]
    assert samples["seconds"] == pytest.approx([0.1 * slot for slot in slots])


def test_a_clock_that_is_set_back_moves_no_time_of_a_series(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's own time is told once, for a person; all else is of the clock that nobody sets."""
    hours = iter(range(20, 0, -1))

    class SetBack:
        @staticmethod
        def now(zone: Any) -> datetime:
            return datetime(2026, 11, 26, next(hours), tzinfo=zone)

    monkeypatch.setattr(series, "datetime", SetBack)
    monkeypatch.setattr(series.time, "time", lambda: 3600.0 * next(hours))
    observed = Kernel(tree, lambda _scan: 100).follow(until="seconds", duration_seconds=0.5)
    assert observed["started_at"] == "2026-11-26T20:00:00.000000Z"
    assert observed["samples"]["seconds"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert observed["duration_seconds"] == 0.5
    assert observed["reason"].startswith("settled when the 0.5 s were over")


def test_sampling_for_a_time_goes_on_after_settling(tree: Path) -> None:
    observed = Kernel(tree, lambda _scan: 1000).follow(until="seconds", duration_seconds=2)
    assert observed["converged"] is True
    assert observed["converged_after_seconds"] == pytest.approx(0.3)
    assert observed["duration_seconds"] == 2


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
    observed = Kernel(tree, lambda _scan: 1000).follow()
    samples = observed["samples"]
    for name in ("general_profit", "ksm_zero_pages", "memory_some_total_microseconds"):
        assert set(samples[name]) == {None}
    assert observed["converged"] is True


def test_zero_pages_count_as_saved(tree: Path) -> None:
    kernel = Kernel(tree, lambda _scan: 1000, zero_pages=lambda scan: 100 * scan)
    assert kernel.follow(timeout_seconds=2)["converged"] is False
    assert Kernel(tree, lambda _scan: 1000).follow(timeout_seconds=2)["converged"] is True


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


def test_ksm_is_not_started_while_others_offer_memory_and_they_are_named(tree: Path) -> None:
    message = sample(tree, others="refuse")["msg"]
    assert message.startswith("KSM was not started, since other processes offer memory to it by now: ")
    assert "28621 (" in message and " 8 MiB, 0 MiB of it merged" in message
    assert (tree / "sys/kernel/mm/ksm/run").read_text() == "0\n"
    for pid in (28619, 28620):
        line = tree / f"proc/{pid}/cmdline"
        line.write_bytes(line.read_bytes().replace(b"guest=ksm-guest", b"guest=ksm-testbed-guest"))
    assert "28619" in message and "28619" not in sample(tree, others="refuse")["msg"]
    shutil.rmtree(tree / "proc/28621")
    assert "observed" in sample(tree, others="refuse", until="seconds", duration_seconds=0.1)


def test_each_change_of_a_knob_is_noted_with_its_time(tree: Path) -> None:
    def rival(scan: int) -> int:
        if scan in (2, 4):
            put(tree, "sleep_millisecs", 20 + scan)
        if scan == 5:
            put(tree, "max_page_sharing", 16)
        return 1000 * scan

    observed = Kernel(tree, rival).follow(timeout_seconds=0.8)
    changes = sorted(observed["knob_changes"], key=lambda change: change["seconds"])
    assert changes == [
        {"seconds": pytest.approx(0.2), "knob": "sleep_millisecs", "before": "20", "after": "22"},
        {"seconds": pytest.approx(0.4), "knob": "sleep_millisecs", "before": "22", "after": "24"},
        {"seconds": pytest.approx(0.5), "knob": "max_page_sharing", "before": "256", "after": "16"},
    ]
    assert Kernel(tree, lambda _scan: 1000).follow()["knob_changes"] == []


def test_check_mode_writes_nothing(tree: Path) -> None:
    result = sample(tree, _ansible_check_mode=True)
    assert result["changed"] is True
    assert (tree / "sys/kernel/mm/ksm/run").read_text() == "0\n"


def begun(tree: Path, **arguments: Any) -> tuple[subprocess.Popen[str], Path]:
    """A sampler that has taken a sample and goes on for ever; its progress."""
    progress = tree / "progress"
    progress.touch()
    process = launch(tree, timeout_seconds=1e6, progress_path=str(progress), **arguments)
    wait_until(progress.read_text, "the first sample")
    assert merging(tree)
    return process, progress


def test_a_tuner_that_stops_ksm_ends_the_series(tree: Path) -> None:
    process, _ = begun(tree)
    put(tree, "run", 0)
    observed = result_of(process)["observed"]
    assert observed["converged"] is False
    assert observed["reason"].startswith("something else on the host stopped KSM")
    (change,) = observed["knob_changes"]
    assert (change["knob"], change["before"], change["after"]) == ("run", "1", "0")


def test_where_a_daemon_may_stop_ksm_the_series_goes_on_and_sees_it_start_again(tree: Path) -> None:
    def daemon(sample: int) -> float:
        if sample in (3, 6):
            put(tree, "run", int(sample == 6))
        return 0.02

    kernel = Kernel(tree, lambda scan: 1000 * scan, read_seconds=daemon)
    observed = kernel.follow(may_stop=True, timeout_seconds=1)
    assert observed["duration_seconds"] == pytest.approx(1), observed["reason"]
    assert [(one["knob"], one["before"], one["after"]) for one in observed["knob_changes"]] == [
        ("run", "1", "0"),
        ("run", "0", "1"),
    ]
    # Ten samples' sleeps, of which KSM stood in three
    assert observed["full_scans"] == 7
    stands = Kernel(tree, lambda _scan: 0)
    observed = stands.follow(start_ksm=False, may_stop=True, until="seconds", duration_seconds=0.5)
    assert (observed["duration_seconds"], observed["full_scans"]) == (pytest.approx(0.5), 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_returns_what_there_is(tree: Path, number: signal.Signals) -> None:
    process, progress = begun(tree)
    put(tree, "full_scans", 1)
    wait_until(lambda: "scan 1," in progress.read_text(), "a later sample")
    process.send_signal(number)
    observed = result_of(process)["observed"]
    assert observed["converged"] is False
    assert observed["reason"].startswith(f"interrupted by {number.name}")
    assert observed["samples"]["full_scans"][0] == 0
    assert observed["samples"]["full_scans"][-1] == 1


def test_it_ends_when_its_progress_is_removed(tree: Path) -> None:
    process, progress = begun(tree)
    progress.unlink()
    observed = result_of(process)["observed"]
    assert re.match(r"interrupted after \d+ s, its controller asked it to end: ", observed["reason"])
    assert not progress.exists()


def test_until_told_it_goes_on_whether_ksm_runs_or_not(tree: Path) -> None:
    progress = tree / "progress"
    progress.touch()
    process = launch(tree, start_ksm=False, until="told", timeout_seconds=1e6, progress_path=str(progress))
    wait_until(progress.read_text, "the first sample")
    assert not merging(tree)
    put(tree, "full_scans", 1)
    wait_until(lambda: "scan 1," in progress.read_text(), "a later sample")
    progress.unlink()
    observed = result_of(process)["observed"]
    assert "its controller asked it to end" in observed["reason"]
    assert {observed["samples"]["full_scans"][0], observed["samples"]["full_scans"][-1]} == {0, 1}


def test_it_ends_when_nobody_asks_for_its_progress(tree: Path) -> None:
    process, _ = begun(tree, patience_seconds=1)
    reason = result_of(process)["observed"]["reason"]
    assert re.match(r"interrupted after \d+ s, its controller has not asked for 1 s: ", reason)


def test_without_its_progress_file_it_does_not_begin(tree: Path, tmp_path: Path) -> None:
    result = sample(tree, progress_path=str(tmp_path / "absent"))
    assert result["msg"] == f"progress_path {tmp_path}/absent is not there: nobody waits for this module"
    assert not merging(tree)
    assert not (tmp_path / "absent").exists()


def test_a_progress_file_that_is_a_link_is_refused(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept\n")
    (tmp_path / "link").symlink_to(target)
    result = sample(tree, progress_path=str(tmp_path / "link"))
    assert "progress_path" in result["msg"]
    assert target.read_text() == "kept\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("interval_seconds", 0.01), ("timeout_seconds", 0), ("min_full_scans", 0), ("patience_seconds", 0)],
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


def test_free_pages_on_per_cpu_lists_join_the_series(tree: Path) -> None:
    observed = sample(tree, until="seconds", duration_seconds=0.3)["observed"]
    lines = (tree / "proc/zoneinfo").read_text().split("\n")
    counted = sum(int(line.split()[1]) for line in lines if line.strip().startswith("count:"))
    assert counted > 0
    assert set(observed["samples"]["per_cpu_free_pages"]) == {counted}
    (tree / "proc/zoneinfo").unlink()
    observed = sample(tree, until="seconds", duration_seconds=0.3)["observed"]
    assert set(observed["samples"]["per_cpu_free_pages"]) == {None}


def test_what_the_guests_have_joins_the_series_and_delays_its_end_while_it_falls(tree: Path) -> None:
    """Two recorded guests; the statm that a test writes: 1 % of the saving goes with each of five scans."""
    pids = [path.read_text().strip() for path in sorted((tree / "run/libvirt/qemu").glob("ksm-guest*.pid"))]
    assert len(pids) == 2

    def falling(scan: int) -> int:
        # Size, resident, shared, then what nobody reads
        for number, pid in enumerate(pids):
            own = 300_000 - 500 * min(scan, 5)
            (tree / "proc" / pid / "statm").write_text(f"900000 {own + 7000} {7000 + number} 1 0 2 0\n")
        return 100_000

    domains = {"guest01": "ksm-guest01", "guest02": "ksm-guest02", "later": "not-yet"}
    falling(0)
    observed = Kernel(tree, falling).follow(domains=domains)
    anon = observed["samples"]["guests_anon_pages"]
    assert anon[:7] == [600_000 - 1 - 1000 * min(scan, 5) for scan in range(7)]
    assert (observed["converged"], observed["full_scans"]) == (True, 7)
    assert "what the guests have fell by 0.00 % of them" in observed["reason"]
    assert Kernel(tree, lambda _scan: 100_000).follow()["full_scans"] == 3


def test_what_others_had_merged_before_is_not_what_the_rule_is_of(tree: Path) -> None:
    """The guests' saving rises by 1 % a scan until the sixth: next to nothing of all that is merged."""
    put(tree, "pages_sharing", 900_000)
    observed = Kernel(tree, lambda scan: 900_000 + 10_000 + 100 * min(scan, 6)).follow()
    assert (observed["converged"], observed["full_scans"]) == (True, 8)
    assert max(observed["samples"]["pages_sharing"]) == 910_600


def test_volatile_pages_that_are_more_than_the_saved_ones_delay_its_end_while_they_fall(tree: Path) -> None:
    def falling(scan: int) -> int:
        (tree / "sys/kernel/mm/ksm/pages_volatile").write_text(f"{200_000 - 512 * min(scan, 5)}\n")
        return 100_000

    falling(0)
    observed = Kernel(tree, falling).follow()
    assert (observed["converged"], observed["full_scans"]) == (True, 7)
    assert "the volatile pages, which are more, by 0 pages" in observed["reason"]


def test_an_envelope_that_is_not_there_is_named(tree: Path, tmp_path: Path) -> None:
    result = sample(tree, envelope_path=str(tmp_path / "absent"))
    assert result["msg"] == f"{tmp_path}/absent is no memory cgroup; a series of the envelope needs it"
    assert (tree / "sys/kernel/mm/ksm/run").read_text().strip() == "0"


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("state='paused' reason='user'", "somebody paused it"),
        ("state='crashed' reason='panicked'", "its state is crashed"),
        ("", "its QEMU has ended"),
    ],
)
def test_a_guest_that_stops_ends_the_series_with_its_name_and_not_with_a_timeout(
    tree: Path, state: str, why: str
) -> None:
    libvirt = tree / "run/libvirt/qemu"
    domains = {"guest01": "some-guest01", "guest02": "some-guest02"}
    for domain in domains.values():
        (libvirt / f"{domain}.xml").write_text("<domstatus state='running' reason='restored' pid='7'>")

    def saved(scan: int) -> int:
        if scan == 4:
            file = libvirt / "some-guest02.xml"
            file.write_text(f"<domstatus {state}>") if state else file.unlink(missing_ok=True)
        return 100 * scan

    with pytest.raises(series.ProbeError, match=rf"^guest02 does not run: {why}; KSM was followed for 0 s$"):
        Kernel(tree, saved).follow(domains=domains)
    assert Kernel(tree, lambda _scan: 1000).follow(domains={"guest03": "unknown"})["converged"]
