"""The action survey_record played by Ansible: a record for each host, whatever becomes of the others."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playing import play
from surveyed_host import Host

from analysis.__main__ import main


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "host")
    yield made
    made.end()


def survey(folder: Path, host: Host, *words: str, hosts: str = "good,", **arguments: Any) -> tuple[int, str]:
    task = {
        "survey_record": {
            "run_id": "first",
            "directory": f"{folder}/results/first/{{{{ inventory_hostname }}}}",
            **host.roots,
            # Only the host that is called good has a /proc.
            "proc_root": f"{host.tree}/{{{{ (inventory_hostname == 'good') | ternary('proc', 'none') }}}}",
            **arguments,
        }
    }
    return play(folder, [task, {"debug": {"msg": "after {{ inventory_hostname }}"}}], *words, hosts=hosts)


def test_each_host_has_its_record_and_one_that_fails_stops_no_other(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.start("one", "50*1000", "3x7")
    host.start("two", "50*1000", "9x7")
    code, said = survey(tmp_path, host, hosts="bad,good", census=True, sample=1)
    assert code == 2 and "after good" in said and "after bad" not in said
    assert f"{host.tree}/none/cpuinfo is missing" in said
    path = tmp_path / "results/first/good/survey.json"
    assert list((tmp_path / "results").rglob("survey.json")) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    record = json.loads(path.read_text())
    assert (record["hypervisor"], record["run_id"]) == ("good", "first")
    # Nothing that could be a hash: every number is one of pages, bytes, microseconds or ticks.
    tables = record["observed"]["census"]["strata"][0]
    assert max(number for column in tables["contents"].values() for number in column) == 50
    assert main(["survey", "--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().out.startswith("good, surveyed")


def test_machines_that_would_share_more_on_another_host_are_found_and_no_hash_is_left(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    # 8000 contents, some 31 of them in a sketch: in one of good and two of other; the third has its own.
    host.start("one", "8000*1000")
    host.start("third", "8000*90000")
    other = Host(tmp_path / "other")
    try:
        other.start("two", "8000*1000")
        trees = f"{{{{ (inventory_hostname == 'good') | ternary('{host.tree}', '{other.tree}') }}}}/proc"
        results = f"{tmp_path}/results/first"
        tasks = [
            {
                "survey_record": {
                    "run_id": "first",
                    "directory": f"{results}/{{{{ inventory_hostname }}}}",
                    **host.roots,
                    "proc_root": trees,
                    "census": True,
                    "sample": 16,
                    "compare": True,
                }
            },
            {"survey_placement": {"run_id": "first", "directory": results}, "run_once": True},
        ]
        code, said = play(tmp_path, tasks, "-vvv", hosts="good,other")
    finally:
        other.end()
    assert code == 0, said
    assert "2 hosts compared" in said and "sketch" not in said
    assert not list(Path("~/.ansible/tmp").expanduser().rglob("survey-s*"))
    record = json.loads((tmp_path / "results/first/placement.json").read_text())
    contents = {(one["hypervisor"], tuple(one["shared"])): one["contents"] for one in record["machines"]}
    (shared,) = {sum(one["shared"]) for one in record["machines"] if sum(one["shared"])}
    assert 10 < shared < 60 and record["one_in"] == 256
    assert {one[0] for one in contents} == {"good", "other"} and ("good", (0, shared)) in contents
    assert main(["survey", "--results", str(tmp_path / "results"), "--json"]) == 0
    moves = json.loads(capsys.readouterr().out)["moves"]
    assert {(move["machine"], move["hypervisor"], move["to"]) for move in moves} == {
        ("one", "good", "other"),
        ("two", "other", "good"),
    }
    assert moves[0]["gain_mib"] == shared * 256 / 256 and moves[0]["here_mib"] == 0
    assert main(["survey", "--results", str(tmp_path / "results")]) == 0
    assert "Machines that would share more on another host" in capsys.readouterr().out


def test_a_record_that_is_there_is_kept(tmp_path: Path, host: Host) -> None:
    assert survey(tmp_path, host)[0] == 0
    code, said = survey(tmp_path, host)
    assert code == 2 and "exists and is kept; choose another run_id" in said


def test_check_mode_reads_and_writes_nothing(tmp_path: Path, host: Host) -> None:
    code, _said = survey(tmp_path, host, "--check")
    assert code == 0 and not (tmp_path / "results").exists()
