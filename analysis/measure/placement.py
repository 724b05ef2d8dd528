"""Which machines would share more on another host: counted from sketches, estimated from what was counted.

A sketch has one in m of all contents by their hash, the same ones on each host that has them, so a count of
what two sketches have in common is a binomial one of 1/m.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm  # type: ignore[import-untyped]

from analysis.records.placement import PlacementRecord

CONFIDENCE = 0.95
_Z = float(norm.ppf((1 + CONFIDENCE) / 2))

Hashes = npt.NDArray[np.uint64]


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
    # Of each host how many machines hold each content: its own machine is none of the others.
    held: Mapping[str, tuple[Hashes, npt.NDArray[np.int64]]] = {
        host: _holders([one.hashes for one in sketches if one.hypervisor == host]) for host in hosts
    }
    return [
        {
            "hypervisor": one.hypervisor,
            "pid": one.pid,
            "contents": len(one.hashes),
            "shared": [
                _shared(one.hashes, *held[host], others_than=int(host == one.hypervisor)) for host in hosts
            ],
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


def _holders(sketches: Sequence[Hashes]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    contents, holders = np.unique(np.concatenate([np.empty(0, np.uint64), *sketches]), return_counts=True)
    return contents, holders


def _shared(mine: Hashes, contents: Hashes, holders: npt.NDArray[np.int64], *, others_than: int) -> int:
    _, _, places = np.intersect1d(mine, contents, assume_unique=True, return_indices=True)
    return int(np.count_nonzero(holders[places] > others_than))
