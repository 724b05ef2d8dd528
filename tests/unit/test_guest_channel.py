"""Requests to a guest over a real socket, with a thread in the place of the guest's program."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from channel_guest import ChannelGuest, Talk, answer
from plugin_files import load
from waiting import FOREVER_SECONDS, wait_until

channel = load("plugins/module_utils/guest_channel.py")
SOON = 0.3
Make = Callable[..., ChannelGuest]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Make]:
    made: list[ChannelGuest] = []

    def make(talk: Talk, name: str = "guest01") -> ChannelGuest:
        made.append(ChannelGuest(tmp_path / name, talk))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_request_is_one_line_and_its_answer_is_returned(guest: Make) -> None:
    one = guest(lambda connection, requests: answer(connection, next(requests), {"digest": "a"}))
    assert channel.ask(one.path, ["start", '{"bytes": 0}'], FOREVER_SECONDS) == {"digest": "a"}
    (heard,) = one.heard
    assert heard["words"] == ["start", '{"bytes": 0}']


def test_each_request_has_a_number_of_its_own(guest: Make) -> None:
    numbers = set()
    for name in ("guest01", "guest02"):
        one = guest(lambda connection, requests: answer(connection, next(requests), {}), name)
        channel.ask(one.path, ["verify"], FOREVER_SECONDS)
        numbers.add(one.heard[0]["id"])
    assert len(numbers) == 2


@pytest.mark.parametrize(
    "noise",
    [
        b"[    1.234567] random: crng init done\n",
        b"\xff\xfe\x00\n\n",
        b"5\n[]\nnull\n",
        b"[" * 100_000 + b"\n",
        b'{"id": "00000000", "answer": {"digest": "of somebody else"}}\n',
        b'{"id": "cut off", "error": "usage: testbed-workload"}\n',
        b'{"id": null, "error": "no request"}\n',
        b'{"id": ["unhashable"], "answer": {}}\n',
    ],
    ids=["kernel", "binary", "json", "deep", "another id", "cut off", "no id", "odd id"],
)
def test_what_comes_before_the_answer_is_passed_over(guest: Make, noise: bytes) -> None:
    def talk(connection: socket.socket, requests: Iterator[Any]) -> None:
        request = next(requests)
        connection.sendall(noise)
        answer(connection, request, {"digest": "a"})

    assert channel.ask(guest(talk).path, ["verify"], FOREVER_SECONDS) == {"digest": "a"}


def test_an_answer_that_comes_in_pieces_is_put_together(guest: Make) -> None:
    def talk(connection: socket.socket, requests: Iterator[Any]) -> None:
        line = json.dumps({"id": next(requests)["id"], "answer": {"long": "x" * 200_000}}).encode() + b"\n"
        for start in range(0, len(line), 70_000):
            connection.sendall(line[start : start + 70_000])
            time.sleep(0.02)

    assert len(channel.ask(guest(talk).path, ["verify"], FOREVER_SECONDS)["long"]) == 200_000


def test_a_refusal_is_told_as_the_guest_said_it(guest: Make) -> None:
    one = guest(
        lambda connection, requests: answer(connection, next(requests), "bytes is 1, and must be", "error")
    )
    with pytest.raises(channel.ChannelError, match=r"^bytes is 1, and must be$"):
        channel.ask(one.path, ["start"], FOREVER_SECONDS)


@pytest.mark.parametrize("content", [None, 5, ["digest"]])
def test_an_answer_that_is_none_is_shown(guest: Make, content: Any) -> None:
    one = guest(lambda connection, requests: answer(connection, next(requests), content))
    with pytest.raises(channel.ChannelError) as refused:
        channel.ask(one.path, ["verify"], FOREVER_SECONDS)
    assert str(refused.value) == f"it answered {content!r} to verify"


def test_a_guest_that_ends_instead_of_answering_is_known_at_once(guest: Make) -> None:
    def talk(connection: socket.socket, requests: Iterator[Any]) -> None:
        next(requests)
        connection.sendall(b'{"id": "00')

    # Long before the limit, which would be another sentence.
    with pytest.raises(channel.ChannelError, match=r"^it ended while it was asked to diverge"):
        channel.ask(guest(talk).path, ["diverge"], FOREVER_SECONDS)


def test_a_guest_that_does_not_run_is_known_at_once(tmp_path: Path) -> None:
    with pytest.raises(channel.ChannelError) as refused:
        channel.ask(tmp_path / "guest01", ["verify"], FOREVER_SECONDS)
    assert str(refused.value) == (
        "its port cannot be reached (No such file or directory), so it does not run"
    )
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left"))
    with pytest.raises(channel.ChannelError, match="Connection refused"):
        channel.ask(tmp_path / "left", ["verify"], FOREVER_SECONDS)
    with pytest.raises(channel.ChannelError, match=r"\(AF_UNIX path too long\)"):
        channel.ask(tmp_path / ("x" * 200), ["verify"], FOREVER_SECONDS)


def test_a_silent_guest_is_given_up_after_the_limit(guest: Make) -> None:
    one = guest(lambda _connection, requests: [None for _ in requests] and None)
    began = time.monotonic()
    with pytest.raises(channel.ChannelError, match=r"^it gave no answer to probe within 0 s$"):
        channel.ask(one.path, ["probe", "6"], SOON)
    assert time.monotonic() - began >= SOON
    wait_until(lambda: one.heard, "the guest hears of it")
    assert len(one.heard) == 1


def test_a_guest_that_only_makes_noise_is_given_up_after_the_limit_too(guest: Make) -> None:
    ended = threading.Event()

    def talk(connection: socket.socket, _requests: Iterator[Any]) -> None:
        while not ended.wait(0.02):
            connection.sendall(b"noise")

    one = guest(talk)
    with pytest.raises(channel.ChannelError, match="it gave no answer"):
        channel.ask(one.path, ["probe", "6"], SOON)
    assert not ended.is_set()
    ended.set()


def test_a_command_that_may_run_once_only_is_sent_once(guest: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "ATTEMPT_SECONDS", 0.05)

    def talk(connection: socket.socket, requests: Iterator[Any]) -> None:
        request = next(requests)
        time.sleep(SOON)
        answer(connection, request, {"filled_bytes": 1})

    one = guest(talk)
    assert channel.ask(one.path, ["start", "{}"], FOREVER_SECONDS) == {"filled_bytes": 1}
    assert len(one.heard) == 1


def test_a_guest_that_boots_is_asked_again_until_it_answers(
    guest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "ATTEMPT_SECONDS", 0.05)

    def talk(connection: socket.socket, requests: Iterator[Any]) -> None:
        next(requests)
        next(requests)
        answer(connection, next(requests), {"available_bytes": 7})

    one = guest(talk)
    assert channel.ask(one.path, ["barrier", "1"], FOREVER_SECONDS, again=True) == {"available_bytes": 7}
    assert [request["words"] for request in one.heard[:3]] == [["barrier", "1"]] * 3
    assert len({request["id"] for request in one.heard}) == len(one.heard)


def test_the_answer_to_any_of_the_attempts_counts_even_cut_by_the_next_one(
    guest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "ATTEMPT_SECONDS", 0.1)

    def talk(connection: socket.socket, requests: Iterator[Any]) -> None:
        line = json.dumps({"id": next(requests)["id"], "answer": {"available_bytes": 7}}).encode() + b"\n"
        connection.sendall(line[:9])
        next(requests)  # the second attempt, in the middle of the answer to the first
        connection.sendall(line[9:])

    assert channel.ask(guest(talk).path, ["barrier", "1"], FOREVER_SECONDS, again=True) == {
        "available_bytes": 7
    }


class Libvirt:
    """What libvirt keeps of domains in files, for a guest with the port `channel`."""

    free_mib = 900

    def __init__(self, folder: Path) -> None:
        self.status = folder / "run/some-guest01.xml"
        self.log = folder / "log/some-guest01.log"
        for file in (self.status, self.log):
            file.parent.mkdir()

    def becomes(self, state: str, reason: str, channel: Path) -> None:
        self.status.write_text(
            f"<!--\nWARNING\n-->\n\n<domstatus state='{state}' reason='{reason}' pid='7'>\n"
            f"  <serial type='unix'>\n    <source mode='bind' path='{channel}'/>\n"
        )


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    libvirt = Libvirt(tmp_path)
    monkeypatch.setattr(channel, "RUN", libvirt.status.parent)
    monkeypatch.setattr(channel, "LOG", libvirt.log.parent)
    monkeypatch.setattr(channel, "LOOK_SECONDS", 0.02)
    usage = lambda _path: SimpleNamespace(free=libvirt.free_mib << 20)  # noqa: E731
    monkeypatch.setattr(channel.shutil, "disk_usage", usage)
    return libvirt


@pytest.mark.parametrize(
    ("state", "free_mib", "said"),
    [
        (
            ("paused", "ioerror"),
            3,
            "it was paused since the disk under its own is full (3 MiB are free in {})",
        ),
        (
            ("paused", "ioerror"),
            900,
            "it was paused since the disk under its own failed (900 MiB are free in {})",
        ),
        (("paused", "user"), 900, "somebody paused it"),
        (("crashed", "panicked"), 900, "its state is crashed"),
    ],
)
def test_a_guest_that_stopped_while_it_is_waited_for_is_named_at_once_with_the_reason(
    guest: Make, libvirt: Libvirt, state: tuple[str, str], free_mib: int, said: str
) -> None:
    libvirt.free_mib = free_mib

    def talk(_connection: socket.socket, requests: Iterator[Any]) -> None:
        next(requests)
        libvirt.becomes(*state, one.path)
        list(requests)

    one = guest(talk)
    libvirt.becomes("running", "restored", one.path)
    answers, refused = channel.ask_all({"guest01": (one.path, ["start"])}, FOREVER_SECONDS)
    assert (answers, refused) == ({}, {"guest01": said.format(one.path.parent)})


@pytest.mark.parametrize("state", [("running", "restored"), ("paused", "starting up")])
def test_a_guest_that_is_slow_is_waited_for(
    guest: Make, libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch, state: tuple[str, str]
) -> None:
    looked, why_stopped = threading.Event(), channel.why_stopped

    def look(*asked: Any) -> str:
        looked.set()
        why: str = why_stopped(*asked)
        return why

    def talk(connection: socket.socket, requests: Iterator[Any]) -> None:
        request = next(requests)
        assert looked.wait(FOREVER_SECONDS)
        answer(connection, request, {"digest": "a"})

    monkeypatch.setattr(channel, "why_stopped", look)
    one = guest(talk)
    libvirt.becomes(*state, one.path)
    answers, _ = channel.ask_all({"guest01": (one.path, ["start"])}, FOREVER_SECONDS)
    assert answers == {"guest01": {"digest": "a"}}


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("crashed", "its QEMU crashed or was killed"),
        ("destroyed", "somebody destroyed it"),
        ("failed", "libvirt says failed"),
    ],
)
def test_a_guest_that_is_gone_is_named_with_what_libvirt_noted(
    guest: Make, libvirt: Libvirt, reason: str, said: str
) -> None:
    def talk(_connection: socket.socket, requests: Iterator[Any]) -> None:
        next(requests)
        libvirt.log.write_text(f"char device\n2026-11-26 14:43:07.511+0000: shutting down, reason={reason}\n")
        libvirt.status.unlink()

    one = guest(talk)
    libvirt.becomes("running", "restored", one.path)
    _, refused = channel.ask_all({"guest01": (one.path, ["start"])}, FOREVER_SECONDS)
    assert refused == {"guest01": f"it ended while it was asked to start ({said})"}


def test_all_guests_are_asked_at_once_and_each_is_in_one_of_the_two_answers(
    guest: Make, tmp_path: Path
) -> None:
    together = threading.Barrier(2, timeout=FOREVER_SECONDS)

    def talk(connection: socket.socket, requests: Iterator[Any]) -> None:
        request = next(requests)
        together.wait()  # breaks where the second is asked after the first has answered
        answer(connection, request, {"said": request["words"][0]})

    requests = {
        "guest02": (guest(talk, "guest02").path, ["verify"]),
        "guest01": (guest(talk, "guest01").path, ["probe"]),
        "guest03": (tmp_path / "guest03", ["verify"]),
    }
    told: list[tuple[str, dict[str, Any]]] = []
    answers, refused = channel.ask_all(requests, FOREVER_SECONDS, each=lambda *one: told.append(one))
    assert list(answers.items()) == [("guest01", {"said": "probe"}), ("guest02", {"said": "verify"})]
    assert sorted(told) == list(answers.items())
    assert list(refused) == ["guest03"] and "so it does not run" in refused["guest03"]


def test_nobody_is_asked_where_there_is_no_guest() -> None:
    assert channel.ask_all({}, 5) == ({}, {})
