"""The experiment matrix: variables in, cells out, and the plan file that ties a run to them.

Used on the controller by the Ansible action ``plan`` and by the analysis. Standard library only.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.errors import UserError
from analysis.mix import MIX, MixError, mix_text, parse_mix

SCHEMA_VERSION = 1
MIB = 1 << 20

WORKLOADS = {1: "idle", 2: "constant_fill", 3: "random_fill"}
# Those that fill memory, as their files in roles/workload say
FILLS = frozenset({"constant_fill", "random_fill"})
ACCELERATORS = ("auto", "kvm", "tcg")
ORDERS = ("off-on", "on-off", "abba")
THP_SETTINGS = ("keep", "always", "madvise", "never")
RECORD_KINDS = ("off", "merge", "on", "verify")
PLAN_FILE = "plan.json"
REFERENCE = "reference"
PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "results"

# How guests are handled, not what is measured: a run may go on with another value.
HANDLING = frozenset({"boot_wave", "keep_guests", "census", "guest_ssh_port_base"})

# What plans lack that were made before these variables, with what was measured then
_SINCE = {"mix": "", "census": False, "guest_ssh_port_base": 22200}

# Takes a variable's name and its value as Ansible has it; raises DesignError.
Caster = Callable[[str, Any], Any]

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_KNOB = re.compile(r"[a-z][a-z0-9_]*")
_SHA512 = re.compile(r"(sha512:)?[0-9a-f]{128}")


class DesignError(UserError):
    """A variable, a plan or a run id that cannot be used."""


@dataclass(frozen=True)
class Cell:
    """One focus, or one mix (focus 0), of one repetition on one hypervisor."""

    hypervisor: str
    cell_id: str
    focus: int
    workload: str
    guests: int
    guest_memory_bytes: int
    repetition: int
    order: str


@dataclass(frozen=True)
class Design:
    """Every variable of an experiment, checked and typed. ``mix`` is "" or in the order of the alphabet."""

    focus: tuple[int, ...]
    mix: str
    guests: int
    guest_memory_mib: int
    guest_reserve_mib: int
    accelerator: str
    boot_wave: int
    repetitions: int
    orders: str
    keep_guests: bool
    census: bool
    guest_ssh_port_base: int
    image_source: str
    image_checksum: str
    ksm_knobs: dict[str, int | str]
    thp_enabled: str
    converge_min_full_scans: int
    converge_window_scans: int
    converge_threshold_percent: float
    converge_timeout_seconds: float
    sample_interval_seconds: float

    @classmethod
    def from_variables(cls, variables: Mapping[str, Any]) -> "Design":
        """Check and cast the variables as Ansible hands them over (strings when they come from -e).

        run_id may be among them: it names the run and is no part of the design.

        Raises DesignError with one sentence for each variable that is missing, unknown or wrong.
        """
        wrong = [f"{name} is not set: it needs a value." for name in _CASTS if variables.get(name) is None]
        values: dict[str, Any] = {}
        for name, value in variables.items():
            if name == "run_id" or value is None:
                continue
            try:
                values[name] = check_variable(name, value)
            except DesignError as error:
                wrong.append(str(error))
        wrong.extend(_contradictions(values))
        if wrong:
            raise DesignError(" ".join(wrong))
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The variables as they stand in plan.json."""
        return {**asdict(self), "focus": list(self.focus)}

    @property
    def requested(self) -> dict[str, Any]:
        """What a record says under ``requested``."""
        return {
            "ksm_knobs": self.ksm_knobs,
            "thp_enabled": self.thp_enabled,
            "accelerator": self.accelerator,
            "guest_reserve_bytes": self.guest_reserve_mib * MIB,
            "convergence": {
                "min_full_scans": self.converge_min_full_scans,
                "window_scans": self.converge_window_scans,
                "threshold_percent": self.converge_threshold_percent,
                "timeout_seconds": self.converge_timeout_seconds,
            },
            "sample_interval_seconds": self.sample_interval_seconds,
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of what is measured, the handling of guests left out."""
        return canonical_digest({n: value for n, value in self.to_json().items() if n not in HANDLING})

    def cells(self, hypervisors: Iterable[str]) -> list[Cell]:
        """Every cell, by repetition, then focus: guests are filled in place, so idle comes first.

        A mix is measured in place of the foci.
        """
        hosts = list(hypervisors)
        loads = [(focus, WORKLOADS[focus], f"focus{focus}-{WORKLOADS[focus]}") for focus in self.focus]
        if self.mix:
            loads = [(MIX, self.mix, "mix-" + self.mix.replace("=", "").replace(",", "-"))]
        return [
            Cell(
                hypervisor=hypervisor,
                cell_id=f"{name}-guests{self.guests}-rep{repetition}",
                focus=focus,
                workload=workload,
                guests=self.guests,
                guest_memory_bytes=self.guest_memory_mib * MIB,
                repetition=repetition,
                order=self._order(repetition),
            )
            for repetition in range(1, self.repetitions + 1)
            for focus, workload, name in loads
            for hypervisor in hosts
        ]

    def _order(self, repetition: int) -> str:
        if self.orders == "abba":
            return "off-on" if repetition % 2 else "on-off"
        return self.orders


@dataclass(frozen=True)
class Plan:
    """One run: its design and the cells that it owes."""

    run_id: str
    created_at: str
    design: dict[str, Any]
    design_digest: str
    cells: tuple[Cell, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "plan",
            "run_id": self.run_id,
            "created_at": self.created_at,
            "design": self.design,
            "design_digest": self.design_digest,
            "cells": [asdict(cell) for cell in self.cells],
        }


def check_variable(name: str, value: object) -> Any:
    """One variable, checked and typed as for from_variables. Raises DesignError."""
    if name not in _CASTS:
        raise DesignError(f"{name} is not a variable of the experiment: allowed are {', '.join(_CASTS)}.")
    return _CASTS[name](name, value)


def new_run_id(now: datetime | None = None) -> str:
    """A run id from the UTC time, to the second."""
    return (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")


def check_run_id(run_id: str) -> str:
    """Return the run id when it can name a directory under results/."""
    if run_id == REFERENCE or not _RUN_ID.fullmatch(run_id):
        raise DesignError(
            f"run_id is {_shown(run_id)}: allowed are 1 to 64 letters, digits, dots, underscores and "
            f"hyphens, a letter or digit first, and not {REFERENCE!r}."
        )
    return run_id


def make_plan(design: Design, hypervisors: Sequence[str], run_id: str) -> Plan:
    """The plan of a run on these hypervisors.

    Raises DesignError when there is no hypervisor, or one whose name cannot be a directory.
    """
    if not hypervisors:
        raise DesignError("hypervisors is empty: the inventory group hypervisors needs at least one host.")
    for name in hypervisors:
        if not _NAME.fullmatch(name):
            raise DesignError(
                f"hypervisors has the host {_shown(name)}: allowed are letters, digits, dots, underscores "
                "and hyphens."
            )
    return Plan(
        run_id=check_run_id(run_id),
        created_at=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        design={**design.to_json(), "run_id": run_id},
        design_digest=design.digest,
        cells=tuple(design.cells(hypervisors)),
    )


def read_plan(run_directory: Path) -> Plan:
    """Read plan.json of a run. Raises DesignError when it is absent or is not a plan of this version."""
    path = run_directory / PLAN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DesignError(f"{path} is missing: {run_directory} is not a run.") from None
    except (OSError, ValueError) as error:
        raise DesignError(f"{path} cannot be read: {error}.") from None
    try:
        if content["kind"] != "plan" or content["schema_version"] != SCHEMA_VERSION:
            raise DesignError(f"{path} is not a plan of schema version {SCHEMA_VERSION}.")
        return Plan(
            run_id=content["run_id"],
            created_at=content["created_at"],
            design={**_SINCE, **content["design"]},
            design_digest=content["design_digest"],
            cells=tuple(Cell(**cell) for cell in content["cells"]),
        )
    except (KeyError, TypeError) as error:
        raise DesignError(f"{path} is not a plan: {error}.") from None


def open_run(results: Path, plan: Plan, *, write: bool = True) -> Plan:
    """Start the run of a plan under results, or go on with the one that is there.

    Writes plan.json (0600, directories 0700) only when there is none and ``write`` is true.
    Raises DesignError when the run exists and its design or its hypervisors differ, saying in what.
    """
    run_directory = results / plan.run_id
    path = run_directory / PLAN_FILE
    if path.exists():
        former = read_plan(run_directory)
        differences = design_differences(former, plan)
        if differences:
            raise DesignError(
                f"run_id {plan.run_id} exists with another design ({'; '.join(differences)}): "
                "give the same values to go on with it, or another run_id."
            )
        return former
    if write:
        make_private_directory(run_directory)
        write_private(path, json.dumps(plan.to_json(), indent=2, sort_keys=True) + "\n")
    return plan


def design_differences(former: Plan, new: Plan) -> list[str]:
    """What the new plan would measure otherwise, as "name: former value, now new value"."""
    differences = [
        f"{name}: {json.dumps(former.design.get(name))}, now {json.dumps(value)}"
        for name, value in new.design.items()
        if name not in HANDLING and former.design.get(name) != value
    ]
    hosts = [sorted({cell.hypervisor for cell in plan.cells}) for plan in (former, new)]
    if hosts[0] != hosts[1]:
        differences.append(f"hypervisors: {', '.join(hosts[0])}, now {', '.join(hosts[1])}")
    return differences


def cell_directory(run_directory: Path, cell: Cell) -> Path:
    """Where the records of a cell are."""
    return run_directory / cell.hypervisor / cell.cell_id


def is_complete(directory: Path) -> bool:
    """Whether a cell's directory has all of its records and no failure."""
    return (
        all((directory / f"{kind}.json").is_file() for kind in RECORD_KINDS)
        and not (directory / "failed.json").exists()
    )


def pending_cells(run_directory: Path) -> list[Cell]:
    """The planned cells of a run that are not complete, in the order of the plan."""
    return [
        cell
        for cell in read_plan(run_directory).cells
        if not is_complete(cell_directory(run_directory, cell))
    ]


def set_aside_attempt(directory: Path) -> Path | None:
    """Move what an unfinished attempt at a cell left to ``<cell>.attempt<n>``: nothing is overwritten.

    Returns the new place, or None when there was nothing.
    """
    if not directory.is_dir() or not any(directory.iterdir()):
        return None
    number = 1
    while (place := directory.with_name(f"{directory.name}.attempt{number}")).exists():
        number += 1
    return directory.rename(place)


def canonical_digest(content: Any) -> str:
    """SHA-256 of the canonical JSON of a content."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it, that only their owner enters."""
    # parents=True would give the parents the default mode.
    for directory in (*reversed(path.parents), path):
        if not directory.exists():
            directory.mkdir(mode=0o700)


def _shown(value: object) -> str:
    return repr(str(value)) if isinstance(value, str) else str(value)


def _refuse(name: str, value: object, allowed: str) -> DesignError:
    return DesignError(f"{name} is {_shown(value)}: allowed is {allowed}.")


def whole(low: int, high: int) -> Caster:
    """A check of a whole number; takes the variable's name and value."""
    def cast(name: str, value: Any) -> int:
        allowed = f"a whole number from {low} to {high}"
        text = str(value).strip()
        if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]+", text) or not low <= int(text) <= high:
            raise _refuse(name, value, allowed)
        return int(text)

    return cast


def number(low: float, high: float) -> Caster:
    """A check of a number."""
    def cast(name: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise _refuse(name, value, f"a number from {low:g} to {high:g}")
        return number

    return cast


def choice(allowed: tuple[str, ...]) -> Caster:
    """A check of one word of several."""
    def cast(name: str, value: Any) -> str:
        if str(value) not in allowed:
            raise _refuse(name, value, " or ".join(allowed))
        return str(value)

    return cast


def boolean(name: str, value: Any) -> bool:
    """Check a truth value."""
    text = str(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise _refuse(name, value, "true or false")
    return text in _TRUE


def _focus(name: str, value: Any) -> tuple[int, ...]:
    parts = list(value) if isinstance(value, list | tuple) else str(value).split(",")
    texts = [str(part).strip() for part in parts]
    if texts == ["all"]:
        return tuple(WORKLOADS)
    known = [str(focus) for focus in WORKLOADS]
    if not texts or any(text not in known for text in texts) or len(set(texts)) != len(texts):
        raise _refuse(name, value, "1, 2, 3, some of them once each with commas between (1,3), or all")
    return tuple(sorted(int(text) for text in texts))


def _mix(name: str, value: Any) -> str:
    if str(value).strip() == "":
        return ""
    try:
        mix = parse_mix(str(value), name)
    except MixError as error:
        raise DesignError(str(error)) from None
    if not set(mix) <= set(WORKLOADS.values()):
        raise _refuse(name, value, f"a mix of {', '.join(sorted(WORKLOADS.values()))}")
    if len(mix) == 1:
        raise _refuse(name, value, "a mix of two workloads or more; one alone is a focus")
    return mix_text(mix)


def _text(name: str, value: Any) -> str:
    text = str(value).strip()
    if not isinstance(value, str) or not text:
        raise _refuse(name, value, "build, or the path or http(s) URL of a qcow2 image")
    return text


def _checksum(name: str, value: Any) -> str:
    text = str(value).strip().lower()
    if text and not _SHA512.fullmatch(text):
        raise _refuse(name, value, "the image's SHA-512 as 128 hexadecimal digits, nothing for build")
    return text.removeprefix("sha512:")


def _knobs(name: str, value: Any) -> dict[str, int | str]:
    allowed = (
        "a mapping of files in /sys/kernel/mm/ksm to whole numbers or words, such as "
        '{"pages_to_scan": 20000}, without run, which the protocol sets'
    )
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise _refuse(name, value, allowed) from None
    if not isinstance(value, Mapping):
        raise _refuse(name, value, allowed)
    knobs: dict[str, int | str] = {}
    for knob, setting in value.items():
        text = str(setting).strip()
        if isinstance(setting, bool) or not re.fullmatch(r"[0-9]+|[a-z][a-z0-9-]*", text):
            raise _refuse(f"{name}.{knob}", setting, "a whole number from 0, or a word such as scan-time")
        if knob == "run" or not _KNOB.fullmatch(str(knob)):
            raise _refuse(f"{name}.{knob}", setting, allowed)
        knobs[str(knob)] = int(text) if text.isdigit() else text
    return dict(sorted(knobs.items()))


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    wrong = []
    memory, reserve = values.get("guest_memory_mib"), values.get("guest_reserve_mib")
    if memory is not None and reserve is not None and reserve >= memory:
        wrong.append(
            f"guest_reserve_mib is {reserve}: allowed is less than the guest_memory_mib of {memory}."
        )
    mix, guests = values.get("mix"), values.get("guests")
    if mix and guests is not None and (mixed := sum(parse_mix(mix, "mix").values())) != guests:
        wrong.append(f"mix is {mix!r}, which are {mixed} guests: allowed is as many as guests, {guests}.")
    source, checksum = values.get("image_source"), values.get("image_checksum")
    if source == "build" and checksum:
        wrong.append("image_checksum is set: allowed is nothing when image_source is build.")
    if source not in (None, "build") and checksum == "":
        wrong.append("image_checksum is '': needed is the SHA-512 of the image that image_source names.")
    return wrong


_CASTS: dict[str, Caster] = {
    "focus": _focus,
    "mix": _mix,
    "guests": whole(1, 999),
    "guest_memory_mib": whole(128, MIB),
    "guest_reserve_mib": whole(1, MIB),
    "accelerator": choice(ACCELERATORS),
    "boot_wave": whole(0, 999),
    "repetitions": whole(1, 1000),
    "orders": choice(ORDERS),
    "keep_guests": boolean,
    "census": boolean,
    "guest_ssh_port_base": whole(1024, 64000),
    "image_source": _text,
    "image_checksum": _checksum,
    "ksm_knobs": _knobs,
    "thp_enabled": choice(THP_SETTINGS),
    # A page must keep its checksum between two scans, so fewer than three prove nothing.
    "converge_min_full_scans": whole(3, 10_000),
    "converge_window_scans": whole(1, 10_000),
    "converge_threshold_percent": number(0.001, 100),
    "converge_timeout_seconds": number(1, 604_800),
    "sample_interval_seconds": number(0.1, 10),
}
VARIABLES = tuple(field.name for field in fields(Design))
