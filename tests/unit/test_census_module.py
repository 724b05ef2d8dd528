"""The module census on real processes with known pages; libvirt is a stand-in, pausing is real (SIGSTOP)."""

import ctypes
import json
import mmap
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ansible.module_utils
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import QUICK
from plugin_files import load
from synthetic_census import census_record
from waiting import FOREVER_SECONDS, wait_until

from analysis.measure.page_contents import from_record
from analysis.measure.saving import Unknown
from analysis.records.models import CensusRecord

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures/census"
RECORDED_SYS = ROOT / "tests/fixtures/host/linux-6.18/sys"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))

from ansible.module_utils import page_census, page_tally  # noqa: E402
from ansible.module_utils.page_census import (  # noqa: E402
    KPF_KSM,
    KPF_ZERO_PAGE,
    Area,
    CensusError,
    Counted,
    Layout,
    Reader,
    frame_flags,
    parse_smaps,
)
from ansible.module_utils.page_tally import merged, tally  # noqa: E402


class Host:
    """Guests as processes, and the module run against them."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.guests: dict[str, subprocess.Popen[bytes]] = {}
        (run / "libvirt/qemu").mkdir(parents=True)
        (run / "events.log").touch()
        # A recorded one: a test must not stop the ksmd of the host.
        shutil.copytree(RECORDED_SYS, run / "sys")
        self.ksm_run = run / "sys/kernel/mm/ksm/run"
        self.ksm_run.chmod(0o600)
        self.ksm_run.write_text("1\n")

    def start(self, name: str, *words: str, prefix: str = "ksm-testbed-") -> None:
        path = self.run / "libvirt/qemu" / f"{prefix}{name}.pid"
        command = [
            sys.executable,
            FIXTURES / "guest.py",
            f"guest={prefix}{name},debug-threads=on",
            path,
            *words,
        ]
        self.guests[name] = subprocess.Popen(command)
        wait_until(lambda: path.exists() and path.read_text(), f"{name} has its memory")

    def stopped(self) -> list[str]:
        return [name for name in self.guests if self.state(name) == "T"]

    def state(self, name: str) -> str:
        return Path(f"/proc/{self.guests[name].pid}/stat").read_text().rpartition(")")[2].split()[0]

    def events(self) -> list[str]:
        return (self.run / "events.log").read_text().splitlines()

    def module(self, environment: dict[str, str] | None = None, **arguments: Any) -> subprocess.Popen[str]:
        wrapper = (
            "import runpy, sys, ansible.module_utils;"
            f"ansible.module_utils.__path__.append({str(ROOT / 'plugins/module_utils')!r});"
            f"sys.argv = ['module', {str(self.run / 'arguments.json')!r}];"
            f"runpy.run_path({str(ROOT / 'plugins/modules/census.py')!r}, run_name='__main__')"
        )
        given = {"run_root": str(self.run), "sys_root": str(self.run / "sys"), **arguments}
        (self.run / "arguments.json").write_text(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
        fixed = {"PYTHONPATH": str(FIXTURES), "RUN_ROOT": str(self.run)}
        return subprocess.Popen(
            [sys.executable, "-c", wrapper],
            env={**os.environ, **fixed, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def take(self, **arguments: Any) -> dict[str, Any]:
        output, _ = self.module(**arguments).communicate(timeout=FOREVER_SECONDS)
        result: dict[str, Any] = json.loads(output)
        return result


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    for guest in made.guests.values():
        guest.kill()
        guest.wait()


def three(host: Host) -> None:
    # Contents 7 and 8 in all three, 100 and 101 in two, the rest of one guest alone.
    host.start("guest01", "5x0", "3x7", "1x8", "2*100", "40*1000", "6xu", "4xr")
    host.start("guest02", "2x0", "1x7", "9x8", "2*100", "30*2000")
    host.start("guest03", "1x7", "2x8", "1xu", "1x8", "20*3000")


def numbers(seen: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in seen.items() if name.endswith("_pages")}


def test_known_pages_give_exactly_these_numbers(host: Host) -> None:
    three(host)
    result = host.take()
    observed = result["observed"]
    assert result["changed"] is False
    assert list(observed["guests"]) == ["guest01", "guest02", "guest03"]
    assert numbers(observed["guests"]["guest01"]) == {
        "resident_pages": 51,
        "zero_pages": 5,
        "zero_mapped_pages": 4,
        "distinct_pages": 44,
        "swapped_pages": 0,
    }
    assert numbers(observed["guests"]["guest02"]) == {
        "resident_pages": 44,
        "zero_pages": 2,
        "zero_mapped_pages": 0,
        "distinct_pages": 34,
        "swapped_pages": 0,
    }
    assert observed["guests"]["guest03"]["resident_pages"] == 24
    assert observed["guests"]["guest01"]["mergeable_bytes"] == 61 * PAGE_BYTES
    assert observed["shared_contents"] == [[44, 4, 2], [4, 34, 2], [2, 2, 22]]
    # Alone: 40 + 30 + 20. In two guests, two copies: 100, 101. In three: 7 in 5 copies, 8 in 13.
    assert observed["contents"] == {
        "guests": [1, 2, 3, 3],
        "copies": [1, 2, 5, 13],
        "contents": [90, 2, 1, 1],
    }
    # What was read and never written is present too, and read.
    assert observed["bytes_read"] == (51 + 4 + 44 + 24) * PAGE_BYTES


def test_a_census_twice_gives_the_same_and_stores_no_hash(host: Host) -> None:
    three(host)
    first, second = host.take()["observed"], host.take(processes=1)["observed"]
    assert second["processes"] == 1
    for name in ("guests", "contents", "largest_contents", "shared_contents", "bytes_read"):
        assert first[name] == second[name]
    biggest = max(number for column in first["contents"].values() for number in column)
    assert biggest < 1000
    assert all(set(content) == {"copies", "guests", "kind"} for content in first["largest_contents"])


def test_all_are_paused_before_the_first_is_read_and_run_again(host: Host) -> None:
    three(host)
    host.take()
    names = [f"ksm-testbed-guest0{number}" for number in (1, 2, 3)]
    assert host.events() == [*(f"suspend {name}" for name in names), *(f"resume {name}" for name in names)]


def test_a_paused_guest_stays_paused(host: Host) -> None:
    three(host)
    host.guests["guest02"].send_signal(signal.SIGSTOP)
    wait_until(lambda: host.stopped() == ["guest02"], "guest02 is paused")
    seen = host.take()["observed"]["guests"]
    assert [seen[name]["was_paused"] for name in sorted(seen)] == [False, True, False]
    assert host.stopped() == ["guest02"]
    assert "suspend ksm-testbed-guest02" not in host.events()


def test_only_the_named_or_this_testbeds_guests(host: Host) -> None:
    host.start("guest01", "3x7")
    host.start("other", "5x9", prefix="")
    assert list(host.take()["observed"]["guests"]) == ["guest01"]
    assert list(host.take(domains={"mine": "other"})["observed"]["guests"]) == ["mine"]


def test_faults_are_one_sentence(host: Host) -> None:
    assert host.take()["msg"].startswith(
        "no guest of this testbed runs: start some that stay, with `ansible-"
    )
    assert "libvirt does not answer at qemu:///nowhere" in host.take(uri="qemu:///nowhere")["msg"]
    host.start("guest01", "3x7")
    assert "domain nobody is not running" in host.take(domains={"guest09": "nobody"})["msg"]
    assert "processes is -1: allowed is 0" in host.take(processes=-1)["msg"]
    assert host.stopped() == []


def test_a_guest_without_mergeable_memory_is_named(host: Host) -> None:
    path = host.run / "libvirt/qemu/ksm-testbed-guest01.pid"
    command = [sys.executable, "-c", "import time; time.sleep(3600)", "guest=ksm-testbed-guest01"]
    host.guests["guest01"] = subprocess.Popen(command)
    path.write_text(str(host.guests["guest01"].pid))
    assert "domain ksm-testbed-guest01 has no memory that KSM may merge" in host.take()["msg"]


def test_when_one_cannot_be_paused_the_others_run_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    three(host)
    monkeypatch.setenv("REFUSE_TO_SUSPEND", "ksm-testbed-guest02")
    assert "cannot acquire state change lock" in host.take()["msg"]
    assert "suspend ksm-testbed-guest01" in host.events()
    assert host.stopped() == []
    assert host.ksm_run.read_text() == "1\n"


def test_ksmd_is_stopped_while_the_guests_are_paused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    three(host)
    monkeypatch.setenv("WATCH_WHEN_PAUSED", str(host.ksm_run))
    assert host.take()["observed"]["ksm"]["run"] == 1
    assert (host.run / "watched.log").read_text().split() == ["0"] * 6
    assert host.ksm_run.read_text() == "1\n"


@pytest.mark.parametrize("run", [0, 2])
def test_ksm_that_does_not_run_is_left_alone(host: Host, run: int) -> None:
    host.start("guest01", "3x7")
    host.ksm_run.write_text(f"{run}\n")
    host.ksm_run.chmod(0o400)
    before = host.ksm_run.stat().st_mtime_ns
    assert host.take()["observed"]["ksm"]["run"] == run
    assert host.ksm_run.stat().st_mtime_ns == before


def test_zero_pages_that_ksm_makes_without_counting_are_unknown(host: Host) -> None:
    host.start("guest01", "3x0", "2xr")
    assert host.take()["observed"]["merged"] == {"mapped_pages": 0, "frames": 0, "zero_pages": 0}
    ksm = host.ksm_run.parent
    (ksm / "ksm_zero_pages").unlink()
    assert host.take()["observed"]["merged"]["zero_pages"] == 0
    (ksm / "use_zero_pages").chmod(0o600)
    (ksm / "use_zero_pages").write_text("1\n")
    assert host.take()["observed"]["merged"]["zero_pages"] is None


def test_a_guardian_does_what_was_promised_and_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FIXTURES)  # for its libvirt
    monkeypatch.setenv("RUN_ROOT", str(tmp_path))
    due = load("plugins/module_utils/guest_pause.py").due
    assert due(["run 1", "resume a", "resume b", "done resume a"]) == ["run 1", "resume b"]
    assert due(["run 1", "resume a", "done resume a", "done run 1"]) == []


def test_the_largest_contents_are_named_by_kind_alone(host: Host) -> None:
    constant = int.from_bytes(page_census.KNOWN_BYTES["constant_fill"] * 8, "little")
    host.start("guest01", "30x0", "8x7", f"40x{constant}", f"12x{0xCCCCCCCCCCCCCCCC}", "20*1000")
    host.start("guest02", "1x7", f"10x{constant}", "4xr")
    largest = host.take()["observed"]["largest_contents"]
    assert largest[:4] == [
        {"copies": 50, "guests": 2, "kind": "constant_fill"},
        {"copies": 30, "guests": 1, "kind": "zero"},
        {"copies": 12, "guests": 1, "kind": "kernel_init"},
        {"copies": 9, "guests": 2, "kind": "other"},
    ]
    assert largest[4:] == [{"copies": 1, "guests": 1, "kind": "other"}] * 6


def test_the_constant_is_that_of_the_program_in_the_guests() -> None:
    program = load("roles/guests/files/testbed_workload.py")
    assert page_census.KNOWN_BYTES["constant_fill"] == program.CONSTANT_BYTE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_the_guests_run_again_whatever_ends_the_module(host: Host, number: signal.Signals) -> None:
    host.start("guest01", "100000*1000")
    host.start("guest02", "100000*1000")
    said = ended_while_paused(host, number)
    wait_until(lambda: host.stopped() == [], "the guests run again")
    wait_until(lambda: host.ksm_run.read_text() == "1\n", "ksmd runs again")
    assert [event for event in host.events() if event.startswith("suspend")]
    if number != signal.SIGKILL:
        assert said["msg"] == f"stopped by {number.name}; the guests run again"


def paused_or_over(host: Host, module: subprocess.Popen[str]) -> bool:
    return "guest02" in host.stopped() or module.poll() is not None


def ended_while_paused(host: Host, number: signal.Signals) -> dict[str, Any]:
    """What the module said that got the signal while the guests were paused."""
    while True:
        running = host.module(processes=1)
        wait_until(partial(paused_or_over, host, running), "a pause")
        # The whole process group, as Ansible ends a module.
        os.killpg(running.pid, number)
        output, _ = running.communicate(timeout=FOREVER_SECONDS)
        said: dict[str, Any] = json.loads(output) if output else {}
        # On a busy machine the pause may be over before this process is scheduled: then once more.
        if "observed" not in said:
            return said


def test_the_guests_run_again_when_nobody_waits_for_the_census(host: Host) -> None:
    host.start("guest01", "100000*1000")
    progress = host.run / "progress"
    progress.touch()
    # Removed while the guests are paused: by the stub of libvirt, so that it can't be too late.
    said = host.take(progress_path=str(progress), environment={"REMOVE_WHEN_PAUSED": str(progress)})
    assert said["msg"] == "stopped by itself, as its controller asked it to end; the guests run again"
    assert host.stopped() == []
    assert host.ksm_run.read_text() == "1\n"
    assert host.events() == ["suspend ksm-testbed-guest01", "resume ksm-testbed-guest01"]


def test_a_census_that_nobody_waits_for_pauses_nobody(host: Host) -> None:
    host.start("guest01", "3x7")
    path = str(host.run / "progress")
    assert host.take(progress_path=path)["msg"] == (
        f"progress_path {path} is not there: nobody waits for this module"
    )
    assert host.events() == []


def test_it_writes_nothing_but_progress(host: Host) -> None:
    host.start("guest01", "3x7")
    (host.run / "progress").touch()
    host.take(progress_path=str(host.run / "progress"))
    assert re.fullmatch(
        r"1 guests run again after a pause of \d+\.\d s\n", (host.run / "progress").read_text()
    )
    assert {path.name for path in host.run.iterdir()} == {
        "libvirt",
        "sys",
        "events.log",
        "progress",
        "arguments.json",
    }


def test_a_check_pauses_nobody(host: Host) -> None:
    three(host)
    assert "would pause the guests" in host.take(_ansible_check_mode=True)["msg"]
    assert host.events() == []


class Child:
    """A forked child whose memory is its parent's pages, shared until one writes, as merged pages are."""

    def __init__(self, pages: int) -> None:
        self.memory = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(pages):
            self.memory[page * PAGE_BYTES] = 1 + page % 200
        held = ctypes.c_char.from_buffer(self.memory)
        self.area = Area(ctypes.addressof(held), ctypes.addressof(held) + pages * PAGE_BYTES)
        self.pid = os.fork()
        if self.pid == 0:
            signal.pause()
            os._exit(0)

    def shared_bytes(self) -> int:
        smaps = Path(f"/proc/{self.pid}/smaps").read_text()
        mine = smaps[smaps.index(f"{self.area.start:x}-{self.area.end:x} ") :]
        found = re.search(r"Shared_Dirty:\s+(\d+) kB", mine)
        assert found
        return int(found[1]) * 1024

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def test_reading_leaves_shared_pages_shared() -> None:
    child = Child(1000)
    try:
        before = child.shared_bytes()
        with Reader([child.pid], [Layout((child.area,), 0)], processes=1, close=None) as reader:
            reading = reader.read(lambda _bytes: None)
        assert len(reading.counted[0].hashes) == 1000
        assert before == child.shared_bytes() == 1000 * PAGE_BYTES
        if process_vm_readv_unshares(child):
            assert child.shared_bytes() == 0
    finally:
        child.end()


def process_vm_readv_unshares(child: Child) -> bool:
    """Read all by process_vm_readv; True where the kernel copies pages for that (5.19 and later)."""

    class Piece(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    length = child.area.bytes
    into = ctypes.create_string_buffer(length)
    local, remote = Piece(ctypes.addressof(into), length), Piece(child.area.start, length)
    got = ctypes.CDLL(None).process_vm_readv(child.pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    assert got == length
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (5, 19)


def test_a_process_that_ended_is_one_sentence() -> None:
    child = Child(10)
    area, pid = child.area, child.pid
    with Reader([pid], [Layout((area,), 0)], processes=1, close=None) as reader:
        child.end()
        with pytest.raises(CensusError, match=f"process {pid}"):
            reader.read(lambda _bytes: None)


def die(*_task: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_sentence_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child(10)
    try:
        monkeypatch.setattr(page_census, "_hash_task", die)
        with (
            pytest.raises(CensusError, match="a worker of the census was killed"),
            Reader([child.pid], [Layout((child.area,), 0)], processes=1, close=None) as reader,
        ):
            reader.read(lambda _bytes: None)
    finally:
        child.end()


def test_a_layout_is_read_from_recorded_smaps() -> None:
    smaps = ROOT / "tests/fixtures/host/linux-6.18/proc/28619/smaps"
    layout = parse_smaps(smaps.read_text())
    # Independently: awk over the same file.
    program = (
        "/^Size:/ {size = $2} /^Anonymous:/ {held = $2}"
        "/^VmFlags:.* mg/ {sizes += size; sum += held; n++} END {print n, sizes, sum}"
    )
    answer = subprocess.run(["awk", program, smaps], capture_output=True, text=True, check=True)
    areas, size_kib, anonymous_kib = map(int, answer.stdout.split())
    assert len(layout.areas) == areas > 0
    assert layout.mergeable_bytes == size_kib * 1024
    assert layout.anonymous_bytes == anonymous_kib * 1024


def brute(guests: Sequence[Sequence[int]]) -> tuple[list[int], list[tuple[int, int, int]], list[list[int]]]:
    sets = [set(guest) - {0} for guest in guests]
    kinds: dict[tuple[int, int], int] = {}
    for content in set().union(*sets):
        kind = (sum(content in held for held in sets), sum(list(guest).count(content) for guest in guests))
        kinds[kind] = kinds.get(kind, 0) + 1
    return (
        [len(held) for held in sets],
        sorted((held, copies, number) for (held, copies), number in kinds.items()),
        [[len(one & other) for other in sets] for one in sets],
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_tally_against_brute_force(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_tally, "MATRIX_ROWS", 7)
    monkeypatch.setattr(page_tally, "PART_PAGES", 16)
    random = np.random.default_rng(seed)
    guests = [random.integers(0, 60, random.integers(0, 90)).tolist() for _ in range(random.integers(1, 7))]
    salted = [
        np.array([(content * 0x9E3779B97F4A7C15) % 2**64 for content in guest], np.uint64) for guest in guests
    ]
    seen = tally(salted, 0)
    distinct, contents, shared = brute(guests)
    assert seen.zero_pages == tuple(guest.count(0) for guest in guests)
    assert list(seen.distinct_pages) == distinct
    assert list(seen.contents) == contents
    assert [list(row) for row in seen.shared] == shared
    copies = Counter(content for guest in guests for content in guest if content)
    assert [number for number, _, _ in seen.largest] == [number for _, number in copies.most_common(10)]
    by_hash = {(content * 0x9E3779B97F4A7C15) % 2**64: content for content in copies}
    for number, held_by, content in seen.largest:
        assert number == copies[by_hash[content]]
        assert held_by == sum(by_hash[content] in guest for guest in guests)


def test_frames_are_named_by_the_kernel() -> None:
    child = Child(2000)
    try:
        with Reader([child.pid], [Layout((child.area,), 0)], processes=2, close=None) as reader:
            one = reader.read(lambda _bytes: None).counted[0]
        # The parent maps the same frames, and none is the kernel's or KSM's.
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        text = os.pread(pagemap, 2000 * 8, child.area.start // PAGE_BYTES * 8)
        os.close(pagemap)
        mine = np.frombuffer(text, np.uint64) & np.uint64(page_census.PAGEMAP_FRAME)
        assert one.frames.tolist() == mine.tolist()
        assert len(np.unique(one.frames)) == 2000
        assert not np.any(one.flags & np.uint64(KPF_KSM | KPF_ZERO_PAGE))
        assert np.all(one.flags & np.uint64(1 << 12))  # KPF_ANON
        assert one.zero_mapped_pages == 0
    finally:
        child.end()


def test_frames_of_one_content_are_asked_for_alone() -> None:
    child = Child(2000)
    try:
        with Reader([child.pid], [Layout((child.area,), 0)], processes=2, close=None) as reader:
            every = reader.read(lambda _bytes: None).counted[0]
            content = int(every.hashes[7])
            hashes, frames = every.hashes.tolist(), every.frames[every.hashes == content].tolist()
            one = reader.read(lambda _bytes: None, frames_of=content).counted[0]
        assert (one.hashes.tolist(), one.frames.tolist()) == (hashes, frames)
        assert len(one.flags) == len(one.frames) >= 1
    finally:
        child.end()


def test_flags_come_back_in_the_order_of_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_census, "FRAMES_AT_ONCE", 8)
    monkeypatch.setattr(page_census, "FRAMES_GAP", 1)
    path = tmp_path / "kpageflags"
    np.arange(1000, 1100, dtype=np.uint64).tofile(path)
    frames = [np.array(list_, np.uint64) for list_ in ([99, 0, 7, 8], [], [50, 50, 9])]
    flags = frame_flags(frames, str(path))
    assert [list_.tolist() for list_ in flags] == [[1099, 1000, 1007, 1008], [], [1050, 1050, 1009]]
    with pytest.raises(CensusError, match="ends before frame 100"):
        frame_flags([np.array([100], np.uint64)], str(path))


# Pages as (guest, content, which of the content's frames, whether KSM merged it); content 0 is zero.
PAGES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3), st.booleans()), min_size=1, max_size=80
)


@given(pages=PAGES, max_page_sharing=st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_what_ksm_saved_never_exceeds_what_could_be_saved(
    pages: list[tuple[int, int, int, bool]], max_page_sharing: int
) -> None:
    guests: list[list[tuple[int, int, int]]] = [[], [], [], []]
    mapped: Counter[tuple[int, int]] = Counter()
    alone = 1000
    for guest, content, which, is_merged in pages:
        if is_merged:
            # A frame that serves max_page_sharing mappings is full, and the next one begins.
            frame = (content * 4 + which) * 100 + mapped[content, which] // max_page_sharing
            frame += 10_000
            mapped[content, which] += 1
        else:
            alone += 1
            frame = alone
        guests[guest].append((content, frame, KPF_KSM if is_merged else 0))
    counted = [
        Counted(*(np.array([page[place] for page in held], np.uint64) for place in range(3)), swapped_pages=0)
        for held in guests
    ]
    seen = merged(counted)
    ours = [(content, frame) for held in guests for content, frame, flag in held if flag]
    assert (seen.mapped_pages, seen.frames) == (len(ours), len(set(ours)))
    names = [f"guest{number}" for number in range(4)]
    contents = {name: [page[0] for page in held] for name, held in zip(names, guests, strict=True)}
    found = {"mapped_pages": seen.mapped_pages, "frames": seen.frames, "zero_pages": 0}
    record = census_record(contents, max_page_sharing=max_page_sharing, merged=found)
    census = from_record(CensusRecord.model_validate_json(json.dumps(record)))
    assert census.saved_pages == len(ours) - len(set(ours))
    assert census.saved_pages <= census.saving().ideal_pages
    assert isinstance(census.efficiency, Unknown) or 0 <= census.efficiency <= 1


def play(host: Host, *options: str, **arguments: Any) -> str:
    task = {
        "run_id": "run",
        "directory": str(host.run / "results/run/host1"),
        "run_root": str(host.run),
        "sys_root": str(host.run / "sys"),
        **arguments,
    }
    plays = [{"hosts": "all", "gather_facts": False, "tasks": [{"name": "Take", "census_record": task}]}]
    (host.run / "play.yml").write_text(json.dumps(plays))
    (host.run / "ansible.cfg").write_text(QUICK)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{FIXTURES}{os.pathsep}{ROOT}",
        "RUN_ROOT": str(host.run),
        "ANSIBLE_LIBRARY": str(ROOT / "plugins/modules"),
        "ANSIBLE_MODULE_UTILS": str(ROOT / "plugins/module_utils"),
        "ANSIBLE_ACTION_PLUGINS": str(ROOT / "plugins/action"),
        "ANSIBLE_LOCAL_TEMP": str(host.run / "local"),
        "ANSIBLE_REMOTE_TEMP": str(host.run / "remote"),
        "ANSIBLE_ASYNC_DIR": str(host.run / "async"),
        "ANSIBLE_CONFIG": str(host.run / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local"]
    command += ["-e", f"ansible_python_interpreter={sys.executable}", *options, str(host.run / "play.yml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_record_fits_the_schema_is_private_and_never_written_over(host: Host) -> None:
    three(host)
    path = host.run / "results/run/host1/census.json"
    assert "would take a census" in play(host, "--check", "-v")
    assert not path.parent.exists()
    output = play(host)
    assert "3 guests run again after a pause" in output
    record = json.loads(path.read_text())
    assert (record["kind"], record["run_id"], record["cell"]) == ("census", "run", None)
    assert record["provenance"]["image_digest"] is None
    assert record["provenance"]["page_size_bytes"] == PAGE_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parents[1])} == {0o700}
    assert "census.json exists and is kept; choose another run_id" in play(host)
    assert json.loads(path.read_text()) == record
    assert host.events().count("suspend ksm-testbed-guest01") == 1


def test_an_optional_census_that_cannot_be_had_is_said_and_kept_as_a_failure(host: Host) -> None:
    output = play(host, "-v", domains={"guest01": "ksm-testbed-guest09"}, optional=True)
    said = "no census of host1, whose measurement is not affected: domain ksm-testbed-guest09 is not running"
    assert f"    [localhost] {said}" in output
    assert f'"failures": ["localhost: {said}' in output
    assert "failed=0" in output
    path = host.run / "results/run/host1/census.json"
    path.write_text("{}")
    assert "affected: census_record: " in (again := play(host, optional=True)) and "failed=0" in again
    assert path.read_text() == "{}"
    assert "failed=1" in play(host)


def test_a_relative_directory_is_refused(host: Host) -> None:
    assert "directory is 'results'; it must be an absolute path" in play(host, directory="results")
