#!/usr/bin/python3
"""Ansible module: the guests, booted once, kept in checkpoints, restored in seconds."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guests
short_description: Boot the testbed's guests once, keep them in a checkpoint, restore them, remove them
description:
  - Each guest is a libvirt domain with a qcow2 overlay, a NoCloud seed of its own and SSH forwarded to the
    host's loopback. Its second serial port is a socket on the host, through which the program in it is
    asked.
  - Guests are a number. They are called guest01, guest02 and so on, on the ports after I(ssh_port_base).
  - Only domains that carry this testbed's metadata are ever touched, and only what lies in a folder that this
    module has made and marked is ever removed.
  - Each guest's SSH host key is made here and comes with its seed. It is kept with a checkpoint, and the only
    one that is trusted. C(ssh -F /var/lib/ksm-testbed/guests/ssh_config guest01) opens a guest.
options:
  state:
    description:
      - C(restored) removes the guests that run, and brings the first I(guests) of a checkpoint back into
        fresh QEMU processes, each on a new overlay of its disk; answers when SSH and the program in each
        have, their clocks put right. Where no checkpoint serves, I(checkpoint_guests) are booted and kept
        in one first, and it is said why.
      - C(booted) boots I(guests) and leaves them running, without a checkpoint.
      - C(saved) keeps the guests that run, all of I(guests), in a checkpoint, and they run no more. With
        I(load) they are those of a checkpoint that were loaded since, else those that C(booted) left.
      - C(absent) removes all guests, and with I(checkpoints) all checkpoints. Guests outlive libvirt's
        daemon, so it is started where it does not answer.
    type: str
    choices: [restored, booted, saved, absent]
    default: restored
  guests: {description: how many, type: int, default: 0}
  checkpoint_guests:
    description: how many a checkpoint must hold and a new one gets; at least I(guests)
    type: int
    default: 0
  boot: {description: "number of the boot; each is a set of guests of its own", type: int, default: 1}
  since:
    description: "a checkpoint that booted before this UTC time does not serve; empty: all do"
    type: str
    default: ""
  checkpoints: {description: C(absent) removes the checkpoints too, type: bool, default: false}
  keep_running:
    description: C(restored) leaves guests of the same checkpoint alone that run already
    type: bool
    default: false
  load:
    description: >-
      the load, with name, reserve_mib and contents (the segments of its workloads), that a checkpoint of
      loaded guests may hold; C(saved) wants reports too, guest name to what it said when it was loaded
    type: dict
    default: {}
  domain_xml:
    description: >-
      a domain's XML; $domain $name $overlay $seed $console $channel $ssh_port $resource are filled in
    type: str
  user_data:
    description: >-
      the seed's user-data; $name is filled in, and $ssh_public_key, $host_private_key and $host_public_key,
      each with its quotes
    type: str
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
  partition:
    description: "the libvirt partition that holds the guests; empty: libvirt's own"
    type: str
    default: ""
  boot_wave: {description: guests that boot at the same time; 0 = by the CPUs, type: int, default: 0}
  boot_timeout_seconds: {description: longest time for one guest to boot, type: int, default: 300}
  answer_timeout_seconds:
    description: longest wait for an answer of a restored guest
    type: int
    default: 180
  ssh_port_base: {description: "guest01 gets the next port of 127.0.0.1", type: int, default: 22200}
  ssh_private_key: {description: the key that opens the guests; kept 0600 while they exist, type: str}
  ssh_public_key: {description: its public half, type: str}
  domain_prefix: {description: "domain name = prefix + guest name", type: str, default: ksm-testbed-}
  directory: {description: "folder of guests/ and checkpoints/", type: path, default: /var/lib/ksm-testbed}
  uri: {description: the libvirt connection, type: str, default: "qemu:///system"}
  progress_path:
    description: file that takes a line for each step; whoever waits makes it and sets its access time
    type: path
    default: ""
"""

EXAMPLES = r"""
- name: Remove all guests of this testbed
  guests:
    state: absent

- name: Remove its checkpoints too
  guests:
    state: absent
    checkpoints: true
"""

RETURN = r"""
domains: {description: guest name to domain name, type: dict, returned: always}
removed:
  description: name and size of each checkpoint removed, such as "boot1-512mib-0123456789ab (2712 MiB)"
  type: list
  returned: state is absent
channels:
  description: guest name to the socket of its second serial port
  type: dict
  returned: not absent
barrier:
  description: for each guest now started, what it answered at the barrier
  type: dict
  returned: not absent
start:
  description: >-
    where the guests come from, as in a record's provenance: from, checkpoint, booted_at, boot_seconds,
    restore_seconds, loaded, arm_order, confinement
  type: dict
  returned: not absent
load:
  description: what the loaded guests of the checkpoint hold; empty where they hold nothing
  type: dict
  returned: not absent
boots:
  description: guest name to seconds and cpu_seconds of its boot
  type: dict
  returned: not absent
times:
  description: "seconds of each step that was taken: boot, save, check, restore, answer, barrier"
  type: dict
  returned: not absent
checkpoint:
  description: name, bytes and number of guests of the checkpoint; null where none was used
  type: dict
  returned: not absent
"""

import errno
import json
import os
import re
import shutil
import socket
import string
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.checkpoints import (
    MIB,
    UNFINISHED,
    Checkpoint,
    CheckpointError,
    Store,
    digest_text,
    fault,
    folder_name,
    remove,
    size_bytes,
    write,
)
from ansible.module_utils.confinement import ConfinementError, confinement
from ansible.module_utils.disk_room import OVERLAY_BYTES, Need, saved_bytes, shortages
from ansible.module_utils.guest_channel import ask_all, why_gone, why_stopped
from ansible.module_utils.guest_ssh import GuestSsh
from ansible.module_utils.libvirt_daemon import DaemonError, bring_up, unborn
from ansible.module_utils.names import DOMAIN, METADATA_URI, PATH, NameRefused, check, guest_of
from ansible.module_utils.own_files import NotOwnError, check_free, is_own, make_own, remove_own
from ansible.module_utils.private_file import put
from ansible.module_utils.progress import Progress, ProgressError, end_when_abandoned

try:
    import libvirt
except ImportError:
    libvirt = None

QEMU_URI = "http://libvirt.org/schemas/domain/qemu/1.0"
POLL_SECONDS = 0.5
BANNER_SECONDS = 60
BANNER_LOOK_SECONDS = 2
CONSOLE_LINES = 5
HOST_RESERVE_BYTES = 512 << 20
LEAST_MEMORY_MIB = 128
LAST_PORT = 65535
# What a socket's address holds
LONGEST_PATH_BYTES = 107
# QEMU reads and writes its state by itself; more at once only wait for the disk.
AT_ONCE = 4
# libvirtd's default: more requests of one connection wait for each other (max_client_requests).
REQUESTS_OF_A_CONNECTION = 5
# How often libvirt is asked to end a guest that it is busy with, 30 s each time
TIMES_TO_END = 6


class GuestError(Exception):
    """A guest can't be had; the text is one sentence for the user."""


class Owned(NamedTuple):
    """A domain of this testbed that exists."""

    domain: Any
    guest: str
    ssh_port: int | None


class Guest(NamedTuple):
    """One guest of this call."""

    name: str
    domain: str
    ssh_port: int
    folder: Path

    @property
    def channel(self) -> Path:
        """The socket of its second serial port."""
        return self.folder / "channel"

    @property
    def overlay(self) -> Path:
        """Its disk."""
        return self.folder / "overlay.qcow2"

    @property
    def seed(self) -> Path:
        """Its cloud-init seed."""
        return self.folder / "seed.iso"

    @property
    def console(self) -> Path:
        """What it printed."""
        return self.folder / "console.log"


def ssh_port_of(xml: str) -> int | None:
    """Return the host's port in a domain's XML that is forwarded to the guest's SSH, or None."""
    found = re.search(r"hostfwd=tcp:127\.0\.0\.1:(\d+)-:22", xml)
    return int(found.group(1)) if found else None


def moment(text: str) -> str:
    """Return a UTC time as checkpoints have it, so that they compare; empty for empty."""
    if not text:
        return ""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise GuestError(
            f"guests_since is {text!r}, and must be a UTC time such as 2026-01-31T13:00:00Z, or empty"
        ) from None
    aware = given if given.tzinfo else given.replace(tzinfo=UTC)
    return f"{aware.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def filled_in(what: str, template: str, values: Mapping[str, Any]) -> str:
    """Return a template with its $names filled in."""
    try:
        return string.Template(template).substitute(values)
    except (KeyError, ValueError) as error:
        raise GuestError(f"{what} cannot be filled in: {error}; a dollar sign is written $$") from None


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


def meminfo_bytes(name: str) -> int:
    """Return a line of the host's /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise GuestError(f"/proc/meminfo has no {name}: this kernel is too old for the testbed")


def cpu_model() -> str:
    """Return the host CPU's name; a guest's state may not be moved to another."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1).strip() if found else "unknown"


def cpu_seconds(pid: int) -> float:
    """Return user + system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def banner(port: int, limit_seconds: float = 5, given_up: Callable[[], Any] = lambda: False) -> bool:
    """Tell whether the guest's SSH server answers: the forwarded port listens long before the guest is up.

    It is waited for no longer than the limit, nor when given_up(), asked now and then, says so.
    """
    deadline = time.monotonic() + limit_seconds
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            while (left := deadline - time.monotonic()) > 0 and not given_up():
                connection.settimeout(min(left, BANNER_LOOK_SECONDS))
                try:
                    return connection.recv(4) == b"SSH-"
                except TimeoutError:
                    continue
    except OSError:
        pass
    return False


def adapted(xml: str, guest: Guest, partition: str) -> str:
    """Return a saved domain's XML with this call's port and partition, which belong to the host alone."""
    ElementTree.register_namespace("qemu", QEMU_URI)
    ElementTree.register_namespace("testbed", METADATA_URI)
    root = ElementTree.fromstring(xml)  # noqa: S314 -- libvirt's own
    for argument in root.iter(f"{{{QEMU_URI}}}arg"):
        value = argument.get("value", "")
        argument.set(
            "value", re.sub(r"(hostfwd=tcp:127\.0\.0\.1:)\d+(-:22)", rf"\g<1>{guest.ssh_port}\g<2>", value)
        )
    for resource in root.findall("resource"):
        root.remove(resource)
    if partition:
        resource = ElementTree.SubElement(root, "resource")
        ElementTree.SubElement(resource, "partition").text = partition
    return ElementTree.tostring(root, encoding="unicode")


class Testbed:
    """All guests of one call."""

    def __init__(self, params: dict[str, Any], connection: Any, say: Callable[[str], None]) -> None:
        self.params = params
        self.connection = connection
        self.say = say
        root = Path(params["directory"])
        self.directory = root / "guests"
        self.store = Store(root / "checkpoints", say)
        self.ssh = GuestSsh(
            self.directory, lambda name: int(params["ssh_port_base"]) + int(name.removeprefix("guest"))
        )
        # Where the guests that run come from: written when they start, read when they are saved.
        self.source_path = self.directory / "source.json"
        self.times: dict[str, float] = {}
        # How the guests that were started are confined, each way once
        self.confined: set[str] = set()
        # One guest did not boot: the others need not.
        self.given_up = threading.Event()

    def guests(self, number: int) -> list[Guest]:
        """Return the first guests by their number."""
        names = [f"guest{one:02d}" for one in range(1, number + 1)]
        return [
            Guest(
                name,
                f"{self.params['domain_prefix']}{name}",
                self.params["ssh_port_base"] + one,
                self.directory / name,
            )
            for one, name in enumerate(names, start=1)
        ]

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note what a step took."""
        began = time.monotonic()
        yield
        self.times[step] = round(self.times.get(step, 0) + time.monotonic() - began, 2)

    # What there is

    def own_domains(self) -> dict[str, Owned]:
        """Return this testbed's domains by their libvirt name."""
        found: dict[str, Owned] = {}
        if self.connection is None:
            return found
        for domain in self.connection.listAllDomains():
            try:
                xml = domain.XMLDesc()
            except libvirt.libvirtError:
                continue  # it ended meanwhile
            guest = guest_of(xml)
            if guest is not None:
                found[domain.name()] = Owned(domain, guest, ssh_port_of(xml))
        return found

    def made_of(self) -> dict[str, Any]:
        """Return what makes the guests what they are."""
        number = self.connection.getVersion()
        return {
            "image": self.params["image"]["digest"],
            # A saved state names the domain and its files, which a restore can't change.
            "definition": digest_text(
                [self.params["domain_xml"], self.params["domain_prefix"], str(self.directory)]
            ),
            "user_data": digest_text([self.params["user_data"], self.params["ssh_public_key"]]),
            "memory_mib": self.params["memory_mib"],
            "kernel_release": os.uname().release,
            "cpu_model": cpu_model(),
            "qemu_version": f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}",
            "boot": self.params["boot"],
        }

    def check(self, new: list[Guest], own: Mapping[str, Owned], kept: Collection[str] = ()) -> None:
        """Refuse what can't work, before anything is changed. Of our own domains all but the kept ones go."""
        self.check_names()
        if self.params["memory_mib"] < LEAST_MEMORY_MIB:
            raise GuestError(
                f"guest_memory_mib is {self.params['memory_mib']}: "
                f"a guest needs at least {LEAST_MEMORY_MIB} MiB to boot"
            )
        lacking = [name for name in ("disk", "digest") if not self.params["image"].get(name)]
        if lacking:
            raise GuestError(f"guests_image has no {' and no '.join(lacking)}; the role guest_image gives it")
        self.check_places(new, own, kept)
        self.check_memory(new, own, kept)

    def check_names(self) -> None:
        """Refuse what is more than a name or a path where it stands in XML, in a path or in SSH's files."""
        check("guests_domain_prefix", self.params["domain_prefix"], DOMAIN)
        check("guests_directory", self.params["directory"], PATH)
        if self.params["partition"]:
            check("guests_partition", self.params["partition"], PATH)
        for part in ("disk", "kernel", "initrd"):
            if self.params["image"].get(part):
                check(f"guests_image's {part}", self.params["image"][part], PATH)
        check_free(self.directory, "guests_directory")

    def check_places(self, new: list[Guest], own: Mapping[str, Owned], kept: Collection[str]) -> None:
        """Refuse guests whose name, port or folder can't be had."""
        foreign = {domain.name() for domain in self.connection.listAllDomains()} - set(own)
        released = {owned.ssh_port for name, owned in own.items() if name not in kept}
        for guest in new:
            if guest.domain in foreign:
                raise GuestError(
                    f"a domain named {guest.domain} exists that this testbed did not make: "
                    "rename it, or set guests_domain_prefix"
                )
            if guest.ssh_port > LAST_PORT:
                raise GuestError(
                    f"{guest.name} would have the port {guest.ssh_port}: "
                    f"lower guest_ssh_port_base, the last port is {LAST_PORT}"
                )
            if guest.ssh_port not in released and not port_is_free(guest.ssh_port):
                raise GuestError(
                    f"port {guest.ssh_port} of 127.0.0.1, meant for {guest.name}, is in use: "
                    "end what uses it, or set guest_ssh_port_base"
                )
            if len(os.fsencode(guest.channel)) > LONGEST_PATH_BYTES:
                raise GuestError(
                    f"{guest.channel} is longer than the {LONGEST_PATH_BYTES} bytes of a socket's name: "
                    "set guests_directory"
                )

    def check_memory(self, new: list[Guest], own: Mapping[str, Owned], kept: Collection[str]) -> None:
        """Refuse guests that do not fit the host."""
        if self.params["overcommit"]:
            return
        free, each = self.free_bytes(own, kept), self.each_bytes
        if len(new) * each > free:
            raise GuestError(
                f"guests is {len(new) + len(kept)} of {self.params['memory_mib']} MiB: each needs up to "
                f"{each >> 20} MiB of host memory, and {free >> 20} MiB are available besides a reserve, "
                f"which fits {len(kept) + free // each}: lower guests or guest_memory_mib"
            )

    @property
    def each_bytes(self) -> int:
        """What one guest may take of the host's memory."""
        return int(self.params["memory_mib"] + self.params["overhead_mib"]) << 20

    def free_bytes(self, own: Mapping[str, Owned], kept: Collection[str]) -> int:
        """Return the host memory for new guests, that of our own which are not kept counted as free."""
        available = meminfo_bytes("MemAvailable")
        used = meminfo_bytes("MemTotal") - available
        released = sum(resident_bytes(owned.domain) for name, owned in own.items() if name not in kept)
        # A merged page is in the RSS of every guest that has it: no more comes back than is in use.
        return int(max(0, available + min(released, used) - HOST_RESERVE_BYTES))

    def check_room(self, overlays: int, saved: int, *, loaded: bool = False) -> None:
        """Refuse so many new disks, and so many guests to be saved with theirs, where they do not fit."""
        needs = []
        if overlays:
            what = f"what {overlays} guests write"
            needs.append(Need(path=str(self.directory), bytes=overlays * OVERLAY_BYTES, what=what))
        if saved:
            size = saved_bytes(saved, self.params["memory_mib"], loaded=loaded)
            what = f"a checkpoint of {saved} guests"
            needs.append(Need(path=str(self.store.root), bytes=size, what=what))
        wrong = shortages(needs)
        if wrong:
            raise GuestError("; ".join(wrong))

    # What is done

    def prepare(self) -> None:
        """Make the guests' folder, with the key that opens them."""
        make_own(self.directory, 0o711, "guests_directory")
        self.ssh.write_key(self.params["ssh_private_key"])

    def remove(self, own: Mapping[str, Owned]) -> None:
        """Remove domains of ours and their files, all at once: libvirt waits for the end of each process."""

        def end(name: str, connection: Any) -> None:
            domain = connection.lookupByName(name)
            # A domain that is not defined for good is gone with its process.
            persistent = domain.isPersistent()
            if domain.isActive():
                domain.destroy()
            if persistent:
                domain.undefine()

        def one(owned: Owned, connection: Any) -> None:
            for left in reversed(range(TIMES_TO_END)):
                try:
                    end(owned.domain.name(), connection)
                except libvirt.libvirtError as error:
                    busy = error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT
                    if not is_active(owned.domain):
                        break
                    if not (busy and left):
                        raise GuestError(
                            f"{owned.guest} can't be ended: {error}{held(owned.domain.name())}"
                        ) from None
                else:
                    break
            if is_own(self.directory):
                remove_own(self.directory / owned.guest, self.directory)

        with ExitStack() as stack, ThreadPoolExecutor(max_workers=max(1, len(own))) as pool:
            connections = [
                stack.enter_context(connected(self.params["uri"], "absent"))
                for _ in range(0, len(own), REQUESTS_OF_A_CONNECTION)
            ]
            list(pool.map(one, own.values(), cycle(connections)))

    def source(self) -> dict[str, Any] | None:
        """Where the guests that run come from; None where that was not noted."""
        try:
            noted: dict[str, Any] = json.loads(self.source_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return noted

    def forget_source(self) -> None:
        """Forget where guests came from that run no more."""
        self.source_path.unlink(missing_ok=True)

    def note_source(self, source: dict[str, Any]) -> None:
        """Note where the guests that run come from."""
        put(self.source_path, json.dumps(source))

    def new_folder(self, guest: Guest) -> None:
        """Make the folder of a guest; nothing of a former run is left."""
        remove_own(guest.folder, self.directory)
        guest.folder.mkdir()
        # QEMU's user has to pass, whom nobody knows before it runs; confine() closes it.
        guest.folder.chmod(0o711)

    def definition(self, guest: Guest) -> str:
        """Return the XML of a guest that boots."""
        partition = self.params["partition"]
        values = {
            "domain": guest.domain,
            "name": guest.name,
            "overlay": guest.overlay,
            "seed": guest.seed,
            "console": guest.console,
            "channel": guest.channel,
            "ssh_port": guest.ssh_port,
            "resource": f"<resource><partition>{partition}</partition></resource>" if partition else "",
        }
        return filled_in("domain_xml", self.params["domain_xml"], values)

    def make_host_key(self, guest: Guest) -> tuple[str, str]:
        """Make a guest's SSH host key, and trust it from now on; return its private and its public half."""
        path = guest.folder / "host_key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", guest.name, "-f", str(path)])
        halves = [path, path.with_name("host_key.pub")]
        private, public = (half.read_text(encoding="ascii") for half in halves)
        for half in halves:
            half.unlink()
        public = " ".join(public.split()[:2])
        self.ssh.trust({guest.name: public})
        return private, public

    def make_seed(self, guest: Guest) -> None:
        """Write a guest's NoCloud seed."""
        source = guest.folder / "seed"
        source.mkdir()
        private, public = self.make_host_key(guest)
        keys = {
            # Its comment is anything that its owner likes.
            "ssh_public_key": " ".join(self.params["ssh_public_key"].split()[:2]),
            "host_private_key": private,
            "host_public_key": public,
        }
        # A text of JSON is one of YAML.
        values = {"name": guest.name, **{key: json.dumps(text) for key, text in keys.items()}}
        (source / "user-data").write_text(filled_in("user_data", self.params["user_data"], values))
        (source / "meta-data").write_text(
            f"instance-id: {guest.name}-{time.time_ns()}\nlocal-hostname: {guest.name}\ndsmode: local\n"
        )
        (source / "network-config").write_text(
            "version: 2\nethernets:\n  all-en:\n    match: {name: 'e*'}\n    addresses: [10.0.2.15/24]\n"
        )
        run(
            [
                "xorriso",
                "-as",
                "mkisofs",
                "-quiet",
                "-V",
                "cidata",
                "-J",
                "-r",
                "-o",
                str(guest.seed),
                str(source),
            ]
        )
        guest.seed.chmod(0o600)
        remove_own(source, self.directory)

    def make_overlay(self, guest: Guest, backing: str | Path) -> None:
        """Make a guest's disk on top of another."""
        run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(backing), str(guest.overlay)]
        )

    def boot(self, guest: Guest) -> dict[str, float]:
        """Start a guest; return its seconds and CPU seconds up to the first real SSH answer."""
        began, said = time.monotonic(), ""
        with named(guest, "started"):
            self.connection.createXML(self.definition(guest))
        pid = self.confine(guest)
        while not self.given_up.is_set():
            self.check_runs(guest, "while it booted")
            if banner(guest.ssh_port):
                said = self.said_by_ssh(guest)
                if not said:
                    return {"seconds": round(time.monotonic() - began, 2), "cpu_seconds": cpu_seconds(pid)}
            if time.monotonic() - began > self.params["boot_timeout_seconds"]:
                raise GuestError(
                    f"{guest.name} did not answer SSH within {self.params['boot_timeout_seconds']} s "
                    f"(guests_boot_timeout_seconds{said and f'; ssh said: {said}'}); "
                    f"its console's last lines: {console_tail(guest)}"
                )
            time.sleep(POLL_SECONDS)
        raise GuestError(f"{guest.name} was given up")

    def check_runs(self, guest: Guest, when: str) -> None:
        """Raise a GuestError that says why a guest that is waited for has ended or stopped."""
        if not self.runs(guest):
            why = why_gone(guest.domain)
            raise GuestError(
                f"{guest.name} ended {when}{f' ({why})' if why else ''}; "
                f"its console's last lines: {console_tail(guest)}"
            )
        if why := why_stopped(guest.domain):
            raise GuestError(f"{guest.name} stopped {when}: {why}")

    def confine(self, guest: Guest) -> int:
        """Refuse a guest that is not confined, and close its folder to others; return its process."""
        pid = pid_of(guest)
        try:
            # Profiles bear the domain's UUID, which says nothing.
            self.confined.add(re.sub(r"libvirt-[0-9a-f-]{36}", "libvirt", confinement(pid)))
        except ConfinementError as error:
            raise GuestError(f"{guest.name} is not confined: {error}") from None
        except FileNotFoundError:
            raise GuestError(ended(guest)) from None
        os.chown(guest.folder, *owner_of(pid))
        guest.folder.chmod(0o700)
        return pid

    def runs(self, guest: Guest) -> bool:
        """Tell whether a guest runs; none is defined for good, so one that ended is not even known."""
        try:
            return is_active(self.connection.lookupByName(guest.domain))
        except libvirt.libvirtError:
            return False

    def said_by_ssh(self, guest: Guest) -> str:
        """Run a command in a guest; empty where that went well, else what ssh said last."""
        try:
            done = subprocess.run(
                self.ssh.command(guest.name, "true"),
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60,
            )
        except subprocess.TimeoutExpired:
            return "nothing within 60 s"
        if not done.returncode:
            return ""
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {done.returncode}"

    def boot_all(self, new: list[Guest]) -> dict[str, dict[str, float]]:
        """Boot with a bounded number under way: the next one starts as soon as one answers."""
        bound = wave_size(self.params["boot_wave"], self.params["accelerator"], os.cpu_count() or 1)
        boots: dict[str, dict[str, float]] = {}
        began = time.monotonic()
        waiting = iter(new)
        with ThreadPoolExecutor(max_workers=bound) as pool:
            under_way: dict[Future[dict[str, float]], str] = {}

            def start_next() -> None:
                for guest in waiting:
                    self.new_folder(guest)
                    self.make_seed(guest)
                    self.make_overlay(guest, self.params["image"]["disk"])
                    under_way[pool.submit(self.boot, guest)] = guest.name
                    return

            try:
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
            except BaseException:
                self.given_up.set()
                raise
        return boots

    def barrier(self, guests: list[Guest]) -> dict[str, dict[str, Any]]:
        """Wait until the program in each guest has answered: clock right, boot over, swap off."""
        answers: dict[str, dict[str, Any]]
        with self.timed("barrier"):
            answers, refused = ask_all(
                {guest.name: (guest.channel, ["barrier", f"{time.time():.0f}"]) for guest in guests},
                self.params["answer_timeout_seconds"],
                again=True,
            )
        if refused:
            told = "; ".join(f"{name}: {why}" for name, why in refused.items())
            raise GuestError(f"not all guests came to the barrier: {told}")
        return answers

    def with_host_keys(
        self, guests: list[Guest], boots: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, Any]]:
        """What a checkpoint holds of each guest: what is known of its boot, and the host key of that boot."""
        keys = self.ssh.host_keys()
        lacking = [guest.name for guest in guests if guest.name not in keys]
        if lacking:
            raise GuestError(f"{self.ssh.known_hosts} has no host key of {', '.join(lacking)}: boot anew")
        return {guest.name: {**boots.get(guest.name, {}), "host_key": keys[guest.name]} for guest in guests}

    def new_checkpoint(self, booted_at: str, load: dict[str, Any] | None) -> Path:
        """Name the folder of a checkpoint that is not finished; what is left of a former one is removed."""
        name = folder_name(self.made_of(), booted_at, load)
        if os.path.lexists(self.store.root / name):
            raise GuestError(f"these guests are kept in the checkpoint {name} already")
        folder: Path = self.store.root / (name + UNFINISHED)
        remove(folder)
        return folder

    def save(self, guests: list[Guest], folder: Path) -> None:
        """Save guests that run into the folder of a checkpoint; they run no more."""
        owner = owner_of(pid_of(guests[0]))
        for path in (self.store.root, folder, *(folder / guest.name for guest in guests)):
            self.store.make_folder(path, owner)

        def one(guest: Guest) -> None:
            place = folder / guest.name
            try:
                domain = self.connection.lookupByName(guest.domain)
                domain.saveFlags(str(place / "memory"), None, libvirt.VIR_DOMAIN_SAVE_BYPASS_CACHE)
            except libvirt.libvirtError as error:
                free_mib = shutil.disk_usage(folder).free // MIB
                raise GuestError(
                    f"{guest.name} can't be saved: {error} ({free_mib} MiB are free in {self.store.root})"
                ) from None
            # Not a plain renaming: the store may be a link to another disk.
            shutil.move(guest.overlay, place / "disk.qcow2")
            shutil.move(guest.seed, place / "seed.iso")

        with self.timed("save"), ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            list(pool.map(one, guests))

    def restore(self, guests: list[Guest], checkpoint: Checkpoint) -> None:
        """Bring guests back into fresh QEMU processes, each on a new overlay of its disk."""

        def one(guest: Guest) -> None:
            source = checkpoint.folder / guest.name
            self.new_folder(guest)
            guest.seed.touch(mode=0o600)
            shutil.copyfile(source / "seed.iso", guest.seed)
            self.make_overlay(guest, source / "disk.qcow2")
            memory = str(source / "memory")
            with named(guest, f"restored from the checkpoint {checkpoint.name}, which `make clean` removes"):
                xml = self.connection.saveImageGetXMLDesc(memory, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
                self.connection.restoreFlags(
                    memory,
                    adapted(xml, guest, self.params["partition"]),
                    libvirt.VIR_DOMAIN_SAVE_BYPASS_CACHE,
                )
            self.confine(guest)

        with self.timed("restore"), ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            list(pool.map(one, guests))
        with self.timed("answer"), ThreadPoolExecutor(max_workers=len(guests)) as pool:
            list(pool.map(self.await_banner, guests))

    def await_banner(self, guest: Guest) -> None:
        """Wait for the answer of a restored guest's SSH server."""
        deadline = time.monotonic() + self.params["answer_timeout_seconds"]
        # One patient connection: each new one is one more process to start in a guest that is short of CPU.
        while not banner(
            guest.ssh_port,
            max(0.1, min(BANNER_SECONDS, deadline - time.monotonic())),
            lambda: why_stopped(guest.domain),
        ):
            self.check_runs(guest, "when it was restored")
            if time.monotonic() > deadline:
                raise GuestError(
                    f"{guest.name} was restored and its SSH did not answer within "
                    f"{self.params['answer_timeout_seconds']} s (guests_answer_timeout_seconds)"
                )
            time.sleep(POLL_SECONDS / 2)


def run(command: list[str]) -> str:
    """Run a command and return what it printed, or raise a GuestError with what it said.

    The files that it makes are private from the beginning.
    """
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, umask=0o077
        )
    except FileNotFoundError:
        raise GuestError(f"{command[0]} is not installed; run the kvm_host role first") from None
    if done.returncode:
        raise GuestError(f"{command[0]} failed: {' | '.join(done.stderr.strip().splitlines()[-3:])}")
    return done.stdout


@contextmanager
def named(guest: Guest, deed: str) -> Iterator[None]:
    """Say which guest libvirt refused."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise GuestError(f"{guest.name} can't be {deed}: {error}") from None


def held(domain: str) -> str:
    """What to do where libvirt holds a domain that has no process; empty where it has one."""
    path = unborn().get(domain)
    if path is None:
        return ""
    return (
        f"; it has no process, and libvirt holds it: stop libvirtd, remove {path}, and start libvirtd again"
    )


def pid_of(guest: Guest) -> int:
    """Return the QEMU process of a running guest."""
    try:
        return int(Path(f"/run/libvirt/qemu/{guest.domain}.pid").read_text())
    except (OSError, ValueError):
        raise GuestError(ended(guest)) from None


def ended(guest: Guest) -> str:
    """Say that a guest runs no more."""
    return f"{guest.name} has ended; its console's last lines: {console_tail(guest)}"


def owner_of(pid: int) -> tuple[int, int]:
    """Return the user and group that a process runs as."""
    seen = Path(f"/proc/{pid}").stat()
    return seen.st_uid, seen.st_gid


def resident_bytes(domain: Any) -> int:
    """Return the host memory of a domain; none for one that ended."""
    try:
        return int(domain.memoryStats().get("rss", 0)) << 10 if domain.isActive() else 0
    except libvirt.libvirtError:
        return 0


def is_active(domain: Any) -> bool:
    """Tell whether a domain runs; one that ended is gone, since none is defined for good."""
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError:
        return False


def console_tail(guest: Guest) -> str:
    """Return the last lines of a guest's console, without what only a terminal understands."""
    try:
        text = guest.console.read_text(errors="replace")
    except OSError:
        return "(none)"
    plain = ("".join(filter(str.isprintable, line)).strip() for line in text.splitlines())
    return " | ".join([line for line in plain if line][-CONSOLE_LINES:]) or "(none)"


@contextmanager
def connected(uri: str, state: str, check_mode: bool = False) -> Iterator[Any]:
    """Open libvirt, without its habit of printing errors to the terminal.

    For the state absent a daemon that died is started again, since its guests live on; None on a host without
    libvirt, which has no guests.
    """
    if libvirt is None and state == "absent":
        yield None
        return
    if libvirt is None:
        raise GuestError(
            "python3-libvirt is not installed for this host's Python; run the kvm_host role first"
        )
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        if state != "absent" or check_mode:
            raise GuestError(
                f"libvirt does not answer at {uri}: {error}; run the kvm_host role first"
            ) from None
        bring_up(uri)
        connection = libvirt.open(uri)
    try:
        yield connection
    finally:
        connection.close()


def answer_of(testbed: Testbed, guests: list[Guest], changed: bool) -> dict[str, Any]:
    """What every state but absent returns."""
    return {
        "changed": changed,
        "domains": {guest.name: guest.domain for guest in guests},
        "channels": {guest.name: str(guest.channel) for guest in guests},
        "barrier": {},
        "start": None,
        "load": {},
        "boots": {},
        "times": testbed.times,
        "checkpoint": None,
    }


def absent(testbed: Testbed, check_mode: bool) -> dict[str, Any]:
    """Remove all guests and their files, and the checkpoints where that is asked."""
    own, store = testbed.own_domains(), testbed.store
    folders = store.folders() if testbed.params["checkpoints"] else []
    removed = [f"{folder.name} ({size_bytes(folder) // MIB} MiB)" for folder in folders]
    check("guests_directory", testbed.params["directory"], PATH)
    # What is in the place of the guests' folder and not the testbed's own stays, without a word.
    own_folder = is_own(testbed.directory)
    changed = bool(own) or bool(folders) or own_folder
    if not check_mode:
        testbed.remove(own)
        if own_folder:
            remove_own(testbed.directory, testbed.directory)
        for folder in folders:
            remove(folder)
    result: dict[str, Any] = {
        "changed": changed,
        "domains": {},
        "removed": removed,
        "diff": {"before": "".join(f"{name}\n" for name in (*sorted(own), *removed)), "after": ""},
    }
    if testbed.params["checkpoints"]:
        told = f"checkpoints removed: {', '.join(removed) or 'none'}"
        strangers = store.strangers()
        if strangers:
            told += f"; left alone, since the testbed did not make them: {', '.join(strangers)}"
        result["msg"] = told
    return result


def now() -> str:
    """Return the UTC time as records have it."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def boot_set(
    testbed: Testbed, guests: list[Guest]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, Any]]]:
    """Boot guests up to the barrier; return seconds and CPU seconds of each, and what it answered there."""
    testbed.prepare()
    began = time.monotonic()
    boots = testbed.boot_all(guests)
    barrier = testbed.barrier(guests)
    testbed.times["boot"] = round(testbed.times.get("boot", 0) + time.monotonic() - began, 2)
    del testbed.times["barrier"]
    return boots, barrier


def booted(testbed: Testbed, check_mode: bool) -> dict[str, Any]:
    """Boot guests and leave them running."""
    guests = testbed.guests(testbed.params["guests"])
    own = testbed.own_domains()
    testbed.check(guests, own)
    testbed.check_room(len(guests), 0)
    result = answer_of(testbed, guests, True)
    if check_mode:
        return result
    testbed.forget_source()
    testbed.remove(own)
    source: dict[str, Any] = {"from": "boot", "checkpoint": None, "booted_at": now()}
    boots, barrier = boot_set(testbed, guests)
    source |= {"boot_seconds": testbed.times["boot"]}
    testbed.note_source({**source, "boots": boots})
    return {**result, "boots": boots, "barrier": barrier, "start": start_of(testbed, source, None, False)}


def start_of(
    testbed: Testbed, source: dict[str, Any], restore_seconds: float | None, loaded: bool
) -> dict[str, Any]:
    """Where guests come from, as a record's provenance has it."""
    names = ("from", "checkpoint", "booted_at", "boot_seconds")
    return {
        **{name: source[name] for name in names},
        "restore_seconds": restore_seconds,
        "loaded": loaded,
        "arm_order": "off-on",
        "confinement": "; ".join(sorted(testbed.confined)) or None,
    }


def find(testbed: Testbed, names: list[str]) -> Checkpoint | None:
    """The checkpoint that serves, its files looked at; a damaged one goes, with what stands on it."""
    params, store = testbed.params, testbed.store
    since = moment(params["since"])
    if since > now():
        raise GuestError(
            f"guests_since is {params['since']}, and this host's clock says {now()}: "
            "set its clock, since no checkpoint would ever serve"
        )
    with testbed.timed("check"):
        checkpoint = store.find(testbed.made_of(), max(len(names), params["checkpoint_guests"]), since)
        if checkpoint is None:
            return None
        wrong = fault(checkpoint, names)
    if wrong:
        for folder in store.with_loaded(checkpoint):
            store.throw_away(folder, wrong)
        return None
    return checkpoint


def make(testbed: Testbed) -> Checkpoint:
    """Boot guests and keep them in a checkpoint, in place of those of the same make.

    They boot in groups that fit the host's memory: each is saved before the next one boots.
    """
    params, store = testbed.params, testbed.store
    guests = testbed.guests(max(params["guests"], params["checkpoint_guests"]))
    group = max(1, min(len(guests), testbed.free_bytes({}, ()) // testbed.each_bytes))
    testbed.check_places(guests, {}, ())
    testbed.check_memory(guests[:group], {}, ())
    testbed.check_room(params["guests"], len(guests))
    for stranger in store.strangers():
        testbed.say(f"{store.root / stranger} is left alone: the testbed did not make it")
    testbed.say(f"booting {len(guests)} guests for boot {params['boot']}, to be kept in a checkpoint")
    booted_at = now()
    folder = testbed.new_checkpoint(booted_at, None)
    boots: dict[str, dict[str, float]] = {}
    try:
        for first in range(0, len(guests), group):
            some = guests[first : first + group]
            boots |= boot_set(testbed, some)[0]
            testbed.save(some, folder)
        known = testbed.with_host_keys(guests, boots)
        made = write(folder, testbed.made_of(), (booted_at, testbed.times["boot"]), known, None)
    except BaseException:
        with suppress(CheckpointError):
            remove(folder)
        raise
    store.drop_superseded(made)
    testbed.say(
        f"checkpoint {made.name}: {len(guests)} guests, {made.bytes // MIB} MiB, booted in "
        f"{made.boot_seconds:.0f} s, saved in {testbed.times['save']:.1f} s"
    )
    return made


def restored(testbed: Testbed, check_mode: bool) -> dict[str, Any]:
    """Bring the guests of a checkpoint back, which is made first where there is none."""
    params = testbed.params
    guests = testbed.guests(params["guests"])
    own = testbed.own_domains()
    kept = {guest.domain for guest in guests if params["keep_running"] and guest.domain in own}
    new = [guest for guest in guests if guest.domain not in kept]
    testbed.check(new, own, kept)
    lacking = [name for name in ("name", "reserve_mib") if params["load"] and name not in params["load"]]
    if lacking:
        raise GuestError(f"guests_load has no {' and no '.join(lacking)}")
    result = answer_of(testbed, guests, bool(new) or len(own) > len(kept))
    if check_mode:
        return result
    noted = testbed.source()
    checkpoint = find(testbed, [guest.name for guest in guests])
    if kept and (checkpoint is None or noted is None or noted.get("checkpoint") != checkpoint.name):
        raise GuestError(
            "the guests that run come from "
            f"{(noted or {}).get('checkpoint') or 'no checkpoint'}, which is not "
            "the one that serves, so none can be added to them: remove them first"
        )
    testbed.forget_source()
    testbed.remove({name: value for name, value in own.items() if name not in kept})
    if checkpoint is None:
        checkpoint = make(testbed)
    else:
        testbed.check_room(len(new), 0)
    loaded = find_loaded(testbed, checkpoint, [guest.name for guest in guests]) if params["load"] else None
    testbed.prepare()
    source = {
        "from": "checkpoint",
        "checkpoint": checkpoint.name,
        "booted_at": checkpoint.booted_at,
        "boot_seconds": checkpoint.boot_seconds,
    }
    testbed.note_source(source)
    barrier = {}
    if new:
        testbed.ssh.trust({guest.name: checkpoint.guests[guest.name]["host_key"] for guest in new})
        testbed.restore(new, loaded or checkpoint)
        barrier = testbed.barrier(new)
        times = testbed.times
        testbed.say(
            f"restored {len(new)} {'loaded ' if loaded else ''}guests of boot {params['boot']}, which booted "
            f"in {checkpoint.boot_seconds:.0f} s at {checkpoint.booted_at[:19]}Z: "
            f"checked in {times['check']:.1f} s, restored in {times['restore']:.1f}, "
            f"SSH in {times['answer']:.1f}, barrier in {times['barrier']:.1f}"
        )
    seconds = round(sum(testbed.times.get(step, 0) for step in ("check", "restore", "answer", "barrier")), 2)
    return {
        **result,
        "barrier": barrier,
        "boots": {
            name: {key: guest[key] for key in ("seconds", "cpu_seconds") if key in guest}
            for name, guest in checkpoint.guests.items()
        },
        "start": start_of(testbed, source, seconds, loaded is not None),
        "load": {} if loaded is None else loaded.load,
        "checkpoint": {"name": checkpoint.name, "bytes": checkpoint.bytes, "guests": len(checkpoint.guests)},
    }


def find_loaded(testbed: Testbed, base: Checkpoint, names: list[str]) -> Checkpoint | None:
    """The checkpoint of these guests with the load already in place, its files looked at."""
    loaded = testbed.store.find_loaded(base, testbed.params["load"], len(names))
    if loaded is None:
        return None
    with testbed.timed("check"):
        wrong = fault(loaded, names)
    if wrong:
        testbed.store.throw_away(loaded.folder, wrong)
        return None
    return loaded


def saved(testbed: Testbed, check_mode: bool) -> dict[str, Any]:
    """Keep the guests that run in a checkpoint."""
    params = testbed.params
    guests = testbed.guests(params["guests"])
    result = answer_of(testbed, guests, True)
    if check_mode:
        return result
    load = params["load"] or None
    if load is not None and "reports" not in load:
        raise GuestError("guests_load has no reports: guests are kept loaded with what they said then")
    source, own = testbed.source(), testbed.own_domains()
    if source is None:
        raise GuestError("no guests of this testbed run that could be saved: restore or boot them first")
    missing = [guest.name for guest in guests if guest.domain not in own]
    if missing:
        raise GuestError(f"{', '.join(missing)} does not run and can't be saved")
    if source["from"] == "boot" and load is not None:
        raise GuestError("guests that booted are kept before they are loaded: save, restore, then load them")
    testbed.check_room(0, len(guests), loaded=load is not None)
    folder = testbed.new_checkpoint(source["booted_at"], load)
    try:
        testbed.save(guests, folder)
        made = write(
            folder,
            testbed.made_of(),
            (source["booted_at"], source["boot_seconds"]),
            testbed.with_host_keys(guests, source.get("boots", {})),
            load,
        )
    except BaseException:
        with suppress(CheckpointError):
            remove(folder)
        raise
    if load is None:
        testbed.store.drop_superseded(made)
    testbed.say(f"checkpoint {made.name}: {made.bytes // MIB} MiB, saved in {testbed.times['save']:.1f} s")
    return {**result, "checkpoint": {"name": made.name, "bytes": made.bytes, "guests": len(made.guests)}}


STATES = {"restored": restored, "booted": booted, "saved": saved, "absent": absent}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": list(STATES), "default": "restored"},
            "guests": {"type": "int", "default": 0},
            "checkpoint_guests": {"type": "int", "default": 0},
            "boot": {"type": "int", "default": 1},
            "since": {"type": "str", "default": ""},
            "checkpoints": {"type": "bool", "default": False},
            "keep_running": {"type": "bool", "default": False},
            "load": {"type": "dict", "default": {}},
            "domain_xml": {"type": "str"},
            "user_data": {"type": "str"},
            "image": {"type": "dict"},
            "memory_mib": {"type": "int"},
            "overhead_mib": {"type": "int", "default": 160},
            "overcommit": {"type": "bool", "default": False},
            "accelerator": {"type": "str", "choices": ["kvm", "tcg"]},
            "partition": {"type": "str", "default": ""},
            "boot_wave": {"type": "int", "default": 0},
            "boot_timeout_seconds": {"type": "int", "default": 300},
            "answer_timeout_seconds": {"type": "int", "default": 180},
            "ssh_port_base": {"type": "int", "default": 22200},
            "ssh_private_key": {"type": "str", "no_log": True},
            "ssh_public_key": {"type": "str"},
            "domain_prefix": {"type": "str", "default": "ksm-testbed-"},
            "directory": {"type": "path", "default": "/var/lib/ksm-testbed"},
            "uri": {"type": "str", "default": "qemu:///system"},
            "progress_path": {"type": "path", "default": ""},
        },
        required_if=[
            (
                "state",
                state,
                (
                    "domain_xml",
                    "user_data",
                    "image",
                    "memory_mib",
                    "accelerator",
                    "ssh_private_key",
                    "ssh_public_key",
                ),
            )
            for state in ("restored", "booted", "saved")
        ],
        supports_check_mode=True,
    )
    params = module.params

    if params["state"] != "absent" and params["guests"] < 1:
        module.fail_json(msg=f"guests is {params['guests']}: it needs at least one guest")
    try:
        progress = Progress(None if module.check_mode else params["progress_path"])
        if params["state"] != "absent":
            end_when_abandoned(progress)
        with connected(params["uri"], params["state"], module.check_mode) as connection:
            testbed = Testbed(params, connection, progress.say)
            module.exit_json(**STATES[params["state"]](testbed, module.check_mode))
    except (
        GuestError,
        CheckpointError,
        DaemonError,
        NameRefused,
        NotOwnError,
        ProgressError,
    ) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        parts = (error.filename, error.strerror or error)
        module.fail_json(msg=": ".join(str(part) for part in parts if part))
    except Exception as error:
        if libvirt is None or not isinstance(error, libvirt.libvirtError):
            raise
        module.fail_json(msg=f"libvirt refused: {error}")


if __name__ == "__main__":
    main()
