"""What policies keep once settled, on series worked out by hand."""

import json
from math import isnan
from pathlib import Path

import pytest
from synthetic import MIB, PAGE, store, synthetic_plan, synthetic_samples

from analysis.__main__ import main
from analysis.measure.policies import side_by_side
from analysis.measure.steady import (
    CPU_OF_BEST,
    CPU_SETTLED,
    OF_BEST,
    SAVED_OF_BEST,
    STEADY_GROSS,
    STEADY_LEAST,
    of_best,
    steady,
)
from analysis.measure.table import tidy
from analysis.records.loading import Run, load_run

GUESTS, BOOTS = 2, 3
# 1 MB/VM of the guests, in pages
UNIT = GUESTS * MIB // PAGE


def followed(results: Path, series: dict[str, list[int]], cpu_percent: dict[str, int]) -> Run:
    """Cells of two policies, of which some are followed: MB/VM saved each ten seconds, ksmd's share."""
    plan = synthetic_plan(guests=GUESTS, boots=BOOTS, workloads="idle", policies="ksm,advisor")
    directory = store(results, plan)
    for cell in load_run(directory).cells:
        policy = cell.cell.policy
        if policy not in series:
            continue
        saved = [UNIT * value for value in series[policy]]
        record = json.loads((cell.directory / "merge.json").read_text()) | {"kind": "after"}
        samples = synthetic_samples(saved, list(range(len(saved))))
        samples["seconds"] = [10.0 * place for place in range(len(saved))]
        share = cpu_percent[policy] / 100
        samples["ksmd_cpu_seconds"] = [7 + share * second for second in samples["seconds"]]
        record["observed"] |= {"samples": samples, "duration_seconds": samples["seconds"][-1]}
        (cell.directory / "after.json").write_text(json.dumps(record))
    return load_run(directory)


def test_the_mean_is_over_time_and_the_least_of_any_sample(results: Path) -> None:
    run = followed(results, {"ksm": [100, 80, 100]}, {"ksm": 40})
    first = next(cell for cell in run.cells if cell.cell.policy == "ksm")
    assert steady(first) == {
        STEADY_GROSS: pytest.approx(90),
        STEADY_LEAST: pytest.approx(80),
        CPU_SETTLED: pytest.approx(40),
    }
    assert all(map(isnan, steady(next(c for c in run.cells if c.cell.policy == "advisor")).values()))


def test_each_policy_is_held_against_the_best_of_its_boot(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The advisor has 97 of 100 MB/VM for a quarter of the CPU."""
    run = followed(results, {"ksm": [100] * 3, "advisor": [97] * 3}, {"ksm": 40, "advisor": 10})
    (place,) = side_by_side(tidy([run]), [run])
    assert place.steadiest == "ksm"
    means = {name: place.line("advisor").estimates[name] for name in OF_BEST}
    assert all(seen is not None and seen.n_boots == BOOTS for seen in means.values())
    assert {name: seen.mean for name, seen in means.items() if seen} == {
        SAVED_OF_BEST: pytest.approx(97),
        CPU_OF_BEST: pytest.approx(25),
    }
    assert main(["policies", "--results", str(results)]) == 0
    shown = capsys.readouterr().out
    _before, after = shown.split("Followed after the record under the policy; the best: ksm\n")
    row = next(line for line in after.splitlines() if line.startswith("advisor"))
    assert " ".join(row.split()) == "advisor 3x1 97.0 ± 0.0 97.0 ± 0.0 10.0 ± 0.0 97.0 ± 0.0 25.0 ± 0.0"


def test_where_no_cell_was_followed_there_is_no_table(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    followed(results, {}, {})
    assert main(["policies", "--results", str(results)]) == 0
    assert "Followed" not in capsys.readouterr().out


@pytest.mark.parametrize("best", [None, {STEADY_GROSS: 0.0, CPU_SETTLED: float("nan")}])
def test_without_a_best_or_of_one_that_saved_nothing_no_part_is_told(best: dict[str, float] | None) -> None:
    assert all(map(isnan, of_best({STEADY_GROSS: 1.0, CPU_SETTLED: 1.0}, best).values()))
