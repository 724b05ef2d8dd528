"""The commands compare and check: what they print, their exit codes, and a sentence for each mistake."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic import began, store, synthetic_failure, synthetic_plan, synthetic_start

from analysis.__main__ import main
from analysis.plan.design import Cell

Records = dict[str, dict[str, Any]]


@pytest.fixture
def call(results: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The output of a command in one line, after its exit code; of a mistake what is said of it."""

    def run(*words: str, code: int = 0) -> str:
        assert main([*words, "--results", str(results)]) == code
        seen = capsys.readouterr()
        assert (seen.err == "") == (code != 2)
        return seen.out if "--json" in words else " ".join((seen.out or seen.err).split())

    return run


def measured(results: Path, name: str, *saved: float, change: Any = None, **design: Any) -> Path:
    """A run with a boot for each saving, from the checkpoints that every such run has."""
    plan = synthetic_plan(run_id=name, **{"boots": len(saved), **design})
    return store(results, plan, change, lambda cell: saved[cell.boot - 1])


def upgraded(cell: Cell, records: Records) -> None:
    """Another kernel, whose guests were booted anew."""
    began(records, **synthetic_start(cell.boot + 10))
    for record in records.values():
        record["provenance"]["kernel_release"] = "6.19.0"


def test_what_was_measured_differently_stands_before_the_differences(results: Path, call: Any) -> None:
    measured(results, "old", 100, 120, 140)
    measured(results, "new", 60, 62, 64, change=upgraded)
    text = call("compare", "old", "new")
    conditions = "Measured differently, A / B - kernel_release: 6.18.0-synthetic / 6.19.0"
    assert 0 < text.index(conditions) < text.index("1 idle, ksm: Welch, 3 and 3 boots")
    # Standard deviations 20 and 2: 11.6 of the difference, t(0.975, 2.04) = 4.23.
    assert "gross, MB/VM less 120.0 ± 49.7 62.0 ± 5.0 -58.0 ± 49.0 -48.3" in text
    assert "ksmd CPU, s no difference shown 6.0 ± 0.0 6.0 ± 0.0 +0.0 ± 0.0 +0.0" in text
    # Freed and gross, their like, and nothing of KSM's own memory, time and CPU.
    assert "Shown are 6 of 9 differences" in text


def test_of_the_same_checkpoints_the_interval_is_paired(results: Path, call: Any) -> None:
    measured(results, "old", 100, 120, 140, 150)
    measured(results, "new", 99, 119.5, 138.5)
    text = call("compare", "old", "new")
    assert "Measured under the same conditions." in text
    assert "1 idle, ksm: paired, 3 boots" in text
    # 1, 0.5 and 1.5 less: standard deviation 0.5, t(0.975, 2) x 0.5 / sqrt(3) = 1.24.
    assert "gross, MB/VM no difference shown 120.0 ± 49.7 119.0 ± 49.1 -1.0 ± 1.2 -0.8" in text
    assert (
        "! 1 idle, ksm (host1: 15 guests of 512 MB, restored from a checkpoint): 1 boot of A left out, for B "
        "measured nothing from the same checkpoint." in text
    )


def test_of_two_boots_the_interval_is_shown_and_nothing_is_concluded(results: Path, call: Any) -> None:
    measured(results, "old", 100, 120)
    measured(results, "new", 50, 71)
    text = call("compare", "old", "new")
    # 50 and 49 less, t(0.975, 1) x 0.7071 / sqrt(2) = 6.4.
    assert "gross, MB/VM too few boots 110.0 ± 127.1 60.5 ± 133.4 -49.5 ± 6.4 -45.0" in text
    assert "Shown are" not in text


def test_campaigns_are_directories_and_only_one_sides_rows_are_named(
    results: Path, call: Any, tmp_path: Path
) -> None:
    measured(tmp_path / "a", "one", 100, 120, 140)
    measured(tmp_path / "a", "two", 400, 400, 400, focus="2")
    (measured(tmp_path / "a", "broken", 1) / "plan.json").write_text("{")
    measured(tmp_path / "b", "three", 101, 121, 142, focus="1,3")
    text = call("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "1 idle, ksm: paired, 3 boots" in text
    assert (
        "! 2 constant fill, ksm (host1: 15 guests of 512 MB, restored from a checkpoint): measured in A"
        in text
    )
    assert (
        "! 3 random fill, ksm (host1: 15 guests of 512 MB, restored from a checkpoint): measured in B" in text
    )
    assert "! A: " in text
    assert "plan.json cannot be read" in text


def test_a_comparison_as_json_has_each_boot_and_what_is_shown(results: Path, call: Any) -> None:
    measured(results, "old", 100, 120, 140)
    measured(results, "new", 60, 62, 64, change=upgraded)
    content = json.loads(call("compare", "old", "new", "--json"))
    assert content["schema_version"] == 1
    assert (content["a"], content["b"]["run_ids"]) == ({"given": "old", "run_ids": ["old"]}, ["new"])
    (line,) = content["lines"]
    assert (line["workload"], line["interval"], line["boots"]) == ("idle", "welch", [3, 3])
    gross = line["measures"]["gross_mib_per_vm"]
    assert gross["a_boots"] == pytest.approx([100, 120, 140])
    assert gross["difference"]["mean"] == pytest.approx(-58)
    assert gross["shown"] == "less"
    assert set(line["measures"]) == set(content["quantities"])


def test_nothing_in_common_is_said_with_what_each_has(results: Path, call: Any) -> None:
    measured(results, "old", 100)
    measured(results, "new", 100, guests=4)
    text = call("compare", "old", "new", code=1)
    assert "! Nothing can be compared: A and B have no measured workload" in text
    assert "4 guests of 512 MB, restored from a checkpoint): measured in B and not in A." in text
    assert "nothing can be compared." in call("check", "old", "--run", "new", code=4)


def test_a_run_on_both_sides_is_refused(results: Path, call: Any, tmp_path: Path) -> None:
    run = measured(results, "same", 100, 120, 140)
    refusal = f"error: {run} is on both sides of the comparison: give each run to one side."
    assert call("compare", "same", "same", code=2) == refusal
    assert call("compare", str(results), str(run), code=2) == refusal
    # The newest run is the baseline itself.
    assert call("check", "same", code=2) == refusal
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert f"{run} and {copy}, one a copy of the other, are on both sides" in call(
        "compare", str(run), str(copy), code=2
    )


@pytest.mark.parametrize("command", ["compare", "check"])
def test_an_unknown_run_and_a_directory_without_one_are_named(
    results: Path, call: Any, tmp_path: Path, command: str
) -> None:
    measured(results, "old", 100)
    other = ["old"] if command == "compare" else []
    assert f"run 'x' is not under {results}: there are old." in call(command, "x", *other, code=2)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no results" in call(command, str(tmp_path / "empty"), *other, code=2)


def test_a_check_is_green_where_no_saving_is_worse(results: Path, call: Any) -> None:
    measured(results, "old", 100, 120, 140)
    measured(results, "new", 100.1, 119.9, 140.1)
    text = call("check", "old", "--run", "new")
    assert text.startswith("No saving is worse than the baseline by more than 2 %: shown of all 2.")
    assert "gross: no worse by more than 2 %: 120.0 ± 49.7 MB/VM in the baseline, 120.0 ± 49.7 now" in text
    assert json.loads(call("check", "old", "--run", "new", "--json"))["verdict"] == "no worse"


def test_a_check_names_each_saving_that_is_worse(results: Path, call: Any) -> None:
    measured(results, "old", 100, 101, 102)
    measured(results, "new", 90, 91, 92, change=upgraded)
    text = call("check", "old", "--run", "new", code=3)
    assert text.startswith("Worse than the baseline by more than 2 %: 2 of 2 savings.")
    # t(0.975, 4) x sqrt(2/3) = 2.3.
    where = "! 1 idle, ksm (host1: 15 guests of 512 MB, restored from a checkpoint)"
    assert (
        f"{where}, gross: worse by more than 2 %: 101.0 ± 2.5 MB/VM in the baseline, 91.0 ± 2.5 now, "
        "-10.0 ± 2.3 (-9.9 %; Welch, 3 and 3 boots)." in text
    )
    assert "kernel_release: 6.18.0-synthetic / 6.19.0" in text
    # 15 % of 101 less is tolerated, 10 less is not more than that.
    assert call("check", "old", "--run", "new", "--tolerance-percent", "15").startswith("No saving is worse")


def test_what_cannot_be_told_is_neither_green_nor_worse(results: Path, call: Any) -> None:
    def failed(cell: Cell, records: Records) -> None:
        if cell.workload == "constant_fill":
            records["failed"] = synthetic_failure(records)

    measured(results, "old", 100, 101, 102)
    measured(results, "few", 50, 51)
    text = call("check", "old", "--run", "few", code=4)
    assert "gross: cannot be told: 100.5 ± 6.4 MB/VM in the baseline, 50.5 ± 6.4 now" in text
    assert "it takes 3 boots of each or more." in text

    measured(results, "scattered", 95, 101, 110, change=upgraded)
    text = call("check", "old", "--run", "scattered", code=4)
    assert "more boots narrow the interval, and --tolerance-percent" in text

    measured(results, "both", 100, 101, 102, focus="1,2")
    measured(results, "half", 100, 101, 102, focus="1,2", change=failed)
    text = call("check", "both", "--run", "half", code=4)
    assert "2 of 2 are shown not to be; rows of the baseline that were not measured again: 1." in text
    assert "measured in the baseline and not in the new runs." in text
    assert "the new runs: 2 constant fill, ksm, boot 1 repetition 1: failed" in text


def test_cells_of_one_side_that_differ_among_themselves_are_not_compared(results: Path, call: Any) -> None:
    def mixed(cell: Cell, records: Records) -> None:
        for record in records.values():
            record["provenance"]["kernel_release"] = f"6.{cell.boot}"

    measured(results, "old", 100, 101, 102)
    measured(results, "mixed", 100, 101, 102, change=mixed)
    text = call("compare", "old", "mixed", code=1)
    assert "! B: 1 idle, ksm: its 3 cells are not pooled" in text
    assert "kernel_release: 6.1 / 6.2 / 6.3" in text
    assert "gross, MB/VM" not in text
    assert "Measured under the same conditions" not in text
    assert "gross: cannot be told: kernel_release: 6.1 / 6.2 / 6.3." in call(
        "check", "old", "--run", "mixed", code=4
    )


@pytest.mark.parametrize("percent", ["-1", "100", "two", "nan"])
def test_a_tolerance_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], percent: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["check", "old", f"--tolerance-percent={percent}"])
    assert left.value.code == 2
    assert f"'{percent}' is not allowed: needed is a number from 0 to below 100" in capsys.readouterr().err
