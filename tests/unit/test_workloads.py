"""Workloads are data, foci are names for three of them, and a load is what its guests do."""

from pathlib import Path

import pytest
from planned import planned, variables

from analysis.plan.data_files import DataFileError
from analysis.plan.design import Design, DesignError
from analysis.plan.mix import load_contents
from analysis.plan.workloads import (
    foci,
    focus_of,
    image_packages,
    in_order,
    read_workload,
    title,
    workload_names,
)

MIX = "constant_fill=5,idle=5"
APPLICATION = "description: A\nstart: 'true'\nready: 'true'\nverify: 'true'\n"


def folder(tmp_path: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (tmp_path / f"{name}.yml").write_text(text)
    return tmp_path


def test_the_papers_foci_are_names_for_three_workloads() -> None:
    assert foci() == {1: "idle", 2: "constant_fill", 3: "random_fill"}
    assert set(foci().values()) <= set(workload_names())
    assert (focus_of("random_fill"), focus_of(MIX), focus_of("web")) == (3, None, None)


def test_what_a_guest_fills_is_in_its_file() -> None:
    assert not read_workload("idle").fills
    assert read_workload("constant_fill").segments == (("constant", 100, 0),)
    assert read_workload("random_fill").segments == (("random", 100, 0),)


def test_the_patterns_of_content_are_what_their_names_say() -> None:
    assert read_workload("zero_fill").segments == (("zero", 100, 0),)
    assert read_workload("shared_fill").segments == (("shared", 100, 0),)
    half, rewritten = read_workload("half_shared").segments, read_workload("rewritten").segments
    assert half == (("shared", 50, 0), ("random", 50, 0))
    assert rewritten == (("shared", 40, 0), ("shared", 10, 200), ("random", 50, 0))


def test_a_plan_says_what_is_rewritten_and_nothing_of_it_elsewhere() -> None:
    plan = planned(workloads="rewritten,half_shared")
    stored = plan.to_json()["workloads"]
    assert stored["rewritten"]["segments"][1] == {
        "content": "shared",
        "percent": 10,
        "rewrite_pages_per_second": 200,
    }
    assert stored["half_shared"]["segments"][0] == {"content": "shared", "percent": 50}


def test_a_file_is_all_that_a_new_workload_takes(tmp_path: Path) -> None:
    text = (
        "description: Half and half\ncheckpoint_loaded: true\n"
        "segments: [{content: zero, percent: 50}, {content: random, percent: 50}]\n"
    )
    place = folder(tmp_path, half=text)
    assert workload_names(place) == ["half"]
    workload = read_workload("half", place)
    assert workload.segments == (("zero", 50, 0), ("random", 50, 0))
    assert (workload.fills, workload.checkpoint_loaded, workload.focus) == (True, True, None)
    assert foci(place) == {}
    assert workload.to_json() == {
        "name": "half",
        "segments": [{"content": "zero", "percent": 50}, {"content": "random", "percent": 50}],
        "checkpoint_loaded": True,
    }


def test_an_application_is_a_file_with_its_commands_kept_loaded_unless_it_says_otherwise(
    tmp_path: Path,
) -> None:
    place = folder(tmp_path, mine=APPLICATION, cold=f"{APPLICATION}checkpoint_loaded: false\n")
    mine = read_workload("mine", place)
    assert mine.application
    assert (mine.fills, mine.loads, mine.checkpoint_loaded, mine.segments) == (False, True, True, ())
    assert not read_workload("cold", place).checkpoint_loaded
    assert mine.to_json()["application"] == {
        "packages": [],
        "start": "true",
        "ready": "true",
        "load": None,
        "verify": "true",
        "performance": None,
        "ready_seconds": 180,
        "timeout_seconds": 600,
    }


def test_the_applications_of_the_catalogue_have_a_figure_of_their_own() -> None:
    applications = {name: found for name in workload_names() if (found := read_workload(name).application)}
    assert {"redis", "nginx", "postgresql", "file_cache"} <= applications.keys()
    assert all(one.performance for one in applications.values())


def test_an_image_has_the_packages_of_the_whole_catalogue_as_soon_as_one_workload_needs_some(
    tmp_path: Path,
) -> None:
    place = folder(
        tmp_path,
        web=f"{APPLICATION}packages: [nginx, apache2-utils]\n",
        store=f"{APPLICATION}packages: [redis-server, apache2-utils]\n",
        files=APPLICATION,
        fill="description: A\nsegments: [{content: zero, percent: 100}]\n",
    )
    assert image_packages(["fill", "files"], place) == []
    assert image_packages(["fill", "web"], place) == ["apache2-utils", "nginx", "redis-server"]


def test_a_plan_holds_an_application_and_what_the_image_needs_for_it() -> None:
    design = Design.from_variables(variables(workloads="idle,redis"))
    assert "redis-server" in design.image_packages
    given = variables(workloads="redis", image_source="/mine.qcow2", image_checksum="0" * 128)
    assert Design.from_variables(given).image_packages == []
    assert Design.from_variables(variables(focus="all")).image_packages == []
    stored = planned(workloads="idle,redis").to_json()["workloads"]
    assert stored["redis"]["application"]["performance"]["unit"] == "requests/s"
    assert "application" not in stored["idle"]


def test_guests_that_were_kept_loaded_serve_another_measurement_of_the_same_load() -> None:
    """What they hold is not changed by how it is measured."""
    workloads = planned(workloads="idle,redis").to_json()["workloads"]
    contents = load_contents("redis", workloads)
    assert set(contents["redis"]) == {"packages", "start", "ready", "load", "verify"}


def test_guests_of_an_application_cannot_be_measured_as_they_booted() -> None:
    with pytest.raises(DesignError, match=r"^checkpoint is 'measured', which saves guests"):
        Design.from_variables(variables(workloads="redis", checkpoint="measured"))


def test_a_workload_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(DataFileError, match=r"^workload 'web' does not exist: there are build, "):
        read_workload("web")


def test_two_workloads_cannot_be_one_focus(tmp_path: Path) -> None:
    text = "description: A\nfocus: 1\n"
    with pytest.raises(DataFileError, match=r"^workloads a and b both say focus 1\.$"):
        foci(folder(tmp_path, a=text, b=text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("segments: []\n", "has no description"),
        ("description: A\nsegment: []\n", "has segment: allowed are"),
        ("description: A\nsegments: [random]\n", "a segment is 'random'"),
        ("description: A\nsegments: [{content: random}]\n", "must have a content and a percent"),
        ("description: A\nsegments: [{content: random, percent: 100, size: 1}]\n", "must have a content and"),
        (
            "description: A\nsegments: [{content: zero, percent: 100, rewrite_pages_per_second: 0.5}]\n",
            "rewrite_pages_per_second is 0.5, and must be a whole number from 1",
        ),
        ("description: A\nsegments: [{content: random, percent: 60}]\n", "must add up to 100"),
        ("description: A\nstart: run\nready: ask\n", "an application needs verify"),
        (f"{APPLICATION}load: ''\n", "load: String should have at least 1 character"),
        (f"{APPLICATION}ready_seconds: 0\n", "ready_seconds: Input should be greater than or equal to 1"),
        (f"{APPLICATION}packages: [Redis Server]\n", "packages.0: a package is 'Redis Server': allowed is"),
        (
            f"{APPLICATION}performance: {{command: ab, figure: 'tps', unit: 1/s}}\n",
            "performance.figure: 'tps' must have one group, in parentheses, that is the number",
        ),
        (
            f"{APPLICATION}performance: {{command: ab, figure: '(', unit: 1/s}}\n",
            "performance.figure: '(' is no regular expression",
        ),
        (
            f"{APPLICATION}segments: [{{content: zero, percent: 100}}]\n",
            "a workload has segments or an application, and this has both",
        ),
        ("description: A\nfocus: 0\n", "focus is 0, and must be a whole number from 1"),
        ("description: A\nfocus: true\n", "focus is True"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataFileError) as refused:
        read_workload("mine", folder(tmp_path, mine=text))
    assert str(refused.value).startswith(str(tmp_path / "mine.yml"))
    assert said in str(refused.value)
    assert str(refused.value).endswith(".")


def test_a_load_is_called_by_its_focus_its_name_or_its_mix() -> None:
    assert [title(load) for load in ("constant_fill", "zero_fill", MIX)] == [
        "2 constant fill",
        "zero fill",
        f"mix: {MIX}",
    ]


def test_loads_come_in_the_papers_order_then_the_others_then_mixes() -> None:
    loads = [MIX, "web", "random_fill", "apache", "idle", "idle", "constant_fill"]
    assert in_order(loads) == ["idle", "constant_fill", "random_fill", "apache", "web", MIX]
