"""The command line: quick help, one sentence and exit code 2 for a mistake, no traceback."""

import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest
from synthetic import store, synthetic_plan

from analysis.__main__ import COMMANDS, main, parser
from analysis.plan.design import PROJECT


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from analysis.__main__ import main\n"
        f"try: main([*{words!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'pandas', 'matplotlib', 'scipy', 'ansible_runner', 'pydantic', 'rich'}\n"
        "print('heavy:', *sorted(heavy & set(sys.modules)))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert seen.stdout.splitlines()[-1] == "heavy:"
    assert "usage: python -m analysis" in seen.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example_that_can_be_read(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    (example,) = re.findall(rf"^example: python -m analysis ({command}.*)$", text, re.MULTILINE)
    words = example.split()
    assert parser(words).parse_args(words).command == command


def test_exit_codes_are_in_the_help_and_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    documented = (PROJECT / "docs" / "commands.md").read_text()
    for code in (0, 1, 2, 3, 4, 130):
        assert re.search(rf"^  {code} +\w", text, re.MULTILINE)
        assert f"| {code} | " in documented
    for command in COMMANDS:
        assert f"| `{command}` | " in documented


def test_an_option_means_the_same_in_every_command() -> None:
    common = {"--results", "--run", "--hypervisor", "--json", "--figure"}
    meanings: dict[str, set[tuple[object, ...]]] = {option: set() for option in common}
    for command in COMMANDS:
        of_command = ArgumentParser()
        import_module(f"analysis.commands.{command}").add_arguments(of_command)
        for action in of_command._actions:
            for option in common.intersection(action.option_strings):
                meanings[option].add((action.nargs, action.metavar, action.type, str(action.default)))
    assert {option: len(found) for option, found in meanings.items()} == dict.fromkeys(common, 1)


def test_no_results_says_what_to_run(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    error = mistake(capsys, "summarize", "--results", str(results))
    assert "make experiment FOCUS=3" in error
    assert "ansible-playbook playbooks/experiment.yml -e focus=3" in error
    assert "make experiment" in mistake(capsys, "explain", "--results", str(results))


def test_an_unknown_run_is_named(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store(results, synthetic_plan())
    assert "there are synthetic." in mistake(capsys, "summarize", "--results", str(results), "--run", "x")
    assert "there are synthetic." in mistake(capsys, "explain", "--results", str(results), "--run", "x")


def test_an_unknown_hypervisor_is_named_with_those_that_were_measured(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store(results, synthetic_plan(hosts=("host1", "host2")))
    for command in ("summarize", "explain"):
        error = mistake(capsys, command, "--results", str(results), "--hypervisor", "host3")
        assert "--hypervisor is 'host3': measured were host1, host2." in error
        assert main([command, "--results", str(results), "--hypervisor", "host2"]) == 0
        shown = capsys.readouterr().out
        assert "host2: 15 guests" in shown
        assert "host1" not in shown


def test_one_number_of_guests_is_summarised_alone(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store(results, synthetic_plan(guests="4,15"))
    error = mistake(capsys, "summarize", "--results", str(results), "--guests", "5")
    assert "--guests is 5: measured were 4, 15." in error
    assert main(["summarize", "--results", str(results), "--guests", "4"]) == 0
    shown = capsys.readouterr().out
    assert "host1: 4 guests" in shown
    assert "15 guests" not in shown


def test_a_damaged_run_is_named_and_the_others_are_summarised(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store(results, synthetic_plan(run_id="good"))
    (store(results, synthetic_plan(run_id="bad")) / "plan.json").write_text("{")
    for command in ("summarize", "explain"):
        assert main([command, "--results", str(results), "--all"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "Run good" in shown
        assert "! " in shown
        assert "plan.json" in shown


def test_a_damaged_plan_is_named(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    run = store(results, synthetic_plan())
    (run / "plan.json").write_text("{")
    assert "plan.json cannot be read" in mistake(capsys, "summarize", "--results", str(results))


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("--figure", "f.txt"),
        ("--figure", "no/f.png"),
        ("--parquet", "no/f.parquet"),
        ("--markdown", "no/f.md"),
    ],
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


def test_a_terminal_that_lacks_a_character_is_no_traceback(results: Path) -> None:
    store(results, synthetic_plan(boots=3))
    seen = subprocess.run(
        [sys.executable, "-m", "analysis", "summarize", "--results", str(results)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert "92.0 ? 0.0" in seen.stdout


def test_explain_draws_its_figures(capsys: pytest.CaptureFixture[str], results: Path, tmp_path: Path) -> None:
    store(results, synthetic_plan(focus="1,2"))
    paths = [tmp_path / name for name in ("ledger.svg", "burndown.svg")]
    words = ["--figure", str(paths[0]), "--burndown", str(paths[1])]
    assert main(["explain", "--results", str(results), *words]) == 0
    assert "2 constant fill, ksm: freed" in capsys.readouterr().out
    assert all(path.read_text().count("<svg") == 1 for path in paths)


def test_contents_without_a_census_cannot_be_drawn(
    capsys: pytest.CaptureFixture[str], results: Path, tmp_path: Path
) -> None:
    plan = synthetic_plan()
    store(results, plan)
    path = tmp_path / "contents.svg"
    assert main(["explain", "--results", str(results), "--contents", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"error: no cell of {plan.run_id} has a census, so what its pages held cannot be drawn: "
        "measure with -e census=true, or leave --contents out\n"
    )
    assert not path.exists()


def test_explaining_a_run_without_a_usable_cell_fails(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store(results, synthetic_plan(), lambda _cell, records: records.clear())
    assert main(["explain", "--results", str(results)]) == 1
    assert "not measured" in capsys.readouterr().out
