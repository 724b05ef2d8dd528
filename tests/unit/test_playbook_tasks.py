"""Cells and the arms of a capacity run, played by the playbooks with modules that only say that they ran."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import pytest
from planned import variables
from playing import play_book
from plugin_files import ROOT, load, run
from synthetic_capacity import ANSWER, probe
from synthetic_survey import survey_record

from analysis.progress.module import SERIES

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="long modules have their progress in /run")
RECORDED = ROOT / "tests/fixtures/host/linux-6.18"
DOMAINS = {"guest01": "ksm-guest01", "guest02": "ksm-guest02"}
# Each writes down that it ran and answers what it was made with, or that for its state; it fails where a file
# says so.
MODULE = """#!/usr/bin/python3
# WANT_JSON
import datetime, json, pathlib, sys, time

folder, name = pathlib.Path(FOLDER), NAME
given = json.loads(pathlib.Path(sys.argv[1]).read_text())
with open(folder / "log", "a") as log:
    log.write(" ".join([name, given.get("state", "")]).strip() + "\\n")
failing = folder / (name + ".fails")
answers = json.loads(ANSWER)
answer = answers.get(given.get("state"), answers)
if "recorded_at" in answer:
    answer["recorded_at"] = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%S.%fZ}"
    answer["monotonic_seconds"] = time.monotonic()
# Who is asked answers.
if name == "workload" and "segments" in given:
    answer["answers"] = {guest: answer["answers"][guest] for guest in given["segments"]}
# As on a host: the policy's knobs stay as they were set, and KSM runs once it was started.
policy, running = folder / "policy", folder / "running"
if name == "ksm":
    policy.write_text(json.dumps(given["knobs"]))
    running.unlink(missing_ok=True)
elif name == "measure_series" and given.get("start_ksm"):
    running.touch()
elif name == "measure_host" and policy.exists():
    answer["provenance"]["ksm_knobs"].update(json.loads(policy.read_text()))
    answer["observed"]["host"]["ksm"]["run"] = int(running.exists())
if failing.exists():
    answer = {"failed": True, "msg": failing.read_text()}
print(json.dumps({"changed": True, **answer}))
"""
# The real ones have files of their own on the host, which a run that measures meanwhile may use.
ACTION = """
import json, pathlib
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        state = self._task.args.get("state", "")
        with open(pathlib.Path(FOLDER) / "log", "a") as log:
            log.write(" ".join([NAME, state]).strip() + "\\n")
        with open(pathlib.Path(FOLDER) / "hosts", "a") as hosts:
            hosts.write(NAME + " " + task_vars["inventory_hostname"] + "\\n")
        answer = {"domains": {}} if state == "absent" else json.loads(ANSWER)
        # Only guests that are started come to the barrier.
        running = pathlib.Path(FOLDER) / "guests_running"
        if state == "restored":
            stay = int(running.read_text()) if self._task.args.get("keep_running") and running.exists() else 0
            answer["barrier"] = dict(list(answer["barrier"].items())[stay:])
            answer["start"]["restore_seconds"] = 12.3 + stay
        running.write_text(str(self._task.args.get("guests") or 0))
        # Guests that were saved loaded are restored so.
        load = pathlib.Path(FOLDER) / "load"
        if state == "saved":
            load.write_text(json.dumps(self._task.args["load"], default=str))
        elif state == "restored" and load.exists():
            answer["load"] = json.loads(load.read_text())
        return {**super().run(tmp, task_vars), **answer}
"""
RESTORED = {
    "domains": DOMAINS,
    "channels": dict.fromkeys(DOMAINS, "/nowhere"),
    "barrier": {name: {"available_bytes": 400 << 20} for name in DOMAINS},
    "load": {},
    "start": {
        "from": "checkpoint",
        "checkpoint": "boot1-512mib-0123456789ab",
        "booted_at": "2026-11-26T08:00:00.000000Z",
        "boot_seconds": 85.5,
        "restore_seconds": 12.3,
        "loaded": False,
        "arm_order": "off-on",
    },
}
REPORT = {"filled_bytes": 1 << 20, "digest": "d", "fill_seconds": 1.5, "seed": "s"}
VERDICT = {"filled_bytes": 1 << 20, "digest_before": "d", "digest_after": "d", "intact": True}
DIVERGED = {
    **ANSWER,
    "cpu_iterations_per_second": None,
    "written_bytes": 1 << 20,
    "digest": "d",
    "seconds": 1.5,
}
WORKLOAD = {
    "loaded": {"answers": dict.fromkeys(DOMAINS, REPORT), "silent": {}, "size_bytes": 1 << 20},
    "verified": {"answers": dict.fromkeys(DOMAINS, VERDICT), "silent": {}},
    "probed": {"answers": {}, "silent": {}, "probes": [probe(name) for name in DOMAINS]},
    "diverged": {"answers": dict.fromkeys(DOMAINS, DIVERGED), "silent": {}},
}
PERFORMED = {
    "printed": "100 a second\n",
    "figure": 100.0,
    "unit": "requests/s",
    "took": {"seconds": 1.0, "run_seconds": None, "wait_seconds": None},
}
APPLICATION = {
    "loaded": {"answers": {"guest02": {**REPORT, "filled_bytes": 0, "digest": "app"}}},
    "verified": {"answers": {"guest02": {**VERDICT, "digest_before": "app", "digest_after": "app"}}},
    "performed": {"answers": {"guest02": PERFORMED}},
}
BEGINS = ["guests absent", "ksm", "guests restored"]
IDLE = [*BEGINS, "measure_host", "measure_series", "measure_host"]


class Host:
    """A host whose modules and their answers are files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("library", "actions"):
            (folder / name).mkdir()
        for action in (ROOT / "plugins/action").glob("*.py"):
            (folder / "actions" / action.name).symlink_to(action)
        for name in ("guests", "put_right"):
            self._write(f"actions/{name}.py", ACTION, name, RESTORED)
        for name in ("ksm", "census"):
            self._write(f"library/{name}.py", MODULE, name, {})
        surveyed = survey_record({"one": [1, 2, 0], "two": [1, 3, 0]})
        self._write("library/survey.py", MODULE, "survey", {**surveyed, "sketch": None})
        self._write("library/workload.py", MODULE, "workload", WORKLOAD)
        self._write("library/application.py", MODULE, "application", APPLICATION)
        tree = shutil.copytree(RECORDED, folder / "host")
        roots = {f"{name}_root": str(tree / name) for name in ("proc", "sys")}
        observed = load("plugins/module_utils/ksm_probe.py").observe(
            DOMAINS,
            load("plugins/module_utils/ksm_probe.py").Roots(*(tree / one for one in ("proc", "sys", "run"))),
        )
        once = {
            "start_ksm": True,
            "others": "allow",
            "until": "seconds",
            "duration_seconds": 0.1,
            "interval_seconds": 0.1,
        }
        series = run("plugins/modules/measure_series.py", **once, **roots)
        self._write("library/measure_series.py", MODULE, "measure_series", series)
        self._write("library/measure_host.py", MODULE, "measure_host", {**series, "observed": observed})

    def _write(self, path: str, text: str, name: str, answer: dict[str, Any]) -> None:
        (self.folder / path).unlink(missing_ok=True)
        values = {"FOLDER": repr(str(self.folder)), "NAME": repr(name), "ANSWER": repr(json.dumps(answer))}
        for word, value in values.items():
            text = text.replace(word, value)
        (self.folder / path).write_text(text)

    def fails(self, name: str, why: str) -> None:
        (self.folder / f"{name}.fails").write_text(why)

    def measure(self, *words: str, hypervisors: Sequence[str] = (), **changes: Any) -> tuple[int, str]:
        """Play the cells of an experiment with two guests; return (exit code, what was printed)."""
        given = variables(guests="2", cell_order_seed=7, **changes)
        return self._play("experiment.yml", "List the cells", given, *words, hypervisors=hypervisors)

    def fill(self, **changes: Any) -> tuple[int, str]:
        """Play the arms of a capacity run of up to two guests."""
        given = {"capacity_envelope_mib": "0", "capacity_most_guests": "2", **changes}
        # A host has one series in the background, by its file in /run: one test after another.
        with (Path(tempfile.gettempdir()) / "ksm-testbed-unit-series").open("w") as turn:
            flock(turn, LOCK_EX)
            return self._play("capacity.yml", "Name the run", given)

    def _play(
        self, playbook: str, task: str, given: dict[str, Any], *words: str, hypervisors: Sequence[str] = ()
    ) -> tuple[int, str]:
        """On this host, or on hypervisors of these names that all are this machine."""
        inventory = ROOT / "inventory"
        if hypervisors:
            inventory = self.folder / "inventory"
            inventory.mkdir()
            (inventory / "group_vars").symlink_to(ROOT / "inventory/group_vars")
            (inventory / "hosts.yml").write_text(
                json.dumps({"hypervisors": {"hosts": {name: {} for name in hypervisors}}})
            )
        given = {
            **given,
            "run_id": "run",
            "results_directory": f"{self.folder}/results",
            "guests_ssh_key_path": f"{self.folder}/key",
            "ansible_python_interpreter": sys.executable,
            "ansible_become": False,
            "kvm_host_result": {"accelerator": "tcg"},
            "guest_image_result": {"image": {"digest": "sha256:" + "1" * 64, "kernel": "/k", "initrd": "/i"}},
        }
        return play_book(
            ROOT / "playbooks" / playbook,
            *("--start-at-task", task, "-e", json.dumps(given), *words),
            hosts=str(inventory / "hosts.yml"),
            environment={
                "ANSIBLE_LIBRARY": f"{self.folder}/library:{ROOT}/plugins/modules",
                "ANSIBLE_ACTION_PLUGINS": f"{self.folder}/actions",
                # Not put_right: what it runs is the real teardown.
                "ANSIBLE_CALLBACKS_ENABLED": "matrix",
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                "ANSIBLE_ASYNC_DIR": f"{self.folder}/async",
            },
        )

    @property
    def log(self) -> list[str]:
        """The modules and actions that ran, in their order."""
        return (self.folder / "log").read_text().splitlines()

    @property
    def touched(self) -> set[str]:
        """Each action with a host that it was for: its guests were to be changed, or it was put right."""
        hosts = self.folder / "hosts"
        return set(hosts.read_text().splitlines()) if hosts.exists() else set()

    def records(self, cell: str) -> dict[str, Any]:
        """The records of a cell by their kind."""
        folder = self.folder / "results/run/localhost" / cell
        return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_an_idle_cell_is_six_module_runs_and_the_host_is_put_right_around_all(host: Host) -> None:
    code, out = host.measure(repetitions="2")
    assert code == 0, out
    assert host.log == ["put_right", *IDLE, *IDLE, "put_right"]
    for repetition in (1, 2):
        records = host.records(f"idle-ksm-guests2-boot1-rep{repetition}")
        assert set(records) == {"off", "merge", "on", "verify"}
        for record in records.values():
            assert record["requested"]["policy"] == "ksm"
            assert record["cell"]["hypervisor"] == "localhost"
            assert record["provenance"]["start"] == RESTORED["start"]
            assert record["provenance"]["kernel_release"].startswith("6.18.")
        assert records["off"]["observed"]["workload"] == {}
        assert records["verify"]["observed"] == {"guests": {}}


def test_what_guests_filled_is_recorded_and_verified(host: Host) -> None:
    code, out = host.measure(focus="2")
    assert code == 0, out
    load, verify = ["workload loaded"], ["workload verified", "measure_host"]
    assert host.log == ["put_right", *BEGINS, *load, *IDLE[3:], *verify, "put_right"]
    records = host.records("constant_fill-ksm-guests2-boot1-rep1")
    assert records["off"]["observed"]["workload"] == dict.fromkeys(DOMAINS, REPORT)
    assert records["on"]["observed"]["workload"] == dict.fromkeys(DOMAINS, REPORT)
    assert records["verify"]["observed"]["guests"] == dict.fromkeys(DOMAINS, VERDICT)


def test_applications_are_kept_loaded_measured_before_merging_and_after_and_verified_between(
    host: Host,
) -> None:
    """Beside guests that fill memory, which are asked as ever."""
    code, out = host.measure(mix="constant_fill=1,redis=1")
    assert code == 0, out
    assert host.log == [
        "put_right",
        *BEGINS,
        *["application loaded", "guests saved", "guests restored", "workload loaded"],
        "application performed",
        *IDLE[3:],
        *["workload verified", "application verified", "measure_host"],
        *["application performed", "measure_host"],
        "put_right",
    ]
    records = host.records("mix-constant_fill1-redis1-ksm-guests2-boot1-rep1")
    assert set(records) == {"off", "merge", "on", "verify", "performance"}
    assert records["off"]["observed"]["workload"]["guest02"]["digest"] == "app"
    assert {name: one["digest_after"] for name, one in records["verify"]["observed"]["guests"].items()} == {
        "guest01": "d",
        "guest02": "app",
    }
    assert records["performance"]["observed"]["guests"] == {"guest02": {"off": PERFORMED, "on": PERFORMED}}


def test_an_application_that_cannot_be_loaded_fails_its_cell_in_the_modules_words(host: Host) -> None:
    host.fails("application", "guest01: load of the workload redis failed with exit code 1: no")
    code, out = host.measure(workloads="redis")
    assert code == 2, out
    (record,) = host.records("redis-ksm-guests2-boot1-rep1").values()
    assert (record["kind"], record["observed"]["phase"]) == ("failed", "load")
    assert record["observed"]["message"].startswith("localhost: guest01: load of the workload redis failed")


def test_a_cell_that_fails_is_recorded_and_the_next_one_is_measured(host: Host) -> None:
    host.fails("ksm", "no room")
    code, out = host.measure(repetitions="2")
    assert code == 2, out
    assert host.log == ["put_right", *["guests absent", "ksm", "measure_host"] * 2, "put_right"]
    for repetition in (1, 2):
        ((kind, record),) = host.records(f"idle-ksm-guests2-boot1-rep{repetition}").items()
        assert (kind, record["provenance"]["start"]) == ("failed", None)
        assert record["observed"]["phase"] == "restore"
        assert record["observed"]["message"] == "localhost: no room"
    assert '"msg": "localhost: no room; localhost: no room"' in out


@pytest.mark.parametrize(
    ("words", "hosts"),
    [((), ["hv1", "hv2", "hv3"]), (("--limit", "hv2"), ["hv2"]), (("--limit", "hv2", "--check"), [])],
)
def test_after_a_failure_only_the_hosts_of_the_run_are_put_right_and_none_in_check_mode(
    host: Host, words: Sequence[str], hosts: list[str]
) -> None:
    host.fails("ksm", "no room")
    code, out = host.measure(*words, hypervisors=["hv1", "hv2", "hv3"])
    assert code == (2 if hosts else 0), out
    assert host.touched == {f"{action} {name}" for action in ("guests", "put_right") for name in hosts}
    failed = (host.folder / "results").rglob("failed.json")
    assert sorted(path.parent.parent.name for path in failed) == hosts


def test_guests_are_surveyed_before_ksm_is_on_where_that_is_asked_for(host: Host) -> None:
    code, out = host.measure(survey_sample="16")
    assert code == 0, out
    assert host.log == ["put_right", *BEGINS, "survey", *IDLE[3:], "put_right"]
    records = host.records("idle-ksm-guests2-boot1-rep1")
    assert set(records) == {"survey", "off", "merge", "on", "verify"}
    assert (records["survey"]["run_id"], records["survey"]["hypervisor"]) == ("run", "localhost")


@pytest.mark.parametrize(
    ("module", "asked", "log"),
    [
        ("census", {"census": "true"}, [*IDLE, "census"]),
        ("survey", {"survey_sample": "1"}, [*BEGINS, "survey", *IDLE[3:]]),
    ],
)
def test_a_cell_whose_census_or_survey_fails_is_measured_all_the_same_and_the_run_says_so(
    host: Host, module: str, asked: dict[str, str], log: list[str]
) -> None:
    host.fails(module, "no numpy")
    code, out = host.measure(**asked)
    assert code == 2, out
    assert host.log == ["put_right", *log, "put_right"]
    cell = "idle-ksm-guests2-boot1-rep1"
    assert set(host.records(cell)) == {"off", "merge", "on", "verify"}
    said = f"localhost: no {module} of {cell}, whose measurement is not affected: no numpy"
    assert f'"msg": "{said}"' in out


def test_guests_that_are_measured_as_they_booted_are_kept_then_and_restored_for_the_next_cell(
    host: Host,
) -> None:
    code, out = host.measure(checkpoint="measured", repetitions="2")
    assert code == 0, out
    booted = ["guests absent", "ksm", "guests booted", *IDLE[3:], "guests saved"]
    assert host.log == ["put_right", *booted, *IDLE, "put_right"]


def test_guests_are_probed_in_both_arms_and_under_off_nothing_is_started(host: Host) -> None:
    code, out = host.measure(policies="ksm,off", probes="2", follow_seconds="1")
    assert code == 0, out
    probed = ["measure_host", "workload probed", "measure_host"]
    cell = [*BEGINS, "workload loaded", "workload probed", *probed, "measure_series", *probed]
    verified = ["workload verified", "measure_host"]
    ksm, off = [*cell, "measure_series", *verified], [*cell, *verified]
    assert host.log in (["put_right", *ksm, *off, "put_right"], ["put_right", *off, *ksm, "put_right"])
    for policy in ("ksm", "off"):
        records = host.records(f"idle-{policy}-guests2-boot1-rep1")
        for arm in ("off", "on"):
            observed = records[arm]["observed"]
            assert [one["guest"] for one in observed["probes"]] == [*DOMAINS]
            assert observed["window"]["seconds"] > 0
            assert records[arm]["requested"]["probes"] == 2
            assert records[arm]["requested"]["rehearsed"] is True


def test_guests_leave_come_back_and_one_diverges_and_each_time_ksm_is_watched(host: Host) -> None:
    code, out = host.measure(focus="2", policies="ksm,off", probes="1", churn_seconds="0.5")
    assert code == 0, out
    churned = [
        *("guests restored", "measure_series"),
        *("guests restored", "workload loaded", "measure_series"),
        *("workload verified", "measure_host"),
        *("workload diverged", "measure_series"),
    ]
    assert host.log.count("workload diverged") == 1
    first = host.log.index("workload diverged") - 7
    assert host.log[first : first + len(churned)] == churned
    cell = "constant_fill-{}-guests2-boot1-rep1".format
    records = host.records(cell("ksm"))
    assert {"leave", "arrive", "diverge", "verify"} <= set(records)
    assert records["arrive"]["observed"]["duration_seconds"] > 0
    # Those that came back were restored for themselves; the cell began from one start.
    assert len({str(one["provenance"]["start"]) for one in records.values()}) == 1
    assert not {"leave", "arrive", "diverge"} & set(host.records(cell("off")))


def test_idle_guests_leave_and_come_back_and_hold_nothing_that_could_diverge(host: Host) -> None:
    code, out = host.measure(churn_seconds="0.5")
    assert code == 0, out
    records = host.records("idle-ksm-guests2-boot1-rep1")
    assert {"leave", "arrive", "verify"} <= set(records)
    assert "diverge" not in records


def test_a_mix_is_kept_with_the_guests_whose_load_is_and_the_others_are_loaded_after_it(host: Host) -> None:
    code, out = host.measure(mix="constant_fill=1,random_fill=1")
    assert code == 0, out
    kept = ["workload loaded", "guests saved", "guests restored"]
    assert host.log[4 : 4 + len(kept) + 1] == [*kept, "workload loaded"]
    records = host.records("mix-constant_fill1-random_fill1-ksm-guests2-boot1-rep1")
    assert records["off"]["provenance"]["start"]["loaded"] is False


def test_guests_are_loaded_after_each_restore_where_they_are_not_to_be_kept_loaded(host: Host) -> None:
    code, out = host.measure(focus="3", keep_loaded="false")
    assert code == 0, out
    assert host.log[3:6] == ["guests restored", "workload loaded", "measure_host"]


BEGINS_ARM = ["guests absent", "ksm", "measure_host", "measure_host"]
# The first arm of a boot makes sure of its checkpoint.
BEGINS_BOOT = ["guests absent", "guests restored", *BEGINS_ARM]
# Watched in the background, from before the guests are started
STEP = [
    "measure_series",
    "guests restored",
    "workload loaded",
    "measure_host",
    "workload probed",
    "measure_host",
]
SETTLED = [*STEP[:3], "measure_series", *STEP[3:]]


def test_the_limits_alone_are_found_without_a_probe_and_idle_guests_hold_nothing_for_one(host: Host) -> None:
    code, out = host.fill(capacity_workload="idle", capacity_probes="0")
    assert code == 0, out
    assert not [line for line in host.log if line.startswith("workload")]
    path = host.folder / "results/capacity/run/localhost/idle-boot1-ksm-guests002.json"
    observed = json.loads(path.read_text())["observed"]
    assert observed["probes"] == []
    assert observed["admission"]["seconds"]


def test_the_arms_of_each_boot_go_up_one_by_one_and_then_one_guest_after_another_diverges(host: Host) -> None:
    code, out = host.fill(boots="2")
    assert code == 0, out
    arms = [*BEGINS_BOOT, *STEP, *STEP, *BEGINS_ARM, *SETTLED, *SETTLED]
    turns = ["workload diverged", "measure_host"] * 2
    # Those that run are loaded already.
    settled = ["guests restored", "measure_series"]
    diverged = [*settled, "measure_series", "measure_host", *turns, "workload verified"]
    assert host.log == ["put_right", *[*arms, *diverged] * 2, "put_right"]
    folder = host.folder / "results/capacity/run/localhost"
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    numbers = [(boot, arm, guests) for boot in (1, 2) for arm in ("off", "ksm") for guests in range(3)]
    steps = [f"constant_fill-boot{boot}-{arm}-guests00{guests}" for boot, arm, guests in numbers]
    divergences = [f"constant_fill-boot{boot}-divergence-guests002" for boot in (1, 2)]
    assert set(records) == {*steps, *divergences}
    assert [records[name]["observed"]["converged"] for name in steps[:6]] == [None] * 4 + [False] * 2
    last = records[steps[2]]["observed"]
    assert [one["guest"] for one in last["probes"]] == [*DOMAINS]
    assert last["admission"]["seconds"] and set(last["guests"]) == set(DOMAINS)
    assert records[steps[0]]["observed"]["admission"] is None
    assert [records[name]["boot"] for name in divergences] == [1, 2]
    observed = records[divergences[0]]["observed"]
    assert observed["guests_alive"] == 2
    assert [one["guest"] for one in observed["turns"]] == [*DOMAINS]


def test_an_arm_ends_at_its_limit_and_the_other_one_is_taken_all_the_same(host: Host) -> None:
    code, out = host.fill(capacity_stop_available_mib="1048576")
    assert code == 0, out
    assert host.log == ["put_right", *BEGINS_BOOT, *BEGINS_ARM, "put_right"]


def test_a_step_that_fails_ends_the_run_with_its_reason(host: Host) -> None:
    host.fails("measure_series", "ksmd is gone")
    code, out = host.fill()
    assert code == 2, out
    assert host.log[-1] == "put_right"
    assert '"msg": "localhost: ksmd is gone"' in out


def test_a_watch_that_something_else_has_ended_is_not_taken_for_one(host: Host) -> None:
    path = host.folder / "library/workload.py"
    removal = f"pathlib.Path('/run/{SERIES}').unlink(missing_ok=True)\n"
    path.write_text(
        path.read_text().replace("import datetime, json", f"import pathlib\n{removal}import datetime, json")
    )
    code, out = host.fill()
    assert code == 2, out
    assert "was removed by something else, so the host's memory was not sampled to the end" in out
    assert host.log[-1] == "put_right"
