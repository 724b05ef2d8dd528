"""How fast the census reads, beside memcpy, xxh3 and reading alone in the same run; no guest is needed.

The parts are measured by CPU time, which other programs move least; the census also by the clock.

It makes processes with known pages itself: half are random, a quarter is in all of them, a quarter is zeros.
Usage: python benchmarks/census.py [MIB_EACH [PROCESSES]]
"""

import ctypes
import mmap
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import ClassVar

import ansible.module_utils
import numpy as np
import xxhash

ansible.module_utils.__path__.append(str(Path(__file__).parents[1] / "plugins/module_utils"))

from ansible.module_utils import page_census, page_tally  # noqa: E402 -- found in the role by the line above

MIB = 1 << 20
ROUNDS = 3


class Synthetic:
    """A process whose memory is filled and stays as it is."""

    def __init__(self, number: int, size_bytes: int) -> None:
        """Fork it; returns when its memory is full."""
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        area = page_census.Area(address, address + size_bytes)
        self.layout = page_census.Layout((area,), size_bytes)
        ready, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            words = np.frombuffer(memory, dtype=np.uint64)
            half, quarter = len(words) // 2, len(words) // 4
            words[:half] = np.random.default_rng(number).integers(1, 2**63, half, dtype=np.uint64)
            words[half : half + quarter] = np.random.default_rng(0).integers(
                1, 2**63, quarter, dtype=np.uint64
            )
            words[half + quarter :] = 0
            os.write(told, b".")
            signal.pause()
        os.close(told)
        os.read(ready, 1)
        os.close(ready)

    def end(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class OwnMemory:
    """The highest sum of PSS over this process and its workers, looked at ten times a second."""

    def __init__(self, other_pids: set[int]) -> None:
        """Begin to look."""
        self._others = other_pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.highest_bytes = 0
        self._thread.start()

    def stop(self) -> int:
        """End; the highest sum in bytes."""
        self._ended.set()
        self._thread.join()
        return self.highest_bytes

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            pids = {os.getpid(), *map(int, children)} - self._others
            self.highest_bytes = max(self.highest_bytes, sum(map(pss_bytes, pids)))


def pss_bytes(pid: int) -> int:
    """PSS of a process; 0 when it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def cpu_seconds() -> float:
    """CPU time of this process and of children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def gigabytes_per_second(size_bytes: int, work: Callable[[], object]) -> float:
    """By CPU time, the best of ROUNDS: what others do on the host counts least."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return size_bytes / best / 1e9


def read_alone(guest: Synthetic) -> None:
    """Read all memory as the census does, without hashing."""
    memory = os.open(f"/proc/{guest.pid}/mem", os.O_RDONLY)
    buffer = memoryview(mmap.mmap(-1, page_census.BUFFER_BYTES))
    for area in guest.layout.areas:
        for address in range(area.start, area.end, page_census.BUFFER_BYTES):
            os.preadv(memory, [buffer], address)
    os.close(memory)


class _Range(ctypes.Structure):
    _fields_: ClassVar = [("start", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


def read_pinned(guest: Synthetic) -> None:
    """The same by process_vm_readv, which would take merged pages apart: a limit, and no way to do it."""
    buffer = mmap.mmap(-1, page_census.BUFFER_BYTES)
    into = _Range(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer))
    read = ctypes.CDLL(None).process_vm_readv
    for area in guest.layout.areas:
        for address in range(area.start, area.end, len(buffer)):
            length = min(len(buffer), area.end - address)
            read(guest.pid, ctypes.byref(into), 1, ctypes.byref(_Range(address, length)), 1, 0)


def parts(size_bytes: int, guest: Synthetic) -> dict[str, float]:
    """GB/s of CPU time of what a census is made of; buffers of size_bytes are far larger than the caches."""
    source = mmap.mmap(-1, size_bytes)
    source.write(np.random.default_rng(9).bytes(size_bytes))
    target = memoryview(mmap.mmap(-1, size_bytes))
    target[:] = source
    block = memoryview(source)[: page_census.BUFFER_BYTES]
    views = [block[at : at + page_census.PAGE_BYTES] for at in range(0, len(block), page_census.PAGE_BYTES)]

    def copy() -> None:
        target[:] = source

    def hash_pages() -> None:
        for _ in range(size_bytes // len(block)):
            b"".join(map(xxhash.xxh3_64_digest, views, repeat(1)))

    return {
        "memcpy, one buffer": gigabytes_per_second(size_bytes, copy),
        "xxh3_64, one buffer": gigabytes_per_second(size_bytes, lambda: xxhash.xxh3_64_intdigest(source, 1)),
        "xxh3_64, a page a call, in cache": gigabytes_per_second(size_bytes, hash_pages),
        "/proc/PID/mem read, not hashed": gigabytes_per_second(size_bytes, lambda: read_alone(guest)),
        "process_vm_readv, not hashed": gigabytes_per_second(size_bytes, lambda: read_pinned(guest)),
    }


def main() -> None:
    """Measure the parts, then the census with one process and with all."""
    each_bytes = (int(sys.argv[1]) if len(sys.argv) > 1 else 256) * MIB
    number = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    guests = [Synthetic(n + 1, each_bytes) for n in range(number)]
    pids, layouts = [guest.pid for guest in guests], [guest.layout for guest in guests]
    try:
        for name, speed in parts(each_bytes, guests[0]).items():
            print(f"{name:34}{speed:6.2f} GB/s of CPU time")
        for processes in sorted({1, len(os.sched_getaffinity(0))}):
            own = OwnMemory(set(pids))
            best = by_cpu = 0.0
            for _ in range(ROUNDS):
                cpu = cpu_seconds()
                with page_census.Reader(pids, layouts, processes=processes, close=None) as reader:
                    reading = reader.read(lambda _bytes: None, frames_of=reader.known["zero"])
                best = max(best, reading.bytes_read / reading.seconds / 1e9)
                by_cpu = max(by_cpu, reading.bytes_read / (cpu_seconds() - cpu) / 1e9)
            begin = time.perf_counter()
            equal = page_tally.tally([counted.hashes for counted in reading.counted], reading.known["zero"])
            seconds = time.perf_counter() - begin
            highest = own.stop()
            pages = each_bytes // page_census.PAGE_BYTES
            assert equal.zero_pages == (pages // 4,) * number
            assert sum(contents for _, _, contents in equal.contents) == number * (pages // 2) + pages // 4
            name = f"census, {processes} process" + "es" * (processes > 1)
            print(
                f"{name:34}{best:6.2f} GB/s, {by_cpu:.2f} by CPU time; {number * each_bytes / MIB:.0f} MiB, "
                f"counted in {seconds:.2f} s, own memory at most {highest / MIB:.0f} MiB"
            )
    finally:
        for guest in guests:
            guest.end()


if __name__ == "__main__":
    main()
