"""The join of forecasts with what was measured afterwards: errors by hand, and every refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import BOOTED, MIB, store, synthetic_plan
from synthetic_capacity import (
    TRUTH,
    shaped,
    step,
    store_capacity,
    store_censuses,
    store_numbers,
    used_mib,
)

from analysis.__main__ import main
from analysis.model.scoring import Joined, ScoringError, load_name, score
from analysis.plan.design import Cell
from analysis.records.forecasts import digest
from analysis.records.models import ForecastRecord
from analysis.records.reading import read_record
from analysis.report.figures import FigureError
from analysis.report.forecast_figures import validation_figure

LATER = "2099-01-01T00:00:00"
NUMBERS = (2, 4, 6)


@pytest.fixture
def forecast(results: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A forecast of idle and constant_fill at 10 and 15 guests, written before they are measured."""
    store_numbers(results, NUMBERS, focus="1,2")
    path = results / "forecasts/held-out.json"
    assert main(["forecast", "--results", str(results), "--guests", "10,15", "--out", str(path)]) == 0
    capsys.readouterr()
    return path


def measure(results: Path, guests: int = 15, **keywords: Any) -> None:
    store_numbers(results, (guests,), focus="1,2", **{"recorded_at": LATER, **keywords})


def seen(capsys: pytest.CaptureFixture[str], results: Path, code: int = 0) -> dict[str, Any]:
    assert main(["report", "--results", str(results), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_sound_forecast_is_joined_and_has_no_error(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results, 10)
    measure(results, 15)
    found = seen(capsys, results)
    assert [(one["workload"], one["guests"]) for one in found["joined"]] == [
        ("constant_fill", 10),
        ("constant_fill", 15),
        ("idle", 10),
        ("idle", 15),
    ]
    assert found["refused"] == []
    score = found["score"]["sharing, ksm"]
    assert score["worst"] < 1e-5
    assert score["best_naive"] == "constant_saving"
    assert score["ratio"] > 5


def test_the_error_is_the_predicted_over_the_measured(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results, noise=lambda _cell: 500.0)
    found = seen(capsys, results)
    idle = next(one for one in found["joined"] if one["workload"] == "idle")
    _off, on, _gross = used_mib(TRUTH["idle"], 15)
    assert idle["error_on"] == pytest.approx(on / (on + 500) - 1, rel=1e-4)
    assert idle["error_off"] == pytest.approx(0, abs=1e-6)
    assert idle["inside"] is False
    nominal = 700 + 15 * 512
    assert idle["naive_errors"]["nominal"] == pytest.approx(nominal / (on + 500) - 1, rel=1e-4)
    # Beyond the aim of 2 %, and the score says so.
    assert found["score"]["sharing, ksm"]["worst"] > 0.02


def test_the_text_has_one_line_for_each_held_out_cell(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path, tmp_path: Path
) -> None:
    measure(results)
    assert main(["report", "--results", str(results), "--figures", str(tmp_path / "figures")]) == 0
    text = capsys.readouterr().out
    assert len([line for line in text.splitlines() if line.startswith("idle")]) == 1
    assert "Best naive answer: constant saving" in text
    assert "idle at 10 guests has no measurement to join yet" in text
    assert max(map(len, text.splitlines())) <= 110
    assert (tmp_path / "figures/validation.png").read_bytes().startswith(b"\x89PNG")


def test_a_measured_mix_is_joined_with_its_forecast_and_never_calibrates(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, NUMBERS)
    path = results / "forecasts/mixed.json"
    mix = "random_fill=5,constant_fill=5,idle=5"
    assert main(["forecast", "--results", str(results), "--mix", mix, "--out", str(path)]) == 0
    predicted = json.loads(path.read_text())["predicted"][0]["used_on"]["mean_bytes"]
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if not line.startswith("Written to ")) <= 110

    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        for kind, used in (("off", 8900), ("on", 5000)):
            memory = records[kind]["observed"]["host"]["meminfo"]
            memory["MemAvailable_bytes"] = memory["MemTotal_bytes"] - used * MIB
        for record in records.values():
            record["recorded_at"] = f"{LATER}.000000Z"

    store(results, synthetic_plan(run_id="mixed", mix=mix), change)
    (one,) = seen(capsys, results)["joined"]
    assert (one["workload"], one["guests"]) == ("constant_fill=5,idle=5,random_fill=5", 15)
    assert one["error_on"] == pytest.approx(predicted / (5000 * MIB) - 1)
    assert main(["report", "--results", str(results), "--figures", str(results / "figures")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line.split() for line in lines if line.startswith("constant_fill=5,idle=5,random_fill=5 ")]
    # Without KSM 700 + 5 x 420 + 10 x 640 of 8900.
    assert line[1:4] == ["15", "+3.37", "5000"]
    assert main(["forecast", "--results", str(results), "--guests", "9"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "! not used: run mixed, mix-constant_fill5-idle5-random_fill5-ksm-guests15-boot1-rep1: it is a mix."
        in said
    )


def test_forecasts_of_both_models_are_scored_apart(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    store_censuses(results)
    path = results / "forecasts/census.json"
    words = ["--guests", "10,15", "--model", "census", "--out", str(path)]
    assert main(["forecast", "--results", str(results), *words]) == 0
    capsys.readouterr()
    measure(results)
    found = seen(capsys, results)
    assert set(found["score"]) == {"sharing, ksm", "census, ksm"}
    assert [one["model"] for one in found["joined"]] == ["census", "census", "sharing", "sharing"]
    assert main(["report", "--results", str(results), "--figures", str(results / "figures")]) == 0
    text = capsys.readouterr().out
    assert text.index("By the model census, ksm, host") < text.index("By the model sharing, ksm, host")


def test_a_census_that_was_changed_is_refused(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results, NUMBERS, focus="1,2")
    store_censuses(results)
    path = results / "forecasts/census.json"
    words = ["--guests", "15", "--model", "census", "--out", str(path)]
    assert main(["forecast", "--results", str(results), *words]) == 0
    capsys.readouterr()
    measure(results)
    census = next((results / "n6").rglob("census.json"))
    census.write_text(census.read_text() + "\n")
    assert "has other records now (digests differ)" in refused(capsys, results)


def test_off_measured_after_on_is_not_what_a_forecast_without_ksm_speaks_of(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    store_numbers(results, (15,), "turned", focus="1", start={"arm_order": "on-off"}, recorded_at=LATER)
    found = seen(capsys, results)
    assert [one["error_off"] for one in found["joined"]] == [None]
    assert found["score"]["sharing, ksm"]["worst_off"] is None
    assert main(["report", "--results", str(results)]) == 0
    text = capsys.readouterr().out
    assert "KSM off -: measured after KSM was on" in text
    assert "KSM off worst" not in text


def test_cells_of_another_policy_or_start_are_not_what_was_predicted(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    store_numbers(results, (15,), "policy", focus="1", design={"policies": "advisor"}, recorded_at=LATER)
    assert "idle at 15 guests has no measurement to join yet" in refused(capsys, results)
    store_numbers(results, (15,), "booted", focus="1", start=BOOTED, recorded_at=LATER)
    assert "start.from: checkpoint / boot" in refused(capsys, results)


def test_repetitions_are_a_line_each(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    plan = synthetic_plan(run_id="twice", guests=15, repetitions=2)
    store(results, plan, shaped(recorded_at=LATER))
    assert len(seen(capsys, results)["joined"]) == 2


def refused(capsys: pytest.CaptureFixture[str], results: Path) -> str:
    found = seen(capsys, results, code=1)
    assert found["joined"] == []
    assert found["score"] == {}
    return "\n".join(found["refused"])


def test_a_cell_recorded_before_the_forecast_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results, recorded_at="2020-01-01T00:00:00")
    assert "idle-ksm-guests15-boot1-rep1 is not joined: it was recorded before the forecast" in refused(
        capsys, results
    )


def test_other_provenance_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        shaped(recorded_at=LATER)(cell, records)
        for record in records.values():
            record["provenance"]["thp"] = {**record["provenance"]["thp"], "enabled": "never"}

    store(results, synthetic_plan(run_id="other", guests=15), change)
    assert "thp.enabled: madvise / never" in refused(capsys, results)


def test_an_incomplete_cell_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        shaped(recorded_at=LATER)(cell, records)
        del records["on"]

    store(results, synthetic_plan(run_id="half", guests=15), change)
    assert "is not joined: missing: not measured: no on record" in refused(capsys, results)


def test_changed_calibration_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results)
    path = results / "n4/host1/idle-ksm-guests4-boot1-rep1/off.json"
    path.write_text(path.read_text() + "\n")
    assert "idle-ksm-guests4-boot1-rep1 of run n4 has other records now (digests differ)" in refused(
        capsys, results
    )


def test_lost_calibration_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results)
    (results / "n4/host1/idle-ksm-guests4-boot1-rep1/on.json").unlink()
    assert "of run n4 is no longer there" in refused(capsys, results)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], *, sign: bool) -> None:
    content = json.loads(path.read_text())
    change(content)
    if sign:
        content["digest"] = digest(content)
    path.write_text(json.dumps(content))


def test_a_forecast_changed_afterwards_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results)

    def better(content: dict[str, Any]) -> None:
        content["predicted"][0]["used_on"]["mean_bytes"] += 1

    rewrite(forecast, better, sign=False)
    assert "it was changed after it was written" in refused(capsys, results)


def test_another_design_than_the_digest_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results)
    rewrite(forecast, lambda content: content["predicted"].pop(), sign=True)
    assert "not those of its design digest" in refused(capsys, results)


def test_a_cell_of_the_calibration_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    def pretend(content: dict[str, Any]) -> None:
        content["predicted"] = [
            {**one, "guests": 4, "mix": {one["workload"]: 4}} for one in content["predicted"][:1]
        ]
        content["design_digest"] = digest(
            [{"workload": "constant_fill", "guests": 4, "guest_memory_bytes": 512 * MIB, "policy": "ksm"}]
        )

    rewrite(forecast, pretend, sign=True)
    assert "constant_fill-ksm-guests4-boot1-rep1 is not joined: it is among the calibration" in refused(
        capsys, results
    )


def test_the_stored_forecast_fits_its_schema_and_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    content = json.loads(forecast.read_text())
    assert read_record(forecast, ForecastRecord).calibration.left_out == ()
    assert forecast.stat().st_mode & 0o777 == 0o600
    assert main(["forecast", "--results", str(results), "--guests", "20", "--out", str(forecast)]) == 2
    assert "a forecast is never overwritten" in capsys.readouterr().err
    assert json.loads(forecast.read_text()) == content


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("digest"),
        lambda content: content.update(kind="guess"),
        lambda content: content.update(created_at="yesterday"),
        lambda content: content["calibration"].update(cells=[]),
        lambda content: content["predicted"][0].update(guests="15"),
        lambda content: content["predicted"][0]["naive_used_on_bytes"].pop("nominal"),
    ],
)
def test_a_file_that_is_no_forecast_is_named_and_left_out(
    capsys: pytest.CaptureFixture[str],
    results: Path,
    forecast: Path,
    change: Callable[[dict[str, Any]], None],
) -> None:
    measure(results)
    (forecast.parent / "sound.json").write_bytes(forecast.read_bytes())
    rewrite(forecast, change, sign=False)
    found = seen(capsys, results)
    assert len(found["joined"]) == 2
    (problem,) = found["left_out"]
    assert "held-out.json " in problem


def test_a_report_of_nothing_but_damaged_files_names_them(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    forecast.write_bytes(b"\xff{")
    assert main(["report", "--results", str(results)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 file or run is left out ! " in said
    assert "held-out.json cannot be read" in said


def test_nothing_to_report_says_what_to_run(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results, NUMBERS)
    assert main(["report", "--results", str(results)]) == 2
    assert "holds no forecast and no capacity run: write one with" in capsys.readouterr().err


def joined(error: float, naive: float) -> Joined:
    on = 1000.0
    return Joined(
        "f", "sharing", "host", "ksm", "idle", 10, "r", "c", "off-on",
        2000.0, on, 2000.0, on * (1 + error), on * 0.02,
        {"constant_saving": on * (1 + naive), "sharing_ratio": on * 2, "nominal": on * 3},
    )  # fmt: skip


def test_the_score_by_hand() -> None:
    found = score([joined(0.01, 0.1), joined(-0.03, -0.3)])
    assert found.worst == pytest.approx(0.03)
    assert found.mean == pytest.approx(0.02)
    assert found.naive_mean["constant_saving"] == pytest.approx(0.2)
    assert found.ratio == pytest.approx(10)
    assert (found.inside, found.with_interval) == (1, 2)
    assert score([joined(0.0, 0.1)]).ratio is None
    with pytest.raises(ScoringError, match="no joined cell"):
        score([])
    with pytest.raises(FigureError, match="nothing to draw"):
        validation_figure([])


def test_a_mix_has_one_name() -> None:
    assert load_name("random_fill=2,idle=1") == load_name("idle=1,random_fill=2") == "idle=1,random_fill=2"
    assert load_name("idle") == "idle"


@pytest.fixture
def limit_forecast(results: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A forecast of how many fit in an envelope of 8 GiB."""
    store_numbers(results, NUMBERS)
    path = results / "forecasts/limit.json"
    assert (
        main(["forecast", "--results", str(results), "--fit", "--envelope-mib", "8192", "--out", str(path)])
        == 0
    )
    capsys.readouterr()
    return path


def capacity_steps() -> list[dict[str, Any]]:
    off = [step("off", n, 401 * n) for n in (4, 12, 20)] + [step("off", 21, 8150, stop="pressure")]
    # 15 of each guest go that no counter tells.
    on = [step("ksm", n, 401 * n - 30 * n - 110 * (n - 1) - 15 * n) for n in (4, 12, 20)]
    steps = [*off, *on]
    for one in steps:
        one["recorded_at"] = f"{LATER}.000000Z"
    return steps


def test_predicted_and_actual_limits_are_joined(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    store_capacity(results, capacity_steps())
    (found,) = seen(capsys, results)["capacity"]
    off, on = found["joins"]
    assert (off["predicted"], off["actual"]) == (20, {"guests": 20, "reached": True, "reason": "pressure"})
    assert off["worst_error"] == pytest.approx(21 * 401 / 8150 - 1, rel=1e-3)
    assert on["worst_error"] < 1e-3
    assert on["actual"]["reached"] is False
    assert main(["report", "--results", str(results)]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text[text.index("Limit, guests") :].splitlines()]
    assert ["KSM", "off", "20", "20", "-", "-"] in [row[:6] for row in rows]
    assert ["ksm", "20", "or", "more", "32"] in [row[:5] for row in rows]
    assert "- ksm: the run ended before a limit." in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"recorded_at": "2020-01-01T00:00:00.000000Z"}, "the run was recorded before it was written"),
        ({"envelope_bytes": 4096 * MIB}, "it is for 8192 MiB of the envelope, the run had 4096 MiB"),
        ({"hypervisor": "host2"}, "it is of another host"),
        ({"guest_memory_bytes": 256 * MIB}, "it is of another size of guests"),
        ({"requested": {"guest_reserve_bytes": 1}}, "requested.guest_reserve_bytes: 67108864 / 1"),
    ],
)
def test_a_forecast_that_does_not_match_the_run_is_refused(
    capsys: pytest.CaptureFixture[str],
    results: Path,
    limit_forecast: Path,
    change: dict[str, Any],
    sentence: str,
) -> None:
    store_capacity(results, [{**one, **change} for one in capacity_steps()])
    (found,) = seen(capsys, results)["capacity"]
    assert found["joins"] == []
    assert sentence in found["refused"][0]


def test_each_arm_is_judged_by_the_forecast_of_its_policy(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    advisor = [step("advisor", n, 401 * n - 10 * n) for n in (4, 12)]
    for one in advisor:
        one["recorded_at"] = f"{LATER}.000000Z"
    store_capacity(results, [*capacity_steps(), *advisor])
    (found,) = seen(capsys, results)["capacity"]
    assert [join["policy"] for join in found["joins"]] == ["off", "ksm"]
    assert set(found["limits"]) == {"off", "ksm", "advisor"}


def test_a_forecast_of_a_policy_that_the_run_has_not_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    steps = [{**one, "policy": one["policy"].replace("ksm", "advisor")} for one in capacity_steps()]
    store_capacity(results, steps)
    (found,) = seen(capsys, results)["capacity"]
    assert found["joins"] == []
    assert "it is for the policy ksm" in found["refused"][0]


def test_knobs_count_with_ksm_on_alone(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    steps = capacity_steps()
    for one in steps:
        if one["policy"] == "off":
            one["provenance"]["ksm_knobs"]["pages_to_scan"] = 100
    store_capacity(results, steps)
    assert len(seen(capsys, results)["capacity"][0]["joins"]) == 2
    steps[-1]["provenance"]["ksm_knobs"]["pages_to_scan"] = 100
    store_capacity(results, steps)
    assert "ksm_knobs.pages_to_scan: 20000 / 100" in seen(capsys, results)["capacity"][0]["refused"][0]


def test_a_run_whose_plan_is_damaged_is_named_and_left_out(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results)
    shutil.copytree(results / "n2", results / "broken")
    (results / "broken/plan.json").write_text("{")
    found = seen(capsys, results)
    assert len(found["joined"]) == 2
    assert any("broken" in problem and "plan.json" in problem for problem in found["left_out"])
