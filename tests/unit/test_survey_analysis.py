"""What a survey says: totals with intervals worked out by hand, room, and the command's one screen."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_census import census_record
from synthetic_survey import MIB, machine, survey_record

from analysis.__main__ import main
from analysis.measure.page_contents import from_record
from analysis.measure.room import rooms
from analysis.measure.scanning import published
from analysis.measure.survey import SurveyedPages
from analysis.records.models import CensusRecord
from analysis.records.survey import SurveyRecord
from analysis.report.survey import Survey

THREE = {
    "one": [0] * 5 + [7] * 3 + [8, 100, 101, *range(1000, 1040)],
    "two": [0, 0, 7] + [8] * 9 + [100, 101, *range(2000, 2030)],
    "three": [7] + [8] * 3 + list(range(3000, 3020)),
}


def record_of(content: Mapping[str, Any]) -> SurveyRecord:
    return SurveyRecord.model_validate_json(json.dumps(content))


def pages_of(machines: Mapping[str, Sequence[int]], **given: Any) -> SurveyedPages:
    pages = Survey(record_of(survey_record(machines, **given))).pages
    assert pages is not None
    return pages


@pytest.mark.parametrize("max_page_sharing", [2, 256])
@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_a_whole_census_says_the_same_as_one_of_paused_guests(
    max_page_sharing: int, use_zero_pages: int
) -> None:
    knobs = {"max_page_sharing": max_page_sharing, "use_zero_pages": use_zero_pages}
    content = census_record(THREE, **knobs)
    other = from_record(CensusRecord.model_validate_json(json.dumps(content))).saving()
    saving = pages_of(THREE, knobs=knobs).saving()
    assert {name: total.pages for name, total in vars(saving).items()} == {
        "zero": other.zero_pages,
        "within": other.within_pages,
        "between": other.between_pages,
        "limited": other.limited_pages,
        "ideal": other.ideal_pages,
        "counted": other.ideal_pages,
    }
    assert {total.half_width_pages for total in vars(saving).values()} == {0.0}


def test_the_interval_of_a_sample_is_worked_out_by_hand() -> None:
    # 20 pages that are not zero; of one content in 4 three in one copy and one in three machines were kept.
    machines = {
        "one": [1, 2, 3, 9, *range(100, 105)],
        "two": [9, *range(200, 205)],
        "three": [9, 0, 300, 301, 302, 303],
    }
    saving = pages_of(machines, one_in=4, kept=[1, 2, 3, 9]).saving()
    # Saved by each: 0, 0, 0, 2 of copies 1, 1, 1, 3: slope 6 / 12, rests -1/2 three times and 1/2.
    # Total 4 x (-1) + 1/2 x 20 = 6, and one zero page is kept; variance 4 x 3 x (4 x 1/4) = 12.
    assert saving.ideal.pages == pytest.approx(6)
    assert saving.ideal.half_width_pages == pytest.approx(1.95996 * math.sqrt(12), rel=1e-4)


def test_a_sample_of_contents_that_are_all_alike_has_no_error() -> None:
    alike = {"one": list(range(1, 1001)), "two": list(range(1, 1001))}
    saving = pages_of(alike, one_in=16, kept=range(16, 1001, 40)).saving()
    assert (saving.ideal.pages, saving.within.pages) == (pytest.approx(1000), pytest.approx(0))
    assert saving.ideal.half_width_pages == pytest.approx(0, abs=1e-6)


def test_what_was_kept_in_any_case_is_counted_exactly() -> None:
    machines = {"one": [5] * 700 + list(range(1000, 1160)), "two": [5] * 300}
    saving = pages_of(machines, one_in=16, always=[5], kept=range(1000, 1160, 16)).saving()
    assert saving.ideal.pages == pytest.approx(999 - 3)  # 1000 copies need four pages of 256 each
    assert (saving.between.pages, saving.ideal.half_width_pages) == (
        pytest.approx(1),
        pytest.approx(0, abs=1e-6),
    )


def test_intervals_of_samples_have_the_whole_in_them_and_narrower_ones_have_not() -> None:
    random = np.random.default_rng(3)
    machines = {f"vm{n}": [c for c in range(1, 3000) if random.random() < (c % 10) / 10] for n in range(6)}
    whole = pages_of(machines).saving().ideal.pages
    every = sorted({content for mine in machines.values() for content in mine})
    inside, inside_half = 0, 0
    for _ in range(60):
        ideal = (
            pages_of(machines, one_in=16, kept=[c for c in every if random.random() < 1 / 16]).saving().ideal
        )
        inside += ideal.low_pages <= whole <= ideal.high_pages
        inside_half += abs(ideal.pages - whole) <= ideal.half_width_pages / 4
    assert inside >= 54
    assert inside_half < 54


def test_what_moved_bounds_the_error_also_where_nothing_was_seen_to_move() -> None:
    # No event seen: at most 2.996 with 95 % (1 - e^-2.996), each for 64 pages.
    assert pages_of(THREE).moved().high_pages == pytest.approx(64 * 2.9957, rel=1e-4)
    moved = pages_of(THREE, changed_pages=10).moved()
    assert (moved.pages, moved.high_pages) == (640, pytest.approx(64 * 16.962, rel=1e-4))


def test_room_for_more_machines_is_worked_out_by_hand() -> None:
    # Two of 128 resident pages: 64 in both, 64 of each alone. 10 MiB are free.
    machines = {
        name: [*range(1, 65), *range(first, first + 64)] for name, first in (("a", 1000), ("b", 2000))
    }
    record = record_of(survey_record(machines))
    room = rooms(record, Survey(record).pages)[1000]
    # Off 1 MiB each: ten. On: the 64 that the other has too go, but for a 256th, and 128 x 64 B come.
    assert (room.off_bytes, room.off) == (MIB, 10)
    assert room.on_bytes == MIB - 64 * (1 - 1 / 256) * 4096 + 128 * 64
    # Of the two 64 pages go, less 2 x 128 rmap_items: 10.25 MiB less 16 KiB for 0.76 MiB each.
    assert room.on == 13
    # Safe: 1 MiB of guest, half of a MiB outside, 256 rmap_items; both there have yet to grow to it.
    assert room.safe_bytes == MIB + MIB // 2 + 256 * 64
    assert room.safe == (10 * MIB - 2 * (MIB // 2 + 256 * 64)) // (MIB + MIB // 2 + 256 * 64) == 5


def test_what_ksm_cannot_merge_needs_the_same_with_it_and_hugetlbfs_none_of_this_memory() -> None:
    fixed = machine("fixed", 8, memory_kind="unmarked", why_not_mergeable="QEMU did not offer it")
    huge = machine("huge", 9, memory_kind="hugetlbfs", why_not_mergeable="its pages are of hugetlbfs")
    record = record_of(survey_record({"a": [1] * 129, "b": [1]}, more=[fixed, huge]))
    room = rooms(record, Survey(record).pages)
    # 129 of 130 equal pages go, half of a MiB: ten of 1 MiB fit all the same.
    assert (room[1008].off_bytes, room[1008].on_bytes, room[1008].on) == (MIB, MIB, 10)
    assert 1009 not in room


def test_without_a_census_what_more_need_with_ksm_is_not_known() -> None:
    record = record_of(survey_record({"a": [1]}, census=False))
    room = rooms(record, None)[1000]
    assert (room.off, room.on, room.on_bytes) == (10, None, None)


def store(results: Path, content: Mapping[str, Any], run_id: str = "synthetic") -> Path:
    path = results / run_id / str(content["hypervisor"]) / "survey.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "run_id": run_id}))
    return path


def shown(results: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["survey", "--results", str(results), *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_one_screen_has_the_answer_its_parts_and_what_cannot_be_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = machine(
        "huge",
        9,
        memory_kind="hugetlbfs",
        why_not_mergeable="its pages are of hugetlbfs, which KSM never merges",
    )
    others = [
        {"pid": 7, "command": "postgres", "merging_pages": 0, "mergeable_bytes": 8 * MIB, "zero_pages": 0}
    ]
    mib = {name: [*range(1, 513), *range(first, first + 512)] for name, first in (("a", 10000), ("b", 20000))}
    store(tmp_path, survey_record(mib, more=[huge], others=others, ksm={"pages_sharing": 256, "run": 1}))
    text = shown(tmp_path, capsys)
    assert (
        "3 virtual machines, 2 of which KSM can merge. KSM would save 2 MiB of the 8 that they hold (25%)."
        in text
    )
    assert "It saves 1 MiB now." in text
    assert "up 1 d 2 h. KSM is on (run 1)" in text
    assert "! huge: its pages are of hugetlbfs, which KSM never merges." in text
    assert "! 1 other processes offer KSM 8 MiB" in text
    assert "most a and b 2; least a and b 2." in text
    assert "What ksmd would take here is not known" in text
    assert len(text) < 4000


def test_a_few_machines_have_a_table_of_what_each_two_hold_by_what_their_names_differ_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 512 pages of 4 KiB in common, 256 and 256
    mib = {
        "web-one": range(1, 1025),
        "web-two": range(513, 1537),
        "web-3": [*range(769, 1025), *range(9000, 9768)],
    }
    store(tmp_path, survey_record({name: list(contents) for name, contents in mib.items()}))
    text = shown(tmp_path, capsys)
    assert "MiB one two 3" in text
    assert "web-one 4 web-two 2 4 web-3 1 1 4" in text


def test_ksmd_s_cost_is_what_this_host_has_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 4 s for 2 million pages; 120 pages were counted.
    store(tmp_path, survey_record(THREE, ksm={"pages_scanned": 2_000_000}))
    text = shown(tmp_path, capsys)
    assert "ksmd has taken 2.0 µs of CPU for each page scanned since the boot, so 0.0 s for a scan" in text
    assert "published campaign" not in text


def test_where_ksmd_never_ran_its_cost_is_that_of_the_published_campaign_and_named_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = published()
    assert known is not None and 0 < known.least_seconds < known.most_seconds < 1e-4
    assert known.settling_seconds(1000) == pytest.approx(
        (1000 * known.least_seconds * known.least_scans, 1000 * known.most_seconds * known.most_scans)
    )
    store(tmp_path, survey_record(THREE))
    assert f"published campaign ({known.cpu_model}) it took" in shown(tmp_path, capsys)
    assert published(tmp_path) is None


def test_hosts_are_compared_and_the_one_with_most_to_gain_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = {name: [5] * 512 for name in ("a", "b")}
    store(tmp_path, survey_record(THREE, hypervisor="little"))
    store(tmp_path, survey_record(full, hypervisor="much"))
    store(tmp_path, survey_record(full, hypervisor="has", ksm={"pages_sharing": 1000}))
    store(tmp_path, survey_record(full, hypervisor="uncounted", census=False))
    text = shown(tmp_path, capsys)
    rows = text[text.index("Which host first") : text.index("surveyed 2026")]
    places = [rows.index(name) for name in ("much", "little", "has", "uncounted")]
    assert places == sorted(places)
    assert "uncounted" not in shown(tmp_path, capsys, "--hypervisor", "much")


def test_json_has_every_number_in_full_with_its_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, survey_record(THREE, one_in=4, always=[7, 8], kept=range(1000, 1040, 3)))
    content = json.loads(shown(tmp_path, capsys, "--json"))
    (one,) = content["surveys"]
    assert set(one["values"]) == set(one["half_widths"]) >= {"surveyed_ideal_mib", "surveyed_moved_mib"}
    assert one["half_widths"]["surveyed_ideal_mib"] >= 0 and one["sampled_one_in"] == 4
    assert [seen["name"] for seen in one["machines"]] == ["one", "two", "three"]
    assert content["quantities"]["surveyed_ideal_mib"]["unit"] == "MiB"


def test_the_newest_run_is_shown_unless_another_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (
        store(tmp_path, survey_record(THREE, hypervisor=name), run_id=name) for name in ("old", "new")
    )
    os.utime(old, (1, 1))
    assert shown(tmp_path, capsys).startswith("new, surveyed")
    assert shown(tmp_path, capsys, "--run", "old").startswith("old, surveyed")
    assert new.exists()


def test_a_damaged_file_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, survey_record(THREE))
    damaged = survey_record(THREE, hypervisor="host2")
    damaged["observed"]["census"]["strata"][0]["contents"]["copies"][0] += 1
    store(tmp_path, damaged)
    assert main(["survey", "--results", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("host1, surveyed")
    assert "! host2: survey.json breaks the schema at $.observed.census: its copies are" in captured.err


def test_where_nothing_was_surveyed_the_command_says_how_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["survey", "--results", str(tmp_path)]) == 2
    assert "ansible-playbook playbooks/survey.yml -i HOSTS takes one." in capsys.readouterr().err
