"""A guest's second serial port played by a thread."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from waiting import FOREVER_SECONDS

Talk = Callable[[socket.socket, Iterator[dict[str, Any]]], None]


class ChannelGuest:
    """Listens at a path; `talk(connection, requests)` is what runs in the guest, once for each connection."""

    def __init__(self, path: Path, talk: Talk) -> None:
        self.path = path
        self.heard: list[dict[str, Any]] = []
        self._talk = talk
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            with connection:
                self._talk(connection, self._requests(connection))

    def _requests(self, connection: socket.socket) -> Iterator[dict[str, Any]]:
        for line in connection.makefile("rb"):
            number, *words = line.decode().removesuffix("\n").split(" ", 2)
            request = {"id": number, "words": words}
            self.heard.append(request)
            yield request

    def close(self) -> None:
        """End it, and wait until it has."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=FOREVER_SECONDS)
        self._server.close()
        assert not self._thread.is_alive()


def answer(connection: socket.socket, request: dict[str, Any], content: Any, key: str = "answer") -> None:
    """Answer a request."""
    connection.sendall(json.dumps({"id": request["id"], key: content}).encode() + b"\n")
