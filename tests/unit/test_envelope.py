"""The module envelope against cgroup trees of files: v1 as on a host without systemd, v2, and none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_files import load, run

MIB = 1 << 20
V1_UNLIMITED = 0x7FFFFFFFFFFFF000
MODULE = "plugins/modules/envelope.py"
envelope = load(MODULE)


def host(root: Path, mounts: str) -> dict[str, Any]:
    proc = root / "proc"
    proc.mkdir()
    (proc / "mounts").write_text(mounts)
    (proc / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    return {"proc_root": str(proc), "run_root": str(root / "run")}


@pytest.fixture
def v1(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    memory, cpuset = tmp_path / "memory", tmp_path / "cpuset"
    folder = memory / "machine/ksmtestbed.partition"
    folder.mkdir(parents=True)
    (folder / "memory.usage_in_bytes").write_text(f"{900 * MIB}\n")
    (folder / "memory.limit_in_bytes").write_text(f"{V1_UNLIMITED}\n")
    (folder / "memory.stat").write_text(
        f"cache 1\ninactive_file 5\ntotal_inactive_file {200 * MIB}\ntotal_active_file 3\n"
    )
    (folder / "memory.failcnt").write_text("7\n")
    for name in envelope.CPUSET:
        cpuset.mkdir(exist_ok=True)
        (cpuset / name).write_text("0-1\n")
    mounts = f"cgroup {memory} cgroup rw,nosuid,memory 0 0\ncgroup {cpuset} cgroup rw,cpuset 0 0\n"
    return host(tmp_path, f"{mounts}proc /proc proc rw 0 0\n"), folder


@pytest.fixture
def v2(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    mount = tmp_path / "unified"
    folder = mount / "machine/ksmtestbed.partition"
    folder.mkdir(parents=True)
    (mount / "cgroup.controllers").write_text("cpu memory pids\n")
    (mount / "cgroup.subtree_control").write_text("")
    (mount / "machine/cgroup.controllers").write_text("memory\n")
    (mount / "machine/cgroup.subtree_control").write_text("")
    (folder / "memory.current").write_text(f"{500 * MIB}\n")
    (folder / "memory.max").write_text("max\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {100 * MIB}\nactive_file 2\n")
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 0\n")
    line = "avg10=0.00 avg60=0.00 avg300=0.00 total=1234"
    (folder / "memory.pressure").write_text(f"some {line}\nfull {line}\n")
    return host(tmp_path, f"cgroup2 {mount} cgroup2 rw,nosuid 0 0\n"), folder


def test_v1_is_bounded_read_and_bounded_again_without_a_change(v1: tuple[dict[str, Any], Path]) -> None:
    host_roots, folder = v1
    dry = run(MODULE, check=True, memory_bytes=800 * MIB, **host_roots)
    assert dry["changed"] is True
    assert dry["memory"]["limit_bytes"] is None
    made = run(MODULE, memory_bytes=800 * MIB, **host_roots)
    assert made["changed"] is True
    assert (folder / "memory.limit_in_bytes").read_text() == f"{800 * MIB}\n"
    assert made["memory"] == {
        "usage_bytes": 900 * MIB,
        "limit_bytes": 800 * MIB,
        "working_set_bytes": 700 * MIB,
        "failcnt": 7,
        "pressure": None,
    }
    assert run(MODULE, memory_bytes=800 * MIB, **host_roots)["changed"] is False
    foreseen = run(MODULE, check=True, memory_bytes=700 * MIB, **host_roots)
    assert (foreseen["changed"], foreseen["memory"]["limit_bytes"]) == (True, 800 * MIB)
    assert run(MODULE, state="read", **host_roots)["path"] == str(folder)


def test_each_v1_hierarchy_gets_the_partition(v1: tuple[dict[str, Any], Path]) -> None:
    host_roots, folder = v1
    run(MODULE, memory_bytes=800 * MIB, **host_roots)
    assert (folder.parents[2] / "cpuset/machine/ksmtestbed.partition").is_dir()


def test_v2_is_bounded_and_read(v2: tuple[dict[str, Any], Path]) -> None:
    host_roots, folder = v2
    made = run(MODULE, memory_bytes=600 * MIB, **host_roots)
    assert (folder / "memory.max").read_text() == f"{600 * MIB}\n"
    assert made["memory"]["working_set_bytes"] == 400 * MIB
    assert made["memory"]["failcnt"] == 3
    assert made["memory"]["pressure"]["some"]["total_microseconds"] == 1234
    # A child has the controller only where its parents hand it on.
    assert (folder.parents[1] / "cgroup.subtree_control").read_text() == "+memory\n"
    assert (folder.parent / "cgroup.subtree_control").read_text() == "+memory\n"


def test_what_is_refused(tmp_path: Path, v2: tuple[dict[str, Any], Path]) -> None:
    host_roots, folder = v2
    more = run(MODULE, memory_bytes=8193 * MIB, **host_roots)
    assert more["msg"] == (
        "the envelope would be 8193 MiB, room to start a guest included, and this host has only 8192 MiB "
        "available: lower capacity_envelope_mib"
    )
    assert "allowed is 1048576 or more" in run(MODULE, memory_bytes=5, **host_roots)["msg"]
    assert (folder / "memory.max").read_text() == "max\n"
    # The files of the tree stand for processes: the folder is not empty.
    assert "remove the guests first" in run(MODULE, state="absent", **host_roots)["msg"]


def test_an_empty_one_is_removed_and_stays_so(tmp_path: Path) -> None:
    mount = tmp_path / "unified"
    folder = mount / "machine/ksmtestbed.partition"
    folder.mkdir(parents=True)
    (mount / "cgroup.controllers").write_text("memory\n")
    host_roots = host(tmp_path, f"cgroup2 {mount} cgroup2 rw 0 0\n")
    assert run(MODULE, state="absent", **host_roots)["changed"] is True
    assert not folder.exists()
    assert folder.parent.is_dir()
    assert run(MODULE, state="absent", **host_roots)["changed"] is False
    assert (
        run(MODULE, state="read", **host_roots)["msg"] == f"{folder} does not exist: make the envelope first"
    )


def test_without_the_memory_controller_it_says_what_to_do(tmp_path: Path) -> None:
    host_roots = host(tmp_path, "proc /proc proc rw 0 0\n")
    assert "set capacity_envelope_mib to 0" in run(MODULE, memory_bytes=8 * MIB, **host_roots)["msg"]
    # A teardown must not fail for it.
    assert run(MODULE, state="absent", **host_roots)["changed"] is False


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A folder of this host's own memory controller, as if it were all of it; nothing runs inside."""
    mounted = envelope.hierarchies(Path("/proc/mounts").read_text())
    bounding = next((one for one in mounted if one.memory), None)
    if os.geteuid() != 0 or bounding is None:
        pytest.skip("needs root and a mounted memory controller")
    folder = bounding.mount / f"ksm-testbed-unit-{os.getpid()}"
    folder.mkdir()
    try:
        if bounding.unified and "memory" not in (folder / "cgroup.controllers").read_text().split():
            pytest.skip("needs a memory controller that the root hands on")
        kind = "cgroup2 {0} cgroup2 rw" if bounding.unified else "cgroup {0} cgroup rw,memory"
        yield host(tmp_path, f"{kind.format(folder)} 0 0\n")
    finally:
        for made in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            made.rmdir()
        folder.rmdir()


def test_the_kernel_takes_the_limit_and_gives_up_the_cgroup(kernel: dict[str, Any]) -> None:
    made = run(MODULE, memory_bytes=128 * MIB, **kernel)
    assert made["changed"] is True
    assert made["memory"]["limit_bytes"] == 128 * MIB
    assert made["memory"]["usage_bytes"] < MIB
    assert made["memory"]["failcnt"] == 0
    assert run(MODULE, memory_bytes=128 * MIB, **kernel)["changed"] is False
    foreseen = run(MODULE, check=True, memory_bytes=256 * MIB, **kernel)
    assert (foreseen["changed"], foreseen["memory"]["limit_bytes"]) == (True, 128 * MIB)
    assert run(MODULE, state="read", **kernel)["memory"]["limit_bytes"] == 128 * MIB
    assert run(MODULE, memory_bytes=256 * MIB, **kernel)["memory"]["limit_bytes"] == 256 * MIB
    assert run(MODULE, state="absent", **kernel)["changed"] is True
    assert run(MODULE, state="absent", **kernel)["changed"] is False
    assert "make the envelope first" in run(MODULE, state="read", **kernel)["msg"]
