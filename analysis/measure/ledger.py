"""The reconciled ledger: what leads from KSM's own counters to each of the other three measures.

MemAvailable is MemFree, plus the file pages on the LRU lists, plus KReclaimable, less the watermarks
(mm/show_mem.c, si_mem_available). MemFree in turn is MemTotal less what is in use. So memory that moves
between free, file cache and reclaimable slab does not change the measure, and what does is: anonymous
memory, unreclaimable slab, page tables, kernel stacks, per-CPU data, and cache that is not on the file LRU
lists (shmem, mlocked, swap cache). Each is read by itself; what they leave is the rest, never hidden in an
item.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.errors import UserError
from analysis.measure.saving import Saving, Unknown, Value, less, saving
from analysis.records.loading import CellRecords
from analysis.records.models import SnapshotObserved

FLAG_FRACTION = 0.05

SPLIT = "zero pages freed by splitting huge pages"
TOUCHED = "guest memory freed (+), first touched (-)"
SWAPPED = "guest memory swapped out"
GUEST_REST = "rest: guest memory otherwise"
OTHERS = "anonymous memory of other processes"
RMAP = "KSM's rmap_items"
SLAB = "other unreclaimable slab"
PAGE_TABLES = "page tables"
STACKS = "kernel stacks, per-CPU data"
CACHE = "cache that is not reclaimable (shmem, mlocked)"
PER_CPU = "free pages on per-CPU lists"
HOST_REST = "rest: host otherwise"
FILES = "files and shared memory of the guests"

SOURCES = {
    SPLIT: "fall of the guests' Anonymous of smaps_rollup beyond KSM's zero pages and swap, at most that of "
    "their AnonHugePages; no counter credits it (mm/migrate.c, try_to_map_unused_to_zeropage)",
    TOUCHED: "what else of that fall there is, or its rise: a merged page stays in Anonymous",
    SWAPPED: "rise of the guests' SwapPss (Documentation/filesystems/proc.rst, smaps)",
    GUEST_REST: "fall of the guests' Pss_Anon that none of these explains",
    OTHERS: "fall of AnonPages less that of the guests' Pss_Anon",
    RMAP: "rmap_items x 64 B, by gross less general_profit, else by ksm_stat "
    "(Documentation/admin-guide/mm/ksm.rst)",
    SLAB: "SUnreclaim less the rmap_items, which lie in it (Documentation/filesystems/proc.rst, meminfo)",
    PAGE_TABLES: "PageTables, SecPageTables (Documentation/filesystems/proc.rst, meminfo)",
    STACKS: "KernelStack, Percpu (Documentation/filesystems/proc.rst, meminfo)",
    CACHE: "Cached + Buffers + SwapCached less Active(file) + Inactive(file)",
    PER_CPU: "fall of the pagesets' counts in /proc/zoneinfo: free, and in no line of meminfo",
    HOST_REST: "vmalloc, watermarks and whatever no line of meminfo counts",
    FILES: "fall of the guests' Pss other than Pss_Anon",
}


class LedgerError(UserError):
    """A cell without the counters that a ledger needs."""


@dataclass(frozen=True)
class Item:
    """One step from a measure to another, in bytes of the whole host; positive is memory saved."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Reconciliation:
    """From one measure to another: ``start_bytes`` and the items sum exactly to ``end_bytes``."""

    start: str
    start_bytes: int
    items: tuple[Item, ...]
    end: str
    end_bytes: int


@dataclass(frozen=True)
class Ledger:
    """The ledger of one cell, in bytes of the whole host.

    general_profit needs no reconciliation: it is gross less the rmap_items, an item of ``available``.
    ``parts`` says in which lines MemAvailable itself rose.
    ``flagged`` when a rest, or both together, is above 5 % of the host's change; ``largest_rest`` of these.
    """

    cell_id: str
    guests: int
    available: Reconciliation
    pss: Reconciliation
    parts: tuple[Item, ...]
    rest_bytes: int
    largest_rest: Item
    flagged: bool

    @property
    def rest_fraction(self) -> float | None:
        """The rest over the host's change; None when the host did not change."""
        change = abs(self.available.end_bytes)
        return self.rest_bytes / change if change else None


def ledger(records: CellRecords) -> Ledger:
    """Reconcile the four measures of a complete cell.

    Raises LedgerError naming a counter that is needed and missing.
    """
    off, on = records.off.observed, records.on.observed
    seen = saving(records)
    memory = _Fall(off.host.meminfo, on.host.meminfo, records.cell.cell_id)
    guests = _guest_fall(off, on, records.cell.cell_id)
    gross = _needed(seen.gross, records.cell.cell_id)
    available = _needed(seen.mem_available, records.cell.cell_id)

    swapped = -guests["swap"]
    gone = guests["Anonymous_bytes"] - _zero_bytes(records) - swapped
    split = min(max(gone, 0), max(guests["AnonHugePages_bytes"], 0))
    guest_rest = guests["Pss_Anon_bytes"] - gross - swapped - gone
    in_guests = [
        Item(SPLIT, split),
        Item(TOUCHED, gone - split),
        Item(SWAPPED, swapped),
        Item(GUEST_REST, guest_rest),
    ]

    # Where it is not known, the slab's whole rise stands under other slab.
    rmap = 0 if isinstance(seen.ksm_own, Unknown) else -int(seen.ksm_own)
    on_host = [
        Item(OTHERS, memory["AnonPages"] - guests["Pss_Anon_bytes"]),
        Item(RMAP, rmap),
        Item(SLAB, memory["SUnreclaim"] - rmap),
        Item(PAGE_TABLES, memory["PageTables"] + memory.optional("SecPageTables")),
        Item(STACKS, memory["KernelStack"] + memory.optional("Percpu")),
        Item(
            CACHE,
            memory["Cached"]
            + memory["Buffers"]
            + memory["SwapCached"]
            - memory["Active(file)"]
            - memory["Inactive(file)"],
        ),
        Item(PER_CPU, _per_cpu_bytes(seen)),
    ]
    host_rest = available - gross - sum(item.bytes for item in (*in_guests, *on_host))
    rests = (
        Item(GUEST_REST, guest_rest),
        Item(HOST_REST, host_rest),
        Item("both rests together", guest_rest + host_rest),
    )
    return Ledger(
        cell_id=records.cell.cell_id,
        guests=records.cell.guests,
        available=Reconciliation(
            "gross", gross, (*in_guests, *on_host, Item(HOST_REST, host_rest)), "mem_available", available
        ),
        pss=Reconciliation(
            "gross",
            gross,
            (*in_guests, Item(FILES, guests["Pss_bytes"] - guests["Pss_Anon_bytes"])),
            "pss",
            guests["Pss_bytes"],
        ),
        parts=_parts(memory, available),
        rest_bytes=guest_rest + host_rest,
        largest_rest=max(rests, key=lambda rest: abs(rest.bytes)),
        flagged=any(abs(rest.bytes) > FLAG_FRACTION * abs(available) for rest in rests),
    )


class _Fall(dict[str, int]):
    """How far each line of meminfo fell from off to on, in bytes."""

    def __init__(self, off: Mapping[str, int], on: Mapping[str, int], cell_id: str) -> None:
        super().__init__(
            {
                name.removesuffix("_bytes"): off[name] - on[name]
                for name in off
                if name.endswith("_bytes") and name in on
            }
        )
        self._cell_id = cell_id

    def __missing__(self, name: str) -> int:
        raise LedgerError(f"{self._cell_id}: its records lack {name} of /proc/meminfo, so it has no ledger.")

    def optional(self, name: str) -> int:
        """The fall of a line that some kernels lack: what it would show is in the rest then."""
        return self.get(name, 0)


def _guest_fall(off: SnapshotObserved, on: SnapshotObserved, cell_id: str) -> dict[str, int]:
    names = ("Pss_bytes", "Pss_Anon_bytes", "Anonymous_bytes", "AnonHugePages_bytes")
    fall = {**dict.fromkeys(names, 0), "swap": 0}
    for sign, arm in ((1, off), (-1, on)):
        for guest in arm.guests.values():
            smaps = guest.smaps_rollup
            for name in names:
                if name not in smaps:
                    raise LedgerError(
                        f"{cell_id}: its records lack {name.removesuffix('_bytes')} of smaps_rollup, "
                        "so it has no ledger."
                    )
                fall[name] += sign * smaps[name]
            fall["swap"] += sign * smaps.get("SwapPss_bytes", smaps.get("Swap_bytes", 0))
    return fall


def _per_cpu_bytes(seen: Saving) -> int:
    # A kernel that hides them leaves their change in the rest.
    gained = less(seen.mem_available, seen.freed_host)
    return 0 if isinstance(gained, Unknown) else int(gained)


def _zero_bytes(records: CellRecords) -> int:
    """What KSM mapped to the zero page, which is in no Rss; 0 where the kernel does not do so."""
    off, on = (arm.observed.host.ksm.ksm_zero_pages or 0 for arm in (records.off, records.on))
    return (on - off) * records.page_size_bytes


def _needed(value: Value, cell_id: str) -> int:
    if isinstance(value, Unknown):
        raise LedgerError(f"{cell_id}: {value.reason}, so it has no ledger.")
    return int(value)


def _parts(memory: _Fall, available: int) -> tuple[Item, ...]:
    reclaimable = "KReclaimable" if "KReclaimable" in memory else "SReclaimable"
    counted = [
        Item("MemFree", -memory["MemFree"]),
        Item("file pages", -memory["Active(file)"] - memory["Inactive(file)"]),
        Item(reclaimable, -memory[reclaimable]),
    ]
    return (*counted, Item("watermarks", available - sum(item.bytes for item in counted)))
