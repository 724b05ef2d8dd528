"""The state of a host before and after a run: what is read, what differs, whose it is, what is told."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plugin_files import load, run

MODULE = "plugins/modules/host_state.py"
host_state = load(MODULE)
shared = sys.modules["ansible.module_utils.host_state"]
TESTBED = "var/lib/ksm-testbed"
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


class Tree:
    """A host in files: one QEMU of somebody else, sshd, libvirt's daemons not yet started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/sys/kernel/random/boot_id", "boot-1\n")
        self.write("proc/mounts", "/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\n")
        self.listen()
        self.write("var/lib/dpkg/status", "Package: bash\nStatus: install ok installed\n")
        self.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
        self.write("etc/group", "root:x:0:\n")
        self.write("etc/libvirt/qemu/web.xml", "<domain/>")
        for name, value in {"run": "0", "pages_to_scan": "100", "advisor_mode": "[none] scan-time"}.items():
            self.write(f"sys/kernel/mm/ksm/{name}", f"{value}\n")
        self.write("sys/kernel/mm/ksm/pages_sharing", "0\n").chmod(0o444)
        self.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
        (root / "sys/fs/cgroup/memory").mkdir(parents=True)
        self.process(300, "qemu-system-x86", "qemu-system-x86_64\0-name\0guest=web,debug-threads=on")
        self.process(400, "sshd", "/usr/sbin/sshd", inodes=[1])
        self.process(401, "vim", "vim\0/home/me/ksm-testbed/README.md")

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        return path

    def process(
        self, pid: int, name: str, line: str, inodes: list[int] | None = None, opened: str = ""
    ) -> None:
        self.write(f"proc/{pid}/comm", f"{name}\n")
        self.write(f"proc/{pid}/cmdline", f"{line}\0")
        self.write(f"proc/{pid}/stat", f"{pid} ({name}) S 1 1")
        folder = self.root / f"proc/{pid}/fd"
        folder.mkdir(exist_ok=True)
        for inode in inodes or []:
            (folder / str(inode)).symlink_to(f"socket:[{inode}]")
        if opened:
            (folder / "9").symlink_to(opened)

    def listen(self, *more: tuple[str, int]) -> None:
        """sshd listens everywhere; and each of these (address as /proc/net has it, inode)."""
        lines = [("00000000:0016", 1), *more]
        text = "".join(f"   0: {at} 00000000:0000 0A 0:0 00:0 0 0 0 {inode} 1\n" for at, inode in lines)
        # An established connection listens to nobody.
        self.write("proc/net/tcp", f"{HEAD}{text}   1: 0100007F:0016 0100007F:1234 01 0:0 00:0 0 0 0 7 1\n")

    def state(self) -> Any:
        return json.loads(json.dumps(shared.read_state(self.root)))

    def guest(self, number: int = 1) -> None:
        """A guest of the testbed that runs, its SSH on 127.0.0.1:22201."""
        name = f"ksm-testbed-guest{number:02d}"
        line = f"qemu-system-x86_64\0-name\0guest={name},debug-threads=on"
        self.process(500 + number, "qemu-system-x86", line, inodes=[50 + number])
        self.listen(("0100007F:56B9", 50 + number))
        self.write(f"run/libvirt/qemu/{name}.xml", "<domain/>")
        self.write(f"{TESTBED}/guests/guest{number:02d}/overlay.qcow2", "disk").chmod(0o600)
        self.write(f"var/log/libvirt/qemu/{name}.log", "log")

    def call(self, state: str, **arguments: Any) -> dict[str, Any]:
        record = str(self.root / TESTBED / "host-state.json")
        return run(MODULE, state=state, root=str(self.root), record=record, **arguments)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "host")


def test_what_is_read(tree: Tree) -> None:
    tree.guest()
    state = tree.state()
    assert state["settings"] == {
        "ksm/advisor_mode": "none",
        "ksm/pages_to_scan": "100",
        "ksm/run": "0",
        "transparent_hugepage/enabled": "madvise",
    }
    assert state["processes"] == {"QEMU of web": 1, "QEMU of ksm-testbed-guest01": 1}
    assert state["domains"] == {"web": "defined", "ksm-testbed-guest01": "running"}
    assert state["mounts"] == {"/": "ext4", "/proc": "proc"}
    assert state["sockets"] == {"tcp 0.0.0.0:22": "", "tcp 127.0.0.1:22201": "QEMU of ksm-testbed-guest01"}
    assert list(state["packages"]) == ["bash"] and list(state["users"]) == ["group root", "user root"]
    assert state["files"][f"/{TESTBED}/guests/guest01/overlay.qcow2"].startswith("-rw------- ")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0100007F:56B9", "127.0.0.1:22201"),
        ("00000000:0016", "0.0.0.0:22"),
        ("00000000000000000000000001000000:0016", "[0:0:0:0:0:0:0:1]:22"),
        ("B80D0120000000000000000001000000:01BB", "[2001:db8:0:0:0:0:0:1]:443"),
    ],
)
def test_addresses_are_those_of_the_kernel(text: str, meant: str) -> None:
    assert shared.address(text) == meant


def test_this_host_can_be_read_and_a_socket_of_this_process_is_seen_as_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        state = shared.read_state()
    assert f"tcp 127.0.0.1:{port}" in state["sockets"]
    assert "/" in state["mounts"] and state["boot_id"]


def test_a_host_that_was_put_right_differs_in_nothing(tree: Tree) -> None:
    before = tree.state()
    assert shared.differences(before, tree.state()) == []
    assert shared.traces(before) == []


def stopped_restoring(tree: Tree) -> None:
    tree.write("sys/kernel/mm/ksm/pages_to_scan", "20000\n")


def other_thp(tree: Tree) -> None:
    tree.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")


def merged(tree: Tree) -> None:
    path = tree.root / "sys/kernel/mm/ksm/pages_sharing"
    path.chmod(0o644)
    path.write_text("7\n")
    path.chmod(0o444)


def overlay(tree: Tree) -> None:
    tree.write(f"{TESTBED}/guests/guest01/overlay.qcow2", "")


def snapshot(tree: Tree) -> None:
    tree.write(f"{TESTBED}/ksm-snapshot.json", "{}")


def progress(tree: Tree) -> None:
    tree.write("run/ksm-testbed-guests.progress", "")


def holder(tree: Tree) -> None:
    tree.process(600, "python3", "/usr/bin/python3", opened="/run/ksm-testbed-guests.progress")


def maker(tree: Tree) -> None:
    tree.process(601, "mmdebstrap", "mmdebstrap\0bookworm\0/var/lib/ksm-testbed/images/.making-x/root")


def monitor(tree: Tree) -> None:
    tree.write("var/lib/libvirt/qemu/domain-7-ksm-testbed-guest01/monitor.sock", "")


def mount(tree: Tree) -> None:
    tree.write(
        "proc/mounts",
        "/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\n"
        "proc /var/lib/ksm-testbed/images/.making-x/root/proc proc rw 0 0\n",
    )


def envelope(tree: Tree) -> None:
    (tree.root / "sys/fs/cgroup/memory/machine/ksmtestbed.partition").mkdir(parents=True)


def slice_(tree: Tree) -> None:
    (tree.root / "sys/fs/cgroup/machine.slice/machine-ksmtestbed.slice").mkdir(parents=True)


def domain(tree: Tree) -> None:
    tree.write("etc/libvirt/qemu/ksm-testbed-guest01.xml", "<domain/>")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (stopped_restoring, ["ksm/pages_to_scan was 100 and is 20000"]),
        (other_thp, ["transparent_hugepage/enabled was madvise and is never"]),
        (merged, ["7 pages are merged, and none was"]),
        (overlay, [f"/{TESTBED}/guests is new"]),
        (snapshot, [f"/{TESTBED}/ksm-snapshot.json is new"]),
        (progress, ["/run/ksm-testbed-guests.progress is new"]),
        (holder, ["python3 at work on the testbed's files is new"]),
        (maker, ["mmdebstrap at work on the testbed's files is new"]),
        (monitor, ["/var/lib/libvirt/qemu/domain-7-ksm-testbed-guest01 is new"]),
        (mount, ["mount /var/lib/ksm-testbed/images/.making-x/root/proc is new"]),
        (envelope, ["cgroup /sys/fs/cgroup/memory/machine/ksmtestbed.partition is new"]),
        (slice_, ["cgroup /sys/fs/cgroup/machine.slice/machine-ksmtestbed.slice is new"]),
        (domain, ["domain ksm-testbed-guest01 is new"]),
    ],
)
def test_what_a_run_left_is_named(tree: Tree, change: Callable[[Tree], None], said: list[str]) -> None:
    before = tree.state()
    change(tree)
    found = shared.differences(before, tree.state())
    assert [one.text for one in found if one.kind == "left"] == said
    text = shared.told({**before, "run": "small", "recorded_at": "2026-01-31T13:00:00Z"}, found)
    assert text.startswith("this host is not as it was before run small of 2026-01-31T13:00:00Z: ")
    assert said[0] in text


def test_a_guest_that_lives_is_named_by_its_process_domain_files_and_socket(tree: Tree) -> None:
    before = tree.state()
    tree.guest()
    left = [one.text for one in shared.differences(before, tree.state()) if one.kind == "left"]
    assert left == [
        "QEMU of ksm-testbed-guest01 is new",
        "domain ksm-testbed-guest01 is new",
        "/run/libvirt/qemu/ksm-testbed-guest01.xml is new",
        f"/{TESTBED}/guests is new",
        "tcp 127.0.0.1:22201 of QEMU of ksm-testbed-guest01 is new",
    ]
    # What is merged or set is no trace of a run: another may have KSM on.
    assert shared.traces(tree.state()) == [text.removesuffix(" is new") for text in left]


def test_what_stays_by_design_is_said_to_stay(tree: Tree) -> None:
    before = tree.state()
    tree.process(700, "libvirtd", "libvirtd\0-d")
    tree.write(f"{TESTBED}/checkpoints/boot1-512mib-0123456789ab/guest01/memory", "").chmod(0o600)
    tree.write(f"{TESTBED}/images/bookworm-1/disk.qcow2", "")
    tree.write(f"{TESTBED}/ksm-snapshot.json.other-boot1", "{}")
    tree.write("var/log/libvirt/qemu/ksm-testbed-guest01.log", "")
    packages = {"bash": "install ok installed", "gone": "deinstall ok config-files"}
    text = "\n".join(
        f"Package: {name}\nStatus: {status}\n"
        for name, status in {**packages, "qemu-utils": "install ok installed"}.items()
    )
    tree.write("var/lib/dpkg/status", text)
    tree.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055::/:/bin/false\n")
    found = shared.differences(before, tree.state())
    assert {one.kind for one in found} == {"stays"}
    assert [one.text for one in found] == [
        "libvirtd is new",
        f"/{TESTBED} is new",
        "/var/log/libvirt/qemu/ksm-testbed-guest01.log is new",
        "package qemu-utils is new",
        "user libvirt-qemu is new",
    ]
    text = shared.told({**before, "run": "", "recorded_at": "2026-01-31T13:00:00Z"}, found)
    assert text.startswith("this host is as it was before the run of 2026-01-31T13:00:00Z (compared: 4 ")
    assert "What stays by design (docs/safety.md): libvirtd is new;" in text


def test_what_others_did_meanwhile_is_theirs(tree: Tree) -> None:
    before = tree.state()
    tree.process(701, "qemu-system-x86", "qemu-system-x86_64\0-name\0guest=db,debug-threads=on")
    tree.listen(("00000000:1F90", 99))
    tree.write("proc/mounts", "/dev/vda / ext4 rw 0 0\n/dev/sdb1 /media/stick vfat rw 0 0\n")
    found = shared.differences(before, tree.state())
    assert found == [
        ("other", "QEMU of db is new"),
        ("other", "mount /media/stick is new"),
        ("other", "mount /proc is gone"),
        ("other", "tcp 0.0.0.0:8080 is new"),
    ]
    told = shared.told({**before, "run": "x", "recorded_at": "then"}, found)
    assert told.startswith("this host is as it was before run x of then")
    assert "Changed meanwhile by somebody else: QEMU of db is new" in told


def test_the_lease_of_whoever_reads_is_no_part_of_the_state(tree: Tree) -> None:
    before = tree.state()
    tree.write("run/ksm-testbed-lease/owner.json", "{}")
    line = 'python3\0-B\0/run/ksm-testbed-lease/holder-1\0/run/ksm-testbed-lease\0{"token": "1"}'
    tree.process(800, "python3", line, opened="/run/ksm-testbed-lease/lock")
    tree.process(801, "sh", "/bin/sh\0-c\0touch -a /run/ksm-testbed-lease/renewal-1")
    assert shared.differences(before, tree.state()) == []
    assert shared.traces(tree.state()) == []
    # It is no cloak for others.
    tree.process(802, "python3", line, opened="/run/ksm-testbed-guests.progress")
    assert shared.traces(tree.state()) == ["python3 at work on the testbed's files"]


def test_ssh_to_a_guest_is_the_testbeds_and_ssh_to_another_hypervisor_is_not(tree: Tree) -> None:
    before = tree.state()
    tree.process(800, "ssh", f"ssh\0-o\0Port=22\0kvm1\0sh -c 'cat /{TESTBED}/images/list'\0")
    assert shared.differences(before, tree.state()) == []
    tree.process(801, "ssh", f"ssh\0-F\0/{TESTBED}/guests/ssh_config\0guest01\0true\0")
    (found,) = shared.differences(before, tree.state())
    assert (found.kind, found.text) == ("left", "ssh at work on the testbed's files is new")


def test_pages_to_scan_is_the_kernels_under_its_advisor(tree: Tree) -> None:
    tree.write("sys/kernel/mm/ksm/advisor_mode", "none [scan-time]\n")
    before = tree.state()
    tree.write("sys/kernel/mm/ksm/pages_to_scan", "777\n")
    assert shared.differences(before, tree.state()) == []


# Reachable, private


@pytest.mark.parametrize("address", ["00000000:56B9", "0200A8C0:56B9"])
def test_a_guest_that_listens_beyond_the_loopback_is_named(tree: Tree, address: str) -> None:
    tree.guest()
    assert shared.open_to_others(tree.state()) == []
    tree.listen((address, 51))
    (named,) = shared.open_to_others(tree.state())
    assert named.endswith(":22201 of QEMU of ksm-testbed-guest01")


def test_files_that_others_may_read_are_named(tree: Tree) -> None:
    tree.guest()
    folder = tree.root / TESTBED / "guests"
    for path in (folder, folder / "guest01"):
        path.chmod(0o711)
    assert shared.not_private(tree.state()) == []
    (folder / "guest01/overlay.qcow2").chmod(0o640)
    (folder / "guest01").chmod(0o755)
    with socket.socket(socket.AF_UNIX) as channel:
        here = Path.cwd()
        os.chdir(folder / "guest01")
        channel.bind("channel")
        os.chdir(here)
    (folder / "guest01/channel").chmod(0o775)
    open_ones = [path.partition(" ")[0] for path in shared.not_private(tree.state())]
    at = f"/{TESTBED}/guests/guest01"
    assert open_ones == [at, f"{at}/overlay.qcow2"]
    (folder / "guest01/channel").chmod(0o777)
    assert f"{at}/channel" in [path.partition(" ")[0] for path in shared.not_private(tree.state())]


# The module


def test_the_state_is_kept_privately_before_the_first_change_and_compared(tree: Tree) -> None:
    assert tree.call("recorded", run="first")["changed"]
    kept = tree.root / TESTBED / "host-state.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert list(kept.parent.iterdir()) == [kept]
    assert not tree.call("recorded", run="second")["changed"]
    answer = tree.call("compared")
    assert not answer.get("failed") and answer["left"] == []
    assert answer["msg"].startswith("this host is as it was before run second of ")


def test_what_is_left_fails_the_comparison(tree: Tree) -> None:
    tree.call("recorded", run="first")
    stopped_restoring(tree)
    answer = tree.call("compared")
    assert answer["failed"] and answer["left"] == ["ksm/pages_to_scan was 100 and is 20000"]


def test_what_was_kept_stays_while_something_of_a_run_is_left(tree: Tree) -> None:
    """The next run after one that was killed: the host was as the first one found it."""
    tree.call("recorded", run="first")
    snapshot(tree)
    stopped_restoring(tree)
    said = tree.call("recorded", run="second")
    assert not said["changed"] and "that of before the run that left it is kept" in said["msg"]
    assert "before run first" in tree.call("compared")["msg"]


def test_a_host_that_has_something_of_a_run_and_no_record_gets_none(tree: Tree) -> None:
    snapshot(tree)
    said = tree.call("recorded", run="second")
    assert "is not known" in said["msg"]
    answer = tree.call("compared")
    assert answer["failed"]
    assert "no state of it was kept" in answer["msg"] and "ksm-snapshot.json" in answer["msg"]


def test_after_a_boot_of_the_host_nothing_is_compared(tree: Tree) -> None:
    tree.call("recorded", run="first")
    stopped_restoring(tree)
    tree.write("proc/sys/kernel/random/boot_id", "boot-2\n")
    answer = tree.call("compared")
    assert not answer.get("failed") and "it has booted since" in answer["msg"]
    assert tree.call("recorded", run="next")["changed"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 99}'])
def test_a_damaged_record_is_named(tree: Tree, text: str) -> None:
    tree.write(f"{TESTBED}/host-state.json", text)
    answer = tree.call("compared")
    assert not answer.get("failed") and "host-state.json cannot be used" in answer["msg"]
    assert tree.call("recorded")["changed"]


def test_check_mode_keeps_nothing(tree: Tree) -> None:
    assert tree.call("recorded", check=True)["changed"]
    assert not (tree.root / TESTBED).exists()
