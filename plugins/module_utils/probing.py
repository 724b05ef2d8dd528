"""Guests probed one after another, with what each request costs the host's CPUs.

A guest's own clock tells what it waited for, a busy host included. The scheduled time of the threads of its
virtual CPUs (/proc/PID/task/TID/schedstat) tells what the work cost: other guests and ksmd do not move it,
but by the caches that they share.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.guest_channel import ChannelError, RefusalError, ask, domains_by_channel

VCPU = re.compile(r"CPU \d+/(?:KVM|TCG)")
RUN = Path("/run/libvirt/qemu")
PROC = Path("/proc")
# A probe of a length that no guest takes: the request is answered, and nothing is done.
NOTHING = ("probe", "0")
NANOSECONDS = 1e9
# Beyond what is asked for; an emulated guest starts a program for each request.
ANSWER_SECONDS = 180.0


def in_turn(guests: Sequence[str], probes: int) -> list[str]:
    """The guests of so many probes: spread over all of them, each once before one comes again."""
    rounds, rest = divmod(probes, len(guests))
    return [*guests] * rounds + [guests[number * len(guests) // rest] for number in range(rest)]


def vcpu_seconds(domain: str, run: Path = RUN, proc: Path = PROC) -> tuple[float, float] | None:
    """Seconds that a domain's virtual CPUs ran on the host, and waited to run; None where it is not told.

    Source: Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat.
    """
    try:
        tasks = proc / (run / f"{domain}.pid").read_text().strip() / "task"
        threads = [task for task in tasks.iterdir() if VCPU.fullmatch((task / "comm").read_text().strip())]
        times = [(thread / "schedstat").read_text().split() for thread in threads]
    except OSError:
        return None
    if not times:
        return None
    ran, waited = (sum(int(one[place]) for one in times) / NANOSECONDS for place in (0, 1))
    return ran, waited


class Watch:
    """The host's clock and that of a domain's virtual CPUs."""

    def __init__(self, domain: str) -> None:
        """Begin now."""
        self._domain = domain
        self._began, self._vcpu = time.monotonic(), vcpu_seconds(domain)

    def read(self) -> dict[str, float | None]:
        """What went by since, as a record has it."""
        seconds, vcpu = time.monotonic() - self._began, vcpu_seconds(self._domain)
        ran = waited = None
        if self._vcpu is not None and vcpu is not None:
            ran, waited = (
                round(max(0.0, end - begin), 6) for begin, end in zip(self._vcpu, vcpu, strict=True)
            )
        return {"seconds": round(seconds, 6), "run_seconds": ran, "wait_seconds": waited}


def probe_in_turn(
    channels: Mapping[str, str],
    *,
    probes: int,
    seconds: float,
    each: Callable[[int, dict[str, Any]], None] = lambda _number, _probe: None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Probe one guest after another, the others left alone; a guest without an answer is the last one.

    Args:
        channels: guest -> the socket of its port.
        probes: how many in all.
        seconds: what a guest's own probe takes.
        each: called with the number of a probe, from 1, and the probe.

    Returns:
        (probes of a capacity step's record, guest -> why it gave no answer).
    """
    domains, found = domains_by_channel(), []
    for number, name in enumerate(in_turn(sorted(channels), probes), start=1):
        path = Path(channels[name])
        try:
            found.append(_probe(name, path, seconds, domains.get(str(path), "")))
        except ChannelError as error:
            return [*found, {"guest": name, "answer": None}], {name: str(error)}
        each(number, found[-1])
    return found, {}


def _probe(name: str, path: Path, seconds: float, domain: str) -> dict[str, Any]:
    def asked(*words: str) -> tuple[dict[str, Any], dict[str, float | None]]:
        watch = Watch(domain)
        try:
            answer = ask(path, words, ANSWER_SECONDS + seconds, domain=domain)
        except RefusalError:
            if words != NOTHING:
                raise
            answer = {}
        return answer, watch.read()

    # The first request of a guest that was restored is dearer: an emulator translates its code anew.
    asked(*NOTHING)
    _refused, request = asked(*NOTHING)
    answer, probe = asked("probe", str(seconds))
    held, read = asked("verify")
    return {
        "guest": name,
        "answer": answer,
        "request": request,
        "probe": probe,
        "read": read,
        "read_bytes": held["filled_bytes"],
    }
