"""What applications did with KSM off and on: by boot, by workload of a mix, and where it is not known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import store, synthetic_plan

from analysis.__main__ import main
from analysis.plan.design import Cell

# What an application's guest did: figure off and on, CPU seconds off and on
Did = tuple[float, float, float | None, float | None]


def performed(figure: float, seconds: float | None, unit: str) -> dict[str, Any]:
    took = {"seconds": 2.0, "run_seconds": seconds, "wait_seconds": seconds}
    return {"printed": f"{figure} {unit}", "figure": figure, "unit": unit, "took": took}


def applications(
    results: Path, did: Callable[[Cell], dict[str, Did]], unit: Callable[[str], str], **changes: Any
) -> None:
    """Cells whose guests run applications."""
    plan = synthetic_plan(**{"guests": 2, "boots": 3, **changes})

    def perform(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        guests = {
            guest: {
                "off": performed(off, cpu_off, unit(guest)),
                "on": performed(on, cpu_on, unit(guest)),
            }
            for guest, (off, on, cpu_off, cpu_on) in did(cell).items()
        }
        records["performance"] = {**records["on"], "kind": "performance", "observed": {"guests": guests}}

    store(results, plan, perform)


def explained(capsys: pytest.CaptureFixture[str], results: Path) -> list[dict[str, Any]]:
    assert main(["explain", "--results", str(results), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["explained"]
    return found


def test_boots_are_the_replicates_and_changes_are_paired_by_boot(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def did(cell: Cell) -> dict[str, Did]:
        boot = float(cell.boot)
        return {"guest01": (90 * boot, 81 * boot, 1.0, 1.2), "guest02": (110 * boot, 99 * boot, 3.0, 3.2)}

    applications(results, did, lambda _guest: "requests/s", workloads="idle")
    (line,) = explained(capsys, results)
    (cost,) = line["applications"]
    assert (cost["workload"], cost["unit"], cost["boots"]) == ("idle", "requests/s", 3)
    # Means of a boot's guests: 100, 200 and 300 off, a tenth less on
    assert (cost["figure_off"]["mean"], cost["figure_on"]["mean"]) == (200, 180)
    assert (cost["figure_off"]["n_boots"], cost["figure_off"]["between_boot_sd"]) == (3, pytest.approx(100))
    assert cost["figure_change"] == {"mean": pytest.approx(-10), "half_width": pytest.approx(0, abs=1e-9)}
    assert (cost["cpu_off_seconds"]["mean"], cost["cpu_on_seconds"]["mean"]) == (2, pytest.approx(2.2))
    assert cost["cpu_change"]["mean"] == pytest.approx(10)
    assert main(["explain", "--results", str(results)]) == 0
    shown = capsys.readouterr().out
    assert "What the applications did, KSM off and then on" in shown
    (row,) = [line for line in shown.splitlines() if "requests/s" in line]
    assert " ".join(row.split()).startswith("1 idle, ksm: requests/s 3 200.0 ± 248.4 180.0 ± 223.6 -10.0 ±")


def test_applications_of_a_mix_are_told_apart_by_what_each_guest_does(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    applications(
        results,
        lambda _cell: {"guest01": (100, 90, 1, 1), "guest02": (10, 12, 1, 1)},
        lambda guest: {"guest01": "pages/s", "guest02": "files/s"}[guest],
        mix="constant_fill=1,idle=1",
    )
    (line,) = explained(capsys, results)
    assert [(one["workload"], one["unit"]) for one in line["applications"]] == [
        ("constant_fill", "pages/s"),
        ("idle", "files/s"),
    ]
    assert [one["figure_change"]["mean"] for one in line["applications"]] == pytest.approx([-10, 20])


def test_what_a_boot_does_not_tell_is_not_averaged_over_the_others(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def did(cell: Cell) -> dict[str, Did]:
        return {"guest01": (0.0 if cell.boot == 2 else 10.0, 10.0, None if cell.boot == 1 else 1.0, 1.0)}

    applications(results, did, lambda _guest: "files/s", workloads="idle")
    (cost,) = explained(capsys, results)[0]["applications"]
    assert (cost["cpu_off_seconds"], cost["cpu_on_seconds"], cost["cpu_change"]) == (None, None, None)
    assert cost["figure_off"]["mean"] == pytest.approx(20 / 3)
    assert cost["figure_change"] is None


def test_how_fast_work_undoes_the_saving_is_told_beside_the_quiet_before_it(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    applications(
        results, lambda _cell: {"guest01": (10, 9, 1, 1)}, lambda _guest: "files/s", workloads="idle"
    )
    for boot in (1, 2, 3):
        (path,) = results.glob(f"*/*/*boot{boot}*/performance.json")
        record = json.loads(path.read_text())
        # 2 s of work; pages of 4096 bytes, so 256 are 1 MiB
        record["observed"]["guests"]["guest01"]["on"]["decay"] = {
            "quiet_seconds": 5.0,
            "quiet_cow_ksm": 128 * 5,
            "cow_ksm": 256 * 2 * (boot + 1),
            "saved_pages_before": 2560,
            "saved_pages_after": 2560 - 256 * boot,
        }
        path.write_text(json.dumps(record))
    (cost,) = explained(capsys, results)[0]["applications"]
    assert cost["written_mib_per_second"]["mean"] == pytest.approx(3 - 0.5)
    assert cost["quiet_mib_per_second"]["mean"] == 0.5
    assert cost["saved_change_mib"]["mean"] == -2
    assert main(["explain", "--results", str(results)]) == 0
    shown = capsys.readouterr().out
    assert "How fast work undoes the saving" in shown
    assert " 3 2.50 ± 2.48 0.50 ± 0.00 -2.0 ± 2.5 2.0 ± 0.0" in " ".join(shown.split())


def test_without_a_count_of_writes_no_decay_is_shown(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    applications(
        results, lambda _cell: {"guest01": (10, 9, 1, 1)}, lambda _guest: "files/s", workloads="idle"
    )
    assert main(["explain", "--results", str(results)]) == 0
    assert "How fast work undoes" not in capsys.readouterr().out


def test_what_ksm_looks_after_is_in_the_explanation(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = synthetic_plan(guests=2, boots=1, workloads="idle")

    def perform(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        ksm = records["on"]["observed"]["host"]["ksm"]
        ksm |= {"pages_shared": 512, "pages_unshared": 2560, "pages_volatile": None}

    store(results, plan, perform)
    (line,) = explained(capsys, results)
    assert line["tracked"] == {
        "shared_mib_per_vm": 1.0,
        "unshared_mib_per_vm": 5.0,
        "volatile_mib_per_vm": None,
    }
    assert main(["explain", "--results", str(results)]) == 0
    assert "unmergeable 5.0 volatile -" in " ".join(capsys.readouterr().out.split())


def test_a_damaged_record_is_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    applications(
        results, lambda _cell: {"guest01": (10, 9, 1, 1)}, lambda _guest: "files/s", workloads="idle"
    )
    (path,) = results.glob("*/*/*boot2*/performance.json")
    path.write_text("{")
    (cost,) = explained(capsys, results)[0]["applications"]
    assert cost["boots"] == 2
    assert main(["explain", "--results", str(results)]) == 0
    assert "performance.json" in capsys.readouterr().out
