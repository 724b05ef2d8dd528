"""The module host_preflight against trees of hosts that can't measure."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plugin_files import ROOT, load, run

MODULE = "plugins/modules/host_preflight.py"
preflight = load(MODULE)
disk_room = sys.modules["ansible.module_utils.disk_room"]
GOOD = {
    "debian_versions": ["12", "13"],
    "rival_tuners": ["ksmtuned", "a-tuner-of-a-long-name"],
    "others": "refuse",
    "guests": 15,
    "guest_memory_mib": 512,
    "own_prefix": "ksm-testbed-",
    "overhead_mib": 160,
    "ports": [],
    "disk_needs": [],
}
OFFERS = "ksm_rmap_items 8\nksm_mergeable: yes\nksm_merge_any: no\n"
MARKED = "7f00-7f10 rw-p 00000000 00:00 0\nSize: 2048 kB\nVmFlags: rd wr mg\n"


class Host:
    """A tree with /proc, /sys and /etc of a host that can measure."""

    def __init__(self, root: Path) -> None:
        self.root = root
        recorded = ROOT / "tests/fixtures/sysfs/linux-6.18/ksm"
        shutil.copytree(recorded, root / "sys/kernel/mm/ksm")
        self.write(
            "etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n'
        )
        self.write("proc/meminfo", "MemTotal:       25165824 kB\nMemAvailable:   20000000 kB\n")
        self.process(1, "systemd", "/sbin/init")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def process(self, pid: int, comm: str, command: str, ksm_stat: str | None = "ksm_rmap_items 0\n") -> None:
        self.write(f"proc/{pid}/comm", f"{comm}\n")
        self.write(f"proc/{pid}/cmdline", command.replace(" ", "\0"))
        if ksm_stat is not None:
            self.write(f"proc/{pid}/ksm_stat", ksm_stat)

    @property
    def arguments(self) -> dict[str, Any]:
        return {**GOOD, **{f"{name}_root": str(self.root / name) for name in ("proc", "sys", "etc")}}

    def faults(self, user_id: int = 0, **changes: Any) -> list[str]:
        wrong, _facts = preflight.problems({**self.arguments, **changes}, user_id)
        assert all("\n" not in sentence for sentence in wrong)
        found: list[str] = wrong
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_host_that_can_measure_has_no_fault(host: Host) -> None:
    wrong, facts = preflight.problems(host.arguments, 0)
    assert wrong == []
    assert facts == {"debian_version": "13", "systemd": True, "other_mergeable": [], "notes": []}


def test_a_host_without_systemd_is_told_apart(host: Host) -> None:
    host.process(1, "tini", "tini -- sleep")
    assert preflight.problems(host.arguments, 0)[1]["systemd"] is False


@pytest.mark.parametrize(
    ("release", "shown"),
    [
        (
            'PRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\nID=debian\nVERSION_ID="11"\n',
            "Debian GNU/Linux 11 (bullseye)",
        ),
        ('PRETTY_NAME="Ubuntu 24.04 LTS"\nID=ubuntu\nVERSION_ID="24.04"\n', "Ubuntu 24.04 LTS"),
        ('PRETTY_NAME="Twelve"\nID=other\nVERSION_ID="12"\n', "Twelve"),
        ('PRETTY_NAME="Debian GNU/Linux forky/sid"\nID=debian\n', "Debian GNU/Linux forky/sid"),
        ("", "an unknown system"),
    ],
)
def test_another_system_is_refused_by_its_name(host: Host, release: str, shown: str) -> None:
    host.write("etc/os-release", release)
    assert host.faults() == [f"this host runs {shown}, and the testbed supports Debian 12 and 13"]


def test_a_user_other_than_root_is_refused(host: Host) -> None:
    (fault,) = host.faults(user_id=1000)
    assert "needs root" in fault


def test_a_kernel_without_ksm_is_refused(host: Host) -> None:
    shutil.rmtree(host.root / "sys/kernel/mm/ksm")
    assert host.faults() == ["this kernel has no /sys/kernel/mm/ksm: boot one with CONFIG_KSM=y"]


def test_missing_counters_are_named(host: Host) -> None:
    for name in ("full_scans", "pages_sharing"):
        (host.root / "sys/kernel/mm/ksm" / name).unlink()
    (fault,) = host.faults()
    assert "lacks full_scans, pages_sharing," in fault


def test_an_optional_counter_may_be_missing(host: Host) -> None:
    (host.root / "sys/kernel/mm/ksm/general_profit").unlink()
    assert host.faults() == []


def test_a_kernel_without_mem_available_is_refused(host: Host) -> None:
    host.write("proc/meminfo", "MemTotal:       25165824 kB\n")
    (fault,) = host.faults()
    assert "MemAvailable" in fault


def test_guests_that_the_host_could_never_hold_are_refused_with_how_many_it_could(host: Host) -> None:
    # 48 x 512 MiB are all of the 24 GiB, which are not available.
    assert not any("in all" in fault for fault in host.faults(guests=48))
    assert host.faults(guests=49) == [
        "guests is 49 and guest_memory_mib is 512: this host has 24576 MiB in all, "
        "which holds 48 such guests at the most"
    ]


@pytest.mark.parametrize("name", ["ksmtuned", "a-tuner-of-a-long-name"])
def test_a_rival_tuner_is_refused_by_name(host: Host, name: str) -> None:
    comm = name[:15]
    host.process(77, comm, f"/bin/bash /usr/sbin/{comm}")
    (fault,) = host.faults()
    assert fault.startswith(f"{name} runs on this host")


@pytest.mark.parametrize(
    "stat", [OFFERS, "ksm_rmap_items 0\nksm_mergeable: no\nksm_merge_any: yes\n", "ksm_rmap_items 3\n", None]
)
def test_other_processes_that_offer_memory_are_named_with_its_size(host: Host, stat: str | None) -> None:
    host.process(42, "qemu", "qemu-system-x86_64 -name guest=web\n01", stat)
    host.write("proc/42/smaps", MARKED)
    (fault,) = host.faults()
    assert "42 (qemu-system-x86_64 -name guest=web 01) 2 MiB, 0 MiB of it merged; end them" in fault
    assert "give -e others=allow" in fault
    wrong, facts = preflight.problems({**host.arguments, "others": "allow"}, 0)
    assert wrong == [] and facts["notes"] == [fault]


def test_merged_pages_tell_of_a_process_that_offers_nothing_any_more(host: Host) -> None:
    host.process(42, "qemu", "qemu", ksm_stat=None)
    host.write("proc/42/ksm_merging_pages", "0\n")
    host.write("proc/42/smaps", MARKED.replace(" mg", ""))
    assert host.faults() == []
    host.write("proc/42/ksm_merging_pages", "512\n")
    assert "42 (qemu) 0 MiB, 2 MiB of it merged" in host.faults()[0]


@pytest.mark.parametrize("kernel", ["linux-6.1", "linux-6.12"])
def test_kernels_without_flags_in_ksm_stat_are_asked_for_those_of_the_mappings(
    host: Host, kernel: str
) -> None:
    shutil.copytree(ROOT / "tests/fixtures/host" / kernel / "proc", host.root / "proc", dirs_exist_ok=True)
    (fault,) = host.faults()
    assert "1002 (/usr/bin/qemu-system-x86_64 -name guest=web01,debug-threads=on" in fault
    assert ") 1024 MiB, 0 MiB of it merged; 1004 (" in fault
    assert "1004 (postgres -D /var/lib/postgresql) 8 MiB, 2 MiB of it merged" in fault
    # 4 MiB and a stack of 132 KiB, by prctl
    assert ("1005 (python3 prctl.py) 4 MiB" in fault) == (kernel == "linux-6.12")
    assert "1001" not in fault and "1003" not in fault and "37 (" not in fault


def test_of_many_processes_those_that_offer_most_are_named_and_the_rest_is_counted(host: Host) -> None:
    for number in range(1, 8):
        host.process(100 + number, "qemu", f"qemu {number}", OFFERS)
        host.write(f"proc/{100 + number}/smaps", MARKED.replace("2048", f"{number * 1024}"))
    (fault,) = host.faults()
    assert "guests: 107 (qemu 7) 7 MiB" in fault and "103 (qemu 3)" in fault and "102" not in fault
    assert "; and 2 more with 3 MiB; end them" in fault


def test_a_process_that_only_speaks_of_a_guest_of_ours_is_none(host: Host) -> None:
    host.process(43, "sh", "sh -c", OFFERS)
    host.write("proc/43/cmdline", "sh\0-c\0watch guest=ksm-testbed-guest01\0")
    assert len(host.faults()) == 1


def test_a_ksm_that_is_in_use_is_noted_and_not_refused(host: Host) -> None:
    host.write("sys/kernel/mm/ksm/run", "1\n")
    wrong, facts = preflight.problems(host.arguments, 0)
    assert wrong == [] and len(facts["notes"]) == 1
    assert facts["notes"][0].startswith("KSM runs on this host already")
    warnings = run(MODULE, **host.arguments).get("warnings", [])
    assert any("KSM runs on this host already" in str(warning) for warning in warnings)


def test_a_rival_tuner_that_is_allowed_is_noted(host: Host) -> None:
    host.process(77, "ksmtuned", "/bin/bash /usr/sbin/ksmtuned")
    wrong, facts = preflight.problems({**host.arguments, "others": "allow"}, 0)
    assert wrong == [] and facts["notes"][0].startswith("ksmtuned runs on this host")


def test_the_own_guests_may_offer_memory(host: Host) -> None:
    host.process(43, "qemu", "qemu-system-x86_64 -name guest=ksm-testbed-guest01,debug-threads=on", OFFERS)
    assert host.faults() == []


def test_all_faults_come_in_one_message(host: Host) -> None:
    host.process(77, "ksmtuned", "ksmtuned")
    (host.root / "sys/kernel/mm/ksm/run").unlink()
    result = run(MODULE, **host.arguments)
    assert result["failed"]
    assert "ksmtuned runs" in result["msg"] and "lacks run," in result["msg"]
    assert ("needs root" in result["msg"]) == (os.geteuid() != 0)


def test_a_tree_that_cannot_be_read_is_no_traceback(host: Host) -> None:
    (host.root / "etc/os-release").unlink()
    result = run(MODULE, **host.arguments)
    assert result["failed"] and result["msg"].startswith("the preflight can't read this host: ")


def test_guests_that_do_not_fit_what_is_available_are_refused(host: Host) -> None:
    host.write("proc/meminfo", "MemTotal: 25165824 kB\nMemAvailable: 8388608 kB\n")
    (fault,) = host.faults()
    assert fault == (
        "guests is 15 and guest_memory_mib is 512: each needs up to 672 MiB of host memory, and 7680 MiB are "
        "available besides a reserve, which fits 11: lower guests or guest_memory_mib"
    )
    assert host.faults(guests=11) == []
    # What a former run's guests hold is given back, or is what is asked for.
    host.process(9, "qemu-system-x86", "qemu -name guest=ksm-testbed-guest01")
    host.write("proc/9/smaps_rollup", "Rss: 9000000 kB\nPss: 2752512 kB\n")
    assert host.faults() == []


def test_a_port_in_use_is_refused_but_not_that_of_a_guest_of_ours(host: Host) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert host.faults(ports=[port]) == [
            f"port {port} of 127.0.0.1, meant for a guest, is in use: end what uses it, or set "
            "guest_ssh_port_base"
        ]
        host.process(9, "qemu", f"qemu -name guest=ksm-testbed-guest01 hostfwd=tcp:127.0.0.1:{port}-:22")
        assert host.faults(ports=[port]) == []
    assert host.faults(ports=[port]) == []


def test_a_file_system_with_less_free_than_is_to_be_stored_is_refused_with_the_sizes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000 << 20))
    folder = host.root / "var/lib/not-there-yet"
    checkpoint = {"path": str(folder / "checkpoints"), "bytes": (600 << 20) + 1, "what": "the checkpoint"}
    image = {"path": str(host.root), "bytes": 400 << 20, "what": "the guests' image"}
    assert host.faults(disk_needs=[checkpoint]) == []
    assert host.faults(disk_needs=[image, {**image, "bytes": 600 << 20}]) == []
    # Each of them fits, and both do not.
    assert host.faults(disk_needs=[checkpoint, image]) == [
        f"the file system of {folder}/checkpoints has 1000 MiB free, and 1001 MiB are to be stored there "
        f"(601 MiB for the checkpoint in {folder}/checkpoints, 400 MiB for the guests' image in {host.root})"
        ": make room, `make clean` removes checkpoints, or ask for fewer guests"
    ]


def test_each_file_system_is_held_to_its_own_needs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"/": 5 << 20, "/proc": 1 << 20}
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[str(path)]))
    needs = [{"path": path, "bytes": 3 << 20, "what": f"all of {path}"} for path in free]
    assert host.faults(disk_needs=needs) == [
        "the file system of /proc has 1 MiB free, and 3 MiB are to be stored there (3 MiB for all of /proc "
        "in /proc): make room, `make clean` removes checkpoints, or ask for fewer guests"
    ]


def test_the_disk_of_this_host_is_asked(host: Host) -> None:
    need = {"path": str(host.root / "new"), "bytes": 1 << 60, "what": "too much"}
    message = run(MODULE, **{**host.arguments, "disk_needs": [need]})["msg"]
    assert f"(1099511627776 MiB for too much in {host.root}/new): make room" in message
    assert "too much" not in run(MODULE, **{**host.arguments, "disk_needs": [{**need, "bytes": 1}]}).get(
        "msg", ""
    )


def test_a_need_without_its_size_is_refused(host: Host) -> None:
    need = {"path": "/", "what": "all"}
    assert (
        "missing required arguments: bytes" in run(MODULE, **{**host.arguments, "disk_needs": [need]})["msg"]
    )
