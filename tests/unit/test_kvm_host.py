"""The module kvm_host: when kvm can be used, what is chosen, and in which words it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_files import load

kvm_host = load("plugins/modules/kvm_host.py")
INTEL, AMD, NONE = (f"processor : 0\nflags\t\t: fpu {flag} sse2\n" for flag in ("vmx", "svm", "vmxoff"))


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


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
    monkeypatch.setattr(kvm_host, "libvirt", None)
    with pytest.raises(kvm_host.HostError, match="python3-libvirt is not installed"):
        kvm_host.answers("test:///default")


@pytest.mark.parametrize(("mode", "is_opened"), [(0o600, True), (0o660, True), (0o666, False)])
def test_a_device_that_udev_left_alone_is_given_to_the_group(
    device: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_opened: bool
) -> None:
    given: list[tuple[Path, int, int]] = []
    group = device.stat().st_gid + 1
    monkeypatch.setattr(kvm_host.grp, "getgrnam", lambda _name: type("Group", (), {"gr_gid": group}))
    monkeypatch.setattr(kvm_host.os, "chown", lambda *arguments: given.append(arguments))
    device.chmod(mode)
    assert kvm_host.open_to_kvm_group(device) is is_opened
    assert given == ([(device, 0, group)] if is_opened else [])
    assert device.stat().st_mode & 0o777 == (0o660 if is_opened else mode)
