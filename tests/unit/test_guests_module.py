"""The module guests on a libvirt in plain files: what is booted, kept, restored, removed, refused."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from fake_libvirt import LIBVIRT, Domain, Host
from jinja2 import Environment
from plugin_files import ROOT, load, run
from waiting import FOREVER_SECONDS

MODULE = "plugins/modules/guests.py"
guests = load(MODULE)
checkpoints = sys.modules["ansible.module_utils.checkpoints"]
disk_room = sys.modules["ansible.module_utils.disk_room"]
GIB, MIB = 1 << 30, 1 << 20
IMAGE = {"disk": "/images/disk.qcow2", "kernel": None, "initrd": None, "digest": "sha256:1"}
FOREIGN = "<domain><name>ksm-testbed-guest02</name></domain>"
DEFAULTS = {
    name: option.get("default") for name, option in yaml.safe_load(guests.DOCUMENTATION)["options"].items()
}
PORTS = 40100
PROFILE = "libvirt-1b4e28ba-2fa1-11d2-883f-0016d3cca427"
USER_DATA = (
    "#cloud-config\nhostname: $name\nssh: $ssh_public_key\n"
    "ssh_keys: {ed25519_private: $host_private_key, ed25519_public: $host_public_key}\n"
)
PUBLIC_KEY = 'ssh-ed25519 AAAA my "own" key'


def domain_xml(memory_mib: int = 256) -> str:
    """The role's own template."""
    template = (ROOT / "roles/guests/templates/domain.xml.j2").read_text()
    return (
        Environment(trim_blocks=True)  # noqa: S701 -- as Ansible renders it
        .from_string(template)
        .render(
            guests_accelerator="tcg",
            guests_memory_mib=memory_mib,
            guests_image=IMAGE,
            guests_tb_cache_mib=96,
        )
    )


class Bench:
    """A host and the calls of the module on it."""

    def __init__(self, folder: Path) -> None:
        self.host = Host()
        self.folder = folder / "testbed"
        self.checkpoints = self.folder / "checkpoints"
        self.lines: list[str] = []
        self.silent: dict[str, str] = {}
        self.gone: dict[str, str] = {}
        self.connections = 0
        self.asked: list[tuple[list[str], str]] = []
        # By guest: the seed's user-data, and the host key of each of its boots
        self.user_data: dict[str, Any] = {}
        self.host_keys: dict[str, list[str]] = {}

    def call(self, state: str = "restored", number: int = 2, *, check: bool = False, **changes: Any) -> Any:
        memory_mib = changes.get("memory_mib", 256)
        params = {
            **DEFAULTS,
            "guests": number,
            "domain_xml": domain_xml(memory_mib),
            "user_data": USER_DATA,
            "image": IMAGE,
            "memory_mib": memory_mib,
            "accelerator": "tcg",
            "boot_timeout_seconds": FOREVER_SECONDS,
            "answer_timeout_seconds": FOREVER_SECONDS,
            "ssh_port_base": PORTS,
            "ssh_private_key": "private",
            "ssh_public_key": PUBLIC_KEY,
            "directory": str(self.folder),
            **changes,
        }
        self.lines.clear()
        testbed = guests.Testbed(params, self.host, self.lines.append)
        return guests.STATES[state](testbed, check)

    def refusal(self, *arguments: Any, **changes: Any) -> str:
        kinds = (guests.GuestError, guests.NameRefused, guests.NotOwnError, checkpoints.CheckpointError)
        with pytest.raises(kinds) as refused:
            self.call(*arguments, **changes)
        said = str(refused.value)
        assert "\n" not in said
        return said

    @property
    def kept(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir()) if self.checkpoints.exists() else []

    def tree(self) -> dict[str, bytes | None]:
        paths = sorted(self.folder.rglob("*"))
        return {str(path): path.read_bytes() if path.is_file() else None for path in paths}

    # In the place of what the module runs and asks

    @contextmanager
    def connected(self, _uri: str, _state: str, _check_mode: bool = False) -> Iterator[Host]:
        self.connections += 1
        yield self.host

    def command(self, words: list[str]) -> str:
        target = Path(words[words.index("-o") + 1] if words[0] == "xorriso" else words[-1])
        name = target.parent.name
        if words[0] == "ssh-keygen":
            keys = self.host_keys.setdefault(name, [])
            keys.append(f"ssh-ed25519 {f'{name}n{len(keys)}':A<68}")
            target.write_text(f"private\nof {keys[-1]}\n")
            target.with_name(f"{target.name}.pub").write_text(f"{keys[-1]} {name}\n")
            return ""
        if words[0] == "xorriso":
            self.user_data[name] = yaml.safe_load((Path(words[-1]) / "user-data").read_text())
        backing = words[words.index("-b") + 1] if words[0] == "qemu-img" else "a seed"
        target.write_text(f"{target.parent.name} on {backing}")
        return ""

    def ask_all(self, requests: Any, _limit: float, *, again: bool) -> Any:
        assert again
        self.asked.append((sorted(requests), requests[min(requests)][1][0]))
        silent = {name: why for name, why in self.silent.items() if name in requests}
        answers = {name: {"available_bytes": 190 * MIB} for name in requests if name not in silent}
        return answers, silent


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    some_user = (os.geteuid() or 64055, os.getegid() or 64055)
    memory = {"MemAvailable": 8 * GIB, "MemTotal": 16 * GIB}
    monkeypatch.setattr(guests, "libvirt", LIBVIRT)
    monkeypatch.setattr(guests, "connected", bench.connected)
    monkeypatch.setattr(guests, "run", bench.command)
    monkeypatch.setattr(guests, "ask_all", bench.ask_all)
    monkeypatch.setattr(guests, "pid_of", lambda _guest: os.getpid())
    monkeypatch.setattr(guests, "owner_of", lambda _pid: some_user)
    monkeypatch.setattr(guests, "confinement", lambda _pid: f"user 7, seccomp, AppArmor {PROFILE} (enforce)")
    monkeypatch.setattr(guests, "banner", lambda *_port: True)
    # Not what this host's own libvirt says
    monkeypatch.setattr(guests, "why_stopped", lambda _domain: "")
    monkeypatch.setattr(guests, "why_gone", lambda domain: bench.gone.get(domain, ""))
    monkeypatch.setattr(guests.Testbed, "said_by_ssh", lambda _testbed, _guest: "")
    monkeypatch.setattr(guests, "meminfo_bytes", memory.__getitem__)
    monkeypatch.setattr(guests, "POLL_SECONDS", 0.01)
    yield bench


def names(*numbers: int) -> list[str]:
    return [f"ksm-testbed-guest{number:02d}" for number in numbers]


# Booted once, kept, restored


def test_where_no_checkpoint_serves_guests_are_booted_kept_and_restored(bench: Bench) -> None:
    result = bench.call(number=2, checkpoint_guests=3)
    assert sorted(bench.host.booted) == names(1, 2, 3)
    assert sorted(bench.host.restored) == bench.host.names() == names(1, 2)
    (name,) = bench.kept
    assert result["changed"]
    assert result["domains"] == {"guest01": names(1)[0], "guest02": names(2)[0]}
    assert result["channels"]["guest02"] == str(bench.folder / "guests/guest02/channel")
    assert result["checkpoint"]["name"] == name and result["checkpoint"]["guests"] == 3
    start = result["start"]
    assert (start["from"], start["checkpoint"], start["loaded"]) == ("checkpoint", name, False)
    assert start["booted_at"].endswith("Z") and start["restore_seconds"] >= 0
    assert set(result["times"]) == {"boot", "save", "check", "restore", "answer", "barrier"}
    assert list(result["boots"]) == ["guest01", "guest02", "guest03"]
    assert set(result["boots"]["guest01"]) == {"seconds", "cpu_seconds"}
    assert result["barrier"]["guest02"] == {"available_bytes": 190 * MIB}
    assert [asked for asked, _ in bench.asked] == [
        ["guest01", "guest02", "guest03"],
        ["guest01", "guest02"],
    ]
    assert bench.lines[0] == "booting 3 guests for boot 1, to be kept in a checkpoint"
    assert sorted(line.partition(" is up")[0] for line in bench.lines[1:4]) == [
        "guest01",
        "guest02",
        "guest03",
    ]


def test_the_next_call_restores_the_same_guests_without_a_boot(bench: Bench) -> None:
    first = bench.call()
    booted = list(bench.host.booted)
    again = bench.call()
    assert bench.host.booted == booted
    assert again["changed"] and again["start"]["checkpoint"] == first["start"]["checkpoint"]
    assert again["start"]["booted_at"] == first["start"]["booted_at"]
    assert "boot" not in again["times"] and again["boots"] == first["boots"]
    assert bench.lines[-1].startswith("restored 2 guests of boot 1, which booted in ")


def test_each_restored_guest_has_a_new_disk_on_that_of_the_checkpoint(bench: Bench) -> None:
    name = bench.call()["start"]["checkpoint"]
    disk = bench.folder / "guests/guest02/overlay.qcow2"
    disk.write_text("written to by a cell")
    bench.call()
    assert disk.read_text() == f"guest02 on {bench.checkpoints / name}/guest02/disk.qcow2"
    assert (bench.folder / "guests/guest02/seed.iso").read_text() == "guest02 on a seed"


def test_a_number_below_the_checkpoints_restores_the_first_ones(bench: Bench) -> None:
    bench.call(number=3)
    bench.host.booted.clear()
    bench.call(number=1)
    assert bench.host.booted == [] and bench.host.names() == names(1)


def test_each_boot_is_a_set_of_guests_of_its_own(bench: Bench) -> None:
    first, second = bench.call(boot=1)["start"], bench.call(boot=2)["start"]
    assert first["checkpoint"] != second["checkpoint"]
    assert len(bench.kept) == 2
    assert bench.call(boot=1)["start"]["checkpoint"] == first["checkpoint"]


def test_booted_guests_run_on_and_are_no_checkpoint(bench: Bench) -> None:
    result = bench.call("booted")
    assert bench.host.names() == names(1, 2) and bench.kept == []
    start = result["start"]
    assert (start["from"], start["checkpoint"], start["restore_seconds"]) == ("boot", None, None)
    assert start["boot_seconds"] >= 0 and set(result["times"]) == {"boot"}
    assert result["barrier"].keys() == result["boots"].keys() == {"guest01", "guest02"}


def test_booted_guests_that_are_saved_are_restored_as_that_boot(bench: Bench) -> None:
    start = bench.call("booted")["start"]
    saved = bench.call("saved")
    assert bench.host.names() == [] and bench.kept == [saved["checkpoint"]["name"]]
    bench.host.booted.clear()
    restored = bench.call()["start"]
    assert bench.host.booted == []
    assert restored["booted_at"] == start["booted_at"]
    assert restored["checkpoint"] == saved["checkpoint"]["name"]


LOAD = {"name": "random_fill", "reserve_mib": 32}
REPORTS = {"reports": {"guest01": {"digest": "a"}, "guest02": {"digest": "b"}}}


def test_loaded_guests_are_kept_beside_their_base_and_restored_loaded(bench: Bench) -> None:
    base = bench.call(load=LOAD)
    assert base["load"] == {} and not base["start"]["loaded"]
    bench.call("saved", load={**LOAD, **REPORTS})
    assert len(bench.kept) == 2
    loaded = bench.call(load=LOAD)
    assert loaded["start"]["loaded"] and loaded["load"] == {**LOAD, **REPORTS}
    assert loaded["start"]["checkpoint"] == base["start"]["checkpoint"]
    disk = (bench.folder / "guests/guest01/overlay.qcow2").read_text()
    assert "-random_fill-" in disk
    assert bench.lines[-1].startswith("restored 2 loaded guests")
    plain = bench.call()
    assert not plain["start"]["loaded"] and plain["load"] == {}


@pytest.mark.parametrize("state", ["restored", "booted", "saved", "absent"])
def test_check_mode_changes_nothing_not_even_what_is_damaged(bench: Bench, state: str) -> None:
    bench.call()
    (bench.checkpoints / bench.kept[0] / "guest01/memory").write_text("damaged")
    (bench.checkpoints / "boot1-256mib-0123456789ab.partial").mkdir()
    before, running = bench.tree(), bench.host.names()
    more = {"checkpoints": True} if state == "absent" else {}
    assert bench.call(state, check=True, **more)["changed"]
    assert bench.tree() == before and bench.host.names() == running
    assert bench.lines == []


def test_on_a_new_host_check_mode_foresees_a_change_and_makes_no_folder(bench: Bench) -> None:
    result = bench.call(check=True)
    assert result["changed"] and result["domains"].keys() == {"guest01", "guest02"}
    assert result["boots"] == {} and not bench.folder.exists()


# What is wrong with a checkpoint


def truncate(folder: Path) -> None:
    (folder / "guest02/disk.qcow2").write_text("")


def overwrite(folder: Path) -> None:
    path = folder / "guest01/seed.iso"
    path.write_text(path.read_text().upper())


def lose(folder: Path) -> None:
    (folder / "guest02/memory").unlink()


def unlist(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def replace(folder: Path) -> None:
    path = folder / "guest01/memory"
    path.rename(folder / "aside")
    path.symlink_to(folder / "aside")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "guest02/disk.qcow2 has 0 bytes of "),
        (overwrite, "guest01/seed.iso was changed: its digest is another"),
        (lose, "guest02/memory: No such file or directory"),
        (unlist, "it has no manifest, so it was never finished"),
        (replace, "guest01/memory: it is a symbolic link"),
    ],
)
def test_a_checkpoint_damaged_in_the_middle_of_a_run_is_named_and_made_again_with_what_stood_on_it(
    bench: Bench, damage: Callable[[Path], None], said: str
) -> None:
    former = bench.call(load=LOAD)["start"]["checkpoint"]
    bench.call("saved", load={**LOAD, **REPORTS})
    damage(bench.checkpoints / former)
    bench.host.booted.clear()
    result = bench.call(load=LOAD)
    assert any(line.startswith(f"checkpoint {former} is thrown away: {said}") for line in bench.lines)
    # The loaded guests go before new ones boot, which may need their room.
    assert sum("is thrown away" in line for line in bench.lines[:2]) == 2
    assert sorted(bench.host.booted) == bench.host.names() == names(1, 2)
    assert not result["start"]["loaded"]
    assert bench.kept == [result["start"]["checkpoint"]] != [former]


def test_only_the_files_of_guests_that_are_asked_for_are_looked_at(bench: Bench) -> None:
    former = bench.call()["start"]["checkpoint"]
    truncate(bench.checkpoints / former)
    assert bench.call(number=1)["start"]["checkpoint"] == former
    assert bench.call(number=2)["start"]["checkpoint"] != former


def test_a_damaged_checkpoint_of_loaded_guests_goes_alone(bench: Bench) -> None:
    base = bench.call(load=LOAD)["start"]["checkpoint"]
    loaded = bench.call("saved", load={**LOAD, **REPORTS})["checkpoint"]["name"]
    lose(bench.checkpoints / loaded)
    result = bench.call(load=LOAD)
    assert bench.lines[0] == f"checkpoint {loaded} is thrown away: guest02/memory: No such file or directory"
    assert not result["start"]["loaded"] and result["start"]["checkpoint"] == base
    assert bench.kept == [base]


def test_with_another_qemu_the_guests_are_booted_anew_and_both_versions_named(bench: Bench) -> None:
    former = bench.call()["start"]["checkpoint"]
    bench.host.qemu_version = 7_002_023
    assert bench.call()["start"]["checkpoint"] != former
    assert f"checkpoint {former} is thrown away: it was made with QEMU 7.2.22, now 7.2.23" in bench.lines
    assert len(bench.kept) == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"image": {**IMAGE, "digest": "sha256:2"}}, "another image"),
        ({"user_data": "#cloud-config\n"}, "another user data or SSH key"),
        ({"ssh_public_key": "another"}, "another user data or SSH key"),
        ({"domain_xml": domain_xml() + "\n"}, "another domain definition"),
        # A saved state is bound to the names in it.
        ({"domain_prefix": "other-"}, "another domain definition"),
    ],
)
def test_guests_of_another_make_are_booted_and_it_is_said_why(
    bench: Bench, changes: dict[str, Any], why: str
) -> None:
    former = bench.call()["start"]["checkpoint"]
    assert bench.call(**changes)["start"]["checkpoint"] != former
    assert bench.lines[0] == f"checkpoint {former} does not serve: {why}"
    assert former in bench.kept


def test_guests_of_another_size_are_booted(bench: Bench) -> None:
    former = bench.call()["start"]["checkpoint"]
    assert bench.call(memory_mib=384)["start"]["checkpoint"] != former


@pytest.mark.parametrize("more", [{"number": 3}, {"number": 1, "checkpoint_guests": 3}])
def test_more_guests_than_a_checkpoint_holds_are_booted_anew_in_its_place(
    bench: Bench, more: dict[str, Any]
) -> None:
    """Also where only a later cell asks for so many: all cells of a boot start from one checkpoint."""
    former = bench.call()["start"]["checkpoint"]
    result = bench.call(**more)
    assert bench.lines[0] == f"checkpoint {former} holds 2 guests, and 3 are asked for"
    assert result["checkpoint"]["guests"] == 3
    assert bench.kept == [result["start"]["checkpoint"]]


def test_a_run_that_asks_for_a_fresh_boot_gets_one_and_keeps_to_it(bench: Bench) -> None:
    former = bench.call()["start"]
    since = guests.now()
    fresh = bench.call(since=since)["start"]
    assert "is older than this run" in bench.lines[0]
    assert fresh["booted_at"] > since > former["booted_at"]
    assert bench.call(since=since)["start"]["checkpoint"] == fresh["checkpoint"]


def test_a_host_whose_clock_is_behind_the_run_would_boot_for_ever_and_is_refused(bench: Bench) -> None:
    said = bench.refusal(since="2999-01-01T00:00:00Z")
    assert said.startswith("guests_since is 2999-01-01T00:00:00Z, and this host's clock says 20")
    assert bench.host.booted == []
    assert bench.refusal(since="yesterday").startswith("guests_since is 'yesterday', and must be a UTC time")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("", ""),
        ("2026-01-31T13:00:00Z", "2026-01-31T13:00:00.000000Z"),
        ("2026-01-31T13:00:00", "2026-01-31T13:00:00.000000Z"),
        ("2026-01-31T14:00:00.5+01:00", "2026-01-31T13:00:00.500000Z"),
    ],
)
def test_times_are_compared_as_checkpoints_have_them(text: str, moment: str) -> None:
    assert guests.moment(text) == moment


def test_what_the_testbed_did_not_make_is_left_alone_and_named_when_a_checkpoint_is_made(
    bench: Bench,
) -> None:
    (bench.checkpoints / "mine").mkdir(parents=True)
    bench.call()
    assert f"{bench.checkpoints}/mine is left alone: the testbed did not make it" in bench.lines
    bench.call()
    assert "mine" not in " ".join(bench.lines) and "mine" in bench.kept


# Room, memory, and groups that fit


def test_without_the_disk_space_nothing_is_booted_and_the_sizes_are_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 800 * MIB

    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda _path: Usage)
    # Two disks of 64 MiB, and a checkpoint of two times 256 + 64
    assert bench.call("booted", check=True)["changed"]
    bench.call()
    bench.host.booted.clear()
    Usage.free = 767 * MIB
    assert bench.refusal(boot=2) == (
        f"the file system of {bench.folder}/guests has 767 MiB free, and 768 MiB are to be stored there "
        f"(128 MiB for what 2 guests write in {bench.folder}/guests, "
        f"640 MiB for a checkpoint of 2 guests in {bench.checkpoints}): "
        "make room, `make clean` removes checkpoints, or ask for fewer guests"
    )
    assert bench.host.booted == []
    bench.call()  # needs the disks only
    Usage.free = 127 * MIB
    for state in ("restored", "booted"):
        assert "127 MiB free, and 128 MiB are to be stored there" in bench.refusal(state)


def test_a_disk_that_fills_while_guests_are_saved_is_said_with_the_guest_and_nothing_half_made_is_left(
    bench: Bench,
) -> None:
    bench.host.unsaved = {names(2)[0]}
    said = bench.refusal()
    assert said.startswith("guest02 can't be saved: operation failed: No space left on device (")
    assert said.endswith(f" MiB are free in {bench.checkpoints})")
    assert bench.kept == []
    bench.host.unsaved = set()
    assert bench.call()["start"]["checkpoint"] == bench.kept[0]


def test_loaded_guests_that_cannot_be_saved_leave_their_base(bench: Bench) -> None:
    base = bench.call()["start"]["checkpoint"]
    bench.host.unsaved = {names(1)[0]}
    assert bench.refusal("saved", load={**LOAD, **REPORTS}).startswith("guest01 can't be saved: ")
    assert bench.kept == [base]


def test_what_a_killed_run_left_half_made_is_removed_and_said(bench: Bench) -> None:
    left = bench.checkpoints / "boot1-256mib-0123456789ab.partial"
    (left / "guest01").mkdir(parents=True)
    bench.call()
    assert bench.lines[0] == f"checkpoint {left.name} is thrown away: it was never finished"
    assert not left.exists()


def test_guests_boot_in_groups_that_fit_the_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # 512 MiB are left to the host, and each takes 256 + 160.
    memory = {"MemAvailable": (512 + 2 * 416) * MIB, "MemTotal": 16 * GIB}
    monkeypatch.setattr(guests, "meminfo_bytes", memory.__getitem__)
    result = bench.call(number=2, checkpoint_guests=5)
    assert result["checkpoint"]["guests"] == 5 and len(bench.host.booted) == 5
    assert bench.host.most_at_once == 2


def test_more_guests_than_fit_are_refused_with_how_many_do(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"MemAvailable": (512 + 2 * 416) * MIB, "MemTotal": 16 * GIB}
    monkeypatch.setattr(guests, "meminfo_bytes", memory.__getitem__)
    assert bench.refusal(number=3) == (
        "guests is 3 of 256 MiB: each needs up to 416 MiB of host memory, and 832 MiB are available besides "
        "a reserve, which fits 2: lower guests or guest_memory_mib"
    )
    assert bench.host.booted == [] and not bench.folder.exists()
    assert bench.call(number=3, check=True, overcommit=True)["changed"]
    assert bench.call(number=2)["changed"]


def test_the_memory_of_guests_that_go_counts_as_free_but_never_more_than_is_in_use(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.call(number=4)
    bench.host.resident_kib = 416 << 10
    memory = {"MemAvailable": 512 * MIB, "MemTotal": 16 * GIB}
    monkeypatch.setattr(guests, "meminfo_bytes", memory.__getitem__)
    assert bench.call(number=4, check=True)["changed"]
    assert "which fits 4:" in bench.refusal(number=5)
    memory["MemTotal"] = memory["MemAvailable"] + 2 * 416 * MIB  # merged: each counts a page that all share
    assert "which fits 2:" in bench.refusal(number=4)


@pytest.mark.parametrize(
    ("asked", "accelerator", "cpus", "size"),
    [(0, "tcg", 2, 3), (0, "tcg", 16, 17), (0, "kvm", 2, 8), (5, "tcg", 2, 5), (1, "kvm", 64, 1)],
)
def test_wave_size(asked: int, accelerator: str, cpus: int, size: int) -> None:
    assert guests.wave_size(asked, accelerator, cpus) == size


def test_no_more_guests_boot_at_once_than_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, under_way, most = threading.Lock(), set(), []

    def start(domain: Domain) -> None:
        with lock:
            under_way.add(domain.name())
            most.append(len(under_way))

    def said_by_ssh(_testbed: Any, guest: Any) -> str:
        threading.Event().wait(0.02)
        with lock:
            under_way.discard(guest.domain)
        return ""

    bench.host.at_start = start
    monkeypatch.setattr(guests.Testbed, "said_by_ssh", said_by_ssh)
    bench.call("booted", 6, boot_wave=2)
    assert max(most) == 2 and len(bench.host.names()) == 6


# Guests that fail


def test_a_guest_that_ends_while_it_boots_is_named_with_what_its_console_said(bench: Bench) -> None:
    def print_something(domain: Domain) -> None:
        console = bench.folder / f"guests/{domain.name()[-7:]}/console.log"
        console.write_text("[0.1] first\n\n\x1b[31mKernel panic\x1b[0m\r\n not syncing\r\n\r\n")

    bench.host.at_start = print_something
    bench.host.short_lived = {names(2)[0]}
    assert bench.refusal() == (
        "guest02 ended while it booted; its console's last lines: "
        "[0.1] first | [31mKernel panic[0m | not syncing"
    )
    assert bench.kept == []


def test_a_guest_that_never_answers_is_given_up_and_the_others_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "banner", lambda *_port: False)
    said = bench.refusal("booted", boot_timeout_seconds=0)
    assert said.startswith("guest0")
    assert " did not answer SSH within 0 s (guests_boot_timeout_seconds); its console's last lines: " in said


def test_where_one_guest_fails_the_others_are_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "banner", lambda *_port: False)
    bench.host.short_lived = {names(1)[0]}
    assert bench.refusal("booted", boot_timeout_seconds=3600).startswith("guest01 ended while it booted")


def test_a_guest_that_libvirt_does_not_start_is_named(bench: Bench) -> None:
    bench.host.refused = {names(2)[0]}
    assert bench.refusal("booted") == (
        "guest02 can't be started: internal error: process exited while connecting to monitor"
    )


@pytest.mark.parametrize("state", ["booted", "restored"])
def test_a_qemu_that_is_not_confined_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    if state == "restored":
        bench.call()

    def refuse(_pid: int) -> str:
        raise guests.ConfinementError("QEMU runs as root: set user")

    monkeypatch.setattr(guests, "confinement", refuse)
    assert re.match(r"guest0\d is not confined: QEMU runs as root: set user", bench.refusal(state))


def test_how_the_guests_are_confined_is_said_of_those_that_booted_and_those_restored(bench: Bench) -> None:
    for state in ("booted", "restored"):
        said = bench.call(state)["start"]["confinement"]
        assert said == "user 7, seccomp, AppArmor libvirt (enforce)"


def test_what_a_guest_writes_is_its_users_and_roots_alone(bench: Bench) -> None:
    bench.call()
    bench.call("absent")
    bench.call()
    folder = bench.folder / "guests/guest01"
    seen = folder.stat()
    assert seen.st_mode & 0o777 == 0o700
    assert (seen.st_uid, seen.st_gid) == guests.owner_of(0)
    assert (folder / "seed.iso").stat().st_mode & 0o777 == 0o600
    assert (bench.folder / "guests/source.json").stat().st_mode & 0o777 == 0o600
    # QEMU's user passes here.
    assert (bench.folder / "guests").stat().st_mode & 0o777 == 0o711


def test_the_files_of_a_command_are_private_from_the_beginning(tmp_path: Path) -> None:
    guests.run(["sh", "-c", f"echo > {tmp_path}/made; mkdir {tmp_path}/folder"])
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700


def test_a_checkpoint_is_private_and_qemus(bench: Bench) -> None:
    bench.call()
    paths = [bench.checkpoints, *bench.checkpoints.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}
    folders = {(path.stat().st_uid, path.stat().st_gid) for path in paths if path.is_dir()}
    assert folders == {guests.owner_of(0)}


def test_a_guest_that_qemu_does_not_restore_is_named_with_its_checkpoint_and_what_helps(
    bench: Bench,
) -> None:
    name = bench.call()["start"]["checkpoint"]
    bench.host.refused = {names(1)[0]}
    assert bench.refusal() == (
        f"guest01 can't be restored from the checkpoint {name}, which `make clean` removes: "
        "internal error: process exited while connecting to monitor"
    )
    assert bench.kept == [name]


def test_a_guest_that_ends_when_it_is_restored_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.call()
    bench.host.short_lived = {names(2)[0]}
    monkeypatch.setattr(guests, "banner", lambda port, *_limit: port != PORTS + 2)
    assert bench.refusal() == "guest02 ended when it was restored; its console's last lines: (none)"
    bench.gone = {names(2)[0]: "its QEMU crashed or was killed"}
    assert "guest02 ended when it was restored (its QEMU crashed or was killed); " in bench.refusal()


def test_a_restored_guest_whose_ssh_is_silent_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.call()
    limits: list[float] = []

    def silent(_port: int, limit_seconds: float, _given_up: Any) -> bool:
        limits.append(limit_seconds)
        return False

    monkeypatch.setattr(guests, "banner", silent)
    said = bench.refusal(number=1, answer_timeout_seconds=0.1)
    assert said == (
        "guest01 was restored and its SSH did not answer within 0.1 s (guests_answer_timeout_seconds)"
    )
    assert max(limits) <= 0.1


def test_all_guests_that_do_not_come_to_the_barrier_are_named(bench: Bench) -> None:
    bench.call(number=3)
    bench.silent = {"guest01": "it gave no answer", "guest03": "it ended"}
    assert bench.refusal(number=3) == (
        "not all guests came to the barrier: guest01: it gave no answer; guest03: it ended"
    )


def test_guests_are_removed_over_as_many_connections_as_libvirt_needs_to_serve_all_at_once(
    bench: Bench,
) -> None:
    bench.call(number=11)
    bench.connections = 0
    bench.call("absent")
    assert (bench.connections, bench.host.names()) == (3, [])


@pytest.mark.parametrize(
    ("state", "when"), [("booted", "while it booted"), ("restored", "when it was restored")]
)
def test_a_guest_that_is_paused_since_its_disk_is_full_is_named_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, state: str, when: str
) -> None:
    bench.call()
    paused = names(2)[0]
    monkeypatch.setattr(guests, "banner", lambda port, *_limits: port == PORTS + 1)
    monkeypatch.setattr(guests, "why_stopped", lambda domain: "full" if domain == paused else "")
    assert bench.refusal(state) == f"guest02 stopped {when}: full"


def test_a_patient_wait_for_a_banner_ends_when_the_guest_has_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guests, "BANNER_LOOK_SECONDS", 0.02)
    looks = iter(["", "", "it stopped"])
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not guests.banner(silent.getsockname()[1], FOREVER_SECONDS, lambda: next(looks))
    assert next(looks, None) is None


def test_a_guest_that_cannot_be_ended_is_named(bench: Bench) -> None:
    bench.call()
    bench.host.immortal = {names(2)[0]}
    assert bench.refusal("absent") == "guest02 can't be ended: failed to kill: Device or resource busy"


def test_a_guest_that_libvirt_is_busy_with_is_ended_when_it_can_be(bench: Bench) -> None:
    bench.call()
    bench.host.busy = {names(2)[0]: guests.TIMES_TO_END - 1}
    bench.call("absent")
    assert bench.host.names() == [] and not (bench.folder / "guests").exists()


@pytest.mark.parametrize(
    ("is_unborn", "hint"),
    [
        (False, ""),
        (
            True,
            "; it has no process, and libvirt holds it: stop libvirtd, remove /x, and start libvirtd again",
        ),
    ],
)
def test_a_guest_that_libvirt_stays_busy_with_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_unborn: bool, hint: str
) -> None:
    bench.call()
    bench.host.busy = {names(2)[0]: guests.TIMES_TO_END}
    monkeypatch.setattr(guests, "unborn", lambda: {names(2)[0]: Path("/x")} if is_unborn else {})
    assert bench.refusal("absent") == (
        f"guest02 can't be ended: Timed out during operation: cannot acquire state change lock{hint}"
    )


def test_a_guest_that_ends_while_it_is_removed_is_no_failure(bench: Bench) -> None:
    bench.call()
    ended = bench.host.lookupByName(names(1)[0])
    testbed = guests.Testbed({**DEFAULTS, "directory": str(bench.folder)}, bench.host, print)
    own = testbed.own_domains()
    bench.host.gone(ended)
    testbed.remove(own)
    assert bench.host.names() == [] and not (bench.folder / "guests/guest01").exists()


# Guests that run already


def test_guests_that_run_are_kept_and_those_that_are_missing_restored_beside_them(bench: Bench) -> None:
    bench.call(number=4)
    bench.host.gone(bench.host.lookupByName(names(2)[0]))
    kept = {domain.name(): domain for domain in bench.host.running}
    bench.host.restored.clear()
    result = bench.call(number=3, keep_running=True)
    assert bench.host.restored == names(2) and bench.host.names() == names(1, 2, 3)
    assert bench.host.lookupByName(names(1)[0]) is kept[names(1)[0]]
    assert list(result["barrier"]) == ["guest02"]
    assert not bench.call(number=3, keep_running=True)["changed"]


def test_guests_of_another_checkpoint_are_not_added_to(bench: Bench) -> None:
    former = bench.call(number=1)["start"]["checkpoint"]
    running = bench.host.names()
    said = (
        f"the guests that run come from {former}, which is not the one that serves, so none can be added to "
        "them: remove them first"
    )
    assert bench.refusal(number=2, keep_running=True) == said  # it holds one
    bench.call(number=1, boot=2)
    assert "the guests that run come from boot2-" in bench.refusal(number=1, boot=1, keep_running=True)
    assert bench.host.names() == running
    bench.call("absent")
    bench.call("booted", 1)
    assert "come from no checkpoint" in bench.refusal(number=2, keep_running=True)


def test_what_cannot_be_saved_is_refused(bench: Bench) -> None:
    nothing = "no guests of this testbed run that could be saved: restore or boot them first"
    assert bench.refusal("saved") == nothing
    name = bench.call()["start"]["checkpoint"]
    assert bench.refusal("saved") == f"these guests are kept in the checkpoint {name} already"
    assert bench.refusal("saved", load=LOAD).startswith("guests_load has no reports: ")
    assert bench.refusal("saved", 3, load={**LOAD, **REPORTS}) == "guest03 does not run and can't be saved"
    assert bench.host.names() == names(1, 2) and bench.kept == [name]
    bench.call("absent")
    assert bench.refusal("saved") == nothing
    bench.call("booted")
    assert bench.refusal("saved", load={**LOAD, **REPORTS}).startswith("guests that booted are kept before")
    assert bench.refusal(load={"name": "random_fill"}) == "guests_load has no reserve_mib"


def test_guests_that_failed_to_boot_are_not_those_that_ran_before_them(bench: Bench) -> None:
    bench.call()
    bench.host.refused = {names(2)[0]}
    bench.refusal("booted")
    assert bench.refusal("saved", 1).startswith("no guests of this testbed run that could be saved")


# SSH: the testbed's own host keys, and no others


def trusted(bench: Bench) -> dict[str, str]:
    """Guest -> what ssh takes for its host key."""
    lines = (bench.folder / "guests/known_hosts").read_text().splitlines()
    return {name: key for name, _, key in (line.partition(" ") for line in lines)}


def test_a_guest_gets_its_host_key_with_the_seed_and_that_one_is_trusted(bench: Bench) -> None:
    bench.call("booted")
    keys = {name: made[-1] for name, made in bench.host_keys.items()}
    assert len(set(keys.values())) == 2 and trusted(bench) == keys
    assert bench.user_data["guest02"] == {
        "hostname": "guest02",
        "ssh": "ssh-ed25519 AAAA",  # without its comment, whatever that is
        "ssh_keys": {
            "ed25519_private": f"private\nof {keys['guest02']}\n",
            "ed25519_public": keys["guest02"],
        },
    }
    left = sorted(path.name for path in (bench.folder / "guests/guest02").iterdir())
    assert left == ["overlay.qcow2", "seed.iso"]
    for name in ("known_hosts", "ssh_config", "id_ed25519"):
        assert (bench.folder / "guests" / name).stat().st_mode & 0o777 == 0o600


def test_the_roles_user_data_takes_the_keys() -> None:
    text = (ROOT / "roles/guests/templates/user-data.j2").read_text()
    environment = Environment()  # noqa: S701 -- as Ansible renders it
    environment.filters["b64encode"] = lambda _text: "eA=="
    template = environment.from_string(text).render(lookup=lambda *_names: "x")
    private = '"-----BEGIN OPENSSH PRIVATE KEY-----\\nAAAA\\n"'
    values = {
        "name": "guest01",
        "ssh_public_key": '"ssh-ed25519 BBBB"',
        "host_private_key": private,
        "host_public_key": '"ssh-ed25519 CCCC"',
    }
    content = yaml.safe_load(guests.filled_in("user_data", template, values))
    assert content["ssh_keys"] == {
        "ed25519_private": "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n",
        "ed25519_public": "ssh-ed25519 CCCC",
    }
    assert content["users"][0]["ssh_authorized_keys"] == ["ssh-ed25519 BBBB"]


def test_restored_guests_are_known_by_the_host_key_of_their_boot(bench: Bench) -> None:
    bench.call(boot=1)
    bench.call(boot=2)
    first, second = ({name: made[boot] for name, made in bench.host_keys.items()} for boot in (0, 1))
    assert first != second and trusted(bench) == second
    bench.call("absent")
    assert not (bench.folder / "guests").exists()
    again = bench.call(boot=1)
    assert "boot" not in again["times"], "another host key must not make another checkpoint"
    assert trusted(bench) == first
    assert set(again["boots"]["guest01"]) == {"seconds", "cpu_seconds"}


def test_guests_that_were_saved_as_they_booted_or_loaded_keep_their_host_key(bench: Bench) -> None:
    bench.call("booted")
    bench.call("saved")
    keys = {name: made[0] for name, made in bench.host_keys.items()}
    bench.call("absent")
    bench.call()
    bench.call("saved", load={**LOAD, **REPORTS})
    bench.call("absent")
    assert bench.call(load=LOAD)["start"]["loaded"] and trusted(bench) == keys


def test_guests_that_boot_in_groups_are_all_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"MemAvailable": (512 + 2 * 416) * MIB, "MemTotal": 16 * GIB}
    monkeypatch.setattr(guests, "meminfo_bytes", memory.__getitem__)
    bench.call(number=1, checkpoint_guests=3)
    bench.call("absent")
    bench.call(number=2)
    assert trusted(bench) == {name: bench.host_keys[name][0] for name in ("guest01", "guest02")}


def test_guests_without_a_known_host_key_are_not_kept(bench: Bench) -> None:
    bench.call("booted")
    known = bench.folder / "guests/known_hosts"
    known.write_text(known.read_text().splitlines()[0] + "\n")
    (name,) = {"guest01", "guest02"} - set(trusted(bench))
    assert bench.refusal("saved") == f"{known} has no host key of {name}: boot anew"


def test_ssh_is_told_to_trust_nothing_else(bench: Bench) -> None:
    bench.call("booted")
    config = bench.folder / "guests/ssh_config"
    said = subprocess.run(["ssh", "-F", config, "-G", "guest02"], check=True, capture_output=True, text=True)
    options = dict(line.split(" ", 1) for line in said.stdout.splitlines())
    assert {
        "hostname": "127.0.0.1",
        "port": str(PORTS + 2),
        "user": "root",
        "hostkeyalias": "guest02",
        "stricthostkeychecking": "true",
        "userknownhostsfile": str(bench.folder / "guests/known_hosts"),
        "globalknownhostsfile": "/dev/null",
        "identityfile": str(bench.folder / "guests/id_ed25519"),
        "batchmode": "yes",
        "updatehostkeys": "false",
        "checkhostip": "no",
    }.items() <= options.items()


def test_what_ssh_says_to_another_host_key_is_told_when_a_guest_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Host key verification failed."
    monkeypatch.setattr(guests.Testbed, "said_by_ssh", lambda _testbed, _guest: said)
    assert "did not answer SSH within 0 s (guests_boot_timeout_seconds; ssh said: Host key verification " in (
        bench.refusal("booted", 1, boot_timeout_seconds=0)
    )


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", ""),
        ("echo noise >&2; exit 0", ""),
        ("echo one >&2; echo Host key verification failed. >&2; exit 255", "Host key verification failed."),
        ("exit 255", "exit code 255"),
    ],
)
def test_the_readiness_check_asks_ssh_with_the_testbeds_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\n{script}\n")
    ssh.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    testbed = guests.Testbed({**DEFAULTS, "directory": str(tmp_path)}, None, print)
    assert testbed.said_by_ssh(testbed.guests(1)[0]) == said
    assert (tmp_path / "asked").read_text() == f"-F {tmp_path}/guests/ssh_config guest01 true\n"


# What is removed is the testbed's own


def test_a_folder_that_the_testbed_did_not_make_is_neither_used_nor_removed(bench: Bench) -> None:
    mine = bench.folder / "guests/guest01"
    mine.mkdir(parents=True)
    (mine / "disk").write_text("mine")
    assert bench.refusal() == (
        f"{bench.folder}/guests is there, and the testbed did not make it (it has no .ksm-testbed): "
        "move it away, or set guests_directory"
    )
    assert not bench.call("absent")["changed"]
    assert (mine / "disk").read_text() == "mine" and bench.host.booted == []


def test_a_link_in_the_place_of_the_guests_folder_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/guest01").mkdir(parents=True)
    bench.folder.mkdir()
    (bench.folder / "guests").symlink_to(tmp_path / "elsewhere")
    assert "the testbed did not make it" in bench.refusal("booted")
    bench.call("absent")
    assert (tmp_path / "elsewhere/guest01").is_dir()


def test_a_link_in_the_place_of_a_guests_folder_goes_and_what_it_names_stays(
    bench: Bench, tmp_path: Path
) -> None:
    bench.call()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("mine")
    folder = bench.folder / "guests/guest01"
    folder.rename(tmp_path / "aside")
    folder.symlink_to(tmp_path / "elsewhere")
    bench.call("absent")
    assert (tmp_path / "elsewhere/file").read_text() == "mine" and not folder.is_symlink()


@pytest.mark.parametrize("name", ["..", "guest01/../../..", "/", "guest1", "guest٠١", ""])
def test_a_domain_whose_metadata_names_no_guest_is_somebody_elses(bench: Bench, name: str) -> None:
    bench.call()
    metadata = f'<metadata><t:guest xmlns:t="urn:ksm-testbed" name="{name}"/></metadata>'
    foreign = Domain(bench.host, f"<domain><name>other</name>{metadata}</domain>")
    bench.host.running.append(foreign)
    bench.call("absent")
    assert bench.host.running == [foreign]


# What is refused before anything is changed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory_mib": 127}, "guest_memory_mib is 127: a guest needs at least 128 MiB to boot"),
        ({"image": {}}, "guests_image has no disk and no digest; the role guest_image gives it"),
        (
            {"ssh_port_base": 65534},
            "guest02 would have the port 65536: lower guest_ssh_port_base, the last port is 65535",
        ),
        ({"domain_xml": "<domain>$nothing</domain>"}, "domain_xml cannot be filled in: 'nothing'; a dollar"),
        ({"domain_xml": "<domain>5 $ a day</domain>"}, "domain_xml cannot be filled in: Invalid placeholder"),
        (
            {"domain_prefix": "../ksm-"},
            "guests_domain_prefix is '../ksm-': allowed is 1 to 100 letters, digits, dots",
        ),
        ({"directory": "/srv/a</name>"}, "guests_directory is '/srv/a</name>': allowed is an absolute path"),
        ({"directory": "/srv/../etc"}, "guests_directory is '/srv/../etc': allowed is an absolute path"),
        ({"partition": "/a<b"}, "guests_partition is '/a<b': allowed is an absolute path"),
        ({"image": {**IMAGE, "kernel": "/a&b"}}, "guests_image's kernel is '/a&b': allowed is an absolute"),
        ({"user_data": "$HOME"}, "user_data cannot be filled in: 'HOME'; a dollar sign is written $$"),
    ],
)
@pytest.mark.parametrize("state", ["restored", "booted"])
def test_what_cannot_be_had_is_refused_and_what_runs_is_kept(
    bench: Bench, state: str, changes: dict[str, Any], said: str
) -> None:
    assert bench.refusal(state, **changes).startswith(said)
    assert bench.host.booted == []


def test_a_folder_too_long_for_a_socket_is_refused(bench: Bench) -> None:
    folder = bench.folder / ("x" * 100)
    said = bench.refusal(directory=str(folder))
    assert said == (
        f"{folder}/guests/guest01/channel is longer than the 107 bytes of a socket's name: "
        "set guests_directory"
    )


def test_a_foreign_domain_of_the_same_name_is_refused_and_untouched(bench: Bench) -> None:
    foreign = Domain(bench.host, FOREIGN)
    bench.host.running.append(foreign)
    for state in ("restored", "booted"):
        assert bench.refusal(state) == (
            "a domain named ksm-testbed-guest02 exists that this testbed did not make: "
            "rename it, or set guests_domain_prefix"
        )
    assert bench.host.running == [foreign] and not bench.folder.exists()


def test_a_port_in_use_is_refused_by_number(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        base = server.getsockname()[1] - 1
        for state in ("restored", "booted"):
            assert bench.refusal(state, 1, ssh_port_base=base) == (
                f"port {base + 1} of 127.0.0.1, meant for guest01, is in use: "
                "end what uses it, or set guest_ssh_port_base"
            )
    assert bench.call(number=1, ssh_port_base=base)["changed"]


def test_a_port_that_a_guest_which_goes_holds_is_free_and_another_one_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.call(number=1)
    monkeypatch.setattr(guests, "port_is_free", lambda _port: False)
    assert bench.call(number=1, check=True)["changed"]
    assert bench.refusal(number=1, ssh_port_base=PORTS + 10).startswith(f"port {PORTS + 11} of 127.0.0.1")
    # The port of a guest that stays is not free for another one.
    said = bench.refusal(number=2, keep_running=True, ssh_port_base=PORTS - 1)
    assert said.startswith(f"port {PORTS + 1} of 127.0.0.1, meant for guest02, is in use")


def test_the_ports_of_all_guests_of_a_new_checkpoint_are_looked_at_before_one_boots(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "port_is_free", lambda port: port != PORTS + 3)
    assert "meant for guest03, is in use" in bench.refusal(number=2, checkpoint_guests=3)
    assert bench.host.booted == []


# What is removed


def test_absent_removes_the_own_guests_and_leaves_foreign_domains_and_checkpoints(bench: Bench) -> None:
    bench.call()
    foreign = Domain(bench.host, FOREIGN.replace("ksm-testbed-guest02", "other"))
    bench.host.running.append(foreign)
    result = bench.call("absent")
    assert result["changed"] and result["removed"] == [] and "msg" not in result
    assert result["diff"]["before"] == "ksm-testbed-guest01\nksm-testbed-guest02\n"
    assert bench.host.running == [foreign] and len(bench.kept) == 1
    assert not (bench.folder / "guests").exists()
    assert not bench.call("absent")["changed"]


def test_guests_of_another_prefix_are_this_testbeds_too(bench: Bench) -> None:
    bench.call(domain_prefix="former-")
    bench.call("absent")
    assert bench.host.names() == []


def test_a_domain_that_is_defined_for_good_is_undefined(bench: Bench) -> None:
    bench.call(number=1)
    domain = bench.host.running[0]
    domain.persistent = True
    bench.call("absent")
    assert not domain.persistent and bench.host.running == []


def test_absent_with_checkpoints_removes_them_all_and_names_their_sizes(bench: Bench) -> None:
    base = bench.call()["start"]["checkpoint"]
    loaded = bench.call("saved", load={**LOAD, **REPORTS})["checkpoint"]["name"]
    memory = bench.checkpoints / base / "guest01/memory"
    memory.write_bytes(bytes(3 * MIB))
    unfinished = bench.checkpoints / "boot2-256mib-0123456789ab.partial"
    unfinished.mkdir()
    (bench.checkpoints / "mine").mkdir()
    before = bench.tree()
    removed = [f"{base} (3 MiB)", f"{loaded} (0 MiB)", f"{unfinished.name} (0 MiB)"]
    foreseen = bench.call("absent", check=True, checkpoints=True)
    assert foreseen["changed"] and foreseen["removed"] == removed and bench.tree() == before
    result = bench.call("absent", checkpoints=True)
    assert result["changed"] and result["removed"] == removed
    assert result["msg"] == (
        f"checkpoints removed: {', '.join(removed)}; left alone, since the testbed did not make them: mine"
    )
    assert bench.kept == ["mine"]
    again = bench.call("absent", checkpoints=True)
    assert not again["changed"] and again["msg"].startswith("checkpoints removed: none")


@pytest.mark.skipif(importlib.util.find_spec("libvirt") is not None, reason="this Python has libvirt")
def test_a_host_without_libvirt_has_no_guests_to_remove_and_can_have_none(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints/boot1-256mib-0123456789ab"
    folder.mkdir(parents=True)
    result = run(MODULE, state="absent", directory=str(tmp_path), checkpoints=True)
    assert result["changed"] and result["removed"] == ["boot1-256mib-0123456789ab (0 MiB)"]
    assert not folder.exists()
    asked = dict.fromkeys(("domain_xml", "user_data", "ssh_private_key", "ssh_public_key"), "x")
    result = run(MODULE, guests=1, image=IMAGE, memory_mib=256, accelerator="tcg", **asked)
    assert result["failed"] and result["msg"].endswith("run the kvm_host role first")
    result = run(MODULE, guests=0, image=IMAGE, memory_mib=256, accelerator="tcg", **asked)
    assert result["msg"] == "guests is 0: it needs at least one guest"


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """A libvirt that does not answer; a name in the set, and it does."""
    answering: set[str] = set()

    def attempt(uri: str) -> Any:
        if not answering:
            raise LIBVIRT.libvirtError("Failed to connect socket")
        return SimpleNamespace(uri=uri, close=lambda: None)

    monkeypatch.setattr(guests, "libvirt", LIBVIRT)
    monkeypatch.setattr(LIBVIRT, "open", attempt, raising=False)
    monkeypatch.setattr(LIBVIRT, "registerErrorHandler", lambda *_arguments: None, raising=False)
    monkeypatch.setattr(guests, "bring_up", answering.add)
    return answering


@pytest.mark.parametrize(("state", "check_mode"), [("restored", False), ("saved", False), ("absent", True)])
def test_a_libvirt_that_does_not_answer_is_said_in_one_sentence(
    answering: set[str], state: str, check_mode: bool
) -> None:
    with (
        pytest.raises(guests.GuestError) as refused,
        guests.connected("qemu:///system", state, check_mode),
    ):
        pass
    assert str(refused.value) == (
        "libvirt does not answer at qemu:///system: Failed to connect socket; run the kvm_host role first"
    )
    assert not answering


def test_a_libvirt_that_died_is_started_again_for_its_guests_to_be_removed(answering: set[str]) -> None:
    with guests.connected("qemu:///system", "absent") as connection:
        assert connection.uri == "qemu:///system"
    assert answering == {"qemu:///system"}


# Details


@pytest.mark.parametrize(
    ("xml", "guest"),
    [
        ('<metadata><a:guest xmlns:a="urn:ksm-testbed" name="guest07"/></metadata>', "guest07"),
        ('<metadata><a:guest xmlns:a="urn:other" name="guest07"/></metadata>', None),
        ('<metadata><a:guest xmlns:a="urn:ksm-testbed" name="../x"/></metadata>', None),
        ('<metadata><a:guest xmlns:a="urn:ksm-testbed"/></metadata>', None),
        ("<name>ksm-testbed-guest01</name>", None),
    ],
)
def test_only_this_testbeds_metadata_makes_a_domain_ones_own(xml: str, guest: str | None) -> None:
    assert guests.guest_of(f"<domain>{xml}</domain>") == guest


def parsed(xml: str) -> ElementTree.Element:
    return ElementTree.fromstring(xml)  # noqa: S314 -- this test's own


def elements(xml: str) -> list[Any]:
    """What a domain says, whatever the order."""
    return sorted(
        (node.tag, sorted(node.attrib.items()), (node.text or "").strip()) for node in parsed(xml).iter()
    )


def guest_at(port: int) -> Any:
    return guests.Guest("guest01", "ksm-testbed-guest01", port, Path("/new/guests/guest01"))


def test_a_saved_guest_gets_this_calls_port_and_partition_and_keeps_all_else(bench: Bench) -> None:
    bench.call(number=1, partition="/old.slice")
    saved = bench.host.running[0].xml
    assert guests.ssh_port_of(saved) == PORTS + 1 and "/old.slice" in saved
    changed = guests.adapted(saved, guest_at(50001), "/new.slice")
    assert guests.ssh_port_of(changed) == 50001
    assert [node.text for node in parsed(changed).findall("resource/partition")] == ["/new.slice"]
    assert guests.guest_of(changed) == "guest01"
    back = guests.adapted(changed, guest_at(PORTS + 1), "/old.slice")
    assert elements(back) == elements(saved) != elements(changed)
    assert parsed(guests.adapted(saved, guest_at(1), "")).find("resource") is None


def test_the_port_and_the_partition_make_no_other_checkpoint(bench: Bench) -> None:
    first = bench.call()["start"]["checkpoint"]
    bench.call("absent")
    moved = bench.call(ssh_port_base=PORTS + 500, partition="/envelope")["start"]["checkpoint"]
    assert moved == first
    assert guests.ssh_port_of(bench.host.running[0].xml) in (PORTS + 501, PORTS + 502)


def test_the_guests_key_is_private(bench: Bench) -> None:
    bench.call(number=1)
    path = bench.folder / "guests/id_ed25519"
    assert path.read_text() == "private" and path.stat().st_mode & 0o777 == 0o600


def test_a_guest_is_cut_off_from_all_but_the_forwarded_port_of_the_loopback() -> None:
    root = ElementTree.fromstring(domain_xml())  # noqa: S314 -- the role's own
    arguments = [one.get("value", "") for one in root.iter(f"{{{guests.QEMU_URI}}}arg")]
    networks = [words for option, words in itertools.pairwise(arguments) if option == "-netdev"]
    assert networks == ["user,id=testbed,restrict=on,hostfwd=tcp:127.0.0.1:$ssh_port-:22"]
    assert list(root.iter("interface")) == []


def test_the_guests_key_is_in_no_answer_of_the_module() -> None:
    given = {"domain_xml": "<domain/>", "user_data": "", "image": IMAGE, "memory_mib": 256}
    keys = {"ssh_private_key": "secret-7f3a", "ssh_public_key": "public-7f3a"}
    answer = run(MODULE, guests=0, accelerator="tcg", **given, **keys)
    assert answer["failed"] and "public-7f3a" in str(answer)
    assert "secret-7f3a" not in str(answer)


def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(guests.GuestError, match=r"^sh failed: two \| three \| four$"):
        guests.run(["sh", "-c", "printf 'one\\ntwo\\nthree\\nfour\\n' >&2; exit 1"])
    with pytest.raises(guests.GuestError, match=r"^no-such-command is not installed; run the kvm_host role"):
        guests.run(["no-such-command"])
    assert guests.run(["echo", "said"]) == "said\n"


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


def test_guests_stop_compacting_their_memory_before_they_answer() -> None:
    template = (ROOT / "roles/guests/templates/user-data.j2").read_text()
    commands = yaml.safe_load(re.sub(r"\{\{.*?\}\}", "x", template))["runcmd"]
    channel = next(place for place, words in enumerate(commands) if "--unit=testbed-channel" in words)
    for knob in ("compaction_proactiveness", "compact_unevictable_allowed"):
        assert commands.index(f"echo 0 > /proc/sys/vm/{knob}") < channel
