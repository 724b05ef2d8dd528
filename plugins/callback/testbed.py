"""Ansible's own output without a line for each task: what is measured is said by the callback matrix."""

from __future__ import annotations

import time
from typing import Any

from ansible import context
from ansible.plugins.callback.default import CallbackModule as Default

from analysis.progress.matrix import MEASURING_PLAYS, duration

DOCUMENTATION = """
name: testbed
type: stdout
short_description: Plays, failures, messages and slow tasks; with -v, --check or --diff all that Ansible says
description:
  - Like C(default), without the banner and the lines of tasks that went well.
  - Outside the measuring plays, where nothing else tells how far it is, a task that took long is named.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

SLOW_SECONDS = 5.0


class CallbackModule(Default):  # type: ignore[misc]
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "testbed"

    def __init__(self) -> None:
        """No play has begun."""
        super().__init__()
        self.measuring = False
        self.began: dict[tuple[str, str], float] = {}

    def _all(self) -> bool:
        given = context.CLIARGS
        return bool(self._display.verbosity or given.get("check") or given.get("diff"))

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Name the play."""
        super().v2_playbook_on_play_start(play)
        self.measuring = play.get_name() in MEASURING_PLAYS

    def _task_start(self, task: Any, prefix: str | None = None) -> None:
        """Keep what a banner needs, for a task that fails."""
        if self._all():
            super()._task_start(task, prefix)
        else:
            self._task_type_cache[task._uuid] = prefix or "TASK"
            self._last_task_name = task.get_name().strip()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Keep the time."""
        super().v2_runner_on_start(host, task)
        self.began[host.get_name(), task._uuid] = time.monotonic()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Only what asks to be shown, as debug does, and what took long."""
        took = time.monotonic() - self.began.pop(
            (result.host.get_name(), result.task._uuid), time.monotonic()
        )
        if self._all() or (self._run_is_verbose(result) and not result.task.loop):
            super().v2_runner_on_ok(result)
            return
        self._handle_warnings_and_exception(result)
        if took >= SLOW_SECONDS and not self.measuring:
            name = result.task.get_name().strip()
            self._display.display(f"    [{self.host_label(result)}] {name}: {duration(took)}")

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """As of a whole task."""
        if self._all() or self._run_is_verbose(result):
            super().v2_runner_item_on_ok(result)
        else:
            self._handle_warnings_and_exception(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Say nothing of an include."""
        if self._all():
            super().v2_playbook_on_include(included_file)

    def v2_runner_retry(self, result: Any) -> None:
        """Say nothing of a wait."""
        if self._all():
            super().v2_runner_retry(result)
