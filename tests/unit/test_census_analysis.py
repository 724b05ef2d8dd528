"""The pure functions of a census against brute force over page lists, and its text and command."""

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_census import census_record

from analysis.__main__ import main
from analysis.measure.chances import fit_chances
from analysis.measure.page_contents import Census, from_record
from analysis.measure.saving import UNCOUNTED_ZEROS, Unknown
from analysis.records.models import CensusRecord, LargestContent
from analysis.records.reading import read_record
from analysis.report.census import census_parts
from analysis.report.tables import render

PAGE_BYTES = 4096

# A loaded machine is no failure, and what failed once fails again.
steady = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def guests_of(seed: int, number: int, *, contents: int = 40, pages: int = 60) -> dict[str, list[int]]:
    source = random.Random(seed)  # noqa: S311 -- reproducible
    return {
        f"guest{n:02d}": [source.randrange(contents) for _ in range(source.randrange(1, pages))]
        for n in range(1, number + 1)
    }


def census_of(guests: dict[str, list[int]], **knobs: Any) -> Census:
    return from_record(record_of(guests, **knobs))


def record_of(guests: dict[str, list[int]], **knobs: Any) -> CensusRecord:
    return CensusRecord.model_validate_json(json.dumps(census_record(guests, **knobs)))


def kept_of(chosen: Sequence[Sequence[int]], max_page_sharing: int, use_zero_pages: int) -> int:
    """Physical pages by the definition: each content needs one page for so many copies."""
    copies = Counter(content for guest in chosen for content in guest)
    if use_zero_pages:
        copies.pop(0, None)
    return sum(-(-number // max_page_sharing) for number in copies.values())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("max_page_sharing", "use_zero_pages"), [(256, 0), (256, 1), (2, 0), (3, 1)])
def test_the_ideal_saving_against_brute_force(seed: int, max_page_sharing: int, use_zero_pages: int) -> None:
    guests = guests_of(seed, 5)
    counted = census_of(guests, max_page_sharing=max_page_sharing, use_zero_pages=use_zero_pages)
    saving = counted.saving()
    resident = sum(map(len, guests.values()))
    assert saving.ideal_pages == resident - kept_of(list(guests.values()), max_page_sharing, use_zero_pages)
    parts = (saving.kept_pages, saving.zero_pages, saving.within_pages, saving.between_pages)
    assert sum(parts) == resident == counted.resident_pages
    assert saving.kept_pages + saving.limited_pages == counted.kept(5)


def test_the_parts_by_hand() -> None:
    counted = census_of({"a": [0, 0, 1, 1, 1, 2], "b": [0, 1, 2, 3]})
    saving = counted.saving()
    # Kept 0 1 2 3; zero: 3 less the kept one; within: 1 twice in a; between: 1 and 2 once.
    assert (saving.kept_pages, saving.zero_pages, saving.within_pages, saving.between_pages) == (4, 2, 2, 2)
    assert saving.limited_pages == 0
    assert census_of({"a": [5] * 257}).saving().limited_pages == 1
    assert census_of({"a": [5] * 256}).saving().limited_pages == 0


@pytest.mark.parametrize("seed", range(6))
def test_rarefaction_is_the_mean_over_all_choices_of_guests(seed: int) -> None:
    guests = guests_of(seed, 6)
    counted = census_of(guests)
    for k in range(1, 7):
        chosen = [[guests[name] for name in names] for names in combinations(guests, k)]
        distinct = fmean(len(set().union(*group) - {0}) for group in chosen)
        assert counted.distinct(k) == pytest.approx(distinct, rel=1e-12)
        assert counted.kept(k) == pytest.approx(fmean(kept_of(g, 10**9, 0) for g in chosen), rel=1e-12)
        resident = fmean(sum(map(len, group)) for group in chosen)
        saved = (resident - fmean(kept_of(group, 256, 0) for group in chosen)) * PAGE_BYTES
        assert counted.saved_bytes(k) == pytest.approx(saved, rel=1e-9, abs=1e-6)


def test_the_tolerance_would_catch_drawing_with_replacement() -> None:
    guests = guests_of(0, 6)
    counted = census_of(guests)
    wrong = sum(kind.contents * (1 - (1 - kind.guests / 6) ** 3) for kind in counted.contents)
    assert counted.distinct(3) != pytest.approx(wrong, rel=1e-12)


@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_rarefaction_with_max_page_sharing_where_copies_are_spread_evenly(use_zero_pages: int) -> None:
    # Each guest that holds content c holds it c times, two hold no zero page.
    holders = {1: (1, 2, 3, 4, 5), 2: (1, 2), 7: (2, 3, 5), 0: (1, 4, 5), 9: (4,)}
    guests = {
        f"guest{n}": [c for c, who in holders.items() if n in who for _ in range(max(c, 4))]
        for n in range(1, 6)
    }
    counted = census_of(guests, max_page_sharing=3, use_zero_pages=use_zero_pages)
    for k in range(1, 6):
        kept = fmean(
            kept_of([guests[name] for name in names], 3, use_zero_pages) for names in combinations(guests, k)
        )
        assert counted.kept(k) == pytest.approx(kept, rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.4, 0.9), (2.0, 2.0), (0.5, 3.0)])
def test_known_chances_are_recovered(alpha: float, beta: float) -> None:
    # The chance that some j guests hold a content and k others do not, by the definition of Beta.
    def held(j: int, k: int) -> float:
        ends = [math.gamma(alpha + j), math.gamma(beta + k), math.gamma(alpha + beta)]
        return math.prod(ends) / math.gamma(alpha + beta + j + k) / math.gamma(alpha) / math.gamma(beta)

    counts = [200_000 * math.comb(6, j) * held(j, 6 - j) for j in range(7)]
    found = fit_chances([0, counts[1] + 6 * 1000, *counts[2:6], counts[6] + 5000])
    for guests in (9, 15, 24, 30):
        gain = 1000 * (guests - 6) + 200_000 * (held(0, 6) - held(0, guests))
        assert found.new(guests) == pytest.approx(gain, rel=0.1)
        # As many in proportion as the last one brought would not pass.
        assert (guests - 6) * (counts[1] / 6 + 1000) != pytest.approx(gain, rel=0.12)


def test_of_more_guests_the_contents_are_told_by_their_chances() -> None:
    # Common contents, those that a guest holds by chance, contents of its own; 6 of 24 counted, many times.
    source = random.Random(1)  # noqa: S311 -- reproducible
    drawn = [source.random() for _content in range(1500)]
    everybody = {
        f"guest{n:02d}": [
            *range(1, 300),
            *(1000 + content for content, chance in enumerate(drawn) if source.random() < chance),
            *range(10_000 * n, 10_000 * n + 100),
        ]
        for n in range(1, 25)
    }
    chosen = [source.sample(sorted(everybody), 6) for _ in range(10)]
    sixes = [census_of({name: everybody[name] for name in names}) for names in chosen]
    truth = census_of(everybody)
    for number in (9, 15, 24):
        gain = fmean(one.distinct(number) - one.distinct(6) for one in sixes) - 100 * (number - 6)
        shared = truth.distinct(number) - truth.distinct(6) - 100 * (number - 6)
        assert gain == pytest.approx(shared, rel=0.2)
        # Were each guest to bring as many as the last did, or nothing that others hold, it would be far off.
        last = fmean((number - 6) * (one.held[1] / 6 - 100) for one in sixes)
        assert last != pytest.approx(shared, rel=0.3)


def test_the_two_extreme_kinds() -> None:
    alike = census_of({f"g{n}": [1, 2, 3] for n in range(4)})
    assert (alike.distinct(100), alike.chances.common, alike.chances.alone) == (3, 3, 0)
    alone = census_of({f"g{n}": list(range(1000 * n + 1, 1000 * n + 101)) for n in range(4)})
    assert (alone.distinct(8), alone.chances.common, alone.chances.alone) == (800, 0, 100)
    single = census_of({"g": [1, 2, 2]})
    assert (single.distinct(3), single.pool_bytes(3)) == (6, 0)
    # Of two guests nothing tells what is between: in both, or in one alone.
    pair = census_of({"a": [1, 2, 3], "b": [1, 2, 4]})
    assert (pair.distinct(4), pair.pool_bytes(4)) == (6, 2 * PAGE_BYTES)


def test_the_fitted_chances_give_the_counts_back() -> None:
    # A third each of 900 contents: by hand, Beta(1, 1) puts as many in 0, 1 ... n guests.
    found = fit_chances([0, 400 + 50, 50, 50, 50, 50, 50 + 100])
    assert (found.alpha, found.beta) == pytest.approx((1, 1), abs=0.01)
    assert (found.between, found.common, found.alone) == pytest.approx((350, 100, 400 / 6), rel=0.02)
    # 1 / (N + 1) of them is in none of N guests.
    assert found.new(13) == pytest.approx(7 * 400 / 6 + 350 * (1 / 7 - 1 / 14), rel=0.02)
    # Nothing is negative where a straight line through the counts would be.
    odd = fit_chances([0, 1, 90, 90, 90, 2])
    assert min(odd.common, odd.alone, odd.between) >= 0


@pytest.mark.parametrize("seed", range(5))
def test_what_lies_beyond_joins_the_exact_curve(seed: int) -> None:
    counted = census_of(guests_of(seed, 5, contents=150), max_page_sharing=3)
    kept = [counted.kept(k + 1) - counted.kept(k) for k in range(1, 12)]
    assert all(gain > -1e-9 for gain in kept)
    distinct = [counted.distinct(k + 1) - counted.distinct(k) for k in range(1, 12)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(distinct))


def test_efficiency_is_of_the_pages_that_were_counted() -> None:
    guests = {"a": [0, 0, 1, 1, 1, 2], "b": [0, 1, 2, 3]}
    # Ideal: two of zero, three of content 1, one of content 2. Four pages on one frame save three.
    found = census_of(guests, merged={"mapped_pages": 4, "frames": 1, "zero_pages": 0}, pages_sharing=5)
    assert (found.saved_pages, found.gross_pages, found.efficiency) == (3, 5, 3 / 6)
    zeros = {"mapped_pages": 6, "frames": 2, "zero_pages": 3}
    assert census_of(guests, use_zero_pages=1, merged=zeros).efficiency == 1
    uncounted = census_of(guests, use_zero_pages=1, merged={**zeros, "zero_pages": None}, ksm_zero_pages=None)
    assert uncounted.efficiency == uncounted.gross_pages == UNCOUNTED_ZEROS
    assert census_of(guests, merged={"mapped_pages": 0, "frames": 0, "zero_pages": 0}).efficiency == 0


def test_an_old_census_has_no_efficiency_and_says_why() -> None:
    old = census_of({"a": [1, 1]}, pages_sharing=1, merged=None)
    assert isinstance(old.efficiency, Unknown)
    assert "did not count merged pages" in old.efficiency.reason
    assert old.gross_pages == 1
    alone = census_of({"a": [1, 2]}, merged={"mapped_pages": 0, "frames": 0, "zero_pages": 0})
    assert alone.efficiency == Unknown("no page of the guests can go")


def test_contents_in_many_copies_that_nobody_filled_are_strangers() -> None:
    largest = [
        {"copies": 9000, "guests": 2, "kind": "constant_fill"},
        {"copies": 4000, "guests": 2, "kind": "other"},
        {"copies": 1999, "guests": 2, "kind": "other"},
    ]
    (stranger,) = census_of({"a": [1], "b": [1]}, largest_contents=largest).strangers
    assert stranger == LargestContent(copies=4000, guests=2, kind="other")


@st.composite
def merged_by_ksm(draw: st.DrawFn) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Guests, and what a KSM of these knobs did: some copies of some contents, on frames of its own."""
    contents = st.lists(st.integers(0, 6), min_size=1, max_size=30)
    guests = {f"guest{n}": draw(contents) for n in range(draw(st.integers(1, 4)))}
    limit, zero = draw(st.integers(2, 5)), draw(st.integers(0, 1))
    copies = Counter(content for pages in guests.values() for content in pages)
    done = {"mapped_pages": 0, "frames": 0, "zero_pages": 0}
    for content, number in copies.items():
        taken = draw(st.integers(0, number))
        if content == 0 and zero:
            done["zero_pages"] = taken
        else:
            done["mapped_pages"] += taken
            done["frames"] += draw(st.integers(-(-taken // limit), taken)) if taken else 0
    return guests, {"max_page_sharing": limit, "use_zero_pages": zero, "merged": done}


@steady
@given(merged_by_ksm())
def test_no_ksm_is_better_than_the_ideal(case: tuple[dict[str, list[int]], dict[str, Any]]) -> None:
    guests, knobs = case
    found = census_of(guests, **knobs)
    assert not isinstance(found.saved_pages, Unknown)
    assert found.saved_pages <= found.saving().ideal_pages
    assert isinstance(found.efficiency, Unknown) or 0 <= found.efficiency <= 1


@steady
@given(merged_by_ksm())
def test_the_parts_of_a_census_sum_to_its_pages(case: tuple[dict[str, list[int]], dict[str, Any]]) -> None:
    guests, knobs = case
    found, ideal = census_of(guests, **knobs), census_of(guests, **knobs).saving()
    parts = (ideal.kept_pages, ideal.zero_pages, ideal.within_pages, ideal.between_pages)
    assert sum(parts) == found.resident_pages == sum(map(len, guests.values()))
    assert min(parts) >= 0
    assert 0 <= ideal.limited_pages <= ideal.zero_pages + ideal.within_pages + ideal.between_pages
    assert ideal.ideal_pages == found.resident_pages - found.kept(len(guests))


def stored(tmp_path: Path, record: dict[str, Any]) -> Path:
    path = tmp_path / "census.json"
    path.write_text(json.dumps(record))
    return path


def test_the_text_is_one_screen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    guests = guests_of(3, 15, contents=5000, pages=4000)
    merged = {"mapped_pages": 9001, "frames": 1, "zero_pages": 0}
    path = stored(tmp_path, census_record(guests, pages_sharing=9000, merged=merged))
    assert main(["census", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110
    assert len(lines) <= 60
    text = "\n".join(lines)
    ideal = from_record(read_record(path, CensusRecord)).saving().ideal_pages
    assert f"KSM's efficiency: {100 * 9000 / ideal:.1f} % of the ideal saving." in text
    assert "1.00 GB read in 1.00 s (1.0 GB/s, 2 processes), guests paused for 1.25 s" in " ".join(
        text.split()
    )
    assert "guest15" in text


@pytest.mark.parametrize("number", [1, 2, 16])
def test_the_text_of_few_and_many_guests(number: int) -> None:
    text = render(*census_parts(record_of(guests_of(3, number))))
    assert "KSM's efficiency is not known: the census is of a version" in text
    assert ("One guest" in text) == (number == 1)
    assert max(map(len, text.splitlines())) <= 110


def test_what_is_no_census_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good = census_record({"a": [1, 1, 2], "b": [2, 3]})
    cases: list[tuple[Any, str]] = [
        ({**good, "kind": "on"}, "holds a record of kind on"),
        (
            {**good, "observed": {**good["observed"], "shared_contents": []}},
            "its guests of the matrix are 0, and 2",
        ),
    ]
    damaged = json.loads(json.dumps(good))
    damaged["observed"]["guests"]["a"]["resident_pages"] = 4
    cases.append((damaged, "its copies are 5, and 6"))
    for record, sentence in cases:
        assert main(["census", str(stored(tmp_path, record))]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert sentence in error
    assert main(["census", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err


def test_the_command_takes_a_census_and_prints_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(campaign: Any, playbook: Path, _progress: Any) -> int:
        assert playbook == Path("playbooks/census.yml")
        folder = Path(campaign.variables["results_directory"]) / campaign.run_id / "host1"
        folder.mkdir(parents=True)
        stored(folder, census_record({"a": [1, 1, 2], "b": [2, 3]}))
        return 0

    monkeypatch.setattr("analysis.progress.campaign.play", play)
    assert main(["census", "--results", str(tmp_path)]) == 0
    assert "Census of 2 guests" in capsys.readouterr().out
    monkeypatch.setattr("analysis.progress.campaign.play", lambda *_arguments: 4)
    # Ansible's own code would pass for the user's mistake.
    assert main(["census", "--results", str(tmp_path)]) == 1
    monkeypatch.setattr("analysis.progress.campaign.play", lambda *_arguments: 0)
    assert main(["census", "--results", str(tmp_path / "other")]) == 2
    assert "there is no census" in capsys.readouterr().err


def test_the_censuses_of_a_run_are_shown_as_text_and_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for host in ("host1", "host2"):
        folder = tmp_path / "one" / host
        folder.mkdir(parents=True)
        merged = {"mapped_pages": 3, "frames": 1, "zero_pages": 0}
        stored(folder, census_record({"a": [1, 1, 2], "b": [2, 1]}, merged=merged))
    words = ["census", "--results", str(tmp_path), "--run", "one"]
    assert main(words) == 0
    assert capsys.readouterr().out.count("Census of 2 guests") == 2
    assert main([*words, "--hypervisor", "host2", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    # Of 5 pages 1 within, 2 between: 2 of these 3 are saved; 4 KiB pages, 2 guests.
    (seen,) = content["censuses"]
    assert seen["values"]["ideal_mib_per_vm"] == 3 / 256 / 2
    assert seen["values"]["efficiency_percent"] == pytest.approx(100 * 2 / 3)
    assert content["quantities"]["efficiency_percent"]["unit"] == "%"
    assert main([*words, "--hypervisor", "host3"]) == 2
    assert main(["census", "--results", str(tmp_path), "--run", "two"]) == 2
    assert "run 'two' is not under" in capsys.readouterr().err
