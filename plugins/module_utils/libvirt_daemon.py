"""libvirt's daemons: whether they answer, and how they are started where nothing else does so.

Guests outlive them. A daemon that is started again finds those that run by what it has in /run/libvirt.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

from ansible.module_utils.guest_channel import RUN
from ansible.module_utils.ksm_probe import OWN_PREFIX
from ansible.module_utils.names import guest_of

try:
    import libvirt
except ImportError:
    libvirt = None

URI = "qemu:///system"
SYSTEMD = Path("/run/systemd/system")
LIBRARY = Path("/var/lib/libvirt/qemu")
PROC = Path("/proc")
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
        runs = running("libvirtd" if systemd else command[0])
        if runs and not systemd:
            continue
        if "libvirtd" in command and not runs:
            forget_unborn()
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise DaemonError(f"{command[0]} is not installed; run the kvm_host role first") from None
        if done.returncode:
            raise DaemonError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")


def unborn() -> dict[str, Path]:
    """This testbed's domains that a daemon died over before they had a process, each with its status file.

    A daemon that finds such a file (libvirt 9.0) holds the domain for ever, and so does the next one.
    """
    found = {}
    for path in RUN.glob("*.xml"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            continue
        begun = re.search(r"<domstatus\b[^>]*\bpid='0'", text)
        domain = re.search(r"<domain\b.*</domain>", text, re.DOTALL)
        if begun and domain and guest_of(domain[0]) is not None and not _has_process(path.stem):
            found[path.stem] = path
    return found


def _has_process(domain: str) -> bool:
    """Tell whether a QEMU of this domain runs."""
    for path in PROC.glob("[0-9]*/cmdline"):
        try:
            if f"guest={domain},".encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def forget_unborn() -> None:
    """Take away what a daemon that died has left of domains that have no process; while none runs.

    And what it was writing of this testbed's, which no daemon reads.
    """
    for half in RUN.glob(f"{OWN_PREFIX}*.xml.new"):
        half.unlink(missing_ok=True)
    for name, path in unborn().items():
        for folder in LIBRARY.glob(f"domain-*-{name}"):
            shutil.rmtree(folder, ignore_errors=True)
        path.with_suffix(".pid").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def running(name: str) -> bool:
    """Tell whether a daemon of this name runs; one that has ended and that nobody has waited for does not."""
    for path in PROC.glob("[0-9]*/stat"):
        try:
            said, _end, rest = path.read_text().rpartition(")")
            if said.partition("(")[2] == name and rest.split()[0] != "Z":
                return True
        except OSError:
            continue
    return False
