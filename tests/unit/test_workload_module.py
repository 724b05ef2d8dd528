"""The module workload: what each guest is asked, and what its answers become."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from channel_guest import ChannelGuest, answer
from plugin_files import ROOT, RUN, load, run
from waiting import FOREVER_SECONDS, wait_until

from analysis.records.probes import PROBES

MODULE = "plugins/modules/workload.py"
workload = load(MODULE)
probing = load("plugins/module_utils/probing.py")
program = load("roles/guests/files/testbed_workload.py")
MIB = 1 << 20
RANDOM = [{"content": "random", "percent": 100}]
CONSTANT = [{"content": "constant", "percent": 100}]


def asked(state: str = "loaded", **changes: Any) -> dict[str, Any]:
    """The module's arguments with their defaults; three guests of which one is idle."""
    return {
        "state": state,
        "channels": dict.fromkeys(("guest01", "guest02", "guest03"), "/nowhere"),
        "segments": {"guest01": RANDOM, "guest02": CONSTANT, "guest03": []},
        "available_bytes": {"guest01": 400 * MIB, "guest02": 390 * MIB, "guest03": 100 * MIB},
        "size_bytes": 0,
        "reserve_mib": 32,
        "seed": "boot1",
        "probe_mib": 0,
        "probe_seconds": 2.0,
        **changes,
    }


# What is filled


def test_the_fill_is_what_the_smallest_guest_has_less_the_reserve_in_whole_mib() -> None:
    available = {"guest01": 400 * MIB + 5, "guest02": 390 * MIB + MIB - 1}
    assert workload.fill_bytes(available, 32) == 358 * MIB
    assert workload.fill_bytes({"guest01": 400 * MIB + 5}, 32) == 368 * MIB


@pytest.mark.parametrize(("least_bytes", "shown"), [(33 * MIB - 1, 32), (0, 0)])
def test_a_fill_of_nothing_is_refused_by_the_guests_name(least_bytes: int, shown: int) -> None:
    assert workload.fill_bytes({"guest01": 400 * MIB, "guest02": 33 * MIB}, 32) == MIB
    with pytest.raises(workload.WorkloadError) as refused:
        workload.fill_bytes({"guest01": 400 * MIB, "guest02": least_bytes}, 32)
    assert str(refused.value) == (
        f"guest_reserve_mib is 32, and guest02 has only {shown} MiB available: "
        "lower the reserve or raise guest_memory_mib"
    )


def test_of_a_mix_each_guest_has_its_content_all_that_fill_the_same_size_and_an_idle_one_has_no_say() -> None:
    specs, size = workload.specifications(asked())
    assert size == 358 * MIB
    assert specs == {
        "guest01": {"bytes": size, "seed": "boot1:guest01", "segments": RANDOM},
        "guest02": {"bytes": size, "seed": "boot1:guest02", "segments": CONSTANT},
    }


def test_what_is_asked_of_a_guest_is_what_its_program_takes() -> None:
    words, size = workload.words_for(asked(probe_mib=4))
    assert list(words) == ["guest01", "guest02", "guest03"]
    for command, spec in words.values():
        assert command == "start"
        assert program.layout(program.checked(spec))
    assert program.checked(words["guest01"][1])["bytes"] == size


def test_idle_guests_hold_memory_where_it_is_for_a_probe_equal_in_all_of_them() -> None:
    specs, size = workload.specifications(asked(segments={"guest01": [], "guest02": []}, probe_mib=4))
    assert size == 0
    assert {spec["bytes"] for spec in specs.values()} == {4 * MIB}
    assert {spec["segments"][0]["content"] for spec in specs.values()} == {"shared"}
    assert workload.specifications(asked(segments={"guest01": []})) == ({}, 0)


def test_a_guest_that_comes_later_fills_what_the_first_ones_filled() -> None:
    """Also where it has less available, or was not asked."""
    specs, size = workload.specifications(
        asked(segments={"guest02": RANDOM}, available_bytes={}, size_bytes=300 * MIB)
    )
    assert size == specs["guest02"]["bytes"] == 300 * MIB


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"available_bytes": {"guest01": 400 * MIB}}, "guest02 did not come to the barrier"),
        ({"channels": {"guest02": "/nowhere"}}, "segments has guest01, guest03, and channels has not"),
    ],
)
def test_a_guest_that_is_not_there_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(workload.WorkloadError) as refused:
        workload.specifications(asked(**changes))
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("state", "words"),
    [("verified", ["verify"]), ("diverged", ["diverge"])],
)
def test_all_guests_are_asked_the_same_once_they_are_loaded(state: str, words: list[str]) -> None:
    wanted = workload.words_for(asked(state))
    assert wanted == (dict.fromkeys(("guest01", "guest02", "guest03"), words), 0)


# What the answers become


@pytest.mark.parametrize(
    ("before", "after", "intact"),
    [("d1", "d1", True), ("d1", "d2", False), ("", "", False), ("", "d1", False)],
)
def test_memory_is_intact_where_it_had_a_digest_and_has_it_still(
    before: str, after: str, intact: bool
) -> None:
    assert workload.verdict({"filled_bytes": 5, "digest": after}, before) == {
        "filled_bytes": 5,
        "digest_before": before,
        "digest_after": after,
        "intact": intact,
    }


PROBE = dict.fromkeys(PROBES, 1.5)
ANSWERS = {
    "start": {"filled_bytes": 3 * MIB, "digest": "d1", "fill_seconds": 4.4, "seed": "s", "digest_seconds": 1},
    "verify": {"filled_bytes": 3 * MIB, "digest": "d1"},
    "probe": PROBE,
    "diverge": {**PROBE, "written_bytes": 3 * MIB, "seconds": 2.0, "digest": "d2"},
}


class Guests:
    """Some guests that answer as the program does, some that refuse."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[ChannelGuest] = []

    def add(self, name: str, refusal: str = "") -> None:
        def talk(connection: socket.socket, requests: Iterator[dict[str, Any]]) -> None:
            for request in requests:
                if refusal:
                    answer(connection, request, refusal, "error")
                else:
                    answer(connection, request, ANSWERS[request["words"][0]])

        self.made.append(ChannelGuest(self.folder / name, talk))

    @property
    def channels(self) -> dict[str, str]:
        return {guest.path.name: str(guest.path) for guest in self.made}

    def run(self, state: str, **arguments: Any) -> dict[str, Any]:
        given = {"channels": self.channels, "timeout_seconds": FOREVER_SECONDS, **arguments}
        return run(MODULE, state=state, **given)


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[Guests]:
    made = Guests(tmp_path)
    yield made
    for guest in made.made:
        guest.close()


def loading(*names: str) -> dict[str, Any]:
    return {
        "segments": dict.fromkeys(names, RANDOM),
        "available_bytes": dict.fromkeys(names, 48 * MIB),
        "seed": "boot1",
    }


def test_a_load_is_told_with_what_a_record_keeps_of_it(guests: Guests, tmp_path: Path) -> None:
    guests.add("guest01")
    guests.add("guest02")
    progress = tmp_path / "progress"
    progress.touch()
    result = guests.run("loaded", progress_path=str(progress), **loading("guest01", "guest02"))
    assert result["changed"] and result["size_bytes"] == 8 * MIB and result["silent"] == {}
    report = {"filled_bytes": 3 * MIB, "digest": "d1", "fill_seconds": 4.4, "seed": "s"}
    assert result["answers"] == {"guest01": report, "guest02": report}
    first, second = progress.read_text().splitlines()
    assert "filled 3 MiB in 4 s (1 of 2, " in first and "(2 of 2, " in second
    assert {first[:7], second[:7]} == {"guest01", "guest02"}
    spec = json.loads(guests.made[1].heard[0]["words"][1])
    assert spec == {"bytes": 8 * MIB, "seed": "boot1:guest02", "segments": RANDOM}


def test_check_mode_asks_no_guest_and_foresees_whether_something_changes(guests: Guests) -> None:
    guests.add("guest01")
    foreseen = guests.run("loaded", check=True, **loading("guest01"))
    assert foreseen["changed"] and foreseen["size_bytes"] == 8 * MIB
    idle = guests.run("loaded", check=True, segments={"guest01": []})
    assert not idle["changed"] and not guests.run("loaded", segments={"guest01": []})["changed"]
    assert not guests.run("verified", check=True)["changed"]
    assert guests.run("diverged", check=True)["changed"]
    assert guests.made[0].heard == []


def test_a_verdict_has_the_rate_of_a_guest_that_writes_all_the_time() -> None:
    answer = {"filled_bytes": 5, "digest": "d", "rewritten_pages_per_second": 199.5}
    assert workload.verdict(answer, "d")["rewritten_pages_per_second"] == 199.5


def test_each_guest_has_its_own_verdict(guests: Guests) -> None:
    for name in ("guest01", "guest02", "guest03"):
        guests.add(name)
    result = guests.run("verified", expected={"guest01": "d1", "guest02": "d0"})
    assert not result["changed"]
    assert {name: said["intact"] for name, said in result["answers"].items()} == {
        "guest01": True,
        "guest02": False,
        "guest03": False,
    }


def test_a_divergence_is_told_whole(guests: Guests) -> None:
    guests.add("guest01")
    diverged = guests.run("diverged")
    assert diverged["changed"] and diverged["answers"] == {"guest01": ANSWERS["diverge"]}
    assert [one["words"] for one in guests.made[0].heard] == [["diverge"]]


def test_guests_are_probed_one_after_another_with_what_nothing_and_reading_take(guests: Guests) -> None:
    for number in range(1, 5):
        guests.add(f"guest{number:02d}")
    result = guests.run("probed", probes=2, probe_seconds=2.5)
    assert not result["changed"] and result["answers"] == {}
    assert [one["guest"] for one in result["probes"]] == ["guest01", "guest03"]
    for one in result["probes"]:
        assert (one["answer"], one["read_bytes"]) == (PROBE, 3 * MIB)
        # There is no domain whose threads could be read.
        assert all(one[name]["seconds"] > 0 for name in ("request", "probe", "read"))
        assert one["read"]["run_seconds"] is None
    heard = [[one["words"] for one in guest.heard] for guest in guests.made]
    assert heard == [[["probe", "0"], ["probe", "0"], ["probe", "2.5"], ["verify"]], []] * 2


def test_the_probes_end_at_a_guest_without_an_answer(guests: Guests, tmp_path: Path) -> None:
    guests.add("guest01")
    channels = {**guests.channels, "guest02": str(tmp_path / "guest02")}
    result = guests.run("probed", channels=channels, probes=6, silence="null")
    assert [(one["guest"], one["answer"] is None) for one in result["probes"]] == [
        ("guest01", False),
        ("guest02", True),
    ]
    assert "so it does not run" in result["silent"]["guest02"]


@pytest.mark.parametrize(
    ("probes", "turns"), [(1, [1]), (2, [1, 3]), (5, [1, 2, 3, 4, 1]), (6, [1, 2, 3, 4, 1, 3])]
)
def test_probes_are_spread_over_the_guests(probes: int, turns: list[int]) -> None:
    assert probing.in_turn([1, 2, 3, 4], probes) == turns


def test_the_time_of_the_virtual_cpus_is_that_of_their_threads_alone(tmp_path: Path) -> None:
    (tmp_path / "ksm-guest01.pid").write_text("77\n")
    threads = {"77": "qemu-system-x86", "80": "CPU 0/KVM", "81": "CPU 1/KVM", "82": "IO mon_iothread"}
    for number, (tid, comm) in enumerate(threads.items(), start=1):
        task = tmp_path / "77/task" / tid
        task.mkdir(parents=True)
        (task / "comm").write_text(f"{comm}\n")
        (task / "schedstat").write_text(f"{number}000000000 {number}00000000 7\n")
    assert probing.vcpu_seconds("ksm-guest01", tmp_path, tmp_path) == (5.0, 0.5)
    assert probing.vcpu_seconds("ksm-guest02", tmp_path, tmp_path) is None


@pytest.mark.parametrize("state", ["loaded", "verified", "diverged"])
def test_a_guest_without_an_answer_fails_the_module_by_name_and_what_the_others_said_is_kept(
    guests: Guests, state: str
) -> None:
    guests.add("guest01")
    guests.add("guest02", refusal="no workload is running in this guest")
    arguments = loading("guest01", "guest02") if state == "loaded" else {}
    result = guests.run(state, **arguments)
    assert result["failed"] and result["msg"] == "guest02: no workload is running in this guest"
    assert list(result["answers"]) == ["guest01"]


@pytest.mark.parametrize("state", ["loaded", "verified", "diverged"])
def test_where_silence_is_a_finding_a_guest_without_an_answer_is_null_beside_one_that_gave_it(
    guests: Guests, tmp_path: Path, state: str
) -> None:
    guests.add("guest01")
    gone = {**guests.channels, "guest02": str(tmp_path / "guest02")}
    arguments = loading("guest01", "guest02") if state == "loaded" else {}
    result = guests.run(state, channels=gone, silence="null", **arguments)
    assert not result.get("failed") and result["answers"]["guest02"] is None
    assert result["answers"]["guest01"] is not None
    assert "so it does not run" in result["silent"]["guest02"]


def test_no_guests_are_no_failure(guests: Guests) -> None:
    assert guests.run("probed")["probes"] == []


def test_what_cannot_be_filled_fails_in_one_sentence(guests: Guests) -> None:
    guests.add("guest01")
    result = guests.run("loaded", **{**loading("guest01"), "reserve_mib": 48})
    assert result["failed"]
    assert result["msg"].startswith("guest_reserve_mib is 48, and guest01 has only 48 MiB")
    assert guests.made[0].heard == []


def test_a_module_that_nobody_waits_for_does_not_begin(guests: Guests, tmp_path: Path) -> None:
    guests.add("guest01")
    result = guests.run("diverged", progress_path=str(tmp_path / "none"))
    assert result["failed"] and "nobody waits for this module" in result["msg"]
    assert guests.made[0].heard == []


def test_a_module_whose_controller_has_gone_waits_no_longer(guests: Guests, tmp_path: Path) -> None:
    guests.made.append(ChannelGuest(tmp_path / "guest01", lambda _, requests: [*requests] and None))
    progress = tmp_path / "progress"
    progress.touch()
    command = [sys.executable, "-c", RUN, str(ROOT / MODULE), str(ROOT / "plugins/module_utils")]
    arguments = {"state": "diverged", "channels": guests.channels, "progress_path": str(progress)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        process.stdin.close()
        wait_until(lambda: guests.made[0].heard, "the guest is asked")
        assert process.poll() is None
        progress.unlink()
        assert process.wait(timeout=FOREVER_SECONDS) == 1


# The guests' program behind the channel


class RealGuests:
    """Guests that this host plays: the program itself, asked as testbed_channel.sh does, some MiB each."""

    def __init__(self, folder: Path) -> None:
        self.made = [self._make(folder / name) for name in ("guest01", "guest02")]

    def _make(self, path: Path) -> ChannelGuest:
        environment = {"TESTBED_WORKLOAD_SOCKET": f"{path}.memory", "PATH": os.environ["PATH"]}
        program_path = ROOT / "roles/guests/files/testbed_workload.py"

        def talk(connection: socket.socket, requests: Iterator[dict[str, Any]]) -> None:
            for request in requests:
                command = [sys.executable, program_path, "request", request["id"], *request["words"]]
                done = subprocess.run(command, env=environment, check=True, capture_output=True)
                connection.sendall(done.stdout)

        return ChannelGuest(path, talk)

    def run(self, state: str, **arguments: Any) -> Any:
        channels = {guest.path.name: str(guest.path) for guest in self.made}
        result = run(MODULE, state=state, channels=channels, timeout_seconds=FOREVER_SECONDS, **arguments)
        assert not result.get("failed"), result
        return result["probes"] if state == "probed" else result["answers"]

    def load(self, segments: list[dict[str, Any]]) -> Any:
        return self.run(
            "loaded",
            segments={"guest01": segments, "guest02": segments},
            available_bytes={"guest01": 49 * MIB, "guest02": 44 * MIB},
            seed="boot1",
        )

    def intact(self, before: dict[str, Any]) -> list[bool]:
        expected = {name: answer["digest"] for name, answer in before.items()}
        return [said["intact"] for said in self.run("verified", expected=expected).values()]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealGuests]:
    if os.geteuid():
        pytest.skip("locks memory, which needs root as in a guest")
    guests = RealGuests(tmp_path)
    yield guests
    for guest in guests.made:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{guest.path}.memory")
            client.sendall(b"stop")
            assert b"stopped" in client.recv(100)
        guest.close()


def test_guests_hold_the_same_size_each_its_own_content_which_a_probe_leaves_intact(real: RealGuests) -> None:
    loaded = real.load(RANDOM)
    assert {answer["filled_bytes"] for answer in loaded.values()} == {4 * MIB}
    assert [answer["seed"] for answer in loaded.values()] == ["boot1:guest01", "boot1:guest02"]
    assert len({answer["digest"] for answer in loaded.values()}) == 2
    assert real.intact(loaded) == [True, True]
    for seen in real.run("probed", probe_seconds=1, probes=2):
        answer = seen["answer"]
        assert set(answer) == set(PROBES) and all(value > 0 for value in answer.values())
        assert seen["probe"]["seconds"] > 1
        assert seen["read_bytes"] == 4 * MIB
    assert real.intact(loaded) == [True, True]


def test_guests_of_equal_content_that_diverge_hold_different_content_and_lose_none(real: RealGuests) -> None:
    loaded = real.load(CONSTANT)
    assert len({answer["digest"] for answer in loaded.values()}) == 1
    diverged = real.run("diverged")
    assert [answer["written_bytes"] for answer in diverged.values()] == [4 * MIB] * 2
    assert len({answer["digest"] for answer in diverged.values()}) == 2
    assert real.intact(loaded) == [False, False]
    assert real.intact(diverged) == [True, True]
    assert real.load(CONSTANT)["guest01"]["digest"] == loaded["guest01"]["digest"]


def test_what_the_program_refuses_is_the_modules_sentence(tmp_path: Path) -> None:
    guests = RealGuests(tmp_path)
    channels = {"guest01": str(guests.made[0].path)}
    result = run(MODULE, state="verified", channels=channels, timeout_seconds=FOREVER_SECONDS)
    assert result["msg"] == "guest01: no workload is running in this guest (No such file or directory)"
    result = run(
        MODULE, state="probed", channels=channels, probe_seconds=0.5, timeout_seconds=FOREVER_SECONDS
    )
    assert result["msg"] == "guest01: SECONDS is '0.5', and must be a number from 1 to 600"
    for guest in guests.made:
        guest.close()
