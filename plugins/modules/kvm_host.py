#!/usr/bin/python3
"""Ansible module: a libvirt that answers, and the accelerator that its guests will use."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kvm_host
short_description: Make libvirt answer and choose kvm or tcg
description:
  - With systemd as PID 1 the libvirt service is started through it; without, C(virtlogd) and C(libvirtd) are
    started by hand.
  - Where no udev gave O(kvm_device) to the group kvm, this does, as Debian's rule has it.
  - C(auto) is kvm where the CPU shows vmx or svm and O(kvm_device) opens, else tcg.
options:
  accelerator: {description: what is asked, type: str, choices: [auto, kvm, tcg], default: auto}
  uri: {description: the libvirt connection, type: str, default: "qemu:///system"}
  timeout_seconds: {description: longest wait for libvirt, type: int, default: 30}
  kvm_device: {description: kvm's device; another one is for tests, type: path, default: /dev/kvm}
  proc_root: {description: for tests, type: path, default: /proc}
"""

EXAMPLES = r"""
- name: Make libvirt answer
  kvm_host:
    accelerator: auto
"""

RETURN = r"""
accelerator: {description: kvm or tcg, type: str, returned: success}
reason: {description: why, in one sentence, type: str, returned: success}
"""

import grp
import os
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

try:
    import libvirt
except ImportError:
    libvirt = None


class HostError(Exception):
    """This host can't run guests as asked; the text is one sentence for the user."""


def kvm_fault(cpuinfo: str, device: Path) -> str | None:
    """Return why kvm can't be used, or None if it can."""
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    if not {"vmx", "svm"} & set(flags):
        return "the CPU shows neither vmx nor svm"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device} does not open ({error.strerror})"
    return None


def choose(asked: str, fault: str | None) -> tuple[str, str]:
    """Return (accelerator, reason)."""
    if asked == "kvm" and fault:
        raise HostError(
            f"accelerator is kvm, and {fault}: choose auto or tcg, or turn virtualization on in the firmware"
        )
    if asked == "tcg" or fault:
        emulated = f"{fault}: the guests are emulated, which is slower; KSM is as real"
        return "tcg", "asked for" if asked == "tcg" else emulated
    return "kvm", "asked for" if asked == "kvm" else "the CPU and /dev/kvm allow it"


def answers(uri: str) -> bool:
    """Tell whether libvirt answers."""
    if libvirt is None:
        raise HostError("python3-libvirt is not installed for this host's Python")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        libvirt.open(uri).close()
    except libvirt.libvirtError:
        return False
    return True


def group_to_open_to(device: Path) -> int | None:
    """Return the group that the device is to be given to, or None where udev, or nobody, has to do it."""
    try:
        group = grp.getgrnam("kvm").gr_gid
        status = device.stat()
    except (KeyError, OSError):
        return None
    return None if status.st_gid == group or status.st_mode & 0o006 == 0o006 else group


def open_to_group(device: Path, group: int) -> None:
    """Give the device the group and mode of Debian's udev rule.

    Without it libvirt finds kvm usable for itself and not for its guests' user, distrusts its cache, and
    probes QEMU anew (seconds) whenever a guest is defined or started.
    """
    os.chown(device, 0, group)
    device.chmod(0o660)


def start(systemd: bool) -> None:
    """Start libvirt's daemons."""
    commands = [["systemctl", "start", "libvirtd"]] if systemd else [["virtlogd", "-d"], ["libvirtd", "-d"]]
    for command in commands:
        if not systemd and running(command[0]):
            continue
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise HostError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")


def running(name: str) -> bool:
    """Tell whether a daemon of this name runs."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "comm").read_text().strip() == name:
                return True
        except OSError:
            continue
    return False


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "accelerator": {"type": "str", "choices": ["auto", "kvm", "tcg"], "default": "auto"},
            "uri": {"type": "str", "default": "qemu:///system"},
            "timeout_seconds": {"type": "int", "default": 30},
            "kvm_device": {"type": "path", "default": "/dev/kvm"},
            "proc_root": {"type": "path", "default": "/proc"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        device = Path(params["kvm_device"])
        cpuinfo = Path(params["proc_root"], "cpuinfo").read_text()
        accelerator, reason = choose(params["accelerator"], kvm_fault(cpuinfo, device))
        up = libvirt is not None and answers(params["uri"])
        group = group_to_open_to(device)
        changed = not up or group is not None
        if module.check_mode:
            module.exit_json(changed=changed, accelerator=accelerator, reason=reason)
        if group is not None:
            open_to_group(device, group)
        if not up:
            start(Path("/run/systemd/system").is_dir())
            deadline = time.monotonic() + params["timeout_seconds"]
            while not answers(params["uri"]):
                if time.monotonic() > deadline:
                    raise HostError(
                        f"libvirt does not answer at {params['uri']} after {params['timeout_seconds']} s"
                    )
                time.sleep(0.2)
        module.exit_json(changed=changed, accelerator=accelerator, reason=reason)
    except (HostError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
