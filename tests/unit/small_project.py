"""A small project with this one's callbacks: cells of nothing, on hosts that are all this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugin_files import ROOT

# Returns what it is given, in place of the action that plans a run; with lines, a module's that are shown.
ACTION = """
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from analysis.progress.module import show_begin


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        arguments = dict(self._task.args)
        if "lines" in arguments:
            show_begin(self, task_vars)
        for line in arguments.pop("lines", []):
            Display().display(f"    [{task_vars['inventory_hostname']}] {line}")
        return {**super().run(tmp, task_vars), "changed": False, **arguments}
"""
CONFIGURATION = """
[defaults]
inventory = hosts.ini
action_plugins = action
callback_plugins = plugins/callback
callbacks_enabled = put_right, matrix
stdout_callback = testbed
display_skipped_hosts = False
localhost_warning = False
internal_poll_interval = 0.02
"""


# Undoes what nohup, or a shell that starts something in the background, has its children ignore.
HEED_SIGNALS = ("env", "--default-signal=INT,TERM,HUP")


class SmallProject:
    """Its folder, and ansible-playbook in it."""

    def __init__(self, folder: Path, hosts: Sequence[str] = ("localhost",)) -> None:
        self.folder = folder
        self.results = folder / "results/run"
        self.results.mkdir(parents=True)
        (folder / "plugins").mkdir()
        (folder / "plugins/callback").symlink_to(ROOT / "plugins/callback")
        (folder / "action").mkdir()
        for name in ("plan", "capacity_plan", "put_right", "guests", "measure_series"):
            (folder / f"action/{name}.py").write_text(ACTION)
        (folder / "ansible.cfg").write_text(CONFIGURATION)
        lines = [
            f"{host} ansible_connection=local ansible_python_interpreter={sys.executable}" for host in hosts
        ]
        (folder / "hosts.ini").write_text("[hypervisors]\n" + "\n".join(lines) + "\n")
        self.hosts = hosts

    def write(self, name: str, content: Any) -> None:
        path = self.folder / "playbooks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def experiment(
        self,
        cells: Sequence[Mapping[str, Any]],
        tasks: Sequence[Mapping[str, Any]],
        before: Sequence[Mapping[str, Any]] = (),
        play: str = "Measure the cells",
    ) -> None:
        """A playbook that includes the tasks once for each cell, as the experiment's."""
        pending = {host: [cell["cell_id"] for cell in cells] for host in self.hosts}
        plan = {"run_directory": str(self.results), "cells": list(cells), "pending": pending}
        self.write("cell.yml", list(tasks))
        self.write(
            "experiment.yml",
            [
                {"name": "Provision", "hosts": "hypervisors", "gather_facts": False, "tasks": list(before)},
                {
                    "name": play,
                    "hosts": "hypervisors",
                    "gather_facts": False,
                    "tasks": [
                        {"name": "List the cells", "plan": plan, "register": "plan", "run_once": True},
                        {"name": "Put right what an earlier run left", "put_right": {}},
                        {
                            "name": "Measure",
                            "ansible.builtin.include_tasks": "cell.yml",
                            "loop": "{{ plan.cells }}",
                            "loop_control": {"loop_var": "cell", "label": "{{ cell.cell_id }}"},
                        },
                        {"name": "Put the host right", "ansible.builtin.meta": "noop"},
                        {"name": "After the cells", "guests": {}},
                    ],
                },
            ],
        )

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.folder / "remote"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """ansible-playbook, its output in the file `said`, heeding signals whoever ignores them here."""
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(
                [
                    *HEED_SIGNALS,
                    Path(sys.executable).with_name("ansible-playbook"),
                    *words,
                    "playbooks/experiment.yml",
                ],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stderr=said,
                text=True,
                **{"stdout": said, **options},
            )

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def run(self, *words: str) -> tuple[int, str]:
        code = self.start(*words).wait()
        return code, self.said()
