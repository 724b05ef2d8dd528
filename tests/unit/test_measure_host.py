"""The host probe against a tree recorded from a real host; the expected numbers are read off by hand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

ROOT = Path(__file__).parents[2]
ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))

from ansible.module_utils import ksm_probe  # noqa: E402
from ansible.module_utils.ksm_probe import ProbeError, Roots  # noqa: E402

RECORDED = ROOT / "tests/fixtures/host/linux-6.18"
DOMAINS = {"guest01": "ksm-guest01", "guest02": "ksm-guest02"}
GUEST01, GUEST02, OTHER, PLAIN, KSMD = 28619, 28620, 28621, 28622, 37
ABSENT_IN_6_1 = ("general_profit", "ksm_zero_pages", "pages_scanned", "pages_skipped", "smart_scan")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(RECORDED, tmp_path / "host")
    return tmp_path / "host"


@pytest.fixture
def linux_6_1(tree: Path) -> Path:
    ksm = tree / "sys/kernel/mm/ksm"
    for name in (*ABSENT_IN_6_1, *(path.name for path in ksm.glob("advisor_*"))):
        (ksm / name).unlink()
    for path in tree.glob("proc/*/ksm_stat"):
        path.write_text("ksm_rmap_items 0\nzero_pages_sharing 0\n")
    return tree


def roots(tree: Path) -> Roots:
    return Roots(tree / "proc", tree / "sys", tree / "run")


def observe(tree: Path) -> dict[str, Any]:
    seen: dict[str, Any] = ksm_probe.observe(DOMAINS, roots(tree))
    return seen


def other(pid: int, command: str, **numbers: int) -> dict[str, Any]:
    """A process that offers memory, as it is recorded."""
    none = {"mergeable_bytes": 0, "merging_pages": 0, "zero_pages": 0}
    return {"pid": pid, "command": command, **none, **numbers}


def column(path: Path, name: str) -> int:
    """A number by awk, which shares no code with the probe."""
    answer = subprocess.run(
        ["awk", "-v", f"name={name}", "$1 == name {print $2; exit}", path],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(answer.stdout)


def test_every_line_of_meminfo_is_kept_in_bytes(tree: Path) -> None:
    meminfo = observe(tree)["host"]["meminfo"]
    path = tree / "proc/meminfo"
    assert meminfo["MemTotal_bytes"] == 24684084 * 1024
    assert meminfo["MemAvailable_bytes"] == 24201852 * 1024
    for name in ("MemFree:", "Slab:", "PageTables:", "Active(anon):"):
        assert meminfo[f"{name[:-1]}_bytes"] == column(path, name) * 1024
    assert meminfo["HugePages_Total"] == 0
    assert "HugePages_Total_bytes" not in meminfo
    assert len(meminfo) == len(path.read_text().splitlines()) == 54


def test_free_pages_on_per_cpu_lists_are_summed_and_null_where_hidden(tree: Path) -> None:
    # awk '$1 == "count:" { s += $2 } END { print s }' zoneinfo
    assert observe(tree)["host"]["per_cpu_free_pages"] == 14636
    (tree / "proc/zoneinfo").unlink()
    assert observe(tree)["host"]["per_cpu_free_pages"] is None


def test_every_line_of_vmstat_is_kept(tree: Path) -> None:
    vmstat = observe(tree)["host"]["vmstat"]
    path = tree / "proc/vmstat"
    assert len(vmstat) == len(path.read_text().splitlines()) == 192
    for name in ("nr_free_pages", "pgfault", "pswpin", "thp_split_page"):
        assert vmstat[name] == column(path, name)


def test_ksm_counters_are_read(tree: Path) -> None:
    values = {"run": 1, "full_scans": 7, "pages_shared": 100, "pages_sharing": 36900, "general_profit": -4096}
    for name, value in values.items():
        (tree / "sys/kernel/mm/ksm" / name).write_text(f"{value}\n")
    ksm = observe(tree)["host"]["ksm"]
    assert {name: ksm[name] for name in values} == values
    assert ksm["ksm_zero_pages"] == 0


def test_cpu_seconds_of_the_host_and_of_ksmd(tree: Path) -> None:
    (tree / "proc/37/stat").write_text(
        "37 (ksmd) S 2 0 0 0 -1 2097216 0 0 0 0 250 1550 0 0 25 5 1 0 27 0 0\n"
    )
    host = observe(tree)["host"]
    assert host["ksmd_cpu_seconds"] == 18.0
    # cpu  67638 0 17598 347838 2954 0 314 338 0 0, in ticks of 10 ms.
    assert host["cpu_seconds"]["user"] == 676.38
    assert host["cpu_seconds"]["system"] == 175.98
    assert host["cpu_seconds"]["idle"] == 3478.38
    assert host["cpu_seconds"]["softirq"] == 3.14
    assert host["cpu_seconds"]["steal"] == 3.38


def test_pressure_is_read(tree: Path) -> None:
    # some avg10=1.78 avg60=1.63 avg300=1.51 total=25783175
    expected = {"avg10": 1.78, "avg60": 1.63, "avg300": 1.51, "total_microseconds": 25783175}
    assert observe(tree)["host"]["psi"]["cpu"]["some"] == expected


def test_a_guest_is_its_process(tree: Path) -> None:
    guest = observe(tree)["guests"]["guest01"]
    assert guest["pid"] == GUEST01
    assert guest["smaps_rollup"]["Rss_bytes"] == 24928 * 1024
    assert guest["smaps_rollup"]["Pss_bytes"] == 19923 * 1024
    assert guest["smaps_rollup"]["KSM_bytes"] == 0
    assert all(name.endswith("_bytes") for name in guest["smaps_rollup"])
    assert guest["page_tables_bytes"] == 96 * 1024
    # Fields 10, 12, 14 and 15 of its stat: 9173 0 0 0 0 2.
    assert (guest["minor_faults"], guest["major_faults"], guest["cpu_seconds"]) == (9173, 0, 0.02)
    assert guest["ksm_stat"]["ksm_mergeable"] == "yes"
    assert guest["ksm_stat"]["ksm_rmap_items"] == 0


def test_pss_is_the_sum_over_the_mappings(tree: Path) -> None:
    guest = observe(tree)["guests"]["guest02"]
    smaps = (tree / f"proc/{GUEST02}/smaps").read_text()
    each_kib = [int(kib) for kib in re.findall(r"^Pss: +(\d+) kB$", smaps, re.MULTILINE)]
    # Each mapping is rounded down to a KiB.
    assert (
        sum(each_kib) * 1024 <= guest["smaps_rollup"]["Pss_bytes"] <= (sum(each_kib) + len(each_kib)) * 1024
    )


def test_mergeable_bytes_is_what_the_process_offered(tree: Path) -> None:
    guests = observe(tree)["guests"]
    assert guests["guest01"]["mergeable_bytes"] == 64 << 20
    assert guests["guest02"]["mergeable_bytes"] == 32 << 20


def test_memory_that_ksm_may_not_touch_is_not_mergeable(tree: Path) -> None:
    path = tree / f"proc/{GUEST01}/smaps"
    path.write_text(path.read_text().replace(" ac mg", " ac"))
    assert observe(tree)["guests"]["guest01"]["mergeable_bytes"] == 0


def test_a_bystander_that_offers_memory_is_named_and_others_are_not(tree: Path) -> None:
    assert observe(tree)["other_mergeable"] == [other(OTHER, "python3", mergeable_bytes=8 << 20)]
    strangers = {other["pid"] for other in ksm_probe.observe({}, roots(tree))["other_mergeable"]}
    assert strangers == {GUEST01, GUEST02, OTHER}


def test_merged_pages_of_a_bystander_are_counted(tree: Path) -> None:
    path = tree / f"proc/{PLAIN}/ksm_stat"
    path.write_text(path.read_text().replace("ksm_merging_pages 0", "ksm_merging_pages 12"))
    assert other(PLAIN, "sleep", merging_pages=12) in observe(tree)["other_mergeable"]


def test_guests_of_the_testbed_are_no_others_where_no_domain_is_named(tree: Path) -> None:
    path = tree / f"proc/{GUEST01}/cmdline"
    path.write_bytes(path.read_bytes().replace(b"guest=ksm-guest01,", b"guest=ksm-testbed-guest01,"))
    seen = ksm_probe.observe({}, roots(tree))["other_mergeable"]
    assert {one["pid"] for one in seen} == {GUEST02, OTHER}


def test_of_a_process_that_says_that_it_offers_nothing_no_more_is_read(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes it quick for hundreds of them: smaps takes some ms of each, ksm_stat some us."""
    read: list[Path] = []
    reads = ksm_probe.read_optional
    monkeypatch.setattr(ksm_probe, "read_optional", lambda path: (read.append(path), reads(path))[1])
    ksm_probe.other_mergeable([], roots(tree))
    asked = {int(path.parent.name) for path in read if path.name == "smaps"}
    # ksmd is a thread of the kernel, whose files are empty.
    assert asked == {GUEST01, GUEST02, OTHER, KSMD}


@pytest.mark.parametrize(
    ("kernel", "offers"),
    [
        ("linux-6.1", {1001: 512 << 20, 1002: 1 << 30, 1004: 8 << 20}),
        ("linux-6.12", {1001: 512 << 20, 1002: 1 << 30, 1004: 8 << 20, 1005: (4096 + 132) << 10}),
    ],
)
def test_kernels_without_flags_in_ksm_stat_are_asked_for_the_flags_of_mappings(
    kernel: str, offers: dict[int, int]
) -> None:
    made = roots(ROOT / "tests/fixtures/host" / kernel)
    found = ksm_probe.other_mergeable([], made)
    assert {one["pid"]: one["mergeable_bytes"] for one in found} == offers
    assert {one["pid"]: one["merging_pages"] for one in found if one["merging_pages"]} == {1004: 512}
    assert ksm_probe.own_pids(made) == {1001}


def test_what_may_not_be_read_is_an_error_and_not_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Path.read_text

    def refuse(path: Path, **options: Any) -> str:
        if path.name == "smaps":
            raise PermissionError(path)
        return reads(path, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ProbeError, match="offers memory to KSM is not known"):
        ksm_probe.other_mergeable([], roots(tree))


def test_tuners_that_run_are_named(tree: Path) -> None:
    assert observe(tree)["tuners"] == []
    (tree / f"proc/{PLAIN}/comm").write_text("ksmtuned\n")
    assert observe(tree)["tuners"] == ["ksmtuned"]


def test_an_old_kernel_gives_null_for_what_it_has_not(linux_6_1: Path) -> None:
    seen = observe(linux_6_1)
    for name in ABSENT_IN_6_1[:4]:
        assert seen["host"]["ksm"][name] is None
    assert seen["host"]["ksm"]["pages_sharing"] == 0
    assert seen["guests"]["guest01"]["ksm_stat"] == {"ksm_rmap_items": 0, "zero_pages_sharing": 0}
    assert "smart_scan" not in ksm_probe.provenance(roots(linux_6_1))["ksm_knobs"]


def test_a_bystander_on_an_old_kernel_is_found_by_its_merged_pages(linux_6_1: Path) -> None:
    (linux_6_1 / f"proc/{PLAIN}/ksm_stat").unlink()
    (linux_6_1 / f"proc/{PLAIN}/ksm_merging_pages").write_text("3\n")
    found = observe(linux_6_1)["other_mergeable"]
    assert found == [
        other(OTHER, "python3", mergeable_bytes=8 << 20),
        other(PLAIN, "sleep", merging_pages=3),
    ]


def test_a_kernel_without_ksm_stat_gives_null(tree: Path) -> None:
    (tree / f"proc/{GUEST01}/ksm_stat").unlink()
    guests = observe(tree)["guests"]
    assert guests["guest01"]["ksm_stat"] is None
    assert guests["guest02"]["ksm_stat"] is not None


def test_a_kernel_without_pressure_gives_null(tree: Path) -> None:
    shutil.rmtree(tree / "proc/pressure")
    assert observe(tree)["host"]["psi"] is None


@pytest.mark.parametrize("name", ["run", "full_scans", "pages_shared", "pages_sharing"])
def test_a_missing_required_counter_is_an_error_that_names_it(tree: Path, name: str) -> None:
    (tree / "sys/kernel/mm/ksm" / name).unlink()
    with pytest.raises(ProbeError, match=rf"ksm/{name} is missing"):
        observe(tree)


@pytest.mark.parametrize("name", ["MemTotal", "MemAvailable", "SwapTotal"])
def test_a_missing_line_of_meminfo_is_an_error_that_names_it(tree: Path, name: str) -> None:
    path = tree / "proc/meminfo"
    path.write_text(re.sub(rf"^{name}:.*\n", "", path.read_text(), flags=re.MULTILINE))
    with pytest.raises(ProbeError, match=rf"meminfo has no {name};"):
        observe(tree)


def test_a_missing_smaps_rollup_is_an_error_that_names_it(tree: Path) -> None:
    (tree / f"proc/{GUEST02}/smaps_rollup").unlink()
    with pytest.raises(ProbeError, match=r"smaps_rollup is missing; measuring domain ksm-guest02"):
        observe(tree)


def test_a_counter_that_is_no_number_is_an_error_that_shows_it(tree: Path) -> None:
    (tree / "sys/kernel/mm/ksm/pages_sharing").write_text("many\n")
    with pytest.raises(ProbeError, match=r"pages_sharing holds 'many'; expected an integer"):
        observe(tree)


def test_a_kernel_without_ksm_is_an_error(tree: Path) -> None:
    shutil.rmtree(tree / "sys/kernel/mm/ksm")
    with pytest.raises(ProbeError, match="built without KSM"):
        observe(tree)


def test_a_program_that_calls_itself_ksmd_is_not_ksmd(tree: Path) -> None:
    shutil.rmtree(tree / f"proc/{KSMD}")
    stat = (tree / f"proc/{PLAIN}/stat").read_text()
    (tree / f"proc/{PLAIN}/stat").write_text(stat.replace("(sleep)", "(ksmd)"))
    with pytest.raises(ProbeError, match="kernel thread ksmd is not in"):
        observe(tree)


def test_a_domain_without_a_pid_file_is_named(tree: Path) -> None:
    (tree / "run/libvirt/qemu/ksm-guest02.pid").unlink()
    with pytest.raises(ProbeError, match="domain ksm-guest02 is not running"):
        observe(tree)


def test_a_domain_whose_process_is_gone_is_named(tree: Path) -> None:
    shutil.rmtree(tree / f"proc/{GUEST02}")
    with pytest.raises(
        ProbeError, match=rf"domain ksm-guest02 is not running: its process {GUEST02} is gone"
    ):
        observe(tree)


def test_a_pid_that_another_program_has_by_now_is_refused(tree: Path) -> None:
    (tree / "run/libvirt/qemu/ksm-guest02.pid").write_text(str(PLAIN))
    with pytest.raises(ProbeError, match=r"domain ksm-guest02 is not running: .* is another program"):
        observe(tree)


def test_the_process_of_a_longer_name_is_refused(tree: Path) -> None:
    path = tree / f"proc/{GUEST01}/cmdline"
    path.write_bytes(path.read_bytes().replace(b"guest=ksm-guest01,", b"guest=ksm-guest011,"))
    with pytest.raises(ProbeError, match="domain ksm-guest01 is not running"):
        observe(tree)


def test_a_command_with_brackets_and_blanks_does_not_shift_the_fields() -> None:
    stat = ksm_probe.parse_stat("9 (a) R (b c) S 4 0 0 0 -1 0 11 0 12 0 130 170 0 0 20 0 1 0 0 0 0")
    assert stat == ("a) R (b c", 4, 11, 12, 3.0)


def test_provenance_is_what_the_host_is(tree: Path) -> None:
    seen = ksm_probe.provenance(roots(tree))
    assert seen["kernel_release"] == (RECORDED / "proc/sys/kernel/osrelease").read_text().strip()
    assert seen["kernel_release"].startswith("6.18.")
    assert (seen["cpu_count"], seen["memory_total_bytes"], seen["swap_total_bytes"]) == (
        2,
        24684084 * 1024,
        0,
    )
    assert seen["thp"]["enabled"] == "madvise"
    assert seen["thp"]["khugepaged_max_ptes_none"] == "511"
    assert seen["thp"]["hugepages-2048kB_enabled"] == "inherit"
    assert "khugepaged_full_scans" not in seen["thp"]
    knobs = seen["ksm_knobs"]
    assert (knobs["pages_to_scan"], knobs["max_page_sharing"], knobs["advisor_mode"]) == (100, 256, "none")
    assert not {"run", "full_scans", "pages_sharing", "general_profit"} & set(knobs)


def run_module(name: str, arguments: dict[str, Any], cwd: Path) -> dict[str, Any]:
    """Run a module as Ansible would, in a process of its own."""
    wrapper = (
        "import runpy, sys, ansible.module_utils;"
        f"ansible.module_utils.__path__.append({str(ROOT / 'plugins/module_utils')!r});"
        f"runpy.run_path({str(ROOT / 'plugins/modules' / name)!r}, run_name='__main__')"
    )
    (cwd / "arguments.json").write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    script = f"import sys; sys.argv = ['module', {str(cwd / 'arguments.json')!r}];{wrapper}"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


def test_the_module_returns_all_parts_and_changes_nothing(tree: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    arguments = {f"{name}_root": str(tree / name) for name in ("proc", "sys", "run")}
    result = run_module("measure_host.py", {"domains": DOMAINS, **arguments}, tmp_path)
    assert result["changed"] is False
    assert result["observed"] == observe(tree)
    assert result["provenance"]["page_size_bytes"] == os.sysconf("SC_PAGE_SIZE")
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before


def test_the_module_drops_the_caches_where_it_is_asked_to(tree: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {f"{name}_root": str(tree / name) for name in ("proc", "sys", "run")}
    drop = tree / "proc/sys/vm/drop_caches"
    refused = run_module("measure_host.py", {"drop_caches": True, **arguments}, tmp_path)
    assert refused["msg"] == f"{drop} refused 3: No such file or directory"
    drop.parent.mkdir()
    drop.write_text("0\n")
    foreseen = run_module(
        "measure_host.py", {"drop_caches": True, "_ansible_check_mode": True, **arguments}, tmp_path
    )
    assert (foreseen["changed"], drop.read_text()) == (True, "0\n")
    result = run_module("measure_host.py", {"domains": DOMAINS, "drop_caches": True, **arguments}, tmp_path)
    assert (result["changed"], drop.read_text()) == (True, "3\n")
    assert result["observed"] == observe(tree)


def test_a_guest_that_is_paused_is_not_measured_and_the_caches_are_kept(tree: Path, tmp_path: Path) -> None:
    drop = tree / "proc/sys/vm/drop_caches"
    drop.parent.mkdir(parents=True, exist_ok=True)
    drop.write_text("0\n")
    arguments = {f"{name}_root": str(tree / name) for name in ("proc", "sys", "run")}
    status = tree / "run/libvirt/qemu/ksm-guest02.xml"
    status.write_text("<domstatus state='paused' reason='ioerror' pid='7'>\n")
    result = run_module("measure_host.py", {"domains": DOMAINS, "drop_caches": True, **arguments}, tmp_path)
    assert result["msg"].startswith("guest02 does not run: it was paused since the disk under its own ")
    assert drop.read_text() == "0\n"
    status.write_text("<domstatus state='running' reason='restored' pid='7'>\n")
    assert "failed" not in run_module("measure_host.py", {"domains": DOMAINS, **arguments}, tmp_path)


def test_the_module_fails_with_the_sentence_alone(tree: Path, tmp_path: Path) -> None:
    arguments = {f"{name}_root": str(tree / name) for name in ("proc", "sys", "run")}
    result = run_module("measure_host.py", {"domains": {"guest09": "ksm-guest09"}, **arguments}, tmp_path)
    assert result["failed"] is True
    assert result["msg"].startswith("domain ksm-guest09 is not running: ")
    assert "Traceback" not in json.dumps(result)


@pytest.mark.parametrize("domain", ["../guest", "/run/other", "a/b", ".."])
def test_a_domains_name_leads_to_no_other_file(tmp_path: Path, domain: str) -> None:
    roots = Roots(proc=tmp_path, sys=tmp_path, run=tmp_path)
    with pytest.raises(ProbeError, match="is not running: "):
        ksm_probe.domain_pid(domain, roots)
    (tmp_path / "libvirt/guest.pid").parent.mkdir()
    (tmp_path / "libvirt/qemu").mkdir()
    (tmp_path / "libvirt/guest.pid").write_text("1")
    if "/" in domain:
        with pytest.raises(ProbeError, match="no domain can have that name"):
            ksm_probe.domain_pid(domain, roots)
