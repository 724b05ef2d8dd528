"""Guests paused through libvirt and ksmd at rest for a moment, and all running again whatever happens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import libvirt
from ansible.module_utils.ksm_probe import Roots, read_required
from ansible.module_utils.stopping import STOP_SIGNALS

# What the guardian is told: to resume a domain, to write a value to run; and that this has been done
RESUME, RUN, DONE = "resume ", "run ", "done "


class GuestError(Exception):
    """A guest cannot be paused, or ksmd not stopped; the message is one sentence for the user."""


class Guardian:
    """A process that lets guests and ksmd run again should this one be killed outright.

    It holds the reading end of a pipe: at its end every writer is gone, and what was promised in it and not
    done is due.
    """

    def __init__(self, uri: str, roots: Roots) -> None:
        """Fork it; before any connection to libvirt, which no two processes may share."""
        reader, self.writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.setsid()
                os.close(self.writer)
                # Ansible waits until nobody holds the module's output open.
                nowhere = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(nowhere, descriptor)
                for number in STOP_SIGNALS:
                    signal.signal(number, signal.SIG_IGN)
                with os.fdopen(reader) as lines:
                    self._put_right(due(lines.read().splitlines()), uri, roots)
            finally:
                os._exit(0)
        os.close(reader)

    @staticmethod
    def _put_right(words: list[str], uri: str, roots: Roots) -> None:
        for word in words:
            if word.startswith(RUN):
                write_run(roots, word.removeprefix(RUN))
        domains = [word.removeprefix(RESUME) for word in words if word.startswith(RESUME)]
        if domains:
            connection = libvirt.open(uri)
            for domain in domains:
                try:
                    connection.lookupByName(domain).resume()
                except libvirt.libvirtError:
                    continue  # it was not paused yet, or has ended

    def promise(self, word: str) -> None:
        """Tell what will be due, before the change that asks for it."""
        os.write(self.writer, f"{word}\n".encode())

    def done(self, word: str) -> None:
        """What was promised has been done."""
        os.write(self.writer, f"{DONE}{word}\n".encode())

    def dismiss(self) -> None:
        """End it; it does first what is due."""
        os.close(self.writer)
        os.waitpid(self._pid, 0)


def due(lines: list[str]) -> list[str]:
    """What was promised and not done, in the order of the promises."""
    promised = dict.fromkeys(line for line in lines if not line.startswith(DONE))
    for line in lines:
        if line.startswith(DONE):
            promised.pop(line.removeprefix(DONE), None)
    return list(promised)


def write_run(roots: Roots, value: str) -> None:
    """Write to the file run of KSM; with 0 it returns when ksmd has stopped (ksm_thread_mutex, mm/ksm.c)."""
    try:
        (roots.ksm / "run").write_text(f"{value}\n", encoding="ascii")
    except OSError as error:
        raise GuestError(f"{roots.ksm / 'run'} refused {value}: {error.strerror}") from None


class KsmdStopped:
    """ksmd at rest, from entering to leaving; what is merged stays so."""

    def __init__(self, roots: Roots, guardian: Guardian) -> None:
        """Nothing is stopped yet."""
        self._roots = roots
        self._guardian = guardian
        self.run_before = 0

    def __enter__(self) -> KsmdStopped:
        """Stop it if it runs."""
        self.run_before = self._run()
        if self.run_before == 1:
            self._guardian.promise(f"{RUN}1")
            write_run(self._roots, "0")
        return self

    def __exit__(self, *_error: object) -> None:
        """Let it run if it did."""
        if self.run_before == 1:
            write_run(self._roots, "1")
            self._guardian.done(f"{RUN}1")

    def check(self) -> None:
        """GuestError where something else let it run."""
        if self.run_before == 1 and self._run() != 0:
            raise GuestError("something else on the host switched KSM on while its pages were counted")

    def _run(self) -> int:
        return int(read_required(self._roots.ksm / "run"))


class Pause:
    """Guests paused at the same time, from entering to leaving."""

    def __init__(self, connection: Any, domains: Mapping[str, str], guardian: Guardian) -> None:
        """Nothing is paused yet; domains: guest -> libvirt domain."""
        self._domains = {name: connection.lookupByName(domain) for name, domain in domains.items()}
        self._guardian = guardian
        self._ours: list[str] = []
        self._begin = 0.0
        self.seconds = 0.0

    def __enter__(self) -> Pause:
        """Pause every guest that runs; on a failure those that were paused run again."""
        self._begin = time.monotonic()
        try:
            for name, domain in self._domains.items():
                state = domain.state()[0]
                if state in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED):
                    continue
                if state not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED):
                    raise GuestError(
                        f"domain {domain.name()} of {name} does not run, so its pages can't be counted"
                    )
                self._guardian.promise(f"{RESUME}{domain.name()}")
                self._ours.append(name)
                domain.suspend()
        except BaseException:
            self._resume()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """Let those run again that ran before."""
        self._resume()

    def was_paused(self, name: str) -> bool:
        """Whether the guest was paused before."""
        return name not in self._ours

    def _resume(self) -> None:
        previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
        failed = []
        for name in self._ours:
            domain = self._domains[name]
            try:
                if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                    domain.resume()
                self._guardian.done(f"{RESUME}{domain.name()}")
            except libvirt.libvirtError as error:
                failed.append(f"{domain.name()} ({error})")
        self.seconds = time.monotonic() - self._begin
        for number, handler in previous.items():
            signal.signal(number, handler)
        if failed:
            raise GuestError(
                f"these domains may still be paused, resume them with virsh: {', '.join(failed)}"
            )


@contextmanager
def connected(uri: str) -> Iterator[Any]:
    """Open libvirt, without its habit of printing errors to the terminal."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise GuestError(f"libvirt does not answer at {uri}: {error}; run the kvm_host role first") from None
    try:
        yield connection
    finally:
        connection.close()
