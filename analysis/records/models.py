"""Every file that is stored, defined once: what is written is checked by it, what is read is an object of it.

Attributes have the names of the JSON; only ``from`` is called ``origin``. Sizes are bytes, times seconds, and
pages those of the host's ``page_size_bytes``; what a kernel may not tell is None.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, RootModel, model_validator

from analysis.plan.application import Application
from analysis.plan.design import CHURN, Cell
from analysis.plan.mix import MixError, guest_workloads
from analysis.plan.policies import OFF
from analysis.plan.workloads import in_order
from plugins.module_utils import names
from plugins.module_utils.ksm_convergence import saved_pages

# The kernel's counters have 64 bits: a greater number is damage, and would not fit in a float either.
_MOST = (1 << 64) - 1

_FLAGS = frozenset({"ksm_merge_any", "ksm_mergeable"})
# "55d0c5a00000-7ffd0b3ff000 ---p 00000000 00:00 0 [rollup]"
_ROLLUP_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
_TIME = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}"


def _real_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _has(*names: str) -> tuple[AfterValidator, Any]:
    """A table that has at least these names."""

    def check(table: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in names if name not in table]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        return table

    return AfterValidator(check), Field(json_schema_extra={"required": list(names)})


def _without_header(table: Any) -> Any:
    """A guest's smaps_rollup; its first line, the range of its addresses, was once stored as a counter."""
    if not isinstance(table, dict) or not _ROLLUP_HEADER.match(str(next(iter(table), ""))):
        return table
    return dict(list(table.items())[1:])


def _counted(stat: dict[str, Any]) -> dict[str, Any]:
    """A process' ksm_stat: only its flags are words."""
    worded = [name for name, value in stat.items() if isinstance(value, str) and name not in _FLAGS]
    if worded:
        raise ValueError(f"{', '.join(worded)} is no number")
    return stat


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("it has a value twice")
    return values


Integer = Annotated[int, Field(ge=-_MOST, le=_MOST)]
Count = Annotated[int, Field(ge=0, le=_MOST)]
Positive = Annotated[int, Field(ge=1, le=_MOST)]
Amount = Annotated[float, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
Timestamp = Annotated[str, Field(pattern=rf"^{_TIME}\.\d{{6}}Z$"), AfterValidator(_real_time)]
Moment = Annotated[
    str, Field(pattern=rf"^{_TIME}(\.\d{{1,6}})?(Z|[+-]\d{{2}}:\d{{2}})$"), AfterValidator(_real_time)
]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Load = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*(=[0-9]+(,[a-z][a-z0-9_-]*=[0-9]+)+)?$")]
Knobs = dict[str, int | str]
KsmStat = Annotated[dict[str, int | str], AfterValidator(_counted)]
Counters = dict[str, Integer]
Column = Annotated[tuple[Count, ...], Field(min_length=1)]
ColumnOrNulls = Annotated[tuple[Count | None, ...], Field(min_length=1)]
Seconds = Annotated[tuple[Amount, ...], Field(min_length=1)]
Names = Annotated[tuple[Text, ...], AfterValidator(_distinct)]
Accelerator = Literal["tcg", "kvm"]
ThpMode = Literal["keep", "always", "madvise", "never"]
OthersMode = Literal["refuse", "allow"]
Version = Literal[2]


class Model(BaseModel):
    """Frozen, with no other fields, and no number taken from a text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


# --- shared parts ---------------------------------------------------------------------------------------


class Convergence(Model):
    """When a merge is taken to have settled."""

    min_full_scans: Positive
    window_scans: Positive
    threshold_percent: Annotated[float, Field(ge=0, le=100)]
    timeout_seconds: Above0


class Requested(Model):
    """What was asked for; ``service``: "" for none; ``others``: what else KSM could merge on the host.

    ``probes``: of guests, in each arm; None for none. ``rehearsed``: whether each of these guests was probed
    once before the off record, unrecorded; runs before 2026-11-27 were not.
    """

    policy: Text
    ksm_knobs: Knobs
    thp_enabled: ThpMode
    service: str
    accelerator: Literal["auto", "kvm", "tcg"]
    guest_reserve_bytes: Count
    convergence: Convergence
    sample_interval_seconds: Above0
    others: OthersMode = "refuse"
    probes: Positive | None = None
    rehearsed: bool = False


class Start(Model):
    """What a cell's guests began from.

    ``origin``: checkpoint (restored into fresh processes) or boot (measured in those that booted).
    ``booted_at``: of the physical boot, which each checkpoint of it has. ``loaded``: whether the checkpoint
    holds all that the guests filled. ``confinement``: of the QEMU processes, as the kernel showed it; None in
    records made before it was looked at, and where no guest was started.
    """

    origin: Literal["checkpoint", "boot"] = Field(alias="from")
    checkpoint: Text | None
    booted_at: Moment | None
    boot_seconds: Amount | None
    restore_seconds: Amount | None
    loaded: bool
    arm_order: Literal["off-on"]
    confinement: Text | None = None

    @model_validator(mode="after")
    def _names_its_checkpoint(self) -> Self:
        if self.origin == "checkpoint" and None in (self.checkpoint, self.booted_at):
            raise ValueError("a start from a checkpoint has its name and the time of its boot")
        return self


class KsmBefore(Model):
    """KSM before the testbed changed it first: run, and the pages that processes had merged."""

    run: Literal[0, 1, 2]
    merged_pages: Count


class Machine(Model):
    """What a host is, as read from it, and the settings that change a saving."""

    kernel_release: str
    architecture: str
    cpu_model: str | None
    cpu_count: Positive
    page_size_bytes: Positive
    memory_total_bytes: Positive
    os_release: str
    qemu_version: str | None
    libvirt_version: str | None
    thp: dict[str, str]
    ksm_knobs: Knobs
    swap_total_bytes: Count


class Provenance(Machine):
    """Host, image and start of a phase that was measured; ``ksm_before``: None where it was not kept."""

    design_digest: Digest
    image_digest: Digest
    accelerator: Accelerator
    guest_memory_bytes: Positive
    testbed_version: str
    start: Start
    ksm_before: KsmBefore | None = None


class PartialProvenance(Model):
    """As Provenance, of a phase that failed: what its host no longer tells is None."""

    design_digest: Digest | None
    kernel_release: str | None
    architecture: str | None
    cpu_model: str | None
    cpu_count: Positive | None
    page_size_bytes: Positive | None
    memory_total_bytes: Positive | None
    os_release: str | None
    qemu_version: str | None
    libvirt_version: str | None
    accelerator: Accelerator | None
    image_digest: Digest | None
    guest_memory_bytes: Positive
    thp: dict[str, str] | None
    ksm_knobs: Knobs | None
    swap_total_bytes: Count | None
    testbed_version: str | None
    start: Start | None
    ksm_before: KsmBefore | None = None


class Stall(Model):
    """A line of pressure stall information."""

    avg10: Amount
    avg60: Amount
    avg300: Amount
    total_microseconds: Count


class Pressure(Model):
    """One resource's pressure; not every kernel has ``full`` of the CPU."""

    some: Stall
    full: Stall | None = None


class Psi(Model):
    """Pressure stall information of the host (Documentation/accounting/psi.rst)."""

    cpu: Pressure
    memory: Pressure
    io: Pressure


class Ksm(Model):
    """KSM's counters (Documentation/admin-guide/mm/ksm.rst) in pages, general_profit in bytes."""

    run: Literal[0, 1, 2]
    full_scans: Count
    pages_shared: Count
    pages_sharing: Count
    pages_scanned: Count | None
    pages_unshared: Count | None
    pages_volatile: Count | None
    pages_skipped: Count | None
    ksm_zero_pages: Count | None
    general_profit: Integer | None
    stable_node_chains: Count | None
    stable_node_dups: Count | None

    @property
    def saved_pages(self) -> int:
        """What is saved in gross, see :func:`plugins.module_utils.ksm_convergence.saved_pages`."""
        return saved_pages(self.pages_sharing, self.ksm_zero_pages)


class Host(Model):
    """The host at one moment: meminfo in bytes, vmstat in the kernel's units."""

    meminfo: Annotated[
        Counters, *_has("MemTotal_bytes", "MemAvailable_bytes", "MemFree_bytes", "SwapTotal_bytes")
    ]
    vmstat: Annotated[Counters, *_has("pswpin", "pswpout")]
    ksm: Ksm
    ksmd_cpu_seconds: Amount
    per_cpu_free_pages: Count | None
    cpu_seconds: Annotated[
        dict[str, Amount], *_has("user", "nice", "system", "idle", "iowait", "irq", "softirq")
    ]
    psi: Psi | None


class Guest(Model):
    """The QEMU process of a guest at one moment.

    ``mergeable_resident_bytes``: of the memory that KSM may merge, what is mapped, merged or not; None in
    records made before it was read.
    """

    pid: Positive
    cpu_seconds: Amount
    smaps_rollup: Annotated[Counters, BeforeValidator(_without_header), *_has("Rss_bytes", "Pss_bytes")]
    page_tables_bytes: Count
    mergeable_bytes: Count
    mergeable_resident_bytes: Count | None = None
    ksm_stat: KsmStat | None
    minor_faults: Count
    major_faults: Count


class OtherMergeable(Model):
    """A process of the host, no guest, that offers memory to KSM.

    ``merging_pages``: shared and sharing alike. ``mergeable_bytes``, ``zero_pages``: None where they were not
    read.
    """

    pid: Positive
    command: str
    merging_pages: Count
    mergeable_bytes: Count | None = None
    zero_pages: Count | None = None

    @property
    def merged_pages(self) -> int:
        """All of its pages that KSM has merged."""
        return self.merging_pages + (self.zero_pages or 0)


class Filled(Model):
    """What a guest filled; ``digest`` of all of it."""

    filled_bytes: Count
    digest: str
    fill_seconds: Amount
    seed: str | None


class Samples(Model):
    """A series, one column for each counter, all of one length; ``seconds`` since its begin.

    ``guests_anon_pages``: of the guests' QEMU processes, merged ones included; None in series made before
    these were watched.
    """

    seconds: Seconds
    full_scans: Column
    pages_shared: Column
    pages_sharing: Column
    pages_unshared: ColumnOrNulls
    pages_volatile: ColumnOrNulls
    ksm_zero_pages: ColumnOrNulls
    general_profit: Annotated[tuple[Integer | None, ...], Field(min_length=1)]
    pages_scanned: ColumnOrNulls
    MemAvailable_bytes: Column
    MemFree_bytes: Column
    AnonPages_bytes: Column
    AnonHugePages_bytes: ColumnOrNulls
    Slab_bytes: Column
    PageTables_bytes: Column
    Cached_bytes: Column
    ksmd_cpu_seconds: Seconds
    pswpin: Column
    pswpout: Column
    memory_some_total_microseconds: ColumnOrNulls
    cow_ksm: ColumnOrNulls | None = None
    per_cpu_free_pages: ColumnOrNulls | None = None
    guests_anon_pages: Column | None = None

    def columns(self) -> Iterator[tuple[str, tuple[float | None, ...]]]:
        """Name and values of each column that was recorded."""
        return ((name, values) for name, values in self if values is not None)

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if len({len(values) for _name, values in self.columns()}) != 1:
            raise ValueError("its columns are of different lengths")
        return self


class ProbeAnswer(Model):
    """A guest's answer: latency of writing a page, throughput of memory and of the CPU."""

    write_latency_p50_us: Amount
    write_latency_p99_us: Amount
    touch_mib_per_second: Amount
    cpu_iterations_per_second: Amount


class VcpuTime(Model):
    """What a guest's request took: on the host's clock, and of the threads of its virtual CPUs.

    ``run_seconds``: on a CPU of the host; ``wait_seconds``: ready and waiting for one
    (/proc/PID/task/TID/schedstat). Both None where the kernel does not tell.
    """

    seconds: Amount
    run_seconds: Amount | None
    wait_seconds: Amount | None


class Probe(Model):
    """One guest probed while the others do nothing; ``answer``: None for a guest that gave none.

    ``request``: a request that does nothing, ``probe``: the guest's own probe, ``read``: reading all memory
    that it holds, ``read_bytes``. These are None in records of guests that were all probed at the same time.
    """

    guest: Text
    answer: ProbeAnswer | None
    request: VcpuTime | None = None
    probe: VcpuTime | None = None
    read: VcpuTime | None = None
    read_bytes: Count | None = None


class PsiTotals(Model):
    """Microseconds for which some task waited."""

    cpu: Count
    memory: Count
    io: Count


class Window(Model):
    """What happened on the host while the guests were probed."""

    seconds: Above0
    ksmd_cpu_seconds: Amount
    steal_seconds: Amount | None
    vmstat: Annotated[dict[str, Count | None], *_has("pgfault", "pgmajfault", "cow_ksm", "pswpin", "pswpout")]
    psi_some_microseconds: PsiTotals | None


# --- the records of a cell ------------------------------------------------------------------------------


class SnapshotObserved(Model):
    """Host and guests at one moment; ``workload``: what each guest that filled memory filled.

    ``tuners``: programs that ran and set KSM's knobs by themselves. ``probes``: of guests, one after another
    right after that moment, and ``window`` what their time did to the host; None where none was probed.
    """

    host: Host
    guests: dict[str, Guest]
    other_mergeable: tuple[OtherMergeable, ...]
    tuners: Names = ()
    workload: dict[str, Filled]
    probes: tuple[Probe, ...] = ()
    window: Window | None = None


class KnobChange(Model):
    """A knob of KSM, or run, that was another one while a series was taken, ``seconds`` after its begin."""

    seconds: Amount
    knob: Text
    before: str
    after: str

    @property
    def words(self) -> str:
        """What was set to what."""
        return f"somebody changed {self.knob} from {self.before} to {self.after}"


class MergeObserved(Model):
    """A series, and whether and when the merge had settled (None: it had not).

    ``knob_changes``: each that was seen, in their order; in records made before of each knob the first one.
    ``tuners``: programs that ran at its end and set KSM's knobs by themselves; None in records made before.
    """

    started_at: Timestamp
    converged: bool
    reason: Text
    converged_after_seconds: Amount | None
    full_scans: Count
    duration_seconds: Amount
    sampler_cpu_seconds: Amount
    samples: Samples
    knob_changes: tuple[KnobChange, ...] = ()
    tuners: Names | None = None


class Verdict(Model):
    """Whether the memory that a guest filled is what it was.

    ``rewritten_pages_per_second``: to how many pages it wrote all the time; None where to none.
    """

    filled_bytes: Count
    digest_before: str
    digest_after: str
    intact: bool
    rewritten_pages_per_second: Amount | None = None


class VerifyObserved(Model):
    """The verdict of each guest that filled memory."""

    guests: dict[str, Verdict]


class Decay(Model):
    """What an application's performance command did to what was merged when it began; of the whole host.

    ``cow_ksm``: writes to merged pages meanwhile, ``quiet_cow_ksm`` in ``quiet_seconds`` before it, while no
    guest was asked anything; None on a kernel that does not count them. Those to KSM's zero pages are in
    neither. ``saved_pages_before``, ``saved_pages_after``: pages_sharing and ksm_zero_pages.
    """

    quiet_seconds: Above0
    quiet_cow_ksm: Count | None
    cow_ksm: Count | None
    saved_pages_before: Count
    saved_pages_after: Count


class Performed(Model):
    """What an application's own performance command ``printed``, and the ``figure`` in it.

    ``decay``: None where nothing was merged, and in records made before it was read.
    """

    printed: str
    figure: float
    unit: Text
    took: VcpuTime
    decay: Decay | None = None


class PerformedTwice(Model):
    """An application's performance in one guest, before KSM merged and after."""

    off: Performed
    on: Performed


class PerformanceObserved(Model):
    """What the applications of some guests did, measured one after another while the others did nothing."""

    guests: Annotated[dict[str, PerformedTwice], Field(min_length=1)]


class FailedObserved(Model):
    """Where a cell failed."""

    phase: Literal[
        "restore",
        "load",
        "survey",
        "off",
        "merge",
        "on",
        "after",
        "census",
        "leave",
        "arrive",
        "diverge",
        "verify",
        "performance",
    ]
    task: str
    message: str


class Phase(Model):
    """What the records of one phase of a cell have in common."""

    schema_version: Version
    kind: str
    run_id: Text
    recorded_at: Timestamp
    monotonic_seconds: float | None
    cell: Cell
    requested: Requested
    provenance: Provenance | PartialProvenance


class MeasuredPhase(Phase):
    """A phase that was measured; ``monotonic_seconds``: the host's clock that nobody sets."""

    monotonic_seconds: float
    provenance: Provenance


class SnapshotRecord(MeasuredPhase):
    """off.json or on.json: the host before KSM merged, and after."""

    kind: Literal["off", "on"]
    observed: SnapshotObserved


class MergeRecord(MeasuredPhase):
    """merge.json: KSM at work."""

    kind: Literal["merge"]
    observed: MergeObserved


class AfterRecord(MeasuredPhase):
    """after.json: a series that goes on after the on record, where it was asked for."""

    kind: Literal["after"]
    observed: MergeObserved


class ChurnRecord(MeasuredPhase):
    """leave.json, arrive.json, diverge.json: a series right after half of the guests left, were there again,
    and one had made all that it filled differ, where that was asked for."""

    kind: Literal["leave", "arrive", "diverge"]
    observed: MergeObserved


class VerifyRecord(MeasuredPhase):
    """verify.json: whether merging left the guests' memory what it was."""

    kind: Literal["verify"]
    observed: VerifyObserved


class PerformanceRecord(MeasuredPhase):
    """performance.json: what merging cost the applications, where the guests run some that have a figure."""

    kind: Literal["performance"]
    observed: PerformanceObserved


class FailedRecord(Phase):
    """failed.json: why a cell has no result."""

    kind: Literal["failed"]
    provenance: PartialProvenance
    observed: FailedObserved


# --- what a run names -----------------------------------------------------------------------------------


class NamedForecast(Model):
    """A forecast that a run names before its first cell; ``digest``: the forecast's own, of its content."""

    forecast_id: Text
    created_at: Timestamp
    digest: Digest


Named = tuple[NamedForecast, ...]


# --- census ---------------------------------------------------------------------------------------------


class CensusProvenance(Machine):
    """As Provenance; outside an experiment what its plan would say is None."""

    ksm_knobs: Annotated[Knobs, *_has("max_page_sharing", "use_zero_pages")]
    design_digest: Digest | None
    image_digest: Digest | None
    accelerator: Accelerator | None
    guest_memory_bytes: Positive | None
    testbed_version: str | None

    @model_validator(mode="after")
    def _knobs_are_possible(self) -> Self:
        if not isinstance(self.ksm_knobs["max_page_sharing"], int) or self.max_page_sharing < 2:
            raise ValueError("max_page_sharing is not a whole number from 2")
        if self.ksm_knobs["use_zero_pages"] not in (0, 1):
            raise ValueError("use_zero_pages is not 0 or 1")
        return self

    @property
    def max_page_sharing(self) -> int:
        """How many copies of a content one page may serve."""
        return int(self.ksm_knobs["max_page_sharing"])

    @property
    def use_zero_pages(self) -> bool:
        """Whether zero pages become the kernel's own."""
        return self.ksm_knobs["use_zero_pages"] == 1


class CountedGuest(Model):
    """Pages of one guest; zero pages are in no other number than resident_pages and zero_pages."""

    pid: Positive
    was_paused: bool
    mergeable_bytes: Count
    resident_pages: Count
    zero_pages: Count
    zero_mapped_pages: Count
    distinct_pages: Count
    swapped_pages: Count
    ksm_stat: KsmStat | None


class ContentsTable(Model):
    """Row by row: this many ``contents`` are held by this many ``guests`` in this many ``copies``."""

    guests: tuple[Positive, ...]
    copies: tuple[Positive, ...]
    contents: tuple[Positive, ...]

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if not len(self.guests) == len(self.copies) == len(self.contents):
            raise ValueError("its columns are of different lengths")
        return self


class MergedPages(Model):
    """What KSM had merged of the pages that were counted, by the flags of the frames that they are on.

    ``mapped_pages``: mappings of KSM's frames, ``frames``: these frames, ``zero_pages``: mappings of the
    kernel's zero page that KSM made; None where it makes them without counting.
    """

    mapped_pages: Count
    frames: Count
    zero_pages: Count | None

    @model_validator(mode="after")
    def _each_frame_is_mapped(self) -> Self:
        if self.frames > self.mapped_pages:
            raise ValueError("it has more merged frames than mappings of them")
        return self


class LargestContent(Model):
    """A content with many copies; ``kind``: what it is, as far as the testbed knows contents."""

    copies: Positive
    guests: Positive
    kind: Literal["zero", "constant_fill", "kernel_init", "other"]


class CensusObserved(Model):
    """Equal pages within and between guests, as numbers; no hash, no content.

    ``shared_contents``: distinct contents that two guests both hold, rows and columns by the guests' names.
    ``largest_contents``: those with most copies, the most first. Before these two were counted, ``merged``
    is None and ``largest_contents`` empty.
    """

    guests: Annotated[dict[str, CountedGuest], Field(min_length=1)]
    contents: ContentsTable
    largest_contents: Annotated[tuple[LargestContent, ...], Field(max_length=10)] = ()
    shared_contents: tuple[tuple[Count, ...], ...]
    ksm: Annotated[dict[str, Integer | None], *_has("run", "pages_shared", "pages_sharing", "ksm_zero_pages")]
    merged: MergedPages | None = None
    pause_seconds: Amount
    read_seconds: Amount
    count_seconds: Amount
    bytes_read: Count
    processes: Positive

    @model_validator(mode="after")
    def _sums_agree(self) -> Self:
        guests, table = self.guests.values(), self.contents
        rows = list(zip(table.guests, table.copies, table.contents, strict=True))
        sums = {
            "copies": (
                sum(copies * contents for _guests, copies, contents in rows),
                sum(guest.resident_pages - guest.zero_pages for guest in guests),
            ),
            "distinct pages": (
                sum(holders * contents for holders, _copies, contents in rows),
                sum(guest.distinct_pages for guest in guests),
            ),
            "guests of the matrix": (len(self.shared_contents), len(self.guests)),
        }
        for name, (found, expected) in sums.items():
            if found != expected:
                raise ValueError(f"its {name} are {found}, and {expected} by its guests")
        if any(len(row) != len(self.guests) for row in self.shared_contents):
            raise ValueError("its matrix of the guests is not square")
        if any(holders > len(self.guests) or holders > copies for holders, copies, _contents in rows):
            raise ValueError("a content of it is held by more guests than there are, or than it has copies")
        if self.ksm["pages_sharing"] is None:
            raise ValueError("it lacks pages_sharing")
        return self


class CensusRecord(Model):
    """census.json: of a cell, or of guests outside an experiment (``cell`` is None)."""

    schema_version: Version
    kind: Literal["census"]
    run_id: Text
    recorded_at: Timestamp
    monotonic_seconds: float
    cell: Cell | None
    provenance: CensusProvenance
    observed: CensusObserved


# --- plan -----------------------------------------------------------------------------------------------


class PlannedVariables(Model):
    """The variables of an experiment as they were given, typed; they can be given again.

    ``cell_order_seed``: "" where it was drawn. ``first_boot``: the number of the first
    of the boots. ``follow_seconds``: of the series after the on record. ``survey_sample``: 0: no survey.
    ``others``: whether memory that others offer to KSM was refused or allowed. ``keep_loaded``: whether
    guests were kept loaded where their workload's file says so. ``probes``: of guests, in each arm.
    ``pinned``: workloads and policies with the one host that measures them. ``churn_seconds``: of each series
    after guests left, came back and one diverged; 0: none did.
    """

    focus: Annotated[tuple[Positive, ...], Field(min_length=1), AfterValidator(_distinct)]
    workloads: Names
    mix: str
    policies: Annotated[Names, Field(min_length=1)]
    pinned: Names = ()
    guests: Annotated[tuple[Positive, ...], Field(min_length=1), AfterValidator(_distinct)]
    boots: Positive
    first_boot: Positive = 1
    repetitions: Positive
    checkpoint: Literal["keep", "fresh", "measured"]
    cell_order_seed: int | Literal[""]
    guest_memory_mib: Positive
    guest_reserve_mib: Count
    accelerator: Literal["auto", "kvm", "tcg"]
    boot_wave: Count
    keep_guests: bool
    census: bool
    keep_loaded: bool = True
    probes: Count = 0
    survey_sample: Count = 0
    guest_ssh_port_base: int
    image_source: Text
    image_checksum: str
    ksm_knobs: Knobs
    thp_enabled: ThpMode | Literal[""]
    converge_min_full_scans: Positive
    converge_window_scans: Positive
    converge_threshold_percent: Annotated[float, Field(ge=0, le=100)]
    converge_timeout_seconds: Above0
    sample_interval_seconds: Above0
    follow_seconds: Amount = 0.0
    churn_seconds: Amount = 0.0
    others: OthersMode = "refuse"


class PlannedPolicy(Model):
    """A policy as it is set on the host, and what each record of its cells says under ``requested``."""

    name: Text
    run: Literal[0, 1]
    knobs: Knobs
    optional_knobs: Names
    thp_enabled: ThpMode
    service: str
    requested: Requested


class Segment(Model):
    """A part of the memory that a guest fills; ``rewrite_pages_per_second``: None where it stays as it is."""

    content: Text
    percent: Annotated[int, Field(ge=1, le=100)]
    rewrite_pages_per_second: Positive | None = None


class PlannedWorkload(Model):
    """What a guest does; ``application``: None where it runs none."""

    name: Text
    segments: tuple[Segment, ...]
    application: Application | None = None
    checkpoint_loaded: bool


class PlanRecord(Model):
    """plan.json: the design of a run, its policies and workloads by name, and the cells in their order.

    ``forecasts``: those that the run is to prove.
    """

    schema_version: Version
    kind: Literal["plan"]
    run_id: Text
    created_at: Moment
    cell_order_seed: Count
    design: PlannedVariables
    design_digest: Digest
    policies: Annotated[dict[str, PlannedPolicy], Field(min_length=1)]
    workloads: Annotated[dict[str, PlannedWorkload], Field(min_length=1)]
    forecasts: Named = ()
    cells: Annotated[tuple[Cell, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _cells_are_apart(self) -> Self:
        if len({(cell.hypervisor, cell.cell_id) for cell in self.cells}) != len(self.cells):
            raise ValueError("it has a cell twice")
        return self

    @model_validator(mode="after")
    def _cells_are_of_it(self) -> Self:
        for cell in self.cells:
            for what in ("hypervisor", "cell_id"):
                names.check(what, getattr(cell, what), names.PLACE)
            if cell.policy not in self.policies:
                raise ValueError(f"its cell {cell.cell_id} is of the policy {cell.policy}, which it has not")
            try:
                does = set(guest_workloads(cell.workload, map(str, range(cell.guests))).values())
            except MixError as error:
                raise ValueError(str(error).rstrip(".")) from None
            if not does <= self.workloads.keys():
                raise ValueError(f"its cell {cell.cell_id} does {cell.workload}, which it has not")
        return self

    @property
    def loads(self) -> list[str]:
        """What the guests do in some cell."""
        return in_order(cell.workload for cell in self.cells)

    @property
    def hypervisors(self) -> list[str]:
        """The hosts that the cells are on, in the order of the alphabet."""
        return sorted({cell.hypervisor for cell in self.cells})


# --- capacity -------------------------------------------------------------------------------------------


class CapacityProvenance(Machine):
    """As Provenance; with no guest there is no start."""

    design_digest: Digest | None
    image_digest: Digest | None
    accelerator: Accelerator | None
    guest_memory_bytes: Positive
    testbed_version: str | None
    start: Start | None


class CapacityRequested(Model):
    """What was asked for; ``host_reserve_bytes``: what the host has to keep available, None: not noted."""

    guest_reserve_bytes: Count
    host_reserve_bytes: Count | None = None


class Stop(Model):
    """Why a step is beyond the limit, and by which measure."""

    reason: Text
    measure: Text
    value: float | None
    limit: float | None


class Envelope(Model):
    """The cgroup that the guests have to fit in."""

    usage_bytes: Count
    limit_bytes: Count | None
    working_set_bytes: Count
    failcnt: Count | None
    pressure: Pressure | None


class EnvelopeSamples(Samples):
    """A series with the counters that a capacity run is about."""

    seconds: Annotated[tuple[Amount, ...], Field(min_length=2)]
    cow_ksm: ColumnOrNulls
    envelope_working_set_bytes: ColumnOrNulls


class StepObserved(Model):
    """The host before the probes, with the step's guests settled.

    ``admission``: the samples from before the step's guests were started until they had settled; None with no
    guest, and in records made before it was watched. ``guests``: empty where they were not read.
    ``other_mergeable``: None where it was not read. ``knob_changes``: the first one of each knob that
    somebody else made, in seconds from when the host was first looked at for this step.
    """

    host: Host
    guests: dict[str, Guest] = {}
    envelope: Envelope | None
    converged: bool | None
    admission: EnvelopeSamples | None = None
    probes: tuple[Probe, ...]
    window: Window
    other_mergeable: tuple[OtherMergeable, ...] | None = None
    knob_changes: tuple[KnobChange, ...] = ()
    tuners: Names | None = None


class Turn(Model):
    """A guest that made all that it holds differ, in seconds of the samples; None: it gave no answer."""

    guest: Text
    started_seconds: Amount
    finished_seconds: Amount | None
    written_bytes: Count | None


class DivergenceObserved(Model):
    """What came of guests that wrote over what KSM had merged, one after another until the envelope was full.

    ``held_bytes``: what each guest had filled.
    ``psi_some_microseconds``: of the host, all turns together. ``knob_changes``: as of a step.
    """

    turns: Annotated[tuple[Turn, ...], Field(min_length=1)]
    held_bytes: dict[str, Count]
    samples: EnvelopeSamples
    psi_some_microseconds: PsiTotals | None = None
    guests_alive: Count
    oom_kills: Count | None
    other_mergeable: tuple[OtherMergeable, ...] | None = None
    knob_changes: tuple[KnobChange, ...] = ()
    tuners: Names | None = None


class CapacityPhase(Model):
    """What the records of a capacity run have in common; ``envelope_bytes``: None for the whole host.

    ``boot``: the number of the set of booted guests. ``forecasts``: those that the run is to prove.
    """

    schema_version: Version
    run_id: Text
    recorded_at: Timestamp
    hypervisor: Text
    policy: Text
    workload: Load
    boot: Positive = 1
    guests: Count
    guest_memory_bytes: Positive
    envelope_bytes: Positive | None
    forecasts: Named = ()
    requested: CapacityRequested
    provenance: CapacityProvenance
    stop: Stop | None


class StepRecord(CapacityPhase):
    """So many guests running."""

    kind: Literal["capacity_step"]
    observed: StepObserved

    @model_validator(mode="after")
    def _has_its_envelope(self) -> Self:
        if self.envelope_bytes is not None and self.observed.envelope is None:
            raise ValueError("it has an envelope_bytes and no envelope")
        return self


class DivergenceRecord(CapacityPhase):
    """Merged guests that all write."""

    kind: Literal["divergence"]
    observed: DivergenceObserved

    @model_validator(mode="after")
    def _had_merged(self) -> Self:
        if self.policy == OFF:
            raise ValueError("with the policy off nothing was merged")
        return self


class CapacityFile(RootModel[Annotated[StepRecord | DivergenceRecord, Field(discriminator="kind")]]):
    """A file of a capacity run, whose kind says which of the two it is."""


# --- forecast -------------------------------------------------------------------------------------------

Mix = Annotated[dict[str, Positive], Field(min_length=1)]
Curve = Annotated[tuple[float, ...], Field(min_length=1)]
CurveOrNulls = Annotated[tuple[float | None, ...], Field(min_length=1)]


class CellUsed(Model):
    """A cell that a forecast rests on, and the digests of its files."""

    run_id: str
    cell_id: str
    workload: str
    guests: Positive
    records: Annotated[dict[str, Digest], *_has("off", "merge", "on", "verify")]


class FileUsed(Model):
    """A file that a forecast rests on."""

    path: str
    sha256: Digest


class CalibrationUsed(Model):
    """What a forecast rests on; ``left_out``: and on what not, a sentence for each run and reason.

    ``guest_memory_bytes``: of the guests measured; None in a forecast made when it could not be another than
    that of the guests predicted. ``conditions``: those that the predicted cells must have.
    """

    guest_memory_bytes: Positive | None = None
    cells: Annotated[tuple[CellUsed, ...], Field(min_length=1)]
    bases: tuple[FileUsed, ...]
    conditions: Annotated[dict[str, str], Field(min_length=1)]
    left_out: tuple[str, ...] = ()


class IntervalBytes(Model):
    """A mean with half of its interval; None where there is no interval."""

    mean_bytes: float
    half_width_bytes: Amount | None


class NaiveUse(Model):
    """What simpler rules would say, bytes."""

    constant_saving: float
    sharing_ratio: float
    nominal: float


class Predicted(Model):
    """A load of so many guests; ``saved``: off less on, None in a forecast made before it was stored."""

    workload: str
    guests: Positive
    mix: Mix
    used_off: IntervalBytes
    used_on: IntervalBytes
    saved: IntervalBytes | None = None
    gross: IntervalBytes
    used_on_apart_bytes: float
    safe_bytes: float
    at_risk_bytes: float
    naive_used_on_bytes: NaiveUse


class Limits(Model):
    """How many guests fit; None for more than were looked at, an ``admission`` also where it was not said."""

    off: Count | None
    on: Count | None
    on_low: Count | None
    on_high: Count | None
    admission: Count | None = None
    safe: Count | None
    at_risk_bytes: float | None


class Curves(Model):
    """Use by number of guests, columns of one length; None where there is no interval.

    ``admission_bytes``: the most that is used while the last of the guests is started; None of a forecast of
    before, which left KSM's own memory out of an envelope.
    """

    guests: Annotated[tuple[Positive, ...], Field(min_length=1)]
    off_bytes: Curve
    on_bytes: Curve
    on_low_bytes: CurveOrNulls
    on_high_bytes: CurveOrNulls
    admission_bytes: Curve | None = None
    safe_bytes: Curve

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if len({len(column) for _name, column in self if column is not None}) != 1:
            raise ValueError("its columns are of different lengths")
        return self


class LoadForecast(Model):
    """Limits and curves of a load; ``shares``: guests of each workload in it."""

    workload: str
    shares: Mix
    limits: Limits
    curve: Curves


class ForecastRecord(Model):
    """A forecast, written before the run that it predicts.

    ``others_bytes``: what programs that are no guests are taken to hold, of what is predicted of the host;
    None in a forecast of an envelope, and where what they held was not told apart. ``withheld_bytes``:
    likewise what is free or cache and not available.
    """

    schema_version: Version
    kind: Literal["forecast"]
    forecast_id: Text
    created_at: Timestamp
    scope: Literal["host", "envelope"]
    model: Literal["sharing", "census"]
    policy: Text
    hypervisor: Text
    guest_memory_bytes: Positive
    capacity_bytes: Above0
    design_digest: Digest
    digest: Digest
    calibration: CalibrationUsed
    base_bytes: float
    others_bytes: float | None = None
    withheld_bytes: float | None = None
    predicted: tuple[Predicted, ...]
    loads: Annotated[tuple[LoadForecast, ...], Field(min_length=1)]
    guest_breakdown: dict[str, dict[str, Any]]
    assumptions: tuple[str, ...]


# By kind, which is the name of the file
PHASES: dict[str, type[Phase]] = {
    "off": SnapshotRecord,
    "merge": MergeRecord,
    "on": SnapshotRecord,
    "after": AfterRecord,
    **dict.fromkeys(CHURN, ChurnRecord),
    "verify": VerifyRecord,
    "performance": PerformanceRecord,
    "failed": FailedRecord,
}
# By kind
RECORDS: dict[str, type[Model]] = {
    "plan": PlanRecord,
    **PHASES,
    "census": CensusRecord,
    "capacity_step": StepRecord,
    "divergence": DivergenceRecord,
    "forecast": ForecastRecord,
}


def json_schemas(records: Mapping[str, type[Model]] = RECORDS) -> dict[str, dict[str, Any]]:
    """The JSON Schema of each kind of file, whose version is that of the schema."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {kind: {**dialect, **model.model_json_schema()} for kind, model in records.items()}
