"""What a run will store, on its hypervisors and on the controller, before any of it is there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.plan.design import CHURN, Cell, DesignError
from analysis.plan.mix import keeps_load
from plugins.module_utils.disk_room import IMAGE_BYTES, OVERLAY_BYTES, Need, saved_bytes, shortages

# The largest files of a cell seen in the reference are of 20 guests: 3 of 40 kB and a census of 15 kB.
_RECORDS_BYTES = 1 << 20
_SAMPLE_BYTES = 300


@dataclass(frozen=True)
class Kept:
    """A checkpoint that a run needs: the guests of a boot, and what they hold ("" when they only booted)."""

    boot: int
    guests: int
    load: str = ""


# The roles' variables that say where a hypervisor keeps what is stored there, and their defaults
FOLDERS = {
    "guests_directory": "/var/lib/ksm-testbed",
    "guest_image_directory": "/var/lib/ksm-testbed/images",
}


def checkpoints(cells: Iterable[Cell], most_guests: int, workloads: Mapping[str, Any]) -> list[Kept]:
    """The checkpoints that these cells begin from, in their order; each loaded one after its boot's.

    A loaded one serves cells of as many guests or fewer; of a mix only those of its own number.
    """
    found: dict[tuple[int, str, int], Kept] = {}
    for cell in cells:
        found.setdefault((cell.boot, "", 0), Kept(cell.boot, most_guests))
        if keeps_load(cell.workload, workloads):
            served = any(
                kept.guests == cell.guests or (kept.guests > cell.guests and "=" not in cell.workload)
                for kept in found.values()
                if (kept.boot, kept.load) == (cell.boot, cell.workload)
            )
            if not served:
                kept = Kept(cell.boot, cell.guests, cell.workload)
                found[cell.boot, cell.workload, cell.guests] = kept
    return list(found.values())


def host_needs(
    kept: Sequence[Kept],
    most_guests: int,
    design: Mapping[str, Any],
    since: str,
    folders: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """What a hypervisor stores, as the module host_preflight takes it.

    A checkpoint says which it is, and the host looks whether it is there already.

    Args:
        kept: the checkpoints that are needed.
        most_guests: how many run at once.
        design: the experiment's variables, as in a plan.
        since: when the run was planned, in UTC.
        folders: those of FOLDERS that are set otherwise.
    """
    places = {name: str(folders.get(name) or default) for name, default in FOLDERS.items()}
    memory_mib, directory = design["guest_memory_mib"], places["guests_directory"]
    checkpoint = {
        "memory_mib": memory_mib,
        "reserve_mib": design["guest_reserve_mib"],
        "since": "" if design["checkpoint"] == "keep" else since,
    }
    image, write = "making the guests' image", f"what {most_guests} guests write"
    return [
        {
            **Need(path=places["guest_image_directory"], bytes=IMAGE_BYTES, what=image),
            "unless": "*/image.json",
        },
        {**Need(path=f"{directory}/guests", bytes=most_guests * OVERLAY_BYTES, what=write)},
        *(
            {
                "path": f"{directory}/checkpoints",
                "bytes": saved_bytes(one.guests, memory_mib, loaded=bool(one.load)),
                "what": f"boot {one.boot} of {one.guests} guests{one.load and f' with {one.load}'}",
                "checkpoint": {**checkpoint, "boot": one.boot, "guests": one.guests, "load": one.load},
            }
            for one in kept
        ),
    ]


def records_need(cells: int, design: Mapping[str, Any], directory: str) -> Need:
    """What the records of so many cells take at most."""
    seconds = design["converge_timeout_seconds"] + design["follow_seconds"]
    seconds += len(CHURN) * design["churn_seconds"]
    samples = int(seconds / design["sample_interval_seconds"])
    return Need(
        path=directory,
        bytes=cells * (_RECORDS_BYTES + samples * _SAMPLE_BYTES),
        what=f"the records of {cells} cells",
    )


def check_records(needs: Iterable[Need]) -> None:
    """Raise DesignError unless the controller has room for all of these records."""
    wrong = shortages(needs)
    if wrong:
        raise DesignError(f"{'; '.join(wrong)}.")


def is_local(task_vars: Mapping[str, Any], host: str) -> bool:
    """Whether a hypervisor is the controller, whose file systems hold the records too."""
    hosts = task_vars.get("hostvars")
    # Not templated: who calls has no template under way.
    return hosts is not None and host in hosts and hosts.raw_get(host).get("ansible_connection") == "local"
