"""What the provisioning checks the host for, by its own playbook with roles that only say what they got."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from playing import play_book
from plugin_files import ROOT, load

host = load("plugins/filter/host.py")
ROLES = {
    "debian_host": "{{ given | to_json }}",
    "kvm_host": "kvm",
    "guest_image": "image",
    "census": "census",
}
GIVEN = {
    "guests": "{{ debian_host_guests }}",
    "ports": "{{ debian_host_ports }}",
    "disk_needs": "{{ debian_host_disk_needs | default([]) }}",
    "memory": "{{ debian_host_guest_memory_mib }}",
}


def provision(folder: Path, *words: str, **imported: Any) -> dict[str, Any]:
    """Play provision.yml as another playbook imports it; return what debian_host was given."""
    for role in ROLES:
        tasks = folder / "roles" / role / "tasks"
        tasks.mkdir(parents=True)
        for name in ("main", "install"):
            tasks.joinpath(f"{name}.yml").write_text("[]")
    keep = {
        "ansible.builtin.copy": {
            "content": "{{ given | to_json }}",
            "dest": f"{folder}/given",
            "mode": "0600",
        }
    }
    (folder / "roles/debian_host/tasks/main.yml").write_text(json.dumps([{**keep, "vars": {"given": GIVEN}}]))
    book = folder / "play.yml"
    book.write_text(
        json.dumps(
            [{"ansible.builtin.import_playbook": str(ROOT / "playbooks/provision.yml"), "vars": imported}]
        )
    )
    (folder / "hosts").write_text("[hypervisors]\nhv1\n")
    variables = ROOT / "inventory/group_vars/all/experiment.yml"
    # Those of the inventory have the lowest precedence of all.
    group_vars = folder / "group_vars/all.yml"
    group_vars.parent.mkdir()
    group_vars.write_text(variables.read_text())
    code, out = play_book(
        book,
        *("-e", '{"ansible_become": false}', *words),
        hosts=str(folder / "hosts"),
        environment={"ANSIBLE_ROLES_PATH": str(folder / "roles")},
    )
    assert code == 0, out
    given: dict[str, Any] = json.loads((folder / "given").read_text())
    return given


def test_alone_it_checks_for_the_experiments_guests(tmp_path: Path) -> None:
    given = provision(
        tmp_path, "-e", "guests=2,4,3", "-e", "guest_ssh_port_base=2000", "-e", "guest_memory_mib=256"
    )
    assert {name: given[name] for name in ("guests", "ports", "disk_needs")} == {
        "guests": 4,
        "ports": [2001, 2002, 2003, 2004],
        "disk_needs": [],
    }
    assert int(given["memory"]) == 256


def test_who_imports_it_says_for_how_many_whatever_the_experiments_guests(tmp_path: Path) -> None:
    """A capacity run needs the memory of one guest and the ports of all, also with -e guests."""
    need = {"path": "/var", "bytes": 5, "what": "the checkpoint"}
    given = provision(
        tmp_path,
        *("-e", "guests=7", "-e", "guest_ssh_port_base=2000"),
        provision_guests=1,
        provision_ports_count="{{ 1 + 2 }}",
        debian_host_disk_needs=[need],
    )
    assert (given["guests"], given["ports"], given["disk_needs"]) == (1, [2001, 2002, 2003], [need])


def test_the_ports_are_as_many_as_the_guests_unless_said_otherwise(tmp_path: Path) -> None:
    given = provision(tmp_path, "-e", "guests_overcommit=true", provision_guests="{{ 3 }}")
    assert given["ports"] == [22201, 22202, 22203]
    assert given["guests"] == 0


@pytest.mark.parametrize(
    ("guests", "largest"),
    [(15, 15), ("15", 15), ("2,4,15,6", 15), ([2, 10, 9], 10), (["2", "10", "9"], 10), ("[3]", None)],
)
def test_the_largest_of_numbers_however_they_are_given(guests: Any, largest: int | None) -> None:
    if largest is None:
        with pytest.raises(
            AnsibleFilterError, match=r"no whole number, and no list of them such as 2,4,6,15"
        ):
            host.largest_number(guests)
    else:
        assert host.largest_number(guests) == largest


@pytest.mark.parametrize("nothing", ["", [], "2,", None, 1.5, True])
def test_what_is_no_number_is_refused(nothing: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="is no whole number"):
        host.largest_number(nothing)
