"""What a census needs is installed where one is asked for; with a role that only pretends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from playing import play as play_tasks
from playing import play_book
from plugin_files import ROOT

INSTALL = yaml.safe_load((ROOT / "playbooks/provision.yml").read_text())[0]["tasks"][-1]


def play(tmp_path: Path, tasks: list[dict[str, Any]], *words: str, **variables: Any) -> tuple[int, str]:
    """Play tasks on two hypervisors."""
    role = tmp_path / "roles/census/tasks"
    role.mkdir(parents=True, exist_ok=True)
    tell = {"ansible.builtin.debug": {"msg": "counted on {{ inventory_hostname }}"}}
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


@pytest.mark.parametrize("run_id", ["../../etc", "/etc", "a/b", "reference", "..", "-x"])
def test_a_census_by_itself_takes_no_run_id_that_leads_elsewhere(tmp_path: Path, run_id: str) -> None:
    """It is refused before a package is installed or a folder made."""
    (tmp_path / "hosts.yml").write_text("hypervisors: {hosts: {host1: {}}}\n")
    given = json.dumps({"run_id": run_id, "results_directory": str(tmp_path / "results")})
    code, out = play_book(ROOT / "playbooks/census.yml", "-e", given, hosts=str(tmp_path / "hosts.yml"))
    assert code == 2, out
    assert f"run_id is '{run_id}'" in " ".join(out.split())
    assert "TASK [Take the census]" not in out and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("run_id", "host", "said"),
    [
        ("../up", "localhost", "census_record: run_id is '../up': allowed is"),
        ("fine", "two words", "census_record: a host of the group hypervisors is 'two words': allowed is"),
    ],
)
def test_the_role_by_itself_takes_none_either(tmp_path: Path, run_id: str, host: str, said: str) -> None:
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": {host: {}}}}))
    task = {"census_record": {"run_id": run_id, "directory": str(tmp_path / "results")}}
    code, out = play_tasks(tmp_path, [task], hosts=str(tmp_path / "hosts.yml"))
    assert code == 2 and said in " ".join(out.split()), out
    assert not (tmp_path / "results").exists()


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
    code, out = play(tmp_path, [INSTALL], *words, census=census, survey_sample="0")
    assert code == 0, out
    assert ("counted on hv1" in out) is installed
