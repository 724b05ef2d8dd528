"""The controller's side of a host's lease: take it before the first change, and renew it while the run lives.

For action plugins. Ansible loads them, and this module with them, in its main process when it reads a
playbook; so one name and two pipes are the whole run's. Whoever takes the lease of a host leaves a process on
the controller that renews it by the same connection and rights: a fork of the action's worker, in a session
of its own, which neither a long module delays nor a Ctrl-C ends. When Ansible's main process and all of its
workers have gone, whatever ended them, a pipe that they alone hold says so at once, and the lease is given
back; what the run still owes the host is then paid by the lease's holder (plugins/module_utils/lease.py).
Where this process is gone too, with the machine or the network, the holder does so after the stated time.
"""

from __future__ import annotations

import atexit
import getpass
import os
import secrets
import select
import shlex
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from analysis.plan.variables import play_variables
from analysis.progress.matrix import MEASURING_PLAYS

DIRECTORY = "/run/ksm-testbed-lease"
SECONDS = 180.0
# Shorter, and a module that nobody asks for any more might still be at work: plugins/module_utils/progress.py
LEAST_SECONDS = 90.0
MOST_SECONDS = 86400.0
RENEWALS = 6
# The teardown after an interruption belongs to the run that was interrupted: callback put_right.
TOKEN_VARIABLE = "KSM_TESTBED_LEASE"  # noqa: S105 -- a name
TOKEN = os.environ.get(TOKEN_VARIABLE) or secrets.token_hex(8)
GIVEN_BACK_SECONDS = 30.0

_PID = os.getpid()
# Closed in all of the run's own processes: it is over. Closed in all that renew: the leases are given back.
_RUNS, _RENEWS = os.pipe(), os.pipe()


def hold(action: ActionBase, task_vars: Mapping[str, Any], *, new: bool | None = None) -> dict[str, Any]:
    """Take the lease of the action's host for this run, or see that the run has it.

    Args:
        action: the action plugin that calls; its connection and rights apply, which must be root's.
        task_vars: the variables that it was given. Of the play's: lease_seconds, lease_directory, and
            lease_end, with which a teardown ends another's lease.
        new: take a lease that the run has not got; left out: where the play does not measure, since one that
            does has it by then, or has lost it.

    Returns: what is to go into the action's result: a warning in check mode, which takes nothing.

    Raises AnsibleActionFail with a sentence for the user, and nothing is changed then.
    """
    host = task_vars.get("inventory_hostname")
    play = task_vars.get("ansible_play_name")
    given = play_variables(action, task_vars, ("lease_end", "run_id"))
    seconds = lease_seconds(action, task_vars)
    directory = lease_directory(action, task_vars)
    arguments = {
        "token": TOKEN,
        "seconds": seconds,
        "directory": directory,
        "new": play not in MEASURING_PLAYS if new is None else new,
        "owner": {"by": _by(), "run": _run(given.get("run_id")), **_process()},
    }

    def ask(**changed: Any) -> dict[str, Any]:
        answer: dict[str, Any] = action._execute_module(
            module_name="host_lease", module_args={**arguments, **changed}, task_vars=dict(task_vars)
        )
        return answer

    answer = ask()
    if action._task.check_mode:
        return {"warnings": [f"{host}: {answer['msg']}"]} if answer.get("msg") else {}
    other = answer.get("owner") or {}
    ends = play not in MEASURING_PLAYS and str(given.get("lease_end", False)).lower() in ("true", "yes", "1")
    if answer.get("failed") and other and (ends or is_gone(other)):
        answer = ask(state="ended", token=other["token"])
        if not answer.get("failed"):
            answer = ask()
    if answer.get("failed"):
        raise AnsibleActionFail(f"{host}: {answer.get('msg') or 'the lease could not be had'}")
    if answer["taken"]:
        _leave_renewing(action, directory, seconds)
    return {}


def lease_directory(action: ActionBase, task_vars: Mapping[str, Any]) -> str:
    """The folder on the host that holds its lease."""
    return str(play_variables(action, task_vars, ("lease_directory",)).get("lease_directory", DIRECTORY))


def lease_seconds(action: ActionBase, task_vars: Mapping[str, Any]) -> float:
    """How long a host keeps a lease that is not renewed. Raises AnsibleActionFail."""
    given = play_variables(action, task_vars, ("lease_seconds",)).get("lease_seconds", SECONDS)
    with suppress(TypeError, ValueError):
        seconds = float(given)
        if LEAST_SECONDS <= seconds <= MOST_SECONDS:
            return seconds
    raise AnsibleActionFail(
        f"lease_seconds is {given!r}: allowed are seconds from {LEAST_SECONDS:g} to {MOST_SECONDS:g}."
    )


def is_gone(process: Mapping[str, Any]) -> bool:
    """Whether the main process of a run ran here and has ended for certain."""
    here = _process()
    return process.get("machine") == here["machine"] and process.get("began") != _began(process.get("pid"))


def _process() -> dict[str, Any]:
    """This run's main process: no other on its machine, a boot and a namespace, has both pid and start."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = Path("/proc/self/ns/pid").readlink()
    return {"pid": _PID, "began": _began(_PID), "machine": f"{boot} {namespace}"}


def _began(pid: object) -> str | None:
    """When a process began, in the kernel's ticks; None where there is none, or nothing but its exit code."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _by() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _run(run_id: object) -> str:
    """The playbook, and the run where it has a name already."""
    playbooks = ", ".join(Path(name).stem for name in context.CLIARGS.get("args") or ("a playbook",))
    return f"{playbooks} {run_id or ''}".strip()


def _leave_renewing(action: ActionBase, directory: str, seconds: float) -> None:
    """Leave a process that renews the lease until the run is over, and gives it back then."""
    if os.getpid() == _PID:
        raise AnsibleActionFail("a lease is taken in a worker, and this is Ansible's main process.")
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if not os.fork():
            _renew(action, directory, seconds)
    finally:
        # Never back into what the worker was at.
        os._exit(0)


def _renew(action: ActionBase, directory: str, seconds: float) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    # What it would show has nobody who reads it.
    Display()._final_q = None
    os.close(_RUNS[1])
    renewal = shlex.quote(f"{directory}/renewal-{TOKEN}")
    holder = shlex.quote(f"{directory}/holder-{TOKEN}")
    over = select.poll()
    over.register(_RUNS[0], select.POLLHUP)
    while not over.poll(1000 * seconds / RENEWALS):
        # Without its connection it tries again; without its lease it has nothing to renew.
        with suppress(AnsibleError, OSError):
            if action._low_level_execute_command(f"touch -a -c -- {renewal} && test -e {renewal}")["rc"] == 1:
                return
    # Who starts the next run at once finds the host free.
    wait = f"n=0; while test -e {holder} && test $n -lt 100; do n=$((n+1)); sleep 0.1; done"
    with suppress(AnsibleError, OSError):
        action._low_level_execute_command(f"rm -f -- {renewal}; {wait}")


def _give_back() -> None:
    """At the end of the main process: let those who renew know, and wait until they have given back."""
    if os.getpid() != _PID:
        return
    os.close(_RUNS[1])
    os.close(_RENEWS[1])
    select.select([_RENEWS[0]], [], [], GIVEN_BACK_SECONDS)


atexit.register(_give_back)
