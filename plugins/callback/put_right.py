"""On Ctrl-C Ansible runs no `always` section: put the hosts right with the teardown playbook."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

from analysis.design import PLAN_FILE
from analysis.interruption import record_interruption

DOCUMENTATION = """
name: put_right
type: notification
short_description: Restore KSM and remove the guests after an interrupted experiment or capacity run
description:
  - A play that was interrupted leaves its C(always) sections undone. When a measuring play has
    begun and the run ends without its statistics, the teardown playbook is run with the same inventory.
"""

TEARDOWN = Path(__file__).resolve().parents[2] / "playbooks" / "teardown.yml"
MEASURING_PLAYS = ("Measure the cells", "Measure the capacity")


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Lives in the main process only."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "put_right"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Be ready for an end that comes without the statistics."""
        super().__init__()
        self.main_process = os.getpid()
        self.owed = False
        self.run_directory: str | None = None
        atexit.register(self.put_right)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """From here on something may have to be put right."""
        self.owed = self.owed or play.get_name() in MEASURING_PLAYS

    def v2_runner_on_ok(self, result: Any) -> None:
        """Keep where the run's records are: an interruption is recorded there."""
        if result.task.action == "plan":
            self.run_directory = str(result.result["run_directory"])

    def v2_playbook_on_stats(self, _stats: Any) -> None:
        """The play came to its end, its always sections with it."""
        self.owed = False

    def put_right(self) -> None:
        """Run the teardown playbook."""
        if not self.owed or os.getpid() != self.main_process:
            return
        print(
            "\nInterrupted: restoring the KSM settings and removing the guests; what was measured is kept.",
            file=sys.stderr,
        )
        if self.run_directory and Path(self.run_directory, PLAN_FILE).exists():
            record_interruption(Path(self.run_directory))
        # Ansible keeps its own terminal from its children, so the lines go through a pipe.
        with subprocess.Popen(
            [Path(sys.executable).with_name("ansible-playbook"), *self._teardown_options(), str(TEARDOWN)],
            cwd=TEARDOWN.parent.parent,
            # A password that was asked for is asked for again, on the terminal.
            stdin=None if context.CLIARGS.get("become_ask_pass") else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as teardown:
            for line in teardown.stdout or ():
                print(line, end="", file=sys.stderr)
        if teardown.returncode:
            print(f"{TEARDOWN} failed: run `make teardown`.", file=sys.stderr)

    @staticmethod
    def _teardown_options() -> list[str]:
        """The inventory, variables and rights of the interrupted run, as options."""
        given = context.CLIARGS
        options = []
        for source in given.get("inventory") or ():
            options += ["-i", str(Path(source).resolve()) if Path(source).exists() else source]
        for variables in given.get("extra_vars") or ():
            options += ["-e", f"@{Path(variables[1:]).resolve()}" if variables.startswith("@") else variables]
        if given.get("become_password_file"):
            options += ["--become-password-file", str(Path(given["become_password_file"]).resolve())]
        if given.get("become_ask_pass"):
            options.append("--ask-become-pass")
        return options
