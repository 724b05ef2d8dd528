"""What policies keep in the series after the record under the policy, on series worked out by hand."""

import json
import re
from math import isnan
from pathlib import Path

import pytest
from synthetic import MIB, PAGE, store, synthetic_plan, synthetic_samples

from analysis.__main__ import main
from analysis.measure.policies import side_by_side
from analysis.measure.steady import (
    CPU_SETTLED,
    OF_BEST,
    STEADY_COW,
    STEADY_GROSS,
    STEADY_LEAST,
    followed_seconds,
    steady,
)
from analysis.measure.table import tidy
from analysis.records.loading import Run, load_run

GUESTS, BOOTS = 2, 3
SAVED_OF_BEST, CPU_OF_BEST = OF_BEST[STEADY_GROSS], OF_BEST[CPU_SETTLED]
# 1 MB/VM of the guests, in pages
UNIT = GUESTS * MIB // PAGE


def followed(results: Path, series: dict[str, list[list[int]]], cpu_percent: dict[str, int]) -> Run:
    """Cells of two policies, some followed: by boot MB/VM saved each ten seconds, ksmd's share."""
    plan = synthetic_plan(guests=GUESTS, boots=BOOTS, workloads="idle", policies="ksm,advisor")
    directory = store(results, plan)
    for cell in load_run(directory).cells:
        policy = cell.cell.policy
        if policy not in series:
            continue
        saved = [UNIT * value for value in series[policy][cell.cell.boot - 1]]
        record = json.loads((cell.directory / "merge.json").read_text()) | {"kind": "after"}
        samples = synthetic_samples(saved, list(range(len(saved))))
        samples["seconds"] = [10.0 * place for place in range(len(saved))]
        share = cpu_percent[policy] / 100
        samples["cow_ksm"] = [3 + 2 * int(second) for second in samples["seconds"]]
        samples["ksmd_cpu_seconds"] = [7 + share * second for second in samples["seconds"]]
        record["observed"] |= {"samples": samples, "duration_seconds": samples["seconds"][-1]}
        (cell.directory / "after.json").write_text(json.dumps(record))
    return load_run(directory)


def test_the_mean_is_over_time_and_the_least_of_any_sample(results: Path) -> None:
    run = followed(results, {"ksm": [[100, 80, 100]] * BOOTS}, {"ksm": 40})
    first = next(cell for cell in run.cells if cell.cell.policy == "ksm")
    assert steady(first) == {
        STEADY_GROSS: pytest.approx(90),
        STEADY_LEAST: pytest.approx(80),
        CPU_SETTLED: pytest.approx(40),
        STEADY_COW: pytest.approx(2),
    }
    assert all(map(isnan, steady(next(c for c in run.cells if c.cell.policy == "advisor")).values()))


def test_each_policy_is_held_against_the_best_of_its_boot(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The advisor has 97, 95 and 80 % of means of 100, 200 and 50 MB/VM, in these boots alone."""
    series = {
        "ksm": [[110, 90, 110], [200, 200, 200], [50, 50, 50]],
        "advisor": [[97, 97, 97], [200, 180, 200], [30, 50, 30]],
    }
    run = followed(results, series, {"ksm": 40, "advisor": 10})
    (place,) = side_by_side(tidy([run]), [run])
    assert place.steadiest == "ksm"
    line = place.line("advisor")
    parts = sorted(line.values[SAVED_OF_BEST].values())
    assert parts == pytest.approx([80, 95, 97])
    assert sorted(line.values[STEADY_LEAST].values()) == pytest.approx([30, 97, 180])
    assert sorted(line.values[STEADY_GROSS].values()) == pytest.approx([40, 97, 190])
    assert main(["policies", "--results", str(results)]) == 0
    _before, after = capsys.readouterr().out.split(
        "The first 20 s after the record under the policy; the best, by its mean: ksm\n"
    )
    row = next(line for line in after.splitlines() if line.startswith("advisor"))
    assert re.findall(r"\d+\.\d(?= ±)", row) == ["109.0", "102.3", "10.0", "2.0", "90.7", "25.0"]


def test_what_was_followed_for_longer_counts_as_far_as_all_were(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two cells of the advisor go on: they lose all but 10 MB/VM, ksmd works harder, all is written to."""
    longer = {"ksm": [[100, 100]] * BOOTS, "advisor": [[90, 90, 10], [90, 90, 10], [90, 90]]}
    run = followed(results, longer, {"ksm": 40, "advisor": 10})
    for cell in run.cells:
        path = cell.directory / "after.json"
        record = json.loads(path.read_text())
        samples = record["observed"]["samples"]
        # A sample comes some milliseconds late.
        samples["seconds"][1] += 0.004 * cell.cell.boot
        if len(samples["seconds"]) > 2:
            samples["ksmd_cpu_seconds"][2] += 9
            samples["cow_ksm"][2] += 1000
        path.write_text(json.dumps(record))
    run = load_run(run.directory)
    assert followed_seconds(run.cells) == [10.004, 10.008, 10.012, 10.012, 20, 20]
    (place,) = side_by_side(tidy([run]), [run])
    assert place.followed_seconds == (10.004, 20)
    line = place.line("advisor")
    for name, value in {
        STEADY_GROSS: 90,
        STEADY_LEAST: 90,
        SAVED_OF_BEST: 90,
        CPU_SETTLED: 10,
        STEADY_COW: 2,
        CPU_OF_BEST: 25,
    }.items():
        assert list(line.values[name].values()) == pytest.approx([value] * BOOTS, rel=2e-3), name
    assert main(["policies", "--results", str(results)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "cells were followed for 10 to 20 s; what is said of that time is of the first 10 s of each." in said
    )


def test_where_no_cell_was_followed_there_is_no_table(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    followed(results, {}, {})
    assert main(["policies", "--results", str(results)]) == 0
    assert "Followed" not in capsys.readouterr().out


def test_of_a_best_that_kept_nothing_no_part_is_told(results: Path) -> None:
    run = followed(results, {"ksm": [[0, 0]] * BOOTS}, {"ksm": 40})
    (place,) = side_by_side(tidy([run]), [run])
    assert all(map(isnan, place.line("ksm").values[SAVED_OF_BEST].values()))
