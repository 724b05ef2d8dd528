"""survey.json: a hypervisor as it is, with every virtual machine on it, and what their pages hold.

Sizes are bytes, times seconds, pages those of the host's ``page_size_bytes``; what its kernel does not tell
is None. Of pages there are numbers alone, no hash and no content.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from analysis.records.models import (
    Accelerator,
    Amount,
    ContentsTable,
    Count,
    Counters,
    Ksm,
    KsmStat,
    Machine,
    Model,
    Names,
    OtherMergeable,
    Positive,
    Psi,
    Text,
    Timestamp,
    Version,
)

FILE = "survey.json"
KIND = "survey"


class VirtualMachine(Model):
    """A QEMU process.

    ``memory_bytes``: of the guest, by the command line. ``resident_bytes``: of it in memory. ``memory_kind``:
    what its mappings are for KSM, and ``why_not_mergeable`` a sentence, "" where KSM may merge it.
    ``anonymous_bytes``: of the whole process. ``merging_pages``: merged now, shared and sharing alike.
    """

    pid: Positive
    name: str
    libvirt: bool
    accelerator: Accelerator | None
    memory_bytes: Count
    resident_bytes: Count
    rss_bytes: Count
    pss_bytes: Count
    anonymous_bytes: Count
    swap_bytes: Count
    page_tables_bytes: Count
    mergeable_bytes: Count
    memory_kind: Literal["mergeable", "hugetlbfs", "shared", "unmarked", "unknown"]
    why_not_mergeable: str
    merging_pages: Count | None
    ksm_stat: KsmStat | None
    cpu_seconds: Amount

    @property
    def is_mergeable(self) -> bool:
        """Whether KSM may merge the guest's memory."""
        return self.memory_kind == "mergeable" and not self.why_not_mergeable


class CountedMachine(Model):
    """Pages of one machine, all of them read: zero pages are in no table of contents.

    ``zero_huge_pages``: those of the zero pages that are parts of transparent huge pages.
    """

    pid: Positive
    resident_pages: Count
    zero_pages: Count
    zero_huge_pages: Count
    zero_mapped_pages: Count
    swapped_pages: Count


class Stratum(Model):
    """Contents of which one in so many was counted, each with all its copies; machines in the census' order.

    ``alone_pages``: contents of one machine and no other. ``shared_contents``: contents that two machines
    both hold; the diagonal is what one holds.
    """

    one_in: Positive
    contents: ContentsTable
    alone_pages: tuple[Count, ...]
    shared_contents: tuple[tuple[Count, ...], ...]


class SurveyCensus(Model):
    """Equal pages of the machines whose memory KSM may merge.

    ``strata``: contents counted in any case and those counted by chance; one alone where all were counted.
    ``changed_pages`` of ``looked_pages``, one page in ``look_one_in``, were others before and after.
    """

    one_in: Positive
    cpu_percent: Positive
    processes: Positive
    paused: bool
    machines: Annotated[tuple[CountedMachine, ...], Field(min_length=1)]
    strata: Annotated[tuple[Stratum, ...], Field(min_length=1, max_length=2)]
    look_one_in: Positive
    looked_pages: Count
    changed_pages: Count
    bytes_read: Count
    read_seconds: Amount
    seconds: Amount

    @model_validator(mode="after")
    def _tables_are_of_its_machines(self) -> Self:
        number = len(self.machines)
        for stratum in self.strata:
            rows = (stratum.alone_pages, stratum.shared_contents, *stratum.shared_contents)
            if any(len(row) != number for row in rows):
                raise ValueError(f"a table of it is not of {number} machines")
            table = stratum.contents
            if any(
                held > number or held > copies
                for held, copies in zip(table.guests, table.copies, strict=True)
            ):
                raise ValueError(
                    "a content of it is held by more machines than there are, or than it has copies"
                )
        if self.changed_pages > self.looked_pages:
            raise ValueError("more pages changed than were looked at")
        return self

    @model_validator(mode="after")
    def _whole_census_adds_up(self) -> Self:
        if self.one_in == 1:
            tables = [stratum.contents for stratum in self.strata]
            copies = sum(
                copies * contents
                for table in tables
                for copies, contents in zip(table.copies, table.contents, strict=True)
            )
            pages = sum(machine.resident_pages - machine.zero_pages for machine in self.machines)
            if copies != pages:
                raise ValueError(f"its copies are {copies}, and {pages} by its machines")
        return self


class SurveyObserved(Model):
    """A host at one moment; ``ksm``: None where the kernel has no KSM; ``census``: None where none was taken.

    KSM's counters and ``ksmd_cpu_seconds`` count since the boot, ``uptime_seconds`` before.
    """

    boot_id: Text
    uptime_seconds: Amount
    meminfo: Counters
    vmstat: Counters
    ksm: Ksm | None
    ksmd_cpu_seconds: Amount | None
    cpu_seconds: dict[str, Amount]
    psi: Psi | None
    per_cpu_free_pages: Count | None
    machines: tuple[VirtualMachine, ...]
    other_mergeable: tuple[OtherMergeable, ...]
    tuners: Names
    seconds: Amount
    census: SurveyCensus | None

    @model_validator(mode="after")
    def _counted_machines_are_of_it(self) -> Self:
        pids = {machine.pid for machine in self.machines}
        for counted in self.census.machines if self.census else ():
            if counted.pid not in pids:
                raise ValueError(f"its census has process {counted.pid}, which is no machine of it")
        return self


class SurveyRecord(Model):
    """survey.json of one host."""

    schema_version: Version
    kind: Literal["survey"]
    run_id: Text
    hypervisor: Text
    recorded_at: Timestamp
    monotonic_seconds: float
    provenance: Machine
    testbed_version: str | None
    observed: SurveyObserved
