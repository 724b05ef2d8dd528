#!/usr/bin/python3
"""Ansible module: the guests, as libvirt domains on overlays of one image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guests
short_description: Start, wait for and remove the testbed's guests
description:
  - Each guest is a libvirt domain with a qcow2 overlay, a NoCloud seed of its own and SSH forwarded to the
    host's loopback.
  - Only domains that carry this testbed's metadata are ever touched.
  - A guest whose definition, image or seed differs from what is asked is made anew; without I(reuse) all are.
options:
  state:
    description: C(ready) boots until SSH answers, C(absent) removes
    type: str
    choices: [ready, absent]
    default: ready
  ssh_ports: {description: guest name to its SSH port on 127.0.0.1, type: dict, default: {}}
  domain_xml:
    description: the domain's XML; $domain $name $digest $overlay $seed $console $ssh_port are filled in
    type: str
  user_data: {description: "the seed's user-data; $name and $ssh_public_key are filled in", type: str}
  image: {description: the result of the guest_image module, type: dict}
  memory_mib: {description: "memory of one guest, at least 128", type: int}
  overhead_mib:
    description: host memory of one QEMU besides, for the check that all fit
    type: int
    default: 160
  overcommit:
    description: start even where the guests' memory does not fit the host
    type: bool
    default: false
  accelerator: {description: what runs the guests, type: str, choices: [kvm, tcg]}
  reuse: {description: keep guests that already run and are what is asked, type: bool, default: false}
  boot_wave: {description: guests that boot at the same time; 0 = by the CPUs, type: int, default: 0}
  boot_timeout_seconds: {description: longest time for one guest, type: int, default: 300}
  ssh_private_key:
    description: the key that opens the guests; kept 0600 in I(directory) while they exist
    type: str
  ssh_public_key: {description: its public half, type: str}
  domain_prefix: {description: "domain name = prefix + guest name", type: str, default: ksm-testbed-}
  directory: {description: folder of the guests' files, type: path, required: true}
  uri: {description: the libvirt connection, type: str, default: "qemu:///system"}
  progress_path: {description: file that takes one line for each guest, type: path, default: ""}
"""

EXAMPLES = r"""
- name: Remove all guests of this testbed
  guests:
    state: absent
    directory: /var/lib/ksm-testbed/guests
"""

RETURN = r"""
domains: {description: guest name to domain name, type: dict, returned: always}
boots:
  description: for each guest booted now, seconds and QEMU's CPU seconds from its start to the first answer
  type: dict
  returned: state is ready
reused: {description: guests kept as they were, type: list, returned: state is ready}
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import string
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ansible.module_utils.basic import AnsibleModule

try:
    import libvirt
except ImportError:
    libvirt = None

METADATA_URI = "urn:ksm-testbed"
POLL_SECONDS = 0.5
CONSOLE_LINES = 5
HOST_RESERVE_BYTES = 512 << 20
LEAST_MEMORY_MIB = 128
LAST_PORT = 65535


class GuestError(Exception):
    """A guest can't be had; the text is one sentence for the user."""


def overlay_digest(domain_xml: str, user_data: str, image_digest: str, name: str, port: int) -> str:
    """Return the digest of everything that makes a guest what it is; the domain's metadata holds it."""
    text = json.dumps([domain_xml, user_data, image_digest, name, port])
    return hashlib.sha256(text.encode()).hexdigest()


def metadata_of(xml: str) -> dict[str, str] | None:
    """Return this testbed's metadata in a domain's XML, or None for a domain of somebody else."""
    node = ElementTree.fromstring(xml).find(f"metadata/{{{METADATA_URI}}}guest")  # noqa: S314 -- libvirt's own
    return None if node is None else dict(node.attrib)


def wave_size(asked: int, accelerator: str, cpus: int) -> int:
    """Return how many guests boot at once: an emulated boot fills a CPU, others wait for the disk."""
    if asked > 0:
        return asked
    return cpus + 1 if accelerator == "tcg" else 4 * cpus


def port_is_free(port: int) -> bool:
    """Tell whether 127.0.0.1:port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def memory_available_bytes() -> int:
    """Return the host's MemAvailable."""
    return meminfo_bytes("MemAvailable")


def meminfo_bytes(name: str) -> int:
    """Return a line of the host's /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise GuestError(f"/proc/meminfo has no {name}: this kernel is too old for the testbed")


def cpu_seconds(pid: int) -> float:
    """Return user + system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def banner(port: int) -> bool:
    """Tell whether a real SSH server answers: the forwarded port listens long before the guest is up."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(5)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


class Testbed:
    """All guests of one call."""

    def __init__(self, params: dict[str, Any], connection: Any, say: Callable[[str], None]) -> None:
        self.params = params
        self.connection = connection
        self.say = say
        for name, port in params["ssh_ports"].items():
            if not str(port).isdigit() or not 0 < int(port) <= LAST_PORT:
                raise GuestError(f"guests_ssh_ports has {port!r} for {name}: a port is from 1 to {LAST_PORT}")
        self.guests = [{"name": name, "ssh_port": int(port)} for name, port in params["ssh_ports"].items()]
        self.directory = Path(params["directory"])
        self.key_path = self.directory / "id_ed25519"

    def write_key(self) -> None:
        """Write the private key that the readiness check uses."""
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.key_path.unlink(missing_ok=True)
        with os.fdopen(os.open(self.key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.params["ssh_private_key"])

    def domain_name(self, guest: dict[str, Any]) -> str:
        """Return the libvirt name of a guest."""
        return f"{self.params['domain_prefix']}{guest['name']}"

    def own_domains(self) -> dict[str, tuple[Any, dict[str, str]]]:
        """Return this testbed's domains: libvirt name -> (domain, metadata)."""
        found = {}
        for domain in self.connection.listAllDomains():
            metadata = metadata_of(domain.XMLDesc())
            if metadata is not None:
                found[domain.name()] = (domain, metadata)
        return found

    def texts(self, guest: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
        """Return (domain XML, user-data, the values that were filled in) of a guest."""
        folder = self.directory / guest["name"]
        digest = overlay_digest(
            self.params["domain_xml"],
            self.params["user_data"] + self.params["ssh_public_key"],
            self.params["image"]["digest"],
            guest["name"],
            guest["ssh_port"],
        )
        values = {
            "domain": self.domain_name(guest),
            "name": guest["name"],
            "digest": digest,
            "overlay": str(folder / "overlay.qcow2"),
            "seed": str(folder / "seed.iso"),
            "console": str(folder / "console.log"),
            "ssh_port": str(guest["ssh_port"]),
            "ssh_public_key": self.params["ssh_public_key"],
        }
        return (string.Template(self.params["domain_xml"]).substitute(values),
                string.Template(self.params["user_data"]).substitute(values), values)

    def reusable(self, guest: dict[str, Any], own: dict[str, tuple[Any, dict[str, str]]]) -> bool:
        """Tell whether a guest runs, is what is asked and answers."""
        domain, metadata = own.get(self.domain_name(guest), (None, {}))
        return (
            domain is not None
            and bool(domain.isActive())
            and metadata.get("digest") == self.texts(guest)[2]["digest"]
            and self.answers(guest["ssh_port"])
        )

    def check(self, new: list[dict[str, Any]], own: dict[str, tuple[Any, dict[str, str]]]) -> None:
        """Refuse what can't work, before anything is changed."""
        if not self.guests:
            raise GuestError("guests_ssh_ports is empty: it needs at least one guest with its port")
        if self.params["memory_mib"] < LEAST_MEMORY_MIB:
            raise GuestError(f"guests_memory_mib is {self.params['memory_mib']}: a guest needs at least "
                             f"{LEAST_MEMORY_MIB} MiB to boot")
        foreign = {domain.name() for domain in self.connection.listAllDomains()} - set(own)
        for guest in self.guests:
            if self.domain_name(guest) in foreign:
                raise GuestError(
                    f"a domain named {self.domain_name(guest)} exists that this testbed did not make: "
                    "rename it, or set guests_domain_prefix"
                )
        held_ports = {int(guest["ssh_port"]) for guest in self.guests
                      if self.domain_name(guest) in own and own[self.domain_name(guest)][0].isActive()}
        for guest in new:
            if guest["ssh_port"] not in held_ports and not port_is_free(guest["ssh_port"]):
                raise GuestError(
                    f"port {guest['ssh_port']} of 127.0.0.1, meant for {guest['name']}, is in use: "
                    "end what uses it, or set guest_ssh_port_base"
                )
        if self.params["overcommit"]:
            return
        kept = {self.domain_name(guest) for guest in self.guests if guest not in new}
        available = memory_available_bytes()
        used = meminfo_bytes("MemTotal") - available
        released = sum(domain.memoryStats().get("rss", 0) << 10
                       for name, (domain, _) in own.items() if name not in kept and domain.isActive())
        # A merged page is in the RSS of every guest that has it: no more comes back than is in use.
        free = max(0, available + min(released, used) - HOST_RESERVE_BYTES)
        each = (self.params["memory_mib"] + self.params["overhead_mib"]) << 20
        if len(new) * each > free:
            raise GuestError(
                f"guests is {len(self.guests)} of {self.params['memory_mib']} MiB: each needs up to "
                f"{each >> 20} MiB of host memory, and {free >> 20} MiB are available besides a reserve, "
                f"which fits {len(kept) + free // each}: lower guests or guest_memory_mib"
            )

    def remove(self, domain: Any, metadata: dict[str, str]) -> None:
        """Remove one domain of ours and its files."""
        if domain.isActive():
            domain.destroy()
        if domain.isPersistent():
            domain.undefine()
        shutil.rmtree(self.directory / metadata["name"], ignore_errors=True)

    def create(self, guest: dict[str, Any]) -> None:
        """Write a guest's overlay, seed and definition; nothing of a former run is left."""
        xml, user_data, values = self.texts(guest)
        folder = self.directory / guest["name"]
        shutil.rmtree(folder, ignore_errors=True)
        source = folder / "seed"
        source.mkdir(parents=True)
        folder.chmod(0o711)
        (source / "user-data").write_text(user_data)
        (source / "meta-data").write_text(
            f"instance-id: {guest['name']}-{time.time_ns()}\nlocal-hostname: {guest['name']}\ndsmode: local\n"
        )
        (source / "network-config").write_text(
            "version: 2\nethernets:\n  all-en:\n    match: {name: 'e*'}\n    addresses: [10.0.2.15/24]\n")
        self.run(["xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r",
                  "-o", values["seed"], str(source)])
        shutil.rmtree(source)
        self.run(["qemu-img", "create", "-q", "-f", "qcow2",
                  "-F", "qcow2", "-b", self.params["image"]["disk"], values["overlay"]])
        self.connection.defineXML(xml)

    def boot(self, guest: dict[str, Any]) -> dict[str, float]:
        """Start a guest; return its seconds and CPU seconds up to the first real SSH answer."""
        domain = self.connection.lookupByName(self.domain_name(guest))
        began = time.monotonic()
        domain.create()
        pid = self.pid_of(guest)
        if Path(f"/proc/{pid}").stat().st_uid == 0:
            raise GuestError("QEMU runs as root: set user = \"libvirt-qemu\" in /etc/libvirt/qemu.conf")
        while True:
            if not domain.isActive():
                raise GuestError(f"{guest['name']} ended while it booted; "
                                 f"its console's last lines: {self.console_tail(guest)}")
            if banner(guest["ssh_port"]) and self.answers(guest["ssh_port"]):
                return {"seconds": round(time.monotonic() - began, 2), "cpu_seconds": cpu_seconds(pid)}
            if time.monotonic() - began > self.params["boot_timeout_seconds"]:
                raise GuestError(
                    f"{guest['name']} did not answer SSH within {self.params['boot_timeout_seconds']} s "
                    f"(guests_boot_timeout_seconds); its console's last lines: {self.console_tail(guest)}"
                )
            time.sleep(POLL_SECONDS)

    def pid_of(self, guest: dict[str, Any]) -> int:
        """Return the QEMU process of a running guest."""
        return int(Path(f"/run/libvirt/qemu/{self.domain_name(guest)}.pid").read_text())

    def console_tail(self, guest: dict[str, Any]) -> str:
        """Return the last lines of a guest's console."""
        try:
            text = (self.directory / guest["name"] / "console.log").read_text(errors="replace")
        except OSError:
            return "(none)"
        return " | ".join(line.strip() for line in text.splitlines()[-CONSOLE_LINES:]) or "(none)"

    def answers(self, port: int) -> bool:
        """Tell whether a command runs in the guest behind this port."""
        try:
            return subprocess.run(
                ["ssh", "-q", "-F", "none", "-i", str(self.key_path), "-p", str(port), "-o", "BatchMode=yes",
                 "-o", "ConnectTimeout=30", "-o", "StrictHostKeyChecking=no",
                 "-o", "UserKnownHostsFile=/dev/null", "root@127.0.0.1", "true"],
                check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    @staticmethod
    def run(command: list[str]) -> None:
        """Run a command or raise a GuestError with what it said."""
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise GuestError(f"{command[0]} failed: {' | '.join(done.stderr.strip().splitlines()[-3:])}")

    def boot_all(self, new: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        """Boot with a bounded number under way: the next one starts as soon as one answers."""
        bound = wave_size(self.params["boot_wave"], self.params["accelerator"], os.cpu_count() or 1)
        boots: dict[str, dict[str, float]] = {}
        began = time.monotonic()
        waiting = iter(new)
        with ThreadPoolExecutor(max_workers=bound) as pool:
            under_way: dict[Future[dict[str, float]], str] = {}

            def start_next() -> None:
                for guest in waiting:
                    self.create(guest)
                    under_way[pool.submit(self.boot, guest)] = guest["name"]
                    return

            for _ in range(bound):
                start_next()
            while under_way:
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    name = under_way.pop(future)
                    boots[name] = future.result()
                    self.say(
                        f"{name} is up after {boots[name]['seconds']:.0f} s, "
                        f"{boots[name]['cpu_seconds']:.1f} s of CPU "
                        f"({len(boots)} of {len(new)}, {time.monotonic() - began:.0f} s in all)"
                    )
                    start_next()
        return boots


@contextmanager
def connected(uri: str) -> Iterator[Any]:
    """Open libvirt, without its habit of printing errors to the terminal."""
    if libvirt is None:
        raise GuestError(
            "python3-libvirt is not installed for this host's Python; run the kvm_host role first"
        )
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise GuestError(f"libvirt does not answer at {uri}: {error}; run the kvm_host role first") from None
    try:
        yield connection
    finally:
        connection.close()


def ensure(testbed: Testbed, check_mode: bool) -> dict[str, Any]:
    """Bring the guests to the state that is asked."""
    params = testbed.params
    wanted = testbed.guests if params["state"] == "ready" else []
    own = testbed.own_domains()
    reused = [guest for guest in wanted if params["reuse"] and testbed.reusable(guest, own)]
    new = [guest for guest in wanted if guest not in reused]
    kept = {testbed.domain_name(guest) for guest in reused}
    stale = {name: value for name, value in own.items() if name not in kept}
    if params["state"] == "ready":
        testbed.check(new, own)
    result: dict[str, Any] = {
        "changed": bool(new or stale),
        "domains": {guest["name"]: testbed.domain_name(guest) for guest in wanted},
        "reused": [guest["name"] for guest in reused],
        "boots": {},
        "diff": {"before": "".join(f"{name}\n" for name in sorted(own)),
                 "after": "".join(f"{testbed.domain_name(guest)}\n" for guest in wanted)},
    }
    if check_mode:
        return result
    # libvirt waits more than a second for each QEMU's end
    with ThreadPoolExecutor(max_workers=max(1, len(stale))) as pool:
        list(pool.map(lambda value: testbed.remove(*value), stale.values()))
    if new:
        testbed.write_key()
        result["boots"] = testbed.boot_all(new)
    if not wanted:
        shutil.rmtree(testbed.directory, ignore_errors=True)
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["ready", "absent"], "default": "ready"},
            "ssh_ports": {"type": "dict", "default": {}},
            "domain_xml": {"type": "str"},
            "user_data": {"type": "str"},
            "image": {"type": "dict"},
            "memory_mib": {"type": "int"},
            "overhead_mib": {"type": "int", "default": 160},
            "overcommit": {"type": "bool", "default": False},
            "accelerator": {"type": "str", "choices": ["kvm", "tcg"]},
            "reuse": {"type": "bool", "default": False},
            "boot_wave": {"type": "int", "default": 0},
            "boot_timeout_seconds": {"type": "int", "default": 300},
            "ssh_private_key": {"type": "str", "no_log": True},
            "ssh_public_key": {"type": "str"},
            "domain_prefix": {"type": "str", "default": "ksm-testbed-"},
            "directory": {"type": "path", "required": True},
            "uri": {"type": "str", "default": "qemu:///system"},
            "progress_path": {"type": "path", "default": ""},
        },
        required_if=[("state", "ready", ("ssh_ports", "domain_xml", "user_data", "image", "memory_mib",
                                         "accelerator", "ssh_private_key", "ssh_public_key"))],
        supports_check_mode=True,
    )
    params = module.params

    def say(line: str) -> None:
        if params["progress_path"]:
            with Path(params["progress_path"]).open("a", encoding="utf-8") as progress:
                progress.write(line + "\n")

    try:
        with connected(params["uri"]) as connection:
            module.exit_json(**ensure(Testbed(params, connection, say), module.check_mode))
    except (GuestError, OSError) as error:
        module.fail_json(msg=str(error))
    except Exception as error:
        if libvirt is None or not isinstance(error, libvirt.libvirtError):
            raise
        module.fail_json(msg=f"libvirt refused: {error}")


if __name__ == "__main__":
    main()
