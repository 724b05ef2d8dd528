"""Machines found among a host's processes, and what KSM may do with their memory."""

import shutil
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

ROOT = Path(__file__).parents[2]
ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))

from ansible.module_utils import virtual_machines  # noqa: E402
from ansible.module_utils.ksm_probe import Roots  # noqa: E402

HOSTS = ROOT / "tests/fixtures/host"
MIB = 1 << 20
STAT = "1001 (qemu-system-x86) S 1 0 0 0 -1 0 7 0 3 0 1000 500 0 0 20 0 1 0 0 0 0\n"
MARKED = "rd wr mr mw me ac hg mg"
PLAIN = "rd wr mr mw me ac"


def mapping(mib: int, flags: str | None, *, path: str = "", resident_mib: int = 0, huge_mib: int = 0) -> str:
    """One mapping as /proc/PID/smaps has it."""
    anonymous = 0 if path else resident_mib
    lines = [
        f"7f0000000000-7f0040000000 rw-p 00000000 00:00 0 {path}",
        f"Size: {mib << 10} kB",
        f"Rss: {resident_mib << 10} kB",
        f"Pss: {resident_mib << 10} kB",
        f"Anonymous: {anonymous << 10} kB",
        f"Private_Hugetlb: {huge_mib << 10} kB",
        "Swap: 4 kB",
        *([] if flags is None else [f"VmFlags: {flags} "]),
    ]
    return "\n".join(lines) + "\n"


def judged(*maps: str, words: str = "", files: set[str] | None = None) -> tuple[str, str, int]:
    """Kind, reason and resident MiB of a machine of 512 MiB with these mappings."""
    seen = virtual_machines.mappings("".join(maps))
    kind, why, mine = virtual_machines.judge(seen, 512 * MIB, words.split(), files)
    return kind, why, sum(one.resident_bytes for one in mine) // MIB


def test_memory_that_qemu_offers_can_be_merged() -> None:
    # The translation buffer of tcg is private and larger than the guest.
    maps = (mapping(1024, PLAIN, resident_mib=90), mapping(512, MARKED, resident_mib=300))
    assert judged(*maps) == ("mergeable", "", 300)


@pytest.mark.parametrize(
    ("memory", "words", "kind", "why", "resident_mib"),
    [
        (
            mapping(512, "rd wr sh ht", path="/dev/hugepages/x", huge_mib=512),
            "",
            "hugetlbfs",
            "hugetlbfs",
            512,
        ),
        (
            mapping(512, "rd wr sh", path="/memfd:pc.ram (deleted)", resident_mib=200),
            "",
            "shared",
            r"shared mapping \(/memfd:pc.ram\)",
            200,
        ),
        (mapping(512, PLAIN, resident_mib=99), "-machine pc,mem-merge=off", "unmarked", "mem-merge=off", 99),
        (
            mapping(512, PLAIN, resident_mib=99),
            '-object {"qom-type":"memory-backend-ram","merge":false}',
            "unmarked",
            "was told not to",
            99,
        ),
        (mapping(512, PLAIN, resident_mib=99), "-machine pc", "unmarked", "did not offer", 99),
        (mapping(512, None, resident_mib=99), "", "unknown", "no VmFlags", 99),
    ],
)
def test_memory_that_cannot_be_merged_has_its_reason(
    memory: str, words: str, kind: str, why: str, resident_mib: int
) -> None:
    # The video memory beside it is marked all the same, where the kernel tells.
    maps = (memory, mapping(16, None if kind == "unknown" else MARKED, resident_mib=1))
    found = judged(*maps, words=words)
    assert found[::2] == (kind, resident_mib)
    assert virtual_machines.re.search(why, found[1])


def test_a_device_s_registers_are_no_memory_and_pin_the_guest_s() -> None:
    registers = mapping(8192, "rd wr sh io pf", path="anon_inode:[vfio-device]")
    memory = mapping(512, MARKED, resident_mib=512)
    kind, why, _ = judged(registers, memory, files={"/dev/vfio/17"})
    assert kind == "mergeable" and "pinned for a device" in why
    assert judged(registers, memory, files={"/dev/kvm"})[1] == ""


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("-name guest=web01,debug-threads=on", "web01"),
        ("-name web01", "web01"),
        ("--name web01,process=x", "web01"),
        ("-name guest=a,,b", "a,b"),
        ("-m 512", ""),
    ],
)
def test_the_name_is_the_command_line_s(words: str, name: str) -> None:
    assert virtual_machines.name_of(["qemu-system-x86_64", *words.split()]) == name


@pytest.mark.parametrize(
    ("words", "mib"),
    [
        ("-m 512", 512),
        ("-m 4G", 4096),
        ("-m size=524288k,slots=16,maxmem=8G", 512),
        ("-m 256 -m 1T", 1 << 20),
        ("", 128),
    ],
)
def test_the_memory_is_the_command_line_s_in_its_units(words: str, mib: int) -> None:
    assert virtual_machines.memory_of(["qemu-system-x86_64", *words.split()]) == mib * MIB


@pytest.fixture(params=["linux-6.1", "linux-6.12"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(HOSTS / request.param, tmp_path / "host")
    for pid in (1001, 1002):
        (tmp_path / f"host/proc/{pid}/stat").write_text(STAT)
        (tmp_path / f"host/proc/{pid}/status").write_text("Name: x\nVmPTE:\t 1024 kB\n")
    return tmp_path / "host"


def machines(tree: Path) -> list[dict[str, Any]]:
    roots = Roots(tree / "proc", tree / "sys", tree / "run")
    found = [virtual_machines.read(pid, words, roots) for pid, words in virtual_machines.find(roots)]
    return [machine for machine in found if machine is not None]


def test_machines_are_found_on_older_kernels_too(tree: Path) -> None:
    first, second = machines(tree)
    assert (first["name"], first["memory_bytes"], first["mergeable_bytes"]) == (
        "ksm-testbed-guest01",
        512 * MIB,
        512 * MIB,
    )
    assert (second["pid"], second["name"], second["memory_bytes"]) == (1002, "web01", 1024 * MIB)
    # 6.1 has the number in a file of its own, 6.12 in ksm_stat too.
    assert [machine["merging_pages"] for machine in (first, second)] == [0, 0]
    assert (first["cpu_seconds"], first["page_tables_bytes"]) == (15.0, MIB)
    assert first["accelerator"] is None and first["libvirt"] is False


def test_what_is_open_tells_the_accelerator_and_libvirt_s_file_whose_it_is(tree: Path) -> None:
    (tree / "proc/1001/fd").mkdir()
    (tree / "proc/1001/fd/9").symlink_to("anon_inode:kvm-vm")
    (tree / "proc/1002/fd").mkdir()
    (tree / "run/libvirt/qemu").mkdir(parents=True)
    (tree / "run/libvirt/qemu/web01.pid").write_text("1002\n")
    (tree / "run/libvirt/qemu/ksm-testbed-guest01.pid").write_text("999\n")
    assert [(m["accelerator"], m["libvirt"]) for m in machines(tree)] == [("kvm", False), ("tcg", True)]


def test_pages_merged_that_no_file_tells_are_unknown_and_no_zero(tree: Path) -> None:
    (tree / "proc/1001/ksm_merging_pages").unlink()
    (tree / "proc/1001/ksm_stat").unlink()
    assert machines(tree)[0]["merging_pages"] is None


def test_a_machine_that_ends_meanwhile_is_no_machine(tree: Path) -> None:
    (tree / "proc/1001/smaps").unlink()
    assert [machine["name"] for machine in machines(tree)] == ["web01"]
