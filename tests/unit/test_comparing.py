"""Two campaigns, B less A: which interval it is, what it claims, and what a check concludes from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind, ttest_rel
from synthetic import BOOTED, began, store, synthetic_plan, synthetic_start

from analysis.measure.checking import NO_WORSE, SAVINGS, UNTOLD, WORSE, check, judged
from analysis.measure.comparing import (
    LESS,
    MEASURES,
    MORE,
    NOTHING,
    TOO_FEW,
    Comparison,
    Contrast,
    Line,
    compare,
)
from analysis.measure.statistics import Difference, estimate, welch
from analysis.measure.table import tidy
from analysis.plan.design import PROJECT, Cell
from analysis.records.loading import find_runs, load_run, load_runs

Records = dict[str, dict[str, Any]]
GROSS = "gross_mib_per_vm"

savings = st.floats(1, 500).map(lambda value: round(value, 3))


def boots(least: int = 1, most: int = 6) -> st.SearchStrategy[list[float]]:
    return st.lists(savings, min_size=least, max_size=most)


def contrast(a: Sequence[float], b: Sequence[float], *, pairs: bool = False) -> Contrast:
    ours, theirs = (estimate([[value] for value in values]) for values in (a, b))
    assert ours is not None
    assert theirs is not None
    return Contrast(ours, theirs, tuple(a), tuple(b), pairs)


def table_of(
    results: Path, name: str, saved: Sequence[float], change: Any = None, **design: Any
) -> pd.DataFrame:
    """A run with a boot for each saving, all restored from the checkpoints that every such run has."""
    plan = synthetic_plan(run_id=name, **{"boots": len(saved), **design})
    return tidy([load_run(store(results, plan, change, lambda cell: saved[cell.boot - 1]))])


def other_boots(first: int = 11) -> Any:
    """Another campaign's checkpoints."""

    def change(cell: Cell, records: Records) -> None:
        began(records, **synthetic_start(cell.boot + first))

    return change


def only_line(comparison: Comparison) -> Line:
    (line,) = comparison.lines
    return line


def gross(line: Line) -> Contrast:
    found = line.contrasts[GROSS]
    assert found is not None
    return found


def test_the_difference_of_two_sets_of_boots_by_hand() -> None:
    # Variances 4 and 1 of 3 boots each: 4/3 + 1/3, its root 1.290994. Degrees of freedom: (5/3)^2 over
    # ((4/3)^2 + (1/3)^2) / 2, 2.941176, whose t(0.975) is 3.218759.
    found = welch([10, 12, 14], [20, 21, 22])
    assert found.mean == 9
    assert found.half_width == pytest.approx(3.218759 * 1.290994, rel=1e-6)
    assert welch([10], [20, 21]) == Difference(10.5, None)
    assert welch([10, 10], [10.5, 10.5]) == Difference(0.5, 0.0)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(boots(2), boots(2))
def test_intervals_are_those_of_an_independent_implementation(a: list[float], b: list[float]) -> None:
    if len({*a}) > 1 or len({*b}) > 1:
        seen = ttest_ind(b, a, equal_var=False).confidence_interval()
        half_width = contrast(a, b).difference.half_width
        assert half_width == pytest.approx((seen.high - seen.low) / 2, rel=1e-6, abs=1e-9)
    n = min(len(a), len(b))
    if len({round(theirs - ours, 6) for ours, theirs in zip(a[:n], b[:n], strict=True)}) > 1:
        seen = ttest_rel(b[:n], a[:n]).confidence_interval()
        half_width = contrast(a[:n], b[:n], pairs=True).difference.half_width
        assert half_width == pytest.approx((seen.high - seen.low) / 2, rel=1e-6, abs=1e-9)


@given(boots(), boots(), st.booleans())
def test_exchanged_sides_turn_the_sign_alone(a: list[float], b: list[float], pairs: bool) -> None:
    if pairs:
        n = min(len(a), len(b))
        a, b = a[:n], b[:n]
    one, other = contrast(a, b, pairs=pairs), contrast(b, a, pairs=pairs)
    assert other.difference.mean == -one.difference.mean
    assert other.difference.half_width == one.difference.half_width
    assert {MORE: LESS, LESS: MORE}.get(one.shown, one.shown) == other.shown


@given(boots(), st.booleans())
def test_what_is_compared_with_itself_shows_nothing(a: list[float], pairs: bool) -> None:
    same = contrast(a, a, pairs=pairs)
    assert same.difference.mean == 0
    assert same.shown == (NOTHING if len(a) > 2 else TOO_FEW)


@given(
    effects=st.permutations([100.0 * boot for boot in range(1, 6)]),
    noise=st.lists(st.floats(-1, 1), min_size=10, max_size=10),
)
def test_pairs_are_narrower_where_boots_differ_more_than_they_scatter(
    effects: list[float], noise: list[float]
) -> None:
    a = [effect + one for effect, one in zip(effects, noise[:5], strict=True)]
    b = [effect + 7 + one for effect, one in zip(effects, noise[5:], strict=True)]
    paired, welched = (contrast(a, b, pairs=pairs).difference for pairs in (True, False))
    assert paired.mean == pytest.approx(welched.mean)
    assert paired.half_width is not None
    assert welched.half_width is not None
    # 200 or more between boots, 2 at the most within.
    assert paired.half_width * 10 < welched.half_width


@pytest.mark.parametrize(
    ("b", "shown"),
    [
        ([90, 91, 92], LESS),
        ([110, 111, 112], MORE),
        ([100, 101, 99], NOTHING),
        ([110, 111], TOO_FEW),
        ([110], TOO_FEW),
    ],
)
def test_only_an_interval_of_three_boots_beside_zero_claims_a_difference(b: list[float], shown: str) -> None:
    assert contrast([100, 101, 102], b).shown == shown


def test_boots_restored_from_the_same_checkpoints_are_pairs(results: Path) -> None:
    a = table_of(results, "a", [100, 120, 140])
    b = table_of(results, "b", [101, 122, 143])
    line = only_line(compare(a, b))
    assert (line.pairs, line.boots, line.left_out, line.differing) == (True, (3, 3), (0, 0), ())
    assert set(line.contrasts) == set(MEASURES)
    # 1, 2 and 3 more: standard deviation 1, t(0.975, 2) = 4.302653.
    assert gross(line).difference.mean == pytest.approx(2)
    assert gross(line).difference.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert gross(line).shown == NOTHING


def test_boots_that_have_no_pair_are_left_out_and_counted(results: Path) -> None:
    a = table_of(results, "a", [100, 120, 140, 500])
    b = table_of(results, "b", [101, 122, 143, 300, 300])
    line = only_line(compare(a, b[b["boot"] != 4]))
    assert (line.boots, line.left_out) == ((3, 3), (1, 1))
    assert (gross(line).a.mean, gross(line).difference.mean) == (pytest.approx(120), pytest.approx(2))


def test_boots_of_other_checkpoints_are_two_sets(results: Path) -> None:
    a = table_of(results, "a", [100, 120, 140])
    b = table_of(results, "b", [101, 122], other_boots())
    line = only_line(compare(a, b))
    assert (line.pairs, line.boots, line.left_out) == (False, (3, 2), (0, 0))
    assert gross(line).shown == TOO_FEW
    # Of one physical boot, but saved twice: not the same start.
    again = table_of(
        results, "c", [101, 122], lambda _cell, records: began(records, checkpoint="sha256:other")
    )
    assert not only_line(compare(a, again)).pairs


def test_a_boot_is_one_replicate_however_often_it_was_repeated(results: Path) -> None:
    a = table_of(results, "a", [100, 120, 140])
    b = table_of(results, "b", [101, 122, 143], other_boots(), repetitions=3)
    line = only_line(compare(a, b))
    assert line.boots == (3, 3)
    assert gross(line).b_boots == (pytest.approx(101), pytest.approx(122), pytest.approx(143))


def test_other_treatments_are_not_compared(results: Path) -> None:
    def booted(_cell: Cell, records: Records) -> None:
        began(records, **BOOTED)

    def loaded(_cell: Cell, records: Records) -> None:
        began(records, loaded=True)

    a = table_of(results, "a", [100])
    others = [
        table_of(results, "booted", [100], booted),
        table_of(results, "loaded", [100], loaded),
        table_of(results, "guests", [100], guests=4),
        table_of(results, "size", [100], guest_memory_mib=256),
        table_of(results, "policy", [100], policies="advisor"),
        table_of(results, "workload", [100], focus="2"),
    ]
    for other in others:
        found = compare(a, other)
        assert (len(found.lines), len(found.only_a), len(found.only_b)) == (0, 1, 1)


def test_in_what_they_were_measured_differently_is_said_a_first(results: Path) -> None:
    def upgraded(_cell: Cell, records: Records) -> None:
        for record in records.values():
            record["provenance"].update(kernel_release="6.1.0", qemu_version="8.0")
            record["provenance"]["ksm_knobs"].pop("smart_scan")
            record["provenance"]["thp"] = {**record["provenance"]["thp"], "enabled": "always"}

    a, b = table_of(results, "a", [100]), table_of(results, "b", [100], upgraded)
    assert only_line(compare(a, b)).differing == (
        "kernel_release: 6.18.0-synthetic / 6.1.0",
        "ksm_knobs.smart_scan: 0 / absent",
        "qemu_version: 7.2.0 / 8.0",
        "thp.enabled: madvise / always",
    )


def test_one_hypervisor_each_is_compared_whatever_it_is_called(results: Path) -> None:
    a = table_of(results, "a", [100], hosts=("old",))
    b = table_of(results, "b", [100], hosts=("new",))
    assert only_line(compare(a, b)).differing == ("hypervisor: old / new",)
    both = table_of(results, "c", [100], hosts=("old", "new"))
    found = compare(a, both)
    assert [line.a.hypervisor for line in found.lines] == ["old"]
    assert [one.hypervisor for one in found.only_b] == ["new"]


def test_what_is_itself_not_pooled_or_not_known_has_no_difference(results: Path) -> None:
    def mixed(cell: Cell, records: Records) -> None:
        for record in records.values():
            record["provenance"]["kernel_release"] = f"6.{cell.boot}"

    def uncounted(cell: Cell, records: Records) -> None:
        if cell.boot == 2:
            records["on"]["observed"]["host"]["ksm"]["general_profit"] = None

    a = table_of(results, "a", [100, 101, 102])
    refused = only_line(compare(a, table_of(results, "b", [100, 101, 102], mixed)))
    assert refused.not_compared == ("kernel_release: 6.1 / 6.2 / 6.3",)
    assert set(refused.contrasts.values()) == {None}
    unknown = only_line(compare(a, table_of(results, "c", [100, 101, 102], uncounted)))
    assert unknown.contrasts["general_profit_mib_per_vm"] is None
    assert gross(unknown).shown == NOTHING


def test_the_published_cells_compared_with_themselves_show_nothing() -> None:
    table = tidy(list(load_runs(find_runs(PROJECT / "results/reference/cells").directories).runs))
    table = table[table["guests"] == 15]
    found = compare(table, table)
    # Idle guests as they booted; restored: idle, constant fill (which is not pooled whole), random fill
    assert [(line.pairs, line.boots) for line in found.lines] == [(False, (6, 6)), *[(True, (9, 9))] * 3]
    assert [bool(line.not_compared) for line in found.lines] == [False, False, True, False]
    assert {one.shown for line in found.lines for one in line.contrasts.values() if one} == {NOTHING}
    assert (found.only_a, found.only_b) == ((), ())


@pytest.mark.parametrize(
    ("b", "tolerance", "verdict"),
    [
        # 98 +- 0 of 100: at 2 % the margin is 0, just no worse.
        ([98, 98, 98], 2, NO_WORSE),
        ([97.9, 97.9, 97.9], 2, WORSE),
        ([97.9, 97.9, 97.9], 3, NO_WORSE),
        ([100, 100, 100], 0, NO_WORSE),
        ([99, 98, 97], 2, UNTOLD),
        ([90, 91, 92], 2, WORSE),
        ([150, 200, 250], 2, UNTOLD),
        ([50, 50], 2, UNTOLD),
        ([50], 2, UNTOLD),
    ],
)
def test_a_saving_is_judged_by_an_interval_wholly_on_one_side(
    b: list[float], tolerance: float, verdict: str
) -> None:
    assert judged(contrast([100, 100, 100], b), tolerance) == verdict


def test_a_loss_that_is_tolerated_is_more_of_a_loss() -> None:
    assert judged(contrast([-100, -100, -100], [-101, -101, -101]), 2) == NO_WORSE
    assert judged(contrast([-100, -100, -100], [-103, -103, -103]), 2) == WORSE
    assert judged(None, 2) == UNTOLD


@given(boots(3), boots(3), st.floats(0, 99))
def test_a_wider_tolerance_never_makes_a_saving_worse(
    a: list[float], b: list[float], tolerance: float
) -> None:
    order = (WORSE, UNTOLD, NO_WORSE)
    # Of A as it is in each boot: scatter of its own is no matter of the tolerance.
    same = contrast([a[0]] * 3, b)
    places = [order.index(judged(same, percent)) for percent in (0, tolerance, 99)]
    assert places == sorted(places)


def test_the_tolerance_that_would_do_is_the_least_whole_one(results: Path) -> None:
    a = table_of(results, "a", [100, 100, 100])
    b = table_of(results, "b", [100, 99, 98], other_boots())
    # 99 less 4.302653 / sqrt(3): 96.52, so 4 %.
    found = {one.name: one for one in check(compare(a, b), 2).savings}
    assert set(found) == set(SAVINGS)
    assert (found[GROSS].verdict, found[GROSS].shown_at_percent) == (UNTOLD, 4)
    assert check(compare(a, b), 4).verdict != WORSE


def test_a_check_is_good_only_where_all_of_the_baseline_was_measured_again(results: Path) -> None:
    both = table_of(results, "both", [100, 100, 100], focus="1,2")
    idle = table_of(results, "idle", [100, 100, 100], other_boots())
    assert check(compare(both, idle), 2).verdict == UNTOLD
    assert check(compare(idle, both), 2).verdict == NO_WORSE
    worse = table_of(results, "worse", [90, 90, 90], other_boots())
    assert check(compare(both, worse), 2).verdict == WORSE
    assert check(compare(idle, table_of(results, "four", [100], guests=4)), 2).verdict == UNTOLD
