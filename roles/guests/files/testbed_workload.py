#!/usr/bin/python3
"""What a guest does: hold memory of a stated content, locked, and prove later that it is intact.

Runs inside the guest, standard library only (an official cloud image has no more).

    testbed-workload start SPEC              fill, lock, digest; return when all is in place
    testbed-workload verify                  digest the same memory again
    testbed-workload probe SECONDS           measure what a guest's work costs, on the memory held
    testbed-workload diverge                 make each page held differ from every other, as fast as it goes
    testbed-workload stop                    give the memory back
    testbed-workload request ID COMMAND...   any of these, as the hypervisor asks through the serial port

SPEC is one JSON object:
    bytes     memory to hold, a multiple of 1 MiB (0: hold nothing)
    seed      text, distinct in each guest; feeds the content `random`
    segments  [{"content": "zero" | "constant" | "random" | "shared", "percent": 1..100}, ...], in order,
              100 in all; empty when bytes is 0. With "rewrite_pages_per_second" pages of that segment are
              written to so often, from the end of the fill on but for while a command is answered

SECONDS is a number from 1 to 600, what the whole probe takes. It answers
    write_latency_p50_us, write_latency_p99_us  one write to one page; the clock's own cost is subtracted, the
                                                interpreter's is not
    touch_mib_per_second                        one pass over distinct pages, writing a byte in each
    cpu_iterations_per_second                   CRC-32s of 64 KiB
Rewriting keeps half of the segment's pages different from every other page: so many as are changed are
turned back at the same time. verify finds them turned back, and answers rewritten_pages_per_second too.

A probe writes to at most 16 MiB of the memory held, once to each page, and only the byte that is there:
the content stays, a page that was merged gets a copy of its own, and KSM can merge it again.

diverge writes 16 bytes into each page, as large as this guest's are: a mark of the seed, so that two guests
differ, and the page's number. It answers written_bytes (pages x page size), seconds, the latencies as above
(of each 16th page), touch_mib_per_second (memory made different), cpu_iterations_per_second (null: none is
done) and the new digest, which a later verify finds again.

Each command prints one JSON object on standard output. An error is one sentence on standard error and exit
code 1. The answer to a request is one object with its id and either answer, what the command prints, or
error, and the exit code is 0.
TESTBED_WORKLOAD_SOCKET names another socket than /run/testbed-workload.sock, for tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:  # an import of typing costs CPU time in every emulated guest
    from collections.abc import Callable, Iterator
    from typing import Any

CHUNK_BYTES = 1 << 20
PAGE_BYTES = mmap.PAGESIZE
CHUNK_PAGES = CHUNK_BYTES // PAGE_BYTES
USAGE = "usage: testbed-workload start SPEC | verify | probe SECONDS | diverge | stop"
SOCKET_PATH = os.environ.get("TESTBED_WORKLOAD_SOCKET", "/run/testbed-workload.sock")
CONSTANT_BYTE = b"\xa5"
CONTENTS = ("zero", "constant", "random", "shared")
# What a probe writes to, and so takes from KSM's saving: a quarter for the latency, the rest for the touch.
PROBE_BYTES = 16 << 20
PROBE_LEAST_PAGES = 512  # 128 latencies, so that the 99th percentile is not the greatest of them
PROBE_ROUNDS = 16
CPU_BLOCK_BYTES = 64 << 10
REWRITE_SECONDS = 0.1  # between two bursts of writes
MOST_REWRITES = 1_000_000  # pages a second
DIVERGE_GROUP = 16  # pages of which the first is timed by itself; divides the pages of 1 MiB


class WorkloadError(Exception):
    """What the caller asked for can't be done; the text is the message."""


def chunk_contents(content: str, seed: str) -> Callable[[int], bytes]:
    """Return a function: chunk number -> CHUNK_BYTES bytes of that content."""
    if content == "zero":
        block = bytes(CHUNK_BYTES)
        return lambda number: block
    if content == "constant":
        block = CONSTANT_BYTE * CHUNK_BYTES
        return lambda number: block
    if content == "random":  # differs from page to page and from guest to guest
        return lambda number: hashlib.shake_128(f"{seed}:{number}".encode()).digest(CHUNK_BYTES)
    # shared: differs from page to page, the same in every guest
    return lambda number: hashlib.shake_128(f"shared:{number}".encode()).digest(CHUNK_BYTES)


def checked(text: str) -> dict[str, Any]:
    """Return a SPEC that can be filled, or refuse it in one sentence."""
    try:
        spec = json.loads(text)
    except ValueError:
        raise WorkloadError(f"SPEC is {text!r}, and must be one JSON object") from None
    if not isinstance(spec, dict) or set(spec) != {"bytes", "seed", "segments"}:
        raise WorkloadError(f"SPEC is {text}, and must be an object with bytes, seed and segments")
    size, seed, segments = spec["bytes"], spec["seed"], spec["segments"]
    if type(size) is not int or size < 0 or size % CHUNK_BYTES:
        raise WorkloadError(f"bytes is {size!r}, and must be a multiple of {CHUNK_BYTES}, or 0")
    if not isinstance(seed, str):
        raise WorkloadError(f"seed is {seed!r}, and must be text")
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise WorkloadError(f"segments is {segments!r}, and must be a list of content and percent")
    for segment in segments:
        content, percent = segment.get("content"), segment.get("percent")
        rate = segment.get("rewrite_pages_per_second", 1)
        if content not in CONTENTS:
            raise WorkloadError(f"content is {content!r}, and must be one of {', '.join(CONTENTS)}")
        if type(percent) is not int or not 1 <= percent <= 100:
            raise WorkloadError(f"percent is {percent!r}, and must be a whole number from 1 to 100")
        if type(rate) is not int or not 1 <= rate <= MOST_REWRITES:
            raise WorkloadError(f"rewrite_pages_per_second is {rate!r}, and must be a whole number "
                                f"from 1 to {MOST_REWRITES}")
    if (size or segments) and sum(segment["percent"] for segment in segments) != 100:
        raise WorkloadError("the segments' percents must add up to 100")
    return spec


def layout(spec: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return [(content, first chunk, last chunk + 1), ...] for a checked SPEC."""
    chunks, parts, first, share = spec["bytes"] // CHUNK_BYTES, [], 0, 0
    for segment in spec["segments"]:
        share += segment["percent"]
        end = chunks * share // 100
        parts.append((segment["content"], first, end))
        first = end
    return parts


def checked_seconds(text: str) -> str:
    """Return SECONDS of a probe, or refuse it in one sentence."""
    try:
        fits = 1 <= float(text) <= 600
    except ValueError:
        fits = False
    if not fits:
        raise WorkloadError(f"SECONDS is {text!r}, and must be a number from 1 to 600")
    return text.strip()


def clock_cost(clock: Callable[[], int]) -> int:
    """Return the nanoseconds between two readings of the clock, in an emulated guest more than a write's."""
    costs = []
    for _ in range(101):
        began = clock()
        costs.append(clock() - began)
    return percentile(costs, 50)


def percentile(values: list[int], percent: int) -> int:
    """Return the percentile by nearest rank: one of the values, none made up."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]


def latencies(took: list[int], cost: int) -> dict[str, float]:
    """Return the percentiles, in microseconds, of writes timed in nanoseconds by a clock of that cost."""
    return {f"write_latency_p{percent}_us": max(0, percentile(took, percent) - cost) / 1000
            for percent in (50, 99)}


def probe_pages(held: int, number: int) -> range:
    """Return the pages of `held` that the probe of this number writes to.

    Every stride-th page, at most PROBE_BYTES in all; the next probe takes their neighbours. So the pages are
    spread over all segments, and none is written to again until `stride` probes later, when KSM has had the
    time to merge it.
    """
    stride = -(-held * PAGE_BYTES // PROBE_BYTES)
    return range(number % stride, held, stride)


def seed_mark(seed: str) -> int:
    """Return the 8 bytes, as a number, that tell this guest's pages from those of every other guest."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], sys.byteorder)


class Rewriting:
    """Pages that are written to all the time; half of them, a window that moves on, are turned.

    A page is turned by a mask that no other page of any guest has, and turning it once more gives back what
    was there.
    """

    def __init__(self, memory: mmap.mmap, pages: range, pages_per_second: int, mark: int) -> None:
        self.words = memoryview(memory).cast("Q")
        self.pages = pages
        self.pages_per_second = pages_per_second
        self.mark = mark
        self.first = 0  # of the window
        self.length = len(pages) // 2
        self.due = 0.0  # pages to write to

    def turn(self, number: int) -> None:
        page = self.pages[number % len(self.pages)]
        self.words[page * (PAGE_BYTES // 8)] ^= self.mark ^ (page + 1)

    def turn_window(self) -> None:
        """Turn the window: back where it was turned."""
        for number in range(self.first, self.first + self.length):
            self.turn(number)

    def go_on(self, seconds: float) -> int:
        """Write to as many pages as are due after so many seconds: the window moves on. Return how many."""
        self.due += self.pages_per_second * seconds
        steps = int(self.due) // 2
        for _ in range(steps):
            self.turn(self.first + self.length)
            self.turn(self.first)
            self.first = (self.first + 1) % len(self.pages)
        self.due -= 2 * steps
        return 2 * steps


class Holder:
    """The memory held: filled chunk by chunk, locked, with one CRC-32 a chunk folded into a digest."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.size: int = spec["bytes"]
        self.seed: str = spec["seed"]
        self.parts = layout(spec)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.memory = mmap.mmap(-1, self.size, flags=flags) if self.size else None
        self.probes = 0
        self.rewritings: list[Rewriting] = []
        for segment, (_content, first, last) in zip(spec["segments"], self.parts, strict=True):
            if "rewrite_pages_per_second" in segment and last > first and self.memory is not None:
                pages = range(first * CHUNK_PAGES, last * CHUNK_PAGES)
                rate = segment["rewrite_pages_per_second"]
                self.rewritings.append(Rewriting(self.memory, pages, rate, seed_mark(self.seed)))
        self.rewritten = 0
        self.rewriting_since = self.rewritten_until = 0.0

    def begin_rewriting(self) -> None:
        """Turn half of the pages that are to be rewritten; from now on rewrite() has to be called."""
        for one in self.rewritings:
            one.turn_window()
        self.rewriting_since = self.rewritten_until = time.monotonic()

    def rewrite(self) -> None:
        """Write to what is due; after a pause of more than a second to what is due in one."""
        now = time.monotonic()
        seconds = min(now - self.rewritten_until, 1.0)
        self.rewritten_until = now
        self.rewritten += sum(one.go_on(seconds) for one in self.rewritings)

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """For so long the memory is what was filled."""
        for one in self.rewritings:
            one.turn_window()
        try:
            yield
        finally:
            for one in self.rewritings:
                one.turn_window()

    def fill(self) -> None:
        if self.memory is None:
            return
        for content, first, last in self.parts:
            make = chunk_contents(content, self.seed)
            for number in range(first, last):
                self.memory[number * CHUNK_BYTES:(number + 1) * CHUNK_BYTES] = make(number)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mlockall.argtypes = [ctypes.c_int]
        if libc.mlockall(3):  # MCL_CURRENT | MCL_FUTURE
            raise WorkloadError(f"locking {self.size} bytes failed: {os.strerror(ctypes.get_errno())}")

    def digest(self) -> str:
        """Return the SHA-256 of all chunks' CRC-32s: 15 emulated guests digest in seconds, not minutes.

        Empty where nothing is held.
        """
        if self.memory is None:
            return ""
        outer = hashlib.sha256()
        view = memoryview(self.memory)
        for start in range(0, self.size, CHUNK_BYTES):
            outer.update(zlib.crc32(view[start:start + CHUNK_BYTES]).to_bytes(4, "little"))
        return f"crc32-sha256:{outer.hexdigest()}"

    def verify(self) -> dict[str, Any]:
        rate = self.rewritten / max(self.rewritten_until - self.rewriting_since, REWRITE_SECONDS)
        rewritten = {"rewritten_pages_per_second": rate} if self.rewritings else {}
        return {"filled_bytes": self.size, "digest": self.digest(), **rewritten}

    def probe(self, seconds: str) -> dict[str, Any]:
        """Return the latency of writes, the throughput of touching memory and that of the CPU.

        The three take turns in PROBE_ROUNDS rounds, so that each sees the whole time, not one moment of it.
        Each page is written once: only the first write pays for the copy of a merged page. What the writes
        leave of a round is CPU work, a third of the round at least. Writes so slow that the time is over
        before the rounds are end the probe with fewer pages.
        """
        held = self.size // PAGE_BYTES
        memory = self.memory
        if memory is None or held < PROBE_LEAST_PAGES:
            least = PROBE_LEAST_PAGES * PAGE_BYTES
            raise WorkloadError(f"a probe needs at least {least} bytes of memory held, "
                                f"and this guest holds {self.size}")
        pages = probe_pages(held, self.probes)
        self.probes += 1
        clock, crc32, block = time.perf_counter_ns, zlib.crc32, bytes(CPU_BLOCK_BYTES)
        cost = clock_cost(clock)
        took: list[int] = []
        touched = touch_ns = iterations = cpu_ns = 0
        length = int(float(seconds) * 1e9) // PROBE_ROUNDS
        began = now = clock()
        for number in range(PROBE_ROUNDS):
            if now - began >= length * PROBE_ROUNDS:
                break
            first, last = (len(pages) * edge // PROBE_ROUNDS for edge in (number, number + 1))
            middle = first + (last - first) // 4
            for page in pages[first:middle]:
                at = page * PAGE_BYTES
                start = clock()
                memory[at] = memory[at]  # timed with the reading, which a page swapped out waits for
                took.append(clock() - start)
            touch = pages[middle:last]
            span = slice(touch.start * PAGE_BYTES, touch.stop * PAGE_BYTES, touch.step * PAGE_BYTES)
            start = clock()
            memory[span] = memory[span]
            now = clock()
            touched += len(touch)
            touch_ns += max(1, now - start - cost)
            start, end = now, max(began + length * (number + 1), now + length // 3)
            while now < end:
                crc32(block)
                iterations += 1
                now = clock()
            cpu_ns += now - start
        return {
            **latencies(took, cost),
            "touch_mib_per_second": touched * PAGE_BYTES / (1 << 20) / (touch_ns / 1e9),
            "cpu_iterations_per_second": iterations / (cpu_ns / 1e9),
        }

    def diverge(self) -> dict[str, Any]:
        """Write a distinct stamp into each page: the copy-on-write storm of a guest whose pages were merged.

        One write of each DIVERGE_GROUP is timed by itself; the others go as one strided write, since in an
        emulated guest the interpreter would slow the storm down.
        """
        memory = self.memory
        if memory is None:
            raise WorkloadError("this guest holds no memory that could diverge")
        clock, pack, step, mark = time.perf_counter_ns, struct.pack, PAGE_BYTES // 8, seed_mark(self.seed)
        others = f"{DIVERGE_GROUP - 1}Q"
        marks = memoryview(pack(others, *[mark] * (DIVERGE_GROUP - 1))).cast("Q")
        cost = clock_cost(clock)
        took: list[int] = []
        with memoryview(memory).cast("Q") as words:
            began = clock()
            for page in range(0, self.size // PAGE_BYTES, DIVERGE_GROUP):
                at, stamp = page * PAGE_BYTES, pack("QQ", mark, page)
                start = clock()
                memory[at:at + 16] = stamp
                took.append(clock() - start)
                first, end = (page + 1) * step, (page + DIVERGE_GROUP) * step
                numbers = pack(others, *range(page + 1, page + DIVERGE_GROUP))
                words[first:end:step] = marks
                words[first + 1:end + 1:step] = memoryview(numbers).cast("Q")
            seconds = (clock() - began) / 1e9
        return {
            "written_bytes": self.size, "seconds": seconds, **latencies(took, cost),
            "touch_mib_per_second": self.size / (1 << 20) / seconds, "cpu_iterations_per_second": None,
            "digest": self.digest(),
        }

    def stop(self) -> dict[str, Any]:
        os.unlink(SOCKET_PATH)
        return {"stopped": True}


# What the holder can be asked: the first word of a request; the words that follow are the arguments.
ANSWERS: dict[str, Callable[..., dict[str, Any]]] = {
    "verify": Holder.verify, "probe": Holder.probe, "diverge": Holder.diverge, "stop": Holder.stop,
}


def serve_one(client: socket.socket, holder: Holder) -> str:
    """Answer the one request of a client; return its command, empty where none came."""
    request = client.recv(64).decode("ascii", "replace").split()
    if not request or request[0] not in ANSWERS:
        return ""
    command, *arguments = request
    try:
        with holder.at_rest():
            answer = ANSWERS[command](holder, *arguments)
    except (WorkloadError, MemoryError) as error:
        answer = {"error": str(error) or f"no memory is left for {command}"}
    with contextlib.suppress(OSError):  # the client left before its answer: the memory is held on
        client.sendall(json.dumps(answer).encode())
    return command


def serve(spec: dict[str, Any], report: int) -> None:
    """Fill, tell `report` (a file descriptor) how it went, then answer on the socket until stop."""
    try:
        began = time.monotonic()
        holder = Holder(spec)
        holder.fill()
        filled = time.monotonic()
        digest = holder.digest()
        holder.begin_rewriting()
        server = socket.socket(socket.AF_UNIX)
        server.bind(SOCKET_PATH)
        os.chmod(SOCKET_PATH, 0o600)
        server.listen(1)
    except (WorkloadError, OSError, MemoryError, OverflowError) as error:
        reason = f"{spec['bytes']} bytes can't be held: {error or 'no memory'}"
        os.write(report, json.dumps({"error": reason}).encode())
        return
    os.write(report, json.dumps({
        "filled_bytes": holder.size, "digest": digest, "seed": holder.seed,
        "fill_seconds": round(filled - began, 3), "digest_seconds": round(time.monotonic() - filled, 3),
    }).encode())
    os.close(report)
    pause_seconds = REWRITE_SECONDS if holder.rewritings else None
    while True:
        while not select.select([server], [], [], pause_seconds)[0]:
            holder.rewrite()
        client, _ = server.accept()
        with client:
            if serve_one(client, holder) == "stop":
                # The client reads until the kernel closes the socket, which comes after freeing the memory.
                os._exit(0)


def ask(*request: str) -> dict[str, Any]:
    """Send one request to the holder of the memory and wait for its answer, however long that takes."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(SOCKET_PATH)
        except OSError as error:
            raise WorkloadError(f"no workload is running in this guest ({error.strerror})") from None
        client.sendall(" ".join(request).encode())
        answer = b""
        while part := client.recv(65536):
            answer += part
    if not answer:
        raise WorkloadError("the workload ended while it was asked")
    content: dict[str, Any] = json.loads(answer)
    if "error" in content:
        raise WorkloadError(content["error"])
    return content


def end_former() -> None:
    """Give back the memory of a workload that still runs."""
    if os.path.exists(SOCKET_PATH):
        try:
            ask("stop")
        except WorkloadError:
            os.unlink(SOCKET_PATH)


def start(spec: dict[str, Any]) -> dict[str, Any]:
    """Start the holder in the background and return its report once all memory is in place."""
    end_former()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.close(reader)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjust:
            adjust.write("1000")  # if memory ends, the workload dies and says so, not the guest's sshd
        serve(spec, writer)
        os._exit(0)
    os.close(writer)
    answer = b""
    while part := os.read(reader, 65536):
        answer += part
    if not answer:
        raise WorkloadError(
            "the workload died while it filled memory, most likely for lack of it: raise guest_reserve_mib"
        )
    report: dict[str, Any] = json.loads(answer)
    if "error" in report:
        raise WorkloadError(report["error"])
    return report


def run(words: list[str]) -> dict[str, Any]:
    """Run one command; return what it answers."""
    if len(words) == 2 and words[0] == "start":
        return start(checked(words[1]))
    if len(words) == 2 and words[0] == "probe":
        return ask("probe", checked_seconds(words[1]))
    if words in (["verify"], ["diverge"], ["stop"]):
        return ask(words[0])
    raise WorkloadError(USAGE)


def requested(number: str, words: list[str]) -> dict[str, Any]:
    """Answer a request of the hypervisor."""
    try:
        return {"id": number, "answer": run(words)}
    except FAULTS as error:
        return {"id": number, "error": str(error)}


FAULTS = (WorkloadError, OSError, ValueError)


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code."""
    try:
        asked = len(arguments) > 1 and arguments[0] == "request"
        answer = requested(arguments[1], arguments[2:]) if asked else run(arguments)
    except FAULTS as error:
        print(f"testbed-workload: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
