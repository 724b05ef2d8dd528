"""The role ksm, played on a fake sysfs tree: every policy that there is, and a policy's service."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from planned import play_action
from playing import fake_systemd, play
from plugin_files import ROOT

from analysis.plan.policies import policy_names, read_policy

FIXTURES = ROOT / "tests/fixtures/sysfs"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "sysfs"
    shutil.copytree(FIXTURES / "linux-6.18", root)
    for name in (FIXTURES / "linux-6.18.read-only").read_text().split():
        (root / name).chmod(0o444)
    return root


def policy(name: str, **changes: Any) -> dict[str, Any]:
    """A policy as a plan has it, with what a record of it says."""
    content = {**read_policy(name).to_json(), **changes}
    asked = {"policy": name, "ksm_knobs": content["knobs"], "thp_enabled": content["thp_enabled"]}
    return {**content, "requested": {**asked, "service": content["service"]}}


def test_what_is_applied_is_what_a_record_of_the_policy_says(tree: Path, tmp_path: Path) -> None:
    overridden = policy("advisor", thp_enabled="never")
    overridden["knobs"] |= {"advisor_max_cpu": 55}
    plan = {"policies": {**{name: policy(name) for name in policy_names()}, "overridden": overridden}}
    settings = "{{ {'knobs': ksm_result.knobs, 'thp': ksm_result.thp} | to_json }}"
    each = [
        {
            "ansible.builtin.include_role": {"name": "ksm"},
            "vars": {"ksm_policy": "{{ the_plan.policies[one] }}"},
        },
        {
            "ansible.builtin.copy": {
                "content": settings,
                "dest": f"{tmp_path}/{{{{ one }}}}.json",
                "mode": "0600",
            }
        },
    ]
    (tmp_path / "each.yml").write_text(json.dumps(each))
    one_by_one = {
        "ansible.builtin.include_tasks": str(tmp_path / "each.yml"),
        "loop": list(plan["policies"]),
        "loop_control": {"loop_var": "one"},
    }
    code, out = play(
        tmp_path,
        [one_by_one],
        the_plan=plan,
        ksm_sysfs_root=str(tree),
        ksm_snapshot_path=str(tmp_path / "snapshot.json"),
    )
    assert code == 0, out
    for name, content in plan["policies"].items():
        applied = json.loads((tmp_path / f"{name}.json").read_text())
        requested = content["requested"]
        assert {knob: applied["knobs"][knob] for knob in requested["ksm_knobs"]} == requested["ksm_knobs"]
        assert applied["knobs"]["run"] == 0
        own = "madvise" if requested["thp_enabled"] == "keep" else requested["thp_enabled"]
        assert applied["thp"]["enabled"] == own
    assert json.loads((tmp_path / "overridden.json").read_text())["knobs"]["advisor_max_cpu"] == 55


@pytest.mark.parametrize(
    ("state", "former", "marked", "told"),
    [
        ("started", "inactive", False, "start tuner.service\n"),
        # What the host ran itself is not stopped either.
        ("started", "active", False, ""),
        ("stopped", "active", False, ""),
        ("stopped", "active", True, "stop tuner.service\n"),
    ],
)
def test_the_service_of_a_policy_is_started_and_stopped_where_the_host_did_not_run_it(
    tree: Path, tmp_path: Path, state: str, former: str, *, marked: bool, told: str
) -> None:
    systemd = fake_systemd(tmp_path)
    (tmp_path / "state").write_text(former)
    mark = tmp_path / "run/ksm-testbed-started-tuner.service"
    if marked:
        mark.touch()
    # As a unit that it requires may do
    (tree / "ksm/run").write_text("1\n")
    code, out = play(
        tmp_path,
        [{"ansible.builtin.include_role": {"name": "ksm", "tasks_from": "service"}}],
        environment=systemd,
        ksm_policy=policy("ksm", service="tuner.service"),
        ksm_service_state=state,
        ksm_run_root=str(tmp_path / "run"),
        ksm_sysfs_root=str(tree),
        ksm_snapshot_path=str(tmp_path / "snapshot.json"),
    )
    assert code == 0, out
    assert (tmp_path / "told").read_text() == told
    begins = told.startswith("start")
    assert mark.exists() is begins
    assert (tree / "ksm/run").read_text().strip() == ("0" if begins else "1")


def test_a_service_that_is_not_installed_is_refused_without_systemd_too(tmp_path: Path) -> None:
    code, out = play(
        tmp_path,
        [{"ansible.builtin.include_role": {"name": "ksm", "tasks_from": "service"}}],
        ksm_policy=policy("ksm", service="ksm-testbed-absent.service"),
        ksm_run_root=str(tmp_path / "run"),
    )
    assert code == 2
    assert "ksm-testbed-absent.service is not installed on this host: install its package" in " ".join(
        out.split()
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="who takes a lease is root")
@pytest.mark.skipif(not [*Path("/var/lib/apt/lists").glob("*_Packages*")], reason="apt has no lists")
def test_a_package_that_no_image_can_have_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    asked = {"packages": ["initramfs-tools", "ksm-testbed-absent"]}
    seen = play_action(tmp_path, {"check_host": asked}, "-e", f"lease_directory={tmp_path}/lease")
    assert seen["failed"] is True
    assert seen["msg"] == (
        "localhost: workloads need ksm-testbed-absent in the guests' image, and apt on this host knows no "
        "package of that name: correct packages in the files of workloads/, or run apt-get update."
    )
    assert not (tmp_path / "lease").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="who takes a lease is root")
def test_a_service_that_the_host_cannot_run_is_refused_before_anything_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSIBLE_LIBRARY", str(ROOT / "plugins/modules"))
    monkeypatch.setenv("ANSIBLE_MODULE_UTILS", str(ROOT / "plugins/module_utils"))
    policies = {"ksm": policy("ksm", service="ksm-testbed-absent.service")}
    seen = play_action(
        tmp_path, {"check_host": {"policies": policies}}, "-e", f"lease_directory={tmp_path}/lease"
    )
    assert seen["failed"] is True
    assert seen["msg"] == (
        "localhost: policy ksm: ksm-testbed-absent.service is not installed on this host: install its "
        "package. Mend that, or choose another policy."
    )
    assert not (tmp_path / "lease").exists()
