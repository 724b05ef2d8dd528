#!/usr/bin/python3
"""Ansible module: the applications that guests run, started, loaded, verified and measured over SSH."""

from __future__ import annotations

DOCUMENTATION = r"""
module: application
short_description: Start, load, verify and measure the applications in the guests
description:
  - Runs on the hypervisor. The commands of each guest's application run in it as root, over one SSH
    connection for each guest, which is closed at the end. Their environment has C(GUEST), the guest's name,
    and C(SEED), a text of its own.
  - What a command prints is kept in the guest until it ends, so a service that it leaves holds nothing.
options:
  state:
    description:
      - C(loaded) looks for the packages in the image, starts the services, waits until they are ready, loads
        them, and notes what I(verify) prints, in all guests at once.
      - C(verified) runs I(verify) again.
      - C(performed) measures the application's own figure in some guests, one after another, while the others
        do nothing.
    type: str
    choices: [loaded, verified, performed]
    required: true
  applications:
    description:
      - guest name to its application, with name (the workload's), packages, start, ready, load, verify,
        performance (command, figure, unit), ready_seconds and timeout_seconds
    type: dict
    required: true
  channels:
    description: guest name to the socket of its port, in the guest's folder, which is beside ssh_config
    type: dict
    required: true
  seed: {description: "text that makes each guest's C(SEED), with its name", type: str, default: ""}
  expected:
    description: "C(verified): guest name to the digest that it had, for the verdict"
    type: dict
    default: {}
  guests: {description: "C(performed): so many guests at most, spread over all", type: int, default: 5}
  rehearsal:
    description: >-
      C(performed): run the command once before it is measured; an emulator that was restored translates all
      code anew
    type: bool
    default: false
  quiet_seconds:
    description: >-
      C(performed): so long nothing is asked of any guest before the measured command; where pages are merged,
      the writes to them are counted meanwhile
    type: float
    default: 5
  progress_path:
    description: file that takes a line for each guest; whoever waits makes it and sets its access time
    type: path
    default: ""
  proc_root: {description: for tests, type: path, default: /proc}
  sys_root: {description: for tests, type: path, default: /sys}
"""

EXAMPLES = r"""
- name: Verify what the applications hold
  application:
    state: verified
    applications: "{{ applications }}"
    channels: "{{ guests_result.channels }}"
    expected: {guest01: "sha256:..."}
"""

RETURN = r"""
answers:
  description:
    - C(loaded), guest name to filled_bytes (0), digest (of what I(verify) printed), fill_seconds, seed
    - C(verified), guest name to filled_bytes, digest_before, digest_after, intact
    - C(performed), guest name to printed, figure, unit, took and decay, as a record has it
  type: dict
  returned: success
"""

import hashlib
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.guest_channel import domains_by_channel
from ansible.module_utils.ksm_convergence import saved_pages
from ansible.module_utils.ksm_probe import ProbeError, Roots, ksm_counters, vmstat
from ansible.module_utils.probing import Watch, in_turn
from ansible.module_utils.progress import Progress, ProgressError, end_when_abandoned

# An emulated guest needs seconds for a handshake, many of them at once need minutes.
CONNECT_SECONDS = 180
# So a guest that has stopped is given up after two minutes.
GIVE_UP = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8")
# The connection ends by itself where this module was killed.
IDLE_SECONDS = 60
PRINTED_BYTES = 64 << 10
SAID_LINES = 3
# Output goes into files, new ones for each script: a service that keeps its own open keeps no connection.
STEP = """\
export GUEST={guest} SEED={seed}
mkdir -p /run/testbed-application && cd /run/testbed-application && rm -f out err || exit
{body}
head -c {limit} out; head -c {limit} err >&2; exit "$code"
"""
ONCE = "sh -euc {script} </dev/null >out 2>err; code=$?"
UNTIL = """\
code=0 end=$(($(date +%s) + {seconds}))
until sh -euc {script} </dev/null >out 2>err; do
  code=$?
  [ "$(date +%s)" -lt "$end" ] || break
  code=0
  sleep 1
done"""


class ApplicationError(Exception):
    """An application does not do what is asked; the text is one sentence."""


class Connection:
    """One SSH connection to a guest, for all that is run in it."""

    def __init__(self, guest: str, application: Mapping[str, Any], config: Path, seed: str) -> None:
        """Name what is needed; nothing is connected yet."""
        self.guest = guest
        self.application = application
        self.seed = seed
        self._ssh = ["ssh", "-F", str(config), "-o", f"ControlPath={config.parent / guest}.ssh", *GIVE_UP]

    def __enter__(self) -> Connection:
        """Connect. Raises ApplicationError."""
        persist = ["-o", "ControlMaster=yes", "-o", f"ControlPersist={IDLE_SECONDS}", "-f", "-N"]
        # A file and no pipe: the process that stays in the background would keep that open.
        with tempfile.TemporaryFile("w+") as said:
            command = [*self._ssh, "-n", "-o", f"ConnectTimeout={CONNECT_SECONDS}", *persist, self.guest]
            done = subprocess.run(command, check=False, stdout=said, stderr=said)
            said.seek(0)
            why = _last(said.read()) or "ssh gave no reason"
        if done.returncode:
            raise ApplicationError(f"{self.guest} cannot be reached by SSH: {why}")
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close the connection, so that nothing of it is left in the guest."""
        subprocess.run([*self._ssh, "-O", "exit", self.guest], check=False, capture_output=True)

    def run(self, step: str, script: str, *, until_seconds: int = 0) -> str:
        """Run one of the application's commands; what it printed.

        Args:
            step: what the messages call it.
            script: for the guest's shell, which ends at the first command that fails.
            until_seconds: so long it is run again and again until it succeeds; 0: once.

        Raises ApplicationError.
        """
        workload = f"workload {self.application['name']}"
        name = f"{self.guest}: {step} of the {workload}"
        limit = until_seconds + self.application["timeout_seconds"]
        body = (UNTIL if until_seconds else ONCE).format(script=shlex.quote(script), seconds=until_seconds)
        text = STEP.format(
            guest=shlex.quote(self.guest), seed=shlex.quote(self.seed), body=body, limit=PRINTED_BYTES + 1
        )
        command = [*self._ssh, "-n", self.guest, f"sh -c {shlex.quote(text)}"]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, errors="replace", timeout=limit
            )
        except subprocess.TimeoutExpired:
            raise ApplicationError(f"{name} did not end within {limit} s (timeout_seconds)") from None
        said = _last(done.stderr) or _last(done.stdout) or "nothing was said"
        if done.returncode and until_seconds:
            raise ApplicationError(
                f"{self.guest}: the {workload} was not ready within {until_seconds} s (ready_seconds): {said}"
            )
        if done.returncode:
            raise ApplicationError(f"{name} failed with exit code {done.returncode}: {said}")
        if len(done.stdout) > PRINTED_BYTES:
            raise ApplicationError(f"{name} printed more than {PRINTED_BYTES} bytes: print less")
        return done.stdout


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " | ".join(lines[-SAID_LINES:])


def digest(printed: str) -> str:
    """What a verdict compares."""
    return f"sha256:{hashlib.sha256(printed.encode()).hexdigest()}"


def check_packages(connection: Connection) -> None:
    """Raise ApplicationError unless the guest's image has the application's packages."""
    application = connection.application
    if not application["packages"]:
        return
    query = "dpkg-query --show --showformat '${db:Status-Status} ${Package}\\n' "
    asked = " ".join(map(shlex.quote, application["packages"]))
    # dpkg-query fails for those that it does not know, which is what is asked.
    found = connection.run("the package list", f"{query}{asked} || true")
    installed = {line.split()[1] for line in found.splitlines() if line.startswith("installed ")}
    lacking = sorted(package for package in application["packages"] if package.split(":")[0] not in installed)
    if lacking:
        raise ApplicationError(
            f"{connection.guest}: the image lacks {', '.join(lacking)}, which the workload "
            f"{application['name']} needs: install it in the image, or set image_source=build"
        )


def loaded(connection: Connection) -> dict[str, Any]:
    """Start and load the application; what a record holds of it."""
    application = connection.application
    began = time.monotonic()
    check_packages(connection)
    connection.run("start", application["start"])
    connection.run("ready", application["ready"], until_seconds=application["ready_seconds"])
    if application["load"]:
        connection.run("load", application["load"])
    # What is still to be written is written now, and not while it is measured.
    connection.run("sync", "sync")
    printed = connection.run("verify", application["verify"])
    return {
        "filled_bytes": 0,
        "digest": digest(printed),
        "fill_seconds": round(time.monotonic() - began, 3),
        "seed": connection.seed,
    }


def verified(connection: Connection, before: str) -> dict[str, Any]:
    """The verdict of a guest, as a verify record has it."""
    after = digest(connection.run("verify", connection.application["verify"]))
    return {
        "filled_bytes": 0,
        "digest_before": before,
        "digest_after": after,
        "intact": bool(before) and before == after,
    }


def figure(printed: str, performance: Mapping[str, Any]) -> float:
    """The number in what a performance command printed. Raises ApplicationError."""
    pattern = performance["figure"]
    found = re.search(pattern, printed, re.MULTILINE)
    if found is None:
        raise ApplicationError(f"printed nothing that fits {pattern!r}: {_last(printed)}")
    try:
        return float(found[1])
    except (TypeError, ValueError):
        raise ApplicationError(f"printed {found[1]!r} for the number of {pattern!r}") from None


@dataclass(frozen=True)
class Merged:
    """KSM at one moment: pages that it has saved, and writes to merged pages since the host's boot.

    ``cow_ksm``: None on a kernel that does not count them. ``seconds``: of a clock that nobody sets.
    """

    saved_pages: int
    cow_ksm: int | None
    seconds: float

    def written_until(self, later: Merged) -> int | None:
        """Writes to merged pages from this moment to a later one."""
        return None if self.cow_ksm is None or later.cow_ksm is None else later.cow_ksm - self.cow_ksm


def merged(roots: Roots) -> Merged:
    """What KSM has merged now. Raises ProbeError."""
    counters = ksm_counters(roots)
    saved = saved_pages(counters["pages_sharing"], counters["ksm_zero_pages"])
    return Merged(saved, vmstat(roots).get("cow_ksm"), time.monotonic())


def decay(quiet: Merged, begin: Merged, end: Merged) -> dict[str, Any] | None:
    """What a command did to the saving, as a record has it; None where nothing was merged."""
    if not begin.saved_pages:
        return None
    return {
        "quiet_seconds": begin.seconds - quiet.seconds,
        "quiet_cow_ksm": quiet.written_until(begin),
        "cow_ksm": begin.written_until(end),
        "saved_pages_before": begin.saved_pages,
        "saved_pages_after": end.saved_pages,
    }


def performed(
    connection: Connection, domain: str, *, rehearsal: bool, roots: Roots, quiet_seconds: float
) -> dict[str, Any]:
    """Measure an application's own figure; as a performance record has it."""
    performance = connection.application["performance"]
    for _ in range(rehearsal):
        connection.run("performance", performance["command"])
    quiet = merged(roots)
    time.sleep(quiet_seconds)
    begin, watch = merged(roots), Watch(domain)
    printed = connection.run("performance", performance["command"])
    took, end = watch.read(), merged(roots)
    try:
        number = figure(printed, performance)
    except ApplicationError as error:
        name = connection.application["name"]
        raise ApplicationError(f"{connection.guest}: performance of the workload {name} {error}") from None
    return {
        "printed": printed,
        "figure": number,
        "unit": performance["unit"],
        "took": took,
        "decay": decay(quiet, begin, end),
    }


def in_all(
    connections: Mapping[str, Connection],
    work: Callable[[Connection], dict[str, Any]],
    each: Callable[[str, dict[str, Any]], None],
    at_once: int,
) -> dict[str, dict[str, Any]]:
    """What work gives for each guest, by its name; the first error once all that began have ended."""

    def one(connection: Connection) -> dict[str, Any]:
        with connection:
            return work(connection)

    answers: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        waiting = {pool.submit(one, connection): name for name, connection in connections.items()}
        try:
            for future in as_completed(waiting):
                answers[waiting[future]] = future.result()
                each(waiting[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return dict(sorted(answers.items()))


def chosen(params: Mapping[str, Any]) -> list[str]:
    """The guests that are asked."""
    applications = params["applications"]
    if params["state"] != "performed":
        return sorted(applications)
    measured = sorted(name for name, one in applications.items() if one["performance"])
    return in_turn(measured, min(params["guests"], len(measured))) if measured else []


def answers_of(params: Mapping[str, Any], progress: Progress) -> dict[str, dict[str, Any]]:
    """Do what is asked in each guest. Raises ApplicationError."""
    state, names = params["state"], chosen(params)
    channels = {name: params["channels"][name] for name in names}
    connections = {
        name: Connection(
            name,
            params["applications"][name],
            Path(channel).parents[1] / "ssh_config",
            f"{params['seed']}:{name}",
        )
        for name, channel in channels.items()
    }
    domains = domains_by_channel()
    shown = 0

    def each(name: str, answer: Mapping[str, Any]) -> None:
        nonlocal shown
        shown += 1
        workload = params["applications"][name]["name"]
        progress.say(f"{name} {told(state, workload, answer)} ({shown} of {len(names)})")

    def work(connection: Connection) -> dict[str, Any]:
        name = connection.guest
        if state == "loaded":
            return loaded(connection)
        if state == "verified":
            return verified(connection, params["expected"].get(name, ""))
        return performed(
            connection,
            domains.get(channels[name], ""),
            rehearsal=params["rehearsal"],
            roots=Roots(Path(params["proc_root"]), Path(params["sys_root"])),
            quiet_seconds=params["quiet_seconds"],
        )

    return in_all(connections, work, each, 1 if state == "performed" else max(1, len(names)))


def told(state: str, workload: str, answer: Mapping[str, Any]) -> str:
    """What a guest's answer says, for the progress."""
    if state == "loaded":
        return f"started and loaded {workload} in {answer['fill_seconds']:.0f} s"
    if state == "performed":
        return f"gives {answer['figure']:g} {answer['unit']} of {workload}"
    return f"verified {workload}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["loaded", "verified", "performed"], "required": True},
            "applications": {"type": "dict", "required": True},
            "channels": {"type": "dict", "required": True},
            "seed": {"type": "str", "default": ""},
            "expected": {"type": "dict", "default": {}},
            "guests": {"type": "int", "default": 5},
            "rehearsal": {"type": "bool", "default": False},
            "quiet_seconds": {"type": "float", "default": 5.0},
            "progress_path": {"type": "path", "default": ""},
            "proc_root": {"type": "path", "default": "/proc"},
            "sys_root": {"type": "path", "default": "/sys"},
        },
        supports_check_mode=True,
    )
    params = module.params
    changed = params["state"] != "verified" and bool(chosen(params))
    if params["quiet_seconds"] <= 0:
        module.fail_json(msg=f"quiet_seconds is {params['quiet_seconds']:g}: it has to be more than 0")
    if module.check_mode:
        module.exit_json(changed=changed, answers={})
    try:
        progress = Progress(params["progress_path"])
        end_when_abandoned(progress)
        answers = answers_of(params, progress)
    except (ApplicationError, ProbeError, ProgressError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, answers=answers)


if __name__ == "__main__":
    main()
