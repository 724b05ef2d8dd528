"""The module kvm_host: when kvm can be used, what is chosen, and in which words it is refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils import basic
from plugin_files import load

kvm_host = load("plugins/modules/kvm_host.py")
daemon = kvm_host.libvirt_daemon
INTEL, AMD, NONE = (f"processor : 0\nflags\t\t: fpu {flag} sse2\n" for flag in ("vmx", "svm", "vmxoff"))


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def result_of(monkeypatch: pytest.MonkeyPatch, device: Path, *, check: bool = False) -> dict[str, Any]:
    """What the module returns on a host with kvm, played in this process for what a test has put in place."""
    (device.parent / "cpuinfo").write_text(INTEL)
    arguments = {"kvm_device": str(device), "proc_root": str(device.parent), "_ansible_check_mode": check}
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit):
        kvm_host.main()
    result: dict[str, Any] = json.loads(out.getvalue())
    return {name: result[name] for name in ("changed", "accelerator", "reason")}


@pytest.mark.parametrize("cpuinfo", [INTEL, AMD])
def test_a_cpu_with_the_flag_and_a_device_that_opens_can(device: Path, cpuinfo: str) -> None:
    assert kvm_host.kvm_fault(cpuinfo, device) is None


@pytest.mark.parametrize("cpuinfo", [NONE, "", "Features : fp asimd\n"])
def test_a_device_alone_is_not_enough(device: Path, cpuinfo: str) -> None:
    assert kvm_host.kvm_fault(cpuinfo, device) == "the CPU shows neither vmx nor svm"


def test_a_flag_alone_is_not_enough(tmp_path: Path) -> None:
    fault = kvm_host.kvm_fault(INTEL, tmp_path / "kvm")
    assert fault == f"{tmp_path}/kvm does not open (No such file or directory)"
    assert "(Is a directory)" in kvm_host.kvm_fault(AMD, tmp_path)


@pytest.mark.parametrize(
    ("asked", "fault", "chosen", "reason"),
    [
        ("auto", None, "kvm", "the CPU and /dev/kvm allow it"),
        ("auto", "no luck", "tcg", "no luck: the guests are emulated, which is slower; KSM is as real"),
        ("tcg", None, "tcg", "asked for"),
        ("tcg", "no luck", "tcg", "asked for"),
        ("kvm", None, "kvm", "asked for"),
    ],
)
def test_what_is_chosen(asked: str, fault: str | None, chosen: str, reason: str) -> None:
    assert kvm_host.choose(asked, fault) == (chosen, reason)


def test_kvm_that_cannot_work_is_refused_with_the_reason() -> None:
    with pytest.raises(kvm_host.HostError, match=r"^accelerator is kvm, and no luck: choose auto or tcg"):
        kvm_host.choose("kvm", "no luck")


def test_without_the_bindings_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "libvirt", None)
    with pytest.raises(daemon.DaemonError, match="python3-libvirt is not installed"):
        daemon.answers("test:///default")


@pytest.mark.parametrize(("mode", "is_opened"), [(0o600, True), (0o660, True), (0o666, False)])
def test_a_device_that_udev_left_alone_is_given_to_the_group(
    device: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_opened: bool
) -> None:
    given: list[tuple[Path, int, int]] = []
    group = device.stat().st_gid + 1
    monkeypatch.setattr(kvm_host.grp, "getgrnam", lambda _name: SimpleNamespace(gr_gid=group))
    monkeypatch.setattr(kvm_host.os, "chown", lambda *arguments: given.append(arguments))
    device.chmod(mode)
    monkeypatch.setattr(daemon, "answers", lambda _uri: True)
    monkeypatch.setattr(daemon, "libvirt", object())
    foreseen = result_of(monkeypatch, device, check=True)
    assert given == [] and device.stat().st_mode & 0o777 == mode
    done = result_of(monkeypatch, device)
    assert (
        foreseen
        == done
        == {"changed": is_opened, "accelerator": "kvm", "reason": "the CPU and /dev/kvm allow it"}
    )
    assert given == ([(device, 0, group)] if is_opened else [])
    assert device.stat().st_mode & 0o777 == (0o660 if is_opened else mode)


def test_no_device_and_no_group_are_nothing_to_open(
    tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = device.stat().st_gid
    monkeypatch.setattr(kvm_host.grp, "getgrnam", lambda _name: SimpleNamespace(gr_gid=group + 1))
    assert kvm_host.group_to_open_to(device) == group + 1
    assert kvm_host.group_to_open_to(tmp_path / "none") is None
    monkeypatch.setattr(kvm_host.grp, "getgrnam", lambda _name: SimpleNamespace(gr_gid=group))
    assert kvm_host.group_to_open_to(device) is None
    monkeypatch.setattr(kvm_host.grp, "getgrnam", dict[str, object]().__getitem__)
    assert kvm_host.group_to_open_to(device) is None


def test_daemons_that_do_not_start_are_named_and_one_that_runs_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "libvirtd"
    failing.write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(daemon, "running", {"virtlogd": True, "libvirtd": False}.__getitem__)
    with pytest.raises(daemon.DaemonError, match=r"^libvirtd -d failed: no memory$"):
        daemon.start(systemd=False)
    with pytest.raises(
        daemon.DaemonError, match=r"^systemctl is not installed; run the kvm_host role first$"
    ):
        daemon.start(systemd=True)


def test_a_daemon_whose_rest_still_ran_when_it_was_to_be_started_is_started_when_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rest that runs when it is looked for first, and never answers."""
    begun = tmp_path / "begun"
    (tmp_path / "libvirtd").write_text(f"#!/bin/sh\n: > {begun}\n")
    (tmp_path / "libvirtd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(daemon, "SYSTEMD", tmp_path / "none")
    monkeypatch.setattr(daemon, "LOOK_SECONDS", 0)
    looks = iter([True, False])
    monkeypatch.setattr(daemon, "running", lambda name: name == "virtlogd" or next(looks))
    monkeypatch.setattr(daemon, "answers", lambda _uri: begun.exists())
    daemon.bring_up()
    assert begun.exists()


def test_a_process_that_has_ended_runs_no_more_whether_or_not_it_was_waited_for(tmp_path: Path) -> None:
    program = tmp_path / "kept (a)"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "3600"]) as process:
        while not daemon.running(program.name):
            assert process.poll() is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not daemon.running(program.name)


GUEST = "ksm-testbed-guest01"


def status(
    pid: int, metadata: str = '<testbed:guest xmlns:testbed="urn:ksm-testbed" name="guest01"/>'
) -> str:
    """What libvirt keeps of a domain, in short."""
    return (
        f"<!-- of libvirt -->\n<domstatus state='paused' reason='starting up' pid='{pid}'>\n"
        f"<domain type='qemu' id='7'><name>{GUEST}</name><metadata>{metadata}</metadata></domain>\n"
        "</domstatus>\n"
    )


@pytest.mark.parametrize(
    ("kept", "qemu", "is_forgotten"),
    [
        (status(0), "guest=ksm-testbed-guest02,debug-threads=on", True),
        (status(0), f"guest={GUEST},debug-threads=on", False),
        (status(4711), "", False),
        (status(0, metadata=""), "", False),
    ],
    ids=["no process", "a process", "started", "somebody else's"],
)
def test_a_guest_that_a_daemon_died_over_is_forgotten_before_the_next_one_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, qemu: str, is_forgotten: bool
) -> None:
    run, library, process = (tmp_path / one for one in ("run", "library", "proc/31"))
    half, another = run / f"{GUEST}.xml.new", run / "web.xml.new"
    files = [run / f"{GUEST}.xml", run / f"{GUEST}.pid", library / f"domain-7-{GUEST}/monitor.sock"]
    for path in (*files, half, another, process / "cmdline", tmp_path / "libvirtd"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    files[0].write_text(kept)
    (process / "cmdline").write_bytes(b"qemu-system-x86_64\0-name\0" + qemu.encode() + b"\0")
    (tmp_path / "libvirtd").write_text("#!/bin/sh\n")
    (tmp_path / "libvirtd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for constant, path in {"RUN": run, "LIBRARY": library, "PROC": process.parent}.items():
        monkeypatch.setattr(daemon, constant, path)
    runs = {"virtlogd": True, "libvirtd": True}
    monkeypatch.setattr(daemon, "running", runs.__getitem__)
    daemon.start(systemd=False)
    assert all(path.exists() for path in (*files, half))
    runs["libvirtd"] = False
    daemon.start(systemd=False)
    assert [path.exists() for path in files] == [not is_forgotten] * 3
    assert (files[2].parent.exists(), library.exists()) == (not is_forgotten, True)
    assert (half.exists(), another.exists()) == (False, True)
