"""What is said of a QEMU process by what the kernel shows of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from plugin_files import load

load("plugins/modules/guests.py")
shared = sys.modules["ansible.module_utils.confinement"]
STATUS = "Name:\tqemu-system-x86\nUid:\t{uid}\t{uid}\t{uid}\t{saved}\n{seccomp}Seccomp_filters:\t1\n"


def seen(
    root: Path,
    *,
    uid: int = 64055,
    saved: int = 64055,
    seccomp: str = "Seccomp:\t2\n",
    apparmor: str = "",
    profile: str = "",
) -> str:
    """What is said of process 7 of a host in files."""
    (root / "proc/7/attr").mkdir(parents=True)
    (root / "proc/7/status").write_text(STATUS.format(uid=uid, saved=saved, seccomp=seccomp))
    if profile:
        (root / "proc/7/attr/current").write_text(profile)
    if apparmor:
        (root / "sys/module/apparmor/parameters").mkdir(parents=True)
        (root / "sys/module/apparmor/parameters/enabled").write_text(f"{apparmor}\n")
    said: str = shared.confinement(7, root / "proc", root / "sys")
    return said


def test_a_host_without_apparmor(tmp_path: Path) -> None:
    assert seen(tmp_path) == "user 64055, seccomp, no AppArmor here"


def test_a_host_whose_apparmor_is_switched_off(tmp_path: Path) -> None:
    assert seen(tmp_path, apparmor="N") == "user 64055, seccomp, no AppArmor here"


def test_a_confined_guest(tmp_path: Path) -> None:
    said = seen(tmp_path, apparmor="Y", profile="libvirt-1b4e28ba (enforce)\n")
    assert said == "user 64055, seccomp, AppArmor libvirt-1b4e28ba (enforce)"


@pytest.mark.parametrize("profile", ["unconfined\n", "libvirt-1b4e28ba (complain)\n"])
def test_on_a_host_with_apparmor_a_guest_that_it_does_not_confine_is_refused(
    tmp_path: Path, profile: str
) -> None:
    with pytest.raises(shared.ConfinementError, match=rf"AppArmor does not confine QEMU \({profile[:10]}"):
        seen(tmp_path, apparmor="Y", profile=profile)


@pytest.mark.parametrize(("uid", "saved"), [(0, 0), (64055, 0)])
def test_root_is_refused_also_where_it_could_be_had_back(tmp_path: Path, uid: int, saved: int) -> None:
    with pytest.raises(shared.ConfinementError, match="QEMU runs as root"):
        seen(tmp_path, uid=uid, saved=saved)


@pytest.mark.parametrize("line", ["Seccomp:\t0\n", "Seccomp:\t1\n", ""])
def test_a_guest_without_a_seccomp_filter_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(shared.ConfinementError, match="seccomp_sandbox = 1"):
        seen(tmp_path, seccomp=line)


def test_this_process_is_not_confined_as_a_guest_is() -> None:
    with pytest.raises(shared.ConfinementError):
        shared.confinement(os.getpid())
