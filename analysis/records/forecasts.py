"""Stored forecasts: read, and the digests that tell whether one or what it rests on was changed since."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import UserError
from analysis.plan.design import canonical_digest
from analysis.records.loading import find_run
from analysis.records.models import ForecastRecord
from analysis.records.reading import RecordError, parse_record

FORECASTS = "forecasts"


@dataclass(frozen=True)
class Forecast:
    """A forecast, and where it lies. ``stored``: as it is in the file, which its digests are of."""

    path: Path
    stored: dict[str, Any]
    record: ForecastRecord


def load_forecasts(results: Path, files: Sequence[Path] | None = None) -> tuple[list[Forecast], list[str]]:
    """The forecasts under ``results``/forecasts, or these files; and a sentence for each that is unusable."""
    found, problems = [], []
    for path in files or sorted((results / FORECASTS).glob("*.json")):
        try:
            found.append(_read(path))
        except RecordError as error:
            problems.append(f"{path.parent}: {str(error).rstrip('.')}")
    return found, problems


def forecast_problem(forecast: Forecast, results: Path) -> str:
    """Why a whole forecast cannot be joined, "" when it can: it or its calibration was changed since."""
    return alteration(forecast) or _calibration_problem(forecast.record, results)


def alteration(forecast: Forecast) -> str:
    """How a forecast differs from what was written, "" when it does not."""
    stored = forecast.stored
    if stored["digest"] != digest(stored):
        return "it was changed after it was written (its digest differs)"
    if stored["design_digest"] != design_digest(stored):
        return "its predicted cells are not those of its design digest"
    return ""


def design_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the cells that a stored forecast predicts."""
    named = {name: content[name] for name in ("guest_memory_bytes", "policy")}
    return digest(
        [{"workload": one["workload"], "guests": one["guests"], **named} for one in content["predicted"]]
    )


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON of a content, its own digest left out."""
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name != "digest"}
    return canonical_digest(content)


def record_digests(directory: Path, kinds: Iterable[str]) -> dict[str, str]:
    """SHA-256 of these record files of a cell."""
    return {kind: _file_digest(directory / f"{kind}.json") for kind in kinds}


def _read(path: Path) -> Forecast:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path.name} cannot be read: {error.strerror}.") from None
    record = parse_record(raw, ForecastRecord, path.name)
    return Forecast(path, json.loads(raw), record)


def _calibration_problem(record: ForecastRecord, results: Path) -> str:
    runs: dict[str, Path] = {}
    for cell in record.calibration.cells:
        name = f"its calibration cell {cell.cell_id} of run {cell.run_id}"
        try:
            if cell.run_id not in runs:
                runs[cell.run_id] = find_run(results, cell.run_id)
            directory = runs[cell.run_id] / record.hypervisor / cell.cell_id
            found = record_digests(directory, cell.records)
        except (OSError, UserError):
            return f"{name} is no longer there"
        if found != cell.records:
            return f"{name} has other records now (digests differ)"
    for base in record.calibration.bases:
        path = results / base.path
        if not path.is_file():
            return f"its record with no guest {base.path} is no longer there"
        if _file_digest(path) != base.sha256:
            return f"its record with no guest {base.path} has changed (digests differ)"
    return ""


def _file_digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
