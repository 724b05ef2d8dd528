"""Which machines would share more on another host: counted from sketches, estimated from what was counted.

A sketch has one in m of all contents by their hash, the same ones on each host that has them, so a count of
what two sketches have in common is a binomial one of 1/m.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm  # type: ignore[import-untyped]

from analysis.records.placement import PlacementRecord

CONFIDENCE = 0.95
_Z = float(norm.ppf((1 + CONFIDENCE) / 2))

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sketch:
    """Hashes of some of a machine's contents, each once."""

    hypervisor: str
    pid: int
    hashes: Hashes


@dataclass(frozen=True)
class Move:
    """A machine that shares so many pages with others on its host, and would so many on another."""

    hypervisor: str
    pid: int
    to: str
    here_pages: float
    there_pages: float
    half_width_pages: float

    @property
    def gain_pages(self) -> float:
        """Pages that the move would save."""
        return self.there_pages - self.here_pages


def count(sketches: Sequence[Sketch]) -> list[dict[str, object]]:
    """For each machine how many contents of its sketch another machine of each host has, hosts by name."""
    hosts = sorted({one.hypervisor for one in sketches})
    table = _Table.of(sketches, hosts)
    return [
        {
            "hypervisor": one.hypervisor,
            "pid": one.pid,
            "contents": len(one.hashes),
            "shared": table.shared(one, hosts.index(one.hypervisor)),
        }
        for one in sketches
    ]


def moves(record: PlacementRecord) -> list[Move]:
    """For each machine its best move to another host if it surely gains, the largest gain first."""
    found = []
    for machine in record.machines:
        here = machine.shared[record.hypervisors.index(machine.hypervisor)]
        there, to = max(
            (shared, host)
            for shared, host in zip(machine.shared, record.hypervisors, strict=True)
            if host != machine.hypervisor
        )
        # At the widest: that what is shared here and what is shared there have nothing in common
        half = _Z * math.sqrt(record.one_in * (record.one_in - 1) * (here + there))
        move = Move(machine.hypervisor, machine.pid, to, record.one_in * here, record.one_in * there, half)
        if move.gain_pages > half:
            found.append(move)
    return sorted(found, key=lambda move: -move.gain_pages)


@dataclass(frozen=True)
class _Table:
    """Of each content, ascending, the hosts that have it with the number of their machines that do.

    ``starts``: of each content its first place in ``hosts`` and ``holders``, and one more for the end. So a
    machine is compared with all hosts at once: with each by itself a thousand hosts would take hours.
    """

    number: int
    contents: Hashes
    starts: Places
    hosts: Places
    holders: Places

    @classmethod
    def of(cls, sketches: Sequence[Sketch], names: Sequence[str]) -> "_Table":
        place = {name: number for number, name in enumerate(names)}
        every = np.concatenate([np.empty(0, np.uint64), *(one.hashes for one in sketches)])
        contents, which = np.unique(every, return_inverse=True)
        on = np.repeat(
            np.array([place[one.hypervisor] for one in sketches], np.int64),
            [len(one.hashes) for one in sketches],
        )
        pairs, holders = np.unique(which * len(names) + on, return_counts=True)
        starts = np.searchsorted(pairs, np.arange(len(contents) + 1) * len(names))
        return cls(len(names), contents, starts, pairs % max(1, len(names)), holders)

    def shared(self, one: Sketch, own: int) -> list[int]:
        """How many of its contents each host has in another machine than this one."""
        places = np.searchsorted(self.contents, one.hashes)
        first, lengths = self.starts[places], self.starts[places + 1] - self.starts[places]
        ends = np.cumsum(lengths)
        rows = np.arange(lengths.sum()) + np.repeat(first - (ends - lengths), lengths)
        hosts = self.hosts[rows]
        kept = self.holders[rows] > (hosts == own)
        shared: list[int] = np.bincount(hosts[kept], minlength=self.number).tolist()
        return shared
