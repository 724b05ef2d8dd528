"""Surveys in cells beside what KSM then saved: errors worked out by hand, and what is no proof."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import store, synthetic_plan
from synthetic_survey import survey_record

from analysis.__main__ import main
from analysis.measure.foretold import foretold
from analysis.plan.design import cell_directory
from analysis.records.loading import load_run

# Two guests have 2560 contents, 10 MiB, in common: 5 MB/VM can go. Each has 1 MiB of zeros in huge pages.
COMMON = list(range(1, 2561))
ZEROS = 256


def surveyed(
    results: Path,
    saved_mib_per_vm: dict[int, float],
    *,
    thp: dict[str, str] | None = None,
    sample: dict[str, Any] | None = None,
    of_b: Sequence[int] = COMMON,
    **changes: Any,
) -> Path:
    """A run whose cells of two guests were surveyed, and saved so much by boot."""
    plan = synthetic_plan(guests=2, boots=len(saved_mib_per_vm), **changes)
    directory = store(results, plan, saved_mib_per_vm=lambda cell: saved_mib_per_vm[cell.boot])
    for cell in plan.cells:
        machines = {name: [*held, *[0] * ZEROS] for name, held in {"a": COMMON, "b": of_b}.items()}
        record = {**survey_record(machines, **(sample or {})), "run_id": plan.run_id}
        record["provenance"]["thp"] = thp or {"enabled": "madvise"}
        for counted in record["observed"]["census"]["machines"]:
            counted["zero_huge_pages"] = ZEROS
        (cell_directory(directory, cell) / "survey.json").write_text(json.dumps(record))
    return directory


def test_what_a_survey_foretold_stands_beside_what_was_saved_with_the_interval_of_the_boots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Foretold are 2560 of 5120 pages, and 511 of 512 zero pages less the one more of 256: 5.996 MB/VM.
    run = surveyed(tmp_path, {1: 5.0, 2: 6.0, 3: 7.0})
    ((line,), problems) = foretold([load_run(run)])
    assert problems == [] and len(line.cells) == 3
    told = (2560 + 510) * 4096 / 2 / (1 << 20)
    assert line.of("counted").mean == pytest.approx(told)
    errors = [100 * (told - saved) / saved for saved in (5, 6, 7)]
    seen = line.of("gross_error_percent")
    assert seen.mean == pytest.approx(sum(errors) / 3)
    # 4.303 standard errors of three means
    assert seen.half_width == pytest.approx(
        4.3027 * (sum((e - seen.mean) ** 2 for e in errors) / 6) ** 0.5, rel=1e-4
    )
    assert main(["survey", "--proof", "--results", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "idle ksm madvise whole 2 x 512 MB 3x1 6.0 ± 0.0 6.0 ± 2.5" in text
    assert main(["survey", "--proof", "--results", str(tmp_path), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["lines"]
    assert one["gross_mib_per_vm"]["error_percent"]["mean"] == pytest.approx(seen.mean)
    assert [cell["gross_mib_per_vm"]["saved"] for cell in one["cells"]] == [5, 6, 7]


def test_zero_pages_that_a_split_frees_are_expected_in_the_fall_of_pss_and_in_no_counter(
    tmp_path: Path,
) -> None:
    frees = {"enabled": "madvise", "shrink_underused": "1"}
    ((line,), _problems) = foretold([load_run(surveyed(tmp_path, {1: 5.0}, thp=frees))])
    # 512 zero pages are 1 MB/VM.
    assert line.of("ideal").mean - line.of("counted").mean == pytest.approx(1.0)


def test_the_interval_of_a_sample_is_held_against_what_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # b has half of them and as many of its own: 1280 and 510 pages, 3.5 MB/VM. Counted is every other one.
    of_b = [*COMMON[:1280], *range(3000, 4280)]
    run = surveyed(
        tmp_path,
        {1: 3.5, 2: 5.0, 3: 3.45},
        sample={"one_in": 2, "kept": sorted({*COMMON, *of_b})[::2]},
        of_b=of_b,
    )
    ((line,), _problems) = foretold([load_run(run)])
    assert line.cells[0].counted.pages == pytest.approx((1280 + 510) * 4096 / 2 / (1 << 20), rel=0.01)
    assert 0.05 < line.cells[0].counted.half_width_pages < 0.5
    assert main(["survey", "--proof", "--results", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "within the sample's own 95 % interval in 2 of 3 cells (Wilson's 95 % interval 21 to 94 %" in text
    surveyed(tmp_path / "whole", {1: 6.0})
    assert main(["survey", "--proof", "--results", str(tmp_path / "whole")]) == 0
    assert "Sampled" not in capsys.readouterr().out


def test_cells_that_prove_nothing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = surveyed(tmp_path, {1: 5.0, 2: 5.0, 3: 5.0, 4: 0.0})

    def change(boot: int, name: str, edit: Any) -> None:
        (path,) = run.glob(f"*/*boot{boot}*/{name}.json")
        record = json.loads(path.read_text())
        edit(record)
        path.write_text(json.dumps(record))

    change(
        1, "merge", lambda record: record["observed"].update(converged=False, converged_after_seconds=None)
    )
    change(2, "survey", lambda record: record.update(run_id="another"))
    change(3, "survey", lambda record: record["observed"].update(census=None))
    lines, problems = foretold([load_run(run)])
    assert lines == []
    for words in (
        "had not settled",
        "of another run or host",
        "counted the pages of 0 machines",
        "saved nothing",
    ):
        assert any(words in problem for problem in problems), (words, problems)
    assert main(["survey", "--proof", "--results", str(tmp_path)]) == 1
    assert "survey_sample=1" in capsys.readouterr().out


def test_a_cell_without_a_survey_is_no_part_of_it(tmp_path: Path) -> None:
    assert foretold([load_run(store(tmp_path, synthetic_plan(guests=2)))]) == ([], [])
