"""Guests of different workloads on one host, written as constant_fill=5,idle=5. Standard library only."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from analysis.errors import UserError

# What is done to an application before it is kept
_HELD = ("packages", "start", "ready", "load", "verify")
_PART = re.compile(r"([a-z][a-z0-9_-]*)=([0-9]{1,4})")


class MixError(UserError):
    """Text that is no mix, or guests that are not those of a mix."""


def parse_mix(words: str, name: str) -> dict[str, int]:
    """Guests by workload from idle=5,random_fill=10. Raises MixError, which calls the text ``name``."""
    mix: dict[str, int] = {}
    for part in words.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None or match[1] in mix or int(match[2]) < 1:
            raise MixError(
                f"{name} is {words!r}: allowed is each workload once with its number of guests from 1, such "
                "as idle=5,random_fill=10."
            )
        mix[match[1]] = int(match[2])
    return mix


def mix_of(load: str) -> dict[str, int]:
    """Guests, or shares, by workload of a load; 1 of a workload alone. Raises MixError."""
    return parse_mix(load, "workload") if "=" in load else {load: 1}


def mix_text(mix: Mapping[str, int]) -> str:
    """The name of a load: the workload alone, or idle=5,random_fill=10 in the order of the alphabet."""
    if len(mix) == 1:
        return next(iter(mix))
    return ",".join(f"{workload}={mix[workload]}" for workload in sorted(mix))


def load_name(workload: str) -> str:
    """The name of a load as forecasts write it: parts of a mix in the order of the alphabet."""
    return mix_text(mix_of(workload))


def taking_turns(shares: Mapping[str, int], guests: int) -> list[str]:
    """Workload of each of so many guests, one started after another, in these shares by workload.

    Each guest does what most is lacking of, by the alphabet where it is equal: more guests change nothing in
    what the first ones do, and any whole number of times the shares holds exactly them.
    """
    if len(shares) == 1:
        return [*shares] * guests
    whole, given = sum(shares.values()), dict.fromkeys(sorted(shares), 0)
    turns = []
    for number in range(1, guests + 1):
        # max takes the first of equals.
        workload = max(given, key=lambda name: number * shares[name] - whole * given[name])
        given[workload] += 1
        turns.append(workload)
    return turns


def guest_workloads(load: str, guests: Iterable[str], *, shares: bool = False) -> dict[str, str]:
    """Workload of each guest of a load: a mix's by the alphabet, over the guests in the order of their names.

    With ``shares`` the numbers of a mix are shares, and any number of guests takes turns.
    Raises MixError when the guests are not as many as the mix has.
    """
    names = sorted(guests)
    if "=" not in load:
        return dict.fromkeys(names, load)
    mix = parse_mix(load, "workload")
    if shares:
        # In the order in which they are started: guest100 after guest99
        names.sort(key=lambda name: (len(name), name))
        return dict(zip(names, taking_turns(mix, len(names)), strict=True))
    if sum(mix.values()) != len(names):
        raise MixError(f"workload {load} has {sum(mix.values())} guests: {len(names)} are given.")
    workloads = [workload for workload in sorted(mix) for _guest in range(mix[workload])]
    return dict(zip(names, workloads, strict=True))


def keeps_load(load: str, workloads: Mapping[str, Any]) -> bool:
    """Whether guests with this load are kept in a checkpoint of their own."""
    return any(workloads[name]["checkpoint_loaded"] for name in mix_of(load))


def loads_later(load: str, workloads: Mapping[str, Any]) -> bool:
    """Whether some guests of a load are filled after they were restored, kept or not."""
    return any(
        _content(workloads[name]) and not workloads[name]["checkpoint_loaded"] for name in mix_of(load)
    )


def load_contents(load: str, workloads: Mapping[str, Any]) -> dict[str, Any]:
    """What the guests of each workload hold in the load's checkpoint: nothing where loaded after it.

    The segments of one that fills memory, the commands of an application. Guests kept with another content do
    not hold the load.
    """
    return {
        name: _content(workloads[name]) if workloads[name]["checkpoint_loaded"] else []
        for name in mix_of(load)
    }


def _content(workload: Mapping[str, Any]) -> Any:
    running = workload.get("application")
    return workload["segments"] if running is None else {name: running[name] for name in _HELD}
