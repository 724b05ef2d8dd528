"""The models of what is stored: what fits, and that each thing they are there to catch is caught."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from synthetic import BOOTED, synthetic_failure, synthetic_plan, synthetic_records, synthetic_start

from analysis.plan.design import REFERENCE, RESULTS
from analysis.records.models import RECORDS, Guest, PlanRecord, SnapshotRecord, json_schemas
from analysis.records.placement import PlacementRecord
from analysis.records.survey import SurveyRecord

PUBLISHED = sorted((RESULTS / REFERENCE).rglob("*.json"))
OF_KIND = RECORDS | {"survey": SurveyRecord, "placement": PlacementRecord}
KINDS = ("off", "merge", "on", "verify")


def fault(kind: str, content: Any) -> str:
    """What is wrong with a record of this kind, "" where nothing is."""
    try:
        RECORDS[kind].model_validate_json(json.dumps(content))
    except ValidationError as error:
        return str(error)
    return ""


def record(kind: str, focus: int = 2) -> dict[str, Any]:
    mix = "" if focus else "constant_fill=5,idle=5,random_fill=5"
    plan = synthetic_plan(focus=focus or 1, mix=mix)
    records = synthetic_records(plan, plan.cells[0])
    return copy.deepcopy(synthetic_failure(records) if kind == "failed" else records[kind])


@pytest.mark.parametrize("kind", [*KINDS, "failed"])
@pytest.mark.parametrize("focus", [0, 1, 2, 3])
def test_a_record_of_every_kind_fits(kind: str, focus: int) -> None:
    assert fault(kind, record(kind, focus)) == ""


def test_a_plan_fits() -> None:
    plan = synthetic_plan(focus="all", boots=2, repetitions=2).to_json()
    assert fault("plan", plan) == ""


def put(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


OBSERVED_HOST = ("observed", "host")
BAD_RECORDS = [
    ("off", put("schema_version", value=1)),
    ("off", put("kind", value="before")),
    ("off", put("extra", value=1)),
    ("off", put("recorded_at", value="2026-11-23 19:00")),
    ("off", put("monotonic_seconds", value=None)),
    ("off", put("cell", "focus", value=2)),
    ("off", put("cell", "order", value="off-on")),
    ("off", drop("cell", "policy")),
    ("off", put("cell", "boot", value=0)),
    ("off", put("cell", "repetition", value="1")),
    ("off", drop("requested", "policy")),
    ("off", put("requested", "service", value=None)),
    ("off", drop("provenance", "start")),
    ("off", put("provenance", "start", value=None)),
    ("off", put("provenance", "start", "from", value="snapshot")),
    ("off", put("provenance", "start", "checkpoint", value=None)),
    ("off", put("provenance", "start", "booted_at", value=None)),
    ("off", put("provenance", "start", "booted_at", value="yesterday")),
    ("off", put("provenance", "start", "loaded", value=None)),
    ("off", put("provenance", "start", "arm_order", value="abba")),
    ("off", put("provenance", "start", "restore_seconds", value=-1)),
    ("off", put("provenance", "start", "host", value="h1")),
    ("off", put("cell", "guests", value=0)),
    ("off", put("cell", "note", value="x")),
    ("off", drop("requested", "convergence")),
    ("off", put("requested", "thp_enabled", value="maybe")),
    ("off", put("requested", "ksm_knobs", "pages_to_scan", value=[1])),
    ("off", put("provenance", "kernel_release", value=None)),
    ("off", put("provenance", "accelerator", value="auto")),
    ("off", put("provenance", "image_digest", value="sha256:abc")),
    ("off", drop("provenance", "testbed_version")),
    ("off", drop(*OBSERVED_HOST, "meminfo", "MemAvailable_bytes")),
    ("off", put(*OBSERVED_HOST, "meminfo", "MemFree_bytes", value=1.5)),
    ("off", put(*OBSERVED_HOST, "meminfo", "MemFree_bytes", value=None)),
    ("off", put(*OBSERVED_HOST, "vmstat", "pswpin", value="0")),
    ("off", put(*OBSERVED_HOST, "ksm", "pages_sharing", value=None)),
    ("off", drop(*OBSERVED_HOST, "ksm", "general_profit")),
    ("off", put(*OBSERVED_HOST, "ksm", "pages_sharring", value=1)),
    ("off", put(*OBSERVED_HOST, "psi", value={"cpu": {}})),
    ("off", drop("observed", "guests", "guest01", "mergeable_bytes")),
    ("off", drop("observed", "guests", "guest01", "smaps_rollup", "Pss_bytes")),
    ("off", put("observed", "other_mergeable", value=[{"pid": 1}])),
    ("off", put("observed", "workload", "guest01", "seed", value=7)),
    ("on", drop("observed", "workload")),
    ("on", put("observed", "workload", "guest01", "digest", value=None)),
    ("merge", put("observed", "samples", "pages_sharing", 0, value=None)),
    ("merge", drop("observed", "samples", "ksmd_cpu_seconds")),
    ("merge", put("observed", "samples", "seconds", value=[])),
    ("merge", put("observed", "converged", value="yes")),
    ("merge", put("observed", "host", value={})),
    ("verify", put("observed", "guests", "guest01", "intact", value=None)),
    ("failed", put("observed", "phase", value="lunch")),
    ("failed", drop("observed", "message")),
]


@pytest.mark.parametrize("number", range(len(BAD_RECORDS)))
def test_a_record_with_one_fault_is_refused(number: int) -> None:
    kind, change = BAD_RECORDS[number]
    content = record(kind)
    change(content)
    assert fault(kind, content)


ALLOWED_RECORDS = [
    ("off", put(*OBSERVED_HOST, "ksm", "ksm_zero_pages", value=None)),
    ("off", put(*OBSERVED_HOST, "ksm", "general_profit", value=-4096)),
    ("off", put(*OBSERVED_HOST, "psi", value=None)),
    ("off", put("observed", "guests", "guest01", "ksm_stat", value=None)),
    ("off", put("provenance", "libvirt_version", value=None)),
    ("merge", put("observed", "converged_after_seconds", value=None)),
    ("merge", put("observed", "samples", "general_profit", 0, value=None)),
    ("off", put("provenance", "start", "boot_seconds", value=None)),
    ("off", put("provenance", "start", "booted_at", value="2026-11-26T08:00:00Z")),
    ("off", put("provenance", "start", value=synthetic_start(1, **BOOTED))),
    ("failed", put("provenance", "start", value=None)),
    *(("failed", put("observed", "phase", value=phase)) for phase in ("restore", "load", "census")),
    ("failed", put("provenance", "kernel_release", value=None)),
    ("failed", put("provenance", "ksm_knobs", value=None)),
    ("failed", put("provenance", "image_digest", value=None)),
    ("failed", put("monotonic_seconds", value=None)),
]


@pytest.mark.parametrize("number", range(len(ALLOWED_RECORDS)))
def test_null_is_allowed_where_a_host_may_lack_it(number: int) -> None:
    kind, change = ALLOWED_RECORDS[number]
    content = record(kind)
    change(content)
    assert fault(kind, content) == ""


@pytest.mark.parametrize(
    "change",
    [
        put("kind", value="record"),
        put("cells", value=[]),
        put("cells", 0, "order", value="abba"),
        put("design", "focus", value="all"),
        put("design", "focus", value=[0]),
        put("design", "census", value="yes"),
        put("design", "guests", value="15"),
        put("design", "gests", value=15),
        drop("design", "ksm_knobs"),
        drop("design_digest"),
    ],
)
def test_a_plan_with_one_fault_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    plan = synthetic_plan().to_json()
    change(plan)
    assert fault("plan", plan)


def test_every_published_record_is_one_of_the_models() -> None:
    kinds = set()
    for path in PUBLISHED:
        raw = path.read_bytes()
        kind = json.loads(raw)["kind"]
        OF_KIND[kind].model_validate_json(raw)
        kinds.add(kind)
    assert len(PUBLISHED) > 200
    assert {"plan", "off", "merge", "on", "after", "verify", "failed", "census", "survey"} <= kinds


def published(kind: str) -> dict[str, Any]:
    path = next(path for path in PUBLISHED if path.name == f"{kind}.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.fixture
def off() -> dict[str, Any]:
    return published("off")


def test_a_records_attributes_are_its_json(off: dict[str, Any]) -> None:
    record = SnapshotRecord.model_validate_json(json.dumps(off))
    assert record.observed.host.ksm.full_scans == off["observed"]["host"]["ksm"]["full_scans"]
    assert record.provenance.start.origin == off["provenance"]["start"]["from"]
    assert record.cell.guests == len(record.observed.guests)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema_version",), 1),
        (("schema_version",), 3),
        (("kind",), "merge"),
        (("recorded_at",), "2026-99-01T00:00:00.000000Z"),
        (("cell", "guests"), "15"),
        (("cell", "more"), 1),
        (("observed", "host", "ksm", "pages_sharing"), True),
        (("observed", "host", "ksm", "pages_sharing"), 1.0),
        (("observed", "host", "ksm", "pages_sharing"), -1),
        (("observed", "host", "ksm", "pages_sharing"), 1 << 64),
        (("observed", "host", "ksm", "more"), 1),
        (("observed", "host", "meminfo"), {}),
        (("provenance", "page_size_bytes"), None),
        (("provenance", "start"), None),
    ],
)
def test_what_is_none_is_refused(off: dict[str, Any], place: tuple[str, ...], value: object) -> None:
    node = off
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    with pytest.raises(ValidationError):
        SnapshotRecord.model_validate_json(json.dumps(off))


def test_the_addresses_of_a_guest_are_no_counter(off: dict[str, Any]) -> None:
    guest = next(iter(off["observed"]["guests"].values()))
    table = {"55d0c5a00000-7ffd0b3ff000 ---p 00000000 00": 0, "Rss_bytes": 8192, "Pss_bytes": 4096}
    read = Guest.model_validate_json(json.dumps({**guest, "smaps_rollup": table}))
    assert read.smaps_rollup == {"Rss_bytes": 8192, "Pss_bytes": 4096}


def test_a_plans_cells_stay_within_its_run() -> None:
    content = published("plan")
    content["cells"][0]["cell_id"] = "../another"
    with pytest.raises(ValidationError, match=r"cell_id is '\.\./another': allowed is"):
        PlanRecord.model_validate_json(json.dumps(content))


def test_the_schema_of_every_kind_says_what_the_models_check() -> None:
    schemas = json_schemas()
    assert schemas.keys() == RECORDS.keys()
    off = schemas["off"]["$defs"]
    assert schemas["off"]["additionalProperties"] is off["Cell"]["additionalProperties"] is False
    assert off["Host"]["properties"]["vmstat"]["required"] == ["pswpin", "pswpout"]
    assert "from" in off["Start"]["required"]
