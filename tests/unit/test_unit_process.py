"""The module that runs what a systemd unit starts where systemd is not PID 1: real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_files import run
from waiting import wait_until

MODULE = "plugins/modules/unit_process.py"
# Like ksmtuned it leaves a loop that sleeps, and ends; it notes what ends the loop.
FORKING = """#!/bin/bash
echo "begins in $PWD with ${HOME-no home}"
loop () {
    trap 'echo ended >> FOLDER/ended; exit' TERM
    echo $BASHPID > FOLDER/begun && mv FOLDER/begun FOLDER/loop
    while true; do sleep 300 & wait $!; done
}
loop &
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "units").mkdir()
    (tmp_path / "own").mkdir()
    yield tmp_path
    run(MODULE, state="stopped", directory=str(tmp_path / "run"))


def unit(folder: Path, *lines: str, program: str = FORKING) -> None:
    """Write tuner.service and what it starts."""
    (folder / "tuner").write_text(program.replace("FOLDER", str(folder)))
    (folder / "tuner").chmod(0o755)
    text = "\n".join(lines or (f"ExecStart={folder}/tuner", "Type=forking"))
    (folder / "units/tuner.service").write_text(
        f"[Unit]\nRequires=other.service\n; a remark\n[Service]\n{text}\n[Install]\nWantedBy=a.target\n"
    )


def asked(folder: Path, state: str, *, check: bool = False, name: str = "tuner.service") -> dict[str, Any]:
    places = [str(folder / "own"), str(folder / "units")]
    return run(MODULE, check=check, name=name, state=state, directory=str(folder / "run"), places=places)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_what_forks_is_started_once_and_all_of_it_is_ended(folder: Path) -> None:
    unit(folder)
    begun = asked(folder, "started")
    assert begun["changed"] is True, begun
    wait_until((folder / "loop").exists, "the loop")
    loop = int((folder / "loop").read_text())
    assert loop in begun["pids"]
    again = asked(folder, "started", name="tuner")
    assert (again["changed"], loop in again["pids"]) == (False, True)
    assert (folder / "run").stat().st_mode & 0o777 == 0o700
    assert asked(folder, "stopped", check=True)["changed"] is True
    assert alive(loop)
    pids = again["pids"]
    ended = asked(folder, "stopped")
    # Nothing of the environment of who starts it, and no folder of theirs
    assert (ended["changed"], ended["said"]) == (True, ["begins in / with no home"])
    assert (folder / "ended").read_text() == "ended\n"
    assert not any(alive(pid) for pid in pids)
    assert not (folder / "run").exists()
    assert asked(folder, "stopped") == {**ended, "changed": False, "said": []}


def test_what_does_not_fork_runs_and_is_ended(folder: Path) -> None:
    unit(folder, f"ExecStart={folder}/tuner 300", program="#!/bin/sh\nexec sleep $1\n")
    begun = asked(folder, "started")
    assert (begun["changed"], len(begun["pids"])) == (True, 1)
    asked(folder, "stopped")
    assert not alive(begun["pids"][0])


def test_what_another_start_runs_is_not_touched(folder: Path) -> None:
    """Only processes with this start's mark are ended, whatever else runs the same program."""
    unit(folder)
    other = folder / "other"
    other.mkdir()
    places = [str(folder / "units")]
    theirs = run(MODULE, name="tuner.service", directory=str(other / "run"), places=places)
    try:
        # What else it started may end by itself.
        wait_until((folder / "loop").exists, "their loop")
        loop = int((folder / "loop").read_text())
        assert loop in theirs["pids"]
        asked(folder, "started")
        asked(folder, "stopped")
        assert alive(loop)
    finally:
        run(MODULE, state="stopped", directory=str(other / "run"))


def test_in_check_mode_nothing_is_started(folder: Path) -> None:
    unit(folder)
    seen = asked(folder, "started", check=True)
    assert (seen["changed"], seen["pids"]) == (True, [])
    assert not (folder / "run").exists()


def test_a_unit_of_the_users_own_and_what_is_dropped_in_count(folder: Path) -> None:
    unit(folder)
    (folder / "own/tuner.service.d").mkdir()
    (folder / "own/tuner.service.d/mine.conf").write_text("[Service]\nExecStart=\nExecStart=/absent/tuner\n")
    assert asked(folder, "started", check=True)["msg"] == (
        f"{folder}/units/tuner.service starts /absent/tuner, which is missing: install its package anew."
    )
    (folder / "own/tuner.service").write_text("[Service]\nUser=nobody\nExecStart=/bin/true\n")
    assert asked(folder, "started", check=True)["msg"] == (
        f"{folder}/own/tuner.service has User, which needs systemd as PID 1."
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("ExecStart=/bin/true", "Type=notify"), "has Type=notify, which needs systemd as PID 1"),
        (("ExecStart=/bin/sleep $LONG",), "has ExecStart=/bin/sleep $LONG, which needs systemd as PID 1"),
        (("ExecStart=-/bin/true",), "has ExecStart=-/bin/true, which needs systemd as PID 1"),
        (("Type=simple",), "has ExecStart=, which needs systemd as PID 1"),
        (
            ("EnvironmentFile=/etc/default/a", "ExecStart=/bin/true"),
            "has EnvironmentFile, which needs systemd",
        ),
        (("ExecStart=/bin/sleep \\", "  300"), "has ExecStart=/bin/sleep \n300, which needs systemd"),
        (("ExecStart=/bin/true", "[Unit]", "ConditionPathExists=/a"), "has ConditionPathExists, which needs"),
        (("ExecStart=/bin/sleep 'a",), "is no unit that can be read: No closing quotation"),
        (("no setting",), "is no unit that can be read: Source contains parsing errors"),
    ],
)
def test_what_only_systemd_can_do_is_refused(folder: Path, lines: tuple[str, ...], said: str) -> None:
    unit(folder, *lines)
    seen = asked(folder, "started", check=True)
    assert seen["failed"] is True
    assert seen["msg"].startswith(f"{folder}/units/tuner.service {said}")


def test_one_that_is_not_installed_and_one_that_fails_are_refused(folder: Path) -> None:
    assert asked(folder, "started")["msg"] == (
        "tuner.service is not installed on this host: install its package."
    )
    unit(folder, program="#!/bin/sh\necho no such knob >&2\nexit 3\n")
    assert asked(folder, "started")["msg"] == "tuner.service does not run, it ended with 3: no such knob."
    unit(folder, program="#!/bin/sh\nexit 0\n")
    assert asked(folder, "started")["msg"] == "tuner.service does not run, it ended with 0: nothing was said."
    unit(folder, f"ExecStart={folder}/tuner", program="no interpreter is named\n")
    assert asked(folder, "started")["msg"] == (
        f"tuner.service does not start: {folder}/tuner: Exec format error."
    )
    assert not (folder / "run").exists()


def test_a_unit_that_is_masked_is_not_started(folder: Path) -> None:
    unit(folder)
    (folder / "own/tuner.service").symlink_to("/dev/null")
    assert asked(folder, "started")["msg"] == (
        f"tuner.service is masked on this host by {folder}/own/tuner.service: unmask it."
    )


def test_one_that_ended_by_itself_is_told_of(folder: Path) -> None:
    unit(folder, f"ExecStart={folder}/tuner", program="#!/bin/sh\necho enough\n")
    begun = asked(folder, "started")
    wait_until(lambda: (folder / "run/said").read_text() == "enough\n", "its last word")
    wait_until(lambda: not any(alive(pid) for pid in begun["pids"]), "its end")
    assert "tuner.service had ended by itself: enough" in str(asked(folder, "stopped")["warnings"])


def test_another_unit_is_not_taken_for_the_one_that_runs(folder: Path) -> None:
    unit(folder)
    asked(folder, "started")
    (folder / "units/second.service").write_text("[Service]\nExecStart=/bin/true\n")
    assert asked(folder, "started", name="second.service")["msg"] == (
        "tuner.service runs in place of second.service: stop it."
    )


def test_a_folder_that_is_not_private_is_refused(folder: Path) -> None:
    unit(folder)
    (folder / "run").mkdir(mode=0o755)
    (folder / "run/unit.json").write_text(json.dumps({"name": "tuner.service", "mark": "a"}))
    (folder / "run").chmod(0o755)
    assert asked(folder, "started")["msg"] == f"{folder}/run is no private folder of this user: remove it."
