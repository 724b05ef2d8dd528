"""Start a process on the host that outlives who starts it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


def start(
    command: Sequence[str],
    *,
    unit: str,
    description: str,
    said: IO[str],
    run_root: Path,
    properties: Sequence[str] = (),
) -> None:
    """Start it as a transient unit where systemd is PID 1, else in a session of its own.

    Args:
        command: the process with its arguments.
        unit: its name as a unit, which goes with the process.
        description: of the unit.
        said: where it may say why it does not start.
        run_root: the host's /run.
        properties: more of the unit, such as Restart=on-failure.
    """
    if (run_root / "systemd/system").is_dir():
        words = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--description={description}"]
        words += [f"--property={one}" for one in properties]
        # Where the unit is there already it is left to systemd.
        subprocess.run(
            [*words, "--setenv=LC_ALL=C.UTF-8", "--", *command], check=False, stdout=said, stderr=said
        )
    else:
        session(command, said=said, environment={**os.environ, "LC_ALL": "C.UTF-8"})


def session(
    command: Sequence[str], *, said: IO[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, with this environment alone. Raises OSError where it cannot be."""
    return subprocess.Popen(
        command,
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        start_new_session=True,
    )
