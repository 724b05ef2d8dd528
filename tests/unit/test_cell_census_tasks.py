"""The census within a cell, as the playbook's own tasks do it, with a role that only pretends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_files import ROOT

(BLOCK,) = yaml.safe_load((ROOT / "playbooks/tasks/census.yml").read_text())
INSTALL = yaml.safe_load((ROOT / "playbooks/provision.yml").read_text())[0]["tasks"][-1]


def play(tmp_path: Path, tasks: list[dict[str, Any]], *words: str, **variables: Any) -> tuple[int, str]:
    """Play tasks on two hypervisors; the census fails on hv1 and is told on hv2."""
    role = tmp_path / "roles/census/tasks"
    role.mkdir(parents=True, exist_ok=True)
    fail = {"ansible.builtin.fail": {"msg": "no numpy."}, "when": "inventory_hostname == 'hv1'"}
    tell = {"ansible.builtin.debug": {"msg": "counted on {{ inventory_hostname }}"}}
    (role / "main.yml").write_text(json.dumps([fail, tell]))
    (role / "install.yml").write_text(json.dumps([tell]))
    start = {"hosts": "all", "gather_facts": False}
    (tmp_path / "play.yml").write_text(json.dumps([{**start, "vars": variables, "tasks": tasks}]))
    command = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        "hv1,hv2,",
        "-c",
        "local",
    ]
    done = subprocess.run(
        [*command, *words, tmp_path / "play.yml"],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(tmp_path / "roles"), "ANSIBLE_NOCOLOR": "1"},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_census_that_fails_leaves_the_cell_and_the_others_as_they_are_and_is_said(tmp_path: Path) -> None:
    told = "{{ failures | default([]) | map(attribute='message') | list }}"
    after = {"ansible.builtin.debug": {"msg": "{{ inventory_hostname }} goes on: " + told}}
    said = "hv1: no census of cell7, whose measurement is not affected: no numpy."
    cell = {"cell_id": "cell7"}
    code, out = play(tmp_path, [BLOCK, after], cell=cell)
    assert code == 0, out
    assert "counted on hv2" in out
    assert f"hv1 goes on: ['{said}']" in out
    assert "hv2 goes on: []" in out


def test_no_census_is_taken_unless_asked() -> None:
    (asked,) = [
        task
        for block in yaml.safe_load((ROOT / "playbooks/tasks/cell.yml").read_text())
        for task in block.get("block", [])
        if task.get("ansible.builtin.include_tasks") == "census.yml"
    ]
    assert asked["when"] == "plan.design.census"


@pytest.mark.parametrize(
    ("census", "words", "installed"),
    [
        ("false", [], False),
        ("true", [], True),
        ("true", ["--tags", "host"], True),
        ("true", ["--tags", "image"], False),
        ("false", ["--tags", "all,census"], True),
    ],
)
def test_the_packages_are_installed_when_a_census_is_asked_for(
    tmp_path: Path, census: str, words: list[str], installed: bool
) -> None:
    code, out = play(tmp_path, [INSTALL], *words, census=census)
    assert code == 0, out
    assert ("counted on hv1" in out) is installed
