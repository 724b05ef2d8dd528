"""Requests to each guest: a line `ID COMMAND [ARGUMENT]` to its second serial port, a line of JSON back.

Standard library only. QEMU ends that port at a socket on the hypervisor. No hands are shaken, so that 15
emulated guests answer at once what would take each of them seconds of CPU over SSH.

A guest that stopped, or is gone, is told from one that is slow: libvirt keeps the state of each domain, with
its reason, in RUN/DOMAIN.xml, written at every change for its own restart. So it is known without a request
to libvirt, which may be what has ended.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ATTEMPT_SECONDS = 10.0
# So often a guest that is waited for is looked at.
LOOK_SECONDS = 2.0
# libvirt notices the end of a process and writes why into its log.
REASON_SECONDS = 3.0
RUN = Path("/run/libvirt/qemu")
LOG = Path("/var/log/libvirt/qemu")
STATUS = re.compile(r"<domstatus state='([^']*)' reason='([^']*)'")
PORT = re.compile(r"<source mode='bind' path='([^']*)'")
# Why a guest is paused that does not go on by itself; other reasons pass, such as "starting up".
PAUSED = {
    "user": "somebody paused it",
    "watchdog": "its watchdog paused it",
    "panicked": "its kernel panicked",
    "api error": "libvirt failed while it handled it",
}
SHUT_DOWN = re.compile(r"shutting down, reason=([\w-]+)")
ENDED = {
    "crashed": "its QEMU crashed or was killed",
    "destroyed": "somebody destroyed it",
    "shutdown": "it shut itself down",
}
FULL_DISK_BYTES = 16 << 20


class ChannelError(Exception):
    """A guest gave no answer, or refused; the text is one sentence without the guest's name."""


class RefusalError(ChannelError):
    """A guest answered that it does not do what it was asked."""


def domains_by_channel() -> dict[str, str]:
    """Each socket that is a port of a running domain -> the domain."""
    found: dict[str, str] = {}
    for path in RUN.glob("*.xml"):
        try:
            ports = PORT.findall(path.read_text(encoding="utf-8"))
        except OSError:
            continue  # it ended meanwhile
        found |= dict.fromkeys(ports, path.stem)
    return found


def why_stopped(domain: str, run: Path | None = None) -> str:
    """Why a domain that is there does not run; empty where it runs, or nothing is known of it.

    run: libvirt's folder, for recorded trees.
    """
    try:
        with ((run or RUN) / f"{domain}.xml").open(encoding="utf-8") as file:
            head = file.read(1024)
            found = STATUS.search(head)
            state, reason = found.groups() if found else ("", "")
            if (state, reason) == ("paused", "ioerror"):
                return _disk_failed(PORT.search(head + file.read()))
    except OSError:
        return ""
    if state == "paused":
        return PAUSED.get(reason, "")
    return f"its state is {state}" if state in ("crashed", "pmsuspended") else ""


def not_running(domains: Mapping[str, str], run: Path | None = None) -> str:
    """The first guest that stopped or is gone, and why, of those that ran; empty while all do.

    domains: guest -> domain.
    """
    for guest, domain in domains.items():
        why = why_stopped(domain, run)
        if not why and not ((run or RUN) / f"{domain}.xml").exists():
            why = why_gone(domain) or "its QEMU has ended"
        if why:
            return f"{guest} does not run: {why}"
    return ""


def _disk_failed(port: re.Match[str] | None) -> str:
    """What became of a guest's disk, which stands beside its port."""
    folder = Path(port[1]).parent if port else None
    if folder is None or not folder.exists():
        return "it was paused since the disk under its own failed"
    free = shutil.disk_usage(folder).free
    why = "is full" if free < FULL_DISK_BYTES else "failed"
    return f"it was paused since the disk under its own {why} ({free >> 20} MiB are free in {folder})"


def why_gone(domain: str) -> str:
    """Why the QEMU of a domain ended, as libvirt noted it; empty where that is not known."""
    deadline = time.monotonic() + REASON_SECONDS
    while domain and (RUN / f"{domain}.xml").exists() and time.monotonic() < deadline:
        time.sleep(REASON_SECONDS / 30)
    try:
        last = (LOG / f"{domain}.log").read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
    except OSError:
        return ""
    found = SHUT_DOWN.search("".join(last))
    return ENDED.get(found[1], f"libvirt says {found[1]}") if found else ""


def ask(
    path: Path, words: Sequence[str], limit_seconds: float, *, again: bool = False, domain: str = ""
) -> dict[str, Any]:
    """Send one command and return its answer.

    Args:
        path: the socket of the guest's port.
        words: the command and at most one argument, which may hold spaces but no line's end.
        limit_seconds: the longest wait for the answer.
        again: send the request anew each ATTEMPT_SECONDS until one is answered, for a command that may run
            twice: a guest that boots loses what came before it opened the port.
        domain: what libvirt calls the guest, which says why one stopped or ended.

    Raises:
        ChannelError: no answer in time, the guest stopped or ended, or it refused.
    """
    deadline = time.monotonic() + limit_seconds
    sent: list[str] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(limit_seconds)
        try:
            connection.connect(str(path))
        except OSError as error:
            why = error.strerror or error
            raise ChannelError(f"its port cannot be reached ({why}), so it does not run") from None
        lines = _Lines(connection, lambda: why_stopped(domain))
        while (now := time.monotonic()) < deadline:
            attempt = min(deadline, now + ATTEMPT_SECONDS) if again else deadline
            number = secrets.token_hex(4)
            sent.append(number)
            try:
                connection.sendall(" ".join((number, *words)).encode() + b"\n")
                while True:
                    answer = parsed(lines.next(attempt))
                    if answer.get("id") in sent:
                        return _content(answer, words[0])
            except TimeoutError:
                continue
            except (OSError, EOFError) as error:
                gone = why_gone(domain) or (error.strerror if isinstance(error, OSError) else "")
                why = f" ({gone})" if gone else ""
                raise ChannelError(f"it ended while it was asked to {words[0]}{why}") from None
    raise ChannelError(f"it gave no answer to {words[0]} within {limit_seconds:.0f} s")


def _content(answer: Mapping[str, Any], command: str) -> dict[str, Any]:
    if "error" in answer:
        raise RefusalError(str(answer["error"]))
    content = answer.get("answer")
    if not isinstance(content, dict):
        raise ChannelError(f"it answered {content!r} to {command}")
    return content


def parsed(line: bytes) -> dict[str, Any]:
    """One line of the port; empty for the noise of a guest that boots."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


class _Lines:
    """Whole lines of a connection; what came of one before a timeout is kept."""

    def __init__(self, connection: socket.socket, why_stopped: Callable[[], str]) -> None:
        self._connection = connection
        self._why_stopped = why_stopped
        self._buffer = bytearray()

    def next(self, deadline: float) -> bytes:
        """The next line. TimeoutError at the deadline, whatever comes; EOFError at the other side's end.

        ChannelError as soon as the guest that is to send it is seen to have stopped.
        """
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(min(left, LOOK_SECONDS))
            try:
                piece = self._connection.recv(65536)
            except TimeoutError:
                if why := self._why_stopped():
                    raise ChannelError(why) from None
                continue
            if not piece:
                raise EOFError
            self._buffer += piece
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return line


def ask_all(
    requests: Mapping[str, tuple[Path, Sequence[str]]],
    limit_seconds: float,
    *,
    again: bool = False,
    each: Callable[[str, dict[str, Any]], None] = lambda _name, _answer: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Ask all guests at once; each(name, answer) is called as the answers come.

    Returns:
        (guest -> answer, guest -> why there is none); every guest is in one of the two.
    """
    answers: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    domains = domains_by_channel()
    with ThreadPoolExecutor(max_workers=max(1, len(requests))) as pool:
        waiting = {
            pool.submit(ask, path, words, limit_seconds, again=again, domain=domains.get(str(path), "")): name
            for name, (path, words) in requests.items()
        }
        for future in as_completed(waiting):
            name = waiting[future]
            try:
                answers[name] = future.result()
            except ChannelError as error:
                refused[name] = str(error)
            else:
                each(name, answers[name])
    return dict(sorted(answers.items())), dict(sorted(refused.items()))
