"""A census of a host's virtual machines while they run: equal pages, as numbers alone.

No machine is paused unless that is asked for: pages that changed meanwhile are counted by looking at some
twice (page_sampling). Hashes and seed end with the process.
"""

from __future__ import annotations

import base64
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple

import numpy as np
from ansible.module_utils.ksm_probe import Roots, read_required
from ansible.module_utils.page_census import Hashes, Layout, Reader, Reading, parse_smaps
from ansible.module_utils.page_sampling import LOOK_ONE_IN, Keep, keep_of, moved, sketch, sketch_one_in
from ansible.module_utils.page_tally import pages, tally

IDLE_NICE = 19


class Taken(NamedTuple):
    """``census``: of a survey's record (analysis/records/survey.py). ``sketch``: None without a given seed.

    Else for each machine by its process one in ``one_in`` of its contents: hashes, little-endian, in base64.
    """

    census: dict[str, Any]
    sketch: dict[str, Any] | None


def become_idle() -> None:
    """Take CPU time that nobody wants, and disk time too, should a page have been swapped out meanwhile."""
    os.nice(IDLE_NICE)
    with suppress(OSError, subprocess.SubprocessError):  # a host without util-linux
        subprocess.run(
            ["ionice", "-c", "3", "-p", str(os.getpid())], capture_output=True, check=False, timeout=10
        )


def layout_of(pid: int, roots: Roots) -> Layout:
    """The mergeable memory of a process. ProbeError where it has ended."""
    return parse_smaps(read_required(roots.proc / str(pid) / "smaps"))


def take(
    machines: Sequence[dict[str, Any]],
    roots: Roots,
    *,
    one_in: int,
    cpu_percent: int,
    progress: Callable[[int], Callable[[int], None]],
    pause: AbstractContextManager[Any],
    seed: int | None = None,
) -> Taken:
    """Count the pages of machines, each as host_survey tells of it.

    Args:
        machines: those whose memory KSM may merge.
        roots: the kernel's trees.
        one_in: of so many contents one is counted; 1: all.
        cpu_percent: of one CPU, at most; more than 100 is more than one process.
        progress: makes of the bytes there are at most what is called with those read so far.
        pause: entered before the first page is read, left after the last one.
        seed: of the hashes, for sketches of several hosts that are to be compared; None: nobody's.

    Raises: CensusError, ProbeError where a machine ended or changed its memory meanwhile.
    """
    processes = math.ceil(cpu_percent / 100)
    pids = [machine["pid"] for machine in machines]
    layouts = [layout_of(pid, roots) for pid in pids]
    total_bytes = sum(layout.mergeable_bytes for layout in layouts)
    share = cpu_percent / 100 / processes
    with Reader(pids, layouts, processes=processes, close=None, share=share, seed=seed) as reader, pause:
        first = reader.look(LOOK_ONE_IN)
        keep = keep_of(first, reader.known["zero"], one_in)
        reading = reader.read(progress(total_bytes), keep, frames_of=reader.known["zero"])
        second = reader.look(LOOK_ONE_IN)
    stats = [machine["ksm_stat"] for machine in machines]
    changed = moved(first, second)
    census = {
        "one_in": one_in,
        "cpu_percent": cpu_percent,
        "machines": [
            {
                "pid": pid,
                "swapped_pages": counted.swapped_pages,
                "zero_huge_pages": counted.huge_pages,
                **pages(
                    counted.zero_mapped_pages,
                    stat,
                    present,
                    int(np.count_nonzero(counted.hashes == reading.known["zero"])),
                ),
            }
            for pid, counted, stat, present in zip(
                pids, reading.counted, stats, reading.present_pages, strict=True
            )
        ],
        "strata": strata(reading, keep),
        "look_one_in": LOOK_ONE_IN,
        "looked_pages": changed.looked_pages,
        "changed_pages": changed.changed_pages,
        "bytes_read": reading.bytes_read,
        "read_seconds": reading.seconds,
        "processes": reading.processes,
    }
    return Taken(census, None if seed is None else _sketch(pids, reading, sketch_one_in(one_in)))


def _sketch(pids: Sequence[int], reading: Reading, one_in: int) -> dict[str, Any]:
    zero_hash = reading.known["zero"]
    hashes = [sketch(counted.hashes, zero_hash, one_in).astype("<u8") for counted in reading.counted]
    texts = [base64.b64encode(mine.tobytes()).decode("ascii") for mine in hashes]
    return {"one_in": one_in, "machines": dict(zip(pids, texts, strict=True))}


def strata(reading: Reading, keep: Keep) -> list[dict[str, Any]]:
    """What was kept in any case, and what by chance, zero pages apart; of a whole census one table of all."""
    if keep.one_in == 1:
        return [_table([counted.hashes for counted in reading.counted], reading.known["zero"], 1)]
    always = [keep.is_always(counted.hashes) for counted in reading.counted]
    parts = [(always, 1), ([~mine for mine in always], keep.one_in)]
    return [
        _table(
            [counted.hashes[mine] for counted, mine in zip(reading.counted, masks, strict=True)],
            reading.known["zero"],
            one_in,
        )
        for masks, one_in in parts
    ]


def _table(hashes: Sequence[Hashes], zero_hash: int, one_in: int) -> dict[str, Any]:
    equal = tally(hashes, zero_hash)
    return {
        "one_in": one_in,
        "contents": {
            "guests": [held for held, _, _ in equal.contents],
            "copies": [copies for _, copies, _ in equal.contents],
            "contents": [number for _, _, number in equal.contents],
        },
        "alone_pages": list(equal.alone_pages),
        "shared_contents": [list(row) for row in equal.shared],
    }
