"""`python -m analysis run`: a campaign through ansible-runner, with live progress and a proof at the end."""

import os
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import ansible_runner  # type: ignore[import-untyped]

from analysis.design import (
    PLAN_FILE,
    PROJECT,
    RESULTS,
    VARIABLES,
    DesignError,
    check_resumable,
    check_run_id,
    check_variable,
    new_run_id,
    read_plan,
)
from analysis.interruption import record_interruption
from analysis.records import COMPLETE, load_run

CAMPAIGN = Path("playbooks/experiment.yml")
TEARDOWN = Path("playbooks/teardown.yml")
INTERRUPTED = 130

# Variables that are options of the command line, too
OPTIONS = ("focus", "workloads", "policies", "guests", "boots", "repetitions")

_SLOW_SECONDS = 5.0


@dataclass(frozen=True)
class Campaign:
    """What to drive: project, results, inventory, the variables that differ from the project's own, run."""

    project: Path
    results: Path
    inventory: Path | None
    variables: Mapping[str, Any]
    run_id: str


def run(arguments: Namespace) -> int:
    """Drive a campaign from the command line. Raises UserError for a variable or a run id."""
    variables = _variables(arguments)
    if arguments.inventory and not arguments.inventory.exists():
        raise DesignError(f"--inventory is {str(arguments.inventory)!r}: there is no such file.")
    if arguments.resume:
        run_id = check_run_id(arguments.resume)
        former = check_resumable(read_plan(RESULTS / run_id)).design
        variables = {**_for_ansible({name: former[name] for name in VARIABLES}), **variables}
    else:
        run_id = new_run_id()
    return drive(Campaign(PROJECT, RESULTS, arguments.inventory, variables, run_id), sys.stdout)


def drive(campaign: Campaign, out: TextIO) -> int:
    """Run the campaign's playbook, tear down after Ctrl-C, and prove that every planned record exists.

    Returns the playbook's exit code; 1 when it was 0 and a record is missing; 130 after Ctrl-C.
    """
    progress = Progress(out)
    progress.say(f"run {campaign.run_id}")
    status, code = play(campaign, CAMPAIGN, progress)
    if status == "canceled":
        progress.say("interrupted: putting the host right (a second Ctrl-C stops that too)")
        _status, torn_down = play(campaign, TEARDOWN, progress)
        if torn_down:
            progress.say(f"{TEARDOWN} failed with exit code {torn_down}: run it again")
        code = INTERRUPTED
        if (campaign.results / campaign.run_id / PLAN_FILE).exists():
            record_interruption(campaign.results / campaign.run_id, progress.measuring)
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
    """Turns the events of ansible-runner into lines, as they come.

    ``measuring``: hypervisor -> cell_id, phase and task that it was last seen in.
    """

    out: TextIO
    started: float = field(default_factory=time.monotonic)
    seen: int = 0
    measuring: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """One line, with the time since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        print(f"[{minutes:3d}:{seconds:02d}] {text}", file=self.out, flush=True)

    def event(self, event: Mapping[str, Any]) -> bool:
        """Handle one event; False, for it need not be stored."""
        handler = self._handlers().get(str(event.get("event")))
        self.seen += handler is not None
        if handler is not None:
            handler(event)
        return False

    def _handlers(self) -> dict[str, Callable[[Mapping[str, Any]], None]]:
        return {
            "playbook_on_play_start": lambda event: self.say(f"== {event['event_data'].get('name', '')}"),
            "playbook_on_task_start": lambda event: self.say(event["event_data"].get("task", "")),
            "runner_on_ok": self._ok,
            "runner_on_failed": self._failed,
            "runner_on_unreachable": self._failed,
            "runner_item_on_failed": self._failed,
            "verbose": self._verbose,
        }

    def _verbose(self, event: Mapping[str, Any]) -> None:
        for line in str(event.get("stdout", "")).splitlines():
            if line.strip():
                self.say(f"  {line.strip()}")

    def _ok(self, event: Mapping[str, Any]) -> None:
        data = event["event_data"]
        duration = float(data.get("duration") or 0)
        if duration >= _SLOW_SECONDS or data.get("res", {}).get("changed"):
            self.say(f"  {data.get('host')}: done in {duration:.1f} s")

    def _failed(self, event: Mapping[str, Any]) -> None:
        data = event["event_data"]
        if data.get("ignore_errors"):
            return
        message = data.get("res", {}).get("msg") or "failed"
        self.say(f"  {data.get('host')}: FAILED in {data.get('task')!r}: {message}")


def _variables(arguments: Namespace) -> dict[str, Any]:
    given = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    for text in arguments.extra_var:
        name, separator, value = text.partition("=")
        if not separator:
            raise DesignError(f"-e {text!r} cannot be read: allowed is NAME=VALUE.")
        given[name] = value
    return _for_ansible({name: check_variable(name, value) for name, value in given.items()})


def _for_ansible(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Typed variables as -e would hand them over: lists with commas between."""
    return {
        name: ",".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else value
        for name, value in variables.items()
    }


def play(campaign: Campaign, playbook: Path, progress: Progress) -> tuple[str, int]:
    """Run one playbook with the campaign's variables; its status and exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
                quiet=True,
            )
            if finished.rc and not progress.seen:
                # Ansible refused before its first event: only its output says why.
                progress.say(finished.stdout.read().strip())
            return str(finished.status), int(finished.rc)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _environment(project: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
    }


def _missing(campaign: Campaign) -> list[str] | None:
    """Planned cells that are not complete, and why; None when no cell was planned."""
    try:
        loaded = load_run(campaign.results / campaign.run_id)
    except DesignError:
        return None
    return [
        f"{records.cell.hypervisor} {records.cell.cell_id}: {records.problem}"
        for records in loaded.cells
        if records.status != COMPLETE
    ]
