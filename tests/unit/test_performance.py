"""What guests lose under a policy: probes in both arms of made-up cells, beyond what cells under off show."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from synthetic import store, synthetic_plan
from synthetic_capacity import probe

from analysis.__main__ import main
from analysis.measure.performance import LOSSES, WORST_P50, beyond, lost_in
from analysis.measure.policies import Place, side_by_side
from analysis.measure.table import tidy
from analysis.model.performance import cell_costs
from analysis.plan.design import Cell
from analysis.records.loading import Run, load_run
from analysis.report.cost_figures import cell_costs_figure

GUESTS = 2
WINDOW = {
    "seconds": 20.0,
    "ksmd_cpu_seconds": 1.0,
    "steal_seconds": 0.0,
    "vmstat": dict.fromkeys(("pgfault", "pgmajfault", "cow_ksm", "pswpin", "pswpout"), 0),
    "psi_some_microseconds": None,
}
# How much slower guests are in the second arm, by policy and boot
SLOWER = {"ksm": (1.3, 1.5, 1.4), "smart_scan": (1.2, 1.4, 1.0), "off": (1.1, 1.2, 1.3)}


def run_of(results: Path, policies: str = "ksm,off,smart_scan", controls: int = 3) -> Run:
    """A run with probes; cells under off beyond so many boots were not measured."""
    plan = synthetic_plan(policies=policies, guests=GUESTS, boots=3, probes=2, ksm_knobs={})

    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        for kind, slow in (("off", 1.0), ("on", SLOWER[cell.policy][cell.boot - 1])):
            probes = [probe(f"guest0{number}", slow) for number in (1, 2)]
            ksmd = {"ksmd_cpu_seconds": 0.0 if kind == "off" else 1.0}
            records[kind]["observed"] |= {"probes": probes, "window": {**WINDOW, **ksmd}}
        if cell.policy == "off" and cell.boot > controls:
            records.clear()

    return load_run(store(results, plan, change))


def test_medians_are_of_the_guests_that_answered_in_both_arms(results: Path) -> None:
    """The first guest loses 30 %, the second one 90, and is silent the second time."""
    plan = synthetic_plan(policies="ksm", guests=GUESTS, probes=2, ksm_knobs={})

    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        for kind, slow in (("off", (1.0, 5.0)), ("on", (1.3, 9.5))):
            probes = [probe(f"guest0{number}", one) for number, one in enumerate(slow, 1)]
            if kind == "on":
                probes[1] = {"guest": "guest02", "answer": None}
            records[kind]["observed"] |= {"probes": probes, "window": WINDOW}

    (cell,) = load_run(store(results, plan, change)).cells
    assert lost_in(cell)["p99_added_percent"] == pytest.approx(30)


def test_a_guest_that_alone_is_slower_is_seen_beside_the_median_of_all(results: Path) -> None:
    """Of four guests, the first probed twice, the third takes four times as long; chance alone 10 % more."""
    plan = synthetic_plan(policies="ksm,off", guests=4, probes=5, ksm_knobs={})

    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        for kind, slow in (("off", (1, 1, 1, 1, 1)), ("on", (1.1, 1.1, 4.4, 1.1, 1.1))):
            times = (1.1,) * 5 if (cell.policy, kind) == ("off", "on") else slow
            probes = [probe(f"guest0{1 + at % 4}", one) for at, one in enumerate(times)]
            records[kind]["observed"] |= {"probes": probes, "window": WINDOW}

    place = place_of(load_run(store(results, plan, change)))
    found = {name: place.lines[0].estimates[name] for name in ("p50_added_percent", WORST_P50)}
    assert {name: seen and seen.mean for name, seen in found.items()} == {
        "p50_added_percent": pytest.approx(0),
        WORST_P50: pytest.approx(300),
    }


def place_of(run: Run) -> Place:
    (place,) = side_by_side(tidy([run]), [run])
    return place


def test_a_cell_loses_what_its_second_arm_is_slower_by(results: Path) -> None:
    cell = next(one for one in run_of(results).cells if (one.cell.policy, one.cell.boot) == ("ksm", 1))
    lost = lost_in(cell)
    # Latencies grow by the factor, throughputs are divided by it
    assert lost["p99_added_percent"] == lost["p50_added_percent"] == pytest.approx(30)
    assert lost["touch_lost_percent"] == lost["cpu_lost_percent"] == pytest.approx(100 * (1 - 1 / 1.3))
    # 1.4 s for 100 MiB less 0.4 for the request: 10 ms a MiB; then 1.3 x 1.4 - 0.4 = 1.42
    assert lost["read_cpu_added_percent"] == pytest.approx(42)
    # As much CPU time for 1 / 1.3 of the operations
    assert lost["operation_cpu_added_percent"] == pytest.approx(30)


def test_what_cells_under_off_lost_in_the_same_boot_is_no_cost_of_a_policy(results: Path) -> None:
    place = place_of(run_of(results))
    control = place.control["p99_added_percent"]
    assert control is not None
    assert (control.mean, control.n_boots) == (pytest.approx(20), 3)
    ksm, smart = place.lines
    seen = ksm.estimates["p99_added_percent"]
    assert seen is not None
    # By boot 1.3 / 1.1, 1.5 / 1.2 and 1.4 / 1.3; t(2) = 4.303 x 8.718 / sqrt(3)
    assert (seen.mean, seen.half_width) == (pytest.approx(16.958, abs=0.001), pytest.approx(21.66, abs=0.01))
    less = smart.less(ksm, "p99_added_percent")
    assert less is not None
    assert less.difference.mean == pytest.approx(100 * (-0.1 / 1.1 - 0.1 / 1.2 - 0.4 / 1.3) / 3)
    assert place.front("p99_added_percent") == {"smart_scan"}


def test_no_more_than_all_of_a_throughput_is_lost() -> None:
    """85 % slower where chance alone made cells under off 40 % faster: 0.15 / 1.4 of the speed is left."""
    loss, chance = (dict.fromkeys(LOSSES, value) for value in (85.0, -40.0))
    lost = beyond(loss, chance)
    assert lost["touch_lost_percent"] == pytest.approx(100 * (1 - 0.15 / 1.4))
    assert lost["p99_added_percent"] == pytest.approx(100 * (1.85 / 0.6 - 1))
    assert beyond(loss, {}) == pytest.approx(loss)
    assert math.isnan(beyond(loss, chance | {"p99_added_percent": -100.0})["p99_added_percent"])


@pytest.mark.parametrize(("policies", "controls"), [("ksm", 0), ("ksm,off", 2)])
def test_where_a_boot_has_no_cell_under_off_nothing_is_taken_off_and_it_is_said(
    results: Path, policies: str, controls: int, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_of(run_of(results, policies, controls))
    assert place.control == {}
    seen = place.lines[0].estimates["p99_added_percent"]
    assert seen is not None
    assert seen.mean == pytest.approx(40)
    assert main(["policies", "--results", str(results)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "not each boot has a cell under off (policies=off,...)" in words


def test_cells_under_off_are_no_saving_and_no_policy(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(results)
    assert set(tidy([run])["policy"]) == {"ksm", "smart_scan"}
    for command in ("summarize", "explain"):
        assert main([command, "--results", str(results), "--json"]) == 0
        assert "idle-off-" not in capsys.readouterr().out
    assert main(["recommend", "--results", str(results), "--goal", "memory", "--json"]) == 0
    named = json.loads(capsys.readouterr().out)["candidates"]
    assert {one["policy"] for one in named} == {"ksm", "smart_scan"}


@pytest.mark.parametrize("command", ["policies", "report"])
def test_what_differs_is_named_with_its_interval_and_the_rest_said_not_to(
    results: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(results)
    assert main([command, "--results", str(results)]) == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert "beyond what cells under off show" in words
    assert "off: order, chance 3 " in words
    # ksmd ran 1 s of the 20 that the probes took under the policy
    assert any(line.startswith("ksm ") and " 5.0 ± " in line for line in text.splitlines())
    assert "ksm, against KSM off: no difference can be told of touch lost" in words


def test_the_figure_has_memory_saved_against_what_is_lost_with_error_bars(
    results: Path, tmp_path: Path
) -> None:
    places = [place_of(run_of(results))]
    ((host, loads),) = cell_costs(places).items()
    costs = loads["idle"]
    assert (host, list(loads), [one.policy for one in costs]) == ("host1", ["idle"], ["ksm", "smart_scan"])
    # 100 MB/VM gross less 8 of KSM's own, two guests
    saved = costs[0].saved_bytes
    assert saved is not None
    assert saved.mean == pytest.approx(2 * 92 * (1 << 20))
    *_touch_cpu_p50, p99, _read, _operation, ksmd, _legend = cell_costs_figure(host, loads).axes
    assert [text.get_text() for text in p99.texts] == ["2", "2"]
    assert [bars.get_label() for bars in p99.containers] == ["idle, ksm", "idle, smart_scan"]
    seen = costs[0].lost["p99_added_percent"]
    assert seen is not None
    assert list(p99.containers[0].lines[0].get_ydata()) == pytest.approx([seen.mean])
    # ksmd ran 1 s of the 20 that the probes took
    assert costs[0].ksmd_percent is not None
    assert costs[0].ksmd_percent.mean == pytest.approx(5)
    assert [list(bars.lines[0].get_ydata()) for bars in ksmd.containers] == [pytest.approx([5])] * 2
    assert main(["report", "--results", str(results), "--figures", str(tmp_path / "figures")]) == 0
    assert (tmp_path / "figures/trade-off-cells-host1.png").exists()
