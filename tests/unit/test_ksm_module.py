"""The module plugins/modules/ksm.py against copies of fake sysfs trees.

A copied tree takes any value. What only a kernel refuses is played by KernelSysfs, which answers as the store
functions of mm/ksm.c (Linux 6.18) do. The rest of the tests run the module as Ansible does, as a process with
JSON arguments.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plugin_files
import pytest
from plugin_files import ROOT, load

from analysis.plan.policies import policy_names, read_policy

MODULE = "plugins/modules/ksm.py"
FIXTURES = ROOT / "tests/fixtures/sysfs"


ksm = load(MODULE)
ROOMY = ksm.Host(available_bytes=16 << 30, total_bytes=24 << 30, page_size_bytes=4096, boot_id="boot-a")

GONE_WHEN_UNMERGED = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "ksm_zero_pages")


def copy_tree(kernel: str, destination: Path) -> Path:
    shutil.copytree(FIXTURES / kernel, destination)
    for name in (FIXTURES / f"{kernel}.read-only").read_text().split():
        (destination / name).chmod(0o444)
    return destination


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def replace(path: Path, text: str) -> None:
    """Write a counter, which is read-only for those who are not root."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_text(text)
    path.chmod(stat.S_IMODE(mode))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_tree("linux-6.18", tmp_path / "sysfs")


@pytest.fixture
def old_tree(tmp_path: Path) -> Path:
    return copy_tree("linux-6.1", tmp_path / "sysfs-old")


def run(root: Path, *, check: bool = False, **options: Any) -> dict[str, Any]:
    return plugin_files.run(MODULE, check=check, sysfs_root=str(root), unmerge_timeout_seconds=0, **options)


def refusal(root: Path, **options: Any) -> str:
    """The message of a call that must fail and leave the tree as it was."""
    before = contents(root)
    result = run(root, **options)
    assert result.get("failed"), result
    assert contents(root) == before
    message = result["msg"]
    assert isinstance(message, str)
    assert "\n" not in message and "Traceback" not in message
    return message


class KernelSysfs(ksm.Sysfs):  # type: ignore[misc, name-defined]
    """A tree that answers writes as mm/ksm.c does: EBUSY, EINVAL, brackets, unmerging, resets."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.log: list[str] = []

    def counter(self, name: str) -> int:
        return int((self.root / "ksm" / name).read_text())

    def write(self, name: str, value: str) -> None:
        self.log.append(f"{name.removeprefix('ksm/')}={value}")
        busy = {"ksm/max_page_sharing", "ksm/merge_across_nodes"}
        if name in busy and self.counter("pages_shared"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        advised = self.has("ksm/advisor_mode") and self.read("ksm/advisor_mode") != "none"
        if name == "ksm/pages_to_scan" and advised:
            raise OSError(errno.EINVAL, "Invalid argument")
        if name == "ksm/advisor_mode" and self.read(name) != value:
            first = "100" if value == "none" else self.read("ksm/advisor_min_pages_to_scan")
            super().write("ksm/pages_to_scan", first)
        if name == "ksm/run" and value == "2" and self.read(name) != "2":
            for counter in filter(self.has, (f"ksm/{name}" for name in GONE_WHEN_UNMERGED)):
                replace(self.root / counter, "0\n")
        words = (self.root / name).read_text().replace("[", "").replace("]", "").split()
        if value in words and len(words) > 1:
            value = " ".join(f"[{word}]" if word == value else word for word in words)
        super().write(name, value)


def merge_pages(root: Path, pages_sharing: int = 1000) -> None:
    """Bring a tree into the state of a host where ksmd is at work."""
    for name, value in {"pages_shared": 10, "pages_sharing": pages_sharing, "pages_unshared": 7}.items():
        replace(root / "ksm" / name, f"{value}\n")
    (root / "ksm/run").write_text("1\n")


def apply(sysfs: Any, state: str = "present", host: Any = ROOMY, check: bool = False, **options: Any) -> Any:
    request = ksm.Request(
        state=state,
        knobs=options.get("knobs", {}),
        thp=options.get("thp", {}),
        optional=options.get("optional", ()),
        reset=options.get("reset", False),
        unmerge=options.get("unmerge", False),
        snapshot=options.get("snapshot"),
        unmerge_timeout_seconds=0,
    )
    return ksm.apply(sysfs, request, host, check)


# What the module sets, and how it reports it


def test_check_mode_then_apply_then_again(tree: Path) -> None:
    before = contents(tree)
    asked: dict[str, Any] = {"knobs": {"pages_to_scan": "20000", "run": 1}, "thp": {"khugepaged/defrag": 0}}

    foreseen = run(tree, check=True, **asked)
    assert foreseen["changed"]
    assert contents(tree) == before
    assert foreseen["knobs"]["pages_to_scan"] == 100

    applied = run(tree, **asked)
    assert applied["changed"]
    assert applied["diff"] == foreseen["diff"]
    assert "ksm/pages_to_scan 100\n" in applied["diff"]["before"]
    assert "ksm/pages_to_scan 20000\n" in applied["diff"]["after"]
    assert (applied["knobs"]["pages_to_scan"], applied["knobs"]["run"]) == (20000, 1)
    assert applied["thp"]["khugepaged/defrag"] == "0"
    changed = {name for name, text in contents(tree).items() if text != before[name]}
    assert changed == {"ksm/pages_to_scan", "ksm/run", "transparent_hugepage/khugepaged/defrag"}

    assert not run(tree, **asked)["changed"]


def test_every_writable_file_is_read_back_and_no_counter(tree: Path) -> None:
    result = run(tree)
    read_only = set((FIXTURES / "linux-6.18.read-only").read_text().split())
    names = {f"ksm/{name}" for name in result["knobs"]} | {
        f"transparent_hugepage/{name}" for name in result["thp"]
    }
    assert names == contents(tree).keys() - read_only
    assert not result["changed"]


def test_brackets_mark_the_selected_word(tree: Path) -> None:
    result = run(tree)
    assert result["knobs"]["advisor_mode"] == "none"
    assert result["thp"]["enabled"] == "madvise"
    assert result["thp"]["hugepages-2048kB/enabled"] == "inherit"
    assert not run(tree, knobs={"advisor_mode": "none"}, thp={"enabled": "madvise"})["changed"]
    assert run(tree, check=True, thp={"enabled": "never"})["changed"]


def test_a_tree_without_thp_has_no_thp_settings(tree: Path) -> None:
    shutil.rmtree(tree / "transparent_hugepage")
    assert run(tree)["thp"] == {}
    assert "whose THP settings are none" in refusal(tree, thp={"enabled": "never"})


# Refusals, each before anything is changed (run is asked with it and must stay 0)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        (
            {"page_to_scan": 1},
            "knob page_to_scan does not exist on this kernel, whose knobs are advisor_max_cpu, ",
        ),
        ({"../ksm/run": 1}, "knob ../ksm/run does not exist"),
        (
            {"pages_sharing": 1},
            "pages_sharing is a read-only counter, not a knob; this kernel's knobs are advisor_",
        ),
        (
            {"pages_to_scan": "many"},
            "knob pages_to_scan must be a whole number from 0 to 4294967295, not 'many'",
        ),
        ({"pages_to_scan": -1}, "knob pages_to_scan must be a whole number from 0 to 4294967295, not -1"),
        ({"pages_to_scan": 2**32}, "from 0 to 4294967295, not 4294967296"),
        ({"pages_to_scan": 1.5}, "not 1.5"),
        ({"pages_to_scan": None}, "not None"),
        ({"smart_scan": True}, "knob smart_scan must be a whole number from 0 to 1, not True"),
        ({"smart_scan": 2}, "from 0 to 1, not 2"),
        ({"max_page_sharing": 1}, "from 2 to 2147483647, not 1"),
        ({"advisor_target_scan_time": 0}, "from 1 to"),
        ({"run": 3}, "knob run must be a whole number from 0 to 2, not 3"),
        ({"advisor_mode": "fast"}, "knob advisor_mode must be one of none, scan-time, not 'fast'"),
        ({"advisor_mode": "scan-time", "pages_to_scan": 5}, "cannot be set while advisor_mode is scan-time"),
    ],
)
def test_bad_knob_is_refused(tree: Path, knobs: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(tree, knobs={"sleep_millisecs": 1, "run": 1, **knobs})


@pytest.mark.parametrize(
    ("thp", "sentence"),
    [
        ({"enabled": "maybe"}, "thp enabled must be one of always, madvise, never, not 'maybe'"),
        ({"enable": "never"}, "thp enable is not a setting of this kernel, whose THP settings are anon_"),
        ({"hpage_pmd_size": 1}, "thp hpage_pmd_size is not a setting"),
        ({"../ksm/run": 1}, "thp ../ksm/run is not a setting"),
        ({"khugepaged/defrag": 2}, "thp khugepaged/defrag must be a whole number from 0 to 1, not 2"),
        ({"khugepaged/max_ptes_none": 512}, "from 0 to 511, not 512"),
    ],
)
def test_bad_thp_is_refused(tree: Path, thp: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(tree, knobs={"sleep_millisecs": 1}, thp=thp)


@pytest.mark.parametrize("state", ["unmerged", "restored"])
def test_values_with_another_state_are_refused(tree: Path, tmp_path: Path, state: str) -> None:
    message = refusal(tree, state=state, snapshot=str(tmp_path / "s.json"), knobs={"run": 1})
    assert message == f"knobs and thp are for state present, not {state}"


def test_a_kernel_without_ksm_is_named(tmp_path: Path) -> None:
    assert "is missing: this kernel is built without KSM (CONFIG_KSM)" in refusal(tmp_path)


# Kernel 6.1


def test_old_kernel_refuses_what_it_lacks_by_name(old_tree: Path) -> None:
    message = refusal(old_tree, knobs={"sleep_millisecs": 1, "smart_scan": 0}, optional=["advisor_mode"])
    assert message.startswith(
        "knob smart_scan does not exist on this kernel, whose knobs are max_page_sharing, "
    )


def test_old_kernel_leaves_out_what_is_optional(old_tree: Path) -> None:
    asked: dict[str, Any] = {
        "knobs": {"pages_to_scan": 20000, "smart_scan": 0, "advisor_mode": "none"},
        "optional": ["smart_scan", "advisor_mode", "use_zero_pages"],
    }
    applied = run(old_tree, **asked)
    assert applied["missing"] == ["smart_scan", "advisor_mode"]
    assert applied["knobs"]["pages_to_scan"] == 20000
    assert "smart_scan" not in applied["knobs"]
    assert not (old_tree / "ksm/smart_scan").exists()
    again = run(old_tree, **asked)
    assert not again["changed"]
    assert again["missing"] == ["smart_scan", "advisor_mode"]


def test_old_kernel_unmerges_without_a_counter_of_zero_pages(old_tree: Path) -> None:
    (old_tree / "ksm/run").write_text("1\n")
    assert run(old_tree, state="unmerged")["knobs"]["run"] == 0
    assert not run(old_tree, state="unmerged")["changed"]


# Snapshot and restore


def test_snapshot_then_restore_brings_back_the_exact_tree(tree: Path, tmp_path: Path) -> None:
    former = contents(tree)
    path = tmp_path / "state" / "snapshot.json"
    sysfs = KernelSysfs(tree)
    apply(
        sysfs,
        snapshot=path,
        knobs={"pages_to_scan": 5, "max_page_sharing": 9, "smart_scan": 0, "use_zero_pages": 1, "run": 1},
        thp={"enabled": "never", "khugepaged/max_ptes_none": 0, "hugepages-64kB/enabled": "always"},
    )
    apply(sysfs, snapshot=path, knobs={"advisor_mode": "scan-time", "advisor_max_cpu": 20})
    merge_pages(tree)
    assert contents(tree) != former
    foreseen = apply(sysfs, "restored", snapshot=path, check=True)
    assert foreseen.changed and path.exists()

    assert apply(sysfs, "restored", snapshot=path).changed

    assert contents(tree) == former
    assert not path.exists()
    assert not apply(sysfs, "restored", snapshot=path).changed


def test_restore_of_a_process_run(tree: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "snapshot.json")
    former = run(tree)
    run(
        tree,
        snapshot=path,
        knobs={"run": 1, "advisor_max_cpu": 5},
        thp={"enabled": "never", "defrag": "defer"},
    )
    assert run(tree)["thp"]["enabled"] == "never"
    restored = run(tree, state="restored", snapshot=path)
    assert (restored["knobs"], restored["thp"]) == (former["knobs"], former["thp"])
    assert restored["changed"]
    absent = run(tree, state="restored", snapshot=path)
    assert not absent["changed"]


def test_snapshot_is_private_and_holds_the_state_before_the_first_change(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "state" / "snapshot.json"
    first = run(tree, snapshot=str(path), knobs={"sleep_millisecs": 1})
    stored = path.read_bytes()
    assert first["changed"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["snapshot.json"]
    assert json.loads(stored)["settings"]["ksm/sleep_millisecs"] == "20"

    run(tree, snapshot=str(path), knobs={"sleep_millisecs": 2})
    run(tree, snapshot=str(path), state="unmerged")

    assert path.read_bytes() == stored


def test_snapshot_is_stored_though_nothing_else_changes_and_not_in_check_mode(
    tree: Path, tmp_path: Path
) -> None:
    path = tmp_path / "snapshot.json"
    assert run(tree, check=True, snapshot=str(path), state="unmerged")["changed"]
    assert not path.exists()
    assert run(tree, snapshot=str(path), state="unmerged")["changed"]
    assert path.exists()
    assert not run(tree, snapshot=str(path), state="unmerged")["changed"]


def test_no_snapshot_is_stored_by_a_refused_call(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    refusal(tree, snapshot=str(path), knobs={"pages_to_scan": "many"})
    assert not path.exists()


def test_a_snapshot_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    path.write_text("theirs")
    with pytest.raises(ksm.KsmError, match="could not be stored, nothing was changed: File exists"):
        ksm.save_snapshot(path, ksm.Snapshot({"ksm/run": "0"}, 0, "boot-a"))
    assert path.read_text() == "theirs"


@pytest.mark.parametrize("state", ["present", "restored"])
@pytest.mark.parametrize(
    "damaged",
    [
        "",
        '{"schema_version": 1, "sett',
        "[]",
        '"text"',
        "{}",
        '{"schema_version": 1, "boot_id": "b", "merged_pages": 0, "settings": {"ksm/run": "0"}}',
        '{"schema_version": 2, "merged_pages": 0, "settings": {"ksm/run": "0"}}',
        '{"schema_version": 2, "boot_id": 1, "merged_pages": 0, "settings": {"ksm/run": "0"}}',
        '{"schema_version": 2, "boot_id": "b", "merged_pages": 0, "settings": {}}',
        '{"schema_version": 2, "boot_id": "b", "merged_pages": 0, "settings": {"ksm/run": 0}}',
        '{"schema_version": 2, "boot_id": "b", "merged_pages": 0, "settings": ["ksm/run"]}',
        b"\xff\xfe",
    ],
)
def test_damaged_snapshot_is_refused(tree: Path, tmp_path: Path, state: str, damaged: str | bytes) -> None:
    path = tmp_path / "snapshot.json"
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    message = refusal(tree, state=state, snapshot=str(path))
    assert message.startswith(f"snapshot {path} cannot be used (")
    assert message.endswith("set by hand what you need, and remove it")
    assert path.exists()


def test_snapshot_with_an_impossible_value_is_refused(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    run(tree, snapshot=str(path), knobs={"sleep_millisecs": 1})
    path.write_text(path.read_text().replace('"ksm/max_page_sharing": "256"', '"ksm/max_page_sharing": "x"'))
    assert "max_page_sharing must be a whole number" in refusal(tree, state="restored", snapshot=str(path))


def test_restore_on_another_kernel_reports_what_it_lacks(tree: Path, old_tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    run(tree, snapshot=str(path))
    (old_tree / "ksm/sleep_millisecs").write_text("1\n")
    restored = run(old_tree, state="restored", snapshot=str(path))
    assert restored["knobs"]["sleep_millisecs"] == 20
    assert {"smart_scan", "advisor_mode", "shrink_underused"} <= set(restored["missing"])
    assert "pages_to_scan" not in restored["missing"]


def test_a_snapshot_of_another_boot_is_named_and_put_aside_not_restored(tree: Path, tmp_path: Path) -> None:
    path, aside = tmp_path / "snapshot.json", tmp_path / "snapshot.json.other-boot1"
    sysfs = KernelSysfs(tree)
    assert apply(sysfs, snapshot=path, knobs={"sleep_millisecs": 1}).warnings == []
    former = path.read_text()
    said = [
        f"snapshot {path} is of another boot of this host, so it is not restored over what is set now; "
        f"it is put aside as {aside}"
    ]
    next_boot = dataclasses.replace(ROOMY, boot_id="boot-b")
    foreseen = apply(sysfs, "restored", next_boot, check=True, snapshot=path)
    assert foreseen.changed and foreseen.warnings == said and path.read_text() == former
    outcome = apply(sysfs, "restored", next_boot, snapshot=path)
    assert outcome.changed and outcome.warnings == said
    assert "snapshot stored" in outcome.before and "snapshot none" in outcome.after
    assert sysfs.read("ksm/sleep_millisecs") == "1"
    assert not path.exists() and aside.read_text() == former
    assert not apply(sysfs, "restored", next_boot, snapshot=path).changed


def test_a_snapshot_of_another_boot_makes_way_for_one_of_this(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    sysfs = KernelSysfs(tree)
    apply(sysfs, snapshot=path, knobs={"sleep_millisecs": 1})
    for number, boot_id in enumerate(("boot-b", "boot-c"), start=1):
        host = dataclasses.replace(ROOMY, boot_id=boot_id)
        former = path.read_text()
        apply(sysfs, host=host, snapshot=path, knobs={"sleep_millisecs": number + 1})
        stored = json.loads(path.read_text())
        assert (stored["boot_id"], stored["settings"]["ksm/sleep_millisecs"]) == (boot_id, str(number))
        assert (tmp_path / f"snapshot.json.other-boot{number}").read_text() == former


def test_a_snapshot_of_another_boot_is_a_warning_of_the_module(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    run(tree, snapshot=str(path), knobs={"sleep_millisecs": 1})
    content = json.loads(path.read_text())
    assert content["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    path.write_text(json.dumps({**content, "boot_id": "another"}))
    result = run(tree, state="restored", snapshot=str(path))
    assert result["knobs"]["sleep_millisecs"] == 1
    assert "is of another boot of this host" in str(result["warnings"])


# One policy after another


def apply_policy(sysfs: Any, name: str, snapshot: Path, **arguments: Any) -> Any:
    policy = read_policy(name)
    thp = {} if policy.thp_enabled == "keep" else {"enabled": policy.thp_enabled}
    return apply(
        sysfs,
        knobs=policy.knobs,
        optional=policy.optional_knobs,
        thp=thp,
        reset=True,
        snapshot=snapshot,
        **arguments,
    )


@pytest.mark.parametrize("former", policy_names())
@pytest.mark.parametrize("name", policy_names())
def test_a_policy_is_the_same_whatever_came_before(
    tree: Path, old_tree: Path, tmp_path: Path, former: str, name: str
) -> None:
    for number, root in enumerate((tree, old_tree)):
        lacks = [
            knob
            for knob in (*read_policy(former).needs, *read_policy(name).needs)
            if not (root / "ksm" / knob).exists()
        ]
        if lacks:
            continue
        fresh = KernelSysfs(shutil.copytree(root, tmp_path / f"fresh{number}"))
        alone = apply_policy(fresh, name, tmp_path / f"alone{number}.json").settings
        sysfs, path = KernelSysfs(root), tmp_path / f"after{number}.json"
        apply_policy(sysfs, former, path)
        merge_pages(root)
        apply(sysfs, "unmerged", snapshot=path)
        outcome = apply_policy(sysfs, name, path)
        assert outcome.settings == alone
        assert outcome.settings["ksm/run"] == "0"
        applied = {
            knob: outcome.settings[f"ksm/{knob}"]
            for knob in read_policy(name).knobs
            if knob not in outcome.missing
        }
        assert applied == {
            knob: str(value) for knob, value in read_policy(name).knobs.items() if knob not in outcome.missing
        }
        assert not apply_policy(sysfs, name, path).changed


def test_the_advisor_and_back_is_written_in_an_order_that_the_kernel_takes(
    tree: Path, tmp_path: Path
) -> None:
    sysfs, path = KernelSysfs(tree), tmp_path / "snapshot.json"
    apply_policy(sysfs, "ksm", path)
    assert sysfs.read("ksm/pages_to_scan") == "20000"
    sysfs.log.clear()
    apply_policy(sysfs, "advisor", path)
    # 500 is the advisor's own lower limit: nobody wrote it.
    assert sysfs.log == ["sleep_millisecs=20", "smart_scan=1", "advisor_mode=scan-time"]
    assert sysfs.read("ksm/pages_to_scan") == "500"
    sysfs.log.clear()
    apply_policy(sysfs, "ksm", path)
    assert sysfs.log == ["advisor_mode=none", "pages_to_scan=20000", "sleep_millisecs=10", "smart_scan=0"]


def test_what_the_advisor_moved_is_no_change(tree: Path, tmp_path: Path) -> None:
    sysfs, path = KernelSysfs(tree), tmp_path / "snapshot.json"
    apply_policy(sysfs, "advisor", path)
    (tree / "ksm/pages_to_scan").write_text("7777\n")
    assert not apply_policy(sysfs, "advisor", path).changed


@pytest.mark.parametrize(("moved", "run"), [("7777", "0"), ("500", "1")])
def test_an_advisor_that_has_scanned_begins_anew_with_unmerged_pages(
    tree: Path, tmp_path: Path, moved: str, run: str
) -> None:
    """The kernel keeps what it learnt of other pages where advisor_mode is written as it is."""
    sysfs, path = KernelSysfs(tree), tmp_path / "snapshot.json"
    apply_policy(sysfs, "advisor", path, unmerge=True)
    assert not apply_policy(sysfs, "advisor", path, unmerge=True).changed
    (tree / "ksm/pages_to_scan").write_text(f"{moved}\n")
    (tree / "ksm/run").write_text(f"{run}\n")
    sysfs.log.clear()
    assert apply_policy(sysfs, "advisor", path, unmerge=True).changed
    assert sysfs.log[0] == "advisor_mode=none"
    assert "advisor_mode=scan-time" in sysfs.log
    assert (sysfs.read("ksm/pages_to_scan"), sysfs.read("ksm/run")) == ("500", "0")


def test_reset_takes_back_what_is_not_asked_for_but_run(tree: Path, tmp_path: Path) -> None:
    sysfs, path = KernelSysfs(tree), tmp_path / "snapshot.json"
    apply(sysfs, snapshot=path, knobs={"merge_across_nodes": 0, "run": 1}, thp={"enabled": "never"})
    outcome = apply(sysfs, snapshot=path, knobs={"sleep_millisecs": 5}, reset=True)
    assert outcome.settings["ksm/merge_across_nodes"] == "1"
    assert outcome.settings["transparent_hugepage/enabled"] == "madvise"
    assert (outcome.settings["ksm/sleep_millisecs"], outcome.settings["ksm/run"]) == ("5", "1")


def test_reset_leaves_what_another_boot_had(tree: Path, tmp_path: Path) -> None:
    sysfs, path = KernelSysfs(tree), tmp_path / "snapshot.json"
    apply(sysfs, snapshot=path, knobs={"sleep_millisecs": 7})
    next_boot = dataclasses.replace(ROOMY, boot_id="boot-b")
    outcome = apply(sysfs, host=next_boot, snapshot=path, knobs={"smart_scan": 0}, reset=True)
    assert outcome.settings["ksm/sleep_millisecs"] == "7"


def test_reset_on_a_host_whose_own_advisor_is_on(tree: Path, tmp_path: Path) -> None:
    sysfs, path = KernelSysfs(tree), tmp_path / "snapshot.json"
    sysfs.write("ksm/advisor_mode", "scan-time")
    apply_policy(sysfs, "ksm", path)
    outcome = apply(sysfs, snapshot=path, knobs={"sleep_millisecs": 5}, reset=True)
    assert outcome.settings["ksm/advisor_mode"] == "scan-time"
    with pytest.raises(ksm.KsmError, match="while advisor_mode is scan-time"):
        apply(sysfs, snapshot=path, knobs={"pages_to_scan": 5}, reset=True)


def test_a_policy_is_set_on_a_host_that_merges_nothing_any_more(tree: Path, tmp_path: Path) -> None:
    sysfs = KernelSysfs(tree)
    merge_pages(tree)
    # What the counters hold is of processes that ended.
    host = dataclasses.replace(ROOMY, process_merged_pages=0)
    asked = {
        "snapshot": tmp_path / "snapshot.json",
        "knobs": {"sleep_millisecs": 5},
        "unmerge": True,
        "host": host,
    }
    assert apply(sysfs, check=True, **asked).changed and not sysfs.log
    outcome = apply(sysfs, **asked)
    assert sysfs.log == ["run=2", "sleep_millisecs=5", "run=0"]
    assert (outcome.changed, outcome.settings["ksm/run"]) == (True, "0")
    assert json.loads(asked["snapshot"].read_text())["settings"]["ksm/run"] == "1"
    assert not apply(sysfs, **asked).changed


def test_unmerging_for_a_policy_needs_the_memory_too(tree: Path) -> None:
    sysfs = KernelSysfs(tree)
    merge_pages(tree, pages_sharing=1_000_000)
    with pytest.raises(ksm.KsmError, match="stop some guests first"):
        apply(sysfs, host=dataclasses.replace(ROOMY, available_bytes=1 << 30), unmerge=True)
    assert sysfs.log == []


def test_reset_needs_a_snapshot(tree: Path) -> None:
    assert "reset is True but all of the following are missing: snapshot" in refusal(tree, reset=True)


# Order of writes, against a tree that answers as the kernel does


def test_the_kernel_tree_refuses_the_wrong_order(tree: Path) -> None:
    """What the tests of order rest on."""
    sysfs = KernelSysfs(tree)
    merge_pages(tree)
    with pytest.raises(OSError, match="busy"):
        sysfs.write("ksm/max_page_sharing", "9")
    sysfs.write("ksm/advisor_mode", "scan-time")
    assert sysfs.read("ksm/pages_to_scan") == "500"
    with pytest.raises(OSError, match="Invalid"):
        sysfs.write("ksm/pages_to_scan", "9")


def test_busy_knobs_are_set_while_unmerged_and_ksm_runs_on(tree: Path) -> None:
    merge_pages(tree)
    sysfs = KernelSysfs(tree)
    outcome = apply(sysfs, knobs={"max_page_sharing": 9, "merge_across_nodes": 0})
    assert sysfs.log == ["run=2", "max_page_sharing=9", "merge_across_nodes=0", "run=1"]
    assert outcome.settings["ksm/run"] == "1"
    assert "merged pages to unmerge 1010\n" in outcome.before


def test_busy_knob_with_run_asked_ends_as_asked(tree: Path) -> None:
    merge_pages(tree)
    sysfs = KernelSysfs(tree)
    apply(sysfs, knobs={"max_page_sharing": 9, "run": 0})
    assert sysfs.log == ["run=2", "max_page_sharing=9", "run=0"]


def test_a_busy_knob_of_an_unmerged_host_is_just_set(tree: Path) -> None:
    (tree / "ksm/run").write_text("2\n")
    sysfs = KernelSysfs(tree)
    apply(sysfs, knobs={"max_page_sharing": 9})
    assert sysfs.log == ["max_page_sharing=9"]
    assert sysfs.read("ksm/run") == "2"


def test_pages_stay_merged_where_the_busy_knob_has_its_value(tree: Path) -> None:
    merge_pages(tree)
    sysfs = KernelSysfs(tree)
    outcome = apply(sysfs, knobs={"max_page_sharing": 256, "sleep_millisecs": 2})
    assert sysfs.log == ["sleep_millisecs=2"]
    assert outcome.settings["ksm/run"] == "1"
    assert sysfs.counter("pages_sharing") == 1000


def test_advisor_goes_off_before_pages_to_scan(tree: Path) -> None:
    sysfs = KernelSysfs(tree)
    apply(sysfs, knobs={"advisor_mode": "scan-time", "advisor_min_pages_to_scan": 700})
    assert sysfs.log == ["advisor_min_pages_to_scan=700", "advisor_mode=scan-time"]
    assert sysfs.read("ksm/pages_to_scan") == "700"
    with pytest.raises(ksm.KsmError, match="while advisor_mode is scan-time: ask for advisor_mode none"):
        apply(sysfs, knobs={"pages_to_scan": 700})
    sysfs.log.clear()
    # 700 is what pages_to_scan holds, and yet it has to be written: the kernel puts 100 there.
    outcome = apply(sysfs, knobs={"pages_to_scan": 700, "advisor_mode": "none"})
    assert sysfs.log == ["advisor_mode=none", "pages_to_scan=700"]
    assert outcome.settings["ksm/pages_to_scan"] == "700"


def test_restore_leaves_pages_to_scan_to_an_advisor(tree: Path, tmp_path: Path) -> None:
    sysfs = KernelSysfs(tree)
    apply(sysfs, knobs={"advisor_mode": "scan-time"})
    path = tmp_path / "snapshot.json"
    apply(sysfs, snapshot=path, knobs={"advisor_mode": "none", "pages_to_scan": 20000})
    sysfs.log.clear()
    apply(sysfs, "restored", snapshot=path)
    assert sysfs.log == ["advisor_mode=scan-time"]
    assert not path.exists()


# Unmerging


def test_unmerged_waits_then_stops(tree: Path) -> None:
    merge_pages(tree)
    sysfs = KernelSysfs(tree)
    outcome = apply(sysfs, "unmerged")
    assert sysfs.log == ["run=2", "run=0"]
    assert outcome.changed
    assert sysfs.counter("pages_sharing") == 0
    assert not apply(sysfs, "unmerged").changed


def test_unmerged_undoes_what_run_0_left_merged(tree: Path) -> None:
    merge_pages(tree)
    sysfs = KernelSysfs(tree)
    apply(sysfs, knobs={"run": 0})
    assert sysfs.counter("pages_sharing") == 1000
    apply(sysfs, "unmerged")
    assert sysfs.log == ["run=0", "run=2", "run=0"]
    assert sysfs.counter("pages_sharing") == 0


def test_pages_that_stay_merged_are_an_error(tree: Path) -> None:
    merge_pages(tree)
    result = run(tree, state="unmerged")
    assert result["msg"] == "1010 pages are still merged 0 s after run was set to 2"


def test_restore_unmerges_what_was_not_merged_before(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    sysfs = KernelSysfs(tree)
    apply(sysfs, snapshot=path, knobs={"run": 1})
    merge_pages(tree)
    apply(sysfs, "restored", snapshot=path)
    assert sysfs.counter("pages_sharing") == 0
    assert sysfs.read("ksm/run") == "0"


def test_restore_keeps_pages_that_were_merged_before(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    merge_pages(tree)
    sysfs = KernelSysfs(tree)
    apply(sysfs, knobs={"run": 0})
    apply(sysfs, snapshot=path, knobs={"sleep_millisecs": 1})
    apply(sysfs, "restored", snapshot=path)
    assert sysfs.counter("pages_sharing") == 1000


@pytest.mark.parametrize(
    "ask",
    [
        lambda sysfs, host: apply(sysfs, "unmerged", host),
        lambda sysfs, host: apply(sysfs, host=host, knobs={"max_page_sharing": 9}),
        lambda sysfs, host: apply(sysfs, host=host, knobs={"run": 2}),
    ],
)
def test_headroom(tree: Path, ask: Callable[[Any, Any], Any]) -> None:
    pages = 262144  # 1 GiB
    merge_pages(tree, pages_sharing=pages)
    before = contents(tree)
    reserve_bytes = (20 << 30) * 5 // 100
    short_of_one_byte = ksm.Host(pages * 4096 + reserve_bytes, 20 << 30, 4096, "boot-a")
    with pytest.raises(ksm.KsmError, match=r"^unmerging needs 1024 MiB, and only 1024 MiB may be used "):
        ask(KernelSysfs(tree), short_of_one_byte)
    assert contents(tree) == before
    enough = ksm.Host(pages * 4096 + reserve_bytes + 1, 20 << 30, 4096, "boot-a")
    assert ask(KernelSysfs(tree), enough).changed


def test_zero_pages_need_memory_too(tree: Path) -> None:
    merge_pages(tree, pages_sharing=1)
    replace(tree / "ksm/ksm_zero_pages", f"{2**45}\n")
    with pytest.raises(ksm.KsmError, match=r"^unmerging needs"):
        apply(KernelSysfs(tree), "unmerged")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host of 1 GiB with 512 MiB available, a process that has 12 pages merged and one that has none."""
    root = tmp_path / "proc"
    for pid, (merging, zero) in {1: (0, 0), 42: (8, 4)}.items():
        (root / str(pid)).mkdir(parents=True)
        (root / str(pid) / "ksm_merging_pages").write_text(f"{merging}\n")
        (root / str(pid) / "ksm_stat").write_text(f"ksm_rmap_items 99\nksm_zero_pages {zero}\n")
    (root / "meminfo").write_text("MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n")
    (root / "sys/kernel/random").mkdir(parents=True)
    (root / "sys/kernel/random/boot_id").write_text("boot-b\n")
    return root


def test_a_host_is_read_with_what_its_processes_have_merged(proc: Path) -> None:
    host = ksm.read_host(proc)
    assert (host.available_bytes, host.total_bytes, host.boot_id) == (512 << 20, 1 << 30, "boot-b")
    assert host.process_merged_pages == 12
    # A thread of the kernel says nothing, without an error.
    (proc / "1/ksm_merging_pages").write_text("")
    assert ksm.read_host(proc).process_merged_pages == 12
    (proc / "42/ksm_stat").unlink()
    assert ksm.read_host(proc).process_merged_pages == 8
    (proc / "1/ksm_merging_pages").unlink()
    assert ksm.read_host(proc).process_merged_pages is None


def test_the_restore_is_not_refused_for_guests_that_are_away(tree: Path, proc: Path, tmp_path: Path) -> None:
    """Their pages stay in the counters until ksmd passes by."""
    path = tmp_path / "snapshot.json"
    pages = 1 << 19  # 2 GiB, twice what the host has
    sysfs = KernelSysfs(tree)
    apply(sysfs, host=ksm.read_host(proc), snapshot=path, knobs={"sleep_millisecs": 1})
    merge_pages(tree, pages_sharing=pages)
    (proc / "42/ksm_merging_pages").write_text(f"{pages}\n")
    with pytest.raises(ksm.KsmError, match=r"^unmerging needs 2048 MiB"):
        apply(sysfs, "restored", ksm.read_host(proc), snapshot=path)
    shutil.rmtree(proc / "42")
    assert apply(sysfs, "restored", ksm.read_host(proc), snapshot=path).changed
    assert (sysfs.read("ksm/run"), sysfs.read("ksm/sleep_millisecs")) == ("0", "20")
    assert not path.exists()


def test_a_kernel_that_does_not_tell_of_each_process_is_held_to_its_counters(tree: Path, proc: Path) -> None:
    merge_pages(tree, pages_sharing=1 << 19)
    for folder in ("1", "42"):
        (proc / folder / "ksm_merging_pages").unlink()
    assert "unmerging needs 2048 MiB" in refusal(tree, state="unmerged", proc_root=str(proc))


def test_check_mode_does_not_refuse_what_guests_hold_that_may_be_away_by_then(tree: Path, proc: Path) -> None:
    merge_pages(tree, pages_sharing=1 << 19)
    (proc / "42/ksm_merging_pages").write_text(f"{1 << 19}\n")
    assert run(tree, check=True, state="unmerged", proc_root=str(proc))["changed"]
    assert "unmerging needs" in refusal(tree, state="unmerged", proc_root=str(proc))


# What others had merged before


class Ksmd(KernelSysfs):
    """A kernel whose ksmd drops the pages of processes that ended in the third of its passes."""

    def __init__(self, root: Path, live_pages: int) -> None:
        super().__init__(root)
        self.live_pages = live_pages
        self.passes = 0

    def write(self, name: str, value: str) -> None:
        super().write(name, value)
        self.passes += (name, value) == ("ksm/run", "1")
        if self.passes == 3:
            replace(self.root / "ksm/pages_sharing", f"{self.live_pages - self.counter('pages_shared')}\n")


@pytest.fixture
def in_use(tree: Path, proc: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tree of a host whose KSM runs, with 810 pages of a process that lives: 10 that 800 more share."""
    merge_pages(tree, pages_sharing=800)
    (proc / "42/ksm_merging_pages").write_text("810\n")
    (proc / "42/ksm_stat").write_text("ksm_rmap_items 999\n")
    monkeypatch.setattr(ksm.time, "sleep", lambda _seconds: None)
    return tree


def test_what_others_had_merged_before_stays_merged_in_every_cell_and_at_the_end(
    in_use: Path, proc: Path, tmp_path: Path
) -> None:
    sysfs, path = Ksmd(in_use, 810), tmp_path / "snapshot.json"
    asked: dict[str, Any] = {"snapshot": path, "knobs": {"sleep_millisecs": 5}, "unmerge": True}
    outcome = apply(sysfs, host=ksm.read_host(proc), **asked)
    assert sysfs.log == ["sleep_millisecs=5", "run=0"]
    assert (outcome.first.merged_pages, outcome.first.settings["ksm/run"]) == (810, "1")
    # A cell later the counters have 3000 pages of guests that are gone, too.
    (in_use / "ksm/run").write_text("1\n")
    replace(in_use / "ksm/pages_sharing", "3800\n")
    sysfs.log.clear()
    outcome = apply(sysfs, host=ksm.read_host(proc), **asked)
    assert sysfs.log == ["run=0", *["run=1", "run=0"] * 3]
    assert (sysfs.counter("pages_sharing"), outcome.settings["ksm/run"]) == (800, "0")
    assert outcome.first.merged_pages == 810
    sysfs.log.clear()
    apply(sysfs, "restored", ksm.read_host(proc), snapshot=path)
    assert sysfs.log == ["sleep_millisecs=20", "run=1"]
    assert sysfs.counter("pages_sharing") == 800 and not path.exists()


def test_pages_of_ended_processes_that_ksmd_does_not_drop_are_an_error(
    in_use: Path, proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ksm, "FORGET_SECONDS", 0)
    replace(in_use / "ksm/pages_sharing", "3800\n")
    sysfs = KernelSysfs(in_use)
    with pytest.raises(
        ksm.KsmError, match=r"^KSM still counts 3000 pages of processes that ended, 0 s after"
    ):
        apply(sysfs, host=ksm.read_host(proc), snapshot=tmp_path / "s.json", unmerge=True)
    assert "run=2" not in sysfs.log


def test_a_knob_that_needs_unmerging_is_refused_while_others_have_pages_merged(
    in_use: Path, proc: Path, tmp_path: Path
) -> None:
    sysfs, path = KernelSysfs(in_use), tmp_path / "snapshot.json"
    with pytest.raises(
        ksm.KsmError,
        match=r"^max_page_sharing 256 to 9 cannot be set while 810 pages are merged that were so",
    ):
        apply(sysfs, host=ksm.read_host(proc), snapshot=path, unmerge=True, knobs={"max_page_sharing": 9})
    assert sysfs.log == [] and not path.exists()


def test_check_mode_foresees_that_refusal_of_what_others_have_merged_and_no_guest(
    in_use: Path, proc: Path, tmp_path: Path
) -> None:
    """Guests of an earlier run are away by then."""
    asked = {"unmerge": True, "reset": True, "knobs": {"max_page_sharing": 9}, "proc_root": str(proc)}
    snapshot = str(tmp_path / "snapshot.json")
    result = run(in_use, check=True, snapshot=snapshot, **asked)
    assert result["msg"].startswith("max_page_sharing 256 to 9 cannot be set while 810 pages are merged")
    (proc / "42/cmdline").write_text(
        "qemu-system-x86_64\0-name\0guest=ksm-testbed-guest01,debug-threads=on\0"
    )
    assert run(in_use, check=True, snapshot=snapshot, **asked)["changed"]


def test_when_those_who_had_pages_merged_are_gone_ksm_is_turned_off_truly(
    in_use: Path, proc: Path, tmp_path: Path
) -> None:
    sysfs, path = KernelSysfs(in_use), tmp_path / "snapshot.json"
    apply(sysfs, host=ksm.read_host(proc), snapshot=path, knobs={"sleep_millisecs": 5})
    shutil.rmtree(proc / "42")
    sysfs.log.clear()
    apply(sysfs, host=ksm.read_host(proc), snapshot=path, unmerge=True)
    assert sysfs.log == ["run=2", "run=0"]


def test_what_the_run_itself_has_merged_of_others_is_unmerged(tree: Path, proc: Path, tmp_path: Path) -> None:
    """It was not merged before: off is off, and the end is the beginning."""
    sysfs, path = KernelSysfs(tree), tmp_path / "snapshot.json"
    (proc / "42/ksm_merging_pages").write_text("0\n")
    (proc / "42/ksm_stat").write_text("ksm_rmap_items 0\n")
    asked: dict[str, Any] = {"snapshot": path, "unmerge": True}
    assert apply(sysfs, host=ksm.read_host(proc), **asked).first.merged_pages == 0
    merge_pages(tree, pages_sharing=800)
    (proc / "42/ksm_merging_pages").write_text("810\n")
    sysfs.log.clear()
    apply(sysfs, host=ksm.read_host(proc), **asked)
    assert sysfs.log == ["run=2", "run=0"]


def test_what_ksm_was_before_is_returned(tree: Path, proc: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "snapshot.json")
    (tree / "ksm/run").write_text("1\n")
    first = run(tree, snapshot=path, knobs={"run": 0}, proc_root=str(proc))
    # The counters of the tree say that nothing is merged.
    assert first["before"] == {"run": 1, "merged_pages": 0}
    assert run(tree, snapshot=path, proc_root=str(proc))["before"] == first["before"]


# What goes wrong while writing


def test_the_kernels_refusal_names_the_knob(tree: Path) -> None:
    class Refusing(KernelSysfs):
        def write(self, name: str, value: str) -> None:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with pytest.raises(ksm.KsmError, match=r"^run could not be set to 1: Cannot allocate memory$"):
        apply(Refusing(tree), knobs={"run": 1})


def test_a_value_that_does_not_hold_is_an_error(tree: Path) -> None:
    class Forgetful(KernelSysfs):
        def write(self, name: str, value: str) -> None:
            super().write(name, "42")

    with pytest.raises(ksm.KsmError, match=r"^sleep_millisecs was set to 5 but reads back as 42: "):
        apply(Forgetful(tree), knobs={"sleep_millisecs": 5})


def test_a_value_that_a_rival_tuner_takes_back_is_an_error(tree: Path) -> None:
    class Rival(KernelSysfs):
        def write(self, name: str, value: str) -> None:
            super().write(name, value)
            if name == "ksm/sleep_millisecs":
                super().write("ksm/pages_to_scan", "64")

    with pytest.raises(ksm.KsmError, match=r"^pages_to_scan was set to 9 but reads back as 64: "):
        apply(Rival(tree), knobs={"pages_to_scan": 9, "sleep_millisecs": 5})


def test_nothing_more_is_written_after_a_value_that_does_not_hold(tree: Path) -> None:
    class NeverUnmerged(KernelSysfs):
        def write(self, name: str, value: str) -> None:
            super().write(name, "1" if value == "2" else value)

    merge_pages(tree)
    sysfs = NeverUnmerged(tree)
    with pytest.raises(ksm.KsmError, match=r"^run was set to 2 but reads back as 1: "):
        apply(sysfs, "unmerged")
    assert sysfs.log == ["run=1"]


def test_a_restore_that_fails_keeps_the_snapshot(tree: Path, tmp_path: Path) -> None:
    class Refusing(KernelSysfs):
        def write(self, name: str, value: str) -> None:
            raise OSError(errno.EACCES, "Permission denied")

    path = tmp_path / "snapshot.json"
    apply(KernelSysfs(tree), snapshot=path, knobs={"sleep_millisecs": 5})
    with pytest.raises(ksm.KsmError, match="Permission denied"):
        apply(Refusing(tree), "restored", snapshot=path)
    assert path.exists()
