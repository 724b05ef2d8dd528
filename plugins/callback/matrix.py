"""Progress of the matrix of cells, on the terminal and in a log beside the run's records."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

from analysis.progress.matrix import BEGINS, MEASURING_PLAYS, MODULE_LINE, PHASES, MatrixProgress, place_of
from analysis.records.writing import make_private_directory

DOCUMENTATION = """
name: matrix
type: notification
short_description: Say which cell of how many is measured, what it does and saved, and the time left
description:
  - Reads where a task stands from the variables C(cell) (of the include's loop) and C(phase) (of the task).
  - What it says goes through Ansible's display, so ansible-runner hands it on as events; and, with the lines
    of long modules, into C(progress.log) in the run's directory.
"""

LOG_FILE = "progress.log"
# Action -> where its result names the run's directory
PLANS = {"plan": "run_directory", "capacity_plan": "directory"}


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Lives in the main process, as every callback does."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "matrix"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Listen to what is shown."""
        super().__init__()
        self.main_process = os.getpid()
        self.progress = MatrixProgress(time.monotonic)
        self.measuring = False
        self.log: Path | None = None
        self._listen()

    def _listen(self) -> None:
        """Hear the lines of long modules: they come from worker processes to Ansible's display alone."""
        show = self._display.display

        def show_and_hear(msg: str, *arguments: Any, **options: Any) -> None:
            # A worker, forked from here, hands its lines to the main process, which shows them once more.
            mine = self.measuring and os.getpid() == self.main_process
            line = MODULE_LINE.fullmatch(str(msg)) if mine else None
            if line is None:
                show(msg, *arguments, **options)
            elif line["text"].startswith(BEGINS):
                task = line["text"].removeprefix(BEGINS)
                self._say(self.progress.module_begins(line["host"], task))
            else:
                self._say(self.progress.line_shown(line["host"], line["text"]))
                show(msg, *arguments, **options)
                self._write(self.progress.stamp(f"  [{line['host']}] {line['text']}"))

        self._display.display = show_and_hear

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A measuring play, or another one, begins."""
        self._say(self.progress.cell_ended())
        self.measuring = play.get_name() in MEASURING_PLAYS

    def v2_playbook_on_stats(self, _stats: Any) -> None:
        """All has been done."""
        self._say(self.progress.cell_ended())
        self.measuring = False

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """A task begins on a host."""
        if self.measuring:
            self._say(self.progress.task_started(host.get_name(), place_of(task)))

    def v2_runner_on_ok(self, result: Any) -> None:
        """Keep the plan; say that guests were booted anew."""
        if not self.measuring:
            return
        self._say(self.progress.works(result.host.get_name()))
        action, answer = result.task.action, result.result
        if action in PLANS and not context.CLIARGS.get("check"):
            self.log = Path(answer[PLANS[action]]) / LOG_FILE
            if "cells" in answer:
                self._say(self.progress.planned(answer["cells"], answer["pending"]))
        elif answer.get("missing") is True and action in PHASES:
            self._say(self.progress.missing(result.host.get_name(), action))
        elif action == "guests":
            times = answer.get("times") or {}
            if times.get("boot"):
                seconds = times["boot"] + times.get("save", 0)
                self._say(self.progress.booted(result.host.get_name(), seconds))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task failed."""
        if self.measuring and not ignore_errors:
            self._say(self.progress.failed(result.host.get_name(), result.task.name or result.task.action))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host does not answer."""
        self.v2_runner_on_failed(result, ignore_errors=bool(result.task.ignore_unreachable))

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self._display.display(line)
            self._write(line)

    def _write(self, line: str) -> None:
        """Append to the log; a full disk must not end a measurement."""
        if self.log is None:
            return
        with suppress(OSError):
            make_private_directory(self.log.parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.log, flags, 0o600)
            try:
                os.write(descriptor, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n".encode())
            finally:
                os.close(descriptor)
