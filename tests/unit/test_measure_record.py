"""The action measure_record, run by ansible-playbook against a recorded tree, and its file handling."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from channel_guest import ChannelGuest
from playing import QUICK
from small_project import HEED_SIGNALS
from waiting import FOREVER_SECONDS, wait_until

from analysis.records.models import PHASES
from analysis.records.reading import read_record

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests/fixtures/host/linux-6.18"
DIGEST = "sha256:" + "a" * 64
CELL = {
    "hypervisor": "localhost",
    "cell_id": "constant_fill-ksm-guests2-boot1-rep1",
    "workload": "constant_fill",
    "policy": "ksm",
    "guests": 2,
    "guest_memory_bytes": 64 << 20,
    "boot": 1,
    "repetition": 1,
}
START = {
    "from": "checkpoint",
    "checkpoint": "boot1-64mib-0123456789ab",
    "booted_at": "2026-11-26T08:00:00.000000Z",
    "boot_seconds": 85.5,
    "restore_seconds": 12.3,
    "loaded": False,
    "arm_order": "off-on",
}
REQUESTED = {
    "policy": "ksm",
    "service": "",
    "ksm_knobs": {"pages_to_scan": 100},
    "thp_enabled": "keep",
    "accelerator": "auto",
    "guest_reserve_bytes": 0,
    "convergence": {"min_full_scans": 3, "window_scans": 2, "threshold_percent": 0.5, "timeout_seconds": 2},
    "sample_interval_seconds": 0.5,
    # The recorded host has a bystander that offers memory, and guests of another name.
    "others": "allow",
}
WORKLOAD = {"filled_bytes": 4096, "digest": "d", "fill_seconds": 1.5, "seed": "run:1:guest01"}
VERIFIED = {"filled_bytes": 4096, "digest_before": "d", "digest_after": "d", "intact": True}


def load_action() -> Any:
    spec = importlib.util.spec_from_file_location("measure_record", ROOT / "plugins/action/measure_record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Play:
    """One ansible-playbook run of several measure_record tasks, each allowed to fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "host"
        self.cell = folder / "results/run/localhost/cell"
        shutil.copytree(RECORDED, self.tree)

    def arguments(self, phase: str | bool, **changes: Any) -> dict[str, Any]:
        return {
            "phase": phase,
            "run_id": "run",
            "cell": CELL,
            "requested": REQUESTED,
            "provenance": {
                "design_digest": DIGEST,
                "image_digest": DIGEST,
                "accelerator": "tcg",
                "testbed_version": "0.1.0",
                "start": START,
                "ksm_before": {"run": 1, "merged_pages": 0},
            },
            "directory": str(self.cell),
            **{f"{name}_root": str(self.tree / name) for name in ("proc", "sys", "run")},
            **changes,
        }

    def command(self, tasks: list[dict[str, Any]], *options: str) -> tuple[list[str], dict[str, str]]:
        plays = [
            {
                "hosts": "all",
                "gather_facts": False,
                "tasks": [
                    {"name": f"Task {number}", "ignore_errors": True, "measure_record": arguments}
                    for number, arguments in enumerate(tasks)
                ],
            }
        ]
        (self.folder / "play.yml").write_text(json.dumps(plays))
        (self.folder / "ansible.cfg").write_text(QUICK)
        environment = {
            **os.environ,
            "ANSIBLE_LIBRARY": str(ROOT / "plugins/modules"),
            "ANSIBLE_MODULE_UTILS": str(ROOT / "plugins/module_utils"),
            "ANSIBLE_ACTION_PLUGINS": str(ROOT / "plugins/action"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.folder / "remote"),
            "PYTHONPATH": str(ROOT),
            "ANSIBLE_ASYNC_DIR": str(self.folder / "async"),
            "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
        }
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "localhost,",
            "-c",
            "local",
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            *options,
            str(self.folder / "play.yml"),
        ]
        return command, environment

    def run(self, tasks: list[dict[str, Any]], *options: str) -> str:
        command, environment = self.command(tasks, *options)
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=FOREVER_SECONDS
        )
        return answer.stdout + answer.stderr

    def record(self, phase: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.cell / f"{phase}.json").read_text())
        return record


GUESTS = ("guest01", "guest02")
DOMAINS = {"guest01": "ksm-guest01", "guest02": "ksm-guest02"}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> tuple[Play, str]:
    """All phases of one cell; off and on unquoted, as YAML hands them over."""
    play = Play(tmp_path_factory.mktemp("cell"))
    (play.tree / "sys/kernel/mm/ksm/smart_scan").write_text("0\n")
    output = play.run(
        [
            play.arguments(False, domains=DOMAINS, workload=dict.fromkeys(GUESTS, WORKLOAD)),
            play.arguments("merge"),
            play.arguments(True, domains=DOMAINS, workload=dict.fromkeys(GUESTS, WORKLOAD)),
            play.arguments("after", start_ksm=False, until="seconds", duration_seconds=1.5),
            play.arguments("verify", verify=dict.fromkeys(GUESTS, VERIFIED)),
            play.arguments("failed", failure={"phase": "verify", "task": "Read", "message": "guest02 died"}),
        ]
    )
    return play, output


@pytest.mark.parametrize("phase", ["off", "merge", "on", "after", "verify", "failed"])
def test_every_phase_leaves_a_valid_private_record(cell: tuple[Play, str], phase: str) -> None:
    play, output = cell
    record = play.record(phase)
    assert read_record(play.cell / f"{phase}.json", PHASES[phase]).to_json() == record, output
    assert record["kind"] == phase
    assert record["cell"] == CELL
    assert record["requested"] == REQUESTED
    assert record["provenance"]["start"] == START
    assert record["provenance"]["ksm_before"] == {"run": 1, "merged_pages": 0}
    assert record["provenance"]["memory_total_bytes"] == 24684084 * 1024
    assert record["provenance"]["guest_memory_bytes"] == 64 << 20
    assert stat.S_IMODE((play.cell / f"{phase}.json").stat().st_mode) == 0o600


def test_every_directory_is_private_and_nothing_else_is_left(cell: tuple[Play, str]) -> None:
    play, _ = cell
    for folder in (play.cell, play.cell.parent, play.cell.parents[1], play.cell.parents[2]):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in play.cell.iterdir()) == [
        "after.json",
        "failed.json",
        "merge.json",
        "off.json",
        "on.json",
        "verify.json",
    ]
    assert list((play.tree / "run").glob("*.progress")) == []
    assert list((play.folder / "async").iterdir()) == []


def test_off_and_on_hold_the_guests_and_the_workload(cell: tuple[Play, str]) -> None:
    before, after = (cell[0].record(phase)["observed"] for phase in ("off", "on"))
    assert before["guests"]["guest01"]["smaps_rollup"]["Pss_bytes"] == 19923 * 1024
    assert before["guests"]["guest02"]["mergeable_bytes"] == 32 << 20
    assert before["workload"]["guest02"] == after["workload"]["guest02"] == WORKLOAD
    assert (before["host"]["ksm"]["run"], after["host"]["ksm"]["run"]) == (0, 1)


def test_merge_shows_progress_and_says_that_it_did_not_settle(cell: tuple[Play, str]) -> None:
    play, output = cell
    observed = play.record("merge")["observed"]
    assert observed["converged"] is False
    assert observed["samples"]["seconds"][-1] == observed["duration_seconds"] >= 2
    assert {len(column) for column in observed["samples"].values()} == {len(observed["samples"]["seconds"])}
    assert "    [localhost] scan 0, saved 0 MiB (0.0 MiB/VM), 0 s\n" in output
    assert "    [localhost] not settled when the 2 s were over: only 0 of the 3 full scans" in output


def test_after_follows_for_the_time_that_is_asked(cell: tuple[Play, str]) -> None:
    observed = cell[0].record("after")["observed"]
    assert 1.5 <= observed["duration_seconds"] < REQUESTED["convergence"]["timeout_seconds"]  # type: ignore[index]
    assert observed["samples"]["seconds"][0] < 0.5
    assert observed["reason"].startswith("not settled when the 1.5 s were over")


def test_after_does_not_switch_ksm_on(tmp_path: Path) -> None:
    play = Play(tmp_path)
    output = play.run([play.arguments("after", start_ksm=False, until="seconds", duration_seconds=1)])
    assert "KSM is not running (run is not 1)" in output
    assert (play.tree / "sys/kernel/mm/ksm/run").read_text() == "0\n"
    assert not (play.cell / "after.json").exists()


def test_what_cannot_be_measured_is_one_sentence_and_no_record(tmp_path: Path) -> None:
    play = Play(tmp_path)
    (tmp_path / "file").write_text("")
    no_start = {**play.arguments("off")["provenance"], "start": None}
    bad_requested = {**REQUESTED, "convergence": {**REQUESTED["convergence"], "window_scans": 0}}  # type: ignore[dict-item]
    output = play.run(
        [
            play.arguments("off", domains={"guest01": "ksm-guest01", "guest02": "ksm-guest09"}),
            play.arguments("off", domains={"guest01": "ksm-guest01"}),
            play.arguments("off"),
            play.arguments("off", domains=DOMAINS, directory=str(tmp_path / "file/cell")),
            play.arguments("off", domains=DOMAINS, directory="results/cell"),
            play.arguments("merge", requested=bad_requested),
            play.arguments("lunch"),
            play.arguments("off", domains=DOMAINS, cell={**CELL, "boot": 0}),
            play.arguments("off", domains=DOMAINS, provenance=no_start),
            play.arguments("off", domains=DOMAINS, workload={"guest03": WORKLOAD, "guest04": WORKLOAD}),
            play.arguments("failed"),
        ]
    )
    for sentence in (
        "domain ksm-guest09 is not running: ",
        "domains names 1 guests; cell.guests is 2.",
        "phase off needs the argument domains.",
        f"cannot write in {tmp_path}/file/cell: Not a directory.",
        "directory is 'results/cell'; it must be an absolute path.",
        "window_scans is 0; it must be 1 or more",
        "value of phase must be one of: off, merge, on, after, leave, arrive, diverge, verify, performance, "
        "failed, got: lunch",
        "off.json is not valid at $.cell.boot: Input should be greater than or equal to 1.",
        "off.json is not valid at $.provenance.start: Input should be an object.",
        "workload names guest03, guest04, not in domains.",
        "phase failed needs the argument failure.",
    ):
        assert sentence in output
    assert "Traceback" not in output
    assert list(play.cell.iterdir()) == []


def test_of_a_mix_the_guests_that_hold_something_are_named(tmp_path: Path) -> None:
    play = Play(tmp_path)
    mix = {**CELL, "workload": "constant_fill=1,idle=1", "cell_id": "mix-constant_fill1-idle1"}
    output = play.run(
        [
            play.arguments("off", cell=mix, domains=DOMAINS, workload={"guest01": WORKLOAD}),
            play.arguments("verify", cell=mix, verify={"guest01": VERIFIED}),
        ]
    )
    assert list(play.record("off")["observed"]["workload"]) == ["guest01"], output
    assert list(play.record("off")["observed"]["guests"]) == list(GUESTS)
    assert list(play.record("verify")["observed"]["guests"]) == ["guest01"], output


def test_a_record_is_not_written_over_unless_asked(tmp_path: Path) -> None:
    play = Play(tmp_path)
    verify = dict.fromkeys(GUESTS, VERIFIED)
    other = {"guest01": {**VERIFIED, "filled_bytes": 8192}, "guest02": VERIFIED}
    output = play.run([play.arguments("verify", verify=verify), play.arguments("verify", verify=other)])
    assert "verify.json exists and is kept" in output
    first = play.record("verify")
    assert first["observed"]["guests"] == verify
    play.run([play.arguments("verify", verify=other, replace=True)])
    assert play.record("verify")["observed"]["guests"] == other
    assert play.record("verify")["recorded_at"] > first["recorded_at"]


def test_where_nothing_is_held_the_record_of_verify_is_of_the_host_as_it_was_measured(tmp_path: Path) -> None:
    play = Play(tmp_path)
    output = play.run(
        [
            play.arguments("on", domains=DOMAINS),
            play.arguments("verify", channels={"guest01": "/nowhere"}, proc_root=str(tmp_path / "absent")),
        ]
    )
    on, verify = play.record("on"), play.record("verify")
    assert verify["observed"] == {"guests": {}}, output
    for name in ("provenance", "recorded_at", "monotonic_seconds"):
        assert verify[name] == on[name]


def test_caches_are_dropped_before_the_guests_are_read_and_not_before_others(tmp_path: Path) -> None:
    play = Play(tmp_path)
    drop = play.tree / "proc/sys/vm/drop_caches"
    drop.parent.mkdir()
    drop.write_text("0\n")
    failure = {"phase": "off", "task": "Read", "message": "no"}
    asked = {"domains": DOMAINS, "drop_caches": True}
    output = play.run([play.arguments("failed", failure=failure, **asked)])
    assert drop.read_text() == "0\n", output
    output = play.run([play.arguments("off", **asked)])
    assert (drop.read_text(), "changed=1" in output) == ("3\n", True), output


def test_check_mode_says_what_it_would_do_and_does_nothing(tmp_path: Path) -> None:
    play = Play(tmp_path)
    output = play.run([play.arguments("merge"), play.arguments("off", domains=DOMAINS)], "--check", "-v")
    assert f"would measure merge and write {play.cell}/merge.json" in output
    assert not play.cell.exists()
    assert (play.tree / "sys/kernel/mm/ksm/run").read_text() == "0\n"


def test_failures_are_kept_for_the_end_of_the_run(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tasks = [
        play.arguments("failed", failure={"phase": "load", "task": "Load", "message": f"guest0{one} died"})
        for one in (1, 2)
    ]
    output = play.run(tasks, "-v")
    assert '"failures": ["guest01 died", "guest02 died"]' in output


def test_a_failure_is_recorded_even_where_the_host_tells_nothing(tmp_path: Path) -> None:
    play = Play(tmp_path)
    failure = {"phase": "restore", "task": "Wait", "message": "x" * 10_000}
    play.run([play.arguments("failed", failure=failure, provenance={}, proc_root=str(tmp_path / "absent"))])
    record = play.record("failed")
    assert read_record(play.cell / "failed.json", PHASES["failed"]).to_json() == record
    assert record["provenance"]["kernel_release"] is None
    assert record["provenance"]["start"] is None
    assert record["observed"] == {"phase": "restore", "task": "Wait", "message": "x" * 4000}


STARTING, FOLLOWED = "while it starts the sampler", "while it follows the sampler"


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, STARTING),
        (signal.SIGTERM, STARTING),
        (signal.SIGKILL, STARTING),
        (signal.SIGTERM, FOLLOWED),
    ],
)
def test_the_sampler_ends_with_the_controller(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    play = Play(tmp_path)
    (play.tree / "sys/kernel/mm/ksm/smart_scan").write_text("0\n")
    requested = {**REQUESTED, "convergence": {**REQUESTED["convergence"], "timeout_seconds": 3600}}  # type: ignore[dict-item]
    command, environment = play.command([play.arguments("merge", requested=requested)])
    said = tmp_path / "said"
    with said.open("w") as output:
        controller = subprocess.Popen(
            [*HEED_SIGNALS, *command], env=environment, stdout=output, stderr=output, start_new_session=True
        )

    def samplers() -> list[str]:
        """Processes of the module itself, without the wrapper that started it."""
        lines = [command_line(path) for path in Path("/proc").glob("[0-9]*")]
        module = f"{tmp_path}/remote"
        return [line for line in lines if module in line and line.endswith("AnsiballZ_measure_series.py")]

    try:
        wait_until(samplers, "the sampler runs")
        if moment == FOLLOWED:
            wait_until(lambda: "saved 0 MiB" in said.read_text(), "the controller shows its progress")
        controller.send_signal(number)
        assert controller.wait(timeout=FOREVER_SECONDS) != 0
        wait_until(lambda: not samplers(), "the sampler ends")
        wait_until(lambda: not list((play.tree / "run").glob("*.progress")), "no progress is left")
    finally:
        controller.kill()
    assert not (play.cell / "merge.json").exists()


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def test_the_guests_that_were_filled_are_asked_for_the_digest_of_the_same_memory(tmp_path: Path) -> None:
    """One has what it had, the other not; a third, which fills nothing, is not asked."""

    def talk(connection: socket.socket, requests: Iterator[dict[str, Any]]) -> None:
        for request in requests:
            answer = {"filled_bytes": 1 << 20, "digest": "crc32-sha256:" + "a" * 64}
            connection.sendall(json.dumps({"id": request["id"], "answer": answer}).encode() + b"\n")

    play = Play(tmp_path)
    ports = {name: ChannelGuest(tmp_path / name, talk) for name in ("guest01", "guest02", "guest03")}
    report = {"filled_bytes": 1 << 20, "fill_seconds": 1, "seed": "s"}
    filled = {
        name: {**report, "digest": "crc32-sha256:" + letter * 64}
        for name, letter in (("guest01", "a"), ("guest02", "b"))
    }
    try:
        channels = {name: str(port.path) for name, port in ports.items()}
        output = play.run([play.arguments("verify", workload=filled, channels=channels)])
    finally:
        for port in ports.values():
            port.close()
    seen = play.record("verify")["observed"]["guests"]
    assert {name: verdict["intact"] for name, verdict in seen.items()} == {
        "guest01": True,
        "guest02": False,
    }, output
    assert [port.heard[0]["words"] for port in ports.values() if port.heard] == [["verify"], ["verify"]]
