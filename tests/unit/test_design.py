"""The experiment matrix: what is accepted, what is refused and in which words, what a run owes."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from synthetic import store, synthetic_plan, variables

from analysis.design import (
    PROJECT,
    Design,
    DesignError,
    cell_directory,
    check_run_id,
    make_plan,
    open_run,
    pending_cells,
    read_plan,
    set_aside_attempt,
)

SHA512 = "ab" * 64


def design(**changes: Any) -> Design:
    return Design.from_variables(variables(**changes))


@pytest.mark.parametrize(
    ("name", "given", "typed"),
    [
        ("focus", "3", (3,)),
        ("focus", 2, (2,)),
        ("focus", "1,2,3", (1, 2, 3)),
        ("focus", "3, 1", (1, 3)),
        ("focus", [2, "1"], (1, 2)),
        ("focus", "all", (1, 2, 3)),
        ("mix", "", ""),
        ("mix", "random_fill=5, idle=10", "idle=10,random_fill=5"),
        ("guests", "4", 4),
        ("guest_memory_mib", "256", 256),
        ("guest_reserve_mib", "32", 32),
        ("accelerator", "tcg", "tcg"),
        ("boot_wave", "0", 0),
        ("repetitions", "2", 2),
        ("orders", "abba", "abba"),
        ("keep_guests", "yes", True),
        ("keep_guests", "False", False),
        ("census", "true", True),
        (
            "ksm_knobs",
            '{"pages_to_scan": "100", "advisor_mode": "scan-time"}',
            {"advisor_mode": "scan-time", "pages_to_scan": 100},
        ),
        ("thp_enabled", "never", "never"),
        ("converge_min_full_scans", "10", 10),
        ("converge_window_scans", "3", 3),
        ("converge_threshold_percent", "0.25", 0.25),
        ("converge_timeout_seconds", "60", 60.0),
        ("sample_interval_seconds", "0.5", 0.5),
    ],
)
def test_strings_from_the_command_line_are_typed(name: str, given: Any, typed: Any) -> None:
    value = getattr(design(**{name: given}), name)
    assert value == typed
    assert type(value) is type(typed)


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("focus", "4", "allowed is 1, 2, 3"),
        ("focus", "1,1", "once each"),
        ("focus", "", "or all"),
        ("focus", "1,all", "or all"),
        ("focus", [], "or all"),
        ("mix", "idle", "each workload once with its number of guests from 1"),
        ("mix", "idle=10,idle=5", "each workload once"),
        ("mix", "idle=15,random_fill=0", "number of guests from 1"),
        ("mix", {"idle": 15}, "each workload once"),
        ("mix", "idle=10,web=5", "allowed is a mix of constant_fill, idle, random_fill."),
        ("mix", "idle=15", "two workloads or more; one alone is a focus"),
        ("mix", "idle=10,random_fill=4", "which are 14 guests: allowed is as many as guests, 15."),
        ("census", "often", "true or false"),
        ("guests", "0", "from 1 to 999"),
        ("guests", "1000", "from 1 to 999"),
        ("guests", "many", "a whole number"),
        ("guests", "1.5", "a whole number"),
        ("guests", True, "a whole number"),
        ("guest_memory_mib", "127", "from 128 to 1048576"),
        ("guest_memory_mib", "512M", "a whole number"),
        ("guest_reserve_mib", "0", "from 1"),
        ("guest_reserve_mib", "512", "less than the guest_memory_mib of 512"),
        ("accelerator", "xen", "auto or kvm or tcg"),
        ("boot_wave", "-1", "from 0 to 999"),
        ("repetitions", "0", "from 1 to 1000"),
        ("orders", "on", "off-on or on-off or abba"),
        ("keep_guests", "perhaps", "true or false"),
        ("image_source", "", "build, or the path"),
        ("image_source", 7, "build, or the path"),
        ("image_source", "/images/debian.qcow2", "needed is the SHA-512"),
        ("image_checksum", "sha256:00", "128 hexadecimal digits"),
        ("image_checksum", SHA512, "allowed is nothing when image_source is build"),
        ("ksm_knobs", "pages_to_scan=1", "a mapping"),
        ("ksm_knobs", ["pages_to_scan"], "a mapping"),
        ("ksm_knobs", {"run": 1}, "without run"),
        ("ksm_knobs", {"Pages": 1}, "a mapping"),
        ("ksm_knobs", {"pages_to_scan": -1}, "a whole number from 0"),
        ("ksm_knobs", {"smart_scan": True}, "a whole number from 0"),
        ("thp_enabled", "madvice", "keep or always or madvise or never"),
        ("converge_min_full_scans", "2", "from 3"),
        ("converge_window_scans", "0", "from 1"),
        ("converge_threshold_percent", "0", "a number from 0.001 to 100"),
        ("converge_threshold_percent", "half", "a number"),
        ("converge_threshold_percent", "nan", "a number"),
        ("converge_timeout_seconds", "0", "a number from 1"),
        ("sample_interval_seconds", "inf", "from 0.1 to 10"),
        ("sample_interval_seconds", True, "from 0.1 to 10"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(name: str, given: Any, allowed: str) -> None:
    with pytest.raises(DesignError) as refused:
        design(**{name: given})
    message = str(refused.value)
    assert name in message or (name == "image_source" and "image_checksum" in message)
    assert allowed in message
    assert message.count("\n") == 0
    assert message.endswith(".")


def test_every_wrong_variable_is_named_at_once() -> None:
    with pytest.raises(DesignError, match=r"guest_number is not a variable.*") as refused:
        Design.from_variables({**variables(guests=0, focus="9"), "guest_number": 3})
    assert all(name in str(refused.value) for name in ("guests is 0", "focus is '9'", "guest_number"))


def test_a_missing_variable_is_named() -> None:
    given = variables()
    del given["thp_enabled"]
    with pytest.raises(DesignError, match=r"^thp_enabled is not set"):
        Design.from_variables(given)


def test_an_image_with_its_checksum_is_accepted() -> None:
    made = design(image_source="https://example.org/a.qcow2", image_checksum="sha512:" + SHA512.upper())
    assert made.image_checksum == SHA512


@pytest.mark.parametrize("run_id", ["", "reference", "../up", "a/b", ".hidden", "x" * 65, "two words"])
def test_a_run_id_that_is_no_directory_is_refused(run_id: str) -> None:
    with pytest.raises(DesignError, match=r"^run_id is "):
        check_run_id(run_id)


def test_cells_come_by_repetition_then_focus() -> None:
    plan = synthetic_plan(focus="3,1", repetitions=2, orders="abba", guests=4, hosts=("a", "b"))
    seen = [(cell.repetition, cell.focus, cell.hypervisor, cell.order) for cell in plan.cells]
    assert seen == [
        (1, 1, "a", "off-on"),
        (1, 1, "b", "off-on"),
        (1, 3, "a", "off-on"),
        (1, 3, "b", "off-on"),
        (2, 1, "a", "on-off"),
        (2, 1, "b", "on-off"),
        (2, 3, "a", "on-off"),
        (2, 3, "b", "on-off"),
    ]
    assert plan.cells[2].cell_id == "focus3-random_fill-guests4-rep1"
    assert plan.cells[2].guest_memory_bytes == 512 * 1024 * 1024


def test_a_mix_is_measured_in_place_of_the_foci() -> None:
    mix = "idle=5,constant_fill=5,random_fill=5"
    plan = synthetic_plan(focus="all", mix=mix, repetitions=2, orders="abba", hosts=("a", "b"))
    assert [(cell.repetition, cell.focus, cell.hypervisor, cell.order) for cell in plan.cells] == [
        (1, 0, "a", "off-on"),
        (1, 0, "b", "off-on"),
        (2, 0, "a", "on-off"),
        (2, 0, "b", "on-off"),
    ]
    assert {cell.workload for cell in plan.cells} == {"constant_fill=5,idle=5,random_fill=5"}
    assert plan.cells[0].cell_id == "mix-constant_fill5-idle5-random_fill5-guests15-rep1"
    assert plan.design["mix"] == "constant_fill=5,idle=5,random_fill=5"


def test_no_hypervisor_is_refused() -> None:
    with pytest.raises(DesignError, match=r"^hypervisors is empty"):
        make_plan(design(), [], "x")


def test_the_digest_tells_designs_apart_and_ignores_how_guests_are_handled() -> None:
    assert design().digest == design(keep_guests=True, boot_wave=3, census=True).digest
    mixed = design(mix="idle=5,random_fill=10").digest
    assert mixed == design(mix="random_fill=10,idle=5").digest
    assert mixed not in (design().digest, design(mix="idle=6,random_fill=9").digest)
    assert design(ksm_knobs={"b": 1, "a": 2}).digest == design(ksm_knobs={"a": "2", "b": 1}).digest
    assert design().digest != design(guests=14).digest
    assert design().digest != design(ksm_knobs={"pages_to_scan": 100}).digest


def test_the_plan_is_private_and_fits_its_schema(results: Path) -> None:
    plan = open_run(results, synthetic_plan(mix="idle=5,random_fill=10", census=True, repetitions=2))
    path = results / "synthetic" / "plan.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(p.stat().st_mode) for p in (results, path.parent)] == [0o700, 0o700]
    schema = json.loads((PROJECT / "analysis/schema/plan.schema.json").read_text())
    Draft202012Validator(schema).validate(json.loads(path.read_text()))
    assert read_plan(path.parent) == plan


def test_going_on_with_an_equal_design_writes_nothing(results: Path) -> None:
    first = open_run(results, synthetic_plan())
    path = results / "synthetic" / "plan.json"
    before = path.read_bytes()
    again = open_run(results, replace(synthetic_plan(keep_guests=True), created_at="later"))
    assert again == first
    assert path.read_bytes() == before


def test_a_run_goes_on_with_a_census_and_keeps_its_plan(results: Path) -> None:
    open_run(results, synthetic_plan())
    assert not open_run(results, synthetic_plan(census=True)).design["census"]
    with pytest.raises(DesignError, match=r"mix: \"\", now \"idle=5,random_fill=10\""):
        open_run(results, synthetic_plan(mix="idle=5,random_fill=10"))


def test_a_plan_from_before_the_mix_the_census_and_the_ports_can_be_gone_on_with(results: Path) -> None:
    open_run(results, synthetic_plan())
    path = results / "synthetic" / "plan.json"
    content = json.loads(path.read_text())
    for name in ("mix", "census", "guest_ssh_port_base"):
        del content["design"][name]
    path.write_text(json.dumps(content))
    schema = json.loads((PROJECT / "analysis/schema/plan.schema.json").read_text())
    Draft202012Validator(schema).validate(content)
    assert open_run(results, synthetic_plan()) == read_plan(path.parent)
    assert read_plan(path.parent).design == synthetic_plan().design


def test_another_design_under_the_same_run_id_is_refused_saying_in_what(results: Path) -> None:
    open_run(results, synthetic_plan())
    with pytest.raises(
        DesignError, match=r"guests: 15, now 4; orders: \"off-on\", now \"abba\"; hypervisors: host1, now h2"
    ):
        open_run(results, synthetic_plan(guests=4, orders="abba", hosts=("h2",)))


def test_checking_writes_nothing(results: Path) -> None:
    open_run(results, synthetic_plan(), write=False)
    assert not results.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "plan"}', '{"kind": "off", "schema_version": 1}'])
def test_a_damaged_plan_is_named(results: Path, content: str) -> None:
    results.mkdir()
    (results / "plan.json").write_text(content)
    with pytest.raises(DesignError, match=r"plan\.json"):
        read_plan(results)


def test_pending_are_the_cells_without_all_records_or_with_a_failure(results: Path) -> None:
    run = store(results, synthetic_plan(focus="all"))
    assert pending_cells(run) == []
    first, second, third = read_plan(run).cells
    (cell_directory(run, first) / "failed.json").write_text("{}")
    (cell_directory(run, third) / "verify.json").unlink()
    assert pending_cells(run) == [first, third]
    assert second not in pending_cells(run)


def test_a_cell_is_complete_with_and_without_a_census(results: Path) -> None:
    run = store(results, synthetic_plan(focus="1,2", census=True))
    (cell_directory(run, read_plan(run).cells[0]) / "census.json").write_text("{}")
    assert pending_cells(run) == []


def test_an_attempt_is_set_aside_and_never_overwritten(tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    assert set_aside_attempt(cell) is None
    for number in (1, 2):
        cell.mkdir()
        (cell / "off.json").write_text(str(number))
        assert set_aside_attempt(cell) == tmp_path / f"cell.attempt{number}"
    assert [(tmp_path / f"cell.attempt{n}" / "off.json").read_text() for n in (1, 2)] == ["1", "2"]


def plan_action(tmp_path: Path, *words: str, **changes: Any) -> dict[str, Any]:
    """The action plan through ansible-playbook, its result as stored by the play."""
    tasks = [
        {
            "plan": {
                "variables": variables(**changes),
                "hypervisors": ["host1"],
                "directory": str(tmp_path / "results"),
                "run_id": "synthetic",
            },
            "register": "planned",
            "ignore_errors": True,
        },
        {
            "ansible.builtin.copy": {
                "content": "{{ planned | to_json }}",
                "dest": str(tmp_path / "planned.json"),
                "mode": "0600",
            },
            "check_mode": False,
        },
    ]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            "-i",
            "localhost,",
            tmp_path / "play.yml",
            *words,
        ],
        env={
            **os.environ,
            "ANSIBLE_ACTION_PLUGINS": str(PROJECT / "plugins" / "action"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    result: dict[str, Any] = json.loads((tmp_path / "planned.json").read_text())
    return result


def test_the_action_plans_once_and_then_changes_nothing(tmp_path: Path) -> None:
    checked = plan_action(tmp_path, "--check", focus="2,3")
    assert checked["changed"]
    assert not (tmp_path / "results").exists()
    first = plan_action(tmp_path, focus="2,3")
    assert first["changed"]
    assert first["run_directory"] == str(tmp_path / "results" / "synthetic")
    assert [cell["directory"] for cell in first["cells"]] == [
        f"{first['run_directory']}/host1/{cell['cell_id']}" for cell in first["cells"]
    ]
    assert first["design"]["focus"] == [2, 3]
    again = plan_action(tmp_path, focus="2,3")
    assert not again["changed"]
    assert again["cells"] == first["cells"]


def test_the_action_hands_the_mix_and_the_census_to_the_playbook(tmp_path: Path) -> None:
    planned = plan_action(tmp_path, mix="random_fill=10,idle=5", census="yes")
    (cell,) = planned["cells"]
    assert (cell["focus"], cell["workload"]) == (0, "idle=5,random_fill=10")
    assert planned["design"]["census"] is True
    # The census is no part of what is measured: the run goes on, with what is asked now.
    assert plan_action(tmp_path, mix="idle=5,random_fill=10")["design"]["census"] is False


def test_the_action_skips_complete_cells_and_sets_failed_attempts_aside(tmp_path: Path) -> None:
    run = store(tmp_path / "results", synthetic_plan(focus="1,2"))
    done, failed = (cell_directory(run, cell) for cell in read_plan(run).cells)
    (failed / "failed.json").write_text("{}")
    planned = plan_action(tmp_path, focus="1,2")
    assert [cell["focus"] for cell in planned["cells"]] == [2]
    assert planned["changed"]
    assert (failed.with_name(f"{failed.name}.attempt1") / "failed.json").exists()
    assert not failed.exists()
    assert (done / "on.json").exists()


def test_the_action_fails_in_the_designs_words(tmp_path: Path) -> None:
    refused = plan_action(tmp_path, guests=0)
    assert refused["failed"]
    assert refused["msg"] == "guests is 0: allowed is a whole number from 1 to 999."
    assert not (tmp_path / "results").exists()
