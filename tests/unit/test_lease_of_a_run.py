"""The lease of a run: playbooks that take it, renew it and lose it, on hosts that are all this machine."""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from planned import RUN_ID
from playing import play_book, play_command, play_environment
from plugin_files import ROOT, load
from small_project import HEED_SIGNALS
from test_put_right import Host as Stubs
from waiting import FOREVER_SECONDS, wait_until

from analysis.plan.policies import read_policy
from analysis.progress.lease import LEAST_SECONDS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="who takes a lease is root")
lease_files = load("plugins/module_utils/lease.py")
MEASURING = "Measure the cells"
RIGHT = ["guests", "ksm", "envelope"]


class Host:
    """Hosts whose modules only say that they were called, and playbooks on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stubs = Stubs(folder)
        self.environment = self.stubs.environment("")
        for name in ("check_host", "guests"):
            (folder / f"actions/{name}.py").symlink_to(ROOT / f"plugins/action/{name}.py")
        self.place = folder / "leases"
        self.runs: list[subprocess.Popen[str]] = []

    def lease(self, host: str = "localhost") -> Any:
        return lease_files.Lease(self.place / host)

    def book(self, tasks: list[dict[str, Any]], play: str = MEASURING) -> Path:
        path = self.folder / f"playbooks/{play.split(maxsplit=1)[0]}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([{"name": play, "hosts": "all", "gather_facts": False, "tasks": tasks}]))
        return path

    def put_right(self, **arguments: Any) -> dict[str, Any]:
        given = {"policies": f"{self.folder}/policies", "run_root": f"{self.folder}/run"}
        snapshot = f"{self.folder}/snapshot.json"
        return {"name": "Put right", "put_right": {**given, "snapshot": snapshot, **arguments}}

    def start(
        self, tasks: list[dict[str, Any]], *words: str, after: Sequence[dict[str, Any]] = ()
    ) -> subprocess.Popen[str]:
        """A run that has put its host right, and then waits for the file `end`."""
        wait = {"name": "Wait", "ansible.builtin.raw": f"until test -e {self.folder}/end; do sleep 0.1; done"}
        book = self.book([{"check_host": {}}, self.put_right(begins=True), *tasks, wait, *after])
        with (self.folder / "said").open("w") as said:
            run = subprocess.Popen(
                [*HEED_SIGNALS, *play_command(book, self.place, "-e", f"run_id={RUN_ID}", *words)],
                env=play_environment(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                text=True,
                start_new_session=True,
            )
        self.runs.append(run)
        wait_until(lambda: self.called == RIGHT or run.poll() is not None, "the host is put right")
        assert run.poll() is None, self.said()
        return run

    def play(self, book: Path, *words: str, hosts: str = "localhost,") -> tuple[int, str]:
        directory = json.dumps({"lease_directory": f"{self.place}/{{{{ inventory_hostname }}}}"})
        code, out = play_book(book, "-e", directory, *words, hosts=hosts, environment=self.environment)
        return code, " ".join(out.split())

    def said(self) -> str:
        return (self.folder / "said").read_text()

    @property
    def called(self) -> list[str]:
        return [line.split()[0] for line in self.stubs.called]

    def until_free(self) -> None:
        wait_until(lambda: not self.lease().is_held(), "the lease is free")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    (tmp_path / "end").touch()
    for run in made.runs:
        run.kill()
        run.wait()
    made.until_free()


def test_a_second_run_is_refused_and_a_run_that_ends_leaves_no_lease(host: Host) -> None:
    run = host.start([])
    second = host.book([{"check_host": {}}, {"ansible.builtin.raw": "touch changed"}], play="Second")
    code, out = host.play(second)
    assert code == 2, out
    assert f"Measure {RUN_ID}, process {run.pid} there" in out
    code, out = host.play(second, "--check")
    assert "[WARNING]: localhost: this host is in use by" in out
    assert code == 0, out
    assert not (second.parent / "changed").exists()
    (host.folder / "end").touch()
    assert run.wait(FOREVER_SECONDS) == 0, host.said()
    # It owed a putting right, and ended without one: here its always section is missing.
    host.until_free()
    assert host.called == RIGHT * 2


def test_a_run_that_puts_right_at_its_end_owes_nothing_and_the_next_one_finds_the_host_free(
    host: Host,
) -> None:
    (host.folder / "end").touch()
    run = [{"check_host": {}}, host.put_right(begins=True), host.put_right(keeps_guests=True)]
    for _ in range(2):
        code, out = host.play(host.book(run))
        assert code == 0, out
        assert not host.place.joinpath("localhost").exists()
    assert host.called == [*RIGHT, "ksm"] * 2


def test_a_controller_that_is_killed_is_renewed_for_no_more_and_its_host_puts_itself_right(
    host: Host,
) -> None:
    run = host.start([])
    token = lease_files.read(host.lease().owner)["token"]
    renewal = host.lease().renewal(token)
    os.utime(renewal, (0, 0))
    wait_until(lambda: renewal.stat().st_atime > 0, "the lease is renewed")
    run.send_signal(signal.SIGKILL)
    run.wait()
    # Its worker is at work still, and so the lease is held.
    assert lease_files.read(host.lease().owner)["token"] == token
    assert host.called == RIGHT
    (host.folder / "end").touch()
    host.until_free()
    assert host.called == RIGHT * 2
    assert lease_files.read(host.lease().ended)["left"] == []
    # Nothing is owed twice, and what a person may read goes with the next run.
    code, out = host.play(host.book([host.put_right()], play="Teardown"))
    assert code == 0, out
    assert host.called == RIGHT * 3
    assert not host.place.joinpath("localhost").exists()


def test_a_teardown_is_refused_while_the_run_lives_and_ends_it_where_that_is_asked(host: Host) -> None:
    run = host.start([{"name": "Again", "guests": {"state": "absent"}}])
    teardown = host.book([host.put_right()], play="Teardown")
    wait_until(lambda: len(host.called) == 4, "the run is at its guests")
    code, out = host.play(teardown)
    assert code == 2, out
    assert "localhost: this host is in use by" in out
    code, out = host.play(teardown, "-e", "lease_end=true")
    assert code == 0, out
    # By the holder, as it was ended, then by the teardown
    assert host.called == [*RIGHT, "guests", *RIGHT, *RIGHT]
    (host.folder / "end").touch()
    assert run.wait(FOREVER_SECONDS) == 0


def test_a_run_that_has_lost_its_lease_touches_its_guests_no_more(host: Host) -> None:
    run = host.start([], after=[{"name": "Again", "guests": {"state": "absent"}}])
    code, out = host.play(host.book([host.put_right()], play="Teardown"), "-e", "lease_end=true")
    assert code == 0, out
    called = host.called
    (host.folder / "end").touch()
    assert run.wait(FOREVER_SECONDS) == 2
    assert "localhost: this run has lost its lease" in " ".join(host.said().split())
    assert host.called == called


def test_the_teardown_after_an_interruption_has_the_leases_of_its_run(host: Host) -> None:
    host.book([host.put_right()], play="teardown")
    run = host.start([], "-e", "ansible_connection=local")
    run.send_signal(signal.SIGINT)
    assert run.wait(FOREVER_SECONDS) != 0
    assert host.called == RIGHT * 2, host.said()
    assert "in use" not in host.said()
    # Neither owed nor held
    assert not host.lease().folder.exists()


def test_the_lease_of_a_run_that_is_certainly_gone_is_taken_over(host: Host, tmp_path: Path) -> None:
    """Whatever renewed it is gone with it, as after the machine's processes were all killed."""
    gone = subprocess.Popen(["true"])
    process = {**load("analysis/progress/lease.py")._process(), "pid": gone.pid, "began": "1"}
    gone.wait()
    owner = {"by": "ann@here", "run": "r", **process, "token": "aaaa", "seconds": 3600}
    lease_files.Lease(host.place).folder.mkdir()
    load("plugins/modules/host_lease.py").take(host.lease(), owner, True, tmp_path / "none", 60)
    code, out = host.play(host.book([host.put_right()], play="Teardown"))
    assert code == 0, out
    assert host.called == RIGHT


def test_where_one_host_is_in_use_provisioning_changes_none(host: Host) -> None:
    for role in ("debian_host", "kvm_host", "guest_image", "census"):
        tasks = host.folder / "roles" / role / "tasks"
        tasks.mkdir(parents=True)
        for name in ("main", "install"):
            touch = {"ansible.builtin.raw": f"touch {host.folder}/changed.{{{{ inventory_hostname }}}}"}
            (tasks / f"{name}.yml").write_text(json.dumps([touch]))
    host.environment["ANSIBLE_ROLES_PATH"] = str(host.folder / "roles")
    (host.folder / "hosts").write_text("[hypervisors]\nhv1\nhv2\n")
    book, hosts = ROOT / "playbooks/provision.yml", str(host.folder / "hosts")
    variables = [
        *("-e", "guests=2 guest_ssh_port_base=2000 guest_memory_mib=256 accelerator=tcg"),
        *("-e", "image_source=build image_checksum=none census=false survey_sample=0 ansible_become=false"),
    ]
    host.place.mkdir()
    owner = {"by": "ann@here", "run": "r", "pid": 4711, "token": "aaaa", "seconds": 3600}
    load("plugins/modules/host_lease.py").take(host.lease("hv2"), owner, True, host.folder / "none", 60)
    code, out = host.play(book, *variables, hosts=hosts)
    assert code != 0, out
    assert "hv2: this host is in use by ann@here" in out
    assert list(host.folder.glob("changed.*")) == []
    assert not host.lease("hv1").folder.exists()
    host.lease("hv2").renewal("aaaa").unlink()
    wait_until(lambda: not host.lease("hv2").is_held(), "the lease is free")
    code, out = host.play(book, *variables, hosts=hosts)
    assert code == 0, out
    assert sorted(path.suffix for path in host.folder.glob("changed.*")) == [".hv1", ".hv2"]


REFUSES = """#!/usr/bin/python3
from ansible.module_utils.basic import AnsibleModule
spec = {"knobs": {"type": "dict"}, "optional": {"type": "list"}, "thp": {"type": "dict"}, "snapshot": {}}
flags = {"unmerge": {"type": "bool"}, "reset": {"type": "bool"}}
module = AnsibleModule({**spec, **flags}, supports_check_mode=True)
given = module.params
if module.check_mode and all(given[name] for name in flags):
    module.fail_json(msg=f"{', '.join(given['knobs'])} cannot be set, says {given['snapshot']}")
module.exit_json(changed=False)
"""


def test_a_policy_that_the_host_refuses_now_is_named_before_the_lease_is_taken(host: Host) -> None:
    """Asked as in a cell: such as for a knob that the kernel refuses while others have pages merged."""
    (host.folder / "library/ksm.py").write_text(REFUSES)
    policy = read_policy("ksm").to_json() | {"knobs": {"max_page_sharing": 9}}
    check = {"check_host": {"policies": {"wide": policy}}, "vars": {"ksm_snapshot_path": "/a/snapshot.json"}}
    code, out = host.play(host.book([check]))
    assert code == 2, out
    assert "policy wide: max_page_sharing cannot be set, says /a/snapshot.json" in out
    assert not host.lease().folder.exists()


@pytest.mark.parametrize("given", ["89", "86401", "soon"])
def test_a_time_that_is_too_short_too_long_or_none_is_refused(host: Host, given: str) -> None:
    code, out = host.play(host.book([{"check_host": {}}]), "-e", f"lease_seconds={given}")
    assert code == 2, out
    assert f"lease_seconds is '{given}': allowed are seconds from 90 to 86400." in out


def test_ssh_gives_a_silent_host_up_within_the_shortest_lease() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "ansible.cfg")
    told = dict(re.findall(r"-o (\w+)=(\w+)", config["ssh_connection"]["ssh_args"]))
    assert 0 < int(told["ServerAliveInterval"]) * int(told["ServerAliveCountMax"]) < LEAST_SECONDS
