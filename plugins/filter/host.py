"""Filters of the playbooks that provision a host and put it right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

from analysis.plan.policies import policy_names, read_policy


def largest_number(given: object) -> int:
    """Return the largest of one whole number or several: a number, a list, or a text with commas between.

    AnsibleFilterError for anything else.
    """
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else str(given).split(",")
    try:
        return max(int(str(one)) for one in several)
    except ValueError:
        raise AnsibleFilterError(
            f"{given!r} is no whole number, and no list of them such as 2,4,6,15"
        ) from None


def ports_of(base: int | str, count: int | str) -> list[int]:
    """Return the ports that the first `count` guests have: those that follow `base`."""
    return list(range(int(base) + 1, int(base) + int(count) + 1))


def policy_services(folder: str) -> list[str]:
    """Return the services of the policies in a folder, each once."""
    path = Path(folder).resolve()
    return sorted({service for name in policy_names(path) if (service := read_policy(name, path).service)})


def what_is_left(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return "name (why)" of each registered result that failed; `names` are in the order of the results."""
    return [
        f"{name} ({reason(result)})"
        for name, result in zip(names, results, strict=True)
        if result.get("failed")
    ]


def reason(result: Mapping[str, Any]) -> str:
    """Return why a task failed; of a loop, why its items did."""
    failed = [item for item in result.get("results") or () if item.get("failed")] or [result]
    said = (" ".join(str(item.get("msg") or "it failed").split()).rstrip(".") for item in failed)
    return ", ".join(dict.fromkeys(said))


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "largest_number": largest_number,
            "ports_of": ports_of,
            "policy_services": policy_services,
            "what_is_left": what_is_left,
        }
