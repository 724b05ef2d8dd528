#!/usr/bin/env python3
"""copy_disk.py MONITOR DISK COPY: copy a running QEMU's disk while it stands still, all written to it.

MONITOR is the socket of its human monitor. What was copied by half is removed.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

PROMPT = b"(qemu) "


def main() -> None:
    """Stop the machine, copy, go on."""
    monitor_path, disk, copy = sys.argv[1:]
    half = Path(f"{copy}.half")
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(monitor_path)
        ask(monitor, "")
        ask(monitor, "stop\n")
        try:
            subprocess.run(["cp", "--sparse=always", disk, half], check=True)
            half.rename(copy)
        finally:
            half.unlink(missing_ok=True)
            ask(monitor, "cont\n")


def ask(monitor: socket.socket, command: str) -> None:
    """Give a command and wait until it was carried out."""
    monitor.sendall(command.encode())
    said = b""
    while not said.endswith(PROMPT):
        more = monitor.recv(4096)
        if not more:
            sys.exit("QEMU ended while its disk was to be copied")
        said += more


if __name__ == "__main__":
    main()
