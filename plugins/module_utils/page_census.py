"""Hash the resident pages of processes; contents are not kept.

Pages are read through /proc/PID/mem. process_vm_readv would be faster, and change what it measures: it pins
pages (FOLL_PIN), and a page that is pinned for reading and not its owner's alone is copied first (mm/gup.c,
gup_must_unshare), so that each merged page would come apart. Absent pages are never touched: reading one
would map the zero page there. What KSM has merged is told by the pages' frames: their numbers in
/proc/PID/pagemap, and what these are in /proc/kpageflags; both are for root alone.
Sources: Documentation/admin-guide/mm/pagemap.rst, Documentation/filesystems/proc.rst (smaps, mem).
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from ansible.module_utils.page_sampling import Keep, Look

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
HASH_BYTES = 8
# Within the second-level cache, so that hashing finds there what reading left.
BUFFER_BYTES = 1 << 20
TASK_BYTES = 64 << 20
TASK_PAGES = TASK_BYTES // PAGE_BYTES
KIB = 1024
PAGEMAP_PRESENT = 1 << 63
PAGEMAP_SWAPPED = 1 << 62
PAGEMAP_FILE_OR_SHARED = 1 << 61
PAGEMAP_FRAME = (1 << 55) - 1
KPAGEFLAGS = "/proc/kpageflags"
FLAGS_BYTES = 8
KPF_KSM = 1 << 21
KPF_THP = 1 << 22
KPF_ZERO_PAGE = 1 << 24
# Frames whose flags are read at once: half a MiB of them
FRAMES_AT_ONCE = 1 << 16
# The kernel takes as long for the flags of so many frames as reading once more takes here.
FRAMES_GAP = 64
PR_SET_PDEATHSIG = 1
# Pages of one byte each whose origin is known
KNOWN_BYTES = {
    "zero": b"\0",
    # What the program in the guests writes for `constant` (roles/guests/files/testbed_workload.py)
    "constant_fill": b"\xa5",
    # What a Linux guest writes over what it frees of its own start (POISON_FREE_INITMEM, linux/poison.h)
    "kernel_init": b"\xcc",
}

Hashes = npt.NDArray[np.uint64]
Frames = npt.NDArray[np.uint64]


class CensusError(Exception):
    """A census cannot be taken; the message is one sentence for the user."""


@dataclass(frozen=True)
class Area:
    """A mapping of a process that KSM may merge."""

    start: int
    end: int

    @property
    def bytes(self) -> int:
        """Its address space."""
        return self.end - self.start


@dataclass(frozen=True)
class Layout:
    """What /proc/PID/smaps tells of a process: its mergeable mappings and the anonymous memory in them."""

    areas: tuple[Area, ...]
    anonymous_bytes: int

    @property
    def mergeable_bytes(self) -> int:
        """Address space of the mergeable mappings."""
        return sum(area.bytes for area in self.areas)


@dataclass(frozen=True)
class Counted:
    """Pages of one process while it was paused.

    ``hashes`` are those of all present anonymous pages that were kept, the zero page's mappings among them.
    ``frames``: of those of them whose frames were asked for, and their flags as /proc/kpageflags has them.
    """

    hashes: Hashes
    frames: Frames
    flags: Frames
    swapped_pages: int

    @property
    def zero_mapped_pages(self) -> int:
        """Mappings of the kernel's zero page, which take no memory."""
        return int(np.count_nonzero(self.flags & np.uint64(KPF_ZERO_PAGE)))

    @property
    def huge_pages(self) -> int:
        """Those of the frames that are parts of transparent huge pages, but the kernel's own zero page."""
        parts = (self.flags & np.uint64(KPF_THP | KPF_ZERO_PAGE)) == np.uint64(KPF_THP)
        return int(np.count_nonzero(parts))


@dataclass(frozen=True)
class Reading:
    """The hashes of all processes, those of the contents whose origin is known, and what reading cost.

    ``present_pages``: how many of each process were read, kept or not.
    """

    counted: tuple[Counted, ...]
    present_pages: tuple[int, ...]
    known: dict[str, int]
    bytes_read: int
    seconds: float
    processes: int


@dataclass(frozen=True)
class _Task:
    owner: int
    pid: int
    start: int
    pages: int
    place: int


@dataclass(frozen=True)
class _Done:
    """What a task has found; the hashes and frames that it kept lie at its place."""

    kept_pages: int
    kept_frames: int
    present_pages: int
    swapped_pages: int


def parse_smaps(text: str) -> Layout:
    """The mergeable mappings (VmFlags mg) of one /proc/PID/smaps."""
    areas = []
    anonymous_bytes = 0
    start = end = anonymous = 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "Anonymous":
            anonymous = int(value.split()[0]) * KIB
        elif name == "VmFlags":
            if "mg" in value.split():
                areas.append(Area(start, end))
                anonymous_bytes += anonymous
        elif header := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = int(header[1], 16), int(header[2], 16)
    return Layout(tuple(areas), anonymous_bytes)


class Reader:
    """Worker processes and the memory that they share; made before the pause, so that the pause is short."""

    def __init__(
        self,
        pids: Sequence[int],
        layouts: Sequence[Layout],
        *,
        processes: int,
        close: int | None,
        share: float = 1.0,
        seed: int | None = None,
    ) -> None:
        """Start the workers.

        Args:
            pids: the processes to read.
            layouts: their mappings, in the same order.
            processes: number of workers.
            close: a descriptor that the workers must not keep open.
            share: of its time each worker works, the rest it sleeps.
            seed: of the hashes; None: one that nobody else knows.
        """
        self._tasks = list(_tasks(pids, layouts))
        self._owners = len(pids)
        self.processes = max(1, min(processes, len(self._tasks)))
        pages = sum(layout.mergeable_bytes for layout in layouts) // PAGE_BYTES
        # Shared with the workers; what is not written to takes no memory.
        self._hashes, self._frames = (
            np.frombuffer(mmap.mmap(-1, max(1, pages) * HASH_BYTES), dtype=np.uint64) for _ in range(2)
        )
        self._seed = secrets.randbits(64) if seed is None else seed
        self._pool = ProcessPoolExecutor(
            self.processes,
            mp_context=multiprocessing.get_context("fork"),
            initializer=_start_worker,
            initargs=(self._hashes, self._frames, self._seed, share, os.getpid(), close),
        )
        self._guarded(lambda: self._pool.submit(os.getpid).result())

    def __enter__(self) -> Reader:
        """The reader itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """End the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def known(self) -> dict[str, int]:
        """The hashes of the contents whose origin is known."""
        return {
            kind: xxhash.xxh3_64_intdigest(byte * PAGE_BYTES, self._seed)
            for kind, byte in KNOWN_BYTES.items()
        }

    def look(self, one_in: int) -> list[Hashes]:
        """Hash one page in so many, drawn at random and the same at each call, of each process.

        Returns: for each process a hash for each page drawn, ABSENT where none is there. Raises CensusError.
        """
        looks: dict[int, Hashes] = {}

        def gather() -> None:
            futures = {self._pool.submit(_look_task, task, Look(one_in)): task.place for task in self._tasks}
            for future in as_completed(futures):
                looks[futures[future]] = future.result()

        self._guarded(gather)
        return [
            np.concatenate(
                [np.empty(0, np.uint64), *(looks[t.place] for t in self._tasks if t.owner == owner)]
            )
            for owner in range(self._owners)
        ]

    def read(
        self, progress: Callable[[int], None], keep: Keep | None = None, frames_of: int | None = None
    ) -> Reading:
        """Hash every present anonymous page and look what its frame is; good until it is read again.

        Args:
            progress: called with the bytes read so far, now and then.
            keep: which hashes are kept; None: all.
            frames_of: the one hash whose frames are asked for, as the kernel takes long to tell of many;
                None: all that are kept.

        Raises:
            CensusError: a process ended, or a worker did; or this is not root.
        """
        begin = time.monotonic()
        done: dict[int, _Done] = {}

        def gather() -> None:
            futures = {
                self._pool.submit(_hash_task, task, keep, frames_of): task.place for task in self._tasks
            }
            for future in as_completed(futures):
                done[futures[future]] = future.result()
                progress(sum(one.present_pages for one in done.values()) * PAGE_BYTES)

        self._guarded(gather)
        hashes = self._closed_up(self._hashes, {place: one.kept_pages for place, one in done.items()})
        frames = self._closed_up(self._frames, {place: one.kept_frames for place, one in done.items()})
        flags = frame_flags(frames)
        seconds = time.monotonic() - begin
        return Reading(
            counted=tuple(
                Counted(
                    hashes=hashes[owner],
                    frames=frames[owner],
                    flags=flags[owner],
                    swapped_pages=sum(done[t.place].swapped_pages for t in self._tasks if t.owner == owner),
                )
                for owner in range(self._owners)
            ),
            present_pages=tuple(
                sum(done[task.place].present_pages for task in self._tasks if task.owner == owner)
                for owner in range(self._owners)
            ),
            known=self.known,
            bytes_read=sum(one.present_pages for one in done.values()) * PAGE_BYTES,
            seconds=seconds,
            processes=self.processes,
        )

    def _closed_up(self, numbers: Frames, kept: dict[int, int]) -> list[Frames]:
        """The numbers of each process, moved together where they lie: a copy takes as much memory again."""
        ends = [0] * (self._owners + 1)
        end = 0
        for task in self._tasks:
            number = kept[task.place]
            numbers[end : end + number] = numbers[task.place : task.place + number]
            end += number
            ends[task.owner + 1] = end
        # A process without mergeable memory has no task.
        ends = list(accumulate(ends, max))
        return [numbers[first:last] for first, last in pairwise(ends)]

    @staticmethod
    def _guarded(work: Callable[[], Any]) -> None:
        try:
            work()
        except BrokenProcessPool:
            raise CensusError("a worker of the census was killed; is the host out of memory?") from None


def frame_flags(frames: Sequence[Frames], path: str = KPAGEFLAGS) -> list[Frames]:
    """The flags of each frame; CensusError where they cannot be read."""
    numbers, places = np.unique(np.concatenate([*frames, np.empty(0, np.uint64)]), return_inverse=True)
    flags = np.empty(len(numbers), np.uint64)
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for first, after in pairwise(_runs(numbers)):
                start = int(numbers[first])
                length = int(numbers[after - 1]) + 1 - start
                read = np.frombuffer(
                    os.pread(descriptor, length * FLAGS_BYTES, start * FLAGS_BYTES), np.uint64
                )
                if len(read) != length:
                    raise CensusError(f"{path} ends before frame {start + length - 1}")
                flags[first:after] = read[(numbers[first:after] - np.uint64(start)).astype(np.int64)]
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CensusError(f"{path} cannot be read: {error.strerror}; a census needs root") from None
    ends = np.cumsum([len(mine) for mine in frames])[:-1]
    return np.split(flags[places], ends)


def _runs(numbers: Frames) -> list[int]:
    """Where frames, ascending, are split: what is read at once is not long and has no wide gap in it."""
    if not len(numbers):
        return []
    places = numbers // np.uint64(FRAMES_AT_ONCE)
    splits = (np.diff(numbers) > np.uint64(FRAMES_GAP)) | (np.diff(places) > 0)
    return [0, *(np.flatnonzero(splits) + 1).tolist(), len(numbers)]


def _tasks(pids: Sequence[int], layouts: Sequence[Layout]) -> Iterator[_Task]:
    place = 0
    for owner, (pid, layout) in enumerate(zip(pids, layouts, strict=True)):
        for area in layout.areas:
            for start in range(area.start, area.end, TASK_BYTES):
                pages = (min(start + TASK_BYTES, area.end) - start) // PAGE_BYTES
                yield _Task(owner, pid, start, pages, place)
                place += pages


@dataclass(frozen=True)
class _Worker:
    """What one worker process keeps: its buffer, a view of each page in it, and where its numbers go.

    ``found``: the hashes of the task that it is at, of which it keeps all or some.
    """

    hashes: Hashes
    frames: Frames
    found: Hashes
    seed: int
    share: float
    buffer: memoryview
    pages: tuple[memoryview, ...]


_worker: _Worker


def _start_worker(  # noqa: PLR0917 -- a pool's initializer takes no names
    hashes: Hashes, frames: Frames, seed: int, share: float, parent: int, close: int | None
) -> None:
    global _worker  # noqa: PLW0603 -- a worker process has one state, made once
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that is killed outright must not leave workers, which would hold its pipes open.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    if close is not None:
        os.close(close)
    buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))
    pages = tuple(buffer[at : at + PAGE_BYTES] for at in range(0, BUFFER_BYTES, PAGE_BYTES))
    _worker = _Worker(hashes, frames, np.empty(TASK_PAGES, np.uint64), seed, share, buffer, pages)


def _hash_task(task: _Task, keep: Keep | None, frames_of: int | None) -> _Done:
    """Hash the present anonymous pages of a range and note frames of theirs."""
    begin = time.process_time()
    entries = _entries(task)
    present = _present(entries)
    found = _hash_pages(task, present)
    frames = entries[present] & np.uint64(PAGEMAP_FRAME)
    if keep is not None:
        kept = keep.mask(found)
        found, frames = found[kept], frames[kept]
    if frames_of is not None:
        frames = frames[found == np.uint64(frames_of)]
    _worker.hashes[task.place : task.place + len(found)] = found
    _worker.frames[task.place : task.place + len(frames)] = frames
    _rest(begin)
    return _Done(
        len(found),
        len(frames),
        int(np.count_nonzero(present)),
        int(np.count_nonzero(entries & np.uint64(PAGEMAP_SWAPPED))),
    )


def _look_task(task: _Task, look: Look) -> Hashes:
    """Hash the pages of a range that are drawn; ABSENT for those that are not present."""
    begin = time.process_time()
    drawn = look.drawn(_worker.seed, task.place, task.pages)
    present = _present(_entries(task))
    numbers: Hashes = look.numbers(drawn, present, _hash_pages(task, present & drawn))
    _rest(begin)
    return numbers


def _rest(begin: float) -> None:
    """Sleep for as long as is due after working since then (CPU seconds of this process)."""
    if _worker.share < 1:
        time.sleep((time.process_time() - begin) * (1 / _worker.share - 1))


def _present(entries: Hashes) -> npt.NDArray[np.bool_]:
    mask = np.uint64(PAGEMAP_PRESENT | PAGEMAP_FILE_OR_SHARED)
    present: npt.NDArray[np.bool_] = (entries & mask) == np.uint64(PAGEMAP_PRESENT)
    return present


def _entries(task: _Task) -> Hashes:
    """What /proc/PID/pagemap says of each page of a range."""
    with _readable(task, "pagemap") as pagemap:
        entries = os.pread(pagemap, task.pages * HASH_BYTES, task.start // PAGE_BYTES * HASH_BYTES)
    numbers = np.frombuffer(entries, dtype=np.uint64)
    if len(numbers) != task.pages:
        raise CensusError(f"process {task.pid} ended or changed its memory while it was read")
    return numbers


@contextmanager
def _readable(task: _Task, name: str) -> Iterator[int]:
    try:
        descriptor = os.open(f"/proc/{task.pid}/{name}", os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        # Pickled to the parent: an OSError of its own would lose its sentence.
        raise CensusError(f"the memory of process {task.pid} cannot be read: {error.strerror}") from None


def _hash_pages(task: _Task, chosen: npt.NDArray[np.bool_]) -> Hashes:
    """The hashes of the chosen pages of a range, in their order; good until the next call."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    hashed = filled = 0
    with _readable(task, "mem") as memory:
        for first, last in edges.reshape(-1, 2).tolist():
            page = first
            while page < last:
                room = min(last - page, len(_worker.pages) - filled)
                _read(memory, _worker.buffer[filled * PAGE_BYTES : (filled + room) * PAGE_BYTES], task, page)
                page += room
                filled += room
                if filled == len(_worker.pages):
                    hashed = _hash_buffer(hashed, filled)
                    filled = 0
        hashed = _hash_buffer(hashed, filled)
    return _worker.found[:hashed]


def _read(memory: int, into: memoryview, task: _Task, page: int) -> None:
    address = task.start + page * PAGE_BYTES
    while into:
        length = os.preadv(memory, [into], address)
        if length == 0:
            raise CensusError(f"process {task.pid} ended or changed its memory while it was read")
        into = into[length:]
        address += length


def _hash_buffer(hashed: int, pages: int) -> int:
    """Hash the first pages of the buffer after so many of the task; the number with them.

    One C call for each page and no bytecode between: in python-xxhash a call costs some 80 ns besides the
    hashing, by ctypes 300 ns.
    """
    digests = b"".join(map(xxhash.xxh3_64_digest, _worker.pages[:pages], repeat(_worker.seed)))
    _worker.found[hashed : hashed + pages] = np.frombuffer(digests, dtype=">u8")
    return hashed + pages
