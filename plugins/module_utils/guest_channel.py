"""Requests to each guest: a line `ID COMMAND [ARGUMENT]` to its second serial port, a line of JSON back.

Standard library only. QEMU ends that port at a socket on the hypervisor. No hands are shaken, so that 15
emulated guests answer at once what would take each of them seconds of CPU over SSH.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ATTEMPT_SECONDS = 10.0


class ChannelError(Exception):
    """A guest gave no answer, or refused; the text is one sentence without the guest's name."""


def ask(path: Path, words: Sequence[str], limit_seconds: float, *, again: bool = False) -> dict[str, Any]:
    """Send one command and return its answer.

    Args:
        path: the socket of the guest's port.
        words: the command and at most one argument, which may hold spaces but no line's end.
        limit_seconds: the longest wait for the answer.
        again: send the request anew each ATTEMPT_SECONDS until one is answered, for a command that may run
            twice: a guest that boots loses what came before it opened the port.

    Raises:
        ChannelError: no answer in time, the guest ended, or it refused.
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
        lines = _Lines(connection)
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
                why = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
                raise ChannelError(f"it ended while it was asked to {words[0]}{why}") from None
    raise ChannelError(f"it gave no answer to {words[0]} within {limit_seconds:.0f} s")


def _content(answer: Mapping[str, Any], command: str) -> dict[str, Any]:
    if "error" in answer:
        raise ChannelError(str(answer["error"]))
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

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def next(self, deadline: float) -> bytes:
        """The next line. TimeoutError at the deadline, whatever comes; EOFError at the other side's end."""
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            piece = self._connection.recv(65536)
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
    with ThreadPoolExecutor(max_workers=max(1, len(requests))) as pool:
        waiting = {
            pool.submit(ask, path, words, limit_seconds, again=again): name
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
