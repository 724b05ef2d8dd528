"""What a cell saved: one object, worked out in one place, each part known or unknown with the reason."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from analysis.plan.design import MIB
from analysis.records.loading import CellRecords
from analysis.records.models import Guest, Host, Knobs, SnapshotRecord, StepRecord

# sizeof(struct ksm_rmap_item) on 64-bit kernels: Documentation/admin-guide/mm/ksm.rst.
RMAP_ITEM_BYTES = 64

# Values of a saving by their names in the registry of quantities
PER_VM = (
    "freed_mib_per_vm",
    "freed_host_mib_per_vm",
    "gross_mib_per_vm",
    "general_profit_mib_per_vm",
    "pss_mib_per_vm",
    "ksm_own_mib_per_vm",
    "mem_available_mib_per_vm",
)
OF_HOST = ("used_off_mib", "used_on_mib", "used_available_off_mib", "used_available_on_mib")

# The two ways of freed part above both: on a quiet host they differ by 20 MiB of it or less
# (docs/measurement.md), whatever the guests hold.
PARTED_BYTES = 32 * MIB
PARTED_FRACTION = 0.01


@dataclass(frozen=True)
class Unknown:
    """A value that the records do not tell; ``reason`` is one sentence without a full stop."""

    reason: str


Value = float | Unknown

NO_PSS_ANON = Unknown(
    "its kernel (before 5.4) has no Pss_Anon in smaps_rollup, so the guests' own memory is not known"
)
UNCOUNTED_ZEROS = Unknown("its kernel uses zero pages without counting them")


@dataclass(frozen=True)
class Saving:
    """What one cell saved, KSM off to on, in bytes of the whole host; positive is memory saved.

    Attributes:
        guests: number of guests.
        gross: growth of (pages_sharing + ksm_zero_pages) x page size.
        general_profit: growth of the kernel's own net figure, gross less the rmap_items.
        ksm_own: growth of KSM's own memory, see :func:`ksm_own_bytes`.
        pss: fall of the PSS of the guests' QEMU processes, with what huge pages split on the way freed.
        mem_available: rise of MemAvailable, as the paper measured (of a MemTotal that stays as it is).
        freed_guests: pss less ksm_own, what the guests gave back. Other programs do not move it.
        guests_use: PSS of the guests' QEMU processes and KSM's own memory under the policy.
        freed_host: rise of MemAvailable and of the free pages on per-CPU lists, what the host got back.
        used_off, used_on: use of the host, see :func:`used_bytes`.
        used_available_off, used_available_on: MemTotal - MemAvailable, as the paper measured.
    """

    guests: int
    gross: Value
    general_profit: Value
    ksm_own: Value
    pss: Value
    mem_available: Value
    freed_guests: Value
    guests_use: Value
    freed_host: Value
    used_off: Value
    used_on: Value
    used_available_off: Value
    used_available_on: Value

    @property
    def freed(self) -> Value:
        """Memory freed, the headline: by the guests (docs/measurement.md says on what evidence)."""
        return self.freed_guests

    def per_vm_mib(self, name: str) -> Value:
        """One of the values, for each guest in MiB."""
        value: Value = getattr(self, name)
        return value if isinstance(value, Unknown) else value / self.guests / MIB

    def quantities(self) -> dict[str, Value]:
        """The values by their names in the registry of quantities, in MiB for each guest or of the host."""
        host: dict[str, Value] = {name: getattr(self, name.removesuffix("_mib")) for name in OF_HOST}
        return {
            **{name: self.per_vm_mib(name.removesuffix("_mib_per_vm")) for name in PER_VM},
            **{n: value if isinstance(value, Unknown) else value / MIB for n, value in host.items()},
        }


def saving(cell: CellRecords) -> Saving:
    """What a complete cell saved."""
    return saving_of(cell.off, cell.on, guests=cell.cell.guests)


def saving_of(off: SnapshotRecord | StepRecord, on: SnapshotRecord | StepRecord, *, guests: int) -> Saving:
    """What was saved between two records of the same guests, KSM off and on.

    Of a step of a capacity run, which reads no guest, what the guests tell is unknown.
    """
    before, after = _arm(off), _arm(on)
    pss = less(before["pss"], after["pss"])
    own = less(after["ksm_own"], before["ksm_own"])
    return Saving(
        guests=guests,
        gross=less(after["gross"], before["gross"]),
        general_profit=less(after["general_profit"], before["general_profit"]),
        ksm_own=own,
        pss=pss,
        mem_available=less(before["used_available"], after["used_available"]),
        freed_guests=less(pss, own),
        guests_use=plus(after["pss"], after["ksm_own"]),
        freed_host=less(before["used"], after["used"]),
        used_off=before["used"],
        used_on=after["used"],
        used_available_off=before["used_available"],
        used_available_on=after["used_available"],
    )


def parted(seen: Saving) -> float | None:
    """Bytes of freed_host less freed_guests where the two part by more than the bound; else None.

    Something else than the guests then took or gave memory between the two arms: the host's is not KSM's.
    None, too, where either is unknown.
    """
    apart = less(seen.freed_host, seen.freed_guests)
    if isinstance(apart, Unknown) or isinstance(seen.freed_guests, Unknown):
        return None
    return apart if abs(apart) > max(PARTED_BYTES, PARTED_FRACTION * abs(seen.freed_guests)) else None


def used_bytes(host: Host, page_size_bytes: int) -> Value:
    """What a host uses: MemTotal - MemAvailable, less the free pages on the per-CPU lists.

    MemAvailable does not count these (mm/show_mem.c), and how many there are is chance: tens to hundreds of
    MiB from one reading to the next.
    """
    if host.per_cpu_free_pages is None:
        return Unknown("free pages on per-CPU lists were not read")
    return used_available_bytes(host) - host.per_cpu_free_pages * page_size_bytes


def used_available_bytes(host: Host) -> float:
    """MemTotal - MemAvailable of a host, as the paper measured."""
    return float(host.meminfo["MemTotal_bytes"] - host.meminfo["MemAvailable_bytes"])


def withheld_bytes(host: Host) -> Value:
    """What is free or cache and MemAvailable does not count: the kernel's reserve, and part of the cache.

    MemAvailable leaves out half of the file cache, and of the slabs that can be reclaimed, up to the low
    watermark of each (si_mem_available, mm/show_mem.c): how much that is follows from the files that other
    programs have mapped.
    """
    slabs = host.meminfo.get("KReclaimable_bytes", host.meminfo.get("SReclaimable_bytes"))
    files = [host.meminfo.get(f"{name}(file)_bytes") for name in ("Active", "Inactive")]
    parts = [part for part in (*files, slabs) if part is not None]
    if len(parts) < 3:
        return Unknown("the file cache was not read")
    return float(host.meminfo["MemFree_bytes"] + sum(parts) - host.meminfo["MemAvailable_bytes"])


def others_bytes(host: Host, guests: Mapping[str, Guest]) -> Value:
    """What programs that are no guests hold: the host's anonymous memory less that of the guests' processes.

    A merged page is one anonymous page of the host, and its parts in the guests' PSS add up to it.
    """
    if not guests:
        return Unknown("the guests' processes were not read")
    return less(float(host.meminfo["AnonPages_bytes"]), anonymous_bytes(guests))


def anonymous_bytes(guests: Mapping[str, Guest]) -> Value:
    """The guests' own anonymous memory: the sum of Pss_Anon of their processes."""
    if any("Pss_Anon_bytes" not in guest.smaps_rollup for guest in guests.values()):
        return NO_PSS_ANON
    return float(sum(guest.smaps_rollup["Pss_Anon_bytes"] for guest in guests.values()))


def gross_bytes(host: Host, knobs: Knobs, page_size_bytes: int) -> Value:
    """What KSM has saved at one moment, by its counters: (pages_sharing + ksm_zero_pages) x page size.

    Source: Documentation/admin-guide/mm/ksm.rst. A kernel without the ksm_zero_pages counter still maps
    to its zero page when use_zero_pages is 1, uncounted: then the sum is not known.
    """
    if host.ksm.ksm_zero_pages is None and str(knobs.get("use_zero_pages", 0)) == "1":
        return UNCOUNTED_ZEROS
    return float(host.ksm.saved_pages * page_size_bytes)


def ksm_own_bytes(host: Host, guests: Mapping[str, Guest], knobs: Knobs, page_size_bytes: int) -> Value:
    """KSM's own memory at one moment: its rmap_items, of 64 B for each page that ksmd has scanned.

    By gross less general_profit; on a kernel without it by the guests' ksm_stat, which counts the same items;
    else by KSM's counters of pages, which every kernel has: pages_volatile is the rmap_items less the others
    (mm/ksm.c, pages_volatile_show).
    """
    profit = host.ksm.general_profit
    gross = gross_bytes(host, knobs, page_size_bytes)
    if profit is not None and not isinstance(gross, Unknown):
        return gross - profit
    items = known(map(rmap_items, guests.values()))
    if items and not isinstance(items, Unknown):
        return sum(items) * RMAP_ITEM_BYTES
    pages = (host.ksm.pages_shared, host.ksm.pages_sharing, host.ksm.pages_unshared, host.ksm.pages_volatile)
    counted = [count for count in pages if count is not None]
    if len(counted) == len(pages):
        return float(sum(counted) * RMAP_ITEM_BYTES)
    return items if isinstance(items, Unknown) else Unknown("the guests' processes were not read")


def rmap_items(guest: Guest) -> Value:
    """KSM's rmap_items for a guest, by its ksm_stat."""
    found = None if guest.ksm_stat is None else guest.ksm_stat.get("ksm_rmap_items")
    return Unknown("its kernel has neither general_profit nor ksm_stat") if found is None else float(found)


def pss_bytes(guests: Mapping[str, Guest]) -> Value:
    """Sum of the PSS of the guests' QEMU processes: a merged page counts once, split over its mappings.

    What the kernel maps to its zero page, for KSM or where a split huge page was all zeros, is in no PSS.
    """
    if not guests:
        return Unknown("the guests' processes were not read")
    return float(sum(guest.smaps_rollup["Pss_bytes"] for guest in guests.values()))


def less(minuend: Value, subtrahend: Value) -> Value:
    """A difference; unknown, for the first reason, where either is."""
    if isinstance(minuend, Unknown):
        return minuend
    return subtrahend if isinstance(subtrahend, Unknown) else minuend - subtrahend


def plus(one: Value, other: Value) -> Value:
    """A sum; unknown, for the first reason, where either is."""
    found = known((one, other))
    return found if isinstance(found, Unknown) else sum(found)


def known(values: Iterable[Value]) -> list[float] | Unknown:
    """The values when all are known; else why the first of the others is not."""
    found = []
    for value in values:
        if isinstance(value, Unknown):
            return value
        found.append(value)
    return found


def _arm(record: SnapshotRecord | StepRecord) -> dict[str, Value]:
    host = record.observed.host
    guests = record.observed.guests if isinstance(record, SnapshotRecord) else {}
    knobs, page = record.provenance.ksm_knobs, record.provenance.page_size_bytes
    profit = host.ksm.general_profit
    return {
        "gross": gross_bytes(host, knobs, page),
        "general_profit": Unknown("its kernel has no general_profit") if profit is None else float(profit),
        "ksm_own": ksm_own_bytes(host, guests, knobs, page),
        "pss": pss_bytes(guests),
        "used": used_bytes(host, page),
        "used_available": used_available_bytes(host),
    }
