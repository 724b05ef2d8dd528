"""Packages are installed when they are not there; apt is not asked about those that are."""

from __future__ import annotations

from typing import Any

import pytest
from plugin_files import load

packages = load("plugins/action/packages.py")

THERE = {"rc": 0, "stdout": "installed\r\ninstalled\r\n"}
REMOVED = {"rc": 0, "stdout": "installed\nconfig-files\n"}
UNKNOWN = {"rc": 1, "stdout": "installed\n"}
FAILED = {"failed": True, "msg": "No package matching 'two' is available"}
DONE = {"changed": True}


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the action against dpkg's answer and apt's ones: (its result, what apt was asked)."""

    def run(dpkg: dict[str, Any], *apt: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        action = object.__new__(packages.ActionModule)
        answers, asked = iter(apt), []

        def execute(module_args: dict[str, Any], **_options: Any) -> dict[str, Any]:
            asked.append(module_args)
            return next(answers)

        monkeypatch.setattr(packages.ActionBase, "run", lambda *_arguments: {})
        given = (None, {"name": ["one", "two"]})
        monkeypatch.setattr(action, "validate_argument_spec", lambda **_spec: given, raising=False)
        monkeypatch.setattr(action, "_low_level_execute_command", lambda _command: dpkg, raising=False)
        monkeypatch.setattr(action, "_execute_module", execute, raising=False)
        return action.run(), asked

    return run


def test_apt_is_not_asked_about_what_is_installed(play: Any) -> None:
    assert play(THERE) == ({"changed": False}, [])


@pytest.mark.parametrize("dpkg", [REMOVED, UNKNOWN])
def test_what_is_missing_is_installed_without_what_it_recommends(play: Any, dpkg: dict[str, Any]) -> None:
    assert play(dpkg, DONE) == (DONE, [{"name": ["one", "two"], "install_recommends": False}])


def test_without_package_lists_they_are_fetched_and_it_is_tried_once_more(play: Any) -> None:
    result, asked = play(UNKNOWN, FAILED, DONE)
    assert (result, [one.get("update_cache") for one in asked]) == (DONE, [None, True])


def test_a_package_that_does_not_exist_is_named(play: Any) -> None:
    assert play(UNKNOWN, FAILED, FAILED)[0] == FAILED
