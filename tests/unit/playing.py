"""Play tasks of this project with ansible-playbook, on this machine and on trees of files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from plugin_files import ROOT

# Of the project's own configuration what makes a play quick: fewer shells, and fewer polls a second
QUICK = "[defaults]\ninternal_poll_interval = 0.02\n[connection]\npipelining = True\n"


def play(
    folder: Path,
    tasks: list[dict[str, Any]],
    *words: str,
    hosts: str = "localhost,",
    environment: dict[str, str] | None = None,
    **variables: Any,
) -> tuple[int, str]:
    """Play tasks on hosts that are all this machine; return (exit code, what it printed).

    The file stands in a folder of its own beneath `folder`, with the project's plugins and roles.
    """
    book = folder / "playbooks/play.yml"
    book.parent.mkdir(parents=True, exist_ok=True)
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "vars": variables, "tasks": tasks}]))
    return play_book(book, *words, hosts=hosts, environment=environment)


def play_book(
    book: Path, *words: str, hosts: str = "localhost,", environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run a playbook with the project's plugins and roles; return (exit code, what it printed).

    The lease that it takes is not this machine's own.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            play_command(book, Path(folder) / "lease", *words, hosts=hosts),
            env=play_environment(environment),
            cwd=book.parent,
            check=False,
            capture_output=True,
            text=True,
        )
    return done.returncode, done.stdout + done.stderr


def play_command(book: Path, lease: Path, *words: str, hosts: str = "localhost,") -> list[str | Path]:
    """The command of a playbook on hosts that are all this machine, each with its lease in this folder."""
    playbook = Path(sys.executable).with_name("ansible-playbook")
    directory = json.dumps({"lease_directory": str(lease / "{{ inventory_hostname }}")})
    return [playbook, "-i", hosts, "-c", "local", "-e", directory, *words, book]


def play_environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a playbook that has the project's plugins and roles."""
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        # Tests read what each task says, which the project's own output leaves out.
        "ANSIBLE_STDOUT_CALLBACK": "default",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        **(more or {}),
    }


def fake_systemd(folder: Path) -> dict[str, str]:
    """Make a host with systemd that knows tuner.service only; return the environment to play in.

    `folder`/run is its /run, `folder`/state the service's state, and `folder`/told what systemctl was told.
    """
    (folder / "run/systemd/system").mkdir(parents=True)
    (folder / "told").touch()
    fake = folder / "bin/systemctl"
    fake.parent.mkdir()
    fake.write_text(
        f"""#!/bin/sh
case "$1 $2" in
  "show tuner.service") echo LoadState=loaded; echo ActiveState=$(cat {folder}/state) ;;
  "show "*) echo LoadState=not-found ;;
  start*|stop*) echo "$@" >> {folder}/told ;;
esac
"""
    )
    fake.chmod(0o755)
    return {"PATH": f"{fake.parent}:/usr/bin:/bin:/usr/sbin:/sbin"}


def fake_systemd_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a systemd-run on the path that only starts the process; return the file of what it was told."""
    fake = folder / "bin/systemd-run"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\necho "$@" > {folder}/told\n'
        'while [ "$1" != -- ]; do shift; done; shift\n"$@" > /dev/null 2>&1 < /dev/null &\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    return folder / "told"
