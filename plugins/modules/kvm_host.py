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
from pathlib import Path

from ansible.module_utils import libvirt_daemon
from ansible.module_utils.basic import AnsibleModule


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
        # Without its bindings it is not installed yet, which check mode need not be told.
        up = libvirt_daemon.libvirt is not None and libvirt_daemon.answers(params["uri"])
        group = group_to_open_to(device)
        changed = not up or group is not None
        if module.check_mode:
            module.exit_json(changed=changed, accelerator=accelerator, reason=reason)
        if group is not None:
            open_to_group(device, group)
        if not up:
            libvirt_daemon.bring_up(params["uri"], params["timeout_seconds"])
        module.exit_json(changed=changed, accelerator=accelerator, reason=reason)
    except (HostError, libvirt_daemon.DaemonError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
