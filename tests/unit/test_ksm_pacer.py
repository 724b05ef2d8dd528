"""The testbed's own daemon: what it sets by what it sees, recorded or by hand, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playing import fake_systemd_run
from plugin_files import ROOT, run
from waiting import FOREVER_SECONDS, wait_until

from plugins.module_utils import ksm_pacer
from plugins.module_utils.ksm_pacer import (
    Host,
    Knobs,
    PacerError,
    Seen,
    Setting,
    State,
    Tuning,
    advance,
    first,
    setting,
)

FOLLOWED = ROOT / "results/reference/cells-followed/followed-all/localhost"
LOADS = ("idle", "constant_fill", "random_fill")
PROGRAM = ROOT / "plugins/module_utils/ksm_pacer.py"
TREE = ROOT / "tests/fixtures/host/linux-6.18"
TUNING = Tuning()
FAST = Setting(20000, 10)
MIB = 1 << 20
GUESTS = {(pid, 1): 500 * MIB for pid in (1, 2, 3, 4)}


def recorded(load: str) -> tuple[list[Seen], float]:
    """The looks at a recorded cell of 15 guests, a second apart, and when its saving had settled.

    Recorded under the policy ksm, with KSM at full speed throughout: it went on for ten minutes.
    """
    looks: list[Seen] = []
    settled = 0.0
    for kind in ("merge", "after"):
        record = json.loads((FOLLOWED / f"{load}-ksm-guests15-boot1-rep1/{kind}.json").read_text())
        samples = record["observed"]["samples"]
        settled = settled or record["observed"]["converged_after_seconds"]
        begin = looks[-1].seconds if looks else 0.0
        kinds = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
        looks += [
            Seen(
                seconds=begin + seconds,
                full_scans=samples["full_scans"][at],
                saved_pages=samples["pages_sharing"][at] + samples["ksm_zero_pages"][at],
                tracked_pages=sum(samples[name][at] for name in kinds),
                broken_pages=samples["cow_ksm"][at],
                ksmd_cpu_seconds=samples["ksmd_cpu_seconds"][at],
                guests=GUESTS,
            )
            for at, seconds in enumerate(samples["seconds"])
        ]
    return looks, settled


def paced(looks: list[Seen]) -> list[State]:
    """The states at these looks."""
    states = [first(looks[0])]
    for seen in looks[1:]:
        states.append(advance(states[-1], seen, TUNING))
    return states


@pytest.mark.parametrize("load", LOADS)
def test_on_a_recorded_merge_it_is_fast_until_the_saving_is_flat_and_slow_from_then_on(load: str) -> None:
    looks, settled = recorded(load)
    states = paced(looks)
    slow = next(at for at, state in enumerate(states) if state.scan_seconds is not None)
    # Not before the series' own rule held, and with all but 1 % of what ten minutes more at full speed saved
    assert looks[slow].seconds >= settled
    assert looks[slow].saved_pages >= 0.99 * max(seen.saved_pages for seen in looks)
    assert {setting(state, TUNING) for state in states[:slow]} == {FAST}
    for state in states[slow:]:
        assert state.scan_seconds is not None
        # A share of the CPU of a fifth of the fast one, at the most
        seconds, awake = state.fast_scan
        assert state.scan_seconds >= 5 * seconds >= 5 * awake
    # Of 15 idle guests broken pages are merged again so slowly that 1 % of the saving waits: minutes a scan.
    if load == "idle":
        assert min(state.scan_seconds or 0 for state in states[slow:]) > 120


def test_the_saving_that_still_grows_is_not_taken_as_flat() -> None:
    """The companion: with the growth of the recorded series doubled in its last scans it stays fast."""
    looks, _ = recorded("random_fill")
    growing = [replace(seen, saved_pages=seen.saved_pages + 100 * seen.full_scans**2) for seen in looks[:160]]
    assert paced(growing)[-1].scan_seconds is None


@pytest.mark.parametrize(("kib_a_look", "slow"), [(0, True), (960, True), (1100, False)])
def test_it_stays_fast_while_guests_give_back_the_zeros_of_split_huge_pages(
    kib_a_look: int, *, slow: bool
) -> None:
    """A look a scan; 0.5 % of the 390 MiB saved, over two scans, are 1000 KiB each."""
    looks = [
        look(
            4.0 * scan,
            scan,
            guests={one: size - scan * kib_a_look * 1024 // 4 for one, size in GUESTS.items()},
        )
        for scan in range(40)
    ]
    states = paced(looks)
    assert (states[12].scan_seconds is not None) is slow
    # Whatever it is that guests give back: not for ever, but for 120 s
    assert (states[29].scan_seconds is not None) is slow
    assert states[30].scan_seconds is not None


# By hand: 100 000 pages saved of 400 000, a fast scan in 4 s with 2 s of CPU time, nothing broken.


def look(seconds: float, scans: int, **changed: object) -> Seen:
    seen = Seen(seconds, scans, 100_000, 400_000, 0, 2.0 * scans, GUESTS)
    return replace(seen, **changed)  # type: ignore[arg-type]


def flat(broken_each_scan: int = 0) -> State:
    """The state when a fast phase has just ended, after 4 scans in 16 s."""
    looks = [look(4 * scan, scan, broken_pages=broken_each_scan * scan) for scan in range(5)]
    return paced(looks)[-1]


@pytest.mark.parametrize(
    ("broken_each_scan", "scan_seconds"),
    [
        (0, 600),  # nothing to do: the quiet pace
        (20, 200),  # 5 pages a second: 1 % of the saving, 1000 pages, waits after 200 s
        (1000, 20),  # 250 a second would be 4 s: a fifth of the fast pace at the least
    ],
)
def test_the_trickle_is_as_slow_as_what_guests_write_to_allows(
    broken_each_scan: int, scan_seconds: float
) -> None:
    state = flat(broken_each_scan)
    assert state.scan_seconds == pytest.approx(scan_seconds)
    # Batches with 100 ms of sleep after each, in the time that ksmd's own 2 s leave
    pages = 400_000 / ((scan_seconds - 2) / 0.1)
    assert setting(state, TUNING) == Setting(pytest.approx(pages, abs=1), 100)


def test_each_scan_of_the_trickle_chooses_the_pace_of_the_next() -> None:
    # 1000 pages broken in 600 s, of which 400 were merged again by its end: 0.67 a second are worth 1500 s.
    state = advance(flat(), look(616, 5, broken_pages=1000, saved_pages=99_400), TUNING)
    assert state.scan_seconds == 600
    # 6000 broken and merged again in as long: 1 % waits after 100 s.
    state = advance(state, look(1216, 6, broken_pages=7000, saved_pages=99_400), TUNING)
    assert state.scan_seconds == pytest.approx(99.4)


def test_a_large_host_is_scanned_more_slowly_than_the_quiet_pace() -> None:
    looks = [look(400 * scan, scan, ksmd_cpu_seconds=400.0 * scan) for scan in range(5)]
    assert paced(looks)[-1].scan_seconds == pytest.approx(400 / 0.05)


NEW, FEWER = {**GUESTS, (5, 9): 20 * MIB}, {key: GUESTS[key] for key in list(GUESTS)[1:]}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"guests": FEWER}, "1 guest went"),
        ({"guests": {**GUESTS, (1, 1): 540 * MIB}}, "guests have 40 MiB more"),
        ({"guests": {**GUESTS, (1, 1): 539 * MIB}}, ""),  # under 2 % of 2000 MiB
        ({"broken_pages": 4096}, "guests wrote to 4096 merged pages"),
        ({"broken_pages": 4095}, ""),  # under 16 MiB
        ({"saved_pages": 104_096}, "4096 more pages merged"),
        ({"saved_pages": 50_000}, ""),  # what is gone cannot be had back by scanning
    ],
)
def test_what_is_worth_it_wakes_it_when_it_has_rested(changed: dict[str, object], why: str) -> None:
    state = flat()
    assert advance(state, look(45, 4, **changed), TUNING) is state
    woken = advance(state, look(46, 4, **changed), TUNING)
    assert (woken.scan_seconds is None) == bool(why)
    if why:
        assert woken.why == why


def test_guests_that_come_are_looked_at_at_once_and_each_again_from_the_beginning() -> None:
    state = advance(flat(), look(17, 4, guests=NEW), TUNING)
    assert (state.why, setting(state, TUNING)) == ("1 guest came", FAST)
    again = advance(state, look(25, 7, guests={**NEW, (6, 10): MIB}), TUNING)
    assert (again.why, again.begin.full_scans) == ("1 guest came", 7)


def test_what_guests_always_write_to_wakes_nothing() -> None:
    """1000 pages a fast scan are 250 a second; only what is beyond that is a change."""
    state = flat(1000)
    assert advance(state, look(76, 4, broken_pages=4000 + 60 * 250), TUNING) is state
    assert advance(state, look(76, 4, broken_pages=4000 + 60 * 250 + 4096), TUNING).scan_seconds is None


def test_it_rests_twice_as_long_after_a_fast_phase_that_brought_nothing() -> None:
    state, at, scans, saved = flat(), 16.0, 4, 100_000
    rests = []
    for brought in (0, 0, 0, 0, 0, 10_000):
        at, saved = at + state.rest_seconds, saved + 5000
        state = advance(state, look(at, scans, saved_pages=saved), TUNING)
        assert state.why == "5000 more pages merged"
        saved += brought
        for _scan in range(4):
            at, scans = at + 4, scans + 1
            state = advance(state, look(at, scans, saved_pages=saved), TUNING)
        rests.append(state.rest_seconds)
    assert rests == [60, 120, 240, 480, 600, 30]


# On the host


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A recorded host on which KSM runs, with ksmd, three processes that offer memory, and one more."""
    shutil.copytree(TREE, tmp_path / "host")
    (tmp_path / "host/sys/kernel/mm/ksm/run").write_text("1\n")
    return tmp_path / "host"


def knob(tree: Path, name: str) -> str:
    return (tree / "sys/kernel/mm/ksm" / name).read_text().strip()


@pytest.mark.parametrize("old", [False, True])
def test_guests_are_processes_that_offer_memory_on_kernels_without_the_flag_too(
    tree: Path, old: bool
) -> None:
    if old:
        for path in tree.glob("proc/*/ksm_stat"):
            path.write_text("ksm_rmap_items 0\n")
    seen = Host(tree / "sys/kernel/mm/ksm", tree / "proc").look()
    # Resident pages as recorded; 28621 offers memory, but has less than 16 MiB.
    assert dict(seen.guests) == {(28619, 219375): 6207 * 4096, (28620, 219375): 4156 * 4096}


def test_a_kernel_without_some_counters_is_looked_at_without(tree: Path) -> None:
    (tree / "sys/kernel/mm/ksm/ksm_zero_pages").unlink()
    (tree / "proc/vmstat").write_text("nr_free_pages 1\n")
    seen = Host(tree / "sys/kernel/mm/ksm", tree / "proc").look()
    assert (seen.saved_pages, seen.broken_pages) == (int(knob(tree, "pages_sharing")), 0)


class Daemon:
    """The program as a process on a tree."""

    def __init__(self, tree: Path, *words: str) -> None:
        self.lock = tree / "lock"
        folders = ["--lock", self.lock, "--ksm", tree / "sys/kernel/mm/ksm", "--proc", tree / "proc"]
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, *folders, *words], stderr=subprocess.PIPE, text=True
        )

    def end(self, number: signal.Signals | None = signal.SIGTERM) -> tuple[int, str]:
        if number is not None:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=FOREVER_SECONDS)
        return self.process.returncode, said


def test_it_sets_its_knobs_and_puts_them_back_at_its_end(tree: Path) -> None:
    ksm = tree / "sys/kernel/mm/ksm"
    before = {path.name: path.read_text() for path in ksm.iterdir()}
    (ksm / "run").write_text("0\n")
    daemon = Daemon(tree, "--start")
    wait_until(lambda: knob(tree, "pages_to_scan") == "20000", "the fast pace")
    assert {name: knob(tree, name) for name in ("run", "smart_scan", "sleep_millisecs")} == {
        "run": "1",
        "smart_scan": "0",
        "sleep_millisecs": "10",
    }
    assert Path(f"/proc/{daemon.process.pid}/comm").read_text() == "ksm-pacer\n"
    second, said = Daemon(tree).end(None)
    assert second == 1
    assert said.startswith(f"ksm-pacer: process {daemon.process.pid} paces KSM already")
    code, said = daemon.end()
    assert code == 0
    assert "fast, since it begins; 0 MiB saved: pages_to_scan 20000 each 10 ms" in said
    assert said.endswith("SIGTERM: ksm-pacer ends and puts its knobs back\n")
    after = {path.name: path.read_text() for path in ksm.iterdir()}
    after["advisor_mode"] = before["advisor_mode"]  # a plain file keeps the word alone
    assert after == {**before, "run": "0\n"}


def test_where_ksm_does_not_run_it_waits(tree: Path) -> None:
    (tree / "sys/kernel/mm/ksm/run").write_text("0\n")
    daemon = Daemon(tree)
    wait_until(daemon.lock.exists, "its lock")
    assert daemon.end()[0] == 0
    assert (knob(tree, "run"), knob(tree, "pages_to_scan")) == ("0", "100")


def test_the_advisor_is_off_meanwhile_and_on_again_with_its_own_pages(tree: Path) -> None:
    ksm = tree / "sys/kernel/mm/ksm"
    (ksm / "advisor_mode").write_text("none [scan-time]\n")
    knobs = Knobs(ksm)
    for name, value in (("advisor_mode", "none"), ("pages_to_scan", 20000)):
        knobs.set(name, value)
    assert knob(tree, "advisor_mode") == "none"
    knobs.restore()
    assert (knob(tree, "advisor_mode"), knob(tree, "pages_to_scan")) == ("scan-time", "20000")


def test_where_somebody_else_sets_a_knob_it_says_so_and_leaves_that_one(tree: Path) -> None:
    knobs = Knobs(tree / "sys/kernel/mm/ksm")
    knobs.set("sleep_millisecs", 10)
    knobs.set("pages_to_scan", 20000)
    knobs.check()
    (tree / "sys/kernel/mm/ksm/pages_to_scan").write_text("1250\n")
    with pytest.raises(
        PacerError, match=r"^somebody else set pages_to_scan from 20000 to 1250: ksm-pacer ends"
    ):
        knobs.check()
    knobs.restore()
    assert (knob(tree, "pages_to_scan"), knob(tree, "sleep_millisecs")) == ("1250", "20")


def test_what_it_needs_and_does_not_find_is_named(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tree / "proc/37")
    code, said = Daemon(tree).end(None)
    assert code == 1
    assert said.startswith(f"ksm-pacer: the kernel thread ksmd is not in {tree}/proc: run this on the host")
    for words, message in (
        (["--quiet-seconds", "0"], "'0' is no whole number from 1 to 4294967295"),
        (["--fast-pages", "x"], "'x' is no whole number"),
    ):
        with pytest.raises(SystemExit):
            ksm_pacer.parse(words)
        assert message in capsys.readouterr().err


# As a policy runs it


MODULE = "plugins/modules/ksm_pacer.py"


def asked(tree: Path, state: str, **changed: object) -> dict[str, Any]:
    """What the module answers, for a daemon on this tree and a host without systemd."""
    words = ["--ksm", str(tree / "sys/kernel/mm/ksm"), "--proc", str(tree / "proc")]
    given = {
        "state": state,
        "directory": str(tree / "daemon"),
        "arguments": words,
        "run_root": str(tree / "run"),
    }
    return run(MODULE, **{**given, **changed})


def test_a_policy_starts_it_once_and_ends_it_with_all_that_it_left(tree: Path) -> None:
    begun = asked(tree, "started")
    assert begun["changed"] is True, begun
    wait_until(lambda: knob(tree, "pages_to_scan") == "20000", "the fast pace")
    again = asked(tree, "started")
    assert (again["changed"], again["pid"]) == (False, begun["pid"])
    ended = asked(tree, "stopped")
    assert ended["changed"] is True
    assert "fast, since it begins" in ended["said"][0]
    assert knob(tree, "pages_to_scan") == "100"
    assert not (tree / "daemon").exists()
    assert asked(tree, "stopped") == {**ended, "changed": False, "said": []}


def test_where_systemd_is_pid_1_it_is_a_unit_and_what_it_says_is_kept(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "run/systemd/system").mkdir(parents=True)
    told = fake_systemd_run(tree, monkeypatch)
    begun = asked(tree, "started")
    assert begun["changed"] is True, begun
    assert "--unit=ksm-testbed-pacer" in told.read_text()
    assert f"--property=StandardError=append:{tree}/daemon/said" in told.read_text()
    assert asked(tree, "stopped")["changed"] is True


def test_one_that_cannot_start_says_why_and_one_that_ended_by_itself_is_told_of(tree: Path) -> None:
    refused = asked(tree, "started", arguments=["--ksm", str(tree / "elsewhere")])
    assert refused["failed"] is True
    assert refused["msg"] == (
        f"KSM's pace is not set: ksm-pacer: {tree}/elsewhere is missing: this kernel is built without KSM "
        "(CONFIG_KSM)"
    )
    assert f"had ended by itself: ksm-pacer: {tree}/elsewhere is missing" in str(
        asked(tree, "stopped")["warnings"]
    )
