"""What else on a host had to do with KSM while a cell was measured: it is marked, and kept apart."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.plan.design import MIB
from analysis.records.loading import CellRecords
from analysis.records.models import OtherMergeable
from plugins.module_utils.ksm_probe import COMM_CHARACTERS

# As marks are named among the conditions of a tidy table
OTHERS, TUNERS, IN_USE = "others", "tuners", "ksm_before"


@dataclass(frozen=True)
class Others:
    """Processes of a cell's host that are no guests and offer memory to KSM.

    ``names``: command and pid of each. ``mergeable_bytes``: the most that they offered at once; None where it
    was not read. ``merged_off_bytes``, ``merged_on_bytes``: what KSM had merged of it with KSM off for the
    guests and under the policy, pages that share and that are shared alike.
    """

    names: tuple[str, ...]
    mergeable_bytes: int | None
    merged_off_bytes: int
    merged_on_bytes: int


def others(records: CellRecords) -> Others | None:
    """What others offered in a complete cell, None where nobody did.

    Of records made before sizes were read only those count that had pages merged, as they did then.
    """
    arms = [
        [one for one in arm.observed.other_mergeable if one.mergeable_bytes is not None or one.merged_pages]
        for arm in (records.off, records.on)
    ]
    if not any(arms):
        return None
    off, on = (sum(one.merged_pages for one in arm) * records.page_size_bytes for arm in arms)
    return Others(
        names=tuple(dict.fromkeys(f"{one.command} ({one.pid})" for arm in arms for one in arm)),
        mergeable_bytes=_most(arms),
        merged_off_bytes=off,
        merged_on_bytes=on,
    )


def marks(records: CellRecords) -> dict[str, str]:
    """What sets a complete cell apart from one of a host where nobody else uses KSM; empty for such a one."""
    before = records.provenance.ksm_before
    strange = _tuners(records)
    return {
        **({OTHERS: "present"} if others(records) else {}),
        **({TUNERS: ", ".join(strange)} if strange else {}),
        **({IN_USE: "in use"} if before and (before.run == 1 or before.merged_pages) else {}),
    }


def marks_words(cells: Sequence[CellRecords]) -> list[str]:
    """A sentence for each mark that some of the cells have."""
    sentences = []
    seen = [found for records in cells if (found := others(records)) is not None]
    if seen:
        names = list(dict.fromkeys(name for one in seen for name in one.names))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        offered = [one.mergeable_bytes for one in seen if one.mergeable_bytes is not None]
        size = f" up to {max(offered) / MIB:.0f} MiB" if offered else " memory"
        off, on = ([getattr(one, f"merged_{arm}_bytes") / MIB for one in seen] for arm in ("off", "on"))
        sentences.append(
            f"in {len(seen)} of {len(cells)} cells processes that are no guests offered KSM{size}: "
            f"{', '.join(names[:3])}{more}. Of it {_range(off)} MiB were merged with KSM off, which gross "
            f"and profit leave out, and {_range(on)} MiB under the policy, whose growth they count; KSM's "
            "own memory is that for them, too."
        )
    for mark, what in (
        (TUNERS, "a tuner that is not the policy's ran"),
        (IN_USE, "KSM was in use before the run began"),
    ):
        marked = [mine[mark] for mine in map(marks, cells) if mark in mine]
        if marked:
            named = f" ({'; '.join(sorted(set(marked)))})" if mark == TUNERS else ""
            sentences.append(f"in {len(marked)} of {len(cells)} cells {what}{named}.")
    return sentences


def _most(arms: Sequence[Sequence[OtherMergeable]]) -> int | None:
    sizes = [[one.mergeable_bytes for one in arm if one.mergeable_bytes is not None] for arm in arms]
    return max(map(sum, sizes)) if any(sizes) else None


def _tuners(records: CellRecords) -> list[str]:
    """Those that ran, less the one that the policy itself runs."""
    own = records.on.requested.service.removesuffix(".service")
    ran = {*records.off.observed.tuners, *records.on.observed.tuners}
    return sorted(name for name in ran if name[:COMM_CHARACTERS] != own[:COMM_CHARACTERS])


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"
