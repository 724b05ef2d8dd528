"""The ledger: items that sum exactly, against changes made by hand, and the flag."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import MIB, PAGE, store, synthetic_plan, synthetic_records

from analysis.measure.ledger import (
    CACHE,
    FILES,
    GUEST_REST,
    HOST_REST,
    OTHERS,
    PAGE_TABLES,
    PER_CPU,
    RMAP,
    SLAB,
    SOURCES,
    SPLIT,
    STACKS,
    SWAPPED,
    TOUCHED,
    Ledger,
    LedgerError,
    Reconciliation,
    ledger,
)
from analysis.measure.saving import Unknown, saving
from analysis.plan.design import Cell
from analysis.records.loading import COMPLETE, CellRecords, load_run
from analysis.records.models import PHASES

Records = dict[str, dict[str, Any]]

# A loaded machine is no failure, and what failed once fails again.
steady = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def book(results: Path, change: Any = None) -> Ledger:
    """Two guests, 100 MiB each by gross, 8 MiB each of rmap_items, then ``change``."""
    found = ledger(load_run(store(results, synthetic_plan(guests=2), change)).cells[0])
    for way in (found.available, found.pss):
        assert way.start_bytes + sum(item.bytes for item in way.items) == way.end_bytes
    assert sum(item.bytes for item in found.parts) == found.available.end_bytes
    return found


def mib(way: Reconciliation) -> dict[str, float]:
    return {item.name: item.bytes / MIB for item in way.items if item.bytes}


def on_host(records: Records, **mib_more: int) -> None:
    for name, more in mib_more.items():
        records["on"]["observed"]["host"]["meminfo"][f"{name.replace('_file', '(file)')}_bytes"] += more * MIB


def test_gross_less_rmap_items_is_what_the_host_gains(results: Path) -> None:
    found = book(results)
    assert found.available.start_bytes == 200 * MIB
    assert mib(found.available) == {RMAP: -16.0}
    assert mib(found.pss) == {}
    assert (found.rest_bytes, found.flagged) == (0, False)


def test_every_item_is_read_from_its_own_lines(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        on_host(
            records,
            AnonPages=5,  # another process grew
            SUnreclaim=3,
            PageTables=2,
            KernelStack=1,
            Shmem=4,
            Cached=4,
            MemFree=-15,
            MemAvailable=-15,
        )

    assert mib(book(results, change).available) == {
        OTHERS: -5.0,
        RMAP: -16.0,
        SLAB: -3.0,
        PAGE_TABLES: -2.0,
        STACKS: -1.0,
        CACHE: -4.0,
    }


def test_memory_moving_to_the_file_cache_changes_nothing(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        on_host(records, Cached=50, Inactive_file=50, MemFree=-50)

    found = book(results, change)
    assert mib(found.available) == {RMAP: -16.0}
    assert {item.name: item.bytes / MIB for item in found.parts} == {
        "MemFree": 134.0,
        "file pages": 50.0,
        "KReclaimable": 0.0,
        "watermarks": 0.0,
    }


def split(mib_freed: int, huge_mib: int, *, anonymous: bool = True) -> Any:
    """Each guest loses ``mib_freed`` more than KSM credits, while ``huge_mib`` of huge pages go.

    ``anonymous``: its own anonymous memory falls so much; else its share of it alone, for no known reason.
    """

    def change(_cell: Cell, records: Records) -> None:
        for kind, huge, less in (("off", huge_mib, 0), ("on", 0, mib_freed)):
            for guest in records[kind]["observed"]["guests"].values():
                smaps = guest["smaps_rollup"]
                smaps["AnonHugePages_bytes"] = huge * MIB
                smaps["Anonymous_bytes"] -= less * MIB if anonymous else 0
                smaps["Pss_Anon_bytes"] -= less * MIB
                smaps["Pss_bytes"] -= less * MIB
        on_host(records, AnonPages=-2 * mib_freed, MemFree=2 * mib_freed, MemAvailable=2 * mib_freed)

    return change


def test_zeros_freed_by_splits_are_named_and_no_rest(results: Path) -> None:
    found = book(results, split(20, 64))
    assert mib(found.available) == {SPLIT: 40.0, RMAP: -16.0}
    assert mib(found.pss) == {SPLIT: 40.0}
    assert not found.flagged


def test_without_huge_pages_the_same_fall_is_no_split(results: Path) -> None:
    assert mib(book(results, split(20, 0)).available) == {TOUCHED: 40.0, RMAP: -16.0}


def test_what_no_reading_explains_is_a_rest_even_while_huge_pages_go(results: Path) -> None:
    found = book(results, split(20, 64, anonymous=False))
    assert mib(found.available) == {GUEST_REST: 40.0, RMAP: -16.0}
    assert found.rest_bytes == 40 * MIB
    assert found.rest_fraction == pytest.approx(40 / 224)
    assert found.flagged


def test_splits_explain_no_more_than_the_huge_pages_that_went(results: Path) -> None:
    assert mib(book(results, split(20, 15)).available) == {SPLIT: 30.0, TOUCHED: 10.0, RMAP: -16.0}


def test_swapped_guest_memory_is_not_credited_to_ksm(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        split(10, 64)(_cell, records)
        for guest in records["on"]["observed"]["guests"].values():
            guest["smaps_rollup"]["SwapPss_bytes"] = 10 * MIB

    assert mib(book(results, change).available) == {SWAPPED: 20.0, RMAP: -16.0}


def rest(mib_more: int) -> Any:
    def change(_cell: Cell, records: Records) -> None:
        on_host(records, MemFree=mib_more, MemAvailable=mib_more)

    return change


def test_a_rest_within_five_percent_is_not_flagged(results: Path) -> None:
    found = book(results, rest(9))
    assert mib(found.available)[HOST_REST] == 9.0
    assert not found.flagged


def test_a_rest_above_five_percent_is_flagged_with_its_size(results: Path) -> None:
    found = book(results, rest(10))
    assert found.rest_bytes == 10 * MIB
    assert found.flagged


def test_two_rests_that_cancel_are_flagged_all_the_same(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        split(20, 0, anonymous=False)(_cell, records)
        rest(-40)(_cell, records)

    found = book(results, change)
    assert found.rest_bytes == 0
    assert found.flagged
    assert abs(found.largest_rest.bytes) == 40 * MIB


def test_files_of_the_guests_stand_in_the_pss_ledger_only(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        for guest in records["on"]["observed"]["guests"].values():
            guest["smaps_rollup"]["Pss_bytes"] -= MIB

    found = book(results, change)
    assert mib(found.pss) == {FILES: 2.0}
    assert mib(found.available) == {RMAP: -16.0}


def test_without_general_profit_the_rmap_items_are_counted_by_process(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        for kind in ("off", "on"):
            records[kind]["observed"]["host"]["ksm"]["general_profit"] = None

    # 131072 rmap_items of 64 bytes in each guest are 8 MiB.
    assert mib(book(results, change).available) == {RMAP: -16.0}


def test_what_a_ledger_needs_is_named(results: Path) -> None:
    def no_slab(_cell: Cell, records: Records) -> None:
        del records["on"]["observed"]["host"]["meminfo"]["SUnreclaim_bytes"]

    with pytest.raises(LedgerError, match=r"rep1: its records lack SUnreclaim of /proc/meminfo"):
        book(results, no_slab)


def test_a_ledger_without_anonymous_pss_is_refused(results: Path) -> None:
    def no_pss(_cell: Cell, records: Records) -> None:
        del records["on"]["observed"]["guests"]["guest01"]["smaps_rollup"]["Pss_Anon_bytes"]

    with pytest.raises(LedgerError, match="lack Pss_Anon of smaps_rollup"):
        book(results, no_pss)


def test_every_item_has_a_source(results: Path) -> None:
    found = book(results)
    assert {item.name for way in (found.available, found.pss) for item in way.items} == SOURCES.keys()


def test_pages_count_in_the_hosts_page_size(results: Path) -> None:
    assert book(results).available.start_bytes == 2 * (100 * MIB // PAGE) * PAGE


PLAN = synthetic_plan(guests=2)
SMAPS = ("Pss_bytes", "Pss_Anon_bytes", "Anonymous_bytes", "AnonHugePages_bytes", "SwapPss_bytes")


@st.composite
def any_cell(draw: st.DrawFn) -> CellRecords:
    """A cell whose every counter is any number, each of the optional ones absent or there."""
    numbers = st.integers(0, 1 << 45)
    pages = st.integers(0, 1 << 30)
    records = synthetic_records(PLAN, PLAN.cells[0])
    profit, zero_pages, stat, lists = (draw(st.booleans()) for _ in range(4))
    for kind in ("off", "on"):
        host, guests = (records[kind]["observed"][name] for name in ("host", "guests"))
        host["meminfo"] = {name: draw(numbers) for name in host["meminfo"]}
        host["per_cpu_free_pages"] = draw(pages) if lists else None
        host["ksm"]["pages_sharing"] = draw(pages)
        host["ksm"]["ksm_zero_pages"] = draw(pages) if zero_pages else None
        host["ksm"]["general_profit"] = draw(st.integers(-(1 << 45), 1 << 45)) if profit else None
        for guest in guests.values():
            guest["smaps_rollup"] |= {name: draw(numbers) for name in SMAPS}
            guest["ksm_stat"] = {"ksm_rmap_items": draw(pages)} if stat else None
    stored = {kind: PHASES[kind].model_validate_json(json.dumps(one)) for kind, one in records.items()}
    return CellRecords(PLAN.cells[0], Path(), PLAN.run_id, COMPLETE, "", stored)


@steady
@given(any_cell())
def test_whatever_the_counters_say_the_items_sum_to_the_measures(cell: CellRecords) -> None:
    found, seen = ledger(cell), saving(cell)
    for way, start, end in (
        (found.available, seen.gross, seen.mem_available),
        (found.pss, seen.gross, seen.pss),
    ):
        assert (way.start_bytes, way.end_bytes) == (start, end)
        assert way.start_bytes + sum(item.bytes for item in way.items) == way.end_bytes
    assert sum(item.bytes for item in found.parts) == found.available.end_bytes
    items = {item.name: item.bytes for item in found.available.items}
    assert found.rest_bytes == items[GUEST_REST] + items[HOST_REST]


@steady
@given(any_cell())
def test_whatever_the_counters_say_the_values_of_a_saving_agree(cell: CellRecords) -> None:
    seen = saving(cell)
    assert not isinstance(seen.pss, Unknown)
    if isinstance(seen.ksm_own, Unknown):
        assert seen.freed == seen.ksm_own
    else:
        assert seen.freed == seen.pss - seen.ksm_own
        if not isinstance(seen.general_profit, Unknown):
            assert seen.general_profit == seen.gross - seen.ksm_own  # type: ignore[operator]
    if not isinstance(seen.freed_host, Unknown):
        assert seen.freed_host == seen.used_off - seen.used_on  # type: ignore[operator]
        items = {item.name: item.bytes for item in ledger(cell).available.items}
        # What went onto the per-CPU lists is freed, and MemAvailable lacks it.
        assert seen.freed_host + items[PER_CPU] == seen.mem_available
