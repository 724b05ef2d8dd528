"""A survey in one screen: what KSM would save on a host as it is, what it saves, and how many more fit."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analysis.measure.room import Room, free_bytes, gross_bytes, own_bytes, rooms
from analysis.measure.saving import RMAP_ITEM_BYTES
from analysis.measure.scanning import page_seconds, published
from analysis.measure.survey import SurveyedPages, Total, surveyed_pages
from analysis.plan.design import MIB
from analysis.records.survey import SurveyRecord, VirtualMachine
from analysis.report.quantities import MACHINE, QUANTITIES, SURVEY
from analysis.report.tables import Grid, Part, heading, notes, table

_MATRIX_MACHINES = 8
_PAIRS = 3
# In the line above it already
_PART = "surveyed_zero_huge_mib"
_HOUR, _DAY = 3600, 86400
_RUN = {0: "off (run 0)", 1: "on (run 1)", 2: "off, and unmerging (run 2)"}


@dataclass(frozen=True)
class Survey:
    """A record with what follows from it."""

    record: SurveyRecord

    @cached_property
    def pages(self) -> SurveyedPages | None:
        """What its census tells; None without one."""
        return surveyed_pages(self.record)

    @cached_property
    def names(self) -> Mapping[int, str]:
        """A name for each machine by its process, with its number where the name is none or not its alone."""
        given = [machine.name for machine in self.record.observed.machines]
        return {
            machine.pid: machine.name
            if machine.name and given.count(machine.name) == 1
            else f"{machine.name or 'pid'} {machine.pid}"
            for machine in self.record.observed.machines
        }

    @cached_property
    def totals(self) -> dict[str, Total]:
        """The host's quantities of the registry in MiB; without a census those that need none."""
        unit = self.record.provenance.page_size_bytes / MIB
        found = {}
        gross = gross_bytes(self.record)
        if gross is not None:
            found["surveyed_gross_mib"] = Total(gross / MIB, 0.0)
        if self.pages is not None:
            saving = self.pages.saving()
            found |= {
                "surveyed_resident_mib": Total(self.pages.resident_pages * unit, 0.0),
                "surveyed_zero_mib": saving.zero.scaled(unit),
                "surveyed_zero_huge_mib": Total(self.pages.zero_huge_pages * unit, 0.0),
                "surveyed_within_mib": saving.within.scaled(unit),
                "surveyed_between_mib": saving.between.scaled(unit),
                "surveyed_limited_mib": saving.limited.scaled(-unit),
                "surveyed_ideal_mib": saving.ideal.scaled(unit),
                "surveyed_counted_mib": saving.counted.scaled(unit),
                "surveyed_own_mib": Total(self.pages.resident_pages * RMAP_ITEM_BYTES / MIB, 0.0),
                "surveyed_moved_mib": self.pages.moved().scaled(unit),
            }
        return found

    @cached_property
    def machines(self) -> dict[int, dict[str, float | None]]:
        """For each machine by its process its quantities of the registry; None: not known."""
        alone: dict[int, float] = {}
        if self.pages is not None:
            unit = self.record.provenance.page_size_bytes / MIB
            counted = zip(self.pages.census.machines, self.pages.alone_pages(), strict=True)
            alone = {machine.pid: pages * unit for machine, pages in counted}
        room = rooms(self.record, self.pages)
        return {
            machine.pid: {"machine_alone_mib": alone.get(machine.pid), **_room(room.get(machine.pid))}
            for machine in self.record.observed.machines
        }

    def pairs(self) -> list[tuple[float, str, str]]:
        """What two machines both hold, MiB, the most first; empty without a census."""
        if self.pages is None:
            return []
        shared, unit = self.pages.shared_pages(), self.record.provenance.page_size_bytes / MIB
        names = [self.names[machine.pid] for machine in self.pages.census.machines]
        return sorted(
            (
                (shared[i][j] * unit, names[i], names[j])
                for i in range(len(names))
                for j in range(i + 1, len(names))
            ),
            reverse=True,
        )


def _room(room: Room | None) -> dict[str, float | None]:
    if room is None:
        return {name: None for name in MACHINE if name != "machine_alone_mib"}
    return {
        "machine_off_mib": room.off_bytes / MIB,
        "machine_on_mib": None if room.on_bytes is None else room.on_bytes / MIB,
        "more_off_guests": room.off,
        "more_on_guests": room.on,
        "more_safe_guests": room.safe,
    }


def survey_parts(record: SurveyRecord) -> list[Part]:
    """A survey as text."""
    seen = Survey(record)
    host = record.provenance
    return [
        heading(f"{record.hypervisor}, surveyed {record.recorded_at}"),
        f"{host.os_release}, kernel {host.kernel_release}, {host.cpu_count} CPUs, "
        f"{host.memory_total_bytes / MIB:.0f} MiB, {free_bytes(record) / MIB:.0f} available; up "
        f"{_duration(record.observed.uptime_seconds)}. {_ksm(record)}",
        answer_words(seen),
        *([_saving(seen)] if seen.pages else []),
        *([_machines(seen)] if record.observed.machines else []),
        *_shared(seen),
        notes(_notes(seen)),
    ]


def hosts_part(records: Sequence[SurveyRecord]) -> Grid:
    """Hosts beside one another, the one with most to gain first."""
    rows = []
    for seen in sorted(map(Survey, records), key=to_gain_mib, reverse=True):
        values = seen.totals
        rows.append(
            (
                seen.record.hypervisor,
                str(len(seen.record.observed.machines)),
                *(
                    QUANTITIES[name].number(values[name].pages if name in values else None)
                    for name in ("surveyed_resident_mib", "surveyed_ideal_mib", "surveyed_gross_mib")
                ),
                f"{to_gain_mib(seen):.0f}" if seen.pages else "-",
            )
        )
    heads = (
        "host",
        "machines",
        *(QUANTITIES[f"surveyed_{name}_mib"].head for name in ("resident", "ideal", "gross")),
        "to gain\nMiB",
    )
    return table(heads, rows, title="Which host first")


def to_gain_mib(seen: Survey) -> float:
    """What KSM could save beyond what it saves, MiB; less than nothing where that is not known."""
    values = seen.totals
    if "surveyed_ideal_mib" not in values:
        return -1.0
    now = values["surveyed_gross_mib"].pages if "surveyed_gross_mib" in values else 0.0
    return values["surveyed_ideal_mib"].pages - now


def survey_content(record: SurveyRecord) -> dict[str, Any]:
    """A survey for JSON; every quantity by its name in the registry, null where it is not known."""
    seen = Survey(record)
    pages = seen.pages
    totals = {
        name: seen.totals.get(name) for name in (*SURVEY, "surveyed_resident_mib", "surveyed_moved_mib")
    }
    return {
        "run_id": record.run_id,
        "hypervisor": record.hypervisor,
        "recorded_at": record.recorded_at,
        "sampled_one_in": None if pages is None else pages.census.one_in,
        "values": {name: None if total is None else total.pages for name, total in totals.items()},
        "half_widths": {
            name: None if total is None else total.half_width_pages for name, total in totals.items()
        },
        "machines": [
            {
                "name": seen.names[machine.pid],
                "pid": machine.pid,
                "memory_mib": machine.memory_bytes / MIB,
                "rss_mib": machine.rss_bytes / MIB,
                "pss_mib": machine.pss_bytes / MIB,
                "swap_mib": machine.swap_bytes / MIB,
                "mergeable": machine.is_mergeable,
                "why_not": machine.why_not_mergeable,
                "merging_pages": machine.merging_pages,
                "values": seen.machines[machine.pid],
            }
            for machine in record.observed.machines
        ],
        "pairs": [{"mib": mib, "machines": [one, other]} for mib, one, other in seen.pairs()],
        "notes": _notes(seen),
    }


def _ksm(record: SurveyRecord) -> str:
    observed, ksm = record.observed, record.observed.ksm
    if ksm is None:
        return "This kernel has no KSM (CONFIG_KSM)."
    cpu = (
        "ksmd's CPU time is not known"
        if observed.ksmd_cpu_seconds is None
        else f"ksmd used {observed.ksmd_cpu_seconds:.0f} s of CPU since the boot"
    )
    scanned = "" if ksm.pages_scanned is None else f", {ksm.pages_scanned} pages scanned"
    swapped = observed.meminfo["SwapTotal_bytes"] - observed.meminfo.get("SwapFree_bytes", 0)
    thp = record.provenance.thp.get("enabled", "none")
    return (
        f"KSM is {_RUN[ksm.run]}; {cpu}{scanned}. Huge pages: {thp}. Swap used: {swapped / MIB:.0f} MiB. "
        f"{_pressure(record)}"
    )


def _pressure(record: SurveyRecord) -> str:
    psi = record.observed.psi
    if psi is None:
        return "Memory pressure is not known (no PSI)."
    return f"Some task waited for memory in {psi.memory.some.avg300:.1f} % of the last 5 minutes."


def answer_words(seen: Survey) -> str:
    """How many machines there are, what KSM would save of them, and what it saves."""
    machines = seen.record.observed.machines
    can = sum(machine.is_mergeable for machine in machines)
    words = f"{len(machines)} virtual machines, {can} of which KSM can merge."
    gross = seen.totals.get("surveyed_gross_mib")
    now = "" if gross is None else f" It saves {gross.pages:.0f} MiB now."
    if seen.pages is None:
        why = "no machine can be merged" if not can else "take the survey with -e census=true"
        return f"{words}{now} What it would save is not known: {why}."
    ideal, resident = seen.totals["surveyed_ideal_mib"], seen.totals["surveyed_resident_mib"].pages
    share = f" ({ideal.pages / resident:.0%})" if resident else ""
    return f"{words} KSM would save {_interval(ideal)} MiB of the {resident:.0f} that they hold{share}.{now}"


def _interval(total: Total) -> str:
    if not total.half_width_pages:
        return f"{total.pages:.0f}"
    return f"{total.pages:.0f} ({total.low_pages:.0f} to {total.high_pages:.0f})"


def _saving(seen: Survey) -> Grid:
    values = seen.totals
    interval = any(values[name].half_width_pages for name in SURVEY if name in values)
    rows = [
        (
            f"  {QUANTITIES[name].label}" if name == _PART else QUANTITIES[name].label,
            QUANTITIES[name].number(values[name].pages),
            *([QUANTITIES[name].spread(values[name].half_width_pages)] if interval else []),
        )
        for name in SURVEY
        if name in values
    ]
    return table(("", "MiB", *(["±, 95 %"] if interval else [])), rows)


def _machines(seen: Survey) -> Grid:
    heads = (
        "machine",
        "KSM may merge",
        "memory\nMiB",
        "RSS\nMiB",
        "PSS\nMiB",
        "merged\nMiB",
        *(QUANTITIES[name].label.replace(", ", "\n") for name in MACHINE),
    )
    by_name = sorted(seen.record.observed.machines, key=lambda machine: seen.names[machine.pid])
    return table(heads, [_machine(seen, machine) for machine in by_name], names=2)


def _machine(seen: Survey, machine: VirtualMachine) -> tuple[str, ...]:
    page = seen.record.provenance.page_size_bytes
    merged = "-" if machine.merging_pages is None else f"{machine.merging_pages * page / MIB:.0f}"
    values = seen.machines[machine.pid]
    return (
        seen.names[machine.pid],
        "yes" if machine.is_mergeable else "unknown" if machine.memory_kind == "unknown" else "no",
        *(f"{size / MIB:.0f}" for size in (machine.memory_bytes, machine.rss_bytes, machine.pss_bytes)),
        merged,
        *(QUANTITIES[name].number(values[name]) for name in MACHINE),
    )


def _shared(seen: Survey) -> list[Part]:
    pairs = seen.pairs()
    if seen.pages is None or not pairs:
        return []
    most = "; ".join(f"{one} and {other} {mib:.0f}" for mib, one, other in pairs[:_PAIRS])
    least, one, other = pairs[-1]
    sentence = f"Contents that two machines both hold, MiB: most {most}; least {one} and {other} {least:.0f}."
    names = [seen.names[machine.pid] for machine in seen.pages.census.machines]
    if not 2 < len(names) <= _MATRIX_MACHINES:
        return [sentence]
    unit = seen.record.provenance.page_size_bytes / MIB
    rows = [
        (name, *(f"{pages * unit:.0f}" for pages in row[: place + 1]), *[""] * (len(names) - place - 1))
        for place, (name, row) in enumerate(zip(names, seen.pages.shared_pages(), strict=True))
    ]
    # Columns are as wide as what the names differ by.
    common = os.path.commonprefix(names)  # noqa: RUF071 -- of names, not of paths
    return [sentence, table(("MiB", *(name.removeprefix(common) or name for name in names)), rows)]


def _notes(seen: Survey) -> list[str]:
    observed = seen.record.observed
    lines = [
        f"! {seen.names[machine.pid]}: {machine.why_not_mergeable}."
        for machine in observed.machines
        if machine.why_not_mergeable
    ]
    if observed.other_mergeable:
        sizes = sum(other.mergeable_bytes or 0 for other in observed.other_mergeable) / MIB
        lines.append(
            f"! {len(observed.other_mergeable)} other processes offer KSM {sizes:.0f} MiB, which is in no "
            "line above but what KSM saves now."
        )
    if observed.tuners:
        lines.append(f"! {', '.join(observed.tuners)} runs and sets KSM's knobs by itself.")
    return [*lines, *_census_notes(seen), *_cost(seen)]


def _census_notes(seen: Survey) -> list[str]:
    if seen.pages is None:
        return []
    census, moved = seen.pages.census, seen.totals["surveyed_moved_mib"]
    sampled = (
        "all contents counted"
        if census.one_in == 1
        else f"one content in {census.one_in} counted, with all of its copies; the intervals are of that"
    )
    return [
        f"{census.bytes_read / MIB:.0f} MiB read in {census.read_seconds:.1f} s with at most "
        f"{census.cpu_percent} % of a CPU at nice 19; {sampled}.",
        f"{'While all were paused' if census.paused else 'While they ran'} {moved.pages:.0f} MiB became "
        f"other pages (at most {moved.high_pages:.0f}): the ideal saving errs by no more, up or down.",
        "Where KSM splits a huge page some kernels free its zero pages, and KSM's counters leave these out; "
        "the fall of the machines' PSS has them.",
        "More machines like one: expected without KSM, expected with a perfect one that has merged all, and "
        "safe, with nothing shared and all memory in use. What two of a kind share besides is not counted.",
    ]


def _cost(seen: Survey) -> list[str]:
    """What ksmd takes for these machines, by what it took on this host, else in the published campaign."""
    observed = seen.record.observed
    if observed.ksm is None:
        return []
    own = own_bytes(observed.machines) / MIB
    pages = seen.pages.resident_pages if seen.pages else None
    each = page_seconds(observed.ksm, observed.ksmd_cpu_seconds)
    if each is not None:
        scan = "" if pages is None else f", so {each * pages:.1f} s for a scan of all that was counted"
        return [
            f"On this host ksmd has taken {each * 1e6:.1f} µs of CPU for each page scanned since the boot"
            f"{scan}; KSM's own memory for these machines is {own:.0f} MiB now."
        ]
    unknown = "What ksmd would take here is not known: it has not run since the boot, or that is not told."
    known = published()
    if known is None or pages is None:
        return [unknown]
    least, most = known.settling_seconds(pages)
    return [
        f"{unknown} In this testbed's published campaign ({known.cpu_model}) it took "
        f"{known.least_seconds * 1e6:.1f} to {known.most_seconds * 1e6:.1f} µs of CPU for a page and "
        f"{known.least_scans} to {known.most_scans} scans until settled, by what the guests held: for as "
        f"many pages as here {least:.0f} to {most:.0f} s."
    ]


def _duration(seconds: float) -> str:
    days, hours = int(seconds // _DAY), int(seconds % _DAY // _HOUR)
    return f"{days} d {hours} h" if days else f"{hours} h {int(seconds % _HOUR // 60)} min"
