"""A run that is given forecasts to prove: what its plan holds of them, and every refusal before it begins."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from planned import planned, play_action, variables
from synthetic import MIB
from synthetic_capacity import naming, store_numbers

from analysis.__main__ import main
from analysis.commands.run import add_arguments, given_variables
from analysis.plan.design import PROJECT, DesignError
from analysis.plan.proof import check_capacity, check_cells, given_forecasts
from analysis.plan.runs import open_run, read_plan
from analysis.records.forecasts import digest
from analysis.records.models import PlanRecord

WRITTEN_FOR = "allowed are files that `python -m analysis forecast --out` has written for this run."
CAPACITY = {
    "workload": "idle",
    "policy": "ksm",
    "envelope_bytes": 8192 * MIB,
    "guest_memory_bytes": 512 * MIB,
    "hypervisors": ["host1", "host2"],
}


@pytest.fixture
def forecast(results: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Of idle and constant_fill at 15 guests."""
    return written(results, "held-out", "--guests", "15")


def written(results: Path, name: str, *words: str) -> Path:
    if not (results / "n2").exists():
        store_numbers(results, (2, 4), focus="1,2")
    path = results / f"forecasts/{name}.json"
    assert main(["forecast", "--results", str(results), *words, "--out", str(path)]) == 0
    return path


def refused(value: Any) -> str:
    with pytest.raises(DesignError) as caught:
        given_forecasts(value)
    said = str(caught.value)
    assert said.startswith("forecast ")
    assert said.endswith(WRITTEN_FOR)
    return said


def plan_naming(*paths: Path, **changes: Any) -> PlanRecord:
    plan = planned(**changes).to_json() | {"forecasts": [one.to_json() for one in naming(*paths)]}
    return PlanRecord.model_validate_json(json.dumps(plan))


def test_a_plan_holds_name_time_and_digest(forecast: Path) -> None:
    stored = json.loads(forecast.read_text())
    (name,) = naming(forecast)
    assert (name.forecast_id, name.created_at, name.digest) == (
        "held-out",
        stored["created_at"],
        digest(stored),
    )
    assert planned().to_json()["forecasts"] == []
    assert given_forecasts("") == []


def test_several_are_given_with_commas(results: Path, forecast: Path) -> None:
    second = written(results, "limits", "--fit")
    found = given_forecasts(f"{forecast}, {second}")
    assert [one.record.forecast_id for one in found] == ["held-out", "limits"]
    assert "has one forecast twice" in refused(f"{forecast},{forecast}")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.unlink(), "held-out.json cannot be read: No such file or directory"),
        (lambda path: path.write_bytes(b"\xff{"), "held-out.json cannot be read"),
        (lambda path: path.write_text('{"kind": "plan"}'), "held-out.json holds a record of kind plan"),
        (
            lambda path: path.write_text(path.read_text().replace('"held-out"', '"mine"')),
            "held-out.json: it was changed after it was written (its digest differs)",
        ),
    ],
)
def test_a_file_that_is_no_sound_forecast_is_refused(
    forecast: Path, change: Callable[[Path], object], sentence: str
) -> None:
    change(forecast)
    assert sentence in refused(str(forecast))


@pytest.mark.parametrize(
    ("changes", "covered"),
    [
        ({"workloads": "idle,random_fill", "guests": "10,15"}, True),
        ({"guests": 10}, False),
        ({"workloads": "random_fill"}, False),
        ({"policies": "advisor"}, False),
        ({"guest_memory_mib": 384}, False),
        ({"hosts": ("host2",)}, False),
    ],
)
def test_a_forecast_must_cover_some_cell_of_the_run(
    forecast: Path, changes: dict[str, Any], covered: bool
) -> None:
    forecasts = given_forecasts(str(forecast))
    cells = planned(**{"workloads": "idle", "guests": 15, **changes}).cells
    if covered:
        check_cells(forecasts, cells)
        return
    with pytest.raises(DesignError) as caught:
        check_cells(forecasts, cells)
    assert str(caught.value) == (
        f"forecast names {forecast}, which covers no cell of this run: it predicts constant_fill at N = 15; "
        f"idle at N = 15, under ksm, guests of 512 MiB on host1: {WRITTEN_FOR}"
    )


def test_a_forecast_of_a_mix_covers_it_in_any_order(results: Path) -> None:
    path = written(results, "mixed", "--mix", "idle=5,constant_fill=5")
    check_cells(given_forecasts(str(path)), planned(mix="idle=5,constant_fill=5", guests=10).cells)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"workload": "random_fill"}, False),
        ({"policy": "advisor"}, False),
        ({"envelope_bytes": 4096 * MIB}, False),
        ({"envelope_bytes": None}, False),
        ({"guest_memory_bytes": 384 * MIB}, False),
        ({"hypervisors": ["host2"]}, False),
    ],
)
def test_a_forecast_of_limits_must_speak_of_the_capacity_run(
    results: Path, change: dict[str, Any], fits: bool
) -> None:
    forecasts = given_forecasts(str(written(results, "limits", "--fit", "--envelope-mib", "8192")))
    if fits:
        check_capacity(forecasts, **{**CAPACITY, **change})
        return
    with pytest.raises(DesignError, match="gives the limits of constant_fill, idle in 8192 MiB of the envel"):
        check_capacity(forecasts, **{**CAPACITY, **change})


def test_a_forecast_of_before_that_leaves_ksms_own_memory_out_of_an_envelope_is_refused(
    results: Path,
) -> None:
    path = written(results, "limits", "--fit", "--envelope-mib", "8192")
    content = json.loads(path.read_text())
    for load in content["loads"]:
        del load["curve"]["admission_bytes"], load["limits"]["admission"]
    content["digest"] = digest(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DesignError, match="leaves KSM's own memory out of the envelope"):
        check_capacity(given_forecasts(str(path)), **CAPACITY)


def test_a_run_that_goes_on_keeps_its_forecasts_and_takes_no_others(results: Path, forecast: Path) -> None:
    begun = open_run(results, plan_naming(forecast))
    assert read_plan(results / begun.run_id).forecasts == tuple(naming(forecast))
    assert open_run(results, planned()).forecasts == begun.forecasts
    assert open_run(results, plan_naming(forecast)).forecasts == begun.forecasts
    second = written(results, "second", "--guests", "15")
    with pytest.raises(DesignError, match=r"design \(forecast: held-out \(sha256:.*\), now second \(sha256:"):
        open_run(results, plan_naming(second))


def test_a_run_that_named_none_cannot_name_one_afterwards(results: Path, forecast: Path) -> None:
    begun = open_run(results, planned())
    with pytest.raises(DesignError, match=r"design \(forecast: none, now held-out \(sha256:"):
        open_run(results, plan_naming(forecast))
    assert read_plan(results / begun.run_id).forecasts == ()


def test_the_design_is_the_same_with_a_forecast(forecast: Path) -> None:
    assert plan_naming(forecast).design_digest == planned().design_digest


def action(directory: Path, name: str, **arguments: Any) -> dict[str, Any]:
    place = {"directory": str(directory / "planned"), "run_id": "planned", "hypervisors": ["host1"]}
    return play_action(directory, {name: {**place, **arguments}})


def test_the_action_plan_names_the_forecast_or_refuses_it(tmp_path: Path, forecast: Path) -> None:
    sound = action(tmp_path, "plan", variables=variables(), forecast=str(forecast))
    assert sound["forecasts"] == [one.to_json() for one in naming(forecast)]
    assert read_plan(tmp_path / "planned/planned").forecasts == tuple(naming(forecast))
    wrong = action(tmp_path, "plan", run_id="other", variables=variables(guests=10), forecast=str(forecast))
    assert wrong["failed"]
    assert "covers no cell of this run" in wrong["msg"]
    assert not (tmp_path / "planned/other").exists()


def test_the_action_capacity_plan_names_the_forecast_or_refuses_it(tmp_path: Path, results: Path) -> None:
    capacity = yaml.safe_load((PROJECT / "inventory/group_vars/all/capacity.yml").read_text())
    path = written(results, "limits", "--fit", "--envelope-mib", "8192")
    given = {"experiment": variables(), "capacity": capacity, "forecast": str(path)}
    assert action(tmp_path, "capacity_plan", **given)["forecasts"] == [one.to_json() for one in naming(path)]
    given["capacity"] = {**capacity, "capacity_envelope_mib": 4096}
    assert "says nothing of this run" in action(tmp_path, "capacity_plan", **given)["msg"]


def test_the_command_run_hands_over_the_file_wherever_it_is_played(
    forecast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    monkeypatch.chdir(forecast.parent)
    given = given_variables(parser.parse_args(["-e", "forecast=held-out.json", "--guests", "15"]))
    assert given == {"forecast": str(forecast), "guests": "15"}
    with pytest.raises(DesignError, match=r"none\.json cannot be read"):
        given_variables(parser.parse_args(["-e", "forecast=none.json"]))
