"""What one guest learns of another by write latency: the benchmark's statistics, record and program."""

from __future__ import annotations

import hashlib
import json
import math
import random
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plugin_files import ROOT, load

tenants = load("benchmarks/tenants.py")


def test_the_threshold_lies_between_kinds_that_are_apart() -> None:
    assert tenants.threshold_of([10, 12, 40, 42], [False, False, True, True]) == 26.0


def test_the_threshold_has_the_least_sum_of_both_error_rates() -> None:
    # Above 22.5: one of three merged pages is missed (1/3), no other is called merged. Above 15: none is
    # missed, one of two unmerged ones is called merged (1/2).
    latencies, merged = [10, 20, 20, 25, 30], [False, False, True, True, True]
    assert tenants.threshold_of(latencies, merged) == 22.5
    # Of three more unmerged pages at 20, as far as rates go, nothing changes but the 1/2, now 4/5.
    assert tenants.threshold_of([*latencies, 20, 20, 20], [*merged, False, False, False]) == 22.5


def test_equal_latencies_are_not_told_apart() -> None:
    assert tenants.threshold_of([5, 5, 5, 5], [True, False, True, False]) == math.inf
    errors = tenants.errors_of([5, 5, 5, 5], [True, False, True, False], math.inf)
    assert errors == (2, 0, 2, 2)


def test_where_merged_pages_are_the_quicker_ones_none_is_called_merged() -> None:
    assert tenants.threshold_of([1, 2, 3, 4], [True, True, False, False]) == math.inf


@pytest.mark.parametrize("merged", [[True, True], [False, False]])
def test_a_threshold_needs_both_kinds(merged: list[bool]) -> None:
    with pytest.raises(tenants.BenchError, match="needs pages that the victim holds and"):
        tenants.threshold_of([1, 2], merged)


def test_a_threshold_is_as_good_as_the_best_of_all() -> None:
    """Held against every threshold that could be."""
    chance = random.Random(7)  # noqa: S311
    for _ in range(200):
        merged = [True, False, *(chance.random() < 0.5 for _ in range(chance.randrange(1, 20)))]
        latencies = [chance.randrange(1, 12) + 3 * is_merged for is_merged in merged]

        def cost(threshold: float, latencies: list[int] = latencies, merged: list[bool] = merged) -> float:
            seen = tenants.errors_of(latencies, merged, threshold)
            return float(seen.false_positives / seen.unmerged + seen.false_negatives / seen.merged)

        every = [cost(at - 0.5) for at in range(0, 18)]
        assert cost(tenants.threshold_of(latencies, merged)) == pytest.approx(min(every))


def test_errors_are_counted() -> None:
    errors = tenants.errors_of([1, 9, 9, 1, 9], [False, False, True, True, True], 5)
    assert errors == (2, 1, 3, 1)
    assert (errors.unmerged, errors.false_positives, errors.merged, errors.false_negatives) == (2, 1, 3, 1)


def arm(held: list[int], took: list[int]) -> Any:
    return tenants.Arm(held, took, 0, 5)


def rounds() -> list[Any]:
    """Two rounds of eight pages. On: a merged page takes 40 ns, others 10; in the second round one errs."""
    held = [1, 1, 0, 0, 1, 1, 0, 0]
    told = [40, 40, 10, 10, 40, 40, 10, 10]
    erring = [*told[:7], 40]
    same = [10] * 8
    return [
        tenants.Round("2026-01-31T13:00:00Z", {"off": arm(held, same), "on": arm(held, told)}),
        tenants.Round("2026-01-31T14:00:00Z", {"off": arm(held, same), "on": arm(held, erring)}),
    ]


def test_the_halves_share_no_page() -> None:
    training, held_out = (arm([1, 0, 0, 1], [1, 2, 3, 4]).half(which) for which in (True, False))
    assert training == ([1, 3], [True, False])
    assert held_out == ([2, 4], [False, True])


def test_the_errors_are_those_of_the_half_that_chose_no_threshold() -> None:
    on = tenants.solve(rounds(), "on")
    # Pages 1, 3, 5 and 7 of each round: two merged and two not; the last of the second round errs.
    assert (on.threshold_ns, on.errors) == (25.0, (4, 1, 4, 0))
    assert on.by_round == [(2, 0, 2, 0), (2, 1, 2, 0)]
    assert (on.median_unmerged_ns, on.median_merged_ns) == (10, 40)
    off = tenants.solve(rounds(), "off")
    assert (off.threshold_ns, off.errors) == (math.inf, (4, 0, 4, 4))


def test_a_threshold_of_other_boots_is_tried_on_each() -> None:
    # Both boots choose 25: the first one has no error, of the second one 1 of its 4 unmerged pages errs.
    assert tenants.of_other_boots(rounds(), "on") == [0.0, 0.25]
    # Nothing tells them apart: every merged page is called unmerged.
    assert tenants.of_other_boots(rounds(), "off") == [1.0, 1.0]
    first, second = rounds()
    assert tenants.of_other_boots([first, replace(second, booted_at=first.booted_at)], "on") == []
    shown = tenants.shown(rounds(), {})
    assert "KSM on: with a threshold from the other boots both rates sum to 12.5 ± 158.8 % (" in shown


def test_the_figures_are_made_again_from_the_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "tenants.json"
    tenants.put(path, tenants.encoded(rounds(), {"machine": "A CPU"}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tenants.decoded(path.read_text())[0] == rounds()
    program = [sys.executable, str(ROOT / "benchmarks/tenants.py")]
    done = subprocess.run([*program, "show", str(path)], check=True, capture_output=True, text=True)
    assert done.stdout == tenants.shown(*tenants.decoded(path.read_text())) + "\n"
    lines = done.stdout.splitlines()
    assert lines[0] == "2 restores of 2 boots, 8 guessed pages in each; A CPU"
    (on,) = [line for line in lines if line.startswith("on ")]
    # 1 of 4: Wilson 4.56 to 69.94; 0 and 1 of 2 in the rounds. 0 of 4: 0 to 48.99.
    assert on.split()[:5] == ["on", "8", "0.03", "0.01", "0.04"]
    assert "25.00 [4.56, 69.94] (0.0 to 50.0)" in on and "0.00 [0.00, 48.99] (0.0 to 0.0)" in on
    (off,) = [line for line in lines if line.startswith("off ")]
    assert off.split()[2] == "none" and "100.00 [51.01, 100.00]" in off


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = json.loads(tenants.encoded(rounds(), {}))
    wrong = [
        "",
        "[]",
        json.dumps({**whole, "schema_version": 9}),
        json.dumps({**whole, "rounds": []}),
        json.dumps({**whole, "rounds": [{"booted_at": "x", "arms": {}}]}),
    ]
    whole["rounds"][0]["arms"]["on"]["write_ns"].pop()
    for text in (*wrong, json.dumps(whole)):
        with pytest.raises(tenants.BenchError):
            tenants.decoded(text)


def test_the_victim_holds_half_of_the_pages_another_half_each_time() -> None:
    chance = random.Random(1)  # noqa: S311
    first, second = (tenants.victims_choice(100, chance) for _ in range(2))
    assert sum(first) == sum(second) == 50 and first != second


@pytest.mark.parametrize("words", ["--pages 8", "--rounds 0", "--rounds two", "--memory-mib 64"])
def test_bad_numbers_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tenants.parser().parse_args(["measure", "x.json", *words.split()])
    assert "must be a whole number, at least" in capsys.readouterr().err


# The program of the guests, run here

SEED = "a 'seed'"


def pages_of(tenant: Any, count: int) -> list[bytes]:
    """The pages that the program holds, found by the first one, which stands page-aligned nowhere else."""
    pid = tenant.process.pid
    first = hashlib.shake_128(f"{SEED}:0".encode()).digest(4096)
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            edges, mode, _, _, inode, *_ = line.split()
            if mode.startswith("rw") and inode == "0":
                start, end = (int(edge, 16) for edge in edges.split("-"))
                memory.seek(start)
                content = memory.read(end - start)
                pages = [content[at : at + 4096] for at in range(0, len(content), 4096)]
                found += [pages[at : at + count] for at, page in enumerate(pages) if page == first]
    (held,) = found
    return held


def test_attacker_and_victim_hold_the_same_content_where_it_is_said_and_nowhere_else(tmp_path: Path) -> None:
    program = tmp_path / "tenant.py"
    program.write_text(tenants.TENANT.replace("if libc.mlockall(1):", "if libc is None:"))
    held = [1, 0, 0, 1] * 8 + [1]

    def started(which: list[int]) -> Any:
        asked = json.dumps({"seed": SEED, "held": which})
        tenant = tenants.Tenant([sys.executable, "-u", str(program), asked])
        assert tenant.line() == "ready"
        return tenant

    attacker, victim = started([1] * 33), started(held)
    try:
        theirs, ours = pages_of(victim, 33), pages_of(attacker, 33)
        assert [int(one == other) for one, other in zip(ours, theirs, strict=True)] == held
        assert len({*ours, *theirs}) == 33 + held.count(0)
        took = attacker.measure()
        assert len(took) == 33 and all(nanoseconds >= 0 for nanoseconds in took)
        # The byte that is written is the one that is there.
        assert pages_of(attacker, 33) == ours
    finally:
        attacker.close()
        victim.close()
    assert attacker.process.returncode == victim.process.returncode == 0


def test_a_program_that_ends_is_noticed() -> None:
    tenant = tenants.Tenant([sys.executable, "-c", "pass"])
    with pytest.raises(tenants.BenchError, match="ended"):
        tenant.line()
    tenant.close()


def test_what_a_guest_is_asked_is_one_word_of_its_shell() -> None:
    asked = {"seed": "it's", "held": [0, 1]}
    command = tenants.in_guest(2, asked)
    assert "guest02" in command
    shown = command[-1].replace("exec python3 -u /run/tenant.py", "printf %s")
    done = subprocess.run(["sh", "-c", shown], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == asked
