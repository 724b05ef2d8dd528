"""What a survey costs, and whether a sample is within its interval; no guest is needed, nothing is measured.

1. A census of processes with known pages, whole and one content in 16: GB/s, and its own memory.
2. A survey without census of many processes with maps as large as machines have: seconds.
3. Coverage: of 50 samples of one content in 16, drawn by hashes with a new seed each from the contents that
   recorded censuses counted (results/reference), how many have the whole census' ideal saving in their 95 %
   interval.
Usage: python -m benchmarks.survey [MIB_EACH [PROCESSES [MACHINES]]]
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ansible.module_utils
import numpy as np

from analysis.measure.page_contents import from_record
from analysis.measure.survey import SurveyedPages
from analysis.plan.design import PROJECT
from analysis.records.models import CensusRecord, ContentsTable
from analysis.records.reading import read_record
from analysis.records.survey import CountedMachine, Stratum, SurveyCensus
from benchmarks.census import MIB, OwnMemory, Synthetic, cpu_seconds

ansible.module_utils.__path__.append(str(Path(__file__).parents[1] / "plugins/module_utils"))

from ansible.module_utils import host_survey, page_sampling, survey_census  # noqa: E402 -- by the line above
from ansible.module_utils.ksm_probe import Roots  # noqa: E402

ONE_IN = 16
DRAWS = 50
RECORDED = ("calibration-4", "cells-followed/followed-all", "mix-15")


def censuses(each_bytes: int, number: int) -> None:
    """Speed and memory of a whole census and of a sample."""
    processes = [Synthetic(n + 1, each_bytes) for n in range(number)]
    layouts = {process.pid: process.layout for process in processes}
    survey_census.layout_of = lambda pid, _roots: layouts[pid]
    machines = [{"pid": process.pid, "ksm_stat": None} for process in processes]
    try:
        for one_in in (1, ONE_IN):
            own, cpu = OwnMemory(set(layouts)), cpu_seconds()
            taken, _sketches = survey_census.take(
                machines,
                Roots(),
                one_in=one_in,
                cpu_percent=100 * len(os.sched_getaffinity(0)),
                progress=lambda _total: lambda _done: None,
                pause=tempfile.TemporaryDirectory(),
            )
            spent, highest = cpu_seconds() - cpu, own.stop()
            print(
                f"census of {taken['bytes_read'] / MIB:.0f} MiB, one content in {one_in}: "
                f"{taken['bytes_read'] / taken['read_seconds'] / 1e6:.0f} MB/s, "
                f"{taken['bytes_read'] / spent / 1e6:.0f} by CPU time (looking and counting too), "
                f"own memory at most {highest / MIB:.0f} MiB"
            )
    finally:
        for process in processes:
            process.end()


# As many mappings as QEMU 7.2 has with a guest of 512 MiB, and pages that are mapped; no memory of its own.
MAPPINGS, MAPPED_BYTES = 460, 512 * MIB
MACHINE = """
import mmap, os, signal, sys
descriptor, size, number = map(int, sys.argv[1:4])
memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
for at in range(0, size, mmap.PAGESIZE):
    memory[at]
# Neighbours that differ stay mappings of their own.
rights = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
have = len(open("/proc/self/maps").readlines())
more = [mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=rights[n % 2])
        for n in range(number - have)]
os.write(1, b".")
signal.pause()
"""


def survey_seconds(number: int) -> None:
    """A survey of so many processes that have QEMU's name, and maps as large as a real machine's."""
    memory = os.memfd_create("machine")
    os.ftruncate(memory, MAPPED_BYTES)
    for at in range(0, MAPPED_BYTES, MIB):
        os.pwrite(memory, bytes(MIB), at)
    command = ["qemu-system-x86_64", "-c", MACHINE, *map(str, (memory, MAPPED_BYTES, MAPPINGS)), "-m", "512"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(number):
            started.append(
                subprocess.Popen(
                    command, executable=sys.executable, pass_fds=[memory], stdout=subprocess.PIPE
                )
            )
        for process in started:
            assert process.stdout and process.stdout.read(1)
        maps = len(Path(f"/proc/{started[0].pid}/maps").read_text().splitlines())
        begin, cpu = time.perf_counter(), time.process_time()
        seen = host_survey.survey(Roots())
        print(
            f"survey of {len(seen['machines'])} machines, each with {maps} mappings and "
            f"{MAPPED_BYTES / MIB:.0f} MiB mapped: {time.perf_counter() - begin:.2f} s, "
            f"{time.process_time() - cpu:.2f} of CPU"
        )
    finally:
        os.close(memory)
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait()


def sample(record: CensusRecord, random: np.random.Generator) -> SurveyedPages:
    """A sample of the contents of a census, as a survey takes it: each content gets a hash."""
    table = record.observed.contents
    number = np.array(table.contents)
    held, copies = (np.repeat(column, number) for column in (table.guests, table.copies))
    hashes = random.integers(2, 2**64, len(held), dtype=np.uint64, endpoint=False)
    looked = random.binomial(copies, 1 / page_sampling.LOOK_ONE_IN)
    keep = page_sampling.keep_of([np.repeat(hashes, looked)], 1, ONE_IN)
    always = keep.is_always(hashes)
    chance = keep.mask(hashes) & ~always
    guests = record.observed.guests.values()
    return SurveyedPages(
        SurveyCensus(
            one_in=ONE_IN,
            cpu_percent=100,
            processes=1,
            paused=False,
            machines=tuple(
                CountedMachine(
                    pid=guest.pid,
                    resident_pages=guest.resident_pages,
                    zero_pages=guest.zero_pages,
                    zero_huge_pages=0,
                    zero_mapped_pages=0,
                    swapped_pages=0,
                )
                for guest in guests
            ),
            strata=tuple(
                stratum(held[mine], copies[mine], one_in, len(guests))
                for mine, one_in in ((always, 1), (chance, ONE_IN))
            ),
            look_one_in=page_sampling.LOOK_ONE_IN,
            looked_pages=1,
            changed_pages=0,
            bytes_read=0,
            read_seconds=0.0,
            seconds=0.0,
        ),
        max_page_sharing=record.provenance.max_page_sharing,
        use_zero_pages=record.provenance.use_zero_pages,
    )


def stratum(held: "np.ndarray", copies: "np.ndarray", one_in: int, guests: int) -> Stratum:
    """A table of these contents; what machines share with which is not known, and not asked for."""
    kinds, number = np.unique(np.stack([held, copies]), axis=1, return_counts=True)
    nothing = (0,) * guests
    return Stratum(
        one_in=one_in,
        contents=ContentsTable(
            guests=tuple(kinds[0].tolist()), copies=tuple(kinds[1].tolist()), contents=tuple(number.tolist())
        ),
        alone_pages=nothing,
        shared_contents=(nothing,) * guests,
    )


def coverage() -> None:
    """How often a sample's interval has the whole census' ideal saving in it."""
    paths = sorted(
        path for name in RECORDED for path in (PROJECT / "results/reference" / name).rglob("census.json")
    )
    inside_all = 0
    for path in paths:
        record = read_record(path, CensusRecord)
        whole = from_record(record).saving().ideal_pages
        random = np.random.default_rng(1)
        drawn = [sample(record, random).saving().ideal for _ in range(DRAWS)]
        inside = sum(one.low_pages <= whole <= one.high_pages for one in drawn)
        worst = max(abs(one.pages / whole - 1) for one in drawn)
        half = float(np.mean([one.half_width_pages for one in drawn])) / whole
        inside_all += inside
        print(
            f"{path.parent.relative_to(PROJECT / 'results/reference')}: {whole * 4096 / MIB:.0f} MiB ideal, "
            f"± {half:.2%} on the mean, in the interval {inside} of {DRAWS}, at worst {worst:.2%} off"
        )
    print(f"in the interval: {inside_all} of {DRAWS * len(paths)} draws")


def main() -> None:
    """Print all three."""
    each, number, machines = (
        int(word) for word in (*sys.argv[1:], *("512", "4", "100")[len(sys.argv) - 1 :])
    )
    censuses(each * MIB, number)
    survey_seconds(machines)
    coverage()


if __name__ == "__main__":
    main()
