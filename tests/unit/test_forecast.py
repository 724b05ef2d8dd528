"""The forecast: known parameters come back, noise beyond the tolerance does not, limits, refusals."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import BOOTED, MIB, PAGE, store, synthetic_plan
from synthetic_capacity import (
    BASE,
    CACHE_MIB,
    TOTAL,
    TRUTH,
    capacity_record,
    hold_others,
    shaped,
    store_capacity,
    store_censuses,
    store_numbers,
    used_mib,
)
from synthetic_census import census_record

from analysis.__main__ import main
from analysis.measure.page_contents import Census, from_record
from analysis.model.sharing import (
    CENSUS,
    ENVELOPE,
    HOST,
    SHARING,
    Model,
    Sample,
    SharingError,
    fit,
    limits,
    naive,
    predict,
    scaled,
)
from analysis.plan.design import Cell
from analysis.plan.mix import mix_text
from analysis.records.models import CensusRecord, ForecastRecord
from analysis.report.forecast_figures import forecast_figure

NUMBERS = (2, 4, 6)


def samples(
    workloads: tuple[str, ...] = tuple(TRUTH),
    numbers: tuple[int, ...] = NUMBERS,
    noise: Callable[[str, int], float] = lambda _workload, _guests: 0.0,
    boot: str = "boot 1",
) -> list[Sample]:
    """By the truth; 19 MiB of a guest are outside of its own memory, and the noise is in the guests."""
    found = []
    for workload in workloads:
        for guests in numbers:
            truth = TRUTH[workload]
            off, on, gross = used_mib(truth, guests)
            more = noise(workload, guests)
            guests_off = guests * (truth.per_guest - 19)
            guests_on = guests_off - gross - guests * truth.uncounted + more
            parts = (off, on + more, guests_off, guests_on, gross, guests * truth.ksm)
            found.append(Sample(workload, guests, boot, *(part * MIB for part in parts)))
    return found


def model(cells: list[Sample] | None = None, **changes: Any) -> Model:
    settings: dict[str, Any] = {
        "name": SHARING,
        "scope": HOST,
        "guest_memory_bytes": 512 * MIB,
        "page_size_bytes": PAGE,
        "max_page_sharing": 256,
        **changes,
    }
    return fit(samples() if cells is None else cells, **settings)


def zigzag(_workload: str, guests: int) -> float:
    return {2: 12.0, 4: -24.0, 6: 12.0}[guests]


@pytest.mark.parametrize("workload", list(TRUTH))
@pytest.mark.parametrize("guests", [1, 10, 15, 20, 100])
def test_known_parameters_are_recovered(workload: str, guests: int) -> None:
    seen = predict(model(), {workload: guests})
    off, on, gross = used_mib(TRUTH[workload], guests)
    assert seen.off.mean_bytes / MIB == pytest.approx(off, rel=1e-6)
    assert seen.on.mean_bytes / MIB == pytest.approx(on, rel=1e-6)
    assert seen.gross.mean_bytes / MIB == pytest.approx(gross, rel=1e-6)
    parts = model().breakdown(workload)
    assert parts.within_bytes == pytest.approx(TRUTH[workload].within * MIB, rel=1e-6)
    assert parts.between_bytes == pytest.approx(TRUTH[workload].between * MIB, rel=1e-6)
    assert parts.ksm_bytes == pytest.approx(TRUTH[workload].ksm * MIB)
    assert parts.uncounted_bytes == pytest.approx(TRUTH[workload].uncounted * MIB, abs=10)
    assert model().base_bytes / MIB == pytest.approx(BASE, rel=1e-6)


def test_noise_beyond_the_tolerance_is_not_recovered() -> None:
    noisy = model(samples(noise=lambda _workload, guests: 60.0 * guests))
    _off, on, _gross = used_mib(TRUTH["idle"], 15)
    assert predict(noisy, {"idle": 15}).on.mean_bytes / MIB != pytest.approx(on, rel=0.02)


def test_what_changed_on_the_host_between_the_arms_does_not_grow_with_the_guests() -> None:
    drifted = [replace(cell, on_bytes=cell.on_bytes + 16 * MIB) for cell in samples()]
    seen = predict(model(drifted), {"constant_fill": 20})
    assert seen.on.mean_bytes / MIB == pytest.approx(used_mib(TRUTH["constant_fill"], 20)[1] + 16, rel=1e-6)
    # Where KSM's own memory is not known of any cell, what the host has more is taken to grow.
    unknown = [replace(cell, ksm_bytes=None) for cell in samples()]
    seen = predict(model(unknown), {"constant_fill": 20})
    assert seen.on.mean_bytes / MIB == pytest.approx(used_mib(TRUTH["constant_fill"], 20)[1], rel=1e-6)


def test_what_a_guest_has_outside_of_its_memory_is_the_same_for_each_workload() -> None:
    # The noise of one workload's off arm is spread over all of them.
    noisy = [replace(c, off_bytes=c.off_bytes + 6 * MIB * (c.workload == "idle")) for c in samples()]
    found = model(noisy)
    assert found.base_bytes / MIB == pytest.approx(BASE + 2)
    assert predict(found, {"idle": 20}).off.mean_bytes / MIB == pytest.approx(BASE + 2 + 20 * 420)


def test_the_parts_of_a_guest_sum_to_what_it_uses() -> None:
    parts = model().breakdown("idle")
    assert parts.unmergeable_bytes is not None
    assert parts.outside_bytes is not None
    assert parts.within_bytes is not None
    assert parts.between_bytes is not None
    total = parts.within_bytes + parts.between_bytes + parts.unmergeable_bytes + parts.outside_bytes
    assert total / MIB == pytest.approx(420)
    # 4.5 MiB of rmap_items are 288 MiB of scanned pages.
    assert (total - parts.outside_bytes) / MIB == pytest.approx(288)


def test_an_interval_by_hand() -> None:
    # From 2 and 4 guests, which took 12 more and 24 less than their mean of -2 a guest, 6 take 12 + 12 more.
    seen = predict(model(samples(("idle",), noise=zigzag)), {"idle": 10})
    # Nothing was amiss with KSM off: t(0.975, 1) = 12.706 of the one miss, 4 a guest.
    assert seen.off.half_width_bytes == pytest.approx(0, abs=10)
    for interval in (seen.on, seen.saved):
        assert (interval.half_width_bytes or 0) / MIB == pytest.approx(12.706 * 4 * 10, rel=1e-3)
    assert seen.saved.mean_bytes == pytest.approx(seen.off.mean_bytes - seen.on.mean_bytes)
    assert seen.off.mean_bytes / MIB == pytest.approx(BASE + 4200, rel=1e-6)
    # The host's own noise is there at any number.
    few = predict(model(samples(("idle",), noise=zigzag)), {"idle": 1})
    assert (few.on.half_width_bytes or 0) / MIB == pytest.approx(12.706 * 4 * 6, rel=1e-3)


def test_a_miss_is_of_another_boot_and_a_larger_number() -> None:
    # A boot whose guests take 3 more each: no other boot could have told, at 6 guests as at 4.
    apart = samples(boot="boot 2", noise=lambda _workload, guests: 3.0 * guests)
    misses = model([*samples(), *apart]).misses
    assert {(miss.guests, miss.boot) for miss in misses} == {(6, "boot 1"), (6, "boot 2")}
    assert len(misses) == 6
    for miss in misses:
        assert miss.on_bytes / MIB == pytest.approx(3 if miss.boot == "boot 2" else -3)
        assert (miss.off_bytes, miss.gross_bytes) == pytest.approx((0, 0), abs=10)
    more = (2, 4, 6, 8)
    longer = samples(numbers=more, boot="boot 2", noise=lambda _workload, guests: 3.0 * guests)
    fitted = model([*samples(numbers=more), *longer])
    seen = predict(fitted, {"idle": 12}).on
    # Two boots, whatever their workloads and numbers: t(0.975, 2) = 4.303.
    assert len(fitted.misses) == 12
    assert (seen.half_width_bytes or 0) / MIB == pytest.approx(4.303 * 3 * 12, rel=1e-3)


def test_a_workload_that_is_missed_by_more_has_a_wider_interval() -> None:
    apart = samples(
        boot="boot 2", noise=lambda workload, guests: (6.0 if workload == "idle" else 3.0) * guests
    )
    fitted = model([*samples(), *apart])
    one, mixed, other = (
        predict(fitted, mix).on.half_width_bytes or 0
        for mix in ({"idle": 12}, {"idle": 6, "constant_fill": 6}, {"constant_fill": 12})
    )
    assert one / MIB == pytest.approx(4.303 * 6 * 12, rel=1e-3)
    assert mixed == one
    # Not less than of all workloads together: of 6, 3 and 3 the root mean square.
    assert other / MIB == pytest.approx(4.303 * 18**0.5 * 12, rel=1e-3)


def test_what_a_forecast_from_smaller_numbers_does_not_see_is_a_miss() -> None:
    # Three contents' worth of sharing that only six guests have: no boot differs from another.
    bent = [replace(s, gross_bytes=s.gross_bytes + 60 * MIB * (s.guests == 6)) for s in samples()]
    both = [*bent, *(replace(s, boot="boot 2") for s in bent)]
    assert [miss.gross_bytes / MIB for miss in model(both).misses] == pytest.approx([10.0] * 6)


def test_with_no_smaller_number_boots_are_predicted_from_each_other() -> None:
    two = [
        *samples(numbers=(2, 4)),
        *samples(numbers=(2, 4), boot="boot 2", noise=lambda _workload, guests: 1.0 * guests),
    ]
    misses = model(two).misses
    assert {(miss.guests, miss.boot) for miss in misses} == {(n, f"boot {b}") for n in (2, 4) for b in (1, 2)}
    assert [abs(miss.on_bytes) / MIB for miss in misses] == pytest.approx([1.0] * 12)


def test_the_interval_covers_what_it_promises() -> None:
    # Boots whose guests, of every workload, differ by 2 MiB each and a host whose noise is 10: of new boots
    # 95 % lie inside at least, and not all.
    rng = np.random.default_rng(7)

    def boot(name: str, numbers: tuple[int, ...]) -> list[Sample]:
        own = {arm: rng.normal(0, 2) for arm in ("off", "on")}
        found = []
        for cell in samples(numbers=numbers, boot=name):
            off, on = (own[arm] * cell.guests * MIB for arm in ("off", "on"))
            host = [rng.normal(0, 10) * MIB for _arm in range(2)]
            found.append(
                replace(
                    cell,
                    off_bytes=cell.off_bytes + off + host[0],
                    on_bytes=cell.on_bytes + off + on + host[1],
                    guests_off_bytes=cell.guests_off_bytes + off,
                    guests_on_bytes=cell.guests_on_bytes + off + on,
                )
            )
        return found

    inside = {"off": 0, "on": 0, "saved": 0}
    for _trial in range(300):
        fitted = model([cell for n in range(3) for cell in boot(f"boot {n}", (2, 4, 6, 8))])
        for cell in boot("new", (20,)):
            seen = predict(fitted, {cell.workload: 20})
            measured = (cell.off_bytes, cell.on_bytes, cell.off_bytes - cell.on_bytes)
            for name, interval, value in zip(inside, (seen.off, seen.on, seen.saved), measured, strict=True):
                inside[name] += abs(value - interval.mean_bytes) <= (interval.half_width_bytes or 0)
    assert all(0.95 <= number / 900 < 1 for number in inside.values()), inside


def test_two_numbers_of_guests_give_no_interval() -> None:
    seen = predict(model(samples(numbers=(2, 6))), {"idle": 15})
    assert seen.on.half_width_bytes is None
    assert seen.on.low_bytes is None


def test_one_number_of_guests_is_refused() -> None:
    with pytest.raises(SharingError, match="idle was measured at 4 guests only"):
        model(samples(("idle",), (4,)))
    with pytest.raises(SharingError, match="no measured cell"):
        model([])


def census_of(common: int, between: int, alone: int, guests: int) -> Census:
    """Contents in all guests, in each set of two and more of them so many, and of each guest alone."""
    pages: dict[str, list[int]] = {f"guest{n}": [*range(1, common + 1)] for n in range(guests)}
    content = common
    for held in range(1, guests):
        for place in range(between if held > 1 else alone * guests):
            content += 1
            for n in range(held):
                pages[f"guest{(place + n) % guests}"].append(content)
    return from_record(CensusRecord.model_validate_json(json.dumps(census_record(pages))))


def test_a_census_carries_the_curve_from_one_number_of_guests() -> None:
    counted = census_of(common=100, between=0, alone=50, guests=4)
    gross = 1.1 * counted.saved_bytes(4)
    (one,) = samples(("idle",), (4,))
    cells = [replace(one, gross_bytes=gross, census=counted)]
    seen = predict(model(cells, name=CENSUS, bases_bytes=[BASE * MIB]), {"idle": 12})
    # 11 of 12 copies of 100 pages go, times what KSM reached.
    assert seen.gross.mean_bytes == pytest.approx(1.1 * 11 * 100 * PAGE)
    assert seen.off.mean_bytes / MIB == pytest.approx(BASE + 12 * 420)
    parts = model(cells, name=CENSUS, bases_bytes=[0]).breakdown("idle")
    assert (parts.within_bytes, parts.between_bytes) == pytest.approx((0, 1.1 * 100 * PAGE))
    with pytest.raises(SharingError, match="with no guest cannot be told"):
        model(cells, name=CENSUS)
    with pytest.raises(
        SharingError, match="no cell of idle has a page census: measure one with -e census=tr"
    ):
        model([one], name=CENSUS, bases_bytes=[0])


def test_censuses_of_several_boots_are_averaged_and_the_smaller_ones_tell_the_misses() -> None:
    cells = []
    for boot, common in (("boot 1", 100), ("boot 2", 120)):
        for guests in (2, 4, 6):
            (one,) = samples(("idle",), (guests,), boot=boot)
            counted = census_of(common=common, between=0, alone=50, guests=guests)
            cells.append(replace(one, gross_bytes=counted.saved_bytes(guests), census=counted))
    found = model(cells, name=CENSUS)
    assert predict(found, {"idle": 12}).gross.mean_bytes == pytest.approx(11 * 110 * PAGE)
    # From 2 guests no base is told: 6 guests are predicted from 4 of the other boot.
    assert [(miss.guests, round(6 * miss.gross_bytes / PAGE)) for miss in found.misses] == [
        (6, -100),
        (6, 100),
    ]
    # The guests' own memory needs no base, so that 4 are predicted from 2, too.
    assert [miss.guests for miss in model(cells, name=CENSUS, scope=ENVELOPE).misses] == [4, 4, 6, 6]


def test_the_curve_is_of_the_census_of_the_most_guests() -> None:
    # Of two guests it tells duplicates within alone, which is another curve.
    few = {"guest0": [7] * 40, "guest1": [8] * 40}
    censuses = {
        2: from_record(CensusRecord.model_validate_json(json.dumps(census_record(few)))),
        6: census_of(common=100, between=0, alone=50, guests=6),
    }
    cells = [
        replace(one, gross_bytes=100 * (one.guests - 1) * PAGE, census=censuses[one.guests])
        for one in samples(("idle",), (2, 6))
    ]
    seen = predict(model(cells, name=CENSUS), {"idle": 12})
    assert seen.gross.mean_bytes == pytest.approx(11 * 100 * PAGE)


def test_a_mix_with_the_cap_of_max_page_sharing() -> None:
    capped = [
        replace(s, gross_bytes=(t.within * s.guests + t.between * (s.guests - -(-s.guests // 4))) * MIB)
        for s in samples(numbers=(2, 3, 6))
        for t in [TRUTH[s.workload]]
    ]
    seen = predict(model(capped, max_page_sharing=4), {"idle": 5, "random_fill": 10})
    # Of 40 that all 15 hold 4 copies stay, of 70 more in 5 guests 2.
    gross = 5 * 30 + 10 * 2 + (5 * 110 + 10 * 40) - (4 * 40 + 2 * 70)
    assert seen.gross.mean_bytes / MIB == pytest.approx(gross)


def test_a_mix_by_censuses_shares_the_smaller_pool() -> None:
    cells = []
    for workload, common in (("idle", 100), ("random_fill", 40)):
        for one in samples((workload,), (2, 4)):
            counted = census_of(common=common, between=0, alone=50, guests=one.guests)
            cells.append(replace(one, gross_bytes=counted.saved_bytes(one.guests), census=counted))
    seen = predict(model(cells, name=CENSUS), {"idle": 5, "random_fill": 10})
    # 40 are in all 15 guests, 60 more in the 5 idle ones.
    assert seen.gross.mean_bytes == pytest.approx((14 * 40 + 4 * 60) * PAGE)
    assert seen.on_apart_bytes - seen.on.mean_bytes == pytest.approx(40 * PAGE)


def test_parameters_are_never_negative() -> None:
    # Counters that fall short of D = 0 from 2 to 6 guests.
    cells = [replace(s, gross_bytes=(10 * s.guests + 4) * MIB) for s in samples(("idle",))]
    parts = model(cells).breakdown("idle")
    assert parts.between_bytes == 0
    assert (parts.within_bytes or 0) > 0


def test_the_cap_of_max_page_sharing() -> None:
    # With 4 a page, 8 guests keep 2 copies of what they share.
    capped = [
        replace(s, gross_bytes=110 * MIB * (s.guests - -(-s.guests // 4)))
        for s in samples(("idle",), (2, 3, 6))
    ]
    seen = predict(model(capped, max_page_sharing=4), {"idle": 8})
    assert seen.gross.mean_bytes / MIB == pytest.approx(110 * 6)


def test_a_mix_shares_the_smaller_common_part() -> None:
    seen = predict(model(), {"idle": 5, "random_fill": 10})
    # 40 are in all 15 guests, 70 more in the 5 idle ones.
    gross = 5 * 30 + 10 * 2 + 40 * 14 + 70 * 4
    assert seen.gross.mean_bytes / MIB == pytest.approx(gross)
    own = 5 * (4.5 - 15) + 10 * 8
    assert seen.off.mean_bytes / MIB == pytest.approx(BASE + 5 * 420 + 10 * 640)
    assert seen.on.mean_bytes / MIB == pytest.approx(BASE + 5 * 420 + 10 * 640 - gross + own)
    # Apart: 40 x 9 and 110 x 4, so one common copy of 40 more is kept.
    assert (seen.on_apart_bytes - seen.on.mean_bytes) / MIB == pytest.approx(40)


def test_a_mix_of_one_is_the_workload() -> None:
    pure, mixed = (predict(model(), mix) for mix in ({"idle": 7}, {"idle": 7, "random_fill": 0}))
    assert pure == mixed
    assert mix_text({"random_fill": 2, "idle": 1}) == "idle=1,random_fill=2"
    assert scaled({"idle": 5, "random_fill": 10}, 4) == {"idle": 1, "random_fill": 3}


def test_the_limits_are_the_last_guests_that_fit() -> None:
    found = limits(model(), {"idle": 1}, 8192 * MIB)
    assert found.off == int((8192 - BASE) // 420)
    slope = 420 - 30 - 110 + 4.5 - 15
    assert found.on == int((8192 - BASE - 110) // slope)
    # 512 of guest memory, 8 of rmap_items, outside: 640 - 512 of the fills, 420 - 288 idle.
    assert model().safe_guest_bytes / MIB == pytest.approx(512 + 8 + 132)
    assert found.safe == int((8192 - BASE) // 652)
    assert found.on is not None
    assert found.at_risk_bytes is not None
    assert found.at_risk_bytes / MIB == pytest.approx(BASE + found.on * 652 - 8192)
    nothing = limits(model(), {"idle": 1}, 1)
    assert (nothing.off, nothing.on, nothing.safe) == (0, 0, 0)


def test_the_limits_widen_with_the_interval() -> None:
    found = limits(model(samples(noise=zigzag)), {"idle": 1}, 8192 * MIB)
    assert None not in (found.on_low, found.on, found.on_high)
    assert (found.on_low or 0) < (found.on or 0) < (found.on_high or 0)


def test_the_naive_answers_by_hand() -> None:
    seen = naive(model(), {"idle": 15})
    off, on, gross = used_mib(TRUTH["idle"], 6)
    assert seen.constant_saving / MIB == pytest.approx(BASE + 15 * 420 - 15 * (off - on) / 6)
    assert seen.sharing_ratio / MIB == pytest.approx(BASE + 15 * 512 * (1 - gross / (6 * 512)))
    assert seen.nominal / MIB == pytest.approx(BASE + 15 * 512)


def run(capsys: pytest.CaptureFixture[str], results: Path, *words: str) -> str:
    assert main(["forecast", "--results", str(results), *words]) == 0
    return capsys.readouterr().out


def content(capsys: pytest.CaptureFixture[str], results: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(capsys, results, *words, "--json"))
    return found


def test_the_command_prints_both_limits_and_its_assumptions(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, NUMBERS)
    text = run(capsys, results, "--guests", "16", "--workload", "idle")
    off, on, _gross = used_mib(TRUTH["idle"], 16)
    (line,) = [line for line in text.splitlines() if line.startswith("idle") and " 16 " in line]
    assert line.split()[2::2][:2] == [f"{off:.0f}", f"{on:.0f}"]
    assert "safe" in text
    assert text.startswith("How many guests of 512 MiB fit in the memory of host1, 24000 MiB\n")
    assert "what guests share, all of them share" in " ".join(text.split())
    assert f"Host with no guest: {BASE:.0f} MiB" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_hosts_owner_is_told_first_how_many_more_fit_and_what_that_costs(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, NUMBERS)
    text = run(capsys, results, "--fit", "--workload", "idle", "--host-memory-mib", "8192")
    answer = text[: text.index("What this rests on")]
    assert len(answer.splitlines()) <= 24
    fits, cost = [line.split() for line in answer.splitlines() if line.startswith("idle")]
    # Without KSM 700 + 420 n, with it 700 + 420 n - 30 n - 110 (n - 1) - 10.5 n.
    off, on = (8192 - 700) // 420, int((8192 - 700 - 110) / (420 - 30 - 110 - 10.5))
    # Safe: 512 of the guest, 8 of KSM's own, and 420 less the 288 that 4.5 MiB of rmap_items stand for.
    guest = 512 + 8 + 420 - 288
    safe = (8192 - 700) // guest
    assert [fits[1], fits[2], *fits[-2:]] == [str(off), str(on), f"+{on - off}", str(safe)]
    # ksmd took 0.5 s in each of the 12 seconds that were sampled.
    assert cost[1:] == [str(on), f"{4.5 * on:.0f}", str(700 + guest * on - 8192), "6.0", "12.0", "6"]


def test_what_is_predicted_is_never_read(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results, NUMBERS)
    before = content(capsys, results, "--guests", "15")["predicted"]
    store_numbers(results, (15,), noise=lambda _cell: 900.0)
    after = content(capsys, results, "--guests", "15")
    assert after["predicted"] == before
    assert {cell["guests"] for cell in after["calibration"]["cells"]} == set(NUMBERS)
    assert "it is what is predicted" in run(capsys, results, "--guests", "15")


def test_a_cell_that_failed_is_left_out_and_named(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results, NUMBERS)
    plan = synthetic_plan(run_id="bad", guests=8)

    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        shaped()(cell, records)
        del records["on"]

    store(results, plan, change)
    text = run(capsys, results, "--guests", "15")
    assert "! not used: run bad, idle-ksm-guests8-boot1-rep1: missing" in text


def test_the_envelope_has_no_base_and_counts_ksms_own_memory(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, NUMBERS)
    found = content(capsys, results, "--guests", "15", "--workload", "idle", "--envelope-mib", "8192")
    assert found["base_bytes"] == 0
    # 400 of Pss_Anon and 1 of page tables a guest, less the gross and 15 that no counter tells, and KSM's 4.5
    gross = 15 * 30 + 14 * 110 + 15 * 15 - 15 * 4.5
    assert found["predicted"][0]["used_off"]["mean_bytes"] / MIB == pytest.approx(15 * 401)
    assert found["predicted"][0]["used_on"]["mean_bytes"] / MIB == pytest.approx(15 * 401 - gross, rel=1e-4)
    limits, curve = found["loads"][0]["limits"], found["loads"][0]["curve"]
    assert limits["off"] == 8192 // 401
    # Beside 110 + 250.5 for each of 14 guests that are merged one of 401 and 4.5 that is not
    peak = 110 + 14 * 250.5 + 401 + 4.5
    assert curve["admission_bytes"][14] / MIB == pytest.approx(peak, rel=1e-4)
    assert limits["admission"] < limits["on"]


def test_the_base_is_read_where_one_number_of_guests_does_not_tell_it(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, (6,))
    store_censuses(results)
    empty = capacity_record(guests=0)
    meminfo = empty["observed"]["host"]["meminfo"]
    empty["observed"]["probes"] = []
    hold_others(empty)
    meminfo["MemTotal_bytes"], meminfo["MemAvailable_bytes"] = TOTAL, TOTAL - round((BASE + 50) * MIB)
    meminfo["MemFree_bytes"] = meminfo["MemAvailable_bytes"] - CACHE_MIB * MIB
    store_capacity(results, [empty])
    found = content(capsys, results, "--guests", "15")
    assert len(found["calibration"]["bases"]) == 1
    assert found["base_bytes"] / MIB == pytest.approx(BASE + 50)
    empty["provenance"]["kernel_release"] = "another"
    store_capacity(results, [empty])
    assert main(["forecast", "--results", str(results), "--guests", "15"]) == 2
    assert "with no guest cannot be told from one number of guests" in capsys.readouterr().err
    empty["provenance"]["kernel_release"] = "6.18.0-synthetic"
    store_capacity(results, [empty])
    store_numbers(results, (4,))
    found = content(capsys, results, "--guests", "15")
    assert found["calibration"]["bases"] == []
    assert found["base_bytes"] / MIB == pytest.approx(BASE)


def test_a_mix_on_the_command_line(capsys: pytest.CaptureFixture[str], results: Path, tmp_path: Path) -> None:
    store_numbers(results, NUMBERS)
    path = tmp_path / "mix.svg"
    text = run(capsys, results, "--mix", "random_fill=10,idle=5", "--fit", "--figure", str(path))
    assert "idle=5,random_fill=10" in text
    assert "nothing shared across workloads" in text
    assert path.read_text().count("<svg") == 1


def test_the_figure_draws_the_curve(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results, NUMBERS)
    found = content(capsys, results, "--fit", "--workload", "idle", "--host-memory-mib", "8192")
    (axes,) = forecast_figure(ForecastRecord.model_validate_json(json.dumps(found))).axes
    curves = {str(line.get_label()): line for line in axes.lines}
    guests = list(curves["ksm"].get_xdata())
    drawn = [float(value) for value in curves["ksm"].get_ydata()]  # type: ignore[arg-type]
    assert drawn == pytest.approx([used_mib(TRUTH["idle"], int(n))[1] / 1024 for n in guests])


def test_a_curve_goes_beyond_the_limit(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results, NUMBERS)
    memory = str(128 * 1024)
    found = content(capsys, results, "--fit", "--workload", "idle", "--host-memory-mib", memory)
    (load,) = found["loads"]
    assert load["limits"]["on"] > 300
    curve = load["curve"]
    last = load["limits"]["on"]
    assert curve["guests"] == list(range(1, last * 11 // 10 + 1))
    assert curve["on_bytes"][last] > 128 * 1024 * MIB > curve["on_bytes"][last - 1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "nothing is asked: give --guests N"),
        (["--guests", "0"], "--guests is '0': allowed is a whole number from 1 to 9999"),
        (["--guests", "many"], "--guests is 'many'"),
        (["--guests", "15", "--workload", "web"], "--workload is 'web': measured, and so allowed, is const"),
        (["--mix", "idle"], "--mix is 'idle': allowed is each workload once"),
        (["--mix", "idle=0"], "--mix is 'idle=0'"),
        (["--mix", "idle=1,idle=2"], "allowed is each workload once"),
        (["--mix", "web=2,idle=1"], "workload 'web' was not measured: allowed is"),
        (["--mix", "idle=2,random_fill=1", "--guests", "9"], "leave --guests out"),
        (["--guests", "15", "--run", "n2"], "was measured at 2 guests only"),
        (["--guests", "15", "--run", "never"], "run 'never' is not under"),
        (["--guests", "15", "--policy", "moon"], "--policy is 'moon': measured, and so allowed, is ksm."),
        (
            ["--guests", "15", "--hypervisor", "moon"],
            "--hypervisor is 'moon': measured were host1.",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    capsys: pytest.CaptureFixture[str], results: Path, words: list[str], sentence: str
) -> None:
    store_numbers(results, NUMBERS)
    assert main(["forecast", "--results", str(results), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_of_cells_of_different_conditions_the_largest_set_is_taken_and_the_others_are_named(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, NUMBERS)
    before = content(capsys, results, "--guests", "15")["predicted"]

    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        shaped(noise=lambda _cell: 700.0)(cell, records)
        for record in records.values():
            record["provenance"]["kernel_release"] = "6.1.0"

    for guests in (8, 10):
        store(results, synthetic_plan(run_id=f"other{guests}", guests=guests), change)
    assert content(capsys, results, "--guests", "15")["predicted"] == before
    text = " ".join(run(capsys, results, "--guests", "15").split())
    assert "from 9 measured cells, 1 boot, of runs n2, n4, n6:" in text
    assert "2 of 11 cells are not used:" in text
    for guests in (8, 10):
        assert (
            f"! not used: run other{guests}, idle-ksm-guests{guests}-boot1-rep1: it was measured under other "
            "conditions than those chosen (kernel_release: 6.1.0 / 6.18.0-synthetic)."
        ) in text


def test_more_boots_of_a_number_that_fits_nothing_are_no_larger_set(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, (2, 4), focus="1")

    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        shaped()(cell, records)
        for record in records.values():
            record["provenance"]["kernel_release"] = "6.1.0"

    store(results, synthetic_plan(run_id="many", guests=8, boots=5), change)
    found = content(capsys, results, "--guests", "15")
    assert {cell["run_id"] for cell in found["calibration"]["cells"]} == {"n2", "n4"}


def test_the_set_that_can_answer_is_preferred_to_the_larger_one(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, NUMBERS, focus="1,2")
    store_numbers(results, (2, 4), "booted", focus="3", start=BOOTED)
    found = content(capsys, results, "--guests", "15", "--workload", "random_fill")
    assert {cell["run_id"] for cell in found["calibration"]["cells"]} == {"booted2", "booted4"}
    found = content(capsys, results, "--guests", "15")
    assert {cell["run_id"] for cell in found["calibration"]["cells"]} == {"n2", "n4", "n6"}


def test_of_several_hosts_one_is_taken_and_a_typo_names_those_that_exist(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, NUMBERS, focus="1")
    for guests in (2, 4):
        store(results, synthetic_plan(run_id=f"b{guests}", hosts=("host2",), guests=guests), shaped())
    text = " ".join(run(capsys, results, "--guests", "15").split())
    assert "Forecast of the host memory of host1," in text
    assert "it is of the host host2, which --hypervisor would choose" in text
    assert content(capsys, results, "--guests", "15", "--hypervisor", "host2")["hypervisor"] == "host2"
    assert main(["forecast", "--results", str(results), "--guests", "15", "--hypervisor", "hots1"]) == 2
    error = capsys.readouterr().err
    assert "--hypervisor is 'hots1': measured were host1, host2." in error


def test_a_forecast_is_of_one_policy(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results, NUMBERS)
    store_numbers(
        results, NUMBERS, prefix="a", design={"policies": "advisor"}, noise=lambda cell: 50.0 * cell.guests
    )
    text = " ".join(run(capsys, results, "--guests", "15").split())
    assert "policy ksm, guests of" in text
    assert "it is under the policy advisor, which --policy would choose" in text
    words = ["--guests", "15", "--workload", "idle", "--policy"]
    found = {policy: content(capsys, results, *words, policy) for policy in ("ksm", "advisor")}
    _off, on, _gross = used_mib(TRUTH["idle"], 15)
    for policy, more in (("ksm", 0), ("advisor", 15 * 50)):
        assert found[policy]["policy"] == policy
        assert found[policy]["predicted"][0]["used_on"]["mean_bytes"] / MIB == pytest.approx(on + more)
        assert {cell["run_id"][0] for cell in found[policy]["calibration"]["cells"]} == {
            policy[0].replace("k", "n")
        }
    text = run(capsys, results, *words, "advisor")
    assert "policy advisor, guests of" in text
    assert max(map(len, text.splitlines())) <= 110


def test_repetitions_of_a_boot_are_one_sample(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    def wobble(cell: Cell) -> float:
        return zigzag("", cell.guests) + (4.0 if cell.repetition == 1 else -4.0)

    store_numbers(results / "once", NUMBERS, focus="1", noise=lambda cell: zigzag("", cell.guests))
    store_numbers(results / "twice", NUMBERS, focus="1", design={"repetitions": 2}, noise=wobble)
    once, twice = (
        content(capsys, results / name, "--guests", "15", "--workload", "idle") for name in ("once", "twice")
    )
    assert len(twice["calibration"]["cells"]) == 6
    # Twice as many cells of the same boots know no more of another boot.
    for name, value in once["predicted"][0]["used_on"].items():
        assert twice["predicted"][0]["used_on"][name] == pytest.approx(value, rel=1e-6)


def test_boots_are_samples_of_their_own(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results / "one", NUMBERS, focus="1", noise=lambda cell: zigzag("", cell.guests))
    store_numbers(
        results / "two", NUMBERS, focus="1", design={"boots": 2}, noise=lambda cell: zigzag("", cell.guests)
    )
    one, two = (
        content(capsys, results / name, "--guests", "15", "--workload", "idle")["predicted"][0]["used_on"]
        for name in ("one", "two")
    )
    assert two["mean_bytes"] == pytest.approx(one["mean_bytes"])
    assert two["half_width_bytes"] < one["half_width_bytes"]


def test_restored_and_booted_guests_are_not_fitted_together(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, (2, 4))
    store_numbers(results, (6,), start=BOOTED)
    found = content(capsys, results, "--guests", "15")
    assert {cell["guests"] for cell in found["calibration"]["cells"]} == {2, 4}
    text = " ".join(run(capsys, results, "--guests", "15").split())
    assert (
        "run n6, 3 cells: it was measured under other conditions than those chosen (start.from: boot" in text
    )


def test_a_workload_loaded_before_and_after_its_checkpoint_is_not_fitted_together(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, (2, 4), start={"loaded": True}, focus="3")
    store_numbers(results, (6,), focus="1,3")
    found = content(capsys, results, "--guests", "15")
    assert [cell["guests"] for cell in found["calibration"]["cells"]] == [2, 4]
    text = " ".join(run(capsys, results, "--guests", "15").split())
    assert "random_fill-ksm-guests6-boot1-rep1: its workload was loaded on the other side of the" in text


def test_without_general_profit_the_safe_need_is_the_same(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    def without(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        shaped()(cell, records)
        for kind in ("off", "on"):
            records[kind]["observed"]["host"]["ksm"]["general_profit"] = None
        for guest in records["on"]["observed"]["guests"].values():
            guest["ksm_stat"]["ksm_rmap_items"] = round(TRUTH[cell.workload].ksm * MIB / 64)

    store_numbers(results / "with", NUMBERS, focus="1")
    for guests in NUMBERS:
        store(results / "without", synthetic_plan(run_id=f"n{guests}", guests=guests), without)
    told, untold = (content(capsys, results / name, "--guests", "15") for name in ("with", "without"))
    for name in ("predicted", "loads", "guest_breakdown"):
        assert untold[name] == told[name]


def test_where_ksms_own_memory_is_not_known_nothing_is_taken_for_guest_memory(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    def unknown(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        shaped()(cell, records)
        for kind in ("off", "on"):
            records[kind]["observed"]["host"]["ksm"] |= {"general_profit": None, "pages_volatile": None}
            for guest in records[kind]["observed"]["guests"].values():
                guest["ksm_stat"] = None

    for guests in NUMBERS:
        store(results, synthetic_plan(run_id=f"n{guests}", guests=guests), unknown)
    found = content(capsys, results, "--guests", "15")
    # 512 of guest memory, 8 of rmap_items, and all of the 420 that a guest uses.
    assert found["predicted"][0]["safe_bytes"] / MIB == pytest.approx(BASE + 15 * (512 + 8 + 420))
    assert found["guest_breakdown"]["idle"]["ksm_bytes"] is None


def test_the_census_gives_the_curve_and_the_measured_saving_its_height(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    # Cells of one number of guests each: 50 pages, of which 45 are distinct, 30 in every guest.
    store_numbers(results, (6,), focus="1")
    store_numbers(results, (2,), focus="2", prefix="other")
    store_numbers(results, (3,), focus="2", prefix="other")
    store_censuses(results, "n6")
    store_censuses(results, "other3")
    words = ["forecast", "--results", str(results), "--guests", "12", "--workload", "idle", "--json"]
    assert main([*words, "--model", "sharing"]) == 2
    assert "at least two different numbers of guests" in capsys.readouterr().err
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    _off, _on, gross = used_mib(TRUTH["idle"], 6)
    # Kept: 30 + 15 for each guest, so that of 300 pages of 6 guests 180 go, and of 600 of 12 guests 390.
    assert found["predicted"][0]["gross"]["mean_bytes"] / MIB == pytest.approx(gross * 390 / 180, rel=1e-4)
    assert found["model"] == "census"
    assert any("census" in cell["records"] for cell in found["calibration"]["cells"])
    # Of 50 pages 5 are twice and 30 in each guest: of 300 pages of 6 guests 180 go.
    parts = found["guest_breakdown"]["idle"]
    assert parts["within_bytes"] / MIB == pytest.approx(gross * 5 / 180, rel=1e-4)
    assert parts["between_bytes"] / MIB == pytest.approx(gross * 30 / 180, rel=1e-4)


def test_without_more_words_the_census_is_taken_where_each_workload_has_one(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, NUMBERS, focus="1")
    store_numbers(results, NUMBERS, focus="2", prefix="other")
    store_censuses(results, "n6")
    assert content(capsys, results, "--guests", "12", "--workload", "idle")["model"] == "census"
    assert content(capsys, results, "--guests", "12")["model"] == "sharing"
    store_censuses(results, "other4")
    assert content(capsys, results, "--guests", "12")["model"] == "census"


def test_without_a_census_that_model_is_refused(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results, NUMBERS, focus="1")
    words = ["forecast", "--results", str(results), "--guests", "12"]
    assert main([*words, "--model", "census"]) == 2
    assert "no cell of idle has a page census: measure one with -e census=true" in capsys.readouterr().err


def test_the_interval_says_what_it_rests_on(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store_numbers(results, NUMBERS, design={"boots": 2})
    text = " ".join(run(capsys, results, "--guests", "12").split())
    assert "how much 6 measured cells (N = 6; boots: 2) were missed by forecasts from smaller N" in text
    assert "from 18 measured cells, 2 boots, of runs n2, n4, n6" in text
    assert "All cells are of one boot" not in text
    store_numbers(results / "single", NUMBERS)
    text = " ".join(run(capsys, results / "single", "--guests", "12").split())
    assert "! All cells are of one boot: how boots differ is not in the intervals." in text
    store_numbers(results / "one", (2, 6))
    text = " ".join(run(capsys, results / "one", "--guests", "12").split())
    assert "No interval, of too few cells: measure three numbers of guests, or two boots" in text
