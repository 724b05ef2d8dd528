"""The report of runs and surveys: a page that needs nothing else, the same as Markdown and as text."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from reported import report_page, store_everything, store_survey
from synthetic import store, synthetic_failure, synthetic_plan

from analysis.__main__ import main
from analysis.plan.design import Cell

Records = dict[str, dict[str, Any]]


def sections(page: str) -> list[str]:
    return re.findall("<h2>(.*)</h2>", page)


def test_the_page_needs_nothing_else(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.workload == "random_fill":
            records["failed"] = synthetic_failure(records)
            records["failed"]["observed"]["message"] = "<script>alert(1)</script>"

    store(results, synthetic_plan(focus="all"), change)
    page = report_page(results)
    # Saved and used, two ledgers, one growth
    assert page.count("<svg") == 5
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert ">2 constant fill</td>" in page
    assert not re.search(r'(?:src|href)="(?!#)|url\((?!#)|@import', page)


def test_no_two_parts_of_the_page_have_one_name_and_none_is_missing(results: Path) -> None:
    store(results, synthetic_plan(focus="all", policies="ksm,advisor", boots=2))
    page = report_page(results)
    names = re.findall(r' id="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(names)


def test_everything_has_its_section_on_the_page_and_as_text(results: Path) -> None:
    store_everything(results)
    text, markdown = results / "report.txt", results / "report.md"
    page = report_page(results, "--text", str(text), "--markdown", str(markdown))
    wanted = [
        "Saved and used",
        "To know beside it",
        "Policies side by side",
        "Where it comes from",
        "Patterns: what the guests' memory holds",
        "How many more guests fit",
        "Forecasts proved, and performance",
        "Hosts as they are",
        "Where it was measured, and how to make this again",
    ]
    assert [one.replace("&#39;", "'") for one in sections(page)] == wanted
    assert set(wanted) <= set(text.read_text().splitlines())
    assert {f"## {one}" for one in wanted} <= set(markdown.read_text().splitlines())
    # Two hosts are never averaged as one.
    for host in ("host1", "host2"):
        assert f"{host}: 15 guests of 512 MB" in page
        assert f"{host}, surveyed" in page


def test_the_answer_comes_first_with_n_and_interval(results: Path) -> None:
    store(results, synthetic_plan(boots=3), None, lambda cell: 60 + cell.boot)
    page = report_page(results)
    # t(0.975, 2) / sqrt(3) = 2.48; 8 of 62 are KSM's own.
    answer = (
        "15 guests of 512 MB, restored from a checkpoint. KSM freed: 54.0 ± 2.5 MB/VM (95 % over 3 boots)"
    )
    assert 0 < page.index(answer) < page.index("<h2>")


def test_of_many_workloads_and_policies_the_answer_names_the_least_and_the_most(results: Path) -> None:
    store(results, synthetic_plan(focus="all", policies="ksm,advisor"), None, lambda cell: len(cell.workload))
    page = report_page(results)
    assert (
        "KSM freed, of 6 workloads and policies the least and the most: -4.0 MB/VM, no interval (1 boot)"
        in page
    )


def test_a_survey_alone_has_a_page(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_survey(results, "host1")
    page = report_page(results)
    assert sections(page) == ["Hosts as they are", "Where it was measured, and how to make this again"]
    assert "host1: 2 virtual machines, 2 of which KSM can merge. KSM would save" in page
    assert "KSM would save" in capsys.readouterr().out


def test_the_command_on_the_page_makes_it_again(results: Path, tmp_path: Path) -> None:
    store(results, synthetic_plan())
    page = report_page(results)
    (command,) = re.findall("Made by: <code>(.*)</code>", page)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "analysis"]
    (results / "page.html").unlink()
    assert main(words[3:]) == 0
    assert (results / "page.html").read_text() == page


def test_where_there_is_nothing_it_says_what_to_run(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--results", str(results), "--html", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert "playbooks/survey.yml" in error
    assert "make experiment" in error


def test_a_survey_that_is_damaged_is_named_on_the_page(results: Path) -> None:
    store(results, synthetic_plan())
    store_survey(results, "host1")
    (results / "survey1" / "host1" / "survey.json").write_text("{}")
    assert "host1: survey.json" in report_page(results)


def test_the_page_of_a_cell_without_a_ledger_says_so(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        for kind in ("off", "on"):
            del records[kind]["observed"]["host"]["meminfo"]["SUnreclaim_bytes"]

    store(results, synthetic_plan(), change)
    page = report_page(results)
    assert "its records lack SUnreclaim" in page
    # Saved, used and growth
    assert page.count("<svg") == 3
