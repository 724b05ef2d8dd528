"""What a cell saved, against sums worked out by hand; and what it is when a counter lacks."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import MIB, store, synthetic_host, synthetic_plan, synthetic_records
from synthetic_capacity import capacity_record

from analysis.measure.saving import (
    OF_HOST,
    PER_VM,
    Saving,
    Unknown,
    gross_bytes,
    ksm_own_bytes,
    parted,
    saving,
    saving_of,
)
from analysis.plan.design import PROJECT, Cell
from analysis.records.loading import load_run
from analysis.records.models import Host, SnapshotRecord, StepRecord
from analysis.records.reading import read_record

Records = dict[str, dict[str, Any]]
PUBLISHED = sorted((PROJECT / "results/reference").rglob("on.json"))


def saved(results: Path, change: Any = None, **design: Any) -> Saving:
    """Two guests, 100 MiB each by gross, 8 MiB each of rmap_items, then ``change``."""
    return saving(load_run(store(results, synthetic_plan(guests=2, **design), change)).cells[0])


def in_both(records: Records, **ksm: int | None) -> None:
    for kind in ("off", "on"):
        records[kind]["observed"]["host"]["ksm"].update(ksm)


def test_every_value_is_that_of_the_whole_host_worked_out_by_hand(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        off, on = (records[kind]["observed"] for kind in ("off", "on"))
        off["host"]["meminfo"].update(MemTotal_bytes=2000 * MIB, MemAvailable_bytes=1000 * MIB)
        on["host"]["meminfo"].update(MemTotal_bytes=2000 * MIB, MemAvailable_bytes=1090 * MIB)
        off["host"]["per_cpu_free_pages"], on["host"]["per_cpu_free_pages"] = 1024, 6144
        off["host"]["ksm"].update(pages_sharing=512, ksm_zero_pages=0, general_profit=1 * MIB)
        on["host"]["ksm"].update(pages_sharing=25_600, ksm_zero_pages=1024, general_profit=70 * MIB)
        for seen, pss in ((off, 300), (on, 210)):
            for guest in seen["guests"].values():
                guest["smaps_rollup"]["Pss_bytes"] = pss * MIB

    seen = saved(results, change)
    # KSM's own: off 2 - 1 = 1 MiB, on 104 - 70 = 34 MiB.
    wanted = {
        "gross": 102.0,
        "general_profit": 69.0,
        "ksm_own": 33.0,
        "pss": 180.0,
        "mem_available": 90.0,
        "freed_guests": 180.0 - 33.0,
        "freed": 180.0 - 33.0,
        "freed_host": 90.0 + 20.0,
        "used_off": 1000.0 - 4.0,
        "used_on": 910.0 - 24.0,
        "used_available_off": 1000.0,
        "used_available_on": 910.0,
    }
    assert {name: getattr(seen, name) / MIB for name in wanted} == wanted
    assert {name: seen.per_vm_mib(name) for name in wanted} == {n: value / 2 for n, value in wanted.items()}
    assert seen.quantities() == {
        name: wanted[name.removesuffix("_mib")]
        if name.startswith("used")
        else wanted[name.removesuffix("_mib_per_vm")] / 2
        for name in (*PER_VM, *OF_HOST)
    }


def test_without_general_profit_ksms_own_memory_is_told_by_ksm_stat(results: Path) -> None:
    seen = saved(results, lambda _cell, records: in_both(records, general_profit=None))
    # 131072 rmap_items of 64 bytes in each guest are 8 MiB.
    assert seen.per_vm_mib("ksm_own") == 8.0
    assert isinstance(seen.general_profit, Unknown)
    assert seen.per_vm_mib("freed") == 92.0


def test_without_ksm_stat_ksms_counters_of_pages_tell_it(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        in_both(records, general_profit=None)
        for kind in ("off", "on"):
            for guest in records[kind]["observed"]["guests"].values():
                guest["ksm_stat"] = None
        counters = {"pages_shared": 100, "pages_sharing": 51200, "pages_unshared": 200000}
        records["on"]["observed"]["host"]["ksm"] |= {**counters, "pages_volatile": 262144 - 251300}

    # 262144 rmap_items of 64 bytes are 16 MiB, of two guests.
    assert saved(results, change).per_vm_mib("ksm_own") == 8.0


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: "-".join(path.parts[-4:-1]))
def test_the_three_ways_to_ksms_own_memory_agree_in_published_records(path: Path) -> None:
    record = read_record(path, SnapshotRecord)
    observed, page = record.observed, record.provenance.page_size_bytes
    told = []
    ksm = observed.host.ksm
    poorer = ksm.model_copy(update={"general_profit": None})
    for counters, guests in ((ksm, observed.guests), (poorer, observed.guests), (poorer, {})):
        host = observed.host.model_copy(update={"ksm": counters})
        told.append(ksm_own_bytes(host, guests, record.provenance.ksm_knobs, page))
    first, *others = told
    assert others == pytest.approx([first, first], rel=0.02)


def test_without_any_it_is_unknown_and_so_is_what_rests_on_it(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        in_both(records, general_profit=None, pages_volatile=None)
        records["on"]["observed"]["guests"]["guest02"]["ksm_stat"] = None

    seen = saved(results, change)
    reason = Unknown("its kernel has neither general_profit nor ksm_stat")
    assert seen.ksm_own == seen.freed == seen.per_vm_mib("freed_guests") == reason
    assert (seen.per_vm_mib("gross"), seen.per_vm_mib("pss")) == (100.0, 100.0)


def test_zero_pages_used_but_not_counted_leave_the_gross_unknown(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        in_both(records, ksm_zero_pages=None)
        records["on"]["provenance"]["ksm_knobs"]["use_zero_pages"] = 1

    seen = saved(results, change)
    assert seen.gross == Unknown("its kernel uses zero pages without counting them")
    # ksm_stat tells KSM's own memory all the same.
    assert seen.per_vm_mib("freed") == 92.0


@pytest.mark.parametrize("knob", [{}, {"use_zero_pages": 0}])
def test_where_no_zero_page_is_used_none_is_missing(knob: dict[str, int | str]) -> None:
    host = Host.model_validate(synthetic_host(pages_sharing=10, ksm_zero_pages=None))
    assert gross_bytes(host, knob, 4096) == 40960.0


def test_a_kernel_that_hides_its_per_cpu_lists_tells_memavailable_alone(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        records["on"]["observed"]["host"]["per_cpu_free_pages"] = None

    seen = saved(results, change)
    assert seen.used_on == seen.freed_host == Unknown("free pages on per-CPU lists were not read")
    assert not isinstance(seen.used_off, Unknown)
    assert seen.per_vm_mib("mem_available") == 92.0


def test_of_two_steps_of_a_capacity_run_only_the_host_is_known() -> None:
    plan = synthetic_plan(guests=2)
    records = synthetic_records(plan, plan.cells[0])
    steps = []
    for policy, kind in (("off", "off"), ("ksm", "on")):
        content = capacity_record(policy=policy, guests=2, provenance=records[kind]["provenance"])
        content["observed"]["host"] = records[kind]["observed"]["host"]
        steps.append(StepRecord.model_validate_json(json.dumps(content)))
    seen = saving_of(*steps, guests=2)
    assert (seen.per_vm_mib("gross"), seen.per_vm_mib("freed_host")) == (100.0, 92.0)
    assert seen.pss == seen.freed == Unknown("the guests' processes were not read")


@pytest.mark.parametrize(("neighbour_mib", "apart_mib"), [(32, None), (33, 33), (-33, -33)])
def test_the_two_ways_part_where_others_took_or_gave_more_than_the_bound(
    results: Path, neighbour_mib: int, apart_mib: int | None
) -> None:
    def change(_cell: Cell, records: Records) -> None:
        records["on"]["observed"]["host"]["meminfo"]["MemAvailable_bytes"] += neighbour_mib * MIB

    seen = saved(results, change)
    assert seen.per_vm_mib("freed") == 92.0
    assert parted(seen) == (None if apart_mib is None else apart_mib * MIB)


def test_of_a_large_saving_one_percent_is_within_the_bound(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        for kind, pss in (("off", 4108), ("on", 0)):
            for guest in records[kind]["observed"]["guests"].values():
                guest["smaps_rollup"]["Pss_bytes"] = pss * MIB
        records["on"]["observed"]["host"]["meminfo"]["MemAvailable_bytes"] += (2 * 4000 + 80) * MIB

    seen = saved(results, change)
    assert seen.per_vm_mib("freed") == 4100.0
    assert seen.per_vm_mib("freed_host") == 92.0 + 4040.0
    assert parted(seen) is None


def test_where_one_of_the_two_is_unknown_they_do_not_part(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        records["on"]["observed"]["host"]["per_cpu_free_pages"] = None

    assert parted(saved(results, change)) is None
