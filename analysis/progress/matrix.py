"""Where a run is in its matrix of cells: what Ansible's callbacks tell, turned into lines for a person.

Nothing here needs Ansible: the callbacks matrix and put_right read a task's place with ``place_of`` and pass
on what happens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

MEASURING_PLAYS = ("Measure the cells", "Measure the capacity")
FIRST_PHASE = "restore"
# Action -> the phase that it belongs to, where its task names none itself
PHASES = {
    "workload": "load",
    "application": "performance",
    "survey_record": "survey",
    "census_record": "census",
}
# What a module shows by analysis.progress.module, and the saving in it (module measure_series)
MODULE_LINE = re.compile(r"    \[(?P<host>[^\]]+)\] (?P<text>.*)")
# What a long module's action shows first: analysis.progress.module.show_begin
BEGINS = "begins: "
SAVED = re.compile(r"saved \d+ MiB \((?P<mib>[\d.]+) MiB/VM\)")


@dataclass(frozen=True)
class Place:
    """The cell, the phase within it (empty where the task names none) and the task."""

    cell_id: str
    phase: str
    task: str


class Task(Protocol):
    """What is used of Ansible's task."""

    name: str
    action: str
    args: Mapping[str, Any]

    def get_vars(self) -> Mapping[str, Any]:
        """Return its own variables, and those of the blocks and includes around it."""


def named_phase(action: str, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
    """The phase that a task names by what it records, its variable ``phase`` or its action; empty: none."""
    name = action.rpartition(".")[2]
    if name == "measure_record" and arguments.get("phase") != "failed":
        return str(arguments.get("phase", "merge"))
    return str(variables.get("phase") or PHASES.get(name, ""))


def place_of(task: Task) -> Place | None:
    """Where a task stands: the include's loop variable ``cell``, and the phase that it names.

    In a capacity run, whose cells are not known before, the loop variable ``arm`` is in the cell's place.
    None outside of both.
    """
    variables = task.get_vars()
    cell, arm = variables.get("cell"), variables.get("arm")
    if isinstance(cell, Mapping) and "cell_id" in cell:
        cell_id = str(cell["cell_id"])
    elif isinstance(arm, Mapping) and "policy" in arm:
        cell_id = f"arm {arm['policy']}, boot {arm['boot']}"
    else:
        return None
    return Place(cell_id, named_phase(task.action, task.args, variables), task.name or task.action)


class Places:
    """The last place of each host that is within a cell."""

    def __init__(self) -> None:
        """No host is."""
        self._places: dict[str, Place] = {}

    def note(self, host: str, place: Place | None) -> None:
        """A task begins on a host. One that names no phase belongs to the phase before it."""
        if place is None:
            self._places.pop(host, None)
            return
        former = self._places.get(host)
        within = former.phase if former and former.cell_id == place.cell_id else FIRST_PHASE
        self._places[host] = Place(place.cell_id, place.phase or within, place.task)

    def interrupted(self) -> dict[str, tuple[str, str, str]]:
        """Host -> cell_id, phase and task, as record_interruption takes them."""
        return {host: (place.cell_id, place.phase, place.task) for host, place in self._places.items()}


@dataclass
class _Running:
    """The cell that is measured now; the hosts are in lockstep."""

    cell_id: str
    began: float
    phase: str = ""
    told: str = ""  # the task of a long module, in a capacity run
    hosts: list[str] = field(default_factory=list)
    next_phases: dict[str, str] = field(default_factory=dict)  # of a task that may yet be skipped
    saved: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # host -> in which phase, as words
    missing: list[tuple[str, str]] = field(default_factory=list)  # host, and what it has not
    boot_seconds: float = 0.0


@dataclass(frozen=True)
class _Took:
    cell: Mapping[str, Any]
    seconds: float


class MatrixProgress:
    """Lines about the cells of one run.

    Args:
        clock: seconds, from any zero; the lines count from the first call.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Nothing is planned yet."""
        self._clock = clock
        self._start = clock()
        self._cells: list[Mapping[str, Any]] = []
        self._pending: set[str] = set()
        self._several = False
        self._running: _Running | None = None
        self._took: list[_Took] = []
        self._boots: dict[int, float] = {}
        self._boots_begun: set[int] = set()

    def stamp(self, text: str) -> str:
        """A line with the time since the start, minutes and seconds."""
        minutes, seconds = divmod(int(self._clock() - self._start), 60)
        return f"[{minutes:3d}:{seconds:02d}] {text}"

    def planned(self, cells: Sequence[Mapping[str, Any]], pending: Mapping[str, Iterable[str]]) -> list[str]:
        """The cells of the run in their order, and those still to be measured on each hypervisor."""
        self._cells = list(cells)
        self._pending = {cell_id for cell_ids in pending.values() for cell_id in cell_ids}
        self._several = len(pending) > 1
        done = len(self._cells) - len(self._pending)
        kept = f", {done} of them measured before" if done else ""
        number = "1 cell" if len(self._cells) == 1 else f"{len(self._cells)} cells"
        return [self.stamp(number + kept)]

    def task_started(self, host: str, place: Place | None) -> list[str]:
        """A task begins on a host, outside any cell where it has no place; or it is about to be skipped.

        So a new phase is told when the task shows that it works, by its first line or its result.
        """
        lines = []
        if self._running and (place is None or place.cell_id != self._running.cell_id):
            lines += self.cell_ended()
        if place is None:
            return lines
        if self._running is None and self._cell(place.cell_id) is None:
            lines.append(self.stamp(f"{place.cell_id}: begins"))
        running = self._running or self._begin(place.cell_id)
        if host not in running.hosts:
            running.hosts.append(host)
        begins = self._cell(place.cell_id) is not None and not running.phase
        running.next_phases[host] = place.phase or (FIRST_PHASE if begins else "")
        return lines

    def works(self, host: str) -> list[str]:
        """The host's task is not skipped."""
        running = self._running
        phase = running.next_phases.pop(host, "") if running else ""
        if running is None or not phase or phase == running.phase:
            return []
        running.phase = phase
        return [self._line(phase)]

    def module_begins(self, host: str, task: str) -> list[str]:
        """A long module begins: in a capacity run, whose phases are not known, its task is told."""
        if self._running is None or self._cell(self._running.cell_id) is not None:
            return self.works(host)
        on = f" on {host}" if self._several else ""
        # A task that runs several long modules is one line.
        former, self._running.told = self._running.told, f"{task}{on}"
        return [self._line(f"{task}{on}")] if former != f"{task}{on}" else []

    def _begin(self, cell_id: str) -> _Running:
        self._running = _Running(cell_id, self._clock())
        cell = self._cell(cell_id)
        if cell is not None:
            self._boots_begun.add(cell["boot"])
        return self._running

    def line_shown(self, host: str, text: str) -> list[str]:
        """A module showed a line: the saving in it is kept."""
        match = SAVED.search(text)
        if match and self._running:
            self._running.saved[host] = match["mib"]
        return self.works(host)

    def booted(self, host: str, seconds: float) -> list[str]:
        """A host's guests were booted anew for the cell, which no later cell of this boot has to do."""
        if self._running is None:
            return []
        self._running.boot_seconds = max(self._running.boot_seconds, seconds)
        on = f" on {host}" if self._several else ""
        return [self._line(f"its guests were booted anew in {duration(seconds)}{on}")]

    def failed(self, host: str, task: str) -> list[str]:
        """A task failed on a host, and nothing that ignores it."""
        running = self._running
        if running is None:
            return []
        lines = self.works(host)
        if host in running.failed:
            return lines
        running.failed[host] = f" in {running.phase}" if running.phase else ""
        on = f" on {host}" if self._several else ""
        return [*lines, self._line(f"failed{on}{running.failed[host]}, task {task!r}")]

    def missing(self, host: str, action: str) -> list[str]:
        """A host's survey or census could not be had; the cell is measured all the same."""
        if self._running:
            self._running.missing.append((host, PHASES[action]))
        return self.works(host)

    def cell_ended(self) -> list[str]:
        """The running cell is over, if there is one: what it took and saved, and the time left."""
        running, self._running = self._running, None
        if running is None:
            return []
        took = self._clock() - running.began
        self._pending.discard(running.cell_id)
        cell = self._cell(running.cell_id)
        if cell is not None and not running.failed:
            self._took.append(_Took(cell, took - running.boot_seconds))
        if cell is not None and running.boot_seconds:
            self._boots[cell["boot"]] = running.boot_seconds
        if set(running.failed) >= set(running.hosts):
            text = f"failed{','.join(sorted(set(running.failed.values())))} after {duration(took)}"
        else:
            text = f"done in {duration(took)}{self._results(running)}"
        left = self.seconds_left()
        after = f"; {about(left)} left" if left else ""
        return [self.stamp(f"{self._name(running.cell_id)}: {text}{after}")]

    def _results(self, running: _Running) -> str:
        """What the cell gave on each host, the host named where there are several."""
        parts = []
        for host in running.hosts:
            on = f" on {host}" if self._several else ""
            if host in running.failed:
                parts.append(f"failed{on}{running.failed[host]}")
            elif host in running.saved:
                parts.append(f"saved {running.saved[host]} MiB/VM{on}")
            parts += [f"no {what}{on}" for where, what in running.missing if where == host]
        return "".join(f", {part}" for part in parts)

    def seconds_left(self) -> float | None:
        """What the cells still to be measured will take; None where none has been measured yet.

        A cell takes the mean of those of its kind (workload, policy, guests) that this run has measured,
        else, by the guest, of those of its workload, else of all. Where this run has booted guests, each
        boot that no cell has begun yet will be booted too.
        """
        waiting = [cell for cell in self._cells if cell["cell_id"] in self._pending]
        if not waiting:
            return 0.0
        if not self._took:
            return None
        seconds = sum(self._estimate(cell) for cell in waiting)
        new_boots = {cell["boot"] for cell in waiting} - self._boots_begun
        return seconds + (len(new_boots) * fmean(self._boots.values()) if self._boots else 0.0)

    def _estimate(self, cell: Mapping[str, Any]) -> float:
        for names in (("workload", "policy", "guests"), ("workload",), ()):
            like = [
                took.seconds * cell["guests"] / took.cell["guests"]
                for took in self._took
                if all(took.cell[name] == cell[name] for name in names)
            ]
            if like:
                return fmean(like)
        raise ValueError("no cell has been measured")

    def _cell(self, cell_id: str) -> Mapping[str, Any] | None:
        return next((cell for cell in self._cells if cell["cell_id"] == cell_id), None)

    def _name(self, cell_id: str) -> str:
        numbers = {cell["cell_id"]: number for number, cell in enumerate(self._cells, start=1)}
        return f"cell {numbers[cell_id]} of {len(numbers)} {cell_id}" if cell_id in numbers else cell_id

    def _line(self, text: str) -> str:
        return self.stamp(f"{self._name(self._running.cell_id)}: {text}" if self._running else text)


def duration(seconds: float) -> str:
    """A time that was measured: 49 s, 4 min 50 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def about(seconds: float) -> str:
    """A time that was estimated, no finer than it can be: about 40 s, about 6 min, about 2 h 5 min."""
    if seconds < 95:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"about {minutes} min"
    return f"about {minutes // 60} h {minutes % 60} min"
