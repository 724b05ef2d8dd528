"""Requests to the program in each guest: a line to its second serial port, a line back.

Standard library only. QEMU ends that port at a socket on the hypervisor. No hands are shaken, so that 15
emulated guests answer at once what would take each of them seconds of CPU over SSH.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        words: the command and its arguments, as the program in the guest takes them.
        limit_seconds: the longest wait for the answer.
        again: send the request anew each ATTEMPT_SECONDS until one is answered, for a command that may run
            twice: a guest that boots loses what came before it opened the port.

    Raises:
        ChannelError: no answer in time, the guest ended, or it refused.
    """
    deadline = time.monotonic() + limit_seconds
    sent: set[str] = set()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise ChannelError(f"its port cannot be reached ({error.strerror}), so it does not run") from None
        lines = _lines(connection)
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(min(left, ATTEMPT_SECONDS) if again or not sent else left)
            try:
                if again or not sent:
                    number = secrets.token_hex(4)
                    sent.add(number)
                    connection.sendall(json.dumps({"id": number, "words": list(words)}).encode() + b"\n")
                for line in lines:
                    answer = parsed(line)
                    if answer.get("id") in sent:
                        if "error" in answer:
                            raise ChannelError(str(answer["error"]))
                        content: dict[str, Any] = answer["answer"]
                        return content
                raise ChannelError(f"it ended while it was asked to {words[0]}")
            except TimeoutError:
                lines = _lines(connection)
            except OSError as error:
                raise ChannelError(f"it ended while it was asked to {words[0]} ({error.strerror})") from None
    raise ChannelError(f"it gave no answer to {words[0]} within {limit_seconds:.0f} s")


def parsed(line: bytes) -> dict[str, Any]:
    """One line of the port; empty for the noise of a guest that boots."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _lines(connection: socket.socket) -> Iterator[bytes]:
    """Whole lines until the other side ends. A timeout loses an unfinished line."""
    buffer = b""
    while piece := connection.recv(65536):
        *whole, buffer = (buffer + piece).split(b"\n")
        yield from whole


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
