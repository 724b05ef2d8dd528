"""What `make clean` plays on the hypervisors, with a module that only says that it was called."""

from __future__ import annotations

from pathlib import Path

from playing import play_book
from plugin_files import ROOT

STUB = """#!/usr/bin/python3
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({"state": {}, "checkpoints": {"type": "bool"}})
with open("LOG", "a") as log:
    log.write(f"{module.params['state']} {module.params['checkpoints']}\\n")
module.exit_json(changed=True, msg="checkpoints removed: boot1-512mib-0123456789ab (2712 MiB)")
"""


def test_clean_removes_the_guests_and_their_checkpoints_and_says_which(tmp_path: Path) -> None:
    for name in ("library", "actions"):
        (tmp_path / name).mkdir()
    (tmp_path / "actions/guests.py").symlink_to(ROOT / "plugins/action/guests.py")
    (tmp_path / "library/host_lease.py").symlink_to(ROOT / "plugins/modules/host_lease.py")
    (tmp_path / "library/guests.py").write_text(STUB.replace("LOG", str(tmp_path / "log")))
    (tmp_path / "hosts.yml").write_text("hypervisors: {hosts: {host1: {}}}\n")
    environment = {
        "ANSIBLE_LIBRARY": str(tmp_path / "library"),
        "ANSIBLE_ACTION_PLUGINS": str(tmp_path / "actions"),
        "ANSIBLE_BECOME_ASK_PASS": "False",
    }
    book = ROOT / "playbooks/clean.yml"
    code, out = play_book(book, hosts=str(tmp_path / "hosts.yml"), environment=environment)
    assert code == 0, out
    assert (tmp_path / "log").read_text() == "absent True\n"
    assert "checkpoints removed: boot1-512mib-0123456789ab (2712 MiB)" in " ".join(out.split())
