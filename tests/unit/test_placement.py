"""What machines of several hosts have in common by their sketches, worked out by hand."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from analysis.measure.placement import Sketch, count, moves
from analysis.records.placement import PlacementRecord


def sketch(hypervisor: str, pid: int, *hashes: int) -> Sketch:
    return Sketch(hypervisor, pid, np.array(sorted(hashes), np.uint64))


SKETCHES = [
    sketch("a", 1, *range(100), 500),
    sketch("a", 2, 500, 501),
    sketch("b", 3, *range(90)),
    sketch("b", 4, *range(80, 95), 501),
]


def record(**changes: Any) -> PlacementRecord:
    content = {
        "schema_version": 2,
        "kind": "placement",
        "run_id": "first",
        "recorded_at": "2026-11-23T19:00:00.123456Z",
        "one_in": 256,
        "hypervisors": ["a", "b"],
        "machines": count(SKETCHES),
        **changes,
    }
    return PlacementRecord.model_validate_json(json.dumps(content))


def test_contents_of_another_machine_of_each_host_are_counted_once() -> None:
    assert [(one["pid"], one["contents"], one["shared"]) for one in count(SKETCHES)] == [
        (1, 101, [1, 95]),  # 500 of 2; 0 to 94 of 3, 4 or both
        (2, 2, [1, 1]),
        (3, 90, [90, 10]),  # 80 to 89 of 4
        (4, 16, [16, 10]),
    ]


def test_a_move_is_named_where_its_gain_is_beyond_its_interval() -> None:
    # 95 - 1 of 256 each, against 1.96 sqrt(256 x 255 x 96); 90 - 10 of the third; 16 - 10 is no sure gain.
    first, third = moves(record())
    assert (first.pid, first.hypervisor, first.to, first.here_pages, first.there_pages) == (
        1,
        "a",
        "b",
        256,
        95 * 256,
    )
    assert first.gain_pages == 94 * 256
    assert first.half_width_pages == pytest.approx(1.95996 * np.sqrt(256 * 255 * 96), rel=1e-4)
    assert (third.pid, third.to, third.gain_pages) == (3, "a", 80 * 256)


def test_a_machine_of_no_host_of_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="no host of it"):
        record(hypervisors=["a", "c"])
    with pytest.raises(ValidationError, match="more than it has"):
        record(machines=[{"hypervisor": "a", "pid": 1, "contents": 1, "shared": [0, 2]}])
