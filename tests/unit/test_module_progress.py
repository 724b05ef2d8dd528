"""What a long module knows of the one who waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from plugin_files import ROOT, load
from waiting import FOREVER_SECONDS

from analysis.progress import module as progress_module
from analysis.progress.module import run_with_progress

progress_file = load("plugins/module_utils/progress.py")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path, Clock]:
    clock = Clock()
    monkeypatch.setattr(progress_file.time, "monotonic", clock.monotonic)
    (tmp_path / "progress").touch()
    return progress_file.Progress(str(tmp_path / "progress"), 60), tmp_path / "progress", clock


def test_polls_keep_a_module_going(waiting: tuple[Any, Path, Clock]) -> None:
    progress, path, clock = waiting
    for poll in range(100):
        clock.now += 5
        os.utime(path, (poll, 0))
        assert progress.abandoned() is None
    for _ in range(12):
        clock.now += 5
        assert progress.abandoned() is None
    clock.now += 5
    assert progress.abandoned() == "its controller has not asked for 60 s"
    # Nobody else would remove it.
    assert not path.exists()


def test_lines_that_the_module_writes_are_no_polls(waiting: tuple[Any, Path, Clock]) -> None:
    progress, path, clock = waiting
    said = []
    # To be read afterwards: that sets the access time, as a poll does.
    with path.open() as lines:
        for number in range(13):
            progress.say(f"line {number}")
            clock.now += 5
            said.append(progress.abandoned())
        assert said == [None] * 12 + ["its controller has not asked for 60 s"]
        assert lines.read().splitlines() == [f"line {number}" for number in range(13)]


def test_a_machine_that_was_paused_for_an_hour_is_not_abandoned(waiting: tuple[Any, Path, Clock]) -> None:
    progress, path, clock = waiting
    clock.now += 3600
    assert progress.abandoned() is None
    os.utime(path, (1, 1))
    clock.now += 1
    assert progress.abandoned() is None


def test_another_file_in_place_of_the_progress_is_no_progress(waiting: tuple[Any, Path, Clock]) -> None:
    progress, path, _ = waiting
    path.with_name("other").touch()
    path.with_name("other").replace(path)
    assert progress.abandoned() == "its controller asked it to end"


def test_a_link_in_place_of_the_progress_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(progress_file.ProgressError, match="link cannot be written"):
        progress_file.Progress(str(tmp_path / "link"))


def test_a_module_that_does_not_look_ends_when_its_progress_is_removed(tmp_path: Path) -> None:
    (tmp_path / "progress").touch()
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT / 'plugins/module_utils')!r});"
        "from progress import Progress, end_when_abandoned;"
        f"end_when_abandoned(Progress({str(tmp_path / 'progress')!r})); print('begun', flush=True);"
        "time.sleep(3600)"
    )
    module = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert module.stdout is not None and module.stdout.readline() == "begun\n"
    (tmp_path / "progress").unlink()
    assert module.wait(FOREVER_SECONDS) == 1


def test_each_run_of_a_module_has_a_progress_file_of_its_own() -> None:
    """Two at once removed each other's."""
    asked: list[str] = []

    class Action:
        _task = SimpleNamespace(check_mode=False, async_val=0, name="Work", action="census")

        def _low_level_execute_command(self, _command: str, **_options: Any) -> dict[str, Any]:
            return {"rc": 0, "stdout": "", "stderr": ""}

        def _execute_module(self, module_args: dict[str, Any], **_options: Any) -> dict[str, Any]:
            asked.append(module_args["progress_path"])
            return {"failed": True, "msg": "as asked"}

    for _ in range(2):
        run_with_progress(Action(), "census", {}, {}, 1.0, "/run")
    assert len(set(asked)) == 2
    assert all(path.startswith("/run/ksm-testbed-census-") for path in asked)


def test_a_progress_file_that_is_still_being_made_when_the_run_is_ended_is_removed(tmp_path: Path) -> None:
    """The shell on the host goes on when its caller is interrupted."""
    told: list[str] = []

    class Action:
        _task = SimpleNamespace(check_mode=False, async_val=0, name="Work", action="census")

        def _low_level_execute_command(self, command: str, **_options: Any) -> dict[str, Any]:
            if not told:
                os.kill(os.getpid(), signal.SIGINT)
            subprocess.run(["sh", "-c", command], check=True)
            told.append(command)
            return {"rc": 0, "stdout": "", "stderr": ""}

    # Ignored where the tests run in the background
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_with_progress(Action(), "census", {}, {}, 1.0, str(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(told) == 2
    assert list(tmp_path.iterdir()) == []


class Silent:
    """An action whose host answers no poll before this second, and then that its module has ended."""

    def __init__(self, clock: Clock, until: float) -> None:
        self.clock, self.until = clock, until
        self.told: list[str] = []
        self._task = SimpleNamespace(check_mode=False, async_val=0, name="Work", action="census")
        self._templar = SimpleNamespace(template=lambda value: value)

    def _execute_module(self, **_options: Any) -> dict[str, Any]:
        return {"ansible_job_id": "j1.1", "results_file": "/nowhere/j1.1"}

    def _low_level_execute_command(self, command: str, **_options: Any) -> dict[str, Any]:
        if "tail -c" in command and self.clock.now < self.until:
            self.clock.now += 10
            raise AnsibleConnectionFailure("no route to host")
        self.told.append(command)
        return {"rc": 0, "stdout": "ended\n", "stderr": ""}

    def _parse_returned_data(self, _said: dict[str, Any], _profile: str) -> dict[str, Any]:
        return {"changed": True}


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> tuple[Clock, list[str]]:
    clock, shown = Clock(), []

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=sleep))
    monkeypatch.setattr(progress_module.Display, "display", lambda _display, text: shown.append(text))
    return clock, shown


def test_a_host_that_answers_again_while_it_keeps_the_lease_goes_on(silent: tuple[Clock, list[str]]) -> None:
    clock, shown = silent
    result = run_with_progress(
        Silent(clock, clock.now + 170), "census", {}, {"inventory_hostname": "kvm1"}, 7200
    )
    assert result["changed"] is True
    assert shown[1:] == ["    [kvm1] it does not answer, and is asked again for 180 s"]


def test_a_host_that_keeps_silent_is_given_up_when_its_lease_is_over_not_after_hours(
    silent: tuple[Clock, list[str]],
) -> None:
    clock, _ = silent
    action = Silent(clock, clock.now + 3600)
    with pytest.raises(AnsibleConnectionFailure) as given_up:
        run_with_progress(action, "census", {}, {"inventory_hostname": "kvm1", "lease_seconds": "90"}, 7200)
    # Polls of 10 s each, a second between two: the first one after 90 s is the tenth, 99 s after the first.
    assert str(given_up.value) == (
        "kvm1 has not answered for 99 s (no route to host): where it lives it puts itself right, "
        "90 s after it was last heard of"
    )
    # Nothing more was tried there than to make the progress file.
    assert len(action.told) == 1
