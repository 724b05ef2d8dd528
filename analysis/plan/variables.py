"""What a play's variables say, and the failures that it goes on after, for action plugins."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.plugins.action import ActionBase

SNAPSHOT = "/var/lib/ksm-testbed/ksm-snapshot.json"


def play_variables(action: ActionBase, task_vars: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The values of these variables, templated, as plain data; those that are not set are left out."""
    return plain_data({n: action._templar.template(task_vars[n]) for n in names if n in task_vars})


def snapshot_path(action: ActionBase, task_vars: Mapping[str, Any]) -> str:
    """Where the play keeps the KSM and THP settings before the first change; else where the role ksm does."""
    given = play_variables(action, task_vars, ("ksm_snapshot_path",))
    return str(given.get("ksm_snapshot_path", SNAPSHOT))


def plain_data(templated: Mapping[str, Any]) -> dict[str, Any]:
    """Templated values without the tags that Ansible puts on them: what modules and records are given."""
    plain: dict[str, Any] = json.loads(json.dumps(templated))
    return plain


def add_failure(task_vars: Mapping[str, Any], message: str) -> dict[str, list[str]]:
    """The facts of an action that lets the play go on: its host's failures so far, and this one."""
    former = task_vars.get("ansible_facts", {}).get("failures", [])
    return {"failures": [*map(str, former), message]}
