"""The module survey on a recorded host with real processes, which have QEMU's name and known pages."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import numpy as np
import pytest
from plugin_files import ROOT
from surveyed_host import Host

from analysis.records.survey import SurveyObserved

ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))

from ansible.module_utils.page_census import KPF_THP, KPF_ZERO_PAGE, Counted  # noqa: E402
from ansible.module_utils.page_sampling import ABSENT, Keep, keep_of, moved  # noqa: E402


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "host")
    yield made
    made.end()


def three(host: Host) -> None:
    # Contents 7 and 8 in all three, 100 and 101 in two, the rest of one alone.
    host.start("one", "5x0", "3x7", "1x8", "2*100", "40*1000", "6xu", "4xr")
    host.start("two", "2x0", "1x7", "9x8", "2*100", "30*2000")
    host.start("three", "1x7", "2x8", "1xu", "1x8", "40*3000")


def test_a_host_is_read_and_its_machines_and_what_others_offer(host: Host) -> None:
    pid = host.start("web,,01", "40*1", libvirt=False)
    result = host.survey()
    observed = result["observed"]
    SurveyObserved.model_validate_json(json.dumps(observed))
    assert result["changed"] is False and observed["census"] is None
    assert (observed["uptime_seconds"], observed["boot_id"][:8]) == (93784.12, "5f1b7e0e")
    (machine,) = observed["machines"]
    assert (machine["pid"], machine["name"], machine["memory_kind"]) == (pid, "web,01", "mergeable")
    assert (machine["accelerator"], machine["mergeable_bytes"]) == ("tcg", 40 * 4096)
    # Those that the host was recorded with are no machines by their names, and offer KSM memory.
    assert [other["pid"] for other in observed["other_mergeable"]] == [28619, 28620, 28621]


def test_a_kernel_without_ksm_is_no_error(host: Host) -> None:
    shutil.rmtree(host.tree / "sys/kernel/mm/ksm")
    result = host.survey()
    assert result["observed"]["ksm"] is None and result["observed"]["ksmd_cpu_seconds"] is None
    assert result["provenance"]["ksm_knobs"] == {}
    SurveyObserved.model_validate_json(json.dumps(result["observed"]))


def test_nothing_is_written_to_the_kernel_s_files(host: Host) -> None:
    three(host)
    before = {path: path.read_bytes() for path in (host.tree / "sys").rglob("*") if path.is_file()}
    assert "observed" in host.survey(census=True, sample=4)
    assert before == {path: path.read_bytes() for path in before}


def test_a_census_of_running_machines_has_exactly_these_numbers(host: Host) -> None:
    three(host)
    observed = host.survey(census=True)["observed"]
    SurveyObserved.model_validate_json(json.dumps(observed))
    names = {machine["pid"]: machine["name"] for machine in observed["machines"]}
    census = observed["census"]
    order = [names[machine["pid"]] for machine in census["machines"]]
    seen = {names[machine.pop("pid")]: machine for machine in census["machines"]}
    assert seen["one"] == {
        "resident_pages": 51,
        "zero_pages": 5,
        "zero_huge_pages": 0,
        "zero_mapped_pages": 4,
        "swapped_pages": 0,
    }
    assert (seen["two"]["resident_pages"], seen["two"]["zero_pages"]) == (44, 2)
    (table,) = census["strata"]
    # Alone: 40 + 30 + 40. In two, two copies: 100, 101. In three: 7 in 5 copies, 8 in 13.
    assert table["contents"] == {"guests": [1, 2, 3, 3], "copies": [1, 2, 5, 13], "contents": [110, 2, 1, 1]}
    assert dict(zip(order, table["alone_pages"], strict=True)) == {"one": 40, "two": 30, "three": 40}
    one, two = order.index("one"), order.index("two")
    assert (table["shared_contents"][one][two], table["shared_contents"][one][one]) == (4, 44)
    assert census["changed_pages"] == 0 and census["paused"] is False


def test_a_sample_keeps_each_content_with_all_of_its_copies_and_all_zeros(host: Host) -> None:
    host.start("one", "30x0", "3000*1000")
    host.start("two", "10x0", "3000*1000", "400x7")
    observed = host.survey(census=True, sample=8)["observed"]
    SurveyObserved.model_validate_json(json.dumps(observed))
    census = observed["census"]
    assert sorted(machine["zero_pages"] for machine in census["machines"]) == [10, 30]
    always, chance = census["strata"]
    assert (always["one_in"], chance["one_in"]) == (1, 8)
    # All but content 7 are in both, one copy each: none is kept by half. Of 3000 some 375 are kept.
    assert set(zip(chance["contents"]["guests"], chance["contents"]["copies"], strict=True)) == {(2, 2)}
    assert 250 < chance["contents"]["contents"][0] < 500
    # Of 400 copies a look at one page in 64 sees 6 on the mean, and less than two in 1 of 70 surveys.
    kept = [*always["contents"]["copies"], *chance["contents"]["copies"]]
    assert 400 in kept or max(kept) == 2


def test_machines_that_nobody_can_pause_are_named(host: Host) -> None:
    pid = host.start("plain", "40*1")
    assert host.survey(census=True, pause=True)["msg"].startswith(
        (f"pause: {pid} are no domains", "Failed to import")
    )


def test_pause_stops_all_machines_and_lets_them_run_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("one", "40*1", libvirt=True)
    host.start("two", "40*1", libvirt=True)
    # A stand-in for libvirt; pausing is real (SIGSTOP).
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests/fixtures/census"))
    monkeypatch.setenv("RUN_ROOT", host.roots["run_root"])
    observed = host.survey(census=True, pause=True)["observed"]
    assert observed["census"]["paused"] is True and observed["census"]["bytes_read"] == 80 * 4096
    assert [machine["libvirt"] for machine in observed["machines"]] == [True, True]
    events = (host.tree / "run/events.log").read_text().splitlines()
    assert sorted(events[:2]) == ["suspend one", "suspend two"]
    assert sorted(events[2:]) == ["resume one", "resume two"]


@pytest.mark.parametrize(("name", "value"), [("sample", 0), ("cpu_percent", 0)])
def test_what_is_no_number_from_1_is_refused(host: Host, name: str, value: int) -> None:
    assert host.survey(**{name: value})["msg"] == f"{name} is 0: allowed is a whole number from 1"


def test_missing_packages_are_named_and_not_installed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = host.tree / "empty"
    empty.mkdir()
    (empty / "xxhash.py").write_text("raise ImportError('no', name='xxhash')\n")
    monkeypatch.setenv("PYTHONPATH", str(empty))
    assert "apt install python3-numpy and python3-xxhash" in host.survey(census=True)["msg"]
    assert "observed" in host.survey()


def test_a_machine_that_ended_is_left_out_of_the_census(host: Host) -> None:
    three(host)
    host.started[0].send_signal(signal.SIGKILL)
    host.started[0].wait()
    observed = host.survey(census=True)["observed"]
    assert [machine["name"] for machine in observed["machines"]] == ["two", "three"]
    assert len(observed["census"]["machines"]) == 2


def test_zero_pages_of_huge_pages_are_those_on_their_frames_but_the_kernel_s_own() -> None:
    flags = numbers(KPF_THP, KPF_THP | KPF_ZERO_PAGE, 0, KPF_THP)
    counted = Counted(hashes=numbers(7, 7, 7, 7, 8), frames=numbers(1, 2, 3, 4), flags=flags, swapped_pages=0)
    assert (counted.huge_pages, counted.zero_mapped_pages) == (2, 1)


def numbers(*values: int) -> "np.ndarray[Any, Any]":
    return np.array(values, np.uint64)


def test_kept_are_hashes_by_their_rest_and_those_seen_often() -> None:
    keep = keep_of([numbers(5, 5, 6, ABSENT), numbers(5, 9, ABSENT)], zero_hash=3, one_in=4)
    assert keep.always.tolist() == [3, 5]
    assert keep.mask(numbers(1, 3, 4, 5, 6, 8)).tolist() == [False, True, True, True, False, True]
    assert Keep(1, numbers()).mask(numbers(1, 2)).tolist() == [True, True]


def test_pages_that_changed_came_or_went_have_moved() -> None:
    found = moved([numbers(1, 2, ABSENT), numbers(4, ABSENT)], [numbers(1, 7, 5), numbers(ABSENT, ABSENT)])
    assert (found.looked_pages, found.changed_pages) == (4, 3)
