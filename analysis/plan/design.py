"""The experiment matrix: variables in, cells out, and the plan file that ties a run to them.

Used on the controller by the Ansible action ``plan`` and by the analysis.
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le, MinLen

from analysis.errors import UserError
from analysis.plan import data_files
from analysis.plan.mix import mix_text, parse_mix
from analysis.plan.policies import LAID_OVER, OFF, THP_MODES, Policy, paced, policy_names, read_policy
from analysis.plan.workloads import foci, image_packages, in_order, read_workload, workload_names
from plugins.module_utils import names

SCHEMA_VERSION = 2
MIB = 1 << 20

ACCELERATORS = ("auto", "kvm", "tcg")
CHECKPOINTS = ("keep", "fresh", "measured")
# What becomes of a host on which other processes offer memory to KSM
REFUSE, ALLOW = "refuse", "allow"
MOST_GUESTS = 999
MOST_PROBES = 100
LAST_PORT = 65535
# A seed is drawn from 0 to one below this.
SEEDS = 1 << 32
RECORD_KINDS = ("off", "merge", "on", "verify")
# What happens to guests once they have been measured, each followed by a series (churn_seconds)
CHURN = ("leave", "arrive", "diverge")
PLAN_FILE = "plan.json"
REFERENCE = "reference"
# What stands in results/ beside the runs
RESERVED = (REFERENCE, "capacity", "forecasts")
PROJECT = data_files.PROJECT
RESULTS = PROJECT / "results"

# How guests are handled, not what is measured: a run may go on with another value.
HANDLING = frozenset(
    {
        "boot_wave",
        "keep_guests",
        "census",
        "survey_sample",
        "follow_seconds",
        "churn_seconds",
        "guest_ssh_port_base",
        "checkpoint",
    }
)

# Ways to say what the guests do: what they come to is compared, not the words.
LOADS = frozenset({"focus", "workloads", "mix"})
# Variables that say nothing but what policies, workloads and what is requested of a record say
SAID_ELSEWHERE = frozenset({"ksm_knobs", "thp_enabled", "others", "keep_loaded", "probes"})
# Which of the same cells are measured where
PLACING = frozenset({"pinned"})
# Each cell starts from the same checkpoint, so its place in the order changes nothing in it.
SEED = "cell_order_seed"

# Takes a variable's name and its value as Ansible has it; raises DesignError.
Caster = Callable[[str, Any], Any]

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_KNOB = re.compile(r"[a-z][a-z0-9_]*")
_SHA512 = re.compile(r"(sha512:)?[0-9a-f]{128}")


class DesignError(UserError):
    """A variable, a plan or a run id that cannot be used."""


@dataclass(frozen=True)
class Cell:
    """One workload under one policy, in one number of guests, once, on one hypervisor.

    ``workload``: a workload's name, or a mix. ``boot``: the number of an independent set of booted guests.
    ``repetition``: 1 to repetitions within that boot, each restored from the same checkpoint.
    """

    # Strict where a record holds one (analysis/records/models.py)
    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid"}

    hypervisor: Annotated[str, MinLen(1)]
    cell_id: Annotated[str, MinLen(1)]
    workload: Annotated[str, MinLen(1)]
    policy: Annotated[str, MinLen(1)]
    guests: Annotated[int, Ge(1), Le(1 << 32)]
    guest_memory_bytes: Annotated[int, Ge(1), Le(1 << 64)]
    boot: Annotated[int, Ge(1), Le(1 << 32)]
    repetition: Annotated[int, Ge(1), Le(1 << 32)]


@dataclass(frozen=True)
class Design:
    """Every variable of an experiment, checked and typed.

    ``workloads`` (empty: not given) takes the place of ``focus``, and ``mix`` ("" or in the order of the
    alphabet) of both. Lists are in one order, whatever the order in which they were given.
    ``cell_order_seed``: None where it is to be drawn. ``thp_enabled``: "" for each policy's own mode.
    ``others``: refuse or allow memory that others on the host offer to KSM. ``keep_loaded``: False loads the
    guests of every cell after their restore, whatever their workload's file says. ``probes``: of guests, one
    after another, in each arm; with 0 ``off`` is no policy. ``survey_sample``: of the survey before KSM is
    on, one in so many contents; 0: none is taken. ``pinned``: workloads and policies, each with the one
    host that measures their cells, "random_fill=kvm1". ``churn_seconds``: how long KSM is watched after
    guests left, came back and one diverged; 0: nothing of it happens.
    """

    focus: tuple[int, ...]
    workloads: tuple[str, ...]
    mix: str
    policies: tuple[str, ...]
    pinned: tuple[str, ...]
    guests: tuple[int, ...]
    boots: int
    first_boot: int
    repetitions: int
    checkpoint: str
    cell_order_seed: int | None
    guest_memory_mib: int
    guest_reserve_mib: int
    accelerator: str
    boot_wave: int
    keep_guests: bool
    census: bool
    keep_loaded: bool
    probes: int
    survey_sample: int
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
    follow_seconds: float
    churn_seconds: float
    others: str

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
            except UserError as error:
                wrong.append(str(error))
        wrong.extend(_contradictions(values))
        if wrong:
            raise DesignError(" ".join(wrong))
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The variables as they stand in plan.json; they can be given to from_variables again."""
        seed = "" if self.cell_order_seed is None else self.cell_order_seed
        variables = {**vars(self), SEED: seed}
        return {n: list(value) if isinstance(value, tuple) else value for n, value in variables.items()}

    @property
    def loads(self) -> tuple[str, ...]:
        """What the guests do, one load after another: workloads, or the one mix."""
        if self.mix:
            return (self.mix,)
        return self.workloads or tuple(foci()[focus] for focus in self.focus)

    def policy(self, name: str) -> Policy:
        """A policy with ksm_knobs laid over its own and thp_enabled in place of its mode.

        Knobs that were asked for must exist in the kernel; ``off`` has none, for KSM does not run.
        """
        policy = read_policy(name)
        if self.thp_enabled:
            policy = replace(policy, thp_enabled=self.thp_enabled)
        if policy.run:
            knobs = dict(sorted({**policy.knobs, **self.ksm_knobs}.items()))
            policy = replace(policy, knobs=knobs, needs=tuple(sorted({*policy.needs, *self.ksm_knobs})))
        return policy

    def requested(self, policy_name: str) -> dict[str, Any]:
        """What a record of a cell with this policy says under ``requested``."""
        policy = self.policy(policy_name)
        return {
            "policy": policy.name,
            "ksm_knobs": dict(policy.knobs),
            "thp_enabled": policy.thp_enabled,
            "service": policy.service,
            "accelerator": self.accelerator,
            "guest_reserve_bytes": self.guest_reserve_mib * MIB,
            "convergence": {
                "min_full_scans": self.converge_min_full_scans,
                "window_scans": self.converge_window_scans,
                "threshold_percent": self.converge_threshold_percent,
                "timeout_seconds": self.converge_timeout_seconds,
            },
            "sample_interval_seconds": self.sample_interval_seconds,
            # What every run did before there was a choice is not said.
            **({"others": ALLOW} if self.others == ALLOW else {}),
            **({"probes": self.probes, "rehearsed": True} if self.probes else {}),
        }

    def policies_json(self) -> dict[str, dict[str, Any]]:
        """Each policy by its name, as a plan holds it: what is set on the host, and ``requested``."""
        return {
            name: {**self.policy(name).to_json(), "requested": self.requested(name)} for name in self.policies
        }

    def workloads_json(self) -> dict[str, dict[str, Any]]:
        """Each single workload that occurs, by its name, those within a mix too, as a plan holds it."""
        found = {name: read_workload(name) for name in self._single}
        if not self.keep_loaded:
            found = {name: replace(one, checkpoint_loaded=False) for name, one in found.items()}
        return {name: one.to_json() for name, one in found.items()}

    @property
    def image_packages(self) -> list[str]:
        """What the image is built with for the applications; none where no guest runs one, or it is given."""
        return image_packages(self._single) if self.image_source == "build" else []

    @property
    def _single(self) -> Iterable[str]:
        return parse_mix(self.mix, "mix") if self.mix else self.loads

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of what is measured.

        The handling of guests, the order of the cells and their hosts are left out; policies and workloads
        count with what their files say, keep_loaded with these, and others and probes with what is requested.
        """
        variables = {
            name: value
            for name, value in self.to_json().items()
            if name not in HANDLING | LOADS | SAID_ELSEWHERE | PLACING | {SEED}
        }
        return canonical_digest(
            {
                **variables,
                "loads": self.loads,
                "policies": self.policies_json(),
                "workloads": self.workloads_json(),
            }
        )

    def cells(self, hypervisors: Iterable[str], seed: int) -> list[Cell]:
        """Every cell: by boot, else in an order drawn from the seed, the same for every hypervisor.

        Raises DesignError where a cell is pinned to a host that is not among these, or to two.
        """
        hosts = list(hypervisors)
        places = {pair: self._places(*pair, hosts) for pair in product(self.loads, self.policies)}
        draw = random.Random(seed)  # noqa: S311 -- an order that can be had again, no secret
        cells = []
        for boot in range(self.first_boot, self.first_boot + self.boots):
            of_boot = list(product(self.loads, self.policies, self.guests, range(1, self.repetitions + 1)))
            draw.shuffle(of_boot)
            cells += [
                Cell(
                    hypervisor=hypervisor,
                    cell_id=_cell_id(load, policy, guests, boot, repetition),
                    workload=load,
                    policy=policy,
                    guests=guests,
                    guest_memory_bytes=self.guest_memory_mib * MIB,
                    boot=boot,
                    repetition=repetition,
                )
                for load, policy, guests, repetition in of_boot
                for hypervisor in places[load, policy]
            ]
        return cells

    def _places(self, load: str, policy: str, hosts: Sequence[str]) -> Sequence[str]:
        """The hosts that measure this load under this policy."""
        pins = dict(_pin(text) for text in self.pinned)
        strangers = sorted(set(pins.values()) - set(hosts))
        if strangers:
            raise DesignError(
                f"pinned names {', '.join(strangers)}: allowed are the hosts of the group hypervisors, "
                f"{', '.join(hosts)}."
            )
        asked = sorted({pins[name] for name in (load, policy) if name in pins})
        if len(asked) > 1:
            raise DesignError(
                f"pinned gives {load} under {policy} to {' and to '.join(asked)}: allowed is one host."
            )
        return asked or hosts


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
    if run_id in RESERVED:
        raise DesignError(f"run_id is {shown(run_id)}, which is kept for something else: choose another.")
    return _checked("run_id", run_id, names.RUN)


def check_hypervisors(hypervisors: Iterable[str]) -> None:
    """Raise DesignError where a host's name can't be that of a directory of a run."""
    for name in hypervisors:
        _checked("a host of the group hypervisors", name, names.PLACE)


def _checked(what: str, name: str, rule: names.Rule) -> str:
    try:
        return names.check(what, name, rule)
    except names.NameRefused as error:
        raise DesignError(f"{error}.") from None


def cell_directory(run_directory: Path, cell: Cell) -> Path:
    """Where the records of a cell are."""
    return run_directory / cell.hypervisor / cell.cell_id


def canonical_digest(content: Any) -> str:
    """SHA-256 of the canonical JSON of a content."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _cell_id(load: str, policy: str, guests: int, boot: int, repetition: int) -> str:
    """The name of a cell's directory. Raises DesignError where it is none."""
    # No policy's own name has a dot.
    treatment = f"{load_file_name(load)}-{policy.replace(LAID_OVER, '.').replace('=', '.')}"
    return _checked("a cell", f"{treatment}-guests{guests}-boot{boot}-rep{repetition}", names.PLACE)


def load_file_name(load: str) -> str:
    """A load within the name of a file or directory."""
    return "mix-" + load.replace("=", "").replace(",", "-") if "=" in load else load


def shown(value: object) -> str:
    """A value as it stands in a refusal."""
    return repr(str(value)) if isinstance(value, str) else str(value)


def _refuse(name: str, value: object, allowed: str) -> DesignError:
    return DesignError(f"{name} is {shown(value)}: allowed is {allowed}.")


def whole(low: int, high: int) -> Caster:
    """A check of a whole number; takes the variable's name and value."""

    def cast(name: str, value: Any) -> int:
        allowed = f"a whole number from {low} to {high}"
        text = str(value).strip()
        number = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
        if isinstance(value, bool) or number is None or not low <= number <= high:
            raise _refuse(name, value, allowed)
        return number

    return cast


def number(low: float, high: float) -> Caster:
    """A check of a number."""

    def cast(name: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
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


def existing_workload(name: str, value: Any) -> str:
    """Check the name of one workload, and its file. Raises UserError."""
    text = str(value)
    if text not in workload_names():
        raise DesignError(
            f"{name} names {text!r}, which does not exist: there are {', '.join(workload_names())}."
        )
    return read_workload(text).name


def existing_load(name: str, value: Any) -> str:
    """Check a workload's name, or a mix such as idle=1,random_fill=2, and the files. Raises UserError."""
    return _mix(name, value) if "=" in str(value) else existing_workload(name, value)


def existing_policy(name: str, value: Any) -> str:
    """Check the name of one policy other than off, and its file. Raises UserError."""
    known = [policy for policy in policy_names() if policy != OFF]
    if str(value) == OFF:
        raise DesignError(f"{name} names off, which is measured anyway: allowed are {', '.join(known)}.")
    return _policy(name, value)


def _policy(name: str, value: Any) -> str:
    text = str(value)
    known = [policy for policy in policy_names() if policy != OFF]
    if text.split(LAID_OVER, maxsplit=1)[0] not in policy_names():
        raise DesignError(f"{name} names {text!r}, which does not exist: there are {', '.join(known)}.")
    return read_policy(text).name


def several(cast: Caster, allowed: str) -> Caster:
    """A check of one value, or several with commas between, or a list; each of them once."""

    def cast_all(name: str, value: Any) -> tuple[Any, ...]:
        texts = _parts(value)
        if not texts or not all(texts):
            raise _refuse(name, value, allowed)
        values = [cast(name, text) for text in texts]
        twice = sorted({str(one) for one in values if values.count(one) > 1})
        if twice:
            raise DesignError(f"{name} has {', '.join(twice)} more than once: allowed is {allowed}.")
        return tuple(sorted(values))

    return cast_all


def _parts(value: Any) -> list[str]:
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(part).strip() for part in parts]


def _focus(name: str, value: Any) -> tuple[int, ...]:
    known = list(foci())
    texts = _parts(value)
    if texts == ["all"]:
        return tuple(known)
    numbers = [int(text) for text in texts if text in map(str, known)]
    if not texts or len(set(numbers)) != len(texts):
        some = "some of them once each with commas between (1,3), or all"
        raise _refuse(name, value, f"{', '.join(map(str, known))}, {some}")
    return tuple(sorted(numbers))


def _workloads(name: str, value: Any) -> tuple[str, ...]:
    if value in ("", [], ()):
        return ()
    found: tuple[str, ...] = several(existing_workload, _EACH_ONCE)(name, value)
    return tuple(in_order(found))


def _mix(name: str, value: Any) -> str:
    if str(value).strip() == "":
        return ""
    mix = parse_mix(str(value), name)
    for workload in mix:
        existing_workload(name, workload)
    if len(mix) == 1:
        raise _refuse(name, value, "a mix of two workloads or more; one alone is for workloads")
    return mix_text(mix)


def _pin(text: str) -> tuple[str, str]:
    """A workload or policy, whose own name may have a "=" in it, and its host."""
    what, _equals, host = text.rpartition("=")
    return what.strip(), host.strip()


def _pinned(name: str, value: Any) -> tuple[str, ...]:
    parts = [] if value in ("", [], ()) else _parts(value)
    pins = [_pin(part) for part in parts]
    if not all(what and host for what, host in pins) or len(dict(pins)) < len(pins):
        allowed = "workloads and policies, each once with its host, such as random_fill=kvm1,advisor=kvm2"
        raise _refuse(name, value, allowed)
    return tuple(sorted(f"{what}={host}" for what, host in pins))


def _thp(name: str, value: Any) -> str:
    return "" if str(value).strip() == "" else str(choice(THP_MODES)(name, value))


def _seed(name: str, value: Any) -> int | None:
    return None if str(value).strip() == "" else int(whole(0, SEEDS - 1)(name, value))


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
        if isinstance(setting, bool) or not re.fullmatch(r"[0-9]{1,20}|[a-z][a-z0-9-]*", text):
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
    for policy in values.get("policies", ()):
        both = read_policy(policy).laid_over & values.get("ksm_knobs", {}).keys()
        wrong += [
            f"ksm_knobs has {knob}, which the policy {policy} sets, too: leave one out."
            for knob in sorted(both)
        ]
        wrong += [
            f"ksm_knobs has {knob}, which the daemon of the policy {policy} sets by itself: leave one out."
            for knob in paced(read_policy(policy), values.get("ksm_knobs", {}))
        ]
    probes = values.get("probes")
    if OFF in values.get("policies", ()) and (not probes or values["policies"] == (OFF,)):
        wrong.append(
            "policies names off, which every cell begins with: allowed is off beside other policies and "
            "with probes, for which it shows what order and chance do."
        )
    if probes and values.get("checkpoint") == "measured":
        wrong.append(
            "checkpoint is 'measured', which saves guests after they were measured as they booted: allowed "
            "is no probes, for which idle guests hold memory that the checkpoint would have."
        )
    mix, guests = values.get("mix"), values.get("guests")
    if mix and guests and guests != (mixed := sum(parse_mix(mix, "mix").values()),):
        asked = f"guests, {guests[0]}" if len(guests) == 1 else "guests, which must be one number"
        wrong.append(f"mix is {mix!r}, which are {mixed} guests: allowed is as many as {asked}.")
    base = values.get("guest_ssh_port_base")
    if base is not None and guests and base + guests[-1] > LAST_PORT:
        wrong.append(
            f"guest_ssh_port_base is {base}: allowed is up to {LAST_PORT - guests[-1]}, for each of "
            f"{guests[-1]} guests has a port of its own after it."
        )
    names = values.get("workloads") or [foci()[focus] for focus in values.get("focus", ())]
    known = {*names, *values.get("policies", ())} if not mix else {*values.get("policies", ())}
    wrong += [
        f"pinned names {what}: allowed are the policies and, without a mix, the workloads of this "
        f"experiment, {', '.join(sorted(known))}."
        for what in (_pin(text)[0] for text in values.get("pinned", ()))
        if what not in known
    ]
    idle = not mix and not any(read_workload(name).loads for name in names)
    if values.get("checkpoint") == "measured" and not idle:
        wrong.append(
            "checkpoint is 'measured', which saves guests after they were measured as they booted: allowed "
            "are workloads that load nothing, which the checkpoint would hold, such as focus=1."
        )
    wrong += _no_churn(values, parse_mix(mix, "mix") if mix else names)
    source, checksum = values.get("image_source"), values.get("image_checksum")
    if source == "build" and checksum:
        wrong.append("image_checksum is set: allowed is nothing when image_source is build.")
    if source not in (None, "build") and checksum == "":
        wrong.append("image_checksum is '': needed is the SHA-512 of the image that image_source names.")
    return wrong


def _no_churn(values: Mapping[str, Any], workloads: Iterable[str]) -> list[str]:
    """Why guests cannot leave, come back and diverge in these cells."""
    if not values.get("churn_seconds"):
        return []
    wrong = []
    running = [name for name in workloads if read_workload(name).application]
    if running:
        wrong.append(
            f"churn_seconds is set, and {', '.join(running)} runs an application, which cannot be told to "
            "diverge: allowed are workloads that fill memory, and idle."
        )
    if 1 in values.get("guests", ()):
        wrong.append("churn_seconds is set, and half of 1 guest cannot leave: allowed are 2 guests or more.")
    if values.get("checkpoint") == "measured":
        wrong.append(
            "checkpoint is 'measured', which saves guests after they were measured: allowed is no "
            "churn_seconds, for which some of them are others then."
        )
    return wrong


_EACH_ONCE = "each one once, with commas between"
_CASTS: dict[str, Caster] = {
    "focus": _focus,
    "workloads": _workloads,
    "mix": _mix,
    "policies": several(_policy, _EACH_ONCE),
    "pinned": _pinned,
    "guests": several(whole(1, MOST_GUESTS), "each number once, with commas between"),
    "boots": whole(1, 1000),
    "first_boot": whole(1, 1000),
    "repetitions": whole(1, 1000),
    "checkpoint": choice(CHECKPOINTS),
    "cell_order_seed": _seed,
    "guest_memory_mib": whole(128, MIB),
    "guest_reserve_mib": whole(1, MIB),
    "accelerator": choice(ACCELERATORS),
    "boot_wave": whole(0, MOST_GUESTS),
    "keep_guests": boolean,
    "census": boolean,
    "keep_loaded": boolean,
    "probes": whole(0, MOST_PROBES),
    "survey_sample": whole(0, MIB),
    "guest_ssh_port_base": whole(1024, LAST_PORT - 1),
    "image_source": _text,
    "image_checksum": _checksum,
    "ksm_knobs": _knobs,
    "thp_enabled": _thp,
    # A page must keep its checksum between two scans, so fewer than three prove nothing.
    "converge_min_full_scans": whole(3, 10_000),
    "converge_window_scans": whole(1, 10_000),
    "converge_threshold_percent": number(0.001, 100),
    "converge_timeout_seconds": number(1, 604_800),
    "sample_interval_seconds": number(0.1, 10),
    "follow_seconds": number(0, 604_800),
    "churn_seconds": number(0, 604_800),
    "others": choice((REFUSE, ALLOW)),
}
VARIABLES = tuple(field.name for field in fields(Design))
