"""A capacity run: its variables, checked; when a step does not fit; and how many guests come next.

Used on the controller by the Ansible actions of the capacity playbook.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from analysis.errors import UserError
from analysis.plan.design import (
    MIB,
    MOST_GUESTS,
    MOST_PROBES,
    Caster,
    Design,
    DesignError,
    boolean,
    canonical_digest,
    existing_load,
    existing_policy,
    number,
    whole,
)
from analysis.plan.mix import mix_of
from analysis.plan.policies import DEFAULT, OFF
from analysis.plan.workloads import read_workload
from analysis.records.models import StepObserved

PREFIX = "capacity_"
# A probe writes to at most so much of a guest's memory, which is merged no more (roles/guests/files).
PROBE_MIB = 16

# An experiment's variables that choose its cells, in whose place a capacity run has its own
_CELLS = {
    "focus": 1,
    "workloads": "",
    "mix": "",
    "policies": DEFAULT,
    "guests": 1,
    "repetitions": 1,
    "probes": 0,
    "cell_order_seed": "",
}


@dataclass(frozen=True)
class CapacityDesign:
    """Every variable of a capacity run, checked and typed; on the command line they begin with capacity_.

    ``workload``: of a mix its numbers are shares.
    ``policy``: what the guests are under in the second arm; the first one is without KSM.
    ``envelope_mib``: what the guests' QEMU processes and KSM for them may use; 0: the whole host.
    ``probes``: of each step, one guest after another; 0: the limits alone.
    ``stop_*``: the first of these that a step exceeds (available: falls below) ends an arm.
    """

    workload: str
    policy: str
    envelope_mib: int
    step_guests: int
    most_guests: int
    probes: int
    probe_seconds: int
    divergence: bool
    stop_psi_memory_percent: float
    stop_available_mib: int
    stop_major_faults_per_second: float
    stop_swapped_pages_per_second: float

    @classmethod
    def from_variables(cls, variables: Mapping[str, Any]) -> "CapacityDesign":
        """Check and cast the capacity_ variables. Raises DesignError, a sentence for each that is wrong."""
        wrong = []
        values: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            given = variables.get(PREFIX + name)
            try:
                if given is None:
                    raise DesignError(f"{PREFIX}{name} is not set: it needs a value.")
                values[name] = _CASTS[name](PREFIX + name, given)
            except UserError as error:
                wrong.append(str(error))
        wrong += [
            f"{name} is not a variable of a capacity run: allowed are "
            f"{', '.join(PREFIX + known for known in _CASTS)}."
            for name in variables
            if name.removeprefix(PREFIX) not in _CASTS
        ]
        if wrong:
            raise DesignError(" ".join(wrong))
        return cls(**values)

    @property
    def envelope_bytes(self) -> int | None:
        """What the guests have to fit in; None: the whole host."""
        return self.envelope_mib * MIB or None

    def limit_bytes(self, design: Design, overhead_mib: int) -> int:
        """Hard limit of the envelope's cgroup: the envelope is a line in the books, the limit lies above it.

        By one guest and the probes: the steady limit lies beyond the line that a guest crosses while it is
        started, since it takes all of its memory before KSM has merged it, and a probe unmerges what it
        writes to. At the envelope itself the kernel would kill a guest.
        Raises DesignError when without an envelope such a guest could use up the host.
        """
        room_mib = design.guest_memory_mib + overhead_mib + self.probes * PROBE_MIB
        if not self.envelope_mib and self.stop_available_mib < room_mib:
            raise DesignError(
                f"capacity_stop_available_mib is {self.stop_available_mib}: a guest and the probes may take "
                f"{room_mib} MiB, so it must be that or more."
            )
        return (self.envelope_mib + room_mib) * MIB

    @property
    def most_steps(self) -> int:
        """Steps of the longest arm: none, and one guest more each."""
        return 1 + self.most_guests

    def digest(self, design: Design) -> str:
        """SHA-256 of the canonical JSON of what is measured."""
        return canonical_digest({"capacity": asdict(self), "experiment": design.digest})


def check_variables(
    capacity: Mapping[str, Any], experiment: Mapping[str, Any]
) -> tuple[CapacityDesign, Design]:
    """Check the variables of a capacity run and those that it has in common with an experiment.

    Those of an experiment that choose its cells are not looked at: the design returned has the capacity run's
    workload, policy and most guests. Raises DesignError, a sentence for each variable that is wrong.
    """
    wrong = []
    cells: dict[str, Any] = dict(_CELLS)
    try:
        checked = CapacityDesign.from_variables(capacity)
        # The design checks what guests do, and not in which shares.
        cells |= {
            "workloads": ",".join(mix_of(checked.workload)),
            "policies": checked.policy,
            "guests": checked.most_guests,
        }
    except DesignError as error:
        wrong.append(str(error))
    try:
        design = Design.from_variables({**experiment, **cells})
    except DesignError as error:
        wrong.append(str(error))
    if wrong:
        raise DesignError(" ".join(wrong))
    service = design.policy(checked.policy).service
    if service:
        raise DesignError(
            f"capacity_policy is {checked.policy}, which runs the service {service}: a capacity run starts "
            "none, so choose a policy that is knobs alone."
        )
    return checked, design


def arms(design: Design) -> dict[str, dict[str, Any]]:
    """The policies of both arms by name, off first, as Design.policies_json has them; KSM alone differs.

    Args:
        design: of check_variables, with the one policy of the second arm.
    """
    (policy,) = design.policies
    off = replace(design, policies=(OFF,), thp_enabled=design.policy(policy).thp_enabled)
    return {**off.policies_json(), **design.policies_json()}


def stop(
    design: CapacityDesign, observed: StepObserved, used_bytes: float
) -> dict[str, str | float | None] | None:
    """Why a step is beyond the limit; None while it is not.

    Args:
        design: with the limits.
        observed: of a capacity_step record.
        used_bytes: of the envelope, where there is one.
    """
    window, memory = observed.window, observed.host.meminfo
    seconds, psi = window.seconds, window.psi_some_microseconds
    vmstat = {name: count or 0 for name, count in window.vmstat.items()}
    silent = sorted(one.guest for one in observed.probes if one.answer is None)
    available_mib = memory["MemAvailable_bytes"] / MIB
    stall_percent = None if psi is None else psi.memory / 1e4 / seconds
    swapped = (vmstat["pswpin"] + vmstat["pswpout"]) / seconds
    faults = vmstat["pgmajfault"] / seconds
    kills = vmstat.get("oom_kill", 0)
    envelope_mib = design.envelope_mib
    used_mib = used_bytes / MIB if envelope_mib else 0.0
    checks = (
        (
            used_mib > envelope_mib,
            f"the envelope of {envelope_mib} MiB is full: {used_mib:.0f} MiB are used",
            "used_mib",
            used_mib,
            envelope_mib,
        ),
        (kills > 0, f"the kernel killed {kills} processes for lack of memory", "oom_kills", kills, 0),
        (bool(silent), f"no answer from {', '.join(silent)}", "silent_guests", len(silent), 0),
        (
            available_mib < design.stop_available_mib,
            f"the host has only {available_mib:.0f} MiB available",
            "available_mib",
            available_mib,
            design.stop_available_mib,
        ),
        (
            stall_percent is not None and stall_percent > design.stop_psi_memory_percent,
            f"tasks of the host waited for memory during {stall_percent or 0:.1f} % of the time",
            "psi_memory_percent",
            stall_percent,
            design.stop_psi_memory_percent,
        ),
        (
            swapped > design.stop_swapped_pages_per_second,
            f"the host swapped {swapped:.0f} pages a second",
            "swapped_pages_per_second",
            swapped,
            design.stop_swapped_pages_per_second,
        ),
        (
            faults > design.stop_major_faults_per_second,
            f"the host had {faults:.0f} major faults a second",
            "major_faults_per_second",
            faults,
            design.stop_major_faults_per_second,
        ),
    )
    # Without a probe, as with no guest, the moment between two readings is too short for a rate.
    rated = bool(observed.probes)
    for beyond, reason, measure, value, limit in checks:
        if beyond and (rated or measure in ("used_mib", "available_mib")):
            return {"reason": reason, "measure": measure, "value": value, "limit": limit}
    return None


def next_guests(guests: int, free_bytes: float, full_guest_bytes: int, design: CapacityDesign) -> int | None:
    """How many guests the step after one that fits has; None at the end of the arm.

    ``step_guests`` more while so many fit that nothing of them need be merged, then one by one: each limit is
    exact whatever the step, and no step goes further beyond the envelope than one guest.

    Args:
        guests: that run.
        free_bytes: of the envelope, or of the host above what it has to keep available.
        full_guest_bytes: what a guest may take that shares nothing.
        design: with the most of both.
    """
    room = int(max(free_bytes, 0) // full_guest_bytes)
    following = min(guests + max(1, min(design.step_guests, room)), design.most_guests)
    return following if following > guests else None


def _filling_load(name: str, value: Any) -> str:
    load = existing_load(name, value)
    running = [one for one in mix_of(load) if read_workload(one).application]
    if running:
        raise DesignError(
            f"{name} names {', '.join(running)}, an application, whose guests are not probed: allowed are "
            "workloads that fill memory, and idle."
        )
    return load


_CASTS: dict[str, Caster] = {
    "workload": _filling_load,
    "policy": existing_policy,
    "envelope_mib": whole(0, MIB),
    "step_guests": whole(1, 64),
    "most_guests": whole(1, MOST_GUESTS),
    "probes": whole(0, MOST_PROBES),
    "probe_seconds": whole(1, 600),
    "divergence": boolean,
    "stop_psi_memory_percent": number(0.1, 100),
    "stop_available_mib": whole(256, MIB),
    "stop_major_faults_per_second": number(1, 1e6),
    "stop_swapped_pages_per_second": number(0, 1e6),
}
CAPACITY_VARIABLES = tuple(PREFIX + name for name in _CASTS)
