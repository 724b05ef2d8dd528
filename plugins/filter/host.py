"""Filters of the playbook that provisions a host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError


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


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "largest_number": largest_number,
            "ports_of": ports_of,
        }
