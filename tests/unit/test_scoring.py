"""The join of forecasts with what was measured afterwards: errors by hand, and every refusal."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import BOOTED, MIB, store, synthetic_plan
from synthetic_capacity import (
    CACHE_MIB,
    OTHERS_MIB,
    TRUTH,
    hold_others,
    naming,
    shaped,
    step,
    store_capacity,
    store_censuses,
    store_numbers,
    used_mib,
)

from analysis.__main__ import main
from analysis.measure.statistics import wilson
from analysis.model.scoring import (
    AVAILABLE,
    LATEST,
    ON_USE,
    SAVED,
    USED,
    Joined,
    Use,
    definition,
    groups,
    join,
    measured,
    score,
)
from analysis.model.sharing import HOST
from analysis.plan.design import Cell
from analysis.plan.mix import load_name
from analysis.records.forecasts import digest
from analysis.records.loading import load_runs
from analysis.records.models import ForecastRecord
from analysis.records.reading import read_record

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
    """A run that names the one forecast there is."""
    named = sorted((results / "forecasts").glob("*.json"))
    store_numbers(
        results, (guests,), **{"focus": "1,2", "forecasts": named, "recorded_at": LATER, **keywords}
    )


def scores(found: dict[str, Any], model: str = "sharing") -> dict[str, Any]:
    """Over all cells, by the definition of the forecast."""
    (group,) = [one for one in found["scores"] if one["model"] == model]
    all_of_it: dict[str, Any] = group["all"][USED]
    return all_of_it


def error(one: dict[str, Any], what: str = "used_on") -> Any:
    return one["errors"][USED][what]["error"]


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
    score = scores(found)["used_on"]
    assert abs(score["worst"]) < 1e-5
    assert score["naive"]["constant_saving"] < score["naive"]["no_saving"]
    assert score["ratio"] > 5
    assert scores(found)["saved"]["cells"] == 4
    assert found["counts"] == {
        "covered": 4,
        "scored": 4,
        "not_scored": {},
        "predicted_without_a_cell": 0,
        "named_and_not_read": 0,
    }


def test_a_forecast_of_an_envelope_is_scored_with_ksms_own_memory_as_it_counts_it(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, NUMBERS)
    path = results / "forecasts/held-out.json"
    words = ["--guests", "15", "--envelope-mib", "8192", "--out", str(path)]
    assert main(["forecast", "--results", str(results), *words]) == 0
    capsys.readouterr()
    measure(results)
    score = scores(seen(capsys, results))["used_on"]
    assert (score["cells"], abs(score["worst"]) < 1e-4) == (2, True)


def test_what_other_programs_hold_moves_neither_a_forecast_nor_its_score(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    working = {"others": lambda cell, kind: 40.0 * cell.guests * (kind == "off") + 300.0 * (kind == "on")}
    store_numbers(results, NUMBERS, **working)
    path = results / "forecasts/held-out.json"
    assert main(["forecast", "--results", str(results), "--guests", "15", "--out", str(path)]) == 0
    # Off 80, 160 and 240, on 300, of each workload
    others = json.loads(path.read_text())["others_bytes"] / MIB
    assert others == pytest.approx(OTHERS_MIB + (160 + 300) / 2)
    capsys.readouterr()
    measure(results, 15, others=lambda _cell, kind: 1000.0 * (kind == "on"))
    found = seen(capsys, results)
    assert scores(found)["used_on"]["cells"] == 2
    assert abs(scores(found)["used_on"]["worst"]) < 1e-5
    # As the paper measured, they count.
    (group,) = found["scores"]
    assert group["all"][AVAILABLE]["used_on"]["worst"] < -0.1


def test_cache_that_is_not_available_moves_neither_a_forecast_nor_its_score(results: Path) -> None:
    store_numbers(
        results, NUMBERS, focus="1", withheld=lambda cell, kind: 10.0 * cell.guests * (kind == "on")
    )
    path = results / "forecasts/held-out.json"
    assert main(["forecast", "--results", str(results), "--guests", "15", "--out", str(path)]) == 0
    found = read_record(path, ForecastRecord)
    # 200 MiB of the cache of each record, and at 2, 4 and 6 guests half of 20, 40 and 60
    assert found.withheld_bytes == pytest.approx((200 + 20) * MIB)
    measure(results, 15, focus="1", withheld=lambda _cell, _kind: 120.0)
    runs = load_runs(sorted(results.glob("*15"))).runs
    named = {run.plan.run_id: run.plan.forecasts for run in runs}
    (scored,), _refused = join(found, measured(runs), named)
    assert scored.error("used_on") == pytest.approx(0, abs=1e-6)
    # One of before had it in what was used: 20 MiB on average, and 120 in this cell
    (before,), _refused = join(found.model_copy(update={"withheld_bytes": None}), measured(runs), named)
    assert before.measured[USED].on - scored.measured[USED].on == pytest.approx((120 - 20) * MIB)


def test_the_error_is_the_predicted_over_the_measured(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results, noise=lambda _cell: 500.0)
    found = seen(capsys, results)
    idle = next(one for one in found["joined"] if one["workload"] == "idle")
    off, on, _gross = used_mib(TRUTH["idle"], 15)
    assert error(idle) == pytest.approx(on / (on + 500) - 1, rel=1e-4)
    assert error(idle, "used_off") == pytest.approx(0, abs=1e-6)
    assert error(idle, "saved") == pytest.approx((off - on) / (off - on - 500) - 1, rel=1e-4)
    assert idle["errors"][USED]["used_on"]["inside"] is False
    assert idle["errors"][USED]["used_on"]["naive"]["no_saving"] == pytest.approx(
        off / (on + 500) - 1, rel=1e-4
    )
    assert idle["errors"][USED]["saved"]["naive"]["no_saving"] == pytest.approx(-1)
    # Beyond the aim of 2 %, and the score says so.
    assert scores(found)["used_on"]["worst"] < -0.02
    assert scores(found)["used_on"]["coverage"]["inside"] == 0


def test_the_saving_has_the_interval_that_its_forecast_stores(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    for each in read_record(forecast, ForecastRecord).predicted:
        assert each.saved is not None
        assert each.saved.mean_bytes == pytest.approx(each.used_off.mean_bytes - each.used_on.mean_bytes)

    def widen(content: dict[str, Any]) -> None:
        for each in content["predicted"]:
            each["saved"]["half_width_bytes"] = 1 << 40 if each["workload"] == "idle" else 0

    rewrite(forecast, widen, sign=True)
    measure(results, 10, noise=lambda _cell: 50.0)
    coverage = scores(seen(capsys, results))["saved"]["coverage"]
    assert (coverage["inside"], coverage["cells"]) == (1, 2)


def test_of_a_forecast_that_stores_no_interval_of_the_saving_there_is_none(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    rewrite(forecast, lambda content: [each.pop("saved") for each in content["predicted"]], sign=True)
    measure(results)
    found = scores(seen(capsys, results))
    assert (found["saved"]["cells"], found["saved"]["coverage"]["cells"]) == (2, 0)
    assert found["used_on"]["coverage"]["cells"] == 2


def test_the_text_has_one_line_for_each_held_out_cell(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path, tmp_path: Path
) -> None:
    measure(results)
    assert main(["report", "--results", str(results), "--figures", str(tmp_path / "figures")]) == 0
    text = capsys.readouterr().out
    # Of the use, of the saving, and of both with the per-CPU lists counted
    assert len([line for line in text.splitlines() if line.startswith("idle")]) == 3
    assert "best naive answer: constant saving" in " ".join(text.split())
    assert "held-out predicts constant_fill at N = 10, idle at N = 10: not measured yet" in text
    assert max(map(len, text.splitlines())) <= 110
    (drawn,) = (tmp_path / "figures").glob("validation-sharing-ksm-host-512mib-*.png")
    assert drawn.read_bytes().startswith(b"\x89PNG")


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
            memory["MemFree_bytes"] = memory["MemAvailable_bytes"] - CACHE_MIB * MIB
            hold_others(records[kind])
        for record in records.values():
            record["recorded_at"] = f"{LATER}.000000Z"

    store(results, synthetic_plan(run_id="mixed", mix=mix, forecasts=naming(path)), change)
    (one,) = seen(capsys, results)["joined"]
    assert (one["workload"], one["guests"]) == ("constant_fill=5,idle=5,random_fill=5", 15)
    assert error(one) == pytest.approx(predicted / (5000 * MIB) - 1)
    # Without KSM 700 + 5 x 420 + 10 x 640 of 8900.
    assert error(one, "used_off") == pytest.approx(9200 / 8900 - 1, rel=1e-4)
    assert main(["report", "--results", str(results), "--figures", str(results / "figures")]) == 0
    lines = capsys.readouterr().out.splitlines()
    line, *_others = [
        line.split() for line in lines if line.startswith("constant_fill=5,idle=5,random_fill=5 ")
    ]
    assert line[1:4] == ["15", "1", "5000"]
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
    assert [(one["model"], one["policy"]) for one in found["scores"]] == [
        ("census", "ksm"),
        ("sharing", "ksm"),
    ]
    assert [one["model"] for one in found["joined"]] == ["census", "census", "sharing", "sharing"]
    assert main(["report", "--results", str(results), "--figures", str(results / "figures")]) == 0
    text = capsys.readouterr().out
    assert text.index("By the model census, ksm, guests") < text.index("By the model sharing, ksm, guests")


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


def test_cells_of_another_policy_or_start_are_not_what_was_predicted(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results, prefix="policy", focus="1", design={"policies": "advisor"})
    assert "idle 15: not measured yet" in refused(capsys, results)
    measure(results, prefix="booted", focus="1", start=BOOTED)
    assert "start.from: checkpoint / boot" in refused(capsys, results)


def test_repetitions_are_a_line_each(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    plan = synthetic_plan(run_id="twice", guests=15, repetitions=2, forecasts=naming(forecast))
    store(results, plan, shaped(recorded_at=LATER))
    found = seen(capsys, results)
    assert len(found["joined"]) == 2
    ((idle,),) = [one["loads"] for one in found["scores"]]
    assert (idle["workload"], idle["guests"], idle[USED]["used_on"]["cells"]) == ("idle", 15, 2)


def refused(capsys: pytest.CaptureFixture[str], results: Path) -> str:
    found = seen(capsys, results, code=1)
    assert found["joined"] == []
    assert found["scores"] == []
    return "\n".join(
        f"{one['run_id']} {one['cell_id']} {one['workload']} {one['guests']}: {one['reason']} {one['detail']}"
        for one in found["refused"]
    )


def test_a_cell_recorded_before_the_forecast_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results, recorded_at="2020-01-01T00:00:00")
    assert "idle-ksm-guests15-boot1-rep1 idle 15: recorded before the forecast" in refused(capsys, results)


def test_other_provenance_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        shaped(recorded_at=LATER)(cell, records)
        for record in records.values():
            record["provenance"]["thp"] = {**record["provenance"]["thp"], "enabled": "never"}

    store(results, synthetic_plan(run_id="other", guests=15, forecasts=naming(forecast)), change)
    assert "thp.enabled: madvise / never" in refused(capsys, results)


def test_an_incomplete_cell_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        shaped(recorded_at=LATER)(cell, records)
        del records["on"]

    store(results, synthetic_plan(run_id="half", guests=15), change)
    assert "idle 15: missing not measured: no on record" in refused(capsys, results)


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


def test_a_forecast_that_the_run_does_not_name_is_not_scored(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    second = forecast.with_name("second.json")
    assert main(["forecast", "--results", str(results), "--guests", "15", "--out", str(second)]) == 0
    capsys.readouterr()
    measure(results, forecasts=[forecast])
    measure(results, 10, forecasts=[])
    found = seen(capsys, results)
    assert [(one["forecast_id"], one["guests"]) for one in found["joined"]] == [("held-out", 15)] * 2
    assert found["counts"]["covered"] == 6
    assert found["counts"]["not_scored"] == {"not named by the run": 4}
    assert main(["report", "--results", str(results)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "The forecasts cover 6 cells, each forecast counted for itself: 2 scored; "
        "4 not scored, not named by the run." in said
    )
    assert (
        "! second: run n15, constant_fill-ksm-guests15-boot1-rep1, idle-ksm-guests15-boot1-rep1 not" in said
    )


def test_a_forecast_that_a_run_names_and_that_is_gone_is_told(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results)
    forecast.unlink()
    second = forecast.with_name("second.json")
    assert main(["forecast", "--results", str(results), "--guests", "15", "--out", str(second)]) == 0
    capsys.readouterr()
    found = seen(capsys, results, code=1)
    assert found["counts"]["named_and_not_read"] == 1
    assert "run n15 names the forecast held-out of " in found["not_read"][0]


def test_a_forecast_signed_anew_is_not_the_one_that_the_run_names(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results)

    def better(content: dict[str, Any]) -> None:
        content["predicted"][0]["used_on"]["mean_bytes"] += 1

    rewrite(forecast, better, sign=True)
    assert "idle 15: not named by the run" in refused(capsys, results)
    assert seen(capsys, results, code=1)["counts"]["named_and_not_read"] == 1


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
    assert (
        "constant_fill-ksm-guests4-boot1-rep1 constant_fill 4: among the forecast's calibration"
        in refused(capsys, results)
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


def joined(wrong: float, naive: float, saved: float = 1000.0) -> Joined:
    """1000 used with the policy on, predicted within ± 20."""
    on, off = 1000.0, 1000.0 + saved
    return Joined(
        "f", "sharing", HOST, LATEST, ("c",), "ksm", 512 << 20, "idle", 10, "r", "c",
        {USED: Use(off, on), AVAILABLE: Use(off + 100, on + 200)}, Use(off, on * (1 + wrong)),
        {"used_off": None, "used_on": on * 0.02, "saved": on * 0.02},
        {"constant_saving": on * (1 + naive), "no_saving": off},
    )  # fmt: skip


def test_guests_of_two_sizes_are_scored_apart() -> None:
    small = replace(joined(0.01, 0.1), guest_memory_bytes=384 << 20)
    assert [group.name for group in groups([joined(0.02, 0.1), small])] == [
        "sharing, ksm, guests of 384 MB, from c",
        "sharing, ksm, guests of 512 MB, from c",
    ]


def test_forecasts_from_two_calibrations_are_scored_apart() -> None:
    other = replace(joined(0.01, 0.1), calibration=("a", "b"))
    found = groups([joined(0.02, 0.1), other])
    assert [group.name for group in found] == [
        "sharing, ksm, guests of 512 MB, from a and 1 more",
        "sharing, ksm, guests of 512 MB, from c",
    ]
    assert [len(group.joined) for group in found] == [1, 1]
    assert len({group.file_name for group in found}) == 2


def test_forecasts_by_two_definitions_of_used_are_scored_apart() -> None:
    earlier = replace(joined(0.01, 0.1), definition="withheld-counted")
    found = groups([earlier, joined(0.02, 0.1)])
    assert [group.name for group in found] == [
        "sharing, ksm, guests of 512 MB, from c",
        "sharing, ksm, guests of 512 MB, from c, what MemAvailable withholds counted as it was",
    ]
    assert [len(group.joined) for group in found] == [1, 1]
    assert len({group.file_name for group in found}) == 2


def test_the_definition_is_what_the_forecast_holds(
    capsys: pytest.CaptureFixture[str], results: Path, forecast: Path
) -> None:
    measure(results)
    assert {one["definition"] for one in seen(capsys, results)["scores"]} == {LATEST}
    rewrite(forecast, lambda content: content.pop("withheld_bytes"), sign=True)
    assert definition(read_record(forecast, ForecastRecord)) == "withheld-counted"


def test_the_score_by_hand() -> None:
    cells = [joined(0.01, 0.1), joined(-0.03, -0.3)]
    found = score(cells, ON_USE)
    assert found is not None
    assert (found.worst, found.mean) == (pytest.approx(-0.03), pytest.approx(0.02))
    assert found.naive == {"constant_saving": pytest.approx(0.2), "no_saving": pytest.approx(1.0)}
    assert (found.best_naive, found.ratio, found.too_high) == ("constant_saving", pytest.approx(10), 1)
    assert (found.coverage.inside, found.coverage.cells) == (1, 2)
    # Of the saving of 1000: what is too much used is too little saved.
    saved = score(cells, SAVED)
    assert saved is not None
    assert (saved.worst, saved.too_high) == (pytest.approx(0.03), 1)
    assert (saved.coverage.inside, saved.coverage.cells) == (1, 2)
    assert saved.naive["no_saving"] == pytest.approx(1.0)
    exact = score([joined(0.0, 0.1)], ON_USE)
    assert exact is not None
    assert exact.ratio is None
    assert score([], ON_USE) is None


def test_the_other_definition_of_used_has_its_own_errors() -> None:
    (cell,) = [joined(0.0, 0.1)]
    assert cell.error(ON_USE, AVAILABLE) == pytest.approx(1000 / 1200 - 1)
    assert cell.error(SAVED, AVAILABLE) == pytest.approx(1000 / 900 - 1)
    assert (cell.inside(ON_USE), cell.inside(ON_USE, AVAILABLE)) == (True, False)


def test_what_says_nothing_is_not_scored() -> None:
    little = joined(0.01, 0.1, saved=40)
    assert little.error(SAVED) is None
    assert score([little], SAVED) is None
    assert joined(0.01, 0.1, saved=60).error(SAVED) == pytest.approx(-10 / 60)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"), [(2, 8, 0.0715, 0.5907), (30, 30, 0.8865, 1.0), (0, 10, 0.0, 0.2775)]
)
def test_a_share_has_wilsons_interval(hits: int, of: int, low: float, high: float) -> None:
    # R: prop.test(hits, of, correct = FALSE)
    assert wilson(hits, of) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert wilson(0, 0) == (None, None)


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


def capacity_steps(*forecasts: Path) -> list[dict[str, Any]]:
    """A run that names these forecasts."""
    names = [one.to_json() for one in naming(*forecasts)]
    off = [step("off", n, 401 * n) for n in (4, 12, 20)] + [step("off", 21, 8150, stop="pressure")]
    # 15 of each guest go that no counter tells, and KSM takes 4.5.
    on = [step("ksm", n, 401 * n - 30 * n - 110 * (n - 1) - 15 * n + 4.5 * n) for n in (4, 12, 20)]
    steps = [*off, *on]
    for one in steps:
        one |= {"recorded_at": f"{LATER}.000000Z", "forecasts": names}
    return steps


def test_predicted_and_actual_limits_are_joined(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    store_capacity(results, capacity_steps(limit_forecast))
    (found,) = seen(capsys, results)["capacity"]
    off, on = found["joins"]
    (actual,) = off["actual"]
    assert (off["predicted"], off["admission"]) == (20, 20)
    assert actual["steady"] == {"guests": 20, "reached": True, "reason": "pressure"}
    assert off["worst_error"] == pytest.approx(21 * 401 / 8150 - 1, rel=1e-3)
    assert on["worst_error"] < 1e-3
    assert on["actual"][0]["steady"]["reached"] is False
    # 110 and 250.5 for each guest; while it is started the last one needs 401 and 4.5.
    assert on["predicted"] == int((8192 - 110) // 250.5)
    assert on["admission"] == 1 + int((8192 - 110 - 405.5) // 250.5)
    assert main(["report", "--results", str(results)]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text[text.index("Limits, guests") :].splitlines()]
    assert ["KSM", "off", "steady", "20", "20", "-"] in [row[:6] for row in rows]
    assert ["ksm", "steady", "20", "or", "more", "32"] in [row[:6] for row in rows]
    assert ["ksm", "admission", "-", "31"] in [row[:4] for row in rows]
    assert "- ksm, boot 1, steady limit: the run ended before a limit." in text
    assert main(["report", "--results", str(results), "--figures", str(results / "drawn")]) == 0
    assert (results / "drawn/limits.png").exists()


def test_a_forecast_that_leaves_ksms_own_memory_out_of_the_envelope_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    content = json.loads(limit_forecast.read_text())
    for load in content["loads"]:
        del load["curve"]["admission_bytes"], load["limits"]["admission"]
    content["digest"] = digest(content)
    limit_forecast.write_text(json.dumps(content))
    store_capacity(results, capacity_steps(limit_forecast))
    (found,) = seen(capsys, results)["capacity"]
    assert found["joins"] == []
    assert "it leaves KSM's own memory out of the envelope" in found["refused"][0]


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
    store_capacity(results, [{**one, **change} for one in capacity_steps(limit_forecast)])
    (found,) = seen(capsys, results)["capacity"]
    assert found["joins"] == []
    assert sentence in found["refused"][0]


def test_each_arm_is_judged_by_the_forecast_of_its_policy(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    advisor = [step("advisor", n, 401 * n - 10 * n) for n in (4, 12)]
    for one in advisor:
        one["recorded_at"] = f"{LATER}.000000Z"
    store_capacity(results, [*capacity_steps(limit_forecast), *advisor])
    (found,) = seen(capsys, results)["capacity"]
    assert [join["policy"] for join in found["joins"]] == ["off", "ksm"]
    assert [limit["policy"] for limit in found["limits"]] == ["off", "ksm", "advisor"]


def test_a_capacity_run_is_judged_by_the_forecast_that_it_names(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    later = limit_forecast.with_name("later.json")
    words = ["--fit", "--envelope-mib", "8192", "--out", str(later)]
    assert main(["forecast", "--results", str(results), *words]) == 0
    capsys.readouterr()
    store_capacity(results, capacity_steps(limit_forecast))
    (found,) = seen(capsys, results)["capacity"]
    assert [one["forecast_id"] for one in found["joins"]] == ["limit"] * 2
    assert found["refused"] == ["forecast later is not joined with run cap1: not named by the run"]
    limit_forecast.unlink()
    (found,) = seen(capsys, results)["capacity"]
    assert found["joins"] == []
    assert "run cap1 names the forecast limit of " in found["refused"][1]


def test_a_forecast_of_a_policy_that_the_run_has_not_is_refused(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    steps = [
        {**one, "policy": one["policy"].replace("ksm", "advisor")} for one in capacity_steps(limit_forecast)
    ]
    store_capacity(results, steps)
    (found,) = seen(capsys, results)["capacity"]
    assert found["joins"] == []
    assert "it is for the policy ksm" in found["refused"][0]


def test_knobs_count_with_ksm_on_alone(
    capsys: pytest.CaptureFixture[str], results: Path, limit_forecast: Path
) -> None:
    steps = capacity_steps(limit_forecast)
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
