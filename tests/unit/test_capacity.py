"""Capacity records: the schema's faults, the actual limit, saving against performance, divergence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import MIB, synthetic_plan, synthetic_records
from synthetic_capacity import capacity_record, divergence_record, step, store_capacity

from analysis.__main__ import main
from analysis.model.capacity import (
    admission_limit,
    conditions,
    found_limits,
    safe_limit,
    steady_limit,
    used_series,
)
from analysis.model.divergence import divergence
from analysis.model.judging import judge
from analysis.model.performance import costs, relation, steps_table
from analysis.records.capacity import CapacityRun, load_capacity
from analysis.records.forecasts import load_forecasts
from analysis.records.models import RECORDS, DivergenceRecord, StepRecord
from analysis.records.reading import RecordError, parse_record
from analysis.report.capacity import capacity_parts, divergence_lines
from analysis.report.capacity_figures import (
    capacity_figure,
    divergence_figure,
    performance_figure,
)
from analysis.report.cost_figures import trade_off_figure
from analysis.report.tables import render

GIB = 1 << 30


def fits(content: dict[str, Any]) -> bool:
    try:
        parse_record(json.dumps(content).encode(), RECORDS.get(content["kind"], StepRecord), "it")
    except RecordError:
        return False
    return True


def step_record(**changes: Any) -> StepRecord:
    return StepRecord.model_validate_json(json.dumps(capacity_record(**changes)))


def load(results: Path, records: list[dict[str, Any]]) -> CapacityRun:
    store_capacity(results, records)
    (run,), _problems = load_capacity(results)
    return run


def both_arms() -> list[dict[str, Any]]:
    off = [step("off", 2, 1000), step("off", 4, 2000, slow=2), step("off", 5, 2400, stop="PSI above 20 %")]
    on = [step("ksm", 2, 900, slow=1.25), step("ksm", 4, 1500, slow=4), step("ksm", 6, 1900)]
    return [*off, *on]


def test_sound_records_fit() -> None:
    assert fits(capacity_record())
    assert fits(divergence_record([9.0, 8.0, 7.0, 7.0], [1.0, 2.0, 3.0, 3.0]))
    assert fits(capacity_record(workload="idle=2,random_fill=2"))
    without = capacity_record(envelope_bytes=None)
    without["observed"]["envelope"] = None
    assert fits(without)


def put(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


BAD_STEPS = [
    put("kind", value="step"),
    put("policy", value=""),
    put("workload", value="idle=2,"),
    put("guests", value=-1),
    put("recorded_at", value="now"),
    put("stop", value={"reason": "x"}),
    put("observed", "envelope", value=None),
    put("observed", "envelope", "usage_bytes", value=None),
    put("observed", "host", "meminfo", value={}),
    put("observed", "probes", 0, "answer", value={"write_latency_p50_us": 1}),
    put("observed", "admission", value={"seconds": [0.0]}),
    put("observed", "window", "seconds", value=0),
    put("observed", "window", "vmstat", value={"pgfault": 1}),
    put("observed", "window", "psi_some_microseconds", value={"memory": 1}),
    put("provenance", "ksm_knobs", value=None),
    put("requested", value={}),
    put("extra", value=1),
]


@pytest.mark.parametrize("number", range(len(BAD_STEPS)))
def test_a_step_with_one_fault_is_refused(number: int) -> None:
    content = capacity_record()
    BAD_STEPS[number](content)
    assert not fits(content)


@pytest.mark.parametrize(
    "change",
    [
        put("policy", value="off"),
        put("observed", "samples", "seconds", value=[0.0]),
        put("observed", "samples", "pages_sharing", value=[None, 1]),
        put("observed", "turns", value=[]),
        put("observed", "turns", 0, "written_bytes", value=-1),
        put("observed", "guests_alive", value=None),
    ],
)
def test_a_divergence_with_one_fault_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    content = divergence_record([9.0, 8.0, 7.0], [1.0, 2.0, 3.0])
    change(content)
    assert not fits(content)


def arm(policy: str, *used_and_peak: tuple[float, float | None], boot: int = 1) -> list[dict[str, Any]]:
    """Steps of one guest more each, from none, with what is used and was used at most."""
    return [
        step(policy, guests, used, peak=peak, boot=boot) for guests, (used, peak) in enumerate(used_and_peak)
    ]


def test_the_steady_limit_lies_beyond_the_last_guest_that_could_be_admitted(results: Path) -> None:
    off = arm("off", (0, None), (4000, 4100), (8000, 8100), (12000, 12000))
    on = arm("ksm", (0, None), (3000, 4100), (4500, 7200), (7500, 8800), (8190, 9900), (8200, 9000))
    run = load(results, [*off, *on])
    without, under = found_limits(run)
    assert (without.policy, without.steady.guests, under.steady.guests) == ("off", 2, 4)
    assert without.admission is not None and under.admission is not None
    assert (without.admission.guests, under.admission.guests) == (2, 2)
    assert under.steady.reason == "8200 of 8192 MiB are used"
    assert under.admission.reason == "while guest 3 was started 8800 of 8192 MiB were used"
    assert all(limit.reached for limit in (without.steady, under.steady, under.admission))


def test_a_limit_that_was_stepped_over_lies_between(results: Path) -> None:
    run = load(results, [step("off", 0, 0), step("off", 3, 1500), step("off", 6, 9000, "full")])
    seen = steady_limit(run.arms["off"])
    assert (seen.guests, seen.reached) == (3, False)
    assert "between 3 and 5" in seen.reason


def test_without_samples_nothing_is_said_of_admission(results: Path) -> None:
    run = load(results, both_arms())
    off, on = found_limits(run)
    assert (off.steady.guests, off.steady.reached, off.steady.reason) == (4, True, "PSI above 20 %")
    assert (on.steady.guests, on.steady.reached) == (6, False)
    assert off.admission is None and admission_limit(run.arms["ksm"]) is None


def test_the_safe_limit_is_that_of_guests_all_of_whose_memory_is_in_use() -> None:
    def off(guests: int, used: float, resident: float | None) -> StepRecord:
        record = step("off", guests, used)
        plan = synthetic_plan(guests=2)
        one = synthetic_records(plan, plan.cells[0])["off"]["observed"]["guests"]["guest01"]
        one["mergeable_resident_bytes"] = None if resident is None else round(resident * MIB)
        record["observed"]["guests"] = {f"guest{n:02d}": one for n in range(1, guests + 1)}
        return StepRecord.model_validate_json(json.dumps(record))

    # 420 a guest, 300 of them its own memory: 512 + 120 + 8 of rmap_items
    assert safe_limit([off(0, 100, None), off(1, 520, 300), off(2, 940, 300)]) == ((8192 - 100) // 640)
    assert safe_limit([off(2, 940, None)]) is None
    assert safe_limit([]) is None


def test_the_steps_are_tabled_by_the_guests_medians(results: Path) -> None:
    records = both_arms()
    # One guest of four is ten times as slow, one silent: the median is of the three that answered.
    probes = records[1]["observed"]["probes"]
    probes[0]["answer"]["write_latency_p99_us"] = 4000.0
    probes[1] = {"guest": "guest02", "answer": None}
    table = steps_table(load(results, records)).set_index(["policy", "guests"])
    row = table.loc[("off", 4)]
    assert row["write_latency_p99_us"] == 40
    assert row["silent_guests"] == 1
    assert row["used_bytes"] == 2000 * MIB
    # (1.4 x 2 - 0.4) s for 100 MiB; (2.4 - 0.4) s for the 500 a second of 2 s
    assert row["read_cpu_us_per_mib"] == pytest.approx(24_000)
    assert row["operation_cpu_us"] == pytest.approx(2_000)
    assert row["psi_memory_percent"] == pytest.approx(10)
    assert row["ksmd_percent"] == pytest.approx(10)
    assert row["steal_percent"] == pytest.approx(2.5)
    assert row["cow_ksm_per_second"] == pytest.approx(30)
    assert table.loc[("off", 5)]["stop"] == "PSI above 20 %"


def test_memory_saved_against_performance_lost(results: Path) -> None:
    both = relation(steps_table(load(results, both_arms()))).set_index("guests")
    assert list(both.index) == [2, 4]
    assert both["saved_bytes"].tolist() == [100 * MIB, 500 * MIB]
    assert both["touch_lost_percent"].tolist() == pytest.approx([20, 50])
    assert both["cpu_lost_percent"].tolist() == pytest.approx([20, 50])
    assert both["p99_added_percent"].tolist() == pytest.approx([25, 100])
    # A request that does nothing took 0.4 of 1.4 s with no slowness.
    assert both["read_cpu_added_percent"].tolist() == pytest.approx([35, 400 * (1.4 - 0.7) / 2.4])


def test_differences_are_taken_in_each_boot_and_averaged_over_them(results: Path) -> None:
    records = [
        step(policy, 2, used, slow=slow, boot=boot)
        for boot, (policy, used, slow) in [
            (1, ("off", 1000, 1.0)),
            (1, ("ksm", 900, 1.0)),
            (2, ("off", 3000, 2.0)),
            (2, ("ksm", 2700, 2.5)),
        ]
    ]
    for record, seconds in zip(records, (0.0, 2.0, 0.0, 4.0), strict=True):
        record["observed"]["window"] |= {"seconds": 8.0, "ksmd_cpu_seconds": seconds}
    run = load(results, records)
    assert run.boots == [1, 2]
    (one,) = costs(relation(steps_table(run)))
    assert one.saved_bytes is not None and one.saved_bytes.mean == 200 * MIB
    # Under the policy alone, 2 of the 8 s of the probes' window and 4
    assert one.ksmd_percent is not None and one.ksmd_percent.mean == pytest.approx(37.5)
    lost = one.lost["cpu_lost_percent"]
    assert lost is not None
    # 0 and 20 %: mean 10, and t of one degree of freedom
    assert (lost.n_boots, lost.mean) == (2, pytest.approx(10))
    assert lost.half_width == pytest.approx(12.706 * 10, rel=1e-3)
    text = render(*capacity_parts(judge(run, [])))
    assert "over 2 boots: no difference can be told of touch lost, CPU lost" in " ".join(text.split())


def test_several_policies_are_each_compared_with_off(results: Path) -> None:
    run = load(results, [*both_arms(), step("advisor", 2, 950), step("advisor", 4, 1900, slow=4)])
    assert list(run.arms) == ["off", "ksm", "advisor"]
    assert run.policies == ["ksm", "advisor"]
    both = relation(steps_table(run)).set_index(["policy", "guests"])
    assert both["saved_bytes"].to_dict() == {
        ("ksm", 2): 100 * MIB,
        ("ksm", 4): 500 * MIB,
        ("advisor", 2): 50 * MIB,
        ("advisor", 4): 100 * MIB,
    }
    throughput, _latency, _cpu, _ksmd = trade_off_figure(run.workload, costs(relation(steps_table(run)))).axes
    assert [bars.get_label() for bars in throughput.containers] == [
        "ksm, touching memory",
        "ksm, CPU work",
        "advisor, touching memory",
        "advisor, CPU work",
    ]
    text = render(*capacity_parts(judge(run, [])))
    # Two limits, two steps, two costs
    assert sum(line.startswith("advisor ") for line in text.splitlines()) == 6
    assert max(map(len, text.splitlines())) <= 110


def test_from_what_guests_began_is_a_condition_and_from_which_boot_is_none() -> None:
    found = conditions(step_record())
    assert found["start.from"] == "checkpoint"
    assert not any(name.startswith("start.") and name != "start.from" for name in found)
    other = capacity_record()
    other["provenance"]["start"]["checkpoint"] = "sha256:another"
    assert conditions(step_record(provenance=other["provenance"])) == found
    empty = conditions(step_record(guests=0))
    assert "start.from" not in empty


def test_knobs_are_conditions_of_a_policy_and_not_of_off() -> None:
    knobs = {name for name in conditions(step_record(policy="ksm")) if name.startswith("ksm_knobs.")}
    assert "ksm_knobs.pages_to_scan" in knobs
    assert "ksm_knobs.run" not in knobs
    assert not any(name.startswith("ksm_knobs.") for name in conditions(step_record()))


def test_others_beside_the_guests_are_a_condition_and_nobody_beside_them_is_none() -> None:
    record = capacity_record()
    assert "others" not in conditions(step_record())
    other = {"pid": 77, "command": "qemu", "merging_pages": 0, "mergeable_bytes": 1}
    for seen, found in (([], None), ([other], "present")):
        observed = {**record["observed"], "other_mergeable": seen}
        assert conditions(step_record(observed=observed)).get("others") == found
        divergence = divergence_record([900, 100], [1000, 1800])
        divergence["observed"]["other_mergeable"] = seen
        read = DivergenceRecord.model_validate_json(json.dumps(divergence))
        assert conditions(read).get("others") == found


def test_the_host_counts_without_an_envelope(results: Path) -> None:
    record = capacity_record(envelope_bytes=None)
    record["observed"]["envelope"] = None
    record["observed"]["host"]["per_cpu_free_pages"] = 256
    run = load(results, [record])
    assert steps_table(run)["used_bytes"].tolist() == [7999 * MIB]
    assert run.capacity_bytes == 24000 * MIB


def test_of_two_records_of_one_step_neither_is_taken(results: Path) -> None:
    store_capacity(results, [capacity_record(), capacity_record(guests=2)])
    copied = results / "capacity/again.json"
    copied.write_text(next(results.rglob("capacity_step-off-1-04.json")).read_text())
    (run,), (problem,) = load_capacity(results)
    assert [step.guests for step in run.arms["off"]] == [2]
    assert "are all the step to 4 guests with the policy off: a run has one" in problem
    assert "again.json" in problem
    assert "capacity_step-off-1-04.json" in problem


NEWER = capacity_record(guests=6, schema_version=9)
UNEVEN = divergence_record([9.0, 8.0, 7.0], [1.0, 2.0, 3.0])
UNEVEN["observed"]["samples"]["seconds"].pop()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"{}", "holds a record of kind None"),
        (b"[1]", "breaks the schema at $"),
        (b"null", "breaks the schema at $"),
        (b"[" * 100_000, "cannot be read"),
        (json.dumps(NEWER).encode(), "is of schema version 9, and this testbed knows 2 alone"),
        (json.dumps(UNEVEN).encode(), "are of different lengths"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_left_out_and_counted(
    results: Path, capsys: pytest.CaptureFixture[str], content: bytes, sentence: str
) -> None:
    store_capacity(results, [capacity_record()])
    (results / "capacity/other.json").write_bytes(content)
    assert main(["report", "--results", str(results), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [step["guests"] for step in found["capacity"][0]["steps"]] == [4]
    (problem,) = found["left_out"]
    assert "capacity: other.json " in problem
    assert sentence in problem
    assert main(["report", "--results", str(results)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 file or run is left out ! " in said
    assert sentence in said


def test_what_somebody_changed_a_knob_during_is_named_and_nothing_is_concluded_from_it(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = {"seconds": 7.6, "knob": "run", "before": "0", "after": "1"}
    beyond = capacity_record(guests=5, stop={"reason": "full", "measure": "x", "value": 1.0, "limit": 0.0})
    diverged = storm_content()
    for record in (beyond, diverged):
        record["observed"]["knob_changes"] = [change]
    store_capacity(results, [capacity_record(), beyond, diverged])
    assert main(["report", "--results", str(results), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["left_out"]) == 2
    assert found["left_out"][0].endswith(
        "idle: capacity_step-off-1-05.json: somebody changed run from 0 to 1 8 s after it had begun"
    )
    assert [step["guests"] for step in found["capacity"][0]["steps"]] == [4]
    assert main(["report", "--results", str(results)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Divergence" not in said
    assert "KSM off, boot 1, steady limit: the run ended before a limit" in said


def storm_content(alive: int = 4, **changes: Any) -> dict[str, Any]:
    """Four guests that take turns from second 2 to 3, 4, 5 and 7, and regain 800 MiB."""
    saved = [1000.0, 1000, 1000, 900, 700, 400, 200, 200, 200]
    content = divergence_record(saved, [3000 - value for value in saved], alive, (3.0, 4.0, 5.0, 7.0))
    content["observed"] |= changes
    return content


def storm(alive: int = 4, **changes: Any) -> DivergenceRecord:
    return DivergenceRecord.model_validate_json(json.dumps(storm_content(alive, **changes)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_of_a_byte_or_two_is_more_than_a_file_left_out(tmp_path: Path, data: st.DataObject) -> None:
    sound = json.dumps(storm_content()).encode()
    at = data.draw(st.integers(0, len(sound) - 1))
    content = sound[:at] + data.draw(st.binary(max_size=3)) + sound[at + data.draw(st.integers(0, 3)) :]
    for name in ("capacity", "forecasts"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "one.json").write_bytes(content)
    runs, left_out = load_capacity(tmp_path)
    assert len(runs) + len(left_out) == 1
    forecasts, unusable = load_forecasts(tmp_path)
    assert (forecasts, len(unusable)) == ([], 1)
    for run in runs:
        assert divergence(run.divergences[0], None).regained_bytes >= 0


def test_divergence_by_hand() -> None:
    seen = divergence(storm(), 2900.0 * MIB)
    assert seen.regained_bytes == 800 * MIB
    assert seen.peak_rate == pytest.approx(300 * MIB)
    # Of the 800 nothing is gone at second 2, and all at second 6.
    assert seen.mean_rate == pytest.approx(200 * MIB)
    assert seen.peak_used_bytes == 2800 * MIB
    # 8192 - 2000 MiB are free at first.
    assert seen.free_seconds == pytest.approx(6192 / 300)
    assert seen.cow_ksm == 800
    assert (seen.part, seen.full_part, seen.predicted_part) == (1, None, None)
    # 80 ms of 8 s
    assert seen.psi_memory_percent == pytest.approx(1)
    assert seen.safe_holds is True


def test_the_part_that_differs_when_the_envelope_is_full() -> None:
    content = storm_content()
    content["envelope_bytes"] = 2650 * MIB
    record = DivergenceRecord.model_validate_json(json.dumps(content))
    seen = divergence(record, apart_bytes=2900.0 * MIB)
    # 2800 MiB are used first at second 6, when the fourth guest is half way.
    assert seen.full_part == pytest.approx(3.5 / 4)
    assert seen.full_seconds == 4
    # (2650 - 2000) of the (2900 - 2000) MiB
    assert seen.predicted_part == pytest.approx(650 / 900)
    assert (
        "full when 88 % of what they hold differed (forecast: 72 %), 4 s after" in divergence_lines(seen)[0]
    )
    assert divergence(record, apart_bytes=2600.0 * MIB).predicted_part is None


def test_a_safe_need_is_not_proved_by_a_part_of_the_guests() -> None:
    content = storm_content()
    del content["observed"]["turns"][3]
    record = DivergenceRecord.model_validate_json(json.dumps(content))
    seen = divergence(record, 2900.0 * MIB)
    assert (seen.part, seen.safe_holds) == (0.75, None)
    assert "75 % of what they hold differed, and it still fits" in divergence_lines(seen)[0]


def test_the_safe_limit_does_not_hold_when_more_is_used_or_a_guest_died() -> None:
    assert divergence(storm(), 2700.0 * MIB).safe_holds is False
    assert divergence(storm(alive=3), 2900.0 * MIB).safe_holds is False
    assert divergence(storm(oom_kills=1), 2900.0 * MIB).safe_holds is False
    assert divergence(storm(), None).safe_holds is None


def test_a_series_that_ends_too_early_gives_no_verdict() -> None:
    turns = storm_content()["observed"]["turns"]
    turns[3]["finished_seconds"] = 9.5
    seen = divergence(storm(turns=turns), 2900.0 * MIB)
    assert (seen.whole, seen.safe_holds) == (False, None)
    assert "whether it holds is not known" in "\n".join(divergence_lines(seen))
    # A guest that is lost settles it all the same.
    assert divergence(storm(alive=3, turns=turns), 2900.0 * MIB).safe_holds is False


def test_free_pages_on_per_cpu_lists_are_not_used_by_a_host_that_diverges() -> None:
    content = storm_content()
    content["envelope_bytes"] = None
    samples = content["observed"]["samples"]
    available = [10000 * MIB, *[9000 * MIB] * 8]
    samples["MemAvailable_bytes"] = available
    # Not told in one sample: then they count as used.
    samples["per_cpu_free_pages"] = [0, *[25600] * 7, None]
    record = DivergenceRecord.model_validate_json(json.dumps(content))
    assert used_series(record, record.observed.samples) == [14000 * MIB, *[14900 * MIB] * 7, 15000 * MIB]
    del samples["per_cpu_free_pages"]
    record = DivergenceRecord.model_validate_json(json.dumps(content))
    assert used_series(record, record.observed.samples) == [14000 * MIB, *[15000 * MIB] * 8]


def test_the_figures_draw_the_measurements(results: Path) -> None:
    run = load(results, both_arms())
    (axes,) = capacity_figure(run, {}).axes
    drawn = {str(line.get_label()): line for line in axes.lines}
    assert list(drawn["KSM off, measured"].get_xdata()) == [2, 4, 5]
    assert list(drawn["ksm, measured"].get_ydata()) == pytest.approx(
        [n * MIB / GIB for n in (900, 1500, 1900)]
    )
    throughput, _latency, _cpu, _ksmd = trade_off_figure(run.workload, costs(relation(steps_table(run)))).axes
    seen = relation(steps_table(run))
    touch_bars, cpu_bars = (bars.lines[0] for bars in throughput.containers)
    assert list(touch_bars.get_xdata()) == pytest.approx(list(seen["saved_bytes"] / GIB))
    assert list(cpu_bars.get_ydata()) == pytest.approx(list(seen["cpu_lost_percent"]))
    touch = performance_figure(run).axes[0]
    assert list(touch.lines[0].get_ydata()) == pytest.approx([800, 400, 800])
    (axes,) = divergence_figure(storm(), divergence(storm(), None)).axes
    assert max(float(value) for value in axes.lines[0].get_ydata()) == pytest.approx(2800 * MIB / GIB)


def test_the_report_of_a_run_without_a_forecast(
    results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store_capacity(results, [*both_arms(), storm_content()])
    assert main(["report", "--results", str(results), "--figures", str(tmp_path / "drawn")]) == 0
    text = capsys.readouterr().out
    assert "off, boot 1, 5 guests: stopped: PSI above 20 %." in text
    rows = [line.split() for line in text.splitlines() if line.startswith("KSM off  ")]
    assert [row[2:4] for row in rows] == [["steady", "4"], ["admission", "-"]]
    assert "- ksm, boot 1, steady limit: the run ended before a limit." in text
    said = " ".join(text.split())
    assert "800 MiB regained by the guests, 200 MiB/s on average, 300 MiB/s at the peak, at which" in said
    assert max(map(len, text.splitlines())) <= 110
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == [
        "capacity-cap1-host1-idle.png",
        "divergence-cap1-host1-idle-1.png",
        "performance-cap1-host1-idle.png",
        "trade-off-cap1-host1-idle.png",
    ]


def test_a_run_without_probes_has_its_limits_and_no_performance(
    results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    steps = both_arms()
    for one in steps:
        one["observed"]["probes"] = []
    store_capacity(results, steps)
    assert main(["report", "--results", str(results), "--figures", str(tmp_path / "drawn")]) == 0
    text = capsys.readouterr().out
    assert "Limits, guests" in text and "Steps: settled, and at most" in text
    assert "performance lost" not in text
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["capacity-cap1-host1-idle.png"]
    run = load_capacity(results)[0][0]
    table = steps_table(run)
    assert table["ksmd_percent"].isna().all() and table["used_bytes"].notna().all()
