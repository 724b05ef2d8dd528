"""libvirt's daemons: whether they answer, and how they are started where nothing else does so.

Guests outlive them. A daemon that is started again finds those that run by what it has in /run/libvirt.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

try:
    import libvirt
except ImportError:
    libvirt = None

URI = "qemu:///system"
SYSTEMD = Path("/run/systemd/system")
ANSWER_SECONDS = 30.0
LOOK_SECONDS = 0.2


class DaemonError(Exception):
    """libvirt can't be had; the text is one sentence for the user."""


def answers(uri: str = URI) -> bool:
    """Tell whether libvirt answers; raises DaemonError without its bindings."""
    if libvirt is None:
        raise DaemonError("python3-libvirt is not installed for this host's Python")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        libvirt.open(uri).close()
    except libvirt.libvirtError:
        return False
    return True


def bring_up(uri: str = URI, limit_seconds: float = ANSWER_SECONDS) -> None:
    """Start libvirt's daemons and wait until they answer. Raises DaemonError."""
    deadline = time.monotonic() + limit_seconds
    while True:
        # Each time: what ran a moment ago may have been the rest of a daemon that died, such as the child
        # that was about to become a guest.
        start(SYSTEMD.is_dir())
        if answers(uri):
            return
        if time.monotonic() > deadline:
            raise DaemonError(f"libvirt does not answer at {uri} after {limit_seconds:g} s")
        time.sleep(LOOK_SECONDS)


def start(systemd: bool) -> None:
    """Start libvirt's daemons. Raises DaemonError."""
    commands = [["systemctl", "start", "libvirtd"]] if systemd else [["virtlogd", "-d"], ["libvirtd", "-d"]]
    for command in commands:
        if not systemd and running(command[0]):
            continue
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise DaemonError(f"{command[0]} is not installed; run the kvm_host role first") from None
        if done.returncode:
            raise DaemonError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")


def running(name: str) -> bool:
    """Tell whether a daemon of this name runs; one that has ended and that nobody has waited for does not."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit():
                said, _end, rest = (folder / "stat").read_text().rpartition(")")
                if said.partition("(")[2] == name and rest.split()[0] != "Z":
                    return True
        except OSError:
            continue
    return False
