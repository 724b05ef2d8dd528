"""The callbacks matrix and testbed under the real ansible-playbook, and their lines under ansible-runner."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from small_project import SmallProject

from analysis.progress.campaign import Campaign, drive

CELLS = [
    {"cell_id": f"{workload}-ksm", "workload": workload, "policy": "ksm", "guests": 2, "boot": 1}
    for workload in ("idle", "random_fill")
]


def debug(name: str, phase: str = "", **more: Any) -> dict[str, Any]:
    task = {"name": name, "ansible.builtin.set_fact": {"seen": True}, **more}
    return {**task, "vars": {"phase": phase}} if phase else task


TASKS = [
    debug("Begin the cell"),
    {"name": "Restore", "guests": {"times": {"boot": 61.2}}, "vars": {"phase": "restore"},
     "when": "cell.workload == 'idle'"},
    {"name": "Block", "vars": {"phase": "merge"}, "block": [
        {"name": "Merge", "measure_series": {"lines": ["scan 3, saved 96 MiB (47.9 MiB/VM), 9 s"]},
         "when": "cell.workload == 'idle'"},
        {"name": "Follow", "measure_series": {"lines": ["scan 4, saved 2 MiB (1.0 MiB/VM), 9 s"]},
         "when": "cell.workload != 'idle'"},
    ]},
    debug("Count the pages", "census", when="cell.workload == 'nobody'"),
    debug("Measure", "on"),
    debug("End the cell"),
]  # fmt: skip


def lines_of(text: str) -> list[str]:
    """What the callback said, without the time."""
    return re.findall(r"^(?:\S+ )?\[ *\d+:\d\d\] (.*?)$", text, re.MULTILINE)


def told(hosts: tuple[str, ...]) -> list[str]:
    idle, filled = "cell 1 of 2 idle-ksm: ", "cell 2 of 2 random_fill-ksm: "
    on = [f" on {host}" if len(hosts) > 1 else "" for host in hosts]
    saved = "".join(f", saved 47.9 MiB/VM{one}" for one in on)
    return [
        "2 cells",
        f"{idle}restore",
        *(f"{idle}its guests were booted anew in 61 s{one}" for one in on),
        f"{idle}merge",
        f"{idle}on",
        f"{idle}done in N s{saved}; about N s left",
        f"{filled}restore",
        f"{filled}merge",
        f"{filled}on",
        f"{filled}done in N s" + saved.replace("47.9", "1.0"),
    ]


def plain(lines: list[str]) -> list[str]:
    """Without times; hosts that do the same at the same time in the order of their names."""
    plain = [re.sub(r"(done in|about) \d+ s", r"\1 N s", line) for line in lines]
    booted = [number for number, line in enumerate(plain) if "booted anew" in line]
    for number, line in zip(booted, sorted(plain[number] for number in booted), strict=True):
        plain[number] = line
    return plain


@pytest.fixture(scope="module", params=[("localhost",), ("host1", "host2")], ids=["one host", "two hosts"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallProject, str]:
    project = SmallProject(tmp_path_factory.mktemp("project"), request.param)
    project.experiment(CELLS, TASKS, before=[debug("Install")])
    code, said = project.run()
    assert code == 0, said
    return project, said


def test_the_cells_are_told_on_the_terminal(ran: tuple[SmallProject, str]) -> None:
    project, said = ran
    assert plain(lines_of(said)) == told(tuple(project.hosts))
    assert f"    [{project.hosts[0]}] scan 3, saved 96 MiB (47.9 MiB/VM), 9 s\n" in said


def test_tasks_that_went_well_are_not(ran: tuple[SmallProject, str]) -> None:
    _, said = ran
    assert "PLAY [Provision]" in said and "PLAY [Measure the cells]" in said and "PLAY RECAP" in said
    for word in ("TASK", "begins: ", "ok: [", "changed: [", "included: ", "Begin the cell", "Install"):
        assert word not in said


def test_the_log_has_the_lines_of_cells_and_modules_and_is_private(ran: tuple[SmallProject, str]) -> None:
    project, said = ran
    log = project.results / "progress.log"
    assert log.stat().st_mode & 0o777 == 0o600
    text = log.read_text()
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \[ *\d+:\d\d\] ", line) for line in text.splitlines()
    )
    modules = [line for line in lines_of(text) if line.startswith("  [")]
    assert sorted(modules) == sorted(
        f"  [{host}] {line}"
        for host in project.hosts
        for line in ("scan 3, saved 96 MiB (47.9 MiB/VM), 9 s", "scan 4, saved 2 MiB (1.0 MiB/VM), 9 s")
    )
    assert [line for line in lines_of(text) if line not in modules] == lines_of(said)


def test_a_capacity_run_tells_its_arms_and_has_its_log_in_its_own_directory(tmp_path: Path) -> None:
    project = SmallProject(tmp_path)
    directory = tmp_path / "results/capacity/run"
    project.write("arm.yml", [{"name": "Step", "measure_series": {"lines": ["off, 4 guests: fits"]}}])
    tasks = [
        {"name": "Name the run", "capacity_plan": {"directory": str(directory)}},
        {
            "name": "Take each arm to its limit",
            "ansible.builtin.include_tasks": "arm.yml",
            "loop": [{"boot": 1, "policy": policy} for policy in ("off", "ksm")],
            "loop_control": {"loop_var": "arm"},
        },
    ]
    play = {"name": "Measure the capacity", "hosts": "hypervisors", "gather_facts": False, "tasks": tasks}
    project.write("experiment.yml", [play])
    code, said = project.run()
    assert code == 0, said
    assert plain(lines_of(said)) == [
        "arm off, boot 1: begins",
        "arm off, boot 1: Step",
        "arm off, boot 1: done in N s",
        "arm ksm, boot 1: begins",
        "arm ksm, boot 1: Step",
        "arm ksm, boot 1: done in N s",
    ]
    assert (directory / "progress.log").read_text().count("[localhost] off, 4 guests: fits\n") == 2
    assert directory.stat().st_mode & 0o777 == 0o700


def test_with_v_all_is_said(tmp_path: Path) -> None:
    project = SmallProject(tmp_path)
    project.experiment(CELLS[:1], TASKS)
    code, said = project.run("-v")
    assert code == 0
    assert "TASK [Begin the cell]" in said and "ok: [localhost]" in said
    assert "cell 1 of 1 idle-ksm: merge" in said


def test_a_failure_and_a_message_are_shown_as_ansible_shows_them(tmp_path: Path) -> None:
    project = SmallProject(tmp_path)
    fail = {"name": "Load", "ansible.builtin.fail": {"msg": "guest01 died"}, "vars": {"phase": "load"}}
    ignored = {**fail, "name": "No matter", "ignore_errors": True, "when": "cell.workload == 'idle'"}
    say = {"name": "Say", "ansible.builtin.debug": {"msg": "said aloud"}}
    project.experiment(CELLS[:1], [debug("Begin the cell"), ignored, say, fail])
    code, said = project.run()
    assert code == 2
    assert "TASK [Load]" in said and '"msg": "guest01 died"' in said
    assert "said aloud" in said
    assert "cell 1 of 1 idle-ksm: failed in load, task 'Load'" in said
    assert "failed in load, task 'No matter'" not in said
    assert re.search(r"idle-ksm: failed in load after \d+ s\n", said)


def test_a_check_says_what_would_change_and_leaves_no_log(tmp_path: Path) -> None:
    project = SmallProject(tmp_path)
    project.experiment(CELLS[:1], TASKS)
    code, said = project.run("--check")
    assert code == 0
    assert "TASK [Begin the cell]" in said
    assert list(project.results.iterdir()) == []


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    project = SmallProject(tmp_path)
    project.experiment(CELLS[:1], TASKS)
    (tmp_path / "elsewhere").touch()
    (project.results / "progress.log").symlink_to(tmp_path / "elsewhere")
    code, said = project.run()
    assert code == 0
    assert "cell 1 of 1 idle-ksm: done in" in said
    assert (tmp_path / "elsewhere").read_text() == ""


def test_ansible_runner_hands_the_lines_on_with_one_time_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = SmallProject(tmp_path)
    project.experiment(CELLS[:1], TASKS)
    for name, value in project.environment().items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    drive(Campaign(project.folder, tmp_path / "results", project.folder / "hosts.ini", {}, "run"), out)
    said = out.getvalue()
    assert "cell 1 of 1 idle-ksm: merge\n" in said
    assert re.search(r"^\[ *\d+:\d\d\]   \[localhost\] scan 3, saved 96 MiB", said, re.MULTILINE)
    assert re.search(r"\] *\[ *\d+:\d\d\]", said) is None
    assert "Begin the cell" not in said
