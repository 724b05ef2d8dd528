"""Forecasts and capacity records of version 1: recorded ones load, and the digests are those of the file."""

import shutil
from pathlib import Path

from analysis.plan.design import PROJECT
from analysis.records.capacity import load_capacity
from analysis.records.forecasts import design_digest, digest, forecast_problem, load_forecasts

RECORDED = PROJECT / "tests/fixtures/version-1"


def test_a_recorded_capacity_run_loads_with_its_policies() -> None:
    (run,), left_out = load_capacity(RECORDED)
    assert left_out == []
    assert {policy: [step.guests for step in steps] for policy, steps in run.arms.items()} == {
        "off": [0],
        "ksm": [4],
    }
    (base,) = run.bases
    assert base.step is run.arms["off"][0]
    (divergence,) = run.divergences
    assert (divergence.policy, divergence.guests) == ("ksm", 12)
    assert divergence.provenance.start is not None
    assert divergence.provenance.start.origin == "boot"


def test_a_recorded_forecast_keeps_the_digests_that_it_was_written_with(tmp_path: Path) -> None:
    (one,), left_out = load_forecasts(RECORDED)
    assert left_out == []
    assert one.stored["schema_version"] == 1
    assert (one.stored["digest"], one.stored["design_digest"]) == (
        digest(one.stored),
        design_digest(one.stored),
    )
    assert (one.record.schema_version, one.record.policy) == (2, "ksm")
    assert one.record.calibration.conditions["start.from"] == "boot"
    # What it rests on is not among the fixtures; a changed file is found before that.
    assert "is no longer there" in forecast_problem(one, RECORDED)
    shutil.copytree(RECORDED / "forecasts", tmp_path / "forecasts")
    (path,) = (tmp_path / "forecasts").iterdir()
    path.write_text(path.read_text().replace('"safe": ', '"safe": 1', 1))
    (changed,), _left_out = load_forecasts(tmp_path)
    assert "it was changed after it was written" in forecast_problem(changed, tmp_path)
