"""Can one guest tell by write latency whether another one holds the same page? KSM off and on.

    python benchmarks/tenants.py measure RECORD.json [--rounds 5] [--pages 4096] [--fresh]
    python benchmarks/tenants.py show RECORD.json

`measure` runs on the hypervisor as root. In each round two guests are restored into fresh processes (booted
anew with --fresh). guest01, the attacker, holds pages whose content it has guessed; guest02, the victim,
holds a random half of the same contents, and others in place of the rest. Once with KSM off and once after it
has looked at all memory several times the attacker writes one byte to each of its pages, in random order, and
times each write: the first write to a merged page has to copy it. The two arms have contents of their own.
All latencies go into RECORD.json, private, after each round; the host is put right at the end, whatever
happens. `show` makes the figures again from that file alone: a threshold from every other page, the error
rates of the remaining half. Latencies are of one write by Python's interpreter in the guest, in nanoseconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from analysis.measure.statistics import paired, wilson
from plugins.module_utils.private_file import put

PROJECT = Path(__file__).parents[1]
SSH_CONFIG = "/var/lib/ksm-testbed/guests/ssh_config"
KSM = Path("/sys/kernel/mm/ksm")
SNAPSHOT = "/var/lib/ksm-testbed/ksm-snapshot.json"
ATTACKER, VICTIM = 1, 2
SCHEMA_VERSION = 1
ARMS = ("off", "on")
# Each page is looked at in every scan; a page merges in the second one that finds it unchanged.
KNOBS = {"pages_to_scan": 20000, "sleep_millisecs": 10, "smart_scan": 0, "advisor_mode": "none", "run": 1}
OPTIONAL_KNOBS = ["smart_scan", "advisor_mode"]
FULL_SCANS = 5
SCANS_LIMIT_SECONDS = 1800
PROVISION_LIMIT_SECONDS = 7200

# Runs in a guest: tenant.py {"seed": text, "held": [0 or 1, ...]}.
# Holds one page for each entry of `held`: the content that seed and number make, or, for 0, one of its own.
# Says "ready"; for the line "measure" it writes to each page and prints the nanoseconds; ends with its input.
# A content is never page-aligned but in the page itself, so none that was freed can merge with it.
TENANT = r"""
import ctypes, hashlib, json, mmap, os, random, sys, time
asked = json.loads(sys.argv[1])
size, count = mmap.PAGESIZE, len(asked["held"])
memory = mmap.mmap(-1, count * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
own = os.urandom(16).hex()
for page, held in enumerate(asked["held"]):
    name = f"{asked['seed'] if held else own}:{page}"
    memory[page * size:(page + 1) * size] = hashlib.shake_128(name.encode()).digest(size)
libc = ctypes.CDLL(None, use_errno=True)
if libc.mlockall(1):
    sys.exit(f"memory cannot be locked: {os.strerror(ctypes.get_errno())}")
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "measure":
        order, clock = list(range(count)), time.perf_counter_ns
        random.Random(asked["seed"]).shuffle(order)
        took = [0] * count
        for page in order:
            at = page * size
            byte = memory[at]  # what a page that is not at hand costs is not timed
            began = clock()
            memory[at] = byte
            took[page] = clock() - began
        print(json.dumps(took), flush=True)
"""


class BenchError(Exception):
    """What is asked can't be done; the text is one sentence."""


# Statistics


class Errors(NamedTuple):
    """Wrong answers of a classifier: of `unmerged` pages `false_positives` were called merged, and so on."""

    unmerged: int
    false_positives: int
    merged: int
    false_negatives: int


def threshold_of(latencies: Sequence[int], merged: Sequence[bool]) -> float:
    """The latency above which a page is called merged, with the least sum of both error rates.

    Args:
        latencies: nanoseconds, one for each page.
        merged: whether the victim holds the page's content; of the same length, with pages of both kinds.

    Returns: nanoseconds, halfway between two latencies that occur; infinite where no page had better be
        called merged.

    Raises: BenchError where one of the two kinds is missing.
    """
    positives = sum(merged)
    negatives = len(merged) - positives
    if not positives or not negatives:
        raise BenchError("a threshold needs pages that the victim holds and pages that it does not")
    ranked = sorted(zip(latencies, merged, strict=True))
    # With the threshold above all latencies everything is called unmerged; it is lowered page by page.
    best, best_cost = math.inf, 1.0
    called_right = called_wrong = 0
    for place in range(len(ranked) - 1, -1, -1):
        latency, is_merged = ranked[place]
        called_right += is_merged
        called_wrong += not is_merged
        below = ranked[place - 1][0] if place else latency - 1
        cost = (positives - called_right) / positives + called_wrong / negatives
        if below < latency and cost < best_cost:
            best, best_cost = (below + latency) / 2, cost
    return best


def errors_of(latencies: Sequence[int], merged: Sequence[bool], threshold_ns: float) -> Errors:
    """Count the wrong answers of a threshold."""
    called = [latency > threshold_ns for latency in latencies]
    pairs = list(zip(called, merged, strict=True))
    return Errors(
        unmerged=len(merged) - sum(merged),
        false_positives=sum(said and not is_merged for said, is_merged in pairs),
        merged=sum(merged),
        false_negatives=sum(is_merged and not said for said, is_merged in pairs),
    )


@dataclass(frozen=True)
class Arm:
    """One measurement of a round: what the victim holds, what each first write took, and what KSM counted."""

    held: list[int]
    write_ns: list[int]
    pages_sharing_before: int
    pages_sharing_after: int

    def half(self, training: bool) -> tuple[list[int], list[bool]]:
        """Latencies of every other page and whether each is merged; the training half, or the other one."""
        pages = range(0 if training else 1, len(self.held), 2)
        return [self.write_ns[page] for page in pages], [bool(self.held[page]) for page in pages]


@dataclass(frozen=True)
class Round:
    """One restore of both guests; `booted_at` tells the boots apart."""

    booted_at: str
    arms: dict[str, Arm]


@dataclass(frozen=True)
class Result:
    """The figures of one arm, over all rounds."""

    arm: str
    threshold_ns: float
    errors: Errors
    by_round: list[Errors]
    median_unmerged_ns: float
    median_merged_ns: float


def solve(rounds: Sequence[Round], arm: str) -> Result:
    """Choose the threshold on the training half of all rounds, and count the errors on the other half."""
    training = [one.arms[arm].half(True) for one in rounds]
    held_out = [one.arms[arm].half(False) for one in rounds]
    latencies, merged = ([value for half in training for value in half[place]] for place in (0, 1))
    threshold = threshold_of([int(value) for value in latencies], [bool(value) for value in merged])
    by_round = [errors_of(*half, threshold) for half in held_out]
    pages = [pair for half in held_out for pair in zip(*half, strict=True)]
    return Result(
        arm=arm,
        threshold_ns=threshold,
        errors=Errors(*(sum(column) for column in zip(*by_round, strict=True))),
        by_round=by_round,
        median_unmerged_ns=median([latency for latency, is_merged in pages if not is_merged]),
        median_merged_ns=median([latency for latency, is_merged in pages if is_merged]),
    )


def of_other_boots(rounds: Sequence[Round], arm: str) -> list[float]:
    """What an attacker errs by who learnt elsewhere: of each boot both error rates, summed; 1 is guessing.

    The threshold is chosen on all pages of the other boots, the errors are counted on all pages of this one.

    Returns: one sum for each boot; none where there are fewer than two.
    """
    boots: dict[str, list[Arm]] = {}
    for one in rounds:
        boots.setdefault(one.booted_at, []).append(one.arms[arm])

    def pages(arms: Sequence[Arm]) -> tuple[list[int], list[bool]]:
        merged = [bool(bit) for each in arms for bit in each.held]
        return [ns for each in arms for ns in each.write_ns], merged

    sums = []
    for boot, mine in boots.items():
        others = [each for other, arms in boots.items() if other != boot for each in arms]
        if others:
            seen = errors_of(*pages(mine), threshold_of(*pages(others)))
            sums.append(seen.false_positives / seen.unmerged + seen.false_negatives / seen.merged)
    return sums


def median(values: Sequence[int]) -> float:
    """The middle value."""
    ranked = sorted(values)
    return (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2


# The record


def encoded(rounds: Sequence[Round], about: dict[str, Any]) -> str:
    """The text of a record."""
    content = {"schema_version": SCHEMA_VERSION, "kind": "tenants", **about}
    return json.dumps({**content, "rounds": [asdict(one) for one in rounds]}) + "\n"


def decoded(text: str) -> tuple[list[Round], dict[str, Any]]:
    """The rounds of a record, and what else it says. Raises BenchError."""
    try:
        content = json.loads(text)
        if content["schema_version"] != SCHEMA_VERSION or content["kind"] != "tenants":
            raise BenchError("it is no record of this benchmark's version")
        rounds = [
            Round(one["booted_at"], {name: Arm(**one["arms"][name]) for name in ARMS})
            for one in content.pop("rounds")
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"it cannot be read ({error!r})") from None
    for arm in (one.arms[name] for one in rounds for name in ARMS):
        if len(arm.held) != len(arm.write_ns) or not set(arm.held) <= {0, 1}:
            raise BenchError("a round of it has not one latency for each page")
    if not rounds:
        raise BenchError("it has no round")
    return rounds, content


def shown(rounds: Sequence[Round], about: dict[str, Any]) -> str:
    """All figures as text."""
    boots = len({one.booted_at for one in rounds})
    pages = len(rounds[0].arms["on"].held)
    lines = [
        f"{len(rounds)} restores of {boots} boots, {pages} guessed pages in each; {about.get('machine', '')}",
        "a page is called merged where its first write takes longer than the threshold; one half of the",
        "pages chose it, the figures are of the other half",
        "",
        f"{'KSM':4} {'pages':>7} {'threshold':>10} {'unmerged':>9} {'merged':>9}  "
        f"{'false positives':28} {'false negatives':28}",
    ]
    for name in ARMS:
        result = solve(rounds, name)
        errors = result.errors
        counts = [
            [(each.false_positives, each.unmerged) for each in (errors, *result.by_round)],
            [(each.false_negatives, each.merged) for each in (errors, *result.by_round)],
        ]
        said = "  ".join(f"{proportion(*one[0], one[1:]):28}" for one in counts)
        lines.append(
            f"{name:4} {errors.unmerged + errors.merged:7} {microseconds(result.threshold_ns):>10} "
            f"{microseconds(result.median_unmerged_ns):>9} {microseconds(result.median_merged_ns):>9}  {said}"
        )
    lines += [
        "",
        "latencies in us: the threshold, and the medians of the pages that the victim holds not and holds",
        "errors in %: of all pages [95 % Wilson interval over pages] (least to most of a restore)",
        *(f"KSM {name}: {said}" for name in ARMS if (said := elsewhere(of_other_boots(rounds, name)))),
    ]
    return "\n".join(lines)


def elsewhere(sums: Sequence[float]) -> str:
    """What an attacker errs by whose threshold is from other boots, over the boots; "" of too few."""
    if not sums:
        return ""
    over = paired([100 * one for one in sums])
    half = "" if over.half_width is None else f" ± {over.half_width:.1f}"
    return (
        f"with a threshold from the other boots both rates sum to {over.mean:.1f}{half} % (mean of "
        f"{len(sums)} boots ± half of the 95 % t interval; {100 * min(sums):.1f} to {100 * max(sums):.1f}; "
        "100 % is guessing)"
    )


def proportion(count: int, of: int, each: Sequence[tuple[int, int]]) -> str:
    """A share with its interval and its range over the rounds, in per cent."""
    low, high = (100 * (end or 0.0) for end in wilson(count, of))
    shares = [100 * wrong / total for wrong, total in each if total]
    spread = f"({min(shares):.1f} to {max(shares):.1f})"
    return f"{100 * count / of:.2f} [{low:.2f}, {high:.2f}] {spread}"


def microseconds(nanoseconds: float) -> str:
    """A time for the table."""
    return "none" if math.isinf(nanoseconds) else f"{nanoseconds / 1000:.2f}"


# Measuring


def victims_choice(pages: int, choice: random.Random) -> list[int]:
    """Which of the guessed contents the victim holds: half of them, drawn anew for each arm."""
    held = [1] * (pages // 2) + [0] * (pages - pages // 2)
    choice.shuffle(held)
    return held


class Tenant:
    """The program in one guest, for as long as this is open."""

    def __init__(self, command: list[str]) -> None:
        """Start it."""
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        """Its next line. Raises BenchError where it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchError("the program in a guest ended; what it said is above")
        return line.strip()

    def measure(self) -> list[int]:
        """Let it write to its pages; nanoseconds of each."""
        assert self.process.stdin is not None
        self.process.stdin.write("measure\n")
        self.process.stdin.flush()
        took: list[int] = json.loads(self.line())
        return took

    def close(self) -> None:
        """End it; its memory goes with it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(60)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def ssh(number: int) -> list[str]:
    """The beginning of a command in a guest."""
    # A guest that hangs ends the connection after ten minutes.
    alive = ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=40"]
    return ["ssh", "-F", SSH_CONFIG, *alive, f"guest{number:02d}"]


def in_guest(number: int, asked: dict[str, Any]) -> list[str]:
    """The command that runs the program in a guest."""
    return [*ssh(number), f"exec python3 -u /run/tenant.py {shlex.quote(json.dumps(asked))}"]


def ksm_counter(name: str) -> int:
    """One of KSM's counters."""
    return int((KSM / name).read_text(encoding="ascii"))


def await_scans(scans: int, say: Callable[[str], None]) -> None:
    """Wait until ksmd has looked at all memory so often."""
    first = shown_scan = ksm_counter("full_scans")
    deadline = time.monotonic() + SCANS_LIMIT_SECONDS
    while (now := ksm_counter("full_scans")) < first + scans:
        if now > shown_scan:
            say(f"scan {now - first} of {scans}, {ksm_counter('pages_sharing')} pages shared")
            shown_scan = now
        if time.monotonic() > deadline:
            raise BenchError(f"ksmd did not scan all memory {scans} times in {SCANS_LIMIT_SECONDS} s")
        time.sleep(0.2)


def set_ksm(arguments: dict[str, Any]) -> None:
    """Call the module ksm, which keeps the settings before the first change."""
    given = json.dumps({**arguments, "snapshot": SNAPSHOT})
    ansible("ansible", "hypervisors", "--become", "-m", "ksm", "-a", given)


def ansible(program: str, *words: str) -> None:
    """Run one of Ansible's programs in the project; BenchError with the end of what it said."""
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *words],
        cwd=PROJECT,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PROVISION_LIMIT_SECONDS,
    )
    if done.returncode:
        raise BenchError(f"{program} {words[0]} failed: {(done.stdout + done.stderr)[-1500:]}")


def restored(run_id: str, fresh: bool, memory_mib: int) -> str:
    """Restore two idle guests by a run of the experiment, which keeps them; when they booted."""
    with tempfile.TemporaryDirectory(prefix="tenants-") as results:
        asked = {
            "focus": 1,
            "guests": 2,
            "guest_memory_mib": memory_mib,
            "keep_guests": True,
            "checkpoint": "fresh" if fresh else "keep",
            "run_id": run_id,
            "results_directory": results,
        }
        ansible("ansible-playbook", "playbooks/experiment.yml", "-e", json.dumps(asked))
        (record,) = Path(results).glob("*/*/*/on.json")
        booted_at: str = json.loads(record.read_text(encoding="utf-8"))["provenance"]["start"]["booted_at"]
    return booted_at


def measured(arm: str, held: list[int], seed: str, say: Callable[[str], None]) -> Arm:
    """One arm: fill both guests, let KSM settle where it is on, time the attacker's writes."""
    set_ksm({"state": "unmerged"})
    attacker = Tenant(in_guest(ATTACKER, {"seed": seed, "held": [1] * len(held)}))
    try:
        victim = Tenant(in_guest(VICTIM, {"seed": seed, "held": held}))
        try:
            for tenant in (attacker, victim):
                if (said := tenant.line()) != "ready":
                    raise BenchError(f"the program in a guest said {said!r}")
            if arm == "on":
                set_ksm({"knobs": KNOBS, "optional": OPTIONAL_KNOBS})
                await_scans(FULL_SCANS, say)
            before = ksm_counter("pages_sharing")
            took = attacker.measure()
            return Arm(held, took, before, ksm_counter("pages_sharing"))
        finally:
            victim.close()
    finally:
        attacker.close()


def measure(arguments: argparse.Namespace) -> None:
    """Measure round by round, and keep each."""
    if os.geteuid():
        raise BenchError("KSM's settings are root's: run as root")
    if arguments.record.exists():
        raise BenchError(f"{arguments.record} exists: name another file, or remove it")
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {text}", flush=True)

    name = f"tenants-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    choice = random.SystemRandom()
    about = {
        "recorded_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "machine": machine(),
        "guest_memory_mib": arguments.memory_mib,
        "knobs": KNOBS,
    }
    rounds: list[Round] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the host is put right
    try:
        for number in range(1, arguments.rounds + 1):
            say(f"round {number} of {arguments.rounds}: restoring two guests")
            booted_at = restored(f"{name}-{number}", arguments.fresh, arguments.memory_mib)
            for guest in (ATTACKER, VICTIM):
                subprocess.run([*ssh(guest), "cat > /run/tenant.py"], input=TENANT, text=True, check=True)
            arms = {}
            for arm in ARMS:
                say(f"round {number}: KSM {arm}, {arguments.pages} pages")
                held = victims_choice(arguments.pages, choice)
                arms[arm] = measured(arm, held, f"{name}-{number}-{arm}", say)
            rounds.append(Round(booted_at, arms))
            put(arguments.record, encoded(rounds, about))
            print(shown(rounds, about), flush=True)
    finally:
        say("putting the host right")
        ansible("ansible-playbook", "playbooks/teardown.yml")


def machine() -> str:
    """CPU and kernel, for the record."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{models[0] if models else 'unknown CPU'}, Linux {os.uname().release}"


def whole(least: int) -> Callable[[str], int]:
    """The check of a number of the command line."""

    def check(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least {least}")
        return int(text)

    return check


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parsed = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parsed.add_subparsers(required=True, dest="command")
    measuring = commands.add_parser("measure", help="measure on this host and keep the latencies in RECORD")
    measuring.add_argument("record", type=Path)
    measuring.add_argument("--rounds", type=whole(1), default=5)
    measuring.add_argument("--pages", type=whole(16), default=4096)
    measuring.add_argument("--memory-mib", type=whole(128), default=256)
    measuring.add_argument("--fresh", action="store_true", help="boot the guests anew for each round")
    showing = commands.add_parser("show", help="print the figures of RECORD again")
    showing.add_argument("record", type=Path)
    return parsed


def main() -> None:
    """Measure or show."""
    arguments = parser().parse_args()
    try:
        if arguments.command == "measure":
            measure(arguments)
        else:
            print(shown(*decoded(arguments.record.read_text(encoding="utf-8"))))
    except BenchError as error:
        sys.exit(f"{arguments.record}: {error}")
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"{arguments.record}: {error}")


if __name__ == "__main__":
    main()
