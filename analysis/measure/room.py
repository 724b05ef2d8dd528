"""How many more machines like each one fit on a surveyed host: without KSM, with it, and safely.

A further machine like one that is there is taken to need what that one would free by going: its pages that no
other machine has, and what lies outside of its guest's memory. What two of a kind would share besides is not
known from one of them, and not counted; nor is what it would need at its start, before KSM has come by.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.measure.saving import RMAP_ITEM_BYTES
from analysis.measure.survey import SurveyedPages
from analysis.records.survey import SurveyRecord, VirtualMachine


@dataclass(frozen=True)
class Room:
    """Room for more machines like one, bytes and numbers of machines; None where it is not known.

    ``off_bytes``, ``on_bytes``: what one more needs without KSM, and with a perfect one. ``safe_bytes``: when
    nothing of it is shared and all of its memory in use.
    """

    off_bytes: float
    on_bytes: float | None
    safe_bytes: float
    off: int
    on: int | None
    safe: int


def gross_bytes(record: SurveyRecord) -> float | None:
    """What KSM saves on the host now, by its counters; None where the kernel has no KSM."""
    ksm = record.observed.ksm
    if ksm is None:
        return None
    return float(ksm.saved_pages * record.provenance.page_size_bytes)


def free_bytes(record: SurveyRecord) -> float:
    """What is free for more: MemAvailable."""
    return float(record.observed.meminfo["MemAvailable_bytes"])


def own_bytes(machines: Iterable[VirtualMachine]) -> float:
    """KSM's own memory for these machines now, as far as their ksm_stat tells."""
    items = (int((machine.ksm_stat or {}).get("ksm_rmap_items", 0)) for machine in machines)
    return float(sum(items) * RMAP_ITEM_BYTES)


def rooms(record: SurveyRecord, pages: SurveyedPages | None) -> dict[int, Room]:
    """For each machine by its process the room for more like it; none for those on hugetlbfs' own pages."""
    page = record.provenance.page_size_bytes
    free, gross = free_bytes(record), gross_bytes(record) or 0.0
    machines = [machine for machine in record.observed.machines if machine.memory_kind != "hugetlbfs"]
    # What KSM cannot merge needs the same with it.
    on_bytes = {m.pid: _off_bytes(m) for m in machines} | _on_bytes(machines, pages, page) if pages else {}
    free_on = free
    if pages:
        own_more = max(0.0, pages.resident_pages * RMAP_ITEM_BYTES - own_bytes(machines))
        free_on += max(0.0, pages.saving().ideal.pages * page - gross - own_more)
    grown = sum(max(0.0, _safe_bytes(machine, page) - machine.pss_bytes) for machine in machines)
    return {
        machine.pid: Room(
            off_bytes=_off_bytes(machine),
            on_bytes=on_bytes.get(machine.pid),
            safe_bytes=_safe_bytes(machine, page),
            off=_fit(free - gross, _off_bytes(machine)),
            on=_fit(free_on, on_bytes[machine.pid]) if machine.pid in on_bytes else None,
            safe=_fit(free - grown, _safe_bytes(machine, page)),
        )
        for machine in machines
    }


def _on_bytes(machines: list[VirtualMachine], pages: SurveyedPages, page: int) -> dict[int, float]:
    """What one more of each needs under a perfect KSM.

    Of its contents that others have it needs a part: one page serves at most max_page_sharing of them.
    """
    by_pid = {machine.pid: machine for machine in machines}
    needed = {}
    for counted, alone in zip(pages.census.machines, pages.alone_pages(), strict=True):
        alone_pages = min(alone, counted.resident_pages)
        gone = (counted.resident_pages - alone_pages) * (1 - 1 / pages.max_page_sharing)
        own = counted.resident_pages * RMAP_ITEM_BYTES
        needed[counted.pid] = max(0.0, _off_bytes(by_pid[counted.pid]) - gone * page + own)
    return needed


def _off_bytes(machine: VirtualMachine) -> float:
    """Anonymous memory, page tables and guest memory that is shared; QEMU's own files are there already."""
    shared = machine.resident_bytes if machine.memory_kind == "shared" else 0
    return float(machine.anonymous_bytes + shared + machine.page_tables_bytes)


def _safe_bytes(machine: VirtualMachine, page: int) -> float:
    """All of the guest's memory, what lies outside it, and KSM's rmap_items for it."""
    outside = max(0.0, _off_bytes(machine) - machine.resident_bytes)
    own = machine.memory_bytes / page * RMAP_ITEM_BYTES if machine.is_mergeable else 0
    return machine.memory_bytes + outside + own


def _fit(free: float, each: float) -> int:
    return max(0, math.floor(free / each)) if each > 0 else 0
