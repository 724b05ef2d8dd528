"""Run a long Ansible module and show its progress while it works, for action plugins on the controller.

The module runs under Ansible's own async wrapper: its result file and its time limit work over every
connection and with become, and the connection stays free for the polls, each of which looks for a second on
the host and brings what is new: lines, or the result. (A synchronous module beside a polling thread would
share one become plugin, which keeps the prompt that it waits for, between two threads.)

The progress file also tells the module that somebody waits for it (plugins/module_utils/progress.py): it is
made before the module starts, touched at each poll, and its removal asks the module to end. A signal to the
module's process group is only the quicker way: on a busy host the wrapper may start the module before it has
a group of its own, and a controller that is killed while the module is being started knows no job to signal.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.vars.clean import remove_internal_keys

from analysis.plan.design import REFUSE
from analysis.plan.policies import runs_unit
from analysis.plan.variables import plain_data
from analysis.progress.lease import lease_seconds
from analysis.progress.matrix import BEGINS

# One poll looks so often and so long on the host whether the module has ended.
LOOKS = 5
LOOK_SECONDS = 0.2
# Looks for the first line of a module in the background: half a minute
LOOKS_FOR_BEGIN = 150
CANCEL_LIMIT_SECONDS = 30
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SERIES_SETUP_SECONDS = 120
# In a host's /run: the one series that is in the background there
SERIES = "ksm-testbed-series.progress"
# The module's own limit for an answer
WORKLOAD_SECONDS = 1200
APPLICATION_STEPS = 5
ASYNC_KEYS = ("ansible_job_id", "started", "finished", "results_file")
WRAPPER_GRACE_SECONDS = 30
# How modules outside of ansible-core write their results
MODULES_PROFILE = "legacy"


class _Stopped(BaseException):
    """The controller was told to stop, or has gone."""


def run_with_progress(  # noqa: PLR0917 -- the order of Ansible's own _execute_module comes first
    action: ActionBase,
    module_name: str,
    module_args: dict[str, Any],
    task_vars: dict[str, Any],
    timeout_seconds: float,
    run_root: str = "/run",
) -> dict[str, Any]:
    """Run a module on the action's host and display each line that it appends to its progress file.

    Args:
        action: the action plugin that calls; its connection, become and check mode apply.
        module_name: the module.
        module_args: its arguments; progress_path is added to them.
        task_vars: the variables that the action was given.
        timeout_seconds: the module is killed after this time; longer than any limit of its own.
        run_root: the folder on the host for the progress file, which is of this run of the module alone.

    Returns:
        The module's result, as `_execute_module` would return it; a failure has failed=True and its own msg.

    On Ctrl-C, or when the controlling process dies, the module is told to end. A host that does not answer is
    asked for as long as it keeps the run's lease; then AnsibleConnectionFailure is raised.
    """
    if action._task.check_mode:  # async and check mode exclude each other; a check is short
        result: dict[str, Any] = action._execute_module(
            module_name=module_name, module_args=module_args, task_vars=task_vars
        )
        return result
    show_begin(action, task_vars)
    progress_path = f"{run_root}/ksm-testbed-{module_name}-{secrets.token_hex(8)}.progress"
    module_args = {**module_args, "progress_path": progress_path}
    job: dict[str, Any] = {}
    with _StopSignals() as signals:
        try:
            with signals.later():
                job.update(_make(action, progress_path))
            if not job:
                job.update(start_module(action, module_name, module_args, task_vars, timeout_seconds))
            result = job
            if "ansible_job_id" in job and not job.get("failed"):
                result = _follow(action, job, task_vars, progress_path, timeout_seconds, signals=signals)
        except AnsibleConnectionFailure:
            raise  # the host cannot be told
        except BaseException:
            signals.quiet = True
            _cancel(action, job, progress_path)
            raise
    _shell(action, f"rm -f -- {_files(job, progress_path)}")
    if result.get("failed") and result.get("msg") == "Timeout exceeded":
        result["msg"] = f"{module_name} did not end within {timeout_seconds:.0f} s and was killed"
    return {name: value for name, value in result.items() if name not in ASYNC_KEYS}


def show_begin(action: ActionBase, task_vars: dict[str, Any]) -> None:
    """Show that the action's task works on its host: it is not skipped."""
    name = action._task.name or action._task.action
    Display().display(f"    [{task_vars.get('inventory_hostname', '')}] {BEGINS}{name}")


def run_series(
    action: ActionBase,
    task_vars: dict[str, Any],
    requested: dict[str, Any],
    *,
    guests: int,
    roots: dict[str, str],
    domains: Mapping[str, str] | None = None,
    start_ksm: bool = True,
    until: str = "converged",
    duration_seconds: float | None = None,
) -> dict[str, Any]:
    """Run the module measure_series and display its progress.

    Args:
        action, task_vars: as for run_with_progress.
        requested: `requested` of a record: its convergence, sample_interval_seconds and, where given, others
            and service.
        guests: their number, for the progress.
        roots: proc_root, sys_root and run_root.
        domains: guest -> libvirt domain, of those that must run all the while.
        start_ksm, until, duration_seconds: as in the module; with told it ends after the duration, too.

    Returns: the module's result; a failure has failed=True.
    """
    rule = requested["convergence"]
    limit = float(rule["timeout_seconds"] if until == "converged" else duration_seconds or 0)
    arguments = {
        "start_ksm": start_ksm,
        "may_stop": runs_unit(requested.get("service", "")),
        "others": requested.get("others", REFUSE),
        "interval_seconds": requested["sample_interval_seconds"],
        "until": until,
        "duration_seconds": duration_seconds,
        "timeout_seconds": limit,
        **{name: rule[name] for name in ("min_full_scans", "window_scans", "threshold_percent")},
        "guests": guests,
        "domains": dict(domains or {}),
        **roots,
    }
    return run_with_progress(
        action, "measure_series", arguments, task_vars, limit + SERIES_SETUP_SECONDS, roots["run_root"]
    )


def begin_series(
    action: ActionBase,
    task_vars: dict[str, Any],
    arguments: dict[str, Any],
    timeout_seconds: float,
    run_root: str = "/run",
) -> dict[str, Any]:
    """Begin a series in the background, its first sample taken, that ends when end_series says so.

    Args:
        action, task_vars: as for run_with_progress.
        arguments: of the module measure_series, all but what ends it.
        timeout_seconds: the series ends then by itself, also where its controller has gone.
        run_root: the folder on the host for the file SERIES, whose removal ends it: a run that is interrupted
            meanwhile leaves that to whoever puts the host right.

    Returns: what end_series takes, or a result with failed=True.
    """
    path = f"{run_root}/{SERIES}"
    # Nobody asks for its progress, so that is no sign that nobody waits.
    limits = {"timeout_seconds": timeout_seconds, "patience_seconds": timeout_seconds}
    given = {**arguments, **limits, "until": "told", "progress_path": path}
    job = _make(action, path) or start_module(
        action, "measure_series", given, task_vars, timeout_seconds + WRAPPER_GRACE_SECONDS
    )
    if job.get("failed") or job.get("unreachable"):
        _shell(action, f"rm -f -- {shlex.quote(path)}")
        return job
    _shell(
        action,
        f"n={LOOKS_FOR_BEGIN}; while [ ! -s {shlex.quote(path)} ] && {_runs(job)} && [ $n -gt 0 ]; "
        f"do n=$((n-1)); sleep {LOOK_SECONDS}; done",
    )
    return {**{name: job[name] for name in ("ansible_job_id", "results_file")}, "progress_path": path}


def end_series(action: ActionBase, task_vars: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """End a series in the background; the module's result, failed=True where it failed or had ended."""
    path = job["progress_path"]
    file = shlex.quote(path)
    lasted = _shell(action, f"[ -e {file} ] && echo lasted; rm -f -- {file}").strip()
    asked = {"jid": job["ansible_job_id"], "_async_dir": str(Path(job["results_file"]).parent)}
    while True:
        result: dict[str, Any] = _async_status(action, task_vars, {**asked, "mode": "status"})
        if result.get("finished", True) or result.get("unreachable"):
            _async_status(action, task_vars, {**asked, "mode": "cleanup"})
            if not (lasted or result.get("failed") or result.get("unreachable")):
                return {
                    "failed": True,
                    "msg": f"{path} was removed by something else, so the host's memory was not sampled to "
                    "the end: measure again, and run nothing else of the testbed on this host meanwhile",
                }
            return {name: value for name, value in result.items() if name not in ASYNC_KEYS}
        time.sleep(LOOK_SECONDS)


def _async_status(action: ActionBase, task_vars: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = action._execute_module(
        module_name="ansible.legacy.async_status", module_args=arguments, task_vars=task_vars
    )
    return result


def run_workload(action: ActionBase, task_vars: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the module workload and display each guest's answer as it comes.

    Args:
        action, task_vars: as for run_with_progress.
        arguments: the module's, as templated or plain.

    Returns: the module's result; a failure has failed=True.
    """
    plain = plain_data(arguments)
    limit = float(plain.get("timeout_seconds", WORKLOAD_SECONDS)) + WRAPPER_GRACE_SECONDS
    return run_with_progress(action, "workload", plain, task_vars, limit)


def run_application(
    action: ActionBase, task_vars: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Run the module application and display each guest's answer as it comes; as run_workload."""
    plain = plain_data(arguments)
    # Each guest in its turn, all commands of each, every one twice
    limit = sum(
        2 * (one["ready_seconds"] + APPLICATION_STEPS * one["timeout_seconds"])
        for one in plain["applications"].values()
    )
    return run_with_progress(action, "application", plain, task_vars, float(limit + WRAPPER_GRACE_SECONDS))


def start_module(
    action: ActionBase,
    module_name: str,
    module_args: dict[str, Any],
    task_vars: dict[str, Any],
    timeout_seconds: float,
) -> dict[str, Any]:
    """Start a module in the background; the job, as Ansible has it, or a result with failed=True."""
    # _execute_module takes the wrapper's time limit from the task alone.
    previous = action._task.async_val
    action._task.async_val = max(1, round(timeout_seconds))
    try:
        job: dict[str, Any] = action._execute_module(
            module_name=module_name, module_args=module_args, task_vars=task_vars, wrap_async=True
        )
    finally:
        action._task.async_val = previous
    return job


def _follow(
    action: ActionBase,
    job: dict[str, Any],
    task_vars: dict[str, Any],
    progress_path: str,
    timeout_seconds: float,
    *,
    signals: _StopSignals,
) -> dict[str, Any]:
    """Show new lines until the job has ended; its result."""
    results_file, path = shlex.quote(job["results_file"]), shlex.quote(progress_path)
    parent = multiprocessing.parent_process()
    host = task_vars.get("inventory_hostname", "")
    deadline = time.monotonic() + timeout_seconds + WRAPPER_GRACE_SECONDS
    patience = lease_seconds(action, task_vars)
    silent_since: float | None = None
    shown_bytes = 0
    while True:
        # An exception that a signal raises within a finalizer is lost, so the signal is asked for, too.
        if signals.received is not None or (parent is not None and os.getppid() != parent.pid):
            raise _Stopped
        # The state is read before the lines, so that the last lines of a module that ends between are kept.
        # Setting the access time tells the module that somebody waits.
        poll = (
            f"n={LOOKS}; while {_runs(job)}; "
            f"do n=$((n-1)); [ $n -lt 0 ] && break; sleep {LOOK_SECONDS}; done; "
            f"if [ $n -lt 0 ]; then echo; "
            f"else {{ [ -s {results_file} ] && cat -- {results_file} && echo; }} || echo no result; fi; "
            f"touch -a -c -- {path}; tail -c +{shown_bytes + 1} -- {path} 2>/dev/null || true"
        )
        try:
            ended, _, text = _shell(action, poll).partition("\n")
            whole_lines = text[: text.rfind("\n") + 1]
            shown_bytes += len(whole_lines.encode("utf-8", "surrogateescape"))
            for line in whole_lines.splitlines():
                Display().display(f"    [{host}] {line}")
            if ended:
                return _result(action, ended)
            silent_since = None
        except AnsibleConnectionFailure as error:
            # The job goes on without the connection, which may come back.
            now = time.monotonic()
            if silent_since is None:
                silent_since = now
                Display().display(f"    [{host}] it does not answer, and is asked again for {patience:g} s")
            if now > min(deadline, silent_since + patience):
                raise AnsibleConnectionFailure(
                    f"{host} has not answered for {now - silent_since:.0f} s ({error}): where it lives it "
                    f"puts itself right, {patience:g} s after it was last heard of"
                ) from None
            time.sleep(LOOKS * LOOK_SECONDS)


def _runs(job: dict[str, Any]) -> str:
    """A command that succeeds while a job has no result."""
    # This is what the wrapper writes first, and puts the result in its place at once.
    started = f'{{"started": true, "finished": false, "ansible_job_id": "{job["ansible_job_id"]}"}}'
    return f"grep -qsxF -- {shlex.quote(started)} {shlex.quote(job['results_file'])}"


def _result(action: ActionBase, text: str) -> dict[str, Any]:
    """The result of a module from what it printed, as _execute_module reads it."""
    result: dict[str, Any] = action._parse_returned_data({"stdout": text}, MODULES_PROFILE)
    remove_internal_keys(result)
    return result


def _shell(action: ActionBase, command: str) -> str:
    """Run a line of shell on the host; its output with a terminal's line ends undone."""
    answer = action._low_level_execute_command(command, encoding_errors="surrogateescape")
    return str(answer["stdout"]).replace("\r\n", "\n")


def _make(action: ActionBase, progress_path: str) -> dict[str, Any]:
    """Make the progress file, empty and private, whatever is in its place; a failed result if it can't be."""
    path = shlex.quote(progress_path)
    answer = action._low_level_execute_command(f"rm -f -- {path} && (umask 077 && set -C && : > {path})")
    if not answer["rc"]:
        return {}
    said = str(answer["stderr"] or answer["stdout"]).strip()
    return {"failed": True, "msg": f"{progress_path} cannot be made: {said}"}


def _files(job: dict[str, Any], progress_path: str) -> str:
    """What a job leaves on the host, quoted for a shell."""
    return " ".join(shlex.quote(path) for path in (progress_path, job.get("results_file")) if path)


class _StopSignals:
    """Within it the first stop signal raises _Stopped, and no later one does: Ansible sends two at once.

    A second exception would end the clean-up that the first one began. Ansible's own handler ends this worker
    at once, and the module on the host would go on alone; so it gets the signal at the end.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.quiet = False

    def _stop(self, signal_number: int, _frame: FrameType | None) -> None:
        self.received = self.received or signal_number
        if not self.quiet:
            self.quiet = True
            raise _Stopped

    @contextmanager
    def later(self) -> Iterator[None]:
        """A stop signal within it is heeded at its end: what the host still makes could not be removed."""
        self.quiet = True
        yield
        self.quiet = self.received is not None
        if self.quiet:
            raise _Stopped

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.received is not None:
            os.kill(os.getpid(), self.received)


def _cancel(action: ActionBase, job: dict[str, Any], progress_path: str) -> None:
    """Tell the module to end and leave nothing behind; never longer than CANCEL_LIMIT_SECONDS."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(CANCEL_LIMIT_SECONDS)
    kill = ""
    if "ansible_job_id" in job:
        # The wrapper's command line holds the job's number; the brackets keep pgrep from finding this shell.
        number = str(job["ansible_job_id"]).partition(".")[0]
        kill = (
            f"for pid in $(pgrep -f 'async_wrapper.* [{number[0]}]{number[1:]} '); "
            "do kill -s TERM -- -$pid; done 2>/dev/null; "
        )
    # The removal comes first: it is all that a module needs which no signal reaches.
    _shell(action, f"rm -f -- {shlex.quote(progress_path)}; {kill}rm -f -- {_files(job, progress_path)}")
    signal.alarm(0)
