"""Every stored file is one of the models, and what is none is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from analysis.plan.design import REFERENCE, RESULTS
from analysis.records import migration
from analysis.records.models import RECORDS, Guest, PlanRecord, SnapshotRecord

MIGRATIONS = {
    "plan": migration.migrate_plan,
    "census": migration.migrate_census,
    "capacity_step": migration.migrate_capacity,
    "divergence": migration.migrate_capacity,
    "forecast": migration.migrate_forecast,
}
PUBLISHED = sorted((RESULTS / REFERENCE).rglob("*.json"))


def migrated(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    result: dict[str, Any] = MIGRATIONS.get(content["kind"], migration.migrate_record)(content)
    return result


def test_every_published_record_is_one_of_the_models() -> None:
    kinds = set()
    for path in PUBLISHED:
        content = migrated(path)
        RECORDS[content["kind"]].model_validate_json(json.dumps(content))
        kinds.add(content["kind"])
    assert len(PUBLISHED) > 200
    assert kinds == RECORDS.keys() - {"after"}


@pytest.fixture
def off() -> dict[str, Any]:
    return migrated(next(path for path in PUBLISHED if path.name == "off.json"))


def test_a_records_attributes_are_its_json(off: dict[str, Any]) -> None:
    record = SnapshotRecord.model_validate_json(json.dumps(off))
    assert record.observed.host.ksm.full_scans == off["observed"]["host"]["ksm"]["full_scans"]
    assert record.provenance.start.origin == off["provenance"]["start"]["from"] == "boot"
    assert record.cell.guests == len(record.observed.guests)


@pytest.mark.parametrize(
    ("place", "value"),
    [
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
    content = migrated(next(path for path in PUBLISHED if path.name == "plan.json"))
    content["cells"][0]["cell_id"] = "../another"
    with pytest.raises(ValidationError, match="cannot be the name of a directory"):
        PlanRecord.model_validate_json(json.dumps(content))
