"""What a user may get wrong on the command line of the experiment: one sentence, and nothing is changed."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_files import ROOT

from analysis.plan.policies import OFF, policy_names
from analysis.plan.workloads import workload_names

KSM = Path("/sys/kernel/mm/ksm")
# All that may run before a refusal: they only look, and take the lease. The KSM task runs in check mode.
CHECKS = {
    "Check each variable",
    "Become root, check the policies against the kernel, and take the lease",
    "Become root, and take the lease",
    "debian_host : Refuse a host that can't measure",
}
FAILURE = r"^fatal: \[localhost\]: FAILED! => (\{.*?^\}|\{.*\})$"
NEEDS_HOST = pytest.mark.skipif(
    os.geteuid() != 0 or not KSM.is_dir(), reason="asks this host's kernel, as root"
)

POLICIES = ", ".join(name for name in policy_names() if name != OFF)
WORKLOADS = ", ".join(workload_names())
FOCUS = "allowed is 1, 2, 3, some of them once each with commas between (1,3), or all."
# All that is wrong in one call: variable -> what is given, and what is said of it
WRONG = [
    {
        "focus": ("4", f"focus is '4': {FOCUS}"),
        "policies": (
            "fast",
            f"policies names 'fast', which does not exist: there are {POLICIES}.",
        ),
        "guests": ("0", "guests is '0': allowed is a whole number from 1 to 999."),
        "repetitions": ("twice", "repetitions is 'twice': allowed is a whole number from 1 to 1000."),
        "checkpoint": ("old", "checkpoint is 'old': allowed is keep or fresh or measured."),
        "guest_memory_mib": (
            "127",
            "guest_memory_mib is '127': allowed is a whole number from 128 to 1048576.",
        ),
        "accelerator": ("xen", "accelerator is 'xen': allowed is auto or kvm or tcg."),
        "census": ("sometimes", "census is 'sometimes': allowed is true or false."),
        "guest_ssh_port_base": (
            "80",
            "guest_ssh_port_base is '80': allowed is a whole number from 1024 to 65534.",
        ),
        "thp_enabled": (
            "sometimes",
            "thp_enabled is 'sometimes': allowed is keep or always or madvise or never.",
        ),
    },
    {
        "focus": ("", f"focus is '': {FOCUS}"),
        "workloads": (
            "web",
            f"workloads names 'web', which does not exist: there are {WORKLOADS}.",
        ),
        "guests": ("abc", "guests is 'abc': allowed is a whole number from 1 to 999."),
    },
    {"guests": ("2,4,2", "guests has 2 more than once: allowed is each number once, with commas between.")},
    {
        "forecast": (
            "results/none.json",
            "forecast cannot be used: results: none.json cannot be read: No such file or directory: allowed "
            "are files that `python -m analysis forecast --out` has written for this run.",
        )
    },
    {"guests": ("1000", "guests is '1000': allowed is a whole number from 1 to 999.")},
    {
        "mix": (
            "idle=5,random_fill=5",
            "mix is 'idle=5,random_fill=5', which are 10 guests: allowed is as many as guests, 15.",
        )
    },
]
WRONG_HERE = [
    (
        "ksm_knobs",
        '{"page_to_scan": 1}',
        r"policy ksm: knob page_to_scan does not exist on this kernel, whose knobs are .*, pages_to_scan, .*",
    ),
    (
        "guest_memory_mib",
        "1048576",
        r"(.*; )?guests is 15 and guest_memory_mib is 1048576: this host has \d+ MiB in all, "
        r"which holds 0 such guests at the most(; .*)?",
    ),
]


def playbook(
    results: Path, *arguments: str, name: str = "experiment", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the experiment, or a capacity run; variables arrive as text, as with -e name=value."""
    return subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            f"playbooks/{name}.yml",
            *arguments,
            "-e",
            # The lease of a run that measures on this machine meanwhile is that run's.
            json.dumps(
                {**variables, "results_directory": str(results), "lease_directory": f"{results.parent}/lease"}
            ),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_NOCOLOR": "1",
            # It tells each task that ran, which the project's own output does not.
            "ANSIBLE_STDOUT_CALLBACK": "default",
            "ANSIBLE_DISPLAY_OK_HOSTS": "1",
        },
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def refusal(results: Path, name: str = "experiment", **variables: str) -> str:
    """What a run says that was refused; nothing on the host was changed before."""
    done = playbook(results, name=name, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    (failure,) = re.findall(FAILURE, done.stdout, re.M | re.S)
    assert "Traceback" not in done.stdout + done.stderr
    assert not results.exists()
    ran = re.findall(r"^TASK \[(.*)\] \**$", done.stdout, re.M)
    assert ran
    assert {task for task in ran if "Validating arguments" not in task} <= CHECKS
    message: str = json.loads(failure)["msg"]
    return message


@pytest.mark.parametrize("wrong", WRONG, ids=", ".join)
def test_each_wrong_variable_is_refused_in_one_sentence_before_anything_is_changed(
    results: Path, wrong: dict[str, tuple[str, str]]
) -> None:
    said = refusal(results, **{name: given for name, (given, _) in wrong.items()})
    assert said == " ".join(sentence for _, sentence in wrong.values())


@NEEDS_HOST
@pytest.mark.parametrize(("name", "given", "said"), WRONG_HERE)
def test_what_this_host_cannot_is_refused_in_one_sentence_before_anything_is_changed(
    results: Path, name: str, given: str, said: str
) -> None:
    assert re.fullmatch(said, refusal(results, **{name: given}))


@NEEDS_HOST
def test_a_user_who_cannot_become_root_is_told_so(results: Path) -> None:
    done = playbook(
        results,
        "--tags",
        "nothing-but-the-checks",
        ansible_become_user="daemon",
        ansible_become_exe="/bin/false",
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "needs root, which this user could not become: run as root, or with sudo and" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not results.exists()


@NEEDS_HOST
def test_a_port_in_use_is_refused_before_anything_is_changed(results: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        base = listener.getsockname()[1] - 1
        done = playbook(results, "--check", guest_ssh_port_base=str(base), guests="1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"port {base + 1} of 127.0.0.1, meant for a guest, is in use" in done.stdout
    assert not results.exists()


@NEEDS_HOST
def test_what_is_allowed_passes_the_same_checks(results: Path) -> None:
    allowed = {"focus": "1,3", "guests": "64", "ksm_knobs": '{"pages_to_scan": 1}', "thp_enabled": "never"}
    done = playbook(results, "--tags", "nothing-but-the-checks", **allowed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not results.exists()


@NEEDS_HOST
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"capacity_workload": "busy", "capacity_step_guests": "0"},
            f"capacity_workload names 'busy', which does not exist: there are {WORKLOADS}. "
            "capacity_step_guests is '0': allowed is a whole number from 1 to 64.",
        ),
        (
            {"capacity_envelope_mib": "0", "capacity_stop_available_mib": "512"},
            "capacity_stop_available_mib is 512: a guest and the probes may take 752 MiB, so it must be that "
            "or more.",
        ),
    ],
)
def test_a_capacity_run_is_refused_likewise(results: Path, variables: dict[str, str], said: str) -> None:
    assert refusal(results, name="capacity", **variables) == said


@NEEDS_HOST
def test_a_capacity_run_that_is_allowed_passes_the_same_checks(results: Path) -> None:
    done = playbook(results, "--tags", "nothing-but-the-checks", name="capacity", capacity_workload="idle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not results.exists()
