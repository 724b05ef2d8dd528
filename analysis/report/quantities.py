"""Every quantity that is shown: its name, unit, decimals, source and meaning, once.

Text, JSON, CSV, pages and figures take them from here; docs/quantities.md is written from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.measure.statistics import Difference, Estimate

PER_VM = "MB/VM"
UNITS = "MB and MiB both mean 2^20 bytes, the paper's MB included. MB/VM: of the whole host, over the guests."

KSM_RST = "Documentation/admin-guide/mm/ksm.rst"
PROC_RST = "Documentation/filesystems/proc.rst"


@dataclass(frozen=True)
class Quantity:
    """What a number is.

    Attributes:
        name: in JSON, CSV and the tidy table; it ends in its unit.
        label: heading of a column, a row or an axis.
        unit: as it is shown.
        decimals: as many as are shown.
        source: the counters, and where the kernel documents them.
        sentence: what it is, for whoever reads the table.
    """

    name: str
    label: str
    unit: str
    decimals: int
    source: str
    sentence: str

    @property
    def head(self) -> str:
        """Label and, on a line of its own, unit."""
        return f"{self.label}\n{self.unit}"

    def number(self, value: float | None, *, sign: bool = False) -> str:
        """A value without its unit, "-" where it is not known."""
        if value is None or math.isnan(value):
            return "-"
        # Never "-0.0".
        return f"{round(value, self.decimals) + 0.0:{'+' if sign else ''}.{self.decimals}f}"

    def estimate(self, seen: Estimate | Difference | None, *, sign: bool = False) -> str:
        """Mean and half of its 95 % interval without unit: "98.8 ± 0.6"; of one boot "98.8"."""
        if seen is None:
            return "-"
        mean = self.number(seen.mean, sign=sign)
        return mean if seen.half_width is None else f"{mean} ± {self.spread(seen.half_width)}"

    def spread(self, value: float) -> str:
        """Half of an interval or a standard deviation, never rounded to nothing."""
        least = 10.0**-self.decimals
        small = 0 < value < least / 2
        return f"<{self.number(least)}" if small else self.number(value)

    def words(self, seen: Estimate | None, *, sign: bool = False) -> str:
        """Mean, unit and what the interval is worth: "98.8 ± 0.6 MB/VM (95 % over 5 boots)"."""
        if seen is None:
            return "not known"
        if seen.half_width is None:
            return f"{self.number(seen.mean, sign=sign)} {self.unit}, no interval (1 boot)"
        worth = (
            f"95 % over {seen.n_boots} boots"
            if seen.conclusive
            else f"{seen.n_boots} boots: too few to conclude from"
        )
        return f"{self.estimate(seen, sign=sign)} {self.unit} ({worth})"


_AVAILABLE = f"/proc/meminfo: MemTotal, MemAvailable ({PROC_RST})"
_USED = f"{_AVAILABLE}; /proc/zoneinfo: count of the pagesets"
_GROSS = f"/sys/kernel/mm/ksm: (pages_sharing + ksm_zero_pages) x page size ({KSM_RST})"
_PSS = f"/proc/PID/smaps_rollup of each guest's QEMU: Pss ({PROC_RST})"
_APPLICATION = "performance.json: the command of the workload's file"
_CENSUS = "page census: every page of the paused guests is hashed"
_BURNDOWN = "samples of /sys/kernel/mm/ksm while KSM merges"

_SURVEY = "survey: every page that KSM may merge is hashed while the machines run; all contents, or a sample"
_ROOM = "analysis/measure/room.py, from a survey"

_FORECAST = "the model of analysis/model/sharing.py, fitted to measured cells"
_PROBE = "the probe in a guest, the others left alone (capacity runs)"
_SCHEDSTAT = "/proc/PID/task/TID/schedstat of the threads of the guest's virtual CPUs, around a request"

_ALL = (
    Quantity(
        "freed_mib_per_vm",
        "freed",
        PER_VM,
        1,
        f"{_PSS}; KSM's own memory, see ksm_own_mib_per_vm",
        "Memory freed, the headline: fall of the guests' proportional set sizes (PSS) from KSM off to the "
        "policy, less what KSM's own memory grew by. Other programs on the host do not move it.",
    ),
    Quantity(
        "freed_host_mib_per_vm",
        "host freed",
        PER_VM,
        1,
        _USED,
        "Memory freed as the whole host shows it: rise of MemAvailable and of the free pages on per-CPU "
        "lists. Whatever else runs on the host moves it.",
    ),
    Quantity(
        "gross_mib_per_vm",
        "gross",
        PER_VM,
        1,
        _GROSS,
        "What KSM's counters say was merged away, before its own memory.",
    ),
    Quantity(
        "general_profit_mib_per_vm",
        "profit",
        PER_VM,
        1,
        f"/sys/kernel/mm/ksm: general_profit ({KSM_RST}), kernel 6.4 and later",
        "The kernel's own net figure: gross less KSM's rmap_items.",
    ),
    Quantity(
        "pss_mib_per_vm",
        "PSS",
        PER_VM,
        1,
        _PSS,
        "Fall of the guests' proportional set sizes, KSM's own memory not taken off.",
    ),
    Quantity(
        "mem_available_mib_per_vm",
        "MemAvailable",
        PER_VM,
        1,
        _AVAILABLE,
        "Rise of MemAvailable from KSM off to the policy: what the paper measured. Free pages that wait on "
        "per-CPU lists, tens to hundreds of MiB by chance, are not in it.",
    ),
    Quantity(
        "ksm_own_mib_per_vm",
        "KSM's own",
        PER_VM,
        1,
        f"gross less general_profit; else ksm_rmap_items of /proc/PID/ksm_stat x 64 B; else the slab of "
        f"ksm_rmap_item ({KSM_RST})",
        "Memory that KSM takes for itself, one rmap_item of 64 bytes for each page that it looks after.",
    ),
    Quantity(
        "paper_mib_per_vm",
        "the paper",
        PER_VM,
        1,
        "figure 2 of the paper, by MemAvailable",
        "The paper's saving for the same focus; beside 15 guests of 512 MB only.",
    ),
    Quantity(
        "used_off_mib",
        "used, off",
        "MiB",
        0,
        _USED,
        "Memory that the whole host used with KSM off: MemTotal less MemAvailable less the free pages on "
        "per-CPU lists.",
    ),
    Quantity("used_on_mib", "used, on", "MiB", 0, _USED, "The same with the policy on, settled."),
    Quantity(
        "used_available_off_mib",
        "used, off",
        "MiB",
        0,
        _AVAILABLE,
        "MemTotal less MemAvailable with KSM off, as the paper measured.",
    ),
    Quantity(
        "used_available_on_mib",
        "used, on",
        "MiB",
        0,
        _AVAILABLE,
        "MemTotal less MemAvailable with the policy on, settled, as the paper measured.",
    ),
    Quantity(
        "converged_after_seconds",
        "settled",
        "s",
        1,
        _BURNDOWN,
        "Time from KSM switched on until the saving had settled (docs/measurement.md says when that is).",
    ),
    Quantity(
        "ksmd_cpu_seconds",
        "ksmd CPU",
        "s",
        1,
        f"/proc/PID/stat of ksmd: utime + stime ({PROC_RST})",
        "CPU time of ksmd from KSM switched on until the saving had settled, or the time for it was over.",
    ),
    Quantity(
        "rest_percent",
        "unexplained",
        "% of MemAvailable",
        1,
        "the ledger's two rests over the change of MemAvailable",
        "What no line of the ledger explains.",
    ),
    *(
        Quantity(
            f"seconds_to_{percent}_percent",
            f"{percent} % of the saving after",
            "s",
            1,
            _BURNDOWN,
            f"Time until {percent} % of the final gross saving was there.",
        )
        for percent in (50, 90, 99)
    ),
    Quantity(
        "best_90_percent_seconds",
        "90 % of the best after",
        "s",
        1,
        _BURNDOWN,
        "Time until 90 % of the final gross saving of the best policy, which is the one with the greatest "
        "mean, was there in the same boot.",
    ),
    Quantity(
        "lost_mib_per_vm_seconds",
        "lost on the way",
        "MB/VM x s",
        0,
        _BURNDOWN,
        "Area between the final gross saving of the best policy in the same boot and this one's while it "
        "grows, over the longest series of all policies; after its own a saving is taken to stay.",
    ),
    Quantity(
        "guests_use_mib_per_vm",
        "guests use",
        PER_VM,
        1,
        f"{_PSS}; KSM's own memory, see ksm_own_mib_per_vm",
        "What the guests cost under the policy: their proportional set sizes and KSM's own memory. Unlike "
        "what is freed it does not depend on how huge pages were used with KSM off.",
    ),
    Quantity(
        "settled_ksmd_percent",
        "ksmd, settled",
        "% of a CPU",
        1,
        f"/proc/PID/stat of ksmd: utime + stime ({PROC_RST})",
        "Share of one CPU that ksmd took in the series after the record under the policy (follow_seconds), "
        "over the time for which each cell of the place was followed.",
    ),
    Quantity(
        "steady_gross_mib_per_vm",
        "gross, mean over time",
        PER_VM,
        1,
        _GROSS,
        "Gross saving in that time, mean over it.",
    ),
    Quantity(
        "steady_least_mib_per_vm",
        "least",
        PER_VM,
        1,
        _GROSS,
        "The least gross saving of any sample in that time.",
    ),
    Quantity(
        "steady_gross_of_best_percent",
        "gross of the best's",
        "%",
        1,
        _GROSS,
        "The mean over time in percent of that of the best policy in the same boot, which is the one with "
        "the greatest.",
    ),
    Quantity(
        "settled_ksmd_of_best_percent",
        "ksmd of the best's",
        "%",
        1,
        f"/proc/PID/stat of ksmd: utime + stime ({PROC_RST})",
        "Share of one CPU that ksmd took in that time in percent of what it is under that best policy.",
    ),
    Quantity(
        "steady_cow_ksm_per_second",
        "merged pages written to",
        "1/s",
        1,
        "/proc/vmstat: cow_ksm",
        "Merged pages that were written to, and so copied, in a second of that time.",
    ),
    Quantity(
        "arrive_best_90_percent_seconds",
        "arrived: 90 % of the best after",
        "s",
        1,
        _BURNDOWN,
        "Half of the guests came back as new processes and were loaded (churn_seconds): time from then until "
        "90 % of the final gross saving of the best policy was there in the same boot. Not told where it "
        "was not in each boot while the series lasted.",
    ),
    Quantity(
        "arrive_lost_mib_per_vm_seconds",
        "arrived: lost on the way",
        "MB/VM x s",
        0,
        _BURNDOWN,
        "Likewise: area between the final gross saving of the best policy in the same boot and this one's "
        "over the series after they were loaded.",
    ),
    *(
        Quantity(
            f"{kind}_ksmd_percent",
            f"{label}: ksmd",
            "% of a CPU",
            1,
            f"/proc/PID/stat of ksmd: utime + stime ({PROC_RST})",
            f"Share of one CPU that ksmd took in the series after {what} (churn_seconds).",
        )
        for kind, label, what in (
            ("leave", "left", "half of the guests had left"),
            ("arrive", "arrived", "half of the guests had come back and were loaded"),
            ("diverge", "diverged", "one guest had made all that it filled differ"),
        )
    ),
    Quantity(
        "near_final_scans",
        "within 1 % for good after",
        "full scans",
        1,
        _BURNDOWN,
        "Complete scans after which the gross saving stayed within 1 % of its final value.",
    ),
    Quantity(
        "guest_pss_drop_mib",
        "fall of PSS",
        "MB",
        1,
        _PSS,
        "What one guest's QEMU gave: fall of its proportional set size.",
    ),
    Quantity(
        "guest_merged_mib",
        "merged pages",
        "MB",
        1,
        f"/proc/PID/ksm_stat: ksm_merging_pages x page size ({KSM_RST})",
        "One guest's merged pages, shared and sharing alike: attribution only, their sum exceeds the saving.",
    ),
    Quantity(
        "guest_rmap_mib",
        "rmap_items",
        "MB",
        1,
        f"/proc/PID/ksm_stat: ksm_rmap_items x 64 B ({KSM_RST})",
        "KSM's own memory for one guest.",
    ),
    *(
        Quantity(
            f"{name}_mib_per_vm",
            label,
            PER_VM,
            1,
            f"/sys/kernel/mm/ksm: pages_{name} x page size ({KSM_RST})",
            sentence,
        )
        for name, label, sentence in (
            ("shared", "merged pages themselves", "What KSM keeps once, for all that share it."),
            (
                "unshared",
                "unmergeable",
                "Pages that ksmd found unchanged since its last scan, and no other page like them.",
            ),
            ("volatile", "volatile", "Pages that changed from one scan to the next, or were scanned once."),
        )
    ),
    Quantity("resident_mib_per_vm", "resident", PER_VM, 1, _CENSUS, "The guests' resident memory."),
    Quantity(
        "zero_mib_per_vm",
        "zero pages",
        PER_VM,
        1,
        _CENSUS,
        "Pages of zeros that could go: all but one.",
    ),
    Quantity(
        "within_mib_per_vm",
        "duplicates within a guest (I)",
        PER_VM,
        1,
        _CENSUS,
        "Pages that a guest holds more than once, zero pages apart.",
    ),
    Quantity(
        "between_mib_per_vm",
        "duplicates between guests (D)",
        PER_VM,
        1,
        _CENSUS,
        "What several guests hold, one copy each, less the one that stays.",
    ),
    Quantity(
        "limited_mib_per_vm",
        "kept by max_page_sharing",
        PER_VM,
        1,
        f"{_CENSUS}; max_page_sharing ({KSM_RST})",
        "Duplicates that stay, since one page serves at most max_page_sharing copies; negative.",
    ),
    Quantity(
        "ideal_mib_per_vm",
        "ideal saving",
        PER_VM,
        1,
        _CENSUS,
        "What a perfect KSM would save: the four parts above together.",
    ),
    Quantity(
        "saved_mib_per_vm",
        "saved by KSM then",
        PER_VM,
        1,
        f"{_CENSUS}; their frames in /proc/kpageflags (Documentation/admin-guide/mm/pagemap.rst)",
        "What KSM had saved of the very pages that were counted: mappings of its frames less the frames.",
    ),
    Quantity(
        "gross_then_mib_per_vm",
        "gross at the census",
        PER_VM,
        1,
        f"/sys/kernel/mm/ksm at the moment of the census ({KSM_RST})",
        "What KSM's counters said at the moment of the census.",
    ),
    Quantity(
        "efficiency_percent",
        "efficiency",
        "%",
        1,
        f"{_CENSUS}, and their frames",
        "How much of the ideal saving KSM had reached at that moment, by the same pages: at most 100 %.",
    ),
    Quantity(
        "difference_percent",
        "B - A",
        "% of A",
        1,
        "the means of two campaigns, A and B",
        "What B has more than A, over A.",
    ),
    Quantity(
        "surveyed_resident_mib",
        "resident",
        "MiB",
        0,
        _SURVEY,
        "Resident memory of all machines that KSM may merge.",
    ),
    Quantity(
        "surveyed_zero_mib", "zero pages", "MiB", 0, _SURVEY, "Pages of zeros that could go: all but one."
    ),
    Quantity(
        "surveyed_zero_huge_mib",
        "zero pages of huge pages",
        "MiB",
        0,
        f"{_SURVEY}; their frames in /proc/kpageflags (Documentation/admin-guide/mm/pagemap.rst)",
        "Those of the zero pages that lie in huge pages. KSM splits a huge page to merge in it, and where "
        "the kernel then frees its zero pages, they are saved and in no counter of KSM.",
    ),
    Quantity(
        "surveyed_within_mib",
        "duplicates within a machine",
        "MiB",
        0,
        _SURVEY,
        "Pages that a machine holds more than once, zero pages apart.",
    ),
    Quantity(
        "surveyed_between_mib",
        "duplicates between machines",
        "MiB",
        0,
        _SURVEY,
        "What several machines hold, one copy each, less the one that stays.",
    ),
    Quantity(
        "surveyed_limited_mib",
        "kept by max_page_sharing",
        "MiB",
        0,
        f"{_SURVEY}; max_page_sharing ({KSM_RST})",
        "Duplicates that stay, since one page serves at most max_page_sharing copies; negative.",
    ),
    Quantity(
        "surveyed_ideal_mib",
        "ideal saving",
        "MiB",
        0,
        _SURVEY,
        "What a perfect KSM would save on the host as it is: the four parts above together.",
    ),
    Quantity(
        "surveyed_counted_mib",
        "of it in KSM's counters",
        "MiB",
        0,
        f"{_SURVEY}; /sys/kernel/mm/transparent_hugepage/shrink_underused",
        "What KSM's counters would show of the ideal saving: where the kernel frees the zero pages of a huge "
        "page that is split, these are in none.",
    ),
    Quantity(
        "surveyed_gross_mib",
        "saved by KSM now",
        "MiB",
        0,
        f"/sys/kernel/mm/ksm: (pages_sharing + ksm_zero_pages) x page size ({KSM_RST})",
        "What KSM's counters say is merged away on the host at the survey, other processes' pages included.",
    ),
    Quantity(
        "surveyed_own_mib",
        "KSM's own memory",
        "MiB",
        0,
        f"resident pages that KSM may merge x 64 B, one rmap_item each ({KSM_RST})",
        "What KSM would take for itself to look after all of these pages.",
    ),
    Quantity(
        "surveyed_moved_mib",
        "moved",
        "MiB",
        0,
        "survey: one page in 64, drawn at random, is hashed before and after",
        "Pages that became others while all were read; the ideal saving errs by no more.",
    ),
    Quantity(
        "foretold_mib_per_vm",
        "foretold",
        PER_VM,
        1,
        _SURVEY,
        "What a survey of a cell's guests, taken before KSM was on, says that it will save.",
    ),
    Quantity(
        "foretold_error_percent",
        "error",
        "%",
        1,
        "a survey in a cell and the cell's records",
        "Foretold by the survey less saved then, over saved; mean over boots of the cells' own.",
    ),
    Quantity(
        "machine_alone_mib",
        "its own",
        "MiB",
        0,
        _SURVEY,
        "Contents of a machine that no other machine has, once each.",
    ),
    Quantity(
        "machine_off_mib",
        "one more, KSM off",
        "MiB",
        0,
        _ROOM,
        "What one more machine like it needs without KSM: anonymous memory and page tables of its process.",
    ),
    Quantity(
        "machine_on_mib",
        "one more, KSM",
        "MiB",
        0,
        _ROOM,
        "What one more machine like it needs with a perfect KSM: its own contents once, what lies "
        "outside of its guest's memory, and KSM's own memory.",
    ),
    Quantity(
        "more_off_guests",
        "more, KSM off",
        "machines",
        0,
        _ROOM,
        "How many more machines like it fit without KSM.",
    ),
    Quantity(
        "more_on_guests",
        "more, KSM",
        "machines",
        0,
        _ROOM,
        "How many more machines like it are expected to fit once a perfect KSM has merged all.",
    ),
    Quantity(
        "more_safe_guests",
        "more, safe",
        "machines",
        0,
        _ROOM,
        "How many more fit when no page is shared and all memory of every machine, old or new, is in use.",
    ),
    Quantity(
        "error_percent",
        "error",
        "%",
        2,
        "a stored forecast and the records measured after it",
        "Predicted less measured memory used, over the measured; mean: of the absolute values.",
    ),
    Quantity(
        "saving_error_percent",
        "error of the saving",
        "%",
        1,
        "a stored forecast and the records measured after it",
        "Predicted less measured saving (use with KSM off less use with the policy on), over the measured.",
    ),
    Quantity(
        "inside_percent",
        "inside",
        "%",
        0,
        "a stored forecast and the records measured after it",
        "Measured cells whose memory used, or saving, lies in its 95 % prediction interval of the forecast.",
    ),
    Quantity(
        "limit_guests",
        "limit",
        "guests",
        0,
        "forecasts; capacity runs",
        "The largest number of guests that fits.",
    ),
    Quantity(
        "safe_mib",
        "safe need",
        "MiB",
        0,
        _FORECAST,
        "Memory needed when no page is shared any more and every page of guest memory is in use.",
    ),
    Quantity(
        "at_risk_mib",
        "at risk",
        "MiB",
        0,
        _FORECAST,
        "What is needed beyond the expected use when all pages diverge: safe need less expected use.",
    ),
    Quantity(
        "lacking_mib",
        "lacking",
        "MiB",
        0,
        _FORECAST,
        "What the memory would be short of if all pages of as many guests as fit under the policy diverged.",
    ),
    Quantity(
        "write_latency_p50_us",
        "p50",
        "µs",
        1,
        _PROBE,
        "Half of a guest's writes to a page took no longer; median over the probes.",
    ),
    Quantity(
        "write_latency_p99_us",
        "p99",
        "µs",
        1,
        _PROBE,
        "Of 100 writes of a guest to a page 99 took no longer; median over the probes.",
    ),
    Quantity(
        "touch_mib_per_second",
        "touch",
        "MiB/s",
        0,
        _PROBE,
        "Memory that a guest touches in a second; median over the probes.",
    ),
    Quantity(
        "cpu_iterations_per_second",
        "CPU",
        "it/s",
        0,
        _PROBE,
        "Work of a guest that needs its CPU alone; median over the probes.",
    ),
    Quantity(
        "read_cpu_us_per_mib",
        "CPU/MiB",
        "µs",
        0,
        _SCHEDSTAT,
        "CPU time of the host for a MiB that a guest reads of all that it holds, whatever else runs on the "
        "host; median over the probes.",
    ),
    Quantity(
        "operation_cpu_us",
        "CPU/op.",
        "µs",
        1,
        _SCHEDSTAT,
        "CPU time of the host for one operation of a guest's CPU work, the CRC-32 of 64 KiB; median over the "
        "probes.",
    ),
    Quantity(
        "ksmd_percent",
        "ksmd",
        "%",
        1,
        "CPU time of ksmd (/proc/PID/stat) over the time of the probes",
        "Share of one CPU that ksmd took.",
    ),
    Quantity(
        "psi_memory_percent",
        "PSI mem",
        "%",
        1,
        "/proc/pressure/memory: some (Documentation/accounting/psi.rst)",
        "Share of the time in which some task of the host waited for memory.",
    ),
    Quantity(
        "cow_ksm_per_second",
        "COW",
        "1/s",
        0,
        "/proc/vmstat: cow_ksm",
        "Writes to merged pages, each of which was copied.",
    ),
    Quantity(
        "pgmajfault_per_second",
        "faults",
        "1/s",
        1,
        "/proc/vmstat: pgmajfault",
        "Page faults of the host that had to read.",
    ),
    Quantity(
        "steal_percent",
        "steal",
        "%",
        1,
        "/proc/stat: steal",
        "Share of all CPUs that the host of this host took.",
    ),
    Quantity(
        "application_figure",
        "figure",
        "its own",
        1,
        _APPLICATION,
        "What the application's own performance command gave, mean over the guests that were measured.",
    ),
    Quantity(
        "application_change_percent",
        "change",
        "%",
        1,
        _APPLICATION,
        "The application's figure under the policy against KSM off in the same guests, off first.",
    ),
    Quantity(
        "application_cpu_seconds",
        "CPU",
        "s",
        2,
        f"{_APPLICATION}; {_SCHEDSTAT}",
        "How long the guest's virtual CPUs ran for the application's performance command.",
    ),
    Quantity(
        "application_cpu_change_percent",
        "CPU change",
        "%",
        1,
        f"{_APPLICATION}; {_SCHEDSTAT}",
        "The same under the policy against KSM off, off first.",
    ),
    Quantity(
        "application_written_mib_per_second",
        "merged pages written to",
        "MiB/s",
        2,
        f"{_APPLICATION}; /proc/vmstat: cow_ksm",
        "How fast the saving would decay were it not for ksmd: merged pages that were written to, and so "
        "copied, while one guest ran its performance command, less what was before it.",
    ),
    Quantity(
        "application_quiet_mib_per_second",
        "before it",
        "MiB/s",
        2,
        "/proc/vmstat: cow_ksm",
        "The same in the seconds before, while no guest was asked anything.",
    ),
    Quantity(
        "application_saved_change_mib",
        "saving then",
        "MiB",
        1,
        _GROSS,
        "What the whole host's gross saving grew by while one guest ran its command and ksmd went on.",
    ),
    Quantity(
        "application_command_seconds",
        "took",
        "s",
        1,
        _APPLICATION,
        "How long the command took under the policy, by the host's clock.",
    ),
    Quantity(
        "touch_lost_percent",
        "touch lost",
        "%",
        1,
        _PROBE,
        "Less memory touched in a second than with KSM off at the same number of guests.",
    ),
    Quantity(
        "cpu_lost_percent",
        "CPU lost",
        "%",
        1,
        _PROBE,
        "Less CPU work in a second than with KSM off at the same number of guests.",
    ),
    Quantity(
        "p50_added_percent",
        "p50 added",
        "%",
        1,
        _PROBE,
        "Longer median write than with KSM off at the same number of guests.",
    ),
    Quantity(
        "worst_p50_added_percent",
        "p50 added, worst guest",
        "%",
        1,
        _PROBE,
        "The same of the guest of a cell that lost most, which a median over guests hides where few of them "
        "have merged.",
    ),
    Quantity(
        "p99_added_percent",
        "p99 added",
        "%",
        1,
        _PROBE,
        "Longer 99th percentile of writes than with KSM off at the same number of guests.",
    ),
    Quantity(
        "read_cpu_added_percent",
        "CPU/MiB added",
        "%",
        1,
        _SCHEDSTAT,
        "More CPU time of the host for a MiB read than with KSM off at the same number of guests.",
    ),
    Quantity(
        "operation_cpu_added_percent",
        "CPU/op. added",
        "%",
        1,
        _SCHEDSTAT,
        "More CPU time of the host for an operation than with KSM off at the same number of guests.",
    ),
)

QUANTITIES = {one.name: one for one in _ALL}

# The tables of a summary, column by column.
SAVED = (
    "freed_mib_per_vm",
    "mem_available_mib_per_vm",
    "paper_mib_per_vm",
    "freed_host_mib_per_vm",
    "gross_mib_per_vm",
    "pss_mib_per_vm",
)
USED = (
    "used_off_mib",
    "used_on_mib",
    "ksm_own_mib_per_vm",
    "general_profit_mib_per_vm",
    "converged_after_seconds",
    "ksmd_cpu_seconds",
)
# Policies side by side, column by column.
COMPARED_POLICIES = (
    "freed_mib_per_vm",
    "gross_mib_per_vm",
    "guests_use_mib_per_vm",
    "seconds_to_90_percent",
    "best_90_percent_seconds",
    "lost_mib_per_vm_seconds",
    "ksmd_cpu_seconds",
    "settled_ksmd_percent",
)
# The tables of a capacity run, column by column.
STEPS = (
    "write_latency_p50_us",
    "write_latency_p99_us",
    "touch_mib_per_second",
    "cpu_iterations_per_second",
    "read_cpu_us_per_mib",
    "operation_cpu_us",
    "ksmd_percent",
    "psi_memory_percent",
    "cow_ksm_per_second",
    "pgmajfault_per_second",
    "steal_percent",
)
CELL_COSTS = (
    "touch_lost_percent",
    "cpu_lost_percent",
    "p50_added_percent",
    "worst_p50_added_percent",
    "p99_added_percent",
    "read_cpu_added_percent",
    "operation_cpu_added_percent",
)
# Those that capacity runs have, too: medians over the probes
COSTS = tuple(name for name in CELL_COSTS if name != "worst_p50_added_percent")
CENSUS = (
    "zero_mib_per_vm",
    "within_mib_per_vm",
    "between_mib_per_vm",
    "limited_mib_per_vm",
    "ideal_mib_per_vm",
    "saved_mib_per_vm",
    "gross_then_mib_per_vm",
    "efficiency_percent",
)
SURVEY = (
    "surveyed_zero_mib",
    "surveyed_zero_huge_mib",
    "surveyed_within_mib",
    "surveyed_between_mib",
    "surveyed_limited_mib",
    "surveyed_ideal_mib",
    "surveyed_counted_mib",
    "surveyed_gross_mib",
    "surveyed_own_mib",
)
MACHINE = (
    "machine_alone_mib",
    "machine_off_mib",
    "machine_on_mib",
    "more_off_guests",
    "more_on_guests",
    "more_safe_guests",
)
