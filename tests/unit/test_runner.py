"""Campaigns through the real ansible-runner, on a small project whose playbook stores synthetic records."""

import io
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from planned import planned, variables
from synthetic import store, synthetic_failure, synthetic_plan

from analysis.__main__ import parser
from analysis.commands.run import given_variables
from analysis.commands.run import run as run_command
from analysis.errors import UserError
from analysis.plan.runs import open_run
from analysis.progress.campaign import Campaign, Progress, drive

RUN_ID = "synthetic"
PLAYBOOK = """
- name: Measure
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Copy what was prepared
      ansible.builtin.command: cp -r {source} {results}
      changed_when: true
    - name: Say who is asked
      ansible.builtin.debug:
        msg: "focus {{{{ focus }}}} of {{{{ run_id }}}}"
{more}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project" / "playbooks").mkdir(parents=True)
    (tmp_path / "project" / "ansible.cfg").write_text(
        "[defaults]\ninventory = hosts.yml\nlocalhost_warning = false\n"
    )
    (tmp_path / "project" / "hosts.yml").write_text(
        "all:\n  hosts:\n    localhost:\n      ansible_connection: local\n"
        f"      ansible_python_interpreter: {sys.executable}\n"
    )
    (tmp_path / "project" / "results").mkdir()
    write_playbook(
        tmp_path / "project", "teardown", "- name: Put right\n  hosts: localhost\n  gather_facts: false\n"
    )
    return tmp_path / "project"


def write_playbook(project: Path, name: str, text: str) -> None:
    (project / "playbooks" / f"{name}.yml").write_text(text)


def prepare(project: Path, tmp_path: Path, change: Any = None, more: str = "", **design: Any) -> None:
    """A playbook that brings these records into being, and then does what ``more`` says."""
    source = store(tmp_path / "prepared", synthetic_plan(run_id=RUN_ID, **design), change)
    text = PLAYBOOK.format(source=source, results=project / "results", more=textwrap.indent(more, "    "))
    write_playbook(project, "experiment", text)


def run(project: Path) -> tuple[int, str]:
    out = io.StringIO()
    campaign = Campaign(project, project / "results", None, {"focus": "1,2"}, RUN_ID)
    return drive(campaign, out), out.getvalue()


def private_directories() -> set[Path]:
    return set(Path(os.environ.get("TMPDIR", "/tmp")).glob("ksm-testbed-*"))  # noqa: S108


def test_progress_and_proof_of_a_whole_campaign(project: Path, tmp_path: Path) -> None:
    prepare(project, tmp_path, focus="1,2")
    before = private_directories()
    code, out = run(project)
    assert code == 0
    assert "] == Measure\n" in out
    assert "Copy what was prepared" not in out
    assert f"every planned record of run {RUN_ID} exists" in out
    assert private_directories() == before


def test_a_missing_record_is_named_though_the_playbook_ended_well(project: Path, tmp_path: Path) -> None:
    def change(cell: Any, records: dict[str, Any]) -> None:
        if cell.workload == "constant_fill":
            del records["verify"]

    prepare(project, tmp_path, change, focus="1,2")
    code, out = run(project)
    assert code == 1
    assert "1 planned cells are not complete" in out
    assert "host1 constant_fill-ksm-guests15-boot1-rep1: not measured: no verify record" in out
    assert f"go on with: python -m analysis run --resume {RUN_ID}" in out


def test_a_failing_playbook_passes_its_exit_code_on_and_is_quoted(project: Path, tmp_path: Path) -> None:
    def change(_cell: Any, records: dict[str, Any]) -> None:
        records["failed"] = synthetic_failure(records)

    fail = "- name: Merge\n  ansible.builtin.fail:\n    msg: guest03 died\n"
    prepare(project, tmp_path, change, fail)
    code, out = run(project)
    assert code == 2
    assert "localhost: FAILED in 'Merge': guest03 died" in out
    assert "failed in merge, task 'Sample while KSM merges': guest03 died" in out


def test_a_playbook_that_ansible_refuses_says_why(project: Path) -> None:
    write_playbook(project, "experiment", "- hosts: localhost\n  task: []\n")
    code, out = run(project)
    assert code != 0
    assert "'task' is not a valid attribute" in out
    assert "no cell was planned" in out


def test_an_ending_without_a_plan_is_no_success(project: Path) -> None:
    write_playbook(project, "experiment", "- name: Nothing\n  hosts: localhost\n  gather_facts: false\n")
    code, out = run(project)
    assert code == 1
    assert "no cell was planned" in out


def shown(*events: dict[str, Any]) -> list[str]:
    out = io.StringIO()
    progress = Progress(out)
    for event in events:
        progress.event(event)
    return out.getvalue().splitlines()


def said(*events: dict[str, Any]) -> list[str]:
    """What is shown, without the time."""
    return [line.split("] ", 1)[1].strip() for line in shown(*events)]


def test_the_lines_of_long_tasks_are_printed_as_they_come() -> None:
    assert said(
        {"event": "verbose", "stdout": "    [host1] guest01 is up\r\n\r\nguest02 is up"},
        {"event": "runner_on_start", "stdout": "not shown"},
    ) == ["[host1] guest01 is up", "guest02 is up"]


def test_a_line_that_has_its_time_gets_no_other() -> None:
    line = "[ 12:07] cell 3 of 12 idle-ksm-guests15-boot1-rep1: merge"
    assert shown({"event": "verbose", "stdout": f"{line}\r\n"}) == [line]


def test_failures_are_told_where_they_are_not_ignored() -> None:
    ignored = {"host": "h", "task": "t", "ignore_errors": True, "res": {"msg": "no matter"}}
    unreachable = {"host": "host2", "task": "Ping", "res": {"msg": "no route"}}
    assert said(
        {"event": "runner_on_failed", "event_data": ignored},
        {"event": "runner_on_unreachable", "event_data": unreachable},
    ) == ["host2: FAILED in 'Ping': no route"]


def test_slow_tasks_are_told_outside_the_measurement_only() -> None:
    slow = {"event": "runner_on_ok", "event_data": {"host": "host1", "task": "Install", "duration": 93.6}}
    quick = {"event": "runner_on_ok", "event_data": {"host": "host1", "task": "Look", "duration": 0.3}}
    plays = [
        {"event": "playbook_on_play_start", "event_data": {"name": name}}
        for name in ("Provision", "Measure the cells")
    ]
    assert said(plays[0], slow, quick, plays[1], slow) == [
        "== Provision",
        "[host1] Install: 94 s",
        "== Measure the cells",
    ]


def given(*words: str) -> dict[str, Any]:
    return given_variables(parser(["run"]).parse_args(["run", *words]))


def test_variables_of_the_command_line() -> None:
    assert given() == {}
    assert given("--focus", "all", "--guests", "4", "-e", 'ksm_knobs={"smart_scan": "0"}') == {
        "focus": "1,2,3",
        "guests": "4",
        "ksm_knobs": {"smart_scan": 0},
    }
    lists = ("--workloads", "random_fill,idle", "--policies", "ksm,advisor", "--guests", "15, 2")
    assert given(*lists, "--boots", "3", "--repetitions", "2", "-e", "cell_order_seed=") == {
        "workloads": "idle,random_fill",
        "policies": "advisor,ksm",
        "guests": "2,15",
        "boots": 3,
        "repetitions": 2,
        "cell_order_seed": "",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--policies", "kms"), "policies names 'kms', which does not exist: there are advisor"),
        (("--workloads", "web"), "workloads names 'web', which does not exist: there are build"),
        (("--guests", "4,4"), "guests has 4 more than once"),
        (("--boots", "0"), "boots is '0': allowed is a whole number from 1"),
        (("-e", "orders=abba"), "orders is not a variable of the experiment"),
        (("-e", "boots"), "-e 'boots' cannot be read: allowed is NAME=VALUE"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_done(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as refused:
        given(*words)
    assert str(refused.value).startswith(said)


def resume(results: Path, *words: str) -> int:
    return run_command(parser(["run"]).parse_args(["run", "--results", str(results), "--resume", *words]))


def resumed(monkeypatch: pytest.MonkeyPatch, results: Path, *words: str) -> Campaign:
    """The campaign that `run --resume` would drive."""
    seen: list[Campaign] = []
    monkeypatch.setattr("analysis.progress.campaign.drive", lambda campaign, _out: seen.append(campaign) or 0)
    assert (
        run_command(parser(["run"]).parse_args(["run", "--results", str(results), "--resume", *words])) == 0
    )
    return seen[0]


def test_a_resumed_campaign_has_the_variables_of_its_plan(
    monkeypatch: pytest.MonkeyPatch, results: Path
) -> None:
    changes = {"focus": "1,3", "policies": "ksm,advisor", "guests": "2,4", "ksm_knobs": {"smart_scan": 0}}
    plan = open_run(results, planned(**changes, cell_order_seed=""))
    campaign = resumed(monkeypatch, results, plan.run_id, "-e", "keep_guests=true")
    assert campaign.run_id == plan.run_id
    given = dict(campaign.variables)
    assert given.pop("results_directory") == str(results)
    expected = variables(**changes, keep_guests=True)
    assert given == {**expected, "policies": "advisor,ksm", "guests": "2,4", "focus": "1,3"}
    assert json.dumps(given)
    # What the playbook is given is no other design: the run goes on in its own order.
    again = planned(**given)
    assert open_run(results, again) == plan


def test_resuming_what_is_no_run_is_refused(results: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        resume(results, "never-was")
