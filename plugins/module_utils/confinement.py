"""How a guest's QEMU is confined: user, seccomp, AppArmor where the host has it. Standard library only.

Read from the process itself, since a setting of libvirt or a package that is missing can switch each of them
off without a word.
"""

from __future__ import annotations

from pathlib import Path

SECCOMP_FILTER = "2"  # SECCOMP_MODE_FILTER, proc(5)


class ConfinementError(Exception):
    """A QEMU that can do more than it needs; the text says what is wrong with it and what to do."""


def confinement(pid: int, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> str:
    """Say how a process is confined, such as "user 64055, seccomp, AppArmor libvirt-1b4e28ba (enforce)".

    Raises:
        ConfinementError: it runs as root or can become it, without seccomp, or unconfined on a host that has
            AppArmor.
        OSError: it ended.
    """
    status = dict(
        line.split(":", 1) for line in (proc / str(pid) / "status").read_text().splitlines() if ":" in line
    )
    users = status["Uid"].split()
    if "0" in users:
        raise ConfinementError('QEMU runs as root: set user = "libvirt-qemu" in /etc/libvirt/qemu.conf')
    if status.get("Seccomp", "").strip() != SECCOMP_FILTER:
        raise ConfinementError(
            "QEMU runs without a seccomp filter: set seccomp_sandbox = 1 in /etc/libvirt/qemu.conf, with a "
            "kernel and a QEMU that are built with seccomp"
        )
    profile = _profile(pid, proc, sys)
    if profile is not None and not profile.endswith("(enforce)"):
        raise ConfinementError(
            f"AppArmor does not confine QEMU ({profile}) though this host has it: install the package "
            "apparmor, restart libvirtd, and set no security_driver in /etc/libvirt/qemu.conf"
        )
    return f"user {users[0]}, seccomp, {'no AppArmor here' if profile is None else f'AppArmor {profile}'}"


def _profile(pid: int, proc: Path, sys: Path) -> str | None:
    """A process' AppArmor profile and mode; None on a host without AppArmor."""
    try:
        enabled = (sys / "module/apparmor/parameters/enabled").read_text().strip()
    except FileNotFoundError:
        return None
    if enabled != "Y":
        return None
    return (proc / str(pid) / "attr/current").read_text().rstrip("\0\n")
