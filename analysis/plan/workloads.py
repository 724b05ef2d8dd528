"""What a guest does: one file each in workloads/, and mixes of them, written as constant_fill=5,idle=5."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from analysis.plan.data_files import PROJECT, DataFileError, names_in, read_file

if TYPE_CHECKING:
    from analysis.plan.application import Application

WORKLOADS = PROJECT / "workloads"

_KEYS = frozenset({"description", "focus", "segments", "checkpoint_loaded"})

_REWRITE = "rewrite_pages_per_second"


class Segment(NamedTuple):
    """A part of the memory that a guest fills; ``rewrite_pages_per_second``: 0 where it stays as it is."""

    content: str
    percent: int
    rewrite_pages_per_second: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a plan holds it and the program in the guest takes it."""
        rewriting = {_REWRITE: self.rewrite_pages_per_second} if self.rewrite_pages_per_second else {}
        return {"content": self.content, "percent": self.percent, **rewriting}


@dataclass(frozen=True)
class Workload:
    """One file of workloads/.

    ``segments``: what the memory that a guest fills holds, in order; empty: it fills none. ``application``:
    what it runs, None: nothing. ``focus``: the paper's number for it, None for one that the paper has not.
    ``checkpoint_loaded``: guests that hold it are kept in a checkpoint of their own, since restoring them is
    cheaper than loading; so are those of an application, unless its file says otherwise.
    """

    name: str
    description: str
    segments: tuple[Segment, ...] = ()
    application: "Application | None" = None
    focus: int | None = None
    checkpoint_loaded: bool = False

    @property
    def fills(self) -> bool:
        """Whether its guests fill memory, which a digest can prove to be intact."""
        return bool(self.segments)

    @property
    def loads(self) -> bool:
        """Whether its guests hold more than they booted with."""
        return self.fills or self.application is not None

    def to_json(self) -> dict[str, Any]:
        """As the playbook hands it to the modules."""
        running = {"application": self.application.to_json()} if self.application else {}
        return {
            "name": self.name,
            "segments": [segment.to_json() for segment in self.segments],
            **running,
            "checkpoint_loaded": self.checkpoint_loaded,
        }


def workload_names(folder: Path = WORKLOADS) -> list[str]:
    """The workloads that exist."""
    return names_in(folder)


@cache
def read_workload(name: str, folder: Path = WORKLOADS) -> Workload:
    """One workload by its name. Raises DataFileError, which names those that exist."""
    # Its pydantic takes as long to import as all else that a command needs for its help.
    from analysis.plan import application  # noqa: PLC0415 -- see above

    content = read_file(folder, "workload", name, _KEYS | application.KEYS)
    path = folder / f"{name}.yml"
    segments = tuple(_segment(path, segment) for segment in content.get("segments") or [])
    if segments and sum(segment.percent for segment in segments) != 100:
        raise DataFileError(f"{path}: the percents of its segments must add up to 100.")
    try:
        runs = application.read_application(content)
    except application.ApplicationError as error:
        raise DataFileError(f"{path}: {error}.") from None
    if runs and segments:
        raise DataFileError(f"{path}: a workload has segments or an application, and this has both.")
    focus = content.get("focus")
    if focus is not None and (type(focus) is not int or focus < 1):
        raise DataFileError(f"{path}: focus is {focus!r}, and must be a whole number from 1.")
    return Workload(
        name=name,
        description=content["description"],
        segments=segments,
        application=runs,
        focus=focus,
        checkpoint_loaded=bool(content.get("checkpoint_loaded", runs is not None)),
    )


def _segment(path: Path, given: Any) -> Segment:
    found = given if isinstance(given, Mapping) else {}
    percent, rate = found.get("percent"), found.get(_REWRITE, 1)
    if type(percent) is not int or not {"content", "percent"} <= found.keys() <= {
        "content",
        "percent",
        _REWRITE,
    }:
        raise DataFileError(
            f"{path}: a segment is {given!r}, and must have a content and a percent, and may have {_REWRITE}."
        )
    if type(rate) is not int or rate < 1:
        raise DataFileError(f"{path}: {_REWRITE} is {rate!r}, and must be a whole number from 1.")
    return Segment(str(found["content"]), percent, found.get(_REWRITE, 0))


def image_packages(names: Iterable[str], folder: Path = WORKLOADS) -> list[str]:
    """Packages that the image of guests with these workloads has beyond the plain one.

    None where they need none; else those of the whole catalogue, so that all applications are measured, and
    mixed, on one image.
    """

    def needed(of: Iterable[str]) -> list[str]:
        read = (read_workload(name, folder).application for name in of)
        return sorted({package for one in read if one is not None for package in one.packages})

    return needed(workload_names(folder)) if needed(names) else []


def foci(folder: Path = WORKLOADS) -> dict[int, str]:
    """The paper's foci: number -> workload. Raises DataFileError where two files claim one number."""
    found: dict[int, str] = {}
    for name in workload_names(folder):
        focus = read_workload(name, folder).focus
        if focus is not None and focus in found:
            raise DataFileError(f"workloads {found[focus]} and {name} both say focus {focus}.")
        if focus is not None:
            found[focus] = name
    return dict(sorted(found.items()))


def focus_of(load: str) -> int | None:
    """The paper's number of a cell's load; None for a mix, another workload, or one without a file here."""
    return next((focus for focus, name in foci().items() if name == load), None)


def title(load: str) -> str:
    """What a load is called: "2 constant fill" with the paper's number, "zero fill", or "mix: a=5,b=5"."""
    if "=" in load:
        return f"mix: {load}"
    focus = focus_of(load)
    return (f"{focus} " if focus else "") + load.replace("_", " ")


def in_order(loads: Iterable[str]) -> list[str]:
    """Loads in the paper's order, then the others by the alphabet, mixes last."""
    return sorted(set(loads), key=lambda load: ("=" in load, focus_of(load) or 10_000, load))
