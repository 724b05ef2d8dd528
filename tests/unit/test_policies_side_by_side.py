"""Policies side by side and the recommended one, on made-up records whose numbers are worked out by hand."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from synthetic import MIB, PAGE, began, store, synthetic_plan, synthetic_samples

from analysis.__main__ import main
from analysis.measure.burndown import lost_byte_seconds
from analysis.measure.policies import COURSE, LOST, TO_BEST, Place, side_by_side
from analysis.measure.table import tidy
from analysis.plan.design import REFERENCE, RESULTS, Cell
from analysis.records.loading import load_run

GUESTS = 2


@dataclass(frozen=True)
class Made:
    """How a policy does: MB/VM saved in each boot, when all of it is there, ksmd's CPU while it merges."""

    saved: tuple[float, ...]
    full_after_seconds: int = 6
    settled: bool = True
    cpu_seconds_a_second: float = 0.5
    settled_percent: float | None = None


FAST = Made((100, 101, 102), settled_percent=40)
SLOW = Made((99.0, 100.5, 101.0), full_after_seconds=12, cpu_seconds_a_second=0.1, settled_percent=2)
POOR = Made((60, 61, 62), settled=False, cpu_seconds_a_second=0.01, settled_percent=1)


def measured(results: Path, made: Mapping[str, Made], loads: Mapping[str, float] | None = None) -> Path:
    """A run of these policies; ``loads``: workload -> what it saves more, MB/VM."""
    loads = loads or {"idle": 0.0}
    boots = max(len(one.saved) for one in made.values())
    plan = synthetic_plan(
        workloads=",".join(loads),
        policies=",".join(made),
        guests=GUESTS,
        boots=boots,
        ksm_knobs={},
        thp_enabled="",
    )

    def saved(cell: Cell) -> float:
        return made[cell.policy].saved[cell.boot - 1] + loads[cell.workload]

    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        one = made[cell.policy]
        pages = int(saved(cell) * MIB) * GUESTS // PAGE
        # Of the slow one six seconds more, so that the rule holds at the end
        seconds = range(19 if one.full_after_seconds > 9 else 13)
        samples = synthetic_samples(
            [pages * min(second, one.full_after_seconds) // one.full_after_seconds for second in seconds],
            list(seconds),
        )
        samples["ksmd_cpu_seconds"] = [second * one.cpu_seconds_a_second for second in samples["seconds"]]
        records["merge"]["observed"] |= {"samples": samples, "converged": one.settled}
        if service := plan.policies[cell.policy].service:
            records["on"]["observed"]["tuners"] = [service.removesuffix(".service")]
        huge_pages = plan.policies[cell.policy].thp_enabled
        for record in records.values():
            record["provenance"]["thp"]["enabled"] = "madvise" if huge_pages == "keep" else huge_pages

    directory = store(results, plan, change, saved)
    for cell in load_run(directory).cells:
        percent = made[cell.cell.policy].settled_percent
        if percent is None:
            continue
        record = json.loads((cell.directory / "merge.json").read_text())
        samples = synthetic_samples([1] * 11, list(range(11)))
        samples["ksmd_cpu_seconds"] = [second * percent / 100 for second in range(11)]
        record |= {"kind": "after"}
        record["observed"] |= {"samples": samples, "duration_seconds": 10.0}
        (cell.directory / "after.json").write_text(json.dumps(record))
    return directory


def places_of(directory: Path) -> list[Place]:
    run = load_run(directory)
    return side_by_side(tidy([run]), [run])


def test_the_area_is_that_between_the_best_saving_and_this_one_which_stays_after_its_series() -> None:
    # By hand: a triangle of 6 s x 60 bytes, cut at 10 s where nothing is lost any more
    assert lost_byte_seconds([0, 6, 8], [0, 60, 60], 60, 10) == 6 * 60 / 2
    # 10 bytes less than the best stay lost for the 4 s that are left
    assert lost_byte_seconds([0, 6], [0, 60], 70, 10) == 6 * (70 + 10) / 2 + 4 * 10
    # What is before the first sample is as that
    assert lost_byte_seconds([2], [50], 60, 10) == 10 * 10


def test_each_policy_is_told_by_what_it_saved_how_soon_and_at_what_cost(results: Path) -> None:
    (place,) = places_of(
        measured(results, {"ksm": FAST, "smart_scan+pages_to_scan=9": SLOW, "advisor": POOR})
    )
    assert (place.workload, place.guests, place.horizon_seconds) == ("idle", GUESTS, 18)
    assert (place.most, place.least) == ("ksm", "ksm")
    fast, poor, slow = place.lines
    assert (fast.policy, slow.policy, poor.policy) == ("ksm", "smart_scan+pages_to_scan=9", "advisor")
    mean = {
        line.policy: {n: seen and seen.mean for n, seen in line.estimates.items()} for line in place.lines
    }
    assert set(mean["ksm"]) == set(COURSE)
    # A guest's PSS is 482 MB with KSM off; KSM's own memory is 8 MB a guest
    assert mean["ksm"]["gross_mib_per_vm"] == pytest.approx(101)
    assert mean["ksm"]["freed_mib_per_vm"] == pytest.approx(101 - 8)
    assert mean["ksm"]["guests_use_mib_per_vm"] == pytest.approx(482 - 101 + 8)
    # 6 s to the whole, sampled each second: 90 % at 6, of the slow one at 11 of 12
    assert (mean["ksm"]["seconds_to_90_percent"], mean["ksm"]["best_90_percent_seconds"]) == (6, 6)
    assert mean[slow.policy]["seconds_to_90_percent"] == 11
    assert mean["ksm"]["lost_mib_per_vm_seconds"] == pytest.approx(101 * 6 / 2, rel=1e-3)
    # The slow one loses its triangle of 12 s, and (1 + 0.5 + 1) / 3 for the 18 - 12 / 2 s that are not in it
    assert mean[slow.policy]["lost_mib_per_vm_seconds"] == pytest.approx(101 * 6 + 2.5 / 3 * 12, rel=1e-3)
    assert mean["ksm"]["ksmd_cpu_seconds"] == pytest.approx(6)
    assert mean[slow.policy]["settled_ksmd_percent"] == pytest.approx(2)


def test_a_boot_that_the_best_policy_lacks_takes_nothing_from_what_the_others_tell(results: Path) -> None:
    directory = measured(results, {"ksm": FAST, "smart_scan": SLOW})
    (place,) = places_of(directory)
    whole = place.line("smart_scan")
    shutil.rmtree(next(one.directory for one in load_run(directory).cells if one.cell.policy == "ksm"))
    (place,) = places_of(directory)
    assert place.most == "ksm"
    slow = place.line("smart_scan")
    assert sum(slow.boots) == sum(whole.boots)
    for name in (TO_BEST, LOST):
        seen, others = slow.estimates[name], slow.values[name]
        assert seen is not None
        assert len(others) == len(whole.values[name]) - 1
        assert seen.mean == pytest.approx(fmean(whole.values[name][boot] for boot in others))
        assert slow.less(place.line("ksm"), name) is not None


@pytest.mark.parametrize("cell", sorted((RESULTS / REFERENCE / "cells-followed").glob("*/*/*/after.json")))
def test_what_recorded_guests_use_and_freed_is_what_they_used_before_and_ksmds_share_is_that_of_its_clock(
    cell: Path,
) -> None:
    """A recorded run of one policy; the numbers of its files are read here for themselves."""
    read = {
        name: json.loads(cell.with_name(f"{name}.json").read_text()) for name in ("off", "merge", "after")
    }
    guests = read["off"]["observed"]["guests"].values()
    pss = sum(guest["smaps_rollup"]["Pss_bytes"] for guest in guests) / MIB / len(guests)
    samples = read["after"]["observed"]["samples"]
    spent, took = (samples[name][-1] - samples[name][0] for name in ("ksmd_cpu_seconds", "seconds"))
    merged = read["merge"]["observed"]["samples"]
    place = next(one for one in places_of(cell.parents[2]) if one.workload == read["off"]["cell"]["workload"])
    (line,) = place.lines
    mean = {name: seen.mean for name, seen in line.estimates.items() if seen is not None}
    assert mean["guests_use_mib_per_vm"] + mean["freed_mib_per_vm"] == pytest.approx(pss)
    assert mean["settled_ksmd_percent"] == pytest.approx(100 * spent / took)
    assert place.horizon_seconds == merged["seconds"][-1]
    # Its own saving is the best one, and is lost until it is there.
    assert mean["best_90_percent_seconds"] == mean["seconds_to_90_percent"]
    assert 0 < mean["lost_mib_per_vm_seconds"] < mean["gross_mib_per_vm"] * place.horizon_seconds


def test_what_had_not_settled_counts_as_it_was_and_a_saving_never_reached_has_no_time(results: Path) -> None:
    (place,) = places_of(measured(results, {"ksm": FAST, "advisor": POOR}))
    poor = place.line("advisor")
    assert (poor.unsettled, poor.unreached, poor.cells) == (3, 3, 3)
    assert poor.estimates["best_90_percent_seconds"] is None
    assert [line.unsettled for line in place.lines] == [0, 3]
    found = poor.estimates["guests_use_mib_per_vm"]
    assert found is not None
    assert found.mean == pytest.approx(482 - 61 + 8)


def test_differences_are_paired_by_boot_so_that_what_boots_have_in_common_does_not_hide_them(
    results: Path,
) -> None:
    made = {"ksm": Made((80, 100, 120)), "advisor": Made((79, 99.1, 118.9))}
    (place,) = places_of(measured(results, made))
    least = place.line("ksm")
    seen = place.line("advisor").less(least, "guests_use_mib_per_vm")
    assert seen is not None
    assert (seen.n_boots, seen.apart) == (3, True)
    assert seen.difference.mean == pytest.approx((1 + 0.9 + 1.1) / 3)
    # The boots themselves are far apart: neither mean is known to 20 MB
    own = least.estimates["guests_use_mib_per_vm"]
    assert own is not None
    assert own.half_width is not None
    assert own.half_width > 20


def test_the_front_has_those_that_no_other_beats_in_memory_and_cpu(results: Path) -> None:
    worse = Made((99, 100, 101), cpu_seconds_a_second=0.6)
    (place,) = places_of(
        measured(results, {"ksm": FAST, "smart_scan": SLOW, "advisor": POOR, "thp_never": worse})
    )
    assert place.front("ksmd_cpu_seconds") == {"ksm", "smart_scan", "advisor"}


def test_policies_measured_under_other_conditions_are_left_out_with_the_reason(results: Path) -> None:
    directory = measured(results, {"ksm": FAST, "smart_scan": SLOW})
    for path in directory.glob("*/idle-smart_scan-*/*.json"):
        record = json.loads(path.read_text())
        record["provenance"]["kernel_release"] = "6.1.0-synthetic"
        path.write_text(json.dumps(record))
    (place,) = places_of(directory)
    assert [line.policy for line in place.lines] == ["ksm"]
    assert place.left_out == (
        "smart_scan is left out, for its cells were measured under different conditions: kernel_release: "
        "6.1.0-synthetic / 6.18.0-synthetic.",
    )


def test_where_no_policy_can_be_pooled_the_reasons_are_left(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = measured(results, {"ksm": FAST})
    for path in directory.glob("*/*-boot2-*/*.json"):
        record = json.loads(path.read_text())
        record["provenance"]["kernel_release"] = "6.1.0-synthetic"
        path.write_text(json.dumps(record))
    assert main(["policies", "--results", str(results)]) == 1
    assert "ksm is left out, for its cells were measured under different" in capsys.readouterr().out


def test_guests_measured_as_they_booted_do_not_stand_beside_restored_ones(results: Path) -> None:
    def booted(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        began(records, **{"from": "boot", "checkpoint": None})

    assert places_of(store(results, synthetic_plan(guests=GUESTS), booted)) == []


def test_the_command_prints_tables_json_and_a_figure(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(results, {"ksm": FAST, "smart_scan": SLOW, "advisor": POOR})
    drawn = tmp_path / "pareto.svg"
    assert main(["policies", "--results", str(results), "--figure", str(drawn)]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("advisor "))
    assert "> 18" in row
    assert "had not settled when their time was over" in text and "advisor (3 of 3)" in text
    assert re.search(r"smart_scan - ksm +3 +\+0\.8 ± 0\.7 +\+5\.0 ± 0\.0 +-4\.2", text)
    picture = drawn.read_text()
    assert all(words in picture for words in ("smart_scan", "guests use, MB/VM", "ksmd, settled, % of a CPU"))
    assert main(["policies", "--results", str(results), "--json"]) == 0
    (place,) = json.loads(capsys.readouterr().out)["places"]
    assert place["least"] == "ksm"
    by_name = {one["policy"]: one for one in place["policies"]}
    assert by_name["smart_scan"]["against"]["guests_use_mib_per_vm"]["n_boots"] == 3
    assert by_name["advisor"]["estimates"]["best_90_percent_seconds"] is None


def test_one_policy_alone_is_shown_and_no_figure_drawn(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(results, {"ksm": FAST})
    assert main(["policies", "--results", str(results)]) == 0
    assert "Against" not in capsys.readouterr().out
    assert main(["policies", "--results", str(results), "--figure", str(tmp_path / "a.png")]) == 2
    assert "no place has two policies" in capsys.readouterr().err
