"""Whatever a file holds, a loader says what is wrong in one sentence, and goes on with the others."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from synthetic import store, synthetic_plan
from synthetic_capacity import divergence_record, step, store_capacity, store_numbers

from analysis.__main__ import main
from analysis.errors import UserError
from analysis.plan.design import CHURN, REFERENCE, RESULTS, VARIABLES, cell_directory, check_variable
from analysis.records.capacity import load_capacity
from analysis.records.forecasts import load_forecasts
from analysis.records.loading import COMPLETE, FAILED, INVALID, MISSING, find_runs, load_runs
from analysis.records.models import (
    PHASES,
    CapacityFile,
    CensusRecord,
    ForecastRecord,
    PlanRecord,
)
from analysis.records.reading import RecordError, parse_record
from plugins.module_utils import ksm_probe
from plugins.module_utils.ksm_probe import ProbeError

few = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1 << 64, 10**400])
texts = st.text(max_size=20) | st.sampled_from(["", "../..", "2026-13-41T00:00:00.000000Z", "off", "\x00"])
leaves = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)

PUBLISHED = RESULTS / REFERENCE
MODELS: dict[str, type[BaseModel]] = {
    "plan": PlanRecord,
    **{kind: model for kind, model in PHASES.items() if kind not in ("after", *CHURN)},
    "census": CensusRecord,
    "capacity_step": CapacityFile,
    "divergence": CapacityFile,
    "forecast": ForecastRecord,
}


@cache
def sound(kind: str) -> bytes:
    """The smallest published file of a kind; a synthetic one of a kind whose files bear other names."""
    published = [path.read_bytes() for path in PUBLISHED.rglob(f"{kind}.json")]
    synthetic = [raw for raw in forecasts_and_steps().values() if json.loads(raw)["kind"] == kind]
    return min(published or synthetic, key=len)


def places(content: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place within a content, its own first; of a list only the first items."""
    yield way
    if isinstance(content, dict):
        for name, inner in content.items():
            yield from places(inner, (*way, name))
    elif isinstance(content, list):
        for number, inner in enumerate(content[:2]):
            yield from places(inner, (*way, number))


@st.composite
def mutated(draw: Callable[[Any], Any], raw: bytes) -> bytes:
    """A file with something else at up to three places, or with places that are gone or new."""
    content = json.loads(raw)
    for _change in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(list(places(content))))
        if not way:
            content = draw(anything)
            continue
        inner = content
        for name in way[:-1]:
            inner = inner[name]
        change = draw(st.sampled_from(["replace", "drop", "add"]))
        if change == "replace":
            inner[way[-1]] = draw(anything)
        elif change == "drop":
            del inner[way[-1]]
        elif isinstance(inner, dict):
            inner[draw(texts)] = draw(anything)
        else:
            inner.append(draw(anything))
    return json.dumps(content).encode()


def damaged(raw: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(
        mutated(raw),
        st.integers(0, len(raw) - 1).map(lambda end: raw[:end]),
        anything.map(lambda content: json.dumps(content).encode()),
        st.binary(max_size=50),
        st.just(b"[" * 100_000),
    )


@pytest.mark.parametrize("kind", MODELS)
@few
@given(data=st.data())
def test_a_file_is_a_record_or_what_is_wrong_with_it_is_one_sentence(kind: str, data: st.DataObject) -> None:
    raw = data.draw(damaged(sound(kind)))
    try:
        record = parse_record(raw, MODELS[kind], "it.json")
    except RecordError as error:
        text = str(error)
        assert text.startswith("it.json ")
        assert "\n" not in text
        assert len(text) < 400
    else:
        assert isinstance(record, MODELS[kind])


def test_a_name_of_several_lines_is_told_in_one() -> None:
    content = {**json.loads(sound("off")), "two\nlines\u2028" + "x" * 1000: 1}
    with pytest.raises(
        RecordError, match=r"^it\.json breaks the schema at \$\.two lines x+ \.\.\. x+: "
    ) as said:
        parse_record(json.dumps(content).encode(), PHASES["off"], "it.json")
    assert len(str(said.value)) < 400


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_damaged_by_these_strategies_is_whole_before(kind: str) -> None:
    assert parse_record(sound(kind), MODELS[kind], "it.json")


@cache
def files() -> dict[str, bytes]:
    """A run of two cells, by relative path."""
    with tempfile.TemporaryDirectory() as folder:
        run = store(Path(folder), synthetic_plan(focus="1,2", guests=2))
        return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.json")}


@few
@given(data=st.data())
def test_one_damaged_file_is_named_and_nothing_else_is_lost(data: st.DataObject) -> None:
    hit = data.draw(st.sampled_from(sorted(files())))
    raw = data.draw(damaged(files()[hit]))
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        whole = store(results, synthetic_plan(run_id="whole", guests=2))
        for name, content in files().items():
            path = results / "synthetic" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw if name == hit else content)
        found = find_runs(results)
        loaded = load_runs(found.directories)
        problems = [*found.problems, *loaded.problems, *(p for run in loaded.runs for p in run.problems)]
        assert loaded.runs[[run.directory for run in loaded.runs].index(whole)].cells[0].status == COMPLETE
        mine = [cell for run in loaded.runs if run.directory != whole for cell in run.cells]
        assert {cell.status for cell in mine} <= {COMPLETE, FAILED, INVALID, MISSING}
        if len(mine) != 2 or any(cell.status == INVALID for cell in mine):
            assert problems
        if hit != "plan.json" and hit.endswith(("off.json", "on.json", "merge.json", "verify.json")):
            other = [cell for cell in mine if str(cell_directory(Path(), cell.cell)) not in hit]
            assert [cell.status for cell in other] == [COMPLETE]


@cache
def forecasts_and_steps() -> dict[str, bytes]:
    """A forecast and a capacity run, by path under results."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        store_numbers(results, (2, 4), focus="1")
        forecast = results / "forecasts" / "one.json"
        with redirect_stdout(StringIO()):
            assert main(["forecast", "--results", folder, "--guests", "6", "--out", str(forecast)]) == 0
        steps = [step("off", 4, 1600.0), step("off", 8, 3200.0), step("ksm", 4, 900.0)]
        store_capacity(results, [*steps, divergence_record([90.0, 90.0, 10.0, 10.0], [1e3, 1e3, 2e3, 2e3])])
        paths = [forecast, *(results / "capacity").rglob("*.json")]
        return {str(path.relative_to(results)): path.read_bytes() for path in paths}


@few
@given(data=st.data())
def test_one_damaged_forecast_or_step_is_named_and_nothing_else_is_lost(data: st.DataObject) -> None:
    hit = data.draw(st.sampled_from(sorted(forecasts_and_steps())))
    raw = data.draw(damaged(forecasts_and_steps()[hit]))
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        for name, content in forecasts_and_steps().items():
            path = results / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw if name == hit else content)
        forecasts, unread = load_forecasts(results)
        runs, left_out = load_capacity(results)
    steps = sum(len(arm) for run in runs for arm in run.arms.values()) + sum(len(r.divergences) for r in runs)
    problems = [*unread, *left_out]
    assert all("\n" not in problem for problem in problems)
    # Two records of one step are both left out.
    assert len(forecasts_and_steps()) - len(forecasts) - steps <= 2
    if len(forecasts) + steps < len(forecasts_and_steps()):
        assert problems


@settings(few, max_examples=25)
@given(data=st.data(), command=st.sampled_from(["summarize", "explain"]))
def test_no_command_stops_for_a_damaged_file(data: st.DataObject, command: str) -> None:
    hit = data.draw(st.sampled_from(sorted(files())))
    raw = data.draw(damaged(files()[hit]))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "synthetic"
        for name, content in files().items():
            path = run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw if name == hit else content)
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as told:
            code = main([command, "--results", str(folder)])
    if hit == "plan.json" and code == 2:
        assert "plan.json" in told.getvalue()
    else:
        assert code in (0, 1)
        assert "constant" in out.getvalue() or "idle" in out.getvalue()


@pytest.mark.parametrize("name", ["off.json", "plan.json", "host1"])
def test_a_folder_where_a_file_should_be_and_a_file_where_a_folder_is_named(results: Path, name: str) -> None:
    good = store(results, synthetic_plan(run_id="good"))
    run = store(results, synthetic_plan(run_id="bad"))
    (path,) = run.rglob(name)
    moved = path.rename(run / "aside")
    if moved.is_dir():
        path.write_text("")
    else:
        path.mkdir()
    loaded = load_runs(find_runs(results).directories)
    assert good in [one.directory for one in loaded.runs]
    cells = [cell for one in loaded.runs if one.directory == run for cell in one.cells]
    assert all(cell.status in (INVALID, MISSING) for cell in cells)


@pytest.mark.parametrize("name", VARIABLES)
@few
@given(
    value=anything
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(
        ["9" * 5000, "idle=1,idle=2", "idle=1,x=" + "9" * 5000, "1,1", "²", '{"pages_to_scan": "²"}']
    )
)
def test_a_variable_is_typed_or_refused_in_one_sentence(name: str, value: Any) -> None:
    try:
        check_variable(name, value)
    except UserError as error:
        assert str(error)


lines = st.lists(
    st.sampled_from(
        [
            "MemTotal:       24684084 kB",
            "HugePages_Total:       0",
            "Size:               2048 kB",
            "VmFlags: rd wr mr mw me ac sd mg",
            "some avg10=0.00 avg60=0.05 avg300=0.11 total=34512",
            "ksm_rmap_items 131072",
            "ksm_mergeable: yes",
            "28 (kworker/0:1 (x)) S 2 0 0 0 -1 69238880 0 5 0 6 0 7 8",
            "55d0c5a00000-7ffd0b3ff000 ---p 00000000 00:00 0                          [rollup]",
        ]
    )
    | st.text(max_size=40),
    max_size=6,
).map("\n".join)


@st.composite
def garbled(draw: Callable[[Any], Any]) -> str:
    """Lines as the kernel writes them, and others; some with a part replaced or missing."""
    text = draw(lines)
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 8)))
    return str(text[:start] + draw(st.text(max_size=6) | st.sampled_from(["nan", "9" * 5000])) + text[end:])


PARSERS: dict[str, Callable[[str], Any]] = {
    "table": lambda text: ksm_probe.parse_kib_table(text, Path("meminfo")),
    "pressure": ksm_probe.parse_pressure,
    "stat": ksm_probe.parse_stat,
    "ksm_stat": ksm_probe.parse_ksm_stat,
    "smaps": ksm_probe.mergeable,
    "integer": lambda text: ksm_probe.to_int(text, Path("run")),
}


@pytest.mark.parametrize("parser", PARSERS)
@few
@given(text=st.one_of(lines, garbled(), st.text()))
def test_a_number_is_parsed_or_its_file_is_named(parser: str, text: str) -> None:
    try:
        found = PARSERS[parser](text)
    except ProbeError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        json.dumps(found, allow_nan=False)


@few
@given(
    table=st.dictionaries(st.from_regex(r"[A-Z][A-Za-z_()]{0,15}", fullmatch=True), st.integers(0, 1 << 50))
)
def test_a_table_is_read_as_it_was_written(table: dict[str, int]) -> None:
    text = "".join(f"{name}:{kib:>15} kB\n" for name, kib in table.items())
    found = ksm_probe.parse_kib_table(text, Path("meminfo"))
    assert found == {f"{name}_bytes": kib * 1024 for name, kib in table.items()}
