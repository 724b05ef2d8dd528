"""The shell that waits in a guest, run here for real at a pseudo-terminal in the place of the serial port."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_files import ROOT
from waiting import FOREVER_SECONDS, wait_until

SCRIPT = ROOT / "roles/guests/files/testbed_channel.sh"
MEMINFO = "MemTotal:  500 kB\nMemFree:  300 kB\nMemAvailable:  400 kB\nBuffers:  1 kB\n"
NO_SWAP = "Filename\t\t\t\tType\t\tSize\n"
SWAP = f"{NO_SWAP}/dev/vdb partition 1000\n"
STAND_INS = {
    "date": 'case $1 in +%s) cat clock ;; --set=@*) echo "${1#--set=@}" >clock ;; esac',
    "systemctl": "cat system_state; exit 1",
    "swapoff": "",
    "testbed-workload": 'echo noise >&2; printf "{\\"id\\": \\"%s\\", \\"count\\": %s}\\n" "$2" $#',
}


class Guest:
    """The script, with a /proc of its own and stand-ins for the commands that would change this host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "proc").mkdir()
        self.write("proc/meminfo", MEMINFO)
        self.write("proc/swaps", NO_SWAP)
        self.write("clock", "1000\n")
        self.write("system_state", "degraded\n")
        for name, body in STAND_INS.items():
            self.stand_in(name, body)
        script = SCRIPT.read_text(encoding="utf-8")
        self.write("script", script.replace("</proc/", f"<{folder}/proc/"))
        # Both ends of the terminal: between stty and its own opening the script holds none.
        self._port, self._end = pty.openpty()
        self._lines = os.fdopen(self._port, "rb")
        self.process = subprocess.Popen(
            ["/bin/sh", folder / "script", os.ttyname(self._end)],
            cwd=folder,
            env={"PATH": f"{folder}:/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
        )
        # What the script's stty does; a terminal as it comes would answer with an echo.
        wait_until(lambda: not termios.tcgetattr(self._end)[3] & termios.ECHO, "the port is made raw")

    def write(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content, encoding="utf-8")

    def stand_in(self, name: str, body: str) -> None:
        """A command that notes how it was called, an argument a line, and does what the body says."""
        self.write(name, f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >>commands\n{body}\n')
        (self.folder / name).chmod(0o755)

    @property
    def commands(self) -> list[str]:
        path = self.folder / "commands"
        said = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return said

    @property
    def clock(self) -> str:
        return (self.folder / "clock").read_text(encoding="utf-8").strip()

    def send(self, line: str) -> None:
        os.write(self._port, f"{line}\n".encode())

    def ask(self, line: str) -> Any:
        """The answer to a request; what has not its ID is passed over, as the hypervisor does."""
        self.send(line)
        start = f'{{"id": "{line.partition(" ")[0]}", '.encode()
        return json.loads(next(said for said in self._lines if said.startswith(start)))

    def close(self) -> None:
        self._lines.close()
        os.close(self._end)
        assert self.process.wait(timeout=FOREVER_SECONDS) == 0


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    guest.close()


def test_at_the_barrier_a_restored_guests_clock_is_put_right(guest: Guest) -> None:
    assert guest.ask("a1 barrier 4600") == {
        "id": "a1",
        "answer": {
            "system_state": "degraded",
            "available_bytes": 400 * 1024,
            "clock_behind_seconds": 3600,
            "swap_was_on": False,
        },
    }
    assert guest.clock == "4600"
    waited = ["systemctl", "is-system-running", "--wait"]
    # And no Python, whose code a restored guest would have to translate anew.
    assert guest.commands == ["date", "+%s", "date", "--set=@4600", *waited]


@pytest.mark.parametrize("now", [1001, 1000, 985])
def test_a_clock_that_is_right_is_left_alone_and_never_put_back(guest: Guest, now: int) -> None:
    """A request that waited in the port while the guest was restored has an old time."""
    assert guest.ask(f"a1 barrier {now}")["answer"]["clock_behind_seconds"] == now - 1000
    assert guest.clock == "1000"


def test_the_end_of_the_boot_is_waited_for_once(guest: Guest) -> None:
    """What the shell knows is saved and restored with it."""
    guest.write("system_state", "starting\n")
    assert guest.ask("a1 barrier 1000")["answer"]["system_state"] == "starting"
    guest.write("system_state", "running\n")
    assert guest.ask("a2 barrier 1000")["answer"]["system_state"] == "running"
    assert guest.commands.count("systemctl") == 2
    assert guest.ask("a3 barrier 1000")["answer"]["system_state"] == "running"
    assert guest.commands == ["date", "+%s"]


def test_at_the_barrier_swap_is_switched_off_and_that_it_was_on_is_told(guest: Guest) -> None:
    guest.write("proc/swaps", SWAP)
    assert guest.ask("a1 barrier 1000")["answer"]["swap_was_on"] is True
    assert guest.commands[-2:] == ["swapoff", "--all"]


@pytest.mark.parametrize("seconds", ["", "soon", "1000.5", "-1000", "0", "010", "1000 1000", "$(reboot)"])
def test_a_time_that_is_none_is_refused(guest: Guest, seconds: str) -> None:
    said = "SECONDS must be the time since the epoch, a whole number"
    assert guest.ask(f"a1 barrier {seconds}") == {"id": "a1", "error": said}
    assert guest.commands == []


@pytest.mark.parametrize(
    ("fails", "said"), [("date", "the clock cannot be set"), ("swapoff", "swap cannot be switched off")]
)
def test_what_the_guest_cannot_do_is_told(guest: Guest, fails: str, said: str) -> None:
    guest.write("proc/swaps", SWAP)
    guest.stand_in(fails, '[ "$1" = +%s ] && cat clock')
    assert guest.ask("a1 barrier 4600") == {"id": "a1", "error": said}
    guest.stand_in(fails, STAND_INS[fails])
    assert guest.ask("a2 barrier 4600")["answer"]["swap_was_on"] is True


def test_other_requests_are_handed_to_the_program_and_its_answers_back(guest: Guest) -> None:
    spec = json.dumps({"seed": "a\\b $(c) *  d", "bytes": 0})
    assert guest.ask(f"a1 start {spec}") == {"id": "a1", "count": 4}
    assert guest.commands == ["testbed-workload", "request", "a1", "start", spec]
    assert guest.ask("a2 verify") == {"id": "a2", "count": 3}
    assert guest.commands == ["testbed-workload", "request", "a2", "verify"]


@pytest.mark.parametrize("noise", ["", "half", "\x00\xff", '{"id": "a1", "words": ["verify"]}'])
def test_a_line_that_is_no_request_does_not_end_it(guest: Guest, noise: str) -> None:
    guest.send(noise)
    assert guest.ask("a2 verify") == {"id": "a2", "count": 3}


def test_while_nobody_asks_nothing_runs(guest: Guest) -> None:
    """The shell sleeps in the kernel: it is never scheduled, so an idle guest costs no CPU time for it."""
    guest.ask("a1 barrier 1000")
    status = Path(f"/proc/{guest.process.pid}/status")

    def switches() -> list[str]:
        return [line for line in status.read_text().splitlines() if "ctxt_switches" in line]

    wait_until(lambda: "State:\tS" in status.read_text(), "the shell waits")
    time.sleep(0.1)
    before = switches()
    time.sleep(0.5)
    assert switches() == before and len(before) == 2
    guest.ask("a2 barrier 1000")
    assert switches() != before
