"""The program that a guest runs, run here for real with a few MiB: contents, locking, digests, refusals."""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_files import ROOT, load
from waiting import FOREVER_SECONDS, wait_until

from analysis.records.probes import PROBES

PROGRAM = ROOT / "roles/guests/files/testbed_workload.py"
MIB = 1 << 20
SIZE = 3 * MIB
PAGE = mmap.PAGESIZE
PROBE_FIELDS = {
    "write_latency_p50_us",
    "write_latency_p99_us",
    "touch_mib_per_second",
    "cpu_iterations_per_second",
}

program = load("roles/guests/files/testbed_workload.py")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="locks memory, which needs root as in a guest")


class Guest:
    def __init__(self, folder: Path) -> None:
        self.socket = folder / "workload.sock"

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, PROGRAM, *arguments],
            env={"TESTBED_WORKLOAD_SOCKET": str(self.socket), "PATH": os.environ["PATH"]},
            check=False,
            capture_output=True,
            text=True,
            timeout=FOREVER_SECONDS,
        )

    def answer(self, *arguments: str) -> dict[str, Any]:
        done = self.call(*arguments)
        assert done.returncode == 0, done.stderr
        content: dict[str, Any] = json.loads(done.stdout)
        return content

    def refusal(self, *arguments: str) -> str:
        done = self.call(*arguments)
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("testbed-workload: ")
        return done.stderr.removeprefix("testbed-workload: ").strip()

    def start(
        self, *contents: str | tuple[str, int], size: int = SIZE, seed: str = "run:guest01"
    ) -> dict[str, Any]:
        parts = [content if isinstance(content, tuple) else (content, 100) for content in contents]
        segments = [{"content": content, "percent": percent} for content, percent in parts]
        return self.answer("start", json.dumps({"bytes": size, "seed": seed, "segments": segments}))

    @property
    def pid(self) -> int:
        """The process that holds the memory."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.socket))
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def find(self, block: bytes) -> list[int]:
        """Addresses of a block in the holder's own large mappings."""
        found = []
        with Path(f"/proc/{self.pid}/mem").open("rb") as memory:
            for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
                span, mode, *rest = line.split(maxsplit=5)
                first, last = (int(part, 16) for part in span.split("-"))
                if mode.startswith("rw") and last - first >= MIB and not rest[-1].startswith("/"):
                    memory.seek(first)
                    content = memory.read(last - first)
                    at = content.find(block)
                    while at >= 0:
                        found.append(first + at)
                        at = content.find(block, at + len(block))
        return found

    def read(self, address: int, size: int) -> bytes:
        with Path(f"/proc/{self.pid}/mem").open("rb") as memory:
            memory.seek(address)
            return memory.read(size)

    def overwrite(self, address: int, value: bytes) -> None:
        with Path(f"/proc/{self.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(value)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    if guest.socket.exists():
        guest.answer("stop")


def digest_of(chunks: list[bytes]) -> str:
    """The digest, worked out here from the contents that the docstring states."""
    crcs = b"".join(zlib.crc32(chunk).to_bytes(4, "little") for chunk in chunks)
    return f"crc32-sha256:{hashlib.sha256(crcs).hexdigest()}"


def stream(seed: str, number: int) -> bytes:
    return hashlib.shake_128(f"{seed}:{number}".encode()).digest(MIB)


@pytest.mark.parametrize(
    ("content", "chunks"),
    [
        ("zero", [bytes(MIB)] * 3),
        ("constant", [b"\xa5" * MIB] * 3),
        ("random", [stream("run:guest01", number) for number in range(3)]),
        ("shared", [stream("shared", number) for number in range(3)]),
    ],
)
def test_each_content_is_what_it_says(guest: Guest, content: str, chunks: list[bytes]) -> None:
    report = guest.start(content)
    assert report["filled_bytes"] == SIZE
    assert report["digest"] == digest_of(chunks)
    assert report["seed"] == "run:guest01"
    assert report["fill_seconds"] >= 0
    assert guest.answer("verify") == {"filled_bytes": SIZE, "digest": report["digest"]}


def test_the_pages_of_random_content_are_distinct_and_those_of_constant_are_not(guest: Guest) -> None:
    page = stream("run:guest01", 1)[:4096]
    guest.start("random")
    assert len(guest.find(page)) == 1
    guest.start("constant")
    assert guest.find(page) == []
    assert len(guest.find(b"\xa5" * 4096)) == SIZE // 4096


def test_the_seed_alone_makes_random_content(guest: Guest) -> None:
    digests = [guest.start("random", seed=seed)["digest"] for seed in ("a", "b", "a")]
    assert digests[0] == digests[2] != digests[1]
    assert guest.start("shared", seed="a")["digest"] == guest.start("shared", seed="b")["digest"]


def test_segments_share_the_memory_in_their_order(guest: Guest) -> None:
    report = guest.start(("constant", 25), ("shared", 50), ("zero", 25), size=4 * MIB)
    shared = [stream("shared", number) for number in (1, 2)]
    assert report["digest"] == digest_of([b"\xa5" * MIB, *shared, bytes(MIB)])


def test_the_memory_is_resident_and_locked(guest: Guest) -> None:
    guest.start("zero", size=8 * MIB)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{guest.pid}/status").read_text().splitlines())
    assert int(status["VmLck"].split()[0]) >= 8 * 1024
    assert int(status["RssAnon"].split()[0]) >= 8 * 1024
    assert Path(f"/proc/{guest.pid}/oom_score_adj").read_text().strip() == "1000"


def test_one_changed_byte_is_found(guest: Guest) -> None:
    before = guest.start("constant")["digest"]
    address = guest.find(b"\xa5" * 4096)[100]
    guest.overwrite(address + 17, b"\xa4")
    assert guest.answer("verify")["digest"] != before
    guest.overwrite(address + 17, b"\xa5")
    assert guest.answer("verify")["digest"] == before


def test_stop_frees_the_memory(guest: Guest) -> None:
    guest.start("random")
    pid = guest.pid
    assert guest.answer("stop") == {"stopped": True}
    wait_until(lambda: not has_memory(pid), "the memory is freed")
    assert not guest.socket.exists()
    assert guest.refusal("verify") == "no workload is running in this guest (No such file or directory)"


def has_memory(pid: int) -> bool:
    try:
        return "VmRSS" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_start_takes_the_place_of_a_running_one(guest: Guest) -> None:
    guest.start("random")
    former = guest.pid
    guest.start("constant")
    assert guest.pid != former
    wait_until(lambda: not has_memory(former), "the former one's memory is freed")


def test_start_and_verify_get_over_a_holder_that_was_killed(guest: Guest) -> None:
    guest.start("random")
    pid = guest.pid
    os.kill(pid, 9)
    wait_until(lambda: not has_memory(pid), "the holder is gone")
    assert guest.refusal("verify").startswith("no workload is running in this guest")
    assert guest.start("constant")["filled_bytes"] == SIZE


def test_a_client_that_leaves_before_its_answer_does_not_take_the_memory_with_it(guest: Guest) -> None:
    digest = guest.start("random")["digest"]
    for request in (b"", b"verify", b"nonsense"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(guest.socket))
            client.sendall(request)
    assert guest.answer("verify")["digest"] == digest


def test_nothing_can_be_held_too(guest: Guest) -> None:
    report = guest.start(size=0)
    assert report["filled_bytes"] == 0 and report["digest"] == ""
    assert guest.answer("verify") == {"filled_bytes": 0, "digest": ""}


ONE = {"content": "zero", "percent": 100}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{", "SPEC is '{', and must be one JSON object"),
        ("5", "SPEC is 5, and must be an object with bytes, seed and segments"),
        ('{"bytes": 0}', "an object with bytes, seed and segments"),
        ({"bytes": MIB + 1}, "bytes is 1048577, and must be a multiple of 1048576"),
        ({"bytes": -MIB}, "bytes is -1048576, and must be"),
        ({"bytes": "1048576"}, "bytes is '1048576', and must be"),
        ({"bytes": True}, "bytes is True, and must be"),
        ({"bytes": 1 << 60}, f"{1 << 60} bytes can't be held: "),
        ({"bytes": 1 << 80}, f"{1 << 80} bytes can't be held: "),
        ({"seed": 7}, "seed is 7, and must be text"),
        ({"segments": ONE}, "must be a list of content and percent"),
        ({"segments": ["zero"]}, "must be a list of content and percent"),
        ({"segments": []}, "percents must add up to 100"),
        ({"segments": [ONE, ONE]}, "percents must add up to 100"),
        (
            {"segments": [{"content": "ones", "percent": 100}]},
            "content is 'ones', and must be one of zero, constant",
        ),
        ({"segments": [{"content": "zero", "percent": 0}, ONE]}, "percent is 0, and must be a whole number"),
        ({"segments": [{"content": "zero"}]}, "percent is None, and must be"),
        (
            {"segments": [{**ONE, "rewrite_pages_per_second": 0}]},
            "rewrite_pages_per_second is 0, and must be",
        ),
    ],
)
def test_a_spec_that_cannot_be_filled_is_refused_in_one_sentence(guest: Guest, spec: Any, said: str) -> None:
    whole = (
        spec if isinstance(spec, str) else json.dumps({"bytes": MIB, "seed": "", "segments": [ONE], **spec})
    )
    assert said in guest.refusal("start", whole)
    assert not guest.socket.exists()


@pytest.mark.parametrize(
    "arguments", [[], ["start"], ["begin"], ["verify", "now"], ["probe"], ["barrier", "1"], ["request"]]
)
def test_a_wrong_call_says_how_to_call_it(guest: Guest, arguments: list[str]) -> None:
    assert guest.refusal(*arguments) == (
        "usage: testbed-workload start SPEC | verify | probe SECONDS | diverge | stop"
    )


def test_a_refused_spec_leaves_the_running_workload_alone(guest: Guest) -> None:
    digest = guest.start("random")["digest"]
    guest.refusal("start", "{}")
    assert guest.answer("verify")["digest"] == digest


def test_a_probe_answers_what_the_schema_names_and_leaves_the_content_intact(guest: Guest) -> None:
    digest = guest.start(("constant", 50), ("random", 50), size=32 * MIB)["digest"]
    assert set(PROBES) == PROBE_FIELDS
    for _ in range(3):  # all phases of the stride
        seen = guest.answer("probe", "1")
        assert set(seen) == PROBE_FIELDS
        assert 0 < seen["write_latency_p50_us"] <= seen["write_latency_p99_us"]
        assert seen["touch_mib_per_second"] > 0
        assert seen["cpu_iterations_per_second"] > 0
    assert guest.answer("verify")["digest"] == digest


def test_a_probe_takes_no_less_than_the_time_that_it_is_given(guest: Guest) -> None:
    # And no more, by the scripted clock below.
    guest.start("random", size=16 * MIB)
    began = time.monotonic()
    guest.answer("probe", "1.5")
    assert time.monotonic() - began >= 1.5


def test_a_probe_outlives_its_client(guest: Guest) -> None:
    digest = guest.start("random")["digest"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(guest.socket))
        client.sendall(b"probe 1")
    assert guest.answer("verify")["digest"] == digest


def test_a_guest_that_holds_too_little_is_not_probed(guest: Guest) -> None:
    least = program.PROBE_LEAST_PAGES * PAGE
    guest.start(size=0)
    assert guest.refusal("probe", "1") == (
        f"a probe needs at least {least} bytes of memory held, and this guest holds 0"
    )
    guest.start("random", size=least - MIB)
    assert guest.refusal("probe", "1").endswith(f"this guest holds {least - MIB}")
    guest.start("random", size=least)
    assert set(guest.answer("probe", "1")) == PROBE_FIELDS


REWRITTEN = {"content": "shared", "percent": 50, "rewrite_pages_per_second": 400}


def test_what_is_rewritten_is_in_place_again_where_it_is_verified_and_is_not_before(guest: Guest) -> None:
    spec = {
        "bytes": 2 * MIB,
        "seed": "run:guest01",
        "segments": [REWRITTEN, {"content": "shared", "percent": 50}],
    }
    report = guest.answer("start", json.dumps(spec))
    chunks = [stream("shared", number) for number in (0, 1)]
    assert report["digest"] == digest_of(chunks)
    page = pages_of(chunks[0])[200]
    wait_until(lambda: not guest.find(page), "the page is turned")
    wait_until(lambda: guest.find(page), "the page is turned back")
    seen = guest.answer("verify")
    assert seen["digest"] == report["digest"]
    assert seen["rewritten_pages_per_second"] > 0
    assert set(guest.answer("probe", "1")) == PROBE_FIELDS
    assert guest.answer("diverge")["digest"] == guest.answer("verify")["digest"] != report["digest"]


@pytest.fixture
def rewriting() -> Any:
    memory = mmap.mmap(-1, 2 * MIB)
    return program.Rewriting(memory, range(256, 512), 10, program.seed_mark("run:guest01"))


def turned(rewriting: Any) -> list[int]:
    words = rewriting.words
    return [
        page
        for page in range(len(words) * 8 // PAGE)
        if any(words[page * PAGE // 8 : (page + 1) * PAGE // 8])
    ]


def test_half_of_the_rewritten_pages_are_turned_at_any_time_and_the_rate_is_what_was_asked_for(
    rewriting: Any,
) -> None:
    rewriting.turn_window()
    assert turned(rewriting) == list(range(256, 384))
    # 10 pages a second: 2.5, of which two are written; 5 with the half that was left, of which four are
    assert [rewriting.go_on(0.25), rewriting.go_on(0.25)] == [2, 2]
    assert turned(rewriting) == list(range(258, 386))
    assert sum(rewriting.go_on(0.1) for _ in range(2560)) == 2560
    assert len(turned(rewriting)) == 128
    marks = {rewriting.words[page * PAGE // 8] for page in turned(rewriting)}
    assert len(marks) == 128
    rewriting.turn_window()
    assert turned(rewriting) == []


@pytest.mark.parametrize("seconds", ["0", "0.99", "601", "-5", "nan", "inf", "six", ""])
def test_the_seconds_of_a_probe_are_a_number_from_1_to_600(guest: Guest, seconds: str) -> None:
    assert guest.refusal("probe", seconds) == f"SECONDS is {seconds!r}, and must be a number from 1 to 600"


class Scripted(bytearray):
    """Held memory that says which pages were written how, and lets a scripted clock go on as it is."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.now = 0
        self.single: list[int] = []
        self.touched: list[int] = []

    def clock(self) -> int:
        self.now += 5000
        return self.now

    def crc32(self, block: bytes) -> int:
        assert len(block) == 64 << 10
        self.now += 10**6 - 5000  # with the reading of the clock that follows, one millisecond
        return 0

    def __setitem__(self, key: Any, value: Any) -> None:
        assert self[key] == value, "a probe may write only what is there"
        if isinstance(key, slice):
            pages = [at // PAGE for at in range(*key.indices(len(self)))]
            self.touched += pages
            self.now += 500 * len(pages)
        else:
            self.single.append(key // PAGE)
            self.now += 90_000 if len(self.single) % 50 == 0 else 2000  # 2 % are slow


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Scripted]:
    memory = Scripted(40 * MIB)
    holder = program.Holder({"bytes": 0, "seed": "run:guest01", "segments": []})
    holder.size, holder.memory = len(memory), memory
    monkeypatch.setattr(program.time, "perf_counter_ns", memory.clock)
    monkeypatch.setattr(program.zlib, "crc32", memory.crc32)
    return holder, memory


def test_a_probe_by_a_scripted_clock(scripted: tuple[Any, Scripted]) -> None:
    holder, memory = scripted
    seen = holder.probe("6")
    # By hand: a write of 2 us, each 50th of 90 us; 500 ns a page touched; 1 ms a CRC-32; no clock.
    assert seen["write_latency_p50_us"] == 2
    assert seen["write_latency_p99_us"] == 90
    assert seen["touch_mib_per_second"] == pytest.approx(PAGE / MIB / 500e-9, rel=1e-6)
    with_the_clock = 500e-9 + program.PROBE_ROUNDS * 5e-6 / len(memory.touched)
    assert seen["touch_mib_per_second"] != pytest.approx(PAGE / MIB / with_the_clock, rel=1e-2)
    assert seen["cpu_iterations_per_second"] == pytest.approx(1000, rel=1e-6)
    assert 6e9 <= memory.now < 6.01e9


def test_a_probe_writes_once_to_each_of_its_pages_which_are_spread_and_the_next_probe_to_others(
    scripted: tuple[Any, Scripted],
) -> None:
    holder, memory = scripted
    held, written = len(memory) // PAGE, []
    for _ in range(3):
        holder.probe("1")
        pages = sorted(memory.single + memory.touched)
        assert len(set(pages)) == len(pages)
        assert len(pages) * PAGE <= 16 * MIB
        assert {after - before for before, after in itertools.pairwise(pages)} == {3}  # 40 MiB, 16 a probe
        assert pages[0] < 3 and pages[-1] >= held - 3
        assert len(memory.single) == pytest.approx(len(pages) / 4, abs=16)
        written.append(set(pages))
        memory.single, memory.touched = [], []
    assert set.union(*written) == set(range(held))
    assert sum(map(len, written)) == held
    holder.probe("1")
    assert set(memory.single + memory.touched) == written[0]


def test_a_probe_whose_writes_are_slow_ends_in_time_with_fewer_pages(
    scripted: tuple[Any, Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, memory = scripted
    slow = Scripted.__setitem__

    def swapped(self: Scripted, key: Any, value: Any) -> None:
        slow(self, key, value)
        self.now += 10**7 * (len(range(*key.indices(len(self)))) if isinstance(key, slice) else 1)

    monkeypatch.setattr(Scripted, "__setitem__", swapped)
    seen = holder.probe("6")
    assert seen["write_latency_p50_us"] == 10_002
    assert seen["touch_mib_per_second"] == pytest.approx(PAGE / MIB / 10.0005e-3, rel=1e-6)
    assert seen["cpu_iterations_per_second"] == pytest.approx(1000, rel=1e-6)
    assert len(memory.touched) < 16 * MIB // PAGE / 4
    assert 6e9 <= memory.now < 10e9


def pages_of(content: bytes) -> list[bytes]:
    return [content[at : at + PAGE] for at in range(0, len(content), PAGE)]


def test_after_diverging_no_two_pages_of_any_guest_are_equal(tmp_path: Path) -> None:
    held = b"\xa5" * 3 * MIB + b"".join(stream("shared", number) for number in (3, 4, 5))
    before, found = pages_of(held), []
    assert len(set(before)) == 1 + 3 * MIB // PAGE  # many can be merged, so that what follows says something
    for name in ("guest01", "guest02"):
        (tmp_path / name).mkdir()
        one = Guest(tmp_path / name)
        try:
            one.start(("constant", 50), ("shared", 50), size=6 * MIB, seed=f"run:{name}")
            (address,) = one.find(held)
            seen = one.answer("diverge")
            content = one.read(address, len(held))
        finally:
            one.answer("stop")
        after = pages_of(content)
        assert len(set(after)) == len(after) == len(before)
        assert [page[16:] for page in after] == [page[16:] for page in before]
        assert seen["digest"] == digest_of([content[at : at + MIB] for at in range(0, len(held), MIB)])
        found.append(set(after))
    assert not found[0] & found[1]


def test_diverging_changes_the_digest_which_verify_then_finds_again(guest: Guest) -> None:
    before = guest.start("random", size=8 * MIB)["digest"]
    began = time.monotonic()
    seen = guest.answer("diverge")
    assert set(seen) == PROBE_FIELDS | {"written_bytes", "seconds", "digest"}
    assert seen["written_bytes"] == 8 * MIB
    assert 0 < seen["seconds"] < time.monotonic() - began
    assert 0 < seen["write_latency_p50_us"] <= seen["write_latency_p99_us"] < seen["seconds"] * 1e6
    assert seen["touch_mib_per_second"] == pytest.approx(8 / seen["seconds"])
    assert seen["touch_mib_per_second"] != pytest.approx(8.1 / seen["seconds"])
    assert seen["cpu_iterations_per_second"] is None
    assert seen["digest"] != before
    assert guest.answer("verify") == {"filled_bytes": 8 * MIB, "digest": seen["digest"]}
    guest.answer("probe", "1")
    assert guest.answer("verify")["digest"] == seen["digest"]


def test_what_is_not_held_cannot_diverge(guest: Guest) -> None:
    guest.start(size=0)
    assert guest.refusal("diverge") == "this guest holds no memory that could diverge"
    assert guest.answer("verify") == {"filled_bytes": 0, "digest": ""}


@pytest.mark.parametrize("page", [4 << 10, 16 << 10, 64 << 10])
def test_each_page_is_stamped_whatever_the_page_size(monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    holder = program.Holder({"bytes": 0, "seed": "run:guest01", "segments": []})
    holder.size, holder.memory = 2 * MIB, bytearray(2 * MIB)
    monkeypatch.setattr(program, "PAGE_BYTES", page)
    holder.diverge()
    expected = bytearray(2 * MIB)
    for number in range(2 * MIB // page):
        mark = hashlib.sha256(b"run:guest01").digest()[:8]
        expected[number * page : number * page + 16] = mark + number.to_bytes(8, sys.byteorder)
    assert holder.memory == expected


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([15, 20, 35, 40, 50], 30, 20),  # the textbook's example of the nearest rank
        ([15, 20, 35, 40, 50], 40, 20),
        ([50, 40, 35, 20, 15], 50, 35),
        ([15, 20, 35, 40, 50], 99, 50),
        ([3, 6, 7, 8, 8, 10, 13, 15, 16, 20], 50, 8),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 102)), 99, 100),
        ([7], 50, 7),
    ],
)
def test_percentiles_are_by_nearest_rank(values: list[int], percent: int, expected: int) -> None:
    assert program.percentile(values, percent) == expected


# What the hypervisor asks through the serial port


def asked(guest: Guest, *words: str) -> Any:
    return guest.answer("request", "a1", *words)


def test_a_request_is_answered_as_its_command_is_with_its_id(guest: Guest) -> None:
    spec = {"bytes": SIZE, "seed": "run:guest01", "segments": [ONE]}
    report = asked(guest, "start", json.dumps(spec))
    assert report["id"] == "a1" and report["answer"]["digest"] == digest_of([bytes(MIB)] * 3)
    assert asked(guest, "verify") == {"id": "a1", "answer": guest.answer("verify")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify"], "no workload is running in this guest (No such file or directory)"),
        (["probe", "0.5"], "SECONDS is '0.5', and must be a number from 1 to 600"),
        (["start", "{"], "SPEC is '{', and must be one JSON object"),
        (["start", json.dumps({"bytes": 1 << 60, "seed": "", "segments": [ONE]})], "bytes can't be held: "),
        (["reboot"], "usage: testbed-workload "),
        ([""], "usage: testbed-workload "),
        ([], "usage: testbed-workload "),
        (["request", "a2", "verify"], "usage: testbed-workload "),
    ],
)
def test_a_request_that_is_refused_is_answered_too(guest: Guest, words: list[str], said: str) -> None:
    answer = asked(guest, *words)
    assert set(answer) == {"id", "error"} and answer["id"] == "a1"
    assert said in answer["error"]
