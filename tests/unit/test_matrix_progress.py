"""Which cell of how many, what it does, what it saved, and how long the rest takes."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.progress.matrix import MatrixProgress, Place, Places, about, duration, place_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def cell(workload: str, policy: str = "ksm", guests: int = 15, boot: int = 1) -> dict[str, Any]:
    cell_id = f"{workload}-{policy}-guests{guests}-boot{boot}-rep1"
    return {"cell_id": cell_id, "workload": workload, "policy": policy, "guests": guests, "boot": boot}


class Run:
    """A run whose cells take what the test says."""

    def __init__(self, *cells: dict[str, Any], hosts: tuple[str, ...] = ("localhost",)) -> None:
        self.clock = Clock()
        self.progress = MatrixProgress(self.clock)
        self.hosts = hosts
        pending = {host: [one["cell_id"] for one in cells] for host in hosts}
        self.lines = self.progress.planned(cells, pending)

    def task(self, one: dict[str, Any] | None, phase: str = "", host: str = "") -> None:
        place = Place(one["cell_id"], phase, "Task") if one else None
        for name in (host,) if host else self.hosts:
            self.lines += self.progress.task_started(name, place)
            self.lines += self.progress.works(name)

    def measure(self, one: dict[str, Any], seconds: float) -> str:
        """The line at its end."""
        self.task(one, "restore")
        self.clock.now += seconds
        self.task(None)
        return self.lines[-1].split(": ", 1)[1]


def test_each_phase_of_a_cell_is_a_line_and_so_is_its_end() -> None:
    idle, filled = cell("idle"), cell("random_fill")
    run = Run(idle, filled)
    run.clock.now += 62
    run.task(idle, "restore")
    run.task(idle, "restore")
    run.clock.now += 8
    run.task(idle, "load")
    run.task(idle, "")
    run.clock.now += 41
    run.progress.line_shown("localhost", "scan 3, saved 1467 MiB (97.8 MiB/VM), 9 s")
    run.progress.line_shown("localhost", "scan 5, saved 718 MiB (47.9 MiB/VM), 14 s")
    run.progress.line_shown("localhost", "settled: the saved pages moved by 0.1 %, 15 s")
    run.task(filled, "restore")
    assert run.lines == [
        "[  0:00] 2 cells",
        "[  1:02] cell 1 of 2 idle-ksm-guests15-boot1-rep1: restore",
        "[  1:10] cell 1 of 2 idle-ksm-guests15-boot1-rep1: load",
        "[  1:51] cell 1 of 2 idle-ksm-guests15-boot1-rep1: done in 49 s, saved 47.9 MiB/VM; about 50 s left",
        "[  1:51] cell 2 of 2 random_fill-ksm-guests15-boot1-rep1: restore",
    ]


def test_a_task_that_is_skipped_begins_no_phase() -> None:
    idle = cell("idle")
    run = Run(idle)
    run.task(idle, "restore")
    skipped = run.progress.task_started("localhost", Place(idle["cell_id"], "load", "Load"))
    after = run.progress.task_started("localhost", Place(idle["cell_id"], "", "Look"))
    assert skipped + after + run.progress.works("localhost") == []
    run.task(idle, "off")
    assert [line.split(": ", 1)[1] for line in run.lines[1:]] == ["restore", "off"]


@pytest.mark.parametrize("sign", ["its begin", "its line", "its failure"])
def test_a_phase_is_told_by_the_first_sign_of_its_task(sign: str) -> None:
    idle = cell("idle")
    run = Run(idle)
    assert run.progress.task_started("localhost", Place(idle["cell_id"], "load", "Load")) == []
    signs = {
        "its begin": lambda: run.progress.module_begins("localhost", "Load"),
        "its line": lambda: run.progress.line_shown("localhost", "guest01 filled"),
        "its failure": lambda: run.progress.failed("localhost", "Load"),
    }
    assert signs[sign]()[0].endswith(": load")
    assert run.progress.works("localhost") == []


def test_a_saving_is_not_taken_over_into_the_next_cell() -> None:
    idle, filled = cell("idle"), cell("random_fill")
    run = Run(idle, filled)
    run.task(idle, "merge")
    run.progress.line_shown("localhost", "scan 3, saved 1467 MiB (97.8 MiB/VM), 9 s")
    run.task(None)
    assert run.measure(filled, 5) == "done in 5 s"


def test_the_time_left_is_of_cells_of_the_kind_else_of_the_workload_else_of_all() -> None:
    first, again = cell("idle"), {**cell("idle"), "cell_id": "idle-again"}
    other_policy, other_load = cell("idle", "advisor"), cell("random_fill")
    run = Run(first, again, other_policy, other_load)
    assert run.progress.seconds_left() is None
    assert run.measure(first, 100) == "done in 1 min 40 s; about 5 min left"  # 3 x 100
    assert run.measure(other_load, 400) == "done in 6 min 40 s; about 3 min left"  # 100 of kind, 100 of idle
    assert run.progress.seconds_left() == 200
    assert run.measure(again, 140) == "done in 2 min 20 s; about 2 min left"  # mean of 100 and 140
    assert run.progress.seconds_left() == 120
    assert run.measure(other_policy, 10) == "done in 10 s"


def test_of_all_cells_is_the_mean_where_nothing_like_it_was_measured() -> None:
    idle, constant, filled = cell("idle"), cell("constant_fill"), cell("random_fill")
    run = Run(idle, constant, filled)
    run.measure(idle, 30)
    run.measure(constant, 90)
    assert run.progress.seconds_left() == 60


def test_more_guests_take_so_many_times_as_long_where_only_fewer_were_measured() -> None:
    few, many = {**cell("idle"), "guests": 10}, {**cell("idle"), "guests": 30, "cell_id": "idle-many"}
    other = {**cell("random_fill"), "guests": 20}
    run = Run(few, many, other)
    run.measure(few, 50)
    assert run.progress.seconds_left() == 150 + 100


def test_what_guests_took_to_boot_is_left_out_and_added_for_each_boot_to_come() -> None:
    cells = [cell("idle", boot=boot) for boot in (1, 2, 3)]
    run = Run(*cells)
    run.task(cells[0], "restore")
    run.clock.now += 200
    run.lines += run.progress.booted("localhost", 190)
    assert run.lines[-1].endswith("boot1-rep1: its guests were booted anew in 3 min 10 s")
    run.clock.now += 40
    run.task(None)
    # Each of the two takes 240 - 190, and 190 for its boot.
    assert run.progress.seconds_left() == 2 * (50 + 190)
    assert run.lines[-1].endswith("done in 4 min 0 s; about 8 min left")
    run.measure(cells[1], 60)
    # Boot 2 was there already: the next may have to be booted all the same.
    assert run.progress.seconds_left() == pytest.approx(55 + 190)


def test_a_failed_cell_says_where_and_is_no_measure_of_time() -> None:
    idle, again, filled = cell("idle"), {**cell("idle"), "cell_id": "idle-again"}, cell("random_fill")
    run = Run(idle, again, filled)
    run.measure(idle, 50)
    run.task(again, "load")
    run.clock.now += 500
    run.lines += run.progress.failed("localhost", "Load the guests")
    run.task(again, "")
    run.lines += run.progress.failed("localhost", "Record that the cell failed")
    run.task(None)
    assert [line.split(": ", 1)[1] for line in run.lines[-2:]] == [
        "failed in load, task 'Load the guests'",
        "failed in load after 8 min 20 s; about 50 s left",
    ]


def test_a_census_that_failed_does_not_fail_the_cell() -> None:
    idle = cell("idle")
    run = Run(idle)
    run.task(idle, "census")
    assert run.lines[-1].endswith(": census")
    assert run.progress.missing("localhost", "census_record") == []
    run.task(idle, "verify")
    run.task(None)
    assert run.lines[-1].endswith("done in 0 s, no census")


def test_several_hosts_in_lockstep_share_the_lines_of_a_phase_and_are_named_in_results() -> None:
    idle = cell("idle")
    run = Run(idle, hosts=("host1", "host2"))
    run.task(idle, "merge")
    run.progress.line_shown("host1", "scan 1, saved 30 MiB (2.0 MiB/VM), 9 s")
    run.progress.line_shown("host2", "scan 1, saved 45 MiB (3.0 MiB/VM), 9 s")
    run.lines += run.progress.booted("host2", 20)
    run.task(None, host="host1")
    assert [line.split(": ", 1)[1] for line in run.lines[1:]] == [
        "merge",
        "its guests were booted anew in 20 s on host2",
        "done in 0 s, saved 2.0 MiB/VM on host1, saved 3.0 MiB/VM on host2",
    ]


def test_a_failure_on_one_of_several_hosts_is_named() -> None:
    idle = cell("idle")
    run = Run(idle, hosts=("host1", "host2"))
    run.task(idle, "load")
    run.lines += run.progress.failed("host2", "Load the guests")
    run.task(None)
    assert [line.split(": ", 1)[1] for line in run.lines[2:]] == [
        "failed on host2 in load, task 'Load the guests'",
        "done in 0 s, failed on host2 in load",
    ]


def test_a_run_that_goes_on_counts_the_cells_that_were_measured_before() -> None:
    cells = [cell("idle"), cell("constant_fill"), cell("random_fill")]
    progress = MatrixProgress(Clock())
    assert progress.planned(cells, {"localhost": [cells[2]["cell_id"]]}) == [
        "[  0:00] 3 cells, 2 of them measured before"
    ]
    place = Place(cells[2]["cell_id"], "restore", "Task")
    assert progress.task_started("localhost", place) == []
    assert progress.works("localhost")[0].endswith("cell 3 of 3 random_fill-ksm-guests15-boot1-rep1: restore")
    assert progress.cell_ended()[0].endswith("done in 0 s")


def test_the_arms_of_a_capacity_run_begin_and_end() -> None:
    clock = Clock()
    progress = MatrixProgress(clock)
    assert progress.task_started("localhost", Place("arm off", "", "Task")) == ["[  0:00] arm off: begins"]
    assert progress.task_started("localhost", Place("arm off", "", "Task")) == []
    assert progress.module_begins("localhost", "Read the host") == ["[  0:00] arm off: Read the host"]
    clock.now += 200
    assert progress.task_started("localhost", Place("arm ksm", "", "Task")) == [
        "[  3:20] arm off: done in 3 min 20 s",
        "[  3:20] arm ksm: begins",
    ]
    assert progress.failed("localhost", "Boot") == ["[  3:20] arm ksm: failed, task 'Boot'"]
    clock.now += 9
    assert progress.cell_ended() == ["[  3:29] arm ksm: failed after 9 s"]


@pytest.mark.parametrize(
    ("seconds", "measured", "estimated"),
    [
        (4.4, "4 s", "about 10 s"),
        (48.7, "49 s", "about 50 s"),
        (94, "94 s", "about 90 s"),
        (100, "1 min 40 s", "about 2 min"),
        (350, "5 min 50 s", "about 6 min"),
        (5999, "99 min 59 s", "about 1 h 40 min"),
        (7500, "2 h 5 min", "about 2 h 5 min"),
    ],
)
def test_times_are_as_fine_as_they_can_be(seconds: float, measured: str, estimated: str) -> None:
    assert duration(seconds) == measured
    assert about(seconds) == estimated


class Task:
    def __init__(self, name: str, action: str = "ksm", records: str = "", **variables: Any) -> None:
        self.name = name
        self.action = action
        self.args = {"phase": records} if records else {}
        self.variables = variables

    def get_vars(self) -> dict[str, Any]:
        return self.variables


def test_a_place_is_read_from_the_variables_of_a_task() -> None:
    idle = cell("idle")
    assert place_of(Task("Measure", cell=idle, phase="off")) == Place(idle["cell_id"], "off", "Measure")
    assert place_of(Task("", cell=idle)) == Place(idle["cell_id"], "", "ksm")
    arm = {"boot": 2, "policy": "off"}
    assert place_of(Task("Probe", arm=arm, phase="probe")) == Place("arm off, boot 2", "probe", "Probe")
    assert place_of(Task("Put right")) is None
    assert place_of(Task("Other", cell="{{ a_cell }}", arm=3)) is None


@pytest.mark.parametrize(
    ("action", "records", "phase"),
    [
        ("measure_record", "off", "off"),
        ("measure_record", "on", "on"),
        ("measure_record", "failed", ""),
        ("workload", "", "load"),
        ("census_record", "", "census"),
        ("guests", "", ""),
    ],
)
def test_the_phase_of_a_task_follows_from_its_action_and_what_it_records(
    action: str, records: str, phase: str
) -> None:
    place = place_of(Task("One", action, records, cell=cell("idle")))
    assert place is not None and place.phase == phase


def test_the_first_task_of_a_cell_begins_with_restore_and_an_arm_has_no_phases() -> None:
    idle = cell("idle")
    run = Run(idle)
    run.task(idle, "")
    run.task(idle, "")
    assert [line.split(": ", 1)[1] for line in run.lines[1:]] == ["restore"]
    begun = run.progress.task_started("localhost", Place("arm off", "", "Remove"))
    assert run.progress.works("localhost") == []
    assert begun[-1].endswith("arm off: begins")


def test_a_task_of_an_arm_that_runs_several_long_modules_is_told_once() -> None:
    run = Run(cell("idle"))
    run.progress.task_started("localhost", Place("arm off", "", "Step"))
    assert run.progress.module_begins("localhost", "Step")[0].endswith("arm off: Step")
    assert run.progress.module_begins("localhost", "Step") == []
    assert run.progress.module_begins("localhost", "Restore")[0].endswith("arm off: Restore")


def test_an_interruption_names_the_last_phase_and_the_task_of_each_host() -> None:
    places = Places()
    places.note("host1", Place("one", "", "Begin"))
    places.note("host2", Place("one", "", "Begin"))
    places.note("host3", Place("one", "", "Begin"))
    places.note("host1", Place("one", "merge", "Merge"))
    places.note("host1", Place("one", "", "Stop the service"))
    places.note("host3", None)
    assert places.interrupted() == {
        "host1": ("one", "merge", "Stop the service"),
        "host2": ("one", "restore", "Begin"),
    }
    places.note("host1", Place("two", "", "Begin"))
    assert places.interrupted()["host1"] == ("two", "restore", "Begin")
