"""What no record can tell alone: whether those of a cell belong together, and whether a run is a copy.

Each check returns what is wrong in one sentence without its full stop, "" where nothing is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.plan.design import ALLOW, Cell
from analysis.plan.policies import KEEP, PACER, runs_unit
from analysis.records.models import (
    AfterRecord,
    CapacityProvenance,
    CensusRecord,
    ChurnRecord,
    MergeRecord,
    Phase,
    Provenance,
    SnapshotRecord,
    VerifyRecord,
)

# What a service that tunes KSM, such as ksmtuned, sets by itself.
_SERVICE_KNOBS = frozenset({"run", "pages_to_scan", "sleep_millisecs"})
# Services whose daemon is among a record's tuners while it runs
_DAEMONS = {PACER: PACER, "ksmtuned.service": "ksmtuned"}

# The digest covers what is told apart anyway; of the start, only from what is a condition; whether KSM was in
# use before is a mark (analysis/measure/others.py).
_NO_CONDITION = {"design_digest", "start", "ksm_before"}

# Constant from one arm to the other. Not so the knobs: with KSM off they say nothing.
_SAME_IN_BOTH_ARMS = (
    "kernel_release",
    "page_size_bytes",
    "qemu_version",
    "accelerator",
    "image_digest",
    "guest_memory_bytes",
    "thp",
)


@dataclass(frozen=True)
class Measured:
    """The four records of a cell."""

    off: SnapshotRecord
    merge: MergeRecord
    on: SnapshotRecord
    verify: VerifyRecord

    @property
    def all(self) -> tuple[SnapshotRecord | MergeRecord | VerifyRecord, ...]:
        """In the order in which they are named in texts."""
        return (self.off, self.merge, self.on, self.verify)


def identity_problem(record: Phase | CensusRecord, run_id: str, cell: Cell) -> str:
    """Whether a record is of this cell of this run."""
    same = record.run_id == run_id and record.cell == cell
    return "" if same else "is the record of another cell or run"


def cell_problem(cell: Cell, records: Measured) -> str:
    """The first thing that is wrong with a cell that has all of its records."""
    checks: tuple[Callable[[Cell, Measured], str], ...] = (
        _guests_differ,
        # Said first: it names the knob, its values and when, and is why conditions differ.
        _merge_disturbed,
        _service_ended_before,
        _conditions_differ,
        _knobs_changed,
        _treatments_differ,
        _merged_before,
        _others_merged,
        _swapped,
        _verdicts_contradict,
    )
    return next((problem for check in checks if (problem := check(cell, records))), "")


def self_tuned(knobs: Mapping[str, Any], service: str) -> frozenset[str]:
    """The knobs that KSM or a tuner sets by itself, so that their values are no condition of a measurement.

    run is the protocol's own; the advisor sets pages_to_scan anew at each scan.
    """
    if service:
        return _SERVICE_KNOBS
    adaptive = str(knobs.get("advisor_mode", "none")).strip() not in ("none", "")
    return frozenset({"run", "pages_to_scan"} if adaptive else {"run"})


def conditions(
    provenance: Provenance | CapacityProvenance,
    requested: Mapping[str, Any],
    *,
    service: str = "",
    merges: bool = True,
    guests: bool = True,
) -> dict[str, Any]:
    """What measurements must have in common, as flat names: the host, its settings, and what was asked for.

    Args:
        provenance: of the record; of its start only from what the guests began is a condition.
        requested: what was asked for and is no setting of KSM.
        service: the tuner of the policy, as in ``requested`` of a record.
        merges: False with KSM off, where its settings say nothing.
        guests: False where none runs, so that none began.
    """
    knobs = provenance.ksm_knobs if merges else {}
    tuned = self_tuned(knobs, service)
    start = provenance.start if guests else None
    return flat(
        {
            **provenance.model_dump(exclude=_NO_CONDITION),
            "ksm_knobs": {name: value for name, value in knobs.items() if name not in tuned},
            "start": {} if start is None else {"from": start.origin},
            "requested": requested,
        }
    )


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted names."""
    items: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            items.update(flat(value, f"{prefix}{name}."))
        else:
            items[f"{prefix}{name}"] = value
    return items


def _guests_differ(cell: Cell, records: Measured) -> str:
    off, on = records.off.observed.guests, records.on.observed.guests
    for kind, seen in (("off", off), ("on", on)):
        if len(seen) != cell.guests:
            return f"{kind} saw {len(seen)} guests of {cell.guests}"
        apart = sorted(n for n, guest in seen.items() if guest.mergeable_bytes < cell.guest_memory_bytes)
        if apart:
            return f"KSM could not merge all memory of {', '.join(apart)}: it is not private, or not advised"
    changed = sorted(name for name, seen in off.items() if name not in on or on[name].pid != seen.pid)
    return f"off and on saw different processes for {', '.join(changed)}" if changed else ""


def _conditions_differ(_cell: Cell, records: Measured) -> str:
    off, merge, on = (record.provenance for record in (records.off, records.merge, records.on))
    differing = [name for name in _SAME_IN_BOTH_ARMS if getattr(off, name) != getattr(on, name)]
    if differing:
        return f"off and on were measured with different {', '.join(differing)}"
    tuned = self_tuned(on.ksm_knobs, records.on.requested.service)
    differing = [
        f"ksm_knobs.{name}"
        for name in sorted(merge.ksm_knobs.keys() | on.ksm_knobs.keys())
        if name not in tuned and merge.ksm_knobs.get(name) != on.ksm_knobs.get(name)
    ]
    return f"merge and on were measured with different {', '.join(differing)}" if differing else ""


def series_problem(record: MergeRecord | AfterRecord | ChurnRecord) -> str:
    """Whether somebody set a knob, or stopped KSM, while a series was taken, or its policy's daemon ended."""
    asked, since = (
        record.requested,
        "KSM was switched on" if record.kind == "merge" else f"{record.kind} began",
    )
    tuned = self_tuned(record.provenance.ksm_knobs, asked.service)
    protocol = frozenset() if runs_unit(asked.service) else {"run"}
    for change in record.observed.knob_changes:
        if change.knob not in tuned - protocol:
            return f"{change.words} {change.seconds:.0f} s after {since}"
    tuners = record.observed.tuners
    return "" if tuners is None else _service_ended(asked.service, tuners, f"the series {record.kind} ended")


def _merge_disturbed(_cell: Cell, records: Measured) -> str:
    return series_problem(records.merge)


def _service_ended_before(_cell: Cell, records: Measured) -> str:
    asked, on = records.on.requested, records.on.observed
    return _service_ended(asked.service, on.tuners, "the on record was taken")


def _service_ended(service: str, tuners: Iterable[str], when: str) -> str:
    """Whether the policy's daemon ended, as the testbed's own does where somebody else sets its knobs."""
    daemon = _DAEMONS.get(service, "")
    return f"{daemon} had ended by itself when {when}" if daemon and daemon not in tuners else ""


def _knobs_changed(_cell: Cell, records: Measured) -> str:
    """Whether somebody set a knob to another value than was asked for."""
    asked = records.on.requested
    tuned = self_tuned(records.on.provenance.ksm_knobs, asked.service)
    for kind, record in (("merge", records.merge), ("on", records.on)):
        seen = {name: str(value) for name, value in record.provenance.ksm_knobs.items()}
        wanted = {name: str(value) for name, value in asked.ksm_knobs.items() if name not in tuned}
        if asked.thp_enabled != KEEP:
            wanted["huge pages"] = asked.thp_enabled
            seen["huge pages"] = record.provenance.thp.get("enabled", asked.thp_enabled)
        for name, value in wanted.items():
            # A knob that its policy can do without may be absent.
            if seen.get(name, value) != value:
                return f"somebody changed {name} from {value} to {seen[name]} before the {kind} record"
    return ""


def _treatments_differ(cell: Cell, records: Measured) -> str:
    first, *others = records.all
    if any(record.requested != first.requested for record in others):
        return "its records were asked for with different values"
    if first.requested.policy != cell.policy:
        return f"its records are of the policy {first.requested.policy}"
    differ = any(record.provenance.start != first.provenance.start for record in others)
    return "its records began from different starts" if differ else ""


def _merged_before(_cell: Cell, records: Measured) -> str:
    seen = records.off.observed
    ksm = seen.host.ksm
    if ksm.run == 1:
        return "KSM was running in the off record"
    pages = ksm.saved_pages
    if pages and records.off.requested.others == ALLOW:
        # A page that is shared belongs to a process as those that share it do: together all that is merged.
        beyond = ksm.pages_shared + pages - sum(other.merged_pages for other in seen.other_mergeable)
        if beyond <= 0:
            return ""
        return f"KSM had {beyond} pages merged already in the off record that no other process holds"
    return f"KSM had {pages} pages merged already in the off record" if pages else ""


def _others_merged(_cell: Cell, records: Measured) -> str:
    if records.off.requested.others == ALLOW:
        return ""
    for kind, record in (("off", records.off), ("on", records.on)):
        merged = [other for other in record.observed.other_mergeable if other.merged_pages]
        if merged:
            named = ", ".join(f"{other.command} ({other.pid})" for other in merged[:3])
            pages = sum(other.merged_pages for other in merged)
            return f"{pages} pages of processes that are no guests were merged in the {kind} record: {named}"
    return ""


def swapped_pages(records: Measured) -> tuple[int, int]:
    """Pages that the host swapped in and out from the off to the on record (/proc/vmstat).

    Its counters only rise: the largest reading less the least.
    """
    samples = records.merge.observed.samples
    arms = [record.observed.host.vmstat for record in (records.off, records.on)]
    into, out = (
        [*(counters[name] for counters in arms), *column]
        for name, column in (("pswpin", samples.pswpin), ("pswpout", samples.pswpout))
    )
    return max(into) - min(into), max(out) - min(out)


def swap_used_bytes(record: SnapshotRecord) -> int | None:
    """Swap of the host in use when a snapshot was taken; None where meminfo does not tell."""
    memory = record.observed.host.meminfo
    free = memory.get("SwapFree_bytes")
    return None if free is None else memory["SwapTotal_bytes"] - free


def _swapped(_cell: Cell, records: Measured) -> str:
    into, out = swapped_pages(records)
    if into or out:
        return f"the host swapped {into} pages in and {out} out while it was measured"
    for kind, record in (("off", records.off), ("on", records.on)):
        # What is swapped out of a guest is not in its memory, and KSM does not merge it.
        guests = sorted(
            name for name, seen in record.observed.guests.items() if seen.smaps_rollup.get("Swap_bytes")
        )
        if guests:
            return f"memory of {', '.join(guests)} was swapped out in the {kind} record"
    return ""


def _verdicts_contradict(_cell: Cell, records: Measured) -> str:
    filled = {name: one for name, one in records.off.observed.workload.items() if one.digest}
    verdicts = records.verify.observed.guests
    unproved = sorted(filled.keys() - verdicts.keys())
    if unproved:
        return f"the memory of {', '.join(unproved)} was loaded and not verified"
    for name, verdict in sorted(verdicts.items()):
        before, after = verdict.digest_before, verdict.digest_after
        if verdict.intact != (bool(before) and before == after):
            says = "intact" if verdict.intact else "damaged"
            found = "empty" if not (before and after) else "equal" if before == after else "different"
            return f"verify calls {name} {says}, and its digests are {found}"
        if name in filled and filled[name].digest != before:
            return f"verify compared {name} with another digest than that of what it filled"
    return ""
