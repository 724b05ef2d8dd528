"""What a play's variables say, and the failures that it goes on after, for action plugins."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.plugins.action import ActionBase


def play_variables(action: ActionBase, task_vars: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The values of these variables, templated, as plain data; those that are not set are left out."""
    found = {name: action._templar.template(task_vars[name]) for name in names if name in task_vars}
    # Templated values carry Ansible's tags.
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def add_failure(task_vars: Mapping[str, Any], message: str) -> dict[str, list[str]]:
    """The facts of an action that lets the play go on: its host's failures so far, and this one."""
    former = task_vars.get("ansible_facts", {}).get("failures", [])
    return {"failures": [*map(str, former), message]}
