"""The module guests on libvirt's own test driver: what is touched, made anew, refused. No guest runs here."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_files import load

sys.path.append(
    "/usr/lib/python3/dist-packages"
)  # Debian's python3-libvirt, which a virtual environment hides
libvirt = pytest.importorskip("libvirt", reason="needs python3-libvirt, which the role kvm_host installs")
sys.path.pop()

guests = load("plugins/modules/guests.py")
DOMAIN = """<domain type="test">
  <name>$domain</name>
  <metadata><testbed:guest xmlns:testbed="urn:ksm-testbed" name="$name" digest="$digest"/></metadata>
  <memory unit="MiB">{memory_mib}</memory>
  <os><type>hvm</type></os>
</domain>"""
FOREIGN = """<node><domain type="test">
  <name>ksm-testbed-guest02</name><memory>131072</memory><os><type>hvm</type></os>
</domain></node>"""
EMPTY = "<node/>"
GIB = 1 << 30


class FakeTestbed(guests.Testbed):  # type: ignore[misc, name-defined]
    """Starts domains of the test driver, which no SSH answers for, and runs no command."""

    boot_seconds = 0.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.under_way: set[str] = set()
        self.most_under_way = 0
        self.lock = threading.Lock()

    @staticmethod
    def run(command: list[str]) -> None:
        pass

    def answers(self, port: int) -> bool:
        return True

    def boot(self, guest: dict[str, Any]) -> dict[str, float]:
        with self.lock:
            self.under_way.add(guest["name"])
            self.most_under_way = max(self.most_under_way, len(self.under_way))
        self.connection.lookupByName(self.domain_name(guest)).create()
        time.sleep(self.boot_seconds)
        with self.lock:
            self.under_way.remove(guest["name"])
        return {"seconds": 1.0, "cpu_seconds": 2.0}


class Host:
    """A libvirt of its own and the calls of the module."""

    def __init__(self, folder: Path, node: str) -> None:
        description = folder / "node.xml"
        description.write_text(node)
        self.connection = libvirt.open(f"test://{description}")
        self.directory = folder / "guests"
        self.lines: list[str] = []
        self.last: FakeTestbed | None = None

    def ensure(
        self, names: str = "guest01 guest02", *, check: bool = False, **changes: Any
    ) -> dict[str, Any]:
        memory_mib = changes.get("memory_mib", 256)
        params = {
            "state": "ready",
            "ssh_ports": {name: 40000 + int(name[-2:]) for name in names.split()},
            "domain_xml": DOMAIN.format(memory_mib=memory_mib),
            "user_data": "#cloud-config\nhostname: $name\nssh: $ssh_public_key\n",
            "image": {"disk": "/nowhere/disk.qcow2", "digest": "sha256:1"},
            "memory_mib": memory_mib,
            "overhead_mib": 160,
            "overcommit": False,
            "accelerator": "tcg",
            "reuse": True,
            "boot_wave": 0,
            "ssh_private_key": "private",
            "ssh_public_key": "public",
            "domain_prefix": "ksm-testbed-",
            "directory": str(self.directory),
            **changes,
        }
        self.last = FakeTestbed(params, self.connection, self.lines.append)
        result: dict[str, Any] = guests.ensure(self.last, check)
        return result

    def domains(self) -> dict[str, tuple[str, int, bool]]:
        return {
            domain.name(): (domain.UUIDString(), domain.maxMemory() >> 10, bool(domain.isActive()))
            for domain in self.connection.listAllDomains()
        }


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "memory_available_bytes", lambda: 8 * GIB)
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, EMPTY)
    yield host
    host.connection.close()


@pytest.fixture
def shared_host(tmp_path: Path) -> Iterator[Host]:
    """A host on which somebody else has a domain of a name that the testbed would use."""
    host = Host(tmp_path, FOREIGN)
    yield host
    host.connection.close()


def test_check_mode_says_what_apply_does_and_a_second_call_keeps_it(host: Host) -> None:
    foreseen = host.ensure(check=True)
    assert foreseen["changed"] and foreseen["boots"] == {}
    assert foreseen["diff"] == {"before": "", "after": "ksm-testbed-guest01\nksm-testbed-guest02\n"}
    assert host.domains() == {} and not host.directory.exists()

    made = host.ensure()
    assert made["changed"] and made["reused"] == []
    assert made["domains"] == {"guest01": "ksm-testbed-guest01", "guest02": "ksm-testbed-guest02"}
    assert made["boots"]["guest02"] == {"seconds": 1.0, "cpu_seconds": 2.0}
    assert [line.partition(" is up")[0] for line in sorted(host.lines)] == ["guest01", "guest02"]
    running = host.domains()
    assert {memory for _, memory, _ in running.values()} == {256}
    assert (host.directory / "id_ed25519").stat().st_mode & 0o777 == 0o600

    again = host.ensure()
    assert not again["changed"] and again["reused"] == ["guest01", "guest02"] and again["boots"] == {}
    assert host.domains() == running


def test_without_reuse_every_guest_is_made_anew(host: Host) -> None:
    host.ensure()
    former = host.domains()
    made = host.ensure(reuse=False)
    assert made["changed"] and made["reused"] == []
    assert all(host.domains()[name][0] != uuid for name, (uuid, _, _) in former.items())


@pytest.mark.parametrize(
    "drift",
    [
        {"memory_mib": 384},
        {"image": {"disk": "/nowhere/disk.qcow2", "digest": "sha256:2"}},
        {"user_data": "#cloud-config\nhostname: other\n"},
        {"ssh_public_key": "another"},
    ],
    ids=["memory", "image", "seed", "key"],
)
def test_a_guest_that_is_not_what_is_asked_is_made_anew(host: Host, drift: dict[str, Any]) -> None:
    host.ensure()
    former = host.domains()
    assert host.ensure(check=True, **drift)["changed"]
    assert host.domains() == former
    made = host.ensure(**drift)
    assert made["changed"] and made["reused"] == []
    now = host.domains()
    assert all(now[name][0] != former[name][0] for name in former)
    assert {memory for _, memory, _ in now.values()} == {drift.get("memory_mib", 256)}


def test_a_guest_that_ended_is_made_anew_and_the_other_kept(host: Host) -> None:
    host.ensure()
    host.connection.lookupByName("ksm-testbed-guest01").destroy()
    made = host.ensure()
    assert made["reused"] == ["guest02"] and list(made["boots"]) == ["guest01"]


def test_a_guest_that_is_no_longer_asked_for_is_removed(host: Host) -> None:
    host.ensure()
    kept = host.domains()["ksm-testbed-guest01"]
    result = host.ensure("guest01")
    assert result["changed"] and result["reused"] == ["guest01"]
    assert host.domains() == {"ksm-testbed-guest01": kept}
    assert not (host.directory / "guest02").exists()


def test_a_foreign_domain_of_the_same_name_is_refused_and_untouched(shared_host: Host) -> None:
    before = shared_host.domains()
    with pytest.raises(
        guests.GuestError, match=r"^a domain named ksm-testbed-guest02 exists that .* did not make"
    ):
        shared_host.ensure()
    assert shared_host.domains() == before
    assert not shared_host.directory.exists()


def test_absent_removes_the_own_domains_only(shared_host: Host) -> None:
    foreign = shared_host.domains()
    assert list(foreign) == ["ksm-testbed-guest02"]
    shared_host.ensure("guest01 guest03")
    assert len(shared_host.domains()) == 3
    assert shared_host.ensure("", check=True, state="absent")["changed"]
    assert len(shared_host.domains()) == 3
    assert shared_host.ensure("", state="absent")["changed"]
    assert shared_host.domains() == foreign
    assert not shared_host.directory.exists()
    assert not shared_host.ensure("", state="absent")["changed"]


def test_only_this_testbeds_metadata_makes_a_domain_ones_own() -> None:
    own = '<domain><metadata><a:guest xmlns:a="urn:ksm-testbed" name="g" digest="d"/></metadata></domain>'
    assert guests.metadata_of(own) == {"name": "g", "digest": "d"}
    assert guests.metadata_of(own.replace("urn:ksm-testbed", "urn:other")) is None
    assert guests.metadata_of("<domain><name>ksm-testbed-guest01</name></domain>") is None


def test_a_port_in_use_is_refused_by_number(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            guests.GuestError, match=rf"^port {port} of 127.0.0.1, meant for guest01, is in use"
        ):
            host.ensure(ssh_ports={"guest01": port})
        assert host.domains() == {}
    assert host.ensure(ssh_ports={"guest01": port})["changed"]


def test_more_guests_than_fit_are_refused_with_how_many_do(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 256 MiB and 160 MiB of QEMU each, 512 MiB left to the host: 512 + 2 x 416 = 1344
    monkeypatch.setattr(guests, "memory_available_bytes", lambda: 1344 << 20)
    with pytest.raises(guests.GuestError) as refused:
        host.ensure("guest01 guest02 guest03")
    assert str(refused.value) == (
        "guests is 3 of 256 MiB: each needs up to 416 MiB of host memory, and 832 MiB are available besides "
        "a reserve, which fits 2: lower guests or guest_memory_mib"
    )
    assert host.domains() == {}
    assert host.ensure("guest01 guest02 guest03", check=True, overcommit=True)["changed"]
    assert host.ensure("guest01 guest02")["changed"]


def test_guests_that_are_kept_need_no_more_room(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.ensure()
    monkeypatch.setattr(guests, "memory_available_bytes", lambda: (512 + 416) << 20)
    with pytest.raises(guests.GuestError, match="which fits 3: "):
        host.ensure("guest01 guest02 guest03 guest04")
    assert host.ensure("guest01 guest02 guest03")["reused"] == ["guest01", "guest02"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssh_ports": {}}, "guests_ssh_ports is empty"),
        ({"memory_mib": 127}, "guests_memory_mib is 127: a guest needs at least 128 MiB"),
        (
            {"ssh_ports": {"guest01": "ssh"}},
            "guests_ssh_ports has 'ssh' for guest01: a port is from 1 to 65535",
        ),
        ({"ssh_ports": {"guest01": 65536}}, "guests_ssh_ports has 65536 for guest01"),
    ],
)
def test_what_cannot_be_had_is_refused_and_what_runs_is_kept(
    host: Host, changes: dict[str, Any], message: str
) -> None:
    host.ensure()
    running = host.domains()
    with pytest.raises(guests.GuestError, match=f"^{message}"):
        host.ensure(**changes)
    assert host.domains() == running


@pytest.mark.parametrize(
    ("asked", "accelerator", "cpus", "size"),
    [(0, "tcg", 2, 3), (0, "tcg", 16, 17), (0, "kvm", 2, 8), (5, "tcg", 2, 5), (1, "kvm", 64, 1)],
)
def test_wave_size(asked: int, accelerator: str, cpus: int, size: int) -> None:
    assert guests.wave_size(asked, accelerator, cpus) == size


def test_no_more_guests_boot_at_once_than_asked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTestbed, "boot_seconds", 0.05)
    host.ensure("guest01 guest02 guest03 guest04 guest05", boot_wave=2)
    assert host.last is not None
    assert host.last.most_under_way == 2
    assert len(host.domains()) == 5


def test_a_libvirt_that_does_not_answer_is_said_in_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(guests.GuestError, match="run the kvm_host role first"),
        guests.connected(f"test://{tmp_path}/missing.xml"),
    ):
        pass


def test_a_port_that_only_listens_is_no_guest() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet(greeting: bytes) -> bool:
            def serve() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(greeting)

            thread = threading.Thread(target=serve)
            thread.start()
            answered: bool = guests.banner(port)
            thread.join()
            return answered

        assert greet(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        assert not greet(b"")
    assert not guests.banner(port)
