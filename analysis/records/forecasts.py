"""Stored forecasts: read, and the digests that tell whether one or what it rests on was changed since."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import UserError
from analysis.plan.design import canonical_digest
from analysis.records.capacity import breach
from analysis.records.loading import RecordError, find_run
from analysis.records.migration import migrate_forecast

FORECASTS = "forecasts"


@dataclass(frozen=True)
class Forecast:
    """A forecast, and where it lies. ``stored``: as it is in the file, which its digests are of."""

    path: Path
    stored: dict[str, Any]
    content: dict[str, Any]


def load_forecasts(results: Path, files: Sequence[Path] | None = None) -> tuple[list[Forecast], list[str]]:
    """The forecasts under ``results``/forecasts, or these files; and a sentence for each that is unusable."""
    found, problems = [], []
    for path in files or sorted((results / FORECASTS).glob("*.json")):
        try:
            found.append(_read(path))
        except RecordError as error:
            problems.append(str(error).rstrip("."))
    return found, problems


def forecast_problem(forecast: Forecast, results: Path) -> str:
    """Why a whole forecast cannot be joined, "" when it can: it or its calibration was changed since."""
    stored = forecast.stored
    if stored["digest"] != digest(stored):
        return "it was changed after it was written (its digest differs)"
    if stored["design_digest"] != design_digest(stored):
        return "its predicted cells are not those of its design digest"
    return _calibration_problem(stored, results)


def design_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the cells that a stored forecast predicts; those of version 1 name no policy."""
    named = {name: content[name] for name in ("guest_memory_bytes", "policy") if name in content}
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
    return {
        kind: "sha256:" + hashlib.sha256((directory / f"{kind}.json").read_bytes()).hexdigest()
        for kind in kinds
    }


def _read(path: Path) -> Forecast:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from None
    content = migrate_forecast(stored)
    found = breach(content, "forecast")
    if found:
        raise RecordError(f"{path} is not a forecast, at {found}.")
    return Forecast(path, stored, content)


def _calibration_problem(content: Mapping[str, Any], results: Path) -> str:
    for cell in content["calibration"]["cells"]:
        name = f"its calibration cell {cell['cell_id']} of run {cell['run_id']}"
        try:
            directory = find_run(results, cell["run_id"]) / content["hypervisor"] / cell["cell_id"]
            found = record_digests(directory, cell["records"])
        except (OSError, UserError):
            return f"{name} is no longer there"
        if found != cell["records"]:
            return f"{name} has other records now (digests differ)"
    for base in content["calibration"]["bases"]:
        path = results / base["path"]
        if not path.is_file():
            return f"its record with no guest {base['path']} is no longer there"
        if "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() != base["sha256"]:
            return f"its record with no guest {base['path']} has changed (digests differ)"
    return ""
