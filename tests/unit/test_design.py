"""The experiment matrix: what is accepted, what is refused and in which words, what a run owes."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from planned import measured, planned, play_action, variables

from analysis.plan.design import (
    PROJECT,
    REFERENCE,
    RESULTS,
    VARIABLES,
    Design,
    DesignError,
    cell_directory,
    check_run_id,
)
from analysis.plan.policies import policy_names, read_policy
from analysis.plan.runs import make_plan, open_run, pending_cells, read_plan, set_aside_attempt
from analysis.records.models import PlanRecord, Requested
from analysis.records.reading import RecordError

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
        ("workloads", "", ()),
        ("workloads", [], ()),
        ("workloads", "random_fill, idle", ("idle", "random_fill")),
        ("workloads", ["constant_fill"], ("constant_fill",)),
        ("mix", "", ""),
        ("mix", "random_fill=5, idle=10", "idle=10,random_fill=5"),
        ("policies", "ksm", ("ksm",)),
        ("policies", "smart_scan,ksm", ("ksm", "smart_scan")),
        ("policies", ["kernel-default"], ("kernel-default",)),
        ("policies", "ksm+pages_to_scan=100,ksm", ("ksm", "ksm+pages_to_scan=100")),
        ("guests", "4", (4,)),
        ("guests", 4, (4,)),
        ("guests", "15, 2,6,4", (2, 4, 6, 15)),
        ("guests", [6, "2"], (2, 6)),
        ("boots", "3", 3),
        ("checkpoint", "fresh", "fresh"),
        ("cell_order_seed", "", None),
        ("cell_order_seed", "17", 17),
        ("guest_memory_mib", "256", 256),
        ("guest_reserve_mib", "32", 32),
        ("accelerator", "tcg", "tcg"),
        ("boot_wave", "0", 0),
        ("repetitions", "2", 2),
        ("keep_guests", "yes", True),
        ("keep_guests", "False", False),
        ("census", "true", True),
        (
            "ksm_knobs",
            '{"pages_to_scan": "100", "advisor_mode": "scan-time"}',
            {"advisor_mode": "scan-time", "pages_to_scan": 100},
        ),
        ("ksm_knobs", {}, {}),
        ("thp_enabled", "never", "never"),
        ("thp_enabled", "", ""),
        ("converge_min_full_scans", "10", 10),
        ("converge_window_scans", "3", 3),
        ("converge_threshold_percent", "0.25", 0.25),
        ("converge_timeout_seconds", "60", 60.0),
        ("sample_interval_seconds", "0.5", 0.5),
        ("follow_seconds", "600", 600.0),
        ("churn_seconds", "60", 60.0),
        ("others", "allow", "allow"),
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
        ("workloads", "web", "names 'web', which does not exist: there are build, constant_fill, "),
        ("workloads", "idle,", "each one once, with commas between"),
        ("workloads", "idle,random_fill,idle", "has idle more than once: allowed is each one once"),
        ("policies", "kms", "names 'kms', which does not exist: there are advisor, kernel-default, ksm"),
        ("policies", "", "each one once, with commas between"),
        ("policies", [], "each one once, with commas between"),
        ("policies", "ksm,ksm", "has ksm more than once"),
        ("policies", "off,ksm", "names off, which every cell begins with: allowed is off beside other"),
        ("probes", "101", "a whole number from 0 to 100"),
        ("keep_loaded", "perhaps", "true or false"),
        ("mix", "idle", "each workload once with its number of guests from 1"),
        ("mix", "idle=10,idle=5", "each workload once"),
        ("mix", "idle=15,random_fill=0", "number of guests from 1"),
        ("mix", {"idle": 15}, "each workload once"),
        ("mix", "idle=10,web=5", "names 'web', which does not exist: there are"),
        ("mix", "idle=15", "two workloads or more; one alone is for workloads"),
        ("mix", "idle=10,random_fill=4", "which are 14 guests: allowed is as many as guests, 15."),
        ("census", "often", "true or false"),
        ("guests", "0", "from 1 to 999"),
        ("guests", "1000", "from 1 to 999"),
        ("guests", "2,4,2", "has 2 more than once: allowed is each number once"),
        ("guests", "2,,4", "each number once, with commas between"),
        ("guests", [2, 1000], "from 1 to 999"),
        ("guests", [], "each number once"),
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
        ("boots", "0", "from 1 to 1000"),
        ("first_boot", "0", "from 1 to 1000"),
        ("checkpoint", "new", "keep or fresh or measured"),
        ("cell_order_seed", "-1", "from 0 to 4294967295"),
        ("cell_order_seed", "seven", "a whole number"),
        ("guest_ssh_port_base", "1023", "from 1024"),
        ("guest_ssh_port_base", "65521", "allowed is up to 65520, for each of 15 guests has a port"),
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
        ("follow_seconds", "-1", "a number from 0"),
        ("churn_seconds", "-1", "a number from 0"),
        ("others", "ignore", "refuse or allow"),
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
    assert all(name in str(refused.value) for name in ("guests is '0'", "focus is '9'", "guest_number"))


def test_a_missing_variable_is_named() -> None:
    given = variables()
    del given["thp_enabled"]
    with pytest.raises(DesignError, match=r"^thp_enabled is not set"):
        Design.from_variables(given)


def test_the_defaults_are_every_variable_and_each_is_documented() -> None:
    assert sorted(variables()) == sorted(VARIABLES)
    documented = (PROJECT / "docs" / "variables.md").read_text()
    assert [name for name in VARIABLES if f"| `{name}` |" not in documented] == []
    made = design()
    assert (made.loads, made.policies, made.guests, made.boots, made.repetitions) == (
        ("idle",),
        ("ksm",),
        (15,),
        1,
        1,
    )


def test_an_image_with_its_checksum_is_accepted() -> None:
    made = design(image_source="https://example.org/a.qcow2", image_checksum="sha512:" + SHA512.upper())
    assert made.image_checksum == SHA512


@pytest.mark.parametrize(
    "run_id", ["", "reference", "capacity", "forecasts", "../up", "a/b", ".hidden", "x" * 65, "two words"]
)
def test_a_run_id_that_is_no_directory_is_refused(run_id: str) -> None:
    with pytest.raises(DesignError, match=r"^run_id is "):
        check_run_id(run_id)


def test_a_mix_needs_the_one_number_of_guests() -> None:
    assert design(mix="idle=2,random_fill=2", guests="4").guests == (4,)
    with pytest.raises(DesignError, match=r"are 4 guests: allowed is as many as guests, which must be one"):
        design(mix="idle=2,random_fill=2", guests="2,4")


def test_a_cell_is_one_workload_policy_number_of_guests_boot_and_repetition() -> None:
    plan = planned(
        focus="3,1", policies="ksm,advisor", guests="2,4", boots=2, repetitions=3, hosts=("a", "b")
    )
    seen = [
        (cell.hypervisor, cell.workload, cell.policy, cell.guests, cell.boot, cell.repetition)
        for cell in plan.cells
    ]
    assert len(seen) == len(set(seen)) == 2 * 2 * 2 * 2 * 2 * 3
    assert {cell.workload for cell in plan.cells} == {"idle", "random_fill"}
    cell = next(cell for cell in plan.cells if seen[plan.cells.index(cell)] == ("a", "idle", "ksm", 4, 2, 3))
    assert cell.cell_id == "idle-ksm-guests4-boot2-rep3"
    assert cell.guest_memory_bytes == 512 * 1024 * 1024
    assert len({(cell.hypervisor, cell.cell_id) for cell in plan.cells}) == len(seen)


def test_a_sweep_of_knobs_is_a_list_of_policies_each_with_a_directory_of_its_own() -> None:
    names = [
        f"ksm+pages_to_scan={pages}+sleep_millisecs={sleep}" for pages in (100, 1000) for sleep in (10, 20)
    ]
    plan = planned(policies=",".join(names))
    assert {cell.policy: cell.cell_id for cell in plan.cells} == {
        name: f"idle-{name.replace('+', '.').replace('=', '.')}-guests15-boot1-rep1" for name in names
    }
    asked = {name: one.requested.ksm_knobs for name, one in plan.policies.items()}
    assert [(asked[name]["pages_to_scan"], asked[name]["sleep_millisecs"]) for name in names] == [
        (100, 10),
        (100, 20),
        (1000, 10),
        (1000, 20),
    ]
    with pytest.raises(
        DesignError, match=r"^ksm_knobs has pages_to_scan, which the policy ksm\+pages_to_scan=1 s"
    ):
        design(policies="ksm+pages_to_scan=1", ksm_knobs={"pages_to_scan": 2})
    with pytest.raises(
        DesignError, match=r"^ksm_knobs has smart_scan, which the daemon of the policy pacer sets"
    ):
        design(policies="ksm,pacer", ksm_knobs={"smart_scan": 1})
    assert (
        design(policies="pacer", ksm_knobs={"max_page_sharing": 9}).policy("pacer").knobs["max_page_sharing"]
        == 9
    )


def test_a_policy_too_long_for_the_name_of_a_directory_is_refused() -> None:
    with pytest.raises(DesignError, match=r"^a cell is 'idle-ksm\.a0\.0.* 1 to 200 letters"):
        planned(policies="ksm" + "".join(f"+a{number}=0" for number in range(60)))


def test_a_run_can_measure_more_boots_than_the_runs_before_it() -> None:
    plan = planned(focus="1,2", boots="2", first_boot="4")
    assert [cell.boot for cell in plan.cells] == [4, 4, 5, 5]


def order(plan: PlanRecord, hypervisor: str) -> list[str]:
    return [cell.cell_id for cell in plan.cells if cell.hypervisor == hypervisor]


def test_cells_come_by_boot_and_else_at_random_in_the_same_order_on_every_hypervisor() -> None:
    def plan_of(**changes: Any) -> PlanRecord:
        return planned(focus="all", guests="2,4", boots=2, repetitions=3, hosts=("a", "b"), **changes)

    plan = plan_of()
    assert [cell.boot for cell in plan.cells] == [1] * 36 + [2] * 36
    assert order(plan, "a") == order(plan, "b")
    assert order(plan, "a") == order(plan_of(), "a")
    assert order(plan, "a") != order(plan_of(cell_order_seed=8), "a")
    first, second = order(plan, "a")[:18], order(plan, "a")[18:]
    assert first != sorted(first)
    assert [name.replace("boot1", "boot2") for name in first] != second


def test_the_seed_is_drawn_and_recorded_where_none_is_given() -> None:
    seeds = {planned(cell_order_seed="").cell_order_seed for _ in range(3)}
    assert len(seeds) > 1
    plan = planned(cell_order_seed="", focus="all", guests="1,2,3")
    assert order(plan, "host1") == order(
        planned(cell_order_seed=plan.cell_order_seed, focus="all", guests="1,2,3"), "host1"
    )


def test_a_mix_is_measured_in_place_of_workloads_and_these_in_place_of_foci() -> None:
    mix = "idle=5,constant_fill=5,random_fill=5"
    plan = planned(focus="all", workloads="idle", mix=mix, repetitions=2)
    assert {cell.workload for cell in plan.cells} == {"constant_fill=5,idle=5,random_fill=5"}
    assert sorted(order(plan, "host1")) == [
        f"mix-constant_fill5-idle5-random_fill5-ksm-guests15-boot1-rep{number}" for number in (1, 2)
    ]
    assert sorted(plan.workloads) == ["constant_fill", "idle", "random_fill"]
    plan = planned(focus="1", workloads="random_fill,constant_fill")
    assert plan.loads == ["constant_fill", "random_fill"]


def test_knobs_are_laid_over_each_policys_own_and_must_exist() -> None:
    made = design(policies="ksm,advisor", ksm_knobs={"sleep_millisecs": 5, "use_zero_pages": 1})
    for name in ("ksm", "advisor"):
        own = read_policy(name)
        policy = made.policy(name)
        assert policy.knobs == {**own.knobs, "sleep_millisecs": 5, "use_zero_pages": 1}
        assert set(own.optional_knobs) - set(policy.optional_knobs) == {"sleep_millisecs", "use_zero_pages"}
    assert design().policy("ksm") == read_policy("ksm")
    assert made.policy("off").knobs == {}


def test_a_thp_mode_takes_the_place_of_each_policys_own() -> None:
    assert design().policy("ksm").thp_enabled == "keep"
    assert {design(thp_enabled="never").policy(name).thp_enabled for name in policy_names()} == {"never"}


def test_what_a_policy_requests_is_what_is_set() -> None:
    made = design(policies="smart_scan", ksm_knobs={"pages_to_scan": 100}, thp_enabled="always")
    requested = made.requested("smart_scan")
    entry = made.policies_json()["smart_scan"]
    assert (requested["policy"], requested["service"]) == ("smart_scan", "")
    assert requested["ksm_knobs"] == entry["knobs"]
    assert requested["ksm_knobs"] == {**read_policy("smart_scan").knobs, "pages_to_scan": 100}
    assert requested["thp_enabled"] == entry["thp_enabled"] == "always"
    assert entry["requested"] == requested
    assert Requested.model_validate_json(json.dumps(requested)).to_json() == requested


@pytest.mark.parametrize("host", ["..", "../up", "a/b", "-l", "two words", "a\n"])
def test_a_host_that_is_no_directory_is_refused(host: str) -> None:
    with pytest.raises(
        DesignError, match=r"^a host of the group hypervisors is .*: allowed is 1 to 200 letters"
    ):
        make_plan(design(), ["kvm1", host], "x")


def test_no_hypervisor_is_refused() -> None:
    with pytest.raises(DesignError, match=r"^hypervisors is empty"):
        make_plan(design(), [], "x")


def test_the_digest_tells_designs_apart_and_ignores_how_guests_are_handled() -> None:
    handled = design(
        keep_guests=True,
        boot_wave=3,
        census=True,
        follow_seconds=60,
        checkpoint="fresh",
        cell_order_seed=5,
    )
    assert design().digest == handled.digest
    assert design(focus=3).digest == design(workloads="random_fill").digest
    mixed = design(mix="idle=5,random_fill=10").digest
    assert mixed == design(mix="random_fill=10,idle=5").digest
    assert mixed not in (design().digest, design(mix="idle=6,random_fill=9").digest)
    assert design(ksm_knobs={"b": 1, "a": 2}).digest == design(ksm_knobs={"a": "2", "b": 1}).digest
    # What the policy says already is no other design.
    assert design(thp_enabled="keep").digest == design().digest
    # As a plan of before these variables has it
    assert design(probes=0, keep_loaded=True).digest == design().digest
    assert design(focus=2, keep_loaded=False).digest == design(focus=2).digest
    assert design(focus=3, keep_loaded=False).digest != design(focus=3).digest
    for change in (
        {"guests": 14},
        {"probes": 5},
        {"guests": "14,15"},
        {"ksm_knobs": {"pages_to_scan": 100}},
        {"policies": "smart_scan"},
        {"boots": 2},
        {"repetitions": 2},
        {"thp_enabled": "never"},
        {"others": "allow"},
    ):
        assert design(**change).digest != design().digest, change


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policies": "off", "probes": 5}, "policies names off, which every cell begins with"),
        ({"churn_seconds": 60, "guests": 1}, "half of 1 guest cannot leave"),
        ({"churn_seconds": 60, "workloads": "redis"}, "redis runs an application, which cannot be told to"),
        ({"churn_seconds": 60, "checkpoint": "measured"}, "some of them are others then"),
        ({"checkpoint": "measured", "probes": 5}, "checkpoint is 'measured', .*: allowed is no probes"),
    ],
)
def test_what_would_show_nothing_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DesignError, match=words):
        design(**changes)


def test_cells_under_off_stand_beside_others_where_guests_are_probed() -> None:
    probed = design(policies="off,ksm", probes=5)
    assert {cell.policy for cell in probed.cells(["host1"], 1)} == {"off", "ksm"}
    assert {name: one["requested"]["probes"] for name, one in probed.policies_json().items()} == {
        "off": 5,
        "ksm": 5,
    }


def test_guests_that_are_not_kept_loaded_are_loaded_in_each_cell() -> None:
    assert design(focus=3).workloads_json()["random_fill"]["checkpoint_loaded"] is True
    assert design(focus=3, keep_loaded=False).workloads_json()["random_fill"]["checkpoint_loaded"] is False


def test_the_digest_of_a_published_plan_is_that_of_its_variables_today() -> None:
    plan = read_plan(RESULTS / REFERENCE / "mix-even-15")
    given = {**variables(), **plan.to_json()["design"]}
    assert Design.from_variables(given).digest == plan.design_digest


def test_what_is_requested_says_that_others_are_allowed_and_else_what_it_always_said() -> None:
    assert design(others="allow").requested("ksm")["others"] == "allow"
    assert "others" not in design().requested("ksm")


def test_a_run_from_before_others_could_be_allowed_goes_on_and_not_with_them(results: Path) -> None:
    made = open_run(results, planned())
    path = results / made.run_id / "plan.json"
    content = json.loads(path.read_text())
    del content["design"]["others"]
    path.write_text(json.dumps(content))
    assert open_run(results, planned()).cells == made.cells
    with pytest.raises(DesignError, match=r'others: "refuse", now "allow"'):
        open_run(results, planned(others="allow"))


def test_the_plan_is_private_and_read_as_it_was(results: Path) -> None:
    given = {"policies": "ksm,advisor", "boots": 2, "thp_enabled": "never", "ksm_knobs": {"smart_scan": 0}}
    plan = open_run(results, planned(mix="idle=5,random_fill=10", census=True, cell_order_seed="", **given))
    path = results / "planned" / "plan.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(p.stat().st_mode) for p in (results, path.parent)] == [0o700, 0o700]
    assert read_plan(path.parent) == plan


def test_the_variables_of_a_plan_make_the_same_design_again() -> None:
    given = {"focus": "1,3", "policies": "ksm,advisor", "guests": "2,4", "cell_order_seed": ""}
    assert Design.from_variables(planned(**given).to_json()["design"]) == design(**given)


def test_going_on_with_an_equal_design_writes_nothing(results: Path) -> None:
    first = open_run(results, planned())
    path = results / "planned" / "plan.json"
    before = path.read_bytes()
    again = open_run(results, planned(keep_guests=True))
    assert again == first
    assert path.read_bytes() == before


def test_a_run_that_goes_on_keeps_its_order(results: Path) -> None:
    def plan_of(seed: str) -> PlanRecord:
        return planned(focus="all", guests="2,4,6", cell_order_seed=seed)

    first = open_run(results, plan_of(""))
    assert open_run(results, plan_of("")).cells == first.cells
    assert open_run(results, plan_of(str(first.cell_order_seed))).cells == first.cells
    other = (first.cell_order_seed or 0) ^ 1
    with pytest.raises(DesignError, match=rf"\(cell_order_seed: {first.cell_order_seed}, now {other}\)"):
        open_run(results, plan_of(str(other)))


@pytest.mark.parametrize(
    "handled",
    [
        {"boot_wave": 3},
        {"keep_guests": True},
        {"census": True},
        {"guest_ssh_port_base": 30000},
        {"checkpoint": "fresh"},
        {"focus": 3, "workloads": "idle"},
    ],
)
def test_a_run_goes_on_with_another_handling_and_keeps_its_plan(
    results: Path, handled: dict[str, Any]
) -> None:
    first = open_run(results, planned())
    assert open_run(results, planned(**handled)) == first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guests": "4,15"}, "guests: 15, now 4, 15"),
        ({"mix": "idle=5,random_fill=10"}, "workloads: idle, now idle=5,random_fill=10"),
        ({"focus": "2,3"}, "workloads: idle, now constant_fill, random_fill"),
        ({"policies": "advisor"}, "policies: ksm, now advisor"),
        ({"boots": 2}, "boots: 1, now 2"),
        ({"thp_enabled": "never"}, 'thp_enabled: "", now "never"'),
        ({"hosts": ("host1", "h2")}, "hypervisors: host1, now h2, host1"),
        ({"pinned": "idle=host1"}, "pinned: , now idle=host1"),
        ({"guests": 4, "repetitions": 2}, "guests: 15, now 4; repetitions: 1, now 2"),
    ],
)
def test_another_design_under_the_same_run_id_is_refused_saying_in_what(
    results: Path, changes: dict[str, Any], said: str
) -> None:
    open_run(results, planned())
    with pytest.raises(DesignError) as refused:
        open_run(results, planned(**changes))
    assert f"exists with another design ({said}):" in str(refused.value)


def test_a_policy_or_workload_whose_file_has_changed_is_another_design(results: Path) -> None:
    plan = planned()
    changed = {"ksm": plan.policies["ksm"].model_copy(update={"knobs": {"pages_to_scan": 1}})}
    open_run(results, plan.model_copy(update={"policies": changed}))
    with pytest.raises(DesignError, match=r"\(policy ksm is not what it was: its file has changed\)"):
        open_run(results, plan)
    with pytest.raises(DesignError, match=r"\(workload idle is not what it was: its file has changed\)"):
        loaded = {"idle": plan.workloads["idle"].model_copy(update={"checkpoint_loaded": True})}
        open_run(results, plan.model_copy(update={"policies": changed, "workloads": loaded}))


def test_pinned_cells_are_on_their_host_alone_and_the_others_everywhere() -> None:
    pinned = design(focus="1,3", policies="advisor,ksm", pinned="random_fill=h2, advisor = h1", boots=2)
    with pytest.raises(DesignError, match=r"random_fill under advisor to h1 and to h2: allowed is one host"):
        pinned.cells(["h1", "h2"], 1)
    pinned = design(focus="1,3", policies="advisor,ksm", pinned="random_fill=h2", boots=2)
    places: dict[tuple[str, str], set[str]] = {}
    for cell in pinned.cells(["h1", "h2", "h3"], 1):
        places.setdefault((cell.workload, cell.policy), set()).add(cell.hypervisor)
    assert places == {
        ("idle", "advisor"): {"h1", "h2", "h3"},
        ("idle", "ksm"): {"h1", "h2", "h3"},
        ("random_fill", "advisor"): {"h2"},
        ("random_fill", "ksm"): {"h2"},
    }
    everywhere = design(focus="1,3", policies="advisor,ksm", boots=2)
    assert pinned.digest == everywhere.digest
    order = [cell.cell_id for cell in everywhere.cells(["h2"], 1)]
    assert [cell.cell_id for cell in pinned.cells(["h1", "h2", "h3"], 1) if cell.hypervisor == "h2"] == order
    knobs = design(policies="ksm+pages_to_scan=100", pinned="ksm+pages_to_scan=100=h2")
    assert {cell.hypervisor for cell in knobs.cells(["h1", "h2"], 1)} == {"h2"}
    assert Design.from_variables(knobs.to_json()) == knobs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"pinned": "idle"},
            r"^pinned is 'idle': allowed is workloads and policies, each once with its host",
        ),
        ({"pinned": "idle=h1,idle=h2"}, "^pinned is"),
        ({"pinned": "advisor=h1"}, r"^pinned names advisor: allowed are .* this experiment, idle, ksm\.$"),
        (
            {"pinned": "idle=h1", "mix": "idle=5,random_fill=10"},
            r"^pinned names idle: allowed are .*, ksm\.$",
        ),
    ],
)
def test_what_cannot_be_pinned_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DesignError, match=words):
        design(**changes)


def test_a_pin_to_a_host_that_is_not_there_is_refused() -> None:
    with pytest.raises(DesignError, match=r"^pinned names kvm9: allowed are the hosts of .*, kvm1, kvm2\.$"):
        make_plan(design(pinned="idle=kvm9"), ["kvm1", "kvm2"], "x")


def test_checking_writes_nothing(results: Path) -> None:
    open_run(results, planned(), write=False)
    assert not results.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"kind": "plan"}',
        '{"kind": "off", "schema_version": 1}',
        '{"kind": "plan", "schema_version": 1}',
        '{"kind": "plan", "schema_version": 2}',
        '{"kind": "plan", "schema_version": 3}',
    ],
)
def test_a_damaged_plan_is_named(results: Path, content: str) -> None:
    results.mkdir()
    (results / "plan.json").write_text(content)
    with pytest.raises(RecordError, match=r"plan\.json"):
        read_plan(results)


def test_pending_are_the_cells_without_all_records_or_with_a_failure(results: Path) -> None:
    plan = planned(focus="all")
    run = measured(results, plan)
    assert pending_cells(plan, run) == []
    first, _second, third = plan.cells
    (cell_directory(run, first) / "failed.json").write_text("{}")
    (cell_directory(run, third) / "verify.json").unlink()
    assert pending_cells(plan, run) == [first, third]


def test_a_cell_with_a_damaged_record_is_measured_again(results: Path) -> None:
    plan = planned(focus="1,2")
    run = measured(results, plan)
    record = cell_directory(run, plan.cells[1]) / "merge.json"
    record.write_text(record.read_text()[:-40])
    assert pending_cells(plan, run) == [plan.cells[1]]


def test_a_cell_is_complete_with_and_without_a_census(results: Path) -> None:
    plan = planned(focus="1,2", census=True)
    run = measured(results, plan)
    (cell_directory(run, plan.cells[0]) / "census.json").write_text("{}")
    assert pending_cells(plan, run) == []


def test_an_attempt_is_set_aside_and_never_overwritten(tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    assert set_aside_attempt(cell) is None
    for number in (1, 2):
        cell.mkdir()
        (cell / "off.json").write_text(str(number))
        assert set_aside_attempt(cell) == tmp_path / f"cell.attempt{number}"
    assert [(tmp_path / f"cell.attempt{n}" / "off.json").read_text() for n in (1, 2)] == ["1", "2"]


def plan_action(tmp_path: Path, *words: str, **changes: Any) -> dict[str, Any]:
    arguments = {
        "variables": variables(**changes),
        "hypervisors": ["host1", "host2"],
        "directory": str(tmp_path / "results"),
        "run_id": "planned",
    }
    return play_action(tmp_path, {"plan": arguments}, *words)


def test_the_action_plans_once_and_then_changes_nothing(tmp_path: Path) -> None:
    given = {"focus": "2,3", "policies": "ksm,advisor"}
    checked = plan_action(tmp_path, "--check", **given)
    assert checked["changed"]
    assert not (tmp_path / "results").exists()
    first = plan_action(tmp_path, **given)
    assert first["changed"]
    assert first["run_directory"] == str(tmp_path / "results" / "planned")
    names = [cell["cell_id"] for cell in first["cells"]]
    assert sorted(names) == [
        f"{workload}-{policy}-guests15-boot1-rep1"
        for workload in ("constant_fill", "random_fill")
        for policy in ("advisor", "ksm")
    ]
    assert first["pending"] == {"host1": names, "host2": names}
    again = plan_action(tmp_path, **given)
    assert not again["changed"]
    assert {name for name in first if first[name] != again[name]} == {"changed"}


def test_the_action_hands_over_what_a_cell_needs(tmp_path: Path) -> None:
    given = {"mix": "random_fill=10,idle=5", "ksm_knobs": {"pages_to_scan": 1}, "census": "yes"}
    returned = plan_action(tmp_path, **given)
    made = design(**given)
    assert returned["cells"] == [
        {
            "cell_id": "mix-idle5-random_fill10-ksm-guests15-boot1-rep1",
            "workload": "idle=5,random_fill=10",
            "policy": "ksm",
            "guests": 15,
            "guest_memory_bytes": 512 << 20,
            "boot": 1,
            "repetition": 1,
        }
    ]
    assert returned["policies"] == made.policies_json()
    assert returned["policies"]["ksm"]["requested"]["ksm_knobs"]["pages_to_scan"] == 1
    assert returned["workloads"] == made.workloads_json()
    assert returned["design"] == made.to_json()
    assert returned["design_digest"] == made.digest
    stored = read_plan(tmp_path / "results" / "planned")
    assert returned["cell_order_seed"] == stored.cell_order_seed
    assert returned["created_at"] == stored.created_at
    # The census is no part of what is measured: the run goes on, with what is asked now.
    assert plan_action(tmp_path, **{**given, "census": "no"})["design"]["census"] is False


def test_the_action_skips_complete_cells_and_sets_failed_attempts_aside(tmp_path: Path) -> None:
    plan = planned(focus="1,2", cell_order_seed="", hosts=("host1", "host2"))
    run = measured(tmp_path / "results", plan)
    done, failed = (cell for cell in plan.cells if cell.hypervisor == "host2")
    place = cell_directory(run, failed)
    (place / "failed.json").write_text("{}")
    returned = plan_action(tmp_path, focus="1,2")
    assert returned["pending"] == {"host1": [], "host2": [failed.cell_id]}
    assert len(returned["cells"]) == 2
    assert returned["changed"]
    assert (place.with_name(f"{place.name}.attempt1") / "failed.json").exists()
    assert not place.exists()
    assert (cell_directory(run, done) / "on.json").exists()


def test_the_action_fails_in_the_designs_words(tmp_path: Path) -> None:
    refused = plan_action(tmp_path, guests=0, policies="kms")
    assert refused["failed"]
    assert refused["msg"] == (
        "policies names 'kms', which does not exist: there are "
        f"{', '.join(name for name in policy_names() if name != 'off')}. "
        "guests is '0': allowed is a whole number from 1 to 999."
    )
    assert not (tmp_path / "results").exists()


def test_the_action_leaves_a_pinned_cell_to_its_host(tmp_path: Path) -> None:
    planned = plan_action(tmp_path, focus="2,3", pinned="random_fill=host2", cell_order_seed=1)
    both = ["constant_fill-ksm-guests15-boot1-rep1", "random_fill-ksm-guests15-boot1-rep1"]
    assert sorted(cell["cell_id"] for cell in planned["cells"]) == both
    assert planned["pending"]["host1"] == both[:1] and sorted(planned["pending"]["host2"]) == both


def test_a_host_without_a_cell_of_its_own_has_nothing_to_measure(tmp_path: Path) -> None:
    planned = plan_action(tmp_path, pinned="idle=host2")
    assert planned["pending"] == {"host1": [], "host2": ["idle-ksm-guests15-boot1-rep1"]}
