"""What goes wrong on or around a host while a run measures there: it is as it was, and nothing is lost.

Run by `make faults`, in some fifteen minutes; what takes seconds by `make test`, too. A run that fails says
why in its cell, and the next one is fine.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path

import pytest
from this_host import (
    CAPACITY,
    CHECKPOINTS,
    GUESTS_DIRECTORY,
    RECORDS,
    ROOT,
    SIZE,
    SSH,
    Cells,
    State,
    cells,
    domains,
    failure,
    finished,
    follow,
    left,
    playbook,
    started,
    state,
    succeeded,
    summary,
    whole,
)

from analysis.records.capacity import load_capacity

pytestmark = pytest.mark.faults

KSM = Path("/sys/kernel/mm/ksm")
MIB = 1 << 20
# The first line of a series; then some seconds of merging are left, which a rival may end.
MERGES, LONG, ENDLESS = "MiB/VM", {"converge_min_full_scans": 40}, {"converge_min_full_scans": 10000}
IDLE = "idle-ksm-guests2-boot1-rep1"


# Somebody else


@pytest.mark.parametrize("name", ["run", "pages_to_scan"])
def test_a_knob_is_changed_by_somebody_else(results: Path, proof: Cells, before: State, name: str) -> None:
    """Where ksmd is stopped it is not waited for until the time-out."""
    was, value, asked = {"run": ("1", "0", ENDLESS), "pages_to_scan": ("20000", "10000", LONG)}[name]
    run_id = f"rival-{name}"
    run = started(results, run_id=run_id, focus=1, **asked)
    follow(run, MERGES)
    (KSM / name).write_text(value)
    _, said = finished(run)
    assert left(before) == [], said
    merge = cells(results / run_id)[IDLE]["merge"]["observed"]
    (change,) = merge["knob_changes"]
    assert (change["knob"], change["before"], change["after"]) == (name, was, value)
    if name == "run":
        assert merge["reason"].startswith("something else on the host stopped KSM after ")
        assert merge["converged"] is False
    whole(results, run_id)
    assert f"somebody changed {name} from {was} to {value}" in summary(results, run_id)


def test_a_knob_is_changed_by_somebody_else_in_a_step_of_a_capacity_run(
    tmp_path: Path, proof: Cells, before: State
) -> None:
    """That step is the last of its arm; no limit and no divergence is concluded from it."""
    run = started(tmp_path, run_id="rival-step", **CAPACITY, **LONG)
    follow(run, "arm ksm, boot 1: Let KSM settle")
    follow(run, MERGES)
    (KSM / "pages_to_scan").write_text("10000")
    code, said = finished(run)
    assert code == 0, said
    assert left(before) == []
    whole(tmp_path, "rival-step", capacity=True)
    (loaded,), (problem,) = load_capacity(tmp_path)
    assert "somebody changed pages_to_scan from 20000 to 10000" in problem
    assert [step.guests for step in loaded.arms["ksm"]] == [0]
    assert loaded.divergences == ()


# libvirt


def daemon() -> int:
    """libvirtd's process."""
    (pid,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/comm")
        if path.read_text() == "libvirtd\n"
    ]
    return pid


def test_libvirtd_is_killed_while_ksm_merges(results: Path, proof: Cells, before: State) -> None:
    """The guests live on, and are measured to the end; who removes them starts it again."""
    run = started(results, run_id="libvirtd-merge", focus=2, **LONG)
    follow(run, MERGES)
    os.kill(killed := daemon(), signal.SIGKILL)
    code, said = finished(run)
    assert code == 0, said
    assert daemon() != killed
    assert left(before) == [], said
    assert domains() == []
    (cell,) = cells(results / "libvirtd-merge").values()
    assert set(cell) == set(RECORDS)
    whole(results, "libvirtd-merge")


def test_libvirtd_is_killed_while_guests_are_restored(results: Path, proof: Cells, before: State) -> None:
    run = started(results, run_id="libvirtd-restore", focus=1)
    follow(run, ": restore")
    while not list(Path("/run/libvirt/qemu").glob("ksm-testbed-*.pid")):
        assert run.poll() is None
        time.sleep(0.02)
    os.kill(daemon(), signal.SIGKILL)
    code, said = finished(run)
    assert code != 0, said
    assert left(before) == [], said
    assert domains() == []
    assert "guest0" in failure(results / "libvirtd-restore")
    # What failed is measured by the next run.
    succeeded(playbook(results_directory=str(results), run_id="libvirtd-restore", focus=1, **SIZE))
    assert set(cells(results / "libvirtd-restore")[IDLE]) == set(RECORDS)
    assert left(before) == []


# Disks


def fill(folder: Path, spare_bytes: int = 0) -> Path:
    """A file that takes all that is free in the folder but this."""
    filler, seen = folder / "filler", os.statvfs(folder)
    rest_mib = (seen.f_bfree * seen.f_frsize - spare_bytes) // MIB
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        # To the last block, of which a file system keeps some for itself
        for block in repeat(bytes(MIB), rest_mib) if spare_bytes else repeat(bytes(MIB)):
            file.write(block)
    return filler


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *words], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", words[-1]], check=True)


def test_the_disk_of_the_results_fills_up(tmp_path: Path, proof: Cells, before: State) -> None:
    asked = {"run_id": "full", "focus": 1}
    results = tmp_path / "results"
    results.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=32m", "tmpfs", results):
        run = started(results, **asked, **LONG)
        follow(run, MERGES)
        filler = fill(results)
        code, said = finished(run)
        assert code != 0
        assert "No space left on device: make room there; what was written before is whole" in said
        assert domains() == []
        whole(results, "full")
        assert "off" in cells(results / "full")[IDLE]
        filler.unlink()
        again = {**asked, **SIZE, **LONG}
        succeeded(playbook(results_directory=str(results), **again))
        assert set(cells(results / "full")[IDLE]) == set(RECORDS)
    assert left(before) == []


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Path]:
    """The testbed's directory on a small disk; the image is the host's, its checkpoints are out of sight."""
    place, images, disk = GUESTS_DIRECTORY.parent, tmp_path / "images", tmp_path / "disk"
    images.mkdir()
    with disk.open("wb") as file:
        file.truncate(1000 * MIB)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    with mounted("--bind", place / "images", images), mounted("-o", "loop", disk, place):
        (place / "images").mkdir(mode=0o711)
        with mounted("--bind", images, place / "images"):
            yield place
            # Its run, too, where the test failed and it goes on
            playbook(name="teardown.yml", lease_end=True)


def test_the_disk_of_checkpoints_and_guests_fills_up(results: Path, own_disk: Path) -> None:
    """While guests are saved, and while a guest writes; with room again they boot and are measured."""
    before = state()
    asked = {"guests": 1, "guest_memory_mib": 192, "focus": 1, **ENDLESS}
    run = started(results, run_id="disk-checkpoint", **asked)
    follow(run, "booting 1 guests")
    # Enough for what a guest writes when it boots, too little for its memory
    filler = fill(own_disk, 100 * MIB)
    code, said = finished(run)
    assert code != 0, said
    told = failure(results / "disk-checkpoint")
    assert told.startswith("localhost: guest01 can't be saved: ")
    assert f"MiB are free in {CHECKPOINTS}" in told
    assert domains() == []
    assert [path.name for path in CHECKPOINTS.iterdir()] == []
    filler.unlink()

    run = started(results, run_id="disk-guest", **asked)
    follow(run, MERGES)
    filler = fill(own_disk)
    writing = ["dd", "if=/dev/urandom", "of=/root/written", "bs=1M", "count=64", "conv=fsync"]
    writes = subprocess.Popen([*SSH, "guest01", *writing], stdin=subprocess.DEVNULL)
    code, said = finished(run)
    assert code != 0, said
    # Its guest has gone
    assert writes.wait() != 0
    told = failure(results / "disk-guest")
    assert told.startswith(
        "localhost: guest01 does not run: it was paused since the disk under its own is full"
    )
    assert domains() == []
    filler.unlink()
    assert left(before) == []
    for run_id in ("disk-checkpoint", "disk-guest"):
        whole(results, run_id)


# Memory


@pytest.mark.system
def test_guests_that_the_host_has_no_memory_for_are_refused_before_anything_is_changed(
    results: Path, before: State
) -> None:
    """As many as fill it, were there nothing else: a part is in use, and QEMU needs its own."""
    meminfo = Path("/proc/meminfo").read_text()
    each_mib = int(meminfo.split()[1]) // 1024 // 8
    size = {"guests": 8, "guest_memory_mib": each_mib}
    done = playbook(results_directory=str(results), run_id="short", focus=1, **size)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert (
        f"guests is 8 and guest_memory_mib is {each_mib}: each needs up to {each_mib + 160} MiB of host"
        in said
    )
    assert not (results / "short").exists()
    assert left(before) == []


# Other hosts


def with_another(folder: Path, **variables: object) -> list[str]:
    """Words that add a hypervisor to this one."""
    inventory = folder / "more.yml"
    hosts = {"hypervisors": {"hosts": {"away": variables}}}
    inventory.write_text(json.dumps({"all": {"children": hosts}}))
    return ["-i", str(ROOT / "inventory/hosts.yml"), "-i", str(inventory)]


@pytest.mark.system
def test_a_hypervisor_that_is_away_from_the_start_ends_the_run_before_any_is_changed(
    results: Path, before: State, tmp_path: Path
) -> None:
    words = with_another(tmp_path, ansible_host="127.0.0.1", ansible_port=1)
    code, said = finished(started(results, *words, run_id="away", focus=1))
    assert code != 0
    assert "away" in said
    assert not (results / "away").exists()
    assert left(before) == []


def test_a_hypervisor_that_fails_leaves_the_cells_of_the_other_alone(
    results: Path, proof: Cells, before: State, tmp_path: Path
) -> None:
    """It fails in its preflight: a port of its guests is in use. It is this host by another name."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = with_another(
            tmp_path,
            ansible_connection="local",
            ansible_python_interpreter="/usr/bin/python3",
            lease_directory=str(tmp_path / "lease"),
            guest_ssh_port_base=port - 1,
        )
        code, said = finished(started(results, *words, run_id="another", focus=1))
    assert code != 0
    assert f"port {port} of 127.0.0.1, meant for a guest, is in use" in said
    assert left(before) == []
    assert [path.name for path in (results / "another").iterdir() if path.is_dir()] == ["localhost"]
    assert set(cells(results / "another")[IDLE]) == set(RECORDS)
    whole(results, "another")


# The network


def test_the_network_is_cut_while_ksm_merges(
    results: Path, proof: Cells, before: State, tmp_path: Path
) -> None:
    """The host puts itself right by its lease, the run says what has become of it, the next one is fine."""
    cut = tmp_path / "cut"
    environment = {
        "ANSIBLE_CONNECTION_PLUGINS": str(ROOT / "tests/system/connections"),
        "KSM_TESTBED_CUT": str(cut),
    }
    asked = {"run_id": "cut", "focus": 1, "lease_seconds": 90, "ansible_connection": "cut"}
    run = started(results, environment=environment, **asked, **ENDLESS)
    follow(run, MERGES)
    cut.touch()
    follow(run, "it does not answer, and is asked again for 90 s")
    # While its controller still tries to reach it
    assert left(before) == []
    assert domains() == []
    code, said = finished(run)
    assert code != 0, said
    told = failure(results / "cut")
    assert told.startswith("localhost does not answer: localhost has not answered for ")
    assert "the network is cut" in told
    whole(results, "cut")
    cut.unlink()
    succeeded(playbook(results_directory=str(results), **SIZE, run_id="after-cut", focus=1))
    assert left(before) == []
    assert set(cells(results / "after-cut")[IDLE]) == set(RECORDS)
    assert state()["settings"] == before["settings"]
