"""The lease of a host, with real holders in folders of their own: taken, refused, given back, lost, paid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playing import fake_systemd_run
from plugin_files import ROOT, RUN, load, run
from waiting import FOREVER_SECONDS, wait_until

MODULE = "plugins/modules/host_lease.py"
lease_files = load("plugins/module_utils/lease.py")
putting_right = load("plugins/module_utils/putting_right.py")
controller = load("analysis/progress/lease.py")
MINE, OTHER = "aaaa", "bbbb"
OWNER = {"by": "ann@here", "run": "experiment r1", "pid": 4711}
# A module that says that it was called, after a file is there that it waits for.
STEP = """
import json, pathlib, time
folder = pathlib.Path(FOLDER)
while not (folder / "go").exists():
    time.sleep(0.05)
with (folder / "log").open("a") as log:
    log.write("put right\\n")
print(json.dumps(ANSWER))
"""


class Host:
    """A host with its lease in a folder, and without systemd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lease = lease_files.Lease(folder / "lease")
        (folder / "go").touch()

    def arguments(self, token: str, **changed: Any) -> dict[str, Any]:
        given = {"token": token, "owner": OWNER, "seconds": 3600, "run_root": str(self.folder / "run")}
        return {**given, "directory": str(self.lease.folder), **changed}

    def ask(self, token: str = MINE, *, check: bool = False, **changed: Any) -> dict[str, Any]:
        return run(MODULE, check=check, **self.arguments(token, **changed))

    def takes(self, token: str = MINE, **changed: Any) -> None:
        answer = self.ask(token, **changed)
        assert answer.get("taken"), answer

    def owes(self, answer: dict[str, Any] | None = None) -> None:
        text = STEP.replace("FOLDER", repr(str(self.folder)))
        text = text.replace("ANSWER", repr(answer or {"changed": True}))
        steps = [{"name": "the guests", "needs": [], "modules": [text]}]
        lease_files.write(self.lease.owed, {"steps": steps})

    def owner(self) -> dict[str, Any]:
        found: dict[str, Any] = lease_files.read(self.lease.owner)
        return found

    def give_back(self, token: str = MINE) -> None:
        self.lease.renewal(token).unlink()

    def until_free(self) -> None:
        wait_until(lambda: not self.lease.is_held(), "the lease is free")

    @property
    def log(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    (tmp_path / "go").touch()
    made.lease.owed.unlink(missing_ok=True)
    for renewal in made.lease.folder.glob("renewal-*"):
        renewal.unlink(missing_ok=True)
    made.until_free()


def test_who_comes_second_is_told_by_whom_since_when_and_how_to_end_it_and_changes_nothing(
    host: Host,
) -> None:
    host.takes()
    before = host.owner()
    answer = host.ask(OTHER, owner={**OWNER, "by": "bob@there"})
    assert answer["failed"]
    for said in (
        f"this host is in use by ann@here since {before['since']}: experiment r1, process 4711 there",
        "nothing was changed",
        '`make teardown ARGS="-e lease_end=true"`',
        "puts itself right 3600 s after it was last heard of",
    ):
        assert said in answer["msg"]
    assert answer["owner"] == before == host.owner()


def test_the_run_that_has_it_has_it_and_takes_no_second_one(host: Host) -> None:
    host.takes()
    holder = host.owner()["holder_pid"]
    answer = host.ask()
    assert (answer["taken"], answer["changed"]) == (False, False)
    assert host.owner()["holder_pid"] == holder


def test_once_it_is_given_back_nothing_of_it_is_left_and_another_has_it(host: Host) -> None:
    host.takes()
    host.give_back()
    wait_until(lambda: not host.lease.folder.exists(), "the lease's folder is gone")
    host.takes(OTHER)
    assert host.owner()["token"] == OTHER


def test_the_holder_is_in_a_session_of_its_own(host: Host) -> None:
    host.takes()
    pid = host.owner()["holder_pid"]
    assert os.getsid(pid) == pid


def test_a_lease_that_is_not_renewed_ends_and_what_is_owed_is_paid(host: Host) -> None:
    host.takes(seconds=0.5)
    host.owes()
    host.until_free()
    assert host.log == ["put right"]
    assert not host.lease.owed.exists()
    said = host.ask()
    assert said["failed"]
    assert "this run has lost its lease at " in said["msg"]
    assert "its controller has not asked for 0.5 s, and this host was put right then" in said["msg"]


def test_a_lease_that_is_given_back_with_a_debt_is_paid_for_too(host: Host) -> None:
    """As by a controller that was killed: what renews for it says so at once."""
    host.takes()
    host.owes()
    host.give_back()
    host.until_free()
    assert host.log == ["put right"]


def test_who_comes_while_the_host_is_put_right_waits_for_that(host: Host) -> None:
    host.takes()
    host.owes()
    (host.folder / "go").unlink()
    host.give_back()
    wait_until(lambda: "ending" in host.owner(), "the lease is being ended")
    second = subprocess.Popen(
        [sys.executable, "-c", RUN, ROOT / MODULE, ROOT / "plugins/module_utils"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert second.stdin and second.stdout
    second.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": host.arguments(OTHER)}))
    second.stdin.close()
    assert host.ask(OTHER, wait_seconds=0.1)["msg"].startswith("the run before this one ended, and")
    assert second.poll() is None
    (host.folder / "go").touch()
    assert json.loads(second.stdout.read())["taken"]
    assert second.wait(FOREVER_SECONDS) == 0
    assert host.log == ["put right"]
    assert not host.lease.ended.exists()


def test_a_lease_can_be_ended_by_another_and_its_run_is_told_by_whom(host: Host) -> None:
    host.takes()
    host.owes()
    answer = host.ask(MINE, state="ended", owner={"by": "bob@there"})
    assert answer["changed"], answer
    assert host.log == ["put right"]
    assert "bob@there ended it, and this host was put right then" in host.ask()["msg"]
    # As often as one likes, and never another's
    host.until_free()
    host.takes(OTHER)
    assert not host.ask(MINE, state="ended", owner={"by": "bob@there"})["changed"]
    assert host.owner()["token"] == OTHER


def test_a_run_without_a_debt_that_was_ended_by_another_is_told_too(host: Host) -> None:
    host.takes()
    host.ask(MINE, state="ended", owner={"by": "bob@there"})
    host.until_free()
    assert "bob@there ended it" in host.ask()["msg"]


def test_a_holder_that_was_killed_is_started_again_and_the_run_goes_on(host: Host) -> None:
    host.takes()
    before = host.owner()
    os.kill(before["holder_pid"], signal.SIGKILL)
    host.until_free()
    answer = host.ask()
    assert not answer.get("failed"), answer
    # Who renews still does so.
    assert answer["taken"] is False
    assert host.owner()["since"] == before["since"]
    assert host.owner()["holder_pid"] != before["holder_pid"]
    host.give_back()
    wait_until(lambda: not host.lease.folder.exists(), "the lease's folder is gone")


def test_a_holder_that_systemd_starts_again_after_it_was_given_back_ends_at_once(host: Host) -> None:
    host.takes()
    pid = host.owner()["holder_pid"]
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    os.kill(pid, signal.SIGKILL)
    host.until_free()
    host.owes()
    host.give_back()
    assert subprocess.run(command, check=False).returncode == 0
    assert host.log == ["put right"]


def test_a_holder_that_finds_the_lease_held_ends_without_a_failure(
    host: Host, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """systemd would start it again and again."""
    host.takes()
    before = host.owner()
    monkeypatch.setattr(lease_files, "LOCK_SECONDS", 0)
    lease_files.hold(host.lease, {**OWNER, "token": OTHER, "seconds": 1})
    assert "the lease is held" in capfd.readouterr().err
    assert host.owner() == before


def test_a_measuring_play_takes_no_second_lease_when_another_run_was_between(host: Host) -> None:
    host.takes(OTHER)
    host.give_back(OTHER)
    host.until_free()
    answer = host.ask(new=False)
    assert "this run has lost its lease, and another had this host since; start it anew" in answer["msg"]
    assert not host.lease.owner.exists()


def test_a_holder_that_is_told_to_end_pays(host: Host) -> None:
    host.takes()
    host.owes()
    os.kill(host.owner()["holder_pid"], signal.SIGTERM)
    host.until_free()
    assert host.log == ["put right"]


def test_what_cannot_be_put_right_is_tried_again_and_stays_owed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_files, "ATTEMPT_SECONDS", 0)
    host.lease.folder.mkdir()
    host.owes({"failed": True, "msg": "no libvirt\ntoday."})
    assert lease_files.pay(host.lease.owed) == ["the guests (no libvirt today)"]
    assert host.log == ["put right"] * lease_files.ATTEMPTS
    assert host.lease.owed.exists()


def test_a_step_without_what_it_needs_is_none_and_what_cannot_run_is_named(tmp_path: Path) -> None:
    broken = {"name": "this", "needs": [], "modules": ["raise SystemExit('out of order')"]}
    absent = {"name": "that", "needs": [str(tmp_path / "none")], "modules": ["raise SystemExit(1)"]}
    assert putting_right.put_right([broken, absent]) == (False, ["this (out of order)"], [])


def test_looking_takes_nothing_and_says_who_has_it(host: Host) -> None:
    for look in ({"check": True}, {"state": "read"}):
        assert host.ask(**look)["owner"] == {}
        assert not host.lease.folder.exists()
    host.takes()
    for look in ({"check": True}, {"state": "read"}):
        answer = host.ask(OTHER, **look)
        assert "in use by ann@here" in answer["msg"]
        assert not answer.get("failed")
        assert "msg" not in host.ask(MINE, **look)
    assert host.owner()["token"] == MINE


def test_a_folder_that_others_can_enter_is_refused(host: Host) -> None:
    host.lease.folder.mkdir(mode=0o755)
    assert "lease is no private folder of this user: remove it" in host.ask()["msg"]


def test_where_systemd_is_pid_1_the_holder_is_a_unit_that_it_supervises(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.folder / "run/systemd/system").mkdir(parents=True)
    told = fake_systemd_run(host.folder, monkeypatch)
    host.takes()
    assert f"--unit=ksm-testbed-lease-{MINE}" in told.read_text()
    assert "--property=Restart=on-failure" in told.read_text()


def test_a_run_is_gone_when_its_process_has_ended_on_this_very_machine(tmp_path: Path) -> None:
    me = controller._process()
    assert not controller.is_gone(me)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        other = {**me, "pid": child.pid, "began": controller._began(child.pid)}
        assert not controller.is_gone(other)
        # Another one has its number since.
        assert controller.is_gone({**other, "began": "1"})
    assert controller.is_gone(other)
    assert not controller.is_gone({**other, "machine": "elsewhere"})
