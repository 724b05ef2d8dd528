"""A campaign through ansible-runner: live progress, Ctrl-C handed on, and a proof at the end."""

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import ansible_runner  # type: ignore[import-untyped]

from analysis.progress.matrix import MEASURING_PLAYS, duration
from analysis.records.loading import COMPLETE, load_run
from analysis.records.reading import RecordError

CAMPAIGN = Path("playbooks/experiment.yml")
INTERRUPTED = 130

_SLOW_SECONDS = 5.0
# A line of the callback matrix has the time already.
STAMPED = re.compile(r"\[ *\d+:\d\d\] ")


@dataclass(frozen=True)
class Campaign:
    """What to drive: project, results, inventory, the variables that differ from the project's own, run."""

    project: Path
    results: Path
    inventory: Path | None
    variables: Mapping[str, Any]
    run_id: str


def drive(campaign: Campaign, out: TextIO) -> int:
    """Run the campaign's playbook and prove that every planned record exists.

    Returns the playbook's exit code; 1 when it was 0 and a record is missing; 130 after Ctrl-C, which the
    playbook's own callback put_right has dealt with.
    """
    progress = Progress(out)
    progress.say(f"run {campaign.run_id}")
    code = play(campaign, CAMPAIGN, progress)
    if progress.stopped:
        code = INTERRUPTED
    missing = _missing(campaign)
    if missing is None:
        progress.say("no cell was planned")
        return code or 1
    if missing:
        progress.say(f"{len(missing)} planned cells are not complete:")
        for line in missing:
            progress.say(f"  {line}")
        progress.say(
            f"what was measured is kept; go on with: python -m analysis run --resume {campaign.run_id}"
        )
        return code or 1
    progress.say(f"every planned record of run {campaign.run_id} exists")
    return code


@dataclass
class Progress:
    """Turns the events of ansible-runner into lines, as they come, and hands Ctrl-C on to the playbook.

    ``playbook``: its process, once it has said something; ``stopped`` when it was told to end.
    """

    out: TextIO
    started: float = field(default_factory=time.monotonic)
    seen: int = 0
    measuring: bool = False
    playbook: int | None = None
    stopped: bool = False

    def say(self, text: str) -> None:
        """One line, with the time since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        self._print(f"[{minutes:3d}:{seconds:02d}] {text}")

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """End the playbook as Ctrl-C does."""
        self.stopped = True
        if self.playbook is not None:
            with suppress(ProcessLookupError):
                os.kill(self.playbook, signal.SIGINT)

    def canceled(self) -> bool:
        """Whether ansible-runner is to kill the playbook: only one that has not said anything yet."""
        return self.stopped and self.playbook is None

    def event(self, event: Mapping[str, Any]) -> bool:
        """Handle one event; False, for it need not be stored."""
        handler = self._handlers().get(str(event.get("event")))
        self.seen += handler is not None
        # The first one: after an interruption a teardown playbook speaks through it.
        self.playbook = self.playbook or event.get("pid")
        if handler is not None:
            handler(event)
        return False

    def _handlers(self) -> dict[str, Callable[[Mapping[str, Any]], None]]:
        return {
            "playbook_on_play_start": self._play,
            "runner_on_ok": self._ok,
            "runner_on_failed": self._failed,
            "runner_on_unreachable": self._failed,
            "runner_item_on_failed": self._failed,
            "verbose": self._verbose,
        }

    def _play(self, event: Mapping[str, Any]) -> None:
        name = event["event_data"].get("name", "")
        self.measuring = name in MEASURING_PLAYS
        self.say(f"== {name}")

    def _verbose(self, event: Mapping[str, Any]) -> None:
        for line in str(event.get("stdout", "")).splitlines():
            if STAMPED.match(line):
                self._print(line)
            elif line.strip():
                self.say(f"  {line.strip()}")

    def _ok(self, event: Mapping[str, Any]) -> None:
        data = event["event_data"]
        seconds = float(data.get("duration") or 0)
        # Of a measuring play the callback matrix tells.
        if seconds >= _SLOW_SECONDS and not self.measuring:
            self.say(f"  [{data.get('host')}] {data.get('task')}: {duration(seconds)}")

    def _failed(self, event: Mapping[str, Any]) -> None:
        data = event["event_data"]
        if data.get("ignore_errors"):
            return
        message = data.get("res", {}).get("msg") or "failed"
        self.say(f"  {data.get('host')}: FAILED in {data.get('task')!r}: {message}")


def play(campaign: Campaign, playbook: Path, progress: Progress) -> int:
    """Run one playbook with the campaign's variables; its exit code."""
    handlers = {number: signal.signal(number, progress.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with tempfile.TemporaryDirectory(prefix="ksm-testbed-") as directory:
            finished = ansible_runner.run(
                private_data_dir=directory,
                project_dir=str(campaign.project),
                playbook=str(campaign.project / playbook),
                inventory=str(campaign.inventory.absolute()) if campaign.inventory else None,
                extravars={**campaign.variables, "run_id": campaign.run_id},
                envvars=_environment(campaign.project),
                # Its own fact cache comes back empty with current ansible-core.
                settings={"fact_cache_type": "memory"},
                event_handler=progress.event,
                cancel_callback=progress.canceled,
                quiet=True,
            )
            if finished.rc and not progress.seen:
                # Ansible refused before its first event: only its output says why.
                progress.say(finished.stdout.read().strip())
            return int(finished.rc)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _environment(project: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
        # ansible-runner adds a folder of its own to this, in place of what ansible.cfg says.
        "ANSIBLE_CALLBACK_PLUGINS": str(project / "plugins/callback"),
    }


def _missing(campaign: Campaign) -> list[str] | None:
    """Planned cells that are not complete, and why; None when no cell was planned."""
    try:
        loaded = load_run(campaign.results / campaign.run_id)
    except RecordError:
        return None
    return [
        f"{records.cell.hypervisor} {records.cell.cell_id}: {records.problem}"
        for records in loaded.cells
        if records.status != COMPLETE
    ]
