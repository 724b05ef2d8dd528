"""On an interruption Ansible runs no `always` section: put the hosts right with the teardown playbook."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, cast

from ansible import context
from ansible.plugins.callback import CallbackBase

from analysis.errors import UserError
from analysis.plan.design import PLAN_FILE
from analysis.progress.interruption import record_interruption
from analysis.progress.lease import TOKEN, TOKEN_VARIABLE
from analysis.progress.matrix import MEASURING_PLAYS, Places, place_of

DOCUMENTATION = """
name: put_right
type: notification
short_description: Restore KSM and remove the guests after an interrupted experiment or capacity run
description:
  - A play that was interrupted leaves its C(always) sections undone. When a measuring play has come to its
    action put_right, before which it changes nothing, and the run ends without its statistics,
    C(teardown.yml) beside its playbook is run with the same inventory.
  - While a measuring play runs, SIGTERM and SIGHUP do what Ctrl-C does, and so does an output that nobody
    reads any more; the first of them counts, and what comes after it disturbs nothing.
  - The cell that was being measured on each host is recorded as failed, with its phase and task; so is that
    of a host that does not answer any more, for which Ansible runs no C(rescue) section either.
"""

TEARDOWN = "teardown.yml"
ACTION = "put_right"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A worker that was told to end tells its module on the host to do so: analysis.progress.module.
WORKER_SECONDS = 40
AGAIN_SECONDS = 5
# Ansible's own exit code
INTERRUPTED = 99


class _Heard:
    """An output of this process: that nobody reads it any more counts as a terminal that was closed.

    Ansible's thread that shows what the workers say would end, and the run wait for ever.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.heard = True

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's own."""
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, as long as somebody reads."""
        with self._unless_gone():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, as long as somebody reads."""
        with self._unless_gone():
            self.stream.flush()

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            if self.heard:
                self.heard = False
                os.kill(os.getpid(), signal.SIGHUP)


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Lives in the main process only."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "put_right"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Be ready for an end that comes without the statistics."""
        super().__init__()
        self.main_process = os.getpid()
        self.measuring = False
        self.owed = False
        self.teardown = Path(TEARDOWN)
        self.run_directory: Path | None = None
        self.places = Places()
        self.become_password = ""
        self.ansible_interrupts: Any = None
        atexit.register(self.put_right)

    def set_play_context(self, play_context: Any) -> None:
        """Keep the password that was asked for: nobody may be there to be asked again."""
        self.become_password = play_context.become_pass or ""

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Find the teardown."""
        self.teardown = Path(playbook._basedir).resolve() / TEARDOWN

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """In a measuring play every end but its own is an interruption."""
        if self.measuring or play.get_name() not in MEASURING_PLAYS or context.CLIARGS.get("check"):
            return
        self.measuring = True
        sys.stdout, sys.stderr = _Heard(sys.stdout), _Heard(sys.stderr)
        self.ansible_interrupts = signal.getsignal(signal.SIGINT)
        for number in SIGNALS:
            # What is ignored from the start, as SIGHUP under nohup, stays so.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._interrupted)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """End as Ansible does on Ctrl-C: it tells its workers and unwinds, and the exit handlers are run."""
        if os.getpid() != self.main_process:
            # A worker just forked, which has no handlers of its own yet.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        # Not by Ansible's own handler: while that tells the workers a further Ctrl-C ends this process.
        _ignore_signals()
        # That handler is a method of what has the workers.
        manager = self.ansible_interrupts.__self__
        sure = _silence_workers(manager._final_q)
        _end_workers([worker for worker in manager._workers if worker])
        if sure:
            raise KeyboardInterrupt
        # Ansible's own end would wait for the rest of what a dead worker had begun to write.
        self.put_right()
        os._exit(INTERRUPTED)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """From its first putting right on the run changes its hosts."""
        self.owed = self.owed or (self.measuring and task.action == ACTION)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Keep where the host is."""
        self.places.note(host.get_name(), place_of(task))

    def v2_runner_on_ok(self, result: Any) -> None:
        """Keep where the run's records are: an interruption is recorded there."""
        if result.task.action == "plan":
            self.run_directory = Path(result.result["run_directory"])

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Record the end of the host's cell, if it was in one; the host puts itself right by its lease."""
        host = result.host.get_name()
        place = self.places.interrupted().get(host)
        if place and self.measuring:
            # What Ansible sets before the reason that the task gave
            why = str(result.result.get("msg")).removeprefix("Task failed: ")
            self._record({host: place}, f"{host} does not answer: {why}")

    def _record(self, places: Mapping[str, tuple[str, str, str]], *message: str) -> None:
        """Mark the cells at these places as failed."""
        if self.run_directory and (self.run_directory / PLAN_FILE).exists():
            try:
                record_interruption(self.run_directory, places, *message)
            except (UserError, OSError) as error:
                _tell(f"The interruption is in no record: {error}")

    def v2_playbook_on_stats(self, _stats: Any) -> None:
        """The play came to its end, its always sections with it."""
        self.owed = False

    def put_right(self) -> None:
        """Record the interruption and run the teardown playbook."""
        if not self.owed or os.getpid() != self.main_process:
            return
        _ignore_signals()
        _tell("\nInterrupted: restoring the KSM settings and removing the guests; what was measured is kept.")
        _end_workers(multiprocessing.active_children())
        self._record(self.places.interrupted())
        options, password = self._teardown_options()
        # Ansible keeps its own terminal from its children, so the lines go through a pipe; and in a session
        # of its own no Ctrl-C reaches it, nor a terminal that is closed.
        with subprocess.Popen(
            [Path(sys.executable).with_name("ansible-playbook"), *options, str(self.teardown)],
            cwd=self.teardown.parent.parent,
            # The hosts' leases are the interrupted run's, which renews them until this one has ended.
            env={**os.environ, TOKEN_VARIABLE: TOKEN},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as teardown:
            if teardown.stdin:
                with suppress(OSError), teardown.stdin as stdin:
                    stdin.write(password)
            for line in teardown.stdout or ():
                _tell(line.rstrip("\n"))
        if teardown.returncode:
            _tell(f"{self.teardown} failed: run `make teardown`.")

    def _teardown_options(self) -> tuple[list[str], str]:
        """The inventory, limit, variables and rights of the interrupted run, as options; what they read."""
        given = context.CLIARGS
        options = []
        for source in given.get("inventory") or ():
            options += ["-i", str(Path(source).resolve()) if Path(source).exists() else source]
        if given.get("subset"):
            options += ["--limit", given["subset"]]
        for variables in given.get("extra_vars") or ():
            options += ["-e", f"@{Path(variables[1:]).resolve()}" if variables.startswith("@") else variables]
        file = given.get("become_password_file")
        if file and file != "-":
            return [*options, "--become-password-file", str(Path(file).resolve())], ""
        if self.become_password:
            return [*options, "--become-password-file", "-"], self.become_password
        return options, ""


def _silence_workers(results: Any) -> bool:
    """Let no worker write to the queue of results any more; whether it is sure that none does.

    One that died while it writes would hold the lock for ever, for which Ansible's own end waits, too.
    """
    # A worker that has it is writing what a thread of this process reads.
    sure: bool = results._wlock.acquire(timeout=WORKER_SECONDS)
    # Theirs is never released; this process, which has to write once more, takes another.
    results._wlock = multiprocessing.Lock()
    return sure


def _end_workers(workers: Sequence[BaseProcess]) -> None:
    """Tell workers to end until they have, for so long as one may need to tell its module.

    One that was about to wait for the lock when it was told first does not heed it: it waits already.
    """
    until = time.monotonic() + WORKER_SECONDS
    while (alive := [one for one in workers if one.is_alive()]) and time.monotonic() < until:
        for worker in alive:
            with suppress(ProcessLookupError):
                os.kill(cast(int, worker.pid), signal.SIGINT)
        # Not sooner: one that is told while it ends what it has begun, its shell, leaves that behind.
        again = time.monotonic() + AGAIN_SECONDS
        for worker in alive:
            worker.join(max(0, again - time.monotonic()))


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _tell(line: str) -> None:
    """Say it, where somebody still listens."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
