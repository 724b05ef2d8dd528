"""Every role: its defaults against its argument_specs, its variables' names, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_files import ROOT, load

from analysis.plan.workloads import read_workload, workload_names

ROLES = sorted(path.parent for path in (ROOT / "roles").glob("*/tasks"))
NAMES = [role.name for role in ROLES]


def contents(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def entries(role: Path) -> dict[str, dict[str, Any]]:
    specs = contents(role / "meta/argument_specs.yml")["argument_specs"]
    return {name: spec.get("options", {}) for name, spec in specs.items()}


def test_all_roles_are_here() -> None:
    assert set(NAMES) == {"census", "debian_host", "guest_image", "guests", "ksm", "kvm_host"}


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_the_defaults_are_those_of_the_argument_specs(role: Path) -> None:
    stated: dict[str, Any] = {}
    required = set()
    for options in entries(role).values():
        for name, option in options.items():
            if option.get("required"):
                required.add(name)
                assert "default" not in option
            else:
                assert stated.setdefault(name, option["default"]) == option["default"]
    assert contents(role / "defaults/main.yml") == stated
    assert not required & stated.keys()


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_each_entry_point_has_its_specs_and_its_variables_the_roles_prefix(role: Path) -> None:
    specs = entries(role)
    assert set(specs) == {path.stem for path in (role / "tasks").glob("*.yml")}
    for options in specs.values():
        for name, option in options.items():
            assert name.startswith(f"{role.name}_")
            assert option["type"] and "".join(option["description"]).endswith(".")


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_each_role_has_a_readme_a_license_and_a_scenario(role: Path) -> None:
    readme = (role / "README.md").read_text()
    assert readme.startswith(f"# {role.name}\n")
    variables = {name for options in entries(role).values() for name in options}
    assert "meta/argument_specs.yml" in readme or all(f"`{name}`" in readme for name in variables)
    assert contents(role / "meta/main.yml")["galaxy_info"]["license"] == "Apache-2.0"
    assert (role / "molecule/default/verify.yml").is_file()


def test_the_program_in_the_guests_knows_every_content_of_the_workloads() -> None:
    program = load("roles/guests/files/testbed_workload.py")
    contents = {
        segment["content"]
        for name in workload_names()
        for segment in read_workload(name).to_json()["segments"]
    }
    assert contents and contents <= set(program.CONTENTS)
