"""Whatever ends a run while it measures, its cell is recorded and its hosts are put right, to the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from planned import RUN_ID, planned
from plugin_files import load
from small_project import HEED_SIGNALS, SmallProject
from waiting import FOREVER_SECONDS, wait_until

from analysis.plan.design import cell_directory
from analysis.plan.runs import open_run

PLAN = planned(hosts=("host1", "host2"), focus="1")
(CELL_ID,) = {cell.cell_id for cell in PLAN.cells}


def in_shell(name: str, command: str) -> dict[str, Any]:
    """A task without a module, which costs a Python for every host."""
    return {"name": name, "ansible.builtin.raw": command}


class Interrupted:
    """A run of one cell on two hosts that merges for ever, and whose teardown waits to be let go."""

    def __init__(self, folder: Path, play: str = "Measure the cells") -> None:
        self.project = SmallProject(folder, ("host1", "host2"))
        self.project.results = folder / "results" / RUN_ID
        open_run(folder / "results", PLAN)
        self.begun, self.go, self.done = folder / "begun", folder / "go", folder / "done"
        cells = [asdict(cell) for cell in PLAN.cells if cell.hypervisor == "host1"]
        # A shell, which a signal ends at any moment: a Python that still starts may swallow a SIGINT.
        self.merge = in_shell("Follow it", f"until test -e {folder}/never; do sleep 0.1; done")
        self.merge["vars"] = {"phase": "merge"}
        self.project.experiment(cells, [self.merge], play=play)
        self.teardown = [
            in_shell("Say that it began", f"touch {folder}/begun.{{{{ inventory_hostname }}}}"),
            in_shell("Wait", f"until test -e {self.go}; do sleep 0.1; done"),
            in_shell("Say that it is done", f"touch {folder}/done.{{{{ inventory_hostname }}}}"),
        ]
        play_of_teardown = {"name": "Put right", "hosts": "hypervisors", "gather_facts": False}
        self.project.write("teardown.yml", [{**play_of_teardown, "tasks": self.teardown}])

    def end(self) -> None:
        """Let go what still waits, where a test has failed."""
        self.go.touch()
        (self.project.folder / "never").touch()

    def marks(self, of: Path) -> list[str]:
        """The hosts that have left this mark."""
        return sorted(path.suffix[1:] for path in of.parent.glob(f"{of.name}.*"))

    def until_it_merges(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        run = self.project.start(*words, start_new_session=True, **options)
        wait_until(lambda: len(waiting(self.project.folder)) == 2, "both hosts wait")
        return run


@pytest.fixture
def case(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Interrupted]:
    made = Interrupted(tmp_path, getattr(request, "param", "Measure the cells"))
    yield made
    made.end()


def waiting(folder: Path) -> list[str]:
    """Shells of a run in this folder that follow it, for ever; one on each host."""
    loop = b"until test -e %b/never" % bytes(folder)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > 2 and words[2].startswith(loop):
            found.append(process.name)
    return found


@pytest.mark.parametrize("signals", [("SIGINT",), ("SIGTERM",), ("SIGHUP",), ("SIGINT", "SIGINT", "SIGTERM")])
def test_a_run_that_is_interrupted_puts_its_hosts_right(case: Interrupted, signals: Sequence[str]) -> None:
    run = case.until_it_merges()
    first, *later = [signal.Signals[name] for name in signals]
    run.send_signal(first)
    wait_until(lambda: case.marks(case.begun) == ["host1", "host2"], "the teardown has begun")
    for number in later:
        # As a terminal does: to all of the process group.
        os.killpg(run.pid, number)
    case.go.touch()
    assert run.wait(FOREVER_SECONDS) != 0
    said = case.project.said()
    assert case.marks(case.done) == ["host1", "host2"], said
    assert said.count("Interrupted: restoring the KSM settings and removing the guests") == 1
    assert "failed: run `make teardown`" not in said
    # Told to end, and not waited for by the run
    wait_until(lambda: waiting(case.project.folder) == [], "what followed has ended")
    for cell in PLAN.cells:
        record = json.loads((cell_directory(case.project.results, cell) / "failed.json").read_text())
        expected = {"phase": "merge", "task": "Follow it", "message": "interrupted by the user"}
        assert record["observed"] == expected


def test_a_second_ctrl_c_before_the_teardown_has_begun_does_not_prevent_it(case: Interrupted) -> None:
    case.go.touch()
    run = case.until_it_merges()
    for _ in range(20):
        os.killpg(run.pid, signal.SIGINT)
    assert run.wait(FOREVER_SECONDS) != 0
    assert case.marks(case.done) == ["host1", "host2"], case.project.said()


TALKS = """
from pathlib import Path
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        folder = Path(self._task.args["folder"])
        (folder / ("talks." + task_vars["inventory_hostname"])).touch()
        while not (folder / "never").exists():
            Display().display("x" * 100000, log_only=self._task.args["log_only"])
        return {}
"""


def test_workers_that_are_ended_while_they_talk_do_not_keep_the_run_from_its_end(case: Interrupted) -> None:
    """They share a queue: one that died in the middle of a line would lock it for ever."""
    run = until_it_talks(case, log_only=True)
    run.send_signal(signal.SIGINT)
    assert run.wait(FOREVER_SECONDS) != 0
    assert case.marks(case.done) == ["host1", "host2"], case.project.said()


def test_a_worker_that_did_not_heed_the_first_word_is_told_again(asked: tuple[Any, Path]) -> None:
    callback, _ = asked
    here, there = multiprocessing.Pipe()
    worker = multiprocessing.Process(target=heed_the_second, args=(there,))
    worker.start()
    here.recv()
    sys.modules[type(callback).__module__]._end_workers([worker])
    assert worker.exitcode == 2


def heed_the_second(there: Connection) -> None:
    """Be there, and end at the second SIGINT."""
    heard: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        heard.append(number)
        if len(heard) == 2:
            os._exit(2)

    signal.signal(signal.SIGINT, hear)
    there.send("there")
    while True:
        signal.pause()


def test_a_run_whose_output_nobody_reads_any_more_puts_its_hosts_right(case: Interrupted) -> None:
    """As `| tee` that Ctrl-C ends first."""
    reads, writes = os.pipe()
    run = until_it_talks(case, log_only=False, stdout=writes)
    os.close(writes)
    os.close(reads)
    assert run.wait(FOREVER_SECONDS) != 0
    assert case.marks(case.done) == ["host1", "host2"], case.project.said()


def until_it_talks(case: Interrupted, *, log_only: bool, **options: Any) -> subprocess.Popen[str]:
    """A run whose hosts say something all the time, and whose teardown does not wait."""
    folder = case.project.folder
    (folder / "action/talks.py").write_text(TALKS)
    talks = {"folder": str(folder), "log_only": log_only}
    case.project.write("cell.yml", [{"name": "Talk", "talks": talks}])
    case.go.touch()
    run = case.project.start(start_new_session=True, **options)
    wait_until(lambda: len(case.marks(folder / "talks")) == 2, "both hosts talk")
    return run


def test_ctrl_c_at_ansible_runner_does_the_same_and_says_how_to_go_on(
    case: Interrupted, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from analysis.progress.campaign import Campaign, drive;"
        f"folder = Path({str(tmp_path)!r});"
        f"campaign = Campaign(folder, folder / 'results', folder / 'hosts.ini', {{}}, {RUN_ID!r});"
        "sys.exit(drive(campaign, sys.stdout))"
    )
    with (tmp_path / "said").open("w") as said:
        campaign = subprocess.Popen(
            [*HEED_SIGNALS, sys.executable, "-c", code],
            env=case.project.environment(),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    wait_until(lambda: len(waiting(tmp_path)) == 2, "both hosts wait")
    os.killpg(campaign.pid, signal.SIGINT)
    wait_until(lambda: case.marks(case.begun) == ["host1", "host2"], "the teardown has begun")
    os.killpg(campaign.pid, signal.SIGINT)
    case.go.touch()
    assert campaign.wait(FOREVER_SECONDS) == 130
    told = case.project.said()
    assert "Interrupted: restoring the KSM settings" in told
    assert case.marks(case.done) == ["host1", "host2"], told
    assert f"host1 {CELL_ID}: failed in merge, task 'Follow it': interrupted by the user" in told
    assert f"go on with: python -m analysis run --resume {RUN_ID}" in told


@pytest.mark.parametrize("ends", ["interrupted", "failing"])
@pytest.mark.parametrize(
    ("words", "put_right"),
    [((), ["host1", "host2"]), (("--limit", "host2"), ["host2"]), (("--limit", "host2", "--check"), [])],
)
def test_only_the_hosts_of_the_run_are_put_right_and_none_in_check_mode(
    case: Interrupted, ends: str, words: Sequence[str], put_right: list[str]
) -> None:
    """Interrupted in a cell; or by a play that Ansible cannot even begin, which ends the run as suddenly."""
    case.go.touch()
    if ends == "interrupted":
        # A task of the shell is skipped in check mode.
        case.project.write("cell.yml", [{**case.merge, "check_mode": False}])
        run = case.project.start(*words, start_new_session=True)
        hosts = put_right or ["host2"]
        wait_until(lambda: len(waiting(case.project.folder)) == len(hosts), "the hosts wait")
        run.send_signal(signal.SIGINT)
    else:
        case.project.write("cell.yml", [])
        book = case.project.folder / "playbooks/experiment.yml"
        plays = json.loads(book.read_text())
        case.project.write("experiment.yml", [*plays, {"name": "Broken", "hosts": "{{ nothing }}"}])
        run = case.project.start(*words, start_new_session=True)
    assert run.wait(FOREVER_SECONDS) != 0
    assert case.marks(case.done) == put_right, case.project.said()
    written = case.project.results.rglob("failed.json")
    recorded = put_right if ends == "interrupted" else []
    assert sorted(path.parent.parent.name for path in written) == recorded


def test_a_host_that_does_not_answer_any_more_has_a_failed_cell_and_the_other_one_has_not(
    case: Interrupted,
) -> None:
    lost = in_shell("Follow it", "true")
    connection = "{{ 'ssh' if inventory_hostname == 'host2' else 'local' }}"
    lost["vars"] = {"phase": "merge", "ansible_connection": connection, "ansible_port": 1}
    case.project.write("cell.yml", [{**lost, "vars": {**lost["vars"], "ansible_host": "127.0.0.1"}}])
    code, said = case.project.run()
    assert code == 4, said
    (failed,) = case.project.results.rglob("failed.json")
    assert failed.parent.parent.name == "host2"
    seen = json.loads(failed.read_text())["observed"]
    assert (seen["phase"], seen["task"]) == ("merge", "Follow it")
    assert seen["message"].startswith("host2 does not answer: ")
    assert "Task failed" not in seen["message"]
    # Not interrupted: host1 has come to its end.
    assert case.marks(case.begun) == []


def test_a_run_that_ends_before_its_first_change_is_put_right_nowhere(
    asked: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs there is then an earlier run's: guests that were kept."""
    callback, _ = asked
    monkeypatch.setattr(sys.modules[type(callback).__module__], "SIGNALS", ())
    play = SimpleNamespace(get_name=lambda: "Measure the cells")
    callback.v2_playbook_on_play_start(play)
    callback.v2_playbook_on_task_start(SimpleNamespace(action="plan"), False)
    assert not callback.owed
    callback.v2_playbook_on_task_start(SimpleNamespace(action="put_right"), False)
    callback.v2_playbook_on_task_start(SimpleNamespace(action="guests"), False)
    assert callback.owed
    callback.owed = False


@pytest.mark.parametrize("case", ["Only look"], indirect=True)
def test_a_run_that_does_not_measure_changes_no_host(case: Interrupted) -> None:
    run = case.until_it_merges()
    run.send_signal(signal.SIGINT)
    assert run.wait(FOREVER_SECONDS) != 0
    assert case.marks(case.begun) == []
    assert list(case.project.results.rglob("failed.json")) == []


def test_a_run_that_ends_by_itself_is_not_put_right_again(case: Interrupted) -> None:
    fails = {"name": "Fail", "ansible.builtin.fail": {"msg": "no"}, "vars": {"phase": "load"}}
    case.project.write("cell.yml", [fails])
    code, _ = case.project.run()
    assert code == 2
    assert case.marks(case.begun) == []


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """The callback, owing, in a project whose ansible-playbook says what it was told; and the project."""
    put_right = load("plugins/callback/put_right.py")
    printer = tmp_path / "ansible-playbook"
    printer.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nprintf "read %s\\n" "$(cat)"\nexit 3\n')
    printer.chmod(0o755)
    monkeypatch.setattr(put_right.sys, "executable", str(tmp_path / "python3"))
    # This process keeps its signals.
    monkeypatch.setattr(put_right, "_ignore_signals", lambda: None)
    callback = put_right.CallbackModule()
    callback.teardown = tmp_path / "playbooks/teardown.yml"
    return callback, tmp_path


def told(
    asked: tuple[Any, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **given: Any
) -> list[str]:
    callback, _ = asked
    monkeypatch.setattr("ansible.context.CLIARGS", given)
    callback.put_right()
    assert capfd.readouterr().err == ""
    callback.owed = True
    callback.put_right()
    callback.owed = False
    return capfd.readouterr().err.splitlines()[2:]


def test_the_teardown_gets_the_inventory_limit_variables_and_rights_of_the_run(
    asked: tuple[Any, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = asked[1]
    said = told(
        asked,
        capfd,
        monkeypatch,
        inventory=(str(folder),),
        subset="host1",
        extra_vars=("guests=2", '{"focus": 2}'),
        become_password_file=str(folder / "password"),
    )
    assert said == [
        *("-i", str(folder), "--limit", "host1", "-e", "guests=2", "-e", '{"focus": 2}'),
        *("--become-password-file", str(folder / "password")),
        str(folder / "playbooks/teardown.yml"),
        "read ",
        f"{folder}/playbooks/teardown.yml failed: run `make teardown`.",
    ]


def test_a_password_that_was_asked_for_is_not_asked_for_again_and_is_in_no_command_line(
    asked: tuple[Any, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        become_pass = "open sesame"  # noqa: S105 -- of nobody

    asked[0].set_play_context(Context())
    said = told(asked, capfd, monkeypatch, become_ask_pass=True)
    assert said[:4] == [
        "--become-password-file",
        "-",
        str(asked[0].teardown),
        "read open sesame",
    ]
