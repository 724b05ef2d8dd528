"""Putting a host right: the action, with modules that only say that they were called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from playing import fake_systemd, play, play_book
from plugin_files import ROOT, load

from analysis.plan.variables import SNAPSHOT

put_right_action = load("plugins/action/put_right.py")
ACTION = ROOT / "plugins/action/put_right.py"
MODULES = ("guests", "ksm", "envelope")
OTHERS = ("ksm_pacer", "unit_process", "host_state")
THIS_BOOT = json.dumps({"boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip()})
STUB = """#!/usr/bin/python3
from ansible.module_utils.basic import AnsibleModule
names = ("state", "snapshot", "record", "directory")
module = AnsibleModule({name: {} for name in names}, supports_check_mode=True)
name = "NAME"
with open("LOG", "a") as log:
    kept = module.params["snapshot"] or module.params["record"] or module.params["directory"] or ""
    log.write(f"{name} {module.params['state']} {kept}".strip() + "\\n")
if name in "FAILING".split():
    module.fail_json(msg=f"no {name}\\ntoday.")
if "WARNING":
    module.warn("WARNING")
module.exit_json(changed=True, msg="All is as it was.")
"""


class Host:
    """A host whose modules write down that they were called; `failing` of them fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshot = folder / "snapshot.json"
        self.systemd = fake_systemd(folder)
        (folder / "policies").mkdir()

    def policy(self, name: str, service: str) -> None:
        (self.folder / f"policies/{name}.yml").write_text(
            yaml.safe_dump({"description": "For a test", "service": service})
        )

    def mark(self, service: str) -> None:
        """As the role ksm does before it starts the unit of a policy."""
        (self.folder / f"run/ksm-testbed-started-{service}").touch()

    def environment(self, failing: str, warning: str = "") -> dict[str, str]:
        library = self.folder / "library"
        library.mkdir(exist_ok=True)
        for name in (*MODULES, *OTHERS):
            text = STUB.replace("NAME", name).replace("LOG", str(self.folder / "log"))
            text = text.replace("WARNING", warning if name == "ksm" else "")
            (library / f"{name}.py").write_text(text.replace("FAILING", failing))
        for name in ("host_lease", "host_put_right"):
            shutil.copy(ROOT / f"plugins/modules/{name}.py", library)
        actions = self.folder / "actions"
        actions.mkdir(exist_ok=True)
        if not (actions / ACTION.name).exists():
            (actions / ACTION.name).symlink_to(ACTION)
        return {
            **self.systemd,
            "ANSIBLE_LIBRARY": str(library),
            "ANSIBLE_ACTION_PLUGINS": str(actions),
        }

    def put_right(
        self, failing: str = "", hosts: str = "localhost,", warning: str = "", **arguments: Any
    ) -> tuple[int, str]:
        task = {
            "put_right": {
                "policies": f"{self.folder}/policies",
                "run_root": f"{self.folder}/run",
                **arguments,
            }
        }
        after = {"ansible.builtin.debug": {"msg": "{{ inventory_hostname }} goes on"}}
        code, out = play(
            self.folder,
            [task, after],
            hosts=hosts,
            environment=self.environment(failing, warning),
            ksm_snapshot_path=str(self.snapshot),
        )
        return code, " ".join(out.split())

    @property
    def called(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_guests_go_first_then_ksm_is_restored_then_the_bound_goes(host: Host) -> None:
    code, out = host.put_right()
    assert code == 0, out
    assert host.called == ["guests absent", f"ksm restored {host.snapshot}", "envelope absent"]


def test_a_series_that_an_interrupted_run_left_in_the_background_is_told_to_end(host: Host) -> None:
    (host.folder / "run").mkdir(exist_ok=True)
    series = host.folder / "run/ksm-testbed-series.progress"
    series.touch()
    code, out = host.put_right()
    assert code == 0, out
    assert not series.exists()


@pytest.mark.parametrize(
    ("failing", "left"),
    [
        ("guests", "the guests (no guests today)"),
        ("ksm", "the KSM and THP settings (no ksm today)"),
        ("envelope", "the bound of their memory (no envelope today)"),
        (
            "guests ksm envelope",
            "the guests (no guests today); the KSM and THP settings (no ksm today); "
            "the bound of their memory (no envelope today)",
        ),
    ],
)
def test_each_step_is_taken_whatever_became_of_the_others_and_what_is_left_is_named(
    host: Host, failing: str, left: str
) -> None:
    code, out = host.put_right(failing)
    assert code == 2, out
    assert [line.split()[0] for line in host.called] == list(MODULES)
    assert f"localhost is not put right: {left}. Mend that, then run `make teardown`." in out
    assert "goes on" not in out


def test_the_proof_comes_last_and_is_said(host: Host) -> None:
    code, out = host.put_right(proves=True)
    assert code == 0, out
    assert [line.split()[0] for line in host.called] == [*MODULES, "host_state"]
    assert host.called[-1] == f"host_state compared {host.folder / 'host-state.json'}"
    assert "[localhost] All is as it was." in out


def test_a_host_that_is_not_as_it_was_fails_the_proof(host: Host) -> None:
    code, out = host.put_right("host_state", proves=True)
    assert code == 2, out
    assert "localhost is not put right: its state (no host_state today)." in out


def test_guests_that_are_to_be_kept_are_and_ksm_is_restored_when_its_daemon_has_ended(host: Host) -> None:
    unit, daemon = (host.folder / f"run/ksm-testbed-{name}" for name in ("unit", "pacer"))
    unit.mkdir()
    daemon.mkdir()
    code, out = host.put_right(keeps_guests=True)
    assert code == 0, out
    assert host.called == [
        f"unit_process stopped {unit}",
        f"ksm_pacer stopped {daemon}",
        f"ksm restored {host.snapshot}",
    ]


def test_services_of_policies_are_stopped_before_all_else_on_a_host_that_a_run_left(host: Host) -> None:
    host.policy("tuned", "tuner.service")
    host.policy("plain", "")
    host.policy("elsewhere", "not-installed.service")
    (host.folder / "state").write_text("active")
    host.mark("tuner.service")
    host.mark("not-installed.service")
    # What systemctl is told and what the modules are, in one order
    (host.folder / "told").unlink()
    (host.folder / "told").symlink_to(host.folder / "log")
    code, out = host.put_right()
    assert code == 0, out
    assert host.called[0] == "stop tuner.service"
    assert [line.split()[0] for line in host.called[1:]] == list(MODULES)
    assert not (host.folder / "run/ksm-testbed-started-tuner.service").exists()


def test_a_service_that_the_testbed_did_not_start_runs_on(host: Host) -> None:
    host.policy("tuned", "tuner.service")
    (host.folder / "state").write_text("active")
    host.snapshot.write_text(THIS_BOOT)
    code, out = host.put_right()
    assert code == 0, out
    assert (host.folder / "told").read_text() == ""


def test_what_a_module_warns_of_is_shown(host: Host) -> None:
    code, out = host.put_right(warning="snapshot a is of another boot, and put aside as b")
    assert code == 0, out
    assert "[WARNING]: snapshot a is of another boot, and put aside as b" in out


def test_a_service_that_does_not_stop_is_named_and_the_rest_is_put_right(host: Host) -> None:
    host.policy("tuned", "tuner.service")
    (host.folder / "state").write_text("active")
    host.mark("tuner.service")
    systemctl = host.folder / "bin/systemctl"
    systemctl.write_text(
        systemctl.read_text().replace("start*|stop*)", "stop*) echo no >&2; exit 1 ;;\nstart*)")
    )
    code, out = host.put_right()
    assert code == 2, out
    assert "is not put right: the service tuner.service (Unable to stop service tuner.service: no)" in out
    # So that it is owed still
    assert (host.folder / "run/ksm-testbed-started-tuner.service").exists()
    assert len(host.called) == 3


def test_the_teardown_puts_right_every_hypervisor(host: Host, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("[hypervisors]\nhv1\nhv2\n[others]\nother\n")
    settings = {"ksm_snapshot_path": str(host.snapshot), "ansible_become": False}
    code, out = play_book(
        ROOT / "playbooks/teardown.yml",
        "-e",
        json.dumps(settings),
        hosts=str(tmp_path / "hosts"),
        environment=host.environment(""),
    )
    assert code == 0, out
    called = [line.split()[0] for line in host.called]
    assert {name: called.count(name) for name in called} == dict.fromkeys((*MODULES, "host_state"), 2)


def test_the_snapshot_is_that_of_the_role_ksm() -> None:
    defaults = yaml.safe_load((ROOT / "roles/ksm/defaults/main.yml").read_text())
    assert defaults["ksm_snapshot_path"] == SNAPSHOT


def test_the_services_of_policies_are_each_named_once(tmp_path: Path) -> None:
    for name, service in {
        "a": "z.service",
        "b": "",
        "c": "y.service",
        "d": "z.service",
        "e": "ksm-pacer",
    }.items():
        (tmp_path / f"{name}.yml").write_text(f"description: One\nservice: '{service}'\n")
    assert put_right_action.policy_services(tmp_path) == ["y.service", "z.service"]


def test_after_an_interruption_the_teardown_that_is_run_exists() -> None:
    name = load("plugins/callback/put_right.py").TEARDOWN
    for playbook in ("experiment.yml", "capacity.yml"):
        assert (ROOT / "playbooks" / playbook).with_name(name).is_file()
