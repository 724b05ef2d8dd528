"""The model of guests with one size of memory, told for guests with another one.

What a guest's system holds is taken to be the same, but for its kernel's struct page of each page; what a
workload fills takes the rest. That cannot hold across 512 MiB: above it the guest's kernel turns transparent
huge pages on and keeps 5 % of its memory free for them (mm/huge_memory.c, mm/khugepaged.c).
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from analysis.measure.saving import RMAP_ITEM_BYTES
from analysis.model.sharing import HOST, Model, Sample, Saving, SharingError
from analysis.plan.design import MIB

HUGE_PAGES_ABOVE_BYTES = 512 * MIB
# include/linux/mm_types.h, on 64 bits
_STRUCT_PAGE_BYTES = 64

# By workload, the part of the available memory that it fills with each content
Fills = Mapping[str, Mapping[str, float]]


def resized(model: Model, guest_memory_bytes: int, fills: Fills) -> Model:
    """The model for guests of this size of memory. The misses are taken to be as large a guest.

    Raises SharingError where the model cannot tell: across 512 MiB, and where the system alone would not fit.
    """
    more = guest_memory_bytes - model.guest_memory_bytes
    if not more:
        return model
    sizes = (
        f"guests of {guest_memory_bytes / MIB:.0f} MiB from guests of {model.guest_memory_bytes / MIB:.0f}"
    )
    if (guest_memory_bytes > HUGE_PAGES_ABOVE_BYTES) != (model.guest_memory_bytes > HUGE_PAGES_ABOVE_BYTES):
        raise SharingError(
            f"{sizes} cannot be forecast: above {HUGE_PAGES_ABOVE_BYTES / MIB:.0f} MiB a guest's kernel "
            "turns huge pages on and keeps memory free for them; measure guests on the same side of it."
        )
    least = max((model.resident_bytes(w) or 0.0) - _filled(model, w) for w in model.workloads)
    if guest_memory_bytes <= least:
        raise SharingError(
            f"{sizes} cannot be forecast: what these hold beside a fill, {least / MIB:.0f} MiB, would not "
            "fit: ask for more."
        )
    kernel = more * _STRUCT_PAGE_BYTES / model.page_size_bytes
    room = more - kernel
    each = {w: kernel + room * sum(fills[w].values()) for w in model.workloads}
    ksm = {w: size / model.page_size_bytes * RMAP_ITEM_BYTES for w, size in each.items()}
    saving = {w: _with_more(model.saving[w], fills[w], room, model.max_page_sharing) for w in model.workloads}

    def sample(old: Sample) -> Sample:
        w, n = old.workload, old.guests
        if w not in saving:
            return old
        size, own = n * each[w], 0.0 if old.ksm_bytes is None else n * ksm[w]
        saved = saving[w].saved(n) - model.saving[w].saved(n)
        return replace(
            old,
            off_bytes=old.off_bytes + size,
            on_bytes=old.on_bytes + size - saved + own,
            guests_off_bytes=old.guests_off_bytes + size,
            guests_on_bytes=old.guests_on_bytes + size - saved,
            gross_bytes=old.gross_bytes + saved,
            ksm_bytes=None if old.ksm_bytes is None else old.ksm_bytes + own,
        )

    known = {w for w in model.workloads if model.scope == HOST and model.ksm_bytes(w) is not None}
    return replace(
        model,
        guest_memory_bytes=guest_memory_bytes,
        samples=tuple(map(sample, model.samples)),
        guest_bytes={w: size + each[w] for w, size in model.guest_bytes.items()},
        added={name: size + (ksm[name] if name in known else 0.0) for name, size in model.added.items()},
        saving=saving,
    )


def _filled(model: Model, workload: str) -> float:
    """What a guest filled at least."""
    return min(sample.filled_bytes for sample in model.samples if sample.workload == workload)


def _with_more(saving: Saving, fill: Mapping[str, float], room_bytes: float, max_page_sharing: int) -> Saving:
    """A saving with so much more to fill: of equal pages one of max_page_sharing stays, of random all."""
    alike = sum(fill.get(content, 0.0) for content in ("constant", "zero"))
    within = room_bytes * alike * (1 - 1 / max_page_sharing)
    between = room_bytes * fill.get("shared", 0.0)

    def copies(guests: int) -> int:
        return math.ceil(guests / max_page_sharing)

    return Saving(
        saved=lambda guests: saving.saved(guests) + guests * within + (guests - copies(guests)) * between,
        pool=lambda guests: saving.pool(guests) + copies(guests) * between,
        within_bytes=saving.within_bytes + within,
        between_bytes=saving.between_bytes + between,
    )
