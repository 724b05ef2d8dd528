"""Put a host right, on the host itself: by a controller's word, or without one by the lease's holder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NOT_INSTALLED = "Could not find the requested service"
# Longer than any limit of the modules themselves
STEP_SECONDS = 600


def put_right(steps: Iterable[Mapping[str, Any]]) -> tuple[bool, list[str], list[str]]:
    """Take each step, whatever became of those before it, and its modules until one fails.

    Args:
        steps: each with ``name`` for a person, ``needs``: paths without which there is nothing to do, and
            ``modules``: the texts of Ansible modules that have their arguments in them.

    Returns: whether anything was changed; what is left, each with its reasons; what the modules warn of.
    """
    answers = {
        step["name"]: _taken(step["modules"])
        for step in steps
        if all(Path(path).exists() for path in step["needs"])
    }
    every = [answer for said in answers.values() for answer in said]
    return (
        any(answer.get("changed") for answer in every),
        [f"{name} ({why})" for name, said in answers.items() if (why := reasons(said))],
        [_words(warning) for answer in every for warning in answer.get("warnings", [])],
    )


def _words(warning: str | Mapping[str, Any]) -> str:
    """A module's warning, which newer versions of Ansible wrap."""
    return warning if isinstance(warning, str) else str(warning["event"]["msg"])


def _taken(modules: Iterable[str]) -> list[dict[str, Any]]:
    """The results of a step's modules up to the first one that failed: what follows rests on it."""
    answers = []
    for text in modules:
        answers.append(_run(text))
        if answers[-1].get("failed"):
            break
    return answers


def _run(text: str) -> dict[str, Any]:
    """A module's result; failed=True also where it could not be run."""
    try:
        done = subprocess.run(
            [sys.executable, "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=STEP_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"failed": True, "msg": f"it did not end within {STEP_SECONDS} s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines()
        return {"failed": True, "msg": said[-1] if said else f"it ended with {done.returncode}"}
    return answer


def reasons(answers: Iterable[Mapping[str, Any]]) -> str:
    """Why modules failed, each reason once, empty where none did; a service that is not there is stopped."""
    said = (
        " ".join(str(answer.get("msg") or "it failed").split()).rstrip(".")
        for answer in answers
        if answer.get("failed")
    )
    return ", ".join(dict.fromkeys(text for text in said if NOT_INSTALLED not in text))
