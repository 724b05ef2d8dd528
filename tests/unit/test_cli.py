"""The command line: quick help, one sentence and exit code 2 for a mistake, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import store, synthetic_plan

from analysis.__main__ import main
from analysis.plan.design import PROJECT


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from analysis.__main__ import parser; parser().format_help();"
        "print(sorted({'pandas', 'matplotlib', 'scipy', 'ansible_runner', 'pydantic'} & set(sys.modules)))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert seen.stdout == "[]\n"


def test_no_results_says_what_to_run(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    error = mistake(capsys, "summarize", "--results", str(results))
    assert "make experiment FOCUS=3" in error
    assert "ansible-playbook playbooks/experiment.yml -e focus=3" in error
    assert "make experiment" in mistake(capsys, "explain", "--results", str(results))


def test_an_unknown_run_is_named(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store(results, synthetic_plan())
    assert "there are synthetic." in mistake(capsys, "summarize", "--results", str(results), "--run", "x")
    assert "there are synthetic." in mistake(capsys, "explain", "--results", str(results), "x")


def test_a_damaged_plan_is_named(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    run = store(results, synthetic_plan())
    (run / "plan.json").write_text("{")
    assert "plan.json cannot be read" in mistake(capsys, "summarize", "--results", str(results))


@pytest.mark.parametrize(
    ("option", "file"), [("--figure", "f.txt"), ("--figure", "no/f.png"), ("--html", "no/f.html")]
)
def test_a_file_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], results: Path, tmp_path: Path, option: str, file: str
) -> None:
    store(results, synthetic_plan())
    assert file in mistake(capsys, "summarize", "--results", str(results), option, str(tmp_path / file))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--focus", "7"], "focus is '7': allowed is 1, 2, 3"),
        (["--guests", "none"], "guests is 'none': allowed is a whole number"),
        (["--repetitions", "0"], "repetitions is '0'"),
        (["-e", "guest_memory"], "-e 'guest_memory' cannot be read: allowed is NAME=VALUE"),
        (["-e", "guest_memory=1"], "guest_memory is not a variable of the experiment"),
        (["-e", "accelerator=xen"], "accelerator is 'xen': allowed is auto or kvm or tcg"),
        (["--resume", "../x"], "run_id is '../x'"),
        (["--resume", "never-was"], "is not a run"),
        (["--inventory", "no/such.yml"], "no/such.yml"),
    ],
)
def test_a_wrong_campaign_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert sentence in mistake(capsys, "run", *words)


def test_an_unknown_command_is_argparses_own_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["sumarize"])
    assert left.value.code == 2
    assert "invalid choice: 'sumarize'" in capsys.readouterr().err


def test_a_closed_pipe_is_no_traceback(results: Path) -> None:
    store(results, synthetic_plan(focus="all"))
    command = f"{sys.executable} -m analysis summarize --csv --results {results} | true"
    seen = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert "Traceback" not in seen.stderr


def test_explain_draws_its_figures(capsys: pytest.CaptureFixture[str], results: Path, tmp_path: Path) -> None:
    store(results, synthetic_plan(focus="1,2"))
    paths = [tmp_path / name for name in ("ledger.svg", "burndown.svg")]
    words = ["--figure", str(paths[0]), "--burndown", str(paths[1])]
    assert main(["explain", "--results", str(results), *words]) == 0
    assert "2 constant fill, ksm" in capsys.readouterr().out
    assert all(path.read_text().count("<svg") == 1 for path in paths)


def test_explaining_a_run_without_a_usable_cell_fails(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store(results, synthetic_plan(), lambda _cell, records: records.clear())
    assert main(["explain", "--results", str(results)]) == 1
    assert "not measured" in capsys.readouterr().out
