"""A recorded host with real processes that look like machines: QEMU's name, and pages that are known."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from plugin_files import ROOT, run
from waiting import wait_until

RECORDED = ROOT / "tests/fixtures/host/linux-6.18"
GUEST = ROOT / "tests/fixtures/census/guest.py"
MODULE = "plugins/modules/survey.py"


class Host:
    """A recorded host whose /proc has, of the real processes, these alone."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        shutil.copytree(RECORDED, tree)
        (tree / "proc/uptime").write_text("93784.12 180000.00\n")
        (tree / "proc/sys/kernel/random").mkdir(parents=True)
        (tree / "proc/sys/kernel/random/boot_id").write_text("5f1b7e0e-0000-4000-8000-000000000000\n")
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *contents: str, libvirt: bool = False) -> int:
        """A process that has QEMU's name and these pages, at least half of 256 KiB of them."""
        path = self.tree / f"{name}.pid"
        command = ["qemu-system-x86_64", str(GUEST), "x", str(path), *contents, "-m", "256K", "-name", name]
        process = subprocess.Popen(command, executable=sys.executable)
        self.started.append(process)
        wait_until(lambda: path.exists() and path.read_text(), f"{name} has its memory")
        (self.tree / f"proc/{process.pid}").symlink_to(f"/proc/{process.pid}")
        if libvirt:
            (self.tree / f"run/libvirt/qemu/{name}.pid").write_text(f"{process.pid}\n")
        return process.pid

    def end(self) -> None:
        """End all that was started."""
        for process in self.started:
            process.kill()
            process.wait()

    @property
    def roots(self) -> dict[str, str]:
        """Its trees, as a module's or an action's arguments."""
        return {f"{name}_root": str(self.tree / name) for name in ("proc", "sys", "run")}

    def survey(self, **arguments: Any) -> dict[str, Any]:
        return run(MODULE, **self.roots, **arguments)
