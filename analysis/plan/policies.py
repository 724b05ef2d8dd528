"""How the host treats the guests' pages: one file each in policies/, or one with other knobs laid over it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from analysis.plan.data_files import PROJECT, DataFileError, names_in, read_file

POLICIES = PROJECT / "policies"
OFF = "off"
# What others are compared with
DEFAULT = "ksm"
# The host's own huge pages
KEEP = "keep"
# The service that is the testbed's own daemon, plugins/module_utils/ksm_pacer.py
PACER = "ksm-pacer"
# What it sets by itself, beside run
PACED = ("pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode")
# Between a policy's name and each knob laid over it: ksm+pages_to_scan=100
LAID_OVER = "+"
THP_MODES = (KEEP, "always", "madvise", "never")

_KEYS = frozenset({"description", "run", "knobs", "needs", "thp_enabled", "service"})
_LAID = re.compile(r"(?!run=)(?P<knob>[a-z][a-z0-9_]*)=(?P<value>[0-9]{1,20}|[a-z][a-z0-9-]*)")


@dataclass(frozen=True)
class Policy:
    """One file of policies/, or one with knobs laid over it, which its name then says.

    ``run``: 1 where KSM merges, 0 where it does not. ``knobs``: values of files in /sys/kernel/mm/ksm; those
    that a kernel lacks are left out unless ``needs`` has them. ``thp_enabled``: the mode of transparent huge
    pages, from before the guests are restored; keep: the host's own. ``service``: a systemd unit that runs
    while the policy is on, or ksm-pacer, the testbed's own daemon; empty: none.
    """

    name: str
    description: str
    run: int = 1
    knobs: dict[str, int | str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    thp_enabled: str = KEEP
    service: str = ""

    @property
    def optional_knobs(self) -> list[str]:
        """Knobs that a kernel may lack."""
        return sorted(set(self.knobs) - set(self.needs))

    @property
    def laid_over(self) -> frozenset[str]:
        """Knobs that its name lays over its file."""
        return frozenset(text.partition("=")[0] for text in self.name.split(LAID_OVER)[1:])

    def to_json(self) -> dict[str, Any]:
        """As a plan and a record hold it."""
        return {
            "name": self.name,
            "run": self.run,
            "knobs": dict(self.knobs),
            "optional_knobs": self.optional_knobs,
            "thp_enabled": self.thp_enabled,
            "service": self.service,
        }


def policy_names(folder: Path = POLICIES) -> list[str]:
    """The policies that exist."""
    return names_in(folder)


def policy_order(name: str) -> tuple[bool, bool, str]:
    """A key to sort policies by: off, the default one, then the others by the alphabet."""
    return (name != OFF, name != DEFAULT, name)


def runs_unit(service: str) -> bool:
    """Whether a policy's service is a unit, which may set run, too; not so the testbed's own daemon."""
    return service not in ("", PACER)


def paced(policy: Policy, knobs: Iterable[str]) -> list[str]:
    """Those of the knobs that cannot be laid over a policy, since the testbed's own daemon sets them."""
    return sorted(set(knobs).intersection(PACED)) if policy.service == PACER else []


@cache
def read_policy(name: str, folder: Path = POLICIES) -> Policy:
    """One policy by its name, such as ksm or ksm+pages_to_scan=100+sleep_millisecs=20.

    Knobs laid over a policy must exist in the kernel. Raises DataFileError, which names the policies that
    exist, or says which knob cannot be laid over one.
    """
    base, *laid = name.split(LAID_OVER)
    policy = _read_file(base, folder)
    if not laid:
        return policy
    if not policy.run:
        raise DataFileError(f"policy {name!r} lays knobs over {base}, under which KSM does not run.")
    knobs: dict[str, int | str] = {}
    for text in laid:
        match = _LAID.fullmatch(text)
        if match is None or match["knob"] in knobs:
            raise DataFileError(
                f"policy {name!r} has {text!r}: allowed after each + is a file of /sys/kernel/mm/ksm, "
                "without run, each once, with a number or a word, such as ksm+pages_to_scan=100."
            )
        knobs[match["knob"]] = int(match["value"]) if match["value"].isdigit() else match["value"]
    if own := paced(policy, knobs):
        raise DataFileError(f"policy {name!r} lays {own[0]} over {base}, whose daemon sets it by itself.")
    return replace(
        policy,
        name=name,
        description=f"{policy.description}; with {' and '.join(laid)}",
        knobs=dict(sorted({**policy.knobs, **knobs}.items())),
        needs=tuple(sorted({*policy.needs, *knobs})),
    )


def _read_file(name: str, folder: Path) -> Policy:
    content = read_file(folder, "policy", name, _KEYS)
    path = folder / f"{name}.yml"
    knobs = content.get("knobs") or {}
    if not isinstance(knobs, dict) or not all(
        isinstance(knob, str) and knob != "run" and type(value) in (int, str) for knob, value in knobs.items()
    ):
        raise DataFileError(
            f"{path}: knobs must map files of /sys/kernel/mm/ksm, without run, to a number or a word."
        )
    needs = content.get("needs") or []
    if not isinstance(needs, list) or not set(needs) <= set(knobs):
        raise DataFileError(f"{path}: needs must be a list of some of its knobs.")
    run, thp_enabled = content.get("run", 1), content.get("thp_enabled", KEEP)
    if run not in (0, 1) or isinstance(run, bool):
        raise DataFileError(f"{path}: run is {run!r}: allowed is 0 or 1.")
    if thp_enabled not in THP_MODES:
        raise DataFileError(f"{path}: thp_enabled is {thp_enabled!r}: allowed is {' or '.join(THP_MODES)}.")
    return Policy(
        name=name,
        description=content["description"],
        run=run,
        knobs=dict(sorted(knobs.items())),
        needs=tuple(needs),
        thp_enabled=thp_enabled,
        service=str(content.get("service") or ""),
    )
