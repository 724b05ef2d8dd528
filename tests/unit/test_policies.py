"""Policies are data: the files that are here can be used, and one that cannot is named."""

from pathlib import Path

import pytest
from planned import variables

from analysis.plan.data_files import DataFileError
from analysis.plan.design import Design
from analysis.plan.policies import KEEP, OFF, THP_MODES, policy_names, read_policy


def folder(tmp_path: Path, text: str, name: str = "mine") -> Path:
    (tmp_path / f"{name}.yml").write_text(text)
    return tmp_path


def test_the_policies_of_the_testbed_can_be_read() -> None:
    policies = {name: read_policy(name) for name in policy_names()}
    assert {"off", "ksm", "kernel-default", "advisor", "smart_scan"} <= set(policies)
    assert [name for name, policy in policies.items() if policy.run == 0] == [OFF]
    asked = {name: policy.thp_enabled for name, policy in policies.items() if policy.thp_enabled != KEEP}
    assert asked == {f"thp_{mode}": mode for mode in THP_MODES if mode != KEEP}
    assert [name for name, policy in policies.items() if policy.service] == ["ksmtuned", "pacer"]


def test_off_sets_nothing() -> None:
    off = read_policy(OFF)
    assert (off.run, off.knobs, off.service) == (0, {}, "")


def test_the_policies_are_what_their_names_say() -> None:
    assert read_policy("ksm").knobs["smart_scan"] == 0
    assert read_policy("smart_scan").knobs == {**read_policy("ksm").knobs, "smart_scan": 1}
    assert read_policy("advisor").knobs["advisor_mode"] == "scan-time"
    # The kernel answers EINVAL to pages_to_scan while its advisor sets it.
    assert "pages_to_scan" not in read_policy("advisor").knobs
    for name, knob, value in (
        ("use_zero_pages", "use_zero_pages", 1),
        ("max_page_sharing_16", "max_page_sharing", 16),
    ):
        assert read_policy(name).knobs == {**read_policy("ksm").knobs, knob: value}
        assert read_policy(name).needs == (knob,)
    # /usr/sbin/ksmtuned of Debian's ksmtuned 4.20150326: KSM_NPAGES_MIN, KSM_NPAGES_MAX, KSM_SLEEP_MSEC
    ksmtuned = [read_policy(f"ksmtuned_{name}").knobs for name in ("least", "most")]
    assert [(knobs["pages_to_scan"], knobs["sleep_millisecs"]) for knobs in ksmtuned] == [
        (64, 10),
        (1250, 10),
    ]
    # The kernel's documentation, admin-guide/mm/ksm.rst: 100 pages each 20 ms
    default = read_policy("kernel-default").knobs
    assert (default["pages_to_scan"], default["sleep_millisecs"]) == (100, 20)


def test_a_knob_that_makes_the_policy_must_exist_and_the_others_may_be_lacking(tmp_path: Path) -> None:
    text = "description: Mine\nknobs: {smart_scan: 1, pages_to_scan: 5}\nneeds: [smart_scan]\n"
    policy = read_policy("mine", folder(tmp_path, text))
    assert policy.optional_knobs == ["pages_to_scan"]
    assert policy.to_json() == {
        "name": "mine",
        "run": 1,
        "knobs": {"pages_to_scan": 5, "smart_scan": 1},
        "optional_knobs": ["pages_to_scan"],
        "thp_enabled": "keep",
        "service": "",
    }


def test_a_file_is_all_that_a_new_policy_takes(tmp_path: Path) -> None:
    text = "description: Its daemon sets the knobs\nthp_enabled: never\nservice: ksmtuned.service\n"
    place = folder(tmp_path, text, "ksmtuned")
    assert policy_names(place) == ["ksmtuned"]
    policy = read_policy("ksmtuned", place)
    assert (policy.service, policy.thp_enabled, policy.run) == ("ksmtuned.service", "never", 1)


def test_knobs_are_laid_over_a_policy_by_its_name_and_must_exist() -> None:
    policy = read_policy("smart_scan+pages_to_scan=100+advisor_mode=none")
    assert policy.name == "smart_scan+pages_to_scan=100+advisor_mode=none"
    assert policy.knobs == {**read_policy("smart_scan").knobs, "pages_to_scan": 100}
    assert policy.needs == ("advisor_mode", "pages_to_scan", "smart_scan")
    assert policy.laid_over == {"advisor_mode", "pages_to_scan"}
    assert policy.description.endswith("; with pages_to_scan=100 and advisor_mode=none")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ksm+", "has '': allowed after each + is"),
        ("ksm+pages_to_scan", "has 'pages_to_scan': allowed after each + is"),
        ("ksm+pages_to_scan=-1", "has 'pages_to_scan=-1': allowed"),
        ("ksm+../run=1", "has '../run=1': allowed"),
        ("ksm+run=0", "has 'run=0': allowed after each + is a file of /sys/kernel/mm/ksm, without run"),
        ("ksm+a=1+a=2", "has 'a=2': allowed"),
        ("off+pages_to_scan=1", "lays knobs over off, under which KSM does not run"),
        (
            "pacer+max_page_sharing=16+smart_scan=1",
            "lays smart_scan over pacer, whose daemon sets it by itself",
        ),
        ("kms+pages_to_scan=1", "policy 'kms' does not exist: there are"),
    ],
)
def test_knobs_that_cannot_be_laid_over_a_policy_are_refused_in_one_sentence(name: str, said: str) -> None:
    with pytest.raises(DataFileError) as refused:
        read_policy(name)
    assert said in str(refused.value)
    assert str(refused.value).endswith(".")


def test_a_policy_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(DataFileError, match=r"^policy 'kms' does not exist: there are advisor, .*ksm"):
        read_policy("kms")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- ksm\n", "holds no mapping"),
        ("knobs: {}\n", "has no description"),
        ("description: [a]\n", "has no description"),
        ("description: A\nknob: {}\n", "has knob: allowed are description, knobs, needs, run, service"),
        ("description: A\nknobs: {run: 1}\n", "without run"),
        ("description: A\nknobs: {smart_scan: true}\n", "to a number or a word"),
        ("description: A\nknobs: [smart_scan]\n", "knobs must map files"),
        ("description: A\nknobs: {a: 1}\nneeds: [b]\n", "needs must be a list of some of its knobs"),
        ("description: A\nrun: 2\n", "run is 2: allowed is 0 or 1"),
        ("description: A\nrun: true\n", "run is True: allowed is 0 or 1"),
        ("description: A\nthp_enabled: madvice\n", "thp_enabled is 'madvice': allowed is keep or always"),
        ("description: {\n", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataFileError) as refused:
        read_policy("mine", folder(tmp_path, text))
    message = str(refused.value)
    assert message.startswith(str(tmp_path / "mine.yml"))
    assert said in message
    assert message.endswith(".")
    assert "\n" not in message


def test_a_name_that_is_no_part_of_a_cells_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="1 to 32 small letters"):
        read_policy("Mine", folder(tmp_path, "description: A\n", "Mine"))


def test_what_is_changed_in_a_plan_or_a_record_is_not_changed_in_the_policy() -> None:
    """Policies are read once: a knob changed in one place would be in every plan after it."""
    policy = read_policy("ksm")
    before = dict(policy.knobs)
    policy.to_json()["knobs"]["pages_to_scan"] = 1
    design = Design.from_variables(variables())
    design.requested("ksm")["ksm_knobs"]["pages_to_scan"] = 1
    assert read_policy("ksm").knobs == before
