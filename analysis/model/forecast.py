"""`python -m analysis forecast`: memory of N guests and how many fit, from what has been measured.

With --out the forecast is written before the run that it predicts; `report` joins the two afterwards.
"""

import hashlib
import json
import math
import re
from argparse import Namespace
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.errors import UserError
from analysis.measure.efficiency import cell_census
from analysis.measure.page_contents import Census
from analysis.measure.statistics import OFF_ON, pooling_conflicts
from analysis.measure.table import PROVENANCE, tidy
from analysis.model.capacity import base_steps, conditions, host_used_bytes, in_use_bytes, load_capacity, text
from analysis.model.sharing import (
    CENSUS,
    ENVELOPE,
    HOST,
    SHARING,
    Interval,
    Model,
    Sample,
    fit,
    limits,
    naive,
    predict,
    scaled,
)
from analysis.plan.design import MIB, RECORD_KINDS, SCHEMA_VERSION, canonical_digest, write_private
from analysis.plan.mix import mix_text, parse_mix
from analysis.plan.policies import policy_order
from analysis.records.loading import COMPLETE, CellRecords, Run, find_run, find_runs, load_run
from analysis.report import forecast_figures
from analysis.report.figures import save
from analysis.report.summary import named, wrap

FORECASTS = "forecasts"
_CURVE_MOST = 200


class ForecastError(UserError):
    """A forecast that cannot be made or stored."""


@dataclass(frozen=True)
class Calibration:
    """The measured cells of one host under one policy and set of conditions that a forecast rests on.

    ``samples``: one for each workload, number of guests and physical boot, of the host and of the guests
    alone (None: their kernel does not tell). ``bases``: path under results, SHA-256 and use of each record
    with no guest. ``censuses``: by workload, that of its cell with the most guests, and the cell's directory.
    ``left_out``: cells that are not used, with the reason.
    """

    hypervisor: str
    policy: str
    guest_memory_bytes: int
    page_size_bytes: int
    max_page_sharing: int
    memory_total_bytes: int
    conditions: dict[str, str]
    cells: tuple[CellRecords, ...]
    run_ids: tuple[str, ...]
    samples: dict[str, tuple[Sample, ...] | None]
    bases: tuple[tuple[str, str, int], ...]
    censuses: dict[str, tuple[Path, Census]]
    left_out: tuple[str, ...]


def forecast(arguments: Namespace) -> int:
    """Print the forecast asked for, and write it with --out.

    Raises a UserError or OSError with a text for the user.
    """
    numbers = _numbers(arguments.guests)
    mix = None if arguments.mix is None else parse_mix(arguments.mix, "--mix")
    if mix is None and not numbers and not arguments.fit:
        raise ForecastError("nothing is asked: give --guests N, --mix idle=5,random_fill=10, or --fit.")
    if mix is not None and numbers not in ([], [sum(mix.values())]):
        raise ForecastError(
            f"--guests is {arguments.guests} and --mix has {sum(mix.values())} guests: leave --guests out."
        )
    if arguments.out is not None and arguments.out.exists():
        raise ForecastError(f"{arguments.out} exists: a forecast is never overwritten, choose another name.")
    chosen = [find_run(arguments.results, name) for name in arguments.run or ()]
    runs = [load_run(directory) for directory in chosen or find_runs(arguments.results)]
    wanted = {(mix_text(mix), sum(mix.values()))} if mix else {(arguments.workload, n) for n in numbers}
    scope = HOST if arguments.envelope_mib is None else ENVELOPE
    found = calibration(
        runs,
        predicted=wanted,
        asked=mix or ({arguments.workload} if arguments.workload else ()),
        model=arguments.model,
        hypervisor=arguments.hypervisor,
        policy=arguments.policy,
        bases_in=arguments.results,
    )
    model = make_model(found, scope, arguments.model)
    loads = [mix] if mix else [{name: 1} for name in _workloads(arguments.workload, model)]
    mixes = [mix] if mix else [{name: n} for load in loads for name in load for n in numbers]
    capacity = arguments.envelope_mib or arguments.host_memory_mib
    content = forecast_content(
        arguments.out.stem if arguments.out else "unsaved",
        found,
        model,
        mixes=mixes,
        loads=loads,
        capacity_bytes=capacity * MIB if capacity else float(found.memory_total_bytes),
        now=datetime.now(UTC),
    )
    if arguments.figure:
        save(forecast_figures.forecast_figure(content), arguments.figure)
    if arguments.out:
        arguments.out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(arguments.out, json.dumps(content, indent=2, sort_keys=True) + "\n")
    if arguments.json:
        print(json.dumps(content, indent=2, sort_keys=True))
    else:
        print(forecast_text(content, found), end="")
        if arguments.out:
            print(f"\nWritten to {arguments.out}; after the run: `python -m analysis report`.")
    return 0


def calibration(
    runs: Sequence[Run],
    *,
    predicted: Collection[tuple[str | None, int]] = (),
    asked: Collection[str] = (),
    model: str = SHARING,
    hypervisor: str | None = None,
    policy: str | None = None,
    bases_in: Path | None = None,
) -> Calibration:
    """The complete cells of the runs that a forecast may use.

    Args:
        runs: the runs chosen.
        predicted: workload (None: every one) and guests of what is predicted: never read.
        asked: the workloads asked for; of others, those that the model cannot be fitted to are left out.
        model: SHARING or CENSUS.
        hypervisor: this one only; needed when there are several.
        policy: this one only; needed when there are several.
        bases_in: results whose capacity runs may hold the host's use with no guest.

    Raises ForecastError when nothing is left, or cells were measured under different conditions.
    """
    table = tidy(list(runs))
    if hypervisor is not None:
        table = table[table["hypervisor"] == hypervisor]
    if policy is not None:
        measured = sorted(set(table["policy"]), key=policy_order)
        if policy not in measured:
            raise ForecastError(
                f"--policy is {policy!r}: measured, and so allowed, is {', '.join(measured) or 'none'}."
            )
        table = table[table["policy"] == policy]
    stored = {
        (run.plan.run_id, cell.cell.hypervisor, cell.cell.cell_id): cell for run in runs for cell in run.cells
    }
    left_out, used = [], []
    for row in table.to_dict("records"):
        key = (str(row["run_id"]), str(row["hypervisor"]), str(row["cell_id"]))
        reason = _left_out(row, predicted)
        if reason:
            left_out.append(f"run {key[0]}, {key[2]}: {reason.rstrip('.')}")
        else:
            used.append((key, float(row["saved_gross_bytes"])))
    kept = _fitting({key: stored[key] for key, _gross in used}, asked, model)
    left_out += [f"run {key[0]}, {key[2]}: {kept[key]}" for key, _gross in used if kept[key]]
    used = [(key, gross) for key, gross in used if not kept[key]]
    if not used:
        raise ForecastError(
            "there is no complete cell to forecast from"
            + (f" ({left_out[0]})" if left_out else "")
            + ": measure some small numbers of guests first."
        )
    keys = [key for key, _gross in used]
    rows = table[
        [(r["run_id"], r["hypervisor"], r["cell_id"]) in set(keys) for r in table.to_dict("records")]
    ]
    _check_alike(rows)
    cells = [stored[key] for key in keys]
    first = cells[0]
    names = [name for name in rows.columns if name.startswith(PROVENANCE)]
    shared = {name.removeprefix(PROVENANCE): text(rows.iloc[0][name]) for name in names}
    return Calibration(
        hypervisor=first.cell.hypervisor,
        policy=first.cell.policy,
        guest_memory_bytes=first.cell.guest_memory_bytes,
        page_size_bytes=first.page_size_bytes,
        # The kernel's own default (mm/ksm.c), where the file is absent.
        max_page_sharing=int(first.provenance["ksm_knobs"].get("max_page_sharing", 256)),
        memory_total_bytes=int(first.provenance["memory_total_bytes"]),
        conditions=shared,
        cells=tuple(cells),
        run_ids=tuple(key[0] for key in keys),
        samples={
            scope: _samples(cells, [gross for _key, gross in used], scope) for scope in (HOST, ENVELOPE)
        },
        censuses=_censuses(cells) if model == CENSUS else {},
        bases=() if bases_in is None else _bases(bases_in, first.cell.hypervisor, shared),
        left_out=tuple(left_out),
    )


def _left_out(row: Mapping[Hashable, Any], predicted: Collection[tuple[str | None, int]]) -> str:
    """Why a forecast does not use a cell, "" when it may."""
    workload, guests = str(row["workload"]), int(row["guests"])
    if row["status"] != COMPLETE:
        return f"{row['status']}: {row['problem']}"
    problems = (
        ((workload, guests) in predicted or (None, guests) in predicted, "it is what is predicted"),
        ("=" in workload, "it is a mix"),
        (row["arm_order"] != OFF_ON, "KSM was on first, and what it split and freed stays so with KSM off"),
        (math.isnan(row["saved_gross_bytes"]), "its kernel uses zero pages without counting them"),
    )
    return next((reason for wrong, reason in problems if wrong), "")


def _check_alike(rows: pd.DataFrame) -> None:
    """ForecastError where cells differ in more than workload and number of guests."""
    hosts, policies = sorted(set(rows["hypervisor"])), sorted(set(rows["policy"]), key=policy_order)
    if len(hosts) > 1:
        raise ForecastError(
            f"several hosts were measured: choose one of {', '.join(hosts)} with --hypervisor."
        )
    if len(policies) > 1:
        raise ForecastError(
            f"several policies were measured: choose one of {', '.join(policies)} with --policy."
        )
    conflicts = list(pooling_conflicts(rows))
    conflicts += [
        f"{workload} loaded before and after the checkpoint"
        for workload, mine in rows.groupby("workload")
        if mine["loaded"].nunique() > 1
    ]
    if conflicts:
        raise ForecastError(
            f"the cells were measured under different conditions ({'; '.join(conflicts)}): "
            "choose runs that match with --run."
        )


def _fitting(
    cells: Mapping[tuple[str, str, str], CellRecords], asked: Collection[str], model: str
) -> dict[tuple[str, str, str], str]:
    """By cell, why its workload cannot be fitted; "" when it can, was asked for, or none can."""
    numbers: dict[str, set[int]] = {}
    for cell in cells.values():
        numbers.setdefault(cell.cell.workload, set()).add(cell.cell.guests)
    if model == CENSUS:
        fits = set(_censuses(list(cells.values())))
        reason = "its workload has no page census"
    else:
        fits = {workload for workload, seen in numbers.items() if len(seen) > 1}
        reason = "its workload was measured at one number of guests only"
    return {
        key: reason if fits and cell.cell.workload not in {*fits, *asked} else ""
        for key, cell in cells.items()
    }


def make_model(found: Calibration, scope: str, name: str = SHARING) -> Model:
    """The model of a calibration: SHARING, or CENSUS, in which the saving follows the censuses' curves.

    Raises ForecastError or SharingError.
    """
    samples = found.samples[scope]
    if samples is None:
        raise ForecastError(
            "the records lack Pss_Anon of smaps_rollup, so the guests alone cannot be forecast: "
            "use --host-memory-mib in place of --envelope-mib."
        )
    missing = sorted({cell.cell.workload for cell in found.cells} - found.censuses.keys())
    if name == CENSUS and missing:
        raise ForecastError(
            f"no cell of {missing[0]} has a page census: measure one with -e census=true, or use --model "
            "sharing."
        )
    return fit(
        samples,
        scope=scope,
        guest_memory_bytes=found.guest_memory_bytes,
        page_size_bytes=found.page_size_bytes,
        max_page_sharing=found.max_page_sharing,
        bases_bytes=[used for _path, _digest, used in found.bases],
        shapes=(
            {load: census.saved_bytes for load, (_path, census) in found.censuses.items()}
            if name == CENSUS
            else None
        ),
    )


def scope_used_bytes(cell: CellRecords, kind: str, scope: str) -> float | None:
    """What an off or on record uses: of the host, or of the guests' own anonymous memory and page tables.

    None when the guests' part is asked for and the kernel does not tell it.
    """
    arm = cell.observed(kind)
    if scope == HOST:
        return float(in_use_bytes(arm["host"], cell.page_size_bytes))
    guests = arm["guests"].values()
    if any("Pss_Anon_bytes" not in guest["smaps_rollup"] for guest in guests):
        return None
    return float(sum(g["smaps_rollup"]["Pss_Anon_bytes"] + g["page_tables_bytes"] for g in guests))


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
    """The forecast as it is stored, see schema/forecast.schema.json.

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
    counted = {path for path, _census in found.censuses.values()} if model.name == CENSUS else set()
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "forecast",
        "forecast_id": forecast_id,
        "created_at": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "scope": model.scope,
        "model": model.name,
        "policy": found.policy,
        "hypervisor": found.hypervisor,
        "guest_memory_bytes": found.guest_memory_bytes,
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
                        (*RECORD_KINDS, "census") if cell.directory in counted else RECORD_KINDS,
                    ),
                }
                for run_id, cell in zip(found.run_ids, found.cells, strict=True)
            ],
            "bases": [{"path": path, "sha256": sha256} for path, sha256, _used in found.bases],
            "conditions": found.conditions,
        },
        "base_bytes": model.base_bytes,
        "predicted": predicted,
        "loads": [_load(model, load, capacity_bytes) for load in loads],
        "guest_breakdown": {name: asdict(model.breakdown(name)) for name in model.workloads},
        "assumptions": assumptions(model),
    }
    content["design_digest"] = design_digest(content)
    content["digest"] = digest(content)
    return content


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


def assumptions(model: Model) -> list[str]:
    """What the forecast takes for granted, as sentences."""
    saving = (
        "Memory off is base + u x N; gross saving is N x I + D x (N - ceil(N / "
        f"{model.max_page_sharing})), so saved/VM = I + D (N - 1)/N below that cap: what guests share, all "
        "of them share."
    )
    if model.name == CENSUS:
        saving = (
            "Memory off is base + u x N; gross saving is that of a perfect KSM by the page census of the "
            "largest N, times KSM's measured efficiency: exact rarefaction up to it; beyond it each guest "
            "brings as many new contents as the last one did on average."
        )
    stated = [
        "More guests are of the measured kind: same image, memory, workload, knobs, huge pages and host.",
        saving,
        "KSM has converged; until then the host needs up to the figure without KSM.",
        "The intervals take the residuals as independent and alike at every N, one for each boot, the mean "
        "of its repetitions; cells of different N or workloads share a boot, so they may be too narrow.",
        "In a mix the contents that guests share are nested: of two workloads the smaller D is common to the "
        "guests of both. Sharing nothing across workloads is given beside it.",
        "Safe: no page is shared, every page of guest memory is in use, and QEMU's part is the largest seen.",
        "Nothing is swapped and nothing is kept free: for a reserve give a smaller capacity.",
    ]
    stated.append(
        "Used is MemTotal - MemAvailable less the free pages on per-CPU lists, which MemAvailable leaves out."
        if model.scope == HOST
        else "The envelope holds the guests' anonymous memory and page tables; KSM's own is the host's."
    )
    return stated


def forecast_text(content: Mapping[str, Any], found: Calibration) -> str:
    """The forecast as aligned text of at most 110 columns."""
    cells = content["calibration"]["cells"]
    numbers = {
        name: sorted({c["guests"] for c in cells if c["workload"] == name})
        for name in sorted({c["workload"] for c in cells})
    }
    counted = {c["guests"] for c in cells if "census" in c["records"]}
    what = "host memory" if content["scope"] == HOST else "memory of the QEMU processes"
    lines = [
        wrap(
            f"Forecast of the {what} of {content['hypervisor']}, policy {content['policy']}, guests of "
            f"{content['guest_memory_bytes'] / MIB:.0f} MiB, from {len(cells)} measured cells: "
            + "; ".join(f"{name} at N = {', '.join(map(str, ns))}" for name, ns in numbers.items())
            + (f"; {len(found.bases)} measurements with no guest" if found.bases else "")
            + (f"; the saving by the census at N = {', '.join(map(str, sorted(counted)))}" if counted else "")
            + "."
        ),
        "",
    ]
    policy = content["policy"]
    on_width = max(12, len(policy) + 2)
    if content["predicted"]:
        lines += [
            f"{'':<28}{'':>5}{'used, MiB':>12}{'':>{18 + on_width}}{'saved':>8}{'all diverge, MiB':>22}",
            f"{'load':<28}{'N':>5}{'KSM off':>12}{'95 %':>9}{policy:>{on_width}}{'95 %':>9}{'MiB/VM':>8}"
            f"{'need':>12}{'at risk':>10}",
        ]
        for one in content["predicted"]:
            off, on = (Interval(**one[name]) for name in ("used_off", "used_on"))
            per_vm = (off.mean_bytes - on.mean_bytes) / one["guests"] / MIB
            lines.append(
                named(
                    one["workload"],
                    28,
                    f"{one['guests']:>5}{off.mean_bytes / MIB:>12.0f}{_half(off):>9}"
                    f"{on.mean_bytes / MIB:>{on_width}.0f}{_half(on):>9}{per_vm:>8.1f}"
                    f"{one['safe_bytes'] / MIB:>12.0f}{one['at_risk_bytes'] / MIB:>10.0f}",
                )
            )
            if len(one["mix"]) > 1:
                apart = one["used_on_apart_bytes"] / MIB
                lines.append(f"{'':<28}nothing shared across workloads: {apart:.0f} with {policy}")
        lines.append("")
    lines += [
        f"How many fit in {content['capacity_bytes'] / MIB:.0f} MiB:",
        f"{'load':<28}{'KSM off':>9}{'expected':>10}{'95 %':>12}{'safe':>7}{'guests at risk':>16}"
        f"{'memory at risk, MiB':>21}",
    ]
    lines += [_limit_line(load) for load in content["loads"]]
    lines += [
        "",
        "One guest with KSM off, MiB: shared between guests (D), duplicates within (I), unmergeable, outside",
        "guest memory (QEMU, page tables, kernel); with KSM: its own memory, freed beyond its counters",
        f"{'workload':<28}{'D':>9}{'I':>9}{'unmerg.':>9}{'outside':>9}{'KSM':>9}{'beyond':>9}",
    ]
    for name, parts in content["guest_breakdown"].items():
        lines.append(
            f"{name:<28}"
            + "".join(
                f"{_mib(parts[f'{part}_bytes']):>9}"
                for part in ("between", "within", "unmergeable", "outside", "ksm", "uncounted")
            )
        )
    if content["scope"] == HOST:
        lines.append(f"Host with no guest: {content['base_bytes'] / MIB:.0f} MiB.")
    lines += ["", *(wrap(f"- {sentence}") for sentence in content["assumptions"])]
    if any(Interval(**one["used_on"]).half_width_bytes is None for one in content["predicted"]):
        lines.append(
            wrap("No interval where there are too few cells: measure three numbers of guests, or repeat.")
        )
    lines += [wrap(f"! not used: {reason}.") for reason in found.left_out]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _numbers(words: str | None) -> list[int]:
    if words is None:
        return []
    parts = [part.strip() for part in words.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,4}", part) and int(part) for part in parts):
        raise ForecastError(
            f"--guests is {words!r}: allowed is a whole number from 1 to 9999, or some with commas between."
        )
    return sorted({int(part) for part in parts})


def _workloads(wanted: str | None, model: Model) -> list[str]:
    if wanted is None:
        return list(model.workloads)
    if wanted not in model.workloads:
        raise ForecastError(
            f"--workload is {wanted!r}: measured, and so allowed, is {', '.join(model.workloads)}."
        )
    return [wanted]


def _samples(
    cells: Sequence[CellRecords], gross_bytes: Sequence[float], scope: str
) -> tuple[Sample, ...] | None:
    """One sample for each workload, number of guests and boot: the mean of the boot's repetitions."""
    boots: dict[tuple[str, int, str], list[Sample]] = {}
    for cell, gross in zip(cells, gross_bytes, strict=True):
        used = [scope_used_bytes(cell, kind, scope) for kind in ("off", "on")]
        if used[0] is None or used[1] is None:
            return None
        profit = cell.observed("on")["host"]["ksm"]["general_profit"]
        sample = Sample(cell.cell.workload, cell.cell.guests, used[0], used[1], gross, None)
        boots.setdefault((sample.workload, sample.guests, cell.boot_key), []).append(
            # general_profit is gross less the rmap_items (Documentation/admin-guide/mm/ksm.rst).
            sample if profit is None else replace(sample, rmap_bytes=gross - profit)
        )
    return tuple(_mean_sample(repetitions) for repetitions in boots.values())


def _mean_sample(repetitions: Sequence[Sample]) -> Sample:
    rmap = [sample.rmap_bytes for sample in repetitions if sample.rmap_bytes is not None]
    return replace(
        repetitions[0],
        off_bytes=fmean(sample.off_bytes for sample in repetitions),
        on_bytes=fmean(sample.on_bytes for sample in repetitions),
        gross_bytes=fmean(sample.gross_bytes for sample in repetitions),
        rmap_bytes=fmean(rmap) if len(rmap) == len(repetitions) else None,
    )


def _censuses(cells: Sequence[CellRecords]) -> dict[str, tuple[Path, Census]]:
    """By workload, the census of its cell with the most guests, the last of these."""
    found: dict[str, tuple[Path, Census]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.cell.guests, cell.records["on"]["recorded_at"])):
        counted = cell_census(cell)
        if counted is not None:
            found[cell.cell.workload] = (cell.directory, counted)
    return found


def _bases(results: Path, hypervisor: str, wanted: Mapping[str, str]) -> tuple[tuple[str, str, int], ...]:
    """Use with no guest, where it was measured under these conditions."""
    steps = base_steps(load_capacity(results), hypervisor)
    return tuple(
        (str(step.path.relative_to(results)), step.sha256, host_used_bytes(step.content))
        for step in steps
        if all(wanted.get(name) == value for name, value in conditions(step.content).items())
    )


def _predicted(model: Model, mix: Mapping[str, int]) -> dict[str, Any]:
    seen = predict(model, mix)
    return {
        "workload": mix_text(mix),
        "guests": seen.guests,
        "mix": dict(mix),
        "used_off": asdict(seen.off),
        "used_on": asdict(seen.on),
        "gross": asdict(seen.gross),
        "used_on_apart_bytes": seen.on_apart_bytes,
        "safe_bytes": seen.safe_bytes,
        "at_risk_bytes": seen.at_risk_bytes,
        "naive_used_on_bytes": asdict(naive(model, mix)),
    }


def _load(model: Model, shares: Mapping[str, int], capacity_bytes: float) -> dict[str, Any]:
    found = limits(model, shares, capacity_bytes)
    furthest = max(_CURVE_MOST if n is None else n for n in (found.off, found.on, found.safe))
    guests = list(range(1, min(max(furthest + 2, 4), _CURVE_MOST) + 1))
    seen = [predict(model, scaled(shares, n)) for n in guests]
    return {
        "workload": mix_text(shares),
        "shares": dict(shares),
        "limits": {name: value for name, value in asdict(found).items() if name != "capacity_bytes"},
        "curve": {
            "guests": guests,
            "off_bytes": [one.off.mean_bytes for one in seen],
            "on_bytes": [one.on.mean_bytes for one in seen],
            "on_low_bytes": [one.on.low_bytes for one in seen],
            "on_high_bytes": [one.on.high_bytes for one in seen],
            "safe_bytes": [one.safe_bytes for one in seen],
        },
    }


def _limit_line(load: Mapping[str, Any]) -> str:
    limit = load["limits"]

    def count(name: str) -> str:
        return ">9999" if limit[name] is None else str(limit[name])

    interval = load["curve"]["on_low_bytes"][0] is not None
    between = f"{count('on_low')} to {count('on_high')}" if interval else "no interval"
    more = "-" if limit["on"] is None or limit["safe"] is None else str(max(limit["on"] - limit["safe"], 0))
    return named(
        load["workload"],
        28,
        f"{count('off'):>9}{count('on'):>10}{between:>12}{count('safe'):>7}{more:>16}"
        f"{_mib(limit['at_risk_bytes'], 0):>21}",
    )


def _half(interval: Interval) -> str:
    half = interval.half_width_bytes
    return "none" if half is None else f"±{half / MIB:.0f}"


def _mib(value: float | None, decimals: int = 1) -> str:
    return "-" if value is None else f"{value / MIB:.{decimals}f}"
