"""What merging costs: the benchmark's figures are of its record, and it refuses what is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plugin_files import ROOT, load

mechanism = load("benchmarks/mechanism.py")


def record(copies: list[float], merges: list[float], huge_part: float = 1.0) -> dict[str, Any]:
    """Two pages copied and one merged in so many seconds, in each repetition."""
    costs = [
        {mechanism.COPY: (copy, 2), "merge": (merge, 1)} for copy, merge in zip(copies, merges, strict=True)
    ]
    kinds = {"small": 0.0, "huge": huge_part}
    repetitions = {kind: [{"huge_part": part, "costs": one} for one in costs] for kind, part in kinds.items()}
    about = {"schema_version": 1, "kind": "mechanism", "machine": "a machine", "size_bytes": 1 << 20}
    return {**about, "repetitions": repetitions}


def test_costs_are_of_a_page_and_in_copies_of_the_same_repetition() -> None:
    # 1 and 2 us a copy, 10 and 40 us a merge: 10 and 20 copies; by hand, t(1) = 12.706
    said = mechanism.shown(record([2e-6, 4e-6], [10e-6, 40e-6]))
    line = next(line for line in said.splitlines() if line.startswith("merge"))
    assert line.split()[-6:] == ["25.000", "±", "190.593", "15.0", "±", "63.5"]
    assert "!" not in said


def test_one_repetition_has_no_interval() -> None:
    assert "±" not in mechanism.shown(record([2e-6], [10e-6])).partition("\n")[2]


def test_memory_that_was_not_in_huge_pages_is_told() -> None:
    said = mechanism.shown(record([2e-6], [10e-6], huge_part=0.5))
    assert said.splitlines()[-1].startswith("!")


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "tenants", "schema_version": 1}'])
def test_what_is_no_record_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    program = [sys.executable, ROOT / "benchmarks/mechanism.py", "show", path]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    said = f"{path} is no record of this benchmark: name a file that measure wrote"
    assert done.stderr == f"mechanism: {said}\n"


def test_a_record_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record([2e-6], [10e-6])))
    program = [sys.executable, ROOT / "benchmarks/mechanism.py", "measure", path]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"mechanism: {path} exists: name another file, or remove it\n"
