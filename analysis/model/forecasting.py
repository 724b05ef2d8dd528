"""A forecast as it is stored: memory of N guests and how many fit, from a calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from analysis.model.calibration import Calibration
from analysis.model.sharing import (
    CENSUS,
    HOST,
    Model,
    fit,
    growing,
    limits,
    naive,
    predict,
)
from analysis.plan.design import MIB, RECORD_KINDS, SCHEMA_VERSION
from analysis.plan.mix import mix_text
from analysis.records.forecasts import (
    design_digest,
    digest,
    record_digests,
)

# So far goes a curve of a load without a limit.
_UNLIMITED = 200


def make_model(found: Calibration) -> Model:
    """The model of a calibration. Raises SharingError."""
    return fit(
        found.samples,
        name=found.model,
        scope=found.scope,
        guest_memory_bytes=found.guest_memory_bytes,
        page_size_bytes=found.page_size_bytes,
        max_page_sharing=found.max_page_sharing,
        bases_bytes=[used for _path, _digest, used in found.bases],
    )


def forecast_content(
    forecast_id: str,
    found: Calibration,
    model: Model,
    *,
    mixes: Sequence[Mapping[str, int]],
    loads: Sequence[Mapping[str, int]],
    capacity_bytes: float,
    now: datetime,
) -> dict[str, Any]:
    """The forecast as it is stored, see :class:`analysis.records.models.ForecastRecord`.

    Args:
        forecast_id: its name.
        found: what it rests on.
        model: fitted to that.
        mixes: what is predicted, guests by workload.
        loads: shares by workload whose limits and curves are given.
        capacity_bytes: what the guests have to fit in.
        now: the moment of writing, UTC.
    """
    predicted = [_predicted(model, mix) for mix in mixes]
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "forecast",
        "forecast_id": forecast_id,
        "created_at": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "scope": model.scope,
        "model": model.name,
        "policy": found.policy,
        "hypervisor": found.hypervisor,
        "guest_memory_bytes": model.guest_memory_bytes,
        "capacity_bytes": capacity_bytes,
        "calibration": {
            "cells": [
                {
                    "run_id": run_id,
                    "cell_id": cell.cell.cell_id,
                    "workload": cell.cell.workload,
                    "guests": cell.cell.guests,
                    "records": record_digests(
                        cell.directory,
                        (*RECORD_KINDS, "census") if cell.directory in found.counted else RECORD_KINDS,
                    ),
                }
                for run_id, cell in zip(found.run_ids, found.cells, strict=True)
            ],
            "bases": [{"path": path, "sha256": sha256} for path, sha256, _used in found.bases],
            "guest_memory_bytes": found.guest_memory_bytes,
            "conditions": {**found.conditions, "guest_memory_bytes": str(model.guest_memory_bytes)},
            "left_out": list(found.left_out),
        },
        "base_bytes": model.base_bytes,
        "others_bytes": found.others_bytes if model.scope == HOST else None,
        "withheld_bytes": found.withheld_bytes if model.scope == HOST else None,
        "predicted": predicted,
        "loads": [_load(model, load, capacity_bytes) for load in loads],
        "guest_breakdown": {name: asdict(model.breakdown(name)) for name in model.workloads},
        "assumptions": [*assumptions(found, model), *_of_another_size(found, model)],
    }
    content["design_digest"] = design_digest(content)
    content["digest"] = digest(content)
    return content


def assumptions(found: Calibration, model: Model) -> list[str]:
    """What the forecast takes for granted, as sentences."""
    saving = (
        f"Gross saving is N x I + D x (N - ceil(N / {model.max_page_sharing})), so saved/VM = "
        "I + D (N - 1)/N below that cap: what guests share, all of them share."
    )
    if model.name == CENSUS:
        saving = (
            "Gross saving is that of a perfect KSM by the page censuses of the largest N, times what KSM "
            "reached: up to that N exact; beyond it a content is in each guest with the same chance: some "
            "in all, some in one alone, a Beta distribution between."
        )
    stated = [
        "More guests are of the measured kind: same image, memory, workload, knobs, huge pages and host.",
        "Memory off is the guests' own, g x N, and base + q x N beside it.",
        saving,
        "KSM has converged; until then the host needs up to the figure without KSM.",
        *_intervals(model),
        "In a mix the contents that guests share are nested: of two workloads the smaller pool of them is "
        "common to the guests of both. Sharing nothing across workloads is given beside it.",
        "Safe: no page is shared, every page of guest memory is in use, and QEMU's part is the largest seen.",
        "Admission: one guest is started at a time, and nothing of it is merged before it holds all that it "
        "will; those before it are merged and KSM has converged.",
        "Nothing is swapped and nothing is kept free: for a reserve give a smaller capacity.",
    ]
    stated.append(
        "Used is MemTotal - MemAvailable less the free pages on per-CPU lists, which it leaves out, "
        f"with {found.others_bytes / MIB:.0f} MiB of other programs and {found.withheld_bytes / MIB:.0f} of "
        "the kernel's reserve and of cache that MemAvailable leaves out, as they were on average meanwhile."
        if model.scope == HOST
        else "Used in the envelope are the guests' anonymous memory and page tables, and KSM's own memory."
    )
    return stated


def _of_another_size(found: Calibration, model: Model) -> list[str]:
    """What is taken for granted where the guests are of another size than those measured."""
    if found.guest_memory_bytes == model.guest_memory_bytes:
        return []
    return [
        f"Guests of {model.guest_memory_bytes / MIB:.0f} MiB are told from guests of "
        f"{found.guest_memory_bytes / MIB:.0f} MiB: their system holds as much, but for its kernel's struct "
        "pages (1/64), a workload fills the rest, and forecasts miss by as much a guest."
    ]


def _intervals(model: Model) -> list[str]:
    """What the intervals rest on."""
    if not model.misses:
        return []
    boots = len({miss.boot for miss in model.misses})
    numbers = ", ".join(map(str, sorted({miss.guests for miss in model.misses})))
    return [
        f"The intervals are how much {len(model.misses)} measured cells (N = {numbers}; boots: {boots}) were "
        "missed by forecasts from smaller N, of other boots where there are (with no smaller N from other "
        "boots alone): so much a guest at any N, by the workload that was missed by more where it is one of "
        "those predicted, with a degree of freedom for each boot."
    ]


def _predicted(model: Model, mix: Mapping[str, int]) -> dict[str, Any]:
    seen = predict(model, mix)
    return {
        "workload": mix_text(mix),
        "guests": seen.guests,
        "mix": dict(mix),
        "used_off": asdict(seen.off),
        "used_on": asdict(seen.on),
        "saved": asdict(seen.saved),
        "gross": asdict(seen.gross),
        "used_on_apart_bytes": seen.on_apart_bytes,
        "safe_bytes": seen.safe_bytes,
        "at_risk_bytes": seen.at_risk_bytes,
        "naive_used_on_bytes": asdict(naive(model, mix)),
    }


def _load(model: Model, shares: Mapping[str, int], capacity_bytes: float) -> dict[str, Any]:
    found = limits(model, shares, capacity_bytes)
    furthest = max(_UNLIMITED if n is None else n for n in (found.off, found.on, found.safe))
    # So that each is seen to go beyond its limit.
    steps = list(growing(model, shares, max(furthest + 2, furthest * 11 // 10, 4)))
    seen = [prediction for prediction, _peak in steps]
    return {
        "workload": mix_text(shares),
        "shares": dict(shares),
        "limits": {name: value for name, value in asdict(found).items() if name != "capacity_bytes"},
        "curve": {
            "guests": [one.guests for one in seen],
            "off_bytes": [one.off.mean_bytes for one in seen],
            "on_bytes": [one.on.mean_bytes for one in seen],
            "on_low_bytes": [one.on.low_bytes for one in seen],
            "on_high_bytes": [one.on.high_bytes for one in seen],
            "admission_bytes": [peak for _prediction, peak in steps],
            "safe_bytes": [one.safe_bytes for one in seen],
        },
    }
