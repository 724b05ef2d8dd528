"""Synthetic cells by a known memory model, and capacity records: no measurement."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthetic import MIB, PAGE, began, store, synthetic_plan, synthetic_records
from synthetic_census import census_record

from analysis.plan.design import Cell
from analysis.plan.proof import given_forecasts, named
from analysis.records.models import NamedForecast

TOTAL = 24000 * MIB
# What programs that are no guests hold
OTHERS_MIB = 150
# Cache of a host that is available; the rest of its 1200 MiB is withheld
CACHE_MIB = 1000


@dataclass(frozen=True)
class Truth:
    """The parameters of one workload, in MiB: u, I, D, KSM's own, and what no counter tells."""

    per_guest: float
    within: float
    between: float
    ksm: float = 8.0
    uncounted: float = 0.0


BASE = 700.0
TRUTH = {
    "idle": Truth(per_guest=420, within=30, between=110, ksm=4.5, uncounted=15),
    "constant_fill": Truth(per_guest=640, within=400, between=40),
    "random_fill": Truth(per_guest=640, within=2, between=40),
}


def used_mib(truth: Truth, guests: int) -> tuple[float, float, float]:
    """Off, on and gross by the model, the arithmetic written out anew."""
    off = BASE + guests * truth.per_guest
    gross = guests * truth.within + truth.between * (guests - 1)
    return off, off - gross + guests * (truth.ksm - truth.uncounted), gross


def shaped(
    truth: Mapping[str, Truth] = TRUTH,
    noise: Callable[[Cell], float] = lambda _cell: 0.0,
    recorded_at: str = "2026-11-23T19:00:00",
    others: Callable[[Cell, str], float] = lambda _cell, _kind: 0.0,
    withheld: Callable[[Cell, str], float] = lambda _cell, _kind: 0.0,
) -> Callable[[Cell, dict[str, dict[str, Any]]], None]:
    """Set the memory of a cell's records to the model's, plus noise in MiB of the guests in the on arm.

    ``recorded_at``: to the second; each cell keeps its own microseconds. ``others``: MiB that other programs
    hold beyond OTHERS_MIB in the record of that kind. ``withheld``: MiB of its cache that are not available.
    """

    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        known = truth[cell.workload]
        off, on, gross = used_mib(known, cell.guests)
        sharing = round(gross * MIB / PAGE)
        for kind, used in (("off", off), ("on", on + noise(cell))):
            host = records[kind]["observed"]["host"]
            host["meminfo"]["MemTotal_bytes"] = TOTAL
            host["meminfo"]["MemAvailable_bytes"] = TOTAL - round(used * MIB)
            host["meminfo"]["MemFree_bytes"] = TOTAL - round(used * MIB) - CACHE_MIB * MIB
            for guest in records[kind]["observed"]["guests"].values():
                guest["page_tables_bytes"] = MIB
                # 19 MiB of each guest are outside of its own memory.
                gone = known.uncounted + (gross - noise(cell)) / cell.guests
                pss = known.per_guest - 20 - (0 if kind == "off" else gone)
                guest["smaps_rollup"]["Pss_Anon_bytes"] = round(pss * MIB)
            hold_others(records[kind])
            host["meminfo"]["AnonPages_bytes"] += round(others(cell, kind) * MIB)
            for name in ("MemAvailable", "MemFree"):
                host["meminfo"][f"{name}_bytes"] -= round(others(cell, kind) * MIB)
            host["meminfo"]["MemAvailable_bytes"] -= round(withheld(cell, kind) * MIB)
        ksm = records["on"]["observed"]["host"]["ksm"]
        ksm["pages_sharing"] = sharing
        ksm["general_profit"] = sharing * PAGE - round(cell.guests * known.ksm * MIB)
        for record in records.values():
            record["recorded_at"] = recorded_at + record["recorded_at"][len(recorded_at) :]

    return change


def hold_others(record: dict[str, Any]) -> None:
    """Other programs hold OTHERS_MIB beside the record's guests."""
    observed = record["observed"]
    own = sum(guest["smaps_rollup"]["Pss_Anon_bytes"] for guest in observed.get("guests", {}).values())
    observed["host"]["meminfo"]["AnonPages_bytes"] = own + OTHERS_MIB * MIB


def naming(*paths: Path) -> list[NamedForecast]:
    """What a run that is given these forecasts holds of them."""
    return named(given_forecasts(list(paths)))


def store_numbers(
    results: Path,
    numbers: tuple[int, ...],
    prefix: str = "n",
    *,
    focus: str = "all",
    design: Mapping[str, Any] | None = None,
    forecasts: Sequence[Path] = (),
    start: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> None:
    """A run of every focus for each number of guests.

    ``forecasts``: files that it names; ``start``: what its guests began from otherwise.
    """
    change = shaped(**keywords)

    def started(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        change(cell, records)
        began(records, **(start or {}))

    for guests in numbers:
        plan = synthetic_plan(
            run_id=f"{prefix}{guests}",
            guests=guests,
            focus=focus,
            forecasts=naming(*forecasts),
            **(design or {}),
        )
        store(results, plan, started)


def store_censuses(results: Path, run_id: str = "n6") -> None:
    """Beside the cells of a run, a census of guests that share 30 contents, and have 10 alone and 5 twice."""
    for path in sorted((results / run_id).rglob("on.json")):
        record = json.loads(path.read_text())
        cell = Cell(**record["cell"])
        pages = {
            f"guest{guest:02d}": [
                *range(1, 31),
                *range(1000 * guest, 1000 * guest + 10),
                *[1000 * guest + 20 + number // 2 for number in range(10)],
            ]
            for guest in range(1, cell.guests + 1)
        }
        path.with_name("census.json").write_text(
            json.dumps({**census_record(pages, cell=cell), "run_id": record["run_id"]})
        )


ANSWER = {
    "write_latency_p50_us": 2.0,
    "write_latency_p99_us": 20.0,
    "touch_mib_per_second": 800.0,
    "cpu_iterations_per_second": 1000.0,
}


def probe(guest: str, slow: float = 1.0) -> dict[str, Any]:
    """A guest probed for 2 s beside half a second for the request, slower by a factor; so is reading."""
    answer = {name: value * slow if "latency" in name else value / slow for name, value in ANSWER.items()}
    took = {"request": (0.5, 0.4), "probe": (2.5, 2.4), "read": (1.5 * slow, 1.4 * slow)}
    return {
        "guest": guest,
        "answer": answer,
        **{
            name: {"seconds": seconds, "run_seconds": ran, "wait_seconds": 0.1}
            for name, (seconds, ran) in took.items()
        },
        "read_bytes": 100 * MIB,
    }


def envelope_samples(used_mib: list[float], saved_mib: list[float] | None = None) -> dict[str, Any]:
    """A series of one sample a second."""
    n = len(used_mib)
    plan = synthetic_plan(guests=2)
    samples = synthetic_records(plan, plan.cells[0])["merge"]["observed"]["samples"]
    columns = {name: [column[0]] * n for name, column in samples.items()}
    sharing = [round(value * MIB / PAGE) for value in saved_mib or [0.0] * n]
    return {
        **columns,
        "seconds": [float(second) for second in range(n)],
        "pages_sharing": sharing,
        # KSM itself takes nothing.
        "ksm_zero_pages": [0] * n,
        "general_profit": [pages * PAGE for pages in sharing],
        "cow_ksm": [100 * second for second in range(n)],
        "envelope_working_set_bytes": [round(value * MIB) for value in used_mib],
    }


def capacity_record(**changes: Any) -> dict[str, Any]:
    """One sound capacity step: 4 idle guests, KSM off, in an envelope of 8 GiB."""
    plan = synthetic_plan(guests=2)
    record = copy.deepcopy(synthetic_records(plan, plan.cells[0])["off"])
    return {
        "schema_version": 2,
        "kind": "capacity_step",
        "run_id": "cap1",
        "recorded_at": "2026-11-24T19:00:00.000000Z",
        "hypervisor": "host1",
        "policy": "off",
        "workload": "idle",
        "guests": 4,
        "guest_memory_bytes": 512 * MIB,
        "envelope_bytes": 8192 * MIB,
        "requested": {"guest_reserve_bytes": 64 * MIB},
        "provenance": record["provenance"],
        "observed": {
            "host": record["observed"]["host"],
            "envelope": {
                "usage_bytes": 1700 * MIB,
                "limit_bytes": 8192 * MIB,
                "working_set_bytes": 1600 * MIB,
                "failcnt": 0,
                "pressure": None,
            },
            "converged": None,
            "probes": [probe(f"guest{n:02d}") for n in range(1, 5)],
            "window": {
                "seconds": 10.0,
                "ksmd_cpu_seconds": 1.0,
                "steal_seconds": 0.5,
                "vmstat": {"pgfault": 1000, "pgmajfault": 5, "cow_ksm": 300, "pswpin": 0, "pswpout": 0},
                "psi_some_microseconds": {"cpu": 0, "memory": 1_000_000, "io": 0},
            },
        },
        "stop": None,
        **changes,
    }


def step(
    policy: str,
    guests: int,
    used: float,
    stop: str = "",
    slow: float = 1.0,
    *,
    peak: float | None = None,
    boot: int = 1,
) -> dict[str, Any]:
    """A capacity step that uses so many MiB, KSM's own among them, its probes slower by a factor.

    ``peak``: the most that was used while its guests were started; None: that was not watched.
    """
    record = capacity_record(policy=policy, guests=guests, boot=boot)
    observed = record["observed"]
    ksm = observed["host"]["ksm"]
    own = (ksm["pages_sharing"] + (ksm["ksm_zero_pages"] or 0)) * PAGE - ksm["general_profit"]
    observed["envelope"]["working_set_bytes"] = max(0, round(used * MIB) - own)
    observed["converged"] = None if policy == "off" else True
    observed["probes"] = [probe(f"guest{n:02d}", slow) for n in range(1, guests + 1)]
    if peak is not None:
        observed["admission"] = envelope_samples([used, peak, used])
    if stop:
        record["stop"] = {"reason": stop, "measure": "envelope_free_bytes", "value": 1.0, "limit": 2.0}
    return record


def divergence_record(
    saved_mib: list[float], used: list[float], alive: int = 4, ends: tuple[float, ...] = ()
) -> dict[str, Any]:
    """Merged guests that diverge one after another from second 2 on; one sample a second.

    ``ends``: when each guest has answered; all but the first begin when the one before has.
    """
    record = capacity_record(kind="divergence", policy="ksm")
    ends = ends or tuple(2.0 + (len(saved_mib) - 4) * turn / 4 for turn in range(1, 5))
    record["observed"] = {
        "turns": [
            {
                "guest": f"guest{number:02d}",
                "started_seconds": begin,
                "finished_seconds": end,
                "written_bytes": 300 * MIB,
            }
            for number, (begin, end) in enumerate(zip((2.0, *ends[:-1]), ends, strict=True), start=1)
        ],
        "held_bytes": {f"guest{number:02d}": 300 * MIB for number in range(1, 5)},
        "samples": envelope_samples(used, saved_mib),
        "psi_some_microseconds": {"cpu": 0, "memory": 80_000, "io": 0},
        "guests_alive": alive,
        "oom_kills": 0,
    }
    return record


def store_capacity(results: Path, records: list[dict[str, Any]]) -> None:
    for record in records:
        boot = record.get("boot", 1)
        name = f"{record['kind']}-{record['policy']}-{boot}-{record['guests']:02d}.json"
        path = results / "capacity" / record["run_id"] / record["hypervisor"] / record["workload"] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
